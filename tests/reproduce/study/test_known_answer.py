"""The exact posterior of logistic regression, against slower and closed forms; the regressions' design."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_expit

from lpe.number_systems.streams import normal
from reproduce.study import known_answer
from reproduce.study.known_answer import Array, Counted, Design

DESIGN = Design(sites=5, spreads=(1.0, 0.2), tilt=20.0, prior_std=1.5, regressions=3)


def regressions(examples: int, seeds: int = 1) -> Counted:
    return known_answer.labelled(DESIGN, examples, seeds).counted(examples)


# The posterior.


@pytest.mark.parametrize("examples", [7, 30])
def test_the_posterior_is_that_of_a_fine_grid_in_the_weights_example_by_example(examples: int) -> None:
    data = known_answer.labelled(DESIGN, examples, 1)
    side = np.linspace(-12, 12, 601)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    logs = -0.5 * (grid**2).sum(axis=1) / DESIGN.prior_std**2
    for where, label in zip(data.inputs[data.site], data.labels[:, 1], strict=True):
        logs += log_expit(grid @ where if label else -(grid @ where))
    shares = np.exp(logs - logs.max())
    shares /= shares.sum()
    mean = shares @ grid
    covariance = (grid - mean).T @ ((grid - mean) * shares[:, None])
    means, covariances = known_answer.posterior(data.counted(examples))
    assert means[1] == pytest.approx(mean, rel=1e-6)
    assert covariances[1] == pytest.approx(covariance, rel=1e-6)


def test_without_examples_the_posterior_is_the_prior() -> None:
    data = regressions(30)
    none = Counted(data.inputs, 0 * data.counts, 0 * data.ones, DESIGN.prior_std)
    means, covariances = known_answer.posterior(none)
    assert means == pytest.approx(np.zeros((3, 2)), abs=1e-12)
    assert covariances == pytest.approx(np.stack([DESIGN.prior_std**2 * np.eye(2)] * 3), abs=1e-9)


def test_with_many_examples_the_posterior_is_the_gaussian_of_the_curvature() -> None:
    data = regressions(1_000_000)
    _, precisions = known_answer.laplace(data)
    _, covariances = known_answer.posterior(data)
    assert covariances @ precisions == pytest.approx(np.stack([np.eye(2)] * 3), abs=2e-3)


def test_with_few_examples_that_gaussian_is_too_narrow() -> None:
    data = regressions(30)
    _, precisions = known_answer.laplace(data)
    _, covariances = known_answer.posterior(data)
    assert (np.linalg.det(covariances @ precisions) > 1.05).all()


def test_the_grid_is_wide_and_fine_enough() -> None:
    data = regressions(10, seeds=4)
    _, covariances = known_answer.posterior(data)
    _, finer = known_answer.posterior(data, reach=12.0, nodes=151)
    assert covariances == pytest.approx(finer, rel=1e-6)


def test_the_log_joint_has_no_slope_at_the_maximum() -> None:
    data = regressions(30)
    maxima, _ = known_answer.laplace(data)
    for each, maximum in enumerate(maxima):
        around = maximum + 1e-4 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
        values = known_answer.log_joint(data, each, around)
        assert values[::2] - values[1::2] == pytest.approx([0, 0], abs=1e-9)


# The mean-field optimum.


def kl_up_to_a_constant(data: Counted, each: int, mean: Array, variance: Array) -> float:
    """E_q[log q − log p(labels, w)], by Gauss-Hermite quadrature in both weights."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(60)
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    weights = mean + np.sqrt(variance) * np.stack([first.ravel(), second.ravel()], axis=1)
    product = np.outer(shares, shares).ravel() / shares.sum() ** 2
    expected = product @ known_answer.log_joint(data, each, weights)
    return float(-0.5 * np.log(variance).sum() - expected)


@pytest.mark.parametrize("examples", [30, 3_000])
def test_any_other_gaussian_of_independent_weights_is_farther_from_the_posterior(examples: int) -> None:
    data = regressions(examples)
    means, variances = known_answer.mean_field(data)
    for each in range(3):
        mean, variance = means[each], variances[each]
        least = kl_up_to_a_constant(data, each, mean, variance)
        for along in np.eye(2):
            for sign in (-1, 1):
                moved = mean + sign * 0.02 * along * np.sqrt(variance)
                assert kl_up_to_a_constant(data, each, moved, variance) > least
                widened = variance * (1 + sign * 0.02 * along)
                assert kl_up_to_a_constant(data, each, mean, widened) > least


