"""Metrics of an ensemble, streaming over examples, accumulated in float64; natural logarithms.

With p_m the member probabilities and z_m the member logits:

    nll, err, ece, brier   of the mean of probabilities
    average_loss           mean over members of the member NLL
    ensemble_loss          NLL of softmax(mean of logits)
    ambiguity              average_loss − ensemble_loss = −mean over x of logsumexp over classes of
                           (mean over m of log p_m) ≥ 0

``ensemble_loss`` is the centroid of the cross-entropy decomposition (Wood et al. 2023) and is not ``nll``.

A class may have logit −∞ in a member. Where that is a target, average_loss and ensemble_loss are ∞ and
ambiguity is what it is by its formula. Where members rule out all classes between them, ambiguity is ∞, and
ensemble_loss, which then is of no distribution, is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpe.checks import is_integer, shown
from lpe.errors import InputError

ECE_BINS = 15
METRICS = ("nll", "err", "ece", "average_loss", "ambiguity", "ensemble_loss", "brier")


def _no_sums() -> Tensor:
    return torch.zeros(ECE_BINS, dtype=torch.float64, device="cpu")


@dataclass
class CalibrationBins:
    """Expected calibration error: 15 equal bins (lo, hi] on the top probability (Guo et al. 2017)."""

    count: Tensor = field(default_factory=_no_sums)
    confidence: Tensor = field(default_factory=_no_sums)
    correct: Tensor = field(default_factory=_no_sums)

    def update(self, confidence: Tensor, correct: Tensor) -> None:
        """Add examples: confidence float64 [examples] in [0, 1], correct bool [examples]."""
        confidence = confidence.double().cpu()
        edges = torch.arange(1, ECE_BINS, dtype=torch.float64, device="cpu") / ECE_BINS
        # right=False puts a value equal to an edge into the bin that the edge closes: (lo, hi].
        index = torch.bucketize(confidence, edges, right=False)
        self.count += torch.bincount(index, minlength=ECE_BINS).double()
        self.confidence += torch.bincount(index, weights=confidence, minlength=ECE_BINS)
        self.correct += torch.bincount(index, weights=correct.double().cpu(), minlength=ECE_BINS)

    def value(self) -> float:
        """Return Σ over bins of |Σ correct − Σ confidence| / examples; NaN without examples."""
        total = float(self.count.sum())
        return float((self.correct - self.confidence).abs().sum()) / total if total else float("nan")


@dataclass
class EnsembleMetrics:
    """Running sums of all metrics of one ensemble size."""

    examples: int = 0
    nll: float = 0.0
    errors: int = 0
    average_loss: float = 0.0
    ensemble_loss: float = 0.0
    ambiguity: float = 0.0
    brier: float = 0.0
    bins: CalibrationBins = field(default_factory=CalibrationBins)

    def update(self, log_probs: Tensor, mean_logits: Tensor, member_nll: Tensor, targets: Tensor) -> None:
        """Add examples.

        Args:
            log_probs: float64 [examples, classes], log of the mean of the members' probabilities.
            mean_logits: float64 [examples, classes], mean over members of the log-probabilities, or of the
                logits, which differ by a constant a row, where no target is −∞.
            member_nll: float64 [examples], mean over members of the NLL of the target.
            targets: int64 [examples].
        """
        rows = torch.arange(len(targets), device=targets.device)
        target_log_probs = log_probs[rows, targets]
        probs = log_probs.exp()
        confidence, predicted = probs.max(dim=-1)
        ensemble_nll = -mean_logits.log_softmax(dim=-1)[rows, targets]
        # Σ_c (p_c − y_c)² = Σ_c p_c² − 2 p_target + 1
        brier = probs.square().sum(dim=-1) - 2 * target_log_probs.exp() + 1
        right = predicted == targets
        # Together: each number read alone would wait for a GPU once more.
        sums = torch.stack(
            [each.sum() for each in (-target_log_probs, member_nll, ensemble_nll, brier, ~right)]
        ).tolist()
        self.examples += len(targets)
        self.nll += sums[0]
        self.average_loss += sums[1]
        self.ensemble_loss += sums[2]
        self.brier += sums[3]
        self.errors += int(sums[4])
        if math.isfinite(sums[1]):
            self.ambiguity += sums[1] - sums[2]
        else:
            # Of a target that a member rules out ∞ − ∞ is the formula's value all the same.
            of_formula = -mean_logits.logsumexp(dim=-1)
            self.ambiguity += float(
                torch.where(member_nll.isinf(), of_formula, member_nll - ensemble_nll).sum()
            )
        self.bins.update(confidence, right)

    def values(self) -> dict[str, float]:
        """Return all metrics by name; NaN without examples."""
        n = self.examples or float("nan")
        return {
            "nll": self.nll / n,
            "err": self.errors / n,
            "ece": self.bins.value(),
            "average_loss": self.average_loss / n,
            "ambiguity": self.ambiguity / n,
            "ensemble_loss": self.ensemble_loss / n,
            "brier": self.brier / n,
        }


def calibrated_sizes(calibrated: Any, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes at which temperatures are fitted.

    Args:
        calibrated: True (all), False (none), or those.
        sizes: that there are.

    Raises:
        InputError: another value, or a size that there is not.
    """
    if isinstance(calibrated, bool | np.bool_):
        return tuple(sizes) if calibrated else ()
    is_list = isinstance(calibrated, Collection) and not isinstance(calibrated, str | bytes | Tensor)
    given: list[Any] = list(calibrated) if is_list else [None]
    if not all(is_integer(size) and size in sizes for size in given):
        raise InputError(
            f"calibrated must be True, False or a list of sizes out of {', '.join(map(str, sizes))}, not "
            f"{shown(calibrated)}"
        )
    return tuple(map(int, given))


