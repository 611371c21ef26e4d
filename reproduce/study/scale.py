"""What a scale is: the names that figures, tables, claims and measuring ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from lpe.ensembles.base import Ensemble
from lpe.number_systems.grids import ScaleAxis
from lpe.substrates.arithmetic import LlamaShape
from lpe.substrates.captioned_digits import DigitsCLIP
from lpe.substrates.digits import DigitsNetwork, Jitter
from reproduce.study.recipes import (
    BatchEnsembleTraining,
    CLIPTraining,
    CyclicalSGLDTraining,
    IVONTraining,
    LlamaTraining,
    PreTraining,
    SGDTraining,
    SnapshotTraining,
    SWAGTraining,
)


@dataclass(frozen=True)
class Landscape:
    """Settings of the landscapes and member clouds of one training seed."""

    seed: int = 0
    resolution: int = 21
    margin: float = 0.3
    cloud: int = 30


class Reported(Protocol):
    """The part of a scale that claims, tables and figures read, whether it trains networks here or not."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def standing(self) -> str: ...
    @property
    def substrate(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def table_sizes(self) -> tuple[int, ...]: ...
    @property
    def draws(self) -> int: ...
    @property
    def bits(self) -> tuple[int, ...]: ...
    @property
    def best_bits(self) -> int: ...
    @property
    def claim_size(self) -> int: ...
    @property
    def memory_models(self) -> int: ...
    @property
    def networks(self) -> Mapping[str, object]: ...
    @property
    def compared_clip(self) -> str: ...
    @property
    def large_networks(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def large_bits(self) -> int: ...


@dataclass(frozen=True)
class Scale:
    """All that determines the numbers of a scale.

    Args:
        unit: what an interval is of, a key of :data:`reproduce.judge.verdicts.UNITS`. standing: a sentence on
            what its verdicts are worth; "": nothing is to be said.
    """

    name: str
    unit: str
    standing: str
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
    snapshot: SnapshotTraining
    cyclical_sgld: CyclicalSGLDTraining
    batch_ensemble: BatchEnsembleTraining
    members: int
    draws_per_posterior: int
    expansion: int
    gaussian_std: float
    dropout_rate: float
    memory_models: int
    claim_seeds: int
    cost_seeds: int
    networks: dict[str, DigitsNetwork]
    table_bits: tuple[int, ...]
    scale_axes: tuple[ScaleAxis, ...]
    axis_bits: tuple[int, ...]
    number_systems: tuple[str, ...]
    large_bits: int
    llama: LlamaTraining
    llamas: dict[str, LlamaShape]
    clip: CLIPTraining
    clips: dict[str, DigitsCLIP]
    clip_gaussian_std: float
    clip_dropout_rate: float

    @property
    def compared_clip(self) -> str:
        """The substrate of table 6."""
        return f"{self.name} CLIP-{list(self.clips)[-1]}"

    @property
    def large_networks(self) -> dict[str, tuple[str, ...]]:
        """The substrates of figure 7, the smallest first, by what they have in common."""
        kinds: dict[str, Iterable[str]] = {"CLIP": self.clips, "Llama": self.llamas}
        return {kind: tuple(f"{self.name} {kind}-{size}" for size in of) for kind, of in kinds.items()}


@dataclass(frozen=True)
class Point:
    """A solution: its network in eval mode, its posterior where it has one, and what it cost.

    Args:
        posterior: (size, seed) → ensemble of draws; None for a point estimate.
        backward_passes: of the pre-training and the fine-tuning, one minibatch each.
        info: what the store keeps beside the weights.
    """

    name: str
    net: nn.Module
    posterior: Callable[[int, int], Ensemble] | None
    backward_passes: int
    info: Mapping[str, Any]
