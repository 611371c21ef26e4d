"""Bytes on disk: 20 members of a ViT-S/16 at INT-2 … INT-8, each stored, and as one base with a seed; 1 to 20
members as bit planes.

    python -m benchmarks.packed

Costs about half a minute and half a gigabyte of temporary disk. A timm ViT-S/16 (22 M weights, random, 1,000
classes). A row a bit width, kind and size, from real files: bytes of the whole file; bits of codes, planes
and scales for each quantised weight, all members together (the file without header and leftovers); bytes of
the leftovers, which stay at float32 (biases, norms, tokens, positions); the seconds to write the file and
to read it with a first member. Beside them the float32 weights of one and of 20 members.

It prints the table, and promises at most 8.1 bits a quantised weight for the seeded kind at INT-5, and at
most 15.1 for 10 members at INT-5 as planes, which is less than one network in bfloat16; it exits with 1 where
one is broken.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from torch import nn

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.vit import NAME, float32_bytes, vit_small
from lpe.ensembles.base import text_table
from lpe.interruption import answered
from lpe.writing import check_writable

MEMBERS = 20
WIDTHS = range(2, 9)
SIZES = {"members": (MEMBERS,), "seeded": (MEMBERS,), "planes": (1, 2, 5, 10, MEMBERS)}
"""Members of a file, by kind."""
PROMISES = (("seeded", 5, MEMBERS, 8.1), ("planes", 5, 10, 15.1))
"""Promises: kind, b of INT-b, members, and the most bits that a quantised weight takes in the file."""
COLUMNS = (
    "kind",
    "base",
    "bits",
    "members",
    "file_bytes",
    "memory_bits",
    "quantised_weights",
    "bits_a_weight",
    "leftover_bytes",
    "write_seconds",
    "read_seconds",
)


def measure() -> list[dict[str, object]]:
    """Measure each bit width, kind and size, a row each."""
    net = vit_small()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ensemble.safetensors"
        for bits in WIDTHS:
            for kind, sizes in SIZES.items():
                rows += [_measured(net, path, bits, kind, size) for size in sizes]
    return rows


def _measured(net: nn.Module, path: Path, bits: int, kind: str, size: int) -> dict[str, object]:
    """Write and read a file; return its row."""
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(bits), size)
    quantised = sum(planned.numel for planned in ensemble.plan if planned.quantised)
    leftovers = sum(p.numel * p.bits for p in ensemble.plan if p.saved and not p.quantised)
    base = ensemble.base if kind == "seeded" else None
    started = time.perf_counter()
    written = lpe.save(ensemble, path, kind=kind, base=base)
    saved = time.perf_counter()
    lpe.load(path, net)[0]
    read = time.perf_counter()
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    return {
        "kind": kind,
        "base": base or "",
        "bits": bits,
        "members": size,
        "file_bytes": written,
        "memory_bits": ensemble.memory_bits(storage="generator" if kind == "seeded" else kind),
        "quantised_weights": quantised,
        "bits_a_weight": (8 * (written - header) - leftovers) / quantised,
        "leftover_bytes": leftovers // 8,
        "write_seconds": saved - started,
        "read_seconds": read - saved,
    }


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 1 where a promise is broken, 2 after one line about bad input."""
    asked = parser("packed", __doc__).parse_args(arguments)
    check_writable(asked.out)
    started = time.time()
    rows = measure()
    config = {"network": f"timm {NAME}", "members": MEMBERS, "float32_bytes": float32_bytes(vit_small())}
    write_results(asked.out, "packed", {"packed": rows}, COLUMNS, config, started)
    print(table_text(asked.out))
    return max([_verdict(rows, *promise) for promise in PROMISES])


def _verdict(rows: list[dict[str, object]], kind: str, bits: int, members: int, most: float) -> int:
    """Print whether a promise is kept; 1 where it is broken."""
    found = next(
        row["bits_a_weight"]
        for row in rows
        if row["kind"] == kind and row["bits"] == bits and row["members"] == members
    )
    assert isinstance(found, float)
    verdict = "kept" if found <= most else "broken"
    what = f"{members} members of INT-{bits} {'as planes' if kind == 'planes' else kind}"
    print(f"{verdict}: {what} take {found:.3f} bits a quantised weight, at most {most} promised")
    return 0 if found <= most else 1


def table_text(folder: Path) -> str:
    """Return the table with its conditions, from the files alone."""
    table = pd.read_csv(folder / "packed.csv", keep_default_na=False)
    rows = [
        (
            f"INT-{row['bits']}",
            row["kind"] + (f", {row['base']}" if row["base"] else ""),
            str(row["members"]),
            f"{row['file_bytes'] / 1e6:.2f}",
            f"{row['bits_a_weight']:.3f}",
            f"{row['leftover_bytes'] / 1e6:.3f}",
            f"{row['write_seconds']:.2f}",
            f"{row['read_seconds']:.2f}",
        )
        for _, row in table.iterrows()
    ]
    title = f"Members of ViT-S/16 on disk, {table['quantised_weights'][0]:,} quantised weights"
    header = ("system", "kind", "members", "MB", "bits a weight", "leftovers, MB", "write, s", "read, s")
    return text_table(title, header, rows, conditions(folder / "packed.json"))


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
