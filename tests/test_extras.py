"""The core alone: what runs without any package of an extra, and what is said where one is needed."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lpe
from lpe import cli, extras
from lpe.errors import InputError
from lpe.provenance import REPOSITORY

DISTRIBUTIONS = {
    "PIL": "pillow",
    "ivon": "ivon-opt",
    "open_clip": "open_clip_torch",
    "sklearn": "scikit-learn",
}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {"filelock", "numba", "numpy", "pandas", "safetensors", "scipy", "torch", "tqdm"}
BLOCKING = """
import sys

class Hiding:
    def __init__(self, finder, names):
        self.finder, self.names = finder, names

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in self.names
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

hidden = set(sys.argv.pop(1).split(","))
sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]
"""
"""Begins a program: what its first argument lists is as if it were not installed."""


def canonical(name: str) -> str:
    """Return a distribution's name in the one spelling of all that it may be written in."""
    return re.sub(r"[-_.]+", "-", name).lower()


def with_dependencies(names: set[str]) -> set[str]:
    """Return distributions and all that they depend on here, by their canonical names."""
    found: set[str] = set()
    queue = [*names]
    while queue:
        name = canonical(queue.pop())
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        wanted = [each for each in required if "extra ==" not in each.partition(";")[2]]
        queue += [re.split(r"[ ;\[<>=!~(]", each, maxsplit=1)[0] for each in wanted]
    return found


@functools.cache
def beyond_the_core() -> frozenset[str]:
    """Return the modules that are installed here and neither the core nor what it depends on."""
    core = with_dependencies(CORE) | {"low-precision-ensembling"}
    return frozenset(
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {canonical(owner) for owner in owners} & core and module.isidentifier()
    ) - {"lpe", "reproduce", "_distutils_hack"}


IN_THE_CORE = """
import contextlib, importlib, io, json, pathlib, pkgutil, traceback

told = {"imported": [], "commands": []}
try:
    import lpe
    from lpe.cli import main

    for each in pkgutil.walk_packages(lpe.__path__, "lpe."):
        if not each.name.startswith(("lpe.substrates.language", "lpe.__main__")):
            try:
                importlib.import_module(each.name)
            except Exception as error:
                told["imported"].append(f"{each.name}: {error}")
    for command in json.loads(sys.argv[1]):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(command)
            except SystemExit as error:
                code = error.code
        told["commands"].append([code, out.getvalue(), err.getvalue()])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(sys.argv[2], {})
    told["quick start"] = out.getvalue()
except Exception:
    told["failed"] = traceback.format_exc()
print(json.dumps(told))
"""
"""All that is asked of the core, in one process: what it imports takes seconds."""

LACKING = {
    ("describe", "timm/vit_tiny_patch16_224", "--random-weights"): ("timm", "timm"),
    ("evaluate", "timm/resnet18", "--data", "."): ("timm", "timm"),
    ("describe", "open_clip/ViT-B-32:openai"): ("open_clip", "clip"),
    ("describe", "hf/gpt2"): ("lm_eval", "lm"),
    ("evaluate", "hf/gpt2", "--tasks", "arithmetic"): ("lm_eval", "lm"),
}
COMMANDS = [("systems",), ("--version",), *LACKING]


