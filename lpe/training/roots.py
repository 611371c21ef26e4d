"""Square roots that are the same on every make of CPU.

torch takes ``sqrt`` on a CPU from MKL, whose kernel for every make refines the CPU's approximate root
(rsqrtps), another one at AMD than at Intel. ``rsqrt`` and ``reciprocal`` are torch's own, of exactly rounded
operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def root(values: Tensor) -> Tensor:
    """Return the square roots, of the same shape and dtype, to within two units in the last place."""
    return values.rsqrt().reciprocal()


@contextmanager
def as_everywhere() -> Iterator[None]:
    """Let ``sqrt`` of a tensor be ``root`` meanwhile: for an optimiser that is another package's."""
    own = torch.Tensor.sqrt
    torch.Tensor.sqrt = root  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.sqrt = own  # type: ignore[method-assign]
