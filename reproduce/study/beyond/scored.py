"""Rows of shift and selective prediction, out of files of predictions alone: no network runs.

Temperatures and windows are fitted on the validation examples, on which no row is scored.

The diagram of members is that of Fort et al. 2019, "Deep Ensembles: A Loss Landscape Perspective": the error
of each member, and the share of examples on which it and the unrounded network predict other classes.

The order of pooling and calibrating is that of Rahaman & Thiery 2021, "Uncertainty quantification and deep
ensembles".

Cascades are those of Xia & Bouganis 2023, "Window-Based Early-Exit Cascades for Uncertainty Estimation": the
second of two members runs over the examples on which the first's confidence lies in a window around the
threshold that decides. That is, for the coverage at 5 % risk the confidence at which the first reaches this
risk on validation examples; for the risk at 80 % coverage its confidence there; for the NLL there is no
threshold, and the least confident go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import lpe
from lpe.errors import InputError
from lpe.evaluation.metrics import fit_temperature, mean_log_probs, nll
from lpe.evaluation.predictions import Predictions, check_same_examples, read_predictions
from lpe.evaluation.prefixes import Prefixes
from lpe.evaluation.score import detection
from lpe.evaluation.selective import COVERAGE, auroc, coverage_at_risk, risk_at_coverage
from reproduce.study.beyond.names import (
    AIMS,
    AUROC_INFORMATION,
    AUROC_PROBABILITY,
    CALIBRATED_THEN_POOLED,
    CLEAN,
    COVERAGES,
    POOLED_THEN_CALIBRATED,
    SHARES,
    UNCORRUPTED,
    VALIDATION,
    Method,
    cascade_metric,
    corruption_name,
    member_metric,
    risk_metric,
)
from reproduce.study.unrounded import NAMES, scaled

SCORED = (
    "nll",
    "err",
    "ece",
    "signed_ece",
    "adaptive_ece",
    "brier",
    "ambiguity",
    "disagreement",
    "aurc",
    "cov_at_5_risk",
    "risk_at_80_cov",
    "auroc_errors",
)
"""Metrics of every set of examples that have classes."""

ScoredRow = dict[str, object]
"""With size, metric, value and memory_bits."""
Scored = tuple[Method, str, ScoredRow]


@dataclass(frozen=True)
class _Shown:
    """What members predict of some examples.

    Args:
        log_probs: float64 [members, examples, classes], each row normalised. targets: int64 [examples].
        memory_bits: of the first 1 … M members.
    """

    log_probs: Tensor
    targets: Tensor
    memory_bits: Sequence[int]

    def mean(self, size: int) -> Tensor:
        """Return log of the mean of the first members' probabilities, [examples, classes]."""
        return mean_log_probs(self.log_probs[:size])


def rows(
    written: Mapping[Method, Mapping[str, Path]],
    corruptions: Sequence[tuple[str, int]],
    foreign: Sequence[str],
    sizes: Collection[int],
    unfitted: Collection[Method] = (),
) -> Iterator[Scored]:
    """Yield the rows of all methods: the method, the examples that it is shown, and the row.

    What is not a number or not finite has no row: the AUROC of errors where there are none, the NLL where a
    target has probability 0.

    Args:
        written: files of :func:`lpe.evaluate`'s ``predictions``, by method and by examples: ``VALIDATION``,
            ``CLEAN``, where there are corruptions ``UNCORRUPTED`` and their names, and the foreign ones. One
            of the methods is an unrounded network ("FP32", …), which the others are compared with; it is
            there with a temperature too.
        corruptions: kinds and severities. foreign: names of examples that have no class.
        sizes: of ensembles; those that a method has, and its largest.
        unfitted: methods whose members were trained on validation examples. They have no rows of what is
            fitted there, temperatures and windows, which would be those of examples that they know.

    Raises:
        InputError: no unrounded network; examples that a method has no file of; a file that is damaged, of
            other examples, or of another ensemble.
    """
    single = next((method for method in written if method.method in NAMES), None)
    if single is None:
        raise InputError(f"no method is an unrounded network ({', '.join(NAMES)}); give its predictions too")
    classed = [CLEAN, *[UNCORRUPTED][: len(corruptions)], *(corruption_name(*each) for each in corruptions)]
    _check_there(written, [VALIDATION, *classed, *foreign])
    reference = read_predictions(written[single][CLEAN])
    decided = reference.log_probs(0, 0, len(reference.targets)).argmax(dim=-1)
    for method, files in written.items():
        check_same_examples([reference, read_predictions(files[CLEAN])], inputs=True)
        there = _sizes(files[CLEAN], sizes)
        validation, clean = _shown(files[VALIDATION]), _shown(files[CLEAN])
        parts = [
            *((examples, _metrics(files[examples], there)) for examples in classed),
            *((examples, _detected(files[CLEAN], files[examples], there)) for examples in foreign),
            (CLEAN, _risks(clean, there[-1])),
            (CLEAN, _members(clean, decided)),
        ]
        if method not in unfitted:
            parts.append((CLEAN, _calibrated(validation, clean, there)))
            if there[-1] > 1:
                parts.append((CLEAN, _cascades(validation, clean)))
        yield from _named(method, parts)
        if method == single:
            shown = {examples: _shown(files[examples]) for examples in (*classed, *foreign)}
            yield from _with_temperature(method, validation, shown, foreign)


