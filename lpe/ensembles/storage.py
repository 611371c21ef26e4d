"""Ensembles as files: one safetensors file, read back on the architecture it was made of.

Two kinds:

    members   every member's own tensors (low precision ones packed, b bits a weight), and once what they
              share; this is what ``memory_bits(storage="members")`` counts
    seeded    low precision ensembles, and mixtures of them, only: the weights once (in each part of a
              mixture) with the seed, as a base that is finer than the members; these are drawn from it when
              asked for, without limit. ``memory_bits(storage="generator")``

The base of the seeded kind is INT-8, to the nearest, with scales of the members' axis; or bfloat16 (which a
system of 8 bits needs), or float32. From float32 the members are those of the ensemble that was saved, to the
bit. From the others they are not: the base is within half a step of the weights, and the members' scales are
those of its values (of INT-8 level·s in float32, which no dtype of the model's cuts short).

The file says of which weights a low precision, Gaussian or MC-dropout ensemble was made, by their hash.

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
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpe.ensembles.base import Ensemble, check_size, text_table
from lpe.ensembles.batch import BatchEnsemble
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.low_precision import BASES, LowPrecisionEnsemble, base_holds
from lpe.ensembles.mc_dropout import MCDropoutEnsemble, has_masks
from lpe.ensembles.mixture import CompositeEnsemble, Mixture
from lpe.ensembles.packed_files import read, weights_hash, write
from lpe.ensembles.selection import PlannedTensor, select_tensors
from lpe.errors import InputError
from lpe.modules import NamedTensor, named_tensors, tensor_bits, with_tensors
from lpe.number_systems import kernels
from lpe.number_systems.grids import (
    Codebook,
    FullPrecision,
    Int,
    LowPrecision,
    NumberSystem,
    PerBlock,
    PerChannel,
    PerTensor,
    grid_of,
    number_system,
)
from lpe.number_systems.kernels.arguments import Coded, Scales, Stored
from lpe.number_systems.layouts import Layout
from lpe.number_systems.packing import pack, packed_bytes, unpack
from lpe.number_systems.rounding import absmax_scales, decode, encode
from lpe.number_systems.streams import canonical_name

KINDS = ("members", "seeded")
_AXES = {axis.__name__: axis for axis in (PerTensor, PerChannel, PerBlock)}
_FLOATS = {"bf16": torch.bfloat16, "fp32": torch.float32}  # of BASES; the rest are integers


def save(
    ensemble: Ensemble, path: str | os.PathLike[str], kind: str = "members", base: str | None = None
) -> int:
    """Write an ensemble to a file, whole or not at all.

    Args:
        ensemble: any ensemble; the seeded kind takes a ``LowPrecisionEnsemble`` of a system that rounds, or
            a mixture of such.
        path: the file, written over where there is one. kind: "members" or "seeded".
        base: what a seeded file holds of each weight: "int8" (the default), "bf16" or "fp32".

    Returns:
        The file's size in bytes.

    Raises:
        InputError: an unknown kind or base, or one that the ensemble cannot have: INT-8 is no finer than
            members of 8 bits; a mixture of two architectures; members with dropout masks in an ensemble that
            is not MC-dropout itself; a place that cannot be written to.
    """
    base = check_kind(kind, base)
    if isinstance(ensemble, CompositeEnsemble):
        tensors, about = _composite(ensemble, kind, base)
    else:
        tensors, about = _single(ensemble, kind, base)
    return write(Path(path), tensors, {"kind": kind, "size": len(ensemble), **about})


def check_kind(kind: str, base: str | None) -> str:
    """The base's name, "int8" unless told; InputError unless there are such a kind and base."""
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if base is not None and base not in BASES:
        raise InputError(f"base must be one of {', '.join(BASES)}, not {base!r}")
    if base is not None and kind != "seeded":
        raise InputError(f"base={base!r} is for kind='seeded'; a file of members holds no base")
    return base or "int8"


