"""Methods compared under shift: each has a title and a mark of its own, and its rows are found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from lpe.errors import InputError
from reproduce.draw.compared import Compared, in_curves, line, mark, of_fewer_members, paired, title
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.beyond.names import Method

LPE = Method("SGD", "LPE-BSR", "int4", "bernoulli")
COUPLED = Method("SGD", "LPE-BSR", "int4", "coupled")


@pytest.fixture(scope="module")
def compared(compared_record: Callable[..., pd.DataFrame]) -> Compared:
    return Compared("shift", DIGITS.substrate, compared_record(DIGITS))


def test_no_two_methods_have_one_title(compared: Compared) -> None:
    titles = list(map(title, compared.methods))
    assert len(set(titles)) == len(titles) == 18


def test_no_two_curves_look_alike(compared: Compared) -> None:
    looks = [
        (*mark(method), line(method).get("markerfacecolor"), str(line(method).get("linestyle")))
        for method in filter(in_curves, compared.methods)
    ]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (COUPLED, "LPE-BSR, INT-4, coupled"),
        (Method("SGD", "LPE-BSR, selected", "int4", "bernoulli"), "LPE-BSR, INT-4, selected"),
        (Method("SGD", "RTN", "int4-mse", "nearest"), "RTN, INT-4-MSE"),
        (Method("SWAG", "BMA", "fp32", ""), "SWAG, BMA"),
        (Method("SGD", "Error feedback", "int4", "nearest"), "Error feedback, nearest"),
        (Method("SGD", "Gaussian", "fp32", ""), "Gaussian, tuned"),
    ],
)
def test_a_title_says_what_tells_a_method_from_its_like(method: Method, said: str) -> None:
    assert title(method) == said


def test_the_unrounded_network_comes_first_and_the_families_last(compared: Compared) -> None:
    assert compared.methods[0] == compared.single == Method("SGD", "FP32", "fp32", "")
    assert compared.methods[-1].method == "DE"


def test_rows_of_two_roundings_are_told_apart(compared: Compared) -> None:
    difference = compared.values(COUPLED, "nll") - compared.values(LPE, "nll")
    assert difference.to_numpy() == pytest.approx([-0.01] * 3)


def test_the_mean_over_kinds_is_taken_within_a_training_seed(
    compared_record: Callable[..., pd.DataFrame],
) -> None:
    record = compared_record(DIGITS)
    here = record["substrate"].str.endswith(", blur 3") & (record["metric"] == "nll")
    one = here & (record["seed"] == 1)
    record.loc[one, "value"] += 1.0
    values = Compared("shift", DIGITS.substrate, record).mean_over_kinds(LPE, "nll", 3)
    expected = [(0.5 + 0.05 * seed) * 1.6 - 0.07 * 4 + 0.5 * (seed == 1) for seed in range(3)]
    assert values.to_numpy() == pytest.approx(expected)


def test_corruptions_and_foreign_examples_are_found_by_their_names(compared: Compared) -> None:
    assert compared.corruptions == {
        "blur": {1: "blur 1", 3: "blur 3"},
        "grain": {1: "grain 1", 3: "grain 3"},
    }
    assert compared.foreign == ["digits", "noise alone"]


def test_a_paired_difference_is_of_the_seeds_of_both() -> None:
    values, reference = pd.Series({0: 1.0, 1: 3.0, 5: 9.0}), pd.Series({1: 1.0, 0: 0.0, 2: 5.0})
    mean, low, high = paired(values, reference)
    assert mean == 1.5 and low < mean < high
    assert np.isnan(paired(values, pd.Series({7: 1.0}))).all()


def test_a_record_without_the_unrounded_network_is_refused(
    compared_record: Callable[..., pd.DataFrame],
) -> None:
    record = compared_record(DIGITS)
    with pytest.raises(InputError, match="shift_record.csv has no rows of an unrounded network on clean"):
        Compared("shift", DIGITS.substrate, record[record["method"] != "FP32"])


def test_a_record_has_the_metrics_of_all_members_alone(compared_record: Callable[..., pd.DataFrame]) -> None:
    whole = compared_record(DIGITS)
    fewer = whole[(whole["metric"] == "nll") & (whole["size"] > 1)].assign(size=1)
    rows = pd.concat([whole, fewer], ignore_index=True)
    assert len(fewer) and list(rows.index[of_fewer_members(rows)]) == list(range(len(whole), len(rows)))
