"""Members as bit planes on a CPU: machine code by numba, see ``planes_code``, on as many threads as torch."""

from __future__ import annotations

from array import array
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lpe.number_systems.grids import PerTensor, ScaleAxis
from lpe.number_systems.kernels import planes_code, teams
from lpe.number_systems.kernels.planes import EIGHT, Planes
from lpe.number_systems.kernels.planes_code import STRETCH, TILES
from lpe.number_systems.layouts import Layout

DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes of the weights that are multiplied without being written."""

POSITIONS = 32
"""Most positions a member that are multiplied so; with more, writing the weights is less than the products.
Measured, see benchmarks/on_the_fly.py.
"""

WORTH_A_TEAM = 1 << 15
"""Weights, over all members, that are worth other threads."""

PIECE_ROWS = 64
"""Rows that a thread takes at a time, or fewer where there are few: sums of a piece read the inputs again."""

INPUTS_IN_CACHE = 1 << 15
"""Inputs of a stretch, over all sums of a row: 128 kB, a part of the second cache."""


@cache
def _place(layout: Layout, axis: ScaleAxis) -> np.ndarray:
    """Return the numbers that tell an element's group: see ``planes_code._group_run``."""
    numel = max(layout.numel, 1)
    if isinstance(axis, PerTensor):
        return np.array([2, numel, 1, 1, 1, 1, 1, 1, 1], np.int64)
    common = [numel, layout.columns, *axis.extent(layout.rows, layout.columns), layout.scale_shape(axis)[1]]
    if layout.by_rows:
        return np.array([0, *common, 1, 1, 1], np.int64)
    return np.array([1, *common, layout.inputs, layout.outputs, layout.after], np.int64)


@cache
def _levels(levels: tuple[float, ...]) -> np.ndarray:
    return np.array(levels, np.float32)


def _work(planes: Planes, written: Tensor, dtype: torch.dtype, **arguments: int) -> array[int]:
    """Return the machine code's arguments, with those of all its work filled in."""
    grid = planes.grid
    levels = _levels(() if grid.uniform else grid.levels)
    place = _place(planes.layout, planes.scales.axis)
    assert (
        planes.packed
        and planes.lower.is_contiguous()
        and planes.bits.is_contiguous()
        and written.is_contiguous()
    )
    assert planes.scales.values.is_contiguous()  # only addresses go on from here
    zeros = dict.fromkeys(planes_code.Work._fields, 0)
    of_all = dict(
        lower=planes.lower.data_ptr(),
        lower_length=planes.lower.numel(),
        bits=grid.code_bits,
        lowest=grid.lowest_code,
        planes=planes.bits.data_ptr(),
        members=planes.members,
        elements=planes.layout.numel,
        levels=levels.ctypes.data,
        level_count=len(levels),
        values=planes.scales.values.data_ptr(),
        groups=planes.scales.values.numel(),
        place=place.ctypes.data,
        halves=dtype == torch.bfloat16,
        written=written.data_ptr(),
    )
    return array("q", list((zeros | of_all | arguments).values()))


def _threads(weights: int, units: int) -> int:
    return torch.get_num_threads() if weights >= WORTH_A_TEAM and units > 1 else 1


def round_into(out: Tensor, planes: Planes, first: int = 0, starts: Tensor | None = None) -> None:
    """Write values into ``out`` [members, segments, length]; see ``planes.round_into``."""
    if not out.numel():
        return
    if out.dtype not in DTYPES:
        values = torch.empty(out.shape, dtype=torch.float32, device="cpu")
        round_into(values, planes, first, starts)
        out.copy_(values)
        return
    members, segments, length = out.shape
    begins = np.zeros(1, np.int64) if starts is None else starts.contiguous().numpy()
    work = _work(
        planes,
        out,
        out.dtype,
        first=first,
        written_members=members,
        segments=segments,
        length=length,
        starts=begins.ctypes.data,
    )
    units = segments * -(-(length + EIGHT - 1) // STRETCH)
    teams.run(planes_code.values.address, work.buffer_info()[0], _threads(out.numel(), units))


def multiplies(planes: Planes, positions: int, dtype: torch.dtype) -> bool:
    """Tell whether a product with so many positions a member is made by ``multiply``."""
    return planes.is_matrix and dtype in DTYPES and 0 < positions <= POSITIONS


def tiles_of(members: int, positions: int) -> list[tuple[int, int, int]]:
    """Cut sums [members, positions] into tiles: place in TILES, first member, first position of each.

    Positions are cut first, so that the sums of a cut are [members, positions of it] in their order.
    """
    found, position = [], 0
    while position < positions:
        wide = max(p for _, p in TILES if p <= positions - position)
        member = 0
        while member < members:
            high = max(g for g, p in TILES if p == wide and g <= members - member)
            found.append((TILES.index((high, wide)), member, position))
            member += high
        position += wide
    return found


@cache
def _tiling(members: int, positions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tiles as ``planes_code.sums`` reads them, and their firsts and sizes as ``gather`` does."""
    tiles = tiles_of(members, positions)
    sizes = np.array([TILES[which] for which, _, _ in tiles], np.int64)
    before = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))[:-1]])
    places = np.array([(which, member, sums) for (which, member, _), sums in zip(tiles, before, strict=True)])
    firsts = np.array([(member, position) for _, member, position in tiles], np.int64)
    return np.ascontiguousarray(places, np.int64), firsts, sizes


def multiply(inputs: Tensor, planes: Planes, dtype: torch.dtype) -> Tensor:
    """Return x[m] W_mᵀ of all members, summed in float32; see ``planes.multiply``.

    Args:
        planes: of a matrix, ``planes.is_matrix``. dtype: of DTYPES.
    """
    members, positions, columns = inputs.shape
    rows = planes.layout.shape[0]
    width = members * positions
    out = torch.empty((members, positions, rows), dtype=torch.float32, device="cpu")
    if not out.numel():
        return out.to(dtype)
    tiles, firsts, sizes = _tiling(members, positions)
    laid = torch.empty(width * columns, dtype=torch.float32, device="cpu")
    planes_code.gather(inputs.detach().float().contiguous().numpy(), firsts, sizes, laid.numpy())
    sums = torch.empty((rows, width), dtype=torch.float32, device="cpu")
    stretch = max(EIGHT * EIGHT, min(STRETCH, INPUTS_IN_CACHE // width // EIGHT * EIGHT))
    threads = _threads(members * rows * columns, rows)
    piece = max(1, min(PIECE_ROWS, rows // (4 * threads)))
    work = _work(
        planes,
        sums,
        dtype,
        rows=rows,
        columns=columns,
        inputs=laid.data_ptr(),
        tiles=tiles.ctypes.data,
        tile_count=len(tiles),
        sums=width,
        stretch=stretch,
        piece=piece,
    )
    teams.run(planes_code.sums.address, work.buffer_info()[0], threads)
    before = position = 0
    while position < positions:
        wide = int(sizes[np.flatnonzero(firsts[:, 1] == position)[0], 1])
        cut = sums[:, before : before + members * wide].view(rows, members, wide)
        out[:, position : position + wide] = cut.permute(1, 2, 0)
        position, before = position + wide, before + members * wide
    return out.to(dtype)