def mean_log_probs(log_probs: Tensor) -> Tensor:
    """Return log of the mean of probabilities: [members, …, classes] → […, classes]."""
    return torch.logsumexp(log_probs, dim=0) - math.log(log_probs.shape[0])


def nll(log_probs: Tensor, targets: Tensor) -> float:
    """Return mean NLL of log-probabilities [examples, classes] at targets [examples]."""
    return -float(log_probs.double().gather(1, targets[:, None]).mean())


def fit_temperature(log_probs: Tensor, targets: Tensor) -> float:
    """Return the temperature T > 0 that minimises the NLL of softmax(log_probs / T), under a weak prior.

    The prior is log T ~ N(0, 1). Without it, T is 0 on examples that are all predicted right, and a single
    error elsewhere then costs without limit; against thousands of examples it weighs nothing.

    Args:
        log_probs: [examples, classes]. targets: [examples].

    Returns:
        T within [e⁻⁵, e⁵], and 1 where a target has probability 0, which no T changes; Guo et al. 2017, "On
        calibration of modern neural networks".
    """
    from scipy.optimize import minimize_scalar  # slow to import, rarely needed

    scores = log_probs.double()
    if math.isinf(nll(scores, targets)):
        return 1.0

    def loss(log_temperature: float) -> float:
        fit = nll((scores / math.exp(log_temperature)).log_softmax(dim=-1), targets)
        return fit + log_temperature**2 / (2 * len(targets))

    found = minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def check_two_examples(targets: Tensor) -> None:
    """Raise InputError for fewer than two examples: those that fit a temperature are not those it scores."""
    if len(targets) < 2:
        raise InputError(
            f"a temperature is fitted on other examples than it scores; two or more are needed, not "
            f"{len(targets)}"
        )


FEW_EXAMPLES = 2000
"""Below so many examples a half is too few to fit on: its temperature can cost more than it gains."""


def temperature_folds(examples: int) -> int:
    """Return the folds of the calibrated NLL: 2 from FEW_EXAMPLES on, else 10, or one an example below 10."""
    return 2 if examples >= FEW_EXAMPLES else min(10, examples)


def temperature_scaled(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Return temperature-scaled log-probabilities, each fold of the examples by the others' temperature.

    Fold i of k holds the examples at positions i, i + k, i + 2k, …; k is :func:`temperature_folds`. The NLL
    of the result is the calibrated NLL (Ashukha et al. 2020, "Pitfalls of in-domain uncertainty estimation
    and ensembling", who have two halves).

    Args:
        log_probs: [examples, classes], of the mean of probabilities. targets: [examples]; 2 or more.

    Returns:
        float64 [examples, classes].

    Raises:
        InputError: fewer than two examples.
    """
    check_two_examples(targets)
    scaled = torch.empty_like(log_probs, dtype=torch.float64)
    folds = temperature_folds(len(targets))
    fold = torch.arange(len(targets), device=targets.device) % folds
    for scored in range(folds):
        rest = fold != scored
        temperature = fit_temperature(log_probs[rest], targets[rest])
        scaled[~rest] = (log_probs[~rest].double() / temperature).log_softmax(dim=-1)
    return scaled
