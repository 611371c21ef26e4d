"""The settings of the digits' sweep: one at a time is varied around the scale's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import lpe
from lpe.ensembles.base import Ensemble
from reproduce.study.run import Run
from reproduce.study.scale import Setting, Substrate

MEMBERS = 10

Changes = tuple[dict[str, Any], ...]

PRE_TRAINING: Changes = (
    {"epochs": 0},
    {"task": "rotations", "epochs": 12},
    {"epochs": 25},
    {"learning_rate": 1e-3},
    {"learning_rate": 6e-3},
)
SGD: Changes = (
    {"learning_rate": 0.025},
    {"learning_rate": 0.1},
    {"weight_decay": 1e-4},
    {"weight_decay": 2e-3},
)
SWAG: Changes = (
    {"learning_rate": 0.01},
    {"learning_rate": 0.05},
)
IVON: Changes = (
    {"learning_rate": 0.1},
    {"learning_rate": 0.5},
    {"hess_init": 1.0},
    {"hess_init": 5.0},
    {"beta2": 0.9999},
    {"weight_decay": 1e-4},
    {"weight_decay": 2e-3},
)
SSE: Changes = (
    {"learning_rate": 0.0125},
    {"learning_rate": 0.05},
)
CSGLD: Changes = (
    {"learning_rate": 0.125},
    {"learning_rate": 0.5},
    {"temperature": 0.1},
)
BE: Changes = (
    {"learning_rate": 0.1},
    {"std": 0.03},
    {"std": 0.3},
)
CLIP: Changes = (
    {"learning_rate": 7.5e-4},
    {"learning_rate": 3e-3},
    {"weight_decay": 0.01},
    {"weight_decay": 0.2},
    {"batch": 25, "epochs": 30},
)
STDS = (0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
CLIP_STDS = (0.001, 0.002, *STDS)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1)


def _words(change: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in change.items()) or "chosen"


def settings(main: Substrate, clip: Substrate, run: Run, seed: int) -> Iterator[Setting]:
    """Yield every setting of one tuning seed.

    Args:
        main: with the points and families that are tuned. clip: the CLIP that is.
    """
    data = main.source.load(seed).tuning

    def point_made(substrate: Substrate, name: str, recipe: Any) -> tuple[Ensemble, Ensemble]:
        solution = recipe.point(run, substrate, seed)
        single = lpe.DeepEnsemble([solution.net])
        return single, solution.posterior(MEMBERS, seed) if solution.posterior else single

    def family_made(recipe: Any) -> tuple[Ensemble, Ensemble]:
        ensemble = recipe.family(run, main, seed).make(seed)
        return lpe.DeepEnsemble([ensemble[0]]), ensemble

    start: Any = main.start
    for change in PRE_TRAINING:
        changed = replace(main, start=replace(start, **change))
        make = partial(point_made, changed, "SGD", main.points["SGD"])
        yield Setting("SGD", f"pre-training: {_words(change)}", make, data)
    for name, changes in (("SGD", SGD), ("SWAG", SWAG), ("IVON", IVON)):
        recipe: Any = main.points[name]
        for change in ({}, *changes):
            yield Setting(
                name, _words(change), partial(point_made, main, name, replace(recipe, **change)), data
            )
    for name, changes in (("SSE", SSE), ("CSGLD", CSGLD), ("BE", BE)):
        recipe = main.families[name]
        keys = dict.fromkeys(key for change in changes for key in change)
        for change in ({}, *changes):
            changed_recipe = replace(recipe, **change)
            # Named by the values: a row stays true when another setting is chosen.
            words = _words({key: getattr(changed_recipe, key) for key in keys})
            yield Setting(name, words, partial(family_made, changed_recipe), data)

    def around(name: str, make: Callable[..., Ensemble]) -> tuple[Ensemble, Ensemble]:
        net = main.point(run, name, seed).net
        return lpe.DeepEnsemble([net]), make(net)

    for name in main.points:
        for bits in range(2, 9):
            low = partial(lpe.LowPrecisionEnsemble, system=lpe.Int(bits), size=MEMBERS, seed=seed)
            yield Setting("LPE-BSR", f"INT-{bits} at {name}", partial(around, name, low), data)
    for std in STDS:
        noisy = partial(lpe.GaussianEnsemble, system=lpe.Int(5), size=MEMBERS, seed=seed, std=std)
        yield Setting("Gaussian", f"std {std}", partial(around, "SGD", noisy), data)
    for rate in RATES:
        masked = partial(lpe.MCDropoutEnsemble, rate=rate, size=MEMBERS, seed=seed)
        yield Setting("MC-dropout", f"rate {rate}", partial(around, "SGD", masked), data)
    yield from _clip_settings(clip, run, seed)


def _clip_settings(clip: Substrate, run: Run, seed: int) -> Iterator[Setting]:
    """Yield the settings of a digits CLIP: its training, noise and dropout."""
    recipe: Any = clip.points["SGD"]
    data = clip.source.load(seed).tuning

    def made(changed: Any, ensemble: Callable[..., Ensemble] | None) -> tuple[Ensemble, Ensemble]:
        net = changed.point(run, clip, seed).net
        single = lpe.DeepEnsemble([net])
        return single, single if ensemble is None else ensemble(net, size=MEMBERS, seed=seed)

    keys = dict.fromkeys(key for change in CLIP for key in change)
    for change in ({}, *CLIP):
        changed = replace(recipe, **change)
        words = _words({key: getattr(changed, key) for key in keys})
        yield Setting(clip.short, words, partial(made, changed, None), data)
    for std in CLIP_STDS:
        noisy = partial(lpe.GaussianEnsemble, system=lpe.Int(5), std=std)
        yield Setting(f"{clip.short} Gaussian", f"std {std}", partial(made, recipe, noisy), data)
    for rate in RATES:
        masked = partial(lpe.MCDropoutEnsemble, rate=rate)
        yield Setting(f"{clip.short} MC-dropout", f"rate {rate}", partial(made, recipe, masked), data)
