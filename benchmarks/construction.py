"""Seconds to make one member, against copying the same weights and against rounding them in plain torch.

    python -m benchmarks.construction

Costs about a minute of one core. On a timm ViT-S/16 (22 M weights, random, 1,000 classes) one thread makes,
in turn, five times each: a member of an INT-5 LPE-BSR ensemble; a float32 copy of the quantised weights; and
a BSR of them with torch's own generator, which is the least that stochastic rounding costs without promising
the same bits everywhere. It prints the median seconds of each and their ratios to the copy, which are of one
run and so compare where seconds do not, from benchmarks/results/construction.csv.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import lpe
from benchmarks.command import conditions, parser
from benchmarks.vit import NAME, vit_small
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.records import check_writable, write_provenance, write_table

BITS = 5
REPEATS = 5
THREADS = 1
COLUMNS = ("what", "weights", "repeats", "median_seconds", "times_a_copy", "times_plain_bsr")
COPY = "float32 copy of the quantised weights"
PLAIN = "plain torch BSR: floor, rand_like, compare"
MEMBER = f"member of LowPrecisionEnsemble, INT-{BITS}"


def plain_bsr(weight: Tensor, largest_code: int) -> Tensor:
    """One BSR draw of a weight, a scale for each output channel: the peer, which stays as it is.

    Args:
        weight: float32 [out, …].
    """
    step = weight.flatten(1).abs().amax(dim=1) / largest_code
    step = step.view(-1, *[1] * (weight.dim() - 1))
    scaled = weight / step
    low = scaled.floor()
    return (low + (torch.rand_like(scaled) < scaled - low)).clamp_(-largest_code, largest_code) * step


def medians(jobs: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Median seconds of each job over REPEATS, the jobs in turn, after one call of each that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(REPEATS + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            made = job(repeat)
            taken = time.perf_counter() - started
            del made
            if repeat:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.no_grad()
def measure() -> list[dict[str, object]]:
    """A row of the table for each job."""
    torch.set_num_threads(THREADS)
    net = vit_small()
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), REPEATS + 1)
    chosen = {planned.name for planned in ensemble.plan if planned.quantised}
    weights = [value.detach() for name, value in net.named_parameters() if name in chosen]
    largest_code = lpe.Int(BITS).largest_code
    found = medians(
        {
            COPY: lambda _: [weight.clone() for weight in weights],
            PLAIN: lambda _: [plain_bsr(weight, largest_code) for weight in weights],
            MEMBER: ensemble.member,
        }
    )
    return [
        {
            "what": name,
            "weights": sum(weight.numel() for weight in weights),
            "repeats": REPEATS,
            "median_seconds": seconds,
            "times_a_copy": seconds / found[COPY],
            "times_plain_bsr": seconds / found[PLAIN],
        }
        for name, seconds in found.items()
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 2 after one line about bad input."""
    asked = parser("construction", __doc__).parse_args(arguments)
    try:
        check_writable(asked.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    started = time.time()
    write_table(measure(), asked.out / "construction.csv", COLUMNS)
    write_provenance(
        asked.out / "construction.json",
        ["benchmarks/construction.py"],
        {"network": f"timm {NAME}", "system": lpe.Int(BITS), "repeats": REPEATS},
        "cpu",
        [0],
        THREADS,
        started,
    )
    print(table_text(asked.out))
    return 0


def table_text(folder: Path) -> str:
    """The table with its conditions, from the files alone."""
    table = pd.read_csv(folder / "construction.csv")
    rows = [
        (
            str(row["what"]),
            f"{row['median_seconds']:.3f}",
            f"{row['times_a_copy']:.3g}",
            f"{row['times_plain_bsr']:.3g}",
        )
        for _, row in table.iterrows()
    ]
    title = f"Making one member, ViT-S/16, {table['weights'][0]:,} weights; medians of {REPEATS}"
    header = ("what", "seconds", "times a copy", "times plain BSR")
    return text_table(title, header, rows, conditions(folder / "construction.json"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
