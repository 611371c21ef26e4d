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
from lpe.number_systems import naming
from lpe.number_systems.grids import Codebook, NamedCodebook, ScaleAxis
from lpe.number_systems.naming import ByPattern, Systems

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


def number_system(name: str, scale: ScaleAxis | None = None) -> Systems:
    """Return the number system of a name: the one whose ``name`` it is, whatever its scale axis and levels.

    Case, dashes and underscores do not matter: "INT-5" is "int5", "FP8-E4M3" is "fp8_e4m3".

    Args:
        name: such as ``int5``, ``int4-mse``, ``int8*11.3``, ``nf4 per block of 64 inputs`` or
            ``codebook:-1:0:0.5``; that of another package's, see :mod:`lpe.plugins`; or name patterns with
            one each, ``*mlp*=int4,*=int8``.
        scale: the scale axis where the name has none (None: per channel).

    Raises:
        InputError: the name is unknown; a name that has another scale axis than ``scale``; another package's
            that cannot be loaded.
    """
    parts = [part.rpartition("=") for part in str(name).split(",")]
    others = {own: _system(own, scale) for _, _, own in parts}
    # Checked with the levels of each in its place.
    spelled = [f"{pattern}{equals}{_spelled(own, others[own])}" for pattern, equals, own in parts]
    try:
        found = naming.number_system(",".join(spelled), scale)
    except InputError as error:
        brought = names(SYSTEMS, naming.names())
        if not brought or "unknown number system" not in str(error):
            raise
        raise InputError(f"{error}, {', '.join(brought)}") from None
    if not any(others.values()):
        return found
    if isinstance(found, ByPattern):
        return ByPattern({p.strip(): others[own] or dict(found.systems)[p.strip()] for p, _, own in parts})
    return others[parts[0][2]] or found


def _system(name: str, scale: ScaleAxis | None) -> NamedCodebook | None:
    """Return the number system that another package brings under a name; None where none does."""
    try:
        naming.number_system(name, scale)
        return None
    except InputError as error:
        if "unknown number system" not in str(error):
            return None
    short, axis = naming._scale_axis(name.strip(), scale)
    point = brought(SYSTEMS, short.lower(), naming.names())
    if point is None:
        return None
    levels = point.load()
    try:
        return NamedCodebook(levels, axis, short.lower())
    except InputError as error:
        raise InputError(f"{point.owner} brings the number system {short.lower()!r}: {error}") from None


def _spelled(name: str, other: NamedCodebook | None) -> str:
    return name if other is None else Codebook(other.levels, other.scale).name


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
