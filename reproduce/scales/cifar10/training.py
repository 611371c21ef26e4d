"""CIFAR-10's networks, trained side by side on one device; a killed training goes on.

What it leaves is a vector of weights a training, and what its recipe keeps on the way. ``tensors_of`` makes
of it what a point's file holds:

    sgd, adamw    the network's state dict
    ivon          mean/…, std/… (float16)
    swag          mean/…, variance/…, deviations/… (float16)
    sse           0/…, 1/…, …: the snapshots, the oldest first
    csgld         0/…, 1/…, …: the samples (float16)
    be            the state dict of ``lpe.BatchEnsemble``'s module: network.L.weight, network.L.batch_r, …
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import lpe
from lpe.ensembles.swag import SWAGCollector, SWAGStatistics
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import ResNet, resnet_frn
from lpe.training.flat import (
    FlatAdamW,
    FlatIVON,
    FlatLayout,
    FlatSGD,
    Gradient,
    Rule,
    batch_ensemble_gradient,
    module_gradient,
)
from lpe.training.resident import ResidentImages, ResidentTraining
from reproduce.scales.cifar10.checkpoints import Checkpoint
from reproduce.scales.cifar10.recipes import (
    RECIPES,
    Point,
    Protocol,
    Recipe,
    learning_rate,
    leaves_a_network,
    noise,
)


@dataclass(frozen=True)
class Collected:
    """The networks and states that a training leaves.

    Args:
        weights: of the last step [n]; IVON's mean. networks: kept on the way [n] each. std: IVON's.
        swag: its statistics. loss: the mean of the last epoch, in nats.
    """

    weights: Tensor
    networks: list[Tensor]
    std: Tensor | None
    swag: SWAGStatistics | None
    loss: float


@dataclass(frozen=True)
class GroupRun:
    """The results of trainings side by side.

    Args:
        points: by (recipe, seed). images_per_second: median over epochs, of all trainings together, a
            BatchEnsemble's members counted. seconds: of the epochs. first_step: compilation and capture.
    """

    points: dict[Point, Collected]
    images_per_second: float
    seconds: float
    first_step: float


def batch_ensemble(net: ResNet, recipe: Recipe, seed: int) -> lpe.BatchEnsemble:
    """Return the BatchEnsemble that a recipe trains, fresh."""
    return lpe.BatchEnsemble(net, recipe.members, seed=seed, std=recipe.fast_std)


def layout_of(recipe: Recipe, protocol: Protocol) -> FlatLayout:
    """Return the layout of the vector that a recipe trains."""
    net = resnet_frn(protocol.shape)
    return FlatLayout.of(net if recipe.members == 1 else batch_ensemble(net, recipe, 0).module)


def start(recipe: Recipe, protocol: Protocol, seed: int) -> Tensor:
    """Return the weights at the start of a training [n]."""
    net = resnet_frn(protocol.shape, seed)
    module = net if recipe.members == 1 else batch_ensemble(net, recipe, seed).module
    return layout_of(recipe, protocol).vector(dict(module.named_parameters()))


def fast_gradient(protocol: Protocol, device: torch.device) -> tuple[Gradient, torch.dtype]:
    """Return the gradient of plain networks, and the dtype of the images that it takes.

    On a GPU that of fused kernels in bfloat16; on a CPU that of torch's own, in float32.
    """
    net = resnet_frn(protocol.shape).to(device)
    if device.type != "cuda":
        return module_gradient(net), torch.float32
    from lpe.training.frn_resnet import fused_gradient

    return fused_gradient(net, cifar.SIDE), torch.bfloat16


def rule_of(
    recipes: Sequence[Recipe],
    protocol: Protocol,
    weights: Tensor,
    layout: FlatLayout,
    generator: torch.Generator,
) -> Rule:
    """Return the rule by which trainings of these recipes step, [trainings, n] weights of one layout."""
    first, rates = recipes[0], [learning_rate(recipe, protocol) for recipe in recipes]
    decays = [recipe.weight_decay for recipe in recipes]
    if first.rule == "ivon":
        return FlatIVON(
            weights,
            protocol.updates,
            rates,
            first.ess,
            [recipe.hess_init for recipe in recipes],
            decays,
            first.beta1,
            [recipe.beta2 for recipe in recipes],
            generator,
        )
    if first.rule == "adamw":
        return FlatAdamW(weights, protocol.updates, rates, decays)
    factor = None
    decay: Any = decays
    if first.members > 1:
        fast = torch.cat(
            [
                torch.full((shape.numel(),), float(name.endswith((".batch_r", ".batch_s"))))
                for name, shape in layout.shapes.items()
            ]
        ).to(weights.device)
        ratios = torch.tensor([[recipe.fast_lr / recipe.lr] for recipe in recipes], device=weights.device)
        factor = 1 + fast * (ratios - 1)
        decay = (1 - fast) * torch.tensor(decays, device=weights.device)[:, None]
    noises = [noise(recipe, protocol) for recipe in recipes]
    drawn = any(recipe.noise for recipe in recipes)
    return FlatSGD(
        weights,
        protocol.updates,
        rates,
        [recipe.momentum for recipe in recipes],
        decay,
        noises if drawn else None,
        factor,
        generator,
    )


def train_group(
    group: Sequence[Point],
    protocol: Protocol,
    data: ResidentImages,
    gradient: Gradient,
    device: torch.device,
    recipes: Mapping[str, Recipe] = RECIPES,
    checkpoint: Checkpoint | None = None,
) -> GroupRun:
    """Train a group to its end, from nothing or from where a killed training was.

    Args:
        gradient: of plain networks. checkpoint: the file of the training that is under way; None: it cannot
            go on once it is killed.
    """
    chosen = [recipes[name] for name, _ in group]
    layout = layout_of(chosen[0], protocol)
    training = _training(group, chosen, protocol, layout, data, gradient, device)
    networks: list[list[Tensor]] = [[] for _ in group]
    losses = [math.nan] * len(group)
    seconds: list[float] = []
    if checkpoint is not None and (held := checkpoint.read()):
        own = {name: value for name, value in held.items() if name.startswith("training/")}
        training.restore({name.removeprefix("training/"): value for name, value in own.items()})
        for row, kept in enumerate(networks):
            while (at := f"networks/{row}/{len(kept)}") in held:
                kept.append(held[at].to(device))
        losses, seconds = held["losses"].tolist(), held["seconds"].tolist()
    first_step: float | None = None
    written = time.monotonic()
    for epoch in range(training.epoch, protocol.epochs):
        steps = protocol.steps_per_epoch
        if first_step is None:
            began = time.perf_counter()
            training.advance(1)
            _wait(device)
            first_step = time.perf_counter() - began
            steps -= 1
        began = time.perf_counter()
        (losses,) = training.advance(steps)
        seconds.append(time.perf_counter() - began)
        for row, recipe in enumerate(chosen):
            if leaves_a_network(recipe, protocol, epoch):
                networks[row].append(training.weights[row].clone())
        if checkpoint is not None and time.monotonic() - written >= checkpoint.seconds:
            checkpoint.write(_state(training, networks, losses, seconds))
            written = time.monotonic()
    points = {}
    for row, (point, recipe) in enumerate(zip(group, chosen, strict=True)):
        std = training.rule.std()[row].clone() if isinstance(training.rule, FlatIVON) else None
        weights, kept = training.weights[row].clone(), networks[row]
        if recipe.swag_from < 1:
            swag = swag_statistics(recipe, protocol, kept)
            points[point] = Collected(weights, [], std, swag, losses[row])
        else:
            points[point] = Collected(weights, kept, std, None, losses[row])
    steady = statistics.median(seconds[1:] or seconds)
    images = protocol.steps_per_epoch * protocol.batch * len(group) * chosen[0].members
    return GroupRun(points, images / steady, sum(seconds), first_step or 0.0)


def _training(
    group: Sequence[Point],
    chosen: Sequence[Recipe],
    protocol: Protocol,
    layout: FlatLayout,
    data: ResidentImages,
    gradient: Gradient,
    device: torch.device,
) -> ResidentTraining:
    """Return a group's training before its first step."""
    seeds, first = [seed for _, seed in group], chosen[0]
    weights = torch.stack(
        [start(recipe, protocol, seed) for recipe, seed in zip(chosen, seeds, strict=True)]
    ).to(device)
    if first.members > 1:
        plain = layout_of(replace(first, members=1), protocol)
        gradient = batch_ensemble_gradient(gradient, plain, layout, first.members)
    generator = torch.Generator(device).manual_seed(sum(seed << 8 * i for i, seed in enumerate(seeds)))
    return ResidentTraining(
        data,
        torch.stack([cifar.split_indices(seed)[0][: protocol.examples] for seed in seeds]),
        seeds,
        weights,
        gradient,
        rule_of(chosen, protocol, weights, layout, generator),
        protocol.batch,
        [recipe.augment for recipe in chosen],
        generator,
    )


