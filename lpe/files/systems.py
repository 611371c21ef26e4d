"""A number system, and how a tensor is seen under it ⇄ what a file's header says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.selection import PlannedTensor
from lpe.errors import InputError
from lpe.number_systems.grids import (
    Codebook,
    FullPrecision,
    Int,
    LowPrecision,
    NumberSystem,
    PerBlock,
    PerChannel,
    PerTensor,
)
from lpe.number_systems.layouts import Layout
from lpe.number_systems.naming import ByPattern, Systems, number_system

_AXES = {axis.__name__: axis for axis in (PerTensor, PerChannel, PerBlock)}


def layout_header(planned: PlannedTensor) -> dict[str, Any]:
    """Return a tensor's layout and dtype, as a header has them."""
    return {
        "output_axis": planned.layout.output_axis,
        "channel_groups": planned.layout.channel_groups,
        "dtype": str(planned.dtype).removeprefix("torch."),
        **({"axis_given": True} if planned.axis_given else {}),
    }


def layout_of(shape: Sequence[int], layout: Mapping[str, Any]) -> Layout:
    """Return the layout of a header."""
    return Layout(tuple(shape), layout["output_axis"], layout["channel_groups"])


def dtype_of(layout: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype of a header's layout."""
    dtype: torch.dtype = getattr(torch, layout["dtype"])
    return dtype


# A header names an integer system by its bits alone, as before there were others; of others it holds the
# name, which a reader that knows integers only refuses for the lack of bits, and a codebook's levels beside
# the hash of them that was its name. Several systems, and steps of least squared error, need version 3; a
# spread, with which codes have fewer bits than the system, version 5.


def systems_header(ensemble: LowPrecisionEnsemble) -> dict[str, Any]:
    """Return a header's entries on an ensemble's number system or, if there are several, on each tensor's."""
    if not isinstance(ensemble.system, ByPattern):
        header = _system_header(ensemble.system)
        return {"system": header, **_version([header], 2)}
    of_pattern = [[pattern, _system_header(system)] for pattern, system in ensemble.system.systems]
    of_tensor = {planned.name: _system_header(planned.system) for planned in ensemble.plan if planned.rounds}
    version = _version([_system_header(system) for _, system in ensemble.system.systems], 3)
    return {"system": {"patterns": of_pattern}, "systems": of_tensor, **version}


def _version(headers: Sequence[Mapping[str, Any]], least: int) -> dict[str, int]:
    """Return the version that the systems of a file need, at least that one; nothing where it is 2."""
    spread, clip = (any(key in header for header in headers) for key in ("spread", "clip"))
    version = max(least, 5 if spread else 3 if clip else 2)
    return {"version": version} if version > 2 else {}


def systems_of_tensors(header: Mapping[str, Any]) -> tuple[Systems, dict[str, LowPrecision]]:
    """Return the number system of a header, or systems, and that of each of its packed tensors.

    Raises:
        InputError: it names none, or one with other levels than its name's.
    """
    told = header["system"]
    if "patterns" not in told:
        system = _low_precision(told)
        return system, dict.fromkeys(header["layouts"], system)
    of_tensor = {name: _low_precision(header["systems"][name]) for name in header["layouts"]}
    return ByPattern({pattern: _system(each) for pattern, each in told["patterns"]}), of_tensor


def _system_header(system: NumberSystem) -> dict[str, Any]:
    if isinstance(system, FullPrecision):
        return {"name": system.name}
    axis = system.scale
    named: dict[str, Any] = {"scale": type(axis).__name__, **vars(axis)}
    if isinstance(system, Int):
        clip = {} if system.clip == "absmax" else {"clip": system.clip}
        spread = {} if system.spread == 1 else {"spread": system.spread}
        return {"bits": system.bits, **named, **clip, **spread}
    if isinstance(system, Codebook):
        return {"name": _hashed_name(system), "levels": list(system.levels), **named}
    return {"name": system.name, **named}


def _hashed_name(system: Codebook) -> str:
    digest = hashlib.blake2s(np.array(system.levels, "<f4").tobytes()).hexdigest()[:8]
    axis = "" if system.scale == PerChannel() else f" {system.scale}"
    return f"codebook{len(system.levels)}-{digest}{axis}"


def _system(told: Mapping[str, Any]) -> NumberSystem:
    return FullPrecision() if told == {"name": FullPrecision().name} else _low_precision(told)


def _low_precision(named: Mapping[str, Any]) -> LowPrecision:
    try:
        told = {key: value for key, value in named.items() if key != "levels"}
        own = ("bits", "name", "scale", "clip", "spread")
        rest = {key: value for key, value in told.items() if key not in own}
        axis = _AXES[told["scale"]](**rest)
        if "name" not in told:
            return Int(told["bits"], axis, told.get("clip", "absmax"), told.get("spread", 1.0))
        if "levels" in named:
            codebook = Codebook(named["levels"], axis)
            system: Systems = codebook
            name = _hashed_name(codebook)
        else:
            system = number_system(told["name"])
            name = system.name
    except (TypeError, AttributeError, InputError) as error:
        raise InputError(f"the file is damaged: it has no number system ({error})") from None
    if not isinstance(system, LowPrecision) or name != told["name"] or system.scale != axis:
        raise InputError(f"the file is damaged: its number system {told} is in truth {name!r}")
    return system
