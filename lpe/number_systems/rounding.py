"""How a weight becomes a number of the system: to the nearest, or at random without bias.

RTN       the nearest grid value, ties to even.
BSR       Bernoulli stochastic rounding: with lo ≤ w ≤ hi the neighbours of w, hi with probability
          (w − lo)/(hi − lo), else lo. The mean is w, the variance Δ²·p(1 − p), the error below Δ.
coupled   member i uses the random number r_i = (r_0 + 40503·i) mod 2¹⁶ (a rank-1 lattice, good for every
          prefix of the members) instead of a fresh one. Each member alone is BSR.

The random number has 16 bits and the probability is rounded to 16 bits, so BSR's bias is at most 2⁻¹⁷ of
the step, to which float32's own error in w·(1/Δ) adds below 2⁻¹⁶ at INT-8 and less at fewer bits. A grid
value (Δ a normal number) stays put under every member at INT-2 to INT-6; by that error it leaves with a
probability of at most 2⁻¹⁶ at INT-7 and 2⁻¹⁵ at INT-8.

Source: Nam & Lee 2024, "Ex Uno Pluria" (BSR); the coupling is this suite's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems.grids import FullPrecision, Int, NumberSystem, PerTensor
from lpe.number_systems.kernels import reference
from lpe.number_systems.streams import check_member, check_seed

ROUNDINGS = ("nearest", "bernoulli", "coupled")


def check_rounding(rounding: str) -> str:
    """The rounding's name; InputError unless it is one of ROUNDINGS."""
    if rounding not in ROUNDINGS:
        raise InputError(f"unknown rounding {rounding!r}; there are {', '.join(ROUNDINGS)}")
    return rounding


