"""Gaussian noise: its moments against BSR's variance or one std, its keys, and what members share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles import gaussian
from lpe.ensembles.batch_norm import refresh
from lpe.modules import named_tensors
from lpe.number_systems.streams import normal

DRAWS = 1000
SIGMAS = 5.0
"""Standard errors that a statistic may be off; draws are keyed, so a test passes or fails for good."""
INT3 = lpe.Int(3)
Moments = Mapping[str, Tensor]
Sampler = Callable[[int], Mapping[str, Tensor]]


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_layers() -> nn.Sequential:
    """Two weights of one shape, 12 values each; each row has a size, and so a step, of its own."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
    model[2] = nn.Linear(4, 3)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(numbers(tuple(parameter.shape), seed))
    for layer in (model[0], model[2]):
        layer.weight.data.mul_(torch.tensor([[0.3], [1.0], [4.0]]))
    return model


def steps_and_shares(weight: Tensor, bits: int = 3) -> tuple[Tensor, Tensor]:
    """Δ of each row, float64 [rows, 1], and p = (w − lo)/Δ, float64, by the definition."""
    w = weight.detach().double()
    step = w.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return step, w / step - (w / step).floor()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights that carry noise: float64."""
    return {name: p.detach().double() for name, p in model.named_parameters() if p.dim() > 1}


def variances(model: nn.Module) -> dict[str, Tensor]:
    """Δ²·p(1 − p) of every weight: float64."""
    formula = {}
    for name, weight in weights_of(model).items():
        step, p = steps_and_shares(weight)
        formula[name] = step.square() * p * (1 - p)
    return formula


def drawn(sampler: Sampler) -> dict[str, Tensor]:
    """DRAWS draws of each tensor: float64 [draws, *shape]."""
    draws = [sampler(index) for index in range(DRAWS)]
    return {name: torch.stack([draw[name] for draw in draws]).double() for name in draws[0]}


def check_mean(sampler: Sampler, means: Moments, formula: Moments) -> None:
    """A mean of n draws of variance V has the standard error √(V/n); float32's rounding is 2⁻²⁴ of w."""
    for name, draws in drawn(sampler).items():
        allowed = SIGMAS * (formula[name] / DRAWS).sqrt() + 2.0**-23 * means[name].abs()
        assert ((draws.mean(dim=0) - means[name]).abs() <= allowed).all()


def check_variance(sampler: Sampler, means: Moments, formula: Moments) -> None:
    """The mean of n squared Gaussian deviations of variance V has the standard error V·√(2/n).

    p is that of float32, rounded to 16 bits: below 2⁻¹⁵ off, and Δ² is at most 4 times the variance at
    p = ½, so 2⁻¹³ of the tensor's largest variance is allowed besides.
    """
    for name, draws in drawn(sampler).items():
        found = (draws - means[name]).square().mean(dim=0)
        allowed = SIGMAS * formula[name] * math.sqrt(2 / DRAWS) + 2.0**-13 * formula[name].max()
        assert ((found - formula[name]).abs() <= allowed).all()


def check_independence(sampler: Sampler, means: Moments, formula: Moments) -> None:
    """The mean of n products of independent standardised draws has the standard error 1/√n.

    Within a tensor, between tensors (as far as there is a variance), and from one member to the next.
    """
    draws = drawn(sampler)
    columns = []
    for name, values in draws.items():
        moving = formula[name] > 1e-3 * formula[name].max()
        columns.append(((values - means[name]) / formula[name].sqrt())[:, moving])
    z = torch.cat(columns, dim=1)
    between = (z.T @ z / DRAWS).fill_diagonal_(0.0)
    assert (between.abs() <= SIGMAS / math.sqrt(DRAWS)).all()
    successive = z[:-1].T @ z[1:] / (DRAWS - 1)
    assert (successive.abs() <= SIGMAS / math.sqrt(DRAWS - 1)).all()


def matched(**settings: Any) -> lpe.GaussianEnsemble:
    return lpe.GaussianEnsemble(two_layers(), INT3, DRAWS, **settings)


