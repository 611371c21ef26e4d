"""Where the records of a folder come from: each has a JSON beside it that says which commit and machine.

Two commits, or two makes of processor, may give other last bits, and training makes other networks of these.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = ("_record", "_landscape", "_members", "_examples")
"""What the names of CSV files end in that belong to one figure, table or ledger."""


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
        device, revision, dirty = said["device"], said["git"]["revision"], said["git"]["dirty"]
        machine = device.get("gpu") or device["cpu"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not (isinstance(revision, str) and isinstance(dirty, bool) and isinstance(machine, str)):
        return None
    return Origin(revision, dirty, machine)


def provenance_of(record: Path) -> Path:
    """Return the JSON beside a record's CSV: that of its figure or table, or of a ledger.

    Times have a JSON of their own: they are measured apart from the rest.
    """
    stem = record.stem
    for part in PARTS:
        stem = stem.removesuffix(part)
    return record.with_name(f"{stem}.json")


def of_record(record: Path) -> Origin | None:
    """Return where a record's CSV comes from: the JSON of its figure or table is beside it."""
    return origin(provenance_of(record))


def seeds_of(record: Path) -> list[int]:
    """Return the training seeds that a record's rows are of.

    Where the CSV is not there, or has no column of seeds, they are those that the JSON beside it names.
    """
    own = {int(each) for each in _column(record, "seed") if each.isdecimal()}
    if own:
        return sorted(own)
    seeds = _said(provenance_of(record)).get("seeds")
    return [each for each in seeds if isinstance(each, int)] if isinstance(seeds, list) else []


def scales_of(record: Path) -> list[str]:
    """Return the scales that a record's rows are of; where its CSV has no such column, as its JSON says."""
    if own := _column(record, "scale"):
        return sorted(own)
    config = _said(provenance_of(record)).get("config")
    scale = config.get("scale") if isinstance(config, dict) else None
    name = scale.get("name") if isinstance(scale, dict) else None
    return [name] if isinstance(name, str) else []


def _column(record: Path, name: str) -> set[str]:
    """Return a column's values, also of a damaged record: as far as it can be read."""
    found: set[str] = set()
    try:
        with record.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            if name in header:
                place = header.index(name)
                found.update(fields[place] for fields in lines if len(fields) > place)
    except (OSError, csv.Error):
        pass
    return found


def _said(provenance: Path) -> dict[str, Any]:
    """Return what a JSON says; nothing where it is not there or is none."""
    try:
        said = json.loads(provenance.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


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
