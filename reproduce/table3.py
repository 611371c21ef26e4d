"""Table 3: the numbers behind figure 7: pre-trained models of several sizes, INT-5.

    python reproduce/table3.py
    python reproduce/table3.py --scale paper [--random-weights]

Costs seconds after figure 7, and from nothing as much as that does. It prints the paths written and the
verdicts of claims C6a and C6b.

A block a model, as in figure 7: the single FP32 model (☆), it with temperature scaling, RTN, and LPE-BSR of
several sizes. The average loss less the ambiguity is the ensemble loss, the NLL of the softmax of the mean
logits; NLL is that of the mean probabilities. For a language model the classes are the choices of a question,
and a member's logits the summed log-likelihoods of the choices.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw.large_models import large_rows, large_units
from reproduce.draw.metric_tables import MEASURED, numbers
from reproduce.draw.summaries import (
    FP32,
    SCALED,
    Summary,
    What,
    claim_lines,
    counted_seeds,
    megabits,
    read,
)
from reproduce.draw.tables import Cell, write_all
from reproduce.study.records import record_name
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit

HEADER = (
    "model",
    "parameters",
    "method",
    "members",
    "NLL (nats)",
    "NLL − FP32's",
    *MEASURED,
    "memory (Mbit)",
)


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.large else "large models"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the table shows: figure 7's."""
    return large_units(session)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write table3_record.csv."""
    rows = large_rows(session, ())
    write_table(rows, session.out / record_name("table3"), COLUMNS)
    return {}


def rows_of_model(chosen: Scale, summary: Summary, substrate: str) -> list[tuple[What, str]]:
    """List what a model's block shows, with its title."""
    system, words = f"int{chosen.settings.large_bits}", f"INT-{chosen.settings.large_bits}"
    shown = [
        (What(substrate, "SGD", FP32), f"☆ single {summary.unrounded(substrate)}"),
        (What(substrate, "SGD", SCALED), summary.title(substrate, SCALED)),
        (What(substrate, "SGD", "RTN", system), f"RTN, {words}"),
    ]
    low = What(substrate, "SGD", "LPE-BSR", system)
    return shown + [(low.at(size), f"LPE-BSR, {words}") for size in chosen.settings.table_sizes]


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Write table3.csv, .md and .tex from the record; returns their paths and claim C6's verdicts."""
    summary = read(folder, "table3")
    rows: list[list[Cell]] = []
    seeds = []
    for substrate in [each.name for of in chosen.large.values() for each in of]:
        single = What(substrate, "SGD", FP32)
        for what, title in rows_of_model(chosen, summary, substrate):
            rows.append(
                [
                    substrate,
                    round(summary.parameters(single)),
                    title,
                    what.size,
                    *numbers(summary, what, single),
                    megabits(summary.memory_bits(what)),
                ]
            )
            seeds.append(summary.seeds(what))
    caption = f"The numbers behind figure 7, scale {chosen.name}, {counted_seeds(seeds)}."
    notes = [
        *chosen.conditions,
        summary.named("NLL − FP32's: paired by training seed, against ☆ of the same model. Average loss, ")
        + "AMB (ambiguity) and ensemble loss in nats; they are not defined for scaled probabilities.",
        *dict.fromkeys(remark for of in chosen.large.values() for each in of for remark in each.remarks),
        "Memory: n stored members, scales and what stays in full precision counted once.",
    ]
    return write_all(folder, "table3", [*map(summary.named, HEADER)], rows, caption, notes), claim_lines(
        summary.record, chosen, ["C6"]
    )


SCRIPT = Script("table3", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
