"""Where CIFAR-10's scales look for images and points, whatever the environment of the command says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reproduce.scales.cifar10 import images
from reproduce.scales.find import VARIABLES


@contextmanager
def found_at(**places: Path) -> Iterator[None]:
    """Have CIFAR-10's scales look for their images (data) and points there, while it lasts."""
    before = {variable: os.environ.get(variable) for variable in VARIABLES.values()}
    os.environ.update({VARIABLES[name]: str(place) for name, place in places.items()})
    images.found.cache_clear()
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
        images.found.cache_clear()
