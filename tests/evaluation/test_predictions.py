"""Predictions in files: what is in them, runs that were killed, and files that are not the right ones."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import lpe
from lpe.evaluation import predictions
from lpe.evaluation.examples import ExampleMetrics
from lpe.evaluation.predict import member_log_probs
from lpe.evaluation.predictions import (
    example_hashes,
    partial_folder,
    read_predictions,
    write_predictions,
)
from lpe.evaluation.score import detection
from lpe.evaluation.timing import MemberTimer

EXAMPLES, FEATURES, CLASSES, SIZE = 23, 6, 4, 5
BATCHES = 4  # of 7 examples and fewer


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, CLASSES))
    with torch.no_grad():
        model[3].weight.mul_(4)
    return model.to(dtype).eval()


def ensemble_of(size: int = SIZE, seed: int = 0, model: nn.Module | None = None) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(model or net(), lpe.Int(3), size, seed)


GENERATOR = np.random.default_rng(0)
INPUTS = torch.from_numpy(GENERATOR.normal(size=(EXAMPLES, FEATURES)))
TARGETS = torch.from_numpy(GENERATOR.integers(CLASSES, size=EXAMPLES))


def batches(size: int = 7, inputs: Tensor = INPUTS, targets: Tensor = TARGETS) -> Iterator[Any]:
    return zip(inputs.split(size), targets.split(size), strict=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "p.safetensors"


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


# What is in a file


@pytest.mark.parametrize(
    ("dtype", "kept", "rtol"),
    [("float64", torch.float64, 1e-14), ("float32", torch.float32, 1e-7), ("float16", torch.float16, 1e-3)],
)
def test_a_file_holds_every_members_log_probabilities(
    file: Path, dtype: str, kept: torch.dtype, rtol: float
) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=file, predictions_dtype=dtype)
    found = safetensors.torch.load_file(file)["log_probs"]
    expected, _ = member_log_probs(ensemble_of(), batches())
    assert found.dtype == kept
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=1e-12)


def test_log_probabilities_are_float32_unless_told_otherwise(file: Path) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    assert safetensors.torch.load_file(file)["log_probs"].dtype == torch.float32


def test_a_file_holds_the_targets_in_the_order_of_the_batches(file: Path) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    assert torch.equal(safetensors.torch.load_file(file)["targets"], TARGETS)


def test_a_file_says_of_what_ensemble_it_is_and_where_it_was_made(file: Path) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    about = read_predictions(file).about
    assert (about["class"], about["ensemble"]) == ("LowPrecisionEnsemble", hash_of(ensemble_of()))
    assert about["made"]["torch"] == torch.__version__
    assert about["memory_bits"] == [ensemble_of().memory_bits(n) for n in range(1, SIZE + 1)]


def test_what_is_read_is_on_the_cpu_whatever_the_default_device(file: Path) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    expected, rows = lpe.score(file, metrics="all"), read_predictions(file).log_probs(1, 0, 5)
    with torch.device("meta"):
        held = read_predictions(file)
        assert torch.equal(held.log_probs(1, 0, 5), rows) and torch.equal(held.targets, TARGETS)
        assert_same(lpe.score(file, metrics="all"), expected)


def test_nothing_but_the_file_and_its_lock_is_left(file: Path) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    assert sorted(each.name for each in file.parent.iterdir()) == [".p.safetensors.lock", "p.safetensors"]


def test_one_evaluation_writes_the_same_bytes_each_time(file: Path) -> None:
    again = file.with_name("again.safetensors")
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    lpe.evaluate(ensemble_of(), batches(), predictions=again)
    assert file.read_bytes() == again.read_bytes()


class RulesOut(nn.Module):
    """Gives the last class no probability, and the one before it next to none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES - 2).double()

    def forward(self, inputs: Tensor) -> Tensor:
        some = self.layer(inputs)
        return torch.cat(
            [some, torch.full_like(some[:, :1], -1e9), torch.full_like(some[:, :1], -torch.inf)], 1
        )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_class_without_probability_stays_so_and_another_does_not_become_so(file: Path, dtype: str) -> None:
    ensemble = lpe.DeepEnsemble([RulesOut()])
    lpe.evaluate(ensemble, batches(targets=TARGETS % 2), predictions=file, predictions_dtype=dtype)
    kept = safetensors.torch.load_file(file)["log_probs"]
    assert bool(kept[..., 3].isneginf().all()) and bool(kept[..., 2].isfinite().all())


