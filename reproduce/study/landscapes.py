"""Landscapes as records: planes and their grids, measured once and resumed point by point; member clouds."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.selection import select_tensors
from lpe.errors import InputError
from lpe.evaluation.landscape import (
    Plane,
    Surface,
    grid_lines,
    measure_grid,
    plane_through,
    radial_plane,
    weight_vector,
)
from lpe.modules import apply, device_of, named_tensors, with_tensors
from lpe.number_systems.grids import Int
from lpe.number_systems.rounding import absmax_scales
from lpe.records import read_table, write_table
from lpe.store import Store
from lpe.writing import locked
from reproduce.study.costs import measuring, remove_damaged
from reproduce.study.keys import determinants
from reproduce.study.scale import Batch, Data, Scale, bare, digest_of, held
from reproduce.study.session import Session
from reproduce.study.units import draw_seed

GRID_COLUMNS = ("x", "y", "metric", "value")
CLOUD_COLUMNS = ("method", "member", "x", "y", "distance_from_plane", "distance_from_point", "nll")
KEPT_SECONDS = 5.0
"""From one writing of a grid's points to the next, at least."""


def grid_table(
    session: Session, surface: Surface, plane: Plane, xs: np.ndarray, ys: np.ndarray, data: str, what: str
) -> pd.DataFrame:
    """Measure the surface on a grid of a plane, one row a point and quantity: x, y, metric, value.

    What is finished of the grid is on disk every few seconds, in the working records, named by the plane's
    own numbers; a killed run goes on with the next point. ``data`` says in words which images the surface
    sees, ``what`` is the progress bar's label.
    """
    source, seed = session.main.source, session.scale.settings.landscape.seed
    determined = determinants(
        grid_table,
        type(surface),
        type(plane),
        bare(source),
        *held(source),
        data=digest_of(source, seed),
        device=session.device,
        threads=session.threads,
    )
    digest = hashlib.sha256(Store.key({"source": source, **determined}).encode())
    for numbers in (plane.origin.numpy(), plane.axes.numpy(), np.asarray(xs), np.asarray(ys)):
        digest.update(np.ascontiguousarray(numbers).tobytes())
    digest.update("\0".join([data, *sorted(surface.anchor_names)]).encode())
    path = session.working / f"landscape-{digest.hexdigest()[:24]}.csv"
    with locked(path.with_suffix(".grid"), once=True, poll=0.1):
        return _measured_grid(session, surface, plane, xs, ys, what, path)


def _measured_grid(
    session: Session, surface: Surface, plane: Plane, xs: np.ndarray, ys: np.ndarray, what: str, path: Path
) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    remove_damaged(path, _sorted)
    if path.is_file():
        rows = [{str(k): v for k, v in row.items()} for row in read_table(path).to_dict("records")]
    # Coordinates are compared as the file holds them.
    finished = {_named(float(str(row["x"])), float(str(row["y"]))) for row in rows}
    session.measured.add(path)
    points = len(xs) * len(ys)
    if len(finished) == points:
        return _sorted(path)

    with measuring(path, session.store, session.device), session.progress(points, what) as bar:
        bar.update(len(finished))
        written, fresh = time.monotonic(), False

        def keep(measured: dict[str, float]) -> None:
            nonlocal written, fresh
            place = {"x": measured.pop("x"), "y": measured.pop("y")}
            rows.extend({**place, "metric": metric, "value": value} for metric, value in measured.items())
            bar.update()
            if fresh := time.monotonic() - written < KEPT_SECONDS:
                return
            write_table(rows, path, GRID_COLUMNS, grows=True)
            written = time.monotonic()

        measure_grid(surface, plane, xs.tolist(), ys.tolist(), lambda x, y: _named(x, y) in finished, keep)
        if fresh:
            write_table(rows, path, GRID_COLUMNS, grows=True)
    return _sorted(path)


def _named(x: float, y: float) -> tuple[str, str]:
    return f"{x:.12g}", f"{y:.12g}"


def _sorted(path: Path) -> pd.DataFrame:
    table = read_table(path)
    if tuple(table.columns) != GRID_COLUMNS:
        raise ValueError(f"{path} has the columns {', '.join(map(str, table.columns))}")
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


# Three solutions: the radial plane of two of them, and the plane through all three.

RADIAL, THROUGH = "radial", "through"
"""Planes: from the zero vector, spanned by two solutions; through three solutions."""
PLANE_GRID_COLUMNS = ("plane", *GRID_COLUMNS)
PLANE_CLOUD_COLUMNS = ("plane", *CLOUD_COLUMNS)


@dataclass(frozen=True)
class Solution:
    """A solution that spans planes, and others of its kind.

    Args:
        name: in records. nets: makes the networks, the first of which is the solution.
    """

    name: str
    nets: Callable[[], Iterable[nn.Module]]

    def weights(self) -> Tensor:
        """Return the solution's weight vector: float64 [weights]."""
        return weight_vector(next(iter(self.nets())))


