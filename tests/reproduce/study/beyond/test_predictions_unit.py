"""The unit of predictions: its files, its rows, what a killed run leaves, and its key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

import lpe
from lpe.errors import InputError
from lpe.evaluation.predictions import read_predictions
from lpe.records import Records
from reproduce.study import measurements
from reproduce.study.beyond import predictions_unit
from reproduce.study.beyond.methods import Make, methods
from reproduce.study.beyond.names import (
    BMA,
    CLEAN,
    GAUSSIAN,
    LAPLACE,
    LPE_BSR,
    MC_DROPOUT,
    POOLED_THEN_CALIBRATED,
    TUNED_SPREAD,
    UNCORRUPTED,
    VALIDATION,
    Method,
)
from reproduce.study.beyond.predictions_unit import KeptMembers, examples_of, file_of, files
from reproduce.study.beyond.tuning import laplace, tuned
from reproduce.study.examples import place_of
from reproduce.study.families import DeepEnsembleTraining
from reproduce.study.measurements import key_of, measure
from reproduce.study.scale import Scale, Shifted, Shifts
from reproduce.study.session import Session
from reproduce.study.units import BEYOND, PREDICTIONS, ROUNDING, SPREAD, WHY, Unit, beyond_units


@dataclass(frozen=True)
class Twice:
    """Shifts with foreign examples whose name is written as a corruption's."""

    of: Shifts

    def load(self, seed: int) -> Shifted:
        """Name noise alone as a corruption."""
        shifted = self.of.load(seed)
        return replace(shifted, foreign={"noise-1": shifted.foreign["noise alone"]})

    def digest(self, seed: int) -> str:
        """Return the other's."""
        return self.of.digest(seed)

    @property
    def words(self) -> str:
        """Return the other's."""
        return self.of.words


