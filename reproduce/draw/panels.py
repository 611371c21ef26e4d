"""Drawing shared by figures: style, colours, labels, intervals, landscapes and the files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from lpe.errors import InputError
from lpe.writing import replacing
from reproduce.draw.page import BOTH_COLUMNS, EDITED, files, heading, is_edited, width
from reproduce.judge.intervals import student_interval

# Okabe & Ito's palette: told apart with any of the usual colour-vision deficiencies.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#777777"
TEXT_WIDTH = BOTH_COLUMNS
SMALL = 6.5
"""Points: the smallest text."""
PNG_DPI = 150
"""Dots an inch of a PNG, which pages show; for print there is the PDF."""

_STYLE: dict[Any, Any] = {
    # At every width; nothing is written smaller than SMALL.
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 4,
    "axes.labelpad": 2,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.02,
    "svg.hashsalt": "lpe",
}


def style() -> AbstractContextManager[None]:
    """Set the figures' fonts, lines and layout, for the time of a ``with``."""
    return plt.rc_context(_STYLE)


def read_record(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a record as a table; InputError if it lacks a column, has no rows or cannot be read."""
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the record {path} ({error}); run without --plot-only") from None
    if absent := [column for column in columns if column not in table.columns]:
        raise InputError(f"the record {path} has no column {absent[0]!r}; run without --plot-only")
    if table.empty:
        raise InputError(f"the record {path} has no rows; run without --plot-only")
    return table


WITHOUT = {"pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""What is left out of each kind of file: what would differ between two runs."""


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PDF, and as PNG of 256 colours, each whole or not at all; returns the paths.

    Or as the kinds of files that :func:`page.page` was told; an SVG's letters are drawn, so that it looks
    everywhere alike.
    """
    lines = [textwrap.fill(heading(), int(19 * width()))] * bool(heading())
    lines += [EDITED] * is_edited()
    if lines:
        figure.suptitle("\n".join(lines), fontsize=SMALL, color=VERMILION if is_edited() else BLACK)
    paths = []
    for kind in files():
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=WITHOUT[kind])
        content = _of_a_palette(buffer) if kind == "png" else buffer.getvalue()
        path = folder / f"{name}.{kind}"
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        paths.append(path)
    plt.close(figure)
    return paths


def _of_a_palette(png: io.BytesIO) -> bytes:
    """Return a PNG of at most 256 colours, each pixel's the nearest: a quarter of the bytes."""
    buffer = io.BytesIO()
    with Image.open(png) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", optimize=True, dpi=(PNG_DPI, PNG_DPI))
    return buffer.getvalue()


def letters() -> Iterator[str]:
    """Yield the letters of panels: a … z, then aa …"""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    yield from alphabet
    yield from (first + second for first in alphabet for second in alphabet)


def paired_grid(
    count: int, rows: int, most: int = 3, height: float = 1.55
) -> tuple[Figure, list[list[Axes]]]:
    """Lay out ``rows`` panels under each other for each of ``count`` subjects, a column a subject.

    One subject's panels stand side by side. More than ``most`` subjects go on below.

    Args:
        height: of a row, in inches.

    Returns:
        The figure, and for each subject its axes.
    """
    if count == 1:
        figure, grid = plt.subplots(1, rows, figsize=(width(), height + 0.55), squeeze=False)
        return figure, [list(grid[0])]
    columns = min(count, most)
    blocks = -(-count // columns)
    figure = plt.figure(figsize=(width(), height * rows * blocks + 0.55))
    cells = figure.add_gridspec(rows * blocks, columns)
    found = []
    for subject in range(count):
        block, column = divmod(subject, columns)
        found.append([figure.add_subplot(cells[rows * block + row, column]) for row in range(rows)])
    return figure, found


def label_rows(titles: Sequence[tuple[Axes, str]]) -> None:
    """Letter panels row by row, and title them."""
    places = {axes: axes.get_subplotspec() for axes, _ in titles}
    order = sorted(titles, key=lambda each: _row_column(places[each[0]]))
    for letter, (axes, title) in zip(letters(), order, strict=False):
        label_panel(axes, letter, title)


def _row_column(place: SubplotSpec | None) -> tuple[int, int]:
    assert place is not None
    return place.rowspan.start, place.colspan.start


def leftmost(axes: Axes) -> bool:
    """Tell whether a panel is the first of its row."""
    place = axes.get_subplotspec()
    return place is None or place.is_first_col()


def label_panel(axes: Axes, letter: str, title: str) -> None:
    """Put "(a) title" above a panel."""
    axes.set_title(f"({letter}) {title}", loc="left")


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int | None = None, title: str = "") -> None:
    """Draw one legend under the figure with each label of the panels once.

    Args:
        columns: None: as many as the figure's width has room for. title: a line above the entries.
    """
    handles: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if columns is None:
        # A character takes about .048 inches; the mark and the gaps about .55.
        room = max(1, int(figure.get_figwidth() / (0.55 + 0.048 * max(map(len, handles)))))
        lines = -(-len(handles) // room)
        columns = -(-len(handles) // lines)
    legend = figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
    if title:
        legend.set_title(title)
        legend.get_title().set_fontsize(SMALL)


# Curves against a budget, and panels whose values are limited.


def budget_table(rows: pd.DataFrame, reference: pd.Series, budget: str) -> pd.DataFrame:
    """Tabulate a curve against a budget: a line a size, from rows of one method and metric.

    Args:
        rows: long-form rows. reference: a value per training seed (the single FP32 model's).
        budget: the column on x, "memory_bits" or "backward_passes"; its mean over training seeds.

    Returns:
        [sizes, (size, budget, mean, low, high)] by size: the mean over the training seeds that the reference
        has too, and the 95 % interval of the paired difference to the reference, around the reference's mean
        (NaN with one seed). Where sizes cost the same training, all are there: see ``all_paid_for``.
    """
    values = rows.pivot(index="size", columns="seed", values="value")
    shared = values.columns.intersection(reference.dropna().index)
    lines = []
    for size, differences in (values[shared] - reference[shared]).iterrows():
        kept = differences.dropna()
        if kept.empty:
            raise InputError(f"size {size} shares no training seed with the single FP32 model; run both anew")
        base = float(reference[kept.index].mean())
        low, high = student_interval(kept.to_numpy())
        lines.append((size, base + float(kept.mean()), base + low, base + high))
    curve = pd.DataFrame(lines, columns=["size", "mean", "low", "high"])
    curve.insert(1, "budget", rows.groupby("size")[budget].mean().to_numpy(float))
    return curve


def all_paid_for(curve: pd.DataFrame) -> pd.DataFrame:
    """Keep the largest of the sizes that cost the same training: every member of the bases trained so far."""
    return curve.drop_duplicates("budget", keep="last").reset_index(drop=True)


def draw_budget(
    axes: Axes,
    curve: pd.DataFrame,
    colour: str,
    marker: str,
    label: str,
    factor: float = 1.0,
    line: str = "-",
) -> None:
    """Draw a curve of ``budget_table`` with its interval, x divided by ``factor``; ``line``: its style.

    Up to 12 sizes each have a marker; of more, some that lie evenly in the logarithm.
    """
    xs = curve["budget"].to_numpy() / factor
    last = len(curve) - 1
    shown = {*range(last + 1)} if last < 12 else {round(last ** (k / 8)) for k in range(1, 9)} | {0}
    marked = sorted(shown)
    axes.plot(xs, curve["mean"], line, color=colour, marker=marker, markevery=marked, label=label, zorder=3)
    if np.isfinite(curve["low"]).all():
        axes.fill_between(xs, curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0, zorder=1)


def single_models(
    axes: Axes, cost: float, level: float, scaled: float, where: str, name: str = "FP32"
) -> None:
    """Draw the single model as a line with a star at its cost, and with temperature scaling as a line.

    Args:
        cost: on the x axis. level, scaled: their values. where: the star's place in words, for the legend.
        name: what the unrounded model is called.
    """
    axes.axhline(level, color=BLACK, linestyle="--", linewidth=0.9, zorder=2)
    axes.axhline(scaled, color=BLACK, linestyle=":", linewidth=0.9, label=f"single {name} + temperature")
    axes.plot(
        cost,
        level,
        color=BLACK,
        marker="*",
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.5,
        linestyle="--",
        linewidth=0.9,
        label=f"single {name}, at its {where}",
        zorder=5,
    )


def limit_values(
    axes: Axes,
    curves: Sequence[pd.DataFrame],
    lines: Sequence[float],
    at_most: float = math.inf,
    here: Sequence[pd.DataFrame] | None = None,
) -> None:
    """Limit y to the means, and say above the panel what lies higher.

    Intervals are shown up to 1.5 times as far from the curves' ends and the reference lines as these lie
    apart, at least 10 % of them; means up to 3 times the highest of these: a curve's first, worst point must
    not press the others together.

    Args:
        curves: of all panels that share y. lines: levels. at_most: where y ends at the latest.
        here: the panel's own curves; None: all.
    """
    ends = [float(curve["mean"].iloc[-1]) for curve in curves]
    near = [*ends, *lines]
    lowest, highest = min(near), max(near)
    means = np.concatenate([curve["mean"].to_numpy() for curve in curves])
    lows = np.concatenate([curve["low"].to_numpy() for curve in curves])
    highs = np.concatenate([curve["high"].to_numpy() for curve in curves])
    reach = 1.5 * max(highest - lowest, 0.1 * highest)
    top = min(float(np.nanmax([*means, *highs, highest])), highest + reach)
    top = max(top, min(float(means.max()), 3 * highest))
    bottom = max(float(np.nanmin([*means, *lows, lowest])), lowest - reach, 0.0)
    bottom = min(bottom, float(means.min()))
    pad = 0.04 * (top - bottom)
    top = min(top + pad, at_most)
    axes.set_ylim(bottom - pad, top)
    most = max(float(curve["mean"].max()) for curve in (curves if here is None else here))
    if most > top:
        say_cut(axes, most)


def say_cut(axes: Axes, most: float) -> None:
    """Say in a panel's upper right corner that curves go on above it."""
    text = axes.text(1.0, 0.99, f"up to {most:.2g}", transform=axes.transAxes, ha="right", va="top")
    text.set(fontsize=SMALL, zorder=7, path_effects=[withStroke(linewidth=1.5, foreground="white")])


def plain_log(axis: Axis) -> None:
    """Write plain numbers at 1, 2 and 5 times the powers of ten of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def memory_axis(axes: Axes, label: str = "memory (Mbit)") -> None:
    """Make x a logarithmic axis in Mbit."""
    axes.set_xscale("log")
    plain_log(axes.xaxis)
    axes.set_xlabel(label)


# Landscapes with colour bars that panels share.


def field(grid: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return xs, ys and values [ys, xs] of a metric of a landscape's record; InputError without any."""
    rows = grid[grid["metric"] == metric]
    if rows.empty:
        raise InputError(f"the landscape's record has no metric {metric!r}; run without --plot-only")
    table = rows.pivot(index="y", columns="x", values="value").sort_index().sort_index(axis=1)
    return table.columns.to_numpy(float), table.index.to_numpy(float), table.to_numpy(float)


def even_levels(values: np.ndarray) -> np.ndarray:
    """Return up to 20 round contour levels, evenly spaced, over the range of the values."""
    levels = MaxNLocator(19, steps=[1, 2, 5, 10]).tick_values(float(values.min()), float(values.max()))
    return np.asarray(levels)


def round_levels(low: float, high: float, digits: Sequence[float] = (1, 2, 5)) -> np.ndarray:
    """Return contour levels d · 10ᵏ, d of ``digits``: from the last ≤ ``low`` to the last below ``high``.

    Args:
        low, high: 0 < low. At least two levels come back.
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(max(high, low))) + 2)
    # As written in decimals: 3 · 10⁻² is then the number .03, and so is its label.
    every = np.array(sorted(float(f"{digit}e{power}") for power in powers for digit in digits))
    first = int(np.searchsorted(every, low, side="right")) - 1
    last = max(int(np.searchsorted(every, high, side="left")), first + 2)
    return every[first:last]


def filled_contours(
    axes: Axes,
    xs: np.ndarray,
    ys: np.ndarray,
    values: np.ndarray,
    levels: np.ndarray,
    colours: str,
    named: Sequence[float] = (),
    clear: Sequence[tuple[float, float]] = (),
) -> ContourSet:
    """Draw filled contours, one colour between two levels, with thin lines at the levels.

    Args:
        values: [ys, xs]. levels: increasing. colours: a colour map's name. named: levels that get a label.
            clear: places that no label may cover.
    """
    norm = BoundaryNorm(levels, plt.get_cmap(colours).N, extend="both")
    filled = axes.contourf(xs, ys, values, levels=levels, cmap=colours, norm=norm, extend="both")
    # A line around a few points of the grid says nothing.
    crossed = [level for level in levels if 0.01 < float((values < level).mean()) < 0.99]
    if crossed:
        lines = axes.contour(xs, ys, values, levels=crossed, colors=BLACK, linewidths=0.35, alpha=0.6)
        shown = [level for level in crossed if level in named]
        labels = axes.clabel(lines, shown, fontsize=SMALL, fmt="%g", inline=False, colors=BLACK)
        marked = [((x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])) for x, y in clear]
        # How far a label must be from a mark and from another label, across and up, as shares of the panel.
        taken = [(place, (0.22, 0.13)) for place in marked]
        for text in labels:
            # Upright: .01 on its head is 10.
            text.set(alpha=1, rotation=0, path_effects=[withStroke(linewidth=1, foreground="white")])
            x, y = text.get_position()
            across, up = (x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])
            beside = all(abs(across - a) > far or abs(up - b) > high for (a, b), (far, high) in taken)
            if beside and min(across, 1 - across) > 0.12 and min(up, 1 - up) > 0.06:
                taken.append(((across, up), (0.38, 0.1)))
            else:
                text.remove()
    return filled


def colour_bar(figure: Figure, filled: ContourSet, axes: Axes, label: str, ticks: np.ndarray) -> None:
    """Draw a colour bar in axes of its own; ``label`` has the unit."""
    finish_bar(figure.colorbar(filled, cax=axes), label, ticks)


def finish_bar(bar: Colorbar, label: str, ticks: Sequence[float] | np.ndarray) -> None:
    """Label a colour bar, with the unit, and the levels that are named beside it."""
    bar.set_ticks(list(ticks), labels=[f"{level:g}" for level in ticks])
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.ax.minorticks_off()
    bar.set_label(label, fontsize=SMALL)


def outlined(axes: Axes, x: float, y: float, text: str, offset: tuple[float, float]) -> None:
    """Write small text beside a place, legible on any colour; ``offset`` of its middle in points."""
    axes.annotate(
        text,
        (x, y),
        offset,
        textcoords="offset points",
        fontsize=SMALL,
        ha="center",
        va="center",
        zorder=7,
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )
