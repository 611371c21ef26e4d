"""One page of everything that a scale has: figures, tables and the ledger, with where each comes from.

    python -m reproduce report --scale digits
    python -m reproduce report --scale cifar10 --out report.html

It costs a minute: nothing is measured, and figures are drawn anew from the records in the folder, as
--plot-only does. It writes one HTML file that needs no network: figures as inline SVG, tables that sort by a
click, light and dark. It prints the file's name and size.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from lpe.command_line import Parser, complain
from lpe.errors import InputError
from lpe.writing import check_writable, write_text_atomic
from reproduce.command import Script, add_accept_edited, check_records, said_of_edited
from reproduce.draw import page, told
from reproduce.draw.tables import plain_number
from reproduce.ledger import FILE, PLACES, counts_in
from reproduce.rendering import script_of
from reproduce.scales import find
from reproduce.study.intact import check
from reproduce.study.records import record_name

LEDGER = {
    "claim": "claim",
    "verdict": "verdict",
    "effect": "effect [95 % interval]",
    "unit": "unit",
    "FP32 instead": "null: FP32 instead",
    "FP32 verdict": "null's verdict",
    "Holm verdict": "after Holm",
    "n": "n",
    "needed n": "n for a power of .8",
    "claimed side": "claimed",
    "statistic": "statistic",
}
"""Columns of claims.csv that the page shows, and their headings."""


@dataclass(frozen=True)
class Piece:
    """A figure or table as the page has it.

    Args:
        name: such as "fig2". heading: what it is of. caption: what it shows. body: HTML. facts: where it
            comes from.
    """

    name: str
    heading: str
    caption: str
    body: str
    facts: Mapping[str, str]


def main(arguments: Sequence[str]) -> int:
    """Write the page; the exit code is 0, or 2 after one line about bad input."""
    options = Parser(
        prog="python -m reproduce report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--scale",
        default=find.DEFAULT,
        metavar="NAME or FILE",
        help=f"whose figures, tables and claims (default: {find.DEFAULT})",
    )
    options.add_argument("--records", type=Path, help="folder of the records (default: figures/SCALE)")
    options.add_argument("--out", type=Path, help="the file (default: report.html in that folder)")
    add_accept_edited(options)
    asked = options.parse_args(arguments)
    try:
        folder = asked.records or find.folder_of(asked.scale)
        out = asked.out or folder / "report.html"
        if out.is_dir():
            raise InputError(f"{out} is a folder; give a file to write to")
        names = recorded(folder)
        if not names:
            raise InputError(
                f"there is no record in {folder}; run python -m reproduce --scale {asked.scale} first"
            )
        check_writable(out.parent)
        edited: list[str] = []
        pieces = []
        for name in names:
            piece, found = drawn(script_of(name), folder, asked.scale, asked.accept_edited)
            pieces.append(piece)
            edited += found
        title = f"Low precision ensembling: {find.scale(asked.scale, recorded=folder).title}"
        ledger = ledger_of(folder, asked.accept_edited)
        text = whole(title, pieces, ledger, said_of_edited(list(dict.fromkeys(edited))))
        write_text_atomic(out, text)
    except InputError as error:
        complain(error)
        return 2
    print(
        f"wrote {os.path.relpath(out)}: {len(text.encode()) / 1e6:.1f} MB, {len(pieces)} figures and tables"
    )
    return 0


def recorded(folder: Path) -> list[str]:
    """List the figures and tables that have a record and a JSON in a folder: figures first."""
    there = [path.stem for path in folder.glob("*.json") if (folder / record_name(path.stem)).is_file()]
    known = [name for name in there if name != "claims" and not name.endswith("_times")]
    return sorted(known, key=lambda name: (name.startswith("table"), not name.startswith("fig"), name))


def drawn(script: Script, folder: Path, scale: str, accept: bool) -> tuple[Piece, list[str]]:
    """Draw a figure or table from its record.

    Returns:
        What the page has of it, and the names of files that were edited after measuring.

    Raises:
        InputError: the record is not as it was measured, and that is not accepted.
    """
    edited = check_records(script.name, folder, accept)
    said = json.loads((folder / f"{script.name}.json").read_text(encoding="utf-8"))
    chosen = find.scale(scale, recorded=folder / f"{script.name}.json")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for path in folder.glob("*.*"):  # records of others too: a figure may compare with them
            if path.suffix in (".csv", ".json", ".sha256"):
                shutil.copy(path, place / path.name)
        files = ("svg",)
        with page.page(page.BOTH_COLUMNS, script.heading(chosen), edited=bool(edited), files=files):
            paths, lines = script.draw(place, chosen)
        bodies = [
            inline(path.read_text(encoding="utf-8"), path.stem, _first(script.description))
            for path in paths
            if path.suffix == ".svg"
        ]
        printed = place / f"{script.name}.csv"
        if printed in paths:
            bodies.append(table_of(pd.read_csv(printed, dtype=str, keep_default_na=False)))
    bodies += [f"<p>{html.escape(line)}</p>" for line in lines]
    facts = dict(told.facts(said))
    facts["record"] = ", ".join(
        f"{name}, sha256 {digest[:12]}…"
        for name, digest in said.get("sha256", {}).items()
        if name.endswith(".csv")
    )
    return Piece(
        script.name, script.heading(chosen), _first(script.description), "".join(bodies), facts
    ), edited


def _first(description: str | None) -> str:
    """Return a docstring's first paragraph in one line."""
    return " ".join((description or "").partition("\n\n")[0].split())


