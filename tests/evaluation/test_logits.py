"""What a model may return as logits: what is none is refused alike by all who read them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.evaluation.landscape import Surface, weight_vector
from lpe.evaluation.predict import evaluate_temperature_scaled

EXAMPLES, CLASSES, MEMBERS = 6, 4, 3
INPUTS = torch.randn(EXAMPLES, 5, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(EXAMPLES) % CLASSES
BATCHES = [(INPUTS[:3], TARGETS[:3]), (INPUTS[3:], TARGETS[3:])]


class Net(nn.Module):
    """A linear layer, whose logits ``change`` makes into something else."""

    def __init__(self, change: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(CLASSES, 5, generator=torch.Generator().manual_seed(1)))
            self.layer.bias.zero_()
        self.change = change

    def forward(self, inputs: Tensor) -> Any:
        return self.change(self.layer(inputs))


def ensemble_of(net: nn.Module) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(net, lpe.Int(4), MEMBERS)


def cascade_of(net: nn.Module) -> lpe.Cascade:
    return lpe.Cascade(ensemble_of(net), window=(0.0, 1.0))


READERS: dict[str, Callable[[nn.Module], Any]] = {
    "predict": lambda net: ensemble_of(net).predict(INPUTS),
    "predict of a dict": lambda net: ensemble_of(net).predict({"inputs": INPUTS}),
    "evaluate": lambda net: lpe.evaluate(ensemble_of(net), BATCHES, members="one-by-one"),
    "evaluate together": lambda net: lpe.evaluate(ensemble_of(net), BATCHES, members="together"),
    "member_log_probs": lambda net: lpe.member_log_probs(ensemble_of(net), BATCHES),
    "temperature": lambda net: evaluate_temperature_scaled(ensemble_of(net), BATCHES),
    "a cascade's predict": lambda net: cascade_of(net).predict(INPUTS),
    "evaluate of a cascade": lambda net: lpe.evaluate(cascade_of(net), BATCHES),
    "a landscape": lambda net: Surface(net, BATCHES).measure(weight_vector(net)),
}


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    """Logits of which one class has another value."""
    return lambda logits: logits.index_fill(1, torch.tensor([2]), value)


def row_of(value: float) -> Callable[[Tensor], Tensor]:
    """Logits of which the second row is a value throughout."""
    return lambda logits: logits.index_fill(0, torch.tensor([1]), value)


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a place each": (
        lambda logits: logits[..., None, None].expand(-1, -1, 2, 3),
        r"shape \[\d, 4, 2, 3\].*\[examples, classes\] is needed",
    ),
    "a token each": (lambda logits: logits[:, None], r"shape \[\d, 1, 4\]"),
    "no classes": (lambda logits: logits[:, 0], r"shape \[\d\]"),
    "of 0 classes": (lambda logits: logits[:, :0], r"shape \[\d, 0\]; two classes or more"),
    "of one class": (lambda logits: logits[:, :1], r"shape \[\d, 1\]; two classes or more"),
    "too few rows": (lambda logits: logits[:-1], r"shape \[\d, 4\] for \d"),
    "too many rows": (lambda logits: torch.cat([logits, logits]), r"shape \[\d+, 4\] for \d"),
    "sparse": (lambda logits: logits.to_sparse(), "sparse or nested; a dense tensor"),
    "complex": (lambda logits: logits + 0j, "type torch.complex64; real numbers"),
    "integers": (lambda logits: logits.long(), "type torch.int64; real numbers"),
    "truth values": (lambda logits: logits > 0, "type torch.bool; real numbers"),
    "a NaN": (with_value(math.nan), r"NaN, .infinity, or −infinity for every class: (\d) of \1 rows, .* 0"),
    "+infinity": (
        with_value(math.inf),
        r"NaN, .infinity, or −infinity for every class: (\d) of \1 rows, .* 0",
    ),
    "a row of −infinity": (row_of(-math.inf), "−infinity for every class: 1 of . rows, the first of them 1"),
}


MIXES_EXAMPLES = ("too few rows", "too many rows", "a row of −infinity")


@pytest.mark.parametrize(
    ("wrong", "reader"),
    [
        (wrong, reader)
        for wrong in WRONG
        for reader in READERS
        if not (wrong in MIXES_EXAMPLES and reader == "evaluate together")
    ],
)
def test_what_is_no_table_of_logits_is_refused_in_one_line_by_all_who_read_it(
    wrong: str, reader: str
) -> None:
    change, said = WRONG[wrong]
    with pytest.raises(lpe.InputError, match=said) as caught:
        READERS[reader](Net(change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_class_that_is_ruled_out_for_some_examples_is_no_error(reader: str) -> None:
    READERS[reader](Net(with_value(-math.inf)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_may_be_of_any_floating_point_type(dtype: torch.dtype) -> None:
    for reader in READERS.values():
        reader(Net(lambda logits: logits.to(dtype)))


class Cast(Net):
    """A network of float32 weights whose logits are cast to float64 at the end."""

    def __init__(self) -> None:
        super().__init__(lambda logits: logits.double())


@pytest.mark.parametrize(("error", "is_the_same"), [(3e-7, True), (1e-2, False)])
def test_logits_cast_at_the_end_are_held_to_the_weights_precision(error: float, is_the_same: bool) -> None:
    """All members at once differ from one alone by float32's rounding, whatever the logits are cast to."""
    module = ensemble_of(Cast()).as_module()
    alone = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    with contextlib.nullcontext() if is_the_same else pytest.raises(lpe.InputError, match="other logits"):
        module._check(alone, alone + error)


