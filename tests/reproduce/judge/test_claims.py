"""The one test of claims and each claim's statistic, on records whose answers are known.

``world`` makes a record in which LPE-BSR is better by given amounts, one a training seed, than whatever it is
compared with. On five seeds that noise of 1e-6 sets apart, an advantage of .02 on all makes every claim hold,
−.02 makes every claim fail, and advantages between −.5 and .5 decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import lpe
from lpe.errors import InputError
from reproduce.judge import statistics, verdicts
from reproduce.judge.claims import EQUAL_BITS, Claim, Settings, Side, all_claims
from reproduce.judge.statistics import NotRun, Rows, level_of, value_of
from reproduce.judge.verdicts import Verdict, judge_all
from reproduce.scales.digits.settings import DIGITS

NETWORKS = tuple(f"net-{letter}" for letter in "TSBL")
SETTINGS = Settings("net", NETWORKS, (5, 4), 5, compared_clip="clip", large_networks={"": NETWORKS})
CLAIMS = {claim.name: claim for claim in all_claims(SETTINGS)}
EVERY_CLAIM = pytest.mark.parametrize("name", [name for name in CLAIMS if name != "C14"])

SINGLE = 0.1
MODELS, EXPANSION = 4, 4
PARAMETERS = {"net": 1000, "clip": 500, **{name: 1000 * 4**place for place, name in enumerate(NETWORKS)}}
SPREAD = "net, spread"
PARAMETERS[SPREAD] = PARAMETERS["net"]
SHARED = 500
"""Bits that all members of an LPE-BSR ensemble share."""


def world(advantages: Sequence[float]) -> pd.DataFrame:
    """A record of one training seed an advantage."""
    noise = np.random.default_rng(0)
    rows: list[dict[str, object]] = []

    def add(
        point: str,
        method: str,
        system: str,
        size: int,
        seed: int,
        value: float,
        metric: str = "nll",
        substrate: str = "net",
        cost: int = 100,
    ) -> None:
        parameters = PARAMETERS[substrate]
        low = system != "fp32"
        memory = 32 * parameters * size
        if low:
            memory = int(system.removeprefix("int").removeprefix("bf")) * parameters * size + SHARED
        rows.append(
            {
                "scale": "test",
                "substrate": substrate,
                "point": point,
                "method": method,
                "number_system": system,
                "rounding": "nearest" if "RTN" in method else "bernoulli" * (low and "matched" not in method),
                "size": size,
                "seed": seed,
                "metric": metric,
                "value": value + 0.01 * seed * (metric == "nll") + 1e-6 * noise.normal(),
                "memory_bits": memory,
                "backward_passes": cost,
            }
        )

    for seed, advantage in enumerate(advantages):
        for point in ("SGD", "SWAG", "IVON"):
            add(point, "FP32", "fp32", 1, seed, SINGLE)
            for system in ("int5", "int4"):
                for size in range(1, 21):
                    add(point, "LPE-BSR", system, size, seed, SINGLE - advantage)
            if point != "SGD":
                for size in (2, 10):
                    add(point, "BMA", "fp32", size, seed, SINGLE)
        for system in ("int8", "bf16"):
            add("SGD", "RTN", system, 1, seed, SINGLE)
        add("SGD", "LPE-BSR", "int4", 10, seed, 0.5 + advantage, "better_than_rtn")
        for system in ("int5", "int4"):
            # Holds near 1, fails at 3.
            ratio = 1 + 100 * (0.02 - advantage) / 2
            add("IVON", "LPE-BSR", system, 10, seed, 0.05 * ratio, "ambiguity")
            add("SGD", "LPE-BSR", system, 10, seed, 0.3 - advantage, "calibrated_nll")
            add("SSE", "disagreement", system, 1, seed, 0.02 + 0.2 * advantage, "disagreement")
            add("SGD", "LPE-BSR", system, 10, seed, 3 * SINGLE - advantage, substrate="clip")
            # The same but for an offset of 0 where LPE-BSR is better by .02, and .04 where it is worse.
            add("SGD", "Gaussian, matched", system, 10, seed, SINGLE - advantage + (0.02 - advantage))
        add("IVON", "BMA", "fp32", 10, seed, 0.05, "ambiguity")
        add("SGD", "FP32", "fp32", 1, seed, 0.3, "calibrated_nll")
        add("SSE", "disagreement", "fp32", 1, seed, 0.2, "disagreement")
        for metric in ("nll", "calibrated_nll"):
            at = {"metric": metric, "substrate": SPREAD}
            add("SGD", "FP32", "fp32", 1, seed, SINGLE, **at)
            add("SGD", "LPE-BSR, tuned spread", "int8", 10, seed, SINGLE - 0.05 - advantage, **at)
            add("SGD", "Gaussian, tuned std", "fp32", 10, seed, SINGLE - 0.05, **at)
        for rival in ("Gaussian", "MC-dropout"):
            add("SGD", rival, "fp32", 10, seed, SINGLE)
            add("SGD", rival, "fp32", 10, seed, 3 * SINGLE, substrate="clip")
        for family in ("SSE", "CSGLD", "DE", "MultiIVON"):
            for size in range(1, MODELS + 1):
                add(family, family, "fp32", size, seed, SINGLE - 0.001, cost=100 * size)
                add(family, f"{family} by RTN", "int4", size, seed, SINGLE - 0.001, cost=100 * size)
            for size in range(1, MODELS * EXPANSION + 1):
                bases = math.ceil(size / EXPANSION)
                method = f"{family} + LPE-BSR"
                add(family, method, "int5", size, seed, SINGLE - 0.001 - advantage, cost=100 * bases)
        for place, network in enumerate(NETWORKS):
            add("SGD", "FP32", "fp32", 1, seed, SINGLE, substrate=network)
            for bits in (6, 5, 4):
                gain = advantage * (1 + place) * (7 - bits)
                add("SGD", "RTN", f"int{bits}", 1, seed, SINGLE, substrate=network)
                for size in (10, 20):
                    add("SGD", "LPE-BSR", f"int{bits}", size, seed, SINGLE - gain, substrate=network)
    return pd.DataFrame(rows)


WORLDS = {
    "holds": world([0.02] * 5),
    "fails": world([-0.02] * 5),
    "undecided": world([0.5, -0.5, 0.4, -0.4, 0.0]),
}


def edited(record: pd.DataFrame, value: Callable[[pd.DataFrame], object], **equal: object) -> pd.DataFrame:
    """A copy whose rows with these column values have other values."""
    changed = record.copy()
    mask = pd.Series(True, index=record.index)
    for column, wanted in equal.items():
        mask &= record[column] == wanted
    assert mask.any()
    changed.loc[mask, "value"] = value(record[mask])
    return changed


def without(record: pd.DataFrame, **equal: object) -> pd.DataFrame:
    """A copy without the rows with these column values."""
    mask = pd.Series(True, index=record.index)
    for column, wanted in equal.items():
        mask &= record[column] == wanted
    assert mask.any()
    return record[~mask]


GIVEN = Rows("net", "SGD", "given", "fp32")


def of_values(side: Side) -> Claim:
    """A claim about the values of the rows GIVEN."""
    return Claim("C", "s", side, "nats", lambda record: level_of(GIVEN, record))


def holding(values: Sequence[float]) -> pd.DataFrame:
    """A record whose rows GIVEN have these values, one a training seed."""
    row = {"scale": "test", "substrate": "net", "point": "SGD", "method": "given", "number_system": "fp32"}
    row |= {"rounding": "", "metric": "nll", "memory_bits": 32, "backward_passes": 0, "size": 1}
    return pd.DataFrame([{**row, "seed": seed, "value": value} for seed, value in enumerate(values)])


def judge(claim: Claim, record: pd.DataFrame) -> Verdict:
    return judge_all([claim], record, "seed")[0]


def judged(values: Sequence[float], side: Side) -> Verdict:
    return judge(of_values(side), holding(values))


def outcome(values: Sequence[float], side: Side) -> str:
    return judged(values, side).verdict


def values_of(claim: Claim, record: pd.DataFrame) -> pd.Series:
    """A claim's value at each training seed."""
    return value_of(claim.of(record).terms, record["value"])


