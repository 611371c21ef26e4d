"""A batch once for each member: how several members run as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tile(inputs: Any, members: int) -> Any:
    """A batch once for each member, member by member: [examples, …] → [members·examples, …].

    Args:
        inputs: a tensor, or a tuple, list or dict of them, each with the examples first. What is no tensor,
            or has no dimension, stays as it is.
    """
    if isinstance(inputs, Tensor):
        return torch.cat([inputs] * members) if inputs.dim() else inputs
    if isinstance(inputs, Mapping):
        return {key: tile(value, members) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(tile(value, members) for value in inputs)
    return inputs


def examples_of(inputs: Any) -> int | None:
    """How many examples a batch has: the length of its first tensor; None where there is none."""
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.dim() else None
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple | list):
        return next((found for value in inputs if (found := examples_of(value)) is not None), None)
    return None
