"""Tables of a TOML file as dataclasses: an unknown key or a wrong type is an error of one line."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lpe.cli.options import scale_axis
from lpe.errors import InputError
from lpe.number_systems.grids import ScaleAxis

Kind = TypeVar("Kind")

WORDS: Mapping[Any, tuple[str, str]] = {
    str: ("text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truth values"),
    ScaleAxis: ('a scale axis, such as "channel"', 'scale axes, such as ["tensor", "channel", "block:16"]'),
}
"""What is expected of a value, and of the values of a list."""


@dataclass(frozen=True)
class Place:
    """A table of a file, for its errors: such as [settings] of mine.toml; table "" is the file's top."""

    file: str
    table: str

    def __str__(self) -> str:
        return f"[{self.table}]" if self.table else "the file"

    def error(self, words: str) -> InputError:
        """Return the error of these words, the file before them."""
        return InputError(f"{self.file}: {words}")

    def inside(self, key: str) -> Place:
        """Return the place of a table in it."""
        return type(self)(self.file, f"{self.table}.{key}" if self.table else key)


def read(kind: type[Kind], table: object, place: Place, presets: Mapping[str, Any]) -> Kind:
    """Return a table as a dataclass.

    Args:
        kind: whose fields are the keys. table: as TOML has it.
        presets: the values of keys that are not given; of a dataclass within it, its presets.

    Raises:
        InputError: it is no table; an unknown key; a value of another type; a key that must be given.
    """
    if not isinstance(table, Mapping):
        raise place.error(f"{place} is {table!r}; a table is expected")
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    check_known(table, fields, place)
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name in fields:
        hint = hints[name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[name] = read(hint, table.get(name, {}), place.inside(name), presets.get(name, {}))
        elif name in table:
            values[name] = _value(table[name], hint, name, place)
        elif name in presets:
            values[name] = presets[name]
        else:
            raise place.error(f"{place} lacks {name!r}; {_expected(hint)} is expected")
    return kind(**values)


def check_integers(value: object, place: Place) -> None:
    """Raise InputError for a whole number, anywhere in a table, that has more than 64 bits.

    TOML has none; Python reads them.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, int) and not -(2**63) <= inner < 2**63:
                raise place.error(
                    f"{key!r} in {place} is {_shown(inner)}; a whole number of 64 bits (±9.2e18) is expected"
                )
            check_integers(inner, place.inside(key))
    elif isinstance(value, list):
        # A list's numbers, and its tables, are named as the list is.
        above, _, key = place.table.rpartition(".")
        for inner in value:
            check_integers({key: inner}, type(place)(place.file, above))


def check_known(table: Mapping[str, object], known: Collection[str], place: Place) -> None:
    """Raise InputError for a key that is not known, naming the nearest that is."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            instead = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise place.error(f"unknown key {key!r} in {place}; {instead}")


def _value(value: object, hint: Any, key: str, place: Place) -> Any:
    """Return a value as its annotation has it: a list as a tuple, a text as a scale axis."""
    inner = _inner(hint)
    if isinstance(value, list) and typing.get_origin(inner) is tuple:
        element = typing.get_args(inner)[0]
        if all(_is(each, element) for each in value):
            return tuple(_made(each, element, key, place) for each in value)
    elif typing.get_origin(inner) is not tuple and _is(value, inner):
        return _made(value, inner, key, place)
    raise place.error(f"{key!r} in {place} is {_shown(value)}; {_expected(hint)} is expected")


def _inner(hint: Any) -> Any:
    """Return the annotation without None."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and hint != ScaleAxis:
        (inner,) = (each for each in typing.get_args(hint) if each is not type(None))
        return inner
    return hint


def _is(value: object, kind: Any) -> bool:
    if kind == ScaleAxis:
        return isinstance(value, str)
    if typing.get_origin(kind) is not None:
        return isinstance(value, Mapping)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def _made(value: Any, kind: Any, key: str, place: Place) -> Any:
    if kind == ScaleAxis:
        try:
            return scale_axis(value)
        except InputError as error:
            raise place.error(f"{key!r} in {place}: {error}") from None
    return float(value) if kind is float else value


def _expected(hint: Any) -> str:
    inner = _inner(hint)
    if typing.get_origin(inner) is tuple:
        return f"a list of {WORDS[typing.get_args(inner)[0]][1]}"
    return WORDS[inner][0] if inner in WORDS else "a table"


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
