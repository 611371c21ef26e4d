"""What tests of faults share: how many rounds there are, and scripts in processes of their own.

The numbers of rounds are those of a handful in the ordinary suite; ``-m slow`` runs as many as are promised.
``LPE_FAULT_ROUNDS`` in the environment: so many instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from lpe.provenance import REPOSITORY

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """The number of rounds: the parameter, or that of the environment."""
    return int(os.environ.get("LPE_FAULT_ROUNDS") or request.param)


@pytest.fixture
def start() -> Iterator[Start]:
    """(script, or Python's own options; arguments…; variables by name) → a process, ended after the test."""
    begun: list[subprocess.Popen[str]] = []

    def started(script: str, *arguments: object, **variables: object) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        environment |= {name: str(value) for name, value in variables.items()}
        process = subprocess.Popen(
            [sys.executable, *(["-c", script] if "\n" in script else script.split()), *map(str, arguments)],
            env=environment,
            cwd=REPOSITORY,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield started
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def ended() -> Callable[..., tuple[str, str]]:
    """(process, exit code = 0) → what it printed on both streams, once it has come to its end."""

    def wait(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
        said, complained = process.communicate(timeout=6 * 3600)
        assert process.returncode == code, complained
        return said, complained

    return wait
