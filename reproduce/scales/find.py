"""The scales by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from reproduce.scales import DEFAULT, own
from reproduce.scales.cifar10.settings import cifar10
from reproduce.scales.cifar10.small import cifar10_small
from reproduce.scales.digits.settings import DIGITS
from reproduce.scales.paper.settings import PAPER
from reproduce.study.scale import Scale

__all__ = ["DEFAULT", "SCALES", "Options", "folder_of", "names", "scale"]


@dataclass(frozen=True)
class Options:
    """Options of the command line that make a scale.

    Args:
        data: where the data are; else LPE_DATA says it. points: the folder of given points; else LPE_POINTS.
        images: test images of what is not measured on all. updates: of a training.
    """

    data: Path | None = None
    points: Path | None = None
    images: int | None = None
    updates: int | None = None

    @property
    def given(self) -> dict[str, object]:
        """What was given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


SCALES = {each.name: each for each in (DIGITS, PAPER)}
MADE: dict[str, tuple[Callable[[Mapping[str, object]], Scale], tuple[str, ...]]] = {
    "cifar10-small": (cifar10_small, ("data",)),
    "cifar10": (cifar10, ("data", "points", "images", "updates")),
}
"""Scales that options make, each with the options that it takes."""
TAKEN = {"paper": ("data",), **{name: takes for name, (_, takes) in MADE.items()}}
VARIABLES = {"data": "LPE_DATA", "points": "LPE_POINTS"}
"""Where code that reads files, in this process and in others, looks for the folders of these options."""


def scale(name: str, options: Options | None = None, recorded: Path | None = None) -> Scale:
    """Return the scale of that name, or that a file of one's own gives.

    Args:
        options: of the command line. recorded: a JSON beside a record, or a folder of such: where no options
            are given, the scale is that of these.

    Raises:
        InputError: another name, options that the scale does not take, or records of several.
    """
    given = {} if options is None else options.given
    takes = () if own.is_file(name) else TAKEN.get(name, ())
    for option in given:
        if option not in takes:
            takers = [each for each, taken in TAKEN.items() if option in taken]
            raise InputError(f"--{option} is for --scale {' and '.join(takers)}, not {name}")
    for option, variable in VARIABLES.items():
        if option in given:
            os.environ[variable] = str(Path(str(given[option])).resolve())
    if own.is_file(name):
        found = own.load(name)
        if found.name in names():
            raise InputError(f"{name} is called {found.name!r}, which this repository has; name it otherwise")
        return found
    if name in SCALES:
        return SCALES[name]
    if name not in MADE:
        raise InputError(
            f"unknown scale {name!r}; there are {', '.join(names())}, and files (mine.toml, mine.py)"
        )
    make, _ = MADE[name]
    if recorded is not None and not given:
        return make(_recorded(recorded))
    return make(given)


def recorded(folder: Path) -> Scale | None:
    """Return the scale whose records a folder of its name has; None: this repository has none of that name.

    Raises:
        InputError: records of several options.
    """
    return scale(folder.name, recorded=folder) if folder.name in names() else None


def names() -> list[str]:
    """List the names of the scales."""
    return [*SCALES, *MADE]


def _recorded(place: Path) -> Mapping[str, object]:
    """Return the options that records were made with.

    Raises:
        InputError: several of them.
    """
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    found: dict[str, list[str]] = {}
    for file in files:
        try:
            options = json.loads(file.read_text(encoding="utf-8"))["config"]["scale"]["options"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.setdefault(json.dumps(options, sort_keys=True), []).append(file.name)
    if len(found) > 1:
        parts = [f"{', '.join(names)} with {options}" for options, names in found.items()]
        raise InputError(f"{place} has records of several options: {'; '.join(parts)}; run all with the same")
    return json.loads(next(iter(found))) if found else {}


def folder_of(name: str) -> Path:
    """Return the folder of a scale's figures, by the name on the command line."""
    return REPOSITORY / "figures" / (own.load(name).name if own.is_file(name) else name)
