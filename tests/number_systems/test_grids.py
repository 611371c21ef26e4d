"""Number systems and scale axes: what they are called, how many scales there are, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import lpe
from lpe.number_systems import grids
from lpe.number_systems.grids import FullPrecision, Int, PerBlock, PerChannel, PerTensor, ScaleAxis


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
        (FullPrecision(), "fp32"),
    ],
)
def test_a_name_says_the_bits_and_any_unusual_scale_axis(system: Int | FullPrecision, name: str) -> None:
    assert system.name == name


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


@pytest.mark.parametrize("name", ["fp32", "FP32", "fp-32"])
def test_fp32_is_no_rounding(name: str) -> None:
    assert lpe.number_system(name) == FullPrecision()


def test_the_scale_axis_goes_with_the_name() -> None:
    assert lpe.number_system("int4", PerBlock(64)) == Int(4, PerBlock(64))


def test_every_listed_name_is_known_and_is_its_systems_name() -> None:
    assert [lpe.number_system(name).name for name in grids.names()] == grids.names()


@pytest.mark.parametrize("name", ["int1", "int9", "int16", "int0"])
def test_an_integer_name_outside_2_to_8_bits_says_so(name: str) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.number_system(name)
    message = one_line(caught)
    assert repr(name) in message and "2 to 8" in message


@pytest.mark.parametrize("name", ["", "int", "uint5", "int5x", "float", "bf16", None])
def test_an_unknown_name_is_refused_and_the_known_ones_listed(name: object) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.number_system(name)  # type: ignore[arg-type]
    message = one_line(caught)
    assert repr(name) in message and all(known in message for known in grids.names())
