"""Selective metrics: what an ensemble's confidence is good for, once all examples are there.

With c(x) the confidence (the top probability of the mean of probabilities), y(x) whether the top class is
right, and the examples ordered by falling confidence:

    risk at coverage k/n   share of errors among the k most confident of n examples
    aurc                   mean of the risk over k = 1 … n: the area under the risk-coverage curve (Geifman &
                           El-Yaniv 2017, "Selective classification for deep neural networks")
    cov_at_5_risk          the largest coverage k/n whose risk is at most 5 %; 0 where there is none
    risk_at_80_cov         the risk of the ⌈.8 n⌉ most confident
    auroc_errors           probability that a right example is more confident than a wrong one, a tie one half
                           (Hendrycks & Gimpel 2017, "A baseline for detecting misclassified and
                           out-of-distribution examples")
    signed_ece             Σ over bins of (Σ confidence − Σ right) / n, which no choice of bins changes: mean
                           confidence − accuracy. Above 0 a network is over-confident
    adaptive_ece           Σ over 15 bins of equal count of |Σ confidence − Σ right| / n (Nixon et al. 2019,
                           "Measuring calibration in deep learning")
    disagreement           share of pairs of members whose top classes differ, mean over examples

Examples of the same confidence have no order. They are taken in a random one and their errors in expectation:
of k examples out of a group of g equals with e errors, k·e/g are wrong. So no metric depends on the order in
which examples come.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpe.checks import check_finite, check_tensor
from lpe.errors import InputError
from lpe.evaluation.metrics import ECE_BINS

RISK = 0.05
COVERAGE = 0.8
SELECTIVE_METRICS = (
    "signed_ece",
    "adaptive_ece",
    "aurc",
    "cov_at_5_risk",
    "risk_at_80_cov",
    "auroc_errors",
    "disagreement",
)


def selective_metrics(confidence: Tensor, correct: Tensor) -> dict[str, float]:
    """Return all selective metrics by name but ``disagreement``, which is of members.

    Args:
        confidence: [examples], top probabilities. correct: bool [examples], whether the top class is right.

    Raises:
        InputError: as :func:`risk_coverage_curve`.
    """
    return {
        "signed_ece": signed_calibration_error(confidence, correct),
        "adaptive_ece": adaptive_calibration_error(confidence, correct),
        "aurc": area_under_risk_coverage(confidence, correct),
        "cov_at_5_risk": coverage_at_risk(confidence, correct),
        "risk_at_80_cov": risk_at_coverage(confidence, correct),
        "auroc_errors": error_auroc(confidence, correct),
    }


def risk_coverage_curve(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coverages 1/n, 2/n, … 1 and the risk at each, float64 [examples] both.

    Args:
        confidence: [examples]; any score that is larger where the ensemble is surer.
        correct: bool [examples].

    Raises:
        InputError: another shape or type; a confidence that is NaN.
    """
    wrong, shares, counts = _errors_of_most_confident(*_checked(confidence, correct))
    return counts / max(len(counts), 1), wrong / (shares * counts)


def area_under_risk_coverage(confidence: Tensor, correct: Tensor) -> float:
    """Return the mean of the risk over the coverages 1/n … 1, a fraction; NaN without examples.

    0 is perfect. The arguments are :func:`risk_coverage_curve`'s.
    """
    _, risk = risk_coverage_curve(confidence, correct)
    return float(risk.mean())


def coverage_at_risk(confidence: Tensor, correct: Tensor, risk: float = RISK) -> float:
    """Return the largest coverage at which the risk is at most ``risk``.

    Args:
        confidence, correct: :func:`risk_coverage_curve`'s. risk: a fraction.

    Returns:
        A fraction; 0 where the risk is above at every coverage, NaN without examples.

    Raises:
        InputError: as :func:`risk_coverage_curve`; a risk that is no number ≥ 0.
    """
    allowed = check_finite("risk", risk)
    wrong, shares, counts = _errors_of_most_confident(*_checked(confidence, correct))
    if not len(counts):
        return math.nan
    # Not by the curve: k errors of 20·k are 5 %, and a quotient may lie a bit above.
    admissible = (wrong <= allowed * (shares * counts)).nonzero()
    return float(admissible[-1] + 1) / len(counts) if len(admissible) else 0.0


