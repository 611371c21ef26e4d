"""Methods that are compared under shift and with abstention: their order, titles, marks and rows."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from lpe.errors import InputError
from lpe.records import COLUMNS, write_table
from reproduce.draw import page, panels
from reproduce.draw.panels import read_record
from reproduce.draw.style import (
    AUGMENTATION_STYLE,
    BIT_STYLES,
    BMA_STYLE,
    DROPOUT_STYLE,
    FAMILY_STYLES,
    FEEDBACK_STYLE,
    GAUSSIAN_STYLE,
    LAPLACE_STYLE,
    RTN_MARKER,
    SCALED_STYLE,
    SELECTED_MARKER,
    SINGLE_STYLE,
    SPREAD_STYLE,
    SWAG_STYLE,
    Mark,
)
from reproduce.draw.summaries import system_bits, system_title, training_seeds
from reproduce.draw.tables import mean_and_interval, plain_number
from reproduce.judge.intervals import student_interval
from reproduce.study.beyond.names import (
    AUGMENTATION,
    AUROC_INFORMATION,
    AUROC_PROBABILITY,
    BMA,
    CALIBRATED_THEN_POOLED,
    CLEAN,
    FEEDBACK,
    GAUSSIAN,
    LAPLACE,
    LPE_BSR,
    MC_DROPOUT,
    POOLED_THEN_CALIBRATED,
    RTN,
    SELECTED,
    TUNED_SPREAD,
    UNCORRUPTED,
    Method,
    corruption_of,
    examples_of,
)
from reproduce.study.beyond.predictions_unit import SETTING, files
from reproduce.study.beyond.scored import SCORED
from reproduce.study.measurements import measure_all
from reproduce.study.records import record_name, rows_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import PREDICTIONS, beyond_units
from reproduce.study.unrounded import NAMES, scaled

ORDER = (
    *NAMES,
    *map(scaled, NAMES),
    RTN,
    FEEDBACK,
    LPE_BSR,
    f"{LPE_BSR}{SELECTED}",
    TUNED_SPREAD,
    GAUSSIAN,
    f"{GAUSSIAN}{SELECTED}",
    MC_DROPOUT,
    AUGMENTATION,
    LAPLACE,
    BMA,
    *FAMILY_STYLES,
)
"""Methods as pictures and tables have them, one under the other."""
_MARKS: dict[str, Mark] = {
    **dict.fromkeys(NAMES, SINGLE_STYLE),
    **dict.fromkeys(map(scaled, NAMES), SCALED_STYLE),
    FEEDBACK: FEEDBACK_STYLE,
    TUNED_SPREAD: SPREAD_STYLE,
    GAUSSIAN: GAUSSIAN_STYLE,
    MC_DROPOUT: DROPOUT_STYLE,
    AUGMENTATION: AUGMENTATION_STYLE,
    LAPLACE: LAPLACE_STYLE,
    BMA: BMA_STYLE,
    **FAMILY_STYLES,
}


def shown_corrupted(chosen: Scale) -> str:
    """Say how many examples are shown corrupted; "" where none are."""
    shifts = None if chosen.beyond is None else chosen.beyond.shifts
    return "" if shifts is None else shifts.words


def title(method: Method) -> str:
    """Name a method: "LPE-BSR, INT-4, coupled", "SWAG, BMA"."""
    name = method.method
    if name == BMA:
        return f"{method.point}, {BMA}"
    if name == FEEDBACK:
        return f"{name}, {method.rounding}"
    if name in (GAUSSIAN, MC_DROPOUT):
        return f"{name}, tuned"
    base = name.removesuffix(SELECTED)
    if base not in (RTN, LPE_BSR):
        return name
    system = system_title(method.number_system).partition(",")[0]
    coupled = ", coupled" if method.rounding == "coupled" else ""
    return f"{base}, {system}{coupled}{name.removeprefix(base)}"


def mark(method: Method) -> Mark:
    """Return a method's colour and marker; grey and a dot of one that has none."""
    base = method.method.removesuffix(SELECTED)
    if base in (RTN, LPE_BSR):
        colour, marker = BIT_STYLES.get(system_bits(method.number_system), (panels.GREY, "."))
        marker = RTN_MARKER if base == RTN else marker
    elif base == BMA and method.point == "SWAG":
        colour, marker = SWAG_STYLE
    else:
        colour, marker = _MARKS.get(base, (panels.GREY, "."))
    if base == FEEDBACK and method.rounding == "nearest":
        marker = RTN_MARKER
    return colour, SELECTED_MARKER if base != method.method else marker


