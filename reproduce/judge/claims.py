"""The claims, as data: each a statistic, a direction and a threshold, fixed before the run.

The statistics are in :mod:`reproduce.judge.statistics`, the test of them all in
:mod:`reproduce.judge.verdicts`. A claim is never reworded after a run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from reproduce.judge import statistics
from reproduce.judge.intervals import LEVEL
from reproduce.judge.statistics import Rows, StatisticOf
from reproduce.study.beyond.names import TUNED_SPREAD, TUNED_STD, shown
from reproduce.study.records import BETTER_THAN_RTN, EQUAL_BITS, STORED_BITS, by_rtn
from reproduce.study.scale import Scale, Substrate
from reproduce.study.units import SPREAD


@dataclass(frozen=True)
class Side:
    """The claimed side: values between two limits, either of which may be infinite."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def is_open(self) -> bool:
        """Whether there is no threshold: the statistic is reported, and nothing claimed of it."""
        return self.low == -math.inf and self.high == math.inf

    def outcome(self, low: float, high: float) -> str:
        """Say of an interval "holds", "fails" or "undecided" (NaN limits: no interval); or "reported"."""
        if self.is_open:
            return "reported"
        if self.low < low and high < self.high:
            return "holds"
        return "fails" if high < self.low or low > self.high else "undecided"

    def times(self, factor: float) -> Side:
        """Multiply both limits by a positive factor."""
        return Side(self.low * factor, self.high * factor)

    def text(self) -> str:
        """Return the side in words, such as "below 0", "above 0.1", "inside [0.5, 2]" or "no threshold"."""
        if self.is_open:
            return "no threshold"
        if self.low == -math.inf:
            return f"below {self.high:.4g}"
        return (
            f"above {self.low:.4g}" if self.high == math.inf else f"inside [{self.low:.4g}, {self.high:.4g}]"
        )