def check_base(base: str, system: NumberSystem, rounding: str) -> None:
    """InputError unless members of the system can be drawn from the base, and differ."""
    if isinstance(system, FullPrecision):
        raise InputError("a seeded file holds members that are rounded, and fp32 does not round")
    if not base_holds(base, system, rounding):
        finer = [each for each in BASES if base_holds(each, system, rounding)]
        raise InputError(
            f"base={base!r} cannot hold members of {system.name}: it is no finer than their {system.bits} "
            f"bits, so they would be alike; take base={' or '.join(map(repr, finer))}"
        )


def load(
    path: str | os.PathLike[str], model: nn.Module, size: int | None = None, base: str = "any"
) -> Ensemble:
    """Read an ensemble from a file.

    Args:
        path: a file of :func:`save`. model: a module of the architecture, on any device; the ensemble is
            placed as it is. Its weights are not used, only what the file does not hold (buffers that are not
            saved).
        size: members (None: those that were saved). A seeded file of one ensemble gives any number, any
            other at most those that it holds.
        base: "any", or "same": ``model`` must have the weights that the ensemble was made of.

    Raises:
        InputError: no such file, a truncated or altered one, one of a newer version or of another model; a
            size that the file does not have; under base="same" other weights, or a file that does not tell
            its own; a model that is a member of an ``MCDropoutEnsemble``, masks and all.
    """
    if base not in ("any", "same"):
        raise InputError(f"base must be 'any' (the architecture will do) or 'same', not {base!r}")
    if has_masks(model):
        raise InputError(
            f"this {type(model).__name__} has dropout masks of an MCDropoutEnsemble's member, which would be "
            "every member's; give the network without them"
        )
    path = Path(path)
    header, tensors = read(path)
    own = {entry.name: entry for entry in named_tensors(model)}
    try:
        _check_architecture(path, header["shapes"], own, type(model).__name__)
        parts = _parts(path, header, tensors, size)
        if base == "same":
            _check_weights(path, [about.get("base_hash") for about, _ in parts], model)
        made = [_made(model, about, held, own) for about, held in parts]
        return made[0] if "parts" not in header else Mixture.of(made)
    except InputError:
        raise
    except KeyError as missing:
        raise InputError(f"{path} is damaged: it lacks {missing}") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        # Only a header of another form leads here, and which line meets it first is chance.
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def _check_architecture(
    path: Path, shapes: Mapping[str, list[int]], own: Mapping[str, NamedTensor], model: str
) -> None:
    for name, shape in shapes.items():
        if name not in own:
            raise InputError(f"{path} is of another model: it has {name!r}, {model} has not")
        if list(own[name].tensor.shape) != shape:
            raise InputError(
                f"{path} is of another model: {name!r} is {shape} there, {list(own[name].tensor.shape)} here"
            )
    if absent := [name for name, entry in own.items() if entry.saved and name not in shapes]:
        raise InputError(f"{path} is of another model: it has no {absent[0]!r}")
    if empty := [name for name, entry in own.items() if not entry.saved and entry.tensor.is_meta]:
        raise InputError(
            f"{model} has no values for {empty[0]!r}, which no file holds; make it elsewhere than on meta"
        )


def _check_weights(path: Path, hashes: Sequence[str | None], model: nn.Module) -> None:
    here = weights_hash(model)
    for there in hashes:
        if there is None:
            raise InputError(f"{path} does not tell the weights that it was made of; give base='any'")
        if there != here:
            raise InputError(
                f"{path} was made of other weights than this {type(model).__name__}'s (hash {there[:12]} "
                f"there, {here[:12]} here); give the model that was packed, or base='any' to take its "
                "architecture alone"
            )


