"""Corruptions: each by its definition, the noise as statistics, and what is refused."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lpe
from lpe.substrates import cifar_resnet
from lpe.substrates.cifar import standardised
from lpe.substrates.cifar_networks import load_resnet_frn
from lpe.substrates.corruptions import CORRUPTIONS, SEVERITIES, corrupted

SIGMAS = 5.0
"""Standard errors that a statistic may be off: one run in 1.7 million is, by chance."""

SETTINGS: dict[str, list[float]] = {
    "gaussian_noise": [0.04, 0.08, 0.10],
    "gaussian_blur": [0.4, 0.7, 1.0],
    "contrast": [0.75, 0.4, 0.15],
    "jpeg_compression": [80, 58, 40],
    "brightness": [0.05, 0.15, 0.3],
}
"""Levels 1, 3 and 5 of CIFAR-10-C, from its authors' script."""

ONE = torch.tensor([0])


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Real pictures, uint8 [30, 32, 32, 3]: of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    squares = []
    for image in load_sample_images().images:
        small = np.asarray(Image.fromarray(image).resize((160, 106)))
        squares += [small[y : y + 32, x : x + 32] for y in range(0, 96, 32) for x in range(0, 160, 32)]
    return torch.from_numpy(np.stack(squares))


def grey(count: int, level: int = 128) -> Tensor:
    return torch.full((count, 32, 32, 3), level, dtype=torch.uint8)


def test_levels_are_the_first_the_third_and_the_fifth_of_cifar_10_c() -> None:
    assert {kind: list(each.levels) for kind, each in CORRUPTIONS.items()} == SETTINGS


# All kinds


@pytest.mark.parametrize("kind", SETTINGS)
def test_each_severity_is_further_from_the_photographs(kind: str, photographs: Tensor) -> None:
    indices = torch.arange(len(photographs))
    images = [photographs, *(corrupted(photographs, kind, severity, indices) for severity in SEVERITIES)]
    distances = [float((each.double() - photographs).square().mean()) for each in images]
    assert distances == sorted(set(distances))


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_image_is_corrupted_alike_among_others(kind: str, photographs: Tensor) -> None:
    indices = torch.arange(len(photographs))
    chosen = torch.tensor([17, 3, 28])
    every = corrupted(photographs, kind, 2, indices)
    assert torch.equal(corrupted(photographs[chosen], kind, 2, chosen), every[chosen])


def test_more_images_than_are_in_memory_at_once_are_corrupted_alike(
    monkeypatch: pytest.MonkeyPatch, photographs: Tensor
) -> None:
    indices = torch.arange(len(photographs))
    expected = corrupted(photographs, "gaussian_noise", 2, indices)
    monkeypatch.setattr("lpe.substrates.corruptions.CHUNK", 7)
    assert torch.equal(corrupted(photographs, "gaussian_noise", 2, indices), expected)


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_images_given_and_the_global_generator_are_left_alone(kind: str, photographs: Tensor) -> None:
    images, state = photographs.clone(), torch.get_rng_state()
    corrupted(images, kind, 3, torch.arange(len(images)))
    assert torch.equal(images, photographs) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", SETTINGS)
def test_no_image_is_no_image_corrupted(kind: str) -> None:
    assert corrupted(grey(0), kind, 1, torch.arange(0)).shape == (0, 32, 32, 3)


# Noise

COUNT = 20


def noise(severity: int, seed: int = 0, count: int = COUNT) -> Tensor:
    """The noise on grey images, which is nowhere cut off: white is five std away at the highest severity."""
    images = corrupted(grey(count), "gaussian_noise", severity, torch.arange(count), seed)
    return images.double() - 128


def check_noise(values: Tensor, severity: int) -> None:
    """Mean 0 and the std asked for, rounding's variance of 1/12 in it; errors std/√n and std/√(2n)."""
    std = math.sqrt((255 * SETTINGS["gaussian_noise"][severity - 1]) ** 2 + 1 / 12)
    n = values.numel()
    assert abs(float(values.mean())) <= SIGMAS * std / math.sqrt(n)
    assert abs(float(values.std()) - std) <= SIGMAS * std / math.sqrt(2 * n)


def check_uncorrelated(left: Tensor, right: Tensor) -> None:
    """The correlation of n independent pairs has a standard error of 1/√n."""
    correlation = float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])
    assert abs(correlation) <= SIGMAS / math.sqrt(left.numel())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_mean_0_and_its_std(severity: int) -> None:
    check_noise(noise(severity), severity)


