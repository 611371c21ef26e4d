"""IVON: Shen et al. 2024, "Variational learning is effective for large deep networks".

The official optimiser (``ivon-opt``) learns a Gaussian q(θ) = N(mean, diag(std²)) by natural-gradient
variational inference on the loss of the N training examples:

    θ ~ q,   h ← β2 h + (1 − β2) ĥ + ½ (1 − β2)² (h − ĥ)² / (h + wd),   ĥ = ess · (θ − mean) ∘ g ∘ (h + wd)
    mean ← mean − lr·(h0 + wd) · (ḡ + wd·mean) / (h + wd),   std = 1 / √(ess · (h + wd))

with g the gradient of the *mean* loss at θ, ḡ its running mean (β1, without its bias to 0), and every
coordinate of the fraction clipped to clip_radius. The factor h0 + wd is ``ivon-opt``'s ``rescale_lr``: the
first steps are those of SGD at lr, whatever h0 is.

The point is the mean. The rate that multiplies the gradient is so lr·(h0 + wd)/(h + wd): it grows as h falls
from h0.

What matters: ess (N is the posterior; more is a colder one, at temperature N/ess), h0 (h's start), β2 (how
fast h forgets h0: until the steps are many more than 1/(1 − β2), std is h0's). :func:`forgetting_std` is what
std would be had h learnt nothing; a median ratio of the two near 1 says that the posterior is not learnt.
``h`` is biased upwards by minibatch noise, by about ½ (1 − β2)·ess·E[g²]: little only where ess/N is small
against the epochs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import (
    check_finite,
    check_integer,
    check_not_negative,
    check_optimizer,
    check_tensor,
    check_tensors,
)
from lpe.ensembles.base import Ensemble, text_table
from lpe.ensembles.batch_norm import MemberStatistics, check_batches, fresh_statistics
from lpe.errors import InputError
from lpe.modules import named_tensors, tensor_bits
from lpe.number_systems.streams import check_seed, normal
from lpe.surroundings import apart


@apart()
def posterior_std(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the posterior's std, 1/√(ess·(h + wd)), by canonical name, of each parameter that IVON trained.

    Args:
        optimizer: an ``ivon.IVON`` after its last step.
        model: the module whose parameters it holds.

    Raises:
        InputError: the optimiser is not IVON's, or holds parameters that are not the model's.
    """
    names = {id(entry.tensor): entry.name for entry in named_tensors(model)}
    std = {}
    check_optimizer(optimizer)
    for group in optimizer.param_groups:
        if "hess" not in group:
            raise InputError(
                f"{type(optimizer).__name__} has no Hessian estimate; IVON's optimiser is needed"
            )
        flat = (group["ess"] * (group["hess"] + group["weight_decay"])).rsqrt()
        sizes = [parameter.numel() for parameter in group["params"]]
        for parameter, part in zip(group["params"], flat.split(sizes), strict=True):
            if id(parameter) not in names:
                raise InputError(
                    f"the optimiser holds a parameter of shape {list(parameter.shape)} "
                    "that is not of this model; give the model that it trained, not a copy"
                )
            std[names[id(parameter)]] = part.reshape(parameter.shape).clone()
    return std


def forgetting_std(hess_init: float, beta2: float, weight_decay: float, ess: float, steps: int) -> float:
    """Return the posterior's std after steps whose gradients said nothing: h0's decay, ĥ = 0 at each.

    Raises:
        InputError: beta2 outside 0 … 1, another setting negative, or steps no number of steps.
    """
    if not 0 <= check_finite("beta2", beta2) <= 1:
        raise InputError(f"beta2 must be 0 … 1, not {beta2}")
    h, wd = check_finite("hess_init", hess_init), check_finite("weight_decay", weight_decay)
    for _ in range(check_integer("steps", steps, 0)):
        h = beta2 * h + 0.5 * (1 - beta2) ** 2 * h**2 / (h + wd)
    return 1 / math.sqrt(check_finite("ess", ess) * (h + wd))


