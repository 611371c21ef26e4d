"""The metric regression catches planted bugs, by the expectations that are committed.

Each bug is planted in the suite's own code, the methods that it touches are measured as CI measures them,
and a metric has moved; without it none has. Weights are trained once for all tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from benchmarks import regression
from lpe.ensembles.swag import SWAGEnsemble
from lpe.evaluation import metrics, predict
from lpe.number_systems import kernels
from lpe.number_systems.kernels import reference
from lpe.number_systems.streams import normal

WHATS = ("SGD", "SWAG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the trained weights."""
    return tmp_path_factory.mktemp("regression")


@pytest.fixture
def moved(folder: Path) -> Callable[..., list[tuple[str, ...]]]:
    """What has moved at these points, by the committed expectations."""

    def found(*whats: str) -> list[tuple[str, ...]]:
        expected = pd.read_csv(regression.FOLDER / "expected.csv", keep_default_na=False)
        expected = expected[expected["point"].isin([*whats, ""])]
        return regression.moved(expected, regression.summary(regression.measured(whats=whats, folder=folder)))

    return found


def what_moved(rows: list[tuple[str, ...]]) -> set[tuple[str, str]]:
    """Methods (the point left out) and metrics of the table's rows."""
    return {(re.sub(r"^(SGD|SWAG) ", "", row[0]), row[2]) for row in rows}


def test_nothing_has_moved(moved: Callable[..., Any]) -> None:
    assert moved(*WHATS) == []


