"""The methods that are compared under shift, out of distribution and with abstention, at one training seed.

All have ``Beyond.size`` members, but for those of one network and for DE, which has its own. What has a
setting is tuned on the tuning examples (:mod:`reproduce.study.beyond.tuning`). Where there are batch-norm
statistics, members that change weights have theirs re-estimated, RTN too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import lpe
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.modules import dtype_name
from reproduce.study.beyond.names import (
    AUGMENTATION,
    BMA,
    FEEDBACK,
    GAUSSIAN,
    LAPLACE,
    LPE_BSR,
    MC_DROPOUT,
    RTN,
    SELECTED,
    TUNED_SPREAD,
    Method,
)
from reproduce.study.beyond.tuning import (
    beyond_of,
    laplace,
    masked_ensemble,
    noisy_ensemble,
    selected,
    spread_ensemble,
    training_batches,
    tuned,
)
from reproduce.study.cost_units import DEEP
from reproduce.study.scale import Data, Point, Substrate
from reproduce.study.session import Session
from reproduce.study.units import Unit, draw_seed

MARGIN_SHARE = 8
"""Test-time augmentation crops out of a margin of this part of an image's height: 4 pixels of 32."""

PROBED = 8
"""Training examples by which it is told whether a network ends in a linear layer."""

Make = Callable[[], Ensemble]


def trained(substrate: Substrate, seed: int) -> list[str]:
    """List the trainings of a training seed that methods are built on: points, and DE.

    The point estimate comes first; rounding, noise and the like start from it.
    """
    named = dict.fromkeys([substrate.estimate, *substrate.posteriors, *({DEEP} & substrate.families.keys())])
    return [name for name in named if seed < substrate.most_seeds.get(name, seed + 1)]


def methods(session: Session, unit: Unit) -> dict[Method, Make]:
    """Return the methods of a training seed that a substrate can offer, each with what makes its ensemble.

    Nothing is tuned before the ensemble is made that needs it. Ensembles have their training budgets set.

    Args:
        unit: its substrate and seed count.

    Raises:
        InputError: the scale has no ``beyond``; the seed has no point estimate.
    """
    substrate, seed = session.scale.substrates[unit.substrate], unit.seed
    there = trained(substrate, seed)
    if substrate.estimate not in there:
        raise InputError(f"{unit} has no {substrate.estimate} network; give fewer seeds")
    solution = substrate.point(session, substrate.estimate, seed)
    made = _around(session, substrate, seed, solution)
    for name in there:
        if name in substrate.families:
            made[Method(name, name, "fp32", "")] = partial(_family, session, substrate, name, seed)
        elif name in substrate.posteriors:
            drawn = partial(_drawn, session, substrate, name, seed)
            made[Method(name, BMA, "fp32", "")] = drawn
    return made


def backward_passes(session: Session, substrate: Substrate, seed: int, name: str, size: int) -> int:
    """Return the gradient evaluations behind the first members of what is built on a point, or on DE.

    Args:
        name: one of :func:`trained`. size: members.
    """
    if name in substrate.families:
        return _family(session, substrate, name, seed).backward_passes(size) or 0
    return substrate.point(session, name, seed).backward_passes


def chosen_settings(session: Session, substrate: Substrate, seed: int) -> dict[Method, float]:
    """Return the tuned settings of the methods that start from the point estimate.

    They are the spread, the std in the weights' unit, the rate, and the prior precision of last-layer Laplace
    where the substrate can offer it.
    """
    beyond, point = beyond_of(session), substrate.point(session, substrate.estimate, seed)
    found, unrounded = tuned(session, substrate, seed), dtype_name(point.net).lower()

    def of(method: str, system: str, rounding: str) -> Method:
        return Method(substrate.estimate, method, system, rounding)

    chosen = {
        of(TUNED_SPREAD, lpe.Int(beyond.spread_bits).name, "bernoulli"): found.spread,
        of(GAUSSIAN, unrounded, ""): found.std,
        of(MC_DROPOUT, unrounded, ""): found.rate,
    }
    data: Data = substrate.source.load(seed)
    if data.train is not None and _ends_in_a_linear_layer(point, data):
        chosen[of(LAPLACE, unrounded, "")] = laplace(session, substrate, seed, point.net)[1]
    return chosen


