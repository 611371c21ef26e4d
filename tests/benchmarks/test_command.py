"""What the benchmarks share: bad input, and results with the conditions beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch

import benchmarks.__main__ as every
from benchmarks import command
from benchmarks.compiled import passes_to_pay
from lpe.errors import InputError


@pytest.mark.parametrize("name", [*every.QUICK, *every.OTHERS])
def test_a_folder_that_cannot_be_written_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setenv("LPE_ASSETS", str(tmp_path))
    taken = tmp_path / "taken"
    taken.write_text("a file", encoding="utf-8")
    try:
        code = import_module(f"benchmarks.{name}").main(["--out", str(taken)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_bad_input_is_one_line_and_other_errors_are_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    @command.one_line_of_bad_input
    def main(arguments: Sequence[str]) -> int:
        if arguments:
            raise InputError(f"{arguments[0]} is no size; give a number")
        raise KeyError("a fault of ours")

    assert main(["x"]) == 2
    assert capsys.readouterr().err == "error: x is no size; give a number\n"
    with pytest.raises(KeyError):
        main([])


@pytest.mark.parametrize("name", [*every.QUICK, *every.OTHERS])
def test_a_header_has_the_command_what_it_costs_and_what_it_prints(name: str) -> None:
    said = " ".join((import_module(f"benchmarks.{name}").__doc__ or "").split())
    assert re.search(rf"python -m benchmarks[. ]{name}\b", said)
    assert re.search(r"\b(minutes?|hours?)\b", said) and re.search(r"\b(prints?|writes)\b", said)


@pytest.mark.parametrize("name", every.QUICK)
def test_a_quick_benchmark_has_taken_the_minutes_that_are_stated(name: str) -> None:
    told = json.loads((command.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    minutes = told["wall_seconds"] / 60
    # Whole minutes, and a machine that does something else for a while.
    assert minutes <= 1.25 * every.QUICK[name] + 0.5
    stated = every.__doc__ or ""
    assert f"about {5 * round(sum(every.QUICK.values()) / 5)} minutes on two cores" in stated


def test_results_lie_beside_their_conditions(tmp_path: Path) -> None:
    rows = [{"what": "copy", "seconds": 0.25}]
    command.write_results(tmp_path, "speed", {"speed": rows}, None, {"repeats": 3}, 0.0, threads=7)
    assert pd.read_csv(tmp_path / "speed.csv").to_dict("records") == rows
    told = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert told["threads"] == 7 and told["config"]["repeats"] == 3
    assert "7 of " in command.conditions(tmp_path / "speed.json")


def test_compiling_is_paid_back_by_what_each_pass_saves() -> None:
    row = {"plain_seconds_a_pass": 1.5, "compiled_seconds_a_pass": 1.0, "compile_seconds": 20.0}
    assert passes_to_pay(row, "compile_seconds") == "40"
    assert passes_to_pay({**row, "compiled_seconds_a_pass": 1.5}, "compile_seconds") == "never"
