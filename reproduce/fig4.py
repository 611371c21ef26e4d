"""Figure 4: the radial landscape of two SSE snapshots and a low precision member of the first.

    python reproduce/fig4.py

Costs about 12 minutes on one core at scale ``digits``, from nothing: two snapshot cycles at each of the 20
training seeds of claim C3; half a minute where they are there. It prints how far each anchor lies from the
plane and from the first snapshot, the paths written, and claim C3's verdicts.

The plane is spanned from the origin by the first and the second snapshot of one training seed. The third
anchor, an LPE-BSR member of the first snapshot, is projected on it. Loss, and what changes from each anchor:
the share of test images decided otherwise (disagreement) and the KL divergence. Claim C3 is judged on the
disagreement of the networks themselves, over many training seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.choose(sys.argv[1:])

import pandas as pd

import lpe
from lpe.evaluation.landscape import Surface, radial_plane, weight_vector
from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.summaries import claim_lines
from reproduce.study.landscapes import CLOUD_COLUMNS, GRID_COLUMNS, cloud_table, radial_table, window_around
from reproduce.study.measurements import first_snapshots, measure_all
from reproduce.study.records import selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import DISAGREEMENT_UNIT, Unit, draw_seed, units

FIRST, SECOND, MEMBER = "1st snapshot", "2nd snapshot", "LPE-BSR member"
STYLES = {
    FIRST: (panels.BLACK, "*"),
    SECOND: (panels.VERMILION, "^"),
    MEMBER: (panels.BLUE, "ring"),
}


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
    return {"landscape_bits": session.scale.settings.best_bits}


def measure_landscape(session: Session) -> None:
    """Measure the plane at the landscapes' training seed; write fig4_landscape.csv and fig4_members.csv."""
    chosen = session.scale
    seed = chosen.settings.landscape.seed
    data = session.main.source.load(seed)
    snapshots = first_snapshots(session, session.main, seed)
    first = snapshots[0]
    # The first of the members that the record's disagreement is a mean over.
    system = lpe.Int(chosen.settings.best_bits)
    member = lpe.LowPrecisionEnsemble(first, system, 1, draw_seed(seed, 0), batches=data.statistics)[0]
    nets = {FIRST: first, SECOND: snapshots[1], MEMBER: member}
    anchors = {name: weight_vector(net) for name, net in nets.items()}
    plane = radial_plane(anchors[FIRST], anchors[SECOND])
    surface = Surface(first, data.test, anchors, data.statistics or ())
    members = pd.concat([cloud_table(plane, [net], first, surface, name) for name, net in nets.items()])
    seen = f"test {session.main.example}s of seed {seed}"
    grid = radial_table(session, surface, plane, anchors, seen, "radial plane")
    write_table(grid[list(GRID_COLUMNS)], session.out / "fig4_landscape.csv", GRID_COLUMNS)
    write_table(members[list(CLOUD_COLUMNS)], session.out / "fig4_members.csv", CLOUD_COLUMNS)


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig4.pdf and fig4.png from the record; returns their paths, distances, and claim C3's verdicts."""
    record = panels.read_record(folder / "fig4.csv", COLUMNS)
    grid = panels.read_record(folder / "fig4_landscape.csv", GRID_COLUMNS)
    members = panels.read_record(folder / "fig4_members.csv", CLOUD_COLUMNS)
    legends = {MEMBER: f"LPE-BSR member of the 1st snapshot, INT-{chosen.settings.best_bits}"}
    shown = panels.anchors_of(members, STYLES, legends)
    window = window_around([anchor.place for anchor in shown], chosen.settings.landscape.margin)
    assert chosen.main is not None
    images = chosen.main.source.load(chosen.settings.landscape.seed).test_count
    with panels.style():
        figure = panels.radial_landscape(grid, shown, window, images)
        paths = panels.save(figure, folder, "fig4")
    lines = [
        f"{row['method']}: {row['distance_from_point']:.3f} from the {FIRST}, "
        f"{row['distance_from_plane']:.3f} off the plane, NLL {row['nll']:.5f}"
        for _, row in members.iterrows()
    ]
    return paths, lines + claim_lines(record, chosen, ["C3"])


SCRIPT = Script("fig4", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
