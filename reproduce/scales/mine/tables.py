"""What a scale's file may say: its tables, and the presets of what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lpe.number_systems.grids import PerBlock, PerChannel, PerTensor
from lpe.number_systems.naming import number_system
from reproduce.scales.mine.keys import Place
from reproduce.study.scale import Settings

SOURCES = ("timm/NAME", "torchvision/NAME", "hf/FOLDER_OR_NAME", "net.py:FUNCTION")


@dataclass(frozen=True)
class NetworkTable:
    """A network.

    Args:
        source: see ``SOURCES``. name: its short name; None: the source's last part.
        weights: a file of weights; None: the hub's, or those that the function gives.
        arguments: of the architecture, or of the function.
    """

    source: str
    name: str | None
    weights: str | None
    arguments: Mapping[str, Any]

    @property
    def short(self) -> str:
        """Its short name."""
        return self.name or self.source.rpartition(":")[2].rpartition("/")[2]


@dataclass(frozen=True)
class DataTable:
    """Examples with their classes, of one of three kinds.

    Args:
        folder: of images, a folder per class. arrays: an .npz or .safetensors file.
        python: "data.py:FUNCTION", that returns (inputs, classes), or a data set of pairs.
        arguments: of the function. inputs, targets: names of the file's arrays.
        transform: "data.py:FUNCTION", PIL image → tensor; None: the network's own.
        class_names: of the network's classes, in its order, where the folders' names stand in another.
        limit: as many examples, evenly spread; None: all.
    """

    folder: str | None
    arrays: str | None
    python: str | None
    arguments: Mapping[str, Any]
    inputs: str
    targets: str
    transform: str | None
    class_names: tuple[str, ...] | None
    limit: int | None


@dataclass(frozen=True)
class TopTable:
    """What stands before the tables.

    Args:
        name: of the scale. example: the noun of what is classified. device: "auto" or "cpu".
        threads: None: as many as torch takes. batch: examples a pass.
        tuning_every: every so many examples one is scored by no row: it fits temperatures and tunes.
    """

    name: str
    example: str
    device: str
    threads: int | None
    batch: int
    tuning_every: int


TOP: Mapping[str, Any] = {
    "example": "image",
    "device": "auto",
    "threads": None,
    "batch": 64,
    "tuning_every": 5,
}
NETWORK: Mapping[str, Any] = {"name": None, "weights": None, "arguments": {}}
DATA: Mapping[str, Any] = {
    "folder": None,
    "arrays": None,
    "python": None,
    "arguments": {},
    "inputs": "inputs",
    "targets": "targets",
    "transform": None,
    "class_names": None,
    "limit": None,
}
TRAINING: Mapping[str, Any] = {**DATA, "limit": 1000}
"""For batch-norm statistics and figure 1's search, which passes back through one example at a time."""

RIVALS: Mapping[str, Any] = {
    "stds": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "rates": (0.003, 0.01, 0.03, 0.1),  # giung2 has .1
}
SIZE = 20


def settings_presets(size: int) -> Mapping[str, Any]:
    """Return the settings that a file leaves out, by the size of its largest ensembles."""
    return {
        "size": SIZE,
        "table_sizes": tuple(n for n in (1, 5, 10, 20) if n < size) + (size,),
        "draws": 3,
        "bits": (5, 4, 3),
        "best_bits": 5,
        "claim_size": min(10, size),
        "memory_models": 2,
        "noise_share": None,
        "expansion": 5,
        "table_bits": (8, 7, 6, 5, 4, 3),
        "scale_axes": (PerTensor(), PerChannel(), PerBlock(16)),
        "axis_bits": (4,),
        "number_systems": ("int8", "fp8_e4m3", "int6", "fp6_e3m2", "int4", "int4-mse", "fp4_e2m1", "nf4"),
        "large_bits": 5,
        "large_size": size,
        "equal_bits": False,
        "landscape": {
            "seed": 0,
            "resolution": 21,
            "margin": 0.3,
            "cloud": 30,
            "split": "test",
            "examples": None,
        },
    }


LEAST_BITS, MOST_BITS = 2, 8


def check_settings(settings: Settings, place: Place) -> None:
    """Raise InputError for settings out of their range, or that contradict each other."""

    def need(holds: bool, key: str, value: object, expected: str) -> None:
        if not holds:
            shown = list(value) if isinstance(value, tuple) else value
            raise place.error(f"{key!r} in {place} is {shown}; {expected}")

    size = settings.size
    need(size >= 2, "size", size, "2 members or more are expected")
    for key in ("draws", "memory_models", "expansion"):
        need(getattr(settings, key) >= 1, key, getattr(settings, key), "1 or more is expected")
    sizes = settings.table_sizes
    need(
        len(sizes) >= 2 and sorted(set(sizes)) == list(sizes) and 1 <= sizes[0] and sizes[-1] <= size,
        "table_sizes",
        sizes,
        f"two sizes or more from 1 to size ({size}), the smallest first, are expected",
    )
    claimed = settings.claim_size
    need(1 <= claimed <= size, "claim_size", claimed, f"1 to size ({size}) is expected")
    for key in ("bits", "table_bits", "axis_bits"):
        widths = getattr(settings, key)
        inside = all(LEAST_BITS <= width <= MOST_BITS for width in widths)
        need(
            bool(widths) and inside and len(set(widths)) == len(widths),
            key,
            widths,
            f"different widths from {LEAST_BITS} to {MOST_BITS} are expected",
        )
    best, large = settings.best_bits, settings.large_bits
    need(best in settings.bits, "best_bits", best, f"one of bits ({list(settings.bits)}) is expected")
    need(LEAST_BITS <= large <= MOST_BITS, "large_bits", large, f"{LEAST_BITS} to {MOST_BITS} is expected")
    for name in settings.number_systems:
        try:
            number_system(name)
        except ValueError as error:
            raise place.error(f"'number_systems' in {place}: {error}") from None
    shape, below = settings.landscape, place.inside("landscape")
    if shape.resolution < 2:
        raise below.error(f"'resolution' in {below} is {shape.resolution}; 2 or more is expected")
    if (shape.split, shape.examples) != ("test", None):
        raise below.error(f"'split' and 'examples' in {below} are not yours to set; leave them out")
    if shape.margin < 0:
        raise below.error(f"'margin' in {below} is {shape.margin}; 0 or more is expected")
