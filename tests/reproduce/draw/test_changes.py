"""What the panels of differences draw: paired by training seed, at equal budgets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lpe.errors import InputError
from lpe.records import COLUMNS
from reproduce.draw import panels
from reproduce.draw.budgets import pairs_of
from reproduce.draw.curves import curves_at, difference_axis, paired_table, signed
from reproduce.draw.summaries import Summary, What
from reproduce.judge.intervals import student_interval

SEEDS = (0, 1, 2)
BASE = What("net", "DE", "DE")
LOW = What("net", "DE", "DE + LPE-BSR", "int4")


def rows(what: What, sizes: range, member_bits: int, passes: list[int]) -> list[dict[str, object]]:
    """Rows whose value tells the size and the seed: seeds differ by whole nats."""
    return [
        {
            **dict.fromkeys(COLUMNS, ""),
            "substrate": what.substrate,
            "point": what.point,
            "method": what.method,
            "number_system": what.number_system,
            "size": size,
            "seed": seed,
            "metric": "nll",
            "value": 10.0 * seed + (1.0 if what == BASE else 2.0) / size + 0.01 * seed,
            "memory_bits": member_bits * size,
            "backward_passes": passes[size - 1],
        }
        for size in sizes
        for seed in SEEDS
    ]


@pytest.fixture
def summary() -> Summary:
    """Two bases of 32 bits, each of 100 passes, and two low precision members of 5 bits of each."""
    made = rows(BASE, range(1, 3), 32, [100, 200]) + rows(LOW, range(1, 5), 5, [100, 100, 200, 200])
    return Summary("fig9", pd.DataFrame(made))


def test_at_equal_training_all_members_of_as_many_bases_are_compared(summary: Summary) -> None:
    table = pairs_of(summary, BASE, LOW, "nll", "training")
    assert table["budget"].tolist() == [100, 200]
    # Two members of low precision against one base, four against two.
    assert np.allclose(table["mean"], [2 / 2 - 1, 2 / 4 - 1 / 2])


def test_at_equal_memory_the_largest_prefix_that_fits_is_compared(summary: Summary) -> None:
    few = summary.record.assign(
        memory_bits=summary.record["memory_bits"].where(
            summary.record["method"] == "DE", 3 * summary.record["memory_bits"]
        )
    )
    table = pairs_of(Summary("fig9", few), BASE, LOW, "nll", "memory")
    # Of 15 bits a member two fit into 32 bits, and four into 64.
    assert table["budget"].tolist() == [32, 64]
    assert np.allclose(table["mean"], [2 / 2 - 1, 2 / 4 - 1 / 2])


def test_the_change_is_paired_so_that_seeds_far_apart_leave_no_interval(summary: Summary) -> None:
    table = pairs_of(summary, BASE, LOW, "nll", "training")
    assert float((table["high"] - table["low"]).max()) < 1e-9


def test_members_that_the_bases_do_not_share_alike_are_refused(summary: Summary) -> None:
    odd = summary.record[summary.record["size"] < 4]
    with pytest.raises(InputError, match="no whole number of members"):
        pairs_of(Summary("fig9", odd), BASE, LOW, "nll", "training")


def test_a_paired_table_has_the_interval_of_the_differences() -> None:
    values = pd.DataFrame({"size": 1, "seed": [0, 1, 2], "value": [1.0, 2.5, 3.0]})
    reference = pd.Series([1.0, 2.0, 4.0], index=pd.Index([0, 1, 2], name="seed"))
    row = paired_table(values, reference).iloc[0]
    differences = np.array([0.0, 0.5, -1.0])
    assert np.allclose(
        row[["difference", "low", "high"]], [differences.mean(), *student_interval(differences)]
    )


def points(*methods: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(methods, columns=["method", "number_system"])


def test_re_estimated_members_are_a_dashed_line_of_their_widths_colour() -> None:
    found = points(("LPE-BSR", "int4"), ("LPE-BSR, re-estimated", "int4"))
    (_, _, plain), (_, label, again) = curves_at(found, [4])
    assert again["color"] == plain["color"] and again["linestyle"] != "-" and "marker" not in again
    assert label == "INT-4, re-estimated"


def test_without_batch_norm_there_is_no_dashed_line() -> None:
    assert [label for _, label, _ in curves_at(points(("LPE-BSR", "int4")), [4])] == ["LPE-BSR, INT-4"]


def test_differences_within_the_margin_are_drawn_evenly_and_beyond_by_their_logarithm() -> None:
    figure, axes = panels.plt.subplots()
    axes.plot([0, 1], [-0.5, 5.0])
    difference_axis(axes, 1.0)
    scale = axes.yaxis.get_transform()
    half, whole, ten, hundred = scale.transform([0.005, 0.01, 0.1, 1.0])
    assert np.isclose(half, whole / 2)
    assert np.isclose(hundred - ten, ten - whole)
    panels.plt.close(figure)


@pytest.mark.parametrize(("value", "text"), [(0.01, "+0.01"), (-0.01, "−0.01"), (0.0, "0")])
def test_a_difference_has_its_sign(value: float, text: str) -> None:
    assert signed(value) == text


# Layout.


@pytest.mark.parametrize("count", range(1, 9))
def test_every_subject_has_its_panels_whatever_their_number(count: int) -> None:
    with panels.style():
        figure, found = panels.paired_grid(count, 2)
    places = [axes.get_subplotspec() for pair in found for axes in pair]
    assert len(found) == count
    assert len({(place.rowspan.start, place.colspan.start) for place in places if place}) == 2 * count
    panels.plt.close(figure)


def test_letters_run_along_the_rows() -> None:
    with panels.style():
        figure, found = panels.paired_grid(2, 2)
    panels.label_rows([(axes, f"{a}{b}") for a, pair in enumerate(found) for b, axes in enumerate(pair)])
    titles = sorted(axes.get_title(loc="left") for axes in figure.axes)
    assert titles == ["(a) 00", "(b) 10", "(c) 01", "(d) 11"]
    panels.plt.close(figure)


def test_letters_go_on_after_z() -> None:
    letters = panels.letters()
    assert [next(letters) for _ in range(28)][24:] == ["y", "z", "aa", "ab"]
