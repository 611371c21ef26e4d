"""What the benchmarks make of the seconds they measure: on seconds and networks made up here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import benchmarks.__main__ as every
import lpe
from benchmarks import compiled, construction, evaluation, gpu, language, on_the_fly, packed, scaling
from lpe.records import COLUMNS, write_table


class Clock:
    """A clock that jobs move, and the passes of a network by which it is moved; a copy is the clock itself.

    Args:
        passes: seconds that each pass takes.
    """

    def __init__(self, passes: Iterable[float] = ()) -> None:
        self.now, self.ran = 0.0, 0
        self._passes = iter(passes)

    def __deepcopy__(self, _: object) -> Clock:
        return self

    def tick(self, seconds: float) -> None:
        self.now += seconds

    def run_a_pass(self) -> None:
        self.ran += 1
        self.tick(next(self._passes))


class Slow(nn.Module):
    """A linear layer whose passes a clock counts and times."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.linear, self.clock = nn.Linear(16, 4), clock

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.clock.run_a_pass()
        outputs: torch.Tensor = self.linear(inputs)
        return outputs


def by_what(rows: list[dict[str, object]], column: str) -> dict[object, Any]:
    """A column of the rows of codes, or of all rows where there are no others."""
    return {row["what"]: row[column] for row in rows if row.get("writes", "codes") == "codes"}


# Construction.

CONSTRUCTION = {
    construction.COPY: 2.0,
    construction.PLAIN: 30.0,
    construction.BERNOULLI: 50.0,
    construction.NEAREST: 3.0,
    construction.MEMBER: 1.0,
    construction.MEMBER_VALUES: 7.0,
    construction.ROUND_WEIGHTS: 15.0,
    construction.ENCODE: 5.0,
    construction.IN_TURN: 6.0,
    construction.FROM_CODES: 9.0,
    construction.COUPLED: 0.5,
    construction.NEXT_MEMBER: 21.0,
    construction.NEXT_COUPLED: 1.5,
}
"""Seconds of each job. "Each further" is of 11 members together."""


@pytest.fixture
def constructed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    for peer in ("qpytorch", "gfloat_stochastic"):
        monkeypatch.setattr(construction, peer, lambda *_: "not here")

    def medians(jobs: Mapping[str, object], *_: object) -> dict[str, float]:
        assert jobs.keys() == CONSTRUCTION.keys()
        return dict(CONSTRUCTION)

    monkeypatch.setattr(construction, "medians", medians)
    return construction.measure((4, 8), {})


def test_twice_as_fast_as_a_copy_is_two_of_a_copy(constructed: list[dict[str, object]]) -> None:
    assert by_what(constructed, "of_a_copy")[construction.MEMBER] == 2.0


def test_a_member_is_compared_with_plain_torchs_floor_and_rand(constructed: list[dict[str, object]]) -> None:
    assert by_what(constructed, "times_plain")[construction.MEMBER] == 30.0


def test_a_further_member_is_a_tenth_of_what_ten_more_take(constructed: list[dict[str, object]]) -> None:
    seconds = by_what(constructed, "median_seconds")
    assert seconds[construction.NEXT_MEMBER] == pytest.approx(2.0)
    assert seconds[construction.NEXT_COUPLED] == pytest.approx(0.1)


def test_weights_a_second_are_in_millions(constructed: list[dict[str, object]]) -> None:
    found = by_what(constructed, "million_weights_per_second")[construction.COUPLED]
    assert found == pytest.approx(32 / 0.5 / 1e6)


# Scaling.


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """3 ns a weight and member, but 6 where ten members are made of 2,048 weights."""

    def medians(jobs: Mapping[str, object], *_: object, **__: object) -> dict[str, float]:
        seconds = {}
        for name in jobs:
            weights, members = (int(word) for word in name.replace(",", "").split() if word.isdigit())
            seconds[name] = 3e-9 * weights * members * (2 if (weights, members) == (2048, 10) else 1)
        return seconds

    monkeypatch.setattr(scaling, "medians", medians)
    return pd.DataFrame(scaling.measure((1024, 2048))).set_index(["weights", "members"])


def test_time_is_a_weight_and_a_member_in_nanoseconds(scaled: pd.DataFrame) -> None:
    assert scaled["nanoseconds"][1024, 100] == pytest.approx(3.0)


def test_sizes_are_compared_with_the_first_and_one_member(scaled: pd.DataFrame) -> None:
    assert scaled["times_the_smallest"][2048, 10] == pytest.approx(2.0)


