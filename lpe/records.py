"""The long-form table of results: one measurement a row, keyed by what was measured.

A record is a CSV file with the columns ``COLUMNS``. Figures and tables are drawn from records only,
and a row that is already there is not computed again. There is no timing in it, so that the same
computation gives the same bytes; times are in the provenance beside it.

A record that rows are added to has its hash beside it, in ``<name>.sha256``; see :mod:`lpe.hashes`. It is
checked whenever the file is read. A file without one is taken as it is.

What a column does not apply to is the empty text ``""`` in a text column (the rounding of an FP32
model) and ``0`` in an integer column (the rounding seed of a single model); nothing is ever NaN. To
read a record with pandas alone, give ``keep_default_na=False``.
"""

from __future__ import annotations

import csv
import io
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpe.errors import InputError
from lpe.hashes import content_as_written, write_hashed
from lpe.writing import locked, make_writable, write_text_atomic

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

_Rows = dict[tuple[Any, ...], tuple[float, int, int]]  # the values of KEY -> those of MEASURED


class Records:
    """The rows of one record file, in memory and on disk.

    ``has`` and ``select`` see the file as it was when it was opened or last added to. ``add`` reads
    it again under a lock first, so that processes which add to one file at the same time lose nothing.

    Args:
        path: the CSV file; it need not exist.

    Raises:
        InputError: the file is not a record (it names the file and the line), or was altered since rows were
            last added to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows = _read_rows(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, **equal: object) -> bool:
        """Tell whether there is a row with these values in these columns.

        Raises:
            InputError: a column that a record does not have, or a value of another type.
        """
        wanted = _checked_columns(equal)
        if wanted.keys() == set(KEY):
            return tuple(wanted[column] for column in KEY) in self._rows
        return next(self._matching(wanted), None) is not None

    def select(self, **equal: object) -> pandas.DataFrame:
        """Return the rows with these values in these columns, sorted by key.

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
        """Add rows and write the file, once; all of the rows or, on an error, none.

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
        make_writable(self.path.parent)
        with locked(self.path):
            merged = _read_rows(self.path)
            before = len(merged)
            for key, measured in added.items():
                _put(merged, key, measured, str(self.path))
            merged = dict(sorted(merged.items()))
            if len(merged) > before:
                lines = (_in_column_order(key, measured) for key, measured in merged.items())
                write_hashed(self.path, _csv_text(COLUMNS, lines))
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
    grows: bool = False,
) -> None:
    """Write another table (a landscape grid, a sweep) as CSV, atomically, its rows in the given order.

    Floats are written to 12 significant digits; NaN and infinities as ``nan`` and ``inf``; None as nothing.

    Args:
        rows: mappings or a DataFrame, each row with exactly ``columns``.
        columns: the header, in order.
        grows: whether it is written again and again; it then has its hash beside it; see :mod:`lpe.hashes`.

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
    text = _csv_text(columns, table)
    if not grows:
        write_text_atomic(path, text)
        return
    make_writable(Path(path).parent)
    with locked(Path(path)):
        write_hashed(Path(path), text)


def read_table(path: str | os.PathLike[str]) -> pandas.DataFrame:
    """Read a table that may have its hash beside it, as ``write_table(..., grows=True)`` leaves it.

    Raises:
        FileNotFoundError: there is none.
        InputError: it was altered since it was written, or pandas cannot read it.
    """
    import pandas

    content = content_as_written(Path(path))
    try:
        return pandas.read_csv(io.BytesIO(content))
    except ValueError as error:
        raise InputError(f"cannot read {path} ({error})") from None


def _checked(column: str, given: object) -> Any:
    """Return the value as the column keeps it; a ValueError says what is wrong."""
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
                "take the row out, and delete the .sha256 beside the file, to measure it again"
            )


def _in_column_order(key: tuple[Any, ...], measured: tuple[float, int, int]) -> tuple[Any, ...]:
    # COLUMNS is KEY, then MEASURED.
    return key + measured


def _read_rows(path: Path) -> _Rows:
    try:
        content = content_as_written(path)
    except FileNotFoundError:
        return {}
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
