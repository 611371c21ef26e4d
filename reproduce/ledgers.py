"""The claims of all scales, side by side.

    python -m reproduce.ledgers

Costs seconds: nothing is judged anew. It reads claims.csv of every scale in the folder of figures, and writes
claims.csv (a row a claim, the columns of every scale) and claims.md there, whose paths it prints. The latter
says what each claim comes to at each scale and what holds where, then row by row the verdicts and effects,
and what each row compares. A row's name is without the scale's: "C1a (ViT-T)" is that of each scale's network
of this name.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import pandas as pd

from lpe.errors import InputError
from lpe.interruption import answered
from lpe.records import write_table
from lpe.writing import write_text_atomic
from reproduce import ledger
from reproduce.draw import page
from reproduce.draw.tables import Cell, markdown, plain_number
from reproduce.judge import all_scales
from reproduce.judge.agreement import (
    Again,
    Ledgers,
    by_claim,
    rows_of,
    shared,
    together,
    what_holds_where,
    without_scale,
)
from reproduce.scales import find
from reproduce.study.intact import check, said_of
from reproduce.study.scale import Scale

TOLD = (
    "statistic",
    "claimed side",
    "verdict",
    "evidence",
    "effect",
    "95 % low",
    "95 % high",
    "unit",
    "n",
    "interval over",
    "FP32 instead",
    "FP32 verdict",
    "Holm verdict",
    "needed n",
)
"""The columns of a scale's ledger that are set side by side."""
NUMBERS = ("effect", "95 % low", "95 % high", "FP32 instead")
PLACES = ledger.PLACES
FILE = ledger.FILE
JUDGED_ON_EDITED = ledger.JUDGED_ON_EDITED


def known_scales(figures: Path) -> dict[str, Scale]:
    """Return the scales of the folders that have a ledger, those of this repository, by name.

    Raises:
        InputError: records of several options in one folder.
    """
    folders = [path.parent for path in sorted(figures.glob(f"*/{FILE}"))]
    return {folder.name: scale for folder in folders if (scale := find.recorded(folder)) is not None}


def edited_in(figures: Path, accept: bool) -> list[str]:
    """List the scales whose ledger is of edited records, or was edited itself and is accepted so.

    Raises:
        InputError: a ledger is not as it was judged, or a record beside it not as it was measured, and not
            accepted.
    """
    found = []
    for path in sorted(figures.glob(f"*/{FILE}")):
        # What the scale is, the JSONs of the records say.
        edited = check([path, *ledger.records_in(path.parent)], accept)
        if edited or said_of(path).get(JUDGED_ON_EDITED):
            found.append(path.parent.name)
    return found


def read_ledgers(figures: Path, scales: Mapping[str, Scale]) -> dict[str, pd.DataFrame]:
    """Read every scale's claims.csv, by the scale's name, which is its folder's.

    Args:
        scales: that are known.

    Returns:
        Ledgers by scale, indexed by the claim's name without the scale's; texts, and floats in NUMBERS.

    Raises:
        InputError: there is none, or one has other columns, or two claims of one name.
    """
    paths = sorted(figures.glob(f"*/{FILE}"))
    if not paths:
        raise InputError(
            f"there is no */{FILE} in {figures}; run python -m reproduce claims for each scale first"
        )
    return {path.parent.name: _read(path, scales.get(path.parent.name)) for path in paths}


def _read(path: Path, scale: Scale | None) -> pd.DataFrame:
    wanted = f"python -m reproduce claims --scale {path.parent.name}"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if tuple(table.columns) != ledger.HEADER:
            raise InputError(f"{path} has other columns than a ledger of this version; run {wanted}")
        for column in NUMBERS:
            table[column] = pd.to_numeric(table[column])
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}); run {wanted}") from None
    table["statistic"] = [without_scale(text, scale) for text in table["statistic"]]
    names = [without_scale(name, scale) for name in table["claim"]]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{path} has two rows of {min(twice)}; one is expected")
    return table.set_axis(names)


