"""Keeps what a user sets for a thread in torch away from the making of members."""

from __future__ import annotations

from contextlib import AbstractContextManager, ContextDecorator
from types import TracebackType

import torch

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


class apart(ContextDecorator):
    """A context without gradients, inference mode and autocast, whatever is on outside; also a decorator.

    What is made inside is the same tensors in any surroundings, and ordinary ones: those of inference mode
    could neither be trained nor written to later. Default dtypes and devices are not among what it undoes:
    they are the whole process's, so each tensor here is made with a dtype and a device of its own.
    """

    def __init__(self) -> None:
        self._undone: list[AbstractContextManager[object]] = []

    def _recreate_cm(self) -> apart:
        return apart()  # as a decorator it may be on several times at once

    def __enter__(self) -> None:
        # A class, and not a generator, since it is entered for every member and batch.
        if torch.is_inference_mode_enabled():
            self._undone.append(torch.inference_mode(False))
        self._undone.append(torch.no_grad())
        self._undone += [
            torch.autocast(kind, enabled=False) for kind in _AUTOCAST if torch.is_autocast_enabled(kind)
        ]
        for each in self._undone:
            each.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undone:
            self._undone.pop().__exit__(kind, error, trace)
