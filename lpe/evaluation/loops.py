"""The order in which members run over batches, read once: one by one over chunks, or together.

Both give the same numbers up to float rounding:

    one by one   The batches are taken a *chunk* at a time. The first member runs over the batches as they
                 come, each further one over the chunk. A chunk of one batch is "batches outside, members
                 inside", a chunk of all batches is "members outside, batches inside", and the bytes that a
                 chunk may hold choose between them: members that are already there need no chunk, members
                 that cost a construction are worth one. Data larger than a chunk is still read once; then
                 members that all together are as small as a chunk are made once and kept, and others are
                 made once a chunk.
    together     A batch at a time goes through all members at once (``ensemble.as_module()``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lpe.allocator import is_out_of_memory
from lpe.ensembles.base import Ensemble
from lpe.ensembles.laplace import LaplaceEnsemble, SharedTrunk
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.on_the_fly import AllMembers
from lpe.errors import InputError
from lpe.evaluation.batches import Batch, bytes_of
from lpe.evaluation.batches import stream as checked_stream
from lpe.evaluation.options import EvaluationOptions
from lpe.evaluation.predictions import PredictionsWriter
from lpe.evaluation.timing import MemberTimer
from lpe.logits import check_labels, check_shape, check_values
from lpe.modules import device_of, tensors_in
from lpe.notices import note

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

NO_ROOM = "memory does not hold {} members at once; they run one by one"

TOGETHER_MEMBERS = 10
TOGETHER_WORK = 1 << 24
TOGETHER_WEIGHTS = 1 << 20
"""Limits of running together on the CPU: least members, most quantised weights × examples (tokens, where the
inputs are token ids), and most quantised weights with which members run together on the CPU; see
:func:`runs_together`.
"""

Pass = tuple[int, int, Tensor, Tensor]
"""A member's index, the place of a block of examples in its chunk, their targets, their logits.

The blocks of a chunk come in order, for one member after another; member 0 at block 0 begins a chunk.
"""


def in_chunks(stream: Iterator[Batch], budget: float, classes: list[int]) -> Iterator[list[Batch]]:
    """Yield chunks of batches for a cascade: at most ``budget`` bytes together, and at least one batch.

    ``classes`` holds their number once the first chunk has run, and 0 before; that chunk is one batch, since
    nobody knows how large the sums over classes are.
    """
    chunk: list[Batch] = []
    held = 0
    for batch in stream:
        _, inputs, targets = batch
        size = bytes_of(inputs) + CASCADE_BYTES * len(targets) * max(classes[0], 1)
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
    """A window on the stream: batches of at most about ``budget`` bytes with their sums, and at least one.

    :meth:`read` moves it on, and runs the first member meanwhile; :meth:`again` runs a further one over it.

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
            size = bytes_of(inputs) + SUM_BYTES * len(targets) * self.classes
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


def one_by_one(
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
        yield from one_by_one(ensemble, chain([rest], stream), budget, options, timer, held)


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


def passes(
    ensemble: Ensemble,
    batches: Iterable[Any],
    budget: float,
    members: str,
    options: EvaluationOptions,
    timer: MemberTimer | None,
    held: PredictionsWriter | None = None,
) -> Iterator[Pass]:
    """Run members over batches in the order that was asked for; the arguments are :func:`lpe.evaluate`'s.

    Args:
        budget: its ``chunk_bytes``. held: a file of predictions: what it has already is not run again.

    Raises:
        InputError: members that cannot run together; what a batch, or logits, may be refused for.
    """
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
    yield from one_by_one(ensemble, stream, budget, options, timer, held)


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
