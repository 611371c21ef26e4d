"""Rounds weights to numbers of a system: to the nearest, or at random without bias.

RTN       the nearest grid value, ties to even.
BSR       Bernoulli stochastic rounding: with lo ≤ w ≤ hi the neighbours of w, hi with probability
          (w − lo)/(hi − lo), else lo. The mean is w, the variance Δ²·p(1 − p), the error below Δ.
coupled   member i uses the random number r_i = (r_0 + 40503·i) mod 2¹⁶ (a rank-1 lattice, good for every
          prefix of the members) instead of a fresh one. Each member alone is BSR.

The neighbours are those of v = w/s among the levels at scale 1, and Δ is their distance times s, which is
one step of integers everywhere. A tie goes to the level an even number of places from level 0 (from the
level nearest to 0 where there is none): to even codes of integers, to even mantissas of floats.

The random number has 16 bits and the probability is rounded to 16 bits, so BSR's bias is at most 2⁻¹⁷ of
the step, to which float32's own error in w·(1/Δ) adds below 2⁻¹⁶ at INT-8 and less at fewer bits. A grid
value (Δ a normal number) stays put under every member at INT-2 to INT-6; by that error it leaves with a
probability of at most 2⁻¹⁶ at INT-7 and 2⁻¹⁵ at INT-8. Of floats and NF4 every grid value stays put, for no
level is more than 16 times the distance to a neighbour (s a normal number); so it is of codebooks of which
this holds.

Weights beyond the last level become it, which is a bias: of a codebook whose ends are not −a and a those
beyond its smaller end, of ``Int(bits, clip="mse")`` those beyond the last code's on either side.

Source: Nam & Lee 2024, "Ex Uno Pluria" (BSR); the coupling is this suite's own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lpe.allocator import new_memory
from lpe.checks import check_choice, shown
from lpe.errors import InputError
from lpe.number_systems import kernels
from lpe.number_systems.clipping import least_squares_steps
from lpe.number_systems.codes import check_codes, check_dense
from lpe.number_systems.grids import (
    CLIPS,
    FullPrecision,
    Int,
    LowPrecision,
    NumberSystem,
    PerTensor,
    ScaleAxis,
    grid_of,
)
from lpe.number_systems.kernels.arguments import Coded, Draw, Rounded, Scales
from lpe.number_systems.layouts import Layout
from lpe.number_systems.streams import check_member, check_seed
from lpe.surroundings import apart

ROUNDINGS = ("nearest", "bernoulli", "coupled")


def check_rounding(rounding: str) -> str:
    """Return the rounding's name; InputError unless it is one of ROUNDINGS."""
    return check_choice("rounding", rounding, ROUNDINGS)


def scales_of(weight: Tensor, system: LowPrecision, layout: Layout, name: str | None = None) -> Tensor:
    """Return a weight's scales under a number system: those of absmax, or the steps of least squared error.

    See :func:`absmax_scales` for what is returned and raised; steps whose last code is beyond the weight's
    dtype are refused, too.

    Args:
        name: of a weight that :func:`check_weight` has not seen yet, to be refused if it is not finite. None:
            it is finite.
    """
    if isinstance(system, Int) and system.clip == "mse":
        if name is not None and weight.numel():
            _check_finite(_magnitudes(weight, Layout((1, weight.numel())), PerTensor()), weight, name)
        scales = spread_steps(least_squares_steps(weight, system.q, layout, system.scale), system)
    else:
        scales = absmax_scales(weight, system, layout, name)
    if isinstance(system, Int) and (system.clip, system.spread) != (CLIPS[0], 1):
        _check_last_code(scales, system, weight.dtype)
    return scales


