"""The unit of the continuous knob: the spread of BSR's step, and beside it the std of Gaussian noise.

Every value of both grids is measured on the test examples. What the tuning examples chose of each has rows of
its own: those of the chosen value once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import lpe
from lpe.ensembles.base import Ensemble
from lpe.modules import dtype_name
from reproduce.study import examples
from reproduce.study.beyond.names import LPE_BSR, TUNED_SPREAD, TUNED_STD, noise_name, shown
from reproduce.study.beyond.tuning import KNOBS, SPREAD_KNOB, STD_KNOB, beyond_of, tuned
from reproduce.study.measurer import Measurer
from reproduce.study.records import SETTING
from reproduce.study.scale import Point
from reproduce.study.session import Session
from reproduce.study.units import SPREAD, Unit


def measure_spread(session: Session, unit: Unit) -> None:
    """Measure the network as it is, LPE-BSR at every spread and Gaussian noise of every std; name the tuned.

    Members are those of ``Beyond.size``, their batch-norm statistics re-estimated where there are any.

    Raises:
        InputError: the scale has no ``beyond``.
    """
    beyond = beyond_of(session)
    substrate = session.scale.substrates[unit.substrate]
    solution = substrate.point(session, substrate.estimate, unit.seed)
    # Under a name of their own: the same numbers of another unit may differ in their last bits.
    measurer = Measurer(session, unit, substrate.estimate, shown(unit.substrate, SPREAD))
    measurer.single(solution.net, solution.backward_passes)
    unrounded = dtype_name(solution.net).lower()
    chosen = tuned(session, substrate, unit.seed)
    spreads = [
        (spread, LPE_BSR, lpe.Int(beyond.spread_bits, spread=spread).name) for spread in beyond.spreads
    ]
    _sweep(measurer, solution, SPREAD_KNOB, beyond.spread_bits, beyond.size, spreads, "bernoulli")
    noises = [(std, noise_name(std), unrounded) for std in beyond.stds]
    _sweep(measurer, solution, STD_KNOB, beyond.spread_bits, beyond.size, noises, "")
    _named_as_tuned(
        measurer, spreads, chosen.spread, TUNED_SPREAD, lpe.Int(beyond.spread_bits).name, "bernoulli"
    )
    _named_as_tuned(measurer, noises, chosen.std, TUNED_STD, unrounded, "")


def _sweep(
    measurer: Measurer,
    solution: Point,
    knob: str,
    bits: int,
    size: int,
    grid: Sequence[tuple[float, str, str]],
    rounding: str,
) -> None:
    """Measure an ensemble for each value of a grid; ``grid``: value, method and number system."""
    statistics = measurer.data.statistics
    for value, method, system in grid:

        def make(seed: int, value: float = value) -> Ensemble:
            ensemble = KNOBS[knob](solution.net, bits, value, size, seed, statistics)
            ensemble.training_budget = solution.backward_passes
            return ensemble

        measurer.measure(method, system, rounding, make)


def _named_as_tuned(
    measurer: Measurer,
    grid: Sequence[tuple[float, str, str]],
    value: float,
    method: str,
    system: str,
    rounding: str,
) -> None:
    """Give the rows of a grid's value, and their examples' values, a second name: of what is tuned."""
    if not measurer.lacks(method, system, rounding):
        return
    _, of_method, of_system = next(each for each in grid if each[0] == value)
    named = {"method": of_method, "number_system": of_system, "rounding": rounding}
    again = {"method": method, "number_system": system, "rounding": rounding}
    examples.keep_again(measurer.working, {**measurer.common, **named}, {**measurer.common, **again})
    columns = ["size", "metric", "value", "memory_bits", "backward_passes"]
    found = measurer.records.select(**measurer.common, **named)[columns]
    rows: list[dict[str, object]] = [
        {str(column): row[column] for column in columns} for row in found.to_dict("records")
    ]
    last = rows[-1]
    setting = {**last, "metric": SETTING, "value": value, "size": int(found["size"].max()), "memory_bits": 0}
    measurer.add(method, system, rounding, [*rows, setting])
