"""A convolution, its filter response norm, SiLU and residual sum as one Triton kernel, forward and backward.

A filter response norm sees one example, so one program takes one example of one network and needs nothing of
any other. It goes through the output's pixels in blocks, nine shifted products a block; sums the squares; and
then normalises what it has just written, which is still in the cache. Backward, one program takes the
gradient through SiLU and norm, writes it, and convolves it back. Another kernel sums the weights' gradient
over examples, in chunks, without atomics: the same numbers each time. One program can also take its example
through several residual blocks. Several networks of one shape lie side by side: a launch is of all examples
of all of them, each network with weights of its own.

Tried and of no use: zeros kept around each image, so that no pixel is asked whether it is inside (the
compiled loops are as long); the weights' gradient inside the backward kernel (as slow as both on an H200).

Tensors are [networks, examples, height, width, channels], square, of one dtype (bfloat16, or float32 for
checks against a reference); sums are in float32. A convolution's weights are [networks, …] with those of one
layer [taps, in, out] from an offset on; a norm's are float32, [weight | bias] from an offset on. Offsets and
strides are multiples of 16, sides and channels powers of two.

With TRITON_INTERPRET=1 in the environment before triton is imported, the kernels run on the CPU, slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpe.errors import InputError

try:
    import triton
    import triton.language as tl
except ImportError as missing:
    raise InputError(
        "the fused training kernels need the package triton, which is not installed; pip install triton, "
        "or train with module_gradient"
    ) from missing

EPSILON = tl.constexpr(1e-6)


@triton.jit
def _shifted(
    source: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    first_tap: tl.tensor,
    BACK: tl.constexpr,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    TAPS: tl.constexpr,
) -> tl.tensor:
    """Load the pixels beside those of (row, column), TAPS taps of them: [pixels, TAPS · CHANNELS], 0 outside.

    Forward (row, column) is an output's first tap, in the source's pixels, and taps go on from there; BACK it
    is an input's last tap, in pixels of an output STRIDE times as large, and taps go back from there.
    """
    k = tl.arange(0, TAPS * CHANNELS)
    if TAPS == 1:
        i = first_tap // KERNEL
        j = first_tap % KERNEL
        i = (row - i if BACK else row + i)[:, None]
        j = (column - j if BACK else column + j)[:, None]
    else:
        tap = first_tap + k // CHANNELS
        i = (tap // KERNEL)[None, :]
        j = (tap % KERNEL)[None, :]
        i = row[:, None] - i if BACK else row[:, None] + i
        j = column[:, None] - j if BACK else column[:, None] + j
    inside = (i >= 0) & (j >= 0)
    if BACK and STRIDE > 1:
        inside = inside & (i % STRIDE == 0) & (j % STRIDE == 0)
        i = i // STRIDE
        j = j // STRIDE
    inside = inside & (i < SIDE) & (j < SIDE)
    if TAPS > 1:
        inside = inside & (tap < KERNEL * KERNEL)[None, :]
    return tl.load(source + (i * SIDE + j) * CHANNELS + (k % CHANNELS)[None, :], mask=inside, other=0.0)


@triton.jit
def _forward_example(
    x: tl.tensor,
    weights: tl.tensor,
    norms: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    scales: tl.tensor,
    SIDE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    TAPS: tl.constexpr,
) -> None:
    """Compute a layer of an example: y = conv(x), z = [silu](norm(y) [+ residual]); scales: the norm's r."""
    OUT: tl.constexpr = SIDE // STRIDE
    PIXELS: tl.constexpr = OUT * OUT
    PAD: tl.constexpr = KERNEL // 2
    k = tl.arange(0, TAPS * CI)
    co = tl.arange(0, CO)
    total = tl.zeros([CO], dtype=tl.float32)
    for start in tl.range(0, PIXELS, BLOCK, num_stages=1):
        p = start + tl.arange(0, BLOCK)
        row = p // OUT * STRIDE - PAD
        column = p % OUT * STRIDE - PAD
        sums = tl.zeros([BLOCK, CO], dtype=tl.float32)
        for tap in tl.range(0, KERNEL * KERNEL, TAPS, num_stages=STAGES):
            a = _shifted(x, row, column, tap, False, SIDE, CI, KERNEL, 1, TAPS)
            at = (tap * CI + k)[:, None] * CO + co[None, :]
            if TAPS == 1:
                b = tl.load(weights + at)
            else:
                b = tl.load(weights + at, mask=(tap + k // CI < KERNEL * KERNEL)[:, None], other=0.0)
            sums = tl.dot(a, b, sums, input_precision="ieee")
        rounded = sums.to(y.dtype.element_ty)
        tl.store(y + p[:, None] * CO + co[None, :], rounded)
        wide = rounded.to(tl.float32)
        total += tl.sum(wide * wide, axis=0)
    scale = 1 / tl.sqrt(total / PIXELS + EPSILON)
    tl.store(scales + co, scale)
    scale = scale * tl.load(norms + co)
    bias = tl.load(norms + CO + co)
    # What other threads of this program wrote is read from here on.
    tl.debug_barrier()
    for start in tl.range(0, PIXELS, ROWS, num_stages=1):
        at = (start + tl.arange(0, ROWS))[:, None] * CO + co[None, :]
        before = tl.load(y + at).to(tl.float32) * scale[None, :] + bias[None, :]
        if RESIDUAL:
            before += tl.load(residual + at).to(tl.float32)
        if ACTIVE:
            before = before * tl.sigmoid(before)
        tl.store(z + at, before.to(z.dtype.element_ty))


@triton.jit
def _forward(
    x: tl.tensor,
    weights: tl.tensor,
    norms: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    scales: tl.tensor,
    weights_stride: tl.tensor,
    weights_offset: tl.tensor,
    norms_stride: tl.tensor,
    norms_offset: tl.tensor,
    SIDE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    TAPS: tl.constexpr,
) -> None:
    """Compute one layer, an example a program."""
    SIZE: tl.constexpr = (SIDE // STRIDE) * (SIDE // STRIDE) * CO
    network = tl.program_id(1)
    example = (network * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    _forward_example(
        x + example * (SIDE * SIDE * CI),
        weights + network * weights_stride + weights_offset,
        norms + network * norms_stride + norms_offset,
        residual + example * SIZE,
        y + example * SIZE,
        z + example * SIZE,
        scales + example * CO,
        SIDE,
        CI,
        CO,
        KERNEL,
        STRIDE,
        ACTIVE,
        RESIDUAL,
        BLOCK,
        ROWS,
        STAGES,
        TAPS,
    )


@triton.jit
def _forward_blocks(
    x: tl.tensor,
    weights: tl.tensor,
    norms: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    scales: tl.tensor,
    weights_stride: tl.tensor,
    weights_offset: tl.tensor,
    norms_stride: tl.tensor,
    norms_offset: tl.tensor,
    SIDE: tl.constexpr,
    CO: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    TAPS: tl.constexpr,
) -> None:
    """Compute residual blocks one after another, an example a program: y, z, scales are [2 · BLOCKS, …]."""
    SIZE: tl.constexpr = SIDE * SIDE * CO
    network = tl.program_id(1)
    examples = (tl.num_programs(0) * tl.num_programs(1)).to(tl.int64)
    example = (network * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    weights += network * weights_stride + weights_offset
    norms += network * norms_stride + norms_offset
    given = x + example * SIZE
    y += example * SIZE
    z += example * SIZE
    scales += example * CO
    for _ in tl.range(0, BLOCKS, num_stages=1):
        _forward_example(
            given, weights, norms, given, y, z, scales,
            SIDE, CO, CO, 3, 1, True, False, BLOCK, ROWS, STAGES, TAPS,
        )  # fmt: skip
        tl.debug_barrier()
        second = z + examples * SIZE
        _forward_example(
            z, weights + 9 * CO * CO, norms + 2 * CO, given, y + examples * SIZE, second,
            scales + examples * CO,
            SIDE, CO, CO, 3, 1, True, True, BLOCK, ROWS, STAGES, TAPS,
        )  # fmt: skip
        tl.debug_barrier()
        given = second
        weights += 18 * CO * CO
        norms += 4 * CO
        y += 2 * examples * SIZE
        z += 2 * examples * SIZE
        scales += 2 * examples * CO


@triton.jit
def _backward_example(
    dz: tl.tensor,
    weights: tl.tensor,
    norms: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    scales: tl.tensor,
    added: tl.tensor,
    dy: tl.tensor,
    dresidual: tl.tensor,
    dx: tl.tensor,
    dnorms: tl.tensor,
    SIDE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ADDED: tl.constexpr,
    INPUT: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    TAPS: tl.constexpr,
) -> None:
    """Compute a layer of an example: dy, dresidual, the norm's gradient; where INPUT, dx = convᵀ(dy) [+
    added].

    dx may lie where dz does.
    """
    OUT: tl.constexpr = SIDE // STRIDE
    PIXELS: tl.constexpr = OUT * OUT
    PAD: tl.constexpr = KERNEL // 2
    ci = tl.arange(0, CI)
    co = tl.arange(0, CO)
    r = tl.load(scales + co)
    weight = tl.load(norms + co)
    bias = tl.load(norms + CO + co)
    dweight = tl.zeros([CO], dtype=tl.float32)
    dbias = tl.zeros([CO], dtype=tl.float32)
    kept = dresidual if RESIDUAL else dy
    for start in tl.range(0, PIXELS, ROWS, num_stages=1):
        at = (start + tl.arange(0, ROWS))[:, None] * CO + co[None, :]
        gradient = tl.load(dz + at).to(tl.float32)
        value = tl.load(y + at).to(tl.float32)
        if ACTIVE:
            before = value * (r * weight)[None, :] + bias[None, :]
            if RESIDUAL:
                before += tl.load(residual + at).to(tl.float32)
            chance = tl.sigmoid(before)
            gradient *= chance * (1 + before * (1 - chance))
        dweight += tl.sum(gradient * value, axis=0)
        dbias += tl.sum(gradient, axis=0)
        tl.store(kept + at, gradient.to(dy.dtype.element_ty))
    dweight *= r
    tl.store(dnorms + co, dweight)
    tl.store(dnorms + CO + co, dbias)
    # With n = y·r: dy = r·weight·(g − n · mean(g·n)).
    mean = dweight * r / PIXELS
    # What other threads of this program wrote is read from here on.
    tl.debug_barrier()
    for start in tl.range(0, PIXELS, ROWS, num_stages=1):
        at = (start + tl.arange(0, ROWS))[:, None] * CO + co[None, :]
        gradient = tl.load(kept + at).to(tl.float32)
        value = tl.load(y + at).to(tl.float32)
        back = (r * weight)[None, :] * (gradient - value * mean[None, :])
        tl.store(dy + at, back.to(dy.dtype.element_ty))
    if INPUT:
        k = tl.arange(0, TAPS * CO)
        # Of a tap's weights transposed, for the taps from 0 on.
        turned = (k // CO * (CI * CO) + k % CO)[:, None] + ci[None, :] * CO
        tl.debug_barrier()
        for start in tl.range(0, SIDE * SIDE, BLOCK, num_stages=1):
            p = start + tl.arange(0, BLOCK)
            row = p // SIDE + PAD
            column = p % SIDE + PAD
            at = p[:, None] * CI + ci[None, :]
            if ADDED:
                sums = tl.load(added + at).to(tl.float32)
            else:
                sums = tl.zeros([BLOCK, CI], dtype=tl.float32)
            for tap in tl.range(0, KERNEL * KERNEL, TAPS, num_stages=STAGES):
                a = _shifted(dy, row, column, tap, True, OUT, CO, KERNEL, STRIDE, TAPS)
                there = weights + tap * (CI * CO) + turned
                if TAPS == 1:
                    b = tl.load(there)
                else:
                    b = tl.load(there, mask=(tap + k // CO < KERNEL * KERNEL)[:, None], other=0.0)
                sums = tl.dot(a, b, sums, input_precision="ieee")
            tl.store(dx + at, sums.to(dx.dtype.element_ty))


@triton.jit
def _backward(
    dz: tl.tensor,
    weights: tl.tensor,
    norms: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    scales: tl.tensor,
    added: tl.tensor,
    dy: tl.tensor,
    dresidual: tl.tensor,
    dx: tl.tensor,
    dnorms: tl.tensor,
    weights_stride: tl.tensor,
    weights_offset: tl.tensor,
    norms_stride: tl.tensor,
    norms_offset: tl.tensor,
    SIDE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ADDED: tl.constexpr,
    INPUT: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    TAPS: tl.constexpr,
) -> None:
    """Compute one layer, an example a program."""
    SIZE: tl.constexpr = (SIDE // STRIDE) * (SIDE // STRIDE) * CO
    SIZE_IN: tl.constexpr = SIDE * SIDE * CI
    network = tl.program_id(1)
    example = (network * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    _backward_example(
        dz + example * SIZE,
        weights + network * weights_stride + weights_offset,
        norms + network * norms_stride + norms_offset,
        residual + example * SIZE,
        y + example * SIZE,
        scales + example * CO,
        added + example * SIZE_IN,
        dy + example * SIZE,
        dresidual + example * SIZE,
        dx + example * SIZE_IN,
        dnorms + example * norms_stride + norms_offset,
        SIDE,
        CI,
        CO,
        KERNEL,
        STRIDE,
        ACTIVE,
        RESIDUAL,
        ADDED,
        INPUT,
        BLOCK,
        ROWS,
        STAGES,
        TAPS,
    )


@triton.jit
def _backward_blocks(
    dz: tl.tensor,
    weights: tl.tensor,
    norms: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    scales: tl.tensor,
    dy: tl.tensor,
    dresidual: tl.tensor,
    dnorms: tl.tensor,
    x: tl.tensor,
    weights_stride: tl.tensor,
    weights_offset: tl.tensor,
    norms_stride: tl.tensor,
    norms_offset: tl.tensor,
    SIDE: tl.constexpr,
    CO: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    TAPS: tl.constexpr,
) -> None:
    """Compute residual blocks backwards, from the last: dz becomes the gradient of x, in place.

    y, z, scales and dy are [2 · BLOCKS, …].
    """
    SIZE: tl.constexpr = SIDE * SIDE * CO
    network = tl.program_id(1)
    examples = (tl.num_programs(0) * tl.num_programs(1)).to(tl.int64)
    example = (network * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    dz += example * SIZE
    x += example * SIZE
    dresidual += example * SIZE
    weights += network * weights_stride + weights_offset
    norms += network * norms_stride + norms_offset
    dnorms += example * norms_stride + norms_offset
    for turn in tl.range(0, BLOCKS, num_stages=1):
        block = BLOCKS - 1 - turn
        first = 2 * block * examples + example
        second = first + examples
        # What the block was given: x, or what the block before made.
        given = x
        if block > 0:
            given = z + (first - examples) * SIZE
        w = weights + block * (18 * CO * CO)
        n = norms + block * (4 * CO)
        dn = dnorms + block * (4 * CO)
        _backward_example(
            dz, w + 9 * CO * CO, n + 2 * CO, given, y + second * SIZE, scales + second * CO,
            dz, dy + second * SIZE, dresidual, dz, dn + 2 * CO,
            SIDE, CO, CO, 3, 1, True, True, False, True, BLOCK, ROWS, STAGES, TAPS,
        )  # fmt: skip
        tl.debug_barrier()
        _backward_example(
            dz, w, n, given, y + first * SIZE, scales + first * CO,
            dresidual, dy + first * SIZE, dresidual, dz, dn,
            SIDE, CO, CO, 3, 1, True, False, True, True, BLOCK, ROWS, STAGES, TAPS,
        )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def _weights_gradient(
    x: tl.tensor,
    dy: tl.tensor,
    partial: tl.tensor,
    examples: tl.tensor,
    examples_a_chunk: tl.tensor,
    partial_stride: tl.tensor,
    partial_offset: tl.tensor,
    SIDE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    TAPS: tl.constexpr,
) -> None:
    """Write TAPS taps' gradient, over a chunk of a network's examples: partial[chunk, network, …]."""
    OUT: tl.constexpr = SIDE // STRIDE
    PIXELS: tl.constexpr = OUT * OUT
    BLOCKS: tl.constexpr = PIXELS // BLOCK
    PAD: tl.constexpr = KERNEL // 2
    chunk = tl.program_id(1)
    network = tl.program_id(2)
    first = (network * examples + chunk * examples_a_chunk).to(tl.int64)
    tap = tl.program_id(0) * TAPS
    k = tl.arange(0, TAPS * CI)
    co = tl.arange(0, CO)
    x += first * (SIDE * SIDE * CI)
    dy += first * (PIXELS * CO)
    sums = tl.zeros([TAPS * CI, CO], dtype=tl.float32)
    for step in tl.range(0, examples_a_chunk * BLOCKS, num_stages=STAGES):
        p = step % BLOCKS * BLOCK + tl.arange(0, BLOCK)
        row = p // OUT * STRIDE - PAD
        column = p % OUT * STRIDE - PAD
        given = x + step // BLOCKS * (SIDE * SIDE * CI)
        a = _shifted(given, row, column, tap, False, SIDE, CI, KERNEL, 1, TAPS)
        b = tl.load(dy + (step // BLOCKS * PIXELS + p)[:, None] * CO + co[None, :])
        sums = tl.dot(tl.trans(a), b, sums, input_precision="ieee")
    partial += (chunk * tl.num_programs(2) + network).to(tl.int64) * partial_stride + partial_offset
    at = (tap * CI + k)[:, None] * CO + co[None, :]
    tl.store(partial + at, sums, mask=(tap + k // CI < KERNEL * KERNEL)[:, None])


@triton.jit
def _crops(
    images: tl.tensor,
    index: tl.tensor,
    crop: tl.tensor,
    out: tl.tensor,
    SIDE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Crop a padded image, perhaps mirrored; its four channels are one int64 where they are bfloat16."""
    example = tl.program_id(0).to(tl.int64)
    image = tl.load(index + example)
    place = tl.load(crop + example)
    shift = PADDED - SIDE + 1
    mirrored = place % 2
    left = place // 2 % shift
    top = place // 2 // shift
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    j = p % SIDE
    j = tl.where(mirrored == 1, SIDE - 1 - j, j)
    there = (image * PADDED + top + p // SIDE) * PADDED + left + j
    tl.store(out + example * (SIDE * SIDE) + p, tl.load(images + there))


@dataclass(frozen=True)
class Tuning:
    """The way in which a kernel goes through a layer; it changes speed and, by the order of sums, last bits.

    Args:
        block: pixels at a time, a power of two. warps: in a program. stages: of the loads before a product.
        taps: in one product, a power of two; with their channels 16 columns or more. rows: pixels at a time
            where there is no product; 0: as many as block. registers: of a thread at most; 0: as many as it
            takes.
    """

    block: int
    warps: int
    stages: int
    taps: int = 1
    rows: int = 0
    registers: int = 0

    def options(self) -> dict[str, int]:
        """Return the options of a launch."""
        return {"num_warps": self.warps} | ({"maxnreg": self.registers} if self.registers else {})


@dataclass(frozen=True)
class Layer:
    """A convolution with its norm.

    Args:
        side: of the input. inputs: channels, 4 or a power of two from 16. outputs: a power of two from 16.
        kernel: 3 or 1. stride: 1 or 2. active: whether SiLU follows. residual: whether a tensor is added
            before it. weights, norms: offsets.
    """

    side: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    active: bool
    residual: bool
    weights: int
    norms: int

    @property
    def out(self) -> int:
        """Side of the output."""
        return self.side // self.stride

    @property
    def pixels(self) -> int:
        """Pixels of the output."""
        return self.out**2

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.kernel**2 * self.inputs * self.outputs

    def constants(self) -> dict[str, Any]:
        """Return the constants that kernels are compiled for."""
        return {
            "SIDE": self.side,
            "CI": self.inputs,
            "CO": self.outputs,
            "KERNEL": self.kernel,
            "STRIDE": self.stride,
        }


def forward(
    layer: Layer, x: Tensor, weights: Tensor, norms: Tensor, residual: Tensor | None, tuning: Tuning
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y = conv(x), z = [silu](norm(y) [+ residual]), norm's factors [networks, examples, channels].

    Args:
        x: [networks, examples, side, side, inputs]. weights: [networks, …]. norms: float32 [networks, …].
    """
    networks, examples = x.shape[:2]
    shape = (networks, examples, layer.out, layer.out, layer.outputs)
    y, z = (torch.empty(shape, dtype=x.dtype, device=x.device) for _ in range(2))
    scales = torch.empty((networks, examples, layer.outputs), device=x.device)
    _forward[(examples, networks)](
        x,
        weights,
        norms,
        z if residual is None else residual,
        y,
        z,
        scales,
        weights.stride(0),
        layer.weights,
        norms.stride(0),
        layer.norms,
        **layer.constants(),
        ACTIVE=layer.active,
        RESIDUAL=residual is not None,
        BLOCK=min(tuning.block, layer.pixels),
        ROWS=min(tuning.rows or tuning.block, layer.pixels),
        STAGES=tuning.stages,
        TAPS=tuning.taps,
        **tuning.options(),
    )
    return y, z, scales


def backward(
    layer: Layer,
    dz: Tensor,
    weights: Tensor,
    norms: Tensor,
    residual: Tensor | None,
    y: Tensor,
    scales: Tensor,
    added: Tensor | None,
    dnorms: Tensor,
    needs_input: bool,
    tuning: Tuning,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return dy, the residual's gradient (where there is one) and dx, plus ``added`` (where it is needed).

    Args:
        dnorms: float32 [networks, examples, …]; the layer's part is written, of each example by itself.
        added: a gradient of x from elsewhere, [networks, examples, side, side, inputs].
    """
    networks, examples = dz.shape[:2]
    dy = torch.empty_like(dz)
    dresidual = None if residual is None else torch.empty_like(dz)
    shape = (networks, examples, layer.side, layer.side, layer.inputs)
    dx = torch.empty(shape, dtype=dz.dtype, device=dz.device) if needs_input else None
    _backward[(examples, networks)](
        dz,
        weights,
        norms,
        y if residual is None else residual,
        y,
        scales,
        dz if added is None else added,
        dy,
        dy if dresidual is None else dresidual,
        dy if dx is None else dx,
        dnorms,
        weights.stride(0),
        layer.weights,
        norms.stride(0),
        layer.norms,
        **layer.constants(),
        ACTIVE=layer.active,
        RESIDUAL=residual is not None,
        ADDED=added is not None,
        INPUT=needs_input,
        BLOCK=min(tuning.block, layer.side**2),
        ROWS=min(tuning.rows or tuning.block, layer.pixels),
        STAGES=tuning.stages,
        TAPS=tuning.taps,
        **tuning.options(),
    )
    return dy, dresidual, dx


def forward_blocks(
    layer: Layer, blocks: int, x: Tensor, weights: Tensor, norms: Tensor, tuning: Tuning
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, z, scales, [2 · blocks, …] each, of successive residual blocks without shortcut layers.

    Args:
        layer: the first of their layers; the others follow it, with their weights and norms.
    """
    networks, examples = x.shape[:2]
    y, z = (torch.empty((2 * blocks, *x.shape), dtype=x.dtype, device=x.device) for _ in range(2))
    scales = torch.empty((2 * blocks, networks, examples, layer.outputs), device=x.device)
    _forward_blocks[(examples, networks)](
        x,
        weights,
        norms,
        y,
        z,
        scales,
        weights.stride(0),
        layer.weights,
        norms.stride(0),
        layer.norms,
        SIDE=layer.side,
        CO=layer.outputs,
        BLOCKS=blocks,
        BLOCK=min(tuning.block, layer.pixels),
        ROWS=min(tuning.rows or tuning.block, layer.pixels),
        STAGES=tuning.stages,
        TAPS=tuning.taps,
        **tuning.options(),
    )
    return y, z, scales


def backward_blocks(
    layer: Layer,
    blocks: int,
    dz: Tensor,
    weights: Tensor,
    norms: Tensor,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    scales: Tensor,
    dnorms: Tensor,
    tuning: Tuning,
) -> Tensor:
    """Turn dz into the gradient of x, in place, and return dy of each layer, [2 · blocks, …].

    Args:
        layer, blocks: as in :func:`forward_blocks`, whose y, z and scales are given with its x.
        dnorms: float32 [networks, examples, …]; the layers' parts are written.
    """
    networks, examples = dz.shape[:2]
    dy = torch.empty((2 * blocks, *dz.shape), dtype=dz.dtype, device=dz.device)
    _backward_blocks[(examples, networks)](
        dz,
        weights,
        norms,
        y,
        z,
        scales,
        dy,
        torch.empty_like(dz),
        dnorms,
        x,
        weights.stride(0),
        layer.weights,
        norms.stride(0),
        layer.norms,
        SIDE=layer.side,
        CO=layer.outputs,
        BLOCKS=blocks,
        BLOCK=min(tuning.block, layer.pixels),
        ROWS=min(tuning.rows or tuning.block, layer.pixels),
        STAGES=tuning.stages,
        TAPS=tuning.taps,
        **tuning.options(),
    )
    return dy


def weights_gradient(
    layer: Layer, x: Tensor, dy: Tensor, partial: Tensor, offset: int, tuning: Tuning
) -> None:
    """Write the gradient of a layer's weights, summed over each chunk of the examples.

    Args:
        partial: float32 [chunks, networks, …], the layer's from ``offset`` on.
    """
    networks, examples = x.shape[:2]
    chunks = len(partial)
    _weights_gradient[(triton.cdiv(layer.kernel**2, tuning.taps), chunks, networks)](
        x,
        dy,
        partial,
        examples,
        examples // chunks,
        partial.stride(1),
        offset,
        **layer.constants(),
        BLOCK=min(tuning.block, layer.pixels),
        STAGES=tuning.stages,
        TAPS=tuning.taps,
        **tuning.options(),
    )


def crops(images: Tensor, index: Tensor, crop: Tensor, side: int) -> Tensor:
    """Crop images as ``lpe.training.resident.crops`` does, to the same numbers; bfloat16, four channels."""
    padded = images.shape[1]
    out = torch.empty((*index.shape, side, side, 4), dtype=images.dtype, device=images.device)
    pixels = side * side
    block = min(1024, pixels)
    words = torch.int64 if images.element_size() == 2 else torch.complex128
    if words is not torch.int64 or images.shape[3] != 4:
        raise InputError(f"images must be bfloat16 of 4 channels, not {images.dtype} of {images.shape[3]}")
    _crops[(index.numel(), pixels // block)](
        images.view(words), index, crop, out.view(words), SIDE=side, PADDED=padded, BLOCK=block, num_warps=4
    )
    return out
