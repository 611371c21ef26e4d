"""Figure 1: the idea, on a plane of two weights of a trained network.

    python reproduce/fig1.py

Costs about a minute of one core (Intel Xeon) at ``digits``, its SGD point trained from nothing. It prints
which two weights span the plane, the NLL of every point shown, and the paths written.

(a) the trained point on the loss surface; (b) the number system's grid; (c) the nearest grid point, which RTN
takes; (d) the grid points around the trained point, of which BSR takes each with its probability.

Everything but the two weights is as trained. They are weights of one output channel, so they share a step
and the grid is square. They are chosen on the training images alone, in two steps. Of every output channel:
the two weights whose random rounding should raise the NLL the most, to second order, by squared gradients. Of
the ``CANDIDATES`` channels that come first by this: the pair whose random rounding does raise the training
NLL the most in the mean. So it is no typical pair: most pairs of weights change the NLL by far less.

The number system is the coarsest of the scale's bit widths, at which the steps show best.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MultipleLocator

import lpe
from lpe.evaluation.landscape import Surface, grid_lines, weight_vector
from lpe.records import write_table
from reproduce.command import Script, run_figure
from reproduce.draw import page, panels
from reproduce.draw.style import BIT_STYLES, RTN_MARKER, SINGLE_STYLE, Mark
from reproduce.draw.summaries import noun
from reproduce.study.landscapes import (
    GRID_COLUMNS,
    WeightPair,
    expected_rise,
    grid_table,
    planes_batches,
    planes_words,
    rounding_pairs,
    squared_gradients,
)
from reproduce.study.scale import Batch, Scale, Split
from reproduce.study.session import Session
from reproduce.study.units import Unit

CANDIDATES = 40
"""Pairs whose rise is measured; there is one of every output channel, hundreds in all."""
SEARCHED = 1500
"""Training examples, the first, on which it is: budget; a pair takes four passes over them."""
AROUND = 1.2
"""Steps that panel (d) shows on either side of the grid points around the trained point."""
BEYOND = 0.5
"""Steps that the other panels show beyond the grid, which ends at −q and q."""

POINT_COLUMNS = (
    "what",
    "x_code",
    "y_code",
    "x",
    "y",
    "probability",
    "nll",
    "tensor",
    "channel",
    "x_input",
    "y_input",
    "step",
    "bits",
)
TRAINED, NEAREST, NEIGHBOUR = "trained", "nearest", "neighbour"


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    if chosen.main is None:
        return "a main network"
    return "" if chosen.main.has_training else "training examples"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows: none, it measures a landscape only."""
    return []


def compute(session: Session) -> dict[str, object]:
    """Find the plane and measure it; write fig1.csv, its points, and fig1_landscape.csv, its grid."""
    shape = session.scale.settings.landscape
    main = session.main
    net = main.point(session, main.estimate, shape.seed).net
    data = main.source.load(shape.seed)
    assert data.train is not None
    weights = weight_vector(net)
    system = lpe.Int(min(session.scale.settings.bits))
    pair = _searched(session, net, system, data.train, data.statistics or ())
    surface = Surface(net, planes_batches(data), statistics=data.statistics or ())
    plane = pair.plane(weights)

    rows = [_row(pair, TRAINED, pair.codes, pair.values, 0.0, surface.measure(weights)["nll"])]
    for codes, probability in pair.neighbours().items():
        place = pair.place(codes)
        nll = surface.measure(plane.at(*place))["nll"]
        rows.append(_row(pair, NEIGHBOUR, codes, place, probability, nll))
        if codes == pair.nearest():
            rows.append(_row(pair, NEAREST, codes, place, 1.0, nll))
    points = pd.DataFrame(rows).assign(bits=system.bits)

    lines: list[np.ndarray] = []
    for letter, code in (("x", pair.codes[0]), ("y", pair.codes[1])):
        low = math.floor(code) - AROUND
        reach = [-system.largest_code - BEYOND, system.largest_code + BEYOND, low, low + 1 + 2 * AROUND]
        around = [edge * pair.step for edge in reach]
        lines.append(grid_lines(sorted(set(points[letter])), shape.resolution, 0.0, around))
    seen = planes_words(session.scale)
    surface = session.ahead(surface, plane, *lines)
    grid = grid_table(session, surface, plane, lines[0], lines[1], seen, "plane of two weights")
    grid = grid[grid["metric"] == "nll"]
    write_table(grid[list(GRID_COLUMNS)], session.out / "fig1_landscape.csv", GRID_COLUMNS)
    write_table(points[list(POINT_COLUMNS)], session.out / "fig1.csv", POINT_COLUMNS)
    return {"candidates": CANDIDATES, "planes": planes_words(session.scale)}


def _searched(
    session: Session, net: torch.nn.Module, system: lpe.Int, train: Split, statistics: Sequence[Batch]
) -> WeightPair:
    candidates = rounding_pairs(net, system, squared_gradients(net, *train), CANDIDATES)
    inputs, labels = train
    searched = (inputs[:SEARCHED], labels[:SEARCHED])
    surface, weights = Surface(net, [searched], statistics=statistics), weight_vector(net)
    with session.progress(len(candidates), "pairs of weights") as bar:

        def rise(pair: WeightPair) -> float:
            bar.update()
            return expected_rise(surface, weights, pair)

        return max(candidates, key=rise)


