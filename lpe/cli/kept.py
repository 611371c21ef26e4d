"""Rows of ``lpe evaluate`` that were measured, in a folder beside its results until these are written.

A run that is killed goes on from there. The folder is ``<result>.rows``; each of the command's measurements
has a file of rows in it, in their order, and, where there is room, its predictions, with which it goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lpe.errors import InputError
from lpe.notices import said, say
from lpe.provenance import plain_data
from lpe.writing import locked, make_writable, write_text_atomic

Rows = list[dict[str, object]]


class Kept:
    """The rows of a command that were measured, by this run or by one that was killed.

    Args:
        folder: that they are in; None: they are not kept. told: a hash of what determines them.
        with_predictions: whether there is room for predictions.
    """

    def __init__(self, folder: Path | None, told: str, with_predictions: bool) -> None:
        self._folder, self._told = folder, told
        self._with_predictions = with_predictions
        self._number = 0
        if folder is not None and folder.exists() and not self._is_ours(folder):
            print(f"{folder} is of another command or damaged; it begins anew", file=sys.stderr)
            shutil.rmtree(folder)

    @property
    def has_room(self) -> bool:
        """Whether predictions of rows are written."""
        return self._folder is not None and self._with_predictions

    def place(self) -> Path | None:
        """Return where predictions of the next rows may be written; None: nowhere."""
        if self._folder is None or not self.has_room:
            return None
        return self._folder / f"{self._number}.predictions"

    def rows(self, make: Callable[[], Rows]) -> Rows:
        """Return the next rows of the command: those that are there, or ``make``'s, which are kept."""
        number, self._number = self._number, self._number + 1
        if self._folder is None:
            return make()
        file = self._folder / f"{number}.json"
        if file.is_file():
            held = json.loads(file.read_text(encoding="utf-8"))
            say(held["notes"])
            rows: Rows = held["rows"]
            return rows
        if not self._folder.is_dir():
            make_writable(self._folder)
            write_text_atomic(self._folder / "told", self._told)
        before = said()
        made = make()
        notes = [line for line in said() if line not in before]
        write_text_atomic(file, json.dumps({"rows": made, "notes": notes}))
        return made

    def remove(self) -> None:
        """Remove what was kept, once the results are written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def drop_if_empty(self) -> None:
        """Remove the folder where there is nothing to go on from."""
        if self._folder is not None and self._folder.is_dir() and not _has_work(self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _is_ours(self, folder: Path) -> bool:
        try:
            if (folder / "told").read_text(encoding="utf-8") != self._told:
                return False
            for file in folder.glob("*.json"):
                json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return True


def _has_work(folder: Path) -> bool:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return any(path.name != "told" for path in files)


@contextmanager
def rows_kept(beside: Path | None, told: Mapping[str, Any], with_predictions: bool) -> Iterator[Kept]:
    """Keep a command's rows while the block lasts, and longer where it does not come to its end.

    Args:
        beside: the result that they are beside; None: they are not kept. told: plain data of what determines
            them. with_predictions: whether there is room for predictions.

    Raises:
        InputError: there is a file where the folder belongs.
    """
    if beside is None:
        yield Kept(None, "", with_predictions)
        return
    folder = beside.with_name(f"{beside.name}.rows")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is in the way of what is kept until {beside.name} is written; remove it")
    content = json.dumps(plain_data(told, "options"), sort_keys=True)
    make_writable(folder.parent)
    with locked(folder, once=True):
        kept = Kept(folder, hashlib.sha256(content.encode()).hexdigest(), with_predictions)
        try:
            yield kept
        finally:
            kept.drop_if_empty()
