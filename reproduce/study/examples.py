"""The values of each test example behind a record's rows, kept in the working folder beside it.

A row of a record is a mean over test examples. Intervals over examples need the values that it is the mean
of: for each (substrate, point, method, number system, rounding, seed) an entry of :class:`lpe.store.Store`,
which is hashed, has

    examples            int64 [examples]: which they are. Two seeds that tested one image have its number.
    METRIC              float32 [sizes, examples]: averaged over draws as the record's value is
    METRIC, sizes       int64 [sizes]: members

They are written before the row, so that a row that is there has them; none is committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
        working: the working folder. row: with the columns NAMED. examples: int64 [examples]. values: by
            metric the sizes, int64 [sizes], and the values [sizes, examples].
    """
    tensors = {"examples": examples}
    for metric, (sizes, of_metric) in values.items():
        tensors |= {metric: of_metric.float(), f"{metric}, sizes": sizes}
    Store(working / FOLDER).put(_config(row), tensors)


def find(working: Path, row: Mapping[str, object]) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the values of each example behind a row of a record.

    Args:
        row: with the columns NAMED, metric and size.

    Returns:
        Which examples, int64 [examples], and their values, float64 [examples]; None: they were not kept.
    """
    entry = Store(working / FOLDER).get(_config(row))
    metric = str(row["metric"])
    if entry is None or metric not in entry.tensors:
        return None
    (place,) = torch.nonzero(entry.tensors[f"{metric}, sizes"] == int(str(row["size"])), as_tuple=True)
    if not len(place):
        return None
    return entry.tensors["examples"].numpy(), entry.tensors[metric][int(place[0])].double().numpy()


def _config(row: Mapping[str, object]) -> dict[str, object]:
    return {column: int(str(row[column])) if column == "seed" else str(row[column]) for column in NAMED}
