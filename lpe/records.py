"""The long-form table of results: one measurement a row, keyed by what was measured.

A record is a CSV file with the columns ``COLUMNS``. Figures and tables are drawn from records only,
and a row that is already there is not computed again. There is no timing in it, so that the same
computation gives the same bytes; times are in the provenance beside it.

What a column does not apply to is the empty text ``""`` in a text column (the rounding of an FP32
model) and ``0`` in an integer column (the rounding seed of a single model); nothing is ever NaN. To
read a record with pandas alone, give ``keep_default_na=False``.

Every file here is written whole or not at all: into a temporary file in the same folder, flushed to
the disk, then moved over the old one.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import importlib.metadata
import io
import json
import math
import operator
import os
import platform
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpe.errors import InputError

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "scale",  # "digits", "cifar10" or "paper": the set of hyper-parameters
    "substrate",  # the model with its data
    "point",  # the weights that the ensemble is built on: "SGD", "SWAG", "IVON"
    "method",
    "number_system",
    "rounding",
    "size",  # members
    "seed",
    "metric",
    "value",
    "memory_bits",
    "backward_passes",
)
MEASURED = ("value", "memory_bits", "backward_passes")
KEY = tuple(column for column in COLUMNS if column not in MEASURED)
_INTEGERS = ("size", "seed", "memory_bits", "backward_passes")
_TEXTS = tuple(column for column in COLUMNS if column not in _INTEGERS and column != "value")
_ABSENT: dict[str, object] = {column: 0 if column in _INTEGERS else "" for column in COLUMNS}

REPOSITORY = Path(__file__).resolve().parent.parent

PACKAGES = (
    "torch",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "ivon-opt",
    "open_clip_torch",
    "lm-eval",
    "transformers",
    "safetensors",
    "numba",
    "triton",
    "matplotlib",
    "wandb",
)

_Rows = dict[tuple[Any, ...], tuple[float, int, int]]  # the values of KEY -> those of MEASURED


class Records:
    """The rows of one record file, in memory and on disk.

    ``has`` and ``select`` see the file as it was when it was opened or last added to. ``add`` reads
    it again under a lock first, so that processes which add to one file at the same time lose nothing.

    Args:
        path: the CSV file; it need not exist.

    Raises:
        InputError: the file is not a record (it names the file and the line).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows = _read_rows(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, **equal: object) -> bool:
        """Whether there is a row with these values in these columns.

        Raises:
            InputError: a column that a record does not have, or a value of another type.
        """
        wanted = _checked_columns(equal)
        if wanted.keys() == set(KEY):
            return tuple(wanted[column] for column in KEY) in self._rows
        return next(self._matching(wanted), None) is not None

    def select(self, **equal: object) -> pandas.DataFrame:
        """The rows with these values in these columns, sorted by key.

        Returns:
            ``[rows, columns]`` with the columns ``COLUMNS``; text, int64 and (value) float64, also
            where there are no rows.

        Raises:
            InputError: a column that a record does not have, or a value of another type.
        """
        import pandas

        rows = list(self._matching(_checked_columns(equal)))
        series = {}
        for place, column in enumerate(COLUMNS):
            kind = "int64" if column in _INTEGERS else "float64" if column == "value" else "str"
            series[column] = pandas.Series([row[place] for row in rows], dtype=kind)
        return pandas.DataFrame(series)

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Adds rows and writes the file, once; all of the rows or, on an error, none.

        A row has to give ``metric`` and ``value``; a column that it leaves out is ``""`` or ``0``.
        Values are kept to 12 significant digits. A row that is there already changes nothing.
        The whole file is read and written (about 50 microseconds a row of it): add the rows of one
        unit of work together.

        Raises:
            InputError: an unknown column, a value that is not finite or not of the column's type, or
                a key that is there with another measurement. The message names the key.
        """
        added: _Rows = {}
        for row in rows:
            key, measured = _checked_row(row)
            _put(added, key, measured, "these rows")
        if not added:
            return
        check_writable(self.path.parent)
        with locked(self.path) as held:
            if held:
                remove_leftovers(self.path.parent, f".{glob.escape(self.path.name)}.*.tmp")
            merged = _read_rows(self.path)
            before = len(merged)
            for key, measured in added.items():
                _put(merged, key, measured, str(self.path))
            merged = dict(sorted(merged.items()))
            if len(merged) > before:
                lines = (_in_column_order(key, measured) for key, measured in merged.items())
                write_text_atomic(self.path, _csv_text(COLUMNS, lines))
            self._rows = merged

    def _matching(self, wanted: Mapping[str, object]) -> Iterator[tuple[Any, ...]]:
        places = [(COLUMNS.index(column), value) for column, value in wanted.items()]
        for key, measured in self._rows.items():
            row = _in_column_order(key, measured)
            if all(row[place] == value for place, value in places):
                yield row


def write_table(
    rows: Iterable[Mapping[str, object]] | pandas.DataFrame,
    path: str | os.PathLike[str],
    columns: Sequence[str],
) -> None:
    """Writes another table (a landscape grid, a sweep) as CSV, atomically, its rows in the given order.

    Floats are written to 12 significant digits; NaN and infinities as ``nan`` and ``inf``; None as nothing.

    Args:
        rows: mappings or a DataFrame, each row with exactly ``columns``.
        columns: the header, in order.

    Raises:
        InputError: a row lacks a column or has another one.
    """
    import pandas

    given: Any = rows.to_dict("records") if isinstance(rows, pandas.DataFrame) else rows
    table = []
    for number, row in enumerate(given, start=1):
        if set(row) != set(columns):
            differing = ", ".join(sorted(map(str, set(row) ^ set(columns))))
            raise InputError(f"row {number} of {Path(path).name} and its header differ in: {differing}")
        table.append([row[column] for column in columns])
    write_text_atomic(path, _csv_text(columns, table))


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file whole or not at all; makes its folder. ``\\n`` stays ``\\n``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, moved over ``path`` if the block ends without an error.

    The block has to make the file. A kill leaves the old file, and a hidden ``.tmp`` beside it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes the temporary files that killed writers left; call it with the lock held."""
    for leftover in folder.glob(pattern):
        leftover.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds the lock ``.<name>.lock`` beside ``path`` against other processes and threads.

    Yields:
        Whether the lock is held. Where there are no file locks (no ``fcntl``, a file system without
        them) it says so on stderr and goes on without: then only one writer at a time is safe.
    """
    try:
        import fcntl
    except ImportError:
        _say_unlocked(path, "this Python has no fcntl")
        yield False
        return
    lock = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            os.close(descriptor)
            lock.unlink(missing_ok=True)
            _say_unlocked(path, error.strerror)
            yield False
            return
        # A holder removes the file when it is done: the one that was waited on may no longer be the
        # one that newcomers open, and then it guards nothing.
        try:
            current = os.path.samestat(os.fstat(descriptor), os.stat(lock))
        except FileNotFoundError:
            current = False
        if current:
            break
        os.close(descriptor)
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Makes a folder and tries to write into it: to be called before any work is done.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}.probe"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise InputError(f"cannot write to {folder} ({why}); give a folder that can be written to") from None


def plain_data(value: object, name: str) -> Any:
    """Configuration as JSON data: a dataclass becomes its fields and its class's name, a tuple a list.

    The class's name is kept because two classes may have the same fields and mean different things.

    Args:
        name: what the value is called, for the error: ``"config"``.

    Raises:
        InputError: something in it is not plain data (it names the place): an object of another
            type, a number that is not finite, a key that is not text.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}; a finite number is expected")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: plain_data(getattr(value, field.name), f"{name}.{field.name}")
            for field in dataclasses.fields(value)
        }
        return {"class": type(value).__name__} | fields
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{name} has the key {key!r}; text is expected")
        return {key: plain_data(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(each, f"{name}[{place}]") for place, each in enumerate(value)]
    raise InputError(
        f"{name} is of type {type(value).__name__}; numbers, text, lists, mappings, dataclasses are expected"
    )


def provenance(
    command: Sequence[str],
    config: Mapping[str, object],
    device: str,
    seeds: Sequence[int],
    threads: int,
    started: float,
) -> dict[str, Any]:
    """Where a record comes from, as JSON data.

    Absolute paths (in the command and in the configuration) become relative to the repository, or
    their last part where they lie outside it: records are published, home folders are not.

    Args:
        command: ``sys.argv``.
        config: every hyper-parameter, as plain data or dataclasses.
        device: as torch names it: ``"cpu"``, ``"cuda:0"``.
        threads: the number of threads that torch computes with.
        started: ``time.time()`` at the start, in seconds.

    Raises:
        InputError: the configuration is not plain data.
    """
    arguments = [os.path.abspath(each) if os.path.isfile(each) else each for each in command[:1]] + [
        *command[1:]
    ]
    return {
        "command": shlex.join(_without_folders(argument) for argument in arguments),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.time() - started, 3),
        "git": _git(),
        "python": platform.python_version(),
        "packages": _package_versions(),
        "device": _device(device),
        "threads": threads,
        "seeds": list(seeds),
        "config": _without_folders(plain_data(config, "config")),
    }


