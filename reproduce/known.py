"""What each method says of a posterior that is known: its predictive std beside the exact one.

    python reproduce/known.py

Costs about 4 minutes of one core (Intel Xeon), from nothing. It is of no scale: what it trains are logistic
regressions of two weights. It prints a table (each method's std over the exact one, in two directions, at
three numbers N of examples, and how the std changes with N), how far IVON's posterior is learnt, and the
paths written.

The posterior is exact, by quadrature (``study/known_answer.py``). The methods are the library's own, with one
recipe for every N (``study/known_methods.py``). Shown is the std of the logit of an input of length 1:

    (a) against the input's direction: at 0 degrees data are dense, at 90 they are thin
    (b) against N in these two directions (dashed: thin data): the exact one, and LPE-BSR of three bit widths
    (c) over the exact one, against N, where data are dense
    (d) the same where data are thin

LPE-BSR's variance is Δ²·p(1 − p), weight by weight. It knows the weights and the bits, but neither N nor
where data are thin. So it agrees with a posterior at one N in each direction, by chance. It rises with N only
because the weights do, which the prior keeps small while data are few. SWAG's std is that of its rate and
batch, about √(rate/(2·batch)) in every direction (Mandt et al. 2017): under one recipe it knows no more.
IVON knows N. Its posterior is the nearest one with independent weights (mean field), and the axes of the
weights are not those of the data.

Bands: 95 % interval over seeds, Student's t on the logarithms. A seed is eight regressions with truths,
labels and draws of their own, whose variances are averaged.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from tqdm import tqdm

from lpe.command_line import Parser, complain
from lpe.ensembles.base import text_table
from lpe.ensembles.cyclical_sgld import SamplingStage
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.provenance import REPOSITORY, write_provenance
from lpe.records import write_table
from lpe.training.schedules import cyclical_cosine
from lpe.training.sgld import variance_share
from lpe.writing import check_writable
from reproduce.command import (
    add_accept_edited,
    add_width,
    check_accepting,
    check_records,
    said_of_edited,
)
from reproduce.draw import page, panels
from reproduce.draw.style import BIT_STYLES, BMA_STYLE, FAMILY_STYLES, SGLD_STYLE, SWAG_STYLE
from reproduce.judge.intervals import student_interval
from reproduce.study import known_answer, known_methods
from reproduce.study.intact import drawn_from, keep_accepted, vouched_by
from reproduce.study.known_answer import Array, Counted, Design
from reproduce.study.known_methods import (
    BSR,
    MATCHED,
    Averaging,
    CyclicalLangevin,
    Langevin,
    Recipes,
    Rounding,
    Variational,
)
from reproduce.study.origins import seeds_of

DESIGN = Design(sites=8, spreads=(1.0, 0.2), tilt=20.0, prior_std=1.0, regressions=8)
SIZES = (30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
SHOWN = 1_000
"""N of panel (a)."""
DEGREES = tuple(range(0, 181, 15))
DENSE, THIN = 0, 90
SEEDS = 10
RECIPES = Recipes(
    sgld=Langevin(learning_rate=1.0, steps=4_400, members=40, spacing=100),
    csgld=CyclicalLangevin(
        peak=4.0, cycles=5, stage=SamplingStage(steps_per_cycle=1_000, steps=500, samples=10, spacing=50)
    ),
    ivon=Variational(learning_rate=0.1, hess_init=0.1, beta1=0.9, beta2=0.996, steps=2_000, members=50),
    swag=Averaging(learning_rate=0.5, batch=10, steps=50, iterates=40, rank=20, scale=0.5, members=50),
    rounding=Rounding(bits=(5, 4, 3), matched=(4,), members=50),
)
BITS = 4
"""Of LPE-BSR and matched noise in (a), (c) and (d)."""

Method = tuple[str, str]
"""A method's name and its number system, "" for none."""
EXACT: Method = ("exact", "")
MEAN_FIELD: Method = ("mean-field optimum", "")
COMPARED: tuple[Method, ...] = (
    ("CSGLD", ""),
    ("SGLD", ""),
    ("IVON", ""),
    ("SWAG", ""),
    (BSR, f"int{BITS}"),
    (MATCHED, f"int{BITS}"),
)
COLUMNS = ("method", "number_system", "examples", "degrees", "seed", "std")

WIDTH = 5.5
"""Inches: the text of a one-column page."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn: colour, marker ("" for none), line; a hollow marker lies around another's."""

    colour: str
    marker: str
    line: str = "-"
    hollow: bool = False


