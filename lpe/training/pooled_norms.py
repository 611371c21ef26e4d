"""Batch norm by the statistics of a batch whose examples lie in several processes.

Mean and variance are those of all examples, as one process would have them: sums go through all processes,
with their gradients. torch's SyncBatchNorm does the same on GPUs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

Summed = Callable[[Tensor], Tensor]
"""A tensor of this process → the sum of those of all; the tensor itself may be written to."""


class PooledNorms(TorchFunctionMode):
    """A context in which batch norms that take a batch's statistics take those of all processes' examples.

    Args:
        summed: see ``Summed``. counts: whether this process's examples count; one that has none runs along.
    """

    def __init__(self, summed: Summed, counts: bool) -> None:
        super().__init__()
        self._summed, self._counts = summed, counts

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a call of batch norm; let the others pass."""
        given = dict(kwargs or {})
        if func is torch.nn.functional.batch_norm:
            asked = _asked(*args, **given)
            if asked["training"]:
                return _normalised(self._summed, self._counts, **asked)
        return func(*args, **given)


def _asked(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Any]:
    """Return the arguments of torch's ``batch_norm`` by their names."""
    return locals()


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each has a part of the loss, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, summed: Summed) -> Tensor:
        """Return the sum."""
        ctx.summed = summed
        return summed(values.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the sum of the gradients."""
        return ctx.summed(gradient.clone()), None


def _normalised(
    summed: Summed,
    counts: bool,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Return the normalised input [examples, channels, …]; move the running statistics, as torch does."""
    values = input if input.dtype == torch.float64 else input.float()
    over = [axis for axis in range(values.dim()) if axis != 1]
    shape = [1, -1] + [1] * (values.dim() - 2)
    channels = values.shape[1]
    own = float(values.numel() // channels if counts else 0)

    def pooled(of: Tensor) -> Tensor:
        found: Tensor = _Sum.apply(of.sum(over) if counts else 0.0 * of.sum(over), summed)
        return found

    count = float(summed(torch.tensor([own], dtype=torch.float64, device=values.device)))
    if count < 2:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {list(input.shape)}"
        )
    mean = pooled(values) / count
    centred = values - mean.view(shape)
    variance = pooled(centred.square()) / count
    made = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        made = made * weight.to(made.dtype).view(shape)
    if bias is not None:
        made = made + bias.to(made.dtype).view(shape)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    return made.to(input.dtype)