def test_rounding_down_instead_of_at_random_is_caught(
    moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def always_down(*arguments: Any) -> Tensor:
        *rest, lanes = arguments
        return true_codes(*rest, None if lanes is None else torch.full_like(lanes, 65536))

    true_codes = reference.round_codes
    monkeypatch.setattr(reference, "round_codes", always_down)
    # The fault is planted in the rule's definition, which the fast kernels have compiled.
    with kernels.use("reference"):
        found = what_moved(moved("SGD"))
    assert {("LPE-BSR int3", "nll"), ("LPE-BSR int3", "ambiguity"), ("LPE-BSR int5", "ambiguity")} <= found
    assert not any(method.startswith("RTN") for method, _ in found)


def test_swag_noise_drawn_per_tensor_is_caught(
    moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def per_tensor(ensemble: SWAGEnsemble, index: int) -> dict[str, Tensor]:
        kept = ensemble.statistics
        drawn = {}
        for name, mean in kept.mean.items():
            z1 = normal("swag diagonal", ensemble.seed, name, index, mean.shape)
            z2 = normal("swag low rank", ensemble.seed, name, index, (kept.rank,))
            low_rank = torch.tensordot(z2, kept.deviations[name], dims=1) / (kept.rank - 1) ** 0.5
            noise = kept.variance[name].sqrt() * z1 + low_rank
            drawn[name] = mean + ensemble.scale**0.5 * noise
        return drawn

    monkeypatch.setattr(SWAGEnsemble, "weights", per_tensor)
    assert any(method == "BMA fp32" for method, _ in what_moved(moved("SWAG")))


def test_swapped_edges_of_the_calibration_bins_are_caught(
    moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    true_bucketize = torch.bucketize

    def closed_below(values: Tensor, edges: Tensor, right: bool = False) -> Tensor:
        return true_bucketize(values, edges, right=not right)

    monkeypatch.setattr(metrics.torch, "bucketize", closed_below)
    assert ("confidences on the edges", "ece") in what_moved(moved("SGD"))


def test_ambiguity_from_probabilities_is_caught(
    moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class FromProbabilities(metrics.EnsembleMetrics):
        def values(self) -> dict[str, float]:
            found = super().values()
            return {**found, "ambiguity": found["average_loss"] - found["nll"]}

    monkeypatch.setattr(predict, "EnsembleMetrics", FromProbabilities)
    found = what_moved(moved("SGD"))
    assert ("LPE-BSR int3", "ambiguity") in found
    assert {metric for _, metric in found} == {"ambiguity"}


def test_a_temperature_off_by_5_percent_is_caught(
    moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    true_fit = regression.fit_temperature

    def off(log_probs: Tensor, targets: Tensor) -> float:
        return 1.05 * true_fit(log_probs, targets)

    monkeypatch.setattr(regression, "fit_temperature", off)
    monkeypatch.setattr(predict, "fit_temperature", off)
    assert ("FP32 + temperature fp32", "temperature") in what_moved(moved("SGD"))


def expectations(**changed: float) -> pd.DataFrame:
    """One expectation: NLL .5 ± .01."""
    row = {"point": "SGD", "method": "FP32", "number_system": "fp32", "size": 1, "metric": "nll"}
    numbers = {"expected": 0.5, "tolerance": 0.01, "std_over_seeds": 0.2, **changed}
    return pd.DataFrame([{**row, **numbers}])


def test_a_metric_within_its_tolerance_has_not_moved() -> None:
    assert regression.moved(expectations(), expectations(expected=0.509)) == []


def test_a_metric_beyond_its_tolerance_is_printed_with_what_was_expected_and_got() -> None:
    rows = regression.moved(expectations(), expectations(expected=0.511))
    assert rows == [("SGD FP32 fp32", "1", "nll", "0.500000", "0.511000", "0.010000")]


def test_a_metric_that_is_not_a_number_has_moved() -> None:
    assert regression.moved(expectations(), expectations(expected=float("nan")))


def test_a_metric_that_is_no_longer_measured_has_moved() -> None:
    assert regression.moved(expectations(), expectations().iloc[:0])


def test_a_metric_that_nobody_expected_has_moved() -> None:
    assert regression.moved(expectations().iloc[:0], expectations())


def test_a_metric_that_has_every_digit_is_counted_as_unmoved() -> None:
    assert regression.unmoved(expectations(expected=0.1 + 0.2), expectations(expected=0.3)) == 1


def test_a_metric_that_is_within_its_tolerance_by_another_digit_is_not_counted_as_unmoved() -> None:
    assert regression.unmoved(expectations(), expectations(expected=0.5 + 1e-10)) == 0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is trained: what is measured is one made-up number a seed."""
    rows = pd.DataFrame(
        [
            {
                **dict(zip(regression.KEY, ("SGD", "FP32", "fp32", 1, "nll"), strict=True)),
                "seed": s,
                "value": v,
            }
            for s, v in enumerate((0.4, 0.5, 0.6))
        ]
    )
    monkeypatch.setattr(regression, "measured", lambda *_: rows)
    yield


@pytest.mark.usefixtures("quick")
def test_an_update_needs_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regression.main(["--update", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: --update needs a reason")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_an_update_keeps_the_reasons_and_derives_the_tolerance_from_the_spread(tmp_path: Path) -> None:
    for reason in ("first", "second"):
        assert regression.main(["--update", "--reason", reason, "--out", str(tmp_path)]) == 0
    about = (tmp_path / "expected.json").read_text()
    assert about.index("first") < about.index("second")
    table = pd.read_csv(tmp_path / "expected.csv")
    assert table["tolerance"].tolist() == pytest.approx([0.05 * 0.1])
    assert regression.main(["--out", str(tmp_path)]) == 0


@pytest.mark.usefixtures("quick")
def test_a_moved_metric_ends_with_exit_code_1_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert regression.main(["--update", "--reason", "first", "--out", str(tmp_path)]) == 0
    changed = regression.measured().assign(value=lambda table: table["value"] + 0.01)
    monkeypatch.setattr(regression, "measured", lambda *_: changed)
    capsys.readouterr()
    assert regression.main(["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 1 metrics moved" in printed and "0.500000  0.510000  0.005000" in printed


def test_without_expectations_one_line_says_how_to_write_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regression.main(["--out", str(tmp_path)]) == 2
    assert "write it with --update" in capsys.readouterr().err
