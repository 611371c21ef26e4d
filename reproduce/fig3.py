"""Figure 3: BMA against LPE-BSR around the points found by SWAG and IVON.

    python reproduce/fig3.py

Costs about 6 minutes of one core (Intel Xeon) for the five training seeds of ``digits``, from nothing, and
under a minute after figure 2. It prints the posterior std of IVON at each seed, the paths written, and claim
C2's verdicts.

For each point: NLL against ensemble size; the radial landscape plane spanned from the origin by a BMA
member and an LPE-BSR member; the plane through the point and both members, on which the three lie apart;
each member's own NLL against its distance from the point; and many members of each method projected on that
plane, close up: they lie as far from the point as the first, nearly all of it off the plane.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import pandas as pd

from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import page, panels
from reproduce.draw.curves import nll_panel
from reproduce.draw.landscape_pictures import (
    ROW,
    cloud_panel,
    radial_panel,
    shown_as,
    singles_panel,
    through_panel,
)
from reproduce.draw.style import BIT_STYLES, BMA_STYLE, METHODS, SINGLE_STYLE
from reproduce.draw.summaries import FP32, claim_lines, noun
from reproduce.judge import intervals
from reproduce.study.landscapes import (
    BMA,
    LOW,
    PLANE_CLOUD_COLUMNS,
    PLANE_GRID_COLUMNS,
    drawn_around,
    planes_of,
    planes_words,
    point_of,
)
from reproduce.study.measurements import measure_all, posteriors
from reproduce.study.records import selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units

GRID_COLUMNS = ("point", *PLANE_GRID_COLUMNS)
CLOUD_COLUMNS = ("point", *PLANE_CLOUD_COLUMNS)


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.posteriors else "a posterior"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return units([session.scale.of_points], session.scale.posteriors, session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig3.csv, fig3_landscape.csv and fig3_members.csv."""
    measure_all(session, wanted(session))
    measure_landscapes(session)
    write_table(selected(session, wanted(session), methods=METHODS), session.out / "fig3.csv", COLUMNS)
    known = posteriors(session, session.scale.posteriors, [])
    return {"planes": planes_words(session.scale), "posteriors": known}


def measure_landscapes(session: Session) -> None:
    """Measure the planes at the landscapes' training seed; write fig3_landscape.csv and fig3_members.csv."""
    data = session.main.source.load(session.scale.settings.landscape.seed)
    grids, clouds = [], []
    for name in session.scale.posteriors:
        grid, members = planes_of(
            session, drawn_around(session, name, data), (1, 2), data, name, changes=False
        )
        # NLL is all that is drawn.
        grids.append(grid[grid["metric"] == "nll"].assign(point=name))
        clouds.append(members.assign(point=name))
    write_table(pd.concat(grids)[list(GRID_COLUMNS)], session.out / "fig3_landscape.csv", GRID_COLUMNS)
    write_table(pd.concat(clouds)[list(CLOUD_COLUMNS)], session.out / "fig3_members.csv", CLOUD_COLUMNS)


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig3.pdf and fig3.png from the record; returns their paths and claim C2's verdicts."""
    record = panels.read_record(folder / "fig3.csv", COLUMNS)
    grids = panels.read_record(folder / "fig3_landscape.csv", GRID_COLUMNS)
    clouds = panels.read_record(folder / "fig3_members.csv", CLOUD_COLUMNS)
    letters = panels.letters()
    best, nats = chosen.settings.best_bits, f"(nats per {noun(chosen)})"
    with panels.style():
        rows = 2 * len(chosen.posteriors)
        figure, axes = panels.plt.subplots(rows, 3, figsize=(page.width(), ROW * rows + 0.45))
        for place, name in enumerate(chosen.posteriors):
            curve, radial, through, single, *around = axes[2 * place : 2 * place + 2].flat
            marks = {point_of(name): SINGLE_STYLE, BMA: BMA_STYLE, LOW: BIT_STYLES[best]}
            legends = {point_of(name): "the point", LOW: f"{LOW}, INT-{best}"}
            shown = shown_as(marks, legends, LOW, "hollow where it may lie on the point")
            grid, members = grids[grids["point"] == name], clouds[clouds["point"] == name]

            nll = record[(record["point"] == name) & (record["metric"] == "nll")]
            nll_panel(curve, nll, intervals.by_seed(nll, method=FP32), chosen.settings.bits)
            curve.set_ylabel(f"test NLL {nats}")
            panels.label_panel(curve, next(letters), f"{name}: ensembles")
            radial_panel(figure, radial, grid, members, shown, noun(chosen))
            panels.label_panel(radial, next(letters), f"{name}: radial plane")
            through_panel(figure, through, grid, members, shown, noun(chosen))
            panels.label_panel(through, next(letters), f"{name}: plane through three")

            singles_panel(single, members, shown, noun(chosen))
            panels.label_panel(single, next(letters), f"{name}: single members")
            around[0].set_ylabel("y (L2 units)")
            for ax, each in zip(around, shown[1:], strict=True):
                cloud_panel(ax, members, each)
                panels.label_panel(ax, next(letters), f"{name}: {each.name}s")
        panels.legend_below(figure, [axes[0][0], axes[0][2], axes[0][1]])
        paths = panels.save(figure, folder, "fig3")
    return paths, claim_lines(record, chosen, ["C2"])


SCRIPT = Script("fig3", __doc__, lacks, wanted, compute, draw, of_points=True)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
