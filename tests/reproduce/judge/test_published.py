"""Published numbers: read as the record's metrics, each what its source prints."""

from __future__ import annotations

import pytest

from reproduce.judge.published import PUBLISHED, TABLES, Published, Row, read
from reproduce.study.subjects import R20, WRN28X1

TABLE = TABLES[0]


def number(metric: str, text: str) -> Published:
    return read(TABLE, Row("method", 1, None, {metric: text}), metric, text)


def test_a_number_alone_has_no_range() -> None:
    found = number("nll", ".646")
    assert (found.metric, found.value, found.low, found.high, found.decimals) == ("nll", 0.646, None, None, 3)


def test_a_range_is_read_with_its_mean() -> None:
    found = number("nll", ".462 [.445, .474]")
    assert (found.value, found.low, found.high) == (0.462, 0.445, 0.474)


def test_an_accuracy_is_read_as_an_error_and_its_range_turned_round() -> None:
    found = number("acc", ".8477 [.8400, .8500]")
    assert (found.metric, found.value, found.low, found.high) == ("err", 0.1523, 0.15, 0.16)


def test_a_percent_is_read_as_a_share_with_two_more_decimals() -> None:
    found = number("acc %", "96.0")
    assert (found.metric, found.value, found.decimals) == ("err", 0.04, 3)


def test_a_coverage_is_not_turned_into_an_error() -> None:
    found = number("coverage %", "54.3")
    assert (found.metric, found.value) == ("cov_at_5_risk", 0.543)


@pytest.mark.parametrize("text", ["", "about .6", ".5 [.4 - .6]", "46"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no number"):
        number("nll", text)


def test_a_mean_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="outside its range"):
        number("nll", ".5 [.6, .7]")


def found_in(repository: str, method: str, metric: str, network: str, augmentation: bool) -> Published:
    (only,) = [
        each
        for each in PUBLISHED
        if each.table.repository == repository
        and each.row.method == method
        and each.metric == metric
        and each.table.network == network
        and each.table.augmentation == augmentation
    ]
    return only


@pytest.mark.parametrize(
    ("where", "value", "low", "high", "trials"),
    [
        (("cs-giung/bdlx", "IVON", "nll", R20, False), 0.462, 0.445, 0.474, 8),
        (("cs-giung/bdlx", "IVON", "err", R20, True), 0.088, 0.081, 0.092, 8),
        (("cs-giung/bdlx", "momentum SGD", "nll", R20, True), 0.414, None, None, 8),
        (("cs-giung/bdlx", "cyclical SGLD", "ambiguity", R20, False), 0.182, 0.171, 0.192, 8),
        (("cs-giung/giung2", "SGD", "err", R20, False), 0.1523, None, None, None),
        (("cs-giung/giung2", "SGD, temperature", "nll", R20, False), 0.4974, None, None, None),
        (("cs-giung/giung2", "BE-4", "ece", WRN28X1, True), 0.0413, None, None, None),
        (("google/uncertainty-baselines", "ensemble", "err", "WRN28-10", True), 0.034, None, None, None),
    ],
)
def test_the_numbers_are_those_of_their_sources(
    where: tuple[str, str, str, str, bool],
    value: float,
    low: float | None,
    high: float | None,
    trials: int | None,
) -> None:
    found = found_in(*where)
    assert (found.value, found.low, found.high, found.table.trials) == (value, low, high, trials)


def test_the_steps_of_all_members_are_counted() -> None:
    assert found_in("cs-giung/bdlx", "cyclical SGLD", "nll", R20, False).backward_passes == 500_000


def test_no_number_is_there_twice() -> None:
    keys = [
        (
            each.table.repository,
            each.table.network,
            each.table.augmentation,
            each.row.method,
            each.row.members,
        )
        + (each.metric,)
        for each in PUBLISHED
    ]
    assert sorted({key for key in keys if keys.count(key) > 1}) == []
