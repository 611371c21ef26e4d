"""The arguments of every backend: the stored weights, their scales, and the key of their random bits.

The grid is the fourth (:class:`lpe.number_systems.grids.Grid`). A backend writes codes or values of a flat
weight, in the parameter's row-major order, and must do so as ``reference`` does, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lpe.number_systems.grids import Grid, ScaleAxis
from lpe.number_systems.layouts import Layout


@dataclass(frozen=True)
class Draw:
    """The rule and the random key by which a weight is rounded.

    Args:
        rounding: "nearest", "bernoulli" or "coupled"; or "lower", the lower neighbour: the code of the
            greatest random number, 65535, and so the least that a member can have.
        seed, name, member: the key of the random bits; ``name`` is the parameter's canonical name. Nearest
            and lower rounding have none. Of several members, ``member`` is the first; the others follow it.
    """

    rounding: str
    seed: int
    name: str
    member: int


@dataclass(frozen=True)
class Scales:
    """The scales of a weight, and which of them each element uses.

    Args:
        values: s (of integers Δ), float32 [groups].
        inverses: 1/s, float32 [groups], divided here for all backends.
        layout, axis: from which follows the group of an element.
    """

    values: Tensor
    inverses: Tensor
    layout: Layout
    axis: ScaleAxis

    @classmethod
    def of(cls, values: Tensor, layout: Layout, axis: ScaleAxis) -> Scales:
        """Make it from scales of any shape, row-major."""
        flat = values.flatten()
        return cls(flat, 1.0 / flat, layout, axis)

    def group(self, start: int, stop: int) -> Tensor:
        """Return the index into ``values`` of the elements start … stop − 1: int64 [stop − start]."""
        return self.layout.scale_group(self.axis, start, stop, self.values.device)


@dataclass(frozen=True)
class Coded:
    """Stored weights that are codes of a number system: their values are level·s, in float32.

    Args:
        codes: flat [elements], as ``encode`` gives them: int8 of integers, uint8 of others.
        scales: of the codes; those of the members drawn from them are others. grid: of the codes.
    """

    codes: Tensor
    scales: Scales
    grid: Grid

    @property
    def device(self) -> torch.device:
        """The device on which the codes lie."""
        return self.codes.device

    def numel(self) -> int:
        """Return the number of weights."""
        return self.codes.numel()


Stored = Tensor | Coded
"""Flat weights from which members are drawn."""


@dataclass(frozen=True)
class Rounded:
    """One of several weights that are rounded together.

    Args:
        weight: flat. scales, grid: of the members. name: the parameter's, a part of the random bits' key.
        dtype: of the values that are written.
    """

    weight: Stored
    scales: Scales
    grid: Grid
    name: str
    dtype: torch.dtype