def _around(session: Session, substrate: Substrate, seed: int, solution: Point) -> dict[Method, Make]:
    """Return the methods that start from the point estimate."""
    beyond, bits = beyond_of(session), session.scale.settings.best_bits
    net, draws, size = solution.net, draw_seed(seed, 0), beyond_of(session).size
    data: Data = substrate.source.load(seed)
    statistics = data.statistics
    integers, named = lpe.Int(bits), dtype_name(net)
    unrounded = named.lower()

    def rounded(system: lpe.Int, members: int, rounding: str) -> Ensemble:
        return lpe.LowPrecisionEnsemble(net, system, members, draws, rounding, batches=statistics)

    def spread() -> Ensemble:
        value = tuned(session, substrate, seed).spread
        return spread_ensemble(net, beyond.spread_bits, value, size, draws, statistics)

    def noisy(members: int) -> Ensemble:
        std = tuned(session, substrate, seed).std
        return noisy_ensemble(net, beyond.spread_bits, std, members, draws, statistics)

    def masked() -> Ensemble:
        rate = tuned(session, substrate, seed).rate
        return masked_ensemble(net, beyond.spread_bits, rate, size, draws, statistics)

    def best_rounded() -> Ensemble:
        pool = rounded(integers, beyond.pool, "bernoulli")
        return selected(session, substrate, seed, net, pool, {"of": integers.name}, lpe.LowPrecisionEnsemble)

    def best_noisy() -> Ensemble:
        about = {"of": "noise", "std": tuned(session, substrate, seed).std}
        return selected(session, substrate, seed, net, noisy(beyond.pool), about, noisy_ensemble)

    def augmented() -> Ensemble:
        height = data.validation[0][0].shape[-2]
        view = lpe.CropAndFlip(max(1, height // MARGIN_SHARE))
        return lpe.AugmentedEnsemble(net, beyond.views, draws, view)

    def last_layer() -> Ensemble:
        curvature, precision = laplace(session, substrate, seed, net)
        return lpe.LaplaceEnsemble(net, curvature, size, draws, prior_precision=precision)

    def fed_back(members: int, rounding: str) -> Ensemble:
        seen = training_batches(data, beyond.calibration)
        return lpe.FeedbackEnsemble(net, integers, members, seen, draws, rounding, statistics=statistics)

    clipped = lpe.Int(bits, clip="mse")
    here = substrate.estimate
    made: dict[Method, Make] = {
        Method(here, named, unrounded, ""): lambda: lpe.DeepEnsemble([net]),
        Method(here, RTN, integers.name, "nearest"): partial(rounded, integers, 1, "nearest"),
        Method(here, RTN, clipped.name, "nearest"): partial(rounded, clipped, 1, "nearest"),
        Method(here, LPE_BSR, integers.name, "bernoulli"): partial(rounded, integers, size, "bernoulli"),
        Method(here, LPE_BSR, integers.name, "coupled"): partial(rounded, integers, size, "coupled"),
        Method(here, TUNED_SPREAD, lpe.Int(beyond.spread_bits).name, "bernoulli"): spread,
        Method(here, f"{LPE_BSR}{SELECTED}", integers.name, "bernoulli"): best_rounded,
        Method(here, GAUSSIAN, unrounded, ""): partial(noisy, size),
        Method(here, f"{GAUSSIAN}{SELECTED}", unrounded, ""): best_noisy,
        Method(here, MC_DROPOUT, unrounded, ""): masked,
    }
    if beyond.views and _are_images(data):
        made[Method(here, AUGMENTATION, unrounded, "")] = augmented
    if data.train is not None:
        if _ends_in_a_linear_layer(solution, data):
            made[Method(here, LAPLACE, unrounded, "")] = last_layer
        for rounding, members in (("nearest", 1), ("bernoulli", size)):
            made[Method(here, FEEDBACK, integers.name, rounding)] = partial(fed_back, members, rounding)
    return {method: partial(_budgeted, make, solution.backward_passes) for method, make in made.items()}


def _budgeted(make: Make, backward_passes: int) -> Ensemble:
    """Return the ensemble with the budget of the one training that it is made of."""
    ensemble = make()
    ensemble.training_budget = backward_passes
    return ensemble


def _are_images(data: Data) -> bool:
    return all(inputs.dim() == 4 for inputs, _ in data.validation[:1])


def _ends_in_a_linear_layer(solution: Point, data: Data) -> bool:
    try:
        lpe.last_layer_curvature(solution.net, training_batches(data, PROBED))
    except InputError:
        return False
    return True


def _drawn(session: Session, substrate: Substrate, name: str, seed: int) -> Ensemble:
    """Return draws of a posterior."""
    solution = substrate.point(session, name, seed)
    assert solution.posterior is not None
    ensemble = solution.posterior(beyond_of(session).size, draw_seed(seed, 0))
    ensemble.training_budget = solution.backward_passes
    return ensemble


def _family(session: Session, substrate: Substrate, name: str, seed: int) -> Ensemble:
    return substrate.family(session, name, seed).make(draw_seed(seed, 0))
