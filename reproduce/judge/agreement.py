"""Which claims hold at which scales, from their ledgers alone.

What counts is the verdict after Holm's adjustment, and of one that holds whether it is evidence: not where
the unrounded network in LPE-BSR's place satisfies the claim as well. A claim, such as C5, has a row for each
network, method or width that it is judged on, such as "C5 (INT-4)".
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pandas as pd

from reproduce.judge.claims import Settings, all_claims
from reproduce.judge.statistics import Rows
from reproduce.judge.verdicts import UNITS
from reproduce.study.scale import Scale

EXAMPLE, _ = UNITS["example"]

HOLDS, EMPTY, FAILS, UNDECIDED = "holds", "holds without evidence", "fails", "undecided"
COUNTED = {HOLDS: "hold", EMPTY: "hold without evidence", FAILS: "fail", UNDECIDED: "undecided"}

Ledgers = Mapping[str, pd.DataFrame]
"""Ledgers by scale, indexed by the claims' names without the scale's."""
Again = Mapping[tuple[str, str], str]
"""By (scale, row): the other scale that has the row, of the very same networks and data."""
Outcomes = dict[str, dict[str, dict[str, str]]]
"""Outcomes by claim, scale and row."""


def order(row: str) -> tuple[int, str]:
    """Return the place of a row: C2 before C10, C4a before C4b."""
    match = re.match(r"C(\d+)(\w*)", row)
    return (int(match[1]), match[2]) if match else (sys.maxsize, row)


def claim_of(row: str) -> str:
    """Return a row's claim: "C5" of "C5 (INT-4)"."""
    return row.partition(" (")[0]


def rows_of(ledgers: Ledgers) -> list[str]:
    """List the rows of all ledgers, each once, those of a claim in the ledgers' order."""
    return sorted(dict.fromkeys(row for table in ledgers.values() for row in table.index), key=order)


def together(rows: Sequence[str]) -> str:
    """Name rows, those of one claim together: "C2 (SWAG; IVON), C9"."""
    of: dict[tuple[str, bool], list[str]] = {}
    for row in rows:
        inside = row.partition(" (")[2].removesuffix(")")
        of.setdefault((claim_of(row), bool(inside)), []).append(inside)
    return ", ".join(
        f"{claim} ({'; '.join(several)})" if is_several else claim
        for (claim, is_several), several in of.items()
    )


def without_scale(text: str, scale: Scale | None) -> str:
    """Return a text with the substrates' short names; as it is where the scale is not known."""
    shorter = {} if scale is None else {each.name: each.short for each in scale.substrates.values()}
    for name in sorted(shorter, key=len, reverse=True):
        text = text.replace(name, shorter[name])
    return text


def networks_of(scale: Scale) -> dict[str, frozenset[str]]:
    """Return the substrates that each row compares, by its name without the scale's."""
    return {
        without_scale(claim.name, scale): frozenset(rows.substrate for rows in _choices(claim.of))
        for claim in all_claims(Settings.of(scale))
    }


def _choices(value: object) -> Iterator[Rows]:
    """Yield the choices of a record's rows that a statistic holds."""
    if isinstance(value, Rows):
        yield value
        return
    inside: Sequence[object] = ()
    if isinstance(value, partial):
        inside = (*value.args, *value.keywords.values())
    elif isinstance(value, list | tuple):
        inside = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = [getattr(value, field.name) for field in dataclasses.fields(value)]
    for each in inside:
        yield from _choices(each)


def shared(ledgers: Ledgers, scales: Mapping[str, Scale]) -> Again:
    """Find the rows that two scales have of the very networks and data: those of the one with fewer units.

    Training seeds count before test examples: a row of one seed, whatever its examples, is the lesser one.

    Args:
        scales: that are known, by name.
    """
    networks = {name: networks_of(scales[name]) for name in ledgers if name in scales}
    found: dict[tuple[str, str], str] = {}
    for pair in itertools.combinations(networks, 2):
        one, other = (networks[scale] for scale in pair)
        rows = [row for row in one if one[row] and one[row] == other.get(row)]
        rows = [row for row in rows if all(row in ledgers[scale].index for scale in pair)]
        units = [_units(ledgers[scale].loc[rows]) for scale in pair]
        fewer, more = pair if units[0] < units[1] else reversed(pair)
        found |= {(fewer, row): more for row in rows if (fewer, row) not in found}
    return found


def _units(rows: pd.DataFrame) -> tuple[int, int]:
    """Return over how many training seeds and test examples rows are."""
    counts, over = rows["n"].astype(int), rows["interval over"]
    return int(counts[over != EXAMPLE].sum()), int(counts[over == EXAMPLE].sum())


def outcomes_of(ledgers: Ledgers, again: Again) -> Outcomes:
    """Return the outcome of every row that is judged, those in ``again`` left out.

    Left out as well: rows with no threshold, rows that are not run, and rows that repeat another's.
    """
    found: Outcomes = {claim: {} for claim in dict.fromkeys(map(claim_of, rows_of(ledgers)))}
    for scale, table in ledgers.items():
        for row, told in table.iterrows():
            if (scale, str(row)) in again or told["same as"] or not told["Holm verdict"]:
                continue
            empty = told["Holm verdict"] == HOLDS and told["evidence"] != "evidence"
            outcome = EMPTY if empty else str(told["Holm verdict"])
            found[claim_of(str(row))].setdefault(scale, {})[str(row)] = outcome
    return found


