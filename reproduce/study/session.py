"""A run of a scale: its seeds, its folders, its working records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lpe import tracking
from lpe.allocator import keep_freed_memory
from lpe.errors import InputError
from lpe.evaluation.landscape import Plane, Surface
from lpe.store import Store
from lpe.writing import make_writable, write_text_atomic
from reproduce.study.costs import description_of
from reproduce.study.run import Run, device_of
from reproduce.study.scale import Scale, Substrate
from reproduce.study.units import Unit


class Engine(Protocol):
    """What runs independent pieces of work in other processes."""

    def ahead(
        self, session: Session, surface: Surface, plane: Plane, xs: np.ndarray, ys: np.ndarray
    ) -> Surface:
        """Return a surface that looks its values on a grid of a plane up: other processes measure them."""
        ...


@dataclass(kw_only=True)
class Session(Run):
    """A run of a script: what it was asked, and where results go.

    Args:
        seeds: training seeds. claim_seeds: of what a training-free claim is judged on.
        out: folder of the figures and their records. working: folder of the working records.
        records: the working record of each unit that this run has asked for.
        measured: the working records, also of landscapes, that were taken: a figure sums their costs.
        engine: measures lines of landscapes in other processes; None: this process does.
    """

    scale: Scale
    seeds: list[int]
    claim_seeds: list[int]
    out: Path
    working: Path
    records: dict[Unit, Path] = field(default_factory=dict)
    measured: set[Path] = field(default_factory=set)
    engine: Engine | None = None

    @property
    def main(self) -> Substrate:
        """The main substrate. A figure that asks for it is one that the scale offers."""
        assert self.scale.main is not None
        return self.scale.main

    def ahead(self, surface: Surface, plane: Plane, xs: np.ndarray, ys: np.ndarray) -> Surface:
        """Return the surface, or where there is an engine one with the same values that it measures."""
        return surface if self.engine is None else self.engine.ahead(self, surface, plane, xs, ys)

    def describe(self, unit: Unit, described: Mapping[str, object]) -> None:
        """Keep how a given model sees its data beside the rows that are measured on it."""
        write_text_atomic(description_of(self.records[unit]), json.dumps(described))

    def descriptions(self) -> dict[str, object]:
        """Return how the given models of the run's units saw their data when they were measured.

        Raises:
            InputError: a description that is damaged.
        """
        kept = {unit.substrate: description_of(path) for unit, path in self.records.items()}
        return {name: _described(path) for name, path in kept.items() if path.is_file()}


def _described(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = path.with_suffix("").with_suffix(".csv")
        raise InputError(
            f"{path} is damaged; remove it and {record.name} beside it, and what they are of is measured anew"
        ) from None


TUNING_SEED = 100
"""The first seed of the sweeps. Training seeds lie below: no seed that is judged chooses its own recipe."""


def seeds_asked(chosen: Scale, count: int | None) -> tuple[list[int], list[int]]:
    """Return the seeds of trainings and of training-free claims: the scale's, or 0 … count − 1 for both."""
    if count is not None and count < 1:
        raise InputError(f"--seeds must be 1 or more, not {count}")
    if count is not None and count > TUNING_SEED:
        raise InputError(f"--seeds must be at most {TUNING_SEED}, not {count}: later seeds tune the recipes")
    return list(range(count or chosen.seeds)), list(range(count or chosen.claim_seeds))


@contextmanager
def open_session(
    name: str,
    chosen: Scale,
    count: int | None,
    out: Path,
    wandb_mode: str | None,
    working: Path,
    store: Store,
    quiet: bool = False,
    engine: Engine | None = None,
) -> Iterator[Session]:
    """Open a session over ``count`` training seeds (None: the scale's), and its W&B run while it lasts."""
    keep_freed_memory()
    if chosen.threads is not None:
        # One fixed number of threads: sums are taken in one order, and two runs give the same bytes.
        torch.set_num_threads(chosen.threads)
    seeds, claim_seeds = seeds_asked(chosen, count)
    make_writable(working)
    config = {"scale": chosen.described(), "seeds": seeds}
    mode = tracking.USUAL if wandb_mode is None else wandb_mode
    with tracking.start(mode, "low-precision-ensembling", f"{name}-{chosen.name}", config) as tracker:
        yield Session(
            store=store,
            tracker=tracker,
            threads=chosen.threads,
            device=device_of(chosen.device),
            quiet=quiet,
            scale=chosen,
            seeds=seeds,
            claim_seeds=claim_seeds,
            out=out,
            working=working,
            engine=engine,
        )