STYLES = {
    EXACT: Style(panels.BLACK, ""),
    MEAN_FIELD: Style(panels.BLACK, "", ":"),
    ("SGLD", ""): Style(*SGLD_STYLE),
    ("CSGLD", ""): Style(*FAMILY_STYLES["CSGLD"]),
    ("IVON", ""): Style(*BMA_STYLE),
    ("SWAG", ""): Style(*SWAG_STYLE),
    (BSR, "int5"): Style(*BIT_STYLES[5]),
    (BSR, "int4"): Style(*BIT_STYLES[4]),
    (BSR, "int3"): Style(*BIT_STYLES[3]),
    (MATCHED, "int4"): Style(*BIT_STYLES[4], "--", hollow=True),
}


def compute(seeds: int, quiet: bool) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Measure every method at every N; returns the record, and by N whether posteriors are learnt."""
    data = known_answer.labelled(DESIGN, max(SIZES), seeds)
    rows: list[dict[str, object]] = []
    learnt = {}
    for examples in tqdm(SIZES, desc="numbers of examples", leave=False, file=sys.stderr, disable=quiet):
        degrees = DEGREES if examples == SHOWN else (DENSE, THIN)
        inputs = known_answer.directions(DESIGN, np.array(degrees, dtype=float))
        counted = data.counted(examples)
        point, precision = known_answer.laplace(counted)
        made, ivon = known_methods.ensembles(data, examples, point, RECIPES, DESIGN.regressions)
        learnt[str(examples)] = {
            **{f"ivon_{name}": value for name, value in ivon.items()},
            "csgld_share_of_variance_dense": cyclical_share(counted, precision, DENSE),
            "csgld_share_of_variance_thin": cyclical_share(counted, precision, THIN),
        }
        independent = known_answer.mean_field(counted)[1][:, :, None] * np.eye(2)
        spreads = {
            method: known_answer.spread_along(covariance, inputs, DESIGN.regressions)
            for method, covariance in (
                (EXACT, known_answer.posterior(counted)[1]),
                (MEAN_FIELD, independent),
            )
        }
        for method, of_seeds in made.items():
            spreads[method] = np.stack([known_methods.spread(each, inputs) for each in of_seeds])
        rows += [
            dict(zip(COLUMNS, (*method, examples, angle, seed, values[seed, place]), strict=True))
            for method, values in spreads.items()
            for seed in range(seeds)
            for place, angle in enumerate(degrees)
        ]
    return pd.DataFrame(rows), learnt


def cyclical_share(data: Counted, precision: Array, degrees: int) -> float:
    """Return the share of the posterior's variance that the noise of one cycle of CSGLD can bring about.

    Args:
        precision: of the regressions' posteriors [regressions, 2, 2]; their mean counts.
    """
    (where,) = known_answer.directions(DESIGN, np.array([degrees], dtype=float))
    stage = RECIPES.csgld.stage
    rate = cyclical_cosine(RECIPES.csgld.peak, stage.steps_per_cycle)
    curvature = float((where @ precision @ where).mean()) / data.examples
    return variance_share(
        [rate(step) for step in range(stage.steps_per_cycle) if stage.noise(step)], curvature
    )


def of_method(record: pd.DataFrame, method: Method) -> pd.DataFrame:
    """Return a method's rows; InputError without any."""
    rows = record[(record["method"] == method[0]) & (record["number_system"] == method[1])]
    if rows.empty:
        raise InputError(f"the record has no rows of {words(method)}; run without --plot-only")
    return rows


def against_size(record: pd.DataFrame, method: Method, degrees: int) -> pd.DataFrame:
    """Return log std [seeds, N] of a method in one direction."""
    rows = of_method(record, method)
    table = rows[rows["degrees"] == degrees].pivot(index="seed", columns="examples", values="std")
    return table.map(math.log)


def words(method: Method) -> str:
    """Return a method as text: "LPE-BSR, INT-4"."""
    return f"{method[0]}, INT-{method[1].removeprefix('int')}" if method[1] else method[0]


def ends(logs: pd.DataFrame) -> tuple[Array, Array, Array]:
    """Return the geometric mean over seeds, and its interval's ends, of logarithms [seeds, n]: each [n]."""
    sides = np.array([student_interval(logs[column].to_numpy(float)) for column in logs])
    return np.exp(logs.mean().to_numpy(float)), np.exp(sides[:, 0]), np.exp(sides[:, 1])


