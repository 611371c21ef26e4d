"""Summaries of a record for figures and tables: values per training seed, as cells, and claims' verdicts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lpe.errors import InputError
from lpe.number_systems.grids import FullPrecision, PerChannel, grid_of
from lpe.number_systems.naming import ByPattern, number_system
from lpe.records import COLUMNS
from reproduce.draw.panels import read_record
from reproduce.draw.tables import mean_and_interval, plain_number
from reproduce.judge.claims import Settings, all_claims
from reproduce.judge.statistics import bits_as_planes
from reproduce.judge.verdicts import judge_all
from reproduce.study.beyond.names import TUNED_SPREAD, TUNED_STD, shown
from reproduce.study.records import MEGABIT, SETTING, record_name
from reproduce.study.scale import Scale
from reproduce.study.units import SPREAD
from reproduce.study.unrounded import FP32, PARAMETERS, other_names, own_names, parameters
from reproduce.study.unrounded import SCALED as SCALED


@dataclass(frozen=True)
class What:
    """The subject of a row of a table, or of a point of a curve."""

    substrate: str
    point: str
    method: str
    number_system: str = "fp32"
    size: int = 1

    def __str__(self) -> str:
        return f"{self.method}, {self.number_system}, size {self.size}, at {self.point} of {self.substrate}"

    def at(self, size: int) -> What:
        """Return the same at another size."""
        return replace(self, size=size)


_KEY = ["substrate", "point", "method", "number_system", "size", "metric"]


@dataclass(frozen=True)
class Summary:
    """The record of one figure or table, looked up by what was measured.

    Args:
        figure: its name, such as "table1". record: long-form rows, one of each key and training seed.

    Raises:
        InputError: two rows of one measurement at one training seed.
    """

    figure: str
    record: pd.DataFrame
    _places: dict[tuple[object, ...], np.ndarray] = field(init=False, repr=False)
    _others: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        twice = self.record[self.record.duplicated([*_KEY, "seed"])]
        if len(twice):
            row = twice.iloc[0]
            named = ", ".join(f"{column} {row[column]}" for column in [*_KEY, "seed"])
            raise InputError(
                f"{record_name(self.figure)} has two rows of {named}; delete the file and run the script anew"
            )
        object.__setattr__(self, "_places", self.record.groupby(_KEY).indices)
        object.__setattr__(self, "_others", other_names(self.record))

    def _key(self, what: What, metric: str) -> tuple[object, ...]:
        names = own_names(self._others, what.substrate, what.method, what.number_system)
        return (what.substrate, what.point, *names, what.size, metric)

    def unrounded(self, substrate: str) -> str:
        """Name a substrate's network as it is: "FP32", "BF16" …"""
        return self._others.get(substrate, FP32)

    def title(self, substrate: str, method: str) -> str:
        """Name a method as the substrate's record does: "BF16 + temperature" for "FP32 + temperature"."""
        return own_names(self._others, substrate, method, "")[0]

    def common_name(self) -> str:
        """Name all networks as they are; "☆" where their dtypes differ."""
        names = {self.unrounded(substrate) for substrate in self.record["substrate"].unique()}
        return names.pop() if len(names) == 1 else "☆"

    def named(self, text: str) -> str:
        """Return a heading or a note with the networks' own name in the place of FP32."""
        return text.replace(FP32, self.common_name())

    def parameters(self, what: What) -> float:
        """Return how many parameters an unrounded network has; see ``unrounded.parameters``."""
        has_count = self.has(what, PARAMETERS) or self.unrounded(what.substrate) != FP32
        return parameters(self.rows(what, PARAMETERS) if has_count else None, self.rows(what), what)

    def rows(self, what: What, metric: str = "nll") -> pd.DataFrame:
        """Return the rows of a metric, indexed by training seed.

        Raises:
            InputError: there are none.
        """
        if not self.has(what, metric):
            raise InputError(
                f"{record_name(self.figure)} has no rows: {metric} of {what}; run "
                f"python reproduce/{self.figure}.py without --plot-only"
            )
        return self.record.iloc[self._places[self._key(what, metric)]].set_index("seed")

    def has(self, what: What, metric: str = "nll") -> bool:
        """Tell whether there are rows of a metric."""
        return self._key(what, metric) in self._places

    def values(self, what: What, metric: str = "nll") -> pd.Series:
        """Return the values of a metric, indexed by training seed."""
        return self.rows(what, metric)["value"]

    def sizes(self, what: What, metric: str = "nll") -> list[int]:
        """Return the sizes at which there are rows, whatever the size of ``what``."""
        rest = self._key(what, metric)[:4]
        return sorted(int(str(key[4])) for key in self._places if key[:4] == rest and key[5] == metric)

    def every_size(self, what: What, metric: str = "nll") -> pd.DataFrame:
        """Return a metric's rows at every size, whatever ``what``'s size is; InputError without any."""
        sizes = self.sizes(what, metric)
        if not sizes:
            self.rows(what, metric)
        places = [self._places[self._key(what.at(size), metric)] for size in sizes]
        return self.record.iloc[np.concatenate(places)]

    def mean(self, what: What, metric: str, digits: int = 4) -> str | None:
        """Return the mean over training seeds as text; None where the method has no such metric."""
        if not self.has(what, metric):
            return None
        return plain_number(float(self.values(what, metric).mean()), digits)

    def with_interval(self, what: What, metric: str = "nll", digits: int = 4) -> str:
        """Return the mean and 95 % interval over training seeds."""
        return mean_and_interval(self.values(what, metric).to_numpy(), digits)

    def difference(self, what: What, other: What, metric: str = "nll", digits: int = 4) -> str:
        """Return the mean and 95 % interval of the paired difference to ``other``, over the seeds of both."""
        difference = (self.values(what, metric) - self.values(other, metric)).dropna()
        if difference.empty:
            raise InputError(f"{what} and {other} share no training seed; run with the same --seeds")
        return mean_and_interval(difference.to_numpy(), digits)

    def seeds(self, what: What) -> int:
        """Return the number of training seeds."""
        return len(self.rows(what))

    def memory_bits(self, what: What) -> float:
        """Return the bits of n stored members, mean over training seeds."""
        return float(self.rows(what)["memory_bits"].mean())

    def planes_bits(self, what: What) -> float | None:
        """Return the bits of LPE-BSR's n members stored as planes, mean over training seeds.

        None of other methods, and where the record does not tell one member from several.
        """
        sizes = self.sizes(what)
        if what.method not in ("LPE-BSR", TUNED_SPREAD) or len(sizes) < 2 or sizes[0] != 1:
            return None
        one, most = (self.rows(what.at(size)) for size in (1, sizes[-1]))
        further = sizes[-1] - 1
        slope = (most["memory_bits"] - one["memory_bits"]) / further
        drawn = [what.at(size) for size in (1, sizes[-1])]
        # What more members add to what they are drawn from are their batch-norm statistics.
        statistics = 0.0
        if all(self.has(each, "generator_bits") for each in drawn):
            first, last = (float(self.values(each, "generator_bits").mean()) for each in drawn)
            statistics = (last - first) / further
        if what.method == TUNED_SPREAD:
            tuned = self.values(what.at(sizes[-1]), SETTING)
            widths = tuned.map(lambda spread: system_bits(f"{what.number_system}*{spread:g}"))
        else:
            widths = pd.Series(system_bits(what.number_system), index=one.index)
        of_seeds = [
            bits_as_planes(float(base), float(further_one), what.size, int(bits), statistics)
            for base, further_one, bits in zip(
                one["memory_bits"].reindex(widths.index), slope.reindex(widths.index), widths, strict=True
            )
            if not np.isnan(further_one)
        ]
        return float(np.mean(of_seeds)) if of_seeds else None

    def backward_passes(self, what: What) -> float:
        """Return the gradient evaluations of one minibatch each, mean over training seeds."""
        return float(self.rows(what)["backward_passes"].mean())


