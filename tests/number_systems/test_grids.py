"""Number systems and scale axes: what they are called, how many scales there are, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import lpe
from lpe.number_systems import naming
from lpe.number_systems.grids import (
    NF4,
    Codebook,
    Float,
    FullPrecision,
    Int,
    LowPrecision,
    NumberSystem,
    PerBlock,
    PerChannel,
    PerTensor,
    ScaleAxis,
    grid_of,
)


def one_line(caught: pytest.ExceptionInfo[lpe.InputError]) -> str:
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# Int


@pytest.mark.parametrize(("bits", "largest"), [(2, 1), (3, 3), (4, 7), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_the_largest_code_is_two_to_the_bits_less_one_less_one(bits: int, largest: int) -> None:
    assert Int(bits).largest_code == largest


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16, 5.0, True, "5", None])
def test_bits_outside_2_to_8_are_refused_with_their_value(bits: object) -> None:
    with pytest.raises(lpe.InputError) as caught:
        Int(bits)  # type: ignore[arg-type]
    assert repr(bits) in one_line(caught)


def test_the_default_scale_is_one_per_output_channel() -> None:
    assert Int(5).scale == PerChannel(channels=1)


@pytest.mark.parametrize(
    ("system", "largest", "code_bits"),
    [
        (Int(8, spread=11.3), 12, 5),  # 127 / 11.3 = 11.2…, 25 levels
        (Int(8, spread=12.7), 10, 5),  # 127 / 12.7 = 10, 21 levels
        (Int(8, spread=127), 1, 2),
        (Int(8, spread=2), 64, 8),  # 129 levels
        (Int(8, spread=2.1), 61, 7),  # 123 levels
        (Int(8, clip="mse", spread=8.5), 15, 5),
        (Int(5, spread=1.5), 10, 5),
        (Int(4, spread=1), 7, 4),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_spread_leaves_as_many_levels_as_steps_reach_the_largest_weight(
    system: Int, largest: int, code_bits: int
) -> None:
    assert system.levels == tuple(map(float, range(-largest, largest + 1)))
    assert (system.largest_code, grid_of(system).code_bits) == (largest, code_bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_spread_of_q_over_a_whole_number_leaves_as_many_codes(bits: int) -> None:
    q = Int(bits).q
    assert [Int(bits, spread=q / code).largest_code for code in range(1, q + 1)] == list(range(1, q + 1))


def test_a_spread_of_one_is_none() -> None:
    assert Int(5, spread=1) == Int(5) and Int(5, spread=np.float32(1)).name == "int5"  # type: ignore[arg-type]
    assert hash(Int(5, spread=1)) == hash(Int(5)) and type(Int(5, spread=1).spread) is float
    assert Int(5, spread=1.5) != Int(5)


@pytest.mark.parametrize("spread", [0.5, 0, -3, float("nan"), float("inf"), True, "2", None, [2.0]])
def test_a_spread_that_is_no_number_from_1_on_is_refused_with_its_value(spread: object) -> None:
    with pytest.raises(lpe.InputError) as caught:
        Int(5, spread=spread)  # type: ignore[arg-type]
    assert f"spread must be a finite number ≥ 1, not {spread!r}" in one_line(caught)


@pytest.mark.parametrize(("bits", "spread"), [(2, 1.01), (5, 15.5), (8, 128)])
def test_a_spread_beyond_q_is_refused_since_fewer_than_three_levels_are_left(
    bits: int, spread: float
) -> None:
    with pytest.raises(lpe.InputError) as caught:
        Int(bits, spread=spread)
    message = one_line(caught)
    assert f"at most q = {2 ** (bits - 1) - 1} of int{bits}, not {spread:g}" in message
    assert "fewer than three levels" in message


@pytest.mark.parametrize("scale", ["per channel", 128, None, PerChannel])
def test_a_scale_that_is_no_scale_axis_is_refused(scale: object) -> None:
    with pytest.raises(lpe.InputError) as caught:
        Int(5, scale)  # type: ignore[arg-type]
    assert "PerTensor()" in one_line(caught)


def test_equal_number_systems_are_equal_and_hash_alike() -> None:
    assert {Int(5), Int(5, PerChannel(1)), Int(5, PerTensor())} == {Int(5), Int(5, PerTensor())}


def test_a_number_system_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Int(5).bits = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("system", "name"),
    [
        (Int(5), "int5"),
        (Int(8, PerTensor()), "int8 per tensor"),
        (Int(3, PerChannel(16)), "int3 per 16 output channels"),
        (Int(4, PerBlock(128)), "int4 per block of 128 inputs"),
        (Int(8, spread=11.3), "int8*11.3"),
        (Int(8, spread=16), "int8*16"),
        (Int(6, PerTensor(), "mse", 1.7), "int6-mse*1.7 per tensor"),
        (Float(4, 3), "fp8_e4m3"),
        (Float(exponent=5, mantissa=2), "fp8_e5m2"),
        (Float(3, 2), "fp6_e3m2"),
        (Float(2, 3), "fp6_e2m3"),
        (Float(2, 1, PerBlock(16)), "fp4_e2m1 per block of 16 inputs"),
        (NF4(), "nf4"),
        (NF4(PerBlock(64)), "nf4 per block of 64 inputs"),
        # BLAKE2s of the levels as little-endian float32.
        (Codebook([1, -1]), "codebook:-1:1"),
        (Codebook([1, -1], PerTensor()), "codebook:-1:1 per tensor"),
        (FullPrecision(), "fp32"),
    ],
)
def test_a_name_says_the_bits_and_any_unusual_scale_axis(system: NumberSystem, name: str) -> None:
    assert system.name == name


# Every system

EVERY = [
    Int(2),
    Int(5),
    Int(8),
    Float(4, 3),
    Float(5, 2),
    Float(3, 2),
    Float(2, 3),
    Float(2, 1),
    NF4(),
    Codebook([0.5, -1.0]),
    Codebook(range(17)),
    Codebook(range(256)),
]


@pytest.mark.parametrize("system", EVERY, ids=lambda system: system.name)
def test_a_systems_bits_are_the_fewest_that_tell_its_levels_apart(system: LowPrecision) -> None:
    assert 2 ** (system.bits - 1) < len(system.levels) <= 2**system.bits
    assert grid_of(system).code_bits == system.bits


@pytest.mark.parametrize("system", EVERY, ids=lambda system: system.name)
def test_a_grid_names_the_level_nearest_to_zero_and_the_largest_magnitude(system: LowPrecision) -> None:
    grid = grid_of(system)
    assert abs(grid.levels[grid.zero]) == min(map(abs, system.levels))
    assert grid.largest == max(map(abs, system.levels))


def test_of_two_levels_equally_near_zero_the_positive_one_stands_for_it() -> None:
    assert grid_of(Codebook([-1.0, -0.5, 0.5, 2.0])).zero == 2


def test_the_levels_of_integers_are_the_whole_numbers_from_minus_q_to_q() -> None:
    assert Int(3).levels == (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


def test_full_precision_has_32_bits_and_no_list_of_levels() -> None:
    assert (FullPrecision().bits, FullPrecision().levels) == (32, ())


@pytest.mark.parametrize("make", [partial(Float, 4, 3), NF4, partial(Codebook, [-1, 1])])
def test_every_system_has_one_scale_per_output_channel_unless_told(
    make: Callable[..., LowPrecision],
) -> None:
    assert make().scale == PerChannel() and make(scale=PerBlock(7)).scale == PerBlock(7)


@pytest.mark.parametrize("make", [partial(Float, 4, 3), NF4, partial(Codebook, [-1, 1])])
@pytest.mark.parametrize("scale", ["per channel", 128, None, PerChannel])
def test_what_is_no_scale_axis_is_refused_by_every_system(
    make: Callable[..., LowPrecision], scale: object
) -> None:
    with pytest.raises(lpe.InputError) as caught:
        make(scale=scale)
    assert "PerTensor()" in one_line(caught)


# Float


@pytest.mark.parametrize(
    ("exponent", "mantissa"),
    [(3, 4), (8, 7), (0, 3), (4, 0), (4.0, 3), (4, True), ("4", "3"), (None, 3), ([], 3)],
)
def test_a_float_that_there_is_not_is_refused_with_those_that_there_are(
    exponent: object, mantissa: object
) -> None:
    with pytest.raises(lpe.InputError) as caught:
        Float(exponent, mantissa)  # type: ignore[arg-type]
    message = one_line(caught)
    assert f"exponent={exponent!r}, mantissa={mantissa!r}" in message
    assert all(known in message for known in ("E4M3", "E5M2", "E3M2", "E2M3", "E2M1"))


# Codebook


@pytest.mark.parametrize(
    "levels",
    [[2.0, -1.0, 0.5], (0.5, 2.0, -1.0), np.array([2, -1, 0.5]), torch.tensor([2, -1, 0.5]), {2, -1, 0.5}],
    ids=["list", "tuple", "array", "tensor", "set"],
)
def test_a_codebook_is_what_its_levels_are_in_whatever_order_and_container(levels: Any) -> None:
    codebook = Codebook(levels)
    assert codebook.levels == (-1.0, 0.5, 2.0)
    assert codebook == Codebook([-1.0, 0.5, 2.0]) and hash(codebook) == hash(Codebook([-1.0, 0.5, 2.0]))


def test_a_codebooks_levels_are_rounded_to_float32() -> None:
    assert Codebook([0.1, 1.0]).levels == (float(np.float32(0.1)), 1.0)


def test_minus_zero_is_a_codebooks_zero() -> None:
    assert Codebook([-0.0, 1.0]).name == Codebook([0.0, 1.0]).name


def test_names_tell_codebooks_of_as_many_levels_apart() -> None:
    assert len({Codebook([0, 1]).name, Codebook([-1, 1]).name, Codebook([0, 2]).name}) == 3


@pytest.mark.parametrize(
    ("levels", "told"),
    [
        ([], "2 to 256 levels, not 0"),
        ([1.0], "2 to 256 levels, not 1"),
        (range(257), "2 to 256 levels, not 257"),
        ([1.0, 0.5, 1.0], "1.0 is there twice"),
        ([0.0, -0.0], "0.0 is there twice"),
        ([1.0, 1.0 + 1e-12], "1.0 is there twice"),
        ([0.0, float("nan")], "nan is not"),
        ([0.0, float("inf")], "inf is not"),
        ([0.0, 1e39], "1e+39 is not"),
        ([0.0, 10**400], "must be numbers"),
        ("123", "must be numbers, not '123'"),
        (["1", "2"], "must be numbers"),
        (5, "must be numbers, not 5"),
        (None, "must be numbers, not None"),
        ([[0, 1], [2, 3]], "must be numbers"),
        (np.eye(2), "must be numbers"),
        (torch.eye(2), "must be numbers"),
        ([0.0, 2.0**61], "between 2**-60 and 2**60"),
        ([0.0, 2.0**-61], "between 2**-60 and 2**60"),
    ],
    ids=str,
)
def test_levels_that_make_no_codebook_are_refused_with_the_reason(levels: Any, told: str) -> None:
    with pytest.raises(lpe.InputError) as caught:
        Codebook(levels)
    assert told in one_line(caught)


# Scale axes

AXES = [PerTensor(), PerChannel(), PerChannel(3), PerBlock(5)]


@pytest.mark.parametrize("axis", [PerChannel, PerBlock])
@pytest.mark.parametrize("count", [0, -1, 1.5, True, "8", None])
def test_a_group_size_that_is_no_positive_integer_is_refused(
    axis: Callable[[object], ScaleAxis], count: object
) -> None:
    with pytest.raises(lpe.InputError) as caught:
        axis(count)
    assert repr(count) in one_line(caught)


@pytest.mark.parametrize(
    ("axis", "groups"),
    [
        (PerTensor(), (1, 1)),
        (PerChannel(), (7, 1)),
        (PerChannel(3), (3, 1)),
        (PerChannel(7), (1, 1)),
        (PerChannel(100), (1, 1)),
        (PerBlock(5), (7, 3)),
        (PerBlock(13), (7, 1)),
        (PerBlock(), (7, 1)),
    ],
)
def test_groups_count_the_last_shorter_group_too(axis: ScaleAxis, groups: tuple[int, int]) -> None:
    assert axis.groups(7, 13) == groups


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 13), (6, 10), (13, 4)])
def test_every_element_lies_in_a_counted_group_and_no_group_is_empty(
    axis: ScaleAxis, rows: int, columns: int
) -> None:
    row_extent, column_extent = axis.extent(rows, columns)
    used = {(row // row_extent, column // column_extent) for row in range(rows) for column in range(columns)}
    down, across = axis.groups(rows, columns)
    assert used == {(i, j) for i in range(down) for j in range(across)}


@pytest.mark.parametrize("axis", AXES)
def test_extents_of_an_empty_weight_are_positive(axis: ScaleAxis) -> None:
    assert min(axis.extent(0, 0)) >= 1


# By name


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_integer_system_has_a_name(bits: int) -> None:
    assert lpe.number_system(f"int{bits}") == Int(bits)


@pytest.mark.parametrize("name", ["INT-5", "Int5", "int-5", "INT5"])
def test_case_and_a_dash_do_not_matter(name: str) -> None:
    assert lpe.number_system(name) == Int(5)


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("fp8_e4m3", Float(4, 3)),
        ("fp8_e5m2", Float(5, 2)),
        ("fp6_e3m2", Float(3, 2)),
        ("fp6_e2m3", Float(2, 3)),
        ("fp4_e2m1", Float(2, 1)),
        ("FP8-E4M3", Float(4, 3)),
        ("nf4", NF4()),
        ("NF-4", NF4()),
    ],
)
def test_every_other_system_has_a_name(name: str, system: NumberSystem) -> None:
    assert lpe.number_system(name) == system


@pytest.mark.parametrize("name", ["fp8_e4m3", "nf4"])
def test_the_scale_axis_goes_with_the_name_of_other_systems(name: str) -> None:
    system = lpe.number_system(name, PerBlock(64))
    assert isinstance(system, Float | NF4) and system.scale == PerBlock(64)


@pytest.mark.parametrize("name", ["fp32", "FP32", "fp-32"])
def test_fp32_is_no_rounding(name: str) -> None:
    assert lpe.number_system(name) == FullPrecision()


def test_the_scale_axis_goes_with_the_name() -> None:
    assert lpe.number_system("int4", PerBlock(64)) == Int(4, PerBlock(64))


def test_every_listed_name_is_known_and_is_its_systems_name() -> None:
    assert [lpe.number_system(name).name for name in naming.names()] == naming.names()


@pytest.mark.parametrize("name", ["int1", "int9", "int16", "int0"])
def test_an_integer_name_outside_2_to_8_bits_says_so(name: str) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.number_system(name)
    message = one_line(caught)
    assert repr(name) in message and "2 to 8" in message


@pytest.mark.parametrize(
    "name", ["", "int", "uint5", "int5x", "float", "bf16", "fp8", "fp8_e3m4", "fp6_e4m3", "nf3", None]
)
def test_an_unknown_name_is_refused_and_the_known_ones_listed(name: object) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.number_system(name)  # type: ignore[arg-type]
    message = one_line(caught)
    assert repr(name) in message and all(known in message for known in naming.names())
