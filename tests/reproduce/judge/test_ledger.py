"""The ledger: from records in a folder to the claims' verdicts, printed and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.records import COLUMNS, Records
from lpe.store import Store
from reproduce import ledger
from reproduce.judge.claims import Settings, all_claims
from reproduce.judge.verdicts import KEPT, kept_key
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.examples import keep
from reproduce.study.measurements import working_folder

ROW = {
    "scale": "digits",
    "substrate": "digits ViT",
    "point": "SGD",
    "method": "FP32",
    "number_system": "fp32",
    "size": 1,
    "metric": "calibrated_nll",
    "memory_bits": 320,
    "backward_passes": 7,
}


def single(seed: int, value: float = 0.1) -> dict[str, object]:
    return {**ROW, "seed": seed, "value": value}


def low(seed: int, value: float) -> dict[str, object]:
    name = f"int{DIGITS.settings.best_bits}"
    of_low = {"method": "LPE-BSR", "number_system": name, "rounding": "bernoulli"}
    return {**ROW, **of_low, "size": DIGITS.settings.claim_size, "seed": seed, "value": value}


@pytest.fixture(autouse=True)
def vouched(monkeypatch: pytest.MonkeyPatch, vouch: Callable[[Path], None]) -> None:
    """What these tests write by hand is as measured whenever it is judged."""
    judged = ledger.main

    def main(arguments: list[str]) -> int:
        folder = Path(arguments[arguments.index("--out") + 1])
        if len(folder.name) < 256:
            vouch(folder)
        return judged(arguments)

    monkeypatch.setattr(ledger, "main", main)


CLAIM = f"C11 (INT-{DIGITS.settings.best_bits})"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records in which C11 holds at the best bit width: its rows are in a figure and in a table."""
    Records(tmp_path / "fig2.csv").add([single(seed) for seed in range(3)])
    Records(tmp_path / "table1.csv").add([low(seed, 0.05 + 0.001 * seed) for seed in range(3)])
    for path in tmp_path.glob("*.sha256"):
        path.unlink()  # which figures' records have not
    return tmp_path


def test_rows_of_figures_and_tables_come_together(folder: Path) -> None:
    rows, files = ledger.read_records(folder, "digits")
    assert (len(rows), files) == (6, ["fig2.csv", "table1.csv"])
    assert tuple(rows.columns) == COLUMNS


def test_a_row_that_two_figures_share_counts_once(folder: Path) -> None:
    Records(folder / "fig3.csv").add([single(0)])
    assert len(ledger.read_records(folder, "digits")[0]) == 6


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("value", 0.2, "value is 0.1 in fig2.csv and 0.2 in fig8.csv"),
        ("memory_bits", 321, "memory_bits is 320 in fig2.csv and 321 in fig8.csv"),
        ("backward_passes", 8, "backward_passes is 7 in fig2.csv and 8 in fig8.csv"),
    ],
)
def test_a_row_that_two_figures_contradict_is_named(
    folder: Path, column: str, value: float, said: str
) -> None:
    Records(folder / "fig8.csv").add([{**single(1), column: value}])
    with pytest.raises(InputError, match=f"method=FP32 .*seed=1 metric=calibrated_nll: {said}"):
        ledger.read_records(folder, "digits")


def test_a_row_of_two_runs_whose_last_digits_differ_counts_once_and_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Records(folder / "fig8.csv").add([single(1, 0.1 + 3e-8), single(2, 0.1 + 9e-4)])
    rows, _ = ledger.read_records(folder, "digits")
    assert rows.loc[rows["method"] == "FP32", "value"].tolist() == [0.1, 0.1, 0.1]
    assert ledger.main(["--out", str(folder)]) == 0
    said = "2 rows were measured in more than one run, and differ by at most 0.0009"
    assert said in capsys.readouterr().out and said in (folder / "claims.md").read_text()


def test_a_row_of_two_runs_that_lie_apart_by_more_than_rounding_is_refused(folder: Path) -> None:
    Records(folder / "fig8.csv").add([single(1, 0.1 + 3e-8), single(2, 0.1 + 1.1e-3)])
    with pytest.raises(InputError, match="seed=2 metric=calibrated_nll: value is 0.1 in fig2.csv"):
        ledger.read_records(folder, "digits")


