"""Digits: the splits, the network's start, augmentation, the order of batches, and the auxiliary tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lpe
from lpe.number_systems.streams import generator
from lpe.substrates import digits

IMAGES = 1797
SIGMAS = 5.0
"""Standard errors that a statistic may be off; draws are keyed, so a test passes or fails for good."""

# The splits


@pytest.mark.parametrize("seed", range(7))
def test_the_three_splits_are_disjoint_and_cover_every_image(seed: int) -> None:
    indices = np.concatenate(digits.split_indices(seed))
    assert sorted(indices.tolist()) == list(range(IMAGES))


def test_a_fifth_is_for_validation_and_a_fifth_for_testing() -> None:
    assert [len(part) for part in digits.split_indices(0)] == [1077, 360, 360]


@pytest.mark.parametrize("first", [0, 5, 40])
def test_the_five_seeds_of_a_permutation_test_every_image_once(first: int) -> None:
    tested = np.concatenate([digits.split_indices(first + fold)[2] for fold in range(5)])
    assert sorted(tested.tolist()) == list(range(IMAGES))


def test_the_fifth_seed_permutes_anew() -> None:
    # Two folds of a fifth share about a fifth of their images: 72 of 360, and all of them if not permuted.
    first, again = digits.split_indices(0)[2], digits.split_indices(5)[2]
    assert len(set(first.tolist()) & set(again.tolist())) < 120


def test_a_split_is_the_same_when_asked_for_again() -> None:
    for part, again in zip(digits.split_indices(3), digits.split_indices(3), strict=True):
        assert np.array_equal(part, again)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="-1"):
        digits.split_indices(-1)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_splits_images_are_the_scans_of_its_indices_standardised(part: str) -> None:
    index = dict(zip(("train", "validation", "test"), digits.split_indices(2), strict=True))[part]
    scans = load_digits().images[index][:, None]
    images, _ = getattr(digits.load(2), part)
    np.testing.assert_allclose(images.numpy(), (scans / 16 - digits.MEAN) / digits.STD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_splits_labels_are_those_of_its_indices(part: str) -> None:
    index = dict(zip(("train", "validation", "test"), digits.split_indices(2), strict=True))[part]
    _, labels = getattr(digits.load(2), part)
    assert labels.tolist() == load_digits().target[index].tolist()


def test_the_mean_and_std_are_those_of_all_pixels() -> None:
    pixels = load_digits().data / 16
    assert (digits.MEAN, digits.STD) == pytest.approx((pixels.mean(), pixels.std()), abs=0.001)


def test_an_empty_pixel_is_the_background() -> None:
    images, _ = digits.load(0).train
    assert float(images.min()) == pytest.approx(digits.BACKGROUND, rel=1e-6)


# The network

SHAPE = digits.DigitsNetwork(patch=2, width=16, depth=1, heads=2, mlp_ratio=2.0, position_std=0.5)


def weights(seed: int) -> dict[str, Tensor]:
    return digits.network(SHAPE, digits.CLASSES, seed).state_dict()


def test_a_seed_makes_the_same_network_whatever_was_drawn_before() -> None:
    first = weights(3)
    torch.rand(1)
    again = weights(3)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_another_seed_makes_another_network() -> None:
    one, other = weights(3), weights(4)
    assert not any(torch.equal(one[name], other[name]) for name in one if one[name].std() > 0)


def test_making_a_network_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    weights(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_gives_logits_of_as_many_classes_as_asked_for() -> None:
    net = digits.network(SHAPE, 7, seed=0)
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 7)


def check_positional_std(embedding: Tensor) -> None:
    """The standard error of the std of n normal draws is std/√(2n)."""
    allowed = SIGMAS * SHAPE.position_std / math.sqrt(2 * embedding.numel())
    assert abs(float(embedding.std()) - SHAPE.position_std) <= allowed


def test_the_positional_embedding_starts_at_its_std() -> None:
    check_positional_std(weights(0)["pos_embed"])


def test_a_positional_embedding_at_timms_std_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_positional_std(0.02 / SHAPE.position_std * weights(0)["pos_embed"])


# Augmentation


def some_images(n: int) -> Tensor:
    return digits.load(0).train[0][:n]


def slowly_jittered(images: Tensor, jitter: digits.Jitter, seed: int) -> np.ndarray:
    """Pixel by pixel, in pixels from the middle: rotate, scale, shift, then interpolate four neighbours."""
    n = len(images)
    result = [images[:, 0].double().numpy()]
    for copy in range(1, jitter.copies):
        draws = generator("digits jitter", seed, "", copy)
        unit = (2 * torch.rand((4, n), generator=draws).double() - 1).numpy()
        moved = np.full((n, 8, 8), digits.BACKGROUND)
        for image in range(n):
            angle = math.radians(jitter.degrees) * unit[0, image]
            size = 1 + jitter.scaling * unit[1, image]
            for row in range(8):
                for column in range(8):
                    x, y = column - 3.5, row - 3.5
                    from_x = (
                        size * (math.cos(angle) * x - math.sin(angle) * y) + jitter.pixels * unit[2, image]
                    )
                    from_y = (
                        size * (math.sin(angle) * x + math.cos(angle) * y) + jitter.pixels * unit[3, image]
                    )
                    left, top = math.floor(from_x + 3.5), math.floor(from_y + 3.5)
                    right_share, low_share = from_x + 3.5 - left, from_y + 3.5 - top
                    value = 0.0
                    for r, row_share in ((top, 1 - low_share), (top + 1, low_share)):
                        for c, column_share in ((left, 1 - right_share), (left + 1, right_share)):
                            inside = 0 <= r < 8 and 0 <= c < 8
                            pixel = float(images[image, 0, r, c]) if inside else digits.BACKGROUND
                            value += row_share * column_share * pixel
                    moved[image, row, column] = value
        result.append(moved)
    return np.stack(result)[:, :, None]


def test_copies_are_those_of_a_slow_affine_map_with_background_moving_in() -> None:
    # float32 coordinates of up to 8 pixels are known to about 1e-6; neighbouring pixels differ by up to 2.7.
    jitter = digits.Jitter(copies=3, degrees=15.0, scaling=0.2, pixels=1.5)
    got = digits.jittered(some_images(4), jitter, seed=5)
    np.testing.assert_allclose(got.numpy(), slowly_jittered(some_images(4), jitter, 5), atol=2e-5)


def test_the_first_copy_is_the_image_itself() -> None:
    jitter = digits.Jitter(copies=2, degrees=15.0, scaling=0.2, pixels=1.5)
    assert torch.equal(digits.jittered(some_images(4), jitter, 5)[0], some_images(4))


def test_jitter_is_the_same_when_asked_for_again() -> None:
    jitter = digits.Jitter(copies=3, degrees=15.0, scaling=0.2, pixels=1.5)
    one, again = (digits.jittered(some_images(4), jitter, 5) for _ in range(2))
    assert torch.equal(one, again)


def test_seeds_jitter_differently() -> None:
    jitter = digits.Jitter(copies=2, degrees=15.0, scaling=0.2, pixels=1.5)
    one, other = (digits.jittered(some_images(4), jitter, seed) for seed in (5, 6))
    assert not any(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def test_copies_are_jittered_differently() -> None:
    _, one, other = digits.jittered(some_images(4), digits.Jitter(3, 15.0, 0.2, 1.5), 5)
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def shifts_of(pixels: float, n: int = 2000) -> Tensor:
    """How far a shift moves a dot's centre of mass, which interpolation keeps, in pixels: float64 [n, 2]."""
    images = torch.full((n, 1, 8, 8), digits.BACKGROUND)
    images[:, :, 3, 4] = 1.0
    moved = digits.jittered(images, digits.Jitter(2, 0.0, 0.0, pixels), seed=1)[1, :, 0].double()
    mass = (moved - digits.BACKGROUND) / (1.0 - digits.BACKGROUND)
    place = torch.arange(8).double()
    return torch.stack([mass.sum(dim=1) @ place - 4, mass.sum(dim=2) @ place - 3], dim=1)


