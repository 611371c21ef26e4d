"""From an ensemble and batches to the metrics of every prefix size 1 … M, out of one evaluation.

The batches are taken a *chunk* at a time; within a chunk each member is made once and runs over the chunk's
batches, while running sums of probabilities (by log-sum-exp) and of logits grow by one member at a time. A
chunk of one batch is "batches outside, members inside", a chunk of all batches is "members outside, batches
inside", and the bytes that a chunk may hold choose between them: members that are already there need no
chunk, members that cost a construction are worth one. The numbers are the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpe.ensembles.base import Ensemble
from lpe.ensembles.cascade import Cascade
from lpe.errors import InputError
from lpe.evaluation.cascades import evaluate_cascade
from lpe.evaluation.metrics import EnsembleMetrics, fit_temperature, mean_log_probs, nll, temperature_scaled
from lpe.evaluation.timing import MemberTimer
from lpe.modules import apply, device_of, to_device

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 1 << 28
"""Bytes of inputs and running sums that a chunk may hold: large against a batch, small against a model."""


def _bytes(inputs: Any) -> int:
    if isinstance(inputs, Tensor):
        return inputs.numel() * inputs.element_size()
    if isinstance(inputs, Mapping):
        return sum(_bytes(value) for value in inputs.values())
    if isinstance(inputs, tuple | list):
        return sum(_bytes(value) for value in inputs)
    return 0


def _held_bytes(inputs: Any, targets: Tensor, classes: int) -> int:
    # Six float64 arrays of [examples, classes] are alive at the height of a member's turn.
    return _bytes(inputs) + 48 * len(targets) * max(classes, 1)


def _checked(batch: Any, index: int) -> tuple[Any, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"batch {index} must be a pair (inputs, targets), not {type(batch).__name__}")
    inputs, targets = batch
    try:
        targets = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"targets of batch {index} must be class indices [examples], not {type(targets).__name__}: "
            + str(error).partition("\n")[0]
        ) from None
    if targets.dim() != 1 or torch.is_floating_point(targets) or targets.dtype == torch.bool:
        raise InputError(
            f"targets of batch {index} must be class indices [examples], "
            f"not {targets.dtype} of shape {list(targets.shape)}"
        )
    if isinstance(inputs, Tensor) and inputs.shape[:1] != targets.shape:
        raise InputError(f"batch {index} has inputs of shape {list(inputs.shape)} and {len(targets)} targets")
    return inputs, targets.long()


def _check_logits(logits: Tensor, targets: Tensor, index: int) -> None:
    if logits.dim() != 2 or len(logits) != len(targets):
        raise InputError(
            f"batch {index}: the model returned logits of shape {list(logits.shape)} "
            f"for {len(targets)} targets; [examples, classes] is needed"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        bad = int(targets.max()) if int(targets.max()) >= logits.shape[1] else int(targets.min())
        raise InputError(f"batch {index} has label {bad}; the model has classes 0 to {logits.shape[1] - 1}")
    # −∞ masks a class; +∞ would make the whole row NaN.
    bad_values = int((torch.isnan(logits) | torch.isposinf(logits)).sum())
    if bad_values:
        raise InputError(f"batch {index}: the model returned {bad_values} logits that are NaN or +infinity")


def _chunks(
    batches: Iterable[Any], budget: int, classes: list[int]
) -> Iterator[list[tuple[int, Any, Tensor]]]:
    """Batches as (index, inputs, targets), in chunks of at most ``budget`` bytes and at least one batch.

    ``classes`` holds their number once the first chunk has run, and 0 before.
    """
    chunk: list[tuple[int, Any, Tensor]] = []
    held = 0
    for index, batch in enumerate(batches):
        inputs, targets = _checked(batch, index)
        if not len(targets):
            continue
        # Until the first chunk has run nobody knows the classes, and sums over a vocabulary are large: it
        # is one batch.
        if chunk and (not classes[0] or held + _held_bytes(inputs, targets, classes[0]) > budget):
            yield chunk
            chunk, held = [], 0
        chunk.append((index, inputs, targets))
        held += _held_bytes(inputs, targets, classes[0])
    if chunk:
        yield chunk


def _member_logits(net: nn.Module, chunk: list[tuple[int, Any, Tensor]]) -> Tensor:
    device = device_of(net)
    parts = []
    for index, inputs, targets in chunk:
        logits = apply(net, to_device(inputs, device))
        _check_logits(logits, targets, index)
        parts.append(logits.double())
    return torch.cat(parts)


@torch.no_grad()
def evaluate(
    ensemble: Ensemble | Cascade,
    batches: Iterable[Any],
    calibrated: bool | Collection[int] = False,
    chunk_bytes: int | None = None,
    timer: MemberTimer | None = None,
) -> pd.DataFrame:
    """The metrics of every prefix of an ensemble.

    Args:
        ensemble: any ensemble, or a cascade: see :func:`lpe.evaluation.cascades.evaluate_cascade`.
        batches: iterable of (inputs, targets), read once: inputs a tensor, a tuple or list (positional
            arguments) or a dict (keyword arguments); targets class indices [examples].
        calibrated: also fit temperatures, for the column ``calibrated_nll``: at every size, or at these sizes
            (elsewhere it is NaN). This keeps the log-probabilities of these sizes, float64 [examples,
            classes] each, in memory.
        chunk_bytes: bytes of inputs and running sums held at a time; None: one batch for members that are
            there, CHUNK_BYTES for members that must be made. It never changes a result beyond float rounding.
        timer: takes the time of each member, made and run; one of as many members.

    Returns:
        A row per size 1 … M: size, nll, err (fraction), ece, average_loss, ambiguity, ensemble_loss, brier,
        memory_bits (n stored members), and calibrated_nll where asked. Losses in nats.

    Raises:
        InputError: an empty stream, a batch that is no pair, shapes that do not fit, a label out of range,
            NaN logits, a timer of another number of members.
    """
    import pandas as pd

    if isinstance(ensemble, Cascade):
        if timer is not None:
            raise InputError("a cascade has no time a member; time its predict instead")
        budget = CHUNK_BYTES if chunk_bytes is None else chunk_bytes
        seen = [0]
        return evaluate_cascade(ensemble, _chunks(batches, budget, seen), seen, calibrated)
    if timer is not None and len(timer.seconds) != len(ensemble):
        raise InputError(
            f"the timer is of {len(timer.seconds)} members, the ensemble has {len(ensemble)}; make it of as "
            "many"
        )
    if chunk_bytes is None:
        chunk_bytes = 0 if ensemble.members_are_stored else CHUNK_BYTES
    if isinstance(calibrated, bool):
        calibrated = range(1, len(ensemble) + 1) if calibrated else ()
    metrics = [EnsembleMetrics() for _ in range(len(ensemble))]
    kept: list[list[Tensor]] = [[] for _ in range(len(ensemble))]
    all_targets: list[Tensor] = []
    classes = [0]
    for chunk in _chunks(batches, chunk_bytes, classes):
        targets = torch.cat([targets for _, _, targets in chunk])
        all_targets.append(targets)
        if timer:
            timer.examples += len(targets)
        log_sum = sum_logits = sum_nll = torch.empty(0)
        for index in range(len(ensemble)):
            with timer.member(index) if timer else nullcontext():
                logits = _member_logits(ensemble.member(index), chunk)
            targets = targets.to(logits.device)
            log_probs = logits.log_softmax(dim=-1)
            member_nll = -log_probs.gather(1, targets[:, None])[:, 0]
            if index == 0:
                classes[0] = logits.shape[1]
                log_sum, sum_logits, sum_nll = log_probs, logits, member_nll
            else:
                log_sum = torch.logaddexp(log_sum, log_probs)
                sum_logits = sum_logits + logits
                sum_nll = sum_nll + member_nll
            n = index + 1
            mean = log_sum - torch.log(torch.tensor(float(n), dtype=torch.float64))
            metrics[index].update(mean, sum_logits / n, sum_nll / n, targets)
            if n in calibrated:
                kept[index].append(mean.cpu())
    if not all_targets:
        raise InputError("the batches are empty; there is nothing to evaluate")
    rows = []
    for index in range(len(ensemble)):
        row: dict[str, float | int] = {"size": index + 1, **metrics[index].values()}
        row["memory_bits"] = ensemble.memory_bits(index + 1)
        if calibrated:
            row["calibrated_nll"] = math.nan
        if index + 1 in calibrated:
            every_target = torch.cat(all_targets)
            scaled = temperature_scaled(torch.cat(kept[index]), every_target)
            row["calibrated_nll"] = nll(scaled, every_target)
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def member_log_probs(ensemble: Ensemble, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Every member's log-probabilities, kept: for checks, and for few members or few classes.

    Batches in a list are taken at once, so that each member is made once; of a stream, and of data that is
    read anew each time, no more than CHUNK_BYTES are held.

    Returns:
        float64 [members, examples, classes], and the targets, int64 [examples].
    """
    log_probs: list[list[Tensor]] = [[] for _ in range(len(ensemble))]
    all_targets: list[Tensor] = []
    classes = [0]
    chunks: Iterable[list[tuple[int, Any, Tensor]]] = _chunks(batches, CHUNK_BYTES, classes)
    if isinstance(batches, Sequence):
        chunks = (
            [[(index, *_checked(batch, index)) for index, batch in enumerate(batches)]] if batches else []
        )
    for chunk in chunks:
        all_targets += [targets for _, _, targets in chunk]
        for index, of_member in enumerate(log_probs):
            # No name for the member: it would live on while the next one is made.
            of_member.append(_member_logits(ensemble.member(index), chunk).log_softmax(dim=-1).cpu())
        classes[0] = log_probs[0][-1].shape[1]
    if not sum(map(len, all_targets)):
        raise InputError("the batches are empty; there is nothing to evaluate")
    return torch.stack([torch.cat(of_member) for of_member in log_probs]), torch.cat(all_targets)


