"""What a module is to the suite: its named tensors, copies that share them, its logits and its device."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lpe.errors import InputError
from lpe.number_systems.streams import canonical_namer

SPATIAL_DIMENSIONS: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
"""Of the features that a layer sees: [batch, channels, *spatial] for a convolution, the last for a Linear."""


DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "FP32",
    torch.bfloat16: "BF16",
    torch.float16: "FP16",
    torch.float64: "FP64",
}
"""What a network that is not rounded is called, by its dtype."""


@dataclass(frozen=True)
class NamedTensor:
    """A tensor of a model: its canonical name, the tensor, and how the model holds it.

    ``also`` are the other names of a tied tensor; ``kind`` is "parameter" or "buffer"; ``saved`` tells
    whether it is part of the state dict.
    """

    name: str
    tensor: Tensor
    also: tuple[str, ...]
    kind: str
    saved: bool


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    # Tied tensors are usually one object; some libraries tie by sharing the memory instead.
    if tensor.numel() == 0 or tensor.is_meta:
        return (id(tensor),)
    return (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def named_tensors(model: nn.Module) -> list[NamedTensor]:
    """Every parameter and buffer once, in the model's order, under the first of its canonical names."""
    unsaved = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    found: dict[tuple[Any, ...], list[tuple[str, Tensor, str, bool]]] = {}
    canonical = _namer(model)
    for kind, tensors in (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in tensors:
            entry = (canonical(name), tensor, kind, name not in unsaved)
            found.setdefault(_identity(tensor), []).append(entry)
    return [
        NamedTensor(
            name=entries[0][0],
            tensor=entries[0][1],
            also=tuple(dict.fromkeys(entry[0] for entry in entries[1:] if entry[0] != entries[0][0])),
            kind=entries[0][2],
            saved=any(entry[3] for entry in entries),
        )
        for entries in found.values()
    ]


def _namer(model: nn.Module) -> Callable[[str], str]:
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    # Where there are no tensors (a network of dropout alone), the modules tell.
    names = [name for name, _ in held] or [f"{name}." for name, _ in model.named_modules() if name]
    return canonical_namer(names)


def canonical_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module once, under the first of its canonical names, in the model's order.

    What a wrapper wraps has the wrapper's place.
    """
    canonical = _namer(model)
    return {canonical(name): module for name, module in model.named_modules()}


def holders(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Which module holds a tensor, and as what attribute, by each of the tensor's canonical names."""
    canonical = _namer(model)
    return {
        canonical(f"{prefix}.{attribute}" if prefix else attribute): (module, attribute)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for attribute in (*module._parameters, *module._buffers)
    }


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model's structure, in eval mode, with some tensors replaced and all others shared.

    Args:
        model: any module; it is left as it is.
        tensors: canonical name → replacement of the same shape. Tied tensors are replaced together.

    Raises:
        InputError: a name that the model does not have, or a shape that does not fit.
    """
    replaced = dict(tensors)
    by_identity: dict[tuple[Any, ...], Tensor] = {}
    for entry in named_tensors(model):
        value = next((replaced.pop(n) for n in (entry.name, *entry.also) if n in replaced), None)
        if value is None:
            continue
        if value.shape != entry.tensor.shape:
            raise InputError(
                f"tensor {entry.name!r} has shape {list(entry.tensor.shape)}, not {list(value.shape)}"
            )
        by_identity[_identity(entry.tensor)] = value
    if replaced:
        raise InputError(f"the model has no tensor named {next(iter(replaced))!r}")

    memo: dict[int, Any] = {}
    modules = list(model.modules())
    for held in _tensors_in(model, set()):
        replacement = by_identity.get(_identity(held))
        if replacement is None:
            memo[id(held)] = held
        elif isinstance(held, nn.Parameter):
            memo[id(held)] = nn.Parameter(replacement, requires_grad=False)
        else:
            memo[id(held)] = replacement
    return _structural_copy(model, modules, memo).eval()


def _tensors_in(held: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor of a module, also those in plain containers and in modules that are not registered."""
    if isinstance(held, Tensor | nn.Module | Mapping | list | tuple | set) and id(held) not in seen:
        seen.add(id(held))
        if isinstance(held, Tensor):
            yield held
            return
        if isinstance(held, nn.Module):
            held = vars(held)
        for value in held.values() if isinstance(held, Mapping) else held:
            yield from _tensors_in(value, seen)


_ATOMIC = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, type)


def _structural_copy(model: nn.Module, modules: Sequence[nn.Module], memo: dict[int, Any]) -> Any:
    """``copy.deepcopy(model, memo)`` with a quick path for what modules are mostly made of.

    The memo holds every tensor, so not a weight is copied; plain references to modules and bound methods
    come to point into the copy, as with deepcopy.
    """
    plain = [
        module
        for module in modules
        if type(module).__setstate__ is nn.Module.__setstate__
        and type(module).__reduce_ex__ is object.__reduce_ex__
        and not hasattr(type(module), "__deepcopy__")
    ]
    for module in plain:
        memo[id(module)] = type(module).__new__(type(module))
    for module in plain:
        state = memo[id(module)].__dict__
        for key, value in vars(module).items():
            if isinstance(value, _ATOMIC):
                state[key] = value
            elif type(value) in (dict, OrderedDict):
                state[key] = type(value)((k, _copied(v, memo)) for k, v in value.items())
            else:
                state[key] = copy.deepcopy(value, memo)
    return copy.deepcopy(model, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    return value if isinstance(value, _ATOMIC) else copy.deepcopy(value, memo)


def apply(model: nn.Module, inputs: Any) -> Tensor:
    """The model's logits on a batch.

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
    """Bits of a tensor at its own precision."""
    return tensor.numel() * tensor.element_size() * 8


def to_device(inputs: Any, device: torch.device) -> Any:
    """The inputs (tensor, tuple, list or dict of them) on a device."""
    return tree_map(lambda values: values.to(device), inputs)


def tree_map(function: Callable[[Any], Any], inputs: Any) -> Any:
    """The inputs with ``function`` of each tensor in the tensor's place; what holds none stays as it is.

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
    """Every tensor of the inputs (tensor, tuple, list or dict of them), in their order."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, PackedSequence):
        yield inputs.data
    elif isinstance(inputs, Mapping | tuple | list):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from tensors_in(value)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first tensor; the CPU for a model without tensors."""
    first: Tensor | None = next(model.parameters(), None)
    if first is None:
        first = next(model.buffers(), None)
    return torch.device("cpu") if first is None else first.device


def dtype_name(model: nn.Module) -> str:
    """What a model is called that is not rounded: the name of the dtype of most of its parameters."""
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        name = DTYPE_NAMES.get(parameter.dtype, str(parameter.dtype).removeprefix("torch."))
        counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name], default=DTYPE_NAMES[torch.float32])


def parameter_count(model: nn.Module) -> int:
    """How many parameters a model has, tied ones once, whatever their dtype."""
    return sum(entry.tensor.numel() for entry in named_tensors(model) if entry.kind == "parameter")
