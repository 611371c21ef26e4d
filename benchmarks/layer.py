"""A linear layer of ten members on a CPU, beside what a user would pick instead to hold fewer bits.

    python -m benchmarks.layer

Costs about a minute and a half of one core, and 2.5 GB. A Linear of 4096 × 4096 random weights is given 1, 8
and 64 positions (rows of inputs). The ways run in turn, so that each finds its weights out of the caches, as
a layer of a network does; a time is the median CPU milliseconds of REPEATS, one thread.

    one network       float32; bfloat16; int8 weights and inputs by FBGEMM, oneDNN and torch._int_mm; weights
                      of int8 and int4 by torchao, of int8 and NF4 by bitsandbytes
    ten INT-5 members stored as float32; their codes as int8 weights by FBGEMM; drawn in the pass
                      (``as_module()``); from bit planes (``as_module(storage="planes")``)

The error is that of the outputs, root mean square over root mean square: of a network's against its float32
product, of members' against each member's own. Where a peer is not there (``pip install torchao
bitsandbytes``), or does not run, its row says why.

It writes layer.csv into benchmarks/results, and prints it. It keeps its promises, or says which is broken and
exits with 1: from bit planes ten members take at most 6 float32 products at one position, and at 8 and 64 at
most as long as drawn in the pass.

The table of docs/results/speed.md is written from it: ``python docs/_ext/layer_table.py``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from benchmarks import peer_layers
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.on_the_fly import medians, seeded
from lpe.ensembles import on_the_fly
from lpe.ensembles.base import text_table
from lpe.interruption import answered
from lpe.writing import check_writable

BITS = 5
MEMBERS = 10
SHAPE = (4096, 4096)
"""Outputs and inputs."""
POSITIONS = (1, 8, 64)
REPEATS = 7
THREADS = 1

FLOAT32 = "float32"
STORED = "stored as float32"
CODES = "stored as int8, inputs too: FBGEMM"
DRAWN = "drawn in the pass"
PLANES = "bit planes"
PROMISE = 6.0
"""Most float32 products that ten members from bit planes take, at one position."""
COLUMNS = ("what", "members", "megabytes", "positions", "repeats", "cpu_ms", "times_float32", "error", "why")
OTHERS = ("torchao", "bitsandbytes")


@dataclass(frozen=True)
class Way:
    """A way of computing the layer.

    Args:
        run: inputs [positions, in] → outputs, of several members [members, positions, out].
    """

    run: Callable[[Tensor], Tensor]
    members: int
    memory_bytes: float


@torch.no_grad()
def ways(net: nn.Linear, absent: dict[str, str]) -> dict[str, Way]:
    """Make every way, by name; tell ``absent`` which are not there, and why."""
    weights = net.weight.numel()
    made = {FLOAT32: Way(net, 1, 4 * weights)}
    for name, make in peer_layers.PEERS.items():
        peer = make(net)
        if isinstance(peer, str):
            absent[name] = peer
        else:
            made[name] = Way(peer.run, 1, peer.memory_bytes)
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), MEMBERS)
    planes = on_the_fly.planes_of(ensemble)
    drawn, read = on_the_fly.AllMembers(ensemble), on_the_fly.AllMembers(ensemble, planes=planes)
    scales = sum(4 * ensemble.scales(name).numel() for name in planes)
    made[STORED] = Way(partial(_stacked, list(ensemble)), MEMBERS, 4 * weights * MEMBERS)
    of_codes = []
    for member in range(MEMBERS):
        codes, steps = ensemble.codes("weight", member)
        layer = peer_layers.of_codes("fbgemm", net, codes, steps.flatten())
        if isinstance(layer, str):
            absent[CODES] = layer
            break
        of_codes.append(layer.run)
    else:
        made[CODES] = Way(partial(_stacked, of_codes), MEMBERS, weights * MEMBERS + scales)
    made[DRAWN] = Way(drawn, MEMBERS, 4 * weights)
    made[PLANES] = Way(read, MEMBERS, sum(each.memory_bytes for each in planes.values()))
    return made


def _stacked(layers: Sequence[Callable[[Tensor], Tensor]], inputs: Tensor) -> Tensor:
    return torch.stack([layer(inputs) for layer in layers])


@torch.no_grad()
def measure(
    shape: tuple[int, int] = SHAPE, positions: Sequence[int] = POSITIONS, repeats: int = REPEATS
) -> list[dict[str, object]]:
    """Measure every way at every number of positions: a row each."""
    net = seeded(partial(nn.Linear, shape[1], shape[0]))
    assert isinstance(net, nn.Linear)
    net.requires_grad_(False)
    absent: dict[str, str] = {}
    made = ways(net, absent)
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, object]] = []
    for count in positions:
        inputs = torch.randn(count, shape[1], generator=generator)
        exact = {1: made[FLOAT32].run(inputs), MEMBERS: made[STORED].run(inputs)}
        errors = {name: _error(way.run(inputs), exact[way.members]) for name, way in made.items()}
        seconds = medians([partial(way.run, inputs) for way in made.values()], repeats)
        times = dict(zip(made, seconds, strict=True))
        rows += [
            {
                "what": name,
                "members": way.members,
                "megabytes": way.memory_bytes / 1e6,
                "positions": count,
                "repeats": repeats,
                "cpu_ms": 1000 * times[name],
                "times_float32": times[name] / times[FLOAT32],
                "error": errors[name],
                "why": "",
            }
            for name, way in made.items()
        ]
    rows += [
        {"what": name, "members": MEMBERS if name == CODES else 1, "repeats": repeats, "why": why}
        for name, why in absent.items()
    ]
    return [{column: row.get(column) for column in COLUMNS} for row in rows]


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


def others_versions() -> dict[str, str]:
    """Return the versions of the peers that are installed beside torch."""
    found = {}
    for name in OTHERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 1 where a promise is broken, 2 after one line about bad input."""
    asked = parser("layer", __doc__).parse_args(arguments)
    torch.set_num_threads(THREADS)
    check_writable(asked.out)
    started = time.time()
    rows = measure()
    config = {
        "system": lpe.Int(BITS),
        "members": MEMBERS,
        "shape": list(SHAPE),
        "repeats": REPEATS,
        "clock": "CPU time of the process",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "others": others_versions(),
    }
    write_results(asked.out, "layer", {"layer": rows}, COLUMNS, config, started, THREADS)
    print(table_text(asked.out))
    verdicts = promises(pd.read_csv(asked.out / "layer.csv"))
    for _, line in verdicts:
        print(line)
    return 0 if all(kept for kept, _ in verdicts) else 1


