"""SWAG: the moments of its draws, what its collector keeps, and its members' batch-norm statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.swag import SWAGCollector, SWAGEnsemble, SWAGStatistics

DRAWS = 2000
RANK = 3
SCALE = 0.5
SIGMAS = 5.0
"""Standard errors that a statistic may be off; draws are keyed, so a test passes or fails for good."""


def numbers(shape: Iterable[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def linear() -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, 2, 2)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)  # without values it would be whatever the memory held
    return layer


def tiny_statistics() -> SWAGStatistics:
    """Two tensors, six weights; variances far from 1, the low rank half of the covariance or more."""
    shapes = {"weight": (2, 2), "bias": (2,)}
    return SWAGStatistics(
        mean={name: numbers(shape, seed) for seed, (name, shape) in enumerate(shapes.items())},
        variance={
            name: 0.05 + 0.2 * numbers(shape, 10 + seed).abs()
            for seed, (name, shape) in enumerate(shapes.items())
        },
        deviations={
            name: numbers((RANK, *shape), 20 + seed) for seed, (name, shape) in enumerate(shapes.items())
        },
    )


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors["weight"].flatten(), tensors["bias"]]).double()


def formula_covariance(statistics: SWAGStatistics) -> Tensor:
    """SCALE · (diag(var) + D Dᵀ / (K − 1)) over both tensors' weights, D as columns: float64 [6, 6]."""
    columns = torch.stack(
        [flat({name: t[k] for name, t in statistics.deviations.items()}) for k in range(RANK)], dim=1
    )
    return SCALE * (torch.diag(flat(statistics.variance)) + columns @ columns.T / (RANK - 1))


def check_mean(sampler: Callable[[int], dict[str, Tensor]], statistics: SWAGStatistics) -> None:
    """A mean of n draws of variance C has the standard error √(C / n)."""
    drawn = torch.stack([flat(sampler(index)) for index in range(DRAWS)])
    error = (drawn.mean(dim=0) - flat(statistics.mean)).abs()
    assert (error <= SIGMAS * (formula_covariance(statistics).diagonal() / DRAWS).sqrt()).all()


def check_covariance(sampler: Callable[[int], dict[str, Tensor]], statistics: SWAGStatistics) -> None:
    """The mean of n Gaussian products x_i x_j has the standard error √((C_ii C_jj + C_ij²) / n)."""
    drawn = torch.stack([flat(sampler(index)) for index in range(DRAWS)]) - flat(statistics.mean)
    covariance = formula_covariance(statistics)
    variances = covariance.diagonal()
    allowed = SIGMAS * ((variances[:, None] * variances + covariance.square()) / DRAWS).sqrt()
    assert ((drawn.T @ drawn / DRAWS - covariance).abs() <= allowed).all()


def check_successive_members_are_independent(
    sampler: Callable[[int], dict[str, Tensor]], statistics: SWAGStatistics
) -> None:
    """The mean of n products of independent standardised draws has the standard error 1/√n."""
    drawn = torch.stack([flat(sampler(index)) for index in range(DRAWS)]) - flat(statistics.mean)
    drawn = drawn / formula_covariance(statistics).diagonal().sqrt()
    lagged = drawn[:-1].T @ drawn[1:] / (DRAWS - 1)
    assert (lagged.abs() <= SIGMAS / math.sqrt(DRAWS - 1)).all()


def sampler_of(statistics: SWAGStatistics, seed: int = 0, scale: float = SCALE) -> SWAGEnsemble:
    return SWAGEnsemble(linear(), statistics, DRAWS, seed, scale)


# The draws' distribution


def test_draws_have_the_mean_of_the_formula() -> None:
    statistics = tiny_statistics()
    check_mean(sampler_of(statistics).weights, statistics)


def test_a_mean_off_by_a_fifth_of_a_standard_deviation_is_caught() -> None:
    statistics = tiny_statistics()
    ensemble = sampler_of(statistics)
    off = 0.2 * formula_covariance(statistics).diagonal().sqrt()[4:].float()

    def shifted(index: int) -> dict[str, Tensor]:
        drawn = ensemble.weights(index)
        return {**drawn, "bias": drawn["bias"] + off}

    with pytest.raises(AssertionError):
        check_mean(shifted, statistics)