def _parts(
    path: Path, header: Mapping[str, Any], tensors: dict[str, Tensor], size: int | None
) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Header and tensors of each part, of the one where there are none, down to ``size`` members."""
    held = check_size(header["size"])
    if header["kind"] not in KINDS:
        raise InputError(f"{path} is damaged: its kind is {header['kind']!r}")
    if "parts" not in header:
        wanted = held if size is None else check_size(size)
        if wanted > held and header["kind"] != "seeded":
            raise InputError(f"{path} holds {held} members, not {wanted}; a seeded file gives any number")
        return [({**header, "size": wanted}, tensors)]
    left = held if size is None else check_size(size)
    if left > held:
        raise InputError(
            f"{path} holds a mixture of {held} members, not {left}; only a seeded file of one "
            "ensemble gives any number"
        )
    parts: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
    for index, part in enumerate(header["parts"]):
        if left:
            taken = min(left, check_size(part["size"]))
            left -= taken
            parts.append(({**header, **part, "size": taken}, _under(f"part {index}/", tensors)))
    if left:
        raise InputError(f"{path} is damaged: its parts have {held - left} members, not {held}")
    return parts


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
        self.system = _system(header["system"]) if header["system"] else None
        self._header = header
        self._shapes = header["shapes"]
        self._layouts = header["layouts"]
        self._own = header["own"]
        self._devices = devices
        # Members that are all alike are held once.
        self._distinct = min(check_size(header.get("distinct", self.size)), self.size)
        held = {}
        for name, shape in self._shapes.items():
            if name not in self._own:
                held[f"shared/{name}"] = _shaped(tensors, f"shared/{name}", shape).to(devices[name])
                continue
            if packed := name in self._layouts:
                if self.system is None:
                    raise InputError(f"the file is damaged: {name!r} is packed under no number system")
                layout = _layout_of(shape, self._layouts[name])
                scales = _shaped(tensors, f"scales/{name}", layout.scale_shape(self.system.scale))
                held[f"scales/{name}"] = scales.to(devices[name])
                shape = [packed_bytes(layout.numel, self.system)]
            for index in range(self._distinct):
                tensor = _shaped(tensors, f"member {index}/{name}", shape)
                held[f"member {index}/{name}"] = tensor if packed else tensor.to(devices[name])
        self._tensors = held

    @property
    def rounding(self) -> str | None:
        """How low precision members were rounded; None of others."""
        rounding: str | None = self._header.get("rounding")
        return rounding

    def member(self, index: int) -> nn.Module:
        """Member ``index``, unpacked."""
        replaced = {name: self._tensors[f"shared/{name}"] for name in self._shapes if name not in self._own}
        for name in self._own:
            stored = self._tensors[f"member {index % self._distinct}/{name}"]
            if name in self._layouts:
                assert self.system is not None
                codes = unpack(stored, tuple(self._shapes[name]), self.system).to(self._devices[name])
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
        return shared + one * min(n, self._distinct)

    def written(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors, and what a header says of them."""
        what = ("system", "shapes", "layouts", "own")
        how = ("rounding", "seed", "first_member", "distinct", "base_hash")
        about = {key: self._header[key] for key in (*what, *how) if key in self._header}
        if "distinct" in about:
            about["distinct"] = self._distinct
        return {key: _owned(tensor) for key, tensor in self._tensors.items()}, about

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
        system = _system(header["system"])
        layouts = header["layouts"]
        replaced = {
            name: _placeholder(shape, _dtype(layouts[name]), devices[name])
            if name in layouts
            else _shaped(tensors, f"shared/{name}", shape).to(devices[name])
            for name, shape in header["shapes"].items()
        }
        net = with_tensors(model, replaced)
        about = (header["size"], header["seed"], header["rounding"], header["first_member"])
        self._begin(net, system, *about)
        # The placeholders are not looked at: full precision asks for no finite weights.
        self.plan = select_tensors(net, FullPrecision(), [glob.escape(name) for name in header["own"]])
        here = {planned.name: _layout(planned) for planned in self._quantised}
        _check_same("layouts", [[*item] for item in layouts.items()], [[*item] for item in here.items()])
        # Files of version 1 have INT-8 of any system.
        self._base = check_kind("seeded", str(header.get("base", "int8")))
        self.base_hash: str | None = header.get("base_hash")
        """Of the weights that were packed; None where the file does not tell."""
        self._stored, self._scales = {}, {}
        for planned in self._quantised:
            name, layout = planned.name, planned.layout
            stored = _read_base(tensors, planned, system, self._base, devices[name])
            self._stored[name] = stored
            self._scales[name] = (
                absmax_scales(stored, system, layout)
                if isinstance(stored, Tensor)
                else _scales_of_codes(stored, system, layout)
            )

    @property
    def base(self) -> str:
        """Which of BASES the weights lie in."""
        return self._base

    def describe(self) -> str:
        """A row per tensor, as of the ensemble that was saved, and what the members are drawn from."""
        title, *rows = super().describe().splitlines()
        return "\n".join([f"{title}, drawn from {self._base} weights", *rows])


