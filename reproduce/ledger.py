"""The claims of a scale, judged on the records of its figures and tables.

    python -m reproduce claims --scale digits

Costs seconds: nothing is trained or measured. It reads every record fig*.csv and table*.csv of the folder,
prints a row a claim with its verdict, and writes claims.csv, claims.md and claims.tex there. A claim whose
rows do not exist is a row too: "not run".
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lpe.command_line import Parser
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.records import COLUMNS, KEY, MEASURED, Records
from lpe.writing import check_writable
from reproduce.draw.tables import Cell, write_all
from reproduce.judge.claims import Settings, Verdict, all_claims, judge
from reproduce.scales.find import any_scale

PATTERNS = ("fig*.csv", "table*.csv")
OUTCOMES = ("holds", "fails", "undecided", "not run")


def read_records(folder: Path, scale_name: str) -> tuple[pd.DataFrame, list[str]]:
    """Read all rows of the records in a folder, each once.

    A file with another header (a landscape's grid, a table as it is printed) is no record.

    Returns:
        The rows [rows, COLUMNS], and the names of the files that they come from.

    Raises:
        InputError: no record, a damaged one, rows of another scale, or two files that measured different
            numbers of the same thing.
    """
    found = [path for pattern in PATTERNS for path in sorted(folder.glob(pattern)) if _is_record(path)]
    if not found:
        raise InputError(
            f"there is no record in {folder}; run python -m reproduce --scale {scale_name} first"
        )
    tables = [Records(path).select().assign(file=path.name) for path in found]
    rows = pd.concat(tables, ignore_index=True)
    foreign = rows[rows["scale"] != scale_name]
    if len(foreign):
        row = foreign.iloc[0]
        raise InputError(f"{row['file']} has rows of scale {row['scale']!r}; {scale_name!r} is expected")
    rows = rows.drop_duplicates(list(COLUMNS))
    conflicting = rows[rows.duplicated(list(KEY), keep=False)]
    if len(conflicting):
        first = conflicting.iloc[0]
        same = (conflicting[list(KEY)] == first[list(KEY)]).all(axis=1)
        second = conflicting[same].iloc[1]
        named = " ".join(f"{column}={first[column]}" for column in KEY if first[column] != "")
        differing = next(column for column in MEASURED if first[column] != second[column])
        raise InputError(
            f"{named}: {differing} is {first[differing]} in {first['file']} and {second[differing]} in "
            f"{second['file']}; measure both anew with one version of the code"
        )
    return rows[list(COLUMNS)].reset_index(drop=True), [path.name for path in found]


def _is_record(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().rstrip(b"\r\n") == ",".join(COLUMNS).encode()


HEADER = (
    "claim",
    "statistic",
    "effect",
    "95 % low",
    "95 % high",
    "unit",
    "claimed side",
    "n",
    "verdict",
    "note",
)


def _row(verdict: Verdict) -> list[Cell]:
    effect, low, high = (None if math.isnan(x) else x for x in (verdict.effect, verdict.low, verdict.high))
    return [
        verdict.claim,
        verdict.statistic,
        effect,
        low,
        high,
        verdict.unit,
        verdict.claimed(),
        verdict.n,
        verdict.verdict,
        verdict.note,
    ]


def _printed(verdicts: Sequence[Verdict], title: str) -> str:
    lines = []
    for verdict in verdicts:
        known = not math.isnan(verdict.effect)
        interval = "" if math.isnan(verdict.low) else f"[{verdict.low:+.5f}, {verdict.high:+.5f}]"
        effect = f"{verdict.effect:+.5f} {verdict.unit}" if known else ""
        lines.append(
            (
                verdict.claim,
                verdict.verdict,
                effect,
                interval,
                verdict.claimed(),
                str(verdict.n),
                verdict.note,
            )
        )
    header = ("claim", "verdict", "effect", "95 % interval", "claimed side", "n", "note")
    counted = Counter(verdict.verdict for verdict in verdicts)
    return text_table(title, header, lines, ", ".join(f"{counted[each]} {each}" for each in OUTCOMES))


def main(arguments: Sequence[str]) -> int:
    """Judge, print and write the claims; the exit code is 0, or 2 after one line about bad input."""
    options = Parser(
        prog="python -m reproduce claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--scale", default="digits", help="whose claims (default: digits)")
    options.add_argument(
        "--out", type=Path, help="folder of the records and of claims.* (default: figures/SCALE)"
    )
    asked = options.parse_args(arguments)
    try:
        chosen = any_scale(asked.scale)
        out = asked.out or REPOSITORY / "figures" / chosen.name
        record, files = read_records(out, chosen.name)
        check_writable(out)
        settings = Settings.of(chosen)
        verdicts = [judge(claim, record, settings.level) for claim in all_claims(settings)]
        title = f"Claims at scale {chosen.name}"
        notes = (
            "The effect is the mean of the statistic over n training seeds; its interval is Student's t, "
            "two-sided. A claim holds if the interval lies wholly on the claimed side, fails if it lies "
            "wholly on the other, else it is undecided.",
            "Each claim is judged by itself: no interval is widened for the number of claims.",
            f"Read from {', '.join(files)}.",
        )
        paths = write_all(out, "claims", HEADER, [_row(verdict) for verdict in verdicts], title, notes)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_printed(verdicts, title))
    for path in paths:
        print(f"wrote {os.path.relpath(path)}")
    return 0
