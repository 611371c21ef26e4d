"""How far a long command is: a bar where there is a terminal, else a plain line every 30 seconds.

A log has lines of its own, which a bar that is redrawn would spoil, and silence in it reads as a hang.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

EVERY = 30.0
"""Seconds from one plain line to the next."""


class Progress:
    """Counts steps towards a total, and tells of it on standard error; use it as a context.

    Attributes:
        total, unit, done: steps, what one is, and those that are done. counting: whether steps are counted.

    Args:
        total: steps; None: nothing is told. unit: what a step is, in the plural. what: that is under way, see
            :meth:`stage`. clock: seconds, rising. stream: None: standard error.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        what: str = "",
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self.counting = True
        self._what, self._clock = what, clock
        self._stream = sys.stderr if stream is None else stream
        self._begun = self._told = clock()
        self._found = 0  # steps that were done before this run
        self._most = total or 0  # of the stage
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.total and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                desc=self._what or None,
                unit=f" {self.unit}",
                leave=False,
                file=self._stream,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def update(self, steps: int = 1) -> None:
        """Count steps; those beyond the stage's are not counted."""
        if self.counting:
            self._go_to(min(self.done + steps, max(self._most, self.done)))

    def found(self, steps: int) -> None:
        """Count steps of an earlier run, which say nothing of how long a step takes."""
        self._found += steps
        self.update(steps)

    @contextmanager
    def stage(self, what: str, steps: int) -> Iterator[None]:
        """Name what is under way; once the block is over its steps are done, however many were counted."""
        self._what, before = what, self.done
        self._most = before + steps
        if self._bar is not None:
            self._bar.set_description(what)
        yield
        self._found += max(self._most - self.done, 0)
        self._go_to(self._most)
        self._most = self.total or 0

    def _go_to(self, done: int) -> None:
        steps, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.update(steps)
        elif self.total and (now := self._clock()) - self._told >= EVERY:
            self._told = now
            print(self._line(now - self._begun), file=self._stream, flush=True)

    def _line(self, seconds: float) -> str:
        assert self.total is not None
        share = f"{self.done:,} of {self.total:,} {self.unit} ({100 * self.done // self.total} %)"
        own = self.done - self._found
        left = f", about {_duration(seconds * (self.total - self.done) / own)} left" if own > 0 else ""
        return f"{self._what + ': ' if self._what else ''}{share} after {_duration(seconds)}{left}"


def _duration(seconds: float) -> str:
    """Return a duration to two units: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds_left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {seconds_left} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min"
