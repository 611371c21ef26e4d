"""Rows of shift and selective prediction from files: each against its definition, written out here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lpe
from lpe.ensembles.cascade import Cascade
from lpe.errors import InputError
from lpe.evaluation.metrics import fit_temperature
from lpe.evaluation.predictions import write_predictions
from lpe.evaluation.score import detection
from lpe.evaluation.selective import auroc, coverage_at_risk, risk_at_coverage
from reproduce.study.beyond import scored
from reproduce.study.beyond.names import (
    AIMS,
    AUROC_INFORMATION,
    AUROC_PROBABILITY,
    CALIBRATED_THEN_POOLED,
    CLEAN,
    COVERAGES,
    POOLED_THEN_CALIBRATED,
    SHARES,
    UNCORRUPTED,
    VALIDATION,
    Method,
    cascade_metric,
    corruption_name,
    member_metric,
    risk_metric,
)

CLASSES = 3
FP32 = Method("SGD", "FP32", "fp32", "")
SCALED = Method("SGD", "FP32 + temperature", "fp32", "")
LPE = Method("SGD", "LPE-BSR", "int4", "bernoulli")
SIZES = {FP32: 1, LPE: 4}
BLUR = corruption_name("blur", 1)
COUNTS = {VALIDATION: 200, CLEAN: 150, UNCORRUPTED: 50, BLUR: 50, "noise": 120}
CORRUPTIONS, FOREIGN = [("blur", 1)], ["noise"]

Found = dict[tuple[Method, str, int, str], float]


def targets_of(examples: str) -> Tensor:
    draws = np.random.default_rng([1, *examples.encode()])
    return torch.from_numpy(draws.integers(CLASSES, size=COUNTS[examples]))


def log_probs_of(method: Method, examples: str) -> Tensor:
    """Return [members, examples, classes]: right more often than not, and too sure."""
    draws = np.random.default_rng([SIZES[method], *examples.encode()])
    logits = 2.5 * draws.normal(size=(SIZES[method], COUNTS[examples], CLASSES))
    logits += 2.5 * np.eye(CLASSES)[targets_of(examples)] * (examples != "noise")
    return torch.from_numpy(logits).log_softmax(dim=-1)


def write(
    path: Path, method: Method, examples: str, log_probs: Tensor, targets: Tensor, of: str = ""
) -> Path:
    size = len(log_probs)
    about = {
        "kind": "classes",
        "size": size,
        "dtype": "float64",
        "memory_bits": [100 * n for n in range(1, size + 1)],
        "class": "Ensemble",
        "ensemble": of or method.method,
        "options": {},
    }
    hashes = torch.arange(len(targets)) + 1000 * len(examples)
    write_predictions(path, log_probs, targets, hashes, about)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Method, Mapping[str, Path]]:
    folder = tmp_path_factory.mktemp("predictions")
    return {
        method: {
            examples: write(
                folder / f"{place}-{examples}",
                method,
                examples,
                log_probs_of(method, examples),
                targets_of(examples),
            )
            for examples in COUNTS
        }
        for place, method in enumerate(SIZES)
    }


@pytest.fixture(scope="module")
def found(written: Mapping[Method, Mapping[str, Path]]) -> Found:
    """Values by method, examples, size and metric."""
    table: Found = {}
    for method, examples, row in scored.rows(written, CORRUPTIONS, FOREIGN, (1, 4)):
        key = (method, examples, int(str(row["size"])), str(row["metric"]))
        assert key not in table
        table[key] = float(str(row["value"]))
    return table


def mean_of(method: Method, examples: str, size: int) -> Tensor:
    return log_probs_of(method, examples)[:size].exp().mean(dim=0).log()


def decisions(log_probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    confidence, predicted = log_probs.exp().max(dim=-1)
    return confidence, predicted == targets


def nll_of(log_probs: Tensor, targets: Tensor) -> float:
    return -float(log_probs[torch.arange(len(targets)), targets].mean())


@pytest.mark.parametrize("examples", [CLEAN, UNCORRUPTED, BLUR])
@pytest.mark.parametrize("size", [1, 4])
def test_every_metric_of_examples_with_classes_is_the_score_of_their_file(
    found: Found, written: Mapping[Method, Mapping[str, Path]], examples: str, size: int
) -> None:
    table = lpe.score(written[LPE][examples], metrics="all", sizes=[size])
    for metric in scored.SCORED:
        assert found[LPE, examples, size, metric] == table[metric].iloc[0], metric


def test_foreign_examples_have_no_metric_but_how_well_they_are_told_from_clean_ones(
    found: Found, written: Mapping[Method, Mapping[str, Path]]
) -> None:
    told = detection(written[LPE][CLEAN], written[LPE]["noise"], [1, 4]).set_index("size")
    metrics = {(size, metric): value for (_, of, size, metric), value in found.items() if of == "noise"}
    assert {metric for _, metric in metrics} == {AUROC_PROBABILITY, AUROC_INFORMATION}
    assert found[LPE, "noise", 4, AUROC_INFORMATION] == told[AUROC_INFORMATION][4]
    assert found[LPE, "noise", 1, AUROC_PROBABILITY] == told[AUROC_PROBABILITY][1]


def test_a_single_network_has_no_row_of_mutual_information(found: Found) -> None:
    assert (FP32, "noise", 1, AUROC_INFORMATION) not in found
    assert (LPE, "noise", 1, AUROC_INFORMATION) not in found


def test_the_temperature_is_fitted_on_validation_and_scores_the_others(found: Found) -> None:
    temperature = fit_temperature(log_probs_of(FP32, VALIDATION)[0], targets_of(VALIDATION))
    assert abs(temperature - 1) > 0.1
    for examples in (CLEAN, UNCORRUPTED, BLUR):
        scaled = (log_probs_of(FP32, examples)[0] / temperature).log_softmax(dim=-1)
        expected = nll_of(scaled, targets_of(examples))
        assert found[SCALED, examples, 1, "nll"] == pytest.approx(expected, rel=1e-9)
    foreign = (log_probs_of(FP32, "noise")[0] / temperature).log_softmax(dim=-1)
    clean = (log_probs_of(FP32, CLEAN)[0] / temperature).log_softmax(dim=-1)
    expected = auroc(clean.exp().amax(-1), foreign.exp().amax(-1))
    assert found[SCALED, "noise", 1, AUROC_PROBABILITY] == pytest.approx(expected, abs=1e-12)


def test_validation_examples_score_nothing(found: Found) -> None:
    assert VALIDATION not in {examples for _, examples, _, _ in found}


def test_pooled_then_calibrated_has_one_temperature_and_calibrated_then_pooled_one_a_member(
    found: Found,
) -> None:
    fit_on, targets = targets_of(VALIDATION), targets_of(CLEAN)
    pooled = mean_of(LPE, CLEAN, 4) / fit_temperature(mean_of(LPE, VALIDATION, 4), fit_on)
    expected = nll_of(pooled.log_softmax(dim=-1), targets)
    assert found[LPE, CLEAN, 4, POOLED_THEN_CALIBRATED] == pytest.approx(expected, rel=1e-6)
    members = [
        (clean / fit_temperature(validation, fit_on)).softmax(dim=-1)
        for clean, validation in zip(log_probs_of(LPE, CLEAN), log_probs_of(LPE, VALIDATION), strict=True)
    ]
    expected = nll_of(torch.stack(members).mean(dim=0).log(), targets)
    assert found[LPE, CLEAN, 4, CALIBRATED_THEN_POOLED] == pytest.approx(expected, rel=1e-6)


def test_of_a_single_network_both_orders_are_one_number_and_its_temperature_s(found: Found) -> None:
    one = found[FP32, CLEAN, 1, POOLED_THEN_CALIBRATED]
    assert one == found[FP32, CLEAN, 1, CALIBRATED_THEN_POOLED]
    assert one == pytest.approx(found[SCALED, CLEAN, 1, "nll"], rel=1e-9)


def test_the_risk_coverage_curve_is_of_the_largest_ensemble(found: Found) -> None:
    confidence, correct = decisions(mean_of(LPE, CLEAN, 4), targets_of(CLEAN))
    order = (-confidence).argsort()
    for coverage in COVERAGES:
        kept = order[: math.ceil(round(coverage * len(order), 6))]
        expected = 1 - float(correct[kept].double().mean())
        assert found[LPE, CLEAN, 4, risk_metric(coverage)] == pytest.approx(expected, abs=1e-12)
    assert (LPE, CLEAN, 1, risk_metric(COVERAGES[0])) not in found


def test_each_member_has_its_error_and_its_disagreement_with_the_unrounded_network(found: Found) -> None:
    unrounded = log_probs_of(FP32, CLEAN)[0].argmax(-1)
    for member, log_probs in enumerate(log_probs_of(LPE, CLEAN)):
        predicted = log_probs.argmax(-1)
        wrong = float((predicted != targets_of(CLEAN)).double().mean())
        differs = float((predicted != unrounded).double().mean())
        assert found[LPE, CLEAN, 1, member_metric("err", member)] == pytest.approx(wrong)
        assert found[LPE, CLEAN, 1, member_metric("disagreement", member)] == pytest.approx(differs)
    assert found[FP32, CLEAN, 1, member_metric("disagreement", 0)] == 0


def test_a_cascade_of_which_none_or_all_go_on_is_its_first_member_or_the_pair(found: Found) -> None:
    for share, size in ((0.0, 1), (1.0, 2)):
        log_probs, targets = mean_of(LPE, CLEAN, size), targets_of(CLEAN)
        values = {
            "nll": nll_of(log_probs, targets),
            "cov_at_5_risk": coverage_at_risk(*decisions(log_probs, targets)),
            "risk_at_80_cov": risk_at_coverage(*decisions(log_probs, targets)),
        }
        for aim in AIMS:
            assert found[LPE, CLEAN, 2, cascade_metric("networks", aim, share)] == size
            assert found[LPE, CLEAN, 2, cascade_metric(aim, aim, share)] == pytest.approx(values[aim])


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("aim", AIMS)
def test_a_cascade_s_rows_are_those_of_the_cascade_with_its_window(
    found: Found, aim: str, share: float
) -> None:
    chosen_on = decisions(log_probs_of(LPE, VALIDATION)[0], targets_of(VALIDATION))
    low, high = scored.window(*chosen_on, aim, share)
    # Networks that give the log-probabilities of the examples that are asked for by their number.
    nets = [torch.nn.Embedding.from_pretrained(member) for member in log_probs_of(LPE, CLEAN)[:2]]
    cascade = Cascade(lpe.DeepEnsemble(nets), (max(low, 0.0), min(high, 1.0)))
    log_probs = cascade.predict(torch.arange(COUNTS[CLEAN]))
    assert found[LPE, CLEAN, 2, cascade_metric("networks", aim, share)] == cascade.members_per_example
    expected = scored._MEASURED[aim](log_probs, targets_of(CLEAN))
    assert found[LPE, CLEAN, 2, cascade_metric(aim, aim, share)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("share", SHARES)
def test_a_window_holds_its_share_of_the_validation_examples(aim: str, share: float) -> None:
    confidence, correct = decisions(log_probs_of(LPE, VALIDATION)[0], targets_of(VALIDATION))
    low, high = scored.window(confidence, correct, aim, share)
    assert int(((confidence >= low) & (confidence <= high)).sum()) == round(share * len(confidence))


def test_a_window_for_the_nll_is_of_the_least_confident_and_one_for_a_coverage_lies_around_it() -> None:
    confidence = torch.arange(100).double() / 100
    correct = torch.ones(100, dtype=torch.bool)
    assert scored.window(confidence, correct, "nll", 0.2) == (-math.inf, pytest.approx(0.195))
    assert scored.window(confidence, correct, "risk_at_80_cov", 0.2) == pytest.approx((0.095, 0.295))


def test_a_method_of_fewer_members_has_its_own_largest_size(
    written: Mapping[Method, Mapping[str, Path]],
) -> None:
    sizes = {
        int(str(row["size"]))
        for method, _, row in scored.rows(written, CORRUPTIONS, FOREIGN, (1, 9))
        if method == LPE and row["metric"] == "nll"
    }
    assert sizes == {1, 4}


def test_a_value_that_is_no_number_has_no_row(tmp_path: Path) -> None:
    targets = torch.tensor([0, 1, 2, 0])
    sure = 5 * torch.eye(3, dtype=torch.float64)[targets][None]
    files = {
        each: write(tmp_path / each, FP32, each, sure.log_softmax(-1), targets)
        for each in (VALIDATION, CLEAN)
    }
    metrics = {row["metric"] for _, _, row in scored.rows({FP32: files}, [], [], (1,))}
    assert "auroc_errors" not in metrics and "nll" in metrics


def test_predictions_of_other_examples_are_refused(
    written: Mapping[Method, Mapping[str, Path]], tmp_path: Path
) -> None:
    other = write(tmp_path / "other", LPE, CLEAN, log_probs_of(LPE, CLEAN), targets_of(CLEAN).roll(1))
    changed = {**written, LPE: {**written[LPE], CLEAN: other}}
    with pytest.raises(InputError, match="is of other examples than"):
        list(scored.rows(changed, CORRUPTIONS, FOREIGN, (1, 4)))


def test_a_method_without_predictions_of_some_examples_is_named(
    written: Mapping[Method, Mapping[str, Path]],
) -> None:
    changed = {**written, LPE: {CLEAN: written[LPE][CLEAN]}}
    said = "LPE-BSR at SGD has no predictions of validation, uncorrupted, blur 1, noise; evaluate it"
    with pytest.raises(InputError, match=said):
        list(scored.rows(changed, CORRUPTIONS, FOREIGN, (1, 4)))


def test_without_the_unrounded_network_nothing_can_be_compared(
    written: Mapping[Method, Mapping[str, Path]],
) -> None:
    with pytest.raises(InputError, match="no method is an unrounded network"):
        list(scored.rows({LPE: written[LPE]}, CORRUPTIONS, FOREIGN, (1, 4)))


def test_nothing_is_fitted_on_validation_examples_that_a_method_was_trained_on(
    written: Mapping[Method, Mapping[str, Path]], found: Found
) -> None:
    there = {
        (method, examples, int(str(row["size"])), str(row["metric"]))
        for method, examples, row in scored.rows(written, CORRUPTIONS, FOREIGN, (1, 4), unfitted=[LPE])
    }
    left_out = found.keys() - there
    assert there < found.keys() and {key[0] for key in left_out} == {LPE}
    cascades = {
        cascade_metric(metric, aim, s) for aim in AIMS for s in SHARES for metric in (aim, "networks")
    }
    assert {key[3] for key in left_out} == {POOLED_THEN_CALIBRATED, CALIBRATED_THEN_POOLED} | cascades
