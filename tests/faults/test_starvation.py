"""A machine that lacks something: room, memory, folders, letters. A line each, no half file, no leftover."""

from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lpe import cli, interruption
from lpe.provenance import REPOSITORY

VIT = "timm/test_vit.r160_in1k"


@dataclass(frozen=True)
class Ended:
    """The end of a command: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    def refused(self) -> str:
        """Its one line about what is lacking."""
        assert self.code == 2 and "Traceback" not in self.err, self
        # Above it is what the command has told of itself, such as what it loaded.
        *before, last = self.err.splitlines()
        assert last.startswith("error: ") and not any(line.startswith("error: ") for line in before), self
        return last


Starved = Callable[..., Ended]


@pytest.fixture
def starved() -> Starved:
    """Run a command in a process that is forked and prepared: (prepare, command) → how it ended."""

    def run(prepare: Callable[[], object], command: Callable[[], int]) -> Ended:
        # What is printed goes through pipes: it is no file that the disk has no room for.
        pipes = [os.pipe(), os.pipe()]
        child = os.fork()
        if not child:
            code = 99
            try:
                for number, (_, writing) in enumerate(pipes, start=1):
                    os.dup2(writing, number)
                    setattr(sys, ("stdout", "stderr")[number - 1], os.fdopen(number, "w", encoding="utf-8"))
                prepare()
                code = interruption.answered(command)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        for _, writing in pipes:
            os.close(writing)
        texts = []
        for reading, _ in pipes:
            with os.fdopen(reading, encoding="utf-8") as pipe:
                texts.append(pipe.read())
        _, status = os.waitpid(child, 0)
        return Ended(os.waitstatus_to_exitcode(status), *texts)

    return run


def room(size: int) -> Callable[[], None]:
    """No file may grow beyond so many bytes: what is written fails as on a full disk, at that place."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of three classes."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(256, size=(6, 32, 32, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        place = root / ("ant", "bee", "cat")[index % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
    return root


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import, and compile, what a command does: its forks then have it."""
    out = tmp_path_factory.mktemp("warm") / "vit.lpe"
    assert cli.main(["pack", VIT, "--random-weights", "--size", "1", "-o", str(out)]) == 0


A_FEW = [0, pytest.param(5000, marks=pytest.mark.slow), 100_000]


@pytest.mark.parametrize("kind", ["members", pytest.param("seeded", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", A_FEW, ids="{} bytes".format)
@pytest.mark.usefixtures("warm")
def test_a_disk_that_is_full_at_any_byte_leaves_no_half_packed_file(
    size: int, kind: str, tmp_path: Path, starved: Starved
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["pack", VIT, "--random-weights", "--size", "2", "--kind", kind, "-o", str(out / "vit.lpe")]
    said = starved(room(size), lambda: cli.main(arguments)).refused()
    assert "File too large" in said and left_in(out) == []


SOME = [pytest.param(size, marks=pytest.mark.slow) for size in (0, 4096, 12_000)]


@pytest.mark.parametrize("size", [*SOME, 5000], ids="{} bytes".format)
@pytest.mark.usefixtures("warm")
def test_a_disk_that_is_full_at_any_byte_leaves_results_that_go_on(
    size: int, images: Path, tmp_path: Path, starved: Starved
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = [
        "evaluate",
        VIT,
        "--random-weights",
        "--model-kwargs",
        "num_classes=3",
        "--data",
        str(images),
    ]
    arguments += ["--input-size", "32", "--workers", "0", "--batch-size", "2", "--size", "3"]
    results = ["--csv", str(out / "r.csv"), "--json", str(out / "r.json")]
    results += ["--predictions", str(out / "p.safetensors")]
    ended = starved(room(size), lambda: cli.main([*arguments, *results]))
    if ended.code:
        assert "File too large" in ended.refused()
    again = starved(lambda: None, lambda: cli.main([*arguments, *results]))
    assert again.code == 0, again
    names = [name for name in left_in(out) if not name.endswith(".lock")]
    assert names == ["p.safetensors", "r.csv", "r.json"]


def test_memory_that_ends_is_a_line(images: Path, starved: Starved) -> None:
    import torch

    def command() -> int:
        torch.empty(1 << 44, dtype=torch.uint8)
        return 0

    assert "out of memory" in starved(lambda: None, command).refused()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device; "),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied; "),
        (MemoryError(), "out of memory; "),
        (
            RuntimeError("unable to open shared memory object </torch_1> (28)"),
            "out of shared memory (/dev/shm)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_the_machine_refuses_is_a_line(error: Exception, said: str, starved: Starved) -> None:
    def command() -> int:
        raise error

    assert starved(lambda: None, command).refused().startswith(f"error: {said}")


def test_a_fault_of_the_program_is_no_lack_of_the_machine(starved: Starved) -> None:
    def command() -> int:
        raise LookupError("a fault")

    ended = starved(lambda: None, command)
    assert ended.code == 99 and "error: " not in ended.err


def test_a_terminal_without_the_letters_has_them_as_python_writes_them(starved: Starved) -> None:
    def narrow() -> None:
        sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[attr-defined]

    def command() -> int:
        print("a − b = 5 ± 1 μs")
        return 0

    ended = starved(narrow, command)
    assert (ended.code, ended.out) == (0, "a \\u2212 b = 5 \\xb1 1 \\u03bcs\n")


def mounts() -> bool:
    """Tell whether a process may mount: then folders are closed to root as well."""
    tool = shutil.which("unshare")
    return (
        tool is not None
        and not subprocess.run(
            [tool, "-m", "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
        ).returncode
    )


needs_mounts = pytest.mark.skipif(
    not mounts(), reason="nothing can be mounted here, and root may write anywhere"
)
TOY = ("--scale", "tests/reproduce/scales/toy.py", "--only", "fig5", "--seeds", "1", "--wandb", "disabled")


def mounted(before: str, *command: object, after: str = "", **variables: object) -> Ended:
    """Run a command of Python where something else is mounted; lines of the shell before and after it.

    Its stderr is the last line alone: above it are bars of progress.
    """
    words = " ".join(map(str, [sys.executable, *command]))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"{before}\n{words}\ncode=$?\n{after}\nexit $code"],
        env=environment | {name: str(value) for name, value in variables.items()},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, (done.stderr.splitlines() or [""])[-1])


@pytest.mark.slow
@needs_mounts
@pytest.mark.parametrize("size", ["4k", "40k", "100k"])
def test_a_full_disk_under_a_run_is_a_line_and_the_run_goes_on(size: str, tmp_path: Path) -> None:
    full, work = tmp_path / "full", tmp_path / "work"
    full.mkdir()
    ended = mounted(
        f"mount -t tmpfs -o size={size} none {full}",
        *("-m", "reproduce", *TOY, "--out", tmp_path / "out"),
        after=f"cp -a {full} {work}",
        LPE_STORE=full / "store",
    )
    assert "No space left on device" in ended.refused()
    ended = mounted("", "-m", "reproduce", *TOY, "--out", tmp_path / "out", LPE_STORE=work / "store")
    assert ended.code == 0, ended
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".tmp", ".probe")]


@pytest.mark.slow
@needs_mounts
def test_without_shared_memory_processes_are_refused_in_a_line(tmp_path: Path) -> None:
    ended = mounted(
        "mount -t tmpfs -o ro none /dev/shm",
        *("-m", "reproduce", *TOY, "--jobs", 2, "--out", tmp_path / "out"),
        LPE_STORE=tmp_path / "store",
    )
    assert "leave --jobs 2 out, or let /dev/shm be written to" in ended.refused()


CACHES = ("HF_HOME", "HF_DATASETS_CACHE", "TORCH_HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR")
"""Where torch, the hub's packages, numba and matplotlib keep what they fetched and compiled."""


@pytest.mark.slow
@needs_mounts
@pytest.mark.parametrize("home", ["missing", "closed"])
def test_without_a_home_caches_a_folder_for_temporary_files_or_letters_commands_run(
    home: str, images: Path, tmp_path: Path
) -> None:
    place = tmp_path / "home"
    if home == "closed":
        place.mkdir()
    variables = {"HOME": place, "TMPDIR": place, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    variables |= dict.fromkeys(CACHES, place)
    closed = [REPOSITORY, "/dev/shm", *[place] * (home == "closed")]
    before = "\n".join(f"mount --bind {each} {each}; mount -o remount,ro,bind {each}" for each in closed)
    arguments = ("-m", "lpe", "evaluate", VIT, "--random-weights", "--model-kwargs", "num_classes=3")
    arguments += ("--data", str(images), "--workers", "0", "--size", "2", "--csv", str(tmp_path / "r.csv"))
    ended = mounted(before, *arguments, **variables)
    assert ended.code == 0, ended
    assert (tmp_path / "r.csv").is_file()


@pytest.mark.slow
@needs_mounts
def test_a_task_whose_cache_is_closed_is_a_line(tmp_path: Path) -> None:
    made = runpy.run_path(str(REPOSITORY / "tests" / "test_cli.py"))
    model = made["llama"](tmp_path / "llama")
    closed, tasks = tmp_path / "closed", tmp_path / "tasks"
    closed.mkdir()
    tasks.mkdir()
    questions = [{"question": f"{a}+1=", "answer": a % 3} for a in range(6)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (tasks / "sums.yaml").write_text(made["TASK"].format(data=tmp_path / "sums.jsonl"))
    arguments = ("-m", "lpe", "evaluate", f"hf/{model}", "--tasks", "sums")
    arguments += ("--include-path", str(tasks), "--size", "2", "--csv", str(tmp_path / "r.csv"))
    before = f"mount --bind {closed} {closed}; mount -o remount,ro,bind {closed}"
    ended = mounted(before, *arguments, **dict.fromkeys(CACHES, closed))
    assert "Read-only file system" in ended.refused()
    assert not (tmp_path / "r.csv").exists()
