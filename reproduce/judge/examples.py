"""The values of each test example behind a statistic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lpe.records import KEY
from reproduce.judge.intervals import image_means
from reproduce.judge.null import MISSING, ZERO
from reproduce.judge.statistics import Statistic

Found = tuple[np.ndarray, np.ndarray]
ExampleValues = Callable[[Mapping[str, object]], Found | None]
"""A record's row → which examples, and their values, both [examples]; None: they were not kept.

The row has the columns of ``lpe.records.KEY``, and its value.
"""

AGREEMENT = 1e-5
"""How far, relatively, a record's value may be from the mean of its examples' float32 values."""


class NotAvailable(Exception):
    """An error where the values of examples are not there; the message says of which row."""


@dataclass(frozen=True)
class Columns:
    """A statistic example by example.

    Args:
        examples: which, int64 [examples]. values: [examples, 1], or of a ratio [examples, 2]; averaged over
            the seeds that tested an example.
    """

    examples: np.ndarray
    values: np.ndarray


def columns_of(statistic: Statistic, record: pd.DataFrame, examples: ExampleValues) -> Columns:
    """Return a statistic example by example.

    Args:
        record: whose labels the statistic has.

    Raises:
        NotAvailable: the values of a row were not kept, are not those that the record's value is the mean of,
            or are of other examples than another row's of its seed.
    """
    which: list[np.ndarray] = []
    observed: list[np.ndarray] = []
    for place, seed in enumerate(statistic.seeds):
        labels = [[int(term.rows.iloc[place]) for term in terms] for terms in statistic.sums]
        found = {each: _values(each, record, examples) for part in labels for each in part if each != ZERO}
        if not found:
            raise NotAvailable("it compares nothing that is measured on examples")
        tested = next(iter(found.values()))[0]
        if not all(np.array_equal(each, tested) for each, _ in found.values()):
            raise NotAvailable(f"its rows of seed {seed} are of different examples")
        sums = np.zeros((len(tested), len(labels)))
        for column, (terms, of_terms) in enumerate(zip(statistic.sums, labels, strict=True)):
            for term, label in zip(terms, of_terms, strict=True):
                if label != ZERO:
                    sums[:, column] += float(term.weights.iloc[place]) * found[label][1]
        which.append(tested)
        observed.append(sums)
    every = np.concatenate(which)
    return Columns(np.unique(every), image_means(np.concatenate(observed), every))


def _values(label: int, record: pd.DataFrame, examples: ExampleValues) -> Found:
    if label == MISSING:
        raise NotAvailable("the record lacks a row")
    row = record.loc[label]
    named = " ".join(str(row[column]) for column in KEY[1:] if row[column] != "")
    found = examples({column: row[column] for column in (*KEY, "value")})
    if found is None:
        raise NotAvailable(f"the values of single examples were not kept ({named})")
    if not np.isclose(found[1].mean(), row["value"], rtol=AGREEMENT, atol=1e-7):
        raise NotAvailable(f"the values of single examples are of another run ({named})")
    return found