_ID = re.compile(r'(\bid="|xlink:href="#|href="#|url\(#)')


def inline(svg: str, name: str, label: str) -> str:
    """Return an SVG file as an element of a page: as wide as there is room, with identifiers of its own.

    Args:
        name: put before every identifier in it. label: what it shows, for who does not see it.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = _ID.sub(lambda found: found[1] + name + "-", element)
    # Its own size is in points; the page gives it its width, and viewBox the height.
    opening, end, rest = element.partition(">")
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    described = f'role="img" aria-label="{html.escape(label)}"'
    return f'<div class="figure" tabindex="0">{opening} {described}{end}{rest}</div>'


def table_of(table: pd.DataFrame, verdict: str = "") -> str:
    """Return a table that sorts by a click on a heading.

    Args:
        verdict: the column by whose text a row is coloured; "": none.
    """
    head = "".join(
        f'<th scope="col"><button>{html.escape(str(name))}</button></th>' for name in table.columns
    )
    rows = "".join(f"<tr>{''.join(_cells(row, verdict))}</tr>\n" for row in table.to_dict("records"))
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>{inside}</table></div>'


_NUMBER = re.compile(r"[<>]?[-+−]?(\d|\.\d)")


def _cells(row: Mapping[Any, Any], verdict: str) -> Iterator[str]:
    for name, value in row.items():
        text = str(value)
        kind = ' class="number"' if _NUMBER.match(text) else ""
        if name == verdict:
            kind = f' class="verdict {text.partition(",")[0].partition(" ")[0]}"'
        yield f"<td{kind}>{html.escape(text)}</td>"


def ledger_of(folder: Path, accept: bool) -> str:
    """Return the ledger of a folder: counts, the table of all claims, and what they mean; "" without one.

    Raises:
        InputError: claims.csv is not as it was written, and that is not accepted.
    """
    path = folder / FILE
    if not path.is_file():
        return ""
    edited = check([path], accept)
    claims = pd.read_csv(path, keep_default_na=False)
    shown = claims[list(LEDGER)].astype(str)
    shown["verdict"] += [f", {each}" if each == "not evidence" else "" for each in claims["evidence"]]
    shown["effect"] = _estimates(claims, "effect", "95 % low", "95 % high")
    shown["FP32 instead"] = _estimates(claims, "FP32 instead", "FP32 low", "FP32 high")
    said = (folder / "claims.md").read_text(encoding="utf-8").splitlines() if _has_notes(folder) else []
    after = [line for line in said[1:] if line and not line.startswith("|")]
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in [*said_of_edited(edited), *after])
    return (
        f"<p>{html.escape(counts_in(claims))}</p>{table_of(shown.rename(columns=LEDGER), 'verdict')}"
        f"<details><summary>What each claim compares, and how it is judged</summary>{notes}</details>"
    )


def _has_notes(folder: Path) -> bool:
    return (folder / "claims.md").is_file()


def _estimates(claims: pd.DataFrame, *columns: str) -> list[str]:
    """Return estimates with their intervals, in four decimals."""
    found = []
    for row in claims[list(columns)].itertuples(index=False):
        effect, low, high = (pd.to_numeric(each, errors="coerce") for each in row)
        interval = "" if pd.isna(low) else f" [{_number(low)}, {_number(high)}]"
        found.append("" if pd.isna(effect) else f"{_number(effect)}{interval}")
    return found


def _number(value: float) -> str:
    text = f"{value}".replace("inf", "∞") if math.isinf(value) else plain_number(value, PLACES)
    return text.replace("-", "−")


def whole(title: str, pieces: Sequence[Piece], ledger: str, notes: Sequence[str]) -> str:
    """Return the page.

    Args:
        ledger: HTML; "" for none. notes: lines at its head.
    """
    links = [f'<a href="#{each.name}">{each.name}</a>' for each in pieces]
    sections = [("<section id='ledger'><h2>Claims</h2>" + ledger + "</section>")] if ledger else []
    for piece in pieces:
        facts = "".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(fact)}</dd>" for name, fact in piece.facts.items()
        )
        of = f'<p class="of">{html.escape(piece.heading)}</p>' if piece.heading else ""
        sections.append(
            f'<section id="{piece.name}"><h2>{piece.name}</h2><p>{html.escape(piece.caption)}</p>'
            f"{of}{piece.body}"
            f"<details><summary>Where it comes from</summary><dl>{facts}</dl></details></section>"
        )
    template = Template(resources.files("reproduce.draw").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title),
        links=" ".join(['<a href="#ledger">claims</a>'] * bool(ledger) + links),
        notes="".join(f'<p class="note">{html.escape(line)}</p>' for line in notes),
        sections="\n".join(sections),
    )
