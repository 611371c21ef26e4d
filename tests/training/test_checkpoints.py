"""A training that is killed goes on from its checkpoint, and comes to what an uninterrupted one comes to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ivon
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.cyclical_sgld import SamplingStage, StageCollector
from lpe.logits import cross_entropy
from lpe.store import Store
from lpe.training import checkpoints
from lpe.training.loop import TrainingRun, train
from lpe.training.schedules import warmup_cosine

EPOCHS, BATCHES = 3, 3
STEPS = EPOCHS * BATCHES


class Kill(BaseException):
    """Stands for the end of the process."""


def network() -> nn.Module:
    """A network whose training draws random numbers and keeps statistics; weights from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = nn.Linear(8, 8), nn.Linear(8, 3)
        return nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), last)


def images() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(12, 8, generator=draws), torch.arange(12) % 3


def shuffled(epoch: int) -> list[tuple[Tensor, Tensor]]:
    inputs, targets = images()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
    return [(inputs[part], targets[part]) for part in order.split(4)]


def loader(generator: torch.Generator | None = None) -> Any:
    """A DataLoader whose order is drawn by the global generator, or by its own."""
    data = torch.utils.data.TensorDataset(*images())
    return torch.utils.data.DataLoader(data, 4, shuffle=True, generator=generator)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3, fused=True)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), betas=(0.9, 0.95), fused=True)


def ivon_of(net: nn.Module) -> torch.optim.Optimizer:
    return ivon.IVON(net.parameters(), lr=0.1, ess=12.0)


def sgld(net: nn.Module) -> torch.optim.Optimizer:
    return lpe.SGLD(net.parameters(), 0.01, 12, noise=lambda step: step >= 4)


Made = tuple[dict[str, Tensor], TrainingRun, Any, list[dict[str, float]]]


def trained(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    collector: Any = None,
    batches: Any = shuffled,
    dies_at: int | None = None,
) -> Made:
    """Train anew, or until a step: the tensors, the run, what was collected, the rows that were reported."""
    net, reported, steps = network(), [], []

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        if len(steps) == dies_at:
            raise Kill
        steps.append(len(inputs))
        return cross_entropy(net(inputs), targets)

    clip = None if optimizer is ivon_of else 1.0
    schedule = warmup_cosine(0.1, STEPS)
    run = train(
        net,
        batches,
        optimizer(net),
        schedule,
        EPOCHS,
        seed=5,
        clip_norm=clip,
        collector=collector,
        loss=loss,
        report=lambda row: reported.append(dict(row)),
    )
    taken.append(len(steps))
    return dict(net.state_dict()), run, collector, reported


taken: list[int] = []
"""The steps that each training took that came to its end."""


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint after every step, however long it takes."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "MOST", 0.0)
    taken.clear()


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


