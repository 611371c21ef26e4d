"""Batches as whoever reads them takes them: an iterable of pairs (inputs, targets)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lpe.checks import shown
from lpe.errors import InputError


def check_iterable(batches: object) -> None:
    """Raise InputError for what is no iterable of batches."""
    if isinstance(batches, Tensor | Mapping | str | bytes | nn.Module) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches must be an iterable of pairs (inputs, targets), such as a list, not {shown(batches)}"
        )


def pairs(batches: Any, instead: str = "") -> Iterator[tuple[int, Any, Any]]:
    """Yield each batch's place, inputs and targets, as they are given.

    Args:
        instead: the end of the message for a batch that is no pair.

    Raises:
        InputError: no iterable; a batch that is no pair.
    """
    check_iterable(batches)
    for index, batch in enumerate(batches):
        if isinstance(batch, Mapping):
            raise InputError(
                f"batch {index} is a {type(batch).__name__} of {', '.join(map(repr, batch)) or 'nothing'}; "
                "give pairs (inputs, targets), such as ({the inputs by name}, batch['labels'])"
            )
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise InputError(
                f"batch {index} must be a pair (inputs, targets), not {type(batch).__name__}{length}{instead}"
            )
        yield index, batch[0], batch[1]
