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