def risk_at_coverage(confidence: Tensor, correct: Tensor, coverage: float = COVERAGE) -> float:
    """Return the risk of the most confident examples, ⌈coverage · n⌉ of n and at least one.

    Args:
        confidence, correct: :func:`risk_coverage_curve`'s. coverage: a fraction from 0 to 1.

    Returns:
        A fraction; NaN without examples.

    Raises:
        InputError: as :func:`risk_coverage_curve`; a coverage that is no fraction.
    """
    share = check_finite("coverage", coverage)
    if share > 1:
        raise InputError(f"coverage must be a fraction from 0 to 1, not {coverage!r}")
    _, risk = risk_coverage_curve(confidence, correct)
    # .8 · n may lie a bit above a whole number, which is meant.
    return float(risk[max(math.ceil(round(share * len(risk), 6)), 1) - 1]) if len(risk) else math.nan


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Return the probability that a positive has a higher score than a negative, a tie counting one half.

    Args:
        positive, negative: scores [positives] and [negatives].

    Returns:
        The area under the receiver operating characteristic; ½ is chance. NaN where one side is empty.

    Raises:
        InputError: another shape or type; a score that is NaN.
    """
    above, below = _scores("positive", positive), _scores("negative", negative)
    if not len(above) or not len(below):
        return math.nan
    ordered = below.sort().values
    lower = torch.searchsorted(ordered, above, right=False).sum()
    not_higher = torch.searchsorted(ordered, above, right=True).sum()
    return float(lower + not_higher) / (2 * len(above) * len(below))


def error_auroc(confidence: Tensor, correct: Tensor) -> float:
    """Return the AUROC by which confidence tells right predictions from wrong ones.

    The arguments are :func:`risk_coverage_curve`'s. NaN where all are right, or all wrong.
    """
    scores, right = _checked(confidence, correct)
    return auroc(scores[right], scores[~right])


def signed_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return mean confidence − accuracy: above 0 where a network is over-confident.

    Args:
        confidence: [examples], probabilities. correct: bool [examples].

    Returns:
        A number from −1 to 1; NaN without examples.

    Raises:
        InputError: as :func:`risk_coverage_curve`.
    """
    scores, right = _checked(confidence, correct)
    return float(scores.sum() - right.sum()) / len(scores) if len(scores) else math.nan


