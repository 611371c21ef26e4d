"""Times of members: what is counted and to whom, by a clock of the test's own."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.evaluation import timing
from lpe.evaluation.timing import MemberTimer


class Clock:
    """Stands still unless told to go on."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


class Slow(nn.Module):
    """A forward pass takes ``seconds``."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock = clock
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds
        return x


class SlowEnsemble(Ensemble):
    """Making a member takes 10 s, member m's pass over a batch 1 + m s."""

    def __init__(self, size: int, clock: Clock) -> None:
        super().__init__(size)
        self.clock = clock

    def member(self, index: int) -> nn.Module:
        self.clock.now += 10
        return Slow(self.clock, 1 + index)

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        return 0

    def describe(self) -> str:
        return ""


BATCHES = [(torch.eye(2), torch.tensor([0, 1]))] * 3


def test_evaluate_gives_each_member_the_time_of_making_and_running_it(clock: Clock) -> None:
    timer = MemberTimer(3)
    lpe.evaluate(SlowEnsemble(3, clock), BATCHES, chunk_bytes=0, timer=timer)
    # A chunk is one batch: each member is made three times, and runs three times.
    assert timer.seconds == [33, 36, 39]


def test_a_member_that_runs_over_a_chunk_is_made_once_for_it(clock: Clock) -> None:
    timer = MemberTimer(2)
    lpe.evaluate(SlowEnsemble(2, clock), BATCHES, timer=timer)
    assert timer.seconds == [13, 16]


def test_milliseconds_per_example_are_of_the_first_n_members_together(clock: Clock) -> None:
    timer = MemberTimer(3)
    for index, seconds in enumerate((1.0, 2.0, 4.0)):
        with timer.member(index):
            clock.now += seconds
    assert timer.milliseconds_per_example(10) == [100, 300, 700]


def test_members_that_run_together_have_equal_shares(clock: Clock) -> None:
    timer = MemberTimer(4)
    for seconds in (2.0, 6.0):
        with timer.all_members():
            clock.now += seconds
    assert timer.seconds == [2, 2, 2, 2]


def test_the_timer_changes_no_number(clock: Clock) -> None:
    without = lpe.evaluate(SlowEnsemble(2, clock), BATCHES)
    timed = lpe.evaluate(SlowEnsemble(2, clock), BATCHES, timer=MemberTimer(2))
    pd.testing.assert_frame_equal(timed, without)


def test_a_timer_that_is_not_used_stays_at_nought() -> None:
    assert MemberTimer(2).milliseconds_per_example(5) == [0, 0]


def test_time_that_goes_to_another_member_is_seen(clock: Clock) -> None:
    # The injected fault: a timer that gives every member's time to the first.
    class Misattributing(MemberTimer):
        def member(self, index: int) -> AbstractContextManager[None]:
            return super().member(0)

    timer = Misattributing(3)
    lpe.evaluate(SlowEnsemble(3, clock), BATCHES, chunk_bytes=0, timer=timer)
    assert timer.seconds == [33 + 36 + 39, 0, 0]


@pytest.mark.parametrize("members", [0, -1])
def test_a_timer_of_no_members_is_refused(members: int) -> None:
    with pytest.raises(lpe.InputError, match="one member or more"):
        MemberTimer(members)


def test_no_examples_have_no_time_each() -> None:
    with pytest.raises(lpe.InputError, match="one example or more"):
        MemberTimer(1).milliseconds_per_example(0)


def test_a_timer_of_another_size_is_refused(clock: Clock) -> None:
    with pytest.raises(lpe.InputError, match="timer is of 2 members, the ensemble has 3"):
        lpe.evaluate(SlowEnsemble(3, clock), BATCHES, timer=MemberTimer(2))
