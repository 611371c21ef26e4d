"""What a user calls, beside the bare kernels and plain passes: a part of ``benchmarks.gpu``.

**A member's making.** Of a ViT-S/16 and a ViT-L/16 of float32 weights: a copy of as many bytes, which is the
limit; the kernel's one launch over a plan that is there; ``in_turn``'s next member, ``ensemble.member``, and
``lpe.round_weights`` and ``lpe.encode`` of all rounded weights, one after another. All are launched from
Python. A member is promised in .3 ms and 1.2 ms.

**Evaluation.** ``lpe.evaluate`` of ten members on four batches against ten times four plain passes, in
float32 and under bfloat16 autocast: promised at 1.05 times. The limit is 1.

Where timm is not installed, all this is left out, and a line says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from benchmarks.gpu_timer import LAUNCHED, Timer
from lpe.ensembles.base import text_table
from lpe.evaluation.options import EvaluationOptions
from lpe.number_systems import kernels
from lpe.number_systems.grids import grid_of
from lpe.number_systems.kernels.arguments import Draw, Rounded, Scales
from lpe.records import write_table

BITS = 5
MEMBERS = 10
BATCHES = 4
EVALUATION_REPEATS = 3
EVER = 10_000
"""Members of the ensemble that is gone through in turn: more than are timed."""

COPY = "a copy of as many bytes"
BARE = "the kernel, one launch"
IN_TURN = "in_turn, the next member"
MEMBER = "ensemble.member"
ROUND_WEIGHTS = "lpe.round_weights, weight by weight"
ENCODE = "lpe.encode, weight by weight"
PASSES = f"{MEMBERS} plain passes"
EVALUATE = f"lpe.evaluate of {MEMBERS} members"

MEMBER_SECONDS = {"ViT-S/16": 0.3e-3, "ViT-L/16": 1.2e-3}
EVALUATE_PROMISE = 1.05
COLUMNS = (
    "what",
    "network",
    "compute",
    "weights",
    "examples",
    "repeats",
    "median_seconds",
    "limit_seconds",
    "promised_seconds",
)
FILE = "gpu_calls.csv"


@dataclass(frozen=True)
class Network:
    """A network of images.

    Args:
        make: with random weights, made on torch's default device. shape: of an image. batch: images a batch.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


def of_timm(name: str, **arguments: Any) -> nn.Module:
    """Make a network of timm's with random weights."""
    import timm

    made: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return made


NETWORKS = {
    "ViT-S/16": Network(partial(of_timm, "vit_small_patch16_224"), (3, 224, 224), 128),
    "ViT-L/16": Network(partial(of_timm, "vit_large_patch16_224"), (3, 224, 224), 64),
}


