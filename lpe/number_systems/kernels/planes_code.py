"""The machine code of ``planes_cpu``: values and sums of members whose weights are kept as bit planes.

A weight of a member is one of two values, that of its lower neighbour's level and that of the next one, and a
bit says which. Both are made once for all members, for a stretch of a row; after that a weight of a member
costs a load of its bits, a shift, a selection and a product, for eight weights each:

    v = the byte of eight bits, in all of eight lanes, lane j shifted left so that bit j is its sign
    sum += (v < 0 ? upper : lower) · x

The steps of eight are written as LLVM's own vectors of eight, which every processor has in its way; sums stay
in registers over a stretch, at most TILE of them. Nothing here is kept in another order than the steps, so
that sums are the same on any number of threads.

Compiled once and kept on disk; all that is compiled together is in this file (see ``cpu_code``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import carray, float32, int64, types, uint32
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
"""Weights of a step: those of one byte of a plane."""

STRETCH = 1024
"""Weights of a row whose two values are made at a time: 8 kB, which the nearest cache holds beside inputs."""

TILES = ((10, 1), (5, 1), (2, 1), (1, 1), (5, 2), (2, 2), (1, 2), (2, 4), (1, 4), (1, 8))
"""Members and positions whose sums are made in one go. Ten sums and what they need fit sixteen registers."""

PLACE_LENGTH = 9


class Work(NamedTuple):
    """The arguments of all threads: numbers, and addresses of flat, contiguous arrays, as 64-bit integers.

    Args:
        lower, lower_length: the lower neighbours' levels, ``bits`` each (see ``packing``).
        bits, lowest: of a code; the level of the first one, of a uniform grid.
        planes, members: byte [elements / 8, members], of all members, ``planes.SPARE`` of others' before it.
        elements: of the weight.
        levels, level_count: of a grid that is not uniform, else 0.
        values, groups, place: the scales, and what tells an element's group (``_group_run``).
        halves: 1 where values are rounded to bfloat16, else 0.
        written: values [members, segments, length], or sums [rows, sums of a row].
        first, written_members: of values: the members that are written.
        segments, length, starts: of values: how many, of how many elements; int64 [segments], their first.
        rows, columns: of sums. inputs: float32, tile by tile [columns / 8, sums of a tile, 8].
        tiles, tile_count: of sums: int64 [tiles, 3]: place in TILES, first member, sums before it.
        sums: of a row. stretch: columns at a time. piece: rows at a time.
        taken: units of work that threads have taken; 0 at the beginning.
    """

    lower: int
    lower_length: int
    bits: int
    lowest: int
    planes: int
    members: int
    elements: int
    levels: int
    level_count: int
    values: int
    groups: int
    place: int
    halves: int
    written: int
    first: int
    written_members: int
    segments: int
    length: int
    starts: int
    rows: int
    columns: int
    inputs: int
    tiles: int
    tile_count: int
    sums: int
    stretch: int
    piece: int
    taken: int


(
    _LOWER,
    _LOWER_LENGTH,
    _BITS,
    _LOWEST,
    _PLANES,
    _MEMBERS,
    _ELEMENTS,
    _LEVELS,
    _LEVEL_COUNT,
    _VALUES,
    _GROUPS,
    _PLACE,
    _HALVES,
    _WRITTEN,
    _FIRST,
    _COUNT,
    _SEGMENTS,
    _LENGTH,
    _STARTS,
    _ROWS,
    _COLUMNS,
    _INPUTS,
    _TILES,
    _TILE_COUNT,
    _SUMS,
    _STRETCH,
    _PIECE,
    _TAKEN,
) = range(len(Work._fields))


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, or take its machine code from the disk, where it is kept if possible."""
    return _from_disk(numba.njit, {"nogil": True, "error_model": "numpy"}, function)


def for_threads(function: Callable[..., Any]) -> Any:
    """Compile a function of a :class:`Work`'s address, as an array of int64, for calls from anywhere."""
    signature = types.void(types.CPointer(types.int64))
    return _from_disk(lambda **options: numba.cfunc(signature, **options), {"error_model": "numpy"}, function)


def _from_disk(compiler: Callable[..., Any], options: dict[str, Any], function: Callable[..., Any]) -> Any:
    try:
        return compiler(cache=True, **options)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache
        return compiler(**options)(function)


@intrinsic
def _pointer(typing_context, address):  # type: ignore[no-untyped-def]
    """Return an address as a pointer."""

    def make(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), make


