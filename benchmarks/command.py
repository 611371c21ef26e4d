"""What the benchmarks share: their options, where results go, and the conditions beside every table."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from lpe.command_line import Parser
from lpe.errors import InputError
from lpe.records import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"


def parser(benchmark: str, description: str | None) -> Parser:
    """The options that every benchmark has."""
    made = Parser(
        prog=f"python -m benchmarks.{benchmark}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    return made


def assets_folder() -> Path:
    """The folder of real data and weights, from LPE_ASSETS.

    Raises:
        InputError: it is not set, or names no folder.
    """
    named = os.environ.get("LPE_ASSETS")
    if not named:
        raise InputError("LPE_ASSETS is not set; let it name the folder of real data and weights")
    if not Path(named).is_dir():
        raise InputError(f"LPE_ASSETS names {named}, which is no folder")
    return Path(named)


def conditions(provenance: Path) -> str:
    """Hardware, threads, versions and time of a result, in one line, from the JSON beside it."""
    told = json.loads(provenance.read_text(encoding="utf-8"))
    device = told["device"]
    return (
        f"{device['cpu']}, {told['threads']} of {device['cores']} cores; torch {told['packages']['torch']}, "
        f"Python {told['python']}; {told['utc'][:10]}"
    )
