"""Seeded files: the weights once, as a base that is finer than the members drawn from it."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lpe.ensembles.base import check_size
from lpe.ensembles.batch_norm import MemberStatistics
from lpe.ensembles.low_precision import BASES, LowPrecisionEnsemble
from lpe.ensembles.selection import OutputAxis, PlannedTensor, select_tensors
from lpe.errors import InputError
from lpe.files.container import check_same, owned, shaped
from lpe.files.kinds import check_base, check_kind
from lpe.files.members import shared_tensors, take_statistics
from lpe.files.systems import dtype_of, layout_header, systems_of_tensors
from lpe.modules import named_tensors, with_tensors
from lpe.number_systems import kernels
from lpe.number_systems.grids import FullPrecision, Int, LowPrecision, grid_of
from lpe.number_systems.kernels.arguments import Coded, Scales, Stored
from lpe.number_systems.layouts import Layout
from lpe.number_systems.packing import pack, unpack
from lpe.number_systems.rounding import absmax_scales, encode, scales_of, scales_of_largest

_FLOATS = {"bf16": torch.bfloat16, "fp32": torch.float32}  # of BASES; the rest are integers


def drawable(ensemble: LowPrecisionEnsemble, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and header from which the members can be drawn.

    Raises:
        InputError: the base is no finer than the members.
    """
    check_base(base, (planned.system for planned in ensemble.plan), ensemble.rounding)
    tensors, about = shared_tensors(ensemble)
    for planned in ensemble.plan:
        if planned.name in about["own"]:
            tensors |= _written_base(ensemble, planned, base)
    about["base"] = base
    if ensemble.batch_norm is not None:
        about["refresh"] = ensemble.batch_norm.form
        about["distinct"] = 1 if ensemble.rounding == "nearest" else len(ensemble)
        of_each = _statistics_drawn(ensemble, tensors, about)
        take_statistics(tensors, about, of_each)
    return tensors, about