def sampler_of_std(std: Moments) -> Sampler:
    """Independent draws of a std, for faults."""
    means = weights_of(two_layers())
    return lambda index: {
        name: means[name] + std[name] * normal("fault", 0, name, index, means[name].shape) for name in means
    }


# The matched noise


def test_matched_noise_has_the_weights_as_its_mean() -> None:
    model = two_layers()
    check_mean(matched().weights, weights_of(model), variances(model))


def test_a_mean_off_by_a_fifth_of_a_standard_deviation_is_caught() -> None:
    model, ensemble = two_layers(), matched()
    off = {name: 0.2 * variance.sqrt() for name, variance in variances(model).items()}
    with pytest.raises(AssertionError):
        check_mean(
            lambda i: {name: w + off[name] for name, w in ensemble.weights(i).items()},
            weights_of(model),
            variances(model),
        )


def test_matched_noise_has_bsrs_variance_weight_by_weight() -> None:
    model = two_layers()
    check_variance(matched().weights, weights_of(model), variances(model))


def fault(name: str) -> dict[str, Tensor]:
    """A wrong std of each tensor."""
    wrong = {}
    for tensor, weight in weights_of(two_layers()).items():
        step, p = steps_and_shares(weight)
        right = step.square() * p * (1 - p)
        wrong[tensor] = {
            "p for p(1 − p)": step * p.sqrt(),
            "the variance for the std": right,
            "one scale for all rows": steps_of_the_tensor(weight),
            "one variance for all weights": right.mean().sqrt().expand_as(right),
        }[name]
    return wrong


def steps_of_the_tensor(weight: Tensor) -> Tensor:
    """BSR's std were there one Δ for the tensor."""
    step, p = steps_and_shares(weight.flatten()[None])
    return (step * (p * (1 - p)).sqrt()).view(weight.shape)


FAULTS = (
    "p for p(1 − p)",
    "the variance for the std",
    "one scale for all rows",
    "one variance for all weights",
)


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_variance_is_caught(name: str) -> None:
    model = two_layers()
    with pytest.raises(AssertionError):
        check_variance(sampler_of_std(fault(name)), weights_of(model), variances(model))


def test_the_right_variance_passes_from_another_sampler() -> None:
    model = two_layers()
    std = {name: variance.sqrt() for name, variance in variances(model).items()}
    check_variance(sampler_of_std(std), weights_of(model), variances(model))


def test_draws_are_independent_within_and_between_tensors_and_members() -> None:
    model = two_layers()
    check_independence(matched().weights, weights_of(model), variances(model))


def test_one_draw_for_all_tensors_is_caught() -> None:
    model, formula = two_layers(), variances(two_layers())
    means = weights_of(model)
    with pytest.raises(AssertionError):
        check_independence(
            lambda i: {n: means[n] + formula[n].sqrt() * normal("", 0, "", i, (3, 4)) for n in means},
            means,
            formula,
        )


