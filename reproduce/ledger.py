"""The claims of a scale, judged on the records of its figures and tables.

    python -m reproduce claims --scale digits

Costs seconds: nothing is trained or measured. It reads every record fig*.csv, table*.csv and spread.csv of
the folder, prints a row a claim with its verdict, and writes claims.csv (everything), claims.md and
claims.tex (a short table, and below it what each claim compares) there. A claim whose rows do not exist is a
row too: "not run".

A record that is not as it was measured, by the hash in the JSON beside it, is refused; with --accept-edited
the ledger says that it is of edited records. claims.json has the hashes of what was read and written.

Intervals over test examples need the values of each example, which the working store holds while a scale is
measured. What was estimated from them is kept in claims_examples.csv, so that a folder is judged again
without the store. Each row has a hash of the rows of the record that it is of, and a key of these, the level,
the code and its numbers: where they are others, it is estimated anew, or is not available without the store.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lpe.command_line import Parser, complain
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.hashes import sha256, with_hashes
from lpe.mirror import open_store
from lpe.records import COLUMNS, KEY, MEASURED, write_table
from lpe.writing import check_writable, write_text_atomic
from reproduce.command import add_accept_edited, said_of_edited
from reproduce.draw import page
from reproduce.draw.tables import Cell, latex, markdown, plain_number
from reproduce.judge.claims import Settings, all_claims
from reproduce.judge.external import FILE as RECORD_FILE
from reproduce.judge.statistics import notes
from reproduce.judge.verdicts import KEPT, UNITS, Estimate, Verdict, judge_all, kept_estimates
from reproduce.scales import find
from reproduce.study import examples
from reproduce.study.intact import check, was_altered
from reproduce.study.measurements import working_folder
from reproduce.study.origins import mixture, of_record, provenance_of
from reproduce.study.records import OTHER_TABLES, checked_rows, record_name
from reproduce.study.scale import Scale

PATTERNS = ("fig*.csv", "table*.csv", "spread.csv")
OUTCOMES = ("holds", "fails", "undecided", "not run")

AGREEMENT = 1e-3
"""How far two measurements of one thing may lie apart, of 1 or of the value where that is larger.

Sums in another order, as another make of CPU takes them, end in other last digits, and one example or two of
2,000 may then be decided otherwise. What lies further apart was made by other code or of other weights.
"""


def read_records(folder: Path, scale_name: str) -> tuple[pd.DataFrame, list[str]]:
    """Read all rows of the records in a folder, each once.

    Of a thing that was measured in two runs the first file's numbers count. A file with another header (a
    landscape's grid, a table as it is printed) is no record, unless a figure's or table's JSON beside it says
    that it was one.

    Returns:
        The rows [rows, COLUMNS], and the names of the files that they come from.

    Raises:
        InputError: no record, a damaged one, rows of another scale, or two files that measured different
            numbers of the same thing, further apart than AGREEMENT. Whether they are as they were measured,
            ``intact.check`` says.
    """
    rows = read_with_files(folder, scale_name)
    return rows[list(COLUMNS)], [path.name for path in records_in(folder)]


def records_in(folder: Path) -> list[Path]:
    """List the records of figures and tables in a folder, damaged ones among them.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return [path for pattern in PATTERNS for path in sorted(folder.glob(pattern)) if _is_record(path)]
    except OSError as error:
        raise InputError(f"cannot read {folder} ({error.strerror}); give a folder of records") from None


def read_with_files(folder: Path, scale_name: str) -> pd.DataFrame:
    """Read as ``read_records`` does; the column RECORD_FILE names the first file that has the row."""
    rows = _of_every_file(folder, scale_name)
    _check_agreement(rows, folder)
    return rows.drop_duplicates(list(KEY)).reset_index(drop=True)


def said_of_repeats(folder: Path, scale_name: str) -> list[str]:
    """Say how many rows two files measured apart, and how far they lie apart; nothing where none were.

    Raises:
        InputError: as ``read_records``.
    """
    rows = _of_every_file(folder, scale_name)
    repeated = rows[rows.duplicated(list(KEY), keep=False)]
    if repeated.empty:
        return []
    values = repeated.groupby(list(KEY), sort=False)["value"]
    return [
        f"{values.ngroups} rows were measured in more than one run, and differ by at most "
        f"{(values.max() - values.min()).max():.1g}, as sums in another order do; those of the first file "
        "count."
    ]


def _of_every_file(folder: Path, scale_name: str) -> pd.DataFrame:
    """Read the rows of all files; of equal ones the first, and each of those that differ in what they say."""
    found = records_in(folder)
    if not found:
        raise InputError(
            f"there is no record in {folder}; run python -m reproduce --scale {scale_name} first"
        )
    tables = [checked_rows(path, scale_name).assign(**{RECORD_FILE: path.name}) for path in found]
    return pd.concat(tables, ignore_index=True).drop_duplicates(list(COLUMNS))


