"""Statistics of a record, each a weighted sum of its values, or a ratio of two.

A statistic is what a function of the record returns: which rows, with which weights, one a training seed.
The values are looked up afterwards. So one statistic is judged on the record's values, on those of each test
example behind them, and on those of the unrounded network in LPE-BSR's place.

Every statistic is paired: each training seed gives one value, from rows of that seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd

from lpe.errors import InputError
from reproduce.judge.intervals import student_interval
from reproduce.study.records import SETTING, STD_OVER_FORGETTING
from reproduce.study.unrounded import PARAMETERS, other_names, own_names, parameters

NO_NETWORKS = "no rows of figure 7: this scale names none of its models"

LEARNT = 0.1


class NotRun(Exception):
    """An error where the record lacks what a claim needs; the message says what."""


@dataclass(frozen=True)
class Rows:
    """A choice of the record's rows: one method at one point of one substrate, one metric.

    Args:
        rounding: None: any. size: None: every size.
    """

    substrate: str
    point: str
    method: str
    number_system: str
    rounding: str | None = None
    size: int | None = None
    metric: str = "nll"

    def __str__(self) -> str:
        size = "" if self.size is None else f", size {self.size}"
        return (
            f"{self.metric} of {self.method}, {self.number_system}{size}, at {self.point} of {self.substrate}"
        )

    def at(self, size: int) -> Rows:
        """Return the same choice at one size."""
        return replace(self, size=size)

    def table(self, record: pd.DataFrame) -> pd.DataFrame:
        """Return the rows, indexed by training seed, by increasing size; ``row`` is the record's label.

        Raises:
            NotRun: there are none. InputError: a seed has two of one size.
        """
        mask = self._mask(record)
        if not mask.any():  # a network that is not in float32 has names of its own
            names = own_names(other_names(record), self.substrate, self.method, self.number_system)
            mask = replace(self, method=names[0], number_system=names[1])._mask(record)
        found = record[mask].sort_values(["seed", "size"])
        if found.empty:
            raise NotRun(f"no rows: {self}")
        twice = found[found.duplicated(["seed", "size"])]
        if len(twice):
            raise InputError(
                f"{self}: two rows of seed {twice['seed'].iloc[0]}; one is expected, take out the other"
            )
        return found.assign(row=found.index).set_index("seed")

    def _mask(self, record: pd.DataFrame) -> pd.Series:
        mask = pd.Series(True, index=record.index)
        for column in ("substrate", "point", "method", "number_system", "rounding", "size", "metric"):
            if (wanted := getattr(self, column)) is not None:
                mask &= record[column] == wanted
        return mask

    def are_in(self, record: pd.DataFrame) -> bool:
        """Tell whether there are any such rows, under these very names."""
        return bool(self._mask(record).any())

    def values(self, record: pd.DataFrame) -> pd.Series:
        """Return the values, indexed by training seed."""
        return self.table(record)["value"]

    def labels(self, record: pd.DataFrame) -> pd.Series:
        """Return the record's labels of the rows, indexed by training seed."""
        return self.table(record)["row"]


@dataclass(frozen=True)
class Term:
    """A part of a weighted sum: a weight and a row of the record, one a training seed.

    Args:
        weights, rows: indexed by training seed; the rows by their labels in the record.
    """

    weights: pd.Series
    rows: pd.Series


Sum = tuple[Term, ...]


def value_of(terms: Sum, values: pd.Series) -> pd.Series:
    """Return a sum's value a training seed.

    Args:
        values: by the record's labels.
    """
    parts = [term.weights * values.loc[term.rows].set_axis(term.rows.index) for term in terms]
    return sum(parts[1:], parts[0])


