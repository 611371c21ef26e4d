"""Intervals of a statistic, how surely each excludes a limit, and the number of units that would decide.

Three kinds, one for each unit of a statistic:

    Student's t   the mean of one value a training seed: mean ± t(1 − α/2, n − 1) · s / √n
    Fieller       a ratio of two such means, paired by seed (Fieller 1954): all ρ for which the mean of
                  a − ρ·b is not told from 0 by Student's t
    percentile    the mean over test examples: the examples are drawn anew with replacement, those that
                  several seeds tested with their seeds' values averaged (Efron & Tibshirani 1993, ch. 13)

Each has a function that gives the *level of a limit*: the smallest α at which the 1 − α interval excludes the
limit, which is the two-sided p-value. So an interval and a p-value never disagree. A percentile interval of
a handful of values is too narrow (of five it covers 85 %, of 20 93 %, not 95 %): it is for examples, not for
seeds, and of fewer than 20 examples there is none.

Equal values decide nothing (``can_tell``): their std is an estimate too, and 0 of two seeds does not say that
a third would be no other. Their intervals have no bounds, and their levels are 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

LEVEL = 0.95
RESAMPLES = 10_000
POWER = 0.8
MOST_SEEDS = 1000
"""Seeds beyond which a claim is called never decided."""

LEAST_EXAMPLES = 20
"""Examples below which a percentile interval is too narrow to decide anything."""

NODES = 64
"""Of the quadrature for the power: it is right to 1e-5."""

CHUNK = 2_000_000
"""Indices drawn at a time by the bootstrap: with the counts three arrays of 16 MB."""

SMALLEST = 1e-150
"""What is smaller has a square that is no float any more: it is taken for 0."""

EQUAL = 1e-12
"""Values are equal that differ by no more than this share of the largest: a record has 12 digits."""

_NOTHING = (float("nan"), float("nan"))
_EVERYTHING = (-math.inf, math.inf)


def has_spread(values: np.ndarray, scale: float | None = None) -> bool:
    """Tell whether values [n] differ, by more than rounding.

    Args:
        scale: of the numbers that they come from; None: the largest of them.
    """
    largest = float(np.abs(values).max()) if scale is None else scale
    return largest >= SMALLEST and float(np.ptp(values)) > EQUAL * largest


def can_tell(values: np.ndarray) -> bool:
    """Tell whether values decide anything: not where all are equal.

    Args:
        values: one a unit, [n, 1]; of a ratio the numerators and the denominators, [n, 2]. Of these the
            denominators must differ, their mean must not be 0, and the numerators must not all be the same
            share of them.
    """
    above = values[:, 0]
    if values.shape[1] == 1:
        return has_spread(above)
    below = values[:, 1]
    mean = float(below.mean())
    if abs(mean) < SMALLEST or not has_spread(below):
        return False
    return has_spread(above - float(above.mean()) / mean * below, float(np.abs(above).max()))


def student_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the two-sided interval of the mean of values [n], Student's t; NaN with fewer than two.

    Of equal values it has no width. That may be drawn; what decides is ``deciding_interval``.
    """
    if len(values) < 2:
        return _NOTHING
    half = _t_quantile(len(values), level) * _standard_error(values)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def deciding_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return Student's interval of values [n] as it decides: (−∞, ∞) where all are equal."""
    if len(values) > 1 and not has_spread(values):
        return _EVERYTHING
    return student_interval(values, level)


def student_level(values: np.ndarray, limit: float) -> float:
    """Return the level at which Student's interval of values [n] begins to exclude a limit.

    Returns:
        The two-sided p-value; NaN with fewer than two values; 1 where the mean is the limit itself, and where
        all values are equal.
    """
    from scipy.stats import t

    n, distance = len(values), abs(float(np.mean(values)) - limit)
    if n < 2:
        return float("nan")
    if not has_spread(values):
        return 1.0
    return float(2 * t.sf(distance / _standard_error(values), n - 1))


