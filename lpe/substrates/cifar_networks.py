"""Small networks for CIFAR-10 without batch norm: ResNets with filter response or group norms, and ViTs.

He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2: a 3×3 stem, three stages of n
basic blocks, each stage of twice the channels at half the side, mean pooling, a linear layer; depth 6n + 2.
Filter response norm, Singh & Krishnan 2020, here without its thresholded unit:

    y = x · (mean over space of x² + 10⁻⁶)^(−½) · weight + bias, for each example and channel by itself.

The Vision Transformer (Dosovitskiy et al. 2021, "An image is worth 16×16 words") is timm's, with mean pooling
and no class token, as the digits' is.

No tensor depends on other examples, so rounding or averaging weights leaves no statistics behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpe.checks import check_finite, check_integer
from lpe.errors import InputError
from lpe.extras import needs
from lpe.substrates.cifar import SIDE, check_classes
from lpe.substrates.loading import load_state, read_weights

Network = TypeVar("Network", bound=nn.Module)

EPSILON = 1e-6


def filter_response_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Filter response norm of [examples, channels, height, width]; computed in float32 at the least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide.square().mean(dim=(2, 3), keepdim=True) + EPSILON).rsqrt() * weight.view(-1, 1, 1)
    return torch.addcmul(bias.view(-1, 1, 1), wide, scale).to(x.dtype)


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


def _seeded(make: Callable[[], Network], seed: int) -> Network:
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


def load_resnet_frn(path: str | os.PathLike[str]) -> ResNet:
    """Return the ResNet-20-FRN-SiLU with the weights of a file, every one by its name, in eval mode.

    Args:
        path: see :func:`lpe.substrates.loading.read_weights`.

    Raises:
        InputError: a file that cannot be read; this network trained for other classes; the weights of
            another network, with the first three names that are missing, unexpected and of other shapes.
    """
    net = resnet_frn()
    weights = read_weights(path)
    if weights.keys() == net.state_dict().keys():
        check_classes(weights["fc.bias"].numel(), f"the network of {path}")
    load_state(net, weights, str(path))
    return net.eval()


@dataclass(frozen=True)
class ViTShape:
    """The shape of a Vision Transformer.

    Args:
        patch: pixels a side of a patch, a divisor of 32. width: embedding. depth: blocks. heads: attention
            heads, a divisor of the width. mlp_ratio: hidden width of the MLP over the embedding's.
        position_std: of the positional embedding at the start; at timm's .02 small networks of small patches
            stall (see :mod:`lpe.substrates.digits`). classes: logits.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    position_std: float
    classes: int

    def __post_init__(self) -> None:
        for name in ("patch", "width", "depth", "heads", "classes"):
            check_integer(f"a ViT's {name}", getattr(self, name), 1)
        check_finite("a ViT's mlp_ratio", self.mlp_ratio, above=True)
        check_finite("a ViT's position_std", self.position_std)
        if SIDE % self.patch:
            raise InputError(f"a ViT's patch must divide {SIDE}, not {self.patch}")
        if self.width % self.heads:
            raise InputError(f"a ViT's width must be a multiple of its {self.heads} heads, not {self.width}")


VITS = {
    name: ViTShape(
        patch=8, width=width, depth=4, heads=width // 16, mlp_ratio=4.0, position_std=0.5, classes=10
    )
    for name, width in {"T": 32, "S": 48, "B": 64, "L": 96}.items()
}
"""Four widths; each head is 16 wide, as those of ViT-T, S, B and L are all 64 wide."""


def small_vit(shape: ViTShape = VITS["B"], seed: int = 0) -> nn.Module:
    """Return a fresh Vision Transformer for images [examples, 3, 32, 32]; no generator is touched.

    At widths 32, 48, 64 and 96 it has 57,898, 123,706, 214,090 and 468,586 weights.
    """
    needs("timm")

    from timm.models.vision_transformer import VisionTransformer

    def make() -> VisionTransformer:
        net = VisionTransformer(
            img_size=SIDE,
            patch_size=shape.patch,
            num_classes=shape.classes,
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

    return _seeded(make, seed)