# The test itself.


BELOW, ABOVE, INSIDE = Side(high=0.0), Side(low=0.0), Side(-2.0, 2.0)
CASES = [
    (BELOW, [-1.0, -1.1, -0.9], "holds"),
    (BELOW, [1.0, 1.1, 0.9], "fails"),
    (BELOW, [-1.0, 1.0, 0.1], "undecided"),
    (ABOVE, [1.0, 1.1, 0.9], "holds"),
    (ABOVE, [-1.0, -1.1, -0.9], "fails"),
    (ABOVE, [-1.0, 1.0, 0.1], "undecided"),
    (INSIDE, [1.0, 1.1, 0.9], "holds"),
    (INSIDE, [3.0, 3.1, 2.9], "fails"),
    (INSIDE, [-3.0, -3.1, -2.9], "fails"),
    (INSIDE, [2.0, 2.1, 1.9], "undecided"),
    (INSIDE, [9.0, -9.0, 0.0], "undecided"),
]


@pytest.mark.parametrize(("side", "values", "verdict"), CASES)
def test_a_verdict_needs_the_whole_interval_on_one_side(
    side: Side, values: list[float], verdict: str
) -> None:
    assert outcome(values, side) == verdict


def test_an_interval_that_touches_the_limit_decides_nothing() -> None:
    assert outcome([0.0, 0.0, 0.0], BELOW) == "undecided"


# Mean −.6, standard error .25: .6 lies between t(.95, 4)·.25 = .533 and t(.975, 4)·.25 = .694.
BORDERLINE = (np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) * 0.25 * math.sqrt(2) - 0.6).tolist()


def test_the_interval_is_two_sided() -> None:
    assert outcome(BORDERLINE, BELOW) == "undecided"


def test_the_borderline_sample_catches_a_one_sided_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    two_sided = verdicts.student_interval
    monkeypatch.setattr(verdicts, "student_interval", lambda values, level: two_sided(values, 2 * level - 1))
    assert outcome(BORDERLINE, BELOW) == "holds"


