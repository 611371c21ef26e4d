"""The rounding rules as Triton kernels, for CUDA devices; bit for bit those of ``reference``.

A program takes BLOCKS blocks of eight elements, each of which shares one Philox call a member; a thread takes
one block. A program loads a stored weight once, finds its lower neighbour and threshold T once, and then goes
through the members, drawing random numbers and storing codes or values.

What would take a compiled kernel off the reference's bits, and what keeps it on them:

- a product and a sum fused into one: ``enable_fp_fusion=False`` at every launch;
- approximate division: ``tl.div_rn`` is IEEE's;
- subnormals flushed to zero: that ``libdevice`` does, and ``tl.floor``, neither of which is here;
- ties that do not go to even: rounding to an integer is adding and subtracting a large number;
- Triton's interpreter, which rounds to bfloat16 in its own way: there bfloat16 goes through integers.

With TRITON_INTERPRET=1 in the environment before triton is imported, the same kernels run on the CPU, slowly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems.grids import Grid, PerChannel
from lpe.number_systems.kernels import reference
from lpe.number_systems.kernels.arguments import Coded, Draw, Rounded, Scales, Stored
from lpe.number_systems.kernels.reference import COUPLING, code_type, level_table
from lpe.number_systems.streams import LANES, tensor_id

try:
    import triton
    import triton.language as tl
except ImportError as missing:
    raise InputError(
        "the cuda kernels need the package triton, which is not installed; pip install triton, "
        "or set LPE_KERNELS=reference"
    ) from missing
else:
    if not hasattr(tl, "mul"):
        raise InputError(
            f"the cuda kernels need Triton 3.6 or later, which torch 2.10 brings, not {triton.__version__}; "
            "pip install -U torch, or set LPE_KERNELS=reference"
        )

BLOCKS = 128
"""Blocks of eight elements in a program, a power of two: one a thread."""

WARPS = 4
"""Warps, of 32 threads each, in a program."""

MOST_OFFSETS = 64
"""Ways in which a plan's outputs lie that are kept."""

INT32_ELEMENTS = 2**31 - LANES * BLOCKS
"""Most elements for which scale groups are computed in int32: 64-bit division is slow on a GPU."""

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

# How a weight's elements are stored.
FLOAT = tl.constexpr(0)
BFLOAT16 = tl.constexpr(1)  # as int16, the upper half of a float32
INTEGERS = tl.constexpr(2)
INDICES = tl.constexpr(3)

# Roundings.
NEAREST = tl.constexpr(0)
BERNOULLI = tl.constexpr(1)
COUPLED = tl.constexpr(2)
LOWER = tl.constexpr(3)
ROUNDINGS = {"nearest": 0, "bernoulli": 1, "coupled": 2, "lower": 3}

# How a scale group follows from an element.
ONE = tl.constexpr(0)  # one for all
EXTENTS = tl.constexpr(1)  # so many consecutive elements
ROW_BLOCKS = tl.constexpr(2)  # blocks of the inputs of a row, the last one shorter
CHANNELS = tl.constexpr(3)  # channels along the second axis
CHANNEL_BLOCKS = tl.constexpr(4)  # blocks of the inputs of a channel along the second axis

SHIFT = tl.constexpr(COUPLING)

_CHOICES = ("UNIFORM", "SEARCH", "STORED", "FORM", "A_BLOCK", "STORED_FORM", "STORED_A_BLOCK", "WIDE")
"""Constants of the kernel that one launch has for all its weights."""
_TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.float16: tl.float16,
    torch.int16: tl.int16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}
_LENGTHS = ("period", "extent", "groups", "outputs", "inputs", "inner")


