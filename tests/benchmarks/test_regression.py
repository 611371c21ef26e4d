"""The metric regression catches planted bugs, by the expectations that are committed.

Each bug is planted in the suite's own code, the methods that it touches are measured as CI measures them,
and a metric has moved; without it none has. Weights are trained once for all tests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import regression
from benchmarks.regression import cifar10_given, cifar10_small, digits, measuring
from benchmarks.regression.cifar10_places import found_at
from benchmarks.regression.measuring import Part
from lpe.ensembles.swag import SWAGEnsemble
from lpe.evaluation import metrics, predict, prefixes
from lpe.number_systems import kernels
from lpe.number_systems.kernels import reference
from lpe.number_systems.streams import normal
from reproduce.scales.cifar10 import images

WHATS = ("SGD", "SWAG")
TRUE_CODES = reference.round_codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the trained weights."""
    return tmp_path_factory.mktemp("regression")


@pytest.fixture
def moved(folder: Path) -> Callable[..., list[tuple[str, ...]]]:
    """What has moved at these points, by the committed expectations."""

    def found(*whats: str, part: Part = digits.PART) -> list[tuple[str, ...]]:
        expected, _ = regression.expectations(regression.FOLDER / "expected.csv", [part])
        # What goes beyond the paper is measured with all points, under a network's name and the examples'.
        of_points = ~expected["network"].str.contains(", ")
        expected = expected[expected["point"].isin([*whats, ""]) & of_points]
        got = regression.summary(regression.measured([part], whats, folder))
        return regression.moved(expected, got)

    return found


def what_moved(rows: list[tuple[str, ...]]) -> set[tuple[str, str]]:
    """Methods (scale, network and point left out) and metrics of the table's rows."""
    return {(re.sub(r"^[\w-]+ [\w-]+ (SGD|SWAG) ", "", row[0]), row[2]) for row in rows}


def test_nothing_has_moved(moved: Callable[..., Any]) -> None:
    assert moved(*WHATS) == []


