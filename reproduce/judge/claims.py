"""The claims, as data, and the one test of them.

A claim is a statistic, a direction and a threshold fixed before the run. The unit is a training seed, with
rounding seeds and draws averaged within it; the interval of the statistic's mean over training seeds is the
two-sided 95 % interval of Student's t:

    mean ± t(.975, n − 1) · s / √n

The claim *holds* if the interval lies wholly on the claimed side, *fails* if wholly on the other, and is
*undecided* otherwise: also where the interval touches a limit, and with one seed, which has no interval. It
is *not run* where its rows are not in the record, and then says which.

Every statistic is paired: each training seed gives one value, from rows of that seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd

from lpe.errors import InputError
from reproduce.judge.intervals import LEVEL, interval
from reproduce.study.scale import Reported
from reproduce.study.unrounded import FP32, PARAMETERS, other_names, own_names, parameters

NO_NETWORKS = "no rows of figure 7: this scale names none of its models"


class NotRun(Exception):
    """An error where the record lacks what a claim needs; the message says what."""


@dataclass(frozen=True)
class Side:
    """The claimed side: values between two limits, either of which may be infinite."""

    low: float = -math.inf
    high: float = math.inf

    def outcome(self, low: float, high: float) -> str:
        """Say of an interval "holds", "fails" or "undecided" (NaN limits: no interval)."""
        if self.low < low and high < self.high:
            return "holds"
        return "fails" if high < self.low or low > self.high else "undecided"

    def times(self, factor: float) -> Side:
        """Multiply both limits by a positive factor."""
        return Side(self.low * factor, self.high * factor)

    def text(self) -> str:
        """Return the side in words, such as "below 0", "above 0.1" or "inside [0.5, 2]"."""
        if self.low == -math.inf:
            return f"below {self.high:.4g}"
        return (
            f"above {self.low:.4g}" if self.high == math.inf else f"inside [{self.low:.4g}, {self.high:.4g}]"
        )


@dataclass(frozen=True)
class Settings:
    """The claims' parameters.

    Args:
        substrate: of the default network. networks: the substrates of table 1, smallest first.
        compared_clip: table 6's substrate, on which C10 is judged too; "": there is none.
        bits: widths by which claims are reported. best_bits: the width of those that are not.
        claim_size: members, where an ensemble's size is not given by a budget.
        level: of the intervals.
        memory_models: equal memory is the memory of this many members of the FP32 method.
        few_bits, more_bits: C1's bit widths.
        large_networks: the substrates of figure 7, by what they have in common, such as "CLIP" ("": one group
            of all); C6 is judged on each group, and not run without any. large_bits, large_size: C6's.
        margin: C2's and C12's, as a share of the single FP32 model's NLL.
        least_disagreement: C3's. ambiguity: C5's limits.
    """

    substrate: str
    networks: tuple[str, ...]
    bits: tuple[int, ...]
    best_bits: int
    claim_size: int = 10
    level: float = LEVEL
    memory_models: int = 2
    few_bits: int = 4
    more_bits: int = 6
    compared_clip: str = ""
    large_networks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    large_bits: int = 5
    large_size: int = 20
    margin: float = 0.01
    least_disagreement: float = 0.1
    ambiguity: tuple[float, float] = (0.5, 2.0)

    @classmethod
    def of(cls, scale: Reported) -> Settings:
        """Return the settings of a scale."""
        return cls(
            substrate=scale.substrate,
            networks=tuple(f"{scale.name} ViT-{letter}" for letter in scale.networks),
            bits=scale.bits,
            best_bits=scale.best_bits,
            claim_size=scale.claim_size,
            memory_models=scale.memory_models,
            compared_clip=scale.compared_clip,
            large_networks=scale.large_networks,
            large_bits=scale.large_bits,
            large_size=scale.size,
        )


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
        """Return the rows, indexed by training seed, by increasing size.

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
        return found.set_index("seed")

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


