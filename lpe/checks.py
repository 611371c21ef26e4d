"""Checks of what a user sets. Numpy's scalars are numbers; truth values and text are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from lpe.errors import InputError


def is_integer(value: object) -> bool:
    """Tell whether a value is an integer, Python's or numpy's; True, 3.0 and "3" are not."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def is_number(value: object) -> bool:
    """Tell whether a value is a real number, also numpy's: NaN and infinities are, True and "3" are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_integer(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return the setting ``name`` as an int; InputError unless it is an integer, least … most (None: any)."""
    if is_integer(value):
        number = int(value)  # type: ignore[call-overload]
        if least <= number and (most is None or number <= most):
            return int(number)
    wanted = {0: "an integer ≥ 0", 1: "a positive integer"}.get(least, f"an integer ≥ {least}")
    if most is not None:
        wanted = f"an integer from {least} to {most}"
    raise InputError(f"{name} must be {wanted}, not {shown(value)}")


def check_finite(name: str, value: object, least: float = 0.0, above: bool = False) -> float:
    """Return the setting ``name`` as Python's float; InputError unless it is a finite number ≥ least.

    Args:
        above: whether it must be more than ``least``.
    """
    if is_number(value):
        number = float(value)  # type: ignore[arg-type]
        if math.isfinite(number) and (number > least if above else number >= least):
            return number
    bound = f"above {least:g}" if above else f"≥ {least:g}"
    raise InputError(f"{name} must be a finite number {bound}, not {shown(value)}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return the setting ``name``, a word; InputError unless it is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}")
    return value


def check_text(name: str, value: object) -> str:
    """Return the setting ``name``; InputError unless it is text."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, not {shown(value)}")
    return value


def check_list(name: str, value: object, of: str) -> list[Any]:
    """Return the values of the setting ``name``; InputError unless they come in a list or the like.

    Args:
        of: what they must be, for the message.
    """
    if isinstance(value, str | bytes | Mapping | nn.Module) or not isinstance(value, Iterable):
        raise InputError(f"{name} must be a list of {of}, not {shown(value)}")
    if isinstance(value, Tensor) and not value.dim():
        raise InputError(f"{name} must be a list of {of}, not a tensor without dimensions")
    return list(value)


def check_patterns(patterns: object) -> tuple[str, ...]:
    """Name patterns, one or several or None, as a tuple; InputError unless they are text."""
    if patterns is None:
        return ()
    given = [patterns] if isinstance(patterns, str) else check_list("patterns", patterns, "names")
    return tuple(check_text("a name pattern", pattern) for pattern in given)


def check_model(model: object, name: str = "model") -> None:
    """Raise InputError unless a model is a torch module."""
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} must be a torch.nn.Module, not {type(model).__name__}")


def check_optimizer(optimizer: object) -> None:
    """Raise InputError unless an optimiser is one of torch's."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer must be a torch.optim.Optimizer, not {shown(optimizer)}")


def check_function(name: str, value: object, of: str) -> None:
    """Raise InputError unless the setting ``name`` is None or can be called.

    Args:
        of: what it is called with and gives, for the message.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name} must be a function, {of}, or None, not {shown(value)}")


def check_state(state: object, like: Mapping[str, object]) -> Mapping[str, Any]:
    """Return a state to go on from, a mapping with the keys of another, and values of their types.

    Raises:
        InputError: it is none.
    """
    if isinstance(state, Mapping) and state.keys() >= like.keys():
        if all(isinstance(state[key], type(value)) for key, value in like.items()):
            return state
    keys = ", ".join(like)
    raise InputError(f"state must be what state() returned, a dict of {keys}, not {shown(state)}")


def check_tensor(name: str, value: object, floating: bool = True) -> Tensor:
    """Return the tensor ``name``; InputError unless it is one, of real floating-point values where asked."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a tensor, not {shown(value)}")
    if floating and not torch.is_floating_point(value):
        raise InputError(f"{name} must be a tensor of floating-point values, not of {value.dtype}")
    return value


def check_tensors(name: str, value: object, of: str = "canonical names to tensors") -> dict[str, Tensor]:
    """Return the mapping ``name``; InputError unless it takes text to tensors."""
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()
    ):
        raise InputError(f"{name} must be a mapping of {of}, not {shown(value)}")
    return dict(value)


def check_not_negative(name: str, value: Tensor) -> None:
    """Raise InputError where a tensor (of standard deviations, say) has a negative, infinite or NaN value."""
    if value.numel():
        low, high = (float(end) for end in torch.aminmax(value.detach()))
        if not (0 <= low and math.isfinite(high)):
            raise InputError(f"{name} must be finite and ≥ 0; it has values from {low:g} to {high:g}")


def shown(value: object) -> str:
    """Return a value as one short line of an error message."""
    text = repr(value).split("\n", 1)[0]
    return text if len(text) <= 80 else f"{text[:77]}…"
