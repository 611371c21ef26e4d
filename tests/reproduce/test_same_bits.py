"""The variables that choose the same kernels on every make of CPU: when they are set, what is said of it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lpe.provenance import REPOSITORY, kernels
from reproduce import fig1, same_bits
from reproduce.command import seedless
from reproduce.same_bits import EVERYWHERE, OWN, VARIABLES, bits, choose
from reproduce.scales import DEFAULT, SAME_BITS
from reproduce.scales.find import SCALES
from reproduce.study.measurements import key_of
from reproduce.study.scale import Scale
from reproduce.study.units import Unit

CAPPED = {"make": "AuthenticAMD", "capability": "AVX2", "mkl": True, "variables": VARIABLES}
ENTRY_POINTS = sorted(
    path
    for path in REPOSITORY.glob("reproduce/*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As at the start of a process on Linux with AVX2: nothing set, neither torch nor numpy imported."""
    before = dict(os.environ)
    for name in ("LPE_SAME_BITS", *VARIABLES):
        os.environ.pop(name, None)
    monkeypatch.setattr(same_bits, "_has_avx2", lambda: True)
    monkeypatch.setattr(sys, "modules", {})
    yield
    os.environ.clear()
    os.environ.update(before)


def chosen() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


@pytest.mark.parametrize(
    "arguments",
    [[], ["--scale", "digits"], ["--seeds", "1", "--scale=digits"], ["--sca", "digits"]],
    ids=["default", "named", "equals", "abbreviated"],
)
def test_at_the_scale_digits_all_variables_are_set(fresh: None, arguments: list[str]) -> None:
    assert (choose(arguments), chosen()) == ("set", VARIABLES)


@pytest.mark.parametrize("arguments", [["--scale", "paper"], ["--scale=mine.toml"], ["--scale"]])
def test_at_another_scale_none_is_set(fresh: None, arguments: list[str]) -> None:
    assert (choose(arguments), chosen()) == ("the scale does not ask for it", {})


def test_a_variable_that_is_set_already_stays(fresh: None) -> None:
    os.environ["ATEN_CPU_CAPABILITY"] = "avx512"
    assert (choose([]), chosen()) == ("set", VARIABLES | {"ATEN_CPU_CAPABILITY": "avx512"})


def test_0_in_the_environment_sets_none(fresh: None) -> None:
    os.environ["LPE_SAME_BITS"] = "0"
    assert (choose([]), chosen()) == ("LPE_SAME_BITS=0", {})


def test_1_in_the_environment_sets_them_at_any_scale(fresh: None) -> None:
    os.environ["LPE_SAME_BITS"] = "1"
    assert (choose(["--scale", "mine.toml"]), chosen()) == ("set", VARIABLES)


