"""Members as bit planes on a GPU: their values, and a linear layer of all members, as Triton kernels.

A linear layer of integers with one scale a row is, for member m,

    y_m = Δ ∘ (L x_m + B_m x_m),   L the lower neighbours, B_m the plane, 0 or 1

    _lower   L X for all members at once, on tensor cores: each lower neighbour, one byte, is read once
    _bits    B_m x_m: a thread holds words of 32 bits and adds the inputs whose bit is set; then Δ and L X

Products are of whole numbers, so that a member's weights are not rounded to the inputs' dtype, as a member's
own weights are: the two agree to that rounding. For other systems and scales the values are written first.

In the machine code that Triton 3.9 makes of a 4096 × 4096 layer for sm_90, ``_bits`` takes 3.2 instructions a
weight and member: a test of the bit, a selection and a sum, and .2 once a row. ``_lower`` takes 8.7 a weight
once for all members. Written by hand, a sum that the bit allows or not would make two of the three one.

With TRITON_INTERPRET=1 in the environment before triton is imported, the same kernels run on the CPU, slowly.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpe.number_systems.kernels.cuda import (
    BFLOAT16,
    INT32_ELEMENTS,
    Groups,
    group_of,
    launch,
    level_of,
    storage,
    store_value,
    stored_value,
)
from lpe.number_systems.kernels.planes import EIGHT, Planes
from lpe.number_systems.kernels.reference import level_table

POSITIONS = 8
"""Most positions a member that are multiplied without writing the members' weights. By count, not measured: a
position costs 3 instructions a weight, and writing a weight and reading it again 4 bytes, the time of 35.
"""

WORD = 32
"""Weights of a word of a plane."""

WORDS = 32
"""Words of a row that a program holds at a time, a power of two."""

BIT_ROWS = 64
"""Rows of a program that adds inputs, a power of two: a thread loads an input once for all its rows."""

ROWS, COLUMNS, SUMS = 64, 64, 16
"""Rows, columns and sums of a step of ``_lower``: powers of two, at least 16 each as tensor cores ask."""

STEPS = 8
"""Steps of a program of ``_lower``; with more columns there are more programs, whose sums are added."""


@triton.jit(do_not_specialize=["first", "length", "period", "extent", "groups", "outputs", "inputs", "inner"])
def _values(
    out: tl.tensor,
    lower: tl.tensor,
    bits: tl.tensor,
    starts: tl.tensor,
    plane: tl.tensor,
    first: tl.tensor,
    members: tl.tensor,
    length: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    values: tl.tensor,
    period: tl.tensor,
    extent: tl.tensor,
    groups: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    inner: tl.tensor,
    UNIFORM: tl.constexpr,
    OUT: tl.constexpr,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write members' values to ``out`` [members, segments, length]; ``plane`` bytes are a member's."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = place < stride
    segment = place // length
    element = tl.load(starts + segment, mask=inside, other=0) + (place - segment * length)
    group = group_of(element, FORM, WIDE, period, extent, groups, outputs, inputs, inner)
    scale = tl.load(values + group, mask=inside, other=0.0)
    code = tl.load(lower + element, mask=inside, other=0).to(tl.int32)
    at = out + place
    byte = bits + first * plane + element // 8
    shift = (element % 8).to(tl.int32)
    for _ in range(members):
        bit = (tl.load(byte, mask=inside, other=0).to(tl.int32) >> shift) & 1
        store_value(at, level_of(code + bit, table, inside, UNIFORM) * scale, inside, OUT)
        at += stride
        byte += plane


@triton.jit
def _lower(
    out: tl.tensor,
    lower: tl.tensor,
    x: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    sums: tl.tensor,
    X: tl.constexpr,
    AS_FLOAT32: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUMS: tl.constexpr,
    STEPS: tl.constexpr,
) -> None:
    """Write L X over a chunk of columns to ``out`` [chunks, sums, rows], float32; x is [sums, columns]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    chunk = tl.program_id(1).to(tl.int64)
    number = tl.program_id(2).to(tl.int64) * SUMS + tl.arange(0, SUMS).to(tl.int64)
    total = tl.zeros([ROWS, SUMS], dtype=tl.float32)
    for step in range(STEPS):
        column = (chunk * STEPS + step) * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)
        there = column < columns
        code = tl.load(
            lower + row[:, None] * columns + column[None, :],
            mask=(row < rows)[:, None] & there[None, :],
            other=0,
        )
        given = tl.load(
            x + number[None, :] * columns + column[:, None],
            mask=there[:, None] & (number < sums)[None, :],
            other=0,
        )
        # Codes of at most eight bits are exact in every float.
        if X == BFLOAT16:
            value = stored_value(given, X, x, there)
            if AS_FLOAT32:
                total = tl.dot(code.to(tl.float32), value, total, input_precision="ieee")
            else:
                total = tl.dot(code.to(tl.float32).to(tl.bfloat16), value.to(tl.bfloat16), total)
        else:
            total = tl.dot(code.to(given.dtype), given, total, input_precision="ieee")
    tl.store(
        out + (chunk * sums + number[None, :]) * rows + row[:, None],
        total,
        mask=(row < rows)[:, None] & (number < sums)[None, :],
    )


