"""The cost picture's verdicts as text: levels with intervals, the Pareto front, gains and shares of gains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lpe.ensembles.base import text_table
from lpe.errors import InputError
from reproduce.draw.summaries import FP32, SCALED, system_bits
from reproduce.draw.tables import plain_number
from reproduce.judge.intervals import deciding_interval, fieller_interval, student_interval
from reproduce.judge.statistics import bits_as_planes
from reproduce.study import cost_times
from reproduce.study.cost_measures import HEADLINE, SHARE, cascade_name
from reproduce.study.records import MEGABIT

METRICS = ("nll", "calibrated_nll")
KINDS = {"bernoulli": "independent", "coupled": "coupled"}


@dataclass(frozen=True)
class Picture:
    """The subject, sizes and labels of a cost picture.

    Args:
        substrate, larger: of the model, and of the next larger single one, if there is one.
        bits: of LPE-BSR. size: its members. names: what the model, or both, are called.
        unit: of the intervals: a column of the record, and what it holds in words.
        example: what a nat is per. stem: its files' names begin with it.
    """

    substrate: str
    larger: str | None
    bits: tuple[int, ...]
    size: int
    names: tuple[str, ...]
    unit: tuple[str, str] = ("seed", "training seeds")
    example: str = "image"
    stem: str = "cost"


KEY = ["substrate", "method", "number_system", "rounding", "size"]


def _rows(table: pd.DataFrame) -> Iterable[Any]:
    """Yield a table's rows, with the columns as attributes."""
    return table.itertuples(index=False)


@dataclass(frozen=True)
class Series:
    """A record's values by unit, looked up by what was measured."""

    record: pd.DataFrame
    picture: Picture
    _by_key: dict[tuple[Any, ...], pd.DataFrame] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        unit = self.picture.unit[0]
        by_key = {
            key: rows.set_index(unit)[["value", "memory_bits"]].sort_index()
            for key, rows in self.record.groupby([*KEY, "metric"], sort=False)
        }
        object.__setattr__(self, "_by_key", by_key)

    def keys(self) -> list[tuple[Any, ...]]:
        """List what was measured, in the record's order: the values of KEY."""
        return list(dict.fromkeys(key[:-1] for key in self._by_key))

    def rows(self, key: tuple[Any, ...], metric: str = "nll") -> pd.DataFrame:
        """Return the columns value and memory_bits of a metric, indexed by unit.

        Raises:
            InputError: the record has none.
        """
        if (*key, metric) not in self._by_key:
            named = ", ".join(str(part) for part in (*key, metric) if part != "")
            record = f"{self.picture.stem}.csv"
            raise InputError(f"{record} has no rows: {named}; run reproduce/cost.py without --plot-only")
        return self._by_key[*key, metric]

    def values(
        self,
        method: str,
        number_system: str = "fp32",
        rounding: str = "",
        size: int = 1,
        metric: str = "nll",
        substrate: str | None = None,
    ) -> pd.Series:
        """Return the values of a metric, indexed by unit."""
        key = (substrate or self.picture.substrate, method, number_system, rounding, size)
        return self.rows(key, metric)["value"]