@dataclass(frozen=True)
class Groups:
    """The rule by which an element's scale group follows from its index, as the kernels have it.

    Args:
        form: one of the above. a_block: whether the eight elements of a block always share a scale.
        period: elements of a row; with the output on the second axis, of an index of the first axis.
        extent: elements, channels or inputs that share a scale, as the form has it.
        groups: scales of a row.
        outputs, inputs, inner: with the output on the second axis, the length of that axis, that of the first
            within a channel group, and the product of all others.
    """

    form: int
    a_block: bool
    period: int = 1
    extent: int = 1
    groups: int = 1
    outputs: int = 1
    inputs: int = 1
    inner: int = 1

    @classmethod
    def of(cls, scales: Scales) -> Groups:
        """Return the rule of a weight that is not empty."""
        layout, axis = scales.layout, scales.axis
        rows, columns = layout.rows, layout.columns
        groups_of_rows, groups = layout.scale_shape(axis)
        if groups_of_rows * groups == 1:
            return cls(ONE.value, True)
        row_extent, column_extent = axis.extent(rows, columns)
        by_channels = isinstance(axis, PerChannel)
        if not layout.by_rows:
            outputs, inputs, inner = layout.outputs, layout.inputs, layout.after
            extent = row_extent if by_channels else min(column_extent, columns)
            return cls(
                CHANNELS.value if by_channels else CHANNEL_BLOCKS.value,
                inner % LANES == 0 and (by_channels or extent % LANES == 0),
                outputs * inner,
                extent,
                groups,
                outputs,
                inputs,
                inner,
            )
        if by_channels or columns % column_extent == 0 or groups == 1:
            extent = row_extent * min(column_extent, columns)
            return cls(EXTENTS.value, extent % LANES == 0, extent=extent)
        a_block = columns % LANES == 0 and column_extent % LANES == 0
        return cls(ROW_BLOCKS.value, a_block, columns, column_extent, groups)

    def lengths(self, prefix: str = "") -> dict[str, int]:
        """Return the kernels' arguments that this rule gives, by name."""
        return {prefix + name: getattr(self, name) for name in _LENGTHS}


@triton.jit
def group_of(
    element: tl.tensor,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
    period: tl.tensor,
    extent: tl.tensor,
    groups: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    inner: tl.tensor,
) -> tl.tensor:
    """Return the index into the scales of elements, int64; see :class:`Groups` for the lengths."""
    if not WIDE:
        element = element.to(tl.int32)
    if FORM == ONE:
        group = element * 0
    elif FORM == EXTENTS:
        group = element // extent
    elif FORM == ROW_BLOCKS:
        row = element // period
        group = row * groups + (element - row * period) // extent
    else:
        first = element // period
        channel_group = first // inputs
        within = element - first * period
        output = within // inner
        row = channel_group * outputs + output
        if FORM == CHANNELS:
            group = row // extent
        else:
            column = (first - channel_group * inputs) * inner + (within - output * inner)
            group = row * groups + column // extent
    return group.to(tl.int64)


@triton.jit
def scales_at(
    scales: tl.tensor,
    block: tl.tensor,
    element: tl.tensor,
    there: tl.tensor,
    inside: tl.tensor,
    A_BLOCK: tl.constexpr,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
    period: tl.tensor,
    extent: tl.tensor,
    groups: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    inner: tl.tensor,
) -> tl.tensor:
    """Return the scales of elements [BLOCKS, 8]; [BLOCKS, 1] where the eight of a block share one."""
    if A_BLOCK:
        group = group_of(block * 8, FORM, WIDE, period, extent, groups, outputs, inputs, inner)
        scale = tl.load(scales + group, mask=there, other=0.0)[:, None]
    else:
        group = group_of(element, FORM, WIDE, period, extent, groups, outputs, inputs, inner)
        scale = tl.load(scales + group, mask=inside, other=0.0)
    return scale


