"""IVON: the posterior that the optimiser's state holds, the draws from it, and one that it really learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ivon
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.ivon import IVONEnsemble, forgetting_std, posterior_std
from lpe.training.loop import train

DRAWS = 2000
SIGMAS = 5.0
"""Standard errors that a statistic may be off; draws are keyed, so a test passes or fails for good."""


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The posterior in the optimiser's state


def two_groups() -> tuple[nn.Sequential, ivon.IVON]:
    """Five real steps of IVON: four tensors in two groups of their own settings, not in the model's order."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 4))
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(numbers(tuple(parameter.shape), seed))
    groups = [
        {"params": [model[2].weight, model[0].bias], "ess": 40.0, "weight_decay": 0.05},
        {"params": [model[0].weight, model[2].bias], "ess": 90.0, "weight_decay": 0.3, "hess_init": 0.2},
    ]
    optimizer = ivon.IVON(groups, lr=0.1, ess=1.0, hess_init=0.7, beta2=0.8)
    inputs, targets = numbers((16, 3), 9), torch.arange(16) % 4
    train(model, lambda epoch: [(inputs, targets)], optimizer, lambda step: 0.1, 5, seed=0)
    return model, optimizer


def check_the_optimisers_own_draw(std: Mapping[str, Tensor], model: nn.Module, optimizer: ivon.IVON) -> None:
    """IVON's sample is mean + std · z: with z known, its weights tell its std, element by element.

    float32: the sum is rounded to 2⁻²⁴ of weights below 8, so 1e-6 is allowed.
    """
    mean = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        with optimizer.sampled_params():
            sampled = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        torch.manual_seed(5)
        for group in optimizer.param_groups:
            z = torch.randn(sum(parameter.numel() for parameter in group["params"]))
            for parameter in group["params"]:
                name = names[id(parameter)]
                noise, z = z[: parameter.numel()].view(parameter.shape), z[parameter.numel() :]
                assert (mean[name] + std[name] * noise - sampled[name]).abs().max() <= 1e-6


def test_the_posterior_std_is_that_of_the_optimisers_own_draw() -> None:
    model, optimizer = two_groups()
    check_the_optimisers_own_draw(posterior_std(optimizer, model), model, optimizer)


def test_the_variance_for_the_std_is_caught() -> None:
    model, optimizer = two_groups()
    std = {name: value.square() for name, value in posterior_std(optimizer, model).items()}
    with pytest.raises(AssertionError):
        check_the_optimisers_own_draw(std, model, optimizer)


def test_a_missing_effective_sample_size_is_caught() -> None:
    model, optimizer = two_groups()
    ess = {id(p): group["ess"] for group in optimizer.param_groups for p in group["params"]}
    std = posterior_std(optimizer, model)
    without = {name: std[name] * math.sqrt(ess[id(p)]) for name, p in model.named_parameters()}
    with pytest.raises(AssertionError):
        check_the_optimisers_own_draw(without, model, optimizer)


def test_a_missing_weight_decay_is_caught() -> None:
    model, optimizer = two_groups()
    for group in optimizer.param_groups:
        group["was"], group["weight_decay"] = group["weight_decay"], 0.0
    without = posterior_std(optimizer, model)
    for group in optimizer.param_groups:
        group["weight_decay"] = group["was"]
    with pytest.raises(AssertionError):
        check_the_optimisers_own_draw(without, model, optimizer)


def test_a_hessian_split_in_another_order_is_caught() -> None:
    model, optimizer = two_groups()
    std = posterior_std(optimizer, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wrong = {}
    for group in optimizer.param_groups:
        swapped = torch.cat([std[names[id(p)]].flatten() for p in reversed(group["params"])])
        for parameter in group["params"]:
            part, swapped = swapped[: parameter.numel()], swapped[parameter.numel() :]
            wrong[names[id(parameter)]] = part.view(parameter.shape)
    with pytest.raises(AssertionError):
        check_the_optimisers_own_draw(wrong, model, optimizer)


def test_every_tensor_that_ivon_trained_has_its_std_by_name() -> None:
    model, optimizer = two_groups()
    std = posterior_std(optimizer, model)
    assert {name: value.shape for name, value in std.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }


def test_a_wrapped_models_stds_have_canonical_names() -> None:
    model, optimizer = two_groups()
    assert set(posterior_std(optimizer, nn.ModuleDict({"module": model}))) == set(
        posterior_std(optimizer, model)
    )


def test_the_posterior_std_does_not_change_with_the_optimiser() -> None:
    model, optimizer = two_groups()
    std = posterior_std(optimizer, model)
    before = {name: value.clone() for name, value in std.items()}
    for group in optimizer.param_groups:
        group["hess"].mul_(2.0)
    assert all(torch.equal(std[name], value) for name, value in before.items())


def test_an_optimiser_without_a_hessian_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(lpe.InputError, match="SGD has no Hessian estimate"):
        posterior_std(torch.optim.SGD(model.parameters(), 0.1), model)


def test_an_optimiser_of_another_model_is_refused() -> None:
    _, optimizer = two_groups()
    with pytest.raises(lpe.InputError, match="not of this model"):
        posterior_std(optimizer, nn.Linear(3, 2))


# The draws' distribution


def tiny_posterior() -> tuple[nn.Linear, dict[str, Tensor]]:
    """Six weights in two tensors, stds from about 0.05 to about 0.5."""
    model = nn.Linear(2, 2)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(numbers(tuple(parameter.shape), 30 + seed))
    std = {
        name: 0.05 + 0.2 * numbers(tuple(p.shape), 40 + seed).abs()
        for seed, (name, p) in enumerate(model.named_parameters())
    }
    return model, std


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors["weight"].flatten(), tensors["bias"]]).detach().double()


