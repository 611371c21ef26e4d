"""Contents of modules beside their tensors: are they as they were, and who may keep a weight there."""

from __future__ import annotations

import builtins
import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ATOMIC = {
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
"""Types whose values a copy shares."""
CONTAINERS = {dict, OrderedDict, list, tuple, builtins.set}
"""Types whose values a copy has of its own, with copies of what they hold."""


class Contents:
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


def containers_in(modules: Sequence[nn.Module]) -> list[Any]:
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
            elif kind not in ATOMIC:
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
        if kind in ATOMIC or id(value) in seen or isinstance(value, _CLOSED):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, _FILLED):
            waiting += value
        if kind not in CONTAINERS and not isinstance(value, Tensor):
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


def caches_calls(kind: type[nn.Module]) -> bool:
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
