"""Trainings side by side on resident images: the same steps as alone, and as before a kill."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lpe
from lpe.substrates.cifar_networks import ResNetShape, resnet_frn
from lpe.training.flat import FlatIVON, FlatLayout, FlatSGD, module_gradient
from lpe.training.resident import (
    CENTRE,
    PADDING,
    ResidentImages,
    ResidentTraining,
    crops,
    epoch_draws,
    predictions,
)

SIDE, IMAGES, BATCH = 8, 22, 4
TINY = ResNetShape(blocks=1, width=8, stages=2)  # of width 4, oneDNN 3.13 crashes on CPUs without AVX-512
NET = resnet_frn(TINY)
LAYOUT = FlatLayout.of(NET)


def drawn_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator)
    return images, torch.randint(10, (IMAGES,), generator=generator)


def training(seeds: Sequence[int], rule: str = "sgd", augment: bool = True) -> ResidentTraining:
    weights = torch.stack([LAYOUT.vector(dict(resnet_frn(TINY, seed).named_parameters())) for seed in seeds])
    generator = torch.Generator().manual_seed(1)
    rates = [lambda step: 0.1 / (1 + step)] * len(seeds)
    made: FlatSGD | FlatIVON
    if rule == "ivon":
        made = FlatIVON(weights, 100, rates, ess=20.0, generator=generator)
    else:
        many = len(seeds)
        made = FlatSGD(weights, 100, rates, [0.9] * many, [1e-3] * many)
    examples = torch.stack([torch.arange(IMAGES)] * len(seeds))
    data = ResidentImages.of(*drawn_images(), "cpu")
    gradient = module_gradient(NET)
    return ResidentTraining(data, examples, seeds, weights, gradient, made, BATCH, augment, generator)


def test_a_crop_is_that_of_the_padded_image_and_mirrored() -> None:
    images, labels = drawn_images()
    data = ResidentImages.of(images, labels, "cpu")
    shifts = 2 * PADDING + 1
    index, top, left, mirrored = (
        torch.tensor(each) for each in ([0, 5, 21, 5], [0, 8, 3, 4], [8, 0, 2, 4], [0, 1, 1, 0])
    )
    found = crops(data.pixels, index, 2 * (top * shifts + left) + mirrored, SIDE)
    padded = F.pad(images, [PADDING] * 4)
    for row in range(4):
        rows = slice(int(top[row]), int(top[row]) + SIDE)
        expected = padded[index[row], :, rows, int(left[row]) : int(left[row]) + SIDE]
        if mirrored[row]:
            expected = expected.flip(2)
        assert torch.equal(found[row, ..., :3], expected.permute(1, 2, 0))
    assert (found[..., 3] == 0).all()


def test_the_crop_in_the_centre_is_the_image() -> None:
    images, labels = drawn_images()
    data = ResidentImages.of(images, labels, "cpu")
    found = crops(data.pixels, torch.arange(IMAGES), torch.full((IMAGES,), CENTRE), SIDE)
    assert torch.equal(found[..., :3].permute(0, 3, 1, 2), images)


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    order, crop = epoch_draws(3, 0, 1000, True)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert 0 <= int(crop.min()) and int(crop.max()) < 2 * (2 * PADDING + 1) ** 2
    for other in (epoch_draws(3, 1, 1000, True), epoch_draws(4, 0, 1000, True)):
        assert not torch.equal(other[0], order) and not torch.equal(other[1], crop)


def test_without_augmentation_every_image_is_itself() -> None:
    order, crop = epoch_draws(3, 0, 50, False)
    assert torch.equal(order, epoch_draws(3, 0, 50, True)[0]) and (crop == CENTRE).all()


def test_a_step_is_the_rules_at_the_drawn_batch() -> None:
    made = training([7])
    weights, data = made.weights.clone(), made.data
    rule = FlatSGD(weights, 100, [lambda step: 0.1 / (1 + step)], [0.9], [1e-3])
    gradient = module_gradient(NET)
    losses = []
    for step in range(8):
        order, crop = epoch_draws(7, step // 5, IMAGES, True)
        chosen = slice(step % 5 * BATCH, step % 5 * BATCH + BATCH)
        images = crops(data.pixels, order[chosen], crop[chosen], SIDE)
        loss, slope = gradient(weights, images[None], data.labels[order[chosen]][None])
        rule.update(weights, slope, torch.tensor([step]))
        losses.append(float(loss))
    assert made.steps_per_epoch == 5
    assert made.advance(8) == [[pytest.approx(sum(losses[:5]) / 5)]]
    assert torch.equal(made.weights, weights)


def test_trainings_side_by_side_are_those_alone() -> None:
    together = training([0, 1, 2])
    together.advance(7)
    for row in range(3):
        alone = training([row])
        alone.advance(7)
        torch.testing.assert_close(together.weights[row], alone.weights[0])


@pytest.mark.parametrize("rule", ["sgd", "ivon"])
@pytest.mark.parametrize("killed", [0, 3, 5, 12])
def test_killed_and_resumed_ends_with_the_same_bytes(rule: str, killed: int) -> None:
    whole = training([0, 1], rule)
    whole.advance(13)
    first = training([0, 1], rule)
    first.advance(killed)
    state = first.state()
    first.advance(1)  # What comes after the state was written is lost.
    resumed = training([0, 1], rule)
    resumed.restore(state)
    resumed.advance(13 - killed)
    expected, found = whole.state(), resumed.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_that_forgets_the_rules_state_would_be_seen() -> None:
    first = training([0])
    first.advance(3)
    state = first.state()
    state["rule/buffer"].zero_()
    resumed, whole = training([0]), training([0])
    resumed.restore(state)
    resumed.advance(1)
    whole.advance(4)
    assert not torch.equal(resumed.weights, whole.weights)


def test_a_state_of_other_trainings_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="not of these trainings"):
        training([0, 1]).restore(training([0]).state())
    with pytest.raises(lpe.InputError, match="rule/buffer"):
        training([0]).restore(training([0], "ivon").state())


def test_a_lost_training_is_told_and_leaves_the_others_alone() -> None:
    made, alone = training([0, 1]), training([1])
    made.weights[0, 0] = torch.nan
    ((lost, kept),) = made.advance(5)
    assert lost != lost and [[kept]] == [pytest.approx(each) for each in alone.advance(5)]


def test_a_batch_larger_than_the_examples_is_refused() -> None:
    made = training([0])
    examples = torch.arange(3)[None]
    with pytest.raises(lpe.InputError, match="1 to 3 examples"):
        ResidentTraining(made.data, examples, [0], made.weights, module_gradient(NET), made.rule, 4)


def test_predictions_do_not_depend_on_the_batch() -> None:
    images, _ = drawn_images()
    whole = predictions(NET, images)
    torch.testing.assert_close(predictions(NET, images, 5), whole)
    torch.testing.assert_close(whole.logsumexp(1), torch.zeros(IMAGES), atol=1e-6, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_is_the_uncaptured_one() -> None:
    ends = []
    for capture in (True, False):
        weights = torch.stack([LAYOUT.vector(dict(resnet_frn(TINY, 0).named_parameters()))]).cuda()
        generator = torch.Generator("cuda").manual_seed(1)
        rule = FlatIVON(weights, 100, [lambda step: 0.1], ess=20.0, generator=generator)
        data = ResidentImages.of(*drawn_images(), "cuda")
        gradient = module_gradient(resnet_frn(TINY).cuda())
        examples = torch.arange(IMAGES)[None]
        made = ResidentTraining(data, examples, [0], weights, gradient, rule, BATCH, True, generator, capture)
        made.advance(12)
        ends.append(made.weights)
    torch.testing.assert_close(*ends)