def run_without(modules: Iterable[str], code: str, *arguments: str, cwd: Path) -> tuple[int, str, str]:
    """Run a program that cannot import these modules; its exit code, and what it printed and complained."""
    program = [sys.executable, "-c", BLOCKING + code, ",".join(sorted(modules)), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(program, capture_output=True, text=True, cwd=cwd, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the core does by itself: see ``IN_THE_CORE``."""
    blocked = beyond_the_core()
    absent = [name for name in ("timm", "transformers", "matplotlib") if name not in blocked]
    assert absent == [], "the tests' environment has all extras, or nothing is blocked"
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Quick start")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    folder = tmp_path_factory.mktemp("core")
    code, said, complained = run_without(
        blocked, IN_THE_CORE, json.dumps(COMMANDS), "\n".join(blocks), cwd=folder
    )
    assert code == 0, complained
    told: dict[str, Any] = json.loads(said)
    assert "failed" not in told, told["failed"]
    return told


def test_the_core_is_eight_packages() -> None:
    names = {re.split("[<>=]", each)[0] for each in PROJECT["dependencies"]}
    assert names == CORE


def test_every_extra_that_is_named_is_there_and_brings_its_packages() -> None:
    def brought(extra: str) -> set[str]:
        found: set[str] = set()
        for each in PROJECT["optional-dependencies"][extra]:
            name, _, others = each.partition("[")
            if name == PROJECT["name"]:
                found = found.union(*map(brought, others.rstrip("]").split(",")))
            else:
                found.add(canonical(re.split("[<>=]", name)[0]))
        return found

    for package, extra in extras.EXTRAS.items():
        name = canonical(DISTRIBUTIONS.get(package, package))
        assert name in brought(extra), package
        assert name in brought("reproduce") or extra in ("ray", "s3"), package
    assert brought("reproduce") <= brought("test")


def test_every_module_of_the_library_is_imported_by_the_core_alone(core: dict[str, Any]) -> None:
    """But for the language package, whose import is of lm-eval, and the kernels of a GPU."""
    assert [each for each in core["imported"] if "triton" not in each] == []


def test_the_readmes_quick_start_runs_in_the_core(core: dict[str, Any]) -> None:
    assert "ambiguity  memory_bits" in core["quick start"]


def test_the_command_has_its_number_systems_and_version_in_the_core(core: dict[str, Any]) -> None:
    (code, systems, _), (_, version, _) = core["commands"][:2]
    assert code == 0 and "fp8_e4m3" in systems
    assert version == f"lpe {lpe.__version__}\n"


@pytest.mark.parametrize("command", LACKING, ids=" ".join)
def test_a_command_says_in_a_line_which_extra_it_needs(
    command: tuple[str, ...], core: dict[str, Any]
) -> None:
    package, extra = LACKING[command]
    line = f"error: {package} is not installed; install it by pip install 'low-precision-ensembling[{extra}]'"
    assert core["commands"][COMMANDS.index(command)] == [2, "", f"{line}\n"]


@pytest.mark.parametrize("script", ["fig3.py", "known.py"])
def test_a_script_of_a_figure_says_in_a_line_what_it_needs(script: str, tmp_path: Path) -> None:
    run = "import runpy; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    path = str(REPOSITORY / "reproduce" / script)
    code, said, complained = run_without({"matplotlib"}, run, path, "--plot-only", cwd=tmp_path)
    assert (code, said, complained.count("\n")) == (2, "", 1)
    assert "matplotlib is not installed" in complained and ".[reproduce]'" in complained


def test_what_a_package_of_an_extra_lacks_itself_is_said_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as torchvision, which timm imports."""
    absent = ModuleNotFoundError("No module named 'torchvision'", name="torchvision.transforms")
    monkeypatch.setattr(cli, "describe", lambda asked: (_ for _ in ()).throw(absent))
    assert cli.main(["describe", "timm/resnet18"]) == 2
    assert capsys.readouterr().err.startswith("error: torchvision is not installed; install it by pip")


def test_an_import_that_fails_of_no_extra_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ModuleNotFoundError("No module named 'lpe.nothing'", name="lpe.nothing")
    monkeypatch.setattr(cli, "describe", lambda asked: (_ for _ in ()).throw(absent))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["describe", "timm/resnet18"])


# The error


def test_a_missing_package_is_an_error_of_input_and_of_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^ray is not installed; install it by .*\[ray\]'$") as caught:
        extras.needs("ray")
    assert isinstance(caught.value, ImportError)


def test_a_package_that_is_there_is_not_missed() -> None:
    extras.needs("timm", "PIL")


def test_an_import_of_no_extra_is_not_explained() -> None:
    assert extras.missing(ModuleNotFoundError("No module named 'antigravitas'", name="antigravitas")) is None
    assert extras.missing(ModuleNotFoundError("no name")) is None


# Where packages of extras are imported


def unasked(path: Path) -> Iterator[str]:
    """Yield the imports of extras' packages in a file's functions that nothing asks for first."""

    def visit(statements: list[ast.stmt], inside: bool, asked: set[str], caught: bool) -> Iterator[str]:
        asked = set(asked)
        for each in statements:
            if isinstance(each, ast.Expr) and isinstance(each.value, ast.Call):
                if getattr(each.value.func, "id", "") == "needs":
                    asked |= {argument.value for argument in each.value.args}  # type: ignore[attr-defined]
            elif isinstance(each, ast.Import | ast.ImportFrom):
                source = [alias.name for alias in each.names]
                names = source if isinstance(each, ast.Import) else [each.module or ""]
                for name in {name.partition(".")[0] for name in names} & extras.EXTRAS.keys():
                    if not caught and name not in asked:
                        yield f"{path}, line {each.lineno}: {name}"
            elif isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(each.body, True, set(), False)
            elif not (isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING"):
                for field in ("body", "orelse", "finalbody"):
                    catches = isinstance(each, ast.Try) and any(
                        handler.type is not None and "ImportError" in ast.unparse(handler.type)
                        for handler in each.handlers
                    )
                    yield from visit(getattr(each, field, []), inside, asked, caught or catches)
                for handler in getattr(each, "handlers", []):
                    yield from visit(handler.body, inside, asked, caught)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")).body, False, set(), False)


WITH_LM_EVAL = REPOSITORY / "lpe" / "substrates" / "language"


def test_every_import_of_an_extras_package_in_lpe_is_asked_for_first() -> None:
    found = [
        each
        for path in (REPOSITORY / "lpe").rglob("*.py")
        for each in unasked(path)
        # The package's own __init__ has asked for what its modules import.
        if not (WITH_LM_EVAL in path.parents and each.endswith((": lm_eval", ": transformers")))
    ]
    assert found == []


def test_an_import_that_is_not_asked_for_is_found(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "def f():\n    needs('timm')\n    import timm\n    import PIL\n"
        "def g():\n    import timm\n"
        "def h():\n    try:\n        import wandb\n    except ImportError:\n        pass\n"
    )
    assert list(unasked(file)) == [f"{file}, line 4: PIL", f"{file}, line 6: timm"]
