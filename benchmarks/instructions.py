"""Instructions and page faults of a member: why it is so many times plain torch, and not more.

    python -m benchmarks.instructions

Costs about 15 minutes of one core, and needs valgrind (``apt install valgrind``). It counts and times
nothing, so the counts are the same on a busy machine. A call of each job, after two that warm up, on one
thread, INT-5, a scale for each output channel:

    instructions  of a float32 matrix [256, 4096], over its weights, less those of an empty job; as valgrind's
                  callgrind counts them, whose CPU has AVX2 and no AVX-512
    pages         that the system cleared or mapped for a matrix [4096, 4096], of 64 MiB, without valgrind

Seconds of the same jobs are in ``construction.csv``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.construction import (
    BERNOULLI,
    BITS,
    COPY,
    ENCODE,
    IN_TURN,
    MEMBER,
    MEMBER_VALUES,
    MEMBERS,
    NEAREST,
    PLAIN,
    ROUND_WEIGHTS,
    WRITES,
    forever,
)
from benchmarks.peers import bernoulli_bsr, plain_bsr
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.number_systems import kernels, rounding
from lpe.number_systems.grids import grid_of
from lpe.number_systems.kernels.arguments import Draw, Scales
from lpe.number_systems.layouts import Layout
from lpe.writing import check_writable

COUNTED = (256, 4096)
PAGED = (4096, 4096)
WARM = 2
NOTHING = "nothing"
COLUMNS = ("what", "writes", "instructions_per_weight", "of_plain", "pages")
_MARK = "getppid"
"""A function of the C library that nothing else calls in between: callgrind starts its sum anew there."""


def jobs(shape: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """Return what is counted, by name, on a weight of that shape."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    system, layout = lpe.Int(BITS), Layout(shape)
    grid, backend = grid_of(system), kernels.of(weight.device)
    scales = Scales.of(rounding.absmax_scales(weight, system, layout), layout, system.scale)
    flat = weight.view(-1)
    codes = torch.zeros((1, 1, flat.numel()), dtype=torch.int8)
    values = torch.zeros((1, 1, flat.numel()))
    layer = nn.Linear(shape[1], shape[0], bias=False, dtype=weight.dtype).requires_grad_(False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    members = forever(lpe.LowPrecisionEnsemble(layer, system, MEMBERS))

    def made(name: str) -> Tensor | None:
        return backend.encode(flat, scales, grid, Draw(name, 0, "weight", 1), 1, out=codes)

    return {
        NOTHING: lambda: None,
        COPY: lambda: values.view(-1).copy_(flat),
        PLAIN: lambda: plain_bsr(weight, system.largest_code),
        BERNOULLI: lambda: bernoulli_bsr(weight, system.largest_code),
        NEAREST: lambda: made("nearest"),
        MEMBER: lambda: made("bernoulli"),
        MEMBER_VALUES: lambda: backend.round_into(
            values, flat, scales, grid, Draw("bernoulli", 0, "weight", 1)
        ),
        ROUND_WEIGHTS: lambda: lpe.round_weights(weight, system, seed=1),
        ENCODE: lambda: lpe.encode(weight, system, seed=1),
        IN_TURN: lambda: next(members),
    }


def run_marked() -> None:
    """Run each job between two marks, after WARM calls."""
    mark = getattr(ctypes.CDLL(None), _MARK)
    for job in jobs(COUNTED).values():
        for _ in range(WARM):
            job()
        mark()
        job()
        mark()


def paged() -> dict[str, int]:
    """Return the pages of each job, that the system gave for one call."""
    found = {}
    for name, job in jobs(PAGED).items():
        for _ in range(WARM):
            job()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        job()
        found[name] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return found


def total_of(dump: str) -> int:
    """Return the instructions that one of callgrind's files sums up to.

    Raises:
        InputError: it has no such line.
    """
    for line in dump.splitlines():
        name, _, rest = line.partition(":")
        if name in ("summary", "totals"):
            return int(rest.split()[0])
    raise InputError("a file of callgrind has no line 'summary:'; this valgrind writes another format")


def counted(folder: Path) -> dict[str, float]:
    """Count each job's instructions a weight under valgrind, whose files go into ``folder``."""
    name = "callgrind.out"
    tool = ["valgrind", "--tool=callgrind", f"--dump-before={_MARK}", f"--callgrind-out-file={folder / name}"]
    _child([*tool, sys.executable, "-m", "benchmarks.instructions", "--here", "marked"])
    names = list(jobs((1, 8)))
    # Two marks a job: what came before it is in an odd file, and it in an even one.
    totals = [
        total_of((folder / f"{name}.{2 * place + 2}").read_text(encoding="utf-8"))
        for place in range(len(names))
    ]
    return per_weight(dict(zip(names, totals, strict=True)))


def per_weight(totals: Mapping[str, int]) -> dict[str, float]:
    """Return instructions a weight, less the empty job's, of counts by name."""
    weights = COUNTED[0] * COUNTED[1]
    return {name: (total - totals[NOTHING]) / weights for name, total in totals.items() if name != NOTHING}


def _child(command: Sequence[str]) -> str:
    """Run a process of one thread, whose machine code by numba is for one CPU under valgrind and without."""
    features = llvm.get_host_cpu_features()
    for name in features:
        features[name] &= not name.startswith(("avx512", "avx10", "amx"))  # which valgrind does not know
    target = {"NUMBA_CPU_NAME": llvm.get_host_cpu_name(), "NUMBA_CPU_FEATURES": features.flatten()}
    environment = {**os.environ, **target, "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def measure() -> list[dict[str, object]]:
    """Count each job in processes of their own, a row each.

    Raises:
        InputError: there is no valgrind.
    """
    if shutil.which("valgrind") is None:
        raise InputError("instructions are counted by valgrind, which is not there; apt install valgrind")
    here = [sys.executable, "-m", "benchmarks.instructions", "--here", "paged"]
    pages = json.loads(_child(here).splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        instructions = counted(Path(folder))
    return [
        {
            "what": name.strip(),
            "writes": WRITES.get(name, "codes"),
            "instructions_per_weight": found,
            "of_plain": found / instructions[PLAIN],
            "pages": pages[name],
        }
        for name, found in instructions.items()
    ]


def table_text(folder: Path) -> str:
    """Return the table with its conditions, from the files alone."""
    cells = [
        (
            str(row["what"]),
            str(row["writes"]),
            f"{row['instructions_per_weight']:.3g}",
            f"{row['of_plain']:.3f}",
            f"{row['pages']:,}",
        )
        for _, row in pd.read_csv(folder / "instructions.csv").iterrows()
    ]
    header = ("what", "writes", "instructions a weight", "of plain torch's", "pages of 16.8 M weights")
    title = f"Instructions of a call on {COUNTED[0]} × {COUNTED[1]} weights, INT-{BITS}; one thread, AVX2"
    return text_table(title, header, cells) + "\n" + conditions(folder / "instructions.json")


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Count, write, print."""
    options = parser("instructions", __doc__)
    options.add_argument("--here", choices=("marked", "paged"), help="run in this process")
    asked = options.parse_args(arguments)
    if asked.here is not None:
        torch.set_num_threads(1)
        if asked.here == "paged":
            print(json.dumps(paged()))
        else:
            run_marked()
        return 0
    check_writable(asked.out)
    started = time.time()
    config = {"counted": COUNTED, "paged": PAGED, "system": lpe.Int(BITS)}
    write_results(asked.out, "instructions", {"instructions": measure()}, COLUMNS, config, started, threads=1)
    print(table_text(asked.out))
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
