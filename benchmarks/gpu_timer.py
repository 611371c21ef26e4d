"""Times jobs on a GPU: medians of repeats, by CUDA events, launched from Python or as replayed graphs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

REPEATS = 5
LEAST_SECONDS = 0.02
"""Least seconds that a timing of a job lasts, by calling it again."""

GRAPH = "graph"
LAUNCHED = "launched"
"""How a job is run: replayed as a CUDA graph, or launched from Python."""


@dataclass
class Timer:
    """A timer of jobs on one device: medians, and what the jobs' first calls took.

    Args:
        device: where the jobs run; on a GPU, by its own clock.
        repeats: timed rounds. least_seconds: what a timing lasts at least, by calling the job again.
        warm: call a job once, untimed, before each timing. Jobs of seconds do without.
    """

    device: torch.device
    repeats: int = REPEATS
    least_seconds: float = LEAST_SECONDS
    warm: bool = True
    first_calls: float = 0.0

    def medians(self, jobs: Mapping[str, Callable[[], object]], graph: bool) -> dict[str, float]:
        """Return median seconds of one call of each job, the jobs in turn; of its replayed graph on a GPU."""
        runs: dict[str, Callable[[], object]] = {}
        calls: dict[str, int] = {}
        for name, job in jobs.items():
            self.first_calls += self.seconds(job, 1, own_clock=False)
            runs[name] = self.graph_of(job) if graph and self.device.type == "cuda" else job
            calls[name] = 1
            if self.least_seconds:
                calls[name] = min(1000, math.ceil(self.least_seconds / self.seconds(runs[name], 1)))
        taken: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(self.repeats):
            for name, run in runs.items():
                # Untimed, so that what the job before has put out of the caches comes back.
                if self.warm:
                    run()
                taken[name].append(self.seconds(run, calls[name]))
        return {name: statistics.median(each) for name, each in taken.items()}

    def seconds(self, run: Callable[[], object], calls: int, own_clock: bool = True) -> float:
        """Return a call's seconds, of so many: by the GPU's events, or by this clock until all is done."""
        if self.device.type != "cuda" or not own_clock:
            self.wait()
            started = time.perf_counter()
            for _ in range(calls):
                run()
            self.wait()
            return (time.perf_counter() - started) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.wait()
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / calls

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def graph_of(self, job: Callable[[], object]) -> Callable[[], object]:
        """Return a function that replays the job's launches."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            job()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            job()
        replay: Callable[[], object] = graph.replay
        return replay