def line(method: Method) -> dict[str, Any]:
    """Return the style of a method's curve: as the cost picture has it, independent members are hollow."""
    colour, marker = mark(method)
    style: dict[str, Any] = {"color": colour, "marker": marker, "linewidth": 1.0, "markersize": 3.2}
    if method.method in map(scaled, NAMES):
        return {**style, "linestyle": ":"}
    if method.method in NAMES:
        return {**style, "linestyle": "--", "markersize": 5}
    if method.method == RTN:
        return {**style, "linestyle": "-."}
    if method.method == LPE_BSR and method.rounding == "bernoulli":
        return {**style, "markerfacecolor": "white", "linestyle": (0, (3, 1.5)), "zorder": 4}
    return {**style, "zorder": 3}


def in_curves(method: Method) -> bool:
    """Tell whether pictures have a curve of a method; the others are rows of panels and tables alone.

    Those are variations of one that is there: a pool's best, a base that is rounded otherwise.
    """
    name = method.method
    clipped = name == RTN and "-" in method.number_system
    return not (name.endswith(SELECTED) or name == FEEDBACK or clipped)


_METHOD = ["point", "method", "number_system", "rounding"]
_KEY = ["examples", *_METHOD, "size", "metric"]


@dataclass(frozen=True)
class Compared:
    """The record of a figure of shift or selective prediction, by the examples that are shown.

    Args:
        figure: its name. substrate: the network. record: long-form rows.

    Raises:
        InputError: no row of the network, or none of the unrounded one on clean examples.
    """

    figure: str
    substrate: str
    record: pd.DataFrame
    _table: pd.DataFrame = field(init=False, repr=False)
    _places: dict[tuple[object, ...], np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        examples = self.record["substrate"].map(lambda name: examples_of(self.substrate, name))
        table = self.record.assign(examples=examples)
        table = table[table["examples"].notna()].reset_index(drop=True)
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_places", table.groupby(_KEY).indices if len(table) else {})
        if not any(method.method in NAMES for method in self.methods):
            raise InputError(
                f"{record_name(self.figure)} has no rows of an unrounded network on {CLEAN} examples; run "
                f"python reproduce/{self.figure}.py without --plot-only"
            )

    @cached_property
    def methods(self) -> list[Method]:
        """All methods, in the pictures' order."""
        clean = self._table[(self._table["examples"] == CLEAN) & (self._table["metric"] == "nll")]
        found = [Method(*each) for each in clean[_METHOD].drop_duplicates().itertuples(index=False)]

        def place(method: Method) -> tuple[int, tuple[str, ...]]:
            known = method.method in ORDER
            rest = (method.point, method.number_system, method.rounding)
            return (ORDER.index(method.method) if known else len(ORDER), rest)

        return sorted(found, key=place)

    @cached_property
    def single(self) -> Method:
        """The unrounded network."""
        return next(method for method in self.methods if method.method in NAMES)

    @cached_property
    def corruptions(self) -> dict[str, dict[int, str]]:
        """The names of corrupted examples by kind and severity."""
        scored = self._table.loc[self._table["metric"] == "nll", "examples"].drop_duplicates()
        kinds: dict[str, dict[int, str]] = {}
        for name in sorted(scored):
            if name not in (CLEAN, UNCORRUPTED):
                kind, severity = corruption_of(name)
                kinds.setdefault(kind, {})[severity] = name
        return kinds

    @cached_property
    def foreign(self) -> list[str]:
        """The names of the examples that have no class."""
        told = self._table.loc[self._table["metric"] == AUROC_PROBABILITY, "examples"]
        return sorted(told.unique())

    @cached_property
    def seeds(self) -> int:
        """The number of training seeds of the unrounded network."""
        return self.seeds_of(self.single)

    def seeds_of(self, method: Method) -> int:
        """Return the number of training seeds of a method, which may be fewer than the network's."""
        return len(self.values(method, "nll"))

    def size(self, method: Method) -> int:
        """Return the members of a method's ensemble: its largest size."""
        return self._sizes[_fields(method)]

    @cached_property
    def _sizes(self) -> dict[tuple[str, ...], int]:
        clean = self._table[(self._table["examples"] == CLEAN) & (self._table["metric"] == "nll")]
        largest = clean.groupby(_METHOD)["size"].max()
        return {tuple(map(str, key)): int(size) for key, size in largest.items()}  # type: ignore[call-overload]

    def values(
        self, method: Method, metric: str, examples: str = CLEAN, size: int | None = None
    ) -> pd.Series:
        """Return a metric's values, indexed by training seed; empty where there are none.

        Args:
            size: members; None: all.
        """
        size = self.size(method) if size is None else size
        place = self._places.get((examples, *_fields(method), size, metric))
        rows = self._table.iloc[[] if place is None else place]
        return rows.set_index("seed")["value"].sort_index()

    def mean_over_kinds(self, method: Method, metric: str, severity: int) -> pd.Series:
        """Return a metric's mean over kinds of corruption, by training seed; severity 0: as they are."""
        if not severity:
            return self.values(method, metric, UNCORRUPTED)
        names = [of_kind[severity] for of_kind in self.corruptions.values() if severity in of_kind]
        columns = [self.values(method, metric, name) for name in names]
        return pd.concat(columns, axis=1).dropna().mean(axis=1) if columns else pd.Series(dtype=float)


def _fields(method: Method) -> tuple[str, ...]:
    return method.point, method.method, method.number_system, method.rounding


def read_compared(folder: Path, figure: str, chosen: Scale) -> Compared:
    """Read the record of a figure in a folder.

    Raises:
        InputError: there is none, or it lacks the unrounded network.
    """
    return Compared(figure, chosen.substrate, read_record(folder / record_name(figure), COLUMNS))


def paired(values: pd.Series, reference: pd.Series) -> tuple[float, float, float]:
    """Return the mean of the paired difference, over the seeds of both, and its 95 % interval.

    The interval is NaN with one seed, all are with none.
    """
    difference = (values - reference).dropna().to_numpy(float)
    if not len(difference):
        return (float("nan"),) * 3
    return float(difference.mean()), *student_interval(difference)


def level(values: pd.Series, reference: pd.Series) -> float:
    """Return the mean of a method's values at the seeds of a reference, which may be more than its own.

    That is the reference's mean and the mean paired difference: seeds differ by more than methods do, so that
    the mean over fewer of them is of other networks. Without a shared seed it is the mean of the values.
    """
    difference = (values - reference).dropna()
    return float(reference.mean() + difference.mean()) if len(difference) else float(values.mean())


def mean_cell(values: pd.Series, digits: int = 4) -> str | None:
    """Return the mean over seeds as a table's cell; None without values."""
    return plain_number(float(values.mean()), digits) if len(values) else None


def interval_cell(values: pd.Series, digits: int = 4) -> str | None:
    """Return the mean and its interval over seeds as a table's cell; None without values."""
    return mean_and_interval(values.to_numpy(float), digits) if len(values) else None


def setting_cell(compared: Compared, method: Method) -> str | None:
    """Return what a method was tuned to, over the seeds, as a table's cell; None of one that is not tuned."""
    values = compared.values(method, SETTING)
    return ", ".join(f"{value:g}" for value in sorted(values.unique())) or None


def difference_cell(values: pd.Series, reference: pd.Series, digits: int = 4) -> str | None:
    """Return the paired difference and its interval as a table's cell; None where no seed is shared."""
    return interval_cell((values - reference).dropna(), digits)


def row_of(place: SubplotSpec, count: int, sharey: bool = False) -> list[Axes]:
    """Return panels side by side in a place of a figure's grid."""
    return list(place.subgridspec(1, count).subplots(sharey=sharey, squeeze=False)[0])


def explain(figure: Figure, compared: Compared, axes: Sequence[Axes], further: str = "") -> None:
    """Draw the legend under a figure, with a line on its seeds, on a sentence, and on what is not drawn."""
    hidden = [title(method) for method in compared.methods if not in_curves(method)]
    said = [f"mean over {training_seeds(compared.seeds)}", further]
    fewer = [
        f"{title(method)} ({compared.seeds_of(method)})"
        for method in compared.methods
        if compared.seeds_of(method) < compared.seeds
    ]
    said += (
        [f"of fewer seeds, beside {compared.single.method} at these: {' / '.join(fewer)}"] if fewer else []
    )
    said += [f"without a curve: {' / '.join(hidden)}"] if hidden else []
    text = "; ".join(filter(None, said))
    wrapped = textwrap.fill(text, int(17 * page.width()), break_on_hyphens=False)
    panels.legend_below(figure, axes, title=wrapped)


OF_PREFIXES = (
    *SCORED,
    AUROC_PROBABILITY,
    AUROC_INFORMATION,
    CALIBRATED_THEN_POOLED,
    POOLED_THEN_CALIBRATED,
)


def of_fewer_members(rows: pd.DataFrame) -> pd.Series:
    """Tell which rows are metrics of a method's first members where there are those of all of them.

    No picture shows them, and they would double a record.
    """
    largest = rows.groupby(_METHOD)["size"].transform("max")
    return rows["metric"].isin(OF_PREFIXES) & (rows["size"] < largest)


def compute_compared(
    session: Session, figure: str, keep: Callable[[pd.DataFrame], pd.Series]
) -> dict[str, object]:
    """Train, predict and score; write a figure's record.

    Args:
        keep: the rows of the units → which of them the figure is drawn from.

    Returns:
        For the provenance, the files of predictions behind it, by unit.
    """
    wanted = beyond_units(session.scale, PREDICTIONS, session.seeds)
    measure_all(session, wanted)
    rows = rows_of(session, wanted)
    rows = rows[keep(rows) & ~of_fewer_members(rows)]
    session.tracker.log_table("record", rows)
    write_table(rows, session.out / record_name(figure), COLUMNS)
    return {"predictions": files(session, wanted)}
