"""What trainings say of their posteriors: was IVON's learnt, do CSGLD's samples spread as it does?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import lpe
from lpe.ensembles.ivon import forgetting_std
from reproduce.command import opened
from reproduce.study import families
from reproduce.study.measurements import posteriors
from reproduce.study.points import IVONTraining, mean_curvature, started, training_examples
from reproduce.study.scale import Scale
from reproduce.study.session import Session


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Iterator[Session]:
    with opened("test", tiny, 1, tmp_path, "disabled", quiet=True) as made:
        yield made


def ivon(session: Session) -> IVONTraining:
    recipe = session.main.points["IVON"]
    assert isinstance(recipe, IVONTraining)
    return recipe


def csgld(session: Session) -> families.CyclicalSGLDTraining:
    """Samples after 5 and after 12 steps of noise."""
    recipe = session.main.families["CSGLD"]
    assert isinstance(recipe, families.CyclicalSGLDTraining)
    return replace(recipe, sampling_steps=12, samples_per_cycle=2, spacing=7)


def test_ivon_reports_its_std_over_the_one_that_its_start_alone_would_have_left(session: Session) -> None:
    recipe = ivon(session)
    info = recipe.point(session, session.main, 0).info
    examples = len(training_examples(session.main, 0)[0])
    steps = recipe.epochs * (examples // recipe.batch)
    left = forgetting_std(
        recipe.hess_init, recipe.beta2, recipe.weight_decay, examples / recipe.temperature, steps
    )
    assert info["std_over_forgetting"] == pytest.approx(info["median_posterior_std"] / left)


def test_a_posterior_that_forgets_nothing_is_seen_not_to_be_learnt(session: Session) -> None:
    recipe = replace(ivon(session), beta2=1 - 1e-7)
    assert recipe.point(session, session.main, 0).info["std_over_forgetting"] == pytest.approx(1, abs=1e-4)


def test_a_std_that_is_far_from_what_the_curvature_asks_for_is_seen(session: Session) -> None:
    # At a start of 100, kept: 1/√(100 + wd) over 1/√(F + wd), F the loss's curvature, far below 100.
    recipe = replace(ivon(session), beta2=1 - 1e-7, hess_init=100.0)
    point = recipe.point(session, session.main, 0)
    curvature = mean_curvature([point.net], training_examples(session.main, 0)[0], 0).median()
    ratio = math.sqrt((float(curvature) + recipe.weight_decay) / 100)
    assert point.info["std_over_expected"] == pytest.approx(ratio, rel=0.5)


def test_csgld_reports_the_share_of_the_posterior_that_its_noise_has_brought_about(session: Session) -> None:
    recipe = csgld(session)
    info = recipe.family(session, session.main, 0).info
    rate, typical = recipe.sampling_rate, info["typical_curvature"]
    for name, at in (("0.01", 0.01), ("0.1", 0.1), ("1", 1.0), ("typical", typical)):
        # At a constant rate the variance has its closed form.
        share = sum((1 - (1 - rate * at) ** (2 * n)) / (1 - rate * at / 2) for n in (5, 12)) / 2
        assert info["variance_share"][name] == pytest.approx(share)
    assert typical > recipe.weight_decay


def test_samples_of_csgld_are_charged_up_to_their_own_step(session: Session) -> None:
    recipe = csgld(session)
    ensemble = recipe.family(session, session.main, 0).make(0)
    trunk = started(session, session.main, 0).backward_passes
    cycle = recipe.epochs_per_cycle * (len(training_examples(session.main, 0)[0]) // recipe.batch)
    costs = [trunk + each for each in (cycle - 7, cycle, 2 * cycle - 7, 2 * cycle)]
    assert [ensemble.backward_passes(n) for n in (1, 2, 3, 4)] == costs


def test_samples_that_do_not_fit_into_a_cycle_are_refused_before_any_training(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "train", None)
    with pytest.raises(lpe.InputError, match="3 samples 7 steps apart do not fit into 12 steps"):
        replace(csgld(session), samples_per_cycle=3, spacing=7).family(session, session.main, 0)


def test_what_is_known_of_posteriors_is_printed_and_returned_by_name_and_seed(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    known = posteriors(session, ["SGD", "IVON"], ["SSE", "CSGLD"])
    assert list(known) == ["IVON seed 0", "CSGLD seed 0"]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("IVON seed 0: median posterior std ")
    assert said[1].startswith("CSGLD seed 0: samples have ") and said[1].endswith(" at 1")
