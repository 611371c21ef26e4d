"""Sets of images that are not CIFAR-10's: what is in them, what they are keyed by, and what is refused."""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import lpe
from lpe.number_systems.streams import generator
from lpe.substrates import out_of_distribution
from lpe.substrates.out_of_distribution import (
    MNIST_FILE,
    resized_digits,
    resized_mnist,
    scrambled,
    uniform_noise,
)

SIGMAS = 5.0


def slowly_enlarged(image: np.ndarray) -> np.ndarray:
    """Pixel by pixel: the four neighbours of its centre, weighted by how near they are."""
    side = len(image)
    large = np.empty((32, 32))
    for y in range(32):
        for x in range(32):
            down, right = ((place + 0.5) * side / 32 - 0.5 for place in (y, x))
            value = 0.0
            for row in (math.floor(down), math.floor(down) + 1):
                for column in (math.floor(right), math.floor(right) + 1):
                    near = (1 - abs(down - row)) * (1 - abs(right - column))
                    value += near * image[min(max(row, 0), side - 1), min(max(column, 0), side - 1)]
            large[y, x] = value
    return large


# Digits


def test_digits_are_scikit_learns_enlarged_bilinearly() -> None:
    found = resized_digits()
    assert found.shape == (1797, 32, 32, 3) and found.dtype == torch.uint8
    expected = slowly_enlarged(load_digits().images[11] * 255 / 16)
    assert np.abs(found[11, :, :, 0].numpy() - expected).max() <= 0.5 + 1e-3


def test_digits_are_grey() -> None:
    found = resized_digits()
    assert torch.equal(found, found[..., :1].expand(-1, -1, -1, 3))


# MNIST


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A folder with three images in MNIST's format, taken for MNIST by their checksum; and the images."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    content = struct.pack(">4i", 2051, 3, 28, 28) + pixels.tobytes()
    path = tmp_path / MNIST_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(out_of_distribution, "MNIST_CHECKSUM", digest)
    return tmp_path, pixels


def test_mnist_is_read_from_torchvisions_folder_and_enlarged(mnist: tuple[Path, np.ndarray]) -> None:
    folder, pixels = mnist
    found = resized_mnist(folder)
    assert found.shape == (3, 32, 32, 3)
    assert np.abs(found[1, :, :, 2].numpy() - slowly_enlarged(pixels[1])).max() <= 0.5 + 1e-3


def test_the_place_of_mnists_file_is_torchvisions(mnist: tuple[Path, np.ndarray]) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    folder, pixels = mnist
    reader = datasets.MNIST.__new__(datasets.MNIST)
    reader.root, reader.train = str(folder), False
    (folder / MNIST_FILE).with_name("t10k-labels-idx1-ubyte").write_bytes(
        struct.pack(">2i", 2049, 3) + bytes([0, 1, 2])
    )
    assert reader._load_data()[0].tolist() == pixels.tolist()


def test_without_mnist_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(
        lpe.InputError, match=f"no MNIST at .*give a folder that holds {MNIST_FILE}"
    ) as caught:
        resized_mnist(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_mnists_is_refused(mnist: tuple[Path, np.ndarray]) -> None:
    folder, _ = mnist
    path = folder / MNIST_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(lpe.InputError, match="has MD5 .* where MNIST's has"):
        resized_mnist(folder)


def test_mnist_that_is_there_is_not_downloaded(
    mnist: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_distribution, "_download_mnist", lambda folder: pytest.fail("downloaded"))
    assert len(resized_mnist(mnist[0], download=True)) == 3


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def unreachable(self: object) -> None:
        raise RuntimeError("Error downloading t10k-images-idx3-ubyte.gz:\nTried a mirror")

    monkeypatch.setattr(datasets.MNIST, "download", unreachable)
    with pytest.raises(lpe.InputError, match=f"could not be downloaded .*; put {MNIST_FILE} there") as caught:
        resized_mnist(tmp_path, download=True)
    assert "\n" not in str(caught.value)


# Noise


def check_uniform(images: Tensor) -> None:
    """Each of 256 values n/256 times, within standard errors of √(n/256 · 255/256)."""
    counts = torch.bincount(images.flatten().long(), minlength=256).double()
    expected = images.numel() / 256
    assert float((counts - expected).abs().max()) <= SIGMAS * math.sqrt(expected * 255 / 256)


def test_noise_is_uniform_over_all_values() -> None:
    check_uniform(uniform_noise(40))


def test_noise_without_white_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_uniform(uniform_noise(40).clamp(max=254))


def test_an_image_of_noise_is_the_same_whatever_the_count() -> None:
    assert torch.equal(uniform_noise(2), uniform_noise(5)[:2])


def test_images_of_noise_differ_from_each_other_and_between_seeds() -> None:
    one, other = uniform_noise(2)
    assert not torch.equal(one, other) and not torch.equal(one, uniform_noise(1, seed=1)[0])


def test_no_images_of_noise_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="the number of images must be a positive integer, not 0"):
        uniform_noise(0)


