"""What torch lets a user set for a thread, and what the making of a member must see nothing of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def apart() -> Iterator[None]:
    """Without gradients, inference mode and autocast, whatever is on outside; also a decorator.

    What is made inside is the same tensors in any surroundings, and ordinary ones: those of inference mode
    could neither be trained nor written to later. Default dtypes and devices are not among what it undoes:
    they are the whole process's, so each tensor here is made with a dtype and a device of its own.
    """
    with ExitStack() as undone:
        if torch.is_inference_mode_enabled():
            undone.enter_context(torch.inference_mode(False))
        undone.enter_context(torch.no_grad())
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                undone.enter_context(torch.autocast(kind, enabled=False))
        yield
