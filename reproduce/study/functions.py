"""Functions and modules in a user's Python files."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lpe.errors import InputError


def run_file(path: Path) -> ModuleType:
    """Return the module of a Python file, run once; modules beside it can be imported by it.

    Args:
        path: absolute.

    Raises:
        InputError: it cannot be run.
    """
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a file that ends its process is no end of a run
        del sys.modules[name]
        raise InputError(f"{path.name} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _module_name(path: Path) -> str:
    """By the file's place: another file of the same name is another module, in every process the same."""
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def is_function(text: str) -> bool:
    """Tell whether a text names a function in a Python file: "net.py:make"."""
    return text.partition(":")[0].endswith(".py")


def function(text: str, folder: Path) -> Callable[..., Any]:
    """Return the function that "net.py:make" names.

    Args:
        folder: that the file's path is relative to.

    Raises:
        InputError: there is no such file, it cannot be run, or has no such function.
    """
    file, _, name = text.partition(":")
    if not is_function(text) or not name:
        raise InputError(
            f"{text!r} names no function; a file and a function, such as net.py:make, is expected"
        )
    path = (folder / file).resolve()
    if not path.is_file():
        raise InputError(f"there is no file {file}, of which {name} is asked")
    module = run_file(path)
    found = getattr(module, name, None)
    if not callable(found):
        here = [key for key, each in vars(module).items() if inspect.isfunction(each) and key[0] != "_"]
        raise InputError(f"{file} has no function {name!r}; it has {', '.join(here) or 'none'}")
    result: Callable[..., Any] = found
    return result


def root(text: str, folder: Path) -> str:
    """Return "module:name" of the function that "net.py:make" names, as keys ask for what it depends on.

    Raises:
        InputError: as :func:`function`.
    """
    function(text, folder)
    file, _, name = text.partition(":")
    return f"{_module_name((folder / file).resolve())}:{name}"


def called(text: str, folder: Path, arguments: Mapping[str, Any]) -> Any:
    """Return what a function of a file returns.

    Raises:
        InputError: as :func:`function`; the function fails.
    """
    of = function(text, folder)
    try:
        return of(**arguments)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{text} failed: {type(error).__name__}: {error}") from error
