"""``lpe plot``: the curves are the numbers of the files, and a picture is whole or not there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import lpe
from lpe import cli
from lpe.cli.curves import curves, of_confidence
from lpe.evaluation.selective import area_under_risk_coverage

SIZE, EXAMPLES = 12, 90


def ensemble_of(bits: int = 3) -> lpe.LowPrecisionEnsemble:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        net[2].weight.mul_(4)
    return lpe.LowPrecisionEnsemble(net, lpe.Int(bits), SIZE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of predictions p.safetensors, and of results r.csv as lpe evaluate writes them."""
    root = tmp_path_factory.mktemp("plot")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, 6, generator=generator)
    targets = torch.randint(4, (EXAMPLES,), generator=generator)
    table = lpe.evaluate(ensemble_of(), [(inputs, targets)], predictions=root / "p.safetensors")
    rows = [
        {"method": "FP32", "number_system": "fp32", "size": 1, "nll": 1.5, "memory_bits": 8e6, "ece": 0.1},
        *({"method": "LPE-BSR", "number_system": "int3", **row} for row in table.to_dict("records")),
    ]
    for row in rows:
        row["ms_per_example"] = 2.0 * row["size"]
    pd.DataFrame(rows).to_csv(root / "r.csv", index=False)
    return root


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run lpe plot; what it prints, or its one line of error."""

    def run(*arguments: object) -> str:
        code = cli.main(["plot", *map(str, arguments)])
        printed = capsys.readouterr()
        assert (code, printed.out == "") in ((0, False), (2, True))
        assert code == 0 or (printed.err.startswith("error: ") and printed.err.count("\n") == 1)
        return printed.out or printed.err

    return run


def words(svg: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8"))


def test_a_curve_has_the_numbers_of_the_table(files: Path) -> None:
    single, members = curves([str(files / "r.csv")], None, None, None)
    assert (single.label, members.label) == ("FP32", "LPE-BSR int3")
    assert single.sizes == [1] and single.values == {"nll": [1.5], "ece": [0.1], "bits": [8e6], "ms": [2.0]}
    expected = lpe.score(files / "p.safetensors")
    assert members.sizes == list(range(1, SIZE + 1))
    assert members.values["nll"] == pytest.approx(list(expected["nll"]), rel=1e-12)
    assert members.values["ms"] == [2.0 * n for n in range(1, SIZE + 1)]


def test_a_curve_of_predictions_is_their_score_and_its_confidence_that_of_the_size(files: Path) -> None:
    expected = lpe.score(files / "p.safetensors", "all").set_index("size")
    for size in (None, 1):
        (curve,) = curves([str(files / "p.safetensors")], None, None, size)
        assert (
            curve.label == "p" and curve.values["nll"] == list(expected["nll"]) and "ms" not in curve.values
        )
        row = expected.loc[size or SIZE]
        assert curve.confidence is not None
        assert curve.confidence.ece == pytest.approx(row["ece"], abs=1e-12)
        assert curve.confidence.aurc == pytest.approx(row["aurc"], abs=1e-12)
        assert curve.confidence.risk[-1] == pytest.approx(row["err"])
        gaps = [share * abs(right - mean) for mean, right, share in curve.confidence.bins]
        assert sum(gaps) == pytest.approx(row["ece"], abs=1e-12)


def test_confidence_by_hand() -> None:
    scores = torch.tensor([0.9, 0.9, 0.5, 0.3], dtype=torch.float64)
    right = torch.tensor([True, True, False, True])
    found = of_confidence(scores, right)
    assert [tuple(round(each, 9) for each in row) for row in found.bins] == [
        (0.3, 1.0, 0.25),
        (0.5, 0.0, 0.25),
        (0.9, 1.0, 0.5),
    ]
    assert found.coverage == [0.25, 0.5, 0.75, 1.0] and found.risk == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert found.aurc == area_under_risk_coverage(scores, right)


def test_a_picture_has_every_panel_with_its_unit_and_a_legend(run: Run, files: Path, tmp_path: Path) -> None:
    given = [files / "r.csv", files / "p.safetensors", "--label", "run", "--label", "INT-3"]
    printed = run(*given, "-o", tmp_path / "p.svg")
    assert printed == f"wrote {tmp_path / 'p.svg'}: 3 curves\n"
    found = words(tmp_path / "p.svg")
    for label in ("members", "memory (MB)", "time (ms an example)", "coverage", "risk (share wrong)"):
        assert label in found
    assert found.count("NLL (nats)") == found.count("ECE (15 bins)") == 3
    assert [found.count(label) for label in ("run: FP32", "run: LPE-BSR int3", "INT-3")] == [1, 1, 1]


def test_only_what_is_asked_for_is_drawn(run: Run, files: Path, tmp_path: Path) -> None:
    run(files / "p.safetensors", "--show", "reliability,risk", "--size", 1, "-o", tmp_path / "p.svg")
    found = words(tmp_path / "p.svg")
    assert "confidence (mean of a bin)" in found and "coverage" in found and "members" not in found


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".PDF", b"%PDF"), (".svg", b"<?xml")])
def test_the_suffix_says_what_is_written(
    run: Run, files: Path, tmp_path: Path, suffix: str, begins: bytes
) -> None:
    run(files / "r.csv", "--show", "size", "-o", tmp_path / f"p{suffix}")
    assert (tmp_path / f"p{suffix}").read_bytes().startswith(begins)
    assert [path.name for path in tmp_path.iterdir()] == [f"p{suffix}"]


def test_results_on_tasks_are_drawn_a_task_at_a_time(run: Run, files: Path, tmp_path: Path) -> None:
    table = pd.read_csv(files / "r.csv")
    pd.concat([table.assign(task="a"), table.assign(task="b", nll=7.0)]).to_csv(tmp_path / "r.csv")
    said = run(tmp_path / "r.csv", "-o", tmp_path / "p.png")
    assert "has several tasks; give --task a, b, one of them" in said
    assert "has no task 'c'" in run(tmp_path / "r.csv", "--task", "c", "-o", tmp_path / "p.png")
    assert curves([str(tmp_path / "r.csv")], None, "b", None)[1].values["nll"] == [7.0] * SIZE


def test_without_matplotlib_one_line_says_what_to_install(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = run(files / "r.csv", "-o", tmp_path / "p.png")
    assert "matplotlib is not installed; install it by pip install 'low-precision-ensembling[plot]'" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["r.csv", "-o", "p.gif"], "-o takes a name that ends with .png, .pdf, .svg, not p.gif"),
        (["r.csv", "-o", "p.png", "--show", "speed"], "--show takes size, bits, ms, reliability, risk with"),
        (["r.csv", "-o", "p.png", "--show", "risk"], "the files have nothing of risk; times are in what"),
        (["r.csv", "-o", "p.png", "--label", "a", "--label", "b"], "2 labels and 1 files; give --label once"),
        (["none.csv", "-o", "p.png"], "there is no file none.csv; lpe evaluate --csv, lpe score --csv"),
        (["none", "-o", "p.png"], "there is no file none"),
        (["x.csv", "-o", "p.png"], "x.csv has no column 'size'"),
        (["empty.csv", "-o", "p.png"], "empty.csv is no table of results (No columns to parse"),
        (["words.csv", "-o", "p.png"], "words.csv has no row with a size and a finite NLL"),
        (
            ["p.safetensors", "-o", "p.png", "--size", "13"],
            "--size of p.safetensors must be an integer from 1",
        ),
        (["p.safetensors", "-o", "p.png", "--size", "0"], "--size must be 1 or more, not 0"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], wanted: str
) -> None:
    monkeypatch.chdir(files)
    Path("x.csv").write_text("a,b\n1,2\n")
    Path("empty.csv").write_text("")
    Path("words.csv").write_text("size,nll\none,low\n2,inf\n")
    before = sorted(files.iterdir())
    assert wanted in run(*given)
    assert sorted(files.iterdir()) == before
