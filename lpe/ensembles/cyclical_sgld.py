"""Cyclical SGLD: Zhang et al. 2020, "Cyclical stochastic gradient MCMC for Bayesian deep learning".

One run with the snapshot ensemble's cyclical cosine learning rate. A cycle first explores, by gradient
descent, then samples, by Langevin dynamics, and there leaves its members:

    p ← p − lr · (g + wd·p) + [sampling] · √(2 · lr · T/N) · z,   z ~ N(0, I)

with g the gradient of the mean loss of N examples (:class:`lpe.training.sgld.SGLD`).

What matters: the peak rate (how far a cycle travels), the sampling stage's length in *steps*, and the rate
that is left in it: their product says which share of the posterior's variance the samples have
(:func:`lpe.training.sgld.variance_share`). A stage at the end of a cosine that falls to 0 has hardly any.
pytorch-ensembles: peak .5, 50 epochs a cycle, 3 samples a cycle, noise in its last 3 epochs, which are 1,170
steps of CIFAR-10.

:class:`CyclicalSGLDCollector` counts epochs, as pytorch-ensembles does; :class:`SamplingStage` and
:class:`StageCollector` count steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lpe.checks import check_integer
from lpe.ensembles.collected import CollectedEnsemble, CycleCollector
from lpe.errors import InputError
from lpe.modules import named_tensors
from lpe.surroundings import apart


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


@dataclass(frozen=True)
class SamplingStage:
    """The last steps of each cycle: noise in every one, and samples a number of steps apart, up to its end.

    Args:
        steps_per_cycle: at least 1. steps: of the stage, 1 … steps_per_cycle.
        samples: of a cycle, at least 1. spacing: steps from one to the next, at least 1.

    Raises:
        InputError: a setting out of its range, or samples that do not fit into the stage.
    """

    steps_per_cycle: int
    steps: int
    samples: int
    spacing: int

    def __post_init__(self) -> None:
        for name in ("steps_per_cycle", "steps", "samples", "spacing"):
            check_integer(name, getattr(self, name), 1)
        if self.steps > self.steps_per_cycle:
            raise InputError(
                f"a sampling stage of {self.steps} steps is longer than its cycle of {self.steps_per_cycle}"
            )
        if (self.samples - 1) * self.spacing >= self.steps:
            raise InputError(
                f"{self.samples} samples {self.spacing} steps apart do not fit into {self.steps} steps; take "
                "fewer, closer ones or a longer stage"
            )

    @property
    def noisy_steps(self) -> list[int]:
        """Steps with noise before each sample of a cycle, the first one's first."""
        return [self.steps - self.spacing * later for later in reversed(range(self.samples))]

    def noise(self, step: int) -> bool:
        """Tell whether ``step`` (from 0) of a run draws noise: :class:`lpe.SGLD`'s ``noise``."""
        return step % self.steps_per_cycle >= self.steps_per_cycle - self.steps

    def keeps(self, step: int) -> bool:
        """Tell whether the weights after ``step`` (from 0) of a run are a sample."""
        later, rest = divmod(self.steps_per_cycle - 1 - step % self.steps_per_cycle, self.spacing)
        return rest == 0 and later < self.samples


class StageCollector:
    """A collector of a sampling stage's samples, every parameter and saved buffer of each.

    Use it with :class:`lpe.SGLD` and :func:`lpe.train`, which calls it after each step:

        stage = SamplingStage(steps_per_cycle, steps, samples, spacing)
        collector = StageCollector(stage)
        optimizer = lpe.SGLD(model.parameters(), lr, examples, noise=stage.noise)
        lpe.train(model, …, optimizer, …, epochs, collector=collector)
        ensemble = lpe.CyclicalSGLDEnsemble(model, collector.samples)
        ensemble.training_budget = collector.training_budget
    """

    def __init__(self, stage: SamplingStage) -> None:
        self.stage = stage
        self.samples: list[dict[str, Tensor]] = []
        self.training_budget: list[int] = []
        """Backward passes that the first 1, 2, … samples cost, exploration included."""

    def check(self, epochs: int) -> None:
        """Accept any number of epochs: it is steps that a stage has."""

    def state(self) -> dict[str, Any]:
        """Return what was collected so far, for a checkpoint: the tensors themselves."""
        return {"samples": self.samples, "budget": self.training_budget}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self.samples, self.training_budget = list(state["samples"]), list(state["budget"])

    def collect(self, model: nn.Module, epoch: int | None = None) -> None:
        """Do nothing at the end of an epoch."""

    @apart()
    def collect_step(self, model: nn.Module, step: int) -> None:
        """Copy the model's weights if they are a sample after ``step`` (from 0)."""
        if self.stage.keeps(step):
            self.training_budget.append(step + 1)
            self.samples.append(
                {entry.name: entry.tensor.detach().clone() for entry in named_tensors(model) if entry.saved}
            )


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
