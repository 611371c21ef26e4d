"""Members of a weight as bit planes in memory: what a pass over all of them reads.

    lower    the lower neighbours, once for all members: on a CPU packed in b bits each, on a GPU a byte each
    bits     [⌈elements / 8⌉, members]: byte k has a member's bits of elements 8k … 8k + 7, the lowest first

So M members of b bits take b + M bits a weight, or 8 + M. On a CPU the members' bytes of the same elements
lie side by side, since they are read together; on a GPU each plane is whole. Values are the members' own, bit
for bit.

Two operations, in each backend:

    round_into   all values of some members, or of some segments of the weight
    multiply     x[m] W_mᵀ of all members, without writing their weights: for few positions a member

``planes_cpu`` and ``planes_cuda`` have both. Elsewhere, and under ``LPE_KERNELS=reference``, plain torch has.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from lpe.number_systems import kernels
from lpe.number_systems.grids import Grid, LowPrecision, grid_of
from lpe.number_systems.kernels.arguments import Scales
from lpe.number_systems.kernels.reference import CHUNK, level_table
from lpe.number_systems.layouts import Layout
from lpe.number_systems.packing import pack

EIGHT = 8
SPARE = 8
"""Bytes before the bits, and behind the packed levels, that machine code may load beside those it wants."""


@dataclass(frozen=True)
class Planes:
    """All members of a weight.

    Args:
        lower: the lower neighbours. Packed, uint8 [bytes + SPARE], the levels' indices as ``packing`` has
            them; else codes, flat.
        bits: uint8 [⌈elements / 8⌉, members]. Packed, contiguous, with SPARE bytes before it in the same
            memory; else a view of the members' planes one after another.
        scales: of the members. grid: theirs. packed: as a CPU's machine code reads it.
    """

    lower: Tensor
    bits: Tensor
    scales: Scales
    grid: Grid
    packed: bool

    @classmethod
    def of(cls, lower: Tensor, planes: Tensor, scales: Scales, system: LowPrecision) -> Planes:
        """Make it, as the device's backend reads it, of what ``number_systems.planes`` gives.

        Args:
            lower: codes of any shape. planes: uint8 [members, ⌈elements / 8⌉]. scales: on the device.
        """
        device = scales.values.device
        if _kind(device) != "cpu":
            bits = planes.to(device).contiguous().T
            return cls(lower.to(device).reshape(-1).contiguous(), bits, scales, grid_of(system), False)
        members, length = planes.shape
        memory = torch.zeros(SPARE + members * length, dtype=torch.uint8, device="cpu")
        bits = memory[SPARE:].view(length, members)
        bits.copy_(planes.T)
        packed = torch.nn.functional.pad(pack(lower, system), (0, SPARE))
        return cls(packed, bits, scales, grid_of(system), True)

    @property
    def members(self) -> int:
        """Members."""
        return self.bits.shape[1]

    @property
    def layout(self) -> Layout:
        """The weight's layout."""
        return self.scales.layout

    @property
    def device(self) -> torch.device:
        """The device on which all of it lies."""
        return self.bits.device

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory: levels, bits and scales."""
        spare = SPARE if self.packed else 0
        return self.lower.numel() + self.bits.numel() + spare + 4 * self.scales.values.numel()

    @property
    def is_matrix(self) -> bool:
        """True of a matrix [out, in] whose rows are whole bytes of a plane: it can be multiplied."""
        shape = self.layout.shape
        return len(shape) == 2 and self.layout.output_axis == 0 and shape[1] % EIGHT == 0 and 0 not in shape


class Backend(Protocol):
    """The operations that every backend has; see this module's own for the arguments."""

    def round_into(
        self, out: Tensor, planes: Planes, first: int = 0, starts: Tensor | None = None
    ) -> None: ...

    def multiplies(self, planes: Planes, positions: int, dtype: torch.dtype) -> bool: ...

    def multiply(self, inputs: Tensor, planes: Planes, dtype: torch.dtype) -> Tensor: ...


def of(device: torch.device) -> Backend:
    """Return the backend for tensors on a device: the one of the kernels that round there.

    Raises:
        InputError: ``LPE_KERNELS`` names none, or one that the device does not have.
    """
    kind = _kind(device)
    own = __name__ if kind == "reference" else f"{__name__}_{kind}"
    backend: Backend = import_module(own)
    return backend


def _kind(device: torch.device) -> str:
    """Return the name of the kernels for a device."""
    name: str = kernels.of(device).__name__  # type: ignore[attr-defined]
    return name.rpartition(".")[2]


def multiplies(planes: Planes, positions: int, dtype: torch.dtype) -> bool:
    """Tell whether a product with so many positions a member is faster by ``multiply``: never here."""
    return False


def round_into(out: Tensor, planes: Planes, first: int = 0, starts: Tensor | None = None) -> None:
    """Write the values of members ``first`` … into ``out`` [members, segments, length], in plain torch.

    Args:
        out: any floating dtype, contiguous. starts: the first element of each segment in row-major order,
            int64 [segments]; None: one segment, the whole weight.
    """
    members, _, length = out.shape
    grid, table = planes.grid, level_table(planes.grid, planes.device)
    last = len(grid.levels) - 1
    member = torch.arange(first, first + members, device=planes.device)
    for segment, start in enumerate([0] if starts is None else starts.tolist()):
        for offset in range(0, length, CHUNK):
            stop = min(offset + CHUNK, length)
            element = torch.arange(start + offset, start + stop, device=planes.device)
            index = _indices(planes, element)
            bit = planes.bits[element // EIGHT][:, member].T >> (element % EIGHT).to(torch.uint8) & 1
            level = table[torch.minimum(index + bit, torch.tensor(last, device=planes.device)).long()]
            scale = planes.scales.values[planes.scales.group(start + offset, start + stop)]
            out[:, segment, offset:stop] = (level * scale).to(out.dtype)


def _indices(planes: Planes, element: Tensor) -> Tensor:
    """Return the indices of elements' lower levels, int32."""
    grid = planes.grid
    if not planes.packed:
        return planes.lower[element].int() - grid.lowest_code
    place = element * grid.code_bits
    two = planes.lower[place // EIGHT].int() | planes.lower[place // EIGHT + 1].int() << EIGHT
    return (two >> place % EIGHT) & ((1 << grid.code_bits) - 1)


def multiply(inputs: Tensor, planes: Planes, dtype: torch.dtype) -> Tensor:
    """Return x[m] W_mᵀ of all members, without bias, in plain torch.

    Args:
        inputs: [members, positions, in]. planes: of a matrix [out, in].
        dtype: of the members' weights and of what is returned.

    Returns:
        [members, positions, out].
    """
    rows, columns = planes.layout.shape
    weight = torch.empty((planes.members, 1, rows * columns), dtype=dtype, device=planes.device)
    round_into(weight, planes)
    return inputs.to(dtype) @ weight.view(planes.members, rows, columns).mT
