"""Processes that ask for the same at the same time: one makes it, none fails, nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lpe.store import Store

Start = Callable[..., "subprocess.Popen[str]"]
Ended = Callable[..., tuple[str, str]]

MAKER = """
import json, random, sys, time
from pathlib import Path
import torch
from lpe.store import Store

torch.set_num_threads(1)
folder, name, rounds, makers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
draws = random.Random(name)
for number in range(rounds):
    # All begin a round together, but for the hundredths of a second within which they used to collide.
    (folder / f"ready-{number}-{name}").touch()
    while len(list(folder.glob(f"ready-{number}-*"))) < makers:
        time.sleep(0.001)
    time.sleep(draws.uniform(0, 0.03))

    def make():
        (folder / f"made-{number}-{name}").touch()
        time.sleep(draws.uniform(0, 0.03))
        return {"number": torch.tensor([number])}, {"by": name}

    entry = Store(folder / "store").get_or_make({"round": number}, make)
    print(json.dumps([entry.info["by"], entry.tensors["number"].tolist()]), flush=True)
"""


@pytest.mark.parametrize("makers", [2, 4])
@pytest.mark.parametrize("rounds", [20, pytest.param(500, marks=pytest.mark.slow)], indirect=True)
def test_one_key_is_made_once(makers: int, rounds: int, tmp_path: Path, start: Start, ended: Ended) -> None:
    begun = [start(MAKER, tmp_path, name, rounds, makers) for name in range(makers)]
    said = [ended(process) for process in begun]
    assert {complained for _, complained in said} == {""}
    taken = [[json.loads(line) for line in lines.splitlines()] for lines, _ in said]
    assert all(each == taken[0] for each in taken)
    assert [numbers for _, numbers in taken[0]] == [[number] for number in range(rounds)]
    made = sorted(path.name for path in tmp_path.glob("made-*"))
    assert made == sorted(f"made-{number}-{by}" for number, (by, _) in enumerate(taken[0]))
    assert len(list((tmp_path / "store").iterdir())) == 2 * rounds + 1  # and the store's own lock


WRITER = """
import sys, torch
from lpe.store import Store

torch.set_num_threads(1)
store = Store(sys.argv[1])
for number in range(int(sys.argv[2])):
    store.put({"row": 1}, {"values": torch.arange(1000)})
"""


@pytest.mark.parametrize("rounds", [50, pytest.param(500, marks=pytest.mark.slow)], indirect=True)
def test_what_is_written_again_is_never_missing_nor_damaged_for_who_reads_it(
    rounds: int,
    tmp_path: Path,
    start: Start,
    ended: Ended,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # As a figure is drawn again (--plot-only) beside a run that measures the same.
    store = Store(tmp_path)
    writers = [start(WRITER, tmp_path, rounds) for _ in range(2)]
    read = 0
    while any(process.poll() is None for process in writers):
        there = store.get({"row": 1})
        assert there is not None or not read
        read += there is not None
    for process in writers:
        ended(process)
    assert read and capsys.readouterr().err == ""


DYING = """
import sys, time
from pathlib import Path
from lpe.store import Store

def make():
    Path(sys.argv[2]).touch()
    time.sleep(600)

Store(sys.argv[1]).get_or_make({"made": "by the dead"}, make)
"""


def test_a_maker_that_was_killed_leaves_its_key_to_the_next(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    process = start(DYING, tmp_path / "store", begun)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    entry = Store(tmp_path / "store").get_or_make(
        {"made": "by the dead"}, lambda: ({"x": torch.ones(1)}, {"by": "the next"})
    )
    assert entry.info == {"by": "the next"} and capsys.readouterr().err == ""
