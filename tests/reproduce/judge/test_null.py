"""The unrounded network in LPE-BSR's place: which row stands in for which, and what verdicts it has."""

from __future__ import annotations

import pandas as pd
import pytest

from reproduce.judge.claims import Claim, Side
from reproduce.judge.null import MISSING, ZERO, stand_ins
from reproduce.judge.statistics import Rows, difference
from reproduce.judge.verdicts import judge_all

COMMON = {"scale": "s", "substrate": "net", "point": "SGD", "seed": 0, "metric": "nll", "value": 0.0}


def row(method: str, system: str, size: int = 1, **other: object) -> dict[str, object]:
    rounding = "" if system in ("fp32", "bf16") else "nearest" if method == "RTN" else "bernoulli"
    named = {"method": method, "number_system": system, "rounding": rounding, "size": size}
    return {**COMMON, **named, "memory_bits": 1, "backward_passes": 1, **other}


def stand_in(rows: list[dict[str, object]], label: int = 0) -> int:
    return int(stand_ins(pd.DataFrame(rows))[label])


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("name", ["FP32", "BF16"])
def test_the_single_unrounded_network_stands_in_for_lpe_bsr_of_any_size(size: int, name: str) -> None:
    assert stand_in([row("LPE-BSR", "int4", size), row(name, name.lower())]) == 1


def test_it_stands_in_for_lpe_bsr_whose_spread_is_tuned_as_well() -> None:
    assert stand_in([row("LPE-BSR, tuned spread", "int8", 10), row("FP32", "fp32")]) == 1


@pytest.mark.parametrize(
    "other", [{"substrate": "b"}, {"point": "IVON"}, {"seed": 1}, {"metric": "ece"}, {"method": "RTN"}]
)
def test_no_row_of_anything_else_stands_in(other: dict[str, object]) -> None:
    assert stand_in([row("LPE-BSR", "int4", 10), {**row("FP32", "fp32"), **other}]) == MISSING


@pytest.mark.parametrize(
    ("method", "system"), [("RTN", "int4"), ("FP32", "fp32"), ("BMA", "fp32"), ("SSE", "fp32")]
)
def test_what_is_no_low_precision_ensemble_stands_for_itself(method: str, system: str) -> None:
    assert stand_in([row(method, system), row("FP32", "fp32")]) == 0


# Four bases, five members each.
FAMILY = [row("SSE", "fp32", size, point="SSE") for size in range(1, 5)]


@pytest.mark.parametrize(("members", "bases"), [(1, 1), (5, 1), (6, 2), (12, 3), (20, 4)])
def test_the_bases_of_the_members_stand_in_for_them(members: int, bases: int) -> None:
    expanded = [row("SSE + LPE-BSR", "int5", size, point="SSE") for size in (members, 20)]
    assert stand_in([*expanded, *FAMILY]) == 2 + bases - 1


def test_a_network_that_agrees_with_itself_has_no_ambiguity_and_no_disagreement() -> None:
    rows = [
        row("LPE-BSR", "int4", 10, metric="ambiguity"),
        row("disagreement", "int4", metric="disagreement"),
        row("disagreement", "fp32", metric="disagreement"),
    ]
    found = stand_ins(pd.DataFrame(rows))
    assert found.tolist() == [ZERO, ZERO, 2]


# Verdicts with it.

LOW, FP32, BMA = (
    Rows("net", "SGD", method, system, None, 1)
    for method, system in (("LPE-BSR", "int4"), ("FP32", "fp32"), ("BMA", "fp32"))
)
CLAIM = Claim("C", "s", Side(high=0.0), "nats", lambda record: difference(LOW, BMA, record))


def record(low: float, single: float, bma: float) -> pd.DataFrame:
    rows = []
    for seed in range(4):
        values = (("LPE-BSR", "int4", low), ("FP32", "fp32", single), ("BMA", "fp32", bma))
        for place, (method, system, value) in enumerate(values):
            noisy = value + 0.001 * (seed % (place + 2))
            rows.append(row(method, system, seed=seed, value=noisy))
    return pd.DataFrame(rows)


def test_a_claim_that_the_unrounded_network_satisfies_is_not_evidence() -> None:
    (verdict,) = judge_all([CLAIM], record(low=0.1, single=0.1, bma=0.2), "seed")
    assert (verdict.verdict, verdict.evidence) == ("holds", "not evidence")


def test_a_claim_that_the_unrounded_network_does_not_satisfy_is_evidence() -> None:
    (verdict,) = judge_all([CLAIM], record(low=0.1, single=0.3, bma=0.2), "seed")
    assert verdict.instead is not None
    assert (verdict.verdict, verdict.instead.verdict, verdict.evidence) == ("holds", "fails", "evidence")


def test_the_null_is_the_same_statistic_of_the_unrounded_network() -> None:
    (verdict,) = judge_all([CLAIM], record(low=0.1, single=0.3, bma=0.2), "seed")
    assert verdict.instead is not None
    # Seeds add .001 · the mean of (0, 1, 2, 0) to FP32, and of (0, 1, 2, 3) to BMA.
    assert verdict.instead.effect == pytest.approx(0.1 + 0.001 * (0.75 - 1.5))


def test_without_its_rows_the_null_is_not_known() -> None:
    rows = record(low=0.1, single=0.3, bma=0.2)
    (verdict,) = judge_all([CLAIM], rows[rows["method"] != "FP32"], "seed")
    assert (verdict.verdict, verdict.instead, verdict.evidence) == ("holds", None, "not known")


def test_a_claim_that_does_not_hold_says_nothing_of_evidence() -> None:
    assert judge_all([CLAIM], record(low=0.3, single=0.1, bma=0.2), "seed")[0].evidence == ""
