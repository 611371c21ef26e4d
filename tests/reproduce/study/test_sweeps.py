"""The settings of a sweep: how they are called, and what is made of each."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

import lpe
from lpe.provenance import REPOSITORY
from reproduce.command import opened, seedless
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.scale import Scale
from reproduce.study.session import TUNING_SEED
from reproduce.study.sweeps import MEMBERS, Made, Tuning, known_of


@pytest.fixture
def tuning(tiny: Scale, tmp_path: Path) -> Iterator[Tuning]:
    """The reduced scale's main network at the first tuning seed."""
    with opened("test", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        data = session.main.source.load(TUNING_SEED).tuning
        yield Tuning(session, session.main, TUNING_SEED, data)


def test_the_committed_sweep_calls_kept_what_the_scale_has() -> None:
    # A setting that is called otherwise would be measured anew beside its old rows.
    table = pd.read_csv(REPOSITORY / "figures" / DIGITS.name / "sweep.csv")
    rows = zip(table["method"], table["setting"], table["role"], strict=True)
    assert DIGITS.sweep is not None
    settings = DIGITS.sweep(seedless(DIGITS), TUNING_SEED)
    kept = {(method, words) for method, words, role in rows if "kept" in role}
    assert kept == {(each.method, each.words) for each in settings if each.kept}


def test_each_setting_of_a_recipe_has_its_own_values_and_words(tuning: Tuning) -> None:
    changes = ({"learning_rate": 0.5}, {"weight_decay": 0.25})
    recipe = tuning.substrate.points["SGD"]
    made: list[object] = []

    def make(changed: object) -> Made:
        made.append(changed)
        return tuning.point(recipe)

    settings = list(tuning.varied("SGD", changes, recipe, make))
    for setting in settings:
        setting.make()
    own = {key: getattr(recipe, key) for key in ("learning_rate", "weight_decay")}
    values = [own, own | changes[0], own | changes[1]]
    assert [{key: getattr(each, key) for key in own} for each in made] == values
    assert [each.words for each in settings] == [
        f"learning_rate {each['learning_rate']}, weight_decay {each['weight_decay']}" for each in values
    ]
    assert [each.kept for each in settings] == [True, False, False]


def test_a_posteriors_ensemble_is_of_its_draws_and_a_point_estimates_is_itself(tuning: Tuning) -> None:
    single, ensemble, _ = tuning.point(tuning.substrate.points["IVON"])
    assert (len(single), len(ensemble)) == (1, MEMBERS)
    single, ensemble, _ = tuning.point(tuning.substrate.points["SGD"])
    assert ensemble is single


def test_the_single_model_of_a_family_is_its_first_member(tuning: Tuning) -> None:
    single, ensemble, _ = tuning.family(tuning.substrate.families["SSE"])
    pairs = zip(single[0].state_dict().values(), ensemble[0].state_dict().values(), strict=True)
    assert len(ensemble) > 1 and all(torch.equal(one, other) for one, other in pairs)


def test_noise_and_dropout_are_around_the_point_estimate_and_as_strong_as_they_are_called(
    tuning: Tuning,
) -> None:
    noisy, masked = tuning.rivals([0.25], [0.5], prefix="small ")
    assert [(each.method, each.words) for each in (noisy, masked)] == [
        ("small Gaussian", "std 0.25"),
        ("small MC-dropout", "rate 0.5"),
    ]
    single, ensemble, _ = noisy.make()
    net = tuning.substrate.point(tuning.run, "SGD", TUNING_SEED).net
    dropped = masked.make()[1]
    assert isinstance(dropped, lpe.MCDropoutEnsemble) and dropped.rate == 0.5
    assert len(ensemble) == len(dropped) == MEMBERS
    pairs = zip(single[0].parameters(), ensemble[0].parameters(), strict=True)
    moved = [(noised - mean).flatten() for mean, noised in pairs if not torch.equal(mean, noised)]
    differences = torch.cat(moved).detach()
    # The std of n draws is known to within 1 / √(2n); five of these.
    assert float(differences.std()) == pytest.approx(0.25, rel=5 / (2 * len(differences)) ** 0.5)
    pairs = zip(single[0].parameters(), net.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_what_is_known_of_a_posterior_is_told_by_the_sweeps_columns() -> None:
    shares = {"0.001": 0.2, "typical": 0.9}
    info = {"std_over_forgetting": 0.7, "std_over_expected": 0.8, "variance_share": shares, "epochs": 3}
    assert known_of(info) == {"std_over_forgetting": 0.7, "std_over_expected": 0.8, "variance_share": 0.9}
    assert known_of({"epochs": 3}) == {}


def test_the_spread_is_of_8_bit_codes_around_the_point_estimate_and_as_it_is_called(tuning: Tuning) -> None:
    (setting,) = tuning.spread([11.3])
    assert (setting.method, setting.words, setting.kept) == ("LPE-BSR, spread", "spread 11.3", False)
    _, ensemble, _ = setting.make()
    assert isinstance(ensemble, lpe.LowPrecisionEnsemble) and ensemble.system == lpe.Int(8, spread=11.3)
    estimate = tuning.substrate.point(tuning.run, "SGD", TUNING_SEED).net
    assert torch.equal(next(iter(ensemble.model.parameters())), next(iter(estimate.parameters())))


@pytest.mark.parametrize("module", ["digits", "cifar10"])
def test_spread_and_noise_are_tuned_by_as_many_ensembles(module: str) -> None:
    grids = importlib.import_module(f"reproduce.scales.{module}.sweep")
    assert len(grids.SPREADS) == len(grids.STDS)
