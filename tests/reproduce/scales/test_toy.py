"""The proof that a scale is one file: a toy with batch norm renders every figure and table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from reproduce import __main__ as everything
from reproduce import rendering
from reproduce.draw import page, panels
from reproduce.scales import find
from reproduce.study.records import EQUAL_BITS

TOY = str(Path(__file__).with_name("toy.py"))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of the toy scale, measured and rendered in one process."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPE_STORE", str(folder / "work" / "store"))
        assert everything.main(["--scale", TOY, "--out", str(folder / "out"), "--wandb", "disabled"]) == 0
    return folder / "out"


@pytest.mark.parametrize("figure", everything.FIGURES)
def test_a_scale_of_one_file_renders(figure: str, rendered: Path) -> None:
    kind = "tex" if figure.startswith("table") else "pdf"
    assert (rendered / f"{figure}.{kind}").stat().st_size > 0


def test_its_claims_are_judged(rendered: Path) -> None:
    assert "C12" in (rendered / "claims.md").read_text(encoding="utf-8")


def test_members_are_judged_against_one_network_of_as_many_bits(rendered: Path) -> None:
    claims = pd.read_csv(rendered / "claims.csv")
    for members, bits, system, _ in EQUAL_BITS:
        named = f"C13 ({members} × INT-{bits}, {system.upper().replace('INT', 'INT-')})"
        (verdict,) = claims[claims["claim"] == named]["verdict"]
        # The toy has no members of 5 bits.
        assert (verdict == "not run") == (bits == 5), named
    table = (rendered / "table5.md").read_text(encoding="utf-8")
    assert "one network, INT-8" in table and "one network, BF16" in table


def test_its_noun_is_what_the_pictures_and_records_say(rendered: Path) -> None:
    for path in [*rendered.glob("*.md"), *rendered.glob("fig*.json"), *rendered.glob("table*.json")]:
        assert "image" not in path.read_text(encoding="utf-8"), path.name


def test_batch_norm_gives_rows_as_rounded_and_re_estimated(rendered: Path) -> None:
    record = (rendered / "table1_record.csv").read_text(encoding="utf-8")
    assert "LPE-BSR, re-estimated" in record and "FP32, re-estimated" in record


PICTURES = [name for name in everything.FIGURES if not name.startswith("table")]


@pytest.mark.parametrize("figure", PICTURES)
def test_no_text_is_smaller_than_6_5_points_in_a_column_of_5_5_inches(
    figure: str, rendered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure, folder: Path, name: str) -> list[Path]:
        drawn.append(figure)
        return []

    monkeypatch.setattr(panels, "save", keep)
    with page.page(5.5):
        rendering.script_of(figure).draw(rendered, find.scale(TOY))
    drawn[0].canvas.draw()
    written = [text for text in drawn[0].findobj(Text) if isinstance(text, Text) and text.get_text()]
    panels.plt.close(drawn[0])
    assert drawn[0].get_figwidth() == 5.5
    assert min(float(text.get_fontsize()) for text in written) >= 6.5


def test_the_file_has_fewer_than_180_lines() -> None:
    assert len(Path(TOY).read_text(encoding="utf-8").splitlines()) < 180


def test_a_scale_that_is_no_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert everything.main(["--scale", "no/such.py"]) == 2
    assert capsys.readouterr().err == "error: there is no scale's file no/such.py\n"


def test_a_file_without_a_scale_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("scale = 1\n")
    assert everything.main(["--scale", str(tmp_path / "mine.py")]) == 2
    assert "names no SCALE" in capsys.readouterr().err


def test_a_file_is_loaded_once() -> None:
    assert find.scale(TOY) is find.scale(TOY)
