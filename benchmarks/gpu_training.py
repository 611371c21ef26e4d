"""Networks trained on CIFAR-10 on one GPU, fast: images a second, and the points that come of it.

    python -m benchmarks.gpu_training --data <folder or .npz> --points <folder> --minutes 10

ResNet-20-FRN-SiLU, 40,960 training images, crops and flips, 19,840 updates of 256 (``--updates`` for less),
several trainings side by side (``lpe.training.resident``). In this order, as far as the minutes reach: SGD of
seeds 0 to 3, IVON 0 to 3, then SWAG 0 and 1, SSE and CSGLD side by side, BatchEnsemble of 4, SGD 4 to 7 (for
deep ensembles), SGD 0 to 3 without crops and flips, AdamW 0 and 1 with and without. A group that would not
end in time is not begun, and one whose files are all there is not trained again.

It writes ``gpu_training.csv`` (NLL and error of validation and test images, of each network and of what its
recipe collected; images a second of the group: the median over epochs) and ``gpu_training.json`` (card,
versions, every hyper-parameter), and the points as safetensors into ``--points``. Times are taken between
epochs, and hold the drawing of the data; compilation, capture and measuring the networks are told apart.

On an H200 it took 6 minutes without AdamW and printed 368,000 images/s with four trainings of SGD, 360,000
of IVON and 346,000 with a BatchEnsemble of 4; test NLL of SGD .47 to .49, of SWAG's mean .41, of four SGD
networks as one ensemble .318. The record in ``results`` is of that run, before ``benchmarks.gpu_sweep`` chose
the recipes below: IVON, SSE, CSGLD, BatchEnsemble and SGD without crops and flips had others, which it names.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import lpe
from benchmarks.command import one_line_of_bad_input, parser
from lpe.ensembles.base import text_table
from lpe.ensembles.swag import SWAGCollector, SWAGStatistics
from lpe.errors import InputError
from lpe.provenance import write_provenance
from lpe.records import write_table
from lpe.substrates import cifar
from lpe.substrates.assets import assets_folder
from lpe.substrates.cifar_networks import RESNET20, ResNet, ResNetShape, resnet_frn
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
from lpe.training.resident import ResidentImages, ResidentTraining, predictions
from lpe.training.schedules import Schedule, then_constant, warmup_cosine
from lpe.training.sgld import noise_std
from lpe.writing import check_writable, replacing

UPDATES = 19_840
BATCH = 256
WARM_UP = 0.02
COLUMNS = (
    "point",
    "what",
    "networks",
    "updates",
    "train_loss",
    "validation_nll",
    "validation_err",
    "test_nll",
    "test_err",
    "group",
    "images_per_second",
    "seconds",
)


@dataclass(frozen=True)
class Recipe:
    """A recipe by which a point is trained.

    Args:
        rule: "sgd", "adamw" or "ivon". lr: the peak. momentum: SGD's. weight_decay: the rule's.
        augment: crops and flips. final: of the peak, at the end. cycles: of the learning rate.
        warm_cycles: whether each cycle begins with a warm-up, and not the first alone.
        noise: the share at the end of a cycle in which SGLD draws noise, at temperature 1 and the learning
            rate ``final``. kept: how many epochs at the end of a cycle leave a network each.
        kept_every: epochs from one of them to the next. swag_from: the share of the run
            from which the learning rate stays at ``final`` and an epoch leaves an iterate; 1: none.
        members: of a BatchEnsemble; 1: a plain network. fast_lr, fast_std: of its fast weights, the peak and
            the spread at the start.
        ess, hess_init, beta1, beta2: IVON's.
    """

    rule: str
    lr: float
    momentum: float
    weight_decay: float
    augment: bool = True
    final: float = 0.0
    cycles: int = 1
    warm_cycles: bool = False
    noise: float = 0.0
    kept: int = 1
    kept_every: int = 1
    swag_from: float = 1.0
    swag_rank: int = 20
    members: int = 1
    fast_lr: float = 0.05
    fast_std: float = 0.5
    ess: float = cifar.TRAINING_IMAGES
    hess_init: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.9999


SGD = Recipe("sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
# "Sweep": of the settings in ``benchmarks/results/gpu_sweep.csv`` the one of the best validation NLL.
RECIPES = {
    # Sweep: at 8,000 updates .422; the best of four is within .002 of it (weight decay 1e-3: .420).
    "sgd": SGD,
    # Sweep: .625 at 8,000 updates, .852 at 5e-4; the largest weight decay of the grid.
    "sgdnoaug": replace(SGD, augment=False, weight_decay=4e-3),
    # Sweep: .477 (mean), .496 (10 draws) at 8,000 updates; it forgets h0 for 6 times 1/(1 − β2), as there.
    # No IVON of the sweep passed its test of a learnt posterior: most weights learn less than h0's remainder
    # here, and have the prior's std where that is gone too (12 times; .87 and worse).
    "ivon": Recipe("ivon", lr=0.3, momentum=0.9, weight_decay=1e-4, hess_init=1.0, beta2=0.9997),
    # Sweep: 10 draws .4215 at 8,000 updates, .432 to .449 at lr .005, .01 and .05.
    "swag": replace(SGD, final=0.2, swag_from=0.6),
    # Sweep: four snapshots .363 and .371; without warm-ups .512 at this peak, .392 and .395 at .05.
    "sse": replace(SGD, cycles=4, warm_cycles=True),
    # Sweep: 12 samples .696 and .695. Their noise reaches .99 of the posterior's variance at curvature .01;
    # at a rate of .03 instead of .1 it is .77, and the NLL .700 and .719. Temperature 1 costs much.
    # The weight decay is that of a Gaussian prior of variance .3.
    "csgld": Recipe(
        "sgd",
        lr=0.4,
        momentum=0.0,
        weight_decay=1 / (0.3 * cifar.TRAINING_IMAGES),
        final=0.25,
        cycles=4,
        noise=0.5,
        kept=3,
        kept_every=4,
    ),
    # Sweep: .413 at 8,000 updates; .419 at lr .1 and .05, .452 and .463 with a spread of 1.
    "be": replace(SGD, lr=0.2, members=4, fast_lr=0.1),
    # Sweep: .4825 at 8,000 updates; .509 to .553 at the three others.
    "adamw": Recipe("adamw", lr=4e-3, momentum=0.0, weight_decay=0.05),
    # Sweep: .692 at 8,000 updates, 1.09 to 1.66 at the three others; the grid's corner.
    "adamwnoaug": Recipe("adamw", lr=4e-3, momentum=0.0, weight_decay=0.3, augment=False),
}

Point = tuple[str, int]
"""A recipe's name and a seed."""