def _row_of(table: pd.DataFrame, row: str) -> pd.Series | None:
    return table.iloc[list(table.index).index(row)] if row in table.index else None


def _cells(told: pd.Series | None) -> list[str]:
    """Return what a scale says of a row: its verdict, that after Holm, and the effect."""
    if told is None:
        return ["", ""]
    evidence = {"not evidence": ", not evidence", "not known": ", evidence not known"}
    verdict = f"{told['verdict']}{evidence.get(told['evidence'], '')}"
    both = f"{verdict} / {told['Holm verdict']}" if told["Holm verdict"] else verdict
    if pd.isna(told["effect"]):
        return [both, ""]
    limits = [told["95 % low"], told["95 % high"]]
    interval = "" if pd.isna(limits[0]) else f" [{', '.join(_number(limit) for limit in limits)}]"
    units = told["interval over"].partition(",")[0]
    return [both, f"{_number(told['effect'])}{interval}, {told['n']} {units}{'s' * (told['n'] != '1')}"]


def _number(value: float) -> str:
    return {float("inf"): "∞", float("-inf"): "-∞"}.get(value) or plain_number(value, PLACES)


def _unit(ledgers: Ledgers, row: str) -> str:
    return " or ".join(dict.fromkeys(filter(None, _at_each(ledgers, row, "unit").values())))


def counts_of(scale: str, table: pd.DataFrame) -> str:
    """Count a ledger's verdicts in words; of claims that compare the very same rows, one."""
    own = table[table["same as"] == ""]
    held = own[own["Holm verdict"] == "holds"]
    verdicts, adjusted = Counter(own["verdict"]), Counter(own["Holm verdict"])
    told, told_adjusted = Counter(own["evidence"]), Counter(held["evidence"])
    evidence = f"{told['evidence']} evidence, {told['not evidence']} not evidence"
    evidence += f", {told['not known']} not known" if told["not known"] else ""
    others = [
        f"{verdicts[each]} {each}"
        for each in ("undecided", "reported", "not run")
        if verdicts[each] or each != "reported"
    ]
    return (
        f"{scale}, {len(own)} claims: {verdicts['holds']} hold ({evidence}), {verdicts['fails']} fail, "
        f"{', '.join(others)}; after Holm {adjusted['holds']} hold ({told_adjusted['evidence']} evidence), "
        f"{adjusted['fails']} fail"
    )


def _over(ledgers: Ledgers) -> str:
    """Say what n counts at each scale."""
    named: dict[str, list[str]] = {}
    for scale, table in ledgers.items():
        over = [each for each in dict.fromkeys(table["interval over"]) if each]
        named.setdefault(" or ".join(over) or "nothing", []).append(scale)
    return "; ".join(f"at {' and '.join(scales)}: {over}" for over, scales in named.items())


def _at_each(ledgers: Ledgers, row: str, column: str) -> dict[str, str]:
    """Return a text of a row at each scale that has it."""
    rows = {scale: _row_of(table, row) for scale, table in ledgers.items()}
    return {scale: told[column] for scale, told in rows.items() if told is not None}


def _differing(ledgers: Ledgers) -> list[str]:
    """Name the rows that compare one thing at one scale and another at another."""
    run = {scale: table[table["verdict"] != "not run"] for scale, table in ledgers.items()}
    rows = [row for row in rows_of(run) if len({*_at_each(run, row, "statistic").values()}) > 1]
    said = "Rows that do not compare the same at each scale, but other widths, sizes or ratios (see below)"
    return [f"{said}: {together(rows)}."] if rows else []


def _definitions(ledgers: Ledgers) -> list[str]:
    """Say what each row compares, rows of one wording in one line; where scales differ, at each."""
    named: dict[str, list[str]] = {}
    for row in rows_of(ledgers):
        words, sides = (_by_scale(_at_each(ledgers, row, column)) for column in ("statistic", "claimed side"))
        named.setdefault(f"{words}; claimed {sides}", []).append(row)
    return [f"{together(rows)}: {said}" for said, rows in named.items()]


