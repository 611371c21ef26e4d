"""The one training loop, for every method that trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lpe.batches import check_iterable, pairs
from lpe.checks import (
    check_finite,
    check_function,
    check_integer,
    check_model,
    check_optimizer,
    check_tensor,
    is_number,
    shown,
)
from lpe.errors import InputError
from lpe.logits import cross_entropy
from lpe.modules import apply, device_of, to_device
from lpe.number_systems.streams import check_seed, generator
from lpe.training import processes
from lpe.training.checkpoints import Course, Place
from lpe.training.schedules import Schedule, constant

Batches = Iterable[tuple[Any, Tensor]] | Callable[[int], Iterable[tuple[Any, Tensor]]]
"""Batches (inputs, targets), iterable anew each epoch; or epoch → batches, the same for the same epoch."""


class Collector(Protocol):
    """A collector, which keeps something of the weights as a run goes on: SWAG, snapshots, cyclical SGLD.

    One that counts steps has ``collect_step(model, step)`` as well, which is called after each (from 0). One
    whose training goes on where it was killed has ``state()``, what it keeps as tensors and plain data, and
    ``restore(state)``.
    """

    def check(self, epochs: int) -> None:
        """Raise InputError where a run of so many epochs does not suit it."""

    def collect(self, model: nn.Module, epoch: int | None = None) -> None:
        """Take of the model what is kept at the end of ``epoch`` (from 0; None: the next), if anything."""


@dataclass(frozen=True)
class TrainingRun:
    """A training's cost and course.

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
    learning_rate: Schedule | float,
    epochs: int,
    seed: int = 0,
    clip_norm: float | None = None,
    after_epoch: Callable[[int], None] | None = None,
    report: Callable[[Mapping[str, float]], None] | None = None,
    collector: Collector | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
) -> TrainingRun:
    """Train a model by the cross-entropy of its logits, in place; it is left in eval mode.

    An optimiser that samples weights (IVON, by its ``sampled_params``) takes its gradient at the sample.

    Under :func:`lpe.training.checkpoints.kept`, as whatever the store makes, one that was killed goes on from
    its checkpoint, to the same numbers; the rows of the curve until there are reported again. Not with
    ``after_epoch``, which nobody could ask for what it did.

    Under :func:`lpe.training.processes.joined` several processes share each batch, to the weights of one
    process up to float rounding.

    Args:
        model: the module.
        batches: (inputs, targets), a list or a DataLoader; or a function, epoch → batches. Inputs are as
            ``lpe.evaluate`` takes them, targets class indices [examples]; both are moved to the model's
            device.
        optimizer: over the model's parameters; its learning rate is set before each step, times
            the group's own ``lr_factor`` where it has one.
        learning_rate: step → learning rate (``lpe.training.schedules``), or a number for all steps.
        epochs: passes over the data, 0 or more.
        seed: of whatever the model and the optimiser draw; the global generators are as before afterwards.
        clip_norm: largest norm of the gradient; None: no clipping. Not for optimisers that sample weights.
        after_epoch: called with the epoch after each (to collect iterates or snapshots).
        report: called with each row of the curve.
        collector: is asked before training whether the epochs suit it, and collects after each.
        loss: (inputs, targets on the model's device) → scalar; None: the cross-entropy of the model's logits.

    Raises:
        InputError: an optimiser of none of the model's parameters, no batches, targets that are not as many
            as the logits, a clip_norm for an optimiser that samples weights, epochs that do not suit
            the collector, or a loss that is NaN or infinite (with the step, and what to do).
    """
    epochs = check_integer("epochs", epochs, 0)
    seed = check_seed(seed)
    check_model(model)
    check_optimizer(optimizer)
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(each) in own for group in optimizer.param_groups for each in group["params"]):
        raise InputError(
            f"the {type(optimizer).__name__} has none of the model's parameters, so it would train another "
            f"network or none; make it of this {type(model).__name__}'s parameters()"
        )
    if not callable(batches):
        check_iterable(batches)
    for name, function, of in (
        ("after_epoch", after_epoch, "of the epoch"),
        ("report", report, "of a row of the curve"),
        ("loss", loss, "(inputs, targets) → scalar"),
    ):
        check_function(name, function, of)
    if clip_norm is not None:
        clip_norm = check_finite("clip_norm", clip_norm)
    if collector is not None and not (hasattr(collector, "check") and hasattr(collector, "collect")):
        raise InputError(
            f"collector must have check and collect, as SWAGCollector does, not {shown(collector)}"
        )
    sampled = getattr(optimizer, "sampled_params", None)
    if sampled and clip_norm is not None:
        raise InputError(
            f"clip_norm={clip_norm} would not reach {type(optimizer).__name__}, which collects its gradients "
            "itself; leave it out and use the optimiser's own clipping (IVON's clip_radius)"
        )
    if collector is not None:
        collector.check(epochs)
    collect_step = getattr(collector, "collect_step", None)
    if not callable(learning_rate):
        learning_rate = constant(check_finite("learning_rate", learning_rate))
    if loss is None:
        loss = partial(_cross_entropy, model)
    loss = processes.shared(model, optimizer, loss)
    device = device_of(model)
    gpus = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    # Gradients are needed whatever the caller's mode.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed: it would also seed the generators of GPUs that are not forked here, and of
        # the seed's 64 bits the CPU's uses 32.
        torch.default_generator.set_state(generator("training", seed, "", 0).get_state())
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        place = Place()
        course = None
        if after_epoch is None:
            streams = [torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)]
            if isinstance(own_stream := getattr(batches, "generator", None), torch.Generator):
                streams.append(own_stream)  # a DataLoader's
            settings = {"epochs": epochs, "seed": seed, "clip_norm": clip_norm}
            course = Course(model, optimizer, collector, streams, place, settings)
        if report is not None:
            for row in place.curve:
                report(row)
        for epoch in range(place.epoch, epochs):
            model.train()
            if course is not None:
                course.begin_epoch()
            skipped = place.batches
            for index, inputs, targets in pairs(batches(epoch) if callable(batches) else batches):
                if index < skipped:
                    if index + 1 == skipped and course is not None:
                        course.go_on()
                    continue
                rate = learning_rate(place.step)
                if not is_number(rate):
                    raise InputError(f"learning_rate must give a number at every step, not {shown(rate)}")
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_factor", 1.0)
                with sampled(train=True) if sampled else nullcontext():
                    optimizer.zero_grad()
                    targets = check_tensor(f"targets of batch {index}", targets, floating=False)
                    of_batch = loss(to_device(inputs, device), targets.to(device))
                    if not isinstance(of_batch, Tensor) or of_batch.numel() != 1:
                        raise InputError(f"loss must give a tensor of one value, not {shown(of_batch)}")
                    of_batch.backward()
                value = float(of_batch.detach())
                if not math.isfinite(value):
                    raise InputError(
                        f"the training loss is {value} at step {place.step} (learning rate {rate:g}); "
                        "lower the learning rate or clip the gradient"
                    )
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                optimizer.step()
                if collect_step is not None:
                    collect_step(model, place.step)
                place.total, place.rate = place.total + value, rate
                place.batches, place.step = index + 1, place.step + 1
                if course is not None:
                    course.write()
            if not place.batches:
                raise InputError(f"epoch {epoch} has no batches; there is nothing to train on")
            mean = place.total / place.batches
            place.curve.append({"epoch": epoch, "loss": mean, "learning_rate": place.rate})
            place.epoch, place.batches, place.total = epoch + 1, 0, 0.0
            if report is not None:
                report(place.curve[-1])
            model.eval()
            if collector is not None:
                collector.collect(model, epoch)
            if after_epoch is not None:
                after_epoch(epoch)
        if course is not None:
            course.write(at_end=True)
    return TrainingRun(backward_passes=place.step, curve=place.curve)


def _cross_entropy(model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
    logits = apply(model, inputs)
    if len(logits) != len(targets):
        raise InputError(
            f"the model returned logits of shape {list(logits.shape)} for {len(targets)} targets; give as "
            "many targets, or the loss that goes with the model (of a BatchEnsemble loss=ensemble.loss)"
        )
    return cross_entropy(logits, targets)
