"""Metric regression: have NLL, ERR, ECE or AMB of any method moved?

    python -m benchmarks regression
    python -m benchmarks regression --update --reason "why the numbers are expected to move"

Costs about two minutes of one core. Every method is trained and measured from nothing at a reduced digits
size (``SCALE`` below) over three training seeds; the means over the seeds are compared with expected.csv,
beside this file. It prints a table of what moved (metric, expected, got, tolerance) and exits with 1, or says
that nothing moved and exits with 0.

Tolerances. The same seeds are measured again, with kernels that give the same bits on every x86-64 CPU with
AVX2 (reproduce/same_bits.py): a change of code that should change nothing leaves every digit, and how many
metrics it left so is printed. Other versions of packages, and code that is the same in exact arithmetic, move
last bits, and training amplifies that. A tolerance is TOLERANCE of the standard deviation over the training
seeds, and at least FLOOR, for ERR the flip of two predictions in all and for ECE half of one. ``--update``
measures the amplification, too: it trains once more from weights that were moved by one part in 10⁶, and
writes how much of the tolerances that uses up.

Two rows are of no method: confidences that lie exactly on the edges of ECE's bins, which networks never
show, and the temperature itself, in which NLL is too flat to tell that it is off.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from reproduce import same_bits

if "torch" not in sys.modules:
    same_bits.choose([])

import numpy as np
import pandas as pd
import torch
from torch import nn

import lpe
from benchmarks.command import parser
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.evaluation.metrics import ECE_BINS, CalibrationBins, fit_temperature
from lpe.evaluation.predict import member_log_probs
from lpe.records import write_table
from lpe.store import Store
from lpe.tracking import Tracker
from lpe.writing import write_text_atomic
from reproduce.scales.digits.settings import SGD, VALUES, VIT, scale_of
from reproduce.study.measurements import measure
from reproduce.study.records import rows_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units

FOLDER = Path(__file__).parent
SEEDS = (0, 1, 2)
TOLERANCE = 0.05
"""Share of the standard deviation over training seeds."""
FLOOR = 1e-6
FLIPS = 2
"""Predictions, over all seeds, that may change without ERR having moved."""
CROSSING = 0.5
"""Predictions, over all seeds, by which ECE may change without having moved."""
DIGITS_KEPT = 1e-11
"""Relative; expectations are written to 12 digits."""
METRICS = ("nll", "err", "ece", "ambiguity")
KEY = ("point", "method", "number_system", "size", "metric")
COLUMNS = (*KEY, "expected", "tolerance", "std_over_seeds")

_SGD = replace(SGD, epochs=8)
SCALE: Scale = scale_of(
    replace(
        VALUES,
        name="regression",
        network=replace(VIT, width=24),
        pre_training=replace(VALUES.pre_training, epochs=4),
        sgd=_SGD,
        swag=replace(VALUES.swag, sgd=_SGD, start_epoch=4, rank=4),
        ivon=replace(VALUES.ivon, epochs=8),
        snapshot=replace(VALUES.snapshot, cycles=2, epochs_per_cycle=5),
        cyclical_sgld=replace(
            VALUES.cyclical_sgld,
            cycles=2,
            epochs_per_cycle=5,
            sampling_steps=86,
            samples_per_cycle=2,
            spacing=43,
        ),
        batch_ensemble=replace(VALUES.batch_ensemble, members=2, epochs=8),
        members=2,
        draws_per_posterior=3,
        settings=replace(
            VALUES.settings,
            size=5,
            table_sizes=(1, 5),
            claim_size=5,
            draws=2,
            bits=(5, 3),
            best_bits=5,
            expansion=2,
        ),
    )
)


@contextmanager
def session(scale: Scale, folder: Path) -> Iterator[Session]:
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
        seeds=list(SEEDS),
        claim_seeds=list(SEEDS),
        out=folder,
        working=Path(tempfile.mkdtemp(dir=folder)),
    )


def measured(
    scale: Scale = SCALE,
    whats: Sequence[str] = (*SCALE.points, *SCALE.families),
    folder: Path | None = None,
) -> pd.DataFrame:
    """Measure these units, trained where the folder's store lacks them: rows of KEY, seed and value.

    Args:
        whats: names of units. folder: of the trained weights; None: a temporary one.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return measured(scale, whats, Path(temporary))
    wanted: list[Unit] = units([scale.main], whats, SEEDS)
    with session(scale, folder) as opened:
        for unit in wanted:
            print(f"\r{unit.what}, seed {unit.seed}        ", end="", file=sys.stderr, flush=True)
            measure(opened, unit)
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
        rows = rows_of(opened, wanted)
        temperatures = [(seed, _temperature(opened, seed)) for seed in SEEDS if "SGD" in whats]
    rows = rows[rows["metric"].isin(METRICS)]
    largest = rows.groupby(["point", "method", "number_system"])["size"].transform("max")
    kept = rows[rows["size"] == largest][[*KEY, "seed", "value"]]
    probes = [
        (("SGD", "FP32 + temperature", "fp32", 1, "temperature"), seed, value) for seed, value in temperatures
    ]
    probes.append((("", "confidences on the edges", "", 1, "ece"), 0, edge_ece()))
    more = [{**dict(zip(KEY, key, strict=True)), "seed": seed, "value": v} for key, seed, v in probes]
    return pd.concat([kept, pd.DataFrame(more)], ignore_index=True)


