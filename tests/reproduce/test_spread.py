"""The picture of the spread, and the rows of the tuned spread in tables, from made-up records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import lpe
from lpe.errors import InputError
from lpe.records import COLUMNS
from reproduce import spread, table5, table6
from reproduce.command import run_figure, seedless
from reproduce.draw import page, panels
from reproduce.draw.summaries import Summary, What, tuned_note, tuned_pair
from reproduce.judge.intervals import student_interval
from reproduce.scales import own
from reproduce.study.scale import Scale

TOY = Path(__file__).parent / "scales" / "toy.py"
NAME = "toy net, spread"
SPREADS, STDS = (4.0, 8.0, 11.3, 32.0), (0.005, 0.01, 0.02, 0.04)
LEVELS = {"nll": (0.9, 0.7, 0.6, 0.65), "calibrated_nll": (0.7, 0.65, 0.62, 0.64)}
WORSE = 0.05
"""Of the noise."""
CHOSEN = {"spread": (11.3, 11.3, 8.0), "std": (0.02, 0.02, 0.02)}
"""At training seeds 0, 1 and 2."""


def scale_of(**settings: Any) -> Scale:
    toy = own.load(str(TOY))
    assert toy.beyond is not None
    grids: dict[str, Any] = {
        "spreads": SPREADS,
        "stds": STDS,
        "rates": (0.1, 0.2, 0.3, 0.4),
        "seeds": 3,
        "size": 3,
    }
    return replace(toy, beyond=replace(toy.beyond, **{**grids, **settings}))


def record(substrate: str = NAME) -> pd.DataFrame:
    """Three seeds, .1 apart, whose differences to FP32 are .001 apart."""
    rows: list[tuple[object, ...]] = []

    def add(seed: int, method: str, system: str, size: int, metric: str, value: float) -> None:
        rounding = "bernoulli" if method.startswith("LPE-BSR") else ""
        bits = 32 if system == "fp32" else 5
        key = ("toy", substrate, "SGD", method, system, rounding, size, seed, metric)
        rows.append((*key, value, bits * 100 * size, 7))

    for seed in range(3):
        for metric, levels in LEVELS.items():
            at = 0.1 * seed
            add(seed, "FP32", "fp32", 1, metric, levels[0] + at)
            if metric == "nll":
                add(seed, "FP32 + temperature", "fp32", 1, metric, 0.72 + at)
            for place, level in enumerate(levels):
                value = level + at + 0.001 * seed * (place + 1)
                system = lpe.Int(8, spread=SPREADS[place]).name
                add(seed, "LPE-BSR", system, 3, metric, value)
                noise = f"Gaussian, std {STDS[place]:g}"
                add(seed, noise, "fp32", 3, metric, value + WORSE)
                if SPREADS[place] == CHOSEN["spread"][seed]:
                    add(seed, "LPE-BSR, tuned spread", "int8", 3, metric, value)
                if STDS[place] == CHOSEN["std"][seed]:
                    add(seed, "Gaussian, tuned std", "fp32", 3, metric, value + WORSE)
        add(seed, "LPE-BSR, tuned spread", "int8", 3, "setting", CHOSEN["spread"][seed])
        add(seed, "Gaussian, tuned std", "fp32", 3, "setting", CHOSEN["std"][seed])
    return pd.DataFrame(rows, columns=list(COLUMNS))


SINGLE = What(NAME, "SGD", "FP32")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Figure]:
    """The picture in a column of 5.5 inches, still open."""
    kept: list[Figure] = []

    def keep(figure: Figure, folder: Path, name: str) -> list[Path]:
        kept.append(figure)
        return []

    monkeypatch.setattr(panels, "save", keep)
    record().to_csv(tmp_path / "spread.csv", index=False)
    with page.page(5.5):
        spread.draw(tmp_path, scale_of())
    kept[0].canvas.draw()
    yield kept[0]
    panels.plt.close(kept[0])


def line(figure: Figure, panel: int, label: str) -> np.ndarray:
    """The points of the lines of a label in a panel: [points, 2]."""
    found = [each for each in figure.axes[panel].get_lines() if each.get_label() == label]
    assert found, label
    return np.concatenate([np.column_stack(each.get_data()) for each in found]).astype(float)


def test_an_interval_is_that_of_the_paired_difference_around_the_unrounded_networks_mean() -> None:
    scale = scale_of()
    assert scale.beyond is not None
    grid, _ = spread.grids_of(scale, scale.beyond)
    table = spread.knob_table(Summary("spread", record()), grid, "nll", SINGLE)
    # At 8: .7 − .9 + .001·2·seed, around FP32's .9 + .1 in the mean.
    differences = np.array([0.7 - 0.9 + 0.002 * seed for seed in range(3)])
    low, high = student_interval(differences)
    wanted = [1.0 + differences.mean(), 1.0 + low, 1.0 + high]
    (row,) = table[table["value"] == 8.0].to_numpy().tolist()
    assert row == pytest.approx([8.0, *wanted])


def test_an_interval_of_levels_would_be_told_apart() -> None:
    levels = np.array([0.7 + 0.1 * seed + 0.002 * seed for seed in range(3)])
    low, high = student_interval(levels)
    assert high - low > 0.3


def test_settings_stand_in_order_whatever_the_grids() -> None:
    scale = scale_of(spreads=SPREADS[::-1])
    assert scale.beyond is not None
    grid, _ = spread.grids_of(scale, scale.beyond)
    table = spread.knob_table(Summary("spread", record()), grid, "nll", SINGLE)
    assert table["value"].tolist() == sorted(SPREADS)


def test_a_record_whose_rows_share_no_seed_is_refused() -> None:
    rows = record()
    apart = pd.concat([rows[(rows["method"] == "FP32") & (rows["seed"] == 0)], rows[rows["seed"] == 1]])
    apart = apart[~((apart["method"] == "FP32") & (apart["seed"] == 1))]
    scale = scale_of()
    assert scale.beyond is not None
    grid, _ = spread.grids_of(scale, scale.beyond)
    with pytest.raises(InputError, match="share no training seed"):
        spread.knob_table(Summary("spread", apart), grid, "nll", SINGLE)


@pytest.mark.parametrize(("panel", "metric"), [(0, "nll"), (2, "calibrated_nll")])
def test_each_panel_has_its_metric_against_the_spread(drawn: Figure, panel: int, metric: str) -> None:
    means = [level + 0.1 + 0.001 * (place + 1) for place, level in enumerate(LEVELS[metric])]
    found = line(drawn, panel, "LPE-BSR")
    np.testing.assert_allclose(found, np.column_stack([SPREADS, means]))
    noise = line(drawn, panel + 1, "Gaussian noise")
    np.testing.assert_allclose(noise, np.column_stack([STDS, np.array(means) + WORSE]))


def test_stars_are_at_the_values_that_were_chosen_with_the_seeds_that_did(drawn: Figure) -> None:
    stars = line(drawn, 0, "tuned (number: training seeds)")
    assert stars[:, 0].tolist() == [8.0, 11.3]
    numbers = [text.get_text() for text in drawn.axes[0].texts if text.get_text().isdecimal()]
    assert numbers == ["1", "2"]
    assert line(drawn, 1, "tuned (number: training seeds)")[:, 0].tolist() == [0.02]


def test_the_tuned_ensembles_have_a_line_at_the_mean_of_what_each_seed_chose(drawn: Figure) -> None:
    # Seeds 0 and 1 at 11.3, seed 2 at 8.
    mean = np.mean([0.6, 0.6 + 0.1 + 0.003, 0.7 + 0.2 + 0.004])
    assert line(drawn, 0, "LPE-BSR, tuned, mean")[:, 1] == pytest.approx([mean, mean])


def test_the_single_network_is_a_line_and_with_a_temperature_where_nothing_is_calibrated(
    drawn: Figure,
) -> None:
    for panel, level in ((0, 1.0), (1, 1.0), (2, 0.8), (3, 0.8)):
        assert line(drawn, panel, "single FP32")[:, 1] == pytest.approx([level, level])
        labels = [each.get_label() for each in drawn.axes[panel].get_lines()]
        assert ("single FP32 + temperature" in labels) == (panel < 2)


def test_below_each_spread_stand_the_bits_that_its_codes_take(drawn: Figure) -> None:
    labels = [text.get_text() for text in drawn.axes[0].get_xticklabels()]
    assert labels == ["4\n7 bits", "8\n6 bits", "11.3\n5 bits", "32\n4 bits"]


def test_grey_lines_say_where_the_step_is_of_whole_bits(drawn: Figure) -> None:
    # 127/31, 127/7 and 127/3 of INT-6, INT-4 and INT-3, of which the last lies beyond the grid.
    named = {
        text.get_text(): text.xy[0]  # type: ignore[attr-defined]
        for text in drawn.axes[0].texts
        if text.get_text().startswith("INT-")
    }
    assert named == {"INT-6": pytest.approx(127 / 31), "INT-4": pytest.approx(127 / 7)}


def test_settings_far_too_large_are_cut_and_said_and_press_nothing_together() -> None:
    table = pd.DataFrame({"value": [1.0, 2.0, 3.0], "mean": [0.45, 0.40, 1.3], "low": np.nan, "high": np.nan})
    other = table.assign(mean=[0.46, 0.42, 0.44])
    with panels.style():
        _, (far, near) = panels.plt.subplots(1, 2, sharey=True)
        for axes, here in ((far, table), (near, other)):
            axes.plot(here["value"], here["mean"])
            panels.limit_values(axes, [table, other], [0.5], spread.far_end([table, other], 0.5), [here])
    # The best is .1 below the unrounded network.
    assert far.get_ylim()[1] == pytest.approx(0.7)
    assert [text.get_text() for text in far.texts] == ["up to 1.3"]
    assert not near.texts
    panels.plt.close()


def test_no_text_is_smaller_than_6_5_points_in_a_column_of_5_5_inches(drawn: Figure) -> None:
    written = [text for text in drawn.findobj(Text) if isinstance(text, Text) and text.get_text()]
    assert min(float(text.get_fontsize()) for text in written) >= 6.5


def test_a_std_of_0_has_an_even_axis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scale = scale_of(stds=(0.0, *STDS[1:]))
    rows = record()
    rows["method"] = rows["method"].replace("Gaussian, std 0.005", "Gaussian, std 0")
    rows.to_csv(tmp_path / "spread.csv", index=False)
    paths, _ = spread.draw(tmp_path, scale)
    assert [path.name for path in paths] == ["spread.pdf", "spread.png"]


def test_it_prints_both_verdicts_of_c15_and_no_other(tmp_path: Path) -> None:
    record().to_csv(tmp_path / "spread.csv", index=False)
    _, lines = spread.draw(tmp_path, scale_of())
    assert [each.partition(":")[0] for each in lines] == ["C15 (raw)", "C15 (calibrated)"]
    assert not [each for each in lines if "not run" in each]


def test_a_scale_that_measures_nothing_beyond_the_paper_lacks_it() -> None:
    toy = own.load(str(TOY))
    assert spread.lacks(toy) == ""
    assert "tuned spread" in spread.lacks(replace(toy, beyond=None))
    assert "tuned spread" in spread.lacks(replace(toy, main=None))


# Tables 5 and 6.


def test_tables_show_the_tuned_pair_of_a_record_and_say_what_it_was_tuned_to() -> None:
    scale, summary = scale_of(), Summary("table5", record())
    titles = ["LPE-BSR, INT-8 of tuned spread", "Gaussian, tuned as the spread"]
    assert [title for _, title in tuned_pair(summary, scale, "toy net")] == titles
    (note,) = tuned_note(summary, scale, "toy net")
    assert "from 4 values each" in note and "(3 training seeds): spread 8 and 11.3; std 0.02." in note


def test_a_record_or_a_scale_without_a_tuned_spread_has_no_such_rows() -> None:
    rows = record()
    older = Summary("table5", rows[~rows["method"].str.contains("tuned")])
    for scale, summary in ((scale_of(), older), (replace(scale_of(), beyond=None), Summary("t", rows))):
        assert tuned_pair(summary, scale, "toy net") == [] and tuned_note(summary, scale, "toy net") == []


@pytest.mark.parametrize("module", [table5, table6])
def test_both_tables_want_the_units_and_only_at_seeds_that_there_are(module: object, tmp_path: Path) -> None:
    session = seedless(scale_of(seeds=1))
    session.seeds, session.claim_seeds = [0, 1], [0, 1]
    found = [unit for unit in module.wanted(session) if unit.what == "spread"]  # type: ignore[attr-defined]
    wanted = "toy net" if module is table5 else "toy net-8"
    assert [(unit.substrate, unit.seed) for unit in found] == [(wanted, 0)]


def test_the_picture_is_drawn_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    out = tmp_path / "out"
    arguments = ["--scale", str(TOY), "--out", str(out), "--seeds", "1", "--wandb", "disabled"]
    assert run_figure(spread.SCRIPT, arguments, quiet=True) == 0
    assert "C15 (raw): " in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        f"spread.{kind}" for kind in ("csv", "json", "pdf", "png")
    }
    found = pd.read_csv(out / "spread.csv", keep_default_na=False)
    assert {"int8*8", "int8*16", "int8", "fp32"} == set(found["number_system"])
