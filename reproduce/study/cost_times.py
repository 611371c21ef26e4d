"""Milliseconds per example of what the cost picture shows: measured in one run, interleaved, medians.

One thread predicts one batch of test examples, again and again: every method once a round, so that whatever
else the machine does hits all of them alike. The members of a low precision ensemble are either *made* for
every batch, from the stored weights, one after another, or *kept*, as float32 modules in memory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import lpe
from lpe.ensembles.base import Ensemble
from lpe.modules import apply
from lpe.provenance import write_provenance
from lpe.records import write_table
from reproduce.study.cost_measures import (
    CASCADED,
    HEADLINE,
    ROUNDINGS,
    SIZES,
    TARGETS,
    Known,
    cascade_name,
    first_of,
    tuned_cascade,
)
from reproduce.study.intact import is_intact
from reproduce.study.unrounded import FP32

COLUMNS = (
    "substrate",
    "method",
    "number_system",
    "rounding",
    "size",
    "seed",
    "members",  # "made" for every batch, or "kept" in memory as float32 modules
    "ms_per_example",
)
MADE, KEPT = "made", "kept"
REPEATS = 5

Key = tuple[str, str, str, str, int, int, str]


@dataclass(frozen=True)
class Timed:
    """A thing to run once a round: its keys (COLUMNS but the last), and what returns their seconds."""

    keys: Sequence[Key]
    seconds: Callable[[], Sequence[float]]


def rows_of_times(items: Sequence[Timed], examples: int, bar: tqdm) -> list[dict[str, object]]:
    """Time every item: medians over REPEATS rounds, in ms per example; a first round is not counted."""
    taken: dict[Key, list[float]] = {}
    bar.reset(total=REPEATS * len(items))
    with torch.no_grad():
        for item in items:
            item.seconds()
        for _ in range(REPEATS):
            for item in items:
                for key, seconds in zip(item.keys, item.seconds(), strict=True):
                    taken.setdefault(key, []).append(seconds)
                bar.update()
    rows = []
    for key, rounds in taken.items():
        milliseconds = float(f"{1000 * float(np.median(rounds)) / examples:.4g}")
        rows.append(dict(zip(COLUMNS, (*key, milliseconds), strict=True)))
    return rows


def write(
    rows: list[dict[str, object]],
    out: Path,
    command: Sequence[str],
    examples: int,
    seeds: Sequence[int],
    started: float,
    stem: str = "cost",
    device: str = "cpu",
) -> None:
    """Write cost_times.csv, or that of another stem, and, beside it, the conditions as JSON."""
    config = {
        "examples_a_batch": examples,
        "repeats": REPEATS,
        "statistic": "median",
        "load_average": round(os.getloadavg()[0], 2),
    }
    threads = torch.get_num_threads()
    record = out / f"{stem}_times.csv"
    write_table(rows, record, COLUMNS)
    write_provenance(
        record.with_suffix(".json"), command, config, device, seeds, threads, started, records=[record]
    )


def are_wanted(times: Path, again: bool) -> bool:
    """Tell whether times are to be measured: where ``again`` asks for it, and where there are none yet.

    Times that were edited since count as none, which is said on stderr.
    """
    if again or not times.is_file():
        return True
    if is_intact(times):
        return False
    print(f"{times.name} is not as it was measured, or has no hash; it is measured anew", file=sys.stderr)
    return True


def _now() -> float:
    """Return the time once a graphics card, where there is one, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(call: Callable[[], object]) -> float:
    start = _now()
    call()
    return _now() - start


def _predicting(predictor: Ensemble | lpe.Cascade, inputs: Any) -> Callable[[], list[float]]:
    return lambda: [_seconds(lambda: predictor.predict(inputs))]


