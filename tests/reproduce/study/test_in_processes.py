"""A scale whose trainings several processes share: what it leaves is what one process leaves, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch

from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.store import Store
from lpe.training.processes import Processes, after
from reproduce import __main__ as everything
from reproduce.fig3 import SCRIPT
from reproduce.study.engines.in_processes import SharedStore
from reproduce.study.keys import determinants

DYING = str(Path(__file__).with_name("dying.py"))
ASKED = ["--scale", DYING, "--only", "fig3", "--wandb", "disabled"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "reproduce"]
CPU = torch.device("cpu")


@dataclass
class Left:
    """What a run left: its record, and its trained weights by recipe and replica."""

    record: pd.DataFrame
    weights: dict[str, dict[str, torch.Tensor]]
    configs: list[dict[str, Any]]


def left_in(folder: Path) -> Left:
    found = Left(pd.read_csv(folder / "out" / "fig3.csv"), {}, [])
    for path in sorted((folder / "store").glob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        found.configs.append(config)
        name = f"{config['phase']} {config['seed']} {config['replica']}"
        found.weights[name] = safetensors.torch.load_file(path.with_suffix(".safetensors"))
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPE_STORE", str(folder / "store"))
        assert everything.main([*ASKED, "--out", str(folder / "out")]) == 0
    return left_in(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Left, str]:
    """What two processes leave, and what they say."""
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [*TORCHRUN, *ASKED, "--out", str(folder / "out")],
        cwd=REPOSITORY,
        env={**os.environ, "LPE_KERNELS": "reference", "LPE_STORE": str(folder / "store")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return left_in(folder), done.stdout


def test_two_processes_leave_the_weights_of_one(one: Left, two: tuple[Left, str]) -> None:
    weights = two[0].weights
    assert weights.keys() == one.weights.keys() and len(weights) == len(one.configs)
    for name, tensors in one.weights.items():
        torch.testing.assert_close(weights[name], tensors, rtol=1e-3, atol=1e-4)


def test_two_processes_leave_the_record_of_one(one: Left, two: tuple[Left, str]) -> None:
    pd.testing.assert_frame_equal(two[0].record, one.record, rtol=0.02, atol=0.005)


def test_what_two_processes_trained_says_so(one: Left, two: tuple[Left, str]) -> None:
    assert [config.get("processes") for config in two[0].configs] == [2] * len(one.configs)
    assert not any("processes" in config for config in one.configs)


def test_the_first_process_alone_measures_and_draws(two: tuple[Left, str]) -> None:
    assert two[1].count("wrote ") == len({line for line in two[1].splitlines() if line.startswith("wrote ")})
    assert two[1].count("rendered at scale dying") == 1


# In this process.


def test_the_number_of_processes_is_in_the_key() -> None:
    alone = determinants(determinants, data="")
    with after(Processes(0, 3, CPU)):
        assert determinants(determinants, data="") == {**alone, "processes": 3}
    with after(Processes(0, 1, CPU)):
        assert determinants(determinants, data="") == alone


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--jobs", "2"], "--jobs 2 is not for processes of torchrun"),
        (["--engine", "ray"], "--engine ray is not for processes of torchrun"),
        (["--plot-only"], "--plot-only is not for processes of torchrun"),
        (["--random-weights"], "--random-weights is not for processes of torchrun"),
    ],
    ids=["jobs", "ray", "plot only", "random weights"],
)
def test_what_processes_do_not_do_together_is_one_line_of_the_first(
    more: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert everything.main([*ASKED[:-2], "--out", str(tmp_path / "out"), *more]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == lines and (not lines or said in printed)
    assert list(tmp_path.iterdir()) == []


def test_one_script_alone_says_how_it_is_launched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from reproduce.command import run_figure

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run_figure(SCRIPT, ["--scale", DYING, "--out", str(tmp_path / "out")]) == 2
    assert "train together by -m reproduce --only fig3" in capsys.readouterr().err


# The store that processes ask together.


@dataclass(frozen=True)
class Scripted(Processes):
    """Processes of which one runs: what the first one says is kept, or given."""

    said: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def of_first(self, value: Any) -> Any:
        """Keep what the first process says; give another one the next."""
        if self.is_first:
            self.said.append(value)
            return value
        return self.said.pop(0)

    def gathered(self, value: Any) -> list[Any]:
        """Return this process's value, and another one's."""
        return [value, *(self.keys or [value])]


def made() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {"weight": torch.ones(2)}, {"loss": 0.5}


CONFIG = {"phase": "it"}


def test_the_others_make_what_the_first_one_makes_and_take_what_it_stored(tmp_path: Path) -> None:
    first = Scripted(0, 2, CPU)
    entry = SharedStore(Store(tmp_path), first).get_or_make(CONFIG, made)
    assert [what for what, _ in first.said] == ["make", "entry"]
    calls: list[int] = []

    def make() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        calls.append(1)
        return made()

    other = SharedStore(Store(tmp_path / "nowhere"), Scripted(1, 2, CPU, said=list(first.said)))
    assert other.get_or_make(CONFIG, make) is entry and calls == [1]
    assert not (tmp_path / "nowhere").exists()


def test_what_is_stored_is_made_by_none(tmp_path: Path) -> None:
    Store(tmp_path).get_or_make(CONFIG, made)
    first = Scripted(0, 2, CPU)
    SharedStore(Store(tmp_path), first).get_or_make(CONFIG, never)
    assert [what for what, _ in first.said] == ["entry"]
    other = Scripted(1, 2, CPU, said=list(first.said))
    assert torch.equal(
        SharedStore(Store(tmp_path), other).get_or_make(CONFIG, never).tensors["weight"], torch.ones(2)
    )


def test_a_store_that_cannot_be_written_to_is_every_processs_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first = Scripted(0, 2, CPU)
    with pytest.raises(InputError) as error:
        SharedStore(Store(tmp_path / "file" / "store"), first).get_or_make(CONFIG, never)
    with pytest.raises(InputError) as others:
        SharedStore(Store(tmp_path), Scripted(1, 2, CPU, said=list(first.said))).get_or_make(CONFIG, never)
    assert str(others.value) == str(error.value)


def test_an_error_of_the_training_is_told_by_each_process_itself(tmp_path: Path) -> None:
    first = Scripted(0, 2, CPU)
    with pytest.raises(InputError, match="the loss is NaN"):
        SharedStore(Store(tmp_path), first).get_or_make(CONFIG, failing)
    assert [what for what, _ in first.said] == ["make"]


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_would_train_something_else_are_refused(rank: int, tmp_path: Path) -> None:
    together = Scripted(rank, 2, CPU, keys=["another"])
    with pytest.raises(InputError, match="process 1 would train something else"):
        SharedStore(Store(tmp_path), together).get_or_make(CONFIG, never)


def never() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    raise AssertionError("it was made")


def failing() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    raise InputError("the loss is NaN")
