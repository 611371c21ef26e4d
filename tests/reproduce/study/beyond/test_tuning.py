"""Tuning of the spread, the std, the rate, Laplace's precision, and a pool: on the tuning examples alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

import lpe
from lpe.errors import InputError
from reproduce.study.beyond import tuning
from reproduce.study.beyond.tuning import PRECISIONS, laplace, selected, tuned, tuning_batches
from reproduce.study.scale import Classification, Scale
from reproduce.study.session import Session
from reproduce.study.units import draw_seed

Opened = Callable[[Scale], Session]


def changed(scale: Scale, **settings: Any) -> Scale:
    assert scale.beyond is not None
    return replace(scale, beyond=replace(scale.beyond, **settings))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The NLLs that are measured from now on."""
    seen: list[float] = []
    measure = Classification.evaluate

    def evaluate(data: Classification, *given: Any) -> pd.DataFrame:
        frame = measure(data, *given)
        seen.append(float(frame["nll"].iloc[-1]))
        return frame

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    return seen


def test_each_setting_is_that_of_least_nll_on_the_tuning_examples(toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    found = tuned(session, session.main, 0)
    net = session.main.point(session, "SGD", 0).net
    data = session.main.source.load(0)
    beyond = toy.beyond
    assert beyond is not None
    expected = []
    for std in beyond.stds:
        noisy = lpe.GaussianEnsemble(net, lpe.Int(8), 3, draw_seed(0, 0), std=std, batches=data.statistics)
        expected.append(float(lpe.evaluate(noisy, data.validation)["nll"].iloc[-1]))
    assert found.losses["std"] == pytest.approx(expected)
    assert found.std == beyond.stds[expected.index(min(expected))]
    assert found.spread == beyond.spreads[found.losses["spread"].index(min(found.losses["spread"]))]
    assert found.rate == beyond.rates[found.losses["rate"].index(min(found.losses["rate"]))]


def test_all_three_are_tuned_by_as_many_ensembles(
    toy: Scale, session_of: Opened, counted: list[float]
) -> None:
    session = session_of(toy)
    found = tuned(session, session.main, 0)
    assert len(counted) == 6
    assert {name: len(nll) for name, nll in found.losses.items()} == {"spread": 2, "std": 2, "rate": 2}


def test_what_was_tuned_is_not_tuned_again(toy: Scale, session_of: Opened, counted: list[float]) -> None:
    first = tuned(session_of(toy), session_of(toy).main, 0)
    counted.clear()
    assert tuned(session_of(toy), session_of(toy).main, 0) == first
    assert counted == []


def test_another_grid_is_tuned_alone(toy: Scale, session_of: Opened, counted: list[float]) -> None:
    tuned(session_of(toy), session_of(toy).main, 0)
    counted.clear()
    session = session_of(changed(toy, stds=(0.02, 0.2)))
    tuned(session, session.main, 0)
    assert len(counted) == 2


@pytest.mark.parametrize("knob", ["std", "rate"])
@pytest.mark.parametrize(
    "settings", [{"size": 2}, {"stds": (0.01, 0.2), "rates": (0.1, 0.2)}, {"spread_bits": 7}]
)
def test_an_entry_is_of_the_size_the_grid_and_the_bits(
    knob: str, settings: dict[str, Any], toy: Scale, session_of: Opened, counted: list[float]
) -> None:
    for scale in (toy, changed(toy, **settings)):
        session = session_of(scale)
        assert scale.beyond is not None
        tuning._losses(session, session.main, 0, knob, getattr(scale.beyond, f"{knob}s"))
    assert len(counted) == 4


def test_a_seed_has_an_entry_of_its_own(toy: Scale, session_of: Opened, counted: list[float]) -> None:
    session = session_of(toy)
    for seed in (0, 1):
        tuning._losses(session, session.main, seed, "std", (0.01, 0.1))
    assert len(set(counted)) == 4


def test_laplaces_precision_is_that_of_least_nll(
    toy: Scale, session_of: Opened, counted: list[float]
) -> None:
    session = session_of(toy)
    net = session.main.point(session, "SGD", 0).net
    curvature, precision = laplace(session, session.main, 0, net)
    marginal = lpe.LaplaceEnsemble(net, curvature, 1).prior_precision
    assert len(counted) == len(PRECISIONS)
    assert precision == pytest.approx(PRECISIONS[counted.index(min(counted))] * marginal)
    laplace(session, session.main, 0, net)
    assert len(counted) == len(PRECISIONS)


def test_laplaces_curvature_is_of_all_training_examples(toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    curvature, _ = laplace(session, session.main, 0, session.main.point(session, "SGD", 0).net)
    assert curvature.examples == 60


def test_of_a_pool_the_best_members_are_selected_and_kept(
    toy: Scale, session_of: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(toy)
    net = session.main.point(session, "SGD", 0).net
    pool = lpe.LowPrecisionEnsemble(net, lpe.Int(3), 5)
    found = selected(session, session.main, 0, net, pool, {"system": "int3"}, lpe.LowPrecisionEnsemble)
    best = lpe.select(pool, tuning_batches(session.main.source.load(0)), 3)
    assert found.members == best.members and len(found) == 3
    monkeypatch.setattr(lpe, "select", None)
    again = selected(session, session.main, 0, net, pool, {"system": "int3"}, lpe.LowPrecisionEnsemble)
    assert again.members == best.members


def test_another_pool_has_another_selection(toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    net = session.main.point(session, "SGD", 0).net
    kept = session.store.root
    for bits in (3, 4):
        pool = lpe.LowPrecisionEnsemble(net, lpe.Int(bits), 5)
        selected(session, session.main, 0, net, pool, {"system": f"int{bits}"}, lpe.LowPrecisionEnsemble)
    assert len(list(kept.glob("*.json"))) == 3  # the network, and two selections


def test_training_batches_are_the_first_examples(toy: Scale) -> None:
    assert toy.main is not None
    data = toy.main.source.load(0)
    assert data.train is not None
    inputs = torch.cat([images for images, _ in tuning.training_batches(data, 30)])
    assert torch.equal(inputs, data.train[0][:30])


def test_without_training_examples_it_says_so(toy: Scale) -> None:
    assert toy.main is not None
    with pytest.raises(InputError, match="the data have no training examples"):
        tuning.training_batches(replace(toy.main.source.load(0), train=None), 30)


def test_tuning_examples_that_are_no_batches_choose_no_pool(toy: Scale) -> None:
    assert toy.main is not None
    data = toy.main.source.load(0)
    with pytest.raises(InputError, match="the tuning examples are a int"):
        tuning_batches(replace(data, tuning=3))


def test_a_scale_without_it_is_refused(toy: Scale, session_of: Opened) -> None:
    session = session_of(replace(toy, beyond=None))
    with pytest.raises(InputError, match="scale toy measures nothing beyond the paper"):
        tuned(session, session.main, 0)