def test_the_borderline_sample_catches_a_normal_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    def normal(values: np.ndarray, level: float) -> tuple[float, float]:
        half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return float(np.mean(values)) - half, float(np.mean(values)) + half

    monkeypatch.setattr(verdicts, "student_interval", normal)
    assert outcome(BORDERLINE, BELOW) == "holds"


def test_one_seed_decides_nothing_and_has_no_interval() -> None:
    verdict = judged([-1.0], BELOW)
    assert (verdict.verdict, verdict.effect) == ("undecided", -1.0)
    assert math.isnan(verdict.low) and math.isnan(verdict.high)


def test_a_ratio_whose_denominator_may_be_0_has_no_bounds_and_decides_nothing() -> None:
    record = edited(
        WORLDS["holds"],
        lambda rows: 0.02 * (rows["seed"] - 1),
        method="disagreement",
        number_system="fp32",
        metric="disagreement",
    )
    verdict = judge(CLAIMS["C3 (INT-5)"], record)
    assert (verdict.verdict, verdict.low, verdict.high) == ("undecided", -math.inf, math.inf)


def test_a_ratio_over_0_is_not_defined_and_says_so() -> None:
    record = edited(
        WORLDS["holds"],
        lambda rows: 0.0,
        method="disagreement",
        number_system="fp32",
        metric="disagreement",
    )
    verdict = judge(CLAIMS["C3 (INT-5)"], record)
    assert (verdict.verdict, verdict.note) == ("undecided", "its denominator is 0")
    assert math.isnan(verdict.effect)


# Every claim.


@EVERY_CLAIM
@pytest.mark.parametrize("expected", WORLDS)
def test_every_claim_has_the_verdict_of_its_world(name: str, expected: str) -> None:
    assert judge(CLAIMS[name], WORLDS[expected]).verdict == expected


@EVERY_CLAIM
def test_every_claim_without_its_rows_is_not_run_and_says_what_is_missing(name: str) -> None:
    verdict = judge(CLAIMS[name], WORLDS["holds"].iloc[:0])
    assert (verdict.verdict, verdict.n) == ("not run", 0)
    assert verdict.note.startswith("no rows: ")


@EVERY_CLAIM
def test_the_worlds_catch_a_claim_in_the_wrong_direction(name: str) -> None:
    # Whatever has one limit, turned round; what has two, its outside above.
    side = CLAIMS[name].side
    turned = Side(low=side.high) if side.high < math.inf else Side(high=side.low)
    wrong = replace(CLAIMS[name], side=turned)
    assert judge(wrong, WORLDS["holds"]).verdict == "fails"


@EVERY_CLAIM
def test_every_claim_of_one_training_seed_is_undecided(name: str) -> None:
    record = WORLDS["holds"]
    assert judge(CLAIMS[name], record[record["seed"] == 2]).verdict == "undecided"


@EVERY_CLAIM
def test_no_claim_looks_at_rows_of_another_network(name: str) -> None:
    # Each claim names the networks of its rows; rows of one that it does not name change nothing.
    record = WORLDS["holds"]
    other = record[record["substrate"] == "net"].assign(substrate="net-other")
    other["value"] *= -7
    both = pd.concat([record, other], ignore_index=True)
    assert judge(CLAIMS[name], both) == judge(CLAIMS[name], record)


@EVERY_CLAIM
def test_no_claim_looks_at_coupled_rounding(name: str) -> None:
    record = WORLDS["holds"]
    coupled = record[record["rounding"] == "bernoulli"].assign(rounding="coupled", value=-7.0)
    coupled = coupled[coupled["method"] != "disagreement"]
    both = pd.concat([record, coupled], ignore_index=True)
    assert judge(CLAIMS[name], both) == judge(CLAIMS[name], record)


@EVERY_CLAIM
def test_a_seed_that_lacks_rows_is_left_out_of_the_count(name: str) -> None:
    record = WORLDS["holds"]
    methods = record["method"].str.contains("LPE-BSR") | (
        (record["method"] == "disagreement") & (record["number_system"] != "fp32")
    )
    verdict = judge(CLAIMS[name], record[~(methods & (record["seed"] == 1))])
    assert verdict.n == 4
    assert "without seed 1" in verdict.note


def test_the_ledger_has_every_claim_of_the_list() -> None:
    numbers = {name.split()[0].rstrip(",") for name in CLAIMS}
    assert numbers == {
        *("C1a", "C1b", "C1c", "C2", "C3", "C4a", "C4b", "C5", "C6a", "C6b", "C7"),
        *("C8a", "C8b", "C9", "C10", "C11", "C12", "C13", "C14", "C15"),
    }


def test_c10_is_judged_on_the_clip_from_rows_of_the_clip_alone() -> None:
    worse = edited(WORLDS["holds"], lambda rows: rows["value"] + 1.0, substrate="clip", method="LPE-BSR")
    for name in ("Gaussian, INT-5", "MC-dropout, INT-4"):
        assert judge(CLAIMS[f"C10 (clip, {name})"], worse).verdict == "fails"
        assert judge(CLAIMS[f"C10 ({name})"], worse).verdict == "holds"


