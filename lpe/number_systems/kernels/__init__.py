"""Backends: the same few operations in each; ``reference`` is the definition that every other must match.

    encode      codes of a weight, of one member or several
    planes      the Bernoulli bits of those codes, eight in a byte
    round_into  the values of those codes, without holding codes
    decode      values of codes

    reference   plain torch, on any device
    cpu         numba, on the CPU
    cuda        Triton, on a GPU

:func:`of` chooses by device. ``LPE_KERNELS=reference`` in the environment, or :func:`use` in a program, takes
another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems.grids import Grid
from lpe.number_systems.kernels.arguments import Draw, Scales, Stored

BACKENDS = ("reference", "cpu", "cuda")
VARIABLE = "LPE_KERNELS"

_used: ContextVar[str | None] = ContextVar("lpe_kernels", default=None)


class Backend(Protocol):
    """The operations that every backend has; see ``reference`` for the arguments."""

    def encode(
        self,
        weight: Stored,
        scales: Scales,
        grid: Grid,
        draw: Draw,
        members: int = 1,
        starts: Tensor | None = None,
        length: int | None = None,
        out: Tensor | None = None,
    ) -> Tensor: ...

    def planes(self, weight: Stored, scales: Scales, grid: Grid, draw: Draw, members: int = 1) -> Tensor: ...

    def round_into(
        self,
        out: Tensor,
        weight: Stored,
        scales: Scales,
        grid: Grid,
        draw: Draw,
        starts: Tensor | None = None,
    ) -> None: ...

    def decode(
        self, codes: Tensor, scales: Scales, grid: Grid, dtype: torch.dtype, start: int = 0
    ) -> Tensor: ...


def of(device: torch.device) -> Backend:
    """Return the backend for tensors on a device.

    Raises:
        InputError: ``LPE_KERNELS`` names none, or one that the device does not have.
    """
    name = _used.get() or os.environ.get(VARIABLE) or _by_device(device)
    if name not in BACKENDS:
        raise InputError(f"{VARIABLE} is {name!r}; the kernels are {', '.join(BACKENDS)}")
    if name != "reference" and name != device.type and not _interpreted(name):
        raise InputError(f"the {name} kernels do not run on {device}; leave {VARIABLE} out or set reference")
    backend: Backend = import_module(f"lpe.number_systems.kernels.{name}")
    return backend


@contextmanager
def use(name: str) -> Iterator[None]:
    """Take this backend within the block, whatever the device.

    Raises:
        InputError: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise InputError(f"there are no kernels {name!r}; there are {', '.join(BACKENDS)}")
    token = _used.set(name)
    try:
        yield
    finally:
        _used.reset(token)


def _by_device(device: torch.device) -> str:
    return device.type if device.type in BACKENDS else "reference"


def _interpreted(name: str) -> bool:
    """Tell whether the GPU's kernels run on the CPU, one program at a time, in Triton's interpreter."""
    return name == "cuda" and os.environ.get("TRITON_INTERPRET") == "1"