# The table


ENSEMBLES: dict[str, Callable[[], Any]] = {
    "drawn": ensemble_of,
    "stored": lambda: lpe.DeepEnsemble([net(seed) for seed in range(SIZE)]),
    "masks": lambda: lpe.MCDropoutEnsemble(net(), 0.3, SIZE),
}
EVERY_KIND = pytest.mark.parametrize("kind", ENSEMBLES)
WAYS: dict[str, dict[str, Any]] = {
    "a batch a chunk": {"chunk_bytes": 0, "members": "one-by-one"},
    "two batches a chunk": {"chunk_bytes": 1500, "members": "one-by-one"},
    "one chunk": {"chunk_bytes": 1 << 40, "members": "one-by-one"},
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
TOGETHER = {"members": "together"}


@EVERY_KIND
@EVERY_WAY
def test_the_table_is_that_of_an_evaluation_without_a_file(file: Path, kind: str, way: str) -> None:
    found = lpe.evaluate(ENSEMBLES[kind](), batches(), predictions=file, **WAYS[way])
    # Log-probabilities to 24 bits.
    pd.testing.assert_frame_equal(found, lpe.evaluate(ENSEMBLES[kind](), batches()), rtol=1e-6, atol=1e-7)


def test_members_together_write_what_members_one_by_one_write(file: Path) -> None:
    together = file.with_name("together.safetensors")
    lpe.evaluate(
        ensemble_of(), batches(), predictions=file, predictions_dtype="float64", members="one-by-one"
    )
    lpe.evaluate(ensemble_of(), batches(), predictions=together, predictions_dtype="float64", **TOGETHER)
    one, other = (safetensors.torch.load_file(each)["log_probs"] for each in (file, together))
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_temperatures_examples_and_times_come_with_a_file_too(file: Path) -> None:
    examples, timer = ExampleMetrics(), MemberTimer(SIZE)
    found = lpe.evaluate(
        ensemble_of(), batches(), calibrated=[2], examples=examples, timer=timer, predictions=file
    )
    plain = ExampleMetrics()
    expected = lpe.evaluate(ensemble_of(), batches(), calibrated=[2], examples=plain)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6, atol=1e-7)
    assert examples.tables().keys() == plain.tables().keys()
    assert timer.examples == EXAMPLES and min(timer.seconds) > 0


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lpe.evaluate(ensemble_of(), batches())
    assert list(tmp_path.iterdir()) == []


# A run that is killed


class Killed(BaseException):
    """Takes the place of a signal."""


class Passes:
    """Counts the batches that an ensemble's members run on, and ends the run at one of them."""

    def __init__(self, ensemble: Any, end: int | None = None) -> None:
        self.run: list[int] = []
        self.end = end
        ensemble.check_reach(INPUTS)
        models = [ensemble.model] if hasattr(ensemble, "model") else list(ensemble)
        for model in models:
            # A function, which copies of the model share.
            model.register_forward_hook(lambda module, inputs, output: self.count(len(inputs[0])))

    def count(self, examples: int) -> None:
        if len(self.run) == self.end:
            raise Killed
        self.run.append(examples)


def kill(kind: str, file: Path, end: int, **how: Any) -> None:
    ensemble = ENSEMBLES[kind]()
    Passes(ensemble, end)
    with pytest.raises(Killed):
        lpe.evaluate(ensemble, batches(), predictions=file, **how)


@pytest.mark.parametrize("kind", ["drawn", "stored"])
@EVERY_WAY
@pytest.mark.parametrize("end", [0, 1, 4, 7, 8, 13, 19])
def test_a_killed_run_goes_on_and_ends_with_the_same_file(file: Path, kind: str, way: str, end: int) -> None:
    whole = file.with_name("whole.safetensors")
    expected = lpe.evaluate(ENSEMBLES[kind](), batches(), predictions=whole, **WAYS[way])
    kill(kind, file, end, **WAYS[way])
    ensemble = ENSEMBLES[kind]()
    passes = Passes(ensemble)
    assert_same(lpe.evaluate(ensemble, batches(), predictions=file, **WAYS[way]), expected)
    assert file.read_bytes() == whole.read_bytes()
    # Of a member of a chunk all is written at once.
    assert SIZE * BATCHES - end <= len(passes.run) <= SIZE * BATCHES - end + BATCHES - 1


