"""The scales by name."""

from __future__ import annotations

from lpe.errors import InputError
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.scale import Scale

SCALES = {"digits": DIGITS}


def scale(name: str) -> Scale:
    """Return the scale of that name; InputError for another."""
    if name not in SCALES:
        raise InputError(f"unknown scale {name!r}; there are {', '.join(SCALES)}")
    return SCALES[name]