def _check_there(written: Mapping[Method, Mapping[str, Path]], wanted: Sequence[str]) -> None:
    for method, files in written.items():
        if lacking := [examples for examples in wanted if examples not in files]:
            raise InputError(
                f"{method.method} at {method.point} has no predictions of {', '.join(lacking)}; evaluate it "
                "on them first"
            )


def _named(method: Method, parts: Iterable[tuple[str, Iterable[ScoredRow]]]) -> Iterator[Scored]:
    for examples, of_part in parts:
        for row in of_part:
            if math.isfinite(float(str(row["value"]))):
                yield method, examples, row


def _sizes(file: Path, sizes: Collection[int]) -> list[int]:
    most = read_predictions(file).size
    return sorted({size for size in sizes if size <= most} | {most})


def _shown(file: Path) -> _Shown:
    opened: Predictions = read_predictions(file)
    members = [opened.log_probs(member, 0, len(opened.targets)) for member in range(opened.size)]
    bits = [int(each) for each in opened.about["memory_bits"]]
    return _Shown(torch.stack(members).double().log_softmax(dim=-1), opened.targets, bits)


def _row(shown: _Shown, size: int, metric: str, value: float) -> ScoredRow:
    return {"size": size, "metric": metric, "value": value, "memory_bits": shown.memory_bits[size - 1]}


def _metrics(file: Path, sizes: Sequence[int]) -> Iterator[ScoredRow]:
    table = lpe.score(file, metrics=SCORED, sizes=sizes)
    for line in table.to_dict("records"):
        for metric in SCORED:
            bits = int(line["memory_bits"])
            yield {"size": int(line["size"]), "metric": metric, "value": line[metric], "memory_bits": bits}


def _detected(clean: Path, foreign: Path, sizes: Sequence[int]) -> Iterator[ScoredRow]:
    memory = read_predictions(clean).about["memory_bits"]
    for line in detection(clean, foreign, sizes).to_dict("records"):
        size = int(line["size"])
        bits = int(memory[size - 1])
        # A single network has no mutual information.
        for metric in (AUROC_PROBABILITY, AUROC_INFORMATION)[: 1 + (size > 1)]:
            yield {"size": size, "metric": metric, "value": line[metric], "memory_bits": bits}