@pytest.mark.parametrize(
    ("setting", "said"),
    [(0.003, "tuned to 0.003"), (0.0, "tuned to 0: this is LPE-BSR against the unrounded network")],
)
def test_c10_says_what_the_noise_was_tuned_to(setting: float, said: str) -> None:
    record = WORLDS["holds"]
    tuned = record[(record["method"] == "Gaussian") & (record["substrate"] == "net")]
    with_setting = pd.concat([record, tuned.assign(metric="setting", value=setting)], ignore_index=True)
    assert judge(CLAIMS["C10 (Gaussian, INT-5)"], with_setting).note == said


def test_a_scale_without_a_clip_has_no_c10_of_one() -> None:
    few = [claim.name for claim in all_claims(replace(SETTINGS, compared_clip=""))]
    assert [name for name in CLAIMS if name not in few] == [name for name in CLAIMS if "clip" in name]


def test_no_two_claims_have_one_name() -> None:
    assert len(CLAIMS) == len(all_claims(SETTINGS))


def test_the_settings_of_a_scale_are_its_own() -> None:
    found = Settings.of(DIGITS)
    for name in ("bits", "best_bits", "claim_size", "memory_models", "large_bits"):
        assert getattr(found, name) == getattr(DIGITS.settings, name)
    assert DIGITS.beyond is not None
    assert (found.spread_bits, found.spread_size) == (DIGITS.beyond.spread_bits, DIGITS.beyond.size)
    assert (found.substrate, found.compared_clip) == ("digits ViT", "digits CLIP-L")
    assert found.networks == ("digits ViT-T", "digits ViT-S", "digits ViT-B", "digits ViT-L")
    assert found.large_networks["Llama"] == ("digits Llama-S", "digits Llama-M", "digits Llama-L")


def test_a_scale_without_pre_trained_models_does_not_run_c6() -> None:
    few = {claim.name: claim for claim in all_claims(replace(SETTINGS, large_networks={}))}
    for name in ("C6a", "C6b"):
        verdict = judge(few[name], WORLDS["holds"])
        assert (verdict.verdict, verdict.note) == ("not run", statistics.NO_NETWORKS)


def test_two_rows_of_one_seed_are_an_error() -> None:
    record = WORLDS["holds"]
    with pytest.raises(InputError, match="two rows of seed 0"):
        judge(CLAIMS["C1a (net-T)"], pd.concat([record, record]))


# Effects.


def effect(name: str, record: pd.DataFrame) -> float:
    return judge(CLAIMS[name], record).effect


def near(value: float) -> object:
    """Equal but for the noise, whose mean over five seeds has a std below 1e-6, C1b's four terms included."""
    return pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("C1a (net-S)", -0.02 * 2 * 3),
        ("C1b (net-S)", -0.02 * 2 * (3 - 1)),
        ("C1c", -0.02 * 3 / math.log(4)),
        ("C2 (SWAG)", -0.02),
        ("C6a", -0.02 * 4 * 2),
        ("C6b", -0.02 * 2 / math.log(4)),
        ("C11 (INT-4)", -0.02),
        ("C12 (INT-4)", 0.0),
        # The memory share is (5·1000·10 + 500) / (4·32000), DE's gain .001.
        ("C9", 0.02 - 50_500 / 128_000 * 0.001),
        # Of four INT-4 members: 4·1000·4 + 500 bits.
        ("C9, against 4-bit members", 0.02 - 50_500 / 16_500 * 0.001),
        # (5 + 10)·1000 + 500 bits.
        ("C9, planes against 4-bit members", 0.02 - 15_500 / 16_500 * 0.001),
    ],
)
def test_effects_are_those_worked_out_by_hand(name: str, expected: float) -> None:
    assert effect(name, WORLDS["holds"]) == near(expected)


def test_a_ratio_is_the_ratio_of_the_means() -> None:
    record = edited(
        WORLDS["holds"],
        lambda rows: 0.05 * (1 + rows["seed"]),
        point="IVON",
        metric="ambiguity",
        method="BMA",
    )
    assert effect("C5 (INT-5)", record) == pytest.approx(1 / 3, rel=1e-3)
    mean_of_ratios = np.mean([1 / n for n in range(1, 6)])
    assert abs(mean_of_ratios - 1 / 3) > 0.1, "the mean of the ratios would be told apart"


@pytest.mark.parametrize("name", [name for name in CLAIMS if not name.startswith(("C3", "C5", "C11", "C14"))])
def test_pairing_takes_out_what_the_seeds_share(name: str) -> None:
    # Every NLL of a seed 11 times further from the others' (C3, C5, C11 and C14 are about other metrics).
    record = edited(WORLDS["holds"], lambda rows: rows["value"] + 0.1 * rows["seed"], metric="nll")
    shared, plain = (judge(CLAIMS[name], rows) for rows in (record, WORLDS["holds"]))
    assert shared.effect == near(plain.effect)
    # The interval, which seeds that are mixed up would widen: a difference of means they leave as it is.
    assert (shared.low, shared.high) == (near(plain.low), near(plain.high))


