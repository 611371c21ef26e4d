"""Error feedback: rounding that hands each weight's error on to the weights that are not rounded yet.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
after Frantar & Alistarh 2022, "Optimal Brain Compression" (OBQ). A layer multiplies inputs x by its weight
[outputs, columns]; a convolution multiplies the unfolded windows of each of its groups. With

    H = 2 Σ x xᵀ + λ I,  λ = 1 % of the mean of its diagonal,   H⁻¹ = UᵀU,  U upper triangular,

each output's row w is rounded column by column, in order, on a grid that stays fixed (its scale is of the
unrounded weights):

    u_j = w_j − Σ_{i<j} e_i U_ij / U_ii        q_j = the rounding of u_j        e_j = u_j − q_j

Of all changes to the later weights this one makes the output error least, and then

    (q − w) H (q − w)ᵀ = Σ_j e_j² / U_jj²

where 1/U_jj² is the part of input j's energy H_jj that the inputs after it do not explain. Where each weight
is rounded by itself, its error counts by H_jj whole, and errors also by what is between them.

    nearest     GPTQ: one network, the "rounded well" base. q − w is a fixed number, so it is a bias, as RTN's
                is; |e_j| ≤ Δ/2
    bernoulli   u_j goes to its upper or lower neighbour at random, with BSR's probability and BSR's own bits
                (:mod:`lpe.number_systems.streams`): members of an ensemble

Given what was rounded before, a random e_j has mean 0 and variance Δ² p (1 − p), p of u_j. So E[q] = w:
without bias, as BSR is, but where u_j lies beyond the last code and is clipped (a row's largest weight is at
the grid's end, so that happens). The variance is another. A weight also moves by the errors before it: by
itself it varies more than BSR's, and a grid value does not stay put. The weights of a row vary together, so
that on inputs like X the outputs vary less.

What matters: the inputs. Here they are the unrounded network's, in one pass over the batches, for every layer
and member alike; GPTQ's own are those of the network rounded so far, which take a pass for every layer.
Labels are not read. Only linear and convolutional layers have such inputs: other weights (embeddings,
attention's bare projections, transposed convolutions) are rounded as by ``LowPrecisionEnsemble``, and
``describe`` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpe.batches import pairs
from lpe.checks import check_choice, check_finite
from lpe.ensembles.batch_norm import statistics_note
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.on_the_fly import AllMembers
from lpe.ensembles.selection import OutputAxis, PlannedTensor, describe_plan
from lpe.errors import InputError
from lpe.logits import check_shape, check_values, examples_in
from lpe.modules import apply, device_of, holders, to_device
from lpe.number_systems.grids import NumberSystem, grid_of
from lpe.number_systems.kernels import reference
from lpe.number_systems.kernels.arguments import Scales
from lpe.number_systems.naming import Systems
from lpe.number_systems.rounding import decoded
from lpe.number_systems.streams import random_lanes
from lpe.surroundings import apart

ROUNDINGS = ("nearest", "bernoulli")
DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it; GPTQ's."""

BLOCK = 128
"""Columns after whose rounding the columns beyond them take up the errors, all at once; GPTQ's."""

WINDOW_NUMBERS = 1 << 22
"""Numbers of unfolded inputs that are held at a time."""

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def why_not(module: nn.Module, attribute: str) -> str | None:
    """Say why a tensor's errors cannot be fed on, as that attribute of a module; None where they can.

    A class that computes in a way of its own (standardised weights, padding) may multiply other inputs.
    """
    kind = next((kind for kind in LAYERS if isinstance(module, kind)), None)
    if kind is None or attribute != "weight":
        return f"{type(module).__name__} is neither linear nor a convolution"
    ways = ("forward", "_conv_forward")
    if any(getattr(type(module), way, None) is not getattr(kind, way, None) for way in ways):
        return f"{type(module).__name__} computes in a way of its own"
    return None


