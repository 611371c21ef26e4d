"""Files that are written whole or not at all, and by one writer at a time.

A file is written into a temporary one beside it, flushed to the disk, then moved over the old one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from lpe.errors import InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from torch import Tensor

SAID_AFTER = 30.0
"""Seconds that a lock is waited for until a line says so."""

LOCK = "lock"
"""The lock in a temporary folder: its writer holds it for as long as it lives."""

PROBE_BYTES = 4096
"""Bytes that are written to see that there is room for any."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full, or of a user's share of it."""


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file whole or not at all; makes its folder. ``\\n`` stays ``\\n``.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(path, error) from None
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path, whose file replaces ``path`` if the block ends without an error.

    The block has to make the file, which is in a hidden folder of its own beside ``path``. A kill leaves the
    old file, and that folder until :func:`remove_leftovers` is called.

    Raises:
        FileNotFoundError: there is no folder for it.
        InputError: it cannot be written, such as to a full disk.
    """
    try:
        with _own_folder(path) as folder:
            temporary = folder / path.name
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unwritten(path, error) from None


@contextmanager
def _own_folder(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside a path, and hold its lock until it is removed."""
    from filelock import FileLock

    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        _hold(lock, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _hold(lock: BaseFileLock, folder: Path) -> None:
    """Make a folder and take the lock in it.

    Until the lock is held, whoever removes leftovers may take the folder for a dead writer's and remove it:
    then it is made again.

    Raises:
        FileNotFoundError: there is no folder to make it in.
        OSError: it cannot be made, or there is no room for the lock.
    """
    folder.mkdir()
    while True:
        try:
            folder.mkdir(exist_ok=True)
            lock.acquire()
        except (FileNotFoundError, FileExistsError):  # it went in between
            if not folder.parent.is_dir():
                raise
            continue
        except OSError as error:  # without locks nobody knows the dead
            if error.errno in NO_ROOM:
                raise
        return


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder; what another writer is at work on stays."""
    from filelock import FileLock, Timeout

    for left in folder.glob(".*.tmp"):
        if not re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", left.name, re.S) or not left.is_dir():
            continue
        with suppress(OSError, Timeout):
            with FileLock(left / LOCK, fallback_to_soft=False, blocking=False):
                shutil.rmtree(left, ignore_errors=True)


def save_tensors(
    temporary: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, as readable as any new file, inside a block of :func:`replacing`.

    Raises:
        OSError: it cannot be written.
    """
    import safetensors.torch

    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        safetensors.torch.save_file(
            dict(tensors), temporary, metadata=None if metadata is None else dict(metadata)
        )
    except safetensors.SafetensorError as error:
        # The system's own error is in its text.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
    temporary.chmod(mode)  # safetensors makes its files private


def unwritten(path: str | os.PathLike[str], error: OSError) -> InputError:
    """Return the error that says in a line that a file cannot be written, and what to do."""
    why = error.strerror or str(error) or type(error).__name__
    way_out = "make room there, and run it again" if error.errno in NO_ROOM else "give another place"
    return InputError(f"cannot write {path} ({why}); {way_out}")


@contextmanager
def locked(
    path: Path, once: bool = False, waiting: Callable[[], object] | None = None, poll: float = 0.01
) -> Iterator[bool]:
    """Hold the lock ``.<name>.lock`` beside ``path`` against other processes and threads.

    The operating system lets go of the lock of a process that dies. Whoever waits for long says so on stderr.

    Args:
        once: remove the lock's file in the end; else it stays there, empty.
        waiting: called, once, where another has the lock. poll: seconds from one look to the next.

    Yields:
        Whether the lock is held. Where there are no file locks (a file system without them) it says so on
        stderr and goes on without: then only one writer at a time is safe.

    Raises:
        InputError: the lock's file is another user's and closed to this one, or there is no room for it.
    """
    from filelock import FileLock

    file = path.with_name(f".{path.name}.lock")
    # Open to all that may write to the folder, who share what is in it. Not filelock's other kind of lock,
    # which a killed writer would leave held.
    lock = FileLock(file, mode=0o666, poll_interval=poll, fallback_to_soft=False)
    try:
        _acquire(lock, path, waiting)
    except PermissionError:
        raise InputError(
            f"cannot lock {path.name}: {file} is another user's (permission denied); have it removed, or "
            "give another folder"
        ) from None
    except OSError as error:
        if error.errno in NO_ROOM:
            raise unwritten(path, error) from None
        print(
            f"no lock for {path.name} ({error.strerror}); let only one process at a time write to it",
            file=sys.stderr,
        )
        yield False
        return
    try:
        yield True
    finally:
        if once:
            # While it is held: whoever waits for a file that is gone looks again. In some shared folders its
            # maker alone may remove it.
            with suppress(OSError):
                file.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, waiting: Callable[[], object] | None) -> None:
    from filelock import Timeout

    try:
        lock.acquire(blocking=False)
        return
    except Timeout:
        if waiting is not None:
            waiting()
    try:
        lock.acquire(timeout=SAID_AFTER)
    except Timeout:
        print(f"waiting for {path.name}, which another process is at work on", file=sys.stderr)
        lock.acquire()


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BufferedReader]:
    """Open a regular file to read its bytes; a pipe that nobody writes into is not waited for.

    Raises:
        OSError: there is none, it cannot be read, or it is something else than a file.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        yield file


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file; OSError as of :func:`opened`."""
    with opened(path) as file:
        return file.read()


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Try to write into a folder: call it before any work is done. What killed writers left there goes.

    A folder that is not there is made for the trial alone: a command that is refused later leaves none.

    Raises:
        InputError: the folder cannot be made or written to, or there is no room.
    """
    folder = Path(folder)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    make_writable(folder)
    with suppress(OSError):  # another process has put something there
        for each in missing:
            each.rmdir()


def make_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder and try to write into it. What killed writers left there goes.

    Raises:
        InputError: as :func:`check_writable`.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        why = error.strerror or type(error).__name__
        way_out = "make room there" if error.errno in NO_ROOM else "give a folder that can be written to"
        raise InputError(f"cannot write to {folder} ({why}); {way_out}") from None
    remove_leftovers(folder)
