"""Whether the records of figures, tables and ledgers are as they were measured.

The JSON beside a CSV has its hash (:mod:`lpe.hashes`). Whoever reads records asks here first. A record that
is not what its JSON vouches for is refused. It may be accepted: as edited, which is said in the picture, the
ledger and the JSON, until it is measured again or is again as it was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lpe.errors import InputError
from lpe.hashes import EDITED, HASHES, sha256, sha256_of_json
from lpe.writing import write_text_atomic
from reproduce.study.origins import PARTS, provenance_of
from reproduce.study.records import record_name

WAY_OUT = "measure it again, or give --accept-edited, which marks what is drawn and judged as edited"


def drawn_from(folder: Path, figure: str) -> list[Path]:
    """List the CSV files that a figure or table of this folder is drawn from, its record first.

    Args:
        figure: its name; that of the files, too.
    """
    others = [folder / f"{figure}{part}.csv" for part in (*PARTS, "_times")]
    record = folder / record_name(figure)
    return [record, *(path for path in others if path.is_file() and path != record)]


def vouched_by(folder: Path, figure: str) -> list[Path]:
    """List the CSV files whose hashes are in a figure's own JSON."""
    own = folder / f"{figure}.json"
    return [path for path in drawn_from(folder, figure) if provenance_of(path) == own]


def check(records: Iterable[Path], accept: bool = False) -> list[str]:
    """Return the names of files that are accepted as edited, of records and of the JSONs beside them.

    Args:
        records: CSV files that are there. accept: whether what is not as it was measured is accepted now.

    Raises:
        InputError: a record or its JSON is not as it was measured, and not accepted; a JSON that is none.
    """
    edited: dict[str, None] = {}
    for record in records:
        for path, (why, _) in _standing(record).items():
            if why and not accept and not _is_accepted(record, path):
                raise InputError(f"{why}; {WAY_OUT}")
            if why:
                edited[path.name] = None
    return list(edited)


def is_intact(record: Path) -> bool:
    """Tell whether a record is there, and it and its JSON are as they were measured."""
    try:
        return record.is_file() and not check([record])
    except InputError:
        return False


def was_altered(record: Path) -> bool:
    """Tell whether a record is not what the JSON beside it has the hash of.

    False where that cannot be told: there is no such JSON, or it has no hash.
    """
    try:
        hashes = _texts(said_of(record), HASHES)
        return record.name in hashes and hashes[record.name] != sha256(record.read_bytes())
    except (InputError, OSError):
        return False


def keep_accepted(records: Iterable[Path]) -> None:
    """Write into the JSONs beside records which files are accepted as edited, as they are now.

    Raises:
        InputError: as :func:`check`, of a JSON that is none.
    """
    for record in records:
        beside, standing = provenance_of(record), _standing(record)
        now = {path.name: found for path, (why, found) in standing.items() if why}
        said = _read(beside) or {}
        accepted = {**_texts(said, EDITED), **now}
        if now and accepted != said.get(EDITED):
            text = json.dumps({**said, EDITED: accepted}, indent=2, ensure_ascii=False) + "\n"
            try:
                write_text_atomic(beside, text)
            except UnicodeEncodeError:
                raise _damaged(beside) from None


def said_of(record: Path) -> dict[str, Any]:
    """Return what the JSON beside a record says; nothing where there is none.

    Raises:
        InputError: it is none, or cannot be read.
    """
    return _read(provenance_of(record)) or {}


def _is_accepted(record: Path, path: Path) -> bool:
    return _texts(said_of(record), EDITED).get(path.name) == _standing(record)[path][1]


def _standing(record: Path) -> dict[Path, tuple[str, str]]:
    """Return, of a record and of the JSON beside it, what is wrong with it ("": nothing) and its hash."""
    beside = provenance_of(record)
    said = _read(beside)
    try:
        content = record.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {record} ({error.strerror}); {WAY_OUT}") from None
    found, own = sha256(content), _own_hash(beside, said or {})
    if said is None:
        why = f"there is no {beside.name} beside {record} that has its hash"
        return {record: (why, found), beside: (why, own)}
    hashes = _texts(said, HASHES)
    if record.name not in hashes or beside.name not in hashes:
        why = f"{beside} has no hash of {record.name}, as earlier versions wrote none"
        return {record: (why, found), beside: (why, own)}
    of_record, of_json = "", ""
    if hashes[record.name] != found:
        of_record = (
            f"{record} is not what {beside.name} has the hash of: it was edited or damaged, or a run was "
            "killed while it wrote the two"
        )
    if hashes[beside.name] != own:
        of_json = f"{beside} was edited or damaged since it was written: its hash of itself is another"
    return {beside: (of_json, own), record: (of_record, found)}


def _own_hash(beside: Path, said: Mapping[str, Any]) -> str:
    try:
        return sha256_of_json(said)
    except (ValueError, RecursionError):
        raise _damaged(beside) from None


def _read(beside: Path) -> dict[str, Any] | None:
    """Return what a JSON says; None where there is none."""
    try:
        said: object = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {beside} ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise _damaged(beside) from None
    if not isinstance(said, dict):
        raise _damaged(beside)
    return said


def _damaged(beside: Path) -> InputError:
    return InputError(
        f"{beside} is damaged, which has the hash of the record beside it; have it back from a copy, or "
        "measure again, or delete it and give --accept-edited, which marks what is drawn and judged as edited"
    )


def _texts(said: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return the texts by name that are under a key; nothing where there are none."""
    found = said.get(key)
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}
