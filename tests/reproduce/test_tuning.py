"""The sweep's roles: what is kept, what is best, and what is not what it is called."""

from __future__ import annotations

import math

import pandas as pd

from reproduce.tune import BOUNDS, roles


def rows_of(method: str, setting: str, nll: dict[int, float], **known: float) -> pd.DataFrame:
    """Rows of a setting: NLL by tuning seed."""
    rows = [
        {"method": method, "setting": setting, "seed": seed, "ensemble_nll": value, **known}
        for seed, value in nll.items()
    ]
    return pd.DataFrame(rows)


def roles_of(*tables: pd.DataFrame, kept: str) -> dict[str, str]:
    table = pd.concat(tables, ignore_index=True)
    for name in BOUNDS:
        table[name] = table[name] if name in table else math.nan
    found = roles(table, {("IVON", kept)})
    return dict(zip(table["setting"], found, strict=True))


def test_kept_and_best_are_told_apart() -> None:
    found = roles_of(
        rows_of("IVON", "a", {100: 0.2, 101: 0.2}),
        rows_of("IVON", "b", {100: 0.1, 101: 0.1}),
        rows_of("IVON", "c", {100: 0.3, 101: 0.3}),
        kept="a",
    )
    assert found == {"a": "kept", "b": "best", "c": "swept"}


def test_the_kept_setting_may_be_the_best() -> None:
    found = roles_of(rows_of("IVON", "a", {100: 0.1}), rows_of("IVON", "b", {100: 0.2}), kept="a")
    assert found == {"a": "kept, best", "b": "swept"}


def test_the_best_is_judged_on_the_seeds_that_all_settings_have() -> None:
    # Over all of its seeds b would be best, for seed 101 is an easy one.
    found = roles_of(
        rows_of("IVON", "a", {100: 0.1}),
        rows_of("IVON", "b", {100: 0.2, 101: 0.0, 102: 0.0}),
        kept="b",
    )
    assert found == {"a": "best", "b": "kept"}


def test_a_posterior_that_was_not_learnt_is_excluded_whatever_its_nll() -> None:
    found = roles_of(
        rows_of("IVON", "a", {100: 0.2}, std_over_forgetting=0.7, std_over_expected=0.8),
        rows_of("IVON", "not learnt", {100: 0.1}, std_over_forgetting=1.0, std_over_expected=0.8),
        rows_of("IVON", "too narrow", {100: 0.1}, std_over_forgetting=0.7, std_over_expected=0.5),
        kept="a",
    )
    assert found == {"a": "kept, best", "not learnt": "excluded", "too narrow": "excluded"}


def test_samples_that_lack_the_posteriors_spread_are_excluded_whatever_their_nll() -> None:
    found = roles_of(
        rows_of("IVON", "a", {100: 0.2}, variance_share=0.9),
        rows_of("IVON", "b", {100: 0.1}, variance_share=0.89),
        kept="a",
    )
    assert found == {"a": "kept, best", "b": "excluded"}


def test_bounds_hold_for_the_mean_over_seeds() -> None:
    found = roles_of(
        rows_of("IVON", "a", {100: 0.1}, std_over_expected=0.6),
        rows_of("IVON", "a", {101: 0.1}, std_over_expected=0.8),
        kept="a",
    )
    assert found == {"a": "kept, best"}
