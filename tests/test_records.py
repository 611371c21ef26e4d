"""The record: what goes in comes out, in an order and in bytes that depend on nothing else."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from lpe import writing
from lpe.errors import InputError
from lpe.hashes import is_as_written
from lpe.provenance import REPOSITORY
from lpe.records import COLUMNS, KEY, Records, write_table


def row(**different: object) -> dict[str, object]:
    return {
        "scale": "digits",
        "substrate": "mlp",
        "point": "IVON",
        "method": "LPE-BSR",
        "number_system": "int5",
        "rounding": "bernoulli",
        "size": 4,
        "seed": 1,
        "metric": "nll",
        "value": 0.25,
        "memory_bits": 1000,
        "backward_passes": 300,
    } | different


def rows(count: int = 30) -> list[dict[str, object]]:
    return [
        row(size=size, metric=metric, value=math.sqrt(size))
        for size in range(1, count // 3 + 1)
        for metric in ("nll", "err", "ece")
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.csv"


def lock_of(path: Path) -> Path:
    """The file that the lock of a record leaves beside it, empty and hidden."""
    return path.with_name(f".{path.name}.lock")


def hash_of(path: Path) -> Path:
    """The file beside a record that has its hash."""
    return path.with_name(f"{path.name}.sha256")


def test_what_was_added_is_read_back_by_a_later_process(path: Path) -> None:
    Records(path).add([row()])
    assert Records(path).select().to_dict("records") == [row()]


def test_any_order_of_adding_gives_the_same_bytes(tmp_path: Path) -> None:
    shuffled = rows()
    random.Random(0).shuffle(shuffled)
    one, other = Records(tmp_path / "one.csv"), Records(tmp_path / "other.csv")
    one.add(rows())
    for each in shuffled:
        other.add([each])
    assert one.path.read_bytes() == other.path.read_bytes()


def test_rows_are_sorted_by_key_with_sizes_as_numbers(path: Path) -> None:
    Records(path).add([row(size=size) for size in (10, 9, 1)])
    assert Records(path).select()["size"].tolist() == [1, 9, 10]


def test_a_value_in_memory_equals_the_one_on_disk(path: Path) -> None:
    table = Records(path)
    table.add([row(value=1 / 3)])
    assert table.select()["value"].tolist() == Records(path).select()["value"].tolist()


def test_a_value_is_kept_to_twelve_significant_digits(path: Path) -> None:
    Records(path).add([row(value=1 / 3)])
    assert ",0.333333333333," in path.read_text()


def test_minus_zero_is_written_as_zero(path: Path) -> None:
    Records(path).add([row(value=-0.0)])
    assert ",0.0," in path.read_text()


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
def test_scalars_of_numpy_and_torch_are_values(path: Path, value: object) -> None:
    Records(path).add([row(value=value)])
    assert Records(path).has(value=0.5)


def test_a_column_left_out_is_empty_text_or_zero(path: Path) -> None:
    Records(path).add([{"metric": "nll", "value": 0.25}])
    stored = Records(path).select().to_dict("records")[0]
    assert {column for column, value in stored.items() if value in ("", 0)} == set(COLUMNS) - {
        "metric",
        "value",
    }


def test_has_finds_a_row_by_its_whole_key(path: Path) -> None:
    table = Records(path)
    table.add([row()])
    assert table.has(**{column: row()[column] for column in KEY})


def test_has_does_not_find_another_whole_key(path: Path) -> None:
    table = Records(path)
    table.add([row()])
    assert not table.has(**{column: row(seed=2)[column] for column in KEY})


@pytest.mark.parametrize(("equal", "there"), [({"size": 4}, True), ({"size": 5}, False), ({}, True)])
def test_has_looks_at_the_given_columns_only(path: Path, equal: dict[str, Any], there: bool) -> None:
    table = Records(path)
    table.add([row()])
    assert table.has(**equal) is there


def test_select_gives_the_rows_with_equal_columns(path: Path) -> None:
    table = Records(path)
    table.add(rows())
    assert table.select(metric="nll", size=9)["value"].tolist() == [3.0]


def test_an_empty_selection_keeps_the_types_of_its_columns(path: Path) -> None:
    table = Records(path)
    table.add([row()])
    assert table.select(size=99).dtypes.to_dict() == table.select().dtypes.to_dict()


def test_select_refuses_an_unknown_column(path: Path) -> None:
    with pytest.raises(InputError, match="no column 'sise'"):
        Records(path).select(sise=4)


def test_a_row_that_is_there_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Records(path)
    table.add([row()])
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("the file was written again"))
    table.add([row()])


@pytest.mark.parametrize(
    "different",
    [{"value": 0.5}, {"memory_bits": 1001}, {"backward_passes": 301}],
    ids=lambda each: list(each)[0],
)
def test_a_key_with_another_measurement_is_refused(path: Path, different: dict[str, object]) -> None:
    table = Records(path)
    table.add([row()])
    with pytest.raises(InputError, match="method=LPE-BSR .*size=4 .*take the row out"):
        table.add([row(**different)])


def test_contradicting_rows_in_one_add_are_refused(path: Path) -> None:
    with pytest.raises(InputError, match="in these rows"):
        Records(path).add([row(), row(value=0.5)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_key(path: Path, value: float) -> None:
    with pytest.raises(InputError, match="method=LPE-BSR .*finite"):
        Records(path).add([row(value=value)])


@pytest.mark.parametrize(
    ("different", "message"),
    [
        ({"colour": 1}, "no column 'colour'"),
        ({"size": 2.5}, "integer"),
        ({"size": "4"}, "integer"),
        ({"method": 3}, "text"),
        ({"method": "two\nlines"}, "text"),
        ({"value": "high"}, "number"),
        ({"metric": ""}, "metric is missing"),
    ],
    ids=lambda each: str(each),
)
def test_a_row_that_is_no_measurement_is_refused(
    path: Path, different: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Records(path).add([row(**different)])


def test_a_refused_row_leaves_the_others_of_its_add_out_too(path: Path) -> None:
    table = Records(path)
    with pytest.raises(InputError):
        table.add([row(size=1), row(value=math.nan)])
    assert not path.exists()


def test_one_add_writes_the_file_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, replaced = os.replace, []
    monkeypatch.setattr(os, "replace", lambda old, new: (replaced.append(new), replace(old, new)))
    Records(path).add(rows())
    assert replaced == [hash_of(path), path]


def test_a_kill_before_the_file_is_replaced_leaves_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Records(path).add([row()])
    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        Records(path).add([row(size=5)])
    assert path.read_bytes() == before


def test_the_file_is_on_the_disk_before_it_replaces_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace, done = os.fsync, os.replace, []
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("replace"), replace(old, new)))
    Records(path).add([row()])
    assert done == ["fsync", "replace"] * 2  # the hash's, then the record's


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_failed_write_leaves_nothing_beside_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Records(path).add([row()])
    assert list(path.parent.iterdir()) == [lock_of(path)]


def test_what_a_killed_writer_left_is_removed_by_the_next(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in (path, hash_of(path)):
        leftover = file.with_name(f".{file.name}.{'0' * 32}.tmp")
        leftover.mkdir()
        (leftover / file.name).write_text("scale,sub")
    Records(path).add([row()])
    assert sorted(path.parent.iterdir()) == [lock_of(path), path, hash_of(path)]


def test_what_another_process_is_writing_of_the_file_beside_is_left_alone(path: Path) -> None:
    beside = path.with_name(f"{path.name}.json")
    with writing.replacing(beside) as temporary:
        temporary.write_text("{}")
        Records(path).add([row()])
    assert beside.read_text() == "{}"


def test_adding_keeps_what_another_writer_added_since(path: Path) -> None:
    one, other = Records(path), Records(path)
    one.add([row(size=1)])
    other.add([row(size=2)])
    assert Records(path).select()["size"].tolist() == [1, 2]


WRITER = """
import sys, types
package = types.ModuleType("lpe")
package.__path__ = [sys.argv[1]]
sys.modules["lpe"] = package  # without what lpe imports by itself: seconds of torch in each process
import time
from collections.abc import Callable
from pathlib import Path
from lpe.records import Records
path, seed = Path(sys.argv[2]), int(sys.argv[3])
table = Records(path)
path.with_name(f"ready{seed}").touch()
while not path.with_name("go").exists():
    time.sleep(0.001)
