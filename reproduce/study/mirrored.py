"""Working records where the store is elsewhere: fetched before they are looked at, sent when they are whole.

What belongs to a unit goes together: its rows, the values of its examples, how its model saw its data; last
the JSON that says that it is finished. A landscape goes at the end of a run, also of one that failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lpe import hashes
from lpe.mirror import MirroredStore
from lpe.store import Store
from reproduce.study.costs import is_finished
from reproduce.study.examples import place_of

LANDSCAPES = "landscape-"


def fetch_unit(store: Store, record: Path) -> None:
    """Fetch a unit where the store is elsewhere, and the unit is finished there and not here."""
    if not isinstance(store, MirroredStore) or is_finished(record):
        return
    mirror = store.mirror
    *parts, finished = map(mirror.name_of, _files(record))
    if mirror.there(finished):
        mirror.fetch([*mirror.names(mirror.name_of(place_of(record))), *parts, finished])


def send_unit(store: Store, record: Path) -> None:
    """Send a unit that is finished, where the store is elsewhere."""
    if isinstance(store, MirroredStore):
        below = sorted(path for path in place_of(record).rglob("*") if not path.name.startswith("."))
        store.mirror.send([*below, *_files(record)])


def _files(record: Path) -> list[Path]:
    """List the files of a record, its hash first, that which says it is finished last."""
    return [
        hashes.beside(record),
        record,
        record.with_suffix(".model.json"),
        record.with_name(f"{record.name}.json"),
    ]


@contextmanager
def landscapes(store: Store, working: Path) -> Iterator[None]:
    """Fetch landscapes that are not here, and send those that are new at the end of the block."""
    if not isinstance(store, MirroredStore):
        yield
        return
    mirror = store.mirror
    there = [name for name in mirror.names(mirror.name_of(working)) if _is_landscape(Path(name))]
    lacking = [name for name in there if not (mirror.folder / name).exists()]
    mirror.fetch(sorted(lacking, key=lambda name: _order(Path(name))))
    before = _written(working)
    try:
        yield
    finally:
        now = _written(working)
        mirror.send(sorted((path for path in now if before.get(path) != now[path]), key=_order))


KINDS = (".sha256", ".csv", ".json")
"""Endings of a landscape's files, in the order in which they are whole: its hash, itself, what it cost."""


def _is_landscape(path: Path) -> bool:
    return path.name.startswith(LANDSCAPES) and path.suffix in KINDS


def _order(path: Path) -> int:
    return KINDS.index(path.suffix)


def _written(working: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in working.glob(f"{LANDSCAPES}*") if _is_landscape(path)}
