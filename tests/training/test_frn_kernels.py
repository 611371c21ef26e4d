"""The fused kernels' losses and gradients are autograd's.

They run in Triton's interpreter on the CPU, as a program of its own, for triton decides at import whether it
interprets; and on a GPU where there is one. Besides, every kernel of ResNet-20 is compiled for an H100, which
takes none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import lpe
from lpe.substrates.cifar_networks import RESNET20, ResNet, ResNetShape, resnet_frn
from lpe.training.flat import FlatLayout, module_gradient

KERNELS = "lpe.training.frn_kernels"
SMALL = ResNetShape(blocks=1, width=16, stages=2)
CHAINED = ResNetShape(blocks=2, width=16, stages=2)
SIDE = 8


def perturbed(net: ResNet, seed: int) -> Tensor:
    """Its weights as a vector, norms away from 1 and 0."""
    vector = FlatLayout.of(net).vector(dict(net.named_parameters()))
    return vector + 0.1 * torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))


def problem(shape: ResNetShape, side: int, examples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of two networks, images and labels."""
    weights = torch.stack([perturbed(resnet_frn(shape, seed), seed) for seed in range(2)])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, examples, side, side, 4, generator=generator)
    images[..., 3] = 0
    return weights, images, torch.randint(10, (2, examples), generator=generator)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected.double()).norm() / expected.double().norm())


def errors(
    device: str, dtype: torch.dtype, shape: ResNetShape, side: int, count: int, **changed: Any
) -> list[float]:
    """Relative errors of the losses and of each network's gradient, against autograd in float64."""
    resnet = import_module("lpe.training.frn_resnet")
    weights, images, labels = problem(shape, side, count)
    net = resnet_frn(shape)
    images = images.to(dtype)
    tunings = replace(resnet.DEFAULT, **changed)
    gradient = resnet.fused_gradient(net, side, dtype, tunings)
    losses, gradients = gradient(weights.to(device), images.to(device), labels.to(device))
    expected_losses, expected = module_gradient(net.double())(weights.double(), images.double(), labels)
    return [relative(losses, expected_losses), *map(relative, gradients, expected)]


def tuning(*numbers: int) -> Callable[[Any], Any]:
    """One for all layers, but that a 1 × 1 kernel has no taps to take together."""
    kernels = import_module(KERNELS)

    def of(layer: Any) -> Any:
        made = kernels.Tuning(*numbers)
        return replace(made, taps=1) if layer.kernel == 1 and layer.inputs >= 16 else made

    return of


Case = tuple[ResNetShape, Callable[[], dict[str, Any]]]
CASES: dict[str, Case] = {
    "as it is tuned": (CHAINED, lambda: {}),
    "blocks of 32 pixels, several taps at a time": (
        SMALL,
        lambda: {
            "forward": tuning(32, 4, 1, 4, 16),
            "backward": tuning(32, 4, 1, 2, 64),
            "weights": tuning(32, 4, 1, 4),
            "examples": lambda layer: 1,
            "chained": lambda layer: False,
            "groups": 1,
        },
    ),
    "residual blocks in one kernel": (CHAINED, lambda: {"chained": lambda layer: True}),
}


def check(device: str, name: str) -> list[float]:
    """The errors of a case in float32."""
    shape, changed = CASES[name]
    return errors(device, torch.float32, shape, SIDE, 2, **changed())


def interpreted(name: str) -> Any:
    return check("cpu", name)


def faulty() -> Any:
    """What the check finds where one layer's forward kernel is given norms without their biases."""
    kernels = import_module("lpe.training.frn_resnet")
    forward = kernels.forward

    def wrong(layer: Any, x: Tensor, weights: Tensor, norms: Tensor, *others: Any) -> Any:
        changed = norms.clone()
        changed[:, layer.norms + layer.outputs : layer.norms + 2 * layer.outputs] = 0
        return forward(layer, x, weights, changed, *others)

    with mock.patch.object(kernels, "forward", wrong):
        return interpreted("as it is tuned")


class Compiler:
    """Stands in for a kernel: compiles for an H100 what would be launched."""

    def __init__(self, kernel: Any, found: list[str]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, programs: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, *places: Any, **named: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}
        parameters = {parameter.name: parameter for parameter in self.kernel.params}
        given = dict(zip(parameters, places, strict=False))
        given |= {name: named.pop(name) for name in list(named) if name in parameters}
        signature, constants, attributes = {}, {}, {}
        for place, (name, parameter) in enumerate(parameters.items()):
            value = given[name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[name], constants[(place,)] = "constexpr", value
                continue
            signature[name] = pointers[value.dtype] if isinstance(value, Tensor) else "i32"
            if isinstance(value, Tensor) or value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=named)
        assert binary.asm["cubin"] and binary.metadata.shared <= 227 * 1024
        self.found.append(self.kernel.fn.__name__)


