"""The one training loop, for every method that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.modules import apply, device_of, to_device
from lpe.number_systems.streams import check_seed, generator
from lpe.training.schedules import Schedule

Batches = Callable[[int], Iterable[tuple[Any, Tensor]]]
"""epoch → batches (inputs, targets); the same for the same epoch."""


@dataclass(frozen=True)
class TrainingRun:
    """What a training cost and how it went.

    Args:
        backward_passes: gradient evaluations, one minibatch each.
        curve: a row an epoch: epoch, loss (mean of the batches' losses, nats), learning_rate.
    """

    backward_passes: int
    curve: list[dict[str, float]]


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    learning_rate: Schedule,
    epochs: int,
    seed: int,
    clip_norm: float | None = None,
    after_epoch: Callable[[int], None] | None = None,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainingRun:
    """Train a model by the cross-entropy of its logits, in place; it is left in eval mode.

    An optimiser that samples weights (IVON, by its ``sampled_params``) takes its gradient at the sample.

    Args:
        model: the module.
        batches: epoch → batches, on any device.
        optimizer: over the model's parameters; its learning rate is set before each step, times
            the group's own ``lr_factor`` where it has one.
        learning_rate: step → learning rate.
        epochs: passes over the data.
        seed: of whatever the model and the optimiser draw; the global generators are as before afterwards.
        clip_norm: largest norm of the gradient; None: no clipping. Not for optimisers that sample weights.
        after_epoch: called with the epoch after each (to collect iterates or snapshots).
        report: called with each row of the curve.

    Raises:
        InputError: no batches, a clip_norm for an optimiser that samples weights, or a loss that is NaN or
            infinite (with the step, and what to do).
    """
    seed = check_seed(seed)
    sampled = getattr(optimizer, "sampled_params", None)
    if sampled and clip_norm is not None:
        raise InputError(
            f"clip_norm={clip_norm} would not reach {type(optimizer).__name__}, which collects its gradients "
            "itself; leave it out and use the optimiser's own clipping (IVON's clip_radius)"
        )
    curve: list[dict[str, float]] = []
    step = 0
    device = device_of(model)
    gpus = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed: it would also seed the generators of GPUs that are not forked here, and of
        # the seed's 64 bits the CPU's uses 32.
        torch.default_generator.set_state(generator("training", seed, "", 0).get_state())
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        for epoch in range(epochs):
            model.train()
            total, count, rate = 0.0, 0, 0.0
            for inputs, targets in batches(epoch):
                rate = learning_rate(step)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_factor", 1.0)
                with sampled(train=True) if sampled else nullcontext():
                    optimizer.zero_grad()
                    logits = apply(model, to_device(inputs, device))
                    loss = nn.functional.cross_entropy(logits, targets.to(logits.device))
                    loss.backward()
                value = float(loss.detach())
                if not torch.isfinite(loss.detach()):
                    raise InputError(
                        f"the training loss is {value} at step {step} (learning rate {rate:g}); "
                        "lower the learning rate or clip the gradient"
                    )
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                optimizer.step()
                total, count, step = total + value, count + 1, step + 1
            if not count:
                raise InputError(f"epoch {epoch} has no batches; there is nothing to train on")
            curve.append({"epoch": epoch, "loss": total / count, "learning_rate": rate})
            if report is not None:
                report(curve[-1])
            model.eval()
            if after_epoch is not None:
                after_epoch(epoch)
    return TrainingRun(backward_passes=step, curve=curve)
