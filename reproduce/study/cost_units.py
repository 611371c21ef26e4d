"""Units of the cost picture: the point estimate's ensembles, and what costs a training more."""

from __future__ import annotations

import torch

import lpe
from lpe.ensembles.base import Ensemble
from reproduce.study.cost_measures import (
    CASCADED,
    TARGETS,
    Known,
    cascade_predictions,
    known,
    known_point,
    low_precision_predictions,
    rows_of_predictions,
    single_predictions,
    size_predictions,
)
from reproduce.study.measurer import Measurer
from reproduce.study.scale import Data, Settings, saw_validation
from reproduce.study.session import Session
from reproduce.study.units import Unit

DEEP = "DE"


def few_members(settings: Settings) -> int:
    """Return the number of members of the smaller cascade: the tables' second size."""
    return settings.table_sizes[1]


def measure_cost(session: Session, unit: Unit) -> None:
    """Measure the point estimate and its low precision ensembles at one training seed."""
    settings, main = session.scale.settings, session.main
    measurer = Measurer(session, unit, main.estimate)
    data = measurer.data
    targets = torch.cat([targets for _, targets in data.test])
    solution = main.point(session, main.estimate, unit.seed)
    single = known_point(solution, data.validation, data.test)
    _add(measurer, rows_of_predictions([single_predictions(single)], targets))

    def know(ensemble: Ensemble) -> Known:
        return known(ensemble, data.validation, data.test)

    few = few_members(settings)
    for bits in settings.bits:
        drawn = (
            low_precision_predictions(
                solution.net, bits, settings.size, few, seed, single, know, data.statistics
            )
            for seed in measurer.draws
        )
        _add(measurer, rows_of_predictions(drawn, targets))


def measure_cost_rivals(session: Session, unit: Unit) -> None:
    """Measure what costs a training more: the next larger network, DE and its cascades.

    A cascade's window is chosen on validation examples: where members were trained on some, there is none.
    """
    scale, main = session.scale, session.main
    measurer = Measurer(session, unit, main.estimate)
    data = measurer.data
    targets = torch.cat([targets for _, targets in data.test])
    if (deep := known_deep(session, unit.seed, data)) is not None:
        predictions = [*size_predictions(DEEP, "fp32", "", deep)]
        if not saw_validation(main, DEEP):
            predictions += cascade_predictions(DEEP, "fp32", "", deep, None, TARGETS)
        _add(measurer, rows_of_predictions([predictions], targets))
    if (larger := scale.next_larger) is not None:
        found = larger.point(session, larger.estimate, unit.seed)
        of_larger = known_point(found, data.validation, data.test)
        single = [next(single_predictions(of_larger))]
        named = Measurer(session, unit, larger.estimate, larger.name)
        _add(named, rows_of_predictions([single], targets))


def known_deep(session: Session, seed: int, data: Data) -> Known | None:
    """Return the deep ensemble of a training seed; None where there is none."""
    main = session.main
    if DEEP not in main.families or seed >= main.most_seeds.get(DEEP, seed + 1):
        return None
    return known(main.family(session, DEEP, seed).make(0), data.validation, data.test)


def timed_low_precision(
    session: Session, seed: int, net: torch.nn.Module, draw: int
) -> list[tuple[Known, Known]]:
    """Return, of each bit width, LPE-BSR and RTN of a network, as cascades use them."""
    settings = session.scale.settings
    data = session.main.source.load(seed)
    found = []
    for bits in settings.bits:
        drawn, nearest = (
            lpe.LowPrecisionEnsemble(net, lpe.Int(bits), size, draw, rounding, batches=data.statistics)
            for size, rounding in ((settings.size, CASCADED), (1, "nearest"))
        )
        found.append((known(drawn, data.validation, data.test), known(nearest, data.validation, data.test)))
    return found


def _add(measurer: Measurer, rows: dict[tuple[str, str, str], list[dict[str, object]]]) -> None:
    for key, of_key in rows.items():
        measurer.add(*key, of_key)