def _by_scale(texts: Mapping[str, str]) -> str:
    """Return a text that all scales share, or each with its scales."""
    named: dict[str, list[str]] = {}
    for scale, text in texts.items():
        named.setdefault(text, []).append(scale)
    if len(named) == 1:
        return next(iter(named))
    return "; ".join(f"at {' and '.join(scales)} {text}" for text, scales in named.items())


def _said(ledgers: Ledgers, again: Again) -> list[str]:
    """Say what holds where, in lines below the table by claims."""
    only = "" if len(ledgers) > 1 else f" There is one ledger alone, of {next(iter(ledgers))}."
    return [
        "Counted are the verdicts after Holm's adjustment. What holds without evidence, the unrounded "
        "network in LPE-BSR's place satisfies as well, or whether it does is not known; below, to hold is to "
        f"hold as evidence. Undecided is not refuted: the interval holds both sides.{only}",
        *what_holds_where(ledgers, again),
        *_differing(ledgers),
    ]


def _notes(ledgers: Ledgers, scales: Mapping[str, Scale]) -> list[str]:
    return [
        "A verdict: the raw one / the one after Holm's adjustment, which is within a scale, so that it is "
        "the stricter the more claims a scale has. An effect: with its 95 % interval, and n. What n counts: "
        f"{_over(ledgers)}. An empty cell: the scale has no such claim.",
        *(f"{counts_of(scale, table)}." for scale, table in ledgers.items()),
        "Claims that compare the very same rows are counted once.",
        *(f"{name}: {scale.standing}" for name, scale in scales.items() if scale.standing),
        *_definitions(ledgers),
    ]


def write(
    figures: Path, ledgers: Ledgers, scales: Mapping[str, Scale], edited: Collection[str] = ()
) -> list[Path]:
    """Write claims.csv and claims.md into a folder; returns their paths.

    Args:
        scales: that are known, by name. edited: scales whose ledger is of edited records.
    """
    paths = [figures / FILE, figures / "claims.md"]
    rows = rows_of(ledgers)
    named = {scale: f"{scale} ({page.EDITED})" if scale in edited else scale for scale in ledgers}
    header = ["claim", *(f"{named[scale]}: {column}" for scale in ledgers for column in TOLD)]
    told = [
        [row, *(cell for table in ledgers.values() for cell in _told(_row_of(table, row)))] for row in rows
    ]
    write_table([dict(zip(header, cells, strict=True)) for cells in told], paths[0], header)
    short_header = ["claim", "unit"]
    for scale in ledgers:
        short_header += [f"{scale}: verdict / after Holm", f"{scale}: effect [95 %], n"]
    short = [
        [
            row,
            _unit(ledgers, row),
            *(cell for table in ledgers.values() for cell in _cells(_row_of(table, row))),
        ]
        for row in rows
    ]
    again = shared(ledgers, scales)
    said = [f"{page.EDITED.capitalize()}: {', '.join(sorted(edited))}."] if edited else []
    title = "The claims of all scales, side by side" + (f" ({page.EDITED})" if edited else "")
    first = markdown(*by_claim(ledgers, again), title, [*said, *_said(ledgers, again)])
    second = markdown(short_header, short, "Row by row", _notes(ledgers, scales))
    write_text_atomic(paths[1], f"{first}\n{second}")
    return paths


def _told(row: pd.Series | None) -> list[Cell]:
    if row is None:
        return [None] * len(TOLD)
    return [None if column in NUMBERS and pd.isna(row[column]) else row[column] for column in TOLD]


def _read_all(figures: Path, accept: bool) -> all_scales.Made:
    edited = edited_in(figures, accept)
    scales = known_scales(figures)
    ledgers = read_ledgers(figures, scales)
    counts = [counts_of(scale, table) for scale, table in ledgers.items()]
    return partial(write, figures, ledgers, scales, edited), counts


def main(arguments: Sequence[str]) -> int:
    """Set side by side, write and count; the exit code is 0, or 2 after one line about bad input."""
    return all_scales.run("reproduce.ledgers", __doc__, "claims.*", _read_all, arguments)


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:])))
