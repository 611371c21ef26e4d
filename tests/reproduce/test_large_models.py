"""Figure 7 and table 3."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from lpe.errors import InputError
from lpe.records import COLUMNS, write_table
from reproduce import fig7, table3
from reproduce.command import opened
from reproduce.draw import panels
from reproduce.judge.intervals import student_interval
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.measurements import measure
from reproduce.study.records import rows_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import LARGE, Unit

SEEDS = 4
PARAMETERS = {"CLIP-S": 20_000, "CLIP-M": 80_000, "CLIP-L": 300_000}
PARAMETERS |= {"Llama-S": 5_000, "Llama-M": 20_000, "Llama-L": 80_000}
GAIN = {"S": -0.001, "M": -0.002, "L": -0.003}


def record() -> pd.DataFrame:
    """Six models whose 20 members gain .001, .002 and .003 nats over FP32, and whose first member nothing."""
    noise = np.random.default_rng(0)
    rows = []
    for model, parameters in PARAMETERS.items():
        for seed in range(SEEDS):
            # The noise of a training seed, by which methods are paired.
            single = 0.06 + 0.01 * noise.normal()
            for method, system, rounding, sizes in (
                ("FP32", "fp32", "", [1]),
                ("FP32 + temperature", "fp32", "", [1]),
                ("RTN", "int5", "nearest", [1]),
                ("LPE-BSR", "int5", "bernoulli", range(1, 21)),
            ):
                for size in sizes:
                    nll = single + (GAIN[model[-1]] * (1 - 1 / size) / 0.95 if method == "LPE-BSR" else 0)
                    bits = parameters * (32 if system == "fp32" else 5 * size)
                    key = ("digits", f"digits {model}", "SGD", method, system, rounding, size, seed)
                    metrics = {"nll": nll}
                    if method != "FP32 + temperature":
                        metrics |= {"ambiguity": 0.01, "average_loss": nll, "ensemble_loss": nll - 0.01}
                        metrics |= {"calibrated_nll": nll}
                    metrics |= {"err": 0.02, "ece": 0.01, "brier": 0.03}
                    rows += [(*key, metric, value, bits, 100) for metric, value in metrics.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_the_memory_panel_has_members_as_planes_too(drawn: matplotlib.figure.Figure) -> None:
    expected = (5 + np.arange(1, 21)) * PARAMETERS["CLIP-L"] / 1e6
    found = [
        each
        for axes in drawn.axes
        for each in axes.get_lines()
        if np.asarray(each.get_xdata(), float) == pytest.approx(expected)
    ]
    assert len(found) == 1


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[matplotlib.figure.Figure]:
    """Figure 7 of the synthetic record, before it is written."""
    write_table(record(), tmp_path / "fig7.csv", COLUMNS)
    kept: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(panels, "save", lambda figure, folder, name: kept.append(figure) or [])
    fig7.draw(tmp_path, DIGITS)
    yield kept[0]
    panels.plt.close(kept[0])


def test_figure_7_has_two_labelled_panels_a_model_and_one_a_kind(drawn: matplotlib.figure.Figure) -> None:
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert len(titles) == 2 * len(PARAMETERS) + 2
    assert [title[:3] for title in titles] == [f"({letter})" for letter in "abcdefghijklmn"]
    for model in PARAMETERS:
        assert sum(f" {model}\n" in title for title in titles) == 2
    assert titles[-2:] == ["(m) CLIP: NLL above FP32's", "(n) Llama: NLL above FP32's"]


def test_figure_7_labels_every_axis(drawn: matplotlib.figure.Figure) -> None:
    for axes in drawn.axes:
        assert axes.get_xlabel(), axes.get_title(loc="left")
    left = [axes for axes in drawn.axes if axes.get_subplotspec().colspan.start == 0]  # type: ignore[union-attr]
    assert all(axes.get_ylabel() for axes in left) and len(left) == 5


def test_figure_7_draws_each_model_s_own_curve(drawn: matplotlib.figure.Figure) -> None:
    rows = record()
    for place, model in enumerate(("CLIP-S", "CLIP-M", "CLIP-L")):
        own = rows[(rows["substrate"] == f"digits {model}") & (rows["metric"] == "nll")]
        means = own[own["method"] == "LPE-BSR"].groupby("size")["value"].mean()
        for panel in (drawn.axes[place], drawn.axes[3 + place]):
            curve = next(line for line in panel.lines if line.get_label() == "LPE-BSR, INT-5")
            assert np.asarray(curve.get_ydata(), float) == pytest.approx(means.to_numpy())
        memory = next(line for line in drawn.axes[3 + place].lines if line.get_label() == "LPE-BSR, INT-5")
        expected = 5 * PARAMETERS[model] * np.arange(1, 21) / 1e6
        assert np.asarray(memory.get_xdata(), float) == pytest.approx(expected)


def test_the_bands_of_figure_7_are_those_of_the_paired_difference(drawn: matplotlib.figure.Figure) -> None:
    # All seeds of a model gain alike: nothing is left of what sets the seeds apart.
    for panel in drawn.axes[: 2 * len(PARAMETERS)]:
        (band,) = (each for each in panel.collections if isinstance(each, PolyCollection))
        by_size = pd.DataFrame(np.asarray(band.get_paths()[0].vertices), columns=["x", "y"]).groupby("x")["y"]
        assert (by_size.max() - by_size.min()).max() < 1e-9, panel.get_title(loc="left")


def test_figure_7_shows_the_gain_of_the_largest_ensemble_against_parameters(
    drawn: matplotlib.figure.Figure,
) -> None:
    curve = drawn.axes[-2].lines[1]
    assert np.asarray(curve.get_xdata(), float) == pytest.approx([20_000, 80_000, 300_000])
    assert np.asarray(curve.get_ydata(), float) == pytest.approx(list(GAIN.values()))


def test_figure_7_judges_c6_for_each_kind(tmp_path: Path) -> None:
    write_table(record(), tmp_path / "fig7.csv", COLUMNS)
    _, lines = fig7.draw(tmp_path, DIGITS)
    names = [line.partition(":")[0] for line in lines]
    assert names == ["C6a (CLIP)", "C6a (Llama)", "C6b (CLIP)", "C6b (Llama)"]
    assert "= -0.00300 nats" in lines[0]


def test_table_3_shows_each_model_s_numbers(tmp_path: Path) -> None:
    write_table(record(), tmp_path / "table3_record.csv", COLUMNS)
    table3.draw(tmp_path, DIGITS)
    with (tmp_path / "table3.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [f"digits {m}" for m in PARAMETERS for _ in range(7)]
    shown = [(row["method"], row["members"]) for row in rows[:7]]
    sizes = [("LPE-BSR, INT-5", str(size)) for size in DIGITS.settings.table_sizes]
    assert shown == [("☆ single FP32", "1"), ("FP32 + temperature", "1"), ("RTN, INT-5", "1"), *sizes]
    assert rows[6]["NLL − FP32's"].startswith("-.0010")
    assert rows[-1]["parameters"] == "80000"
    assert rows[1]["AMB"] == "" and rows[-1]["AMB"] == ".01000"


def test_table_3_without_its_record_says_what_to_run(tmp_path: Path) -> None:
    write_table(record()[lambda rows: rows["method"] != "RTN"], tmp_path / "table3_record.csv", COLUMNS)
    with pytest.raises(InputError, match="table3_record.csv has no rows: nll of RTN"):
        table3.draw(tmp_path, DIGITS)


# The real thing, at the reduced scale.


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Iterator[Session]:
    with opened("test", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        yield session


def test_a_llama_s_rows_are_of_its_own_test_questions(session: Session) -> None:
    unit = Unit("tiny Llama-S", LARGE, 0)
    measure(session, unit)
    rows = rows_of(session, [unit])
    assert set(rows["substrate"]) == {"tiny Llama-S"} and set(rows["point"]) == {"SGD"}
    assert set(rows["method"]) == {"FP32", "FP32 + temperature", "RTN", "LPE-BSR"}
    assert set(rows["number_system"]) == {"fp32", f"int{session.scale.settings.large_bits}"}
    sizes = rows[(rows["method"] == "LPE-BSR") & (rows["metric"] == "nll")]["size"]
    assert sorted(sizes) == list(range(1, session.scale.settings.size + 1))


def test_figure_7_is_the_same_when_it_is_drawn_again(
    tiny: Scale, figure: Callable[..., int], tmp_path: Path
) -> None:
    assert figure(fig7, tmp_path / "out", "--seeds", "1") == 0
    record_, picture = (tmp_path / "out" / f"fig7.{ending}" for ending in ("csv", "png"))
    before = record_.read_bytes(), picture.read_bytes()
    assert figure(fig7, tmp_path / "out", "--plot-only") == 0
    assert (record_.read_bytes(), picture.read_bytes()) == before


def test_the_gain_panel_has_the_interval_of_the_paired_difference(drawn: matplotlib.figure.Figure) -> None:
    rows = record()
    own = rows[(rows["substrate"] == "digits CLIP-S") & (rows["metric"] == "nll")]
    low = own[(own["method"] == "LPE-BSR") & (own["size"] == 20)].set_index("seed")["value"]
    single = own[own["method"] == "FP32"].set_index("seed")["value"]
    segments = drawn.axes[-2].collections[0].get_segments()  # type: ignore[attr-defined]
    assert segments[0][:, 1] == pytest.approx(student_interval((low - single).to_numpy()))
