"""Drawing that figures share: style, colours, labels, intervals, landscapes and the files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
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
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lpe.errors import InputError
from lpe.records import replacing
from reproduce.claims import by_seed, interval

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
    """The figures' fonts, lines and layout, for the time of a ``with``."""
    return plt.rc_context(_STYLE)


def read_record(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A record as a table; InputError if it lacks a column or cannot be read."""
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
    """Mean over training seeds against size, with the interval of the paired difference to a reference.

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
        low, high = interval(difference.to_numpy())
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
    """Filled contours with labelled lines and a colour bar.

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
) -> None:
    """NLL against ensemble size of one point: BMA, LPE-BSR by bit width, and the single models as lines.

    Args:
        nll: the point's rows of metric "nll". single: the FP32 model's NLL per training seed.
    """
    if (nll["method"] == "BMA").any():
        paired_curve(axes, nll, single, bma_style[0], "BMA, FP32", bma_style[1], method="BMA")
    for width in bits:
        colour, marker = bit_styles[width]
        system = f"int{width}"
        label = f"LPE-BSR, INT-{width}"
        paired_curve(axes, nll, single, colour, label, marker, method="LPE-BSR", number_system=system)
    scaled = by_seed(nll, method="FP32 + temperature")
    axes.axhline(single.mean(), color=BLACK, linestyle="--", linewidth=0.9, label="single FP32")
    axes.axhline(scaled.mean(), color=BLACK, linestyle=":", linewidth=0.9, label="single FP32 + temperature")
    axes.set_xlabel("ensemble size (members)")
    axes.set_xlim(0.5, int(nll["size"].max()) + 0.5)


def nll_levels(values: np.ndarray) -> np.ndarray:
    """Contour levels for NLL: even in the logarithm, from the smallest value to the largest or 5 nats."""
    low = max(float(values.min()), 1e-3)
    high = min(float(values.max()), 5.0)
    return np.geomspace(low, max(high, 1.01 * low), 13)


def legend_below(figure: Figure, axes: Sequence[Axes], rename: Mapping[str, str] | None = None) -> None:
    """One legend under the figure with each label of the panels once."""
    handles: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault((rename or {}).get(label, label), handle)
    columns = len(handles) if len(handles) <= 6 else -(-len(handles) // 2)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


# Curves against a budget, and panels whose values are limited.


def budget_table(rows: pd.DataFrame, reference: pd.Series, budget: str) -> pd.DataFrame:
    """A curve against a budget: a line a size, from rows of one method and metric.

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
        low, high = interval(kept.to_numpy())
        lines.append((size, base + float(kept.mean()), base + low, base + high))
    curve = pd.DataFrame(lines, columns=["size", "mean", "low", "high"])
    curve.insert(1, "budget", rows.groupby("size")[budget].mean().to_numpy(float))
    return curve


def all_paid_for(curve: pd.DataFrame) -> pd.DataFrame:
    """Of the sizes that cost the same training, the largest: every member of the bases trained so far."""
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


def limit_values(axes: Axes, curves: Sequence[pd.DataFrame], lines: Sequence[float]) -> None:
    """Limit y to where the curves end, and say above the panel what lies higher.

    The limit is that of all means and intervals, unless it is more than 1.5 times as far above the curves'
    ends and the reference lines as these lie apart, at least 10 % of them: a curve's first, worst point must
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
    bottom = max(float(np.nanmin([*means, *lows, lowest])), lowest - reach, 0.0)
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
    """A logarithmic x axis in Mbit, with plain numbers at 1, 2 and 5 times the powers of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def legend_in_columns(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """``legend_below`` in a given number of columns, for entries too wide for its choice."""
    legend_below(figure, axes)
    (chosen,) = figure.legends
    handles = [handle for handle in chosen.legend_handles if handle is not None]
    texts = [text.get_text() for text in chosen.get_texts()]
    chosen.remove()
    figure.legend(handles, texts, loc="outside lower center", ncols=columns)
