"""Records that are not as they were measured: never another figure or verdict without a word; one line.

The number of flipped bytes is a handful in the ordinary suite; ``-m slow`` flips many.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from lpe.hashes import EDITED, HASHES, beside, sha256
from lpe.provenance import REPOSITORY
from lpe.records import COLUMNS, Records, write_table
from lpe.store import Store
from reproduce import command, external, ledger, ledgers
from reproduce.command import Script, run_figure
from reproduce.draw import page, panels, tables
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.costs import check_unaltered, is_finished, measuring, remove_damaged
from reproduce.study.examples import keep
from reproduce.study.intact import drawn_from
from reproduce.study.measurements import working_folder
from reproduce.study.scale import Scale
from reproduce.study.session import Session

FLIPS = [pytest.param(6, id="a few"), pytest.param(300, id="many", marks=pytest.mark.slow)]
many = pytest.mark.parametrize("flips", FLIPS)


def flipped(content: bytes, draws: random.Random) -> bytes:
    """Return the bytes with one of them changed."""
    place = draws.randrange(len(content))
    return content[:place] + bytes([content[place] ^ draws.randrange(1, 256)]) + content[place + 1 :]


# A figure that is quick to draw: its picture is a text.

ROWS: list[dict[str, object]] = [
    {
        "scale": "digits",
        "substrate": "digits ViT",
        "point": "SGD",
        "method": "FP32",
        "number_system": "fp32",
        "rounding": "",
        "size": 1,
        "seed": seed,
        "metric": "calibrated_nll",
        "value": 0.1 + seed / 100,
        "memory_bits": 320,
        "backward_passes": 7,
    }
    for seed in range(3)
]
GRID = [{"x": x, "value": x / 8} for x in range(3)]


def compute(session: Session) -> Mapping[str, object]:
    write_table(ROWS, session.out / "fig9.csv", COLUMNS)
    write_table(GRID, session.out / "fig9_landscape.csv", ["x", "value"])
    return {}


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    record = panels.read_record(folder / "fig9.csv", COLUMNS)
    grid = panels.read_record(folder / "fig9_landscape.csv", ["x", "value"])
    picture = folder / "fig9.txt"
    picture.write_text(f"{page.heading()}{page.is_edited()}\n{record.to_csv()}{grid.to_csv()}")
    return [picture], []


FIGURE = Script("fig9", None, lambda _: "", lambda _: [], compute, draw)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the figure, measured and drawn."""
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    out = tmp_path / "out"
    assert measured(out) == 0
    return out


def measured(folder: Path) -> int:
    threads = torch.get_num_threads()
    try:
        return run_figure(FIGURE, ["--out", str(folder), "--wandb", "disabled", "--overwrite"])
    finally:
        torch.set_num_threads(threads)


def drawn(folder: Path, *further: str) -> int:
    return run_figure(FIGURE, ["--out", str(folder), "--plot-only", *further])


def picture_of(folder: Path) -> str:
    return (folder / "fig9.txt").read_text()


def said_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "fig9.json").read_text())
    return found


def edit(folder: Path, name: str = "fig9.csv", old: str = "0.11", new: str = "0.12") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def test_the_json_has_the_hash_of_every_csv_file_that_the_figure_is_drawn_from(folder: Path) -> None:
    hashes = said_of(folder)[HASHES]
    assert isinstance(hashes, dict) and set(hashes) == {"fig9.csv", "fig9_landscape.csv", "fig9.json"}
    for name in ("fig9.csv", "fig9_landscape.csv"):
        assert hashes[name] == sha256((folder / name).read_bytes())


def test_every_csv_file_that_a_script_names_is_among_those_that_it_is_checked_to_be_drawn_from(
    tmp_path: Path,
) -> None:
    named: dict[str, set[str]] = {}
    for script in sorted((REPOSITORY / "reproduce").glob("*.py")):
        if "SCRIPT = Script(" in (text := script.read_text()):
            # One that is compared, copied or looked for is named in a text of its own.
            named[script.stem] = set(re.findall(r'"([\w]+\.csv)"', text))
    assert len(named) >= 17 and "fig3_members.csv" in named["fig3"]
    for figure, files in named.items():
        for file in files:
            (tmp_path / file).touch()
        assert files <= {path.name for path in drawn_from(tmp_path, figure)}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("fig9.csv", "0.11", "0.12"),
        ("fig9_landscape.csv", "0.125", "0.126"),
        ("fig9.json", '"threads": ', '"threads": 1'),
    ],
)
def test_an_edit_is_refused_with_the_way_out_and_what_is_drawn_stays(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, old: str, new: str
) -> None:
    before = picture_of(folder)
    edit(folder, name, old, new)
    assert drawn(folder) == 2
    message = capsys.readouterr().err
    assert name in message and "edited or damaged" in message and message.count("\n") == 1
    assert "measure it again, or give --accept-edited" in message
    assert picture_of(folder) == before