def check_shifts_are_uniform_within_a_pixel(shifts: Tensor) -> None:
    """On −1 … 1 the mean is 0 ± √(1/3n), the mean square 1/3 ± √(4/45n), the mean product 0 ± 1/(3√n)."""
    n = len(shifts)
    assert shifts.abs().max() <= 1 + 1e-5
    assert shifts.mean(dim=0).abs().max() <= SIGMAS * math.sqrt(1 / 3 / n)
    assert (shifts.square().mean(dim=0) - 1 / 3).abs().max() <= SIGMAS * math.sqrt(4 / 45 / n)
    assert abs(float((shifts[:, 0] * shifts[:, 1]).mean())) <= SIGMAS / (3 * math.sqrt(n))


def test_shifts_are_uniform_within_the_largest() -> None:
    check_shifts_are_uniform_within_a_pixel(shifts_of(1.0))


def test_shifts_of_half_the_size_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_shifts_are_uniform_within_a_pixel(shifts_of(0.5))


def test_one_shift_for_both_axes_is_caught() -> None:
    shifts = shifts_of(1.0)
    with pytest.raises(AssertionError):
        check_shifts_are_uniform_within_a_pixel(torch.stack([shifts[:, 0], shifts[:, 0]], dim=1))


# Batches

COPIES = 4
JITTER = digits.Jitter(COPIES, 10.0, 0.1, 1.0)
STILL = digits.Jitter(1, 0.0, 0.0, 0.0)
N = 1000


