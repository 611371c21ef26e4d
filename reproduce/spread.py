"""Spread: the step of LPE-BSR as a continuous knob, beside the std of Gaussian noise.

    python reproduce/spread.py
    python reproduce/spread.py --scale cifar10-small

Costs, for each training seed of ``Scale.beyond`` and beside its training, 18 ensembles of 10 members on the
tuning examples, and 12 for each draw of the scale on the test examples: 48 minutes of one core (Intel Xeon)
for the four seeds of ``cifar10``. It prints the paths written and the verdicts of claim C15.

(a), (b): NLL of the ensembles. (c), (d): NLL at the temperature that was fitted on the other folds of the
test examples. Left: LPE-BSR, by the spread of its step, and below it the bits that its codes take; where the
step is INT-5's and the like, a grey line. Right: Gaussian noise, whose members are in float32. Stars: what
the tuning examples chose, with the number of training seeds at which they did. Intervals are of the
difference to the FP32 network, paired by training seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from lpe.errors import InputError
from lpe.number_systems.grids import Int, grid_of
from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import page, panels
from reproduce.draw.style import GAUSSIAN_STYLE, SPREAD_STYLE, Mark
from reproduce.draw.summaries import FP32, SCALED, Summary, What, claim_lines, noun, read
from reproduce.judge.intervals import student_interval
from reproduce.study.beyond.names import LPE_BSR, TUNED_SPREAD, TUNED_STD, noise_name, shown
from reproduce.study.measurements import measure_all
from reproduce.study.records import SETTING, selected
from reproduce.study.scale import Beyond, Scale
from reproduce.study.session import Session
from reproduce.study.units import SPREAD, Unit, beyond_units

METRICS = (("nll", "NLL"), ("calibrated_nll", "calibrated NLL"))
Grid = list[tuple[float, What]]


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    there = chosen.beyond is not None and chosen.main is not None and chosen.main.points
    return "" if there else "a network with a tuned spread"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return beyond_units(session.scale, SPREAD, session.claim_seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write spread.csv."""
    measure_all(session, wanted(session))
    rows = selected(session, wanted(session), every_size=())
    write_table(rows, session.out / "spread.csv", COLUMNS)
    tuned = rows[rows["metric"] == SETTING]
    return {
        "tuned": {
            method: {f"seed {seed}": value for seed, value in zip(here["seed"], here["value"], strict=True)}
            for method, here in tuned.groupby("method")
        }
    }


def grids_of(chosen: Scale, beyond: Beyond) -> tuple[Grid, Grid]:
    """Return the values of the spread and of the std, each with what is measured there."""
    assert chosen.main is not None
    at = (shown(chosen.substrate, SPREAD), chosen.main.estimate)
    systems = {spread: Int(beyond.spread_bits, spread=spread).name for spread in beyond.spreads}
    return (
        [(spread, What(*at, LPE_BSR, system, beyond.size)) for spread, system in systems.items()],
        [(std, What(*at, noise_name(std), "fp32", beyond.size)) for std in beyond.stds],
    )


def knob_table(summary: Summary, grid: Grid, metric: str, single: What) -> pd.DataFrame:
    """Tabulate a metric against a setting.

    Args:
        single: the unrounded network.

    Returns:
        [values, (value, mean, low, high)]: the mean over training seeds, and the 95 % interval of the paired
        difference to the unrounded network, around that network's mean (NaN with one seed).
    """
    reference = summary.values(single, metric)
    lines = []
    for value, what in sorted(grid, key=lambda each: each[0]):
        difference = (summary.values(what, metric) - reference).dropna()
        if difference.empty:
            raise InputError(f"{what} and {single} share no training seed; run with the same --seeds")
        base = float(reference[difference.index].mean())
        low, high = student_interval(difference.to_numpy())
        lines.append((value, base + float(difference.mean()), base + low, base + high))
    return pd.DataFrame(lines, columns=["value", "mean", "low", "high"])


def knob_panel(
    axes: Axes, summary: Summary, table: pd.DataFrame, tuned: What, metric: str, mark: Mark, label: str
) -> None:
    """Draw a curve with its interval, the tuned values as stars, and the mean of the tuned ensembles."""
    colour, marker = mark
    xs = table["value"].to_numpy(float)
    axes.plot(xs, table["mean"], "-", color=colour, marker=marker, label=label, zorder=3)
    if np.isfinite(table["low"]).all():
        axes.fill_between(xs, table["low"], table["high"], color=colour, alpha=0.18, linewidth=0, zorder=1)
    of_all = float(summary.values(tuned, metric).mean())
    axes.axhline(of_all, color=colour, linestyle="-.", linewidth=0.8, zorder=2, label=f"{label}, tuned, mean")
    settings = summary.values(tuned, SETTING)
    for value, seeds in settings.value_counts().sort_index().items():
        (height,) = table[np.isclose(table["value"], float(str(value)))]["mean"]
        axes.plot(
            float(str(value)),
            height,
            color=colour,
            marker="*",
            markersize=9,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="none",
            label="tuned (number: training seeds)",
            zorder=5,
        )
        panels.outlined(axes, float(str(value)), height, f"{seeds}", (0, 8))


