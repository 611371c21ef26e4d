"""Ctrl-C and SIGTERM: a command says one line, ends with 130 or 143, and leaves no process behind.

What a command keeps is safe against a kill at any moment, so that an interruption need not wait: processes
that it started are ended at once, then its own code is left as by a KeyboardInterrupt. What has not been left
after ``GRACE`` seconds, such as a long pass in torch, is ended; so it is at a second interruption.

Nothing here imports torch or numpy.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lpe.allocator import is_out_of_memory
from lpe.command_line import complain

LINE = "interrupted; the same command goes on from here"

GRACE = 10.0
"""Seconds that a command has to leave its code."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_line = [LINE]
_heard: list[int] = []
_answering: list[int] = []
"""The process that answers: a forked one does not."""


def code() -> int:
    """Return the exit code of a command that was interrupted: 143 by SIGTERM, else 130."""
    return 128 + (_heard[0] if _heard else signal.SIGINT)


def say(line: str = "") -> int:
    """Say that the command was interrupted, on stderr; return its exit code."""
    print(line or _line[0], file=sys.stderr)
    return code()


def end_children() -> None:
    """End the processes that this one started by ``multiprocessing``; nothing that they do is waited for."""
    for child in multiprocessing.active_children():
        child.kill()


def answered(command: Callable[[], int], line: str = LINE) -> int:
    """Run a process's command, which answers interruptions until the process ends; return the exit code.

    Call it once a process. In threads other than the main one signals are not heard.

    Args:
        command: returns the exit code. It may answer a KeyboardInterrupt by :func:`say` itself.
        line: that is said where it does not.

    Returns:
        the command's; 130 or 143 when interrupted; 2 after one line about what the machine lacks or refuses:
        room, memory, a file, a process.
    """
    _line[:] = [line]
    _tell_all()
    if threading.current_thread() is threading.main_thread():
        _listen()
    try:
        try:
            returned = command()
        finally:
            if threading.current_thread() is threading.main_thread():
                end_at_once()  # there is nothing to leave any more
    except KeyboardInterrupt:
        returned = say()
    except Exception as error:
        # Such as a pool's whose processes were ended before this one could leave its code.
        if _heard:
            returned = say()
        elif (lacking := _lack(error)) is None:
            raise
        else:
            complain(lacking)
            returned = 2
    if _heard:
        # The code is left; what Python takes apart at its end takes seconds in a process that has torch.
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(returned)
    return returned


def _tell_all() -> None:
    """Let every character be printed, where the terminal's encoding lacks it as Python writes it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _lack(error: Exception) -> str | None:
    """Say in a line what a machine lacks or refuses, where an error is of that kind; else None."""
    if is_out_of_memory(error):
        return (
            "out of memory; leave other programs, give a smaller --batch-size or --jobs, or another machine"
        )
    if "shared memory" in str(error):  # as torch says of a loader's process
        return "out of shared memory (/dev/shm); give --workers 0, or let more of it be used"
    if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    why = error.strerror or str(error) or type(error).__name__
    return f"{where}{why}; free what is lacking, or give another place, and run it again"


def end_at_once() -> None:
    """Let an interruption end the process with the line, until :func:`answered` hears it.

    For the seconds in which a command imports torch: there is nothing to leave.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_by)


def is_command() -> bool:
    """Tell whether this process is the ``lpe`` command, and not one that imports the package."""
    if sys.argv[:1] == ["-m"]:  # the module has not been found yet
        given = sys.orig_argv
        return given[given.index("-m") + 1 :][:1] == ["lpe"] if "-m" in given else False
    return Path(*sys.argv[:1]).stem == "lpe"


def _end_by(number: int, frame: FrameType | None = None) -> NoReturn:
    _heard.append(number)
    _end()


def _end() -> NoReturn:
    os.write(2, f"{_line[0]}\n".encode())
    os._exit(code())


def _listen() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _answering[:] = [os.getpid()]
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, theirs), daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in the background
            signal.signal(number, _interrupt)
    if hasattr(os, "register_at_fork"):  # Windows has no fork, and below no SIGCHLD
        os.register_at_fork(after_in_child=_forget)
    others, of_threads = sys.unraisablehook, threading.excepthook

    def unraisable(told: sys.UnraisableHookArgs) -> None:
        if _heard and issubclass(told.exc_type, KeyboardInterrupt):
            _end()  # it came where Python drops exceptions: nobody would leave the code
        if not _heard:
            others(told)

    def in_thread(told: threading.ExceptHookArgs) -> None:
        if not _heard:
            of_threads(told)

    sys.unraisablehook, threading.excepthook = unraisable, in_thread


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _heard:
        _end()
    _heard.append(number)
    # torch's loaders raise an error wherever their parent is when a process of theirs has ended.
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raise KeyboardInterrupt


def _watch(wakeups: socket.socket, theirs: socket.socket) -> None:
    """Wait for a signal, whatever the main thread is at; ``theirs`` is held, so that it stays open."""
    number = 0
    while number not in SIGNALS:
        number = wakeups.recv(1)[0]
    end_children()
    time.sleep(GRACE)
    if not _heard:  # the main thread did not come to it
        _heard.append(number)
    _end()


def _forget() -> None:
    """Let a forked process die by signals, whatever this one answers."""
    if _answering and _answering[0] != os.getpid():
        _answering.clear()
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, signal.SIG_DFL)


if is_command():  # here, and not where it is imported: what runs on import there would be in every key
    end_at_once()
