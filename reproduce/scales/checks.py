"""Checks of a user's scale: what is out of its range is one line, before anything is loaded or measured."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from lpe.number_systems.grids import ScaleAxis
from lpe.number_systems.naming import number_system
from reproduce.scales.mine.keys import WORDS, Place
from reproduce.study.scale import INTERVAL_UNITS, Beyond, Rivals, Scale, Settings, Substrate
from reproduce.study.session import TUNING_SEED

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
DEVICES = ("auto", "cpu")
MOST_THREADS = 1024
MOST_MEMBERS = 10_000
MOST_DRAWS = 1000
"""Of another training seed are the draws from here on; see ``reproduce.study.units.draw_seed``."""
MOST_LINES = 301
"""Lines of a landscape: 90,000 networks are evaluated."""
LEAST_BITS, MOST_BITS = 2, 8


class Attribute(Place):
    """A part of a Python file's scale, for its errors: such as SCALE.settings of mine.py."""

    def __str__(self) -> str:
        return self.table


def _need(holds: bool, key: str, value: object, place: Place, wanted: str) -> None:
    if not holds:
        shown = list(value) if isinstance(value, tuple) else repr(value)
        raise place.error(f"{key!r} in {place} is {shown}; {wanted}")


def check_name(name: str, place: Place) -> None:
    """Raise InputError for a scale's name that is no name of a folder."""
    if not NAME.fullmatch(name):
        raise place.error(f"'name' is {name!r}; letters, digits and -_.+ are expected, such as \"mine\"")


def check_device(device: str, place: Place) -> None:
    """Raise InputError for another device than there is."""
    if device not in DEVICES:
        raise place.error(f'\'device\' is {device!r}; "auto" or "cpu" is expected')


