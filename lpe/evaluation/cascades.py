"""Measures a cascade on chunks of batches: its metrics, a row a stage, out of one evaluation."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lpe.ensembles.cascade import Cascade
from lpe.errors import InputError
from lpe.evaluation.metrics import EnsembleMetrics, calibrated_sizes, nll, temperature_scaled
from lpe.logits import check_labels

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def evaluate_cascade(
    cascade: Cascade,
    chunks: Iterable[list[tuple[int, Any, Tensor]]],
    classes: list[int],
    calibrated: bool | Collection[int],
) -> pd.DataFrame:
    """Measure a cascade that ends after its first stage, its second, …; the last row is the cascade's.

    An example's average loss and ambiguity are over the members whose mean its prediction is.

    Args:
        cascade: what predicts.
        chunks: batches as (index, inputs, targets), some at a time; each member is made once a chunk.
        classes: one number, which is set to that of the classes once the first chunk has run.
        calibrated: also the column ``calibrated_nll``: of every row, or at these sizes.

    Returns:
        As :func:`lpe.evaluate`, with the members of each stage as ``size`` and a column
        ``members_per_example``: networks run an example, ``first`` included.

    Raises:
        InputError: as :func:`lpe.evaluate`.
    """
    import pandas as pd

    calibrated = calibrated_sizes(calibrated, cascade.stages)
    metrics = [EnsembleMetrics() for _ in cascade.stages]
    networks = [0] * len(cascade.stages)
    kept: list[list[Tensor]] = [[] for _ in cascade.stages]
    all_targets: list[Tensor] = []
    for chunk in chunks:
        targets = torch.cat([targets for _, _, targets in chunk])
        where = _named([index for index, _, _ in chunk]) + ": "
        for number, stage in enumerate(cascade.run([inputs for _, inputs, _ in chunk], where)):
            targets = targets.to(stage.log_probs.device)
            if not number:
                _check_rows(stage.log_probs, targets, where)
                check_labels(targets, stage.log_probs.shape[1], where)
            classes[0] = stage.log_probs.shape[1]
            member_nll = -stage.mean_log_probs.gather(1, targets[:, None])[:, 0]
            metrics[number].update(stage.log_probs, stage.mean_log_probs, member_nll, targets)
            networks[number] += int(stage.networks.sum())
            if cascade.stages[number] in calibrated:
                kept[number].append(stage.log_probs.cpu())
        all_targets.append(targets.cpu())
    if not all_targets:
        raise InputError("the batches are empty; there is nothing to evaluate")
    every_target = torch.cat(all_targets)
    rows = []
    for number, size in enumerate(cascade.stages):
        row: dict[str, float | int] = {"size": size, **metrics[number].values()}
        row["memory_bits"] = cascade.memory_bits(number + 1)
        row["members_per_example"] = networks[number] / len(every_target)
        if calibrated:
            row["calibrated_nll"] = math.nan
        if kept[number]:
            row["calibrated_nll"] = nll(
                temperature_scaled(torch.cat(kept[number]), every_target), every_target
            )
        rows.append(row)
    return pd.DataFrame(rows)


def _named(batches: list[int]) -> str:
    return f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"


def _check_rows(log_probs: Tensor, targets: Tensor, where: str) -> None:
    if len(log_probs) != len(targets):
        raise InputError(
            f"{where}{len(log_probs)} rows of logits for {len(targets)} targets; [examples, classes] is "
            "needed"
        )
