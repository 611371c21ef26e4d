"""The claims of all scales, side by side: from made-up ledgers to the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest

from lpe.records import write_table
from reproduce import ledger, ledgers
from reproduce.scales import find
from reproduce.scales.digits.settings import DIGITS

HOLDS: Mapping[str, object] = {
    "claim": "C2 (IVON)",
    "statistic": "a difference",
    "claimed side": "below 0.001",
    "effect": -0.0125,
    "95 % low": -0.02,
    "95 % high": -0.005,
    "unit": "nats",
    "n": 5,
    "interval over": "training seed",
    "verdict": "holds",
    "p": 0.01,
    "evidence": "evidence",
    "FP32 instead": 0.001,
    "FP32 low": -0.001,
    "FP32 high": 0.003,
    "FP32 verdict": "undecided",
    "Holm p": 0.04,
    "Holm verdict": "holds",
}


@pytest.fixture(autouse=True)
def vouched(monkeypatch: pytest.MonkeyPatch, vouch: Callable[[Path], None]) -> None:
    """What these tests write by hand is as measured whenever it is read."""
    read = ledgers.main

    def main(arguments: list[str]) -> int:
        for folder in Path(arguments[1]).glob("*/"):
            vouch(folder)
        return read(arguments)

    monkeypatch.setattr(ledgers, "main", main)


def put(figures: Path, scale: str, *rows: Mapping[str, object]) -> None:
    (figures / scale).mkdir()
    empty = dict.fromkeys(ledger.HEADER)
    write_table([{**empty, **HOLDS, **row} for row in rows], figures / scale / "claims.csv", ledger.HEADER)


NOT_RUN = dict.fromkeys(set(ledger.HEADER) - {"claim", "statistic", "claimed side", "unit"}) | {
    "n": 0,
    "verdict": "not run",
    "note": "no rows",
}


Part = tuple[list[list[str]], list[str]]
"""The cells of a table, its header first, and the notes below it."""


def parts(figures: Path) -> list[Part]:
    """Return the two parts of the page: by claims, and row by row."""
    assert ledgers.main(["--figures", str(figures)]) == 0
    found = []
    for part in (figures / "claims.md").read_text().split("\nRow by row\n"):
        lines = part.splitlines()
        rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
        cells = [[cell.strip() for cell in row] for row in rows]
        notes = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
        found.append(([cells[0], *cells[2:]], notes))
    assert len(found) == 2
    return found


def page(figures: Path) -> Part:
    """Return the part of the page that goes row by row."""
    return parts(figures)[1]


def test_a_row_has_the_verdict_that_after_holm_and_the_effect(tmp_path: Path) -> None:
    put(tmp_path, "a", {"Holm verdict": "undecided"})
    table, _ = page(tmp_path)
    assert table == [
        ["claim", "unit", "a: verdict / after Holm", "a: effect [95 %], n"],
        ["C2 (IVON)", "nats", "holds / undecided", "-.0125 [-.0200, -.0050], 5 training seeds"],
    ]


def test_a_claim_that_the_null_satisfies_is_said_to_be_no_evidence(tmp_path: Path) -> None:
    put(tmp_path, "a", {"evidence": "not evidence", "FP32 verdict": "holds"})
    assert page(tmp_path)[0][1][2] == "holds, not evidence / holds"


def test_each_scale_has_its_columns_in_the_folders_order(tmp_path: Path) -> None:
    put(tmp_path, "b", {"verdict": "fails", "evidence": "", "Holm verdict": "undecided"})
    put(tmp_path, "a", {})
    put(tmp_path, "c", NOT_RUN)
    table, _ = page(tmp_path)
    assert [title.split(":")[0] for title in table[0]] == ["claim", "unit", "a", "a", "b", "b", "c", "c"]
    assert table[1][2::2] == ["holds / holds", "fails / undecided", "not run"]


def test_a_claim_that_a_scale_does_not_have_is_an_empty_cell_there(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    put(tmp_path, "b", {"claim": "C15"})
    table, _ = page(tmp_path)
    assert [row[:1] + [bool(cell) for cell in row[2:]] for row in table[1:]] == [
        ["C2 (IVON)", True, True, False, False],
        ["C15", False, False, True, True],
    ]


def test_claims_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    put(tmp_path, "a", {"claim": "C10 (Gaussian)"}, {"claim": "C4b (SSE)"})
    put(tmp_path, "b", {"claim": "C9"}, {"claim": "C4a (SSE)"}, {"claim": "C4b (DE)"})
    names = [row[0] for row in page(tmp_path)[0][1:]]
    assert names == ["C4a (SSE)", "C4b (SSE)", "C4b (DE)", "C9", "C10 (Gaussian)"]


def test_an_interval_without_bounds_is_shown_as_such(tmp_path: Path) -> None:
    limits = {"95 % low": float("-inf"), "95 % high": float("inf"), "verdict": "undecided", "evidence": ""}
    put(tmp_path, "a", limits)
    assert page(tmp_path)[0][1][3] == "-.0125 [-∞, ∞], 5 training seeds"


def test_a_claim_without_an_interval_shows_its_effect_alone(tmp_path: Path) -> None:
    limits = {"95 % low": None, "95 % high": None}
    put(tmp_path, "a", limits | {"verdict": "reported", "evidence": "", "Holm verdict": ""})
    assert page(tmp_path)[0][1][2:] == ["reported", "-.0125, 5 training seeds"]


def test_a_row_of_other_units_at_two_scales_says_both(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    put(tmp_path, "b", {"unit": "ratio"})
    assert page(tmp_path)[0][1][1] == "nats or ratio"


def test_networks_of_two_scales_that_go_by_one_short_name_share_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(find.SCALES, "a", DIGITS)
    smallest = DIGITS.sizes[0]
    put(tmp_path, "a", {"claim": f"C1a ({smallest.name})"})
    put(tmp_path, "b", {"claim": f"C1a ({smallest.short})"})
    table, _ = page(tmp_path)
    assert [row[0] for row in table] == ["claim", f"C1a ({smallest.short})"]
    assert all(table[1][1:])


def test_networks_of_a_scale_that_options_make_go_by_their_short_names(tmp_path: Path) -> None:
    options = {"data": "CIFAR-10 (made up)", "points": {"sgd-0": "0" * 64}, "images": 500}
    options |= {"batch": 256, "given": True}
    name = "R20-FRN-SiLU, CIFAR-10 (made up), 500 test images, given points"
    put(tmp_path, "cifar10", {"claim": f"C1a ({name})", "statistic": f"NLL over {name}"})
    held = json.dumps({"config": {"scale": {"options": options}}})
    (tmp_path / "cifar10" / "fig2.json").write_text(held)
    table, notes = page(tmp_path)
    assert table[1][0] == "C1a (R20-FRN-SiLU)"
    assert notes[-1] == "C1a (R20-FRN-SiLU): NLL over R20-FRN-SiLU; claimed below 0.001"
    assert any(note.startswith("cifar10: The points are given") for note in notes)


def test_verdicts_are_counted_by_scale(tmp_path: Path) -> None:
    undecided = {"verdict": "undecided", "evidence": "", "Holm verdict": "undecided"}
    put(
        tmp_path,
        "a",
        {},
        {"claim": "C7", "evidence": "not evidence", "Holm verdict": "undecided"},
        {"claim": "C8", "verdict": "fails", "evidence": "", "Holm verdict": "fails"},
        {"claim": "C9", **undecided},
        {"claim": "C13", **NOT_RUN},
    )
    said = (
        "a, 5 claims: 2 hold (1 evidence, 1 not evidence), 1 fail, 1 undecided, 1 not run; "
        "after Holm 1 hold (1 evidence), 1 fail."
    )
    assert said in page(tmp_path)[1]


def test_a_claim_of_the_very_same_rows_is_counted_once(tmp_path: Path) -> None:
    put(tmp_path, "a", {"claim": "C4a (SSE)"}, {"claim": "C8a (SSE)", "same as": "C4a (SSE)"})
    assert any(note.startswith("a, 1 claims: 1 hold (1 evidence") for note in page(tmp_path)[1])


def test_what_holds_where_is_said_below_the_table_of_claims(tmp_path: Path) -> None:
    fails = {"verdict": "fails", "evidence": "", "Holm verdict": "fails"}
    put(tmp_path, "a", {}, {"claim": "C7"}, {"claim": "C9"})
    put(tmp_path, "b", {}, {"claim": "C7", **fails}, {"claim": "C9", **NOT_RUN})
    table, notes = parts(tmp_path)[0]
    assert table == [
        ["claim", "a", "b", "in all"],
        ["C2", "holds", "holds", "everywhere"],
        ["C7", "holds", "fails", "in part"],
        ["C9", "holds", "not run", "one scale alone"],
    ]
    assert "Rows that scales decide against each other: C7: holds at a, fails at b." in notes
    assert "Judged at a alone, so that nothing is known of other scales: C9." in notes


def test_one_ledger_alone_is_said(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    assert parts(tmp_path)[0][1][0].endswith("There is one ledger alone, of a.")
    put(tmp_path, "b", {})
    assert "one ledger alone" not in parts(tmp_path)[0][1][0]


def test_rows_that_compare_another_thing_at_each_scale_are_named_and_told(tmp_path: Path) -> None:
    not_run = {"claim": "C3", **NOT_RUN}
    put(tmp_path, "a", {"statistic": "at INT-5", "claimed side": "below 0.1"}, not_run, {"claim": "C9"})
    other = {"claim": "C3", "statistic": "another"}
    put(tmp_path, "b", {"statistic": "at INT-4", "claimed side": "below 0.2"}, other, {"claim": "C9"})
    (_, said), (_, notes) = parts(tmp_path)
    assert [note.rpartition(": ")[2] for note in said if "do not compare the same" in note] == ["C2 (IVON)."]
    assert notes[-3::2] == [
        "C2 (IVON): at a at INT-5; at b at INT-4; claimed at a below 0.1; at b below 0.2",
        "C9: a difference; claimed below 0.001",
    ]


def test_n_is_told_with_its_unit_in_each_row(tmp_path: Path) -> None:
    examples = {"claim": "C9", "n": 2000, "interval over": "test example"}
    put(tmp_path, "a", {"n": 1, "interval over": "training seed, for these images"}, examples)
    assert [row[3].rpartition("], ")[2] for row in page(tmp_path)[0][1:]] == [
        "1 training seed",
        "2000 test examples",
    ]


def test_what_n_counts_is_said_of_each_scale(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    put(tmp_path, "b", {"interval over": "test example"})
    assert "What n counts: at a: training seed; at b: test example." in page(tmp_path)[1][0]


def test_what_a_known_scales_verdicts_are_worth_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(find.SCALES, "a", DIGITS)
    put(tmp_path, "a", {})
    assert f"a: {DIGITS.standing}" in page(tmp_path)[1]


def test_the_csv_has_each_scales_columns_and_is_read_again(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    put(tmp_path, "b", NOT_RUN)
    page(tmp_path)
    table = pd.read_csv(tmp_path / "claims.csv").set_index("claim")
    assert list(table.columns) == [f"{scale}: {column}" for scale in "ab" for column in ledgers.TOLD]
    row = table.loc["C2 (IVON)"]
    told = [row[f"a: {column}"] for column in ("effect", "95 % low", "95 % high", "FP32 instead", "verdict")]
    assert told == [-0.0125, -0.02, -0.005, 0.001, "holds"]
    assert row["b: verdict"] == "not run" and pd.isna(row["b: effect"])


def test_the_page_beside_the_folders_is_not_read_as_a_scale(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    first = page(tmp_path)
    assert page(tmp_path) == first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claim,verdict\nC1,holds\n", "has other columns than a ledger of this version; run python -m"),
        (None, "there is no */claims.csv in"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "claims.csv").write_text(text)
    assert ledgers.main(["--figures", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and said in message
    assert not (tmp_path / "claims.md").exists()


def test_two_rows_of_one_claim_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a", {}, {})
    assert ledgers.main(["--figures", str(tmp_path)]) == 2
    assert "has two rows of C2 (IVON)" in capsys.readouterr().err
