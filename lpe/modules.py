"""The suite's view of a module: named tensors and copies (``lpe.structure``), inputs, logits, device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lpe.checks import shown
from lpe.errors import InputError
from lpe.networks import NamedTensor as NamedTensor
from lpe.networks import canonical_modules as canonical_modules
from lpe.networks import holders as holders
from lpe.networks import named_tensors as named_tensors
from lpe.structure import with_tensors as with_tensors

SPATIAL_DIMENSIONS: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
"""Number of spatial dimensions of a layer's features: [batch, channels, *spatial]; a Linear's come last."""


DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "FP32",
    torch.bfloat16: "BF16",
    torch.float16: "FP16",
    torch.float64: "FP64",
}
"""Name of a network that is not rounded, by its dtype."""


PLAIN_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(getattr(torch, f"float8_{kind}") for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")),
    *(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(torch.bool, torch.complex32, torch.complex64, torch.complex128),
}
"""Dtypes of one value an element, which a network's tensors may have in a file."""


def apply(model: nn.Module, inputs: Any) -> Tensor:
    """Return the model's logits on a batch.

    Args:
        inputs: a tensor (the one argument), a tuple or list (positional arguments) or a dict (keywords).

    Returns:
        Logits [examples, classes], from an output that is a tensor, an object with ``.logits``, a dict with
        "logits", or a tuple or list whose first tensor they are (a loss before them, a tensor without
        dimensions, is passed over).

    Raises:
        InputError: another output, or a tuple in which a second tensor has the logits' shape (a CLIP's two
            sets of features, say), so that it does not say which are the logits.
    """
    if isinstance(inputs, Mapping):
        if not all(isinstance(key, str) for key in inputs):
            raise InputError(
                f"a dict of inputs has the names of the model's arguments, not {shown(list(inputs))}"
            )
        output = model(**inputs)
    elif isinstance(inputs, tuple | list):
        output = model(*inputs)
    else:
        output = model(inputs)
    logits = output if isinstance(output, Tensor) else _logits_in(output)
    if not isinstance(logits, Tensor):
        keys = f" with {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
        raise InputError(
            f"the model returned {type(output).__name__}{keys}; a tensor of logits is needed, an object with "
            '.logits, a dict with "logits" or a tuple that begins with them'
        )
    return logits


def _logits_in(output: Any) -> Any:
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        return output.get("logits")
    if logits is None and isinstance(output, tuple | list):
        tensors = [value for value in output if isinstance(value, Tensor) and value.dim()]
        logits = tensors[0] if tensors else None
        if any(other.shape == tensors[0].shape for other in tensors[1:]):
            raise InputError(
                f"the model returned a {type(output).__name__} with {len(tensors)} tensors, two of shape "
                f"{list(tensors[0].shape)}; which are the logits is not said: return them alone"
            )
    return logits


def tensor_bits(tensor: Tensor) -> int:
    """Return the bits of a tensor at its own precision."""
    return tensor.numel() * tensor.element_size() * 8


def to_device(inputs: Any, device: torch.device) -> Any:
    """Return the inputs (tensor, tuple, list or dict of them) on a device."""
    return tree_map(lambda values: values.to(device), inputs)


def tree_map(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Return the inputs with ``function`` of each tensor in its place; what holds none stays as it is.

    Containers keep their kind: tuples, named ones too, lists, dicts and their like (transformers'
    BatchEncoding, which torch's own trees do not look into). A PackedSequence is handed over whole.
    """
    if isinstance(inputs, Tensor | PackedSequence):
        return function(inputs)
    if isinstance(inputs, Mapping):
        mapped = {key: tree_map(function, value) for key, value in inputs.items()}
        if type(inputs) is dict or not isinstance(inputs, MutableMapping):
            return mapped
        same_kind = copy.copy(inputs)
        same_kind.update(mapped)
        return same_kind
    if isinstance(inputs, tuple | list):
        values = [tree_map(function, value) for value in inputs]
        return type(inputs)(*values) if hasattr(inputs, "_fields") else type(inputs)(values)
    return inputs


def tensors_in(inputs: Any) -> Iterator[Tensor]:
    """Yield every tensor of the inputs (tensor, tuple, list or dict of them), in their order."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, PackedSequence):
        yield inputs.data
    elif isinstance(inputs, Mapping | tuple | list):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from tensors_in(value)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first tensor; the CPU for a model without tensors."""
    first: Tensor | None = next(model.parameters(), None)
    if first is None:
        first = next(model.buffers(), None)
    return torch.device("cpu") if first is None else first.device


def dtype_name(model: nn.Module) -> str:
    """Return the name of a model that is not rounded: the name of the dtype of most of its parameters."""
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        name = DTYPE_NAMES.get(parameter.dtype, str(parameter.dtype).removeprefix("torch."))
        counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name], default=DTYPE_NAMES[torch.float32])


def parameter_count(model: nn.Module) -> int:
    """Count a model's parameters, tied ones once, whatever their dtype."""
    return sum(entry.tensor.numel() for entry in named_tensors(model) if entry.kind == "parameter")
