"""The cost picture's deep ensemble: cascades where a window can be chosen, and the seeds that have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from lpe.records import Records
from reproduce.study.cost_units import known_deep
from reproduce.study.families import DeepEnsembleTraining
from reproduce.study.measurements import measure
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import COST_RIVALS, Unit

Opened = Callable[[Scale], Session]


class OfOtherSplits(DeepEnsembleTraining):
    """A deep ensemble whose members were trained on what validates the seed."""

    saw_validation = True


@pytest.mark.parametrize(("recipe", "cascades"), [(DeepEnsembleTraining, True), (OfOtherSplits, False)])
def test_a_deep_ensemble_has_cascades_where_no_member_has_trained_on_validation_examples(
    recipe: type[DeepEnsembleTraining], cascades: bool, toy: Scale, session_of: Opened
) -> None:
    assert toy.main is not None
    main = replace(toy.main, families={"DE": recipe("SGD", 2)})
    session = session_of(replace(toy, main=main))
    unit = Unit(main.name, COST_RIVALS, 0)
    measure(session, unit)
    rows = Records(session.records[unit]).select()
    assert "DE" in set(rows["method"])
    assert rows["method"].str.startswith("cascade from DE").any() == cascades


def test_a_seed_without_a_deep_ensemble_has_none(toy: Scale, session_of: Opened) -> None:
    assert toy.main is not None
    main = replace(toy.main, families={"DE": DeepEnsembleTraining("SGD", 2)}, most_seeds={"DE": 1})
    session = session_of(replace(toy, main=main))
    data = main.source.load(0)
    assert known_deep(session, 0, data) is not None
    assert known_deep(session, 1, data) is None
