"""Names of number systems, from which they are read back, and a number system per name pattern.

A name is the grid's, then the scale axis where it is not the default: ``int5``, ``int4-mse``, ``int8*11.3``,
``nf4 per block of 64 inputs``, ``codebook:-1:0:0.5``. Several systems are ``pattern=name``, with commas
between them: ``*mlp*=int4,*=int8``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lpe.checks import shown
from lpe.errors import InputError
from lpe.number_systems.grids import (
    CLIPS,
    FLOATS,
    NF4,
    Codebook,
    Float,
    FullPrecision,
    Int,
    LowPrecision,
    NumberSystem,
    PerBlock,
    PerChannel,
    PerTensor,
    ScaleAxis,
)

_AXIS = re.compile(
    r"(?P<short>.+) per (tensor|channel|(?P<channels>\d+) output channels|block of (?P<inputs>\d+) inputs)",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class ByPattern:
    """A number system per name pattern: a tensor has that of the first pattern that matches its name.

    Args:
        systems: pattern (``fnmatch``: ``*``, ``?``, ``[…]``, on canonical names) → number system;
            ``FullPrecision()`` leaves what it names alone. Kept as pairs, in the order given.
    """

    systems: tuple[tuple[str, NumberSystem], ...]

    def __init__(self, systems: Mapping[str, NumberSystem]) -> None:
        if not systems:
            raise InputError(
                'a mapping of name patterns to number systems needs at least one, such as {"*": …}'
            )
        for pattern, system in systems.items():
            if not isinstance(pattern, str) or not pattern or pattern != pattern.strip() or "," in pattern:
                raise InputError(
                    f"a name pattern must be text without commas and blanks around it, not {shown(pattern)}"
                )
            if not isinstance(system, LowPrecision | FullPrecision):
                raise InputError(
                    f"the pattern {pattern!r} must have a number system such as lpe.Int(5), or "
                    f"lpe.FullPrecision() for none, not {shown(system)}"
                )
        if not any(isinstance(system, LowPrecision) for system in systems.values()):
            raise InputError("no pattern of the mapping has a number system that rounds, such as lpe.Int(5)")
        # Assigned around the frozen dataclass, which takes a mapping and keeps pairs.
        object.__setattr__(self, "systems", tuple(systems.items()))

    @property
    def name(self) -> str:
        """The short name, as the records have it: such as ``*mlp*=int4,*=int8``."""
        return ",".join(f"{pattern}={system.name}" for pattern, system in self.systems)

    def first(self, names: Iterable[str]) -> tuple[str, NumberSystem] | None:
        """Return the first pattern that matches a tensor's name, and its system; None where none does."""
        names = tuple(names)
        for pattern, system in self.systems:
            if any(fnmatchcase(name, pattern) for name in names):
                return pattern, system
        return None


Systems = NumberSystem | ByPattern
"""The type of what an ensemble may be rounded to: one number system, or one per name pattern."""


def check_system(system: object) -> Systems:
    """Return the number system, or those of a mapping by name pattern; InputError if it is none."""
    if isinstance(system, Mapping):
        return ByPattern(system)
    if not isinstance(system, LowPrecision | FullPrecision | ByPattern):
        raise InputError(
            "system must be a number system such as lpe.Int(5) or lpe.NF4(), or a mapping of name patterns "
            f"to number systems, not {shown(system)}"
        )
    return system


def systems_of(system: Systems) -> tuple[NumberSystem, ...]:
    """Return the number systems that there are in one or several by name pattern, each once."""
    if isinstance(system, ByPattern):
        return tuple(dict.fromkeys(each for _, each in system.systems))
    return (system,)


def plain_systems() -> list[NumberSystem]:
    """List every number system but codebooks, of the default scale axis and step."""
    integers = [Int(bits) for bits in range(2, 9)]
    return [*integers, *(Float(exponent, mantissa) for exponent, mantissa in FLOATS), NF4(), FullPrecision()]


def names() -> list[str]:
    """Return the names of :func:`plain_systems`."""
    return [system.name for system in plain_systems()]


def number_system(name: str, scale: ScaleAxis | None = None) -> Systems:
    """Return the number system of a name: the one whose ``name`` it is, whatever its scale axis and levels.

    Case, dashes and underscores do not matter: "INT-5" is "int5", "FP8-E4M3" is "fp8_e4m3".

    Args:
        name: such as ``int5``, ``int4-mse``, ``int8*11.3``, ``nf4 per block of 64 inputs`` or
            ``codebook:-1:0:0.5``; or name patterns with one each, ``*mlp*=int4,*=int8``.
        scale: the scale axis where the name has none (None: per channel).

    Raises:
        InputError: the name is unknown; a name that has another scale axis than ``scale``.
    """
    text = str(name)
    if "=" in text:
        return _by_pattern(text, scale)
    short, axis = _scale_axis(text.strip(), scale)
    if short.lower().startswith("codebook:"):
        return Codebook(_levels(text, short), axis)
    grid, star, factor = short.lower().partition("*")
    plain = re.sub("[-_]", "", grid)
    integers = re.fullmatch(rf"int([0-9]+)({'|'.join(CLIPS)})?", plain)
    if star and not (integers and re.fullmatch(r"[0-9]+(\.[0-9]*)?", factor)):
        raise InputError(f"{shown(name)} names no integers with a spread S ≥ 1, such as int8*11.3")
    if plain == "fp32" and short == text.strip():
        return FullPrecision()
    if plain == "nf4":
        return NF4(axis)
    if integers:
        if not 2 <= int(integers[1]) <= 8:
            raise InputError(f"number system {name!r} has {int(integers[1])} bits; integers take 2 to 8")
        return Int(int(integers[1]), axis, integers[2] or CLIPS[0], float(factor or 1))
    for exponent, mantissa in FLOATS:
        system = Float(exponent, mantissa, axis)
        if plain == f"fp{system.bits}e{exponent}m{mantissa}":
            return system
    raise InputError(f"unknown number system {shown(name)}; there are {', '.join(names())}")


def _by_pattern(text: str, scale: ScaleAxis | None) -> ByPattern:
    systems: dict[str, NumberSystem] = {}
    for part in text.split(","):
        pattern, equals, name = part.rpartition("=")
        if not equals:
            raise InputError(f"{part!r} in {text!r} is no pattern=system, such as '*mlp*=int4'")
        pattern = pattern.strip()
        if pattern in systems:
            raise InputError(f"the pattern {pattern!r} is in {text!r} twice; the first that matches is taken")
        system = number_system(name, scale)
        assert not isinstance(system, ByPattern)  # no "=" is left in it
        systems[pattern] = system
    return ByPattern(systems)


def _scale_axis(name: str, scale: ScaleAxis | None) -> tuple[str, ScaleAxis]:
    """Return a name without its scale axis, and the axis: the name's own, the one given, or per channel."""
    match = _AXIS.fullmatch(name)
    if match is None:
        return name, PerChannel() if scale is None else scale
    own: ScaleAxis
    if match["inputs"]:
        own = PerBlock(int(match["inputs"]))
    else:
        own = PerTensor() if match[2].lower() == "tensor" else PerChannel(int(match["channels"] or 1))
    if scale not in (None, own):
        raise InputError(f"{name!r} has a scale {own}, and scale={scale!r} says {scale}; give one of the two")
    return match["short"], own


def _levels(name: str, short: str) -> list[float]:
    try:
        return [float(level) for level in short.split(":")[1:]]
    except ValueError:
        raise InputError(f"{shown(name)} has levels that are no numbers; such as codebook:-1:0:0.5") from None
