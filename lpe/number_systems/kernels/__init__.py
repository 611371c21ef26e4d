"""Backends: the same few operations in each; ``reference`` is the definition that every other must match.

    encode      codes of a weight, of one member or several
    planes      the Bernoulli bits of those codes, eight in a byte
    round_into  the values of those codes, without holding codes
    decode      values of codes
    absmax      the largest |w| of each scale group
    plan        several weights, such as all of a network, whose members are then rounded by one call

    reference   plain torch, on any device
    cpu         numba, on the CPU
    cuda        Triton, on a GPU

:func:`of` chooses by device. ``LPE_KERNELS=reference`` in the environment, or :func:`use` in a program, takes
another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems.grids import Grid, ScaleAxis
from lpe.number_systems.kernels.arguments import Draw, Rounded, Scales, Stored
from lpe.number_systems.layouts import Layout

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

    def absmax(self, weight: Tensor, layout: Layout, axis: ScaleAxis) -> Tensor: ...

    def plan(self, tensors: Sequence[Rounded]) -> Plan: ...


class Plan(Protocol):
    """Weights of one device that are rounded together, made once for all members.

    It holds on to the weights' memory and reads it anew for each member; it is not to be copied or pickled.
    """

    def round_into(self, outs: Sequence[Tensor], draw: Draw, members: int = 1) -> None:
        """Write the values of one member or several, as ``round_into`` does weight by weight.

        Args:
            outs: of each weight, in the plan's order: contiguous, of its dtype, [members, its elements] in
                any shape.
            draw: its ``member`` is the first; its name is not looked at, for each weight has its own.
        """
        ...


def of(device: torch.device) -> Backend:
    """Return the backend for tensors on a device; see :func:`name_of`."""
    backend: Backend = import_module(f"lpe.number_systems.kernels.{name_of(device)}")
    return backend


def name_of(device: torch.device) -> str:
    """Return the name of the backend for tensors on a device, one of BACKENDS.

    Raises:
        InputError: ``LPE_KERNELS`` names none, or one that the device does not have.
    """
    name = _used.get() or os.environ.get(VARIABLE) or _by_device(device)
    if name not in BACKENDS:
        raise InputError(f"{VARIABLE} is {name!r}; the kernels are {', '.join(BACKENDS)}")
    if name != "reference" and name != device.type and not _interpreted(name):
        raise InputError(f"the {name} kernels do not run on {device}; leave {VARIABLE} out or set reference")
    return name


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
