"""Digits: scikit-learn's 1,797 real scans of 8 × 8 pixels, and small Vision Transformers on them.

No download: the images ship with scikit-learn (the test part of UCI's "Optical Recognition of Handwritten
Digits", Alpaydin & Kaynak 1998). The network is timm's ``VisionTransformer``.

Splits are drawn by seed. Seeds 5k … 5k + 4 share one permutation, cut into five folds; seed s tests on fold
s mod 5, validates on the next and trains on the other three. So five consecutive seeds test every image
exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.number_systems.streams import generator

FOLDS = 5
CLASSES = 10
ROTATIONS = 4

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DigitsData:
    """Images, float32 [n, 1, 8, 8] with values 0 … 1, and labels, int64 [n], of the three splits."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class DigitsNetwork:
    """Shape of a digits Vision Transformer: mean pooling, no class token.

    Args:
        patch: pixels a side of a patch. width: embedding. depth: blocks. heads: attention heads.
        mlp_ratio: hidden width of the MLP over the embedding's.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float


def split_indices(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the training, validation and test images of a training seed."""
    if seed < 0:
        raise InputError(f"a training seed must not be negative, not {seed}")
    folds = np.array_split(np.random.default_rng(seed // FOLDS).permutation(1797), FOLDS)
    test = seed % FOLDS
    validation = (test + 1) % FOLDS
    train = [fold for index, fold in enumerate(folds) if index not in (test, validation)]
    return np.concatenate(train), folds[validation], folds[test]


def load(seed: int) -> DigitsData:
    """The splits of a training seed."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels, dtype=torch.int64)
    train, validation, test = (torch.from_numpy(index) for index in split_indices(seed))
    return DigitsData((x[train], y[train]), (x[validation], y[validation]), (x[test], y[test]))


def network(shape: DigitsNetwork, classes: int, seed: int) -> nn.Module:
    """A freshly initialised Vision Transformer; the global generator is left as it was."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(
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


def shifted(images: Tensor, pixels: int, draws: torch.Generator) -> Tensor:
    """Each image moved by its own −pixels … pixels along both axes, zeros moving in: [n, 1, 8, 8]."""
    n, _, height, width = images.shape
    padded = nn.functional.pad(images, (pixels,) * 4)
    down, right = torch.randint(0, 2 * pixels + 1, (2, n, 1), generator=draws)
    rows = (down + torch.arange(height))[:, None, :, None].expand(n, 1, height, padded.shape[-1])
    columns = (right + torch.arange(width))[:, None, None, :].expand(n, 1, height, width)
    return padded.gather(2, rows).gather(3, columns)


def rotations(images: Tensor) -> Split:
    """All four quarter turns of each image, and which it is: the auxiliary task of the pre-training."""
    turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(ROTATIONS)])
    return turned, torch.arange(ROTATIONS).repeat_interleave(len(images))


def batches(split: Split, size: int, seed: int, shift: int = 0) -> Callable[[int], Iterator[Split]]:
    """epoch → shuffled training batches; order and shifts are keyed by (seed, epoch).

    The last batch of an epoch is left out where it would be smaller than ``size``.
    """
    images, labels = split
    if size > len(images):
        raise InputError(f"a batch of {size} is larger than the {len(images)} training images")

    def epoch_batches(epoch: int) -> Iterator[Split]:
        draws = generator("digits batches", seed, "", epoch)
        order = torch.randperm(len(images), generator=draws)
        for index in order[: len(order) // size * size].split(size):
            x = images[index]
            yield (shifted(x, shift, draws) if shift else x), labels[index]

    return epoch_batches
