"""Peak memory of evaluating 20 members, in units of one member.

    python -m benchmarks.memory

Costs about eight minutes of one core. Each case runs five times, each time in a process of its own, on a
timm ViT-S/16 (22 M weights, random, 1,000 classes) and a batch of 2 images at 224×224. A peak is the
kernel's high-water mark of resident memory (VmHWM). Each process first rounds a few weights, since the
compiler of the kernels takes memory of its own, once and whatever the model, which is told beside the table;
then it runs the plain network as often as there are members, since what the allocator keeps of activations
grows over the first few passes, and notes its peak so far; then comes the case. "Above plain" is what the
case adds to that process's own peak, in units of one member's float32 weights: the median of the five, with
the least and the greatest.

The suite promises at most 1.1 for 20 LPE-BSR members through ``lpe.evaluate``, whatever the size; kept copies
cost 1 each. It prints a row a case and the verdict, from benchmarks/results/memory.csv, and exits with 1
where the promise is broken.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.vit import NAME, float32_bytes, image_batch, vit_small
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.provenance import REPOSITORY
from lpe.writing import check_writable

PROMISE = 1.1
"""Members' weights alive at the peak, above plain forward passes."""

MEMBERS = 20
COPIES = 5
BITS = 5
REPEATS = 5
THREADS = 1
CASES = {
    "plain": f"base model, {MEMBERS} more plain forward passes",
    "members": f"{MEMBERS} LPE-BSR INT-{BITS} members through lpe.evaluate",
    "copies": f"{COPIES} deep copies kept, one forward pass each",
}
COLUMNS = (
    "case",
    "what",
    "copies_or_members",
    "member_bytes",
    "kernels_bytes",
    "plain_peak_bytes",
    "above_plain_members",
    "lowest_above_plain_members",
    "highest_above_plain_members",
)


def resident_bytes(field: str) -> int:
    """Return this process's resident memory from the kernel, in bytes: ``VmRSS`` now, ``VmHWM`` at the peak.

    Unlike ``ru_maxrss`` it starts anew with the program, where a child's would start at its parent's peak.

    Raises:
        InputError: not on Linux.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    raise InputError("peak memory is read from /proc/self/status, which only Linux has")


def run_case(case: str) -> dict[str, int]:
    """Run one case in this process: its peak before and with the case, and the bytes of one member."""
    torch.set_num_threads(THREADS)
    before = resident_bytes("VmRSS")
    lpe.encode(torch.ones(8, 8), lpe.Int(BITS))
    kernels = resident_bytes("VmRSS") - before
    net = vit_small()
    images, labels = image_batch()
    forward_passes(net, images)
    plain = resident_bytes("VmHWM")
    if case == "plain":
        forward_passes(net, images)
    if case == "members":
        lpe.evaluate(lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), MEMBERS), [(images, labels)])
    if case == "copies":
        with torch.no_grad():
            kept = [copy.deepcopy(net) for _ in range(COPIES)]
            for each in kept:
                each(images)
    return {
        "kernels_bytes": kernels,
        "plain_peak_bytes": plain,
        "peak_bytes": resident_bytes("VmHWM"),
        "member_bytes": float32_bytes(net),
    }


@torch.no_grad()
def forward_passes(net: nn.Module, images: Tensor) -> None:
    """Run as many forward passes as there are members."""
    for _ in range(MEMBERS):
        net(images)


def measure(case: str) -> dict[str, float]:
    """Measure what a case adds to its process's peak, over REPEATS processes: median, least and greatest."""
    runs = [run_in_child(case) for _ in range(REPEATS)]
    above = [(run["peak_bytes"] - run["plain_peak_bytes"]) / run["member_bytes"] for run in runs]
    return {
        "member_bytes": runs[0]["member_bytes"],
        "kernels_bytes": statistics.median_low(run["kernels_bytes"] for run in runs),
        "plain_peak_bytes": statistics.median_low(run["plain_peak_bytes"] for run in runs),
        "above_plain_members": statistics.median_low(above),
        "lowest_above_plain_members": min(above),
        "highest_above_plain_members": max(above),
    }


def run_in_child(case: str) -> dict[str, int]:
    """Run one case in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--case", case],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise InputError(f"case {case!r} failed with exit code {done.returncode}; see above")
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 1 where the promise is broken, 2 after one line about bad input."""
    options = parser("memory", __doc__)
    options.add_argument("--case", choices=tuple(CASES), help="one case, in this process, as JSON")
    asked = options.parse_args(arguments)
    if asked.case:
        print(json.dumps(run_case(asked.case)))
        return 0
    check_writable(asked.out)
    started = time.time()
    found = {case: measure(case) for case in CASES}
    counts = {"plain": 0, "members": MEMBERS, "copies": COPIES}
    rows = [
        {"case": case, "what": CASES[case], "copies_or_members": counts[case], **measured}
        for case, measured in found.items()
    ]
    config = {"network": f"timm {NAME}", "batch": 2, "repeats": REPEATS, "promise": PROMISE}
    write_results(asked.out, "memory", {"memory": rows}, COLUMNS, config, started, THREADS)
    print(table_text(asked.out))
    return 0 if found["members"]["above_plain_members"] <= PROMISE else 1


def table_text(folder: Path) -> str:
    """Return the table with its conditions, from the files alone."""
    table = pd.read_csv(folder / "memory.csv").set_index("case")
    rows = [
        (
            row["what"],
            f"{row['above_plain_members']:.2f}",
            f"{row['lowest_above_plain_members']:.2f} to {row['highest_above_plain_members']:.2f}",
        )
        for _, row in table.iterrows()
    ]
    member = table.loc["members"]
    kept = "kept" if member["above_plain_members"] <= PROMISE else "broken"
    verdict = f"promise of at most {PROMISE} members above plain: {kept}"
    title = (
        f"Peak memory above plain forward passes, ViT-S/16; one member is "
        f"{member['member_bytes'] / 2**20:.0f} MiB, the plain peak {member['plain_peak_bytes'] / 2**20:.0f}"
    )
    compiler = f"the kernels' compiler and code: {member['kernels_bytes'] / 2**20:.0f} MiB, counted as plain"
    footer = f"{verdict}\n{compiler}\n{conditions(folder / 'memory.json')}"
    return text_table(title, ("case", "members", f"of {REPEATS} runs"), rows, footer)


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
