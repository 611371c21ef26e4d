"""The rows of a result: the model as it is, with a temperature, rounded to nearest, and the ensemble."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lpe.cli.kept import Kept
from lpe.cli.methods import METHODS, title_of
from lpe.cli.options import EnsembleOptions
from lpe.cli.subjects import Subject, Written
from lpe.ensembles.base import Ensemble
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.evaluation.metrics import temperature_scaled
from lpe.evaluation.predict import scaled_metrics
from lpe.evaluation.predictions import partial_folder, read_predictions
from lpe.evaluation.timing import MemberTimer
from lpe.modules import dtype_name
from lpe.number_systems.grids import FullPrecision
from lpe.progress import Progress
from lpe.training.checkpoints import UNDER_WAY

UNSCALED = (
    "method",
    "number_system",
    "rounding",
    "task",
    "size",
    "err",
    "acc",
    "memory_bits",
    "generator_bits",
)
"""Columns that a temperature leaves as they are."""
NOTHING_KEPT = Kept(None, "", False)


def rows_of(
    subject: Subject,
    ensemble: Ensemble,
    asked: EnsembleOptions,
    calibrated: bool,
    predictions: Written | None = None,
    kept: Kept = NOTHING_KEPT,
) -> list[dict[str, object]]:
    """Return every row of the result: the model, the model with a temperature, RTN, and every ensemble size.

    The predictions that are written are those of the ensemble asked for, the last row; without rounding it is
    the model as it is. Where the subject has training batches RTN and the ensemble are there twice, with the
    model's batch-norm statistics and with re-estimated ones; under the absolute form the model too, which
    under the relative one stays as it is.

    Args:
        kept: where rows are kept as they are measured.
    """
    system, patterns = asked.number_system(), asked.patterns
    rounds = not isinstance(system, FullPrecision)
    kinds: list[tuple[str, dict[str, Any]]] = [("", {})]
    if subject.training is not None:
        batches, form = subject.training
        kinds.append((f", re-estimated ({form})", {"batches": batches, "refresh": form}))
    measured: list[dict[str, object]] = []
    last = kinds[-1][0]
    is_rtn = rounds and isinstance(ensemble, LowPrecisionEnsemble) and ensemble.rounding == "nearest"
    is_model = not rounds and asked.method == "lpe"
    has_rtn = rounds and asked.method != "mc-dropout"
    has_members = not (is_model or is_rtn)
    absolute = any(settings.get("refresh") == "absolute" for _, settings in kinds)
    passes = _own_passes(subject, predictions if is_model else None, kept) + int(absolute)
    passes += (int(has_rtn) + has_members * len(ensemble)) * len(kinds)
    with _progress(subject, [subject.model], passes) as progress:
        place = predictions if is_model else None
        as_it_is = _add_model(measured, subject, kept, progress, **patterns, predictions=place)
        for kind, settings in kinds:
            if settings.get("refresh") == "absolute":
                single = LowPrecisionEnsemble(subject.model, FullPrecision(), 1, **patterns, **settings)
                measured += _measured(subject, kept, progress, as_it_is + kind, single, as_it_is.lower(), "")
        for kind, settings in kinds:
            if has_rtn:
                nearest = LowPrecisionEnsemble(
                    subject.model, system, 1, asked.seed, "nearest", **patterns, **settings
                )
                place = predictions if is_rtn and kind == last else None
                measured += _measured(
                    subject, kept, progress, "RTN" + kind, nearest, system.name, "nearest", place
                )
        for kind, settings in kinds:
            if not has_members:  # the rows are there
                break
            members = asked.ensemble(subject.model, **settings) if settings else ensemble
            title, numbers, rounding = title_of(asked.method), system.name, ""
            if isinstance(members, MCDropoutEnsemble):
                numbers = as_it_is.lower()
            elif isinstance(members, LowPrecisionEnsemble):
                title, rounding = _title(members.rounding), members.rounding
            place = predictions if kind == last else None
            measured += _measured(subject, kept, progress, title + kind, members, numbers, rounding, place)
    return _cleaned(measured, calibrated)


def rows_of_packed(
    subject: Subject,
    ensemble: Ensemble,
    is_own: bool,
    calibrated: bool,
    predictions: Written | None = None,
    kept: Kept = NOTHING_KEPT,
) -> list[dict[str, object]]:
    """Return a packed ensemble's rows, one a size, after the model's, where it is the one that was packed."""
    measured: list[dict[str, object]] = []
    skeleton = getattr(ensemble, "model", subject.model)
    own = _own_passes(subject, None, kept) if is_own else 0
    with _progress(subject, [subject.model, skeleton], own + len(ensemble)) as progress:
        if is_own:
            _add_model(measured, subject, kept, progress)
        rounding = getattr(ensemble, "rounding", None) or ""
        title = _title(rounding) if rounding else "packed"
        measured += _measured(
            subject, kept, progress, title, ensemble, system_name(ensemble), rounding, predictions
        )
    return _cleaned(measured, calibrated)


def _add_model(
    measured: list[dict[str, object]],
    subject: Subject,
    kept: Kept,
    progress: Progress,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    predictions: Written | None = None,
) -> str:
    """Append the rows of the model as it is and with a temperature; return its name."""
    name = dtype_name(subject.model)
    single = LowPrecisionEnsemble(subject.model, FullPrecision(), 1, include=include, exclude=exclude)
    written = kept.place() if predictions is None else predictions.path
    measured += _measured(subject, kept, progress, name, single, name.lower(), "", predictions)
    scaled = f"{name} + temperature"
    with progress.stage(scaled, (_own_passes(subject, predictions, kept) - 1) * (subject.steps or 0)):
        measured += kept.rows(lambda: _with_temperature(subject, single, measured, scaled, written))
    return name


def _measured(
    subject: Subject,
    kept: Kept,
    progress: Progress,
    method: str,
    ensemble: Ensemble,
    numbers: str,
    rounding: str,
    predictions: Written | None = None,
) -> list[dict[str, object]]:
    """Return a row per size, and per task where there are tasks: kept ones, or measured now.

    There is no time where predictions of an earlier run are there, whole or in part, and where other
    processes have run the members.
    """
    # What is not asked for is kept as it is, so that its rows are what they are without a file.
    own = kept.place()
    written = predictions if predictions or own is None else Written(own, "float64")

    def measure() -> list[dict[str, object]]:
        timer = MemberTimer(len(ensemble), next(subject.model.parameters()).device)
        is_new = written is None or not _is_begun(written.path)
        if is_new:
            _warm_up(subject, ensemble, progress)
        table = subject.measure(ensemble, timer, written)
        is_timed = is_new and timer.examples
        milliseconds = timer.milliseconds_per_example() if is_timed else [None] * len(ensemble)
        rows = []
        for row in table.to_dict("records"):
            size = int(row["size"])
            identity = {"method": method, "number_system": numbers, "rounding": rounding}
            generator = ensemble.memory_bits(size, storage="generator")
            cost = {"generator_bits": generator, "ms_per_example": milliseconds[size - 1]}
            rows.append({**identity, **{str(key): value for key, value in row.items()}, **cost})
        return rows

    with progress.stage(method, len(ensemble) * (subject.steps or 0)):
        return kept.rows(measure)


def _warm_up(subject: Subject, ensemble: Ensemble, progress: Progress) -> None:
    """Make and run a member once, untimed: compilers and libraries take their time at the first call.

    Not of members with re-estimated statistics, which are kept once they are there: the same kernels ran
    for the rows before, and making the first member is of the time that is taken.
    """
    if subject.warm is None or getattr(ensemble, "batch_norm", None) is not None:
        return
    progress.counting = False
    try:
        subject.warm(next(iter(ensemble.in_turn())))
    finally:
        progress.counting = True


def _own_passes(subject: Subject, predictions: Written | None, kept: Kept) -> int:
    """Return how often the unrounded model runs over the data: once, and once more for its temperature.

    Where its predictions are kept in a file, the temperature is fitted on these.
    """
    return 1 if subject.scaled is None or predictions is not None or kept.has_room else 2


def _is_begun(predictions: Path) -> bool:
    """Tell whether predictions are there, whole or in part: a file's, or a folder's of tasks."""
    places = (partial_folder(predictions), predictions / UNDER_WAY)
    return predictions.is_file() or any(place.exists() for place in places)


def _cleaned(measured: Sequence[Mapping[str, object]], calibrated: bool) -> list[dict[str, object]]:
    """Return the rows with the same columns each, as the files have them."""
    dropped = {"calibrated_ece", "calibrated_brier", *(() if calibrated else ("calibrated_nll",))}
    columns = [each for each in dict.fromkeys(c for row in measured for c in row) if each not in dropped]
    return [{column: _plain(row.get(column)) for column in columns} for row in measured]


def system_name(ensemble: Ensemble) -> str:
    """Return the number system's name; nothing where there is none, or one a part."""
    name: str = getattr(getattr(ensemble, "system", None), "name", "")
    return name