def test_records_of_one_run_have_no_rows_of_two(folder: Path) -> None:
    Records(folder / "fig3.csv").add([single(0)])
    assert ledger.said_of_repeats(folder, "digits") == []


def test_files_that_are_no_records_are_passed_over(folder: Path) -> None:
    (folder / "fig3_landscape.csv").write_text("x,y,value\n0,0,1\n")
    (folder / "sweep.csv").write_text(",".join(COLUMNS) + "\n")
    assert ledger.read_records(folder, "digits")[1] == ["fig2.csv", "table1.csv"]


def _measured_at(folder: Path, figure: str, revision: str, cpu: str) -> None:
    said = {"git": {"revision": revision, "dirty": False}, "device": {"cpu": cpu}}
    (folder / f"{figure}.json").write_text(json.dumps(said))


def test_files_that_disagree_are_named_with_their_commits_and_machines(folder: Path) -> None:
    _measured_at(folder, "fig2", "abcdef0123", "Xeon")
    _measured_at(folder, "table1", "1234567890", "EPYC")
    Records(folder / "table1_record.csv").add([single(1, 0.2)])
    said = r"fig2.csv \(commit abcdef0 on Xeon\) and 0.2 in table1_record.csv \(commit 1234567 on EPYC\)"
    with pytest.raises(InputError, match=said):
        ledger.read_records(folder, "digits")


def test_records_of_several_machines_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _measured_at(folder, "fig2", "abcdef0123", "Xeon")
    _measured_at(folder, "table1", "abcdef0123", "EPYC")
    assert ledger.main(["--scale", "digits", "--out", str(folder)]) == 0
    assert "records of 2 origins, which may differ" in capsys.readouterr().out


def test_a_damaged_record_is_an_error_and_not_passed_over(folder: Path) -> None:
    path = folder / "fig2.csv"
    path.write_text(path.read_text().replace("0.1,320", "x,320"))
    with pytest.raises(InputError, match="fig2.csv, line 2"):
        ledger.read_records(folder, "digits")


def _without_last_column(text: str) -> str:
    return "".join(line.rpartition(",")[0] + "\n" for line in text.splitlines())


