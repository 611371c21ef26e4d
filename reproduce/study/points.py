"""Points: recipes of a solution, each with its training. Fine-tuning by SGD, SWAG and IVON.

Trained weights come out of the store where they are already there. The key of an entry holds everything that
determines it: the recipe, the source with its data, the seed, what it starts from, the code that trains, the
versions of the packages which that code imports, the kind of device and the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lpe.ensembles.ivon import IVONEnsemble, forgetting_std, posterior_std
from lpe.ensembles.swag import SWAGCollector, SWAGEnsemble, SWAGStatistics
from lpe.evaluation.curvature import fisher_diagonal
from lpe.extras import needs
from lpe.number_systems.streams import generator
from lpe.store import Entry
from lpe.training.loop import train
from lpe.training.roots import as_everywhere
from lpe.training.schedules import then_constant, warmup_cosine
from reproduce.study.keys import determinants
from reproduce.study.run import Run
from reproduce.study.scale import Point, Split, Started, Substrate, Trainable, bare, digest_of, held

REPLICAS = 1_000_000
"""Distance between the seeds of two fine-tunings of one training seed: above any number of seeds."""

Report = Callable[[Mapping[str, float]], None]
Fit = Callable[[Report], tuple[dict[str, Tensor], dict[str, Any]]]


def fine_tuning_seed(seed: int, replica: int) -> int:
    """Return the seed of a fine-tuning's head and data order; replica 0 has the training seed itself."""
    return seed + REPLICAS * replica


def config_of(
    run: Run,
    substrate: Substrate,
    phase: str,
    seed: int,
    recipe: object,
    start: Mapping[str, object] | None,
    *roots: Any,
    replica: int = 0,
) -> dict[str, object]:
    """Return all that determines a training.

    Args:
        start: all that determines what it starts from. roots: the functions that train, beside the recipe's
            and the source's classes.
    """
    run.recipes.add((substrate.name, type(recipe)))
    return {
        "phase": phase,
        "source": substrate.source,
        "recipe": recipe,
        "seed": seed,
        "replica": replica,
        "start": start,
        **determinants(
            *roots,
            type(recipe),
            bare(substrate.source),
            *held(recipe),
            *held(substrate.source),
            data=digest_of(substrate.source, seed),
            device=run.device,
            threads=run.threads,
        ),
    }


def trained(run: Run, config: Mapping[str, object], epochs: int, fit: Fit) -> Entry:
    """Return the entry of a training: stored, or made by ``fit`` with a progress bar and its curve in W&B."""
    replica = f" {config['replica']}" if config["replica"] else ""
    phase = f"{config['phase']}{replica}"
    label = f"seed {config['seed']}: {phase}"

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        with run.progress(epochs, label) as bar:

            def report(row: Mapping[str, float]) -> None:
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                named = {f"{phase}/seed {config['seed']}/{key}": row[key] for key in row}
                run.tracker.log(named)

            return fit(report)

    return run.store.get_or_make(config, make, run.device)


