"""Small networks for CIFAR-10 without batch norm: a ResNet with filter response norms, one with group norms.

He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2: a 3×3 stem, three stages of n
basic blocks, each stage of twice the channels at half the side, mean pooling, a linear layer; depth 6n + 2.
Filter response norm, Singh & Krishnan 2020, here without its thresholded unit:

    y = x · (mean over space of x² + 10⁻⁶)^(−½) · weight + bias, for each example and channel by itself.

No tensor depends on other examples, so rounding or averaging weights leaves no statistics behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpe.errors import InputError

EPSILON = 1e-6


def filter_response_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Filter response norm of [examples, channels, height, width]; computed in float32 at the least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide.square().mean(dim=(2, 3), keepdim=True) + EPSILON).rsqrt()
    return (wide * scale * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).to(x.dtype)


class FilterResponseNorm(nn.Module):
    """Filter response normalisation as a module; see :func:`filter_response_norm`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [examples, channels, height, width] → the same shape."""
        return filter_response_norm(x, self.weight, self.bias)


@dataclass(frozen=True)
class ResNetShape:
    """The shape of a residual network.

    Args:
        blocks: basic blocks in each stage. width: channels of the first stage; each further one has twice.
        stages: how many. classes: logits.
    """

    blocks: int
    width: int = 16
    stages: int = 3
    classes: int = 10

    def __post_init__(self) -> None:
        for name in ("blocks", "width", "stages", "classes"):
            if getattr(self, name) < 1:
                raise InputError(f"a ResNet's {name} must be 1 or more, not {getattr(self, name)}")

    def block_widths(self) -> list[list[tuple[int, int, int]]]:
        """Return (channels in, channels out, stride) of each block of each stage."""
        found, channels = [], self.width
        for stage in range(self.stages):
            blocks = []
            for block in range(self.blocks):
                out = self.width * 2**stage
                blocks.append((channels, out, 2 if stage and not block else 1))
                channels = out
            found.append(blocks)
        return found


RESNET20 = ResNetShape(blocks=3)
RESNET8 = ResNetShape(blocks=1)


class BasicBlock(nn.Module):
    """A residual block: conv, norm, SiLU, conv, norm, plus the shortcut, SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [examples, inputs, height, width] → [examples, outputs, height / stride, width / stride]."""
        y = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network of SiLUs and a norm that sees one example at a time.

    Args:
        shape: its sizes. norm: channels → the norm.
    """

    def __init__(self, shape: ResNetShape, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.shape = shape
        self.conv1 = nn.Conv2d(3, shape.width, 3, padding=1, bias=False)
        self.norm1 = norm(shape.width)
        self.layers = nn.ModuleList(
            nn.Sequential(*(BasicBlock(*widths, norm=norm) for widths in blocks))
            for blocks in shape.block_widths()
        )
        self.fc = nn.Linear(shape.width * 2 ** (shape.stages - 1), shape.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [examples, classes] of standardised images [examples, 3, height, width]."""
        x = F.silu(self.norm1(self.conv1(x)))
        for stage in self.layers:
            x = stage(x)
        return self.fc(x.mean(dim=(2, 3), dtype=self.fc.weight.dtype))


def _seeded(make: Callable[[], ResNet], seed: int) -> ResNet:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        return make()


def resnet_frn(shape: ResNetShape = RESNET20, seed: int = 0) -> ResNet:
    """Return a fresh ResNet-FRN-SiLU, of depth 20: 272,474 weights; no generator is touched."""
    return _seeded(lambda: ResNet(shape, FilterResponseNorm), seed)


def resnet_group_norm(shape: ResNetShape = RESNET8, seed: int = 0, groups: int = 8) -> ResNet:
    """Return a fresh ResNet-GroupNorm-SiLU, of depth 8: 78,042 weights; no generator is touched.

    Args:
        groups: of channels in each norm; the width must be a multiple.
    """
    if groups < 1 or shape.width % groups:
        raise InputError(f"{shape.width} channels have no {groups} groups of equal size")
    return _seeded(lambda: ResNet(shape, lambda channels: nn.GroupNorm(groups, channels)), seed)
