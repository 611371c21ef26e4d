"""Gaussian noise on the weights: what rounding to a low precision is compared with.

Member m of an ensemble of size M is the base network with every weight w that LPE-BSR would quantise
replaced by

    w_m = w + σ_w z,   z ~ N(0, 1) keyed by (seed, name, m),

and all other tensors shared. Two choices of σ_w:

    matched     σ_w² = Δ²·p(1 − p): weight by weight BSR's own variance under a number system, with its p and
                its Δ, the distance of the weight's two neighbours (zero for a grid value). Is it the rounding
                that helps, or only noise of that size?
    isotropic   one σ for all weights, in the weights' own unit.

Sources: the matched variance is BSR's (Nam & Lee 2024, "Ex Uno Pluria"); noise of one size around a trained
network is their training-free baseline. What matters: σ, that is, the bits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import check_model, check_text, is_number, shown
from lpe.ensembles.base import Ensemble, text_table
from lpe.ensembles.batch_norm import MemberStatistics, fresh_statistics, statistics_note
from lpe.ensembles.selection import OutputAxis, PlannedTensor, select_tensors
from lpe.errors import InputError
from lpe.modules import named_tensors, tensor_bits
from lpe.networks import refuse_computed_weights
from lpe.number_systems.grids import FullPrecision, Grid, NumberSystem, grid_of
from lpe.number_systems.kernels import reference
from lpe.number_systems.kernels.arguments import Scales
from lpe.number_systems.naming import Systems, check_system
from lpe.number_systems.rounding import scales_of
from lpe.number_systems.streams import check_seed, normal
from lpe.surroundings import apart
from lpe.training.roots import root

CHUNK = 1 << 15
"""Elements at a time: bounds the temporaries at a few hundred kB for any tensor's size."""