@dataclass(frozen=True)
class Statistic:
    """A statistic of one record, before its values are looked up.

    Args:
        terms: the sum. over: of a ratio the denominator's sum, over the same seeds; else None.
        note: what is to be said of it.
    """

    terms: Sum
    over: Sum | None = None
    note: str = ""

    @property
    def seeds(self) -> pd.Index:
        """The training seeds."""
        return self.terms[0].rows.index

    @property
    def sums(self) -> tuple[Sum, ...]:
        """The numerator's sum, and the denominator's where there is one."""
        return (self.terms,) if self.over is None else (self.terms, self.over)

    def rows(self) -> list[int]:
        """List the labels of all its rows."""
        return [int(row) for terms in self.sums for term in terms for row in term.rows]

    def standing_in(self, stand_ins: pd.Series) -> Statistic:
        """Return the same statistic of other rows.

        Args:
            stand_ins: the label of the row in each one's place, by the record's labels.
        """

        def replaced(terms: Sum) -> Sum:
            return tuple(
                Term(term.weights, stand_ins.loc[term.rows].set_axis(term.rows.index)) for term in terms
            )

        return Statistic(replaced(self.terms), None if self.over is None else replaced(self.over), self.note)


StatisticOf = Callable[[pd.DataFrame], Statistic]
"""A record's statistic; it raises NotRun where the record lacks its rows."""


def aligned(*series: pd.Series) -> tuple[list[pd.Series], str]:
    """Return the series at the training seeds that all have, and a note on the others.

    Raises:
        NotRun: there is no such seed.
    """
    seeds = series[0].index
    every = series[0].index
    for other in series[1:]:
        seeds, every = seeds.intersection(other.index), every.union(other.index)
    if seeds.empty:
        raise NotRun("no training seed has all of its rows")
    left_out = [str(seed) for seed in every.difference(seeds)]
    note = f"without seed {', '.join(left_out)}: no rows of all it compares" if left_out else ""
    return [each.loc[seeds] for each in series], note


def notes(*several: str) -> str:
    """Join notes, those that are not empty."""
    return "; ".join(note for note in several if note)


def weighted(*parts: tuple[float | pd.Series, pd.Series]) -> Sum:
    """Return the sum of rows, each series of labels times a weight."""
    return tuple(
        Term(weight if isinstance(weight, pd.Series) else pd.Series(float(weight), index=rows.index), rows)
        for weight, rows in parts
    )


def difference(first: Rows, second: Rows, record: pd.DataFrame) -> Statistic:
    """Return first − second."""
    (a, b), note = aligned(first.labels(record), second.labels(record))
    return Statistic(weighted((1, a), (-1, b)), note=note)


def tuned_difference(low: Rows, rival: Rows, record: pd.DataFrame) -> Statistic:
    """Return low − rival; the note says what the rival was tuned to, where the record has it."""
    found = difference(low, rival, record)
    tuned = replace(rival, metric=SETTING, size=None)
    if not tuned.are_in(record):
        return found
    values = sorted(set(tuned.values(record)))
    said = f"tuned to {', '.join(f'{value:.3g}' for value in values)}"
    if values == [0]:
        said += ": this is LPE-BSR against the unrounded network"
    return replace(found, note=notes(said, found.note))


def ratio(first: Rows, second: Rows, record: pd.DataFrame) -> Statistic:
    """Return first / second."""
    (a, b), note = aligned(first.labels(record), second.labels(record))
    return Statistic(weighted((1, a)), weighted((1, b)), note)


def learnt_ratio(first: Rows, posterior: Rows, record: pd.DataFrame) -> Statistic:
    """Return first / posterior, where the posterior is learnt.

    Its std is then not what its start alone would have left (STD_OVER_FORGETTING, within LEARNT of 1), mean
    over training seeds. A record that does not say so is taken at its word.

    Raises:
        NotRun: the posterior was not learnt.
    """
    found = ratio(first, posterior, record)
    told = replace(posterior, metric=STD_OVER_FORGETTING, size=1)
    if told.are_in(record):
        left = float(told.values(record).mean())
        if abs(left - 1) < LEARNT:
            raise NotRun(f"the posterior is not learnt: its std is {left:.3g} of what its start alone leaves")
    return found


def share_of_gain(low: Rows, other: Rows, single: Rows, record: pd.DataFrame) -> Statistic:
    """Return (low − other) / (single − low): a difference, as a share of low's gain over the single model."""
    (a, b, alone), note = aligned(low.labels(record), other.labels(record), single.labels(record))
    return Statistic(weighted((1, a), (-1, b)), weighted((1, alone), (-1, a)), note)


