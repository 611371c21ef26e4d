"""The figure of why it works, from a synthetic record whose numbers are known.

``record`` has four layers, every method around one point and two posteriors, the shares of members better
than RTN and predictions of two ensembles, at three training seeds that differ by offsets, which pairing
removes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

import lpe
from lpe.errors import InputError
from lpe.records import COLUMNS
from reproduce import why
from reproduce.draw import page, panels
from reproduce.draw.summaries import Summary
from reproduce.judge.intervals import student_interval
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.beyond.names import (
    CALIBRATED_THEN_POOLED,
    CLEAN,
    NOISE,
    POOLED_THEN_CALIBRATED,
    alone,
    dropped,
    noise_name,
    shown,
)
from reproduce.study.records import BETTER_THAN_RTN, record_name
from reproduce.study.scale import Beyond, Scale

SEEDS = 3
BEYOND = Beyond(
    size=10,
    seeds=SEEDS,
    spread_bits=8,
    spreads=(5.7, 11.3, 22.6),
    stds=(0.01, 0.02, 0.04),
    rates=(0.01, 0.05, 0.1),
    pool=20,
    calibration=10,
    views=3,
    sensitivity=2,
    shifts=None,
)
SCALE: Scale = replace(DIGITS, beyond=BEYOND)
BEST = f"int{SCALE.settings.best_bits}"
LAYERS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "head.weight")
NETWORK = SCALE.substrate
SINGLE = 0.3


def offset(seed: int, what: int = 0) -> float:
    """What a training seed adds to all losses; and the part of a row that pairing does not remove."""
    return 0.05 * seed + 0.001 * ((seed * 7 + what * 3) % 5)


def record() -> pd.DataFrame:
    """The rows of the figure."""
    rows: list[tuple[object, ...]] = []

    def add(
        examples: str, point: str, method: str, system: str, size: int, seed: int, **values: float
    ) -> None:
        rounding = "nearest" if method == "RTN" else "bernoulli" * method.startswith("LPE")
        substrate = shown(NETWORK, examples) if examples else SCALE.points_substrate
        for metric, value in values.items():
            key = (SCALE.name, substrate, point, method, system, rounding, size, seed)
            rows.append((*key, metric, value, 1000 * size, 10))

    def around(point: str, method: str, system: str, size: int, seed: int, noise: float) -> None:
        ambiguity = 0.2 * noise**2 * (size > 1)
        loss = SINGLE + offset(seed, len(rows)) + 0.4 * noise**2
        add(
            *(NOISE, point, method, system, size, seed),
            nll=loss - 1.5 * ambiguity,
            average_loss=loss,
            ambiguity=ambiguity,
            relative_noise=noise,
        )

    for seed in range(SEEDS):
        for place, layer in enumerate(LAYERS):
            cost = 0.01 * (place + 1)
            add(
                *(alone(layer), "SGD", "LPE-BSR", BEST, 2, seed),
                nll=SINGLE + 0.05 * seed + cost + 0.0001 * (seed - 1),
                average_loss=SINGLE + 0.05 * seed + 1.1 * cost,
                ambiguity=cost / 5,
                relative_noise=0.01,
                layer=float(place),
                weights=100.0,
            )
        for point in ("SGD", "SWAG", "IVON"):
            level = SINGLE + 0.05 * seed + 0.02 * (point == "IVON")
            add(
                *(NOISE, point, "FP32", "fp32", 1, seed),
                nll=level,
                average_loss=level,
                ambiguity=0.0,
                relative_noise=0.0,
            )
        for bits in SCALE.settings.bits:
            noise = 2.0 ** (1 - bits)
            for method, size in (("LPE-BSR", 10), ("RTN", 1), ("Gaussian, matched", 10)):
                around("SGD", method, f"int{bits}", size, seed, noise)
            share = 0.3 + 0.1 * bits / 5 + 0.02 * seed
            size = SCALE.settings.claim_size
            add("", "SGD", "LPE-BSR", f"int{bits}", size, seed, **{BETTER_THAN_RTN: share})
        for spread, std, rate in zip(BEYOND.spreads, BEYOND.stds, BEYOND.rates, strict=True):
            around("SGD", "LPE-BSR", lpe.Int(8, spread=spread).name, 10, seed, spread / 100)
            around("SGD", noise_name(std), "fp32", 10, seed, 5 * std)
            around("SGD", dropped(rate), "fp32", 10, seed, (rate / (1 - rate)) ** 0.5)
        for point in ("SWAG", "IVON"):
            around(point, "BMA", "fp32", 10, seed, 0.08)
        add(CLEAN, "SGD", "FP32", "fp32", 1, seed, nll=SINGLE + 0.05 * seed)
        for place, (method, system) in enumerate((("LPE-BSR", BEST), ("Gaussian", "fp32"))):
            both = {
                CALIBRATED_THEN_POOLED: 0.28 + 0.05 * seed + 0.01 * (place + 1) + 0.001 * seed,
                POOLED_THEN_CALIBRATED: 0.28 + 0.05 * seed,
            }
            add(CLEAN, "SGD", method, system, 10, seed, nll=0.29, **both)
    return pd.DataFrame(rows, columns=list(COLUMNS))


RECORD = record()


def figure_of(table: pd.DataFrame, folder: Path, scale: Scale = SCALE) -> tuple[Figure, list[str]]:
    """The figure that is drawn of a record, and the lines that it prints; nothing is rendered."""
    table.to_csv(folder / record_name("why"), index=False)
    figures: list[Figure] = []

    def keep(figure: Figure, folder: Path, name: str) -> list[Path]:
        figures.append(figure)
        panels.plt.close(figure)
        return []

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(panels, "save", keep)
        _, lines = why.SCRIPT.draw(folder, scale)
    return figures[0], lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("why")


@pytest.fixture(scope="module")
def drawn(folder: Path) -> Iterator[tuple[Figure, list[str]]]:
    with page.page(5.5):
        yield figure_of(RECORD, folder)


def curve(axes: Axes, label: str) -> np.ndarray:
    """The points [n, 2] of the curve of that name."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    line = handles[label].lines[0]
    return np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])


