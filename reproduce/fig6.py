"""Figure 6: the radial landscape of IVON's point, a BMA member and an LPE-BSR member.

    python reproduce/fig6.py

Costs about 5 minutes on one core for the five training seeds of ``digits``, from nothing, and half a minute
after figure 2. It prints how far the anchors and the clouds lie from the plane and from the point, the paths
written, and claim C5's verdicts.

The plane is figure 3's: spanned from the origin by the first BMA member and the first LPE-BSR member, so that
neither method's member is shown by its shadow; IVON's point is projected on it. Loss, and what changes from
each anchor: the share of test images decided otherwise (disagreement) and the KL divergence. Many members of
each method are projected on the plane. Claim C5 compares the diversity of whole ensembles.
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
from reproduce.draw.style import BMA_STYLE
from reproduce.draw.summaries import claim_lines
from reproduce.study.landscapes import CLOUD_COLUMNS, GRID_COLUMNS, cloud_table, radial_table, window_around
from reproduce.study.measurements import measure_all, posterior_stds
from reproduce.study.records import selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, draw_seed, units

POINT, BMA, LOW = "IVON's point", "BMA member", "LPE-BSR member"
STYLES = {
    POINT: (panels.BLACK, "*"),
    BMA: (BMA_STYLE[0], BMA_STYLE[1]),
    LOW: (panels.BLUE, "ring"),
}
METHODS = ("FP32", "LPE-BSR", "BMA")


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if "IVON" in chosen.posteriors else "IVON's posterior"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows: claim C5's."""
    return units([session.scale.main], ["IVON"], session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig6.csv, fig6_landscape.csv and fig6_members.csv."""
    measure_all(session, wanted(session))
    measure_landscape(session)
    write_table(selected(session, wanted(session), methods=METHODS), session.out / "fig6.csv", COLUMNS)
    stds = posterior_stds(session, ["IVON"])
    return {"landscape_bits": session.scale.settings.best_bits, "median_posterior_std": stds}


def measure_landscape(session: Session) -> None:
    """Measure the plane at the landscapes' training seed; write fig6_landscape.csv and fig6_members.csv."""
    chosen = session.scale
    shape = chosen.settings.landscape
    data = session.main.source.load(shape.seed)
    solution = session.main.point(session, "IVON", shape.seed)
    assert solution.posterior is not None
    drawn = draw_seed(shape.seed, 0)
    system = lpe.Int(chosen.settings.best_bits)
    methods = {
        BMA: solution.posterior(shape.cloud, drawn),
        LOW: lpe.LowPrecisionEnsemble(solution.net, system, shape.cloud, seed=drawn, batches=data.statistics),
    }
    anchors = {POINT: weight_vector(solution.net)}
    anchors |= {name: weight_vector(ensemble[0]) for name, ensemble in methods.items()}
    plane = radial_plane(anchors[BMA], anchors[LOW])
    surface = Surface(solution.net, data.test, anchors, data.statistics or ())
    members = pd.concat(
        cloud_table(plane, nets, solution.net, surface, name)
        for name, nets in ((POINT, [solution.net]), *methods.items())
    )
    seen = f"test {session.main.example}s of seed {shape.seed}"
    grid = radial_table(session, surface, plane, anchors, seen, "radial plane")
    write_table(grid[list(GRID_COLUMNS)], session.out / "fig6_landscape.csv", GRID_COLUMNS)
    write_table(members[list(CLOUD_COLUMNS)], session.out / "fig6_members.csv", CLOUD_COLUMNS)


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig6.pdf and fig6.png from the record; returns their paths, distances, and claim C5's verdicts."""
    record = panels.read_record(folder / "fig6.csv", COLUMNS)
    grid = panels.read_record(folder / "fig6_landscape.csv", GRID_COLUMNS)
    members = panels.read_record(folder / "fig6_members.csv", CLOUD_COLUMNS)
    shown = panels.anchors_of(members, STYLES, {LOW: f"LPE-BSR member, INT-{chosen.settings.best_bits}"})
    window = window_around([anchor.place for anchor in shown], chosen.settings.landscape.margin)
    assert chosen.main is not None
    images = chosen.main.source.load(chosen.settings.landscape.seed).test_count
    # The first member of each method is the anchor.
    clouds = {name: members[(members["method"] == name) & (members["member"] > 0)] for name in (BMA, LOW)}
    with panels.style():
        figure = panels.radial_landscape(
            grid,
            shown,
            window,
            images,
            {_legend(name, cloud): (STYLES[name][0], cloud) for name, cloud in clouds.items()},
        )
        paths = panels.save(figure, folder, "fig6")
    lines = []
    for name, here in members.groupby("method", sort=False):
        off, away = here["distance_from_plane"], here["distance_from_point"]
        lines.append(
            f"{name}, {len(here)}: {away.min():.3f} to {away.max():.3f} from the point, {off.min():.3f} to "
            f"{off.max():.3f} off the plane, NLL {here['nll'].min():.5f} to {here['nll'].max():.5f}"
        )
    return paths, lines + claim_lines(record, chosen, ["C5"])


def _legend(name: str, cloud: pd.DataFrame) -> str:
    low, high = (
        f"{off:.1f}" for off in (cloud["distance_from_plane"].min(), cloud["distance_from_plane"].max())
    )
    return f"{name}s (inset): {low if low == high else f'{low}–{high}'} off plane"


SCRIPT = Script("fig6", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
