"""SGLD: Welling & Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics".

The posterior at temperature T over N examples is exp(−N · U(p)/T), U the mean loss plus ½ · wd · |p|².
Langevin dynamics on it, with lr multiplying the gradient of U, is

    p ← p − lr · (g + wd·p) + √(2 · lr · T/N) · z,   z ~ N(0, I),

g the gradient of the *mean* loss of a minibatch. The weight decay is a Gaussian prior's:
wd = 1/(prior variance · N).

What matters: lr (along a direction of curvature a, where N examples have the posterior variance T/(N·a), the
long-run variance is that times 1/(1 − lr·a/2), minibatch noise apart) and T (1 is the posterior, less a
colder one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lpe.checks import check_finite, check_integer, check_list, shown
from lpe.errors import InputError
from lpe.number_systems.streams import check_seed, generator


def noise_std(lr: float, temperature: float, examples: int) -> float:
    """Return a step's noise std, √(2·lr·T/N), where lr multiplies the gradient of N examples' mean loss."""
    return math.sqrt(2 * lr * temperature / examples)


def variance_share(learning_rates: Iterable[float], curvature: float) -> float:
    """Return the share of the posterior's variance that the noise of so many steps has brought about.

    Along a direction of curvature a the posterior has the variance T/(N·a). From a point on, in units of it,
    v ← (1 − lr·a)²·v + 2·lr·a: 0 at the start, 1/(1 − lr·a/2) in the long run. Minibatch noise is left out.

    Args:
        learning_rates: of the steps that draw noise. curvature: a > 0, of the mean loss and the prior.

    Raises:
        InputError: a curvature that is not positive.
    """
    curvature = check_finite("curvature", curvature, above=True)
    share = 0.0
    for lr in learning_rates:
        share = (1 - lr * curvature) ** 2 * share + 2 * lr * curvature
    return share


def _always(step: int) -> bool:
    return True


class SGLD(torch.optim.Optimizer):
    """Stochastic gradient Langevin dynamics; plain gradient descent on steps without noise.

    Its state is the number of steps taken, so that a run resumed from its ``state_dict`` draws what the
    uninterrupted one would have. Parameters without a gradient stay where they are.

    Args:
        parameters: tensors or parameter groups; a group may have an ``lr`` and a ``weight_decay`` of its own.
        lr: multiplies the gradient of the mean loss, ≥ 0; a schedule may set it before each step.
        examples: N, the training examples that the mean loss stands for (not a minibatch's).
        temperature: T ≥ 0; 0 is gradient descent.
        weight_decay: 1/(prior variance · N), ≥ 0.
        noise: step (from 0) → whether it draws noise. seed: of the noise, which is keyed by (seed, step) and
            drawn on the CPU, never by a global generator.

    Raises:
        InputError: a setting out of its range.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        examples: int,
        temperature: float = 1.0,
        weight_decay: float = 0.0,
        noise: Callable[[int], bool] = _always,
        seed: int = 0,
    ) -> None:
        rates = {"lr": check_finite("lr", lr), "weight_decay": check_finite("weight_decay", weight_decay)}
        parameters = check_list("parameters", parameters, "tensors or parameter groups")
        if not parameters or not all(isinstance(each, Tensor | dict | tuple) for each in parameters):
            raise InputError(f"parameters must be tensors or parameter groups, not {shown(parameters)}")
        if not callable(noise):
            raise InputError(f"noise must be a function, step → whether it draws noise, not {shown(noise)}")
        super().__init__(parameters, {**rates, "step": 0})
        self.examples = check_integer("examples", examples, 1)
        self.temperature = check_finite("temperature", temperature)
        self.noise = noise
        self.seed = check_seed(seed)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; with a closure, which computes the gradients, return its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        count = self.param_groups[0]["step"]
        draws = generator("sgld", self.seed, "", count) if self.noise(count) else None
        for group in self.param_groups:
            std = noise_std(group["lr"], self.temperature, self.examples)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, group["lr"], group["weight_decay"], std, draws)
            group["step"] = count + 1
        return loss


def _update(
    parameter: Tensor, lr: float, weight_decay: float, std: float, draws: torch.Generator | None
) -> None:
    assert parameter.grad is not None
    change = parameter.grad.add(parameter, alpha=weight_decay).mul_(-lr)
    if draws is not None:
        drawn = torch.randn(parameter.shape, generator=draws, dtype=torch.float32, device="cpu")
        change.add_(drawn.to(change), alpha=std)
    parameter.add_(change)
