"""Measures parts of the regression, each of a scale, and compares numbers with what is expected of them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import lpe
from lpe.evaluation.metrics import ECE_BINS, CalibrationBins, fit_temperature
from lpe.evaluation.predict import member_log_probs
from lpe.store import Store
from lpe.tracking import Tracker
from reproduce.study.beyond.names import AUROC_PROBABILITY, CLEAN, corruption_name, shown
from reproduce.study.measurements import measure
from reproduce.study.records import rows_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import PREDICTIONS, Unit, beyond_units, units

TOLERANCE = 0.05
"""Share of the standard deviation over training seeds."""
FLOOR = 1e-6
FLIPS = 2
"""Predictions, over all seeds, that may change without ERR having moved."""
CROSSING = 0.5
"""Predictions, over all seeds, by which ECE may change without having moved."""
DIGITS_KEPT = 1e-11
"""Relative; expectations are written to 12 digits."""
METRICS = ("nll", "err", "ece", "ambiguity", AUROC_PROBABILITY)
KEY = ("scale", "network", "point", "method", "number_system", "size", "metric")
COLUMNS = (*KEY, "expected", "tolerance", "std_over_seeds")


@dataclass(frozen=True)
class Part:
    """What is measured of one scale.

    Args:
        scale: its name. seeds: training seeds. opened: gives the reduced scale, its data in place while it
            lasts. nudged: the scale → the same with trainings that start a part in 10⁶ apart, what float
            rounding may do elsewhere; None: nothing is trained. missing: why it cannot be measured here; "":
            it can.
    """

    scale: str
    seeds: tuple[int, ...]
    opened: Callable[[], AbstractContextManager[Scale]]
    nudged: Callable[[Scale], Scale] | None
    missing: Callable[[], str]


@contextmanager
def session(part: Part, scale: Scale, folder: Path) -> Iterator[Session]:
    """Open a session whose store and working records are in a folder of their own."""
    assert scale.threads is not None
    torch.set_num_threads(scale.threads)
    yield Session(
        store=Store(folder / "store"),
        tracker=Tracker(None),
        threads=scale.threads,
        device=scale.device,
        quiet=True,
        scale=scale,
        seeds=list(part.seeds),
        claim_seeds=list(part.seeds),
        out=folder,
        working=Path(tempfile.mkdtemp(dir=folder)),
    )


def measured(
    parts: Sequence[Part],
    whats: Collection[str] | None = None,
    folder: Path | None = None,
    nudged: bool = False,
) -> pd.DataFrame:
    """Measure parts, trained where the folder's store lacks them.

    Args:
        whats: names of points and families, or PREDICTIONS; None: all. folder: of the trained weights; None:
            a temporary one.
        nudged: start trainings a part in 10⁶ apart.

    Returns:
        Rows of KEY, seed, value, and test examples over all seeds of the part.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return measured(parts, whats, Path(temporary), nudged)
    edges = {**dict.fromkeys(KEY, ""), "method": "confidences on the edges", "size": 1, "metric": "ece"}
    found = [pd.DataFrame([{**edges, "seed": 0, "value": edge_ece(), "examples": 0}])]
    for part in parts:
        with part.opened() as scale:
            if nudged and part.nudged is not None:
                scale = part.nudged(scale)
            found.append(_rows(part, scale, whats, folder))
    return pd.concat(found, ignore_index=True)


