"""Each method's spread where the posterior is known, against closed forms; and faults that are caught."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.cyclical_sgld import SamplingStage
from reproduce import known
from reproduce.study import known_answer, known_methods
from reproduce.study.known_answer import Array, Counted, Design, Labelled
from reproduce.study.known_methods import Averaging, CyclicalLangevin, Langevin, Variational

# The thin axis is not so thin here, so that a second of SGLD is enough.
DESIGN = Design(sites=6, spreads=(1.0, 0.5), tilt=20.0, prior_std=1.0, regressions=8)
INPUTS = known_answer.directions(DESIGN, np.array([0.0, 45.0, 90.0, 135.0]))
MEMBERS = 2_000
SHORT = replace(
    known.RECIPES,
    sgld=Langevin(learning_rate=1.0, steps=110, members=10, spacing=10),
    csgld=CyclicalLangevin(peak=4.0, cycles=2, stage=SamplingStage(40, steps=20, samples=2, spacing=10)),
    ivon=replace(known.RECIPES.ivon, steps=50, members=10),
    swag=replace(known.RECIPES.swag, steps=10, iterates=4, rank=2, members=10),
)


@pytest.fixture(scope="module")
def data() -> Labelled:
    return known_answer.labelled(DESIGN, 100_000, 1)


def ensemble_of(samples: list[Tensor]) -> Ensemble:
    net = known_methods.network(samples[0])
    return lpe.CyclicalSGLDEnsemble(net, [{"weight": sample} for sample in samples])


# LPE-BSR and matched noise.


def check_variance_of_rounding(point: Tensor, ensemble: Ensemble) -> None:
    """Against Δ²·p(1 − p), Δ = max|w|/7, p the distance to the grid value below in steps.

    The variance of M draws has the relative standard error √(2/M), less over several regressions.
    """
    weights = point.double().numpy()
    step = abs(weights).max() / 7
    p = weights / step - np.floor(weights / step)
    variance = np.stack([np.diag(each) for each in step**2 * p * (1 - p)])
    expected = known_answer.spread_along(variance, INPUTS, DESIGN.regressions)[0] ** 2
    got = known_methods.spread(ensemble, INPUTS) ** 2
    assert (abs(got / expected - 1) < 5 * math.sqrt(2 / len(ensemble))).all()


def maximum(data: Labelled, examples: int) -> Tensor:
    return known_answer.tensor(known_answer.laplace(data.counted(examples))[0])


@pytest.mark.parametrize("method", [lpe.LowPrecisionEnsemble, lpe.GaussianEnsemble])
def test_the_variance_of_rounding_is_the_steps_squared_times_p_times_1_minus_p(
    data: Labelled, method: Callable[..., Ensemble]
) -> None:
    point = maximum(data, 1_000)
    system = lpe.Int(4, lpe.PerTensor())
    check_variance_of_rounding(point, method(known_methods.network(point), system, MEMBERS))


@pytest.mark.parametrize("system", [lpe.Int(4), lpe.Int(5, lpe.PerTensor())])
def test_another_scale_or_width_is_caught(data: Labelled, system: lpe.Int) -> None:
    point = maximum(data, 1_000)
    ensemble = lpe.LowPrecisionEnsemble(known_methods.network(point), system, MEMBERS)
    with pytest.raises(AssertionError):
        check_variance_of_rounding(point, ensemble)


def spreads(data: Labelled, examples: int, point: Array) -> dict[tuple[str, str], Array]:
    made, _ = known_methods.ensembles(data, examples, point, SHORT, DESIGN.regressions)
    return {method: known_methods.spread(of_seeds[0], INPUTS) for method, of_seeds in made.items()}


def test_given_the_weights_rounding_is_blind_to_n_and_the_others_but_swag_are_not(data: Labelled) -> None:
    point, _ = known_answer.laplace(data.counted(1_000))
    few, many = (spreads(data, examples, point) for examples in (30, 100_000))
    blind = {method for method in few if method[0] in (known_methods.BSR, known_methods.MATCHED)}
    assert len(blind) == 4
    for method in few:
        if method in blind:
            assert (few[method] == many[method]).all()
        elif method != ("SWAG", ""):
            assert (few[method] > 5 * many[method]).all()


def test_a_seeds_weights_share_one_step_and_swag_has_its_recipes_scale(data: Labelled) -> None:
    point, _ = known_answer.laplace(data.counted(30))
    recipes = replace(SHORT, swag=replace(SHORT.swag, scale=0.25))
    made, _ = known_methods.ensembles(data, 30, point, recipes, DESIGN.regressions)
    (rounding,), (swag,) = made[known_methods.BSR, "int4"], made["SWAG", ""]
    assert isinstance(rounding, lpe.LowPrecisionEnsemble) and rounding.scales("weight").numel() == 1
    assert isinstance(swag, lpe.SWAGEnsemble) and swag.scale == 0.25


def test_each_seed_has_the_weights_of_its_regressions_and_draws_of_its_own() -> None:
    two = known_answer.labelled(DESIGN, 30, 2)
    point, _ = known_answer.laplace(two.counted(30))
    made, _ = known_methods.ensembles(two, 30, point, SHORT, DESIGN.regressions)
    for (name, _), of_seeds in made.items():
        assert len(of_seeds) == 2
        if name not in ("SGLD", "CSGLD"):
            assert [each.seed for each in of_seeds] == [0, 1]  # type: ignore[attr-defined]
        for seed, ensemble in enumerate(of_seeds):
            mean = torch.stack([member.weight for member in ensemble]).mean(dim=0).detach().numpy()
            own, other = (abs(mean - point[8 * part : 8 * part + 8]).mean() for part in (seed, 1 - seed))
            assert own < other


# SGLD and cyclical SGLD.

SAMPLERS: dict[str, Callable[[Counted, Tensor], list[Tensor]]] = {
    "SGLD": lambda data, point: known_methods.sgld(
        data, point, Langevin(1.0, steps=3_100, members=60, spacing=50)
    ),
    "CSGLD": lambda data, point: known_methods.cyclical_sgld(
        data,
        point,
        CyclicalLangevin(4.0, cycles=6, stage=SamplingStage(500, steps=250, samples=5, spacing=50)),
    ),
}


def check_spread_of_sampler(data: Labelled, sampler: Callable[[Counted, Tensor], list[Tensor]]) -> None:
    """Against the exact one.

    Relaxation takes 20 steps along the thin axis, so that of 3,000 some 75 are independent, of 8 regressions:
    a standard error of 3 %. The rate widens the dense axis by 5 %, and members late in a cycle are alike.
    """
    counted = data.counted(100)
    _, covariance = known_answer.posterior(counted)
    exact = known_answer.spread_along(covariance, INPUTS, DESIGN.regressions)[0]
    got = known_methods.spread(ensemble_of(sampler(counted, maximum(data, 100))), INPUTS)
    assert (0.85 < got / exact).all() and (got / exact < 1.2).all()


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_langevin_dynamics_have_the_posteriors_spread(
    data: Labelled, sampler: Callable[[Counted, Tensor], list[Tensor]]
) -> None:
    check_spread_of_sampler(data, sampler)


def _doubled(data: Counted) -> known_methods.Batch:
    (where, shares), ones = WHOLE(data)
    return (where, 2 * shares), 2 * ones


WHOLE = known_methods.whole
FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "the prior's precision not divided by N": ("weight_decay", lambda prior_std, examples: 1 / prior_std**2),
    "every example twice": ("whole", _doubled),
}


@pytest.mark.parametrize("name, fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_posterior_that_is_sampled_is_caught(
    data: Labelled, name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_methods, name, fault)
    with pytest.raises(AssertionError):
        check_spread_of_sampler(data, SAMPLERS["SGLD"])


# IVON.


def check_stds_of_ivon(data: Labelled, recipe: Variational) -> None:
    """Against the mean-field optimum: the Hessian's estimate wanders by a few per cent."""
    counted = data.counted(1_000)
    _, std, _ = known_methods.variational(counted, maximum(data, 1_000), recipe)
    ratios = std.double().numpy() / np.sqrt(known_answer.mean_field(counted)[1])
    assert (abs(ratios - 1) < 0.15).all() and abs(float(ratios.mean()) - 1) < 0.03