def _check_last_code(scales: Tensor, system: Int, dtype: torch.dtype) -> None:
    """Raise InputError where the last code, which may lie beyond max|w|, is no finite value of a dtype."""
    last = float(scales.max()) * system.largest_code if scales.numel() else 0.0
    if last > min(torch.finfo(dtype).max, torch.finfo(torch.float32).max):
        raise InputError(
            f"the last code of {system.name} is {last:.6g} under these weights, beyond {dtype}: a weight may "
            "become infinite; cast the model to a wider dtype, or give a finer system"
        )


def absmax_scales(weight: Tensor, system: LowPrecision, layout: Layout, name: str | None = None) -> Tensor:
    """Return s = max|w| / max|level| of each scale group; of integers that is Δ = spread·max|w| / q.

    Args:
        name: see :func:`scales_of`; the weights are read once for the scales and for this.

    Returns:
        float32, of shape ``layout.scale_shape(system.scale)``.

    Raises:
        InputError: s is too large for float32, which takes a codebook of levels below 1 and weights above
            10²⁰.
    """
    shape = layout.scale_shape(system.scale)
    if not weight.numel():
        return torch.zeros(shape, dtype=torch.float32, device=weight.device)
    largest = _magnitudes(weight, layout, system.scale)
    if name is not None:
        _check_finite(largest, weight, name)
    scales = scales_of_largest(largest.view(shape), system)
    largest_level = grid_of(system).largest
    if largest_level < 1 and not torch.isfinite(scales).all():
        raise InputError(
            f"max|w| / {largest_level:g} is beyond float32; multiply the codebook's levels by one factor so "
            "that the largest is 1 or more"
        )
    return scales


def _magnitudes(weight: Tensor, layout: Layout, axis: ScaleAxis) -> Tensor:
    """Return max|w| of each scale group of a weight that is not empty: float32 [groups]."""
    return kernels.of(weight.device).absmax(weight.detach().reshape(-1), layout, axis)


def scales_of_largest(largest: Tensor, system: LowPrecision) -> Tensor:
    """Return the scales of groups whose max|w| these are, float32 of any shape; see :func:`absmax_scales`."""
    divisor = system.q if isinstance(system, Int) else grid_of(system).largest
    # A tensor, not a number: CUDA divides by a number as a product with its reciprocal, which rounds twice.
    scales = largest / torch.tensor(divisor, dtype=torch.float32, device=largest.device)
    return spread_steps(scales, system) if isinstance(system, Int) else scales


def spread_steps(steps: Tensor, system: Int) -> Tensor:
    """Return steps times the spread, both float32."""
    if system.spread == 1:
        return steps
    return steps * torch.tensor(system.spread, dtype=torch.float32, device=steps.device)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes of weights, and of the values that codes are decoded to."""


def check_weight(weight: Tensor, name: str) -> None:
    """Raise InputError, naming the tensor, unless a weight is dense, finite and of one of DTYPES."""
    _check_dense(weight, name)
    if weight.numel():
        _check_finite(_magnitudes(weight, Layout((1, weight.numel())), PerTensor()), weight, name)


def _check_dense(weight: Tensor, name: str) -> None:
    if not isinstance(name, str):
        raise InputError(f"name must be the parameter's name as text, not {shown(name)}")
    what = _named(name)
    if not isinstance(weight, Tensor):
        raise InputError(f"{what} must be a torch tensor, not {shown(weight)}")
    if weight.dtype not in DTYPES:
        raise InputError(f"{what} is {weight.dtype}; rounding takes floating-point weights of 16 to 64 bits")
    if weight.layout != torch.strided or weight.is_meta:
        kind = "on the meta device, without values" if weight.is_meta else f"of layout {weight.layout}"
        raise InputError(f"{what} is {kind}; rounding takes dense weights, so load or convert it first")


def _check_finite(largest: Tensor, weight: Tensor, name: str) -> None:
    """Raise InputError unless max|w| is finite: in float32, where a large float64 value is infinite."""
    if not torch.isfinite(largest).all():
        bad = int((~torch.isfinite(weight.float())).sum())
        raise InputError(
            f"{_named(name)} has {bad} values that are NaN or infinite in float32; mend the checkpoint first"
        )


def _named(name: str) -> str:
    return f"weight {name!r}" if name else "the weight"


@apart()
def encode(
    weight: Tensor,
    system: LowPrecision,
    rounding: str = "bernoulli",
    seed: int = 0,
    name: str = "",
    member: int = 0,
    output_axis: int = 0,
    channel_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Round a weight to codes of a number system.

    Args:
        weight: any shape, float32, bfloat16, float16 or float64 (rounded to float32 first).
        system: the number system and its scale axis.
        rounding: "nearest", "bernoulli" or "coupled".
        seed, name, member: the key of the random bits; ``name`` is the parameter's canonical name.
        output_axis, channel_groups: see :class:`Layout`.

    Returns:
        codes of the weight's shape: int8, −q … q, of integers; of others uint8, the index in
        ``system.levels``. Scales s (of integers Δ), float32, [groups along the outputs, groups along the
        inputs]. Where 1/s is not finite (s below about 3·10⁻³⁹, and groups of zeros) every code is that of
        level 0, or of the level nearest to it.

    Raises:
        InputError: a NaN or infinite weight; an unknown rounding; a seed or member out of range; no number
            system that rounds.
    """
    scales, layout, draw = _prepared(
        weight, system, rounding, seed, name, member, output_axis, channel_groups
    )
    return encode_with_scales(weight, scales, system, layout, draw), scales


