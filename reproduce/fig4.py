"""Figure 4: the radial landscape of two SSE snapshots and a low precision member of the first.

    python reproduce/fig4.py

Costs about 12 minutes of one core (Intel Xeon) at ``digits``, from nothing: two snapshot cycles at each of
the 20 training seeds of claim C3; a minute where they are trained. It prints how far each network lies from
the radial plane and from the first snapshot, the paths written, and claim C3's verdicts.

The radial plane is spanned from the origin by the first and the second snapshot of one training seed. A
low precision member of the first snapshot lies so near it, seen from the origin, that everything else is
drawn on the plane through the three, on which they lie apart: loss, and what changes from each, the share of
test examples decided otherwise (disagreement) and the KL divergence. Claim C3 is judged on the disagreement
of the networks themselves, over many training seeds, which a panel shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import lpe
from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.landscape_pictures import changes_picture, on_plane, shown_as
from reproduce.draw.style import BIT_STYLES, FAMILY_STYLES, SINGLE_STYLE
from reproduce.draw.summaries import claim_lines, noun, training_seeds
from reproduce.judge import intervals
from reproduce.study.landscapes import (
    LOW,
    PLANE_CLOUD_COLUMNS,
    PLANE_GRID_COLUMNS,
    RADIAL,
    Solution,
    planes_examples,
    planes_of,
    planes_words,
)
from reproduce.study.measurements import first_snapshots, measure_all
from reproduce.study.records import DISAGREEMENT, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import DISAGREEMENT_UNIT, Unit, draw_seed, units

FIRST, SECOND = "1st snapshot", "2nd snapshot"


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if "SSE" in chosen.families else "snapshots (SSE)"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows: claim C3's."""
    return units([session.scale.main], [DISAGREEMENT_UNIT], session.claim_seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig4.csv, fig4_landscape.csv and fig4_members.csv."""
    measure_all(session, wanted(session))
    measure_landscape(session)
    write_table(selected(session, wanted(session)), session.out / "fig4.csv", COLUMNS)
    return {
        "landscape_bits": session.scale.settings.best_bits,
        "planes": planes_words(session.scale),
    }


def measure_landscape(session: Session) -> None:
    """Measure the plane at the landscapes' training seed; write fig4_landscape.csv and fig4_members.csv."""
    chosen = session.scale
    seed = chosen.settings.landscape.seed
    data = session.main.source.load(seed)
    snapshots = first_snapshots(session, session.main, seed)
    first, second = snapshots[0], snapshots[1]
    # The first of the members that the record's disagreement is a mean over.
    system = lpe.Int(chosen.settings.best_bits)
    low = lpe.LowPrecisionEnsemble(first, system, 1, draw_seed(seed, 0), batches=data.statistics)
    solutions = (
        Solution(FIRST, lambda: [first]),
        Solution(SECOND, lambda: [second]),
        Solution(LOW, low.in_turn),
    )
    grid, members = planes_of(session, solutions, (0, 1), data, "snapshots", changes=True)
    write_table(grid, session.out / "fig4_landscape.csv", PLANE_GRID_COLUMNS)
    write_table(members, session.out / "fig4_members.csv", PLANE_CLOUD_COLUMNS)


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig4.pdf and fig4.png from the record; returns their paths, distances, and claim C3's verdicts."""
    record = panels.read_record(folder / "fig4.csv", COLUMNS)
    grid = panels.read_record(folder / "fig4_landscape.csv", PLANE_GRID_COLUMNS)
    members = panels.read_record(folder / "fig4_members.csv", PLANE_CLOUD_COLUMNS)
    best = chosen.settings.best_bits
    marks = {FIRST: SINGLE_STYLE, SECOND: FAMILY_STYLES["SSE"], LOW: BIT_STYLES[best]}
    legends = {LOW: f"{LOW} of the {FIRST}, INT-{best}"}
    shown = shown_as(marks, legends, LOW, "hollow in (a), where it may lie on a snapshot")
    examples = planes_examples(chosen)

    def corner(axes: Axes) -> str:
        _disagreement_panel(axes, record, chosen)
        return f"disagreement with the 1st,\nof {training_seeds(record['seed'].nunique())}"

    with panels.style():
        figure, _ = changes_picture(grid, members, shown, noun(chosen), examples, corner, 0)
        paths = panels.save(figure, folder, "fig4")
    lines = [
        f"{row['method']}: {row['distance_from_point']:.3f} from the {FIRST}, "
        f"{row['distance_from_plane']:.3f} off the radial plane, NLL {row['nll']:.5f}"
        for _, row in on_plane(members, RADIAL).iterrows()
    ]
    return paths, lines + claim_lines(record, chosen, ["C3"])


def _disagreement_panel(axes: Axes, record: pd.DataFrame, chosen: Scale) -> None:
    """Draw disagreement with the first snapshot: a small mark a training seed, the mean and its interval."""
    rows = record[(record["metric"] == DISAGREEMENT) & (record["point"] == "SSE")]
    kinds = [("2nd", "fp32", FAMILY_STYLES["SSE"])]
    kinds += [(f"INT-{bits}", f"int{bits}", BIT_STYLES[bits]) for bits in chosen.settings.bits]
    for place, (_, system, (colour, marker)) in enumerate(kinds):
        values = intervals.by_seed(rows, number_system=system).to_numpy()
        aside = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(place + aside, values, s=5, c=colour, marker=marker, linewidths=0, alpha=0.6)
        low, high = intervals.student_interval(values)
        if np.isfinite(low):
            axes.vlines(place, low, high, color=panels.BLACK, linewidth=1.0, zorder=4)
        axes.plot(
            place, values.mean(), marker, color=colour, markersize=5.5, markeredgecolor="black", zorder=5
        )
    axes.set_xticks(range(len(kinds)), [title for title, *_ in kinds])
    axes.set_xlabel("of the 2nd, or a member of the 1st")
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"share of {noun(chosen)}s")


SCRIPT = Script("fig4", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
