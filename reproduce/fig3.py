"""Figure 3: BMA against LPE-BSR around the points found by SWAG and IVON.

    python reproduce/fig3.py

Costs about 2 minutes on 2 cores for one training seed of ``digits``, from nothing, and under a minute after
figure 2. It prints the posterior std of IVON at each seed, the paths written, and claim C2's verdicts.

For each point: NLL against ensemble size; the radial landscape plane spanned from the origin by a BMA
member and an LPE-BSR member; the plane through the point and both members, with many members of each
method projected on it; and each member's own NLL against its distance from the point.
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lpe
from lpe.evaluation.landscape import Surface, grid_lines, plane_through, radial_plane, weight_vector
from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.style import BIT_STYLES, BMA_STYLE, METHODS
from reproduce.draw.summaries import claim_lines
from reproduce.judge import intervals
from reproduce.study.landscapes import cloud_table, grid_table
from reproduce.study.measurements import measure_all, posterior_stds
from reproduce.study.records import selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, draw_seed, units

GRID_COLUMNS = ("point", "plane", "x", "y", "metric", "value")
CLOUD_COLUMNS = (
    "point",
    "plane",
    "method",
    "member",
    "x",
    "y",
    "distance_from_plane",
    "distance_from_point",
    "nll",
)


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.posteriors else "a posterior"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return units([session.scale.main], session.scale.posteriors, session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig3.csv, fig3_landscape.csv and fig3_members.csv."""
    chosen = session.scale
    measure_all(session, wanted(session))
    shape = chosen.settings.landscape
    data = session.main.source.load(shape.seed)
    seen = f"test {session.main.example}s of seed {shape.seed}"
    grids, clouds = [], []
    for name in chosen.posteriors:
        solution = session.main.point(session, name, shape.seed)
        assert solution.posterior is not None
        drawn = draw_seed(shape.seed, 0)
        methods = {
            "BMA": solution.posterior(shape.cloud, drawn),
            "LPE-BSR": lpe.LowPrecisionEnsemble(
                solution.net,
                lpe.Int(chosen.settings.best_bits),
                shape.cloud,
                seed=drawn,
                batches=data.statistics,
            ),
        }
        centre, bma, low = (
            weight_vector(net) for net in (solution.net, methods["BMA"][0], methods["LPE-BSR"][0])
        )
        surface = Surface(solution.net, data.test, statistics=data.statistics or ())
        for kind, plane in (("radial", radial_plane(bma, low)), ("members", plane_through(centre, bma, low))):
            itself = cloud_table(plane, [solution.net], solution.net, surface, "point")
            drawn_clouds = [
                cloud_table(plane, ensemble.in_turn(), solution.net, surface, method)
                for method, ensemble in methods.items()
            ]
            projected = pd.concat([itself, *drawn_clouds]).assign(point=name, plane=kind)
            clouds.append(projected)
            # The three weight vectors that span the plane lie on the grid: the origin of the plane and
            # the first member of each method. The members' plane is drawn as far as its members reach.
            firsts = projected[(projected["member"] == 0) & (projected["method"] != "point")]
            xs, ys = (
                grid_lines(
                    [0.0, *firsts[axis]],
                    shape.resolution,
                    shape.margin,
                    reach=projected[axis].tolist() if kind == "members" else (),
                )
                for axis in ("x", "y")
            )
            grid = grid_table(session, surface, plane, xs, ys, seen, f"{name}: {kind} plane")
            grids.append(grid.assign(point=name, plane=kind))
    write_table(pd.concat(grids)[list(GRID_COLUMNS)], session.out / "fig3_landscape.csv", GRID_COLUMNS)
    write_table(pd.concat(clouds)[list(CLOUD_COLUMNS)], session.out / "fig3_members.csv", CLOUD_COLUMNS)
    write_table(selected(session, wanted(session), methods=METHODS), session.out / "fig3.csv", COLUMNS)
    return {"median_posterior_std": posterior_stds(session, session.scale.posteriors)}


STYLES = {
    "origin": (panels.BLACK, "X"),
    "point": (panels.BLACK, "*"),
    "BMA": (BMA_STYLE[0], BMA_STYLE[1]),
    "LPE-BSR": (panels.BLUE, "o"),
}


