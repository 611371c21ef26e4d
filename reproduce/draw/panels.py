"""Drawing shared by figures: style, colours, labels, intervals, landscapes and the files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LogNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lpe.errors import InputError
from lpe.writing import replacing
from reproduce.judge.intervals import by_seed, student_interval

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
TEXT_WIDTH = 7.0
"""Inches: both columns of a two-column page."""

_STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "lpe",
}


def style() -> AbstractContextManager[None]:
    """Set the figures' fonts, lines and layout, for the time of a ``with``."""
    return plt.rc_context(_STYLE)


def read_record(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a record as a table; InputError if it lacks a column or cannot be read."""
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the record {path} ({error}); run without --plot-only") from None
    if absent := [column for column in columns if column not in table.columns]:
        raise InputError(f"the record {path} has no column {absent[0]!r}; run without --plot-only")
    return table


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PDF and PNG (300 dots an inch), each whole or not at all; returns the paths."""
    paths = []
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=300, metadata=metadata)
        path = folder / f"{name}.{kind}"
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        paths.append(path)
    plt.close(figure)
    return paths


def label_panel(axes: Axes, letter: str, title: str) -> None:
    """Put "(a) title" above a panel."""
    axes.set_title(f"({letter}) {title}", loc="left", pad=8)


def paired_curve(
    axes: Axes,
    record: pd.DataFrame,
    reference: pd.Series,
    colour: str,
    label: str,
    marker: str,
    **equal: object,
) -> None:
    """Draw the mean over training seeds against size, with its paired difference's interval to a reference.

    Args:
        record: long-form rows. reference: a value per training seed (the single FP32 model's).
        equal: which rows.
    """
    rows = record
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    sizes = np.array(sorted(rows["size"].unique()))
    means, lows, highs = [], [], []
    for size in sizes:
        values = by_seed(rows, size=size)
        difference = (values - reference).dropna()
        low, high = student_interval(difference.to_numpy())
        means.append(values.mean())
        lows.append(reference.mean() + low)
        highs.append(reference.mean() + high)
    shown = [n for n in range(len(sizes)) if sizes[n] in (1, 2, 5, 10, 15, 20, 30)]
    axes.plot(sizes, means, color=colour, marker=marker, markevery=shown, label=label)
    if np.isfinite(lows).all():
        axes.fill_between(sizes, lows, highs, color=colour, alpha=0.18, linewidth=0)


def contours(
    figure: Figure,
    axes: Axes,
    xs: np.ndarray,
    ys: np.ndarray,
    values: np.ndarray,
    levels: np.ndarray,
    label: str,
) -> None:
    """Draw filled contours with labelled lines and a colour bar.

    Args:
        values: [ys, xs]. levels: increasing. label: the colour bar's, with the unit.
    """
    norm = LogNorm(levels[0], levels[-1])
    filled = axes.contourf(xs, ys, values, levels=levels, cmap="cividis_r", norm=norm, extend="both")
    lines = axes.contour(xs, ys, values, levels=levels[::3], colors="white", linewidths=0.5)
    axes.clabel(lines, fontsize=5, fmt="%.2g", inline_spacing=1)
    bar = figure.colorbar(filled, ax=axes, fraction=0.07, pad=0.02, ticks=levels[::3])
    bar.ax.set_yticklabels([f"{level:.2g}" for level in levels[::3]], fontsize=5.5)
    bar.ax.minorticks_off()
    bar.ax.set_title(label, fontsize=5.5, loc="left", pad=4)


def anchors(
    axes: Axes, places: Mapping[str, tuple[float, float]], styles: Mapping[str, tuple[str, str]]
) -> None:
    """Mark anchors. places: name → (x, y); styles: name → (colour, marker)."""
    for name, (x, y) in places.items():
        colour, marker = styles[name]
        axes.plot(
            x,
            y,
            marker=marker,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=6,
            linestyle="none",
            label=name,
            zorder=6 if marker == "*" else 5,
            clip_on=False,
        )


