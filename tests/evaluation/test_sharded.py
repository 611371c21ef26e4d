"""An ensemble evaluated in shares has the rows of one process, to the bit."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import lpe
from lpe import cli
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.evaluation import loops, predict, sharded
from lpe.evaluation.options import PLAIN
from lpe.evaluation.sharded import Share, launched, replayed, share
from lpe.evaluation.timing import MemberTimer
from lpe.provenance import REPOSITORY
from lpe.substrates import arithmetic
from lpe.substrates.images import LabelledImages, share_of_images

CPU = torch.device("cpu")
VIT = "test_vit"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 7))


def batches(sizes: tuple[int, ...] = (16, 3, 16, 16, 1, 9)) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [
        (3 * torch.randn(size, 5, generator=draws), torch.randint(7, (size,), generator=draws))
        for size in sizes
    ]


class Stream:
    """Batches that can be read again, and are no list."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches():
            self.read += 1
            yield batch


ENSEMBLES = {
    "made": lambda: lpe.LowPrecisionEnsemble(network(), lpe.Int(3), 4),
    "stored": lambda: lpe.DeepEnsemble([network(), nn.Sequential(*network(), nn.Hardtanh())]),
}


def in_shares(ensemble: Ensemble, data: Any, count: int, **settings: Any) -> Any:
    shares = [share(ensemble, data, place, count) for place in range(count)]
    return lpe.evaluate(*replayed(ensemble, shares, CPU), members="one-by-one", **settings)


@pytest.mark.parametrize("chunk", [0, 1500, 1 << 28])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ENSEMBLES)
def test_the_rows_are_those_of_one_process(
    kind: str, count: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "CHUNK_BYTES", chunk)
    ensemble, settings = ENSEMBLES[kind](), {"calibrated": [1, 2], "metrics": "all"}
    alone = lpe.evaluate(ensemble, batches(), members="one-by-one", **settings)
    assert in_shares(ensemble, batches(), count, **settings).equals(alone)
    assert in_shares(ensemble, Stream(), count, **settings).equals(alone)


def test_shares_in_another_order_are_the_same() -> None:
    ensemble = ENSEMBLES["made"]()
    shares = [share(ensemble, batches(), place, 2) for place in (1, 0)]
    found = lpe.evaluate(*replayed(ensemble, shares, CPU))
    assert found.equals(lpe.evaluate(ensemble, batches(), members="one-by-one"))


def test_a_share_that_is_lost_is_seen() -> None:
    # The injected fault: rows of a part of the batches.
    ensemble = ENSEMBLES["made"]()
    found = lpe.evaluate(*replayed(ensemble, [share(ensemble, batches(), 0, 2)], CPU))
    assert not found.equals(lpe.evaluate(ensemble, batches(), members="one-by-one"))


def test_the_temperature_is_that_of_one_process() -> None:
    ensemble = ENSEMBLES["stored"]()
    shares = [share(ensemble, batches(), place, 3) for place in range(3)]
    found = predict.evaluate_temperature_scaled(*replayed(ensemble, shares, CPU))
    assert found == predict.evaluate_temperature_scaled(ensemble, batches())


def test_a_share_times_its_own_examples() -> None:
    ensemble = ENSEMBLES["made"]()
    timer = MemberTimer(len(ensemble), CPU)
    share(ensemble, batches(), 1, 3, timer=timer)
    assert timer.examples == 3 + 1
    assert all(seconds > 0 for seconds in timer.seconds)


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_a_task_that_was_pickled_runs_the_same_share(kind: str) -> None:
    ensemble = ENSEMBLES[kind]()
    task = partial(sharded._task, ensemble, batches(), 2, PLAIN, torch.get_num_threads())
    found = pickle.loads(cloudpickle.dumps(task))(1)
    alone = share(ensemble, batches(), 1, 2)
    assert [place for place, _, _ in found.batches] == [1, 3, 5]
    assert all(map(torch.equal, found.logits, alone.logits)) and len(found.logits) == len(ensemble)


def test_more_processes_than_batches_leave_some_without() -> None:
    assert share(ENSEMBLES["made"](), batches((4, 4)), 2, 3) == Share([], [])


def test_no_batches_are_an_error() -> None:
    ensemble = ENSEMBLES["made"]()
    with pytest.raises(InputError, match="the batches are empty"):
        replayed(ensemble, [share(ensemble, [], place, 2) for place in range(2)], CPU)


def test_a_wrong_batch_has_its_number_among_all() -> None:
    data = batches()
    data[4] = (data[4][0], torch.tensor([7]))
    with pytest.raises(InputError, match="^batch 4: "):
        share(ENSEMBLES["made"](), data, 1, 3)


