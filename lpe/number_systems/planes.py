"""Bit planes: the members of a weight as its lower neighbours, once, and one Bernoulli bit a member.

Two members of one weight differ in nothing but the Bernoulli bit:

    code = lower neighbour + bit

The lower neighbour is the least code that a member can have, the one of the greatest random number, 65535:
⌊w/Δ⌋ of integers, the index of the level below of others, the next one where the probability rounds to 1, and
the end of the grid beyond it. So M members take b + M bits a weight instead of M·b, and nothing is drawn when
they are read. Independent and coupled members have planes; to the nearest there is no bit.

A plane is flat: bit e mod 8 of byte e div 8 is that of element e of the contiguous row-major parameter, and
the bits beyond the last element are 0. Lower neighbours are codes like a member's, and packed as such
(``packing``).

The layout, a shared base and 1-bit differences, is that of Liu et al. 2024, "BitDelta: Your Fine-Tune May
Only Be Worth One Bit"; there the bits approximate a fine-tuned model, here they give the member exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems import kernels
from lpe.number_systems.codes import check_codes
from lpe.number_systems.grids import LowPrecision, grid_of
from lpe.number_systems.kernels.arguments import Coded, Draw, Scales
from lpe.number_systems.layouts import Layout
from lpe.number_systems.packing import FAST
from lpe.number_systems.rounding import encode_with_scales
from lpe.number_systems.streams import LANES

RANDOM = ("bernoulli", "coupled")
"""The roundings whose members have planes."""


def check_random(rounding: str) -> None:
    """Raise InputError unless members of this rounding have planes."""
    if rounding not in RANDOM:
        raise InputError(
            f"planes are of {' or '.join(RANDOM)} members; those to the nearest are all alike, and stored "
            "once with kind='members'"
        )


def plane_bytes(count: int) -> int:
    """Return the bytes that a plane of ``count`` weights takes."""
    return -(-count // LANES)


def lower_neighbours(weight: Tensor | Coded, scales: Tensor, system: LowPrecision, layout: Layout) -> Tensor:
    """Return the lower neighbours under scales that are at hand, of the layout's shape; not checked."""
    return encode_with_scales(weight, scales, system, layout, Draw("lower", 0, "", 0))


@torch.no_grad()
def planes_with_scales(
    weight: Tensor | Coded, scales: Tensor, system: LowPrecision, layout: Layout, draw: Draw, members: int = 1
) -> Tensor:
    """Return members' planes under scales that are at hand, uint8 [members, ⌈elements / 8⌉]; not checked.

    Args:
        weight: of the layout's shape, or stored codes. draw: its ``member`` is the first; "bernoulli" or
            "coupled".
    """
    flat = weight if isinstance(weight, Coded) else weight.detach().reshape(-1)
    of_elements = Scales.of(scales, layout, system.scale)
    return kernels.of(weight.device).planes(flat, of_elements, grid_of(system), draw, members)


def unpack_plane(plane: Tensor, count: int) -> Tensor:
    """Return the bits of ``count`` weights: uint8 [..., count], 0 or 1, of planes [..., ⌈count / 8⌉].

    Raises:
        InputError: the plane is of another type or length.
    """
    check_planes(plane, count)
    places = torch.arange(LANES, dtype=torch.uint8, device=plane.device)
    return ((plane[..., None] >> places) & 1).flatten(-2)[..., :count]


def check_planes(planes: Tensor, count: int) -> None:
    """Raise InputError unless planes are those of ``count`` weights: uint8 [..., ⌈count / 8⌉]."""
    if planes.dtype != torch.uint8 or not planes.dim() or planes.shape[-1] != plane_bytes(count):
        raise InputError(
            f"planes of {count} weights are uint8 of {plane_bytes(count)} bytes each, not {planes.dtype} of "
            f"shape {list(planes.shape)}"
        )


def codes_of(lower: Tensor, plane: Tensor, system: LowPrecision) -> Tensor:
    """Put a member together: its codes, lower neighbour + bit, of ``lower``'s shape and dtype.

    Args:
        lower: as :func:`lower_neighbours` returns them. plane: of one member, uint8 [⌈elements / 8⌉], on the
            same device.

    Raises:
        InputError: codes or planes of another type or length; a bit above the last level, which no member
            has.
    """
    check_codes(lower, system)
    check_planes(plane, lower.numel())
    grid = grid_of(system)
    count, last = lower.numel(), grid.lowest_code + len(grid.levels) - 1
    if plane.dim() != 1:
        raise InputError(f"one member's plane is a row of bytes, not of shape {list(plane.shape)}")
    if lower.device.type == "cpu" and count >= FAST:
        from lpe.number_systems.fast_packing import add_bits

        codes = torch.empty_like(lower, memory_format=torch.contiguous_format)
        flat = lower.contiguous().view(-1).view(torch.uint8).numpy()
        added = codes.view(-1).view(torch.uint8).numpy()
        above = bool(add_bits(added, flat, plane.contiguous().numpy(), np.uint8(last % 256)))
    else:
        bits = unpack_plane(plane, count).view(lower.shape)
        above = bool(((lower == last) & (bits != 0)).any())
        codes = lower + bits.to(lower.dtype)
    if above:
        raise InputError(f"a plane has a bit above the last level of {system.name}; the planes are damaged")
    return codes
