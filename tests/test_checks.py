"""What counts as a number: Python's and numpy's alike, truth values and text never."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import lpe
from lpe.checks import check_finite, check_integer, is_integer, is_number, shown
from lpe.number_systems.streams import check_member, check_seed

NOT_INTEGERS = [True, np.bool_(True), 3.0, np.float64(3.0), "3", None, np.array([3]), torch.tensor(3.0)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint8(3), np.int64(3), np.uint64(3)])
def test_pythons_and_numpys_integers_become_pythons(value):
    assert is_integer(value)
    assert type(check_integer("n", value, 1)) is int and check_integer("n", value, 1) == 3


@pytest.mark.parametrize("value", NOT_INTEGERS)
def test_what_is_no_integer_is_refused_by_name_and_value(value):
    assert not is_integer(value)
    with pytest.raises(lpe.InputError, match="n must be a positive integer, not"):
        check_integer("n", value, 1)


def test_an_integer_out_of_its_range_is_refused_with_the_range():
    with pytest.raises(lpe.InputError, match="^n must be an integer ≥ 2, not 1$"):
        check_integer("n", 1, 2)
    with pytest.raises(lpe.InputError, match="^n must be an integer from 2 to 8, not 9$"):
        check_integer("n", 9, 2, 8)


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_pythons_and_numpys_numbers_become_pythons(value):
    assert is_number(value)
    assert type(check_finite("x", value)) is float and check_finite("x", value) == 0.5


@pytest.mark.parametrize("value", [-1, float("nan"), np.float32("inf"), True, "0.5", None, np.array([0.5])])
def test_what_is_no_finite_number_of_its_range_is_refused(value):
    with pytest.raises(lpe.InputError, match="x must be a finite number ≥ 0, not"):
        check_finite("x", value)


def test_zero_is_refused_where_a_number_must_be_above_it():
    assert check_finite("x", 0) == 0
    with pytest.raises(lpe.InputError, match="^x must be a finite number above 0, not 0$"):
        check_finite("x", 0, above=True)


def test_a_long_value_is_shown_in_one_short_line():
    assert len(shown("a" * 1000)) <= 80 and "\n" not in shown(np.zeros((9, 9)))


@pytest.mark.parametrize("check", [check_seed, check_member])
def test_seeds_and_members_of_numpy_become_pythons(check):
    assert type(check(np.uint32(7))) is int and check(np.uint32(7)) == 7


@pytest.mark.parametrize("check", [check_seed, check_member])
@pytest.mark.parametrize("value", [*NOT_INTEGERS, -1, np.int64(-1)])
def test_a_seed_or_member_that_is_no_integer_from_0_is_refused(check, value):
    with pytest.raises(lpe.InputError, match="must be an integer from 0 to"):
        check(value)


def test_a_member_drawn_with_numpys_numbers_is_that_of_pythons(model):
    drawn = lpe.LowPrecisionEnsemble(
        model, lpe.Int(4), size=np.int64(3), seed=np.int64(1), first_member=np.uint8(2)
    )[np.int64(-1)]
    same = lpe.LowPrecisionEnsemble(model, lpe.Int(4), size=3, seed=1, first_member=2)[2]
    assert torch.equal(drawn[0].weight, same[0].weight)


def test_a_weight_rounded_with_numpys_numbers_is_that_of_pythons(model):
    weight = model[0].weight
    rounded = lpe.round_weights(weight, lpe.Int(4), seed=np.int64(2**40), name="w", member=np.int32(5))
    assert torch.equal(rounded, lpe.round_weights(weight, lpe.Int(4), seed=2**40, name="w", member=5))


def test_rates_and_stds_of_numpy_are_those_of_pythons(model):
    inputs = torch.randn(4, 8)
    for make in (
        lambda number: lpe.MCDropoutEnsemble(model, number(0.25), np.int32(2)),
        lambda number: lpe.GaussianEnsemble(model, lpe.Int(4), 2, std=number(0.25)),
        lambda number: lpe.BatchEnsemble(model, 2, std=number(0.25)),
        lambda number: lpe.IVONEnsemble(model, {"0.bias": torch.ones(16)}, 2, scale=number(0.25)),
    ):
        assert torch.equal(make(np.float32).predict(inputs), make(float).predict(inputs))


def test_the_first_n_members_are_counted_by_numpys_integers(model):
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(4), 3)
    assert ensemble.memory_bits(np.int64(2)) == ensemble.memory_bits(2)


@pytest.mark.parametrize("index", [True, 1.0, "1", None])
def test_a_member_is_asked_for_by_an_integer(model, index):
    with pytest.raises(lpe.InputError, match="members are asked for by an integer or a slice"):
        lpe.LowPrecisionEnsemble(model, lpe.Int(4), 3)[index]


def test_stages_of_a_cascade_may_be_numpys(model):
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(4), 3)
    assert lpe.Cascade(ensemble, (0.0, 0.9), stages=np.array([1, 3])).stages == (1, 3)


@pytest.mark.parametrize("budget", [[10, 20, 30], np.array([10, 20, 30])])
def test_a_budget_of_each_size_may_be_a_list_or_an_array(model, budget):
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(4), 3)
    ensemble.training_budget = budget
    assert [ensemble.backward_passes(n) for n in (1, 2, None)] == [10, 20, 30]


@pytest.mark.parametrize("budget", [2.5, "ten", [1.5, 2, 3]])
def test_a_budget_that_counts_nothing_is_refused(model, budget):
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(4), 3)
    ensemble.training_budget = budget
    with pytest.raises(lpe.InputError, match="training_budget must be an integer ≥ 0, not"):
        ensemble.backward_passes(1)


def test_bits_and_scale_axes_of_numpy_are_those_of_pythons(model):
    for numpys, pythons in (
        (lpe.Int(np.int64(4)), lpe.Int(4)),
        (lpe.Int(4, lpe.PerChannel(np.int32(2))), lpe.Int(4, lpe.PerChannel(2))),
        (lpe.Int(4, lpe.PerBlock(np.int64(4))), lpe.Int(4, lpe.PerBlock(4))),
    ):
        assert numpys == pythons and numpys.name == pythons.name
