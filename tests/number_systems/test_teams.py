"""Threads that work together: all that is begun is done when the call returns, whatever the threads are."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

import pytest

from lpe.number_systems.kernels import teams

openmp = pytest.mark.skipif(not teams.uses_openmp(), reason="torch's threads cannot be had here")


def run(work: Callable[[int], None], threads: int) -> None:
    job = teams._Job(work)
    address = ctypes.cast(job, ctypes.c_void_p).value
    assert address is not None
    teams.run(address, 77, threads)


@pytest.fixture(params=[pytest.param("torch's threads", marks=openmp), "a pool", "no OpenMP", "forked"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A team of each kind; where OpenMP is lacking, or was lost by a fork, it is a pool."""
    if request.param == "a pool":
        monkeypatch.setattr(teams, "uses_openmp", lambda: False)
    if request.param == "no OpenMP":
        monkeypatch.setattr(teams, "_openmp", lambda: None)
    if request.param == "forked":
        monkeypatch.setattr(teams._TEAMS, "is_forked", True)
    return str(request.param)


def test_two_threads_are_at_work_at_once_and_waited_for(kind: str) -> None:
    both, done = threading.Barrier(2), []

    def work(data: int) -> None:
        both.wait(timeout=60)  # one thread alone would wait in vain
        time.sleep(0.02)
        done.append((threading.get_ident(), data))

    run(work, 2)
    assert [data for _, data in done] == [77, 77]
    assert len({thread for thread, _ in done}) == 2
    is_here = threading.get_ident() in {thread for thread, _ in done}
    assert is_here == (kind == "torch's threads")


def test_one_thread_is_the_caller(kind: str) -> None:
    found: list[int] = []
    run(lambda data: found.append(threading.get_ident()), 1)
    assert found == [threading.get_ident()]