@dataclass(frozen=True)
class Layout:
    """How a weight is seen as a matrix [out, everything else], and which scale each element uses.

    Args:
        shape: the weight's shape.
        output_axis: the dimension that is "output": 0, or 1 (GPT-2's Conv1D, ConvTranspose, open_clip's
            projections).
        channel_groups: for a grouped ConvTranspose [in, out / groups, …], its number of groups.
    """

    shape: tuple[int, ...]
    output_axis: int = 0
    channel_groups: int = 1

    def __post_init__(self) -> None:
        if self.output_axis not in (0, 1) or (self.output_axis == 1 and len(self.shape) < 2):
            raise InputError(f"output_axis {self.output_axis!r} does not fit the shape {list(self.shape)}")
        if not isinstance(self.channel_groups, int) or self.channel_groups < 1:
            raise InputError(f"channel_groups must be a positive integer, not {self.channel_groups!r}")
        if self.output_axis == 1 and self.shape[0] % self.channel_groups:
            raise InputError(f"{self.channel_groups} channel groups do not divide {self.shape[0]} inputs")

    @property
    def rows(self) -> int:
        """Output channels."""
        if not self.shape:
            return 1
        return self.shape[0] if self.output_axis == 0 else self.shape[1] * self.channel_groups

    @property
    def columns(self) -> int:
        """Weights of one output channel."""
        return self.numel // self.rows if self.rows else 0

    @property
    def numel(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [out, everything else]; a view where memory allows."""
        if self.output_axis == 0:
            return weight.reshape(self.rows, self.columns)
        grouped = weight.unflatten(0, (self.channel_groups, self.shape[0] // self.channel_groups))
        return grouped.transpose(1, 2).reshape(self.rows, self.columns)

    def position(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column of the elements start … stop − 1 (row-major, as stored): int64 each."""
        element = torch.arange(start, stop, dtype=torch.int64, device=device)
        if self.output_axis == 0:
            return element // self.columns, element % self.columns
        inputs = self.shape[0] // self.channel_groups
        outputs = self.shape[1]
        kernel = self.numel // (self.shape[0] * outputs)
        first = element // (outputs * kernel)
        row = first // inputs * outputs + element // kernel % outputs
        return row, first % inputs * kernel + element % kernel

    def scale_shape(self, system: Int) -> tuple[int, int]:
        """Shape of the scales: [groups along the outputs, groups along the inputs]."""
        return system.scale.groups(self.rows, self.columns)

    def scale_group(self, system: Int, start: int, stop: int, device: torch.device) -> Tensor:
        """Index into the flattened scales of the elements start … stop − 1: int64 [stop − start]."""
        if isinstance(system.scale, PerTensor):
            return torch.zeros(1, dtype=torch.int64, device=device).expand(stop - start)
        row_extent, column_extent = system.scale.extent(self.rows, self.columns)
        row, column = self.position(start, stop, device)
        return row // row_extent * self.scale_shape(system)[1] + column // column_extent


def steps(weight: Tensor, system: Int, layout: Layout) -> Tensor:
    """Δ = max|w| / q of each scale group.

    Returns:
        float32, of shape ``layout.scale_shape(system)``.
    """
    matrix = layout.matrix(weight)
    row_extent, column_extent = system.scale.extent(layout.rows, layout.columns)
    shape = layout.scale_shape(system)
    if not weight.numel():
        return torch.zeros(shape, dtype=torch.float32, device=weight.device)
    # From the least and the greatest value: |w| would be a copy of the weight.
    largest = torch.stack(
        [
            torch.maximum(part.amax(dim=1), -part.amin(dim=1)).abs()
            for part in matrix.split(column_extent, dim=1)
        ],
        dim=1,
    ).float()
    # Rows are padded with zeros, which raise no maximum.
    padded = torch.nn.functional.pad(largest, (0, 0, 0, shape[0] * row_extent - layout.rows))
    # A tensor, not a number: CUDA divides by a number as a product with its reciprocal, which rounds twice.
    q = torch.tensor(float(system.largest_code), dtype=torch.float32, device=weight.device)
    return padded.unflatten(0, (shape[0], row_extent)).amax(dim=1) / q


def check_weight(weight: Tensor, name: str) -> None:
    """InputError unless the weight is of a floating dtype and finite; the tensor is named."""
    what = f"weight {name!r}" if name else "the weight"
    if not torch.is_floating_point(weight):
        raise InputError(f"{what} is {weight.dtype}; rounding takes floating-point weights")
    if not weight.numel():
        return
    # The two extremes tell, and cost no copy; NaN is either's. Rounding works in float32, where a large
    # float64 value is infinite.
    if not torch.isfinite(torch.stack(torch.aminmax(weight.detach())).float()).all():
        bad = int((~torch.isfinite(weight.float())).sum())
        raise InputError(
            f"{what} has {bad} values that are NaN or infinite in float32; mend the checkpoint first"
        )


@torch.no_grad()
def encode(
    weight: Tensor,
    system: Int,
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
        codes, int8, of the weight's shape; scales (the steps Δ), float32, [groups along the outputs, groups
        along the inputs].

    Raises:
        InputError: a NaN or infinite weight; an unknown rounding; a seed or member out of range.
    """
    check_rounding(rounding)
    check_seed(seed)
    check_member(member)
    if not isinstance(system, Int):
        raise InputError(f"{system!r} has no codes; encode takes an integer number system")
    check_weight(weight, name)
    layout = Layout(tuple(weight.shape), output_axis, channel_groups)
    scales = steps(weight, system, layout)
    return encode_with_scales(weight, scales, system, layout, rounding, seed, name, member), scales


def encode_with_scales(
    weight: Tensor,
    scales: Tensor,
    system: Int,
    layout: Layout,
    rounding: str,
    seed: int,
    name: str,
    member: int,
) -> Tensor:
    """Codes under scales that are at hand; the arguments are :func:`encode`'s and are not checked again."""
    group_of = partial(layout.scale_group, system, device=weight.device)
    step = scales.flatten()
    keyed = (system.largest_code, rounding, seed, name, member)
    codes = reference.encode(weight.detach().reshape(-1), step, 1.0 / step, group_of, *keyed)
    return codes.view(weight.shape)


def round_with_scales(
    out: Tensor,
    weight: Tensor,
    scales: Tensor,
    system: Int,
    layout: Layout,
    rounding: str,
    seed: int,
    name: str,
    member: int,
) -> None:
    """Write the rounded values into ``out``, of the weight's shape and contiguous; as above, not checked."""
    group_of = partial(layout.scale_group, system, device=weight.device)
    step = scales.flatten()
    keyed = (system.largest_code, rounding, seed, name, member)
    flat = weight.detach().reshape(-1)
    reference.round_into(out.view(-1), flat, step, 1.0 / step, group_of, *keyed)


@torch.no_grad()
def decode(
    codes: Tensor,
    scales: Tensor,
    system: Int,
    dtype: torch.dtype = torch.float32,
    output_axis: int = 0,
    channel_groups: int = 1,
) -> Tensor:
    """The values code·Δ (float32, then cast to ``dtype``), of the codes' shape."""
    layout = Layout(tuple(codes.shape), output_axis, channel_groups)
    if tuple(scales.shape) != layout.scale_shape(system):
        raise InputError(
            f"scales of shape {list(scales.shape)} do not fit codes of shape {list(codes.shape)} under "
            f"{system.name}: {list(layout.scale_shape(system))} expected"
        )
    values = reference.decode(
        codes.reshape(-1),
        scales.flatten(),
        lambda start, stop: layout.scale_group(system, start, stop, codes.device),
        dtype,
    )
    return values.view(codes.shape)


@torch.no_grad()
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
    """A weight rounded to a number system: a new tensor of the same shape and dtype.

    See :func:`encode` for the arguments and errors. Under ``FullPrecision()`` a copy.
    """
    if isinstance(system, FullPrecision):
        check_rounding(rounding)
        check_weight(weight, name)
        return weight.detach().clone()
    codes, scales = encode(weight, system, rounding, seed, name, member, output_axis, channel_groups)
    return decode(codes, scales, system, weight.dtype, output_axis, channel_groups)
