"""SWAG: Maddox et al. 2019, "A simple baseline for Bayesian uncertainty in deep learning".

From the iterates θ_1 … θ_T of SGD at a constant learning rate, one an epoch:

    mean = 1/T Σ θ_i,   var = 1/T Σ θ_i² − mean²,   D = the last K of θ_i − (mean of θ_1 … θ_i)
    θ = mean + √scale · (√var ∘ z1 + D z2 / √(K − 1)),   z1 ~ N(0, I), z2 ~ N(0, I_K)

One z2 of length K is shared by all tensors: drawn per tensor, the covariance between tensors would be lost.
The point is the mean, with batch-norm statistics re-estimated.

What matters: the learning rate while collecting (the spread of the iterates) and K; scale = ½ is the
paper's and is what makes diagonal plus low rank the covariance once, not twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import check_finite, check_integer, check_state, check_tensors, shown
from lpe.ensembles.base import Ensemble, text_table
from lpe.ensembles.batch_norm import MemberStatistics, check_batches, fresh_statistics
from lpe.errors import InputError
from lpe.modules import named_tensors, tensor_bits
from lpe.number_systems.streams import check_seed, normal
from lpe.surroundings import apart
from lpe.training.roots import root


@dataclass(frozen=True)
class SWAGStatistics:
    """The statistics of the iterates that SWAG keeps, by canonical name.

    Args:
        mean: the average iterate, [*shape].
        variance: the diagonal, [*shape], not negative.
        deviations: [K, *shape], the last K deviations from the running mean.
    """

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    deviations: dict[str, Tensor]

    @property
    def rank(self) -> int:
        """K, the number of deviations."""
        return min((len(each) for each in self.deviations.values()), default=0)

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics as one flat dictionary, for a file."""
        parts = {"mean": self.mean, "variance": self.variance, "deviations": self.deviations}
        return {f"{part}/{name}": t for part, values in parts.items() for name, t in values.items()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> SWAGStatistics:
        """Make the statistics of a dictionary: the inverse of :meth:`tensors`."""
        parts: dict[str, dict[str, Tensor]] = {"mean": {}, "variance": {}, "deviations": {}}
        for key, tensor in check_tensors("tensors", tensors, "names to tensors").items():
            part, _, name = key.partition("/")
            if part not in parts or not name:
                raise InputError(f"SWAG's statistics are mean/…, variance/… and deviations/…, not {key!r}")
            parts[part][name] = tensor
        return SWAGStatistics(**parts)


class SWAGCollector:
    """A collector of the iterates of a run, one at the end of each epoch.

    Use it with :func:`lpe.train`, which checks it and calls it:

        collector = lpe.SWAGCollector(rank=20, start=160)
        lpe.train(model, …, epochs=300, collector=collector)
        ensemble = lpe.SWAGEnsemble(model, collector.statistics(), size=30)

    Args:
        rank: K, the deviations kept; 2 or more.
        start: the first epoch, from 0, whose end is an iterate; before, the rate has yet to come down.

    Attributes:
        collected: iterates so far.
    """

    def __init__(self, rank: int, start: int = 0) -> None:
        self.rank = check_integer("SWAG's rank", rank, 2, 2**31)
        self.start = check_integer("start", start, 0)
        self.collected = 0
        self._ended = 0
        self._mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._deviations: deque[dict[str, Tensor]] = deque(maxlen=self.rank)

    def check(self, epochs: int) -> None:
        """Raise InputError unless a run of ``epochs`` has enough iterates; call it before training.

        Raises:
            InputError: fewer iterates than the rank.
        """
        iterates = max(0, check_integer("epochs", epochs, 0) - self.start)
        if iterates < self.rank:
            raise InputError(
                f"SWAG of rank {self.rank} needs as many iterates; the run would collect {iterates}: train "
                "longer, start earlier or lower the rank"
            )

    @apart()
    def collect(self, model: nn.Module, epoch: int | None = None) -> None:
        """Add the model's parameters as an iterate, if the epoch that has just ended is not before the start.

        Args:
            epoch: from 0; None: the one after that of the last call.
        """
        epoch = self._ended if epoch is None else check_integer("epoch", epoch, 0)
        self._ended = epoch + 1
        if epoch < self.start:
            return
        tensors = named_tensors(model)
        self.collected += 1
        deviation = {}
        for entry in tensors:
            if entry.kind != "parameter":
                continue
            value = entry.tensor.detach().float()
            if self.collected == 1:
                self._mean[entry.name] = torch.zeros_like(value)
                self._squares[entry.name] = torch.zeros_like(value)
            # Welford's update: the variance without the cancellation of E[θ²] − E[θ]².
            before = value - self._mean[entry.name]
            self._mean[entry.name] += before / self.collected
            after = value - self._mean[entry.name]
            self._squares[entry.name] += before * after
            deviation[entry.name] = after
        self._deviations.append(deviation)

    def state(self) -> dict[str, Any]:
        """Return what was collected so far, for a checkpoint: the tensors themselves."""
        return {
            "collected": self.collected,
            "ended": self._ended,
            "mean": self._mean,
            "squares": self._squares,
            "deviations": list(self._deviations),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            InputError: it is none of ``state``'s.
        """
        check_state(state, self.state())
        self.collected, self._ended = state["collected"], state["ended"]
        self._mean, self._squares = dict(state["mean"]), dict(state["squares"])
        self._deviations = deque(state["deviations"], maxlen=self.rank)

    @apart()
    def statistics(self) -> SWAGStatistics:
        """Return the moments so far.

        Raises:
            InputError: fewer iterates than the rank were collected.
        """
        if self.collected < self.rank:
            raise InputError(
                f"SWAG of rank {self.rank} needs as many iterates; {self.collected} were collected"
            )
        return SWAGStatistics(
            mean={name: mean.clone() for name, mean in self._mean.items()},
            variance={name: total / self.collected for name, total in self._squares.items()},
            deviations={
                name: torch.stack([deviation[name] for deviation in self._deviations]) for name in self._mean
            },
        )


class SWAGEnsemble(Ensemble):
    """Samples of the SWAG posterior.

    Args:
        model: the architecture; tensors that the statistics do not cover are shared with it.
        statistics: what training collected.
        size: members. seed: of the draws.
        scale: factor of the covariance.
        batches: training batches (inputs, targets), needed where the model has batch norms: each member's
            statistics are re-estimated over them when it is first made, and kept. They must be iterable again
            and again.
        refresh: "absolute": the average of SGD's iterates never ran, and has no statistics to start from. Or
            "relative" to the model as it is given, whose weights and statistics must belong together.
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: SWAGStatistics,
        size: int,
        seed: int = 0,
        scale: float = 0.5,
        batches: Iterable[Any] | None = None,
        refresh: str = "absolute",
    ) -> None:
        super().__init__(size)
        if not isinstance(statistics, SWAGStatistics):
            raise InputError(
                f"statistics must be what SWAGCollector.statistics() gives, not {shown(statistics)}"
            )
        self.model = model = self._made_of(model)
        if statistics.rank < 2:
            raise InputError(f"SWAG needs 2 deviations or more, not {statistics.rank}")
        check_batches(model, batches, "SWAG")
        parameters = {e.name: e.tensor for e in named_tensors(model) if e.kind == "parameter"}
        for name, mean in statistics.mean.items():
            if name not in parameters or parameters[name].shape != mean.shape:
                raise InputError(
                    f"SWAG's statistics of {name!r}, shape {list(mean.shape)}, fit no parameter of the model"
                )
        self._dtypes = {name: tensor.dtype for name, tensor in parameters.items()}
        replaced = {*statistics.mean, *fresh_statistics(model)}
        self._watched = {entry.name for entry in named_tensors(model)} - replaced
        self.statistics = statistics
        self.seed = check_seed(seed)
        self.scale = check_finite("scale", scale)
        self.batch_norm = MemberStatistics.of(model, batches, refresh)

    @apart()
    def weights(self, index: int) -> dict[str, Tensor]:
        """Draw ``index`` of the weights, by canonical name."""
        rank = self.statistics.rank
        # Keyed by the member alone: every tensor sees the same z2.
        z2 = normal("swag low rank", self.seed, "", index, (rank,))
        drawn = {}
        for name, mean in self.statistics.mean.items():
            noise = normal("swag diagonal", self.seed, name, index, mean.shape).to(mean.device)
            deviations = self.statistics.deviations[name]
            # A product with a vector: those of matrices are of less than float32 where a user allows it.
            low_rank = torch.mv(deviations.reshape(rank, -1).T, z2.to(deviations)).view(mean.shape)
            noise.mul_(root(self.statistics.variance[name])).add_(low_rank.div_(math.sqrt(rank - 1)))
            drawn[name] = noise.mul_(math.sqrt(self.scale)).add_(mean).to(self._dtypes[name])
        return drawn

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: one draw, batch-norm statistics re-estimated."""
        return self._with(self.weights(index), index)

    @apart()
    def point(self) -> nn.Module:
        """Return SWAG's point: the mean, batch-norm statistics re-estimated."""
        means = {name: mean.to(self._dtypes[name], copy=True) for name, mean in self.statistics.mean.items()}
        return self._with(means, "point")

    def _with(self, weights: Mapping[str, Tensor], index: int | str) -> nn.Module:
        self.check_unchanged()
        net = self._copy({**weights, **fresh_statistics(self.model)})
        return net if self.batch_norm is None else self.batch_norm.give(net, index)

    def _own_names(self) -> Collection[str]:
        return self.statistics.mean.keys()

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Count n whole models ("members"), or mean, variance and K deviations of 32 bits ("generator")."""
        n = self._check_storage(n, storage)
        owned = {*self.statistics.mean, *fresh_statistics(self.model)}
        tensors = [entry for entry in named_tensors(self.model) if entry.saved]
        shared = sum(tensor_bits(entry.tensor) for entry in tensors if entry.name not in owned)
        if storage == "members":
            return shared + n * sum(tensor_bits(entry.tensor) for entry in tensors if entry.name in owned)
        buffers = sum(
            tensor_bits(entry.tensor)
            for entry in tensors
            if entry.name in owned and entry.name not in self.statistics.mean
        )
        weights = sum(mean.numel() for mean in self.statistics.mean.values())
        return shared + buffers + (2 + self.statistics.rank) * 32 * weights

    def describe(self) -> str:
        """Tabulate a row per sampled tensor: name, shape, median posterior std, bits a value in a member."""
        rows = []
        for name, mean in self.statistics.mean.items():
            rank = self.statistics.rank
            low_rank = self.statistics.deviations[name].square().sum(dim=0) / (rank - 1)
            std = (self.scale * (self.statistics.variance[name] + low_rank)).sqrt()
            shape = "×".join(map(str, mean.shape)) or "scalar"
            rows.append((name, shape, f"{float(std.median()):.3g}", "32"))
        title = (
            f"SWAG, rank {self.statistics.rank}, scale {self.scale}: {self.size} members, seed {self.seed}"
        )
        return text_table(title, ("tensor", "shape", "median posterior std", "bits"), rows)