# Scrambled patches


def numbered(count: int, patch: int) -> Tensor:
    """Images whose pixels say which patch they are in (red) and where in it (green, blue)."""
    place = torch.arange(32)
    image = torch.empty(32, 32, 3, dtype=torch.uint8)
    image[..., 0] = (32 // patch) * (place // patch)[:, None] + place // patch
    image[..., 1], image[..., 2] = (place % patch)[:, None], place % patch
    return image.expand(count, -1, -1, -1)


def orders(images: Tensor, patch: int) -> list[list[int]]:
    """The patches in their new places, after a check that each is whole."""
    assert torch.equal(images[..., 1:], numbered(len(images), patch)[..., 1:])
    corners = images[:, ::patch, ::patch, 0]
    whole = corners.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    assert torch.equal(images[..., 0], whole)
    return corners.flatten(1).tolist()


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_each_patch_is_there_once_and_whole(patch: int) -> None:
    count = (32 // patch) ** 2
    found = orders(scrambled(numbered(20, patch), torch.arange(20), patch), patch)
    assert all(sorted(order) == list(range(count)) for order in found)


def test_the_permutation_is_never_the_identity() -> None:
    """Of four patches one permutation in 24 is: some ten of these images would stay as they are."""
    identities = sum(
        torch.equal(
            torch.randperm(4, generator=generator("scrambled patches", 0, "4", index)), torch.arange(4)
        )
        for index in range(240)
    )
    assert identities > 0
    assert [0, 1, 2, 3] not in orders(scrambled(numbered(240, 16), torch.arange(240), 16), 16)


def test_all_other_permutations_are_as_frequent() -> None:
    """Each of 23 is found n/23 times, within standard errors of √(n/23 · 22/23)."""
    found = orders(scrambled(numbered(920, 16), torch.arange(920), 16), 16)
    counts = [found.count(order) for order in map(list, {tuple(order) for order in found})]
    assert len(counts) == 23
    assert max(abs(count - 40) for count in counts) <= SIGMAS * math.sqrt(40 * 22 / 23)


def test_an_image_is_scrambled_alike_among_others() -> None:
    indices = torch.tensor([17, 3])
    every = scrambled(numbered(20, 8), torch.arange(20))
    assert torch.equal(scrambled(numbered(2, 8), indices), every[indices])


def test_another_seed_scrambles_otherwise() -> None:
    one, other = (scrambled(numbered(1, 8), torch.tensor([0]), seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (0, "patch must be an integer from 1 to 16, not 0"),
        (32, "patch must be an integer from 1 to 16, not 32"),
        (5, "patch must divide 32, not 5"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(patch: int, words: str) -> None:
    with pytest.raises(lpe.InputError, match=words):
        scrambled(numbered(1, 8), torch.tensor([0]), patch)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(lpe.InputError, match=r"images must be uint8 .* not torch.uint8 \[1, 28, 28, 3\]"):
        scrambled(torch.zeros(1, 28, 28, 3, dtype=torch.uint8), torch.tensor([0]))