def test_a_draw_that_two_members_share_is_caught() -> None:
    model, ensemble = two_layers(), matched()
    with pytest.raises(AssertionError):
        check_independence(lambda i: ensemble.weights(i // 2), weights_of(model), variances(model))


def check_bsr_has_the_variance(std: Tensor, weight: Tensor) -> None:
    """Against n BSR draws, those of 20 members of n/20 copies of each row.

    A squared deviation has the standard deviation Δ²·|1 − 2p|·√(p(1 − p)).
    BSR's probability has 16 bits and float32's error, below 2⁻¹⁵ together, which moves the variance by at
    most 2⁻¹⁵·Δ²; four times that is allowed.
    """
    step, p = steps_and_shares(weight)
    copies = weight.repeat(DRAWS // 20, 1)
    rounded = torch.cat([lpe.round_weights(copies, INT3, name="w", member=m) for m in range(20)])
    found = (rounded.view(DRAWS, *weight.shape).double() - weight.double()).square().mean(dim=0)
    error = step.square() * (1 - 2 * p).abs() * (p * (1 - p) / DRAWS).sqrt()
    assert ((found - std.double().square()).abs() <= SIGMAS * error + 2.0**-13 * step.square()).all()


def test_the_variance_is_that_of_bsrs_own_members() -> None:
    weight = two_layers()[0].weight.detach()
    check_bsr_has_the_variance(matched().std_of("0.weight"), weight)


@pytest.mark.parametrize("name", FAULTS)
def test_another_variance_than_bsrs_is_caught(name: str) -> None:
    weight = two_layers()[0].weight.detach()
    with pytest.raises(AssertionError):
        check_bsr_has_the_variance(fault(name)["0.weight"], weight)


# The std of each layout


class EveryAxis(nn.Module):
    """Every output axis, a tied weight, a half-precision weight, and buffers saved and not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.proj = nn.Parameter(torch.empty(6, 8))
        self.embed = nn.Embedding(7, 8)
        self.head = nn.Linear(8, 7)
        self.head.weight = self.embed.weight
        self.last = nn.Linear(7, 3).bfloat16()
        self.register_buffer("offset", torch.ones(8), persistent=False)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data.copy_(numbers(tuple(parameter.shape), 20 + seed))

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.norm(self.up(self.conv(inputs))).relu().mean(dim=(2, 3))
        return self.last(self.head(features @ self.proj + self.offset).bfloat16())


AXES = {"conv.weight": (0, 1), "up.weight": (1, 2), "proj": (1, 1), "embed.weight": (0, 1)}
IMAGES = numbers((6, 2, 5, 5), 50)


@pytest.mark.parametrize("scale", [lpe.PerTensor(), lpe.PerChannel(2), lpe.PerBlock(5)], ids=str)
def test_the_std_is_that_of_the_two_values_that_rounding_takes(scale: Any) -> None:
    # Of two values a and b around w, taken without bias, the variance is (w − a)(b − w).
    system, model = lpe.Int(4, scale), EveryAxis()
    ensemble = lpe.GaussianEnsemble(model, system, 1)
    for name, (axis, groups) in AXES.items():
        weight = model.get_parameter(name).detach()
        values = torch.stack(
            [
                lpe.round_weights(weight, system, "bernoulli", 0, name, m, axis, groups).double()
                for m in range(40)
            ]
        )
        low, high = values.amin(dim=0), values.amax(dim=0)
        both = high > low  # a neighbour of a small share may not have come up
        expected = ((weight - low) * (high - weight))[both]
        found = ensemble.std_of(name).double().square()[both]
        assert both.double().mean() > 0.6  # the largest of five inputs is a grid value
        largest = (high - low).max().square()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=float(2.0**-15 * largest))


OTHERS = [
    lpe.Float(4, 3),
    lpe.Float(2, 1, lpe.PerBlock(5)),
    lpe.NF4(),
    lpe.NF4(lpe.PerTensor()),
    lpe.Codebook([-1.0, -0.4, 0.1, 0.3, 1.0]),
    lpe.Codebook([-1.0, 0.2, 0.5]),
]


def check_variance_of_neighbours(std_of: Callable[[nn.Module, str], Tensor], system: Any) -> None:
    """Of two values a and b around w, taken without bias, the variance is (w − a)(b − w)."""
    model = EveryAxis()
    for name, (axis, groups) in AXES.items():
        weight = model.get_parameter(name).detach()
        values = torch.stack(
            [
                lpe.round_weights(weight, system, "bernoulli", 0, name, m, axis, groups).double()
                for m in range(60)
            ]
        )
        low, high = values.amin(dim=0), values.amax(dim=0)
        both = high > low  # a neighbour of a small share may not have come up
        expected = ((weight - low) * (high - weight))[both]
        found = std_of(model, name).double().square()[both]
        assert both.double().mean() > 0.2
        largest = (high - low).max().square()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=float(2.0**-15 * largest))


@pytest.mark.parametrize("system", OTHERS, ids=lambda system: system.name)
def test_the_std_under_other_systems_is_that_of_the_two_values_that_rounding_takes(system: Any) -> None:
    check_variance_of_neighbours(
        lambda model, name: lpe.GaussianEnsemble(model, system, 1).std_of(name), system
    )


@pytest.mark.parametrize("system", OTHERS, ids=lambda system: system.name)
def test_the_variance_of_equal_steps_is_caught_under_other_systems(system: Any) -> None:
    integers = lpe.Int(max(2, system.bits), system.scale)
    with pytest.raises(AssertionError):
        check_variance_of_neighbours(
            lambda model, name: lpe.GaussianEnsemble(model, integers, 1).std_of(name), system
        )


@pytest.mark.parametrize("system", [lpe.Float(4, 3), lpe.NF4()], ids=lambda system: system.name)
def test_grid_values_of_other_systems_have_no_noise(system: Any) -> None:
    model = nn.Linear(len(system.levels), 1)
    model.weight.data = torch.tensor([system.levels]) * 0.37
    assert not lpe.GaussianEnsemble(model, system, 1).std_of("weight").any()


def test_a_weight_beyond_the_smaller_end_of_a_codebook_has_no_noise() -> None:
    model = nn.Linear(3, 1)
    model.weight.data = torch.tensor([[-1.0, 0.6, 0.3]])
    std = lpe.GaussianEnsemble(model, lpe.Codebook([-1.0, 0.2, 0.5]), 1).std_of("weight")
    assert std.bool().tolist() == [[False, False, True]]


def test_grid_values_have_no_noise() -> None:
    model = nn.Linear(5, 2)
    model.weight.data = torch.tensor([[-3.0, 0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]]) / 8
    assert not lpe.GaussianEnsemble(model, INT3, 1).std_of("weight").any()


def test_a_row_whose_step_has_no_finite_inverse_has_no_noise() -> None:
    model = nn.Linear(3, 2)
    model.weight.data = torch.tensor([[1e-42, 3e-42, 2e-42], [1.0, 0.4, 0.2]])
    assert lpe.GaussianEnsemble(model, INT3, 1).std_of("weight").bool().tolist() == [
        [False, False, False],
        [False, True, True],
    ]


def test_the_largest_weight_has_no_noise_at_any_number_of_bits() -> None:
    weight = numbers((200, 3), 7)
    model = nn.Linear(3, 200)
    model.weight.data = weight
    for bits in range(2, 9):
        std = lpe.GaussianEnsemble(model, lpe.Int(bits), 1).std_of("weight")
        rows, columns = torch.arange(200), weight.abs().argmax(dim=1)
        beyond = weight[rows, columns].abs() / (weight.abs().amax(dim=1) / (2 ** (bits - 1) - 1))
        assert not std[rows, columns][beyond >= 2 ** (bits - 1) - 1].any()


def test_the_chunk_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EveryAxis()
    ensemble = lpe.GaussianEnsemble(model, lpe.Int(4, lpe.PerBlock(5)), 1)
    whole = {name: (ensemble.std_of(name), ensemble.weights(0)[name]) for name in AXES}
    monkeypatch.setattr(gaussian, "CHUNK", 7)
    for name, (std, weight) in whole.items():
        assert torch.equal(ensemble.std_of(name), std) and torch.equal(ensemble.weights(0)[name], weight)


def test_the_std_of_a_tensor_without_noise_is_refused_by_name() -> None:
    with pytest.raises(lpe.InputError, match="'0.bias' carries no noise"):
        matched().std_of("0.bias")


# Isotropic noise


def isotropic(std: float = 0.3) -> Sampler:
    return lpe.GaussianEnsemble(two_layers(), INT3, DRAWS, std=std).weights


def constant(variance: float) -> dict[str, Tensor]:
    return {name: torch.full_like(w, variance) for name, w in weights_of(two_layers()).items()}


def test_isotropic_noise_has_the_std_asked_for_at_every_weight() -> None:
    check_variance(isotropic(), weights_of(two_layers()), constant(0.09))


def test_a_variance_used_as_the_std_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_variance(isotropic(0.09), weights_of(two_layers()), constant(0.09))


def test_isotropic_noise_has_the_weights_as_its_mean() -> None:
    check_mean(isotropic(), weights_of(two_layers()), constant(0.09))


def test_isotropic_draws_are_independent() -> None:
    check_independence(isotropic(), weights_of(two_layers()), constant(0.09))


def test_isotropic_noise_needs_no_rounding_system() -> None:
    ensemble = lpe.GaussianEnsemble(two_layers(), lpe.FullPrecision(), 1, std=0.3)
    assert torch.equal(ensemble.weights(0)["0.weight"], isotropic()(0)["0.weight"])


def test_the_std_of_isotropic_noise_is_the_number() -> None:
    ensemble = lpe.GaussianEnsemble(two_layers(), INT3, 1, std=0.3)
    assert torch.equal(ensemble.std_of("0.weight"), torch.full((3, 4), 0.3))


def test_a_std_of_zero_gives_the_weights() -> None:
    model = two_layers().double()
    member = lpe.GaussianEnsemble(model, INT3, 1, std=0)[0]
    assert all(torch.equal(a, b) for a, b in zip(member.parameters(), model.parameters(), strict=True))


# Keys


def test_a_member_does_not_depend_on_which_were_asked_for_before() -> None:
    ensemble = matched()
    for index in (7, 0, 2):
        ensemble.weights(index)
    assert torch.equal(ensemble.weights(3)["0.weight"], matched().weights(3)["0.weight"])


def test_seeds_draw_different_members() -> None:
    a, b = (matched(seed=seed).weights(0)["0.weight"] for seed in (0, 1))
    assert not torch.equal(a, b)


def test_a_member_leaves_the_global_generator_alone() -> None:
    ensemble = matched()
    before = torch.get_rng_state()
    ensemble.member(0)
    assert torch.equal(torch.get_rng_state(), before)


# Members


def test_a_member_holds_the_drawn_weights_in_their_own_types() -> None:
    ensemble = lpe.GaussianEnsemble(EveryAxis(), INT3, 3)
    member = {entry.name: entry.tensor for entry in named_tensors(ensemble[1])}
    for name, weight in ensemble.weights(1).items():
        assert torch.equal(member[name], weight) and member[name].dtype == weight.dtype
    assert member["last.weight"].dtype == torch.bfloat16


def test_the_noisy_tensors_are_those_that_lpe_quantises() -> None:
    model = EveryAxis()
    noisy = lpe.GaussianEnsemble(model, INT3, 1, exclude="conv*").weights(0).keys()
    plan = lpe.LowPrecisionEnsemble(model, INT3, 1, exclude="conv*").plan
    assert list(noisy) == [planned.name for planned in plan if planned.quantised]


def test_a_member_shares_every_other_tensor_with_the_model() -> None:
    model = EveryAxis()
    member = {entry.name: entry.tensor for entry in named_tensors(lpe.GaussianEnsemble(model, INT3, 1)[0])}
    others = [e for e in named_tensors(model) if e.name not in (*AXES, "last.weight")]
    assert others and all(member[e.name].data_ptr() == e.tensor.data_ptr() for e in others)


def test_the_model_is_left_as_it_was() -> None:
    model = EveryAxis()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lpe.GaussianEnsemble(model, INT3, 2, batches=[(IMAGES, None)]).predict(IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_without_batches_batch_norm_statistics_are_the_models() -> None:
    model = EveryAxis()
    model.norm.running_mean.copy_(numbers((6,), 9))
    member = lpe.GaussianEnsemble(model, INT3, 1)[0]
    assert member.norm.running_mean.data_ptr() == model.norm.running_mean.data_ptr()


def test_with_batches_batch_norm_statistics_are_those_under_the_noise() -> None:
    member = lpe.GaussianEnsemble(EveryAxis(), INT3, 2, batches=[(IMAGES, None)], refresh="absolute")[1]
    plain = lpe.GaussianEnsemble(EveryAxis(), INT3, 2)[1]
    refresh(plain, [(IMAGES, None)])
    torch.testing.assert_close(member.norm.running_mean, plain.norm.running_mean)
    assert member.norm.running_mean.any()


def test_an_ensemble_of_one_predicts_what_its_member_predicts() -> None:
    ensemble = lpe.GaussianEnsemble(EveryAxis(), INT3, 1)
    assert torch.equal(ensemble.predict(IMAGES), ensemble[0](IMAGES).detach().double().log_softmax(dim=-1))


def test_a_saved_ensemble_predicts_as_before(tmp_path: Any) -> None:
    ensemble = lpe.GaussianEnsemble(EveryAxis(), INT3, 2)
    lpe.save(ensemble, tmp_path / "ensemble")
    assert torch.equal(lpe.load(tmp_path / "ensemble", EveryAxis()).predict(IMAGES), ensemble.predict(IMAGES))


# Memory. Noisy: conv 4·2·9, up 4·3·4, proj 6·8, embed 7·8 (the head is tied) in float32.
# In bfloat16: last 3·7.
NOISY_BITS = 32 * (72 + 48 + 48 + 56) + 16 * 21
# In float32: biases of conv, up and head; norm's weight and bias. In bfloat16: last's bias.
OTHER_BITS = 32 * (4 + 6 + 7) + 32 * 2 * 6 + 16 * 3
# Norm's mean and variance in float32, its count of batches in int64.
STATISTICS_BITS = 32 * 2 * 6 + 64


@pytest.mark.parametrize("n", [1, 3])
def test_stored_members_take_their_noisy_weights_each(n: int) -> None:
    found = lpe.GaussianEnsemble(EveryAxis(), INT3, 3).memory_bits(n)
    assert found == n * NOISY_BITS + OTHER_BITS + STATISTICS_BITS


@pytest.mark.parametrize("n", [1, 3])
def test_stored_members_with_statistics_of_their_own_take_those_each(n: int) -> None:
    found = lpe.GaussianEnsemble(EveryAxis(), INT3, 3, batches=[(IMAGES, None)]).memory_bits(n)
    assert found == n * (NOISY_BITS + STATISTICS_BITS) + OTHER_BITS


@pytest.mark.parametrize("batches", [None, [(IMAGES, None)]], ids=["shared", "own statistics"])
def test_the_generator_takes_the_model_whatever_the_members(batches: Any) -> None:
    found = lpe.GaussianEnsemble(EveryAxis(), INT3, 3, batches=batches).memory_bits(3, "generator")
    assert found == NOISY_BITS + OTHER_BITS + STATISTICS_BITS


def test_an_unknown_storage_is_refused_by_name() -> None:
    with pytest.raises(lpe.InputError, match="'disk'"):
        matched().memory_bits(storage="disk")


# Descriptions and refusals


def test_describe_lists_every_tensor_with_its_noise() -> None:
    ensemble = lpe.GaussianEnsemble(EveryAxis(), INT3, 3, seed=5)
    title, _, *rows, _ = ensemble.describe().splitlines()
    assert "3 members" in title and "int3" in title and "seed 5" in title
    found = {row.split()[0]: row.split()[2] for row in rows}
    noisy = ensemble.weights(0)
    assert found == {e.name: "yes" if e.name in noisy else "no" for e in named_tensors(EveryAxis())}


def test_describe_gives_the_median_std() -> None:
    ensemble = matched()
    row = next(row for row in ensemble.describe().splitlines() if row.startswith("0.weight"))
    assert float(row.split()[-2]) == pytest.approx(float(ensemble.std_of("0.weight").median()), rel=0.01)


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf, True, "0.1"])
def test_a_std_that_is_no_finite_number_is_refused_with_its_value(std: Any) -> None:
    with pytest.raises(lpe.InputError, match=f"std must be a finite number ≥ 0.*{std}"):
        matched(std=std)


def test_the_variance_of_a_system_that_rounds_nothing_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="fp32 rounds nothing"):
        lpe.GaussianEnsemble(two_layers(), lpe.FullPrecision(), 2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("system", "int4"), ("size", 0), ("seed", -1), ("seed", 2**64), ("include", "nothing*")],
)
def test_a_setting_that_is_none_is_refused_with_its_value(setting: str, value: Any) -> None:
    settings = {"system": INT3, "size": 2, setting: value}
    with pytest.raises(lpe.InputError, match=str(value).replace("*", r"\*")):
        lpe.GaussianEnsemble(two_layers(), **settings)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    model = two_layers()
    model[0].weight.data[0, 0] = value
    with pytest.raises(lpe.InputError, match="'0.weight'"):
        lpe.GaussianEnsemble(model, INT3, 2)
