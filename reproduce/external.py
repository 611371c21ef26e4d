"""Our numbers beside published ones.

    python -m reproduce.external

Costs seconds: nothing is trained or measured. It reads the records of every scale in the folder of figures,
writes external.csv (everything) and external.md (a table to read) there, and prints the paths. Every
published number that is known here is a row, with its source; where no record of ours measures the same it
says "not run".
"""

from __future__ import annotations

import sys
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
from reproduce.command import said_of_edited
from reproduce.draw import page
from reproduce.draw.tables import Cell, markdown, plain_number
from reproduce.judge import all_scales
from reproduce.judge.external import (
    INSIDE,
    NOT_RUN,
    ONE_NUMBER,
    OUTSIDE,
    Comparison,
    Measured,
    Subjects,
    compare_all,
    counted,
)
from reproduce.judge.published import PUBLISHED, Published, Table
from reproduce.scales import find
from reproduce.study.intact import check
from reproduce.study.subjects import UNSAID, Subject, words_of_augmentation

HEADER = (
    "method",
    "members",
    "metric",
    "ours",
    "ours 95 % low",
    "ours 95 % high",
    "our n",
    "our members",
    "our scale",
    "our substrate",
    "our network",
    "our data",
    "our augmentation",
    "our backward passes",
    "our record",
    "published",
    "published min",
    "published max",
    "published n",
    "published network",
    "published data",
    "published scored on",
    "published augmentation",
    "published backward passes",
    "repository",
    "file",
    "outcome",
    "verdict",
)
SHORT = (
    "source",
    "network",
    "method",
    "members",
    "metric",
    "ours",
    "our n",
    "published",
    "published n",
    "verdict",
)


def records_of(figures: Path) -> dict[str, pd.DataFrame]:
    """Return the rows of every scale's records, by the scale's name, which is its folder's.

    Raises:
        InputError: records are damaged, contradict each other or are of another scale.
    """
    folders = sorted(path for path in figures.glob("*") if path.is_dir())
    return {
        folder.name: ledger.read_with_files(folder, folder.name)
        for folder in folders
        if ledger.records_in(folder)
    }


def subjects_of(figures: Path, records: Mapping[str, pd.DataFrame]) -> tuple[Subjects, list[str]]:
    """Return what the substrates of records are, as their scales say, and the scales that nobody knows.

    A scale is made again of the options that its records were made with.

    Raises:
        InputError: records of several options, or of none of the substrates that these make.
    """
    subjects, strangers = dict[tuple[str, str], Subject](), list[str]()
    for name, record in records.items():
        scale = find.recorded(figures / name)
        if scale is None:
            strangers.append(name)
            continue
        there = set(record["substrate"])
        if there.isdisjoint(scale.substrates):
            raise InputError(
                f"{figures / name} has records of {min(there)!r} and of no substrate that scale {name} has "
                f"with their options, such as {scale.substrate!r}; measure anew with this version of the code"
            )
        subjects |= {
            (name, each.name): each.subject
            for each in scale.substrates.values()
            if each.subject is not None and each.name in there
        }
    return subjects, strangers


def edited_in(figures: Path, accept: bool) -> set[str]:
    """Return which records, as "digits/fig2.csv", are accepted as edited after measuring.

    Raises:
        InputError: one is not as it was measured, and not accepted.
    """
    folders = [path for path in figures.glob("*") if path.is_dir()]
    paths = [path for folder in folders for path in ledger.records_in(folder)]
    return {f"{path.parent.name}/{path.name}" for path in paths if check([path], accept)}


def _row(comparison: Comparison, edited: Collection[str]) -> list[Cell]:
    published, table = comparison.published, comparison.published.table
    return [
        published.row.method,
        published.row.members,
        published.metric,
        *_cells(comparison.ours, edited),
        published.value,
        published.low,
        published.high,
        table.trials,
        table.network,
        table.data,
        table.scored,
        words_of_augmentation(table.augmentation),
        published.backward_passes,
        table.repository,
        table.file,
        comparison.outcome,
        comparison.verdict,
    ]


def _cells(ours: Measured | None, edited: Collection[str]) -> list[Cell]:
    if ours is None:
        return [None] * 12
    return [
        ours.value,
        *(limit if ours.seeds > 1 else None for limit in (ours.low, ours.high)),
        ours.seeds,
        ours.members,
        ours.scale,
        ours.substrate,
        ours.subject.network,
        ours.subject.data,
        words_of_augmentation(ours.subject.augmentation),
        round(ours.backward_passes),
        " ".join(f"{file} (edited)" if file in edited else file for file in _files(ours)),
    ]