def levels(series: Series, times: pd.DataFrame) -> pd.DataFrame:
    """Return a line a method and size: its metrics with intervals, and what it costs.

    A metric's level is FP32's mean plus the mean paired difference to FP32, over the units that both have, so
    that methods that were measured at fewer units can be compared; the interval is the difference's.

    Returns:
        [points, (KEY, METRICS each with _low and _high, networks, memory_bits, planes_bits, generator_bits,
        ms, ms_kept)]: ms with members made for a batch, ms_kept with members kept; NaN where there is no
        time. planes_bits: with LPE-BSR's members stored as planes, whatever else there is as it is.
    """
    taken = times.groupby([*KEY, "members"])["ms_per_example"].mean().to_dict()
    lines = []
    for key in series.keys():
        line: dict[str, object] = dict(zip(KEY, key, strict=True))
        for metric in METRICS:
            single = series.values(FP32, metric=metric)
            differences = (series.rows(key, metric)["value"] - single).dropna().to_numpy()
            low, high = student_interval(differences)
            base = float(single.mean())
            line |= {
                metric: base + float(differences.mean()),
                f"{metric}_low": base + low,
                f"{metric}_high": base + high,
            }
        line["networks"] = float(series.rows(key, "members_per_example")["value"].mean())
        line["generator_bits"] = float(series.rows(key, "generator_bits")["value"].mean())
        line["memory_bits"] = float(series.rows(key)["memory_bits"].mean())
        # A temperature costs no time, and DE's first member is the single model.
        alone = key[1] == SCALED or (key[1] == "DE" and key[4] == 1)
        timed = (key[0], FP32, *key[2:]) if alone else key
        line["ms_kept"] = float(taken.get((*timed, cost_times.KEPT), np.nan))
        line["ms"] = float(taken.get((*timed, cost_times.MADE), line["ms_kept"]))
        lines.append(line)
    table = pd.DataFrame(lines)
    table["planes_bits"] = table["memory_bits"] + _saved_by_planes(table)
    return table


def _saved_by_planes(at: pd.DataFrame) -> pd.Series:
    """Return what a line's LPE-BSR members take less where they are planes, in bits, below 0; 0 of others.

    NaN where the record does not tell one member from several.
    """
    of_members = ["substrate", "number_system", "rounding", "size"]
    saved: dict[tuple[Any, ...], float] = {}
    for (substrate, system, rounding), rows in at[at["method"] == "LPE-BSR"].groupby(of_members[:3]):
        by_size = rows.set_index("size")
        largest = by_size.index.max()
        if 1 not in by_size.index or largest == 1:
            continue
        one = by_size.loc[1]
        memory, drawn = (
            (by_size.loc[largest, column] - one[column]) / (largest - 1)
            for column in ("memory_bits", "generator_bits")
        )
        for size, stored in by_size["memory_bits"].items():
            planes = bits_as_planes(one["memory_bits"], memory, size, system_bits(str(system)), drawn)
            saved[substrate, system, rounding, size] = planes - stored
    has_members = (at["method"] == "LPE-BSR") | at["method"].str.startswith("cascade")
    has_members &= at["number_system"] != FP32.lower()
    keys = at[of_members].itertuples(index=False, name=None)
    return pd.Series(
        [saved.get(key, np.nan) if low else 0.0 for key, low in zip(keys, has_members, strict=True)]
    )


def front(costs: np.ndarray, values: np.ndarray) -> list[int]:
    """Find the Pareto front: places of the points that no other equals or undercuts in both, by cost."""
    found: list[int] = []
    for place in sorted(range(len(costs)), key=lambda i: (costs[i], values[i])):
        if np.isfinite(costs[place]) and (not found or values[place] < values[found[-1]]):
            found.append(place)
    return found


def share_of_gain(gained: np.ndarray, whole: np.ndarray) -> tuple[float, float, float]:
    """Return the ratio of two mean gains and its 95 % interval, by Fieller's theorem.

    Args:
        gained, whole: paired, one a unit [n].

    Returns:
        share, low, high; limits are NaN with one unit, where the whole gain's own interval holds 0 (there is
        then no gain to have a share of), and where the units have no spread.
    """
    low, high = fieller_interval(gained, whole)
    limits = (low, high) if np.isfinite(low) else (np.nan, np.nan)
    return float(gained.mean() / whole.mean()), *limits


def gain_word(low: float, high: float) -> str:
    """Say in a word what an interval of a gain means."""
    if np.isnan(low):
        return "no interval from one"
    if np.isinf(low):
        return "no spread to tell it by"
    return "a gain" if low > 0 else "a loss" if high < 0 else "no gain told from 0"


def _with_interval(values: np.ndarray, digits: int, unit: str = "") -> str:
    low, high = deciding_interval(values)
    limits = "" if not np.isfinite(low) else f" [{plain_number(low, digits)}, {plain_number(high, digits)}]"
    return f"{plain_number(float(values.mean()), digits)}{unit}{limits}"


