"""The unit of the continuous knob: what is measured of both grids, and what is named as tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lpe
from lpe.errors import InputError
from lpe.records import Records
from lpe.store import Store
from lpe.tracking import Tracker
from reproduce.scales import own
from reproduce.study import examples
from reproduce.study.beyond import spread_units, tuning
from reproduce.study.beyond.names import noise_name
from reproduce.study.beyond.tuning import Tuned, tuned
from reproduce.study.measurements import measure
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import SPREAD, Unit, beyond_units, draw_seed

Opened = Callable[[Scale], Session]
TOY = Path(__file__).parents[2] / "scales" / "toy.py"
SUBSTRATE = "toy net, spread"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, pd.DataFrame]:
    """A session of the toy scale that has measured the unit, and its rows."""
    folder = tmp_path_factory.mktemp("spread")
    session = Session(
        store=Store(folder / "store"),
        tracker=Tracker(None),
        threads=None,
        device="cpu",
        quiet=True,
        scale=own.load(str(TOY)),
        seeds=[0],
        claim_seeds=[0],
        out=folder / "out",
        working=folder / "records",
    )
    (unit,) = beyond_units(session.scale, SPREAD, [0])
    measure(session, unit)
    return session, Records(session.records[unit]).select()


def rows_of(rows: pd.DataFrame, **equal: object) -> pd.DataFrame:
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    assert len(rows)
    return rows


def test_every_value_of_both_grids_is_measured_under_one_name_of_the_network(
    measured: tuple[Session, pd.DataFrame],
) -> None:
    rows = measured[1]
    assert set(rows["substrate"]) == {SUBSTRATE} and set(rows["point"]) == {"SGD"}
    methods = {"FP32", "FP32 + temperature", "FP32, re-estimated"}
    methods |= {"LPE-BSR", "Gaussian, std 0.01", "Gaussian, std 0.1"}
    assert set(rows["method"]) == {*methods, "LPE-BSR, tuned spread", "Gaussian, tuned std"}
    assert set(rows[rows["method"] == "LPE-BSR"]["number_system"]) == {"int8*8", "int8*16"}


def test_its_values_are_the_mean_over_draws_of_the_ensembles_whose_step_is_spread(
    measured: tuple[Session, pd.DataFrame],
) -> None:
    session, rows = measured
    net = session.main.point(session, "SGD", 0).net
    data = session.main.source.load(0)
    nll, bits = [], set()
    for draw in (0, 1):
        system = lpe.Int(8, spread=16)
        ensemble = lpe.LowPrecisionEnsemble(net, system, 3, draw_seed(0, draw), batches=data.statistics)
        nll.append(float(lpe.evaluate(ensemble, data.test)["nll"].iloc[-1]))
        bits.add(ensemble.memory_bits())
    (row,) = rows_of(rows, method="LPE-BSR", number_system="int8*16", metric="nll", size=3).to_dict("records")
    assert row["value"] == pytest.approx(np.mean(nll))
    assert {row["memory_bits"]} == bits


def test_what_the_tuning_examples_chose_has_the_rows_of_its_value_and_says_which(
    measured: tuple[Session, pd.DataFrame],
) -> None:
    session, rows = measured
    chosen = tuned(session, session.main, 0)
    for method, named, setting in (
        ("LPE-BSR, tuned spread", {"number_system": f"int8*{chosen.spread:g}"}, chosen.spread),
        ("Gaussian, tuned std", {"method": noise_name(chosen.std)}, chosen.std),
    ):
        of_tuned = rows_of(rows, method=method)
        (said,) = of_tuned[of_tuned["metric"] == "setting"]["value"]
        assert said == setting
        columns = ["size", "metric", "value", "memory_bits", "backward_passes"]
        once_more = of_tuned[of_tuned["metric"] != "setting"][columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(once_more, rows_of(rows, **named)[columns].reset_index(drop=True))


def test_the_tuned_rows_are_those_of_the_value_chosen_and_not_of_the_first(
    toy: Scale, session_of: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both values of each grid in turn, whatever the tuning examples would choose.
    for place in (0, 1):
        assert toy.beyond is not None
        chosen = Tuned(toy.beyond.spreads[place], toy.beyond.stds[place], 0.1, {})
        monkeypatch.setattr(spread_units, "tuned", lambda *_, chosen=chosen: chosen)
        session = session_of(toy)
        (unit,) = beyond_units(toy, SPREAD, [0])
        record = session.working / f"{place}.csv"
        session.records[unit] = record
        spread_units.measure_spread(session, unit)
        rows = Records(record).select(metric="nll", size=3)
        tuned_nll = rows_of(rows, method="LPE-BSR, tuned spread")["value"].item()
        system = f"int8*{chosen.spread:g}"
        assert tuned_nll == rows_of(rows, method="LPE-BSR", number_system=system)["value"].item()
        assert rows[rows["method"] == "LPE-BSR"]["value"].nunique() == 2


def test_the_tuned_rows_have_the_values_of_each_example(measured: tuple[Session, pd.DataFrame]) -> None:
    session, rows = measured
    found = examples.finder(session.working)
    for metric in ("nll", "calibrated_nll"):
        for method in ("LPE-BSR, tuned spread", "Gaussian, tuned std", "FP32"):
            size = 1 if method == "FP32" else 3
            (row,) = rows_of(rows, method=method, metric=metric, size=size).to_dict("records")
            values = found({str(column): value for column, value in row.items()})
            assert values is not None
            assert values[1].mean() == pytest.approx(row["value"], rel=1e-5)


def test_a_unit_that_is_measured_measures_nothing_again(
    measured: tuple[Session, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, rows = measured
    (unit,) = beyond_units(session.scale, SPREAD, [0])
    monkeypatch.setattr(tuning, "KNOBS", {})
    measure(session, unit)
    assert len(Records(session.records[unit]).select()) == len(rows)


def test_a_scale_without_what_goes_beyond_the_paper_has_no_such_unit(toy: Scale, session_of: Opened) -> None:
    without = replace(toy, beyond=None)
    assert beyond_units(without, SPREAD, [0]) == []
    with pytest.raises(InputError, match="measures nothing beyond the paper"):
        spread_units.measure_spread(session_of(without), Unit("toy net", SPREAD, 0))