def draw_curve(axes: Axes, method: Method, logs: pd.DataFrame, line: str = "") -> None:
    """Draw a method's curve of logarithms [seeds, x] with its band; another ``line`` is not in the legend."""
    style = STYLES[method]
    xs = logs.columns.to_numpy(float)
    means, lows, highs = ends(logs)
    axes.plot(
        xs,
        means,
        color=style.colour,
        linestyle=line or style.line,
        linewidth=1.6 if method == EXACT else 0.9,
        marker=style.marker,
        markersize=6 if style.hollow or style.marker == "+" else 3.5,
        markerfacecolor="none" if style.hollow else style.colour,
        label="_" if line else words(method),
        zorder={EXACT: 2, MEAN_FIELD: 4}.get(method, 3),
    )
    if np.isfinite(lows).all():
        axes.fill_between(xs, lows, highs, color=style.colour, alpha=0.18, linewidth=0, zorder=1)


def plain_numbers(axes: Axes, subs: Sequence[float]) -> None:
    """Write y, which is logarithmic, as plain numbers at the powers of ten times each of ``subs``."""
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_directions(axes: Axes, record: pd.DataFrame) -> None:
    """Draw each method's std against direction, at one N."""
    for each in (EXACT, MEAN_FIELD, *COMPARED):
        rows = of_method(record, each)
        shown = rows[rows["examples"] == SHOWN].pivot(index="seed", columns="degrees", values="std")
        draw_curve(axes, each, shown.map(math.log))
    axes.set(yscale="log", xlabel="direction of the input (degrees)", ylabel="predictive std of the logit")
    places = {0: "0\ndense data", 45: "45", 90: "90\nthin data", 135: "135", 180: "180\ndense data"}
    axes.set_xticks(list(places), list(places.values()))
    plain_numbers(axes, (1.0, 2.0, 3.0))


def draw_sizes(axes: Axes, record: pd.DataFrame) -> None:
    """Draw the exact std and LPE-BSR's against N, in both directions."""
    for each in (EXACT, *((BSR, f"int{bits}") for bits in RECIPES.rounding.bits)):
        draw_curve(axes, each, against_size(record, each, DENSE))
        draw_curve(axes, each, against_size(record, each, THIN), line="--")
    for degrees, place, words_beside, offset, side in (
        (THIN, 1, "exact, thin data", (4, 4), "left"),
        (DENSE, -3, "exact, dense data", (-5, -5), "right"),
    ):
        exact = against_size(record, EXACT, degrees)
        spot = (exact.columns[place], math.exp(float(exact.iloc[:, place].mean())))
        axes.annotate(words_beside, spot, offset, textcoords="offset points", va="center", ha=side)
    axes.set_ylabel("predictive std of the logit")


def draw_ratios(axes: Axes, record: pd.DataFrame, degrees: int) -> None:
    """Draw each method's std over the exact one against N, in one direction."""
    exact = against_size(record, EXACT, degrees)
    axes.axhline(1, color=panels.BLACK, linewidth=1.6, zorder=2)
    for each in COMPARED:
        draw_curve(axes, each, against_size(record, each, degrees) - exact)
    axes.set_ylabel("std / exact std")


def draw(folder: Path) -> tuple[list[Path], list[str]]:
    """Draw known.pdf and known.png from known.csv; returns their paths and the record's table."""
    record = panels.read_record(folder / "known.csv", COLUMNS)
    with panels.style():
        figure, grid = panels.plt.subplots(2, 2, figsize=(page.width(), 4.3))
        around, against, dense, thin = grid.ravel()
        draw_directions(around, record)
        panels.label_panel(around, "a", f"std against direction, N = {SHOWN:,}")
        draw_sizes(against, record)
        panels.label_panel(against, "b", "std against N")
        draw_ratios(dense, record, DENSE)
        panels.label_panel(dense, "c", "std over the exact one, dense data")
        draw_ratios(thin, record, THIN)
        panels.label_panel(thin, "d", "std over the exact one, thin data")
        for ax in (against, dense, thin):
            ax.set(xscale="log", yscale="log", xlabel="examples N")
            ax.xaxis.set_major_locator(FixedLocator([100, 1_000, 10_000, 100_000]))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.xaxis.set_minor_locator(NullLocator())
            plain_numbers(ax, (1.0,))
        lows, highs = zip(dense.get_ylim(), thin.get_ylim(), strict=True)
        for ax in (dense, thin):
            ax.set_ylim(min(lows), max(highs))
        panels.legend_below(figure, [around, against], columns=5)
        paths = panels.save(figure, folder, "known")
    return paths, table(record)


