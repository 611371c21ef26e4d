"""Runs that are killed at random moments, and go on, leave what a run leaves that nobody killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Start = Callable[..., "subprocess.Popen[str]"]
Ended = Callable[..., tuple[str, str]]


@pytest.mark.parametrize(
    ("what", "rounds"),
    [
        ("fig5", 50),
        ("images", 20),
        ("task", 20),
    ],
    indirect=["rounds"],
)
def test_what_was_killed_goes_on_to_the_same_files(
    what: str, rounds: int, tmp_path: Path, start: Start, ended: Ended
) -> None:
    printed, _ = ended(start("tests/faults/kills.py", what, tmp_path, rounds))
    told = json.loads(printed.splitlines()[-1])
    assert told["differ"] == [] and told["kills"] == rounds
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert "Traceback" not in said and "damaged" not in said


TOY = ("--scale", "tests/reproduce/scales/toy.py", "--only", "fig3,table2", "--wandb", "disabled")


def files(place: Path) -> dict[str, bytes]:
    """The tables and trained weights that a run has left, by their places."""
    kept = [*place.rglob("*.csv"), *(place / "work" / "store").glob("*.safetensors")]
    return {str(path.relative_to(place)): path.read_bytes() for path in kept}


@pytest.mark.parametrize("rounds", [20], indirect=True)
def test_everything_that_was_killed_in_two_processes_goes_on_to_the_same_files(
    rounds: int, tmp_path: Path, start: Start, ended: Ended
) -> None:
    def begin(place: Path) -> subprocess.Popen[str]:
        options = (*TOY, "--jobs", 2, "--out", place / "out")
        return start("-m reproduce", *options, LPE_STORE=place / "work" / "store")

    began = time.monotonic()
    ended(begin(tmp_path / "whole"))
    seconds = time.monotonic() - began
    draws, kills = random.Random(1), 0
    while kills < rounds:
        place = tmp_path / f"after-{kills}"
        for _ in range(min(5, rounds - kills)):
            process = begin(place)
            try:
                process.wait(draws.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                kills += 1
            # Its workers see that it is gone, and the next run may begin before they do.
            process.send_signal(signal.SIGKILL)
            process.communicate()
        ended(begin(place))
        assert files(place) == files(tmp_path / "whole")


LINE = "interrupted; the same command goes on from here"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("module", ["lpe evaluate x", "reproduce"])
def test_an_interruption_while_torch_is_imported_is_a_line(
    module: str, number: signal.Signals, start: Start, ended: Ended
) -> None:
    process = start(f"-X importtime -m {module}")
    assert process.stderr is not None
    # Python says what it has imported: torch's parts come long before torch itself.
    for line in process.stderr:
        if "torch" in line:
            break
    process.send_signal(number)
    _, said = ended(process, 128 + number)
    assert said.splitlines()[-1] == LINE and "Traceback" not in said


def workers_of(process: subprocess.Popen[str]) -> list[Path]:
    """The processes that a process started and that are alive, in /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            command = (status.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(parent) == process.pid and state != "Z" and "spawn_main" in command:
            found.append(status.parent)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to see processes in")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("rounds", [10], indirect=True)
def test_an_interruption_ends_all_processes_and_the_run_goes_on(
    number: signal.Signals, rounds: int, tmp_path: Path, start: Start, ended: Ended
) -> None:
    options = (*TOY, "--jobs", 2, "--out", tmp_path / "out")
    draws = random.Random(number)
    for _ in range(rounds):
        process = start("-m reproduce", *options, LPE_STORE=tmp_path / "work" / "store")
        while len(workers := workers_of(process)) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        time.sleep(draws.uniform(0, 15))  # they import torch, train or measure
        if process.poll() is not None:
            break  # it has come to its end
        if number is signal.SIGINT:
            # As a terminal sends it, to all of them.
            subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
        else:
            process.send_signal(number)
        began = time.monotonic()
        while set(workers_of(process)) & set(workers):
            assert time.monotonic() - began < 2.0
            time.sleep(0.02)
        _, said = ended(process, 128 + number)
        assert said.splitlines()[-1] == LINE and said.count(LINE) == 1 and "Traceback" not in said
    ended(start("-m reproduce", *options, LPE_STORE=tmp_path / "work" / "store"))