def fieller_interval(
    numerators: np.ndarray, denominators: np.ndarray, level: float = LEVEL
) -> tuple[float, float]:
    """Return Fieller's interval of mean(numerators) / mean(denominators), paired, n − 1 degrees of freedom.

    Args:
        numerators, denominators: [n], a pair a unit.

    Returns:
        (low, high). (−∞, ∞) where the denominator's mean is not told from 0 at this level: what Fieller's
        test leaves is then the whole line, or all of it but a gap, and its hull is the line; and where the
        pairs tell nothing (``can_tell``). NaN with fewer than two pairs.

    Raises:
        ValueError: numerators and denominators of different lengths.
    """
    _check_pairs(numerators, denominators)
    n = len(numerators)
    if n < 2:
        return _NOTHING
    if not can_tell(np.stack([numerators, denominators], axis=1)):
        return _EVERYTHING
    (saa, sab), (_, sbb) = np.cov(numerators, denominators) * _t_quantile(n, level) ** 2 / n
    a, b = float(np.mean(numerators)), float(np.mean(denominators))
    # (a − ρb)² ≤ t²·var(a − ρb)/n, as square·ρ² − 2·half·ρ + constant ≤ 0.
    square, half, constant = b * b - sbb, a * b - sab, a * a - saa
    if square <= 0:
        return _EVERYTHING
    root = math.sqrt(max(half * half - square * constant, 0.0))
    return float((half - root) / square), float((half + root) / square)


def fieller_level(numerators: np.ndarray, denominators: np.ndarray, limit: float) -> float:
    """Return the level at which Fieller's interval begins to exclude a limit.

    Returns:
        The larger of two p-values: that of the mean of a − limit·b against 0, and that of the denominator's
        mean against 0, without which the interval has no bounds. 1 where the pairs tell nothing
        (``can_tell``); NaN with fewer than two pairs.
    """
    _check_pairs(numerators, denominators)
    if len(numerators) > 1 and not can_tell(np.stack([numerators, denominators], axis=1)):
        return 1.0
    return max(student_level(numerators - limit * denominators, 0.0), student_level(denominators, 0.0))


