"""Units of intervals, intervals over examples, needed numbers, Holm's adjustment, what is counted once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from reproduce.judge import verdicts
from reproduce.judge.claims import Claim, Side
from reproduce.judge.intervals import LEVEL, percentile_interval, resampled_means
from reproduce.judge.statistics import Rows, difference, ratio
from reproduce.judge.verdicts import KEPT, Estimate, Verdict, judge_all, kept_estimates, over_examples
from reproduce.study import keys
from reproduce.study.closure import APART, DEFINED_BY, PACKAGES, Project

LOW, RTN, FP32 = (
    Rows("net", "SGD", method, system, None, 1)
    for method, system in (("LPE-BSR", "int4"), ("RTN", "int4"), ("FP32", "fp32"))
)
BELOW = Claim("A", "s", Side(high=0.0), "nats", lambda record: difference(LOW, RTN, record))
RATIO = Claim("R", "s", Side(0.5, 2.0), "ratio", lambda record: ratio(LOW, RTN, record))
AMBIGUITY, OF_RTN = (replace(rows, metric="ambiguity") for rows in (LOW, RTN))
OFFSETS = {"LPE-BSR": -0.06, "RTN": 0.0, "FP32": 0.1}
EXAMPLES = 200


class World:
    """A record of some seeds, and the values of the examples that its values are the means of."""

    def __init__(self, seeds: int, fresh: bool = False, count: int = EXAMPLES) -> None:
        """Make it; ``fresh``: each seed tests images of its own. count: of examples."""
        draws = np.random.default_rng(5)
        hardness = draws.gamma(0.5, size=count)
        rows, self.kept = [], {}
        for seed in range(seeds):
            for method, offset in OFFSETS.items():
                values = hardness * (1 + offset) + 0.1 * draws.normal(size=count)
                values = values.astype(np.float32).astype(float)
                which = np.arange(count) + (seed * count if fresh else 0)
                self.kept[method, seed] = (which, values)
                system = "fp32" if method == "FP32" else "int4"
                named = {"scale": "s", "substrate": "net", "point": "SGD", "method": method, "size": 1}
                named |= {"number_system": system, "rounding": "", "seed": seed, "metric": "nll"}
                costs = {"memory_bits": 1, "backward_passes": 1}
                rows.append({**named, "value": values.mean(), **costs})
        self.record = pd.DataFrame(rows)

    def find(self, row: Mapping[str, object]) -> tuple[np.ndarray, np.ndarray] | None:
        return self.kept.get((str(row["method"]), int(str(row["seed"]))))

    def differences(self, seed: int, low: str = "LPE-BSR") -> np.ndarray:
        return np.asarray(self.kept[low, seed][1] - self.kept["RTN", seed][1])


def judged(world: World, unit: str, claim: Claim = BELOW) -> Verdict:
    return judge_all([claim], world.record, unit, examples=world.find)[0]


def test_one_checkpoint_is_decided_by_the_paired_bootstrap_over_its_examples() -> None:
    world = World(seeds=1)
    verdict = judged(world, "example")
    expected = percentile_interval(resampled_means(world.differences(0)[:, None])[:, 0])
    assert (verdict.low, verdict.high) == pytest.approx(expected)
    assert (verdict.n, verdict.over, verdict.verdict) == (EXAMPLES, "test example", "holds")


def test_the_null_of_one_checkpoint_is_bootstrapped_as_well() -> None:
    world = World(seeds=1)
    verdict = judged(world, "example")
    expected = percentile_interval(resampled_means(world.differences(0, "FP32")[:, None])[:, 0])
    assert verdict.instead is not None
    assert (verdict.instead.low, verdict.instead.high) == pytest.approx(expected)
    assert verdict.instead.verdict == "fails"


def test_one_checkpoint_without_its_examples_has_no_interval_and_says_why() -> None:
    verdict = judge_all([BELOW], World(seeds=1).record, "example", examples=lambda row: None)[0]
    assert verdict.verdict == "undecided"
    assert math.isnan(verdict.low)
    assert verdict.note.startswith("no interval: the values of single examples were not kept (net SGD")


def test_what_has_no_threshold_is_reported_for_one_checkpoint_without_examples_too() -> None:
    claim = Claim("A", "s", Side(), "share", lambda record: difference(LOW, RTN, record))
    verdict = judge_all([claim], World(seeds=1).record, "example", examples=lambda row: None)[0]
    assert verdict.verdict == "reported"


def test_seeds_decide_where_they_are_the_unit_and_examples_stand_beside() -> None:
    world = World(seeds=3)
    verdict = judged(world, "seed")
    assert (verdict.n, verdict.over) == (3, "training seed")
    averaged = np.mean([world.differences(seed) for seed in range(3)], axis=0)
    expected = percentile_interval(resampled_means(averaged[:, None])[:, 0])
    assert verdict.examples is not None
    assert (verdict.examples.low, verdict.examples.high) == pytest.approx(expected)
    assert verdict.examples.n == EXAMPLES


def test_a_claim_with_rows_of_one_seed_alone_is_decided_as_of_one_checkpoint() -> None:
    world = World(seeds=1)
    verdict = judged(world, "seed")
    expected = judged(world, "example")
    assert (verdict.low, verdict.high, verdict.over) == (expected.low, expected.high, "test example")


def test_one_seed_that_splits_the_images_itself_is_not_a_checkpoint() -> None:
    verdict = judged(World(seeds=1), "same images")
    assert verdict.verdict == "undecided"
    assert math.isnan(verdict.low)


def test_another_unit_is_refused() -> None:
    with pytest.raises(InputError, match="a scale's unit is 'run'; one of 'seed', 'same images', 'example'"):
        judge_all([BELOW], World(seeds=1).record, "run")


def test_images_of_several_seeds_count_each() -> None:
    examples = judged(World(seeds=3, fresh=True), "same images").examples
    assert examples is not None
    assert examples.n == 3 * EXAMPLES


@pytest.mark.parametrize(("count", "verdict"), [(1, "undecided"), (19, "undecided"), (20, "holds")])
def test_fewer_than_20_test_examples_decide_nothing(count: int, verdict: str) -> None:
    world = World(seeds=1, count=count)
    which, values = world.kept["RTN", 0]
    world.kept["LPE-BSR", 0] = which, values - 1.0 - 0.01 * np.arange(count)  # below in each example
    means = {method: world.kept[method, 0][1].mean() for method in OFFSETS}
    world.record["value"] = world.record["method"].map(means)
    found = judged(world, "example")
    assert (found.verdict, found.n) == (verdict, count)
    few = "1 test example decides" if count == 1 else f"{count} test examples decide"
    said = f"{few} nothing, 20 are needed"
    assert (said in found.note) == math.isinf(found.low) == (verdict == "undecided")
    assert found.needed == ("" if verdict == "holds" else "20" if count > 1 else "")


def test_beside_seeds_a_handful_of_test_examples_decides_nothing_and_is_said() -> None:
    found = judged(World(seeds=3, count=5), "same images")
    assert found.examples is not None
    assert (found.examples.verdict, found.examples.low, found.examples.n) == ("undecided", -math.inf, 5)
    assert "5 test examples decide nothing, 20 are needed" in found.note


def test_of_a_ratio_the_bootstrap_draws_both_means_together() -> None:
    world = World(seeds=1)
    verdict = judged(world, "example", RATIO)
    both = np.stack([world.kept[method, 0][1] for method in ("LPE-BSR", "RTN")], axis=1)
    draws = resampled_means(both)
    assert (verdict.low, verdict.high) == pytest.approx(percentile_interval(draws[:, 0] / draws[:, 1]))
    assert verdict.effect == pytest.approx(both[:, 0].mean() / both[:, 1].mean())


def test_of_a_ratio_whose_denominator_may_be_0_the_bootstrap_has_no_bounds() -> None:
    draws = np.random.default_rng(0)
    values = np.stack([draws.normal(1.0, 0.1, EXAMPLES), draws.normal(0.0, 1.0, EXAMPLES)], axis=1)
    found = over_examples(values, resampled_means(values), Side(0.5, 2.0))
    assert (found.low, found.high, found.verdict) == (-math.inf, math.inf, "undecided")
    assert found.level > 0.05


def test_values_of_another_run_are_not_taken_for_the_records() -> None:
    world = World(seeds=1)
    which, values = world.kept["RTN", 0]
    world.kept["RTN", 0] = which, values + 0.001
    assert "the values of single examples are of another run" in judged(world, "example").note


def test_values_of_other_examples_are_not_paired() -> None:
    world = World(seeds=1)
    which, values = world.kept["RTN", 0]
    world.kept["RTN", 0] = which + 1, values
    assert "its rows of seed 0 are of different examples" in judged(world, "example").note


# Equal values.


def named(verdict: Verdict) -> tuple[str, float, float, str, str]:
    assert verdict.found is not None
    return verdict.verdict, verdict.low, verdict.found.level, verdict.needed, verdict.note


@pytest.mark.parametrize("values", [[-1e-12, -1e-12], [-0.3] * 5])
def test_equal_values_of_all_seeds_decide_nothing_and_are_said(values: list[float]) -> None:
    claim, record = of_values(values)
    verdict = judge_all([claim], record, "seed")[0]
    said = f"no spread among the {len(values)} training seeds"
    assert named(verdict) == ("undecided", -math.inf, 1.0, "", said)
    assert verdict.effect == pytest.approx(values[0])


def test_differences_are_equal_where_a_records_digits_tell_no_other() -> None:
    record = of_values([-3e-12, -3e-12])[1]
    # As a record has them: 12 digits, so that the differences are 3e-12 and 2.9e-12.
    record["value"] = [0.123456789012, 0.123456789015, 0.723456789012, 0.723456789015]
    record.loc[1, "value"] += 1e-13
    claim = of_values([])[0]
    assert judge_all([claim], record, "seed")[0].verdict == "undecided"


def test_the_claims_of_equal_values_count_in_holms_order_as_undecided() -> None:
    pairs = [of_values([-1e-12, -1e-12], "A"), of_values([-1.0, -1.01, -0.99], "B")]
    record = pd.concat([each for _, each in pairs], ignore_index=True)
    equal, other = judge_all([claim for claim, _ in pairs], record, "seed")
    assert (equal.holm, equal.holm_level, other.holm) == ("undecided", 1.0, "holds")


def of_ratios(above: list[float], below: list[float]) -> Verdict:
    """The verdict that LPE-BSR's values are .5 to 2 times RTN's."""
    record = of_values(above)[1]
    record.loc[record["method"] == "RTN", "value"] = below
    low, rtn = (Rows("A", "SGD", method, "int4", None, 1) for method in ("LPE-BSR", "RTN"))
    claim = Claim("A", "s", Side(0.5, 2.0), "ratio", lambda record: ratio(low, rtn, record))
    return judge_all([claim], record, "seed")[0]


@pytest.mark.parametrize(
    ("above", "below", "said"),
    [
        ([1.0, 1.1, 1.3], [1.0, 1.0, 1.0], "no spread among its denominators of 3 training seeds"),
        ([1.0, 1.1, 1.3], [1e-300, 2e-300, 3e-300], "its denominator is 0"),
        ([1.0, 1.1, 1.3], [1.0, 1.1, 1.3], "no spread among the 3 training seeds"),
    ],
    ids=["equal denominators", "denominators of no size", "equal ratios"],
)
def test_ratios_that_seeds_do_not_tell_are_undecided(
    above: list[float], below: list[float], said: str
) -> None:
    verdict = of_ratios(above, below)
    assert named(verdict) == ("undecided", -math.inf, 1.0, "", said)


def flattened(world: World, methods: tuple[str, ...], value: float) -> None:
    """Give methods one value at every example."""
    for method in methods:
        for seed in range(len(world.record) // len(OFFSETS)):
            world.kept[method, seed] = world.kept[method, seed][0], np.full(EXAMPLES, value)
        world.record.loc[world.record["method"] == method, "value"] = value


def test_equal_values_of_all_examples_decide_nothing_and_are_said() -> None:
    world = World(seeds=1)
    flattened(world, ("LPE-BSR",), 0.25)
    flattened(world, ("RTN",), 0.5)
    said = f"no spread among the {EXAMPLES} test examples"
    first = judge_all([BELOW], world.record, "example", examples=world.find)
    assert named(first[0]) == ("undecided", -math.inf, 1.0, "", said)
    assert judge_all([BELOW], world.record, "example", kept=kept_of(first)) == first


def test_of_a_ratio_whose_denominators_are_of_no_size_examples_decide_nothing() -> None:
    world = World(seeds=1)
    which, values = world.kept["RTN", 0]
    world.kept["RTN", 0] = which, 1e-300 * np.abs(values)
    world.record.loc[world.record["method"] == "RTN", "value"] = 1e-300 * np.abs(values).mean()
    assert named(judged(world, "example", RATIO)) == ("undecided", -math.inf, 1.0, "", "its denominator is 0")


@pytest.mark.parametrize(("unit", "seeds"), [("seed", 3), ("example", 1)])
def test_that_a_network_is_no_better_than_itself_needs_no_interval(unit: str, seeds: int) -> None:
    claim = Claim("A", "s", Side(-0.1, 0.1), "nats", lambda record: difference(LOW, FP32, record))
    null = judge_all([claim], World(seeds).record, unit, examples=World(seeds).find)[0].instead
    assert null is not None
    assert (null.effect, null.low, null.high, null.verdict) == (0.0, 0.0, 0.0, "holds")


@pytest.mark.parametrize(("unit", "seeds"), [("seed", 3), ("example", 1)])
def test_the_null_of_a_share_of_nothing_is_0_where_the_denominator_is_told_from_it(
    unit: str, seeds: int
) -> None:
    world = World(seeds)
    world.record["metric"] = "ambiguity"
    claim = Claim("A", "s", Side(0.5, 2.0), "ratio", lambda record: ratio(AMBIGUITY, OF_RTN, record))
    null = judge_all([claim], world.record, unit, examples=world.find)[0].instead
    assert null is not None
    assert (null.effect, null.low, null.high, null.verdict) == (0.0, 0.0, 0.0, "fails")


# Estimates that a folder keeps.


def kept_of(verdicts: list[Verdict]) -> pd.DataFrame:
    return pd.DataFrame(kept_estimates(verdicts), columns=list(KEPT))


@pytest.mark.parametrize(("unit", "seeds"), [("seed", 3), ("seed", 1), ("example", 1)])
def test_what_was_kept_gives_the_same_verdicts_without_the_examples(unit: str, seeds: int) -> None:
    world = World(seeds)
    first = judge_all([BELOW, RATIO], world.record, unit, examples=world.find)
    again = judge_all([BELOW, RATIO], world.record, unit, kept=kept_of(first))
    assert again == first


@pytest.mark.parametrize("count", [5, EXAMPLES])
def test_what_was_kept_is_kept_again_as_it_was_also_where_a_denominator_is_0(count: int) -> None:
    world = World(seeds=3, count=count)
    for seed in range(3):
        world.kept["FP32", seed] = world.kept["FP32", seed][0], np.zeros(count)
    world.record.loc[world.record["method"] == "FP32", "value"] = 0.0
    # Of FP32 in LPE-BSR's place it is 0 / 0.
    zero = Claim("Z", "s", Side(0.5, 2.0), "ratio", lambda record: ratio(RTN, LOW, record))
    first = judge_all([zero], world.record, "same images", examples=world.find)
    assert first[0].examples_instead is not None and math.isnan(first[0].examples_instead.effect)
    again = judge_all([zero], world.record, "same images", kept=kept_of(first))
    pd.testing.assert_frame_equal(kept_of(again), kept_of(first))


def kept_again(world: World, kept: pd.DataFrame, level: float = LEVEL) -> Estimate | None:
    """The examples' estimate of BELOW where there is what was kept alone."""
    return judge_all([BELOW], world.record, "seed", level, kept=kept)[0].examples


