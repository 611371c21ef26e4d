"""Ensembles of weights that one run left behind, and what the methods that collect them share.

Not a method: ``snapshot.py`` and ``cyclical_sgld.py`` say what is collected, when, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lpe.checks import check_integer, check_list, check_state, check_tensors
from lpe.ensembles.base import Ensemble, text_table
from lpe.ensembles.batch_norm import (
    batch_norms,
    check_batches,
    check_rereadable,
    fresh_statistics,
    with_weights,
)
from lpe.errors import InputError
from lpe.modules import NamedTensor, named_tensors, tensor_bits, with_tensors
from lpe.networks import network_of
from lpe.surroundings import apart


class CycleCollector:
    """A collector that copies the weights in the last epochs of each cycle of a run.

    A copy holds every parameter and every saved buffer (batch-norm statistics among them), so that it stands
    on its own, whatever becomes of the model.

    Args:
        epochs_per_cycle: c, at least 1.
        kept_per_cycle: copies a cycle, one at the end of each of its last epochs; 1 … c.

    Raises:
        InputError: a setting out of its range.
    """

    noun = "copies"
    """The method's noun for copies of the weights."""

    def __init__(self, epochs_per_cycle: int, kept_per_cycle: int) -> None:
        epochs_per_cycle = check_integer("epochs_per_cycle", epochs_per_cycle, 1)
        kept_per_cycle = check_integer(f"{self.noun}_per_cycle", kept_per_cycle, 1)
        if kept_per_cycle > epochs_per_cycle:
            raise InputError(
                f"{self.noun}_per_cycle must be at most epochs_per_cycle, {epochs_per_cycle}, one an epoch, "
                f"not {kept_per_cycle}"
            )
        self.epochs_per_cycle = epochs_per_cycle
        self.kept_per_cycle = kept_per_cycle
        self.epochs: list[int] = []
        self._ended = 0
        self._kept: list[dict[str, Tensor]] = []

    def check(self, epochs: int) -> None:
        """Raise InputError unless a run of ``epochs`` suits the cycles; call it before training.

        Raises:
            InputError: the cycle is longer than the run, or the run is no whole number of cycles.
        """
        epochs = check_integer("epochs", epochs, 0)
        if self.epochs_per_cycle > epochs:
            raise InputError(
                f"a cycle of {self.epochs_per_cycle} epochs is longer than the run of {epochs}; "
                "shorten the cycle or train longer"
            )
        if rest := epochs % self.epochs_per_cycle:
            raise InputError(
                f"a run of {epochs} epochs is no whole number of cycles of {self.epochs_per_cycle}; "
                f"train for {epochs - rest} or {epochs - rest + self.epochs_per_cycle}"
            )

    def keeps(self, epoch: int) -> bool:
        """Tell whether the weights at the end of ``epoch`` (from 0) are kept."""
        epoch = check_integer("epoch", epoch, 0)
        return epoch % self.epochs_per_cycle >= self.epochs_per_cycle - self.kept_per_cycle

    @apart()
    def collect(self, model: nn.Module, epoch: int | None = None) -> None:
        """Copy the model's weights if the epoch that has just ended is one that is kept.

        Args:
            epoch: from 0; None: the one after that of the last call.
        """
        epoch = self._ended if epoch is None else check_integer("epoch", epoch, 0)
        self._ended = epoch + 1
        if self.keeps(epoch):
            self.epochs.append(epoch)
            self._kept.append(
                {entry.name: entry.tensor.detach().clone() for entry in named_tensors(model) if entry.saved}
            )

    def state(self) -> dict[str, Any]:
        """Return what was collected so far, for a checkpoint: the tensors themselves."""
        return {"epochs": self.epochs, "ended": self._ended, "kept": self._kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            InputError: it is none of ``state``'s.
        """
        check_state(state, self.state())
        self.epochs, self._ended, self._kept = list(state["epochs"]), state["ended"], list(state["kept"])

    def training_budget(self, steps_per_epoch: int) -> list[int]:
        """Return backward passes that the first 1, 2, … copies cost: an ensemble's ``training_budget``.

        A copy costs the run up to its epoch's end, exploration included.
        """
        return [(epoch + 1) * steps_per_epoch for epoch in self.epochs]


class CollectedEnsemble(Ensemble):
    """Members that are a model with some of its tensors replaced by collected ones.

    Args:
        model: the architecture; tensors that were not collected are shared with it.
        weights: a mapping a member, canonical name → tensor, parameters and buffers; all of the same names.
            They are used as they are, without a copy.
        batches: training batches (inputs, targets), read once a member: batch-norm statistics are
            re-estimated over them. Needed where the model has batch norms whose statistics are not among the
            weights; where they are, giving batches replaces them.

    Raises:
        InputError: no weights; a name, shape or dtype that the model does not have; mappings of different
            names; batch norms without statistics or batches.
    """

    noun = "copies"
    """The method's noun for the mappings."""

    @apart()
    def __init__(
        self, model: nn.Module, weights: Sequence[Mapping[str, Tensor]], batches: Iterable[Any] | None
    ) -> None:
        weights = check_list(self.noun, weights, "mappings of canonical names to tensors")
        if not weights:
            raise InputError(
                f"there are no {self.noun}; give at least one mapping of canonical names to tensors"
            )
        super().__init__(len(weights))
        self.model = model = network_of(model)
        entries = {name: entry for entry in named_tensors(model) for name in (entry.name, *entry.also)}
        checked = [self._checked(index, tensors, entries) for index, tensors in enumerate(weights)]
        for index, tensors in enumerate(checked):
            if different := sorted(tensors.keys() ^ checked[0].keys()):
                raise InputError(
                    f"{self.noun} 0 and {index} do not hold the same tensors: "
                    f"only one of them has {different[0]!r}"
                )
        statistics = {
            f"{name}.{buffer}" if name else buffer
            for name, _ in batch_norms(model)
            for buffer in ("running_mean", "running_var")
        }
        if not statistics <= checked[0].keys():
            check_batches(model, batches, f"an ensemble of {self.noun} without statistics")
        if len(weights) > 1:
            check_rereadable(batches)
        self._own = set(checked[0])
        if batches is None:
            self._members = [with_tensors(model, tensors) for tensors in checked]
        else:
            self._own |= set(fresh_statistics(model))
            self._members = [with_weights(model, tensors, batches) for tensors in checked]

    def _checked(
        self, index: int, tensors: Mapping[str, Tensor], entries: Mapping[str, NamedTensor]
    ) -> dict[str, Tensor]:
        checked = {}
        for name, tensor in check_tensors(f"{self.noun} {index}", tensors).items():
            if name not in entries:
                raise InputError(f"{self.noun} {index}: the model has no tensor named {name!r}")
            own = entries[name].tensor
            if own.shape != tensor.shape or own.dtype != tensor.dtype:
                raise InputError(
                    f"{self.noun} {index}: {name!r} is {tensor.dtype} of shape {list(tensor.shape)}; "
                    f"the model's is {own.dtype} of shape {list(own.shape)}"
                )
            # Weights that come from a file lie on the CPU, wherever the model is.
            checked[entries[name].name] = tensor.detach().to(own.device)
        return checked

    def member(self, index: int) -> nn.Module:
        """Return member ``index``: made once, when the ensemble was, so that a cast of it is kept."""
        index = self._check_index(index)
        return self._members[index]

    @property
    def members_are_stored(self) -> bool:
        """True: the members were made with the ensemble."""
        return True

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Count n times the collected tensors, and once what members share; storage makes no difference."""
        n = self._check_storage(n, storage)
        return sum(
            tensor_bits(entry.tensor) * (n if entry.name in self._own else 1)
            for entry in named_tensors(self.model)
            if entry.saved
        )

    def describe(self) -> str:
        """Tabulate a row per tensor: name, shape, each member's own or shared, bits a value."""
        rows = [
            (
                entry.name,
                "×".join(map(str, entry.tensor.shape)) or "scalar",
                "own" if entry.name in self._own else "shared",
                str(entry.tensor.element_size() * 8),
            )
            for entry in named_tensors(self.model)
        ]
        title = f"{self.size} {self.noun} of {type(self.model).__name__}"
        return text_table(title, ("tensor", "shape", "in a member", "bits"), rows)