@pytest.mark.parametrize("way", ["one chunk", "a batch a chunk"])
def test_a_run_that_goes_on_may_have_other_batches(file: Path, way: str) -> None:
    whole = file.with_name("whole.safetensors")
    expected = lpe.evaluate(ensemble_of(), batches(), predictions=whole, **WAYS[way])
    kill("drawn", file, 2 * BATCHES + 1, **WAYS[way])
    pd.testing.assert_frame_equal(
        lpe.evaluate(ensemble_of(), batches(4), predictions=file), expected, rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(
        *(safetensors.torch.load_file(each)["log_probs"] for each in (file, whole)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("end", [3, 6, 11, 17])
def test_members_together_go_on_from_those_one_by_one(file: Path, end: int) -> None:
    whole = file.with_name("whole.safetensors")
    expected = lpe.evaluate(ensemble_of(), batches(), predictions=whole)
    kill("drawn", file, end, **WAYS["a batch a chunk"])
    found = lpe.evaluate(ensemble_of(), batches(), predictions=file, **TOGETHER)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 100])
def test_a_row_that_was_cut_short_is_written_anew(file: Path, cut: int) -> None:
    expected = lpe.evaluate(
        ensemble_of(), batches(), predictions=file.with_name("whole"), **WAYS["one chunk"]
    )
    kill("drawn", file, 2 * BATCHES + 1, **WAYS["one chunk"])
    of_member = partial_folder(file) / "member-1"
    with open(of_member, "rb+") as opened:
        opened.truncate(of_member.stat().st_size - cut)
    assert_same(lpe.evaluate(ensemble_of(), batches(), predictions=file, **WAYS["one chunk"]), expected)


def test_examples_that_were_cut_short_are_written_anew(file: Path) -> None:
    expected = lpe.evaluate(
        ensemble_of(), batches(), predictions=file.with_name("whole"), **WAYS["one chunk"]
    )
    kill("drawn", file, 2 * BATCHES + 1, **WAYS["one chunk"])
    with open(partial_folder(file) / "examples", "rb+") as opened:
        opened.truncate(16 * 9 + 5)
    assert_same(lpe.evaluate(ensemble_of(), batches(), predictions=file, **WAYS["one chunk"]), expected)


def test_a_killed_run_leaves_no_file_and_its_beginning_is_no_file_of_predictions(file: Path) -> None:
    kill("drawn", file, 2 * BATCHES + 1, **WAYS["one chunk"])
    assert not file.exists()
    with pytest.raises(lpe.InputError, match="holds the beginning of it: run its evaluation again"):
        lpe.score(file)
    with pytest.raises(lpe.InputError, match="no whole file of predictions"):
        lpe.score(partial_folder(file) / "member-0")


def test_a_run_that_fails_before_it_has_a_row_leaves_nothing(file: Path) -> None:
    with pytest.raises(lpe.InputError, match="label 7"):
        lpe.evaluate(ensemble_of(), batches(targets=TARGETS + 4), predictions=file)
    assert not partial_folder(file).exists()
    with pytest.raises(lpe.InputError, match="the batches are empty"):
        lpe.evaluate(ensemble_of(), [], predictions=file)
    assert not partial_folder(file).exists()


@pytest.mark.parametrize(
    ("ensemble", "stream", "said"),
    [
        (lambda: ensemble_of(seed=1), batches, "is of another ensemble: its members are others"),
        (lambda: ensemble_of(size=3), batches, "is of another ensemble: it has 5 members, this one 3"),
        (ensemble_of, lambda: batches(targets=TARGETS.flip(0)), "is of other examples"),
        (ensemble_of, lambda: batches(inputs=INPUTS + 1), "is of other examples"),
        (
            ensemble_of,
            lambda: batches(inputs=INPUTS[:9], targets=TARGETS[:9]),
            "is of other examples: it has 23",
        ),
    ],
    ids=["seed", "size", "targets", "inputs", "fewer"],
)
def test_the_beginning_of_another_file_is_not_gone_on_from(
    file: Path, ensemble: Callable[[], Any], stream: Callable[[], Any], said: str
) -> None:
    kill("drawn", file, 2 * BATCHES + 1, **WAYS["one chunk"])
    before = {each.name: each.read_bytes() for each in partial_folder(file).iterdir()}
    with pytest.raises(lpe.InputError, match=f"p.safetensors.partial {said}"):
        lpe.evaluate(ensemble(), stream(), predictions=file)
    kept = {each.name: each.read_bytes() for each in partial_folder(file).iterdir()}
    assert {name: kept[name] for name in before if name.startswith("member-0")} == {
        "member-0": before["member-0"]
    }


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": "lpe predictions", "version": 2}'])
def test_a_damaged_beginning_is_said(file: Path, content: bytes) -> None:
    kill("drawn", file, 2 * BATCHES + 1, **WAYS["one chunk"])
    (partial_folder(file) / "header.json").write_bytes(content)
    with pytest.raises(lpe.InputError, match="is damaged .*; remove it to begin anew"):
        lpe.evaluate(ensemble_of(), batches(), predictions=file)


# A file that is there


def test_of_a_file_that_is_there_no_member_is_run(file: Path) -> None:
    expected = lpe.evaluate(ensemble_of(), batches(), predictions=file)
    ensemble = ensemble_of()
    passes = Passes(ensemble)
    # In other batches they are the same examples.
    assert_same(lpe.evaluate(ensemble, batches(5), predictions=file), expected)
    assert passes.run == []


OTHERS: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any], str]] = {
    "weights": (lambda: ensemble_of(model=net(1)), batches, {}, "another ensemble: its members are others"),
    "seed": (lambda: ensemble_of(seed=1), batches, {}, "another ensemble: its members are others"),
    "method": (
        lambda: lpe.DeepEnsemble([net()] * SIZE),
        batches,
        {},
        "LowPrecisionEnsemble, hash .*DeepEnsemble",
    ),
    "fewer members": (lambda: ensemble_of(4), batches, {}, "another ensemble: it has 5 members, this one 4"),
    "targets": (
        ensemble_of,
        lambda: batches(targets=(TARGETS + 1) % CLASSES),
        {},
        "example 0 .target . there",
    ),
    "inputs": (ensemble_of, lambda: batches(inputs=INPUTS * 2), {}, "example 0 .the inputs differ"),
    "an input": (
        ensemble_of,
        lambda: batches(inputs=INPUTS + torch.eye(EXAMPLES, FEATURES)[:, :1].roll(9, 0)),
        {},
        "other examples: in the batch that differs 1 of 7 do, the first of them example 9",
    ),
    "order": (
        ensemble_of,
        lambda: batches(inputs=INPUTS.flip(0), targets=TARGETS.flip(0)),
        {},
        "other examples",
    ),
    "fewer": (
        ensemble_of,
        lambda: batches(inputs=INPUTS[:20], targets=TARGETS[:20]),
        {},
        "23, the batches 20",
    ),
    "more": (
        ensemble_of,
        lambda: batches(inputs=torch.cat([INPUTS, INPUTS]), targets=torch.cat([TARGETS, TARGETS])),
        {},
        "23, the batches 46",
    ),
    "options": (ensemble_of, batches, {"options": lpe.EvaluationOptions(autocast=True)}, "other options"),
    "type": (ensemble_of, batches, {"predictions_dtype": "float16"}, "another type"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_file_of_something_else_is_refused_and_kept(file: Path, other: str) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    before = file.read_bytes()
    ensemble, stream, how, said = OTHERS[other]
    with pytest.raises(lpe.InputError, match=said):
        lpe.evaluate(ensemble(), stream(), predictions=file, **how)
    assert file.read_bytes() == before


class Set(nn.Module):
    """A network that is more than its weights: what a file of it was written with is not what it is now."""

    def __init__(self, scale: float = 1.0, slope: float = 0.1, shift: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(net(), nn.LeakyReLU(slope))
        self.scale = scale
        self.register_buffer("shift", torch.tensor([shift, *[0.0] * (CLASSES - 1)]), persistent=False)

    def forward(self, inputs: Tensor) -> Any:
        return self.scale * self.net(inputs) + self.shift


SETTINGS = pytest.mark.parametrize("change", [{"scale": 3.0}, {"slope": 0.9}, {"shift": 2.0}], ids=str)


@SETTINGS
def test_a_file_of_the_same_weights_under_other_settings_is_refused(
    file: Path, change: dict[str, float]
) -> None:
    lpe.evaluate(ensemble_of(model=Set()), batches(), predictions=file)
    lpe.evaluate(ensemble_of(model=Set()), batches(), predictions=file)
    with pytest.raises(lpe.InputError, match="the weights are the same, and what its modules are set to"):
        lpe.evaluate(ensemble_of(model=Set(**change)), batches(), predictions=file)


@SETTINGS
def test_shifted_examples_of_the_same_weights_under_other_settings_are_of_other_members(
    tmp_path: Path, change: dict[str, float]
) -> None:
    lpe.evaluate(ensemble_of(model=Set()), batches(), predictions=tmp_path / "p")
    lpe.evaluate(ensemble_of(model=Set(**change)), batches(), predictions=tmp_path / "q")
    with pytest.raises(lpe.InputError, match="are of other members"):
        detection(tmp_path / "p", tmp_path / "q")


def test_a_file_of_before_there_were_settings_is_taken(file: Path) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    held = read_predictions(file)
    about = {key: value for key, value in held.about.items() if key not in ("settings", "sha256", "made")}
    log_probs = torch.stack([held.log_probs(member, 0, EXAMPLES) for member in range(SIZE)])
    write_predictions(file, log_probs, held.targets, held.examples, about)
    assert "settings" not in read_predictions(file).about
    assert len(lpe.evaluate(ensemble_of(), batches(), predictions=file)) == SIZE


HASHED: dict[str, Callable[[], Any]] = {
    **ENSEMBLES,
    "other masks": lambda: lpe.MCDropoutEnsemble(net(), 0.3, SIZE, seed=1),
    "another rate": lambda: lpe.MCDropoutEnsemble(net(), 0.2, SIZE),
    "views": lambda: lpe.AugmentedEnsemble(net(), SIZE),
    "views of another seed": lambda: lpe.AugmentedEnsemble(net(), SIZE, seed=1),
    "other views": lambda: lpe.AugmentedEnsemble(net(), SIZE, view=lpe.CropAndFlip(1)),
    "views of one's own": lambda: lpe.AugmentedEnsemble(net(), SIZE, view=lambda x, draws: x),
    "views of one's own, another": lambda: lpe.AugmentedEnsemble(net(), SIZE, view=lambda x, draws: -x),
    "another seed": lambda: ensemble_of(seed=1),
    "another member in the middle": lambda: lpe.DeepEnsemble([net(seed) for seed in (0, 1, 7, 3, 4)]),
    "another architecture": lambda: lpe.DeepEnsemble(
        [nn.Sequential(*net(seed)[:1], nn.ReLU(), *net(seed)[2:]) for seed in range(SIZE)]
    ),
    "another dtype": lambda: lpe.DeepEnsemble([net(seed, torch.float32) for seed in range(SIZE)]),
    "fewer": lambda: ensemble_of(4),
}


def hash_of(ensemble: lpe.ensembles.base.Ensemble) -> str:
    """The hash of an ensemble's members that a header has."""
    return str(predictions.about_ensemble(ensemble, {}, "float32")["ensemble"])


def test_ensembles_that_differ_have_other_hashes() -> None:
    hashes = {name: hash_of(make()) for name, make in HASHED.items()}
    assert len(set(hashes.values())) == len(HASHED)


@EVERY_KIND
def test_an_ensemble_that_is_made_again_has_the_same_hash(kind: str) -> None:
    assert hash_of(ENSEMBLES[kind]()) == hash_of(ENSEMBLES[kind]())


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 3 * x), lambda x: {"a": x, "b": x.float()}])
def test_an_examples_hash_is_its_own_whatever_its_batch(wrap: Callable[[Tensor], Any]) -> None:
    whole = example_hashes(wrap(INPUTS), EXAMPLES)
    assert torch.equal(torch.cat([example_hashes(wrap(part), len(part)) for part in INPUTS.split(5)]), whole)
    assert len(set(whole.tolist())) == EXAMPLES