def _rows(part: Part, scale: Scale, whats: Collection[str] | None, folder: Path) -> pd.DataFrame:
    """Return the rows of one part."""
    assert scale.main is not None
    main, *sizes = scale.main, *scale.sizes
    wanted: list[Unit] = units([main], (*main.points, *main.families), part.seeds)
    wanted += [unit for each in sizes for unit in units([each], [each.estimate], part.seeds)]
    wanted += beyond_units(scale, PREDICTIONS, part.seeds)
    if whats is not None:
        wanted = [unit for unit in wanted if unit.what in whats]
    with session(part, scale, folder) as opened:
        for unit in wanted:
            said = f"{part.scale}: {unit.what}, seed {unit.seed}"
            print(f"\r{said:40}", end="", file=sys.stderr, flush=True)
            measure(opened, unit)
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
        rows = rows_of(opened, wanted)
        of_main = [unit.seed for unit in wanted if (unit.substrate, unit.what) == (main.name, main.estimate)]
        temperatures = [(seed, _temperature(opened, seed)) for seed in of_main]
    names = {each.name: each.short for each in scale.substrates.values()}
    # What is compared beyond the paper is told apart by its rounding, too.
    compared = {shown(main.name, examples): shown(main.short, examples) for examples in _seen(scale)}
    names |= compared
    rows = rows[rows["metric"].isin(METRICS) & rows["substrate"].isin(names)]
    told = rows["substrate"].isin(compared) & (rows["rounding"] != "")
    methods = rows["method"].where(~told, rows["method"] + ", " + rows["rounding"])
    rows = rows.assign(scale=part.scale, network=rows["substrate"].map(names), method=methods)
    largest = rows.groupby(["network", "point", "method", "number_system"])["size"].transform("max")
    kept = rows[rows["size"] == largest][[*KEY, "seed", "value"]]
    single = (part.scale, main.short, main.estimate, "FP32 + temperature", "fp32", 1, "temperature")
    probes = [{**dict(zip(KEY, single, strict=True)), "seed": s, "value": v} for s, v in temperatures]
    examples = sum(main.source.load(seed).test_count for seed in part.seeds)
    return pd.concat([kept, pd.DataFrame(probes)], ignore_index=True).assign(examples=examples)


def _seen(scale: Scale) -> list[str]:
    """Return the examples whose rows are kept beyond the paper: clean ones, a corruption, a foreign set."""
    if scale.beyond is None:
        return []
    if scale.beyond.shifts is None:
        return [CLEAN]
    shifted = scale.beyond.shifts.load(0)
    return [CLEAN, *[corruption_name(*each) for each in shifted.corrupted][-1:], *list(shifted.foreign)[-1:]]


def _temperature(session: Session, seed: int) -> float:
    """Fit the temperature of the single model on validation images."""
    net: nn.Module = session.main.point(session, session.main.estimate, seed).net
    validation = session.main.source.load(seed).validation
    log_probs, targets = member_log_probs(lpe.DeepEnsemble([net]), validation)
    return fit_temperature(log_probs[0], targets)


def edge_ece() -> float:
    """Return the ECE of an example on each edge of the bins and one inside each bin.

    An edge that moves to the next bin meets another example there, of another correctness.
    """
    edges = torch.arange(1, ECE_BINS + 1, dtype=torch.float64) / ECE_BINS
    inside = edges - 0.5 / ECE_BINS
    count = torch.arange(ECE_BINS)
    bins = CalibrationBins()
    bins.update(torch.cat([edges, inside]), torch.cat([count % 2 == 0, count % 3 == 0]))
    return bins.value()


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise each row over training seeds by mean, tolerance and standard deviation: COLUMNS."""
    grouped = rows.groupby(list(KEY), sort=True)
    table = grouped["value"].agg(expected="mean", std_over_seeds="std").fillna(0.0).reset_index()
    examples = grouped["examples"].first().to_numpy()
    floor = pd.Series(FLOOR, index=table.index)
    # An example that crosses an edge of a bin moves ECE by a step; the probe of the edges has no examples.
    for metric, count in (("err", FLIPS + 0.5), ("ece", CROSSING)):
        here = (table["metric"] == metric) & (examples > 0)
        floor[here] = count / examples[here]
    table["tolerance"] = np.maximum(TOLERANCE * table["std_over_seeds"], floor)
    return table[list(COLUMNS)]


def moved(expected: pd.DataFrame, got: pd.DataFrame) -> list[tuple[str, ...]]:
    """List each expectation that is not met, a row of text: what, metric, expected, got, tolerance.

    What is expected and was not measured has moved, too, and so has what nobody expected.
    """
    both = expected.merge(got, on=list(KEY), how="outer", suffixes=("", "_got"))
    difference = (both["expected_got"] - both["expected"]).abs()
    # Not "greater": NaN has moved.
    bad = both[~(difference <= both["tolerance"])]
    return [
        (
            " ".join(str(row[column]) for column in KEY[:5] if row[column]),
            str(row["size"]),
            row["metric"],
            *(f"{row[column]:.6f}" for column in ("expected", "expected_got", "tolerance")),
        )
        for _, row in both.loc[bad.index].iterrows()
    ]


def unmoved(expected: pd.DataFrame, got: pd.DataFrame) -> int:
    """Count the expectations that are met in every digit that is written."""
    both = expected.merge(got, on=list(KEY), suffixes=("", "_got"))
    difference = (both["expected_got"] - both["expected"]).abs()
    return int((difference <= DIGITS_KEPT * both["expected"].abs()).sum())