def read(folder: Path, figure: str) -> Summary:
    """Read the summary of a figure's or table's record in a folder; InputError if there is none."""
    return Summary(figure, read_record(folder / record_name(figure), COLUMNS))


def claim_lines(record: pd.DataFrame, chosen: Scale, beginnings: Sequence[str]) -> list[str]:
    """List the verdicts of claims such as "C1" (a, b, c) and "C10 (Gaussian" on a record, a line each."""
    settings = Settings.of(chosen)
    wanted = re.compile(rf"({'|'.join(map(re.escape, beginnings))})(?!\d)")
    claims = [claim for claim in all_claims(settings) if wanted.match(claim.name)]
    return [verdict.line() for verdict in judge_all(claims, record, chosen.unit)]


def tuned_pair(summary: Summary, chosen: Scale, substrate: str) -> list[tuple[What, str]]:
    """List LPE-BSR of a tuned spread and Gaussian noise of a std tuned as it is, with their titles.

    Args:
        substrate: of the network.

    Returns:
        Nothing where the scale, or the record, has none.
    """
    if chosen.beyond is None:
        return []
    at = (shown(substrate, SPREAD), chosen.substrates[substrate].estimate)
    bits, size = chosen.beyond.spread_bits, chosen.beyond.size
    both = [
        (What(*at, TUNED_SPREAD, f"int{bits}", size), f"LPE-BSR, INT-{bits} of tuned spread"),
        (What(*at, TUNED_STD, "fp32", size), "Gaussian, tuned as the spread"),
    ]
    return [each for each in both if summary.has(each[0])]