def ensemble_of(scale: float = 1.0, seed: int = 0, power: float = 1.0) -> IVONEnsemble:
    model, std = tiny_posterior()
    return IVONEnsemble(model, {name: value**power for name, value in std.items()}, DRAWS, seed, scale)


def standardised(sampler: Callable[[int], Mapping[str, Tensor]], scale: float = 1.0) -> Tensor:
    """Draws less the mean over √scale · std: float64 [DRAWS, 6], standard normal if the sampler is right."""
    model, std = tiny_posterior()
    drawn = torch.stack([flat(sampler(index)) for index in range(DRAWS)])
    return (drawn - flat(dict(model.named_parameters()))) / (math.sqrt(scale) * flat(std))


def check_mean(sampler: Callable[[int], Mapping[str, Tensor]]) -> None:
    """The mean of n standard normals has the standard error 1/√n."""
    assert standardised(sampler).mean(dim=0).abs().max() <= SIGMAS / math.sqrt(DRAWS)


def check_variance(sampler: Callable[[int], Mapping[str, Tensor]], scale: float = 1.0) -> None:
    """The mean of n squares of standard normals has the standard error √(2 / n)."""
    z = standardised(sampler, scale)
    assert (z.square().mean(dim=0) - 1).abs().max() <= SIGMAS * math.sqrt(2 / DRAWS)


def check_elements_are_independent(sampler: Callable[[int], Mapping[str, Tensor]]) -> None:
    """The mean of n products of independent standard normals has the standard error 1/√n."""
    z = standardised(sampler)
    products = z.T @ z / DRAWS
    assert (products - torch.diag(products.diagonal())).abs().max() <= SIGMAS / math.sqrt(DRAWS)


def check_successive_members_are_independent(sampler: Callable[[int], Mapping[str, Tensor]]) -> None:
    """As :func:`check_elements_are_independent`, over the DRAWS − 1 pairs of members."""
    z = standardised(sampler)
    assert (z[:-1].T @ z[1:] / (DRAWS - 1)).abs().max() <= SIGMAS / math.sqrt(DRAWS - 1)


def test_draws_have_the_models_weights_as_mean() -> None:
    check_mean(ensemble_of().weights)


def test_a_mean_off_by_a_fifth_of_a_standard_deviation_is_caught() -> None:
    _, std = tiny_posterior()
    ensemble = ensemble_of()
    with pytest.raises(AssertionError):
        check_mean(lambda i: {name: w + 0.2 * std[name] for name, w in ensemble.weights(i).items()})


def test_draws_have_the_posterior_variance() -> None:
    check_variance(ensemble_of().weights)


def test_the_variance_used_as_a_std_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_variance(ensemble_of(power=2.0).weights)


def test_the_scale_multiplies_the_variance() -> None:
    check_variance(ensemble_of(scale=0.25).weights, scale=0.25)


def test_the_scale_used_as_a_factor_of_the_std_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_variance(ensemble_of(scale=0.25**2).weights, scale=0.25)


def test_elements_within_and_between_tensors_are_independent() -> None:
    check_elements_are_independent(ensemble_of().weights)


def test_one_draw_for_two_tensors_is_caught() -> None:
    model, std = tiny_posterior()
    ensemble = ensemble_of()

    def tied(index: int) -> dict[str, Tensor]:
        drawn = ensemble.weights(index)
        z = ((drawn["weight"] - model.weight) / std["weight"])[0]
        return {**drawn, "bias": model.bias + std["bias"] * z}

    with pytest.raises(AssertionError):
        check_elements_are_independent(tied)


