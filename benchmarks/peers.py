"""Stochastic rounding elsewhere: the peers' code, which stays as it is.

None of them promises the same bits on every machine, or a member by its number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def plain_bsr(weight: Tensor, largest_code: int) -> Tensor:
    """Draw BSR of a weight once in plain torch, a scale for each output channel: floor, rand_like, compare.

    Args:
        weight: float32 [out, …].
    """
    step = weight.flatten(1).abs().amax(dim=1) / largest_code
    step = step.view(-1, *[1] * (weight.dim() - 1))
    scaled = weight / step
    low = scaled.floor()
    return (low + (torch.rand_like(scaled) < scaled - low)).clamp_(-largest_code, largest_code) * step


def bernoulli_bsr(weight: Tensor, largest_code: int) -> Tensor:
    """Draw as :func:`plain_bsr`, by ``torch.bernoulli``."""
    step = weight.flatten(1).abs().amax(dim=1) / largest_code
    step = step.view(-1, *[1] * (weight.dim() - 1))
    scaled = weight / step
    low = scaled.floor()
    return (low + torch.bernoulli(scaled - low)).clamp_(-largest_code, largest_code) * step


def qpytorch(bits: int) -> Callable[[Tensor], Tensor] | str:
    """Return QPyTorch's stochastic ``fixed_point_quantize`` (PyPI: qtorch), or why it is not there.

    It knows no scales: it is given weights that are scaled already, and they stay so. It builds its extension
    when first imported, by a C++ compiler and ninja.
    """
    binaries = str(Path(sys.executable).parent)
    os.environ["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    try:
        from qtorch.quant import fixed_point_quantize
    except Exception as error:  # the extension's build fails in ways of its own
        return str(error).partition("\n")[0] or type(error).__name__

    def quantise(scaled: Tensor) -> Tensor:
        rounded: Tensor = fixed_point_quantize(scaled, wl=bits, fl=0, rounding="stochastic")
        return rounded

    return quantise


def gfloat_stochastic() -> Callable[[Tensor], np.ndarray] | str:
    """Return gfloat's stochastic rounding to OCP's INT-8 (it has no INT-5), or why it is not there.

    It is given weights that are scaled already, and random bits from numpy: 8 a weight.
    """
    try:
        from gfloat import RoundMode, round_ndarray
        from gfloat.formats import format_info_ocp_int8
    except ImportError as error:
        return str(error)
    generator = np.random.default_rng(0)

    def quantise(scaled: Tensor) -> np.ndarray:
        values = scaled.numpy()
        bits = generator.integers(256, size=values.shape, dtype=np.uint8).astype(np.int64)
        return round_ndarray(
            format_info_ocp_int8, values, RoundMode.StochasticFast, sat=True, srbits=bits, srnumbits=8
        )

    return quantise
