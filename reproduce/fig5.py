"""Figure 5: SSE (top) and CSGLD (bottom), with and without LPE-BSR, against training and memory budget.

    python reproduce/fig5.py

Costs about 22 minutes of one core (Intel Xeon) for the five training seeds of ``digits``, from nothing. It
prints the paths written, the verdicts of claim C4, and what a backward pass is.

NLL and ECE of X and of X + LPE-BSR, each member of X expanded into k low precision members:

    against the training budget   all members that it pays for: every base trained so far, each with its k
    against the memory budget     every prefix, base by base; beside them X's own members stored in few bits,
                                  each rounded to nearest

with 95 % intervals of the paired difference to the single FP32 model, which is drawn with its cost, and as
it is with temperature scaling.
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

FAMILIES = ("SSE", "CSGLD")


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if families_of(chosen, FAMILIES) else "families of SSE, CSGLD"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return units_of(session, FAMILIES)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig5.csv."""
    return compute_budgets(session, "fig5", FAMILIES)


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig5.pdf and fig5.png from fig5.csv; returns their paths and claim C4's verdicts."""
    return draw_budgets(folder, chosen, "fig5", FAMILIES, "C4")


SCRIPT = Script("fig5", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
