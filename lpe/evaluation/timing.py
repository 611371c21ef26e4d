"""Times predictions: wall time, member by member."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch

from lpe.checks import is_integer, shown
from lpe.errors import InputError


class MemberTimer:
    """Seconds that each member of an ensemble has taken, made and run.

    ``lpe.evaluate(ensemble, batches, timer=timer)`` fills it. Its times are no part of a record: the same
    computation gives the same record.

    Attributes:
        seconds: of each member. examples: that each has predicted; whoever uses the timer counts them.

    Args:
        members: how many. device: a GPU is synchronised before each reading of the clock; None: the current
            GPU, once one is in use.

    Raises:
        InputError: fewer than one member.
    """

    def __init__(self, members: int, device: torch.device | None = None) -> None:
        if not is_integer(members) or not 1 <= members <= 2**32:
            raise InputError(f"a MemberTimer needs one member or more, not {shown(members)}")
        if not isinstance(device, torch.device | None):
            raise InputError(f"device must be a torch.device or None, not {shown(device)}")
        self.seconds = [0.0] * int(members)
        self.examples = 0
        self.device = device

    @contextmanager
    def member(self, index: int) -> Iterator[None]:
        """Add what the block takes to ``seconds[index]``; a block that fails adds nothing."""
        start = self._now()
        yield
        self.seconds[index] += self._now() - start

    @contextmanager
    def all_members(self) -> Iterator[None]:
        """Add an equal share of what the block takes to every member's seconds."""
        start = self._now()
        yield
        share = (self._now() - start) / len(self.seconds)
        self.seconds = [seconds + share for seconds in self.seconds]

    def milliseconds_per_example(self, examples: int | None = None) -> list[float]:
        """Return the cost of every prefix's prediction: entry n − 1: the first n members, one after another.

        Of members that ran together (:meth:`all_members`) it is n shares of all of them.

        Making the members is included, as often as they were made: once for all examples where the data fits
        the evaluation's chunk, else once a chunk.

        Args:
            examples: that each member has predicted; None: those counted.

        Raises:
            InputError: fewer than one example.
        """
        examples = self.examples if examples is None else examples
        if not is_integer(examples) or examples < 1:
            raise InputError(f"milliseconds per example need one example or more, not {shown(examples)}")
        return [1000 * seconds / examples for seconds in accumulate(self.seconds)]

    def _now(self) -> float:
        if torch.cuda.is_initialized() and (self.device is None or self.device.type == "cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