def test_inputs_of_another_type_or_shape_have_other_hashes() -> None:
    kinds = [INPUTS, INPUTS.float(), INPUTS.view(EXAMPLES, 2, 3), (INPUTS, INPUTS), INPUTS.view(torch.int64)]
    assert len({tuple(example_hashes(kind, EXAMPLES).tolist()) for kind in kinds}) == len(kinds)


def test_what_is_no_axis_of_examples_counts_for_every_example() -> None:
    one, other = (example_hashes((INPUTS, torch.tensor([k, 2])), EXAMPLES) for k in (0, 1))
    assert bool((one != other).all())


@pytest.mark.parametrize(
    "inputs",
    [
        INPUTS.bfloat16(),
        INPUTS.to_sparse(),
        torch.nested.nested_tensor(list(INPUTS), layout=torch.jagged),
        torch.zeros(EXAMPLES, 0),
        torch.zeros(EXAMPLES, dtype=torch.bool),
        "text",
    ],
    ids=["bfloat16", "sparse", "nested", "nothing", "bool", "no tensor"],
)
def test_inputs_of_every_kind_have_hashes(inputs: Any) -> None:
    assert example_hashes(inputs, EXAMPLES).shape == (EXAMPLES,)


# Files that are damaged


@pytest.fixture
def written(file: Path) -> Path:
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    return file


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1, -8, -EXAMPLES * 16, -1000])
def test_a_truncated_file_is_refused(written: Path, length: int) -> None:
    content = written.read_bytes()
    written.write_bytes(content[:length])
    for call in (
        lambda: lpe.score(written),
        lambda: lpe.evaluate(ensemble_of(), batches(), predictions=written),
    ):
        with pytest.raises(lpe.InputError, match="p.safetensors is no whole file of predictions"):
            call()


