"""The key of a result: everything that determines it, by construction.

A result has the same key where its recipe, its data, the code that makes it, the packages which that code
imports, the kind of device and the number of threads (and of processes that train together) are the same.
Whoever keeps a result names the functions
that make it; what these depend on is found, not listed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.provenance import kernels
from lpe.training import processes
from reproduce.study.closure import Closure, Root, is_library, project

ALWAYS = ("numpy", "torch")
"""Packages whose versions are in every key."""
DISTRIBUTIONS = {
    "PIL": "pillow",
    "ivon": "ivon-opt",
    "lm_eval": "lm-eval",
    "open_clip": "open_clip_torch",
    "sklearn": "scikit-learn",
}
"""Packages that are imported by another name: to look for it in all that is installed takes long."""


def closure(*roots: Root) -> Closure:
    """Return what functions, classes or modules of this repository depend on; see :mod:`closure`."""
    return project().closure(*roots)


def code_hash(*roots: Root) -> str:
    """Return a hash of the code that the roots depend on, themselves among it: 16 hexadecimal digits."""
    return closure(*roots).code


def versions(*roots: Root) -> dict[str, str]:
    """Return the versions of Python and of the packages that the roots import, by name."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {"python": python}
    for package in sorted({*closure(*roots).packages, *ALWAYS}):
        name, version = _version(package)
        found[name] = version
    return found


@functools.cache
def _version(package: str) -> tuple[str, str]:
    """Return a package's distribution and its version, with a hash of files that may change under it."""
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # of a module that was made by hand
        found = None
    places = [] if found is None else [*(found.submodule_search_locations or []), found.origin]
    files = [Path(place) for place in places[:1] if place is not None and Path(place).exists()]
    own = [file for file in files if not is_library(package, file)]
    try:
        name = DISTRIBUTIONS.get(package, package)
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        names = _distributions().get(package)
        if not names:
            missing = "of no distribution" if files else "not installed"
            return package, data_hash(*own) if own else missing
        name, version = names[0], importlib.metadata.version(names[0])
    return name, f"{version} {_code_of(own[0])}" if own else version


def _code_of(path: Path) -> str:
    """Return a hash of a package's Python files, as it was installed from a folder that is worked in."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return data_hash([(str(file.relative_to(path)), file) for file in files])


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def data_hash(*parts: object) -> str:
    """Return a hash of what is trained or scored on: 16 hexadecimal digits.

    Args:
        parts: tensors and arrays (dtype, shape and content), paths (a file's content; a folder's files, by
            their places in it), text, numbers, and lists, mappings and dataclasses of these.

    Raises:
        InputError: anything else, or a path at which there is nothing.
    """
    digest = hashlib.sha256()
    for piece in _pieces(parts):
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()[:16]


def _pieces(part: object) -> Iterator[bytes]:
    if isinstance(part, Tensor):
        flat = part.detach().cpu().contiguous().reshape(-1)
        yield f"{part.dtype} {list(part.shape)}".encode()
        yield flat.view(torch.uint8).numpy().tobytes()
    elif isinstance(part, np.ndarray) and part.dtype != object:
        yield f"{part.dtype} {list(part.shape)}".encode()
        yield part.tobytes()
    elif isinstance(part, Path):
        yield from _pieces_of_files(part)
    elif isinstance(part, bytes | str | int | float | np.generic | None):
        yield f"{type(part).__name__} {part!r}".encode()
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield from _pieces({field.name: getattr(part, field.name) for field in dataclasses.fields(part)})
    elif isinstance(part, Mapping):
        yield from _pieces([*part.items()])
    elif isinstance(part, list | tuple):
        yield f"{len(part)} parts".encode()
        for each in part:
            yield from _pieces(each)
    else:
        raise InputError(
            f"data of type {type(part).__name__} has no hash; give tensors, arrays, paths, text or numbers"
        )


def _pieces_of_files(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        files: Iterable[Path] = sorted(each for each in path.rglob("*") if _is_content(each))
    elif path.is_file():
        files = [path]
    else:
        raise InputError(f"there is nothing at {path}; a file or a folder is expected")
    for file in files:
        yield str(file.relative_to(path).as_posix()).encode()
        with file.open("rb") as opened:
            yield hashlib.file_digest(opened, "sha256").digest()


def _is_content(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def device_kind(device: torch.device | str) -> str:
    """Return "cpu", or the name of the graphics card."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def kernels_of(device: torch.device | str) -> dict[str, Any] | None:
    """Return what chooses the kernels on a CPU; None for a graphics card, whose kind is in the key."""
    return kernels() if torch.device(device).type == "cpu" else None


def determinants(
    *roots: Root, data: str, device: torch.device | str = "cpu", threads: int | None = None
) -> dict[str, object]:
    """Return what determines a result beside its recipe, start and seed: data, code, packages, machine.

    Args:
        roots: the functions that make it, and the classes of what is handed to them.
        data: ``data_hash`` of what it is made from. threads: that torch computes with; None: as it does now.
    """
    together = processes.active()
    return {
        "data": data,
        "code": code_hash(*roots),
        "packages": versions(*roots),
        "device": device_kind(device),
        "kernels": kernels_of(device),
        "threads": torch.get_num_threads() if threads is None else threads,
        # Sums are in another order.
        **({} if together is None else {"processes": together.count}),
    }
