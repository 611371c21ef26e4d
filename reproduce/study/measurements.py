"""Measures units, which each find their trainings in the store, as rows of the record.

A unit has a working record of its own, so units run in any order, in one process or several; rows that are
there already are not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.modules import apply, dtype_name, with_tensors
from lpe.number_systems.naming import Systems
from lpe.records import Records
from lpe.store import Store
from lpe.writing import locked
from reproduce.study.beyond.methods import trained
from reproduce.study.beyond.predictions_unit import measure_predictions
from reproduce.study.beyond.spread_units import measure_spread
from reproduce.study.beyond.why_units import measure_why, points_of
from reproduce.study.cost_units import DEEP, measure_cost, measure_cost_rivals
from reproduce.study.costs import is_finished, measuring, remove_damaged
from reproduce.study.examples import place_of
from reproduce.study.families import (
    DeepEnsembleTraining,
    MultiPosteriorTraining,
    SnapshotTraining,
    stored_by_rtn,
    with_low_precision,
)
from reproduce.study.keys import data_hash, determinants
from reproduce.study.measurer import Measurer
from reproduce.study.mirrored import fetch_unit, send_unit
from reproduce.study.records import (
    DISAGREEMENT,
    EQUAL_BITS,
    SETTING,
    STD_OVER_FORGETTING,
    STORED_BITS,
    by_rtn,
)
from reproduce.study.scale import Batch, Point, Rivals, Scale, Substrate, TestData, digest_of, held
from reproduce.study.session import Session
from reproduce.study.units import (
    AXES,
    BEYOND,
    COST,
    COST_RIVALS,
    DISAGREEMENT_UNIT,
    LARGE,
    PREDICTIONS,
    ROUNDING,
    SPREAD,
    WHY,
    Unit,
    units,
)

SNAPSHOTS = "SSE"


def measure_point(session: Session, unit: Unit) -> None:
    """Measure the methods on one point of one training seed."""
    settings = session.scale.settings
    substrate = session.scale.substrates[unit.substrate]
    solution = substrate.point(session, unit.what, unit.seed)
    measurer = Measurer(session, unit, unit.what)
    statistics = measurer.data.statistics
    measurer.single(solution.net, solution.backward_passes)
    systems = [lpe.Int(bits) for bits in settings.bits]
    # What is compared with rivals is the estimate of the main network.
    compared = unit.what == substrate.estimate and substrate.rivals is not None
    size = settings.size
    if compared and settings.equal_bits:
        size = max(size, *(members for members, *_ in EQUAL_BITS))
    measurer.low_precision(solution.net, systems, size, solution.backward_passes)
    if compared and settings.equal_bits:
        _one_network(measurer, solution)
    if solution.posterior is not None:
        measurer.measure("BMA", "fp32", "", _budgeted(solution, partial(solution.posterior, settings.size)))
        if STD_OVER_FORGETTING in solution.info:
            measurer.known("BMA", STD_OVER_FORGETTING, float(solution.info[STD_OVER_FORGETTING]))
        draws = partial(_posterior_of, solution)
        measurer.file_bytes("BMA", "fp32", "", _budgeted(solution, draws))
    for system in systems:
        sized = partial(_low_precision_of, solution.net, system)
        measurer.file_bytes("LPE-BSR", system.name, "bernoulli", _budgeted(solution, sized))
    if compared and substrate.rivals is not None:
        _tuned_rivals(measurer, solution, substrate.rivals, settings.size)
        for system in systems:
            matched = partial(lpe.GaussianEnsemble, solution.net, system, settings.size, batches=statistics)
            measurer.measure("Gaussian, matched", system.name, "", _budgeted(solution, matched))


class _InBFloat16(lpe.DeepEnsemble):
    """One network in bfloat16: its tensors are float32, of bfloat16's values."""

    def __init__(self, net: nn.Module) -> None:
        rounded = {
            name: value.to(torch.bfloat16).to(value.dtype)
            for name, value in net.state_dict().items()
            if value.is_floating_point()
        }
        super().__init__([with_tensors(net, rounded)])

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return 16 bits a number."""
        return super().memory_bits(n, storage) // 2


def _one_network(measurer: Measurer, solution: Point) -> None:
    """Measure one network in the number systems that claim C13 compares members with, rounded to nearest."""
    for name in dict.fromkeys(system for _, _, system, _ in EQUAL_BITS):

        def make(_: int, name: str = name) -> Ensemble:
            if name == "bf16":
                return _InBFloat16(solution.net)
            return lpe.LowPrecisionEnsemble(solution.net, lpe.number_system(name), 1, 0, "nearest")

        measurer.measure("RTN", name, "nearest", _budgeted(solution, make), drawn=False)


def _tuned_rivals(measurer: Measurer, solution: Point, rivals: Rivals, size: int) -> None:
    """Measure the training-free ensembles that are tuned: noise of one std, and dropout."""
    settings, statistics = measurer.settings, measurer.data.statistics
    unrounded = dtype_name(solution.net).lower()
    system = lpe.Int(settings.best_bits)

    def noisy(std: float, size: int, seed: int) -> Ensemble:
        return lpe.GaussianEnsemble(solution.net, system, size, seed, std=std, batches=statistics)

    def dropped(rate: float, size: int, seed: int) -> Ensemble:
        return lpe.MCDropoutEnsemble(solution.net, rate, size, seed, batches=statistics)

    for method, make, grid in (("Gaussian", noisy, rivals.stds), ("MC-dropout", dropped, rivals.rates)):
        # Written last where the run itself chooses: where it is, the method has been measured.
        if len(grid) > 1 and not measurer.lacks(method, unrounded, metric=SETTING):
            continue
        value = grid[0] if len(grid) == 1 else tuned(make, grid, settings.claim_size, measurer.data.tuning)
        measurer.measure(method, unrounded, "", _budgeted(solution, partial(make, value, size)))
        if len(grid) > 1:
            cost = {"memory_bits": 0, "backward_passes": solution.backward_passes}
            row = {"size": size, "metric": SETTING, "value": value, **cost}
            measurer.add(method, unrounded, "", [row])


def tuned(
    make: Callable[[float, int, int], Ensemble], grid: tuple[float, ...], size: int, data: TestData
) -> float:
    """Find the value whose ensemble has the least NLL on the data."""
    losses = [float(data.evaluate(make(value, size, 0), ())["nll"].iloc[-1]) for value in grid]
    return grid[int(np.argmin(losses))]


def _budgeted(solution: Point, make: Callable[[int], Ensemble]) -> Callable[[int], Ensemble]:
    """Return ``make`` with the point's training budget set: whatever the size, it is the one training."""

    def made(number: int) -> Ensemble:
        ensemble = make(number)
        ensemble.training_budget = solution.backward_passes
        return ensemble

    return made


