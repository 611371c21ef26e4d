"""A recipe that holds the one that trains: its unit is measured, and its key is of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from lpe.errors import InputError
from lpe.records import Records
from reproduce.study.families import SnapshotTraining
from reproduce.study.measurements import key_of, measure
from reproduce.study.run import Run
from reproduce.study.scale import Family, FamilyRecipe, Scale, Substrate
from reproduce.study.session import Session
from reproduce.study.units import Unit

Opened = Callable[[Scale], Session]

CYCLES = SnapshotTraining(
    cycles=2, epochs_per_cycle=1, batch=20, learning_rate=0.05, momentum=0.9, weight_decay=1e-4
)


@dataclass(frozen=True)
class Held:
    """SSE by a recipe that it holds."""

    cycles: SnapshotTraining

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return the recipe's family."""
        return self.cycles.family(run, substrate, seed)


@dataclass(frozen=True)
class Hidden:
    """SSE by a recipe that it does not say."""

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return the recipe's family."""
        return CYCLES.family(run, substrate, seed)


def with_sse(toy: Scale, recipe: FamilyRecipe) -> tuple[Scale, Unit]:
    """Return the toy scale with SSE by a recipe alone, and its unit."""
    assert toy.main is not None
    main = replace(toy.main, families={"SSE": recipe})
    return replace(toy, main=main), Unit(main.name, "SSE", 0)


def test_a_recipe_that_holds_the_one_that_trains_is_measured(toy: Scale, session_of: Opened) -> None:
    scale, unit = with_sse(toy, Held(CYCLES))
    session = session_of(scale)
    measure(session, unit)
    assert "SSE" in set(Records(session.records[unit]).select()["method"])
    longer, _ = with_sse(toy, Held(replace(CYCLES, cycles=3)))
    assert key_of(session_of(longer), unit) != key_of(session, unit)


def test_a_training_that_the_recipe_does_not_hold_is_refused(toy: Scale, session_of: Opened) -> None:
    scale, unit = with_sse(toy, Hidden())
    with pytest.raises(InputError, match="measured on trainings that its key does not hold"):
        measure(session_of(scale), unit)
