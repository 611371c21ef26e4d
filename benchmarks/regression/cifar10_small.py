"""cifar10-small's part of the regression: its recipes at a reduced size, on made-up images.

They are made up on every machine, also where CIFAR-10 is: what is expected is of these images. The scale
reads them as it reads CIFAR-10, from a file.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from benchmarks.regression.cifar10_places import found_at
from benchmarks.regression.measuring import Part
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import ResNetShape
from reproduce.scales.cifar10.images import CifarNetwork, GroupNormResNet
from reproduce.scales.cifar10.shifts import CifarShifts
from reproduce.scales.cifar10.small import cifar10_small
from reproduce.study.scale import Rivals, Scale, Substrate

DIFFERENT = 499
"""Images of each split that differ. A prime: every k-th images differ, too, and are of all classes."""
BLOCK = 8
"""Pixels along an image's blocks of one colour: a file of 60,000 images stays small."""
PNG_HEADER = 33
"""Bytes of a PNG's signature and header, which images of one size have in common."""


def write_images(path: Path) -> None:
    """Write a file of made-up images, as ``lpe.substrates.cifar`` reads it: 60,000, of which 998 differ.

    A class is a pattern of colours, and an image its class's pattern with noise. They are PNGs, whose pixels
    are the same whatever decodes them.
    """
    draws = np.random.Generator(np.random.Philox(0))
    side, classes = cifar.SIDE // BLOCK, len(cifar.CLASSES)
    patterns = draws.integers(0, 256, (classes, side, side, 3))
    held: dict[str, Any] = {}
    for split, count in cifar.IMAGES.items():
        labels = np.arange(DIFFERENT) % classes
        noise = draws.integers(0, 256, (DIFFERENT, side, side, 3))
        pixels = ((7 * patterns[labels] + 3 * noise) // 10).astype(np.uint8)
        files = [_png(image) for image in pixels.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)]
        places = np.arange(count) % DIFFERENT
        bodies = [files[place][PNG_HEADER:] for place in places]
        held |= {
            "header": np.frombuffer(files[0][:PNG_HEADER], np.uint8),
            f"{split}_body": np.frombuffer(b"".join(bodies), np.uint8),
            f"{split}_off": np.cumsum([0, *map(len, bodies)]),
            f"{split}_y": labels[places],
        }
    np.savez(path, **held)


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "png")
    return written.getvalue()


def _reduced(substrate: Substrate, points: Mapping[str, Any], families: Mapping[str, Any]) -> Substrate:
    """Return a substrate with these recipes, on few images, at every training seed."""
    source = replace(substrate.source, training=150, validation=100, tuning=100, test=100, planes=50)
    return replace(
        substrate, name=substrate.short, source=source, points=points, families=families, most_seeds={}
    )


@contextmanager
def opened() -> Iterator[Scale]:
    """Give the reduced scale, with its images in place."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        write_images(path)
        with found_at(data=path):
            yield reduced(cifar10_small({}))


BATCH = 10


def reduced(scale: Scale) -> Scale:
    """Return the scale with narrower networks, fewer images and shorter trainings, of the ViTs the smallest.

    What the scale's sweep chooses is fixed here: another choice moves nothing.
    """
    assert scale.main is not None
    points: Mapping[str, Any] = scale.main.points
    families: Mapping[str, Any] = scale.main.families
    sgd = replace(points["SGD"], epochs=4, batch=BATCH, learning_rate=0.1, weight_decay=5e-4)
    main = _reduced(
        scale.main,
        {
            "SGD": sgd,
            "SWAG": replace(points["SWAG"], sgd=sgd, start_epoch=2, learning_rate=0.05, rank=2),
            "IVON": replace(
                points["IVON"],
                epochs=4,
                batch=BATCH,
                learning_rate=0.3,
                hess_init=0.1,
                beta2=0.95,
                temperature=0.003,
                weight_decay=1e-3,
            ),
        },
        {
            "DE": replace(families["DE"], members=2),
            "SSE": replace(
                families["SSE"],
                cycles=2,
                epochs_per_cycle=3,
                batch=BATCH,
                learning_rate=0.1,
                weight_decay=5e-4,
            ),
            "CSGLD": replace(
                families["CSGLD"],
                cycles=2,
                epochs_per_cycle=3,
                sampling_steps=15,
                samples_per_cycle=2,
                spacing=5,
                batch=BATCH,
                learning_rate=0.2,
                sampling_rate=0.1,
                temperature=0.1,
                weight_decay=1e-3,
            ),
            "MultiIVON": replace(families["MultiIVON"], members=2, draws=2),
            "MultiSWAG": replace(families["MultiSWAG"], members=2, draws=2),
            "BE": replace(
                families["BE"],
                members=2,
                epochs=3,
                batch=BATCH,
                learning_rate=0.1,
                std=0.5,
                weight_decay=5e-4,
            ),
        },
    )
    shape = GroupNormResNet(ResNetShape(blocks=1, width=8), groups=8)
    source = replace(main.source, shape=shape)
    main = replace(main, source=source, rivals=Rivals(stds=(0.02,), rates=(0.05,)))
    vit = scale.sizes[0]
    of_vit: Mapping[str, Any] = vit.points
    recipe = replace(of_vit["SGD"], epochs=4, batch=BATCH, learning_rate=0.02, weight_decay=5e-4)
    vit = _reduced(vit, {"SGD": recipe}, {})
    settings = replace(
        scale.settings, size=4, table_sizes=(1, 4), claim_size=4, bits=(4, 3), best_bits=4, expansion=2
    )
    assert scale.beyond is not None
    # A value each, and a pool of which all are chosen: a last digit chooses no other.
    beyond = replace(
        scale.beyond,
        size=4,
        seeds=3,
        spreads=(16.0,),
        stds=(0.02,),
        rates=(0.05,),
        pool=4,
        calibration=50,
        views=4,
        shifts=CifarShifts(main.source, every=2),
    )
    return replace(scale, main=main, sizes=(vit,), large={}, compared=None, settings=settings, beyond=beyond)


@dataclass(frozen=True)
class Nudged:
    """A network whose weights are a part in 10⁶ larger."""

    shape: CifarNetwork
    channels_last: ClassVar[bool] = False

    @torch.no_grad()
    def make(self, seed: int) -> nn.Module:
        """Return a freshly initialised network."""
        net = self.shape.make(seed)
        for weight in net.parameters():
            weight.mul_(1 + 1e-6)
        return net


def nudged(scale: Scale) -> Scale:
    """Return the scale with trainings that start a part in 10⁶ apart."""

    def start_apart(substrate: Substrate) -> Substrate:
        return replace(substrate, source=replace(substrate.source, shape=Nudged(substrate.source.shape)))

    assert scale.main is not None
    return replace(scale, main=start_apart(scale.main), sizes=tuple(map(start_apart, scale.sizes)))


PART = Part(scale="cifar10-small", seeds=(0, 1, 2), opened=opened, nudged=nudged, missing=lambda: "")