def write_provenance(
    path: str | os.PathLike[str],
    command: Sequence[str],
    config: Mapping[str, object],
    device: str,
    seeds: Sequence[int],
    threads: int,
    started: float,
) -> None:
    """Writes ``provenance`` of the same arguments as JSON, atomically."""
    content = provenance(command, config, device, seeds, threads, started)
    write_text_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _checked(column: str, given: object) -> Any:
    """The value as the column keeps it; a ValueError says what is wrong."""
    if column in _TEXTS:
        if not isinstance(given, str) or not given.isprintable():
            raise ValueError(f"{column} is {given!r}; one line of text is expected")
        return str(given)
    try:
        if column in _INTEGERS:
            return operator.index(given)  # type: ignore[arg-type]
        number = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        kind = "an integer" if column in _INTEGERS else "a number"
        raise ValueError(f"{column} is {given!r}; {kind} is expected") from None
    if not math.isfinite(number):
        raise ValueError(f"{column} is {number}; a finite number is expected")
    return float(f"{number:.12g}") + 0.0  # adding 0 turns -0 into 0, which is equal but written otherwise


def _checked_columns(equal: Mapping[str, object]) -> dict[str, Any]:
    _refuse_unknown(equal)
    try:
        return {column: _checked(column, given) for column, given in equal.items()}
    except ValueError as error:
        raise InputError(str(error)) from None


