"""The one test of claims, against known samples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reproduce import claims


def record(differences: dict[str, list[float]], single: float = 0.1) -> pd.DataFrame:
    rows = []
    for point, values in differences.items():
        for seed, difference in enumerate(values):
            common = {"point": point, "seed": seed, "metric": "nll", "size": 10}
            rows += [
                {**common, "method": "FP32", "number_system": "fp32", "size": 1, "value": single},
                {**common, "method": "BMA", "number_system": "fp32", "value": 0.09 + 0.01 * seed},
                {
                    **common,
                    "method": "LPE-BSR",
                    "number_system": "int4",
                    "value": 0.09 + 0.01 * seed + difference,
                },
            ]
    return pd.DataFrame(rows)


def test_the_interval_is_student_t() -> None:
    # For 1 … 5: mean 3, standard error sqrt(2.5 / 5), t(0.975, 4) = 2.7764451.
    half = 2.7764451 * np.sqrt(0.5)
    assert claims.interval(np.arange(1.0, 6.0)) == pytest.approx((3 - half, 3 + half))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([-1.0, -1.1, -0.9], "holds"), ([1.0, 1.1, 0.9], "fails"), ([-1.0, 1.0, 0.1], "undecided")],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(values: list[float], verdict: str) -> None:
    assert claims.judge("C", "s", np.array(values), 0.0).verdict == verdict


def test_one_seed_decides_nothing() -> None:
    assert claims.judge("C", "s", np.array([-1.0]), 0.0).verdict == "undecided"


def test_c2_is_paired_by_training_seed() -> None:
    # The two methods vary by .04 over the seeds, their difference hardly: unpaired, it would be undecided.
    equal = [-1e-5, 1e-5, 0.0, -1e-5, 1e-5]
    swag, ivon = claims.c2(record({"SWAG": equal, "IVON": equal}), "int4", 10)
    assert (swag.verdict, ivon.verdict) == ("holds", "holds")


def test_c2_allows_one_percent_of_the_single_models_nll_and_no_more() -> None:
    inside = [0.0009, 0.00091, 0.00089]
    outside = [0.0011, 0.00111, 0.00109]
    swag, ivon = claims.c2(record({"SWAG": inside, "IVON": outside}), "int4", 10)
    assert (swag.verdict, ivon.verdict) == ("holds", "fails")
    assert swag.threshold == pytest.approx(0.001)
