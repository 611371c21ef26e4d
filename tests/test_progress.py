"""Progress: a bar of integers where there is a terminal, else a plain line every 30 seconds."""

from __future__ import annotations

import io

import pytest

from lpe.progress import EVERY, Progress, _duration


class Clock:
    """Shows the seconds that it is set to."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_where_there_is_no_terminal_a_line_comes_every_30_seconds() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(1200, "batches", "RTN", clock, log) as progress:
        for _ in range(1200):
            clock.seconds += 0.1
            progress.update()
    lines = log.getvalue().splitlines()
    assert EVERY == 30 and len(lines) in (3, 4)  # of 120 seconds, up to the rounding of their sum
    assert lines[0].startswith("RTN: 300 of 1,200 batches (25 %) after 30 s, about 1 min 30 s left")


def test_a_short_command_is_silent_where_there_is_no_terminal() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(10, "batches", "", clock, log) as progress:
        clock.seconds = 29.9
        progress.update(10)
    assert log.getvalue() == ""


def test_a_terminal_has_a_bar_of_integers_and_no_lines() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress(7, "batches", "", clock, terminal) as progress, progress.stage("RTN", 7):
        for _ in range(7):
            clock.seconds += 40
            progress.update()
    shown = terminal.getvalue()
    assert "RTN" in shown and "0/7 " in shown and "after" not in shown


def test_a_stage_counts_its_own_steps_and_no_more() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(10, "batches", "", clock, log) as progress:
        with progress.stage("FP32", 4):
            progress.update(9)  # such as passes that check something
            assert progress.done == 4
        with progress.stage("RTN", 6):
            progress.update()
        assert progress.done == 10  # a stage whose rows were there is done all the same
        progress.update()
        assert progress.done == 10


def test_what_an_earlier_run_did_says_nothing_of_the_time_that_is_left() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(100, "batches", "", clock, log) as progress:
        progress.found(80)
        clock.seconds = 30
        progress.update(10)
    assert log.getvalue() == "90 of 100 batches (90 %) after 30 s, about 30 s left\n"


def test_nothing_is_counted_of_no_total() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(None, "batches", "", clock, log) as progress, progress.stage("x", 0):
        clock.seconds = 100
        progress.update()
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3600, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
