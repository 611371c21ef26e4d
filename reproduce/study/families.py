"""Families: recipes of ensembles of several trained networks, each with its training; X + LPE-BSR; X by RTN.

Every training comes out of the store where it is already there; a cyclical run is stored cycle by cycle, so
that a run with fewer cycles is the beginning of one with more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.cyclical_sgld import SamplingStage, StageCollector
from lpe.store import Entry
from lpe.training.loop import train
from lpe.training.schedules import cyclical_cosine, then_constant, warmup_cosine
from lpe.training.sgld import SGLD, variance_share
from reproduce.study.points import (
    REPLICAS,
    Report,
    config_of,
    mean_curvature,
    part_of,
    sgd_optimizer,
    started,
    trained,
    training_examples,
)
from reproduce.study.run import Run
from reproduce.study.scale import Batch, Family, Point, Split, Substrate


@dataclass(frozen=True)
class DeepEnsembleTraining:
    """DE: trainings of one point from other heads and data orders; without a common start, from nothing.

    Args:
        of: the point's name.
    """

    of: str
    members: int

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return DE."""
        points = [substrate.point(run, self.of, seed, replica) for replica in range(self.members)]
        ensemble = lpe.DeepEnsemble([p.net for p in points], backward_passes=_costs(points))
        return Family("DE", lambda _: ensemble, draws=False, info={})


@dataclass(frozen=True)
class MultiPosteriorTraining:
    """MultiIVON or MultiSWAG: members drawn from several independent posteriors.

    Args:
        of: the point's name. members: posteriors. draws: of each.
    """

    of: str
    members: int
    draws: int

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return the mixture of the posteriors' draws."""
        points = [substrate.point(run, self.of, seed, replica) for replica in range(self.members)]

        def make(draw_seed: int) -> Ensemble:
            parts = []
            for replica, (solution, cost) in enumerate(zip(points, _costs(points), strict=True)):
                assert solution.posterior is not None
                part = solution.posterior(self.draws, draw_seed + REPLICAS * replica)
                part.training_budget = cost
                parts.append(part)
            return lpe.Mixture.of(parts)

        return Family(f"Multi{self.of}", make, draws=True, info={})


def _costs(points: list[Point]) -> list[int]:
    """List the backward passes that each point adds: the trunk, which they share, is the first one's."""
    return [p.backward_passes - (p.info["pre_training_passes"] if i else 0) for i, p in enumerate(points)]


FitCycle = Callable[
    [nn.Module, Split, Callable[[int], Iterable[Batch]], int, Report],
    tuple[dict[str, Tensor], dict[str, Any]],
]


def _cycles(
    run: Run,
    substrate: Substrate,
    seed: int,
    name: str,
    recipe: SnapshotTraining | CyclicalSGLDTraining,
    fit_cycle: FitCycle,
) -> tuple[list[Entry], nn.Module]:
    """Return the store's entries of a cyclical run, each cycle going on from the last, and the network.

    ``fit_cycle`` trains the network for one cycle, in place, and returns what to keep, and its information:
    the backward passes ("passes"), and more that is kept.
    """
    begun = started(run, substrate, seed)
    net, passes, before = begun.net, begun.backward_passes, begun.key
    entries = []
    for cycle in range(recipe.cycles):
        # A cycle does not depend on how many follow.
        so_far = replace(recipe, cycles=cycle + 1)
        config = config_of(run, substrate, name, seed, so_far, before, _cycles)

        def fit(
            report: Report, cycle: int = cycle, passes: int = passes
        ) -> tuple[dict[str, Tensor], dict[str, Any]]:
            split = training_examples(substrate, seed)
            whole_run = substrate.source.batches(split, recipe.batch, seed)

            def batches(epoch: int) -> Iterable[Batch]:
                # In another order in every cycle.
                return whole_run(cycle * recipe.epochs_per_cycle + epoch)

            kept, found = fit_cycle(net, split, batches, cycle, report)
            last = {f"last/{key}": value for key, value in net.state_dict().items()}
            info = {**found, "backward_passes": passes + found["passes"], "passes_before": passes}
            return {**last, **kept}, info

        entry = trained(run, config, recipe.epochs_per_cycle, fit)
        net.load_state_dict(part_of(entry, "last"))
        passes = entry.info["backward_passes"]
        before = config
        entries.append(entry)
    return entries, net.eval()


