"""What each method says of a posterior that is known (``known_answer``): its ensemble's spread.

The regressions are outputs of one nn.Linear without bias, and the methods are the library's own on it:

    SGLD            at a constant rate, on the gradient of all examples; members many steps apart
    CSGLD           cyclical SGLD, likewise; members in the later part of each cycle
    IVON            draws of the mean and std that it learns, on the gradient of all examples
    SWAG            draws around SGD at a constant rate, on small batches of examples drawn with replacement
    LPE-BSR         roundings of the posterior's maximum
    matched noise   Gaussian noise of BSR's variance, weight by weight, on the maximum

All start at the maximum. A recipe is the same for every N. A seed's regressions are a network of their own,
under one scale, of which each method makes an ensemble. Only the trainings run side by side, as one wide
layer: no two regressions share a weight. So what a seed draws depends on how many are trained beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ivon
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.cyclical_sgld import SamplingStage, StageCollector
from lpe.ensembles.ivon import forgetting_std
from lpe.ensembles.swag import SWAGStatistics
from lpe.number_systems.streams import generator
from lpe.training.roots import as_everywhere
from lpe.training.schedules import cyclical_cosine, warmup_cosine
from reproduce.study.known_answer import Array, Counted, Labelled, tensor

BSR, MATCHED = "LPE-BSR", "matched noise"


@dataclass(frozen=True)
class Langevin:
    """SGLD's settings.

    Args:
        learning_rate: constant, of the mean loss's gradient. steps: of the run, each with noise.
        members: the weights after its last step, and before at every ``spacing`` steps.
    """

    learning_rate: float
    steps: int
    members: int
    spacing: int


@dataclass(frozen=True)
class CyclicalLangevin:
    """CSGLD's settings: the rate at a cycle's start, the cycles of the run, and how each ends in samples."""

    peak: float
    cycles: int
    stage: SamplingStage


@dataclass(frozen=True)
class Variational:
    """IVON's settings, named as in ``ivon-opt``; steps of the run, and members drawn."""

    learning_rate: float
    hess_init: float
    beta1: float
    beta2: float
    steps: int
    members: int


@dataclass(frozen=True)
class Averaging:
    """SWAG's settings.

    Args:
        learning_rate: constant. batch: examples. steps: between iterates. iterates: collected.
        rank: deviations kept. scale: of the covariance. members: drawn.
    """

    learning_rate: float
    batch: int
    steps: int
    iterates: int
    rank: int
    scale: float
    members: int


@dataclass(frozen=True)
class Rounding:
    """LPE-BSR's bit widths, those with matched noise beside them, and members drawn of each."""

    bits: tuple[int, ...]
    matched: tuple[int, ...]
    members: int


@dataclass(frozen=True)
class Recipes:
    """The settings of all methods."""

    sgld: Langevin
    csgld: CyclicalLangevin
    ivon: Variational
    swag: Averaging
    rounding: Rounding


Batch = tuple[tuple[Tensor, Tensor], Tensor]
"""(inputs [n, 2], share of the examples at each [n]), share of those with label 1 [n, regressions]."""


def network(weights: Tensor) -> nn.Linear:
    """Return the network of weights [regressions, 2]: inputs [n, 2] → logits [n, regressions]."""
    net = nn.Linear(2, len(weights), bias=False)
    with torch.no_grad():
        net.weight.copy_(weights)
    return net.eval()


def loss_of(net: nn.Module) -> Callable[[tuple[Tensor, Tensor], Tensor], Tensor]:
    """Return a loss: the sum over regressions of the mean over examples of −log p(label)."""

    def loss(inputs: tuple[Tensor, Tensor], ones: Tensor) -> Tensor:
        where, shares = inputs
        logits = net(where)
        return (shares @ F.softplus(logits)).sum() - (ones * logits).sum()

    return loss


def whole(data: Counted) -> Batch:
    """Return all examples as one batch."""
    shares = data.counts / data.examples
    return (tensor(data.inputs), tensor(shares)), tensor(data.ones / data.examples)


def weight_decay(prior_std: float, examples: int) -> float:
    """Return the weight decay that is the Gaussian prior: 1/(prior variance · N)."""
    return 1 / (prior_std**2 * examples)


def sgld(data: Counted, point: Tensor, recipe: Langevin) -> list[Tensor]:
    """Return SGLD's members, each the weights of all regressions [regressions, 2]."""
    net = network(point)
    collector = StageCollector(SamplingStage(recipe.steps, recipe.steps, recipe.members, recipe.spacing))
    decay = weight_decay(data.prior_std, data.examples)
    optimizer = lpe.SGLD(net.parameters(), recipe.learning_rate, data.examples, weight_decay=decay)
    batches = [whole(data)] * recipe.steps
    lpe.train(net, batches, optimizer, recipe.learning_rate, 1, collector=collector, loss=loss_of(net))
    return [sample["weight"] for sample in collector.samples]


def cyclical_sgld(data: Counted, point: Tensor, recipe: CyclicalLangevin) -> list[Tensor]:
    """Return cyclical SGLD's members, each the weights of all regressions [regressions, 2]."""
    net, stage = network(point), recipe.stage
    collector = StageCollector(stage)
    decay = weight_decay(data.prior_std, data.examples)
    optimizer = lpe.SGLD(net.parameters(), recipe.peak, data.examples, weight_decay=decay, noise=stage.noise)
    rate = cyclical_cosine(recipe.peak, stage.steps_per_cycle)
    batches = [whole(data)] * stage.steps_per_cycle
    lpe.train(net, batches, optimizer, rate, recipe.cycles, collector=collector, loss=loss_of(net))
    return [sample["weight"] for sample in collector.samples]