def _check_agreement(rows: pd.DataFrame, folder: Path) -> None:
    """Raise InputError if two files say other things of one measurement, beyond AGREEMENT."""
    repeated = rows[rows.duplicated(list(KEY), keep=False)]
    for _, same in repeated.groupby(list(KEY), sort=False):
        first = same.iloc[0]
        for _, second in same.iloc[1:].iterrows():
            differing = [column for column in MEASURED if first[column] != second[column]]
            apart = abs(first["value"] - second["value"])
            if differing == ["value"] and apart <= AGREEMENT * max(1.0, abs(first["value"])):
                continue
            named = " ".join(f"{column}={first[column]}" for column in KEY if first[column] != "")
            said = [f"{row[differing[0]]} in {_from(folder / row[RECORD_FILE])}" for row in (first, second)]
            raise InputError(
                f"{named}: {differing[0]} is {said[0]} and {said[1]}; measure both anew with one version of "
                "the code"
            )


def _from(record: Path) -> str:
    """Return a record's file, with the commit and the machine that it comes from where that is known."""
    origin = of_record(record)
    return record.name if origin is None else f"{record.name} ({origin})"


def _is_record(path: Path) -> bool:
    """Tell whether a file is a record by its header, or is where a figure's JSON says that its record is."""
    beside = provenance_of(path)
    if beside.is_file() and path.name == record_name(beside.stem) and path.name not in OTHER_TABLES:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().rstrip(b"\r\n") == ",".join(COLUMNS).encode()


HEADER = (
    "claim",
    "statistic",
    "claimed side",
    "effect",
    "95 % low",
    "95 % high",
    "unit",
    "n",
    "interval over",
    "verdict",
    "p",
    "evidence",
    "FP32 instead",
    "FP32 low",
    "FP32 high",
    "FP32 verdict",
    "Holm p",
    "Holm verdict",
    "needed n",
    "examples low",
    "examples high",
    "examples n",
    "examples verdict",
    "same as",
    "note",
)
SHORT = ("claim", "verdict", "effect [95 % interval]", "unit", "FP32 instead", "Holm", "n / needed")
FILE = "claims.csv"
KEPT_FILE = "claims_examples.csv"
JUDGED_ON_EDITED = "of edited records"
"""The key of claims.json under which the names are of files that were edited after measuring."""


def _row(verdict: Verdict) -> list[Cell]:
    found, instead, examples = verdict.found, verdict.instead, verdict.examples
    return [
        verdict.claim,
        verdict.statistic,
        verdict.claimed(),
        *_numbers(found, "effect", "low", "high"),
        verdict.unit,
        verdict.n,
        verdict.over,
        verdict.verdict,
        *_numbers(found, "level"),
        verdict.evidence,
        *_numbers(instead, "effect", "low", "high"),
        "" if instead is None else instead.verdict,
        None if math.isnan(verdict.holm_level) else verdict.holm_level,
        verdict.holm,
        verdict.needed,
        *_numbers(examples, "low", "high"),
        None if examples is None else examples.n,
        "" if examples is None else examples.verdict,
        verdict.same_as,
        verdict.note,
    ]


def _numbers(estimate: Estimate | None, *names: str) -> list[Cell]:
    found = [math.nan if estimate is None else getattr(estimate, name) for name in names]
    return [None if math.isnan(number) else number for number in found]


def _short_row(verdict: Verdict, beside: bool) -> list[str]:
    found, instead = verdict.found, verdict.instead
    told = {"not evidence": ", not evidence", "not known": ", evidence not known"}.get(verdict.evidence, "")
    cells = [
        verdict.claim,
        verdict.verdict + told,
        "" if found is None else _shown(found),
        "" if found is None else verdict.unit.partition(" ")[0],
        ("" if found is None else "not available")
        if instead is None
        else f"{plain_number(instead.effect, PLACES)}, {instead.verdict}",
        verdict.holm or "",
        "" if found is None else " / ".join(filter(None, [str(found.n), verdict.needed])),
    ]
    if beside:
        cells.insert(4, "" if verdict.examples is None else _interval(verdict.examples))
    return cells


PLACES = 4
"""Decimals of the short table."""


