"""The machine code of ``cpu``: how chunks of a weight are rounded, and how threads share them.

A weight is worked on in chunks of Philox blocks, CHUNK elements, which stay in the nearest cache:

    1. the stored weights as float32, whatever they are stored as
    2. v = w·(1/s), the lower neighbour's code, and T = 65536·p rounded
    3. for every member: random lanes; code = lower neighbour + [r < T]; codes or values written

So a stored weight is read once for all members, and step 2 is done once. Several weights, such as all of a
network, are one table of works: threads take chunks of whichever is next, so that what starts them is paid
once. Philox's words are held as 64-bit
integers, so that the compiler finds the vector product of 32-bit halves; of coupled members only the first
needs them. No step may be reordered or fused (``fastmath`` stays off): the codes are ``reference``'s.

T = 65536 (p rounds to 1) is written as the next code and T = 0, so that T has 16 bits.

Compiled once and kept on disk. All that is compiled together is in this file, since a change in another would
not be seen in what is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray, float32, int32, int64, types, uint16, uint32, uint64
from numba.extending import intrinsic

from lpe.number_systems.kernels.reference import COUPLING
from lpe.number_systems.streams import LANES

BLOCKS = 256
"""Philox blocks of a chunk: enough to hide what a chunk costs once, few enough for the nearest cache."""

CHUNK = BLOCKS * LANES
"""Elements of a chunk."""

FLOAT32, BFLOAT16, CODES, PLANES = 0, 1, 2, 3
"""The types that are read and written; planes, the bits [r < T] eight in a byte, are written only."""

NEAREST, BERNOULLI, COUPLED, LOWER = 0, 1, 2, 3
"""The ways of rounding."""


class Work(NamedTuple):
    """One weight's arguments: numbers, and addresses of flat, contiguous arrays, as 64-bit integers.

    Args:
        read_kind, read, read_length: the stored weights: FLOAT32, BFLOAT16, or CODES of levels·scales.
        base_levels, base_level_count, base_scales, base_groups, base_place: of stored codes, else not read.
        write_kind, written, written_length: [members, segments, length]; of PLANES [members, ⌈length / 8⌉],
            of one segment that starts with a block.
        values, inverses, groups, place: s and 1/s, and the nine numbers that tell an element's group
            (``_group_run``).
        levels, level_count, lookup: of a grid that is not uniform, else 0. ``lookup``, uint8 [4096], tells
            the lower neighbour by the twelve highest bits of v.
        zero: the grid's; of a uniform grid its largest code. uniform: 1 or 0.
        rounding: NEAREST, BERNOULLI, COUPLED or LOWER. key_low, key_high, identity, member: of the random
            bits.
        members, segments, length: how many of what. starts: int64 [segments], elements of the parameter.
        origin: the element of the parameter that is read first.
        chunks: of all works of the table up to this one, this one included.
    """

    read_kind: int
    read: int
    read_length: int
    base_levels: int
    base_level_count: int
    base_scales: int
    base_groups: int
    base_place: int
    write_kind: int
    written: int
    written_length: int
    values: int
    inverses: int
    groups: int
    place: int
    levels: int
    level_count: int
    lookup: int
    zero: int
    uniform: int
    rounding: int
    key_low: int
    key_high: int
    identity: int
    member: int
    members: int
    segments: int
    length: int
    starts: int
    origin: int
    chunks: int


(
    _READ_KIND,
    _READ,
    _READ_LENGTH,
    _BASE_LEVELS,
    _BASE_LEVEL_COUNT,
    _BASE_SCALES,
    _BASE_GROUPS,
    _BASE_PLACE,
    _WRITE_KIND,
    _WRITTEN,
    _WRITTEN_LENGTH,
    _VALUES,
    _INVERSES,
    _GROUPS,
    _PLACE,
    _LEVELS,
    _LEVEL_COUNT,
    _LOOKUP,
    _ZERO,
    _UNIFORM,
    _ROUNDING,
    _KEY_LOW,
    _KEY_HIGH,
    _IDENTITY,
    _MEMBER,
    _MEMBERS,
    _SEGMENTS,
    _LENGTH,
    _STARTS,
    _ORIGIN,
    _CHUNKS,
) = range(len(Work._fields))

WORK_LENGTH = len(Work._fields)


class Head(NamedTuple):
    """What a table begins with; the works follow it, one after another.

    Args:
        works: how many. chunks: of all. piece: chunks that a thread takes at a time.
        taken: how many are taken; 0 at the beginning.
    """

    works: int
    chunks: int
    piece: int
    taken: int


(_HEAD_WORKS, _HEAD_CHUNKS, _HEAD_PIECE, _HEAD_TAKEN) = range(len(Head._fields))

HEAD_LENGTH = len(Head._fields)


def chunks_of(segments: int, length: int) -> int:
    """Return the chunks of a work: one more a segment than it may need, if it begins within a block."""
    return segments * ((length + LANES - 1 + CHUNK - 1) // CHUNK)


PLACE_LENGTH = 9
LOOKUP_LENGTH = 4096

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_GATHER, _TOP_BYTE = np.uint64(0x0102040810204080), np.uint64(56)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, or take its machine code from the disk, where it is kept if possible."""
    return _from_disk(numba.njit, {"nogil": True, "error_model": "numpy"}, function)


