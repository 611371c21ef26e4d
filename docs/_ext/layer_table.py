"""The table of a layer beside its peers, in docs/results/speed.md, from the committed record.

    python docs/_ext/layer_table.py            writes the table between the marks

It reads benchmarks/results/layer.csv and layer.json. Costs nothing.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import marked

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "results" / "speed.md"
BEGIN, END = "<!-- layer -->", "<!-- /layer -->"


def figures(number: float, digits: int = 3) -> str:
    """Return a number of so many significant digits, without the zero before the point."""
    if not number:
        return "0"
    if number >= 10 ** (digits - 1):
        return f"{number:,.0f}"
    text = f"{number:.{digits}g}"
    return (f"{number:.7f}".rstrip("0") if "e" in text and number > 1e-5 else text).removeprefix("0")


def table(results: Path = RESULTS) -> str:
    """Return the table in Markdown, a row a way, with its conditions before it."""
    with (results / "layer.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = json.loads((results / "layer.json").read_text(encoding="utf-8"))
    config = told["config"]
    measured = [row for row in rows if row["positions"]]
    positions = sorted({int(float(row["positions"])) for row in measured})
    times: dict[str, dict[int, dict[str, str]]] = {}
    for row in measured:
        times.setdefault(row["what"], {})[int(float(row["positions"]))] = row
    heads = [f"{count} position{'s' if count > 1 else ''}" for count in positions]
    lines = [("way", "members", "MB", *heads, "error"), ("---",) * (4 + len(heads))]
    for what, of_way in times.items():
        first = of_way[positions[0]]
        error = max(float(row["error"]) for row in of_way.values())
        lines.append(
            (
                what,
                first["members"],
                figures(float(first["megabytes"])),
                *(figures(float(of_way[count]["times_float32"])) for count in positions),
                "below .00001" if 0 < error < 1e-5 else figures(error, 1),
            )
        )
    lines += [
        (row["what"], row["members"], row["why"], *("" for _ in heads), "")
        for row in rows
        if not row["positions"]
    ]
    versions = {"torch": told["packages"]["torch"], **config["others"]}
    others = ", ".join(f"{name} {version}" for name, version in versions.items())
    products = ", ".join(figures(float(times["float32"][count]["cpu_ms"])) for count in positions)
    intro = (
        f"One thread of an {told['device']['cpu']} ({config['capability']}), {others}.\n"
        f"CPU time over that of one float32 product ({products} ms), medians of {config['repeats']}:"
    )
    return f"{intro}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(text: str, results: Path = RESULTS) -> str:
    """Return the page's text with the table of the record between its marks."""
    return marked.filled(text, BEGIN, table(results), END)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
