"""Which claims hold where: from made-up ledgers of several scales to sentences."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from reproduce.judge.agreement import (
    by_claim,
    networks_of,
    outcomes_of,
    shared,
    together,
    what_holds_where,
    without_scale,
)
from reproduce.scales.digits.settings import DIGITS

OUTCOMES = {
    "holds": ("holds", "holds", "evidence"),
    "empty": ("holds", "holds", "not evidence"),
    "unknown": ("holds", "holds", "not known"),
    "fails": ("fails", "fails", ""),
    "undecided": ("undecided", "undecided", ""),
    "raw": ("holds", "undecided", "evidence"),  # before the adjustment alone
    "not run": ("not run", "", ""),
    "reported": ("reported", "", ""),
}


def ledger(n: int = 5, **rows: str) -> pd.DataFrame:
    """A ledger of rows with these outcomes; "C5_4" is C5 (4)."""
    columns = ["verdict", "Holm verdict", "evidence"]
    table = pd.DataFrame([OUTCOMES[each] for each in rows.values()], columns=columns)
    names = [f"{row.replace('_', ' (')})" if "_" in row else row for row in rows]
    return table.assign(**{"same as": "", "n": str(n), "interval over": "training seed"}).set_axis(names)


def said(**scales: pd.DataFrame) -> str:
    return "\n".join(what_holds_where(scales, {}))


def test_a_claim_holds_everywhere_if_every_row_of_every_scale_does() -> None:
    found = said(a=ledger(C1="holds", C2_x="holds", C2_y="undecided"), b=ledger(C1="holds", C2_x="holds"))
    assert (
        "these hold everywhere, in every row: C1. These hold in some rows, or at some scales only: C2."
        in (found)
    )


def test_a_claim_holds_nowhere_if_no_row_of_any_scale_does() -> None:
    found = said(a=ledger(C1="fails", C2="holds"), b=ledger(C1="undecided", C2="fails"))
    assert "at some scales only: C2." in found
    assert "These hold nowhere: C1." in found


@pytest.mark.parametrize("outcome", ["empty", "unknown", "raw"])
def test_to_hold_is_to_hold_as_evidence_after_holms_adjustment(outcome: str) -> None:
    tables = {"a": ledger(C1=outcome), "b": ledger(C1="undecided")}
    assert outcomes_of(tables, {})["C1"]["a"]["C1"] != "holds"
    assert "in every row: none. These hold in some rows, or at some scales only: none." in said(**tables)


def test_what_holds_without_evidence_alone_is_told_from_what_does_not_hold() -> None:
    tables = {"a": ledger(C1="empty", C2="fails"), "b": ledger(C1="undecided", C2="undecided")}
    assert "These hold, but nowhere as evidence: C1. These hold nowhere: C2." in said(**tables)
    assert [line[-1] for line in by_claim(tables, {})[1]] == ["nowhere as evidence", "nowhere"]


def test_a_claim_of_other_networks_at_each_scale_is_judged_at_both() -> None:
    found = said(a=ledger(C1_x="holds"), b=ledger(C1_y="holds"))
    assert "Of 1 claims that two scales or more judge, these hold everywhere, in every row: C1." in found
    assert "rows" not in found.partition("in every row")[2].partition("some rows")[2]


def test_a_claim_that_one_scale_alone_judges_is_named_with_it() -> None:
    found = said(
        a=ledger(C1="holds", C2="holds"), b=ledger(C1="holds", C2="not run"), c=ledger(C3="reported")
    )
    assert "Judged at a alone, so that nothing is known of other scales: C2." in found
    assert "C3" not in found


def test_rows_are_told_apart_by_what_scales_say_of_them() -> None:
    found = what_holds_where(
        {
            "a": ledger(C1_p="holds", C1_q="fails", C2="holds", C3_p="holds", C4="undecided"),
            "b": ledger(C1_p="holds", C1_q="fails", C2="undecided", C3_p="fails", C4="empty"),
            "c": ledger(C1_p="holds", C1_q="fails", C2="holds", C5="holds"),
        },
        {},
    )
    assert found[-4:] == [
        "Of 5 rows that two scales or more judge, these hold at each of them: C1 (p). These fail at each: "
        "C1 (q).",
        "Rows that hold at some scales, and fail at none: C2: holds at a and c, undecided at b.",
        "Rows that scales decide against each other: C3 (p): holds at a, fails at b.",
        "Rows beside these, which hold nowhere as evidence: 1.",
    ]


def test_what_holds_without_evidence_and_fails_elsewhere_is_decided_against_each_other() -> None:
    found = said(a=ledger(C1="empty"), b=ledger(C1="fails"))
    assert "against each other: C1: holds without evidence at a, fails at b." in found


def test_one_scale_alone_says_nothing_of_everywhere() -> None:
    found = said(a=ledger(C1="holds", C2="fails"))
    assert found == "Judged at a alone, so that nothing is known of other scales: C1, C2."


def test_a_row_that_repeats_another_is_counted_once() -> None:
    table = ledger(C4_SSE="holds", C8_SSE="holds", C8_DE="fails")
    table.loc["C8 (SSE)", "same as"] = "C4 (SSE)"
    assert outcomes_of({"a": table}, {})["C8"] == {"a": {"C8 (DE)": "fails"}}


def test_the_table_counts_the_rows_of_a_claim_at_each_scale() -> None:
    one = ledger(C1="holds", C2_x="holds", C2_y="empty", C2_z="undecided", C3="not run", C4="reported")
    other = ledger(C1="holds", C2_x="fails", C3="not run")
    assert by_claim({"a": one, "b": other}, {}) == (
        ["claim", "a", "b", "in all"],
        [
            ["C1", "holds", "holds", "everywhere"],
            ["C2", "1 hold, 1 hold without evidence, 1 undecided", "fails", "in part"],
            ["C3", "not run", "not run", ""],
            ["C4", "reported", "", ""],
        ],
    )


def test_the_table_says_where_a_claim_holds_nowhere_or_is_judged_once() -> None:
    lines = by_claim({"a": ledger(C1="fails", C2="holds"), "b": ledger(C1="undecided")}, {})[1]
    assert [line[-1] for line in lines] == ["nowhere", "one scale alone"]


def test_claims_are_in_the_order_of_their_numbers() -> None:
    lines = by_claim({"a": ledger(C10="holds", C4b="holds"), "b": ledger(C9="holds", C4a="holds")}, {})[1]
    assert [line[0] for line in lines] == ["C4a", "C4b", "C9", "C10"]


def test_rows_of_one_claim_are_named_together() -> None:
    assert together(["C2 (SWAG)", "C6", "C2 (IVON)", "C6 (CLIP)"]) == "C2 (SWAG; IVON), C6, C6 (CLIP)"


def test_a_rows_networks_are_those_of_the_rows_that_it_compares() -> None:
    found = networks_of(DIGITS)
    clips = frozenset(each.name for each in DIGITS.large["CLIP"])
    assert found["C6b (CLIP)"] == clips and len(clips) > 1
    assert found["C10 (CLIP-L, Gaussian, INT-5)"] == {DIGITS.large["CLIP"][-1].name}
    assert found["C9"] == {DIGITS.substrate}


def test_large_models_that_two_scales_share_are_no_second_finding() -> None:
    other = replace(DIGITS, name="other", main=replace(DIGITS.main, name="other ViT"), sizes=())  # type: ignore[type-var]
    scales = {"other": other, DIGITS.name: DIGITS}
    rows = {"C6a_CLIP": "holds", "C9": "holds"}
    ledgers = {"other": ledger(5, **rows), DIGITS.name: ledger(20, **rows)}
    again = shared(ledgers, scales)
    assert again == {("other", "C6a (CLIP)"): DIGITS.name}
    assert by_claim(ledgers, again)[1] == [
        ["C6a", f"see {DIGITS.name}", "holds", "one scale alone"],
        ["C9", "holds", "holds", "everywhere"],
    ]
    found = what_holds_where(ledgers, again)
    assert found[-1].startswith(f"At other of the very networks and data of {DIGITS.name}, so no second")
    assert found[-1].endswith("left out here: C6a (CLIP).")


def test_rows_over_seeds_are_kept_before_rows_over_more_examples() -> None:
    other = replace(DIGITS, name="other", main=replace(DIGITS.main, name="other ViT"), sizes=())  # type: ignore[type-var]
    scales = {"other": other, DIGITS.name: DIGITS}
    one_seed = ledger(360, C6a_CLIP="holds").assign(**{"interval over": "test example"})
    ledgers = {"other": one_seed, DIGITS.name: ledger(5, C6a_CLIP="holds")}
    assert shared(ledgers, scales) == {("other", "C6a (CLIP)"): DIGITS.name}


def test_a_text_has_the_short_name_of_the_longest_substrate_that_it_names() -> None:
    small, main = DIGITS.sizes[0], DIGITS.substrates[DIGITS.substrate]
    assert small.name.startswith(main.name)
    text = f"over {small.name}, {main.name}"
    assert without_scale(text, DIGITS) == f"over {small.short}, {main.short}"
    assert without_scale(text, None) == text