def _refuse_unknown(row: Mapping[str, object]) -> None:
    for column in row:
        if column not in COLUMNS:
            raise InputError(f"a record has no column {column!r}; its columns are {', '.join(COLUMNS)}")


def _checked_row(row: Mapping[str, object]) -> tuple[tuple[Any, ...], tuple[float, int, int]]:
    _refuse_unknown(row)
    filled = _ABSENT | dict(row)
    try:
        if not filled["metric"]:
            raise ValueError("metric is missing; a row measures something")
        checked = {column: _checked(column, given) for column, given in filled.items()}
    except ValueError as error:
        raise InputError(f"{_named([filled[column] for column in KEY])}: {error}") from None
    key = tuple(checked[column] for column in KEY)
    return key, (checked["value"], checked["memory_bits"], checked["backward_passes"])


def _named(key: Sequence[object]) -> str:
    return " ".join(f"{column}={value}" for column, value in zip(KEY, key, strict=True) if value != "")


def _put(rows: _Rows, key: tuple[Any, ...], measured: tuple[float, int, int], where: str) -> None:
    there = rows.setdefault(key, measured)
    for column, old, new in zip(MEASURED, there, measured, strict=True):
        if old != new:
            raise InputError(
                f"{_named(key)}: {column} is {old!r} in {where}, and {new!r} now; "
                "take the row out to measure it again"
            )


def _in_column_order(key: tuple[Any, ...], measured: tuple[float, int, int]) -> tuple[Any, ...]:
    # COLUMNS is KEY, then MEASURED.
    return key + measured


def _read_rows(path: Path) -> _Rows:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {number}: not UTF-8 text") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: _Rows = {}
    try:
        if tuple(next(lines, ())) != COLUMNS:
            raise ValueError(f"the header of a record is expected: {','.join(COLUMNS)}")
        for fields in lines:
            key, measured = _parsed(fields)
            _put(rows, key, measured, "an earlier line")
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}, line {max(lines.line_num, 1)}: {error}") from None
    return dict(sorted(rows.items()))


def _parsed(fields: Sequence[str]) -> tuple[tuple[Any, ...], tuple[float, int, int]]:
    if len(fields) != len(COLUMNS):
        raise ValueError(f"{len(fields)} fields; {len(COLUMNS)} are expected")
    row: dict[str, object] = dict(zip(COLUMNS, fields, strict=True))
    for column in _INTEGERS:
        try:
            row[column] = int(str(row[column]))
        except ValueError:
            raise ValueError(f"{column} is {row[column]!r}; an integer is expected") from None
    return _checked_row(row)


def _csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        # 12 digits survive the round trip through text and hide the last bits, which differ between
        # machines; the csv module writes a float as its repr.
        writer.writerow(
            [float(f"{each:.12g}") if isinstance(each, float | np.floating) else each for each in row]
        )
    return text.getvalue()


def _say_unlocked(path: Path, why: str | None) -> None:
    print(
        f"records: no lock for {path.name} ({why}); let only one process at a time write to it",
        file=sys.stderr,
    )


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if not isinstance(value, str):
        return value
    option, equals, after = value.partition("=")
    if equals and os.path.isabs(after):
        return f"{option}={_without_folders(after)}"
    if not os.path.isabs(value):
        return value
    path = Path(value).resolve()
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name


def _git() -> dict[str, Any]:
    """The revision of the repository and whether the working tree differs from it, figures/ aside."""

    def answer(*arguments: str) -> str:
        # No optional locks: asking must not disturb a git command that runs at the same time.
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout.strip()

    try:
        # Installed into an environment inside somebody else's repository, its revision says nothing.
        if Path(answer("rev-parse", "--show-toplevel")).resolve() != REPOSITORY:
            return {"revision": "unknown", "dirty": False}
        changes = answer("status", "--porcelain", "--", ".", ":(top,exclude)figures")
        return {"revision": answer("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return {"revision": "unknown", "dirty": False}


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _device(device: str) -> dict[str, Any]:
    described: dict[str, Any] = {"device": device, "cpu": _cpu_model(), "cores": os.cpu_count()}
    if device.startswith("cuda"):
        import torch

        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