@pytest.mark.parametrize("column", ["n", "effect", "low", "level", "instead_high", "key"])
def test_what_was_kept_and_then_altered_is_not_taken_up(column: str) -> None:
    world = World(seeds=3)
    kept = kept_of(judge_all([BELOW], world.record, "seed", examples=world.find))
    assert kept_again(world, kept) is not None
    other = {"n": 7, "key": "0123456789abcdef"}.get(column, -0.5)
    assert kept_again(world, kept.assign(**{column: other})) is None


def test_what_was_kept_of_another_level_is_not_taken_up() -> None:
    world = World(seeds=3)
    kept = kept_of(judge_all([BELOW], world.record, "seed", examples=world.find))
    assert kept_again(world, kept, level=0.9) is None
    anew = judge_all([BELOW], world.record, "seed", 0.9, examples=world.find, kept=kept)[0].examples
    assert anew is not None and anew.low > kept["low"].item()


def test_what_was_kept_by_other_code_is_estimated_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(seeds=3)
    kept = kept_of(judge_all([BELOW], world.record, "seed", examples=world.find))
    project = Project(REPOSITORY, PACKAGES, DEFINED_BY, APART)
    path, source = project._files["reproduce.judge.intervals"]
    edited = source.replace(b"integers(n, size", b"integers(0, n, size")
    assert edited != source
    project._files["reproduce.judge.intervals"] = path, edited
    monkeypatch.setattr(keys, "project", lambda: project)
    verdicts._code.cache_clear()
    try:
        assert kept_again(world, kept) is None
    finally:
        verdicts._code.cache_clear()