@pytest.mark.parametrize("fault", [lambda x: x + 0.5, lambda x: 1.03 * x])
def test_noise_with_a_wrong_mean_or_std_is_caught(fault: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_noise(fault(noise(1)), 1)


@pytest.mark.parametrize(
    "other",
    [
        lambda: noise(2).roll(1, 0),
        lambda: noise(1),
        lambda: noise(2, seed=1),
        lambda: noise(2).roll(1, 3),
    ],
    ids=["another image", "another severity", "another seed", "another channel"],
)
def test_noise_does_not_depend_on_noise_of(other: Callable[[], Tensor]) -> None:
    check_uncorrelated(noise(2), other())


def test_noise_that_all_images_share_is_caught() -> None:
    shared = noise(2, count=1).expand(COUNT, -1, -1, -1)
    with pytest.raises(AssertionError):
        check_uncorrelated(shared, shared.roll(1, 0))


def test_noise_stops_at_black_and_at_white() -> None:
    """Half of the noise is cut off, not wrapped around; the other half is within eight std."""
    black, white = (corrupted(grey(1, level), "gaussian_noise", 3, ONE) for level in (0, 255))
    assert int(black.max()) <= 8 * 25.5 and int(white.min()) >= 255 - 8 * 25.5
    assert bool((black == 0).any()) and bool((white == 255).any())


# The others


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_spreads_a_point_by_a_gaussian_of_its_std(severity: int) -> None:
    point = grey(1, 0)
    point[0, 16, 16] = 255
    std = SETTINGS["gaussian_blur"][severity - 1]
    away = np.arange(32) - 16
    line = np.where(np.abs(away) <= 4 * std + 0.5, np.exp(-(away**2) / (2 * std**2)), 0)
    expected = 255 * np.outer(line, line) / line.sum() ** 2
    found = corrupted(point, "gaussian_blur", severity, ONE)[0].numpy()
    assert np.abs(found - expected[:, :, None]).max() <= 0.5 + 1e-3


def test_blur_goes_on_beyond_the_edge_with_the_pixels_there() -> None:
    """Of the first row's kernel, 4 of 9 lines are beyond the edge and 4 are other rows."""
    image = grey(1, 40)
    image[:, 0] = 200
    weights = np.exp(-(np.arange(5) ** 2) / 2)
    others = weights[1:].sum() / (weights[0] + 2 * weights[1:].sum())
    found = corrupted(image, "gaussian_blur", 3, ONE)
    assert int(found[0, 0, 0, 0]) == round(200 * (1 - others) + 40 * others)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_what_is_left_of_the_distance_to_the_channels_mean(
    severity: int, photographs: Tensor
) -> None:
    found = corrupted(photographs, "contrast", severity, torch.arange(len(photographs))).numpy()
    images = photographs.numpy().astype(np.float64)
    mean = images.mean((1, 2), keepdims=True)
    expected = mean + SETTINGS["contrast"][severity - 1] * (images - mean)
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpegs_are_pillows_at_their_quality(severity: int, photographs: Tensor) -> None:
    file = io.BytesIO()
    quality = int(SETTINGS["jpeg_compression"][severity - 1])
    Image.fromarray(photographs[4].numpy()).save(file, "JPEG", quality=quality)
    found = corrupted(photographs[4:5], "jpeg_compression", severity, ONE)[0]
    assert found.tolist() == np.asarray(Image.open(file)).tolist()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_added_to_the_value_of_hue_saturation_and_value(severity: int) -> None:
    pixels = list(product((0, 90, 160, 255), repeat=3))
    image = grey(1)
    image[0, :2] = torch.tensor(pixels, dtype=torch.uint8).view(2, 32, 3)
    found = corrupted(image, "brightness", severity, ONE)[0, :2].reshape(-1, 3)
    expected = []
    for pixel in pixels:
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
        brighter = min(value + SETTINGS["brightness"][severity - 1], 1.0)
        expected.append([255 * channel for channel in colorsys.hsv_to_rgb(hue, saturation, brighter)])
    assert np.abs(found.numpy() - np.array(expected)).max() <= 0.5 + 1e-3


# What is refused


@pytest.mark.parametrize(
    ("kind", "severity", "images", "indices", "words"),
    [
        ("fog", 1, grey(1), ONE, "corruption must be one of gaussian_noise, .*brightness, not 'fog'"),
        ("contrast", 0, grey(1), ONE, "severity must be an integer from 1 to 3, not 0"),
        ("contrast", 4, grey(1), ONE, "severity must be an integer from 1 to 3, not 4"),
        ("contrast", 1, grey(1).float(), ONE, r"images must be uint8 .* not torch.float32 \[1, 32, 32, 3\]"),
        ("contrast", 1, grey(1).permute(0, 3, 1, 2), ONE, r"not torch.uint8 \[1, 3, 32, 32\]"),
        ("contrast", 1, grey(2), ONE, r"indices must be int64 \[2\], one an image, not torch.int64 \[1\]"),
        ("contrast", 1, grey(1), torch.tensor([0.5]), r"not torch.float32 \[1\]"),
        ("gaussian_noise", 1, grey(1), torch.tensor([-1]), "index must not be negative, not -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: str, severity: int, images: Tensor, indices: Tensor, words: str
) -> None:
    with pytest.raises(lpe.InputError, match=words) as caught:
        corrupted(images, kind, severity, indices)
    assert "\n" not in str(caught.value)


# On CIFAR-10


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_trained_network_is_worse_on_corrupted_images(assets: Path, kind: str) -> None:
    net = load_resnet_frn(assets / "cifar10_points" / "sgd-0.safetensors")
    scaled, labels = cifar_resnet.test_images(assets, 50)
    std, mean = (torch.tensor(each).view(3, 1, 1) for each in (cifar_resnet.STD, cifar_resnet.MEAN))
    images = (255 * (scaled * std + mean)).round().byte().permute(0, 2, 3, 1)
    worse = corrupted(images, kind, 3, torch.arange(50))
    with torch.inference_mode():
        clean_loss, loss = (
            float(torch.nn.functional.cross_entropy(net(standardised(each)), labels))
            for each in (images, worse)
        )
    assert loss > clean_loss
