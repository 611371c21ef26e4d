"""The rounding on a CPU, by numba: compiled once, kept on disk, and spread over torch's number of threads.

A weight is worked on in chunks of 256 Philox blocks, 2048 elements, which stay in the nearest cache:

    1. the stored weights as float32, whatever they are stored as
    2. v = w·(1/s), the lower neighbour's code, and T = 65536·p rounded
    3. for every member: random lanes; code = lower neighbour + [r < T]; codes or values written

So a stored weight is read once for all members, and step 2 is done once. Philox's words are held as 64-bit
integers, so that the compiler finds the vector product of 32-bit halves; of coupled members only the first
needs them. No step may be reordered or fused (``fastmath`` stays off): the codes are ``reference``'s.

T = 65536 (p rounds to 1) is written as the next code and T = 0, so that T has 16 bits.

Threads: pieces of a large weight run, without the interpreter's lock, in a pool of this module's. OpenMP
would start them faster, but its idle threads go on spinning for milliseconds, beside those of torch's own
OpenMP, and each then holds up the other; and it does not survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
import torch
from numba import float32, int32, int64, uint16, uint32, uint64
from torch import Tensor

from lpe.number_systems.grids import Grid, PerTensor, ScaleAxis
from lpe.number_systems.kernels.arguments import Coded, Draw, Scales, Stored
from lpe.number_systems.kernels.reference import COUPLING, code_type
from lpe.number_systems.layouts import Layout
from lpe.number_systems.streams import LANES, tensor_id

BLOCKS = 256
"""Philox blocks of a chunk: enough to hide what a chunk costs once, few enough for the nearest cache."""

CHUNK = BLOCKS * LANES
"""Elements of a chunk."""

PIECE = 1 << 19
"""Elements, over all members, that are worth handing to another thread: half a millisecond."""

_ROUNDINGS = {"nearest": 0, "bernoulli": 1, "coupled": 2}
PART = 1 << 20
"""Elements at a time of types that go through float32, such as float16."""

_FLOAT32, _BFLOAT16, _CODES = 0, 1, 2  # what is read, and what is written

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def _compiled(function: Callable[..., Any]) -> Any:
    """Machine code, from the disk where it is there; only in memory where nothing can be written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache
        return numba.njit(**options)(function)


# Steps over a chunk. Buffers have CHUNK places, of which the first ``count`` are meant: loops that start at 0
# and write no more bits than needed are what the compiler makes vectors of.


@_compiled
def _random_lanes(words, blocks, block, k0, k1, identity, member):  # type: ignore[no-untyped-def]
    """Philox4x32-10: the four words of each block, two by two in 64 bits, which lie as its eight lanes do."""
    # Two blocks at a time: the products of one wait while those of the other go on. Of an odd number the last
    # is followed by one more, which nobody reads.
    half = (blocks + 1) // 2
    for i in range(half):
        j = i + half
        here, there = block + uint64(i), block + uint64(j)
        c0, c1, c2, c3 = here, here >> _HALF, identity, member
        d0, d1, d2, d3 = there, there >> _HALF, identity, member
        a, b = k0, k1
        for _ in range(10):
            # What stands in the high halves of the words is left there: the product of two low halves, one
            # instruction, does not see it.
            c_product0, d_product0 = (c0 & _MASK) * _M0, (d0 & _MASK) * _M0
            c_product1, d_product1 = (c2 & _MASK) * _M1, (d2 & _MASK) * _M1
            c0, d0 = (c_product1 >> _HALF) ^ c1 ^ a, (d_product1 >> _HALF) ^ d1 ^ a
            c2, d2 = (c_product0 >> _HALF) ^ c3 ^ b, (d_product0 >> _HALF) ^ d3 ^ b
            c1, c3, d1, d3 = c_product1, c_product0, d_product1, d_product0
            a = (a + _W0) & _MASK
            b = (b + _W1) & _MASK
        words[2 * i] = (c0 & _MASK) | (c1 << _HALF)
        words[2 * i + 1] = (c2 & _MASK) | (c3 << _HALF)
        words[2 * j] = (d0 & _MASK) | (d1 << _HALF)
        words[2 * j + 1] = (d2 & _MASK) | (d3 << _HALF)


