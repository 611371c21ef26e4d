"""Mixtures: the members that doing it by hand gives, random bits of their own, and budgets that add up."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.mixture import Mixture
from lpe.modules import named_tensors

INPUTS = torch.linspace(-1, 1, 32).view(4, 8)
K = 3
"""Members of an expansion."""


def model(seed: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    return net


def deep(size: int = 2, **settings: Any) -> lpe.DeepEnsemble:
    return lpe.DeepEnsemble([model(seed) for seed in range(size)], **settings)


def int4(net: nn.Module, first_member: int) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(net, lpe.Int(4), K, seed=5, first_member=first_member)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(named_tensors(first), named_tensors(second), strict=True)
    return all(a.name == b.name and torch.equal(a.tensor, b.tensor) for a, b in pairs)


# Expansions: the members


def test_a_member_is_bit_for_bit_the_one_made_by_hand() -> None:
    mixture = lpe.Mixture(deep(), int4)
    by_hand = [
        lpe.LowPrecisionEnsemble(model(i), lpe.Int(4), K, seed=5, first_member=i * K)[j]
        for i in range(2)
        for j in range(K)
    ]
    assert len(mixture) == len(by_hand)
    assert all(same(mixture[index], member) for index, member in enumerate(by_hand))


def test_a_member_does_not_depend_on_which_were_asked_for_before() -> None:
    mixture, in_order = lpe.Mixture(deep(), int4), list(lpe.Mixture(deep(), int4))
    assert all(same(mixture[index], in_order[index]) for index in (5, 0, 4, 4, 1, 3, 2))


def test_the_prediction_is_the_mean_of_the_members_probabilities() -> None:
    mixture = lpe.Mixture(deep(), int4)
    probs = torch.stack([member(INPUTS).detach().double().softmax(-1) for member in mixture]).mean(dim=0)
    torch.testing.assert_close(mixture.predict(INPUTS), probs.log())


def check_bases_share_no_random_bits(expand: Callable[[nn.Module, int], Ensemble]) -> None:
    """Over a base of one model twice: members of its two expansions differ (and would not, from one draw)."""
    mixture = lpe.Mixture(lpe.DeepEnsemble([model(0), model(0)]), expand)
    members = list(mixture)
    assert not any(same(first, second) for first in members[:K] for second in members[K:])


def test_expansions_of_equal_base_members_share_no_random_bits() -> None:
    check_bases_share_no_random_bits(int4)


def test_an_ignored_first_member_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_bases_share_no_random_bits(lambda net, first_member: int4(net, 0))


def test_a_first_member_that_counts_bases_instead_of_members_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_bases_share_no_random_bits(lambda net, first_member: int4(net, first_member // K))


def test_mixtures_nest() -> None:
    # 2 models, each as 2 members at 8 bits, and each of those as K members at 4.
    inner = lpe.Mixture(
        deep(), lambda net, first: lpe.LowPrecisionEnsemble(net, lpe.Int(8), 2, first_member=first)
    )
    outer = lpe.Mixture(inner, int4)
    base = lpe.LowPrecisionEnsemble(model(1), lpe.Int(8), 2, first_member=2)[1]
    assert len(outer) == 4 * K
    assert same(outer[3 * K + 1], int4(base, 3 * K)[1])


# Expansions: how they are made


class Counting(lpe.DeepEnsemble):
    """Counts how often a member is asked for."""

    def __init__(self, size: int) -> None:
        super().__init__([model(seed) for seed in range(size)])
        self.asked: list[int] = []

    def member(self, index: int) -> nn.Module:
        self.asked.append(index)
        return super().member(index)


def test_members_in_order_ask_for_each_base_member_once() -> None:
    base = Counting(3)
    mixture = lpe.Mixture(base, int4)
    for index in range(len(mixture)):
        mixture[index]
    assert base.asked == [0, 1, 2]


def test_the_memory_of_every_size_asks_for_no_base_member_that_was_expanded() -> None:
    base = Counting(3)
    mixture = lpe.Mixture(base, int4)
    mixture.predict(INPUTS)
    for n in range(1, len(mixture) + 1):
        mixture.memory_bits(n)
    assert base.asked == [0, 1, 2]


def test_the_last_expansion_is_let_go_before_the_next_is_made() -> None:
    made: list[weakref.ref[Ensemble]] = []
    alive: list[int] = []

    def expand(net: nn.Module, first_member: int) -> Ensemble:
        alive.append(sum(reference() is not None for reference in made))
        expansion = int4(net, first_member)
        made.append(weakref.ref(expansion))
        return expansion

    lpe.Mixture(deep(3), expand).predict(INPUTS)
    assert alive == [0, 0, 0]


def test_expansions_of_different_sizes_are_refused_naming_both() -> None:
    mixture = lpe.Mixture(
        deep(), lambda net, first: lpe.LowPrecisionEnsemble(net, lpe.Int(4), 2 if first else 3)
    )
    with pytest.raises(lpe.InputError, match="member 1 into 2, member 0 into 3"):
        mixture[3]


def test_an_expansion_that_is_no_ensemble_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="expand must return an ensemble, not Sequential"):
        lpe.Mixture(deep(), lambda net, first_member: net)  # type: ignore[arg-type, return-value]


def test_a_member_out_of_range_is_refused() -> None:
    with pytest.raises(IndexError):
        lpe.Mixture(deep(), int4)[2 * K]


# Expansions: budgets. A model has 8·16 + 16·4 = 192 weights of 4 bits and 16 + 4 of each scales and biases.

SHARED = 32 * (20 + 20)
MEMBER = 192 * 4


def check_memory(memory_bits: Callable[[int], int]) -> None:
    expected = [
        SHARED + MEMBER,
        SHARED + 2 * MEMBER,
        SHARED + 3 * MEMBER,
        2 * SHARED + 4 * MEMBER,
        2 * SHARED + 5 * MEMBER,
        2 * SHARED + 6 * MEMBER,
    ]
    assert [memory_bits(n) for n in range(1, 7)] == expected


def test_members_take_their_weights_and_each_base_its_scales_and_leftovers() -> None:
    check_memory(lpe.Mixture(deep(), int4).memory_bits)


def test_the_memory_of_one_base_only_is_caught() -> None:
    mixture = lpe.Mixture(deep(), int4)
    with pytest.raises(AssertionError):
        check_memory(lambda n: mixture.part(0).memory_bits(min(n, K)))


def test_scales_and_leftovers_counted_once_for_all_bases_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_memory(lambda n: SHARED + n * MEMBER)


def test_the_generator_takes_an_8_bit_copy_a_base() -> None:
    mixture = lpe.Mixture(deep(), int4)
    one = 192 * 8 + SHARED
    assert [mixture.memory_bits(n, "generator") for n in (1, 3, 4, 6)] == [one, one, 2 * one, 2 * one]


def test_an_unknown_storage_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="storage must be one of"):
        lpe.Mixture(deep(), int4).memory_bits(2, "disk")


def check_training_budget(backward_passes: Callable[[int], int | None]) -> None:
    # Base models of 100 and 40: the second is needed from member K on.
    assert [backward_passes(n) for n in range(1, 7)] == [100, 100, 100, 140, 140, 140]


def test_the_training_budget_is_that_of_the_base_members_touched() -> None:
    check_training_budget(lpe.Mixture(deep(backward_passes=[100, 40]), int4).backward_passes)


def test_base_members_rounded_down_are_caught() -> None:
    base = deep(backward_passes=[100, 40])
    with pytest.raises(AssertionError):
        check_training_budget(lambda n: base.backward_passes(max(1, math.floor(n / K))))


def test_a_training_budget_of_members_instead_of_base_members_is_caught() -> None:
    base = deep(backward_passes=[100, 40])
    with pytest.raises(AssertionError):
        check_training_budget(lambda n: base.backward_passes(min(n, 2)))


def test_the_training_budget_of_an_unknown_base_is_unknown() -> None:
    assert lpe.Mixture(deep(), int4).backward_passes() is None


def test_a_training_budget_of_the_mixtures_own_goes_first() -> None:
    mixture = lpe.Mixture(deep(backward_passes=[100, 40]), int4)
    mixture.training_budget = 7
    assert mixture.backward_passes(2) == 7


# Unions


def low_precision(seed: int, size: int) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(model(seed), lpe.Int(4), size, seed=seed)


def union() -> Ensemble:
    return Mixture.of([low_precision(0, 2), low_precision(1, 3)])


def test_a_union_holds_its_parts_members_part_by_part() -> None:
    by_hand = [*low_precision(0, 2), *low_precision(1, 3)]
    assert len(union()) == 5
    assert all(same(member, other) for member, other in zip(union(), by_hand, strict=True))


def budgeted(budgets: Sequence[int | Sequence[int] | None]) -> Ensemble:
    parts = [low_precision(seed, size) for seed, size in enumerate((2, 3))]
    for part, budget in zip(parts, budgets, strict=True):
        part.training_budget = budget
    return Mixture.of(parts)


def test_a_union_costs_the_trainings_of_the_parts_touched() -> None:
    ensemble = budgeted([100, [10, 30, 60]])
    assert [ensemble.backward_passes(n) for n in range(1, 6)] == [100, 100, 110, 130, 160]


def test_the_cost_of_a_union_is_unknown_from_the_first_unknown_part_on() -> None:
    ensemble = budgeted([100, None])
    assert [ensemble.backward_passes(n) for n in range(1, 6)] == [100, 100, None, None, None]


def test_a_union_takes_the_memory_of_the_members_taken_from_each_part() -> None:
    assert [union().memory_bits(n) for n in (1, 2, 3, 5)] == [
        SHARED + MEMBER,
        SHARED + 2 * MEMBER,
        2 * SHARED + 3 * MEMBER,
        2 * SHARED + 5 * MEMBER,
    ]


def test_a_union_is_stored_where_all_its_parts_are() -> None:
    assert Mixture.of([deep(), deep()]).members_are_stored
    assert not Mixture.of([deep(), low_precision(0, 2)]).members_are_stored


def test_a_union_may_be_the_base_of_a_mixture() -> None:
    mixture = lpe.Mixture(budgeted([100, [10, 30, 60]]), int4)
    assert len(mixture) == 5 * K
    assert same(mixture[3 * K + 1], int4(low_precision(1, 3)[1], 3 * K)[1])
    assert [mixture.backward_passes(n) for n in (2 * K, 2 * K + 1, 3 * K + 1)] == [100, 110, 130]


def test_a_union_of_one_ensemble_predicts_what_it_predicts() -> None:
    assert torch.equal(Mixture.of([deep()]).predict(INPUTS), deep().predict(INPUTS))


def test_the_union_of_nothing_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="there are no parts"):
        Mixture.of([])


def test_a_part_that_is_no_ensemble_is_refused_naming_it() -> None:
    with pytest.raises(lpe.InputError, match="part 1 must be an ensemble, not Sequential"):
        Mixture.of([deep(), model(0)])  # type: ignore[list-item]


# Both


@pytest.mark.parametrize("ensemble", [lambda: lpe.Mixture(deep(), int4), union], ids=["mixture", "union"])
def test_in_turn_come_the_members_in_order(ensemble: Callable[[], Ensemble]) -> None:
    members = list(ensemble())
    found = [same(member, expected) for member, expected in zip(ensemble().in_turn(), members, strict=True)]
    assert found == [True] * len(members)


@pytest.mark.parametrize("ensemble", [lambda: lpe.Mixture(deep(), int4), union], ids=["mixture", "union"])
def test_evaluate_takes_it_at_every_size(ensemble: Callable[[], Ensemble]) -> None:
    targets: Tensor = torch.tensor([0, 1, 2, 3])
    table = lpe.evaluate(ensemble(), [(INPUTS, targets)])
    assert list(table["memory_bits"]) == [ensemble().memory_bits(n) for n in range(1, len(ensemble()) + 1)]


def test_describe_names_the_base_and_the_tensors_of_an_expansion() -> None:
    text = lpe.Mixture(deep(), int4).describe()
    assert text.startswith(f"{2 * K} members: 2 base members × {K}\nbase: deep ensemble of 2 × Sequential\n")
    assert "0.weight  16×8" in text


def test_describe_has_a_table_a_part_of_a_union() -> None:
    assert union().describe().count("0.weight  16×8") == 2
