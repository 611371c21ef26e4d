"""The training loop: its steps, its accounts, its random numbers and its refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.training.loop import TrainingRun, train


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear() -> nn.Linear:
    """Three inputs, two classes, weights from a seed, no bias."""
    model = nn.utils.skip_init(nn.Linear, 3, 2, bias=False)
    model.weight.data.copy_(numbers((2, 3), 0))
    return model


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Two batches an epoch, of 4 and 5 examples, other ones in every epoch."""
    return [
        (numbers((n, 3), 100 * epoch + n), torch.arange(n) % 2)  # fmt: skip
        for n in (4, 5)
    ]


def gradient(weight: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of the mean cross-entropy: (softmax − one-hot)ᵀ x / n, float64 [2, 3]."""
    x = inputs.double()
    residual = (x @ weight.double().T).softmax(dim=1) - nn.functional.one_hot(targets, 2)
    return residual.T @ x / len(x)


def run_sgd(model: nn.Module, epochs: int = 2, **settings: Any) -> TrainingRun:
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)
    arguments = {"learning_rate": lambda step: 0.1, "seed": 0, **settings}
    return train(model, arguments.pop("batches", batches), optimizer, epochs=epochs, **arguments)


# The steps


def test_two_steps_of_sgd_are_those_of_the_formula() -> None:
    model = linear()
    run_sgd(model, epochs=1)
    expected = numbers((2, 3), 0).double()
    for inputs, targets in batches(0):
        expected = expected - 0.1 * gradient(expected, inputs, targets)
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


class Recording(torch.optim.SGD):
    """SGD that keeps the learning rates of its groups at every step."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.rates: list[list[float]] = []

    def step(self, closure: Any = None) -> None:
        self.rates.append([group["lr"] for group in self.param_groups])
        super().step(closure)


def test_every_groups_learning_rate_is_set_before_each_step() -> None:
    model = nn.Linear(3, 2)
    optimizer = Recording([{"params": [model.weight]}, {"params": [model.bias], "lr": 7.0}], lr=5.0)
    train(model, batches, optimizer, lambda step: 0.1 * (step + 1), epochs=2, seed=0)
    assert optimizer.rates == [[pytest.approx(0.1 * k)] * 2 for k in (1, 2, 3, 4)]


def test_a_groups_own_factor_multiplies_its_learning_rate() -> None:
    model = nn.Linear(3, 2)
    optimizer = Recording([{"params": [model.weight]}, {"params": [model.bias], "lr_factor": 0.5}], lr=5.0)
    train(model, batches, optimizer, lambda step: 0.1 * (step + 1), epochs=1, seed=0)
    assert optimizer.rates == [[pytest.approx(0.1 * k), pytest.approx(0.05 * k)] for k in (1, 2)]


def one_step(clip_norm: float | None, factor: float) -> tuple[Tensor, Tensor]:
    """The step of SGD at learning rate 1 on one batch, its inputs times a factor, and the gradient there."""
    model = linear()
    (inputs, targets) = batches(0)[0]
    start = model.weight.detach().clone()
    run_sgd(
        model,
        epochs=1,
        batches=lambda epoch: [(factor * inputs, targets)],
        learning_rate=lambda step: 1.0,
        clip_norm=clip_norm,
    )
    return (start - model.weight.detach()).double(), gradient(start, factor * inputs, targets)


def test_a_long_gradient_is_clipped_to_the_norm() -> None:
    step, gradient_there = one_step(clip_norm=0.01, factor=10.0)
    assert gradient_there.norm() > 1
    # Weights of size 1 in float32 give the step to 2⁻²⁴ an element; torch divides by the norm + 1e-6.
    torch.testing.assert_close(step, 0.01 * gradient_there / gradient_there.norm(), rtol=1e-3, atol=1e-6)


def test_a_short_gradient_is_not_clipped() -> None:
    step, gradient_there = one_step(clip_norm=100.0, factor=1.0)
    torch.testing.assert_close(step, gradient_there, rtol=1e-4, atol=1e-6)


def test_without_a_norm_a_long_gradient_is_not_clipped() -> None:
    step, gradient_there = one_step(clip_norm=None, factor=10.0)
    torch.testing.assert_close(step, gradient_there, rtol=1e-4, atol=1e-5)


# The sampled gradient


class SampledSGD(torch.optim.SGD):
    """SGD that, as IVON does, samples weights: here the sample is the mean + 1."""

    entered = 0

    @contextmanager
    def sampled_params(self, train: bool = False) -> Iterator[None]:
        assert train
        parameters = [p for group in self.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.data = parameter.data + torch.eye(2, 3)
        yield
        for parameter in parameters:
            parameter.data = parameter.data - torch.eye(2, 3)
        self.entered += 1


def check_the_gradient_is_the_samples(optimizer_class: type[torch.optim.SGD]) -> None:
    """One step at learning rate 1, of the gradient at the mean + eye: float32's rounding is allowed."""
    model = linear()
    batch = batches(0)[0]
    start = model.weight.detach().clone()
    optimizer = optimizer_class(model.parameters(), lr=1.0)
    train(model, lambda epoch: [batch], optimizer, lambda step: 1.0, epochs=1, seed=0)
    expected = start.double() - gradient(start + torch.eye(2, 3), *batch)
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_an_optimiser_of_another_networks_parameters_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(lpe.InputError, match="the SGD has none of the model's parameters"):
        train(nn.Linear(2, 2), [(torch.ones(1, 2), torch.tensor([0]))], optimizer, 0.1, epochs=1)


def test_an_optimiser_that_samples_takes_its_gradient_at_the_sample() -> None:
    check_the_gradient_is_the_samples(SampledSGD)


def test_a_gradient_taken_at_the_mean_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_the_gradient_is_the_samples(torch.optim.SGD)


def test_every_step_has_a_sample_of_its_own() -> None:
    model = linear()
    optimizer = SampledSGD(model.parameters(), lr=0.1)
    train(model, batches, optimizer, lambda step: 0.1, epochs=2, seed=0)
    assert optimizer.entered == 4


def test_clipping_an_optimiser_that_samples_is_refused() -> None:
    model = linear()
    optimizer = SampledSGD(model.parameters(), lr=0.1)
    with pytest.raises(lpe.InputError, match="clip_norm"):
        train(model, batches, optimizer, lambda step: 0.1, epochs=1, seed=0, clip_norm=1.0)


# The accounts


def test_backward_passes_are_batches_times_epochs() -> None:
    assert run_sgd(linear(), epochs=3).backward_passes == 6


def test_the_curve_has_the_mean_of_each_epochs_losses() -> None:
    curve = run_sgd(linear(), learning_rate=lambda step: 0.0).curve
    for epoch, row in enumerate(curve):
        losses = [nn.functional.cross_entropy(linear()(x), y).item() for x, y in batches(epoch)]
        assert row["loss"] == pytest.approx(sum(losses) / 2)


def test_the_curve_has_each_epochs_last_learning_rate() -> None:
    curve = run_sgd(linear(), learning_rate=lambda step: 0.01 * step).curve
    assert [(row["epoch"], row["learning_rate"]) for row in curve] == [(0, 0.01), (1, pytest.approx(0.03))]


def test_every_row_of_the_curve_is_reported() -> None:
    reported: list[Any] = []
    curve = run_sgd(linear(), report=reported.append).curve
    assert reported == curve


def test_batches_are_asked_for_by_epoch() -> None:
    asked = []

    def remembered(epoch: int) -> list[tuple[Tensor, Tensor]]:
        asked.append(epoch)
        return batches(epoch)

    run_sgd(linear(), epochs=3, batches=remembered)
    assert asked == [0, 1, 2]


# Modes


def test_after_epoch_sees_eval_mode() -> None:
    model = linear()
    seen = []
    run_sgd(model, after_epoch=lambda epoch: seen.append(model.training))
    assert seen == [False, False]


def test_after_epoch_is_called_after_each_epochs_steps() -> None:
    model = linear()
    seen: list[tuple[int, Tensor]] = []
    run_sgd(model, after_epoch=lambda epoch: seen.append((epoch, model.weight.detach().clone())))
    shorter = linear()
    run_sgd(shorter, epochs=1)
    assert [epoch for epoch, _ in seen] == [0, 1]
    assert torch.equal(seen[0][1], shorter.weight) and torch.equal(seen[1][1], model.weight)


def test_the_gradient_is_taken_in_train_mode_in_every_epoch() -> None:
    model = linear()
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    run_sgd(model.eval())
    assert seen == [True] * 4


def test_the_model_is_left_in_eval_mode() -> None:
    model = linear()
    run_sgd(model)
    assert not model.training


# Random numbers


def with_dropout(seed: int) -> Tensor:
    model = nn.Sequential(nn.Dropout(0.5), linear())
    run_sgd(model, seed=seed)
    return model[1].weight.detach()


def test_the_same_seed_trains_the_same_weights() -> None:
    first = with_dropout(3)
    torch.rand(1)  # whatever the global generator did in between
    assert torch.equal(with_dropout(3), first)


def test_another_seed_trains_other_weights() -> None:
    assert not torch.equal(with_dropout(4), with_dropout(3))


def test_the_global_generator_is_as_before() -> None:
    before = torch.get_rng_state()
    with_dropout(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_on_the_cpu_does_not_seed_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    run_sgd(linear())
    assert seeded == []


def test_the_global_generator_is_as_before_also_after_a_refusal() -> None:
    model = nn.Sequential(nn.Dropout(0.5), linear())
    before = torch.get_rng_state()
    with pytest.raises(lpe.InputError):
        run_sgd(model, learning_rate=lambda step: math.inf)
    assert torch.equal(torch.get_rng_state(), before)


# Refusals


def spoiled(value: float) -> Callable[[int], list[tuple[Tensor, Tensor]]]:
    """Batches whose first of the second epoch, step 2, holds a value."""
    return lambda epoch: [
        (torch.full_like(inputs, value) if epoch == 1 and index == 0 else inputs, targets)
        for index, (inputs, targets) in enumerate(batches(epoch))
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_naming_the_step(value: float) -> None:
    with pytest.raises(lpe.InputError, match=r"nan at step 2 \(learning rate 0.1\)"):
        run_sgd(linear(), batches=spoiled(value))


def test_no_step_is_taken_from_a_loss_that_is_not_finite() -> None:
    model = linear()
    with pytest.raises(lpe.InputError):
        run_sgd(model, batches=spoiled(math.nan))
    shorter = linear()
    run_sgd(shorter, epochs=1)
    assert torch.equal(model.weight, shorter.weight)


def test_an_epoch_without_batches_is_refused_naming_the_epoch() -> None:
    with pytest.raises(lpe.InputError, match="epoch 1 has no batches"):
        run_sgd(linear(), batches=lambda epoch: batches(epoch) if epoch == 0 else [])


# What a user brings


def test_a_list_of_batches_is_read_anew_in_each_epoch() -> None:
    by_list, by_function = linear(), linear()
    run_sgd(by_list, batches=batches(0))
    run_sgd(by_function, batches=lambda epoch: batches(0))
    assert torch.equal(by_list.weight, by_function.weight)


def test_batches_that_can_be_read_only_once_are_refused_in_the_second_epoch() -> None:
    with pytest.raises(lpe.InputError, match="epoch 1 has no batches"):
        run_sgd(linear(), batches=iter(batches(0)))


def test_a_number_is_the_learning_rate_of_every_step() -> None:
    by_number, by_function = linear(), linear()
    run_sgd(by_number, learning_rate=0.1)
    run_sgd(by_function)
    assert torch.equal(by_number.weight, by_function.weight)


@pytest.mark.parametrize("rate", [math.nan, -0.1, "fast", True, None])
def test_a_learning_rate_that_is_no_number_from_0_on_is_refused(rate: Any) -> None:
    with pytest.raises(lpe.InputError, match="learning_rate must be a finite number"):
        run_sgd(linear(), learning_rate=rate)


@pytest.mark.parametrize("epochs", [-1, 2.0, True, None])
def test_epochs_that_are_no_number_are_refused(epochs: Any) -> None:
    with pytest.raises(lpe.InputError, match="epochs must be an integer"):
        run_sgd(linear(), epochs=epochs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_has_gradients_whatever_the_callers_mode(mode: Callable[[], Any]) -> None:
    model, outside = linear(), linear()
    with mode():
        run_sgd(model)
    run_sgd(outside)
    assert torch.equal(model.weight, outside.weight)


def test_another_loss_takes_the_place_of_the_cross_entropy() -> None:
    model = linear()
    run_sgd(model, epochs=1, batches=[batches(0)[0]], loss=lambda inputs, targets: model(inputs).sum())
    expected = numbers((2, 3), 0) - 0.1 * batches(0)[0][0].sum(dim=0)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_other_numbers_of_targets_than_of_logits_are_refused() -> None:
    with pytest.raises(lpe.InputError, match=r"logits of shape \[4, 2\] for 3 targets"):
        run_sgd(linear(), batches=[(numbers((4, 3), 0), torch.zeros(3, dtype=torch.int64))])


class Collecting:
    """Says what it was asked; of a run of 3 epochs, that it does not suit."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def check(self, epochs: int) -> None:
        self.asked.append(epochs)
        if epochs == 3:
            raise lpe.InputError("three epochs do not suit")

    def collect(self, model: nn.Module, epoch: int | None = None) -> None:
        self.asked.append((epoch, model.training, model.weight.detach().clone()))


def test_a_collector_is_asked_before_training_and_collects_after_each_epoch() -> None:
    model, collector = linear(), Collecting()
    run_sgd(model, epochs=2, collector=collector)
    assert collector.asked[0] == 2
    assert [asked[:2] for asked in collector.asked[1:]] == [(0, False), (1, False)]
    assert torch.equal(collector.asked[-1][2], model.weight)


def test_a_collector_that_the_epochs_do_not_suit_stops_the_run_before_it_starts() -> None:
    model = linear()
    with pytest.raises(lpe.InputError, match="three epochs do not suit"):
        run_sgd(model, epochs=3, collector=Collecting())
    assert torch.equal(model.weight, linear().weight)


def test_seeds_that_are_one_in_32_bits_train_other_weights() -> None:
    assert not torch.equal(with_dropout(seed=1), with_dropout(seed=1 + 2**32))
