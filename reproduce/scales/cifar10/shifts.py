"""CIFAR-10's test images under corruptions, and images that are not CIFAR-10's, as the networks see them.

All are standardised and laid out as the source's own images. What is drawn is the same at every training
seed, so that seeds differ in their networks alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.substrates import cifar
from lpe.substrates.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from lpe.substrates.out_of_distribution import (
    MNIST_FILE,
    resized_digits,
    resized_mnist,
    scrambled,
    uniform_noise,
)
from reproduce.scales.cifar10 import images
from reproduce.scales.cifar10.images import CifarImages, every_kth
from reproduce.study.keys import code_hash, data_hash, versions
from reproduce.study.scale import Batch, Shifted

MNIST = "MNIST"


@dataclass(frozen=True)
class CifarShifts:
    """Five kinds of corruption at three severities, and three or four sets of foreign images.

    The foreign ones: scikit-learn's digits, MNIST where it lies beside the images, noise, and the shown test
    images cut into squares that change places; as many of each as test images are shown, or all there are.

    Args:
        source: whose test images. every: of these every k-th is shown.
    """

    source: CifarImages
    every: int

    def load(self, seed: int) -> Shifted:
        """Return the images, which are the same at every training seed.

        Raises:
            InputError: ``every`` is not from 1 to the number of test images.
        """
        return _shifted(self.source.test, self.every, self.source.shape.channels_last)

    def digest(self, seed: int) -> str:
        """Return a hash of the file's content, and of what is made of it, and how."""
        made = (_shifted.__wrapped__, _foreign)
        return data_hash(
            self.source.digest(seed), self.every, mnist_is_there(), code_hash(*made), versions(*made)
        )

    @property
    def words(self) -> str:
        """How many test images are shown corrupted; no more foreign ones of each set."""
        return f"corrupted: {len(range(0, self.source.test, self.every)):,}"


def mnist_is_there() -> bool:
    """Tell whether MNIST's test images lie beside CIFAR-10's, as torchvision lays them out."""
    return (_folder() / MNIST_FILE).exists()


def _folder() -> Path:
    where = images.place()
    return where if where.is_dir() else where.parent


class _Made(Mapping[tuple[str, int], Sequence[Batch]]):
    """Corrupted images by (kind, severity), made when they are first asked for, and kept."""

    def __init__(self, make: Callable[[str, int], Sequence[Batch]]) -> None:
        self._make = functools.cache(make)
        self._keys = [(kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]

    def __getitem__(self, key: tuple[str, int]) -> Sequence[Batch]:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(*key)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@functools.lru_cache(maxsize=1)
def _shifted(test: int, every: int, channels_last: bool) -> Shifted:
    whole = images._images(images.place())
    if not 1 <= every <= test:
        raise InputError(f"every {every}th of {test} test images is asked for; 1 to {test} is expected")
    index = every_kth(test)[::every]
    shown, labels = whole.test[index], whole.test_labels[index]

    def batches(pixels: Tensor, targets: Tensor) -> list[Batch]:
        form = torch.channels_last if channels_last else torch.contiguous_format
        seen = cifar.standardised(pixels).contiguous(memory_format=form)
        return list(zip(seen.split(images.BATCH), targets.split(images.BATCH), strict=True))

    def under(kind: str, severity: int) -> list[Batch]:
        return batches(corrupted(shown, kind, severity, index), labels)

    foreign = _foreign(shown, index, len(index))
    return Shifted(
        clean=batches(shown, labels),
        corrupted=_Made(under),
        foreign={name: batches(each, torch.zeros(len(each)).long()) for name, each in foreign.items()},
    )


def _foreign(shown: Tensor, index: Tensor, most: int) -> dict[str, Tensor]:
    """Return foreign images by name, uint8 [images, 32, 32, 3], at most so many of each.

    Args:
        shown: test images, as they are. index: their places in the data set.
    """
    made = {"digits": _spread(resized_digits(), most)}
    if mnist_is_there():
        made[MNIST] = _spread(resized_mnist(_folder()), most)
    return made | {"uniform noise": uniform_noise(most), "scrambled patches": scrambled(shown, index)}


def _spread(pixels: Tensor, most: int) -> Tensor:
    """Return images evenly spread over all, at most so many: a file may be class by class."""
    count = min(most, len(pixels))
    return pixels[torch.arange(count) * len(pixels) // count]
