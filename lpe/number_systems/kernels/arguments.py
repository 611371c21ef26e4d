"""What every backend is given beside the weight: its scales, and the key of its random bits.

The grid is the third (:class:`lpe.number_systems.grids.Grid`). A backend writes codes or values of a flat
weight, in the parameter's row-major order, and must do so as ``reference`` does, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lpe.number_systems.grids import ScaleAxis
from lpe.number_systems.layouts import Layout


@dataclass(frozen=True)
class Draw:
    """How a weight is rounded.

    Args:
        rounding: "nearest", "bernoulli" or "coupled".
        seed, name, member: the key of the random bits; ``name`` is the parameter's canonical name. Nearest
            rounding has none.
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
        """From scales of any shape, row-major."""
        flat = values.flatten()
        return cls(flat, 1.0 / flat, layout, axis)

    def group(self, start: int, stop: int) -> Tensor:
        """Index into ``values`` of the elements start … stop − 1: int64 [stop − start]."""
        return self.layout.scale_group(self.axis, start, stop, self.values.device)