def _short_table(verdicts: Sequence[Verdict], unit: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the short table, with the second interval where any claim has one."""
    beside = any(verdict.examples is not None for verdict in verdicts)
    header = list(SHORT)
    if beside:
        header.insert(4, UNITS[unit][1])
    return header, [_short_row(verdict, beside) for verdict in verdicts]


def _shown(estimate: Estimate) -> str:
    effect = "not defined" if math.isnan(estimate.effect) else plain_number(estimate.effect, PLACES)
    return f"{effect} {_interval(estimate)}".rstrip()


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return ""
    low, high = (
        ("-" if limit < 0 else "") + "∞" if math.isinf(limit) else plain_number(limit, PLACES)
        for limit in (estimate.low, estimate.high)
    )
    return f"[{low}, {high}]"


def _definitions(verdicts: Sequence[Verdict]) -> list[str]:
    """Say what each claim compares, claims of one wording in one line."""
    named: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        named.setdefault((verdict.statistic, verdict.claimed()), []).append(verdict.claim)
    return [
        f"{', '.join(names)}: {statistic}; claimed {claimed}" for (statistic, claimed), names in named.items()
    ]


def _remarks(verdicts: Sequence[Verdict]) -> list[str]:
    """Say what was compared or is missing, claims with one remark in one line."""
    named: dict[str, list[str]] = {}
    for verdict in verdicts:
        same = f"the very rows of {verdict.same_as}, counted once" if verdict.same_as else ""
        if said := notes(same, verdict.note):
            named.setdefault(said, []).append(verdict.claim)
    return [f"{', '.join(names)}: {said}" for said, names in named.items()]


def counts(verdicts: Sequence[Verdict]) -> str:
    """Count the verdicts, of comparisons that two claims share only one."""
    return _counts((each.verdict, each.evidence, each.holm) for each in verdicts if not each.same_as)


def counts_in(claims: pd.DataFrame) -> str:
    """Count the verdicts in claims.csv, as :func:`counts` does."""
    own = claims[claims["same as"] == ""]
    return _counts(own[["verdict", "evidence", "Holm verdict"]].itertuples(index=False, name=None))


def _counts(outcomes: Iterable[tuple[str, str, str]]) -> str:
    own = [*outcomes]
    counted = Counter(verdict for verdict, _, _ in own)
    parts = [
        f"{counted[each]} {each}" for each in (*OUTCOMES, "reported") if counted[each] or each in OUTCOMES
    ]
    empty = sum(evidence == "not evidence" for _, evidence, _ in own)
    parts[0] += f" ({empty} not evidence: FP32 instead holds as well)"
    adjusted = Counter(holm for _, _, holm in own)
    return f"{', '.join(parts)}; after Holm {adjusted['holds']} hold, {adjusted['fails']} fail"


def _notes(verdicts: Sequence[Verdict], chosen: Scale, files: Sequence[str]) -> list[str]:
    over, beside = UNITS[chosen.unit]
    by_seeds = "; Student's t, of ratios Fieller's"
    how = {"example": "s, by the paired bootstrap (10,000 resamples, percentile)"}
    said = [
        *filter(None, [chosen.standing]),
        f"{counts(verdicts)}.",
        "The effect is the mean of the statistic, in brackets its two-sided 95 % interval, of "
        f"n = {over}{how.get(chosen.unit, by_seeds)}. A claim holds if the interval lies wholly on the "
        "claimed side, fails if it lies wholly on the other, else it is undecided.",
        "FP32 instead: the same statistic and test with the unrounded network in LPE-BSR's place (in "
        "X + LPE-BSR with X's own members). A claim that it satisfies as well is no evidence for LPE-BSR.",
        "Holm: the verdict after adjusting for the number of claims. n / needed: with so many units four "
        "fifths of runs would decide the claim, were effect and spread as observed.",
    ]
    if beside:
        why = list(dict.fromkeys(verdict.why for verdict in verdicts if verdict.why))
        available = any(verdict.examples is not None for verdict in verdicts)
        said.append(
            f"The interval {beside} is a bootstrap over test examples (10,000 resamples, percentile), each "
            "example's values averaged over the seeds that tested it."
            if available
            else f"An interval {beside} is not available: {why[0] if why else 'no claim was judged'}."
        )
    return [*said, *_definitions(verdicts), *_remarks(verdicts), f"Read from {', '.join(files)}."]


def kept_in(out: Path) -> pd.DataFrame | None:
    """Read the estimates over examples that a folder keeps, with the columns KEPT; None: it keeps none.

    Raises:
        InputError: they cannot be read, or are damaged.
    """
    path = out / KEPT_FILE
    if not path.exists():
        return None
    way_out = "delete it and judge again"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, ValueError, csv.Error):
        raise InputError(f"{path} cannot be read; {way_out}") from None
    if tuple(header) != KEPT:
        raise InputError(f"{path} has other columns than {', '.join(KEPT)}; {way_out}")
    texts = ("claim", "rows", "key")
    kinds = {name: str if name in texts else int if name == "n" else float for name in KEPT}
    try:
        return pd.DataFrame(
            [[kind(text) for kind, text in zip(kinds.values(), row, strict=True)] for row in rows],
            columns=list(KEPT),
        )
    except ValueError as error:
        raise InputError(f"{path} has a damaged row ({error}); {way_out}") from None


def main(arguments: Sequence[str]) -> int:
    """Judge, print and write the claims; the exit code is 0, or 2 after one line about bad input."""
    options = Parser(
        prog="python -m reproduce claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--scale",
        default=find.DEFAULT,
        metavar="NAME or FILE",
        help=f"whose claims (default: {find.DEFAULT})",
    )
    options.add_argument(
        "--out", type=Path, help="folder of the records and of claims.* (default: figures/SCALE)"
    )
    add_accept_edited(options)
    asked = options.parse_args(arguments)
    try:
        out = asked.out or find.folder_of(asked.scale)
        # First of all: the scale is made of what the JSONs say.
        edited = check(records_in(out), asked.accept_edited)
        chosen = find.scale(asked.scale, recorded=out)
        record, files = read_records(out, chosen.name)
        check_writable(out)
        settings, kept = Settings.of(chosen), kept_in(out)
        altered = kept is not None and was_altered(out / KEPT_FILE)
        verdicts = judge_all(
            all_claims(settings),
            record,
            chosen.unit,
            settings.level,
            examples.finder(working_folder(chosen, open_store())),
            kept,
        )
        repeats = said_of_repeats(out, chosen.name)
        paths, left = _write(out, verdicts, chosen, files, kept, edited, repeats)
    except InputError as error:
        complain(error)
        return 2
    header, rows = _short_table(verdicts, chosen.unit)
    print(text_table(f"Claims at scale {chosen.name}", header, rows, counts(verdicts)))
    for path in paths:
        print(f"wrote {os.path.relpath(path)}")
    for line in (*said_of_edited(edited), *repeats):
        print(line)
    if altered:
        print(
            f"{KEPT_FILE} was edited or damaged since it was written: of its estimates those whole were used"
        )
    if left:
        print(
            f"{KEPT_FILE}: {left} of its estimates are of other rows, of another level or by other code, or "
            "were altered; they were not used, and there are no values of examples to make them anew"
        )
    for line in mixture(out):
        print(line)
    return 0


def _write(
    out: Path,
    verdicts: Sequence[Verdict],
    chosen: Scale,
    files: Sequence[str],
    before: pd.DataFrame | None,
    edited: Sequence[str],
    repeats: Sequence[str],
) -> tuple[list[Path], int]:
    """Write the ledger.

    Args:
        before: the estimates over examples that the folder has. Of a claim that has none now they stay as
            they are: they may be of rows that come back.
        edited: files that were edited after measuring; the ledger says it in its title and of each claim.
        repeats: what is said of rows that were measured in more than one run.

    Returns:
        The paths written, and how many estimates stayed so.
    """
    names = [out / f"claims.{kind}" for kind in ("csv", "md", "tex")]
    shown = [
        replace(verdict, note=notes(page.EDITED, verdict.note)) if edited else verdict for verdict in verdicts
    ]
    write_table([dict(zip(HEADER, _row(verdict), strict=True)) for verdict in shown], names[0], HEADER)
    header, rows = _short_table(verdicts, chosen.unit)
    title = f"Claims at scale {chosen.name}" + (f" ({page.EDITED})" if edited else "")
    said = [*said_of_edited(edited), *_notes(verdicts, chosen, files), *repeats]
    write_text_atomic(names[1], markdown(header, rows, title, said))
    # On a page there is no room for a second interval.
    plain = [_short_row(verdict, beside=False) for verdict in verdicts]
    write_text_atomic(names[2], latex("claims", SHORT, plain, title, said))
    kept = kept_estimates(verdicts, Settings.of(chosen).level)
    anew = {row["claim"] for row in kept}
    stale = None if before is None else before[~before["claim"].isin(anew)]
    left: list[dict[str, Any]] = [] if stale is None else stale.to_dict("records")  # type: ignore[assignment]
    if kept or left:
        write_table([*kept, *left], out / KEPT_FILE, KEPT)
        names.append(out / KEPT_FILE)
    return [*names, _write_json(out, files, edited)], len(left)


def _write_json(out: Path, files: Sequence[str], edited: Sequence[str]) -> Path:
    """Write claims.json: the hashes of what was read, and of the CSV files that were written."""
    written = [path for path in (out / FILE, out / KEPT_FILE) if path.is_file()]
    content = {
        "records": {name: sha256((out / name).read_bytes()) for name in files},
        **({JUDGED_ON_EDITED: list(edited)} if edited else {}),
    }
    path = out / "claims.json"
    text = json.dumps(with_hashes(content, path.name, written), indent=2, ensure_ascii=False)
    write_text_atomic(path, text + "\n")
    return path