# The design.


def test_the_inputs_spreads_lie_along_the_dense_axis_and_the_thin_one() -> None:
    along = known_answer.inputs(DESIGN) @ known_answer.axes(DESIGN).T
    assert np.sqrt((along**2).mean(axis=0)) == pytest.approx(DESIGN.spreads)


def test_directions_start_at_the_dense_axis_and_reach_the_thin_one_at_90_degrees() -> None:
    assert known_answer.directions(DESIGN, np.array([0.0, 90.0])) == pytest.approx(known_answer.axes(DESIGN))


def test_the_dense_axis_is_turned_from_the_first_weights_by_the_tilt() -> None:
    turn = math.radians(DESIGN.tilt)
    assert known_answer.axes(DESIGN)[0] == pytest.approx([math.cos(turn), math.sin(turn)])


@pytest.mark.parametrize("examples", [7, 25, 61])
def test_counts_are_those_of_the_first_examples(examples: int) -> None:
    data = known_answer.labelled(DESIGN, 100, 2)
    counted = data.counted(examples)
    counts, ones = np.zeros(25), np.zeros((25, 6))
    for site, labels in zip(data.site[:examples], data.labels[:examples], strict=True):
        counts[site] += 1
        ones[site] += labels
    assert (counted.counts == counts).all() and (counted.ones == ones).all()


def test_every_site_has_an_example_before_any_has_two() -> None:
    assert sorted(known_answer.site_of(DESIGN, 25)) == list(range(25))


def test_a_seeds_labels_are_the_same_beside_any_others() -> None:
    alone, beside = (known_answer.labelled(DESIGN, 100, seeds).labels for seeds in (1, 3))
    assert (alone == beside[:, :3]).all()


def test_two_seeds_share_no_random_numbers() -> None:
    """Where every probability is a half, two seeds agree in half of n labels: n/2 ± 5 √(n/4)."""
    labels = known_answer.labelled(replace(DESIGN, prior_std=0.0), 1_000, 2).labels
    agree = int((labels[:, :3] == labels[:, 3:]).sum())
    assert abs(agree - 1_500) < 5 * math.sqrt(3_000 / 4)


def test_labels_are_drawn_from_truths_of_the_prior() -> None:
    """Of (w − truth)ᵀ Λ (w − truth) at the maxima w: χ² of two degrees each, so 2 n ± 5 √(4 n) in all."""
    seeds = 20
    truths = [
        DESIGN.prior_std * normal("known truth", seed, "", 0, (3, 2)).double().numpy()
        for seed in range(seeds)
    ]
    maxima, precisions = known_answer.laplace(regressions(100_000, seeds))
    off = maxima - np.concatenate(truths)
    n = 3 * seeds
    assert abs(float(np.einsum("ri,rij,rj->", off, precisions, off)) - 2 * n) < 5 * math.sqrt(4 * n)


# What is shown.


def test_the_spread_is_the_root_mean_square_over_a_seeds_regressions() -> None:
    covariance = np.stack([np.diag([4.0, 9.0]), np.diag([16.0, 1.0]), np.eye(2), np.eye(2)])
    where = np.array([[1.0, 0.0], [0.6, 0.8]])
    expected = [[math.sqrt(10), math.sqrt(0.36 * 10 + 0.64 * 5)], [1.0, 1.0]]
    assert known_answer.spread_along(covariance, where, regressions=2) == pytest.approx(np.array(expected))


def test_precision_is_the_numerical_curvature_of_the_log_joint() -> None:
    data, step = regressions(30), 1e-4
    weights = np.array([[0.3, -0.7]] * 3)
    p = expit(weights @ data.inputs.T)
    precisions = known_answer.precision(data, p * (1 - p))
    around = weights[0] + step * np.array([[0, 0], [1, 0], [-1, 0]])
    middle, above, below = known_answer.log_joint(data, 2, around)
    assert precisions[2, 0, 0] == pytest.approx(-(above - 2 * middle + below) / step**2, rel=1e-5)
