"""Cyclical SGLD: Zhang et al. 2020, "Cyclical stochastic gradient MCMC for Bayesian deep learning".

One run with the snapshot ensemble's cyclical cosine learning rate. A cycle first explores, by gradient
descent, then samples, by Langevin dynamics, and there leaves its members:

    p ← p − lr · (g + wd·p) + [sampling] · √(2 · lr · T/N) · z,   z ~ N(0, I)

with g the gradient of the mean loss of N examples (:class:`lpe.training.sgld.SGLD`).

What matters: the peak rate (how far a cycle travels), the sampling stage's length, and the rate that is left
in it (the spread of the samples). pytorch-ensembles: peak .5, 50 epochs a cycle, 3 samples a cycle, noise in
its last 3 epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lpe.checks import check_integer
from lpe.ensembles.collected import CollectedEnsemble, CycleCollector


class CyclicalSGLDCollector(CycleCollector):
    """A collector of the weights at the end of each of the last epochs of a cycle: its sampling stage.

    Use it with :class:`lpe.SGLD` and :func:`lpe.train`, which checks it and calls it:

        collector = lpe.CyclicalSGLDCollector(epochs_per_cycle, samples_per_cycle)
        optimizer = lpe.SGLD(model.parameters(), lr, examples, noise=collector.noise_steps(steps_per_epoch))
        lpe.train(model, …, optimizer, …, epochs, collector=collector)
        ensemble = lpe.CyclicalSGLDEnsemble(model, collector.samples)
        ensemble.training_budget = collector.training_budget(steps_per_epoch)

    Args:
        epochs_per_cycle: at least 1.
        samples_per_cycle: 1 … epochs_per_cycle.
    """

    noun = "samples"

    def __init__(self, epochs_per_cycle: int, samples_per_cycle: int) -> None:
        super().__init__(epochs_per_cycle, samples_per_cycle)

    @property
    def samples(self) -> list[dict[str, Tensor]]:
        """The samples so far, in the run's order: canonical name → tensor."""
        return list(self._kept)

    def noise_steps(self, steps_per_epoch: int) -> Callable[[int], bool]:
        """Return a function: step (from 0) → whether it lies in an epoch at whose end a sample is kept.

        Raises:
            InputError: steps_per_epoch is no positive integer.
        """
        steps_per_epoch = check_integer("steps_per_epoch", steps_per_epoch, 1)
        return lambda step: self.keeps(step // steps_per_epoch)


class CyclicalSGLDEnsemble(CollectedEnsemble):
    """The samples of a cyclical SGLD run.

    Args:
        model: the architecture; tensors that no sample holds are shared with it.
        samples: canonical name → tensor (parameters and, where given, buffers), one mapping a member.
        batches: training batches, needed where the model has batch norms and the samples lack their
            statistics; see :class:`lpe.ensembles.collected.CollectedEnsemble`, also for what it raises.
            Statistics that a run collected trail the weights, whose noise moves with every step: give
            batches to have those of each sample itself.
    """

    noun = "samples"

    def __init__(
        self,
        model: nn.Module,
        samples: Sequence[Mapping[str, Tensor]],
        batches: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(model, samples, batches)
