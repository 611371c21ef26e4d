"""The values of each test example behind a record's rows, kept in a folder beside each working record.

A row of a record is a mean over test examples. Intervals over examples need the values that it is the mean
of: for each (substrate, point, method, number system, rounding, seed) an entry of :class:`lpe.store.Store`,
which is hashed, has

    examples            int64 [examples]: which they are. Two seeds that tested one image have its number.
    METRIC              float32 [sizes, examples]: averaged over draws as the record's value is
    METRIC, sizes       int64 [sizes]: members

They are written before the row, so that a row that is there has them; none is committed. A working record is
named by the key of its unit, and so is the folder beside it: what is measured under other settings lies
elsewhere. A figure's record does not have that key; among the values that are named as a row of it is, those
are the row's that it is the mean of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.store import Store

FOLDER = "examples"
"""Of a working folder."""
NAMED = ("scale", "substrate", "point", "method", "number_system", "rounding", "seed")
"""The columns of a record that name an entry."""


def keep(
    working: Path, row: Mapping[str, object], examples: Tensor, values: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Keep the values of each example of one method at one training seed.

    Args:
        working: the folder beside the working record. row: with the columns NAMED. examples: int64
            [examples]. values: by metric the sizes, int64 [sizes], and the values [sizes, examples].
    """
    tensors = {"examples": examples}
    for metric, (sizes, of_metric) in values.items():
        tensors |= {metric: of_metric.float(), f"{metric}, sizes": sizes}
    Store(working / FOLDER).put(_config(row), tensors)


def keep_again(working: Path, row: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Keep the values of the examples behind one row behind another as well, which is of the same ensembles.

    Args:
        working: see :func:`keep`. row, other: with the columns NAMED.

    Raises:
        InputError: there are none behind the first.
    """
    store = Store(working / FOLDER)
    entry = store.get(_config(row))
    if entry is None:
        raise InputError(f"no values of examples were kept of {_config(row)}; measure it first")
    store.put(_config(other), entry.tensors)


Found = tuple[np.ndarray, np.ndarray]


def place_of(record: Path) -> Path:
    """Return the folder beside a working record in which the values of its examples are kept."""
    return record.with_suffix("")


def finder(working: Path) -> Callable[[Mapping[str, object]], Found | None]:
    """Look once which values of examples there are.

    Args:
        working: the working folder: its records have folders beside them. What was kept before they had lies
            in the folder itself.

    Returns:
        A function: a row with the columns NAMED, metric, size and value → which examples, int64 [examples],
        and their values, float64 [examples]; None: they were not kept. Of several the nearest in the mean.
    """
    stores: dict[str, list[Store]] = {}
    for folder in [working / FOLDER, *sorted(working.glob(f"*/{FOLDER}"))]:
        store = Store(folder)
        for description in folder.glob("*.json"):
            stores.setdefault(description.stem, []).append(store)
    return functools.partial(_nearest, stores)


def _nearest(stores: Mapping[str, list[Store]], row: Mapping[str, object]) -> Found | None:
    config = _config(row)
    found = [_of_row(store, config, row) for store in stores.get(Store.key(config), [])]
    there = [each for each in found if each is not None]
    return min(there, key=lambda each: abs(each[1].mean() - float(str(row["value"]))), default=None)


def _of_row(store: Store, config: Mapping[str, object], row: Mapping[str, object]) -> Found | None:
    """Return which examples a store has of a row, and their values."""
    entry = store.get(config)
    if entry is None:
        # A damaged one: without it its record is not whole, and the next run measures it anew.
        store.discard(config)
    metric = str(row["metric"])
    if entry is None or metric not in entry.tensors:
        return None
    (place,) = torch.nonzero(entry.tensors[f"{metric}, sizes"] == int(str(row["size"])), as_tuple=True)
    if not len(place):
        return None
    return entry.tensors["examples"].numpy(), entry.tensors[metric][int(place[0])].double().numpy()


def _config(row: Mapping[str, object]) -> dict[str, object]:
    return {column: int(str(row[column])) if column == "seed" else str(row[column]) for column in NAMED}