@dataclass(frozen=True)
class PerSeed:
    """A statistic's value per training seed, with what is to be said of it."""

    values: pd.Series
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim.

    Args:
        name: such as "C2 (SWAG)". statistic: in words, with its parameters. side: the claimed one.
        unit: of the statistic. per_seed: the statistic of a record.
        reference: where given, the side's limits are shares of the mean of these rows' values over the
            training seeds judged; reference_name: what that is.
    """

    name: str
    statistic: str
    side: Side
    unit: str
    per_seed: Callable[[pd.DataFrame], PerSeed]
    reference: Rows | None = None
    reference_name: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome.

    Args:
        claim, statistic, unit: the claim's.
        effect, low, high: the mean over training seeds and its interval; NaN where there is none.
        side: in the statistic's unit. n: training seeds.
        verdict: holds, fails, undecided or not run. note: what is missing, or what was compared.
    """

    claim: str
    statistic: str
    unit: str
    effect: float
    low: float
    high: float
    side: Side
    n: int
    verdict: str
    note: str = ""
    relative_to: str = ""

    def claimed(self) -> str:
        """Return the claimed side in words."""
        return self.side.text() + (f" × {self.relative_to}" if self.relative_to else "")

    def line(self) -> str:
        """Return the verdict as one line for the terminal."""
        if self.verdict == "not run":
            return f"{self.claim}: not run. {self.statistic}: {self.note}"
        interval = f"95 % [{self.low:+.5f}, {self.high:+.5f}]" if self.n > 1 else "(no interval from 1 seed)"
        return (
            f"{self.claim}: {self.verdict}. {self.statistic} = {self.effect:+.5f} {self.unit}, {interval}, "
            f"claimed {self.claimed()}, n = {self.n} training seed{'s' if self.n > 1 else ''}"
            + (f" ({self.note})" if self.note else "")
        )


def judge(claim: Claim, record: pd.DataFrame, level: float = LEVEL) -> Verdict:
    """Judge a claim by the one test: does the interval of the statistic's mean lie on the claimed side?

    Args:
        record: long-form rows of one scale. level: of the interval.

    Raises:
        InputError: the record contradicts itself, such as two rows where one is expected.
    """
    side, nothing = claim.side, float("nan")
    statistic = claim.statistic
    if FP32 in statistic and other_names(record):  # of networks in other dtypes
        statistic = statistic.replace(FP32, "unrounded")
    words = (claim.name, statistic, claim.unit)
    try:
        sample = claim.per_seed(record)
        seeds = sample.values.index
        if claim.reference is not None:
            single = claim.reference.values(record).reindex(seeds)
            if single.isna().any():
                raise NotRun(f"no rows of some seeds: {claim.reference}")
            side = side.times(float(single.mean()))
    except NotRun as missing:
        return Verdict(
            *words, nothing, nothing, nothing, side, 0, "not run", str(missing), claim.reference_name
        )
    values = sample.values.to_numpy(float)
    if not np.isfinite(values).all():
        # Leaving the seed out would be a choice by outcome.
        at = ", ".join(str(seed) for seed in seeds[~np.isfinite(values)])
        note = f"not defined at seed {at}: its denominator is 0"
        return Verdict(*words, nothing, nothing, nothing, side, len(values), "undecided", note)
    low, high = interval(values, level)
    effect = float(np.mean(values))
    return Verdict(*words, effect, low, high, side, len(values), side.outcome(low, high), sample.note)


# Statistics: each a function of the record, with what it compares bound to it.


def _aligned(*series: pd.Series) -> tuple[list[pd.Series], str]:
    """Return the series at the training seeds that all have, and a note on the others."""
    seeds = series[0].index
    every = series[0].index
    for other in series[1:]:
        seeds, every = seeds.intersection(other.index), every.union(other.index)
    if seeds.empty:
        raise NotRun("no training seed has all of its rows")
    left_out = [str(seed) for seed in every.difference(seeds)]
    note = f"without seed {', '.join(left_out)}: no rows of all it compares" if left_out else ""
    return [each.loc[seeds] for each in series], note


