"""A model's structure: its tensors by name, copies that share them, and whether they are as they were.

A copy is what ``copy.deepcopy`` gives, but for the tensors: those that are replaced are new, the others are
frozen views of the model's. Wrappers that only forward (``torch.compile``, DataParallel) are left out of it.

What of a module is a plain attribute is copied as such. So a network that holds on to itself by other means
(a ``forward`` that is a closure over it, values that it computed from a weight and kept) has copies that
compute with its own weights: ``lpe.ensembles.reach`` sees that.
"""

from __future__ import annotations

import builtins
import copy
import copyreg
import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    # Tied tensors are usually one object; some libraries tie by sharing the memory instead.
    if tensor.is_meta or tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())


def named_tensors(model: nn.Module) -> list[NamedTensor]:
    """List every parameter and buffer once, in the model's order, under the first of its canonical names."""
    return list(_by_identity(model).values())


def _by_identity(model: nn.Module) -> dict[tuple[Any, ...], NamedTensor]:
    places = _places(model)
    canonical = _namer(places)
    found: dict[tuple[Any, ...], list[tuple[str, Tensor, str, bool]]] = {}
    for kind, held in (("parameter", "_parameters"), ("buffer", "_buffers")):
        for prefix, module in places:
            for name, tensor in getattr(module, held).items():
                if tensor is not None:
                    saved = name not in module._non_persistent_buffers_set
                    entry = (canonical(prefix + name), tensor, kind, saved)
                    found.setdefault(_identity(tensor), []).append(entry)
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
        if _wrapped(module) is not None:
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


def _wrapped(module: nn.Module) -> nn.Module | None:
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
    while (inside := _wrapped(model)) is not None:
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


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Copy the model, in eval mode, with some tensors replaced; see :meth:`Structure.copy`."""
    return Structure(model).copy(tensors)


@dataclass(frozen=True)
class _Held:
    """A parameter or buffer object of the model, and what was seen of it."""

    tensor: Tensor
    name: str
    is_parameter: bool
    is_saved: bool
    seen: tuple[Any, ...]


def _seen(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells that a tensor is as it was; of an edit through ``.data`` nothing tells."""
    version = None if tensor.is_inference() else tensor._version
    return (tensor.dtype, tensor.shape, tensor.device, tensor.data_ptr(), version)


_PLACE = 3
"""Number of leading entries of :func:`_seen` that a cast or a move changes: dtype, shape and device."""


