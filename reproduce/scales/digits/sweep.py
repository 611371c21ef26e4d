"""The settings of the digits' sweep: one at a time is varied around the scale's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
# A colder posterior has the lower NLL, and is less what the curvature asks for: see reproduce.tune's BOUNDS.
IVON: Changes = (
    {"temperature": 0.01},
    {"temperature": 0.003},
    {"learning_rate": 0.1},
    {"learning_rate": 0.1, "temperature": 0.01},
    {"learning_rate": 0.1, "temperature": 0.003},
)
SSE: Changes = (
    {"learning_rate": 0.0125},
    {"learning_rate": 0.05},
)
CSGLD: Changes = (
    {"temperature": 0.003},
    {"temperature": 0.0003},
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
    return ", ".join(f"{key} {value}" for key, value in change.items())


def _known(info: Mapping[str, Any]) -> dict[str, float]:
    """Return what a training's information says of its posterior, by column of the sweep."""
    known = {name: info[name] for name in ("std_over_forgetting", "std_over_expected") if name in info}
    if "variance_share" in info:
        known["variance_share"] = info["variance_share"]["typical"]
    return known


def settings(main: Substrate, clip: Substrate, run: Run, seed: int) -> Iterator[Setting]:
    """Yield every setting of one tuning seed.

    Args:
        main: with the points and families that are tuned. clip: the CLIP that is.
    """
    data = main.source.load(seed).tuning

    def point_made(substrate: Substrate, recipe: Any) -> Made:
        solution = recipe.point(run, substrate, seed)
        single = lpe.DeepEnsemble([solution.net])
        ensemble = solution.posterior(MEMBERS, seed) if solution.posterior else single
        return single, ensemble, _known(solution.info)

    def family_made(recipe: Any) -> Made:
        family = recipe.family(run, main, seed)
        ensemble = family.make(seed)
        return lpe.DeepEnsemble([ensemble[0]]), ensemble, _known(family.info)

    start: Any = main.start
    for change in PRE_TRAINING:
        changed = replace(main, start=replace(start, **change))
        make = partial(point_made, changed, main.points["SGD"])
        yield Setting("SGD", f"pre-training: {_words(change)}", False, make, data)
    csgld: Any = main.families["CSGLD"]
    tuned: tuple[tuple[str, Changes, Any, Callable[[Any], Made]], ...] = (
        ("SGD", SGD, main.points["SGD"], partial(point_made, main)),
        ("SWAG", SWAG, main.points["SWAG"], partial(point_made, main)),
        ("IVON", IVON, main.points["IVON"], partial(point_made, main)),
        ("SSE", SSE, main.families["SSE"], family_made),
        # By its first cycle alone: a cycle does not depend on how many follow.
        ("CSGLD", CSGLD, replace(csgld, cycles=1), family_made),
        ("BE", BE, main.families["BE"], family_made),
    )
    for name, changes, recipe, made in tuned:
        keys = dict.fromkeys(key for change in changes for key in change)
        for change in ({}, *changes):
            changed_recipe = replace(recipe, **change)
            # Named by the values: a row stays true when another setting is chosen.
            words = _words({key: getattr(changed_recipe, key) for key in keys})
            yield Setting(name, words, not change, partial(made, changed_recipe), data)

    def around(name: str, make: Callable[..., Ensemble]) -> Made:
        net = main.point(run, name, seed).net
        return lpe.DeepEnsemble([net]), make(net), {}

    for name in main.points:
        for bits in range(2, 9):
            low = partial(lpe.LowPrecisionEnsemble, system=lpe.Int(bits), size=MEMBERS, seed=seed)
            # The bits are one number for all points: none is a point's own.
            yield Setting(f"LPE-BSR at {name}", f"INT-{bits}", False, partial(around, name, low), data)
    for std in STDS:
        noisy = partial(lpe.GaussianEnsemble, system=lpe.Int(5), size=MEMBERS, seed=seed, std=std)
        kept = main.rivals is not None and std in main.rivals.stds
        yield Setting("Gaussian", f"std {std}", kept, partial(around, "SGD", noisy), data)
    for rate in RATES:
        masked = partial(lpe.MCDropoutEnsemble, rate=rate, size=MEMBERS, seed=seed)
        kept = main.rivals is not None and rate in main.rivals.rates
        yield Setting("MC-dropout", f"rate {rate}", kept, partial(around, "SGD", masked), data)
    yield from _clip_settings(clip, run, seed)


def _clip_settings(clip: Substrate, run: Run, seed: int) -> Iterator[Setting]:
    """Yield the settings of a digits CLIP: its training, noise and dropout."""
    recipe: Any = clip.points["SGD"]
    data = clip.source.load(seed).tuning

    def made(changed: Any, ensemble: Callable[..., Ensemble] | None) -> Made:
        net = changed.point(run, clip, seed).net
        single = lpe.DeepEnsemble([net])
        return single, single if ensemble is None else ensemble(net, size=MEMBERS, seed=seed), {}

    keys = dict.fromkeys(key for change in CLIP for key in change)
    for change in ({}, *CLIP):
        changed = replace(recipe, **change)
        words = _words({key: getattr(changed, key) for key in keys})
        yield Setting(clip.short, words, not change, partial(made, changed, None), data)
    for std in CLIP_STDS:
        noisy = partial(lpe.GaussianEnsemble, system=lpe.Int(5), std=std)
        kept = clip.rivals is not None and std in clip.rivals.stds
        yield Setting(f"{clip.short} Gaussian", f"std {std}", kept, partial(made, recipe, noisy), data)
    for rate in RATES:
        masked = partial(lpe.MCDropoutEnsemble, rate=rate)
        kept = clip.rivals is not None and rate in clip.rivals.rates
        yield Setting(f"{clip.short} MC-dropout", f"rate {rate}", kept, partial(made, recipe, masked), data)
