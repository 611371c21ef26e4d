"""Intervals against closed forms, scipy and written-out definitions; what they cover, by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from reproduce.judge import intervals
from reproduce.judge.intervals import (
    can_tell,
    deciding_interval,
    deciding_power,
    fieller_interval,
    fieller_level,
    holm,
    image_means,
    needed_units,
    percentile_interval,
    percentile_level,
    resampled_means,
    student_interval,
    student_level,
    verdict_level,
)

VALUES = np.array([0.3, -0.2, 0.9, 1.4, 0.1, 0.6])
OTHERS = np.array([2.1, 1.7, 2.6, 2.9, 1.8, 2.0])
INFINITE = (-math.inf, math.inf)


# Student's t.


def test_the_interval_of_a_mean_is_student_t() -> None:
    # For 1 … 5: mean 3, standard error sqrt(2.5 / 5), t(0.975, 4) = 2.7764451.
    half = 2.7764451 * np.sqrt(0.5)
    assert student_interval(np.arange(1.0, 6.0)) == pytest.approx((3 - half, 3 + half))


def test_the_interval_of_a_mean_has_the_level_asked_for() -> None:
    # t(0.95, 4) = 2.1318468.
    half = 2.1318468 * np.sqrt(0.5)
    assert student_interval(np.arange(1.0, 6.0), 0.9) == pytest.approx((3 - half, 3 + half))


def test_the_level_of_a_limit_is_the_p_value_of_a_t_test() -> None:
    assert student_level(VALUES, 0.1) == pytest.approx(stats.ttest_1samp(VALUES, 0.1).pvalue)


def test_the_interval_at_a_limits_level_touches_the_limit() -> None:
    level = student_level(VALUES, -0.4)
    assert student_interval(VALUES, 1 - level)[0] == pytest.approx(-0.4)


def test_one_value_has_no_interval_and_no_level() -> None:
    assert np.isnan([*student_interval(VALUES[:1]), student_level(VALUES[:1], 0.0)]).all()


# Of three times .1 the std is 1e-17; the last two are 0 as far as squares go.
EQUAL = [[2.0, 2.0], [0.1] * 3, [1e-12, 1e-12], [0.3, 0.1 + 0.2], [0.0, 0.0], [1e-300, 2e-300]]


@pytest.mark.parametrize("values", EQUAL)
def test_equal_values_exclude_no_limit(values: list[float]) -> None:
    assert student_level(np.array(values), 1.0) == 1.0
    assert deciding_interval(np.array(values)) == INFINITE
    assert not can_tell(np.array(values)[:, None])


def test_the_deciding_interval_of_other_values_is_students() -> None:
    assert deciding_interval(VALUES) == student_interval(VALUES)
    assert np.isnan(deciding_interval(VALUES[:1])).all()


# Fieller.


def test_fiellers_limits_are_the_ratios_that_a_paired_t_test_just_does_not_reject() -> None:
    for limit in fieller_interval(VALUES, OTHERS):
        assert stats.ttest_1samp(VALUES - limit * OTHERS, 0).pvalue == pytest.approx(0.05)


def test_fiellers_interval_holds_the_ratio_of_the_means() -> None:
    low, high = fieller_interval(VALUES, OTHERS)
    assert low < VALUES.mean() / OTHERS.mean() < high


def test_fiellers_interval_of_a_hardly_varying_denominator_is_student_t_over_it() -> None:
    expected = tuple(limit / 4 for limit in student_interval(VALUES))
    assert fieller_interval(VALUES, 4.0 + 1e-9 * OTHERS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("numerators", "denominators"),
    [
        (VALUES, np.full(6, 4.0)),
        (VALUES, 1e-300 * OTHERS),
        (VALUES, np.zeros(6)),
        (0.3 * OTHERS, OTHERS),
        (np.zeros(6), OTHERS),
    ],
    ids=["equal denominators", "denominators of no size", "zeros", "equal ratios", "equal ratios of 0"],
)
def test_pairs_that_tell_nothing_bound_nothing(numerators: np.ndarray, denominators: np.ndarray) -> None:
    assert fieller_interval(numerators, denominators) == INFINITE
    assert fieller_level(numerators, denominators, 0.5) == 1.0


def test_fiellers_interval_takes_the_denominators_sign() -> None:
    low, high = fieller_interval(VALUES, OTHERS)
    assert fieller_interval(VALUES, -OTHERS) == pytest.approx((-high, -low))


def test_fiellers_interval_has_no_bounds_where_the_denominator_may_be_0() -> None:
    assert fieller_interval(OTHERS, VALUES - 0.4) == INFINITE


def test_fiellers_level_of_a_limit_touches_it() -> None:
    level = fieller_level(VALUES, OTHERS, 0.6)
    assert fieller_interval(VALUES, OTHERS, 1 - level)[1] == pytest.approx(0.6)


def test_fiellers_level_is_not_below_the_denominators_own() -> None:
    denominators = VALUES - 0.4
    assert fieller_level(OTHERS, denominators, -50.0) == pytest.approx(
        max(
            stats.ttest_1samp(OTHERS + 50 * denominators, 0).pvalue,
            stats.ttest_1samp(denominators, 0).pvalue,
        )
    )
    assert stats.ttest_1samp(OTHERS + 50 * denominators, 0).pvalue < fieller_level(OTHERS, denominators, -50)


def test_one_pair_has_no_interval() -> None:
    assert np.isnan([*fieller_interval(VALUES[:1], OTHERS[:1])]).all()


@pytest.mark.parametrize("function", [fieller_interval, lambda a, b: fieller_level(a, b, 0.0)])
def test_fieller_refuses_what_is_not_paired(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="6 numerators and 5 denominators"):
        function(VALUES, OTHERS[:5])


# The bootstrap.


def test_resampled_means_spread_like_the_mean_they_are_of() -> None:
    values = np.random.default_rng(1).gamma(0.5, size=(300, 1))
    means = resampled_means(values, 4000)
    # The std of 4,000 draws is known to 1 / √8000 = 1.1 %.
    assert means.std() == pytest.approx(values.std() / math.sqrt(300), rel=0.05)
    assert means.mean() == pytest.approx(values.mean(), abs=5 * values.std() / math.sqrt(300 * 4000))


def test_columns_see_the_same_draws() -> None:
    values = np.random.default_rng(1).normal(size=(50, 1))
    means = resampled_means(np.hstack([values, 2 * values + 1]), 100)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0] + 1)


def test_draws_are_set_by_their_seed() -> None:
    values = VALUES[:, None]
    assert (resampled_means(values, 50, 3) == resampled_means(values, 50, 3)).all()
    assert (resampled_means(values, 50, 3) != resampled_means(values, 50, 4)).any()


def test_chunks_make_as_many_draws_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "CHUNK", 3 * len(VALUES))
    means = resampled_means(np.geomspace(1, 2, len(VALUES))[:, None], 10)
    assert means.shape == (10, 1)
    assert len(np.unique(means)) == 10


def test_no_examples_are_an_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        resampled_means(np.empty((0, 1)))


def test_the_percentile_interval_leaves_equal_shares_outside() -> None:
    draws = np.random.default_rng(0).permutation(np.arange(1, 10001).astype(float))
    # k with 2 (k + 1) / 10001 < .05 is at most 249: the 250th draw is the first that is not outside.
    assert percentile_interval(draws) == (250.0, 9751.0)


@pytest.mark.parametrize("limit", [249.5, 250.0, 251.0, 9750.5, 9751.0, 9752.0])
def test_the_percentile_level_and_interval_agree_on_what_is_excluded(limit: float) -> None:
    draws = np.arange(1, 10001).astype(float)
    low, high = percentile_interval(draws)
    assert (percentile_level(draws, limit) < 0.05) == (limit < low or limit > high)


def test_the_percentile_level_is_twice_the_smaller_share_and_never_0() -> None:
    draws = np.arange(1, 1000).astype(float)
    assert percentile_level(draws, 99.5) == pytest.approx(0.2)
    assert percentile_level(draws, -1.0) == pytest.approx(0.002)
    assert percentile_level(draws, 500.0) == 1.0


def test_draws_that_are_not_finite_or_too_few_bound_nothing() -> None:
    assert percentile_interval(np.array([1.0, np.inf] * 500)) == INFINITE
    assert percentile_level(np.array([1.0, np.nan] * 500), -1.0) == 1.0
    assert percentile_interval(np.arange(30.0)) == INFINITE


def test_values_of_one_image_are_averaged_over_the_seeds_that_tested_it() -> None:
    values = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [7.0, 70.0]])
    found = image_means(values, np.array([5, 3, 5, 5]))
    np.testing.assert_allclose(found, [[2.0, 20.0], [11 / 3, 110 / 3]])


def test_images_that_are_not_one_an_observation_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 images for 1 observations"):
        image_means(np.ones((1, 1)), np.array([1, 2]))


# Verdicts' levels.


def test_between_two_limits_the_level_is_the_larger_one() -> None:
    assert verdict_level(0.0, -1.0, 2.0, {-1.0: 0.03, 2.0: 0.001}.__getitem__) == 0.03


def test_beside_two_limits_the_level_is_the_nearer_ones() -> None:
    levels = {-1.0: 0.001, 2.0: 0.2}.__getitem__
    assert verdict_level(3.0, -1.0, 2.0, levels) == 0.2
    assert verdict_level(-3.0, -1.0, 2.0, levels) == 0.001


@pytest.mark.parametrize("estimate", [-1.0, 1.0])
def test_of_one_limit_the_level_is_its_own_on_either_side(estimate: float) -> None:
    assert verdict_level(estimate, -math.inf, 0.0, {0.0: 0.04}.__getitem__) == 0.04


def test_holm_multiplies_the_smallest_by_the_number_and_keeps_the_order() -> None:
    # .01 · 4, .02 · 3, max(.03 · 2, before), max(.2 · 1, before).
    np.testing.assert_allclose(holm([0.03, 0.01, 0.2, 0.02]), [0.06, 0.04, 0.2, 0.06])


def test_holm_does_not_let_a_larger_level_fall_below_a_smaller_one() -> None:
    np.testing.assert_allclose(holm([0.04, 0.03]), [0.06, 0.06])


def test_holm_counts_a_claim_without_an_interval_as_1() -> None:
    np.testing.assert_allclose(holm([float("nan"), 0.02]), [1.0, 0.04])


# Power.


@pytest.mark.parametrize("units", [3, 12, 80])
def test_with_one_limit_the_power_is_the_noncentral_ts(units: int) -> None:
    effect, spread, limit = -0.3, 0.8, 0.1
    noncentrality = (effect - limit) * math.sqrt(units) / spread
    beyond = stats.t.ppf(0.975, units - 1)
    shifted = stats.nct(units - 1, noncentrality)
    expected = shifted.cdf(-beyond) + shifted.sf(beyond)
    assert deciding_power(units, effect, spread, -math.inf, limit) == pytest.approx(expected, abs=1e-4)


def test_between_two_limits_the_power_is_the_share_of_simulated_runs_that_decide() -> None:
    units, effect, spread, low, high = 8, 0.2, 1.0, -1.0, 1.2
    values = np.random.default_rng(0).normal(effect, spread, (20000, units))
    half = stats.t.ppf(0.975, units - 1) * values.std(axis=1, ddof=1) / math.sqrt(units)
    ends = values.mean(axis=1) - half, values.mean(axis=1) + half
    decided = ((ends[0] > low) & (ends[1] < high)) | (ends[1] < low) | (ends[0] > high)
    # Five standard errors of a share of 20,000 runs are .018.
    assert deciding_power(units, effect, spread, low, high) == pytest.approx(decided.mean(), abs=0.018)


def test_the_needed_number_is_the_first_with_four_fifths_power() -> None:
    arguments = (-0.5, 1.0, -math.inf, 0.0)
    units = needed_units(*arguments)
    # The textbook's example: an effect of half a std needs 34 pairs.
    assert units == 34
    assert deciding_power(33, *arguments) < 0.8 <= deciding_power(34, *arguments)


def test_few_seeds_need_more_than_the_normal_approximation_says() -> None:
    # ((1.96 + .8416) / 1.5)² = 3.5.
    assert needed_units(-1.5, 1.0, -math.inf, 0.0) == 6


@pytest.mark.parametrize(("effect", "expected"), [(-0.09, 971), (-0.08, None), (0.0, None)])
def test_beyond_a_thousand_it_is_never(effect: float, expected: int | None) -> None:
    assert needed_units(effect, 1.0, -math.inf, 0.0) == expected


def test_more_units_may_be_allowed() -> None:
    assert needed_units(-0.08, 1.0, -math.inf, 0.0, most=10_000) == 1229


def test_without_spread_no_number_of_seeds_decides() -> None:
    assert needed_units(-1.0, 0.0, -math.inf, 0.0) is None


# What the intervals cover. A nominal 95 % must hold the truth at least 93 % of the time; where a method is
# exact, 4,000 runs tell its share to ± .7 % at two standard errors.

LEAST = 0.93


def share_of_means_covered(interval: Callable[[np.ndarray], tuple[float, float]], n: int) -> float:
    """The share of 4,000 samples of n normal seed values whose interval holds the mean, 0."""
    samples = np.random.default_rng(n).normal(size=(4000, n))
    ends = np.array([interval(sample) for sample in samples])
    return float(((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean())


def by_resampling(sample: np.ndarray) -> tuple[float, float]:
    """The fault: a percentile bootstrap of a few seed values."""
    return percentile_interval(resampled_means(sample[:, None], 999)[:, 0])


@pytest.mark.parametrize("n", [3, 5, 20])
def test_student_t_covers(n: int) -> None:
    assert share_of_means_covered(student_interval, n) >= LEAST


def test_the_simulation_catches_a_percentile_bootstrap_of_five_seeds() -> None:
    covered = share_of_means_covered(by_resampling, 5)
    assert covered < LEAST
    assert covered == pytest.approx(0.85, abs=0.02)


@pytest.mark.parametrize("n", [5, 20])
def test_fieller_covers(n: int) -> None:
    draws = np.random.default_rng(n)
    shared = draws.normal(size=(4000, n))
    above = 1.5 + 0.6 * shared + 0.5 * draws.normal(size=(4000, n))
    below = 2.0 + 0.6 * shared + 0.4 * draws.normal(size=(4000, n))
    ends = np.array([fieller_interval(a, b) for a, b in zip(above, below, strict=True)])
    assert ((ends[:, 0] <= 0.75) & (ends[:, 1] >= 0.75)).mean() >= LEAST


def losses(draws: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Paired differences of two networks' losses: most near 0, a few large, and more of them to one side."""
    hardness = draws.gamma(0.5, size=shape)
    return np.asarray(hardness * (0.1 + draws.normal(size=shape)))