class GaussianEnsemble(Ensemble):
    """An ensemble of M draws of Gaussian noise around one model's weights.

    Args:
        model: any module; it is not modified, and members share what carries no noise. The scales are taken
            when the ensemble is made: make it anew after training the model or moving it.
        system: the number system whose tensors carry the noise, and whose variance it has where ``std`` is
            None; or one for each name pattern, as of ``LowPrecisionEnsemble``.
        size: members. seed: of the draws, 0 … 2⁶⁴ − 1.
        std: None: BSR's own, weight by weight. A number ≥ 0: that of every weight, in the weights' unit.
        include, exclude, output_axis: name patterns, see :func:`lpe.ensembles.selection.select_tensors`.
        batches: training batches (inputs, targets), iterable again and again: each member's batch-norm
            statistics are re-estimated over them when it is first made, and kept. None: they are the model's.
        refresh: "relative", to what the unrounded network has, which stays as it is; or "absolute", those of
            the batches. See ``batch_norm``.

    Raises:
        InputError: a size below 1; a seed out of range; a std that is negative, NaN or infinite; no std under
            a system that rounds nothing; nothing to quantise; a pattern that matches nothing; a NaN or
            infinite weight.
    """

    @apart()
    def __init__(
        self,
        model: nn.Module,
        system: NumberSystem | Mapping[str, NumberSystem] | Systems,
        size: int,
        seed: int = 0,
        std: float | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        batches: Iterable[Any] | None = None,
        refresh: str = "relative",
        output_axis: Mapping[str, OutputAxis] | None = None,
    ) -> None:
        super().__init__(size)
        check_model(model)
        self.system = check_system(system)
        if std is None:
            if isinstance(self.system, FullPrecision):
                raise InputError(
                    f"{self.system.name} rounds nothing, so noise of its variance is none; give std= a "
                    "number or a system that rounds, such as lpe.Int(5)"
                )
        elif not is_number(std) or not 0 <= std < math.inf:
            raise InputError(f"std must be a finite number ≥ 0 or None (BSR's own), not {shown(std)}")
        self.model = model = self._made_of(model)
        refuse_computed_weights(model, exclude)
        self.seed = check_seed(seed)
        self.std = None if std is None else float(std)
        self.batch_norm = MemberStatistics.of(model, batches, refresh)
        self.plan: list[PlannedTensor] = select_tensors(model, self.system, include, exclude, output_axis)
        self._noisy = {planned.name: planned for planned in self.plan if planned.quantised}
        self._weights = self._base_tensors()
        self._scales: dict[str, Scales] = {}
        if std is None:
            for name, planned in self._noisy.items():
                scales = scales_of(self._weights[name], planned.rounded_to, planned.layout)
                self._scales[name] = Scales.of(scales, planned.layout, planned.rounded_to.scale)

    @apart()
    def std_of(self, name: str) -> Tensor:
        """Return the std of the noise on one tensor: float32, of the weight's shape, in its unit.

        Raises:
            InputError: the tensor carries no noise.
        """
        if check_text("name", name) not in self._noisy:
            raise InputError(f"{name!r} carries no noise in this ensemble; describe() lists what does")
        std = torch.empty(self._noisy[name].shape, dtype=torch.float32, device=self._weights[name].device)
        for start, stop, part in self._std(name):
            std.view(-1)[start:stop] = part
        return std

    def _std(self, name: str) -> Iterator[tuple[int, int, Tensor | float]]:
        """Yield start, stop and std, row-major: a number for all elements, or float32 [CHUNK] at a time."""
        weight = self._weights[name].detach().reshape(-1)
        if self.std is not None:
            yield 0, len(weight), self.std
            return
        scales = self._scales[name]
        for start in range(0, len(weight), CHUNK):
            stop = min(start + CHUNK, len(weight))
            group = scales.group(start, stop)
            part = (weight[start:stop].float(), scales.values[group], scales.inverses[group])
            yield start, stop, _rounding_std(*part, grid_of(self._noisy[name].rounded_to))

    @apart()
    def weights(self, index: int) -> dict[str, Tensor]:
        """Draw ``index`` of the weights that carry noise, by canonical name."""
        drawn = {}
        for name, planned in self._noisy.items():
            weight = self._weights[name].detach()
            noise = normal("gaussian", self.seed, name, index, planned.shape)
            # Written over the noise: where the types agree, the member's own is the only copy of the weight.
            noise = noise.to(weight.device, torch.promote_types(weight.dtype, noise.dtype))
            flat_weight, flat_noise = weight.reshape(-1), noise.view(-1)
            for start, stop, std in self._std(name):
                flat_noise[start:stop].mul_(std).add_(flat_weight[start:stop])
            drawn[name] = noise.to(weight.dtype)
        return drawn

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: one draw of the noisy tensors, all others shared."""
        self.check_unchanged()
        weights = self.weights(index)
        if self.batch_norm is None:
            return self._copy(weights)
        net = self._copy({**weights, **fresh_statistics(self.model)})
        return self.batch_norm.give(net, index)

    def _own_names(self) -> Collection[str]:
        return self._noisy

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of n members; see :meth:`lpe.ensembles.base.Ensemble.memory_bits`.

        "members": n × the noisy weights at their own precision (with re-estimated batch-norm statistics,
        where there are any), the other tensors once. "generator": the model once.
        """
        n = self._check_storage(n, storage)
        owned = {*self._noisy, *(() if self.batch_norm is None else fresh_statistics(self.model))}
        copies = n if storage == "members" else 1
        return sum(
            tensor_bits(entry.tensor) * (copies if entry.name in owned else 1)
            for entry in named_tensors(self.model)
            if entry.saved
        )

    def describe(self) -> str:
        """Tabulate the tensors: name, shape, noise or none and why, median std, bits a value in a member."""
        rows = []
        for planned in self.plan:
            median = f"{float(self.std_of(planned.name).median()):.3g}" if planned.quantised else ""
            rows.append(
                (
                    planned.name,
                    "×".join(map(str, planned.shape)) or "scalar",
                    "yes" if planned.quantised else "no",
                    planned.reason + ("" if planned.saved else ", not saved"),
                    median,
                    str(planned.bits),
                )
            )
        noise = f"the variance of {self.system.name} BSR" if self.std is None else f"std {self.std:g}"
        title = (
            f"Gaussian noise on {type(self.model).__name__}: {self.size} members, {noise}, seed {self.seed}"
        )
        inside = sum(planned.numel for planned in self._noisy.values())
        footer = f"{inside:,} values with noise"
        return text_table(
            title,
            ("tensor", "shape", "noise", "why", "median std", "bits"),
            rows,
            footer + statistics_note(self.model, self.batch_norm),
        )


def _rounding_std(weight: Tensor, scale: Tensor, inverse: Tensor, grid: Grid) -> Tensor:
    """Return BSR's std of float32 weights under their scales and these' inverses, all of one shape.

    The arithmetic is the rounding's own (``kernels.reference``), to the 16 bits of its probability: so a
    weight that it never moves has no noise.
    """
    table = reference.level_table(grid, weight.device)
    low, p = reference.neighbours(reference.scaled(weight, inverse, grid), grid, table)
    p = (p * 65536.0).round() / 65536.0
    if grid.uniform:
        # Beyond the last code, where float32's error may put the largest weight, both neighbours are it.
        lowest, highest = grid.levels[0], grid.levels[-1]
        gap = (low + 1).clamp(lowest, highest) - low.clamp(lowest, highest)
    else:
        gap = table[low + 1] - table[low]
    return scale * gap * root(p * (1.0 - p))
