"""Pictures of the planes that ``reproduce.study.landscapes`` measures, and of the members around a point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lpe.errors import InputError
from reproduce.draw import page, panels
from reproduce.draw.style import Mark
from reproduce.study.landscapes import RADIAL, THROUGH

FAR = 3.0
"""Nats: above, a landscape only says that it is far away."""
ROW = 1.6
"""Inches: the height of a row of panels."""


@dataclass(frozen=True)
class Shown:
    """A solution that a picture marks.

    Args:
        name: in the record. legend: in the legend. mark: its colour and marker.
        ring: whether the mark is drawn around another one, which it may lie on in a radial plane.
        hollow: what the legend says of that ring; "": as of the mark.
    """

    name: str
    legend: str
    mark: Mark
    ring: bool
    hollow: str = ""


def on_plane(table: pd.DataFrame, plane: str) -> pd.DataFrame:
    """Return the rows of one plane; InputError without any."""
    here = table[table["plane"] == plane]
    if here.empty:
        raise InputError(f"the landscape's record has no plane {plane!r}; run without --plot-only")
    return here


def first_of(members: pd.DataFrame, name: str) -> pd.Series:
    """Return the row of a solution; InputError without it."""
    rows = members[(members["method"] == name) & (members["member"] == 0)]
    if rows.empty:
        raise InputError(f"the landscape's record has no member of {name!r}; run without --plot-only")
    return rows.iloc[0]


def off_plane(members: pd.DataFrame) -> str:
    """Say how far members lie from their plane, such as "8.7–8.8 off the plane"."""
    low, high = (f"{end:.2g}" for end in members["distance_from_plane"].agg(["min", "max"]))
    return f"{low if low == high else f'{low}–{high}'} off the plane"


def _mark(axes: Axes, members: pd.DataFrame, shown: Sequence[Shown]) -> list[tuple[float, float]]:
    """Mark the solutions of a plane; returns their places."""
    places = []
    for each in shown:
        row = first_of(members, each.name)
        colour, marker = each.mark
        places.append((float(row["x"]), float(row["y"])))
        axes.plot(
            *places[-1],
            marker=marker,
            color="none" if each.ring else colour,
            markeredgecolor=colour if each.ring else "white",
            markeredgewidth=1.2 if each.ring else 0.6,
            markersize={"*": 8.5}.get(marker, 8.5 if each.ring else 5.5),
            linestyle="none",
            label=(each.ring and each.hollow) or each.legend,
            zorder=5 if each.ring else 6,
        )
    return places


def loss_panel(
    figure: Figure, axes: Axes, grid: pd.DataFrame, members: pd.DataFrame, shown: Sequence[Shown], noun: str
) -> None:
    """Draw the NLL on one plane, with its colour bar, and its solutions.

    Args:
        grid, members: the record's rows of the plane. noun: what a nat is per.
    """
    xs, ys, nll = panels.field(grid, "nll")
    # A few points of the grid are worth no level.
    least, most = float(np.quantile(nll, 0.02)), min(float(nll.max()), FAR)
    if most > 4 * least:
        levels = panels.round_levels(least, most, (1, 2, 5) if most > 30 * least else (1, 1.5, 2, 3, 5, 7))
    else:
        levels = np.asarray(MaxNLocator(9, steps=[1, 2, 5, 10]).tick_values(least, most))
    places = _mark(axes, members, shown)
    if (grid["plane"] == RADIAL).all():
        axes.plot(0, 0, "X", color=panels.BLACK, markeredgecolor="white", markeredgewidth=0.6, label="origin")
        places.append((0.0, 0.0))
    clipped = np.maximum(nll, levels[0] + 1e-3 * (levels[1] - levels[0]))
    filled = panels.filled_contours(axes, xs, ys, clipped, levels, "cividis_r", list(levels[1::2]), places)
    bar = figure.colorbar(filled, ax=axes, fraction=0.06, pad=0.03, aspect=18)
    panels.finish_bar(bar, f"NLL (nats per {noun})", levels[:: 1 + len(levels) // 7])
    axes.set_xlabel("x (L2 units)")
    _few_ticks(axes)


def _few_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def radial_panel(
    figure: Figure, axes: Axes, grid: pd.DataFrame, members: pd.DataFrame, shown: Sequence[Shown], noun: str
) -> None:
    """Draw the NLL on the radial plane, and say below how far the solution that it misses lies from it.

    On this plane, whose extent is the whole way from the origin, two solutions may lie on one place: one of
    them is a ring.
    """
    here = on_plane(members, RADIAL)
    loss_panel(figure, axes, on_plane(grid, RADIAL), here, shown, noun)
    axes.set_ylabel("y (L2 units)")
    for each in shown:
        row = first_of(here, each.name)
        # Float error of a solution that spans the plane.
        if row["distance_from_plane"] > 1e-3:
            text = f"x (L2 units)\n{each.name}: {row['distance_from_plane']:.2g} off the plane"
            axes.set_xlabel(text, loc="left")


def through_panel(
    figure: Figure, axes: Axes, grid: pd.DataFrame, members: pd.DataFrame, shown: Sequence[Shown], noun: str
) -> None:
    """Draw the NLL on the plane through the three solutions, which lie apart on it."""
    apart = [Shown(each.name, each.legend, each.mark, False) for each in shown]
    loss_panel(figure, axes, on_plane(grid, THROUGH), on_plane(members, THROUGH), apart, noun)


def cloud_panel(axes: Axes, members: pd.DataFrame, shown: Shown) -> None:
    """Draw members projected on the plane through the three solutions, close up around the point.

    The point is where two thin lines cross, so that it hides no member. The first member, which spans the
    plane, is not shown.
    """
    here = on_plane(members, THROUGH)
    rest = here[(here["method"] == shown.name) & (here["member"] > 0)]
    colour, marker = shown.mark
    for draw_line in (axes.axhline, axes.axvline):
        draw_line(0.0, color=panels.BLACK, linewidth=0.5, zorder=1)
    axes.scatter(rest["x"], rest["y"], s=9, c=colour, marker=marker, linewidths=0.3, edgecolors="white")
    for limit, values in ((axes.set_xlim, rest["x"]), (axes.set_ylim, rest["y"])):
        reach = 1.15 * max(float(values.abs().max()), 1e-6)
        limit(-reach, reach)
    axes.set_xlabel(f"x (L2 units)\n{off_plane(rest)}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(2, symmetric=True))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def singles_panel(axes: Axes, members: pd.DataFrame, shown: Sequence[Shown], noun: str) -> None:
    """Draw each member's own NLL against its distance from the point."""
    here = on_plane(members, THROUGH)
    for each in shown:
        own = here[here["method"] == each.name]
        colour, marker = each.mark
        style: dict[str, Any] = {"linewidths": 0.3, "edgecolors": "white", "clip_on": False, "zorder": 3}
        size = 45 if marker == "*" else 9
        axes.scatter(own["distance_from_point"], own["nll"], s=size, c=colour, marker=marker, **style)
    axes.set_xlabel("distance from the point (L2)")
    axes.set_xlim(left=0)
    axes.set_ylabel(f"NLL (nats per {noun})")


