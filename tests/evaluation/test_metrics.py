"""Every metric against a slow definition of its own, and faults that the same checks must catch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lpe.evaluation import metrics
from lpe.evaluation.metrics import (
    CalibrationBins,
    EnsembleMetrics,
    fit_temperature,
    mean_log_probs,
    nll,
    temperature_folds,
    temperature_scaled,
)

MEMBERS, EXAMPLES, CLASSES = 3, 90, 5


def draw(scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float64 logits [members, examples, classes] and targets; the members agree in part."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(1, EXAMPLES, CLASSES))
    logits = scale * (shared + 0.5 * generator.normal(size=(MEMBERS, EXAMPLES, CLASSES)))
    return torch.from_numpy(logits), torch.from_numpy(generator.integers(CLASSES, size=EXAMPLES))


def extreme() -> tuple[Tensor, Tensor]:
    """Logits of ±10⁴ alone: probabilities of exactly 0 and 1, and losses of 2·10⁴."""
    logits, targets = draw(1.0, seed=1)
    return torch.where(logits > 0, 1e4, -1e4).double(), targets


LOGITS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "flat": lambda: draw(0.1),
    "usual": lambda: draw(2.0),
    "peaked": lambda: draw(50.0),
    "extreme": extreme,
    "bfloat16": lambda: (draw(2.0)[0].bfloat16(), draw(2.0)[1]),
}
EVERY_KIND = pytest.mark.parametrize("kind", LOGITS)


# The definitions, one example and one class at a time.


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    log_sum = top + math.log(math.fsum(math.exp(z - top) for z in row))
    return [z - log_sum for z in row]


def log_mean(values: list[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values) / len(values))


def by_definition(logits: Tensor, targets: Tensor) -> dict[str, float]:
    rows: dict[str, list[float]] = {name: [] for name in metrics.METRICS if name != "ece"}
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for example, target in enumerate(targets.tolist()):
        members = [log_softmax(member) for member in logits[:, example].double().tolist()]
        mixture = [log_mean([member[c] for member in members]) for c in range(len(members[0]))]
        mean_logits = [
            math.fsum(z) / len(logits) for z in zip(*logits[:, example].double().tolist(), strict=True)
        ]
        probs = [math.exp(value) for value in mixture]
        predicted = probs.index(max(probs))
        rows["nll"].append(-mixture[target])
        rows["err"].append(float(predicted != target))
        rows["average_loss"].append(-math.fsum(member[target] for member in members) / len(members))
        rows["ensemble_loss"].append(-log_softmax(mean_logits)[target])
        rows["brier"].append(math.fsum((p - (c == target)) ** 2 for c, p in enumerate(probs)))
        rows["ambiguity"].append(rows["average_loss"][-1] - rows["ensemble_loss"][-1])
        # (lo, hi]: the first bin that ends at or after the confidence.
        index = next((b for b in range(15) if probs[predicted] <= (b + 1) / 15), 14)
        bins[index].append((probs[predicted], predicted == target))
    gaps = [
        abs(math.fsum(hit for _, hit in b) / len(b) - math.fsum(p for p, _ in b) / len(b)) * len(b)
        for b in bins
        if b
    ]
    return {
        **{name: math.fsum(values) / len(values) for name, values in rows.items()},
        "ece": math.fsum(gaps) / len(targets),
    }


def update(into: EnsembleMetrics, logits: Tensor, targets: Tensor) -> None:
    logits = logits.double()
    log_probs = logits.log_softmax(dim=-1)
    member_nll = -log_probs.gather(2, targets.expand(len(logits), -1)[..., None])[..., 0].mean(dim=0)
    into.update(mean_log_probs(log_probs), logits.mean(dim=0), member_nll, targets)


def values_of(logits: Tensor, targets: Tensor, batch: int = EXAMPLES) -> dict[str, float]:
    found = EnsembleMetrics()
    for start in range(0, len(targets), batch):
        update(found, logits[:, start : start + batch], targets[start : start + batch])
    return found.values()


def check(name: str, found: float, logits: Tensor, targets: Tensor) -> None:
    # A sum of some hundred float64 terms; losses may be 10⁴ times the ambiguity that they leave.
    assert found == pytest.approx(by_definition(logits, targets)[name], rel=1e-11, abs=1e-11)


@EVERY_KIND
@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_metric_is_its_definition(name: str, kind: str) -> None:
    logits, targets = LOGITS[kind]()
    check(name, values_of(logits, targets)[name], logits, targets)


@EVERY_KIND
@pytest.mark.parametrize("batch", [1, 7])
def test_streaming_gives_what_one_batch_gives(batch: int, kind: str) -> None:
    logits, targets = LOGITS[kind]()
    expected = values_of(logits, targets)
    # The same terms are summed in another order.
    assert values_of(logits, targets, batch) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@EVERY_KIND
def test_every_metric_is_finite(kind: str) -> None:
    assert all(map(math.isfinite, values_of(*LOGITS[kind]()).values()))


@EVERY_KIND
def test_ambiguity_is_not_negative(kind: str) -> None:
    assert values_of(*LOGITS[kind]())["ambiguity"] >= 0


@EVERY_KIND
def test_ambiguity_needs_no_labels(kind: str) -> None:
    logits, targets = LOGITS[kind]()
    # −mean over x of logsumexp over classes of (mean over m of log p_m)
    mean_logs = logits.double().log_softmax(dim=-1).mean(dim=0)
    expected = -float(mean_logs.logsumexp(dim=-1).mean())
    assert values_of(logits, targets)["ambiguity"] == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_ambiguity_of_members_that_agree_is_zero() -> None:
    logits, targets = draw(2.0)
    assert values_of(logits[:1].expand(3, -1, -1), targets)["ambiguity"] == pytest.approx(0, abs=1e-14)


def test_ambiguity_ignores_a_constant_added_to_a_members_logits() -> None:
    logits, targets = draw(2.0)
    shifted = logits + torch.tensor([0.0, 100.0, -3.0])[:, None, None]
    expected = values_of(logits, targets)["ambiguity"]
    assert values_of(shifted, targets)["ambiguity"] == pytest.approx(expected, rel=1e-11)


def test_ensemble_loss_is_not_nll() -> None:
    found = values_of(*draw(2.0))
    assert abs(found["ensemble_loss"] - found["nll"]) > 1e-3


@pytest.mark.parametrize("name", metrics.METRICS)
def test_metrics_without_examples_are_nan(name: str) -> None:
    assert math.isnan(EnsembleMetrics().values()[name])


def test_nll_is_the_mean_over_examples_of_minus_the_targets_log_probability() -> None:
    logits, targets = draw(2.0)
    expected = by_definition(logits[:1], targets)["nll"]
    assert nll(logits[0].log_softmax(dim=-1), targets) == pytest.approx(expected, rel=1e-13)


# Faults, each caught by the check above


def test_the_check_catches_ambiguity_from_probabilities_in_place_of_logits() -> None:
    logits, targets = draw(2.0)
    log_probs = logits.log_softmax(dim=-1)
    found = EnsembleMetrics()
    member_nll = -log_probs.gather(2, targets.expand(MEMBERS, -1)[..., None])[..., 0].mean(dim=0)
    found.update(mean_log_probs(log_probs), mean_log_probs(log_probs), member_nll, targets)
    with pytest.raises(AssertionError):
        check("ambiguity", found.values()["ambiguity"], logits, targets)


def test_the_check_catches_nll_of_the_mean_of_logits() -> None:
    logits, targets = draw(2.0)
    with pytest.raises(AssertionError):
        check("nll", nll(logits.mean(dim=0).log_softmax(dim=-1), targets), logits, targets)


def test_the_check_catches_bfloat16_logits_that_are_not_upcast() -> None:
    logits, targets = LOGITS["bfloat16"]()
    with pytest.raises(AssertionError):
        check("nll", nll(mean_log_probs(logits.log_softmax(dim=-1)), targets), logits, targets)


# Calibration error: the bins' edges

EDGES = [k / 15 for k in range(1, 16)]


def ece_of(confidence: float) -> list[float]:
    """The bin counts after one example of that confidence."""
    bins = CalibrationBins()
    bins.update(torch.tensor([confidence], dtype=torch.float64), torch.tensor([True]))
    return bins.count.tolist()


def check_an_edge_closes_its_bin(k: int) -> None:
    assert ece_of(k / 15).index(1.0) == k - 1


@pytest.mark.parametrize("k", range(1, 16))
def test_a_confidence_on_an_edge_is_in_the_bin_that_the_edge_closes(k: int) -> None:
    check_an_edge_closes_its_bin(k)


@pytest.mark.parametrize("k", range(1, 15))
def test_a_confidence_just_above_an_edge_is_in_the_next_bin(k: int) -> None:
    assert ece_of(math.nextafter(k / 15, 1.0)).index(1.0) == k


@pytest.mark.parametrize(("confidence", "index"), [(0.2, 2), (0.0, 0), (1.0, 14), (1.0 + 1e-15, 14)])
def test_a_confidence_of_note_is_in_its_bin(confidence: float, index: int) -> None:
    assert ece_of(confidence).index(1.0) == index


def swap_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    bucketize = torch.bucketize
    monkeypatch.setattr(torch, "bucketize", lambda x, edges, right: bucketize(x, edges, right=not right))


@pytest.mark.parametrize("k", range(1, 15))
def test_the_check_of_an_edge_catches_bins_closed_below(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    swap_edges(monkeypatch)
    with pytest.raises(AssertionError):
        check_an_edge_closes_its_bin(k)


def on_the_edge() -> tuple[Tensor, Tensor]:
    """Two examples of confidence 0.6 = 9/15, one right and one wrong, and one of 0.65 that is right."""
    probs = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.65, 0.35]], dtype=torch.float64)
    return probs.max(dim=-1).values, torch.tensor([True, False, True])


def check_the_calibration_error_on_the_edge() -> None:
    bins = CalibrationBins()
    bins.update(*on_the_edge())
    # By hand: bin (8/15, 9/15] has |1 − 1.2|, bin (9/15, 10/15] has |1 − 0.65|.
    assert bins.value() == pytest.approx((0.2 + 0.35) / 3, rel=1e-14)


def test_the_calibration_error_of_examples_on_an_edge_is_that_worked_out_by_hand() -> None:
    check_the_calibration_error_on_the_edge()


def test_the_check_by_hand_catches_bins_closed_below(monkeypatch: pytest.MonkeyPatch) -> None:
    swap_edges(monkeypatch)
    with pytest.raises(AssertionError):
        check_the_calibration_error_on_the_edge()


@pytest.mark.parametrize("batch", [1, 7])
def test_streamed_bins_equal_those_of_one_batch(batch: int) -> None:
    generator = np.random.default_rng(3)
    confidence = torch.from_numpy(generator.uniform(size=100))
    correct = torch.from_numpy(generator.uniform(size=100) < 0.5)
    once, streamed = CalibrationBins(), CalibrationBins()
    once.update(confidence, correct)
    for start in range(0, 100, batch):
        streamed.update(confidence[start : start + batch], correct[start : start + batch])
    assert streamed.value() == pytest.approx(once.value(), rel=1e-13)


@pytest.mark.parametrize("kind", ["flat", "usual"])
def test_off_the_edges_the_calibration_error_is_torchmetrics(kind: str) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, targets = LOGITS[kind]()
    log_probs = mean_log_probs(logits.log_softmax(dim=-1))
    confidence = log_probs.exp().max(dim=-1).values
    assert float((confidence[:, None] - torch.tensor(EDGES)).abs().min()) > 1e-6
    expected = float(multiclass_calibration_error(log_probs.exp(), targets, CLASSES, n_bins=15))
    # torchmetrics sums in float32.
    assert values_of(logits, targets)["ece"] == pytest.approx(expected, rel=1e-5)


# Temperature


def overconfident(temperature: float, examples: int = 40_000) -> tuple[Tensor, Tensor]:
    """Two classes at 3 to 1, exactly, with logits that say so at that temperature."""
    scores = torch.tensor([math.log(3.0) * temperature, 0.0], dtype=torch.float64)
    log_probs = scores.log_softmax(dim=-1).expand(examples, 2).clone()
    return log_probs, (torch.arange(examples) % 4 == 0).long()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0, 20.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    # At the minimum the prior's slope, log T / n, is the NLL's: with the NLL's curvature in log T,
    # p (1 − p) (log 3)² = .226, log T is off by log T / (.226 n), for T = 20 by 3.3e-4.
    assert fit_temperature(*overconfident(temperature)) == pytest.approx(temperature, rel=4e-4)


def test_the_prior_holds_the_temperature_where_every_example_is_right() -> None:
    # 200 examples at odds e² : 1, all right: NLL falls to 0 as T does, 200 log(1 + exp(−2/T)) + (log T)²/2 is
    # least where 400/T / (1 + exp(2/T)) = −log T.
    log_probs = torch.tensor([[2.0, 0.0]], dtype=torch.float64).log_softmax(dim=-1).expand(200, 2)
    temperature = fit_temperature(log_probs, torch.zeros(200, dtype=torch.long))
    assert 400 / temperature / (1 + math.exp(2 / temperature)) == pytest.approx(
        -math.log(temperature), rel=1e-3
    )


def folds_of(number: int, each: int) -> tuple[Tensor, Tensor]:
    """Folds that need temperatures .5, 1, 1.5, … each, dealt out in turn; each is 3 to 1."""
    folds = [overconfident((fold + 1) / 2, each) for fold in range(number)]
    log_probs = torch.stack([log_probs for log_probs, _ in folds], dim=1).flatten(0, 1)
    return log_probs, torch.stack([targets for _, targets in folds], dim=1).flatten()


def check_each_fold_is_scaled_by_the_others_temperature(
    scale: Callable[[Tensor, Tensor], Tensor], number: int, each: int
) -> None:
    """Every fold's scores, by its positions written out, against the temperature of all other examples."""
    log_probs, targets = folds_of(number, each)
    scaled = scale(log_probs, targets)
    for fold in range(number):
        own = [fold + number * place for place in range(each)]
        rest = [place for place in range(len(targets)) if place % number != fold]
        temperature = fit_temperature(log_probs[rest], targets[rest])
        expected = (log_probs[own] / temperature).log_softmax(dim=-1)
        torch.testing.assert_close(scaled[own], expected, rtol=1e-6, atol=0)