def test_a_record_without_a_hash_is_refused_with_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = said_of(folder)
    del said[HASHES]
    (folder / "fig9.json").write_text(json.dumps(said))
    assert drawn(folder) == 2
    message = capsys.readouterr().err
    assert "fig9.json has no hash of fig9.csv, as earlier versions wrote none; measure it again" in message
    (folder / "fig9.json").unlink()
    assert drawn(folder) == 2
    message = capsys.readouterr().err
    assert "there is no fig9.json beside " in message and "--accept-edited" in message


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"threads": 1e999}', "\x00"])
def test_a_json_that_is_none_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (folder / "fig9.json").write_text(content)
    assert drawn(folder, "--accept-edited") == 2
    message = capsys.readouterr().err
    assert "fig9.json is damaged" in message and message.count("\n") == 1


def test_what_is_accepted_is_marked_in_the_picture_and_the_json_until_it_is_as_it_was_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, before = (folder / "fig9.csv").read_bytes(), picture_of(folder)
    edit(folder)
    assert drawn(folder, "--accept-edited") == 0
    assert "records edited after measuring, or without a hash: fig9.csv" in capsys.readouterr().out
    assert f"{page.EDITED}" == EDITED and "True\n" in picture_of(folder) and "0.12" in picture_of(folder)
    assert said_of(folder)[EDITED] == {"fig9.csv": sha256((folder / "fig9.csv").read_bytes())}
    # Accepted once, it is drawn without being asked, and marked.
    assert drawn(folder) == 0 and "True\n" in picture_of(folder)
    # Another edit is not what was accepted.
    edit(folder, old="0.12", new="0.13")
    assert drawn(folder) == 2
    (folder / "fig9.csv").write_bytes(record)
    assert drawn(folder) == 0 and picture_of(folder) == before


def test_an_edit_that_nothing_can_be_drawn_of_is_one_line_and_not_accepted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def summed(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
        return [], [str(pd.read_csv(folder / "fig9_landscape.csv")["value"].astype(float).sum())]

    edit(folder, "fig9_landscape.csv", "0.125", "an eighth")
    script = dataclasses.replace(FIGURE, draw=summed)
    assert run_figure(script, ["--out", str(folder), "--plot-only", "--accept-edited"]) == 2
    message = capsys.readouterr().err
    assert "fig9_landscape.csv, edited after measuring, can't be drawn (ValueError: " in message
    assert message.count("\n") == 1 and EDITED not in said_of(folder)


def test_a_record_without_a_json_is_accepted_and_marked(folder: Path) -> None:
    (folder / "fig9.json").unlink()
    assert drawn(folder, "--accept-edited") == 0
    assert "True\n" in picture_of(folder)
    assert set(said_of(folder)) == {EDITED}
    assert drawn(folder) == 0 and "True\n" in picture_of(folder)


def test_measuring_again_takes_the_mark_away(folder: Path) -> None:
    before = picture_of(folder)
    edit(folder)
    assert drawn(folder, "--accept-edited") == 0
    assert measured(folder) == 0
    assert picture_of(folder) == before and EDITED not in said_of(folder)


def test_accepting_is_for_redrawing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_figure(FIGURE, ["--out", str(folder), "--accept-edited"]) == 2
    assert "--accept-edited is for records that are drawn again; give --plot-only as well" in (
        capsys.readouterr().err
    )


def test_a_kill_between_a_csv_file_and_its_json_is_said_and_mended_by_the_next_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = picture_of(folder)

    def other(session: Session) -> Mapping[str, object]:
        write_table([{**row, "value": 0.5} for row in ROWS], session.out / "fig9.csv", COLUMNS)
        return {}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_provenance", killed)
        script = dataclasses.replace(FIGURE, compute=other)
        assert run_figure(script, ["--out", str(folder), "--wandb", "disabled", "--overwrite"]) == 130
    capsys.readouterr()
    assert drawn(folder) == 2
    message = capsys.readouterr().err
    assert "or a run was killed while it wrote the two" in message and message.count("\n") == 1
    assert measured(folder) == 0 and drawn(folder) == 0
    assert picture_of(folder) == before


@many
@pytest.mark.parametrize("name", ["fig9.csv", "fig9_landscape.csv", "fig9.json"])
def test_a_flipped_byte_draws_nothing_else_and_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, flips: int
) -> None:
    draws, content, before = random.Random(name), (folder / name).read_bytes(), picture_of(folder)
    said = said_of(folder)
    refused = 0
    for _ in range(flips):
        (folder / name).write_bytes(flipped(content, draws))
        capsys.readouterr()
        code = drawn(folder)
        assert picture_of(folder) == before
        if code == 0:  # a space that became another
            assert name == "fig9.json" and said_of(folder) == said
            continue
        refused += 1
        message = capsys.readouterr().err
        assert code == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert refused > flips / 2


