"""The wheel: what an installed copy has, says of itself and promises of its types."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import lpe
from lpe.provenance import REPOSITORY

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
TYPED = """\
import lpe

reveal_type(lpe.Int(5).bits)
reveal_type(lpe.__version__)
lpe.Int("five")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    for name in ("lpe", "reproduce", "benchmarks"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(built)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (made,) = built.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def about(wheel: Path) -> Message:
    """The wheel's metadata."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (each for each in opened.namelist() if each.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(opened.read(name))


def test_the_wheel_has_the_library_whole_and_no_other_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        there = {name for name in opened.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "lpe").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there == wanted
    assert {"lpe/py.typed", "lpe/substrates/digits.npz"} <= there


def test_the_metadata_say_what_it_is(about: Message) -> None:
    assert about["Name"] == "low-precision-ensembling" and about["Version"] == lpe.__version__ == "0.2.0"
    assert about["Requires-Python"] == ">=3.11" and about["License-Expression"] == "MIT"
    assert about["Author"] == "The maintainers of Low Precision Ensembling"
    assert about["Project-URL"] == "Paper, https://arxiv.org/abs/2411.14860"
    core = [each for each in about.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert len(core) == 8
    extras = {"timm", "clip", "lm", "train", "wandb", "reproduce", "test", "docs", "ray"}
    assert extras <= set(about.get_all("Provides-Extra", []))


def test_the_wheel_brings_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (each for each in opened.namelist() if each.endswith(".dist-info/entry_points.txt"))
        assert "lpe = lpe.cli:entry" in opened.read(name).decode()


def test_mypy_sees_the_types_of_an_installed_copy(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    made = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(made, check=True, capture_output=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(packages)
    (tmp_path / "user.py").write_text(TYPED)
    mypy = [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", "--cache-dir=cache"]
    mypy += ["--python-executable", str(environment / "bin" / "python"), "user.py"]
    said = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""}).stdout
    assert 'user.py:3: note: Revealed type is "int"' in said.replace("builtins.", ""), said
    assert 'user.py:4: note: Revealed type is "str"' in said.replace("builtins.", ""), said
    assert 'user.py:5: error: Argument 1 to "Int" has incompatible type "str"' in said, said
