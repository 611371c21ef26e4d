"""What a scale's file may say: its tables, and the presets of what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lpe.number_systems.grids import PerBlock, PerChannel, PerTensor

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
