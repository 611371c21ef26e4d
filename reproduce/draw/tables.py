"""Tables as files: one content as CSV, Markdown and LaTeX (booktabs).

A cell is text, a number or None (nothing). CSV keeps numbers to 12 significant digits; the other two show 4.
Text made by ``mean_and_interval`` is the same in all three.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lpe.errors import InputError
from lpe.records import write_table
from lpe.writing import write_text_atomic
from reproduce.draw.page import EDITED, is_edited
from reproduce.judge.intervals import LEVEL, student_interval

Cell = str | float | int | None

LONG = 30
"""Characters from which a LaTeX column breaks its lines."""
PAGE = 40
"""Lines of a LaTeX table that fit on a page."""

# What LaTeX reads as a command, and what its default fonts lack.
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "½": r"$\frac{1}{2}$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "→": r"$\to$",
    "☆": r"$\star$",
    "∞": r"$\infty$",
    "²": "$^2$",
    "…": r"\ldots{}",
}
_NUMBER = re.compile(r"[<>]?[-+−]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?( \[[^]]*\])?")
_MINUS = re.compile(r"(?<![\w)])-(?=\.?\d)")


class Bold(str):
    """A cell's text, set bold in Markdown and LaTeX."""


def plain_number(value: float, digits: int) -> str:
    """Write a number to ``digits`` decimals without a leading zero: ".0576", "-.5", "1.25"."""
    text = f"{value + 0.0:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return re.sub(r"^(-?)0\.", r"\1.", text)


def mean_and_interval(values: Sequence[float] | np.ndarray, digits: int, level: float = LEVEL) -> str:
    """Return the mean over training seeds and its Student t interval, such as ".0576 [.0521, .0631]".

    Args:
        values: one a training seed [n]; with n = 1 the mean stands alone.
        digits: decimals.

    Raises:
        InputError: no values.
    """
    given = np.asarray(values, float)
    if not len(given):
        raise InputError("there are no values to take the mean of; give one a training seed")
    mean = plain_number(float(given.mean()), digits)
    if len(given) == 1:
        return mean
    low, high = (plain_number(limit, digits) for limit in student_interval(given, level))
    return f"{mean} [{low}, {high}]"


def mark_best(
    rows: Sequence[Sequence[Cell]], column: int, values: Sequence[float | None], best: str = "lowest"
) -> list[list[Cell]]:
    """Set the best cell of a column bold; cells that show the same text are equally good.

    Args:
        values: what decides, one a row; None or NaN: the row does not compete.
        best: "lowest" or "highest".

    Raises:
        InputError: another ``best``, or values that are not one a row.
    """
    if best not in ("lowest", "highest"):
        raise InputError(f"best is {best!r}; 'lowest' or 'highest' is expected")
    if len(values) != len(rows):
        raise InputError(f"{len(values)} values for {len(rows)} rows; give one a row")
    competing = [(value, place) for place, value in enumerate(values) if value is not None and value == value]
    marked = [list(row) for row in rows]
    if competing:
        _, first = min(competing) if best == "lowest" else max(competing)
        winner = _shown(rows[first][column])
        for _, place in competing:
            if _shown(rows[place][column]) == winner:
                marked[place][column] = Bold(winner)
    return marked


