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

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


import lpe
from lpe.records import COLUMNS, write_table
from reproduce.command import run_figure
from reproduce.draw import panels
from reproduce.draw.cost_picture import draw_picture
from reproduce.draw.cost_verdicts import (
    Picture,
)
from reproduce.scales.find import scale
from reproduce.study import cost_times
from reproduce.study.cost_measures import (
    CASCADED,
    Known,
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
