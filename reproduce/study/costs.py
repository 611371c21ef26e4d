"""What results cost: the seconds of training and of measuring behind them, by machine.

Beside each working record lies a JSON: what measuring it took, run by run, and what making the stored weights
took that it was measured on, whenever that was. A figure sums those of the records that it shows. Of a record
that is finished the JSON has the hash, and of what is told of a given model beside it; and one of itself. One
that is not finished has its hash beside it (:mod:`lpe.hashes`). What was altered is measured anew.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from lpe.errors import InputError
from lpe.hashes import beside, content_as_written, is_as_written, sha256
from lpe.provenance import machine
from lpe.store import Store
from lpe.writing import read_file, write_text_atomic


def _file(record: Path) -> Path:
    return record.with_name(f"{record.name}.json")


def description_of(record: Path) -> Path:
    """Return the file beside a working record that says how a given model saw its data."""
    return record.with_suffix(".model.json")


def _read(record: Path) -> dict[str, Any]:
    """Return what the JSON beside a record says; that nothing is finished where it is odd or not there."""
    try:
        read: object = json.loads(read_file(_file(record)))
    except (OSError, ValueError, RecursionError):
        read = None
    return read if _is_whole(read) else {"finished": False, "measuring": [], "training": {}}


def _is_whole(read: object) -> TypeGuard[dict[str, Any]]:
    if not isinstance(read, dict) or not isinstance(read.get("finished"), bool):
        return False
    try:
        if read.get("own_sha256") != _own_sha256(read):
            return False
    except (ValueError, RecursionError):
        return False
    runs, training = read.get("measuring"), read.get("training")
    if not isinstance(runs, list) or not isinstance(training, dict):
        return False
    parts = [*runs, *training.values()]
    return all(isinstance(part, dict) and isinstance(part.get("seconds", 0.0), int | float) for part in parts)


def _own_sha256(known: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in known.items() if key != "own_sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode())


def _sha256(file: Path) -> str | None:
    """Return a file's hash; None where there is none."""
    return sha256(file.read_bytes()) if file.is_file() else None


def _hashes(record: Path) -> dict[str, str | None]:
    return {"sha256": _sha256(record), "description_sha256": _sha256(description_of(record))}


def is_finished(record: Path) -> bool:
    """Tell whether a working record is complete and unaltered since its measuring came to its end.

    The values of its examples are checked when they are read; where one was found damaged then, it is not.
    """
    known = _read(record)
    return (
        record.is_file()
        and known["finished"]
        and all(known.get(key) == found for key, found in _hashes(record).items())
        and not _lacks_examples(record)
    )


def examples_of(record: Path) -> Path:
    """Return the folder of the store in which the values of a working record's examples are kept."""
    return record.with_suffix("") / "examples"


def _lacks_examples(record: Path) -> bool:
    """Tell whether an entry of the record's examples was found damaged, and discarded."""
    return bool(_discarded(record))


def _discarded(record: Path) -> list[Path]:
    """List the tensors whose entry of the store was discarded: the JSON beside them is gone."""
    tensors = examples_of(record).glob("*.safetensors")
    return [path for path in tensors if not path.with_suffix(".json").exists()]


def check_unaltered(record: Path) -> None:
    """Raise InputError for a working record that was finished and is not as it was then."""
    if not _read(record)["finished"]:
        return
    if not is_finished(record):
        raise InputError(f"{record} was altered since it was measured; run again, which measures it anew")
    if is_as_written(record, record.read_bytes()) is False:
        # The JSON vouches for the record: it is the hash beside it that was altered.
        beside(record).unlink(missing_ok=True)


def remove_damaged(record: Path, read: Callable[[Path], object]) -> None:
    """Remove a working record that is not what was measured, and say so on stderr: it is measured anew.

    It was altered, or has no hash, or cannot be read, or the JSON beside it is none. The rows of a run that
    was killed stay.

    Args:
        read: the record's reader: it raises InputError or ValueError for a record that cannot be read.
    """
    if not record.is_file():
        return
    if is_finished(record):
        check_unaltered(record)
        return
    if not (why := _damage(record, read)):
        return
    print(f"working record {record.name} {why}; it is measured anew", file=sys.stderr)
    # First the hash goes: another process is not to hold what it measures now against the old one.
    _write(record, _read(record), finished=False)
    for file in (record, beside(record), description_of(record), *_discarded(record)):
        file.unlink(missing_ok=True)


def _damage(record: Path, read: Callable[[Path], object]) -> str:
    known, file = _read(record), _file(record)
    if known["finished"] and "sha256" in known:
        altered = any(known.get(key) != found for key, found in _hashes(record).items())
        return (
            "was altered since it was measured" if altered else "lacks values of examples, which were damaged"
        )
    try:
        if file.is_file() and not _is_whole(json.loads(read_file(file))):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        return f"has a damaged {file.name} beside it"
    try:
        if is_as_written(record, content_as_written(record)) is None:
            return "has no hash"
    except FileNotFoundError:
        return ""
    except InputError:
        return "was altered since it was written"
    try:
        read(record)
    except (InputError, ValueError):
        return "cannot be read"
    return ""


def _write(record: Path, known: dict[str, Any], finished: bool) -> None:
    known["finished"] = finished
    for key in (*_hashes(record), "own_sha256"):
        known.pop(key, None)
    if finished and record.is_file():
        known |= _hashes(record)
    known["own_sha256"] = _own_sha256(known)
    write_text_atomic(_file(record), json.dumps(known))


@contextmanager
def measuring(record: Path, store: Store, device: str) -> Iterator[None]:
    """Keep what the block takes, training aside, and which stored weights it uses; also where it fails.

    Where the block comes to its end, the record's hash is kept as well.

    Args:
        record: that the block measures. device: that it computes on, as torch names it.

    Raises:
        InputError: there is a folder where the JSON beside the record belongs.
    """
    if _file(record).is_dir():
        raise InputError(f"{_file(record)} is a folder, where a file belongs; remove it")
    if (before := _read(record))["finished"]:
        _write(record, before, finished=False)
    started, finished = time.perf_counter(), False
    with store.use() as use:
        try:
            yield
            finished = True
        finally:
            known = _read(record)
            seconds = round(time.perf_counter() - started - use.seconds, 3)
            known["measuring"].append({"seconds": seconds, **machine(device)})
            known["training"] |= use.made
            _write(record, known, finished)


def summed(
    records: Iterable[Path], weights: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Sum what working records cost, and stored weights that were used beside them, each once.

    Args:
        weights: what making them took, by their keys; see ``lpe.store.Use``.

    Returns:
        "training" and "measuring": for each machine the seconds, and of how many trainings or runs.
    """
    training, runs = dict(weights), []
    for record in sorted(set(records)):
        known = _read(record)
        training |= known["training"]
        runs += known["measuring"]
    return {"training": _by_machine(training.values()), "measuring": _by_machine(runs)}


def _by_machine(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    sums: dict[str, dict[str, Any]] = {}
    for part in parts:
        where = {key: value for key, value in part.items() if key != "seconds"}
        sums.setdefault(json.dumps(where, sort_keys=True), {"seconds": 0.0, "of": 0, **where})
        one = sums[json.dumps(where, sort_keys=True)]
        one["seconds"] = round(one["seconds"] + part.get("seconds", 0.0), 3)
        one["of"] += 1
    return list(sums.values())
