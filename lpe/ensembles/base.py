"""The base of every ensemble: a sequence of predictors that share an architecture.

Members are made when asked for. A member is a structural copy of the base model whose own tensors are new
and whose other tensors are frozen views of the base's, so its memory is what it owns; it never modifies the
base, and several may be alive at once. Making one leaves the global generators and the training flags as they
were. Cast, moved, refreshed or put through a pass in training mode, a member changes nothing but itself. To
train one, take a copy that shares nothing: ``copy.deepcopy(ensemble[3]).requires_grad_()``.

The base stays as it is while the ensemble is in use: one that was trained, cast or moved since is refused.
Only a write through ``.data`` is not seen, for it leaves no trace.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import check_choice, check_integer, is_integer, is_number, shown
from lpe.ensembles.reach import check_own_tensors
from lpe.errors import InputError
from lpe.logits import check_shape, check_values, examples_in
from lpe.modules import apply, device_of, to_device
from lpe.networks import network_of
from lpe.structure import Structure

STORAGES = ("members", "generator", "planes")


def check_size(size: int) -> int:
    """Return the ensemble's size as an int; InputError unless it is a positive integer."""
    return check_integer("an ensemble's size", size, 1)


def check_ensemble(ensemble: object, what: str) -> None:
    """Raise InputError unless ``what`` is given an ensemble."""
    if not isinstance(ensemble, Ensemble):
        of_one = "; lpe.DeepEnsemble([model]) is one" if isinstance(ensemble, nn.Module) else ""
        of_many = "; lpe.DeepEnsemble(models) is one" if isinstance(ensemble, list | tuple) else ""
        raise InputError(f"{what} needs an ensemble, not {type(ensemble).__name__}{of_one}{of_many}")


