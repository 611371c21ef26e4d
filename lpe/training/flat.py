"""Weights as one flat vector, and optimisers as a few operations on it, for several trainings side by side.

Weights are [trainings, n], float32. A rule's step reads everything that changes (learning rates, noise, bias
corrections) from tables by the step's number, which lies in a tensor: so a step takes no number from Python,
and can be captured as a CUDA graph. Trainings side by side share the rule, and have learning rates, weight
decays and noise of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.training.schedules import Schedule


@dataclass(frozen=True)
class FlatLayout:
    """The places of named tensors in a flat vector.

    Args:
        shapes: by name, in the vector's order.
    """

    shapes: dict[str, torch.Size]

    @staticmethod
    def of(module: nn.Module) -> FlatLayout:
        """Return the layout of a module's parameters, in their order."""
        return FlatLayout({name: parameter.shape for name, parameter in module.named_parameters()})

    @property
    def size(self) -> int:
        """Values in the vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    def offsets(self) -> dict[str, int]:
        """Return where each tensor begins, by name."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            found[name] = start
            start += shape.numel()
        return found

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the tensors [*shape] of a vector [n]; they share its memory where it is contiguous."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the flat float32 vector [n] of tensors by name.

        Raises:
            InputError: a name or a shape that is not the layout's.
        """
        if set(tensors) != set(self.shapes):
            differing = ", ".join(sorted(set(tensors) ^ set(self.shapes))[:3])
            raise InputError(f"tensors and layout differ in: {differing}")
        for name, shape in self.shapes.items():
            if tensors[name].shape != shape:
                raise InputError(f"{name} is {list(tensors[name].shape)}; {list(shape)} is expected")
        return torch.cat([tensors[name].detach().float().flatten() for name in self.shapes])


def table(schedules: Sequence[Schedule], steps: int) -> Tensor:
    """Return the schedules' values, float64 [steps, trainings, 1]."""
    rows = [[schedule(step) for schedule in schedules] for step in range(steps)]
    return torch.tensor(rows, dtype=torch.float64).view(steps, len(schedules), 1)


class Rule(Protocol):
    """A rule that turns gradients into steps."""

    def sampled(self, weights: Tensor, step: Tensor) -> Tensor:
        """Return the weights at which the gradient is taken, [trainings, n]."""

    def update(self, weights: Tensor, gradient: Tensor, step: Tensor) -> None:
        """Take one step, in place; ``step`` is an int64 tensor [1]."""

    def state(self) -> dict[str, Tensor]:
        """Return what the rule remembers, by name; it is written to by ``copy_`` when a run is resumed."""