@_compiled
def _group_run(element, place):  # type: ignore[no-untyped-def]
    """The scale group of an element, and the first element after it that may be of another."""
    axis, numel, columns, row_extent = place[0], place[1], place[2], place[3]
    column_extent, group_columns = place[4], place[5]
    if axis == 2:
        return int64(0), numel
    if axis == 0:
        row = element // columns
        if column_extent >= columns:
            group_row = row // row_extent
            return group_row * group_columns, (group_row + 1) * row_extent * columns
        column = element - row * columns
        block = column // column_extent
        stop = min((block + 1) * column_extent, columns)
        return row // row_extent * group_columns + block, row * columns + stop
    inputs, outputs, kernel = place[6], place[7], place[8]
    pair = element // kernel
    inside = element - pair * kernel
    first = pair // outputs
    row = first // inputs * outputs + pair - first * outputs
    column = first % inputs * kernel + inside
    block = column // column_extent
    stop = min((block + 1) * column_extent - column, kernel - inside)
    return row // row_extent * group_columns + block, element + stop


@_compiled
def _entry(table, group, finite):  # type: ignore[no-untyped-def]
    value = table[group]
    return float32(0) if finite and not value < float32(np.inf) else value


@_compiled
def _spread(buffer, table, finite, start, count, place, filled):  # type: ignore[no-untyped-def]
    """Each element's entry of a table of groups; where only ``finite`` ones are wanted, 0 for others.

    ``filled`` is the one group that all places hold, or −1; so is what is returned.
    """
    group, stop = _group_run(start, place)
    if stop >= start + count:
        if filled != group:
            value = _entry(table, group, finite)
            for i in range(CHUNK):
                buffer[i] = value
        return group
    done = int64(0)
    while done < count:
        group, stop = _group_run(start + done, place)
        value = _entry(table, group, finite)
        part = buffer[done : min(stop - start, count)]
        for i in range(len(part)):
            part[i] = value
        done += len(part)
    return int64(-1)


@_compiled
def _read(buffer, kind, floats, halves, codes, scale, levels, start, count):  # type: ignore[no-untyped-def]
    """Stored weights as float32: where they lie, or in the buffer. ``scale``, ``levels``: of stored codes."""
    if kind == _FLOAT32:
        return floats[start : start + count]
    if kind == _BFLOAT16:
        halves = halves[start : start + count]
        bits = buffer.view(np.uint32)
        for i in range(count):
            bits[i] = uint32(halves[i]) << uint32(16)
        return buffer[:count]
    codes = codes[start : start + count]
    if len(levels):
        for i in range(count):
            buffer[i] = levels[np.uint8(codes[i])] * scale[i]
    else:
        for i in range(count):
            buffer[i] = float32(codes[i]) * scale[i]
    return buffer[:count]


@_compiled
def _neighbours_uniform(below, threshold, positions, weights, inverse, count, q):  # type: ignore[no-untyped-def]
    """The lower neighbour's code and T; beyond the grid its end and T = 0, as clamped codes would be."""
    for i in range(count):
        v = min(max(weights[i] * inverse[i], -q), q)
        floor = np.floor(v)
        # Whole numbers up to 2²³: exact. Two loops, since the first then needs one width of numbers only.
        positions[i] = int32(floor * float32(65536) + np.rint((v - floor) * float32(65536)))
    for i in range(count):
        below[i] = positions[i] >> int32(16)
        threshold[i] = positions[i]


@_compiled
def _nearest_uniform(below, weights, inverse, count, q):  # type: ignore[no-untyped-def]
    for i in range(count):
        below[i] = int32(np.rint(min(max(weights[i] * inverse[i], -q), q)))