def test_the_pairing_check_catches_seeds_that_are_mixed_up() -> None:
    # A difference of row i and row i + 1 in place of two rows of one seed.
    record = WORLDS["holds"]
    low = values_of(CLAIMS["C2 (SWAG)"], record)
    single = Rows("net", "SWAG", "FP32", "fp32", None, 1).values(record)
    mixed = low + np.roll(single.to_numpy(), 1) - single
    assert outcome(mixed.tolist(), Side(high=0.0)) == "undecided"


def test_c14_is_reported_with_its_interval_and_claims_nothing() -> None:
    verdict = judge(CLAIMS["C14"], WORLDS["holds"])
    assert (verdict.verdict, verdict.claimed()) == ("reported", "no threshold")
    assert verdict.effect == near(0.52)
    assert verdict.low < 0.52 < verdict.high


@pytest.mark.parametrize("name", ["C15 (raw)", "C15 (calibrated)"])
def test_c15_is_the_difference_to_tuned_noise_as_a_share_of_the_gain_over_fp32(name: str) -> None:
    assert effect(name, WORLDS["holds"]) == pytest.approx(-0.02 / 0.07, rel=1e-3)


@pytest.mark.parametrize(("worse", "expected"), [(0.19, "holds"), (0.21, "fails")])
@pytest.mark.parametrize(("name", "metric"), [("C15 (raw)", "nll"), ("C15 (calibrated)", "calibrated_nll")])
def test_c15_allows_a_fifth_of_the_gain_and_no_more(
    name: str, metric: str, worse: float, expected: str
) -> None:
    # LPE-BSR gains .05, the noise so much more.
    rows = WORLDS["holds"]
    at = {"substrate": SPREAD, "metric": metric}
    record = edited(rows, lambda rows: rows["value"] + 0.02, method="LPE-BSR, tuned spread", **at)
    record = edited(record, lambda rows: rows["value"] - worse * 0.05, method="Gaussian, tuned std", **at)
    assert judge(CLAIMS[name], record).verdict == expected


def test_c15_takes_no_share_of_a_loss() -> None:
    # Both are worse than FP32, LPE-BSR the more so: as a ratio that is below 0.
    at = {"substrate": SPREAD, "metric": "nll"}
    record = edited(WORLDS["holds"], lambda rows: rows["value"] + 0.17, method="LPE-BSR, tuned spread", **at)
    record = edited(record, lambda rows: rows["value"] + 0.1, method="Gaussian, tuned std", **at)
    verdict = judge(CLAIMS["C15 (raw)"], record)
    assert (verdict.verdict, verdict.n) == ("not run", 0)
    worse = "LPE-BSR, tuned spread is 0.1 nats worse than FP32: no gain to take a share of"
    assert verdict.note == worse
    one = record[record["seed"] == 0]
    assert judge(CLAIMS["C15 (raw)"], one).note == worse


def test_c15_decides_nothing_where_there_may_be_no_gain() -> None:
    at = {"substrate": SPREAD, "metric": "nll", "method": "LPE-BSR, tuned spread"}
    record = edited(WORLDS["holds"], lambda rows: rows["value"] + 0.08 + 0.03 * (rows["seed"] - 2), **at)
    verdict = judge(CLAIMS["C15 (raw)"], record)
    assert (verdict.verdict, verdict.low, verdict.high) == ("undecided", -math.inf, math.inf)


def test_c15_says_what_the_two_were_tuned_to() -> None:
    record = WORLDS["holds"]
    settings = []
    for method, values in (("LPE-BSR, tuned spread", (16, 11.3)), ("Gaussian, tuned std", (0.02, 0.02))):
        rows = record[(record["method"] == method) & (record["metric"] == "nll")]
        settings.append(rows.assign(metric="setting", value=[values[seed % 2] for seed in rows["seed"]]))
    verdict = judge(CLAIMS["C15 (raw)"], pd.concat([record, *settings], ignore_index=True))
    assert verdict.note == "LPE-BSR, tuned spread: 11.3, 16; Gaussian, tuned std: 0.02"


def test_in_c15_fp32_instead_gains_nothing_and_is_no_evidence_against_it() -> None:
    verdict = judge(CLAIMS["C15 (raw)"], WORLDS["holds"])
    assert verdict.instead is not None and verdict.instead.verdict == "undecided"
    assert verdict.evidence == "evidence"


@pytest.mark.parametrize(("members", "bits", "system", "stored"), EQUAL_BITS)
def test_both_sides_of_c13_take_as_many_bits_a_weight(
    members: int, bits: int, system: str, stored: str
) -> None:
    each = {"int8": 8, "bf16": 16}[system]
    taken = bits + members if "planes" in stored else bits * members
    assert each - bits < taken <= each


# Margins relative to the single FP32 model.


