"""The definition of the rounding rules, in plain torch; every other backend must match it bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lpe.number_systems.grids import Grid, ScaleAxis
from lpe.number_systems.kernels.arguments import Draw, Rounded, Scales, Stored
from lpe.number_systems.layouts import Layout
from lpe.number_systems.streams import LANES, random_lanes

COUPLING = 40503
"""Number that a further coupled member adds to the random lane, modulo 2¹⁶: ⌊2¹⁶/φ⌋, which is odd."""

GREATEST = 65535
"""The greatest random number: whoever draws it gets the lower neighbour."""

CHUNK = 1 << 15
"""Elements rounded at a time, a multiple of 8: bounds the temporaries at a few MB for any tensor's size."""


def code_type(grid: Grid) -> torch.dtype:
    """Return int8 of uniform grids, whose codes have a sign; uint8 of all others."""
    return torch.int8 if grid.uniform else torch.uint8


def level_table(grid: Grid, device: torch.device) -> Tensor:
    """Return the levels at scale 1: float32 [levels]."""
    return torch.tensor(grid.levels, dtype=torch.float32, device=device)


def scaled(weight: Tensor, inverse: Tensor, grid: Grid) -> Tensor:
    """Return v = w·(1/s) of float32 weights and their inverse scales, of one shape.

    Where 1/s is not finite it is the level nearest to 0. Grids that are not uniform: clamped to their ends.
    """
    v = torch.where(torch.isfinite(inverse), weight * inverse, grid.levels[grid.zero])
    return v if grid.uniform else v.clamp_(grid.levels[0], grid.levels[-1])


