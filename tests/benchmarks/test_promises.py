"""How the benchmarks time, and when they say that a promise is kept: on a clock and numbers made up here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import construction, evaluation, memory, packed, scaling
from benchmarks.timing import medians


class Clock:
    """A clock that only jobs move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def job(self, name: str, seconds: Callable[[int], float]) -> Callable[[int], None]:
        """A job that takes so many seconds in a round."""

        def run(repeat: int) -> None:
            self.ran.append(name)
            self.now += seconds(repeat)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: made.now)
    return made


def test_a_time_is_the_median_of_the_timed_rounds(clock: Clock) -> None:
    # Round 0 is not timed: with it the median would be 3.
    of_rounds = (100.0, 9.0, 2.0, 1.0)
    assert medians({"a": clock.job("a", of_rounds.__getitem__)}, 3) == {"a": 2.0}


def test_a_time_is_of_one_call(clock: Clock) -> None:
    found = medians({"a": clock.job("a", lambda _: 2.0)}, 3, {"a": 5})
    assert found == {"a": 2.0}


def test_the_call_that_warms_is_not_timed(clock: Clock) -> None:
    first = iter(range(100))

    def every_second_one_slow(_: int) -> float:
        return 50.0 if next(first) % 2 == 0 else 1.0

    assert medians({"a": clock.job("a", every_second_one_slow)}, 3) == {"a": 1.0}


def test_jobs_run_in_turn(clock: Clock) -> None:
    jobs = {name: clock.job(name, lambda _: 1.0) for name in "ab"}
    medians(jobs, 2, warm=False)
    assert clock.ran == ["a", "b", "a", "b"]


def test_an_own_seed_is_given_to_every_round(clock: Clock) -> None:
    rounds: list[int] = []
    medians({"a": rounds.append}, 2, warm=False)
    assert rounds == [1, 2]


# Promises: kept at the bound, broken just beyond it.

Verdict = Callable[[Callable[[list[str]], int]], str]


@pytest.fixture
def verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verdict:
    """Runs a benchmark: "kept" or "broken", which its exit code and what it prints say alike."""
    for module in (construction, evaluation, memory, packed, scaling):
        # They are of a machine.
        monkeypatch.setattr(module, "conditions", lambda _: "")

    def verdict(main: Callable[[list[str]], int]) -> str:
        by_code = {0: "kept", 1: "broken"}[main(["--out", str(tmp_path)])]
        printed = "broken" if "broken" in capsys.readouterr().out else "kept"
        assert printed == by_code, "printed, and by the exit code"
        return by_code

    return verdict


