"""Units: what is trained and measured in one go."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from reproduce.study.scale import Scale, Settings, Substrate

ROUNDING = "rounding"
LARGE = "large"
AXES = "scale axes"
DISAGREEMENT_UNIT = "disagreement"
COST = "cost"
COST_RIVALS = "cost rivals"
PREDICTIONS = "predictions"
SPREAD = "spread"
WHY = "why"
BEYOND = (PREDICTIONS, SPREAD, WHY)
"""Units of what goes beyond the paper, whose rows depend on ``Scale.beyond``."""


@dataclass(frozen=True)
class Unit:
    """A unit of what is trained and measured in one go.

    Args:
        substrate: its name. seed: training seed.
        what: a point ("SGD", …), a family ("DE", …), ROUNDING (tables 1 and 4), LARGE (figure 7), AXES (table
            7), DISAGREEMENT_UNIT (claim C3), COST or COST_RIVALS (the cost picture), or one of BEYOND.
    """

    substrate: str
    what: str
    seed: int

    def __str__(self) -> str:
        return f"{self.substrate}: {self.what}, seed {self.seed}"

    @property
    def file(self) -> str:
        """The name of its working record, before the key."""
        return re.sub(r"[^\w.+-]+", "-", f"{self.substrate}-{self.what}") + f"-seed{self.seed}"


def units(substrates: Iterable[Substrate | None], whats: Iterable[str], seeds: Iterable[int]) -> list[Unit]:
    """List a unit for every substrate, what and seed; seeds that the substrate does not have are left out.

    The seeds are the innermost loop, so that units that stand together share no training: processes that take
    one each do not wait for one another.
    """
    whats, seeds = list(whats), list(seeds)
    there = [substrate for substrate in substrates if substrate is not None]
    return [
        Unit(each.name, what, seed)
        for each in there
        for what in whats
        for seed in seeds
        if seed < each.most_seeds.get(what, seed + 1)
    ]


def beyond_units(chosen: Scale, what: str, seeds: Iterable[int]) -> list[Unit]:
    """List the units of what goes beyond the paper: at the first training seeds that the point estimate has.

    Args:
        what: one of BEYOND. seeds: of the run; those that ``Scale.beyond`` leaves out are left out.
    """
    main, beyond = chosen.main, chosen.beyond
    if main is None or beyond is None or not main.points:
        return []
    most = min(beyond.seeds, main.most_seeds.get(main.estimate, beyond.seeds))
    return units([main], [what], (seed for seed in seeds if seed < most))


def draw_seed(training_seed: int, draw: int) -> int:
    """Return the seed of a rounding or posterior draw: another for every training seed."""
    return 1000 * training_seed + draw


def reported_sizes(settings: Settings, most: int) -> list[int]:
    """Return the sizes at which every metric is kept: the tables', the claims' and the largest."""
    chosen = {*settings.table_sizes, settings.claim_size, settings.expansion, most}
    return sorted(size for size in chosen if size <= most)
