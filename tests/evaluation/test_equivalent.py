"""Deep-ensemble equivalents of curves whose crossings are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lpe.errors import InputError
from lpe.evaluation.equivalent import deep_ensemble_equivalent

CURVE = [0.10, 0.08, 0.07, 0.065]


@pytest.mark.parametrize(
    ("value", "members"),
    [(0.10, 1.0), (0.09, 1.5), (0.08, 2.0), (0.0725, 2.75), (0.065, 4.0)],
)
def test_between_two_deep_ensembles_it_is_interpolated_linearly(value: float, members: float) -> None:
    assert deep_ensemble_equivalent(value, CURVE).members == pytest.approx(members)


def test_a_method_worse_than_the_single_network_is_below_1() -> None:
    found = deep_ensemble_equivalent(0.1001, CURVE)
    assert (found.members, found.text()) == (-math.inf, "<1")


def test_a_method_better_than_every_deep_ensemble_is_beyond_m() -> None:
    found = deep_ensemble_equivalent(0.0649, CURVE)
    assert (found.members, found.text()) == (math.inf, ">4")


def test_the_text_has_the_digits_asked_for() -> None:
    found = deep_ensemble_equivalent(0.0725, CURVE)
    assert (found.text(), found.text(digits=2)) == ("2.8", "2.75")


RISING = [0.10, 0.12, 0.08, 0.09, 0.06]


def least_on_a_fine_grid(value: float, curve: list[float]) -> float:
    """The definition itself: the least l of many at which the interpolated curve is at most the value."""
    sizes = np.linspace(1, len(curve), 100_001)
    return float(sizes[np.interp(sizes, range(1, len(curve) + 1), curve) <= value][0])


@pytest.mark.parametrize("value", [0.095, 0.09, 0.081, 0.07])
def test_on_a_curve_that_rises_in_places_it_is_the_first_crossing(value: float) -> None:
    # The grid's step is 4e-5.
    expected = least_on_a_fine_grid(value, RISING)
    assert deep_ensemble_equivalent(value, RISING).members == pytest.approx(expected, abs=5e-5)


def test_the_grid_catches_a_curve_made_monotone_before_it_is_interpolated() -> None:
    monotone = np.minimum.accumulate(RISING).tolist()
    found = deep_ensemble_equivalent(0.09, monotone).members
    assert abs(found - least_on_a_fine_grid(0.09, RISING)) > 0.1


def test_the_grid_catches_the_last_crossing_in_place_of_the_first() -> None:
    # Backwards from the end the curve is at 0.085 between 4 and 5 members; the first time is before 3.
    last = 4 + (0.09 - 0.085) / (0.09 - 0.06)
    assert abs(last - least_on_a_fine_grid(0.085, RISING)) > 0.1


@pytest.mark.parametrize(
    ("value", "curve", "said"),
    [
        (0.1, [], "the curve of deep ensembles is empty"),
        (math.nan, CURVE, "value is nan"),
        (0.1, [0.1, math.inf], r"curve\[1\] is inf"),
    ],
)
def test_bad_input_is_named(value: float, curve: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        deep_ensemble_equivalent(value, curve)
