"""Cells of a table's row: NLL, its paired difference, and the other metrics."""

from __future__ import annotations

from reproduce.draw.summaries import Summary, What
from reproduce.draw.tables import Cell

MEASURED = {
    "average loss": "average_loss",
    "AMB": "ambiguity",
    "ensemble loss": "ensemble_loss",
    "ERR": "err",
    "ECE": "ece",
    "Brier": "brier",
    "calibrated NLL": "calibrated_nll",
}


def numbers(summary: Summary, what: What, single: What) -> list[Cell]:
    """Return NLL with interval, its paired difference to the single FP32 model, and MEASURED's metrics."""
    means = [summary.mean(what, metric, 5 if metric == "ambiguity" else 4) for metric in MEASURED.values()]
    difference = None if what == single else summary.difference(what, single)
    return [summary.with_interval(what), difference, *means]
