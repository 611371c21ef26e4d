"""Weights rounded in a second: members against a copy of the same weights, plain torch, QPyTorch and gfloat.

    python -m benchmarks.construction

Costs about two minutes on two cores of an AMD EPYC. On two float32 matrices, [250, 400] and [4096, 4096],
INT-5, a scale for each output channel, the jobs run in turn, five times each. It prints the median time of
each, and its speed in units of a float32 copy (into memory that is there) and of plain torch's BSR, which is
the least that stochastic rounding costs without promising the same bits everywhere.

A member is written as codes (int8), or as float32 weights, into memory that is there; its scales are at hand,
as an ensemble has them, while plain torch's peers take theirs anew. "Each further" is what a member adds to
a call that makes several: (11 members − 1) / 10. QPyTorch and gfloat know no scales and are given scaled
weights; they are left out where they are not installed (``pip install qtorch ninja gfloat``).

What a user calls stands beside the bare kernels: ``lpe.round_weights`` and ``lpe.encode``, which check the
weight, take its scales and make new memory, and an ensemble's ``in_turn``, which re-rounds a layer into the
memory of the member before.

It keeps its promises, or says which is broken and exits with 1: at 16.8 M weights, independent members as
codes at 30 times plain torch and a fifth of a copy, each further coupled member at two fifths of a copy,
``round_weights`` at 20 times plain torch and ``in_turn`` at 30; at 100 thousand, both codes and
``round_weights`` at 10 times. These are of an AMD EPYC: on an Intel Xeon, whose plain torch is faster and
whose kernel is slower, ``round_weights`` at 12 times and ``in_turn`` at 18.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.peers import bernoulli_bsr, gfloat_stochastic, plain_bsr, qpytorch
from benchmarks.timing import medians
from lpe.ensembles.base import text_table
from lpe.interruption import answered
from lpe.number_systems import kernels, rounding
from lpe.number_systems.grids import grid_of
from lpe.number_systems.kernels.arguments import Coded, Draw, Scales
from lpe.number_systems.layouts import Layout
from lpe.writing import check_writable

BITS = 5
REPEATS = 5
FURTHER = 10
MEMBERS = 10_000
"""Members of the ensemble that is gone through: more than are timed, so that none is made anew."""
SHAPES = ((250, 400), (4096, 4096))
COLUMNS = (
    "what",
    "writes",
    "weights",
    "repeats",
    "median_seconds",
    "million_weights_per_second",
    "of_a_copy",
    "times_plain",
)
COPY = "copy"
PLAIN = "plain torch: floor, rand_like, compare"
BERNOULLI = "torch.bernoulli"
QPYTORCH = "QPyTorch: fixed_point_quantize, stochastic"
GFLOAT = "gfloat: stochastic, INT-8"
NEAREST = "nearest"
MEMBER = "independent member"
MEMBER_VALUES = "independent member "
FROM_CODES = "independent member, from INT-8 codes"
COUPLED = "coupled member, the first"
ROUND_WEIGHTS = "lpe.round_weights"
ENCODE = "lpe.encode"
IN_TURN = "a member of in_turn"
NEXT_MEMBER = "each further independent member"
NEXT_COUPLED = "each further coupled member"
WRITES = {
    COPY: "float32",
    PLAIN: "float32",
    BERNOULLI: "float32",
    QPYTORCH: "float32",
    GFLOAT: "float32",
    MEMBER_VALUES: "float32",
    ROUND_WEIGHTS: "float32",
    IN_TURN: "float32",
}
PROMISES = (
    (2**24, MEMBER, "times_plain", 30.0),
    (2**24, MEMBER, "of_a_copy", 0.2),
    (2**24, NEXT_COUPLED, "of_a_copy", 0.4),
    (100_000, MEMBER, "times_plain", 10.0),
    (2**24, ROUND_WEIGHTS, "times_plain", 20.0),
    (2**24, IN_TURN, "times_plain", 30.0),
    (100_000, ROUND_WEIGHTS, "times_plain", 10.0),
)
"""Promises: (weights, what, column, at least)."""
ON_XEON = {ROUND_WEIGHTS: 12.0, IN_TURN: 18.0}
"""What is promised instead of large weights on an Intel Xeon."""


def forever(ensemble: lpe.LowPrecisionEnsemble) -> Iterator[nn.Module]:
    """Yield the members in turn, again and again."""
    while True:
        yield from ensemble.in_turn()


@torch.no_grad()
def jobs(shape: tuple[int, int]) -> dict[str, Callable[[int], Any]]:
    """Return what is done to a weight of that shape, by name; a job is given the number of its repeat."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    system = lpe.Int(BITS)
    grid, layout = grid_of(system), Layout(shape)
    backend = kernels.of(weight.device)
    scales = Scales.of(rounding.absmax_scales(weight, system, layout), layout, system.scale)
    flat = weight.view(-1)
    base_codes, base_scales = lpe.encode(weight, lpe.Int(8), "nearest")
    coded = Coded(base_codes.view(-1), Scales.of(base_scales, layout, system.scale), grid_of(lpe.Int(8)))
    codes = torch.zeros((1 + FURTHER, 1, flat.numel()), dtype=torch.int8)
    values = torch.zeros((1, 1, flat.numel()))
    layer = nn.Linear(shape[1], shape[0], bias=False, dtype=weight.dtype).requires_grad_(False)
    layer.weight.copy_(weight)
    members = forever(lpe.LowPrecisionEnsemble(layer, system, MEMBERS))

    def made(name: str, members: int = 1, source: torch.Tensor | Coded = flat) -> Callable[[int], object]:
        return lambda repeat: backend.encode(
            source, scales, grid, Draw(name, 0, "weight", repeat), members, out=codes[:members]
        )

    return {
        COPY: lambda _: values.view(-1).copy_(flat),
        PLAIN: lambda _: plain_bsr(weight, system.largest_code),
        BERNOULLI: lambda _: bernoulli_bsr(weight, system.largest_code),
        NEAREST: made("nearest"),
        MEMBER: made("bernoulli"),
        MEMBER_VALUES: lambda repeat: backend.round_into(
            values, flat, scales, grid, Draw("bernoulli", 0, "weight", repeat)
        ),
        ROUND_WEIGHTS: lambda repeat: lpe.round_weights(weight, system, seed=repeat),
        ENCODE: lambda repeat: lpe.encode(weight, system, seed=repeat),
        IN_TURN: lambda _: next(members),
        FROM_CODES: made("bernoulli", source=coded),
        COUPLED: made("coupled"),
        NEXT_MEMBER: made("bernoulli", 1 + FURTHER),
        NEXT_COUPLED: made("coupled", 1 + FURTHER),
    }


