"""Table 1: four sizes of one network, INT-6 and INT-4: nearest rounding (RTN) against LPE-BSR.

    python reproduce/table1.py
    python reproduce/table1.py --scale paper [--random-weights]

Costs about 44 minutes of one core (Intel Xeon) for the twenty training seeds of ``digits``, from nothing. It
prints the paths written and the verdicts of claims C1a, C1b and C1c.

A block a network, the smallest first: the FP32 model (☆), it with temperature scaling, then RTN and LPE-BSR
at each bit width. AMB is the ambiguity, 0 for a single model.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

from reproduce.command import Script, run_figure
from reproduce.draw.rounding_tables import BITS, write_networks, write_record
from reproduce.draw.summaries import (
    claim_lines,
)
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import ROUNDING, Unit, units


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.sizes else "networks of several sizes"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the table shows."""
    return units(session.scale.sizes, [ROUNDING], session.claim_seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write table1_record.csv."""
    write_record(session, "table1", wanted(session), [f"int{width}" for width in BITS])
    return {}


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Write table1.csv, .md and .tex from the record; returns their paths and claim C1's verdicts."""
    paths, summary = write_networks(folder, chosen, "table1", BITS)
    return paths, claim_lines(summary.record, chosen, ["C1"])


SCRIPT = Script("table1", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
