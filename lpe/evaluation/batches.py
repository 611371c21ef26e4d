"""Batches as an evaluation reads them: pairs of inputs and class indices, checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lpe.batches import pairs
from lpe.errors import InputError
from lpe.modules import tensors_in

Batch = tuple[int, Any, Tensor]
"""A batch's place in the stream, its inputs and its targets, int64 [examples]."""


class Hashed(ABC):
    """Inputs that tell their examples apart by hashes of their own."""

    @abstractmethod
    def hashes(self) -> Tensor:
        """Return a hash of each example, int64 [examples] on the CPU."""


def stream(batches: Any) -> Iterator[Batch]:
    """Yield the batches, checked, without those that are empty.

    Raises:
        InputError: no iterable, or a batch that is no pair; targets that are not class indices [examples];
            another number of inputs.
    """
    for index, inputs, targets in pairs(batches):
        labels = _labels(targets, index)
        if isinstance(inputs, Tensor) and inputs.shape[:1] != labels.shape:
            raise InputError(
                f"batch {index} has inputs of shape {list(inputs.shape)} and {len(labels)} targets"
            )
        if len(labels):
            yield index, inputs, labels


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


def is_integers(tensor: Tensor) -> bool:
    """Tell whether a tensor is of integers."""
    return tensor.dtype in _INTEGERS


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


def bytes_of(inputs: Any) -> int:
    """Return the bytes of all tensors of a batch's inputs."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(inputs))
