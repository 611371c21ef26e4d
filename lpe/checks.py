"""What every setting that is a number must be: numpy's scalars are numbers, truth values and text are not."""

from __future__ import annotations

import math
from numbers import Integral, Real

from lpe.errors import InputError


def is_integer(value: object) -> bool:
    """Whether a value is an integer, Python's or numpy's; True, 3.0 and "3" are not."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def is_number(value: object) -> bool:
    """Whether a value is a real number, Python's or numpy's; True and "3" are not, NaN and infinities are."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_integer(name: str, value: object, least: int, most: int | None = None) -> int:
    """The setting ``name`` as Python's int; InputError unless it is an integer, least … most (None: any)."""
    if is_integer(value):
        number = int(value)  # type: ignore[call-overload]
        if least <= number and (most is None or number <= most):
            return int(number)
    wanted = {0: "an integer ≥ 0", 1: "a positive integer"}.get(least, f"an integer ≥ {least}")
    if most is not None:
        wanted = f"an integer from {least} to {most}"
    raise InputError(f"{name} must be {wanted}, not {shown(value)}")


def check_finite(name: str, value: object, least: float = 0.0, above: bool = False) -> float:
    """The setting ``name`` as Python's float; InputError unless it is a finite number ≥ least.

    Args:
        above: whether it must be more than ``least``.
    """
    if is_number(value):
        number = float(value)  # type: ignore[arg-type]
        if math.isfinite(number) and (number > least if above else number >= least):
            return number
    bound = f"above {least:g}" if above else f"≥ {least:g}"
    raise InputError(f"{name} must be a finite number {bound}, not {shown(value)}")


def shown(value: object) -> str:
    """A value as one short line of an error message."""
    text = repr(value).split("\n", 1)[0]
    return text if len(text) <= 80 else f"{text[:77]}…"