GROUPS: tuple[tuple[Point, ...], ...] = (
    tuple(("sgd", seed) for seed in range(4)),
    tuple(("ivon", seed) for seed in range(4)),
    (("swag", 0), ("swag", 1), ("sse", 0), ("csgld", 1)),
    (("be", 0),),
    tuple(("sgd", seed) for seed in range(4, 8)),
    tuple(("sgdnoaug", seed) for seed in range(4)),
    (("adamw", 0), ("adamw", 1), ("adamwnoaug", 0), ("adamwnoaug", 1)),
)
"""Groups of trainings side by side, in their order; all of a group have one rule and number of members."""


@dataclass(frozen=True)
class Protocol:
    """The protocol that all trainings share.

    Args:
        shape: of the network. updates: of a training. batch: images an update. examples: training images.
        warm_up: the share of the updates in which the learning rate rises.
    """

    shape: ResNetShape = RESNET20
    updates: int = UPDATES
    batch: int = BATCH
    examples: int = cifar.TRAINING_IMAGES
    warm_up: float = WARM_UP

    @property
    def steps_per_epoch(self) -> int:
        """The updates of an epoch, whose last images may be left out."""
        return self.examples // self.batch

    @property
    def epochs(self) -> int:
        """The number of whole epochs."""
        return self.updates // self.steps_per_epoch


