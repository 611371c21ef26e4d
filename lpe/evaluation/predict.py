"""Measures an ensemble on batches: the metrics of every prefix size 1 … M, out of one evaluation.

Each batch is read (and decoded) once for all members. :mod:`lpe.evaluation.loops` says in which order they
run; running sums of probabilities (by log-sum-exp) and of logits grow by one member at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lpe.checks import is_number, shown
from lpe.ensembles.base import Ensemble, check_ensemble
from lpe.ensembles.cascade import Cascade
from lpe.errors import InputError
from lpe.evaluation import loops
from lpe.evaluation.batches import Batch
from lpe.evaluation.batches import stream as checked_stream
from lpe.evaluation.cascades import evaluate_cascade
from lpe.evaluation.examples import ExampleMetrics
from lpe.evaluation.metrics import (
    METRICS,
    EnsembleMetrics,
    calibrated_sizes,
    fit_temperature,
    mean_log_probs,
    temperature_scaled,
)
from lpe.evaluation.options import PLAIN, EvaluationOptions, check_options
from lpe.evaluation.predictions import (
    CLASSES,
    PredictionsWriter,
    about_ensemble,
    check_examples,
    check_place,
    check_same,
    drop_partial,
    read_predictions,
)
from lpe.evaluation.prefixes import Prefixes
from lpe.evaluation.score import CALIBRATED, TOKEN_METRICS, are_selective, checked_metrics, scored_rows
from lpe.evaluation.timing import MemberTimer
from lpe.evaluation.tokens import evaluate_tokens, peeked
from lpe.notices import say
from lpe.writing import locked

if TYPE_CHECKING:
    import pandas as pd

MEMBERS = ("auto", "one-by-one", "together")


def _are_of_tokens(metrics: object) -> bool:
    """Tell whether a metric is asked for that batches of tokens alone have."""
    asked = [metrics] if isinstance(metrics, str) else metrics
    own = set(TOKEN_METRICS) - set(METRICS)
    return isinstance(asked, list | tuple | set | frozenset) and any(each in own for each in map(str, asked))


@torch.no_grad()
def evaluate(
    ensemble: Ensemble | Cascade,
    batches: Iterable[Any],
    calibrated: bool | Collection[int] = False,
    chunk_bytes: int | None = None,
    timer: MemberTimer | None = None,
    members: str = "auto",
    options: EvaluationOptions = PLAIN,
    examples: ExampleMetrics | None = None,
    predictions: str | os.PathLike[str] | None = None,
    predictions_dtype: str = "float32",
    predictions_record: Mapping[str, object] | None = None,
    metrics: str | Collection[str] | None = None,
) -> pd.DataFrame:
    """Return the metrics of every prefix of an ensemble.

    Args:
        ensemble: any ensemble, or a cascade: see :func:`lpe.evaluation.cascades.evaluate_cascade`.
        batches: iterable of (inputs, targets), read once: inputs a tensor, a tuple or list (positional
            arguments) or a dict (keyword arguments); targets class indices [examples]. Or of token ids, alone
            or among other inputs, and labels, both integers [texts, tokens]: a language model's, whose logits
            at a token are of the next label, −100 where it does not count (:mod:`lpe.evaluation.tokens`).
        calibrated: also fit temperatures, for the column ``calibrated_nll``: at every size, or at these sizes
            (elsewhere it is NaN). This keeps the log-probabilities of these sizes, float64 [examples,
            classes] each, in memory.
        chunk_bytes: bytes of inputs and running sums held at a time, and of members kept where all fit; None:
            one batch for members that are there, 256 MiB for members that must be made. With more of it large
            members are made fewer times. It never changes a result beyond float rounding.
        timer: takes the time of each member, made and run; one of as many members. Where members run
            together each takes an equal share.
        members: "one-by-one"; "together", all members of a LowPrecisionEnsemble or of a LaplaceEnsemble at
            once on each batch; or "auto", together where that was measured to be faster
            (:func:`lpe.evaluation.loops.runs_together`), the model can, and no timer is given. The numbers
            are the same up to float rounding. Where memory does not hold all of them at once they run one by
            one from there on, and a note says so.
        options: of the forward passes, see :class:`EvaluationOptions`; they may change numbers.
        examples: takes up the values of each example; empty. Not of a cascade.
        predictions: a file that every member's log-probabilities and the targets are written to, as it goes
            (:mod:`lpe.evaluation.predictions`). Not of a cascade. The table is then the file's, to the bit
            what :func:`lpe.score` makes of it; without a file it is the same up to the file's rounding, of
            float32 about 10⁻⁷. A run that was killed goes on. Where the file is there already, the batches
            are read, to see that it is of them, and no member is run.
        predictions_dtype: of the file's log-probabilities: "float32", "float16" or "float64".
        predictions_record: plain data on where they come from (the model, the data), for the file's header.
        metrics: those of the table, as :func:`lpe.score` takes them: names, or "all", the selective ones
            included; "calibrated_nll" is one of every size. None: nll, err, ece, average_loss, ambiguity,
            ensemble_loss, brier. Not of a cascade, which has these.

    Returns:
        A row per size 1 … M: size, the metrics (err and the selective ones fractions, losses in nats),
        memory_bits (n stored members), and calibrated_nll where asked. Of tokens the metrics are nll,
        average_loss (nats a token) and perplexity.

    Raises:
        InputError: what is no ensemble; an empty stream, or a batch that is no pair; targets that are not
            class indices, or a label out of range; logits that are not real [examples, classes] of two
            classes or more, of other classes than before, NaN, +∞, or −∞ for every class (see
            :mod:`lpe.logits`); a size in ``calibrated`` that there is not; a timer of another number of
            members; members that cannot run together; an unknown metric; a file of
            predictions of another ensemble, of other examples, options or type, truncated or altered, or that
            cannot be written.
    """
    import pandas as pd

    if not isinstance(timer, MemberTimer | None):
        raise InputError(f"timer must be a MemberTimer or None, not {shown(timer)}")
    check_options(options)
    if not isinstance(examples, ExampleMetrics | None):
        raise InputError(f"examples must be ExampleMetrics() or None, not {shown(examples)}")
    if chunk_bytes is not None and not (is_number(chunk_bytes) and chunk_bytes >= 0):
        raise InputError(f"chunk_bytes must be a number of bytes ≥ 0 or None, not {shown(chunk_bytes)}")
    if isinstance(ensemble, Cascade):
        if timer is not None:
            raise InputError("a cascade has no time a member; time its predict instead")
        if members != "auto" or options != PLAIN:
            raise InputError("a cascade runs its members in its own way; leave members and options out")
        if examples is not None:
            raise InputError("a cascade keeps no values of examples; leave examples out")
        if metrics is not None:
            raise InputError("a cascade has the metrics of every evaluation and no others; leave metrics out")
        if predictions is not None:
            raise InputError(
                "a cascade runs few members on most examples; write the predictions of the ensemble that it "
                "is made of"
            )
        budget = loops.CHUNK_BYTES if chunk_bytes is None else chunk_bytes
        seen = [0]
        chunks = loops.in_chunks(checked_stream(batches), budget, seen)
        return evaluate_cascade(ensemble, chunks, seen, calibrated)
    check_ensemble(ensemble, "evaluate")
    if timer is not None and len(timer.seconds) != len(ensemble):
        raise InputError(
            f"the timer is of {len(timer.seconds)} members, the ensemble has {len(ensemble)}; make it of as "
            "many"
        )
    if chunk_bytes is None:
        chunk_bytes = 0 if ensemble.members_are_stored else loops.CHUNK_BYTES
    if not _are_of_tokens(metrics):
        checked_metrics(metrics, CLASSES)  # before a batch is read
    batches, of_tokens = peeked(batches)
    if of_tokens:
        if members == "together" or calibrated is not False or examples is not None:
            raise InputError(
                "batches of tokens have nats a token alone, and members run one by one; leave calibrated, "
                "examples and members='together' out"
            )
        return evaluate_tokens(
            ensemble,
            batches,
            chunk_bytes,
            options,
            timer,
            predictions,
            predictions_dtype,
            predictions_record,
            metrics,
        )
    names = checked_metrics(metrics, CLASSES)
    calibrated = calibrated_sizes(calibrated, range(1, len(ensemble) + 1))
    columns = ["size", *names, "memory_bits"]
    if CALIBRATED in names:
        calibrated = calibrated or tuple(range(1, len(ensemble) + 1))
    elif calibrated:
        columns.append(CALIBRATED)
    selective = are_selective(names)
    if not isinstance(members, str) or members not in MEMBERS:
        raise InputError(f"members must be one of {', '.join(MEMBERS)}, not {shown(members)}")
    say(ensemble.notes())
    if predictions is not None:
        file = check_place(predictions)
        about = about_ensemble(ensemble, asdict(options), predictions_dtype, predictions_record)
        with locked(file):
            if not file.exists():
                writer = PredictionsWriter(file, about)
                _write(writer, ensemble, batches, chunk_bytes, members, options, timer)
                written = read_predictions(file)
            else:
                written = read_predictions(file)
                check_same(file, written.about, about)
                drop_partial(file)
                check_examples(written, checked_stream(batches))
            sizes = range(1, len(ensemble) + 1)
            return pd.DataFrame(scored_rows([written], sizes, calibrated, examples, selective))[columns]
    prefixes = Prefixes(len(ensemble), calibrated, examples, selective=selective)
    run = loops.passes(ensemble, batches, chunk_bytes, members, options, timer)
    for index, block, targets, logits in run:
        if timer and not index:
            timer.examples += len(targets)
        prefixes.add(index, block, targets, logits)
    if not prefixes.all_targets:
        raise InputError("the batches are empty; there is nothing to evaluate")
    memory = [ensemble.memory_bits(n) for n in range(1, len(ensemble) + 1)]
    return pd.DataFrame(prefixes.rows(memory))[columns]


def _write(
    writer: PredictionsWriter,
    ensemble: Ensemble,
    batches: Iterable[Any],
    budget: float,
    members: str,
    options: EvaluationOptions,
    timer: MemberTimer | None,
) -> None:
    """Write what a file lacks of an ensemble's predictions, and finish it."""
    try:
        run = loops.passes(ensemble, batches, budget, members, options, timer, writer)
        for index, _, targets, logits in run:
            if timer and not index:
                timer.examples += len(targets)
            writer.add(index, logits.double().log_softmax(dim=-1))
    finally:
        writer.drop_if_empty()
    writer.finish()