def test_an_altered_byte_is_seen_wherever_it_is(written: Path) -> None:
    content = written.read_bytes()
    for place in range(8, len(content), 37):
        altered = bytearray(content)
        altered[place] ^= 1
        written.write_bytes(altered)
        with pytest.raises(lpe.InputError):
            lpe.score(written)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the file again with another header, in the open."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["lpe"])
    change(header)
    safetensors.torch.save_file(tensors, path, metadata={"lpe": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda header: header.update(size=4), "was altered"),
        (lambda header: header.update(version=2), "is of version 2, this lpe reads up to 1; update lpe"),
        (lambda header: header.update(version="1"), "is damaged: its version is '1'"),
        (lambda header: header.update(format="lpe ensemble"), "holds no predictions"),
        (lambda header: header.pop("header_sha256"), "was altered"),
        (lambda header: header["memory_bits"].reverse(), "was altered"),
    ],
)
def test_a_header_that_was_altered_is_refused(written: Path, change: Any, said: str) -> None:
    rewritten(written, change)
    with pytest.raises(lpe.InputError, match=said):
        lpe.score(written)


def crafted(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Write the file again with another header and tensors, under hashes that fit."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["lpe"])
    change(header, tensors)
    header.pop("header_sha256")
    header["header_sha256"] = predictions._header_hash(header)
    safetensors.torch.save_file(tensors, path, metadata={"lpe": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda header, _: header.update(size=10**12), "its memory_bits is"),
        (lambda header, _: header.update(size=-1), "its size is -1"),
        (lambda header, _: header.update(size="3"), "its size is '3'"),
        (lambda header, _: header.update(classes=10**9), r"its log_probs \(type and shape\) is"),
        (lambda header, _: header.update(classes=0), "its number of classes is 0"),
        (lambda header, _: header.update(kind="pictures"), "its kind is 'pictures'"),
        (lambda header, _: header.update(dtype="int8"), "its dtype is 'int8'"),
        (lambda header, _: header.update(dtype=["float32"]), "its dtype is"),
        (lambda header, _: header.update(memory_bits=3), "its memory_bits is 3"),
        (lambda header, _: header.update(options=None), "its options is None"),
        (lambda header, _: header.update(ensemble=3), "its ensemble is 3"),
        (lambda header, _: header.pop("sha256"), "its sha256 is None"),
        (lambda _, tensors: tensors.pop("targets"), "is damaged"),
        (lambda _, tensors: tensors.update(targets=torch.zeros(2, 2)), "its shape of targets is"),
        (lambda _, tensors: tensors.update(examples=torch.zeros(3)), r"its examples \(type and shape\) is"),
    ],
)
def test_a_crafted_header_is_refused_before_rows_are_read(written: Path, change: Any, said: str) -> None:
    crafted(written, change)
    with pytest.raises(lpe.InputError, match=said) as caught:
        predictions.checked_predictions(written)
    assert str(written) in str(caught.value) and "\n" not in str(caught.value)


