"""Bands around curves are of paired differences: what all methods of a training seed share is not in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from lpe.records import COLUMNS, write_table
from reproduce import fig2, fig3
from reproduce.draw import curves, panels
from reproduce.judge.intervals import student_interval
from reproduce.scales.digits.settings import DIGITS

LEVELS = pd.Series([0.5, 0.9, 0.2, 0.7], index=[0, 1, 2, 3], name="value")
"""The single network's NLL, which differs far more from seed to seed than the methods."""
CHANGES = {1: [0.010, 0.012, 0.011, 0.009], 2: [-0.010, -0.014, -0.012, -0.011]}
"""LPE-BSR's NLL less the single network's, by size, a value a training seed."""


def rows() -> pd.DataFrame:
    low = [
        {"method": "LPE-BSR", "number_system": "int5", "size": size, "seed": seed, "value": level + change}
        for size, changes in CHANGES.items()
        for (seed, level), change in zip(LEVELS.items(), changes, strict=True)
    ]
    single = [
        {"method": method, "number_system": "fp32", "size": 1, "seed": seed, "value": level}
        for method in ("FP32", "FP32 + temperature")
        for seed, level in LEVELS.items()
    ]
    # Not in the order of the seeds: pairing is by name, not by place.
    return pd.DataFrame([*low, *single]).assign(memory_bits=8).sample(frac=1.0, random_state=0)


def band(axes: Axes) -> np.ndarray:
    """Low and high of the band that is drawn: [sizes, 2]."""
    (drawn,) = (each for each in axes.collections if isinstance(each, PolyCollection))
    corners = drawn.get_paths()[0].vertices
    limits = pd.DataFrame(np.asarray(corners), columns=["x", "y"]).groupby("x")["y"]
    return limits.agg(["min", "max"]).to_numpy()


def paired_limits() -> np.ndarray:
    return np.array([student_interval(np.array(changes)) for changes in CHANGES.values()])


@pytest.mark.parametrize(
    ("panel", "base"), [(curves.nll_panel, float(LEVELS.mean())), (curves.difference_panel, 0.0)]
)
def test_the_band_of_a_panel_is_that_of_the_paired_difference(
    panel: Callable[[Axes, pd.DataFrame, pd.Series, list[int]], None], base: float
) -> None:
    figure, axes = panels.plt.subplots()
    panel(axes, rows(), LEVELS, [5])
    panels.plt.close(figure)
    np.testing.assert_allclose(band(axes), base + paired_limits())


@pytest.fixture
def record(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the rows as a figure's record, beside it landscapes without a line; the folder."""

    def record(name: str) -> Path:
        named = {
            "scale": "digits",
            "substrate": "digits ViT",
            "point": "SWAG",
            "rounding": "",
            "metric": "nll",
        }
        write_table(rows().assign(**named, backward_passes=1), tmp_path / f"{name}.csv", COLUMNS)
        for file, columns in (("landscape", fig3.GRID_COLUMNS), ("members", fig3.CLOUD_COLUMNS)):
            row = dict.fromkeys(columns, 0.0) | {"point": "SWAG"}
            write_table([row], tmp_path / f"{name}_{file}.csv", columns)
        return tmp_path

    return record


@pytest.mark.parametrize(("module", "shown"), [(fig2, 2), (fig3, 1)], ids=["fig2", "fig3"])
def test_the_bands_of_a_figure_are_those_of_the_paired_difference(
    module: Any, shown: int, record: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DIGITS.main is not None
    main = replace(DIGITS.main, points={"SWAG": DIGITS.main.points["SWAG"]})
    kept: list[Figure] = []
    monkeypatch.setattr(panels, "save", lambda figure, *_: kept.append(figure) or [])
    monkeypatch.setattr(module, "claim_lines", lambda *_: [])
    for panel in ("radial_panel", "through_panel", "singles_panel", "cloud_panel"):
        monkeypatch.setattr(fig3, panel, lambda *_: None)
    name = module.__name__.rpartition(".")[2]
    module.draw(record(name), replace(DIGITS, main=main, settings=replace(DIGITS.settings, bits=(5,))))
    panels.plt.close(kept[0])
    for axes, base in zip(kept[0].axes[:shown], (LEVELS.mean(), 0.0), strict=False):
        np.testing.assert_allclose(band(axes), base + paired_limits())


def test_the_band_against_a_budget_is_that_of_the_paired_difference() -> None:
    low = rows()[lambda table: table["method"] == "LPE-BSR"]
    table = panels.budget_table(low, LEVELS, "memory_bits")
    np.testing.assert_allclose(table[["low", "high"]], LEVELS.mean() + paired_limits())


def test_a_seed_that_the_single_network_lacks_is_in_no_difference() -> None:
    low = rows()[lambda table: table["method"] == "LPE-BSR"]
    table = curves.paired_table(low, LEVELS.drop(3))
    expected = [np.mean(changes[:3]) for changes in CHANGES.values()]
    np.testing.assert_allclose(table["difference"], expected)