@dataclass(frozen=True)
class SnapshotTraining:
    """SSE: cycles of SGD with momentum, each a cosine from the peak to 0; a snapshot at the end of each."""

    cycles: int
    epochs_per_cycle: int
    batch: int
    learning_rate: float
    momentum: float
    weight_decay: float

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return SSE: snapshots at the ends of the cycles of one run."""

        def fit_cycle(
            net: nn.Module,
            split: Split,
            batches: Callable[[int], Iterable[Batch]],
            cycle: int,
            report: Report,
        ) -> tuple[dict[str, Tensor], dict[str, Any]]:
            steps = self.epochs_per_cycle * (len(split[0]) // self.batch)
            schedule = cyclical_cosine(self.learning_rate, steps)
            optimizer = sgd_optimizer(net, self.learning_rate, self.momentum, self.weight_decay)
            done = train(net, batches, optimizer, schedule, self.epochs_per_cycle, seed, report=report)
            return {}, {"passes": done.backward_passes}

        entries, net = _cycles(run, substrate, seed, "SSE", self, fit_cycle)
        ensemble = lpe.SnapshotEnsemble(net, [part_of(entry, "last") for entry in entries])
        ensemble.training_budget = [entry.info["backward_passes"] for entry in entries]
        return Family("SSE", lambda _: ensemble, draws=False, info={})


CURVATURES = (0.01, 0.1, 1.0)
"""Of the known quadratics at which a record says what share of the posterior's variance samples have."""


