"""How forward passes run: mixed precision, the layout of images, memory that batches go to a GPU through."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import shown
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.modules import apply, device_of, tree_map


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of forward passes. They may change numbers, so they belong into what is recorded.

    Args:
        autocast: torch's mixed precision, with bfloat16.
        channels_last: images [examples, channels, height, width] with the channels last in memory, which
            convolutions may run faster on.
        pin_memory: batches go to a GPU through pinned memory, without waiting for it; elsewhere nothing.
    """

    autocast: bool = False
    channels_last: bool = False
    pin_memory: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):
            if not isinstance(value := getattr(self, option.name), bool):
                raise InputError(f"{option.name} must be True or False, not {shown(value)}")

    def placed(self, inputs: Any, device: torch.device) -> Any:
        """Return the inputs (tensor, tuple, list or dict of them) on a device, as the passes take them."""

        def place(values: Any) -> Any:
            if self.pin_memory and device.type == "cuda" and values.device.type == "cpu":
                values = values.pin_memory().to(device, non_blocking=True)
            values = values.to(device)
            if self.channels_last and isinstance(values, Tensor) and values.dim() == 4:
                values = values.contiguous(memory_format=torch.channels_last)
            return values

        return tree_map(place, inputs)

    def check_reach(self, ensemble: Ensemble, inputs: Any) -> None:
        """Check, once an ensemble, that members compute with their own tensors, in passes like these."""
        model = getattr(ensemble, "model", None)
        device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
        with torch.autocast(device.type, dtype=torch.bfloat16) if self.autocast else nullcontext():
            ensemble.check_reach(self.placed(inputs, device))

    def logits(self, net: nn.Module, inputs: Any, device: torch.device) -> Tensor:
        """Return the logits of placed inputs; see :func:`lpe.modules.apply`."""
        if not self.autocast:
            return apply(net, inputs)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return apply(net, inputs)


PLAIN = EvaluationOptions()


def check_options(options: object) -> None:
    """Raise InputError unless these are options of an evaluation."""
    if not isinstance(options, EvaluationOptions):
        raise InputError(f"options must be lpe.EvaluationOptions(…), not {shown(options)}")
