"""Table 6: training-free ensembles of a zero-shot CLIP: Gaussian noise, MC-dropout, LPE-BSR.

    python reproduce/table6.py
    python reproduce/table6.py --scale paper [--random-weights]

Costs about 24 minutes of one core (Intel Xeon) for the twenty training seeds of ``digits``, from nothing. It
prints the paths written and the verdicts of claim C10.

☆ is the single FP32 model. Noise and dropout have the std and the rate that validation images chose. Of
LPE-BSR nothing is tuned, so it is shown at every bit width. In a last pair of rows its spread is tuned as the
noise's std is. AMB is the ambiguity, 0 for a single model.
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
from reproduce.draw.summaries import (
    FP32,
    SCALED,
    What,
    claim_lines,
    counted_seeds,
    megabits,
    read,
    tuned_note,
    tuned_pair,
)
from reproduce.draw.tables import Cell, mark_best, write_all
from reproduce.study.beyond.names import TUNED_SPREAD, TUNED_STD
from reproduce.study.measurements import measure_all
from reproduce.study.records import record_name, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import LARGE, SPREAD, Unit, units

RIVALS = ("Gaussian", "MC-dropout")
METHODS = (FP32, SCALED, *RIVALS, "LPE-BSR", TUNED_SPREAD, TUNED_STD)
HEADER = (
    "method",
    "members",
    "NLL (nats)",
    "NLL − FP32's",
    "ERR",
    "ECE",
    "AMB (nats)",
    "stored (Mbit)",
    "to draw from (Mbit)",
)
NLL = HEADER.index("NLL (nats)")


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.compared is not None and chosen.compared.rivals else "a large model with tuned rivals"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the table shows."""
    scale, seeds = session.scale, session.claim_seeds
    tuned = [] if scale.beyond is None else [seed for seed in seeds if seed < scale.beyond.seeds]
    return [*units([scale.compared], [LARGE], seeds), *units([scale.compared], [SPREAD], tuned)]


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write table6_record.csv."""
    measure_all(session, wanted(session))
    rows = selected(session, wanted(session), every_size=(), methods=METHODS)
    write_table(rows, session.out / record_name("table6"), COLUMNS)
    return {}


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Write table6.csv, .md and .tex from the record; returns their paths and claim C10's verdicts."""
    summary = read(folder, "table6")
    compared = chosen.compared
    assert compared is not None and compared.rivals is not None
    substrate = compared.name
    single = What(substrate, "SGD", FP32)

    def row(what: What, title: str) -> list[Cell]:
        generator = "generator_bits"
        return [
            title,
            what.size,
            summary.with_interval(what),
            None if what == single else summary.difference(what, single),
            summary.mean(what, "err"),
            summary.mean(what, "ece"),
            summary.mean(what, "ambiguity", 5),
            megabits(summary.memory_bits(what)),
            megabits(float(summary.values(what, generator).mean())) if summary.has(what, generator) else None,
        ]

    rows = [row(single, "☆ single"), row(What(substrate, "SGD", SCALED), "single + temperature")]
    for size in sorted({chosen.settings.claim_size, chosen.settings.large_size}):
        shown = [(What(substrate, "SGD", rival, "fp32", size), f"{rival}, tuned") for rival in RIVALS]
        shown += [
            (What(substrate, "SGD", "LPE-BSR", f"int{bits}", size), f"LPE-BSR, INT-{bits}")
            for bits in chosen.settings.bits
        ]
        means = [float(summary.values(what).mean()) for what, _ in shown]
        rows += mark_best([row(*each) for each in shown], NLL, means)
    # Of fewer seeds than those above, and so not compared with them for the lowest.
    rows += [row(*each) for each in tuned_pair(summary, chosen, substrate)]
    std, rate = (
        # What was chosen in the run itself is in its record.
        grid[0]
        if len(grid) == 1
        else float(
            summary.values(What(substrate, "SGD", rival, "fp32", chosen.settings.large_size), "setting").iloc[
                0
            ]
        )
        for rival, grid in zip(RIVALS, (compared.rivals.stds, compared.rivals.rates), strict=True)
    )
    caption = (
        f"Training-free ensembles of {substrate}, scale {chosen.name}, "
        f"{counted_seeds([summary.seeds(single)])}."
    )
    notes = [
        *chosen.conditions,
        *compared.remarks,
        summary.named("NLL − FP32's: paired by training seed, against ☆. ")
        + "Bold: the lowest mean NLL of the ensembles of one "
        f"size, however little they differ. Gaussian: std {std:g}; MC-dropout: rate {rate:g}; both chosen on "
        f"validation {compared.example}s.",
        "Memory: n stored members, and the smallest thing from which they can be drawn.",
        *tuned_note(summary, chosen, substrate),
    ]
    paths = write_all(folder, "table6", [*map(summary.named, HEADER)], rows, caption, notes)
    return paths, claim_lines(summary.record, chosen, [f"C10 ({substrate}"])


SCRIPT = Script("table6", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