@pytest.mark.parametrize(("share", "expected"), [(0.009, "holds"), (0.011, "fails")])
def test_c2_allows_one_percent_of_the_single_models_nll_and_no_more(share: float, expected: str) -> None:
    # FP32's NLL over the five seeds is .1 + .01 · 2 in the mean.
    record = world([-share * 0.12] * 5)
    verdict = judge(CLAIMS["C2 (IVON)"], record)
    assert verdict.verdict == expected
    assert verdict.side.high == pytest.approx(0.0012, rel=1e-4)


def test_c2_without_the_single_models_rows_is_not_run() -> None:
    record = without(WORLDS["holds"], method="FP32", point="SWAG")
    assert judge(CLAIMS["C2 (SWAG)"], record).verdict == "not run"


def test_the_margin_is_taken_over_the_seeds_that_are_judged() -> None:
    record = WORLDS["holds"]
    record = record[(record["method"] != "BMA") | (record["seed"] < 2)]
    # Seeds 0 and 1 alone: .1 + .01 / 2.
    assert judge(CLAIMS["C2 (SWAG)"], record).side.high == pytest.approx(0.00105, rel=1e-4)


@pytest.mark.parametrize(
    ("left", "expected"), [(0.95, "not run"), (1.0, "not run"), (0.6, "holds"), (1.3, "holds")]
)
def test_c5_is_read_only_where_the_posterior_is_learnt(left: float, expected: str) -> None:
    record = WORLDS["holds"]
    bma = record[(record["method"] == "BMA") & (record["metric"] == "ambiguity")]
    told = pd.concat(
        [record, bma.assign(metric="std_over_forgetting", size=1, value=left)], ignore_index=True
    )
    verdict = judge(CLAIMS["C5 (INT-5)"], told)
    assert verdict.verdict == expected
    assert ("the posterior is not learnt" in verdict.note) == (expected == "not run")


RATIO_CLAIMS = {claim.name: claim for claim in all_claims(replace(SETTINGS, noise_share=0.2))}


@pytest.mark.parametrize(
    ("worse", "expected"),
    [(0.0, "holds"), (0.003, "holds"), (-0.003, "holds"), (0.005, "fails"), (-0.005, "fails")],
)
def test_c12_may_go_by_a_fifth_of_the_gain(worse: float, expected: str) -> None:
    # The gain over FP32 is .02 at every seed.
    record = edited(WORLDS["holds"], lambda rows: rows["value"] + worse, method="Gaussian, matched")
    verdict = judge(RATIO_CLAIMS["C12 (INT-5)"], record)
    assert verdict.effect == pytest.approx(-worse / 0.02, abs=1e-3)
    assert verdict.verdict == expected


def test_c12_by_the_gain_decides_nothing_where_there_may_be_none() -> None:
    assert judge(RATIO_CLAIMS["C12 (INT-5)"], WORLDS["undecided"]).verdict == "undecided"


@pytest.mark.parametrize("sign", [-1, 1])
def test_c12_fails_on_either_side_of_equivalence(sign: int) -> None:
    record = edited(WORLDS["holds"], lambda rows: rows["value"] + sign * 0.01, method="Gaussian, matched")
    assert judge(CLAIMS["C12 (INT-5)"], record).verdict == "fails"


# Budgets.


def test_at_equal_training_budget_both_have_all_their_members() -> None:
    # Values that name their size: the effect tells which sizes were compared.
    record = edited(WORLDS["holds"], lambda rows: rows["size"] / 1000, point="SSE", metric="nll")
    assert effect("C4a (SSE)", record) == near((MODELS * EXPANSION - MODELS) / 1000)


def test_unequal_training_budgets_are_an_error() -> None:
    record = WORLDS["holds"].copy()
    last = (record["method"] == "DE + LPE-BSR") & (record["size"] == MODELS * EXPANSION)
    record.loc[last & (record["seed"] == 4), "backward_passes"] += 1
    with pytest.raises(InputError, match="cost 401 backward passes and DE of 4 400 at seed 4"):
        judge(CLAIMS["C8a (DE)"], record)


def test_training_budgets_that_were_not_recorded_are_an_error() -> None:
    with pytest.raises(InputError, match="cost 0 backward passes"):
        judge(CLAIMS["C4a (SSE)"], WORLDS["holds"].assign(backward_passes=0))


def test_bases_with_unequal_numbers_of_members_are_an_error() -> None:
    record = without(WORLDS["holds"], method="SSE + LPE-BSR", size=MODELS * EXPANSION)
    with pytest.raises(InputError, match="15 members of SSE \\+ LPE-BSR are no multiple of 4"):
        judge(CLAIMS["C4a (SSE)"], record)


# 2 models take 64,000 bits; n members 5,000·n + 500 at INT-5, 4,000·n + 500 at INT-4.
FITTING = {"C4b (CSGLD)": ("CSGLD", 12), "C7 (SWAG, INT-5)": ("SWAG", 12), "C7 (SWAG, INT-4)": ("SWAG", 15)}