Opened = Callable[[Scale], Session]
UNIT = Unit("toy net", PREDICTIONS, 0)
SINGLE = Method("SGD", "FP32", "fp32", "")
ROUNDED = Method("SGD", LPE_BSR, "int4", "bernoulli")
DRAWN = Method("SWAG", BMA, "fp32", "")
DEEP = Method("DE", "DE", "fp32", "")
FEW = (SINGLE, ROUNDED, DRAWN, DEEP)
SETS = [VALIDATION, CLEAN, UNCORRUPTED, "noise 1", "noise 2", "noise alone"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some methods are compared."""

    def chosen(session: Session, unit: Unit) -> dict[Method, Make]:
        return {method: make for method, make in methods(session, unit).items() if method in FEW}

    monkeypatch.setattr(predictions_unit, "methods", chosen)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders and files that evaluations write to from now on."""
    written: list[str] = []
    evaluate = lpe.evaluate

    def noted(*given: Any, **named: Any) -> pd.DataFrame:
        if "predictions" in named:
            written.append(f"{named['predictions'].parent.name}/{named['predictions'].stem}")
        return evaluate(*given, **named)

    monkeypatch.setattr(predictions_unit.lpe, "evaluate", noted)
    return written


def rows_of(session: Session) -> pd.DataFrame:
    return Records(session.records[UNIT]).select()


def folder_of(session: Session) -> Path:
    return place_of(session.records[UNIT])


def test_every_method_has_a_file_of_every_set_of_examples(few: None, toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    measure(session, UNIT)
    for method in FEW:
        for examples in SETS:
            written = read_predictions(file_of(folder_of(session), method, examples))
            assert len(written.targets) == 30
    assert len(files(session, [UNIT])[str(UNIT)]) == len(FEW) * len(SETS)


def test_the_files_are_named_within_the_working_folder(few: None, toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    measure(session, UNIT)
    (named,) = files(session, [UNIT]).values()
    assert all((session.working / name).is_file() for name in named)
    assert f"{folder_of(session).name}/predictions/SGD-LPE-BSR-int4-bernoulli/noise-1.safetensors" in named


def test_rows_are_of_each_method_on_each_set_of_examples(few: None, toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    measure(session, UNIT)
    table = rows_of(session)
    data = session.main.source.load(0)
    rounded = methods(session, UNIT)[ROUNDED]()
    expected = lpe.evaluate(rounded, data.test).set_index("size")
    here = table[
        (table["substrate"] == "toy net, clean") & (table["method"] == LPE_BSR) & (table["metric"] == "nll")
    ].set_index("size")
    assert dict(here["value"]) == pytest.approx({n: expected.loc[n, "nll"] for n in (1, 3)})
    assert dict(here["memory_bits"]) == {n: rounded.memory_bits(n) for n in (1, 3)}
    substrates = {f"toy net, {examples}" for examples in SETS if examples != VALIDATION}
    assert set(table["substrate"]) == substrates
    assert set(table["scale"]) == {"toy"} and set(table["seed"]) == {0}


def test_rows_have_the_budget_of_what_they_are_built_on(few: None, toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    measure(session, UNIT)
    table = rows_of(session)
    single = session.main.point(session, "SGD", 0).backward_passes
    swag = session.main.point(session, "SWAG", 0).backward_passes

    def budget(point: str, size: int) -> set[int]:
        return set(table[(table["point"] == point) & (table["size"] == size)]["backward_passes"])

    assert budget("SGD", 3) == {single} and budget("SWAG", 3) == {swag}
    assert budget("DE", 2) == {2 * single}


def test_what_was_tuned_is_said(few: None, toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    measure(session, UNIT)
    table = rows_of(session)
    said = table[table["metric"] == "setting"].set_index("method")["value"].to_dict()
    found = tuned(session, session.main, 0)
    net = session.main.point(session, "SGD", 0).net
    assert said == pytest.approx(
        {
            TUNED_SPREAD: found.spread,
            GAUSSIAN: found.std,
            MC_DROPOUT: found.rate,
            LAPLACE: laplace(session, session.main, 0, net)[1],
        }
    )


def test_what_is_whole_is_not_run_again(
    few: None, toy: Scale, session_of: Opened, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = predictions_unit.lpe.evaluate

    def three(*given: Any, **named: Any) -> pd.DataFrame:
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*given, **named)

    session = session_of(toy)
    with monkeypatch.context() as patch:
        patch.setattr(predictions_unit.lpe, "evaluate", three)
        with pytest.raises(KeyboardInterrupt):
            measure(session, UNIT)
    before = list(calls)
    measure(session, UNIT)
    assert len(calls) == len(set(calls)) == len(FEW) * len(SETS)
    assert calls[:3] == before
    kept = session.records[UNIT].read_bytes()
    # A run that was not killed has the same rows.
    session.records[UNIT].unlink()
    measure(session, UNIT)
    assert session.records[UNIT].read_bytes() == kept


def test_a_damaged_file_is_made_again_and_said(
    few: None, toy: Scale, session_of: Opened, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    session = session_of(toy)
    measure(session, UNIT)
    kept = session.records[UNIT].read_bytes()
    damaged = file_of(folder_of(session), ROUNDED, "noise 2")
    damaged.write_bytes(damaged.read_bytes()[:-8])
    session.records[UNIT].unlink()
    calls.clear()
    measure(session, UNIT)
    assert calls == ["SGD-LPE-BSR-int4-bernoulli/noise-2"]
    assert "noise-2.safetensors is no whole file of predictions" in capsys.readouterr().err
    assert session.records[UNIT].read_bytes() == kept


def test_members_that_take_long_are_made_once(toy: Scale) -> None:
    made: list[int] = []

    class Slow(lpe.DeepEnsemble):
        def member(self, index: int) -> nn.Module:
            made.append(index)
            return super().member(index)

    slow = Slow([nn.Linear(2, 2).eval() for _ in range(3)])
    kept = KeptMembers(slow)
    assert [kept[place] for place in (0, 1, 2, 1, 0)] == [slow.models[place] for place in (0, 1, 2, 1, 0)]
    assert made == [0, 1, 2]
    assert [kept.memory_bits(n) for n in (1, 3)] == [slow.memory_bits(n) for n in (1, 3)]


class OfOtherSplits(DeepEnsembleTraining):
    """A deep ensemble whose members were trained on what validates the seed."""

    saw_validation = True


def test_nothing_is_fitted_for_a_deep_ensemble_that_was_trained_on_validation_examples(
    few: None, toy: Scale, session_of: Opened
) -> None:
    assert toy.main is not None
    families = {**toy.main.families, "DE": OfOtherSplits("SGD", 2)}
    session = session_of(replace(toy, main=replace(toy.main, families=families)))
    measure(session, UNIT)
    table = rows_of(session)
    fitted = table[table["metric"] == POOLED_THEN_CALIBRATED]
    assert set(fitted["point"]) == {"SGD", "SWAG"}
    assert "DE" in set(table[table["metric"] == "nll"]["point"])


def test_two_sets_of_examples_of_one_file_are_refused(few: None, toy: Scale, session_of: Opened) -> None:
    assert toy.beyond is not None and toy.beyond.shifts is not None
    session = session_of(replace(toy, beyond=replace(toy.beyond, shifts=Twice(toy.beyond.shifts))))
    with pytest.raises(InputError, match="on 'noise-1' and of .* on 'noise 1' have one file"):
        measure(session, UNIT)


def test_without_shifts_there_are_clean_examples_alone(few: None, toy: Scale, session_of: Opened) -> None:
    assert toy.beyond is not None and toy.main is not None
    session = session_of(replace(toy, beyond=replace(toy.beyond, shifts=None)))
    measure(session, UNIT)
    assert set(rows_of(session)["substrate"]) == {"toy net, clean"}
    assert list(examples_of(toy.main.source.load(0), None)) == [VALIDATION, CLEAN]


def test_the_key_holds_what_goes_beyond_and_the_digest_of_the_shifts(
    toy: Scale, session_of: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toy.beyond is not None
    before = key_of(session_of(toy), UNIT)
    larger = replace(toy, beyond=replace(toy.beyond, pool=6))
    monkeypatch.setattr(type(toy.beyond.shifts), "digest", lambda shifts, seed: "other")
    assert len({before, key_of(session_of(larger), UNIT), key_of(session_of(toy), UNIT)}) == 3


@pytest.mark.parametrize("what", [ROUNDING, "SGD", "DE"])
def test_other_units_keys_do_not(what: str, toy: Scale, session_of: Opened) -> None:
    assert toy.beyond is not None
    larger = replace(toy, beyond=replace(toy.beyond, pool=6))
    keys = {key_of(session_of(scale), Unit("toy net", what, 0)) for scale in (toy, larger)}
    assert len(keys) == 1


def test_the_key_holds_the_recipes_of_all_that_is_compared(toy: Scale, session_of: Opened) -> None:
    assert toy.main is not None
    held = {type(recipe).__name__ for _, recipe in measurements.trained_for(toy, UNIT)}
    assert held == {"SGDTraining", "SWAGTraining", "IVONTraining", "DeepEnsembleTraining"}


@pytest.mark.parametrize("what", BEYOND)
def test_units_are_of_the_first_seeds_that_have_a_point_estimate(what: str, toy: Scale) -> None:
    assert toy.main is not None and toy.beyond is not None
    assert [unit.seed for unit in beyond_units(toy, what, range(5))] == [0, 1]
    assert [unit.seed for unit in beyond_units(toy, what, [0])] == [0]
    fewer = replace(toy, main=replace(toy.main, most_seeds={"SGD": 1}))
    assert [unit.seed for unit in beyond_units(fewer, what, range(5))] == [0]
    assert beyond_units(replace(toy, beyond=None), what, range(5)) == []


def test_units_of_what_goes_beyond_are_three() -> None:
    assert BEYOND == (PREDICTIONS, SPREAD, WHY)


def test_all_methods_are_measured(toy: Scale, session_of: Opened) -> None:
    session = session_of(toy)
    measure(session, UNIT)
    assert len(files(session, [UNIT])[str(UNIT)]) == len(methods(session, UNIT)) * len(SETS)
    columns = ["point", "method", "number_system", "rounding"]
    there = set(rows_of(session)[columns].itertuples(index=False, name=None))
    assert {tuple(vars(method).values()) for method in methods(session, UNIT)} <= there
