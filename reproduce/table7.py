"""Table 7: RTN against LPE-BSR under other scale axes and number systems, at equal bits a weight.

    python reproduce/table7.py

Costs about 14 minutes of one core (Intel Xeon) for the twenty training seeds of ``digits``, from nothing. It
prints the paths written; no claim is judged on it.

Systems of equal bits stand together, that with the fewest scales first, and integers before the others: the
memory column says what the scales cost. Every number system in the record has a pair of rows.
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
from reproduce.draw.rounding_tables import HEADER, block, rounding_notes, seeds_shown, write_record
from reproduce.draw.summaries import Summary, What, read, substrates_by_size, system_bits
from reproduce.draw.tables import write_all
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import AXES, Unit, units


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.main is not None and chosen.settings.number_systems else "other number systems"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the table shows."""
    return units([session.scale.main], [AXES], session.claim_seeds)


def systems_of(summary: Summary, substrate: str) -> list[str]:
    """List the substrate's number systems: most bits first, then by a member's memory, integers first."""
    here = summary.record[summary.record["substrate"] == substrate]
    names = sorted(set(here["number_system"]) - {"fp32"})
    return sorted(
        names,
        key=lambda name: (
            -system_bits(name),
            summary.memory_bits(What(substrate, "SGD", "RTN", name)),
            not name.startswith("int"),
        ),
    )


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write table7_record.csv."""
    write_record(session, "table7", wanted(session), ())
    return {}


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Write table7.csv, .md and .tex from the record; returns their paths."""
    summary = read(folder, "table7")
    rows = [
        row
        for substrate in substrates_by_size(summary)
        for row in block(summary, substrate, systems_of(summary, substrate), chosen.settings.claim_size)
    ]
    caption = (
        f"RTN against LPE-BSR of {chosen.settings.claim_size} members under other scale axes and number "
        f"systems, scale {chosen.name}, {seeds_shown(summary)}."
    )
    return write_all(folder, "table7", HEADER, rows, caption, rounding_notes(chosen, summary)), []


SCRIPT = Script("table7", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