def check_threads(threads: int | None, place: Place) -> None:
    """Raise InputError for less than one thread, or more than any machine has."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise place.error(f"'threads' is {threads}; 1 to {MOST_THREADS} is expected")


def check_rivals(rivals: Rivals, place: Place) -> None:
    """Raise InputError for grids without values, or with values that are no std or no rate."""
    if not rivals.stds or not rivals.rates:
        raise place.error(f"'stds' and 'rates' in {place} need one value or more each")
    for std in rivals.stds:
        _need(math.isfinite(std) and std >= 0, "stds", rivals.stds, place, "numbers from 0 are expected")
    for rate in rivals.rates:
        _need(0 <= rate < 1, "rates", rivals.rates, place, "numbers from 0 to less than 1 are expected")


def check_beyond(beyond: Beyond, place: Place) -> None:
    """Raise InputError for settings of what goes beyond the paper that are out of their range."""

    def need(holds: bool, key: str, wanted: str) -> None:
        _need(holds, key, getattr(beyond, key), place, wanted)

    need(2 <= beyond.size <= MOST_MEMBERS, "size", f"2 to {MOST_MEMBERS:,} members are expected")
    need(1 <= beyond.seeds <= TUNING_SEED, "seeds", f"1 to {TUNING_SEED} training seeds are expected")
    need(
        LEAST_BITS <= beyond.spread_bits <= MOST_BITS,
        "spread_bits",
        f"{LEAST_BITS} to {MOST_BITS} is expected",
    )
    grids = (beyond.spreads, beyond.stds, beyond.rates)
    need(bool(beyond.spreads), "spreads", "one value or more is expected")
    for key, grid in zip(("spreads", "stds", "rates"), grids, strict=True):
        need(
            len(grid) == len(beyond.spreads),
            key,
            f"as many values as of 'spreads' ({len(beyond.spreads)}) are expected: equal tuning budgets",
        )
        # As records name them: of two that have one name, the second would have the first's rows.
        need(
            len({f"{value:g}" for value in grid}) == len(grid),
            key,
            "values that differ in 6 digits are expected",
        )
    largest = 2 ** (beyond.spread_bits - 1) - 1
    need(
        all(1 <= spread <= largest for spread in beyond.spreads),
        "spreads",
        f"numbers from 1 to {largest}, the largest code of {beyond.spread_bits} bits, are expected",
    )
    need(all(math.isfinite(std) and std >= 0 for std in beyond.stds), "stds", "numbers from 0 are expected")
    need(all(0 <= rate < 1 for rate in beyond.rates), "rates", "numbers from 0 to less than 1 are expected")
    need(
        beyond.size <= beyond.pool <= MOST_MEMBERS,
        "pool",
        f"size ({beyond.size}) to {MOST_MEMBERS:,} members are expected",
    )
    need(beyond.calibration >= 1, "calibration", "1 example or more is expected")
    need(0 <= beyond.views <= MOST_MEMBERS, "views", f"0 to {MOST_MEMBERS:,} is expected")
    need(1 <= beyond.sensitivity <= MOST_MEMBERS, "sensitivity", f"1 to {MOST_MEMBERS:,} is expected")
    shifts = beyond.shifts
    need(
        shifts is None or all(callable(getattr(shifts, name, None)) for name in ("load", "digest")),
        "shifts",
        "an object with load(seed) and digest(seed), or None, is expected",
    )


def check_settings(settings: Settings, place: Place) -> None:
    """Raise InputError for settings out of their range, or that contradict each other."""

    def need(holds: bool, key: str, wanted: str) -> None:
        _need(holds, key, getattr(settings, key), place, wanted)

    size = settings.size
    need(size >= 2, "size", "2 members or more are expected")
    need(size <= MOST_MEMBERS, "size", f"{MOST_MEMBERS:,} members or fewer are expected")
    for key, most in (
        ("draws", MOST_DRAWS),
        ("memory_models", MOST_MEMBERS),
        ("expansion", MOST_MEMBERS),
        ("large_size", MOST_MEMBERS),
    ):
        need(getattr(settings, key) >= 1, key, "1 or more is expected")
        need(getattr(settings, key) <= most, key, f"{most:,} or less is expected")
    sizes = settings.table_sizes
    need(
        len(sizes) >= 2 and sorted(set(sizes)) == list(sizes) and 1 <= sizes[0] and sizes[-1] <= size,
        "table_sizes",
        f"two sizes or more from 1 to size ({size}), the smallest first, are expected",
    )
    need(1 <= settings.claim_size <= size, "claim_size", f"1 to size ({size}) is expected")
    for key in ("bits", "table_bits", "axis_bits"):
        widths = getattr(settings, key)
        inside = all(LEAST_BITS <= width <= MOST_BITS for width in widths)
        need(
            inside and len(set(widths)) == len(widths) and (bool(widths) or key == "axis_bits"),
            key,
            f"different widths from {LEAST_BITS} to {MOST_BITS} are expected",
        )
    need(settings.best_bits in settings.bits, "best_bits", f"one of bits ({list(settings.bits)}) is expected")
    need(
        LEAST_BITS <= settings.large_bits <= MOST_BITS,
        "large_bits",
        f"{LEAST_BITS} to {MOST_BITS} is expected",
    )
    share = settings.noise_share
    need(
        share is None or 0 < share <= 1,
        "noise_share",
        "a share of the gain, above 0 and at most 1, is expected",
    )
    for name in settings.number_systems:
        try:
            number_system(name)
        except ValueError as error:
            raise place.error(f"'number_systems' in {place}: {error}") from None
    _check_landscape(settings, place.inside("landscape"))


def _check_landscape(settings: Settings, place: Place) -> None:
    shape = settings.landscape

    def need(holds: bool, key: str, wanted: str) -> None:
        _need(holds, key, getattr(shape, key), place, wanted)

    need(0 <= shape.seed < TUNING_SEED, "seed", f"a training seed, 0 to {TUNING_SEED - 1}, is expected")
    need(shape.resolution >= 2, "resolution", "2 or more is expected")
    need(shape.resolution <= MOST_LINES, "resolution", f"{MOST_LINES} lines or fewer are expected")
    need(0 <= shape.margin <= 100, "margin", "0 or more, at most 100, is expected")
    need(1 <= shape.cloud <= MOST_MEMBERS, "cloud", f"1 to {MOST_MEMBERS:,} members are expected")
    need(shape.split in ("test", "validation"), "split", '"test" or "validation" is expected')
    need(shape.examples is None or shape.examples >= 1, "examples", "1 or more, or None, is expected")


def check_scale(scale: Scale, place: Place) -> None:
    """Check a scale that was made by a user's code.

    Args:
        place: its name for errors.

    Raises:
        InputError: a field of another type; a value out of its range; two substrates of one name.
    """
    _check_types(scale, place)
    check_name(scale.name, place)
    check_device(scale.device, place)
    check_threads(scale.threads, place)
    _need(
        scale.unit in INTERVAL_UNITS,
        "unit",
        scale.unit,
        place,
        f"one of {', '.join(map(repr, INTERVAL_UNITS))} is expected",
    )
    for key in ("seeds", "claim_seeds", "cost_seeds"):
        count = getattr(scale, key)
        wanted = f"1 to {TUNING_SEED} is expected: later seeds tune the recipes"
        _need(1 <= count <= TUNING_SEED, key, count, place, wanted)
    _check_types(scale.settings, place.inside("settings"))
    _check_types(scale.settings.landscape, place.inside("settings").inside("landscape"))
    check_settings(scale.settings, place.inside("settings"))
    if scale.beyond is not None:
        _check_types(scale.beyond, place.inside("beyond"))
        check_beyond(scale.beyond, place.inside("beyond"))
    named: dict[str, Substrate] = {}
    for substrate in _substrates(scale, place):
        if named.setdefault(substrate.name, substrate) is not substrate:
            raise place.error(
                f"two substrates are called {substrate.name!r}; give one of them another 'name'"
            )
        _check_substrate(substrate, place)


def _substrates(scale: Scale, place: Place) -> list[Substrate]:
    """Return every substrate, each as often as it is named."""
    every: list[object] = [each for each in (scale.main, scale.whole, scale.compared) if each is not None]
    every += scale.sizes
    for group, members in scale.large.items():
        _need(isinstance(members, tuple), "large", {group: members}, place, "tuples are expected")
        every += members
    for each in every:
        if not isinstance(each, Substrate):
            raise place.error(
                f"{place} has a {type(each).__name__} among its networks; a Substrate is expected"
            )
    return [each for each in every if isinstance(each, Substrate)]


def _check_substrate(substrate: Substrate, place: Place) -> None:
    what = type(place)(place.file, f"substrate {substrate.name!r}")
    _check_types(substrate, what)
    if not substrate.name.strip() or not substrate.name.isprintable():
        raise place.error(f"a substrate's 'name' is {substrate.name!r}; a line of text is expected")
    if not substrate.points:
        raise place.error(f"{what} has no 'points'; one recipe or more is expected, the point estimate first")
    if substrate.rivals is not None:
        _check_types(substrate.rivals, what)
        check_rivals(substrate.rivals, what)
    for name, count in substrate.most_seeds.items():
        _need(
            isinstance(count, int) and count >= 1, "most_seeds", {name: count}, what, "1 or more is expected"
        )


def _check_types(value: Any, place: Place) -> None:
    """Raise InputError for a field of a dataclass whose value is of another type than its annotation says."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        given, hint = getattr(value, field.name), hints[field.name]
        if not _fits(given, hint):
            shown = repr(given)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
            raise place.error(f"{field.name!r} in {place} is {shown}; {_expected(hint)} is expected")


def _expected(hint: Any) -> str:
    """Say what is expected of a value of this annotation, such as "a tuple of whole numbers"."""
    if hint != ScaleAxis and typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(
            "None" if each is type(None) else _expected(each) for each in typing.get_args(hint)
        )
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        return f"a tuple of {WORDS[element][1] if element in WORDS else f'{element.__name__}s'}"
    if hint in WORDS:
        return WORDS[hint][0]
    return "a mapping" if typing.get_origin(hint) else f"a {hint.__name__}"


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(each, typing.get_args(hint)[0]) for each in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if hint in (str, bool, type(None)) or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return isinstance(value, hint)
    return True  # of protocols and functions nothing is known before they are used