def test_successive_members_are_independent() -> None:
    check_successive_members_are_independent(ensemble_of().weights)


def test_a_draw_that_two_members_share_is_caught() -> None:
    ensemble = ensemble_of()
    with pytest.raises(AssertionError):
        check_successive_members_are_independent(lambda i: ensemble.weights(i // 2))


# The draws' keys


def test_a_member_does_not_depend_on_which_were_asked_for_before() -> None:
    ensemble = ensemble_of()
    for index in (7, 3, 0):
        ensemble.weights(index)
    assert torch.equal(flat(ensemble.weights(3)), flat(ensemble_of().weights(3)))


def test_seeds_draw_different_members() -> None:
    assert not (flat(ensemble_of(seed=0).weights(3)) == flat(ensemble_of(seed=1).weights(3))).any()


def test_a_member_holds_the_drawn_weights() -> None:
    ensemble = ensemble_of()
    assert torch.equal(flat(dict(ensemble[3].named_parameters())), flat(ensemble.weights(3)))


def test_a_member_leaves_the_global_generator_alone() -> None:
    ensemble = ensemble_of()
    before = torch.get_rng_state()
    ensemble.member(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_member_leaves_the_model_as_it_was() -> None:
    ensemble = ensemble_of()
    before = flat(dict(ensemble.model.named_parameters())).clone()
    ensemble.member(0)
    assert torch.equal(flat(dict(ensemble.model.named_parameters())), before)


# Settings


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_a_scale_that_is_no_finite_factor_is_refused(scale: float) -> None:
    with pytest.raises(lpe.InputError, match="scale"):
        ensemble_of(scale=scale)


def test_a_std_of_no_tensor_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="'wieght'"):
        IVONEnsemble(nn.Linear(2, 2), {"wieght": torch.ones(2, 2)}, 2)


def test_a_std_of_another_shape_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="'weight'"):
        IVONEnsemble(nn.Linear(2, 2), {"weight": torch.ones(4)}, 2)


# Memory and batch norm


class WithBatchNorm(nn.Module):
    """23 parameters, a batch norm's buffers (6 float32 and a counter), and other buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 2)
        self.register_buffer("temperature", torch.ones(4))
        self.register_buffer("cache", torch.ones(100), persistent=False)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data.copy_(numbers(tuple(parameter.shape), 40 + seed))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.norm(self.first(inputs)).relu())


def batches_of(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(numbers((n, 2), 60 + n), torch.zeros(n, dtype=torch.int64)) for n in sizes]


def batch_norm_ensemble() -> IVONEnsemble:
    model = WithBatchNorm()
    std = {name: torch.full_like(parameter, 0.3) for name, parameter in model.named_parameters()}
    return IVONEnsemble(model, std, 4, batches=batches_of(4, 6))


def test_members_take_whole_models() -> None:
    assert ensemble_of().memory_bits(3) == 3 * 6 * 32


def test_the_generator_takes_mean_and_std() -> None:
    assert ensemble_of().memory_bits(3, "generator") == 6 * 64


def test_members_share_tensors_that_have_no_std() -> None:
    ensemble = IVONEnsemble(nn.Linear(2, 2), {"weight": torch.ones(2, 2)}, 3)
    assert ensemble.memory_bits(3) == 3 * 4 * 32 + 2 * 32


def test_members_with_batch_norm_take_their_own_buffers_and_share_the_rest() -> None:
    assert batch_norm_ensemble().memory_bits(3) == 3 * (23 * 32 + 6 * 32 + 64) + 4 * 32


def test_the_generator_with_batch_norm_holds_every_buffer_once() -> None:
    assert batch_norm_ensemble().memory_bits(3, "generator") == 23 * 64 + 6 * 32 + 64 + 4 * 32


def test_a_model_with_batch_norms_but_no_batches_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="batch norms"):
        IVONEnsemble(WithBatchNorm(), {}, 2)


def test_a_members_running_statistics_are_those_of_its_weights() -> None:
    for net in batch_norm_ensemble()[:2]:
        seen = torch.cat([x for x, _ in batches_of(4, 6)]) @ net.first.weight.T + net.first.bias
        torch.testing.assert_close(net.norm.running_mean, seen.mean(dim=0))
        torch.testing.assert_close(net.norm.running_var, seen.var(dim=0))


def test_making_members_leaves_the_models_statistics_as_they_were() -> None:
    ensemble = batch_norm_ensemble()
    before = {name: tensor.clone() for name, tensor in ensemble.model.state_dict().items()}
    list(ensemble)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ensemble.model.state_dict().items())


def test_describe_gives_the_std_of_the_draws() -> None:
    ensemble = ensemble_of(scale=0.25)
    rows = [line.split() for line in ensemble.describe().splitlines()[2:]]
    expected = [0.5 * float(std.median()) for std in tiny_posterior()[1].values()]
    assert [float(row[2]) for row in rows] == pytest.approx(expected, rel=0.01)


# A posterior that IVON really learns

EXAMPLES = 200
WEIGHT_DECAY = 0.01


class Logistic(nn.Module):
    """One weight: logits (0, w·x)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(inputs), inputs * self.w], dim=1)


