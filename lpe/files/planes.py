"""Members as bit planes: the lower neighbours once, packed at b bits, and one bit a weight and member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpe.ensembles.base import check_size
from lpe.ensembles.batch_norm import MemberStatistics
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.on_the_fly import AllMembers
from lpe.ensembles.selection import PlannedTensor
from lpe.errors import InputError
from lpe.files.container import owned, shaped
from lpe.files.members import shared_tensors, take_statistics
from lpe.files.seeded import placeholder, planned_tensors
from lpe.files.systems import dtype_of, layout_of, systems_of_tensors
from lpe.modules import with_tensors
from lpe.number_systems.kernels.arguments import Stored
from lpe.number_systems.packing import pack, packed_bytes, unpack
from lpe.number_systems.planes import RANDOM, codes_of, plane_bytes
from lpe.number_systems.rounding import decoded
from lpe.surroundings import apart

VERSION = 6
"""Version of files with planes."""


def planes_of(
    ensemble: LowPrecisionEnsemble, members: Sequence[int] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and header of an ensemble's members as planes.

    Args:
        members: indices of those that are stored; None: all.

    Raises:
        InputError: members that have no planes.
    """
    ensemble.check_planes()
    stored = range(len(ensemble)) if members is None else members
    tensors, about = shared_tensors(ensemble)
    for planned in ensemble.plan:
        if planned.rounds:
            name = planned.name
            lower, planes = ensemble.planes(name, stored)
            tensors[f"lower/{name}"] = pack(lower, planned.rounded_to)
            tensors[f"planes/{name}"] = owned(planes)
            tensors[f"scales/{name}"] = owned(ensemble.scales(name))
    about["distinct"] = len(stored)
    about["version"] = VERSION
    if ensemble.batch_norm is not None:
        about["refresh"] = ensemble.batch_norm.form
        of_each = [ensemble.batch_norm.of_member(index, ensemble.member) for index in stored]
        take_statistics(tensors, about, of_each)
    return tensors, about


class PlanesEnsemble(LowPrecisionEnsemble):
    """Low precision members put together from a file's planes; made by :func:`load`.

    ``model`` is the architecture with the file's leftovers; its quantised tensors have a shape and a dtype
    but no memory, and read as NaN. Lower neighbours stay packed, on the CPU, and planes lie there too.

    Args:
        model: the architecture. header: of the file. tensors: of it. devices: of each tensor, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        header: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        devices: Mapping[str, torch.device],
    ) -> None:
        system, of_tensor = systems_of_tensors(header)
        layouts, shapes, size = header["layouts"], header["shapes"], header["size"]
        if header["rounding"] not in RANDOM:
            raise InputError(f"the file is damaged: its planes are of {header['rounding']!r} rounding")
        held = check_size(header["distinct"])
        if size > held:
            raise InputError(f"the file is damaged: it has planes of {held} members, not of {size}")
        # What is own but not packed are batch-norm statistics.
        statistics = [name for name in header["own"] if name not in layouts]
        kept: dict[int | str, dict[str, Tensor]] = {
            index: {
                name: shaped(tensors, f"member {index}/{name}", shapes[name]).to(devices[name])
                for name in statistics
            }
            for index in range(size if statistics else 0)
        }
        self._lower: dict[str, Tensor] = {}
        self._planes: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name, told in layouts.items():
            layout, rounded_to = layout_of(shapes[name], told), of_tensor[name]
            lower = shaped(tensors, f"lower/{name}", [packed_bytes(layout.numel, rounded_to)], torch.uint8)
            planes = shaped(tensors, f"planes/{name}", [held, plane_bytes(layout.numel)], torch.uint8)
            self._lower[name] = lower
            self._planes[name] = planes if size == held else planes[:size].clone()
            scale_shape = layout.scale_shape(rounded_to.scale)
            step = shaped(tensors, f"scales/{name}", scale_shape, torch.float32)
            scales[name] = step.to(devices[name])
        replaced = {
            name: placeholder(shape, dtype_of(layouts[name]), devices[name])
            if name in layouts
            else kept[0][name]
            if name in statistics
            else shaped(tensors, f"shared/{name}", shape).to(devices[name])
            for name, shape in shapes.items()
        }
        net = with_tensors(model, replaced)
        self._begin(net, system, size, header["seed"], header["rounding"], header["first_member"])
        if statistics:
            self.batch_norm = MemberStatistics(net, (), header["refresh"])
            self.batch_norm.kept.members |= kept
        self.plan = planned_tensors(net, layouts, of_tensor)
        self.base_hash: str | None = header.get("base_hash")
        """Hash of the weights that were rounded; None where the file does not tell."""
        self._stored, self._scales = {}, scales
        chosen = header.get("selected")
        self._selected: tuple[int, ...] | None = None if chosen is None else tuple(chosen[:size])

    @property
    def selected(self) -> tuple[int, ...] | None:
        """The members' indices in the ensemble that they were selected from; None: it was saved whole."""
        return self._selected

    def stored(self, name: str) -> Stored:
        """Raise InputError: there are no weights to draw members from; see :meth:`planes`."""
        self.scales(name)
        raise InputError(
            f"members of planes are drawn from no weights; ensemble.planes({name!r}) gives the lower "
            "neighbours and the members' bits"
        )

    def as_module(self, storage: str = "planes") -> AllMembers:
        """Join all members to one module that reads the planes; see ``LowPrecisionEnsemble.as_module``.

        Raises:
            InputError: another storage.
        """
        if storage == "generator":
            raise InputError("members of planes are drawn from no weights; give storage='planes'")
        return super().as_module(storage)

    def planes(self, name: str, members: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return a rounded tensor's lower neighbours and planes; see ``LowPrecisionEnsemble.planes``."""
        device, planned = self.scales(name).device, self._planned(name)
        planes = self._planes[name]
        if members is not None:
            planes = planes[self._check_members(members)]
        lower = unpack(self._lower[name], planned.shape, planned.rounded_to)
        return lower.to(device), planes.to(device)

    def codes(self, name: str, index: int) -> tuple[Tensor, Tensor]:
        """Return the codes and scales of one rounded tensor of one member; see ``lpe.encode``."""
        scales, planned = self.scales(name), self._planned(name)
        lower = unpack(self._lower[name], planned.shape, planned.rounded_to)
        codes = codes_of(lower, self._planes[name][self._check_index(index)], planned.rounded_to)
        return codes.to(scales.device), scales

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``, put together."""
        index = self._check_index(index)
        self.check_unchanged()
        rounded = {planned.name: self._values(planned, index) for planned in self._rounded}
        return self._with(index, rounded)

    def _values(self, planned: PlannedTensor, index: int) -> Tensor:
        codes, scales = self.codes(planned.name, index)
        return decoded(codes, scales, planned.rounded_to, planned.layout, planned.dtype)

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of n members, see :meth:`LowPrecisionEnsemble.memory_bits`.

        "generator": the planes, for there is nothing else that the members could be drawn from.
        """
        n = self._check_storage(n, storage)
        return super().memory_bits(n, "planes" if storage == "generator" else storage)

    def describe(self) -> str:
        """Tabulate the tensors, as of the ensemble that was saved."""
        title, *rows = super().describe().splitlines()
        return "\n".join([f"{title}, stored as planes", *rows])