def test_draws_have_the_covariance_of_the_formula_also_between_tensors() -> None:
    statistics = tiny_statistics()
    check_covariance(sampler_of(statistics).weights, statistics)


def test_a_low_rank_draw_per_tensor_is_caught() -> None:
    statistics = tiny_statistics()
    one, other = sampler_of(statistics, seed=0), sampler_of(statistics, seed=1)
    with pytest.raises(AssertionError):
        check_covariance(
            lambda i: {"weight": one.weights(i)["weight"], "bias": other.weights(i)["bias"]}, statistics
        )


def test_the_scale_used_as_a_factor_of_the_std_is_caught() -> None:
    statistics = tiny_statistics()
    with pytest.raises(AssertionError):
        check_covariance(sampler_of(statistics, scale=SCALE**2).weights, statistics)


def test_the_root_of_the_rank_for_the_root_of_the_rank_less_one_is_caught() -> None:
    statistics = tiny_statistics()
    smaller = {name: d * math.sqrt((RANK - 1) / RANK) for name, d in statistics.deviations.items()}
    with pytest.raises(AssertionError):
        check_covariance(sampler_of(replace(statistics, deviations=smaller)).weights, statistics)


def test_the_variance_used_as_a_std_is_caught() -> None:
    statistics = tiny_statistics()
    squared = {name: variance.square() for name, variance in statistics.variance.items()}
    with pytest.raises(AssertionError):
        check_covariance(sampler_of(replace(statistics, variance=squared)).weights, statistics)


def test_one_diagonal_draw_for_all_elements_is_caught() -> None:
    statistics = tiny_statistics()
    without = replace(statistics, variance={n: torch.zeros_like(v) for n, v in statistics.variance.items()})
    ensemble = sampler_of(without)

    def shared_z1(index: int) -> dict[str, Tensor]:
        z1 = numbers((1,), 10_000 + index)
        drawn = ensemble.weights(index)
        return {n: w + (SCALE * statistics.variance[n]).sqrt() * z1 for n, w in drawn.items()}

    with pytest.raises(AssertionError):
        check_covariance(shared_z1, statistics)


def test_successive_members_are_independent() -> None:
    statistics = tiny_statistics()
    check_successive_members_are_independent(sampler_of(statistics).weights, statistics)