def adaptive_calibration_error(confidence: Tensor, correct: Tensor, bins: int = ECE_BINS) -> float:
    """Return the calibration error over bins of equal count.

    Bin b of B holds the examples ⌊b·n/B⌋ … ⌊(b + 1)·n/B⌋ − 1 by rising confidence; below B examples some are
    empty. The arguments are :func:`signed_calibration_error`'s.

    Returns:
        A fraction; NaN without examples.
    """
    scores, right = _checked(confidence, correct)
    n = len(scores)
    if not n:
        return math.nan
    values, group, count = scores.unique(return_inverse=True, return_counts=True)  # ascending
    hits = torch.bincount(group, weights=right.double(), minlength=len(values))
    gap = torch.repeat_interleave(values - hits / count, count)
    edges = [b * n // bins for b in range(bins + 1)]
    return math.fsum(abs(float(each.sum())) for each in gap.split(_widths(edges))) / n


class AgreeingPairs:
    """Counts pairs of members with the same top class, member after member, over blocks of examples."""

    def __init__(self) -> None:
        self.examples: list[int] = []
        self.pairs: list[int] = []
        self._votes: dict[int, Tensor] = {}
        self._members: dict[int, int] = {}

    def add(self, predicted: Tensor, classes: int, block: int = 0) -> None:
        """Add the next member's top classes, int64 [examples], of one of the blocks that are counted."""
        if block not in self._votes:
            votes = torch.zeros(len(predicted), classes, dtype=torch.int32, device=predicted.device)
            self._votes[block], self._members[block] = votes, 0
        votes, member = self._votes[block], self._members[block]
        own = predicted.to(votes.device)[:, None]
        # It agrees with as many earlier members as voted for its class.
        agreeing = int(votes.gather(1, own).sum())
        votes.scatter_add_(1, own, torch.ones_like(own, dtype=torch.int32))
        if member == len(self.pairs):
            self.pairs.append(0)
            self.examples.append(0)
        self.pairs[member] += agreeing
        self.examples[member] += len(predicted)
        self._members[block] += 1

    def next_blocks(self) -> None:
        """Begin other blocks of examples, with the first member."""
        self._votes.clear()
        self._members.clear()

    def disagreement(self) -> list[float]:
        """Return the share of pairs that differ, of the first 1, 2, … members; 0 of a single one."""
        found, agreeing = [], 0
        for member, (pairs, examples) in enumerate(zip(self.pairs, self.examples, strict=True)):
            agreeing += pairs
            of_all = examples * (member + 1) * member // 2
            found.append(1 - agreeing / of_all if of_all else 0.0 if examples else math.nan)
        return found


def information(of_mean: Tensor, of_members: Tensor, members: int) -> Tensor:
    """Return the mutual information of prediction and member: entropy of the mean − mean entropy.

    It is what members differ in, example by example, and large where they were not trained to agree (Houlsby
    et al. 2011, "Bayesian active learning for classification and preference learning"). Of members that are
    alike the difference is a rounding error of either sign, which has an order, but no meaning: an AUROC of
    it would be a number by chance, where it is ½. The error was at most 1.4 · 10⁻¹⁶ for each member and nat,
    at 2 to 1,000 classes and 2 to 100 members. What is below that is 0.

    Args:
        of_mean: the entropy of the members' mean. of_members: the mean of their entropies; both float64
            [examples], nats. members: how many they are.

    Returns:
        float64 [examples], nats; at least 0, and 0 where members are alike.
    """
    difference = of_mean - of_members
    return torch.where(difference > members * (1 + of_mean) * 2.0**-51, difference, 0.0)


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy of log-probabilities […, classes], nats […]; probability 0 adds nothing."""
    return torch.special.entr(log_probs.exp()).sum(dim=-1)


def _widths(edges: list[int]) -> list[int]:
    return [end - start for start, end in zip(edges, edges[1:], strict=False)]


def _scores(name: str, values: Tensor) -> Tensor:
    check_tensor(name, values)
    scores = values.detach().double().cpu()
    if scores.dim() != 1:
        raise InputError(f"{name} must be of one dimension, not of shape {list(values.shape)}")
    if bool(scores.isnan().any()):
        raise InputError(f"{name} has values that are NaN, the first at {int(scores.isnan().nonzero()[0])}")
    return scores


def _checked(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    scores = _scores("confidence", confidence)
    check_tensor("correct", correct, floating=False)
    if correct.dtype != torch.bool or correct.shape != scores.shape:
        raise InputError(
            f"correct must be bool [{len(scores)}], one an example, not {correct.dtype} of shape "
            f"{list(correct.shape)}"
        )
    return scores, correct.cpu()


def _errors_of_most_confident(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return errors among the k = 1 … n most confident as fractions, float64 [examples] of whole numbers.

    Returns:
        numerators, denominators (the size of the group of equals that k falls into), and k.
    """
    _, group, size = (-confidence).unique(return_inverse=True, return_counts=True)  # most confident first
    errors = torch.bincount(group, weights=(~correct).double(), minlength=len(size)).long()
    before, errors_before = size.cumsum(0) - size, errors.cumsum(0) - errors
    k = torch.arange(1, len(group) + 1, device="cpu")
    of = torch.repeat_interleave(size)
    numerators = errors_before[of] * size[of] + (k - before[of]) * errors[of]
    return numerators.double(), size[of].double(), k.double()