@_compiled
def _neighbours_levels(  # type: ignore[no-untyped-def]
    below, threshold, scaled, weights, inverse, count, levels, zero, lookup, nearest
):
    """As of uniform grids, of any levels; of nearest rounding the code itself.

    ``lookup`` tells, by the twelve highest bits of v, the lower neighbour of the least v that has them.
    """
    last = len(levels) - 2
    least, most = levels[0], levels[last + 1]
    for i in range(count):
        v = weights[i] * inverse[i] if inverse[i] < float32(np.inf) else levels[zero]
        scaled[i] = min(max(v, least), most)
    bits = scaled.view(np.uint32)
    for i in range(count):
        v = scaled[i]
        index = int64(lookup[bits[i] >> uint32(20)])
        while index < last and levels[index + 1] <= v:
            index += 1
        lower = levels[index]
        p = (v - lower) / (levels[index + 1] - lower)
        if nearest:
            up = p > float32(0.5) or (p == float32(0.5) and (index - zero) & 1 == 1)
            below[i] = index + int64(up)
        else:
            t = int32(np.rint(p * float32(65536)))
            below[i] = index + (t >> 16)
            threshold[i] = t


@_compiled
def _choose(chosen, below, threshold, lanes, shift, count):  # type: ignore[no-untyped-def]
    """code = lower neighbour + [r < T], r = lane + shift modulo 2¹⁶."""
    for i in range(count):
        chosen[i] = below[i] + (uint16(lanes[i] + shift) < threshold[i])


@_compiled
def _write(kind, codes, floats, halves, chosen, scale, levels, buffer, first, count):  # type: ignore[no-untyped-def]
    """Codes, or values level·s as float32 or bfloat16, from ``first`` on."""
    if kind == _CODES:
        codes = codes[first : first + count]
        for i in range(count):
            codes[i] = chosen[i]
        return
    values = buffer
    if kind == _FLOAT32:
        values = floats[first : first + count]
    if len(levels):
        for i in range(count):
            values[i] = levels[np.uint8(chosen[i])] * scale[i]
    else:
        for i in range(count):
            values[i] = float32(chosen[i]) * scale[i]
    if kind == _BFLOAT16:
        halves = halves[first : first + count]
        bits = values.view(np.uint32)
        for i in range(count):
            # To the nearest, ties to even; no value is NaN.
            odd = (bits[i] >> uint32(16)) & uint32(1)
            halves[i] = (bits[i] + uint32(0x7FFF) + odd) >> uint32(16)


