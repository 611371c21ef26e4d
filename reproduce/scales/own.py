"""A scale of one's own: a Python file that names one ``SCALE``."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lpe.errors import InputError
from reproduce.study.scale import Scale

KINDS = (".py",)


def is_file(name: str) -> bool:
    """Tell whether a scale's name is that of a file."""
    return name.endswith(KINDS)


_LOADED: list[str] = []


def load_all(names: list[str]) -> None:
    """Load files, as another process has, so that what is sent from there is known here."""
    for name in names:
        load(name)


def in_another_process() -> Callable[[], None]:
    """Return what loads the files of this process in another."""
    return partial(load_all, list(_LOADED))


@functools.cache
def load(name: str) -> Scale:
    """Return the scale that a file gives.

    Raises:
        InputError: there is no such file, it cannot be run, or names no scale.
    """
    path = Path(name).resolve()
    if not path.is_file():
        raise InputError(f"there is no scale's file {name}")
    # By the file's place: another file of the same name is another module, in every process the same.
    module_name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise InputError(f"{name} cannot be run: {type(error).__name__}: {error}") from error
    scale = getattr(module, "SCALE", None)
    if not isinstance(scale, Scale):
        raise InputError(f"{name} names no SCALE; give it a reproduce.study.scale.Scale of that name")
    _LOADED.append(str(path))
    return scale
