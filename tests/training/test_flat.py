"""Flat optimisers step as the official ones do; gradients side by side are autograd's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.substrates.cifar_networks import ResNetShape, resnet_frn
from lpe.training.flat import (
    FlatAdamW,
    FlatIVON,
    FlatLayout,
    FlatSGD,
    Rule,
    batch_ensemble_gradient,
    module_gradient,
)
from lpe.training.schedules import warmup_cosine

STEPS = 30
PLACES = torch.linspace(-1, 1, 40).view(2, 20)
CURVATURES = torch.linspace(0.1, 3, 20)
RATE = warmup_cosine(0.1, STEPS, 0.2)
TINY = ResNetShape(blocks=1, width=8, stages=2)  # of width 4, oneDNN 3.13 crashes on CPUs without AVX-512


def pull(weights: Tensor) -> Tensor:
    """The gradient of a quartic with its minimum at another place for each weight."""
    return CURVATURES * (weights - 0.3) + (weights - 0.3) ** 3


def run_flat(make: Callable[[Tensor], Rule]) -> Tensor:
    weights = PLACES.clone()
    rule = make(weights)
    for step in range(STEPS):
        at = torch.tensor([step])
        rule.update(weights, pull(rule.sampled(weights, at)), at)
    return weights


def run_official(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], row: int) -> Tensor:
    parameters = [nn.Parameter(part.clone()) for part in PLACES[row].split([7, 13])]
    optimizer = make(parameters)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE(step) * (row + 1)
        for parameter, gradient in zip(
            parameters, pull(torch.cat(list(parameters)).detach()).split([7, 13]), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()
    return torch.cat(list(parameters)).detach()


def twice(step: int) -> float:
    return 2 * RATE(step)


def test_sgd_steps_as_torchs_with_its_own_rate_decay_and_momentum_a_training() -> None:
    made = run_flat(lambda weights: FlatSGD(weights, STEPS, [RATE, twice], [0.9, 0.0], [5e-3, 0.0]))
    first = run_official(lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, weight_decay=5e-3), 0)
    second = run_official(lambda p: torch.optim.SGD(p, 1.0), 1)
    torch.testing.assert_close(made, torch.stack([first, second]), rtol=1e-6, atol=1e-6)


def test_adamw_steps_as_torchs() -> None:
    made = run_flat(lambda weights: FlatAdamW(weights, STEPS, [RATE, twice], [0.1, 0.0]))
    first = run_official(lambda p: torch.optim.AdamW(p, 1.0, weight_decay=0.1), 0)
    second = run_official(lambda p: torch.optim.AdamW(p, 1.0, weight_decay=0.0), 1)
    torch.testing.assert_close(made, torch.stack([first, second]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rescale_lr", [True, False])
def test_ivon_steps_as_ivon_opts_under_the_same_noise(rescale_lr: bool) -> None:
    from ivon import IVON

    settings = {"ess": 50.0, "hess_init": 0.3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.02}
    weights = PLACES[:1].clone()
    rule = FlatIVON(
        weights,
        STEPS,
        [RATE],
        generator=torch.Generator().manual_seed(5),
        rescale_lr=rescale_lr,
        **settings,
    )
    parameter = nn.Parameter(PLACES[0].clone())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        official = IVON([parameter], 1.0, rescale_lr=rescale_lr, **settings)
        for step in range(STEPS):
            official.param_groups[0]["lr"] = RATE(step)
            with official.sampled_params(train=True):
                parameter.grad = pull(parameter.detach())
            official.step()
            at = torch.tensor([step])
            rule.update(weights, pull(rule.sampled(weights, at)), at)
    torch.testing.assert_close(weights[0], parameter.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rule.hessian[0], official.param_groups[0]["hess"], rtol=1e-5, atol=1e-6)
    expected_std = (50.0 * (official.param_groups[0]["hess"] + 0.02)).rsqrt()
    torch.testing.assert_close(rule.std()[0], expected_std, rtol=1e-5, atol=1e-6)


def test_ivons_side_by_side_each_step_by_their_own_settings() -> None:
    settings: dict[str, tuple[float, ...]]
    settings = {"hess_init": (0.3, 0.8), "beta2": (0.99, 0.9), "weight_decay": (0.02, 0.1)}
    noise = torch.randn((STEPS, PLACES.shape[1]), generator=torch.Generator().manual_seed(5))

    def trained(which: slice) -> tuple[Tensor, Tensor]:
        own = {name: list(values[which]) for name, values in settings.items()}
        weights = PLACES[:1].repeat(len(own["beta2"]), 1)
        rule = FlatIVON(weights, STEPS, [RATE] * len(weights), 50.0, **own)  # type: ignore[arg-type]
        for step, z in enumerate(noise):
            # The same noise for each, which rules by themselves would not draw.
            rule._drawn.copy_(z * rule.std())
            rule.update(weights, pull(weights + rule._drawn), torch.tensor([step]))
        return weights, rule.hessian

    both, first, second = trained(slice(2)), trained(slice(1)), trained(slice(1, 2))
    for together, *alone in zip(both, first, second, strict=True):
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(both[1][0], both[1][1])


def noisy_steps(noise: float) -> Tensor:
    """One step of SGLD from 0 without a gradient, of 20,000 weights."""
    weights = torch.zeros(1, 20_000)
    generator = torch.Generator().manual_seed(3)
    rule = FlatSGD(weights, 1, [lambda _: 0.1], [0.0], [0.0], [lambda _: noise], generator=generator)
    rule.update(weights, torch.zeros_like(weights), torch.tensor([0]))
    return weights


def has_std(draws: Tensor, std: float) -> bool:
    # The standard error of a standard deviation of n draws is σ/√(2n); five of them.
    return abs(float(draws.std()) / std - 1) < 5 / math.sqrt(2 * draws.numel())


def test_the_noise_has_the_schedules_std() -> None:
    assert has_std(noisy_steps(0.25), 0.25)


def test_noise_of_another_std_is_seen() -> None:
    assert not has_std(noisy_steps(0.25 * 1.05), 0.25)


def test_a_layout_brings_tensors_back_from_the_vector() -> None:
    net = resnet_frn(TINY)
    layout = FlatLayout.of(net)
    vector = layout.vector(dict(net.named_parameters()))
    assert vector.shape == (layout.size,)
    for name, parameter in net.named_parameters():
        assert torch.equal(layout.views(vector)[name], parameter)


@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_tensors_of_another_layout_are_refused(fault: str) -> None:
    net = resnet_frn(TINY)
    tensors = {name: parameter.detach() for name, parameter in net.named_parameters()}
    if fault == "missing":
        del tensors["fc.bias"]
    else:
        tensors["fc.bias"] = torch.zeros(9)
    with pytest.raises(lpe.InputError, match=r"fc\.bias"):
        FlatLayout.of(net).vector(tensors)


def drawn_batch(trainings: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(trainings, 5, 8, 8, 4, generator=generator)
    return images, torch.randint(10, (trainings, 5), generator=generator)


def test_the_gradient_is_autograds_of_each_training() -> None:
    nets = [resnet_frn(TINY, seed) for seed in range(2)]
    layout = FlatLayout.of(nets[0])
    weights = torch.stack([layout.vector(dict(net.named_parameters())) for net in nets])
    images, labels = drawn_batch(2)
    losses, gradients = module_gradient(nets[0])(weights, images, labels)
    for row, net in enumerate(nets):
        loss = nn.functional.cross_entropy(net(images[row, ..., :3].permute(0, 3, 1, 2)), labels[row])
        loss.backward()
        expected = layout.vector({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
        torch.testing.assert_close(losses[row], loss.detach())
        torch.testing.assert_close(gradients[row], expected)


def test_a_module_with_buffers_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="buffers"):
        module_gradient(nn.BatchNorm2d(3))


def test_the_gradient_of_batch_ensembles_is_autograds() -> None:
    ensembles = [lpe.BatchEnsemble(resnet_frn(TINY, seed), 3, seed=seed) for seed in range(2)]
    own = FlatLayout.of(ensembles[0].module)
    weights = torch.stack([own.vector(dict(each.module.named_parameters())) for each in ensembles])
    plain = resnet_frn(TINY)
    gradient = batch_ensemble_gradient(module_gradient(plain), FlatLayout.of(plain), own, 3)
    images, labels = drawn_batch(2)
    losses, gradients = gradient(weights, images, labels)
    for row, ensemble in enumerate(ensembles):
        logits = ensemble.module(images[row, ..., :3].permute(0, 3, 1, 2))
        loss = nn.functional.cross_entropy(logits, labels[row].repeat(3))
        loss.backward()
        parameters = dict(ensemble.module.named_parameters())
        expected = own.vector({name: p.grad for name, p in parameters.items() if p.grad is not None})
        torch.testing.assert_close(losses[row], loss.detach())
        torch.testing.assert_close(gradients[row], expected, rtol=1e-4, atol=1e-6)
