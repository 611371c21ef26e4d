"""Table 4: table 1 at the other bit widths (8, 7, 5 and 3).

    python reproduce/table4.py

Costs seconds after table 1, and from nothing as much as that does. It prints the paths written; no claim is
judged on it.
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
from reproduce.draw import rounding_tables
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import ROUNDING, Unit, units


def bits(chosen: Scale) -> list[int]:
    """Return the widths that table 1 does not show."""
    return [width for width in chosen.settings.table_bits if width not in rounding_tables.BITS]


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    if not chosen.sizes:
        return "networks of several sizes"
    return "" if bits(chosen) else "bit widths beside table 1's"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the table shows."""
    return units(session.scale.sizes, [ROUNDING], session.claim_seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write table4_record.csv."""
    systems = [f"int{width}" for width in bits(session.scale)]
    rounding_tables.write_record(session, "table4", wanted(session), systems)
    return {}


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Write table4.csv, .md and .tex from the record; returns their paths."""
    paths, _ = rounding_tables.write_networks(folder, chosen, "table4", bits(chosen))
    return paths, []


SCRIPT = Script("table4", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