@pytest.mark.parametrize(
    "damage",
    [_without_last_column, lambda text: "", lambda text: "\ufeff" + text, lambda text: "\0" + text],
    ids=["a column missing", "empty", "byte order mark", "binary"],
)
def test_a_record_without_its_header_is_an_error_where_its_json_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[str], str]
) -> None:
    path = folder / "fig2.csv"
    path.write_text(damage(path.read_text()), encoding="utf-8")
    _measured_at(folder, "fig2", "abcdef0123", "Xeon")
    assert ledger.main(["--out", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"{path}, line 1: " in said and said.count("\n") == 1
    assert not (folder / "claims.csv").exists()


def test_a_folder_in_place_of_a_record_is_an_error_where_its_json_is_there(folder: Path) -> None:
    (folder / "fig3.csv").mkdir()
    assert len(ledger.read_records(folder, "digits")[0]) == 6
    _measured_at(folder, "fig3", "abcdef0123", "Xeon")
    with pytest.raises(InputError, match=r"cannot read .*fig3.csv \(Is a directory\)"):
        ledger.read_records(folder, "digits")


def test_figure_1s_points_and_printed_tables_are_no_damaged_records(folder: Path) -> None:
    for figure, file in (("fig1", "fig1.csv"), ("table5", "table5.csv"), ("fig3", "fig3_landscape.csv")):
        (folder / file).write_text("x,y\n1,2\n")
        _measured_at(folder, figure, "abcdef0123", "Xeon")
    assert len(ledger.read_records(folder, "digits")[0]) == 6


def test_rows_of_another_scale_are_an_error(folder: Path) -> None:
    Records(folder / "fig9.csv").add([{**single(0), "scale": "paper"}])
    with pytest.raises(InputError, match="fig9.csv has rows of scale 'paper'; 'digits' is expected"):
        ledger.read_records(folder, "digits")


def test_every_claim_is_a_row_of_the_table_whether_run_or_not(folder: Path) -> None:
    assert ledger.main(["--out", str(folder)]) == 0
    table = pd.read_csv(folder / "claims.csv", keep_default_na=False).set_index("claim")
    assert list(table.index) == [claim.name for claim in all_claims(Settings.of(DIGITS))]
    assert set(table["verdict"].drop(CLAIM)) == {"not run"}


def test_the_written_row_has_effect_interval_side_and_number_of_seeds(folder: Path) -> None:
    assert ledger.main(["--out", str(folder)]) == 0
    row = pd.read_csv(folder / "claims.csv").set_index("claim").loc[CLAIM]
    # −.05, −.049, −.048: half width t(.975, 2) · .001 / √3 = .0024841.
    found = (row["effect"], row["95 % low"], row["95 % high"])
    assert found == pytest.approx((-0.049, -0.0514841, -0.0465159), abs=1e-7)
    assert (row["claimed side"], row["n"], row["unit"], row["verdict"]) == ("below 0", 3, "nats", "holds")


def test_the_terminal_shows_each_verdict_and_the_count(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger.main(["--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith(CLAIM))
    assert row.split()[2:6] == ["holds", "-.0490", "[-.0515,", "-.0465]"]
    others = len(all_claims(Settings.of(DIGITS))) - 1
    counted = f"1 holds (0 not evidence: FP32 instead holds as well), 0 fails, 0 undecided, {others} not run"
    assert f"{counted}; after Holm 1 hold, 0 fail" in printed


def test_all_three_files_are_written_and_a_second_run_writes_the_same_bytes(folder: Path) -> None:
    names = [f"claims.{kind}" for kind in ("csv", "md", "tex")]
    assert ledger.main(["--out", str(folder)]) == 0
    first = [(folder / name).read_bytes() for name in names]
    assert ledger.main(["--out", str(folder)]) == 0
    assert [(folder / name).read_bytes() for name in names] == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "huge"], "unknown scale 'huge'"),
        ([], "there is no record in"),
        (["--bits", "3"], "unrecognized arguments: --bits 3"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = ledger.main(["--out", str(tmp_path), *arguments])
    except SystemExit as left:
        code = left.code
    message = capsys.readouterr().err
    assert (code, message.count("\n"), message.startswith("error: ")) == (2, 1, True)
    assert said in message
    assert not list(tmp_path.iterdir())


def test_the_short_tables_row_says_all_that_decides(folder: Path) -> None:
    assert ledger.main(["--out", str(folder)]) == 0
    written = (folder / "claims.md").read_text()
    row = next(line for line in written.splitlines() if line.startswith(f"| {CLAIM}"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [CLAIM, "holds", "-.0490 [-.0515, -.0465]", "nats", ".0000, undecided", "holds", "3"]


def test_definitions_stand_below_the_table_and_not_in_it(folder: Path) -> None:
    assert ledger.main(["--out", str(folder)]) == 0
    table, _, below = (folder / "claims.md").read_text().partition("\n\n- ")
    assert "temperature fitted on the others" not in table
    assert f"- {CLAIM}: calibrated NLL(LPE-BSR" in below


def test_the_short_table_fits_a_page(folder: Path) -> None:
    assert ledger.main(["--out", str(folder)]) == 0
    lines = (folder / "claims.md").read_text().splitlines()
    assert max(len(line) for line in lines if line.startswith("|")) <= 170


def test_the_ledger_says_what_the_quick_scale_is_worth(folder: Path) -> None:
    assert ledger.main(["--out", str(folder)]) == 0
    assert "the evidence comes from CIFAR-10" in (folder / "claims.md").read_text()


def test_a_folder_without_the_values_of_examples_says_that_they_are_not_available(folder: Path) -> None:
    assert ledger.main(["--out", str(folder)]) == 0
    assert (
        "An interval for new images is not available: the values of single examples were not kept"
        in (folder / "claims.md").read_text()
    )
    assert not (folder / ledger.KEPT_FILE).exists()


def test_what_was_kept_by_something_else_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ledger.KEPT_FILE).write_text("claim,low\nC1,0\n")
    assert ledger.main(["--out", str(folder)]) == 2
    assert "claims_examples.csv has other columns than claim, rows, n" in capsys.readouterr().err


ROW_KEPT = "C1,abcd,40," + ",".join(["0.5"] * (len(KEPT) - 4)) + ",efgh\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has other columns than claim, rows, n"),
        ("{header}C1,abcd\n", "has a damaged row"),
        ("{header}" + ROW_KEPT.replace("\n", ",1\n"), "has a damaged row"),
        ("{header}" + ROW_KEPT.replace("40", "many"), "has a damaged row"),
        ("{header}" + ROW_KEPT.replace("0.5", "half", 1), "has a damaged row"),
        ("\udcff\udcfe", "cannot be read"),
        ('{header}"C1', "cannot be read"),
    ],
    ids=["empty", "short", "long", "n", "number", "binary", "quote"],
)
def test_what_was_kept_and_then_damaged_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    text = content.replace("{header}", ",".join(KEPT) + "\n")
    (folder / ledger.KEPT_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert ledger.main(["--out", str(folder)]) == 2
    message = capsys.readouterr().err
    assert f"claims_examples.csv {said}" in message and "delete it and judge again" in message
    assert message.count("\n") == 1


def test_a_folder_in_place_of_what_was_kept_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ledger.KEPT_FILE).mkdir()
    assert ledger.main(["--out", str(folder)]) == 2
    assert "claims_examples.csv cannot be read; delete it and judge again\n" in capsys.readouterr().err


def test_a_folders_name_that_is_too_long_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger.main(["--out", "x" * 300]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the values of 40 images for each of the folder's rows."""
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    return working_folder(DIGITS, Store())


def keep_values(working: Path, row: dict[str, object]) -> None:
    value = float(str(row["value"]))
    values = value + 0.02 * torch.linspace(-1, 1, 40)[torch.randperm(40)][None]
    numbers = torch.arange(40), {str(row["metric"]): (torch.tensor([row["size"]]), values)}
    keep(working, {"rounding": "", **row}, *numbers)


def with_values(store: Path) -> None:
    """Keep the values of the images behind the folder's rows."""
    for seed in range(3):
        for row in (single(seed), low(seed, 0.05 + 0.001 * seed)):
            keep_values(store, row)


def test_intervals_for_new_images_are_kept_and_outlive_the_store(folder: Path, store: Path) -> None:
    with_values(store)
    assert ledger.main(["--out", str(folder)]) == 0
    kept = (folder / ledger.KEPT_FILE).read_bytes()
    first = pd.read_csv(folder / "claims.csv").set_index("claim").loc[CLAIM]
    assert first["examples n"] == 40
    assert first["examples low"] < -0.049 < first["examples high"]
    shutil.rmtree(store)
    assert ledger.main(["--out", str(folder)]) == 0
    assert pd.read_csv(folder / "claims.csv").set_index("claim").loc[CLAIM].equals(first)
    assert (folder / ledger.KEPT_FILE).read_bytes() == kept


def altered(path: Path) -> None:
    """Halve the interval of the one estimate that is kept."""
    kept = pd.read_csv(path)
    kept["low"] /= 2
    kept.to_csv(path, index=False)


def test_what_was_kept_and_then_altered_is_estimated_anew(folder: Path, store: Path) -> None:
    with_values(store)
    assert ledger.main(["--out", str(folder)]) == 0
    there = {path.name: path.read_bytes() for path in folder.glob("claims*")}
    altered(folder / ledger.KEPT_FILE)
    assert ledger.main(["--out", str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in folder.glob("claims*")} == there


def test_what_was_kept_and_then_altered_is_said_without_the_store_and_stays(
    folder: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_values(store)
    assert ledger.main(["--out", str(folder)]) == 0
    assert "were altered" not in capsys.readouterr().out
    shutil.rmtree(store)
    altered(folder / ledger.KEPT_FILE)
    before = pd.read_csv(folder / ledger.KEPT_FILE)
    assert ledger.main(["--out", str(folder)]) == 0
    assert "claims_examples.csv: 1 of its estimates are of other rows" in capsys.readouterr().out
    assert pd.isna(pd.read_csv(folder / "claims.csv").set_index("claim").loc[CLAIM]["examples low"])
    pd.testing.assert_frame_equal(pd.read_csv(folder / ledger.KEPT_FILE), before)


def test_the_committed_estimates_are_by_this_code() -> None:
    """Where this fails, measure the scale and judge it: the values of examples are not committed."""
    kept = ledger.kept_in(REPOSITORY / "figures" / "digits")
    assert kept is not None and len(kept) == 56
    at_fault = [
        row["claim"]
        for _, row in kept.iterrows()
        if row["key"] != kept_key(row.to_dict(), Settings.of(DIGITS).level)
    ]
    assert at_fault == []
