"""The ensembles of several trained networks: DE, SSE, CSGLD, BE, MultiIVON, MultiSWAG, and X + LPE-BSR.

Every training comes out of the store where it is already there; a cyclical run is stored cycle by cycle, so
that a run with fewer cycles is the beginning of one with more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.cyclical_sgld import CyclicalSGLDCollector
from lpe.store import Entry
from lpe.substrates import digits
from lpe.training.loop import train
from lpe.training.schedules import cyclical_cosine, warmup_cosine
from lpe.training.sgld import SGLD
from reproduce.study.points import REPLICAS, config_of, point, sgd_optimizer, start, trained
from reproduce.study.recipes import BatchEnsembleTraining, CyclicalSGLDTraining, SnapshotTraining
from reproduce.study.scale import Point
from reproduce.study.session import Session

FAMILIES = ("DE", "SSE", "CSGLD", "MultiIVON", "MultiSWAG", "BE")


@dataclass(frozen=True)
class Family:
    """An ensemble of several trained networks.

    Args:
        name: one of FAMILIES.
        make: seed of draws → the ensemble, its training budget set.
        draws: whether the members are drawn: if not, ``make`` gives the same for every seed.
    """

    name: str
    make: Callable[[int], Ensemble]
    draws: bool = False


def deep_family(session: Session, seed: int, members: int | None = None) -> Family:
    """Make DE: fine-tunings of one trunk with other heads and data orders."""
    points = [point(session, "SGD", seed, replica) for replica in range(members or session.scale.members)]
    ensemble = lpe.DeepEnsemble([p.net for p in points], backward_passes=_costs(points))
    return Family("DE", lambda _: ensemble)


def _costs(points: list[Point]) -> list[int]:
    """List the backward passes that each point adds: the trunk, which they share, is the first one's."""
    return [p.backward_passes - (p.info["pre_training_passes"] if i else 0) for i, p in enumerate(points)]


def multi_family(session: Session, seed: int, posterior: str) -> Family:
    """Make MultiIVON or MultiSWAG: members drawn from several independent posteriors."""
    scale = session.scale
    points = [point(session, posterior, seed, replica) for replica in range(scale.members)]

    def make(draw_seed: int) -> Ensemble:
        parts = []
        for replica, (solution, cost) in enumerate(zip(points, _costs(points), strict=True)):
            assert solution.posterior is not None
            part = solution.posterior(scale.draws_per_posterior, draw_seed + REPLICAS * replica)
            part.training_budget = cost
            parts.append(part)
        return lpe.Mixture.of(parts)

    return Family(f"Multi{posterior}", make, draws=True)


def _cycles(
    session: Session,
    seed: int,
    name: str,
    recipe: SnapshotTraining | CyclicalSGLDTraining,
    fit_cycle: Callable[[nn.Module, digits.Split, Any, int, Any], tuple[dict[str, Tensor], int]],
) -> tuple[list[Entry], nn.Module]:
    """Return the store's entries of a cyclical run, each cycle going on from the last, and the network.

    ``fit_cycle`` trains the network for one cycle, in place, and returns what to keep and what it cost.
    """
    net, passes, before = start(session, seed)
    entries = []
    for cycle in range(recipe.cycles):
        # A cycle does not depend on how many follow.
        config = config_of(session, name, seed, {**vars(recipe), "cycles": cycle + 1}, before)

        def fit(
            report: Callable[[Mapping[str, float]], None], cycle: int = cycle, passes: int = passes
        ) -> tuple[dict[str, Tensor], dict[str, Any]]:
            split = digits.load(seed).train
            kept, cost = fit_cycle(net, split, _batches(session, split, recipe, seed, cycle), cycle, report)
            last = {f"last/{key}": value for key, value in net.state_dict().items()}
            info = {"backward_passes": passes + cost, "passes_before": passes}
            return {**last, **kept}, info

        entry = trained(session, config, recipe.epochs_per_cycle, fit)
        net.load_state_dict(_part(entry, "last"))
        passes = entry.info["backward_passes"]
        before = config
        entries.append(entry)
    return entries, net.eval()


def _batches(
    session: Session,
    split: digits.Split,
    recipe: SnapshotTraining | CyclicalSGLDTraining,
    seed: int,
    cycle: int,
) -> Callable[[int], Iterator[digits.Split]]:
    """Return a function: epoch of the cycle → batches, in another order in every cycle."""
    whole_run = digits.batches(split, recipe.batch, seed, session.scale.jitter)
    return lambda epoch: whole_run(cycle * recipe.epochs_per_cycle + epoch)


def _part(entry: Entry, part: str) -> dict[str, Tensor]:
    """Return the tensors that a stored entry holds under "part/"."""
    named = (key.split("/", 1) for key in entry.tensors)
    return {name: entry.tensors[f"{part}/{name}"] for head, name in named if head == part}


