"""SGLD: the noise of a step, the stationary covariance on a Gaussian target, and its place in the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.training import sgld
from lpe.training.loop import train
from lpe.training.schedules import cyclical_cosine
from lpe.training.sgld import SGLD

LR, EXAMPLES, TEMPERATURE = 0.5, 50, 0.7
SIGMAS = 5.0
"""Standard errors that a statistic may be off; draws are keyed, so a test passes or fails for good."""

FAULTS: dict[str, Callable[[float, float, int], float]] = {
    "without the 2": lambda lr, t, n: math.sqrt(lr * t / n),
    "the variance for the std": lambda lr, t, n: 2 * lr * t / n,
    "without the learning rate": lambda lr, t, n: math.sqrt(2 * t / n),
    "the learning rate outside the root": lambda lr, t, n: lr * math.sqrt(2 * t / n),
    "T/N upside down": lambda lr, t, n: math.sqrt(2 * lr * n / t),
    "without N": lambda lr, t, n: math.sqrt(2 * lr * t),
    "without T": lambda lr, t, n: math.sqrt(2 * lr / n),
}


def parameter(*shape: int) -> nn.Parameter:
    """Zeros, with a gradient of zero: a step leaves the noise alone."""
    made = nn.Parameter(torch.zeros(shape))
    made.grad = torch.zeros(shape)
    return made


def noise_of_one_step(size: int, steps_before: int = 0, **settings: Any) -> Tensor:
    """The noise of one step: float32 [size]."""
    moved = parameter(size)
    optimizer = SGLD([moved], LR, EXAMPLES, TEMPERATURE, **settings)
    for _ in range(steps_before):
        optimizer.step()
    before = moved.detach().clone()
    optimizer.step()
    return moved.detach() - before


# The noise of one step


def check_one_steps_noise() -> None:
    """Against √(2·lr·T/N): the mean of n squared draws of variance v has the standard error v·√(2/n)."""
    noise = noise_of_one_step(20_000).double()
    variance = 2 * LR * TEMPERATURE / EXAMPLES
    error = abs(float(noise.square().mean()) - variance)
    assert error <= SIGMAS * variance * math.sqrt(2 / len(noise))


def test_one_steps_noise_has_the_std_of_the_formula() -> None:
    check_one_steps_noise()


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_step_with_noise_of_another_std_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgld, "noise_std", FAULTS[fault])
    with pytest.raises(AssertionError):
        check_one_steps_noise()


def check_uncorrelated(first: Tensor, second: Tensor) -> None:
    """The correlation of n independent pairs has the standard error 1/√n."""
    correlation = float((first * second).mean() / (first.std() * second.std()))
    assert abs(correlation) <= SIGMAS / math.sqrt(len(first))


def test_the_noise_of_successive_steps_is_independent() -> None:
    check_uncorrelated(noise_of_one_step(5000), noise_of_one_step(5000, steps_before=1))


def test_noise_that_two_steps_share_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = sgld.generator
    monkeypatch.setattr(sgld, "generator", lambda purpose, seed, name, step: original(purpose, seed, name, 0))
    with pytest.raises(AssertionError):
        check_uncorrelated(noise_of_one_step(5000), noise_of_one_step(5000, steps_before=1))


def test_two_parameters_noise_is_independent() -> None:
    first, second = parameter(5000), parameter(5000)
    SGLD([first, second], LR, EXAMPLES).step()
    check_uncorrelated(first.detach(), second.detach())


def test_seeds_draw_different_noise() -> None:
    check_uncorrelated(noise_of_one_step(5000, seed=0), noise_of_one_step(5000, seed=1))


def test_one_seed_draws_the_same_noise_again() -> None:
    assert torch.equal(noise_of_one_step(10, seed=3), noise_of_one_step(10, seed=3))


def test_a_step_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    noise_of_one_step(10)
    assert torch.equal(torch.get_rng_state(), before)


# The long run on a Gaussian target

HESSIAN = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
"""Of the mean loss; eigenvalues .292 and 1.508."""

CHAINS = 10_000


def stationary_covariance(hessian: Tensor) -> Tensor:
    """Of x ← (I − lr·A) x + ε, cov ε = (2·lr·T/N) I: float64 [2, 2].

    Σ = B Σ B + s² I with B = I − lr·A, which commutes with Σ, so that Σ = s² (I − B²)⁻¹, and with
    I − B² = 2·lr·A (I − lr·A/2): Σ = T/N · A⁻¹ (I − lr·A/2)⁻¹.
    """
    one = torch.eye(2, dtype=torch.float64)
    return TEMPERATURE / EXAMPLES * torch.linalg.inv(hessian) @ torch.linalg.inv(one - LR / 2 * hessian)


def long_run(weight_decay: float = 0.0) -> Tensor:
    """The last states of independent chains from 0, far along: [CHAINS, 2].

    The slowest direction forgets its start by (1 − .5 · .292)² a step: 60 steps leave 6e-9 of the covariance
    to come. Of each chain only its last state is used, so the effective sample size is CHAINS.
    """
    states = nn.Parameter(torch.zeros(CHAINS, 2))
    optimizer = SGLD([states], LR, EXAMPLES, TEMPERATURE, weight_decay)
    for _ in range(60):
        optimizer.zero_grad()
        # Each chain's own mean loss; their sum gives each chain its own gradient.
        (0.5 * (states @ HESSIAN.float() * states).sum()).backward()
        optimizer.step()
    return states.detach().double()


def check_long_run(states: Tensor, covariance: Tensor) -> None:
    """The mean of n Gaussian products x_i x_j has the standard error √((C_ii C_jj + C_ij²) / n)."""
    variances = covariance.diagonal()
    allowed = SIGMAS * ((variances[:, None] * variances + covariance.square()) / len(states)).sqrt()
    assert ((states.T @ states / len(states) - covariance).abs() <= allowed).all()


def test_the_long_run_covariance_is_that_of_the_linear_update() -> None:
    check_long_run(long_run(), stationary_covariance(HESSIAN))


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_long_run_with_noise_of_another_std_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgld, "noise_std", FAULTS[fault])
    with pytest.raises(AssertionError):
        check_long_run(long_run(), stationary_covariance(HESSIAN))


def test_the_long_run_check_sees_the_correction_for_the_step_size() -> None:
    with pytest.raises(AssertionError):
        check_long_run(long_run(), TEMPERATURE / EXAMPLES * torch.linalg.inv(HESSIAN))


def test_weight_decay_is_a_gaussian_prior_of_variance_one_over_wd_times_n() -> None:
    # A prior N(0, 1/(wd·N)) adds wd·N to the Hessian N·A of the whole loss.
    check_long_run(long_run(weight_decay=0.4), stationary_covariance(HESSIAN + 0.4 * torch.eye(2)))


def test_a_forgotten_weight_decay_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_long_run(long_run(), stationary_covariance(HESSIAN + 0.4 * torch.eye(2)))


# Steps with and without noise


def stepped(steps: int, **settings: Any) -> list[list[float]]:
    """A parameter (1, −2) with gradient (3, 1) after each step at the learning rate .1."""
    moved = nn.Parameter(torch.tensor([1.0, -2.0]))
    moved.grad = torch.tensor([3.0, 1.0])
    optimizer = SGLD([moved], 0.1, EXAMPLES, **settings)
    states = []
    for _ in range(steps):
        optimizer.step()
        states.append(moved.tolist())
    return states


def test_a_step_without_noise_is_gradient_descent_with_weight_decay() -> None:
    # 1 − .1 · (3 + .5 · 1) and −2 − .1 · (1 + .5 · −2).
    assert stepped(1, weight_decay=0.5, noise=lambda step: False)[0] == pytest.approx([0.65, -2.0])


def test_temperature_zero_is_gradient_descent() -> None:
    assert stepped(1, temperature=0.0)[0] == pytest.approx([0.7, -2.1])


def test_noise_is_drawn_on_the_steps_that_ask_for_it_only() -> None:
    states = torch.tensor([[1.0, -2.0], *stepped(6, noise=lambda step: step in (2, 3))])
    moved = states.diff(dim=0) - torch.tensor([-0.3, -0.1])
    assert (moved.abs() > 1e-5).all(dim=1).tolist() == [False, False, True, True, False, False]


def test_a_parameter_without_a_gradient_stays() -> None:
    moved = nn.Parameter(torch.ones(3))
    SGLD([moved], LR, EXAMPLES).step()
    assert moved.tolist() == [1.0, 1.0, 1.0]


def test_the_noise_follows_the_learning_rate_that_the_loop_sets() -> None:
    # Keyed draws: at a quarter of the learning rate the same draws, at half the std.
    whole, quarter = parameter(10), parameter(10)
    for moved, rate in ((whole, 1.0), (quarter, 0.25)):
        optimizer = SGLD([moved], lr=123.0, examples=EXAMPLES)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    torch.testing.assert_close(quarter.detach(), whole.detach() / 2)


def test_half_precision_weights_keep_their_dtype() -> None:
    moved = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    moved.grad = torch.zeros(3, dtype=torch.bfloat16)
    SGLD([moved], LR, EXAMPLES).step()
    assert moved.dtype == torch.bfloat16 and bool((moved != 0).all())


def test_a_closure_gives_the_gradient_and_its_loss_comes_back() -> None:
    moved = nn.Parameter(torch.tensor([2.0]))
    optimizer = SGLD([moved], 0.1, EXAMPLES, temperature=0.0)

    def closure() -> Tensor:
        loss = moved.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert moved.tolist() == pytest.approx([1.6])


def test_a_resumed_run_draws_what_the_uninterrupted_one_does() -> None:
    through, resumed = parameter(4), parameter(4)
    whole = SGLD([through], LR, EXAMPLES)
    for _ in range(4):
        whole.step()
    first = SGLD([resumed], LR, EXAMPLES)
    for _ in range(2):
        first.step()
    second = SGLD([resumed], LR, EXAMPLES)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step()
    assert torch.equal(through, resumed)


# In the loop


def run(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Tensor:
    """The weights of a linear classifier after 2 epochs of 2 batches under a cosine cycle."""
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3) / 6)
        model.bias.zero_()
    inputs = torch.linspace(-1, 1, 12).view(4, 3)
    batches = [(inputs[:2], torch.tensor([0, 1])), (inputs[2:], torch.tensor([1, 0]))]
    train(model, lambda epoch: batches, make_optimizer(model), cyclical_cosine(0.5, 2), epochs=2, seed=0)
    return model.weight.detach()


def test_the_loop_trains_with_it_as_with_gradient_descent_where_nothing_draws() -> None:
    torch.testing.assert_close(
        run(lambda model: SGLD(model.parameters(), 1.0, EXAMPLES, noise=lambda step: False)),
        run(lambda model: torch.optim.SGD(model.parameters(), 1.0)),
    )


def test_the_loop_trains_with_noise() -> None:
    noisy = run(lambda model: SGLD(model.parameters(), 1.0, EXAMPLES))
    assert not torch.allclose(noisy, run(lambda model: torch.optim.SGD(model.parameters(), 1.0)))


# Refusals


@pytest.mark.parametrize("examples", [0, -1, True, 2.5])
def test_examples_that_are_no_positive_integer_are_refused_with_their_value(examples: Any) -> None:
    with pytest.raises(lpe.InputError, match=f"examples must be a positive integer, not {examples}"):
        SGLD([parameter(2)], LR, examples)


@pytest.mark.parametrize("setting", ["lr", "temperature", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_setting_that_is_no_finite_number_from_0_is_refused_with_its_value(
    setting: str, value: float
) -> None:
    settings = {"lr": LR, "examples": EXAMPLES, setting: value}
    with pytest.raises(lpe.InputError, match=f"{setting} must be a finite number ≥ 0, not {value}"):
        SGLD([parameter(2)], **settings)


# How far the noise has come


def test_the_share_of_the_variance_is_a_geometric_sum_at_a_constant_rate() -> None:
    lr, curvature, steps = 0.03, 0.5, 40
    expected = (1 - (1 - lr * curvature) ** (2 * steps)) / (1 - lr * curvature / 2)
    assert sgld.variance_share([lr] * steps, curvature) == pytest.approx(expected)


def test_the_share_of_the_variance_is_that_of_sgld_on_a_quadratic() -> None:
    """Chains on U = ½·a·p² from 0, with a rate that changes: their variance over T/(N·a)."""
    curvature, chains = 0.8, 20_000
    rates = [0.4, 0.3, 0.2, 0.5]
    moved = parameter(chains)
    optimizer = SGLD([moved], LR, EXAMPLES, TEMPERATURE)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        moved.grad = curvature * moved.detach()
        optimizer.step()
    share = float(moved.detach().double().square().mean()) * EXAMPLES * curvature / TEMPERATURE
    expected = sgld.variance_share(rates, curvature)
    assert abs(share - expected) <= SIGMAS * expected * math.sqrt(2 / chains)
    without_decay = 2 * curvature * sum(rates)
    assert abs(share - without_decay) > SIGMAS * expected * math.sqrt(2 / chains)


def test_no_curvature_has_no_share() -> None:
    with pytest.raises(lpe.InputError, match="curvature must be a finite number above 0, not 0"):
        sgld.variance_share([0.1], 0.0)
