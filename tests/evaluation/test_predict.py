"""Evaluation: every prefix out of one pass, the same numbers however it is cut, and errors in one line."""

from __future__ import annotations

import weakref
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe import notices
from lpe.ensembles.on_the_fly import AllMembers
from lpe.evaluation.loops import TOGETHER_MEMBERS, TOGETHER_WORK, runs_together
from lpe.evaluation.metrics import METRICS, fit_temperature, mean_log_probs, nll, temperature_scaled
from lpe.evaluation.predict import evaluate_temperature_scaled, member_log_probs
from lpe.evaluation.timing import MemberTimer
from lpe.modules import device_of, to_device

EXAMPLES, FEATURES, CLASSES, SIZE = 23, 6, 4, 5
COLUMNS = ["size", *METRICS, "memory_bits"]

# All models here are float64: what is left between two ways to the same number is the order of float64 sums,
# of 23 terms and 5 members, far below this. In float32 the product itself depends on the batch size (10⁻⁷).
RTOL = 1e-11


class Net(nn.Module):
    """Logits from one argument or two; ``wrap`` makes the output."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.last = nn.Linear(8, CLASSES)
        self.wrap = wrap

    def forward(self, a: Tensor, b: Tensor | None = None) -> Any:
        return self.wrap(4 * self.last(self.first(a if b is None else a - b).tanh()))


def net(wrap: Callable[[Tensor], Any] = lambda logits: logits) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(wrap).double()


def moved_off(ensemble: lpe.LowPrecisionEnsemble) -> lpe.LowPrecisionEnsemble:
    ensemble.model.to("meta")
    return ensemble


def ensemble_of(size: int = SIZE, model: nn.Module | None = None) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(model or net(), lpe.Int(3), size)


GENERATOR = np.random.default_rng(0)
INPUTS = torch.from_numpy(GENERATOR.normal(size=(EXAMPLES, FEATURES)))
TARGETS = torch.from_numpy(GENERATOR.integers(CLASSES, size=EXAMPLES))


def batches(size: int = 7) -> Iterator[tuple[Tensor, Tensor]]:
    """A stream that can be read once."""
    return zip(INPUTS.split(size), TARGETS.split(size), strict=True)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=RTOL, atol=1e-13)


# The table


def test_the_table_has_a_row_per_size_and_the_promised_columns() -> None:
    table = lpe.evaluate(ensemble_of(), batches())
    assert (list(table["size"]), list(table.columns)) == (list(range(1, SIZE + 1)), COLUMNS)


def test_the_memory_is_that_of_as_many_stored_members() -> None:
    ensemble = ensemble_of()
    expected = [ensemble.memory_bits(n) for n in range(1, SIZE + 1)]
    assert list(lpe.evaluate(ensemble, batches())["memory_bits"]) == expected


@pytest.mark.parametrize("n", range(1, SIZE + 1))
def test_a_prefixs_row_is_that_of_the_prefix_evaluated_alone(n: int) -> None:
    alone = lpe.evaluate(ensemble_of(n), batches())
    assert_same(lpe.evaluate(ensemble_of(), batches()).iloc[:n], alone)


@pytest.mark.parametrize("n", range(1, SIZE + 1))
def test_a_prefixs_losses_are_those_of_its_members_averaged_by_numpy(n: int) -> None:
    logits = np.stack([member(INPUTS).detach().numpy() for member in ensemble_of()[:n]])
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    centroid = np.exp(logits.mean(axis=0))
    rows, targets = np.arange(EXAMPLES), TARGETS.numpy()
    mean = probs.mean(axis=0)
    expected = {
        "nll": -np.log(mean[rows, targets]).mean(),
        "err": (mean.argmax(axis=-1) != targets).mean(),
        "average_loss": -np.log(probs[:, rows, targets]).mean(),
        "ensemble_loss": -np.log((centroid / centroid.sum(axis=-1, keepdims=True))[rows, targets]).mean(),
        "brier": np.square(mean - np.eye(CLASSES)[targets]).sum(axis=-1).mean(),
    }
    row = lpe.evaluate(ensemble_of(), batches()).iloc[n - 1]
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("chunk_bytes", [0, 1000, 1 << 40])
@pytest.mark.parametrize("batch", [1, 7, EXAMPLES])
def test_neither_chunks_nor_batches_change_a_number(batch: int, chunk_bytes: int) -> None:
    found = lpe.evaluate(ensemble_of(), batches(batch), chunk_bytes=chunk_bytes)
    assert_same(found, lpe.evaluate(ensemble_of(), batches()))


class Counted(lpe.LowPrecisionEnsemble):
    """Counts the members made."""

    made = 0

    def member(self, index: int) -> nn.Module:
        self.made += 1
        return super().member(index)


@pytest.mark.parametrize(("chunk_bytes", "times"), [(0, 4), (1 << 40, 1)])
def test_members_are_made_once_a_chunk(chunk_bytes: int, times: int) -> None:
    ensemble = Counted(net(), lpe.Int(3), SIZE)
    lpe.evaluate(ensemble, batches(7), chunk_bytes=chunk_bytes)  # four batches
    assert ensemble.made == times * SIZE


@pytest.mark.parametrize(("room", "made"), [(0, 8 * 3), (1, 3)], ids=["too large", "small enough"])
def test_members_that_are_small_beside_a_chunk_are_made_once_for_many_chunks(room: int, made: int) -> None:
    ensemble = Counted(net(), lpe.Int(3), 3)
    all_members = 3 * 8 * sum(p.numel() for p in ensemble.model.parameters())
    width = all_members // 16 // 3 + 8  # as many classes as let a chunk of a batch outgrow the members

    def wide(logits: Tensor) -> Tensor:
        return torch.cat([logits, logits.new_full((len(logits), width), -30)], dim=1)

    ensemble.model.wrap = wide
    found = lpe.evaluate(ensemble, batches(3), chunk_bytes=all_members - 1 + room)
    assert ensemble.made == made
    assert_same(found, lpe.evaluate(ensemble_of(3, net(wide)), batches(3)))


@pytest.mark.parametrize("block", [1, 200, 1000])
def test_blocks_of_sums_change_no_number(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lpe.evaluate(ensemble_of(), batches())
    monkeypatch.setattr("lpe.evaluation.loops.BLOCK_BYTES", block)
    for members in ("one-by-one", "together"):
        assert_same(lpe.evaluate(ensemble_of(), batches(), members=members), expected)
    found = member_log_probs(ensemble_of(), batches())
    torch.testing.assert_close(found[0].exp().sum(-1), torch.ones(SIZE, EXAMPLES, dtype=torch.float64))
    assert torch.equal(found[1], TARGETS)


@pytest.mark.parametrize("kind", [lambda x: x, lambda x: (x,), lambda x: {"a": x}, lambda x: UserDict(a=x)])
def test_a_chunk_counts_the_bytes_of_inputs_of_every_kind(kind: Callable[[Tensor], Any]) -> None:
    # One example takes 6 · 8 bytes of inputs and 16 · 4 of sums.
    stream = [(kind(inputs), targets) for inputs, targets in batches(1)]
    for chunk_bytes, chunks in (
        (2 * (6 * 8 + 16 * 4) - 1, EXAMPLES),
        (2 * (6 * 8 + 16 * 4), -(-EXAMPLES // 2)),
    ):
        ensemble = Counted(net(), lpe.Int(3), 1)
        lpe.evaluate(ensemble, stream, chunk_bytes=chunk_bytes)
        assert ensemble.made == chunks


def test_stored_members_hold_one_batch_at_a_time() -> None:
    held = 0

    def counting() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal held
        for batch in batches(1):
            held += 1
            yield batch

    seen: list[int] = []
    model = net().eval()
    model.register_forward_hook(lambda *_: seen.append(held))
    lpe.evaluate(lpe.DeepEnsemble([model]), counting())
    assert seen[:3] == [1, 2, 3]


def test_a_list_of_batches_gives_what_a_stream_gives() -> None:
    assert_same(lpe.evaluate(ensemble_of(), list(batches())), lpe.evaluate(ensemble_of(), batches()))


def test_a_batch_without_examples_changes_nothing() -> None:
    empty = (torch.zeros(0, FEATURES, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    found = lpe.evaluate(ensemble_of(), [empty, *batches(), empty])
    assert_same(found, lpe.evaluate(ensemble_of(), batches()))


def test_a_model_in_training_mode_is_evaluated_in_eval_mode() -> None:
    dropout = nn.Sequential(net(), nn.Dropout(0.5)).train()
    assert_same(
        lpe.evaluate(ensemble_of(model=dropout), batches()).drop(columns="memory_bits"),
        lpe.evaluate(ensemble_of(model=nn.Sequential(net(), nn.Identity())), batches()).drop(
            columns="memory_bits"
        ),
    )


def test_evaluation_builds_no_graph() -> None:
    grad_modes: list[bool] = []
    model = net()
    ensemble = ensemble_of(model=model)
    ensemble.check_reach(INPUTS)
    model.register_forward_hook(lambda *_: grad_modes.append(torch.is_grad_enabled()))
    lpe.evaluate(ensemble, batches())
    assert not any(grad_modes)


# Reading: each batch once, the first member as they come


class Decoded(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Examples that count how often each is decoded."""

    def __init__(self) -> None:
        self.times = [0] * EXAMPLES

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.times[index] += 1
        return INPUTS[index], int(TARGETS[index])


