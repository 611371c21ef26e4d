"""Language models' answers as what is scored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.substrates import arithmetic, language
from reproduce.scales.digits.llamas import arithmetic_questions
from reproduce.study.answers import AnsweredEnsemble, Questions, Subject, task_questions

SHAPE = arithmetic.LlamaShape(width=8, depth=1, heads=2, hidden=8)


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return arithmetic.network(SHAPE, 0).eval()


def test_questions_are_scored_as_the_language_substrate_scores_them(llama: nn.Module) -> None:
    ensemble = lpe.LowPrecisionEnsemble(llama, lpe.Int(3), 3)
    ours = arithmetic_questions(0).evaluate(ensemble, (3,))
    theirs = language.evaluate(ensemble, arithmetic.tokenizer(), [arithmetic.task(0)], batch_size=64)
    for metric in ("nll", "err", "ece", "average_loss", "ambiguity", "ensemble_loss", "brier"):
        assert ours[metric].to_numpy() == pytest.approx(theirs[metric].to_numpy(), rel=1e-9), metric
    assert ours["calibrated_nll"].notna().tolist() == [False, False, True]


def test_the_temperature_is_fitted_on_validation_questions(llama: nn.Module) -> None:
    single = lpe.DeepEnsemble([llama])
    subject = arithmetic_questions(0).answers(single, True)[0]
    log_probs = subject.logits[0].log_softmax(-1)
    tuned, tested = subject.tuning, subject.test
    assert not set(tuned.tolist()) & set(tested.tolist())
    grid = torch.logspace(-1.5, 1.5, 3001, dtype=torch.float64)

    def loss(temperature: torch.Tensor, numbers: torch.Tensor) -> float:
        scaled = (log_probs[numbers] / temperature).log_softmax(-1)
        return float(-scaled.gather(1, subject.targets[numbers][:, None]).mean())

    # As the images' temperatures: with a prior log T ~ N(0, 1), whose weight is that of one example.
    best = min(grid, key=lambda t: loss(t, tuned) + float(t.log() ** 2 / 2) / len(tuned))
    found = arithmetic_questions(0).evaluate_scaled(single)["nll"]
    assert found == pytest.approx(loss(best, tested), abs=1e-5)


def constant(scores: list[list[float]]) -> Callable[[Ensemble, bool], list[Subject]]:
    logits = torch.tensor([scores], dtype=torch.float64)
    zeros = torch.zeros(len(scores), dtype=torch.int64)
    numbers = torch.arange(len(scores))
    return lambda ensemble, tuning: [Subject(logits, zeros, numbers[1:], numbers[:1])]


def test_several_subjects_count_alike() -> None:
    easy, hard = constant([[0.0, 0.0], [9.0, 0.0]]), constant([[0.0, 0.0], *[[0.0, 9.0]] * 5])
    both = Questions(lambda ensemble, tuning: easy(ensemble, tuning) + hard(ensemble, tuning))
    single = lpe.DeepEnsemble([nn.Linear(1, 1)])
    assert both.evaluate(single, ())["err"].tolist() == [0.5]


def test_what_is_tuned_is_scored_on_tuning_questions_and_all_else_on_the_others() -> None:
    tuning_is_wrong = constant([[0.0, 9.0], [9.0, 0.0]])
    single = lpe.DeepEnsemble([nn.Linear(1, 1)])
    errors = {
        on_tuning: Questions(tuning_is_wrong, on_tuning).evaluate(single, ())["err"].item()
        for on_tuning in (False, True)
    }
    assert errors == {False: 0.0, True: 1.0}


def test_every_so_manieth_question_of_a_task_is_for_tuning_alone(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = language.Choices(
        "task", torch.arange(10), torch.zeros(1, 10, 4), torch.zeros(10, dtype=torch.int64)
    )
    monkeypatch.setattr(language, "choices", lambda *_, **__: [found])
    single = lpe.DeepEnsemble([llama])
    (subject,) = task_questions(arithmetic.tokenizer(), ("task",), 4).answers(single, False)
    assert (subject.tuning.tolist(), subject.test.tolist()) == ([0, 4, 8], [1, 2, 3, 5, 6, 7, 9])


def test_answers_take_the_memory_of_the_ensemble_that_gave_them(llama: nn.Module) -> None:
    ensemble = lpe.LowPrecisionEnsemble(llama, lpe.Int(5), 2)
    answered = AnsweredEnsemble(ensemble, torch.zeros(2, 3, 4))
    assert answered.memory_bits(1) == ensemble.memory_bits(1)
    assert answered.memory_bits(2, "generator") == ensemble.memory_bits(2, "generator")
