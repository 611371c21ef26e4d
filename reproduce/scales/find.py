"""The scales by name."""

from __future__ import annotations

from lpe.errors import InputError
from reproduce.scales import DEFAULT
from reproduce.scales.digits.settings import DIGITS
from reproduce.scales.paper.settings import PAPER
from reproduce.study.scale import Scale

__all__ = ["DEFAULT", "SCALES", "scale"]

SCALES = {scale.name: scale for scale in (DIGITS, PAPER)}


def scale(name: str) -> Scale:
    """Return the scale of that name; InputError for another."""
    if name not in SCALES:
        raise InputError(f"unknown scale {name!r}; there are {', '.join(SCALES)}")
    return SCALES[name]