def construction_rows(**changed: float) -> list[dict[str, object]]:
    """What every promise of the construction names, at its bound; rows that write float32 far below."""
    rows: list[dict[str, object]] = []
    for weights, times_plain in ((2**24, 30.0), (100_000, 10.0)):
        for what, copy in ((construction.MEMBER, 0.2), (construction.NEXT_COUPLED, 0.4)):
            row = {"what": what, "weights": weights, "repeats": 5, "median_seconds": 1.0}
            row |= {"million_weights_per_second": 1.0}
            if weights == 2**24 and what in changed:
                copy = changed[what]
            at_bound = {"writes": "codes", "of_a_copy": copy, "times_plain": times_plain}
            rows += [{**row, "writes": "float32", "of_a_copy": 1e-3, "times_plain": 1e-3}]
            rows += [{**row, **at_bound}]
        for what, large in ((construction.ROUND_WEIGHTS, 20.0), (construction.IN_TURN, 30.0)):
            times = changed.get(what, large if weights == 2**24 else 10.0)
            rows += [{**row, "what": what, "writes": "float32", "of_a_copy": 1e-3, "times_plain": times}]
    return rows


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "kept"),
        ({construction.MEMBER: 0.19}, "broken"),
        ({construction.NEXT_COUPLED: 0.39}, "broken"),
        ({construction.ROUND_WEIGHTS: 19.9}, "broken"),
        ({construction.IN_TURN: 29.9}, "broken"),
    ],
    ids=[
        "at the bounds",
        "a slower member",
        "slower coupled members",
        "slower round_weights",
        "a slower turn",
    ],
)
def test_construction_keeps_its_promises_at_their_bounds(
    changed: dict[str, float], expected: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = construction_rows(**changed)
    monkeypatch.setattr(construction, "measure", lambda shape, _: rows if shape == (250, 400) else [])
    monkeypatch.setattr(construction, "measured_on_xeon", lambda _: False)
    assert verdict(construction.main) == expected


def test_less_is_promised_of_large_weights_on_a_xeon(tmp_path: Path) -> None:
    rows = construction_rows(**construction.ON_XEON)
    pd.DataFrame(rows).to_csv(tmp_path / "construction.csv")
    assert all(construction.promise_kept(tmp_path, promise, True) for promise in construction.PROMISES)
    kept = [construction.promise_kept(tmp_path, promise) for promise in construction.PROMISES]
    assert kept.count(False) == len(construction.ON_XEON)


@pytest.mark.parametrize(("times", "expected"), [(1.05, "kept"), (1.051, "broken")])
def test_an_evaluation_may_take_1_05_times_its_plain_passes(
    times: float, expected: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = {evaluation.PLAIN: 1.0, evaluation.MEMBER: times, evaluation.COPIES: 9.0}
    common = {"batch": 1, "members": 20, "repeats": 3, "median_seconds": 1.0}
    rows = [{**common, "what": what, "times_plain": value} for what, value in of.items()]
    monkeypatch.setattr(evaluation, "measure", lambda: rows)
    assert verdict(evaluation.main) == expected


@pytest.mark.parametrize(("beyond", "expected"), [(0.0, "kept"), (0.01, "broken")])
def test_members_may_take_as_much_memory_as_is_promised(
    beyond: float, expected: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = {"plain": 0.0, "members": memory.PROMISE + beyond, "copies": 9.0}

    def measured(case: str) -> dict[str, float]:
        found = dict.fromkeys(("member_bytes", "kernels_bytes", "plain_peak_bytes"), 1.0)
        kinds = ("above_plain_members", "lowest_above_plain_members", "highest_above_plain_members")
        return {**found, **dict.fromkeys(kinds, above[case])}

    monkeypatch.setattr(memory, "measure", measured)
    assert verdict(memory.main) == expected


def test_memory_is_what_a_case_adds_to_its_own_process_in_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "REPEATS", 3)
    peaks = iter([150, 400, 200])

    def child(_: str) -> dict[str, int]:
        return {"member_bytes": 50, "kernels_bytes": 7, "plain_peak_bytes": 100, "peak_bytes": next(peaks)}

    monkeypatch.setattr(memory, "run_in_child", child)
    found = memory.measure("members")
    assert found["above_plain_members"] == 2.0
    assert (found["lowest_above_plain_members"], found["highest_above_plain_members"]) == (1.0, 6.0)


@pytest.mark.parametrize(("times", "expected"), [(1.1, "kept"), (1.11, "broken")])
def test_rounding_may_take_1_1_times_as_long_a_weight_at_the_worst_size(
    times: float, expected: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"weights": 1024, "repeats": 3, "median_seconds": 1.0, "nanoseconds": 1.0}
    # The last is not the worst one.
    rows = [
        {**common, "members": n, "times_the_smallest": value} for n, value in enumerate((1.0, times, 0.9))
    ]
    monkeypatch.setattr(scaling, "measure", lambda: rows)
    assert verdict(scaling.main) == expected


@pytest.mark.parametrize(("bits_a_weight", "expected"), [(8.1, "kept"), (8.11, "broken")])
def test_a_seeded_file_at_int_5_may_take_8_1_bits_a_weight(
    bits_a_weight: float, expected: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verdict_of_files(verdict, monkeypatch, seeded=bits_a_weight) == expected


@pytest.mark.parametrize(("bits_a_weight", "expected"), [(15.1, "kept"), (15.11, "broken")])
def test_ten_members_at_int_5_as_planes_may_take_15_1_bits_a_weight(
    bits_a_weight: float, expected: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verdict_of_files(verdict, monkeypatch, planes=bits_a_weight) == expected


def verdict_of_files(
    verdict: Verdict, monkeypatch: pytest.MonkeyPatch, seeded: float = 8.1, planes: float = 15.1
) -> str:
    """The verdict on files of these bits a weight, beside others of more."""
    common: dict[str, object] = dict.fromkeys(packed.COLUMNS, 1)
    files = (
        ("members", 5, 20, 100.0),
        ("seeded", 3, 20, 100.0),
        ("seeded", 5, 20, seeded),
        ("planes", 5, 20, 100.0),
        ("planes", 5, 10, planes),
    )
    rows = [
        {**common, "kind": kind, "base": "", "bits": bits, "members": members, "bits_a_weight": taken}
        for kind, bits, members, taken in files
    ]
    monkeypatch.setattr(packed, "measure", lambda: rows)
    return verdict(packed.main)
