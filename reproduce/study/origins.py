"""Where the records of a folder come from: each has a JSON beside it that says which commit and machine.

Two commits, or two makes of processor, may give other last bits, and training makes other networks of these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Origin:
    """The commit that a record was measured at, and the make of the processor or card that did."""

    revision: str
    dirty: bool
    machine: str

    def __str__(self) -> str:
        changed = " with changes" if self.dirty else ""
        return f"commit {self.revision[:7]}{changed} on {self.machine}"


def origin(provenance: Path) -> Origin | None:
    """Return where a record comes from; None where its JSON is not there, or does not say."""
    try:
        said = json.loads(provenance.read_text(encoding="utf-8"))
        device = said["device"]
        return Origin(said["git"]["revision"], said["git"]["dirty"], device.get("gpu") or device["cpu"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def of_record(record: Path) -> Origin | None:
    """Return where a record's CSV comes from: the JSON of its figure or table is beside it."""
    stem = record.stem.removesuffix("_record").removesuffix("_landscape")
    return origin(record.with_name(f"{stem}.json"))


def seeds_of(provenance: Path) -> list[int]:
    """Return the training seeds that a record is of; none where its JSON is not there, or does not say."""
    try:
        return [int(seed) for seed in json.loads(provenance.read_text(encoding="utf-8"))["seeds"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def mixture(folder: Path) -> list[str]:
    """Return a line about records of several commits or machines in a folder; none where it is one."""
    found: dict[Origin, list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        each = origin(path)
        if each is not None:
            found.setdefault(each, []).append(path.stem)
    if len(found) < 2:
        return []
    parts = [f"{each} ({_shortened(names)})" for each, names in found.items()]
    place = os.path.relpath(folder)
    return [f"note: {place} has records of {len(found)} origins, which may differ: {'; '.join(parts)}"]


def _shortened(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
