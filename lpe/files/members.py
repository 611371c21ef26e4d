"""Members as tensors of a file: each member's own, packed where they are codes, and once what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import shown
from lpe.ensembles.base import Ensemble, check_size, text_table
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.errors import InputError
from lpe.files.container import owned, shaped
from lpe.files.systems import dtype_of, layout_header, layout_of, systems_header, systems_of_tensors
from lpe.modules import named_tensors, tensor_bits, with_tensors
from lpe.number_systems.grids import LowPrecision, grid_of
from lpe.number_systems.naming import Systems
from lpe.number_systems.packing import pack, packed_bytes, unpack
from lpe.number_systems.rounding import decoded
from lpe.surroundings import apart


class StoredEnsemble(Ensemble):
    """An ensemble whose members lie in a file's tensors; made by :func:`load`.

    Low precision members stay packed, on the CPU, until they are asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        header: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        devices: Mapping[str, torch.device],
    ) -> None:
        super().__init__(header["size"])
        self.model = model
        self.system: Systems | None = None
        self._systems: dict[str, LowPrecision] = {}
        if header["system"]:
            self.system, self._systems = systems_of_tensors(header)
        self._header = header
        self._shapes = header["shapes"]
        self._layouts = header["layouts"]
        self._own = header["own"]
        for what in ("own", "layouts"):
            if unknown := [name for name in header[what] if name not in self._shapes]:
                raise InputError(
                    f"the file is damaged: its {what!r} name {shown(unknown[0])}, of which it has no shape"
                )
        self._devices = devices
        # Members that are all alike are held once.
        self._distinct = min(check_size(header.get("distinct", self.size)), self.size)
        held = {}
        for name, shape in self._shapes.items():
            if name not in self._own:
                held[f"shared/{name}"] = shaped(tensors, f"shared/{name}", shape).to(devices[name])
                continue
            if packed := name in self._layouts:
                if name not in self._systems:
                    raise InputError(f"the file is damaged: {name!r} is packed under no number system")
                layout, system = layout_of(shape, self._layouts[name]), self._systems[name]
                scales = shaped(tensors, f"scales/{name}", layout.scale_shape(system.scale), torch.float32)
                held[f"scales/{name}"] = scales.to(devices[name])
                shape = [packed_bytes(layout.numel, system)]
            for index in range(self._distinct):
                tensor = shaped(tensors, f"member {index}/{name}", shape, torch.uint8 if packed else None)
                held[f"member {index}/{name}"] = tensor if packed else tensor.to(devices[name])
        self._tensors = held

    @property
    def rounding(self) -> str | None:
        """The way in which low precision members were rounded; None for others."""
        rounding: str | None = self._header.get("rounding")
        return rounding

    @property
    def selected(self) -> tuple[int, ...] | None:
        """The members' indices in the ensemble that they were selected from; None: it was saved whole."""
        indices = self._header.get("selected")
        return None if indices is None else tuple(indices[: self.size])

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``, unpacked."""
        replaced = {name: self._tensors[f"shared/{name}"] for name in self._shapes if name not in self._own}
        for name in self._own:
            stored = self._tensors[f"member {index % self._distinct}/{name}"]
            if name in self._layouts:
                system, told = self._systems[name], self._layouts[name]
                layout = layout_of(self._shapes[name], told)
                codes = unpack(stored, layout.shape, system).to(self._devices[name])
                stored = decoded(codes, self._tensors[f"scales/{name}"], system, layout, dtype_of(told))
            replaced[name] = stored
        return with_tensors(self.model, replaced)

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits that the file holds for n members, the padding to whole bytes included."""
        n = self._check_storage(n, storage)
        one = sum(tensor_bits(self._tensors[f"member 0/{name}"]) for name in self._own)
        shared = sum(
            tensor_bits(tensor) for key, tensor in self._tensors.items() if not key.startswith("member ")
        )
        return shared + one * min(n, self._distinct)

    def written(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the members' tensors, and what a header says of them."""
        what = ("system", "systems", "version", "shapes", "layouts", "own")
        how = ("rounding", "seed", "first_member", "distinct", "base_hash")
        about = {key: self._header[key] for key in (*what, *how) if key in self._header}
        if "distinct" in about:
            about["distinct"] = self._distinct
        if self.selected is not None:
            about["selected"] = list(self.selected)
        return {key: owned(tensor) for key, tensor in self._tensors.items()}, about

    def describe(self) -> str:
        """Tabulate a row per tensor: name, shape, each member's own or shared, bits a value."""
        rows = []
        for name, shape in self._shapes.items():
            own = name in self._own
            stored = self._tensors[f"member 0/{name}" if own else f"shared/{name}"]
            system = self._systems.get(name)
            bits = grid_of(system).code_bits if system else stored.element_size() * 8
            rows.append((name, "×".join(map(str, shape)) or "scalar", "own" if own else "shared", str(bits)))
        return text_table(f"{self.size} stored members", ("tensor", "shape", "in a member", "bits"), rows)


def low_precision(
    ensemble: LowPrecisionEnsemble, members: Sequence[int] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and header of packed members; those to the nearest, which are all alike, once.

    Args:
        members: indices of those that are packed; None: all.
    """
    tensors, about = shared_tensors(ensemble)
    systems = {planned.name: planned.rounded_to for planned in ensemble.plan if planned.rounds}
    packed = range(len(ensemble)) if members is None else members
    if ensemble.rounding == "nearest":
        packed = packed[:1]
    for name in about["layouts"]:
        for place, index in enumerate(packed):
            codes, scales = ensemble.codes(name, index)
            tensors[f"member {place}/{name}"] = pack(codes, systems[name])
        tensors[f"scales/{name}"] = owned(scales)
    about["distinct"] = len(packed)
    if ensemble.batch_norm is not None:
        of_each = [ensemble.batch_norm.of_member(index, ensemble.member) for index in packed]
        take_statistics(tensors, about, of_each)
    return tensors, about


def take_statistics(
    tensors: dict[str, Tensor], about: dict[str, Any], of_each: Sequence[Mapping[str, Tensor]]
) -> None:
    """Make batch-norm statistics, by name, the members' own in place of those that the model has."""
    for name in of_each[0]:
        del tensors[f"shared/{name}"]
        tensors |= {f"member {i}/{name}": owned(each[name]) for i, each in enumerate(of_each)}
    about["own"] = [*about["own"], *of_each[0]]


def shared_tensors(ensemble: LowPrecisionEnsemble) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what the members have in common, tensors and header, whichever way their own are written."""
    saved = [planned for planned in ensemble.plan if planned.saved]
    rounded = [planned for planned in saved if planned.rounds]
    weights = {entry.name: entry.tensor.detach() for entry in named_tensors(ensemble.model)}
    return {f"shared/{p.name}": owned(weights[p.name]) for p in saved if not p.rounds}, {
        **systems_header(ensemble),
        "shapes": {planned.name: list(planned.shape) for planned in saved},
        "layouts": {planned.name: layout_header(planned) for planned in rounded},
        "own": [planned.name for planned in rounded],
        "rounding": ensemble.rule,
        "seed": ensemble.seed,
        "first_member": ensemble.first_member,
    }


def full_precision(networks: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and header of members at their own precision, from networks that are all there."""
    tensors: dict[str, Tensor] = {}
    own: set[str] = set()
    members = [
        {entry.name: entry.tensor.detach() for entry in named_tensors(network) if entry.saved}
        for network in networks
    ]
    first = members[0]
    shapes = {name: list(tensor.shape) for name, tensor in first.items()}
    # Each member's own is what does not lie in the same memory in all of them.
    for member in members[1:]:
        own |= {name for name, tensor in member.items() if tensor.data_ptr() != first[name].data_ptr()}
    for index, member in enumerate(members):
        tensors |= {f"member {index}/{name}": owned(member[name]) for name in own}
    tensors |= {f"shared/{name}": owned(tensor) for name, tensor in first.items() if name not in own}
    ordered = [name for name in shapes if name in own]
    return tensors, {"system": None, "shapes": shapes, "layouts": {}, "own": ordered}
