"""Every hyper-parameter of a scale, in one place, each with its source.

"sweep" as a source means: chosen by validation NLL in the sweep that ``python -m reproduce.tune`` runs and
``figures/digits/sweep.csv`` records. Nothing is ever chosen on test images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lpe.errors import InputError
from lpe.substrates.digits import DigitsNetwork, Jitter


@dataclass(frozen=True)
class PreTraining:
    """An auxiliary task on the training images alone, by AdamW with warm-up and cosine."""

    task: str = "instances"
    epochs: int = 50
    batch: int = 50
    learning_rate: float = 3e-3
    weight_decay: float = 0.05


@dataclass(frozen=True)
class SGDTraining:
    """Fine-tuning by SGD with momentum, warm-up and cosine: the point estimate."""

    epochs: int = 40
    batch: int = 25
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float | None = None


@dataclass(frozen=True)
class SWAGTraining:
    """SGD's fine-tuning that goes over to a constant learning rate and collects an iterate an epoch."""

    sgd: SGDTraining = field(default_factory=SGDTraining)
    start_epoch: int = 20
    learning_rate: float = 0.02
    rank: int = 20
    scale: float = 0.5


@dataclass(frozen=True)
class IVONTraining:
    """Fine-tuning by IVON with warm-up and cosine; ess is the number of training images."""

    epochs: int = 40
    batch: int = 25
    learning_rate: float = 0.2
    hess_init: float = 2.0
    beta1: float = 0.9
    beta2: float = 0.9995
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Landscape:
    """How landscapes and member clouds of one training seed are measured."""

    seed: int = 0
    resolution: int = 21
    margin: float = 0.3
    cloud: int = 30


@dataclass(frozen=True)
class Scale:
    """All that determines the numbers of a scale."""

    name: str
    substrate: str
    threads: int
    seeds: int
    network: DigitsNetwork
    jitter: Jitter
    pre_training: PreTraining
    sgd: SGDTraining
    swag: SWAGTraining
    ivon: IVONTraining
    size: int
    table_sizes: tuple[int, ...]
    draws: int
    bits: tuple[int, ...]
    best_bits: int
    claim_size: int
    landscape: Landscape


DIGITS = Scale(
    name="digits",
    substrate="digits ViT",
    threads=1,
    seeds=5,
    network=DigitsNetwork(patch=4, width=64, depth=2, heads=4, mlp_ratio=2.0, position_std=1.0),
    jitter=Jitter(copies=24, degrees=10.0, scaling=0.1, pixels=1.0),
    pre_training=PreTraining(),
    sgd=SGDTraining(),
    swag=SWAGTraining(),
    ivon=IVONTraining(),
    size=20,
    table_sizes=(1, 5, 10, 20),
    draws=3,
    bits=(5, 4, 3),
    best_bits=5,
    claim_size=10,
    landscape=Landscape(),
)

SCALES = {"digits": DIGITS}


def scale(name: str) -> Scale:
    """The scale of that name; InputError for another."""
    if name not in SCALES:
        raise InputError(f"unknown scale {name!r}; there are {', '.join(SCALES)}")
    return SCALES[name]
