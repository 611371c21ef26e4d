"""Curves against the size of an ensemble: levels, and paired differences to the single network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reproduce.draw import panels
from reproduce.draw.style import BIT_STYLES, BMA_STYLE, PLANES_LINE, RE_ESTIMATED_LINE
from reproduce.judge.intervals import by_seed, student_interval
from reproduce.study.unrounded import FP32, RE_ESTIMATED, scaled

MARGIN = 0.01
"""A share of the single network's NLL, the margin of claim C2: within it differences are drawn on an even
axis, beyond on a logarithmic one.
"""
MARKED = (1, 2, 5, 10, 15, 20, 30)
"""Sizes that have a marker."""

Curve = tuple[dict[str, object], str, dict[str, Any]]
"""Which rows, the label, the line's style."""


def curves_at(nll: pd.DataFrame, bits: Sequence[int]) -> list[Curve]:
    """List a point's curves: BMA where there is a posterior, LPE-BSR by width, re-estimated where it is.

    Args:
        nll: the point's rows of metric "nll".
    """
    curves: list[Curve] = []
    colour, marker = BMA_STYLE
    if (nll["method"] == "BMA").any():
        curves.append(({"method": "BMA"}, "BMA, FP32", {"color": colour, "marker": marker}))
    for width in bits:
        colour, marker = BIT_STYLES[width]
        low: dict[str, object] = {"method": "LPE-BSR", "number_system": f"int{width}"}
        curves.append((low, f"LPE-BSR, INT-{width}", {"color": colour, "marker": marker}))
        again = {**low, "method": f"LPE-BSR{RE_ESTIMATED}"}
        if (nll["method"] == again["method"]).any():
            label = f"INT-{width}{RE_ESTIMATED}"
            curves.append((again, label, {"color": colour, **RE_ESTIMATED_LINE}))
    return curves


def _rows(nll: pd.DataFrame, equal: dict[str, object]) -> pd.DataFrame:
    for column, value in equal.items():
        nll = nll[nll[column] == value]
    return nll


def paired_table(rows: pd.DataFrame, reference: pd.Series) -> pd.DataFrame:
    """Tabulate a curve's paired differences to a reference.

    Args:
        rows: long-form rows of one method and metric. reference: a value per training seed.

    Returns:
        [sizes, (size, mean, difference, low, high)]: the mean over training seeds, the mean difference to the
        reference over the seeds of both, and its 95 % interval (NaN with one seed).
    """
    lines = []
    for size, here in rows.groupby("size"):
        values = by_seed(here)
        difference = (values - reference).dropna()
        interval = student_interval(difference.to_numpy())
        lines.append((size, float(values.mean()), float(difference.mean()), *interval))
    return pd.DataFrame(lines, columns=["size", "mean", "difference", "low", "high"])


def _draw(
    axes: Axes, table: pd.DataFrame, base: float, label: str, style: dict[str, Any], band: bool
) -> None:
    sizes = table["size"].to_numpy()
    shown = [place for place, size in enumerate(sizes) if size in MARKED or len(sizes) < 4]
    axes.plot(sizes, base + table["difference"], markevery=shown, label=label, **{"zorder": 3, **style})
    if band and np.isfinite(table["low"]).all():
        limits = (base + table["low"], base + table["high"])
        axes.fill_between(sizes, *limits, color=style["color"], alpha=0.15, linewidth=0, zorder=1)
        for limit in limits:
            axes.plot(sizes, limit, color=style["color"], linewidth=0.4, alpha=0.7, zorder=1)


def nll_panel(
    axes: Axes, nll: pd.DataFrame, single: pd.Series, bits: Sequence[int], name: str = FP32
) -> None:
    """Draw NLL against size at one point: BMA, LPE-BSR by bit width, and the single networks as lines.

    Args:
        nll: the point's rows of metric "nll". single: the unrounded network's NLL per training seed.
        name: what the unrounded network is called.
    """
    for equal, label, style in curves_at(nll, bits):
        table = paired_table(_rows(nll, equal), single)
        _draw(axes, table, float(single.mean()), label, style, "marker" in style)
    temperature = by_seed(nll, method=scaled(name))
    axes.axhline(single.mean(), color=panels.BLACK, linestyle="--", linewidth=0.9, label=f"single {name}")
    label = f"single {scaled(name)}"
    axes.axhline(temperature.mean(), color=panels.BLACK, linestyle=":", linewidth=0.9, label=label)
    _size_axis(axes, nll)