def made_on(device: torch.device, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model on the device, where drawing its weights costs little; in eval mode, without gradients."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        return make().to(device).eval().requires_grad_(False)


def images(network: Network, device: torch.device, batches: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of noise, and labels 0."""
    generator = torch.Generator(device).manual_seed(0)
    labels = torch.zeros(network.batch, dtype=torch.int64, device=device)
    shape = (network.batch, *network.shape)
    return [(torch.randn(shape, device=device, generator=generator), labels) for _ in range(batches)]


@torch.no_grad()
def making(timer: Timer, name: str, net: nn.Module) -> list[dict[str, object]]:
    """Measure the making of a network's member: a row each way."""
    system = lpe.Int(BITS)
    ensemble = lpe.LowPrecisionEnsemble(net, system, EVER)
    rounded = [planned for planned in ensemble.plan if planned.quantised]
    weights = dict(net.named_parameters())
    grid = grid_of(system)
    plan = kernels.of(timer.device).plan(
        [
            Rounded(
                weights[p.name].reshape(-1),
                Scales.of(ensemble.scales(p.name), p.layout, system.scale),
                grid,
                p.name,
                p.dtype,
            )
            for p in rounded
        ]
    )
    outs = [torch.empty_like(weights[p.name]) for p in rounded]
    count = sum(p.numel for p in rounded)
    source, target = (torch.empty(count, device=timer.device) for _ in range(2))
    turn = forever(ensemble)
    one_by_one = {
        ROUND_WEIGHTS: lpe.round_weights,
        ENCODE: lpe.encode,
    }

    def each(call: Callable[..., object]) -> None:
        for p in rounded:
            call(weights[p.name], system, name=p.name, output_axis=p.layout.output_axis)

    jobs: dict[str, Callable[[], object]] = {
        COPY: partial(target.copy_, source),
        BARE: partial(plan.round_into, outs, Draw("bernoulli", 0, "", 0)),
        IN_TURN: lambda: next(turn),
        MEMBER: lambda: ensemble.member(0),
        **{what: partial(each, call) for what, call in one_by_one.items()},
    }
    seconds = timer.medians(jobs, graph=False)
    promised = MEMBER_SECONDS.get(name)
    return [
        {
            "what": what,
            "network": name,
            "compute": "float32",
            "weights": count,
            "examples": 0,
            "repeats": timer.repeats,
            "median_seconds": taken,
            "limit_seconds": seconds[COPY],
            "promised_seconds": promised if what in (IN_TURN, MEMBER) else None,
        }
        for what, taken in seconds.items()
    ]


def forever(ensemble: lpe.LowPrecisionEnsemble) -> Iterator[nn.Module]:
    """Yield the members in turn, again and again."""
    while True:
        yield from ensemble.in_turn()


@torch.no_grad()
def evaluating(
    timer: Timer, name: str, net: nn.Module, network: Network, members: int = MEMBERS
) -> list[dict[str, object]]:
    """Measure plain passes and an evaluation, in float32 and under autocast: a row each."""
    batches = images(network, timer.device, BATCHES)
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), members)
    weights = sum(p.numel for p in ensemble.plan if p.quantised)
    slow = Timer(timer.device, min(timer.repeats, EVALUATION_REPEATS), least_seconds=0.0, warm=False)
    rows: list[dict[str, object]] = []
    for compute, options in (
        ("bfloat16 autocast", EvaluationOptions(autocast=True)),
        ("float32", EvaluationOptions()),
    ):

        def passes(cast: bool = options.autocast) -> None:
            for _ in range(members):
                for inputs, _labels in batches:
                    with torch.autocast(timer.device.type, torch.bfloat16) if cast else nullcontext():
                        net(inputs)

        def evaluate(chosen: EvaluationOptions = options) -> None:
            lpe.evaluate(ensemble, batches, members="one-by-one", options=chosen)

        seconds = slow.medians({PASSES: passes, EVALUATE: evaluate}, graph=False)
        rows += [
            {
                "what": what,
                "network": name,
                "compute": compute,
                "weights": weights,
                "examples": BATCHES * network.batch,
                "repeats": slow.repeats,
                "median_seconds": taken,
                "limit_seconds": seconds[PASSES],
                "promised_seconds": EVALUATE_PROMISE * seconds[PASSES] if what == EVALUATE else None,
            }
            for what, taken in seconds.items()
        ]
    timer.first_calls += slow.first_calls
    return rows


def measure(timer: Timer, networks: Mapping[str, Network] = NETWORKS) -> list[dict[str, object]]:
    """Measure every network: a row each way."""
    rows: list[dict[str, object]] = []
    for name, network in networks.items():
        try:
            net = made_on(timer.device, network.make)
        except ImportError as error:
            print(f"left out: {name} ({error})")
            continue
        rows += making(timer, name, net)
        rows += evaluating(timer, name, net, network)
        del net
        if timer.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def write(rows: Sequence[Mapping[str, object]], folder: Path) -> None:
    """Write the table."""
    write_table(list(rows), folder / FILE, COLUMNS)


def verdicts(folder: Path) -> list[tuple[bool, str]]:
    """Tell whether each promise is kept, with a line of what was found, from the file alone."""
    table = pd.read_csv(folder / FILE)
    found = []
    for _, row in table[table["promised_seconds"].notna()].iterrows():
        kept = bool(row["median_seconds"] <= row["promised_seconds"])
        if row["what"] == EVALUATE:
            times = row["median_seconds"] / row["limit_seconds"]
            line = f"{times:.3f} times {PASSES}, at most {EVALUATE_PROMISE:g} promised"
        else:
            taken, limit, promised = (
                f"{1000 * row[column]:.3g} ms"
                for column in ("median_seconds", "limit_seconds", "promised_seconds")
            )
            line = f"{taken} (a copy {limit}), at most {promised} promised"
        found.append((kept, f"{row['network']}, {row['compute']}, {row['what']}: {line}"))
    return found


def tables(folder: Path) -> list[str]:
    """Return the table of each network, from the file alone."""
    made = []
    for network, rows in pd.read_csv(folder / FILE).groupby("network", sort=False):
        cells = [
            (
                str(row["what"]),
                str(row["compute"]),
                *(
                    "–" if pd.isna(row[column]) else f"{1000 * row[column]:.4g}"
                    for column in ("median_seconds", "limit_seconds", "promised_seconds")
                ),
                f"{row['median_seconds'] / row['limit_seconds']:.3g}",
            )
            for _, row in rows.iterrows()
        ]
        header = ("what", "computed in", "ms", "limit, ms", "promised, ms", "times the limit")
        weights = int(rows["weights"].iloc[0])
        made.append(text_table(f"{network} as users call it, {weights:,} weights; {LAUNCHED}", header, cells))
    return made