def _state(
    training: ResidentTraining,
    networks: Sequence[Sequence[Tensor]],
    losses: Sequence[float],
    seconds: Sequence[float],
) -> dict[str, Tensor]:
    """Return all that a group needs to go on from between two epochs."""
    state = {f"training/{name}": value for name, value in training.state().items()}
    for row, kept in enumerate(networks):
        state |= {f"networks/{row}/{place}": each for place, each in enumerate(kept)}
    state["losses"] = torch.tensor(losses, dtype=torch.float64)
    state["seconds"] = torch.tensor(seconds, dtype=torch.float64)
    return state


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def put(module: torch.nn.Module, layout: FlatLayout, vector: Tensor) -> None:
    """Copy a flat vector into a module's parameters."""
    parameters = dict(module.named_parameters())
    for name, value in layout.views(vector).items():
        parameters[name].copy_(value)


def swag_statistics(recipe: Recipe, protocol: Protocol, iterates: Sequence[Tensor]) -> SWAGStatistics:
    """Return SWAG's statistics of iterates [n] each, on their device."""
    layout, collector = layout_of(recipe, protocol), SWAGCollector(recipe.swag_rank)
    carrier = resnet_frn(protocol.shape).to(iterates[0].device)
    for iterate in iterates:
        put(carrier, layout, iterate)
        collector.collect(carrier)
    return collector.statistics()


def tensors_of(recipe: Recipe, point: Collected, protocol: Protocol) -> dict[str, Tensor]:
    """Return what a point's file holds, by name, on the CPU; see the top of this module."""
    layout = layout_of(recipe, protocol)

    def named(vector: Tensor, prefix: str = "", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        values = layout.views(vector.cpu())
        return {f"{prefix}{name}": value.to(dtype).contiguous().clone() for name, value in values.items()}

    if point.swag is not None:
        held = {name: value.cpu().contiguous() for name, value in point.swag.tensors().items()}
        return {name: v.half() if name.startswith("deviations/") else v for name, v in held.items()}
    if point.std is not None:
        return named(point.weights, "mean/") | named(point.std, "std/", torch.float16)
    if len(point.networks) > 1:
        dtype = torch.float16 if recipe.noise else torch.float32
        parts = [named(each, f"{place}/", dtype) for place, each in enumerate(point.networks)]
        return {name: value for part in parts for name, value in part.items()}
    return named(point.weights)