STAGE = SamplingStage(STEPS, 5, 2, 3)
CASES: dict[str, tuple[Any, Callable[[], Any], Callable[[], Any]]] = {
    "SGD": (sgd, lambda: None, lambda: shuffled),
    "AdamW": (adamw, lambda: None, lambda: shuffled),
    "IVON": (ivon_of, lambda: None, lambda: shuffled),
    "SGLD": (sgld, lambda: StageCollector(STAGE), lambda: shuffled),
    "SWAG": (sgd, lambda: lpe.SWAGCollector(2, 1), lambda: shuffled),
    "snapshots": (sgd, lambda: lpe.SnapshotCollector(1), lambda: shuffled),
    "a loader": (sgd, lambda: None, loader),
    "a loader's own generator": (sgd, lambda: None, lambda: loader(torch.Generator().manual_seed(3))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [range(1, STEPS), range(2, STEPS, 3)], ids=["each", "some"])
def test_a_killed_training_comes_to_the_same_tensors(case: str, steps: range, tmp_path: Path) -> None:
    optimizer, collector, batches = CASES[case]
    tensors, run, collected, reported = trained(optimizer, collector(), batches())
    taken.clear()
    for alive, dies_at in zip([0, *steps], [*steps, None], strict=True):
        with checkpoints.kept(tmp_path / "it"):
            if dies_at is None:
                again = trained(optimizer, collector(), batches())
                break
            with pytest.raises(Kill):
                trained(optimizer, collector(), batches(), dies_at - alive)
    assert taken == [STEPS - steps[-1]]  # it did go on
    assert same(again[0], tensors)
    assert again[1] == run and again[3] == reported
    if collected is not None:
        assert same(again[2].state(), collected.state())


def test_a_training_that_had_ended_is_not_run_again(tmp_path: Path) -> None:
    # It was killed after it, before what it left was kept.
    with checkpoints.kept(tmp_path / "it"):
        tensors, *_ = trained(adamw)
    with checkpoints.kept(tmp_path / "it"):
        again, *_ = trained(adamw)
    assert taken == [STEPS, 0] and same(tensors, again)


def test_each_training_under_one_name_goes_on_from_its_own(tmp_path: Path) -> None:
    expected = [trained(sgd)[0], trained(adamw)[0]]
    with checkpoints.kept(tmp_path / "it"), pytest.raises(Kill):
        trained(sgd)
        trained(adamw, dies_at=4)
    taken.clear()
    with checkpoints.kept(tmp_path / "it"):
        again = [trained(sgd)[0], trained(adamw)[0]]
    assert taken == [0, STEPS - 4] and same(again, expected)


def killed(folder: Path, optimizer: Any = sgd) -> Path:
    """The file of a training that was killed after 4 steps."""
    with checkpoints.kept(folder / "it"), pytest.raises(Kill):
        trained(optimizer, dies_at=4)
    (file,) = folder.iterdir()
    return file


def test_a_checkpoint_of_another_training_is_said_and_the_training_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = killed(tmp_path, adamw)
    with checkpoints.kept(tmp_path / "it"):
        tensors, *_ = trained(sgd)
    said = f"checkpoint {file.name} is of another training; the training begins anew\n"
    assert capsys.readouterr().err == said and taken == [STEPS]
    assert same(tensors, trained(sgd)[0])


@pytest.mark.parametrize(
    "kept", [0, 10, 90, -1], ids=["empty", "its first line", "its beginning", "all but one"]
)
def test_a_truncated_checkpoint_is_said_and_the_training_begins_anew(
    kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = killed(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    with checkpoints.kept(tmp_path / "it"):
        trained(sgd)
    assert taken == [STEPS]
    said = f"checkpoint {file.name} is damaged; the training begins anew\n"
    assert capsys.readouterr().err == said


def test_a_checkpoint_of_which_a_bit_is_another_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = killed(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with checkpoints.kept(tmp_path / "it"):
        trained(sgd)
    assert taken == [STEPS] and "is damaged" in capsys.readouterr().err


def test_a_full_disk_is_said_once_and_does_not_end_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with checkpoints.kept(tmp_path / "file" / "it"):
        trained(sgd)
    assert taken == [STEPS]
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be" not in line and line.endswith("; a killed training begins anew")


class Forgetful:
    """A collector that says nothing of what it keeps."""

    def check(self, epochs: int) -> None:
        """Accept all."""

    def collect(self, model: nn.Module, epoch: int | None = None) -> None:
        """Keep nothing."""


def test_a_collector_that_cannot_go_on_has_its_training_begin_anew(tmp_path: Path) -> None:
    with checkpoints.kept(tmp_path / "it"):
        trained(sgd, Forgetful())
    assert list(tmp_path.iterdir()) == []


def test_what_is_trained_outside_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(sgd)
    assert list(tmp_path.iterdir()) == []


def test_the_store_keeps_checkpoints_of_what_it_makes_until_it_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Kill):
        store.get_or_make({"a": 1}, lambda: (trained(sgd, dies_at=4)[0], {}))
    assert [path.name for path in (tmp_path / checkpoints.UNDER_WAY).iterdir()] == [
        f"{Store.key({'a': 1})}-0.training"
    ]
    entry = store.get_or_make({"a": 1}, lambda: (trained(sgd)[0], {}))
    assert taken == [STEPS - 4] and list((tmp_path / checkpoints.UNDER_WAY).iterdir()) == []
    assert same(entry.tensors, trained(sgd)[0])


def test_a_checkpoint_that_was_left_beside_what_it_led_to_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Kill):
        store.get_or_make({"a": 1}, lambda: (trained(sgd, dies_at=4)[0], {}))
    store.put({"a": 1}, {"x": torch.ones(1)})
    store.get_or_make({"a": 1}, lambda: pytest.fail("it was made again"))
    assert list((tmp_path / checkpoints.UNDER_WAY).iterdir()) == []


def test_checkpoints_that_nobody_comes_back_for_go_and_fresh_ones_stay(tmp_path: Path) -> None:
    store, under_way = Store(tmp_path), tmp_path / checkpoints.UNDER_WAY
    under_way.mkdir()
    old, fresh, ahead = (under_way / f"{'0' * 31}{n}-0.training" for n in range(3))
    now = time.time()
    for path, age in ((old, checkpoints.ABANDONED + 60), (fresh, 3600), (ahead, -1e6)):
        path.touch()
        os.utime(path, (now - age, now - age))
    store.get_or_make({"a": 1}, lambda: ({"x": torch.ones(1)}, {}))
    assert sorted(under_way.iterdir()) == [fresh, ahead]