def test_of_images_in_files_no_others_are_read(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{number}.png" for number in range(7))
    for number, path in enumerate(paths[2:4] + paths[6:]):
        Image.fromarray(np.full((2, 2, 3), number, dtype=np.uint8)).save(path)
    images = LabelledImages(
        paths, tuple(range(7)), (), lambda image: torch.tensor(np.array(image)).permute(2, 0, 1), 2
    )
    own = share_of_images(images, 1, 2)
    assert [targets.tolist() for _, targets in own] == [[2, 3], [6]]
    assert len(own) == 2 and own == replace(images, paths=own.paths, labels=own.labels)


def test_a_process_that_was_started_alone_shares_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched() as ranks:
        assert ranks is None


# Processes that torchrun starts.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of three classes."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(256, size=(9, 32, 32, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        place = root / "abc"[index % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
    return root


def arguments(folder: Path, out: Path) -> list[str]:
    model = ["evaluate", f"timm/{VIT}", "--random-weights", "--model-kwargs", "num_classes=3"]
    data = ["--data", str(folder), "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    return [*model, *data, "--system", "int4", "--size", "3", "--calibrated", "--json", str(out)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert len(rows) >= 5 and all(row.pop("ms_per_example", None) != 0 for row in rows)
    return rows


def started(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in the repository, with one thread and the definition's kernels, which need no compilation."""
    kept = {**os.environ, "OMP_NUM_THREADS": "1", "LPE_KERNELS": "reference", **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=kept, capture_output=True, text=True)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
LPE = [sys.executable, "-c", "from lpe.cli import entry; entry()"]


def test_two_processes_of_torchrun_write_the_rows_of_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = started([*TORCHRUN, *LPE, *arguments(folder, tmp_path / "two.json")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert cli.main(arguments(folder, tmp_path / "one.json")) == 0
    capsys.readouterr()
    assert rows_of(tmp_path / "two.json") == rows_of(tmp_path / "one.json")


def questions(folder: Path, out: Path) -> list[str]:
    """Arguments: a small Llama on the first questions of a task."""
    model = folder / "llama"
    if not model.is_dir():
        arithmetic.network(arithmetic.LlamaShape(width=8, depth=1, heads=2, hidden=8), 0).save_pretrained(
            model
        )
        arithmetic.tokenizer().save_pretrained(model)
    tasks = ["--tasks", arithmetic.TASK, "--include-path", str(arithmetic.TASKS), "--limit", "5"]
    ensemble = ["--system", "int4", "--size", "3", "--batch-size", "3", "--device", "cpu"]
    return ["evaluate", f"hf/{model}", *tasks, *ensemble, "--json", str(out)]


def test_two_processes_of_torchrun_write_a_language_models_rows_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = started([*TORCHRUN, *LPE, *questions(tmp_path, tmp_path / "two.json")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert cli.main(questions(tmp_path, tmp_path / "one.json")) == 0
    capsys.readouterr()
    assert rows_of(tmp_path / "two.json") == rows_of(tmp_path / "one.json")


@pytest.mark.slow
def test_two_tasks_of_ray_write_the_rows_of_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'low-precision-ensembling[ray]'")
    done = started([*LPE, *arguments(folder, tmp_path / "two.json"), "--engine", "ray", "--processes", "2"])
    assert done.returncode == 0, done.stderr
    assert cli.main(arguments(folder, tmp_path / "one.json")) == 0
    capsys.readouterr()
    assert rows_of(tmp_path / "two.json") == rows_of(tmp_path / "one.json")


def test_language_models_are_not_for_ray_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = questions(tmp_path, tmp_path / "out.json")
    capsys.readouterr()  # what was said while the model was written
    assert cli.main([*asked, "--engine", "ray"]) == 2
    printed = capsys.readouterr().err
    assert "hf models are not for --engine ray; share their tasks by torchrun" in printed
    assert printed.count("\n") == 1 and not (tmp_path / "out.json").exists()


# Command lines.


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--address", "auto"], "--address auto is of a Ray cluster; give --engine ray as well"),
        (["--processes", "2"], "--processes 2 is of a Ray cluster; give --engine ray as well"),
        (["--engine", "ray", "--processes", "0"], "--processes must be 1 to 4096, not 0"),
        (["--engine", "ray", "--predictions", "p"], "--predictions is written by one process"),
        (["--engine", "ray", "--members", "together"], "--members together is for one process"),
    ],
    ids=["address", "processes", "none", "predictions", "together"],
)
def test_options_that_do_not_go_together_are_one_line(
    more: list[str],
    said: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments(folder, tmp_path / "out.json"), *more]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
