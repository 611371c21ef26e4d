"""A network's tensors and modules by name, the wrappers around it, and what cannot be copied.

Names are canonical: what only forwards to a network (``torch.compile``, DataParallel) has no part in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lpe.checks import check_model, check_patterns
from lpe.errors import InputError
from lpe.number_systems.streams import canonical_namer


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


def identity(tensor: Tensor) -> tuple[Any, ...]:
    # Tied tensors are usually one object; some libraries tie by sharing the memory instead.
    if tensor.is_meta or tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())


def named_tensors(model: nn.Module) -> list[NamedTensor]:
    """List every parameter and buffer once, in the model's order, under the first of its canonical names."""
    return list(tensors_by_identity(model).values())


def tensors_by_identity(model: nn.Module) -> dict[tuple[Any, ...], NamedTensor]:
    places = _places(model)
    canonical = _namer(places)
    found: dict[tuple[Any, ...], list[tuple[str, Tensor, str, bool]]] = {}
    for kind, held in (("parameter", "_parameters"), ("buffer", "_buffers")):
        for prefix, module in places:
            for name, tensor in getattr(module, held).items():
                if tensor is not None:
                    saved = name not in module._non_persistent_buffers_set
                    entry = (canonical(prefix + name), tensor, kind, saved)
                    found.setdefault(identity(tensor), []).append(entry)
    return {
        identity: NamedTensor(
            name=entries[0][0],
            tensor=entries[0][1],
            also=tuple(dict.fromkeys(entry[0] for entry in entries[1:] if entry[0] != entries[0][0])),
            kind=entries[0][2],
            saved=any(entry[3] for entry in entries),
        )
        for identity, entries in found.items()
    }


def _places(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """List every place of a module, in the model's order: its tensors' prefix, and the module."""
    check_model(module)
    places = []

    def walk(prefix: str, module: nn.Module) -> None:
        places.append((prefix, module))
        for name, child in module._modules.items():
            if child is not None:
                walk(f"{prefix}{name}.", child)

    walk("", module)
    return places


def _namer(places: Sequence[tuple[str, nn.Module]]) -> Callable[[str], str]:
    names = [
        prefix + name
        for prefix, module in places
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    if not names:
        names = [prefix for prefix, _ in places if prefix]
    for prefix, module in places:
        # What is wrapped may have no tensors.
        if wrapped(module) is not None:
            names += [f"{prefix}{name}." for name in module._modules]
    return canonical_namer(names)


def canonical_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module once, under the first of its canonical names, in the model's order.

    What a wrapper wraps has the wrapper's place.
    """
    places = _places(model)
    canonical = _namer(places)
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for prefix, module in places:
        if id(module) not in seen:
            seen.add(id(module))
            found[canonical(prefix[:-1])] = module
    return found


def holders(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return the module that holds a tensor, and as what attribute, by each of its canonical names."""
    places = _places(model)
    canonical = _namer(places)
    return {
        canonical(prefix + attribute): (module, attribute)
        for prefix, module in places
        for attribute in (*module._parameters, *module._buffers)
    }


# Wrappers, and what cannot be copied


def wrapped(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper only forwards to; None for any other module."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inside = module.module
    elif type(module).__name__ == "OptimizedModule" and type(module).__module__.startswith("torch."):
        inside = module._modules["_orig_mod"]
    else:
        return None
    assert isinstance(inside, nn.Module)
    return inside


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers that only forward to it: torch.compile's, DataParallel's."""
    while (inside := wrapped(model)) is not None:
        model = inside
    return model


def network_of(model: Any) -> nn.Module:
    """Return the network that an ensemble is made of, out of its wrappers.

    Raises:
        InputError: no module; one whose copies would not be networks with weights of their own: scripted or
            traced, dynamically quantised, with tensors that have no values (on the meta device, offloaded) or
            no shape yet.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a model must be a torch.nn.Module, not {type(model).__name__}")
    model = unwrapped(model)
    for prefix, module in _places(model):
        if problem := _problem(module):
            raise InputError(f"{prefix[:-1] or 'the model'} is {problem}")
    return model


def _problem(module: nn.Module) -> str | None:
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return (
            f"a {kind.__name__}, whose copies share its weights; give the network that was scripted or traced"
        )
    if kind.__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
        return (
            f"a quantised {kind.__name__}, whose packed weights are no parameters; give the network before "
            "torch.ao quantised it"
        )
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and nn.parameter.is_lazy(tensor):
            return f"a {kind.__name__} whose {name!r} has no shape yet; run the model on a batch first"
        if tensor is not None and tensor.is_meta:
            hook = getattr(module, "_hf_hook", None)
            if getattr(hook, "offload", False):
                return (
                    f"a {kind.__name__} that accelerate has offloaded, so that its {name!r} has no values "
                    "here; load the model without offloading (device_map=None)"
                )
            return (
                f"a {kind.__name__} whose {name!r} is on the meta device and has no values; load its weights "
                "first"
            )
    return None


def _computing(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that may compute a weight, by canonical name."""

    def may(module: nn.Module) -> bool:
        return bool(module._forward_pre_hooks) or "parametrizations" in module._modules

    if not any(map(may, model.modules())):
        return []
    return [(name, module) for name, module in canonical_modules(model).items() if may(module)]


def computed_weights(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Return the weights that a module computes whenever it runs: canonical name → (how, what to do).

    Rounding what they are computed from would round another quantity than the weight that multiplies.
    """
    found: dict[str, tuple[str, str]] = {}
    for prefix, module in _computing(model):
        begin = f"{prefix}." if prefix else ""
        at = f"model.{prefix}" if prefix else "model"
        if parametrize.is_parametrized(module):
            for name, parts in module._modules["parametrizations"].items():  # type: ignore[union-attr, operator]
                how = f"parametrised by {', '.join(type(part).__name__ for part in parts)}"
                what = f'torch.nn.utils.parametrize.remove_parametrizations({at}, "{name}")'
                found[begin + name] = (how, what)
        for hook in module._forward_pre_hooks.values():
            kind = type(hook)
            if kind.__module__ == "torch.nn.utils.prune":
                name = hook._tensor_name  # type: ignore[attr-defined]
                found[begin + name] = ("pruned", f'torch.nn.utils.prune.remove({at}, "{name}")')
            elif kind.__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
                way = kind.__module__.rpartition(".")[2]
                name = hook.name  # type: ignore[attr-defined]
                found[begin + name] = (f"under {way}", f'torch.nn.utils.remove_{way}({at}, "{name}")')
    return found


def refuse_computed_weights(model: nn.Module, excluded: str | Sequence[str] | None) -> None:
    """Raise InputError where a module computes one of its weights whenever it runs.

    Args:
        excluded: name patterns of tensors that are to stay as they are.
    """
    patterns = check_patterns(excluded)
    for name, (how, what) in computed_weights(model).items():
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            raise InputError(
                f"{name!r} is {how}: it is computed in every pass, and rounding what it is computed from is "
                f"another thing; make it a plain weight first, with {what}"
            )


# Copies