@torch.no_grad()
def member_log_probs(
    ensemble: Ensemble, batches: Iterable[Any], options: EvaluationOptions = PLAIN
) -> tuple[Tensor, Tensor]:
    """Return every member's log-probabilities, all kept: for checks, and for few members or few classes.

    Members run one by one. Batches in a list are taken at once, so that each member is made once; of a
    stream, and of data that is read anew each time, no more than 256 MiB are held.

    Returns:
        float64 [members, examples, classes], and the targets, int64 [examples].
    """
    check_ensemble(ensemble, "member_log_probs")
    check_options(options)
    log_probs: list[list[Tensor]] = [[] for _ in range(len(ensemble))]
    all_targets: list[Tensor] = []
    budget = math.inf if isinstance(batches, Sequence) else loops.CHUNK_BYTES
    run = loops.one_by_one(ensemble, checked_stream(batches), budget, options, None)
    for index, _, targets, logits in run:
        if not index:
            all_targets.append(targets.cpu())
        log_probs[index].append(logits.double().log_softmax(dim=-1).cpu())
    if not all_targets:
        raise InputError("the batches are empty; there is nothing to evaluate")
    return torch.stack([torch.cat(of_member) for of_member in log_probs]), torch.cat(all_targets)


@torch.no_grad()
def member_logits(
    ensemble: Ensemble,
    stream: Iterator[Batch],
    options: EvaluationOptions = PLAIN,
    timer: MemberTimer | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield what members say, as :func:`evaluate` takes it up where they run one by one.

    Args:
        stream: of checked batches, see :func:`lpe.evaluation.batches.stream`. options, timer: as there.

    Yields:
        A member's index, targets, int64 [examples], and its logits, [examples, classes]. The examples of each
        member come in order, those of several batches together.
    """
    budget = 0 if ensemble.members_are_stored else loops.CHUNK_BYTES
    for index, _, targets, logits in loops.one_by_one(ensemble, stream, budget, options, timer):
        if timer and not index:
            timer.examples += len(targets)
        yield index, targets, logits


@torch.no_grad()
def member_nll(ensemble: Ensemble, batches: Iterable[Any], options: EvaluationOptions = PLAIN) -> Tensor:
    """Return every member's own NLL, without keeping members or log-probabilities.

    Args:
        ensemble, batches, options: as in :func:`member_log_probs`.

    Returns:
        float64 [members], means over the examples in nats; ∞ where a member rules a target out.

    Raises:
        InputError: as :func:`evaluate`.
    """
    check_ensemble(ensemble, "member_nll")
    check_options(options)
    sums = torch.zeros(len(ensemble), dtype=torch.float64, device="cpu")
    examples = 0
    budget = math.inf if isinstance(batches, Sequence) else loops.CHUNK_BYTES
    run = loops.one_by_one(ensemble, checked_stream(batches), budget, options, None)
    for index, _, targets, logits in run:
        examples += 0 if index else len(targets)
        log_probs = logits.double().log_softmax(dim=-1)
        sums[index] -= log_probs.gather(1, targets.to(log_probs.device)[:, None]).sum().cpu()
    if not examples:
        raise InputError("the batches are empty; there is nothing to evaluate")
    return sums / examples


@torch.no_grad()
def evaluate_temperature_scaled(
    ensemble: Ensemble,
    batches: Iterable[Any],
    validation: Iterable[Any] | None = None,
    options: EvaluationOptions = PLAIN,
) -> dict[str, float]:
    """Return the metrics of the whole ensemble after temperature scaling.

    Args:
        ensemble, batches, options: as in :func:`evaluate`.
        validation: batches to fit the temperature on. None: each fold of the batches' examples is scored by
            the temperature of the others (:func:`lpe.evaluation.metrics.temperature_scaled`), so that the NLL
            is the calibrated NLL.

    Returns:
        nll, err, ece and brier by name. The decomposition into average loss and ambiguity is not defined for
        scaled probabilities and left out.

    Raises:
        InputError: as :func:`evaluate`; fewer than two examples and no validation.
    """
    log_probs, targets = member_log_probs(ensemble, batches, options)
    if validation is None:
        scaled = temperature_scaled(mean_log_probs(log_probs), targets)
    else:
        fitted, fitted_targets = member_log_probs(ensemble, validation, options)
        temperature = fit_temperature(mean_log_probs(fitted), fitted_targets)
        scaled = (mean_log_probs(log_probs) / temperature).log_softmax(dim=-1)
    return scaled_metrics(scaled, targets)


def scaled_metrics(scaled: Tensor, targets: Tensor) -> dict[str, float]:
    """Return nll, err, ece and brier of log-probabilities after temperature scaling, [examples, classes]."""
    metrics = EnsembleMetrics()
    metrics.update(scaled, scaled, -scaled.gather(1, targets[:, None])[:, 0], targets)
    values = metrics.values()
    return {name: values[name] for name in ("nll", "err", "ece", "brier")}
