"""The settings of the digits' sweep: one at a time is varied around the scale's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from reproduce.study.run import Run
from reproduce.study.scale import Setting, Substrate
from reproduce.study.sweeps import Changes, Tuning, words_of

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
SPREADS = (4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1)


def settings(main: Substrate, clip: Substrate, run: Run, seed: int) -> Iterator[Setting]:
    """Yield every setting of one tuning seed.

    Args:
        main: with the points and families that are tuned. clip: the CLIP that is.
    """
    tuning = Tuning(run, main, seed, main.source.load(seed).tuning)
    start: Any = main.start
    for change in PRE_TRAINING:
        changed = replace(tuning, substrate=replace(main, start=replace(start, **change)))
        make = partial(changed.point, main.points["SGD"])
        yield Setting("SGD", f"pre-training: {words_of(change)}", False, make, tuning.data)
    for name, changes in (("SGD", SGD), ("SWAG", SWAG), ("IVON", IVON)):
        yield from tuning.varied(name, changes, main.points[name], tuning.point)
    csgld: Any = main.families["CSGLD"]
    for name, changes, recipe in (
        ("SSE", SSE, main.families["SSE"]),
        # By its first cycle alone: a cycle does not depend on how many follow.
        ("CSGLD", CSGLD, replace(csgld, cycles=1)),
        ("BE", BE, main.families["BE"]),
    ):
        yield from tuning.varied(name, changes, recipe, tuning.family)
    yield from tuning.low_precision()
    yield from tuning.spread(SPREADS)
    yield from tuning.rivals(STDS, RATES)
    of_clip = Tuning(run, clip, seed, clip.source.load(seed).tuning)
    yield from of_clip.varied(clip.short, CLIP, clip.points["SGD"], of_clip.point)
    yield from of_clip.rivals(CLIP_STDS, RATES, prefix=f"{clip.short} ")