def _row(
    pair: WeightPair,
    what: str,
    codes: tuple[float, float],
    place: tuple[float, float],
    probability: float,
    nll: float,
) -> dict[str, object]:
    return {
        "what": what,
        "x_code": float(codes[0]),
        "y_code": float(codes[1]),
        "x": place[0],
        "y": place[1],
        "probability": probability,
        "nll": nll,
        "tensor": pair.name,
        "channel": pair.channel,
        "x_input": pair.inputs[0],
        "y_input": pair.inputs[1],
        "step": pair.step,
    }


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig1.pdf and fig1.png from the record; returns their paths, the plane and its points in words."""
    points = panels.read_record(folder / "fig1.csv", POINT_COLUMNS)
    grid = panels.read_record(folder / "fig1_landscape.csv", GRID_COLUMNS)
    step, bits = float(points["step"].iloc[0]), int(points["bits"].iloc[0])
    codes = range(-lpe.Int(bits).largest_code, lpe.Int(bits).largest_code + 1)
    xs, ys, nll = panels.field(grid, "nll")
    levels = panels.even_levels(nll)
    trained, nearest = (points[points["what"] == what].iloc[0] for what in (TRAINED, NEAREST))
    neighbours = points[points["what"] == NEIGHBOUR]
    left, below = (math.floor(trained[code]) - AROUND for code in ("x_code", "y_code"))
    side = 1 + 2 * AROUND
    titles = (
        f"trained point\nNLL {trained['nll']:.4f}",
        f"grid of INT-{bits}",
        f"nearest point: RTN\nNLL {nearest['nll']:.4f}",
        "around it: BSR\nprobability, NLL",
    )
    with panels.style():
        figure = panels.plt.figure(figsize=(page.width(), 0.7 + 0.2 * page.width()))
        *axes, bar = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 0.05))
        for letter, ax, title in zip("abcd", axes, titles, strict=True):
            # In steps, so that the ticks are the codes.
            named = list(levels[1::4]) if letter == "a" else []
            clear = [(trained["x_code"], trained["y_code"])]
            surface = (ax, xs / step, ys / step, nll, levels, "cividis_r", named, clear)
            filled = panels.filled_contours(*surface)
            if letter != "a":
                places = [(x, y) for x in codes for y in codes]
                ax.scatter(
                    *zip(*places, strict=True), s=5, c="white", edgecolors=panels.BLACK, linewidths=0.3
                )
                ax.vlines(codes, codes[0], codes[-1], colors="white", linewidths=0.6)
                ax.hlines(codes, codes[0], codes[-1], colors="white", linewidths=0.6)
            _mark(ax, trained, *SINGLE_STYLE, 55)
            ax.set(aspect="equal", xlim=(codes[0] - BEYOND, codes[-1] + BEYOND))
            ax.set_ylim(codes[0] - BEYOND, codes[-1] + BEYOND)
            ax.set_xlabel(f"input {trained['x_input']} (steps)")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MultipleLocator(1 if letter == "d" else codes[-1]))
            panels.label_panel(ax, letter, title)
        axes[0].set_ylabel(f"input {trained['y_input']} (steps of Δ = {step:.3g})")
        _mark(axes[2], nearest, BIT_STYLES[bits][0], RTN_MARKER, 40)
        shown = Rectangle((left, below), side, side, fill=False, linestyle=":", linewidth=0.9, zorder=4)
        axes[2].add_patch(shown)
        for _, neighbour in neighbours.iterrows():
            _neighbour(axes[3], trained, neighbour, BIT_STYLES[bits])
        axes[3].set_xlim(left, left + side)
        axes[3].set_ylim(below, below + side)
        panels.colour_bar(
            figure,
            filled,
            bar,
            f"{chosen.settings.landscape.split} NLL (nats per {noun(chosen)})",
            levels[1::2],
        )
        paths = panels.save(figure, folder, "fig1")
    place = f"{trained['tensor']}, output channel {trained['channel']}, inputs {trained['x_input']} and "
    lines = [
        f"plane: {place}{trained['y_input']}; INT-{bits}, step {step:.4g}",
        f"NLL: trained {trained['nll']:.5f}, nearest grid point {nearest['nll']:.5f}, on the plane shown "
        f"{nll.min():.5f} to {nll.max():.5f}",
    ]
    for _, each in neighbours.iterrows():
        at = f"({each['x_code']:+.0f}, {each['y_code']:+.0f})"
        lines.append(f"grid point {at}: probability {each['probability']:.4f}, NLL {each['nll']:.5f}")
    return paths, lines


def _mark(axes: Axes, place: pd.Series, colour: str, marker: str, size: float) -> None:
    axes.scatter(
        place["x_code"],
        place["y_code"],
        s=size,
        c=colour,
        marker=marker,
        edgecolors="white",
        linewidths=0.7,
        zorder=5,
    )


def _neighbour(axes: Axes, trained: pd.Series, place: pd.Series, mark: Mark) -> None:
    """Draw a grid point, its area by its probability, which is written on the side off the trained point."""
    _mark(axes, place, *mark, 12 + 90 * place["probability"])
    up = place["y_code"] >= trained["y_code"]
    right = place["x_code"] >= trained["x_code"]
    text = f"p = {place['probability']:.2f}\n{place['nll']:.4f}"
    panels.outlined(axes, place["x_code"], place["y_code"], text, (7 if right else -7, 15 if up else -15))


SCRIPT = Script("fig1", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
