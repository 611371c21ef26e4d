"""Images that are not CIFAR-10's, in its shape: what a network should not be sure of.

- digits (see :mod:`lpe.substrates.digits`) and MNIST's test images (LeCun et al. 1998,
  "Gradient-based learning applied to document recognition"), grey, enlarged;
- noise: every channel of every pixel uniform over 0 … 255 (Hendrycks & Gimpel 2017, "A baseline for detecting
  misclassified and out-of-distribution examples in neural networks", has it too);
- CIFAR-10's own images cut into squares that change places: colours and textures stay, shapes go (Noroozi &
  Favaro 2016, "Unsupervised learning of visual representations by solving jigsaw puzzles", cut images so).

What is drawn is keyed by (seed, the image's index): an image is the same whatever others are asked for.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lpe.checks import check_integer
from lpe.errors import InputError
from lpe.number_systems.streams import generator
from lpe.substrates import digits
from lpe.substrates.cifar import SIDE, image_indices

MNIST_FILE = "MNIST/raw/t10k-images-idx3-ubyte"
MNIST_CHECKSUM = "2646ac647ad5339dbf082846283269ea"
"""Place in torchvision's folder, and MD5, of MNIST's test images."""

MNIST_HEADER = 16
"""Bytes before the pixels: a magic number and three sizes."""

MNIST_SIDE = 28


def resized_digits() -> Tensor:
    """Return :mod:`lpe.substrates.digits`' 1,797 scans, 8 × 8 in 17 levels of grey, bilinearly enlarged.

    Returns:
        uint8 [1797, 32, 32, 3].
    """
    scans, _ = digits.scans()
    return _enlarged(torch.from_numpy(scans).float() * 255 / 16)


def resized_mnist(folder: str | os.PathLike[str], download: bool = False) -> Tensor:
    """Return MNIST's 10,000 test images, 28 × 28, bilinearly enlarged.

    Args:
        folder: that holds ``MNIST/raw``, as torchvision lays it out. download: whether torchvision may fetch
            the files where they are not there.

    Returns:
        uint8 [10000, 32, 32, 3].

    Raises:
        InputError: no file there, or not MNIST's by its checksum; a download that fails.
    """
    path = Path(folder) / MNIST_FILE
    if download and not path.exists():
        _download_mnist(Path(folder))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"no MNIST at {path} ({error.strerror}): give a folder that holds {MNIST_FILE}"
        ) from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != MNIST_CHECKSUM:
        raise InputError(f"{path} has MD5 {found}, where MNIST's has {MNIST_CHECKSUM}; fetch it again")
    pixels = np.frombuffer(content, dtype=np.uint8, offset=MNIST_HEADER)
    return _enlarged(torch.from_numpy(pixels.astype(np.float32)).view(-1, MNIST_SIDE, MNIST_SIDE))


def _download_mnist(folder: Path) -> None:
    try:
        from torchvision.datasets import MNIST
    except ImportError:
        raise InputError(
            f"to download MNIST takes torchvision, which is not installed; "
            f"pip install 'low-precision-ensembling[timm]', or put {MNIST_FILE} into {folder}"
        ) from None
    try:
        MNIST(str(folder), train=False, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"MNIST could not be downloaded into {folder} ({error}); put {MNIST_FILE} there"
        ) from None


def _enlarged(grey: Tensor) -> Tensor:
    """Return uint8 [images, 32, 32, 3] of float32 [images, side, side], in grey levels 0 … 255."""
    size = (SIDE, SIDE)
    large = torch.nn.functional.interpolate(grey[:, None], size, mode="bilinear", align_corners=False)
    return large.round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()


def uniform_noise(count: int, seed: int = 0) -> Tensor:
    """Return images of noise, uint8 [count, 32, 32, 3]; image i is the same whatever the count."""
    check_integer("the number of images", count, 1)
    shape = (SIDE, SIDE, 3)
    images = [
        torch.randint(256, shape, generator=generator("uniform noise", seed, "", index), dtype=torch.uint8)
        for index in range(count)
    ]
    return torch.stack(images)


def scrambled(images: Tensor, indices: Tensor, patch: int = 8, seed: int = 0) -> Tensor:
    """Return images whose patches changed places; never all of them stay where they were.

    Args:
        images: uint8 [images, 32, 32, 3]. indices: int64 [images], of the images in their data set.
        patch: pixels a side, a divisor of 32 below it. seed: of the permutations.

    Returns:
        uint8 [images, 32, 32, 3], each a permutation of its image's patches.

    Raises:
        InputError: images of another shape or type; indices that are not one an image; another patch.
    """
    keys = image_indices(images, indices)
    patch = check_integer("patch", patch, 1, SIDE // 2)
    if SIDE % patch:
        raise InputError(f"patch must divide {SIDE}, not {patch}")
    across = SIDE // patch
    count, squares = len(images), across**2
    rows = images.reshape(count, across, patch, across, patch, 3)
    cut = rows.transpose(2, 3).reshape(count, squares, patch, patch, 3)
    mixed = torch.empty_like(cut)
    for place, index in enumerate(keys):
        mixed[place] = cut[place, _permutation(squares, index, seed)]
    return mixed.view(count, across, across, patch, patch, 3).transpose(2, 3).reshape(images.shape)


def _permutation(count: int, index: int, seed: int) -> Tensor:
    """Return a permutation of so many things, uniform over all but the identity."""
    draws = generator("scrambled patches", seed, f"{count}", index)
    while True:
        order = torch.randperm(count, generator=draws)
        if not torch.equal(order, torch.arange(count)):
            return order
