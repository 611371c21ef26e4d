"""Coupled rounding end to end: each member alone is BSR, all are a lattice, and no path breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.modules import named_tensors

INT4 = lpe.Int(4, lpe.PerTensor())
WEIGHTS = 1 << 17
STEP_WEIGHT = 7.0
"""The largest weight: the step of INT-4 is then 1."""


class Weights(nn.Module):
    """One layer that is all weights: p, a weight's place between its neighbours, is uniform."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WEIGHTS // 64, 64, bias=False)
        with torch.no_grad():
            values = torch.rand(self.layer.weight.shape, generator=torch.Generator().manual_seed(1)) * 12 - 6
            values[0, 0] = STEP_WEIGHT
            self.layer.weight.copy_(values)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


def ensemble(size: int, rounding: str = "coupled", first_member: int = 0) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(Weights(), INT4, size, 11, rounding, first_member=first_member)


def errors(made: lpe.LowPrecisionEnsemble) -> Tensor:
    """float64 [members, weights], in steps."""
    base = Weights().layer.weight.detach().double().flatten()
    return torch.stack([member.layer.weight.detach().double().flatten() - base for member in made])


def small(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def coupled(net: nn.Module, size: int = 3, first_member: int = 0) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(net, lpe.Int(4), size, 7, "coupled", first_member=first_member)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(named_tensors(first), named_tensors(second), strict=True)
    return all(torch.equal(a.tensor, b.tensor) for a, b in pairs)


# Each member alone is BSR


def check_frequency_of_rounding_up(member: int, rounding_errors: Tensor) -> None:
    """In each tenth of p, weights go up as often as p says: within 5 standard deviations."""
    base = Weights().layer.weight.detach().double().flatten()
    p = base - base.floor()
    up = rounding_errors > 0
    for tenth in range(10):
        inside = (p > tenth / 10) & (p <= (tenth + 1) / 10)
        expected, n = float(p[inside].mean()), int(inside.sum())
        sd = (expected * (1 - expected) / n) ** 0.5
        assert abs(float(up[inside].double().mean()) - expected) < 5 * sd, (member, tenth)


@pytest.mark.parametrize("member", [0, 1, 7, 19])
def test_a_coupled_member_alone_rounds_up_as_often_as_bsr_says(member: int) -> None:
    check_frequency_of_rounding_up(member, errors(ensemble(1, first_member=member))[0])


def test_a_member_that_rounds_to_nearest_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_frequency_of_rounding_up(0, errors(ensemble(1, "nearest"))[0])


@pytest.mark.parametrize("member", [1, 19])
def test_a_coupled_member_is_off_by_less_than_a_step(member: int) -> None:
    assert errors(ensemble(1, first_member=member)).abs().max() < 1


# Together they are a lattice


def lattice_variance(members: int) -> float:
    """Of the mean of coupled members' errors, p uniform: M⁻² Σ_ij k(i − j), k(d) = {dφ}² − {dφ} + 1/6."""
    index = torch.arange(members)
    lag = ((index[:, None] - index) * 40503 % 65536).double() / 65536
    return float((lag**2 - lag + 1 / 6).mean())


def check_mean_is_the_lattices(rounding_errors: Tensor) -> None:
    """The standard error of the mean square over 2¹⁷ weights is below 1 %."""
    for members in (1, 2, 4, 8, 16):
        found = float(rounding_errors[:members].mean(dim=0).square().mean())
        assert found == pytest.approx(lattice_variance(members), rel=0.05), members


def test_the_mean_of_the_first_members_is_off_by_what_the_lattice_leaves() -> None:
    check_mean_is_the_lattices(errors(ensemble(16)))


def test_the_lattice_is_as_good_from_any_first_member_on() -> None:
    check_mean_is_the_lattices(errors(ensemble(16, first_member=1001)))


def test_independent_members_are_caught_as_no_lattice() -> None:
    with pytest.raises(AssertionError):
        check_mean_is_the_lattices(errors(ensemble(16, "bernoulli")))


def test_every_other_coupled_member_is_caught_as_another_lattice() -> None:
    with pytest.raises(AssertionError):
        check_mean_is_the_lattices(errors(ensemble(32))[::2])


@pytest.mark.parametrize(("members", "times"), [(2, 1.6), (4, 2.2), (8, 6.0), (16, 8.0)])
def test_the_lattice_leaves_less_than_independent_members_do(members: int, times: float) -> None:
    def mean_square(rounding: str) -> float:
        return float(errors(ensemble(members, rounding)).mean(dim=0).square().mean())

    assert mean_square("bernoulli") > times * mean_square("coupled")


# No path breaks it


def test_first_member_shifts_the_coupled_index() -> None:
    assert same(coupled(small(), first_member=5)[1], coupled(small(), size=7)[6])


def test_a_coupled_member_is_the_same_in_a_larger_ensemble() -> None:
    assert same(coupled(small(), size=2)[1], coupled(small(), size=20)[1])


def test_a_coupled_member_does_not_depend_on_which_were_asked_for_before() -> None:
    asked, fresh = coupled(small()), coupled(small())
    for index in (1, 0, 2):
        asked.member(index)
    assert same(asked[1], fresh[1])


def test_coupled_members_read_back_from_a_file_of_members_are_the_same(tmp_path: Path) -> None:
    made = coupled(small(), first_member=4)
    lpe.save(made, tmp_path / "e")
    read = lpe.load(tmp_path / "e", small(9))
    assert all(same(member, other) for member, other in zip(read, made, strict=True))


def test_coupled_members_of_a_seeded_file_are_coupled_draws_from_its_copy(tmp_path: Path) -> None:
    lpe.save(coupled(small(), first_member=4), tmp_path / "e", kind="seeded")
    copy = lpe.LowPrecisionEnsemble(small(), lpe.Int(8), 1, rounding="nearest")[0]
    read = lpe.load(tmp_path / "e", small(9))
    expected = coupled(copy, first_member=4)
    assert all(same(member, other) for member, other in zip(read, expected, strict=True))


def mixture() -> lpe.Mixture:
    """Two bases of three coupled members each."""
    return lpe.Mixture(lpe.DeepEnsemble([small(0), small(1)]), lambda net, first: coupled(net, 3, first))


@pytest.mark.parametrize("base", [0, 1])
def test_a_mixtures_members_are_coupled_under_consecutive_indices(base: int) -> None:
    alone = coupled(small(base), first_member=3 * base)
    assert all(same(mixture()[3 * base + index], alone[index]) for index in range(3))


def test_a_mixture_of_equal_bases_is_one_run_of_coupled_members() -> None:
    made = lpe.Mixture(lpe.DeepEnsemble([small(), small()]), lambda net, first: coupled(net, 3, first))
    assert all(same(member, other) for member, other in zip(made, coupled(small(), 6), strict=True))


@pytest.mark.parametrize("kind", ["members", "seeded"])
def test_a_mixture_of_coupled_members_read_back_is_what_was_written(kind: str, tmp_path: Path) -> None:
    lpe.save(mixture(), tmp_path / "e", kind=kind)
    read = lpe.load(tmp_path / "e", small(9))
    for base in (0, 1):
        net = small(base)
        if kind == "seeded":
            net = lpe.LowPrecisionEnsemble(net, lpe.Int(8), 1, rounding="nearest")[0]
        alone = coupled(net, first_member=3 * base)
        assert all(same(read[3 * base + index], alone[index]) for index in range(3))