def _posterior_of(solution: Point, size: int) -> Ensemble:
    assert solution.posterior is not None
    return solution.posterior(size, 0)


def _low_precision_of(net: nn.Module, system: lpe.Int, size: int) -> Ensemble:
    return lpe.LowPrecisionEnsemble(net, system, size)


def measure_family(session: Session, unit: Unit) -> None:
    """Measure a family, its members stored in few bits, and each expanded into low precision members."""
    settings = session.scale.settings
    measurer = Measurer(session, unit, unit.what)
    made = session.scale.substrates[unit.substrate].family(session, unit.what, unit.seed)
    base = made.make(measurer.draws[0])
    # Every size of the family is a size of the DE curve, or of a budget.
    sizes = range(1, len(base) + 1)
    measurer.measure(made.name, "fp32", "", made.make, made.draws, sizes)
    statistics = measurer.data.statistics
    for stored in map(lpe.Int, STORED_BITS):

        def rounded(seed: int, system: lpe.Int = stored) -> Ensemble:
            return stored_by_rtn(made.make(seed), system, statistics)

        measurer.measure(by_rtn(made.name), stored.name, "nearest", rounded, made.draws, sizes)
    system = lpe.Int(settings.best_bits)

    def expanded(seed: int) -> Ensemble:
        return with_low_precision(made.make(seed), system, settings.expansion, seed, statistics)

    sizes = range(settings.expansion, settings.expansion * len(base) + 1, settings.expansion)
    measurer.measure(f"{made.name} + LPE-BSR", system.name, "bernoulli", expanded, sizes=sizes)


