"""A linear layer of fewer bits elsewhere, on a CPU: the peers' code, which stays as it is.

Each function is given a float32 ``nn.Linear`` and returns a :class:`PeerLayer`, or why there is none here.
All of them hold one network. None holds several that differ.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

INT8_LARGEST = 127
INT4_GROUP = 128
"""Inputs that share a scale in torchao's 4 bits, its default."""


@dataclass(frozen=True)
class PeerLayer:
    """A linear layer as a peer has it.

    Args:
        run: inputs [positions, in], float32 → [positions, out]. memory_bytes: of weights and scales, without
            the bias.
    """

    run: Callable[[Tensor], Tensor]
    memory_bytes: float


Made = PeerLayer | str


def bfloat16(net: nn.Linear) -> Made:
    """Return torch's own layer in bfloat16."""
    cast = copy.deepcopy(net).bfloat16()
    return PeerLayer(lambda x: cast(x.bfloat16()), 2 * net.weight.numel())


def quantized_dynamic(engine: str, net: nn.Linear) -> Made:
    """Return torch's dynamic int8 layer: int8 weights, a scale an output, inputs rounded as they come.

    Inputs have 7 bits (``reduce_range``), as ``torch.ao.quantization.quantize_dynamic`` sets it: with 8 the
    sums of two products overflow on a CPU without VNNI.

    Args:
        engine: "fbgemm" or "onednn".
    """
    scales = net.weight.detach().abs().amax(dim=1) / INT8_LARGEST
    return of_codes(engine, net, torch.round(net.weight.detach() / scales[:, None]).to(torch.int8), scales)


def of_codes(engine: str, net: nn.Linear, codes: Tensor, scales: Tensor) -> Made:
    """Return the same layer with given weights.

    Args:
        codes: int8 [out, in]. scales: float32 [out].
    """
    if engine not in torch.backends.quantized.supported_engines:
        return f"torch has no {engine} here"
    try:
        with _engine(engine), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of quantised tensors, which torch will take away
            zeros = torch.zeros(len(scales), dtype=torch.int64)
            weight = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
            packed = torch.ops.quantized.linear_prepack(weight, net.bias)
            torch.ops.quantized.linear_dynamic(torch.zeros(1, net.in_features), packed, True)
    except (RuntimeError, AttributeError) as error:
        return _first_line(error)

    def run(inputs: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic(inputs, packed, True)
        return product

    return PeerLayer(run, codes.numel() + 4 * scales.numel())


def int_mm(net: nn.Linear) -> Made:
    """Return ``torch._int_mm`` with a scale an output and one an input row, as torchao calls it."""
    scales = net.weight.detach().abs().amax(dim=1) / INT8_LARGEST
    codes = torch.round(net.weight.detach() / scales[:, None]).to(torch.int8).t()

    def run(inputs: Tensor) -> Tensor:
        of_rows = inputs.abs().amax(dim=1, keepdim=True) / INT8_LARGEST
        rounded = torch.round(inputs / of_rows).to(torch.int8)
        return torch._int_mm(rounded, codes) * of_rows * scales + net.bias

    return _tried(run, net, codes.numel() + 4 * scales.numel())


def torchao_int8(net: nn.Linear) -> Made:
    """Return torchao's layer of int8 weights and float32 inputs."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except Exception as error:  # what it imports and registers fails in ways of its own
        return _first_line(error)
    return _of_torchao(quantize_, Int8WeightOnlyConfig(version=2), net, torch.float32, 8)


def torchao_int4(net: nn.Linear) -> Made:
    """Return torchao's layer of 4-bit weights and bfloat16 inputs, whose kernel is torch's own.

    In float32 the kernel is the slow one of its definition.
    """
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import quantize_
    except Exception as error:
        return _first_line(error)
    config = PrototypeInt4WeightOnlyConfig(group_size=INT4_GROUP, set_inductor_config=False)
    # A group has a scale and a zero point of bfloat16.
    return _of_torchao(quantize_, config, net, torch.bfloat16, 4 + 32 / INT4_GROUP)


def _of_torchao(
    quantize: Callable[..., object], config: object, net: nn.Linear, dtype: torch.dtype, bits: float
) -> Made:
    # It replaces layers within a module.
    holder = nn.Sequential(copy.deepcopy(net)).to(dtype)
    try:
        quantize(holder, config)
    except Exception as error:
        return _first_line(error)
    return _tried(lambda x: holder(x.to(dtype)), net, net.weight.numel() * bits / 8)


def bitsandbytes_int8(net: nn.Linear) -> Made:
    """Return bitsandbytes' layer of int8 weights, without outliers apart."""
    try:
        from bitsandbytes.nn import Linear8bitLt
    except Exception as error:
        return _first_line(error)
    # It says of every product that inputs are cast.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    made = Linear8bitLt(net.in_features, net.out_features, has_fp16_weights=False, threshold=0.0)
    return _of_bitsandbytes(made, net, 8)


def bitsandbytes_nf4(net: nn.Linear) -> Made:
    """Return bitsandbytes' layer of NF4 weights, 64 a block, and float32 inputs."""
    try:
        from bitsandbytes.nn import Linear4bit
    except Exception as error:
        return _first_line(error)
    made = Linear4bit(
        net.in_features,
        net.out_features,
        quant_type="nf4",
        compress_statistics=False,
        compute_dtype=torch.float32,
    )
    return _of_bitsandbytes(made, net, 4 + 32 / 64)


def _of_bitsandbytes(made: nn.Module, net: nn.Linear, bits: float) -> Made:
    try:
        made.load_state_dict(net.state_dict())
        placed = made.to("cpu").eval()
    except Exception as error:
        return _first_line(error)
    return _tried(placed, net, net.weight.numel() * bits / 8)


PEERS: dict[str, Callable[[nn.Linear], Made]] = {
    "bfloat16": bfloat16,
    "int8, inputs too: FBGEMM": lambda net: quantized_dynamic("fbgemm", net),
    "int8, inputs too: oneDNN": lambda net: quantized_dynamic("onednn", net),
    "int8, inputs too: torch._int_mm": int_mm,
    "int8 weights: torchao": torchao_int8,
    "int4 weights, bfloat16: torchao": torchao_int4,
    "int8 weights: bitsandbytes": bitsandbytes_int8,
    "NF4 weights: bitsandbytes": bitsandbytes_nf4,
}
"""How each peer's layer is made, by the name of its row."""


def _tried(run: Callable[[Tensor], Tensor], net: nn.Linear, memory_bytes: float) -> Made:
    """Return the layer if a product of it runs here."""
    try:
        run(torch.ones(1, net.in_features))
    except Exception as error:  # a kernel that is not there is told in many ways
        return _first_line(error)
    return PeerLayer(run, memory_bytes)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class _engine:
    """Sets torch's engine of quantised layers within a block."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self.name

    def __exit__(self, *_: object) -> None:
        torch.backends.quantized.engine = self.before