class IVONEnsemble(Ensemble):
    """Samples of IVON's posterior N(mean, scale·std²).

    Args:
        model: the network at the posterior's mean.
        std: canonical name → posterior std, as :func:`posterior_std` returns it.
        size: members. seed: of the draws. scale: factor of the variance.
        batches: training batches (inputs, targets), needed where the model has batch norms: each member's
            statistics are re-estimated over them when it is first made, and kept. They must be iterable again
            and again.
        refresh: "absolute": in training the statistics saw samples, and are not the mean's. Or "relative" to
            the model as it is given.
    """

    def __init__(
        self,
        model: nn.Module,
        std: Mapping[str, Tensor],
        size: int,
        seed: int = 0,
        scale: float = 1.0,
        batches: Iterable[Any] | None = None,
        refresh: str = "absolute",
    ) -> None:
        super().__init__(size)
        self.model = model = self._made_of(model)
        check_batches(model, batches, "IVON")
        tensors = {entry.name: entry.tensor for entry in named_tensors(model)}
        for name, value in check_tensors("std", std).items():
            if name not in tensors or tensors[name].shape != value.shape:
                raise InputError(
                    f"the std of {name!r}, shape {list(value.shape)}, fits no tensor of the model"
                )
            check_not_negative(f"the std of {name!r}", check_tensor(f"the std of {name!r}", value))
        self.std = dict(std)
        self.seed = check_seed(seed)
        self.scale = check_finite("scale", scale)
        self.batch_norm = MemberStatistics.of(model, batches, refresh)
        self._means = {name: tensors[name] for name in self.std}

    @apart()
    def weights(self, index: int) -> dict[str, Tensor]:
        """Draw ``index`` of the weights, by canonical name."""
        drawn = {}
        for name, std in self.std.items():
            mean = self._means[name].detach()
            noise = normal("ivon", self.seed, name, index, std.shape)
            noise = noise.to(mean.device, torch.promote_types(mean.dtype, noise.dtype))
            drawn[name] = noise.mul_(std).mul_(math.sqrt(self.scale)).add_(mean).to(mean.dtype)
        return drawn

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: one draw, batch-norm statistics re-estimated."""
        return self._with(self.weights(index), index)

    @apart()
    def point(self) -> nn.Module:
        """Return IVON's point: the mean, batch-norm statistics re-estimated (training had samples')."""
        return self._with({}, "point")

    def _with(self, weights: Mapping[str, Tensor], index: int | str) -> nn.Module:
        self.check_unchanged()
        net = self._copy({**weights, **fresh_statistics(self.model)})
        return net if self.batch_norm is None else self.batch_norm.give(net, index)

    def _own_names(self) -> Collection[str]:
        return self.std.keys()

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Count n whole models ("members"), or mean and std ("generator"): 64 bits a weight."""
        n = self._check_storage(n, storage)
        owned = {*self.std, *fresh_statistics(self.model)}
        tensors = [entry for entry in named_tensors(self.model) if entry.saved]
        shared = sum(tensor_bits(entry.tensor) for entry in tensors if entry.name not in owned)
        one = sum(tensor_bits(entry.tensor) for entry in tensors if entry.name in owned)
        if storage == "members":
            return shared + n * one
        return shared + one + 32 * sum(std.numel() for std in self.std.values())

    def describe(self) -> str:
        """Tabulate a row per sampled tensor: name, shape, median posterior std, bits a value in a member."""
        rows = [
            (
                name,
                "×".join(map(str, std.shape)) or "scalar",
                f"{math.sqrt(self.scale) * float(std.median()):.3g}",
                "32",
            )
            for name, std in self.std.items()
        ]
        title = f"IVON: {self.size} members, variance × {self.scale}, seed {self.seed}"
        return text_table(title, ("tensor", "shape", "median posterior std", "bits"), rows)