def measure_rounding(session: Session, unit: Unit) -> None:
    """Measure RTN against LPE-BSR at every bit width, on a network of tables 1 and 4."""
    settings = session.scale.settings
    solution, measurer = _estimate(session, unit)
    systems = [lpe.Int(bits) for bits in settings.table_bits]
    measurer.low_precision(solution.net, systems, settings.claim_size, solution.backward_passes)


def measure_large(session: Session, unit: Unit) -> None:
    """Measure RTN and LPE-BSR on a model of figure 7; on table 6's, its tuned rivals too."""
    scale, settings = session.scale, session.scale.settings
    solution, measurer = _estimate(session, unit)
    compared = scale.compared is not None and unit.substrate == scale.compared.name
    widths = dict.fromkeys([settings.large_bits, *(settings.bits if compared else ())])
    systems = [lpe.Int(bits) for bits in widths]
    measurer.low_precision(solution.net, systems, settings.large_size, solution.backward_passes)
    if compared and scale.compared and scale.compared.rivals is not None:
        _tuned_rivals(measurer, solution, scale.compared.rivals, settings.large_size)


def measure_axes(session: Session, unit: Unit) -> None:
    """Measure RTN against LPE-BSR under other scale axes and number systems."""
    settings = session.scale.settings
    solution, measurer = _estimate(session, unit, f"{unit.substrate}, {AXES}")
    systems: list[Systems] = [
        lpe.Int(bits, axis) for bits in settings.axis_bits for axis in settings.scale_axes
    ]
    # What is among the scale axes is measured once.
    systems += [lpe.number_system(name) for name in settings.number_systems]
    measurer.low_precision(solution.net, systems, settings.claim_size, solution.backward_passes)


def _estimate(session: Session, unit: Unit, named: str | None = None) -> tuple[Point, Measurer]:
    """Return a substrate's point estimate, and the writer of its rows with the single model's in it."""
    substrate = session.scale.substrates[unit.substrate]
    solution = substrate.point(session, substrate.estimate, unit.seed)
    if "described" in solution.info:
        session.describe(unit, solution.info["described"])
    measurer = Measurer(session, unit, substrate.estimate, named)
    measurer.single(solution.net, solution.backward_passes)
    return solution, measurer


def measure_disagreement(session: Session, unit: Unit) -> None:
    """Measure the share of test examples that another network decides otherwise than SSE's first snapshot.

    The others: the second snapshot (number system fp32), and low precision members of the first (their mean).
    """
    settings = session.scale.settings
    measurer = Measurer(session, unit, "SSE")
    systems = [lpe.Int(bits) for bits in settings.bits]
    if not any(measurer.lacks(DISAGREEMENT, s.name, "bernoulli") for s in systems):
        return
    two = first_snapshots(session, session.scale.substrates[unit.substrate], unit.seed)
    test = measurer.data.test
    first = two[0]
    decided = _decisions(first, test)
    passes = two.backward_passes(1) or 0

    def row(
        system: str, nets: Iterable[nn.Module], memory_bits: int, backward_passes: int
    ) -> dict[str, object]:
        changed = torch.stack([(_decisions(net, test) != decided).double() for net in nets]).mean(dim=0).cpu()
        rounding = "" if system == "fp32" else "bernoulli"
        kept = {DISAGREEMENT: (torch.tensor([1]), changed[None])}
        measurer.keep_examples(DISAGREEMENT, system, rounding, [kept])
        return {
            "size": 1,
            "metric": DISAGREEMENT,
            "value": float(changed.mean()),
            "memory_bits": memory_bits,
            "backward_passes": backward_passes,
        }

    second = row("fp32", [two[1]], two.memory_bits(1), two.backward_passes(2) or 0)
    measurer.add(DISAGREEMENT, "fp32", "", [second])
    for system in systems:
        statistics = measurer.data.statistics
        ensemble = lpe.LowPrecisionEnsemble(
            first, system, settings.size, measurer.draws[0], batches=statistics
        )
        measured = row(system.name, ensemble, ensemble.memory_bits(1), passes)
        measurer.add(DISAGREEMENT, system.name, "bernoulli", [measured])


