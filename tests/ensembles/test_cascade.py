"""Cascades: which examples go on, what runs over them, what is predicted and what it costs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.cascade import NOTHING
from lpe.evaluation.metrics import mean_log_probs, nll
from lpe.evaluation.timing import MemberTimer

CLASSES = 5
EVERYTHING = (0.0, 1.0)


class Net(nn.Module):
    """Logits of a hidden layer; it counts the examples that every copy of it has seen."""

    def __init__(self, seed: int, classes: int = CLASSES) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden = nn.Linear(4, 16)
            self.head = nn.Linear(16, classes)
        self.seen: list[int] = []

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: float = 3.0) -> Tensor:
        self.seen.append(len(x))
        x = x if shift is None else x + shift
        return scale * self.head(torch.relu(self.hidden(x)))


@pytest.fixture
def models() -> list[Net]:
    return [Net(seed).eval() for seed in range(4)]


@pytest.fixture
def ensemble(models: list[Net]) -> lpe.DeepEnsemble:
    return lpe.DeepEnsemble(models)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(CLASSES, (64,), generator=torch.Generator().manual_seed(1))


def single(net: nn.Module, inputs: Any) -> Tensor:
    return lpe.DeepEnsemble([net]).predict(inputs)


def between(confidence: Tensor, low: int, high: int) -> tuple[float, float]:
    """A window of the sorted confidences low … high − 1, its edges midway to the next."""
    ordered = confidence.sort().values
    return float(ordered[low - 1 : low + 1].mean()), float(ordered[high - 1 : high + 1].mean())


def test_a_window_of_everything_predicts_as_the_whole_ensemble(
    ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    cascade = lpe.Cascade(ensemble, EVERYTHING)
    assert torch.equal(cascade.predict(inputs), ensemble.predict(inputs))
    assert cascade.members_per_example == 4


def test_a_window_of_nothing_predicts_as_the_first_member_and_makes_no_other(
    models: list[Net], ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    cascade = lpe.Cascade(ensemble, NOTHING)
    assert torch.equal(cascade.predict(inputs), single(models[0], inputs))
    assert cascade.members_per_example == 1
    assert [net.seen for net in models[1:]] == [[], [], []]


def test_each_example_gets_the_prediction_of_the_last_stage_it_reaches(
    models: list[Net], ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    alone, together = single(models[0], inputs), ensemble.predict(inputs)
    confidence = alone.exp().amax(-1)
    window = between(confidence, 10, 30)
    goes_on = (confidence >= window[0]) & (confidence <= window[1])
    assert int(goes_on.sum()) == 20
    expected = torch.where(goes_on[:, None], together, alone)
    torch.testing.assert_close(lpe.Cascade(ensemble, window).predict(inputs), expected, rtol=0, atol=1e-6)


def test_further_members_run_over_the_chosen_examples_alone(
    models: list[Net], ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    window = between(single(models[0], inputs).exp().amax(-1), 10, 30)
    for net in models:
        net.seen.clear()
    cascade = lpe.Cascade(ensemble, window)
    cascade.predict(inputs)
    assert [net.seen for net in models] == [[64], [20], [20], [20]]
    assert cascade.members_per_example == 1 + 3 * 20 / 64


def test_stages_run_no_member_twice_and_use_the_confidence_of_the_stage_before(
    models: list[Net], ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    pair = lpe.DeepEnsemble(models[:2]).predict(inputs)
    alone = single(models[0], inputs)
    first, second = between(alone.exp().amax(-1), 4, 40), between(pair.exp().amax(-1), 8, 50)
    for net in models:
        net.seen.clear()
    predicted = lpe.Cascade(ensemble, [first, second], stages=(1, 2, 4)).predict(inputs)
    to_two = (alone.exp().amax(-1) >= first[0]) & (alone.exp().amax(-1) <= first[1])
    to_four = to_two & (pair.exp().amax(-1) >= second[0]) & (pair.exp().amax(-1) <= second[1])
    n = int(to_four.sum())
    assert 0 < n < 36
    assert [net.seen for net in models] == [[64], [36], [n], [n]]
    expected = torch.where(to_two[:, None], pair, alone)
    expected = torch.where(to_four[:, None], ensemble.predict(inputs), expected)
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-6)


def test_the_first_model_decides_who_goes_on_and_is_no_member(
    ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    first = Net(9)
    alone = single(first, inputs)
    window = between(alone.exp().amax(-1), 10, 30)
    goes_on = (alone.exp().amax(-1) >= window[0]) & (alone.exp().amax(-1) <= window[1])
    cascade = lpe.Cascade(ensemble, window, first=first.train())
    expected = torch.where(goes_on[:, None], ensemble.predict(inputs), alone)
    torch.testing.assert_close(cascade.predict(inputs), expected, rtol=0, atol=1e-6)
    assert cascade.members_per_example == 1 + 4 * 20 / 64
    assert first.training


def test_an_ensemble_of_one_can_be_a_second_stage_behind_a_first_model(
    models: list[Net], inputs: Tensor
) -> None:
    cascade = lpe.Cascade(lpe.DeepEnsemble(models[:1]), EVERYTHING, first=Net(9))
    assert torch.equal(cascade.predict(inputs), single(models[0], inputs))


def test_who_goes_on_does_not_depend_on_the_batch(
    models: list[Net], ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    window = between(single(models[0], inputs).exp().amax(-1), 10, 30)
    whole = lpe.Cascade(ensemble, window)
    parts = lpe.Cascade(ensemble, window)
    predicted = whole.predict(inputs)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    for index in shuffled.split(7):
        torch.testing.assert_close(parts.predict(inputs[index]), predicted[index], rtol=0, atol=1e-6)
    assert parts.members_per_example == whole.members_per_example


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_tuples_and_dicts_of_inputs_are_selected_tensor_by_tensor(
    form: str, models: list[Net], ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    shift = inputs.flip(0)
    given: Any = (inputs, shift, 2.0) if form == "tuple" else {"x": inputs, "shift": shift, "scale": 2.0}
    alone = single(models[0], given)
    window = between(alone.exp().amax(-1), 10, 30)
    goes_on = (alone.exp().amax(-1) >= window[0]) & (alone.exp().amax(-1) <= window[1])
    expected = torch.where(goes_on[:, None], ensemble.predict(given), alone)
    torch.testing.assert_close(lpe.Cascade(ensemble, window).predict(given), expected, rtol=0, atol=1e-6)


def test_an_input_tensor_without_an_axis_of_examples_is_refused(
    ensemble: lpe.DeepEnsemble, inputs: Tensor
) -> None:
    with pytest.raises(lpe.InputError, match=r"an input of shape \[1, 4\] for 64 examples"):
        lpe.Cascade(ensemble, EVERYTHING).predict((inputs, torch.zeros(1, 4)))


def test_a_first_model_of_other_classes_is_refused(ensemble: lpe.DeepEnsemble, inputs: Tensor) -> None:
    with pytest.raises(lpe.InputError, match="first has 3 classes, the ensemble 5"):
        lpe.Cascade(ensemble, EVERYTHING, first=Net(9, classes=3)).predict(inputs)


def test_a_batch_without_examples_gives_none(ensemble: lpe.DeepEnsemble) -> None:
    cascade = lpe.Cascade(ensemble, EVERYTHING)
    assert cascade.predict(torch.empty(0, 4)).shape == (0, CLASSES)
    assert math.isnan(cascade.members_per_example)


@pytest.mark.parametrize(
    ("window", "said"),
    [
        ((0.9, 0.1), r"window \(0.9, 0.1\) must have 0 ≤ low ≤ high ≤ 1"),
        ((-0.1, 0.5), r"window \(-0.1, 0.5\) must have"),
        ((0.1, 1.5), r"window \(0.1, 1.5\) must have"),
        ((math.nan, 0.5), r"window \(nan, 0.5\) must have"),
        (0.5, r"window must be \(low, high\)"),
        ((0.1, 0.2, 0.3), r"window must be \(low, high\)"),
        (("low", "high"), r"window must be \(low, high\)"),
        ([(0.1, 0.2)] * 2, "2 windows for 1 steps"),
    ],
)
def test_a_bad_window_is_one_line(ensemble: lpe.DeepEnsemble, window: Any, said: str) -> None:
    with pytest.raises(lpe.InputError, match=said) as raised:
        lpe.Cascade(ensemble, window)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ((1, 5), "an ensemble of 4 has no stage of 5 members"),
        ((2, 2), r"stages must rise, not \(2, 2\)"),
        ((4,), "two or more numbers of members"),
        ((0, 4), "two or more numbers of members"),
        ((1, 2.5), "two or more numbers of members"),
    ],
)
def test_bad_stages_are_one_line(ensemble: lpe.DeepEnsemble, stages: Any, said: str) -> None:
    with pytest.raises(lpe.InputError, match=said) as raised:
        lpe.Cascade(ensemble, EVERYTHING, stages=stages)
    assert "\n" not in str(raised.value)


def test_an_ensemble_of_one_without_a_first_model_is_refused(models: list[Net]) -> None:
    with pytest.raises(lpe.InputError, match="an ensemble of one needs first="):
        lpe.Cascade(lpe.DeepEnsemble(models[:1]), EVERYTHING)


def test_what_is_no_ensemble_and_what_is_no_single_first_model_are_refused(
    models: list[Net], ensemble: lpe.DeepEnsemble
) -> None:
    with pytest.raises(lpe.InputError, match="a cascade needs an ensemble, not Net"):
        lpe.Cascade(models[0], EVERYTHING)  # type: ignore[arg-type]
    with pytest.raises(lpe.InputError, match="first must be one model, not an ensemble of 4"):
        lpe.Cascade(ensemble, EVERYTHING, first=ensemble)
    with pytest.raises(lpe.InputError, match="first must be a module or an ensemble of one, not str"):
        lpe.Cascade(ensemble, EVERYTHING, first="fp32")  # type: ignore[arg-type]


# Evaluation.


def batches_of(inputs: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def test_evaluation_of_a_window_of_everything_is_that_of_the_ensemble(
    ensemble: lpe.DeepEnsemble, inputs: Tensor, targets: Tensor
) -> None:
    batches = batches_of(inputs, targets, 16)
    table = lpe.evaluate(lpe.Cascade(ensemble, EVERYTHING, stages=(1, 2, 4)), batches, calibrated=True)
    expected = lpe.evaluate(ensemble, batches, calibrated=True).set_index("size").loc[[1, 2, 4]].reset_index()
    assert list(table["members_per_example"]) == [1, 2, 4]
    for column in expected:
        assert table[column].to_numpy() == pytest.approx(expected[column].to_numpy(), abs=1e-12), column


@pytest.mark.parametrize("chunk_bytes", [0, 1 << 12, None])
def test_evaluation_in_any_chunks_has_the_metrics_of_what_is_predicted(
    chunk_bytes: int | None, models: list[Net], ensemble: lpe.DeepEnsemble, inputs: Tensor, targets: Tensor
) -> None:
    window = between(single(models[0], inputs).exp().amax(-1), 10, 30)
    cascade = lpe.Cascade(ensemble, window)
    table = lpe.evaluate(cascade, batches_of(inputs, targets, 16), chunk_bytes=chunk_bytes)
    predicted = cascade.predict(inputs)
    assert table["nll"].iloc[-1] == pytest.approx(nll(predicted, targets), abs=1e-6)
    assert table["err"].iloc[-1] == float((predicted.argmax(-1) != targets).double().mean())
    assert table["members_per_example"].iloc[-1] == 1 + 3 * 20 / 64


def test_evaluation_makes_each_member_once_a_chunk(inputs: Tensor, targets: Tensor) -> None:
    ensemble = lpe.LowPrecisionEnsemble(Net(0), lpe.Int(4), 3)
    made, member = [], ensemble.member

    def counted(index: int) -> nn.Module:
        made.append(index)
        return member(index)

    ensemble.member = counted  # type: ignore[method-assign]
    lpe.evaluate(lpe.Cascade(ensemble, EVERYTHING), batches_of(inputs, targets, 16))
    # The first chunk is one batch: until it has run nobody knows the classes.
    assert made == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "the batches are empty"),
        ([(torch.zeros(2, 4), torch.tensor([0, 7]))], "batch 0: label 7; the model has classes 0 to 4"),
        ([(torch.full((2, 4), math.nan), torch.tensor([0, 1]))], "batch 0: the model returned logits that"),
    ],
    ids=["empty", "label", "nan"],
)
def test_bad_batches_are_one_line(ensemble: lpe.DeepEnsemble, batches: list[Any], said: str) -> None:
    with pytest.raises(lpe.InputError, match=said):
        lpe.evaluate(lpe.Cascade(ensemble, EVERYTHING), batches)


def test_a_timer_of_members_is_refused(ensemble: lpe.DeepEnsemble, inputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(lpe.InputError, match="a cascade has no time a member"):
        lpe.evaluate(lpe.Cascade(ensemble, EVERYTHING), [(inputs, targets)], timer=MemberTimer(4))


# Memory and cost.


@pytest.mark.parametrize("storage", ["members", "generator"])
def test_without_a_first_model_memory_is_the_ensembles(storage: str) -> None:
    ensemble = lpe.LowPrecisionEnsemble(Net(0), lpe.Int(4), 6)
    cascade = lpe.Cascade(ensemble, EVERYTHING, stages=(1, 4, 6))
    assert cascade.memory_bits(storage=storage) == ensemble.memory_bits(6, storage)
    assert cascade.memory_bits(2, storage) == ensemble.memory_bits(4, storage)


def test_memory_with_the_base_as_the_first_model_counts_what_both_hold_once() -> None:
    net = Net(0)
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 6)
    quantised = sum(p.numel for p in ensemble.plan if p.quantised)
    assert quantised == 4 * 16 + 16 * CLASSES
    cascade = lpe.Cascade(ensemble, EVERYTHING, first=net)
    assert cascade.memory_bits() == ensemble.memory_bits() + 32 * quantised
    assert cascade.memory_bits(1) == lpe.DeepEnsemble([net]).memory_bits()


def test_a_nearest_first_model_is_drawn_from_the_members_generator() -> None:
    net = Net(0)
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 6)
    nearest = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 1, rounding="nearest")
    cascade = lpe.Cascade(ensemble, EVERYTHING, first=nearest)
    assert cascade.memory_bits(storage="generator") == ensemble.memory_bits(storage="generator")
    leftovers = 32 * (16 + CLASSES)
    assert cascade.memory_bits() == ensemble.memory_bits() + nearest.memory_bits() - leftovers


def test_memory_of_more_stages_than_there_are_is_refused(ensemble: lpe.DeepEnsemble) -> None:
    with pytest.raises(lpe.InputError, match="stages must be an integer from 1 to 2, not 3"):
        lpe.Cascade(ensemble, EVERYTHING).memory_bits(3)


def test_backward_passes_are_those_of_the_members_that_it_uses(models: list[Net]) -> None:
    ensemble = lpe.DeepEnsemble(models, backward_passes=[10, 20, 30, 40])
    assert lpe.Cascade(ensemble, EVERYTHING, stages=(1, 3)).backward_passes() == 60


def test_the_description_names_stages_windows_and_tensors(ensemble: lpe.DeepEnsemble) -> None:
    described = lpe.Cascade(ensemble, [(0.1, 0.5), (0.2, 0.75)], stages=(1, 2, 4)).describe()
    assert "cascade of 1, 2, 4 members" in described
    assert "[0.1, 0.5], [0.2, 0.75]" in described
    assert "hidden.weight" in described


# Tuning.


@pytest.fixture
def log_probs(ensemble: lpe.DeepEnsemble, inputs: Tensor, targets: Tensor) -> Tensor:
    return lpe.member_log_probs(ensemble, [(inputs, targets)])[0]


def every_window(
    single: Tensor, together: Tensor, targets: Tensor, fixed: float | None
) -> list[tuple[int, float]]:
    """(examples that go on, NLL) of every window there is, or of all of one lower edge, by brute force."""
    confidence = single.exp().amax(-1)
    values = sorted(set(confidence.tolist()))
    found = [(0, nll(single, targets))]
    for low, high in itertools.combinations_with_replacement(values, 2):
        low = low if fixed is None else fixed
        inside = (confidence >= low) & (confidence <= high)
        found.append((int(inside.sum()), nll(torch.where(inside[:, None], together, single), targets)))
    return found


@pytest.fixture
def learnt(log_probs: Tensor) -> Tensor:
    """Targets that the ensemble as a whole predicts better than its first member does."""
    return mean_log_probs(log_probs).argmax(-1)


LOWS = pytest.mark.parametrize("low", [None, 0.0, 0.4])


@LOWS
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_tuning_finds_the_fewest_members_for_a_share_of_the_gain(
    share: float, low: float | None, log_probs: Tensor, learnt: Tensor
) -> None:
    alone, together = log_probs[0], mean_log_probs(log_probs)
    goal = nll(alone, learnt) - share * (nll(alone, learnt) - nll(together, learnt))
    fewest = min(count for count, loss in every_window(alone, together, learnt, low) if loss <= goal + 1e-12)
    tuned = lpe.tune_window(log_probs, learnt, gain_share=share, low=low)
    assert tuned.members_per_example == pytest.approx(1 + 3 * fewest / 64)
    assert tuned.nll <= goal + 1e-12
    assert 0 < fewest < 64


@LOWS
@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0, 4.0])
def test_tuning_finds_the_least_nll_within_a_budget(
    budget: float, low: float | None, log_probs: Tensor, targets: Tensor
) -> None:
    alone, together = log_probs[0], mean_log_probs(log_probs)
    every = every_window(alone, together, targets, low)
    allowed = [loss for count, loss in every if 1 + 3 * count / 64 <= budget + 1e-9]
    tuned = lpe.tune_window(log_probs, targets, members_per_example=budget, low=low)
    assert tuned.nll == pytest.approx(min(allowed), abs=1e-12)
    assert tuned.members_per_example <= budget + 1e-9


@pytest.mark.parametrize("first", [False, True], ids=["member 0", "a first model"])
def test_a_cascade_of_a_tuned_window_does_what_was_tuned(
    first: bool, ensemble: lpe.DeepEnsemble, log_probs: Tensor, learnt: Tensor, inputs: Tensor
) -> None:
    net = Net(9).eval() if first else None
    alone = single(net, inputs) if net else None
    tuned = lpe.tune_window(log_probs, learnt, gain_share=0.8, first=alone)
    table = lpe.evaluate(lpe.Cascade(ensemble, tuned.window, first=net), [(inputs, learnt)])
    assert table["nll"].iloc[-1] == pytest.approx(tuned.nll, abs=1e-6)
    assert table["nll"].iloc[0] == pytest.approx(tuned.single_nll, abs=1e-12)
    assert table["members_per_example"].iloc[-1] == pytest.approx(tuned.members_per_example)


def test_where_the_ensemble_gains_nothing_nothing_goes_on(log_probs: Tensor) -> None:
    worse = log_probs[0].argmax(-1)
    assert nll(log_probs[0], worse) < nll(mean_log_probs(log_probs), worse)
    tuned = lpe.tune_window(log_probs, worse, gain_share=0.95)
    assert (tuned.window, tuned.members_per_example) == (NOTHING, 1)


def test_examples_of_one_confidence_go_on_together() -> None:
    # Two examples alike in confidence, of which only the second gains.
    first = torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.9, 0.1]], dtype=torch.float64).log()
    second = torch.tensor([[0.6, 0.4], [0.01, 0.99], [0.9, 0.1]], dtype=torch.float64).log()
    targets = torch.tensor([0, 1, 0])
    tuned = lpe.tune_window(torch.stack([first, second]), targets, gain_share=0.5)
    assert tuned.members_per_example == pytest.approx(1 + 2 / 3)
    assert tuned.window[0] <= 0.7 <= tuned.window[1] < 0.9


def test_edges_between_neighbouring_floats_leave_the_neighbour_out() -> None:
    top = 0.7
    above = math.nextafter(top, 1)
    probs = torch.tensor([[top, 1 - top], [above, 1 - above]], dtype=torch.float64)
    from lpe.ensembles.cascade import _between

    confidence = probs.amax(-1)
    assert _between(confidence, 0, 1)[1] < above and _between(confidence, 1, 1)[0] > top


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "give one of gain_share and members_per_example"),
        ({"gain_share": 0.5, "members_per_example": 2}, "give one of gain_share and members_per_example"),
        ({"gain_share": 1.5}, "gain_share must be 0 to 1, not 1.5"),
        ({"gain_share": math.nan}, "gain_share must be 0 to 1, not nan"),
        ({"gain_share": 0.5, "low": 1.5}, "low must be 0 to 1, or None to have it chosen, not 1.5"),
        ({"members_per_example": 0.5}, "members_per_example must be 1 or more, not 0.5"),
        ({"gain_share": 0.5, "first": torch.zeros(3, 5)}, r"first has shape \[3, 5\], not \[64, 5\]"),
    ],
)
def test_bad_targets_of_the_tuning_are_one_line(
    log_probs: Tensor, targets: Tensor, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(lpe.InputError, match=said) as raised:
        lpe.tune_window(log_probs, targets, **asked)
    assert "\n" not in str(raised.value)


def test_log_probs_that_do_not_fit_the_targets_are_refused(log_probs: Tensor, targets: Tensor) -> None:
    with pytest.raises(lpe.InputError, match=r"log_probs of shape \[4, 64, 5\] and targets of shape \[63\]"):
        lpe.tune_window(log_probs, targets[1:], gain_share=0.5)


def test_a_target_of_probability_zero_is_refused(log_probs: Tensor, targets: Tensor) -> None:
    impossible = log_probs.clone()
    impossible[0, 3, targets[3]] = -math.inf
    impossible = impossible.log_softmax(dim=-1)
    with pytest.raises(lpe.InputError, match="a target has log-probability"):
        lpe.tune_window(impossible, targets, gain_share=0.5)


def test_logits_are_no_log_probabilities_to_tune_a_window_on(log_probs: Tensor, targets: Tensor) -> None:
    with pytest.raises(
        lpe.InputError, match=r"log_probs must be log-probabilities.*of logits take log_softmax"
    ):
        lpe.tune_window(log_probs + 1, targets, gain_share=0.5)
    with pytest.raises(lpe.InputError, match="first must be log-probabilities"):
        lpe.tune_window(log_probs, targets, gain_share=0.5, first=2 * log_probs[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_log_probabilities_may_be_rounded_to_any_floating_type(
    dtype: torch.dtype, log_probs: Tensor, targets: Tensor
) -> None:
    lpe.tune_window(log_probs.to(dtype), targets, gain_share=0.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(lambda t: t - 100, "label -100"), (lambda t: t + 5, "label"), (Tensor.float, "class")],
)
def test_labels_that_are_no_classes_are_refused(
    wrong: Any, said: str, log_probs: Tensor, targets: Tensor
) -> None:
    with pytest.raises(lpe.InputError, match=said):
        lpe.tune_window(log_probs, wrong(targets), gain_share=0.5)
