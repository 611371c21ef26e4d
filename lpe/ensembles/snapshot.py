"""Snapshot ensembles (SSE): Huang et al. 2017, "Snapshot ensembles: train 1, get M for free".

One run with a cyclical cosine learning rate (:func:`lpe.training.schedules.cyclical_cosine`),

    lr(t) = peak/2 · (cos(π · (t mod c)/c) + 1),   c steps a cycle,

and a member at the end of each cycle, where the rate has come down: θ_m = the weights after m·c steps.

What matters: the peak (too low and the cycles end in one basin) and the cycle's length (each must converge).
pytorch-ensembles: peak .2, 40 epochs a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lpe.ensembles.collected import CollectedEnsemble, CycleCollector


class SnapshotCollector(CycleCollector):
    """A collector of the weights at the end of each cycle.

    Use it with :func:`lpe.train`, which checks it and calls it:

        collector = lpe.SnapshotCollector(epochs_per_cycle)
        lpe.train(model, …, epochs, collector=collector)
        ensemble = lpe.SnapshotEnsemble(model, collector.snapshots)
        ensemble.training_budget = collector.training_budget(steps_per_epoch)

    Args:
        epochs_per_cycle: at least 1.
    """

    noun = "snapshots"

    def __init__(self, epochs_per_cycle: int) -> None:
        super().__init__(epochs_per_cycle, 1)

    @property
    def snapshots(self) -> list[dict[str, Tensor]]:
        """The snapshots so far, in the run's order: canonical name → tensor."""
        return list(self._kept)


class SnapshotEnsemble(CollectedEnsemble):
    """The snapshots of a cyclical run.

    Args:
        model: the architecture; tensors that no snapshot holds are shared with it.
        snapshots: canonical name → tensor (parameters and, where given, buffers), one mapping a member.
        batches: training batches, needed where the model has batch norms and the snapshots lack their
            statistics; see :class:`lpe.ensembles.collected.CollectedEnsemble`, also for what it raises.
    """

    noun = "snapshots"

    def __init__(
        self,
        model: nn.Module,
        snapshots: Sequence[Mapping[str, Tensor]],
        batches: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(model, snapshots, batches)
