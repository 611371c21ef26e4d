"""Units: what is trained and measured in one go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from reproduce.scales.paper.models import PaperScale
from reproduce.study.scale import Scale
from reproduce.study.session import Session

AXES = "scale axes"


COST = "cost"


COST_RIVALS = "cost rivals"


@dataclass(frozen=True)
class Unit:
    """A unit of what is trained and measured in one go.

    Args:
        what: a point ("SGD", "SWAG", "IVON"), a family ("DE", …), a network of table 1 ("ViT-T", …), "scale
            axes" (table 7), "disagreement" (claim C3), a CLIP of table 6 ("CLIP-L", …), or what the cost
            picture shows ("cost", "cost rivals").
        seed: training seed.
    """

    what: str
    seed: int

    @property
    def file(self) -> str:
        """The name of its working record."""
        return f"{self.what.replace(' ', '-')}-seed{self.seed}.csv"


def units(whats: Iterable[str], seeds: Iterable[int]) -> list[Unit]:
    """List every pair as a unit, the seeds inside: units that stand together share no training."""
    seeds = list(seeds)
    return [Unit(what, seed) for what in whats for seed in seeds]


def network_units(scale: Scale | PaperScale) -> list[str]:
    """Return the names of the units of table 1's networks."""
    return [f"ViT-{size}" for size in scale.networks]


def large_units(session: Session[Any]) -> list[Unit]:
    """Return the units of figure 7's models."""
    scale = session.scale
    return [
        *units([f"CLIP-{size}" for size in scale.clips], session.seeds),
        *units([f"Llama-{size}" for size in scale.llamas], session.seeds),
    ]


def clip_units(scale: Scale) -> list[str]:
    """Return the names of the units of the digits CLIPs, the smallest first."""
    return [f"CLIP-{size}" for size in scale.clips]


def draw_seed(training_seed: int, draw: int) -> int:
    """Return the seed of a rounding or posterior draw: another for every training seed."""
    return 1000 * training_seed + draw


def reported_sizes(scale: Scale | PaperScale, most: int) -> list[int]:
    """Return the sizes at which every metric is kept: the tables', the claims' and the largest."""
    of_families = (scale.members, scale.expansion) if isinstance(scale, Scale) else ()
    chosen = {*scale.table_sizes, scale.claim_size, *of_families, most}
    return sorted(size for size in chosen if size <= most)
