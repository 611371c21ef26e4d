"""From an ensemble and batches to the metrics of every prefix size 1 … M, out of one evaluation.

Each batch is read (and decoded) once for all members. Members run one by one or together, with the same
numbers up to float rounding:

    one by one   The batches are taken a *chunk* at a time. The first member runs over the batches as they
                 come, each further one over the chunk, while running sums of probabilities (by log-sum-exp)
                 and of logits grow by one member at a time. A chunk of one batch is "batches outside, members
                 inside", a chunk of all batches is "members outside, batches inside", and the bytes that a
                 chunk may hold choose between them: members that are already there need no chunk, members
                 that cost a construction are worth one. Data larger than a chunk is still read once; then
                 each member is made once a chunk.
    together     A batch at a time goes through all members at once (``ensemble.as_module()``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpe.ensembles.base import Ensemble
from lpe.ensembles.cascade import Cascade
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.on_the_fly import AllMembers
from lpe.errors import InputError
from lpe.evaluation.cascades import evaluate_cascade
from lpe.evaluation.metrics import EnsembleMetrics, fit_temperature, mean_log_probs, nll, temperature_scaled
from lpe.evaluation.timing import MemberTimer
from lpe.modules import apply, device_of, tensors_in, to_device, tree_map
from lpe.notices import say
from lpe.number_systems.grids import FullPrecision

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 1 << 28
"""Bytes of inputs and running sums that a chunk may hold: large against a batch, small against a model."""

MEMBERS = ("auto", "one-by-one", "together")

TOGETHER_MEMBERS = 10
TOGETHER_WORK = 1 << 24
TOGETHER_WEIGHTS = 1 << 20
"""Least members, most quantised weights × examples (tokens, where the inputs are token ids), and most
quantised weights with which members run together on the CPU; see :func:`runs_together`."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How forward passes are computed. They may change numbers, so they belong into what is recorded.

    Args:
        autocast: torch's mixed precision, with bfloat16.
        channels_last: images [examples, channels, height, width] with the channels last in memory, which
            convolutions may run faster on.
        pin_memory: batches go to a GPU through pinned memory, without waiting for it; elsewhere nothing.
    """

    autocast: bool = False
    channels_last: bool = False
    pin_memory: bool = False

    def placed(self, inputs: Any, device: torch.device) -> Any:
        """The inputs (tensor, tuple, list or dict of them) on a device, as the passes take them."""

        def place(values: Any) -> Any:
            if self.pin_memory and device.type == "cuda" and values.device.type == "cpu":
                values = values.pin_memory().to(device, non_blocking=True)
            values = values.to(device)
            if self.channels_last and isinstance(values, Tensor) and values.dim() == 4:
                values = values.contiguous(memory_format=torch.channels_last)
            return values

        return tree_map(place, inputs)

    def logits(self, net: nn.Module, inputs: Any, device: torch.device) -> Tensor:
        """The logits of placed inputs; see :func:`lpe.modules.apply`."""
        if not self.autocast:
            return apply(net, inputs)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return apply(net, inputs)


PLAIN = EvaluationOptions()


def _bytes(inputs: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(inputs))


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


Batch = tuple[int, Any, Tensor]
"""A batch's place in the stream, its inputs and its targets."""

Chunk = tuple[Tensor, Iterator[Tensor]]
"""Targets [examples] of some batches, and each member's logits of them, float64 [examples, classes]."""


def _stream(batches: Iterable[Any]) -> Iterator[Batch]:
    """The batches, checked, without those that are empty."""
    for index, batch in enumerate(batches):
        inputs, targets = _checked(batch, index)
        if len(targets):
            yield index, inputs, targets


def _in_chunks(stream: Iterator[Batch], budget: float, classes: list[int]) -> Iterator[list[Batch]]:
    """Batches of at most ``budget`` bytes together, and at least one.

    ``classes`` holds their number once the first chunk has run, and 0 before; that chunk is one batch, since
    nobody knows how large the sums over classes are.
    """
    chunk: list[Batch] = []
    held = 0
    for batch in stream:
        size = _held_bytes(*batch[1:], classes[0])
        if chunk and (not classes[0] or held + size > budget):
            yield chunk
            chunk, held = [], 0
        chunk.append(batch)
        held += size
    if chunk:
        yield chunk


