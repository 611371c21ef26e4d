"""Checks of logits, shared by all who read them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.modules import tensors_in

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def examples_in(inputs: Any) -> int | None:
    """Return the number of examples of a batch, where its tensors agree on the length of their first axis."""
    lengths = {len(tensor) for tensor in tensors_in(inputs) if tensor.dim()}
    return lengths.pop() if len(lengths) == 1 else None


def check_shape(
    logits: Tensor, examples: int | None, where: str = "", of: str = "examples", classes: int | None = None
) -> None:
    """Raise InputError unless logits are real floating [examples, classes] of two classes or more.

    No value is read, so a GPU is not waited for.

    Args:
        examples: rows that there must be; None: any number.
        where: the beginning of the message, such as "batch 3: ". of: what the rows are counted by.
        classes: that the logits of another member or batch had; None: there were none.
    """
    rows = "" if examples is None else f" for {examples} {of}"
    shape = list(logits.shape)
    if logits.dim() != 2 or examples not in (None, len(logits)):
        raise InputError(
            f"{where}the model returned logits of shape {shape}{rows}; [examples, classes] is needed"
        )
    check_type(logits, where)
    if logits.shape[1] < 2:
        raise InputError(
            f"{where}the model returned logits of shape {shape}; two classes or more are needed (one logit z "
            "of two classes is [0, z])"
        )
    if classes not in (None, logits.shape[1]):
        raise InputError(
            f"{where}the model returned logits of {logits.shape[1]} classes, and of {classes} before; all "
            "members and batches need the same classes"
        )


def check_type(logits: Tensor, where: str = "") -> None:
    """Raise InputError unless logits are real numbers in floating point, of 16, 32 or 64 bits, and dense."""
    if logits.layout != torch.strided or logits.is_nested:
        raise InputError(
            f"{where}the model returned logits that are sparse or nested; a dense tensor is needed"
        )
    if logits.dtype not in DTYPES:
        raise InputError(
            f"{where}the model returned logits of type {logits.dtype}; real numbers in floating point are "
            "needed"
        )


def check_values(logits: Tensor, where: str = "") -> None:
    """Raise InputError where a row has a logit that is NaN or +∞, or none above −∞. A GPU is waited for once.

    −∞ rules a class out. A row of −∞ throughout rules out all of them, and +∞ makes its whole row NaN.

    Args:
        logits: […, classes], or log-probabilities.
        where: as of :func:`check_shape`.
    """
    greatest = logits.amax(dim=-1)  # NaN of a row with NaN
    if not math.isfinite(greatest.sum(dtype=torch.float64).item()):  # one small operation, and seldom more
        right = greatest.isfinite()
        if bool(right.all()):
            return  # finite rows whose sum is not
        bad = (~right).nonzero()
        raise InputError(
            f"{where}the model returned logits that are NaN, +infinity, or −infinity for every class: "
            f"{len(bad)} of {right.numel()} rows, the first of them {int(bad[0, -1])}"
        )


def check_labels(targets: Tensor, classes: int, where: str = "") -> None:
    """Raise InputError unless labels, int64 [examples], are 0 … classes − 1."""
    if len(targets):
        low, high = (int(label) for label in targets.aminmax())
        if low < 0 or high >= classes:
            raise InputError(
                f"{where}label {high if high >= classes else low}; the model has classes 0 to {classes - 1}; "
                "leave out examples that have none of them"
            )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [examples, classes] at targets [examples]; it has a gradient.

    Raises:
        InputError: targets that torch cannot score, of another type or shape or beyond the classes.
    """
    try:
        return torch.nn.functional.cross_entropy(logits, targets.to(logits.device))
    except (IndexError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"targets of {targets.dtype} and shape {list(targets.shape)} do not fit logits of {logits.dtype} "
            f"and shape {list(logits.shape)}: {str(error).partition(chr(10))[0]}"
        ) from None
