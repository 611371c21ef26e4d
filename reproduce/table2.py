"""Table 2: the numbers behind figure 2, for the points found by SGD, SWAG and IVON.

    python reproduce/table2.py

Costs seconds after figure 2, and from nothing as much as that does. It prints the paths written and the
verdicts of claims C2 and C5.

A block a point: the single FP32 model (☆), it with temperature scaling, BMA where there is a posterior, and
LPE-BSR at each bit width, each at several sizes. The average loss less the ambiguity is the ensemble loss,
the NLL of the softmax of the mean logits; NLL is that of the mean probabilities.
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
from reproduce.draw.metric_tables import MEASURED, numbers
from reproduce.draw.summaries import FP32, SCALED, What, claim_lines, counted_seeds, read
from reproduce.draw.tables import Cell, write_all
from reproduce.study.measurements import measure_all
from reproduce.study.records import record_name, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units

METHODS = (FP32, SCALED, "BMA", "LPE-BSR")
HEADER = ("point", "method", "members", "NLL (nats)", "NLL − FP32's", *MEASURED)


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.points else "a main network"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the table shows."""
    return units([session.scale.of_points], session.scale.points, session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write table2_record.csv."""
    measure_all(session, wanted(session))
    rows = selected(session, wanted(session), every_size=(), methods=METHODS)
    write_table(rows, session.out / record_name("table2"), COLUMNS)
    return {}


def rows_of_point(chosen: Scale, point: str) -> list[tuple[What, str]]:
    """List what a point's block shows, with its title."""
    substrate = chosen.points_substrate
    shown = [(What(substrate, point, FP32), "☆ single FP32"), (What(substrate, point, SCALED), SCALED)]
    several = [(What(substrate, point, "BMA"), "BMA, FP32")] if point in chosen.posteriors else []
    several += [
        (What(substrate, point, "LPE-BSR", f"int{bits}"), f"LPE-BSR, INT-{bits}")
        for bits in chosen.settings.bits
    ]
    return shown + [(what.at(size), title) for what, title in several for size in chosen.settings.table_sizes]


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Write table2.csv, .md and .tex from the record; returns their paths and the claims' verdicts."""
    summary = read(folder, "table2")
    rows: list[list[Cell]] = []
    seeds = []
    for point in chosen.points:
        for what, title in rows_of_point(chosen, point):
            single = What(chosen.points_substrate, point, FP32)
            rows.append(
                [
                    point,
                    title,
                    what.size,
                    *numbers(summary, what, single),
                ]
            )
            seeds.append(summary.seeds(what))
    caption = (
        f"The numbers behind figure 2: {chosen.points_substrate}, scale {chosen.name}, "
        f"{counted_seeds(seeds)}."
    )
    notes = [
        *chosen.conditions,
        "NLL − FP32's: paired by training seed, against ☆ of the same point. Average loss, AMB (ambiguity) "
        "and ensemble loss in nats; they are not defined for scaled probabilities.",
        "Calibrated NLL: by the temperature that was fitted on the other folds of the test examples; that of "
        "☆ is also that of the scaled model.",
    ]
    # C11 is of points alone; table 5 says it where it has their rows.
    claims = ["C2", "C5"] + ["C11"] * (chosen.whole is not None)
    return write_all(folder, "table2", HEADER, rows, caption, notes), claim_lines(
        summary.record, chosen, claims
    )


SCRIPT = Script("table2", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
