"""Bayesian logistic regressions of two weights, whose posterior is known: by quadrature.

    p(y = 1 | x, w) = σ(w·x),   w ~ N(0, prior_std² I),   x and w in the plane

Inputs lie at *sites*, a fixed grid of a Gaussian's quantiles. Their std is ``spreads[0]`` along one axis of
the plane, where data are *dense*, and ``spreads[1]``, much less, along the other, where they are *thin*.
These axes are the two weights', turned by ``tilt``. Examples are dealt to the sites in one fixed order. So
the log-likelihood is a sum over sites, whatever the number of examples N:

    log p(labels | w) = Σ_k s_k (w·x_k) − n_k softplus(w·x_k),   n_k examples and s_k ones at site k

A seed is several regressions, each with a truth of its own, drawn from the prior, and labels drawn from that
truth. They have the same inputs, and no weight in common.

The answer is the std of the logit of an input u of length 1: √(uᵀ Σ u), Σ the posterior's covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit, ndtri

from lpe.number_systems.streams import normal, uniform

Array = NDArray[np.float64]

NEWTON_STEPS = 50
REACH, NODES = 8.0, 49
"""Of the quadrature's grid: half its width in stds of the Laplace approximation, and the nodes of a side."""
HERMITE = 40
"""Nodes of the Gauss-Hermite rule for expectations over one logit."""
ROUNDS = 500
"""At most, of the mean-field fixed point, each of half a step."""


@dataclass(frozen=True)
class Design:
    """What is regressed on what.

    Args:
        sites: along each axis; there are sites² inputs.
        spreads: the inputs' std along the dense axis and along the thin one.
        tilt: degrees from the first weight's axis to the dense one.
        prior_std: of each weight.
        regressions: of a seed.
    """

    sites: int
    spreads: tuple[float, float]
    tilt: float
    prior_std: float
    regressions: int


def axes(design: Design) -> Array:
    """Return the dense axis and the thin one, each of length 1: [2, 2], an axis a row."""
    turn = math.radians(design.tilt)
    return np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])


def directions(design: Design, degrees: Array) -> Array:
    """Return inputs of length 1, so many degrees from the dense axis: [degrees, 2]."""
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1) @ axes(design)


def inputs(design: Design) -> Array:
    """Return the sites' inputs [sites², 2], a grid of quantiles whose stds are the spreads."""
    quantiles = ndtri((np.arange(design.sites) + 0.5) / design.sites)
    quantiles /= quantiles.std()
    along = np.meshgrid(*(spread * quantiles for spread in design.spreads), indexing="ij")
    return np.stack([each.ravel() for each in along], axis=1) @ axes(design)


def site_of(design: Design, examples: int) -> NDArray[np.int64]:
    """Return the site of each of the first examples: all sites in turn, in one fixed random order."""
    order = np.argsort(uniform("known sites", 0, "", 0, design.sites**2).numpy(), kind="stable")
    return order[np.arange(examples) % design.sites**2].astype(np.int64)


@dataclass(frozen=True)
class Counted:
    """All that the posteriors of some regressions depend on.

    Args:
        inputs: of each site [sites, 2]. counts: examples at each site [sites].
        ones: labels 1 among them [sites, regressions]. prior_std: of each weight.
    """

    inputs: Array
    counts: Array
    ones: Array
    prior_std: float

    @property
    def examples(self) -> int:
        """N."""
        return round(float(self.counts.sum()))


@dataclass(frozen=True)
class Labelled:
    """Examples of the regressions of some seeds.

    Args:
        inputs: of each site [sites, 2]. site: where each example lies [examples].
        labels: bool [examples, regressions], those of the first seed first. prior_std: of each weight.
    """

    inputs: Array
    site: NDArray[np.int64]
    labels: NDArray[np.bool_]
    prior_std: float

    def counted(self, examples: int) -> Counted:
        """Count the first so many examples."""
        site, places = self.site[:examples], len(self.inputs)
        ones = np.zeros((places, self.labels.shape[1]))
        for start in range(0, examples, places):
            # In such a run no site comes twice: examples are dealt to the sites in turn.
            run = slice(start, min(start + places, examples))
            ones[site[run]] += self.labels[run]
        return Counted(self.inputs, np.bincount(site, minlength=places).astype(float), ones, self.prior_std)


def labelled(design: Design, examples: int, seeds: int) -> Labelled:
    """Draw truths and labels of the seeds 0 … seeds − 1; a seed's are the same beside however many others."""
    where, places = inputs(design), site_of(design, examples)
    columns = []
    for seed in range(seeds):
        truth = (
            design.prior_std * normal("known truth", seed, "", 0, (design.regressions, 2)).double().numpy()
        )
        probabilities = expit(where @ truth.T)[places]
        drawn = uniform("known labels", seed, "", 0, probabilities.size).numpy()
        columns.append(drawn.reshape(probabilities.shape) < probabilities)
    return Labelled(where, places, np.concatenate(columns, axis=1), design.prior_std)


