"""Shared parts of the benchmarks: options, where results go, and the conditions beside every table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path

import torch

from lpe.command_line import Parser, complain
from lpe.errors import InputError
from lpe.provenance import REPOSITORY, write_provenance
from lpe.records import write_table

RESULTS = REPOSITORY / "benchmarks" / "results"


def parser(benchmark: str, description: str | None) -> Parser:
    """Return a parser of the options that every benchmark has."""
    made = Parser(
        prog=f"python -m benchmarks.{benchmark}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    return made


def check_minutes(minutes: float) -> None:
    """Raise InputError for a time limit that is no time."""
    if not minutes > 0:
        raise InputError(f"--minutes must be above 0, not {minutes:g}")


def one_line_of_bad_input(main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """Wrap a command so that its InputError is one line and the exit code 2."""

    @wraps(main)
    def reporting(arguments: Sequence[str]) -> int:
        try:
            return main(arguments)
        except InputError as error:
            complain(error)
            return 2

    return reporting


def write_results(
    out: Path,
    benchmark: str,
    tables: Mapping[str, Sequence[Mapping[str, object]]],
    columns: Sequence[str] | None,
    config: Mapping[str, object],
    started: float,
    threads: int | None = None,
) -> None:
    """Write tables measured on this CPU as CSV and, beside them, the conditions as ``<benchmark>.json``.

    Args:
        tables: rows by the file's name without its ending. columns: of all tables; None: those of the rows.
        config: what was measured. started: ``time.time()`` before. threads: torch's here, or in
            the processes that were measured.
    """
    for name, rows in tables.items():
        write_table(list(rows), out / f"{name}.csv", list(rows[0]) if columns is None else columns)
    command = [f"benchmarks/{benchmark}.py"]
    threads = torch.get_num_threads() if threads is None else threads
    write_provenance(out / f"{benchmark}.json", command, dict(config), "cpu", [0], threads, started)


def conditions(provenance: Path) -> str:
    """Return hardware, threads, versions and time of a result, in one line, from the JSON beside it."""
    told = json.loads(provenance.read_text(encoding="utf-8"))
    device = told["device"]
    return (
        f"{device['cpu']}, {told['threads']} of {device['cores']} cores; torch {told['packages']['torch']}, "
        f"Python {told['python']}; {told['utc'][:10]}"
    )