@_compiled
def _round(  # type: ignore[no-untyped-def]
    read_kind,
    read_floats,
    read_halves,
    read_codes,
    base_levels,
    base_scales,
    base_place,
    write_kind,
    codes,
    floats,
    halves,
    values,
    inverses,
    place,
    levels,
    zero,
    uniform,
    lookup,
    rounding,
    k0,
    k1,
    identity,
    member,
    members,
    origin,
    starts,
    length,
    unit,
    stop_unit,
):
    """Units of work unit … stop_unit − 1: chunks of segments, in order.

    Outputs are flat. Element e of the parameter is read at e − origin.
    """
    buffer = np.empty(CHUNK, np.float32)
    inverse = np.empty(CHUNK, np.float32)
    scale = np.empty(CHUNK, np.float32)
    base_scale = np.empty(CHUNK, np.float32)
    positions = np.empty(CHUNK, np.int32)
    below = np.empty(CHUNK, np.int8)
    chosen = np.empty(CHUNK, np.int8)
    threshold = np.empty(CHUNK, np.uint16)
    words = np.zeros(2 * BLOCKS, np.uint64)
    inverse_filled = scale_filled = base_filled = int64(-1)
    per_segment = (length + LANES - 1 + CHUNK - 1) // CHUNK
    nearest = rounding == 0
    for u in range(unit, stop_unit):
        segment = u // per_segment
        first = starts[segment]
        aligned = first - first % LANES + (u - segment * per_segment) * CHUNK
        start = max(first, aligned)
        count = min(first + length, aligned + CHUNK) - start
        if count <= 0:
            continue
        if read_kind == _CODES:
            base_filled = _spread(base_scale, base_scales, False, start, count, base_place, base_filled)
        weights = _read(
            buffer,
            read_kind,
            read_floats,
            read_halves,
            read_codes,
            base_scale,
            base_levels,
            start - origin,
            count,
        )
        inverse_filled = _spread(inverse, inverses, uniform, start, count, place, inverse_filled)
        if write_kind != _CODES:
            scale_filled = _spread(scale, values, False, start, count, place, scale_filled)
        if not uniform:
            _neighbours_levels(
                below, threshold, buffer, weights, inverse, count, levels, zero, lookup, nearest
            )
        elif nearest:
            _nearest_uniform(below, weights, inverse, count, float32(zero))
        else:
            _neighbours_uniform(below, threshold, positions, weights, inverse, count, float32(zero))
        block = uint64(aligned // LANES)
        blocks = (start + count - aligned + LANES - 1) // LANES
        lanes = words.view(np.uint16)[start - aligned :]
        if rounding == 2:
            _random_lanes(words, blocks, block, k0, k1, identity, uint64(0))
        for m in range(members):
            index = member + uint64(m)
            target = (int64(m) * len(starts) + segment) * length + start - first
            if nearest:
                _write(write_kind, codes, floats, halves, below, scale, levels, buffer, target, count)
                continue
            shift = uint16(0)
            if rounding == 1:
                _random_lanes(words, blocks, block, k0, k1, identity, index)
            else:
                shift = uint16((uint64(COUPLING) * index) & uint64(0xFFFF))
            if write_kind == _CODES:
                _choose(codes[target : target + count], below, threshold, lanes, shift, count)
            else:
                _choose(chosen, below, threshold, lanes, shift, count)
                _write(write_kind, codes, floats, halves, chosen, scale, levels, buffer, target, count)


# Around the machine code.


class _Pools:
    """A pool of threads for each number of them; a forked process starts without."""

    def __init__(self) -> None:
        self._pools: dict[int, ThreadPoolExecutor] = {}
        os.register_at_fork(after_in_child=self._pools.clear)

    def of(self, threads: int) -> ThreadPoolExecutor:
        if threads not in self._pools:
            self._pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="lpe-kernels")
        return self._pools[threads]


_POOLS = _Pools()
_NO_FLOATS = np.empty(0, np.float32)
_NO_HALVES = np.empty(0, np.uint16)
_NO_CODES = np.empty(0, np.int8)
_WHOLE = np.zeros(1, np.int64)
_DIRECT = (torch.float32, torch.bfloat16)
_NO_PLACE = np.array([2, 0, 1, 1, 1, 1, 1, 1, 1], np.int64)


@cache
def _levels(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Levels, float32, and the lookup of lower neighbours, uint8 [4096]; of a uniform grid both empty."""
    if grid.uniform:
        return _NO_FLOATS, np.empty(0, np.uint8)
    levels = np.array(grid.levels, np.float32)
    highest = np.arange(4096, dtype=np.uint32) << np.uint32(20)
    negative = highest >> np.uint32(31) == 1
    least = np.where(negative, highest | np.uint32(0xFFFFF), highest).view(np.float32)
    # Bits of NaN and of infinities: no v has them.
    least = np.where(np.isfinite(least), least, np.float32(np.inf))
    lookup = np.searchsorted(levels[1:-1], least, side="right")
    lookup[negative & ~np.isfinite(least)] = 0
    return levels, lookup.astype(np.uint8)


@cache
def _place(layout: Layout, axis: ScaleAxis) -> np.ndarray:
    """What tells an element's group: see ``_group_run``."""
    numel = layout.numel
    if isinstance(axis, PerTensor) or not numel:
        return np.array([2, max(numel, 1), 1, 1, 1, 1, 1, 1, 1], np.int64)
    row_extent, column_extent = axis.extent(layout.rows, layout.columns)
    group_columns = layout.scale_shape(axis)[1]
    common = [numel, layout.columns, row_extent, column_extent, group_columns]
    if layout.output_axis == 0:
        return np.array([0, *common, 1, 1, 1], np.int64)
    inputs, outputs = layout.shape[0] // layout.channel_groups, layout.shape[1]
    kernel = numel // (layout.shape[0] * outputs)
    return np.array([1, *common, inputs, outputs, kernel], np.int64)


def _of_scales(scales: Scales) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """s and 1/s [groups], and what tells an element's group; kept with the scales, for small weights."""
    kept: dict[str, Any] = scales.__dict__
    if "_arrays" not in kept:
        place = _place(scales.layout, scales.axis)
        kept["_arrays"] = (scales.values.numpy(), scales.inverses.numpy(), place)
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray] = kept["_arrays"]
    return arrays