@dataclass(frozen=True)
class CyclicalSGLDTraining:
    """CSGLD: cycles of gradient descent without momentum, and then SGLD, which leaves samples.

    Args:
        sampling_steps: the last of a cycle, with noise. samples_per_cycle: the last at its end. spacing:
            steps between two samples.
        learning_rate: from which a cosine falls while a cycle explores. sampling_rate: to which it falls, and
            which stays.
        temperature: 1 is the posterior, less a colder one.
    """

    cycles: int
    epochs_per_cycle: int
    sampling_steps: int
    samples_per_cycle: int
    spacing: int
    batch: int
    learning_rate: float
    sampling_rate: float
    temperature: float
    weight_decay: float

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return CSGLD: samples from the ends of the cycles of one run.

        Its information, a mean over cycles, says whether samples have the posterior's spread:
        ``typical_curvature`` is the median over weights of the samples' Fisher diagonal plus the weight
        decay, ``variance_share`` by curvature the share of the posterior's variance that a cycle's own noise
        has brought about, in the mean over the cycle's samples.
        """
        an_epoch = len(training_examples(substrate, seed)[0]) // self.batch
        steps = self.epochs_per_cycle * an_epoch
        stage = SamplingStage(steps, self.sampling_steps, self.samples_per_cycle, self.spacing)

        def fit_cycle(
            net: nn.Module,
            split: Split,
            batches: Callable[[int], Iterable[Batch]],
            cycle: int,
            report: Report,
        ) -> tuple[dict[str, Tensor], dict[str, Any]]:
            collector = StageCollector(stage)
            optimizer = SGLD(
                net.parameters(),
                lr=self.learning_rate,
                examples=len(split[0]),
                temperature=self.temperature,
                weight_decay=self.weight_decay,
                noise=stage.noise,
                seed=seed + REPLICAS * cycle,
            )
            exploring = steps - self.sampling_steps
            falling = warmup_cosine(self.learning_rate, max(1, exploring), 0.0, self.sampling_rate)
            schedule = then_constant(falling, exploring, self.sampling_rate)
            done = train(
                net,
                batches,
                optimizer,
                schedule,
                self.epochs_per_cycle,
                seed,
                collector=collector,
                report=report,
            )
            samples = {
                f"sample {i}/{key}": value
                for i, sample in enumerate(collector.samples)
                for key, value in sample.items()
            }
            networks = lpe.CyclicalSGLDEnsemble(net, collector.samples)
            curvature = mean_curvature(networks, split[0], seed)
            return samples, {
                "passes": done.backward_passes,
                "sample_passes": collector.training_budget,
                "typical_curvature": float(curvature.median()) + self.weight_decay,
            }

        entries, net = _cycles(run, substrate, seed, "CSGLD", self, fit_cycle)
        samples, budget = [], []
        for entry in entries:
            for index, cost in enumerate(entry.info["sample_passes"]):
                samples.append(part_of(entry, f"sample {index}"))
                budget.append(entry.info["passes_before"] + cost)
        ensemble = lpe.CyclicalSGLDEnsemble(net, samples)
        ensemble.training_budget = budget
        typical = fmean(entry.info["typical_curvature"] for entry in entries)
        shares = {
            name: fmean(variance_share([self.sampling_rate] * count, at) for count in stage.noisy_steps)
            for name, at in {**{f"{at:g}": at for at in CURVATURES}, "typical": typical}.items()
        }
        info = {"typical_curvature": typical, "variance_share": shares}
        return Family("CSGLD", lambda _: ensemble, draws=False, info=info)


@dataclass(frozen=True)
class BatchEnsembleTraining:
    """BE: fine-tuning of shared weights and rank-1 fast weights together, every member on every example.

    Args:
        fast_factor: the fast weights' learning rate over the shared ones'. std: of the fast weights around 1.
        weight_decay: of the shared weights; 0 for the fast ones.
    """

    members: int
    epochs: int
    batch: int
    learning_rate: float
    fast_factor: float
    std: float
    momentum: float
    weight_decay: float

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return BE."""
        begun = started(run, substrate, seed)
        ensemble = lpe.BatchEnsemble(begun.net, self.members, seed=seed, std=self.std)

        def fit(report: Report) -> tuple[dict[str, Tensor], dict[str, Any]]:
            split = training_examples(substrate, seed)
            batches = substrate.source.batches(split, self.batch, seed)
            steps = self.epochs * (len(split[0]) // self.batch)
            fast = self.fast_factor * self.learning_rate
            optimizer = torch.optim.SGD(
                ensemble.parameter_groups(self.learning_rate, fast, self.weight_decay),
                lr=self.learning_rate,
                momentum=self.momentum,
                fused=True,
            )
            schedule = warmup_cosine(self.learning_rate, steps)
            done = train(
                ensemble.module,
                batches,
                optimizer,
                schedule,
                self.epochs,
                seed,
                report=report,
                loss=ensemble.loss,
            )
            # A step evaluates the gradient of one minibatch for every member.
            passes = begun.backward_passes + self.members * done.backward_passes
            return ensemble.module.state_dict(), {"backward_passes": passes}

        config = config_of(run, substrate, "BE", seed, self, begun.key)
        entry = trained(run, config, self.epochs, fit)
        ensemble.module.load_state_dict(entry.tensors)
        ensemble.module.eval()
        ensemble.training_budget = entry.info["backward_passes"]
        return Family("BE", lambda _: ensemble, draws=False, info={})


class _Stored(lpe.Mixture):
    """Members that are what is stored: there is nothing smaller from which they could be drawn."""

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of n stored members; storage makes no difference, as of a deep ensemble."""
        self._check_storage(n, storage)
        return super().memory_bits(n)


def stored_by_rtn(base: Ensemble, system: lpe.Int, statistics: Iterable[Any] | None = None) -> Ensemble:
    """Store each member of X in few bits: rounded to nearest, with scales and unrounded tensors of its own.

    Args:
        statistics: batches on which every member's batch-norm statistics are re-estimated; None: they stay.
    """
    return _Stored(
        base, lambda net, _: lpe.LowPrecisionEnsemble(net, system, 1, 0, "nearest", batches=statistics)
    )


def with_low_precision(
    base: Ensemble, system: lpe.Int, members: int, seed: int, statistics: Iterable[Any] | None = None
) -> Ensemble:
    """Make X + LPE-BSR: each member of X expanded into low precision members.

    Args:
        statistics: batches on which every member's batch-norm statistics are re-estimated; None: they stay.
    """
    return lpe.Mixture(
        base,
        lambda net, first_member: lpe.LowPrecisionEnsemble(
            net, system, members, seed=seed, first_member=first_member, batches=statistics
        ),
    )
