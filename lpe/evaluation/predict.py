"""Measures an ensemble on batches: the metrics of every prefix size 1 … M, out of one evaluation.

Each batch is read (and decoded) once for all members. Members run one by one or together, with the same
numbers up to float rounding:

    one by one   The batches are taken a *chunk* at a time. The first member runs over the batches as they
                 come, each further one over the chunk, while running sums of probabilities (by log-sum-exp)
                 and of logits grow by one member at a time. A chunk of one batch is "batches outside, members
                 inside", a chunk of all batches is "members outside, batches inside", and the bytes that a
                 chunk may hold choose between them: members that are already there need no chunk, members
                 that cost a construction are worth one. Data larger than a chunk is still read once; then
                 members that all together are as small as a chunk are made once and kept, and others are
                 made once a chunk.
    together     A batch at a time goes through all members at once (``ensemble.as_module()``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpe.allocator import is_out_of_memory
from lpe.checks import is_number, shown
from lpe.ensembles.base import Ensemble, check_ensemble
from lpe.ensembles.cascade import Cascade
from lpe.ensembles.laplace import LaplaceEnsemble, SharedTrunk
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.on_the_fly import AllMembers
from lpe.errors import InputError
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
from lpe.logits import check_labels, check_shape, check_values
from lpe.modules import apply, device_of, tensors_in, tree_map
from lpe.notices import note, say
from lpe.writing import locked

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 1 << 28
"""Bytes of inputs and running sums that a chunk may hold: large against a batch, small against a model.

Two sums, float64, for each class of an example: 16,000 examples of 1,000 classes, 500 of 32,000. Members that
are kept from chunk to chunk may take as much again. It does not depend on the memory that is free, since sums
over examples end in other last digits where they are cut elsewhere.
"""

SUM_BYTES = 16
"""Bytes that a class of an example takes in a chunk: two running sums, float64."""

CASCADE_BYTES = 48
"""Bytes that it takes in a cascade, which joins its stages' sums: six float64 while a member has its turn."""

BLOCK_BYTES = 1 << 24
"""Bytes of an array, float64 [examples, classes], of which some are alive while the sums take up a member."""

MEMBERS = ("auto", "one-by-one", "together")

NO_ROOM = "memory does not hold {} members at once; they run one by one"

TOGETHER_MEMBERS = 10
TOGETHER_WORK = 1 << 24
TOGETHER_WEIGHTS = 1 << 20
"""Limits of running together on the CPU: least members, most quantised weights × examples (tokens, where the
inputs are token ids), and most quantised weights with which members run together on the CPU; see
:func:`runs_together`.
"""


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of forward passes. They may change numbers, so they belong into what is recorded.

    Args:
        autocast: torch's mixed precision, with bfloat16.
        channels_last: images [examples, channels, height, width] with the channels last in memory, which
            convolutions may run faster on.
        pin_memory: batches go to a GPU through pinned memory, without waiting for it; elsewhere nothing.
    """

    autocast: bool = False
    channels_last: bool = False
    pin_memory: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):
            if not isinstance(value := getattr(self, option.name), bool):
                raise InputError(f"{option.name} must be True or False, not {shown(value)}")

    def placed(self, inputs: Any, device: torch.device) -> Any:
        """Return the inputs (tensor, tuple, list or dict of them) on a device, as the passes take them."""

        def place(values: Any) -> Any:
            if self.pin_memory and device.type == "cuda" and values.device.type == "cpu":
                values = values.pin_memory().to(device, non_blocking=True)
            values = values.to(device)
            if self.channels_last and isinstance(values, Tensor) and values.dim() == 4:
                values = values.contiguous(memory_format=torch.channels_last)
            return values

        return tree_map(place, inputs)

    def check_reach(self, ensemble: Ensemble, inputs: Any) -> None:
        """Check, once an ensemble, that members compute with their own tensors, in passes like these."""
        model = getattr(ensemble, "model", None)
        device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
        with torch.autocast(device.type, dtype=torch.bfloat16) if self.autocast else nullcontext():
            ensemble.check_reach(self.placed(inputs, device))

    def logits(self, net: nn.Module, inputs: Any, device: torch.device) -> Tensor:
        """Return the logits of placed inputs; see :func:`lpe.modules.apply`."""
        if not self.autocast:
            return apply(net, inputs)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return apply(net, inputs)


PLAIN = EvaluationOptions()


def check_options(options: object) -> None:
    """Raise InputError unless these are options of an evaluation."""
    if not isinstance(options, EvaluationOptions):
        raise InputError(f"options must be lpe.EvaluationOptions(…), not {shown(options)}")


def _bytes(inputs: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(inputs))


Pass = tuple[int, int, Tensor, Tensor]
"""A member's index, the place of a block of examples in its chunk, their targets, their logits.

