"""A scale of one's own: a TOML file (:mod:`reproduce.scales.mine`), or Python that names one ``SCALE``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lpe.errors import InputError
from reproduce.scales.checks import Attribute, check_scale
from reproduce.scales.mine.scale import scale_of
from reproduce.study.functions import run_file
from reproduce.study.scale import Scale

TOML = ".toml"
KINDS = (TOML, ".py")


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
        InputError: there is no such file, it cannot be run, or names no scale; the scale has a value of
            another type or out of its range.
    """
    path = Path(name).resolve()
    if not path.is_file():
        raise InputError(f"there is no scale's file {name}")
    scale = scale_of(path) if path.suffix == TOML else getattr(run_file(path), "SCALE", None)
    if not isinstance(scale, Scale):
        raise InputError(f"{name} names no SCALE; give it a reproduce.study.scale.Scale of that name")
    if path.suffix != TOML:
        check_scale(scale, Attribute(path.name, "SCALE"))
    _LOADED.append(str(path))
    return scale