# Working records.

MEASURED = [{"metric": "nll", "size": size, "value": size / 4} for size in (1, 2, 3)]


def work(record: Path, count: int = len(MEASURED)) -> None:
    """Measure as a run does: what was altered goes, what is there stays."""
    remove_damaged(record, Records)
    if not is_finished(record):
        with measuring(record, Store(record.parent / "store"), "cpu"):
            for row in MEASURED[:count]:
                Records(record).add([row])
            if count < len(MEASURED):
                raise KeyboardInterrupt


@many
@pytest.mark.parametrize("count", [2, 3], ids=["of a killed run", "finished"])
@pytest.mark.parametrize("kind", ["record", "mark", "hash"])
def test_a_flipped_byte_of_working_records_changes_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, count: int, flips: int
) -> None:
    record = tmp_path / "unit.csv"
    files = {"record": record, "mark": tmp_path / "unit.csv.json", "hash": beside(record)}
    if count < len(MEASURED):
        with pytest.raises(KeyboardInterrupt):
            work(record, count)
    else:
        work(record)
    there = {path: path.read_bytes() for path in files.values()}
    draws = random.Random(f"{kind} {count}")
    for _ in range(flips):
        for path, content in there.items():
            path.write_bytes(content)
        files[kind].write_bytes(flipped(there[files[kind]], draws))
        capsys.readouterr()
        work(record)
        check_unaltered(record)
        assert Records(record).select()["value"].tolist() == [row["value"] for row in MEASURED]
        if kind == "record":
            said = capsys.readouterr().err
            assert "working record unit.csv was altered" in said and said.count("\n") == 1


# Claims.


def low(seed: int) -> dict[str, object]:
    name = f"int{DIGITS.settings.best_bits}"
    of_low = {"method": "LPE-BSR", "number_system": name, "rounding": "bernoulli"}
    value = 0.05 + 0.012 * seed
    return {**ROWS[0], **of_low, "size": DIGITS.settings.claim_size, "seed": seed, "value": value}


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vouch: Callable[[Path], None]) -> Path:
    """A folder with records, and the ledger of them with an interval over examples; the store is gone."""
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    out = tmp_path / "figures" / "digits"
    out.mkdir(parents=True)
    write_table([*ROWS, *(low(seed) for seed in range(3))], out / "fig2.csv", COLUMNS)
    vouch(out)
    working = working_folder(DIGITS, Store())
    for row in [*ROWS, *(low(seed) for seed in range(3))]:
        spread = 0.02 if row["method"] == "FP32" else -0.02
        values = float(str(row["value"])) + spread * torch.linspace(-1, 1, 40)[None]
        keep(working, row, torch.arange(40), {"calibrated_nll": (torch.tensor([row["size"]]), values)})
    assert judge(out) == 0
    shutil.rmtree(tmp_path / "work")
    assert "40" in (out / ledger.KEPT_FILE).read_text()
    return out


def judge(folder: Path, *further: str) -> int:
    return ledger.main(["--out", str(folder), *further])


