"""Figure 9: SSE, DE and MultiIVON, with and without LPE-BSR, against training and memory budget.

    python reproduce/fig9.py

Costs about 17 minutes of one core (Intel Xeon) for the five training seeds of ``digits``, from nothing. It
prints the paths written, the verdicts of claim C8, and what a backward pass is. The panels are figure 5's.
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
from reproduce.draw.budgets import compute_budgets, draw_budgets, families_of, units_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit

FAMILIES = ("SSE", "DE", "MultiIVON")


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if families_of(chosen, FAMILIES) else "families of SSE, DE, MultiIVON"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return units_of(session, FAMILIES)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig9.csv."""
    return compute_budgets(session, "fig9", FAMILIES)


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig9.pdf and fig9.png from fig9.csv; returns their paths and claim C8's verdicts."""
    return draw_budgets(folder, chosen, "fig9", FAMILIES, "C8")


SCRIPT = Script("fig9", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