def write_all(
    folder: Path,
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    caption: str,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write name.csv, name.md and name.tex into a folder, each whole or not at all; returns their paths.

    Where records were edited after measuring, the caption says so, and in CSV a last column.

    Args:
        header: one text a column, with the unit where there is one: "NLL (nats)".
        rows: each with one cell a column.
        caption: above the table. notes: lines below it.

    Raises:
        InputError: a row with more or fewer cells than the header, or two columns of one name.
    """
    if len(set(header)) < len(header):
        raise InputError(f"two columns of {name} have one name: {', '.join(header)}; rename one")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(f"row {number} of {name} has {len(row)} cells; {len(header)} are expected")
    paths = [folder / f"{name}.{kind}" for kind in ("csv", "md", "tex")]
    told = [dict(zip(header, row, strict=True)) for row in rows]
    columns = list(header)
    if is_edited():
        caption = f"{caption} ({EDITED})"
        columns.append("records")
        told = [{**row, "records": EDITED.removeprefix("records ")} for row in told]
    write_table(told, paths[0], columns)
    write_text_atomic(paths[1], markdown(header, rows, caption, notes))
    write_text_atomic(paths[2], latex(name, header, rows, caption, notes))
    return paths


def markdown(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str, notes: Sequence[str] = ()
) -> str:
    """Write a Markdown table, its columns aligned, numbers to the right."""
    lines = [[_in_markdown(cell) for cell in row] for row in (header, *rows)]
    right = _numeric(header, rows)
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + (":" if to_right else "-") for width, to_right in zip(widths, right, strict=True)
    ]
    table = [line(lines[0]), line(rule), *(line(cells) for cells in lines[1:])]
    return "\n".join([caption, "", *table, *(["", *(f"- {note}" for note in notes)] if notes else [])]) + "\n"


def latex(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    caption: str,
    notes: Sequence[str] = (),
) -> str:
    """Write a LaTeX table with booktabs' rules and the label tab:name, as wide as the page's text at most.

    It needs ``\\usepackage{booktabs, graphicx}``, and stands in one column or over both of two. What is wider
    than the text is set smaller; what has more than ``PAGE`` lines goes on in further tables of its number.
    """
    right = _numeric(header, rows)
    columns, titles = [], []
    for column, (title, to_right) in enumerate(zip(header, right, strict=True)):
        longest = max((len(_shown(row[column])) for row in rows), default=0)
        broken = longest > LONG and not to_right
        columns.append("r" if to_right else r"p{0.17\linewidth}" if broken else "l")
        titles.append(_stacked(title, longest, to_right))
    head = [r"\toprule", " & ".join(titles) + r" \\", r"\midrule"]
    lines = []
    for number, part in enumerate(_parts(rows, right)):
        lines += [
            r"\begin{table*}",
            r"\centering\scriptsize\setlength{\tabcolsep}{2.5pt}",
            *([r"\addtocounter{table}{-1}"] if number else []),
            rf"\caption{{{_in_latex(caption)}}}" if not number else r"\caption{(continued)}",
            *([] if number else [rf"\label{{tab:{name}}}"]),
            r"\sbox0{%",
            rf"\begin{{tabular}}{{{''.join(columns)}}}",
            *head,
            *(" & ".join(_in_latex(cell) for cell in row) + r" \\" for row in part),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
            r"\end{table*}",
        ]
    # Below the last part.
    lines[-1:] = [*(rf"\par\smallskip\noindent {_in_latex(note)}" for note in notes), lines[-1]]
    return "\n".join(lines) + "\n"


def _parts(rows: Sequence[Sequence[Cell]], right: Sequence[bool]) -> list[list[Sequence[Cell]]]:
    """Split rows so that no part has more than ``PAGE`` lines; at least one part."""
    parts: list[list[Sequence[Cell]]] = [[]]
    lines = 0
    for row in rows:
        long = [len(_shown(cell)) for cell, to_right in zip(row, right, strict=True) if not to_right]
        height = max(1, -(-max(long, default=0) // LONG))
        if lines + height > PAGE and parts[-1]:
            parts.append([])
            lines = 0
        parts[-1].append(row)
        lines += height
    return parts


def _stacked(title: str, longest: int, to_right: bool) -> str:
    """Break a title that is wider than its column at the space nearest its middle."""
    spaces = [place for place, character in enumerate(title) if character == " "]
    if len(title) <= max(longest, 6) or not spaces:
        return _in_latex(title)
    place = min(spaces, key=lambda space: abs(space - len(title) / 2))
    side = "r" if to_right else "l"
    return rf"\shortstack[{side}]{{{_in_latex(title[:place])}\\{_in_latex(title[place + 1 :])}}}"


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float | np.floating) else str(cell)


def _numeric(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Tell whether a column holds numbers, or texts that begin with one, and nothing else."""
    shown = [[text for row in rows if (text := _shown(row[column]))] for column in range(len(header))]
    return [bool(texts) and all(_NUMBER.fullmatch(text) for text in texts) for texts in shown]


def _in_markdown(cell: Cell) -> str:
    text = re.sub(r"([\\|*_<>`])", r"\\\1", _shown(cell)).replace("\n", " ")
    return f"**{text}**" if isinstance(cell, Bold) else text


def _in_latex(cell: Cell) -> str:
    text = _MINUS.sub("−", _shown(cell).replace("\n", " "))
    escaped = "".join(_LATEX.get(character, character) for character in text)
    # At the start of a row "[" and "*" would be read as an argument of the line break before it.
    escaped = re.sub(r"^([\[*])", r"{\1}", escaped)
    return rf"\textbf{{{escaped}}}" if isinstance(cell, Bold) else escaped
