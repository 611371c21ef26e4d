"""The trained weights that figures share: pre-training, then fine-tuning by SGD, SWAG and IVON.

Each comes out of the store where it is already there. The key of an entry holds everything that determines
it: the recipe, the seed, the entry it starts from, the code, the versions and the number of threads.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lpe.ensembles.ivon import IVONEnsemble, posterior_std
from lpe.ensembles.swag import SWAGCollector, SWAGEnsemble, SWAGStatistics
from lpe.store import Entry
from lpe.substrates import digits
from lpe.training.loop import train
from lpe.training.schedules import then_constant, warmup_cosine
from reproduce.study.recipes import IVONTraining, SGDTraining, SnapshotTraining, SWAGTraining
from reproduce.study.scale import Point
from reproduce.study.session import Session, source_hash

POINTS = ("SGD", "SWAG", "IVON")
TRAINING_CODE = (
    "lpe/contents.py",
    "lpe/modules.py",
    "lpe/networks.py",
    "lpe/structure.py",
    "lpe/surroundings.py",
    "lpe/training",
    "lpe/substrates/digits.py",
    "lpe/number_systems/streams.py",
    "lpe/ensembles/swag.py",
    "lpe/ensembles/ivon.py",
    "reproduce/study/points.py",
)


REPLICAS = 1_000_000
"""Distance between the seeds of two fine-tunings of one training seed: above any number of seeds."""


def fine_tuning_seed(seed: int, replica: int) -> int:
    """Return the seed of a fine-tuning's head and data order; replica 0 has the training seed itself."""
    return seed + REPLICAS * replica


def config_of(
    session: Session, phase: str, seed: int, recipe: object, start: object = None, replica: int = 0
) -> dict[str, object]:
    """Return all that determines a training."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "timm", "ivon-opt", "numpy")}
    return {
        "phase": phase,
        "scale": session.scale.name,
        "network": session.scale.network,
        "jitter": session.scale.jitter,
        "recipe": recipe,
        "seed": seed,
        "replica": replica,
        "start": start,
        "threads": session.scale.threads,
        "packages": packages,
        "code": source_hash(*TRAINING_CODE),
    }


def trained(
    session: Session,
    config: dict[str, object],
    epochs: int,
    fit: Callable[[Callable[[Mapping[str, float]], None]], tuple[dict[str, Tensor], dict[str, Any]]],
) -> Entry:
    """Return the entry of a training: stored, or made by ``fit`` with a progress bar and its curve in W&B."""
    replica = f" {config['replica']}" if config["replica"] else ""
    phase = f"{config['phase']}{replica}"
    label = f"seed {config['seed']}: {phase}"

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        with session.progress(epochs, label) as bar:

            def report(row: Mapping[str, float]) -> None:
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                named = {f"{phase}/seed {config['seed']}/{key}": row[key] for key in row}
                session.tracker.log(named)

            return fit(report)

    return session.store.get_or_make(config, make)


def _pre_trained(session: Session, seed: int) -> tuple[Entry, dict[str, object]]:
    """Return the trunk after the auxiliary task on the training images."""
    recipe = session.scale.pre_training
    config = config_of(session, "pre-training", seed, recipe)

    def fit(report: Callable[[Mapping[str, float]], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        split = digits.AUXILIARY_TASKS[recipe.task](digits.load(seed).train)
        net = digits.network(session.scale.network, int(split[1].max()) + 1, seed)
        batches = digits.batches(split, recipe.batch, seed, session.scale.jitter)
        # 0 epochs is a valid recipe: fine-tuning from scratch, which the sweep compares with.
        steps = max(1, recipe.epochs * (len(split[0]) // recipe.batch))
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=recipe.weight_decay, fused=True)
        schedule = warmup_cosine(recipe.learning_rate, steps)
        run = train(net, batches, optimizer, schedule, recipe.epochs, seed, report=report)
        trunk = {name: value for name, value in net.state_dict().items() if not name.startswith("head.")}
        return trunk, {"backward_passes": run.backward_passes}

    return trained(session, config, recipe.epochs, fit), config


def start(session: Session, seed: int, replica: int = 0) -> tuple[nn.Module, int, dict[str, object]]:
    """Return a network of pre-trained trunk and new head, the trunk's backward passes and configuration."""
    entry, config = _pre_trained(session, seed)
    net = digits.network(session.scale.network, digits.CLASSES, fine_tuning_seed(seed, replica))
    missing = net.load_state_dict(entry.tensors, strict=False)
    assert all(name.startswith("head.") for name in missing.missing_keys) and not missing.unexpected_keys
    return net, int(entry.info["backward_passes"]), config