def test_the_claims_refuse_edited_records_and_mark_what_they_accept(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (judged / "claims.csv").read_bytes()
    edit(judged, "fig2.csv", "0.11", "0.12")
    assert judge(judged) == 2
    message = capsys.readouterr().err
    assert "fig2.csv is not what fig2.json has the hash of" in message and "--accept-edited" in message
    assert (judged / "claims.csv").read_bytes() == before
    assert judge(judged, "--accept-edited") == 0
    for kind in ("md", "tex"):
        title = f"Claims at scale digits ({EDITED})"
        assert title in (judged / f"claims.{kind}").read_text()
    assert pd.read_csv(judged / "claims.csv")["note"].str.startswith(EDITED).all()
    assert json.loads((judged / "claims.json").read_text())[ledger.JUDGED_ON_EDITED] == ["fig2.csv"]


def test_the_ledgers_of_all_scales_say_which_is_of_edited_records(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = ["--figures", str(judged.parent)]
    assert ledgers.main(figures) == 0
    assert EDITED not in (judged.parent / "claims.md").read_text()
    edit(judged, "claims.csv", "undecided", "holds")
    assert ledgers.main(figures) == 2
    message = capsys.readouterr().err
    assert "claims.csv is not what claims.json has the hash of" in message and message.count("\n") == 1
    assert ledgers.main([*figures, "--accept-edited"]) == 0
    assert f"side by side ({EDITED})" in (judged.parent / "claims.md").read_text()
    assert f"digits ({EDITED}): verdict" in (judged.parent / "claims.csv").read_text().partition("\n")[0]


def test_our_numbers_beside_published_ones_are_refused_and_marked_too(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(judged, "fig2.csv", "0.11", "0.12")
    arguments = ["--figures", str(judged.parent)]
    assert external.main(arguments) == 2
    message = capsys.readouterr().err
    assert "fig2.csv is not what fig2.json has the hash of" in message and message.count("\n") == 1
    assert not (judged.parent / "external.csv").exists()
    assert external.main([*arguments, "--accept-edited"]) == 0
    title, _, _ = (judged.parent / "external.md").read_text().partition("\n")
    assert title == f"Our numbers beside published ones ({EDITED})"
    assert "or without a hash: digits/fig2.csv" in capsys.readouterr().out


def test_a_ledger_that_was_killed_before_its_json_is_judged_again(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (judged / "claims.csv").write_bytes(b"of a run that was killed\n")
    assert ledgers.main(["--figures", str(judged.parent)]) == 2
    assert "or a run was killed while it wrote the two" in capsys.readouterr().err
    assert judge(judged) == 0 and ledgers.main(["--figures", str(judged.parent)]) == 0


@pytest.mark.parametrize("flips", [pytest.param(2, id="a few"), FLIPS[1]])
@pytest.mark.parametrize("name", ["fig2.csv", "fig2.json", ledger.KEPT_FILE, "claims.json"])
def test_a_flipped_byte_makes_no_other_verdict_without_a_word(
    judged: Path, capsys: pytest.CaptureFixture[str], name: str, flips: int
) -> None:
    there = {path.name: path.read_bytes() for path in judged.iterdir()}
    whole = pd.read_csv(judged / "claims.csv", keep_default_na=False)
    draws = random.Random(name)
    for _ in range(flips):
        for path, content in there.items():
            (judged / path).write_bytes(content)
        (judged / name).write_bytes(flipped(there[name], draws))
        capsys.readouterr()
        code = judge(judged)
        printed = capsys.readouterr()
        if code:
            assert code == 2 and printed.err.startswith("error: ") and printed.err.count("\n") == 1
            assert (judged / "claims.csv").read_bytes() == there["claims.csv"]
            assert name != "claims.json"
            continue
        assert name != "fig2.csv" and printed.err == ""
        found = pd.read_csv(judged / "claims.csv", keep_default_na=False)
        if not found.equals(whole):
            assert name == ledger.KEPT_FILE
            assert f"{name} was edited or damaged since it was written" in printed.out
            # What is missing is missing, and nothing else is there.
            examples = [column for column in whole if column.startswith("examples")]
            assert found.drop(columns=examples).equals(whole.drop(columns=examples))
            assert (found[examples] == "").all(axis=None)


# What a picture and a table say.


def test_a_picture_of_edited_records_says_so_in_its_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    for heading in ("", "digits: a quick scale"):
        figure, _ = plt.subplots()
        with page.page(page.BOTH_COLUMNS, heading, edited=True):
            panels.save(figure, tmp_path, "fig9")
        titles.append(figure.get_suptitle())
    assert titles == [EDITED, f"digits: a quick scale\n{EDITED}"]


def test_a_table_of_edited_records_says_so_in_each_of_its_files(tmp_path: Path) -> None:
    with page.page(page.BOTH_COLUMNS, edited=True):
        tables.write_all(tmp_path, "table9", ["method", "NLL"], [["FP32", 0.5]], "A table")
    assert (tmp_path / "table9.csv").read_text() == "method,NLL,records\nFP32,0.5,edited after measuring\n"
    for kind in ("md", "tex"):
        assert f"A table ({EDITED})" in (tmp_path / f"table9.{kind}").read_text()


def test_line_endings_of_csv_files_are_left_alone_by_git() -> None:
    assert "*.csv -text" in (REPOSITORY / ".gitattributes").read_text().splitlines()
    assert b"\r" not in (REPOSITORY / "figures" / "digits" / "fig2.csv").read_bytes()
