"""What the sweeps of all scales share: settings around a scale's own, and how each is made.

What is measured of a setting is in ``reproduce.tune``. Nothing here is in a key: what a sweep trains is keyed
by its recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lpe
from lpe.ensembles.base import Ensemble
from reproduce.study.run import Run
from reproduce.study.scale import Setting, Substrate, TestData

MEMBERS = 10
"""Members of what is drawn from one network or one posterior."""
BITS = range(2, 9)
SPREAD_BITS = 8
"""Width of the codes whose step is spread."""

Changes = tuple[dict[str, Any], ...]
Made = tuple[Ensemble, Ensemble, Mapping[str, float]]
"""The single model, the ensemble, and what is known of its posterior; see :class:`Setting`."""


def words_of(change: Mapping[str, Any]) -> str:
    """Return the words of a change: "learning_rate 0.1, weight_decay 0.002"."""
    return ", ".join(f"{key} {value}" for key, value in change.items())


def known_of(info: Mapping[str, Any]) -> dict[str, float]:
    """Return what a training's information says of its posterior, by column of the sweep."""
    known = {name: info[name] for name in ("std_over_forgetting", "std_over_expected") if name in info}
    if "variance_share" in info:
        known["variance_share"] = info["variance_share"]["typical"]
    return known


@dataclass(frozen=True)
class Tuning:
    """The settings of one substrate at one tuning seed.

    Args:
        run: that trains. data: the examples that decide.
    """

    run: Run
    substrate: Substrate
    seed: int
    data: TestData

    def point(self, recipe: Any) -> Made:
        """Train a point; its ensemble is drawn from its posterior where it has one."""
        solution = recipe.point(self.run, self.substrate, self.seed)
        single = lpe.DeepEnsemble([solution.net])
        ensemble = solution.posterior(MEMBERS, self.seed) if solution.posterior else single
        return single, ensemble, known_of(solution.info)

    def family(self, recipe: Any) -> Made:
        """Train a family; the single model is its first member."""
        family = recipe.family(self.run, self.substrate, self.seed)
        ensemble = family.make(self.seed)
        return lpe.DeepEnsemble([ensemble[0]]), ensemble, known_of(family.info)

    def around(self, name: str, make: Callable[..., Ensemble]) -> Made:
        """Draw an ensemble around the point of that name."""
        net = self.substrate.point(self.run, name, self.seed).net
        return lpe.DeepEnsemble([net]), make(net, size=MEMBERS, seed=self.seed), {}

    def varied(
        self, method: str, changes: Changes, recipe: Any, make: Callable[[Any], Made]
    ) -> Iterator[Setting]:
        """Yield the scale's own setting of a recipe, and each change of it."""
        keys = dict.fromkeys(key for change in changes for key in change)
        for change in ({}, *changes):
            changed = replace(recipe, **change)
            # Named by the values: a row stays true when another setting is chosen.
            words = words_of({key: getattr(changed, key) for key in keys})
            yield Setting(method, words, not change, partial(make, changed), self.data)

    def low_precision(self) -> Iterator[Setting]:
        """Yield LPE-BSR of every width at every point."""
        for name in self.substrate.points:
            for bits in BITS:
                low = partial(lpe.LowPrecisionEnsemble, system=lpe.Int(bits))
                # The bits are one number for all points: none is a point's own.
                make = partial(self.around, name, low)
                yield Setting(f"LPE-BSR at {name}", f"INT-{bits}", False, make, self.data)

    def spread(self, spreads: Sequence[float]) -> Iterator[Setting]:
        """Yield LPE-BSR of codes whose step is spread, around the point estimate.

        Args:
            spreads: as many as stds of noise, so that both are tuned by as many ensembles.
        """
        for spread in spreads:
            low = partial(lpe.LowPrecisionEnsemble, system=lpe.Int(SPREAD_BITS, spread=spread))
            make = partial(self.around, self.substrate.estimate, low)
            # Every run chooses its own: none is a scale's.
            yield Setting("LPE-BSR, spread", f"spread {spread:g}", False, make, self.data)

    def rivals(self, stds: Sequence[float], rates: Sequence[float], prefix: str = "") -> Iterator[Setting]:
        """Yield noise and dropout around the point estimate.

        Args:
            stds: of Gaussian noise. rates: of MC-dropout. prefix: of the methods' names.
        """
        of, estimate = self.substrate.rivals, self.substrate.estimate
        for std in stds:
            noisy = partial(lpe.GaussianEnsemble, system=lpe.Int(5), std=std)
            kept = of is not None and std in of.stds
            make = partial(self.around, estimate, noisy)
            yield Setting(f"{prefix}Gaussian", f"std {std}", kept, make, self.data)
        for rate in rates:
            masked = partial(lpe.MCDropoutEnsemble, rate=rate)
            kept = of is not None and rate in of.rates
            make = partial(self.around, estimate, masked)
            yield Setting(f"{prefix}MC-dropout", f"rate {rate}", kept, make, self.data)
