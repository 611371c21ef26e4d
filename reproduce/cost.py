"""What an ensemble costs and what it buys: NLL against milliseconds per example, and against bits.

    python reproduce/cost.py
    python reproduce/cost.py --time
    LPE_ASSETS=<folder> python reproduce/cost.py --assets [--only NAME] [--time]

Costs about 15 minutes on 2 cores for the training seeds of ``digits`` from nothing, and 5 minutes after the
other figures, whose networks it takes. Times are measured where there is no cost_times.csv, and anew with
--time: one thread, about 3 minutes, on a machine that does nothing else. --assets: pre-trained models
instead, into figures/assets/: ResNet-20 and ResNet-32 on CIFAR-10's test images (cost), about 25 minutes of
one core, these with re-estimated batch-norm statistics (cost_relative, cost_re_estimated, which have cost's
times), about 10 each, and stories260k on contexts of TinyStories (cost_stories), about 14.

Compared are the single FP32 model, it with temperature scaling, RTN, LPE-BSR of 1 to 20 independent and
coupled members, and cascades: RTN or FP32, whose less confident examples go on to the LPE-BSR members, 2 to
40 % of them, or as many as have 95 % of the ensemble's gain on validation examples. Where there are such: the
next larger single model, and a deep ensemble (DE), with cascades from its first member to the others. It
prints a table, what each gains over FP32 and over RTN, and what a cascade costs for 95 % of the ensemble's
gain.

    columns  milliseconds per example, with members made for every batch, and kept in memory as float32
             modules; memory of n stored members, and of the smallest thing from which they can be drawn
    rows     NLL; calibrated NLL: by the temperature of the other half of the test examples
    grey     the Pareto front: what nothing shown undercuts in cost at a lower mean
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import lpe
from lpe.records import COLUMNS, write_table
from reproduce.command import run_figure
from reproduce.draw import panels
from reproduce.draw.cost_verdicts import (
    Picture,
    Series,
    cascade_lines,
    front,
    gain_lines,
    levels,
    table_lines,
)
from reproduce.draw.style import BIT_STYLES
from reproduce.draw.summaries import FP32, MEGABIT, SCALED
from reproduce.scales.find import scale
from reproduce.study import cost_times
from reproduce.study.cost_measures import (
    CASCADED,
    HEADLINE,
    Known,
    cascade_name,
    digits_batches,
    few_members,
    known,
    known_point,
    larger_point,
    larger_substrate,
)
from reproduce.study.families import deep_family
from reproduce.study.measurements import measure_all
from reproduce.study.points import point
from reproduce.study.records import log_sizes, rows_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import COST, COST_RIVALS, Unit, draw_seed, units

TIMES = "cost_times.csv"


def seeds_of(session: Session) -> list[int]:
    """Return the picture's training seeds: those that were asked for (--seeds), or the scale's for it."""
    if session.seeds == session.claim_seeds:
        return session.seeds
    return session.claim_seeds[: session.scale.cost_seeds]


def wanted(session: Session) -> list[Unit]:
    """Return the units that the picture shows, all at the same seeds."""
    return units([COST, COST_RIVALS], seeds_of(session))


def compute(session: Session, again: bool = False) -> dict[str, object]:
    """Train and measure; write cost.csv; measure times where there are none, or ``again``."""
    measure_all(session, wanted(session))
    rows = rows_of(session, wanted(session))
    log_sizes(session, rows)
    write_table(rows, session.out / "cost.csv", COLUMNS)
    if again or not (session.out / TIMES).is_file():
        measure_times(session)
    return {}


def measure_times(session: Session) -> None:
    """Write cost_times.csv and its conditions: all at the first seed, the tuned cascades at every seed."""
    started, chosen, seeds = time.time(), session.scale, seeds_of(session)
    items: list[cost_times.Timed] = []
    # The folds of the images differ by one: every time is of as many.
    examples = min(len(digits_batches(seed)[1][0][1]) for seed in seeds)
    for seed in seeds:
        batches = digits_batches(seed)
        inputs = batches[1][0][0][:examples]
        solution = point(session, "SGD", seed)
        deep = known(deep_family(session, seed).make(0), *batches)
        if seed == seeds[0]:
            items += cost_times.timed_methods(
                (chosen.substrate, solution.net),
                (larger_substrate(chosen), larger_point(session, seed).net),
                deep.ensemble,
                chosen.bits,
                chosen.size,
                inputs,
                seed,
            )
        members: list[tuple[Known, Known]] = []
        for bits in chosen.bits:
            drawn, nearest = (
                lpe.LowPrecisionEnsemble(solution.net, lpe.Int(bits), size, draw_seed(seed, 0), rounding)
                for size, rounding in ((chosen.size, CASCADED), (1, "nearest"))
            )
            members.append((known(drawn, *batches), known(nearest, *batches)))
        single = known_point(solution, batches)
        few, is_first = few_members(chosen), seed == seeds[0]
        items += cost_times.timed_cascades(
            chosen.substrate, single, deep, members, few, inputs, seed, all_targets=is_first
        )
    with session.progress(0, "times") as bar:
        rows = cost_times.rows_of_times(items, examples, bar)
    cost_times.write(rows, session.out, ["reproduce/cost.py", "--time"], examples, seeds, started)


def picture_of(chosen: Scale) -> Picture:
    """Return what the picture of a scale is of."""
    larger = larger_substrate(chosen)
    names = (f"ViT-{own_name(chosen)}", larger.split(" ", 1)[1])
    return Picture(chosen.substrate, larger, chosen.bits, chosen.size, names)


def own_name(chosen: Scale) -> str:
    """Return table 1's name of the scale's own network."""
    return next(name for name, shape in chosen.networks.items() if shape == chosen.network)


# The picture.

COSTS = (
    ("ms", 1.0, "milliseconds per example"),
    ("ms_kept", 1.0, "milliseconds per example"),
    ("memory_bits", MEGABIT, "Mbit"),
    ("generator_bits", MEGABIT, "Mbit"),
)
TITLES = ("time, members made", "time, members kept", "memory, n members", "memory to draw from")
ROWS = (("nll", "test NLL"), ("calibrated_nll", "calibrated NLL"))
MARKED = (1, 2, 5, 10)
"""Sizes that have a marker, beside the largest."""
DEEP = (panels.VERMILION, "s")
FIRSTS = {"RTN": "^", "FP32": ">"}
BESIDE = 1.12
"""Distance, as a factor, between the bit widths that are drawn from one memory."""


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

    def line(
        points: pd.DataFrame, label: str, *, band: bool = False, aside: float = 1.0, **style: Any
    ) -> None:
        points = points.sort_values("networks")
        xs, ys = aside * points[cost].to_numpy() / factor, points[metric].to_numpy()
        sizes = list(points["size"])
        shown = [place for place, size in enumerate(sizes) if len(sizes) < 8 or size in (*MARKED, sizes[-1])]
        axes.plot(xs, ys, markevery=shown, label=label, **{"zorder": 3, **style})
        lows, highs = points[f"{metric}_low"].to_numpy(), points[f"{metric}_high"].to_numpy()
        if band and np.isfinite(lows).all() and np.ptp(xs):
            axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.12, linewidth=0, zorder=1)

    def cascades(first: str, label: str, system: str = "fp32", **style: Any) -> None:
        chosen = at["method"].str.startswith(f"cascade from {first}: ") & (at["number_system"] == system)
        dotted: dict[str, Any] = style | {"linestyle": ":", "linewidth": 0.8, "markersize": 4, "zorder": 4}
        line(at[chosen], label, **dotted, markerfacecolor="white")
        tuned = at[chosen & (at["method"] == cascade_name(first, HEADLINE))]
        dotted["linestyle"] = "none"
        line(tuned, "", **dotted)

    for place, bits in enumerate(picture.bits):
        aside = BESIDE ** ((len(picture.bits) - 1) / 2 - place) if cost == "generator_bits" else 1.0
        colour, marker = BIT_STYLES[bits]
        system, name = f"int{bits}", f"INT-{bits}"
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 2.8, "aside": aside}
        thin: dict[str, Any] = {"markerfacecolor": "white", "linewidth": 0.8, "linestyle": (0, (3, 1.5))}
        line(of("LPE-BSR", system, "bernoulli"), f"LPE-BSR, {name}, independent", **style, **thin)
        line(of("LPE-BSR", system, "coupled"), f"LPE-BSR, {name}, coupled", band=True, **style)
        nearest: dict[str, Any] = {"linestyle": "none", "marker": "X", "markersize": 5.5, "zorder": 5}
        line(of("RTN", system, "nearest"), f"RTN, {name}", **{**style, **nearest}, **EDGE)
        for first, shape in FIRSTS.items():
            cascades(first, f"cascade from {first}, {name}", system, color=colour, marker=shape, aside=aside)
    deep = of("DE")
    if len(deep):
        colour, marker = DEEP
        line(deep, f"DE of 1 to {deep['size'].max()}", band=True, color=colour, marker=marker, markersize=3.2)
        cascades("DE", "cascade from DE's first", color=colour, marker="^")
    single: dict[str, Any] = {"color": panels.BLACK, "linestyle": "none", "zorder": 6, **EDGE}
    line(of(FP32), f"{picture.names[0]}, FP32", **single, marker="*", markersize=8)
    if metric == "nll":
        # Its calibrated NLL is FP32's.
        line(of(SCALED), f"{picture.names[0]}, FP32 + temperature", **single, marker="P", markersize=5)
    if picture.larger is not None:
        larger = at[(at["substrate"] == picture.larger) & (at["method"] == FP32)]
        line(larger, f"{picture.names[1]}, FP32", **single, marker="h", markersize=6)
    _draw_front(axes, at, metric, cost, factor)
    _limit(axes, at, metric)
    panels.memory_axis(axes, "")


EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}


def _draw_front(axes: Axes, at: pd.DataFrame, metric: str, cost: str, factor: float) -> None:
    candidates = at if metric == "nll" else at[at["method"] != SCALED]
    best = candidates.iloc[front(candidates[cost].to_numpy(float), candidates[metric].to_numpy(float))]
    xs, ys = best[cost].to_numpy() / factor, best[metric].to_numpy()
    axes.step(xs, ys, where="post", label="Pareto front", color="0.8", linewidth=3, zorder=2)
    axes.plot([], [], color="0.5", marker="^", linestyle="none", label=f"tuned for {HEADLINE}")


def _limit(axes: Axes, at: pd.DataFrame, metric: str) -> None:
    """Limit y to what is not the least of a few members, and say above the panel what lies higher."""
    few = (at["method"] == "LPE-BSR") & (at["size"] < 5)
    near = at[~few][metric]
    pad = 0.08 * (near.max() - near.min())
    axes.set_ylim(near.min() - pad, near.max() + 2 * pad)
    if at[metric].max() > near.max() + 2 * pad:
        text = f"cut off; up to {at[metric].max():.2g}"
        axes.text(1.0, 1.0, text, transform=axes.transAxes, ha="right", va="top", fontsize=5)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Draw a legend under the panels, a column of what belongs together."""
    handles, labels = axes.get_legend_handles_labels()
    rest = [place for place, label in enumerate(labels) if "INT-" not in label]
    groups = [rest]
    for system in dict.fromkeys(label.partition("INT-")[2][:1] for label in labels if "INT-" in label):
        groups.insert(-1, [place for place, label in enumerate(labels) if f"INT-{system}" in label])
    longest = max(map(len, groups))
    shown: list[Artist] = []
    texts: list[str] = []
    for group in groups:
        blanks = longest - len(group)
        shown += [*(handles[place] for place in group), *(Line2D([], [], linestyle="none"),) * blanks]
        texts += [*(labels[place] for place in group), *("",) * blanks]
    figure.legend(shown, texts, loc="outside lower center", ncols=columns)


