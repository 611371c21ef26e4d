"""The picture of shift, from a record whose numbers are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lpe.records import COLUMNS, write_table
from reproduce import shift
from reproduce.draw import page, panels
from reproduce.draw.compared import Compared
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.beyond.names import UNCORRUPTED, Method, shown

LPE = Method("SGD", "LPE-BSR", "int4", "bernoulli")


@pytest.fixture(scope="module")
def compared(compared_record: Callable[..., pd.DataFrame]) -> Compared:
    return Compared("shift", DIGITS.substrate, compared_record(DIGITS))


@pytest.fixture(scope="module")
def figure(compared: Compared) -> Iterator[Figure]:
    with page.page(5.5), panels.style():
        drawn = shift.draw_figure(compared, DIGITS)
        drawn.canvas.draw()
    yield drawn
    panels.plt.close(drawn)


def test_severity_0_are_the_examples_that_are_corrupted_and_not_all_clean_ones(
    compared_record: Callable[..., pd.DataFrame],
) -> None:
    record = compared_record(DIGITS)
    uncorrupted = (record["substrate"] == shown(DIGITS.substrate, UNCORRUPTED)) & (record["metric"] == "nll")
    record.loc[uncorrupted & (record["rounding"] == LPE.rounding), "value"] += 0.01
    changed = Compared("shift", DIGITS.substrate, record)
    table = shift.kind_table(changed, LPE, "blur").set_index("severity")
    assert list(table.index) == [0, 1, 3]
    assert table["mean"].to_numpy() == pytest.approx([-0.06, -0.14, -0.28])
    assert changed.mean_over_kinds(LPE, "nll", 0).to_numpy() == pytest.approx([0.44, 0.49, 0.54])


def test_bars_are_of_paired_differences_and_not_of_levels(compared: Compared) -> None:
    # The levels differ by .05 from seed to seed, the differences by nothing.
    table = shift.kind_table(compared, LPE, "blur")
    assert float((table["high"] - table["low"]).max()) < 1e-9


def test_a_panel_a_metric_and_a_panel_a_kind_each_with_its_letter(figure: Figure) -> None:
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "(a) NLL, all kinds",
        "(b) ECE, all kinds",
        "(c) signed ECE, all kinds",
        "(d) blur",
        "(e) grain",
    ]
    assert all(axes.get_xlabel() == "severity (0: none)" for axes in figure.axes)


def test_the_curve_of_a_method_is_its_mean_over_kinds(figure: Figure, compared: Compared) -> None:
    (curve,) = (each for each in figure.axes[0].lines if each.get_label() == "LPE-BSR, INT-4")
    expected = [compared.mean_over_kinds(LPE, "nll", level).mean() for level in (0, 1, 3)]
    assert list(curve.get_ydata()) == pytest.approx(expected)  # type: ignore[arg-type]


def test_what_has_no_curve_is_named_in_the_legend(figure: Figure) -> None:
    said = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert said.startswith("mean over 3 training seeds; without a curve: RTN, INT-4-MSE / ")
    assert "LPE-BSR, INT-4, selected" in said


def test_every_text_is_legible_and_inside_the_picture(figure: Figure) -> None:
    written = [each for each in figure.findobj(Text) if each.get_text() and each.get_visible()]  # type: ignore[attr-defined]
    assert min(float(each.get_fontsize()) for each in written) >= 6.5  # type: ignore[attr-defined]
    labels = [
        each
        for axes in figure.axes
        for each in (axes.xaxis.label, axes.yaxis.label, axes._left_title)  # type: ignore[attr-defined]
        if each.get_text()
    ]
    boxes = {each.get_text(): each.get_window_extent() for each in labels}
    assert [said for said, box in boxes.items() if box.x0 < -1 or box.x1 > figure.bbox.width + 1] == []


def test_the_table_has_a_row_a_method_and_bold_is_the_least_of_a_column(compared: Compared) -> None:
    header, rows = shift.table_rows(compared)
    assert [row[0] for row in rows][:3] == ["FP32", "FP32 + temperature", "RTN, INT-4"]
    least = header.index("NLL, severity 3 (nats)")
    assert [row[0] for row in rows if type(row[least]).__name__ == "Bold"] == ["DE"]
    difference = header.index("NLL − FP32's, severity 3")
    told = {str(row[0]): row[difference] for row in rows}
    assert told["FP32"] is None and str(told["LPE-BSR, INT-4"]).startswith("-.2800 [")


@pytest.fixture(scope="module")
def of_one_seed(compared_record: Callable[..., pd.DataFrame]) -> Compared:
    """DE at the worst seed alone."""
    record = compared_record(DIGITS)
    return Compared("shift", DIGITS.substrate, record[(record["method"] != "DE") | (record["seed"] == 2)])


def test_a_method_of_fewer_seeds_is_compared_at_its_own(of_one_seed: Compared, compared: Compared) -> None:
    deep = Method("DE", "DE", "fp32", "")
    for severity in (0, 3):
        one, all_of_them = (shift.mean_level(each, deep, "nll", severity) for each in (of_one_seed, compared))
        assert one == pytest.approx(all_of_them)
    assert of_one_seed.mean_over_kinds(deep, "nll", 0).mean() == pytest.approx(
        compared.mean_over_kinds(deep, "nll", 0).mean() + 0.05
    )


def test_a_method_of_fewer_seeds_is_said_to_be(of_one_seed: Compared) -> None:
    header, rows = shift.table_rows(of_one_seed)
    counts = {str(row[0]): row[header.index("seeds")] for row in rows}
    assert counts["DE"] == 1 and counts["FP32"] == 3
    with page.page(5.5), panels.style():
        drawn = shift.draw_figure(of_one_seed, DIGITS)
    said = drawn.legends[0].get_title().get_text().replace("\n", " ")
    panels.plt.close(drawn)
    assert said.startswith(
        "mean over 3 training seeds; of fewer seeds, beside FP32 at these: DE (1); without"
    )


def test_the_table_says_what_was_tuned_to_what(compared: Compared) -> None:
    header, rows = shift.table_rows(compared)
    told = {str(row[0]): row[header.index("tuned to")] for row in rows}
    assert told["LPE-BSR, tuned spread"] == "8, 11.3" and told["LPE-BSR, INT-4"] is None


def test_it_writes_pictures_and_a_table_from_its_record(
    compared_record: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    write_table(compared_record(DIGITS), tmp_path / "shift_record.csv", COLUMNS)
    paths, _ = shift.SCRIPT.draw(tmp_path, DIGITS)
    assert {path.name for path in paths} == {f"shift.{kind}" for kind in ("pdf", "png", "csv", "md", "tex")}
    assert "Mean over kinds of corruption: blur, grain." in (tmp_path / "shift.md").read_text("utf-8")


class Shown:
    """Shifts of which only the words are asked for."""

    words = "corrupted: 1,000"


def test_heading_and_table_say_how_many_examples_are_corrupted(
    compared_record: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    assert DIGITS.beyond is not None and DIGITS.main is not None
    chosen = replace(DIGITS, heading="some data", beyond=replace(DIGITS.beyond, shifts=Shown()))  # type: ignore[arg-type]
    assert shift.SCRIPT.heading(chosen) == "some data; corrupted: 1,000"
    assert shift.SCRIPT.heading(DIGITS) == DIGITS.heading
    write_table(compared_record(DIGITS), tmp_path / "shift_record.csv", COLUMNS)
    shift.SCRIPT.draw(tmp_path, chosen)
    told = (tmp_path / "shift.md").read_text("utf-8")
    assert (
        f"Mean over kinds of corruption: blur, grain; corrupted: 1,000 test {DIGITS.main.example}s." in told
    )


def test_a_scale_that_offers_no_corrupted_examples_does_not_have_it() -> None:
    assert shift.SCRIPT.lacks(replace(DIGITS, beyond=None)) == "corrupted examples"
