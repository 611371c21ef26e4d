"""The known-answer figure: from nothing to its pictures at a reduced size, redrawn, and its command line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from lpe.ensembles.cyclical_sgld import SamplingStage
from lpe.provenance import REPOSITORY
from reproduce import known
from reproduce.study import known_answer
from reproduce.study.known_methods import BSR, CyclicalLangevin, Langevin

COMMITTED = REPOSITORY / "figures" / "known"
FILES = ["known.csv", "known.json", "known.pdf", "known.png"]


RECIPES = replace(
    known.RECIPES,
    sgld=Langevin(learning_rate=1.0, steps=6, members=3, spacing=2),
    csgld=CyclicalLangevin(peak=4.0, cycles=2, stage=SamplingStage(4, steps=2, samples=2, spacing=1)),
    ivon=replace(known.RECIPES.ivon, steps=4, members=3),
    swag=replace(known.RECIPES.swag, steps=2, iterates=3, rank=2, members=3),
    rounding=replace(known.RECIPES.rounding, members=3),
)
"""So short that the figure takes seconds: for the machinery, not the numbers."""


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "RECIPES", RECIPES)
        patch.setattr(known, "SIZES", (30, 1_000, 3_000))
        return known.main(arguments, quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short run of two seeds leaves."""
    out = tmp_path_factory.mktemp("known")
    assert run("--seeds", "2", "--out", str(out)) == 0
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# From nothing.


def test_it_writes_its_record_its_provenance_and_both_pictures(folder: Path) -> None:
    assert sorted(files(folder)) == FILES


def test_two_runs_give_the_same_record_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    assert run("--seeds", "2", "--out", str(tmp_path)) == 0
    assert files(tmp_path)["known.csv"] == files(folder)["known.csv"]


def test_the_record_holds_every_method_in_two_directions_at_every_n(folder: Path) -> None:
    record = pd.read_csv(folder / "known.csv", keep_default_na=False)
    methods = [*known.STYLES]
    assert sorted(set(zip(record["method"], record["number_system"], strict=True))) == sorted(methods)
    ends = record[record["degrees"].isin([known.DENSE, known.THIN])]
    assert (ends.groupby(["method", "number_system", "examples", "degrees", "seed"]).size() == 1).all()
    assert len(ends) == len(methods) * 3 * 2 * 2


def test_the_exact_rows_are_those_of_the_posterior_and_the_mean_field_ones_its_optimums(folder: Path) -> None:
    data = known_answer.labelled(known.DESIGN, 30, 2).counted(30)
    (thin,) = known_answer.axes(known.DESIGN)[1:]
    record = pd.read_csv(folder / "known.csv", keep_default_na=False)
    covariances = {
        known.EXACT: known_answer.posterior(data)[1],
        known.MEAN_FIELD: np.stack([np.diag(each) for each in known_answer.mean_field(data)[1]]),
    }
    for method, covariance in covariances.items():
        expected = np.sqrt(np.einsum("i,rij,j->r", thin, covariance, thin).reshape(2, 8).mean(axis=1))
        got = np.exp(known.against_size(record, method, known.THIN)[30])
        assert got.to_numpy() == pytest.approx(expected)


def test_the_provenance_holds_every_setting_and_what_was_learnt(folder: Path) -> None:
    written = json.loads((folder / "known.json").read_text())
    assert written["seeds"] == [0, 1]
    assert written["config"]["recipes"]["swag"]["batch"] == known.RECIPES.swag.batch
    assert written["config"]["design"]["spreads"] == list(known.DESIGN.spreads)
    assert set(written["config"]["learnt_by_examples"]) == {"30", "1000", "3000"}


def test_one_seed_is_drawn_without_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--seeds", "1", "--out", str(tmp_path)) == 0
    assert "nan" not in capsys.readouterr().out