@torch.no_grad()
def peer_jobs(shape: tuple[int, int], absent: dict[str, str]) -> dict[str, Callable[[int], Any]]:
    """Return those of QPyTorch and gfloat on the weight, scaled; tell ``absent`` which are not there."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scaled = weight / rounding.absmax_scales(weight, lpe.Int(BITS), Layout(shape))
    found: dict[str, Callable[[int], Any]] = {}
    for name, peer in ((QPYTORCH, qpytorch(BITS)), (GFLOAT, gfloat_stochastic())):
        if isinstance(peer, str):
            absent[name] = peer
        else:
            found[name] = lambda _, peer=peer: peer(scaled)  # type: ignore[misc]
    return found


@torch.no_grad()
def measure(shape: tuple[int, int], absent: dict[str, str]) -> list[dict[str, object]]:
    """Measure each job on a weight of that shape, a row each; tell ``absent`` which peers are not there."""
    weights = shape[0] * shape[1]
    timed = jobs(shape) | peer_jobs(shape, absent)
    seconds = medians(timed, REPEATS, dict.fromkeys(timed, max(1, 2**22 // weights)))
    for further, first in ((NEXT_MEMBER, MEMBER), (NEXT_COUPLED, COUPLED)):
        seconds[further] = (seconds[further] - seconds[first]) / FURTHER
    return [
        {
            "what": name.strip(),
            "writes": WRITES.get(name, "codes"),
            "weights": weights,
            "repeats": REPEATS,
            "median_seconds": taken,
            "million_weights_per_second": weights / taken / 1e6,
            "of_a_copy": seconds[COPY] / taken,
            "times_plain": seconds[PLAIN] / taken,
        }
        for name, taken in seconds.items()
    ]


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 1 where a promise is broken, 2 after one line about bad input."""
    asked = parser("construction", __doc__).parse_args(arguments)
    check_writable(asked.out)
    started = time.time()
    absent: dict[str, str] = {}
    rows = [row for shape in SHAPES for row in measure(shape, absent)]
    config = {"shapes": SHAPES, "system": lpe.Int(BITS), "repeats": REPEATS, "not_installed": sorted(absent)}
    write_results(asked.out, "construction", {"construction": rows}, COLUMNS, config, started)
    print(table_text(asked.out))
    for name, why in absent.items():
        print(f"left out: {name} ({why})")
    kept = [promise_kept(asked.out, promise, measured_on_xeon(asked.out)) for promise in PROMISES]
    return 0 if all(kept) else 1


def measured_on_xeon(folder: Path) -> bool:
    """Tell whether the CPU of the table is an Intel Xeon."""
    told = json.loads((folder / "construction.json").read_text(encoding="utf-8"))
    return "Xeon" in told["device"]["cpu"]


def promise_kept(folder: Path, promise: tuple[int, str, str, float], is_xeon: bool = False) -> bool:
    """Tell, and print, whether the table keeps one of PROMISES."""
    weights, what, column, least = promise
    if is_xeon and weights == 2**24:
        least = ON_XEON.get(what, least)
    table = pd.read_csv(folder / "construction.csv")
    writes = WRITES.get(what, "codes")
    chosen = table[(table["weights"] == weights) & (table["what"] == what) & (table["writes"] == writes)]
    found = float(chosen[column].iloc[0])
    unit = "times plain torch" if column == "times_plain" else "of a copy"
    verdict = "kept" if found >= least else "broken"
    print(f"{verdict}: {what}, {weights:,} weights: {found:.3g} {unit}, at least {least:g} promised")
    return found >= least


def table_text(folder: Path) -> str:
    """Return the tables with their conditions, from the files alone."""
    table = pd.read_csv(folder / "construction.csv")
    tables = []
    for weights, rows in table.groupby("weights"):
        cells = [
            (
                str(row["what"]),
                str(row["writes"]),
                f"{1000 * row['median_seconds']:.3g}",
                f"{row['million_weights_per_second']:.3g}",
                f"{row['of_a_copy']:.2g}",
                f"{row['times_plain']:.3g}",
            )
            for _, row in rows.iterrows()
        ]
        title = f"{weights:,} weights rounded, INT-{BITS}; medians of {REPEATS}"
        header = ("what", "writes", "ms", "M weights/s", "of a copy", "times plain torch")
        tables.append(text_table(title, header, cells))
    return "\n\n".join(tables) + "\n" + conditions(folder / "construction.json")


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
