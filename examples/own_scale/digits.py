"""A network with batch norm, and scikit-learn's digits: every other image tests it, the rest train it."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def network(width: int) -> nn.Module:
    """Return a new network: images [examples, 1, 8, 8] → logits [examples, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def test() -> tuple[Tensor, Tensor]:
    """Return the test images and their classes."""
    return _digits(1)


def training() -> tuple[Tensor, Tensor]:
    """Return the training images and their classes."""
    return _digits(0)


def _digits(start: int) -> tuple[Tensor, Tensor]:
    held = load_digits()
    images = torch.tensor(held.images, dtype=torch.float32)[:, None] / 16
    return images[start::2], torch.tensor(held.target)[start::2]