def nll_panel(
    axes: Axes,
    nll: pd.DataFrame,
    single: pd.Series,
    bits: Sequence[int],
    bit_styles: Mapping[int, tuple[str, str]],
    bma_style: tuple[str, str],
    name: str = "FP32",
) -> None:
    """Draw NLL against size at one point: BMA, LPE-BSR by bit width, and the single models as lines.

    Args:
        nll: the point's rows of metric "nll". single: the unrounded model's NLL per training seed.
        name: what the unrounded model is called.
    """
    if (nll["method"] == "BMA").any():
        paired_curve(axes, nll, single, bma_style[0], "BMA, FP32", bma_style[1], method="BMA")
    for width in bits:
        colour, marker = bit_styles[width]
        system = f"int{width}"
        label = f"LPE-BSR, INT-{width}"
        paired_curve(axes, nll, single, colour, label, marker, method="LPE-BSR", number_system=system)
    scaled = by_seed(nll, method=f"{name} + temperature")
    axes.axhline(single.mean(), color=BLACK, linestyle="--", linewidth=0.9, label=f"single {name}")
    label = f"single {name} + temperature"
    axes.axhline(scaled.mean(), color=BLACK, linestyle=":", linewidth=0.9, label=label)
    axes.set_xlabel("ensemble size (members)")
    axes.set_xlim(0.5, int(nll["size"].max()) + 0.5)


def nll_levels(values: np.ndarray) -> np.ndarray:
    """Return contour levels for NLL: even in the logarithm, from the least value to the largest or 5 nats."""
    low = max(float(values.min()), 1e-3)
    high = min(float(values.max()), 5.0)
    return np.geomspace(low, max(high, 1.01 * low), 13)


def legend_below(figure: Figure, axes: Sequence[Axes], rename: Mapping[str, str] | None = None) -> None:
    """Draw one legend under the figure with each label of the panels once."""
    handles: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault((rename or {}).get(label, label), handle)
    columns = len(handles) if len(handles) <= 6 else -(-len(handles) // 2)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


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
    axes: Axes, curve: pd.DataFrame, colour: str, marker: str, label: str, factor: float = 1.0
) -> None:
    """Draw a curve of ``budget_table`` with its interval, x divided by ``factor``.

    Up to 12 sizes each have a marker; of more, some that lie evenly in the logarithm.
    """
    xs = curve["budget"].to_numpy() / factor
    last = len(curve) - 1
    shown = {*range(last + 1)} if last < 12 else {round(last ** (k / 8)) for k in range(1, 9)} | {0}
    axes.plot(xs, curve["mean"], color=colour, marker=marker, markevery=sorted(shown), label=label, zorder=3)
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


def limit_values(axes: Axes, curves: Sequence[pd.DataFrame], lines: Sequence[float]) -> None:
    """Limit y to the means, and say above the panel what lies higher.

    Intervals are shown up to 1.5 times as far from the curves' ends and the reference lines as these lie
    apart, at least 10 % of them; means up to 3 times the highest of these: a curve's first, worst point must
    not press the others together.
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
    axes.set_ylim(bottom - pad, top + pad)
    if means.max() > top + pad:
        axes.text(
            1.0,
            1.005,
            f"cut off; means up to {means.max():.2g}",
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize=5,
        )


def memory_axis(axes: Axes, label: str = "memory (Mbit)") -> None:
    """Make x a logarithmic axis in Mbit, with plain numbers at 1, 2 and 5 times the powers of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def legend_in_columns(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """Draw ``legend_below`` in a given number of columns, for entries too wide for its choice."""
    legend_below(figure, axes)
    (chosen,) = figure.legends
    handles = [handle for handle in chosen.legend_handles if handle is not None]
    texts = [text.get_text() for text in chosen.get_texts()]
    chosen.remove()
    figure.legend(handles, texts, loc="outside lower center", ncols=columns)


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
        labels = axes.clabel(
            lines, [x for x in crossed if x in named], fontsize=5.5, fmt="%g", inline=False, colors=BLACK
        )
        taken = [((x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])) for x, y in clear]
        for text in labels:
            text.set(alpha=1, path_effects=[withStroke(linewidth=1, foreground="white")])
            x, y = text.get_position()
            across, up = (x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])
            nearest = min((max(abs(across - a), abs(up - b)) for a, b in taken), default=1.0)
            if min(across, 1 - across, up, 1 - up) < 0.06 or nearest < 0.13:
                text.remove()
            else:
                taken.append((across, up))
    return filled


def colour_bar(figure: Figure, filled: ContourSet, axes: Axes, label: str, ticks: np.ndarray) -> None:
    """Draw a colour bar in axes of its own; ``label`` has the unit."""
    bar = figure.colorbar(filled, cax=axes)
    bar.set_ticks(list(ticks), labels=[f"{level:g}" for level in ticks])
    bar.ax.tick_params(labelsize=5.5, length=2)
    bar.ax.minorticks_off()
    bar.set_label(label, fontsize=6.5)


