"""W&B: an offline run really is written, and whatever fails in it stops nothing and is said once."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas
import pytest

from lpe import tracking
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.tracking import Tracker

SCRIPT = """
import sys, types
package = types.ModuleType("lpe")
package.__path__ = [sys.argv[1]]
sys.modules["lpe"] = package  # without what lpe imports by itself: seconds of torch in each process
import time
import pandas
from lpe import tracking

hooks = sys.excepthook, sys.exit, sys.stdout, sys.stderr
started = time.monotonic()
with tracking.start("online", "lpe-tests", "no key", {}) as tracker:
    tracker.log({"nll": 1.0})
print("bounded" if time.monotonic() - started < 30 else "slow")

with tracking.start("offline", "lpe-tests", "offline", {"rate_of_the_test": 0.125}, ["tagged"]) as tracker:
    for step in range(3):
        tracker.log({"nll_of_the_test": 1 / (step + 1)}, step=step)
    tracker.log_table("table_of_the_test", pandas.DataFrame({"size": [1, 2], "nll": [0.5, 0.25]}))
    tracker.artifact("artifact_of_the_test", "record", sys.argv[2:])
    print("kept" if hooks == (sys.excepthook, sys.exit, sys.stdout, sys.stderr) else "replaced")
"""


@dataclass(frozen=True)
class Finished:
    stdout: list[str]
    stderr: list[str]
    folder: Path
    log: bytes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A process without a key, which tries W&B online and then runs it offline."""
    folder = tmp_path_factory.mktemp("wandb")
    (folder / "fig3.csv").write_text("size,nll\n")
    (folder / "figures").mkdir()
    (folder / "figures" / "fig4.csv").write_text("size,nll\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_DIR": str(folder), "HOME": str(folder), "NETRC": str(folder / "none")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(REPOSITORY / "lpe"), "fig3.csv", "figures"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    logs = [path.read_bytes() for path in folder.glob("wandb/offline-run-*/run-*.wandb")]
    return Finished(done.stdout.splitlines(), done.stderr.splitlines(), folder, b"".join(logs))


@pytest.mark.parametrize(
    "written",
    [
        b"rate_of_the_test",
        b"tagged",
        b"nll_of_the_test",
        b"table_of_the_test",
        b"artifact_of_the_test",
        b"fig3.csv",
        b"figures/fig4.csv",
    ],
)
def test_an_offline_run_has_in_it(finished: Finished, written: bytes) -> None:
    assert written in finished.log


def test_an_offline_run_keeps_the_rows_of_its_table(finished: Finished) -> None:
    (table,) = finished.folder.glob("wandb/offline-run-*/files/media/table/*.table.json")
    assert json.loads(table.read_text())["data"] == [[1, 0.5], [2, 0.25]]


def test_online_without_a_key_is_one_line_and_the_offline_run_says_where_it_writes(
    finished: Finished,
) -> None:
    line, where = finished.stderr
    (folder,) = finished.folder.glob("wandb/offline-run-*")
    written = f"W&B: offline, written to wandb/{folder.name}; WANDB_MODE=disabled switches it off"
    assert where == written
    assert line.startswith("W&B: ") and line.endswith("; the run goes on without it") and "API key" in line


def test_online_without_a_key_does_not_wait(finished: Finished) -> None:
    assert "bounded" in finished.stdout


def test_a_run_leaves_the_hooks_of_the_process_as_they_were(finished: Finished) -> None:
    assert "kept" in finished.stdout


@pytest.mark.parametrize(
    ("mode", "environment", "chosen"),
    [
        (tracking.USUAL, {}, "offline"),
        (tracking.USUAL, {"WANDB_API_KEY": "key"}, "online"),
        (tracking.USUAL, {"WANDB_API_KEY": "key", "WANDB_MODE": "offline"}, "offline"),
        (None, {"WANDB_API_KEY": "key", "WANDB_MODE": "offline"}, "offline"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
    ],
)
def test_the_mode_is(
    mode: str | None, environment: dict[str, str], chosen: str, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracking.start(mode, "project", "name", {})
    assert fake.started[0]["mode"] == chosen


def test_without_a_mode_nothing_is_tracked_even_with_a_key(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    with tracking.start(None, "project", "name", {}) as tracker:
        tracker.log({"nll": 1.0})
    assert fake.calls == [] and capsys.readouterr().err == ""


@pytest.mark.parametrize(("mode", "environment"), [("of", ""), (None, "of")])
def test_another_mode_is_refused(mode: str | None, environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    with pytest.raises(InputError, match="is 'of'; disabled, offline or online is expected"):
        tracking.start(mode, "project", "name", {})


@pytest.mark.parametrize(("mode", "environment"), [("disabled", "online"), (None, "disabled")])
def test_disabled_does_not_import_wandb(
    mode: str | None, environment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it is an ImportError, which would be said
    with tracking.start(mode, "project", "name", {}) as tracker:
        tracker.log({"nll": 1.0})
    assert capsys.readouterr().err == ""


class Fake(ModuleType):
    """Stands in for wandb; ``fail`` names the call that raises ``error``."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.fail = ""
        self.error: BaseException = RuntimeError("the first line.\nthe second")
        self.calls: list[str] = []
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.finished: list[int] = []
        self.Settings = lambda **settings: settings
        self.setup = lambda **_: self.call("setup")
        self.teardown = lambda: self.call("teardown")
        self.Table = lambda **_: self.call("Table")

    def init(self, **arguments: Any) -> SimpleNamespace:
        self.started.append(arguments)
        self.call("init")
        return SimpleNamespace(log=self.log, finish=self.finish, log_artifact=self.call)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((values, step))
        self.call("log")

    def finish(self, exit_code: int) -> None:
        self.call("finish")
        self.finished.append(exit_code)

    def Artifact(self, name: str, type: str) -> SimpleNamespace:
        return SimpleNamespace(add_file=lambda path: self.call("add_file"))

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fail:
            raise self.error


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def use_everything() -> None:
    with tracking.start("offline", "project", "name", {}) as tracker:
        tracker.log({"nll": 1.0}, step=0)
        tracker.log({"nll": 0.5}, step=1)
        tracker.log_table("table", pandas.DataFrame({"size": [1]}))
        tracker.artifact("artifact", "record", ["fig3.csv"])


def test_values_are_logged_at_their_step(fake: Fake) -> None:
    tracking.start("offline", "project", "name", {}).log({"nll": 0.5}, step=7)
    assert fake.logged == [({"nll": 0.5}, 7)]


WHERE = "W&B: offline, written to wandb; WANDB_MODE=disabled switches it off"


@pytest.mark.parametrize("failing", ["setup", "init", "log", "Table", "add_file", "finish"])
def test_a_failure_is_said_once_and_the_run_goes_on(
    failing: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fail = failing
    use_everything()
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "W&B: RuntimeError: the first line; the run goes on without it"
    # A run that was begun has said where it writes.
    assert len(said) == (1 if failing in ("setup", "init") else 2)


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError


WHERE = "W&B: offline, written to wandb; WANDB_MODE=disabled switches it off"


@pytest.mark.parametrize("failing", ["setup", "init", "log", "Table", "add_file", "finish"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(1), "SystemExit: 1"),
        (GeneratorExit(), "GeneratorExit"),
        (MemoryError(), "MemoryError"),
        (Mute(), "Mute"),
        (OSError(28, "No space\x1b[31m left"), r"OSError: [Errno 28] No space\x1b[31m left"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_wandb_raises_is_said_once_and_the_run_goes_on(
    error: BaseException, said: str, failing: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fail, fake.error = failing, error
    use_everything()
    begun = [] if failing in ("setup", "init") else [WHERE]
    assert capsys.readouterr().err.splitlines() == [*begun, f"W&B: {said}; the run goes on without it"]


def test_an_interruption_is_no_failure_of_wandb(fake: Fake) -> None:
    fake.fail, fake.error = "log", KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        use_everything()


def test_what_leaves_when_it_is_imported_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    use_everything()
    assert capsys.readouterr().err == "W&B: SystemExit: 3; the run goes on without it\n"


def test_what_wandb_cannot_write_into_its_log_is_not_said(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    logger = logging.getLogger("wandb")
    handler = logging.StreamHandler(Full())
    monkeypatch.setattr(logger, "handlers", [])

    def setup(**_: object) -> None:
        logger.addHandler(handler)
        logger.error("begins")

    fake.setup = setup
    with tracking.start("offline", "project", "name", {}):
        logger.error("goes on")
    assert capsys.readouterr().err == f"{WHERE}\n" and logging.raiseExceptions


def test_after_a_failure_wandb_is_not_called_again(fake: Fake) -> None:
    fake.fail = "log"
    use_everything()
    assert fake.calls == ["setup", "init", "log"]


def test_a_package_that_is_not_installed_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    use_everything()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_configuration_that_is_not_plain_data_is_a_failure_of_tracking_only(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.start("offline", "project", "name", {"model": object()}).log({"nll": 1.0})
    assert "config.model is of type object" in capsys.readouterr().err


def test_waiting_for_wandb_is_bounded_at_both_ends(fake: Fake) -> None:
    tracking.start("online", "project", "name", {})
    settings = fake.started[0]["settings"]
    assert (settings["init_timeout"], settings["finish_timeout"]) == (30, 60)


def test_when_the_service_is_gone_its_handler_at_exit_is_removed(fake: Fake) -> None:
    # W&B's handler would print a traceback at the end of the process.
    fake.fail, fake.error = "log", ConnectionResetError("Connection lost")
    use_everything()
    assert fake.calls[-1] == "teardown"


def test_hooks_that_wandb_installs_are_taken_back(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "exit", sys.exit)
    before = sys.excepthook, sys.exit

    def install(**_: object) -> None:
        sys.excepthook, sys.exit = lambda *_: None, before[1].__class__

    fake.setup = install
    tracking.start("offline", "project", "name", {})
    assert (sys.excepthook, sys.exit) == before


def leave_quietly(tracker: Tracker) -> None:
    tracker.log({"nll": 1.0})


def leave_with_an_error(tracker: Tracker) -> None:
    raise KeyError("an error of the run")


@pytest.mark.parametrize(("leave", "code"), [(leave_quietly, 0), (leave_with_an_error, 1)])
def test_a_run_is_finished_as_its_block_ended(
    leave: Callable[[Tracker], None], code: int, fake: Fake
) -> None:
    try:
        with tracking.start("offline", "project", "name", {}) as tracker:
            leave(tracker)
    except KeyError:
        pass
    assert fake.finished == [code]


def test_an_error_of_the_run_itself_is_not_swallowed(fake: Fake) -> None:
    with pytest.raises(KeyError), tracking.start("offline", "project", "name", {}):
        raise KeyError("an error of the run")
