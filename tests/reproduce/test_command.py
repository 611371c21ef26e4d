"""Bad input to a script: one clear line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.axes import Axes

from lpe.provenance import REPOSITORY
from reproduce import __main__ as everything
from reproduce import fig2, ledger, tune
from reproduce.command import run_figure
from reproduce.draw import panels
from reproduce.scales import find
from reproduce.scales.digits.settings import DIGITS

UNKNOWN = (
    f"error: unknown scale 'huge'; there are {', '.join(find.names())}, and files (mine.toml, mine.py)\n"
)


def run(arguments: list[str]) -> int:
    try:
        return run_figure(fig2.SCRIPT, arguments)
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "huge"], "unknown scale 'huge'; there are digits"),
        (["--seeds", "0"], "--seeds must be 1 or more, not 0"),
        (["--seeds", "101"], "--seeds must be at most 100, not 101: later seeds tune the recipes"),
        (["--seeds", "many"], "'many' is no whole number"),
        (["--width", "1e9"], "--width must be 5 to 20 inches, not 1e+09"),
        (["--width", "0"], "--width must be 5 to 20 inches, not 0"),
        (["--width", "nan"], "--width must be 5 to 20 inches, not nan"),
        (["--wandb", "sometimes"], "invalid choice: 'sometimes'"),
        (["--figure", "3"], "unrecognized arguments: --figure 3"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--out", str(tmp_path / "out"), *arguments]) == 2
    message = capsys.readouterr().err
    assert said in message and message.startswith("error: ") and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inches", ["1e9", "-3", "nan"])
def test_everything_of_a_scale_refuses_a_width_before_it_makes_a_folder(
    inches: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert everything.main([f"--width={inches}", "--out", str(tmp_path / "out")]) == 2
    assert "--width must be 5 to 20 inches, not " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["--out", str(tmp_path / "file" / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: cannot write to") and message.count("\n") == 1


def test_plot_only_without_a_record_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--plot-only", "--out", str(tmp_path)]) == 2
    assert "there is no record fig2.csv" in capsys.readouterr().err


def test_plot_only_on_a_file_that_is_no_record_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vouch: Callable[[Path], None]
) -> None:
    (tmp_path / "fig2.csv").write_text("a,b\n1,2\n")
    vouch(tmp_path)
    assert run(["--plot-only", "--out", str(tmp_path)]) == 2
    assert "fig2.csv, line 1: the header of a record is expected: scale," in capsys.readouterr().err
    assert not (tmp_path / "fig2.png").exists()


FIG2 = (REPOSITORY / "figures" / "digits" / "fig2.csv").read_text()
HEADER, FIRST, SECOND = FIG2.splitlines(keepends=True)[:3]
VALUE = FIRST.split(",")[9]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (FIG2.replace(FIRST, FIRST.replace("digits", "paper", 1)), "fig2.csv has rows of scale 'paper'"),
        (FIG2.replace(FIRST, FIRST + FIRST.replace(VALUE, "0.5")), "line 3: "),
        (FIG2.replace(FIRST, FIRST.replace(VALUE, "nan")), "line 2: "),
        (HEADER, "fig2.csv has no rows"),
    ],
    ids=["another scale", "two values", "not a number", "no rows"],
)
def test_plot_only_refuses_what_the_claims_refuse(
    record: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    vouch: Callable[[Path], None],
) -> None:
    (tmp_path / "fig2.csv").write_text(record)
    vouch(tmp_path)
    assert run(["--plot-only", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and said in message and message.count("\n") == 1
    assert not (tmp_path / "fig2.png").exists()
    assert ledger.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("code", ["0", "3", "'enough'"])
def test_a_scales_file_that_ends_its_process_is_one_line_and_exit_code_2(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(f"raise SystemExit({code})\n")
    assert run(["--scale", str(tmp_path / "mine.py")]) == 2
    said = f"error: mine.py cannot be run: SystemExit: {code.strip(chr(39))}\n"
    assert capsys.readouterr().err == said


def test_an_unknown_figure_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert everything.main(["--only", "fig2,fig99"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown figure or table 'fig99'; there are fig1, fig2, ")
    assert said.count("\n") == 1


def test_the_sweep_names_an_unknown_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--scale", "huge"]) == 2
    assert capsys.readouterr().err == UNKNOWN


def test_a_script_run_by_its_path_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "reproduce" / "fig3.py"), "--scale", "huge"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == UNKNOWN


def test_the_sweep_names_an_unknown_method(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert tune.main(["--only", "SGD,Adam", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: the sweep has no method 'Adam'; there are SGD, ")
    assert not list(tmp_path.iterdir())


def test_figure_2_gives_no_interval_of_a_point_of_one_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = pd.read_csv(REPOSITORY / "figures" / "digits" / "fig2.csv")
    record[(record["point"] != "SWAG") | (record["seed"] == 0)].to_csv(tmp_path / "fig2.csv", index=False)
    titles: list[str] = []
    label_rows = panels.label_rows

    def keep(pairs: Sequence[tuple[Axes, str]]) -> None:
        titles.extend(title for _, title in pairs)
        label_rows(pairs)

    monkeypatch.setattr(panels, "label_rows", keep)
    fig2.draw(tmp_path, DIGITS)
    ends = {title.split("\n")[0]: title[-1] for title in titles if "\n" in title}
    assert ends == {"SGD": "]", "SWAG": ends["SWAG"], "IVON": "]"}
    assert ends["SWAG"].isdigit()
