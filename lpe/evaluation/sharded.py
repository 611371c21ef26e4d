"""An ensemble evaluated by several processes, each on a share of the batches, with the rows of one process.

Process r of N runs every member on the batches r, r + N, …, and sends their logits to the first process. That
evaluates what was said, batch by batch in their order, by the code that evaluates in one process: all sums
are taken as there, over the same blocks of examples. So the rows are the same to the bit wherever the forward
pass of a batch gives the same bits in every process: the same kind of device, the same number of threads.

The first process holds all logits: members × examples × classes × 4 bytes of float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lpe import ray_cluster
from lpe.allocator import keep_freed_memory
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.evaluation.batches import Batch, bytes_of, stream
from lpe.evaluation.options import PLAIN, EvaluationOptions
from lpe.evaluation.predict import member_logits
from lpe.evaluation.timing import MemberTimer
from lpe.substrates.images import LabelledImages, share_of_images

Made = TypeVar("Made")

WAITING = timedelta(days=7)
"""That processes wait for each other: one may have more to do by hours."""


@dataclass(frozen=True)
class Share:
    """What the members say of a share of the batches.

    Args:
        batches: of each its place among all, the bytes of its inputs, and its targets, int64 [examples].
        logits: of each member those of all these batches, [examples, classes], on the CPU; without batches
            there are none.
    """

    batches: list[tuple[int, int, Tensor]]
    logits: list[Tensor]


class Sharing(Protocol):
    """Processes that evaluate together."""

    @property
    def is_first(self) -> bool:
        """Whether this one has the result."""
        ...

    def steps(self, batches: int) -> int | None:
        """Return on how many of the batches a bar of progress goes; None: this process has none."""
        ...

    def agreed(self, make: Callable[[], Made]) -> Made:
        """Return what ``make`` returns in this process, once it has in all.

        Raises:
            InputError: of any process.
        """
        ...

    def shares(
        self, ensemble: Ensemble, batches: Any, options: EvaluationOptions, timer: MemberTimer | None
    ) -> list[Share]:
        """Return the shares of all processes; elsewhere than in the first one nothing.

        Raises:
            InputError: of any process.
        """
        ...


def share(
    ensemble: Ensemble,
    batches: Any,
    place: int,
    count: int,
    options: EvaluationOptions = PLAIN,
    timer: MemberTimer | None = None,
) -> Share:
    """Run all members on every ``count``-th batch, from batch ``place`` on.

    Args:
        ensemble, batches, options, timer: as in :func:`lpe.evaluate`. Of a list, and of images in files, no
            other batches are read.

    Raises:
        InputError: as :func:`lpe.evaluate`.
    """
    read: list[tuple[int, int, Tensor]] = []

    def reading() -> Iterator[Batch]:
        for index, inputs, targets in _own(batches, place, count):
            read.append((index, bytes_of(inputs), targets.cpu()))
            yield index, inputs, targets

    parts: list[list[Tensor]] = [[] for _ in range(len(ensemble))]
    for member, _, logits in member_logits(ensemble, reading(), options, timer):
        parts[member].append(logits.cpu())
    return Share(read, [torch.cat(of_member) for of_member in parts] if read else [])


def _own(batches: Any, place: int, count: int) -> Iterator[Batch]:
    """Yield checked batches of a share, each with its place among all."""
    if isinstance(batches, LabelledImages):
        own: Any = share_of_images(batches, place, count)
    elif isinstance(batches, list | tuple):
        own = batches[place::count]
    else:
        return (batch for batch in stream(batches) if batch[0] % count == place)
    return ((place + count * index, inputs, targets) for index, inputs, targets in stream(own))


# What the first process does with the shares.


class _Said(nn.Module):
    """What a member says of the batches, in their order."""

    def __init__(self, logits: Iterator[Tensor], device: torch.device) -> None:
        super().__init__()
        self._logits, self._device = logits, device

    def forward(self, _: Tensor) -> Tensor:
        """Return the logits of the next batch."""
        return next(self._logits).to(self._device)


class Said(Ensemble):
    """An ensemble whose members have been run: each returns the logits that it gave, batch by batch, once.

    Args:
        of: the ensemble. logits: of each member those of each batch, [examples, classes]. device: where it
            computes.
    """

    def __init__(self, of: Ensemble, logits: Sequence[Sequence[Tensor]], device: torch.device) -> None:
        super().__init__(len(of))
        self._of = of
        self.training_budget = of.training_budget
        self._members = [_Said(iter(of_member), device).eval() for of_member in logits]

    def member(self, index: int) -> nn.Module:
        """Return member ``index``."""
        return self._members[index]

    def check_planes(self) -> None:
        """Raise InputError unless the members that were run can be stored as bit planes."""
        self._of.check_planes()

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of the ensemble that was run."""
        return self._of.memory_bits(n, storage)

    def describe(self) -> str:
        """Describe the ensemble that was run."""
        return self._of.describe()

    def notes(self) -> list[str]:
        """List the notes of the ensemble that was run."""
        return self._of.notes()

    @property
    def members_are_stored(self) -> bool:
        """Whether those of the ensemble that was run are: it decides how the batches are joined."""
        return self._of.members_are_stored