def table(record: pd.DataFrame) -> list[str]:
    """Tabulate the std over the exact one, in two directions at three N, and the slope of its logarithm."""
    sizes = (int(record["examples"].min()), SHOWN, int(record["examples"].max()))
    header = ["method", *(f"{where}, N = {size:,}" for where in ("dense", "thin") for size in sizes), "slope"]
    rows = []
    for each in record[["method", "number_system"]].drop_duplicates().itertuples(index=False, name=None):
        cells, both = [], []
        for degrees in (DENSE, THIN):
            logs = against_size(record, each, degrees)
            over = logs - against_size(record, EXACT, degrees)
            cells += [_bracketed(*three) for three in zip(*ends(over[list(sizes)]), strict=True)]
            both.append(logs)
        logs = (both[0] + both[1]) / 2
        slopes = np.polyfit(np.log(logs.columns.to_numpy(float)), logs.to_numpy(float).T, 1)[0]
        rows.append((words(each), *cells, _bracketed(float(slopes.mean()), *student_interval(slopes))))
    note = f"{record['seed'].nunique()} seeds; in brackets 95 % intervals; slope: d log std / d log N"
    return text_table("std of the logit over the exact one", tuple(header), rows, note).splitlines()


def _bracketed(middle: float, low: float, high: float) -> str:
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]" if np.isfinite(low) else f"{middle:.3g}"


def main(arguments: Sequence[str] | None = None, quiet: bool = False) -> int:
    """Run the script; the exit code is 0, or 2 after one line about bad input."""
    parser = Parser(
        prog="reproduce/known.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, help=f"seeds 0 … N-1 (default: {SEEDS})")
    parser.add_argument("--out", type=Path, help="folder of the results (default: figures/known)")
    parser.add_argument("--plot-only", action="store_true", help="redraw from the record in the folder")
    add_accept_edited(parser)
    add_width(parser, WIDTH)
    parser.add_argument("--scale", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    started = time.time()
    written: list[Path] = []
    lines: list[str] = []
    try:
        if asked.scale is not None:
            raise InputError(f"the known answer is of no scale; leave --scale {asked.scale} out")
        if asked.plot_only and asked.seeds is not None:
            raise InputError("--plot-only draws the seeds that the record has; leave --seeds out")
        check_accepting(asked)
        page.check_width(asked.width)
        seeds = SEEDS if asked.seeds is None else asked.seeds
        if seeds < 1:
            raise InputError(f"--seeds must be 1 or more, not {seeds}")
        out = asked.out or REPOSITORY / "figures" / "known"
        edited: list[str] = []
        if asked.plot_only:
            if not (out / "known.csv").is_file():
                raise InputError(f"there is no record known.csv in {out}; run without --plot-only first")
            edited = check_records("known", out, asked.accept_edited)
        else:
            check_writable(out)
            if (there := len(seeds_of(out / "known.csv"))) > seeds:
                raise InputError(
                    f"the record in {out} has {there} seeds, more than {seeds}; give another folder by --out"
                )
            # One fixed number of threads: sums are taken in one order, and two runs give the same bytes.
            torch.set_num_threads(1)
            record, learnt = compute(seeds, quiet)
            write_table(record, out / "known.csv", COLUMNS)
            config = {"design": DESIGN, "sizes": SIZES, "recipes": RECIPES, "learnt_by_examples": learnt}
            command = sys.argv if arguments is None else ["reproduce/known.py", *arguments]
            records = vouched_by(out, "known")
            write_provenance(
                out / "known.json", command, config, "cpu", range(seeds), 1, started, records=records
            )
            written = [out / "known.csv", out / "known.json"]
            shares = [each["ivon_std"] / each["ivon_std_of_decayed_h0"] for each in learnt.values()]
            lines = ["IVON's std over what h0's decay alone would leave, by N: "]
            lines[0] += ", ".join(f"{share:.2g}" for share in shares)
        with page.page(asked.width, edited=bool(edited)):
            paths, of_record = draw(out)
        if edited:
            keep_accepted(drawn_from(out, "known"))
            lines += said_of_edited(edited)
    except InputError as error:
        complain(error)
        return 2
    for path in [*written, *paths]:
        print(f"wrote {os.path.relpath(path)}")
    for line in [*of_record, *lines]:
        print(line)
    print(f"known: {time.time() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
