"""Runs that are killed at random moments, over and over; what they leave in the end, and what one run leaves.

    PYTHONPATH=. python tests/faults/kills.py fig5 FOLDER ROUNDS

Not a test: it imports torch once, and each run is a process that it forks. It prints, as JSON, the number of
kills, in how many passes, how long a run takes, and where the files of a pass differ from those of a run that
nobody killed; a pass is killed up to five times and then left alone. What runs say is in FOLDER/said.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lpe.provenance import REPOSITORY
from lpe.training import checkpoints

Run = Callable[[Path], int]
KILLS_A_PASS = 5


def module(path: Path) -> Any:
    """Return the module of a file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = made
    spec.loader.exec_module(made)
    return made


def fig5(folder: Path) -> Run:
    """Figure 5 of the reduced scale, from nothing: trainings, measurements, the record."""
    from reproduce import fig5
    from reproduce.command import run_figure
    from reproduce.scales import find

    find.SCALES["tiny"] = module(REPOSITORY / "tests" / "reproduce" / "conftest.py").TINY

    def run(place: Path) -> int:
        os.environ["LPE_STORE"] = str(place / "work" / "store")
        options = ["--scale", "tiny", "--seeds", "1", "--wandb", "disabled", "--out", str(place / "out")]
        return run_figure(fig5.SCRIPT, options, quiet=True)

    return run


def images(folder: Path) -> Run:
    """``lpe evaluate`` of a small Vision Transformer on images, with predictions."""
    import numpy as np
    from PIL import Image
    from safetensors.torch import save_file

    from lpe import cli
    from lpe.substrates import timm_models

    name = "test_vit.r160_in1k"
    pixels = np.random.default_rng(0).integers(256, size=(24, 32, 32, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        place = folder / "images" / ("ant", "bee", "cat")[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:02}.png")
    model = timm_models._created(name, num_classes=3)
    save_file(model.state_dict(), folder / "vit.safetensors")
    given = [
        f"timm/{name}",
        "--checkpoint",
        str(folder / "vit.safetensors"),
        "--data",
        str(folder / "images"),
    ]
    given += ["--workers", "0", "--batch-size", "4", "--system", "int4", "--size", "4"]

    def run(place: Path) -> int:
        place.mkdir(exist_ok=True)
        results = ["--predictions", str(place / "p.safetensors"), "--csv", str(place / "r.csv")]
        return cli.main(["evaluate", *given, *results])

    return run


def task(folder: Path) -> Run:
    """``lpe evaluate`` of a small Llama on a task, with predictions."""
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    from lpe import cli
    from lpe.substrates import language  # noqa: F401, once for all runs

    made = module(REPOSITORY / "tests" / "test_cli.py")
    questions = [{"question": f"{a}+{b}=", "answer": (a + b) % 3} for a in range(5) for b in range(5)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "sums.yaml").write_text(made.TASK.format(data=folder / "sums.jsonl"))
    given = [f"hf/{made.llama(folder / 'llama')}", "--tasks", "sums", "--include-path", str(folder / "tasks")]
    given += ["--batch-size", "2", "--system", "int4", "--size", "4"]

    def run(place: Path) -> int:
        place.mkdir(exist_ok=True)
        results = ["--predictions", str(place / "predictions"), "--csv", str(place / "r.csv")]
        return cli.main(["evaluate", *given, *results])

    return run


RUNS: dict[str, Callable[[Path], Run]] = {"fig5": fig5, "images": images, "task": task}


def begun(run: Run, place: Path, said: Path) -> int:
    """Begin a run in a process of its own; return its number."""
    number = os.fork()
    if number:
        return number
    code = 99
    try:
        lines = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(lines, 1)
        os.dup2(lines, 2)
        # As often as there is time for: so that a kill meets a writing.
        checkpoints.SECONDS = checkpoints.MOST = 0.02
        code = run(place)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def whole(run: Run, place: Path, said: Path) -> None:
    """Let a run come to its end."""
    _, status = os.waitpid(begun(run, place, said), 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"a run failed: {said.read_text()[-2000:]}")


def contents(place: Path) -> dict[str, object]:
    """Return what a run leaves that has to be the same, by file: tables but for times, tensors; leftovers."""
    found: dict[str, object] = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        name = str(path.relative_to(place))
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            found[name] = table.drop(columns="ms_per_example", errors="ignore").to_csv()
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix in (".training", ".evaluation") or ".rows" in name or ".partial" in name:
            found[name] = "left over"
    return found


def main(what: str, folder: Path, rounds: int) -> None:
    """Kill so many runs; see the top of this file."""
    torch.set_num_threads(1)
    said = folder / "said"
    run = RUNS[what](folder)
    # The first compiles kernels: kills drawn over its time would come after most later ones have ended.
    whole(run, folder / "first", said)
    started = time.monotonic()
    whole(run, folder / "whole", said)
    seconds = time.monotonic() - started
    expected = contents(folder / "whole")
    draws, kills, passes = random.Random(0), 0, 0
    differ = [
        f"first/{name}" for name, value in contents(folder / "first").items() if expected.get(name) != value
    ]
    while kills < rounds:
        place = folder / f"pass-{passes}"
        for _ in range(min(KILLS_A_PASS, rounds - kills)):
            number = begun(run, place, said)
            time.sleep(draws.uniform(0, seconds))
            os.kill(number, signal.SIGKILL)
            if os.WIFSIGNALED(os.waitpid(number, 0)[1]):
                kills += 1
        whole(run, place, said)
        found = contents(place)
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        differ += [f"{place.name}/{name}" for name in names]
        passes += 1
    print(json.dumps({"kills": kills, "passes": passes, "seconds": seconds, "differ": differ}))
    print(f"{kills} kills of {what} in {passes} passes, a run takes {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
