"""What measuring keeps of single examples: values that the record has the means of, and whose they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lpe
from lpe.evaluation.examples import ExampleMetrics
from lpe.records import Records
from lpe.substrates import arithmetic, digits
from reproduce import ledger, table1
from reproduce.command import opened, run_figure
from reproduce.scales.digits.llamas import ArithmeticQuestions
from reproduce.study import examples
from reproduce.study.answers import Questions, Subject
from reproduce.study.measurements import measure
from reproduce.study.records import BETTER_THAN_RTN, STD_OVER_FORGETTING
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import DISAGREEMENT_UNIT, LARGE, ROUNDING, Unit

MEANS = ("nll", "ambiguity", "calibrated_nll", "disagreement")


def measured(scale: Scale, unit: Unit, folder: Path) -> tuple[Session, pd.DataFrame]:
    with opened("test", scale, 1, folder, "disabled", quiet=True) as session:
        measure(session, unit)
        return session, Records(session.records[unit]).select()


@pytest.mark.parametrize(
    ("substrate", "what"),
    [("tiny ViT", "IVON"), ("tiny ViT", "SSE"), ("tiny ViT", DISAGREEMENT_UNIT), ("tiny CLIP-S", LARGE)],
)
def test_the_record_has_the_means_of_the_values_that_are_kept(
    tiny: Scale, tmp_path: Path, substrate: str, what: str
) -> None:
    session, rows = measured(tiny, Unit(substrate, what, 1), tmp_path)
    of_means = rows[rows["metric"].isin(MEANS) & ~rows["method"].str.endswith("temperature")]
    assert len(of_means)
    for _, row in of_means.iterrows():
        found = examples.finder(session.working)(row.to_dict())
        assert found is not None
        assert found[0].tolist() == digits.split_indices(1)[2].tolist()
        assert found[1].mean() == pytest.approx(row["value"], rel=1e-5, abs=1e-7)


def test_settings_that_are_changed_and_changed_back_leave_the_values_of_both(
    tiny: Scale, tmp_path: Path
) -> None:
    other = replace(tiny, settings=replace(tiny.settings, draws=tiny.settings.draws + 1))
    unit = Unit("tiny ViT-T", ROUNDING, 0)
    session, rows = measured(tiny, unit, tmp_path)
    _, of_others = measured(other, unit, tmp_path)
    _, again = measured(tiny, unit, tmp_path)
    pd.testing.assert_frame_equal(again, rows)
    find = examples.finder(session.working)
    drawn = 0
    for table in (rows, of_others):
        for _, row in table[table["metric"] == "nll"].iterrows():
            found = find(row.to_dict())
            if row["method"].endswith("temperature"):
                continue
            assert found is not None
            assert found[1].mean() == pytest.approx(row["value"], rel=1e-5, abs=1e-7)
            drawn += row["method"] == "LPE-BSR"
    assert drawn > 0


def test_the_record_says_how_far_ivons_posterior_is_from_its_start(tiny: Scale, tmp_path: Path) -> None:
    session, rows = measured(tiny, Unit("tiny ViT", "IVON", 0), tmp_path)
    (told,) = rows.loc[rows["metric"] == STD_OVER_FORGETTING, "value"]
    info = session.main.point(session, "IVON", 0).info
    assert told == pytest.approx(info["std_over_forgetting"])


def test_a_question_that_two_seeds_ask_has_one_number() -> None:
    source = ArithmeticQuestions(arithmetic.LlamaShape(4, depth=1, heads=2, hidden=8))
    numbers = {seed: source.load(seed).images for seed in range(2)}
    asked = {seed: arithmetic.questions(seed).test for seed in range(2)}
    of_question = {}
    for seed, images in numbers.items():
        assert images is not None
        assert len(images) == len(asked[seed]) == len(set(images.tolist()))
        of_question |= dict(zip(images.tolist(), asked[seed], strict=True))
    families = arithmetic.families()
    assert all(question in families[number] for number, question in of_question.items())


def test_of_several_subjects_the_mean_over_questions_is_the_mean_over_subjects() -> None:
    draws = np.random.default_rng(0)
    subjects = []
    for count in (5, 20):
        logits = torch.tensor(draws.normal(size=(2, count, 4)))
        targets = torch.tensor(draws.integers(4, size=count))
        every = torch.arange(count)
        subjects.append(Subject(logits, targets, every, every[:0]))
    net = lpe.DeepEnsemble([torch.nn.Linear(2, 4), torch.nn.Linear(2, 4)])
    kept = ExampleMetrics()
    frame = Questions(lambda ensemble, tuning: subjects).evaluate(net, (2,), kept)
    _, values = kept.tables()["nll"]
    assert values.shape == (2, 25)
    np.testing.assert_allclose(values.mean(dim=1), frame["nll"], rtol=1e-6)


def test_the_share_of_members_that_beat_rtn_is_counted_over_members_and_draws(
    tiny: Scale, tmp_path: Path
) -> None:
    session, rows = measured(tiny, Unit("tiny ViT-T", ROUNDING, 0), tmp_path)
    low = rows[(rows["number_system"] == "int3") & (rows["metric"] == BETTER_THAN_RTN)]
    assert low["size"].tolist() == [3]
    net = tiny.substrates["tiny ViT-T"].point(session, "SGD", 0).net
    test = digits.load(0).test

    def nll(rounding: str, size: int, seed: int) -> list[float]:
        ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(3), size, seed, rounding)
        return [float(lpe.evaluate(lpe.DeepEnsemble([one]), [test])["nll"].iloc[0]) for one in ensemble]

    (rtn,) = nll("nearest", 1, 0)
    members = [each for seed in range(2) for each in nll("bernoulli", 3, seed)]
    assert float(low["value"].iloc[0]) == pytest.approx(np.mean([each < rtn for each in members]))


def test_the_ledger_has_intervals_for_new_images_and_keeps_them_without_the_store(
    tiny: Scale, tmp_path: Path
) -> None:
    out = tmp_path / "figures"
    arguments = ["--scale", "tiny", "--out", str(out), "--wandb", "disabled", "--seeds", "2"]
    assert run_figure(table1.SCRIPT, arguments) == 0
    assert ledger.main(["--scale", "tiny", "--out", str(out)]) == 0
    first = (out / "claims.csv").read_bytes()
    row = pd.read_csv(out / "claims.csv").set_index("claim").loc["C1a (tiny ViT-T)"]
    # Two of the five folds of 1,797 images.
    assert row["examples n"] == 720
    assert row["examples low"] < row["effect"] < row["examples high"]
    shutil.rmtree(tmp_path / "work")
    assert ledger.main(["--scale", "tiny", "--out", str(out)]) == 0
    assert (out / "claims.csv").read_bytes() == first
