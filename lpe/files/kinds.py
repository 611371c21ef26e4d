"""The kinds of file, and what a seeded one can draw its members from."""

from __future__ import annotations

from collections.abc import Iterable

from lpe.checks import check_choice
from lpe.ensembles.low_precision import BASES, base_holds
from lpe.errors import InputError
from lpe.number_systems.grids import LowPrecision, NumberSystem, grid_of
from lpe.number_systems.planes import check_random

KINDS = ("members", "seeded", "planes")


def check_kind(kind: str, base: str | None) -> str:
    """Return the base's name, "int8" unless told; InputError unless there are such a kind and base."""
    check_choice("kind", kind, KINDS)
    if base is not None:
        check_choice("base", base, tuple(BASES))
    if base is not None and kind != "seeded":
        raise InputError(f"base={base!r} is for kind='seeded'; a file of {kind} holds no base")
    return base or "int8"


def check_planes(systems: Iterable[NumberSystem], rounding: str) -> None:
    """Raise InputError unless members of the number systems are rounded, and at random."""
    if not any(isinstance(system, LowPrecision) for system in systems):
        raise InputError("planes are of members that are rounded, and fp32 does not round")
    check_random(rounding)


def check_base(base: str, systems: Iterable[NumberSystem], rounding: str) -> None:
    """Raise InputError unless members of the number systems can be drawn from the base, and differ."""
    rounds = [system for system in systems if isinstance(system, LowPrecision)]
    if not rounds:
        raise InputError("a seeded file holds members that are rounded, and fp32 does not round")
    for system in rounds:
        if not base_holds(base, system, rounding):
            finer = [each for each in BASES if base_holds(each, system, rounding)]
            raise InputError(
                f"base={base!r} cannot hold members of {system.name}: it is no finer than their "
                f"{grid_of(system).code_bits} bits, so they would be alike; take base="
                f"{' or '.join(map(repr, finer))}"
            )
