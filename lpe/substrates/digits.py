"""Digits: 1,797 real scans of 8 × 8 pixels, and small Vision Transformers on them.

No download: the scans lie beside this file, in the order of scikit-learn's ``load_digits``. They are the test
part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, CC BY 4.0,
https://doi.org/10.24432/C50P49). The network is timm's ``VisionTransformer``.

Splits are drawn by seed. Seeds 5k … 5k + 4 share one permutation, cut into five folds; seed s tests on fold
s mod 5, validates on the next and trains on the other three. So the five seeds of one permutation test every
image exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.extras import needs
from lpe.number_systems.streams import generator

SCANS = Path(__file__).with_name("digits.npz")
FOLDS = 5
CLASSES = 10
MEAN, STD = 0.305, 0.376
"""Mean and std of all pixels, scaled to 0 … 1: they standardise the network's inputs."""
BACKGROUND = -MEAN / STD
"""The input of an empty pixel."""

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DigitsData:
    """Standardised images, float32 [n, 1, 8, 8], and labels, int64 [n], of the three splits."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class DigitsNetwork:
    """Shape of a digits Vision Transformer: mean pooling, no class token.

    Args:
        patch: pixels a side of a patch. width: embedding. depth: blocks. heads: attention heads.
        mlp_ratio: hidden width of the MLP over the embedding's. position_std: of the positional embedding
            at the start; timm's .02 leaves patches of a network this small without a place.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    position_std: float


def split_indices(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of the training, validation and test images of a training seed."""
    if seed < 0:
        raise InputError(f"a training seed must not be negative, not {seed}")
    folds = np.array_split(np.random.default_rng(seed // FOLDS).permutation(1797), FOLDS)
    test = seed % FOLDS
    validation = (test + 1) % FOLDS
    train = [fold for index, fold in enumerate(folds) if index not in (test, validation)]
    return np.concatenate(train), folds[validation], folds[test]


def scans() -> tuple[np.ndarray, np.ndarray]:
    """Return all scans, uint8 [1797, 8, 8] in 17 levels of grey, and their labels, uint8 [1797]."""
    with np.load(SCANS) as held:
        return held["scans"], held["labels"]


def load(seed: int) -> DigitsData:
    """Return the splits of a training seed."""
    images, labels = scans()
    x = torch.tensor((images / 16 - MEAN) / STD, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels, dtype=torch.int64)
    train, validation, test = (torch.from_numpy(index) for index in split_indices(seed))
    return DigitsData((x[train], y[train]), (x[validation], y[validation]), (x[test], y[test]))


def network(shape: DigitsNetwork, classes: int, seed: int) -> nn.Module:
    """Return a freshly initialised Vision Transformer; the global generator is left as it was."""
    needs("timm")

    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        net = VisionTransformer(
            img_size=8,
            patch_size=shape.patch,
            in_chans=1,
            num_classes=classes,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            mlp_ratio=shape.mlp_ratio,
            global_pool="avg",
            class_token=False,
        )
        assert net.pos_embed is not None
        nn.init.normal_(net.pos_embed, std=shape.position_std)
    return net


@dataclass(frozen=True)
class Jitter:
    """Augmentation: each image under small random affine maps.

    Args:
        copies: of each image, the first of them the image itself. degrees: largest rotation.
            scaling: largest relative change of size. pixels: largest shift along each axis.
    """

    copies: int
    degrees: float
    scaling: float
    pixels: float

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise InputError(f"Jitter(copies=…) must be 1 or more, not {self.copies}")


def jittered(images: Tensor, jitter: Jitter, seed: int) -> Tensor:
    """Copy images under affine maps drawn by (seed, copy), bilinear, background moving in.

    Returns:
        [copies, n, 1, 8, 8].
    """
    n, _, _, side = images.shape
    copies = [images]
    for copy in range(1, jitter.copies):
        draws = generator("digits jitter", seed, "", copy)
        uniform = torch.rand((4, n), generator=draws, dtype=torch.float32, device="cpu")
        angle, size, right, down = 2 * uniform - 1
        angle = angle * math.radians(jitter.degrees)
        size = 1 + size * jitter.scaling
        cosine, sine = size * angle.cos(), size * angle.sin()
        shift = 2 * jitter.pixels / side  # the sampling grid's coordinates run from -1 to 1
        maps = torch.stack([cosine, -sine, shift * right, sine, cosine, shift * down], dim=1).view(n, 2, 3)
        grid = nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
        moved = nn.functional.grid_sample(images - BACKGROUND, grid, align_corners=False)
        copies.append(moved + BACKGROUND)
    return torch.stack(copies)


def batches(split: Split, size: int, seed: int, jitter: Jitter) -> Callable[[int], Iterator[Split]]:
    """Return a function: epoch → shuffled batches, each image as one of its copies; keyed by (seed, epoch).

    The last batch of an epoch is left out where it would be smaller than ``size``.
    """
    images, labels = split
    if not 1 <= size <= len(images):
        raise InputError(f"a batch must have 1 to {len(images)} images, as many as there are, not {size}")
    bank = jittered(images, jitter, seed)

    def epoch_batches(epoch: int) -> Iterator[Split]:
        draws = generator("digits batches", seed, "", epoch)
        order = torch.randperm(len(images), generator=draws, device="cpu")
        copy = torch.randint(jitter.copies, (len(images),), generator=draws, device="cpu")
        for index in order[: len(order) // size * size].split(size):
            yield bank[copy[index], index], labels[index]

    return epoch_batches


def instances(split: Split) -> Split:
    """Return the auxiliary task of the pre-training: name the training image.

    Each image is a class of its own, known again under jitter: Dosovitskiy et al. 2014, "Discriminative
    unsupervised feature learning with convolutional neural networks".
    """
    return split[0], torch.arange(len(split[0]))


def rotations(split: Split) -> Split:
    """Make a second auxiliary task: which of four quarter turns an image has (Gidaris et al. 2018)."""
    images = split[0]
    turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
    return turned, torch.arange(4).repeat_interleave(len(images))


AUXILIARY_TASKS = {"instances": instances, "rotations": rotations}
"""Name → labelled images made of a training split alone."""