def tuned_share(low: Rows, rival: Rows, single: Rows, record: pd.DataFrame) -> Statistic:
    """Return ``share_of_gain`` of two tuned methods; the note says what each was tuned to.

    Raises:
        NotRun: low is worse than the single model, surely or at the one seed there is: as a share of a loss
            a difference would be the smaller, the worse low is.
    """
    found = share_of_gain(low, rival, single, record)
    assert found.over is not None
    gains = value_of(found.over, record["value"]).to_numpy()
    if (student_interval(gains)[1] if len(gains) > 1 else gains[0]) < 0:
        raise NotRun(
            f"{low.method} is {-gains.mean():.3g} nats worse than {single.method}: no gain to take a share of"
        )
    said = []
    for rows in (low, rival):
        tuned = replace(rows, metric=SETTING)
        if tuned.are_in(record):
            values = sorted(set(tuned.values(record).loc[found.seeds]))
            said.append(f"{rows.method}: {', '.join(f'{value:.3g}' for value in values)}")
    return replace(found, note=notes(*said, found.note))


def level_of(rows: Rows, record: pd.DataFrame) -> Statistic:
    """Return the value itself."""
    return Statistic(weighted((1, rows.labels(record))))


def change(before: tuple[Rows, Rows], after: tuple[Rows, Rows], record: pd.DataFrame) -> Statistic:
    """Return the difference of two differences: after − before, each of first − second."""
    (a, b, c, d), note = aligned(*(rows.labels(record) for rows in (*after, *before)))
    return Statistic(weighted((1, a), (-1, b), (-1, c), (1, d)), note=note)


def slope(networks: Sequence[tuple[Rows, Rows, Rows]], record: pd.DataFrame) -> Statistic:
    """Fit the slope of first − second in the log of the single FP32 model's parameters, by least squares.

    Args:
        networks: (first, second, single FP32 model) of each network.
    """
    if len(networks) < 2:
        raise NotRun(NO_NETWORKS if not networks else "a slope needs two networks or more")
    series = [rows.labels(record) for first, second, _ in networks for rows in (first, second)]
    rows, note = aligned(*series)
    log_parameters = np.log([network_parameters(single, record) for *_, single in networks])
    centred = log_parameters - log_parameters.mean()
    if not centred.any():
        raise NotRun("all networks have as many parameters")
    weights = np.repeat(centred / (centred @ centred), 2) * np.tile([1.0, -1.0], len(networks))
    return Statistic(weighted(*zip(weights.tolist(), rows, strict=True)), note=note)


def network_parameters(single: Rows, record: pd.DataFrame) -> float:
    """Count a network's parameters, or derive the number from its single model's memory in float32."""
    counted = replace(single, metric=PARAMETERS)
    is_counted = single.substrate in other_names(record) or counted.are_in(record)
    return parameters(counted.table(record) if is_counted else None, single.table(record), single)


def largest_difference(networks: Sequence[tuple[Rows, Rows, Rows]], record: pd.DataFrame) -> Statistic:
    """Return first − second of the network with the most parameters."""
    if not networks:
        raise NotRun(NO_NETWORKS)
    first, second, _ = max(networks, key=lambda network: network_parameters(network[2], record))
    return difference(first, second, record)


def equal_budget(base: Rows, expanded: Rows, record: pd.DataFrame) -> Statistic:
    """Return expanded − base, each with all its members: the largest training budget that both have."""
    models = int(base.table(record)["size"].max())
    members = int(expanded.table(record)["size"].max())
    if members % models:
        raise InputError(
            f"{members} members of {expanded.method} are no multiple of {models} of {base.method}; "
            "every base must have as many members"
        )
    stored, low = base.at(models).table(record), expanded.at(members).table(record)
    (ours, theirs), note = aligned(low["row"], stored["row"])
    for seed in ours.index:
        mine, other = (int(table["backward_passes"].loc[seed]) for table in (low, stored))
        if mine != other or mine < 1:
            raise InputError(
                f"{expanded.method} of {members} cost {mine} backward passes and {base.method} of {models} "
                f"{other} at seed {seed}; one positive number is expected of both"
            )
    said = notes(f"{members} members against {models}", note)
    return Statistic(weighted((1, ours), (-1, theirs)), note=said)