@intrinsic
def _take(typing_context, work, place, count):  # type: ignore[no-untyped-def]
    """Add to a number that all threads add to; returns what it was before."""

    def make(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        work, place, count = arguments
        return builder.atomic_rmw("add", builder.gep(work, [place]), count, "monotonic")

    return types.int64(work, types.int64, types.int64), make


# Steps of eight lanes, as vectors. Addresses are 64-bit integers.

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT32, LANES)
_LANE_NUMBERS = tuple(range(LANES))


def _at(builder, base, offset, kind):  # type: ignore[no-untyped-def]
    return builder.inttoptr(builder.add(base, offset), kind.as_pointer())


def _in_all_lanes(builder, scalar, kind):  # type: ignore[no-untyped-def]
    none = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(none, scalar, _INT32(0)), none, ir.Constant(_INTS, [0] * LANES)
    )


def _selected(builder, planes, place, upper, lower):  # type: ignore[no-untyped-def]
    """Return the upper value where the lane's bit of a byte is set, else the lower one."""
    # The byte is the highest of the four that are loaded: its bits are 24 to 31, and lane j's comes to 31.
    four = builder.load(_at(builder, planes, builder.sub(place, _INT64(3)), _INT32), align=1)
    shifted = builder.shl(
        _in_all_lanes(builder, four, _INTS), ir.Constant(_INTS, [7 - j for j in _LANE_NUMBERS])
    )
    return builder.select(builder.icmp_signed("<", shifted, ir.Constant(_INTS, [0] * LANES)), upper, lower)


def _field_shifts(builder, bits):  # type: ignore[no-untyped-def]
    """Return the lanes' shifts and the mask of :func:`_indices`, for all steps."""
    whole = builder.trunc(bits, _INT32)
    ordinals = ir.Constant(_INTS, [j % 4 for j in _LANE_NUMBERS])
    shifts = builder.mul(_in_all_lanes(builder, whole, _INTS), ordinals)
    # The fifth level begins on a byte, or in its middle where b is odd.
    middle = builder.shl(builder.and_(whole, _INT32(1)), _INT32(2))
    none = ir.Constant(_INTS, [0] * LANES)
    second = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [j >= 4 for j in _LANE_NUMBERS])
    shifts = builder.add(shifts, builder.select(second, _in_all_lanes(builder, middle, _INTS), none))
    return shifts, _in_all_lanes(builder, builder.sub(builder.shl(_INT32(1), whole), _INT32(1)), _INTS)


def _indices(builder, packed, bits, step, shifts, mask):  # type: ignore[no-untyped-def]
    """Return the eight indices of a step, of packed levels of ``bits`` each, as int32."""
    # Four levels of b bits lie within four bytes, the second four b div 2 bytes further on.
    first = builder.mul(step, bits)
    second = builder.add(first, builder.lshr(bits, _INT64(1)))
    words = [
        _in_all_lanes(builder, builder.load(_at(builder, packed, place, _INT32), align=1), _INTS)
        for place in (first, second)
    ]
    halves = ir.Constant(_INTS, [j if j < 4 else j + LANES for j in _LANE_NUMBERS])
    return builder.and_(builder.lshr(builder.shuffle_vector(*words, halves), shifts), mask)