def text_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], footer: str = "") -> str:
    """Return a table as text, columns aligned: a title, the header, the rows and a closing line."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([title, *body, *([footer] if footer else [])])


class Ensemble(ABC, Sequence[nn.Module]):
    """A sequence of nn.Modules in eval mode, made when asked for.

    Subclasses give ``member``, ``memory_bits`` and ``describe``. ``training_budget`` is what whoever trained
    the weights says of their cost, in gradient evaluations of one minibatch: one number where all members
    come from one training, the first n members' cost for n = 1 … size where each adds to it, None where it
    is not known.
    """

    def __init__(self, size: int) -> None:
        self.size = check_size(size)
        self.training_budget: int | Sequence[int] | None = None
        self._structure: Structure | None = None
        self._watched: Collection[str] | None = None
        self._is_seen = False

    def _made_of(self, model: Any) -> nn.Module:
        """Take up the network, out of its wrappers, that members are copies of; returns it.

        Where members are not made of all its tensors, ``_watched`` is to name those that they are made of.

        Raises:
            InputError: see :func:`lpe.networks.network_of`.
        """
        network = network_of(model)
        self._structure = Structure(network)
        return network

    def _base_tensors(self) -> dict[str, Tensor]:
        """Return the network's tensors by canonical name."""
        assert self._structure is not None
        return {entry.name: entry.tensor for entry in self._structure.tensors}

    def _copy(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Copy the network with some tensors replaced; see :meth:`lpe.structure.Structure.copy`."""
        assert self._structure is not None
        return self._structure.copy(tensors)

    def check_reach(self, inputs: Any) -> None:
        """Check, once, that members compute with their own tensors; see :mod:`lpe.ensembles.reach`.

        Args:
            inputs: a batch, of which an example or a few are run.

        Raises:
            InputError: they compute with the network's tensors, or what was computed from them before.
        """
        if not self._is_seen:
            self._see(inputs)
            self._is_seen = True

    def _see(self, inputs: Any) -> None:
        if self._structure is not None and (own := self._own_names()):
            check_own_tensors(self._structure, own, inputs)

    def _own_names(self) -> Collection[str]:
        """Return the names of the parameters that a member does not share."""
        return ()

    def check_unchanged(self) -> None:
        """Raise InputError if the network that members are made of has changed since the ensemble was made.

        A tensor that was replaced, cast, moved or written is seen; a write through ``.data`` is not, for it
        leaves no trace.
        """
        if self._structure is not None:
            self._structure.check_unchanged(self._watched)

    @abstractmethod
    def member(self, index: int) -> nn.Module:
        """Return member ``index`` (0 ≤ index < size): a module in eval mode."""

    @abstractmethod
    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits that an ensemble of n members takes (n = None: all).

        Args:
            n: number of members, 1 … size.
            storage: "members", n stored members with what they share counted once; "generator", the
                smallest thing from which the members can be drawn; "planes", of members that are rounded at
                random: the lower neighbours once and one bit a weight and member.

        Raises:
            InputError: another n or storage; planes of members that have none.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return a table as text: a row per tensor."""

    def notes(self) -> list[str]:
        """List what a user should know of the members and that is no error: a line each."""
        return []

    def backward_passes(self, n: int | None = None) -> int | None:
        """Return how many gradients of a minibatch the first n members cost in training (n = None: all).

        None where ``training_budget`` is not set.
        """
        n = self._check_n(n)
        budget = self.training_budget
        if budget is None:
            return None
        # What is no number is one cost a size, also where it is an array, which is no Sequence.
        cost = budget if is_number(budget) else budget[n - 1]  # type: ignore[index]
        return check_integer("training_budget", cost, 0)

    @property
    def members_are_stored(self) -> bool:
        """True where asking for a member costs nothing, because it is already there."""
        return False

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.member(i) for i in range(*index.indices(self.size))]
        if not is_integer(index):
            raise InputError(f"members are asked for by an integer or a slice, not {shown(index)}")
        index = int(index)
        if not -self.size <= index < self.size:
            raise IndexError(f"member {index} of an ensemble of {self.size}")
        return self.member(index % self.size)

    def __iter__(self) -> Iterator[nn.Module]:
        return (self.member(index) for index in range(self.size))

    def in_turn(self) -> Iterator[nn.Module]:
        """Yield the members in order, each only until the next is asked for, which may take its memory.

        For whoever runs one after another: drop a member's name before asking for the next one.
        """
        for index in range(self.size):
            yield self.member(index)

    @torch.no_grad()
    def predict(self, inputs: Any) -> Tensor:
        """Return the mean of the members' probabilities, as log-probabilities [examples, classes].

        The inputs may lie on another device than the members. The members' logits are upcast to float64 and
        their mean is taken by log-sum-exp.

        Raises:
            InputError: logits that are not [examples, classes], see :mod:`lpe.logits`: of another shape or
                type, of one class, of another number of examples than the inputs, NaN, +∞, a row of −∞
                throughout; members that differ in their classes.
        """
        examples = examples_in(inputs)
        self.check_reach(inputs)
        total: Tensor | None = None
        turn = self.in_turn()
        for _ in range(self.size):
            # No name for the member: it would live on while the next one is made.
            logits = _logits(next(turn), inputs)
            check_shape(logits, examples, classes=None if total is None else total.shape[1])
            log_probs = logits.double().log_softmax(dim=-1)
            total = log_probs if total is None else torch.logaddexp(total, log_probs.to(total.device))
        assert total is not None
        check_values(total)  # a row that is wrong in one member is NaN in the mean
        return total - math.log(self.size)

    def _check_storage(self, n: int | None, storage: str) -> int:
        check_choice("storage", storage, STORAGES)
        if storage == "planes":
            self.check_planes()
        return self._check_n(n)

    def check_planes(self) -> None:
        """Raise InputError unless the members can be stored as bit planes."""
        raise InputError(
            f"planes are of a LowPrecisionEnsemble rounded at random; a {type(self).__name__} has none"
        )

    def _check_index(self, index: int) -> int:
        return check_integer("a member's index", index, 0, self.size - 1)

    def _check_n(self, n: int | None) -> int:
        n = self.size if n is None else check_size(n)
        if n > self.size:
            raise InputError(f"an ensemble of {self.size} has no {n} members")
        return n


def _logits(net: nn.Module, inputs: Any) -> Tensor:
    return apply(net, to_device(inputs, device_of(net)))
