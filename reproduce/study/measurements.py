"""Measures in units, which each find their trainings in the store, as rows of the record.

Rounding seeds and posterior draws are averaged within a training seed: a row's value is the mean over
``scale.draws`` ensembles. NLL and ECE are kept at every size, the other metrics at the sizes that tables and
claims look at. A unit has a working record of its own, so units run in any order, in one process or several;
rows that are there already are not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.number_systems.naming import Systems
from lpe.substrates import captioned_digits, digits
from reproduce.scales.digits.clips import clip_point
from reproduce.scales.digits.llamas import llama_point
from reproduce.scales.paper.models import PaperScale
from reproduce.study.answers import arithmetic_questions
from reproduce.study.families import FAMILIES, Family, family, snapshot_family, with_low_precision
from reproduce.study.measurer import Classification, Measurer
from reproduce.study.points import POINTS, point
from reproduce.study.records import DISAGREEMENT
from reproduce.study.scale import Point
from reproduce.study.session import Session
from reproduce.study.units import AXES, COST, COST_RIVALS, Unit, clip_units


def measure_point(session: Session, unit: Unit) -> None:
    """Measure the methods on one point of one training seed."""
    scale = session.scale
    solution = point(session, unit.what, unit.seed)
    measurer = Measurer(session, unit, solution.name)
    measurer.single(solution.net, solution.backward_passes)
    systems = [lpe.Int(bits) for bits in scale.bits]
    measurer.low_precision(solution.net, systems, scale.size, solution.backward_passes)
    if solution.posterior is not None:
        measurer.measure("BMA", "fp32", "", _budgeted(solution, partial(solution.posterior, scale.size)))
        draws = partial(_posterior_of, solution)
        measurer.file_bytes("BMA", "fp32", "", _budgeted(solution, draws))
    for system in systems:
        sized = partial(_low_precision_of, solution.net, system)
        measurer.file_bytes("LPE-BSR", system.name, "bernoulli", _budgeted(solution, sized))
    if solution.name == "SGD":
        _tuned_rivals(measurer, solution, scale.gaussian_std, scale.dropout_rate)
        for system in systems:
            matched = partial(lpe.GaussianEnsemble, solution.net, system, scale.size)
            measurer.measure("Gaussian, matched", system.name, "", _budgeted(solution, matched))


def _tuned_rivals(measurer: Measurer, solution: Point, std: float, rate: float) -> None:
    """Measure the training-free ensembles that are tuned: noise of one std, and dropout."""
    scale = measurer.scale
    noisy = partial(lpe.GaussianEnsemble, solution.net, lpe.Int(scale.best_bits), scale.size)
    measurer.measure("Gaussian", "fp32", "", _budgeted(solution, partial(noisy, std=std)))
    dropout = partial(lpe.MCDropoutEnsemble, solution.net, rate, scale.size)
    measurer.measure("MC-dropout", "fp32", "", _budgeted(solution, dropout))


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
    """Measure a family, and the family with each member expanded into low precision members."""
    scale = session.scale
    measurer = Measurer(session, unit, unit.what)
    made: Family = family(session, unit.what, unit.seed)
    base = made.make(measurer.draws[0])
    # Every size of the family is a size of the DE curve, or of a budget.
    measurer.measure(made.name, "fp32", "", made.make, made.draws, range(1, len(base) + 1))
    system = lpe.Int(scale.best_bits)

    def expanded(seed: int) -> Ensemble:
        return with_low_precision(made.make(seed), system, scale.expansion, seed)

    sizes = range(scale.expansion, scale.expansion * len(base) + 1, scale.expansion)
    measurer.measure(f"{made.name} + LPE-BSR", system.name, "bernoulli", expanded, sizes=sizes)


def measure_network(session: Session, unit: Unit) -> None:
    """Measure RTN against LPE-BSR at every bit width, on one of table 1's networks."""
    scale = session.scale
    shape = scale.networks[unit.what.removeprefix("ViT-")]
    own = replace(session, scale=replace(scale, network=shape))
    solution = point(own, "SGD", unit.seed)
    measurer = Measurer(session, unit, "SGD", f"{scale.name} {unit.what}")
    measurer.single(solution.net, solution.backward_passes)
    systems = [lpe.Int(bits) for bits in scale.table_bits]
    measurer.low_precision(solution.net, systems, scale.claim_size, solution.backward_passes)


def measure_clip(session: Session, unit: Unit) -> None:
    """Measure RTN and LPE-BSR on a zero-shot digits CLIP; on table 6's, the largest, its tuned rivals too."""
    scale = session.scale
    solution = clip_point(session, unit.seed, unit.what.removeprefix("CLIP-"))
    splits = captioned_digits.load(unit.seed)
    data = Classification([splits.test], [splits.validation])
    measurer = Measurer(session, unit, solution.name, f"{scale.name} {unit.what}", data)
    measurer.single(solution.net, solution.backward_passes)
    compared = measurer.common["substrate"] == scale.compared_clip
    widths = dict.fromkeys([scale.large_bits, *(scale.bits if compared else ())])
    systems = [lpe.Int(bits) for bits in widths]
    measurer.low_precision(solution.net, systems, scale.size, solution.backward_passes)
    if compared:
        _tuned_rivals(measurer, solution, scale.clip_gaussian_std, scale.clip_dropout_rate)