def promises(table: pd.DataFrame) -> list[tuple[bool, str]]:
    """Tell whether each promise is kept, with a line that says so."""
    times = table.dropna(subset=["positions"]).set_index(["what", "positions"])["times_float32"]
    found = []
    for positions in sorted(table["positions"].dropna().unique()):
        taken, drawn = times[PLANES, positions], times[DRAWN, positions]
        most, promised = (PROMISE, f"{PROMISE:g}") if positions == 1 else (drawn, f"{drawn:.3g}, as drawn,")
        kept = bool(taken <= most)
        what = f"{MEMBERS} members from bit planes, {_counted(positions)}"
        line = f"{what}: {taken:.3g} float32 products, at most {promised} promised"
        found.append((kept, f"{'kept' if kept else 'broken'}: {line}"))
    return found


def _counted(positions: float) -> str:
    return "1 position" if positions == 1 else f"{positions:g} positions"


def table_text(folder: Path) -> str:
    """Return the table with its conditions, from the files alone."""
    table = pd.read_csv(folder / "layer.csv")
    measured = table.dropna(subset=["positions"])
    positions = sorted(int(count) for count in measured["positions"].unique())
    one_product = measured[measured["what"] == FLOAT32].set_index("positions")["cpu_ms"]
    rows = []
    for name, group in measured.groupby("what", sort=False):
        times = group.set_index("positions")["times_float32"]
        rows.append(
            (
                str(name),
                str(group["members"].iloc[0]),
                f"{group['megabytes'].iloc[0]:.4g}",
                *(f"{times[count]:.3g}" for count in positions),
                f"{group['error'].max():.1g}",
            )
        )
    for row in table[table["positions"].isna()].to_dict("records"):
        rows.append((row["what"], str(row["members"]), "–", *("–" for _ in positions), f"– ({row['why']})"))
    header = ("what", "members", "MB", *map(_counted, positions), "error")
    shown = ", ".join(f"{one_product[count]:.3g}" for count in positions)
    title = (
        f"A Linear, INT-{BITS} members: CPU time over that of one float32 product, which takes {shown} ms at "
        f"{', '.join(map(str, positions))} positions; medians of {int(table['repeats'].iloc[0])}"
    )
    return text_table(title, header, rows, conditions(folder / "layer.json"))


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
