"""What an ensemble costs and what it buys: NLL against milliseconds per example, and against bits.

    python reproduce/cost.py
    python reproduce/cost.py --time
    LPE_ASSETS=<folder> python reproduce/cost.py --assets [--time]

Costs about 15 minutes on 2 cores for the training seeds of ``digits`` from nothing, and 5 minutes after the
other figures, whose networks it takes. Times are measured where there is no cost_times.csv, and anew with
--time: one thread, about 3 minutes, on a machine that does nothing else. --assets: ResNet-20 and ResNet-32
on CIFAR-10's test images instead, into figures/assets/, about 20 minutes of one core.

Compared are the single FP32 model, it with temperature scaling, the next larger single model, RTN, LPE-BSR
of 1 to 20 independent and coupled members, a deep ensemble (DE), and cascades: RTN or FP32, whose less
confident examples go on to the LPE-BSR members, and DE's first member, whose go on to the others. Windows
are tuned on validation examples. It prints a table, what each gains over FP32 and over RTN, and what a
cascade costs for 95 % of the ensemble's gain.

    columns  milliseconds per example, with members made for every batch; memory of n stored members; memory
             of the smallest thing from which they can be drawn
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

import pandas as pd
from matplotlib.axes import Axes

import lpe
from lpe.records import COLUMNS, write_table
from reproduce import cost_times, panels
from reproduce.command import Session, run_figure
from reproduce.cost_measures import (
    CASCADED,
    Known,
    digits_batches,
    few_members,
    known,
    known_point,
    larger_point,
    larger_substrate,
)
from reproduce.cost_verdicts import (
    Picture,
    Series,
    cascade_lines,
    front,
    gain_lines,
    levels,
    table_lines,
)
from reproduce.families import deep_family
from reproduce.fig2 import BIT_STYLES
from reproduce.measurements import COST, COST_RIVALS, Unit, draw_seed, log_sizes, measure_all, rows_of, units
from reproduce.points import point
from reproduce.scales import Scale, scale
from reproduce.summaries import FP32, MEGABIT, SCALED

TIMES = "cost_times.csv"


def wanted(session: Session) -> list[Unit]:
    """The units that the picture shows: low precision at the seeds of training-free claims."""
    return [*units([COST], session.claim_seeds), *units([COST_RIVALS], session.seeds)]


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
    started, chosen = time.time(), session.scale
    items: list[cost_times.Timed] = []
    # The folds of the images differ by one: every time is of as many.
    examples = min(len(digits_batches(seed)[1][0][1]) for seed in session.seeds)
    for seed in session.seeds:
        batches = digits_batches(seed)
        inputs = batches[1][0][0][:examples]
        solution = point(session, "SGD", seed)
        deep = known(deep_family(session, seed).make(0), *batches)
        if seed == session.seeds[0]:
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
        few, is_first = few_members(chosen), seed == session.seeds[0]
        items += cost_times.timed_cascades(
            chosen.substrate, single, deep, members, few, inputs, seed, all_targets=is_first
        )
    with session.progress(0, "times") as bar:
        rows = cost_times.rows_of_times(items, examples, bar)
    cost_times.write(rows, session.out, ["reproduce/cost.py", "--time"], examples, session.seeds, started)


def picture_of(chosen: Scale) -> Picture:
    """What the picture of a scale is of."""
    larger = larger_substrate(chosen)
    names = (f"ViT-{own_name(chosen)}", larger.split(" ", 1)[1])
    return Picture(chosen.substrate, larger, chosen.bits, chosen.size, names)


def own_name(chosen: Scale) -> str:
    """What table 1 calls the scale's own network."""
    return next(name for name, shape in chosen.networks.items() if shape == chosen.network)


# The picture.

COSTS = (
    ("ms", 1.0, "milliseconds per example"),
    ("memory_bits", MEGABIT, "memory of n stored members (Mbit)"),
    ("generator_bits", MEGABIT, "memory to draw members from (Mbit)"),
)
ROWS = (("nll", "test NLL (nats per image)"), ("calibrated_nll", "calibrated NLL (nats per image)"))
TITLES = ("time", "stored members", "smallest to draw from")
MARKED = (1, 2, 5, 10)
"""Sizes that have a marker, beside the largest."""
DEEP = (panels.VERMILION, "s")
FIRSTS = {"RTN": "^", "FP32": ">"}


def _curve(points: pd.DataFrame, metric: str, cost: str) -> pd.DataFrame:
    """Points as ``panels.limit_values`` takes them, the smallest ensemble first."""
    named = {metric: "mean", f"{metric}_low": "low", f"{metric}_high": "high", cost: "budget"}
    return points.rename(columns=named)[["size", "budget", "mean", "low", "high"]].sort_values("size")


def _drawn(at: pd.DataFrame, picture: Picture) -> pd.DataFrame:
    """The points that the picture shows, and that the front is taken of: cascades to all members only."""
    to_few = at["method"].str.startswith("cascade") & (at["number_system"] != "fp32")
    return at[~(to_few & (at["size"] < picture.size))]