def _decisions(log_probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return confidence and whether the top class is right, both [examples]."""
    confidence, predicted = log_probs.exp().max(dim=-1)
    return confidence, predicted == targets


def _risks(clean: _Shown, size: int) -> Iterator[ScoredRow]:
    decisions = _decisions(clean.mean(size), clean.targets)
    for coverage in COVERAGES:
        yield _row(clean, size, risk_metric(coverage), risk_at_coverage(*decisions, coverage))


def _calibrated(validation: _Shown, clean: _Shown, sizes: Sequence[int]) -> Iterator[ScoredRow]:
    temperatures = [fit_temperature(member, validation.targets) for member in validation.log_probs]
    members = _at(clean.log_probs, torch.tensor(temperatures, dtype=torch.float64)[:, None, None])
    for size in sizes:
        pooled = _at(clean.mean(size), fit_temperature(validation.mean(size), validation.targets))
        yield _row(clean, size, POOLED_THEN_CALIBRATED, nll(pooled, clean.targets))
        yield _row(clean, size, CALIBRATED_THEN_POOLED, nll(mean_log_probs(members[:size]), clean.targets))


def _at(log_probs: Tensor, temperature: float | Tensor) -> Tensor:
    return (log_probs / temperature).log_softmax(dim=-1)


def _members(clean: _Shown, decided: Tensor) -> Iterator[ScoredRow]:
    for member, log_probs in enumerate(clean.log_probs):
        predicted = log_probs.argmax(dim=-1)
        found = {
            "err": float((predicted != clean.targets).double().mean()),
            "disagreement": float((predicted != decided).double().mean()),
        }
        for metric, value in found.items():
            yield _row(clean, 1, member_metric(metric, member), value)


def _cascades(validation: _Shown, clean: _Shown) -> Iterator[ScoredRow]:
    first, pair = clean.mean(1), clean.mean(2)
    confidence = first.exp().amax(dim=-1)
    chosen_on = _decisions(validation.mean(1), validation.targets)
    for aim in AIMS:
        for share in SHARES:
            low, high = window(*chosen_on, aim, share)
            goes_on = (confidence >= low) & (confidence <= high)
            log_probs = torch.where(goes_on[:, None], pair, first)
            networks = 1 + float(goes_on.double().mean())
            yield _row(clean, 2, cascade_metric("networks", aim, share), networks)
            value = _MEASURED[aim](log_probs, clean.targets)
            yield _row(clean, 2, cascade_metric(aim, aim, share), value)


_MEASURED: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "cov_at_5_risk": lambda log_probs, targets: coverage_at_risk(*_decisions(log_probs, targets)),
    "risk_at_80_cov": lambda log_probs, targets: risk_at_coverage(*_decisions(log_probs, targets)),
    "nll": nll,
}


def window(confidence: Tensor, correct: Tensor, aim: str, share: float) -> tuple[float, float]:
    """Return the confidences between which examples go on: a share of the validation examples.

    The window has as many of them above as below the threshold, as far as there are so many.

    Args:
        confidence: [examples], of the first member on validation examples. correct: bool [examples].
        aim: "cov_at_5_risk", "risk_at_80_cov" or "nll". share: of the examples, 0 … 1.

    Returns:
        (low, high), both included, each halfway between two confidences; −∞ and ∞ at the ends, so that all
        examples of another set go on at share 1. Nothing lies in it at share 0.
    """
    ordered = confidence.double().sort().values
    count = len(ordered)
    inside = round(share * count)
    if not inside:
        return math.inf, -math.inf
    covered = {"cov_at_5_risk": coverage_at_risk(confidence, correct), "risk_at_80_cov": COVERAGE, "nll": 1.0}
    threshold = round((1 - covered[aim]) * count)
    start = min(max(threshold - inside // 2, 0), count - inside)
    stop = start + inside
    low = float(ordered[start - 1] + ordered[start]) / 2 if start else -math.inf
    high = float(ordered[stop - 1] + ordered[stop]) / 2 if stop < count else math.inf
    return low, high


def _with_temperature(
    method: Method, validation: _Shown, shown: Mapping[str, _Shown], foreign: Sequence[str]
) -> Iterator[Scored]:
    """Yield the rows of the unrounded network at the temperature of the validation examples."""
    temperature = fit_temperature(validation.mean(1), validation.targets)
    at_it = {
        examples: replace(
            each,
            log_probs=_at(each.log_probs[:1], temperature),
            memory_bits=[each.memory_bits[0] + 32],  # the temperature is one number more
        )
        for examples, each in shown.items()
    }
    clean = at_it[CLEAN]
    confidence = clean.mean(1).exp().amax(dim=-1)
    parts: list[tuple[str, Iterable[ScoredRow]]] = []
    for examples, each in at_it.items():
        if examples in foreign:
            found = auroc(confidence, each.mean(1).exp().amax(dim=-1))
            parts.append((examples, [_row(each, 1, AUROC_PROBABILITY, found)]))
        else:
            prefixes = Prefixes(1, selective=True)
            prefixes.add(0, 0, each.targets, each.log_probs[0])
            (values,) = prefixes.rows(each.memory_bits)
            parts.append((examples, [_row(each, 1, metric, values[metric]) for metric in SCORED]))
    parts.append((CLEAN, _risks(clean, 1)))
    yield from _named(replace(method, method=scaled(method.method)), parts)