def test_what_was_kept_of_other_values_is_not_taken_up() -> None:
    world = World(seeds=3)
    kept = kept_of(judge_all([BELOW], world.record, "seed", examples=world.find))
    changed = world.record.assign(value=world.record["value"] + 1e-6)
    assert judge_all([BELOW], changed, "seed", kept=kept)[0].examples is None
    assert judge_all([BELOW], world.record, "seed", kept=kept)[0].examples is not None


# Needed numbers.


def of_values(values: list[float], name: str = "A", shift: float = 0.0) -> tuple[Claim, pd.DataFrame]:
    """A claim that LPE-BSR is better, and its record: LPE-BSR − RTN has these values."""
    rows = []
    for seed, value in enumerate(values):
        for method, of_method in (("LPE-BSR", value), ("RTN", 0.0)):
            named = {"scale": "s", "substrate": name, "point": "SGD", "method": method, "size": 1}
            named |= {"number_system": "int4", "rounding": "", "seed": seed, "metric": "nll"}
            rows.append({**named, "value": of_method + shift, "memory_bits": 1, "backward_passes": 1})
    low, rtn = (Rows(name, "SGD", method, "int4", None, 1) for method in ("LPE-BSR", "RTN"))
    claim = Claim(name, "s", Side(high=0.0), "nats", lambda record: difference(low, rtn, record))
    return claim, pd.DataFrame(rows)


