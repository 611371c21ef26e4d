"""The one test of claims.

The interval of a statistic is compared with the claimed side: the claim *holds* if the interval lies wholly
on it, *fails* if wholly on the other, and is *undecided* otherwise: also where the interval touches a limit,
where there is none, and where all seeds or examples have the same value. It is *not run* where its rows are
not in the record, and then says which.

What the interval is of, a scale says (``UNITS``):

    seed          training seeds on one test set: Student's t of their values, Fieller for a ratio; of a claim
                  with rows of one seed alone, as example
    same images   the same, where the seeds split one small set of images anew and again: the seeds are not
                  independent, and the interval is for these images
    example       one checkpoint: the paired bootstrap over test examples

Beside an interval over seeds stands one over examples, each example's values averaged over the seeds that
tested it: for "same images", what new images would give. It needs the values of each example, which the
working store holds and a record does not.

Beside each verdict stands that of the null, :mod:`reproduce.judge.null`. A claim that holds there too is no
evidence for LPE-BSR.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from lpe.errors import InputError
from lpe.records import KEY
from reproduce.judge.claims import Claim, Side
from reproduce.judge.examples import Columns, ExampleValues, NotAvailable, columns_of
from reproduce.judge.intervals import (
    LEAST_EXAMPLES,
    LEVEL,
    MOST_SEEDS,
    SMALLEST,
    can_tell,
    fieller_interval,
    fieller_level,
    has_spread,
    holm,
    needed_units,
    percentile_interval,
    percentile_level,
    resampled_means,
    student_interval,
    student_level,
    verdict_level,
)
from reproduce.judge.null import stand_ins, vanishes, with_absent
from reproduce.judge.statistics import NotRun, Statistic, Sum, notes, value_of
from reproduce.study.keys import code_hash
from reproduce.study.unrounded import FP32, other_names

UNITS = {
    "seed": ("training seed", "over test examples"),
    "same images": ("training seed, for these images", "for new images"),
    "example": ("test example", ""),
}
"""What an interval is of, and what the one beside it is; by ``study.scale.INTERVAL_UNITS``."""

MOST_EXAMPLES = 1_000_000
"""Test examples beyond which a claim is called never decided."""

RECORDED = 1e-11
"""How far a record's values may be off, relatively: it keeps 12 digits, which end at up to 1e-11."""

NOTHING = float("nan")
EVERYTHING = (-math.inf, math.inf)
TEXTS = [column for column in KEY if column not in ("size", "seed")]


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Args:
        effect, low, high: NaN where there is none. level: the smallest α whose 1 − α interval decides the
            claim. spread: std of a unit's value; of a ratio that of a − ratio · b over the mean of b.
        n: units. verdict: holds, fails or undecided.
    """

    effect: float
    low: float
    high: float
    level: float
    spread: float
    n: int
    verdict: str


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome.

    Args:
        claim, statistic, unit: the claim's. side: in the statistic's unit. relative_to: what its limits are
            shares of.
        found: the estimate that decides; None: not run. over: what its interval is of, such as "training
            seed".
        instead: with the unrounded network in LPE-BSR's place; None: the record lacks it.
        examples: over examples, beside one over seeds; None: not available, which ``why`` explains.
        needed: units at which four fifths of runs would decide it, "never", or "" where it is decided.
        holm: the verdict after Holm's adjustment, and holm_level: the adjusted level.
        same_as: an earlier claim that compares the very same rows. key: names the rows and their values.
        verdict: holds, fails, undecided, reported or not run. note: what is missing, or what was compared.
    """

    claim: str
    statistic: str
    unit: str
    side: Side
    verdict: str
    note: str = ""
    relative_to: str = ""
    found: Estimate | None = None
    over: str = ""
    instead: Estimate | None = None
    examples: Estimate | None = None
    examples_instead: Estimate | None = None
    why: str = ""
    needed: str = ""
    holm: str = ""
    holm_level: float = NOTHING
    same_as: str = ""
    key: str = ""

    @property
    def effect(self) -> float:
        """The statistic's value; NaN where there is none."""
        return NOTHING if self.found is None else self.found.effect

    @property
    def low(self) -> float:
        """The interval's lower end; NaN where there is none."""
        return NOTHING if self.found is None else self.found.low

    @property
    def high(self) -> float:
        """The interval's upper end; NaN where there is none."""
        return NOTHING if self.found is None else self.found.high

    @property
    def n(self) -> int:
        """Units of the interval."""
        return 0 if self.found is None else self.found.n

    @property
    def evidence(self) -> str:
        """Tell of a claim that holds whether the unrounded network satisfies it too."""
        if self.verdict != "holds":
            return ""
        if self.instead is None:
            return "not known"
        return "not evidence" if self.instead.verdict == "holds" else "evidence"

    def claimed(self) -> str:
        """Return the claimed side in words."""
        return self.side.text() + (f" × {self.relative_to}" if self.relative_to else "")

    def line(self) -> str:
        """Return the verdict as one line for the terminal."""
        if self.verdict == "not run":
            return f"{self.claim}: not run. {self.statistic}: {self.note}"
        known = math.isfinite(self.low) or math.isfinite(self.high)
        interval = f"95 % [{self.low:+.5f}, {self.high:+.5f}]" if known else "(no interval)"
        said = notes(
            self.note, "FP32 instead holds as well: not evidence" * (self.evidence == "not evidence")
        )
        return (
            f"{self.claim}: {self.verdict}. {self.statistic} = {self.effect:+.5f} {self.unit}, {interval}, "
            f"claimed {self.claimed()}, n = {self.n} × {self.over}" + (f" ({said})" if said else "")
        )