def multiplied(layer: Layer, inputs: Tensor) -> Tensor:
    """Return what each output's weights multiply: [groups, positions, columns], a layer's inputs unfolded.

    Columns are in the order of the weight's dimensions after the first.

    Args:
        inputs: [..., columns] of a linear layer, [examples, channels, *spatial] of a convolution.
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, layer.in_features)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    steps = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(steps, start=2):
        windows = windows.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    # [examples, channels, *places, *kernel] → [examples, *places, channels, *kernel]
    windows = windows.movedim(1, 1 + len(layer.kernel_size))
    columns = layer.weight[0].numel()
    return windows.reshape(-1, layer.groups, columns).transpose(0, 1)


class _Watched:
    """A layer's pre-hook that sums Σ x xᵀ of what it multiplies: float64 [groups, columns, columns]."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None

    def __call__(self, layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs: Tensor = next(iter((*args, *kwargs.values()))).detach()
        # A layer takes one example without its axis, too.
        if inputs.dim() == (1 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 1):
            inputs = inputs[None]
        if not inputs.numel():
            return
        first = multiplied(layer, inputs[:1])
        step = max(1, WINDOW_NUMBERS // max(1, first.numel()))
        for part in inputs.split(step):
            windows = multiplied(layer, part)
            # In their own precision, but no less than float32; the sum over parts is float64.
            windows = windows.to(torch.promote_types(windows.dtype, torch.float32))
            gram = (windows.transpose(1, 2) @ windows).double()
            self.gram = gram if self.gram is None else self.gram + gram


def shares_of(gram: Tensor, damping: float) -> Tensor:
    """Return U_ij / U_ii, what of column i's error column j takes up: float64 [groups, columns, columns].

    A unit upper triangular matrix a group. Inputs that are 0 throughout take up nothing and hand on nothing.

    Args:
        gram: Σ x xᵀ, float64 [groups, columns, columns]. damping: share of the mean of its diagonal, of the
            inputs that are not 0, that is added to it; above 0.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    live = diagonal > 0
    mean = diagonal.sum(dim=-1, keepdim=True) / live.sum(dim=-1, keepdim=True).clamp_min(1)
    mean = torch.where(mean > 0, mean, 1.0)
    damped = gram + torch.diag_embed(damping * mean + torch.where(live, 0.0, mean))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    return upper / upper.diagonal(dim1=-2, dim2=-1)[..., None]


def feed_back(
    weight: Tensor, shares: Tensor, round_column: Callable[[int, Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """Round columns in order, each one's error handed on to the later ones; return the codes, of its shape.

    Args:
        weight: float64 [columns, groups, rows]. shares: of :func:`shares_of`.
        round_column: (column, its weights and what they took up, [groups, rows]) → codes and values, alike.
    """
    left = weight.clone()
    codes = []
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        errors = torch.zeros_like(left[start:stop])
        for column in range(start, stop):
            code, value = round_column(column, left[column])
            codes.append(code)
            error = left[column] - value
            errors[column - start] = error
            left[column + 1 : stop] -= shares[:, column, column + 1 : stop].T[:, :, None] * error
        left[stop:] -= torch.einsum("cgr,gcl->lgr", errors, shares[:, start:stop, stop:])
    return torch.stack(codes)


class FeedbackEnsemble(LowPrecisionEnsemble):
    """An ensemble of M roundings of one model's weights with error feedback; to the nearest, GPTQ's network.

    A member is determined by (weights, batches, seed, index). The inputs are those that the network computes,
    which another machine or number of threads may change in the last digit, and with it a code here and
    there: a file of the members has the codes.

    Args:
        model, system, seed, include, exclude, first_member, output_axis: as of ``LowPrecisionEnsemble``.
        size: members; those to the nearest are all alike, so that one is enough.
        batches: calibration batches (inputs, targets), read once when the ensemble is made; 128 images are
            usual. Targets are not read.
        rounding: "bernoulli" or "nearest".
        statistics, refresh: ``batches`` and ``refresh`` of ``LowPrecisionEnsemble``: training batches that
            each member's batch-norm statistics are re-estimated on. None: they are the model's.
        damping: share of the mean of H's diagonal that is added to it, above 0.

    Attributes:
        without_feedback: rounded tensors that take no part in it, by name: why.

    A layer takes 8 · columns² · groups bytes of memory, columns being its inputs to one output.

    Raises:
        InputError: as ``LowPrecisionEnsemble``; no batches, or one that is no pair; logits that are
            NaN or not [examples, classes]; inputs of a layer that are not finite; a damping that is no
            finite number above 0.
    """

    @apart()
    def __init__(
        self,
        model: nn.Module,
        system: NumberSystem | Mapping[str, NumberSystem] | Systems,
        size: int,
        batches: Iterable[Any],
        seed: int = 0,
        rounding: str = "bernoulli",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        first_member: int = 0,
        statistics: Iterable[Any] | None = None,
        refresh: str = "relative",
        output_axis: Mapping[str, OutputAxis] | None = None,
        damping: float = DAMPING,
    ) -> None:
        check_choice("rounding", rounding, ROUNDINGS)
        self.damping = check_finite("damping", damping, above=True)
        super().__init__(
            model,
            system,
            size,
            seed,
            rounding,
            include,
            exclude,
            first_member,
            statistics,
            refresh,
            output_axis,
        )
        self.without_feedback: dict[str, str] = {}
        self._shares: dict[str, Tensor] = {}
        for name, gram in self._grams(batches).items():
            try:
                self._shares[name] = shares_of(gram, self.damping)
            except torch.linalg.LinAlgError:
                raise InputError(
                    f"a damping of {self.damping:g} leaves the Hessian of {name!r} without an inverse; give "
                    "more"
                ) from None
        self.plan = [replace(planned, reason=self._reason(planned)) for planned in self.plan]

    def _grams(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """Return Σ x xᵀ of the inputs of each rounded tensor that has some, by name, in one pass."""
        net = self._copy({})
        held_by = holders(net)
        assert self._structure is not None
        also = {entry.name: (entry.name, *entry.also) for entry in self._structure.tensors}
        watched: dict[str, _Watched] = {}
        for name in (planned.name for planned in self._rounded):
            uses = [held_by[each] for each in also[name]]
            reasons = [reason for use in uses if (reason := why_not(*use))]
            if reasons:
                self.without_feedback[name] = reasons[0]
                continue
            watched[name] = _Watched()
            for layer in {id(layer): layer for layer, _ in uses}.values():
                layer.register_forward_pre_hook(watched[name], with_kwargs=True)
        examples = 0
        device = device_of(net)
        for index, inputs, _ in pairs(batches, "; give (inputs, None) where there are no targets"):
            if (given := examples_in(inputs)) == 0:
                continue
            logits = apply(net, to_device(inputs, device))
            check_shape(logits, given, f"batch {index}: ")
            check_values(logits, f"batch {index}: ")
            examples += len(logits)
        if not examples:
            raise InputError("the batches are empty; error feedback needs inputs to calibrate on")
        grams = {}
        for name, seen in watched.items():
            if seen.gram is None:
                self.without_feedback[name] = "no input reached its layer on the batches"
            elif not bool(seen.gram.isfinite().all()):
                raise InputError(f"the inputs of {name!r} are not finite on these batches")
            else:
                grams[name] = seen.gram
        return grams

    def _reason(self, planned: PlannedTensor) -> str:
        if not planned.rounds:
            return planned.reason
        if planned.name in self._shares:
            return f"{planned.reason}; error fed on"
        return f"{planned.reason}; error not fed on: {self.without_feedback[planned.name]}"

    @property
    def rule(self) -> str:
        """How members are rounded, as a file has it."""
        return f"error feedback, {self.rounding}"

    def codes(self, name: str, index: int) -> tuple[Tensor, Tensor]:
        """Return the codes and scales of one rounded tensor of one member; see ``lpe.encode``."""
        scales = self.scales(name)
        if name not in self._shares:
            return super().codes(name, index)
        return self._codes(next(planned for planned in self.plan if planned.name == name), index), scales

    def as_module(self, storage: str = "generator") -> AllMembers:
        """Refuse: each error depends on those before it, so members cannot be drawn while they run.

        Raises:
            InputError: always.
        """
        raise InputError(
            "members with error feedback are not drawn on the fly, for each error depends on those before "
            "it; run them one by one"
        )

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: the base with the chosen tensors rounded, and all others shared."""
        # An own method, by which others see that the members are not those of ``as_module``.
        return super().member(index)

    def _round_all(self, outs: Mapping[str, Tensor], index: int) -> None:
        super()._round_all({name: out for name, out in outs.items() if name not in self._shares}, index)
        for planned in self._rounded:
            if planned.name in self._shares:
                where = (planned.rounded_to, planned.layout, planned.dtype)
                scales = self._scales[planned.name]
                outs[planned.name].copy_(decoded(self._codes(planned, index), scales, *where))

    @apart()
    def _codes(self, planned: PlannedTensor, index: int) -> Tensor:
        """Return the codes of a tensor whose errors are fed on, of its shape."""
        name, system = planned.name, planned.rounded_to
        stored, shares, draw = self._stored[name], self._shares[name], self.draw(name, index)
        assert isinstance(stored, Tensor)
        scales = Scales.of(self._scales[name], planned.layout, system.scale)
        group = scales.group(0, planned.numel)
        groups, columns, _ = shares.shape

        def by_column(values: Tensor) -> Tensor:
            """Return a value an element, row-major, as [columns, groups, rows]."""
            return values.reshape(groups, -1, columns).permute(2, 0, 1).contiguous()

        scale, inverse = by_column(scales.values[group]), by_column(scales.inverses[group])
        lanes: Tensor | None = None
        if draw.rounding != "nearest":
            drawn = random_lanes(draw.seed, name, draw.member, 0, planned.numel, stored.device)
            lanes = by_column(drawn)
        grid = grid_of(system)
        table = reference.level_table(grid, stored.device)

        def round_column(column: int, left: Tensor) -> tuple[Tensor, Tensor]:
            own = None if lanes is None else lanes[column]
            codes = reference.round_codes(left.float(), inverse[column], grid, table, draw.rounding, own)
            values = reference.values_of(codes, scale[column], grid, table)
            return codes, values.to(planned.dtype).double()

        codes = feed_back(by_column(stored.detach().double()), shares, round_column)
        return codes.permute(1, 2, 0).reshape(planned.shape)

    def check_planes(self) -> None:
        """Raise InputError: members differ by what was fed back, in more than a bit."""
        raise InputError(
            "members with error feedback differ by more than a bit a weight and have no planes; save them "
            "with kind='members'"
        )

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of n members; see :meth:`lpe.ensembles.base.Ensemble.memory_bits`.

        "members": as of ``LowPrecisionEnsemble``, for the members lie on the same grid.
        "generator": what ``LowPrecisionEnsemble`` counts, and the upper triangle of each layer's H at 32 bits
        a number, without which no member can be drawn. To the nearest there is one network and nothing to
        draw: its codes.
        """
        n = self._check_storage(n, storage)
        if storage == "members" or self.rounding == "nearest":
            return super().memory_bits(n, "members")
        return super().memory_bits(n, storage) + 32 * sum(
            groups * columns * (columns + 1) // 2
            for groups, columns, _ in (shares.shape for shares in self._shares.values())
        )

    def notes(self) -> list[str]:
        """List ``LowPrecisionEnsemble``'s notes, and the rounded tensors whose errors are not fed on."""
        if not self.without_feedback:
            return super().notes()
        largest = max((p for p in self._rounded if p.name in self.without_feedback), key=lambda p: p.numel)
        line = (
            f"{len(self.without_feedback)} of {len(self._rounded)} rounded tensors are rounded without error "
            f"feedback; the largest: {largest.name} ({self.without_feedback[largest.name]}); "
            "describe() lists all"
        )
        return [*super().notes(), line]

    def describe(self) -> str:
        """Tabulate a row per tensor: name, shape, quantised or not and why, bits a value in a member."""
        table = describe_plan(
            self.plan,
            f"LPE with error feedback of {type(self.model).__name__}: {self.size} members, "
            f"{self.system.name}, {self.rounding} rounding, damping {self.damping:g}, seed {self.seed}",
        )
        return table + statistics_note(self.model, self.batch_norm)