def system_name(number_system: str) -> str:
    """Return the name for readers, such as "INT-5" of "int5"."""
    return number_system.upper().replace("INT", "INT-")


def gain_lines(series: Series, at: pd.DataFrame) -> list[str]:
    """Say what each method, at its largest size, gains over FP32 and over RTN, and at what cost."""
    picture = series.picture
    base = at[(at["substrate"] == picture.substrate) & (at["method"] == FP32)].iloc[0]
    lines = [f"gain over FP32 in nats, 95 % intervals over {picture.unit[1]}; cost as a multiple of FP32's:"]
    for row in _rows(at):
        same = (at["method"] == row.method) & (at["number_system"] == row.number_system)
        largest = at[same & (at["rounding"] == row.rounding)]["size"].max()
        is_base = row.method == FP32 and row.substrate == picture.substrate
        if row.method.startswith("cascade") or row.size != largest or is_base:
            continue
        key = (row.number_system, row.rounding, row.size)
        parts = []
        for metric, named in zip(METRICS, ("NLL", "calibrated NLL"), strict=True):
            mine = series.values(row.method, *key, metric=metric, substrate=row.substrate)
            gain = (series.values(FP32, metric=metric) - mine).dropna().to_numpy()
            parts.append(f"{named} {_with_interval(gain, 4)}: {gain_word(*deciding_interval(gain))}")
            if row.method == "LPE-BSR" and metric == "nll":
                over = (series.values("RTN", row.number_system, "nearest") - mine).dropna().to_numpy()
                parts.append(f"over RTN {_with_interval(over, 4)}: {gain_word(*deciding_interval(over))}")
        lines.append(
            f"  {_label(row, picture)}: {'; '.join(parts)}; {row.ms / base.ms:.3g} × ms, "
            f"{row.memory_bits / base.memory_bits:.3g} × bits (n = {len(gain)})"
        )
    return lines


def _label(row: Any, picture: Picture) -> str:
    name = picture.names[row.substrate == picture.larger]
    if row.method in (FP32, SCALED):
        return row.method.replace(FP32, f"{name} {FP32}")
    if row.method == "DE":
        return f"DE of {row.size}"
    if row.method == "RTN":
        return f"RTN, {system_name(row.number_system)}"
    members = f"{row.size} {KINDS.get(row.rounding, 'models')}"
    system = "" if row.number_system == "fp32" else f", {system_name(row.number_system)}"
    return f"{row.method}{system}, {members}"


@dataclass(frozen=True)
class CascadeFamily:
    """Cascades that differ in their window alone.

    Args:
        first: what predicts first. number_system, rounding, size: of the members.
        whole: size of the ensemble whose gain is shared in.
    """

    first: str
    number_system: str
    rounding: str
    size: int
    whole: int

    def title(self) -> str:
        """Return the family's name for readers, such as "cascade from RTN to 20 coupled members, INT-4"."""
        if self.first == "DE":
            return f"cascade from the first to all {self.size} members of DE"
        kind = f"{self.size} {self.rounding} members, {system_name(self.number_system)}"
        return f"cascade from {self.first} to {kind}"


def cascade_families(at: pd.DataFrame) -> list[CascadeFamily]:
    """Return the cascades of a table of levels."""
    cascades = at[at["method"].str.startswith("cascade from ")]
    found: dict[CascadeFamily, None] = {}
    for row in _rows(cascades):
        first = row.method.removeprefix("cascade from ").partition(":")[0]
        whole = cascades[
            (cascades["number_system"] == row.number_system) & (cascades["method"] == row.method)
        ]["size"].max()
        family = CascadeFamily(first, row.number_system, row.rounding, row.size, int(whole))
        found[family] = None
    return list(found)


def cascade_lines(series: Series, at: pd.DataFrame, times: pd.DataFrame) -> list[str]:
    """Say what each cascade costs, and its share of the ensemble's gain over the first stage."""
    lines = [
        f"cascades; windows tuned on validation examples for {HEADLINE} of all members over the first stage:"
    ]
    for family in cascade_families(at):
        lines += [f"  {line}" for line in _family_lines(series, at, times, family)]
    return lines