def log_joint(data: Counted, regression: int, weights: Array) -> Array:
    """Return log p(labels, w) of one regression, up to a constant, at weights [n, 2]: [n]."""
    logits = weights @ data.inputs.T
    likelihood = logits @ data.ones[:, regression] + log_expit(-logits) @ data.counts
    return np.asarray(likelihood - 0.5 * (weights**2).sum(axis=1) / data.prior_std**2)


def precision(data: Counted, curvature: Array) -> Array:
    """Return Σ_k n_k c_k x_k x_kᵀ + I/prior_std² [regressions, 2, 2] of curvatures c [regressions, sites]."""
    of_data = np.einsum("rk,ki,kj->rij", data.counts * curvature, data.inputs, data.inputs)
    return np.asarray(of_data + np.eye(2) / data.prior_std**2)


def slope(data: Counted, probabilities: Array, weights: Array) -> Array:
    """Return ∇ log p(labels, w) [regressions, 2] where labels have probabilities [regressions, sites]."""
    return (data.ones.T - data.counts * probabilities) @ data.inputs - weights / data.prior_std**2


def solved(matrices: Array, vectors: Array) -> Array:
    """Return the solutions of [n, 2, 2] · solution = [n, 2]."""
    return np.asarray(np.linalg.solve(matrices, vectors[..., None])[..., 0], dtype=np.float64)


def laplace(data: Counted) -> tuple[Array, Array]:
    """Return the posteriors' maxima [regressions, 2], by Newton's steps, and −∇² log p there [·, 2, 2]."""
    weights = np.zeros((data.ones.shape[1], 2))
    for _ in range(NEWTON_STEPS):
        p = expit(weights @ data.inputs.T)
        step = solved(precision(data, p * (1 - p)), slope(data, p, weights))
        weights = weights + step
        if float(abs(step).max()) < 1e-10:
            return weights, precision(data, p * (1 - p))
    raise RuntimeError(f"no maximum of the posterior in {NEWTON_STEPS} Newton steps")


def posterior(data: Counted, reach: float = REACH, nodes: int = NODES) -> tuple[Array, Array]:
    """Integrate the exact posteriors: by the trapezium rule on a grid around their maxima.

    The grid is laid in coordinates in which the Laplace approximation is N(0, I). The rule's error then falls
    faster than any power of the spacing, as the posterior vanishes at the edge with all its derivatives.

    Args:
        reach: half the grid's width. nodes: of a side.

    Returns:
        mean [regressions, 2] and covariance [regressions, 2, 2].
    """
    centres, precisions = laplace(data)
    side = np.linspace(-reach, reach, nodes)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    mean, covariance = np.empty_like(centres), np.empty_like(precisions)
    for each, root in enumerate(np.linalg.cholesky(np.linalg.inv(precisions))):
        weights = centres[each] + grid @ root.T
        logs = log_joint(data, each, weights)
        shares = np.exp(logs - logs.max())
        shares /= shares.sum()
        mean[each] = shares @ weights
        away = weights - mean[each]
        covariance[each] = (shares[:, None] * away).T @ away
    return mean, covariance


def mean_field(data: Counted) -> tuple[Array, Array]:
    """Return the Gaussian of independent weights that is nearest to the posterior, in KL(q ‖ posterior).

    It is what IVON looks for. There E_q[∇ log p] = 0 and 1/variance = E_q[−∂² log p], weight by weight: sums
    over sites of expectations over one logit, by Gauss-Hermite quadrature.

    Returns:
        mean and variance, each [regressions, 2].
    """
    nodes, shares = np.polynomial.hermite_e.hermegauss(HERMITE)
    shares = shares / shares.sum()
    mean, precisions = laplace(data)
    variance = 1 / np.einsum("rii->ri", precisions)
    for _ in range(ROUNDS):
        stds = np.sqrt(variance @ (data.inputs**2).T)
        p = expit((mean @ data.inputs.T)[..., None] + stds[..., None] * nodes)
        precisions = precision(data, (p * (1 - p)) @ shares)
        step = solved(precisions, slope(data, p @ shares, mean))
        wanted = 1 / np.einsum("rii->ri", precisions)
        off = max(float((abs(step) / np.sqrt(wanted)).max()), float(abs(wanted / variance - 1).max()))
        mean, variance = mean + 0.5 * step, np.sqrt(variance * wanted)
        if off < 1e-8:
            return mean, variance
    raise RuntimeError(f"no mean-field optimum in {ROUNDS} rounds")


def spread_along(covariance: Array, inputs: Array, regressions: int) -> Array:
    """Return the logit's std, root mean square over a seed's regressions: [seeds, inputs].

    Args:
        covariance: of the weights [seeds · regressions, 2, 2]. inputs: [inputs, 2]. regressions: of a seed.
    """
    variances = np.einsum("ni,rij,nj->rn", inputs, covariance, inputs)
    return np.asarray(np.sqrt(variances.reshape(-1, regressions, len(inputs)).mean(axis=1)))


def tensor(values: Array) -> torch.Tensor:
    """Return values in the float32 of networks."""
    return torch.from_numpy(np.ascontiguousarray(values)).float()
