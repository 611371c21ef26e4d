"""What records cost is kept beside them, and summed for a figure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lpe.errors import InputError
from lpe.provenance import machine
from lpe.records import Records, write_table
from lpe.store import Store
from reproduce.study.costs import description_of, is_finished, measuring, remove_damaged, summed
from reproduce.study.examples import NAMED, finder, keep, place_of

HERE = machine("cpu")


TRAINING, MEASURING = 5.0, 3.0
ROWS = [{"metric": "nll", "size": size, "value": size / 4} for size in (1, 2, 3)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still unless somebody changes it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def work(tmp_path: Path, clock: list[float]) -> Work:
    """Training and measuring that take their time on that clock."""
    return Work(Store(tmp_path / "store"), clock)


@dataclass
class Work:
    store: Store
    clock: list[float]

    def train(self, seed: int) -> None:
        def make() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
            self.clock[0] += TRAINING
            return {"weight": torch.ones(1)}, {}

        self.store.get_or_make({"seed": seed}, make)

    def measure(self, record: Path, *seeds: int) -> None:
        with measuring(record, self.store, "cpu"):
            for seed in seeds:
                self.train(seed)
            self.clock[0] += MEASURING
            Records(record).add(ROWS)


def test_training_is_not_counted_as_measuring(work: Work, tmp_path: Path) -> None:
    work.measure(tmp_path / "a.csv", 0)
    assert summed([tmp_path / "a.csv"], {}) == {
        "training": [{"seconds": TRAINING, "of": 1, **HERE}],
        "measuring": [{"seconds": MEASURING, "of": 1, **HERE}],
    }


def test_weights_that_two_records_share_are_counted_once(work: Work, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        work.measure(tmp_path / name, 0)
    (training,) = summed([tmp_path / "a.csv", tmp_path / "b.csv"], {})["training"]
    assert training == {"seconds": TRAINING, "of": 1, **HERE}


def test_weights_that_a_figure_used_itself_are_counted(work: Work) -> None:
    with work.store.use() as use:
        work.train(0)
    assert summed([], use.made)["training"] == [{"seconds": TRAINING, "of": 1, **HERE}]


def test_machines_are_summed_by_themselves() -> None:
    weights = {"a": {"seconds": 1.0, "cpu": "Xeon"}, "b": {"seconds": 2.0, "cpu": "EPYC"}}
    assert summed([], weights)["training"] == [
        {"seconds": 1.0, "of": 1, "cpu": "Xeon"},
        {"seconds": 2.0, "of": 1, "cpu": "EPYC"},
    ]


def test_measuring_that_failed_is_counted_and_the_record_is_not_finished(work: Work, tmp_path: Path) -> None:
    record = tmp_path / "a.csv"
    with pytest.raises(RuntimeError), measuring(record, work.store, "cpu"):
        work.clock[0] += MEASURING
        Records(record).add(ROWS[:1])
        raise RuntimeError
    assert not is_finished(record)
    work.measure(record)
    assert is_finished(record)
    assert summed([record], {})["measuring"] == [{"seconds": 2 * MEASURING, "of": 2, **HERE}]


def test_a_record_that_was_removed_is_not_finished(work: Work, tmp_path: Path) -> None:
    work.measure(tmp_path / "a.csv")
    (tmp_path / "a.csv").unlink()
    assert not is_finished(tmp_path / "a.csv")


def _last_line_cut(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:-1])


DAMAGE = {
    "value changed": lambda content: content.replace(b"0.25", b"0.26"),
    "row dropped": _last_line_cut,
    "header only": lambda content: content.splitlines(keepends=True)[0],
    "cut within a line": lambda content: content[:-4],
    "empty": lambda content: b"",
    "not text": lambda content: b"\xff\xfe",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_finished_record_that_was_altered_is_measured_anew(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    record = tmp_path / "a.csv"
    work.measure(record)
    content = record.read_bytes()
    record.write_bytes(DAMAGE[damage](content))
    assert record.read_bytes() != content and not is_finished(record)
    remove_damaged(record, Records)
    said = "working record a.csv was altered since it was measured; it is measured anew\n"
    assert capsys.readouterr().err == said
    assert not record.exists()
    work.measure(record)
    assert record.read_bytes() == content and is_finished(record)


def test_a_finished_record_is_left_alone(work: Work, tmp_path: Path) -> None:
    record = tmp_path / "a.csv"
    work.measure(record)
    remove_damaged(record, lambda _: pytest.fail("it was read"))
    assert is_finished(record)


def test_a_finished_record_of_which_examples_were_damaged_is_measured_anew(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "a.csv"
    row = dict.fromkeys(NAMED, "x") | {"seed": 0, "metric": "nll", "size": 1, "value": 0.5}
    values = {"nll": (torch.tensor([1]), torch.tensor([[0.5]]))}
    work.measure(record)
    keep(place_of(record), row, torch.tensor([0]), values)
    assert finder(tmp_path)(row) is not None and is_finished(record)
    (tensors,) = (place_of(record) / "examples").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert finder(tmp_path)(row) is None and not is_finished(record)
    capsys.readouterr()
    remove_damaged(record, Records)
    said = "working record a.csv lacks values of examples, which were damaged; it is measured anew\n"
    assert capsys.readouterr().err == said
    work.measure(record)
    keep(place_of(record), row, torch.tensor([0]), values)
    assert finder(tmp_path)(row) is not None and is_finished(record)


def _fail_after(work: Work, record: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with pytest.raises(RuntimeError), measuring(record, work.store, "cpu"):
        Records(record).add(rows)
        raise RuntimeError


def test_the_rows_of_a_run_that_failed_are_gone_on_from(work: Work, tmp_path: Path) -> None:
    record = tmp_path / "a.csv"
    _fail_after(work, record, ROWS[:1])
    remove_damaged(record, Records)
    assert len(Records(record)) == 1


def test_a_failed_runs_rows_that_cannot_be_read_are_measured_anew(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "a.csv"
    _fail_after(work, record, ROWS[:1])
    write_table([{"x": 1}], record, ["x"], grows=True)
    remove_damaged(record, Records)
    assert capsys.readouterr().err == "working record a.csv cannot be read; it is measured anew\n"
    assert not record.exists()


def test_a_record_that_is_measured_again_is_not_held_against_its_old_hash(work: Work, tmp_path: Path) -> None:
    record = tmp_path / "a.csv"
    work.measure(record)
    record.unlink()
    with measuring(record, work.store, "cpu"):
        Records(record).add(ROWS[:1])
        remove_damaged(record, Records)  # as another process would
        assert len(Records(record)) == 1


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        "{}",
        '{"finished": true}',
        '{"finished": "yes", "measuring": [], "training": {}}',
        '{"finished": true, "measuring": [1], "training": {}}',
        '{"finished": true, "measuring": [{"seconds": "1"}], "training": {}}',
        '{"finished": true, "measuring": [], "training": []}',
        "[" * 100_000,
    ],
    ids=lambda odd: odd[:60],
)
def test_a_record_with_an_odd_json_beside_it_is_measured_anew(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str], odd: str
) -> None:
    record = tmp_path / "a.csv"
    work.measure(record)
    (tmp_path / "a.csv.json").write_text(odd)
    remove_damaged(record, Records)
    assert "has a damaged a.csv.json beside it; it is measured anew" in capsys.readouterr().err
    work.measure(record)
    assert is_finished(record)
    assert summed([record], {})["measuring"] == [{"seconds": MEASURING, "of": 1, **HERE}]


def _beside(record: Path) -> Path:
    return record.with_name(f"{record.name}.sha256")


@pytest.mark.parametrize("damage", [each for each in DAMAGE if each != "not text"])
def test_a_failed_runs_rows_that_were_altered_are_measured_anew(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    record = tmp_path / "a.csv"
    _fail_after(work, record, ROWS)
    record.write_bytes(DAMAGE[damage](record.read_bytes()))
    remove_damaged(record, Records)
    said = "working record a.csv was altered since it was written; it is measured anew\n"
    assert capsys.readouterr().err == said
    assert not record.exists() and not _beside(record).exists()


def test_a_failed_runs_rows_without_a_hash_are_measured_anew(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "a.csv"
    _fail_after(work, record, ROWS)
    _beside(record).unlink()
    remove_damaged(record, Records)
    assert capsys.readouterr().err == "working record a.csv has no hash; it is measured anew\n"
    assert not record.exists()


def test_a_finished_record_is_read_whatever_the_hash_beside_it_says(work: Work, tmp_path: Path) -> None:
    record = tmp_path / "a.csv"
    work.measure(record)
    _beside(record).write_text("of something else\n")
    remove_damaged(record, Records)
    assert is_finished(record) and len(Records(record)) == len(ROWS)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"finished": true', '"finished": false'), (f'"seconds": {MEASURING}', '"seconds": 0.5')],
    ids=["finished", "seconds"],
)
def test_a_json_beside_a_record_that_was_altered_is_said_and_the_record_measured_anew(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    record, beside = tmp_path / "a.csv", tmp_path / "a.csv.json"
    work.measure(record)
    assert old in beside.read_text()
    beside.write_text(beside.read_text().replace(old, new))
    remove_damaged(record, Records)
    assert "has a damaged a.csv.json beside it; it is measured anew" in capsys.readouterr().err
    assert not record.exists()


def test_what_is_told_of_a_given_model_is_part_of_its_finished_record(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "a.csv"
    description_of(record).write_text('{"resolution": 224}')
    work.measure(record)
    remove_damaged(record, Records)
    assert is_finished(record)
    description_of(record).write_text('{"resolution": 384}')
    remove_damaged(record, Records)
    assert "was altered since it was measured" in capsys.readouterr().err
    assert not record.exists() and not description_of(record).exists()


def test_a_folder_in_place_of_the_json_is_one_line_before_any_work(work: Work, tmp_path: Path) -> None:
    (tmp_path / "a.csv.json").mkdir()
    with pytest.raises(InputError, match=r"a\.csv\.json is a folder, where a file belongs; remove it\Z"):
        with measuring(tmp_path / "a.csv", work.store, "cpu"):
            pytest.fail("it was measured")
