"""The unit that asks why an ensemble of roundings works, around the points of one training seed.

Two kinds of rows, each under a substrate's name of its own (see :func:`reproduce.study.beyond.names.shown`):

    "NETWORK, LAYER alone"   LPE-BSR that rounds one tensor and leaves the others: what does each layer cost,
                             and what does it bring?
    "NETWORK, noise"         every method whose members lie around a point, with the size of their noise: is
                             it the rounding that helps, or only noise of its size?

The noise of members w_m around the point w is relative to the weights, over all tensors that LPE-BSR rounds:

    sqrt( mean over m of ‖w_m − w‖² / ‖w‖² )

MC-dropout changes no weight. A mask multiplies the features that a layer reads by factors of mean 1 and
variance rate / (1 − rate), which comes to the same as multiplying the weights that read them: its noise is
sqrt(rate / (1 − rate)), the expectation of the above where every layer's input is masked.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.modules import dtype_name, named_tensors
from reproduce.study.beyond.names import BMA, LPE_BSR, MATCHED, NOISE, RTN, alone, dropped, noise_name, shown
from reproduce.study.beyond.tuning import beyond_of, masked_ensemble, noisy_ensemble, spread_ensemble
from reproduce.study.measurer import Measurer
from reproduce.study.scale import Data, Point, Substrate
from reproduce.study.session import Session
from reproduce.study.units import Unit, draw_seed

WHY_METRICS = ("nll", "average_loss", "ambiguity")
"""Of the whole ensemble."""
RELATIVE_NOISE = "relative_noise"
"""The metric that is the size of the members' noise, relative to the weights'."""
LAYER = "layer"
"""The metric that is a rounded tensor's place in the network, from 0."""
WEIGHTS = "weights"
"""The metric that is the number of a tensor's values."""


@dataclass(frozen=True)
class _Around:
    """A method whose members lie around a point.

    Args:
        method, number_system, rounding: the record's. make: the ensemble. noise: of its members, where it is
            known; None: it is told from their weights.
    """

    method: str
    number_system: str
    rounding: str
    make: Callable[[], Ensemble]
    noise: float | None = None


def points_of(substrate: Substrate, seed: int) -> list[str]:
    """List the points that there are at a training seed: the estimate first, then those with a posterior."""
    named = dict.fromkeys([substrate.estimate, *substrate.posteriors])
    return [name for name in named if seed < substrate.most_seeds.get(name, seed + 1)]


def measure_why(session: Session, unit: Unit) -> None:
    """Measure every layer rounded alone, and every method's loss, ambiguity and noise.

    Raises:
        InputError: the scale has no ``beyond``.
    """
    substrate = session.scale.substrates[unit.substrate]
    data: Data = substrate.source.load(unit.seed)
    for name in points_of(substrate, unit.seed):
        solution = substrate.point(session, name, unit.seed)
        if name == substrate.estimate:
            _measure_layers(session, unit, solution, data)
        _measure_noise(session, unit, solution, data)


def rounded_layers(net: nn.Module, system: lpe.Int) -> dict[str, int]:
    """Return the tensors that LPE-BSR rounds, in the network's order, and how many values each has."""
    plan = lpe.LowPrecisionEnsemble(net, system, 1).plan
    return {planned.name: planned.numel for planned in plan if planned.rounds}


def relative_noise(ensemble: Ensemble, net: nn.Module, names: Collection[str]) -> float:
    """Return the root mean square of the members' distance to a network, over the length of its weights.

    Args:
        names: of the tensors that count; every other is left out.
    """
    base = _weights(net, names)
    length = sum(float(weight.square().sum()) for weight in base.values())
    distances = []
    for member in ensemble.in_turn():
        moved = _weights(member, names)
        distances.append(sum(float((moved[name] - base[name]).square().sum()) for name in base))
        del member, moved  # the next one may take their memory
    return math.sqrt(sum(distances) / len(distances) / length)