def _landscape(
    figure: Figure, ax: Axes, grids: pd.DataFrame, clouds: pd.DataFrame, name: str, kind: str
) -> pd.DataFrame:
    """Draw contours of one plane; return the members projected on it."""
    here = grids[(grids["point"] == name) & (grids["plane"] == kind) & (grids["metric"] == "nll")]
    table = here.pivot(index="y", columns="x", values="value")
    values = table.to_numpy()
    levels = panels.nll_levels(values)
    panels.contours(figure, ax, table.columns.to_numpy(), table.index.to_numpy(), values, levels, "NLL, nats")
    ax.set_xlabel("x (L2 units)")
    ax.set_ylabel("y (L2 units)")
    return clouds[(clouds["point"] == name) & (clouds["plane"] == kind)]


def _place(members: pd.DataFrame, method: str) -> tuple[float, float]:
    first = members[(members["method"] == method) & (members["member"] == 0)].iloc[0]
    return float(first["x"]), float(first["y"])


def _off_plane(members: pd.DataFrame, method: str) -> str:
    # The method's first member spans the plane, so it lies in it.
    off = members[(members["method"] == method) & (members["member"] > 0)]["distance_from_plane"]
    low, high = f"{off.min():.1f}", f"{off.max():.1f}"
    return f"{method} {low}" if low == high else f"{method} {low}–{high}"


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig3.pdf and fig3.png from the record; returns their paths and claim C2's verdicts."""
    record = panels.read_record(folder / "fig3.csv", COLUMNS)
    grids = panels.read_record(folder / "fig3_landscape.csv", GRID_COLUMNS)
    clouds = panels.read_record(folder / "fig3_members.csv", CLOUD_COLUMNS)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    best = f"INT-{chosen.settings.best_bits}"
    with panels.style():
        figure, rows = panels.plt.subplots(
            len(chosen.posteriors),
            4,
            figsize=(panels.TEXT_WIDTH, 1.9 * len(chosen.posteriors)),
            width_ratios=(1.1, 1, 1, 1),
            squeeze=False,
        )
        for axes, name in zip(rows, chosen.posteriors, strict=True):
            nll = record[(record["point"] == name) & (record["metric"] == "nll")]
            single = intervals.by_seed(nll, method="FP32")
            panels.nll_panel(axes[0], nll, single, chosen.settings.bits, BIT_STYLES, BMA_STYLE)
            axes[0].set_ylabel("test NLL (nats)")
            panels.label_panel(axes[0], next(letters), f"{name}: NLL")

            members = _landscape(figure, axes[1], grids, clouds, name, "radial")
            places = {method: _place(members, method) for method in ("point", "BMA", "LPE-BSR")}
            panels.anchors(axes[1], {"origin": (0.0, 0.0), **places}, STYLES)
            panels.label_panel(axes[1], next(letters), f"{name}: radial")

            members = _landscape(figure, axes[2], grids, clouds, name, "members")
            for method in ("BMA", "LPE-BSR"):
                cloud = members[members["method"] == method]
                colour, marker = STYLES[method]
                axes[2].scatter(
                    cloud["x"], cloud["y"], s=7, c=colour, marker=marker, linewidths=0.3, edgecolors="white"
                )
            panels.anchors(
                axes[2], {method: _place(members, method) for method in ("point", "BMA", "LPE-BSR")}, STYLES
            )
            off = ", ".join(_off_plane(members, method) for method in ("BMA", "LPE-BSR"))
            axes[2].set_xlabel(f"x (L2 units)\noff the plane: {off}")
            panels.label_panel(axes[2], next(letters), f"{name}: clouds")

            for method in ("BMA", "LPE-BSR", "point"):
                cloud = members[members["method"] == method]
                colour, marker = STYLES[method]
                size = 9 if method != "point" else 40
                axes[3].scatter(
                    cloud["distance_from_point"],
                    cloud["nll"],
                    s=size,
                    c=colour,
                    marker=marker,
                    linewidths=0.3,
                    edgecolors="white",
                )
            axes[3].set_xlabel("L2 from point")
            axes[3].set_ylabel("NLL (nats)")
            axes[3].set_xlim(left=0)
            panels.label_panel(axes[3], next(letters), f"{name}: single")
        panels.legend_below(figure, [rows[0][0], rows[0][1]], rename={"LPE-BSR": f"LPE-BSR member, {best}"})
        paths = panels.save(figure, folder, "fig3")
    return paths, claim_lines(record, chosen, ["C2"])


SCRIPT = Script("fig3", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
