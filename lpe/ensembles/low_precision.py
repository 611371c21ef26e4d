"""LPE-BSR: Nam & Lee 2024, "Ex Uno Pluria: Insights on Ensembling in Low Precision Number Systems".

Member m of an ensemble of size M is the base network with every quantised weight w replaced by

    w_m = BSR(w; seed, name, m):  hi with probability (w − lo)/(hi − lo), else lo,

lo and hi the neighbours of w in the number system. Predictions are averaged. No training.

What matters: the bits (too many and the members are alike, too few and each is bad) and the scale axis.
``rounding="nearest"`` with size 1 is RTN, the deterministic baseline.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpe.allocator import new_memory
from lpe.checks import check_choice, check_list, check_text
from lpe.ensembles.base import Ensemble
from lpe.ensembles.batch_norm import MemberStatistics, batch_norms, fresh_statistics, statistics_note
from lpe.ensembles.on_the_fly import STORAGES, AllMembers, planes_of
from lpe.ensembles.selection import Coverage, OutputAxis, PlannedTensor, describe_plan, select_tensors
from lpe.errors import InputError
from lpe.modules import named_tensors
from lpe.networks import refuse_computed_weights
from lpe.number_systems import kernels
from lpe.number_systems.grids import FullPrecision, Int, LowPrecision, NumberSystem, grid_of
from lpe.number_systems.kernels.arguments import Draw, Stored
from lpe.number_systems.naming import Systems, check_system
from lpe.number_systems.packing import packed_bytes
from lpe.number_systems.planes import check_random, lower_neighbours, plane_bytes, planes_with_scales
from lpe.number_systems.rounding import (
    check_rounding,
    encode_with_scales,
    plan_together,
    round_with_scales,
    scales_of,
)
from lpe.number_systems.streams import check_member, check_seed
from lpe.structure import Snapshot
from lpe.surroundings import apart

ALIGNMENT = 64
"""Elements: 128 bytes for 16-bit weights, what vectorised kernels ask of an address and more."""

STALE = (
    "the batch-norm statistics of {}'s rounded members are as the network has them, where batches= (lpe "
    "evaluate: --refresh) does not re-estimate them"
)

BASES = {"int8": 8, "bf16": 16, "fp32": 32}
"""Bases that members can be drawn from, with their bits a weight: integers (with scales), bfloat16, float32.
"""


def base_holds(base: str, system: LowPrecision, rounding: str) -> bool:
    """Tell whether members may be drawn from a base: from a coarse one they would all be alike.

    A base must have more bits than the members' codes. Any base will do for rounding to the nearest.
    """
    return rounding == "nearest" or BASES[base] > grid_of(system).code_bits


class _Plans(dict[tuple[str, torch.device, tuple[str, ...]], kernels.Plan]):
    """The plans by which tensors are rounded together; a copy of an ensemble makes its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Plans, ()


