"""Losses and gradients of ResNet-FRN-SiLUs of one shape, side by side, by ``frn_kernels``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpe.training.flat import FlatLayout, Gradient
from lpe.training.frn_kernels import (
    Layer,
    Tuning,
    backward,
    backward_blocks,
    forward,
    forward_blocks,
    weights_gradient,
)

STEM_CHANNELS = 4
"""Channels of the images: red, green, blue and a zero."""


@dataclass(frozen=True)
class Tunings:
    """The way in which each kind of kernel goes through a layer; functions of the layer.

    Args:
        examples: of a chunk of the weights' gradient, at most. chained: whether one kernel takes all residual
            blocks of a layer's stage that have no shortcut layers. beside: whether kernels of the weights'
            gradient, which nothing waits for, run beside the others. groups: of trainings, which run beside
            each other.
    """

    forward: Callable[[Layer], Tuning]
    backward: Callable[[Layer], Tuning]
    weights: Callable[[Layer], Tuning]
    examples: Callable[[Layer], int]
    chained: Callable[[Layer], bool]
    beside: bool
    groups: int


def _chained(layer: Layer) -> bool:
    return layer.side >= 16


def _forward_tuning(layer: Layer) -> Tuning:
    if layer.inputs == STEM_CHANNELS:
        return Tuning(128, 4, 1, 4, 64)
    if layer.kernel == 1:
        return Tuning(64, 4, 1)
    if layer.stride > 1 or layer.side < 16:
        return Tuning(64, 4, 3, 1, 64)
    if layer.residual:
        return Tuning(256, 4, 3, 1, 64)
    return Tuning(256 if layer.side >= 32 else 128, 4, 3, 1, 64, 128)


def _backward_tuning(layer: Layer) -> Tuning:
    if layer.inputs == STEM_CHANNELS:
        return Tuning(256, 4, 1, 1, 128)
    if layer.kernel == 1:
        return Tuning(128 if layer.side >= 32 else 64, 4, 1, 1, 64)
    if layer.stride > 1:
        return Tuning(256 if layer.side >= 32 else 128, 4, 3, 1, 64)
    if layer.side < 16:
        return Tuning(64, 4, 3, 1, 64)
    if layer.residual:
        return Tuning(128, 4, 3, 1, 64)
    return Tuning(256 if layer.side >= 32 else 128, 4, 3, 1, 64, 128)


def _weights_tuning(layer: Layer) -> Tuning:
    taps = 1 if layer.kernel == 1 else max(1, 64 // layer.inputs)
    large = layer.out >= 32
    return Tuning(128 if large else 64, 4, 4 if layer.side < 16 else 3, taps)


def _examples(layer: Layer) -> int:
    if layer.inputs == STEM_CHANNELS:
        return 4
    return 8 if layer.side >= 16 else 16


DEFAULT = Tunings(
    _forward_tuning, _backward_tuning, _weights_tuning, _examples, _chained, beside=True, groups=4
)
"""The fastest of some 200 that were timed on an H200, for ResNet-20, four trainings and a batch of 256: each
kernel by itself; which residual blocks to chain, and what to run beside what, by the time of a step."""


@dataclass(frozen=True)
class _Block:
    first: int
    second: int
    shortcut: int | None


def _layers(module: Any, side: int) -> tuple[list[Layer], list[tuple[str, str]], list[_Block]]:
    """Return the layers in their packed weights' order, the names of weights and norms, and the blocks."""
    layers: list[Layer] = []
    names: list[tuple[str, str]] = []
    packed = norms = 0

    def put(conv: nn.Conv2d, name: str, norm: str, side: int, active: bool, residual: bool) -> int:
        nonlocal packed, norms
        inputs = max(STEM_CHANNELS, conv.in_channels)
        (kernel, _), (stride, _) = conv.kernel_size, conv.stride
        layer = Layer(side, inputs, conv.out_channels, kernel, stride, active, residual, packed, norms)
        layers.append(layer)
        names.append((name, norm))
        packed, norms = packed + layer.size, norms + 2 * layer.outputs
        return len(layers) - 1

    put(module.conv1, "conv1.weight", "norm1", side, True, False)
    blocks = []
    for stage, group in enumerate(module.layers):
        for number, block in enumerate(group):
            name = f"layers.{stage}.{number}"
            out = side // block.conv1.stride[0]
            shortcut = None
            if not isinstance(block.shortcut, nn.Identity):
                shortcut = put(
                    block.shortcut[0], f"{name}.shortcut.0.weight", f"{name}.shortcut.1", side, False, False
                )
            first = put(block.conv1, f"{name}.conv1.weight", f"{name}.norm1", side, True, False)
            second = put(block.conv2, f"{name}.conv2.weight", f"{name}.norm2", out, True, True)
            blocks.append(_Block(first, second, shortcut))
            side = out
    return layers, names, blocks