def _statistics_drawn(
    ensemble: LowPrecisionEnsemble, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> list[dict[str, Tensor]]:
    """Return batch-norm statistics of the members that a base gives, which need not be the ensemble's own.

    Raises:
        InputError: they are not, and there are no batches to estimate them on: the ensemble is a file's.
    """
    here = ensemble.batch_norm
    assert here is not None
    devices = {entry.name: entry.tensor.device for entry in named_tensors(ensemble.model)}
    drawn = SeededEnsemble(ensemble.model, {**about, "size": len(ensemble)}, dict(tensors), devices)
    if any(not _same(ensemble.stored(name), drawn.stored(name)) for name in about["layouts"]):
        if isinstance(ensemble, SeededEnsemble):
            raise InputError(
                f"the batch-norm statistics in this file are those of members drawn from {ensemble.base} "
                f"weights, and members from {drawn.base} are others; give base={ensemble.base!r}"
            )
        drawn.batch_norm = MemberStatistics(here.model, here.batches, here.form, here.alike)
        drawn.batch_norm.kept.unrounded = here.kept.unrounded
        return [drawn.batch_norm.of_member(index, drawn.member) for index in range(about["distinct"])]
    return [here.of_member(index, ensemble.member) for index in range(about["distinct"])]


def _same(stored: Stored, other: Stored) -> bool:
    """Tell whether the same members are drawn from two stored weights."""
    if isinstance(stored, Tensor) and isinstance(other, Tensor):
        return torch.equal(stored.float(), other.float())
    if isinstance(stored, Tensor) or isinstance(other, Tensor):
        return False
    return torch.equal(stored.codes, other.codes) and torch.equal(stored.scales.values, other.scales.values)


class SeededEnsemble(LowPrecisionEnsemble):
    """Low precision members drawn from a file's packed weights; made by :func:`load`.

    ``model`` is the architecture with the file's leftovers; its quantised tensors have a shape and a dtype
    but no memory, and read as NaN. ``stored(name)`` gives what is in memory: the codes of the INT-8 base, or
    the bfloat16 or float32 weights.

    Args:
        model: the architecture. header: of the file. tensors: of it, from which the packed weights are taken
            out as they are unpacked. devices: of each tensor, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        header: Mapping[str, Any],
        tensors: dict[str, Tensor],
        devices: Mapping[str, torch.device],
    ) -> None:
        system, of_tensor = systems_of_tensors(header)
        layouts = header["layouts"]
        # What is own but not packed are batch-norm statistics, of as many members as were saved.
        statistics = [name for name in header["own"] if name not in layouts]
        held = check_size(header["distinct"]) if statistics else 0
        if statistics and header["size"] > held and header["rounding"] != "nearest":
            raise InputError(
                f"the file holds batch-norm statistics of {held} members, not of {header['size']}; give at "
                "most as many"
            )
        kept: dict[int | str, dict[str, Tensor]] = {
            index: {
                name: shaped(tensors, f"member {index}/{name}", header["shapes"][name]).to(devices[name])
                for name in statistics
            }
            for index in range(min(held, header["size"]))
        }
        replaced = {
            name: placeholder(shape, dtype_of(layouts[name]), devices[name])
            if name in layouts
            else kept[0][name]
            if name in statistics
            else shaped(tensors, f"shared/{name}", shape).to(devices[name])
            for name, shape in header["shapes"].items()
        }
        net = with_tensors(model, replaced)
        about = (header["size"], header["seed"], header["rounding"], header["first_member"])
        self._begin(net, system, *about)
        if statistics:
            self.batch_norm = MemberStatistics(net, (), header["refresh"], header["rounding"] == "nearest")
            self.batch_norm.kept.members |= kept
        self.plan = planned_tensors(net, layouts, of_tensor)
        # Files of version 1 have INT-8 of any system.
        self._base = check_kind("seeded", str(header.get("base", "int8")))
        self.base_hash: str | None = header.get("base_hash")
        """Hash of the weights that were packed; None where the file does not tell."""
        self._stored, self._scales = {}, {}
        for planned in self._rounded:
            name, layout = planned.name, planned.layout
            stored = _read_base(tensors, planned, self._base, devices[name])
            self._stored[name] = stored
            self._scales[name] = (
                scales_of(stored, planned.rounded_to, layout)
                if isinstance(stored, Tensor)
                else _scales_of_codes(stored, planned.rounded_to, layout)
            )

    @property
    def base(self) -> str:
        """The one of BASES that the weights lie in."""
        return self._base

    def describe(self) -> str:
        """Tabulate the tensors, as of the ensemble that was saved, and what the members are drawn from."""
        title, *rows = super().describe().splitlines()
        return "\n".join([f"{title}, drawn from {self._base} weights", *rows])


def planned_tensors(
    net: nn.Module, layouts: Mapping[str, Mapping[str, Any]], systems: Mapping[str, LowPrecision]
) -> list[PlannedTensor]:
    """Return the plan of a file's tensors; InputError where the model's rules lay them out in another way."""
    axes: dict[str, OutputAxis] = {
        glob.escape(name): (0, told["output_axis"]) if told["channel_groups"] > 1 else told["output_axis"]
        for name, told in layouts.items()
        if told.get("axis_given")
    }
    # The placeholders are not looked at: full precision asks for no finite weights.
    plan = select_tensors(net, FullPrecision(), [glob.escape(name) for name in layouts], output_axis=axes)
    here = {planned.name: layout_header(planned) for planned in plan if planned.quantised}
    check_same("layouts", [[*item] for item in layouts.items()], [[*item] for item in here.items()])
    return [replace(p, system=systems[p.name]) if p.quantised else p for p in plan]


def placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what stands for a weight that is not held: NaN, of a shape and dtype and without memory."""
    # One NaN seen everywhere: unlike a meta tensor it has a device, and tied weights stay known as such.
    return torch.full((1,), math.nan, dtype=dtype, device=device).expand(*shape)


def _scales_of_codes(coded: Coded, system: LowPrecision, layout: Layout) -> Tensor:
    """Return what ``scales_of`` gives for the values code·s of codes, without making these where it can.

    Steps of least squared error need the values. Those of absmax do not: in a group max|code·s| is
    max|code|·s, for rounding to float32 keeps order.

    Args:
        coded: codes whose scales s lie along the system's axis.
    """
    if isinstance(system, Int) and system.clip != "absmax":
        return scales_of(_values_of(coded).view(layout.shape), system, layout)
    # At INT-2, whose largest level is 1, they are max|code|.
    largest = absmax_scales(coded.codes.view(layout.shape), Int(2, system.scale), layout)
    return scales_of_largest(largest * coded.scales.values.view(largest.shape), system)


def _values_of(coded: Coded) -> Tensor:
    return kernels.of(coded.device).decode(coded.codes, coded.scales, coded.grid, torch.float32)


def _read_base(
    tensors: dict[str, Tensor],
    planned: PlannedTensor,
    base: str,
    device: torch.device,
) -> Stored:
    name, layout, system = planned.name, planned.layout, planned.rounded_to
    if base in _FLOATS:
        weight = shaped(tensors, f"base/{name}", planned.shape)
        if weight.dtype != _FLOATS[base]:
            raise InputError(f"the file is damaged: 'base/{name}' is {weight.dtype} in a {base} file")
        return weight.to(device)
    integers = Int(BASES[base], system.scale)
    # Let go of once it is unpacked, so that the weights are in memory once and not twice.
    codes = unpack(tensors.pop(f"base/{name}"), (planned.numel,), integers)
    scales = shaped(tensors, f"scales/{name}", layout.scale_shape(system.scale), torch.float32)
    return Coded(codes.to(device), Scales.of(scales.to(device), layout, integers.scale), grid_of(integers))


def _written_base(ensemble: LowPrecisionEnsemble, planned: PlannedTensor, base: str) -> dict[str, Tensor]:
    """Return the tensors of a base of one weight."""
    name, layout, stored = planned.name, planned.layout, ensemble.stored(planned.name)
    integers = Int(BASES["int8"], planned.rounded_to.scale)
    if base in _FLOATS:
        if isinstance(stored, Coded):
            stored = _values_of(stored).view(planned.shape)
        return {f"base/{name}": owned(stored.to(_FLOATS[base]))}
    if isinstance(stored, Coded):  # the same integers, as they were read
        codes, scales = stored.codes, stored.scales.values.view(layout.scale_shape(integers.scale))
    else:
        codes, scales = encode(
            stored,
            integers,
            "nearest",
            name=name,
            output_axis=layout.output_axis,
            channel_groups=layout.channel_groups,
        )
    return {f"base/{name}": pack(codes, integers), f"scales/{name}": owned(scales)}