def _temperature(session: Session, seed: int) -> float:
    """Fit the temperature of the single model on validation images."""
    net: nn.Module = session.main.point(session, "SGD", seed).net
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
    grouped = rows.groupby(list(KEY), sort=True)["value"]
    table = grouped.agg(expected="mean", std_over_seeds="std").fillna(0.0).reset_index()
    floor = pd.Series(FLOOR, index=table.index)
    assert SCALE.main is not None
    images = sum(SCALE.main.source.load(seed).test_count for seed in SEEDS)
    floor[table["metric"] == "err"] = (FLIPS + 0.5) / images
    # An image that crosses an edge of a bin moves ECE by a step; the probe of the edges has no images.
    floor[(table["metric"] == "ece") & (table["point"] != "")] = CROSSING / images
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
            " ".join(str(row[column]) for column in ("point", "method", "number_system") if row[column]),
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


def _nudged(scale: Scale) -> Scale:
    """Return a scale whose trainings start a part in 10⁶ apart: what float rounding may do elsewhere."""
    assert scale.main is not None
    source = scale.main.source
    shape = replace(source.shape, position_std=source.shape.position_std * (1 + 1e-6))
    return replace(scale, main=replace(scale.main, source=replace(source, shape=shape)))


def main(arguments: Sequence[str]) -> int:
    """Compare, or write what is expected; 1 where a metric moved, 2 after one line about bad input."""
    options = parser("regression", __doc__)
    options.set_defaults(out=FOLDER)
    options.add_argument("--update", action="store_true", help="write what was measured as expected")
    options.add_argument("--reason", help="why it changes: kept in expected.json (with --update)")
    asked = options.parse_args(arguments)
    try:
        if asked.update and not (asked.reason or "").strip():
            raise InputError('--update needs a reason, such as --reason "ECE counts empty bins"')
        if asked.reason and not asked.update:
            raise InputError("--reason goes with --update")
        path = asked.out / "expected.csv"
        if not asked.update and not path.is_file():
            raise InputError(f"there is no {path}; write it with --update")
        got = summary(measured())
        if asked.update:
            _write(asked.out, got, asked.reason.strip())
            return 0
        expected = pd.read_csv(path, keep_default_na=False)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = moved(expected, got)
    if not rows:
        exact = unmoved(expected, got)
        print(f"{len(expected)} metrics of every method are as expected, {exact} of them in every digit")
        return 0
    header = ("what", "size", "metric", "expected", "got", "tolerance")
    print(text_table(f"{len(rows)} of {len(expected)} metrics moved", header, rows))
    return 1


def _write(folder: Path, got: pd.DataFrame, reason: str) -> None:
    nudged = summary(measured(_nudged(SCALE)))
    both = got.merge(nudged, on=list(KEY), suffixes=("", "_nudged"))
    used = (both["expected_nudged"] - both["expected"]).abs() / both["tolerance"]
    worst = both.iloc[int(used.to_numpy().argmax())]
    history = []
    about = folder / "expected.json"
    if about.is_file():
        history = json.loads(about.read_text(encoding="utf-8"))["reasons"]
    told = {
        "tolerance": f"{TOLERANCE} of the standard deviation over training seeds {list(SEEDS)}, "
        f"at least {FLOOR}; for err at least {FLIPS}.5 and for ece {CROSSING} predictions in all",
        "weights_moved_by_a_millionth_use_of_the_tolerances": {
            "median": float(used.median()),
            "largest": float(used.max()),
            "largest_at": " ".join(str(worst[column]) for column in KEY),
        },
        "reasons": [*history, {"utc": datetime.now(UTC).date().isoformat(), "reason": reason}],
    }
    write_table(got, folder / "expected.csv", COLUMNS)
    write_text_atomic(about, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    print(f"wrote {len(got)} expectations to {folder / 'expected.csv'}")