def learning_rate(recipe: Recipe, protocol: Protocol) -> Schedule:
    """Return the recipe's learning rate at each update."""
    updates, final = protocol.updates, recipe.lr * recipe.final
    warm = round(protocol.warm_up * updates)
    if recipe.swag_from < 1:
        switch = round(recipe.swag_from * updates)
        return then_constant(warmup_cosine(recipe.lr, switch, warm / switch, final), switch, final)
    if recipe.cycles == 1:
        return warmup_cosine(recipe.lr, updates, protocol.warm_up, final)
    cycle = updates // recipe.cycles
    explored = round((1 - recipe.noise) * cycle)

    def cyclical(step: int) -> float:
        place = step % cycle
        share = (1 + math.cos(math.pi * min(1.0, place / explored))) / 2
        begun = place if recipe.warm_cycles else step
        return (final + (recipe.lr - final) * share) * min(1.0, (begun + 1) / max(1, warm))

    return cyclical


def noise(recipe: Recipe, protocol: Protocol) -> Schedule:
    """Return the standard deviation of SGLD's noise at each update."""
    rate, cycle = learning_rate(recipe, protocol), protocol.updates // recipe.cycles
    explored = round((1 - recipe.noise) * cycle)

    def std(step: int) -> float:
        drawn = step % cycle >= explored
        return noise_std(rate(step), 1.0, protocol.examples) if recipe.noise and drawn else 0.0

    return std


def leaves_a_network(recipe: Recipe, protocol: Protocol, epoch: int) -> bool:
    """Tell whether the recipe keeps the weights after this epoch, as a snapshot or a sample."""
    cycle = protocol.epochs // recipe.cycles
    if cycle == 0 or epoch >= cycle * recipe.cycles:
        return False
    left = cycle - 1 - epoch % cycle
    return left % recipe.kept_every == 0 and left // recipe.kept_every < recipe.kept


@dataclass
class Collected:
    """The networks and states that a training leaves.

    Args:
        weights: of the last step [n]; IVON's mean. networks: kept on the way. std: IVON's.
        swag: its statistics. loss: the mean of the last epoch.
    """

    weights: Tensor
    networks: list[Tensor]
    std: Tensor | None = None
    swag: SWAGStatistics | None = None
    loss: float = math.nan


@dataclass
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


def _batch_ensemble(net: ResNet, recipe: Recipe, seed: int) -> lpe.BatchEnsemble:
    return lpe.BatchEnsemble(net, recipe.members, seed=seed, std=recipe.fast_std)


def layout_of(recipe: Recipe, protocol: Protocol) -> FlatLayout:
    """Return the layout of the vector that a recipe trains."""
    net = resnet_frn(protocol.shape)
    return FlatLayout.of(net if recipe.members == 1 else _batch_ensemble(net, recipe, 0).module)


def start(recipe: Recipe, protocol: Protocol, seed: int) -> Tensor:
    """Return the weights at the start of a training [n]."""
    net = resnet_frn(protocol.shape, seed)
    module = net if recipe.members == 1 else _batch_ensemble(net, recipe, seed).module
    return layout_of(recipe, protocol).vector(dict(module.named_parameters()))


def train_group(
    group: Sequence[Point],
    protocol: Protocol,
    data: ResidentImages,
    gradient: Gradient,
    device: torch.device,
    recipes: Mapping[str, Recipe] = RECIPES,
) -> GroupRun:
    """Train a group from nothing to its end."""
    chosen = [recipes[name] for name, _ in group]
    seeds = [seed for _, seed in group]
    first = chosen[0]
    layout = layout_of(first, protocol)
    weights = torch.stack(
        [start(recipe, protocol, seed) for recipe, seed in zip(chosen, seeds, strict=True)]
    ).to(device)
    if first.members > 1:
        plain = layout_of(replace(first, members=1), protocol)
        gradient = batch_ensemble_gradient(gradient, plain, layout, first.members)
    generator = torch.Generator(device).manual_seed(sum(seed << 8 * i for i, seed in enumerate(seeds)))
    rule = _rule(chosen, protocol, weights, layout, generator)
    examples = torch.stack([cifar.split_indices(seed)[0][: protocol.examples] for seed in seeds])
    training = ResidentTraining(
        data,
        examples,
        seeds,
        weights,
        gradient,
        rule,
        protocol.batch,
        [recipe.augment for recipe in chosen],
        generator,
    )
    points = {point: Collected(torch.empty(0), []) for point in group}
    swags = {
        point: SWAGCollector(recipe.swag_rank)
        for point, recipe in zip(group, chosen, strict=True)
        if recipe.swag_from < 1
    }
    carrier = resnet_frn(protocol.shape).to(device)
    started = time.perf_counter()
    training.advance(1)
    _wait(device)
    first_step = time.perf_counter() - started
    seconds: list[float] = []
    for epoch in range(protocol.epochs):
        began = time.perf_counter()
        (losses,) = training.advance(protocol.steps_per_epoch - (1 if epoch == 0 else 0))
        seconds.append(time.perf_counter() - began)
        for row, (point, recipe) in enumerate(zip(group, chosen, strict=True)):
            points[point].loss = losses[row]
            if leaves_a_network(recipe, protocol, epoch):
                points[point].networks.append(weights[row].clone())
            if point in swags and epoch >= round(recipe.swag_from * protocol.epochs):
                put(carrier, layout, weights[row])
                swags[point].collect(carrier)
    for row, point in enumerate(group):
        points[point].weights = weights[row].clone()
        if isinstance(rule, FlatIVON):
            points[point].std = rule.std()[row].clone()
        if point in swags:
            points[point].swag = swags[point].statistics()
    steady = statistics.median(seconds[1:] or seconds)
    images = protocol.steps_per_epoch * protocol.batch * len(group) * first.members
    return GroupRun(points, images / steady, sum(seconds), first_step)