def _panel(axes: Axes, at: pd.DataFrame, picture: Picture, metric: str, cost: str, factor: float) -> None:
    def of(method: str, system: str = "fp32", rounding: str = "") -> pd.DataFrame:
        rows = at[(at["method"] == method) & (at["number_system"] == system)]
        return rows[(rows["rounding"] == rounding) & (rows["substrate"] == picture.substrate)]

    def line(points: pd.DataFrame, label: str, **style: Any) -> None:
        points = points.sort_values("networks")
        xs, ys = points[cost].to_numpy() / factor, points[metric].to_numpy()
        sizes = list(points["size"])
        shown = [place for place, size in enumerate(sizes) if len(sizes) < 8 or size in (*MARKED, sizes[-1])]
        axes.plot(xs, ys, markevery=shown, label=label, **{"zorder": 3, **style})

    limiting = []
    for bits in picture.bits:
        colour, marker = BIT_STYLES[bits]
        system, name = f"int{bits}", f"INT-{bits}"
        for rounding, kind, dashes in (
            ("bernoulli", "independent", (0, (3, 1.5))),
            ("coupled", "coupled", "-"),
        ):
            points = of("LPE-BSR", system, rounding)
            style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 2.8}
            if rounding == "bernoulli":
                style |= {"markerfacecolor": "white", "linewidth": 0.8}
            line(points, f"LPE-BSR, {name}, {kind}", **style)
            limiting.append(_curve(points, metric, cost))
        nearest = {"color": colour, "linestyle": "none", "marker": "X", "markersize": 5, "zorder": 5}
        line(of("RTN", system, "nearest"), f"RTN, {name}", **nearest, markeredgecolor="white")
        for first, shape in FIRSTS.items():
            chosen = at["method"].str.startswith(f"cascade from {first}: ") & (at["number_system"] == system)
            style = {"color": colour, "linestyle": ":", "linewidth": 0.8, "marker": shape, "markersize": 3.8}
            line(at[chosen], f"cascade from {first}, {name}", **style, markerfacecolor="white", zorder=4)
    deep = of("DE")
    if len(deep):
        style = {"color": DEEP[0], "marker": DEEP[1], "markersize": 3.2}
        line(deep, f"DE of 1 to {deep['size'].max()}", **style)
        cascades = at[at["method"].str.startswith("cascade from DE: ")]
        style = {"color": DEEP[0], "linestyle": ":", "linewidth": 0.8, "marker": "^", "markersize": 3.8}
        line(cascades, "cascade from DE's first", **style, markerfacecolor="white", zorder=4)
    single = {"color": panels.BLACK, "linestyle": "none", "zorder": 6, "markeredgecolor": "white"}
    line(of(FP32), f"{picture.names[0]}, FP32", **single, marker="*", markersize=8)
    if metric == "nll":
        # Its calibrated NLL is FP32's.
        line(of(SCALED), f"{picture.names[0]}, FP32 + temperature", **single, marker="P", markersize=5)
    larger = at[(at["substrate"] == picture.larger) & (at["method"] == FP32)]
    line(larger, f"{picture.names[1]}, FP32", **single, marker="h", markersize=6)
    panels.limit_values(axes, limiting, [float(of(FP32)[metric].iloc[0]), *larger[metric], *deep[metric]])
    _draw_front(axes, at, metric, cost, factor)
    panels.memory_axis(axes, "")


def _draw_front(axes: Axes, at: pd.DataFrame, metric: str, cost: str, factor: float) -> None:
    candidates = at if metric == "nll" else at[at["method"] != SCALED]
    best = candidates.iloc[front(candidates[cost].to_numpy(float), candidates[metric].to_numpy(float))]
    xs, ys = best[cost].to_numpy() / factor, best[metric].to_numpy()
    axes.step(
        xs,
        ys,
        where="post",
        color="0.75",
        linewidth=3,
        zorder=1,
        label="Pareto front",
        solid_capstyle="round",
    )


def draw_picture(
    record: pd.DataFrame, times: pd.DataFrame, picture: Picture, folder: Path
) -> tuple[list[Path], list[str]]:
    """Draw cost.pdf and cost.png; returns their paths and what there is to say."""
    at = levels(record, times, picture)
    shown = _drawn(at, picture)
    with panels.style():
        figure, rows = panels.plt.subplots(2, 3, figsize=(panels.TEXT_WIDTH, 5.4))
        letters = iter("abcdef")
        for line, (metric, y_label) in zip(rows, ROWS, strict=True):
            for axes, (cost, factor, x_label), title in zip(line, COSTS, TITLES, strict=True):
                _panel(axes, shown, picture, metric, cost, factor)
                axes.set_xlabel(x_label)
                panels.label_panel(axes, next(letters), title)
            line[0].set_ylabel(y_label)
        panels.legend_in_columns(figure, [rows[0][0]], 4)
        paths = panels.save(figure, folder, "cost")
    series = Series(record, picture)
    lines = [
        *table_lines(at, picture),
        *gain_lines(series, at),
        *cascade_lines(series, at, times),
    ]
    return paths, lines


def draw(folder: Path, scale_name: str) -> tuple[list[Path], list[str]]:
    """Draw cost.pdf and cost.png from cost.csv and cost_times.csv; returns their paths and the verdicts."""
    record = panels.read_record(folder / "cost.csv", COLUMNS)
    times = panels.read_record(folder / TIMES, cost_times.COLUMNS)
    return draw_picture(record, times, picture_of(scale(scale_name)), folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The digits' picture, or the assets'; 2 after one line about bad input."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--assets", action="store_true")
    own.add_argument("--time", action="store_true")
    given = sys.argv[1:] if arguments is None else list(arguments)
    asked, rest = own.parse_known_args(given)
    if asked.assets:
        from reproduce.cost_assets import run

        return run(rest, asked.time)
    return run_figure("cost", __doc__, partial(compute, again=asked.time), draw, rest)


if __name__ == "__main__":
    sys.exit(main())