def neighbours(v: Tensor, grid: Grid, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower neighbour's code of every v, and p, where v lies between it (0) and the upper one (1).

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
    """Return the codes of float32 weights; all tensors but the table of one shape.

    Nearest: the upper neighbour where p > ½, and where p = ½ and it stands an even number of levels from the
    level nearest to 0. Otherwise the upper one where r < T, T = 65536·p rounded to an integer, ties to even.
    "lower": the least code that any r gives, which is the upper one only where T = 65536, above every r.
    """
    v = scaled(weight, inverse, grid)
    if rounding == "nearest" and grid.uniform:
        codes = v.round()
    else:
        low, p = neighbours(v, grid, table)
        if rounding == "nearest":
            up = (p > 0.5) | ((p == 0.5) & (((low - grid.zero) & 1) == 1))
        else:
            # The product with a power of two is exact.
            threshold = (p * 65536.0).round()
            up = (GREATEST if lanes is None else lanes) < threshold
        codes = low + up
    if grid.uniform:
        # float32's error in w·(1/Δ) may put the largest weight a little outside.
        codes = codes.clamp_(grid.levels[0], grid.levels[-1])
    return codes.to(code_type(grid))


def values_of(codes: Tensor, scale: Tensor, grid: Grid, table: Tensor) -> Tensor:
    """Return level·s in float32, of codes and their scales of one shape."""
    return (codes.float() if grid.uniform else table.take(codes.long())) * scale


def encode(
    weight: Stored,
    scales: Scales,
    grid: Grid,
    draw: Draw,
    members: int = 1,
    starts: Tensor | None = None,
    length: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Encode a flat weight, or segments of it, for one member or several.

    Args:
        weight: [elements], any floating dtype or codes, in the parameter's row-major order.
        scales, grid: of the members. draw: its ``member`` is the first.
        members: how many. starts: first elements of segments of ``length``, int64 [segments]; None: one
            segment, the whole weight.
        out: where to write them, as returned and contiguous; None: anew.

    Returns:
        [members, segments, length], of ``code_type(grid)``.
    """
    first, count = segments(weight, starts, length)
    shape = (members, len(first), count)
    codes = torch.empty(shape, dtype=code_type(grid), device=weight.device) if out is None else out
    table = level_table(grid, weight.device)
    for segment, place, _, part in _chunks_of_codes(weight, scales, grid, table, draw, members, first, count):
        codes[:, segment, place] = part
    return codes


def planes(weight: Stored, scales: Scales, grid: Grid, draw: Draw, members: int = 1) -> Tensor:
    """Return the Bernoulli bits of a flat weight: a member's code less the one that ``draw`` "lower" gives.

    The arguments are :func:`encode`'s; ``draw`` is "bernoulli" or "coupled".

    Returns:
        uint8 [members, ⌈elements / 8⌉]; bit e mod 8 of byte e div 8 is element e's, those beyond the last
        element are 0.
    """
    count = weight.numel()
    packed = torch.empty((members, -(-count // LANES)), dtype=torch.uint8, device=weight.device)
    table = level_table(grid, weight.device)
    for offset in range(0, count, CHUNK):
        stop = min(offset + CHUNK, count)
        part = stored_values(weight, offset, stop)
        inverse = scales.inverses[scales.group(offset, stop)]
        lower = round_codes(part, inverse, grid, table, "lower", None)
        place = slice(offset // LANES, -(-stop // LANES))
        for member, lanes in enumerate(_lanes(draw, members, offset, stop, weight.device)):
            codes = round_codes(part, inverse, grid, table, draw.rounding, lanes)
            packed[member, place] = packed_bits(codes != lower)
    return packed


def packed_bits(bits: Tensor) -> Tensor:
    """Pack bits, bool [elements], eight in a byte, the first the lowest: uint8 [⌈elements / 8⌉]."""
    whole = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % LANES)).view(-1, LANES)
    places = torch.arange(LANES, dtype=torch.uint8, device=bits.device)
    return (whole << places).sum(dim=1, dtype=torch.uint8)


def round_into(
    out: Tensor, weight: Stored, scales: Scales, grid: Grid, draw: Draw, starts: Tensor | None = None
) -> None:
    """Write the values level·s, in float32 and then cast, as ``decode(encode(…))`` gives them.

    The other arguments are :func:`encode`'s. No codes of the whole weight are held.

    Args:
        out: [members, segments, length], any floating dtype, contiguous.
    """
    members, _, length = out.shape
    first, count = segments(weight, starts, length)
    table = level_table(grid, weight.device)
    for segment, place, group, part in _chunks_of_codes(
        weight, scales, grid, table, draw, members, first, count
    ):
        out[:, segment, place] = values_of(part, scales.values[group], grid, table).to(out.dtype)


class Plan:
    """Weights that are rounded together; see ``kernels.Plan``. Here they are rounded one after another."""

    def __init__(self, tensors: Sequence[Rounded]) -> None:
        self._tensors = list(tensors)

    def round_into(self, outs: Sequence[Tensor], draw: Draw, members: int = 1) -> None:
        """Write the members' values; see ``kernels.Plan.round_into``."""
        for out, tensor in zip(outs, self._tensors, strict=True):
            values = out.view(members, 1, tensor.weight.numel())
            own = replace(draw, name=tensor.name)
            round_into(values, tensor.weight, tensor.scales, tensor.grid, own)


plan = Plan


def absmax(weight: Tensor, layout: Layout, axis: ScaleAxis) -> Tensor:
    """Return the largest |w| of each scale group: float32 [groups]; NaN or infinite where a weight is.

    Args:
        weight: flat and not empty, any floating dtype, of the layout's number of weights; or signed codes.
        layout, axis: from which follows the group of a weight.
    """
    row_extent, column_extent = axis.extent(layout.rows, layout.columns)
    rows = layout.scale_shape(axis)[0]
    matrix = layout.matrix(weight)
    # From the least and the greatest value: |w| would be a copy of the weight.
    largest = torch.stack(
        [
            torch.maximum(part.amax(dim=1), -part.amin(dim=1)).abs()
            for part in matrix.split(column_extent, dim=1)
        ],
        dim=1,
    ).float()
    # Rows are padded with zeros, which raise no maximum.
    padded = torch.nn.functional.pad(largest, (0, 0, 0, rows * row_extent - layout.rows))
    return padded.unflatten(0, (rows, row_extent)).amax(dim=1).flatten()


def segments(weight: Stored, starts: Tensor | None, length: int | None) -> tuple[list[int], int]:
    """Return first elements of the segments, and their length; without starts, the whole weight as one."""
    if starts is None:
        return [0], weight.numel()
    assert length is not None
    return starts.tolist(), length


def stored_values(weight: Stored, start: int, stop: int) -> Tensor:
    """Return elements start … stop − 1 of stored weights: float32 [stop − start]."""
    if isinstance(weight, Tensor):
        return weight[start:stop].float()
    table = level_table(weight.grid, weight.device)
    scale = weight.scales.values[weight.scales.group(start, stop)]
    return values_of(weight.codes[start:stop], scale, weight.grid, table)


def _chunks_of_codes(
    weight: Stored,
    scales: Scales,
    grid: Grid,
    table: Tensor,
    draw: Draw,
    members: int,
    starts: list[int],
    length: int,
) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Yield segment, place in it, scale groups and codes [members, chunk] of CHUNK elements at a time."""
    for segment, first in enumerate(starts):
        for offset in range(0, length, CHUNK):
            stop = min(offset + CHUNK, length)
            group = scales.group(first + offset, first + stop)
            part = stored_values(weight, first + offset, first + stop)
            codes = [
                round_codes(part, scales.inverses[group], grid, table, draw.rounding, lanes)
                for lanes in _lanes(draw, members, first + offset, first + stop, weight.device)
            ]
            yield segment, slice(offset, stop), group, torch.stack(codes)


def _lanes(draw: Draw, members: int, start: int, stop: int, device: torch.device) -> Iterator[Tensor | None]:
    """Yield the random numbers of each member, int64 [stop − start]; None each where there are none."""
    aligned = start - start % LANES

    def drawn(member: int) -> Tensor:
        return random_lanes(draw.seed, draw.name, member, aligned, stop, device)[start - aligned :]

    shared = drawn(0) if draw.rounding == "coupled" else None
    for member in range(draw.member, draw.member + members):
        if draw.rounding in ("nearest", "lower"):
            yield None
        elif shared is not None:
            yield (shared + COUPLING * member) & 0xFFFF
        else:
            yield drawn(member)


def decode(codes: Tensor, scales: Scales, grid: Grid, dtype: torch.dtype, start: int = 0) -> Tensor:
    """Return the values level·s of flat codes of the elements start …, cast from float32: [elements]."""
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    table = level_table(grid, codes.device)
    for offset in range(0, codes.numel(), CHUNK):
        stop = min(offset + CHUNK, codes.numel())
        scale = scales.values[scales.group(start + offset, start + stop)]
        values[offset:stop] = values_of(codes[offset:stop], scale, grid, table)
    return values