def _with_temperature(
    subject: Subject,
    single: Ensemble,
    measured: Sequence[Mapping[str, object]],
    method: str,
    written: Path | None,
) -> list[dict[str, object]]:
    """Return the single model's rows with a temperature, fitted for each fold of examples on the others.

    Args:
        written: a file of its predictions, where there is one: then it need not run again.
    """
    if subject.scaled is not None:
        same = {column: measured[0][column] for column in UNSCALED if column in measured[0]}
        if written is not None and written.is_file():
            held = read_predictions(written)
            log_probs = held.log_probs(0, 0, len(held.targets)).double()
            found = scaled_metrics(temperature_scaled(log_probs, held.targets), held.targets)
        else:
            found = dict(subject.scaled(single))
        return [same | {"method": method} | found]
    rows = []
    for row in measured:  # the calibrated metrics of tasks come with the others
        scaled = {metric: row.get(f"calibrated_{metric}") for metric in ("nll", "ece", "brier")}
        if _plain(scaled["nll"]) is not None:  # of multiple choice
            same = {column: row[column] for column in UNSCALED if column in row}
            rows.append(same | {"method": method} | scaled)
    return rows


def _title(rounding: str) -> str:
    return METHODS["lpe"] if rounding == "bernoulli" else f"LPE, {rounding} rounding"


def _progress(subject: Subject, networks: Sequence[nn.Module], passes: int) -> Progress:
    """Return a count of batches, over all passes; lm-eval's tasks have their own.

    Of several processes the first has one, of its own share.
    """
    progress = Progress(passes * subject.steps if subject.steps else None, "batches")
    if subject.steps:

        def advance(*_: object) -> None:
            progress.update()

        # Members are structural copies, and a copy keeps the hook: it sees every batch of every member.
        for network in {id(each): each for each in networks}.values():
            network.register_forward_hook(advance)
    return progress


def _plain(value: Any) -> Any:
    """Return a cell as JSON has it: None for NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
