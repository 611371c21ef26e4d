"""What is measured of a point: single models, posteriors and low precision ensembles, as rows of the record.

Rounding seeds and posterior draws are averaged within a training seed: a row's value is the mean over
``scale.draws`` ensembles. A set of rows that is there already is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pandas as pd

import lpe
from lpe.ensembles.base import Ensemble
from lpe.evaluation.metrics import METRICS
from lpe.evaluation.predict import evaluate_temperature_scaled
from lpe.substrates import digits
from reproduce.command import Session
from reproduce.points import POINTS, Point, point

COLUMNS = [*METRICS, "calibrated_nll"]


def draw_seed(training_seed: int, draw: int) -> int:
    """The seed of a rounding or posterior draw: another for every training seed."""
    return 1000 * training_seed + draw


def _same(ensemble: Ensemble, _: int) -> Ensemble:
    """What does not depend on a seed of draws."""
    return ensemble


def ensemble_rows(
    make: Callable[[int], Ensemble], seeds: Iterable[int], batches: list[tuple[object, object]]
) -> list[dict[str, object]]:
    """Metrics of every prefix, averaged over ensembles: one row a size and metric.

    Args:
        make: seed → ensemble. seeds: of the ensembles to average. batches: (inputs, targets).
    """
    frames = []
    memory: list[int] = []
    for seed in seeds:
        ensemble = make(seed)
        frames.append(lpe.evaluate(ensemble, batches, calibrated=True))
        memory = [ensemble.memory_bits(n) for n in range(1, len(ensemble) + 1)]
    values = np.mean([frame[COLUMNS].to_numpy() for frame in frames], axis=0)
    return [
        {"size": n + 1, "metric": metric, "value": values[n, column], "memory_bits": memory[n]}
        for n in range(len(memory))
        for column, metric in enumerate(COLUMNS)
    ]


def measure_point(session: Session, solution: Point, seed: int, data: digits.DigitsData) -> None:
    """Measure all methods on one point of one training seed that the record lacks."""
    scale = session.scale
    common = {
        "scale": scale.name,
        "substrate": scale.substrate,
        "point": solution.name,
        "seed": seed,
        "backward_passes": solution.backward_passes,
    }
    batches: list[tuple[object, object]] = [data.test]
    draws = [draw_seed(seed, draw) for draw in range(scale.draws)]

    def missing(method: str, system: str, rounding: str) -> bool:
        keys = {name: common[name] for name in ("scale", "substrate", "point", "seed")}
        return not session.records.has(**keys, method=method, number_system=system, rounding=rounding)

    def add(method: str, system: str, rounding: str, rows: list[dict[str, object]]) -> None:
        named = {**common, "method": method, "number_system": system, "rounding": rounding}
        session.records.add([{**named, **row} for row in rows])

    single = lpe.DeepEnsemble([solution.net])
    if missing("FP32", "fp32", ""):
        add("FP32", "fp32", "", ensemble_rows(partial(_same, single), [0], batches))
    if missing("FP32 + temperature", "fp32", ""):
        scaled = evaluate_temperature_scaled(single, batches, [data.validation])
        # One number more than the model: the temperature.
        bits = single.memory_bits() + 32
        rows: list[dict[str, object]] = [
            {"size": 1, "metric": metric, "value": value, "memory_bits": bits}
            for metric, value in scaled.items()
        ]
        add("FP32 + temperature", "fp32", "", rows)
    if solution.posterior is not None and missing("BMA", "fp32", ""):
        posterior = solution.posterior
        add("BMA", "fp32", "", ensemble_rows(partial(posterior, scale.size), draws, batches))
    for bits in scale.bits:
        system = lpe.Int(bits)
        if missing("RTN", system.name, "nearest"):
            rtn = lpe.LowPrecisionEnsemble(solution.net, system, 1, rounding="nearest")
            add("RTN", system.name, "nearest", ensemble_rows(partial(_same, rtn), [0], batches))
        if missing("LPE-BSR", system.name, "bernoulli"):
            make = partial(lpe.LowPrecisionEnsemble, solution.net, system, scale.size)
            rows = ensemble_rows(make, draws, batches)
            add("LPE-BSR", system.name, "bernoulli", rows)


def measure_points(session: Session, names: Iterable[str] = POINTS) -> dict[str, float]:
    """Train and measure the named points for every training seed.

    Returns:
        Each point's median posterior std where training reports one, by "NAME seed S".
    """
    names = list(names)
    stds = {}
    with session.progress(len(names) * len(session.seeds), "points measured") as bar:
        for seed in session.seeds:
            data = digits.load(seed)
            for name in names:
                solution = point(session, name, seed)
                if "median_posterior_std" in solution.info:
                    stds[f"{name} seed {seed}"] = solution.info["median_posterior_std"]
                measure_point(session, solution, seed, data)
                bar.update()
    for name, std in stds.items():
        print(f"{name}: median posterior std {std:.3g}")
    return stds


def log_sizes(session: Session, rows: pd.DataFrame) -> None:
    """Mirror a record in W&B: the table itself, and each metric against ensemble size, mean over seeds."""
    session.tracker.log_table("record", rows)
    names = ["point", "method", "number_system", "metric"]
    for size, here in rows.groupby("size"):
        means = here.groupby(names)["value"].mean()
        values = {"/".join(map(str, name)): float(value) for name, value in means.items()}  # type: ignore[call-overload]
        session.tracker.log({"size": float(str(size)), **values})


def selected(session: Session, points: Iterable[str]) -> pd.DataFrame:
    """The rows that a figure of these points is drawn from; mirrored in W&B.

    NLL at every size, the other metrics at ``scale.table_sizes``: enough for the curves and the tables,
    and a tenth of the file.
    """
    scale = session.scale
    rows = session.records.select(scale=scale.name, substrate=scale.substrate)
    wanted = rows["point"].isin(list(points)) & rows["seed"].isin(session.seeds)
    wanted &= (rows["metric"] == "nll") | rows["size"].isin(scale.table_sizes)
    log_sizes(session, rows[wanted])
    return rows[wanted]