def over_seeds(values: np.ndarray, side: Side, level: float = LEVEL, is_zero: bool = False) -> Estimate:
    """Estimate a mean by Student's t, or a ratio of means by Fieller.

    Args:
        values: one a training seed, [n, 1]; of a ratio the numerators and the denominators, [n, 2].
        is_zero: whether these values, or the numerators, are 0 by what they are; see ``null.vanishes``.

    Returns:
        Of values that tell nothing, being equal, an estimate whose interval has no bounds.
    """
    above, many = values[:, 0], len(values) > 1
    if is_zero and many:
        sure = student_level(values[:, 1], 0.0) if values.shape[1] == 2 else 0.0
        return _of_zero(values, sure, side, level)
    if many and not can_tell(values):
        return _estimate(values, EVERYTHING, lambda limit: 1.0, side)
    if values.shape[1] == 1:
        interval, level_at = student_interval(above, level), partial(student_level, above)
    else:
        below = values[:, 1]
        interval, level_at = fieller_interval(above, below, level), partial(fieller_level, above, below)
    return _estimate(values, interval, level_at, side)


def over_examples(
    values: np.ndarray, draws: np.ndarray, side: Side, level: float = LEVEL, is_zero: bool = False
) -> Estimate:
    """Estimate a mean, or a ratio of means, by the percentile bootstrap.

    Args:
        values: one an example, [n, 1]; of a ratio the numerators and the denominators, [n, 2]. draws: their
            means on resamples, [resamples, 1 or 2]. is_zero: see ``over_seeds``.

    Returns:
        Of fewer than LEAST_EXAMPLES, and of equal values, an estimate whose interval has no bounds: it
        decides nothing.
    """
    if len(values) < LEAST_EXAMPLES:
        return _estimate(values, EVERYTHING, lambda limit: 1.0, side)
    ratio, sure = draws[:, 0], 0.0
    if draws.shape[1] == 2:
        # As Fieller's, the interval has bounds where the denominator is told from 0.
        sure = percentile_level(draws[:, 1], 0.0) if has_spread(values[:, 1]) else 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = draws[:, 0] / draws[:, 1]
    if is_zero:
        return _of_zero(values, sure, side, level)
    if not can_tell(values):
        return _estimate(values, EVERYTHING, lambda limit: 1.0, side)

    def level_at(limit: float) -> float:
        return max(percentile_level(ratio, limit), sure)

    interval = percentile_interval(ratio, level) if sure < 1 - level else EVERYTHING
    return _estimate(values, interval, level_at, side)


def _of_zero(values: np.ndarray, sure: float, side: Side, level: float) -> Estimate:
    """Estimate what is 0 by what it is.

    Args:
        sure: of a ratio the level at which its denominator is told from 0; else 0.
    """
    interval = (0.0, 0.0) if sure < 1 - level else EVERYTHING
    return _estimate(values, interval, lambda limit: max(float(limit == 0), sure), side)