@intrinsic
def _unpack(typing_context, packed, bits, steps, indices):  # type: ignore[no-untyped-def]
    """Write the indices of ``steps`` times eight packed levels, as int32."""

    def make(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        packed, bits, steps, indices = arguments
        shifts, mask = _field_shifts(builder, bits)
        with cgutils.for_range(builder, steps) as loop:
            place = builder.mul(loop.index, _INT64(4 * LANES))
            found = _indices(builder, packed, bits, loop.index, shifts, mask)
            builder.store(found, _at(builder, indices, place, _INTS), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), make


@intrinsic
def _uniform(typing_context, packed, bits, steps, lowest, scale, scale_step, lower, upper):  # type: ignore[no-untyped-def]
    """Write both values of integers: (lowest + index)·s and (lowest + index + 1)·s.

    The scales of a step are ``scale_step`` bytes behind those of the step before.
    """

    def make(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        packed, bits, steps, lowest, scale, scale_step, lower, upper = arguments
        first = _in_all_lanes(builder, lowest, _FLOATS)
        one = ir.Constant(_FLOATS, [1.0] * LANES)
        shifts, mask = _field_shifts(builder, bits)
        with cgutils.for_range(builder, steps) as loop:
            place = builder.mul(loop.index, _INT64(4 * LANES))
            of_step = builder.mul(loop.index, scale_step)
            scales = builder.load(_at(builder, scale, of_step, _FLOATS), align=4)
            found = _indices(builder, packed, bits, loop.index, shifts, mask)
            level = builder.fadd(builder.sitofp(found, _FLOATS), first)
            low, high = builder.fmul(level, scales), builder.fmul(builder.fadd(level, one), scales)
            builder.store(low, _at(builder, lower, place, _FLOATS), align=4)
            builder.store(high, _at(builder, upper, place, _FLOATS), align=4)
        return context.get_dummy_value()

    whole = [types.int64] * 3
    return types.void(*whole, types.float32, *[types.int64] * 4), make


@intrinsic
def _choose(typing_context, lower, upper, planes, members, steps, out):  # type: ignore[no-untyped-def]
    """Write a member's values; ``planes`` is the address of its first byte."""

    def make(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        lower, upper, planes, members, steps, out = arguments
        with cgutils.for_range(builder, steps) as loop:
            place = builder.mul(loop.index, _INT64(4 * LANES))
            low = builder.load(_at(builder, lower, place, _FLOATS), align=4)
            high = builder.load(_at(builder, upper, place, _FLOATS), align=4)
            value = _selected(builder, planes, builder.mul(loop.index, members), high, low)
            builder.store(value, _at(builder, out, place, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), make


def _tile(members: int, positions: int) -> Any:
    """Make the machine code of a tile: its sums over a stretch of a row are added to ``out``."""
    count = members * positions

    @intrinsic
    def add_sums(typing_context, lower, upper, planes, all_members, inputs, steps, out):  # type: ignore[no-untyped-def]
        def make(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            lower, upper, planes, all_members, inputs, steps, out = arguments
            # One rounding or two, as the processor has it.
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fmuladd.v8f32"
            )
            sums = [
                cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [0.0] * LANES)) for _ in range(count)
            ]
            with cgutils.for_range(builder, steps) as loop:
                place = builder.mul(loop.index, _INT64(4 * LANES))
                low = builder.load(_at(builder, lower, place, _FLOATS), align=4)
                high = builder.load(_at(builder, upper, place, _FLOATS), align=4)
                here = builder.mul(loop.index, all_members)
                there = builder.mul(place, _INT64(count))
                for member in range(members):
                    value = _selected(builder, planes, builder.add(here, _INT64(member)), high, low)
                    for k in range(member * positions, (member + 1) * positions):
                        offset = builder.add(there, _INT64(4 * LANES * k))
                        x = builder.load(_at(builder, inputs, offset, _FLOATS), align=4)
                        builder.store(builder.call(multiply_add, [value, x, builder.load(sums[k])]), sums[k])
            for k, kept in enumerate(sums):
                total = builder.load(kept)
                width = LANES
                while width > 1:
                    width //= 2
                    none = ir.Constant(total.type, ir.Undefined)
                    halves = [
                        ir.Constant(ir.VectorType(_INT32, width), list(range(first, first + width)))
                        for first in (0, width)
                    ]
                    total = builder.fadd(*(builder.shuffle_vector(total, none, half) for half in halves))
                to = _at(builder, out, _INT64(4 * k), _FLOAT)
                builder.store(builder.fadd(builder.load(to), builder.extract_element(total, _INT32(0))), to)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), make

    return add_sums


_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8, _T9 = (_tile(*sizes) for sizes in TILES)


@compiled
def _add_tile(which, lower, upper, planes, all_members, inputs, steps, out):  # type: ignore[no-untyped-def]
    """Add the sums of a tile, by its place in TILES."""
    if which == 0:
        _T0(lower, upper, planes, all_members, inputs, steps, out)
    elif which == 1:
        _T1(lower, upper, planes, all_members, inputs, steps, out)
    elif which == 2:
        _T2(lower, upper, planes, all_members, inputs, steps, out)
    elif which == 3:
        _T3(lower, upper, planes, all_members, inputs, steps, out)
    elif which == 4:
        _T4(lower, upper, planes, all_members, inputs, steps, out)
    elif which == 5:
        _T5(lower, upper, planes, all_members, inputs, steps, out)
    elif which == 6:
        _T6(lower, upper, planes, all_members, inputs, steps, out)
    elif which == 7:
        _T7(lower, upper, planes, all_members, inputs, steps, out)
    elif which == 8:
        _T8(lower, upper, planes, all_members, inputs, steps, out)
    else:
        _T9(lower, upper, planes, all_members, inputs, steps, out)


@compiled
def _group_run(element, place):  # type: ignore[no-untyped-def]
    """Return the scale group of an element, and the first element after it that may be of another.

    ``place``, as ``cpu`` has it: where the outputs are (0 first axis, 1 second axis, 2 one scale for all);
    elements; columns; rows and columns that share a scale; scales of a row; with the outputs on the second
    axis the inputs of a channel group, the outputs, and the elements of a kernel.
    """
    if place[0] == 2:
        return int64(0), place[1]
    columns, row_extent, column_extent, group_columns = place[2], place[3], place[4], place[5]
    if place[0] == 0:
        row = element // columns
        block = (element - row * columns) // column_extent
        stop = row * columns + min((block + 1) * column_extent, columns)
        return row // row_extent * group_columns + block, stop
    inputs, outputs, kernel = place[6], place[7], place[8]
    pair = element // kernel
    inside = element - pair * kernel
    first = pair // outputs
    row = first // inputs * outputs + pair - first * outputs
    column = first % inputs * kernel + inside
    block = column // column_extent
    stop = element + min((block + 1) * column_extent - column, kernel - inside)
    return row // row_extent * group_columns + block, stop


@compiled
def _to_bfloat16(values, count):  # type: ignore[no-untyped-def]
    """Round finite float32 to bfloat16, ties to even; they stay float32."""
    bits = values.view(np.uint32)
    for i in range(count):
        odd = (bits[i] >> uint32(16)) & uint32(1)
        bits[i] = (bits[i] + uint32(0x7FFF) + odd) & uint32(0xFFFF0000)


@compiled
def _spread(scale, scales, place, first, count):  # type: ignore[no-untyped-def]
    """Write the elements' scales; returns the bytes from a step's to the next one's, 0 where all are one."""
    group, stop = _group_run(first, place)
    if stop >= first + count:
        part = scale[:LANES]
        for i in range(len(part)):
            part[i] = scales[group]
        return int64(0)
    done = int64(0)
    while done < count:
        group, stop = _group_run(first + done, place)
        part = scale[done : min(stop - first, count)]
        for i in range(len(part)):
            part[i] = scales[group]
        done += len(part)
    return int64(4 * LANES)


@compiled
def _both(  # type: ignore[no-untyped-def]
    lower, upper, indices, scale, first, steps, packed, bits, lowest, levels, scales, place, halves, elements
):
    """Make both values of each weight of ``steps`` steps of eight from ``first`` on, a multiple of eight."""
    count = min(steps * LANES, elements - first)
    scale_step = _spread(scale, scales, place, first, count)
    packed += first // LANES * bits
    last = len(levels) - 1
    if last < 0:
        _uniform(
            packed,
            bits,
            steps,
            lowest,
            scale.ctypes.data,
            scale_step,
            lower.ctypes.data,
            upper.ctypes.data,
        )
    else:
        _unpack(packed, bits, steps, indices.ctypes.data)
        for i in range(count):
            of_step = scale[i if scale_step else i % LANES]
            lower[i] = levels[indices[i]] * of_step
            upper[i] = levels[min(indices[i] + 1, last)] * of_step
    if halves:
        _to_bfloat16(lower, count)
        _to_bfloat16(upper, count)


@for_threads
def values(work):  # type: ignore[no-untyped-def]
    """Do a thread's share of writing members' values."""
    bits, members, elements = work[_BITS], work[_MEMBERS], work[_ELEMENTS]
    lowest = float32(work[_LOWEST])
    packed, planes = work[_LOWER], work[_PLANES]
    levels = carray(_pointer(work[_LEVELS]), work[_LEVEL_COUNT], np.float32)
    scales = carray(_pointer(work[_VALUES]), work[_GROUPS], np.float32)
    place = carray(_pointer(work[_PLACE]), PLACE_LENGTH, np.int64)
    halves = work[_HALVES] != 0
    first_member, count = work[_FIRST], work[_COUNT]
    segments, length = work[_SEGMENTS], work[_LENGTH]
    starts = carray(_pointer(work[_STARTS]), segments, np.int64)
    floats = carray(_pointer(work[_WRITTEN]), count * segments * length, np.float32)
    shorts = carray(_pointer(work[_WRITTEN]), count * segments * length, np.uint16)
    lower = np.zeros(STRETCH, np.float32)
    upper = np.zeros(STRETCH, np.float32)
    scale = np.zeros(STRETCH, np.float32)
    chosen = np.empty(STRETCH, np.float32)
    upper_halves = chosen.view(np.uint32)
    indices = np.empty(STRETCH, np.int32)
    per_segment = (length + LANES - 1 + STRETCH - 1) // STRETCH
    units = segments * per_segment
    while True:
        unit = _take(work, _TAKEN, int64(1))
        if unit >= units:
            return
        segment = unit // per_segment
        start = starts[segment]
        begin = start - start % LANES + (unit - segment * per_segment) * STRETCH
        end = min(start + length, begin + STRETCH)
        if end <= begin or end <= start:
            continue
        steps = (end - begin + LANES - 1) // LANES
        _both(
            lower,
            upper,
            indices,
            scale,
            begin,
            steps,
            packed,
            bits,
            lowest,
            levels,
            scales,
            place,
            halves,
            elements,
        )
        skipped = max(start - begin, 0)
        wanted = end - begin - skipped
        whole = not halves and skipped == 0 and wanted == steps * LANES
        for m in range(count):
            to = (m * segments + segment) * length + begin + skipped - start
            plane = planes + begin // LANES * members + first_member + m
            if whole:
                _choose(lower.ctypes.data, upper.ctypes.data, plane, members, steps, work[_WRITTEN] + 4 * to)
                continue
            _choose(lower.ctypes.data, upper.ctypes.data, plane, members, steps, chosen.ctypes.data)
            if halves:
                for i in range(wanted):
                    shorts[to + i] = upper_halves[skipped + i] >> uint32(16)
            else:
                for i in range(wanted):
                    floats[to + i] = chosen[skipped + i]


@for_threads
def sums(work):  # type: ignore[no-untyped-def]
    """Do a thread's share of the sums of products with all members' inputs, over rows of a matrix."""
    bits, members, elements = work[_BITS], work[_MEMBERS], work[_ELEMENTS]
    lowest = float32(work[_LOWEST])
    packed, planes, inputs = work[_LOWER], work[_PLANES], work[_INPUTS]
    levels = carray(_pointer(work[_LEVELS]), work[_LEVEL_COUNT], np.float32)
    scales = carray(_pointer(work[_VALUES]), work[_GROUPS], np.float32)
    place = carray(_pointer(work[_PLACE]), PLACE_LENGTH, np.int64)
    halves = work[_HALVES] != 0
    rows, columns, all_sums = work[_ROWS], work[_COLUMNS], work[_SUMS]
    tile_count, stretch, piece = work[_TILE_COUNT], work[_STRETCH], work[_PIECE]
    tiles = carray(_pointer(work[_TILES]), (tile_count, 3), np.int64)
    written = carray(_pointer(work[_WRITTEN]), rows * all_sums, np.float32)
    lower = np.zeros(STRETCH, np.float32)
    upper = np.zeros(STRETCH, np.float32)
    scale = np.zeros(STRETCH, np.float32)
    indices = np.empty(STRETCH, np.int32)
    units = (rows + piece - 1) // piece
    while True:
        unit = _take(work, _TAKEN, int64(1))
        if unit >= units:
            return
        first_row, stop_row = unit * piece, min((unit + 1) * piece, rows)
        written[first_row * all_sums : stop_row * all_sums] = float32(0)
        for column in range(0, columns, stretch):
            steps = min(stretch, columns - column) // LANES
            for row in range(first_row, stop_row):
                begin = row * columns + column
                _both(
                    lower,
                    upper,
                    indices,
                    scale,
                    begin,
                    steps,
                    packed,
                    bits,
                    lowest,
                    levels,
                    scales,
                    place,
                    halves,
                    elements,
                )
                for t in range(tile_count):
                    before = tiles[t, 2]
                    width = tiles[t + 1, 2] - before if t + 1 < tile_count else all_sums - before
                    _add_tile(
                        tiles[t, 0],
                        lower.ctypes.data,
                        upper.ctypes.data,
                        planes + begin // LANES * members + tiles[t, 1],
                        members,
                        inputs + 4 * (columns * before + column * width),
                        steps,
                        work[_WRITTEN] + 4 * (row * all_sums + before),
                    )


@compiled
def gather(inputs, tiles, sizes, out):  # type: ignore[no-untyped-def]
    """Lay inputs [members, positions, columns] as ``sums`` reads them: tile by tile [columns / 8, sums, 8].

    ``tiles``: int64 [tiles, 2], first member and position; ``sizes``: [tiles, 2], how many of each.
    """
    columns = inputs.shape[2]
    at = 0
    for t in range(len(tiles)):
        members, positions = sizes[t, 0], sizes[t, 1]
        width = members * positions
        for g in range(members):
            for p in range(positions):
                source = inputs[tiles[t, 0] + g, tiles[t, 1] + p]
                to = at + (g * positions + p) * LANES
                for step in range(columns // LANES):
                    for j in range(LANES):
                        out[to + j] = source[step * LANES + j]
                    to += width * LANES
        at += width * columns
