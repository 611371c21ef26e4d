"""Figure 6: the radial landscape of IVON's point, a BMA member and an LPE-BSR member.

    python reproduce/fig6.py

Costs about 4 minutes of one core (Intel Xeon) for the five training seeds of ``digits``, from nothing, and
half a minute after figure 2. It prints how far the members lie from the plane and from the point, the paths
written, and claim C5's verdicts.

The radial plane is spanned from the origin by the first BMA member and the first LPE-BSR member. Everything
else is drawn on the plane through IVON's point and the two, on which the three lie apart: loss, and what
changes from each, the share of test examples decided otherwise (disagreement) and the KL divergence. Many
members of each method are projected on that plane, close up. Claim C5 compares the diversity (ambiguity) of
whole ensembles, which a panel shows.
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

from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.curves import curves_at
from reproduce.draw.landscape_pictures import changes_picture, cloud_panel, on_plane, shown_as, singles_panel
from reproduce.draw.style import BIT_STYLES, BMA_STYLE, SINGLE_STYLE
from reproduce.draw.summaries import claim_lines, noun
from reproduce.judge import intervals
from reproduce.study.landscapes import (
    BMA,
    LOW,
    PLANE_CLOUD_COLUMNS,
    PLANE_GRID_COLUMNS,
    THROUGH,
    drawn_around,
    planes_examples,
    planes_of,
    planes_words,
    point_of,
)
from reproduce.study.measurements import measure_all, posteriors
from reproduce.study.records import selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units

POSTERIOR = "IVON"
METHODS = ("FP32", "LPE-BSR", "BMA")


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if "IVON" in chosen.posteriors else "IVON's posterior"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows: claim C5's."""
    return units([session.scale.of_points], ["IVON"], session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig6.csv, fig6_landscape.csv and fig6_members.csv."""
    measure_all(session, wanted(session))
    measure_landscape(session)
    write_table(selected(session, wanted(session), methods=METHODS), session.out / "fig6.csv", COLUMNS)
    known = posteriors(session, ["IVON"], [])
    return {
        "landscape_bits": session.scale.settings.best_bits,
        "planes": planes_words(session.scale),
        "posteriors": known,
    }


def measure_landscape(session: Session) -> None:
    """Measure the plane at the landscapes' training seed; write fig6_landscape.csv and fig6_members.csv."""
    seed = session.scale.settings.landscape.seed
    data = session.main.source.load(seed)
    solutions = drawn_around(session, POSTERIOR, data)
    grid, members = planes_of(session, solutions, (1, 2), data, POSTERIOR, changes=True)
    write_table(grid, session.out / "fig6_landscape.csv", PLANE_GRID_COLUMNS)
    write_table(members, session.out / "fig6_members.csv", PLANE_CLOUD_COLUMNS)


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig6.pdf and fig6.png from the record; returns their paths, distances, and claim C5's verdicts."""
    record = panels.read_record(folder / "fig6.csv", COLUMNS)
    grid = panels.read_record(folder / "fig6_landscape.csv", PLANE_GRID_COLUMNS)
    members = panels.read_record(folder / "fig6_members.csv", PLANE_CLOUD_COLUMNS)
    best = chosen.settings.best_bits
    marks = {point_of(POSTERIOR): SINGLE_STYLE, BMA: BMA_STYLE, LOW: BIT_STYLES[best]}
    legends = {LOW: f"{LOW}, INT-{best}"}
    shown = shown_as(marks, legends, LOW, "hollow in (a), where it may lie on the point")
    examples = planes_examples(chosen)

    def corner(axes: Axes) -> str:
        _ambiguity_panel(axes, record, chosen)
        return "ensembles: ambiguity"

    with panels.style():
        figure, further = changes_picture(grid, members, shown, noun(chosen), examples, corner, 3)
        for letter, axes, each in zip("jk", further[:2], shown[1:], strict=True):
            cloud_panel(axes, members, each)
            if panels.leftmost(axes):
                axes.set_ylabel("y (L2 units)")
            panels.label_panel(axes, letter, f"{each.name}s")
        singles_panel(further[2], members, shown, noun(chosen))
        panels.label_panel(further[2], "l", "single members")
        paths = panels.save(figure, folder, "fig6")
    lines = []
    for name, here in on_plane(members, THROUGH).groupby("method", sort=False):
        off, away = here["distance_from_plane"], here["distance_from_point"]
        lines.append(
            f"{name}, {len(here)}: {away.min():.3f} to {away.max():.3f} from the point, {off.min():.3f} to "
            f"{off.max():.3f} off the plane, NLL {here['nll'].min():.5f} to {here['nll'].max():.5f}"
        )
    return paths, lines + claim_lines(record, chosen, ["C5"])


def _ambiguity_panel(axes: Axes, record: pd.DataFrame, chosen: Scale) -> None:
    """Draw ambiguity against size, with intervals over seeds, and what is half to twice the posterior's."""
    rows = record[(record["metric"] == "ambiguity") & (record["size"] > 1)]
    for equal, label, style in curves_at(rows, chosen.settings.bits):
        here = rows
        for column, value in equal.items():
            here = here[here[column] == value]
        by_size = {int(str(size)): intervals.by_seed(of) for size, of in here.groupby("size")}
        sizes, means = list(by_size), np.array([values.mean() for values in by_size.values()])
        axes.plot(sizes, means, label=label, **{"zorder": 3, **style})
        ends = np.array([intervals.student_interval(values.to_numpy()) for values in by_size.values()])
        if np.isfinite(ends).all() and (ends > 0).all():
            axes.fill_between(sizes, *ends.T, color=style["color"], alpha=0.18, linewidth=0)
        if equal == {"method": "BMA"}:
            axes.fill_between(
                sizes, means / 2, 2 * means, color="0.9", linewidth=0, zorder=0, label="half to twice BMA's"
            )
    axes.set_yscale("log")
    panels.plain_log(axes.yaxis)
    axes.set_xlabel("members")
    axes.set_ylabel(f"nats per {noun(chosen)}")


SCRIPT = Script("fig6", __doc__, lacks, wanted, compute, draw, of_points=True)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
