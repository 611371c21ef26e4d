"""Every number system is read back from its name; a system per name pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import lpe
from lpe.number_systems.grids import LowPrecision, ScaleAxis
from lpe.number_systems.naming import ByPattern, plain_systems

AXES: list[ScaleAxis] = [
    lpe.PerTensor(),
    lpe.PerChannel(),
    lpe.PerChannel(16),
    lpe.PerBlock(),
    lpe.PerBlock(64),
]
# Levels whose shortest decimals are long, tiny and huge; 256 of them.
CODEBOOKS = [
    lpe.Codebook([-1, 1]),
    lpe.Codebook([1e-7, 1 / 3, -(2.0**59), 0, 1.1920929e-07]),
    lpe.Codebook(np.random.default_rng(0).normal(size=256)),
]
CLIPPED = [lpe.Int(bits, clip="mse") for bits in range(2, 9)]
SPREAD = [
    *(lpe.Int(8, spread=spread) for spread in (5.7, 8, 11.3, 127, 1 + 2**-52, 10 / 3)),
    lpe.Int(3, spread=2.5),
    lpe.Int(4, clip="mse", spread=1.25),
]
EVERY = [
    system for system in (*plain_systems(), *CODEBOOKS, *CLIPPED, *SPREAD) if isinstance(system, LowPrecision)
]


def with_axis(system: Any, axis: ScaleAxis) -> LowPrecision:
    fields = {name: value for name, value in vars(system).items() if name != "scale"}
    made: LowPrecision = type(system)(**fields, scale=axis)
    return made


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("system", EVERY, ids=lambda system: system.name[:20])
def test_a_system_is_read_back_from_its_name(system: LowPrecision, axis: ScaleAxis) -> None:
    asked = with_axis(system, axis)
    assert lpe.number_system(asked.name) == asked


def test_full_precision_is_read_back_from_its_name() -> None:
    assert lpe.number_system(lpe.FullPrecision().name) == lpe.FullPrecision()


def test_systems_by_pattern_are_read_back_from_their_name() -> None:
    patterns = {
        "*mlp*": lpe.Int(4, clip="mse"),
        "blocks.[0-3].*": lpe.NF4(lpe.PerBlock(64)),
        "*conv*": lpe.Int(8, spread=11.3),
        "*=*": CODEBOOKS[0],
        "*head*": lpe.FullPrecision(),
        "*": lpe.Float(4, 3),
    }
    system = ByPattern(patterns)
    assert lpe.number_system(system.name) == system and dict(system.systems) == patterns


def test_a_name_by_pattern_is_short_and_may_have_blanks() -> None:
    assert ByPattern({"*mlp*": lpe.Int(4), "*": lpe.Int(8)}).name == "*mlp*=int4,*=int8"
    assert lpe.number_system("*mlp*=int4, * = INT-8") == ByPattern({"*mlp*": lpe.Int(4), "*": lpe.Int(8)})


def test_the_scale_axis_goes_to_the_systems_whose_names_have_none() -> None:
    asked = lpe.number_system("a=int4 per tensor,b=int8", lpe.PerTensor())
    assert asked == ByPattern({"a": lpe.Int(4, lpe.PerTensor()), "b": lpe.Int(8, lpe.PerTensor())})


def test_a_mapping_of_another_order_is_another() -> None:
    systems: dict[str, Any] = {"*mlp*": lpe.Int(4), "*": lpe.Int(8)}
    assert ByPattern(systems) != ByPattern(dict(reversed(systems.items())))


def test_numpys_integers_are_pythons_in_a_system() -> None:
    system = lpe.Int(np.int64(4), lpe.PerChannel(np.int32(16)))  # type: ignore[arg-type]
    assert system == lpe.Int(4, lpe.PerChannel(16)) and type(system.bits) is int
    assert type(system.scale.channels) is int  # type: ignore[union-attr]
    assert lpe.Float(np.int8(4), np.uint8(3)) == lpe.Float(4, 3)  # type: ignore[arg-type]
    assert lpe.PerBlock(np.int64(64)) == lpe.PerBlock(64)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("int5 per row", "unknown number system 'int5 per row'"),
        ("fp32 per tensor", "unknown number system"),
        ("int5-absmin", "unknown number system"),
        ("nf4-mse", "unknown number system"),
        ("int8*", "'int8*' names no integers with a spread S ≥ 1, such as int8*11.3"),
        ("int8*x", "names no integers with a spread"),
        ("int8*-2", "names no integers with a spread"),
        ("int8*nan", "names no integers with a spread"),
        ("int8*2*2", "names no integers with a spread"),
        ("nf4*2", "names no integers with a spread"),
        ("fp32*2", "names no integers with a spread"),
        ("int8*0.5", "spread must be a finite number ≥ 1, not 0.5"),
        ("int4*7.5", "spread must be at most q = 7 of int4, not 7.5"),
        ("codebook:1:x", "levels that are no numbers"),
        ("codebook:1", "2 to 256 levels, not 1"),
        ("int4 per 0 output channels", "a positive integer, not 0"),
        ("*mlp*=int4,int8", "'int8' in '*mlp*=int4,int8' is no pattern=system"),
        ("a=int4,a=int8", "the pattern 'a' is in 'a=int4,a=int8' twice"),
        ("a=int4,b=int9", "9 bits"),
        ("=int4", "a name pattern must be text"),
    ],
)
def test_a_name_that_is_none_is_refused_in_a_line(name: str, told: str) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.number_system(name)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_scale_axis_against_the_names_own_is_refused() -> None:
    assert lpe.number_system("int5 per tensor", lpe.PerTensor()) == lpe.Int(5, lpe.PerTensor())
    with pytest.raises(lpe.InputError, match="'int5 per tensor' has a scale per tensor, and scale=PerBlock"):
        lpe.number_system("int5 per tensor", lpe.PerBlock(64))


@pytest.mark.parametrize(
    ("systems", "told"),
    [
        ({}, "needs at least one"),
        ({"*": "int4"}, "the pattern '*' must have a number system such as lpe.Int(5)"),
        ({"*": {"*": lpe.Int(4)}}, "the pattern '*' must have a number system"),
        ({"*": lpe.FullPrecision()}, "no pattern of the mapping has a number system that rounds"),
        ({"a,b": lpe.Int(4)}, "a name pattern must be text without commas"),
        ({5: lpe.Int(4)}, "a name pattern must be text"),
        ({" a": lpe.Int(4)}, "a name pattern must be text"),
    ],
)
def test_a_mapping_that_says_nothing_is_refused_in_a_line(systems: Mapping[Any, Any], told: str) -> None:
    with pytest.raises(lpe.InputError) as caught:
        ByPattern(systems)
    assert told in str(caught.value) and "\n" not in str(caught.value)
