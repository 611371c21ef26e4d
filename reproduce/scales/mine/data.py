"""The examples of a scale's file: a folder of images, arrays in a file, or what a Python function returns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.extras import needs
from lpe.modules import apply
from lpe.substrates.imagenet import LabelledImages, validation
from lpe.substrates.images import spread
from lpe.substrates.loading import available_bytes, require_memory
from reproduce.scales.mine.networks import Network
from reproduce.scales.mine.tables import DataTable
from reproduce.study.functions import called, function
from reproduce.study.keys import data_hash
from reproduce.study.scale import Batch, Split

KINDS = ("folder", "arrays", "python")
KEPT_SHARE = 0.25
"""Images are kept in memory, read once, where they take no more than this share of what is free."""


class Examples(Protocol):
    """Examples with their classes."""

    @property
    def targets(self) -> Tensor:
        """Their classes, int64 [examples]."""
        ...

    def batches(self, chosen: Sequence[int], size: int) -> Any:
        """Return some of the examples in batches, which are readable again and again."""
        ...

    def digest(self) -> str:
        """Return a hash of the examples."""
        ...


@dataclass(frozen=True)
class Arrays:
    """Examples in memory: inputs [examples, …], targets int64 [examples]."""

    inputs: Tensor
    targets: Tensor

    def batches(self, chosen: Sequence[int], size: int) -> list[Batch]:
        """Return some of the examples in batches."""
        parts = torch.as_tensor(chosen).split(size)
        return [(self.inputs[part], self.targets[part]) for part in parts]

    def digest(self) -> str:
        """Return a hash of the examples."""
        return data_hash(self.inputs, self.targets)

    def split(self) -> Split:
        """Return the inputs and the targets."""
        return self.inputs, self.targets


class Pictures:
    """Batches of images that are read from their files whenever they are asked for.

    It is no ``Sequence`` by type: of those, evaluation takes all batches at once.
    """

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.images)

    def __getitem__(self, place: int) -> Batch:
        """Return one batch; IndexError beyond the last."""
        size = self.images.batch_size
        start = range(len(self))[place] * size
        part = replace(
            self.images,
            paths=self.images.paths[start : start + size],
            labels=self.images.labels[start : start + size],
            workers=0,
        )
        return next(iter(part))


@dataclass(frozen=True)
class Files:
    """Examples that are images in files, too many to be kept in memory."""

    images: LabelledImages
    folder: Path
    transform: str

    @property
    def targets(self) -> Tensor:
        """The classes, int64 [examples]."""
        return torch.tensor(self.images.labels)

    def batches(self, chosen: Sequence[int], size: int) -> Any:
        """Return some of the examples in batches."""
        paths, labels = self.images.paths, self.images.labels
        part = replace(
            self.images,
            paths=tuple(paths[index] for index in chosen),
            labels=tuple(labels[index] for index in chosen),
            batch_size=size,
        )
        return Pictures(part)

    def digest(self) -> str:
        """Return a hash of the files, the transform and which images are chosen."""
        names = [str(path.relative_to(self.folder)) for path in self.images.paths]
        return data_hash(self.folder, names, list(self.images.labels), self.transform)


def load(table: DataTable, folder: Path, network: Network, batch: int, kept: bool) -> Examples:
    """Load examples, and look at the first: the network must take it, and have every class.

    Args:
        folder: of the scale's file. kept: in memory whatever they take.

    Raises:
        InputError: data that are missing or damaged; that the network does not take; classes beyond its own.
    """
    if table.folder is not None:
        return _images(table, folder, network, batch, kept)
    found = _arrays(table, folder) if table.arrays is not None else _returned(table, folder)
    classes = check_taken(network.net, found.inputs[:1], _named(table))
    least, most = int(found.targets.min()), int(found.targets.max())
    if least < 0 or most >= classes:
        raise InputError(
            f"{_named(table)} has the classes {least} to {most}, and the network 0 to {classes - 1}"
        )
    chosen = torch.tensor(list(spread(len(found.targets), table.limit)))
    return found if table.limit is None else Arrays(found.inputs[chosen], found.targets[chosen])


def check_taken(net: nn.Module, one: Tensor, what: str) -> int:
    """Pass one example through the network; return the number of its classes.

    Raises:
        InputError: the network does not take it.
    """
    try:
        with torch.inference_mode():
            logits = apply(net, one)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever layer does not fit
        why = str(error).partition("\n")[0] or type(error).__name__
        shape = f"{str(one.dtype).removeprefix('torch.')} {list(one.shape[1:])}"
        raise InputError(f"the network does not take an example of {what}, {shape}: {why}") from None
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(
            f"the network returns {list(logits.shape)} for one example; logits [1, classes] are expected"
        )
    return int(logits.shape[1])


def _named(table: DataTable) -> str:
    return str(table.folder or table.arrays or table.python)


def _images(table: DataTable, folder: Path, network: Network, batch: int, kept: bool) -> Examples:
    transform = network.transform
    seen = str(dict(network.record))
    if table.transform is not None:
        transform = function(table.transform, folder)
        seen = table.transform
    if transform is None:
        raise InputError(
            f"nothing says how the network sees the images of {table.folder}; name a function, PIL image → "
            'tensor, as transform = "data.py:transform"'
        )
    place = folder / str(table.folder)
    blank = torch.zeros(0)
    try:
        needs("PIL")

        from PIL import Image

        blank = transform(Image.new("RGB", (512, 512)))
        fits = isinstance(blank, Tensor) and blank.is_floating_point()
    except Exception as error:
        raise InputError(f"the transform of {table.folder} failed on a blank image: {error}") from None
    if not fits:
        raise InputError(f"the transform of {table.folder} returned a {type(blank).__name__}, not a tensor")
    classes = check_taken(network.net, blank[None], _named(table))
    names = table.class_names
    if names is None and network.class_names is not None:
        names = tuple(network.class_names)
    workers = min(8, os.cpu_count() or 1)
    images = validation(place, transform, batch, table.limit, classes, workers, blank.dtype, names)
    size = len(images.paths) * blank.numel() * blank.element_size()
    if not kept and size > KEPT_SHARE * available_bytes():
        return Files(images, place, seen)
    require_memory(size, f"{len(images.paths):,} images of {table.folder}")
    inputs, targets = zip(*images, strict=True)
    return Arrays(torch.cat(inputs), torch.cat(targets))


def _arrays(table: DataTable, folder: Path) -> Arrays:
    path = folder / str(table.arrays)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as held:
                found: Mapping[str, Any] = {name: held[name] for name in held.files}
        except Exception as error:  # of a damaged file, as many kinds as it has parts
            raise InputError(f"{table.arrays} is no whole .npz file of plain arrays ({error})") from None
    elif path.suffix == ".safetensors":
        from lpe.substrates.loading import read_weights

        found = read_weights(path)
    else:
        raise InputError(f"arrays are {table.arrays}; an .npz or a .safetensors file is expected")
    for name in (table.inputs, table.targets):
        if name not in found:
            raise InputError(f"{table.arrays} has no array {name!r}; it has {', '.join(found)}")
    return checked(found[table.inputs], found[table.targets], str(table.arrays))


def _returned(table: DataTable, folder: Path) -> Arrays:
    what = str(table.python)
    found = called(what, folder, table.arguments)
    if isinstance(found, tuple | list) and len(found) == 2:
        return checked(found[0], found[1], what)
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
        raise InputError(
            f"{what} returned a {type(found).__name__}; (inputs, classes), or a data set of such pairs, is "
            "expected"
        )
    pairs = []
    for index in spread(len(found), table.limit):
        pair = found[index]
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise InputError(
                f"example {index} of {what} is a {type(pair).__name__}; (input, class) is expected"
            )
        pairs.append((torch.as_tensor(pair[0]), int(pair[1])))
    if len({each.shape for each, _ in pairs}) > 1:
        raise InputError(f"the inputs of {what} have different shapes; examples of one shape are expected")
    return checked(torch.stack([each for each, _ in pairs]), [target for _, target in pairs], what)


def checked(inputs: Any, targets: Any, what: str) -> Arrays:
    """Return inputs and targets as tensors.

    Raises:
        InputError: no tensors or arrays; as many targets as inputs are not there, or too few for a split;
            targets that are no class indices.
    """
    try:
        inputs, targets = torch.as_tensor(inputs), torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} has no tensors or arrays: {error}") from None
    if inputs.dtype == torch.float64:
        inputs = inputs.float()  # numpy's own
    if targets.dim() != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
        raise InputError(
            f"the classes of {what} are {str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}; "
            "class indices [examples] are expected"
        )
    if inputs.dim() < 2 or len(inputs) != len(targets) or len(targets) < 4:
        raise InputError(
            f"{what} has inputs {list(inputs.shape)} and {len(targets)} classes; as many of both, and 4 or "
            "more, are expected"
        )
    return Arrays(inputs, targets.long())
