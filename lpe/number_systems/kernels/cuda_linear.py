"""A linear layer of all members on one stored weight, whose members' weights are never written to memory.

    out[m] = x[m] W_mᵀ,   W_m the weight rounded for member m

A program takes ROWS outputs and a chunk of the inputs. It loads that part of the stored weight once, draws it
for one member after another in registers, and multiplies it with that member's inputs. This is for few
examples, each of which costs its products without tensor cores. For many, round the members first
(``cuda.round_into``) and multiply matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpe.number_systems.grids import Grid
from lpe.number_systems.kernels.arguments import Draw, Scales, Stored
from lpe.number_systems.kernels.cuda import (
    BERNOULLI,
    BFLOAT16,
    COUPLED,
    INTEGERS,
    NEAREST,
    bfloat16_bits,
    coupled_lanes,
    lanes_of,
    launch,
    level_of,
    positions,
    rounding_arguments,
    scales_at,
    storage,
    stored_value,
)
from lpe.number_systems.streams import LANES

ROWS = 4
"""Outputs of a program, a power of two."""

COLUMN_BLOCKS = 64
"""Blocks of eight inputs of a program, a power of two; fewer where the weight has fewer."""


@triton.jit
def member_value(
    code: tl.tensor,
    scale: tl.tensor,
    table: tl.tensor,
    inside: tl.tensor,
    x: tl.tensor,
    X: tl.constexpr,
    UNIFORM: tl.constexpr,
) -> tl.tensor:
    """Return the values of codes, rounded to the dtype of ``x``, in float32."""
    value = level_of(code, table, inside, UNIFORM) * scale
    if X == BFLOAT16:
        value = stored_value(bfloat16_bits(value), X, table, inside)
    else:
        value = value.to(x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit(
    do_not_specialize=[
        "members",
        "batch",
        "chunk",
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
def _linear(
    out: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    members: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    chunk: tl.tensor,
    member_stride: tl.tensor,
    example_stride: tl.tensor,
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
    X: tl.constexpr,
    FORM: tl.constexpr,
    A_BLOCK: tl.constexpr,
    STORED_FORM: tl.constexpr,
    STORED_A_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
) -> None:
    """Write sums over a chunk of the inputs to ``out`` [chunks, members, batch, rows], float32."""
    BLOCKS: tl.constexpr = ROWS * COLUMN_BLOCKS
    index = tl.arange(0, BLOCKS)
    row = tl.program_id(0).to(tl.int64) * ROWS + (index // COLUMN_BLOCKS).to(tl.int64)
    first = tl.program_id(1).to(tl.int64) * chunk
    begin = row * columns + first
    end = row * columns + tl.minimum(first + chunk, columns)
    # A row need not begin with a block.
    block = begin // 8 + (index % COLUMN_BLOCKS).to(tl.int64)
    there = (row < rows) & (block * 8 < end)
    element = block[:, None] * 8 + tl.arange(0, 8).to(tl.int64)[None, :]
    if WHOLE_BLOCKS:
        # A mask that eight elements share lets them be loaded at once.
        inside = tl.broadcast_to(there[:, None], [BLOCKS, 8])
    else:
        inside = there[:, None] & (element >= begin[:, None]) & (element < end[:, None])
    column = element - (row * columns)[:, None]

    w = stored_value(tl.load(weight + element, mask=inside, other=0), STORED, stored_table, inside)
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
    output = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    to = out + tl.program_id(1).to(tl.int64) * members * batch * rows
    of_member = x
    # A member's weight is one of two, each as a member's own weights are kept.
    threshold = position
    low = position
    if ROUNDING != NEAREST:
        low = (position - 65535) >> 16
        threshold = (position - 65535) & 0xFFFF
    lower = member_value(low, scale, table, inside, x, X, UNIFORM)
    upper = lower
    if ROUNDING != NEAREST:
        upper = member_value(low + 1, scale, table, inside, x, X, UNIFORM)
    for _ in range(members):
        value = lower
        if ROUNDING == BERNOULLI:
            lanes = lanes_of(block, tensor, drawn, key_low, key_high, BLOCKS)
            value = tl.where(lanes < threshold, upper, lower)
        if ROUNDING == COUPLED:
            lanes = coupled_lanes(shared, drawn)
            value = tl.where(lanes < threshold, upper, lower)
        of_example = of_member
        for _example in range(batch):
            given = stored_value(tl.load(of_example + column, mask=inside, other=0), X, table, inside)
            products = tl.reshape(value * given, [ROWS, COLUMN_BLOCKS * 8])
            tl.store(to + output, tl.sum(products, axis=1), mask=output < rows)
            of_example += example_stride
            to += rows
        of_member += member_stride
        drawn = tl.add(drawn, 1, sanitize_overflow=False)


def member_linear(x: Tensor, weight: Stored, scales: Scales, grid: Grid, draw: Draw) -> Tensor:
    """Return x[m] W_mᵀ of every member m, without bias: what rounded weights give, to float32's rounding.

    Each stored weight is read once for all members and examples.

    Args:
        x: [members, batch, in], float32, bfloat16 or float16, as which the members' weights are kept. Inputs
            that all members share may be expanded: they are not copied.
        weight: flat [out · in], or codes. scales: of the members; their layout is of [out, in].
        grid, draw: of the members, the first of them ``draw.member``.

    Returns:
        [members, batch, out], of x's dtype; summed in float32.
    """
    members, batch, columns = x.shape
    rows = scales.layout.rows
    assert scales.layout.shape == (rows, columns) and scales.layout.output_axis == 0
    if not members * batch * rows * columns:
        return x.new_zeros((members, batch, rows))
    if x.stride(2) != 1:
        x = x.contiguous()
    # Where rows do not begin with a block, a chunk has one block more than its length takes.
    spare = 0 if columns % LANES == 0 else 1
    column_blocks = min(COLUMN_BLOCKS, triton.next_power_of_2(-(-columns // LANES) + spare))
    chunk = (column_blocks - spare) * LANES
    chunks = -(-columns // chunk)
    sums = torch.empty((chunks, members, batch, rows), dtype=torch.float32, device=x.device)
    x_as, x_bits = storage(x)
    launch(
        _linear,
        (-(-rows // ROWS), chunks),
        x.device,
        out=sums,
        x=x_bits,
        members=members,
        batch=batch,
        rows=rows,
        columns=columns,
        chunk=chunk,
        member_stride=x.stride(0),
        example_stride=x.stride(1),
        X=x_as,
        ROWS=ROWS,
        COLUMN_BLOCKS=column_blocks,
        WHOLE_BLOCKS=columns % LANES == 0,
        **rounding_arguments(weight, scales, grid, draw),
    )
    return (sums[0] if chunks == 1 else sums.sum(dim=0)).to(x.dtype)
