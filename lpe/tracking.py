"""Weights & Biases mirrors the record: it never holds the only copy, and its failure never stops a run.

Whatever goes wrong with it (not installed, no key, no network, a full disk) is one line on stderr,
after which the tracker does nothing. Its files go where W&B puts them: ``WANDB_DIR`` or ``./wandb``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from lpe.command_line import one_line
from lpe.errors import InputError
from lpe.extras import needs
from lpe.provenance import plain_data

if TYPE_CHECKING:
    import pandas

Mode = Literal["disabled", "offline", "online"]
USUAL = "usual"
"""W&B's own conventions where WANDB_MODE is not set, for programs that track their runs."""
MODES: tuple[Mode, ...] = ("disabled", "offline", "online")
INIT_SECONDS = 30
FINISH_SECONDS = 60  # what is not uploaded by then stays on disk, for `wandb sync`

_OLD_NAMES = {"dryrun": "offline", "run": "online"}  # W&B's own earlier names, still valid in WANDB_MODE


class Tracker:
    """A run of W&B, or nothing: every method may be called in either case, and none raises.

    As a context manager it finishes the run, as failed if the block raised.
    """

    def __init__(self, run: Any | None) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, at a step of the training if one is given."""
        self._send(lambda run: run.log(dict(values), step=step))

    def log_table(self, name: str, dataframe: pandas.DataFrame) -> None:
        """Log a table."""

        def send(run: Any) -> None:
            needs("wandb")

            import wandb

            run.log({name: wandb.Table(dataframe=dataframe)})

        self._send(send)

    def artifact(self, name: str, kind: str, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Log files, and folders with what is in them, as one artifact of a kind ("record", "weights")."""

        def send(run: Any) -> None:
            needs("wandb")

            import wandb

            artifact = wandb.Artifact(name, type=kind)
            for path in map(Path, paths):
                if path.is_dir():
                    artifact.add_dir(str(path), name=path.name)
                else:
                    artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._send(send)

    def finish(self, exit_code: int = 0) -> None:
        """End the run, waiting at most ``FINISH_SECONDS`` for its upload; a second call does nothing."""
        self._send(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(exit_code=0 if kind is None else 1)

    def _send(self, send: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            send(self._run)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # W&B also leaves by SystemExit
            self._run = None
            _say(error)
            if isinstance(error, ConnectionError):
                _close_service()


def start(
    mode: str | None,
    project: str,
    name: str,
    config: Mapping[str, object],
    tags: Sequence[str] = (),
) -> Tracker:
    """Start a run of W&B, in at most about ``INIT_SECONDS``.

    Args:
        mode: "disabled" (wandb is not even imported), "offline" or "online". None: the environment variable
            ``WANDB_MODE``; without it disabled, or with USUAL W&B's own conventions: online if
            ``WANDB_API_KEY`` is set, else offline. A run says in a line where it writes.
        config: every hyper-parameter, as plain data or dataclasses.

    Raises:
        InputError: another mode. A failure of W&B raises nothing: it is said, and the tracker does nothing.
    """
    chosen = _chosen_mode(mode)
    if chosen == "disabled":
        return Tracker(None)
    try:
        with _hooks_kept():
            needs("wandb")

            import wandb

            # Only these process-wide settings keep W&B from asking for a key at the terminal.
            wandb.setup(settings=wandb.Settings(silent=True, console="off"))
            run = wandb.init(
                project=project,
                name=name,
                config=plain_data(config, "config"),
                tags=list(tags),
                mode=chosen,
                reinit="create_new",  # a run that is still open must not swallow this one's values
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                ),
            )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _say(error)
        return Tracker(None)
    place = getattr(run, "url", None) or _folder_of(run)
    print(f"W&B: {chosen}, written to {place}; WANDB_MODE=disabled switches it off", file=sys.stderr)
    return Tracker(run)


def _folder_of(run: Any) -> str:
    """Return the folder of a run's files, from the working directory on."""
    files = getattr(run, "dir", None)
    return os.path.relpath(os.path.dirname(files)) if isinstance(files, str) else "wandb"


def _chosen_mode(mode: str | None) -> Mode:
    is_usual = mode == USUAL
    if mode is not None and not is_usual:
        given, source = mode, "the W&B mode"
    elif os.environ.get("WANDB_MODE"):
        given, source = os.environ["WANDB_MODE"], "WANDB_MODE"
        given = _OLD_NAMES.get(given, given)
    else:
        if not is_usual:
            return "disabled"
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    for known in MODES:
        if given == known:
            return known
    raise InputError(f"{source} is {given!r}; {', '.join(MODES[:-1])} or {MODES[-1]} is expected")


@contextmanager
def _hooks_kept() -> Iterator[None]:
    # W&B replaces both to learn the exit code, and then prints tracebacks itself.
    excepthook, leave = sys.excepthook, sys.exit
    # It has a log file: what cannot be written into it would be a traceback a line.
    tells, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        sys.excepthook, sys.exit = excepthook, leave
        logging.raiseExceptions = tells
        for handler in logging.getLogger("wandb").handlers:
            handler.handleError = lambda record: None  # type: ignore[method-assign]


def _close_service() -> None:
    # W&B's service process is gone. Its handler at exit would write to it and print a traceback;
    # tearing it down now unregisters the handler, and fails for the same reason.
    with suppress(Exception, SystemExit):
        needs("wandb")

        import wandb

        wandb.teardown()


def _say(error: BaseException) -> None:
    try:
        text = str(error).strip().partition("\n")[0].rstrip(". ")
    except Exception:  # an error that cannot say what it is
        text = ""
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    print(one_line(f"W&B: {reason}; the run goes on without it"), file=sys.stderr)