def test_ivon_learns_the_mean_field_optimum(data: Labelled) -> None:
    check_stds_of_ivon(data, known.RECIPES.ivon)


def test_an_ivon_that_does_not_forget_h0_is_caught(data: Labelled) -> None:
    with pytest.raises(AssertionError):
        check_stds_of_ivon(data, replace(known.RECIPES.ivon, beta2=0.9999))


# SWAG.


def test_swags_spread_is_that_of_its_rate_and_batch_in_every_direction(data: Labelled) -> None:
    """√(rate/(2·batch)), Mandt et al. 2017: a batch's noise is as the curvature where the model is right."""
    recipe = Averaging(
        learning_rate=0.5, batch=20, steps=50, iterates=60, rank=20, scale=0.5, members=MEMBERS
    )
    point = maximum(data, 100_000)
    statistics = known_methods.averaged(data, 100_000, point, recipe)
    ensemble = lpe.SWAGEnsemble(known_methods.network(point), statistics, MEMBERS, scale=0.5)
    expected = math.sqrt(0.5 / (2 * 20))
    # Some 37 of the 3,000 steps are independent.
    assert (abs(statistics.mean["weight"] - point) < 5 * expected / math.sqrt(37)).all()
    assert (abs(known_methods.spread(ensemble, INPUTS) / expected - 1) < 0.15).all()


# What is measured.


def test_the_spread_is_the_std_over_members_root_mean_square_over_regressions() -> None:
    samples = [torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[2.0, 0.0], [1.0, 6.0]])]
    where = np.array([[1.0, 0.0], [0.0, 1.0]])
    # Variances of two values are half their difference squared: 2 and 0; 0 and 8.
    assert known_methods.spread(ensemble_of(samples), where) == pytest.approx([1.0, 2.0])