def _placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    # One NaN seen everywhere: unlike a meta tensor it has a device, and tied weights stay known as such.
    return torch.full((1,), math.nan, dtype=dtype, device=device).expand(*shape)


def _scales_of_codes(coded: Coded, system: LowPrecision, layout: Layout) -> Tensor:
    """``absmax_scales`` of the values of codes with scales of the system's axis, of which none are made.

    In a group max|code·s| is max|code|·s, for rounding to float32 keeps order.
    """
    # At INT-2, whose largest level is 1, they are max|code|.
    largest = absmax_scales(coded.codes.view(layout.shape), Int(2, system.scale), layout)
    # A tensor, not a number, as there: CUDA divides by a number as a product with its reciprocal.
    level = torch.tensor(grid_of(system).largest, dtype=torch.float32, device=largest.device)
    return largest * coded.scales.values.view(largest.shape) / level


def _read_base(
    tensors: dict[str, Tensor],
    planned: PlannedTensor,
    system: LowPrecision,
    base: str,
    device: torch.device,
) -> Stored:
    name, layout = planned.name, planned.layout
    if base in _FLOATS:
        weight = _shaped(tensors, f"base/{name}", planned.shape)
        if weight.dtype != _FLOATS[base]:
            raise InputError(f"the file is damaged: 'base/{name}' is {weight.dtype} in a {base} file")
        return weight.to(device)
    integers = Int(BASES[base], system.scale)
    # Let go of once it is unpacked, so that the weights are in memory once and not twice.
    codes = unpack(tensors.pop(f"base/{name}"), (planned.numel,), integers)
    scales = _shaped(tensors, f"scales/{name}", layout.scale_shape(system.scale))
    return Coded(codes.to(device), Scales.of(scales.to(device), layout, integers.scale), grid_of(integers))


def _written_base(
    ensemble: LowPrecisionEnsemble, planned: PlannedTensor, system: LowPrecision, base: str
) -> dict[str, Tensor]:
    """The tensors of a base of one weight."""
    name, layout, stored = planned.name, planned.layout, ensemble.stored(planned.name)
    integers = Int(BASES["int8"], system.scale)
    if base in _FLOATS:
        if isinstance(stored, Coded):
            values = kernels.of(stored.device).decode(stored.codes, stored.scales, stored.grid, torch.float32)
            stored = values.view(planned.shape)
        return {f"base/{name}": _owned(stored.to(_FLOATS[base]))}
    if isinstance(stored, Coded):  # the same integers, as they were read
        codes, scales = stored.codes, stored.scales.values.view(layout.scale_shape(system.scale))
    else:
        codes, scales = encode(
            stored,
            integers,
            "nearest",
            name=name,
            output_axis=layout.output_axis,
            channel_groups=layout.channel_groups,
        )
    return {f"base/{name}": pack(codes, integers), f"scales/{name}": _owned(scales)}


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


def _made(
    model: nn.Module,
    header: Mapping[str, Any],
    tensors: dict[str, Tensor],
    own: Mapping[str, NamedTensor],
) -> Ensemble:
    """The ensemble, or a mixture's part, of a header and its tensors."""
    # A model on the meta device gives the architecture alone.
    devices = {
        name: torch.device("cpu") if entry.tensor.is_meta else entry.tensor.device
        for name, entry in own.items()
    }
    if header["kind"] == "seeded":
        return SeededEnsemble(model, header, tensors, devices)
    if "method" not in header:
        return StoredEnsemble(model, header, tensors, devices)
    placed = {
        key: tensor.to(devices.get(key.partition("/")[2], devices[next(iter(devices))]))
        for key, tensor in tensors.items()
    }
    return {"mc dropout": _dropout_of, "batch": _batch_of}[header["method"]](model, header, placed)


