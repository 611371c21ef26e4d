"""The records of a scale: their names, and rows chosen from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lpe.errors import InputError
from lpe.records import COLUMNS, Records
from reproduce.study.costs import check_unaltered
from reproduce.study.session import Session
from reproduce.study.units import Unit
from reproduce.study.unrounded import every_name

WITH_TABLES = ("why", "shift", "selective")
"""Figures beside which there is a table of their name."""


def record_name(figure: str) -> str:
    """Return the record's file that a figure or table is drawn from: a table's own name is the table's."""
    is_table = figure.startswith("table") or figure in WITH_TABLES
    return f"{figure}_record.csv" if is_table else f"{figure}.csv"


OTHER_TABLES = ("fig1.csv",)
"""Records of figures that hold no rows: Figure 1's is a table of points."""


def checked_rows(record: Path, scale_name: str) -> pd.DataFrame:
    """Read the rows of a figure's or table's record, for whoever draws or judges them.

    Returns:
        The rows [rows, COLUMNS].

    Raises:
        InputError: the record cannot be read or is damaged, has no rows, or rows of another scale.
    """
    rows = Records(record).select()
    if rows.empty:
        raise InputError(f"{record} has no rows; run without --plot-only, or remove it")
    foreign = rows[rows["scale"] != scale_name]["scale"]
    if len(foreign):
        raise InputError(f"{record.name} has rows of scale {foreign.iloc[0]!r}; {scale_name!r} is expected")
    return rows


DISAGREEMENT = "disagreement"
STD_OVER_FORGETTING = "std_over_forgetting"
"""The metric of a posterior: its median std over the one that the optimiser's start alone would have left."""
EQUAL_BITS = (
    (2, 4, "int8", "members stored one by one"),
    (4, 4, "bf16", "members stored one by one"),
    (3, 5, "bf16", "members stored one by one"),
    (12, 4, "bf16", "members stored as planes, b + M bits a weight"),
    (11, 5, "bf16", "members stored as planes, b + M bits a weight"),
)
"""C13's comparisons: members, their bits, the one network's number system, and how members are stored."""
STORED_BITS = (8, 4)
"""Widths at which the members of a family are also stored, each rounded to nearest."""
SETTING = "setting"
"""The metric of a tuned method that is what it was tuned to."""
BETTER_THAN_RTN = "better_than_rtn"
"""The metric that is the share of an ensemble's members whose NLL is below RTN's."""


def by_rtn(family: str) -> str:
    """Name a family whose members are stored in few bits, each rounded to nearest."""
    return f"{family} by RTN"


def rows_of(session: Session, wanted: Iterable[Unit]) -> pd.DataFrame:
    """Return the rows of these units, which have been measured, in the record's order.

    Raises:
        InputError: a working record is not as its measuring left it.
    """
    records = [session.records[unit] for unit in wanted]
    for record in records:
        check_unaltered(record)
    tables = [Records(record).select() for record in records]
    table = pd.concat([t for t in tables if len(t)], ignore_index=True)
    return table.sort_values(list(COLUMNS[:9]), ignore_index=True)


def log_sizes(session: Session, rows: pd.DataFrame) -> None:
    """Mirror a record in W&B: the table itself, and each metric against ensemble size, mean over seeds."""
    session.tracker.log_table("record", rows)
    names = ["substrate", "point", "method", "number_system", "metric"]
    for size, here in rows.groupby("size"):
        means = here.groupby(names)["value"].mean()
        values = {"/".join(map(str, name)): float(value) for name, value in means.items()}  # type: ignore[call-overload]
        session.tracker.log({"size": float(str(size)), **values})


def selected(
    session: Session,
    wanted: Iterable[Unit],
    every_size: Collection[str] = ("nll",),
    methods: Collection[str] | None = None,
) -> pd.DataFrame:
    """Return the rows of these units that a figure is drawn from, of some methods or all; mirrored in W&B.

    The metrics of ``every_size`` at every size, the others where all metrics are reported: enough for the
    curves and the tables, and a tenth of the file.
    """
    rows = rows_of(session, wanted)
    if methods is not None:
        rows = rows[rows["method"].isin(every_name(methods))]
    sized = rows[rows["metric"] == "ambiguity"][["substrate", "point", "method", "number_system", "size"]]
    reported = set(sized.drop_duplicates().itertuples(index=False, name=None))
    keys = rows[list(sized.columns)].itertuples(index=False, name=None)
    always = rows["metric"].isin([*every_size, DISAGREEMENT, "file_bytes"]) | (rows["size"] == 1)
    kept = rows[always | np.fromiter((key in reported for key in keys), bool, len(rows))]
    log_sizes(session, kept)
    return kept


MEGABIT = 1e6
