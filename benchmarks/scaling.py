"""What a weight of a member costs as the weights and the members grow: nanoseconds, at 1×, 10×, 100× of each.

    python -m benchmarks.scaling

Costs about five minutes on two cores of an AMD EPYC, and 6 GB. A float32 matrix of 10 M, 100 M and 1,000 M
weights, and one of 1 M, which stays in the caches; INT-5, a scale for each output channel; 1, 10 and 100
independent members, one after another as an ensemble makes them, as codes into memory that is there. The
cases run in turn, three times each, a small one again and again until a billion weights are made; it prints
the median nanoseconds a weight and member, and each in units of 10 M weights and one member.

It promises at most 1.1 times that at any size, says where that is broken, and exits with 1 then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.timing import medians
from lpe.ensembles.base import text_table
from lpe.interruption import answered
from lpe.number_systems import kernels, rounding
from lpe.number_systems.grids import grid_of
from lpe.number_systems.kernels.arguments import Draw, Scales
from lpe.number_systems.layouts import Layout
from lpe.writing import check_writable

BITS = 5
REPEATS = 3
COLUMNS_OF_WEIGHT = 1024
WEIGHTS = tuple(factor * 2**20 for factor in (10, 100, 1000, 1))
MEMBERS = (1, 10, 100)
PROMISE = 1.1
LEAST = 2**30
"""Least weights times members that a timed call rounds, by repeating it."""
COLUMNS = ("weights", "members", "repeats", "median_seconds", "nanoseconds", "times_the_smallest")


@torch.no_grad()
def measure(sizes: Sequence[int] = WEIGHTS) -> list[dict[str, object]]:
    """Measure each number of weights and of members, a row each."""
    system = lpe.Int(BITS)
    jobs: dict[str, Callable[[int], object]] = {}
    calls: dict[str, int] = {}
    cases: dict[str, tuple[int, int]] = {}
    for count in sizes:
        weight = torch.randn((count // COLUMNS_OF_WEIGHT, COLUMNS_OF_WEIGHT))
        layout = Layout(tuple(weight.shape))
        scales = Scales.of(rounding.absmax_scales(weight, system, layout), layout, system.scale)
        out = torch.zeros((1, 1, count), dtype=torch.int8)

        make = partial(_made, weight.view(-1), scales, system, out)
        for members in MEMBERS:
            name = f"{count} weights, {members} members"
            cases[name] = (count, members)
            calls[name] = max(1, LEAST // (count * members))
            jobs[name] = partial(make, members)
    seconds = medians(jobs, REPEATS, calls, warm=False)
    each = {name: 1e9 * seconds[name] / (count * members) for name, (count, members) in cases.items()}
    smallest = each[next(iter(each))]
    return [
        {
            "weights": count,
            "members": members,
            "repeats": REPEATS,
            "median_seconds": seconds[name],
            "nanoseconds": each[name],
            "times_the_smallest": each[name] / smallest,
        }
        for name, (count, members) in cases.items()
    ]


def _made(
    flat: torch.Tensor, scales: Scales, system: lpe.Int, out: torch.Tensor, members: int, repeat: int
) -> None:
    """Make that many members, one after another, all into the same memory."""
    for member in range(members):
        draw = Draw("bernoulli", repeat, "weight", member)
        kernels.of(flat.device).encode(flat, scales, grid_of(system), draw, out=out)


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 1 where the promise is broken, 2 after one line about bad input."""
    asked = parser("scaling", __doc__).parse_args(arguments)
    check_writable(asked.out)
    started = time.time()
    config = {"system": lpe.Int(BITS), "repeats": REPEATS, "promise": PROMISE}
    write_results(asked.out, "scaling", {"scaling": measure()}, COLUMNS, config, started)
    print(table_text(asked.out))
    largest = float(pd.read_csv(asked.out / "scaling.csv")["times_the_smallest"].max())
    return 0 if largest <= PROMISE else 1


def table_text(folder: Path) -> str:
    """Return the table with its conditions and the verdict, from the files alone."""
    table = pd.read_csv(folder / "scaling.csv")
    rows = [
        (
            f"{int(row['weights']):,}",
            f"{int(row['members'])}",
            f"{row['median_seconds']:.4f}",
            f"{row['nanoseconds']:.3f}",
            f"{row['times_the_smallest']:.2f}",
        )
        for _, row in table.iterrows()
    ]
    largest = table["times_the_smallest"].max()
    verdict = (
        f"promise of at most {PROMISE} times the smallest: {'kept' if largest <= PROMISE else 'broken'} "
        f"({largest:.2f})"
    )
    header = ("weights", "members", "seconds", "ns a weight and member", "times the smallest")
    title = f"Independent INT-{BITS} members, one after another, as codes; medians of {REPEATS}"
    return text_table(title, header, rows, f"{verdict}\n{conditions(folder / 'scaling.json')}")


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