def test_a_record_of_more_seeds_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    assert run("--seeds", "1", "--out", str(folder)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 2 seeds, more than 1; give another folder by --out" in line
    assert files(folder) == before


# What is made of the record.


def made_up(stds: dict[tuple[known.Method, int], list[float]]) -> pd.DataFrame:
    """A record of two like seeds: (method, degrees) → its std at N = 30, 1,000 and 100,000."""
    rows = [
        (*method, examples, degrees, seed, std)
        for (method, degrees), values in stds.items()
        for seed in (0, 1)
        for examples, std in zip((30, 1_000, 100_000), values, strict=True)
    ]
    return pd.DataFrame(rows, columns=known.COLUMNS)


def test_a_band_is_students_interval_of_the_logarithms() -> None:
    logs = pd.DataFrame({30: np.log([1.0, 4.0])})
    # Two values: mean ± t(.975, 1) · half their difference, and t(.975, 1) = 12.7062.
    half = 12.7062 * math.log(2)
    means, lows, highs = known.ends(logs)
    assert (means[0], lows[0]) == pytest.approx((2.0, 2 * math.exp(-half)), rel=1e-4)
    assert highs[0] == pytest.approx(2 * math.exp(half), rel=1e-4)


def test_the_table_has_the_ratio_to_the_exact_and_the_mean_slope_in_log_n() -> None:
    sizes, flat = [30, 1_000, 100_000], [0.1, 0.1, 0.1]
    root, inverse = ([size**power for size in sizes] for power in (-0.5, -1))
    rounding = (BSR, "int4")
    stds = {(known.EXACT, known.DENSE): root, (known.EXACT, known.THIN): root}
    stds |= {(rounding, known.DENSE): flat, (rounding, known.THIN): inverse}
    row = known.table(made_up(stds))[3]
    ratios = [value / exact for values in (flat, inverse) for value, exact in zip(values, root, strict=True)]
    words = [word for each in ratios for word in (f"{each:.3g}", f"[{each:.3g},", f"{each:.3g}]")]
    assert row.split() == ["LPE-BSR,", "INT-4", *words, "-0.5", "[-0.5,", "-0.5]"]


def test_the_share_of_csgld_is_twice_the_curvature_times_the_rates_where_these_are_small() -> None:
    data = known_answer.labelled(known.DESIGN, 30, 1).counted(30)
    precision = np.stack([30 * 1e-6 * np.eye(2)] * known.DESIGN.regressions)
    rates = 2 * (np.cos(np.pi * np.arange(500, 1_000) / 1_000) + 1)
    share = known.cyclical_share(data, precision, 37)
    assert share == pytest.approx(2 * 1e-6 * rates.sum(), rel=1e-2)


# The committed figure.


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures drawn from the committed record."""
    out = tmp_path_factory.mktemp("redrawn")
    for kind in ("csv", "json"):
        shutil.copy(COMMITTED / f"known.{kind}", out)
    assert known.main(["--plot-only", "--out", str(out)]) == 0
    return out


def test_the_committed_picture_is_that_of_the_committed_record(redrawn: Path) -> None:
    """By pixels: a file's bytes are also those of a compressor."""
    drawn_with = json.loads((COMMITTED / "known.json").read_text())["packages"]["matplotlib"]
    if matplotlib.__version__ != drawn_with:
        pytest.skip(f"matplotlib {matplotlib.__version__}; the committed picture is of {drawn_with}")
    here, there = (imread(folder / "known.png") for folder in (redrawn, COMMITTED))
    assert np.array_equal(here, there)


def test_a_record_is_redrawn_to_the_byte(redrawn: Path) -> None:
    before = files(redrawn)
    assert known.main(["--plot-only", "--out", str(redrawn)]) == 0
    assert files(redrawn) == before and sorted(before) == FILES


def committed_logs(method: known.Method, degrees: int) -> pd.DataFrame:
    record = pd.read_csv(COMMITTED / "known.csv", keep_default_na=False)
    return known.against_size(record, method, degrees)


@pytest.mark.parametrize("degrees", [known.DENSE, known.THIN])
@pytest.mark.parametrize("method", ["SGLD", "CSGLD"])
def test_in_the_committed_record_what_is_learnt_lies_within_a_tenth_of_the_exact(
    method: str, degrees: int
) -> None:
    over = committed_logs((method, ""), degrees) - committed_logs(known.EXACT, degrees)
    assert (abs(np.exp(over.mean()) - 1) < 0.1).all()


@pytest.mark.parametrize("degrees", [known.DENSE, known.THIN])
def test_in_the_committed_record_the_exact_std_falls_with_the_root_of_n_and_roundings_does_not(
    degrees: int,
) -> None:
    tenfold = {
        method: float((logs[100_000] - logs[10_000]).mean()) / np.log(10)
        for method in (known.EXACT, (BSR, "int4"))
        for logs in [committed_logs(method, degrees)]
    }
    assert tenfold[known.EXACT] == pytest.approx(-0.5, abs=0.01)
    assert tenfold[BSR, "int4"] == pytest.approx(0.0, abs=0.03)


# The command line.


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--scale", "digits"], "the known answer is of no scale; leave --scale digits out"),
        (["--seeds", "0"], "--seeds must be 1 or more, not 0"),
        (["--plot-only", "--seeds", "3"], "leave --seeds out"),
        (["--plot-only"], "there is no record known.csv"),
    ],
)
def test_a_bad_option_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert known.main([*arguments, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert not files(tmp_path)


def test_an_unknown_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        known.main(["--bits", "4"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "--bits 4" in line


def test_a_record_without_a_method_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vouch: Callable[[Path], None]
) -> None:
    record = pd.read_csv(COMMITTED / "known.csv", keep_default_na=False)
    record[record["method"] != "IVON"].to_csv(tmp_path / "known.csv", index=False)
    vouch(tmp_path)
    assert known.main(["--plot-only", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: the record has no rows of IVON; run without --plot-only"
    ]