@pytest.mark.parametrize("members", ["one-by-one", "together"])
@pytest.mark.parametrize("chunk_bytes", [0, 1000, None], ids=["a batch a chunk", "some", "one chunk"])
def test_every_example_is_decoded_once_for_all_members(chunk_bytes: int | None, members: str) -> None:
    data = Decoded()
    loader = torch.utils.data.DataLoader(data, batch_size=7)
    found = lpe.evaluate(ensemble_of(), loader, chunk_bytes=chunk_bytes, members=members)
    assert data.times == [1] * EXAMPLES
    assert_same(found, lpe.evaluate(ensemble_of(), batches()))


def test_the_first_member_runs_over_a_batch_before_the_next_is_read() -> None:
    events: list[str] = []

    def reading() -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(batches(12)):
            events.append(f"read {index}")
            yield batch

    model = net()
    ensemble = ensemble_of(2, model)
    ensemble.check_reach(INPUTS)
    model.register_forward_hook(lambda *_: events.append("run"))
    lpe.evaluate(ensemble, reading(), members="one-by-one")
    assert events == ["read 0", "run", "read 1", "run", "run", "run"]


# Members together


def small(model: nn.Module | None = None) -> lpe.LowPrecisionEnsemble:
    """An ensemble whose members run together unless told otherwise."""
    return ensemble_of(20, model)


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 28])
def test_members_together_give_the_numbers_of_members_one_by_one(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lpe.evaluation.loops.CHUNK_BYTES", chunk)
    together = lpe.evaluate(ensemble_of(), batches(), calibrated=True, members="together")
    one_by_one = lpe.evaluate(ensemble_of(), batches(), calibrated=True, members="one-by-one")
    # The calibrated NLL's temperature is found to 10⁻⁶.
    columns = ["calibrated_nll"]
    assert_same(together.drop(columns=columns), one_by_one.drop(columns=columns))
    assert list(together["calibrated_nll"]) == pytest.approx(list(one_by_one["calibrated_nll"]), rel=1e-9)


def test_members_in_another_order_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = AllMembers.forward
    monkeypatch.setattr(AllMembers, "forward", lambda self, *inputs: real(self, *inputs).flip(0))
    with pytest.raises(AssertionError):
        assert_same(
            lpe.evaluate(ensemble_of(), batches(), members="together"),
            lpe.evaluate(ensemble_of(), batches(), members="one-by-one"),
        )


def passes(ensemble: lpe.Ensemble | Any, stream: Any, **options: Any) -> list[int]:
    """The examples of every forward pass of ``ensemble.model``, but for the one that tries its copies."""
    seen: list[int] = []
    ensemble.check_reach(INPUTS)
    hook = ensemble.model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    lpe.evaluate(ensemble, stream, **options)
    hook.remove()
    return seen


def test_small_work_runs_together_unless_told_otherwise() -> None:
    # All members once to see whether they can, beside one alone, then batch by batch.
    assert passes(small(), batches(12)) == [240, 12, 240, 220]


def test_told_so_members_run_one_by_one() -> None:
    assert passes(small(), batches(12), members="one-by-one") == [12, 11] * 20


def test_under_a_timer_members_run_one_by_one_unless_told_otherwise() -> None:
    assert passes(small(), batches(12), timer=MemberTimer(20)) == [12, 11] * 20
    timer = MemberTimer(20)
    assert passes(small(), batches(12), timer=timer, members="together") == [240, 12, 220]
    assert len(set(timer.seconds)) == 1 and timer.seconds[0] > 0 and timer.examples == EXAMPLES


WEIGHTS = FEATURES * 8 + 8 * CLASSES


@pytest.mark.parametrize(
    ("ensemble", "inputs", "together"),
    [
        (small, INPUTS, True),
        (small, {"a": INPUTS}, True),
        (small, torch.zeros(TOGETHER_WORK // WEIGHTS, 1), True),
        (small, torch.zeros(TOGETHER_WORK // WEIGHTS + 1, 1), False),
        (small, torch.zeros(4, TOGETHER_WORK // WEIGHTS // 4, dtype=torch.int64), True),
        (small, torch.zeros(4, TOGETHER_WORK // WEIGHTS // 4 + 1, dtype=torch.int64), False),
        (small, 3, False),
        (lambda: ensemble_of(TOGETHER_MEMBERS), INPUTS, True),
        (lambda: ensemble_of(TOGETHER_MEMBERS - 1), INPUTS, False),
        (lambda: Counted(net(), lpe.Int(3), 20), INPUTS, False),
        (lambda: lpe.DeepEnsemble([net()] * 20), INPUTS, False),
        (lambda: lpe.LowPrecisionEnsemble(net(), lpe.FullPrecision(), 20), INPUTS, False),
        (lambda: moved_off(lpe.LowPrecisionEnsemble(net(), lpe.Int(3), 20)), INPUTS, False),
    ],
    ids=[
        "small work",
        "of a dict",
        "as much as may be",
        "more than may be",
        "as many tokens as may be",
        "more tokens than may be",
        "no tensor",
        "as few members as may be",
        "fewer members",
        "members of one's own",
        "other methods",
        "no rounding",
        "not on a CPU",
    ],
)
def test_members_run_together_where_that_was_measured_to_be_faster(
    ensemble: Callable[[], Any], inputs: Any, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lpe.ensembles.selection.check_weight", lambda *_: None
    )  # a meta tensor has no values
    assert runs_together(ensemble(), inputs) is together


class Centred(Net):
    """Subtracts the mean of the batch: not a function of each example alone."""

    def forward(self, a: Tensor, b: Tensor | None = None) -> Any:
        logits = super().forward(a, b)
        return logits - logits.mean(dim=0)


def centred() -> nn.Module:
    model = Centred().double()
    model.load_state_dict(net().state_dict())
    return model


@pytest.mark.parametrize("members", ["auto", "together"])
@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_members_that_memory_does_not_hold_at_once_run_one_by_one_which_is_said(
    error: Exception,
    passes: int,
    members: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    plain, ran = AllMembers.forward, []

    def forward(module: AllMembers, *inputs: Any) -> Any:
        ran.append(module)
        if len(ran) > passes:
            raise error
        return plain(module, *inputs)

    expected = lpe.evaluate(small(net()), batches(), members="one-by-one")
    monkeypatch.setattr(AllMembers, "forward", forward)
    notices.forget()
    assert_same(lpe.evaluate(small(net()), batches(), members=members), expected)
    assert [record.getMessage() for record in caplog.records].count(
        f"note: memory does not hold {len(small(net()))} members at once; they run one by one"
    ) == 1
    ran.clear()
    file = tmp_path / "p.safetensors"
    written = lpe.evaluate(small(net()), batches(), members=members, predictions=file)
    pd.testing.assert_frame_equal(written, expected, rtol=1e-5, atol=1e-7)  # the file is float32


def test_an_error_that_is_none_of_memory_is_no_reason_to_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(*_: Any) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr(AllMembers, "forward", forward)
    with pytest.raises(RuntimeError, match="a fault"):
        lpe.evaluate(small(net()), batches(), members="together")


def test_members_that_cannot_run_together_run_one_by_one_unless_told_otherwise() -> None:
    found = lpe.evaluate(small(centred()), batches())
    assert_same(found, lpe.evaluate(small(centred()), batches(), members="one-by-one"))


def test_told_so_members_that_cannot_run_together_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="take the members one by one"):
        lpe.evaluate(small(centred()), batches(), members="together")


def test_other_methods_members_are_refused_together() -> None:
    with pytest.raises(lpe.InputError, match="members of DeepEnsemble cannot run together"):
        lpe.evaluate(lpe.DeepEnsemble([net()]), batches(), members="together")


def test_an_unknown_way_to_run_members_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="auto, one-by-one, together, not 'at once'"):
        lpe.evaluate(ensemble_of(), batches(), members="at once")


def test_members_that_are_small_beside_a_chunk_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    real = AllMembers.__init__

    def recorded(self: AllMembers, ensemble: Any, keep: bool = False) -> None:
        made.append(keep)
        real(self, ensemble, keep)

    monkeypatch.setattr(AllMembers, "__init__", recorded)
    for chunk in (SIZE * WEIGHTS * 8 - 1, SIZE * WEIGHTS * 8):
        monkeypatch.setattr("lpe.evaluation.loops.CHUNK_BYTES", chunk)
        lpe.evaluate(ensemble_of(), batches(), members="together")
    assert made == [False, True]


# Options of the passes


class Seeing(nn.Module):
    """Notes what its convolution is given, and under which types it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, CLASSES, 3)
        self.seen: list[tuple[bool, torch.dtype]] = []

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        last = images.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((last and not images.is_contiguous(), features.dtype))
        return features.mean(dim=(2, 3))


def seeing() -> Seeing:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Seeing()


IMAGES = torch.from_numpy(GENERATOR.normal(size=(EXAMPLES, 2, 5, 5))).float()


@pytest.mark.parametrize("members", ["one-by-one", "together"])
@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, (False, torch.float32)),
        ({"channels_last": True}, (True, torch.float32)),
        ({"autocast": True}, (False, torch.bfloat16)),
        ({"pin_memory": True}, (False, torch.float32)),  # on a CPU nothing
    ],
    ids=["plain", "channels last", "autocast", "pinned"],
)
def test_passes_run_as_the_options_say(options: dict[str, bool], seen: Any, members: str) -> None:
    notes: list[Any] = []
    model = seeing()
    model.seen = notes
    # A member's list is a copy: the hook of a copy is the model's own.
    model.register_forward_hook(lambda module, *_: notes.append(module.seen[-1]))
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(3), 2)
    lpe.evaluate(ensemble, [(IMAGES, TARGETS)], members=members, options=lpe.EvaluationOptions(**options))
    assert set(notes) == {seen}


@pytest.mark.parametrize(
    "use", [lpe.member_log_probs, evaluate_temperature_scaled], ids=lambda use: use.__name__
)
def test_options_reach_every_use(use: Callable[..., Any]) -> None:
    ensemble = lpe.LowPrecisionEnsemble(seeing(), lpe.Int(3), 2)
    notes: list[bool] = []
    ensemble.model.register_forward_hook(lambda *_: notes.append(torch.is_autocast_enabled("cpu")))
    use(ensemble, [(IMAGES, TARGETS)], options=lpe.EvaluationOptions(autocast=True))
    assert set(notes) == {True}


@pytest.mark.parametrize(
    ("options", "within"), [({"channels_last": True}, 1e-5), ({"autocast": True}, 1e-2)], ids=str
)
def test_options_change_numbers_within_their_precision(options: dict[str, bool], within: float) -> None:
    ensemble = lpe.LowPrecisionEnsemble(seeing(), lpe.Int(3), 3)
    plain = lpe.evaluate(ensemble, [(IMAGES, TARGETS)])
    found = lpe.evaluate(ensemble, [(IMAGES, TARGETS)], options=lpe.EvaluationOptions(**options))
    assert list(found["nll"]) == pytest.approx(list(plain["nll"]), rel=within)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: memory is pinned for it")
def test_pinned_batches_give_the_same_numbers_on_a_gpu() -> None:
    ensemble = lpe.LowPrecisionEnsemble(net().cuda(), lpe.Int(3), SIZE)
    found = lpe.evaluate(ensemble, batches(), options=lpe.EvaluationOptions(pin_memory=True))
    assert_same(found, lpe.evaluate(ensemble, batches()))


# Inputs and outputs

Pair = namedtuple("Pair", ["a", "b"])
ZEROS = torch.zeros_like(INPUTS)


@pytest.mark.parametrize(
    "inputs",
    [
        INPUTS,
        (INPUTS,),
        [INPUTS, ZEROS],
        (INPUTS, ZEROS),
        Pair(INPUTS, ZEROS),
        {"a": INPUTS},
        {"b": ZEROS, "a": INPUTS},
        UserDict({"a": INPUTS, "b": ZEROS}),
    ],
    ids=["tensor", "tuple of 1", "list", "tuple", "named tuple", "dict of 1", "dict", "mapping"],
)
def test_inputs_may_be_a_tensor_a_tuple_or_a_dict(inputs: Any) -> None:
    found = lpe.evaluate(ensemble_of(), [(inputs, TARGETS)])
    assert_same(found, lpe.evaluate(ensemble_of(), [(INPUTS, TARGETS)]))


def test_to_device_reaches_tensors_in_any_mapping() -> None:
    moved = to_device(UserDict({"a": INPUTS, "n": 3}), torch.device("meta"))
    assert (moved["a"].device.type, moved["n"]) == ("meta", 3)


def test_the_device_of_a_model_with_buffers_alone_is_theirs() -> None:
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")).type == "meta"


def test_the_device_of_a_model_without_tensors_is_the_cpu() -> None:
    assert device_of(nn.Identity()).type == "cpu"


def test_outputs_may_be_an_object_with_logits() -> None:
    model = net(lambda logits: SimpleNamespace(logits=logits))
    assert_same(lpe.evaluate(ensemble_of(model=model), batches()), lpe.evaluate(ensemble_of(), batches()))


def test_targets_may_be_a_list() -> None:
    found = lpe.evaluate(ensemble_of(), [(INPUTS, TARGETS.tolist())])
    assert_same(found, lpe.evaluate(ensemble_of(), [(INPUTS, TARGETS)]))


def test_targets_may_be_an_array() -> None:
    found = lpe.evaluate(ensemble_of(), [(INPUTS, TARGETS.numpy().astype(np.uint16))])
    assert_same(found, lpe.evaluate(ensemble_of(), [(INPUTS, TARGETS)]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_targets_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    found = lpe.evaluate(ensemble_of(), [(INPUTS, TARGETS.to(dtype))])
    assert_same(found, lpe.evaluate(ensemble_of(), [(INPUTS, TARGETS)]))


def test_bfloat16_logits_are_upcast_before_anything_else() -> None:
    low = ensemble_of(model=net(lambda logits: logits.bfloat16()))
    upcast = ensemble_of(model=net(lambda logits: logits.bfloat16().double()))
    assert_same(lpe.evaluate(low, batches()), lpe.evaluate(upcast, batches()))


def test_a_class_masked_with_minus_infinity_is_a_class_of_probability_zero() -> None:
    def masked(logits: Tensor) -> Tensor:
        return torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], dim=1)

    found = lpe.evaluate(ensemble_of(model=net(masked)), batches())
    assert_same(found, lpe.evaluate(ensemble_of(), batches()))


# Temperatures and kept log-probabilities


def test_the_calibrated_column_is_the_cross_fitted_nll_of_each_prefix() -> None:
    log_probs, targets = lpe.member_log_probs(ensemble_of(), batches())
    expected = []
    for n in range(1, SIZE + 1):
        mean = log_probs[:n].exp().mean(dim=0).log()
        expected.append(nll(temperature_scaled(mean, targets), targets))
    found = lpe.evaluate(ensemble_of(), batches(), calibrated=True)["calibrated_nll"]
    # The search for T stops at 10⁻⁶ of log T, where the loss is flat.
    assert list(found) == pytest.approx(expected, rel=1e-9)


def test_asking_for_calibration_changes_no_other_column() -> None:
    found = lpe.evaluate(ensemble_of(), batches(), calibrated=True).drop(columns="calibrated_nll")
    assert_same(found, lpe.evaluate(ensemble_of(), batches()))


def test_temperature_scaled_evaluation_has_the_calibrated_nll_of_the_whole_ensemble() -> None:
    found = evaluate_temperature_scaled(ensemble_of(), batches())["nll"]
    expected = lpe.evaluate(ensemble_of(), batches(), calibrated=True)["calibrated_nll"].iloc[-1]
    assert found == pytest.approx(expected, rel=1e-9)


def test_temperature_scaled_evaluation_leaves_the_error_as_it_was() -> None:
    expected = lpe.evaluate(ensemble_of(), batches())["err"].iloc[-1]
    assert evaluate_temperature_scaled(ensemble_of(), batches())["err"] == expected


def test_member_log_probs_are_each_members_normalised_logits() -> None:
    found, _ = lpe.member_log_probs(ensemble_of(), batches())
    expected = torch.stack([member(INPUTS).detach().log_softmax(dim=-1) for member in ensemble_of()])
    torch.testing.assert_close(found, expected, rtol=RTOL, atol=1e-13)


def test_member_log_probs_come_with_the_targets_in_order() -> None:
    assert torch.equal(lpe.member_log_probs(ensemble_of(), batches())[1], TARGETS)


# Bad input: one line that names the value

GOOD = (INPUTS, TARGETS)


def with_target(value: int) -> tuple[Tensor, Tensor]:
    targets = TARGETS.clone()
    targets[3] = value
    return INPUTS, targets


BAD: dict[str, tuple[Any, str]] = {
    "no batches": ([], "batches are empty"),
    "only empty batches": ([(INPUTS[:0], TARGETS[:0])], "batches are empty"),
    "a bare tensor": ([GOOD, INPUTS], "batch 1 must be a pair .*not Tensor"),
    "a triple": ([GOOD, (INPUTS, TARGETS, TARGETS)], "batch 1 must be a pair"),
    "float targets": ([GOOD, (INPUTS, TARGETS.float())], r"batch 1 .*torch.float32 of shape \[23\]"),
    "bool targets": ([GOOD, (INPUTS, TARGETS > 1)], r"batch 1 .*torch.bool of shape \[23\]"),
    "one-hot targets": ([GOOD, (INPUTS, torch.eye(CLASSES).long()[TARGETS])], r"batch 1 .*shape \[23, 4\]"),
    "a scalar target": ([GOOD, (INPUTS[0], TARGETS[0])], r"batch 1 .*shape \[\]"),
    "a label too large": ([GOOD, with_target(4)], "batch 1: label 4; the model has classes 0 to 3"),
    "a negative label": ([GOOD, with_target(-100)], "batch 1: label -100; the model has classes 0 to 3"),
    "fewer targets": ([GOOD, (INPUTS, TARGETS[:5])], r"batch 1 has inputs of shape \[23, 6\] and 5 targets"),
    "fewer targets of a dict": ([({"a": INPUTS}, TARGETS[:5])], r"batch 0: .*shape \[23, 4\] for 5 targets"),
    "targets of none": ([(INPUTS, None)], "targets of batch 0 must be class indices .*not NoneType"),
    "complex targets": ([(INPUTS, TARGETS + 0j)], r"batch 0 .*torch.complex64 of shape \[23\]"),
    "targets too large for integers": ([(INPUTS, [10**30] * EXAMPLES)], "targets of batch 0"),
    "a dict": (
        [{"input_ids": INPUTS, "labels": TARGETS}],
        r"batch 0 is a dict of 'input_ids', 'labels'; give pairs \(inputs, targets\)",
    ),
    "words for targets": ([(INPUTS, ["cat"] * EXAMPLES)], "targets of batch 0"),
}


@pytest.mark.parametrize("use", [lpe.evaluate, lpe.member_log_probs], ids=lambda use: use.__name__)
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_an_error_of_one_line_that_names_it(bad: str, use: Callable[..., Any]) -> None:
    stream, expected = BAD[bad]
    with pytest.raises(lpe.InputError, match=expected) as caught:
        use(ensemble_of(), iter(stream))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [None, 3, INPUTS, {"a": 1}, "batches", lambda: None], ids=lambda bad: type(bad).__name__
)
def test_what_is_no_iterable_of_batches_is_refused(bad: Any) -> None:
    with pytest.raises(lpe.InputError, match="batches must be an iterable of pairs"):
        lpe.evaluate(ensemble_of(), bad)


def test_one_hot_targets_are_told_how_to_become_indices() -> None:
    with pytest.raises(lpe.InputError, match=r"targets.argmax\(dim=1\)"):
        lpe.evaluate(ensemble_of(), [(INPUTS, torch.eye(CLASSES)[TARGETS])])


BAD_LOGITS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "of three dimensions": (lambda logits: logits[:, None], r"batch 0: .*shape \[7, 1, 4\] for 7 targets"),
    "of one dimension": (lambda logits: logits[:, 0], r"batch 0: .*shape \[7\] for 7 targets"),
    "of fewer examples": (lambda logits: logits[:3], r"batch 0: .*shape \[3, 4\] for 7 targets"),
    "that are NaN": (
        lambda logits: logits * torch.nan,
        "batch 0: .*NaN, .*: 7 of 7 rows, the first of them 0",
    ),
    "that are +inf": (lambda logits: logits.abs() * torch.inf, r"batch 0: .*\+infinity, .*: 7 of 7 rows"),
    "that are missing": (lambda logits: {"scores": logits}, "dict"),
}


@pytest.mark.parametrize("bad", BAD_LOGITS)
def test_bad_logits_are_an_error_of_one_line_that_names_them(bad: str) -> None:
    wrap, expected = BAD_LOGITS[bad]
    with pytest.raises(lpe.InputError, match=expected) as caught:
        lpe.evaluate(ensemble_of(model=net(wrap)), batches())
    assert "\n" not in str(caught.value)


def test_a_temperature_fitted_on_validation_data_is_that_data_s_own() -> None:
    validation = [(inputs.flip(0), targets) for inputs, targets in batches()]
    log_probs, targets = member_log_probs(ensemble_of(), validation)
    temperature = fit_temperature(mean_log_probs(log_probs), targets)
    scored, labels = member_log_probs(ensemble_of(), batches())
    expected = nll((mean_log_probs(scored) / temperature).log_softmax(dim=-1), labels)
    found = evaluate_temperature_scaled(ensemble_of(), batches(), validation)["nll"]
    assert found == pytest.approx(expected)
    assert found != pytest.approx(evaluate_temperature_scaled(ensemble_of(), batches())["nll"])


def test_calibrated_nll_at_some_sizes_is_that_of_all_sizes() -> None:
    torch.manual_seed(0)
    ensemble = lpe.LowPrecisionEnsemble(torch.nn.Linear(4, 3), lpe.Int(3), 4)
    batches = [(torch.randn(50, 4), torch.randint(3, (50,)))]
    every = lpe.evaluate(ensemble, batches, calibrated=True)
    some = lpe.evaluate(ensemble, batches, calibrated=(2, 4))
    assert some["calibrated_nll"].isna().tolist() == [True, False, True, False]
    assert some["calibrated_nll"].dropna().tolist() == every["calibrated_nll"][[1, 3]].tolist()


class Reread:
    """Data that is read anew each time: no list, and more than a chunk may hold."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches()


def test_log_probs_of_data_read_anew_are_those_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpe.evaluation.loops.CHUNK_BYTES", 1)
    in_memory = member_log_probs(ensemble_of(), list(batches()))
    read_anew = member_log_probs(ensemble_of(), Reread())
    assert all(torch.equal(a, b) for a, b in zip(in_memory, read_anew, strict=True))


def test_of_data_read_anew_no_more_than_a_chunk_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watched:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal most
            for inputs, targets in batches(1):
                copy = inputs.clone()
                alive.append(weakref.ref(copy))
                most = max(most, sum(each() is not None for each in alive))
                yield copy, targets

    monkeypatch.setattr("lpe.evaluation.loops.CHUNK_BYTES", 1)
    member_log_probs(ensemble_of(), Watched())
    # The chunk that ran, and the one that is being read.
    assert most <= 2


def test_a_temperature_for_one_example_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="two or more are needed"):
        evaluate_temperature_scaled(ensemble_of(1), [(INPUTS[:1], TARGETS[:1])])


# Arguments that are something else


@pytest.mark.parametrize("use", [lpe.evaluate, lpe.member_log_probs], ids=lambda use: use.__name__)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (net(), r"needs an ensemble, not Net; lpe.DeepEnsemble\(\[model\]\) is one"),
        ([net(), net()], r"needs an ensemble, not list; lpe.DeepEnsemble\(models\) is one"),
        (None, "needs an ensemble, not NoneType$"),
    ],
    ids=["a model", "a list", "None"],
)
def test_what_is_no_ensemble_is_refused(given: Any, said: str, use: Callable[..., Any]) -> None:
    with pytest.raises(lpe.InputError, match=f"^{use.__name__} {said}"):
        use(given, batches())


@pytest.mark.parametrize("calibrated", [[6], [0], 5, "all", [2.0], [True], None, torch.tensor([2])], ids=str)
def test_nonsense_in_calibrated_is_refused(calibrated: Any) -> None:
    with pytest.raises(lpe.InputError, match=r"calibrated must be True, False or .* 1, 2, 3, 4, 5, not"):
        lpe.evaluate(ensemble_of(), batches(), calibrated=calibrated)
    with pytest.raises(lpe.InputError, match=r"calibrated must be True, False or .* out of 1, 5, not"):
        lpe.evaluate(lpe.Cascade(ensemble_of(), (0.0, 1.0)), batches(), calibrated=calibrated)


@pytest.mark.parametrize(
    ("name", "value"),
    [("timer", 3), ("options", {"autocast": True}), ("chunk_bytes", -1), ("chunk_bytes", "1 GB")],
)
def test_other_arguments_of_evaluate_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(lpe.InputError, match=f"^{name} must be"):
        lpe.evaluate(ensemble_of(), batches(), **{name: value})


def test_an_option_of_the_passes_is_true_or_false() -> None:
    with pytest.raises(lpe.InputError, match="autocast must be True or False, not 'bfloat16'"):
        lpe.EvaluationOptions(autocast="bfloat16")  # type: ignore[arg-type]


def test_a_calibrated_column_of_one_example_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="two or more are needed, not 1"):
        lpe.evaluate(ensemble_of(), [(INPUTS[:1], TARGETS[:1])], calibrated=True)