class Structure:
    """A model as it is now: of what it consists, and how it is copied.

    Args:
        model: any module. Out of wrappers, see :func:`unwrapped`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model = unwrapped(model)
        by_identity = _by_identity(model)
        self.tensors = list(by_identity.values())
        self._modules = list(model.modules())
        self._module_ids = {id(module) for module in self._modules}
        self._contents = _Contents(
            contents
            for module in self._modules
            for contents in (module._parameters, module._buffers, module._modules)
        )
        self._buffered = [m for m in self._modules if m._buffers and _wrapped(m) is None]
        self._wrappers = [module for module in self._modules if _wrapped(module) is not None]
        self._plain = [m for m in self._modules if _is_plain(type(m)) and _wrapped(m) is None]
        self._names = {name: entry.name for entry in self.tensors for name in (entry.name, *entry.also)}
        self._entries = {entry.name: entry for entry in self.tensors}
        self._by_identity = {identity: entry.name for identity, entry in by_identity.items()}
        held: dict[int, _Held] = {}
        for module in self._modules:
            for tensors in (module._parameters, module._buffers):
                for tensor in tensors.values():
                    if tensor is not None and id(tensor) not in held:
                        is_parameter = tensors is module._parameters
                        entry = by_identity[_identity(tensor)]
                        held[id(tensor)] = _Held(tensor, entry.name, is_parameter, entry.saved, _seen(tensor))
        self._held = held

    def check_unchanged(self, values: Collection[str] | None = None) -> None:
        """Check that the model is the one that it was, for an ensemble that was made of it.

        Args:
            values: canonical names of the tensors whose values matter; None: all.

        Raises:
            InputError: a tensor that was replaced, moved, cast or written since, or a module that was
                exchanged. (A write through ``.data`` leaves no trace and is not seen.)
        """
        if not self._contents.hold():
            self._check_objects()
        for each in self._held.values():
            now = _seen(each.tensor)
            if now != each.seen:
                if now[:_PLACE] != each.seen[:_PLACE]:
                    raise InputError(_changed(each.name, "was cast or moved"))
                if each.is_saved and (values is None or each.name in values):
                    raise InputError(_changed(each.name, "has changed"))

    def _check_objects(self) -> None:
        for module in self._modules:
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    # What is not saved are tables and caches, which a pass may replace and write.
                    if tensor is not None and id(tensor) not in self._held:
                        if name not in module._non_persistent_buffers_set:
                            raise InputError(_changed(name, "was replaced"))
            for name, child in module._modules.items():
                if child is not None and id(child) not in self._module_ids:
                    raise InputError(_changed(name, "was replaced"))

    def copy(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Copy the model, in eval mode, with some tensors replaced and all others shared.

        What is shared are views of the model's tensors: objects of the copy's own, which ask for no gradient,
        so that casting, moving or optimising the copy changes the model in nothing. Buffers, which passes in
        training mode write, are shared until ``train()``: see :func:`own_buffers`.

        Args:
            tensors: canonical name → replacement of the same shape. Tied tensors are replaced together.

        Raises:
            InputError: a name that the model does not have, or a shape that does not fit.
        """
        replaced: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if name not in self._names:
                raise InputError(f"the model has no tensor named {name!r}")
            entry = self._entries[self._names[name]]
            if value.shape != entry.tensor.shape:
                raise InputError(
                    f"tensor {entry.name!r} has shape {list(entry.tensor.shape)}, not {list(value.shape)}"
                )
            # Of a tensor that is given under two names, the first name's.
            if entry.name not in replaced or name == entry.name:
                replaced[entry.name] = value
        return _Copy(self, replaced).of(self.model).eval()

    def held(self) -> list[nn.Module | Tensor]:
        """Return the modules, parameters and buffers themselves, which a copy has others in place of."""
        return [*self._modules, *(each.tensor for each in self._held.values())]

    def is_plain(self, module: nn.Module) -> bool:
        """Tell whether a module is copied attribute by attribute, or as torch's layers copy themselves."""
        own_way = type(module).__module__.startswith("torch.nn.modules.")
        return own_way or _is_plain(type(module)) or _wrapped(module) is not None

    def first_name(self, name: str) -> str:
        """Return the first of a tensor's names, by any of them."""
        return self._names.get(name, name)

    def tensor(self, name: str) -> Tensor:
        """Return the model's tensor of a name."""
        return self._entries[self._names[name]].tensor

    def __reduce__(self) -> tuple[Any, ...]:
        # Objects are known by where they are: a structure that is copied or read back is made anew.
        return Structure, (self.model,)

    def replacement(self, tensor: Tensor, replaced: Mapping[str, Tensor]) -> Tensor | None:
        """Return what replaces a tensor that is held beside parameters and buffers; None: nothing does."""
        name = self._by_identity.get(_identity(tensor))
        return None if name is None else replaced.get(name)


def _changed(name: str, what: str) -> str:
    return (
        f"{name!r} of the model {what} after the ensemble was made, whose members would be neither the old "
        "network's nor the new one's; make the ensemble anew"
    )


class _Contents:
    """The objects that some containers hold, to tell whether they hold the same ones later.

    Args:
        containers: dicts, lists, sets and deques, of these classes or made from them.
    """

    def __init__(self, containers: Iterable[Any]) -> None:
        containers = list(containers)
        self._empty = [each for each in containers if not each]
        self._filled = [(each, _plain_copy(each)) for each in containers if each]

    def hold(self) -> bool:
        """Tell whether each dict holds what it held: objects that are one are not looked into."""
        try:
            return not any(self._empty) and all(each == held for each, held in self._filled)
        except (RuntimeError, TypeError, ValueError):
            return False  # one that cannot be compared (a tensor) took the place of another


_MUTABLE = (dict, list, builtins.set, deque)
_FILLED = (list, tuple, builtins.set, frozenset, deque)
_CLOSED = (type, types.MethodType, types.ModuleType)
_REGISTERED = {"_parameters", "_buffers", "_modules"}


def _plain_copy(container: Any) -> Any:
    return next(kind for kind in _MUTABLE if isinstance(container, kind))(container)


def _containers_in(modules: Sequence[nn.Module]) -> list[Any]:
    """List what modules may keep values in: their attributes, and what can be reached from those."""
    found: list[Any] = []
    others: list[Any] = []
    for module in modules:
        found.append(vars(module))
        for name, value in vars(module).items():
            kind = type(value)
            if kind is dict or kind is OrderedDict:
                found.append(value)
                if value and name not in _REGISTERED:
                    others += value.values()
            elif kind not in _ATOMIC:
                others.append(value)
    reached = _reachable(others, {id(each) for each in (*modules, *found)})
    return found + [each for each in reached if isinstance(each, _MUTABLE)]


