"""The CIFAR-10 ResNets with option-A shortcuts, and CIFAR-10's images as stored in the assets.

He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2: a 3×3 stem of 16 channels, three
stages of n basic blocks with 16, 32 and 64 channels, mean pooling and a linear layer; depth 6n + 2. An
option-A shortcut takes every second pixel and fills the new channels with zeros: it has no weights.

The weights are akamaster/pytorch_resnet_cifar10's (BSD-2). The images are CIFAR-10 at JPEG quality 75, so
accuracies are not CIFAR-10's: every table says ``DATASET``.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpe.extras import needs
from lpe.substrates.loading import load_weights

DATASET = "CIFAR-10 (JPEG q75)"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TEST_IMAGES = 10_000
CHECKPOINTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th"}


class BasicBlock(nn.Module):
    """A block of two 3×3 convolutions and an option-A shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.new_channels = planes - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [examples, inputs, height, width] → [examples, planes, height / stride, width / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new_channels:
            # As many zero channels in front as behind: planes // 4 each, since planes is twice the inputs.
            half = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """A ResNet for 32×32 images.

    Args:
        depth: 6n + 2: 20, 32, 44, …
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [examples, 10] of standardised images [examples, 3, 32, 32]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


def load_resnet(assets: Path, depth: int) -> CifarResNet:
    """Return the pre-trained network, in eval mode, on the CPU.

    Args:
        assets: the folder of real data and weights. depth: 20 or 32.
    """
    net = CifarResNet(depth)
    load_weights(net, assets / "cifar10_resnets" / CHECKPOINTS[depth])
    return net.eval()


def test_images(assets: Path, images: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the test set's images, standardised, and labels.

    Args:
        images: how many, evenly spread over the set, whose order is class by class; None: all 10,000.

    Returns:
        float32 [images, 3, 32, 32] and int64 [images].
    """
    return _images(assets, "test", images)


def training_images(assets: Path, images: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the training set's images, as JPEG too, without augmentation: see :func:`test_images`."""
    return _images(assets, "train", images)


def _images(assets: Path, which: str, images: int | None) -> tuple[Tensor, Tensor]:
    needs("PIL")

    from PIL import Image

    with np.load(assets / "cifar10_jpeg_q75.npz") as stored:
        header = stored["header"].tobytes()
        body = stored[f"{which}_body"].tobytes()
        offsets = stored[f"{which}_off"]
        labels = stored[f"{which}_y"]
    chosen = np.arange(0, len(labels), 1 if images is None else len(labels) // images)[:images]
    pixels = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(header + body[offsets[i] : offsets[i + 1]])).convert("RGB"))
            for i in chosen
        ]
    )
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    # Convolutions take this memory format a little quicker on a CPU.
    x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.from_numpy(labels[chosen].astype(np.int64))


def test_batches(assets: Path, images: int | None = None, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """Return the test set in batches of ``size``: see :func:`test_images`."""
    x, y = test_images(assets, images)
    return list(zip(x.split(size), y.split(size), strict=True))


def training_batches(assets: Path, images: int, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """Return training images in batches of ``size``: see :func:`training_images`."""
    x, y = training_images(assets, images)
    return list(zip(x.split(size), y.split(size), strict=True))