def _notes(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _difference(first: Rows, second: Rows, record: pd.DataFrame) -> PerSeed:
    (a, b), note = _aligned(first.values(record), second.values(record))
    return PerSeed(a - b, note)


def _ratio(first: Rows, second: Rows, record: pd.DataFrame) -> PerSeed:
    (a, b), note = _aligned(first.values(record), second.values(record))
    return PerSeed(a / b, note)


def _change(before: tuple[Rows, Rows], after: tuple[Rows, Rows], record: pd.DataFrame) -> PerSeed:
    """Return the difference of two differences: after − before, each of first − second."""
    (a, b, c, d), note = _aligned(*(rows.values(record) for rows in (*after, *before)))
    return PerSeed((a - b) - (c - d), note)


def _slope(networks: Sequence[tuple[Rows, Rows, Rows]], record: pd.DataFrame) -> PerSeed:
    """Fit the slope of first − second in the log of the single FP32 model's parameters, by least squares.

    Args:
        networks: (first, second, single FP32 model) of each network.
    """
    if len(networks) < 2:
        raise NotRun(NO_NETWORKS if not networks else "a slope needs two networks or more")
    series = [rows.values(record) for first, second, _ in networks for rows in (first, second)]
    aligned, note = _aligned(*series)
    differences = np.array(
        [(first - second).to_numpy() for first, second in zip(aligned[::2], aligned[1::2], strict=True)]
    )
    log_parameters = np.log([_parameters(single, record) for *_, single in networks])
    centred = log_parameters - log_parameters.mean()
    if not centred.any():
        raise InputError("the networks of a slope all have the same number of parameters; give others")
    return PerSeed(pd.Series(centred @ differences / (centred @ centred), index=aligned[0].index), note)


def _parameters(single: Rows, record: pd.DataFrame) -> float:
    """Count a network's parameters, or derive the number from its single model's memory in float32."""
    counted = replace(single, metric=PARAMETERS)
    is_counted = single.substrate in other_names(record) or counted.are_in(record)
    return parameters(counted.table(record) if is_counted else None, single.table(record), single)


def _largest_difference(networks: Sequence[tuple[Rows, Rows, Rows]], record: pd.DataFrame) -> PerSeed:
    """Return first − second of the network with the most parameters."""
    if not networks:
        raise NotRun(NO_NETWORKS)
    first, second, _ = max(networks, key=lambda network: _parameters(network[2], record))
    return _difference(first, second, record)


def _equal_budget(base: Rows, expanded: Rows, record: pd.DataFrame) -> PerSeed:
    """Return expanded − base, each with all its members: the largest training budget that both have."""
    models = int(base.table(record)["size"].max())
    members = int(expanded.table(record)["size"].max())
    if members % models:
        raise InputError(
            f"{members} members of {expanded.method} are no multiple of {models} of {base.method}; "
            "every base must have as many members"
        )
    stored, low = base.at(models).table(record), expanded.at(members).table(record)
    (ours, theirs), note = _aligned(low["value"], stored["value"])
    for seed in ours.index:
        mine, other = (int(table["backward_passes"].loc[seed]) for table in (low, stored))
        if mine != other or mine < 1:
            raise InputError(
                f"{expanded.method} of {members} cost {mine} backward passes and {base.method} of {models} "
                f"{other} at seed {seed}; one positive number is expected of both"
            )
    return PerSeed(ours - theirs, _notes(f"{members} members against {models}", note))


def _equal_memory(base: Rows, expanded: Rows, models: int, record: pd.DataFrame) -> PerSeed:
    """Return expanded − base: its largest prefix that fits into the memory of ``models`` base members."""
    stored, low = base.at(models).table(record), expanded.table(record)
    _, note = _aligned(stored["value"], low["value"].groupby(level="seed").first())
    differences: dict[int, float] = {}
    sizes = set()
    for seed in stored.index.intersection(low.index):
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
        differences[seed] = float(largest["value"]) - float(stored["value"].loc[seed])
        sizes.add(int(largest["size"]))
    members = "–".join(str(size) for size in sorted({min(sizes), max(sizes)}))
    return PerSeed(pd.Series(differences), _notes(f"{members} members against {models}", note))


def _beyond_share(single: Rows, low: Rows, deep: Rows, record: pd.DataFrame) -> PerSeed:
    """Return low's gain over the single model, less its share of deep's memory times all of deep's gain."""
    models = int(deep.table(record)["size"].max())
    ours, whole = low.table(record), deep.at(models).table(record)
    (alone, a, b), note = _aligned(single.values(record), ours["value"], whole["value"])
    share = ours["memory_bits"].loc[a.index] / whole["memory_bits"].loc[a.index]
    said = f"DE of {models}, {share.mean():.3g} of its memory, mean gain {(alone - b).mean():+.3g} nats"
    return PerSeed((alone - a) - share * (alone - b), _notes(said, note))


# The claims, in the order of their numbers.


def _fp32(settings: Settings, method: str, point: str, size: int | None, **other: str) -> Rows:
    return Rows(other.pop("substrate", settings.substrate), point, method, "fp32", None, size, **other)


def _bsr(settings: Settings, bits: int, point: str, size: int | None, **other: str) -> Rows:
    method = other.pop("method", "LPE-BSR")
    substrate = other.pop("substrate", settings.substrate)
    return Rows(substrate, point, method, f"int{bits}", "bernoulli", size, **other)


def _c1(settings: Settings) -> list[Claim]:
    size, few, more = settings.claim_size, settings.few_bits, settings.more_bits

    def pair(network: str, bits: int) -> tuple[Rows, Rows]:
        rtn = Rows(network, "SGD", "RTN", f"int{bits}", "nearest", 1)
        return _bsr(settings, bits, "SGD", size, substrate=network), rtn

    gain = f"NLL(LPE-BSR {size}) − NLL(RTN)"
    gains, changes = [], []
    for network in settings.networks:
        pairs = pair(network, few)
        gains.append(
            Claim(
                f"C1a ({network})", f"{gain} at INT-{few}", Side(high=0), "nats", partial(_difference, *pairs)
            )
        )
        changes.append(
            Claim(
                f"C1b ({network})",
                f"change of {gain} from INT-{more} to INT-{few}",
                Side(high=0),
                "nats",
                partial(_change, pair(network, more), pairs),
            )
        )
    series = [
        (*pair(network, few), _fp32(settings, "FP32", "SGD", 1, substrate=network))
        for network in settings.networks
    ]
    slope = Claim(
        "C1c",
        f"least-squares slope of {gain} at INT-{few} in log(parameters), over {', '.join(settings.networks)}",
        Side(high=0),
        "nats per e-fold",
        partial(_slope, series),
    )
    return [*gains, *changes, slope]


def _c2(settings: Settings, substrate: str, bits: int, size: int, point: str) -> Claim:
    low = _bsr(settings, bits, point, size, substrate=substrate)
    return Claim(
        f"C2 ({point})",
        f"NLL(LPE-BSR INT-{bits}, {size}) − NLL(BMA {size}), same point (non-inferiority)",
        Side(high=settings.margin),
        "nats",
        partial(_difference, low, _fp32(settings, "BMA", point, size, substrate=substrate)),
        _fp32(settings, "FP32", point, 1, substrate=substrate),
        f"NLL(FP32 at {point})",
    )


def _c3(settings: Settings, bits: int) -> Claim:
    member = Rows(settings.substrate, "SSE", "disagreement", f"int{bits}", None, 1, "disagreement")
    return Claim(
        f"C3 (INT-{bits})",
        "disagreement(LPE-BSR member, 1st snapshot) / disagreement(2nd snapshot, 1st snapshot), "
        f"SSE, INT-{bits}",
        Side(low=settings.least_disagreement),
        "ratio",
        partial(_ratio, member, replace(member, number_system="fp32")),
    )


def _budgets(settings: Settings, number: str, names: Sequence[str]) -> list[Claim]:
    """Make claims 4 and 8: X + LPE-BSR against X, at equal training budget (a) and at equal memory (b)."""
    bits, models = settings.best_bits, settings.memory_models
    made = []
    for letter in "ab":
        for name in names:
            base = _fp32(settings, name, name, None)
            expanded = _bsr(settings, bits, name, None, method=f"{name} + LPE-BSR")
            difference = f"NLL({name} + LPE-BSR INT-{bits}) − NLL({name})"
            if letter == "a":
                words = f"{difference} at equal training budget: the largest, all members of both"
                statistic = partial(_equal_budget, base, expanded)
            else:
                words = (
                    f"{difference} at equal memory: the most members that fit, base by base, into the memory "
                    f"of {models} of {name}"
                )
                statistic = partial(_equal_memory, base, expanded, models)
            made.append(Claim(f"{number}{letter} ({name})", words, Side(high=0), "nats", statistic))
    return made


def _c5(settings: Settings, bits: int) -> Claim:
    size = settings.claim_size
    return Claim(
        f"C5 (INT-{bits})",
        f"ambiguity(LPE-BSR INT-{bits}, {size}) / ambiguity(IVON BMA {size})",
        Side(*settings.ambiguity),
        "ratio",
        partial(
            _ratio,
            _bsr(settings, bits, "IVON", size, metric="ambiguity"),
            _fp32(settings, "BMA", "IVON", size, metric="ambiguity"),
        ),
    )


def _c6(settings: Settings) -> list[Claim]:
    bits, size = settings.large_bits, settings.large_size
    gain = f"NLL(LPE-BSR {size}, INT-{bits}) − NLL(FP32)"
    largest, slopes = [], []
    for group, substrates in (settings.large_networks or {"": ()}).items():
        named = f" ({group})" if group else ""
        networks = []
        for network in substrates:
            single = _fp32(settings, "FP32", "SGD", 1, substrate=network)
            networks.append((_bsr(settings, bits, "SGD", size, substrate=network), single, single))
        largest.append(
            Claim(
                f"C6a{named}",
                f"{gain} for the largest model",
                Side(high=0),
                "nats",
                partial(_largest_difference, networks),
            )
        )
        slopes.append(
            Claim(
                f"C6b{named}",
                f"least-squares slope of {gain} in log(parameters)",
                Side(high=0),
                "nats per e-fold",
                partial(_slope, networks),
            )
        )
    return [*largest, *slopes]


def _c7(settings: Settings, point: str, bits: int) -> Claim:
    models = settings.memory_models
    return Claim(
        f"C7 ({point}, INT-{bits})",
        f"at equal memory, NLL(LPE-BSR INT-{bits}) − NLL(BMA {models}): the most members measured that fit "
        f"into the memory of {models} of BMA, same point",
        Side(high=0),
        "nats",
        partial(
            _equal_memory,
            _fp32(settings, "BMA", point, None),
            _bsr(settings, bits, point, None),
            models,
        ),
    )


def _c9(settings: Settings) -> Claim:
    bits, size = settings.best_bits, settings.claim_size
    return Claim(
        "C9",
        f"share of DE's NLL gain over MAP that LPE-BSR INT-{bits}, {size} reaches > its share of DE's "
        "memory, without the ratio that has no bounds where DE's gain is near 0: (NLL(MAP) − NLL(LPE-BSR)) − "
        "memory share × (NLL(MAP) − NLL(DE)), DE of all members",
        Side(low=0),
        "nats",
        partial(
            _beyond_share,
            _fp32(settings, "FP32", "SGD", 1),
            _bsr(settings, bits, "SGD", size),
            _fp32(settings, "DE", "DE", None),
        ),
    )


def _c10(settings: Settings, rival: str, bits: int, substrate: str) -> Claim:
    size = settings.claim_size
    low = _bsr(settings, bits, "SGD", size, substrate=substrate)
    named = "" if substrate == settings.substrate else f"{substrate}, "
    return Claim(
        f"C10 ({named}{rival}, INT-{bits})",
        f"NLL(LPE-BSR INT-{bits}, {size}) − NLL({rival} {size}, tuned)",
        Side(high=0),
        "nats",
        partial(_difference, low, _fp32(settings, rival, "SGD", size, substrate=substrate)),
    )


def _c11(settings: Settings, bits: int) -> Claim:
    size, metric = settings.claim_size, "calibrated_nll"
    return Claim(
        f"C11 (INT-{bits})",
        f"calibrated NLL(LPE-BSR INT-{bits}, {size}) − NLL(FP32 with temperature scaling): both calibrated, "
        "each half of the test examples at the temperature fitted on the other half",
        Side(high=0),
        "nats",
        partial(
            _difference,
            _bsr(settings, bits, "SGD", size, metric=metric),
            _fp32(settings, "FP32", "SGD", 1, metric=metric),
        ),
    )


def _c12(settings: Settings, bits: int) -> Claim:
    size = settings.claim_size
    low = _bsr(settings, bits, "SGD", size)
    return Claim(
        f"C12 (INT-{bits})",
        f"NLL(LPE-BSR INT-{bits}, {size}) − NLL(Gaussian, variance-matched per weight, {size}): is it the "
        "rounding, or only the noise? (equivalence)",
        Side(-settings.margin, settings.margin),
        "nats",
        partial(_difference, low, replace(low, method="Gaussian, matched", rounding=None)),
        _fp32(settings, "FP32", "SGD", 1),
        "NLL(FP32)",
    )


def all_claims(settings: Settings) -> tuple[Claim, ...]:
    """List every claim of the suite, one row each."""
    bits, size = settings.bits, settings.claim_size
    return (
        *_c1(settings),
        *(_c2(settings, settings.substrate, settings.best_bits, size, point) for point in ("SWAG", "IVON")),
        *(_c3(settings, width) for width in bits),
        *_budgets(settings, "C4", ("SSE", "CSGLD")),
        *(_c5(settings, width) for width in bits),
        *_c6(settings),
        *(_c7(settings, point, width) for point in ("SWAG", "IVON") for width in bits),
        *_budgets(settings, "C8", ("SSE", "DE", "MultiIVON")),
        _c9(settings),
        *(
            _c10(settings, rival, width, substrate)
            for substrate in (settings.substrate, *filter(None, [settings.compared_clip]))
            for rival in ("Gaussian", "MC-dropout")
            for width in bits
        ),
        *(_c11(settings, width) for width in bits),
        *(_c12(settings, width) for width in bits),
    )
