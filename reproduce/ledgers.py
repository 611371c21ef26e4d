"""The claims of all scales, side by side.

    python -m reproduce.ledgers

Costs seconds: nothing is judged anew. It reads claims.csv of every scale in the folder of figures and writes
claims.csv (a row a claim, the columns of every scale) and claims.md (a table to read, and counts) there. A
claim's name is without the scale's: "C1a (ViT-T)" is that of each scale's network of this name.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.choose(sys.argv[1:])

import pandas as pd

from lpe.command_line import Parser
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.records import write_table
from lpe.writing import check_writable, write_text_atomic
from reproduce import ledger
from reproduce.draw.tables import Cell, markdown, plain_number
from reproduce.scales import find

FILE = "claims.csv"
TOLD = (
    "claimed side",
    "verdict",
    "evidence",
    "effect",
    "95 % low",
    "95 % high",
    "unit",
    "n",
    "FP32 instead",
    "FP32 verdict",
    "Holm verdict",
    "needed n",
)
"""The columns of a scale's ledger that are set side by side."""
NUMBERS = ("effect", "95 % low", "95 % high", "FP32 instead")
PLACES = ledger.PLACES


def read_ledgers(figures: Path) -> dict[str, pd.DataFrame]:
    """Read every scale's claims.csv, by the scale's name, which is its folder's.

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
    return {path.parent.name: _read(path) for path in paths}


def _read(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(table.columns) != ledger.HEADER:
        wanted = f"python -m reproduce claims --scale {path.parent.name}"
        raise InputError(f"{path} has other columns than a ledger of this version; run {wanted}")
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column])
    names = [_without_scale(name, _shorter(path.parent.name)) for name in table["claim"]]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{path} has two rows of {min(twice)}; one is expected")
    return table.set_axis(names)


def _shorter(scale: str) -> dict[str, str]:
    """Return the substrates' names without the scale's; none of a scale that this repository lacks."""
    known = find.SCALES.get(scale)
    return {} if known is None else {each.name: each.short for each in known.substrates.values()}


def _without_scale(claim: str, shorter: Mapping[str, str]) -> str:
    """Return a claim's name with the substrates' short names."""
    for name in sorted(shorter, key=len, reverse=True):
        claim = claim.replace(f"({name}", f"({shorter[name]}")
    return claim


def _order(claim: str) -> tuple[int, str]:
    """Return the place of a claim: C2 before C10, C4a before C4b."""
    match = re.match(r"C(\d+)(\w*)", claim)
    return (int(match[1]), match[2]) if match else (sys.maxsize, claim)


def claims_of(ledgers: Mapping[str, pd.DataFrame]) -> list[str]:
    """List the claims of all ledgers, each once, those of a number in the ledgers' order."""
    return sorted(dict.fromkeys(name for table in ledgers.values() for name in table.index), key=_order)


def _cell(row: pd.Series | None) -> str:
    """Return what a scale says of a claim: verdict, estimate, the null's verdict, Holm's verdict."""
    if row is None:
        return ""
    verdict = _verdict(row)
    if pd.isna(row["effect"]):
        return verdict
    limits = [row["95 % low"], row["95 % high"]]
    interval = "" if pd.isna(limits[0]) else f" [{', '.join(_number(limit) for limit in limits)}]"
    parts = [f"{verdict}: {_number(row['effect'])}{interval} {row['unit']}, n = {row['n']}"]
    if row["FP32 verdict"]:
        parts.append(f"FP32 instead {row['FP32 verdict']}")
    if row["Holm verdict"]:
        parts.append(f"Holm {row['Holm verdict']}")
    return "; ".join(parts)


def _number(value: float) -> str:
    return {float("inf"): "∞", float("-inf"): "-∞"}.get(value) or plain_number(value, PLACES)


def _row_of(table: pd.DataFrame, claim: str) -> pd.Series | None:
    return table.iloc[list(table.index).index(claim)] if claim in table.index else None


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


def _agreement(ledgers: Mapping[str, pd.DataFrame]) -> list[str]:
    """List the claims that are decided at two scales or more, by what each says; none: no line."""
    named: dict[str, list[str]] = {}
    for claim in claims_of(ledgers):
        rows = {scale: _row_of(table, claim) for scale, table in ledgers.items()}
        decided = {
            scale: _verdict(row)
            for scale, row in rows.items()
            if row is not None and row["verdict"] in ("holds", "fails")
        }
        if len(decided) < 2:
            continue
        outcomes = set(decided.values())
        said = "; ".join(f"{verdict} at {scale}" for scale, verdict in decided.items())
        if len(outcomes) == 1:
            said = f"{outcomes.pop()} at every scale that decides it"
        named.setdefault(said, []).append(claim)
    return [f"Decided at two scales or more, {said}: {', '.join(names)}." for said, names in named.items()]


def _verdict(row: pd.Series) -> str:
    """Return a verdict, of one that holds with what it is worth."""
    told = {"not evidence": ", not evidence", "not known": ", evidence not known"}
    return f"{row['verdict']}{told.get(row['evidence'], '')}"


def _notes(ledgers: Mapping[str, pd.DataFrame]) -> list[str]:
    standings = {
        scale: known.standing
        for scale in ledgers
        if (known := find.SCALES.get(scale)) is not None and known.standing
    }
    return [
        *(f"{counts_of(scale, table)}." for scale, table in ledgers.items()),
        "Claims that compare the very same rows are counted once.",
        *_agreement(ledgers),
        *(f"{scale}: {standing}" for scale, standing in standings.items()),
        "A cell: verdict, effect with its 95 % interval, unit, n; the verdict of the same statistic with the "
        "unrounded network in LPE-BSR's place (FP32 instead); the verdict after Holm's adjustment within the "
        "scale. An empty cell: the scale has no such claim. What each claim compares, and the side that is "
        "claimed, is in claims.md of each scale's folder; limits and units may differ between scales.",
    ]


def write(figures: Path, ledgers: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write claims.csv and claims.md into a folder; returns their paths."""
    paths = [figures / FILE, figures / "claims.md"]
    claims = claims_of(ledgers)
    header = ["claim", *(f"{scale}: {column}" for scale in ledgers for column in TOLD)]
    rows = [
        [claim, *(cell for table in ledgers.values() for cell in _told(_row_of(table, claim)))]
        for claim in claims
    ]
    write_table([dict(zip(header, row, strict=True)) for row in rows], paths[0], header)
    short = [[claim, *(_cell(_row_of(table, claim)) for table in ledgers.values())] for claim in claims]
    title = "The claims of all scales, side by side"
    write_text_atomic(paths[1], markdown(["claim", *ledgers], short, title, _notes(ledgers)))
    return paths


def _told(row: pd.Series | None) -> list[Cell]:
    if row is None:
        return [None] * len(TOLD)
    return [None if column in NUMBERS and pd.isna(row[column]) else row[column] for column in TOLD]


def main(arguments: Sequence[str]) -> int:
    """Set side by side, write and count; the exit code is 0, or 2 after one line about bad input."""
    options = Parser(
        prog="python -m reproduce.ledgers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--figures",
        type=Path,
        default=REPOSITORY / "figures",
        help="folder with a folder a scale; claims.* is written there (default: figures)",
    )
    asked = options.parse_args(arguments)
    try:
        ledgers = read_ledgers(asked.figures)
        check_writable(asked.figures)
        paths = write(asked.figures, ledgers)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(f"wrote {os.path.relpath(path)}")
    for scale, table in ledgers.items():
        print(counts_of(scale, table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
