"""Corrupted images of CIFAR-10, made here: five of CIFAR-10-C's corruptions, at three severities.

Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations".
Kinds have the names of CIFAR-10-C's files. Severities 1, 2 and 3 are its levels 1, 3 and 5, with the settings
of its authors' script ``make_cifar_c.py``, milder than ImageNet-C's. Gaussian blur is one of its four extra
kinds, the others are among its fifteen.

Numbers are not CIFAR-10-C's: the noise is drawn here, and values are rounded to the nearest of 256, where the
script cuts their fractions off, so that its images are half a grey level darker. JPEGs are Pillow's, also in
the script; of images that were JPEGs before, the second compression comes on top of the first.

Noise is keyed by (seed, kind, severity, the image's index in its data set): an image has the same noise
whatever other images are asked for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lpe.checks import check_choice, check_integer
from lpe.extras import needs
from lpe.number_systems.streams import normal
from lpe.substrates.cifar import image_indices

GAUSSIAN_NOISE_STD = (0.04, 0.08, 0.10)
"""Std of the noise on each channel of each pixel; 1 is the way from black to white."""

GAUSSIAN_BLUR_STD = (0.4, 0.7, 1.0)
"""Std of the blur's kernel, in pixels."""

CONTRAST_LEFT = (0.75, 0.4, 0.15)
"""What is left of a pixel's distance from its channel's mean over the image."""

JPEG_QUALITY = (80, 58, 40)
"""libjpeg's quality."""

BRIGHTNESS_ADDED = (0.05, 0.15, 0.3)
"""What is added to a pixel's value, its largest channel; 1 is the way from black to white."""

SEVERITIES = (1, 2, 3)

CHUNK = 1000
"""Images that are in memory in floating point at once."""


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Args:
        levels: its setting at each severity. apply: images, uint8 [images, 32, 32, 3], a level, and standard
            normal numbers for each image, drawn where they are asked for → float32 of the images' shape, in
            grey levels, not yet rounded or kept within 0 … 255.
    """

    levels: tuple[float, ...]
    apply: Callable[[Tensor, float, Iterator[Tensor]], Tensor]


def corrupted(images: Tensor, kind: str, severity: int, indices: Tensor, seed: int = 0) -> Tensor:
    """Return images under a corruption.

    Args:
        images: uint8 [images, 32, 32, 3], on the CPU. kind: of ``CORRUPTIONS``. severity: 1, 2 or 3.
        indices: int64 [images], of the images in their data set. seed: of the noise.

    Returns:
        uint8 [images, 32, 32, 3].

    Raises:
        InputError: an unknown kind or severity; images of another shape or type; indices that are not one an
            image.
    """
    corruption = CORRUPTIONS[check_choice("corruption", kind, tuple(CORRUPTIONS))]
    severity = check_integer("severity", severity, SEVERITIES[0], SEVERITIES[-1])
    keys = image_indices(images, indices)
    found = torch.empty_like(images)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        draws = (
            normal("corruption", seed, f"{kind} {severity}", key, images.shape[1:]) for key in keys[part]
        )
        grey = corruption.apply(images[part], corruption.levels[severity - 1], draws)
        found[part] = grey.clamp(0, 255).round().byte()
    return found


def _gaussian_noise(images: Tensor, std: float, draws: Iterator[Tensor]) -> Tensor:
    return images.float() + 255 * std * torch.stack(list(draws))


def _gaussian_blur(images: Tensor, std: float, draws: Iterator[Tensor]) -> Tensor:
    from scipy.ndimage import gaussian_filter

    # As the script's skimage.filters.gaussian: the kernel ends at 4 std, the edge goes on as it is.
    blurred = gaussian_filter(
        images.numpy().astype(np.float32), (0, std, std, 0), mode="nearest", truncate=4.0
    )
    return torch.from_numpy(blurred)


def _contrast(images: Tensor, left: float, draws: Iterator[Tensor]) -> Tensor:
    grey = images.float()
    mean = grey.mean(dim=(1, 2), keepdim=True)
    return mean + left * (grey - mean)


def _jpeg(images: Tensor, quality: float, draws: Iterator[Tensor]) -> Tensor:
    needs("PIL")

    from PIL import Image

    found = torch.empty(images.shape)
    for place, image in enumerate(images.numpy()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        found[place] = torch.from_numpy(np.array(Image.open(file)))
    return found


def _brightness(images: Tensor, added: float, draws: Iterator[Tensor]) -> Tensor:
    # Of hue, saturation and value only the value changes: the channels keep their ratios, and black, which
    # has none, becomes grey.
    grey = images.float()
    value = grey.amax(dim=3, keepdim=True)
    brighter = (value + 255 * added).clamp(max=255)
    return torch.where(value > 0, grey * (brighter / value.clamp(min=1)), brighter)


CORRUPTIONS = {
    "gaussian_noise": Corruption(GAUSSIAN_NOISE_STD, _gaussian_noise),
    "gaussian_blur": Corruption(GAUSSIAN_BLUR_STD, _gaussian_blur),
    "contrast": Corruption(CONTRAST_LEFT, _contrast),
    "jpeg_compression": Corruption(JPEG_QUALITY, _jpeg),
    "brightness": Corruption(BRIGHTNESS_ADDED, _brightness),
}
"""Kind → corruption."""
