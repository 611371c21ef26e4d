"""A model's structure: copies that share its tensors, and whether these are as they were.

A copy is what ``copy.deepcopy`` gives, but for the tensors: those that are replaced are new, the others are
frozen views of the model's. Wrappers that only forward (``torch.compile``, DataParallel) are left out of it.

What of a module is a plain attribute is copied as such. So a network that holds on to itself by other means
(a ``forward`` that is a closure over it, values that it computed from a weight and kept) has copies that
compute with its own weights: ``lpe.ensembles.reach`` sees that.
"""

from __future__ import annotations

import copy
import copyreg
import types
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpe.contents import ATOMIC, CONTAINERS, Contents, caches_calls, containers_in, is_of_a_library
from lpe.errors import InputError
from lpe.networks import identity, tensors_by_identity, unwrapped, wrapped


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
        by_identity = tensors_by_identity(model)
        self.tensors = list(by_identity.values())
        self._modules = list(model.modules())
        self._module_ids = {id(module) for module in self._modules}
        self._contents = Contents(
            contents
            for module in self._modules
            for contents in (module._parameters, module._buffers, module._modules)
        )
        self._buffered = [m for m in self._modules if m._buffers and wrapped(m) is None]
        self._wrappers = [module for module in self._modules if wrapped(module) is not None]
        self._plain = [m for m in self._modules if _is_plain(type(m)) and wrapped(m) is None]
        self._trains_plainly = all(map(_trains_plainly, self._modules))
        self._names = {name: entry.name for entry in self.tensors for name in (entry.name, *entry.also)}
        self._entries = {entry.name: entry for entry in self.tensors}
        self._by_identity = {identity: entry.name for identity, entry in by_identity.items()}
        held: dict[int, _Held] = {}
        for module in self._modules:
            for tensors in (module._parameters, module._buffers):
                for tensor in tensors.values():
                    if tensor is not None and id(tensor) not in held:
                        is_parameter = tensors is module._parameters
                        entry = by_identity[identity(tensor)]
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
        copied = _Copy(self, replaced).of(self.model)
        return copied if self._is_evaluating() else copied.eval()

    def _is_evaluating(self) -> bool:
        """Tell whether a copy is in eval mode as it is, and no class has a way of its own to get there."""
        return self._trains_plainly and not any(module.training for module in self._modules)

    def held(self) -> list[nn.Module | Tensor]:
        """Return the modules, parameters and buffers themselves, which a copy has others in place of."""
        return [*self._modules, *(each.tensor for each in self._held.values())]

    def is_plain(self, module: nn.Module) -> bool:
        """Tell whether a module is copied attribute by attribute, or as torch's layers copy themselves."""
        own_way = type(module).__module__.startswith("torch.nn.modules.")
        return own_way or _is_plain(type(module)) or wrapped(module) is not None

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
        name = self._by_identity.get(identity(tensor))
        return None if name is None else replaced.get(name)


def _changed(name: str, what: str) -> str:
    return (
        f"{name!r} of the model {what} after the ensemble was made, whose members would be neither the old "
        "network's nor the new one's; make the ensemble anew"
    )


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
        self._contents = Contents(containers_in(self._modules))
        kinds = {type(module) for module in self._modules}
        self._hides = not all(map(is_of_a_library, kinds)) or any(map(caches_calls, kinds))
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
            kind = type(value)
            if kind in ATOMIC:
                # The compiled call of Module.compile() is bound to the module: torch leaves it out, too.
                if key != "_compiled_call_impl":
                    state[key] = value
            elif kind in CONTAINERS and not value:
                # Most of what a module holds: its hooks, of which it has none.
                state[key] = kind()
            elif key != "_compiled_call_impl" and not _is_ours(value):
                state[key] = self._copied(value)

    def _copied(self, value: Any) -> Any:
        kind = type(value)
        if kind in ATOMIC:
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if kind in CONTAINERS:
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
                copied[key] = each if type(each) in ATOMIC else self._copied(each)
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


def _trains_plainly(module: nn.Module) -> bool:
    """Tell whether ``train()`` and ``eval()`` do no more than torch's."""
    kind, own = type(module), vars(module)
    plain = kind.train is nn.Module.train and kind.eval is nn.Module.eval
    return plain and "eval" not in own and ("train" not in own or _is_ours(own["train"]))


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