def by_claim(ledgers: Ledgers, again: Again) -> tuple[list[str], list[list[str]]]:
    """Return a table: what the rows of each claim come to at each scale, and in all.

    Args:
        again: rows that are left out, for another scale has them.

    Returns:
        Its header and its rows.
    """
    lines = []
    for claim, of in outcomes_of(ledgers, again).items():
        cells = [
            _counted(of[scale]) if scale in of else _unjudged(scale, table, claim, again)
            for scale, table in ledgers.items()
        ]
        lines.append([claim, *cells, _in_all(of) if of else ""])
    return ["claim", *ledgers, "in all"], lines


def _counted(rows: Mapping[str, str]) -> str:
    """Count outcomes: "1 hold, 2 fail"; of a single row, its own."""
    counts = Counter(rows.values())
    if len(rows) == 1:
        return next(iter(counts))
    return ", ".join(f"{counts[each]} {word}" for each, word in COUNTED.items() if counts[each])


def _unjudged(scale: str, table: pd.DataFrame, claim: str, again: Again) -> str:
    """Say why no row of a claim is judged; "": the scale has no such claim."""
    rows = [row for row in table.index if claim_of(row) == claim]
    if others := {again[scale, row] for row in rows if (scale, row) in again}:
        return f"see {', '.join(sorted(others))}"
    verdicts = set(table.loc[rows, "verdict"])
    return next((each for each in ("reported", "not run") if each in verdicts), "")


def _in_all(of: Mapping[str, Mapping[str, str]]) -> str:
    """Say of a claim's outcomes by scale and row where it holds as evidence."""
    shares = [sum(each == HOLDS for each in rows.values()) / len(rows) for rows in of.values()]
    if len(of) == 1:
        return "one scale alone"
    if min(shares) == 1:
        return "everywhere"
    if max(shares) > 0:
        return "in part"
    empty = any(each == EMPTY for rows in of.values() for each in rows.values())
    return "nowhere as evidence" if empty else "nowhere"


def what_holds_where(ledgers: Ledgers, again: Again) -> list[str]:
    """Say what holds at every scale, at none, or at some: by claims, then by the rows that scales share."""
    judged = outcomes_of(ledgers, again)
    several = {claim: of for claim, of in judged.items() if len(of) > 1}
    said = []
    if several:
        claims: dict[str, list[str]] = {}
        for claim, of in several.items():
            claims.setdefault(_in_all(of), []).append(claim)
        everywhere, part, empty, nowhere = (
            ", ".join(claims.get(each, [])) or "none"
            for each in ("everywhere", "in part", "nowhere as evidence", "nowhere")
        )
        said.append(
            f"Of {len(several)} claims that two scales or more judge, these hold everywhere, in every row: "
            f"{everywhere}. These hold in some rows, or at some scales only: {part}. These hold, but nowhere "
            f"as evidence: {empty}. These hold nowhere: {nowhere}."
        )
    for scale in ledgers:
        if alone := [claim for claim, of in judged.items() if list(of) == [scale]]:
            said.append(
                f"Judged at {scale} alone, so that nothing is known of other scales: {', '.join(alone)}."
            )
    return [*said, *_row_by_row(several), *_repeated(again)]


def _row_by_row(judged: Outcomes) -> list[str]:
    """Name the rows that two scales or more judge, by what these say; nothing where there is none."""
    of_rows: dict[str, dict[str, str]] = {}
    for of in judged.values():
        for scale, rows in of.items():
            for row, outcome in rows.items():
                of_rows.setdefault(row, {})[scale] = outcome
    twice = {row: said for row, said in of_rows.items() if len(said) > 1}
    if not twice:
        return []
    kinds: dict[str, list[str]] = {"holds": [], "fails": [], "against": [], "some": [], "nowhere": []}
    for row, said in twice.items():
        outcomes = {*said.values()}
        if len(outcomes) == 1 and outcomes <= {HOLDS, FAILS}:
            kinds[next(iter(outcomes))].append(row)
        elif FAILS in outcomes and outcomes & {HOLDS, EMPTY}:
            kinds["against"].append(row)
        else:
            kinds["some" if HOLDS in outcomes else "nowhere"].append(row)
    return [
        f"Of {len(twice)} rows that two scales or more judge, these hold at each of them: "
        f"{together(kinds['holds']) or 'none'}. These fail at each: {together(kinds['fails']) or 'none'}.",
        f"Rows that hold at some scales, and fail at none: {_with_scales(kinds['some'], twice)}.",
        f"Rows that scales decide against each other: {_with_scales(kinds['against'], twice)}.",
        f"Rows beside these, which hold nowhere as evidence: {len(kinds['nowhere'])}.",
    ]


def _with_scales(rows: Sequence[str], of_rows: Mapping[str, Mapping[str, str]]) -> str:
    """Name rows with what each scale says, those of which it is the same together."""
    named: dict[str, list[str]] = {}
    for row in rows:
        scales: dict[str, list[str]] = {}
        for scale, outcome in of_rows[row].items():
            scales.setdefault(outcome, []).append(scale)
        said = ", ".join(f"{outcome} at {' and '.join(several)}" for outcome, several in scales.items())
        named.setdefault(said, []).append(row)
    return "; ".join(f"{together(several)}: {said}" for said, several in named.items()) or "none"


def _repeated(again: Again) -> list[str]:
    """Name the rows that are another scale's networks on its data."""
    named: dict[tuple[str, str], list[str]] = {}
    for (scale, row), other in again.items():
        named.setdefault((scale, other), []).append(row)
    return [
        f"At {scale} of the very networks and data of {other}, so no second finding and left out here: "
        f"{together(rows)}."
        for (scale, other), rows in named.items()
    ]