def for_threads(function: Callable[..., Any]) -> Any:
    """Compile a function of an address of int64, such as a table's, for calls from anywhere."""
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


# Steps over a chunk. Buffers have CHUNK places, of which the first ``count`` are meant: loops that start at 0
# and write no more bits than needed are what the compiler makes vectors of.


@compiled
def _random_lanes(words, blocks, block, k0, k1, identity, member):  # type: ignore[no-untyped-def]
    """Run Philox4x32-10: each block's four words, two by two in 64 bits, lie as its eight lanes do."""
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


@compiled
def _group_run(element, place):  # type: ignore[no-untyped-def]
    """Return the scale group of an element, and the first element after it that may be of another.

    ``place``: where the outputs are (0 first axis, 1 second axis, 2 one scale for all); elements; columns;
    rows and columns that share a scale; scales of a row; with the outputs on the second axis the inputs of a
    channel group, the outputs, and the elements of a kernel.
    """
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


@compiled
def _entry(table, group, finite):  # type: ignore[no-untyped-def]
    value = table[group]
    return float32(0) if finite and not value < float32(np.inf) else value


@compiled
def _spread(buffer, table, finite, start, count, place, filled):  # type: ignore[no-untyped-def]
    """Return each element's entry of a table of groups; 0 for others where only ``finite`` ones are wanted.

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


@compiled
def _values_of(values, codes, scale, levels, count):  # type: ignore[no-untyped-def]
    """Write level·s of codes, float32; without levels, of a uniform grid, code·s."""
    if len(levels):
        for i in range(count):
            values[i] = levels[np.uint8(codes[i])] * scale[i]
    else:
        for i in range(count):
            values[i] = float32(codes[i]) * scale[i]


@compiled
def _read(buffer, kind, floats, halves, codes, scale, levels, start, count):  # type: ignore[no-untyped-def]
    """Return stored weights as float32, in place or in the buffer. ``scale``, ``levels``: of stored codes."""
    if kind == FLOAT32:
        return floats[start : start + count]
    if kind == BFLOAT16:
        halves = halves[start : start + count]
        bits = buffer.view(np.uint32)
        for i in range(count):
            bits[i] = uint32(halves[i]) << uint32(16)
        return buffer[:count]
    _values_of(buffer, codes[start : start + count], scale, levels, count)
    return buffer[:count]


@compiled
def _neighbours_uniform(below, threshold, positions, weights, inverse, count, q):  # type: ignore[no-untyped-def]
    """Find the lower neighbour's code and T; beyond the grid its end and T = 0, as of clamped codes."""
    for i in range(count):
        v = min(max(weights[i] * inverse[i], -q), q)
        floor = np.floor(v)
        # Whole numbers up to 2²³: exact. Two loops, since the first then needs one width of numbers only.
        positions[i] = int32(floor * float32(65536) + np.rint((v - floor) * float32(65536)))
    for i in range(count):
        below[i] = positions[i] >> int32(16)
        threshold[i] = positions[i]


