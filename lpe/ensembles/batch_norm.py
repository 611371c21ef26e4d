"""Batch-norm statistics of weights that nobody trained: averaged or sampled ones need new running means.

The statistics are those of the data under the weights: the cumulative average over one pass, as in
Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization", §3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpe.errors import InputError
from lpe.modules import apply, device_of, to_device, with_tensors
from lpe.number_systems.streams import canonical_name


def batch_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """The batch-norm modules that keep running statistics, by canonical name."""
    return [
        (canonical_name(name), module)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def fresh_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the batch-norm buffers under their canonical names, for a member that is to own its own."""
    return {
        f"{name}.{buffer}" if name else buffer: tensor.clone()
        for name, module in batch_norms(model)
        for buffer, tensor in module.named_buffers(recurse=False)
    }


@torch.no_grad()
def refresh(model: nn.Module, batches: Iterable[Any]) -> None:
    """Re-estimate the running statistics in place, over one pass.

    Args:
        model: its batch-norm buffers are overwritten; training flags are as before afterwards.
        batches: iterable of (inputs, targets) of training data; read only if there are batch norms.

    Raises:
        InputError: the model has batch norms and the batches are empty.
    """
    norms = [module for _, module in batch_norms(model)]
    if not norms:
        return
    flags = [(module, module.training) for module in model.modules()]
    momenta = [module.momentum for module in norms]
    device = device_of(model)
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative average
            norm.train()
        for inputs, _ in batches:
            apply(model, to_device(inputs, device))
            seen += 1
    finally:
        for module, training in flags:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not seen:
        raise InputError("batch-norm statistics need training batches, and there were none")


def check_batches(model: nn.Module, batches: Iterable[Any] | None, method: str) -> None:
    """InputError where a model has batch norms and there is nothing to re-estimate their statistics on."""
    if batch_norms(model) and batches is None:
        raise InputError(
            f"{type(model).__name__} has batch norms; {method}'s members need batches= of training data "
            "to re-estimate their statistics"
        )


def with_weights(model: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Any] | None) -> nn.Module:
    """A copy with other weights and batch-norm statistics of its own, re-estimated under them."""
    net = with_tensors(model, {**weights, **fresh_statistics(model)})
    if batches is not None:
        refresh(net, batches)
    return net
