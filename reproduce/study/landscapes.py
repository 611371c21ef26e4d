"""Landscapes as records: planes and their grids, measured once and resumed line by line; member clouds."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lpe.ensembles.selection import select_tensors
from lpe.errors import InputError
from lpe.evaluation.landscape import Plane, Surface, grid_lines, measure_grid, weight_vector
from lpe.modules import apply, named_tensors, with_tensors
from lpe.number_systems.grids import Int
from lpe.number_systems.rounding import absmax_scales
from lpe.records import write_table
from reproduce.study.keys import code_hash
from reproduce.study.scale import Landscape
from reproduce.study.session import Session

GRID_COLUMNS = ("x", "y", "metric", "value")
CLOUD_COLUMNS = ("method", "member", "x", "y", "distance_from_plane", "distance_from_point", "nll")


def grid_table(
    session: Session, surface: Surface, plane: Plane, xs: np.ndarray, ys: np.ndarray, data: str, what: str
) -> pd.DataFrame:
    """Measure the surface on a grid of a plane, one row a point and quantity: x, y, metric, value.

    Every finished line of the grid is on disk, in the working records, named by the plane's own numbers; a
    killed run goes on with the next line. ``data`` says in words which images the surface sees, ``what`` is
    the progress bar's label.
    """
    digest = hashlib.sha256(code_hash(grid_table).encode())
    for numbers in (plane.origin.numpy(), plane.axes.numpy(), np.asarray(xs), np.asarray(ys)):
        digest.update(np.ascontiguousarray(numbers).tobytes())
    digest.update("\0".join([data, *sorted(surface.anchor_names)]).encode())
    path = session.working.parent / f"landscape-{digest.hexdigest()[:24]}.csv"
    columns = ("x", "y", "metric", "value")
    rows: list[dict[str, object]] = []
    if path.is_file():
        rows = [{str(k): v for k, v in row.items()} for row in pd.read_csv(path).to_dict("records")]
    # Coordinates are compared as the file holds them.
    finished = {f"{row['y']:.12g}" for row in rows}

    with session.progress(len(ys), what) as bar:
        bar.update(len(finished))

        def keep(line: list[dict[str, float]]) -> None:
            for measured in line:
                place = {"x": measured.pop("x"), "y": measured.pop("y")}
                rows.extend({**place, "metric": metric, "value": value} for metric, value in measured.items())
            write_table(rows, path, columns)
            bar.update()

        measure_grid(surface, plane, xs.tolist(), ys.tolist(), lambda y: f"{y:.12g}" in finished, keep)
    table = pd.read_csv(path)
    return table.sort_values(["metric", "y", "x"], ignore_index=True)


def cloud_table(
    plane: Plane, members: Iterable[nn.Module], point: nn.Module, surface: Surface, method: str
) -> pd.DataFrame:
    """Project members on a plane: method, member, x, y, distance_from_plane, distance_from_point, nll.

    Distances and coordinates in L2 units of weight space, NLL in nats.
    """
    centre = weight_vector(point)
    rows = []
    for index, member in enumerate(members):
        weights = weight_vector(member)
        x, y, off = plane.coordinates(weights)
        rows.append(
            {
                "method": method,
                "member": index,
                "x": x,
                "y": y,
                "distance_from_plane": off,
                "distance_from_point": float((weights - centre).norm()),
                "nll": surface.measure(weights)["nll"],
            }
        )
    return pd.DataFrame(rows)


# Radial planes: the whole plane coarsely, the square around the anchors finely.

Window = tuple[float, float, float, float]


def window_around(places: Iterable[tuple[float, float]], margin: float) -> Window:
    """Return the square around places in a plane: (lowest x, highest x, lowest y, highest y).

    Args:
        places: (x, y) of each. margin: on every side, as a fraction of their larger extent.
    """
    xs, ys = zip(*places, strict=True)
    extent = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    half = (0.5 + margin) * extent
    x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    return x - half, x + half, y - half, y + half


def radial_lines(places: Sequence[tuple[float, float]], shape: Landscape) -> tuple[np.ndarray, np.ndarray]:
    """Return a radial plane's grid lines: even ones from the origin over the places, finer ones around these.

    Anchors lie close together at the end of a long way from the origin: an even grid of the whole plane
    would put two lines between them. The edges of ``window_around`` the places are lines, and so are the
    coordinates of the origin and of the places.

    Args:
        places: (x, y) of the anchors. shape: its resolution counts the even lines and the finer ones alike.

    Returns:
        xs, ys: increasing float64.
    """
    window = window_around(places, shape.margin)
    lines = []
    for axis in (0, 1):
        anchors = [place[axis] for place in places]
        low, high = window[2 * axis : 2 * axis + 2]
        whole = grid_lines([0.0, *anchors], shape.resolution, shape.margin)
        # Without a margin the finer lines begin and end at the window's edges.
        fine = grid_lines(anchors, shape.resolution, 0.0, reach=(low, high))
        spacing = (high - low) / (shape.resolution - 1)
        outside = [x for x in whole if x < low - 0.2 * spacing or x > high + 0.2 * spacing]
        lines.append(np.array(sorted({0.0, *outside, *fine})))
    return lines[0], lines[1]


def radial_table(
    session: Session, surface: Surface, plane: Plane, anchors: Mapping[str, Tensor], data: str, what: str
) -> pd.DataFrame:
    """Measure the surface on a radial plane, on the lines of ``radial_lines``; see :func:`grid_table`.

    Args:
        anchors: name → weight vector, in the plane or projected on it.
    """
    places = [plane.coordinates(weights)[:2] for weights in anchors.values()]
    xs, ys = radial_lines(places, session.scale.settings.landscape)
    # What is measured from an anchor off the plane depends on more than the plane's numbers.
    digest = hashlib.sha256(b"".join(weights.numpy().tobytes() for weights in anchors.values())).hexdigest()
    return grid_table(session, surface, plane, xs, ys, f"{data}, anchors {digest}", what)


# Planes of two weights, in which the number system's grid can be seen.


@dataclass(frozen=True)
class WeightPair:
    """Two weights of one output channel, which share a step Δ.

    Args:
        name: of their tensor. channel: their output channel. inputs: where they stand in its row.
        places: where they stand in ``weight_vector``. values: theirs in the model. step: Δ.
        codes: values / Δ, from −q to q, whole numbers on the grid.
    """

    name: str
    channel: int
    inputs: tuple[int, int]
    places: tuple[int, int]
    values: tuple[float, float]
    step: float
    codes: tuple[float, float]

    def neighbours(self) -> dict[tuple[int, int], float]:
        """Return the codes of the one to four grid points that BSR can round to, and their probabilities.

        The two weights are rounded independently of each other, so the probabilities multiply.
        """
        choices = []
        for code in self.codes:
            low = math.floor(code)
            up = code - low
            choices.append([(c, p) for c, p in ((low, 1 - up), (low + 1, up)) if p > 0])
        return {(a, b): p * q for (a, p), (b, q) in itertools.product(*choices)}

    def nearest(self) -> tuple[int, int]:
        """Return the codes of the grid point that RTN rounds to."""
        return round(self.codes[0]), round(self.codes[1])

    def place(self, codes: tuple[float, float]) -> tuple[float, float]:
        """Return the two weights' values at these codes, as float32 holds them."""
        step = np.float32(self.step)
        return float(np.float32(codes[0]) * step), float(np.float32(codes[1]) * step)

    def plane(self, weights: Tensor) -> Plane:
        """Return the two weights' plane, whose coordinates are their values; all others are ``weights``'."""
        origin, axes = weights.clone(), torch.zeros(2, len(weights), dtype=torch.float64)
        for axis, place in enumerate(self.places):
            origin[place] = 0.0
            axes[axis, place] = 1.0
        return Plane(origin, axes)