@pytest.mark.parametrize("name", FITTING)
def test_at_equal_memory_the_largest_ensemble_that_fits_is_compared_with_two_models(name: str) -> None:
    point, members = FITTING[name]
    record = edited(WORLDS["holds"], lambda rows: rows["size"] / 1000, point=point, metric="nll")
    verdict = judge(CLAIMS[name], record)
    assert verdict.effect == near((members - 2) / 1000)
    assert verdict.note.partition("; no spread")[0] == f"{members} members against 2"


def test_an_ensemble_fits_into_exactly_its_own_memory() -> None:
    record = WORLDS["holds"].copy()
    record.loc[(record["method"] == "CSGLD") & (record["size"] == 2), "memory_bits"] = 5000 * 7 + SHARED
    assert judge(CLAIMS["C4b (CSGLD)"], record).note == "7 members against 2"


def test_one_bit_too_few_takes_the_next_smaller_ensemble() -> None:
    record = WORLDS["holds"].copy()
    record.loc[(record["method"] == "CSGLD") & (record["size"] == 2), "memory_bits"] = 5000 * 7 + SHARED - 1
    assert judge(CLAIMS["C4b (CSGLD)"], record).note == "6 members against 2"


@pytest.mark.parametrize("fault", ["one member too many", "memory left out of account"])
def test_the_sizes_catch_a_prefix_that_does_not_fit(fault: str) -> None:
    # The same record and check as above, with columns that make the statistic take the wrong prefix.
    record = edited(WORLDS["holds"], lambda rows: rows["size"] / 1000, point="CSGLD", metric="nll")
    low = record["method"] == "CSGLD + LPE-BSR"
    record.loc[low, "memory_bits"] -= 5000 if fault == "one member too many" else record["memory_bits"]
    assert judge(CLAIMS["C4b (CSGLD)"], record).effect != near((12 - 2) / 1000)


def test_where_not_even_one_member_fits_the_claim_is_not_run() -> None:
    record = WORLDS["holds"].copy()
    record.loc[record["method"] == "SSE", "memory_bits"] = 5000
    verdict = judge(CLAIMS["C8b (SSE)"], record)
    assert verdict.verdict == "not run"
    assert verdict.note == "the smallest SSE + LPE-BSR takes 5500 bits, more than the 5000 of 2 of SSE"


@pytest.mark.parametrize(("number", "family"), [("C4", "CSGLD"), ("C8", "DE")])
def test_against_4_bit_members_a_budget_is_the_memory_of_two_of_these(number: str, family: str) -> None:
    # 2·4000 + 500 bits are less than two INT-5 members, and 64,000 are as many as all sixteen.
    assert judge(CLAIMS[f"{number}b, against 4-bit members ({family})"], WORLDS["holds"]).note == (
        "1 members against 2"
    )
    assert judge(CLAIMS[f"{number}b ({family})"], WORLDS["holds"]).note != "1 members against 2"


@pytest.mark.parametrize("name", [name for name in CLAIMS if "4-bit" in name])
def test_against_4_bit_members_the_rival_is_these_and_not_the_unrounded_ones(name: str) -> None:
    family = "DE" if name.startswith("C9") else name.partition("(")[2].removesuffix(")")
    unrounded = edited(WORLDS["holds"], lambda _: -9.0, method=family)
    assert effect(name, unrounded) == effect(name, WORLDS["holds"])
    worse = edited(WORLDS["holds"], lambda rows: rows["value"] - 9.0, method=f"{family} by RTN")
    assert judge(CLAIMS[name], worse).verdict == "fails"


def test_planes_are_told_of_what_the_members_take_one_by_one() -> None:
    record = WORLDS["holds"].reset_index(drop=True)
    low = Rows("net", "SGD", "LPE-BSR", "int4", "bernoulli")
    for members in (2, 10):
        found = statistics.as_planes(low.at(members), 4, record)
        assert found.tolist() == [(4 + members) * PARAMETERS["net"] + SHARED] * 5


@pytest.mark.parametrize("members, bits", [(m, b) for m, b, _, stored in EQUAL_BITS if "planes" in stored])
@pytest.mark.parametrize("has_statistics", [False, True], ids=["the network's statistics", "each member's"])
def test_planes_of_the_claims_take_what_the_ensemble_counts(
    members: int, bits: int, has_statistics: bool
) -> None:
    net = nn.Sequential(nn.Conv2d(2, 8, 4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 8))
    batches = [(torch.ones(2, 2, 6, 6), None)] if has_statistics else None
    ensemble = lpe.LowPrecisionEnsemble(net.eval(), lpe.Int(bits), members, batches=batches)
    one, stored = ensemble.memory_bits(1), ensemble.memory_bits()
    drawn = [ensemble.memory_bits(n, "generator") for n in (1, members)]
    further = members - 1
    taken = statistics.bits_as_planes(
        float(one), (stored - one) / further, members, bits, (drawn[1] - drawn[0]) / further
    )
    assert taken == near(ensemble.memory_bits(storage="planes"))
    weights = sum(planned.numel for planned in ensemble.plan if planned.rounds)
    scales = 32 * (8 + 8)
    own = 32 * 2 * 8 * (members if has_statistics else 1)
    rest = 32 * (8 + 8 + 8 + 8) + 64  # biases, the norm's weight and bias, and its count of batches
    assert taken == near((bits + members) * weights + scales + own + rest)