def test_a_draw_that_two_members_share_is_caught() -> None:
    statistics = tiny_statistics()
    ensemble = sampler_of(statistics)
    with pytest.raises(AssertionError):
        check_successive_members_are_independent(lambda i: ensemble.weights(i // 2), statistics)


# The draws' keys


def test_a_member_is_the_same_when_it_is_asked_for_again() -> None:
    ensemble = sampler_of(tiny_statistics())
    assert torch.equal(flat(ensemble.weights(3)), flat(ensemble.weights(3)))


def test_a_member_does_not_depend_on_which_were_asked_for_before() -> None:
    ensemble = sampler_of(tiny_statistics())
    for index in (7, 0, 2):
        ensemble.weights(index)
    assert torch.equal(flat(ensemble.weights(3)), flat(sampler_of(tiny_statistics()).weights(3)))


def test_seeds_draw_different_members() -> None:
    statistics = tiny_statistics()
    one, other = sampler_of(statistics, seed=0), sampler_of(statistics, seed=1)
    assert not (flat(one.weights(3)) == flat(other.weights(3))).any()


def test_tensors_of_one_shape_get_different_diagonal_noise() -> None:
    model = nn.Sequential(linear(), linear())
    names = ("0.weight", "1.weight")
    statistics = SWAGStatistics(
        mean={name: torch.zeros(2, 2) for name in names},
        variance={name: torch.ones(2, 2) for name in names},
        deviations={name: torch.zeros(2, 2, 2) for name in names},
    )
    drawn = SWAGEnsemble(model, statistics, 1).weights(0)
    assert not (drawn["0.weight"] == drawn["1.weight"]).any()


def test_a_member_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    sampler_of(tiny_statistics()).member(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_member_holds_the_drawn_weights() -> None:
    ensemble = sampler_of(tiny_statistics())
    assert torch.equal(flat(dict(ensemble[3].named_parameters())), flat(ensemble.weights(3)))


def test_scale_zero_draws_the_mean() -> None:
    statistics = tiny_statistics()
    assert torch.equal(flat(sampler_of(statistics, scale=0.0).weights(0)), flat(statistics.mean))


# The collector


def collected(iterates: int, rank: int = RANK) -> tuple[SWAGCollector, dict[str, np.ndarray]]:
    """A collector after some iterates, and the iterates: name → float64 [iterates, *shape]."""
    model, collector = linear(), SWAGCollector(rank)
    seen: dict[str, list[np.ndarray]] = {"weight": [], "bias": []}
    for index in range(iterates):
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            parameter.data.copy_(5.0 + 0.1 * numbers(parameter.shape, 100 + 2 * index + seed))
            seen[name].append(parameter.detach().double().numpy().copy())
        collector.collect(model)
    return collector, {name: np.stack(values) for name, values in seen.items()}


def test_the_collected_mean_is_the_mean_of_the_iterates() -> None:
    collector, iterates = collected(7)
    for name, mean in collector.statistics().mean.items():
        np.testing.assert_allclose(mean.numpy(), iterates[name].mean(axis=0), rtol=1e-6)


def test_the_collected_variance_is_the_population_variance_of_the_iterates() -> None:
    # Iterates near 5, float32: each carries 5·2⁻²⁴ = 3e-7, against a spread of 0.1.
    collector, iterates = collected(7)
    for name, variance in collector.statistics().variance.items():
        np.testing.assert_allclose(variance.numpy(), iterates[name].var(axis=0), rtol=1e-4)


def test_the_variance_of_iterates_that_hardly_move_does_not_cancel() -> None:
    model, collector = linear(), SWAGCollector(2)
    for index in range(4):
        for parameter in model.parameters():
            parameter.data.fill_(1.0 + index * 2.0**-20)
        collector.collect(model)
    expected = 1.25 * 2.0**-40  # of 0, 1, 2, 3: 1.25
    for variance in collector.statistics().variance.values():
        np.testing.assert_allclose(variance.numpy(), expected, rtol=0.2)


def test_the_deviations_are_the_last_ones_from_the_running_mean() -> None:
    collector, iterates = collected(7)
    for name, deviations in collector.statistics().deviations.items():
        running = [iterates[name][: i + 1].mean(axis=0) for i in range(7)]
        expected = np.stack([iterates[name][i] - running[i] for i in range(7 - RANK, 7)])
        np.testing.assert_allclose(deviations.numpy(), expected, atol=3e-6)


def test_as_many_iterates_as_the_rank_are_enough() -> None:
    assert collected(RANK)[0].statistics().rank == RANK


def test_fewer_iterates_than_the_rank_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="rank 3 needs as many iterates; 2 were collected"):
        collected(RANK - 1)[0].statistics()


@pytest.mark.parametrize("rank", [1, 0, -1, True, 2.0])
def test_a_collector_of_a_rank_below_two_is_refused(rank: int) -> None:
    with pytest.raises(lpe.InputError):
        SWAGCollector(rank)


def test_collecting_leaves_the_model_as_it_was() -> None:
    model = linear()
    for parameter in model.parameters():
        parameter.data.fill_(2.0)
    collector = SWAGCollector(2)
    for _ in range(2):
        collector.collect(model)
    assert all(bool((parameter == 2.0).all()) for parameter in model.parameters())


def test_statistics_do_not_change_when_more_is_collected() -> None:
    collector, _ = collected(RANK)
    statistics = collector.statistics()
    before = {key: tensor.clone() for key, tensor in statistics.tensors().items()}
    moved = linear()
    for parameter in moved.parameters():
        parameter.data.zero_()
    collector.collect(moved)
    assert all(torch.equal(tensor, before[key]) for key, tensor in statistics.tensors().items())


def test_buffers_are_not_collected() -> None:
    collector = SWAGCollector(2)
    model = nn.BatchNorm1d(3)
    for _ in range(2):
        collector.collect(model)
    assert set(collector.statistics().mean) == {"weight", "bias"}


def test_statistics_come_back_from_their_flat_dictionary() -> None:
    statistics = tiny_statistics()
    back = SWAGStatistics.from_tensors(statistics.tensors())
    for part in ("mean", "variance", "deviations"):
        for name, tensor in getattr(statistics, part).items():
            assert torch.equal(getattr(back, part)[name], tensor)


# Settings


def test_statistics_of_one_deviation_are_refused() -> None:
    statistics = tiny_statistics()
    one = replace(statistics, deviations={name: d[:1] for name, d in statistics.deviations.items()})
    with pytest.raises(lpe.InputError, match="2 deviations or more"):
        SWAGEnsemble(linear(), one, 2)


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_a_scale_that_is_no_finite_factor_is_refused(scale: float) -> None:
    with pytest.raises(lpe.InputError, match="scale"):
        SWAGEnsemble(linear(), tiny_statistics(), 2, scale=scale)


# Memory


class WithBatchNorm(nn.Module):
    """23 parameters, a batch norm's buffers (6 float32 and a counter), and other buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.skip_init(nn.Linear, 2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.utils.skip_init(nn.Linear, 3, 2)
        self.register_buffer("temperature", torch.ones(4))
        self.register_buffer("cache", torch.ones(100), persistent=False)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data.copy_(numbers(parameter.shape, 40 + seed))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.norm(self.first(inputs)).relu())


def batches_of(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(numbers((n, 2), 60 + n), torch.zeros(n, dtype=torch.int64)) for n in sizes]


def batch_norm_ensemble(size: int = 4) -> tuple[WithBatchNorm, SWAGEnsemble]:
    model = WithBatchNorm()
    names = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    statistics = SWAGStatistics(
        mean={name: numbers(shape, 70 + seed) for seed, (name, shape) in enumerate(names.items())},
        variance={name: torch.ones(shape) for name, shape in names.items()},
        deviations={
            name: numbers((2, *shape), 80 + seed) for seed, (name, shape) in enumerate(names.items())
        },
    )
    return model, SWAGEnsemble(model, statistics, size, batches=batches_of(4, 6))


def test_members_take_whole_models() -> None:
    assert sampler_of(tiny_statistics()).memory_bits(3) == 3 * 6 * 32


def test_the_generator_takes_mean_variance_and_deviations() -> None:
    assert sampler_of(tiny_statistics()).memory_bits(3, "generator") == (2 + RANK) * 6 * 32


def test_members_with_batch_norm_take_their_own_buffers_and_share_the_rest() -> None:
    _, ensemble = batch_norm_ensemble()
    assert ensemble.memory_bits(3) == 3 * (23 * 32 + 6 * 32 + 64) + 4 * 32


def test_the_generator_with_batch_norm_holds_every_buffer_once() -> None:
    _, ensemble = batch_norm_ensemble()
    assert ensemble.memory_bits(3, "generator") == (2 + 2) * 23 * 32 + 6 * 32 + 64 + 4 * 32


# Batch norm


def pooled_statistics(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of what the norm sees of all batches, from the net's weights."""
    seen = torch.cat([x for x, _ in batches]) @ net.first.weight.T + net.first.bias
    return seen.mean(dim=0), seen.var(dim=0)


def test_a_model_with_batch_norms_but_no_batches_is_refused() -> None:
    model, ensemble = batch_norm_ensemble()
    with pytest.raises(lpe.InputError, match="batch norms"):
        SWAGEnsemble(model, ensemble.statistics, 2)


def test_a_members_running_statistics_are_those_of_its_weights() -> None:
    _, ensemble = batch_norm_ensemble()
    for net in ensemble[:2]:
        mean, variance = pooled_statistics(net, batches_of(4, 6))
        torch.testing.assert_close(net.norm.running_mean, mean)
        torch.testing.assert_close(net.norm.running_var, variance)


def test_members_that_are_alive_together_keep_their_own_statistics() -> None:
    _, ensemble = batch_norm_ensemble()
    first = ensemble[0]
    before = first.norm.running_mean.clone()
    second = ensemble[1]
    assert torch.equal(first.norm.running_mean, before)
    assert not torch.equal(second.norm.running_mean, before)


def test_making_members_leaves_the_template_as_it_was() -> None:
    model, ensemble = batch_norm_ensemble()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(ensemble)
    ensemble.point()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_the_point_is_the_mean() -> None:
    _, ensemble = batch_norm_ensemble()
    point = dict(ensemble.point().named_parameters())
    assert all(torch.equal(point[name], mean) for name, mean in ensemble.statistics.mean.items())


def test_the_points_running_statistics_are_those_of_the_mean() -> None:
    _, ensemble = batch_norm_ensemble()
    point = ensemble.point()
    mean, variance = pooled_statistics(point, batches_of(4, 6))
    torch.testing.assert_close(point.norm.running_mean, mean)
    torch.testing.assert_close(point.norm.running_var, variance)


def test_changing_the_point_leaves_the_statistics_as_they_were() -> None:
    _, ensemble = batch_norm_ensemble()
    before = ensemble.statistics.mean["first.bias"].clone()
    ensemble.point().first.bias.data.add_(1.0)
    assert torch.equal(ensemble.statistics.mean["first.bias"], before)


def test_describe_gives_the_posterior_std_of_the_formula() -> None:
    statistics = tiny_statistics()
    text = sampler_of(statistics).describe()
    std = formula_covariance(statistics).diagonal().sqrt()
    rows = [line.split() for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["weight", "bias"]
    assert [float(row[2]) for row in rows] == pytest.approx(
        [float(std[:4].median()), float(std[4:].median())], rel=0.01
    )


@pytest.mark.parametrize(("rank", "iterates"), [(3, 2), (20, 0)])
def test_a_run_with_fewer_iterates_than_the_rank_is_refused_before_it(rank: int, iterates: int) -> None:
    with pytest.raises(
        lpe.InputError, match=f"SWAG of rank {rank} needs as many iterates; .* collect {iterates}:"
    ):
        SWAGCollector(rank).check(iterates)


def test_a_run_with_as_many_iterates_as_the_rank_is_enough() -> None:
    SWAGCollector(3).check(3)


def test_epochs_before_the_start_have_no_iterates() -> None:
    SWAGCollector(3, start=2).check(5)
    with pytest.raises(lpe.InputError, match="SWAG of rank 3 needs as many iterates; .* collect 2:"):
        SWAGCollector(3, start=2).check(4)


@pytest.mark.parametrize("counted", [False, True])
def test_iterates_are_collected_from_the_start_on(counted: bool) -> None:
    from_start, all_of_them, model = SWAGCollector(2, start=3), SWAGCollector(2), linear()
    for epoch in range(6):
        with torch.no_grad():
            model.weight.add_(epoch)
        from_start.collect(model, None if counted else epoch)
        if epoch >= 3:
            all_of_them.collect(model)
    assert from_start.collected == 3
    mean = all_of_them.statistics().mean["weight"]
    assert torch.equal(from_start.statistics().mean["weight"], mean)


class TwiceFC(nn.Module):
    """Two layers whose names differ by the component that wrappers put into names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.module = nn.ModuleDict({"fc": nn.Linear(2, 2)})


def test_two_tensors_whose_names_differ_by_module_have_statistics_each() -> None:
    net, collector = TwiceFC(), SWAGCollector(2)
    for _ in range(2):
        collector.collect(net)
    mean = collector.statistics().mean
    assert torch.allclose(mean["fc.weight"], net.fc.weight)
    assert torch.allclose(mean["module.fc.weight"], net.get_parameter("module.fc.weight"))
