"""CIFAR-10's images, where they lie, and networks on them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.number_systems.streams import generator
from lpe.provenance import REPOSITORY
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import ResNetShape, ViTShape, resnet_frn, resnet_group_norm, small_vit
from reproduce.study.keys import code_hash, data_hash
from reproduce.study.scale import Batch, Classification, Data, Split

BATCH = 50
"""Images a batch where nothing is trained; on a CPU, a pass takes as long in batches of 500."""


def place() -> Path:
    """Return where the images are: LPE_DATA, a folder or a file of JPEGs, else data/ in the repository."""
    return Path(os.environ.get("LPE_DATA") or REPOSITORY / "data")


@functools.cache
def found() -> tuple[str, str] | None:
    """Return the name of the images that are there and a hash of them; None where there are none."""
    try:
        return cifar.described(place())
    except InputError:
        return None


def data_name() -> str:
    """Return the name of the images that are there; of those that would be fetched where there are none."""
    there = found()
    return cifar.LOSSLESS if there is None else there[0]


def sha256() -> str | None:
    """Return the hash of the images that are there; None where there are none."""
    there = found()
    return None if there is None else there[1]


@functools.cache
def _images(where: Path) -> cifar.CifarImages:
    return cifar.load(where)


@dataclass(frozen=True)
class CifarPieces:
    """The images, which lie elsewhere."""

    def needed(self) -> tuple[str, ...]:
        """Return a line for the images."""
        there = found()
        return (f"the images of {cifar.LOSSLESS if there is None else there[0]} (no licence is stated)",)

    def missing(self) -> tuple[str, ...]:
        """Return what is to be done for them; "" where they are there, or could be fetched."""
        try:
            if not os.environ.get("LPE_DATA") and found() is None:
                cifar.download(place())
                found.cache_clear()
            cifar.described(place())
        except InputError as error:
            return (f"{error}; --data says where they are",)
        return ("",)


class CifarNetwork(Protocol):
    """The shape of a network for CIFAR-10. A dataclass: it is part of every key.

    Attributes:
        channels_last: whether it is faster on images whose channels lie side by side.
    """

    channels_last: ClassVar[bool]

    def make(self, seed: int) -> nn.Module:
        """Return a freshly initialised network; no generator is touched."""
        ...


@dataclass(frozen=True)
class FRNResNet:
    """A ResNet with filter response norms and SiLUs."""

    channels_last: ClassVar[bool] = True

    shape: ResNetShape

    def make(self, seed: int) -> nn.Module:
        """Return a freshly initialised network."""
        return resnet_frn(self.shape, seed)


@dataclass(frozen=True)
class GroupNormResNet:
    """A ResNet with group norms and SiLUs."""

    channels_last: ClassVar[bool] = False

    shape: ResNetShape
    groups: int

    def make(self, seed: int) -> nn.Module:
        """Return a freshly initialised network."""
        return resnet_group_norm(self.shape, seed, self.groups)


@dataclass(frozen=True)
class SmallViT:
    """A small Vision Transformer."""

    channels_last: ClassVar[bool] = False

    shape: ViTShape

    def make(self, seed: int) -> nn.Module:
        """Return a freshly initialised network."""
        return small_vit(self.shape, seed)


@dataclass(frozen=True)
class CifarImages:
    """A network on CIFAR-10.

    Args:
        shape: of the network. images: their name, as ``lpe.substrates.cifar`` gives it.
        augment: whether training sees random crops out of a margin of zeros, and flips.
        training, validation: how many, of those of a training seed. tuning: how many of the validation
            images settings are chosen on. test: how many of the test images, every k-th: they may be class
            by class. planes: how many landscapes are measured on, of ``planes_of``.
        planes_of: "validation", or "test": every k-th of these.
    """

    shape: CifarNetwork
    images: str
    augment: bool
    training: int
    validation: int
    tuning: int
    test: int
    planes: int
    planes_of: str

    @property
    def classes(self) -> int:
        """The ten classes."""
        return len(cifar.CLASSES)

    def load(self, seed: int) -> Data:
        """Return the images of a training seed."""
        counts = (self.training, self.validation, self.tuning, self.test, self.planes)
        part = _Part(self.images, *counts, self.planes_of, self.shape.channels_last)
        return _data(part, seed)

    def digest(self, seed: int) -> str:
        """Return a hash of the file's content, and of what is taken from it at this seed, and how."""
        there = found()
        if there is None:
            raise InputError(f"there are no images of CIFAR-10 at {place()}; say where with --data")
        return data_hash(there[1], seed, code_hash(_data.__wrapped__))

    def network(self, classes: int, seed: int) -> nn.Module:
        """Return a freshly initialised network.

        Raises:
            InputError: another number of classes.
        """
        cifar.check_classes(classes, "a network")
        return self.shape.make(seed)

    def batches(self, split: Split, batch: int, seed: int) -> Callable[[int], Iterator[Batch]]:
        """Return a function: epoch → batches in another order, the last left out where it would be smaller.

        Raises:
            InputError: a batch of more images than there are.
        """
        images, labels = split
        if not 1 <= batch <= len(images):
            raise InputError(f"a batch must have 1 to {len(images)} images, which there are, not {batch}")

        def of(epoch: int) -> Iterator[Batch]:
            draws = generator("cifar batches", seed, "", epoch)
            order = torch.randperm(len(images), generator=draws, device="cpu")
            for index in order[: len(order) // batch * batch].split(batch):
                seen = _jittered(images[index], draws) if self.augment else images[index]
                yield seen, labels[index]

        return of


MARGIN = 4
"""Pixels of zeros around an image out of which a crop is taken (He et al. 2016, section 4.2)."""


def _jittered(images: Tensor, draws: torch.Generator) -> Tensor:
    """Return a random crop of each image [images, 3, side, side], every other one mirrored on average."""
    count, side = len(images), images.shape[-1]
    padded = torch.nn.functional.pad(images, (MARGIN,) * 4)
    down, right = torch.randint(2 * MARGIN + 1, (2, count, 1), generator=draws, device="cpu")
    rows = down + torch.arange(side)
    columns = right + torch.arange(side)
    mirrored = torch.randint(2, (count, 1), generator=draws, device="cpu") == 1
    columns = torch.where(mirrored, columns.flip(1), columns)
    # Indices beside a slice put their own dimensions first.
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


@dataclass(frozen=True)
class _Part:
    """What a source takes of the images: sources that differ in their network alone share it."""

    images: str
    training: int
    validation: int
    tuning: int
    test: int
    planes: int
    planes_of: str
    channels_last: bool


@functools.lru_cache(maxsize=4)
def _data(part: _Part, seed: int) -> Data:
    whole = _images(place())
    if whole.name != part.images:
        raise InputError(f"the images at {place()} are {whole.name}; the scale is of {part.images}")
    order = dict(zip(("training", "validation"), cifar.split_indices(seed), strict=True))
    for split, count in (("training", part.training), ("validation", part.validation)):
        if not 1 <= count <= len(order[split]):
            raise InputError(f"there are 1 to {len(order[split])} {split} images, not {count}")
        order[split] = order[split][:count]
    if not 1 <= part.tuning <= part.validation:
        raise InputError(f"there are 1 to {part.validation} images to tune on, not {part.tuning}")

    def pixels(images: Tensor) -> Tensor:
        form = torch.channels_last if part.channels_last else torch.contiguous_format
        return cifar.standardised(images).contiguous(memory_format=form)

    def of_training(index: Tensor) -> Split:
        return pixels(whole.train[index]), whole.train_labels[index]

    every = every_kth(part.test)
    test = pixels(whole.test[every]), whole.test_labels[every]
    validation = of_training(order["validation"])
    tuning = _batches((validation[0][: part.tuning], validation[1][: part.tuning]))
    planes = validation
    if part.planes_of == "test":
        kept = every_kth(part.planes)
        planes = pixels(whole.test[kept]), whole.test_labels[kept]
    elif part.planes_of != "validation":
        raise InputError(f'landscapes are of "test" or "validation" images, not {part.planes_of!r}')
    return Data(
        scored=Classification(_batches(test), _batches(validation)),
        tuning=Classification(tuning, tuning),
        train=of_training(order["training"]),
        validation=_batches(validation),
        test=_batches(test),
        statistics=None,
        images=every,
        planes=_batches((planes[0][: part.planes], planes[1][: part.planes])),
    )


def every_kth(count: int) -> Tensor:
    """Return the places of ``count`` test images, evenly spread.

    Raises:
        InputError: it does not divide their number.
    """
    total = cifar.IMAGES["test"]
    if not 1 <= count <= total or total % count:
        raise InputError(f"{count} test images are not every k-th of {total}; give a divisor, such as 2000")
    return torch.arange(0, total, total // count)


def _batches(split: Split) -> list[Batch]:
    return list(zip(split[0].split(BATCH), split[1].split(BATCH), strict=True))
