"""What it gains to keep freed memory: passes and steps with glibc's malloc as it is, and as set here.

    python -m benchmarks.freed_memory

Costs about five minutes of one core. A process can be set once, so each timing has a process of its own, of
one thread; they run in turn, five times each. Networks are ResNets for images of 32 × 32: a pass of 1,000
images by ResNet-20-FRN-SiLU in batches of 50 and of 500; a step of SGD on 50 by ResNet-8-GroupNorm. It
prints CPU seconds of the process and of the system for it, medians, and pages that the system had to clear.
On an AMD EPYC the passes take .63 and .65 of the time where freed memory is kept, and the steps .99.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from lpe.allocator import keep_freed_memory
from lpe.ensembles.base import text_table
from lpe.interruption import answered
from lpe.substrates.cifar_networks import RESNET8, RESNET20, resnet_frn, resnet_group_norm
from lpe.writing import check_writable

REPEATS = 5
IMAGES = 1000
STEPS = 20
GIVEN_BACK, KEPT = "given back", "kept"
COLUMNS = ("job", "memory", "repeats", "median_cpu_seconds", "of_the_system", "pages", "of_given_back")


def jobs() -> dict[str, Callable[[], None]]:
    """Return what is timed, by name."""
    images = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 10
    deep, shallow = resnet_frn(RESNET20, 0).eval(), resnet_group_norm(RESNET8, 0)
    optimiser = torch.optim.SGD(shallow.parameters(), lr=0.01)

    def passes(batch: int) -> Callable[[], None]:
        @torch.inference_mode()
        def job() -> None:
            for part in images.split(batch):
                deep(part)

        return job

    def steps() -> None:
        for _ in range(STEPS):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(shallow(images[:50]), labels).backward()
            optimiser.step()

    return {
        f"ResNet-20, {IMAGES:,} images in batches of 50": passes(50),
        f"ResNet-20, {IMAGES:,} images in batches of 500": passes(500),
        f"ResNet-8, {STEPS} steps of 50 images": steps,
    }


def measured_here(memory: str) -> list[dict[str, object]]:
    """Time each job once in this process, after a first time: CPU seconds, the system's share, and pages."""
    torch.set_num_threads(1)
    if memory == KEPT:
        keep_freed_memory()
    found: list[dict[str, object]] = []
    for name, job in jobs().items():
        job()
        before = resource.getrusage(resource.RUSAGE_SELF)
        job()
        after = resource.getrusage(resource.RUSAGE_SELF)
        system = after.ru_stime - before.ru_stime
        seconds = after.ru_utime - before.ru_utime + system
        pages = after.ru_minflt - before.ru_minflt
        found.append({"job": name, "memory": memory, "seconds": seconds, "system": system, "pages": pages})
    return found


def measure() -> list[dict[str, object]]:
    """Time the jobs in processes of their own, in turn; a row for each job and treatment of memory."""
    command = [sys.executable, "-m", "benchmarks.freed_memory", "--here"]
    single = []
    for _ in range(REPEATS):
        for memory in (GIVEN_BACK, KEPT):
            done = subprocess.run([*command, memory], stdout=subprocess.PIPE, text=True, check=True)
            single += json.loads(done.stdout.splitlines()[-1])
    rows: list[dict[str, object]] = []
    for job, times in pd.DataFrame(single).groupby(["job", "memory"], sort=False):
        rows.append(
            {
                "job": str(job[0]),
                "memory": str(job[1]),
                "repeats": len(times),
                "median_cpu_seconds": statistics.median(times["seconds"]),
                "of_the_system": statistics.median(times["system"] / times["seconds"]),
                "pages": int(times["pages"].median()),
            }
        )
    base = {row["job"]: row["median_cpu_seconds"] for row in rows if row["memory"] == GIVEN_BACK}
    return [{**row, "of_given_back": row["median_cpu_seconds"] / base[row["job"]]} for row in rows]  # type: ignore[operator]


def table_text(folder: Path) -> str:
    """Return the table with its conditions, from the files alone."""
    cells = [
        (
            str(row["job"]),
            str(row["memory"]),
            f"{row['median_cpu_seconds']:.3g}",
            f"{row['of_the_system']:.2f}",
            f"{row['pages']:,}",
            f"{row['of_given_back']:.2f}",
        )
        for _, row in pd.read_csv(folder / "freed_memory.csv").iterrows()
    ]
    header = ("job", "freed memory", "CPU s", "of the system", "pages", "of given back")
    title = f"Freed memory given back to the system, and kept; one thread, medians of {REPEATS} processes"
    return text_table(title, header, cells) + "\n" + conditions(folder / "freed_memory.json")


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print."""
    options = parser("freed_memory", __doc__)
    options.add_argument("--here", choices=(GIVEN_BACK, KEPT), help="time in this process, print JSON")
    asked = options.parse_args(arguments)
    if asked.here is not None:
        print(json.dumps(measured_here(asked.here)))
        return 0
    check_writable(asked.out)
    started = time.time()
    config = {"images": IMAGES, "steps": STEPS, "repeats": REPEATS}
    write_results(asked.out, "freed_memory", {"freed_memory": measure()}, COLUMNS, config, started, threads=1)
    print(table_text(asked.out))
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
