"""Cyclical SGLD: when a cycle explores and when it samples, from the run to the ensemble."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.cyclical_sgld import CyclicalSGLDCollector, SamplingStage, StageCollector
from lpe.training.loop import train
from lpe.training.schedules import cyclical_cosine
from lpe.training.sgld import SGLD

INPUTS = torch.linspace(-1, 1, 12).view(4, 3)
BATCHES = [(INPUTS[:2], torch.tensor([0, 1])), (INPUTS[2:], torch.tensor([1, 0]))]
STEPS = len(BATCHES)
"""An epoch."""


def network() -> nn.Linear:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3) / 6)
        model.bias.zero_()
    return model


def trained(epochs: int, collector: CyclicalSGLDCollector, temperature: float = 1.0) -> list[Tensor]:
    """The weights at the end of each epoch."""
    model, states = network(), []

    def after_epoch(epoch: int) -> None:
        collector.collect(model, epoch)
        states.append(model.weight.detach().clone())

    noise = collector.noise_steps(STEPS)
    optimizer = SGLD(model.parameters(), 1.0, len(INPUTS), temperature, noise=noise)
    schedule = cyclical_cosine(0.5, STEPS * collector.epochs_per_cycle)
    train(model, lambda epoch: BATCHES, optimizer, schedule, epochs, seed=0, after_epoch=after_epoch)
    return states


def test_a_sample_is_kept_at_the_end_of_each_of_a_cycles_last_epochs() -> None:
    collector = CyclicalSGLDCollector(5, 3)
    assert [epoch for epoch in range(10) if collector.keeps(epoch)] == [2, 3, 4, 7, 8, 9]


def test_noise_is_drawn_in_all_steps_of_those_epochs_and_in_no_other() -> None:
    noise = CyclicalSGLDCollector(3, 2).noise_steps(4)
    # Epochs of 4 steps: the first of each cycle of 3 explores.
    assert [noise(step) for step in range(24)] == ([False] * 4 + [True] * 8) * 2


def test_samples_in_every_epoch_draw_noise_in_every_step() -> None:
    noise = CyclicalSGLDCollector(2, 2).noise_steps(3)
    assert all(noise(step) for step in range(12))


def test_a_run_leaves_a_member_an_epoch_of_the_sampling_stages() -> None:
    collector = CyclicalSGLDCollector(3, 2)
    states = trained(6, collector)
    ensemble = lpe.CyclicalSGLDEnsemble(network(), collector.samples)
    assert len(ensemble) == 4
    for member, epoch in zip(ensemble, (1, 2, 4, 5), strict=True):
        assert torch.equal(member.weight, states[epoch])


def test_exploration_is_gradient_descent_and_sampling_is_not() -> None:
    cold = trained(3, CyclicalSGLDCollector(3, 1), temperature=0.0)
    warm = trained(3, CyclicalSGLDCollector(3, 1))
    assert [torch.equal(a, b) for a, b in zip(cold, warm, strict=True)] == [True, True, False]


@pytest.mark.parametrize("samples", [0, -1, 4, True, 1.0])
def test_more_or_fewer_samples_than_a_cycle_has_epochs_are_refused_before_training(samples: Any) -> None:
    with pytest.raises(lpe.InputError, match=f"samples_per_cycle must be .*not {samples}"):
        CyclicalSGLDCollector(3, samples).check(9)


@pytest.mark.parametrize("steps", [0, -1])
def test_an_epoch_without_steps_is_refused(steps: int) -> None:
    with pytest.raises(lpe.InputError, match=f"steps_per_epoch must be a positive integer, not {steps}"):
        CyclicalSGLDCollector(3, 1).noise_steps(steps)


# A sampling stage counted in steps


def test_a_stage_draws_noise_in_the_last_steps_of_every_cycle() -> None:
    stage = SamplingStage(steps_per_cycle=6, steps=4, samples=2, spacing=2)
    assert [step for step in range(12) if stage.noise(step)] == [2, 3, 4, 5, 8, 9, 10, 11]


def test_a_stages_samples_end_with_it_and_lie_the_spacing_apart() -> None:
    stage = SamplingStage(steps_per_cycle=10, steps=8, samples=3, spacing=3)
    assert [step for step in range(20) if stage.keeps(step)] == [3, 6, 9, 13, 16, 19]


def test_a_stage_counts_the_noisy_steps_before_each_sample() -> None:
    stage = SamplingStage(steps_per_cycle=10, steps=8, samples=3, spacing=3)
    kept = [step for step in range(10) if stage.keeps(step)]
    noisy = [sum(map(stage.noise, range(step + 1))) for step in kept]
    assert stage.noisy_steps == noisy == [2, 5, 8]


def test_training_leaves_a_stages_samples_as_the_weights_were_after_those_steps() -> None:
    stage = SamplingStage(steps_per_cycle=5, steps=4, samples=2, spacing=3)
    model, collector, states = network(), StageCollector(stage), []
    optimizer = SGLD(model.parameters(), 0.5, len(INPUTS), noise=stage.noise)
    optimizer.register_step_post_hook(lambda *_: states.append(model.weight.detach().clone()))
    train(model, lambda epoch: BATCHES, optimizer, lambda step: 0.5, 5, seed=0, collector=collector)
    assert collector.training_budget == [2, 5, 7, 10]
    assert len(states) == 10
    for sample, cost in zip(collector.samples, collector.training_budget, strict=True):
        assert torch.equal(sample["weight"], states[cost - 1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 11}, "a sampling stage of 11 steps is longer than its cycle of 10"),
        ({"spacing": 4}, "3 samples 4 steps apart do not fit into 8 steps"),
        ({"samples": 0}, "samples must be a positive integer, not 0"),
        ({"spacing": 1.5}, "spacing must be a positive integer, not 1.5"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    right: dict[str, Any] = {"steps_per_cycle": 10, "steps": 8, "samples": 3, "spacing": 3}
    with pytest.raises(lpe.InputError, match=said):
        SamplingStage(**{**right, **wrong})