@triton.jit
def _bits(
    out: tl.tensor,
    lower_sums: tl.tensor,
    words: tl.tensor,
    x: tl.tensor,
    values: tl.tensor,
    rows: tl.tensor,
    row_words: tl.tensor,
    plane: tl.tensor,
    positions: tl.tensor,
    chunks: tl.tensor,
    extent: tl.tensor,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
) -> None:
    """Write Δ (L x + B x) to ``out`` [members, positions, rows]; ``plane`` and ``row_words`` count words.

    ``x`` is [members · positions, words of a row up to a multiple of WORDS, by WORDS: 32, WORDS], float32.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    member = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, WORDS).to(tl.int64)
    scale = tl.load(values + row // extent, mask=row < rows, other=0.0)
    of_row = words + member * plane + row * row_words
    steps = (row_words + WORDS - 1) // WORDS
    sums = tl.num_programs(1).to(tl.int64) * positions
    for position in range(positions):
        number = member * positions + position
        given = x + number * steps * (WORDS * 32) + lane
        total = tl.zeros([ROWS, WORDS], dtype=tl.float32)
        for step in range(steps):
            place = step * WORDS + lane
            word = tl.load(
                of_row[:, None] + place[None, :],
                mask=(row < rows)[:, None] & (place < row_words)[None, :],
                other=0,
            )
            for bit in tl.static_range(32):
                value = tl.load(given + (step * 32 + bit) * WORDS)
                total += tl.where(((word >> bit) & 1) != 0, value[None, :], 0.0)
        found = tl.sum(total, axis=1)
        for chunk in range(chunks):
            found += tl.load(lower_sums + (chunk * sums + number) * rows + row, mask=row < rows, other=0.0)
        store_value(out + number * rows + row, found * scale, row < rows, OUT)


def round_into(out: Tensor, planes: Planes, first: int = 0, starts: Tensor | None = None) -> None:
    """Write values into ``out`` [members, segments, length]; see ``planes.round_into``."""
    if not out.numel():
        return
    members, segments, length = out.shape
    out_as, out_bits = storage(out)
    groups = Groups.of(planes.scales)
    block = 1024
    begins = torch.zeros(1, dtype=torch.int64, device=out.device) if starts is None else starts.contiguous()
    launch(
        _values,
        (-(-segments * length // block),),
        out.device,
        out=out_bits,
        lower=planes.lower,
        bits=planes.bits,
        starts=begins,
        plane=planes.bits.stride(1),
        first=first,
        members=members,
        length=length,
        stride=segments * length,
        table=level_table(planes.grid, out.device),
        values=planes.scales.values,
        **groups.lengths(),
        UNIFORM=planes.grid.uniform,
        OUT=out_as,
        FORM=groups.form,
        WIDE=planes.layout.numel > INT32_ELEMENTS,
        BLOCK=block,
    )


def multiplies(planes: Planes, positions: int, dtype: torch.dtype) -> bool:
    """Tell whether a product with so many positions a member is made by ``multiply``."""
    return (
        planes.is_matrix
        and planes.layout.columns % WORD == 0
        and planes.grid.uniform
        and planes.layout.scale_shape(planes.scales.axis)[1] == 1
        and dtype in (torch.float32, torch.bfloat16, torch.float16)
        and 0 < positions <= POSITIONS
    )


def multiply(inputs: Tensor, planes: Planes, dtype: torch.dtype) -> Tensor:
    """Return x[m] W_mᵀ of all members, summed in float32; see ``planes.multiply`` and :func:`multiplies`."""
    members, positions, columns = inputs.shape
    rows = planes.layout.rows
    out = torch.empty((members, positions, rows), dtype=dtype, device=inputs.device)
    if not out.numel():
        return out
    sums = members * positions
    flat = inputs.to(dtype).reshape(sums, columns).contiguous()
    x_as, x_bits = storage(flat)
    chunks = -(-columns // (COLUMNS * STEPS))
    lower_sums = torch.empty((chunks, sums, rows), dtype=torch.float32, device=inputs.device)
    launch(
        _lower,
        (-(-rows // ROWS), chunks, -(-sums // SUMS)),
        inputs.device,
        out=lower_sums,
        lower=planes.lower,
        x=x_bits,
        rows=rows,
        columns=columns,
        sums=sums,
        X=x_as,
        # Triton's interpreter multiplies matrices of bfloat16 by their bits.
        AS_FLOAT32=os.environ.get("TRITON_INTERPRET") == "1",
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        SUMS=SUMS,
        STEPS=STEPS,
    )
    row_words = columns // WORD
    steps = -(-row_words // WORDS)
    # Bit by bit, so that a thread's inputs of one bit lie side by side.
    padded = torch.nn.functional.pad(flat.float(), (0, steps * WORDS * WORD - columns))
    laid = padded.view(sums, steps, WORDS, WORD).transpose(2, 3).contiguous()
    row_extent, _ = planes.scales.axis.extent(rows, columns)
    out_as, out_bits = storage(out)
    launch(
        _bits,
        (-(-rows // BIT_ROWS), members),
        inputs.device,
        out=out_bits,
        lower_sums=lower_sums,
        words=planes.bits.T.view(torch.int32),
        x=laid,
        values=planes.scales.values,
        rows=rows,
        row_words=row_words,
        plane=planes.bits.stride(1) * EIGHT // WORD,
        positions=positions,
        chunks=chunks,
        extent=row_extent,
        OUT=out_as,
        ROWS=BIT_ROWS,
        WORDS=WORDS,
    )
    return out