def _decays(weight_decay: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    """Return a decay as [trainings, 1], or as given."""
    if isinstance(weight_decay, Tensor):
        return weight_decay.to(device)
    return torch.tensor(weight_decay, dtype=torch.float32, device=device).view(-1, 1)


class FlatSGD:
    """SGD with momentum, torch's rule; with noise it is SGLD's (``lpe.training.sgld``), with momentum 0.

        b ← momentum · b + g + wd · w,   w ← w − lr · b + noise · z,   z ~ N(0, I)

    Args:
        weights: [trainings, n], which it will change. steps: of the whole run.
        learning_rates: a schedule a training. momentum, weight_decay: a number a training; a weight decay may
            be a tensor that spreads over the weights. noise: step → standard deviation, a training; None: no
            noise.
        lr_factor: of each weight [n], or of each training's [trainings, n]; None for 1. generator: of the
            noise, on the weights' device.
    """

    def __init__(
        self,
        weights: Tensor,
        steps: int,
        learning_rates: Sequence[Schedule],
        momentum: Sequence[float],
        weight_decay: Sequence[float] | Tensor,
        noise: Sequence[Schedule] | None = None,
        lr_factor: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        device = weights.device
        self._rates = table(learning_rates, steps).float().to(device)
        self._momentum = torch.tensor(momentum, device=device).view(-1, 1)
        self._decay = _decays(weight_decay, device)
        self._noise = None if noise is None else table(noise, steps).float().to(device)
        self._factor = lr_factor
        self._generator = generator
        self.buffer = torch.zeros_like(weights)

    def sampled(self, weights: Tensor, step: Tensor) -> Tensor:
        """Return the weights themselves."""
        return weights

    def update(self, weights: Tensor, gradient: Tensor, step: Tensor) -> None:
        """Take one step; see the class."""
        self.buffer.mul_(self._momentum).add_(gradient).addcmul_(weights, self._decay)
        rate = self._rates.index_select(0, step)[0]
        if self._factor is not None:
            rate = rate * self._factor
        weights.addcmul_(self.buffer, rate, value=-1)
        if self._noise is not None:
            z = torch.randn(weights.shape, generator=self._generator, device=weights.device)
            weights.addcmul_(z, self._noise.index_select(0, step)[0])

    def state(self) -> dict[str, Tensor]:
        """Return the momentum's buffer."""
        return {"buffer": self.buffer}


class FlatAdamW:
    """AdamW, torch's rule (Loshchilov & Hutter 2019).

    Args:
        weights: [trainings, n]. steps: of the whole run. learning_rates: a schedule a training.
        weight_decay: a number a training. betas, epsilon: as torch's.
    """

    def __init__(
        self,
        weights: Tensor,
        steps: int,
        learning_rates: Sequence[Schedule],
        weight_decay: Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        device = weights.device
        rates = table(learning_rates, steps)
        taken = torch.arange(1, steps + 1, dtype=torch.float64).view(-1, 1, 1)
        decay = torch.tensor(weight_decay, dtype=torch.float64).view(1, -1, 1)
        self._betas = betas
        self._epsilon = epsilon
        self._sizes = (rates / (1 - betas[0] ** taken)).float().to(device)
        self._roots = (1 - betas[1] ** taken).sqrt().expand_as(rates).float().to(device)
        self._shrink = (1 - rates * decay).float().to(device)
        self.first = torch.zeros_like(weights)
        self.second = torch.zeros_like(weights)

    def sampled(self, weights: Tensor, step: Tensor) -> Tensor:
        """Return the weights themselves."""
        return weights

    def update(self, weights: Tensor, gradient: Tensor, step: Tensor) -> None:
        """Take one step; see the class."""
        size, root, shrink = (
            each.index_select(0, step)[0] for each in (self._sizes, self._roots, self._shrink)
        )
        self.first.lerp_(gradient, 1 - self._betas[0])
        self.second.mul_(self._betas[1]).addcmul_(gradient, gradient, value=1 - self._betas[1])
        weights.mul_(shrink)
        weights.sub_(size * self.first / (self.second.sqrt() / root + self._epsilon))

    def state(self) -> dict[str, Tensor]:
        """Return the two moments."""
        return {"first": self.first, "second": self.second}


class FlatIVON:
    """IVON: Shen et al. 2024; ``ivon-opt``'s rule with its bias correction and rescaled learning rate.

        θ = w + z / √(ess · (h + wd)),   z ~ N(0, I);   g the gradient at θ
        m ← β1 m + (1 − β1) g,   f = ess · (θ − w) · g · (h + wd)
        h' = β2 h + (1 − β2) f + ½ (1 − β2)² (h − f)² / (h + wd)
        w ← w − lr · (h0 + wd) · (m / (1 − β1^t) + wd · w) / (h' + wd),   h ← h'

    Args:
        weights: [trainings, n], the means. steps: of the whole run. learning_rates: a schedule a training.
        ess: effective sample size. beta1: as above. hess_init, weight_decay, beta2: h0, wd and β2, of all or
            of each. generator: of z, on the weights' device; None: torch's own.
        rescale_lr: False leaves out the factor (h0 + wd) of lr.
    """

    def __init__(
        self,
        weights: Tensor,
        steps: int,
        learning_rates: Sequence[Schedule],
        ess: float,
        hess_init: float | Sequence[float] = 1.0,
        weight_decay: float | Sequence[float] = 1e-4,
        beta1: float = 0.9,
        beta2: float | Sequence[float] = 0.99999,
        generator: torch.Generator | None = None,
        rescale_lr: bool = True,
    ) -> None:
        device = weights.device
        start, decay, kept = (
            torch.tensor(each, dtype=torch.float64).view(-1, 1).expand(len(weights), 1)
            for each in (hess_init, weight_decay, beta2)
        )
        rates = table(learning_rates, steps) * ((start + decay) if rescale_lr else 1.0)
        taken = torch.arange(1, steps + 1, dtype=torch.float64).view(-1, 1, 1)
        self._rates = rates.float().to(device)
        self._corrections = (1 - beta1**taken).expand_as(rates).float().to(device)
        self._ess, self._beta1 = ess, beta1
        self._decay, self._kept, self._new, self._correction = (
            each.float().to(device) for each in (decay, kept, 1 - kept, 0.5 * (1 - kept) ** 2)
        )
        self._generator = generator
        self.momentum = torch.zeros_like(weights)
        self.hessian = torch.zeros_like(weights) + start.float().to(device)
        self._drawn = torch.zeros_like(weights)

    def std(self) -> Tensor:
        """Return the posterior's standard deviation, [trainings, n]."""
        return (self._ess * (self.hessian + self._decay)).rsqrt()

    def sampled(self, weights: Tensor, step: Tensor) -> Tensor:
        """Return a draw of the weights θ; the noise is kept for the update."""
        z = torch.randn(weights.shape, generator=self._generator, device=weights.device)
        torch.div(z, (self._ess * (self.hessian + self._decay)).sqrt(), out=self._drawn)
        return weights + self._drawn

    def update(self, weights: Tensor, gradient: Tensor, step: Tensor) -> None:
        """Take one step; see the class."""
        rate, correction = (each.index_select(0, step)[0] for each in (self._rates, self._corrections))
        self.momentum.mul_(self._beta1).add_(gradient, alpha=1 - self._beta1)
        precision = self.hessian + self._decay
        estimate = self._drawn * gradient * precision * self._ess
        away = (self.hessian - estimate).square() / precision
        self.hessian.mul_(self._kept).addcmul_(estimate, self._new).addcmul_(away, self._correction)
        direction = torch.addcmul(self.momentum / correction, weights, self._decay)
        weights.addcmul_(direction / (self.hessian + self._decay), rate, value=-1)

    def state(self) -> dict[str, Tensor]:
        """Return momentum and Hessian, by name."""
        return {"momentum": self.momentum, "hessian": self.hessian}


Gradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(weights [trainings, n], images [trainings, examples, side, side, channels], labels [trainings, examples])
→ (mean losses [trainings], their gradients [trainings, n])."""


def module_gradient(module: nn.Module, autocast: torch.dtype | None = None) -> Gradient:
    """Return the gradient of any module's cross-entropy, one training after another, by autograd.

    Args:
        module: of parameters alone (no batch norm), for [examples, 3, side, side]; its weights are not used.
        autocast: dtype of the convolutions, bfloat16 for instance; None: none.

    Raises:
        InputError: a module with buffers, which would be the trainings' in common.
    """
    if any(True for _ in module.buffers()):
        raise InputError(
            f"{type(module).__name__} has buffers, which trainings side by side would share; take one without"
        )
    layout = FlatLayout.of(module)

    def gradient(weights: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for vector, x, y in zip(weights, images, labels, strict=True):
            leaf = vector.detach().requires_grad_()
            with (
                torch.enable_grad(),
                torch.autocast(leaf.device.type, autocast or torch.bfloat16, enabled=autocast is not None),
            ):
                inputs = x[..., :3].permute(0, 3, 1, 2)
                if autocast is None:
                    inputs = inputs.to(leaf.dtype)
                logits = torch.func.functional_call(module, layout.views(leaf), (inputs,))
                loss = nn.functional.cross_entropy(logits if autocast is None else logits.float(), y)
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(gradients)

    return gradient


def batch_ensemble_gradient(
    gradient: Gradient, layout: FlatLayout, own: FlatLayout, members: int
) -> Gradient:
    """Return the gradient of BatchEnsembles' mean cross-entropy, from that of plain networks side by side.

    A member's weight is W ∘ (s rᵀ), so its gradient is passed on to W, s and r by the chain rule.

    Args:
        gradient: of plain networks. layout: of a plain network.
        own: of a BatchEnsemble's module, as ``lpe.BatchEnsemble`` names its parameters: ``network.L.weight``,
            ``network.L.batch_r`` and ``batch_s`` [members, width], ``network.L.batch_bias`` instead of
            ``network.L.bias``, and the others shared.
        members: of each.
    """
    offsets = own.offsets()
    # Each weight of a plain network: where it is in a BatchEnsemble's vector, plus the member's step, and
    # where its factors are among all vectors of a member, behind a 1 for weights without.
    place = torch.zeros(layout.size, dtype=torch.int64)
    step = torch.zeros(layout.size, dtype=torch.int64)
    factors: dict[str, Tensor] = {}
    vectors: dict[str, list[str]] = {"r": [], "s": []}
    which = {vector: torch.zeros(layout.size, dtype=torch.int64) for vector in vectors}
    widths = {"r": 1, "s": 1}
    start = 0
    for name, shape in layout.shapes.items():
        here = slice(start, start + shape.numel())
        start += shape.numel()
        layer, _, kind = name.rpartition(".")
        converted = f"network.{layer}.batch_r" in own.shapes
        if converted and kind == "bias":
            at, step[here] = offsets[f"network.{layer}.batch_bias"], shape.numel()
        else:
            at = offsets[f"network.{name}"]
        place[here] = at + torch.arange(shape.numel())
        if converted and kind == "weight":
            axes = {"s": torch.arange(shape[0])[:, None], "r": torch.arange(shape[1])[None, :]}
            for vector, axis in axes.items():
                index = axis.expand(shape[:2]).reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)
                which[vector][here] = widths[vector] + index.flatten()
                vectors[vector].append(f"network.{layer}.batch_{vector}")
                widths[vector] += own.shapes[vectors[vector][-1]][1]
    at_member = torch.stack([place + member * step for member in range(members)])
    # Where the vectors are in a BatchEnsemble's vector, [members, width].
    there = {
        vector: torch.stack(
            [
                torch.cat(
                    [
                        offsets[name] + member * own.shapes[name][1] + torch.arange(own.shapes[name][1])
                        for name in names
                    ]
                )
                for member in range(members)
            ]
        )
        for vector, names in vectors.items()
    }
    moved: dict[torch.device, tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]] = {}

    def on(device: torch.device) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        if device not in moved:
            moved[device] = (
                at_member.to(device),
                {vector: index.to(device) for vector, index in which.items()},
                {vector: index.to(device) for vector, index in there.items()},
            )
        return moved[device]

    def of_ensembles(weights: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        at, index, held = on(weights.device)
        ensembles = len(weights)
        plain = weights.index_select(1, at.flatten()).view(ensembles, members, -1)
        for vector in ("r", "s"):
            width = held[vector].shape[1]
            values = weights.index_select(1, held[vector].flatten()).view(ensembles, members, width)
            values = nn.functional.pad(values, (1, 0), value=1.0)
            factors[vector] = values.index_select(2, index[vector])
        both = factors["r"] * factors["s"]
        tiled = images.repeat_interleave(members, 0), labels.repeat_interleave(members, 0)
        losses, gradients = gradient((plain * both).flatten(0, 1), *tiled)
        gradients = gradients.view_as(plain) / members
        made = torch.zeros_like(weights)
        made.index_add_(1, at.flatten(), (gradients * both).flatten(1))
        for vector, other in (("r", "s"), ("s", "r")):
            width = held[vector].shape[1]
            sums = torch.zeros((ensembles, members, 1 + width), device=weights.device)
            sums.index_add_(2, index[vector], gradients * plain * factors[other])
            made.index_copy_(1, held[vector].flatten(), sums[:, :, 1:].flatten(1))
        return losses.view(ensembles, members).mean(1), made

    return of_ensembles