class SaidBatches:
    """The batches that members have run on: their targets, and in the place of inputs a stand-in.

    It counts as many bytes as the inputs did, so that chunks are cut where they were, and takes one.
    """

    def __init__(self, batches: Sequence[tuple[int, int, Tensor]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor], Tensor]]:
        for _, size, targets in self._batches:
            yield (torch.zeros((), dtype=torch.uint8, device="cpu").expand(size),), targets


def replayed(ensemble: Ensemble, shares: Sequence[Share], device: torch.device) -> tuple[Said, SaidBatches]:
    """Return an ensemble and batches, to be evaluated once, that stand for the ensemble on all batches.

    Args:
        device: where the ensemble's logits were, and the sums are taken.

    Raises:
        InputError: there are no batches; processes found other numbers of classes.
    """
    found: list[tuple[int, int, Tensor, list[Tensor]]] = []
    for each in shares:
        lengths = [len(targets) for _, _, targets in each.batches]
        by_batch = zip(*(of_member.split(lengths) for of_member in each.logits), strict=True)
        of_batches = [list(logits) for logits in by_batch] if each.batches else []
        found += [(*batch, logits) for batch, logits in zip(each.batches, of_batches, strict=True)]
    if not found:
        raise InputError("the batches are empty; there is nothing to evaluate")
    found.sort(key=lambda batch: batch[0])
    logits = [[batch[3][member] for batch in found] for member in range(len(ensemble))]
    return Said(ensemble, logits, device), SaidBatches([batch[:3] for batch in found])


def said(
    sharing: Sharing,
    ensemble: Ensemble,
    batches: Any,
    options: EvaluationOptions = PLAIN,
    timer: MemberTimer | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Said, SaidBatches] | None:
    """Run an ensemble in several processes.

    Args:
        ensemble, batches, options, timer: as in :func:`lpe.evaluate`, the same in every process; the timer
            takes the times of this process's share. device: where the ensemble's members are.

    Returns:
        What to evaluate in their place, once, with plain options; None: another process is to.

    Raises:
        InputError: as :func:`lpe.evaluate`, of any process.
    """
    shares = sharing.shares(ensemble, batches, options, timer)
    return replayed(ensemble, shares, torch.device(device)) if sharing.is_first else None


# Processes that were started together: torchrun, accelerate launch.