@compiled
def _nearest_uniform(below, weights, inverse, count, q):  # type: ignore[no-untyped-def]
    for i in range(count):
        below[i] = int32(np.rint(min(max(weights[i] * inverse[i], -q), q)))


@compiled
def _neighbours_levels(  # type: ignore[no-untyped-def]
    below, threshold, scaled, weights, inverse, count, levels, zero, lookup, nearest
):
    """Find what is found for uniform grids, for any levels; for nearest rounding the code itself.

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


@compiled
def _choose(chosen, below, threshold, lanes, shift, count):  # type: ignore[no-untyped-def]
    """Choose code = lower neighbour + [r < T], r = lane + shift modulo 2¹⁶."""
    for i in range(count):
        chosen[i] = below[i] + (uint16(lanes[i] + shift) < threshold[i])


@compiled
def _choose_bits(planes, threshold, lanes, shift, bits, words, count):  # type: ignore[no-untyped-def]
    """Write [r < T], eight in a byte. ``words`` is the memory of ``bits``, eight of them at a time."""
    for i in range(count):
        bits[i] = uint16(lanes[i] + shift) < threshold[i]
    for i in range(count, (count + LANES - 1) // LANES * LANES):
        bits[i] = 0
    for i in range((count + LANES - 1) // LANES):
        # The product moves bit 8j of a word to bit 56 + j, and no sum below carries into these.
        planes[i] = (words[i] * _GATHER) >> _TOP_BYTE


@compiled
def _write(kind, codes, floats, halves, chosen, scale, levels, buffer, first, count):  # type: ignore[no-untyped-def]
    """Write codes, or values level·s as float32 or bfloat16, from ``first`` on."""
    if kind == CODES:
        codes = codes[first : first + count]
        for i in range(count):
            codes[i] = chosen[i]
        return
    values = buffer
    if kind == FLOAT32:
        values = floats[first : first + count]
    _values_of(values, chosen, scale, levels, count)
    if kind == BFLOAT16:
        halves = halves[first : first + count]
        bits = values.view(np.uint32)
        for i in range(count):
            # To the nearest, ties to even; no value is NaN.
            odd = (bits[i] >> uint32(16)) & uint32(1)
            halves[i] = (bits[i] + uint32(0x7FFF) + odd) >> uint32(16)


@compiled
def _round(work, unit, stop_unit, room):  # type: ignore[no-untyped-def]
    """Do some chunks of a work. Element e of the parameter is read at e − origin."""
    read_kind, write_kind, rounding = work[_READ_KIND], work[_WRITE_KIND], work[_ROUNDING]
    read, read_length = _pointer(work[_READ]), work[_READ_LENGTH]
    read_floats = carray(read, read_length, np.float32)
    read_halves = carray(read, read_length, np.uint16)
    read_codes = carray(read, read_length, np.int8)
    base_levels = carray(_pointer(work[_BASE_LEVELS]), work[_BASE_LEVEL_COUNT], np.float32)
    base_scales = carray(_pointer(work[_BASE_SCALES]), work[_BASE_GROUPS], np.float32)
    base_place = carray(_pointer(work[_BASE_PLACE]), PLACE_LENGTH, np.int64)
    written, written_length = _pointer(work[_WRITTEN]), work[_WRITTEN_LENGTH]
    codes = carray(written, written_length, np.int8)
    floats = carray(written, written_length, np.float32)
    halves = carray(written, written_length, np.uint16)
    planes = carray(written, written_length, np.uint8)
    values = carray(_pointer(work[_VALUES]), work[_GROUPS], np.float32)
    inverses = carray(_pointer(work[_INVERSES]), work[_GROUPS], np.float32)
    place = carray(_pointer(work[_PLACE]), PLACE_LENGTH, np.int64)
    levels = carray(_pointer(work[_LEVELS]), work[_LEVEL_COUNT], np.float32)
    lookup = carray(_pointer(work[_LOOKUP]), LOOKUP_LENGTH, np.uint8)
    starts = carray(_pointer(work[_STARTS]), work[_SEGMENTS], np.int64)
    zero, uniform = work[_ZERO], work[_UNIFORM] != 0
    k0, k1 = uint64(work[_KEY_LOW]), uint64(work[_KEY_HIGH])
    identity, member = uint64(work[_IDENTITY]), uint64(work[_MEMBER])
    members, segments, length, origin = work[_MEMBERS], work[_SEGMENTS], work[_LENGTH], work[_ORIGIN]

    buffer, inverse, scale, base_scale, positions, below, chosen, threshold, words = room
    eights = chosen.view(np.uint64)
    inverse_filled = scale_filled = base_filled = int64(-1)
    per_segment = (length + LANES - 1 + CHUNK - 1) // CHUNK
    nearest = rounding == NEAREST
    for u in range(unit, stop_unit):
        segment = u // per_segment
        first = starts[segment]
        aligned = first - first % LANES + (u - segment * per_segment) * CHUNK
        start = max(first, aligned)
        count = min(first + length, aligned + CHUNK) - start
        if count <= 0:
            continue
        if read_kind == CODES:
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
        if write_kind < CODES:
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
        if rounding == COUPLED:
            _random_lanes(words, blocks, block, k0, k1, identity, uint64(0))
        for m in range(members):
            index = member + uint64(m)
            target = (int64(m) * segments + segment) * length + start - first
            if nearest or rounding == LOWER:
                _write(write_kind, codes, floats, halves, below, scale, levels, buffer, target, count)
                continue
            shift = uint16(0)
            if rounding == BERNOULLI:
                _random_lanes(words, blocks, block, k0, k1, identity, index)
            else:
                shift = uint16((uint64(COUPLING) * index) & uint64(0xFFFF))
            if write_kind == PLANES:
                row = planes[int64(m) * ((length + LANES - 1) // LANES) + (start - first) // LANES :]
                _choose_bits(row, threshold, lanes, shift, chosen, eights, count)
            elif write_kind == CODES:
                _choose(codes[target : target + count], below, threshold, lanes, shift, count)
            else:
                _choose(chosen, below, threshold, lanes, shift, count)
                _write(write_kind, codes, floats, halves, chosen, scale, levels, buffer, target, count)


@for_threads
def share(table):  # type: ignore[no-untyped-def]
    """Do a thread's share of a table's works: ``share.address`` is what a team is given."""
    room = (
        np.empty(CHUNK, np.float32),
        np.empty(CHUNK, np.float32),
        np.empty(CHUNK, np.float32),
        np.empty(CHUNK, np.float32),
        np.empty(CHUNK, np.int32),
        np.empty(CHUNK, np.int8),
        np.empty(CHUNK, np.int8),
        np.empty(CHUNK, np.uint16),
        np.zeros(2 * BLOCKS, np.uint64),
    )
    chunks, piece = table[_HEAD_CHUNKS], table[_HEAD_PIECE]
    works = carray(table, HEAD_LENGTH + table[_HEAD_WORKS] * WORK_LENGTH)[HEAD_LENGTH:]
    before = here = int64(0)
    while True:
        chunk = _take(table, _HEAD_TAKEN, piece)
        if chunk >= chunks:
            return
        stop = min(chunk + piece, chunks)
        while chunk < stop:
            # Chunks are taken in order, so what a thread takes next is never of a work before.
            while chunk >= works[here + _CHUNKS]:
                before = works[here + _CHUNKS]
                here += WORK_LENGTH
            work = works[here : here + WORK_LENGTH]
            until = min(stop, work[_CHUNKS])
            _round(work, chunk - before, until - before, room)
            chunk = until


@compiled
def decode(write_kind, floats, halves, codes, values, place, levels, start, length):  # type: ignore[no-untyped-def]
    scale = np.empty(CHUNK, np.float32)
    buffer = np.empty(CHUNK, np.float32)
    none = np.empty(0, np.int8)
    filled = int64(-1)
    for offset in range(0, length, CHUNK):
        count = min(length - offset, CHUNK)
        filled = _spread(scale, values, False, start + offset, count, place, filled)
        _write(write_kind, none, floats, halves, codes[offset:], scale, levels, buffer, offset, count)


class Magnitudes(NamedTuple):
    """The arguments of ``magnitudes``: numbers and addresses, as of a :class:`Work`.

    Args:
        width: bytes of a weight, a float. read, length: the weights. place: see ``_group_run``.
        outputs: more than 0 where the outputs are on the second axis and the last: how many.
        found: of each group the largest of its weights' bits without the sign, int64, at first 0.
        groups: how many. piece: weights that a thread takes at a time, with ``outputs`` of the first axis.
        taken: how many are taken; 0 at the beginning.
    """

    width: int
    read: int
    length: int
    place: int
    outputs: int
    found: int
    groups: int
    piece: int
    taken: int


(
    _M_WIDTH,
    _M_READ,
    _M_LENGTH,
    _M_PLACE,
    _M_OUTPUTS,
    _M_FOUND,
    _M_GROUPS,
    _M_PIECE,
    _M_TAKEN,
) = range(len(Magnitudes._fields))


@intrinsic
def _raise_to(typing_context, found, place, value):  # type: ignore[no-untyped-def]
    """Make a number that all threads write to the larger of itself and a value."""

    def make(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        found, place, value = arguments
        array = context.make_array(signature.args[0])(context, builder, found)
        builder.atomic_rmw("max", builder.gep(array.data, [place]), value, "monotonic")
        return context.get_dummy_value()

    return types.void(found, types.int64, types.int64), make


@compiled
def _largest(bits, mask):  # type: ignore[no-untyped-def]
    """Return the largest of some floats' bits without the sign, as which NaN is the largest."""
    largest = mask & bits[0]
    for i in range(len(bits)):
        value = bits[i] & mask
        largest = value if value > largest else largest
    return largest


