"""Scores of predictions in files: to the bit the evaluation's, of any prefix and mixture, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

import lpe
from lpe.evaluation.metrics import METRICS, fit_temperature, mean_log_probs, nll, temperature_scaled
from lpe.evaluation.predict import member_log_probs
from lpe.evaluation.predictions import write_predictions
from lpe.evaluation.score import cascaded, detection
from lpe.evaluation.selective import SELECTIVE_METRICS, entropy, information, selective_metrics

EXAMPLES, FEATURES, CLASSES, SIZE = 61, 6, 4, 5
COLUMNS = ["size", *METRICS, "memory_bits"]


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    with torch.no_grad():
        model[2].weight.mul_(4)
    return model


def ensemble_of(size: int = SIZE, seed: int = 0, model: int = 0) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(net(model), lpe.Int(3), size, seed)


GENERATOR = np.random.default_rng(0)
INPUTS = torch.from_numpy(GENERATOR.normal(size=(EXAMPLES, FEATURES)))
TARGETS = torch.from_numpy(GENERATOR.integers(CLASSES, size=EXAMPLES))


def batches(inputs: Tensor = INPUTS, targets: Tensor = TARGETS) -> Iterator[Any]:
    return zip(inputs.split(20), targets.split(20), strict=True)


def write(path: Path, ensemble: Any = None, stream: Any = None, dtype: str = "float64") -> pd.DataFrame:
    ensemble = ensemble_of() if ensemble is None else ensemble
    return lpe.evaluate(ensemble, stream or batches(), predictions=path, predictions_dtype=dtype)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), expected.reset_index(drop=True), check_exact=True
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("score") / "p.safetensors"
    write(path)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_score_is_the_table_of_the_evaluation_to_the_bit(tmp_path: Path, dtype: str) -> None:
    expected = write(tmp_path / "p", dtype=dtype)
    assert list(expected.columns) == COLUMNS
    assert_same(lpe.score(tmp_path / "p"), expected)
    assert_same(lpe.score([str(tmp_path / "p")]), expected)


def test_in_float64_it_is_that_of_an_evaluation_without_a_file(file: Path) -> None:
    pd.testing.assert_frame_equal(
        lpe.score(file), lpe.evaluate(ensemble_of(), batches()), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("block", [1, 700, 1 << 24])
def test_blocks_of_sums_change_no_number(file: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lpe.score(file, metrics="all")
    monkeypatch.setattr("lpe.evaluation.score.BLOCK_BYTES", block)
    monkeypatch.setattr("lpe.evaluation.predictions.PIECE_BYTES", block)
    pd.testing.assert_frame_equal(lpe.score(file, metrics="all"), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("sizes", [[1], [3], [5], [4, 2], (1, 5), range(2, 4), [np.int64(2), 2]])
def test_any_prefix_has_its_row_of_the_whole_table(file: Path, sizes: Any) -> None:
    whole = lpe.score(file, metrics="all")
    wanted = sorted(set(map(int, sizes)))
    assert_same(lpe.score(file, metrics="all", sizes=sizes), whole[whole["size"].isin(wanted)])


def test_a_prefix_is_scored_as_an_ensemble_of_as_many(file: Path, tmp_path: Path) -> None:
    assert_same(lpe.score(file, sizes=[1, 2, 3]), write(tmp_path / "three", ensemble_of(3)))


@pytest.mark.parametrize("n", range(1, SIZE + 1))
def test_the_selective_metrics_are_those_of_the_mean_of_probabilities(file: Path, n: int) -> None:
    members, targets = member_log_probs(ensemble_of(), batches())
    confidence, predicted = mean_log_probs(members[:n]).exp().max(dim=-1)
    expected = selective_metrics(confidence, predicted == targets)
    pairs = list(combinations(members[:n].argmax(dim=-1), 2))
    expected["disagreement"] = sum(float((a != b).double().mean()) for a, b in pairs) / max(1, len(pairs))
    (row,) = lpe.score(file, metrics="all", sizes=[n]).to_dict("records")
    assert {name: row[name] for name in SELECTIVE_METRICS} == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_calibrated_nll_is_there_where_it_is_named(file: Path) -> None:
    members, targets = member_log_probs(ensemble_of(), batches())
    expected = nll(temperature_scaled(mean_log_probs(members[:3]), targets), targets)
    found = lpe.score(file, metrics=["calibrated_nll"], sizes=[3])
    assert list(found.columns) == ["size", "calibrated_nll", "memory_bits"]
    assert float(found["calibrated_nll"].iloc[0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("metrics", "columns"),
    [
        (None, METRICS),
        ("all", (*METRICS, *SELECTIVE_METRICS)),
        ("aurc", ("aurc",)),
        (["err", "aurc", "err"], ("err", "aurc")),
        (("disagreement", "nll"), ("disagreement", "nll")),
    ],
)
def test_the_columns_are_the_metrics_that_were_asked_for(file: Path, metrics: Any, columns: Any) -> None:
    found = lpe.score(file, metrics=metrics)
    assert list(found.columns) == ["size", *columns, "memory_bits"]
    whole = lpe.score(file, metrics="all")
    assert_same(found, whole[found.columns])


@pytest.mark.parametrize("metrics", [None, "all", "aurc", ["disagreement", "calibrated_nll", "nll"]])
def test_an_evaluation_has_the_metrics_that_a_score_of_its_file_has(
    file: Path, metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lpe.score(file, metrics=metrics)
    for block in (1 << 24, 300):  # a chunk is one block, or many
        monkeypatch.setattr("lpe.evaluation.loops.BLOCK_BYTES", block)
        found = lpe.evaluate(ensemble_of(), batches(), metrics=metrics)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-11, atol=1e-13)


def test_an_evaluation_into_a_file_has_the_metrics_that_are_asked_for(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"predictions": tmp_path / "p", "metrics": "all"}
    found = lpe.evaluate(ensemble_of(), batches(), **asked)
    assert_same(lpe.score(tmp_path / "p", metrics="all"), found)
    assert_same(lpe.evaluate(ensemble_of(), batches(), **asked), found)  # out of the file


def test_a_calibrated_column_comes_last_where_it_is_no_metric_that_was_named() -> None:
    found = lpe.evaluate(ensemble_of(), batches(), calibrated=[2], metrics=["err"])
    assert list(found.columns) == ["size", "err", "memory_bits", "calibrated_nll"]
    assert list(found["calibrated_nll"].notna()) == [n == 2 for n in range(1, SIZE + 1)]


def test_a_metric_that_there_is_not_is_refused_before_anything_runs() -> None:
    def unread() -> Iterator[Any]:
        yield pytest.fail("the batches were read")

    with pytest.raises(lpe.InputError, match="a metric must be one of nll, .* not 'accuracy'"):
        lpe.evaluate(ensemble_of(), unread(), metrics="accuracy")
    with pytest.raises(lpe.InputError, match="a cascade has the metrics of every evaluation and no others"):
        lpe.evaluate(lpe.Cascade(ensemble_of(), (0.0, 0.5)), batches(), metrics="all")


# Mixtures


def mean_of(n: int, stream: Any = None, ensemble: Any = None) -> Tensor:
    log_probs, _ = member_log_probs(ensemble or ensemble_of(), stream or batches())
    return mean_log_probs(log_probs[:n])


def test_a_temperature_divides_the_logs_of_the_mean_of_probabilities(file: Path) -> None:
    table = lpe.score(file, sizes=[1, 4], temperature=2.5)
    assert list(table.columns) == ["size", "nll", "err", "ece", "brier", "memory_bits"]
    for n, row in table.set_index("size").iterrows():
        probs = torch.softmax(mean_of(n) / 2.5, dim=1)
        at_target = probs.gather(1, TARGETS[:, None])
        assert row["nll"] == pytest.approx(-float(at_target.log().mean()), rel=1e-12)
        one_hot = nn.functional.one_hot(TARGETS, CLASSES)
        assert row["brier"] == pytest.approx(float((probs - one_hot).square().sum(dim=1).mean()), rel=1e-12)
    plain = lpe.score(file, sizes=[1, 4])
    assert list(table["err"]) == list(plain["err"]) and list(table["nll"]) != list(plain["nll"])


def test_a_temperature_of_1_leaves_every_metric_that_has_one(file: Path) -> None:
    names = [name for name in lpe.score(file, "all", temperature=1.0) if name != "size"]
    assert {"aurc", "signed_ece", "nll"} < {*names} and "disagreement" not in names
    found, expected = lpe.score(file, "all", temperature=1.0)[names], lpe.score(file, "all")[names]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)


def test_a_fitted_temperature_gives_the_calibrated_nll(file: Path) -> None:
    fitted = lpe.score(file, "nll", temperature="fit")["nll"]
    assert list(fitted) == pytest.approx(list(lpe.score(file, "calibrated_nll")["calibrated_nll"]), rel=1e-12)


def test_a_temperature_is_fitted_on_validation_examples_at_every_size(file: Path, tmp_path: Path) -> None:
    inputs, targets = INPUTS.flip(0)[:40] + 0.1, TARGETS.flip(0)[:40]
    write(tmp_path / "v", stream=batches(inputs, targets))
    table = lpe.score(file, ["nll", "aurc"], [2, 5], validation=tmp_path / "v")
    assert list(table.columns) == ["size", "nll", "aurc", "temperature", "memory_bits"]
    for n, row in table.set_index("size").iterrows():
        fitted = fit_temperature(mean_of(n, batches(inputs, targets)), targets)
        assert row["temperature"] == pytest.approx(fitted, rel=1e-9)
        expected = nll((mean_of(n) / fitted).log_softmax(dim=1), TARGETS)
        assert row["nll"] == pytest.approx(expected, rel=1e-9)
    assert table["temperature"].nunique() == 2


def test_validation_examples_are_of_the_same_members(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "v", ensemble_of(seed=1))
    with pytest.raises(lpe.InputError, match="are of other members; give those of the same ensemble"):
        lpe.score(file, validation=tmp_path / "v")
    with pytest.raises(lpe.InputError, match="1 files and 2 of validation examples; give as many"):
        lpe.score(file, validation=[file, file])


def test_a_cascade_of_a_file_is_that_of_the_ensemble(file: Path, tmp_path: Path) -> None:
    first = lpe.LowPrecisionEnsemble(net(), lpe.FullPrecision(), 1)
    write(tmp_path / "first", first)
    chosen = [
        ((0.0, 0.6), None, None),
        ((0.3, 0.9), (1, 2, 5), None),
        ((0.0, 0.7), (1, 3), first),
    ]
    for window, stages, of_first in chosen:
        cascade = lpe.Cascade(ensemble_of(), window, stages, of_first)
        expected = lpe.evaluate(cascade, batches())
        place = None if of_first is None else tmp_path / "first"
        found = cascaded(file, window, stages, place)
        assert 1 < found["members_per_example"].iloc[-1] < 5
        # What the first stage shares with the members (biases, here) no file tells: it is counted twice.
        columns = [name for name in expected if of_first is None or name != "memory_bits"]
        pd.testing.assert_frame_equal(found[columns], expected[columns], rtol=1e-12)


def test_a_cascade_of_a_mixture_goes_on_from_file_to_file(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "q", ensemble_of(2, seed=7))
    found = cascaded([file, tmp_path / "q"], (0.0, 1.0), (1, 7))
    assert found["members_per_example"].tolist() == [1, 7]
    whole = lpe.score([file, tmp_path / "q"], sizes=[1, 7])
    pd.testing.assert_frame_equal(found[list(whole)], whole, rtol=1e-12)


def test_several_files_are_one_mixture(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "q", ensemble_of(3, model=1))
    mixture = lpe.Mixture.of([ensemble_of(), ensemble_of(3, model=1)])
    found = lpe.score([file, tmp_path / "q"])
    pd.testing.assert_frame_equal(found, lpe.evaluate(mixture, batches()), rtol=1e-11, atol=1e-13)
    assert_same(found, write(tmp_path / "both", mixture))


def test_one_file_twice_is_the_mean_of_the_same_members(file: Path) -> None:
    found, once = lpe.score([file, file]).iloc[-1], lpe.score(file).iloc[-1]
    assert list(found[list(METRICS)]) == pytest.approx(list(once[list(METRICS)]), rel=1e-11)
    assert found["memory_bits"] == 2 * once["memory_bits"]


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "targets": (
        lambda: batches(targets=torch.cat([TARGETS[:9], (TARGETS[9:10] + 1) % CLASSES, TARGETS[10:]])),
        "q is of other examples than .*p.safetensors: the target of example 9 is",
    ),
    "inputs": (
        lambda: batches(inputs=torch.cat([INPUTS[:9], INPUTS[9:] + 1])),
        "the inputs of 52 of 61 differ, the first of them example 9; inputs='any' asks for the same targets",
    ),
    "number": (lambda: batches(inputs=INPUTS[:40], targets=TARGETS[:40]), "it has 40, not 61"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_files_of_other_examples_are_no_mixture(file: Path, tmp_path: Path, other: str) -> None:
    stream, said = OTHERS[other]
    write(tmp_path / "q", stream=stream())
    with pytest.raises(lpe.InputError, match=said):
        lpe.score([file, tmp_path / "q"])


def test_networks_that_see_the_same_examples_in_other_ways_are_a_mixture_where_that_is_said(
    file: Path, tmp_path: Path
) -> None:
    write(tmp_path / "q", stream=batches(inputs=2 * INPUTS))
    assert len(lpe.score([file, tmp_path / "q"], inputs="any")) == 2 * SIZE


def test_files_of_other_classes_are_no_mixture(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "q", lpe.DeepEnsemble([nn.Linear(FEATURES, CLASSES + 1).double()]))
    with pytest.raises(lpe.InputError, match="q has 5 classes, .*p.safetensors 4"):
        lpe.score([file, tmp_path / "q"])


# Shifted examples


def test_detection_is_scikit_learns_auroc_of_confidence_and_mutual_information(
    file: Path, tmp_path: Path
) -> None:
    shifted = 3 * INPUTS[:40]
    write(tmp_path / "q", stream=batches(shifted, torch.zeros(40, dtype=torch.int64)))
    table = detection(file, tmp_path / "q")
    inside, _ = member_log_probs(ensemble_of(), batches())
    outside, _ = member_log_probs(ensemble_of(), [(shifted, torch.zeros(40, dtype=torch.int64))])
    is_outside = [0] * EXAMPLES + [1] * 40
    assert list(table["size"]) == list(range(1, SIZE + 1))
    for n, row in enumerate(table.to_dict("records"), start=1):
        sides = [members[:n] for members in (inside, outside)]
        confidence = torch.cat([mean_log_probs(side).exp().amax(dim=-1) for side in sides])
        entropies = [(entropy(mean_log_probs(side)), entropy(side).mean(dim=0)) for side in sides]
        of_members = torch.cat([information(*each, n) for each in entropies])
        expected = sklearn.metrics.roc_auc_score(is_outside, -confidence)
        assert row["auroc_max_probability"] == pytest.approx(expected, abs=1e-12)
        expected = sklearn.metrics.roc_auc_score(is_outside, of_members) if n > 1 else 0.5
        assert row["auroc_mutual_information"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_members_that_are_alike_tell_nothing_by_their_mutual_information(tmp_path: Path, dtype: str) -> None:
    alike = lpe.LowPrecisionEnsemble(net(), lpe.Int(3), 7, rounding="nearest")
    shifted = 3 * INPUTS[:40]
    write(tmp_path / "p", alike, dtype=dtype)
    write(tmp_path / "q", alike, batches(shifted, torch.zeros(40, dtype=torch.int64)), dtype)
    assert set(detection(tmp_path / "p", tmp_path / "q")["auroc_mutual_information"]) == {0.5}


def test_detection_is_of_one_ensemble(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "q", ensemble_of(seed=1))
    with pytest.raises(lpe.InputError, match="are of other members; give those of the same ensemble"):
        detection(file, tmp_path / "q")
    with pytest.raises(lpe.InputError, match="1 files and 2 of shifted examples"):
        detection(file, [file, file])


# Tokens


def tokens(path: Path, seed: int = 0) -> Tensor:
    """Write log-probabilities of 50 targets by three members."""
    log_probs = torch.from_numpy(np.log(np.random.default_rng(seed).uniform(0.01, 1, size=(3, 50))))
    about = {
        "kind": "tokens",
        "size": 3,
        "dtype": "float64",
        "memory_bits": [8, 16, 24],
        "class": "LowPrecisionEnsemble",
        "ensemble": "0" * 64,
        "options": {},
    }
    write_predictions(path, log_probs, torch.zeros(50, dtype=torch.int64), torch.arange(50), about)
    return log_probs


def test_tokens_are_scored_by_the_mean_of_their_targets_probabilities(tmp_path: Path) -> None:
    probs = tokens(tmp_path / "p").exp().tolist()
    for n, row in enumerate(lpe.score(tmp_path / "p", metrics="all").to_dict("records"), start=1):
        means = [math.fsum(member[place] for member in probs[:n]) / n for place in range(50)]
        loss = -math.fsum(map(math.log, means)) / 50
        each = [-math.fsum(map(math.log, member)) / 50 for member in probs[:n]]
        expected = {
            "size": n,
            "nll": loss,
            "average_loss": math.fsum(each) / n,
            "perplexity": math.exp(loss),
            "memory_bits": 8 * n,
        }
        assert row == pytest.approx(expected, rel=1e-12)


def test_tokens_have_no_classes_to_score_and_are_no_mixture_with_them(file: Path, tmp_path: Path) -> None:
    tokens(tmp_path / "p")
    with pytest.raises(lpe.InputError, match="one of nll, average_loss, perplexity, not 'err'"):
        lpe.score(tmp_path / "p", metrics=["err"])
    with pytest.raises(lpe.InputError, match="tokens, and classes"):
        lpe.score([file, tmp_path / "p"])


# What is asked for wrongly


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"metrics": "accuracy"}, "a metric must be one of nll, err, .* not 'accuracy'"),
        ({"metrics": ["nll", "f1"]}, "not 'f1'"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": 3}, "metrics must be a list of names, not 3"),
        ({"sizes": [0]}, "integers from 1 to 5, .* not 0"),
        ({"sizes": [6]}, "integers from 1 to 5, .* not 6"),
        ({"sizes": [1.5]}, "not 1.5"),
        ({"sizes": []}, "sizes is empty"),
        ({"sizes": 3}, "sizes must be a list of sizes, not 3"),
        ({"temperature": 0}, "temperature must be a positive number, 'fit' or None, not 0"),
        ({"temperature": "hot"}, "temperature must be .* not 'hot'"),
        ({"temperature": 2, "metrics": ["ambiguity"]}, "ambiguity has no temperature; leave it out"),
        ({"temperature": 2, "validation": "nowhere"}, "there is no file nowhere"),
        ({"inputs": "other"}, "inputs must be one of same, any, not 'other'"),
        ({"files": []}, "files is empty"),
        ({"files": 3}, "files must be a list of paths, not 3"),
        ({"files": [3]}, "path must be a file's path, not 3"),
        ({"files": "nowhere"}, "there is no file nowhere"),
    ],
)
def test_what_cannot_be_scored_is_said(file: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(lpe.InputError, match=said):
        lpe.score(**{"files": file, **asked})