def _prepared(
    weight: Tensor,
    system: LowPrecision,
    rounding: str,
    seed: int,
    name: str,
    member: int,
    output_axis: int,
    channel_groups: int,
) -> tuple[Tensor, Layout, Draw]:
    """Check the arguments of :func:`encode`; return the scales, the layout and the key."""
    check_rounding(rounding)
    seed, member = check_seed(seed), check_member(member)
    check_rounds(system)
    _check_dense(weight, name)
    layout = Layout(tuple(weight.shape), output_axis, channel_groups)
    return scales_of(weight, system, layout, name), layout, Draw(rounding, seed, name, member)


def check_rounds(system: object) -> None:
    """Raise InputError unless a number system is one that rounds."""
    if not isinstance(system, LowPrecision):
        raise InputError(f"{shown(system)} has no codes; give a number system that rounds, such as Int(5)")


def encode_with_scales(
    weight: Tensor | Coded, scales: Tensor, system: LowPrecision, layout: Layout, draw: Draw
) -> Tensor:
    """Return the codes under scales that are at hand, as :func:`encode` returns them; nothing is checked."""
    of_elements = Scales.of(scales, layout, system.scale)
    codes = kernels.of(weight.device).encode(_flat(weight), of_elements, grid_of(system), draw)
    return codes.view(layout.shape)


def round_with_scales(
    out: Tensor, weight: Tensor | Coded, scales: Tensor, system: LowPrecision, layout: Layout, draw: Draw
) -> None:
    """Write the rounded values into ``out``, of the weight's shape and contiguous; as above, not checked."""
    members_into(out.view(1, 1, -1), weight, scales, system, layout, draw)


@torch.no_grad()
def members_into(
    out: Tensor,
    weight: Tensor | Coded,
    scales: Tensor,
    system: LowPrecision,
    layout: Layout,
    draw: Draw,
    starts: Tensor | None = None,
) -> None:
    """Write the rounded values of several members at once, of a weight or of parts of it; nothing is checked.

    Each stored weight is read once for all members.

    Args:
        out: [members, segments, length], any floating dtype, contiguous; member 0 of it is ``draw.member``.
        weight: of the layout's shape, or stored codes. scales: of the members, as :func:`absmax_scales`
            gives them.
        starts: the first element of each segment in row-major order, int64 [segments]; None: one segment, the
            whole weight.
    """
    of_elements = Scales.of(scales, layout, system.scale)
    kernels.of(weight.device).round_into(out, _flat(weight), of_elements, grid_of(system), draw, starts)


