"""The settings of cifar10-small's sweep: one or two at a time are varied around the scale's own.

A training takes minutes here, so families are tuned by less: SSE by two cycles, CSGLD by one, BE by two
members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from reproduce.study.run import Run
from reproduce.study.scale import Setting, Substrate
from reproduce.study.sweeps import Changes, Tuning

SGD: Changes = tuple(
    {"learning_rate": rate, "weight_decay": decay}
    for rate, decay in (
        (0.05, 5e-4),
        (0.02, 5e-4),
        (0.1, 5e-4),
        (0.05, 2e-3),
        (0.05, 1e-2),
        (0.1, 2e-3),
        (0.1, 5e-3),
    )
)
SWAG: Changes = ({"learning_rate": 0.01}, {"learning_rate": 0.02}, {"learning_rate": 0.05})
IVON: Changes = tuple(
    {"temperature": temperature, "learning_rate": rate}
    for temperature, rate in (
        (1.0, 0.1),
        (0.3, 0.1),
        (0.1, 0.1),
        (0.03, 0.1),
        (0.01, 0.1),
        (0.003, 0.1),
        (0.001, 0.1),
        (0.01, 0.3),
    )
)
SSE: Changes = ({"learning_rate": 0.02}, {"learning_rate": 0.1})
CSGLD: Changes = tuple(
    {"temperature": temperature, "learning_rate": exploring, "sampling_rate": rate, "sampling_steps": steps}
    for temperature, exploring, rate, steps in (
        (0.01, 0.2, 0.1, 1000),
        (0.1, 0.2, 0.1, 1000),
        (0.001, 0.2, 0.1, 1000),
        (0.01, 0.2, 0.05, 1000),
        (0.001, 0.2, 0.05, 1000),
        (0.001, 0.5, 0.2, 1200),
        (0.01, 0.5, 0.3, 1000),
        (0.01, 0.5, 0.2, 1200),
    )
)
BE: Changes = ({"learning_rate": 0.1}, {"std": 0.1})
VIT: Changes = (
    {"learning_rate": 0.01},
    {"learning_rate": 0.02},
    {"learning_rate": 0.02, "weight_decay": 5e-3},
)
STDS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06)
SPREADS = (2.0, 4.0, 5.7, 8.0, 11.3, 16.0, 22.6)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


def settings(main: Substrate, vits: Sequence[Substrate], run: Run, seed: int) -> Iterator[Setting]:
    """Yield every setting of one tuning seed.

    Args:
        main: with the points and families that are tuned. vits: of which the second largest is tuned for all.
    """
    tuning = Tuning(run, main, seed, main.source.load(seed).tuning)
    for name, changes in (("SGD", SGD), ("SWAG", SWAG), ("IVON", IVON)):
        yield from tuning.varied(name, changes, main.points[name], tuning.point)
    sse: Any = main.families["SSE"]
    csgld: Any = main.families["CSGLD"]
    be: Any = main.families["BE"]
    for name, changes, recipe in (
        # A cycle does not depend on how many follow.
        ("SSE", SSE, replace(sse, cycles=2)),
        ("CSGLD", CSGLD, replace(csgld, cycles=1)),
        ("BE", BE, replace(be, members=2)),
    ):
        yield from tuning.varied(name, changes, recipe, tuning.family)
    # All substrates have the same images.
    of_vit = replace(tuning, substrate=vits[-2])
    yield from of_vit.varied(vits[-2].short, VIT, vits[-2].points["SGD"], of_vit.point)
    yield from tuning.low_precision()
    yield from tuning.spread(SPREADS)
    yield from tuning.rivals(STDS, RATES)
