"""What all tests share: one thread each (they run in parallel), limits, where real data and weights are."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data and weights, from LPE_ASSETS; tests that need it skip without."""
    named = os.environ.get("LPE_ASSETS")
    if not named:
        pytest.skip("LPE_ASSETS is not set: no real data and weights to check against")
    if not Path(named).is_dir():
        pytest.skip(f"LPE_ASSETS names {named}, which is no folder")
    return Path(named)


Limited = Callable[..., None]


@pytest.fixture(scope="session")
def limited() -> Limited:
    """Run an action in a process of its own, with limits.

    Call it with the action, and the ``seconds`` of processor time and ``mebibytes`` of memory that it may
    take. What the action raises fails the test, and so does a process that is ended by its limits.
    """
    return _limited


def _limited(action: Callable[[], object], seconds: int = 60, mebibytes: int = 1024) -> None:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which wait here
        child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            used = resource.getrusage(resource.RUSAGE_SELF)
            most = int(used.ru_utime + used.ru_stime) + seconds
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            held = pages * resource.getpagesize() + mebibytes * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (held, held))
            action()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        pytest.fail(f"ended by {signal.Signals(-code).name}: more than {seconds} s, or out of memory")
    if code:
        pytest.fail(said, pytrace=False)