# Evaluation.


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, object]], dict[str, int]]:
    """The rows, and how often each job runs the network."""
    clock = Clock(itertools.repeat(1.0))
    ran: dict[str, int] = {}

    def medians(jobs: Mapping[str, Callable[[int], object]], *_: object, **__: object) -> dict[str, float]:
        for name, job in jobs.items():
            before = clock.ran
            job(1)
            ran[name] = clock.ran - before
        return {evaluation.PLAIN: 2.0, evaluation.MEMBER: 2.1, evaluation.COPIES: 9.0}

    monkeypatch.setattr(evaluation, "vit_small", lambda: Slow(clock).eval())
    batch = torch.ones(2, 16), torch.zeros(2, dtype=torch.int64)
    monkeypatch.setattr(evaluation, "image_batch", lambda _: batch)
    monkeypatch.setattr(evaluation, "medians", medians)
    return evaluation.measure(), ran


def test_an_evaluation_is_compared_with_a_pass_a_member(
    evaluated: tuple[list[dict[str, object]], dict[str, int]],
) -> None:
    _, ran = evaluated
    assert ran[evaluation.PLAIN] == ran[evaluation.COPIES] == evaluation.MEMBERS


def test_a_slower_evaluation_takes_more_than_one_time_plain(
    evaluated: tuple[list[dict[str, object]], dict[str, int]],
) -> None:
    rows, _ = evaluated
    assert by_what(rows, "times_plain")[evaluation.MEMBER] == pytest.approx(1.05)


# Files.


def test_bits_a_weight_leave_out_what_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "vit_small", lambda: nn.Linear(64, 16).eval())
    monkeypatch.setattr(packed, "WIDTHS", [5])
    rows = packed.measure()
    seeded = next(row for row in rows if row["kind"] == "seeded")
    assert (seeded["quantised_weights"], seeded["leftover_bytes"]) == (64 * 16, 4 * 16)
    # A code of 8 bits, and a scale of 32 bits for each output channel of 64 weights.
    assert seeded["bits_a_weight"] == 8 + 32 / 64
    # As planes a code of 5 bits once, and a bit of each member.
    planes = {row["members"]: row["bits_a_weight"] for row in rows if row["kind"] == "planes"}
    assert planes == {n: 5 + n + 32 / 64 for n in (1, 2, 5, 10, 20)}


# Compiling.


