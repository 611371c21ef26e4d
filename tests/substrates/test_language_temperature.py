"""Temperature scaling of multiple choice, where questions may have different numbers of choices."""

from __future__ import annotations

import math

import pytest
import torch

from lpe.evaluation.metrics import fit_temperature, nll
from lpe.substrates.language.tasks import _calibrated_metrics

LOG_PROBS = (4 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()).log_softmax(-1)
TARGETS = torch.tensor([0, 1, 2] * 4)


def test_each_fold_is_scored_under_the_temperature_of_the_others() -> None:
    # Of twelve questions in ten folds the first two folds have two.
    expected = 0.0
    for fold in range(10):
        own = [place for place in (fold, fold + 10) if place < 12]
        rest = [place for place in range(12) if place not in own]
        temperature = fit_temperature(LOG_PROBS[rest], TARGETS[rest])
        scaled = (LOG_PROBS[own] / temperature).log_softmax(-1)
        expected += nll(scaled, TARGETS[own]) * len(own) / 12
    assert _calibrated_metrics(LOG_PROBS, TARGETS)["calibrated_nll"] == pytest.approx(expected, rel=1e-12)


def test_choices_that_a_question_lacks_change_nothing() -> None:
    padded = torch.nn.functional.pad(LOG_PROBS, (0, 2), value=-torch.inf)
    plain = _calibrated_metrics(LOG_PROBS, TARGETS)
    assert _calibrated_metrics(padded, TARGETS) == pytest.approx(plain, rel=1e-12)


def test_choices_padded_with_probability_would_be_seen() -> None:
    # The injected fault: padding with log-probability 0.
    padded = torch.nn.functional.pad(LOG_PROBS, (0, 2), value=0.0)
    plain = _calibrated_metrics(LOG_PROBS, TARGETS)
    assert _calibrated_metrics(padded, TARGETS) != pytest.approx(plain, rel=1e-3)


def test_a_single_question_has_no_temperature() -> None:
    assert all(math.isnan(value) for value in _calibrated_metrics(LOG_PROBS[:1], TARGETS[:1]).values())