The blocks of a chunk come in order, for one member after another; member 0 at block 0 begins a chunk.
"""


def _in_chunks(stream: Iterator[Batch], budget: float, classes: list[int]) -> Iterator[list[Batch]]:
    """Yield chunks of batches for a cascade: at most ``budget`` bytes together, and at least one batch.

    ``classes`` holds their number once the first chunk has run, and 0 before; that chunk is one batch, since
    nobody knows how large the sums over classes are.
    """
    chunk: list[Batch] = []
    held = 0
    for batch in stream:
        _, inputs, targets = batch
        size = _bytes(inputs) + CASCADE_BYTES * len(targets) * max(classes[0], 1)
        if chunk and (not classes[0] or held + size > budget):
            yield chunk
            chunk, held = [], 0
        chunk.append(batch)
        held += size
    if chunk:
        yield chunk


def _timed(timer: MemberTimer | None, index: int) -> AbstractContextManager[None]:
    return timer.member(index) if timer else nullcontext()


class _Chunk:
    """Batches of at most about ``budget`` bytes, their sums included, and at least one; then the next ones.

    Attributes:
        batches: those of the chunk, their inputs placed. following: the first of the next chunk, if any.
        classes: their number, once a member has run.
    """

    def __init__(
        self,
        stream: Iterator[Batch],
        budget: float,
        options: EvaluationOptions,
        timer: MemberTimer | None,
        held: PredictionsWriter | None = None,
    ) -> None:
        self._stream = stream
        self._budget = budget
        self._options = options
        self._timer = timer
        self._held = held
        self.batches: list[Batch] = []
        self.following = next(stream, None)
        self.classes: int | None = None if held is None else held.classes

    def read(self, net: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield targets and the first member's logits of each batch of the next chunk, as it is read."""
        self.batches = []
        held = size = 0
        # The next batch is taken to be as large as the last one.
        while self.following is not None and (not self.batches or held + size <= self._budget):
            if self._has(0, self.following):
                index, inputs, targets = self.following
                self.batches.append((index, self._options.placed(inputs, device_of(net)), targets))
            else:
                placed, logits = self._run(net, 0, self.following)
                index, inputs, targets = placed
                check_labels(targets, logits.shape[1], f"batch {index}: ")
                self.batches.append(placed)
                self.classes = logits.shape[1]
                yield targets, logits
            assert self.classes is not None
            size = _bytes(inputs) + SUM_BYTES * len(targets) * self.classes
            held += size
            self.following = next(self._stream, None)

    def again(self, net: nn.Module, member: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield targets and a further member's logits of each batch of the chunk."""
        for batch in self.batches:
            if not self._has(member, batch):
                _, logits = self._run(net, member, batch)
                yield batch[2], logits

    def has_all(self, member: int) -> bool:
        """Tell whether a member need not run: what it says of the chunk is held."""
        return all(self._has(member, batch) for batch in self.batches)

    def _has(self, member: int, batch: Batch) -> bool:
        return self._held is not None and self._held.has(member, batch)

    def _run(self, net: nn.Module, member: int, batch: Batch) -> tuple[Batch, Tensor]:
        index, inputs, targets = batch
        device = device_of(net)
        with _timed(self._timer, member):
            inputs = self._options.placed(inputs, device)
            logits = self._options.logits(net, inputs, device)
        where = f"batch {index}: "
        check_shape(logits, len(targets), where, "targets", self.classes)
        check_values(logits, where)
        return (index, inputs, targets), logits


def _in_blocks(parts: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Join or cut targets and logits to blocks of BLOCK_BYTES: neither many arrays nor large ones."""
    pending: list[tuple[Tensor, Tensor]] = []
    rows = most = 0
    for targets, logits in parts:
        pending.append((targets, logits))
        rows += len(targets)
        most = max(1, BLOCK_BYTES // (8 * logits.shape[1]))
        if rows >= most:
            yield from _joined(pending, most)
            pending, rows = [], 0
    if pending:
        yield from _joined(pending, most)


def _joined(parts: list[tuple[Tensor, Tensor]], most: int) -> Iterator[tuple[Tensor, Tensor]]:
    targets, logits = parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
    if len(targets) <= most:
        return iter([(targets, logits)])
    return zip(targets.split(most), logits.split(most), strict=True)


def _one_by_one(
    ensemble: Ensemble,
    stream: Iterator[Batch],
    budget: float,
    options: EvaluationOptions,
    timer: MemberTimer | None,
    held: PredictionsWriter | None = None,
) -> Iterator[Pass]:
    """Run members one after another over a chunk of at most about ``budget`` bytes, chunk after chunk.

    Where one chunk is not all, members that all together take at most ``budget`` bytes are kept. What is held
    of an earlier run is not run again.
    """
    chunk = _Chunk(stream, budget, options, timer, held)
    kept: list[nn.Module] = []
    if chunk.following is not None:
        options.check_reach(ensemble, chunk.following[1])
    while chunk.following is not None:
        turn = iter(kept) if kept else ensemble.in_turn()
        for member in range(len(ensemble)):
            if member and chunk.has_all(member):
                turn = map(ensemble.member, range(member + 1, len(ensemble)))
                continue
            with _timed(timer, member):
                net = next(turn)
            logits_of = chunk.again(net, member) if member else chunk.read(net)
            # What is written is written batch by batch, so that a kill loses no more.
            for block, (targets, logits) in enumerate(_in_blocks(logits_of) if held is None else logits_of):
                yield member, block, targets, logits
            is_first = not member and not any(map(chunk.has_all, range(len(ensemble))))
            if is_first and not kept and chunk.following is not None and _all_fit(ensemble, net, budget):
                kept = [net]
                turn = _keeping(ensemble, kept)
            del net, logits_of  # it would live on while the next one is made


def _all_fit(ensemble: Ensemble, net: nn.Module, budget: float) -> bool:
    """Tell whether all members, each as large as this one, fit into a budget of bytes."""
    each = sum(t.numel() * t.element_size() for t in chain(net.parameters(), net.buffers()))
    return 0 < budget and len(ensemble) * each <= budget


def _keeping(ensemble: Ensemble, kept: list[nn.Module]) -> Iterator[nn.Module]:
    """Yield the further members in order, which are kept beside the first."""
    for index in range(1, len(ensemble)):
        kept.append(ensemble.member(index))
        yield kept[-1]


def _together(
    module: AllMembers | SharedTrunk,
    stream: Iterator[Batch],
    options: EvaluationOptions,
    timer: MemberTimer | None,
    budget: float = CHUNK_BYTES,
) -> Iterator[Pass]:
    """Run all members at once, over chunks of at most about ``budget`` bytes of all members' logits."""
    device = device_of(module)
    batch = next(stream, None)
    classes: int | None = None
    lacking: Batch | None = None
    while batch is not None:
        parts: list[Tensor] = []
        every_target: list[Tensor] = []
        held = size = 0
        while batch is not None and (not parts or held + size <= budget):
            index, inputs, targets = batch
            try:
                with timer.all_members() if timer else nullcontext():
                    logits = options.logits(module, options.placed(inputs, device), device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                lacking, batch = batch, None
                break
            where = f"batch {index}: "
            check_shape(logits[0], len(targets), where, "targets", classes)
            classes = logits.shape[2]
            check_labels(targets, classes, where)
            check_values(logits, where)
            parts.append(logits)
            every_target.append(targets)
            size = logits.numel() * logits.element_size()
            held += size
            batch = next(stream, None)
        if parts:
            chunk = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            joined = torch.cat(every_target)
            for member, of_member in enumerate(chunk):
                for block, (targets, logits) in enumerate(_in_blocks([(joined, of_member)])):
                    yield member, block, targets, logits
    if lacking is not None:
        raise _NoRoom(lacking)


class _NoRoom(Exception):
    """Members together do not fit into memory; ``batch`` is the first that did not run."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch


def _together_where_they_fit(
    ensemble: Ensemble,
    module: AllMembers | SharedTrunk,
    stream: Iterator[Batch],
    budget: float,
    options: EvaluationOptions,
    timer: MemberTimer | None,
    held: PredictionsWriter | None,
) -> Iterator[Pass]:
    """Run all members at once, and one by one from the batch on with which memory does not hold them."""
    if held is not None:
        held.level()
    rest: Batch | None = None
    try:
        yield from _together(module, stream, options, timer, CHUNK_BYTES if held is None else 0)
    except _NoRoom as lacking:
        rest = lacking.batch
    if rest is not None:
        note(NO_ROOM.format(len(ensemble)))
        yield from _one_by_one(ensemble, chain([rest], stream), budget, options, timer, held)


def runs_together(ensemble: Ensemble, inputs: Any) -> bool:
    """Tell whether members on a batch like this one run together, where nothing else was asked for.

    Members of last-layer Laplace do: all before the last layer runs once for all. Roundings do where that was
    measured to be faster (benchmarks/on_the_fly.py and its results): small work for each member, which is
    mostly the calling of many small operations. The rule knows of the machine only whether it is a CPU, so
    that a record is computed in one way wherever it is computed again.
    """
    if not _can_run_together(ensemble):
        return False
    if isinstance(ensemble, LaplaceEnsemble):
        return len(ensemble) > 1
    assert isinstance(ensemble, LowPrecisionEnsemble)
    first = next(tensors_in(inputs), None)
    rounds = ensemble.rounds
    on_cpu = device_of(ensemble.model).type == "cpu"
    if first is None or first.dim() == 0 or len(ensemble) < TOGETHER_MEMBERS or not (on_cpu and rounds):
        return False
    weights = sum(planned.numel for planned in ensemble.plan if planned.quantised)
    each = len(first) if torch.is_floating_point(first) else first.numel()
    return weights <= TOGETHER_WEIGHTS and weights * each <= TOGETHER_WORK


def _can_run_together(ensemble: Ensemble) -> bool:
    # A subclass with members of its own has no module of them.
    kinds = (LowPrecisionEnsemble, LaplaceEnsemble)
    return any(isinstance(ensemble, kind) and type(ensemble).member is kind.member for kind in kinds)


def _all_at_once(ensemble: Ensemble) -> AllMembers | SharedTrunk:
    """Return all members as one module, of an ensemble whose members can run together."""
    if isinstance(ensemble, LaplaceEnsemble):
        return ensemble.as_module()
    assert isinstance(ensemble, LowPrecisionEnsemble)
    return AllMembers(ensemble, keep=_is_small(ensemble))


def _is_small(ensemble: LowPrecisionEnsemble) -> bool:
    """Tell whether all members may be held at once, as a chunk of inputs may."""
    each = sum(planned.numel * planned.bits // 8 for planned in ensemble.plan if planned.quantised)
    return len(ensemble) * each <= CHUNK_BYTES


def _passes(
    ensemble: Ensemble,
    batches: Iterable[Any],
    budget: float,
    members: str,
    options: EvaluationOptions,
    timer: MemberTimer | None,
    held: PredictionsWriter | None = None,
) -> Iterator[Pass]:
    stream = checked_stream(batches) if held is None else held.reading(checked_stream(batches))
    if members == "together":
        if not _can_run_together(ensemble):
            raise InputError(
                f"members of {type(ensemble).__name__} cannot run together, only those of "
                'LowPrecisionEnsemble and LaplaceEnsemble; give members="one-by-one"'
            )
        module = _all_at_once(ensemble)
        yield from _together_where_they_fit(ensemble, module, stream, budget, options, timer, held)
        return
    # A timer's times are those of members one after another.
    if members == "auto" and timer is None and (first := next(stream, None)) is not None:
        small = _module_for(ensemble, first, options)
        stream = chain([first], stream)
        if small is not None:
            yield from _together_where_they_fit(ensemble, small, stream, budget, options, timer, held)
            return
    yield from _one_by_one(ensemble, stream, budget, options, timer, held)


def _module_for(
    ensemble: Ensemble, batch: Batch, options: EvaluationOptions
) -> AllMembers | SharedTrunk | None:
    """Return all members as one module, where they run together on batches like this one."""
    _, inputs, _ = batch
    if not runs_together(ensemble, inputs):
        return None
    module = _all_at_once(ensemble)
    device = device_of(module)
    try:
        options.logits(module, options.placed(inputs, device), device)
    except InputError:
        return None  # what is wrong may be the batch: then one by one says so
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        note(NO_ROOM.format(len(ensemble)))
        return None
    return module


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
            one batch for members that are there, CHUNK_BYTES for members that must be made. More of it makes
            large members fewer times. It never changes a result beyond float rounding.
        timer: takes the time of each member, made and run; one of as many members. Where members run
            together each takes an equal share.
        members: "one-by-one"; "together", all members of a LowPrecisionEnsemble or of a LaplaceEnsemble at
            once on each batch; or "auto", together where :func:`runs_together` says so, the model can, and no
            timer is given. The numbers are the same up to float rounding. Where memory does not hold all of
            them at once they run one by one from there on, and a note says so.
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
        budget = CHUNK_BYTES if chunk_bytes is None else chunk_bytes
        seen = [0]
        return evaluate_cascade(ensemble, _in_chunks(checked_stream(batches), budget, seen), seen, calibrated)
    check_ensemble(ensemble, "evaluate")
    if timer is not None and len(timer.seconds) != len(ensemble):
        raise InputError(
            f"the timer is of {len(timer.seconds)} members, the ensemble has {len(ensemble)}; make it of as "
            "many"
        )
    if chunk_bytes is None:
        chunk_bytes = 0 if ensemble.members_are_stored else CHUNK_BYTES
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
            asdict(options),
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
    for index, block, targets, logits in _passes(ensemble, batches, chunk_bytes, members, options, timer):
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
        for index, _, targets, logits in _passes(ensemble, batches, budget, members, options, timer, writer):
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
    stream, and of data that is read anew each time, no more than CHUNK_BYTES are held.

    Returns:
        float64 [members, examples, classes], and the targets, int64 [examples].
    """
    check_ensemble(ensemble, "member_log_probs")
    check_options(options)
    log_probs: list[list[Tensor]] = [[] for _ in range(len(ensemble))]
    all_targets: list[Tensor] = []
    budget = math.inf if isinstance(batches, Sequence) else CHUNK_BYTES
    for index, _, targets, logits in _one_by_one(ensemble, checked_stream(batches), budget, options, None):
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
    budget = 0 if ensemble.members_are_stored else CHUNK_BYTES
    for index, _, targets, logits in _one_by_one(ensemble, stream, budget, options, timer):
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
    budget = math.inf if isinstance(batches, Sequence) else CHUNK_BYTES
    for index, _, targets, logits in _one_by_one(ensemble, checked_stream(batches), budget, options, None):
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