def point_of(posterior: str) -> str:
    """Name the point of a posterior, as a solution."""
    return f"{posterior}'s point"


BMA, LOW = "BMA member", "LPE-BSR member"


def drawn_around(session: Session, posterior: str, data: Data) -> tuple[Solution, Solution, Solution]:
    """Return a posterior's point, members drawn from the posterior, and LPE-BSR members of the point.

    All at the landscapes' training seed; the members are the first of those that the record's rows are of.
    """
    settings = session.scale.settings
    shape = settings.landscape
    point = session.main.point(session, posterior, shape.seed)
    assert point.posterior is not None
    seed = draw_seed(shape.seed, 0)
    drawn = point.posterior(shape.cloud, seed)
    low = LowPrecisionEnsemble(
        point.net, Int(settings.best_bits), shape.cloud, seed=seed, batches=data.statistics
    )
    return (
        Solution(point_of(posterior), lambda: [point.net]),
        Solution(BMA, drawn.in_turn),
        Solution(LOW, low.in_turn),
    )


def planes_words(chosen: Scale) -> str:
    """Say on which examples the scale's planes are measured."""
    shape = chosen.settings.landscape
    assert chosen.main is not None
    number = "" if shape.examples is None else f"{shape.examples:,} "
    return f"{number}{shape.split} {chosen.main.example}s of seed {shape.seed}"


def planes_batches(data: Data) -> Sequence[Batch]:
    """Return the batches that landscapes are measured on."""
    return data.test if data.planes is None else data.planes


def planes_examples(chosen: Scale) -> int:
    """Return the number of examples that the scale's planes are measured on."""
    shape = chosen.settings.landscape
    if shape.examples is not None:
        return shape.examples
    assert chosen.main is not None
    return int(chosen.main.source.load(shape.seed).test_count)


def planes_of(
    session: Session,
    solutions: tuple[Solution, Solution, Solution],
    spanning: tuple[int, int],
    data: Data,
    what: str,
    changes: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the radial plane of two solutions and the plane through all three, on the planes' examples.

    Both have the solutions on lines of their grid, and show the margin around them; the radial plane from the
    zero vector on. The plane through the three has the first as its origin and the second on its x axis; it
    reaches as far as the other networks, projected on it.

    Args:
        spanning: places of the solutions that span the radial plane. what: the progress bar's label.
        changes: whether disagreement with each solution and KL divergence from it are measured on the
            plane through all three.

    Returns:
        The grids, [points, PLANE_GRID_COLUMNS], and all networks projected on either plane, [networks,
        PLANE_CLOUD_COLUMNS], distances and coordinates in L2 units.
    """
    shape = session.scale.settings.landscape
    net = next(iter(solutions[0].nets()))
    anchors = {solution.name: solution.weights() for solution in solutions}
    weights = list(anchors.values())
    statistics = data.statistics or ()
    batches = planes_batches(data)
    plain = Surface(net, batches, statistics=statistics)
    surfaces = {RADIAL: plain, THROUGH: Surface(net, batches, anchors, statistics) if changes else plain}
    planes = {
        RADIAL: radial_plane(*(weights[place] for place in spanning)),
        THROUGH: plane_through(*weights),
    }
    seen = planes_words(session.scale)
    if changes:
        # What is measured from an anchor off the plane depends on more than the plane's numbers.
        digest = hashlib.sha256(b"".join(each.numpy().tobytes() for each in weights)).hexdigest()
        seen = f"{seen}, anchors {digest}"
    grids, clouds = [], []
    for kind, plane in planes.items():
        members = pd.concat(
            [cloud_table(plane, each.nets(), net, plain, each.name) for each in solutions], ignore_index=True
        )
        firsts = members[members["member"] == 0]
        xs, ys = (
            grid_lines(
                [0.0, *firsts[axis]],
                shape.resolution,
                shape.margin,
                reach=members[axis].tolist() if kind == THROUGH else (),
            )
            for axis in ("x", "y")
        )
        surface = session.ahead(surfaces[kind], plane, xs, ys)
        grid = grid_table(session, surface, plane, xs, ys, seen, f"{what}: {kind} plane")
        grids.append(grid.assign(plane=kind))
        clouds.append(members.assign(plane=kind))
    return (
        pd.concat(grids, ignore_index=True)[list(PLANE_GRID_COLUMNS)],
        pd.concat(clouds, ignore_index=True)[list(PLANE_CLOUD_COLUMNS)],
    )


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
    device = device_of(own)
    total = torch.zeros(
        sum(parameter.numel() for parameter in parameters), dtype=torch.float64, device=device
    )
    for image, label in zip(images, labels, strict=True):
        loss = nn.functional.cross_entropy(apply(own, image[None].to(device)), label[None].to(device))
        gradients = torch.autograd.grad(loss, parameters)
        total += torch.cat([gradient.flatten() for gradient in gradients]).double().square()
    return (total / len(labels)).cpu()


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
        weight = tensors[planned.name].detach().cpu()
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
