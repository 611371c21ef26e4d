"""The printed tables of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lpe.ensembles.base import text_table

COLUMNS = {
    "nll": "NLL",
    "calibrated_nll": "calibrated NLL",
    "err": "ERR",
    "acc": "ACC",
    "ece": "ECE",
    "ambiguity": "AMB",
    "perplexity": "perplexity",
    "signed_ece": "signed ECE",
    "adaptive_ece": "adaptive ECE",
    "aurc": "AURC",
    "cov_at_5_risk": "coverage at 5 % risk",
    "risk_at_80_cov": "risk at 80 %",
    "auroc_errors": "AUROC of errors",
    "disagreement": "disagreement",
}
"""Metric → heading of the printed table; the files have every metric."""


def shown_sizes(size: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50 … up to a size, and the size itself."""
    decades = [factor * 10**power for power in range(len(str(size))) for factor in (1, 2, 5)]
    return sorted({*(each for each in decades if each <= size), size})


def tables(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of the sizes that are shown; a table per task where there are tasks."""
    found = []
    for task in dict.fromkeys(row.get("task") for row in rows):
        chosen = [row for row in rows if row.get("task") == task]
        shown = shown_sizes(max(row["size"] for row in chosen))
        there = [metric for metric in COLUMNS if any(row.get(metric) is not None for row in chosen)]
        cells = [
            (
                row["method"],
                row["number_system"],
                str(row["size"]),
                *(decimals(row.get(metric)) for metric in there),
                megabytes(row["memory_bits"]),
                "" if row.get("ms_per_example") is None else f"{row['ms_per_example']:.3g}",
            )
            for row in chosen
            if row["size"] in shown
        ]
        header = ("method", "numbers", "size", *(COLUMNS[each] for each in there), "MB", "ms per example")
        found.append(text_table(title if task is None else f"{title}, {task}", header, cells))
    return "\n\n".join(found)


def megabytes(bits: int) -> str:
    """Return bits as megabytes, to four digits."""
    return f"{bits / 8e6:.4g}"


def decimals(value: float | None) -> str:
    """Return a metric to four decimals; nothing where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
