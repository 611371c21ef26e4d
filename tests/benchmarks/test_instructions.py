"""The counts of instructions: what is made of callgrind's files, and what is said without valgrind."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import construction, instructions
from lpe.errors import InputError

DUMP = """# callgrind format
version: 1
desc: Trigger: Client Request
events: Ir
fl=(1) a.c
fn=(1) f
3 12
totals: 12
"""


def test_the_sum_of_a_dump_is_read() -> None:
    assert instructions.total_of(DUMP) == 12
    assert instructions.total_of(DUMP.replace("events: Ir", "events: Ir\nsummary: 12")) == 12


def test_a_file_without_a_sum_is_refused() -> None:
    with pytest.raises(InputError, match="summary"):
        instructions.total_of("# callgrind format\n")


def test_the_empty_job_is_taken_off_and_the_rest_is_a_weight() -> None:
    weights = 256 * 4096
    found = instructions.per_weight(
        {instructions.NOTHING: 9, construction.PLAIN: 9 + 50 * weights, construction.MEMBER: 9 + weights}
    )
    assert found == {construction.PLAIN: 50.0, construction.MEMBER: 1.0}


def test_every_job_runs_on_a_small_weight() -> None:
    made: dict[str, Any] = {name: job(0) for name, job in instructions.jobs((4, 8)).items()}
    assert next(iter(made)) == instructions.NOTHING
    assert made[construction.ROUND_WEIGHTS].shape == made[construction.PLAIN].shape == (4, 8)
    codes, scales = made[construction.ENCODE]
    assert codes.shape == (4, 8)
    assert scales.shape == (4, 1)
    assert made[construction.IN_TURN].weight.shape == (4, 8)


def test_a_counted_call_is_read_from_its_own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def child(command: list[str]) -> str:
        for place, _ in enumerate((instructions.NOTHING, *instructions.CHOSEN)):
            count = 7 + place * instructions.COUNTED[0] * instructions.COUNTED[1]
            (tmp_path / f"callgrind.out.{place + 1}").write_text(f"summary: {count}\n", encoding="utf-8")
        assert command[0] == "valgrind"
        return ""

    monkeypatch.setattr(instructions, "_child", child)
    found = instructions.counted(tmp_path)
    assert list(found.values()) == list(range(1, len(found) + 1))
    assert instructions.NOTHING not in found


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the request is x86-64 code")
def test_a_request_does_nothing_without_valgrind() -> None:
    with instructions.asking() as ask:
        for request in (instructions._START, instructions._ZERO, instructions._DUMP):
            ask(request)


def test_another_cpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert instructions.main(["--out", str(tmp_path)]) == 2
    assert "aarch64" in capsys.readouterr().err


def test_without_valgrind_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert instructions.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "valgrind" in said
    assert not list(tmp_path.iterdir())