def _reachable(values: Iterable[Any], seen: set[int]) -> Iterator[Any]:
    """Yield values and what they hold, once each: containers, objects, tensors.

    Functions, classes, Python's modules and tensors are not looked into.

    Args:
        seen: ids of what is left out.
    """
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind in _ATOMIC or id(value) in seen or isinstance(value, _CLOSED):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, _FILLED):
            waiting += value
        if kind not in _CONTAINERS and not isinstance(value, Tensor):
            waiting.append(getattr(value, "__dict__", None))


def kept_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that the modules hold as plain values, also in containers: no parameters and no
    buffers.
    """
    registered = {
        id(tensor)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for tensor in tensors.values()
    }
    return [value for value in _reachable([model], registered) if isinstance(value, Tensor)]


def _caches_calls(kind: type[nn.Module]) -> bool:
    """Tell whether a method keeps its results in the class (``functools.cache``): nobody sees by whom."""
    if kind not in _CACHING:
        attributes = (value for each in kind.__mro__ for value in vars(each).values())
        _CACHING[kind] = any(isinstance(value, functools._lru_cache_wrapper) for value in attributes)
    return _CACHING[kind]


_CACHING: weakref.WeakKeyDictionary[type[nn.Module], bool] = weakref.WeakKeyDictionary()


_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "open_clip", "lpe")


def is_of_a_library(kind: type[nn.Module]) -> bool:
    """Tell whether a module is of a package whose modules compute with nothing but what they hold.

    Of anybody else's a class or a module of Python may keep a weight for all networks.
    """
    return kind.__module__.partition(".")[0] in _LIBRARIES


class Snapshot:
    """A network as it was made, to tell whether whoever used it since has left it so.

    Args:
        net: the network. written: parameters that are to be written over, whose values do not matter.
    """

    def __init__(self, net: nn.Module, written: Collection[Tensor]) -> None:
        self._modules = list(net.modules())
        own = {id(tensor) for tensor in written}
        held = {
            id(tensor): tensor
            for module in self._modules
            for tensors in (module._parameters, module._buffers)
            for tensor in tensors.values()
            if tensor is not None
        }
        self._own = [tensor for key, tensor in held.items() if key in own]
        self._others = [tensor for key, tensor in held.items() if key not in own]
        self._contents = _Contents(_containers_in(self._modules))
        kinds = {type(module) for module in self._modules}
        self._hides = not all(map(is_of_a_library, kinds)) or any(map(_caches_calls, kinds))
        self._written = self._versions()

    def _versions(self) -> list[tuple[Any, ...]]:
        return [*((tensor.dtype, tensor.data_ptr()) for tensor in self._own), *map(_seen, self._others)]

    def take(self) -> None:
        """Take the values that the network has now to be right."""
        self._written = self._versions()

    def holds(self) -> bool:
        """Tell whether it is as it was taken: no tensor cast, moved, written, no attribute set, no hook left.

        Of a network that may keep values where they are not seen, nothing is known.
        """
        return not self._hides and self._contents.hold() and self._versions() == self._written


_ATOMIC = {
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.layout,
    torch.memory_format,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    weakref.ref,
}
_CONTAINERS = {dict, OrderedDict, list, tuple, builtins.set}


class _Copy:
    """A copy under way: ``copy.deepcopy`` with a quick path for what modules are mostly made of.

    The memo holds every tensor, so not a weight is copied; plain references to modules and bound methods come
    to point into the copy, as with deepcopy.
    """

    def __init__(self, structure: Structure, replaced: Mapping[str, Tensor]) -> None:
        self.structure = structure
        self.replaced = replaced
        self.memo: dict[int, Any] = {}
        memo = self.memo
        with torch.no_grad():
            for key, held in structure._held.items():
                value = replaced.get(held.name)
                if held.is_parameter:
                    memo[key] = _frozen(held.tensor) if value is None else nn.Parameter(value, False)
                else:
                    memo[key] = held.tensor.detach() if value is None else value
        for module in structure._plain:
            memo[id(module)] = type(module).__new__(type(module))
        for module in structure._wrappers:
            inside = unwrapped(module)
            if id(inside) in memo:
                memo[id(module)] = memo[id(inside)]
        for module in structure._plain:
            self._fill(module)

    def of(self, module: nn.Module) -> nn.Module:
        """Return the module's copy."""
        copied: nn.Module = self._copied(module)
        for each in self.structure._buffered:
            if (own := self.memo.get(id(each))) is not None:
                own.__dict__["train"] = types.MethodType(_train_on_own_buffers, own)
        return copied

    def _fill(self, module: nn.Module) -> None:
        state = self.memo[id(module)].__dict__
        for key, value in vars(module).items():
            # The compiled call of Module.compile() is bound to the module itself; torch too leaves it out.
            if key != "_compiled_call_impl" and not _is_ours(value):
                state[key] = value if type(value) in _ATOMIC else self._copied(value)

    def _copied(self, value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMIC:
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if kind in _CONTAINERS:
            return self._container(value, kind)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            inside = unwrapped(value)
            if inside is not value:
                self.memo[id(value)] = self._copied(inside)
                return self.memo[id(value)]
            if _is_plain(kind):
                self.memo[id(value)] = nn.Module.__new__(kind)
                self._fill(value)
                return self.memo[id(value)]
        for tensor in _tensors_in(value, set()):
            if id(tensor) not in self.memo:
                self._tensor(tensor)
        return copy.deepcopy(value, self.memo)

    def _container(self, value: Any, kind: Any) -> Any:
        if not value:
            return kind()
        if kind is list:
            copied: Any = []
            self.memo[id(value)] = copied
            copied.extend(map(self._copied, value))
            return copied
        if kind in (dict, OrderedDict):
            copied = kind()
            self.memo[id(value)] = copied
            for key, each in value.items():
                copied[key] = each if type(each) in _ATOMIC else self._copied(each)
            return copied
        copied = kind([self._copied(each) for each in value])
        self.memo[id(value)] = copied
        return copied

    def _tensor(self, tensor: Tensor) -> Tensor:
        """Copy a tensor that is neither parameter nor buffer, so that nothing done to a module reaches it."""
        value = self.structure.replacement(tensor, self.replaced)
        self.memo[id(tensor)] = tensor if value is None else value
        return self.memo[id(tensor)]


def _train_on_own_buffers(module: nn.Module, mode: bool = True) -> nn.Module:
    if mode:
        own_buffers(module)
    return type(module).train(module, mode)


# A pickle calls a method by its name.
_train_on_own_buffers.__name__ = "train"


def _is_ours(value: Any) -> bool:
    return type(value) is types.MethodType and value.__func__ is _train_on_own_buffers


@torch.no_grad()
def own_buffers(net: nn.Module) -> None:
    """Give each module of a copy buffers that are its own, in place, where they are shared as yet.

    ``train()`` does so; whoever writes to buffers of a copy in eval mode calls this before.
    """
    for module in net.modules():
        if _is_ours(vars(module).get("train")):
            del module.__dict__["train"]
            # They are written to later, which tensors of the caller's inference mode could not be.
            with torch.inference_mode(False):
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = buffer.clone()


def _is_plain(kind: type[nn.Module]) -> bool:
    """Tell whether ``copy.deepcopy`` would copy modules of this type attribute by attribute."""
    if kind not in _PLAIN:
        _PLAIN[kind] = (
            kind.__setstate__ is nn.Module.__setstate__
            and getattr(kind, "__getstate__", None) is getattr(nn.Module, "__getstate__", None)
            and kind.__reduce_ex__ is object.__reduce_ex__
            and kind.__reduce__ is object.__reduce__
            and not hasattr(kind, "__deepcopy__")
            and not hasattr(kind, "__getnewargs_ex__")
            and not hasattr(kind, "__getnewargs__")
            and kind not in copyreg.dispatch_table
        )
    return _PLAIN[kind]


_PLAIN: weakref.WeakKeyDictionary[type[nn.Module], bool] = weakref.WeakKeyDictionary()


def _frozen(parameter: Tensor) -> Tensor:
    """Return a parameter of the same memory, which asks for no gradient."""
    if type(parameter) is nn.Parameter:
        view: Tensor = nn.Parameter(parameter, requires_grad=False)
    elif isinstance(parameter, nn.Parameter) and not hasattr(type(parameter), "__tensor_flatten__"):
        view = torch.Tensor._make_subclass(type(parameter), parameter, False)
    else:
        view = nn.Parameter(parameter.detach(), requires_grad=False)
    if noted := parameter.__dict__:
        view.__dict__.update(noted)
    return view


def _tensors_in(held: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield every tensor of a module, also those in plain containers and in unregistered modules."""
    if isinstance(held, Tensor | nn.Module | Mapping | list | tuple | set) and id(held) not in seen:
        seen.add(id(held))
        if isinstance(held, Tensor):
            yield held
            return
        if isinstance(held, nn.Module):
            held = vars(held)
        for value in held.values() if isinstance(held, Mapping) else held:
            yield from _tensors_in(value, seen)