@pytest.mark.parametrize("n", [360, 2000])
def test_the_bootstrap_over_examples_covers_skewed_losses(n: int) -> None:
    # A column is a test set of its own; that all see the same draws changes no column's share.
    values = losses(np.random.default_rng(n), (n, 2000))
    means = resampled_means(values, 999)
    ends = np.array([percentile_interval(column) for column in means.T])
    truth = 0.5 * 0.1
    assert ((ends[:, 0] <= truth) & (ends[:, 1] >= truth)).mean() >= LEAST


SEEDS, IMAGES = 4, 300


def of_several_seeds() -> tuple[np.ndarray, np.ndarray]:
    """1,000 test sets of 300 images, each tested by four seeds: most of a loss is the image's own."""
    draws = np.random.default_rng(0)
    own = losses(draws, (IMAGES, 1000))
    values = np.concatenate([own + 0.2 * draws.normal(size=own.shape) for _ in range(SEEDS)])
    return values, np.tile(np.arange(IMAGES), SEEDS)


def share_of_image_means_covered(images: np.ndarray, values: np.ndarray) -> float:
    means = resampled_means(image_means(values, images), 999)
    ends = np.array([percentile_interval(column) for column in means.T])
    return float(((ends[:, 0] <= 0.05) & (ends[:, 1] >= 0.05)).mean())


def test_the_bootstrap_over_images_covers_where_seeds_test_the_same_ones() -> None:
    values, images = of_several_seeds()
    assert share_of_image_means_covered(images, values) >= LEAST


def test_the_simulation_catches_images_that_are_counted_once_a_seed() -> None:
    values, _ = of_several_seeds()
    assert share_of_image_means_covered(np.arange(len(values)), values) < 0.8