@dataclass(frozen=True)
class Settings:
    """The claims' parameters.

    Args:
        substrate: of the default network. points_substrate: of it, where points alone are compared; "": the
            same. networks: the substrates of table 1, smallest first. of_one_kind: those of
            one architecture, over which C1c's slope is; (): all.
        compared_clip: table 6's substrate, on which C10 is judged too; "": there is none.
        bits: widths by which claims are reported. best_bits: the width of those that are not.
        claim_size: members, where an ensemble's size is not given by a budget.
        level: of the intervals.
        memory_models: equal memory is the memory of this many members of the FP32 method.
        few_bits, more_bits: C1's bit widths.
        large_networks: the substrates of figure 7, by what they have in common, such as "CLIP" ("": one group
            of all); C6 is judged on each group, and not run without any. large_bits, large_size: C6's.
        margin: C2's and C12's, as a share of the single FP32 model's NLL.
        noise_share: C12's instead, as a share of LPE-BSR's gain over FP32; None: it goes by the margin.
        least_disagreement: C3's. ambiguity: C5's limits.
        spread_bits, spread_size: C15's bits of the codes whose step is spread, and members. tuned_share: its
            limit, as a share of LPE-BSR's gain over FP32.
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
    noise_share: float | None = None
    points_substrate: str = ""
    least_disagreement: float = 0.1
    ambiguity: tuple[float, float] = (0.5, 2.0)
    of_one_kind: tuple[str, ...] = ()
    spread_bits: int = 8
    spread_size: int = 10
    tuned_share: float = 0.2

    @property
    def of_points(self) -> str:
        """The substrate of what is compared between points alone."""
        return self.points_substrate or self.substrate

    @classmethod
    def of(cls, scale: Scale) -> Settings:
        """Return the settings of a scale."""
        settings, beyond = scale.settings, scale.beyond
        return cls(
            substrate=scale.substrate,
            networks=tuple(each.name for each in scale.sizes),
            bits=settings.bits,
            best_bits=settings.best_bits,
            claim_size=settings.claim_size,
            memory_models=settings.memory_models,
            noise_share=settings.noise_share,
            points_substrate=scale.points_substrate,
            compared_clip="" if scale.compared is None else scale.compared.name,
            large_networks={
                group: tuple(each.name for each in members) for group, members in scale.large.items()
            },
            large_bits=settings.large_bits,
            large_size=settings.large_size,
            of_one_kind=of_one_kind(scale.sizes),
            spread_bits=cls.spread_bits if beyond is None else beyond.spread_bits,
            spread_size=cls.spread_size if beyond is None else beyond.size,
        )


def of_one_kind(sizes: Sequence[Substrate]) -> tuple[str, ...]:
    """Name the networks of the architecture that most of them have: a slope over others is of no size."""
    kinds = [type(getattr(each.source, "shape", each.source)) for each in sizes]
    if not kinds:
        return ()
    most = Counter(kinds).most_common(1)[0][0]
    return tuple(each.name for each, kind in zip(sizes, kinds, strict=True) if kind is most)


@dataclass(frozen=True)
class Claim:
    """A claim.

    Args:
        name: such as "C2 (SWAG)". statistic: in words, with its parameters. side: the claimed one.
        unit: of the statistic. of: the statistic of a record.
        reference: where given, the side's limits are shares of the mean of these rows' values over the
            training seeds judged; reference_name: what that is.
    """

    name: str
    statistic: str
    side: Side
    unit: str
    of: StatisticOf
    reference: Rows | None = None
    reference_name: str = ""


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
                f"C1a ({network})",
                f"{gain} at INT-{few}",
                Side(high=0),
                "nats",
                partial(statistics.difference, *pairs),
            )
        )
        changes.append(
            Claim(
                f"C1b ({network})",
                f"change of {gain} from INT-{more} to INT-{few}",
                Side(high=0),
                "nats",
                partial(statistics.change, pair(network, more), pairs),
            )
        )
    alike = settings.of_one_kind or settings.networks
    series = [
        (*pair(network, few), _fp32(settings, "FP32", "SGD", 1, substrate=network)) for network in alike
    ]
    slope = Claim(
        "C1c",
        f"least-squares slope of {gain} at INT-{few} in log(parameters), over {', '.join(alike)}",
        Side(high=0),
        "nats per e-fold",
        partial(statistics.slope, series),
    )
    return [*gains, *changes, slope]


def _c2(settings: Settings, substrate: str, bits: int, size: int, point: str) -> Claim:
    low = _bsr(settings, bits, point, size, substrate=substrate)
    return Claim(
        f"C2 ({point})",
        f"NLL(LPE-BSR INT-{bits}, {size}) − NLL(BMA {size}), same point (non-inferiority)",
        Side(high=settings.margin),
        "nats",
        partial(statistics.difference, low, _fp32(settings, "BMA", point, size, substrate=substrate)),
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
        partial(statistics.ratio, member, replace(member, number_system="fp32")),
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
                statistic = partial(statistics.equal_budget, base, expanded)
            else:
                words = (
                    f"{difference} at equal memory: the most members that fit, base by base, into the memory "
                    f"of {models} of {name}"
                )
                statistic = partial(statistics.equal_memory, base, expanded, models)
            made.append(Claim(f"{number}{letter} ({name})", words, Side(high=0), "nats", statistic))
    return made


FEWEST = min(STORED_BITS)
"""Bits of the rivals that are stored in as few as LPE-BSR's members are."""
FEW_RIVALS = f"against {FEWEST}-bit members"


def _stored(settings: Settings, family: str) -> Rows:
    """Choose a family's members, each rounded to nearest in FEWEST bits."""
    return Rows(settings.substrate, family, by_rtn(family), f"int{FEWEST}", "nearest")


def _against_few_bits(settings: Settings, number: str, names: Sequence[str]) -> list[Claim]:
    """Make claims 4b and 8b once more: at the memory of X's members that are stored in few bits as well."""
    bits, models = settings.best_bits, settings.memory_models
    return [
        Claim(
            f"{number}b, {FEW_RIVALS} ({name})",
            f"NLL({name} + LPE-BSR INT-{bits}) − NLL({name}, members by RTN at INT-{FEWEST}) at equal "
            f"memory: the most members that fit, base by base, into the memory of {models} of these",
            Side(high=0),
            "nats",
            partial(
                statistics.equal_memory,
                _stored(settings, name),
                _bsr(settings, bits, name, None, method=f"{name} + LPE-BSR"),
                models,
            ),
        )
        for name in names
    ]