def loaded(session: Session, seed: int, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with these weights, in eval mode."""
    net = digits.network(session.scale.network, digits.CLASSES, seed)
    net.load_state_dict(dict(weights))
    return net.eval()


def sgd_optimizer(net: nn.Module, recipe: SGDTraining | SnapshotTraining) -> torch.optim.SGD:
    """Make SGD with the recipe's momentum and weight decay."""
    return torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def sgd_point(session: Session, seed: int, recipe: SGDTraining | None = None, replica: int = 0) -> Point:
    """Return the point estimate of SGD."""
    recipe = recipe or session.scale.sgd
    net, before, trunk = start(session, seed, replica)
    order = fine_tuning_seed(seed, replica)
    config = config_of(session, "SGD", seed, recipe, trunk, replica)

    def fit(report: Callable[[Mapping[str, float]], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        split = digits.load(seed).train
        batches = digits.batches(split, recipe.batch, order, session.scale.jitter)
        steps = recipe.epochs * (len(split[0]) // recipe.batch)
        schedule = warmup_cosine(recipe.learning_rate, steps)
        run = train(
            net,
            batches,
            sgd_optimizer(net, recipe),
            schedule,
            recipe.epochs,
            order,
            recipe.clip_norm,
            report=report,
        )
        return net.state_dict(), {
            "backward_passes": before + run.backward_passes,
            "pre_training_passes": before,
            "last_loss": run.curve[-1]["loss"],
        }

    entry = trained(session, config, recipe.epochs, fit)
    return Point("SGD", loaded(session, seed, entry.tensors), None, entry.info["backward_passes"], entry.info)


def swag_point(session: Session, seed: int, recipe: SWAGTraining | None = None, replica: int = 0) -> Point:
    """Return SWAG's mean and posterior."""
    recipe = recipe or session.scale.swag
    SWAGCollector(recipe.rank, recipe.start_epoch).check(recipe.sgd.epochs)
    net, before, trunk = start(session, seed, replica)
    order = fine_tuning_seed(seed, replica)
    config = config_of(session, "SWAG", seed, recipe, trunk, replica)

    def fit(report: Callable[[Mapping[str, float]], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        split = digits.load(seed).train
        batches = digits.batches(split, recipe.sgd.batch, order, session.scale.jitter)
        an_epoch = len(split[0]) // recipe.sgd.batch
        switch = recipe.start_epoch * an_epoch
        falling = warmup_cosine(recipe.sgd.learning_rate, switch, final=recipe.learning_rate)
        schedule = then_constant(falling, switch, recipe.learning_rate)
        collector = SWAGCollector(recipe.rank, recipe.start_epoch)
        run = train(
            net,
            batches,
            sgd_optimizer(net, recipe.sgd),
            schedule,
            recipe.sgd.epochs,
            order,
            recipe.sgd.clip_norm,
            report=report,
            collector=collector,
        )
        info = {
            "backward_passes": before + run.backward_passes,
            "pre_training_passes": before,
            "last_loss": run.curve[-1]["loss"],
        }
        return collector.statistics().tensors(), {**info, "collected": collector.collected}

    entry = trained(session, config, recipe.sgd.epochs, fit)
    statistics = SWAGStatistics.from_tensors(entry.tensors)
    template = digits.network(session.scale.network, digits.CLASSES, seed).eval()

    def posterior(size: int, draw_seed: int) -> SWAGEnsemble:
        return SWAGEnsemble(template, statistics, size, draw_seed, recipe.scale)

    return Point("SWAG", posterior(1, 0).point(), posterior, entry.info["backward_passes"], entry.info)


def ivon_point(session: Session, seed: int, recipe: IVONTraining | None = None, replica: int = 0) -> Point:
    """Return IVON's mean and posterior."""
    recipe = recipe or session.scale.ivon
    net, before, trunk = start(session, seed, replica)
    order = fine_tuning_seed(seed, replica)
    config = config_of(session, "IVON", seed, recipe, trunk, replica)

    def fit(report: Callable[[Mapping[str, float]], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        import ivon

        split = digits.load(seed).train
        batches = digits.batches(split, recipe.batch, order, session.scale.jitter)
        steps = recipe.epochs * (len(split[0]) // recipe.batch)
        optimizer = ivon.IVON(
            net.parameters(),
            lr=recipe.learning_rate,
            ess=len(split[0]),
            hess_init=recipe.hess_init,
            beta1=recipe.beta1,
            beta2=recipe.beta2,
            weight_decay=recipe.weight_decay,
        )
        schedule = warmup_cosine(recipe.learning_rate, steps)
        run = train(net, batches, optimizer, schedule, recipe.epochs, order, report=report)
        std = posterior_std(optimizer, net)
        median = float(torch.cat([value.flatten() for value in std.values()]).median())
        tensors = {f"mean/{name}": value for name, value in net.state_dict().items()}
        tensors |= {f"std/{name}": value for name, value in std.items()}
        return tensors, {
            "backward_passes": before + run.backward_passes,
            "pre_training_passes": before,
            "last_loss": run.curve[-1]["loss"],
            "median_posterior_std": median,
        }

    entry = trained(session, config, recipe.epochs, fit)
    parts: dict[str, dict[str, Tensor]] = {"mean": {}, "std": {}}
    for key, tensor in entry.tensors.items():
        part, name = key.split("/", 1)
        parts[part][name] = tensor
    point = loaded(session, seed, parts["mean"])

    def posterior(size: int, draw_seed: int) -> IVONEnsemble:
        return IVONEnsemble(point, parts["std"], size, draw_seed)

    return Point("IVON", point, posterior, entry.info["backward_passes"], entry.info)


def point(session: Session, name: str, seed: int, replica: int = 0) -> Point:
    """Return the point of that name at a training seed; replicas share its trunk."""
    if name == "SGD":
        return sgd_point(session, seed, replica=replica)
    if name == "SWAG":
        return swag_point(session, seed, replica=replica)
    return ivon_point(session, seed, replica=replica)