def tuned_note(summary: Summary, chosen: Scale, substrate: str) -> list[str]:
    """Say, where there are rows of them, what the spread and the std were tuned to, and how."""
    pair = tuned_pair(summary, chosen, substrate)
    if not pair or chosen.beyond is None:
        return []
    said = []
    for name, (what, _) in zip(("spread", "std"), pair, strict=True):
        found = summary.values(what, SETTING)
        said.append(f"{name} {listed([f'{value:g}' for value in sorted(found.unique())])}")
    return [
        f"Tuned by the NLL of {chosen.beyond.size} members on examples that no row is scored on, from "
        f"{len(chosen.beyond.spreads)} values each, at every training seed anew "
        f"({training_seeds(len(found))}): {'; '.join(said)}."
    ]


def substrates_by_size(summary: Summary) -> list[str]:
    """Return the record's substrates, that with the fewest parameters first."""
    names = sorted(summary.record["substrate"].unique())
    return sorted(names, key=lambda name: summary.parameters(What(name, "SGD", FP32)))


def system_title(name: str) -> str:
    """Name a number system as tables do: "INT-5, per channel" of "int5", "INT-4-MSE", "FP8 E4M3"."""
    short, _, axis = name.partition(" ")
    if short.startswith("codebook"):
        digest = hashlib.blake2s(short.encode()).hexdigest()[:8]
        title = f"codebook {digest} of {short.count(':')}"
    else:
        title = re.sub(r"^INT", "INT-", short.upper()).replace("_", " ")
    return f"{title}, {axis or PerChannel()}"


def system_bits(name: str) -> int:
    """Return the bits a weight of a number system's name, scales aside: 5 of "int5 per tensor", 4 of "nf4".

    Of "int8*11.3", whose 25 levels take no more, 5.

    Raises:
        InputError: the name of none, or of several by name pattern.
    """
    system = number_system(name)
    if isinstance(system, ByPattern):
        raise InputError(f"{name!r} are several number systems, each of its own bits")
    return system.bits if isinstance(system, FullPrecision) else grid_of(system).code_bits


def megabits(bits: float) -> str:
    """Return bits as Mbit, to three significant digits."""
    value = bits / MEGABIT
    digits = max(0, 2 - int(np.floor(np.log10(value)))) if value > 0 else 0
    return plain_number(value, digits)


def listed(texts: Sequence[str]) -> str:
    """Join items in words, such as "a, b and c"."""
    return " and ".join([text for text in (", ".join(texts[:-1]), *texts[-1:]) if text])


def training_seeds(count: int) -> str:
    """Say a number of training seeds: "1 training seed", "5 training seeds"."""
    return f"{count} training seed{'s' * (count != 1)}"


def counted_seeds(numbers: Sequence[int]) -> str:
    """Say how many training seeds there are, such as "n = 5 training seeds" or "n = 5–20 training seeds"."""
    low, high = min(numbers), max(numbers)
    return f"n = {f'{low}–' * (low < high)}{training_seeds(high)}"


def pass_size(chosen: Scale) -> str:
    """Say what a backward pass is: the minibatches' sizes."""
    assert chosen.main is not None
    recipe, start = chosen.main.points[chosen.main.estimate], chosen.main.start
    fine, pre = (getattr(each, "batch", None) for each in (recipe, start))
    return f"one backward pass: the gradient of {fine} {chosen.main.example}s" + (
        "" if pre in (fine, None) else f" (of {pre} in the pre-training)"
    )


def noun(chosen: Scale) -> str:
    """Return what a nat is per: the main substrate's example."""
    assert chosen.main is not None
    return chosen.main.example