FOLDS = {"ten folds": (10, 8), "ten, as many as can be": (10, 199), "two halves": (2, 1000)}


@pytest.mark.parametrize(("number", "each"), FOLDS.values(), ids=FOLDS.keys())
def test_each_fold_is_scaled_by_the_others_temperature(number: int, each: int) -> None:
    check_each_fold_is_scaled_by_the_others_temperature(temperature_scaled, number, each)


def scored_where_fitted(log_probs: Tensor, targets: Tensor) -> Tensor:
    scaled = torch.empty_like(log_probs)
    for fold in range(10):
        temperature = fit_temperature(log_probs[fold::10], targets[fold::10])
        scaled[fold::10] = (log_probs[fold::10] / temperature).log_softmax(dim=-1)
    return scaled


def fitted_on_everything(log_probs: Tensor, targets: Tensor) -> Tensor:
    return (log_probs / fit_temperature(log_probs, targets)).log_softmax(dim=-1)


def in_two_halves(log_probs: Tensor, targets: Tensor) -> Tensor:
    scaled = torch.empty_like(log_probs)
    for fitted, scored in ((0, 1), (1, 0)):
        temperature = fit_temperature(log_probs[fitted::2], targets[fitted::2])
        scaled[scored::2] = (log_probs[scored::2] / temperature).log_softmax(dim=-1)
    return scaled


