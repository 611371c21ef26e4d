"""Tells what became of a file's tensors under a converter of somebody else's.

Weights as their authors published them have other names and layouts than a library's model. Its converters
know how to translate them, and may also resample, invent or drop what does not fit, without a word. Here the
result is compared with the file, by values: what kept its values under another name or in another order is
told, what has values that the file does not have is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpe.substrates.loading import SHOWN


@dataclass(frozen=True)
class Conversion:
    """The fate of a file's tensors.

    Args:
        renamed: the file's name → the model's, of the same values in the same order.
        rearranged: names of the model whose values are the file's in another shape or order.
        invented: names of the model with values that the file does not have.
        dropped: names of the file of which nothing, or not all, is in the model.
    """

    renamed: Mapping[str, str]
    rearranged: tuple[str, ...]
    invented: tuple[str, ...]
    dropped: tuple[str, ...]

    def told(self) -> str:
        """Say in a phrase what changed; nothing where every tensor kept its name and values."""
        old, new = next(iter(self.renamed.items()), ("", ""))
        parts = [
            f"{len(self.renamed):,} renamed ({old} → {new})" if self.renamed else "",
            f"{len(self.rearranged):,} rearranged ({_some(self.rearranged)})" if self.rearranged else "",
            f"{len(self.invented):,} computed anew ({_some(self.invented)})" if self.invented else "",
            f"{len(self.dropped):,} left out ({_some(self.dropped)})" if self.dropped else "",
        ]
        return ", ".join(part for part in parts if part)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}"


def conversion(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> Conversion:
    """Compare a file's tensors with a model's, which a converter made of them.

    Args:
        file: tensor by name, in the model's dtypes. model: tensor by name; tied ones once.
    """
    unused = dict(file)
    left = {}
    for name, tensor in model.items():
        # The same name first, so that tensors of equal values (zeros, ones) keep their own.
        if name in unused and _same(unused[name], tensor):
            del unused[name]
        else:
            left[name] = tensor
    renamed: dict[str, str] = {}
    reshaped: list[str] = []
    for key in (_place, _values):  # a tensor that was only renamed is found without a look at its values
        found: dict[tuple[object, ...], list[str]] = {}
        for name, tensor in unused.items():
            found.setdefault(key(tensor), []).append(name)
        unexplained: dict[str, Tensor] = {}
        for name, tensor in left.items():
            if names := found.get(key(tensor)):
                old = name if name in names else names[0]
                names.remove(old)
                del unused[old]
                if old == name:
                    reshaped.append(name)
                else:
                    renamed[old] = name
            else:
                unexplained[name] = tensor
        left = unexplained
    floating = {name: tensor for name, tensor in unused.items() if tensor.is_floating_point()}
    if unexplained and not _are_parts(list(unexplained.values()), list(floating.values())):
        dropped = tuple(name for name in unused if name not in unexplained)
        return Conversion(renamed, tuple(reshaped), tuple(unexplained), dropped)
    # Tensors whose every value went into others are not left out.
    used_up = unexplained and _count(unexplained) == _count(floating)
    dropped = tuple(name for name in unused if not (used_up and name in floating))
    return Conversion(renamed, (*reshaped, *unexplained), (), dropped)


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _same(left: Tensor, right: Tensor) -> bool:
    return left is right or (
        left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
    )


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return a key of where a tensor lies in memory."""
    if not tensor.numel() or not tensor.is_contiguous():
        return (id(tensor),)
    return tensor.dtype, tensor.numel(), tensor.data_ptr()


def _values(tensor: Tensor) -> tuple[object, ...]:
    """Return a tensor's values in their order, whatever its shape."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return tensor.dtype, tensor.numel(), hashlib.blake2b(flat.numpy().data, digest_size=16).digest()


def _are_parts(some: Sequence[Tensor], of: Sequence[Tensor]) -> bool:
    """Tell whether every value of some tensors is in others, as often as it is in the first."""
    if not of:
        return False
    found, there = (torch.cat([each.flatten() for each in tensors]).sort().values for tensors in (some, of))
    place = torch.searchsorted(there, found) + torch.arange(len(found)) - torch.searchsorted(found, found)
    return bool((place < len(there)).all()) and torch.equal(there[place], found)
