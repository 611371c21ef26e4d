"""Methods by name: lpe's own of the command line, and those of other packages."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from lpe import plugins
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError

METHODS = {"lpe": "LPE-BSR", "gaussian": "Gaussian", "mc-dropout": "MC-dropout"}
"""lpe's own, and their titles."""


def method_names() -> list[str]:
    """List the methods that can be asked for."""
    return [*METHODS, *plugins.names(plugins.METHODS, METHODS)]


def title_of(method: str) -> str:
    """Return a method's title: another package's is its name."""
    return METHODS.get(method, method)


def check_method(name: str) -> None:
    """Raise InputError unless there is such a method; another package's is imported for it."""
    if name not in METHODS:
        _loaded(name)


def made_by(name: str, model: nn.Module, systems: object, size: int, seed: int, **options: Any) -> Ensemble:
    """Return the ensemble that another package's method makes of a model.

    Args:
        name: of the method. systems: the number system, or those by name pattern.
        options: include, exclude, batches and refresh, see :mod:`lpe.plugins`; those that are None are left
            out.

    Raises:
        InputError: there is no method of this name, or two; it cannot be loaded, does not take an option, or
            makes no ensemble.
    """
    make, whose = _loaded(name)
    given = {option: value for option, value in options.items() if value is not None}
    try:
        inspect.signature(make).bind(model, systems, size, seed, **given)
    except TypeError as error:
        raise InputError(f"{whose} does not take what it is given ({error})") from None
    made = make(model, systems, size, seed, **given)
    if not isinstance(made, Ensemble) or len(made) != size:
        raise InputError(f"{whose} made {type(made).__name__}, and no lpe ensemble of {size} members")
    return made


def _loaded(name: str) -> tuple[Any, str]:
    """Return a method, and the words for it and its package."""
    brought = plugins.brought(plugins.METHODS, name, METHODS)
    if brought is None:
        raise InputError(f"unknown method {name!r}; there are {', '.join(method_names())}")
    make = brought.load()
    whose = f"the method {name!r} of {brought.owner}"
    if not callable(make):
        raise InputError(f"{whose} is {make!r}; a function of (model, system, size, seed) is expected")
    return make, whose
