"""Figures from nothing to pictures at a reduced scale: same bytes twice, resumed after a kill, redrawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import lpe
from lpe.records import COLUMNS
from reproduce import command, fig2, fig3, table7
from reproduce.scales.digits import images
from reproduce.scales.digits.settings import DIGITS
from reproduce.study import landscapes, points
from reproduce.study.scale import Scale

RECORDS = {
    fig2: ("fig2.csv",),
    fig3: ("fig3.csv", "fig3_landscape.csv", "fig3_members.csv"),
}


@pytest.mark.parametrize("module", [fig2, fig3], ids=["fig2", "fig3"])
def test_a_figure_writes_its_record_its_provenance_and_both_pictures(
    module: object, figure: Callable[..., int], tmp_path: Path
) -> None:
    assert figure(module, tmp_path / "out") == 0
    name = module.__name__.rsplit(".", 1)[-1]  # type: ignore[attr-defined]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*RECORDS[module], f"{name}.json", f"{name}.pdf", f"{name}.png"}  # type: ignore[index]


@pytest.mark.parametrize("module", [fig2, fig3], ids=["fig2", "fig3"])
def test_two_runs_from_nothing_give_the_same_records_byte_for_byte(
    module: object, figure: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("first", "second"):
        monkeypatch.setenv("LPE_STORE", str(tmp_path / run / "store"))
        assert figure(module, tmp_path / run) == 0
    for name in RECORDS[module]:  # type: ignore[index]
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_second_run_trains_and_measures_nothing_again(
    figure: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert figure(fig3, tmp_path / "out") == 0
    first = (tmp_path / "out" / "fig3.csv").read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was computed that was there already")

    for module in (points, images):
        monkeypatch.setattr(module, "train", refuse)
    monkeypatch.setattr("lpe.evaluate", refuse)
    monkeypatch.setattr("lpe.evaluation.landscape.Plane.at", refuse)
    assert figure(fig3, tmp_path / "out") == 0
    assert (tmp_path / "out" / "fig3.csv").read_bytes() == first


def test_a_run_killed_in_a_training_goes_on_and_ends_with_the_same_record(
    figure: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert figure(fig2, tmp_path / "whole") == 0
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "killed" / "store"))
    trained, train = 0, points.train

    def killed_in_the_third(*arguments: object, **named: object) -> object:
        nonlocal trained
        trained += 1
        if trained == 3:
            raise SystemExit
        return train(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(points, "train", killed_in_the_third)
        figure(fig2, tmp_path / "killed")
    assert not (tmp_path / "killed" / "fig2.csv").exists()
    assert figure(fig2, tmp_path / "killed") == 0
    assert (tmp_path / "killed" / "fig2.csv").read_bytes() == (tmp_path / "whole" / "fig2.csv").read_bytes()


def test_a_landscape_killed_between_points_measures_only_the_missing_points(
    figure: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = 0, landscapes.write_table

    def killed_after_two_points(*arguments: object, **named: object) -> None:
        nonlocal written
        write(*arguments, **named)  # type: ignore[arg-type]
        written += 1
        if written == 2:
            raise SystemExit

    monkeypatch.setattr(landscapes, "KEPT_SECONDS", 0.0)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(landscapes, "write_table", killed_after_two_points)
        figure(fig3, tmp_path / "out")
    with monkeypatch.context() as patched:
        points_written: list[object] = []
        patched.setattr(landscapes, "write_table", lambda *a, **n: (points_written.append(a), write(*a, **n)))
        assert figure(fig3, tmp_path / "out") == 0
    grid = pd.read_csv(tmp_path / "out" / "fig3_landscape.csv")
    all_points = len(grid[["point", "plane", "x", "y"]].drop_duplicates())
    assert len(points_written) == all_points - 2


def test_plot_only_redraws_from_the_record_without_a_store(
    figure: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert figure(fig2, tmp_path / "out") == 0
    drawn = (tmp_path / "out" / "fig2.png").read_bytes()
    (tmp_path / "out" / "fig2.png").unlink()
    monkeypatch.setattr(command, "Store", None)
    assert figure(fig2, tmp_path / "out", "--plot-only") == 0
    assert (tmp_path / "out" / "fig2.png").read_bytes() == drawn


def test_an_altered_store_entry_is_said_and_rebuilt_to_the_same_record(
    figure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figure(fig2, tmp_path / "out", "--seeds", "1") == 0
    record = (tmp_path / "out" / "fig2.csv").read_bytes()
    for entry in (tmp_path / "work" / "store").glob("*.safetensors"):
        content = bytearray(entry.read_bytes())
        content[-1] ^= 1
        entry.write_bytes(bytes(content))
    for working in (tmp_path / "work" / "records").rglob("*.csv"):
        working.unlink()
    capsys.readouterr()
    assert figure(fig2, tmp_path / "out", "--seeds", "1") == 0
    assert "is damaged" in capsys.readouterr().err
    assert (tmp_path / "out" / "fig2.csv").read_bytes() == record


def test_the_record_holds_every_method_at_every_size(
    tiny: Scale, figure: Callable[..., int], tmp_path: Path
) -> None:
    assert figure(fig2, tmp_path / "out") == 0
    record = pd.read_csv(tmp_path / "out" / "fig2.csv", keep_default_na=False)
    assert tuple(record.columns) == COLUMNS
    nll = record[record["metric"] == "nll"]
    files = record[record["metric"] == "file_bytes"]
    assert set(files["seed"]) == {0} and set(files["size"]) == set(tiny.settings.table_sizes)
    found = {
        (row.point, row.method, row.number_system, row.size, row.seed) for row in nll.itertuples(index=False)
    }
    expected = set()
    for seed in range(tiny.seeds):
        for point in tiny.points:
            expected |= {(point, "FP32", "fp32", 1, seed), (point, "FP32 + temperature", "fp32", 1, seed)}
            for bits in tiny.settings.bits:
                expected.add((point, "RTN", f"int{bits}", 1, seed))
                expected |= {
                    (point, "LPE-BSR", f"int{bits}", n, seed) for n in range(1, tiny.settings.size + 1)
                }
            if point != "SGD":
                expected |= {(point, "BMA", "fp32", n, seed) for n in range(1, tiny.settings.size + 1)}
    assert found == expected


def test_the_provenance_names_threads_seeds_hyper_parameters_and_no_absolute_path(
    tiny: Scale, figure: Callable[..., int], tmp_path: Path
) -> None:
    assert figure(fig2, tmp_path / "out") == 0
    text = (tmp_path / "out" / "fig2.json").read_text()
    provenance = json.loads(text)
    assert provenance["threads"] == tiny.threads
    assert provenance["seeds"] == [0, 1]
    described = provenance["config"]["scale"]["substrates"][tiny.substrate]["points"]["SGD"]
    assert tiny.main and described["epochs"] == tiny.main.points["SGD"].epochs  # type: ignore[attr-defined]
    assert str(tmp_path) not in text


def test_the_provenance_of_a_training_free_table_names_all_its_training_seeds(
    tiny: Scale, figure: Callable[..., int], tmp_path: Path
) -> None:
    assert figure(table7, tmp_path / "out") == 0
    provenance = json.loads((tmp_path / "out" / "table7.json").read_text())
    assert provenance["seeds"] == list(range(tiny.claim_seeds)) != list(range(tiny.seeds))


def test_table_7_measures_every_scale_axis_at_its_bits_and_every_number_system_once(
    tiny: Scale, figure: Callable[..., int], tmp_path: Path
) -> None:
    assert figure(table7, tmp_path / "out") == 0
    rows = pd.read_csv(tmp_path / "out" / "table7_record.csv")
    rows = rows[(rows["metric"] == "nll") & (rows["method"].isin(["RTN", "LPE-BSR"])) & (rows["seed"] == 0)]
    measured = list(zip(rows["method"], rows["number_system"], strict=True))
    on_axes = {
        lpe.Int(bits, axis).name for bits in tiny.settings.axis_bits for axis in tiny.settings.scale_axes
    }
    systems = on_axes | set(tiny.settings.number_systems)
    expected = {(method, name) for method in ("RTN", "LPE-BSR") for name in systems}
    assert set(measured) == expected and len(measured) == len(expected)


def test_every_number_system_of_table_7_has_another_of_equal_bits() -> None:
    on_axes = {
        lpe.Int(bits, axis).name for bits in DIGITS.settings.axis_bits for axis in DIGITS.settings.scale_axes
    }
    bits = [lpe.number_system(name).bits for name in on_axes | set(DIGITS.settings.number_systems)]
    assert all(bits.count(width) > 1 for width in bits)
