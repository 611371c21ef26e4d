"""Bytes on disk: 20 members of a ViT-S/16 at INT-2 … INT-8, each stored, and as one base with a seed.

    python -m benchmarks.packed

Costs about two minutes and half a gigabyte of temporary disk. A timm ViT-S/16 (22 M weights, random, 1,000
classes). A row a bit width and kind, from real files: bytes of the whole file; bits of codes and scales for
each quantised weight, all members together; bytes of the leftovers, which stay at float32 (biases, norms,
tokens, positions); the seconds to write the file and to read it with a first member. Beside them the float32
weights of one and of 20 members.

It promises at most 8.1 bits a quantised weight for the seeded kind at INT-5, and exits with 1 where that is
broken.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.vit import NAME, float32_bytes, vit_small
from lpe.ensembles.base import text_table
from lpe.writing import check_writable

MEMBERS = 20
WIDTHS = range(2, 9)
PROMISE = (5, 8.1)
"""Promise: b of INT-b, and the most bits that a quantised weight takes in a seeded file."""
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
    """Measure each bit width and kind, a row each."""
    net = vit_small()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ensemble.safetensors"
        for bits in WIDTHS:
            ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(bits), MEMBERS)
            quantised = sum(planned.numel for planned in ensemble.plan if planned.quantised)
            leftovers = sum(p.numel * p.bits for p in ensemble.plan if p.saved and not p.quantised)
            for kind in ("members", "seeded"):
                started = time.perf_counter()
                base = ensemble.base if kind == "seeded" else None
                written = lpe.save(ensemble, path, kind=kind, base=base)
                saved = time.perf_counter()
                lpe.load(path, net)[0]
                read = time.perf_counter()
                storage = "members" if kind == "members" else "generator"
                counted = ensemble.memory_bits(storage=storage)
                rows.append(
                    {
                        "kind": kind,
                        "base": base or "",
                        "bits": bits,
                        "members": MEMBERS,
                        "file_bytes": written,
                        "memory_bits": counted,
                        "quantised_weights": quantised,
                        "bits_a_weight": (counted - leftovers) / quantised,
                        "leftover_bytes": leftovers // 8,
                        "write_seconds": saved - started,
                        "read_seconds": read - saved,
                    }
                )
    return rows


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 1 where the promise is broken, 2 after one line about bad input."""
    asked = parser("packed", __doc__).parse_args(arguments)
    check_writable(asked.out)
    started = time.time()
    rows = measure()
    config = {"network": f"timm {NAME}", "members": MEMBERS, "float32_bytes": float32_bytes(vit_small())}
    write_results(asked.out, "packed", {"packed": rows}, COLUMNS, config, started)
    print(table_text(asked.out))
    bits, most = PROMISE
    found = next(row["bits_a_weight"] for row in rows if row["kind"] == "seeded" and row["bits"] == bits)
    assert isinstance(found, float)
    verdict = "kept" if found <= most else "broken"
    print(f"{verdict}: INT-{bits} seeded takes {found:.3f} bits a quantised weight, at most {most} promised")
    return 0 if found <= most else 1


def table_text(folder: Path) -> str:
    """Return the table with its conditions, from the files alone."""
    table = pd.read_csv(folder / "packed.csv", keep_default_na=False)
    rows = [
        (
            f"INT-{row['bits']}",
            row["kind"] + (f", {row['base']}" if row["base"] else ""),
            f"{row['file_bytes'] / 1e6:.2f}",
            f"{row['bits_a_weight']:.3f}",
            f"{row['leftover_bytes'] / 1e6:.3f}",
            f"{row['write_seconds']:.2f}",
            f"{row['read_seconds']:.2f}",
        )
        for _, row in table.iterrows()
    ]
    title = f"{MEMBERS} members of ViT-S/16 on disk, {table['quantised_weights'][0]:,} quantised weights"
    header = ("system", "kind", "MB", "bits a weight", "leftovers, MB", "write, s", "read, s")
    return text_table(title, header, rows, conditions(folder / "packed.json"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
