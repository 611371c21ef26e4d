"""Threads that do one piece of work together: torch's own, or a pool where those cannot be had.

torch computes on the threads of OpenMP, whose idle ones wait for work by spinning for milliseconds. A second
team beside them would be held up, and hold them up; so this one is the same: the OpenMP that torch has
brought into the process is called by its own entry, ``GOMP_parallel``, which starts the threads in
microseconds. It is there on Linux. Elsewhere, and in a forked process, where OpenMP's threads are gone, a
pool does the same.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

_Job = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""void (*)(void *); the interpreter's lock is not held while it runs."""


class _Teams:
    """The threads of this process."""

    def __init__(self) -> None:
        self.is_forked = False
        self._pools: dict[int, ThreadPoolExecutor] = {}
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self.is_forked = True
        self._pools.clear()

    def pool(self, threads: int) -> ThreadPoolExecutor:
        if threads not in self._pools:
            self._pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="lpe-kernels")
        return self._pools[threads]


_TEAMS = _Teams()


@cache
def _openmp() -> Callable[..., Any] | None:
    """Return ``GOMP_parallel(function, data, threads, flags)`` of what is in the process."""
    try:
        found = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    found.restype = None
    called: Callable[..., Any] = found
    return called


@cache
def _job(function: int) -> Callable[[int], None]:
    return _Job(function)


def uses_openmp() -> bool:
    """Tell whether a team's threads are torch's, and start in microseconds."""
    return not _TEAMS.is_forked and _openmp() is not None


def run(function: int, data: int, threads: int) -> None:
    """Call a function on each of some threads at once, and wait for all.

    Args:
        function: the address of machine code, ``void (*)(void *)``; it may be called by fewer threads than
            are asked for, and must leave nothing undone even when one alone calls it.
        data: the address that it is given. threads: as many as torch has (another number would end some).
    """
    if threads > 1 and uses_openmp():
        openmp = _openmp()
        assert openmp is not None
        openmp(function, data, threads, 0)
        return
    job = _job(function)
    if threads <= 1:
        job(data)
        return
    running = [_TEAMS.pool(threads).submit(job, data) for _ in range(threads)]
    for thread in running:
        thread.result()
