"""What a header may say, before anything is made of it: types, names and numbers that fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lpe.checks import check_integer, shown
from lpe.errors import InputError
from lpe.modules import PLAIN_DTYPES, NamedTensor

MOST_MEMBERS = 1 << 20
"""Members of a file at most. A seeded one gives further ones to who asks for them."""


def check_header(header: Mapping[str, Any]) -> None:
    """Check a header's entries that say how much there is to read.

    Raises:
        InputError: one of another type or form; a size beyond ``MOST_MEMBERS``; names of own, packed and
            selected things that are not among those that there are.
    """
    shapes = _mapping("shapes", header["shapes"])
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise InputError(f"the file is damaged: the shape of {shown(name)} is {shown(shape)}")
    check_integer("the size", header["size"], 1, MOST_MEMBERS)
    parts = [header] if "parts" not in header else _list("parts", header["parts"])
    for part in parts:
        _check_part(_mapping("a part", part), shapes)


def _check_part(part: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    size = check_integer("the size", part["size"], 1, MOST_MEMBERS)
    of_method: dict[str, object] = {"own": [], "layouts": {}} if "method" in part else {}
    own = _list("own", {**of_method, **part}["own"])
    layouts = _mapping("layouts", {**of_method, **part}["layouts"])
    if unknown := next((name for name in [*own, *layouts] if not _is_name(name, shapes)), None):
        raise InputError(f"the file is damaged: {shown(unknown)} is none of its tensors")
    if len(set(own)) < len(own):
        raise InputError("the file is damaged: a tensor is each member's own twice")
    if shared := next((name for name in layouts if name not in own), None):
        raise InputError(f"the file is damaged: {shown(shared)} is packed and not the members' own")
    for name, layout in layouts.items():
        named = _mapping("a layout", layout)["dtype"]
        dtype: Any = getattr(torch, named, None) if isinstance(named, str) else None
        if not isinstance(dtype, torch.dtype) or dtype not in PLAIN_DTYPES or not dtype.is_floating_point:
            raise InputError(f"the file is damaged: the dtype of {shown(name)} is {shown(named)}")
    if "selected" in part:
        chosen = _list("selected", part["selected"])
        if len(chosen) != size or not all(type(index) is int and index >= 0 for index in chosen):
            raise InputError(f"the file is damaged: its {size} members are {shown(chosen)} of others")
    for key in ("rounding", "base_hash", "base", "refresh", "method"):
        if not isinstance(part.get(key), str | None):
            raise InputError(f"the file is damaged: its {key} is {shown(part[key])}")
    if not isinstance(part.get("system"), dict | None):
        raise InputError(f"the file is damaged: its number system is {shown(part['system'])}")


def check_kinds(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Mapping[str, NamedTensor]
) -> None:
    """Check that tensors are of the kind of those that they stand for: floating, complex or whole numbers.

    Args:
        header: of the whole, or of a part. tensors: of it. own: the model's tensors, by name.

    Raises:
        InputError: one is not.
    """
    layouts = header.get("layouts", {})
    for key, tensor in tensors.items():
        what, _, name = key.partition("/")
        if name in layouts and what != "scales":
            continue  # codes and bases are checked as they are read
        expected = _kind(own[name].tensor.dtype) if name in own and what != "scales" else "floating"
        if _kind(tensor.dtype) != expected:
            raise InputError(
                f"the file is damaged: {shown(key)} is {tensor.dtype}, where {expected} numbers are needed"
            )


def _kind(dtype: torch.dtype) -> str:
    return "floating" if dtype.is_floating_point else "complex" if dtype.is_complex else "whole"


def _is_name(name: Any, shapes: Mapping[str, Any]) -> bool:
    return isinstance(name, str) and name in shapes


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"the file is damaged: {what} must be an object, not {shown(value)}")
    return value


def _list(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"the file is damaged: {what} must be a list, not {shown(value)}")
    return value
