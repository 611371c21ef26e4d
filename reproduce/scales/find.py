"""The scales by name."""

from __future__ import annotations

from lpe.errors import InputError
from reproduce.scales import DEFAULT, own
from reproduce.scales.digits.settings import DIGITS
from reproduce.scales.paper.settings import PAPER
from reproduce.study.scale import Scale

__all__ = ["DEFAULT", "SCALES", "scale"]

SCALES = {scale.name: scale for scale in (DIGITS, PAPER)}


def scale(name: str) -> Scale:
    """Return the scale of that name, or that a file of one's own gives; InputError for another."""
    if own.is_file(name):
        found = own.load(name)
        if found.name in SCALES:
            raise InputError(f"{name} is called {found.name!r}, which this repository has; name it otherwise")
        return found
    if name not in SCALES:
        raise InputError(
            f"unknown scale {name!r}; there are {', '.join(SCALES)}, and files (mine.toml, mine.py)"
        )
    return SCALES[name]