def _timed(timer: MemberTimer | None, index: int) -> AbstractContextManager[None]:
    return timer.member(index) if timer else nullcontext()


def _one_by_one(
    ensemble: Ensemble,
    stream: Iterator[Batch],
    budget: float,
    options: EvaluationOptions,
    timer: MemberTimer | None,
) -> Iterator[Chunk]:
    """Chunks of at most about ``budget`` bytes and at least one batch."""
    while (batch := next(stream, None)) is not None:
        turn = ensemble.in_turn()
        with _timed(timer, 0):
            net = next(turn)
        device = device_of(net)
        chunk: list[Batch] = []
        of_first: list[Tensor] = []
        held = 0
        while batch is not None:
            index, inputs, targets = batch
            with _timed(timer, 0):
                inputs = options.placed(inputs, device)
                logits = options.logits(net, inputs, device)
            _check_logits(logits, targets, index)
            chunk.append((index, inputs, targets))
            of_first.append(logits.double())
            size = _held_bytes(inputs, targets, logits.shape[1])
            held += size
            # The next batch is taken to be as large as this one.
            batch = next(stream, None) if held + size <= budget else None
        del net
        every_target = torch.cat([targets for _, _, targets in chunk])
        yield every_target, _logits_in_turn(ensemble, turn, chunk, of_first, options, timer)


def _logits_in_turn(
    ensemble: Ensemble,
    turn: Iterator[nn.Module],
    chunk: list[Batch],
    of_first: list[Tensor],
    options: EvaluationOptions,
    timer: MemberTimer | None,
) -> Iterator[Tensor]:
    """The members' logits of a chunk; those of the first member are there."""
    yield torch.cat(of_first)
    of_first.clear()
    for index in range(1, len(ensemble)):
        with _timed(timer, index):
            net = next(turn)
            device = device_of(net)
            parts = []
            for place, inputs, targets in chunk:
                logits = options.logits(net, to_device(inputs, device), device)
                _check_logits(logits, targets, place)
                parts.append(logits.double())
            del net  # it would live on while the next one is made
        yield torch.cat(parts)


def _together(
    module: AllMembers, stream: Iterator[Batch], options: EvaluationOptions, timer: MemberTimer | None
) -> Iterator[Chunk]:
    """Chunks of at most about CHUNK_BYTES of all members' logits and at least one batch."""
    device = device_of(module)
    batch = next(stream, None)
    while batch is not None:
        parts: list[Tensor] = []
        every_target: list[Tensor] = []
        held = size = 0
        while batch is not None and held + size <= CHUNK_BYTES:
            index, inputs, targets = batch
            with timer.all_members() if timer else nullcontext():
                logits = options.logits(module, options.placed(inputs, device), device)
            for of_member in logits:
                _check_logits(of_member, targets, index)
            parts.append(logits)
            every_target.append(targets)
            size = logits.numel() * logits.element_size()
            held += size
            batch = next(stream, None)
        chunk = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        yield torch.cat(every_target), (of_member.double() for of_member in chunk)


def runs_together(ensemble: Ensemble, inputs: Any) -> bool:
    """Whether members on a batch like this one run together, where nothing else was asked for.

    They do where that was measured to be faster (benchmarks/on_the_fly.py and its results): small work for
    each member, which is mostly the calling of many small operations. The rule knows of the machine only
    whether it is a CPU, so that a record is computed in one way wherever it is computed again.
    """
    if not _can_run_together(ensemble):
        return False
    assert isinstance(ensemble, LowPrecisionEnsemble)
    first = next(tensors_in(inputs), None)
    rounds = not isinstance(ensemble.system, FullPrecision)
    on_cpu = device_of(ensemble.model).type == "cpu"
    if first is None or first.dim() == 0 or len(ensemble) < TOGETHER_MEMBERS or not (on_cpu and rounds):
        return False
    weights = sum(planned.numel for planned in ensemble.plan if planned.quantised)
    each = len(first) if torch.is_floating_point(first) else first.numel()
    return weights <= TOGETHER_WEIGHTS and weights * each <= TOGETHER_WORK


