"""Instructions and page faults of a member: why it is so many times plain torch, and not more.

    python -m benchmarks.instructions

Costs about two minutes of one core of an AMD EPYC, and needs valgrind (``apt install valgrind``). Nothing is
timed: instructions are the same on a busy machine, pages within some percent. A call of each job, after two
that warm up, on one thread, INT-5, a scale for each output channel:

    instructions  of a float32 matrix [256, 4096], over its weights, less those of an empty job; as valgrind's
                  callgrind counts them, whose CPU has AVX2 and no AVX-512
    pages         that the system cleared or mapped for a matrix [4096, 4096], of 64 MiB, without valgrind

Seconds of the same jobs are in ``construction.csv``.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import llvmlite.binding as llvm
import pandas as pd
import torch

import lpe
from benchmarks import construction
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.writing import check_writable

CHOSEN = (
    construction.COPY,
    construction.PLAIN,
    construction.BERNOULLI,
    construction.NEAREST,
    construction.MEMBER,
    construction.MEMBER_VALUES,
    construction.ROUND_WEIGHTS,
    construction.ENCODE,
    construction.IN_TURN,
)
"""The jobs of ``construction`` that are counted."""
COUNTED = (256, 4096)
PAGED = (4096, 4096)
WARM = 2
NOTHING = "nothing"
COLUMNS = ("what", "writes", "instructions_per_weight", "of_plain", "pages")

_BASE = ord("C") << 24 | ord("T") << 16
_DUMP, _ZERO, _START = _BASE, _BASE + 1, _BASE + 4
"""Requests of callgrind (its callgrind.h): write the sum to a file, begin it anew, begin to count at all."""

_ASK = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
"""A function of a request's address, in x86-64: what valgrind.h has its clients run, to no effect without it.

mov rax, rdi; xor edx, edx; rol rdi by 3, 13, 61 and 51; xchg rbx, rbx; mov rax, rdx; ret
"""


def jobs(shape: tuple[int, int]) -> dict[str, Callable[[int], object]]:
    """Return what is counted, by name, on a weight of that shape: an empty job first, then construction's."""
    of_construction = construction.jobs(shape)
    return {NOTHING: lambda _: None} | {name: of_construction[name] for name in CHOSEN}


@contextmanager
def asking() -> Iterator[Callable[[int], None]]:
    """Yield what makes a request of callgrind; without valgrind it does nothing."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_ASK)
        start = ctypes.c_char.from_buffer(page)
        run = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(ctypes.addressof(start))

        def ask(request: int) -> None:
            arguments = (ctypes.c_uint64 * 6)(request)
            run(ctypes.addressof(arguments))

        try:
            yield ask
        finally:
            del start  # or the page cannot be closed


def run_counted() -> None:
    """Run each job, after WARM calls, and have its instructions written to a file of its own."""
    with asking() as ask:
        made = jobs(COUNTED)
        ask(_START)
        for job in made.values():
            for repeat in range(WARM):
                job(repeat)
            ask(_ZERO)
            job(WARM)
            ask(_DUMP)


def paged() -> dict[str, int]:
    """Return the pages of each job, that the system gave for one call."""
    found = {}
    for name, job in jobs(PAGED).items():
        for repeat in range(WARM):
            job(repeat)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        job(WARM)
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
    tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder / name}"]
    _child([*tool, sys.executable, "-m", "benchmarks.instructions", "--here", "counted"])
    totals = {
        job: total_of((folder / f"{name}.{place}").read_text(encoding="utf-8"))
        for place, job in enumerate((NOTHING, *CHOSEN), 1)
    }
    return per_weight(totals)


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
        InputError: there is no valgrind, or the CPU is no x86-64.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise InputError(f"instructions are counted on an x86-64 CPU, not on {platform.machine()}")
    if shutil.which("valgrind") is None:
        raise InputError("instructions are counted by valgrind, which is not there; apt install valgrind")
    here = [sys.executable, "-m", "benchmarks.instructions", "--here", "paged"]
    pages = json.loads(_child(here).splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        instructions = counted(Path(folder))
    return [
        {
            "what": name.strip(),
            "writes": construction.WRITES.get(name, "codes"),
            "instructions_per_weight": found,
            "of_plain": found / instructions[construction.PLAIN],
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
    of = f"{COUNTED[0]} × {COUNTED[1]} weights, INT-{construction.BITS}"
    title = f"Instructions of a call on {of}; one thread, AVX2"
    return text_table(title, header, cells) + "\n" + conditions(folder / "instructions.json")


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Count, write, print."""
    options = parser("instructions", __doc__)
    options.add_argument("--here", choices=("counted", "paged"), help="run in this process")
    asked = options.parse_args(arguments)
    if asked.here is not None:
        torch.set_num_threads(1)
        if asked.here == "paged":
            print(json.dumps(paged()))
        else:
            run_counted()
        return 0
    check_writable(asked.out)
    started = time.time()
    config = {"counted": COUNTED, "paged": PAGED, "system": lpe.Int(construction.BITS)}
    write_results(asked.out, "instructions", {"instructions": measure()}, COLUMNS, config, started, threads=1)
    print(table_text(asked.out))
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