@dataclass(frozen=True)
class Ranks:
    """The processes that torchrun or accelerate launch started.

    Args:
        rank: of this one. size: how many there are.
    """

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this is the first one."""
        return self.rank == 0

    def steps(self, batches: int) -> int | None:
        """Return on how many of the batches a bar goes: those of the first process; others have none."""
        return len(range(0, batches, self.size)) if self.is_first else None

    def agreed(self, make: Callable[[], Made]) -> Made:
        """Return what ``make`` returns, once it has in all processes; see :class:`Sharing`."""
        made: list[Made] = []
        error: str | None = None
        try:
            made.append(make())
        except InputError as raised:
            error = str(raised)
        if errors := [each for each in self.gathered(error) if each is not None]:
            raise InputError(errors[0])
        return made[0]

    def own(self, work: Sequence[Made]) -> list[Made]:
        """Return this process's share of some work: every ``size``-th piece."""
        return [*work[self.rank :: self.size]]

    def gathered(self, value: Any) -> list[Any]:
        """Return in every process what each of them gives, by rank."""
        from torch import distributed

        every: list[Any] = [None] * self.size
        distributed.all_gather_object(every, value)
        return every

    def shares(
        self, ensemble: Ensemble, batches: Any, options: EvaluationOptions, timer: MemberTimer | None
    ) -> list[Share]:
        """Run this process's share; see :class:`Sharing`."""
        from torch import distributed

        own = self.agreed(partial(share, ensemble, batches, self.rank, self.size, options, timer))
        kinds = [(list(logits.shape), logits.dtype) for logits in own.logits]
        every = self.gathered((own.batches, kinds))
        if not self.is_first:
            for logits in own.logits:
                distributed.send(logits.contiguous().view(torch.uint8), 0)
            return []
        others = [
            Share(their_batches, [_received(shape, dtype, rank) for shape, dtype in their_kinds])
            for rank, (their_batches, their_kinds) in enumerate(every)
            if rank
        ]
        return [own, *others]


def _received(shape: list[int], dtype: torch.dtype, rank: int) -> Tensor:
    from torch import distributed

    logits = torch.empty(shape, dtype=dtype, device="cpu")
    distributed.recv(logits.view(torch.uint8), rank)
    return logits


@contextmanager
def launched() -> Iterator[Ranks | None]:
    """Join the processes that torchrun or accelerate launch started, as long as the block lasts.

    Yields:
        The processes; None: this one was started alone.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1 or "RANK" not in os.environ:
        yield None
        return
    from torch import distributed

    # Logits go through the CPU, whatever they were computed on.
    distributed.init_process_group("gloo", timeout=WAITING)
    ranks = Ranks(int(os.environ["RANK"]), size)
    token = _ranks.set(ranks)
    try:
        yield ranks
    finally:
        _ranks.reset(token)
        distributed.destroy_process_group()


_ranks: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def joined_ranks() -> Ranks | None:
    """Return the processes that this one has joined by :func:`launched`; None where it runs alone."""
    return _ranks.get()


# Tasks of a Ray cluster.


def _task(
    ensemble: Ensemble, batches: Any, count: int, options: EvaluationOptions, threads: int, place: int
) -> Share:
    keep_freed_memory()
    torch.set_num_threads(threads)
    return share(ensemble, batches, place, count, options)


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class RayTasks:
    """Tasks of the Ray cluster that this process is connected to, a share each.

    The ensemble and the batches go to every task: images as the paths of their files, which all machines see.

    Args:
        count: of tasks. device: that members are on.
    """

    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process has the result."""
        return True

    def steps(self, batches: int) -> None:
        """Return None: this process runs no member, and has no bar."""

    def agreed(self, make: Callable[[], Made]) -> Made:
        """Return what ``make`` returns."""
        return make()

    def shares(
        self, ensemble: Ensemble, batches: Any, options: EvaluationOptions, timer: MemberTimer | None
    ) -> list[Share]:
        """Run all shares; see :class:`Sharing`. The timer takes no times."""
        threads = torch.get_num_threads()
        call = ray_cluster.put(partial(_task, ensemble, batches, self.count, options, threads))
        resources = {"num_cpus": threads, "num_gpus": int(self.device.type != "cpu")}
        tasks = {
            ray_cluster.submit(_nothing, resources, call, place): f"share {place + 1} of {self.count}"
            for place in range(self.count)
        }
        return [result for _, result in ray_cluster.results(tasks)]
