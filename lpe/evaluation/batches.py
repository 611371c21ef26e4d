"""Batches as an evaluation reads them: pairs of inputs and class indices, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lpe.errors import InputError

Batch = tuple[int, Any, Tensor]
"""A batch's place in the stream, its inputs and its targets, int64 [examples]."""


def iterator_of(batches: Any, of: str = "pairs (inputs, targets)") -> Iterator[Any]:
    """An iterator over batches; InputError for what is no iterable of them."""
    if isinstance(batches, Tensor | Mapping | str | bytes) or not isinstance(batches, Iterable):
        raise InputError(f"batches must be an iterable of {of}, such as a list, not {type(batches).__name__}")
    return iter(batches)


def stream(batches: Any) -> Iterator[Batch]:
    """The batches, checked, without those that are empty.

    Raises:
        InputError: no iterable, or what :func:`pair` raises.
    """
    for index, batch in enumerate(iterator_of(batches)):
        inputs, targets = pair(batch, index)
        if len(targets):
            yield index, inputs, targets


def pair(batch: Any, index: int) -> tuple[Any, Tensor]:
    """Inputs and targets, int64 [examples], of a batch.

    Raises:
        InputError: no pair; targets that are not class indices [examples]; another number of inputs.
    """
    if isinstance(batch, Mapping):
        raise InputError(
            f"batch {index} is a {type(batch).__name__} of {', '.join(map(repr, batch)) or 'nothing'}; give "
            "pairs (inputs, targets), such as ({the inputs by name}, batch['labels'])"
        )
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise InputError(
            f"batch {index} must be a pair (inputs, targets), not {type(batch).__name__}{length}"
        )
    inputs, targets = batch
    targets = _labels(targets, index)
    if isinstance(inputs, Tensor) and inputs.shape[:1] != targets.shape:
        raise InputError(f"batch {index} has inputs of shape {list(inputs.shape)} and {len(targets)} targets")
    return inputs, targets


_INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


def _labels(targets: Any, index: int) -> Tensor:
    try:
        labels = targets if isinstance(targets, Tensor) else torch.as_tensor(targets, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"targets of batch {index} must be class indices [examples], not {type(targets).__name__}: "
            + str(error).partition("\n")[0]
        ) from None
    if labels.dim() != 1 or (labels.dtype not in _INTEGERS and labels.numel()):
        one_hot = labels.dim() == 2 and labels.shape[1] > 1
        raise InputError(
            f"targets of batch {index} must be class indices [examples], "
            f"not {labels.dtype} of shape {list(labels.shape)}"
            + ("; of one-hot targets they are targets.argmax(dim=1)" if one_hot else "")
        )
    return labels.long()