def test_targets_beyond_the_classes_are_refused(written: Path) -> None:
    def beyond(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["targets"][0] = 10**6
        header["sha256"]["targets"] = hashlib.sha256(tensors["targets"].numpy().data).hexdigest()

    crafted(written, beyond)
    with pytest.raises(lpe.InputError, match="its targets are not all from 0 to "):
        predictions.checked_predictions(written)


def test_a_header_in_too_many_brackets_and_a_pipe_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "deep", metadata={"lpe": "[" * 100_000})
    os.mkfifo(tmp_path / "pipe")
    for name in ("deep", "pipe"):
        with pytest.raises(lpe.InputError, match=f"{name} is no whole file of predictions"):
            predictions.checked_predictions(tmp_path / name)


def test_a_whole_file_passes_as_it_is(written: Path) -> None:
    held, read = predictions.checked_predictions(written), predictions.read_predictions(written)
    assert held.about == read.about and torch.equal(held.targets, read.targets)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    of_weights, of_ensemble = tmp_path / "weights", tmp_path / "ensemble"
    safetensors.torch.save_file({"log_probs": torch.zeros(2)}, of_weights)
    lpe.save(ensemble_of(), of_ensemble)
    (tmp_path / "text").write_text("log_probs")
    for name, said in (
        ("weights", "holds no predictions; lpe.evaluate"),
        ("ensemble", "holds no predictions; lpe.evaluate"),
        ("text", "is no whole file of predictions"),
        ("nothing", "there is no file"),
        (".", "is no whole file of predictions"),
    ):
        with pytest.raises(lpe.InputError, match=said):
            lpe.score(tmp_path / name)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lpe.evaluate(ensemble_of(), batches(), predictions=3), "must be a file's path, not 3"),
        (
            lambda: lpe.evaluate(ensemble_of(), batches(), predictions="p", predictions_dtype="int8"),
            "predictions_dtype must be one of float16, float32, float64",
        ),
        (
            lambda: lpe.evaluate(lpe.Cascade(ensemble_of(), (0, 0.9)), batches(), predictions="p"),
            "a cascade runs few members on most examples",
        ),
        (lambda: lpe.evaluate(ensemble_of(), batches(), predictions="taken/p"), "cannot write taken/p"),
        (
            lambda: lpe.evaluate(ensemble_of(), batches(), predictions="no/p"),
            "there is no folder no to write p",
        ),
        (lambda: lpe.evaluate(ensemble_of(), batches(), predictions="."), "cannot write|is a folder"),
        (lambda: lpe.evaluate(ensemble_of(), batches(), predictions="p" * 250), "cannot write ppp"),
        (lambda: lpe.evaluate(ensemble_of(), batches(), predictions="a\0b"), "cannot write a"),
    ],
)
def test_what_no_file_can_be_written_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    with pytest.raises(lpe.InputError, match=said):
        call()


def test_a_file_in_the_folders_place_is_said(file: Path) -> None:
    partial_folder(file).touch()
    with pytest.raises(lpe.InputError, match="is in the way"):
        lpe.evaluate(ensemble_of(), batches(), predictions=file)


def test_a_folder_without_a_header_is_begun_anew(file: Path) -> None:
    partial_folder(file).mkdir()
    (partial_folder(file) / "member-0").write_bytes(b"rows of nothing known")
    lpe.evaluate(ensemble_of(), batches(), predictions=file)
    assert len(lpe.score(file)) == SIZE


def test_a_file_of_predictions_is_no_ensemble(written: Path) -> None:
    with pytest.raises(lpe.InputError, match="holds no ensemble; lpe.save writes one"):
        lpe.load(written, net())
