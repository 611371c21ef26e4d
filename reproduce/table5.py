"""Table 5: the fine-tuned model: ensembles of several trainings against ensembles drawn from one.

    python reproduce/table5.py

Costs about 50 minutes of one core (Intel Xeon) at ``digits``, from nothing: twenty training seeds of the
point estimate and five of the ensembles of several trainings. It prints the paths written and the verdicts of
claims C9, C10, C11, C12, C13 and C15.

MAP (☆) is the point that SGD finds. All rows are over the training seeds that every row has. DEE, the
deep-ensemble equivalent, says how many members of DE have the same calibrated NLL. It is read off where the
method's mean calibrated NLL meets the curve of DE's means: the curve of one seed is too flat and too rough.
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

from lpe.errors import InputError
from lpe.evaluation.equivalent import deep_ensemble_equivalent
from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw.budgets import families_of
from reproduce.draw.summaries import (
    FP32,
    SCALED,
    Summary,
    What,
    claim_lines,
    counted_seeds,
    megabits,
    pass_size,
    read,
    tuned_note,
    tuned_pair,
)
from reproduce.draw.tables import Cell, write_all
from reproduce.study.beyond.names import TUNED_SPREAD, TUNED_STD
from reproduce.study.measurements import measure_all
from reproduce.study.records import EQUAL_BITS, STORED_BITS, by_rtn, record_name, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import SPREAD, Unit, beyond_units, units

FAMILIES = ("BE", "DE", "SSE", "CSGLD", "MultiIVON", "MultiSWAG")
BY_SIZE = ("DE", "SSE")
"""Families shown at every size; the others are whole: BatchEnsemble's members are trained together, and those
of CSGLD and of one posterior are alike.
"""
METHODS = (FP32, SCALED, *FAMILIES, by_rtn("DE"), "LPE-BSR", "Gaussian", "Gaussian, matched", "MC-dropout")
TUNED = (TUNED_SPREAD, TUNED_STD)
HEADER = (
    "method",
    "members",
    "NLL (nats)",
    "NLL − MAP's",
    "ERR",
    "ECE",
    "Brier",
    "calibrated NLL",
    "DEE",
    "stored (Mbit)",
    "as planes (Mbit)",
    "to draw from (Mbit)",
    "backward passes",
)


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.families else "families of trained networks"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the table shows: those of one training at more seeds."""
    return [
        *units([session.scale.main], [session.main.estimate], session.claim_seeds),
        *units([session.scale.main], families_of(session.scale, FAMILIES), session.seeds),
        *beyond_units(session.scale, SPREAD, session.seeds),
    ]


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write table5_record.csv."""
    measure_all(session, wanted(session))
    equal_bits = session.scale.settings.equal_bits
    # Claim C13 compares numbers of members that no table shows.
    every_size = ("nll",) if equal_bits else ()
    methods = (*METHODS, *TUNED, *["RTN"] * equal_bits)
    rows = selected(session, wanted(session), every_size=every_size, methods=methods)
    write_table(rows, session.out / record_name("table5"), COLUMNS)
    return {"backward_pass": pass_size(session.scale)}


def rows_shown(summary: Summary, chosen: Scale) -> list[tuple[What, str]]:
    """List what the table shows, with its title."""

    def at_sgd(method: str, system: str = "fp32", size: int = 1) -> What:
        return What(chosen.substrate, "SGD", method, system, size)

    shown = [(at_sgd(FP32), "☆ MAP"), (at_sgd(SCALED), "MAP + temperature")]
    for name in families_of(chosen, FAMILIES):
        whole = What(chosen.substrate, name, name)
        sizes = summary.sizes(whole)
        shown += [(whole.at(size), name) for size in (sizes if name in BY_SIZE else sizes[-1:])]
        if name == "DE":
            few = [(What(chosen.substrate, name, by_rtn(name), f"int{b}", sizes[-1]), b) for b in STORED_BITS]
            shown += [(what, f"DE, INT-{b} members by RTN") for what, b in few if summary.has(what)]
    best, size = chosen.settings.best_bits, chosen.settings.claim_size
    shown += [
        (at_sgd("LPE-BSR", f"int{best}", each), f"LPE-BSR, INT-{best}")
        for each in chosen.settings.table_sizes
    ]
    others = [bits for bits in chosen.settings.bits if bits != best]
    shown += [(at_sgd("LPE-BSR", f"int{bits}", size), f"LPE-BSR, INT-{bits}") for bits in others]
    if chosen.settings.equal_bits:
        systems = dict.fromkeys(system for _, _, system, _ in EQUAL_BITS)
        alone = [
            (at_sgd("RTN", system), f"one network, {system.upper().replace('INT', 'INT-')}")
            for system in systems
        ]
        shown += [(what, title) for what, title in alone if summary.has(what)]
    rivals = [
        (at_sgd("Gaussian", "fp32", size), "Gaussian, tuned"),
        *(
            (at_sgd("Gaussian, matched", f"int{bits}", size), f"Gaussian, matched to INT-{bits}")
            for bits in chosen.settings.bits
        ),
        (at_sgd("MC-dropout", "fp32", size), "MC-dropout, tuned"),
    ]
    if chosen.main is not None and chosen.main.rivals is not None:
        shown += rivals
    return [*shown, *tuned_pair(summary, chosen, chosen.substrate)]


def equivalent(summary: Summary, what: What, deep: What) -> str | None:
    """Return the deep-ensemble equivalent over the seeds that ``what`` and DE share; None where undefined.

    Args:
        deep: DE, of any size.
    """
    metric = "calibrated_nll"
    if not summary.has(what, metric):
        return None
    curve = [summary.values(deep.at(size), metric) for size in range(1, max(summary.sizes(deep, metric)) + 1)]
    values = summary.values(what, metric)
    shared = values.index
    for series in curve:
        shared = shared.intersection(series.index)
    if shared.empty:
        raise InputError(f"{what} and DE share no training seed; run with the same --seeds")
    means = [float(series.loc[shared].mean()) for series in curve]
    return deep_ensemble_equivalent(float(values.loc[shared].mean()), means).text()


def shared_seeds(summary: Summary, shown: Sequence[What]) -> list[int]:
    """Return the training seeds that every row has; InputError where there are none."""
    shared = set.intersection(*(set(summary.rows(what).index) for what in shown))
    if not shared:
        raise InputError("table5's rows share no training seed; run with the same --seeds")
    return sorted(shared)


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Write table5.csv, .md and .tex from the record; returns their paths and the claims' verdicts."""
    everything = read(folder, "table5")
    shown = rows_shown(everything, chosen)
    seeds = shared_seeds(everything, [what for what, _ in shown])
    # Seeds differ in their test examples: rows of other seeds could not be compared.
    summary = Summary("table5", everything.record[everything.record["seed"].isin(seeds)])
    single = What(chosen.substrate, "SGD", FP32)
    deep = What(chosen.substrate, "DE", "DE")
    rows: list[list[Cell]] = []
    for what, title in shown:
        generator = (
            megabits(float(summary.values(what, "generator_bits").mean()))
            if summary.has(what, "generator_bits")
            else None
        )
        planes = summary.planes_bits(what)
        rows.append(
            [
                title,
                what.size,
                summary.with_interval(what),
                None if what == single else summary.difference(what, single),
                *(summary.mean(what, metric) for metric in ("err", "ece", "brier", "calibrated_nll")),
                equivalent(summary, what, deep) if "DE" in chosen.families else None,
                megabits(summary.memory_bits(what)),
                None if planes is None else megabits(planes),
                generator,
                round(summary.backward_passes(what)),
            ]
        )
    caption = (
        f"Ensembles of the fine-tuned model, {chosen.substrate}, scale {chosen.name}, "
        f"{counted_seeds([len(seeds)])}, the same in every row."
    )
    all_seeds = everything.seeds(single)
    more = f" Claims are judged on all {all_seeds} seeds that they have." if all_seeds > len(seeds) else ""
    notes = [
        *chosen.conditions,
        f"NLL − MAP's: paired by training seed.{more}",
        "Calibrated NLL: by the temperature that was fitted on the other folds of the test examples. DEE "
        "(deep-ensemble equivalent): the mean calibrated NLL on the curve of DE's means.",
        "Memory: n stored members; as planes, the lower neighbours once and a bit a weight and member (b + n "
        "bits a weight); and the smallest thing from which they can be drawn. Training: "
        f"{pass_size(chosen)}.",
        *tuned_note(summary, chosen, chosen.substrate),
    ]
    claims = ["C9", "C10 (Gaussian", "C10 (MC-dropout", "C12"]
    # C11 is of points alone; where these are measured on more examples, the table has no rows of it.
    claims += ["C11"] * (chosen.whole is None) + ["C13"] * chosen.settings.equal_bits
    claims += ["C15"] * bool(tuned_pair(summary, chosen, chosen.substrate))
    lines = claim_lines(everything.record, chosen, claims)
    return write_all(folder, "table5", HEADER, rows, caption, notes), lines


SCRIPT = Script("table5", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