def far_end(tables: Sequence[pd.DataFrame], single: float) -> float:
    """Return where y ends: twice as far above the unrounded network as the best of all curves lies below.

    Settings that are far too large would press together what the tuned ones differ by.

    Args:
        tables: all curves of a row, whose panels share y. single: the unrounded network.
    """
    best = min(float(table["mean"].min()) for table in tables)
    return single + 2 * max(single - best, 0.01 * single)


def spread_axes(axes: Axes, spreads: Sequence[float], bits: int) -> None:
    """Make x an axis of spreads, and below each the bits a weight that its codes take."""
    _log_ticks(axes, spreads)
    axes.set_xlabel(f"spread, × INT-{bits}'s step")
    taken = [grid_of(Int(bits, spread=spread)).code_bits for spread in spreads]
    axes.set_xticklabels([f"{spread:g}\n{each} bits" for spread, each in zip(spreads, taken, strict=True)])


def whole_bits(axes: Axes, spreads: Sequence[float], bits: int, widths: Sequence[int]) -> None:
    """Draw where the step is that of a whole number of bits, and say so at the panel's head."""
    for width in widths:
        spread = Int(bits).q / Int(width).q
        if min(spreads) <= spread <= max(spreads):
            axes.axvline(spread, color="0.75", linewidth=0.7, linestyle=":", zorder=0)
            axes.annotate(
                f"INT-{width}",
                (spread, 0.98),
                (2, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                fontsize=panels.SMALL,
                color=panels.GREY,
            )


def std_axes(axes: Axes, stds: Sequence[float]) -> None:
    """Make x an axis of stds."""
    _log_ticks(axes, stds)
    axes.set_xlabel("std of the noise (32 bits a weight)")


def _log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Put a tick at each value of a logarithmic axis; of an even one where a value is 0."""
    if min(values) > 0:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{value:g}" for value in values])


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw spread.pdf and spread.png from spread.csv; returns their paths and claim C15's verdicts."""
    summary = read(folder, "spread")
    beyond = chosen.beyond
    assert beyond is not None and chosen.main is not None
    substrate = shown(chosen.substrate, SPREAD)
    single = What(substrate, chosen.main.estimate, FP32)
    spreads, noises = grids_of(chosen, beyond)
    tuned = (
        What(substrate, chosen.main.estimate, TUNED_SPREAD, f"int{beyond.spread_bits}", beyond.size),
        What(substrate, chosen.main.estimate, TUNED_STD, "fp32", beyond.size),
    )
    name = summary.unrounded(substrate)
    letters = panels.letters()
    with panels.style():
        drawn, cells = panels.plt.subplots(2, 2, figsize=(page.width(), 4.0), sharey="row", squeeze=False)
        for row, (metric, title) in zip(cells, METRICS, strict=True):
            tables = [knob_table(summary, grid, metric, single) for grid in (spreads, noises)]
            levels = [float(summary.values(single, metric).mean())]
            temperature = What(substrate, chosen.main.estimate, SCALED)
            if summary.has(temperature, metric):
                levels.append(float(summary.values(temperature, metric).mean()))
            for place, (axes, table) in enumerate(zip(row, tables, strict=True)):
                mark, label = ((SPREAD_STYLE, "LPE-BSR"), (GAUSSIAN_STYLE, "Gaussian noise"))[place]
                knob_panel(axes, summary, table, tuned[place], metric, mark, label)
                for level, line, said in zip(
                    levels, ("--", ":"), (f"single {name}", f"single {name} + temperature"), strict=False
                ):
                    axes.axhline(level, color=panels.BLACK, linestyle=line, linewidth=0.9, label=said)
                panels.label_panel(axes, next(letters), f"{label}: {title}")
            for axes, table in zip(row, tables, strict=True):
                panels.limit_values(axes, tables, levels, far_end(tables, levels[0]), [table])
            spread_axes(row[0], beyond.spreads, beyond.spread_bits)
            whole_bits(row[0], beyond.spreads, beyond.spread_bits, chosen.settings.table_bits)
            std_axes(row[1], beyond.stds)
            row[0].set_ylabel(f"nats per {noun(chosen)}")
        panels.legend_below(drawn, list(cells.flat))
        paths = panels.save(drawn, folder, "spread")
    return paths, claim_lines(summary.record, chosen, ["C15"])


SCRIPT = Script("spread", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