@torch.no_grad()
def evaluate_temperature_scaled(
    ensemble: Ensemble, batches: Iterable[Any], validation: Iterable[Any] | None = None
) -> dict[str, float]:
    """Metrics of the whole ensemble after temperature scaling.

    Args:
        ensemble, batches: as in :func:`evaluate`.
        validation: batches to fit the temperature on. None: it is fitted on one half of the batches' examples
            and scored on the other, both ways, so that the NLL is the calibrated NLL.

    Returns:
        nll, err, ece and brier by name. The decomposition into average loss and ambiguity is not defined for
        scaled probabilities and left out.

    Raises:
        InputError: as :func:`evaluate`; fewer than two examples to fit on one half of.
    """
    log_probs, targets = member_log_probs(ensemble, batches)
    if validation is None:
        if len(targets) < 2:
            raise InputError(
                "a temperature is fitted on one half of the examples; two or more are needed, not 1"
            )
        scaled = temperature_scaled(mean_log_probs(log_probs), targets)
    else:
        fitted, fitted_targets = member_log_probs(ensemble, validation)
        temperature = fit_temperature(mean_log_probs(fitted), fitted_targets)
        scaled = (mean_log_probs(log_probs) / temperature).log_softmax(dim=-1)
    metrics = EnsembleMetrics()
    metrics.update(scaled, scaled, -scaled.gather(1, targets[:, None])[:, 0], targets)
    values = metrics.values()
    return {name: values[name] for name in ("nll", "err", "ece", "brier")}