def test_a_pass_is_timed_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock([10.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr("benchmarks.compiled.time.perf_counter", lambda: clock.now)
    ensemble = lpe.LowPrecisionEnsemble(Slow(clock).eval(), lpe.Int(5), 5)
    assert compiled.passes(ensemble, torch.ones(1, 16), compiled=False) == (10.0, 2.0)


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The row of three repeats, whose first passes take 21, 6 and 4 seconds and later ones half a second."""
    first = iter([21.0, 6.0, 4.0])
    monkeypatch.setattr(compiled, "NETWORKS", {"net": lambda: (nn.Linear(16, 4), torch.ones(1, 16))})
    monkeypatch.setattr(
        compiled, "passes", lambda *_, compiled: (next(first), 0.5) if compiled else (1.0, 1.0)
    )
    return compiled.measure("net")


def test_compiling_takes_what_the_first_pass_takes_beyond_a_later_one(compiling: dict[str, object]) -> None:
    assert compiling["compile_seconds"] == 20.5


def test_compiling_from_the_cache_is_of_the_repeats_that_found_code_there(
    compiling: dict[str, object],
) -> None:
    assert compiling["compile_seconds_from_cache"] == 4.5


# Members at once.


def test_ways_are_timed_by_the_median_without_the_round_for_warmth(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seconds = Clock(), iter([100.0, 9.0, 1.0, 2.0])
    monkeypatch.setattr("benchmarks.on_the_fly.time.process_time", lambda: clock.now)
    assert on_the_fly.medians([lambda: clock.tick(next(seconds))], 3) == [2.0]


def test_one_by_one_and_together_are_told_apart_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(16, 4)
    monkeypatch.setattr(
        on_the_fly, "NETWORKS", {"net": (lambda: net, lambda count: torch.ones(count, 16), (1,))}
    )
    monkeypatch.setattr(on_the_fly, "ENSEMBLES", (2,))
    monkeypatch.setattr(on_the_fly, "BATCHES", (1,))
    monkeypatch.setattr(on_the_fly, "medians", lambda *_: [0.002, 0.001])
    (row,) = on_the_fly.evaluate_rows()
    assert (row["one_by_one_ms"], row["together_ms"]) == (2.0, 1.0)


def test_the_table_shows_together_over_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_the_fly, "conditions", lambda _: "")
    layer = {"outputs": 4, "inputs": 16, "stored": "int8", "members": 2, "positions": 1, "resident_ms": 1.0}
    layer |= {"dequantise_ms": 4.0, "on_the_fly_512kib_ms": 1.0}
    pd.DataFrame([layer]).to_csv(tmp_path / "on_the_fly_layer.csv")
    whole = {"network": "net", "weights": 64, "members": 2, "examples": 1, "batches": 1}
    whole |= {"one_by_one_ms": 2.0, "together_ms": 1.5, "auto": "together"}
    pd.DataFrame([whole]).to_csv(tmp_path / "on_the_fly_evaluate.csv")
    planes = {"outputs": 4, "inputs": 16, "members": 2, "positions": 1, "one_product_ms": 2.0}
    planes |= {"resident_ms": 5.0, "generator_ms": 42.6, "planes_ms": 6.2}
    pd.DataFrame([planes | {"resident_bytes": 512, "planes_bytes": 40}]).to_csv(
        tmp_path / "on_the_fly_planes.csv"
    )
    text = on_the_fly.table_text(tmp_path)
    assert "0.25" in text and "0.75" in text
    assert "2.5" in text and "21.3" in text and "3.1" in text and "12.8" in text


def test_bit_planes_are_told_with_their_bytes_beside_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_the_fly, "PLANES_SHAPE", (8, 16))
    monkeypatch.setattr(on_the_fly, "PLANES_MEMBERS", 3)
    monkeypatch.setattr(on_the_fly, "POSITIONS", (1,))
    monkeypatch.setattr(on_the_fly, "medians", lambda ways: [0.001 * n for n in range(1, len(ways) + 1)])
    (row,) = on_the_fly.planes_rows()
    times = [row[f"{way}_ms"] for way in ("one_product", "resident", "generator", "planes")]
    assert times == pytest.approx([1, 2, 3, 4])
    # 5 + 3 bits a weight, a scale for each of 8 outputs, and the bytes that may be read beside them.
    assert (row["resident_bytes"], row["planes_bytes"]) == (4 * 3 * 128, 128 + 4 * 8 + 16)


# The language model's.


def test_the_milliseconds_beside_a_size_are_its_own(tmp_path: Path) -> None:
    task = next(task for task in language.TASKS if task != "tinystories")
    rows, times = [], {}
    for measured in language.measurements():
        times[f"{measured.method} {measured.number_system}"] = [10.0 * n for n in range(1, measured.size + 1)]
        key = {"scale": language.SCALE, "substrate": language._substrate(task), "point": "", "seed": 0}
        key |= {"method": measured.method, "number_system": measured.number_system}
        rows += [
            {**key, "rounding": measured.rounding, "size": size, "metric": metric, "value": 0.5}
            for size in range(1, measured.size + 1)
            for metric in ("nll", "err", "ece", "ambiguity")
        ]
    of_memory = {"memory_bits": 8, "backward_passes": 0}
    write_table([{**row, **of_memory} for row in rows], tmp_path / f"{language.RECORD}.csv", COLUMNS)
    told = {"config": {"milliseconds_per_example": {task: times}}}
    (tmp_path / f"{language.RECORD}.json").write_text(json.dumps(told), encoding="utf-8")
    lines = language.table_text(task, tmp_path).splitlines()
    shown = {line.split()[-1] for line in lines if f"({language.MEMBERS})" in line}
    assert shown == {f"{10 * language.MEMBERS:.1f}"}


# The GPU's.


class Bytes(TorchDispatchMode):
    """Counts the bytes that copies read and write."""

    moved = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.copy_.default:
            self.moved += sum(each.numel() * each.element_size() for each in args[:2])
        return function(*args, **(kwargs or {}))


def test_a_copy_moves_as_many_bytes_as_the_rounding_that_is_compared_with_it() -> None:
    moved = {}

    class Runs(gpu.Timer):
        def medians(self, jobs: Mapping[str, Callable[[], object]], graph: bool) -> dict[str, float]:
            for name, job in jobs.items():
                if name.startswith(gpu.COPY):
                    with Bytes() as counted:
                        job()
                    moved[name] = counted.moved
            return {name: 1.0 + place for place, name in enumerate(jobs)}

    rows = gpu.bandwidth(Runs(torch.device("cpu")), 256, columns=64)
    lengths = {row["bytes"] for row in rows if row["what"] != gpu.COPY}
    assert moved == {f"{gpu.COPY} {length}": length for length in lengths}


def test_a_gpus_timer_takes_the_median_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("benchmarks.gpu.time.perf_counter", lambda: clock.now)
    # The call that compiles, that by which the calls of a timing are counted; an untimed call before each
    # of three timings, and four calls in it.
    rounds = [[50.0] + [seconds] * 4 for seconds in (7.0, 1.0, 2.0)]
    seconds = iter([100.0, 0.25, *(each for of_round in rounds for each in of_round)])
    timer = gpu.Timer(torch.device("cpu"), repeats=3, least_seconds=1.0)
    assert timer.medians({"job": lambda: clock.tick(next(seconds))}, graph=False) == {"job": 2.0}
    assert timer.first_calls == 100.0


def test_a_gpus_events_count_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None: ...

        def synchronize(self) -> None: ...

        def elapsed_time(self, _: Event) -> float:
            return 500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert gpu.Timer(torch.device("cuda")).seconds(lambda: None, 2) == 0.25


# All of them.


def test_the_quick_benchmarks_end_with_the_worst_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every, "_run", lambda name, _: 1 if name == list(every.QUICK)[1] else 0)
    assert every.main([]) == 1
