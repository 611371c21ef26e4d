"""What a run was, as plain data: no absolute path, no other revision, nothing that JSON cannot hold."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpe import provenance as module
from lpe.errors import InputError
from lpe.provenance import REPOSITORY, plain_data, write_provenance


@dataclass(frozen=True)
class Schedule:
    peak: float
    steps: tuple[int, ...]


def test_a_dataclass_becomes_its_fields_and_the_name_of_its_class() -> None:
    assert plain_data(Schedule(0.1, (1, 2)), "config") == {"class": "Schedule", "peak": 0.1, "steps": [1, 2]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"training": {"rate": math.nan}}, "config.training.rate is nan"),
        ({"layers": [1, object()]}, r"config.layers\[1\] is of type object"),
        ({1: 2}, "the key 1"),
    ],
    ids=["nan", "object", "key"],
)
def test_what_is_not_plain_data_is_refused_by_its_place(config: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plain_data(config, "config")


def provenance(command: list[str] | None = None, config: dict[str, object] | None = None) -> dict[str, Any]:
    return module.provenance(
        command or ["fig3.py"], config or {}, device="cpu", seeds=range(2), threads=2, started=time.time() - 5
    )


def test_provenance_is_written_as_json(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"device": "cpu", "seeds": [0], "threads": 1, "started": 0.0}
    write_provenance(tmp_path / "a" / "fig3.json", ["fig3.py"], {"s": Schedule(0.1, (1,))}, **arguments)
    assert json.loads((tmp_path / "a" / "fig3.json").read_text())["config"]["s"]["peak"] == 0.1


def test_provenance_names_the_versions_of_the_packages_that_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "not-a-package-at-all"))
    assert provenance()["packages"] == {"numpy": np.__version__}


def test_provenance_has_the_seconds_since_the_start() -> None:
    assert 5 <= provenance()["wall_seconds"] < 60


def test_provenance_names_the_processor_and_its_cores() -> None:
    device = provenance()["device"]
    assert device["cpu"] and device["cores"] == os.cpu_count()


def test_provenance_names_the_variables_that_choose_kernels_and_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in module.KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert provenance()["kernels"]["variables"] == {"MKL_CBWR": "COMPATIBLE"}


def test_provenance_names_the_instructions_of_the_kernels_in_force_whatever_a_late_variable_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_force = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert provenance()["kernels"]["capability"] == in_force != "DEFAULT"


def test_provenance_names_who_made_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Path, "read_text", lambda *_, **__: "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC\n"
    )
    assert (module.kernels()["make"], module.machine("cpu")["cpu"]) == ("AuthenticAMD", "EPYC")


def test_provenance_has_no_absolute_path() -> None:
    command = [str(REPOSITORY / "reproduce" / "fig3.py"), "--out=/home/someone/figures", "/data/cifar"]
    written = provenance(
        command, {"data": {"root": "/home/someone/data", "table": str(REPOSITORY / "a/b.csv")}}
    )
    assert (written["command"], written["config"]) == (
        "reproduce/fig3.py --out=figures cifar",
        {"data": {"root": "data", "table": "a/b.csv"}},
    )


def test_provenance_names_the_script_relative_to_the_repository_from_any_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY / "lpe")
    assert provenance(["errors.py"])["command"] == "lpe/errors.py"


RECORDED = [
    ("code.py", True),
    ("benchmarks/speed.py", True),
    ("figures/fig1.csv", False),
    ("benchmarks/results/speed.csv", False),
]
"""Files, and whether a change of each makes the tree another than the commit."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in the place of this one."""
    monkeypatch.setattr(module, "REPOSITORY", tmp_path.resolve())
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, _ in RECORDED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_provenance_names_the_revision(repository: Path) -> None:
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True
    ).stdout
    assert provenance()["git"]["revision"] == revision.strip() != ""


@pytest.mark.parametrize(("changed", "dirty"), RECORDED)
def test_a_changed_file_makes_the_revision_dirty_unless_it_is_a_record(
    repository: Path, changed: str, dirty: bool
) -> None:
    (repository / changed).write_text("changed")
    assert provenance()["git"]["dirty"] is dirty


def test_outside_git_the_revision_is_unknown(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of somebody else's repository is not this project's repository either.
    monkeypatch.setattr(module, "REPOSITORY", repository.resolve() / "figures")
    assert provenance()["git"]["revision"] == "unknown"


def test_a_clock_that_was_set_back_gives_no_negative_time() -> None:
    told = module.provenance(["fig3.py"], {}, "cpu", [0], threads=1, started=time.time() + 1000)
    assert told["wall_seconds"] == 0.0
