"""The picture of selective prediction, from a record whose numbers are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lpe.records import COLUMNS, write_table
from reproduce import selective
from reproduce.draw import page, panels
from reproduce.draw.compared import Compared
from reproduce.judge.intervals import fieller_interval
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.beyond.names import Method, risk_metric

FP32 = Method("SGD", "FP32", "fp32", "")
LPE = Method("SGD", "LPE-BSR", "int4", "bernoulli")


@pytest.fixture(scope="module")
def compared(compared_record: Callable[..., pd.DataFrame]) -> Compared:
    return Compared("selective", DIGITS.substrate, compared_record(DIGITS))


@pytest.fixture(scope="module")
def figure(compared: Compared) -> Iterator[Figure]:
    with page.page(5.5), panels.style():
        drawn = selective.draw_figure(compared)
        drawn.canvas.draw()
    yield drawn
    panels.plt.close(drawn)


def test_all_members_of_all_seeds_are_in_the_diagram(compared: Compared) -> None:
    members = selective.members_of(compared, LPE)
    assert len(members) == 4 * 3
    assert sorted(members["disagreement"].unique()) == pytest.approx([0.02, 0.04, 0.06, 0.08])


def test_the_unrounded_network_differs_from_itself_by_nothing(compared: Compared) -> None:
    assert list(selective.members_of(compared, FP32)["disagreement"]) == [0.0] * 3


def test_risks_are_drawn_less_those_of_the_unrounded_network(compared: Compared) -> None:
    changes = selective.risk_differences(compared, LPE)
    assert changes[-1] == pytest.approx(-0.07) and changes[9] == pytest.approx(-0.07 / 4)
    assert selective.risk_differences(compared, FP32) == [0.0] * 20


def test_a_cascade_goes_from_one_network_to_the_pair(compared: Compared) -> None:
    curve = selective.cascade_curve(compared, LPE)
    assert curve["networks"].iloc[[0, -1]].tolist() == [1.0, 2.0]
    assert len(curve) == 11
    assert selective.cascade_curve(compared, FP32).empty


def test_the_share_of_the_pairs_gain_is_a_ratio_of_means_with_fiellers_interval(compared: Compared) -> None:
    found = selective.gain_share(compared, LPE)
    assert found is not None
    gains = 0.07 * 0.8 + 0.01 * 0.2 * np.array([0.0, 1.0, 0.0])
    whole = 0.07 + 0.01 * np.array([0.0, 1.0, 0.0])
    assert found[0] == pytest.approx(1.2)
    assert found[1] == pytest.approx(gains.mean() / whole.mean())
    assert found[2:] == pytest.approx(fieller_interval(gains, whole))


def test_a_pair_that_gains_nothing_has_no_share(compared_record: Callable[..., pd.DataFrame]) -> None:
    record = compared_record(DIGITS)
    cascades = record["metric"].str.contains("of a cascade for") & ~record["metric"].str.startswith(
        "networks"
    )
    record.loc[cascades, "value"] = 0.5
    found = selective.gain_share(Compared("selective", DIGITS.substrate, record), LPE)
    assert found is not None and math.isnan(found[1])
    assert found[2:] == (-math.inf, math.inf)


def test_a_pair_that_gains_nothing_is_said_in_words(compared_record: Callable[..., pd.DataFrame]) -> None:
    record = compared_record(DIGITS)
    record.loc[record["metric"].str.startswith("cov_at_5_risk of a cascade"), "value"] = 0.5
    compared = Compared("selective", DIGITS.substrate, record)
    assert all("the pair gains nothing in coverage" in line for line in selective.gain_lines(compared))
    header, rows = selective.table_rows(compared)
    assert {row[header.index("gain at 1.2 networks")] for row in rows} == {None}


def test_the_auroc_is_compared_as_a_mean_over_the_foreign_sets_paired_by_seed(
    compared_record: Callable[..., pd.DataFrame],
) -> None:
    record = compared_record(DIGITS)
    foreign = record["metric"] == "auroc_max_probability"
    record.loc[foreign, "value"] += 0.01 * record.loc[foreign, "seed"]  # what all methods share
    header, rows = selective.table_rows(Compared("selective", DIGITS.substrate, record))
    place = header.index("AUROC by probability, mean − FP32's")
    told = {str(row[0]): row[place] for row in rows}
    assert told["FP32"] is None and told["LPE-BSR, INT-4"] == ".0700 [.0700, .0700]"


def test_what_is_printed_has_the_networks_and_the_share(compared: Compared) -> None:
    lines = list(selective.gain_lines(compared))
    assert not any("FP32" in line for line in lines)
    (said,) = (line for line in lines if line.startswith("cascade of two, LPE-BSR, INT-4: "))
    assert " of the pair's gain in coverage at 5 % risk at 1.20 networks an example" in said


def test_panels_are_lettered_and_say_what_they_measure(figure: Figure) -> None:
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "(a) risk-coverage",
        "(b) its change",
        "(c) members",
        "(d) cascades",
        "(e) AURC",
        "(f) coverage",
        "(g) risk",
        "(h) AUROC",
        "(i) AUROC",
    ]
    assert all(axes.get_xlabel() for axes in figure.axes)


def test_a_record_without_foreign_examples_has_no_panel_of_them(
    compared_record: Callable[..., pd.DataFrame],
) -> None:
    compared = Compared("selective", DIGITS.substrate, compared_record(DIGITS, shifts=False))
    with panels.style():
        drawn = selective.draw_figure(compared)
    assert "AUROC" not in "".join(axes.get_title(loc="left") for axes in drawn.axes)
    panels.plt.close(drawn)


def test_every_kind_of_foreign_examples_is_in_the_legend(figure: Figure) -> None:
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"told from digits", "told from noise alone"} <= set(said)


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


@pytest.mark.parametrize(
    ("column", "best"), [("AURC", "DE"), ("coverage at 5 % risk", "DE"), ("risk at 80 % coverage", "DE")]
)
def test_bold_is_the_best_whether_that_is_the_least_or_the_most(
    compared: Compared, column: str, best: str
) -> None:
    header, rows = selective.table_rows(compared)
    place = header.index(column)
    assert [row[0] for row in rows if type(row[place]).__name__ == "Bold"] == [best]


def test_a_single_network_has_no_disagreement_and_no_mutual_information(compared: Compared) -> None:
    header, rows = selective.table_rows(compared)
    told = {str(row[0]): dict(zip(header, row, strict=True)) for row in rows}
    for column in ("disagreement", "AUROC by information, digits", "gain at 1.2 networks"):
        assert told["FP32"][column] is None and told["LPE-BSR, INT-4"][column] is not None


def test_it_writes_pictures_and_a_table_from_its_record(
    compared_record: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    write_table(compared_record(DIGITS), tmp_path / "selective_record.csv", COLUMNS)
    paths, lines = selective.SCRIPT.draw(tmp_path, DIGITS)
    kinds = ("pdf", "png", "csv", "md", "tex")
    assert {path.name for path in paths} == {f"selective.{kind}" for kind in kinds}
    assert len(lines) == 13


def test_a_scale_without_what_goes_beyond_the_paper_does_not_have_it() -> None:
    assert selective.SCRIPT.lacks(replace(DIGITS, beyond=None))


def test_a_method_of_fewer_seeds_is_compared_at_its_own(
    compared_record: Callable[..., pd.DataFrame],
) -> None:
    record = compared_record(DIGITS)
    later = record["seed"] == 2
    record.loc[later & (record["metric"] == risk_metric(0.5)), "value"] += 0.3
    deep = Method("DE", "DE", "fp32", "")
    whole = selective.mean_level(Compared("selective", DIGITS.substrate, record), deep, risk_metric(0.5))
    fewer = record[(record["method"] != "DE") | later]
    alone = selective.mean_level(Compared("selective", DIGITS.substrate, fewer), deep, risk_metric(0.5))
    assert alone == pytest.approx(whole)


def test_a_share_of_a_loss_is_not_read_as_one_of_a_gain(
    compared_record: Callable[..., pd.DataFrame],
) -> None:
    record = compared_record(DIGITS)
    cascades = record["metric"].str.startswith("cov_at_5_risk of a cascade")
    record.loc[cascades, "value"] = 1 - record.loc[cascades, "value"]
    losing = Compared("selective", DIGITS.substrate, record)
    found = selective.gain_share(losing, LPE)
    assert found is not None and math.isnan(found[1])
    (said,) = (
        line for line in selective.gain_lines(losing) if line.startswith("cascade of two, LPE-BSR, INT-4:")
    )
    assert ": the pair gains nothing in coverage" in said