def paired_mean(method: str, system: str, metric: str, point: str = "SGD") -> float:
    """Mean over seeds of a metric less the unrounded network's NLL."""
    rows = RECORD[(RECORD["substrate"] == shown(NETWORK, NOISE)) & (RECORD["point"] == point)]
    values = rows[(rows["method"] == method) & (rows["number_system"] == system) & (rows["metric"] == metric)]
    single = rows[(rows["method"] == "FP32") & (rows["metric"] == "nll")]
    return float((values.set_index("seed")["value"] - single.set_index("seed")["value"]).mean())


def test_what_is_of_fewer_training_seeds_is_said_in_the_legend(
    drawn: tuple[Figure, list[str]], tmp_path: Path
) -> None:
    def said(figure: Figure) -> str:
        return figure.legends[0].get_title().get_text().replace("\n", " ")

    assert "over 3 training seeds; noise:" in said(drawn[0])
    later = RECORD["seed"] > 0
    left_out = later & ((RECORD["point"] == "SWAG") | (RECORD["metric"] == BETTER_THAN_RTN))
    with page.page(5.5):
        fewer, _ = figure_of(RECORD[~left_out], tmp_path)
    assert "over 3 training seeds; share of members: over 1; SWAG, BMA: over 1; noise:" in said(fewer)


def test_layers_stand_in_the_networks_order_not_in_the_records(drawn: tuple[Figure, list[str]]) -> None:
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LAYERS)
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first is at the top"


def test_a_layers_loss_is_paired_with_the_unrounded_networks(drawn: tuple[Figure, list[str]]) -> None:
    dots = [line for line in drawn[0].axes[0].get_lines() if line.get_marker() == "o"]
    assert [float(np.ravel(dot.get_xdata())[0]) for dot in dots] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    bars = [line for line in drawn[0].axes[0].get_lines() if len(np.ravel(line.get_ydata())) == 2]
    first = next(bar for bar in bars if set(np.ravel(bar.get_ydata())) == {0})
    expected = student_interval(np.array([0.01 - 0.0001, 0.01, 0.01 + 0.0001]))
    assert np.ravel(first.get_xdata()) == pytest.approx(expected)


@pytest.mark.parametrize(("panel", "metric"), [(2, "average_loss"), (4, "nll")])
def test_a_curve_lies_at_its_noise_and_at_its_difference_to_the_network(
    drawn: tuple[Figure, list[str]], panel: int, metric: str
) -> None:
    axes = drawn[0].axes[panel]
    bits = sorted(SCALE.settings.bits, reverse=True)
    for label, method in (("LPE-BSR, by bits", "LPE-BSR"), ("RTN, by bits", "RTN")):
        points = curve(axes, label)
        assert points[:, 0] == pytest.approx([2.0 ** (1 - width) for width in bits])
        assert points[:, 1] == pytest.approx([paired_mean(method, f"int{width}", metric) for width in bits])
    spread = curve(axes, "LPE-BSR, by spread")
    assert spread[:, 0] == pytest.approx([each / 100 for each in BEYOND.spreads])
    posterior = curve(axes, "IVON, BMA")
    assert posterior[:, 1] == pytest.approx([paired_mean("BMA", "fp32", metric, "IVON")])


def test_one_network_has_no_ambiguity_and_no_curve_of_it(drawn: tuple[Figure, list[str]]) -> None:
    _, labels = drawn[0].axes[3].get_legend_handles_labels()
    assert "LPE-BSR, by bits" in labels and "RTN, by bits" not in labels