def test_c9_is_paired_with_all_members_of_the_deep_ensemble() -> None:
    record = edited(WORLDS["holds"], lambda rows: SINGLE - rows["size"] / 1000, method="DE")
    # Seeds' offsets of .01 a seed are in the other NLLs: .02 in the mean.
    expected = 0.02 - 50_500 / 128_000 * (0.02 + MODELS / 1000)
    assert effect("C9", record) == near(expected)


@pytest.mark.parametrize(("advantage", "expected"), [(0.0003, "fails"), (0.0005, "holds")])
def test_c9_turns_where_the_gain_share_is_the_memory_share(advantage: float, expected: str) -> None:
    # DE's gain is .001 and the memory share .395.
    assert judge(CLAIMS["C9"], world([advantage] * 5)).verdict == expected


# Calibration.


def test_c11_calibrates_both_sides() -> None:
    # Calibrated, the two differ by −.02; NLL and calibrated NLL differ by .18 or more.
    assert effect("C11 (INT-5)", WORLDS["holds"]) == near(-0.02)


def test_c11_is_unmoved_by_the_uncalibrated_nll() -> None:
    record = edited(WORLDS["holds"], lambda rows: rows["value"] - 5.0, method="LPE-BSR", metric="nll")
    assert effect("C11 (INT-5)", record) == near(-0.02)


@pytest.mark.parametrize("method", ["LPE-BSR", "FP32"])
def test_the_effect_catches_one_side_that_is_not_calibrated(method: str) -> None:
    record = WORLDS["holds"]
    calibrated = (record["method"] == method) & (record["metric"] == "calibrated_nll")
    plain = record[(record["method"] == method) & (record["metric"] == "nll")]
    faulty = pd.concat([record[~calibrated], plain.assign(metric="calibrated_nll")], ignore_index=True)
    assert effect("C11 (INT-5)", faulty) != near(-0.02)


# Slopes.


def test_a_slope_is_numpys_least_squares_line_of_each_seed() -> None:
    noise = np.random.default_rng(1)
    record = edited(
        WORLDS["holds"], lambda rows: rows["value"] + noise.normal(size=len(rows)), method="RTN", metric="nll"
    )
    found = values_of(CLAIMS["C1c"], record)
    x = np.log([PARAMETERS[name] for name in NETWORKS])
    for seed in range(5):
        y = []
        for network in NETWORKS:
            low = Rows(network, "SGD", "LPE-BSR", "int4", "bernoulli", 10).values(record)
            rtn = Rows(network, "SGD", "RTN", "int4", "nearest", 1).values(record)
            y.append(low[seed] - rtn[seed])
        assert found[seed] == pytest.approx(np.polyfit(x, y, 1)[0])


def test_a_slope_without_one_of_its_networks_is_not_run() -> None:
    record = without(WORLDS["holds"], substrate="net-B", method="RTN")
    verdict = judge(CLAIMS["C1c"], record)
    assert (verdict.verdict, "net-B" in verdict.note) == ("not run", True)


def test_a_slope_over_networks_of_one_size_is_not_run() -> None:
    verdict = judge(CLAIMS["C1c"], WORLDS["holds"].assign(memory_bits=32_000))
    assert (verdict.verdict, verdict.note) == ("not run", "all networks have as many parameters")


def test_the_largest_model_is_the_one_with_the_most_parameters() -> None:
    # The same networks in another order.
    turned = replace(SETTINGS, large_networks={"": NETWORKS[::-1]})
    claim = next(each for each in all_claims(turned) if each.name == "C6a")
    assert judge(claim, WORLDS["holds"]).effect == near(-0.02 * 4 * 2)


# How a verdict is said.


def test_the_line_states_effect_interval_side_and_seeds() -> None:
    line = judged([-1.0, -1.1, -0.9], BELOW).line()
    # Half width t(.975, 2) · .1 / √3 = 4.30265 · .057735.
    assert line == (
        "C: holds. s = -1.00000 nats, 95 % [-1.24841, -0.75159], claimed below 0, n = 3 × training seed "
        "(FP32 instead holds as well: not evidence)"
    )


def test_the_line_of_one_seed_says_that_there_is_no_interval() -> None:
    line = judged([-1.0], BELOW).line()
    assert line.endswith("(no interval), claimed below 0, n = 1 × training seed")


def test_the_line_of_a_claim_that_is_not_run_says_what_is_missing() -> None:
    def nothing(record: pd.DataFrame) -> statistics.Statistic:
        raise NotRun("no rows: x")

    line = judge(replace(of_values(BELOW), of=nothing), WORLDS["holds"]).line()
    assert line == "C: not run. s: no rows: x"


@pytest.mark.parametrize(
    ("side", "text"), [(BELOW, "below 0"), (Side(low=0.1), "above 0.1"), (Side(0.5, 2.0), "inside [0.5, 2]")]
)
def test_a_side_in_words(side: Side, text: str) -> None:
    assert side.text() == text