def changes_picture(
    grid: pd.DataFrame,
    members: pd.DataFrame,
    shown: Sequence[Shown],
    noun: str,
    examples: int,
    corner: Callable[[Axes], str],
    further: int,
) -> tuple[Figure, list[Axes]]:
    """Draw three rows of three panels: losses, and what changes from each solution.

    (a) the loss on the radial plane; (b) the loss on the plane through the three solutions; (c) the corner's;
    (d–f) disagreement with each solution on that plane; (g–i) KL divergence from each.

    Args:
        grid, members: the landscape's records. shown: three solutions. examples: how many the landscape saw:
            one of them is the least disagreement. corner: draws the top right panel and returns its title.
            further: empty panels below, 0 or 3.

    Returns:
        The figure, and the further panels, whose letters are j, k and l.
    """
    rows = 3 + further // 3
    figure = panels.plt.figure(figsize=(page.width(), rows * ROW + 0.45))
    cells = figure.add_gridspec(rows, 3)
    radial, through, third = (figure.add_subplot(cells[0, column]) for column in range(3))
    radial_panel(figure, radial, grid, members, shown, noun)
    panels.label_panel(radial, "a", "loss, radial plane")
    through_panel(figure, through, grid, members, shown, noun)
    panels.label_panel(through, "b", "loss, plane through three")
    panels.label_panel(third, "c", corner(third))
    letters = iter("defghi")

    here, places_of = on_plane(grid, THROUGH), on_plane(members, THROUGH)
    apart = [Shown(each.name, each.legend, each.mark, False) for each in shown]
    for row, metric, title, unit in (
        (1, "disagreement", "disagreement with", f"share of {noun}s"),
        (2, "kl", "KL divergence from", f"nats per {noun}"),
    ):
        fields = [panels.field(here, f"{metric} {each.name}") for each in shown]
        least = 1 / examples if metric == "disagreement" else 1e-3
        most = min(max(float(values.max()) for *_, values in fields), FAR)
        fine = (1, 2, 5) if most > 30 * least else (1, 1.5, 2, 3, 5, 7)
        levels = panels.round_levels(least, most, fine)
        line = []
        for column, (each, (xs, ys, values)) in enumerate(zip(shown, fields, strict=True)):
            ax = figure.add_subplot(cells[row, column])
            line.append(ax)
            places = _mark(ax, places_of, apart)
            filled = panels.filled_contours(ax, xs, ys, values, levels, "PuBu", list(levels[1::2]), places)
            panels.label_panel(ax, next(letters), f"{title}\n{each.name}")
            ax.set_xlabel("x (L2 units)")
            _few_ticks(ax)
        line[0].set_ylabel("y (L2 units)")
        bar = figure.colorbar(filled, ax=line, fraction=0.03, pad=0.01, aspect=18)
        panels.finish_bar(bar, unit, levels)
    panels.legend_below(figure, [through, radial, third])
    return figure, [figure.add_subplot(cells[3, column]) for column in range(further)]


def shown_as(
    marks: Mapping[str, Mark], legends: Mapping[str, str], ring: str, hollow: str = ""
) -> list[Shown]:
    """List solutions to show.

    Args:
        marks: by name. legends: what the legend says, where not the name. ring: which is a ring. hollow: what
            the legend says of it there.
    """
    return [
        Shown(name, legends.get(name, name), mark, name == ring, hollow * (name == ring))
        for name, mark in marks.items()
    ]
