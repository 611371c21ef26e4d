"""Learning-rate schedules: their values at the corners."""

from __future__ import annotations

import math

import pytest

import lpe
from lpe.training.schedules import cyclical_cosine, then_constant, warmup_cosine

# 100 steps: 10 of warm-up, then 90 of half a cosine from 2.0 to 0.5.
PEAK, STEPS, FINAL = 2.0, 100, 0.5
SCHEDULE = warmup_cosine(PEAK, STEPS, warmup=0.1, final=FINAL)


def test_the_first_step_takes_one_share_of_the_warm_up() -> None:
    assert SCHEDULE(0) == pytest.approx(PEAK / 10)


def test_the_warm_up_is_linear() -> None:
    assert SCHEDULE(4) == pytest.approx(PEAK * 5 / 10)


def test_the_warm_up_ends_at_the_peak() -> None:
    assert SCHEDULE(9) == pytest.approx(PEAK)


def test_the_cosine_starts_at_the_peak() -> None:
    assert SCHEDULE(10) == pytest.approx(PEAK)


def test_a_third_of_the_cosine_is_three_quarters_of_the_way_up() -> None:
    assert SCHEDULE(40) == pytest.approx(FINAL + (PEAK - FINAL) * 0.75)


def test_the_middle_of_the_cosine_is_halfway() -> None:
    assert SCHEDULE(55) == pytest.approx((PEAK + FINAL) / 2)


def test_the_last_step_is_a_step_short_of_the_final_rate() -> None:
    assert SCHEDULE(99) == pytest.approx(FINAL + (PEAK - FINAL) * 0.5 * (1 - math.cos(math.pi / 90)))


def test_the_final_rate_stays_beyond_the_last_step() -> None:
    assert [SCHEDULE(step) for step in (100, 101, 1000)] == pytest.approx([FINAL] * 3)


def test_without_a_warm_up_the_first_step_is_at_the_peak() -> None:
    assert warmup_cosine(PEAK, STEPS, warmup=0.0)(0) == pytest.approx(PEAK)


def test_the_cosine_falls_to_zero_unless_told() -> None:
    assert warmup_cosine(PEAK, STEPS)(STEPS) == pytest.approx(0.0)


def test_one_step_is_at_the_peak() -> None:
    assert warmup_cosine(PEAK, 1)(0) == pytest.approx(PEAK)


@pytest.mark.parametrize(("steps", "warmup"), [(0, 0.1), (-1, 0.1), (10, 1.0), (10, -0.1), (10, math.nan)])
def test_a_schedule_without_steps_or_with_nothing_but_warm_up_is_refused(steps: int, warmup: float) -> None:
    with pytest.raises(lpe.InputError, match="schedule"):
        warmup_cosine(PEAK, steps, warmup)


def test_the_first_schedule_holds_until_the_switch() -> None:
    schedule = then_constant(lambda step: 10.0 + step, switch=3, value=0.25)
    assert [schedule(step) for step in (0, 2)] == [10.0, 12.0]


def test_the_constant_holds_from_the_switch_on() -> None:
    schedule = then_constant(lambda step: 10.0 + step, switch=3, value=0.25)
    assert [schedule(step) for step in (3, 4, 999)] == [0.25] * 3


def test_a_cosine_cycle_has_its_hand_computed_values_and_starts_again() -> None:
    # peak/2 · (cos(π t/4) + 1) with peak 2: 1 + cos of 0°, 45°, 90°, 135°, and again.
    schedule = cyclical_cosine(2.0, 4)
    expected = [2.0, 1.7071068, 1.0, 0.2928932]
    assert [schedule(step) for step in range(8)] == pytest.approx(expected * 2)


def test_cosine_cycles_of_one_step_stay_at_the_peak() -> None:
    schedule = cyclical_cosine(PEAK, 1)
    assert [schedule(step) for step in (0, 1, 7)] == [PEAK] * 3


@pytest.mark.parametrize("steps", [0, -3])
def test_a_cycle_without_steps_is_refused_with_its_value(steps: int) -> None:
    with pytest.raises(lpe.InputError, match=f"at least 1 step, not {steps}"):
        cyclical_cosine(PEAK, steps)
