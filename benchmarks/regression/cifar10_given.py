"""cifar10's part of the regression: a given point, on real test images; left out where they are not there.

The point ``sgd-0`` and the images lie in LPE_ASSETS. Nothing is trained, so what is expected is of these
files, which their hashes name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.regression.cifar10_places import found_at
from benchmarks.regression.measuring import Part
from lpe.errors import InputError
from lpe.substrates.assets import assets_folder
from reproduce.scales.cifar10.__main__ import BUNDLE
from reproduce.scales.cifar10.settings import cifar10
from reproduce.study.scale import Scale

POINTS = "cifar10_points"
HASHES = {
    f"{POINTS}/sgd-0.safetensors": "1d89285c060947d113d38c01e2d00c17772c24029e69ee0705d80b6e554d8253",
    BUNDLE: "125c067e10840ddcaf2946b4af04e8d5f35ec3b73d750f4afcd14a8b7c702b7a",
}
"""sha256 of the files that expectations are of."""
IMAGES = 250
"""Test images: every 40th."""


def missing() -> str:
    """Return why it cannot be measured; "" where it can."""
    try:
        folder = assets_folder()
    except InputError as error:
        return str(error)
    for name, sha256 in HASHES.items():
        path: Path = folder / name
        if not path.is_file():
            return f"there is no {path}"
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return f"{path} is not the file that numbers are expected of (sha256 {sha256[:12]}…)"
    return ""


@contextmanager
def opened() -> Iterator[Scale]:
    """Give the scale, of one point and a part of the images."""
    folder = assets_folder()
    with found_at(data=folder / BUNDLE, points=folder / POINTS):
        yield reduced(cifar10({"images": IMAGES}))


def reduced(scale: Scale) -> Scale:
    """Return the scale with SGD's point alone: FP32, RTN and LPE-BSR."""
    assert scale.main is not None
    main = replace(
        scale.main,
        points={"SGD": scale.main.points["SGD"]},
        families={},
        rivals=None,
        source=replace(scale.main.source, validation=IMAGES, tuning=IMAGES),
    )
    settings = replace(scale.settings, size=4, table_sizes=(1, 4), claim_size=4, bits=(4,), expansion=2)
    return replace(
        scale,
        main=main,
        whole=None,
        sizes=(),
        settings=settings,
        device="cpu",
        prepare=None,
        beyond=None,
    )


PART = Part(scale="cifar10", seeds=(0,), opened=opened, nudged=None, missing=missing)
