"""The network on which memory and construction are measured: timm's ViT-S/16, random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NAME = "vit_small_patch16_224"


def vit_small() -> nn.Module:
    """Make timm's ViT-S/16: 22 M weights, 1,000 classes, in eval mode."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = timm.create_model(NAME, pretrained=False, num_classes=1000)
    return net.eval()


def image_batch(images: int = 2) -> tuple[Tensor, Tensor]:
    """Return noise [images, 3, 224, 224] and labels [images]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 3, 224, 224, generator=generator), torch.arange(images)


def float32_bytes(net: nn.Module) -> int:
    """Return the bytes of one member whose every parameter is its own, at 32 bits."""
    return 4 * sum(parameter.numel() for parameter in net.parameters())