def test_the_share_better_than_rtn_is_that_of_the_points(drawn: tuple[Figure, list[str]]) -> None:
    axes = drawn[0].axes[5]
    widths = sorted(SCALE.settings.bits)
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"INT-{bits}" for bits in widths]
    bars = [each for each in axes.containers if isinstance(each, ErrorbarContainer)]
    means = [float(np.ravel(each.lines[0].get_ydata())[0]) for each in bars]
    assert means == pytest.approx([0.3 + 0.02 * bits + 0.02 for bits in widths])


def test_calibrating_first_is_judged_by_its_paired_change(drawn: tuple[Figure, list[str]]) -> None:
    axes = drawn[0].axes[6]
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    named = dict(zip((t.get_text() for t in axes.get_yticklabels()), dots, strict=True))
    found = {name: float(np.ravel(dot.get_xdata())[0]) for name, dot in named.items()}
    best = SCALE.settings.best_bits
    assert found == pytest.approx({f"LPE-BSR, INT-{best}": 0.011, "Gaussian, tuned": 0.021})


def test_panels_are_lettered_and_no_text_is_smaller_than_6_5_points(
    drawn: tuple[Figure, list[str]],
) -> None:
    figure = drawn[0]
    assert [ax.get_title(loc="left")[:3] for ax in figure.axes] == [f"({each})" for each in "abcdefg"]
    figure.canvas.draw()
    written = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    assert figure.get_figwidth() == 5.5
    assert min(float(text.get_fontsize()) for text in written) >= 6.5


def test_the_lines_add_the_layers_up_and_set_rounding_beside_noise(drawn: tuple[Figure, list[str]]) -> None:
    layers, *noise = [line for line in drawn[1] if not line.startswith("C14")]
    assert "adds up to +0.1100 nats over 4 layers" in layers
    assert "most of one layer: head.weight, +0.0440" in layers
    assert [line.partition(",")[0] for line in noise] == [f"INT-{bits}" for bits in SCALE.settings.bits]
    assert [line for line in drawn[1] if line.startswith("C14: reported")]


def test_the_table_has_every_method_at_every_setting(drawn: tuple[Figure, list[str]], folder: Path) -> None:
    table = pd.read_csv(folder / "why.csv", keep_default_na=False)
    bits = len(SCALE.settings.bits)
    counts = table["method"].value_counts().to_dict()
    assert counts == {
        "LPE-BSR": bits + 3,
        "RTN": bits,
        "Gaussian noise of LPE-BSR's variance": bits,
        "Gaussian noise": 3,
        "MC-dropout": 3,
        "SWAG, BMA": 1,
        "IVON, BMA": 1,
    }
    assert set(table[table["method"] == "RTN"]["members"]) == {1}


def test_a_record_without_predictions_has_no_panel_of_the_order(tmp_path: Path) -> None:
    table = RECORD[RECORD["substrate"] != shown(NETWORK, CLEAN)]
    figure, _ = figure_of(table, tmp_path)
    assert [ax.get_title(loc="left")[:3] for ax in figure.axes] == [f"({each})" for each in "abcdef"]


def test_one_training_seed_is_drawn_without_intervals(tmp_path: Path) -> None:
    figure, _ = figure_of(RECORD[RECORD["seed"] == 0], tmp_path)
    for axes in figure.axes[2:6]:
        bars = [each for each in axes.containers if isinstance(each, ErrorbarContainer)]
        assert bars and not [each for each in bars if each.has_yerr]


def test_a_record_without_layers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="why_record.csv has no rows of layers of digits ViT; run python"):
        figure_of(RECORD[RECORD["metric"] != "layer"], tmp_path)


def test_a_method_that_the_record_lacks_has_no_curve() -> None:
    summary = Summary("why", RECORD[RECORD["method"] != "BMA"])
    named = [kind.name for kind in why.kinds(summary, SCALE)]
    assert "LPE-BSR, by bits" in named and not [name for name in named if "BMA" in name]


def test_a_scale_without_settings_for_it_lacks_it() -> None:
    assert why.lacks(replace(SCALE, beyond=None)) and not why.lacks(SCALE)


def test_the_provenance_names_the_predictions_behind_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Panel (g) is drawn from them."""
    session = SimpleNamespace(scale=SCALE, seeds=[0, 1], out=tmp_path)
    monkeypatch.setattr(why, "measure_all", lambda *_: None)
    monkeypatch.setattr(why, "_of_points", lambda _: [])
    monkeypatch.setattr(why, "rows_of", lambda *_: record())
    monkeypatch.setattr(why, "log_sizes", lambda *_: None)
    monkeypatch.setattr(why, "files", lambda _, units: {str(unit): [] for unit in units})
    assert list(why.compute(session)["predictions"]) == [  # type: ignore[call-overload, arg-type]
        f"{NETWORK}: predictions, seed {seed}" for seed in (0, 1)
    ]
