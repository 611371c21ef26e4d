"""Loss landscapes: planes in weight space, what the network does on them, and where members lie.

A plane is an offset and two orthonormal axes (Gram–Schmidt), so its coordinates are true L2 distances. A
plane *through three points* has the first as its origin; the *radial* plane of Fort et al. 2019 ("Deep
ensembles: a loss landscape perspective") has the zero vector as its origin and contains two solutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpe.checks import check_finite, check_integer, check_list, check_tensor, check_tensors
from lpe.ensembles.batch_norm import refresh
from lpe.ensembles.reach import check_own_tensors
from lpe.errors import InputError
from lpe.evaluation.batches import stream
from lpe.logits import check_labels, check_shape, check_values
from lpe.modules import apply, device_of, named_tensors, to_device, with_tensors
from lpe.structure import Structure


def weight_vector(model: nn.Module) -> Tensor:
    """Return a model's parameters as a float64 vector [weights] on the CPU, tied ones once, in its order."""
    parts = [
        e.tensor.detach().cpu().double().flatten() for e in named_tensors(model) if e.kind == "parameter"
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class Plane:
    """A plane in weight space.

    Args:
        origin: float64 [weights].
        axes: float64 [2, weights], orthonormal.
    """

    origin: Tensor
    axes: Tensor

    def coordinates(self, weights: Tensor) -> tuple[float, float, float]:
        """Return x, y of a weight vector's projection, and its distance from the plane; L2 units."""
        offset = weights - self.origin
        x, y = (self.axes @ offset).tolist()
        rest = offset - x * self.axes[0] - y * self.axes[1]
        return x, y, float(rest.norm())

    def at(self, x: float, y: float) -> Tensor:
        """Return the weight vector at (x, y): float64 [weights]."""
        return self.origin + x * self.axes[0] + y * self.axes[1]


def plane_through(first: Tensor, second: Tensor, third: Tensor) -> Plane:
    """Lay a plane through three weight vectors: first at (0, 0), second on positive x axis, third y > 0.

    Raises:
        InputError: the three lie on one line (to float32's precision), or their lengths differ.
    """
    shapes = [list(check_tensor("a weight vector", each).shape) for each in (first, second, third)]
    if not shapes[0] == shapes[1] == shapes[2] or len(shapes[0]) != 1:
        raise InputError(
            f"weight vectors of shapes {shapes[0]}, {shapes[1]} and {shapes[2]} span no plane; [weights] is "
            "needed, of one length"
        )
    if not all(bool(each.isfinite().all()) for each in (first, second, third)):
        raise InputError("a weight vector has values that are NaN or infinite; it spans no plane")
    u, v = second - first, third - first
    scale = max(float(first.norm()), float(second.norm()), float(third.norm()))
    if float(u.norm()) <= 1e-7 * scale:
        raise InputError("the first two weight vectors are equal; they span no plane")
    x_axis = u / u.norm()
    v = v - (v @ x_axis) * x_axis
    v = v - (v @ x_axis) * x_axis  # once more: the first pass leaves float error when u and v are close
    if float(v.norm()) <= 1e-7 * scale:
        raise InputError("the three weight vectors lie on one line; they span no plane")
    return Plane(first.clone(), torch.stack([x_axis, v / v.norm()]))


def radial_plane(first: Tensor, second: Tensor) -> Plane:
    """Return the plane through the zero vector and two solutions; ``first`` lies on the x axis."""
    return plane_through(torch.zeros_like(check_tensor("a weight vector", first)), first, second)


def grid_lines(
    anchors: Sequence[float], resolution: int, margin: float, reach: Sequence[float] = ()
) -> np.ndarray:
    """Return grid coordinates along one axis: an even grid around the anchors, and the anchors' own.

    Args:
        anchors: coordinates that must lie on the grid.
        resolution: even grid lines, 2 or more. margin: around the anchors, as a fraction of their extent.
        reach: coordinates that must lie within the margin too, but not on a line.

    Returns:
        Increasing float64 [≥ resolution].
    """
    resolution = check_integer("a grid's lines", resolution, 2, 10**6)
    margin = check_finite("margin", margin)
    anchors = check_list("anchors", anchors, "coordinates")
    within = [*anchors, *check_list("reach", reach, "coordinates")]
    for coordinate in within:
        check_finite("a coordinate", coordinate, -math.inf)
    if not anchors:
        raise InputError("there are no anchors; give at least one coordinate")
    low, high = min(within), max(within)
    extent = (high - low) or 1.0
    lines = np.linspace(low - margin * extent, high + margin * extent, resolution)
    spacing = lines[1] - lines[0]
    # An even line almost on an anchor's gives way to it: slivers of cells would draw badly.
    even = [
        x for x in lines if min(abs(x - a) for a in anchors) > 0.2 * spacing or x in (lines[0], lines[-1])
    ]
    return np.array(sorted({*even, *(float(a) for a in anchors)}))


class Surface:
    """A network's NLL, error and disagreement with anchors, at any weight vector.

    Args:
        model: gives the architecture and the tensors that are no parameters; not modified.
        batches: (inputs, targets), iterable again and again.
        anchors: name → weight vector; at every point the share of changed predictions ("disagreement") and
            the KL divergence KL(anchor ‖ point) in nats ("kl") are measured against each.
        statistics: training batches for models with batch norms, whose statistics are re-estimated at each
            point; iterable again and again.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Any, Tensor]],
        anchors: Mapping[str, Tensor] | None = None,
        statistics: Iterable[Any] = (),
    ) -> None:
        own = {entry.name: entry.tensor.detach().clone() for entry in named_tensors(model)}
        self._net = with_tensors(model, own)
        self._parameters = [e.tensor for e in named_tensors(self._net) if e.kind == "parameter"]
        self._batches = list(stream(batches))
        if not self._batches:
            raise InputError("the batches are empty; a landscape needs data")
        self._targets = torch.cat([targets.cpu() for _, _, targets in self._batches])
        self._statistics = statistics
        names = [entry.name for entry in named_tensors(model) if entry.kind == "parameter"]
        check_own_tensors(Structure(model), names, self._batches[0][1])
        anchors = {} if anchors is None else check_tensors("anchors", anchors, "names to weight vectors")
        self._anchors = {name: self._log_probs(weights) for name, weights in anchors.items()}

    @property
    def anchor_names(self) -> list[str]:
        """The anchors' names."""
        return list(self._anchors)

    @torch.no_grad()
    def _log_probs(self, weights: Tensor) -> Tensor:
        sizes = [parameter.numel() for parameter in self._parameters]
        if list(check_tensor("weights", weights).shape) != [sum(sizes)]:
            raise InputError(
                f"the model has {sum(sizes)} weights, the vector is of shape {list(weights.shape)}"
            )
        for parameter, part in zip(self._parameters, weights.split(sizes), strict=True):
            parameter.data.copy_(part.view_as(parameter))
        refresh(self._net, self._statistics)
        parts: list[Tensor] = []
        device = device_of(self._net)
        for index, inputs, targets in self._batches:
            logits = apply(self._net, to_device(inputs, device))
            where = f"batch {index}: "
            check_shape(logits, len(targets), where, "targets", parts[0].shape[1] if parts else None)
            check_labels(targets, logits.shape[1], where)
            check_values(logits, where)
            parts.append(logits.double().log_softmax(dim=-1).cpu())
        return torch.cat(parts)

    def measure(self, weights: Tensor) -> dict[str, float]:
        """Return nll and err at a weight vector, and "disagreement NAME" and "kl NAME" for each anchor."""
        log_probs = self._log_probs(weights)
        targets = self._targets
        predicted = log_probs.argmax(dim=-1)
        values = {
            "nll": -float(log_probs.gather(1, targets[:, None]).mean()),
            "err": float((predicted != targets).double().mean()),
        }
        for name, anchor in self._anchors.items():
            values[f"disagreement {name}"] = float((predicted != anchor.argmax(dim=-1)).double().mean())
            # A class that the anchor rules out (log-probability −∞) adds nothing.
            terms = torch.where(anchor.isneginf(), 0.0, anchor.exp() * (anchor - log_probs))
            values[f"kl {name}"] = float(terms.sum(dim=-1).mean())
        return values


def measure_grid(
    surface: Surface,
    plane: Plane,
    xs: Sequence[float],
    ys: Sequence[float],
    done: Callable[[float, float], bool] = lambda x, y: False,
    keep: Callable[[dict[str, float]], None] = lambda row: None,
) -> None:
    """Measure a grid of a plane, a line of constant y after another, point by point.

    Args:
        surface, plane: what is measured, and where.
        xs, ys: coordinates of the grid.
        done: whether the point (x, y) is measured already (a killed run goes on where it was).
        keep: called with each point's row: x, y and the surface's values.
    """
    for y in map(float, ys):
        for x in map(float, xs):
            if not done(x, y):
                keep({"x": x, "y": y, **surface.measure(plane.at(x, y))})
