"""What runs by itself: workflows name what there is, and dependencies have the bounds that are tested."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
TOX = configparser.ConfigParser(interpolation=None)
TOX.read(REPOSITORY / "tox.ini", encoding="utf-8")
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)")
"""name[extras]>=version: a lower bound and nothing else."""

DISTRIBUTIONS = {
    "PIL": "pillow",
    "ivon": "ivon-opt",
    "llvmlite": "numba",
    "lm_eval": "lm-eval",
    "open_clip": "open_clip_torch",
    "sklearn": "scikit-learn",
}
"""What brings a package of another name; llvmlite is numba's, which admits one minor version of it."""
UNUSED = {"scikit-learn"}
"""What the examples import."""
OPTIONAL = {"ray", "triton", "qtorch", "gfloat", "ml_dtypes", "torchao", "bitsandbytes"}
"""What a machine may lack: torch brings triton where there is one, the others are peers in benchmarks."""


# The workflows


def runs(workflow: dict[Any, Any]) -> Iterator[str]:
    """Yield every command line of a workflow, those of a matrix put in."""
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            line = step.get("run", "")
            if line == "${{ matrix.run }}":
                yield from (entry["run"] for entry in matrix["include"])
            elif line:
                yield line


def tox_environments(line: str) -> list[str]:
    """Return the environments that a command line asks tox for; of another command: none."""
    words = shlex.split(line)
    return words[words.index("-e") + 1].split(",") if words[0] == "tox" else []


COMMANDS = [(name, line) for name, workflow in WORKFLOWS.items() for line in runs(workflow)]


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_a_command_of_a_workflow_is_one_that_there_is(name: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] in (".ci/run", ".ci/core"):
        assert (REPOSITORY / words[0]).stat().st_mode & 0o111
    elif words[:4] == ["python", "-m", "pip", "install"]:
        assert words[4:] == [TOX["tox"]["requires"]]
    else:
        names = tox_environments(line)
        assert names, f"{line} runs neither .ci/run nor tox"
        assert [each for each in names if f"testenv:{each}" not in TOX] == []


@pytest.mark.parametrize(("line", "expected"), [("tox -e a,b -- -m slow", ["a", "b"]), (".ci/run", [])])
def test_environments_are_read_of_a_command_line(line: str, expected: list[str]) -> None:
    assert tox_environments(line) == expected


def test_every_change_is_tested_on_each_python_and_on_the_newest_and_the_oldest_versions() -> None:
    workflow = WORKFLOWS["tests.yml"]
    assert {"push", "pull_request"} <= workflow[True].keys()  # YAML reads the key "on" as true
    assert workflow["jobs"]["newest"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert {".ci/run", "tox -e newest", "tox -e oldest"} <= set(runs(workflow))
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_every_night_there_are_the_regression_and_the_slow_tests() -> None:
    workflow = WORKFLOWS["nightly.yml"]
    assert len(workflow[True]["schedule"]) == 1
    assert {"tox -e benchmarks -- regression", "tox -e faults", ".ci/core"} <= set(runs(workflow))
    slow = [line for line in runs(workflow) if line.startswith("tox -e tests -- -m slow")]
    assert slow, "no job runs the slow tests"
    # What one job leaves out another has.
    left_out = {place for line in slow for place in re.findall(r"--ignore (\S+)", line)}
    assert left_out == {"tests/faults"} and "tests/faults -m slow" in TOX["testenv:faults"]["commands"]
    markers = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    assert any(marker.startswith("slow:") for marker in markers)


def test_all_versions_are_tested_by_the_command_that_readme_names() -> None:
    command = "python -m pytest -n auto --maxprocesses 8"
    assert f".venv/bin/{command}\n" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert TOX["testenv:tests"]["commands"] == f"{command} {{posargs}}"
    for name in ("newest", "oldest"):
        assert TOX[f"testenv:{name}"]["commands"] == "{[testenv:tests]commands}"
    places = [TOX[name]["envdir"] for name in ("testenv", "testenv:newest", "testenv:oldest")]
    assert len(set(places)) == 3, "different versions in one folder"


# The bounds


def required(extra: str) -> list[str]:
    """Return what an extra requires, with what the extras that it names require."""
    found: list[str] = []
    for each in PROJECT["project"]["optional-dependencies"][extra]:
        if named := re.fullmatch(rf"{PROJECT['project']['name']}\[([\w,-]+)\]", each):
            for name in named[1].split(","):
                found += required(name)
        else:
            found.append(each)
    return list(dict.fromkeys(found))


def bounds(*extras: str) -> dict[str, str]:
    """Return the lower bounds of the core and of extras (test, which names the others), by name."""
    needed = [*PROJECT["project"]["dependencies"]]
    for extra in extras or ("test",):
        needed += required(extra)
    matched = [(each, REQUIREMENT.fullmatch(each)) for each in needed]
    assert [each for each, match in matched if match is None] == []
    return {match[1]: match[2] for _, match in matched if match}


def pinned(name: str) -> dict[str, str]:
    """Return the version of each package in a file of constraints, on whichever platform it is."""
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if line and not line.startswith("#")]
    return dict(pin.split("==") for pin in pins)  # type: ignore[misc]


def test_what_torch_brings_for_cuda_is_pinned_on_linux_of_x86_64_alone() -> None:
    marker = "; sys_platform == 'linux' and platform_machine == 'x86_64'"
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    of_cuda = [line for line in lines if re.match(r"(nvidia|cuda|triton)\b", line)]
    assert len(of_cuda) > 15
    assert [line for line in of_cuda if not line.endswith(marker)] == []
    assert [line for line in lines if line not in of_cuda and ";" in line.lstrip("#")] == []


def test_the_oldest_versions_are_exactly_the_lower_bounds() -> None:
    assert pinned("constraints-oldest.txt") == bounds()
    assert "constraints-oldest.txt" in TOX["testenv:oldest"]["set_env"]


def test_the_exact_versions_are_within_the_bounds() -> None:
    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    def numbers(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", version)]

    exact = {canonical(name): version for name, version in pinned("constraints.txt").items()}
    assert [name for name in bounds() if canonical(name) not in exact] == []
    below = {
        name: version
        for name, version in bounds().items()
        if numbers(exact[canonical(name)]) < numbers(version)
    }
    assert below == {}


def imported() -> set[str]:
    """Return the packages of others that the code imports, also within functions."""
    files = [
        path for room in ("lpe", "reproduce", "benchmarks") for path in (REPOSITORY / room).rglob("*.py")
    ]
    found: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - {"lpe", "reproduce", "benchmarks"} - sys.stdlib_module_names


def test_what_is_imported_has_a_bound_of_its_own() -> None:
    assert {DISTRIBUTIONS.get(name, name) for name in imported() - OPTIONAL} == {
        *bounds("reproduce")
    } - UNUSED
