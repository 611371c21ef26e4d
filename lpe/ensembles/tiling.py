"""A batch once for each member: how several members run as one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.modules import tensors_in, tree_map


def tile(inputs: Any, members: int) -> Any:
    """Repeat a batch once for each member, member by member: [examples, …] → [members·examples, …].

    Args:
        inputs: a tensor, or a tuple, list or dict of them, each with the examples first. What is no tensor,
            or has no dimension, stays as it is.

    Raises:
        InputError: a PackedSequence, whose examples lie mixed.
    """

    def tiled(values: Any) -> Tensor:
        if not isinstance(values, Tensor):
            raise InputError(
                f"a {type(values).__name__} has no dimension of examples; take the members one by one"
            )
        return torch.cat([values] * members) if values.dim() else values

    return tree_map(tiled, inputs)


def examples_of(inputs: Any) -> int | None:
    """Count a batch's examples: the length of its first tensor; None where there is none."""
    return next((len(values) for values in tensors_in(inputs) if values.dim()), None)