def test_rounding_down_instead_of_at_random_is_caught(
    moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
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

    monkeypatch.setattr(prefixes, "EnsembleMetrics", FromProbabilities)
    found = what_moved(moved("SGD"))
    assert ("LPE-BSR int3", "ambiguity") in found
    assert {metric for _, metric in found} == {"ambiguity"}


def test_a_temperature_off_by_5_percent_is_caught(
    moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    true_fit = measuring.fit_temperature

    def off(log_probs: Tensor, targets: Tensor) -> float:
        return 1.05 * true_fit(log_probs, targets)

    monkeypatch.setattr(measuring, "fit_temperature", off)
    monkeypatch.setattr(predict, "fit_temperature", off)
    assert ("FP32 + temperature fp32", "temperature") in what_moved(moved("SGD"))


def always_down(*arguments: Any) -> Tensor:
    """``reference.round_codes`` that never rounds up."""
    *rest, lanes = arguments
    return TRUE_CODES(*rest, None if lanes is None else torch.full_like(lanes, 65536))


def test_nothing_has_moved_at_cifar10_small(moved: Callable[..., Any]) -> None:
    assert moved("SGD", part=cifar10_small.PART) == []


def test_group_norms_over_one_group_instead_of_eight_are_caught(
    moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(norm: nn.GroupNorm, inputs: Tensor) -> Tensor:
        return F.group_norm(inputs, 1, norm.weight, norm.bias, norm.eps)

    monkeypatch.setattr(nn.GroupNorm, "forward", forward)
    found = [what for what, _, metric, *_ in moved("SGD", part=cifar10_small.PART) if metric == "nll"]
    assert "cifar10-small R8-GN SGD FP32 fp32" in found
    # The ViT has none.
    assert not any("ViT" in what for what in found)


def test_nothing_has_moved_at_the_given_point(moved: Callable[..., Any], assets: Path) -> None:
    if reason := cifar10_given.missing():
        pytest.skip(reason)
    assert moved("SGD", part=cifar10_given.PART) == []


def test_rounding_down_is_caught_at_the_given_point(
    moved: Callable[..., Any], assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := cifar10_given.missing():
        pytest.skip(reason)
    monkeypatch.setattr(reference, "round_codes", always_down)
    with kernels.use("reference"):
        found = what_moved(moved("SGD", part=cifar10_given.PART))
    assert {("LPE-BSR int4", "nll"), ("LPE-BSR int4", "ambiguity")} <= found
    assert {method for method, _ in found} == {"LPE-BSR int4"}


def test_without_assets_the_reason_is_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LPE_ASSETS", raising=False)
    assert cifar10_given.missing().startswith("LPE_ASSETS is not set")


def test_assets_without_the_point_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPE_ASSETS", str(tmp_path))
    assert cifar10_given.missing().endswith("sgd-0.safetensors") and "there is no" in cifar10_given.missing()


def test_another_point_of_that_name_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPE_ASSETS", str(tmp_path))
    for name in cifar10_given.HASHES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"another")
    assert "is not the file that numbers are expected of" in cifar10_given.missing()


def test_places_are_those_of_before_once_a_part_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LPE_DATA", "mine")
    monkeypatch.delenv("LPE_POINTS", raising=False)
    with found_at(data=tmp_path, points=tmp_path):
        assert images.place() == tmp_path
    assert (os.environ["LPE_DATA"], os.environ.get("LPE_POINTS")) == ("mine", None)


SINGLE = ("digits", "ViT", "SGD", "FP32", "fp32", 1, "nll")


def expectations(**changed: float) -> pd.DataFrame:
    """One expectation: NLL .5 ± .01."""
    row = dict(zip(regression.KEY, SINGLE, strict=True))
    numbers = {"expected": 0.5, "tolerance": 0.01, "std_over_seeds": 0.2, **changed}
    return pd.DataFrame([{**row, **numbers}])


def test_a_metric_within_its_tolerance_has_not_moved() -> None:
    assert regression.moved(expectations(), expectations(expected=0.509)) == []


def test_a_metric_beyond_its_tolerance_is_printed_with_what_was_expected_and_got() -> None:
    rows = regression.moved(expectations(), expectations(expected=0.511))
    assert rows == [("digits ViT SGD FP32 fp32", "1", "nll", "0.500000", "0.511000", "0.010000")]


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


def made_up(*keys: tuple[object, ...]) -> pd.DataFrame:
    """A made-up number a seed, for each key."""
    return pd.DataFrame(
        [
            {**dict(zip(regression.KEY, key, strict=True)), "seed": seed, "value": value, "examples": 100}
            for key in keys
            for seed, value in enumerate((0.4, 0.5, 0.6))
        ]
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained: each part that is measured has one row. What lies in LPE_ASSETS is not there."""

    def measured(parts: list[Part], *_: object, **__: object) -> pd.DataFrame:
        return made_up(*((part.scale, *SINGLE[1:]) for part in parts))

    monkeypatch.setattr(regression, "measured", measured)
    monkeypatch.delenv("LPE_ASSETS", raising=False)


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
    assert table["tolerance"].tolist() == pytest.approx([0.05 * 0.1] * 2)
    assert regression.main(["--out", str(tmp_path)]) == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("further", [[], ["--update", "--reason", "second"]], ids=["compare", "update"])
def test_an_expectation_that_was_edited_by_hand_is_one_line_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, further: list[str]
) -> None:
    assert regression.main(["--update", "--reason", "first", "--out", str(tmp_path)]) == 0
    expected = tmp_path / "expected.csv"
    assert "0.5" in expected.read_text()
    expected.write_text(edited := expected.read_text().replace("0.5", "0.6"))
    monkeypatch.setattr(regression, "measured", lambda *_, **__: pytest.fail("it was measured"))
    capsys.readouterr()
    assert regression.main(["--out", str(tmp_path), *further]) == 2
    message = capsys.readouterr().err
    assert "expected.csv is not what expected.json has the hash of" in message and message.count("\n") == 1
    assert expected.read_text() == edited


@pytest.mark.usefixtures("quick")
def test_a_moved_metric_ends_with_exit_code_1_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert regression.main(["--update", "--reason", "first", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(
        regression,
        "measured",
        lambda parts: made_up(*((part.scale, *SINGLE[1:]) for part in parts)).assign(
            value=lambda table: table["value"] + 0.01 * (table["scale"] == "digits")
        ),
    )
    capsys.readouterr()
    assert regression.main(["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 metrics moved" in printed and "0.500000  0.510000  0.005000" in printed


@pytest.fixture
def with_given(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose expectations are of all three parts."""
    with monkeypatch.context() as patch:
        there = replace(cifar10_given.PART, missing=lambda: "")
        patch.setattr(regression, "PARTS", (*regression.PARTS[:2], there))
        assert regression.main(["--update", "--reason", "first", "--out", str(tmp_path)]) == 0
    return tmp_path


def scales_in(folder: Path) -> list[str]:
    return pd.read_csv(folder / "expected.csv")["scale"].tolist()


def test_what_cannot_be_measured_here_has_not_moved_and_is_said(
    with_given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert regression.main(["--out", str(with_given)]) == 0
    printed = capsys.readouterr().out
    assert "cifar10 is not measured: LPE_ASSETS is not set" in printed
    assert "2 metrics of every method are as expected" in printed


def test_an_update_keeps_what_it_cannot_measure(with_given: Path) -> None:
    assert regression.main(["--update", "--reason", "second", "--out", str(with_given)]) == 0
    assert scales_in(with_given) == ["cifar10", "cifar10-small", "digits"]


def test_an_update_of_one_scale_keeps_the_others(with_given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        regression, "measured", lambda *_, **__: made_up(("digits", *SINGLE[1:])).assign(value=0.7)
    )
    arguments = ["--update", "--only", "digits", "--reason", "second", "--out", str(with_given)]
    assert regression.main(arguments) == 0
    assert pd.read_csv(with_given / "expected.csv")["expected"].tolist() == pytest.approx([0.5, 0.5, 0.7])


@pytest.mark.usefixtures("quick")
def test_a_scale_that_is_asked_for_and_cannot_be_measured_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--update", "--only", "cifar10", "--reason", "first", "--out", str(tmp_path)]
    assert regression.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: cifar10 cannot be measured: LPE_ASSETS is not set")


@pytest.mark.usefixtures("quick")
def test_without_expectations_one_line_says_how_to_write_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regression.main(["--out", str(tmp_path)]) == 2
    assert "write it with --update" in capsys.readouterr().err
