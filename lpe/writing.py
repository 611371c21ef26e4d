"""Files that are written whole or not at all, and by one writer at a time.

A file is written into a temporary one in the same folder, flushed to the disk, then moved over the old one.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lpe.errors import InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

SAID_AFTER = 30.0
"""Seconds that a lock is waited for until a line says so."""


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file whole or not at all; makes its folder. ``\\n`` stays ``\\n``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, which replaces it if the block ends without an error.

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
    """Remove the temporary files that killed writers left; call it with the lock held."""
    for leftover in folder.glob(pattern):
        leftover.unlink(missing_ok=True)


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
        InputError: the lock's file is another user's and closed to this one.
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
            # While it is held: whoever waits for a file that is gone looks again.
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


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder and try to write into it: call it before any work is done.

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