def image_means(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Average what several seeds measured on one image.

    Args:
        values: [observations, columns]. images: which image each is of, [observations].

    Returns:
        [images, columns], by increasing image.

    Raises:
        ValueError: another number of images than of observations.
    """
    if len(values) != len(images):
        raise ValueError(f"{len(images)} images for {len(values)} observations; give one an observation")
    _, place, count = np.unique(images, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), values.shape[1]))
    np.add.at(sums, place, values)
    return sums / count[:, None]


def resampled_means(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draw the rows anew with replacement, as many as there are, and average them; again and again.

    All columns see the same draws, so that any function of a row of means is paired.

    Args:
        values: [examples, columns]. resamples: times. seed: of the draws.

    Returns:
        [resamples, columns].

    Raises:
        ValueError: no examples.
    """
    n = len(values)
    if not n:
        raise ValueError("there are no examples to draw from")
    draws = np.random.default_rng(seed)
    chunk = max(1, CHUNK // n)
    means = []
    for start in range(0, resamples, chunk):
        here = min(chunk, resamples - start)
        # How often each example is drawn, which is multinomial.
        drawn = draws.integers(n, size=(here, n))
        drawn += n * np.arange(here)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=here * n).reshape(here, n)
        means.append(counts.astype(float) @ values / n)
    return np.concatenate(means)


def percentile_interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of a bootstrapped statistic.

    Args:
        draws: its values on the resamples, [resamples].

    Returns:
        The k-th smallest and the k-th largest draw, k the last that ``percentile_level`` still sees inside;
        (−∞, ∞) with too few draws for this level, or where a draw is not finite.
    """
    resamples = len(draws)
    place = math.ceil((1 - level) / 2 * (resamples + 1)) - 1
    if place < 1 or not np.isfinite(draws).all():
        return _EVERYTHING
    ordered = np.sort(draws)
    return float(ordered[place - 1]), float(ordered[resamples - place])


def percentile_level(draws: np.ndarray, limit: float) -> float:
    """Return the level at which the percentile interval begins to exclude a limit.

    Returns:
        2 (k + 1) / (resamples + 1), k the draws on the limit's far side, at most 1: never 0. It is 1 where
        a draw is not finite.
    """
    if not np.isfinite(draws).all():
        return 1.0
    beyond = min(int((draws <= limit).sum()), int((draws >= limit).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(draws) + 1))


def verdict_level(estimate: float, low: float, high: float, level_of: Callable[[float], float]) -> float:
    """Return the level at which an interval begins to decide whether a value lies between two limits.

    Args:
        estimate: inside the interval. low, high: the limits, of which one may be infinite.
        level_of: a limit → the level at which the interval begins to exclude it.

    Returns:
        Of an estimate between the limits, the larger of their levels: both must be excluded. Of another,
        that of the limit beside it.
    """
    if low < estimate < high:
        return max(level_of(limit) for limit in (low, high) if math.isfinite(limit))
    return level_of(low if estimate <= low else high)


def holm(levels: Sequence[float]) -> np.ndarray:
    """Adjust p-values for their number (Holm 1979).

    Args:
        levels: one a claim; NaN, of a claim without an interval, counts as 1.

    Returns:
        In the given order, each at most 1. Deciding those below α, the chance to decide any wrongly is at
        most α, however the claims hang together.
    """
    given = np.nan_to_num(np.asarray(levels, float), nan=1.0)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty(len(given))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def deciding_power(
    units: int, effect: float, spread: float, low: float, high: float, level: float = LEVEL
) -> float:
    """Return the probability that Student's interval of a mean lies wholly inside or outside two limits.

    The mean is normal about the effect with std spread / √units, and the interval's half width goes with the
    root of a chi-squared of units − 1 degrees of freedom. With one finite limit that is the power of the
    noncentral t.

    Args:
        units: seeds or examples, 2 or more. effect: the true mean. spread: std of a unit. low, high: the
            limits, of which one may be infinite.
    """
    from scipy.stats import chi2, norm

    places, shares = np.polynomial.legendre.leggauss(NODES)
    # In units of the mean's std: the half widths, by how likely they are.
    half = _t_quantile(units, level) * np.sqrt(chi2.ppf((1 + places) / 2, units - 1) / (units - 1))
    below, above = ((limit - effect) * math.sqrt(units) / spread for limit in (low, high))
    inside = norm.cdf(above - half) - norm.cdf(below + half)
    outside = norm.cdf(below - half) + norm.sf(above + half)
    return float((np.maximum(inside, 0.0) + outside) @ shares / 2)


def needed_units(
    effect: float,
    spread: float,
    low: float,
    high: float,
    level: float = LEVEL,
    power: float = POWER,
    most: int = MOST_SEEDS,
) -> int | None:
    """Return the least number of units with which a share ``power`` of runs would decide a claim.

    Args:
        effect, spread: mean and std of a unit, as observed. low, high: the claim's limits. most: units beyond
            which it is never.

    Returns:
        2 or more; None: never, as where no spread was observed: equal values decide nothing.
    """
    if min(abs(effect - low), abs(effect - high)) == 0 or not math.isfinite(effect + spread) or spread <= 0:
        return None

    def decides(units: int) -> bool:
        return deciding_power(units, effect, spread, low, high, level) >= power

    if not decides(most):
        return None
    few, many = 1, most  # too few, enough
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if decides(middle) else (middle, many)
    return many


def _t_quantile(n: int, level: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, n - 1))


def _standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _check_pairs(numerators: np.ndarray, denominators: np.ndarray) -> None:
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators; give pairs")


def by_seed(record: pd.DataFrame, **equal: object) -> pd.Series:
    """Return the values of the rows with these column values, indexed by training seed."""
    rows = record
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    return rows.set_index("seed")["value"].sort_index()