def outlined(axes: Axes, x: float, y: float, text: str, offset: tuple[float, float]) -> None:
    """Write small text beside a place, legible on any colour; ``offset`` of its middle in points."""
    axes.annotate(
        text,
        (x, y),
        offset,
        textcoords="offset points",
        fontsize=5.5,
        ha="center",
        va="center",
        zorder=7,
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )


@dataclass(frozen=True)
class Anchor:
    """A weight vector that a radial landscape shows.

    Args:
        name: in the record. legend: in the legend. colour, marker: of its mark; "ring" is a hollow circle,
            for what lies almost on another anchor.
        place: (x, y), L2 units. off_plane: its distance from the plane, L2 units.
    """

    name: str
    legend: str
    colour: str
    marker: str
    place: tuple[float, float]
    off_plane: float


def mark_anchors(axes: Axes, shown: Sequence[Anchor]) -> None:
    """Mark anchors in a landscape."""
    for anchor in shown:
        ring = anchor.marker == "ring"
        axes.plot(
            *anchor.place,
            marker="o" if ring else anchor.marker,
            color="none" if ring else anchor.colour,
            markeredgecolor=anchor.colour if ring else "white",
            markeredgewidth=1.3 if ring else 0.6,
            markersize=9.5 if ring else 6.5,
            linestyle="none",
            label=anchor.legend,
            zorder=5 if ring else 6,
        )