@lru_cache(maxsize=1 << 14)
def _identity(name: str) -> np.uint64:
    return np.uint64(tensor_id(name))


def _as_numpy(tensor: Tensor) -> tuple[int, np.ndarray, np.ndarray]:
    """(kind, float32 elements, bfloat16 elements as 16 bits) of a flat tensor; one of the arrays is empty."""
    if tensor.dtype is torch.float32:
        return _FLOAT32, tensor.numpy(), _NO_HALVES
    return _BFLOAT16, _NO_FLOATS, tensor.view(torch.uint16).numpy()


def _run(
    weight: Stored,
    scales: Scales,
    grid: Grid,
    draw: Draw,
    members: int,
    starts: np.ndarray,
    length: int,
    write_kind: int,
    codes: np.ndarray = _NO_CODES,
    floats: np.ndarray = _NO_FLOATS,
    halves: np.ndarray = _NO_HALVES,
    origin: int = 0,
) -> None:
    """Spread the work over threads; of the outputs, flat, the one that ``write_kind`` names is used."""
    read_codes, base_levels, base_scales, base_place = _NO_CODES, _NO_FLOATS, _NO_FLOATS, _NO_PLACE
    if isinstance(weight, Coded):
        read_kind, read_floats, read_halves = _CODES, _NO_FLOATS, _NO_HALVES
        read_codes = weight.codes.view(torch.int8).numpy()
        base_levels = _levels(weight.grid)[0]
        base_scales, _, base_place = _of_scales(weight.scales)
    else:
        read_kind, read_floats, read_halves = _as_numpy(weight.detach().contiguous())
    levels, lookup = _levels(grid)
    values, inverses, place = _of_scales(scales)
    arguments: tuple[Any, ...] = (
        read_kind,
        read_floats,
        read_halves,
        read_codes,
        base_levels,
        base_scales,
        base_place,
        write_kind,
        codes,
        floats,
        halves,
        values,
        inverses,
        place,
        levels,
        grid.zero,
        grid.uniform,
        lookup,
        _ROUNDINGS[draw.rounding],
        np.uint64(draw.seed & 0xFFFFFFFF),
        np.uint64(draw.seed >> 32),
        _identity(draw.name),
        np.uint64(draw.member),
        members,
        origin,
        starts,
        length,
    )
    segments = len(starts)
    units = segments * ((length + LANES - 1 + CHUNK - 1) // CHUNK)
    threads = torch.get_num_threads()
    count = min(threads, segments * length * members // PIECE, units)
    if count <= 1:
        _round(*arguments, 0, units)
        return
    # Several pieces a thread: a core that is busy elsewhere holds up one of them only.
    count = min(4 * count, units)
    edges = [units * piece // count for piece in range(count + 1)]
    pool = _POOLS.of(threads)
    running = [
        pool.submit(_round, *arguments, edge, stop)  # type: ignore[call-arg]
        for edge, stop in zip(edges, edges[1:], strict=False)
    ]
    for piece in running:
        piece.result()


def _parts(
    weight: Stored, starts: Tensor | None, length: int, whole: bool
) -> Iterator[tuple[Stored, int, np.ndarray, slice | None, slice | None]]:
    """The work in one part or, not ``whole``, in parts of PART elements.

    Yields:
        stored weights that the kernel reads as they are, the element that the first of them is, the starts
        and, of the outputs, the segments and the places (None: all of them).
    """
    firsts = _WHOLE if starts is None else starts.contiguous().numpy()
    direct = isinstance(weight, Coded) or weight.dtype in _DIRECT
    if whole and direct:
        yield weight, 0, firsts, None, None
        return
    for segment, first in enumerate(firsts.tolist()):
        for offset in range(0, length, PART):
            place = slice(offset, min(offset + PART, length))
            here = (np.array([first + offset]), slice(segment, segment + 1), place)
            if isinstance(weight, Coded) or direct:
                yield weight, 0, *here
            else:
                yield weight[first + offset : first + place.stop].float(), first + offset, *here


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
    """Codes [members, segments, length]; see ``reference.encode``."""
    if starts is None:
        length = weight.numel()
    assert length is not None
    shape = (members, 1 if starts is None else len(starts), length)
    codes = torch.empty(shape, dtype=code_type(grid)) if out is None else out
    if not codes.numel():
        return codes
    for part, origin, firsts, segment, place in _parts(weight, starts, length, whole=True):
        piece = codes if segment is None else codes[:, segment, place].contiguous()
        flat = piece.view(-1).numpy().view(np.int8)
        _run(part, scales, grid, draw, members, firsts, piece.shape[2], _CODES, codes=flat, origin=origin)
        if segment is not None and members > 1:  # the piece was a copy
            codes[:, segment, place] = piece
    return codes


def round_into(
    out: Tensor, weight: Stored, scales: Scales, grid: Grid, draw: Draw, starts: Tensor | None = None
) -> None:
    """Write values into ``out`` [members, segments, length]; see ``reference.round_into``."""
    if not out.numel():
        return
    members, _, length = out.shape
    direct = out.dtype in _DIRECT
    for part, origin, firsts, segment, place in _parts(weight, starts, length, whole=direct):
        piece = out if segment is None else out[:, segment, place]
        values = piece
        if not (direct and piece.is_contiguous()):
            values = torch.empty(piece.shape, dtype=out.dtype if direct else torch.float32)
        kind, floats, halves = _as_numpy(values.view(-1))
        count = piece.shape[2]
        _run(
            part,
            scales,
            grid,
            draw,
            members,
            firsts,
            count,
            kind,
            floats=floats,
            halves=halves,
            origin=origin,
        )
        if values is not piece:
            piece.copy_(values)


@_compiled
def _values(write_kind, floats, halves, codes, values, place, levels, start, length):  # type: ignore[no-untyped-def]
    scale = np.empty(CHUNK, np.float32)
    buffer = np.empty(CHUNK, np.float32)
    none = np.empty(0, np.int8)
    filled = int64(-1)
    for offset in range(0, length, CHUNK):
        count = min(length - offset, CHUNK)
        filled = _spread(scale, values, False, start + offset, count, place, filled)
        _write(write_kind, none, floats, halves, codes[offset:], scale, levels, buffer, offset, count)


def decode(codes: Tensor, scales: Scales, grid: Grid, dtype: torch.dtype, start: int = 0) -> Tensor:
    """Values of flat codes; see ``reference.decode``."""
    values = torch.empty(codes.shape, dtype=dtype if dtype == torch.bfloat16 else torch.float32)
    if codes.numel():
        kind, floats, halves = _as_numpy(values)
        scale_values, _, place = _of_scales(scales)
        _values(
            kind,
            floats,
            halves,
            codes.contiguous().view(torch.int8).numpy(),
            scale_values,
            place,
            _levels(grid)[0],
            start,
            len(codes),
        )
    return values.to(dtype)