def first_snapshots(session: Session, substrate: Substrate, seed: int) -> Ensemble:
    """Return SSE's first two snapshots, as an ensemble."""
    recipe = substrate.families[SNAPSHOTS]
    if isinstance(recipe, SnapshotTraining):
        # The others need not be trained.
        recipe = replace(recipe, cycles=2)
    return recipe.family(session, substrate, seed).make(0)


@torch.no_grad()
def _decisions(net: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Return the predicted class of each example."""
    return torch.cat([apply(net, inputs).argmax(-1) for inputs, _ in batches])


MEASURES: Mapping[str, Callable[[Session, Unit], None]] = {
    ROUNDING: measure_rounding,
    LARGE: measure_large,
    AXES: measure_axes,
    DISAGREEMENT_UNIT: measure_disagreement,
    COST: measure_cost,
    COST_RIVALS: measure_cost_rivals,
    PREDICTIONS: measure_predictions,
    SPREAD: measure_spread,
    WHY: measure_why,
}
"""How units are measured that are neither of a point nor of a family."""


def _how(scale: Scale, unit: Unit) -> Callable[[Session, Unit], None]:
    """Return the function that measures a unit: its ``what`` is a point, a family or one of MEASURES."""
    substrate = scale.substrates[unit.substrate]
    if unit.what in substrate.points:
        return measure_point
    return measure_family if unit.what in substrate.families else MEASURES[unit.what]


def trained_for(scale: Scale, unit: Unit) -> list[tuple[Substrate, object]]:
    """List the recipes whose weights a unit is measured on, with their substrates."""
    substrate = scale.substrates[unit.substrate]
    named = [(substrate, unit.what)]
    if unit.what == DISAGREEMENT_UNIT:
        named = [(substrate, SNAPSHOTS)]
    elif unit.what == COST_RIVALS:
        larger = scale.next_larger
        named = [(substrate, DEEP)] * (DEEP in substrate.families)
        named += [] if larger is None else [(larger, larger.estimate)]
    elif unit.what == PREDICTIONS:
        named = [(substrate, name) for name in trained(substrate, unit.seed)]
    elif unit.what == WHY:
        named = [(substrate, name) for name in points_of(substrate, unit.seed)]
    elif unit.what in MEASURES:
        named = [(substrate, substrate.estimate)]
    recipes: list[tuple[Substrate, object]] = []
    for of, name in named:
        recipe = of.points[name] if name in of.points else of.families[name]
        recipes.append((of, recipe))
        if isinstance(recipe, DeepEnsembleTraining | MultiPosteriorTraining):
            recipes.append((of, of.points[recipe.of]))
        if of.start is not None:
            recipes.append((of, of.start))
    return recipes


def determined_by(session: Session, unit: Unit) -> dict[str, object]:
    """Return all that determines a unit's rows."""
    scale, recipes = session.scale, trained_for(session.scale, unit)
    substrate = scale.substrates[unit.substrate]
    used = [*dict.fromkeys(of.name for of, _ in recipes), substrate.name]
    made_by = [recipe for _, recipe in recipes] + [scale.substrates[name].source for name in used]
    roots = {type(each) for each in made_by}.union(*map(held, made_by))
    return {
        "scale": scale.name,
        "settings": scale.settings,
        "compared": scale.compared and scale.compared.name,
        "unit": unit,
        "points": list(substrate.points),
        "families": list(substrate.families),
        "rivals": substrate.rivals,
        **_beyond(scale, unit),
        "sources": {name: scale.substrates[name].source for name in used},
        "recipes": [[of.name, recipe] for of, recipe in recipes],
        **determinants(
            _how(scale, unit),
            *roots,
            data=data_hash([digest_of(scale.substrates[name].source, unit.seed) for name in used]),
            device=session.device,
            threads=session.threads,
        ),
    }


def key_of(session: Session, unit: Unit) -> str:
    """Return the key of a unit's rows: a hash of all that determines them."""
    return Store.key(determined_by(session, unit))


def record_of(session: Session, unit: Unit) -> Path:
    """Return a unit's working record, which is named by the key of its rows; the session takes note of it."""
    record = session.working / f"{unit.file}-{key_of(session, unit)[:16]}.csv"
    session.records[unit] = record
    session.measured.add(record)
    return record


def _beyond(scale: Scale, unit: Unit) -> dict[str, object]:
    """Return what the rows of units of ``BEYOND`` depend on beside what those of all do."""
    if unit.what not in BEYOND or scale.beyond is None:
        return {}
    shifts = scale.beyond.shifts if unit.what == PREDICTIONS else None
    digest = None if shifts is None else shifts.digest(unit.seed)
    return {"beyond": replace(scale.beyond, shifts=shifts), "shifts": digest}


def measure(session: Session, unit: Unit) -> None:
    """Train and measure one unit, as far as its working record lacks it.

    Where another process is at it, this one waits and takes what is measured.
    """
    record = record_of(session, unit)
    fetch_unit(session.store, record)
    if is_finished(record):
        # To look for every row would take the unit's weights from the store.
        return
    with locked(record.with_suffix(".unit"), once=True, poll=0.1):
        remove_damaged(record, Records)
        if not is_finished(record):
            _measure(session, unit, record)


def _measure(session: Session, unit: Unit, record: Path) -> None:
    session.recipes.clear()
    with measuring(record, session.store, session.device):
        # Under the key of the unit, as its rows: under other settings lie other values.
        _how(session.scale, unit)(replace(session, working=place_of(record)), unit)
        recipes = trained_for(session.scale, unit)
        known = {(of.name, kind) for of, recipe in recipes for kind in (type(recipe), *held(recipe))}
        if unknown := session.recipes - known:
            names = ", ".join(f"{kind.__name__} of {name}" for name, kind in unknown)
            raise InputError(f"{unit} was measured on trainings that its key does not hold: {names}")
    send_unit(session.store, record)


def measure_all(session: Session, wanted: Iterable[Unit]) -> None:
    """Measure units one after the other, with a progress bar."""
    wanted = list(wanted)
    with session.progress(len(wanted), "units measured") as bar:
        for unit in wanted:
            bar.set_postfix_str(f"{unit.what}, seed {unit.seed}")
            measure(session, unit)
            bar.update()


def working_folder(chosen: Scale, store: Store) -> Path:
    """Return the folder of a scale's working records, each of which is named by its own key."""
    return store.root.parent / "records" / chosen.name


LEARNT = ("median_posterior_std", "std_over_forgetting", "std_over_expected")
"""What IVON's training keeps of its posterior; see :class:`reproduce.study.points.IVONTraining`."""


def posteriors(session: Session, points: Iterable[str], families: Iterable[str]) -> dict[str, object]:
    """Return, and print, what is known of posteriors, by "NAME seed S": were they learnt, do samples spread?

    Args:
        points, families: names; those whose training reports nothing are left out.
    """
    known: dict[str, object] = {}
    for name in points:
        for seed in (unit.seed for unit in units([session.main], [name], session.seeds)):
            info = session.main.point(session, name, seed).info
            found = {key: info[key] for key in LEARNT if key in info}
            if found:
                known[f"{name} seed {seed}"] = found
                std, forgetting, expected = (found[key] for key in LEARNT)
                print(
                    f"{name} seed {seed}: median posterior std {std:.3g}, {forgetting:.2f} times what the "
                    f"start alone would leave, {expected:.2f} times what the curvature asks for"
                )
    for name in families:
        for seed in (unit.seed for unit in units([session.main], [name], session.seeds)):
            info = session.main.family(session, name, seed).info
            if "variance_share" in info:
                known[f"{name} seed {seed}"] = info
                *others, typical = info["variance_share"].items()
                print(
                    f"{name} seed {seed}: samples have {typical[1]:.2f} of the posterior's variance at the "
                    f"typical curvature, {info['typical_curvature']:.2g}; "
                    + ", ".join(f"{share:.2f} at {at}" for at, share in others)
                )
    return known