def equal_memory(base: Rows, expanded: Rows, models: int, record: pd.DataFrame) -> Statistic:
    """Return expanded − base: its largest prefix that fits into the memory of ``models`` base members."""
    stored, low = base.at(models).table(record), expanded.table(record)
    (theirs, _), note = aligned(stored["row"], low["row"].groupby(level="seed").first())
    ours: dict[int, int] = {}
    sizes = set()
    for seed in theirs.index:
        limit = int(stored["memory_bits"].loc[seed])
        own = low.loc[[seed]]
        fitting = own[own["memory_bits"] <= limit]
        if fitting.empty:
            least = int(own["memory_bits"].min())
            raise NotRun(
                f"the smallest {expanded.method} takes {least} bits, more than the {limit} of "
                f"{models} of {base.method}"
            )
        largest = fitting.iloc[-1]
        ours[seed] = int(largest["row"])
        sizes.add(int(largest["size"]))
    members = "–".join(str(size) for size in sorted({min(sizes), max(sizes)}))
    said = notes(f"{members} members against {models}", note)
    return Statistic(weighted((1, pd.Series(ours)), (-1, theirs)), note=said)


Bits = TypeVar("Bits", float, pd.Series)
"""Bits of memory, or members: a number, or one for each index."""


def as_planes(low: Rows, bits: int, record: pd.DataFrame) -> pd.Series:
    """Return the memory of low precision members whose lower neighbours are stored once, a bit a member.

    Args:
        low: of one network, at one size; there are rows of one member too. bits: of a code.

    Returns:
        Bits, indexed by training seed: those of members stored one by one, with ``bits`` + M bits a weight in
        the place of ``bits`` × M.
    """
    members = low.table(record)["memory_bits"]
    if low.size is None or low.size < 2:
        raise InputError(f"{low}: planes are told of two members or more")
    one = low.at(1).table(record)["memory_bits"].reindex(members.index)
    if one.isna().any():
        raise NotRun(f"no rows of some seeds: {low.at(1)}")
    return bits_as_planes(one, (members - one) / (low.size - 1), low.size, bits)


def bits_as_planes(one: Bits, slope: Bits, size: int | Bits, bits: int, statistics: float = 0.0) -> Bits:
    """Return the memory of members stored as planes from that of members stored one by one.

    Exact but for what tensors of no multiple of eight weights are filled up with.

    Args:
        one: the bits of one member. slope: of each further member. size: members. bits: of a code.
        statistics: the part of the slope that is no codes: a member's own batch-norm statistics.
    """
    # A member's bits a weight are one; all else that further members do not share is theirs as before.
    return one + size * ((slope - statistics) / bits) + (size - 1) * statistics


def beyond_share(
    single: Rows, low: Rows, deep: Rows, record: pd.DataFrame, planes_of: int | None = None
) -> Statistic:
    """Return low's gain over the single model, less its share of deep's memory times all of deep's gain.

    Args:
        planes_of: the bits of a code, where low's members are stored as planes; None: one by one.
    """
    models = int(deep.table(record)["size"].max())
    ours, whole = low.table(record), deep.at(models).table(record)
    (alone, a, b), note = aligned(single.labels(record), ours["row"], whole["row"])
    taken = ours["memory_bits"] if planes_of is None else as_planes(low, planes_of, record)
    share = taken.loc[a.index] / whole["memory_bits"].loc[a.index]
    gain = value_of(weighted((1, alone), (-1, b)), record["value"]).mean()
    said = f"DE of {models}, {share.mean():.3g} of its memory, mean gain {gain:+.3g} nats"
    return Statistic(weighted((1 - share, alone), (-1, a), (share, b)), note=notes(said, note))