def _c5(settings: Settings, bits: int) -> Claim:
    size = settings.claim_size
    return Claim(
        f"C5 (INT-{bits})",
        f"ambiguity(LPE-BSR INT-{bits}, {size}) / ambiguity(IVON BMA {size})",
        Side(*settings.ambiguity),
        "ratio",
        partial(
            statistics.learnt_ratio,
            _bsr(settings, bits, "IVON", size, metric="ambiguity", substrate=settings.of_points),
            _fp32(settings, "BMA", "IVON", size, metric="ambiguity", substrate=settings.of_points),
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
                partial(statistics.largest_difference, networks),
            )
        )
        slopes.append(
            Claim(
                f"C6b{named}",
                f"least-squares slope of {gain} in log(parameters)",
                Side(high=0),
                "nats per e-fold",
                partial(statistics.slope, networks),
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
            statistics.equal_memory,
            _fp32(settings, "BMA", point, None, substrate=settings.of_points),
            _bsr(settings, bits, point, None, substrate=settings.of_points),
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
            statistics.beyond_share,
            _fp32(settings, "FP32", "SGD", 1),
            _bsr(settings, bits, "SGD", size),
            _fp32(settings, "DE", "DE", None),
        ),
    )


def _c9_against_few_bits(settings: Settings) -> list[Claim]:
    """Make claim 9 once more, where DE's members are stored in few bits as well: LPE-BSR's one by one, and as
    planes, which take one bit a member.
    """
    bits, size = settings.best_bits, settings.claim_size
    deep = f"DE, members by RTN at INT-{FEWEST}"
    return [
        Claim(
            f"C9, {ours}{FEW_RIVALS}",
            f"(NLL(MAP) − NLL(LPE-BSR INT-{bits}, {size})) − memory share × (NLL(MAP) − NLL({deep})), all "
            f"members of these: {stored}",
            Side(low=0),
            "nats",
            partial(
                statistics.beyond_share,
                _fp32(settings, "FP32", "SGD", 1),
                _bsr(settings, bits, "SGD", size),
                _stored(settings, "DE"),
                planes_of=planes_of,
            ),
        )
        for ours, stored, planes_of in (
            ("", "LPE-BSR's members stored one by one", None),
            ("planes ", "LPE-BSR's members stored as planes, b + M bits a weight", bits),
        )
    ]


def _c10(settings: Settings, rival: str, bits: int, substrate: str) -> Claim:
    size = settings.claim_size
    low = _bsr(settings, bits, "SGD", size, substrate=substrate)
    named = "" if substrate == settings.substrate else f"{substrate}, "
    return Claim(
        f"C10 ({named}{rival}, INT-{bits})",
        f"NLL(LPE-BSR INT-{bits}, {size}) − NLL({rival} {size}, tuned)",
        Side(high=0),
        "nats",
        partial(statistics.tuned_difference, low, _fp32(settings, rival, "SGD", size, substrate=substrate)),
    )


def _c11(settings: Settings, bits: int) -> Claim:
    size, metric = settings.claim_size, "calibrated_nll"
    return Claim(
        f"C11 (INT-{bits})",
        f"calibrated NLL(LPE-BSR INT-{bits}, {size}) − NLL(FP32 with temperature scaling): both calibrated, "
        "each fold of the test examples at the temperature fitted on the others",
        Side(high=0),
        "nats",
        partial(
            statistics.difference,
            _bsr(settings, bits, "SGD", size, metric=metric, substrate=settings.of_points),
            _fp32(settings, "FP32", "SGD", 1, metric=metric, substrate=settings.of_points),
        ),
    )


def _c12(settings: Settings, bits: int) -> Claim:
    size = settings.claim_size
    low = _bsr(settings, bits, "SGD", size)
    matched = replace(low, method="Gaussian, matched", rounding=None)
    single = _fp32(settings, "FP32", "SGD", 1)
    name = f"C12 (INT-{bits})"
    of_both = f"NLL(LPE-BSR INT-{bits}, {size}) − NLL(Gaussian, variance-matched per weight, {size})"
    asked = "is it the rounding, or only the noise? (equivalence)"
    if settings.noise_share is not None:
        return Claim(
            name,
            f"({of_both}) / (NLL(FP32) − NLL(LPE-BSR)): {asked}",
            Side(-settings.noise_share, settings.noise_share),
            "ratio",
            partial(statistics.share_of_gain, low, matched, single),
        )
    return Claim(
        name,
        f"{of_both}: {asked}",
        Side(-settings.margin, settings.margin),
        "nats",
        partial(statistics.difference, low, matched),
        single,
        "NLL(FP32)",
    )