def _rule(
    recipes: Sequence[Recipe],
    protocol: Protocol,
    weights: Tensor,
    layout: FlatLayout,
    generator: torch.Generator,
) -> Rule:
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def put(module: torch.nn.Module, layout: FlatLayout, vector: Tensor) -> None:
    """Copy a flat vector into a module's parameters."""
    parameters = dict(module.named_parameters())
    for name, value in layout.views(vector).items():
        parameters[name].copy_(value)


@dataclass(frozen=True)
class Measured:
    """Images that networks are measured on: standardised, with labels, on the device."""

    images: Tensor
    labels: Tensor

    def scores(self, log_chances: Tensor) -> tuple[float, float]:
        """Return NLL in nats and error."""
        nll = -log_chances.double().gather(1, self.labels[:, None]).mean()
        return float(nll), float((log_chances.argmax(1) != self.labels).double().mean())


def mean_of(parts: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean of probabilities, from their logs [images, classes]."""
    return torch.logsumexp(torch.stack(list(parts)).double(), 0) - math.log(len(parts))


def networks_of(recipe: Recipe, point: Collected, protocol: Protocol) -> dict[str, list[Tensor]]:
    """Return what is measured of a point: name → flat plain networks, whose probabilities are averaged."""
    layout = layout_of(replace(recipe, members=1), protocol)
    if recipe.members > 1:
        ensemble = _batch_ensemble(resnet_frn(protocol.shape), recipe, 0)
        put(ensemble.module, layout_of(recipe, protocol), point.weights.cpu())
        members = [layout.vector(dict(member.named_parameters())) for member in ensemble]
        return {"first member": members[:1], "all members": members}
    if point.swag is not None:
        return {"mean": [layout.vector(point.swag.mean)], "last": [point.weights]}
    if len(point.networks) > 1:
        return {"last": point.networks[-1:], "all kept": point.networks}
    return {"mean" if recipe.rule == "ivon" else "last": [point.weights]}


def tensors_of(recipe: Recipe, point: Collected, protocol: Protocol) -> dict[str, Tensor]:
    """Return what a point's file holds, by name; SWAG's deviations, IVON's std, SGLD's samples in float16."""
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


class Bench:
    """A bench that runs groups on one device and keeps the table.

    Args:
        images: the data. protocol: of all trainings. device: where. gradient: of plain networks.
        dtype: of the images there. points: the folder of the points; None: they are not kept.
    """

    def __init__(
        self,
        images: cifar.CifarImages,
        protocol: Protocol,
        device: torch.device,
        gradient: Gradient,
        dtype: torch.dtype,
        points: Path | None,
        recipes: Mapping[str, Recipe] = RECIPES,
    ) -> None:
        self.images, self.protocol, self.device = images, protocol, device
        self.gradient, self.points, self.recipes = gradient, points, recipes
        train = cifar.standardised(images.train)
        self.data = ResidentImages.of(train, images.train_labels, device, dtype)
        self.train = train
        self.test = self._measured(cifar.standardised(images.test), images.test_labels)
        self.rows: list[dict[str, object]] = []
        self.chances: dict[str, Tensor] = {}
        self.module = resnet_frn(protocol.shape).to(device).eval()
        self.groups: list[dict[str, object]] = []

    def _measured(self, images: Tensor, labels: Tensor) -> Measured:
        layout = torch.channels_last
        return Measured(images.to(self.device).contiguous(memory_format=layout), labels.to(self.device))

    def path(self, point: Point) -> Path | None:
        """Return a point's file."""
        return self.points and self.points / f"{point[0]}-{point[1]}.safetensors"

    def has(self, point: Point) -> bool:
        """Tell whether a point's file is there already."""
        path = self.path(point)
        return path is not None and path.exists()

    def run(self, group: Sequence[Point]) -> GroupRun:
        """Train a group, measure and save its points."""
        run = train_group(group, self.protocol, self.data, self.gradient, self.device, self.recipes)
        name = " ".join(f"{recipe}-{seed}" for recipe, seed in group)
        about = {
            "group": name,
            "images_per_second": round(run.images_per_second),
            "seconds": round(run.seconds, 2),
        }
        self.groups.append({**about, "first_step_seconds": round(run.first_step, 2)})
        for point, collected in run.points.items():
            self._measure(point, collected, about)
            self._save(point, collected)
        return run

    def _measure(self, point: Point, collected: Collected, about: Mapping[str, object]) -> None:
        recipe, layout = self.recipes[point[0]], FlatLayout.of(self.module)
        indices = cifar.split_indices(point[1])[1]
        validation = self._measured(self.train[indices], self.images.train_labels[indices])
        for what, networks in networks_of(recipe, collected, self.protocol).items():
            scores: dict[str, object] = {}
            for split, measured in (("validation", validation), ("test", self.test)):
                parts = []
                for vector in networks:
                    put(self.module, layout, vector)
                    parts.append(predictions(self.module, measured.images))
                mean = mean_of(parts)
                scores[f"{split}_nll"], scores[f"{split}_err"] = measured.scores(mean)
            if what == "last" and point[0] == "sgd":
                self.chances[f"{point[0]}-{point[1]}"] = mean
            self._row(f"{point[0]}-{point[1]}", what, len(networks), collected.loss, scores, about)

    def _row(
        self,
        point: str,
        what: str,
        networks: int,
        loss: float,
        scores: Mapping[str, object],
        about: Mapping[str, object],
    ) -> None:
        row: dict[str, object] = dict.fromkeys(COLUMNS)
        row |= {"point": point, "what": what, "networks": networks, "updates": self.protocol.updates}
        self.rows.append(row | {"train_loss": loss} | dict(scores) | dict(about))

    def deep_ensembles(self) -> None:
        """Measure the first 2, 3, … SGD networks as ensembles, a row each; they validate on other images."""
        chances = list(self.chances.values())
        for count in range(2, len(chances) + 1):
            nll, err = self.test.scores(mean_of(chances[:count]))
            scores = {"test_nll": nll, "test_err": err}
            self._row(f"sgd, {count} seeds", "ensemble", count, math.nan, scores, {})

    def _save(self, point: Point, collected: Collected) -> None:
        from safetensors.torch import save_file

        path = self.path(point)
        if path is None:
            return
        tensors = tensors_of(self.recipes[point[0]], collected, self.protocol)
        about = {"data": self.images.name, "updates": str(self.protocol.updates), "seed": str(point[1])}
        for row in self.rows:
            if row["point"] == f"{point[0]}-{point[1]}":
                about |= {
                    f"{row['what']} {key}": f"{row[key]:.6g}"
                    for key in COLUMNS
                    if key.endswith(("nll", "err"))
                }
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=about)


