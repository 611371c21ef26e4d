"""The methods that are compared: which a substrate offers, and what each is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import lpe
from lpe.errors import InputError
from reproduce.study.beyond import methods as module
from reproduce.study.beyond.methods import backward_passes, methods, trained
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
from reproduce.study.beyond.tuning import tuned
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import PREDICTIONS, Unit, draw_seed

Opened = Callable[[Scale], Session]
UNIT = Unit("toy net", PREDICTIONS, 0)

ROUNDED = Method("SGD", LPE_BSR, "int4", "bernoulli")
SPREAD = Method("SGD", TUNED_SPREAD, "int8", "bernoulli")
NOISY = Method("SGD", GAUSSIAN, "fp32", "")
MASKED = Method("SGD", MC_DROPOUT, "fp32", "")
BEST_ROUNDED = Method("SGD", f"{LPE_BSR}{SELECTED}", "int4", "bernoulli")
BEST_NOISY = Method("SGD", f"{GAUSSIAN}{SELECTED}", "fp32", "")
SIZES = {
    Method("SGD", "FP32", "fp32", ""): 1,
    Method("SGD", RTN, "int4", "nearest"): 1,
    Method("SGD", RTN, "int4-mse", "nearest"): 1,
    ROUNDED: 3,
    Method("SGD", LPE_BSR, "int4", "coupled"): 3,
    SPREAD: 3,
    BEST_ROUNDED: 3,
    NOISY: 3,
    BEST_NOISY: 3,
    MASKED: 3,
    Method("SGD", AUGMENTATION, "fp32", ""): 3,
    Method("SGD", LAPLACE, "fp32", ""): 3,
    Method("SGD", FEEDBACK, "int4", "nearest"): 1,
    Method("SGD", FEEDBACK, "int4", "bernoulli"): 3,
    Method("SWAG", BMA, "fp32", ""): 3,
    Method("IVON", BMA, "fp32", ""): 3,
    Method("DE", "DE", "fp32", ""): 2,
}


def of_main(scale: Scale, **changes: Any) -> Scale:
    assert scale.main is not None
    return replace(scale, main=replace(scale.main, **changes))


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return dict(net.state_dict())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_all_methods_are_there(toy: Scale, session_of: Opened) -> None:
    assert set(methods(session_of(toy), UNIT)) == set(SIZES)


@pytest.mark.parametrize("method", SIZES, ids=str)
def test_a_method_has_its_members_and_the_training_budget_of_its_networks(
    method: Method, toy: Scale, session_of: Opened
) -> None:
    session = session_of(toy)
    ensemble = methods(session, UNIT)[method]()
    assert len(ensemble) == SIZES[method]
    budget = backward_passes(session, session.main, 0, method.point, len(ensemble))
    assert ensemble.backward_passes() == budget > 0


def test_members_are_rounded_with_the_seeds_own_draws_and_fresh_statistics(
    toy: Scale, session_of: Opened
) -> None:
    session = session_of(toy)
    net = session.main.point(session, "SGD", 0).net
    statistics = session.main.source.load(0).statistics
    expected = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 3, draw_seed(0, 0), batches=statistics)
    assert all(map(same, methods(session, UNIT)[ROUNDED](), expected))


def test_the_spread_the_std_and_the_rate_are_the_tuned_ones(toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    found, made = tuned(session, session.main, 0), methods(session, UNIT)
    noisy, masked, spread = made[NOISY](), made[MASKED](), made[SPREAD]()
    assert isinstance(noisy, lpe.GaussianEnsemble) and noisy.std == found.std
    assert isinstance(masked, lpe.MCDropoutEnsemble) and masked.rate == found.rate
    assert isinstance(spread, lpe.LowPrecisionEnsemble)
    assert spread.system == lpe.Int(8, spread=found.spread)


def test_selected_members_are_the_best_of_the_pool_that_has_the_unselected_ones_first(
    toy: Scale, session_of: Opened
) -> None:
    made = methods(session_of(toy), UNIT)
    chosen, plain = made[BEST_ROUNDED](), made[ROUNDED]()
    assert isinstance(chosen, lpe.SelectedEnsemble) and len(chosen.ensemble) == 5
    assert all(same(chosen.ensemble[place], plain[place]) for place in range(3))


def test_views_are_crops_of_an_eighth_of_the_side(toy: Scale, session_of: Opened) -> None:
    views = methods(session_of(toy), UNIT)[Method("SGD", AUGMENTATION, "fp32", "")]()
    assert isinstance(views, lpe.AugmentedEnsemble)
    assert views.view == lpe.CropAndFlip(1)  # of 6 pixels


def test_without_views_there_is_no_augmentation(toy: Scale, session_of: Opened) -> None:
    assert toy.beyond is not None
    made = methods(session_of(replace(toy, beyond=replace(toy.beyond, views=0))), UNIT)
    assert set(SIZES) - set(made) == {Method("SGD", AUGMENTATION, "fp32", "")}


def test_a_network_without_a_last_linear_layer_has_no_laplace(
    toy: Scale, session_of: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise InputError("no last layer")

    monkeypatch.setattr(lpe, "last_layer_curvature", refuse)
    made = methods(session_of(toy), UNIT)
    assert set(SIZES) - set(made) == {Method("SGD", LAPLACE, "fp32", "")}


def test_posteriors_and_de_are_those_that_the_substrate_has(toy: Scale, session_of: Opened) -> None:
    assert toy.main is not None
    alone = of_main(toy, points={"SGD": toy.main.points["SGD"]}, families={})
    assert {method.point for method in methods(session_of(alone), UNIT)} == {"SGD"}


@pytest.mark.parametrize("name", ["SWAG", "DE"])
def test_what_has_fewer_seeds_is_left_out_of_the_later_ones(
    name: str, toy: Scale, session_of: Opened
) -> None:
    session = session_of(of_main(toy, most_seeds={name: 1}))
    assert name in trained(session.main, 0) and name not in trained(session.main, 1)
    found = {method.point for method in methods(session, replace(UNIT, seed=1))}
    assert found == {"SGD", "SWAG", "IVON", "DE"} - {name}


def test_a_seed_without_a_point_estimate_is_refused(toy: Scale, session_of: Opened) -> None:
    session = session_of(of_main(toy, most_seeds={"SGD": 1}))
    with pytest.raises(InputError, match="toy net: predictions, seed 1 has no SGD network"):
        methods(session, replace(UNIT, seed=1))


def test_nothing_is_tuned_before_it_is_asked_for(
    toy: Scale, session_of: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tuned", "selected", "laplace"):
        monkeypatch.setattr(module, name, None)
    assert len(methods(session_of(toy), UNIT)[ROUNDED]()) == 3


def test_error_feedback_sees_the_first_training_examples(
    toy: Scale, session_of: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    made = lpe.FeedbackEnsemble

    def noted(net: nn.Module, system: lpe.Int, size: int, batches: Any, *given: Any, **named: Any) -> Any:
        seen.append(torch.cat([inputs for inputs, _ in batches]))
        return made(net, system, size, batches, *given, **named)

    monkeypatch.setattr(lpe, "FeedbackEnsemble", noted)
    session = session_of(toy)
    methods(session, UNIT)[Method("SGD", FEEDBACK, "int4", "nearest")]()
    train = session.main.source.load(0).train
    assert train is not None and torch.equal(seen[0], train[0][:30])


def test_without_training_examples_there_is_neither_laplace_nor_error_feedback(
    toy: Scale, session_of: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(toy)
    session.main.point(session, "SGD", 0)  # trained with them
    bare = replace(session.main.source.load(0), train=None)
    monkeypatch.setattr(type(session.main.source), "load", lambda source, seed: bare)
    left_out = {method.method for method in set(SIZES) - set(methods(session, UNIT))}
    assert left_out == {LAPLACE, FEEDBACK}