def difference_panel(
    axes: Axes, nll: pd.DataFrame, single: pd.Series, bits: Sequence[int], name: str = FP32
) -> None:
    """Draw the paired difference to the single network against size; see ``nll_panel``."""
    tables = []
    for equal, label, style in curves_at(nll, bits):
        tables.append(paired_table(_rows(nll, equal), single))
        _draw(axes, tables[-1], 0.0, label, style, "marker" in style)
    temperature = (by_seed(nll, method=scaled(name)) - single).dropna()
    label = f"single {scaled(name)}"
    axes.axhline(temperature.mean(), color=panels.BLACK, linestyle=":", linewidth=0.9, label=label)
    axes.axhline(0.0, color=panels.BLACK, linestyle="--", linewidth=0.9, zorder=2, label=f"single {name}")
    difference_axis(axes, float(single.mean()), name)
    _size_axis(axes, nll)


def difference_curve(rows: pd.DataFrame, reference: pd.Series, budget: pd.Series) -> pd.DataFrame:
    """Tabulate paired differences to a reference against a budget.

    Args:
        rows: long-form rows of one method and metric. budget: by size.

    Returns:
        [sizes, (size, budget, mean, low, high)], as :func:`panels.budget_table`'s of the levels.
    """
    table = paired_table(rows, reference)
    table["budget"] = budget.loc[table["size"]].to_numpy(float)
    table["mean"] = table["difference"]
    return table[["size", "budget", "mean", "low", "high"]]


def draw_planes(
    axes: Axes, curve: pd.DataFrame, bits: Sequence[float | None], colour: str, factor: float
) -> None:
    """Draw a curve of ``panels.budget_table`` once more, thin, against the bits of its members as planes.

    Args:
        bits: by the curve's lines; None: not known, and nothing is drawn.
    """
    if None not in bits:
        xs = np.array(bits, float) / factor
        axes.plot(xs, curve["mean"], color=colour, zorder=3, **PLANES_LINE)


def difference_axis(axes: Axes, level: float, name: str = FP32) -> None:
    """Make y an axis of differences: even within ``MARGIN`` of a level, a grey band, and logarithmic beyond.

    Args:
        level: the mean of what the differences are to. name: what that is called.
    """
    margin = MARGIN * level
    low, high = axes.dataLim.intervaly
    label = f"within {100 * MARGIN:g} % of {name}'s NLL (beyond: log)"
    axes.axhspan(-margin, margin, color="0.88", linewidth=0, zorder=0, label=label)
    axes.set_yscale("symlog", linthresh=margin, linscale=0.7)
    # A margin for the markers, as wide on the paper above as below.
    scale = axes.yaxis.get_transform()
    ends = scale.transform([min(low, -2 * margin), max(high, 2 * margin)])
    pad = 0.05 * (ends[1] - ends[0])
    axes.set_ylim(*scale.inverted().transform([ends[0] - pad, ends[1] + pad]))
    powers = 10.0 ** np.arange(np.ceil(np.log10(margin)), 3)
    axes.yaxis.set_major_locator(FixedLocator([*-powers[::-1], 0.0, *powers]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(signed))


def signed(value: float, _: object = None) -> str:
    """Write a difference with its sign."""
    return f"{value:+g}".replace("-", "−") if value else "0"


def _size_axis(axes: Axes, nll: pd.DataFrame) -> None:
    largest = int(nll["size"].max())
    axes.set_xlabel("members")
    axes.set_xlim(0.5, largest + 0.5)
    axes.set_xticks([1, *range(5, largest + 1, 5)] if largest > 5 else range(1, largest + 1))