def measure_llama(session: Session, unit: Unit) -> None:
    """Measure RTN and LPE-BSR on a small Llama, whose questions go through lm-eval."""
    scale = session.scale
    solution = llama_point(session, unit.seed, unit.what.removeprefix("Llama-"))
    data = arithmetic_questions(unit.seed)
    # By the name of SGD's point, the record's for a point estimate, whichever optimiser found it.
    measurer = Measurer(session, unit, "SGD", f"{scale.name} {unit.what}", data)
    measurer.single(solution.net, solution.backward_passes)
    systems = [lpe.Int(scale.large_bits)]
    measurer.low_precision(solution.net, systems, scale.size, solution.backward_passes)


def measure_axes(session: Session, unit: Unit) -> None:
    """Measure RTN against LPE-BSR under other scale axes and number systems, on the default network."""
    scale = session.scale
    solution = point(session, "SGD", unit.seed)
    measurer = Measurer(session, unit, "SGD", f"{scale.substrate}, {AXES}")
    measurer.single(solution.net, solution.backward_passes)
    systems: list[Systems] = [lpe.Int(bits, axis) for bits in scale.axis_bits for axis in scale.scale_axes]
    # What is among the scale axes is measured once.
    systems += [lpe.number_system(name) for name in scale.number_systems]
    measurer.low_precision(solution.net, systems, scale.claim_size, solution.backward_passes)


def measure_disagreement(session: Session, unit: Unit) -> None:
    """Measure the share of test images on which another network decides otherwise than SSE's first snapshot.

    The others: the second snapshot (number system fp32), and low precision members of the first (their mean).
    """
    scale = session.scale
    measurer = Measurer(session, unit, "SSE")
    systems = [lpe.Int(bits) for bits in scale.bits]
    if not any(measurer.lacks(DISAGREEMENT, s.name, "bernoulli") for s in systems):
        return
    two = snapshot_family(session, unit.seed, replace(scale.snapshot, cycles=2)).make(0)
    images = digits.load(unit.seed).test[0]
    first = two[0]
    decided = _decisions(first, images)
    passes = two.backward_passes(1) or 0

    def row(nets: Iterable[nn.Module], memory_bits: int, backward_passes: int) -> dict[str, object]:
        changed = [float((_decisions(net, images) != decided).double().mean()) for net in nets]
        return {
            "size": 1,
            "metric": DISAGREEMENT,
            "value": float(np.mean(changed)),
            "memory_bits": memory_bits,
            "backward_passes": backward_passes,
        }

    measurer.add(DISAGREEMENT, "fp32", "", [row([two[1]], two.memory_bits(1), two.backward_passes(2) or 0)])
    for system in systems:
        ensemble = lpe.LowPrecisionEnsemble(first, system, scale.size, measurer.draws[0])
        measured = row(ensemble, ensemble.memory_bits(1), passes)
        measurer.add(DISAGREEMENT, system.name, "bernoulli", [measured])


@torch.no_grad()
def _decisions(net: nn.Module, images: Tensor) -> Tensor:
    """Return the predicted class of each image."""
    predicted: Tensor = net(images).argmax(-1)
    return predicted


def measure(session: Session[Any], unit: Unit) -> None:
    """Train and measure one unit, as far as its working record lacks it."""
    # An empty file beside the record: to look for every row would take the unit's weights from the store.
    finished = session.working / f"{unit.file}.finished"
    if finished.exists() and (session.working / unit.file).exists():
        return
    if isinstance(session.scale, PaperScale):
        from reproduce.scales.paper.loading import measure_pretrained

        measure_pretrained(session, unit)
    elif unit.what in POINTS:
        measure_point(session, unit)
    elif unit.what in FAMILIES:
        measure_family(session, unit)
    elif unit.what == AXES:
        measure_axes(session, unit)
    elif unit.what == DISAGREEMENT:
        measure_disagreement(session, unit)
    elif unit.what in (COST, COST_RIVALS):
        from reproduce.study.cost_measures import measure_cost

        measure_cost(session, unit)
    elif unit.what in clip_units(session.scale):
        measure_clip(session, unit)
    elif unit.what.startswith("Llama-"):
        measure_llama(session, unit)
    else:
        measure_network(session, unit)
    finished.touch()


def measure_all(session: Session[Any], wanted: Iterable[Unit]) -> None:
    """Measure units one after the other, with a progress bar."""
    wanted = list(wanted)
    with session.progress(len(wanted), "units measured") as bar:
        for unit in wanted:
            bar.set_postfix_str(f"{unit.what}, seed {unit.seed}")
            measure(session, unit)
            bar.update()


def posterior_stds(session: Session, names: Iterable[str]) -> dict[str, float]:
    """Return, and print, each point's median posterior std where training reports one, by "NAME seed S"."""
    stds = {}
    for name in names:
        for seed in session.seeds:
            info = point(session, name, seed).info
            if "median_posterior_std" in info:
                stds[f"{name} seed {seed}"] = info["median_posterior_std"]
                print(f"{name} seed {seed}: median posterior std {info['median_posterior_std']:.3g}")
    return stds
