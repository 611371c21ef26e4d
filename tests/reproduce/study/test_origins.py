"""Records of one folder come from one commit and one make of machine, or somebody says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reproduce.study.origins import mixture, of_record, origin, scales_of, seeds_of

HERE = {"revision": "abcdef0123", "dirty": False, "cpu": "Xeon"}


def _provenance(folder: Path, name: str, **other: object) -> Path:
    said = {**HERE, **other}
    content = {
        "git": {"revision": said["revision"], "dirty": said["dirty"]},
        "device": {key: said[key] for key in ("cpu", "gpu") if key in said},
        "seeds": [0, 1],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_records_of_one_origin_are_no_mixture(tmp_path: Path) -> None:
    for name in ("fig2", "fig3"):
        _provenance(tmp_path, name)
    assert mixture(tmp_path) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"revision": "1234567890"}, "commit 1234567 on Xeon (fig3)"),
        ({"cpu": "EPYC"}, "commit abcdef0 on EPYC (fig3)"),
        ({"gpu": "H100"}, "commit abcdef0 on H100 (fig3)"),
        ({"dirty": True}, "commit abcdef0 with changes on Xeon (fig3)"),
    ],
    ids=["commit", "processor", "card", "changes"],
)
def test_records_of_another_origin_are_said(tmp_path: Path, other: dict[str, object], said: str) -> None:
    _provenance(tmp_path, "fig2")
    _provenance(tmp_path, "fig3", **other)
    (line,) = mixture(tmp_path)
    assert "commit abcdef0 on Xeon (fig2)" in line and said in line


def test_many_records_of_an_origin_are_counted(tmp_path: Path) -> None:
    for number in range(1, 7):
        _provenance(tmp_path, f"fig{number}")
    _provenance(tmp_path, "table1", cpu="EPYC")
    (line,) = mixture(tmp_path)
    assert "fig1, fig2, fig3 and 3 more" in line


def test_a_json_that_says_no_origin_is_passed_over(tmp_path: Path) -> None:
    _provenance(tmp_path, "fig2")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    assert mixture(tmp_path) == []


@pytest.mark.parametrize("record", ["table1_record.csv", "table1.csv", "table1_landscape.csv"])
def test_a_record_comes_from_where_its_figure_does(tmp_path: Path, record: str) -> None:
    assert of_record(tmp_path / record) is None
    path = _provenance(tmp_path, "table1")
    assert of_record(tmp_path / record) == origin(path)


@pytest.mark.parametrize(
    "broken",
    [
        {"device": "Xeon"},
        {"device": ["Xeon"]},
        {"device": {"cpu": ["Xeon"]}},
        {"git": {"revision": None, "dirty": False}},
        {"git": {"revision": "abcdef0123", "dirty": []}},
        {"git": "abcdef0123"},
    ],
    ids=str,
)
def test_a_json_whose_origin_is_of_another_kind_says_none(tmp_path: Path, broken: dict[str, object]) -> None:
    path = _provenance(tmp_path, "fig2")
    path.write_text(json.dumps(json.loads(path.read_text()) | broken))
    assert origin(path) is None
    assert mixture(tmp_path) == []


def test_the_seeds_are_those_of_the_rows_whatever_the_json_names(tmp_path: Path) -> None:
    _provenance(tmp_path, "fig2")
    (tmp_path / "fig2.csv").write_text("scale,seed,value\nsmall,0,1.0\nsmall,10,1.0\nsmall,2,1.0\n")
    assert seeds_of(tmp_path / "fig2.csv") == [0, 2, 10]


def test_the_seeds_of_a_damaged_record_are_those_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "fig2.csv").write_bytes(b"\xef\xbb\xbfscale,seed\nsmall,0\nsmall,1\nsmall,x\n\xff")
    assert seeds_of(tmp_path / "fig2.csv") == [0, 1]


@pytest.mark.parametrize("rows", [None, "x,y\n1,2\n"], ids=["no CSV", "no such column"])
def test_without_a_column_of_seeds_they_are_those_that_the_json_names(
    tmp_path: Path, rows: str | None
) -> None:
    _provenance(tmp_path, "fig2")
    if rows is not None:
        (tmp_path / "fig2.csv").write_text(rows)
    assert seeds_of(tmp_path / "fig2.csv") == [0, 1]


@pytest.mark.parametrize("said", ["", "null", "[]", '{"seeds": 3}', '{"seeds": null}'])
def test_a_json_that_names_no_seeds_names_none(tmp_path: Path, said: str) -> None:
    (tmp_path / "fig2.json").write_text(said)
    assert seeds_of(tmp_path / "fig2.csv") == []


def test_the_scales_are_those_of_the_rows_or_of_the_json(tmp_path: Path) -> None:
    (tmp_path / "fig1.json").write_text(json.dumps({"config": {"scale": {"name": "large"}}}))
    assert scales_of(tmp_path / "fig1.csv") == ["large"]
    (tmp_path / "fig1.csv").write_text("scale,seed\nsmall,0\n")
    assert scales_of(tmp_path / "fig1.csv") == ["small"]
    assert scales_of(tmp_path / "fig2.csv") == []