def test_another_word_in_the_environment_is_refused(fresh: None, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["LPE_SAME_BITS"] = "yes"
    with pytest.raises(SystemExit, match="2"):
        choose([])
    assert capsys.readouterr().err == "error: LPE_SAME_BITS must be 0 or 1, not 'yes'; or leave it unset\n"


@pytest.mark.parametrize("module", ["torch", "numpy"])
def test_a_late_call_says_so_and_sets_none(fresh: None, module: str) -> None:
    sys.modules[module] = sys
    assert (choose([]), chosen()) == (f"too late: {module} is imported already", {})


def test_a_second_call_is_not_late(fresh: None) -> None:
    choose([])
    sys.modules["torch"] = sys
    assert choose([]) == "set"


def test_without_avx2_none_is_set(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch would believe the variable and end with an illegal instruction.
    monkeypatch.setattr(same_bits, "_has_avx2", lambda: False)
    assert (choose([]), chosen()) == ("this is no Linux on an x86-64 CPU with AVX2", {})


@pytest.mark.parametrize(
    ("machine", "flags", "has"),
    [
        ("x86_64", "sse2 avx avx2 fma", True),
        ("x86_64", "sse2 avx", False),
        ("x86_64", "sse2 avx avx2x fma", False),
        ("aarch64", "avx2 fma", False),
    ],
)
def test_avx2_is_read_from_the_flags_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, has: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags\t\t: {flags}\nbugs\t: x\n")
    assert same_bits._has_avx2() is has


@pytest.mark.parametrize(
    ("changed", "promised"),
    [
        ({}, EVERYWHERE),
        ({"make": "GenuineIntel"}, EVERYWHERE),
        ({"capability": "AVX512"}, OWN),
        ({"mkl": False}, OWN),
        ({"variables": {}}, OWN),
        ({"variables": VARIABLES | {"MKL_CBWR": "AVX2"}}, OWN),
        ({"variables": VARIABLES | {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}}, OWN),
    ],
)
def test_the_same_bits_are_promised_of_exactly_these_kernels(
    changed: Mapping[str, Any], promised: str
) -> None:
    assert bits({**CAPPED, **changed}) == promised


def test_a_process_that_has_not_chosen_does_not_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert bits(kernels()) == OWN


def run(code: str, **variables: str) -> dict[str, Any]:
    """Run code in a fresh process; what it prints last, as JSON."""
    kept = {name: value for name, value in os.environ.items() if name not in ("LPE_SAME_BITS", *VARIABLES)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=kept | variables, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def test_choosing_imports_neither_torch_nor_numpy() -> None:
    code = "import json, sys; from reproduce import same_bits; same_bits.choose([]); print(json.dumps({"
    assert run(code + "name: name in sys.modules for name in ('torch', 'numpy')}))") == {
        "torch": False,
        "numpy": False,
    }


ENTRY = """
import contextlib, json, runpy, sys
sys.argv = ["x", "--help"]
with contextlib.suppress(SystemExit):
    {run}
from lpe.provenance import kernels
from reproduce.same_bits import bits
print(json.dumps({{"bits": bits(kernels()), **kernels()}}))
"""
SCRIPT = ENTRY.format(run="runpy.run_path('reproduce/fig3.py', run_name='__main__')")
needs_avx2 = pytest.mark.skipif(not same_bits._has_avx2(), reason="no Linux on an x86-64 CPU with AVX2")


@needs_avx2
@pytest.mark.parametrize(
    "start",
    [
        "runpy.run_path('reproduce/fig3.py', run_name='__main__')",
        "runpy.run_module('reproduce', run_name='__main__', alter_sys=True)",
        "runpy.run_module('benchmarks.regression', run_name='__main__', alter_sys=True)",
    ],
    ids=["script", "everything", "regression"],
)
def test_the_chosen_kernels_are_in_force_in_an_entry_point(start: str) -> None:
    assert run(ENTRY.format(run=start))["bits"] == EVERYWHERE


@needs_avx2
def test_a_users_own_choice_is_in_force_in_an_entry_point() -> None:
    assert run(SCRIPT, ATEN_CPU_CAPABILITY="default")["capability"] == "DEFAULT"


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=lambda path: path.stem)
def test_an_entry_point_chooses_before_it_imports_anything_that_computes(path: Path) -> None:
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        source = ast.unparse(statement)
        if "same_bits.begin(sys.argv[1:])" in source:
            return
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = (
                [statement.module]
                if isinstance(statement, ast.ImportFrom)
                else [a.name for a in statement.names]
            )
            roots = {str(name).partition(".")[0] for name in names}
            assert roots <= sys.stdlib_module_names or source == "from reproduce import same_bits", source
    pytest.fail("the kernels are never chosen")


def test_scales_of_the_same_bits_and_the_default_are_scales() -> None:
    assert {*SAME_BITS, DEFAULT} <= set(SCALES)


def test_a_figures_json_says_where_its_bits_are_the_same(figure: Callable[..., int], tmp_path: Path) -> None:
    assert figure(fig1, tmp_path, "--seeds", "1") == 0
    told = json.loads((tmp_path / "fig1.json").read_text())
    assert told["config"]["bits"] == bits(told["kernels"])


def test_rows_that_other_kernels_measured_have_another_key(
    tiny: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, unit = seedless(tiny), Unit(tiny.substrate, "SGD", 0)
    before = key_of(session, unit)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert key_of(session, unit) != before