def _estimate(
    values: np.ndarray, interval: tuple[float, float], level_at: Callable[[float], float], side: Side
) -> Estimate:
    means = values.mean(axis=0)
    effect, deviations, scale = float(means[0]), values[:, 0], 1.0
    if len(means) == 2:
        scale = abs(float(means[1])) if abs(float(means[1])) >= SMALLEST else 0.0
        effect = effect / float(means[1]) if scale else NOTHING
        deviations = values[:, 0] - effect * values[:, 1]
    spread = NOTHING
    if scale and len(values) > 1:
        spread = float(np.std(deviations, ddof=1)) / scale
        if not has_spread(deviations, float(np.abs(values[:, 0]).max())):
            spread = 0.0
    at = 1.0
    if side.is_open:
        at = NOTHING
    elif not math.isnan(effect):
        at = verdict_level(effect, side.low, side.high, level_at)
    return Estimate(effect, *interval, at, spread, len(values), side.outcome(*interval))


@dataclass(frozen=True)
class _Case:
    """A claim whose rows are there."""

    claim: Claim
    words: str
    side: Side
    statistic: Statistic
    instead: Statistic
    key: str


def judge_all(
    claims: Sequence[Claim],
    record: pd.DataFrame,
    unit: str,
    level: float = LEVEL,
    examples: ExampleValues | None = None,
    kept: pd.DataFrame | None = None,
) -> list[Verdict]:
    """Judge claims by the one test: does the interval of the statistic lie on the claimed side?

    Args:
        record: long-form rows of one scale. unit: a key of UNITS. level: of the intervals.
        examples: where the values of each test example are looked up. kept: estimates over examples of an
            earlier run, as :func:`kept_estimates` gives them: taken up where the rows, the level and the code
            are the same.

    Raises:
        InputError: another unit; the record contradicts itself, such as two rows where one is expected.
    """
    if unit not in UNITS:
        raise InputError(f"a scale's unit is {unit!r}; one of {', '.join(map(repr, UNITS))} is expected")
    record = record.reset_index(drop=True)
    stands = stand_ins(record)
    values = with_absent(record["value"])
    # Claims look rows up by their texts: as categories that takes a twentieth of the time.
    record = record.astype({column: "category" for column in TEXTS if column in record})
    others = bool(other_names(record))
    cases: list[_Case | Verdict] = []
    for claim in claims:
        words = claim.statistic
        if FP32 in words and others:  # of networks in other dtypes
            words = words.replace(FP32, "unrounded")
        try:
            cases.append(_case(claim, words, record, stands))
        except NotRun as missing:
            cases.append(
                Verdict(
                    claim.name, words, claim.unit, claim.side, "not run", str(missing), claim.reference_name
                )
            )
    there = [case for case in cases if isinstance(case, _Case)]
    beside = _over_examples(there, record, level, examples, kept)
    judged = [
        case if isinstance(case, Verdict) else _verdict(case, values, unit, level, *beside[case.claim.name])
        for case in cases
    ]
    return _adjusted(judged, level)


def _case(claim: Claim, words: str, record: pd.DataFrame, stands: pd.Series) -> _Case:
    statistic = claim.of(record)
    side = claim.side
    if claim.reference is not None:
        single = claim.reference.values(record).reindex(statistic.seeds)
        if single.isna().any():
            raise NotRun(f"no rows of some seeds: {claim.reference}")
        side = side.times(float(single.mean()))
    instead = statistic.standing_in(stands)
    return _Case(claim, words, side, statistic, instead, _key(statistic, instead, side, record))


