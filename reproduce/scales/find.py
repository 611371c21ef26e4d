"""The scales by name."""

from __future__ import annotations

from collections.abc import Iterable

from lpe.errors import InputError
from reproduce.scales.digits.settings import DIGITS
from reproduce.scales.paper.models import PAPER, PaperScale
from reproduce.study.scale import Scale

SCALES = {"digits": DIGITS}


def scale(name: str) -> Scale:
    """Return the scale of that name; InputError for another."""
    if name not in SCALES:
        raise InputError(f"unknown scale {name!r}; there are {', '.join(SCALES)}")
    return SCALES[name]


def any_scale(name: str) -> Scale | PaperScale:
    """Return the scale of that name, ``paper`` among them; InputError for another."""
    if name != PAPER.name and name not in SCALES:
        raise InputError(f"unknown scale {name!r}; there are {', '.join([*SCALES, PAPER.name])}")
    return PAPER if name == PAPER.name else scale(name)


def check_at_paper(figures: Iterable[str], scale_name: str) -> None:
    """Raise InputError for a figure that the scale ``paper`` does not have."""
    for figure in figures:
        if scale_name == PAPER.name and figure not in PAPER.figures:
            raise InputError(f"{figure} needs trainings; scale {PAPER.name} has {', '.join(PAPER.figures)}")
