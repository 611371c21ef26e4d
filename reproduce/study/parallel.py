"""Units of work in several processes, each with one thread.

A worker opens a session of its own on the shared store and working records; what it would have sent to W&B
comes back with its result. A run that is interrupted or killed ends its workers; they are killed at whatever
they do, and the next run goes on from what is on disk.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

import torch

from lpe import interruption
from lpe.allocator import keep_freed_memory
from lpe.errors import InputError
from lpe.tracking import Tracker
from reproduce.study.measurements import measure
from reproduce.study.session import Session
from reproduce.study.units import Unit

MOST_JOBS = 256
"""Processes at most: they are all begun, whatever there is to do."""


def check_jobs(jobs: int) -> None:
    """Raise InputError for less than one process, or more than a machine runs."""
    if not 1 <= jobs <= MOST_JOBS:
        raise InputError(f"--jobs must be 1 to {MOST_JOBS}, not {jobs}")


class Collected(Tracker):
    """A tracker that keeps what is logged, for the process that has the W&B run."""

    def __init__(self) -> None:
        super().__init__(None)
        self.logged: list[dict[str, float]] = []

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Keep a row of numbers."""
        self.logged.append(dict(values))


def _measured(session: Session, unit: Unit) -> tuple[Unit, list[dict[str, float]]]:
    if session.threads is not None:
        torch.set_num_threads(session.threads)
    tracker = Collected()
    measure(replace(session, tracker=tracker, quiet=True), unit)
    return unit, tracker.logged


def _end_with_parent() -> None:
    """Let this process die when its parent does, however that was killed: nobody waits for its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin(prepare: Callable[[], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    keep_freed_memory()
    prepare()


@contextlib.contextmanager
def workers(jobs: int, prepare: Callable[[], object]) -> Iterator[ProcessPoolExecutor]:
    """Start a pool of processes afresh: a forked one would hang in torch's thread pools.

    Args:
        prepare: run first in each, such as loading the file in which a scale's classes are defined.
    """
    context = multiprocessing.get_context("spawn")
    try:
        _start_tracker()
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(prepare,))
    except OSError as error:
        raise InputError(
            f"cannot start processes ({error.strerror}); leave --jobs {jobs} out, or let /dev/shm be written "
            "to"
        ) from None
    # Ctrl-C reaches all processes of a terminal. It is for this one, which ends the others; they have it
    # blocked from their start, before they can ignore it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(jobs):
            pool.submit(_nothing)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        yield pool
    except KeyboardInterrupt:
        interruption.end_children()
        raise
    finally:
        # After an error, what has not begun never begins.
        pool.shutdown(cancel_futures=True)


def _start_tracker() -> None:
    """Start the process that removes semaphores which nobody has removed, and let it do so without a word.

    An interrupted run that does not come to its end leaves them, and says its own line.
    """
    before = list(sys.warnoptions)
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions[:] = before


def _nothing() -> None:
    """Do nothing, in a process of the pool: to be asked for it, the process has to be started."""


def measure_units(session: Session, wanted: Iterable[Unit], pool: ProcessPoolExecutor) -> None:
    """Measure units in the pool's processes, with one progress bar; training curves go to W&B at the end."""
    bare = replace(session, tracker=Tracker(None))
    futures = [pool.submit(_measured, bare, unit) for unit in wanted]
    with session.progress(len(futures), "units measured") as bar:
        for future in as_completed(futures):
            unit, logged = future.result()
            for values in logged:
                session.tracker.log(values)
            bar.set_postfix_str(f"{unit.what}, seed {unit.seed}")
            bar.update()