def _family_lines(series: Series, at: pd.DataFrame, times: pd.DataFrame, family: CascadeFamily) -> list[str]:
    key = (family.number_system, family.rounding, family.size)
    whole = {metric: _whole_gain(series, family, metric) for metric in METRICS}
    gained = whole["nll"].to_numpy()
    word = gain_word(*deciding_interval(gained))
    gain = f"all {family.whole} members gain {_with_interval(gained, 4)}: {word} (n = {len(gained)})"
    if gained.mean() <= 0:
        return [f"{family.title()}: {gain}; nothing to have a share of"]
    texts = []
    tuned = cascade_name(family.first, HEADLINE)
    for metric, named in zip(METRICS, ("of it", "of the calibrated NLL's"), strict=True):
        if metric == "nll" or deciding_interval(whole[metric].to_numpy())[0] > 0:
            share, low, high = _share(series, family, tuned, whole, metric)
            texts.append(f"{_percent(share, low, high)} {named}")
    networks = series.values(tuned, *key, "members_per_example").to_numpy()
    texts.append(f"{_with_interval(networks, 2)} networks an example")
    texts.append(_milliseconds(times, tuned, family, series.picture))
    lines = [f"{family.title()}: {gain}; tuned for {100 * SHARE:g} %: {', '.join(texts)}"]
    # All cascades, by what they cost.
    rows = sorted(_rows(_of_family(at, family)), key=lambda row: row.networks)
    shares = [_share(series, family, row.method, whole, "nll") for row in rows]
    curve = [(row, share) for row, share in zip(rows, shares, strict=True) if row.method != tuned]
    if curve:
        shown = ", ".join(f"{_percent(*share)} with {row.networks:.2f}" for row, share in curve)
        points = [(row.networks, share[0]) for row, share in zip(rows, shares, strict=True)]
        first, lasting = crossings([(1.0, 0.0), *points, (_all_networks(family), 1.0)], SHARE)
        lines.append(
            f"    least confident first, share of the gain on test examples: {shown} networks an example; "
            f"{100 * SHARE:g} % first with {first:.2f}, {_time_at(first, at, family)}"
            + ("" if first == lasting else f"; and no less from {lasting:.2f} on")
        )
    return lines


def _all_networks(family: CascadeFamily) -> float:
    """Return how many networks an example takes where every example goes on."""
    return family.size + (family.first != "DE")


def _time_at(networks: float, at: pd.DataFrame, family: CascadeFamily) -> str:
    """Return milliseconds per example at so many networks, between the cascades that were timed."""
    texts = []
    for column, how in (("ms", "made"), ("ms_kept", "kept")):
        if family.first == "DE" and how == "made":
            continue
        curve = _timed_curve(at, family, column)
        if np.isfinite(curve[:, 1]).all():
            texts.append(f"{np.interp(networks, *curve.T):.3g} ms {how} (all members: {curve[-1, 1]:.3g})")
    return " or ".join(texts) or "no time"


def _timed_curve(at: pd.DataFrame, family: CascadeFamily, column: str) -> np.ndarray:
    """Return (networks an example, milliseconds) [points, 2] of first stage, cascades and everything."""
    if family.first == "DE":
        first, whole = at[(at["method"] == "DE") & (at["size"] == 1)], at[at["method"] == "DE"]
    else:
        system = "fp32" if family.first == FP32 else family.number_system
        first = at[(at["method"] == family.first) & (at["number_system"] == system)]
        whole = at[(at["method"] == "LPE-BSR") & (at["number_system"] == family.number_system)]
        whole = whole[whole["rounding"] == family.rounding]
    before = float(first[column].iloc[0])
    alone = float(whole[whole["size"] == family.size][column].iloc[0])
    last = alone if family.first == "DE" else before + alone
    between = [(row.networks, getattr(row, column)) for row in _rows(_of_family(at, family))]
    return np.array([(1.0, before), *sorted(between), (_all_networks(family), last)])