def snapshot_family(session: Session, seed: int, recipe: SnapshotTraining | None = None) -> Family:
    """Make SSE: snapshots at the ends of the cycles of one run."""
    recipe = recipe or session.scale.snapshot

    def fit_cycle(
        net: nn.Module, split: digits.Split, batches: Any, cycle: int, report: Any
    ) -> tuple[dict[str, Tensor], int]:
        schedule = cyclical_cosine(
            recipe.learning_rate, recipe.epochs_per_cycle * (len(split[0]) // recipe.batch)
        )
        optimizer = sgd_optimizer(net, recipe)
        run = train(net, batches, optimizer, schedule, recipe.epochs_per_cycle, seed, report=report)
        return {}, run.backward_passes

    entries, net = _cycles(session, seed, "SSE", recipe, fit_cycle)
    ensemble = lpe.SnapshotEnsemble(net, [_part(entry, "last") for entry in entries])
    ensemble.training_budget = [entry.info["backward_passes"] for entry in entries]
    return Family("SSE", lambda _: ensemble)


def cyclical_sgld_family(session: Session, seed: int, recipe: CyclicalSGLDTraining | None = None) -> Family:
    """Make CSGLD: samples from the ends of the cycles of one run."""
    recipe = recipe or session.scale.cyclical_sgld
    CyclicalSGLDCollector(recipe.epochs_per_cycle, recipe.samples_per_cycle).check(recipe.epochs_per_cycle)

    def fit_cycle(
        net: nn.Module, split: digits.Split, batches: Any, cycle: int, report: Any
    ) -> tuple[dict[str, Tensor], int]:
        an_epoch = len(split[0]) // recipe.batch
        collector = CyclicalSGLDCollector(recipe.epochs_per_cycle, recipe.samples_per_cycle)
        optimizer = SGLD(
            net.parameters(),
            lr=recipe.learning_rate,
            examples=len(split[0]),
            temperature=recipe.temperature,
            weight_decay=recipe.weight_decay,
            noise=collector.noise_steps(an_epoch),
            seed=seed + REPLICAS * cycle,
        )
        schedule = cyclical_cosine(recipe.learning_rate, recipe.epochs_per_cycle * an_epoch)
        run = train(
            net,
            batches,
            optimizer,
            schedule,
            recipe.epochs_per_cycle,
            seed,
            collector=collector,
            report=report,
        )
        samples = {
            f"sample {i}/{key}": value
            for i, sample in enumerate(collector.samples)
            for key, value in sample.items()
        }
        return samples, run.backward_passes

    entries, net = _cycles(session, seed, "CSGLD", recipe, fit_cycle)
    samples, budget = [], []
    for entry in entries:
        before, after = entry.info["passes_before"], entry.info["backward_passes"]
        for index in range(recipe.samples_per_cycle):
            samples.append(_part(entry, f"sample {index}"))
            epochs = recipe.epochs_per_cycle - recipe.samples_per_cycle + 1 + index
            budget.append(before + (after - before) * epochs // recipe.epochs_per_cycle)
    ensemble = lpe.CyclicalSGLDEnsemble(net, samples)
    ensemble.training_budget = budget
    return Family("CSGLD", lambda _: ensemble)


def batch_ensemble_family(session: Session, seed: int, recipe: BatchEnsembleTraining | None = None) -> Family:
    """Make BE: shared weights and every member's fast weights, fine-tuned together from the trunk."""
    recipe = recipe or session.scale.batch_ensemble
    members = session.scale.members
    net, before, trunk = start(session, seed)
    ensemble = lpe.BatchEnsemble(net, members, seed=seed, std=recipe.std)
    config = config_of(session, "BE", seed, {**vars(recipe), "members": members}, trunk)

    def fit(report: Callable[[Mapping[str, float]], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        split = digits.load(seed).train
        batches = digits.batches(split, recipe.batch, seed, session.scale.jitter)
        steps = recipe.epochs * (len(split[0]) // recipe.batch)
        optimizer = torch.optim.SGD(
            ensemble.parameter_groups(
                recipe.learning_rate, recipe.fast_factor * recipe.learning_rate, recipe.weight_decay
            ),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            fused=True,
        )

        schedule = warmup_cosine(recipe.learning_rate, steps)
        run = train(
            ensemble.module,
            batches,
            optimizer,
            schedule,
            recipe.epochs,
            seed,
            report=report,
            loss=ensemble.loss,
        )
        # A step evaluates the gradient of one minibatch for every member.
        return ensemble.module.state_dict(), {"backward_passes": before + members * run.backward_passes}

    entry = trained(session, config, recipe.epochs, fit)
    ensemble.module.load_state_dict(entry.tensors)
    ensemble.module.eval()
    ensemble.training_budget = entry.info["backward_passes"]
    return Family("BE", lambda _: ensemble)


def family(session: Session, name: str, seed: int) -> Family:
    """Return the family of that name at a training seed."""
    make: dict[str, Callable[[], Family]] = {
        "DE": lambda: deep_family(session, seed),
        "SSE": lambda: snapshot_family(session, seed),
        "CSGLD": lambda: cyclical_sgld_family(session, seed),
        "MultiIVON": lambda: multi_family(session, seed, "IVON"),
        "MultiSWAG": lambda: multi_family(session, seed, "SWAG"),
        "BE": lambda: batch_ensemble_family(session, seed),
    }
    return make[name]()


def with_low_precision(base: Ensemble, system: lpe.Int, members: int, seed: int) -> Ensemble:
    """Make X + LPE-BSR: each member of X expanded into low precision members."""
    return lpe.Mixture(
        base,
        lambda net, first_member: lpe.LowPrecisionEnsemble(
            net, system, members, seed=seed, first_member=first_member
        ),
    )
