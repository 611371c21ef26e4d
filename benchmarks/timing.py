"""Times jobs in turn, so that what slows the machine slows them all: medians of repeats."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    jobs: Mapping[str, Callable[[int], object]],
    repeats: int,
    calls: Mapping[str, int] | None = None,
    warm: bool = True,
) -> dict[str, float]:
    """Time one call of each job, the jobs in turn: median seconds.

    Args:
        jobs: by name; each is given the number of the round, 0 in one that is not timed.
        repeats: timed rounds. calls: how often a job is called in a round (1): what takes microseconds needs
            many.
        warm: call a job once, untimed, before each timing, for what the job before has put out of the caches,
            and begin with a round that is not timed. Jobs of half a minute do without.
    """
    calls = calls or {}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(0 if warm else 1, repeats + 1):
        for name, job in jobs.items():
            many = calls.get(name, 1)
            if warm:
                job(repeat)
            started = time.perf_counter()
            for _ in range(many):
                made = job(repeat)
                # Memory of the one before is given back first, as it is between an ensemble's members.
                del made
            taken = (time.perf_counter() - started) / many
            if repeat:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}