@pytest.mark.parametrize("faulty", [scored_where_fitted, fitted_on_everything, in_two_halves])
def test_the_check_of_the_folds_catches_other_temperatures(faulty: Callable[..., Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_each_fold_is_scaled_by_the_others_temperature(faulty, 10, 8)


@pytest.mark.parametrize(
    ("examples", "folds"), [(2, 2), (3, 3), (9, 9), (10, 10), (1999, 10), (2000, 2), (50_000, 2)]
)
def test_few_examples_have_ten_folds_and_2000_have_two(examples: int, folds: int) -> None:
    assert temperature_folds(examples) == folds


def test_the_calibrated_nll_of_overconfident_logits_is_that_of_calibrated_ones() -> None:
    log_probs, targets = overconfident(5.0, 400)
    # Shuffled, or the period of the targets would divide that of the folds.
    order = torch.from_numpy(np.random.default_rng(0).permutation(400))
    found = nll(temperature_scaled(log_probs[order], targets[order]), targets[order])
    calibrated = nll(overconfident(1.0, 400)[0], targets)
    assert calibrated <= found < calibrated + 0.01 < nll(log_probs, targets)


def test_temperature_scaling_leaves_the_predictions_as_they_were() -> None:
    logits, targets = draw(3.0)
    log_probs = mean_log_probs(logits.log_softmax(dim=-1))
    assert torch.equal(temperature_scaled(log_probs, targets).argmax(-1), log_probs.argmax(-1))
