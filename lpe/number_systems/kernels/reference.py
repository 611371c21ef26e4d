"""The definition of the rounding rules, in plain torch; every other backend must match it bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lpe.number_systems.grids import Grid
from lpe.number_systems.kernels.arguments import Draw, Scales
from lpe.number_systems.streams import random_lanes

COUPLING = 40503
"""What a further coupled member adds to the random lane, modulo 2¹⁶: ⌊2¹⁶/φ⌋, which is odd."""

CHUNK = 1 << 15
"""Elements rounded at a time, a multiple of 8: bounds the temporaries at a few MB for any tensor's size."""


def code_type(grid: Grid) -> torch.dtype:
    """int8 of uniform grids, whose codes have a sign; uint8 of all others."""
    return torch.int8 if grid.uniform else torch.uint8


def level_table(grid: Grid, device: torch.device) -> Tensor:
    """The levels at scale 1: float32 [levels]."""
    return torch.tensor(grid.levels, dtype=torch.float32, device=device)


def scaled(weight: Tensor, inverse: Tensor, grid: Grid) -> Tensor:
    """v = w·(1/s) of float32 weights and their inverse scales, of one shape.

    Where 1/s is not finite it is the level nearest to 0. Grids that are not uniform: clamped to their ends.
    """
    v = torch.where(torch.isfinite(inverse), weight * inverse, grid.levels[grid.zero])
    return v if grid.uniform else v.clamp_(grid.levels[0], grid.levels[-1])


def neighbours(v: Tensor, grid: Grid, table: Tensor) -> tuple[Tensor, Tensor]:
    """The lower neighbour's code of every v, and p, where v lies between it (0) and the upper one (1).

    Uniform grids: ⌊v⌋, which may lie outside −q … q, and p = v − ⌊v⌋, exact in float32 but for −½ < v < 0,
    where it is off by at most 2⁻²⁵. Others: lo is the greatest level ≤ v, but never the last; hi is the next
    one; p = (v − lo)/(hi − lo), each of the three operations rounded to float32.

    Args:
        v: see :func:`scaled`. table: see :func:`level_table`.

    Returns:
        code, float32 of uniform grids and int64 of others; p, float32; both of v's shape.
    """
    if grid.uniform:
        low = v.floor()
        return low, v - low
    index = torch.bucketize(v, table[1:-1], right=True)
    lower = table.take(index)
    return index, (v - lower) / (table.take(index + 1) - lower)


def round_codes(
    weight: Tensor, inverse: Tensor, grid: Grid, table: Tensor, rounding: str, lanes: Tensor | None
) -> Tensor:
    """Codes of float32 weights; all tensors but the table of one shape.

    Nearest: the upper neighbour where p > ½, and where p = ½ and it stands an even number of levels from the
    level nearest to 0. Otherwise the upper one where r < T, T = 65536·p rounded to an integer, ties to even.
    """
    v = scaled(weight, inverse, grid)
    if rounding == "nearest" and grid.uniform:
        codes = v.round()
    else:
        low, p = neighbours(v, grid, table)
        if rounding == "nearest":
            up = (p > 0.5) | ((p == 0.5) & (((low - grid.zero) & 1) == 1))
        else:
            assert lanes is not None
            # The product with a power of two is exact.
            up = lanes < (p * 65536.0).round()
        codes = low + up
    if grid.uniform:
        # float32's error in w·(1/Δ) may put the largest weight a little outside.
        codes = codes.clamp_(grid.levels[0], grid.levels[-1])
    return codes.to(code_type(grid))


def values_of(codes: Tensor, scale: Tensor, grid: Grid, table: Tensor) -> Tensor:
    """level·s in float32, of codes and their scales of one shape."""
    return (codes.float() if grid.uniform else table.take(codes.long())) * scale


def encode(weight: Tensor, scales: Scales, grid: Grid, draw: Draw) -> Tensor:
    """Codes of a flat weight.

    Args:
        weight: [elements], any floating dtype, in the parameter's row-major order.

    Returns:
        [elements], of ``code_type(grid)``.
    """
    codes = torch.empty(weight.shape, dtype=code_type(grid), device=weight.device)
    table = level_table(grid, weight.device)
    for start, stop, _, part in _chunks_of_codes(weight, scales, grid, table, draw):
        codes[start:stop] = part
    return codes


def round_into(out: Tensor, weight: Tensor, scales: Scales, grid: Grid, draw: Draw) -> None:
    """Write the values level·s of a flat weight into ``out`` [elements], as ``decode(encode(…))`` gives them.

    The other arguments are :func:`encode`'s. No codes of the whole weight are held.
    """
    table = level_table(grid, weight.device)
    for start, stop, group, part in _chunks_of_codes(weight, scales, grid, table, draw):
        out[start:stop] = values_of(part, scales.values[group], grid, table)


def _chunks_of_codes(
    weight: Tensor, scales: Scales, grid: Grid, table: Tensor, draw: Draw
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """start, stop, scale groups and codes of CHUNK elements at a time."""
    seed, name, member = draw.seed, draw.name, draw.member
    for start in range(0, weight.numel(), CHUNK):
        stop = min(start + CHUNK, weight.numel())
        group = scales.group(start, stop)
        lanes = None
        if draw.rounding == "bernoulli":
            lanes = random_lanes(seed, name, member, start, stop, weight.device)
        elif draw.rounding == "coupled":
            lanes = (random_lanes(seed, name, 0, start, stop, weight.device) + COUPLING * member) & 0xFFFF
        part = weight[start:stop].float()
        yield start, stop, group, round_codes(part, scales.inverses[group], grid, table, draw.rounding, lanes)


def decode(codes: Tensor, scales: Scales, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Values level·s of flat codes, computed in float32 and cast: [elements]."""
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    table = level_table(grid, codes.device)
    for start in range(0, codes.numel(), CHUNK):
        stop = min(start + CHUNK, codes.numel())
        scale = scales.values[scales.group(start, stop)]
        values[start:stop] = values_of(codes[start:stop], scale, grid, table)
    return values
