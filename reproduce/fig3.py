"""Figure 3: BMA against LPE-BSR around the points found by SWAG and IVON.

    python reproduce/fig3.py

For each point: NLL against ensemble size; the radial landscape plane spanned from the origin by a BMA
member and an LPE-BSR member; the plane through the point and both members, with many members of each
method projected on it; and each member's own NLL against its distance from the point.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lpe
from lpe.evaluation.landscape import Surface, grid_lines, plane_through, radial_plane, weight_vector
from lpe.records import COLUMNS, write_table
from lpe.substrates import digits
from reproduce import claims, panels
from reproduce.command import Session, run_figure
from reproduce.fig2 import BIT_STYLES, BMA_STYLE
from reproduce.landscapes import cloud_table, grid_table
from reproduce.measurements import draw_seed, measure_points, selected
from reproduce.points import point
from reproduce.scales import Scale, scale

POINTS = ("SWAG", "IVON")
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


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig3.csv, fig3_landscape.csv and fig3_members.csv."""
    chosen = session.scale
    stds = measure_points(session, POINTS)
    shape = chosen.landscape
    test = digits.load(shape.seed).test
    grids, clouds = [], []
    for name in POINTS:
        solution = point(session, name, shape.seed)
        assert solution.posterior is not None
        drawn = draw_seed(shape.seed, 0)
        methods = {
            "BMA": solution.posterior(shape.cloud, drawn),
            "LPE-BSR": lpe.LowPrecisionEnsemble(
                solution.net, lpe.Int(chosen.best_bits), shape.cloud, seed=drawn
            ),
        }
        centre, bma, low = (
            weight_vector(net) for net in (solution.net, methods["BMA"][0], methods["LPE-BSR"][0])
        )
        surface = Surface(solution.net, [test])
        for kind, plane in (("radial", radial_plane(bma, low)), ("members", plane_through(centre, bma, low))):
            places = {
                "origin": plane.coordinates(0.0 * centre),
                "point": plane.coordinates(centre),
                "BMA": plane.coordinates(bma),
                "LPE-BSR": plane.coordinates(low),
            }
            on_grid = ("origin", "BMA", "LPE-BSR") if kind == "radial" else ("point", "BMA", "LPE-BSR")
            xs, ys = (
                grid_lines([places[anchor][axis] for anchor in on_grid], shape.resolution, shape.margin)
                for axis in (0, 1)
            )
            grid = grid_table(session, surface, plane, xs, ys, f"{name}: {kind} plane")
            grids.append(grid.assign(point=name, plane=kind))
            for method, ensemble in methods.items():
                cloud = cloud_table(plane, ensemble, solution.net, surface, method)
                clouds.append(cloud.assign(point=name, plane=kind))
            itself = cloud_table(plane, [solution.net], solution.net, surface, "point")
            clouds.append(itself.assign(point=name, plane=kind))
    write_table(pd.concat(grids)[list(GRID_COLUMNS)], session.out / "fig3_landscape.csv", GRID_COLUMNS)
    write_table(pd.concat(clouds)[list(CLOUD_COLUMNS)], session.out / "fig3_members.csv", CLOUD_COLUMNS)
    write_table(selected(session, POINTS), session.out / "fig3.csv", COLUMNS)
    return {"median_posterior_std": stds}


STYLES = {
    "origin": (panels.BLACK, "X"),
    "point": (panels.BLACK, "*"),
    "BMA": (BMA_STYLE[0], BMA_STYLE[1]),
    "LPE-BSR": (panels.BLUE, "o"),
}


def _landscape(
    figure: Figure, ax: Axes, grids: pd.DataFrame, clouds: pd.DataFrame, name: str, kind: str
) -> pd.DataFrame:
    """Contours of one plane; returns the members projected on it."""
    here = grids[(grids["point"] == name) & (grids["plane"] == kind) & (grids["metric"] == "nll")]
    table = here.pivot(index="y", columns="x", values="value")
    values = table.to_numpy()
    levels = panels.nll_levels(values)
    panels.contours(
        figure, ax, table.columns.to_numpy(), table.index.to_numpy(), values, levels, "NLL (nats)"
    )
    ax.set_xlabel("x (L2 distance)")
    ax.set_ylabel("y (L2 distance)")
    return clouds[(clouds["point"] == name) & (clouds["plane"] == kind)]


def _place(members: pd.DataFrame, method: str) -> tuple[float, float]:
    first = members[(members["method"] == method) & (members["member"] == 0)].iloc[0]
    return float(first["x"]), float(first["y"])


def draw(folder: Path, scale_name: str) -> tuple[list[Path], list[str]]:
    """Draw fig3.pdf and fig3.png from the record; returns their paths and claim C2's verdicts."""
    chosen: Scale = scale(scale_name)
    record = panels.read_record(folder / "fig3.csv", COLUMNS)
    grids = panels.read_record(folder / "fig3_landscape.csv", GRID_COLUMNS)
    clouds = panels.read_record(folder / "fig3_members.csv", CLOUD_COLUMNS)
    letters = iter("abcdefgh")
    best = f"INT-{chosen.best_bits}"
    with panels.plt.rc_context(panels.STYLE):
        figure, rows = panels.plt.subplots(2, 4, figsize=(panels.TEXT_WIDTH, 4.0))
        for axes, name in zip(rows, POINTS, strict=True):
            nll = record[(record["point"] == name) & (record["metric"] == "nll")]
            single = claims.by_seed(nll, method="FP32")
            panels.nll_panel(axes[0], nll, single, chosen.bits, BIT_STYLES, BMA_STYLE)
            axes[0].set_ylabel("test NLL (nats)")
            panels.label_panel(axes[0], next(letters), f"{name}: NLL, {len(single)} seeds")

            members = _landscape(figure, axes[1], grids, clouds, name, "radial")
            places = {method: _place(members, method) for method in ("point", "BMA", "LPE-BSR")}
            panels.anchors(axes[1], {"origin": (0.0, 0.0), **places}, STYLES)
            panels.label_panel(axes[1], next(letters), f"{name}: radial plane")

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
            panels.label_panel(axes[2], next(letters), f"{name}: members")

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
            axes[3].set_xlabel("L2 distance from the point")
            axes[3].set_ylabel("member's NLL (nats)")
            axes[3].set_xlim(left=0)
            panels.label_panel(axes[3], next(letters), f"{name}: each member")
        panels.legend_below(figure, [rows[0][0], rows[0][1]], rename={"LPE-BSR": f"LPE-BSR member, {best}"})
        paths = panels.save(figure, folder, "fig3")
    return paths, [v.line() for v in claims.c2(record, f"int{chosen.best_bits}", chosen.claim_size)]


if __name__ == "__main__":
    sys.exit(run_figure("fig3", __doc__, compute, draw))