def compiled() -> list[str]:
    """The kernels of a step of ResNet-20 in bfloat16, compiled; the tensors hold nothing."""
    kernels, resnet = import_module(KERNELS), import_module("lpe.training.frn_resnet")
    found: list[str] = []
    layers, _, blocks = resnet._layers(resnet_frn(RESNET20), 32)
    memory: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    weights, norms = torch.empty((4, 1 << 19), **memory), torch.empty((4, 2048), device="meta")
    partial = torch.empty((32, 4, 1 << 16), device="meta")
    seen: set[tuple[Any, ...]] = set()
    patches = ("_forward", "_backward", "_weights_gradient", "_crops", "_forward_blocks", "_backward_blocks")
    with mock.patch.multiple(kernels, **{n: Compiler(getattr(kernels, n), found) for n in patches}):
        for index, layer in enumerate(layers):
            kind = (*layer.constants().values(), layer.residual)
            if kind in seen:
                continue
            seen.add(kind)
            x = torch.empty((4, 256, layer.side, layer.side, layer.inputs), **memory)
            z = torch.empty((4, 256, layer.out, layer.out, layer.outputs), **memory)
            beside = z if layer.residual else None
            kernels.forward(layer, x, weights, norms, beside, resnet.DEFAULT.forward(layer))
            kernels.backward(
                layer,
                z,
                weights,
                norms,
                beside,
                z,
                norms,
                x if layer.kernel == 3 and not layer.residual else None,
                torch.empty((4, 256, 2048), device="meta"),
                index > 0,
                resnet.DEFAULT.backward(layer),
            )
            kernels.weights_gradient(layer, x, z, partial, 16, resnet.DEFAULT.weights(layer))
        for chain in resnet._chains(layers, blocks, resnet.DEFAULT):
            layer = layers[chain[0].first]
            if chain[0].shortcut is not None or not resnet.DEFAULT.chained(layer):
                continue
            z = torch.empty((4, 256, layer.out, layer.out, layer.outputs), **memory)
            many = torch.empty((2 * len(chain), *z.shape), **memory)
            forward, backward = resnet.DEFAULT.forward(layer), resnet.DEFAULT.backward(layer)
            kernels.forward_blocks(layer, len(chain), z, weights, norms, forward)
            given = (z, many, many, norms, torch.empty((4, 256, 2048), device="meta"))
            kernels.backward_blocks(layer, len(chain), z, weights, norms, *given, backward)
        index = torch.empty((4, 256), dtype=torch.int64, device="meta")
        kernels.crops(torch.empty((50_000, 40, 40, 4), **memory), index, index, 32)
    return sorted(set(found))


def outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception:
        return traceback.format_exc()


def main(what: str) -> None:
    """Print the interpreter's or the compiler's findings as JSON."""
    torch.set_num_threads(1)
    if what == "compile":
        print(json.dumps({"compiled": outcome(compiled)}))
        return
    found: dict[str, Any] = {name: outcome(lambda name=name: interpreted(name)) for name in CASES}
    print(json.dumps(found | {"faulty": outcome(faulty)}))


@cache
def outcomes_of(what: str) -> Any:
    """What :func:`main` prints in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(lpe.__file__).parents[1])
    if what == "interpret":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, __file__, what]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted_losses_and_gradients_are_autograds(name: str) -> None:
    found = outcomes_of("interpret")[name]
    # Sums of up to 8 · 8 · 144 products in float32.
    assert max(found) < 2e-6, found


@needs_triton
def test_a_wrong_forward_pass_is_seen() -> None:
    assert min(outcomes_of("interpret")["faulty"][1:]) > 1e-3


@needs_triton
@pytest.mark.skipif(
    find_spec("triton") is not None and tuple(map(int, version("triton").split(".")[:2])) < (3, 6),
    reason="needs Triton 3.6, whose compiler takes sources so",
)
def test_every_kernel_of_a_step_compiles_for_an_h100() -> None:
    expected = ["_backward", "_backward_blocks", "_crops", "_forward", "_forward_blocks", "_weights_gradient"]
    assert outcomes_of("compile")["compiled"] == expected


@needs_triton
@needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_losses_and_gradients_are_autograds(name: str) -> None:
    assert max(check("cuda", name)) < 2e-5


@needs_triton
@needs_cuda
def test_on_a_gpu_bfloat16_errs_as_much_as_bfloat16_does() -> None:
    assert max(errors("cuda", torch.bfloat16, RESNET20, 32, 16)) < 0.05


@needs_triton
@needs_cuda
def test_crops_on_a_gpu_are_those_of_the_definition() -> None:
    from lpe.training.resident import crops

    pixels = torch.randn(9, 40, 40, 4).bfloat16()
    index, crop = torch.randint(9, (2, 7)), torch.randint(162, (2, 7))
    assert torch.equal(
        crops(pixels.cuda(), index.cuda(), crop.cuda(), 32).cpu(), crops(pixels, index, crop, 32)
    )


if __name__ == "__main__":
    main(sys.argv[1])