def started(run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Started:
    """Return what a training starts from: the substrate's start, or a freshly initialised network."""
    if substrate.start is not None:
        return substrate.start.start(run, substrate, seed, replica)
    source: Trainable = substrate.source
    return Started(source.network(source.classes, fine_tuning_seed(seed, replica)), 0, None)


def training_examples(substrate: Substrate, seed: int) -> Split:
    """Return the training examples of a seed."""
    split = substrate.source.load(seed).train
    assert split is not None
    return split


def loaded(substrate: Substrate, seed: int, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with these weights, in eval mode."""
    source: Trainable = substrate.source
    net = source.network(source.classes, seed)
    net.load_state_dict(dict(weights))
    return net.eval()


def sgd_optimizer(
    net: nn.Module, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """Make SGD with momentum and weight decay."""
    return torch.optim.SGD(
        net.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True
    )


@dataclass(frozen=True)
class SGDTraining:
    """Fine-tuning by SGD with momentum, warm-up and cosine: the point estimate."""

    epochs: int
    batch: int
    learning_rate: float
    momentum: float
    weight_decay: float
    clip_norm: float | None

    has_posterior: ClassVar[bool] = False

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return the point estimate of SGD."""
        begun = started(run, substrate, seed, replica)
        net, order = begun.net, fine_tuning_seed(seed, replica)

        def fit(report: Report) -> tuple[dict[str, Tensor], dict[str, Any]]:
            split = training_examples(substrate, seed)
            batches = substrate.source.batches(split, self.batch, order)
            steps = self.epochs * (len(split[0]) // self.batch)
            schedule = warmup_cosine(self.learning_rate, steps)
            optimizer = sgd_optimizer(net, self.learning_rate, self.momentum, self.weight_decay)
            done = train(net, batches, optimizer, schedule, self.epochs, order, self.clip_norm, report=report)
            return net.state_dict(), {
                "backward_passes": begun.backward_passes + done.backward_passes,
                "pre_training_passes": begun.backward_passes,
                "last_loss": done.curve[-1]["loss"],
            }

        config = config_of(run, substrate, "SGD", seed, self, begun.key, replica=replica)
        entry = trained(run, config, self.epochs, fit)
        net = loaded(substrate, seed, entry.tensors)
        return Point("SGD", net, None, entry.info["backward_passes"], entry.info)


@dataclass(frozen=True)
class SWAGTraining:
    """SGD's fine-tuning that goes over to a constant learning rate and collects an iterate an epoch."""

    sgd: SGDTraining
    start_epoch: int
    learning_rate: float
    rank: int
    scale: float

    has_posterior: ClassVar[bool] = True

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return SWAG's mean and posterior."""
        sgd = self.sgd
        SWAGCollector(self.rank, self.start_epoch).check(sgd.epochs)
        begun = started(run, substrate, seed, replica)
        net, order = begun.net, fine_tuning_seed(seed, replica)

        def fit(report: Report) -> tuple[dict[str, Tensor], dict[str, Any]]:
            split = training_examples(substrate, seed)
            batches = substrate.source.batches(split, sgd.batch, order)
            switch = self.start_epoch * (len(split[0]) // sgd.batch)
            falling = warmup_cosine(sgd.learning_rate, switch, final=self.learning_rate)
            schedule = then_constant(falling, switch, self.learning_rate)
            collector = SWAGCollector(self.rank, self.start_epoch)
            optimizer = sgd_optimizer(net, sgd.learning_rate, sgd.momentum, sgd.weight_decay)
            done = train(
                net,
                batches,
                optimizer,
                schedule,
                sgd.epochs,
                order,
                sgd.clip_norm,
                report=report,
                collector=collector,
            )
            return collector.statistics().tensors(), {
                "backward_passes": begun.backward_passes + done.backward_passes,
                "pre_training_passes": begun.backward_passes,
                "last_loss": done.curve[-1]["loss"],
                "collected": collector.collected,
            }

        config = config_of(run, substrate, "SWAG", seed, self, begun.key, replica=replica)
        entry = trained(run, config, sgd.epochs, fit)
        statistics = SWAGStatistics.from_tensors(entry.tensors)
        source = substrate.source
        template = source.network(source.classes, seed).eval()
        refreshing = source.load(seed).statistics

        def posterior(size: int, draw_seed: int) -> SWAGEnsemble:
            return SWAGEnsemble(template, statistics, size, draw_seed, self.scale, batches=refreshing)

        net = posterior(1, 0).point()
        return Point("SWAG", net, posterior, entry.info["backward_passes"], entry.info)


CURVATURE_NETWORKS = 4
CURVATURE_EXAMPLES = 64
"""Networks and examples of each that a curvature is measured on: about a second for a small network."""


def mean_curvature(networks: Sequence[nn.Module], examples: Tensor, seed: int) -> Tensor:
    """Return the mean loss's curvature along each weight, [weights]: networks' mean Fisher diagonal.

    Each network is measured on CURVATURE_EXAMPLES training examples of its own, as they are.
    """
    order = torch.randperm(len(examples), generator=generator("curvature", seed, "", 0), device="cpu")
    diagonals = []
    for index, net in enumerate(networks):
        places = torch.arange(index * CURVATURE_EXAMPLES, (index + 1) * CURVATURE_EXAMPLES) % len(examples)
        fisher = fisher_diagonal(net, examples[order[places]], seed)
        diagonals.append(torch.cat([value.flatten() for value in fisher.values()]))
    return torch.stack(diagonals).mean(dim=0)


@dataclass(frozen=True)
class IVONTraining:
    """Fine-tuning by IVON with warm-up and cosine.

    Args:
        temperature: ess is the number of training examples over it; 1 is the posterior, less a colder one.
    """

    epochs: int
    batch: int
    learning_rate: float
    hess_init: float
    beta1: float
    beta2: float
    temperature: float
    weight_decay: float

    has_posterior: ClassVar[bool] = True

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return IVON's mean and posterior.

        Its information says whether the posterior was learnt, by medians over weights:
        ``std_over_forgetting`` is the std over the one that h0 alone would have left, ``std_over_expected``
        over 1/√(ess·(F + wd)), F the Fisher diagonal of draws.
        """
        begun = started(run, substrate, seed, replica)
        net, order = begun.net, fine_tuning_seed(seed, replica)
        refreshing = substrate.source.load(seed).statistics

        def fit(report: Report) -> tuple[dict[str, Tensor], dict[str, Any]]:
            needs("ivon")

            import ivon

            split = training_examples(substrate, seed)
            batches = substrate.source.batches(split, self.batch, order)
            steps = self.epochs * (len(split[0]) // self.batch)
            ess = len(split[0]) / self.temperature
            optimizer = ivon.IVON(
                net.parameters(),
                lr=self.learning_rate,
                ess=ess,
                hess_init=self.hess_init,
                beta1=self.beta1,
                beta2=self.beta2,
                weight_decay=self.weight_decay,
            )
            schedule = warmup_cosine(self.learning_rate, steps)
            with as_everywhere():
                done = train(net, batches, optimizer, schedule, self.epochs, order, report=report)
            std = posterior_std(optimizer, net)
            learnt = torch.cat([value.flatten() for value in std.values()])
            draws = IVONEnsemble(net, std, CURVATURE_NETWORKS, order, batches=refreshing)
            expected = 1 / (ess * (mean_curvature(draws, split[0], order) + self.weight_decay)).sqrt()
            forgetting = forgetting_std(self.hess_init, self.beta2, self.weight_decay, ess, steps)
            tensors = {f"mean/{name}": value for name, value in net.state_dict().items()}
            tensors |= {f"std/{name}": value for name, value in std.items()}
            return tensors, {
                "backward_passes": begun.backward_passes + done.backward_passes,
                "pre_training_passes": begun.backward_passes,
                "last_loss": done.curve[-1]["loss"],
                "median_posterior_std": float(learnt.median()),
                "std_over_forgetting": float(learnt.median()) / forgetting,
                "std_over_expected": float((learnt / expected).median()),
            }

        config = config_of(run, substrate, "IVON", seed, self, begun.key, replica=replica)
        entry = trained(run, config, self.epochs, fit)
        mean, std = part_of(entry, "mean"), part_of(entry, "std")
        net = loaded(substrate, seed, mean)

        def posterior(size: int, draw_seed: int) -> IVONEnsemble:
            return IVONEnsemble(net, std, size, draw_seed, batches=refreshing)

        return Point("IVON", net, posterior, entry.info["backward_passes"], entry.info)


def part_of(entry: Entry, part: str) -> dict[str, Tensor]:
    """Return the tensors that a stored entry holds under "part/"."""
    named = (key.split("/", 1) for key in entry.tensors)
    return {name: entry.tensors[f"{part}/{name}"] for head, name in named if head == part}