@compiled
def _magnitudes(work, bits, mask):  # type: ignore[no-untyped-def]
    length, piece, outputs = work[_M_LENGTH], work[_M_PIECE], work[_M_OUTPUTS]
    place = carray(_pointer(work[_M_PLACE]), PLACE_LENGTH, np.int64)
    found = carray(_pointer(work[_M_FOUND]), work[_M_GROUPS], np.int64)
    if not outputs:
        while True:
            start = _take(work, _M_TAKEN, piece)
            if start >= length:
                return
            stop = min(start + piece, length)
            while start < stop:
                group, end = _group_run(start, place)
                end = min(end, stop)
                _raise_to(found, group, int64(_largest(bits[start:end], mask)))
                start = end
    row_extent, column_extent, group_columns, inputs = place[3], place[4], place[5], place[6]
    firsts = length // outputs
    largest = np.zeros(outputs, bits.dtype)
    while True:
        start = _take(work, _M_TAKEN, piece)
        if start >= firsts:
            return
        for first in range(start, min(start + piece, firsts)):
            row = bits[first * outputs : (first + 1) * outputs]
            for i in range(outputs):
                value = row[i] & mask
                largest[i] = value if value > largest[i] else largest[i]
            block = first % inputs // column_extent
            last = first + 1 == min(start + piece, firsts) or (first + 1) % inputs == 0
            if last or (first + 1) % inputs // column_extent != block:
                for i in range(outputs):
                    group = (first // inputs * outputs + i) // row_extent * group_columns + block
                    _raise_to(found, group, int64(largest[i]))
                    largest[i] = 0


@for_threads
def magnitudes(work):  # type: ignore[no-untyped-def]
    """Do a thread's share of finding each group's largest magnitude; see :class:`Magnitudes`."""
    read, length = _pointer(work[_M_READ]), work[_M_LENGTH]
    if work[_M_WIDTH] == 4:
        _magnitudes(work, carray(read, length, np.uint32), np.uint32(0x7FFFFFFF))
    elif work[_M_WIDTH] == 2:
        _magnitudes(work, carray(read, length, np.uint16), np.uint16(0x7FFF))
    else:
        _magnitudes(work, carray(read, length, np.int64), np.int64(0x7FFFFFFFFFFFFFFF))