def variational(data: Counted, point: Tensor, recipe: Variational) -> tuple[Tensor, Tensor, float]:
    """Return IVON's mean and std, each [regressions, 2], and the std that h0's decay alone would have left.

    The posterior is learnt where the std is far from the last.
    """
    net, decay = network(point), weight_decay(data.prior_std, data.examples)
    optimizer = ivon.IVON(
        net.parameters(),
        lr=recipe.learning_rate,
        ess=data.examples,
        hess_init=recipe.hess_init,
        beta1=recipe.beta1,
        beta2=recipe.beta2,
        weight_decay=decay,
    )
    batches, rate = [whole(data)] * recipe.steps, warmup_cosine(recipe.learning_rate, recipe.steps)
    with as_everywhere():
        lpe.train(net, batches, optimizer, rate, epochs=1, loss=loss_of(net))
    std = lpe.posterior_std(optimizer, net)["weight"]
    left = forgetting_std(recipe.hess_init, recipe.beta2, decay, data.examples, recipe.steps)
    return net.weight.detach(), std, left


def averaged(data: Labelled, examples: int, point: Tensor, recipe: Averaging) -> SWAGStatistics:
    """Return SWAG's statistics of all regressions, around SGD on the first so many examples."""
    net, collector = network(point), lpe.SWAGCollector(recipe.rank)
    where, shares = tensor(data.inputs), torch.full((recipe.batch,), 1 / recipe.batch)

    def batches(epoch: int) -> Iterator[Batch]:
        draws = generator("known batches", 0, "", epoch)
        for _ in range(recipe.steps):
            chosen = torch.randint(examples, (recipe.batch,), generator=draws).numpy()
            ones = torch.from_numpy(data.labels[chosen]).float() / recipe.batch
            yield (where[torch.from_numpy(data.site[chosen])], shares), ones

    decay = weight_decay(data.prior_std, examples)
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.learning_rate, weight_decay=decay)
    lpe.train(
        net,
        batches,
        optimizer,
        recipe.learning_rate,
        recipe.iterates,
        collector=collector,
        loss=loss_of(net),
    )
    return collector.statistics()


def ensembles(
    data: Labelled, examples: int, point: Array, recipes: Recipes, regressions: int
) -> tuple[dict[tuple[str, str], list[Ensemble]], dict[str, float]]:
    """Make every method's ensembles, on the first so many examples.

    Args:
        point: where all start, [seeds · regressions, 2]. regressions: of a seed.

    Returns:
        (method, number system or "") → an ensemble a seed; and the geometric mean of IVON's stds, with the
        one that h0's decay alone would have left.
    """
    counted, start = data.counted(examples), tensor(point)
    parts = [slice(first, first + regressions) for first in range(0, len(start), regressions)]
    nets = [network(start[part]) for part in parts]
    made: dict[tuple[str, str], list[Ensemble]] = {}
    for name, samples in (
        ("SGLD", sgld(counted, start, recipes.sgld)),
        ("CSGLD", cyclical_sgld(counted, start, recipes.csgld)),
    ):
        made[name, ""] = [
            lpe.CyclicalSGLDEnsemble(net, [{"weight": sample[part]} for sample in samples])
            for net, part in zip(nets, parts, strict=True)
        ]
    mean, std, left = variational(counted, start, recipes.ivon)
    made["IVON", ""] = [
        lpe.IVONEnsemble(network(mean[part]), {"weight": std[part]}, recipes.ivon.members, seed)
        for seed, part in enumerate(parts)
    ]
    swag = averaged(data, examples, start, recipes.swag)
    made["SWAG", ""] = [
        lpe.SWAGEnsemble(net, _part(swag, part), recipes.swag.members, seed, recipes.swag.scale)
        for seed, (net, part) in enumerate(zip(nets, parts, strict=True))
    ]
    members = recipes.rounding.members
    for bits in recipes.rounding.bits:
        # One scale for a seed's weights: with one an output the larger of two would always lie on the grid.
        system = lpe.Int(bits, lpe.PerTensor())
        made[BSR, f"int{bits}"] = [
            lpe.LowPrecisionEnsemble(net, system, members, seed) for seed, net in enumerate(nets)
        ]
        if bits in recipes.rounding.matched:
            made[MATCHED, f"int{bits}"] = [
                lpe.GaussianEnsemble(net, system, members, seed) for seed, net in enumerate(nets)
            ]
    return made, {"std": math.exp(float(std.log().mean())), "std_of_decayed_h0": left}


def _part(statistics: SWAGStatistics, part: slice) -> SWAGStatistics:
    return SWAGStatistics(
        mean={"weight": statistics.mean["weight"][part]},
        variance={"weight": statistics.variance["weight"][part]},
        deviations={"weight": statistics.deviations["weight"][:, part]},
    )


@torch.no_grad()
def spread(ensemble: Ensemble, inputs: Array) -> Array:
    """Return the std over members of the logits, root mean square over the regressions: [inputs]."""
    where = tensor(inputs)
    logits = torch.stack([member(where) for member in ensemble]).double()
    return np.asarray(np.sqrt(logits.var(dim=0).mean(dim=1).numpy()))