def _files(ours: Measured) -> list[str]:
    return [f"{ours.scale}/{file}" for file in ours.files]


def _short_row(comparison: Comparison, source: int, edited: Collection[str]) -> list[Cell]:
    published, ours = comparison.published, comparison.ours
    is_edited = ours is not None and any(file in edited for file in _files(ours))
    return [
        source,
        published.table.network,
        published.row.method,
        published.row.members,
        published.metric,
        "" if ours is None else _interval(ours, published.decimals + 1),
        None if ours is None else ours.seeds,
        _range(published),
        published.table.trials or UNSAID,
        f"{comparison.verdict} ({page.EDITED})" if is_edited else comparison.verdict,
    ]


def _interval(ours: Measured, digits: int) -> str:
    value = plain_number(ours.value, digits)
    if ours.seeds < 2:
        return value
    return f"{value} [{plain_number(ours.low, digits)}, {plain_number(ours.high, digits)}]"


def _range(published: Published) -> str:
    numbers = [published.value, *(limit for limit in (published.low, published.high) if limit is not None)]
    value, *limits = (plain_number(number, published.decimals) for number in numbers)
    return f"{value} [{'–'.join(limits)}]" if limits else value


def _source(number: int, table: Table) -> str:
    steps = "" if table.updates is None else f", {table.updates:,} updates a member"
    return (
        f"Source {number}: {table.repository}, {table.file}. {table.network}, {table.data}, augmentation "
        f"{words_of_augmentation(table.augmentation)}{steps}; scored on {table.scored}."
    )


def summary(comparisons: Sequence[Comparison]) -> str:
    """Count the comparisons in words."""
    counts = counted(comparisons)
    return (
        f"{len(comparisons)} rows: {counts[INSIDE]} inside the published min–max, {counts[OUTSIDE]} outside, "
        f"{counts[ONE_NUMBER]} beside one published number, {counts[NOT_RUN]} not run"
    )


def _notes(
    comparisons: Sequence[Comparison],
    sources: Sequence[Table],
    scales: Sequence[str],
    strangers: Sequence[str],
) -> list[str]:
    unknown = f"Not of this repository, so compared with nothing: {', '.join(strangers)}."
    return [
        f"{summary(comparisons)}. Those that are run come first.",
        f"Scales with records: {', '.join(scales) or 'none'}.",
        *([unknown] if strangers else []),
        "Ours: the mean over n training seeds, in brackets its 95 % interval (Student's t). Published: the "
        "mean over n trainings, in brackets the least and the greatest of them where the source prints them.",
        "NLL and ambiguity in nats, ERR and ECE as shares of 1; a published accuracy is read as an error. "
        "A verdict lists what is known to differ; it does not say which of it makes the difference.",
        *(_source(number, table) for number, table in enumerate(sources, start=1)),
    ]


def write(
    figures: Path,
    comparisons: Sequence[Comparison],
    scales: Sequence[str],
    strangers: Sequence[str],
    edited: Collection[str] = (),
) -> list[Path]:
    """Write external.csv and external.md into a folder; returns their paths.

    Args:
        scales: that have records. strangers: those of them of which this repository knows nothing.
        edited: records that were edited after measuring; see :func:`edited_in`.
    """
    paths = [figures / f"external.{kind}" for kind in ("csv", "md")]
    rows = [dict(zip(HEADER, _row(comparison, edited), strict=True)) for comparison in comparisons]
    write_table(rows, paths[0], HEADER)
    sources: list[Table] = []
    for each in comparisons:
        if each.published.table not in sources:
            sources.append(each.published.table)
    ordered = sorted(comparisons, key=lambda each: each.outcome == NOT_RUN)
    short = [_short_row(each, 1 + sources.index(each.published.table), edited) for each in ordered]
    title = "Our numbers beside published ones" + (f" ({page.EDITED})" if edited else "")
    write_text_atomic(
        paths[1], markdown(SHORT, short, title, _notes(comparisons, sources, scales, strangers))
    )
    return paths


def _read(figures: Path, accept: bool) -> all_scales.Made:
    edited = edited_in(figures, accept)
    records = records_of(figures)
    subjects, strangers = subjects_of(figures, records)
    comparisons = compare_all(PUBLISHED, records, subjects)
    return partial(write, figures, comparisons, list(records), strangers, edited), [
        summary(comparisons),
        *said_of_edited(sorted(edited)),
    ]


def main(arguments: Sequence[str]) -> int:
    """Compare, write and say how many; the exit code is 0, or 2 after one line about bad input."""
    return all_scales.run("reproduce.external", __doc__, "external.*", _read, arguments)


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:])))
