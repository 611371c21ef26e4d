"""Selection: the best k of an ensemble's n members by their own NLL on validation examples.

    kept = the k members m with the least −mean over examples of log p(y|x, θ_m); predictions averaged

Of Gaussian noise this is the step of RandOpt ("Neural Thickets", 2026: of thousands of perturbations of one
language model the best few vote); of LPE-BSR it is the same with rounding for noise. :func:`lpe.select`
scores the members one after another and keeps none of them.

What matters: n, and the validation examples, which the kept members have fitted: their NLL there is too low,
the lower the fewer examples there are. Members are chosen one by one, not for what they add to each other
(Caruana et al. 2004, "Ensemble selection from libraries of models", do that).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from lpe.checks import check_integer, check_list
from lpe.ensembles.base import Ensemble, check_ensemble
from lpe.ensembles.deep import DeepEnsemble
from lpe.ensembles.mixture import CompositeEnsemble
from lpe.errors import InputError


class SelectedEnsemble(Ensemble):
    """Some members of another ensemble, in an order of their own; :func:`lpe.select` chooses them.

    A member is made by the ensemble that it is of, when it is asked for.

    Args:
        ensemble: any ensemble, a selection included: then ``members`` are of it, and what is recorded are
            their indices in the ensemble that it was made of.
        members: their indices, each from 0 and none twice; the first k of them are the ensemble of size k.

    Attributes:
        ensemble: what the members are of. members: their indices in it.
        validation_nll: by which they were chosen, of all the ensemble's members in their order, in nats; None
            where the indices were given.

    Raises:
        InputError: no ensemble; no members; an index that the ensemble does not have, or one twice.
    """

    def __init__(self, ensemble: Ensemble, members: Sequence[int]) -> None:
        check_ensemble(ensemble, "a selection")
        last = len(ensemble) - 1
        chosen = check_list("members", members, "members' indices")
        indices = [check_integer("a member's index", index, 0, last) for index in chosen]
        if not indices:
            raise InputError("members is empty; give one index or more")
        if twice := [index for index in indices if indices.count(index) > 1]:
            raise InputError(f"member {twice[0]} is there twice; give each index once")
        if isinstance(ensemble, SelectedEnsemble):
            indices = [ensemble.members[index] for index in indices]
            ensemble = ensemble.ensemble
        super().__init__(len(indices))
        self.ensemble: Ensemble = ensemble
        self.members: tuple[int, ...] = tuple(indices)
        self.validation_nll: tuple[float, ...] | None = None

    def member(self, index: int) -> nn.Module:
        """Return member ``index`` of the selection."""
        return self.ensemble.member(self.members[self._check_index(index)])

    @property
    def members_are_stored(self) -> bool:
        """True where the ensemble's members are stored."""
        return self.ensemble.members_are_stored

    def notes(self) -> list[str]:
        """List the ensemble's notes."""
        return self.ensemble.notes()

    def check_unchanged(self) -> None:
        """Raise InputError if the network that members are made of is not what it was."""
        self.ensemble.check_unchanged()

    def _see(self, inputs: Any) -> None:
        self.ensemble.check_reach(inputs)

    def check_planes(self) -> None:
        """Raise InputError unless the ensemble's members can be stored as bit planes."""
        self.ensemble.check_planes()

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of n members of the ensemble: those that were not kept take none.

        "generator": what the ensemble's first n members are drawn from. The indices are not counted, as seeds
        are not.
        """
        n = self._check_storage(n, storage)
        kept = self.members[:n]
        if isinstance(self.ensemble, DeepEnsemble):  # each at its own precision
            models = [self.ensemble.models[index] for index in kept]
            return DeepEnsemble(models).memory_bits(storage=storage)
        if isinstance(self.ensemble, CompositeEnsemble):
            taken = Counter(bisect_right(self.ensemble._starts, index) - 1 for index in kept)
            return sum(self.ensemble._part_bits(part, count, storage) for part, count in taken.items())
        return self.ensemble.memory_bits(n, storage)

    def backward_passes(self, n: int | None = None) -> int | None:
        """Return what training all members cost that the n were chosen from; None where that is not known.

        A ``training_budget`` of the selection's own goes first.
        """
        if self.training_budget is not None:
            return super().backward_passes(n)
        self._check_n(n)
        return self.ensemble.backward_passes()

    def describe(self) -> str:
        """Return the members' indices, and the ensemble's table."""
        indices = ", ".join(map(str, self.members))
        return f"{self.size} of {len(self.ensemble)} members: {indices}\n{self.ensemble.describe()}"