class LowPrecisionEnsemble(Ensemble):
    """An ensemble of M independent roundings of one model's weights.

    Args:
        model: any module; it is not modified, and members share what they do not own. The scales are
            taken when the ensemble is made: make it anew after training the model or moving it.
        system: the number system, such as ``lpe.Int(5)`` or ``lpe.NF4()``; or one for each name pattern, of
            which the first that matches a tensor's canonical name counts: ``{"*mlp*": lpe.Int(4), "*":
            lpe.Int(8)}``. ``lpe.FullPrecision()`` leaves a tensor as it is, and so does no pattern.
        size: members.
        seed: of the random bits, 0 … 2⁶⁴ − 1.
        rounding: "bernoulli", "coupled" or "nearest".
        include, exclude, output_axis: name patterns, see :func:`lpe.ensembles.selection.select_tensors`.
        first_member: the index under which member 0 draws. Two ensembles on one base with disjoint index
            ranges share no random bits.
        batches: training batches (inputs, targets), iterable again and again: each member's batch-norm
            statistics are re-estimated over them when it is first made, and kept. None: they are the model's.
        refresh: "relative", to what the unrounded network has, which stays as it is; or "absolute", those of
            the batches. See ``batch_norm``.

    Raises:
        InputError: a size below 1; nothing to quantise; a pattern that matches nothing, or that earlier ones
            leave nothing; a NaN or infinite weight; a seed, rounding or first_member out of range; batches
            that can be read only once.
    """

    @apart()
    def __init__(
        self,
        model: nn.Module,
        system: NumberSystem | Mapping[str, NumberSystem] | Systems,
        size: int,
        seed: int = 0,
        rounding: str = "bernoulli",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        first_member: int = 0,
        batches: Iterable[Any] | None = None,
        refresh: str = "relative",
        output_axis: Mapping[str, OutputAxis] | None = None,
    ) -> None:
        self._begin(model, system, size, seed, rounding, first_member)
        model = self.model
        if not isinstance(self.system, FullPrecision):
            refuse_computed_weights(model, exclude)
        assert self._structure is not None
        self.plan: list[PlannedTensor] = select_tensors(
            model, self.system, include, exclude, output_axis, self._structure.tensors
        )
        self.batch_norm = MemberStatistics.of(model, batches, refresh, self._alike)
        weights = self._base_tensors()
        self._stored: dict[str, Stored] = {p.name: weights[p.name] for p in self._rounded}
        self._scales: dict[str, Tensor] = {
            planned.name: scales_of(weights[planned.name], planned.rounded_to, planned.layout)
            for planned in self._rounded
        }

    def _begin(
        self,
        model: nn.Module,
        system: NumberSystem | Mapping[str, NumberSystem] | Systems,
        size: int,
        seed: int,
        rounding: str,
        first_member: int,
    ) -> None:
        super().__init__(size)
        self.model = self._made_of(model)
        self.system = check_system(system)
        self.seed = check_seed(seed)
        self.rounding = check_rounding(rounding)
        self.first_member = check_member(first_member)
        self.batch_norm = None
        self._plans = _Plans()
        check_member(self.first_member + self.size - 1)

    @property
    def _rounded(self) -> list[PlannedTensor]:
        return [planned for planned in self.plan if planned.rounds]

    @property
    def rounds(self) -> bool:
        """True where any tensor is rounded; none is under ``FullPrecision()``."""
        return bool(self._scales)

    @property
    def rule(self) -> str:
        """How members are rounded, as a file has it: the rounding's name."""
        return self.rounding

    @property
    def _alike(self) -> bool:
        """True where all members are alike."""
        return self.rounding == "nearest" or not self._rounded

    def stored(self, name: str) -> Stored:
        """Return what the members of a rounded tensor are drawn from: the model's own tensor, or codes, flat.

        Raises:
            InputError: the tensor is not rounded.
        """
        if check_text("name", name) not in self._stored:
            raise InputError(f"{name!r} is not a rounded tensor of this ensemble")
        return self._stored[name]

    def scales(self, name: str) -> Tensor:
        """Return a rounded tensor's scales, as :func:`lpe.number_systems.rounding.scales_of` has them.

        Raises:
            InputError: the tensor is not rounded.
        """
        if check_text("name", name) not in self._scales:
            raise InputError(f"{name!r} is not a rounded tensor of this ensemble")
        return self._scales[name]

    def draw(self, name: str, index: int) -> Draw:
        """Return how member ``index`` of a tensor is rounded: the key of its random bits."""
        index = self._check_index(index)
        return Draw(self.rounding, self.seed, name, self.first_member + index)

    def codes(self, name: str, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes and scales of one rounded tensor of one member; see ``lpe.encode``."""
        scales, planned = self.scales(name), self._planned(name)
        where = (planned.rounded_to, planned.layout)
        return encode_with_scales(self.stored(name), scales, *where, self.draw(name, index)), scales

    def planes(self, name: str, members: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the lower neighbours and the members' planes of one rounded tensor.

        Args:
            members: indices; None: all.

        Returns:
            codes of the tensor's shape, as ``lpe.encode`` has them; planes, uint8 [members, ⌈elements / 8⌉].
            See :mod:`lpe.number_systems.planes`, whose ``codes_of`` puts a member together.

        Raises:
            InputError: the tensor is not rounded; an index that the ensemble does not have, or none; members
                that have no planes.
        """
        self.check_planes()
        scales, planned, stored = self.scales(name), self._planned(name), self.stored(name)
        where = (planned.rounded_to, planned.layout)
        lower = lower_neighbours(stored, scales, *where)
        if members is None:
            return lower, planes_with_scales(stored, scales, *where, self.draw(name, 0), self.size)
        draws = [self.draw(name, index) for index in self._check_members(members)]
        return lower, torch.cat([planes_with_scales(stored, scales, *where, draw) for draw in draws])

    def _check_members(self, members: Sequence[int]) -> list[int]:
        """Return members' indices; InputError unless they are some of the ensemble's."""
        indices = [self._check_index(index) for index in check_list("members", members, "members' indices")]
        if not indices:
            raise InputError("members is empty; give one index or more")
        return indices

    def _planned(self, name: str) -> PlannedTensor:
        """Return what the plan says of a rounded tensor."""
        return next(planned for planned in self.plan if planned.name == name)

    def check_planes(self) -> None:
        """Raise InputError unless members are rounded at random."""
        if not self._rounded:
            raise InputError(f"nothing is rounded under {self.system.name}, so that there are no planes")
        check_random(self.rounding)

    def as_module(self, storage: str = "generator") -> AllMembers:
        """Join all members to one module: batch → logits [members, examples, classes]; see ``on_the_fly``.

        Args:
            storage: "generator", which draws the members from the stored weights in each pass; or "planes",
                which draws them once and keeps b + M bits a weight for M members of b bits. Making them
                costs about five passes of the other, from a large layer and at one position.

        Raises:
            InputError: another storage; planes of members that have none, which are those to the nearest.
        """
        check_choice("storage", storage, STORAGES)
        return AllMembers(self, planes=planes_of(self) if storage == "planes" else None)

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: the base with the chosen tensors rounded, and all others shared."""
        self.check_unchanged()
        rounds = self._rounded
        # One block of memory a dtype and device: the allocator gives a block so large back to the system as
        # soon as the member is gone, while tensors one by one leave holes, up to .3 of a member at ViT-S/16.
        # Each tensor starts on a multiple of ALIGNMENT elements, as it would had it been allocated alone.
        places: dict[str, slice] = {}
        sizes: dict[tuple[torch.dtype, torch.device], int] = {}
        for planned in rounds:
            where = (planned.dtype, self._stored[planned.name].device)
            start = sizes.get(where, 0)
            places[planned.name] = slice(start, start + planned.numel)
            sizes[where] = start + -(-planned.numel // ALIGNMENT) * ALIGNMENT
        blocks = {
            (dtype, device): new_memory((size,), dtype, device) for (dtype, device), size in sizes.items()
        }
        rounded = {
            planned.name: blocks[planned.dtype, self._stored[planned.name].device][places[planned.name]].view(
                planned.shape
            )
            for planned in rounds
        }
        self._round_all(rounded, index)
        return self._with(index, rounded)

    def _with(self, index: int, rounded: dict[str, Tensor]) -> nn.Module:
        """Return the base with a member's tensors, and its batch-norm statistics where they are its own."""
        if self.batch_norm is None:
            return self._copy(rounded)
        net = self._copy({**rounded, **fresh_statistics(self.model)})
        return self.batch_norm.give(net, index)

    @torch.no_grad()
    def in_turn(self) -> Iterator[nn.Module]:
        """Yield the members in order, in the modules and the memory of the first: each is gone with the next.

        A network that has changed in the meantime (it was cast or trained, or a module of it keeps what it
        computed from its weights) is not used again: the next member is then made anew. So is each of a
        network with classes of one's own, which may keep such things where nobody sees them.
        """
        if type(self).member is not LowPrecisionEnsemble.member:
            yield from super().in_turn()
            return
        net = self.member(0)
        tensors = self._own(net)
        snapshot = Snapshot(net, tensors.values())
        yield net
        for index in range(1, self.size):
            if snapshot.holds():
                self.check_unchanged()
                self._round_all(tensors, index)
                if self.batch_norm is not None:
                    self.batch_norm.give(net, index)
                    snapshot.take()
            else:
                del net, tensors, snapshot  # the next one takes as much memory
                net = self.member(index)
                tensors = self._own(net)
                snapshot = Snapshot(net, tensors.values())
            yield net

    def _own(self, net: nn.Module) -> dict[str, Tensor]:
        """Return a member's rounded tensors, by name."""
        names = {planned.name for planned in self._rounded}
        return {entry.name: entry.tensor for entry in named_tensors(net) if entry.name in names}

    def _round_all(self, outs: Mapping[str, Tensor], index: int) -> None:
        """Write the rounded tensors of a member, by name and contiguous: those of a device by one call."""
        together: dict[torch.device, list[str]] = {}
        for name in outs:
            stored = self._stored[name]
            if isinstance(stored, Tensor) and not stored.is_contiguous():
                # Its elements are brought in order for each member, rather than kept twice.
                planned = self._planned(name)
                where = (planned.rounded_to, planned.layout, self.draw(name, index))
                round_with_scales(outs[name], stored, self._scales[name], *where)
            else:
                together.setdefault(stored.device, []).append(name)
        draw = self.draw("", index)
        for device, names in together.items():
            self._plan_of(device, tuple(names)).round_into([outs[name] for name in names], draw)

    def _plan_of(self, device: torch.device, names: tuple[str, ...]) -> kernels.Plan:
        """Return the plan by which tensors are rounded together, made when it is first asked for."""
        key = (kernels.name_of(device), device, names)
        if key not in self._plans:
            by_name = {planned.name: planned for planned in self._rounded}
            planned = [by_name[name] for name in names]
            self._plans[key] = plan_together(
                (self._stored[p.name], self._scales[p.name], p.rounded_to, p.layout, p.name, p.dtype)
                for p in planned
            )
        return self._plans[key]

    def _own_names(self) -> Collection[str]:
        return {planned.name for planned in self._rounded}

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of n members, as a file holds them; see
        :meth:`lpe.ensembles.base.Ensemble.memory_bits`.

        "members": n × the packed codes, plus scales × 32 and the other tensors once. The codes of a tensor
        take whole bytes. Members to the nearest are all alike and count once.
        "planes": the packed lower neighbours once, and one bit a weight and member; each tensor's lower
        neighbours, and each of its planes, take whole bytes.
        "generator": the rounded weights once, as the smallest of BASES that can hold them (INT-8 with its
        scales; bfloat16 where there is a system of 8 bits, which draws nothing from INT-8), and the other
        tensors. Re-estimated batch-norm statistics are each member's own under all.
        """
        n = self._check_storage(n, storage)
        own = () if self.batch_norm is None else self.batch_norm.names
        leftovers = sum(
            p.numel * p.bits * (n if p.name in own and not self._alike else 1)
            for p in self.plan
            if p.saved and not p.rounds
        )
        scales = 32 * sum(scale.numel() for scale in self._scales.values())
        if storage == "generator":
            weights = BASES[self.base] * sum(p.numel for p in self._rounded)
            return leftovers + weights + (scales if self.base == "int8" else 0)
        distinct = 1 if self.rounding == "nearest" else n
        codes = 8 * sum(packed_bytes(p.numel, p.rounded_to) for p in self._rounded)
        if storage == "planes":
            return leftovers + scales + codes + n * 8 * sum(plane_bytes(p.numel) for p in self._rounded)
        return leftovers + scales + codes * distinct

    @property
    def base(self) -> str:
        """The smallest of BASES from which a seeded file can draw the members."""
        systems = [planned.rounded_to for planned in self._rounded]
        return next(b for b in BASES if all(base_holds(b, system, self.rounding) for system in systems))

    def notes(self) -> list[str]:
        """List notes: where less than 95 % of the weights of two or more dimensions are rounded, and where
        members have batch-norm statistics that are not theirs.
        """
        if not self.rounds:
            return []
        line = Coverage.of(self.plan).note(type(self.model).__name__)
        stale = self.batch_norm is None and bool(batch_norms(self.model))
        return [
            *([line] if line else []),
            *([STALE.format(type(self.model).__name__)] if stale else []),
        ]

    def describe(self) -> str:
        """Tabulate a row per tensor: name, shape, quantised or not and why, bits a value in a member."""
        clips = any(isinstance(p.system, Int) and p.system.clip != "absmax" for p in self._rounded)
        biased = "; weights beyond the last code are clipped to it" if clips else ""
        table = describe_plan(
            self.plan,
            f"LPE of {type(self.model).__name__}: {self.size} members, {self.system.name}, "
            f"{self.rounding} rounding, seed {self.seed}{biased}",
        )
        return table + statistics_note(self.model, self.batch_norm)
