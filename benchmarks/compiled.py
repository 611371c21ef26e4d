"""Whether ``torch.compile`` pays for an ensemble: what compiling takes, and what it saves for each pass.

    python -m benchmarks.compiled

Costs about seven minutes on two cores of an AMD EPYC, and needs a C++ compiler. Twenty LPE-BSR INT-5 members
are drawn in turn into the memory of one network, as ``lpe.evaluate`` does, which is compiled once for all of
them: a timm ViT-S/16 on 32 images, and a ViT of 67 thousand weights on 64 images of 8×8. The members run as
they are and compiled, in turn, REPEATS times each; medians. The first pass of a compiled network, less a
later one, is the time of compiling: in the first repeat with an empty cache on the disk, then with the code
of the first there.

It prints milliseconds a pass, seconds of compiling, and after how many passes (members times batches) that
pays: "never" where a compiled pass is not faster, as of the ViT-S/16; of the small one a pass takes .71 of
the time. No promise hangs on it: it says whether ``lpe.evaluate`` should offer ``torch.compile``.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.vit import image_batch, vit_small
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.substrates import digits
from lpe.writing import check_writable

MEMBERS = 20
BITS = 5
REPEATS = 3
CACHE = "TORCHINDUCTOR_CACHE_DIR"
COLUMNS = (
    "network",
    "batch",
    "members",
    "repeats",
    "plain_seconds_a_pass",
    "compiled_seconds_a_pass",
    "compile_seconds",
    "compile_seconds_from_cache",
)


def small() -> tuple[nn.Module, Tensor]:
    """Return the digits' ViT-T and a batch for it."""
    net = digits.network(digits.DigitsNetwork(4, 64, 2, 4, 2.0, 0.02), 10, 0).eval()
    return net, torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "digits ViT, width 64": small,
    "ViT-S/16": lambda: (vit_small(), image_batch(32)[0]),
}


@torch.no_grad()
def passes(ensemble: lpe.LowPrecisionEnsemble, inputs: Tensor, compiled: bool) -> tuple[float, float]:
    """Time the first member's pass, and one pass of the others, with drawing them: seconds."""
    if compiled:
        torch._dynamo.reset()
    turn = ensemble.in_turn()
    net: Any = next(turn)
    run = torch.compile(net) if compiled else net
    started = time.perf_counter()
    run(inputs)
    began = time.perf_counter()
    for _ in turn:  # the same network with other weights
        run(inputs)
    return began - started, (time.perf_counter() - began) / (len(ensemble) - 1)


def measure(name: str) -> dict[str, object]:
    """Measure a network: its row."""
    net, inputs = NETWORKS[name]()
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), MEMBERS)
    plain, compiled, compiling = [], [], []
    for _ in range(REPEATS):
        plain.append(passes(ensemble, inputs, compiled=False)[1])
        first, later = passes(ensemble, inputs, compiled=True)
        compiled.append(later)
        compiling.append(first - later)
    return {
        "network": name,
        "batch": len(inputs),
        "members": MEMBERS,
        "repeats": REPEATS,
        "plain_seconds_a_pass": statistics.median(plain),
        "compiled_seconds_a_pass": statistics.median(compiled),
        "compile_seconds": compiling[0],
        "compile_seconds_from_cache": statistics.median(compiling[1:]),
    }


@contextmanager
def empty_cache() -> Iterator[None]:
    """Leave no compiled code on the disk within the block."""
    kept = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE]
            if kept is not None:
                os.environ[CACHE] = kept


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 2 after one line about bad input."""
    asked = parser("compiled", __doc__).parse_args(arguments)
    check_writable(asked.out)
    started = time.time()
    with empty_cache():
        try:
            rows = [measure(name) for name in NETWORKS]
        except torch._dynamo.exc.BackendCompilerFailed as error:
            what = str(error.__cause__ or error).strip().partition("\n")[0]
            raise InputError(f"torch.compile does not work here ({what}); it needs a C++ compiler") from None
    config = {"system": lpe.Int(BITS), "members": MEMBERS, "repeats": REPEATS}
    write_results(asked.out, "compiled", {"compiled": rows}, COLUMNS, config, started)
    print(table_text(asked.out))
    return 0


def passes_to_pay(row: Mapping[Any, Any], column: str) -> str:
    """Count the passes that pay for compiling."""
    saved = row["plain_seconds_a_pass"] - row["compiled_seconds_a_pass"]
    return f"{row[column] / saved:,.0f}" if saved > 0 else "never"


def table_text(folder: Path) -> str:
    """Return the table with its conditions, from the files alone."""
    rows = [
        (
            row["network"],
            str(row["batch"]),
            f"{1000 * row['plain_seconds_a_pass']:.3g}",
            f"{row['compiled_seconds_a_pass'] / row['plain_seconds_a_pass']:.3f}",
            f"{row['compile_seconds']:.3g}",
            passes_to_pay(row, "compile_seconds"),
            f"{row['compile_seconds_from_cache']:.3g}",
            passes_to_pay(row, "compile_seconds_from_cache"),
        )
        for row in pd.read_csv(folder / "compiled.csv").to_dict("records")
    ]
    header = (
        "network",
        "batch",
        "plain ms",
        "compiled/plain",
        "compile s",
        "pays after",
        "from cache s",
        "pays after",
    )
    title = f"torch.compile, {MEMBERS} members: milliseconds a pass, and passes until compiling is paid back"
    return text_table(title, header, rows, conditions(folder / "compiled.json"))


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
