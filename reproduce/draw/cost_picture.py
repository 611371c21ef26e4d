"""The cost picture: NLL against milliseconds an example and against bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reproduce.draw import page, panels
from reproduce.draw.cost_verdicts import (
    Picture,
    Series,
    cascade_lines,
    front,
    gain_lines,
    levels,
    table_lines,
)
from reproduce.draw.style import (
    BIT_STYLES,
    CASCADE_MARKERS,
    FAMILY_STYLES,
    LARGER_STYLE,
    RTN_MARKER,
    SCALED_STYLE,
    SINGLE_STYLE,
    Mark,
)
from reproduce.draw.summaries import FP32, SCALED
from reproduce.study.cost_measures import HEADLINE, cascade_name
from reproduce.study.records import MEGABIT

COSTS = (
    ("ms", 1.0, "ms per example"),
    ("ms_kept", 1.0, "ms per example"),
    ("memory_bits", MEGABIT, "memory (Mbit)"),
    ("planes_bits", MEGABIT, "memory (Mbit)"),
    ("generator_bits", MEGABIT, "memory (Mbit)"),
)


TITLES = ("members made", "members kept", "n stored members", "as planes", "to draw from")


ROWS = (("nll", "test NLL"), ("calibrated_nll", "calibrated NLL"))


MARKED = (1, 2, 5, 10)
"""Sizes that have a marker, beside the largest."""


def _drawn(at: pd.DataFrame, picture: Picture, cost: str) -> pd.DataFrame:
    """Return the points that a panel shows, and that its front is taken of.

    Of the cascades, those to all members; against memory, which is the same for every window, the tuned one.
    Where nothing goes on, a cascade is its first stage, which is shown.
    """
    cascade = at["method"].str.startswith("cascade")
    hidden = cascade & (at["number_system"] != "fp32") & (at["size"] < picture.size)
    hidden |= cascade & (at["networks"] <= 1)
    if cost.endswith("bits"):
        hidden |= cascade & ~at["method"].str.endswith(f": {HEADLINE}")
    return at[~hidden]


def _panel(axes: Axes, at: pd.DataFrame, picture: Picture, metric: str, cost: str, factor: float) -> None:
    def of(method: str, system: str = "fp32", rounding: str = "") -> pd.DataFrame:
        rows = at[(at["method"] == method) & (at["number_system"] == system)]
        return rows[(rows["rounding"] == rounding) & (rows["substrate"] == picture.substrate)]

    def line(points: pd.DataFrame, label: str, *, band: bool = False, **style: Any) -> None:
        points = points.sort_values("networks")
        xs, ys = points[cost].to_numpy() / factor, points[metric].to_numpy()
        sizes = list(points["size"])
        shown = [place for place, size in enumerate(sizes) if len(sizes) < 8 or size in (*MARKED, sizes[-1])]
        axes.plot(xs, ys, markevery=shown, label=label, **{"zorder": 3, **style})
        lows, highs = points[f"{metric}_low"].to_numpy(), points[f"{metric}_high"].to_numpy()
        if band and np.isfinite(lows).all() and np.ptp(xs):
            axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.12, linewidth=0, zorder=1)

    def cascades(first: str, label: str, system: str = "fp32", **style: Any) -> None:
        chosen = at["method"].str.startswith(f"cascade from {first}: ") & (at["number_system"] == system)
        if not chosen.any():  # nor has the legend
            return
        dotted: dict[str, Any] = style | {"linestyle": ":", "linewidth": 0.8, "markersize": 4, "zorder": 4}
        line(at[chosen], label, **dotted, markerfacecolor="white")
        tuned = at[chosen & (at["method"] == cascade_name(first, HEADLINE))]
        dotted["linestyle"] = "none"
        line(tuned, "", **dotted)

    for bits in picture.bits:
        colour, marker = BIT_STYLES[bits]
        system = f"int{bits}"
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 2.8}
        thin: dict[str, Any] = {"markerfacecolor": "white", "linewidth": 0.8, "linestyle": (0, (3, 1.5))}
        line(of("LPE-BSR", system, "bernoulli"), "", **style, **thin)
        line(of("LPE-BSR", system, "coupled"), f"INT-{bits}", band=True, **style)
        nearest: dict[str, Any] = {"linestyle": "none", "marker": RTN_MARKER, "markersize": 5.5, "zorder": 5}
        line(of("RTN", system, "nearest"), "", **{**style, **nearest}, **EDGE)
        for first in ("RTN", FP32):
            cascades(first, "", system, color=colour, marker=CASCADE_MARKERS[first])
    deep = of("DE")
    if len(deep):
        colour, marker = FAMILY_STYLES["DE"]
        label = f"DE of 1 to {deep['size'].max()}"
        line(deep, label, band=True, color=colour, marker=marker, markersize=4)
        cascades("DE", "cascade from DE's first", color=colour, marker=CASCADE_MARKERS["DE"])
    single: dict[str, Any] = {"linestyle": "none", "zorder": 6, **EDGE}

    def alone(points: pd.DataFrame, label: str, mark: Mark, size: float) -> None:
        line(points, label, color=mark[0], marker=mark[1], markersize=size, **single)

    alone(of(FP32), f"{picture.names[0]}, FP32", SINGLE_STYLE, 8)
    if metric == "nll":
        # Its calibrated NLL is FP32's.
        alone(of(SCALED), f"{picture.names[0]}, FP32 + temperature", SCALED_STYLE, 5)
    if picture.larger is not None:
        larger = at[(at["substrate"] == picture.larger) & (at["method"] == FP32)]
        alone(larger, f"{picture.names[1]}, FP32", LARGER_STYLE, 6)
    _draw_front(axes, at, metric, cost, factor)
    _limit(axes, at, metric)
    axes.margins(x=0.08)
    panels.memory_axis(axes, "")


EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}


def _draw_front(axes: Axes, at: pd.DataFrame, metric: str, cost: str, factor: float) -> None:
    candidates = at if metric == "nll" else at[at["method"] != SCALED]
    best = candidates.iloc[front(candidates[cost].to_numpy(float), candidates[metric].to_numpy(float))]
    xs, ys = best[cost].to_numpy() / factor, best[metric].to_numpy()
    axes.step(xs, ys, where="post", label="Pareto front", color="0.8", linewidth=3, zorder=2)


def _limit(axes: Axes, at: pd.DataFrame, metric: str) -> None:
    """Limit y above to what is not the worst of a few members, and say what lies higher; below to all."""
    few = (at["method"] == "LPE-BSR") & (at["size"] < 5)
    near = at[~few][metric]
    least = at[metric].min()
    pad = 0.08 * (near.max() - least)
    axes.set_ylim(least - pad, near.max() + 2 * pad)
    if at[metric].max() > near.max() + 2 * pad:
        panels.say_cut(axes, float(at[metric].max()))


def _legend(figure: Figure, axes: Axes) -> None:
    """Draw a legend under the panels: the colours of the widths, the marks of the methods, the others."""
    grey: dict[str, Any] = {"color": panels.GREY, "linewidth": 0.8}
    hollow: dict[str, Any] = {**grey, "markerfacecolor": "white", "markersize": 4}
    kinds = {
        "LPE-BSR, coupled": Line2D([], [], **{**grey, "linewidth": 1.2}),
        "LPE-BSR, independent": Line2D([], [], linestyle=(0, (3, 1.5)), **grey),
        "RTN": Line2D([], [], linestyle="none", marker=RTN_MARKER, markersize=5.5, **grey),
        "cascade from RTN": Line2D([], [], linestyle=":", marker=CASCADE_MARKERS["RTN"], **hollow),
        "cascade from FP32": Line2D([], [], linestyle=":", marker=CASCADE_MARKERS[FP32], **hollow),
        f"tuned for {HEADLINE}": Line2D(
            [], [], linestyle="none", marker=CASCADE_MARKERS["RTN"], markersize=4, **grey
        ),
    }
    for label, handle in kinds.items():
        handle.set_label(label)
        axes.add_line(handle)
    panels.legend_below(figure, [axes])


def draw_picture(
    record: pd.DataFrame, times: pd.DataFrame, picture: Picture, folder: Path
) -> tuple[list[Path], list[str]]:
    """Draw the picture as PDF and PNG; returns their paths and what there is to say."""
    series = Series(record, picture)
    at = levels(series, times)
    with panels.style():
        figure, rows = panels.plt.subplots(2, len(COSTS), figsize=(page.width(), 4.6), sharey="row")
        letters = panels.letters()
        for line, (metric, named) in zip(rows, ROWS, strict=True):
            for axes, (cost, factor, x_label), title in zip(line, COSTS, TITLES, strict=True):
                _panel(axes, _drawn(at, picture, cost), picture, metric, cost, factor)
                axes.set_xlabel(x_label)
                panels.label_panel(axes, next(letters), title)
            line[0].set_ylabel(f"{named} (nats per {picture.example})")
        _legend(figure, rows[0][0])
        paths = panels.save(figure, folder, picture.stem)
    return paths, [
        *table_lines(at, picture),
        *gain_lines(series, at),
        *cascade_lines(series, at, times),
    ]
