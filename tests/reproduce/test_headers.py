"""A script's header, which is its --help: its command, what it costs, and what it prints."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from lpe.provenance import REPOSITORY
from reproduce import __main__ as everything
from reproduce import cost, fig2
from reproduce.command import run_figure
from reproduce.scales import find

SCRIPTS = [*everything.FIGURES, "known"]
COMMANDS = ["tune", "ledger", "ledgers", "external", "report"]
MINUTES = re.compile(r"about (a|\d+) minutes? of one core \(Intel Xeon\)")


def header(name: str) -> str:
    text = (REPOSITORY / "reproduce" / f"{name}.py").read_text(encoding="utf-8")
    return " ".join((ast.get_docstring(ast.parse(text)) or "").split())


@pytest.mark.parametrize("name", [*SCRIPTS, *COMMANDS])
def test_a_header_has_the_command_what_it_costs_and_what_it_prints(name: str) -> None:
    said = header(name)
    command = f"python reproduce/{name}.py" if name in SCRIPTS else "python -m reproduce"
    assert command in said and re.search(r"[Cc]osts?\b", said) and re.search(r"\bprints?\b", said)


def record_of(name: str) -> Path:
    return REPOSITORY / "figures" / ("known" if name == "known" else "digits") / f"{name}.json"


@pytest.mark.parametrize("name", [name for name in SCRIPTS if MINUTES.search(header(name))])
def test_the_minutes_of_a_header_are_about_those_of_its_record(name: str) -> None:
    (stated,) = MINUTES.findall(header(name))[:1]
    told = json.loads(record_of(name).read_text(encoding="utf-8"))
    parts = [each for what in told.get("cost", {}).values() for each in what]
    measured = (told["wall_seconds"] + sum(each["seconds"] for each in parts)) / 60
    # Another make of CPU takes up to twice as long, or half of it.
    assert 0.5 < measured / (1 if stated == "a" else int(stated)) < 2


def test_help_tells_of_every_scale_what_it_is_what_it_reaches_and_how_it_is_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run_figure(fig2.SCRIPT, ["--help"])
    said = capsys.readouterr().out
    for name in find.names():
        scale = find.scale(name)
        assert f"  {name}\n    {scale.title}\n    {scale.result}\n    {scale.launch}\n" in said
    assert "``" not in said


def test_help_tells_of_a_scale_that_cannot_be_made_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LPE_POINTS", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit) as left:
        run_figure(fig2.SCRIPT, ["--help"])
    assert left.value.code == 0 and "nowhere" in capsys.readouterr().out


def test_the_cost_pictures_help_has_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cost.main(["--help"])
    said = capsys.readouterr().out
    assert "--time" in said and "--assets" in said and "--plot-only" in said


def test_redrawing_the_cost_picture_measures_no_times(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--assets"]):
        assert cost.main(["--plot-only", "--time", *more]) == 2
        assert "would ignore --time" in capsys.readouterr().err
