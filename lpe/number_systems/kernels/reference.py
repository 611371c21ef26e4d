"""The definition of the rounding rules, in plain torch; every other backend must match it bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lpe.number_systems.streams import random_lanes

COUPLING = 40503
"""What a further coupled member adds to the random lane, modulo 2¹⁶: ⌊2¹⁶/φ⌋, which is odd."""

CHUNK = 1 << 15
"""Elements rounded at a time, a multiple of 8: bounds the temporaries at a few MB for any tensor's size."""


def round_codes(
    weight: Tensor,
    step: Tensor,
    inverse_step: Tensor,
    largest_code: int,
    rounding: str,
    lanes: Tensor | None,
) -> Tensor:
    """Integer codes of float32 weights; all tensors of one shape.

    v = w·(1/Δ); nearest: v rounded, ties to even; otherwise ⌊v⌋ + [r < T], T = 65536·(v − ⌊v⌋) rounded to
    an integer, ties to even. Codes are clamped to −q … q. Where 1/Δ is not finite the code is 0.
    """
    usable = torch.isfinite(inverse_step)
    v = torch.where(usable, weight * inverse_step, 0.0)
    if rounding == "nearest":
        codes = v.round()
    else:
        assert lanes is not None
        low = v.floor()
        # p = v − ⌊v⌋ is exact in float32, but for −½ < v < 0 where it is off by at most 2⁻²⁵; its product
        # with a power of two is exact.
        threshold = ((v - low) * 65536.0).round()
        codes = low + (lanes < threshold)
    return codes.clamp_(-largest_code, largest_code).to(torch.int8)


def encode(
    weight: Tensor,
    step: Tensor,
    inverse_step: Tensor,
    group_of: Callable[[int, int], Tensor],
    largest_code: int,
    rounding: str,
    seed: int,
    name: str,
    member: int,
) -> Tensor:
    """Codes of a flat weight.

    Args:
        weight: [elements], any floating dtype, in the parameter's row-major order.
        step, inverse_step: float32 [groups]; Δ and 1/Δ.
        group_of: (start, stop) → int64 [stop − start], the scale groups of those elements.
        largest_code: q.
        rounding: "nearest", "bernoulli" or "coupled".
        seed, name, member: the key of the random bits.

    Returns:
        int8 [elements].
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    arguments = (weight, step, inverse_step, group_of, largest_code, rounding, seed, name, member)
    for start, stop, _, part in _chunks_of_codes(*arguments):
        codes[start:stop] = part
    return codes


def round_into(
    out: Tensor,
    weight: Tensor,
    step: Tensor,
    inverse_step: Tensor,
    group_of: Callable[[int, int], Tensor],
    largest_code: int,
    rounding: str,
    seed: int,
    name: str,
    member: int,
) -> None:
    """Write the values code·Δ of a flat weight into ``out`` [elements], as ``decode(encode(…))`` gives them.

    The other arguments are :func:`encode`'s. No codes of the whole weight are held.
    """
    arguments = (weight, step, inverse_step, group_of, largest_code, rounding, seed, name, member)
    for start, stop, group, part in _chunks_of_codes(*arguments):
        out[start:stop] = part.float() * step[group]


def _chunks_of_codes(
    weight: Tensor,
    step: Tensor,
    inverse_step: Tensor,
    group_of: Callable[[int, int], Tensor],
    largest_code: int,
    rounding: str,
    seed: int,
    name: str,
    member: int,
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """start, stop, scale groups and codes of CHUNK elements at a time."""
    for start in range(0, weight.numel(), CHUNK):
        stop = min(start + CHUNK, weight.numel())
        group = group_of(start, stop)
        lanes = None
        if rounding == "bernoulli":
            lanes = random_lanes(seed, name, member, start, stop, weight.device)
        elif rounding == "coupled":
            lanes = (random_lanes(seed, name, 0, start, stop, weight.device) + COUPLING * member) & 0xFFFF
        part = weight[start:stop].float()
        codes = round_codes(part, step[group], inverse_step[group], largest_code, rounding, lanes)
        yield start, stop, group, codes


def decode(codes: Tensor, step: Tensor, group_of: Callable[[int, int], Tensor], dtype: torch.dtype) -> Tensor:
    """Values code·Δ, computed in float32 and cast: [elements]."""
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for start in range(0, codes.numel(), CHUNK):
        stop = min(start + CHUNK, codes.numel())
        group = group_of(start, stop)
        values[start:stop] = (codes[start:stop].float() * step[group]).to(dtype)
    return values
