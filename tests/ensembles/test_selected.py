"""Selection: which members are kept, in what order, what they cost, and that no others are held meanwhile."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.modules import named_tensors

INPUTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2, 1])
BATCHES = [(INPUTS[:5], TARGETS[:5]), (INPUTS[5:], TARGETS[5:])]
"""Of unequal lengths: a mean over batches is not one over examples."""


class Constant(nn.Module):
    """A network of the same logits for every example."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits.expand(len(inputs), -1)


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def nll_of(member: nn.Module) -> float:
    """The definition: the mean of −log p over the examples."""
    with torch.no_grad():
        probs = torch.cat([member(inputs) for inputs, _ in BATCHES]).double().softmax(dim=1)
    return -sum(math.log(p[int(y)]) for p, y in zip(probs.tolist(), TARGETS, strict=True)) / len(TARGETS)


def constants(*goods: float) -> lpe.DeepEnsemble:
    """Members of which one with a greater number has a smaller NLL: label 1 is the most frequent."""
    return lpe.DeepEnsemble([Constant(0.0, good, 0.0) for good in goods])


def rounded(size: int = 8, **settings: Any) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(net(), lpe.Int(3), size, **settings)


ENSEMBLES: dict[str, Ensemble] = {
    "BSR": rounded(),
    "Gaussian noise": lpe.GaussianEnsemble(net(), lpe.Int(3), 8, std=0.3),
    "deep": lpe.DeepEnsemble([net(seed) for seed in range(8)]),
    "mixture": lpe.Mixture(
        lpe.DeepEnsemble([net(seed) for seed in range(4)]),
        lambda model, first: lpe.LowPrecisionEnsemble(model, lpe.Int(3), 2, first_member=first),
    ),
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_the_best_members_by_their_own_nll_are_kept_the_best_first(name: str) -> None:
    made = ENSEMBLES[name]
    nll = [nll_of(member) for member in made]
    chosen = lpe.select(made, BATCHES, 3)
    assert chosen.members == tuple(sorted(range(8), key=nll.__getitem__)[:3])
    assert chosen.members != (0, 1, 2)
    torch.testing.assert_close(chosen.validation_nll, tuple(nll))


def test_of_members_with_one_nll_that_of_the_smaller_index_comes_first() -> None:
    assert lpe.select(constants(0.0, 0.5, 0.0, 0.5, 0.2), BATCHES, 4).members == (1, 3, 4, 0)


def test_a_member_that_rules_a_target_out_comes_last() -> None:
    made = lpe.DeepEnsemble([Constant(-math.inf, 0.0, 0.0), Constant(9.0, 0.0, 0.0)])
    assert lpe.select(made, BATCHES, 2).members == (1, 0)


def test_members_are_scored_alike_in_a_stream_of_batches() -> None:
    chosen = lpe.select(rounded(), iter(BATCHES), 3)
    assert chosen.members == lpe.select(rounded(), BATCHES, 3).members


class Counted(Ensemble):
    """An ensemble that knows how many of its members were alive at once, and how often each was made."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.most = 0
        self.made: list[int] = []

    def member(self, index: int) -> nn.Module:
        made = Constant(0.0, 0.1 * (index % 3), 0.0)
        self.alive.add(made)
        self.most = max(self.most, len(self.alive))
        self.made.append(index)
        return made

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        return 96 * self._check_storage(n, storage)

    def describe(self) -> str:
        return "counted"


def test_members_are_made_once_one_after_another_and_none_is_held() -> None:
    made = Counted(20)
    chosen = lpe.select(made, BATCHES, 2)
    assert made.made == list(range(20)) and made.most == 1 and not made.alive
    assert chosen.members == (2, 5)


def test_a_selections_members_are_the_ensembles_own() -> None:
    made = rounded()
    chosen = lpe.SelectedEnsemble(made, [5, 2])
    for member, other in zip(chosen, (made[5], made[2]), strict=True):
        pairs = zip(named_tensors(member), named_tensors(other), strict=True)
        assert all(torch.equal(a.tensor, b.tensor) for a, b in pairs)


def test_a_selection_is_evaluated_as_its_members_are() -> None:
    made = rounded()
    chosen = lpe.select(made, BATCHES, 3)
    table = lpe.evaluate(chosen, BATCHES)
    expected = lpe.evaluate(lpe.DeepEnsemble([made[index] for index in chosen.members]), BATCHES)
    bits = "memory_bits"  # of packed members, and of whole networks
    pd.testing.assert_frame_equal(table.drop(columns=bits), expected.drop(columns=bits), rtol=1e-9)
    assert table["average_loss"].iloc[0] == pytest.approx(min(chosen.validation_nll or ()))


def test_a_selection_of_a_selection_is_recorded_by_the_indices_of_the_first() -> None:
    made = rounded()
    chosen = lpe.SelectedEnsemble(lpe.SelectedEnsemble(made, [5, 2, 7]), [2, 0])
    assert chosen.ensemble is made and chosen.members == (7, 5)


@pytest.mark.parametrize("storage", ["members", "generator"])
@pytest.mark.parametrize("name", ["BSR", "Gaussian noise"])
def test_memory_is_that_of_the_members_that_are_kept(name: str, storage: str) -> None:
    chosen = lpe.SelectedEnsemble(ENSEMBLES[name], [5, 2, 7])
    for n in (1, 2, 3):
        assert chosen.memory_bits(n, storage) == ENSEMBLES[name].memory_bits(n, storage)
    assert chosen.memory_bits(storage=storage) == ENSEMBLES[name].memory_bits(3, storage)


def test_networks_of_a_deep_ensemble_count_at_their_own_precision() -> None:
    made = lpe.DeepEnsemble([net(), net(1).bfloat16(), net(2)])
    weights = sum(p.numel() for p in net().parameters())
    chosen = lpe.SelectedEnsemble(made, [1, 2])
    assert [chosen.memory_bits(n) for n in (1, 2)] == [16 * weights, 48 * weights]


def test_a_mixtures_parts_count_where_members_of_them_are_kept() -> None:
    made = ENSEMBLES["mixture"]
    assert isinstance(made, lpe.Mixture)
    parts = [made.part(index).memory_bits(n) for index, n in ((2, 2), (0, 1))]
    chosen = lpe.SelectedEnsemble(made, [5, 0, 4])
    assert chosen.memory_bits() == sum(parts)


def test_training_cost_is_that_of_all_members_that_were_chosen_from() -> None:
    made = lpe.DeepEnsemble([net(seed) for seed in range(3)], backward_passes=[10, 20, 30])
    chosen = lpe.SelectedEnsemble(made, [1, 0])
    assert [chosen.backward_passes(n) for n in (1, 2)] == [60, 60]
    chosen.training_budget = 7
    assert chosen.backward_passes() == 7
    assert lpe.SelectedEnsemble(rounded(), [0]).backward_passes() is None


def test_a_network_that_was_trained_since_is_refused() -> None:
    model = net()
    chosen = lpe.SelectedEnsemble(lpe.LowPrecisionEnsemble(model, lpe.Int(3), 4), [1])
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(lpe.InputError, match="has changed"):
        chosen.check_unchanged()


def test_describe_says_which_members_are_kept() -> None:
    said = lpe.SelectedEnsemble(rounded(), [5, 2]).describe().splitlines()
    assert said[0] == "2 of 8 members: 5, 2" and said[1:] == rounded().describe().splitlines()


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([], "members is empty"),
        ([1, 0, 1], "member 1 is there twice"),
        ([8], "a member's index must be an integer from 0 to 7, not 8"),
        ([-1], "a member's index must be an integer from 0 to 7, not -1"),
        (2, "members must be a list of members' indices, not 2"),
    ],
)
def test_indices_that_are_none_are_refused(members: Any, says: str) -> None:
    with pytest.raises(lpe.InputError, match=says):
        lpe.SelectedEnsemble(rounded(), members)


@pytest.mark.parametrize(
    ("ensemble", "batches", "size", "says"),
    [
        (net(), BATCHES, 1, "select needs an ensemble, not Sequential"),
        (rounded(), BATCHES, 9, "size must be an integer from 1 to 8, not 9"),
        (rounded(), BATCHES, 0, "size must be an integer from 1 to 8, not 0"),
        (rounded(), [], 2, "the batches are empty"),
        (rounded(), [(INPUTS, TARGETS + 2)], 2, "the model has classes 0 to 2"),
    ],
)
def test_what_cannot_be_selected_from_is_refused(ensemble: Any, batches: Any, size: int, says: str) -> None:
    with pytest.raises(lpe.InputError, match=says):
        lpe.select(ensemble, batches, size)