def numbered() -> digits.Split:
    """Training images whose labels are their numbers."""
    return some_images(N), torch.arange(N)


def epoch_of(seed: int = 0, epoch: int = 0, jitter: digits.Jitter = JITTER, size: int = 64) -> digits.Split:
    images, labels = zip(*digits.batches(numbered(), size, seed, jitter)(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_an_epoch_is_the_same_when_asked_for_again() -> None:
    batches = digits.batches(numbered(), 64, 0, JITTER)
    for (x, y), (x_again, y_again) in zip(batches(2), batches(2), strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)


def test_an_epoch_does_not_depend_on_which_were_asked_for_before() -> None:
    batches = digits.batches(numbered(), 64, 0, JITTER)
    for epoch in (5, 0):
        list(batches(epoch))
    assert torch.equal(torch.cat([x for x, _ in batches(2)]), epoch_of(epoch=2)[0])


def test_epochs_have_different_orders() -> None:
    assert not torch.equal(epoch_of(epoch=0)[1], epoch_of(epoch=1)[1])


def test_seeds_have_different_orders() -> None:
    assert not torch.equal(epoch_of(seed=0)[1], epoch_of(seed=1)[1])


def test_no_image_comes_twice_in_an_epoch() -> None:
    _, labels = epoch_of()
    assert len(labels.unique()) == len(labels)


def test_the_last_smaller_batch_is_left_out() -> None:
    batches = digits.batches(numbered(), 64, 0, STILL)
    assert [len(y) for _, y in batches(0)] == [64] * (N // 64)


def test_a_batch_of_every_image_is_allowed() -> None:
    assert sorted(epoch_of(size=N)[1].tolist()) == list(range(N))


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="1 to 1000 images, as many as there are, not 1001"):
        digits.batches(numbered(), N + 1, 0, STILL)


def test_images_keep_their_labels() -> None:
    images, labels = epoch_of(jitter=STILL)
    assert torch.equal(images, numbered()[0][labels])


def test_batches_leave_the_global_generator_alone() -> None:
    split = numbered()
    before = torch.get_rng_state()
    list(digits.batches(split, 64, 0, JITTER)(0))
    assert torch.equal(torch.get_rng_state(), before)


def copies_taken(images: Tensor, labels: Tensor) -> Tensor:
    """Which of its copies each image of an epoch is: bool [COPIES, n]."""
    bank = digits.jittered(numbered()[0], JITTER, 0)
    return (bank[:, labels] == images).flatten(2).all(dim=2)


def test_every_image_is_one_of_its_copies() -> None:
    assert bool((copies_taken(*epoch_of()).sum(dim=0) == 1).all())


def check_copies_are_equally_likely(images: Tensor, labels: Tensor) -> None:
    """A share of 1/COPIES of n images has the standard error √(p (1 − p) / n)."""
    shares = copies_taken(images, labels).double().mean(dim=1)
    p = 1 / COPIES
    assert (shares - p).abs().max() <= SIGMAS * math.sqrt(p * (1 - p) / len(labels))


def test_copies_are_equally_likely() -> None:
    check_copies_are_equally_likely(*epoch_of())


def test_a_copy_that_is_never_taken_is_caught() -> None:
    # The bank of three copies begins as that of four: the fourth is never taken.
    with pytest.raises(AssertionError):
        check_copies_are_equally_likely(*epoch_of(jitter=digits.Jitter(COPIES - 1, 10.0, 0.1, 1.0)))


# Auxiliary tasks


def test_every_instance_is_a_class_of_its_own() -> None:
    split = digits.load(0).train
    images, labels = digits.instances(split)
    assert torch.equal(images, split[0])
    assert labels.tolist() == list(range(len(split[0])))


@pytest.mark.parametrize("turns", range(4))
def test_rotations_are_labelled_by_their_quarter_turns(turns: int) -> None:
    split = digits.load(0).train
    images, labels = digits.rotations(split)
    turned = images[labels == turns]
    expected = np.stack([np.rot90(image[0], turns)[None] for image in split[0].numpy()])
    np.testing.assert_array_equal(turned.numpy(), expected)


def test_auxiliary_tasks_are_trainable_on_a_network() -> None:
    images, labels = digits.AUXILIARY_TASKS["rotations"]((some_images(2), torch.zeros(2, dtype=torch.int64)))
    loss = nn.functional.cross_entropy(digits.network(SHAPE, 4, 0)(images), labels)
    assert math.isfinite(loss.item())