def _c13(settings: Settings) -> list[Claim]:
    """Make claim 13: members against one network of as many bits a weight, rounded to nearest."""
    made = []
    for members, bits, system, stored in EQUAL_BITS:
        rival = Rows(settings.substrate, "SGD", "RTN", system, "nearest", 1)
        named = system.upper().replace("INT", "INT-")
        made.append(
            Claim(
                f"C13 ({members} × INT-{bits}, {named})",
                f"at equal stored bits, NLL(LPE-BSR INT-{bits}, {members}) − NLL(one network in {named}): "
                f"{stored}",
                Side(high=0),
                "nats",
                partial(statistics.difference, _bsr(settings, bits, "SGD", members), rival),
            )
        )
    return made


def _c14(settings: Settings) -> Claim:
    bits, size = settings.few_bits, settings.claim_size
    return Claim(
        "C14",
        f"share of single BSR members, {size} a draw, with a lower NLL than RTN at INT-{bits}",
        Side(),
        "share",
        partial(
            statistics.level_of,
            _bsr(settings, bits, "SGD", size, metric=BETTER_THAN_RTN, substrate=settings.of_points),
        ),
    )


def _c15(settings: Settings) -> list[Claim]:
    """Make claim 15: with the step as a knob, LPE-BSR against noise whose std is tuned as the spread is."""
    substrate, size = shown(settings.substrate, SPREAD), settings.spread_size
    system, share = f"int{settings.spread_bits}", settings.tuned_share
    low = Rows(substrate, "SGD", TUNED_SPREAD, system, "bernoulli", size)
    rival = _fp32(settings, TUNED_STD, "SGD", size, substrate=substrate)
    single = _fp32(settings, "FP32", "SGD", 1, substrate=substrate)
    return [
        Claim(
            f"C15 ({name})",
            f"({loss}(LPE-BSR, tuned spread of INT-{settings.spread_bits}'s step, {size}) − {loss}(Gaussian, "
            f"tuned std, {size})) / ({loss}(FP32) − {loss}(LPE-BSR)), both tuned by as many ensembles "
            "(non-inferiority)",
            Side(high=share),
            "ratio",
            partial(
                statistics.tuned_share,
                replace(low, metric=metric),
                replace(rival, metric=metric),
                replace(single, metric=metric),
            ),
        )
        for name, loss, metric in (("raw", "NLL", "nll"), ("calibrated", "calibrated NLL", "calibrated_nll"))
    ]


def all_claims(settings: Settings) -> tuple[Claim, ...]:
    """List every claim of the suite, one row each."""
    bits, size = settings.bits, settings.claim_size
    return (
        *_c1(settings),
        *(_c2(settings, settings.of_points, settings.best_bits, size, point) for point in ("SWAG", "IVON")),
        *(_c3(settings, width) for width in bits),
        *_budgets(settings, "C4", ("SSE", "CSGLD")),
        *_against_few_bits(settings, "C4", ("SSE", "CSGLD")),
        *(_c5(settings, width) for width in bits),
        *_c6(settings),
        *(_c7(settings, point, width) for point in ("SWAG", "IVON") for width in bits),
        *_budgets(settings, "C8", ("SSE", "DE", "MultiIVON")),
        *_against_few_bits(settings, "C8", ("SSE", "DE", "MultiIVON")),
        _c9(settings),
        *_c9_against_few_bits(settings),
        *(
            _c10(settings, rival, width, substrate)
            for substrate in dict.fromkeys((settings.substrate, *filter(None, [settings.compared_clip])))
            for rival in ("Gaussian", "MC-dropout")
            for width in bits
        ),
        *(_c11(settings, width) for width in bits),
        *(_c12(settings, width) for width in bits),
        *_c13(settings),
        _c14(settings),
        *_c15(settings),
    )