def _of_family(at: pd.DataFrame, family: CascadeFamily) -> pd.DataFrame:
    """Return the cascades of a family."""
    rows = at[(at["number_system"] == family.number_system) & (at["size"] == family.size)]
    return rows[rows["method"].str.startswith(f"cascade from {family.first}: ")]


def crossings(points: Sequence[tuple[float, float]], level: float) -> tuple[float, float]:
    """Return where a polygon first reaches a level, and from where on it stays at or above it.

    Args:
        points: (x, y) by increasing x, the first below the level and the last at or above it.
    """
    found = [
        x0 + (x1 - x0) * (level - y0) / (y1 - y0)
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False)
        if y0 < level <= y1
    ]
    return found[0], found[-1]


def _alone(series: Series, family: CascadeFamily, metric: str) -> pd.Series:
    """Return the first stage's values."""
    if family.first == "RTN":
        return series.values("RTN", family.number_system, "nearest", metric=metric)
    return series.values(family.first, metric=metric)


def _whole_gain(series: Series, family: CascadeFamily, metric: str) -> pd.Series:
    """Return what the whole ensemble gains over the first stage."""
    method = "DE" if family.first == "DE" else "LPE-BSR"
    key = (family.number_system, family.rounding, family.whole, metric)
    return (_alone(series, family, metric) - series.values(method, *key)).dropna()


def _share(
    series: Series, family: CascadeFamily, method: str, whole: dict[str, pd.Series], metric: str
) -> tuple[float, float, float]:
    mine = series.values(method, family.number_system, family.rounding, family.size, metric)
    gained = (_alone(series, family, metric) - mine)[whole[metric].index]
    return share_of_gain(gained.to_numpy(), whole[metric].to_numpy())


def _percent(share: float, low: float, high: float) -> str:
    limits = "" if np.isnan(low) else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{100 * share:.0f}{limits} %"


def _milliseconds(times: pd.DataFrame, method: str, family: CascadeFamily, picture: Picture) -> str:
    mine = times[
        (times["substrate"] == picture.substrate)
        & (times["method"] == method)
        & (times["number_system"] == family.number_system)
        & (times["size"] == family.size)
    ]
    texts = []
    for how, named in ((cost_times.MADE, "members made"), (cost_times.KEPT, "kept")):
        taken = mine[mine["members"] == how]["ms_per_example"].to_numpy()
        if len(taken):
            texts.append(f"{_with_interval(taken, 3)} ms {named}")
    return " or ".join(texts)


def table_lines(at: pd.DataFrame, picture: Picture) -> list[str]:
    """Return the points of the picture as rows of text, LPE-BSR at some sizes."""
    rows = []
    for row in _rows(at):
        tuned_otherwise = row.method.startswith("cascade") and not row.method.endswith(f": {HEADLINE}")
        if tuned_otherwise or (row.method == "LPE-BSR" and row.size not in (1, 2, 5, 10, picture.size)):
            continue
        cells = []
        for metric in METRICS:
            level, low, high = (getattr(row, name) for name in (metric, f"{metric}_low", f"{metric}_high"))
            limits = (
                "" if np.isnan(low) or low == high else f" [{plain_number(low, 4)}, {plain_number(high, 4)}]"
            )
            cells.append(plain_number(level, 4) + limits)
        costs = (row.ms, row.ms_kept, row.memory_bits / MEGABIT, row.generator_bits / MEGABIT)
        rows.append((_label(row, picture), *cells, f"{row.networks:.2f}", *(f"{cost:.3g}" for cost in costs)))
    header = (
        "method",
        "NLL (nats)",
        "calibrated NLL",
        "networks an example",
        "ms made",
        "ms kept",
        "Mbit stored",
        "Mbit drawn from",
    )
    title = f"{picture.substrate}; in brackets 95 % intervals of the paired difference to FP32"
    return text_table(title, header, rows).splitlines()