def _key(statistic: Statistic, instead: Statistic, side: Side, record: pd.DataFrame) -> str:
    """Name the rows that a claim compares, their weights and values, and the side."""
    parts = [term for each in (statistic, instead) for terms in each.sums for term in terms]
    labels = [int(row) for term in parts for row in term.rows]
    weights = [f"{weight:.9g}" for term in parts for weight in term.weights]
    rows = record.loc[[label for label in labels if label >= 0], [*KEY, "value"]].to_csv(index=False)
    absent = [(place, label) for place, label in enumerate(labels) if label < 0]
    text = json.dumps([rows, absent, weights, f"{side.low:.9g}", f"{side.high:.9g}", statistic.over is None])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _verdict(
    case: _Case,
    values: pd.Series,
    unit: str,
    level: float,
    examples: Estimate | None,
    examples_instead: Estimate | None,
    why: str,
) -> Verdict:
    claim, side, note = case.claim, case.side, case.statistic.note
    of_seeds = _of_seeds(case.statistic, values)
    found = over_seeds(of_seeds, side, level, vanishes(case.statistic.terms))
    others = _of_seeds(case.instead, values)
    instead = None
    if np.isfinite(others).all():
        instead = over_seeds(others, side, level, vanishes(case.instead.terms))
    by_examples = unit == "example" or (unit == "seed" and found.n == 1 and examples is not None)
    if by_examples:
        # One checkpoint has no spread over seeds: without its examples there is an effect and no interval.
        note = notes(note, f"no interval: {why}" if examples is None else "")
        outcome = "reported" if side.is_open else "undecided"
        found = examples or replace(found, low=NOTHING, high=NOTHING, verdict=outcome, level=NOTHING)
        instead = examples_instead or instead
        examples = examples_instead = None
    few = found if by_examples else examples
    if few is not None and math.isinf(few.low) and few.n < LEAST_EXAMPLES:
        few_words = "1 test example decides" if few.n == 1 else f"{few.n} test examples decide"
        note = notes(note, f"{few_words} nothing, {LEAST_EXAMPLES} are needed")
    flat = "" if by_examples and found.n < LEAST_EXAMPLES else _without_spread(found, of_seeds, by_examples)
    note = notes(note, flat)
    needed = ""
    if found.verdict == "undecided" and math.isfinite(found.spread) and not flat:
        most = MOST_EXAMPLES if by_examples else MOST_SEEDS
        enough = needed_units(found.effect, found.spread, side.low, side.high, level, most=most)
        least = LEAST_EXAMPLES if by_examples else 0
        needed = "never" if enough is None else str(max(enough, least))
    if math.isnan(found.effect):
        note = notes(note, "its denominator is 0")
    return Verdict(
        claim.name,
        case.words,
        claim.unit,
        side,
        found.verdict,
        note,
        "",
        found,
        UNITS["example" if by_examples else unit][0],
        instead,
        examples,
        examples_instead,
        why,
        needed,
        key=case.key,
    )


def _of_seeds(statistic: Statistic, values: pd.Series) -> np.ndarray:
    """Return a statistic's sums, a row a seed; the same value where a record's digits tell no difference."""
    return np.stack([_told_apart(terms, values) for terms in statistic.sums], axis=1)


def _told_apart(terms: Sum, values: pd.Series) -> np.ndarray:
    sums = value_of(terms, values).to_numpy(float)
    parts = [term.weights.to_numpy() * values.loc[term.rows].to_numpy() for term in terms]
    if np.ptp(sums) <= RECORDED * np.abs(parts).sum(axis=0).max():
        return np.full(len(sums), sums.mean())
    return sums


def _without_spread(found: Estimate, of_seeds: np.ndarray, by_examples: bool) -> str:
    """Say what has no spread where that is why an estimate has no bounds."""
    if not math.isinf(found.low):
        return ""
    if found.spread == 0:
        return f"no spread among the {found.n} {'test examples' if by_examples else 'training seeds'}"
    if by_examples or of_seeds.shape[1] == 1 or abs(of_seeds[:, 1].mean()) < SMALLEST:
        return ""
    if has_spread(of_seeds[:, 1]):
        return ""
    return f"no spread among its denominators of {found.n} training seeds"


def _adjusted(verdicts: list[Verdict], level: float) -> list[Verdict]:
    """Add Holm's verdicts, over all claims that were judged, each comparison of rows counted once."""
    first: dict[str, str] = {}
    for verdict in verdicts:
        if verdict.found is not None and verdict.verdict != "reported":
            first.setdefault(verdict.key, verdict.claim)
    levels = {v.key: v.found.level for v in verdicts if v.found is not None and v.key in first}
    adjusted = dict(zip(first, holm([levels[key] for key in first]), strict=True))
    made = []
    for verdict in verdicts:
        if verdict.key in adjusted:
            at = float(adjusted[verdict.key])
            earlier = first[verdict.key]
            verdict = replace(
                verdict,
                holm=verdict.verdict if at < 1 - level else "undecided",
                holm_level=at,
                same_as="" if earlier == verdict.claim else earlier,
            )
        made.append(verdict)
    return made


# Estimates over examples.

_MEASURED = ("effect", "low", "high", "level", "spread")
KEPT = ("claim", "rows", "n", *_MEASURED, *(f"instead_{name}" for name in _MEASURED), "key")
"""The columns of the estimates over examples that a folder keeps; see :func:`kept_key` for the last."""


