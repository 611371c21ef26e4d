"""What records cost is kept beside them, and summed for a figure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lpe.provenance import machine
from lpe.store import Store
from reproduce.study.costs import is_finished, measuring, summed

HERE = machine("cpu")


TRAINING, MEASURING = 5.0, 3.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still unless somebody changes it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def work(tmp_path: Path, clock: list[float]) -> Work:
    """Training and measuring that take their time on that clock."""
    return Work(Store(tmp_path / "store"), clock)


@dataclass
class Work:
    store: Store
    clock: list[float]

    def train(self, seed: int) -> None:
        def make() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
            self.clock[0] += TRAINING
            return {"weight": torch.ones(1)}, {}

        self.store.get_or_make({"seed": seed}, make)

    def measure(self, record: Path, *seeds: int) -> None:
        with measuring(record, self.store, "cpu"):
            for seed in seeds:
                self.train(seed)
            self.clock[0] += MEASURING
            record.touch()


def test_training_is_not_counted_as_measuring(work: Work, tmp_path: Path) -> None:
    work.measure(tmp_path / "a.csv", 0)
    assert summed([tmp_path / "a.csv"], {}) == {
        "training": [{"seconds": TRAINING, "of": 1, **HERE}],
        "measuring": [{"seconds": MEASURING, "of": 1, **HERE}],
    }


def test_weights_that_two_records_share_are_counted_once(work: Work, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        work.measure(tmp_path / name, 0)
    (training,) = summed([tmp_path / "a.csv", tmp_path / "b.csv"], {})["training"]
    assert training == {"seconds": TRAINING, "of": 1, **HERE}


def test_weights_that_a_figure_used_itself_are_counted(work: Work) -> None:
    with work.store.use() as use:
        work.train(0)
    assert summed([], use.made)["training"] == [{"seconds": TRAINING, "of": 1, **HERE}]


def test_machines_are_summed_by_themselves() -> None:
    weights = {"a": {"seconds": 1.0, "cpu": "Xeon"}, "b": {"seconds": 2.0, "cpu": "EPYC"}}
    assert summed([], weights)["training"] == [
        {"seconds": 1.0, "of": 1, "cpu": "Xeon"},
        {"seconds": 2.0, "of": 1, "cpu": "EPYC"},
    ]


def test_measuring_that_failed_is_counted_and_the_record_is_not_finished(work: Work, tmp_path: Path) -> None:
    record = tmp_path / "a.csv"
    with pytest.raises(RuntimeError), measuring(record, work.store, "cpu"):
        work.clock[0] += MEASURING
        record.touch()
        raise RuntimeError
    assert not is_finished(record)
    work.measure(record)
    assert is_finished(record)
    assert summed([record], {})["measuring"] == [{"seconds": 2 * MEASURING, "of": 2, **HERE}]


def test_a_record_that_was_removed_is_not_finished(work: Work, tmp_path: Path) -> None:
    work.measure(tmp_path / "a.csv")
    (tmp_path / "a.csv").unlink()
    assert not is_finished(tmp_path / "a.csv")
