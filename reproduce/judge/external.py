"""Our numbers beside published ones, from records alone.

A published number stands beside the rows of our records that measure the same metric of the same method, on
the same data set: on the same network where we have one, else on one of ours that the table may stand beside;
with the same augmentation where we have it; on all test examples where we have them. What a substrate is, its
scale says (:class:`reproduce.study.subjects.Subject`). What differs is said with every verdict. What has no
rows is "not run".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from reproduce.judge.intervals import has_spread, student_interval
from reproduce.judge.published import Ours, Published
from reproduce.judge.statistics import NotRun, Rows
from reproduce.study.subjects import Subject, words_of_augmentation

INSIDE, OUTSIDE, ONE_NUMBER, NOT_RUN = "inside", "outside", "one number", "not run"
FILE = "file"
"""The column of a record's row that names its file."""


@dataclass(frozen=True)
class Measured:
    """A number of ours: the mean over training seeds.

    Args:
        low, high: its 95 % interval, Student's t; NaN with one seed, or equal ones. seeds: training seeds.
        files: of the records that it is read from.
    """

    scale: str
    substrate: str
    subject: Subject
    members: int
    value: float
    low: float
    high: float
    seeds: int
    backward_passes: float
    files: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A published number beside ours.

    Args:
        ours: None: not run. outcome: INSIDE or OUTSIDE the published range, ONE_NUMBER where there is no
            range, or NOT_RUN. verdict: it in words, with what differs, or with what is missing.
    """

    published: Published
    ours: Measured | None
    outcome: str
    verdict: str


Subjects = Mapping[tuple[str, str], Subject]
"""What substrates are, by scale and by the name that records have."""


def compare_all(
    published: Iterable[Published], records: Mapping[str, pd.DataFrame], subjects: Subjects
) -> list[Comparison]:
    """Put every published number beside ours; one that several substrates stand beside comes several times.

    Args:
        records: by scale, its rows with their FILE. subjects: of the substrates that stand beside others.
    """
    return [each for number in published for each in _compared(number, records, subjects)]


def _compared(number: Published, records: Mapping[str, pd.DataFrame], subjects: Subjects) -> list[Comparison]:
    ours = number.row.ours
    if ours is None:
        return [_not_run(number, "the suite has no such method")]
    found: list[tuple[tuple[bool, ...], Measured]] = []
    table, missing = number.table, list[str]()
    lacking = f"no record of {table.network} on {table.data}"
    for (scale, substrate), subject in subjects.items():
        if not _comparable(number, subject):
            continue
        if subject.optimiser not in (ours.optimiser, None):
            lacking = f"no record of a network trained by {ours.optimiser}"
            continue
        try:
            measured = measure(number, ours, records[scale], scale, substrate, subject)
        except NotRun as absent:
            missing.append(str(absent))
            continue
        found.append((_distance(number, subject), measured))
    if not found:
        return [_not_run(number, missing[0] if missing else lacking)]
    nearest = min(distance for distance, _ in found)
    return [_judged(number, measured) for distance, measured in found if distance == nearest]


def _not_run(number: Published, why: str) -> Comparison:
    return Comparison(number, None, NOT_RUN, f"{NOT_RUN}: {why}")


def _comparable(number: Published, subject: Subject) -> bool:
    table = number.table
    return subject.data_set == table.data and subject.network in (table.network, *table.beside)


def _distance(number: Published, subject: Subject) -> tuple[bool, ...]:
    """Tell whether the network differs, the augmentation, the weights, and whether a part is scored alone."""
    table = number.table
    return (
        subject.network != table.network,
        subject.augmentation != table.augmentation,
        subject.weights != number.row.weights,
        subject.scored is not None,
    )


def measure(
    number: Published, ours: Ours, record: pd.DataFrame, scale: str, substrate: str, subject: Subject
) -> Measured:
    """Return our mean of a published number's metric, over training seeds.

    Raises:
        NotRun: the record lacks its rows. InputError: it has two of one seed.
    """
    wanted = Rows(substrate, ours.point, ours.method, "fp32", metric=number.metric)
    try:
        rows = wanted.at(number.row.members).table(record)
    except NotRun:
        if not ours.largest:
            raise
        every = wanted.table(record)
        rows = every[every["size"] == every["size"].max()]
    values = rows["value"].to_numpy()
    return Measured(
        scale,
        substrate,
        subject,
        int(rows["size"].iloc[0]),
        float(values.mean()),
        *(student_interval(values) if has_spread(values) else (math.nan, math.nan)),
        len(values),
        float(rows["backward_passes"].mean()),
        tuple(sorted(set(rows[FILE]))),
    )


def differences(number: Published, ours: Measured) -> list[str]:
    """List what is known to differ, ours first."""
    table, subject = number.table, ours.subject
    pairs = [
        ("data", subject.data, table.data),
        ("scored on", subject.scored_on, table.scored),
        ("network", subject.network, table.network),
        (
            "augmentation",
            words_of_augmentation(subject.augmentation),
            words_of_augmentation(table.augmentation),
        ),
        ("members", ours.members, number.row.members),
    ]
    if number.row.weights:
        pairs.append(("weights", subject.weights or "trained here", number.row.weights))
    if number.backward_passes is not None:
        pairs.append(("backward passes", round(ours.backward_passes), number.backward_passes))
    said = [f"{what} ({mine}, theirs {theirs})" for what, mine, theirs in pairs if mine != theirs]
    return [*said, number.row.differs] if number.row.differs else said


def _judged(number: Published, ours: Measured) -> Comparison:
    differing = differences(number, ours)
    tail = f"differs: {'; '.join(differing)}" if differing else "no known difference"
    # As precise as the source prints.
    value = round(ours.value, number.decimals)
    if number.low is not None and number.high is not None:
        beyond = max(number.low - value, value - number.high)
        if beyond <= 0:
            return Comparison(number, ours, INSIDE, f"inside the published min–max; {tail}")
        side = "above" if value > number.high else "below"
        placed = f"{_size(beyond, number.decimals)} {side} the published min–max"
        return Comparison(number, ours, OUTSIDE, f"outside: {placed}; {tail}")
    gap = value - number.value
    placed = f"{_size(abs(gap), number.decimals)} {'above' if gap > 0 else 'below'} it" if gap else "the same"
    held = ""
    if not math.isnan(ours.low):
        holds = ours.low <= number.value <= ours.high
        held = f", which our 95 % interval {'holds' if holds else 'does not hold'}"
    return Comparison(number, ours, ONE_NUMBER, f"one number is published{held}: ours is {placed}; {tail}")


def _size(distance: float, decimals: int) -> str:
    return f"{distance:.{decimals}f}".removeprefix("0")


def counted(comparisons: Sequence[Comparison]) -> dict[str, int]:
    """Count the comparisons by outcome."""
    outcomes = [each.outcome for each in comparisons]
    return {outcome: outcomes.count(outcome) for outcome in (INSIDE, OUTSIDE, ONE_NUMBER, NOT_RUN)}