def _can_run_together(ensemble: Ensemble) -> bool:
    # A subclass with members of its own has no module of them.
    return isinstance(ensemble, LowPrecisionEnsemble) and type(ensemble).member is LowPrecisionEnsemble.member


def _is_small(ensemble: LowPrecisionEnsemble) -> bool:
    """Whether all members may be held at once, as a chunk of inputs may."""
    each = sum(planned.numel * planned.bits // 8 for planned in ensemble.plan if planned.quantised)
    return len(ensemble) * each <= CHUNK_BYTES


def _chunks(
    ensemble: Ensemble,
    batches: Iterable[Any],
    budget: float,
    members: str,
    options: EvaluationOptions,
    timer: MemberTimer | None,
) -> Iterator[Chunk]:
    stream = _stream(batches)
    if members == "together":
        if not _can_run_together(ensemble):
            raise InputError(
                f"members of {type(ensemble).__name__} cannot run together, only those of "
                'LowPrecisionEnsemble; give members="one-by-one"'
            )
        assert isinstance(ensemble, LowPrecisionEnsemble)
        yield from _together(AllMembers(ensemble, keep=_is_small(ensemble)), stream, options, timer)
        return
    # A timer's times are those of members one after another.
    if members == "auto" and timer is None and (first := next(stream, None)) is not None:
        module = _module_for(ensemble, first, options)
        stream = chain([first], stream)
        if module is not None:
            yield from _together(module, stream, options, timer)
            return
    yield from _one_by_one(ensemble, stream, budget, options, timer)


def _module_for(ensemble: Ensemble, batch: Batch, options: EvaluationOptions) -> AllMembers | None:
    """All members as one module, where they run together on batches like this one."""
    _, inputs, _ = batch
    if not runs_together(ensemble, inputs):
        return None
    assert isinstance(ensemble, LowPrecisionEnsemble)
    module = AllMembers(ensemble, keep=_is_small(ensemble))
    device = device_of(module)
    try:
        options.logits(module, options.placed(inputs, device), device)
    except InputError:
        return None  # what is wrong may be the batch: then one by one says so
    return module


@torch.no_grad()
def evaluate(
    ensemble: Ensemble | Cascade,
    batches: Iterable[Any],
    calibrated: bool | Collection[int] = False,
    chunk_bytes: int | None = None,
    timer: MemberTimer | None = None,
    members: str = "auto",
    options: EvaluationOptions = PLAIN,
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
        timer: takes the time of each member, made and run; one of as many members. Where members run
            together each takes an equal share.
        members: "one-by-one"; "together", all members of a LowPrecisionEnsemble at once on each batch; or
            "auto", together where :func:`runs_together` says so, the model can, and no timer is given. The
            numbers are the same up to float rounding.
        options: of the forward passes, see :class:`EvaluationOptions`; they may change numbers.

    Returns:
        A row per size 1 … M: size, nll, err (fraction), ece, average_loss, ambiguity, ensemble_loss, brier,
        memory_bits (n stored members), and calibrated_nll where asked. Losses in nats.

    Raises:
        InputError: an empty stream, a batch that is no pair, shapes that do not fit, a label out of range,
            NaN logits, a timer of another number of members, members that cannot run together.
    """
    import pandas as pd

    if isinstance(ensemble, Cascade):
        if timer is not None:
            raise InputError("a cascade has no time a member; time its predict instead")
        if members != "auto" or options != PLAIN:
            raise InputError("a cascade runs its members in its own way; leave members and options out")
        budget = CHUNK_BYTES if chunk_bytes is None else chunk_bytes
        seen = [0]
        return evaluate_cascade(ensemble, _in_chunks(_stream(batches), budget, seen), seen, calibrated)
    if timer is not None and len(timer.seconds) != len(ensemble):
        raise InputError(
            f"the timer is of {len(timer.seconds)} members, the ensemble has {len(ensemble)}; make it of as "
            "many"
        )
    if chunk_bytes is None:
        chunk_bytes = 0 if ensemble.members_are_stored else CHUNK_BYTES
    if isinstance(calibrated, bool):
        calibrated = range(1, len(ensemble) + 1) if calibrated else ()
    if members not in MEMBERS:
        raise InputError(f"members must be one of {', '.join(MEMBERS)}, not {members!r}")
    say(ensemble.notes())
    metrics = [EnsembleMetrics() for _ in range(len(ensemble))]
    kept: list[list[Tensor]] = [[] for _ in range(len(ensemble))]
    all_targets: list[Tensor] = []
    for targets, of_members in _chunks(ensemble, batches, chunk_bytes, members, options, timer):
        all_targets.append(targets)
        if timer:
            timer.examples += len(targets)
        log_sum = sum_logits = sum_nll = torch.empty(0)
        for index, logits in enumerate(of_members):
            targets = targets.to(logits.device)
            log_probs = logits.log_softmax(dim=-1)
            member_nll = -log_probs.gather(1, targets[:, None])[:, 0]
            if index == 0:
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
def member_log_probs(
    ensemble: Ensemble, batches: Iterable[Any], options: EvaluationOptions = PLAIN
) -> tuple[Tensor, Tensor]:
    """Every member's log-probabilities, kept: for checks, and for few members or few classes.

    Members run one by one. Batches in a list are taken at once, so that each member is made once; of a
    stream, and of data that is read anew each time, no more than CHUNK_BYTES are held.

    Returns:
        float64 [members, examples, classes], and the targets, int64 [examples].
    """
    log_probs: list[list[Tensor]] = [[] for _ in range(len(ensemble))]
    all_targets: list[Tensor] = []
    budget = math.inf if isinstance(batches, Sequence) else CHUNK_BYTES
    for targets, of_members in _one_by_one(ensemble, _stream(batches), budget, options, None):
        all_targets.append(targets)
        for index, logits in enumerate(of_members):
            log_probs[index].append(logits.log_softmax(dim=-1).cpu())
    if not all_targets:
        raise InputError("the batches are empty; there is nothing to evaluate")
    return torch.stack([torch.cat(of_member) for of_member in log_probs]), torch.cat(all_targets)


@torch.no_grad()
def evaluate_temperature_scaled(
    ensemble: Ensemble,
    batches: Iterable[Any],
    validation: Iterable[Any] | None = None,
    options: EvaluationOptions = PLAIN,
) -> dict[str, float]:
    """Metrics of the whole ensemble after temperature scaling.

    Args:
        ensemble, batches, options: as in :func:`evaluate`.
        validation: batches to fit the temperature on. None: it is fitted on one half of the batches' examples
            and scored on the other, both ways, so that the NLL is the calibrated NLL.

    Returns:
        nll, err, ece and brier by name. The decomposition into average loss and ambiguity is not defined for
        scaled probabilities and left out.

    Raises:
        InputError: as :func:`evaluate`; fewer than two examples to fit on one half of.
    """
    log_probs, targets = member_log_probs(ensemble, batches, options)
    if validation is None:
        if len(targets) < 2:
            raise InputError(
                "a temperature is fitted on one half of the examples; two or more are needed, not 1"
            )
        scaled = temperature_scaled(mean_log_probs(log_probs), targets)
    else:
        fitted, fitted_targets = member_log_probs(ensemble, validation, options)
        temperature = fit_temperature(mean_log_probs(fitted), fitted_targets)
        scaled = (mean_log_probs(log_probs) / temperature).log_softmax(dim=-1)
    metrics = EnsembleMetrics()
    metrics.update(scaled, scaled, -scaled.gather(1, targets[:, None])[:, 0], targets)
    values = metrics.values()
    return {name: values[name] for name in ("nll", "err", "ece", "brier")}
