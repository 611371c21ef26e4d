"""Methods and number systems of other packages, found by the entry points that these declare.

    [project.entry-points."lpe.systems"]
    ternary = "their_package:TERNARY"          # 2 to 256 numbers: the levels at scale 1

    [project.entry-points."lpe.methods"]
    dithered = "their_package:dithered"        # (model, system, size, seed) → an ensemble

A system is what :class:`lpe.Codebook` makes of the levels, under the entry point's name: its scale axis and
rounding are those of any other. A method is called for ``lpe evaluate --method`` and ``lpe pack --method``.
It also gets, by name and only where the command was given them, ``include`` and ``exclude``, patterns of
tensors' names, and ``batches`` and ``refresh``, to re-estimate batch-norm statistics.

Names are small letters, digits and ``_ . -``. A name that lpe has, or that two packages have, is nobody's:
``lpe systems`` says so. Nothing is imported until it is asked for.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lpe.errors import InputError

METHODS, SYSTEMS = "lpe.methods", "lpe.systems"
_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


def names(group: str, taken: Iterable[str] = ()) -> list[str]:
    """Return the names that other packages' entry points of a group have and that can be asked for, sorted.

    Args:
        group: ``METHODS`` or ``SYSTEMS``. taken: lpe's own names.
    """
    found = {point.name for point in importlib.metadata.entry_points(group=group)}
    return sorted(name for name in found if not _wrong(group, name, taken))


def clashes(group: str, taken: Iterable[str] = ()) -> list[str]:
    """Return a line for each name of a group that cannot be asked for, sorted."""
    found = {point.name for point in importlib.metadata.entry_points(group=group)}
    return sorted(filter(None, (_wrong(group, name, taken) for name in found)))


@dataclass(frozen=True)
class Brought:
    """What another package brings under a name.

    Args:
        point: its entry point.
    """

    point: importlib.metadata.EntryPoint

    @property
    def owner(self) -> str:
        """The package, as a message names it."""
        return _owner(self.point)

    def load(self) -> Any:
        """Import it.

        Raises:
            InputError: that fails, for whatever reason.
        """
        try:
            return self.point.load()
        except Exception as error:  # whatever runs when the package is imported
            why = str(error).strip().partition("\n")[0].rstrip(".")
            raise InputError(
                f"{self.owner} brings {self.point.name!r} ({self.point.value}), which cannot be loaded: "
                f"{type(error).__name__}{f': {why}' if why else ''}"
            ) from None


def brought(group: str, name: str, taken: Iterable[str] = ()) -> Brought | None:
    """Return what another package brings under a name; None where there is nothing of this name.

    Args:
        group: ``METHODS`` or ``SYSTEMS``. taken: lpe's own names.

    Raises:
        InputError: the name is lpe's own, or two packages'; it has other characters than names have.
    """
    points = [*importlib.metadata.entry_points(group=group, name=name)]
    if points and (wrong := _wrong(group, name, taken)):
        raise InputError(wrong)
    return Brought(points[0]) if points else None


def _wrong(group: str, name: str, taken: Iterable[str]) -> str:
    """Say why nobody can ask for a name, in one line; "" where they can."""
    points = importlib.metadata.entry_points(group=group, name=name)
    owners = sorted({_owner(point) for point in points})
    what = f"{group.removeprefix('lpe.').removesuffix('s')} {name!r}"
    if name in taken:
        return f"{' and '.join(owners)} brings a {what}, which is lpe's own name; have it renamed"
    if len({point.value for point in points}) > 1 or len(owners) > 1:
        return f"the {what} is brought by {' and by '.join(owners)}; uninstall one, or have it renamed"
    if not _NAME.fullmatch(name):
        return f"{owners[0]} brings a {what}; a name has small letters, digits, and _ . - between them"
    return ""


def _owner(point: importlib.metadata.EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist is not None else f"the module {point.module}"