def table_text(title: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return the table, for the screen."""

    def cell(value: object) -> str:
        if value is None:
            return ""
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    shown = ("point", "what", "networks", *(c for c in COLUMNS if c.endswith(("nll", "err"))))
    cells = [tuple(cell(row[column]) for column in shown) for row in rows]
    return text_table(title, shown, cells)


def fast_gradient(protocol: Protocol, device: torch.device) -> tuple[Gradient, torch.dtype]:
    """Return fused kernels' gradient in bfloat16 on a GPU; on a CPU that of torch's own, in float32."""
    net = resnet_frn(protocol.shape).to(device)
    if device.type != "cuda":
        return module_gradient(net), torch.float32
    from lpe.training.frn_resnet import fused_gradient

    return fused_gradient(net, cifar.SIDE), torch.bfloat16


def begun_in_time(
    groups: Sequence[Sequence[Point]],
    protocol: Protocol,
    seconds_left: Callable[[], float],
    speed: Callable[[], float | None],
    recipes: Mapping[str, Recipe] = RECIPES,
) -> Iterator[Sequence[Point]]:
    """Yield the groups that would end in time, by the speed of those before; say which would not."""
    for group in groups:
        known = speed()
        images = protocol.updates * protocol.batch * sum(recipes[name].members for name, _ in group)
        if known is not None and images / known > seconds_left():
            names = " ".join(f"{name}-{seed}" for name, seed in group)
            needed = images / known
            print(
                f"not run: {names} ({needed:.0f} s at {known:,.0f} images/s; {seconds_left():.0f} s are left)"
            )
            continue
        yield group


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Train, print the table; 2 after one line about bad input."""
    options = parser("gpu_training", __doc__)
    options.add_argument("--data", type=Path, help="CIFAR-10 (default: LPE_ASSETS' file of JPEGs)")
    options.add_argument("--points", type=Path, help="folder of the points (default: they are not kept)")
    options.add_argument("--updates", type=int, default=UPDATES, help="of a training (default: %(default)s)")
    options.add_argument(
        "--minutes", type=float, default=math.inf, help="in which all of it ends (default: no limit)"
    )
    asked = options.parse_args(arguments)
    started = time.time()
    protocol = Protocol(updates=asked.updates)
    if asked.updates < 4 * protocol.steps_per_epoch:
        raise InputError(
            f"--updates {asked.updates}: at least {4 * protocol.steps_per_epoch}, an epoch a cycle"
        )
    check_writable(asked.out)
    if asked.points:
        check_writable(asked.points)
    if not torch.cuda.is_available():
        raise InputError("there is no CUDA device; the benchmark trains on one")
    # Networks are measured in whole float32.
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda")
    images = cifar.load(asked.data or assets_folder() / "cifar10_jpeg_q75.npz")
    bench = Bench(images, protocol, device, *fast_gradient(protocol, device), asked.points)
    print(f"{images.name} after {time.time() - started:.1f} s", flush=True)
    speeds: list[float] = []
    todo = [group for group in GROUPS if not all(bench.has(point) for point in group)]
    for group in begun_in_time(
        todo,
        protocol,
        lambda: 60 * asked.minutes - (time.time() - started) - 5,
        lambda: speeds[-1] if speeds else None,
    ):
        run = bench.run(group)
        speeds.append(run.images_per_second)
        told = bench.groups[-1]
        print(
            f"{told['group']}: {run.images_per_second:,.0f} images/s, {run.seconds:.1f} s, first step "
            f"{run.first_step:.1f} s; {time.time() - started:.0f} s since the start",
            flush=True,
        )
        _write(bench, asked.out, started)
    bench.deep_ensembles()
    _write(bench, asked.out, started)
    title = f"{images.name}, ResNet-20-FRN-SiLU, {protocol.updates:,} updates, {torch.cuda.get_device_name()}"
    print(table_text(title, bench.rows))
    return 0


def _write(bench: Bench, out: Path, started: float) -> None:
    write_table(pd.DataFrame(bench.rows), out / "gpu_training.csv", COLUMNS)
    config = {
        "data": bench.images.name,
        "data_sha256": bench.images.sha256,
        "protocol": bench.protocol,
        "recipes": dict(bench.recipes),
        "groups": bench.groups,
    }
    write_provenance(
        out / "gpu_training.json",
        ["benchmarks/gpu_training.py"],
        config,
        str(bench.device),
        sorted({seed for group in GROUPS for _, seed in group}),
        torch.get_num_threads(),
        started,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