def _prefixes(ensemble: Ensemble, inputs: Any, sizes: Sequence[int]) -> Callable[[], list[float]]:
    """Return the seconds of the first n members, made and run, for each size; then of running them alone."""

    def seconds() -> list[float]:
        making, running = [], []
        total: torch.Tensor | None = None
        for index in range(len(ensemble)):
            start = _now()
            net = ensemble.member(index)
            between = _now()
            log_probs = apply(net, inputs).double().log_softmax(dim=-1)
            total = log_probs if total is None else torch.logaddexp(total, log_probs)
            running.append(_now() - between)
            making.append(between - start)
        both, alone = np.cumsum(np.add(making, running)), np.cumsum(running)
        return [*(float(both[n - 1]) for n in sizes), *(float(alone[n - 1]) for n in sizes)]

    return seconds


def timed_methods(
    own: tuple[str, nn.Module],
    larger: tuple[str, nn.Module] | None,
    deep: Ensemble | None,
    bits: Sequence[int],
    size: int,
    inputs: Any,
    seed: int,
) -> list[Timed]:
    """Return the single models, RTN, LPE-BSR and DE of one training seed.

    Args:
        own, larger: substrate and FP32 network; larger None: there is none. seed: the training seed.
    """
    items = []
    substrate, net = own
    for name, module in [own] if larger is None else [own, larger]:
        key = (name, FP32, "fp32", "", 1, seed, KEPT)
        items.append(Timed([key], _predicting(lpe.DeepEnsemble([module]), inputs)))
    for width in bits:
        system = lpe.Int(width)
        for method, rounding, members in (
            ("RTN", "nearest", 1),
            *(("LPE-BSR", rounding, size) for rounding in ROUNDINGS),
        ):
            ensemble = lpe.LowPrecisionEnsemble(net, system, members, seed, rounding)
            sizes = sorted({n for n in (*SIZES, members) if n <= members})
            keys = [
                (substrate, method, system.name, rounding, n, seed, how)
                for how in (MADE, KEPT)
                for n in sizes
            ]
            items.append(Timed(keys, _prefixes(ensemble, inputs, sizes)))
    if deep is not None:
        # Of one it is the single model.
        for n in range(2, len(deep) + 1):
            key = (substrate, "DE", "fp32", "", n, seed, KEPT)
            items.append(Timed([key], _predicting(lpe.DeepEnsemble(list(deep)[:n]), inputs)))
    return items


def timed_cascades(
    substrate: str,
    single: Known,
    deep: Known | None,
    members: Iterable[tuple[Known, Known]],
    few: int,
    inputs: Any,
    seed: int,
    all_targets: bool,
) -> list[Timed]:
    """Return the cascades of one training seed, for every target or for the share of the gain alone.

    Args:
        members: of each bit width, LPE-BSR and RTN. few: members of the smaller cascade.
    """
    items = []

    def add(first_name: str, of: Known, first: Known | None, targets: Iterable[Any]) -> None:
        system, rounding = "fp32", ""
        if isinstance(of.ensemble, lpe.LowPrecisionEnsemble):
            system, rounding = of.ensemble.system.name, CASCADED
        held = lpe.DeepEnsemble(list(of.ensemble))
        first_held = None if first is None else first.ensemble.member(0)
        for target in targets if all_targets else [HEADLINE]:
            cascade = tuned_cascade(of, first, target)
            named = (substrate, cascade_name(first_name, target), system, rounding, cascade.size, seed)
            if not of.ensemble.members_are_stored:
                items.append(Timed([(*named, MADE)], _predicting(cascade, inputs)))
            kept = lpe.Cascade(held, cascade.windows, first=first_held)
            items.append(Timed([(*named, KEPT)], _predicting(kept, inputs)))

    for of, nearest in members:
        size = len(of.ensemble)
        add("RTN", of, nearest, TARGETS)
        add("FP32", of, single, TARGETS)
        if few < size:
            add("RTN", first_of(of, few), nearest, [HEADLINE])
    if deep is not None:
        add("DE", deep, None, TARGETS)
    return items
