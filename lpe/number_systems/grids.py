"""Which numbers there are: the grid, and the group of weights that shares one scale of it.

A number system is a grid of codes and a *scale axis*: the weights that share one step size Δ. A weight is
seen as a matrix [out, everything else]. The word "group" means two things in the literature, so the axes
here say which dimension they cut:

    PerTensor()             one scale for the tensor
    PerChannel(channels=k)  one scale for k output channels, that is k rows (k = 1: the usual per-channel)
    PerBlock(inputs=k)      one scale for k contiguous inputs of one row; a row's last block may be shorter
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lpe.errors import InputError


def _check_count(value: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} must be a positive integer, not {value!r}")


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """How many scales a [rows, columns] weight has, along each dimension."""
        return (1, 1)

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """How many rows and columns one scale covers."""
        return (max(rows, 1), max(columns, 1))

    def __str__(self) -> str:
        return "per tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for ``channels`` consecutive output channels (rows); the last group may be smaller."""

    channels: int = 1

    def __post_init__(self) -> None:
        _check_count(self.channels, "PerChannel(channels=…)")

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """How many scales a [rows, columns] weight has, along each dimension."""
        return (-(-rows // self.channels), 1)

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """How many rows and columns one scale covers."""
        return (self.channels, max(columns, 1))

    def __str__(self) -> str:
        return "per channel" if self.channels == 1 else f"per {self.channels} output channels"


@dataclass(frozen=True)
class PerBlock:
    """One scale for ``inputs`` contiguous inputs of one row; a row's last block may be shorter."""

    inputs: int = 128

    def __post_init__(self) -> None:
        _check_count(self.inputs, "PerBlock(inputs=…)")

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """How many scales a [rows, columns] weight has, along each dimension."""
        return (rows, -(-columns // self.inputs))

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """How many rows and columns one scale covers."""
        return (1, self.inputs)

    def __str__(self) -> str:
        return f"per block of {self.inputs} inputs"


ScaleAxis = PerTensor | PerChannel | PerBlock


@dataclass(frozen=True)
class Int:
    """Symmetric uniform integers INT-b: codes −q … q with q = 2^(b−1) − 1, step Δ = max|w| / q.

    There is no zero point, and the code −2^(b−1) is never used.

    Args:
        bits: 2 … 8.
        scale: the weights that share a step.
    """

    bits: int
    scale: ScaleAxis = field(default_factory=PerChannel)

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise InputError(f"Int(bits) takes 2 to 8 bits, not {self.bits!r}")
        if not isinstance(self.scale, PerTensor | PerChannel | PerBlock):
            raise InputError(f"scale must be PerTensor(), PerChannel() or PerBlock(), not {self.scale!r}")

    @property
    def largest_code(self) -> int:
        """q, the largest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def name(self) -> str:
        """The short name, as the records have it; the default scale axis is not spelled out."""
        return f"int{self.bits}" if self.scale == PerChannel() else f"int{self.bits} {self.scale}"


@dataclass(frozen=True)
class FullPrecision:
    """No rounding: weights as they are, at their own precision."""

    @property
    def name(self) -> str:
        """The short name, as the records have it."""
        return "fp32"


NumberSystem = Int | FullPrecision


def names() -> list[str]:
    """The names that :func:`number_system` takes."""
    return [f"int{bits}" for bits in range(2, 9)] + ["fp32"]


def number_system(name: str, scale: ScaleAxis | None = None) -> NumberSystem:
    """The number system of that name; case and a dash do not matter ("INT-5" is "int5").

    Raises:
        InputError: the name is unknown.
    """
    plain = str(name).lower().replace("-", "")
    if plain == "fp32":
        return FullPrecision()
    if match := re.fullmatch(r"int([0-9]+)", plain):
        if not 2 <= int(match[1]) <= 8:
            raise InputError(f"number system {name!r} has {int(match[1])} bits; integers take 2 to 8")
        return Int(int(match[1]), scale or PerChannel())
    raise InputError(f"unknown number system {name!r}; there are {', '.join(names())}")
