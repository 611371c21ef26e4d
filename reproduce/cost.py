"""What an ensemble costs and what it buys: NLL against milliseconds per example, and against bits.

    python reproduce/cost.py
    python reproduce/cost.py --time
    LPE_ASSETS=<folder> python reproduce/cost.py --assets [--only NAME] [--time]

Costs about 24 minutes of one core (Intel Xeon) for the ten training seeds of ``digits``, from nothing, and 5
minutes after the other figures, whose networks it takes. Times are measured where there is no cost_times.csv,
and anew with --time: one thread, about 2 minutes, on a machine that does nothing else. With --assets the
pictures are of pre-trained models, in figures/assets/ (--assets --help has their costs).

It prints a table, what each gains over FP32 and over RTN, and what a cascade costs for 95 % of the ensemble's
gain. Compared are

    the single FP32 model, it with temperature scaling, and RTN
    LPE-BSR of 1 to 20 members, independent and coupled
    cascades of RTN or FP32, whose less confident examples go on to the LPE-BSR members: 2 to 40 % of them, or
    as many as have 95 % of the ensemble's gain on validation examples
    where there are such, the next larger single model, and a deep ensemble (DE) with cascades from its first
    member to the others

The picture has

    columns  milliseconds per example, with members made for every batch, and kept in memory as float32
             modules; memory of n stored members, of LPE-BSR's as planes (b + n bits a weight), and of the
             smallest thing from which they can be drawn
    rows     NLL; calibrated NLL: by the temperature of the other folds of the test examples
    grey     the Pareto front: what nothing shown undercuts in cost at a lower mean
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])


from lpe.command_line import Parser, complain
from lpe.interruption import answered
from lpe.modules import device_of, to_device
from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.cost_picture import draw_picture
from reproduce.draw.cost_verdicts import (
    Picture,
)
from reproduce.study import cost_times
from reproduce.study.cost_measures import (
    known_point,
)
from reproduce.study.cost_units import DEEP, few_members, known_deep, timed_low_precision
from reproduce.study.measurements import measure_all
from reproduce.study.records import log_sizes, rows_of
from reproduce.study.scale import Scale, saw_validation
from reproduce.study.session import Session
from reproduce.study.units import COST, COST_RIVALS, Unit, draw_seed, units

TIMES = "cost_times.csv"


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the picture; "" where it has all."""
    return "" if chosen.points else "a main network"


def seeds_of(session: Session) -> list[int]:
    """Return the picture's training seeds: those that were asked for (--seeds), or the scale's for it."""
    if session.seeds == session.claim_seeds:
        return session.seeds
    return session.claim_seeds[: session.scale.cost_seeds]


def wanted(session: Session) -> list[Unit]:
    """Return the units that the picture shows, all at the same seeds."""
    rivals = [COST_RIVALS] if DEEP in session.scale.families or session.scale.next_larger else []
    return units([session.scale.main], [COST, *rivals], seeds_of(session))


def compute(session: Session, again: bool = False) -> dict[str, object]:
    """Train and measure; write cost.csv; measure times where there are none, altered ones, or ``again``."""
    measure_all(session, wanted(session))
    rows = rows_of(session, wanted(session))
    log_sizes(session, rows)
    write_table(rows, session.out / "cost.csv", COLUMNS)
    if cost_times.are_wanted(session.out / TIMES, again):
        measure_times(session)
    return {}


def measure_times(session: Session) -> None:
    """Write cost_times.csv and its conditions: all at the first seed, the tuned cascades at every seed."""
    started, settings, main, seeds = time.time(), session.scale.settings, session.main, seeds_of(session)
    items: list[cost_times.Timed] = []
    # Folds of one set of examples may differ by one: every time is of as many.
    examples = min(len(main.source.load(seed).test[0][1]) for seed in seeds)
    larger = session.scale.next_larger
    for seed in seeds:
        data = main.source.load(seed)
        solution = main.point(session, main.estimate, seed)
        inputs = to_device(data.test[0][0][:examples], device_of(solution.net))
        deep = known_deep(session, seed, data)
        if seed == seeds[0]:
            items += cost_times.timed_methods(
                (main.name, solution.net),
                None if larger is None else (larger.name, larger.point(session, larger.estimate, seed).net),
                None if deep is None else deep.ensemble,
                settings.bits,
                settings.size,
                inputs,
                seed,
            )
        members = timed_low_precision(session, seed, solution.net, draw_seed(seed, 0))
        single = known_point(solution, data.validation, data.test)
        few, is_first = few_members(settings), seed == seeds[0]
        tunable = None if saw_validation(main, DEEP) else deep
        items += cost_times.timed_cascades(
            main.name, single, tunable, members, few, inputs, seed, all_targets=is_first
        )
    with session.progress(0, "times") as bar:
        rows = cost_times.rows_of_times(items, examples, bar)
    cost_times.write(
        rows, session.out, ["reproduce/cost.py", "--time"], examples, seeds, started, device=session.device
    )


def picture_of(chosen: Scale) -> Picture:
    """Return what the picture of a scale is of."""
    main, larger = chosen.main, chosen.next_larger
    assert main is not None
    names = ((chosen.own_size or main).short, *([] if larger is None else [larger.short]))
    return Picture(
        main.name,
        None if larger is None else larger.name,
        chosen.settings.bits,
        chosen.settings.size,
        names,
        example=main.example,
    )


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw cost.pdf and cost.png from cost.csv and cost_times.csv; returns their paths and the verdicts."""
    record = panels.read_record(folder / "cost.csv", COLUMNS)
    times = panels.read_record(folder / TIMES, cost_times.COLUMNS)
    return draw_picture(record, times, picture_of(chosen), folder)


def add_options(options: Parser) -> None:
    """Give a parser the picture's own options, which :func:`main` reads."""
    options.add_argument("--assets", action="store_true", help="pre-trained models, with options of its own")
    options.add_argument("--time", action="store_true", help="measure the times anew")


SCRIPT = Script("cost", __doc__, lacks, wanted, compute, draw, add_options=add_options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the picture of a scale, or those of the assets; 2 after one line about bad input."""
    own = Parser(add_help=False, allow_abbrev=False)
    add_options(own)
    given = sys.argv[1:] if arguments is None else list(arguments)
    asked, rest = own.parse_known_args(given)
    if asked.time and "--plot-only" in rest:
        complain("--plot-only draws what the folder's records hold and would ignore --time; leave one out")
        return 2
    if asked.assets:
        from reproduce.cost_given import run

        return run(rest, asked.time)
    again = replace(SCRIPT, compute=partial(compute, again=asked.time))
    return run_figure(again, given)


if __name__ == "__main__":
    sys.exit(answered(main))
