"""Files are whole or not there, and have one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from filelock import FileLock

from lpe import writing
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.writing import check_writable, locked, make_writable, read_file, write_text_atomic


def test_a_text_is_written_as_it_is_into_a_folder_that_is_made(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a" / "b.txt", "ü\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ü\n".encode()
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), writing.replacing(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_check_writable_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path / "there")
    assert list(tmp_path.iterdir()) == [tmp_path / "there"] and not list((tmp_path / "there").iterdir())


def test_make_writable_leaves_the_folder_that_it_made_empty(tmp_path: Path) -> None:
    make_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_check_writable_refuses_a_folder_below_a_file_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"\Acannot write to [^\n]*\Z"):
        check_writable(tmp_path / "file" / "folder")


def test_check_writable_refuses_a_folder_that_takes_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Permissions do not hold back root, who runs many a test.
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(InputError, match="Permission denied"):
        check_writable(tmp_path)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(*_: object, **__: object) -> None:
    raise FULL


@pytest.mark.parametrize("call", ["mkdir", "write_bytes"])
def test_a_full_disk_is_a_line_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with monkeypatch.context() as patch, pytest.raises(InputError) as raised:
        patch.setattr(Path, call, full)
        write_text_atomic(path, "new")
    assert str(raised.value) == (
        f"cannot write {path} (No space left on device); make room there, and run it again"
    )
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_found_out_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise FULL

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(InputError, match=r"\(No space left on device\); make room there$"):
        check_writable(tmp_path / "folder")


def test_tensors_on_a_full_disk_are_an_error_of_the_system(tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="No space left") as raised:
        patch.setattr(safetensors.torch, "save_file", refuse)
        with writing.replacing(tmp_path / "a") as temporary:
            writing.save_tensors(temporary, {"a": torch.ones(2)})
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys, types
package = types.ModuleType("lpe")
package.__path__ = [sys.argv[1]]
sys.modules["lpe"] = package  # without what lpe imports by itself: seconds of torch
from pathlib import Path
from typing import Any
from lpe.writing import replacing

with replacing(Path(sys.argv[2])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_goes_at_the_next_start_and_what_is_written_stays(tmp_path: Path) -> None:
    path, own = tmp_path / "a.txt", tmp_path / "ours.0123456789abcdef0123456789abcdef.tmp"
    own.mkdir()
    command = [sys.executable, "-c", KILLED, str(REPOSITORY / "lpe"), str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".*")
    assert [each.read_text() for each in left.glob("*.txt")] == ["half"]
    with writing.replacing(path) as temporary:
        temporary.write_text("whole")
        check_writable(tmp_path)
        assert not left.exists()
    assert path.read_text() == "whole" and sorted(tmp_path.iterdir()) == [path, own]


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_a_writer_whose_folder_is_taken_for_a_dead_ones_makes_it_again(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it is between the folder and its lock: who removes leftovers sees no lock held.
    acquire, taken = FileLock.acquire, []

    def late(lock: FileLock, *given: Any, **named: Any) -> Any:
        folder = Path(lock.lock_file).parent
        if len(taken) < 2 and folder != tmp_path:
            taken.append(folder)
            shutil.rmtree(folder)
            raise error(errno.ENOENT, "removed in between")
        return acquire(lock, *given, **named)

    monkeypatch.setattr(FileLock, "acquire", late)
    with writing.replacing(tmp_path / "a") as temporary:
        writing.save_tensors(temporary, {"a": torch.ones(2)})
    assert len(taken) == 2 and list(tmp_path.iterdir()) == [tmp_path / "a"]
    with pytest.raises(FileNotFoundError), writing.replacing(tmp_path / "none" / "a"):
        raise AssertionError("a file in no folder")


def test_writing_beside_who_removes_leftovers_loses_nothing(tmp_path: Path) -> None:
    done = threading.Event()

    def tidy() -> None:
        while not done.is_set():
            writing.remove_leftovers(tmp_path)

    tidiers = [threading.Thread(target=tidy) for _ in range(2)]
    for tidier in tidiers:
        tidier.start()
    try:
        for number in range(300):
            write_text_atomic(tmp_path / f"{number}", str(number))
    finally:
        done.set()
        for tidier in tidiers:
            tidier.join()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(n): str(n) for n in range(300)
    }


def test_a_pipe_and_a_folder_are_no_files_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError):
            read_file(tmp_path / name)


ADDER = """
import sys, types
package = types.ModuleType("lpe")
package.__path__ = [sys.argv[1]]
sys.modules["lpe"] = package  # without what lpe imports by itself: seconds of torch in each process
from pathlib import Path
from typing import Any
from lpe.writing import locked
path = Path(sys.argv[2])
path.with_name(f"ready{sys.argv[3]}").touch()
while not path.with_name("go").exists():
    pass
for _ in range(100):
    with locked(path) as held:
        assert held
        count = int(path.read_text())
        path.write_text(str(count + 1))
"""


def test_two_writers_that_read_and_write_under_the_lock_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    command = [sys.executable, "-c", ADDER, str(REPOSITORY / "lpe"), str(path)]
    adders = [subprocess.Popen([*command, str(number)]) for number in (1, 2)]
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        (tmp_path / "go").touch()
        assert [adder.wait(timeout=60) for adder in adders] == [0, 0]
    finally:
        for adder in adders:
            adder.kill()
    assert path.read_text() == "200"


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    path, order = tmp_path / "file", []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        with locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(path):
        thread.start()
        begun.wait()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_whoever_waits_is_told_at_once_and_says_so_in_a_line_when_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "SAID_AFTER", 0.05)
    begun, told = threading.Event(), []

    def first() -> None:
        with locked(tmp_path / "file"):
            begun.set()
            time.sleep(0.3)

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait()
    with locked(tmp_path / "file", waiting=lambda: told.append("waits")) as held:
        assert held
    thread.join()
    assert told == ["waits"]
    assert capsys.readouterr().err == "waiting for file, which another process is at work on\n"


def test_a_lock_that_nobody_holds_is_not_waited_for(tmp_path: Path) -> None:
    with locked(tmp_path / "file", waiting=lambda: pytest.fail("it waited")) as held:
        assert held


def test_a_lock_of_one_use_is_gone_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path / "file", once=True):
        assert (tmp_path / ".file.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.with_name(".file.lock").touch()
    with locked(path) as held:
        assert held


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_file_locks_it_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with locked(tmp_path / "file") as held:
        assert not held
    (line,) = capsys.readouterr().err.splitlines()
    assert "no lock for file" in line and "only one process at a time" in line


def test_a_lock_file_may_be_opened_by_all_who_share_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "file"):
        assert (tmp_path / ".file.lock").stat().st_mode & 0o777 == 0o666


def test_a_lock_file_that_is_closed_to_this_user_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Permissions do not hold back root, who runs many a test.
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(InputError, match=r"cannot lock file: .*\.file\.lock"), locked(tmp_path / "file"):
        pass
