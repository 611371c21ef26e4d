"""Ensembles as files: one safetensors file, read back on the architecture it was made of.

Two kinds:

    members   every member's own tensors (low precision ones packed, b bits a weight), and once what they
              share; this is what ``memory_bits(storage="members")`` counts
    seeded    low precision ensembles, and mixtures of them, only: the weights once (in each part of a
              mixture), rounded to the nearest INT-8, with the seed; the members are drawn from these 8 bits
              when asked for. ``memory_bits(storage="generator")``

Members drawn from the 8-bit copy are not those drawn from the original weights: the copy is within half an
INT-8 step of them.

Two methods' members are stored as what makes them, and read back as the method's own ensemble:

    MC-dropout      the model once; the masks follow from rate and seed, which stand in the header with the
                    places that they lie at. Members' re-estimated batch-norm statistics are stored each
    BatchEnsemble   the shared tensors once, and every member's r, s and biases

A mask is a hook and no tensor, so no other ensemble of masked networks can be written: it is refused. Other
hooks are taken to be the architecture's, which the model given to :func:`load` has too.

An ensemble composed of others (``lpe.Mixture``) is stored part by part, each as it would be alone: the codes
of low precision parts are packed, with scales and leftovers a part. It is read back as the parts' union.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lpe.ensembles.base import Ensemble, text_table
from lpe.ensembles.batch import BatchEnsemble
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble, has_masks
from lpe.ensembles.mixture import CompositeEnsemble, Mixture
from lpe.ensembles.selection import PlannedTensor
from lpe.errors import InputError
from lpe.modules import named_tensors, tensor_bits, with_tensors
from lpe.number_systems.grids import (
    Codebook,
    FullPrecision,
    Int,
    LowPrecision,
    NumberSystem,
    PerBlock,
    PerChannel,
    PerTensor,
    number_system,
)
from lpe.number_systems.packing import pack, unpack
from lpe.number_systems.rounding import decode, encode
from lpe.number_systems.streams import canonical_name
from lpe.records import replacing

FORMAT = "lpe ensemble"
VERSION = 1
KINDS = ("members", "seeded")
_AXES = {axis.__name__: axis for axis in (PerTensor, PerChannel, PerBlock)}
_BASE = 8  # bits of the seeded kind's one copy


def save(ensemble: Ensemble, path: str | os.PathLike[str], kind: str = "members") -> int:
    """Write an ensemble to a file, whole or not at all.

    Args:
        ensemble: any ensemble; the seeded kind takes a ``LowPrecisionEnsemble`` of a system that rounds, or
            a mixture of such.
        path: the file. kind: "members" or "seeded".

    Returns:
        The file's size in bytes.

    Raises:
        InputError: an unknown kind, or one that the ensemble cannot have; a mixture of two architectures;
            members with dropout masks in an ensemble that is not MC-dropout itself.
    """
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if isinstance(ensemble, CompositeEnsemble):
        tensors, about = _composite(ensemble, kind)
    else:
        tensors, about = _single(ensemble, kind)
    header = {"format": FORMAT, "version": VERSION, "kind": kind, "size": len(ensemble), **about}
    path = Path(path)
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"lpe": json.dumps(header)})
    return path.stat().st_size


def load(path: str | os.PathLike[str], model: nn.Module) -> Ensemble:
    """Read an ensemble from a file.

    Args:
        path: a file of :func:`save`. model: a module of the architecture; its weights are not used, only
            what the file does not hold (buffers that are not saved).

    Raises:
        InputError: no such file, a damaged one, one of a newer version or of another model; a model that is a
            member of an ``MCDropoutEnsemble``, masks and all.
    """
    if has_masks(model):
        raise InputError(
            f"this {type(model).__name__} has dropout masks of an MCDropoutEnsemble's member, which would be "
            "every member's; give the network without them"
        )
    header, tensors = _read(Path(path))
    own = {entry.name: entry for entry in named_tensors(model)}
    for name, shape in header["shapes"].items():
        if name not in own:
            raise InputError(f"{path} is of another model: it has {name!r}, {type(model).__name__} has not")
        if list(own[name].tensor.shape) != shape:
            raise InputError(
                f"{path} is of another model: {name!r} is {shape} there, {list(own[name].tensor.shape)} here"
            )
    if absent := [name for name, entry in own.items() if entry.saved and name not in header["shapes"]]:
        raise InputError(f"{path} is of another model: it has no {absent[0]!r}")
    try:
        if "parts" not in header:
            return _made(model, header, tensors)
        return Mixture.of(
            [
                _made(model, {**header, **part}, _under(f"part {index}/", tensors))
                for index, part in enumerate(header["parts"])
            ]
        )
    except KeyError as missing:
        raise InputError(f"{path} is damaged: it lacks {missing}") from None


class StoredEnsemble(Ensemble):
    """An ensemble whose members lie in a file's tensors; made by :func:`load`."""

    def __init__(self, model: nn.Module, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__(header["size"])
        self.model = model
        self.system = _system(header["system"]) if header["system"] else None
        self._shapes = header["shapes"]
        self._layouts = header["layouts"]
        self._own = header["own"]
        self._tensors = {
            key: tensors[key]
            for key in (
                *(f"member {i}/{name}" for i in range(self.size) for name in self._own),
                *(f"scales/{name}" for name in self._layouts),
                *(f"shared/{name}" for name in self._shapes if name not in self._own),
            )
        }

    def member(self, index: int) -> nn.Module:
        """Member ``index``, unpacked."""
        replaced = {name: self._tensors[f"shared/{name}"] for name in self._shapes if name not in self._own}
        for name in self._own:
            stored = self._tensors[f"member {index}/{name}"]
            if name in self._layouts:
                assert self.system is not None
                codes = unpack(stored, tuple(self._shapes[name]), self.system)
                stored = _decoded(codes, self._tensors[f"scales/{name}"], self.system, self._layouts[name])
            replaced[name] = stored
        return with_tensors(self.model, replaced)

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """What the file holds for n members, the padding of packed tensors to whole bytes included."""
        n = self._check_storage(n, storage)
        one = sum(tensor_bits(self._tensors[f"member 0/{name}"]) for name in self._own)
        shared = sum(
            tensor_bits(tensor) for key, tensor in self._tensors.items() if not key.startswith("member ")
        )
        return shared + one * n

    def describe(self) -> str:
        """A row per tensor: name, shape, each member's own or shared, bits a value."""
        rows = []
        for name, shape in self._shapes.items():
            own = name in self._own
            stored = self._tensors[f"member 0/{name}" if own else f"shared/{name}"]
            packed = self.system is not None and name in self._layouts
            bits = self.system.bits if packed and self.system else stored.element_size() * 8
            rows.append((name, "×".join(map(str, shape)) or "scalar", "own" if own else "shared", str(bits)))
        return text_table(f"{self.size} stored members", ("tensor", "shape", "in a member", "bits"), rows)


class StoredDropoutEnsemble(MCDropoutEnsemble):
    """MC-dropout whose members' batch-norm statistics lie in a file's tensors; made by :func:`load`."""

    def __init__(
        self, model: nn.Module, rate: float, size: int, seed: int, statistics: Sequence[Mapping[str, Tensor]]
    ) -> None:
        super().__init__(model, rate, size, seed)
        self._statistics = statistics

    def member(self, index: int) -> nn.Module:
        """Member ``index``: the model with its masks and its statistics."""
        return with_tensors(super().member(index), self._statistics[index])

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """The model once and n members' statistics; there are no batches to draw them from anew."""
        n = self._check_storage(n, storage)
        return super().memory_bits() + (n - 1) * sum(map(tensor_bits, self._statistics[0].values()))


def _made(model: nn.Module, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
    """The ensemble, or a mixture's part, of a header and its tensors."""
    if header["kind"] == "seeded":
        return _seeded(model, header, tensors)
    if "method" not in header:
        return StoredEnsemble(model, header, tensors)
    return {"mc dropout": _dropout_of, "batch": _batch_of}[header["method"]](model, header, tensors)


def _composite(ensemble: CompositeEnsemble, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    parts: list[dict[str, Any]] = []
    shapes: dict[str, list[int]] = {}
    for index, part in enumerate(_leaves(ensemble)):
        held, about = _single(part, kind)
        own_shapes = about.pop("shapes")
        if own_shapes != (shapes := shapes or own_shapes):
            name = next(n for n in {**shapes, **own_shapes} if shapes.get(n) != own_shapes.get(n))
            raise InputError(
                f"a file holds members of one architecture; part {index} differs from part 0 "
                f"at tensor {name!r}"
            )
        tensors |= {f"part {index}/{key}": tensor for key, tensor in held.items()}
        parts.append({"size": len(part), **about})
    return tensors, {"shapes": shapes, "parts": parts}


def _leaves(ensemble: Ensemble) -> Iterator[Ensemble]:
    """The parts, and the parts' parts, down to ensembles that are not composed of others."""
    if not isinstance(ensemble, CompositeEnsemble):
        yield ensemble
        return
    for part in ensemble.parts():
        yield from _leaves(part)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _single(ensemble: Ensemble, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(ensemble, LowPrecisionEnsemble) and not isinstance(ensemble.system, FullPrecision):
        _check_unmasked(ensemble, [ensemble.model])
        return _low_precision(ensemble, kind)
    if kind == "seeded":
        raise InputError(f"a seeded file holds a low precision ensemble that rounds, not {ensemble!r}")
    if isinstance(ensemble, MCDropoutEnsemble):
        _check_unmasked(ensemble, [ensemble.model])
        return _dropout(ensemble)
    if isinstance(ensemble, BatchEnsemble):
        _check_unmasked(ensemble, [ensemble.model])
        return _batch(ensemble)
    # All at once: which tensors they share is told by where these lie in memory.
    members = list(ensemble)
    _check_unmasked(ensemble, members)
    return _full_precision(members)


def _check_unmasked(ensemble: Ensemble, models: Sequence[nn.Module]) -> None:
    if any(map(has_masks, models)):
        raise InputError(
            f"this {type(ensemble).__name__} is made of networks with dropout masks, which are no tensors: "
            "a file would lose them; save the MCDropoutEnsemble itself and make this one of it when it is "
            "loaded"
        )


def _low_precision(ensemble: LowPrecisionEnsemble, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    assert not isinstance(ensemble.system, FullPrecision)
    saved = [planned for planned in ensemble.plan if planned.saved]
    quantised = [planned for planned in saved if planned.quantised]
    weights = {entry.name: entry.tensor.detach() for entry in named_tensors(ensemble.model)}
    tensors = {f"shared/{p.name}": _owned(weights[p.name]) for p in saved if not p.quantised}
    about = {
        "system": _named_system(ensemble.system),
        "shapes": {planned.name: list(planned.shape) for planned in saved},
        "layouts": {planned.name: _layout(planned) for planned in quantised},
        "own": [planned.name for planned in quantised],
        "rounding": ensemble.rounding,
        "seed": ensemble.seed,
        "first_member": ensemble.first_member,
    }
    if kind == "seeded":
        base = Int(_BASE, ensemble.system.scale)
        for planned in quantised:
            codes, scales = encode(
                weights[planned.name],
                base,
                "nearest",
                name=planned.name,
                output_axis=planned.layout.output_axis,
                channel_groups=planned.layout.channel_groups,
            )
            tensors[f"base/{planned.name}"] = pack(codes, base)
            tensors[f"scales/{planned.name}"] = scales.cpu()
        return tensors, about
    for planned in quantised:
        for index in range(len(ensemble)):
            codes, scales = ensemble.codes(planned.name, index)
            tensors[f"member {index}/{planned.name}"] = pack(codes, ensemble.system)
            tensors[f"scales/{planned.name}"] = _owned(scales)
    return tensors, about


def _full_precision(networks: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
        tensors |= {f"member {index}/{name}": _owned(member[name]) for name in own}
    tensors |= {f"shared/{name}": _owned(tensor) for name, tensor in first.items() if name not in own}
    ordered = [name for name in shapes if name in own]
    return tensors, {"system": None, "shapes": shapes, "layouts": {}, "own": ordered}


# The headers of these two lack "system": a reader that knows no methods refuses the file, instead of taking
# it for plain members.


def _dropout(ensemble: MCDropoutEnsemble) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, about = _full_precision(list(ensemble))
    return tensors, {
        "method": "mc dropout",
        "shapes": about["shapes"],
        "own": about["own"],
        "rate": ensemble.rate,
        "seed": ensemble.seed,
        "places": _masked_places(ensemble),
    }


def _dropout_of(model: nn.Module, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
    own = header["own"]
    statistics = [
        {name: tensors[f"member {index}/{name}"] for name in own} for index in range(header["size"])
    ]
    shared = {name: tensors[f"shared/{name}"] for name in header["shapes"] if name not in own}
    net = with_tensors(model, {**shared, **statistics[0]})
    about = (header["rate"], header["size"], header["seed"])
    ensemble = StoredDropoutEnsemble(net, *about, statistics) if own else MCDropoutEnsemble(net, *about)
    # No tensor tells where a model has dropout.
    _check_same("dropout masks", header["places"], _masked_places(ensemble))
    return ensemble


def _masked_places(ensemble: MCDropoutEnsemble) -> list[list[Any]]:
    return [[canonical_name(place.name), place.at, place.spatial] for place in ensemble.places if place.at]


def _batch(ensemble: BatchEnsemble) -> tuple[dict[str, Tensor], dict[str, Any]]:
    network = [entry for entry in named_tensors(ensemble.module.network) if entry.saved]
    return {f"network/{entry.name}": _owned(entry.tensor) for entry in network}, {
        "method": "batch",
        "shapes": {
            entry.name: list(entry.tensor.shape) for entry in named_tensors(ensemble.model) if entry.saved
        },
        "layers": ensemble.converted,
        "seed": ensemble.seed,
        "std": ensemble.std,
    }


def _batch_of(model: nn.Module, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
    vectors: dict[str, Tensor] = {}
    replaced: dict[str, Tensor] = {}
    for layer in header["layers"]:
        prefix = f"{layer}." if layer else ""
        biased = f"{prefix}bias" in header["shapes"]
        for vector in ("batch_r", "batch_s", *(("batch_bias",) if biased else ())):
            vectors[f"{prefix}{vector}"] = tensors[f"network/{prefix}{vector}"]
        if biased:
            replaced[f"{prefix}bias"] = vectors[f"{prefix}batch_bias"][0]
    for name in header["shapes"]:
        if name not in replaced:
            replaced[name] = tensors[f"network/{name}"]
    net = with_tensors(model, replaced)
    for own, given in zip(net.parameters(), model.parameters(), strict=True):
        own.requires_grad_(given.requires_grad)
    ensemble = BatchEnsemble(net, header["size"], header["seed"], header["std"])
    _check_same("converted layers", header["layers"], ensemble.converted)
    for entry in named_tensors(ensemble.module.network):
        if entry.name in vectors:
            stored = vectors[entry.name]
            # A grouped layer may have the weight's shape of another with more inputs.
            _check_same("fast weights", [[entry.name, *stored.shape]], [[entry.name, *entry.tensor.shape]])
            entry.tensor.data = stored
    return ensemble


def _check_same(what: str, stored: Sequence[Any], here: Sequence[Any]) -> None:
    """InputError where a model is not the file's in what no tensor's name and shape tell."""
    if stored != here:
        there = next((item for item in stored if item not in here), None)
        other = next((item for item in here if item not in stored), None)
        raise InputError(
            f"the file is of another model: its {what} differ ({there or 'none'} there, "
            f"{other or 'none'} here)"
        )


def _seeded(model: nn.Module, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
    system = _system(header["system"])
    base = Int(_BASE, system.scale)
    replaced = {}
    for name, shape in header["shapes"].items():
        if name in header["layouts"]:
            codes = unpack(tensors[f"base/{name}"], tuple(shape), base)
            replaced[name] = _decoded(codes, tensors[f"scales/{name}"], base, header["layouts"][name])
        else:
            replaced[name] = tensors[f"shared/{name}"]
    return LowPrecisionEnsemble(
        with_tensors(model, replaced),
        system,
        header["size"],
        header["seed"],
        header["rounding"],
        include=[glob.escape(name) for name in header["own"]],
        first_member=header["first_member"],
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("lpe", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is no whole safetensors file ({str(error).splitlines()[0]})") from None
    if header.get("format") != FORMAT:
        raise InputError(f"{path} holds no ensemble; lpe.save writes one")
    if header["version"] > VERSION:
        raise InputError(
            f"{path} is of version {header['version']}, this lpe reads up to {VERSION}; update lpe"
        )
    return header, tensors


def _owned(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _layout(planned: PlannedTensor) -> dict[str, Any]:
    return {
        "output_axis": planned.layout.output_axis,
        "channel_groups": planned.layout.channel_groups,
        "dtype": str(planned.dtype).removeprefix("torch."),
    }


def _decoded(codes: Tensor, scales: Tensor, system: LowPrecision, layout: Mapping[str, Any]) -> Tensor:
    dtype = getattr(torch, layout["dtype"])
    return decode(codes, scales, system, dtype, layout["output_axis"], layout["channel_groups"])


# A header names an integer system by its bits alone, as before there were others; of others it holds the
# name, which a reader that knows integers only refuses for the lack of bits, and a codebook's levels.


def _named_system(system: LowPrecision) -> dict[str, Any]:
    axis = system.scale
    named: dict[str, Any] = {"scale": type(axis).__name__, **vars(axis)}
    if isinstance(system, Int):
        return {"bits": system.bits, **named}
    levels = {"levels": list(system.levels)} if isinstance(system, Codebook) else {}
    return {"name": system.name, **levels, **named}


def _system(named: Mapping[str, Any]) -> LowPrecision:
    """The number system of a header; InputError where it names none, or has other levels than the name's."""
    try:
        told = {key: value for key, value in named.items() if key != "levels"}
        rest = {key: value for key, value in told.items() if key not in ("bits", "name", "scale")}
        axis = _AXES[told["scale"]](**rest)
        if "name" not in told:
            return Int(told["bits"], axis)
        if "levels" in named:
            system: NumberSystem = Codebook(named["levels"], axis)
        else:
            system = number_system(told["name"].removesuffix(f" {axis}"), axis)
    except (TypeError, AttributeError, InputError) as error:
        raise InputError(f"the file is damaged: it has no number system ({error})") from None
    if isinstance(system, FullPrecision) or system.name != told["name"]:
        raise InputError(f"the file is damaged: its number system {told} is in truth {system.name!r}")
    return system