def _weights(net: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {entry.name: entry.tensor.double() for entry in named_tensors(net) if entry.name in names}


def _measure_layers(session: Session, unit: Unit, solution: Point, data: Data) -> None:
    beyond, net = beyond_of(session), solution.net
    system = lpe.Int(session.scale.settings.best_bits)
    layers = rounded_layers(net, system)
    with session.progress(len(layers), f"seed {unit.seed}: layers") as bar:
        for place, (name, weights) in enumerate(layers.items()):
            writer = Measurer(session, unit, solution.name, shown(unit.substrate, alone(name)))

            def make(name: str = name) -> Ensemble:
                return lpe.LowPrecisionEnsemble(
                    net,
                    system,
                    beyond.sensitivity,
                    draw_seed(unit.seed, 0),
                    include=glob.escape(name),
                    batches=data.statistics,
                )

            further = {LAYER: float(place), WEIGHTS: float(weights)}
            method = _Around(LPE_BSR, system.name, "bernoulli", make)
            _write(writer, method, solution, data, layers, further)
            bar.update()


def _measure_noise(session: Session, unit: Unit, solution: Point, data: Data) -> None:
    layers = rounded_layers(solution.net, lpe.Int(session.scale.settings.best_bits))
    writer = Measurer(session, unit, solution.name, shown(unit.substrate, NOISE))
    is_estimate = solution.name == session.scale.substrates[unit.substrate].estimate
    around = [*_single(solution), *_posterior(session, unit, solution)]
    around += _around(session, unit, solution.net, data) if is_estimate else []
    with session.progress(len(around), f"seed {unit.seed}: noise around {solution.name}") as bar:
        for method in around:
            bar.set_postfix_str(method.method)
            _write(writer, method, solution, data, layers)
            bar.update()


def _single(solution: Point) -> Iterator[_Around]:
    name = dtype_name(solution.net)
    yield _Around(name, name.lower(), "", lambda: lpe.DeepEnsemble([solution.net]), noise=0.0)


def _posterior(session: Session, unit: Unit, solution: Point) -> Iterator[_Around]:
    posterior, size = solution.posterior, beyond_of(session).size
    if posterior is not None:
        yield _Around(BMA, "fp32", "", lambda: posterior(size, draw_seed(unit.seed, 0)))


def _around(session: Session, unit: Unit, net: nn.Module, data: Data) -> Iterator[_Around]:
    """Yield the methods around the point estimate that need no training, each over its settings."""
    beyond, statistics, seed = beyond_of(session), data.statistics, draw_seed(unit.seed, 0)
    size, bits = beyond.size, beyond.spread_bits
    for system in map(lpe.Int, session.scale.settings.bits):

        def rounded(system: lpe.Int = system) -> Ensemble:
            return lpe.LowPrecisionEnsemble(net, system, size, seed, batches=statistics)

        def nearest(system: lpe.Int = system) -> Ensemble:
            return lpe.LowPrecisionEnsemble(net, system, 1, seed, "nearest", batches=statistics)

        def matched(system: lpe.Int = system) -> Ensemble:
            return lpe.GaussianEnsemble(net, system, size, seed, batches=statistics)

        yield _Around(LPE_BSR, system.name, "bernoulli", rounded)
        yield _Around(RTN, system.name, "nearest", nearest)
        yield _Around(MATCHED, system.name, "", matched)
    for spread, std, rate in zip(beyond.spreads, beyond.stds, beyond.rates, strict=True):

        def spread_out(spread: float = spread) -> Ensemble:
            return spread_ensemble(net, bits, spread, size, seed, statistics)

        def with_noise(std: float = std) -> Ensemble:
            return noisy_ensemble(net, bits, std, size, seed, statistics)

        def masked(rate: float = rate) -> Ensemble:
            return masked_ensemble(net, bits, rate, size, seed, statistics)

        yield _Around(LPE_BSR, lpe.Int(bits, spread=spread).name, "bernoulli", spread_out)
        yield _Around(noise_name(std), "fp32", "", with_noise)
        yield _Around(dropped(rate), "fp32", "", masked, noise=math.sqrt(rate / (1 - rate)))


def _write(
    writer: Measurer,
    method: _Around,
    solution: Point,
    data: Data,
    layers: Collection[str],
    further: Mapping[str, float] | None = None,
) -> None:
    """Keep a method's rows, of its whole ensemble, where the record lacks them."""
    named = (method.method, method.number_system, method.rounding)
    if not writer.lacks(*named):
        return
    ensemble = method.make()
    whole = data.scored.evaluate(ensemble, ()).iloc[-1]
    noise = method.noise
    if noise is None:
        noise = relative_noise(ensemble, solution.net, layers)
    values = {metric: float(whole[metric]) for metric in WHY_METRICS}
    values |= {RELATIVE_NOISE: noise, **(further or {})}
    costs = {"memory_bits": ensemble.memory_bits(), "backward_passes": solution.backward_passes}
    writer.add(
        *named,
        [
            {"size": len(ensemble), "metric": metric, "value": value, **costs}
            for metric, value in values.items()
        ],
    )