def kept_key(row: Mapping[str, object], level: float) -> str:
    """Return the key of a kept estimate: a hash of its rows, its level, the code that made it, and itself.

    Args:
        row: with the columns of KEPT but the last. level: of the interval.
    """
    numbers = [row[name] for name in KEPT if name not in ("claim", "rows", "key")]
    text = json.dumps([row["rows"], f"{level:.12g}", _code(), *(f"{number:.12g}" for number in numbers)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    """Return the hash of the code that estimates over examples."""
    return code_hash(over_examples, resampled_means, columns_of, vanishes)


def _over_examples(
    cases: Sequence[_Case],
    record: pd.DataFrame,
    level: float,
    examples: ExampleValues | None,
    kept: pd.DataFrame | None,
) -> dict[str, tuple[Estimate | None, Estimate | None, str]]:
    """Return, by claim, the estimates over examples, of the statistic and of the null, or why there are none.

    All claims on the same examples see the same resamples, which are drawn once.
    """
    found: dict[str, tuple[Estimate | None, Estimate | None, str]] = {}
    pending: dict[bytes, list[tuple[_Case, Columns, Columns | None]]] = {}
    for case in cases:
        earlier = None if kept is None else _taken_up(kept, case, level)
        if earlier is not None:
            found[case.claim.name] = (*earlier, "")
            continue
        try:
            if examples is None:
                raise NotAvailable("python -m reproduce claims looks up the values of single examples")
            columns = columns_of(case.statistic, record, examples)
        except NotAvailable as missing:
            found[case.claim.name] = (None, None, str(missing))
            continue
        try:
            other: Columns | None = columns_of(case.instead, record, examples)
        except NotAvailable:
            other = None
        if other is not None and not np.array_equal(other.examples, columns.examples):
            other = None
        pending.setdefault(columns.examples.tobytes(), []).append((case, columns, other))
    for group in pending.values():
        every = [each for _, *pair in group for each in pair if each is not None]
        draws = iter(_split(resampled_means(np.hstack([each.values for each in every])), every))
        for case, columns, other in group:
            estimates = [
                over_examples(each.values, next(draws), case.side, level, vanishes(of.terms))
                for each, of in ((columns, case.statistic), (other, case.instead))
                if each is not None
            ]
            found[case.claim.name] = (estimates[0], estimates[1] if other is not None else None, "")
    return found


def _split(draws: np.ndarray, parts: Sequence[Columns]) -> list[np.ndarray]:
    ends = np.cumsum([each.values.shape[1] for each in parts])
    return np.split(draws, ends[:-1], axis=1)


def kept_estimates(verdicts: Sequence[Verdict], level: float = LEVEL) -> list[dict[str, object]]:
    """Return the estimates over examples as rows of KEPT: a folder is judged again without the store.

    Args:
        level: of the intervals.
    """
    rows = []
    for verdict in verdicts:
        pair = (verdict.examples, verdict.examples_instead)
        if verdict.over == UNITS["example"][0] and verdict.found is not None:
            pair = (verdict.found, verdict.instead)
        if pair[0] is None or not math.isfinite(pair[0].level):
            continue
        row: dict[str, object] = {"claim": verdict.claim, "rows": verdict.key, "n": pair[0].n}
        for prefix, estimate in zip(("", "instead_"), pair, strict=True):
            row |= {f"{prefix}{name}": getattr(estimate, name, NOTHING) for name in _MEASURED}
        rows.append(row | {"key": kept_key(row, level)})
    return rows


def _taken_up(kept: pd.DataFrame, case: _Case, level: float) -> tuple[Estimate, Estimate | None] | None:
    rows = kept[(kept["claim"] == case.claim.name) & (kept["rows"] == case.key)]
    if rows.empty:
        return None
    row = rows.iloc[0]
    if row["key"] != kept_key({str(name): value for name, value in row.items()}, level):
        return None

    def read(prefix: str) -> Estimate:
        numbers = {name: float(row[f"{prefix}{name}"]) for name in _MEASURED}
        outcome = case.side.outcome(numbers["low"], numbers["high"])
        return Estimate(**numbers, n=int(row["n"]), verdict=outcome)

    instead = read("instead_")
    # An effect may be NaN, where a denominator is 0: what was not estimated has no limits either.
    return read(""), None if math.isnan(instead.low) else instead
