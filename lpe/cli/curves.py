"""What ``lpe plot`` draws: a curve a method out of results, or a file of predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpe.checks import check_integer
from lpe.cli.options import first_line
from lpe.errors import InputError
from lpe.evaluation.metrics import CalibrationBins
from lpe.evaluation.predictions import TOKENS, checked_predictions
from lpe.evaluation.score import means
from lpe.evaluation.score import score as scores
from lpe.evaluation.selective import risk_coverage_curve

WRITERS = "lpe evaluate --csv, lpe score --csv and lpe evaluate --predictions write what is drawn"
MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class Confidence:
    """What a mean of members says of its own predictions.

    Args:
        bins: of the ECE, with an example or more: mean confidence, share right, share of the examples.
        coverage, risk: of the risk-coverage curve. ece, aurc: fractions.
    """

    bins: list[tuple[float, float, float]]
    coverage: list[float]
    risk: list[float]
    ece: float
    aurc: float


@dataclass(frozen=True)
class Curve:
    """A method's numbers by size.

    Args:
        label: for the legend. sizes: members. values: "nll", and "ece", "bits" and "ms" where there are any,
            one a size each (NaN where there is none). confidence: None: of no file of predictions.
    """

    label: str
    sizes: list[int]
    values: dict[str, list[float]]
    confidence: Confidence | None = None


def curves(files: list[str], labels: list[str] | None, task: str | None, size: int | None) -> list[Curve]:
    """Return the curves of files, in their order.

    Args:
        files: results (.csv), or predictions. labels: one a file; None: the files' names, and in a table the
            methods'. task: of results on tasks. size: members whose confidence is drawn; None: all of a file.

    Raises:
        InputError: a file that is neither; other counts of labels than of files; a task or size that there
            is not.
    """
    if labels is not None and len(labels) != len(files):
        raise InputError(f"{len(labels)} labels and {len(files)} files; give --label once a file, or never")
    found: list[Curve] = []
    for place, file in enumerate(files):
        label = None if labels is None else labels[place]
        if Path(file).suffix.lower() == ".csv":
            found += _of_results(Path(file), label, task, several=len(files) > 1)
        else:
            found.append(_of_predictions(file, label or Path(file).stem, size))
    return found


def _of_results(path: Path, label: str | None, task: str | None, several: bool) -> list[Curve]:
    table = _table(path)
    if "task" in table:
        tasks = [str(each) for each in dict.fromkeys(table["task"])]
        chosen = tasks[0] if task is None and len(tasks) == 1 else task
        if chosen not in tasks:
            given = "several tasks" if task is None else f"no task {task!r}"
            raise InputError(f"{path} has {given}; give --task {', '.join(tasks)}, one of them")
        table = table[table["task"].astype(str) == chosen]
    names = [column for column in ("method", "number_system") if column in table]
    # Of a table without methods (of lpe score) all rows are one's.
    groups = table.groupby(names, sort=False) if names else [((), table)]
    return [_curve(_label(path, label, key, several), rows) for key, rows in groups]


def _label(path: Path, label: str | None, key: Any, several: bool) -> str:
    method, system = [*key, "", ""][:2]
    # The model as it is has its dtype as method and as number system.
    whole = " ".join(each for each in (method, "" if system.upper() in method else system) if each)
    before = label or (path.stem if several or not whole else "")
    return ": ".join(each for each in (before, whole) if each)


def _table(path: Path) -> Any:
    import pandas as pd

    if not path.is_file():
        raise InputError(f"there is no file {path}; {WRITERS}")
    try:
        table = pd.read_csv(path, keep_default_na=True, nrows=MOST_ROWS)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is no table of results ({first_line(error)}); {WRITERS}") from None
    for column in ("size", "nll"):
        if column not in table:
            raise InputError(f"{path} has no column {column!r}; {WRITERS}")
    for column in ("size", "nll", "ece", "memory_bits", "ms_per_example"):
        if column in table:
            table[column] = pd.to_numeric(table[column], errors="coerce")
    table = table[table["size"].notna() & (table["size"] >= 1) & table["nll"].map(math.isfinite)]
    for column in ("method", "number_system"):
        if column in table:
            table[column] = table[column].fillna("").astype(str)
    if table.empty:
        raise InputError(f"{path} has no row with a size and a finite NLL; {WRITERS}")
    return table


def _curve(label: str, table: Any, confidence: Confidence | None = None) -> Curve:
    ordered = table.sort_values("size")
    columns = {"nll": "nll", "ece": "ece", "bits": "memory_bits", "ms": "ms_per_example"}
    values = {
        name: [float(each) for each in ordered[column]]
        for name, column in columns.items()
        if column in ordered and ordered[column].notna().any()
    }
    return Curve(label, [int(each) for each in ordered["size"]], values, confidence)


def _of_predictions(file: str, label: str, size: int | None) -> Curve:
    held = checked_predictions(file)
    table = scores(file)
    if held.about["kind"] == TOKENS:
        return _curve(label, table)
    chosen = held.size if size is None else check_integer(f"--size of {file}", size, 1, held.size)
    log_probs, targets = means([held], chosen)
    confidence, predicted = log_probs.exp().max(dim=-1)
    return _curve(label, table, of_confidence(confidence, predicted == targets))


def of_confidence(confidence: Tensor, correct: Tensor) -> Confidence:
    """Return the reliability diagram and the risk-coverage curve.

    Args:
        confidence: float64 [examples], top probabilities. correct: bool [examples].
    """
    bins = CalibrationBins()
    bins.update(confidence, correct)
    count = bins.count.clamp(min=1)
    rows = torch.stack([bins.confidence / count, bins.correct / count, bins.count / len(correct)], dim=1)
    coverage, risk = risk_coverage_curve(confidence, correct)
    return Confidence(
        [(row[0], row[1], row[2]) for row in rows[bins.count > 0].tolist()],
        coverage.tolist(),
        risk.tolist(),
        bins.value(),
        float(risk.mean()),
    )
