"""Every selective metric against a definition written out here, and another library's where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as torchmetrics
from torch import Tensor

import lpe
from lpe.evaluation import selective
from lpe.evaluation.metrics import CalibrationBins, mean_log_probs
from lpe.evaluation.selective import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    auroc,
    coverage_at_risk,
    error_auroc,
    risk_at_coverage,
    risk_coverage_curve,
    selective_metrics,
    signed_calibration_error,
)

EXAMPLES = 213


def draw(seed: int = 0, examples: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    """Confidences that all differ, right as often as they say, float64 and bool [examples]."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.3, 1, size=examples)
    assert len(set(confidence)) == examples
    return torch.from_numpy(confidence), torch.from_numpy(generator.uniform(size=examples) < confidence)


def tied(seed: int = 0, examples: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    """Confidences of one decimal: groups of many equals."""
    confidence, correct = draw(seed, examples)
    return (10 * confidence).round() / 10, correct


DRAWN = pytest.mark.parametrize("make", [draw, tied], ids=["no ties", "ties"])


# The definitions, one example at a time. Where there are no ties, an order is all.


def by_confidence(confidence: Tensor, correct: Tensor) -> list[tuple[float, bool]]:
    return sorted(zip(confidence.tolist(), correct.tolist(), strict=True), reverse=True)


def risks(confidence: Tensor, correct: Tensor) -> list[float]:
    right = [hit for _, hit in by_confidence(confidence, correct)]
    return [sum(not hit for hit in right[:k]) / k for k in range(1, len(right) + 1)]


def expected_risks(confidence: Tensor, correct: Tensor) -> list[float]:
    """The mean of the risks over every order of equals: few examples."""
    pairs = list(zip(confidence.tolist(), correct.tolist(), strict=True))
    orders = [
        [hit for _, hit in order]
        for order in permutations(pairs)
        if all(one >= other for (one, _), (other, _) in zip(order, order[1:], strict=False))
    ]
    return [
        math.fsum(sum(not hit for hit in order[:k]) / k for order in orders) / len(orders)
        for k in range(1, len(pairs) + 1)
    ]


def test_the_curve_is_the_share_of_errors_among_the_most_confident() -> None:
    coverage, risk = risk_coverage_curve(*draw())
    assert risk.tolist() == risks(*draw())
    assert coverage.tolist() == [k / EXAMPLES for k in range(1, EXAMPLES + 1)]


@pytest.mark.parametrize("confidences", [[1, 1, 1, 1, 1], [2, 1, 1, 1, 0], [1, 1, 0, 0, 0], [3, 2, 2, 1, 1]])
@pytest.mark.parametrize("wrong", [[0], [2], [1, 4], [0, 3], [1, 2, 3], [0, 1, 2, 3, 4], []])
def test_equals_are_taken_in_every_order(confidences: list[float], wrong: list[int]) -> None:
    confidence = torch.tensor(confidences, dtype=torch.float64)
    correct = torch.tensor([place not in wrong for place in range(5)])
    _, risk = risk_coverage_curve(confidence, correct)
    assert risk.tolist() == pytest.approx(expected_risks(confidence, correct), rel=1e-14)


def test_the_check_of_equals_catches_the_order_in_which_they_come() -> None:
    confidence, correct = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([False, True, True])
    assert expected_risks(confidence, correct) != pytest.approx([1, 1 / 2, 1 / 3])


@pytest.mark.parametrize("name", [name for name in selective.SELECTIVE_METRICS if name != "disagreement"])
def test_no_metric_depends_on_the_order_of_examples(name: str) -> None:
    confidence, correct = tied()
    order = torch.from_numpy(np.random.default_rng(1).permutation(EXAMPLES))
    shuffled = selective_metrics(confidence[order], correct[order])[name]
    # Sums of 213 confidences, in another order.
    assert shuffled == pytest.approx(selective_metrics(confidence, correct)[name], rel=1e-12, abs=1e-15)


def test_the_area_is_the_mean_of_the_risks() -> None:
    assert area_under_risk_coverage(*draw()) == pytest.approx(math.fsum(risks(*draw())) / EXAMPLES, rel=1e-13)


@DRAWN
def test_the_area_is_scikit_learns_of_the_curve_and_half_of_its_ends(make: Callable[[], tuple]) -> None:
    coverage, risk = risk_coverage_curve(*make())
    # Trapezia over [1/n, 1] have the first and last risk half.
    ends = float(risk[0] + risk[-1]) / (2 * EXAMPLES)
    expected = sklearn.metrics.auc(coverage.numpy(), risk.numpy()) + ends
    assert area_under_risk_coverage(*make()) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("risk", [0.05, 0.2, 0.3])
def test_the_coverage_at_a_risk_is_the_largest_that_has_it(risk: float) -> None:
    admissible = [k for k, found in enumerate(risks(*draw()), start=1) if found <= risk]
    assert coverage_at_risk(*draw(), risk) == (max(admissible) / EXAMPLES if admissible else 0)


def test_the_coverage_at_a_risk_goes_beyond_coverages_that_are_above_it() -> None:
    # The most confident is wrong, the 39 that follow are right: 1/1, 1/2, … 1/20 = 5 %, … 1/40.
    confidence = torch.arange(40, 0, -1).double()
    assert coverage_at_risk(confidence, torch.arange(40) > 0) == 1


@pytest.mark.parametrize("errors", range(1, 60))
@pytest.mark.parametrize("risk", [0.05, 0.1, 0.3, 0.01, 0.07])
def test_a_risk_that_is_met_exactly_is_admissible(errors: int, risk: float) -> None:
    hundredths = round(100 * risk)
    examples = 100 * errors  # hundredths · errors of them are wrong, the least confident
    correct = torch.arange(examples) < (100 - hundredths) * errors
    confidence = torch.arange(examples, 0, -1).double()
    assert coverage_at_risk(confidence, correct, risk) == 1
    assert coverage_at_risk(torch.ones(examples), correct, risk) == 1


def test_no_coverage_has_a_small_risk_where_all_are_wrong() -> None:
    assert coverage_at_risk(torch.tensor([0.9, 0.8]), torch.tensor([False, False])) == 0


@pytest.mark.parametrize(
    ("examples", "kept"), [(1, 1), (2, 2), (4, 4), (5, 4), (6, 5), (35, 28), (100, 80), (213, 171)]
)
def test_the_risk_at_80_percent_is_that_of_as_many_and_no_fewer(examples: int, kept: int) -> None:
    assert kept == -(-4 * examples // 5)
    confidence, correct = draw(3, examples)
    right = [hit for _, hit in by_confidence(confidence, correct)][:kept]
    assert risk_at_coverage(confidence, correct) == sum(not hit for hit in right) / kept


def test_the_risk_at_no_coverage_is_the_most_confidents() -> None:
    assert risk_at_coverage(torch.tensor([0.5, 0.9]), torch.tensor([True, False]), 0.0) == 1


@DRAWN
def test_the_auroc_is_the_share_of_pairs_in_which_the_right_one_is_more_confident(
    make: Callable[[], tuple],
) -> None:
    confidence, correct = make()
    right, wrong = confidence[correct].tolist(), confidence[~correct].tolist()
    won = sum((one > other) + (one == other) / 2 for one in right for other in wrong)
    assert error_auroc(confidence, correct) == won / (len(right) * len(wrong))


@DRAWN
def test_the_auroc_is_scikit_learns(make: Callable[[], tuple]) -> None:
    confidence, correct = make()
    expected = sklearn.metrics.roc_auc_score(correct.numpy(), confidence.numpy())
    assert error_auroc(confidence, correct) == pytest.approx(expected, rel=1e-13)


@DRAWN
def test_the_auroc_is_torchmetrics(make: Callable[[], tuple]) -> None:
    confidence, correct = make()
    expected = float(torchmetrics.binary_auroc(confidence, correct.long()))
    assert error_auroc(confidence, correct) == pytest.approx(expected, rel=1e-6)  # it sums in float32


@pytest.mark.parametrize("all_are", [True, False])
def test_the_auroc_of_one_kind_alone_is_not_a_number(all_are: bool) -> None:
    assert math.isnan(error_auroc(torch.tensor([0.5, 0.9]), torch.tensor([all_are, all_are])))


def test_the_signed_calibration_error_is_that_of_any_bins() -> None:
    confidence, correct = draw()
    bins = CalibrationBins()
    bins.update(confidence, correct)
    binned = float((bins.confidence - bins.correct).sum()) / EXAMPLES
    expected = math.fsum(confidence.tolist()) / EXAMPLES - sum(correct.tolist()) / EXAMPLES
    found = signed_calibration_error(confidence, correct)
    assert (found, binned) == (pytest.approx(expected, abs=1e-14), pytest.approx(expected, abs=1e-14))


@pytest.mark.parametrize(("correct", "sign"), [(False, 1), (True, -1)])
def test_an_overconfident_network_has_a_calibration_error_above_0(correct: bool, sign: int) -> None:
    found = signed_calibration_error(torch.full((4,), 0.75), torch.full((4,), correct))
    assert found == sign * (0.25 if correct else 0.75)


def adaptive(confidence: Tensor, correct: Tensor, bins: int) -> float:
    pairs = by_confidence(confidence, correct)[::-1]
    n = len(pairs)
    gaps = []
    for b in range(bins):
        held = pairs[b * n // bins : (b + 1) * n // bins]
        gaps.append(abs(math.fsum(c for c, _ in held) - sum(hit for _, hit in held)))
    return math.fsum(gaps) / n


@pytest.mark.parametrize("bins", [1, 2, 15, EXAMPLES, 300])
def test_the_adaptive_calibration_error_is_that_of_bins_of_equal_count(bins: int) -> None:
    found = adaptive_calibration_error(*draw(), bins=bins)
    assert found == pytest.approx(adaptive(*draw(), bins), rel=1e-12)


def test_the_adaptive_calibration_error_has_15_bins() -> None:
    assert adaptive_calibration_error(*draw()) == adaptive_calibration_error(*draw(), bins=15)


def test_a_group_of_equals_that_two_bins_share_is_as_right_in_one_as_in_the_other() -> None:
    # Of four of .5 two are right: .5 each, whatever their order.
    confidence = torch.full((4,), 0.5)
    for right in combinations(range(4), 2):
        correct = torch.tensor([place in right for place in range(4)])
        assert adaptive_calibration_error(confidence, correct, bins=2) == 0


def disagreement(predicted: Tensor) -> list[float]:
    """Of the first 1, 2, … members, of their top classes [members, examples]."""
    count = selective.AgreeingPairs()
    for of_member in predicted:
        count.add(of_member, 3)
    return count.disagreement()


@pytest.mark.parametrize("size", range(1, 6))
def test_the_disagreement_is_the_mean_over_pairs_of_members_that_differ(size: int) -> None:
    predicted = torch.from_numpy(np.random.default_rng(2).integers(3, size=(5, EXAMPLES)))
    pairs = list(combinations(predicted[:size].tolist(), 2))
    differ = [sum(a != b for a, b in zip(*pair, strict=True)) / EXAMPLES for pair in pairs]
    expected = math.fsum(differ) / len(pairs) if pairs else 0
    assert disagreement(predicted)[size - 1] == pytest.approx(expected, rel=1e-13)


def test_the_disagreement_of_two_blocks_is_that_of_all_examples() -> None:
    predicted = torch.from_numpy(np.random.default_rng(2).integers(3, size=(5, EXAMPLES)))
    count = selective.AgreeingPairs()
    for block in predicted.split(100, dim=1):
        for of_member in block:
            count.add(of_member, 3)
        count.next_blocks()
    assert count.disagreement() == disagreement(predicted)


def entropy(probs: list[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probs if p)


def mutual_information(log_probs: Tensor) -> Tensor:
    """Of log-probabilities [members, examples, classes]."""
    of_members = selective.entropy(log_probs).mean(dim=0)
    return selective.information(selective.entropy(mean_log_probs(log_probs)), of_members, len(log_probs))


def test_the_mutual_information_is_the_entropy_of_the_mean_less_the_mean_entropy() -> None:
    logits = torch.from_numpy(np.random.default_rng(4).normal(size=(3, 20, 5)))
    log_probs = (3 * logits).log_softmax(dim=-1)
    for example, found in enumerate(mutual_information(log_probs).tolist()):
        members = log_probs[:, example].exp().tolist()
        mean = [math.fsum(p) / 3 for p in zip(*members, strict=True)]
        expected = entropy(mean) - math.fsum(map(entropy, members)) / 3
        assert found == pytest.approx(expected, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("classes", [2, 10, 300])
@pytest.mark.parametrize("members", [2, 3, 50])
def test_the_mutual_information_of_members_that_are_alike_is_0(members: int, classes: int) -> None:
    logits = 3 * torch.randn(200, classes, generator=torch.Generator().manual_seed(0)).double()
    found = mutual_information(logits.log_softmax(dim=-1).expand(members, -1, -1))
    assert found.tolist() == [0.0] * 200


def test_a_mutual_information_that_is_small_is_not_0() -> None:
    one = torch.tensor([[0.0, 0.0]], dtype=torch.float64).log_softmax(dim=-1)
    other = torch.tensor([[1e-5, 0.0]], dtype=torch.float64).log_softmax(dim=-1)
    # ε²/32 of two members whose logits differ by ε about p = ½
    assert mutual_information(torch.stack([one, other])).item() == pytest.approx(1e-10 / 32, rel=1e-3)


def test_the_mutual_information_of_members_that_are_sure_of_two_classes_is_a_bit() -> None:
    log_probs = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]).log()
    assert mutual_information(log_probs).tolist() == pytest.approx([math.log(2)])


def test_the_auroc_of_two_sets_is_scikit_learns() -> None:
    generator = np.random.default_rng(5)
    positive, negative = generator.integers(9, size=50) + 2.0, generator.integers(9, size=70) + 0.0
    scores, labels = np.concatenate([positive, negative]), [1] * 50 + [0] * 70
    expected = sklearn.metrics.roc_auc_score(labels, scores)
    assert auroc(torch.from_numpy(positive), torch.from_numpy(negative)) == pytest.approx(expected, rel=1e-13)


def test_without_examples_every_metric_is_not_a_number() -> None:
    none = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
    assert all(map(math.isnan, selective_metrics(*none).values()))
    assert all(map(math.isnan, disagreement(torch.zeros(2, 0, dtype=torch.int64))))


def test_the_metrics_are_those_of_their_functions_by_name() -> None:
    expected = {
        "signed_ece": signed_calibration_error(*tied()),
        "adaptive_ece": adaptive_calibration_error(*tied()),
        "aurc": area_under_risk_coverage(*tied()),
        "cov_at_5_risk": coverage_at_risk(*tied(), 0.05),
        "risk_at_80_cov": risk_at_coverage(*tied(), 0.8),
        "auroc_errors": error_auroc(*tied()),
    }
    assert selective_metrics(*tied()) == expected
    assert (*expected, "disagreement") == selective.SELECTIVE_METRICS


RIGHT = torch.tensor([True, False])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: error_auroc([0.5, 0.6], RIGHT), "confidence must be a tensor"),
        (lambda: error_auroc(torch.tensor([1, 2]), RIGHT), "floating-point"),
        (lambda: error_auroc(torch.rand(2, 2), RIGHT), r"one dimension, not of shape \[2, 2\]"),
        (lambda: error_auroc(torch.rand(3), RIGHT), r"correct must be bool \[3\]"),
        (lambda: error_auroc(torch.rand(2), RIGHT.long()), "torch.int64"),
        (lambda: area_under_risk_coverage(torch.tensor([0.5, math.nan]), RIGHT), "NaN, the first at 1"),
        (lambda: coverage_at_risk(torch.rand(2), RIGHT, -1), "risk must be"),
        (lambda: risk_at_coverage(torch.rand(2), RIGHT, 1.5), "coverage must be a fraction from 0 to 1"),
        (lambda: auroc(torch.rand(2), torch.tensor([math.nan])), "negative has values that are NaN"),
    ],
)
def test_what_is_no_confidence_or_class_is_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(lpe.InputError, match=said):
        call()