def _chains(layers: list[Layer], blocks: list[_Block], tunings: Tunings) -> list[list[_Block]]:
    """Return the blocks, those that one kernel takes together."""
    found: list[list[_Block]] = []
    for block in blocks:
        layer = layers[block.first]
        joins = found and block.shortcut is None and found[-1][-1].shortcut is None
        if joins and tunings.chained(layer) and layers[found[-1][-1].first].side == layer.side:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def fused_gradient(
    module: nn.Module, side: int = 32, dtype: torch.dtype = torch.bfloat16, tunings: Tunings = DEFAULT
) -> Gradient:
    """Return a ``ResNet``'s gradient (filter response norms), of all trainings at once, by fused kernels.

    Activations and convolutions' weights are of ``dtype``, sums and norms in float32.

    Args:
        module: ``lpe.substrates.cifar_networks.resnet_frn``'s, whose weights are not used; its width is a
            power of two from 16. side: of the images, a power of two.
    """
    layers, names, blocks = _layers(module, side)
    chains = _chains(layers, blocks, tunings)
    layout = FlatLayout.of(module)
    offsets, n = layout.offsets(), layout.size
    packed_source, norm_source = _sources(layers, names, layout)
    head = [name for name in layout.shapes if name.startswith("fc.")]
    head_size = sum(layout.shapes[name].numel() for name in head)
    # Each weight's place among [packed, norms, head], to bring a gradient into the vector's order.
    placed = torch.zeros(n + 1, dtype=torch.int64)
    placed[packed_source] = torch.arange(len(packed_source))
    placed[norm_source] = len(packed_source) + torch.arange(len(norm_source))
    start = min(offsets[name] for name in head)
    if start + head_size != n:
        raise ValueError("the linear layer is not the last of the network's parameters")
    placed[start:n] = len(packed_source) + len(norm_source) + torch.arange(head_size)
    sources = {"packed": packed_source, "norms": norm_source, "placed": placed[:n]}
    moved: dict[torch.device, dict[str, Tensor]] = {}
    classes, features = layout.shapes["fc.weight"]

    def gradient(weights: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = weights.device
        if device not in moved:
            moved[device] = {name: source.to(device) for name, source in sources.items()}
        at = moved[device]
        trainings, examples = labels.shape
        padded = nn.functional.pad(weights, (0, 1))
        packed = padded.index_select(1, at["packed"]).to(dtype)
        norms = weights.index_select(1, at["norms"])
        x = images.to(dtype).contiguous()

        inputs: dict[int, Tensor] = {}
        residuals: dict[int, Tensor] = {}
        ys: dict[int, Tensor] = {}
        scales: dict[int, Tensor] = {}

        def run(index: int, given: Tensor, residual: Tensor | None = None) -> Tensor:
            layer = layers[index]
            inputs[index] = given
            if residual is not None:
                residuals[index] = residual
            ys[index], z, scales[index] = forward(
                layer, given, packed, norms, residual, tunings.forward(layer)
            )
            return z

        z = run(0, x)
        chained: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        for chain in chains:
            block = chain[0]
            layer = layers[block.first]
            if block.shortcut is None and tunings.chained(layer):
                made = forward_blocks(layer, len(chain), z, packed, norms, tunings.forward(layer))
                chained[block.first] = (z, *made)
                z = made[1][-1]
                continue
            beside = z if block.shortcut is None else run(block.shortcut, z)
            z = run(block.second, run(block.first, z), beside)

        fc = weights[:, start : start + classes * features].view(trainings, classes, features)
        bias = weights[:, start + classes * features :].view(trainings, 1, classes)
        pixels = z.shape[2] * z.shape[3]
        means = z.view(trainings, examples, pixels, features).mean(2, dtype=torch.float32)
        log_chances = torch.baddbmm(bias, means, fc.mT).log_softmax(2)
        losses = -log_chances.gather(2, labels[:, :, None]).mean((1, 2))
        dlogits = log_chances.exp()
        dlogits.scatter_add_(2, labels[:, :, None], torch.full_like(dlogits[:, :, :1], -1.0))
        dlogits /= examples
        dfc = torch.bmm(dlogits.mT, means)
        dbias = dlogits.sum(1)
        dmeans = (torch.bmm(dlogits, fc) / pixels).to(dtype)
        dz = dmeans[:, :, None, None, :].expand_as(z).contiguous()

        dpacked = torch.empty((trainings, len(packed_source)), device=device)
        dnorms = torch.empty((trainings, examples, len(norm_source)), device=device)
        partials = _Partials(layers, tunings, trainings, examples, device)
        side = _Side(device if tunings.beside else torch.device("cpu"))

        def back(index: int, dz: Tensor, added: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
            layer = layers[index]
            dy, dresidual, dx = backward(
                layer,
                dz,
                packed,
                norms,
                residuals.get(index),
                ys[index],
                scales[index],
                added,
                dnorms,
                index > 0,
                tunings.backward(layer),
            )
            with side.after_this(dy):
                weights_gradient(layer, inputs[index], dy, *partials.of(index), tunings.weights(layer))
            return dx, dresidual

        def back_blocks(first: int, count: int, dz: Tensor) -> None:
            layer = layers[first]
            x, y, z, scale = chained[first]
            dy = backward_blocks(
                layer,
                count,
                dz,
                packed,
                norms,
                x,
                y,
                z,
                scale,
                dnorms,
                tunings.backward(layer),
            )
            with side.after_this(dy):
                for place in range(2 * count):
                    layer, given = layers[first + place], z[place - 1] if place else x
                    partial, offset = partials.of(first + place)
                    weights_gradient(layer, given, dy[place], partial, offset, tunings.weights(layer))

        for chain in reversed(chains):
            block = chain[0]
            if block.first in chained:
                back_blocks(block.first, len(chain), dz)
                continue
            inner, dresidual = back(block.second, dz)
            if block.shortcut is not None:
                assert dresidual is not None
                dresidual, _ = back(block.shortcut, dresidual)
            assert inner is not None
            outer, _ = back(block.first, inner, dresidual)
            assert outer is not None
            dz = outer
        back(0, dz)
        side.join()
        partials.sum_into(dpacked)
        whole = torch.cat([dpacked, dnorms.sum(1), dfc.flatten(1), dbias], dim=1)
        return losses, whole.index_select(1, at["placed"])

    return gradient if tunings.groups == 1 else _beside_each_other(gradient, tunings.groups)


def _beside_each_other(gradient: Gradient, groups: int) -> Gradient:
    """Return a gradient that splits the trainings into groups, whose kernels run on streams side by side."""

    def of_groups(weights: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        sides = [_Side(weights.device) for _ in range(min(groups, len(weights)))]
        found = []
        parts = (each.tensor_split(len(sides)) for each in (weights, images, labels))
        for side, *given in zip(sides, *parts, strict=True):
            with side.after_this(*given):
                found.append(gradient(*given))
        for side in sides:
            side.join()
        losses, gradients = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(gradients)

    return of_groups


class _Side:
    """A stream of its own on a GPU; on another device, nothing."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._kept: list[Tensor] = []

    def after_this(self, *used: Tensor) -> Any:
        """Return a context whose kernels wait for those launched so far; what they use is kept until then."""
        if self._stream is None:
            return nullcontext()
        self._kept += used
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return torch.cuda.stream(self._stream)

    def join(self) -> None:
        """Make what is launched from here on wait for them."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        self._kept.clear()


class _Partials:
    """The chunks' sums of the weights' gradients: one tensor for each run of layers of one chunk size."""

    def __init__(
        self, layers: list[Layer], tunings: Tunings, trainings: int, examples: int, device: torch.device
    ) -> None:
        self.groups: list[tuple[int, int, Tensor]] = []
        self.place: list[tuple[int, int]] = []
        runs: list[tuple[int, list[Layer]]] = []
        for layer in layers:
            chunk = min(tunings.examples(layer), examples)
            while examples % chunk:
                chunk -= 1
            if not runs or runs[-1][0] != chunk:
                runs.append((chunk, []))
            runs[-1][1].append(layer)
        for number, (chunk, run) in enumerate(runs):
            first = run[0].weights
            size = sum(layer.size for layer in run)
            partial = torch.empty((examples // chunk, trainings, size), device=device)
            self.groups.append((first, size, partial))
            self.place += [(number, layer.weights - first) for layer in run]

    def of(self, index: int) -> tuple[Tensor, int]:
        """Return the tensor that holds a layer's sums, and their offset in it."""
        group, offset = self.place[index]
        return self.groups[group][2], offset

    def sum_into(self, packed: Tensor) -> None:
        """Write every layer's sums, added over the chunks, into ``packed`` [trainings, …]."""
        for first, size, partial in self.groups:
            torch.sum(partial, 0, out=packed[:, first : first + size])


def _sources(layers: list[Layer], names: list[tuple[str, str]], layout: FlatLayout) -> tuple[Tensor, Tensor]:
    """Return where packed weights [taps, in, out] and norms [weight | bias] are in a vector; n: a zero."""
    offsets, n = layout.offsets(), layout.size
    packed, norms = [], []
    for layer, (name, norm) in zip(layers, names, strict=True):
        out, given, height, width = layout.shapes[name]
        index = (offsets[name] + torch.arange(layout.shapes[name].numel())).view(out, given, height * width)
        index = nn.functional.pad(index.permute(2, 1, 0), (0, 0, 0, layer.inputs - given), value=n)
        packed.append(index.flatten())
        for kind in ("weight", "bias"):
            norms.append(offsets[f"{norm}.{kind}"] + torch.arange(out))
    return torch.cat(packed), torch.cat(norms)
