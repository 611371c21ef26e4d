"""What a run leaves in its folder: never less than was there, unless it is asked to; and what it cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce import __main__ as everything
from reproduce import fig1, fig5

MORE = {"seeds": [0, 1, 2]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with figures of three training seeds, as far as their JSON says."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("fig1", "fig5"):
        (out / f"{name}.json").write_text(json.dumps(MORE))
    return out


def test_a_record_of_more_training_seeds_is_not_replaced(
    figure: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figure(fig5, folder, "--seeds", "1") == 2
    said = capsys.readouterr().err
    assert "fig5.csv has 3 training seeds, this run would leave 1; give another folder with --out" in said
    assert json.loads((folder / "fig5.json").read_text()) == MORE


@pytest.mark.parametrize("json_beside", [None, "{", '{"seeds": [0]}'], ids=["none", "broken", "fewer"])
def test_a_record_of_more_training_seeds_is_not_replaced_whatever_the_json_beside_it_says(
    figure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], json_beside: str | None
) -> None:
    rows = "scale,seed,value\n" + "".join(f"tiny,{seed},1.0\n" for seed in range(3))
    (tmp_path / "fig5.csv").write_text(rows)
    if json_beside is not None:
        (tmp_path / "fig5.json").write_text(json_beside)
    assert figure(fig5, tmp_path, "--seeds", "1") == 2
    assert "fig5.csv has 3 training seeds, this run would leave 1;" in capsys.readouterr().err
    assert (tmp_path / "fig5.csv").read_text() == rows


@pytest.mark.parametrize("name", ["fig5.csv", "fig1.json"])
def test_a_record_of_another_scale_is_not_replaced(
    figure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    there = {
        "fig5.csv": "scale,seed,value\ndigits,0,1.0\n",
        "fig1.json": json.dumps({"seeds": [0], "config": {"scale": {"name": "digits"}}}),
    }[name]
    (tmp_path / name).write_text(there)
    assert figure({"fig5.csv": fig5, "fig1.json": fig1}[name], tmp_path, "--seeds", "1") == 2
    said = capsys.readouterr().err
    assert "is of scale 'digits', this run is of 'tiny'; give another folder with --out, or --ov" in said
    assert said.count("\n") == 1
    assert (tmp_path / name).read_text() == there


def test_nothing_is_measured_where_one_of_many_records_would_be_replaced(
    tiny: object, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(everything, "measure_all", lambda *_: pytest.fail("it was measured"))
    arguments = ["--scale", "tiny", "--out", str(folder), "--wandb", "disabled", "--seeds", "1"]
    assert everything.main([*arguments, "--only", "fig9,fig5"]) == 2
    assert "fig5.csv has 3 training seeds" in capsys.readouterr().err


def test_a_record_is_replaced_where_that_is_asked_for(figure: Callable[..., int], folder: Path) -> None:
    assert figure(fig1, folder, "--seeds", "1", "--overwrite") == 0
    assert json.loads((folder / "fig1.json").read_text())["seeds"] == [0]


def test_a_landscape_whose_working_record_was_altered_is_measured_anew_and_the_figures_is_the_same(
    figure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert figure(fig1, out, "--seeds", "1") == 0
    grid = (out / "fig1_landscape.csv").read_bytes()
    (working,) = (tmp_path / "work" / "records" / "tiny").glob("landscape-*.csv")
    measured = working.read_text()
    *rows, last = measured.splitlines(keepends=True)
    working.write_text("".join([*rows, last.rpartition(",")[0] + ",9.5\n"]))
    assert figure(fig1, out, "--seeds", "1") == 0
    assert "was altered since it was measured; it is measured anew" in capsys.readouterr().err
    assert working.read_text() == measured and (out / "fig1_landscape.csv").read_bytes() == grid


def test_a_figures_json_says_what_training_and_measuring_took_also_in_an_earlier_run(
    figure: Callable[..., int], tmp_path: Path
) -> None:
    costs = []
    for _ in range(2):
        assert figure(fig5, tmp_path / "out", "--seeds", "1") == 0
        costs.append(json.loads((tmp_path / "out" / "fig5.json").read_text())["cost"])
    assert costs[0] == costs[1]
    # The trunk, SGD's point, and the cycles of SSE and CSGLD; and three units.
    assert costs[0]["training"][0]["of"] == 6 and costs[0]["measuring"][0]["of"] == 3
    assert costs[0]["training"][0]["seconds"] > 0 and costs[0]["measuring"][0]["seconds"] > 0


@pytest.mark.parametrize(
    "ignored", [["--seeds", "1"], ["--wandb", "offline"], ["--overwrite"], ["--random-weights"]]
)
def test_plot_only_refuses_options_that_it_would_ignore(
    ignored: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert everything.main(["--out", str(folder), "--plot-only", *ignored]) == 2
    message = capsys.readouterr().err
    assert f"would ignore {' '.join(ignored)}; leave one or the other out" in message
    assert message.count("\n") == 1