def squared_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over examples of each weight's squared gradient of the NLL: float64 [weights].

    The diagonal of the empirical Fisher information, which stands in for the NLL's second derivatives; one
    backward pass an example. The order is ``weight_vector``'s.
    """
    own = with_tensors(model, {entry.name: entry.tensor.detach().clone() for entry in named_tensors(model)})
    parameters = [e.tensor.requires_grad_() for e in named_tensors(own) if e.kind == "parameter"]
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        loss = nn.functional.cross_entropy(apply(own, image[None]), label[None])
        gradients = torch.autograd.grad(loss, parameters)
        total += torch.cat([gradient.flatten() for gradient in gradients]).double().square()
    return total / len(labels)


def rounding_pairs(model: nn.Module, system: Int, curvature: Tensor, count: int) -> list[WeightPair]:
    """List the pairs of weights whose random rounding should raise the NLL the most, the highest first.

    To second order BSR raises the NLL by ½ · curvature · Δ² · p(1 − p) a weight, p its probability of going
    up: BSR has no bias, so the gradient adds nothing in the mean. Of every output channel the two weights
    with the highest rises are a candidate.

    Args:
        curvature: [weights], such as ``squared_gradients``. count: how many pairs.

    Raises:
        InputError: a scale axis under which the weights of an output channel do not share a step.
    """
    starts, before = {}, 0
    tensors = {entry.name: entry.tensor for entry in named_tensors(model)}
    for entry in named_tensors(model):
        if entry.kind == "parameter":
            starts[entry.name] = before
            before += entry.tensor.numel()
    found: list[tuple[float, WeightPair]] = []
    for planned in select_tensors(model, system):
        if not planned.quantised:
            continue
        layout = planned.layout
        if system.scale.extent(layout.rows, layout.columns) != (1, layout.columns):
            raise InputError(f"{system.name} has no step of each output channel's own; take PerChannel()")
        if layout.columns < 2:
            continue
        weight = tensors[planned.name].detach()
        delta = absmax_scales(weight, system, layout)
        matrix = layout.matrix(weight.float())
        places = layout.matrix(starts[planned.name] + torch.arange(layout.numel).view(planned.shape))
        # The largest weight's code may pass q by its own float error.
        q = system.largest_code
        codes = torch.where(delta > 0, matrix * (1.0 / delta), 0.0).clamp(-q, q)
        up = (codes - codes.floor()).double()
        rises = 0.5 * curvature[places] * delta.double() ** 2 * up * (1 - up)
        best = rises.topk(2, dim=1)
        for channel in range(layout.rows):
            first, second = best.indices[channel].tolist()
            pair = WeightPair(
                planned.name,
                channel,
                (first, second),
                (int(places[channel, first]), int(places[channel, second])),
                (float(matrix[channel, first]), float(matrix[channel, second])),
                float(delta[channel]),
                (float(codes[channel, first]), float(codes[channel, second])),
            )
            found.append((float(best.values[channel].sum()), pair))
    # The sort is stable: equal rises stay in the model's order.
    return [pair for _, pair in sorted(found, key=lambda each: -each[0])[:count]]


def expected_rise(surface: Surface, weights: Tensor, pair: WeightPair) -> float:
    """Measure by how much rounding the pair at random raises the surface's NLL in the mean; nats."""
    plane = pair.plane(weights)
    rounded = sum(
        probability * surface.measure(plane.at(*pair.place(codes)))["nll"]
        for codes, probability in pair.neighbours().items()
    )
    return rounded - surface.measure(weights)["nll"]