def logistic_data() -> tuple[Tensor, Tensor]:
    x = 2 * numbers((EXAMPLES, 1), 1)
    uniform = torch.rand(EXAMPLES, generator=torch.Generator().manual_seed(2))
    return x, (uniform < torch.sigmoid(x[:, 0])).long()


def laplace() -> tuple[float, float]:
    """MAP of the one weight by Newton's method, and 1/√(N·(h + wd)) there: float64."""
    x, y = (t.double().flatten() for t in logistic_data())
    w = torch.zeros((), dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(w * x)
        hessian = (p * (1 - p) * x.square()).mean() + WEIGHT_DECAY
        w = w - (((p - y) * x).mean() + WEIGHT_DECAY * w) / hessian
    return float(w), float(1 / (EXAMPLES * hessian).sqrt())


def learned(optimizer_class: type[ivon.IVON] = ivon.IVON, ess: float = EXAMPLES) -> tuple[float, float]:
    """Mean and std of the posterior after 1,000 steps of the training loop, whole batches."""
    model = Logistic()
    optimizer = optimizer_class(
        model.parameters(), lr=0.1, ess=ess, hess_init=0.5, beta2=0.99, weight_decay=WEIGHT_DECAY
    )
    data = logistic_data()
    train(model, lambda epoch: [data] * 100, optimizer, lambda step: 0.1 * 0.995**step, 10, seed=0)
    return float(model.w.detach()), float(posterior_std(optimizer, model)["w"])


def check_the_learned_posterior(mean: float, std: float) -> None:
    """Against Laplace's approximation: the std within 25 %, the mean within half a std.

    h averages the last 1/(1 − β2) = 100 estimates h·z², whose relative std is √2: h is known to
    √2·√(0.01/2) = 10 %, the std to 5 %. Five of these are allowed.
    """
    expected_mean, expected_std = laplace()
    assert abs(mean - expected_mean) <= 0.5 * expected_std
    assert abs(std / expected_std - 1) <= 0.25


class AtTheMean(ivon.IVON):
    """The fault: the noise is drawn, but the gradient is taken at the mean."""

    @contextmanager
    def sampled_params(self, train: bool = False) -> Iterator[None]:
        mean = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        with super().sampled_params(train):
            for group in self.param_groups:
                for parameter, value in zip(group["params"], mean, strict=True):
                    parameter.data = value
            yield


def test_ivon_learns_the_posterior_of_a_logistic_regression() -> None:
    check_the_learned_posterior(*learned())


def test_a_gradient_taken_at_the_mean_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_the_learned_posterior(*learned(AtTheMean))


def test_a_minibatch_size_given_for_the_number_of_examples_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_the_learned_posterior(*learned(ess=EXAMPLES / 4))


# What the std would be had nothing been learnt


def test_the_forgetting_std_is_the_optimisers_own_where_gradients_are_zero() -> None:
    model = nn.Linear(3, 2)
    optimizer = ivon.IVON(model.parameters(), lr=0.1, ess=40.0, hess_init=0.7, beta2=0.8, weight_decay=0.05)
    for _ in range(6):
        with optimizer.sampled_params(train=True):
            (0.0 * model(torch.ones(1, 3)).sum()).backward()
        optimizer.step()
    expected = forgetting_std(0.7, 0.8, 0.05, 40.0, 6)
    for std in posterior_std(optimizer, model).values():
        torch.testing.assert_close(std, torch.full_like(std, expected), rtol=1e-5, atol=0)


def test_a_posterior_that_forgets_everything_has_the_priors_std() -> None:
    # The second-order term keeps h from falling faster than (1 − (1 − β2) + ½ (1 − β2)²) a step.
    assert forgetting_std(2.0, 0.9, 0.05, 40.0, 1000) == pytest.approx(1 / math.sqrt(40 * 0.05), rel=1e-9)


@pytest.mark.parametrize("beta2", [-0.1, 1.1])
def test_a_forgetting_std_outside_of_beta2s_range_is_refused(beta2: float) -> None:
    with pytest.raises(lpe.InputError, match="beta2"):
        forgetting_std(2.0, beta2, 0.05, 40.0, 10)