def needed(values: list[float]) -> str:
    claim, record = of_values(values)
    return judge_all([claim], record, "seed")[0].needed


def test_an_undecided_claim_says_how_many_seeds_would_decide_it() -> None:
    # Mean −.5, std 1: 34 pairs, as in the textbooks.
    assert needed([-1.5, 0.5, -1.5, 0.5, -0.5]) == "34"


def test_a_claim_that_hardly_differs_is_never_decided() -> None:
    assert needed([-1.01, 0.99, -1.01, 0.99, -0.01]) == "never"


def test_a_decided_claim_needs_no_more() -> None:
    assert needed([-1.0, -1.1, -0.9]) == ""


def test_one_seed_has_no_spread_to_tell_from() -> None:
    assert needed([-1.0]) == ""


def test_of_one_checkpoint_it_counts_examples_of_which_there_may_be_many() -> None:
    world = World(seeds=1)
    # Mean −.02, std 1: (2.8 / .02)² = 19,600.
    away = np.tile([1.0, -1.0], EXAMPLES // 2) - 0.02
    world.kept["RTN", 0] = np.arange(EXAMPLES), np.zeros(EXAMPLES)
    world.kept["LPE-BSR", 0] = np.arange(EXAMPLES), away
    values = world.record["method"].map({"RTN": 0.0, "LPE-BSR": away.mean()}).fillna(world.record["value"])
    world.record["value"] = values
    verdict = judged(world, "example")
    assert verdict.verdict == "undecided"
    assert int(verdict.needed) == pytest.approx(19_600, rel=0.02)


# Many claims.


def test_holm_takes_back_what_many_claims_find_by_chance() -> None:
    sure, borderline = [-1.0, -1.01, -0.99, -1.0], [-1.0, -0.6, -1.3, -0.4]
    pairs = [of_values(sure, "A"), *(of_values(borderline, name) for name in "BCD")]
    record = pd.concat([each for _, each in pairs], ignore_index=True)
    verdicts = judge_all([claim for claim, _ in pairs], record, "seed")
    assert [verdict.verdict for verdict in verdicts] == ["holds"] * 4
    assert [verdict.holm for verdict in verdicts] == ["holds", *["undecided"] * 3]
    # The smallest of three that are left.
    assert verdicts[1].found is not None
    assert verdicts[1].holm_level == pytest.approx(3 * verdicts[1].found.level)


def test_two_claims_of_the_very_same_rows_are_counted_once() -> None:
    claim, record = of_values([-1.0, -0.6, -1.3, -0.4])
    same = Claim("again", "another wording", claim.side, claim.unit, claim.of)
    alone, (first, second) = judge_all([claim], record, "seed")[0], judge_all([claim, same], record, "seed")
    assert (first.same_as, second.same_as) == ("", "A")
    assert first.holm_level == second.holm_level == alone.holm_level


def test_claims_that_are_not_run_count_for_nothing() -> None:
    claim, record = of_values([-1.0, -0.6, -1.3, -0.4])
    absent, _ = of_values([], "absent")
    verdicts = judge_all([claim, absent], record, "seed")
    assert (verdicts[0].holm, verdicts[1].holm, verdicts[1].verdict) == ("holds", "", "not run")