for size in range(40):
    table.add([dict(metric="nll", value=size, size=size, seed=seed)])
"""


def test_two_processes_adding_at_the_same_time_lose_nothing(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(REPOSITORY / "lpe"), str(path)]
    writers = [subprocess.Popen([*command, str(seed)]) for seed in (1, 2)]
    try:
        deadline = time.monotonic() + 60
        while len(list(path.parent.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        path.with_name("go").touch()
        assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
    assert len(Records(path)) == 80


def test_without_file_locks_it_says_so_and_adds(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    Records(path).add([row()])
    assert capsys.readouterr().err.count("only one process at a time") == Records(path).has(size=4) == 1


def test_the_hash_beside_a_record_is_that_of_its_bytes(path: Path) -> None:
    table = Records(path)
    for size in (1, 2):
        table.add([row(size=size)])
    now, *before = hash_of(path).read_text().splitlines()
    assert now == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  records.csv" and len(before) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.replace(b"0.25", b"0.26"),
        lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
        lambda content: content[:-4],
        lambda content: b"",
    ],
    ids=["digit", "line cut", "torn", "empty"],
)
def test_a_record_that_was_altered_is_refused_by_reading_and_by_adding(
    path: Path, damage: Callable[[bytes], bytes]
) -> None:
    table = Records(path)
    table.add([row(), row(size=5)])
    path.write_bytes(damage(path.read_bytes()))
    message = r"records\.csv was altered since it was written: records\.csv\.sha256 has another hash; delete"
    with pytest.raises(InputError, match=message):
        Records(path)
    with pytest.raises(InputError, match=message):
        table.add([row(size=6)])


def test_a_record_whose_hash_was_deleted_is_taken_as_it_is(path: Path) -> None:
    Records(path).add([row()])
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.26"))
    hash_of(path).unlink()
    assert Records(path).has(value=0.26)


def test_a_kill_between_the_hash_and_the_record_leaves_one_that_is_read_and_gone_on_from(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Records(path).add([row()])
    replace = os.replace

    def killed(old: str, new: Path) -> None:
        if new == path:
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        Records(path).add([row(size=5)])
    Records(path).add([row(size=6)])
    assert Records(path).select()["size"].tolist() == [4, 6]


HEADER = ",".join(COLUMNS) + "\n"
LINE = "digits,mlp,IVON,LPE-BSR,int5,bernoulli,4,1,nll,0.25,1000,300\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the header"),
        ("scale,substrate\n", "line 1: the header"),
        (HEADER + LINE + LINE.replace("0.25", "low"), "line 3: .*value is 'low'"),
        (HEADER + LINE.replace("0.25", "nan"), "line 2: .*finite"),
        (HEADER + LINE.replace(",4,", ",4.0,"), "line 2: size is '4.0'"),
        (HEADER + LINE[:30] + "\n", "line 2: 6 fields"),
        (HEADER + LINE + LINE.replace("0.25", "0.5"), "line 3: .*value is 0.25 in an earlier line"),
        (HEADER + '"' + LINE, "line 2: unexpected end"),
        (HEADER + LINE + "\udcff", "line 3: not UTF-8"),
    ],
    ids=["empty", "header", "number", "nan", "integer", "fields", "contradiction", "quote", "encoding"],
)
def test_a_malformed_file_is_refused_with_its_line(path: Path, content: str, message: str) -> None:
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=f"records.csv, {message}"):
        Records(path)


def test_the_same_line_twice_is_read_as_one_row(path: Path) -> None:
    path.write_text(HEADER + LINE + LINE)
    assert len(Records(path)) == 1


def test_a_table_keeps_the_order_of_its_rows_and_columns(tmp_path: Path) -> None:
    write_table([{"y": 2, "x": 1 / 3}, {"y": 1, "x": math.inf}], tmp_path / "grid.csv", ["x", "y"])
    assert (tmp_path / "grid.csv").read_text() == "x,y\n0.333333333333,2\ninf,1\n"


def test_a_table_of_a_frame_equals_that_of_its_rows(tmp_path: Path) -> None:
    write_table(pandas.DataFrame(rows()), tmp_path / "frame.csv", COLUMNS)
    write_table(rows(), tmp_path / "rows.csv", COLUMNS)
    assert (tmp_path / "frame.csv").read_bytes() == (tmp_path / "rows.csv").read_bytes()


@pytest.mark.parametrize("columns", [["x"], ["x", "y", "z"]])
def test_a_table_whose_rows_and_header_differ_is_refused(tmp_path: Path, columns: list[str]) -> None:
    with pytest.raises(InputError, match="differ in: [yz]"):
        write_table([{"x": 1, "y": 2}], tmp_path / "grid.csv", columns)


def test_a_table_that_grows_has_its_hash_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    for count in (1, 2):
        write_table([{"x": x} for x in range(count)], path, ["x"], grows=True)
    assert is_as_written(path, path.read_bytes())
    assert is_as_written(path, b"x\n0\n1\n2\n") is False
