"""The settings of cifar10-small's sweep: one or two at a time are varied around the scale's own.

A training takes minutes here, so families are tuned by their beginnings: SSE by two cycles, CSGLD by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import lpe
from lpe.ensembles.base import Ensemble
from reproduce.study.run import Run
from reproduce.study.scale import Setting, Substrate

MEMBERS = 10

Changes = tuple[dict[str, Any], ...]
Made = tuple[Ensemble, Ensemble, Mapping[str, float]]

SGD: Changes = (
    {"learning_rate": 0.02},
    {"learning_rate": 0.1},
    {"weight_decay": 2e-3},
    {"weight_decay": 5e-3},
    {"learning_rate": 0.1, "weight_decay": 2e-3},
)
SWAG: Changes = ({"learning_rate": 0.01}, {"learning_rate": 0.05})
IVON: Changes = (
    {"temperature": 0.3},
    {"temperature": 0.1},
    {"temperature": 0.03},
    {"learning_rate": 0.3},
    {"learning_rate": 0.3, "temperature": 0.1},
    {"weight_decay": 3e-3},
)
SSE: Changes = ({"learning_rate": 0.02}, {"learning_rate": 0.1})
CSGLD: Changes = (
    {"temperature": 0.1},
    {"temperature": 0.01},
    {"sampling_rate": 0.05},
    {"sampling_rate": 0.05, "temperature": 0.1},
)
BE: Changes = ({"learning_rate": 0.1}, {"std": 0.1})
VIT: Changes = ({"learning_rate": 0.01}, {"learning_rate": 0.05}, {"weight_decay": 5e-3})
STDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06)
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


def _words(change: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in change.items())


def _known(info: Mapping[str, Any]) -> dict[str, float]:
    """Return what a training's information says of its posterior, by column of the sweep."""
    known = {name: info[name] for name in ("std_over_forgetting", "std_over_expected") if name in info}
    if "variance_share" in info:
        known["variance_share"] = info["variance_share"]["typical"]
    return known


def settings(main: Substrate, vits: Sequence[Substrate], run: Run, seed: int) -> Iterator[Setting]:
    """Yield every setting of one tuning seed.

    Args:
        main: with the points and families that are tuned. vits: of which the second largest is tuned for all.
    """
    data = main.source.load(seed).tuning
    vit = vits[-2]

    def point_made(substrate: Substrate, recipe: Any) -> Made:
        solution = recipe.point(run, substrate, seed)
        single = lpe.DeepEnsemble([solution.net])
        ensemble = solution.posterior(MEMBERS, seed) if solution.posterior else single
        return single, ensemble, _known(solution.info)

    def family_made(recipe: Any) -> Made:
        family = recipe.family(run, main, seed)
        ensemble = family.make(seed)
        return lpe.DeepEnsemble([ensemble[0]]), ensemble, _known(family.info)

    sse, csgld = main.families["SSE"], main.families["CSGLD"]
    tuned: tuple[tuple[str, Changes, Any, Callable[[Any], Made]], ...] = (
        ("SGD", SGD, main.points["SGD"], partial(point_made, main)),
        ("SWAG", SWAG, main.points["SWAG"], partial(point_made, main)),
        ("IVON", IVON, main.points["IVON"], partial(point_made, main)),
        # A cycle does not depend on how many follow.
        ("SSE", SSE, replace(sse, cycles=2), family_made),  # type: ignore[type-var]
        ("CSGLD", CSGLD, replace(csgld, cycles=1), family_made),  # type: ignore[type-var]
        ("BE", BE, main.families["BE"], family_made),
        (vit.short, VIT, vit.points["SGD"], partial(point_made, vit)),
    )
    for name, changes, recipe, made in tuned:
        keys = dict.fromkeys(key for change in changes for key in change)
        for change in ({}, *changes):
            changed = replace(recipe, **change)
            # Named by the values: a row stays true when another setting is chosen.
            words = _words({key: getattr(changed, key) for key in keys})
            yield Setting(name, words, not change, partial(made, changed), data)

    def around(name: str, make: Callable[..., Ensemble]) -> Made:
        net = main.point(run, name, seed).net
        return lpe.DeepEnsemble([net]), make(net), {}

    for name in main.points:
        for bits in range(2, 9):
            low = partial(lpe.LowPrecisionEnsemble, system=lpe.Int(bits), size=MEMBERS, seed=seed)
            # The bits are one number for all points: none is a point's own.
            yield Setting(f"LPE-BSR at {name}", f"INT-{bits}", False, partial(around, name, low), data)
    assert main.rivals is not None
    for std in STDS:
        noisy = partial(lpe.GaussianEnsemble, system=lpe.Int(5), size=MEMBERS, seed=seed, std=std)
        yield Setting("Gaussian", f"std {std}", std in main.rivals.stds, partial(around, "SGD", noisy), data)
    for rate in RATES:
        masked = partial(lpe.MCDropoutEnsemble, rate=rate, size=MEMBERS, seed=seed)
        kept = rate in main.rivals.rates
        yield Setting("MC-dropout", f"rate {rate}", kept, partial(around, "SGD", masked), data)