def draw_picture(
    record: pd.DataFrame, times: pd.DataFrame, picture: Picture, folder: Path
) -> tuple[list[Path], list[str]]:
    """Draw the picture as PDF and PNG; returns their paths and what there is to say."""
    series = Series(record, picture)
    at = levels(series, times)
    with panels.style():
        figure, rows = panels.plt.subplots(2, len(COSTS), figsize=(panels.TEXT_WIDTH, 4.6), sharey="row")
        letters = iter("abcdefgh")
        for line, (metric, named) in zip(rows, ROWS, strict=True):
            for axes, (cost, factor, x_label), title in zip(line, COSTS, TITLES, strict=True):
                _panel(axes, _drawn(at, picture, cost), picture, metric, cost, factor)
                axes.set_xlabel(x_label)
                panels.label_panel(axes, next(letters), title)
            line[0].set_ylabel(f"{named} (nats per {picture.example})")
        _legend(figure, rows[0][0], len(picture.bits) + 1)
        paths = panels.save(figure, folder, picture.stem)
    return paths, [
        *table_lines(at, picture),
        *gain_lines(series, at),
        *cascade_lines(series, at, times),
    ]


def draw(folder: Path, scale_name: str) -> tuple[list[Path], list[str]]:
    """Draw cost.pdf and cost.png from cost.csv and cost_times.csv; returns their paths and the verdicts."""
    record = panels.read_record(folder / "cost.csv", COLUMNS)
    times = panels.read_record(folder / TIMES, cost_times.COLUMNS)
    return draw_picture(record, times, picture_of(scale(scale_name)), folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the digits' picture, or the assets'; 2 after one line about bad input."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--assets", action="store_true")
    own.add_argument("--time", action="store_true")
    given = sys.argv[1:] if arguments is None else list(arguments)
    asked, rest = own.parse_known_args(given)
    if asked.assets:
        from reproduce.cost_given import run

        return run(rest, asked.time)
    return run_figure("cost", __doc__, partial(compute, again=asked.time), draw, rest)


if __name__ == "__main__":
    sys.exit(main())
