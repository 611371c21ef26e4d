"""Ensembles made of ensembles: X + LPE-BSR, MultiSWAG, MultiIVON.

    expansion   each member of a base ensemble becomes the k members of an ensemble of its own; member i·k + j
                is member j of base member i's (Nam & Lee 2024: SSE, CSGLD, DE, MultiIVON with LPE-BSR)
    union       the members of several ensembles one after another (MultiSWAG: Wilson & Izmailov 2020,
                "Bayesian deep learning and a probabilistic perspective of generalization")

Either is an ensemble like any other. What matters: at a given number of members, how many are expanded from
one base (cheap, alike) and how many bases there are (dear, diverse).
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from torch import nn

from lpe.checks import check_integer, check_list, shown
from lpe.ensembles.base import Ensemble, check_ensemble
from lpe.ensembles.batch_norm import Kept, MemberStatistics
from lpe.errors import InputError


class CompositeEnsemble(Ensemble):
    """Ensembles ("parts") one after another: part-major, every member of part 0 first.

    Memory is the sum of the parts': tensors that two parts share are counted, and stored, once a part.

    Args:
        sizes: members of each part.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sum(sizes))
        self._starts = [0, *accumulate(sizes)]
        self._bits: dict[tuple[int, int, str], int] = {}

    @abstractmethod
    def part(self, index: int) -> Ensemble:
        """Return part ``index``, from 0."""

    def parts(self) -> Iterator[Ensemble]:
        """Yield the parts in order, each made when it is asked for."""
        return (self.part(index) for index in range(len(self._starts) - 1))

    def notes(self) -> list[str]:
        """List the notes of the first part."""
        return self.part(0).notes()

    def member(self, index: int) -> nn.Module:
        """Return member ``index``, from the part that it falls into."""
        index = self._check_index(index)
        part = bisect_right(self._starts, index) - 1
        return self.part(part).member(index - self._starts[part])

    def in_turn(self) -> Iterator[nn.Module]:
        """Yield the members in order, each only until the next is asked for."""
        for index in range(len(self._starts) - 1):
            yield from self.part(index).in_turn()  # no name for the part: it would outlive its turn

    def _prefix(self, n: int) -> list[tuple[int, int]]:
        """List (part, its members taken) of the first n members; only the last may be taken in part."""
        return [
            (part, min(stop, n) - start)
            for part, (start, stop) in enumerate(zip(self._starts, self._starts[1:], strict=False))
            if start < n
        ]

    def check_unchanged(self) -> None:
        """Raise InputError if a part's network is not what it was when the part was made."""
        for part in self._made():
            part.check_unchanged()

    def _see(self, inputs: Any) -> None:
        for part in self._made():
            part.check_reach(inputs)

    def _made(self) -> Iterable[Ensemble]:
        """Return the parts that are there."""
        return ()

    def check_planes(self) -> None:
        """Leave it to the parts, each of which is asked for its own memory."""

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Sum the memory of the members taken from each part, under any storage."""
        n = self._check_storage(n, storage)
        return sum(self._part_bits(part, taken, storage) for part, taken in self._prefix(n))

    def _part_bits(self, part: int, taken: int, storage: str) -> int:
        # Remembered: the sizes 1 … M would otherwise make every part M times.
        key = (part, taken, storage)
        if key not in self._bits:
            self._bits[key] = self.part(part).memory_bits(taken, storage)
        return self._bits[key]


class Mixture(CompositeEnsemble):
    """An ensemble in which each member of a base ensemble is expanded into an ensemble of its own.

    One expansion at a time is kept, that of the base member used last: members asked for in order make each
    expansion once, and the peak memory is the base, its member, and the expansion's member.

    Args:
        base: any ensemble, another mixture included.
        expand: (base member, first_member) → its expansion, of the same size k for each. ``first_member`` is
            i·k for base member i: pass it on, so that no two expansions draw the same random bits:

            lambda net, first_member: lpe.LowPrecisionEnsemble(net, system, size=k, first_member=first_member)

    Raises:
        InputError: an expansion that is no ensemble, or (when it is made) of another size than the first.
    """

    def __init__(self, base: Ensemble, expand: Callable[[nn.Module, int], Ensemble]) -> None:
        check_ensemble(base, "a mixture's base")
        if not callable(expand):
            raise InputError(
                f"expand must be a function (model, first_member) → ensemble, not {shown(expand)}"
            )
        self.base = base
        self.expand = expand
        first = self._expanded(0, 0)
        self.expansion_size = len(first)
        super().__init__([self.expansion_size] * len(base))
        self._last: tuple[int, Ensemble] | None = None
        self._statistics: dict[int, Kept] = {}
        self._keep(0, first)

    @staticmethod
    def of(parts: Sequence[Ensemble]) -> UnionEnsemble:
        """Join the members of several ensembles to one: see :class:`UnionEnsemble`."""
        return UnionEnsemble(parts)

    def _made(self) -> Iterable[Ensemble]:
        return (self.base, *(() if self._last is None else (self._last[1],)))

    def part(self, index: int) -> Ensemble:
        """Return the expansion of base member ``index``."""
        index = check_integer("a part's index", index, 0, len(self.base) - 1)
        if self._last is None or self._last[0] != index:
            self._last = None  # let it go before the next one takes memory
            expansion = self._expanded(index, index * self.expansion_size)
            if len(expansion) != self.expansion_size:
                raise InputError(
                    "every base member must be expanded into as many members: "
                    f"member {index} into {len(expansion)}, member 0 into {self.expansion_size}"
                )
            return self._keep(index, expansion)
        return self._last[1]

    def _keep(self, index: int, expansion: Ensemble) -> Ensemble:
        self._last = (index, expansion)
        # Small, and dear to estimate: an expansion that is made again has its members' statistics.
        statistics: MemberStatistics | None = getattr(expansion, "batch_norm", None)
        if statistics is not None:
            statistics.kept = self._statistics.setdefault(index, statistics.kept)
        # What it takes is asked for while it is there: to make it again only to count could cost a pass over
        # the training data (a posterior's batch-norm statistics).
        if not isinstance(expansion, CompositeEnsemble):
            for taken in range(1, len(expansion) + 1):
                self._part_bits(index, taken, "members")
        return expansion

    def _expanded(self, index: int, first_member: int) -> Ensemble:
        expansion = self.expand(self.base.member(index), first_member)
        if not isinstance(expansion, Ensemble):
            raise InputError(f"expand must return an ensemble, not {type(expansion).__name__}")
        return expansion

    def backward_passes(self, n: int | None = None) -> int | None:
        """Return what the base members behind the first n members cost in training; None where not known.

        A ``training_budget`` of the mixture's own goes first.
        """
        if self.training_budget is not None:
            return super().backward_passes(n)
        return self.base.backward_passes(-(-self._check_n(n) // self.expansion_size))

    def describe(self) -> str:
        """Return the base's title, and the table of its first member's expansion."""
        title, *_ = self.base.describe().splitlines()
        return (
            f"{self.size} members: {len(self.base)} base members × {self.expansion_size}\n"
            f"base: {title}\neach as the first: {self.part(0).describe()}"
        )


class UnionEnsemble(CompositeEnsemble):
    """The members of several ensembles, those of the first one first; made by :meth:`Mixture.of`.

    The parts keep their seeds: give each its own, where they draw.

    Args:
        parts: at least one ensemble; sizes may differ.

    Raises:
        InputError: no parts, or one that is no ensemble.
    """

    def __init__(self, parts: Sequence[Ensemble]) -> None:
        self._parts = check_list("parts", parts, "ensembles")
        if not self._parts:
            raise InputError("there are no parts; give at least one ensemble")
        for index, part in enumerate(self._parts):
            if not isinstance(part, Ensemble):
                raise InputError(f"part {index} must be an ensemble, not {type(part).__name__}")
        super().__init__([len(part) for part in self._parts])

    def _made(self) -> Iterable[Ensemble]:
        return self._parts

    def part(self, index: int) -> Ensemble:
        """Return part ``index``."""
        return self._parts[index]

    @property
    def members_are_stored(self) -> bool:
        """True where the members of every part are stored."""
        return all(part.members_are_stored for part in self._parts)

    def backward_passes(self, n: int | None = None) -> int | None:
        """Sum what the members taken from each part cost; None where one part's is not known.

        A ``training_budget`` of the union's own goes first.
        """
        if self.training_budget is not None:
            return super().backward_passes(n)
        costs = [self.part(part).backward_passes(taken) for part, taken in self._prefix(self._check_n(n))]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def describe(self) -> str:
        """Return the parts' tables one after another."""
        tables = [f"part {index}: {part.describe()}" for index, part in enumerate(self._parts)]
        return "\n".join([f"{self.size} members of {len(self._parts)} ensembles", *tables])