def radial_landscape(
    grid: pd.DataFrame,
    shown: Sequence[Anchor],
    window: tuple[float, float, float, float],
    images: int,
    clouds: Mapping[str, tuple[str, pd.DataFrame]] | None = None,
) -> Figure:
    """Draw two rows of four panels: the loss on a radial plane, around its anchors, and changes from each.

    (a) the loss on the whole plane, with a square around the anchors; (e) the loss in that square; (b–d)
    disagreement with each anchor in it; (f–h) KL divergence from each.

    Args:
        grid: the landscape's record. shown: three anchors. window: the square, (left, right, low, high).
        images: how many the landscape saw: one of them is the least disagreement.
        clouds: legend → (colour, members with x and y), enlarged within (a), around the first anchor.
    """
    figure = plt.figure(figsize=(TEXT_WIDTH, 3.7))
    # Colour bars have columns of their own: those of the loss, one for three panels, and gaps for labels.
    cells = figure.add_gridspec(2, 8, width_ratios=(1.2, 0.06, 0.01, 1.15, 1.15, 1.15, 0.01, 0.06))
    axes = [figure.add_subplot(cells[row, column]) for row in (0, 1) for column in (0, 3, 4, 5)]
    left, right, low, high = window
    xs, ys, nll = field(grid, "nll")
    # The window's edges are lines of the grid, but for the digits that the record rounds off.
    rounded = 1e-6 * (right - left)
    near_x = (xs > left - rounded) & (xs < right + rounded)
    near_y = (ys > low - rounded) & (ys < high + rounded)
    near = np.ix_(near_y, near_x)
    places = [anchor.place for anchor in shown]

    # An anchor that spans the plane is off it by float error.
    off_plane = [anchor for anchor in shown if anchor.off_plane > 1e-3]
    words = {anchor.name: -0.14 if anchor.place[1] > (low + high) / 2 else 0.14 for anchor in off_plane}
    written = [
        (anchor.place[0] + across * (right - left), anchor.place[1] + words[anchor.name] * (high - low))
        for anchor in off_plane
        for across in (-0.2, 0.0, 0.2)
    ]
    for row, ax, part, clear in (
        (0, axes[0], (xs, ys, nll), places),
        (1, axes[4], (xs[near_x], ys[near_y], nll[near]), [*places, *written]),
    ):
        # Above 3 nats a plane only says that it is far away; a few points of the grid are worth no level.
        least, most = float(np.quantile(part[2], 0.02)), min(float(part[2].max()), 3.0)
        levels = round_levels(least, most, (1, 1.5, 2, 3, 4, 6, 8))
        part = (*part[:2], np.maximum(part[2], 1.001 * levels[0]))
        filled = filled_contours(ax, *part, levels, "cividis_r", list(levels[1::2]), clear)
        ticks = levels[:: 1 + len(levels) // 11]
        colour_bar(figure, filled, figure.add_subplot(cells[row, 1]), "test NLL (nats)", ticks)
    axes[0].add_patch(
        Rectangle(
            (left, low), right - left, high - low, fill=False, linestyle=":", linewidth=0.9, clip_on=False
        )
    )
    mark_anchors(axes[0], [Anchor("origin", "origin", BLACK, "X", (0.0, 0.0), 0.0), *shown])
    label_panel(axes[0], "a", "loss, whole plane")
    label_panel(axes[4], "e", "loss, dotted square")

    for row, metric, title, unit in (
        (0, "disagreement", "disagreement\nwith", "disagreement (share of images)"),
        (1, "kl", "KL divergence\nfrom", "KL divergence (nats)"),
    ):
        fields = [field(grid, f"{metric} {anchor.name}")[2][near] for anchor in shown]
        least = 1 / images if metric == "disagreement" else 1e-3
        levels = round_levels(least, min(max(float(values.max()) for values in fields), 3.0))
        for column, (anchor, values) in enumerate(zip(shown, fields, strict=True), start=1):
            ax = axes[4 * row + column]
            part = (xs[near_x], ys[near_y], values)
            filled = filled_contours(ax, *part, levels, "PuBu", list(levels[1::2]), places)
            label_panel(ax, "abcdefgh"[4 * row + column], f"{title} {anchor.name}")
            ax.tick_params(labelleft=column == 1, labelbottom=row == 1)
        colour_bar(figure, filled, figure.add_subplot(cells[row, 7]), unit, levels)

    for ax in (*axes[1:4], *axes[4:]):
        mark_anchors(ax, shown)
        ax.set_xlim(left, right)
        ax.set_ylim(low, high)
        ax.set_aspect("equal")
    for anchor in off_plane:
        place = (anchor.place[0], anchor.place[1] + words[anchor.name] * (high - low))
        outlined(axes[4], *place, f"{anchor.off_plane:.1f} off plane", (0, 0))
    for ax in axes:
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for ax in (axes[0], *axes[4:]):
        ax.set_xlabel("x (L2 units)")
    for ax in axes[::4]:
        ax.set_ylabel("y (L2 units)")
    if clouds:
        _enlarged(axes[0], shown[0], clouds)
    handles, labels = axes[0].get_legend_handles_labels()
    columns = len(labels) if len(labels) <= 4 else -(-len(labels) // 2)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return figure


def _enlarged(axes: Axes, centre: Anchor, clouds: Mapping[str, tuple[str, pd.DataFrame]]) -> None:
    """Draw an inset around an anchor: members projected on the plane, in offsets from the anchor."""
    x, y = centre.place
    inset = axes.inset_axes((0.04, 0.34, 0.5, 0.62))
    reach = 0.0
    for legend, (colour, members) in clouds.items():
        across, up = members["x"] - x, members["y"] - y
        reach = max([reach, *across.abs(), *up.abs()])
        inset.plot(across, up, ".", color=colour, markersize=2.5, markeredgewidth=0)
        # The legend gathers the panel's labels, not the inset's.
        axes.plot([], [], ".", color=colour, label=legend)
    reach = 1.3 * (reach or 1.0)
    inset.plot(
        0, 0, centre.marker, color=centre.colour, markeredgecolor="white", markeredgewidth=0.4, markersize=5
    )
    inset.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set_visible(True)
    inset.text(
        0.04, 0.97, f"\N{PLUS-MINUS SIGN}{reach:.2g} L2", fontsize=5.5, va="top", transform=inset.transAxes
    )


def anchors_of(
    members: pd.DataFrame, styles: Mapping[str, tuple[str, str]], legends: Mapping[str, str]
) -> list[Anchor]:
    """Find the anchors of a landscape: the first member of each method in its record of members.

    Args:
        styles: method → (colour, marker). legends: method → what the legend says, where not its name.
    """
    found = []
    for name, (colour, marker) in styles.items():
        rows = members[(members["method"] == name) & (members["member"] == 0)]
        if rows.empty:
            raise InputError(f"the landscape's record has no member of {name!r}; run without --plot-only")
        row = rows.iloc[0]
        place = (float(row["x"]), float(row["y"]))
        off_plane = float(row["distance_from_plane"])
        found.append(Anchor(name, legends.get(name, name), colour, marker, place, off_plane))
    return found
