"""``python -m reproduce``: all units once, in one process or several, then every figure and table."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import reproduce.__main__ as everything
from lpe.provenance import REPOSITORY
from reproduce.command import Script, opened
from reproduce.study import measurements, parallel
from reproduce.study.measurements import measure_all
from reproduce.study.scale import Scale
from reproduce.study.units import Unit

MAIN = "tiny ViT"


def test_units_in_two_processes_leave_the_same_records_as_in_one(
    tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Unit(MAIN, "SGD", 0), Unit(MAIN, "SGD", 1), Unit(MAIN, "SSE", 0), Unit(MAIN, "BE", 1)]
    records: list[dict[str, bytes]] = []
    for jobs in (1, 2):
        monkeypatch.setenv("LPE_STORE", str(tmp_path / str(jobs) / "store"))
        with opened("all", tiny, 2, tmp_path, "disabled", quiet=True) as session:
            if jobs == 1:
                measure_all(session, wanted)
            else:
                with parallel.workers(jobs, dict) as pool:
                    parallel.measure_units(session, wanted, pool)
            records.append({path.name: path.read_bytes() for path in session.working.glob("*.csv")})
    assert len(records[0]) == len(wanted)
    assert records[0] == records[1]


def test_training_curves_of_workers_reach_the_tracker(
    tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened("all", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        logged: list[dict[str, float]] = []
        monkeypatch.setattr(session.tracker, "log", lambda values, step=None: logged.append(dict(values)))
        with parallel.workers(1, dict) as pool:
            parallel.measure_units(session, [Unit(MAIN, "SGD", 0)], pool)
    losses = [key for values in logged for key in values if key.endswith("/loss")]
    assert losses.count("SGD/seed 0/loss") == tiny.main.points["SGD"].epochs  # type: ignore[attr-defined, union-attr]


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys, time
        from pathlib import Path

        sys.path.insert(0, REPOSITORY)
        from reproduce.study import parallel

        def work(path):
            Path(path).write_text(str(os.getpid()))
            time.sleep(60)

        if __name__ == "__main__":
            with parallel.workers(1, dict) as pool:
                pool.submit(work, sys.argv[1]).result()
    """)
    (tmp_path / "script.py").write_text(script.replace("REPOSITORY", repr(str(REPOSITORY))))
    told = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(told)])
    try:
        _wait_for(lambda: told.is_file() and bool(told.read_text()))
        worker = Path("/proc") / told.read_text()
        if not worker.exists():
            pytest.skip("there is no /proc to see processes in")
    finally:
        process.kill()
        process.wait()
    # A zombie has no command line any more.
    _wait_for(lambda: not worker.exists() or not (worker / "cmdline").read_bytes())


def _wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    for _ in range(round(seconds / 0.1)):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"it did not happen within {seconds} s")


def test_each_unit_is_measured_once_for_all_figures(
    tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Unit] = []
    true_measure = measurements.measure

    def counted(session: object, unit: Unit) -> None:
        measured.append(unit)
        true_measure(session, unit)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(measurements, "measure", counted)
        patched.setattr(everything, "run_figure", lambda *_, **__: 0)
        arguments = ["--scale", "tiny", "--seeds", "1", "--only", "fig2,fig3", "--out", str(tmp_path)]
        assert everything.main([*arguments, "--wandb", "disabled"]) == 0
    assert sorted(unit.what for unit in measured) == sorted(tiny.points)


def test_it_ends_with_a_table_of_what_was_rendered(
    tiny: Scale, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--scale", "tiny", "--seeds", "1", "--only", "fig2", "--out", str(tmp_path / "out")]
    assert everything.main([*arguments, "--wandb", "disabled"]) == 0
    *_, header, training, figure, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["what", "seconds"]
    assert training.startswith("training and measuring") and figure.startswith("fig2")
    assert total.startswith("in all ") and total.endswith("1 process")


def test_a_figure_that_is_named_twice_is_rendered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []

    def render(script: Script, *_: object, **__: object) -> int:
        rendered.append(script.name)
        return 0

    monkeypatch.setattr(everything, "run_figure", render)
    assert everything.main(["--only", "fig5,fig2,fig5", "--plot-only", "--out", str(tmp_path)]) == 0
    assert rendered == ["fig5", "fig2"]


def test_figures_are_redrawn_in_several_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("csv", "json"):
        shutil.copy(REPOSITORY / "figures" / "digits" / f"fig2.{kind}", tmp_path)
    arguments = ["--only", "fig2", "--plot-only", "--out", str(tmp_path), "--jobs"]
    assert everything.main([*arguments, "1"]) == 0
    drawn = (tmp_path / "fig2.png").read_bytes()
    (tmp_path / "fig2.png").unlink()
    capsys.readouterr()
    assert everything.main([*arguments, "2"]) == 0
    assert (tmp_path / "fig2.png").read_bytes() == drawn
    assert "C2 (SWAG)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "0"], "--jobs must be 1 to 256, not 0"),
        (["--seeds", "0"], "--seeds must be 1 or more, not 0"),
        (["--only", "fig77"], "unknown figure or table 'fig77'"),
    ],
    ids=["jobs", "seeds", "only"],
)
def test_a_bad_option_is_one_line_before_any_work(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert everything.main(arguments) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1
