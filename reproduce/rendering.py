"""Scripts of figures and tables, rendered in a pool of processes."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module

from reproduce.command import Script, run_figure


def script_of(figure: str) -> Script:
    """Return a figure's or table's script by its name."""
    script: Script = import_module(f"reproduce.{figure}").SCRIPT
    return script


def _rendered(figure: str, arguments: list[str]) -> Rendered:
    started, said = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_figure(script_of(figure), arguments, quiet=True, notes=False)
    return Rendered(figure, code, time.monotonic() - started, said.getvalue())


@dataclass(frozen=True)
class Rendered:
    """The end of a figure's or table's script: exit code, seconds, and what it printed."""

    figure: str
    code: int
    seconds: float
    said: str


def render(figures: Iterable[str], arguments: list[str], pool: ProcessPoolExecutor) -> Iterator[Rendered]:
    """Run the scripts of figures in the pool's processes: each one's outcome, in the order given."""
    futures = [pool.submit(_rendered, figure, arguments) for figure in figures]
    for future in futures:
        yield future.result()
