"""Figures 5, 8 and 9 from synthetic records whose numbers are known.

``record`` makes what the measurements would: four bases a family, each expanded into five low precision
members (MultiIVON: four posteriors of five draws each), a network of 70,000 weights, and a training that
costs 2,770 backward passes, 1,720 more for each base.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpe import tracking
from lpe.errors import InputError
from lpe.records import COLUMNS, Records
from lpe.store import Store
from reproduce import fig5, fig8, fig9
from reproduce.draw import budgets, panels
from reproduce.draw.summaries import FP32, SCALED, Summary, What
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.scale import Scale
from reproduce.study.session import Session

WEIGHTS, LEFTOVERS = 67_000, 70_000
MODEL_BITS = 32 * WEIGHTS + LEFTOVERS
FIRST, FURTHER = 2770, 1720
BASES, EXPANSION = 4, DIGITS.settings.expansion
SEEDS = 5
FAMILIES = {"SSE": 1, "DE": 1, "CSGLD": 3, "MultiIVON": 5}
"""Members that come from one base training."""


def low_bits(bits: int, members: int, bases: int = 1) -> int:
    """Memory of low precision members of several bases."""
    return bits * WEIGHTS * members + LEFTOVERS * bases


def passes(family: str, size: int) -> int:
    """What the first members of a family cost: CSGLD's samples lie 43 passes apart, at a cycle's end."""
    base, place = divmod(size - 1, FAMILIES[family])
    later = 43 * (FAMILIES[family] - 1 - place) if family == "CSGLD" else 0
    return FIRST + FURTHER * base - later


def record(seeds: int = SEEDS) -> pd.DataFrame:
    """The rows of figures 5, 8 and 9."""
    noise = np.random.default_rng(0)
    rows: list[tuple[object, ...]] = []

    def add(
        point: str,
        method: str,
        system: str,
        size: int,
        seed: int,
        values: Mapping[str, float],
        memory: int,
        cost: int = FIRST,
    ) -> None:
        rounding = "nearest" if "RTN" in method else "bernoulli" if system != "fp32" else ""
        for metric, value in values.items():
            key = ("digits", DIGITS.substrate, point, method, system, rounding, size, seed, metric)
            rows.append((*key, value, memory, cost))

    def both(nll: float) -> dict[str, float]:
        return {"nll": nll + 0.001 * noise.normal(), "ece": 0.2 * nll + 0.0005 * noise.normal()}

    for seed in range(seeds):
        level = 0.058 + 0.008 * noise.normal()
        for point in ("SGD", "SWAG", "IVON"):
            add(point, FP32, "fp32", 1, seed, {**both(level), "generator_bits": MODEL_BITS}, MODEL_BITS)
            add(point, SCALED, "fp32", 1, seed, both(level + 0.002), MODEL_BITS + 32)
            for bits, loss in zip(DIGITS.settings.bits, (0.002, 0.006, 0.05), strict=True):
                for n in range(1, DIGITS.settings.size + 1):
                    generator = {"generator_bits": low_bits(8, 1)}
                    files = (
                        {"file_bytes": low_bits(bits, n) / 8 + 4000}
                        if seed == 0 and n in DIGITS.settings.table_sizes
                        else {}
                    )
                    values = {**both(level - 0.001 + loss / n), **generator, **files}
                    add(point, "LPE-BSR", f"int{bits}", n, seed, values, low_bits(bits, n))
            if point != "SGD":
                factor = 2 if point == "IVON" else 22
                for n in range(1, DIGITS.settings.size + 1):
                    files = (
                        {"file_bytes": n * MODEL_BITS / 8 + 2000}
                        if seed == 0 and n in DIGITS.settings.table_sizes
                        else {}
                    )
                    values = {**both(level + 0.02 / n), "generator_bits": factor * MODEL_BITS, **files}
                    add(point, "BMA", "fp32", n, seed, values, n * MODEL_BITS)
        for family, draws in FAMILIES.items():
            models = BASES * draws
            for n in range(1, models + 1):
                nll = level * (0.75 + 0.25 / n)
                add(family, family, "fp32", n, seed, both(nll), n * MODEL_BITS, passes(family, n))
                for bits in (8, 4):
                    values, memory = both(nll + 0.01 / bits), low_bits(bits, n, n)
                    add(family, f"{family} by RTN", f"int{bits}", n, seed, values, memory, passes(family, n))
            for n in range(1, models * EXPANSION + 1):
                bases = -(-n // EXPANSION)
                nll = level * (0.74 + 0.25 / bases) + 0.002 / n
                memory = low_bits(DIGITS.settings.best_bits, n, bases)
                method, system = f"{family} + LPE-BSR", f"int{DIGITS.settings.best_bits}"
                add(family, method, system, n, seed, both(nll), memory, passes(family, bases))
    return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    """The record of five training seeds."""
    return record()


HALVES = ("a", "b", "b, against 4-bit members")
"""Of claims 4 and 8."""

Drawn = tuple[Figure, list[str]]


def draw(module: object, table: pd.DataFrame, folder: Path, scale: Scale = DIGITS) -> Drawn:
    """The figure that a module draws of a record, and the lines that it prints; nothing is rendered."""
    name = module.__name__.rsplit(".", 1)[-1]  # type: ignore[attr-defined]
    table.to_csv(folder / f"{name}.csv", index=False)
    figures: list[Figure] = []

    def keep(figure: Figure, folder: Path, name: str) -> list[Path]:
        figures.append(figure)
        panels.plt.close(figure)
        return []

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(panels, "save", keep)
        _, lines = module.SCRIPT.draw(folder, scale)  # type: ignore[attr-defined]
    return figures[0], lines


@pytest.fixture(scope="module")
def drawn(whole: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Callable[[object], Drawn]:
    """module → its figure of the whole record, drawn once, and the lines printed."""
    return functools.cache(lambda module: draw(module, whole, tmp_path_factory.mktemp("figure")))


def line(axes: Axes, label: str) -> np.ndarray:
    """The points [n, 2] of the one curve whose label begins so."""
    (found,) = [each for each in axes.get_lines() if str(each.get_label()).startswith(label)]
    return np.column_stack([np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)])


def mean_of(table: pd.DataFrame, metric: str = "nll", **equal: object) -> float:
    """Mean over training seeds of the rows with these values."""
    for column, value in {**equal, "metric": metric}.items():
        table = table[table[column] == value]
    assert len(table) == SEEDS
    return float(table["value"].mean())


def test_against_the_training_budget_sse_with_lpe_is_drawn_at_whole_bases_only(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    axes = drawn(fig5)[0].axes
    points = line(axes[0], "X + LPE-BSR")
    sizes = [base * EXPANSION for base in range(1, BASES + 1)]
    expected = [mean_of(whole, method="SSE + LPE-BSR", size=size) for size in sizes]
    np.testing.assert_allclose(points[:, 1], expected)


def test_against_the_training_budget_a_curve_lies_at_its_backward_passes(
    drawn: Callable[[object], Drawn],
) -> None:
    axes = drawn(fig5)[0].axes
    expected = [passes("SSE", n) / 1000 for n in range(1, BASES + 1)]
    np.testing.assert_allclose(line(axes[0], "X + LPE-BSR")[:, 0], expected)


def paired(table: pd.DataFrame, sizes: list[tuple[int, int]]) -> np.ndarray:
    """Mean over training seeds of SSE + LPE-BSR less SSE, at (its size, SSE's size)."""
    nll = table[table["metric"] == "nll"].set_index(["method", "size", "seed"])["value"].sort_index()
    return np.array([(nll["SSE + LPE-BSR", low] - nll["SSE", size]).mean() for low, size in sizes])


def test_the_difference_at_a_training_budget_is_of_all_members_that_it_pays_for(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    points = line(drawn(fig5)[0].axes[4], "X + LPE-BSR")
    expected = paired(whole, [(base * EXPANSION, base) for base in range(1, BASES + 1)])
    np.testing.assert_allclose(points[:, 1], expected)


def test_the_difference_at_a_memory_is_of_the_most_members_that_fit(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    points = line(drawn(fig5)[0].axes[6], "X + LPE-BSR")
    best = DIGITS.settings.best_bits

    def most(size: int) -> int:
        members = range(1, BASES * EXPANSION + 1)
        return max(n for n in members if low_bits(best, n, -(-n // EXPANSION)) <= size * MODEL_BITS)

    np.testing.assert_allclose(points[:, 0], [n * MODEL_BITS / 1e6 for n in range(1, BASES + 1)])
    expected = paired(whole, [(most(size), size) for size in range(1, BASES + 1)])
    np.testing.assert_allclose(points[:, 1], expected)


def test_against_memory_members_by_rtn_are_drawn_at_both_widths_and_not_against_training(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    axes = drawn(fig9)[0].axes
    for bits in (8, 4):
        label = f"X, INT-{bits} members by RTN"
        points = line(axes[10], label)  # DE's NLL
        expected = [mean_of(whole, method="DE by RTN", number_system=f"int{bits}", size=n) for n in (1, 4)]
        np.testing.assert_allclose(points[[0, -1], 1], expected)
        np.testing.assert_allclose(points[:, 0], [low_bits(bits, n, n) / 1e6 for n in range(1, BASES + 1)])
        assert not [each for each in axes[8].get_lines() if each.get_label() == label]


def test_the_difference_at_the_memory_of_4_bit_members_is_paired_with_these(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    points = line(drawn(fig5)[0].axes[6], "change from X's INT-4 members")
    nll = whole[whole["metric"] == "nll"].set_index(["method", "number_system", "size", "seed"])["value"]
    nll, best = nll.sort_index(), DIGITS.settings.best_bits

    def most(size: int) -> int:
        fits = [n for n in range(1, 21) if low_bits(best, n, -(-n // EXPANSION)) <= low_bits(4, size, size)]
        return max(fits, default=0)

    pairs = [(most(size), size) for size in range(1, BASES + 1) if most(size)]
    expected = [
        (nll["SSE + LPE-BSR", f"int{best}", low] - nll["SSE by RTN", "int4", size]).mean()
        for low, size in pairs
    ]
    np.testing.assert_allclose(points[:, 1], expected)


@pytest.mark.parametrize("module", [fig5, fig9])
def test_a_record_from_before_there_were_stored_members_is_drawn_without_them(
    module: object, whole: pd.DataFrame, tmp_path: Path
) -> None:
    axes = draw(module, whole[~whole["method"].str.endswith("by RTN")], tmp_path)[0].axes
    assert not [each for ax in axes for each in ax.get_lines() if "RTN" in str(each.get_label())]


def test_multi_ivon_at_a_training_budget_has_every_draw_of_the_posteriors_paid_for(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    axes = drawn(fig9)[0].axes
    points = line(axes[16], "MultiIVON, FP32 members")
    sizes = [base * FAMILIES["MultiIVON"] for base in range(1, BASES + 1)]
    expected = [mean_of(whole, method="MultiIVON", size=size) for size in sizes]
    np.testing.assert_allclose(points[:, 1], expected)


def test_against_memory_sse_with_lpe_is_drawn_at_every_prefix(
    drawn: Callable[[object], Drawn],
) -> None:
    axes = drawn(fig5)[0].axes
    expected = [
        low_bits(DIGITS.settings.best_bits, n, -(-n // EXPANSION)) / 1e6
        for n in range(1, BASES * EXPANSION + 1)
    ]
    np.testing.assert_allclose(line(axes[2], "X + LPE-BSR")[:, 0], expected)


def test_the_second_and_fourth_columns_show_ece(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    axes = drawn(fig5)[0].axes
    last = mean_of(whole, "ece", method="CSGLD", size=BASES * FAMILIES["CSGLD"])
    assert [line(axes[place], "CSGLD, FP32 members")[-1, 1] for place in (9, 11)] == pytest.approx(
        [last, last]
    )


def test_the_single_model_is_marked_at_its_own_training_and_memory(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    axes = drawn(fig9)[0].axes
    level = mean_of(whole, method=FP32, point="SGD")
    marks = [line(axes[place], "single FP32, at")[0].tolist() for place in (0, 2)]
    assert marks == [pytest.approx([FIRST / 1e3, level]), pytest.approx([MODEL_BITS / 1e6, level])]


def test_the_dotted_line_is_the_temperature_scaled_model(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    axes = drawn(fig9)[0].axes
    expected = mean_of(whole, method=SCALED, point="SGD")
    assert line(axes[0], "single FP32 + temperature")[0, 1] == pytest.approx(expected)


def test_the_single_models_are_those_of_the_familys_seeds(whole: pd.DataFrame, tmp_path: Path) -> None:
    # Otherwise a deep ensemble of one member lies apart from the single model that it is.
    families = whole["point"].isin(FAMILIES)
    few = whole[~families | (whole["seed"] < 2)]
    axes = draw(fig9, few, tmp_path)[0].axes
    single = whole[(whole["metric"] == "nll") & (whole["point"] == "SGD") & (whole["seed"] < 2)]
    level = single[single["method"] == FP32]["value"].mean()
    scaled = single[single["method"] == SCALED]["value"].mean()
    assert line(axes[0], "single FP32, at")[0, 1] == pytest.approx(level)
    assert line(axes[0], "single FP32 + temperature")[0, 1] == pytest.approx(scaled)


def test_the_interval_is_that_of_the_paired_difference(whole: pd.DataFrame) -> None:
    # A family that is better by .01 at every seed has an interval of width 0, however the seeds differ.
    single = whole[(whole["method"] == FP32) & (whole["point"] == "SGD") & (whole["metric"] == "nll")]
    reference = single.set_index("seed")["value"]
    curve = panels.budget_table(single.assign(value=single["value"] - 0.01), reference, "memory_bits")
    assert curve[["low", "high"]].iloc[0].tolist() == pytest.approx([reference.mean() - 0.01] * 2)


def test_a_curve_without_a_common_training_seed_is_refused(whole: pd.DataFrame) -> None:
    rows = whole[(whole["method"] == "DE") & (whole["metric"] == "nll")]
    with pytest.raises(InputError, match="size 1 shares no training seed with the single FP32 model"):
        panels.budget_table(rows, pd.Series({99: 0.1}), "memory_bits")


@pytest.mark.parametrize(
    ("module", "letters", "claims"),
    [
        (fig5, "abcdefghijklmnop", [f"C4{half} ({name})" for half in HALVES for name in fig5.FAMILIES]),
        (
            fig9,
            "abcdefghijklmnopqrstuvwx",
            [f"C8{half} ({name})" for half in HALVES for name in fig9.FAMILIES],
        ),
    ],
    ids=["fig5", "fig9"],
)
def test_the_panels_are_lettered_and_the_claims_judged(
    module: object, letters: str, claims: list[str], drawn: Callable[[object], Drawn]
) -> None:
    figure, lines = drawn(module)
    axes = figure.axes
    assert [ax.get_title(loc="left")[:3] for ax in axes] == [f"({letter})" for letter in letters]
    assert [printed.partition(":")[0] for printed in lines[:-1]] == claims
    assert not [printed for printed in lines if "not run" in printed]


def test_one_training_seed_is_drawn_without_intervals(
    tmp_path: Path,
) -> None:
    figure, _ = draw(fig5, record(seeds=1), tmp_path)
    assert not [ax for ax in figure.axes if ax.collections]


@pytest.mark.parametrize(("module", "method"), [(fig5, "CSGLD"), (fig9, "DE + LPE-BSR"), (fig8, "BMA")])
def test_missing_rows_are_one_line_that_says_what_to_run(
    module: object, method: str, whole: pd.DataFrame, tmp_path: Path
) -> None:
    name = module.__name__.rsplit(".", 1)[-1]  # type: ignore[attr-defined]
    with pytest.raises(InputError) as raised:
        draw(module, whole[whole["method"] != method], tmp_path)
    said = str(raised.value)
    assert "\n" not in said
    assert f"nll of {method}, " in said
    assert f"run python reproduce/{name}.py" in said


def test_figure_8_shows_stored_members_above_and_the_generator_below(
    drawn: Callable[[object], Drawn],
) -> None:
    axes = drawn(fig8)[0].axes
    stored, _, generator = axes[6:]  # IVON's
    expected = np.arange(1, DIGITS.settings.size + 1) * MODEL_BITS / 1e6
    assert line(stored, "BMA")[:, 0] == pytest.approx(expected)
    assert line(generator, "BMA")[:, 0] == pytest.approx([2 * MODEL_BITS / 1e6])


def test_figure_8_shows_members_as_planes_at_a_bit_a_weight_and_member(
    drawn: Callable[[object], Drawn],
) -> None:
    axes = drawn(fig8)[0].axes
    for bits in DIGITS.settings.bits:
        sizes = np.arange(1, DIGITS.settings.size + 1)
        expected = ((bits + sizes) * WEIGHTS + LEFTOVERS) / 1e6
        for panel in axes[:2]:  # SGD's levels and differences
            stored = line(panel, f"LPE-BSR, INT-{bits}")
            shown = [
                np.asarray(each.get_ydata(), float)
                for each in panel.get_lines()
                if np.asarray(each.get_xdata(), float) == pytest.approx(expected)
            ]
            assert len(shown) == 1 and (shown[0] == stored[:, 1]).all()


def test_figure_8_marks_a_file_where_its_bytes_are(
    drawn: Callable[[object], Drawn], whole: pd.DataFrame
) -> None:
    axes = drawn(fig8)[0].axes
    size = DIGITS.settings.table_sizes[1]
    bits = 8 * (low_bits(DIGITS.settings.bits[0], size) / 8 + 4000) / 1e6
    level = mean_of(
        whole, method="LPE-BSR", number_system=f"int{DIGITS.settings.bits[0]}", point="SGD", size=size
    )
    marks = [
        (float(np.asarray(each.get_xdata(), float)[0]), float(np.asarray(each.get_ydata(), float)[0]))
        for each in axes[0].get_lines()
        if each.get_markerfacecolor() == "white" and len(np.asarray(each.get_xdata()))
    ]
    assert (pytest.approx(bits), pytest.approx(level)) in marks


def test_figure_8_draws_every_bit_width_from_one_copy_in_8_bits(
    drawn: Callable[[object], Drawn],
) -> None:
    axes = drawn(fig8)[0].axes
    places = [line(axes[2], f"LPE-BSR, INT-{bits}")[0, 0] for bits in DIGITS.settings.bits]
    assert places == pytest.approx([low_bits(8, 1) / 1e6] * len(DIGITS.settings.bits))


def test_figure_8_judges_claim_7_at_both_posteriors_and_every_width(
    drawn: Callable[[object], Drawn],
) -> None:
    _, lines = drawn(fig8)
    expected = [f"C7 ({point}, INT-{bits})" for point in ("SWAG", "IVON") for bits in DIGITS.settings.bits]
    assert [printed.partition(":")[0] for printed in lines] == expected


def test_a_panel_cuts_off_a_far_first_point_and_says_so() -> None:
    figure, axes = panels.plt.subplots()
    curve = pd.DataFrame(
        {"budget": [1.0, 2.0, 3.0], "mean": [5.0, 0.11, 0.1], "low": 0.09, "high": [5.1, 0.13, 0.12]}
    )
    panels.limit_values(axes, [curve], [0.12])
    panels.plt.close(figure)
    assert axes.get_ylim()[1] < 1
    assert [text.get_text() for text in axes.texts] == ["up to 5"]


def test_a_panel_whose_values_lie_together_is_not_cut_off() -> None:
    figure, axes = panels.plt.subplots()
    curve = pd.DataFrame(
        {"budget": [1.0, 2.0], "mean": [0.12, 0.1], "low": [0.11, 0.09], "high": [0.13, 0.11]}
    )
    panels.limit_values(axes, [curve], [0.12])
    panels.plt.close(figure)
    assert axes.get_ylim()[0] < 0.09
    assert axes.get_ylim()[1] > 0.13
    assert not axes.texts


def test_two_rows_of_one_measurement_are_refused(whole: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="fig5.csv has two rows of .* seed 0"):
        Summary("fig5", pd.concat([whole, whole.iloc[:1]]))


def test_the_sizes_of_a_summary_are_those_with_rows_of_the_metric(whole: pd.DataFrame) -> None:
    what = What(DIGITS.substrate, "SGD", "LPE-BSR", "int5")
    assert Summary("fig8", whole).sizes(what, "file_bytes") == list(DIGITS.settings.table_sizes)


@pytest.mark.parametrize("module", [fig5, fig8, fig9], ids=["fig5", "fig8", "fig9"])
def test_no_text_of_a_figure_overlaps_another(module: object, drawn: Callable[[object], Drawn]) -> None:
    figure, _ = drawn(module)
    with panels.style():
        figure.draw_without_rendering()
    boxes = [
        (text.get_text(), text.get_window_extent())
        for ax in figure.axes
        for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label)  # type: ignore[attr-defined]
        if text.get_text()
    ]
    overlapping = [
        (one, other)
        for place, (one, box) in enumerate(boxes)
        for other, another in boxes[place + 1 :]
        if box.overlaps(another)
    ]
    assert overlapping == []


@pytest.mark.parametrize("widths", [(5, 4, 3), (5, 4), (5,)])
def test_the_legend_of_figure_8_is_not_cut_off_however_many_bit_widths_there_are(
    widths: tuple[int, ...], whole: pd.DataFrame, tmp_path: Path
) -> None:
    scale = replace(DIGITS, settings=replace(DIGITS.settings, bits=widths))
    figure, _ = draw(fig8, whole, tmp_path, scale)
    with panels.style():
        figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def session_of(seeds: list[int], claim_seeds: list[int], folder: Path) -> Session:
    """A session at digits in which nothing is measured."""
    return Session(
        store=Store(folder / "store"),
        tracker=tracking.Tracker(None),
        threads=1,
        device="cpu",
        quiet=True,
        scale=DIGITS,
        seeds=seeds,
        claim_seeds=claim_seeds,
        out=folder / "out",
        working=folder / "working",
    )


@pytest.mark.parametrize(("module", "whats"), [(fig5, {"SSE", "CSGLD"}), (fig9, {"SSE", "DE", "MultiIVON"})])
def test_the_units_of_a_budget_figure_are_its_families_and_the_single_model(
    module: object, whats: set[str], tmp_path: Path
) -> None:
    session = session_of([0, 1], [0, 1, 2], tmp_path)
    found = {(unit.what, unit.seed) for unit in module.wanted(session)}  # type: ignore[attr-defined]
    assert found == {(what, seed) for what in whats | {"SGD"} for seed in (0, 1)}


def test_the_record_of_figure_5_keeps_its_methods_alone(
    whole: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "measure_all", lambda *_: None)
    session = session_of([0], [0], tmp_path)
    for unit in fig5.wanted(session):
        here = whole[(whole["point"] == unit.what) & (whole["seed"] == unit.seed)]
        session.records[unit] = session.working / f"{unit.file}.csv"
        Records(session.records[unit]).add(here.to_dict("records"))
    fig5.compute(session)
    kept = Records(session.out / "fig5.csv").select()
    families = {f"{family}{form}" for family in ("SSE", "CSGLD") for form in ("", " + LPE-BSR", " by RTN")}
    assert set(kept["method"]) == families | {FP32, SCALED}