def plan_together(
    tensors: Iterable[tuple[Tensor | Coded, Tensor, LowPrecision, Layout, str, torch.dtype]],
) -> kernels.Plan:
    """Return a plan by which weights of one device are rounded by one call; nothing is checked.

    Args:
        tensors: of each the weight or stored codes, the members' scales, their system, the layout, the
            parameter's name and the dtype of the values.
    """
    planned = [
        Rounded(_flat(weight), Scales.of(scales, layout, system.scale), grid_of(system), name, dtype)
        for weight, scales, system, layout, name, dtype in tensors
    ]
    return kernels.of(planned[0].weight.device).plan(planned)


def _flat(weight: Tensor | Coded) -> Tensor | Coded:
    return weight if isinstance(weight, Coded) else weight.detach().reshape(-1)


@apart()
def decode(
    codes: Tensor,
    scales: Tensor,
    system: LowPrecision,
    dtype: torch.dtype = torch.float32,
    output_axis: int = 0,
    channel_groups: int = 1,
) -> Tensor:
    """Return the values level·s (float32, then cast to ``dtype``), of the codes' shape.

    Args:
        codes, scales: as :func:`encode` returns them, and on one device. Codes of another integer dtype are
            refused, also where they are the same numbers.
        dtype: one of DTYPES. output_axis, channel_groups: see :class:`Layout`.

    Raises:
        InputError: codes or scales of another dtype, shape or device than encode's; a code that is no
            level's; a scale that is negative, NaN or infinite; no number system that rounds.
    """
    check_rounds(system)
    check_codes(codes, system)
    check_dense("scales", scales, system, torch.float32)
    if scales.device != codes.device:
        raise InputError(
            f"the codes are on {codes.device} and the scales on {scales.device}; move one of them"
        )
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {shown(dtype)}")
    layout = Layout(tuple(codes.shape), output_axis, channel_groups)
    if tuple(scales.shape) != layout.scale_shape(system.scale):
        raise InputError(
            f"scales of shape {list(scales.shape)} do not fit codes of shape {list(codes.shape)} under "
            f"{system.name}: {list(layout.scale_shape(system.scale))} expected"
        )
    if scales.numel() and not (torch.isfinite(scales).all() and (scales >= 0).all()):
        bad = scales[~(torch.isfinite(scales) & (scales >= 0))]
        raise InputError(f"a scale is {float(bad[0]):g}; scales are finite and not negative")
    return decoded(codes, scales, system, layout, dtype)


@torch.no_grad()
def decoded(
    codes: Tensor, scales: Tensor, system: LowPrecision, layout: Layout, dtype: torch.dtype
) -> Tensor:
    """Return the values of what :func:`encode` gave, of the codes' shape; nothing is checked."""
    of_elements = Scales.of(scales, layout, system.scale)
    flat = codes.reshape(-1)
    return kernels.of(codes.device).decode(flat, of_elements, grid_of(system), dtype).view(codes.shape)


@apart()
def round_weights(
    weight: Tensor,
    system: NumberSystem,
    rounding: str = "bernoulli",
    seed: int = 0,
    name: str = "",
    member: int = 0,
    output_axis: int = 0,
    channel_groups: int = 1,
) -> Tensor:
    """Round a weight to a number system: a new tensor of the same shape and dtype.

    See :func:`encode` for the arguments and errors. Under ``FullPrecision()`` a copy.
    """
    if isinstance(system, FullPrecision):
        check_rounding(rounding)
        check_weight(weight, name)
        return weight.detach().clone()
    scales, layout, draw = _prepared(
        weight, system, rounding, seed, name, member, output_axis, channel_groups
    )
    out = new_memory(weight.shape, weight.dtype, weight.device)
    round_with_scales(out, weight, scales, system, layout, draw)
    return out