def _composite(ensemble: CompositeEnsemble, kind: str, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    parts: list[dict[str, Any]] = []
    shapes: dict[str, list[int]] = {}
    for index, part in enumerate(_leaves(ensemble)):
        held, about = _single(part, kind, base)
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


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a prefix, taken out."""
    return {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


def _single(ensemble: Ensemble, kind: str, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, about = _contents(ensemble, kind, base)
    if isinstance(ensemble, SeededEnsemble):
        about["base_hash"] = ensemble.base_hash
    elif isinstance(ensemble, LowPrecisionEnsemble | GaussianEnsemble | MCDropoutEnsemble):
        about["base_hash"] = weights_hash(ensemble.model)
    return tensors, about


def _contents(ensemble: Ensemble, kind: str, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(ensemble, LowPrecisionEnsemble) and not isinstance(ensemble.system, FullPrecision):
        _check_unmasked(ensemble, [ensemble.model])
        return _low_precision(ensemble, kind, base)
    if kind == "seeded":
        raise InputError(f"a seeded file holds a low precision ensemble that rounds, not {ensemble!r}")
    if isinstance(ensemble, StoredEnsemble):
        return ensemble.written()
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


def _low_precision(
    ensemble: LowPrecisionEnsemble, kind: str, base: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    system = ensemble.system
    assert not isinstance(system, FullPrecision)
    saved = [planned for planned in ensemble.plan if planned.saved]
    quantised = [planned for planned in saved if planned.quantised]
    weights = {entry.name: entry.tensor.detach() for entry in named_tensors(ensemble.model)}
    tensors = {f"shared/{p.name}": _owned(weights[p.name]) for p in saved if not p.quantised}
    about = {
        "system": _named_system(system),
        "shapes": {planned.name: list(planned.shape) for planned in saved},
        "layouts": {planned.name: _layout(planned) for planned in quantised},
        "own": [planned.name for planned in quantised],
        "rounding": ensemble.rounding,
        "seed": ensemble.seed,
        "first_member": ensemble.first_member,
    }
    if kind == "seeded":
        check_base(base, system, ensemble.rounding)
        for planned in quantised:
            tensors |= _written_base(ensemble, planned, system, base)
        return tensors, {**about, "base": base}
    distinct = 1 if ensemble.rounding == "nearest" else len(ensemble)
    for planned in quantised:
        for index in range(distinct):
            codes, scales = ensemble.codes(planned.name, index)
            tensors[f"member {index}/{planned.name}"] = pack(codes, system)
        tensors[f"scales/{planned.name}"] = _owned(scales)
    return tensors, {**about, "distinct": distinct}


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
            vectors[f"{prefix}{vector}"] = tensors[f"network/{prefix}{vector}"][: header["size"]]
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


def _owned(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _layout(planned: PlannedTensor) -> dict[str, Any]:
    return {
        "output_axis": planned.layout.output_axis,
        "channel_groups": planned.layout.channel_groups,
        "dtype": str(planned.dtype).removeprefix("torch."),
    }


def _layout_of(shape: Sequence[int], layout: Mapping[str, Any]) -> Layout:
    return Layout(tuple(shape), layout["output_axis"], layout["channel_groups"])


def _dtype(layout: Mapping[str, Any]) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, layout["dtype"])
    return dtype


def _shaped(tensors: Mapping[str, Tensor], key: str, shape: Sequence[int]) -> Tensor:
    """A file's tensor; KeyError where there is none, InputError where it is of another shape."""
    if list(tensors[key].shape) != list(shape):
        raise InputError(
            f"the file is damaged: {key!r} is of shape {list(tensors[key].shape)}, not {list(shape)}"
        )
    return tensors[key]


def _decoded(codes: Tensor, scales: Tensor, system: LowPrecision, layout: Mapping[str, Any]) -> Tensor:
    return decode(codes, scales, system, _dtype(layout), layout["output_axis"], layout["channel_groups"])


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
