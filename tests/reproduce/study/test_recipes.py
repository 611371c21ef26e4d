"""Recipes without their trainings: what their keys hold, and the seeds that they hand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lpe
from lpe import tracking
from lpe.ensembles.base import Ensemble
from lpe.store import Store
from reproduce.study import families
from reproduce.study.families import CyclicalSGLDTraining, MultiPosteriorTraining
from reproduce.study.points import config_of
from reproduce.study.run import Run
from reproduce.study.scale import Point, Scale, Started, Substrate


@pytest.fixture
def run(tmp_path: Path) -> Run:
    tracker = tracking.Tracker(None)
    return Run(store=Store(tmp_path / "store"), tracker=tracker, threads=1, device="cpu", quiet=True)


@pytest.fixture
def main(tiny: Scale) -> Substrate:
    assert tiny.main is not None
    return tiny.main


def key(run: Run, substrate: Substrate, **changed: Any) -> str:
    given: dict[str, Any] = {"phase": "SGD", "seed": 0, "recipe": substrate.points["SGD"], "start": None}
    given |= changed
    replica = given.pop("replica", 0)
    return Store.key(config_of(run, substrate, *given.values(), replica=replica))


def wider(substrate: Substrate) -> Substrate:
    source = substrate.source
    return replace(substrate, source=replace(source, shape=replace(source.shape, width=16)))


CHANGES: dict[str, Callable[[Run, Substrate], str]] = {
    "phase": lambda run, main: key(run, main, phase="SWAG"),
    "seed": lambda run, main: key(run, main, seed=1),
    "replica": lambda run, main: key(run, main, replica=1),
    "recipe": lambda run, main: key(run, main, recipe=replace(main.points["SGD"], momentum=0.5)),  # type: ignore[type-var]
    "start": lambda run, main: key(run, main, start={"phase": "pre-training"}),
    "network": lambda run, main: key(run, wider(main)),
    "threads": lambda run, main: key(replace(run, threads=2), main),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_training_s_key_holds(what: str, run: Run, main: Substrate) -> None:
    assert CHANGES[what](run, main) != key(run, main)


def test_a_training_s_key_holds_its_data(run: Run, main: Substrate, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(run, main)
    monkeypatch.setattr("reproduce.study.points.digest_of", lambda source, seed: "other data")
    assert key(run, main) != before


def test_draws_of_independent_posteriors_share_no_seed(run: Run, main: Substrate) -> None:
    asked: list[tuple[int, int, int]] = []

    class Posteriors:
        def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
            net = nn.Linear(2, 2).eval()

            def posterior(size: int, draw_seed: int) -> Ensemble:
                asked.append((replica, size, draw_seed))
                return lpe.DeepEnsemble([net] * size)

            return Point("IVON", net, posterior, 10 + replica, {"pre_training_passes": 4})

    substrate = replace(main, points={"IVON": Posteriors()})  # type: ignore[dict-item]
    ensemble = MultiPosteriorTraining("IVON", 3, 2).family(run, substrate, 0).make(5)
    assert len(ensemble) == 6
    assert [(replica, size) for replica, size, _ in asked] == [(0, 2), (1, 2), (2, 2)]
    assert len({seed for *_, seed in asked}) == 3
    # The trunk, of 4 passes, is the first one's.
    assert [ensemble.backward_passes(n) for n in (1, 2, 3, 5)] == [10, 10, 10 + 7, 10 + 7 + 8]


def test_no_two_cycles_of_csgld_have_the_same_noise(
    run: Run, main: Substrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    sgld = families.SGLD

    def watched(*arguments: Any, **named: Any) -> torch.optim.Optimizer:
        seeds.append(named["seed"])
        return sgld(*arguments, **named)

    class Begun:
        def start(self, run: Run, substrate: Substrate, seed: int, replica: int) -> Started:
            return Started(substrate.source.network(10, seed), 0, None)

    monkeypatch.setattr(families, "SGLD", watched)
    recipe = main.families["CSGLD"]
    assert isinstance(recipe, CyclicalSGLDTraining)
    recipe.family(run, replace(main, start=Begun()), 0)
    assert len(seeds) == len(set(seeds)) == recipe.cycles == 2
