"""The claims of all scales, side by side: from made-up ledgers to the page."""

from __future__ import annotations

from collections.abc import Mapping
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


def put(figures: Path, scale: str, *rows: Mapping[str, object]) -> None:
    (figures / scale).mkdir()
    empty = dict.fromkeys(ledger.HEADER)
    write_table([{**empty, **HOLDS, **row} for row in rows], figures / scale / "claims.csv", ledger.HEADER)


NOT_RUN = dict.fromkeys(set(ledger.HEADER) - {"claim", "statistic", "claimed side", "unit"}) | {
    "n": 0,
    "verdict": "not run",
    "note": "no rows",
}


def page(figures: Path) -> tuple[list[list[str]], list[str]]:
    """Return the cells of the table, its header first, and the notes below it."""
    assert ledgers.main(["--figures", str(figures)]) == 0
    lines = (figures / "claims.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [cells[0], *cells[2:]], [line.removeprefix("- ") for line in lines if line.startswith("- ")]


def test_a_cell_has_verdict_estimate_null_and_holm(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    table, _ = page(tmp_path)
    said = "holds: -.0125 [-.0200, -.0050] nats, n = 5; FP32 instead undecided; Holm holds"
    assert table == [["claim", "a"], ["C2 (IVON)", said]]


def test_a_claim_that_the_null_satisfies_is_said_to_be_no_evidence(tmp_path: Path) -> None:
    put(tmp_path, "a", {"evidence": "not evidence", "FP32 verdict": "holds"})
    assert page(tmp_path)[0][1][1].startswith("holds, not evidence: -.0125")


def test_each_scale_is_a_column_in_the_folders_order(tmp_path: Path) -> None:
    put(tmp_path, "b", {"verdict": "fails", "evidence": "", "Holm verdict": "undecided"})
    put(tmp_path, "a", {})
    put(tmp_path, "c", NOT_RUN)
    table, _ = page(tmp_path)
    assert table[0] == ["claim", "a", "b", "c"]
    assert [cell.split(":")[0] for cell in table[1]] == ["C2 (IVON)", "holds", "fails", "not run"]


def test_a_claim_that_a_scale_does_not_have_is_an_empty_cell_there(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    put(tmp_path, "b", {"claim": "C15"})
    table, _ = page(tmp_path)
    assert [row[:1] + [bool(cell) for cell in row[1:]] for row in table[1:]] == [
        ["C2 (IVON)", True, False],
        ["C15", False, True],
    ]


def test_claims_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    put(tmp_path, "a", {"claim": "C10 (Gaussian)"}, {"claim": "C4b (SSE)"})
    put(tmp_path, "b", {"claim": "C9"}, {"claim": "C4a (SSE)"}, {"claim": "C4b (DE)"})
    names = [row[0] for row in page(tmp_path)[0][1:]]
    assert names == ["C4a (SSE)", "C4b (SSE)", "C4b (DE)", "C9", "C10 (Gaussian)"]


def test_an_interval_without_bounds_is_shown_as_such(tmp_path: Path) -> None:
    limits = {"95 % low": float("-inf"), "95 % high": float("inf"), "verdict": "undecided", "evidence": ""}
    put(tmp_path, "a", limits)
    assert "-.0125 [-∞, ∞] nats" in page(tmp_path)[0][1][1]


def test_a_claim_without_an_interval_shows_its_effect_alone(tmp_path: Path) -> None:
    put(tmp_path, "a", {"95 % low": None, "95 % high": None, "verdict": "reported", "evidence": ""})
    assert page(tmp_path)[0][1][1].startswith("reported: -.0125 nats")


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
    assert page(tmp_path)[1][0] == said


def test_a_claim_of_the_very_same_rows_is_counted_once(tmp_path: Path) -> None:
    put(tmp_path, "a", {"claim": "C4a (SSE)"}, {"claim": "C8a (SSE)", "same as": "C4a (SSE)"})
    assert page(tmp_path)[1][0].startswith("a, 1 claims: 1 hold (1 evidence")


def test_claims_that_two_scales_decide_alike_and_otherwise_are_listed(tmp_path: Path) -> None:
    fails = {"verdict": "fails", "evidence": ""}
    put(tmp_path, "a", {}, {"claim": "C7"}, {"claim": "C9"})
    put(tmp_path, "b", {}, {"claim": "C7", **fails}, {"claim": "C9", **NOT_RUN})
    listed = [note for note in page(tmp_path)[1] if note.startswith("Decided")]
    assert listed == [
        "Decided at two scales or more, holds at every scale that decides it: C2 (IVON).",
        "Decided at two scales or more, holds at a; fails at b: C7.",
    ]


def test_one_scale_alone_lists_no_agreement(tmp_path: Path) -> None:
    put(tmp_path, "a", {})
    assert not any(note.startswith("Decided") for note in page(tmp_path)[1])


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
