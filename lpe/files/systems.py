"""A number system, and how a tensor is seen under it ⇄ what a file's header says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

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
    number_system,
)
from lpe.number_systems.layouts import Layout

_AXES = {axis.__name__: axis for axis in (PerTensor, PerChannel, PerBlock)}


def layout_header(planned: PlannedTensor) -> dict[str, Any]:
    """A tensor's layout and dtype, as a header has them."""
    return {
        "output_axis": planned.layout.output_axis,
        "channel_groups": planned.layout.channel_groups,
        "dtype": str(planned.dtype).removeprefix("torch."),
    }


def layout_of(shape: Sequence[int], layout: Mapping[str, Any]) -> Layout:
    """The layout of a header."""
    return Layout(tuple(shape), layout["output_axis"], layout["channel_groups"])


def dtype_of(layout: Mapping[str, Any]) -> torch.dtype:
    """The dtype of a header's layout."""
    dtype: torch.dtype = getattr(torch, layout["dtype"])
    return dtype


# A header names an integer system by its bits alone, as before there were others; of others it holds the
# name, which a reader that knows integers only refuses for the lack of bits, and a codebook's levels.


def system_header(system: LowPrecision) -> dict[str, Any]:
    """A number system, as a header has it."""
    axis = system.scale
    named: dict[str, Any] = {"scale": type(axis).__name__, **vars(axis)}
    if isinstance(system, Int):
        return {"bits": system.bits, **named}
    levels = {"levels": list(system.levels)} if isinstance(system, Codebook) else {}
    return {"name": system.name, **levels, **named}


def system_of(named: Mapping[str, Any]) -> LowPrecision:
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