def test_the_batch_of_a_wrong_row_is_named() -> None:
    def second(logits: Tensor) -> Tensor:
        # One example alone tries the copies.
        return logits.where(torch.rand(()) > 2, math.nan) if len(logits) > 1 and seen.pop() else logits

    seen = [True, False]
    with pytest.raises(lpe.InputError, match="^batch 1: "):
        lpe.evaluate(ensemble_of(Net(second)), BATCHES, members="one-by-one")


def test_a_wrong_row_of_a_later_member_is_refused() -> None:
    nets = [Net(), Net(), Net(row_of(-math.inf))]
    with pytest.raises(lpe.InputError, match="1 of 6 rows"):
        lpe.DeepEnsemble(nets).predict(INPUTS)
    with pytest.raises(lpe.InputError, match="batch 0: .*1 of 3 rows"):
        lpe.evaluate(lpe.DeepEnsemble(nets), BATCHES)


class Narrowing(Net):
    """Gives fewer classes from its second call on, those of one example, which try it, not counted."""

    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        type(self).calls += len(inputs) > 1
        return super().forward(inputs)[:, : CLASSES if type(self).calls <= 1 else CLASSES - 1]


@pytest.mark.parametrize("reader", [name for name in READERS if name != "evaluate together"])
def test_other_classes_than_before_are_refused(reader: str) -> None:
    Narrowing.calls = 0
    with pytest.raises(lpe.InputError, match="logits of 3 classes, and of 4 before"):
        READERS[reader](Narrowing())


def test_inputs_whose_first_axes_differ_do_not_say_how_many_examples_there_are() -> None:
    class Graphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, CLASSES)

        def forward(self, nodes: Tensor, graph: Tensor, sizes: Tensor) -> Tensor:
            return self.layer(nodes).new_zeros(len(sizes), CLASSES).index_add(0, graph, self.layer(nodes))

    inputs = (torch.randn(7, 5), torch.tensor([0, 0, 1, 1, 1, 2, 2]), torch.tensor([2, 3, 2]))
    assert ensemble_of(Graphs()).predict(inputs).shape == (3, CLASSES)


# Classes that a member rules out


def masked(*members: list[tuple[int, int]]) -> lpe.DeepEnsemble:
    """Members that give places [(example, class), …] the logit −∞."""

    def change(places: list[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
        def at(logits: Tensor) -> Tensor:
            logits = logits.clone()
            for place in places:
                logits[place] = -math.inf
            return logits

        return at

    return lpe.DeepEnsemble([Net(change(places)) for places in members])


def table(ensemble: lpe.DeepEnsemble) -> pd.DataFrame:
    return lpe.evaluate(ensemble, [(INPUTS, TARGETS)], calibrated=True)


def by_formula(ensemble: lpe.DeepEnsemble) -> dict[str, float]:
    """The metrics of all members, by numpy."""
    log_probs = np.stack([m(INPUTS).detach().double().log_softmax(-1).numpy() for m in ensemble])
    rows, targets = np.arange(EXAMPLES), TARGETS.numpy()
    centre = log_probs.mean(axis=0)
    normaliser = np.log(np.exp(centre).sum(axis=-1))
    return {
        "nll": -np.log(np.exp(log_probs).mean(axis=0)[rows, targets]).mean(),
        "average_loss": -log_probs[:, rows, targets].mean(),
        "ensemble_loss": (normaliser - centre[rows, targets]).mean(),
        "ambiguity": -normaliser.mean(),
    }


@pytest.mark.parametrize(
    "places", [[(0, 1)], [(0, 0)], [(0, 0), (1, 1)]], ids=["another class", "the target", "two targets"]
)
def test_metrics_where_one_member_rules_a_class_out_are_those_of_the_formulas(
    places: list[tuple[int, int]],
) -> None:
    ensemble = masked([], places, [])
    found = table(ensemble).iloc[-1]
    expected = by_formula(ensemble)
    assert not any(math.isnan(value) for value in expected.values())
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_a_target_that_every_member_rules_out_costs_without_limit_and_nothing_is_nan() -> None:
    found = table(masked([(0, 0)], [(0, 0)]))
    for column in ("nll", "average_loss", "ensemble_loss", "calibrated_nll"):
        assert list(found[column]) == [math.inf, math.inf], column
    assert list(found["ambiguity"]) == pytest.approx([0, 0], abs=1e-6)
    assert not found.isna().any(axis=None)


def test_members_that_rule_out_all_classes_between_them_have_no_limit_of_ambiguity() -> None:
    found = table(masked([(0, 0), (0, 1)], [(0, 2), (0, 3)])).iloc[-1]
    assert (found["ambiguity"], found["average_loss"]) == (math.inf, math.inf)
    assert math.isnan(found["ensemble_loss"]) and math.isfinite(found["nll"])
