"""The README's table of results, from the committed records.

    python docs/_ext/glance.py

Costs a second. It writes the table between the marks in README.md and prints nothing. It reads
figures/SCALE/table2.csv (and its title in table2.md) and figures/SCALE/claims.csv. A test compares the two.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import marked

REPOSITORY = Path(__file__).parents[2]
FIGURES = REPOSITORY / "figures"
README = REPOSITORY / "README.md"
SCALES = ("digits", "cifar10-small", "cifar10")
BEGIN, END = "<!-- glance -->", "<!-- /glance -->"
POINT, MEMBERS = "SGD", "10"
HEADER = ("scale", "network and data", "FP32", "one temperature", "INT-5", "INT-4", "INT-3", "claims")


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each a dictionary by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def signed(text: str) -> str:
    """Return a number or an interval with the minus of prose: "-.1 [-.2, .0]" → "−.1 [−.2, .0]"."""
    return text.replace("-", "−")


def title_of(folder: Path) -> str:
    """Return network and data as the title of table 2 has them, with the number of training seeds of SGD."""
    title = (folder / "table2.md").read_text().partition("\n")[0]
    subject = title.removeprefix("The numbers behind figure 2: ").partition(", scale ")[0]
    seeds = {row["seed"] for row in rows_of(folder / "table2_record.csv") if row["point"] == POINT}
    return f"{subject}; n = {len(seeds)}"


def counts(folder: Path) -> str:
    """Return how many claims hold, as evidence and not, fail and are undecided; the same rows count once."""
    verdicts = Counter(
        "evidence" if row["evidence"] == "evidence" else row["verdict"]
        for row in rows_of(folder / "claims.csv")
        if not row["same as"]
    )
    held = f"{verdicts['evidence']} evidence, {verdicts['holds']} hold without"
    return f"{held}, {verdicts['fails']} fail, {verdicts['undecided']} undecided"


def row_of(scale: str, figures: Path) -> tuple[str, ...]:
    """Return a scale's row: FP32's NLL at the point of SGD, and the differences from it."""
    folder = figures / scale
    measured = {
        (row["method"], row["members"]): row
        for row in rows_of(folder / "table2.csv")
        if row["point"] == POINT
    }
    asked = [("FP32 + temperature", "1"), *((f"LPE-BSR, INT-{bits}", MEMBERS) for bits in (5, 4, 3))]
    return (
        f"`{scale}`",
        title_of(folder),
        measured["☆ single FP32", "1"]["NLL (nats)"].partition(" ")[0],
        *(signed(measured[each]["NLL − FP32's"]) for each in asked),
        counts(folder),
    )


def table(figures: Path = FIGURES) -> str:
    """Return the table in Markdown, a row a scale."""
    rows = [HEADER, ("---",) * len(HEADER), *(row_of(scale, figures) for scale in SCALES)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def filled(text: str, figures: Path = FIGURES) -> str:
    """Return the README's text with the table of the records between its marks."""
    return marked.filled(text, BEGIN, table(figures), END)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