@triton.jit
def stored_value(bits: tl.tensor, STORED: tl.constexpr, table: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Return float32 of stored floats; of codes, their level."""
    if STORED == BFLOAT16:
        value = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif STORED == INDICES:
        value = tl.load(table + bits.to(tl.int64), mask=mask, other=0.0)
    else:
        value = bits.to(tl.float32)
    return value


@triton.jit
def bfloat16_bits(value: tl.tensor) -> tl.tensor:
    """Return float32 that is not NaN rounded to bfloat16, ties to even: int16."""
    if INTERPRETED:
        bits = value.to(tl.uint32, bitcast=True)
        rounding = tl.add((bits >> 16) & 1, 0x7FFF, sanitize_overflow=False)
        half = (tl.add(bits, rounding, sanitize_overflow=False) >> 16).to(tl.int16)
    else:
        half = value.to(tl.bfloat16).to(tl.int16, bitcast=True)
    return half


@triton.jit
def store_value(place: tl.tensor, value: tl.tensor, mask: tl.tensor, STORED: tl.constexpr) -> None:
    """Store float32 values in the dtype that ``place`` has, rounded to nearest, ties to even."""
    if STORED == BFLOAT16:
        tl.store(place, bfloat16_bits(value), mask=mask)
    else:
        tl.store(place, value.to(place.dtype.element_ty), mask=mask)


@triton.jit
def shifted(value: tl.tensor) -> tl.tensor:
    """Return float32 within ±2²² plus 1.5·2²³: rounded to whole numbers, ties to even.

    From there on float32 has whole numbers only, and their bits count them.
    """
    return value + 12582912.0


@triton.jit
def shifted_floor(value: tl.tensor) -> tl.tensor:
    """Return as :func:`shifted`, but rounded down."""
    if INTERPRETED:
        nearest = (value + 12582912.0) - 12582912.0
        below = shifted(tl.where(nearest > value, nearest - 1.0, nearest))
    else:
        below = tl.inline_asm_elementwise(
            "add.rm.f32 $0, $1, 0f4B400000;", "=f,f", [value], dtype=tl.float32, is_pure=True, pack=1
        )
    return below


@triton.jit
def nearest_integer(value: tl.tensor) -> tl.tensor:
    """Return the integers nearest to float32 within ±2²², ties to even: int32."""
    return shifted(value).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def sixteen_bits(p: tl.tensor) -> tl.tensor:
    """Return 65536·p rounded to an integer, ties to even, of p from 0 to 1: int32."""
    # From 192 on float32 has the multiples of 2⁻¹⁶ only, and its bits count them.
    return (p + 192.0).to(tl.int32, bitcast=True) - 0x43400000


@triton.jit
def lanes_of(
    block: tl.tensor,
    tensor: tl.tensor,
    member: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    BLOCKS: tl.constexpr,
) -> tl.tensor:
    """Return the random numbers of blocks, int64 [BLOCKS]: int32 [BLOCKS, 8]; all else is uint32."""
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = tensor
    c3 = member
    k0 = key_low
    k1 = key_high
    for _ in tl.static_range(10):
        product0 = tl.mul(c0.to(tl.uint64), 0xD2511F53, sanitize_overflow=False)
        product1 = tl.mul(c2.to(tl.uint64), 0xCD9E8D57, sanitize_overflow=False)
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = product0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    # Word 2i + j at [:, i, j], then its low and high half at [:, i, j, 0] and [:, i, j, 1].
    words = tl.join(tl.join(c0, c2), tl.join(c1, c3))
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, [BLOCKS, 8]).to(tl.int32)


@triton.jit
def lower_neighbour(
    v: tl.tensor, table: tl.tensor, levels: tl.tensor, SEARCH: tl.constexpr, BLOCKS: tl.constexpr
) -> tl.tensor:
    """Index the greatest level ≤ v but the last, or else 0: int32 [BLOCKS, 8]. 2^SEARCH > levels − 2."""
    index = tl.zeros([BLOCKS, 8], dtype=tl.int32)
    for bit in tl.static_range(SEARCH):
        further = index + (1 << (SEARCH - 1 - bit))
        level = tl.load(table + further, mask=further < levels - 1, other=float("inf"))
        index = tl.where(level <= v, further, index)
    return index


@triton.jit
def positions(
    w: tl.tensor,
    inverse: tl.tensor,
    inside: tl.tensor,
    table: tl.tensor,
    levels: tl.tensor,
    zero: tl.tensor,
    ROUNDING: tl.constexpr,
    UNIFORM: tl.constexpr,
    SEARCH: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> tl.tensor:
    """Find where weights lie between codes: int32 [BLOCKS, 8]; of nearest rounding their codes.

    It is 65536·(the lower neighbour's code) + T + 65535. Less a random number, and without the 16 lowest
    bits, it is the code that the number draws.
    """
    if UNIFORM:
        # Where 1/s is not finite v is 0; beyond the grid v is its end, whose T is 0.
        last = zero.to(tl.float32)
        v = w * tl.where(tl.abs(inverse) < float("inf"), inverse, 0.0)
        v = tl.minimum(tl.maximum(v, -last), last)
        if ROUNDING == NEAREST:
            position = nearest_integer(v)
        else:
            below = shifted_floor(v)
            low = below.to(tl.int32, bitcast=True) - 0x4B400000
            position = low * 65536 + sixteen_bits(v - (below - 12582912.0)) + 65535
    else:
        v = tl.where(tl.abs(inverse) < float("inf"), w * inverse, tl.load(table + zero))
        v = tl.minimum(tl.maximum(v, tl.load(table)), tl.load(table + levels - 1))
        low = lower_neighbour(v, table, levels, SEARCH, BLOCKS)
        lower = tl.load(table + low, mask=inside, other=0.0)
        upper = tl.load(table + low + 1, mask=inside, other=1.0)
        p = tl.div_rn(v - lower, upper - lower)
        if ROUNDING == NEAREST:
            up = (p > 0.5) | ((p == 0.5) & (((low - zero) & 1) == 1))
            position = low + up.to(tl.int32)
        else:
            position = low * 65536 + sixteen_bits(p) + 65535
    return position


@triton.jit
def coupled_lanes(shared: tl.tensor, member: tl.tensor) -> tl.tensor:
    """Return a coupled member's random numbers, from those of member 0: int32."""
    shift = tl.mul(member, SHIFT, sanitize_overflow=False) & 0xFFFF
    return (shared + shift.to(tl.int32)) & 0xFFFF


@triton.jit
def codes_of(
    position: tl.tensor,
    shared: tl.tensor,
    block: tl.tensor,
    tensor: tl.tensor,
    member: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    ROUNDING: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> tl.tensor:
    """Return a member's codes, int32 [BLOCKS, 8]; ``shared``: member 0's random numbers (coupled)."""
    code = position
    if ROUNDING == BERNOULLI:
        code = (position - lanes_of(block, tensor, member, key_low, key_high, BLOCKS)) >> 16
    if ROUNDING == COUPLED:
        code = (position - coupled_lanes(shared, member)) >> 16
    if ROUNDING == LOWER:
        code = (position - 65535) >> 16
    return code


@triton.jit
def level_of(code: tl.tensor, table: tl.tensor, inside: tl.tensor, UNIFORM: tl.constexpr) -> tl.tensor:
    """Return the levels of codes, float32."""
    if UNIFORM:
        level = code.to(tl.float32)
    else:
        level = tl.load(table + code, mask=inside, other=0.0)
    return level


@triton.jit
def _round_blocks(
    out: tl.tensor,
    weight: tl.tensor,
    block: tl.tensor,
    element: tl.tensor,
    place: tl.tensor,
    there: tl.tensor,
    inside: tl.tensor,
    members: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    levels: tl.tensor,
    zero: tl.tensor,
    values: tl.tensor,
    inverses: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    tensor: tl.tensor,
    member: tl.tensor,
    period: tl.tensor,
    extent: tl.tensor,
    groups: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    inner: tl.tensor,
    stored_table: tl.tensor,
    stored_values: tl.tensor,
    stored_period: tl.tensor,
    stored_extent: tl.tensor,
    stored_groups: tl.tensor,
    stored_outputs: tl.tensor,
    stored_inputs: tl.tensor,
    stored_inner: tl.tensor,
    ROUNDING: tl.constexpr,
    UNIFORM: tl.constexpr,
    SEARCH: tl.constexpr,
    STORED: tl.constexpr,
    OUT: tl.constexpr,
    VALUES: tl.constexpr,
    PLANES: tl.constexpr,
    FORM: tl.constexpr,
    A_BLOCK: tl.constexpr,
    STORED_FORM: tl.constexpr,
    STORED_A_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Round a program's blocks for all members.

    Args:
        block: [BLOCKS]; there: which there are. element: of the weight, [BLOCKS, 8]; inside: which there are.
        place: of an element in ``out``.
    """
    bits = tl.load(weight + element, mask=inside, other=0)
    w = stored_value(bits, STORED, stored_table, inside)
    if STORED >= INTEGERS:
        w *= scales_at(
            stored_values,
            block,
            element,
            there,
            inside,
            STORED_A_BLOCK,
            STORED_FORM,
            WIDE,
            stored_period,
            stored_extent,
            stored_groups,
            stored_outputs,
            stored_inputs,
            stored_inner,
        )
    inverse = scales_at(
        inverses,
        block,
        element,
        there,
        inside,
        A_BLOCK,
        FORM,
        WIDE,
        period,
        extent,
        groups,
        outputs,
        inputs,
        inner,
    )
    scale = inverse
    if VALUES:
        scale = scales_at(
            values,
            block,
            element,
            there,
            inside,
            A_BLOCK,
            FORM,
            WIDE,
            period,
            extent,
            groups,
            outputs,
            inputs,
            inner,
        )

    position = positions(w, inverse, inside, table, levels, zero, ROUNDING, UNIFORM, SEARCH, BLOCKS)
    key_low = key_low.to(tl.uint32, bitcast=True)
    key_high = key_high.to(tl.uint32, bitcast=True)
    tensor = tensor.to(tl.uint32, bitcast=True)
    drawn = member.to(tl.uint32, bitcast=True)
    shared = position
    if ROUNDING == COUPLED:
        shared = lanes_of(block, tensor, drawn ^ drawn, key_low, key_high, BLOCKS)
    lowest = position
    if PLANES:
        lowest = codes_of(position, shared, block, tensor, drawn, key_low, key_high, LOWER, BLOCKS)
    at = out
    for _ in range(members):
        code = codes_of(position, shared, block, tensor, drawn, key_low, key_high, ROUNDING, BLOCKS)
        if VALUES:
            level = level_of(code, table, inside, UNIFORM)
            store_value(at + place, level * scale, inside, OUT)
        elif PLANES:
            up = tl.where(inside, code - lowest, 0)
            tl.store(at + block, tl.sum(up << tl.arange(0, 8)[None, :], axis=1).to(tl.uint8), mask=there)
        else:
            tl.store(at + place, code.to(at.dtype.element_ty), mask=inside)
        at += stride
        drawn = tl.add(drawn, 1, sanitize_overflow=False)


@triton.jit(
    do_not_specialize=[
        "members",
        "segments",
        "blocks_a_segment",
        "levels",
        "zero",
        "key_low",
        "key_high",
        "tensor",
        "member",
        "period",
        "extent",
        "groups",
        "outputs",
        "inputs",
        "inner",
        "stored_period",
        "stored_extent",
        "stored_groups",
        "stored_outputs",
        "stored_inputs",
        "stored_inner",
    ]
)
def _round(
    out: tl.tensor,
    weight: tl.tensor,
    starts: tl.tensor,
    members: tl.tensor,
    segments: tl.tensor,
    length: tl.tensor,
    stride: tl.tensor,
    blocks_a_segment: tl.tensor,
    table: tl.tensor,
    levels: tl.tensor,
    zero: tl.tensor,
    values: tl.tensor,
    inverses: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    tensor: tl.tensor,
    member: tl.tensor,
    period: tl.tensor,
    extent: tl.tensor,
    groups: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    inner: tl.tensor,
    stored_table: tl.tensor,
    stored_values: tl.tensor,
    stored_period: tl.tensor,
    stored_extent: tl.tensor,
    stored_groups: tl.tensor,
    stored_outputs: tl.tensor,
    stored_inputs: tl.tensor,
    stored_inner: tl.tensor,
    ROUNDING: tl.constexpr,
    UNIFORM: tl.constexpr,
    SEARCH: tl.constexpr,
    STORED: tl.constexpr,
    OUT: tl.constexpr,
    VALUES: tl.constexpr,
    PLANES: tl.constexpr,
    SEGMENTED: tl.constexpr,
    FORM: tl.constexpr,
    A_BLOCK: tl.constexpr,
    STORED_FORM: tl.constexpr,
    STORED_A_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Write all members' codes or values to ``out`` [members, segments, length]; stride: segments·length.

    Of planes, the bits of one segment's codes, ``out`` is [members, ⌈length / 8⌉]; stride: ⌈length / 8⌉.
    """
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS).to(tl.int64)
    lane = tl.arange(0, 8).to(tl.int64)[None, :]
    if SEGMENTED:
        # The segments' blocks one after another; a segment that begins within a block may need one more.
        segment = block // blocks_a_segment
        there = segment < segments
        start = tl.load(starts + segment, mask=there, other=0)
        block = start // 8 + (block - segment * blocks_a_segment)
        there = there & (block * 8 < start + length)
        element = block[:, None] * 8 + lane
        inside = there[:, None] & (element >= start[:, None]) & (element < (start + length)[:, None])
        place = element + (segment * length - start)[:, None]
    else:
        there = block * 8 < length
        element = block[:, None] * 8 + lane
        inside = element < length
        place = element

    _round_blocks(
        out,
        weight,
        block,
        element,
        place,
        there,
        inside,
        members,
        stride,
        table,
        levels,
        zero,
        values,
        inverses,
        key_low,
        key_high,
        tensor,
        member,
        period,
        extent,
        groups,
        outputs,
        inputs,
        inner,
        stored_table,
        stored_values,
        stored_period,
        stored_extent,
        stored_groups,
        stored_outputs,
        stored_inputs,
        stored_inner,
        ROUNDING,
        UNIFORM,
        SEARCH,
        STORED,
        OUT,
        VALUES,
        PLANES,
        FORM,
        A_BLOCK,
        STORED_FORM,
        STORED_A_BLOCK,
        WIDE,
        BLOCKS,
    )


@triton.jit
def _address(row: tl.tensor, PLACE: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr) -> tl.tensor:
    """Return the pointer that stands at a place of a table's row; ALIGNED: to 16 bytes."""
    address = tl.load(row + PLACE).to(tl.pointer_type(TYPE))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def _count(row: tl.tensor, PLACE: tl.constexpr, WIDE: tl.constexpr) -> tl.tensor:
    """Return the number that stands at a place of a table's row: int32, or WIDE int64."""
    count = tl.load(row + PLACE)
    if not WIDE:
        count = count.to(tl.int32)
    return count


@triton.jit(do_not_specialize=["members", "key_low", "key_high", "member"])
def _round_table(
    out: tl.tensor,
    offsets: tl.tensor,
    works: tl.tensor,
    work_of: tl.tensor,
    members: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    member: tl.tensor,
    further: tl.tensor,
    ROUNDING: tl.constexpr,
    UNIFORM: tl.constexpr,
    SEARCH: tl.constexpr,
    STORED: tl.constexpr,
    TYPE: tl.constexpr,
    OUT: tl.constexpr,
    FORM: tl.constexpr,
    A_BLOCK: tl.constexpr,
    STORED_FORM: tl.constexpr,
    STORED_A_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Write all members' values of several weights.

    Args:
        out: where the first weight's values begin; offsets: the elements from there to each weight's,
            int64 [works]. A weight's values are [members, length].
        works: int64 [works, FIELDS], see :func:`_fields`. work_of: of each program, int32.
        further: int32 [1], or None: added to the member when the kernel runs, so that a captured graph goes
            on to other members.
    """
    program = tl.program_id(0)
    index = tl.load(work_of + program)
    row = works + index * FIELDS
    offset = tl.load(offsets + index)
    length = tl.load(row + 1)
    if ALIGNED:
        offset = tl.multiple_of(offset, 16)
        length = tl.multiple_of(length, 8)
    if further is not None:
        member += tl.load(further)
    block = (program - tl.load(row)) * BLOCKS + tl.arange(0, BLOCKS).to(tl.int64)
    element = block[:, None] * 8 + tl.arange(0, 8).to(tl.int64)[None, :]
    _round_blocks(
        out + offset,
        _address(row, 2, TYPE, ALIGNED),
        block,
        element,
        element,
        block * 8 < length,
        element < length,
        members,
        length,
        _address(row, 3, tl.float32, False),
        tl.load(row + 4),
        tl.load(row + 5).to(tl.int32),
        _address(row, 6, tl.float32, False),
        _address(row, 7, tl.float32, False),
        key_low,
        key_high,
        tl.load(row + 8).to(tl.int32),
        member,
        _count(row, 9, WIDE),
        _count(row, 10, WIDE),
        _count(row, 11, WIDE),
        _count(row, 12, WIDE),
        _count(row, 13, WIDE),
        _count(row, 14, WIDE),
        _address(row, 15, tl.float32, False),
        _address(row, 16, tl.float32, False),
        _count(row, 17, WIDE),
        _count(row, 18, WIDE),
        _count(row, 19, WIDE),
        _count(row, 20, WIDE),
        _count(row, 21, WIDE),
        _count(row, 22, WIDE),
        ROUNDING,
        UNIFORM,
        SEARCH,
        STORED,
        OUT,
        True,
        False,
        FORM,
        A_BLOCK,
        STORED_FORM,
        STORED_A_BLOCK,
        WIDE,
        BLOCKS,
    )


@triton.jit(do_not_specialize=["period", "extent", "groups", "outputs", "inputs", "inner"])
def _decode(
    out: tl.tensor,
    codes: tl.tensor,
    start: tl.tensor,
    length: tl.tensor,
    table: tl.tensor,
    values: tl.tensor,
    period: tl.tensor,
    extent: tl.tensor,
    groups: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    inner: tl.tensor,
    STORED: tl.constexpr,
    OUT: tl.constexpr,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Write values to ``out`` [length], of the codes of the elements ``start`` …"""
    place = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8).to(tl.int64)
    inside = place < length
    level = stored_value(tl.load(codes + place, mask=inside, other=0), STORED, table, inside)
    group = group_of(place + start, FORM, WIDE, period, extent, groups, outputs, inputs, inner)
    store_value(out + place, level * tl.load(values + group, mask=inside, other=0.0), inside, OUT)


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
    """Encode a flat weight, or segments of it, for one member or several: see ``reference.encode``."""
    segments = 1 if starts is None else len(starts)
    if starts is None:
        length = weight.numel()
    assert length is not None
    shape = (members, segments, length)
    codes = torch.empty(shape, dtype=code_type(grid), device=weight.device) if out is None else out
    _launch_round(codes, weight, scales, grid, draw, starts, length)
    return codes


def planes(weight: Stored, scales: Scales, grid: Grid, draw: Draw, members: int = 1) -> Tensor:
    """Return the Bernoulli bits [members, ⌈elements / 8⌉]: see ``reference.planes``."""
    count = weight.numel()
    packed = torch.empty((members, -(-count // LANES)), dtype=torch.uint8, device=weight.device)
    _launch_round(packed[:, None], weight, scales, grid, draw, None, count, planes=True)
    return packed


def round_into(
    out: Tensor, weight: Stored, scales: Scales, grid: Grid, draw: Draw, starts: Tensor | None = None
) -> None:
    """Write the values level·s, in float32 and then cast: see ``reference.round_into``."""
    _launch_round(out, weight, scales, grid, draw, starts, out.shape[2], values=True)


@dataclass
class _Launch:
    """Weights of one plan that are rounded by one launch: all that is compiled into the kernel is alike.

    Args:
        places: of the weights in the plan. choices: the kernel's constants. programs: of all.
        works, work_of: see ``_round_table``. aligned: whether the stored weights are, to 16 bytes, and are
            whole blocks of eight.
        offsets: by where the outputs lie, of which few ways are kept.
    """

    places: list[int]
    choices: dict[str, Any]
    programs: int
    works: Tensor
    work_of: Tensor
    aligned: bool
    offsets: dict[tuple[int, ...], Tensor] = field(default_factory=dict)


class Plan:
    """Weights that are rounded together, by one launch for each way of storing and laying them out.

    What the tables point to is held here. Launches can be captured in a CUDA graph once outputs that lie as
    they do have been written before.
    """

    def __init__(self, tensors: Sequence[Rounded]) -> None:
        self._tensors = list(tensors)
        self._held: list[Any] = []
        self._launches: list[_Launch] = []
        alike: dict[tuple[Any, ...], list[tuple[int, list[int]]]] = {}
        choices: dict[tuple[Any, ...], dict[str, Any]] = {}
        for place, tensor in enumerate(self._tensors):
            length = tensor.weight.numel()
            if not length:
                continue
            draw = Draw("nearest", 0, tensor.name, 0)
            given = rounding_arguments(tensor.weight, tensor.scales, tensor.grid, draw)
            self._held.append(given)
            constants = {name: given[name] for name in _CHOICES}
            constants["TYPE"] = _TYPES[given["weight"].dtype]
            aligned = length % LANES == 0 and given["weight"].data_ptr() % 16 == 0
            key = (aligned, given["weight"].dtype, tensor.dtype, *(given[name] for name in _CHOICES))
            choices[key] = constants
            alike.setdefault(key, []).append((place, _fields(length, given)))
        for key, rows in alike.items():
            programs = [-(-row[1] // (BLOCKS * LANES)) for _, row in rows]
            for (_, row), first in zip(rows, accumulate(programs, initial=0), strict=False):
                row[0] = first
            work_of = torch.arange(len(rows), dtype=torch.int32, device="cpu").repeat_interleave(
                torch.tensor(programs, device="cpu")
            )
            device = self._tensors[rows[0][0]].weight.device
            self._launches.append(
                _Launch(
                    [place for place, _ in rows],
                    choices[key],
                    sum(programs),
                    torch.tensor([row for _, row in rows], dtype=torch.int64, device=device),
                    work_of.to(device),
                    key[0],
                )
            )

    def round_into(
        self, outs: Sequence[Tensor], draw: Draw, members: int = 1, further: Tensor | None = None
    ) -> None:
        """Write the members' values; see ``kernels.Plan.round_into``.

        Args:
            further: int32 [1] on the device, or None: added to ``draw.member`` when the kernels run, so that
                a captured graph goes on to other members.
        """
        assert len(outs) == len(self._tensors)
        for out, tensor in zip(outs, self._tensors, strict=True):
            # Only the address goes on from here.
            assert out.is_contiguous() and out.dtype == tensor.dtype
            assert out.numel() == members * tensor.weight.numel()
        for each in self._launches:
            out_as, bits = storage(outs[each.places[0]])
            start, width = bits.data_ptr(), bits.element_size()
            apart = tuple((outs[place].data_ptr() - start) // width for place in each.places)
            if apart not in each.offsets:
                if len(each.offsets) >= MOST_OFFSETS:
                    each.offsets.clear()
                each.offsets[apart] = torch.tensor(apart, dtype=torch.int64, device=bits.device)
            launch(
                _round_table,
                (each.programs,),
                bits.device,
                out=bits,
                offsets=each.offsets[apart],
                works=each.works,
                work_of=each.work_of,
                members=members,
                key_low=_int32(draw.seed),
                key_high=_int32(draw.seed >> 32),
                member=_int32(draw.member),
                further=further,
                OUT=out_as,
                ALIGNED=each.aligned and all(offset % 16 == 0 for offset in apart),
                FIELDS=each.works.shape[1],
                BLOCKS=BLOCKS,
                **{**each.choices, "ROUNDING": ROUNDINGS[draw.rounding]},
            )


plan = Plan
absmax = reference.absmax


def _fields(length: int, given: dict[str, Any]) -> list[int]:
    """Return a row of ``_round_table``'s table: its first program, and what differs from weight to weight."""
    return [
        0,
        length,
        given["weight"].data_ptr(),
        given["table"].data_ptr(),
        given["levels"],
        given["zero"],
        given["values"].data_ptr(),
        given["inverses"].data_ptr(),
        given["tensor"],
        *(given[name] for name in _LENGTHS),
        given["stored_table"].data_ptr(),
        given["stored_values"].data_ptr(),
        *(given[f"stored_{name}"] for name in _LENGTHS),
    ]


def decode(codes: Tensor, scales: Scales, grid: Grid, dtype: torch.dtype, start: int = 0) -> Tensor:
    """Return values level·s of flat codes of the elements start …: see ``reference.decode``."""
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    length = codes.numel()
    if not length:
        return values
    stored, bits = storage(values)
    groups = Groups.of(scales)
    launch(
        _decode,
        (-(-length // (BLOCKS * LANES)),),
        codes.device,
        out=bits,
        codes=codes.contiguous(),
        start=start,
        length=length,
        table=_table(grid, codes.device),
        values=scales.values,
        **groups.lengths(),
        STORED=INTEGERS.value if grid.uniform else INDICES.value,
        OUT=stored,
        FORM=groups.form,
        WIDE=start + length > INT32_ELEMENTS,
        BLOCKS=BLOCKS,
    )
    return values


def _launch_round(
    out: Tensor,
    weight: Stored,
    scales: Scales,
    grid: Grid,
    draw: Draw,
    starts: Tensor | None,
    length: int,
    values: bool = False,
    planes: bool = False,
) -> None:
    """Write the members' codes, values or planes to ``out`` [members, segments, length (planes: bytes)]."""
    if not out.numel():
        return
    members, segments, row = out.shape
    out_as, out_bits = storage(out)
    blocks = -(-length // LANES) if starts is None else -(-(length + LANES - 1) // LANES)
    launch(
        _round,
        (-(-segments * blocks // BLOCKS),),
        weight.device,
        out=out_bits,
        starts=None if starts is None else starts.contiguous(),
        members=members,
        segments=segments,
        length=length,
        stride=segments * row,
        blocks_a_segment=blocks,
        OUT=out_as,
        VALUES=values,
        PLANES=planes,
        SEGMENTED=starts is not None,
        BLOCKS=BLOCKS,
        **rounding_arguments(weight, scales, grid, draw),
    )


def rounding_arguments(weight: Stored, scales: Scales, grid: Grid, draw: Draw) -> dict[str, Any]:
    """Return the arguments of a kernel that say what is rounded, and how."""
    groups = Groups.of(scales)
    table = stored_table = _table(grid, weight.device)
    stored_values, stored_groups = scales.values, groups
    if isinstance(weight, Coded):
        stored_as, stored_bits = (INTEGERS if weight.grid.uniform else INDICES).value, weight.codes
        stored_table = _table(weight.grid, weight.device)
        stored_values, stored_groups = weight.scales.values, Groups.of(weight.scales)
    else:
        stored_as, stored_bits = storage(weight)
    return dict(
        weight=stored_bits.contiguous(),
        table=table,
        levels=len(grid.levels),
        zero=grid.zero,
        values=scales.values,
        inverses=scales.inverses,
        key_low=_int32(draw.seed),
        key_high=_int32(draw.seed >> 32),
        tensor=_int32(tensor_id(draw.name)),
        member=_int32(draw.member),
        **groups.lengths(),
        stored_table=stored_table,
        stored_values=stored_values,
        **stored_groups.lengths("stored_"),
        ROUNDING=ROUNDINGS[draw.rounding],
        UNIFORM=grid.uniform,
        SEARCH=0 if grid.uniform else (len(grid.levels) - 2).bit_length(),
        STORED=stored_as,
        FORM=groups.form,
        A_BLOCK=groups.a_block,
        STORED_FORM=stored_groups.form,
        STORED_A_BLOCK=stored_groups.a_block,
        WIDE=weight.numel() > INT32_ELEMENTS,
    )


def storage(floats: Tensor) -> tuple[int, Tensor]:
    """Return how the elements are stored, and a tensor of what the kernels load and store."""
    if floats.dtype == torch.bfloat16:
        return BFLOAT16.value, floats.view(torch.int16)
    return FLOAT.value, floats


@lru_cache(maxsize=256)
def _table(grid: Grid, device: torch.device) -> Tensor:
    """Return the levels, copied to the device once."""
    return level_table(grid, device)


def _int32(word: int) -> int:
    """Return the lower 32 bits as a signed number, so that kernels get one type of all."""
    return (word + 2**31) % 2**32 - 2**31


def launch(kernel: Any, programs: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
    """Run a kernel on the device, with the options that keep it to the reference's bits."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[programs](**arguments, num_warps=WARPS, enable_fp_fusion=False)
