"""Members on a GPU: bytes a second against a copy, decoding of 1 to 20 against one pass, whole models.

    python -m benchmarks.gpu                        (all of it: under 4 minutes, 55 GB of the GPU's memory)
    python -m benchmarks.gpu --layers 4 --weights 16777216 167772160           (what does not fit says so)

**Bandwidth.** Matrices of 16.8 M, 168 M and 1 G weights, stored as float32, bfloat16 or INT-8 codes, a scale
for each output channel, are rounded to INT-5 and written as codes (int8) or values (bfloat16). The bytes that
must be read and written, divided by the time, are compared with ``copy_`` of float32 that moves as many bytes
(half of them read); scales are not counted. "Each further" is what a member adds to a call that makes
several: (5 members − 1) / 4; it reads nothing. At 16.8 M both sides may live in the GPU's cache.

**Decoding.** The linear layers of LLaMa-3-8B, 7.0 G random weights, one token: one pass of bfloat16
``F.linear``, against 1 and 10 INT-5 members by ``cuda_linear.member_linear``, which reads each stored weight
once for all members, from INT-8 codes and from bfloat16, and against 1, 10 and 20 members from bit planes, as
``as_module(storage="planes")`` multiplies them; every member has its own activations. Beside it what a loop
over members costs that rounds each weight to memory first. The limit of each row is its bytes of weights over
the pass's: from planes a lower neighbour, one byte, and a bit a member, 1.13 passes for ten members and 1.75
for twenty. With ``--layers`` fewer than 32 distinct layers are passed in turn, each of which is larger than a
cache.

Jobs run in turn, after a call that compiles them, whose seconds are told; medians of 5 repeats, by CUDA
events. Each job is captured as a CUDA graph and replayed, on both sides alike, so that no launch from Python
is timed; decoding is timed both ways, and promises are about the graphs.

**Members at once.** The quantised weights of a ViT-S/16 and a ViT-L/16, float32, are rounded to INT-5 and
written as float32: all by one launch over a table, as ``LowPrecisionEnsemble`` does, and one by one, as it
did. Beside each time stand the promise (.3 ms and 1.2 ms a member) and the limit, a copy of as many bytes.

**What users call, whole models, members side by side**: see ``gpu_calls`` and ``gpu_models``, which this
runs. Without timm, open_clip or transformers a line says what is left out.

It prints a table of each part, and which promise is broken, and exits with 1 then. At the largest number of
weights, one independent member, written as bfloat16, is made at 70 % of the copy's bytes a second or more,
from bfloat16 and from INT-8 codes. Ten members, independent or coupled, decoded from INT-8, take at most
twice one pass, and one 1.1 passes; ten from bit planes 1.5, and twenty 2.2. A member of a network, launched
from Python by the kernel, by ``in_turn`` and by ``ensemble.member``, takes at most its promise, and
``evaluate`` 1.05 times the plain passes.

**The time it takes: an estimate.** On an H100 bandwidth and decoding of drawn members took 31 s. From planes
decoding has three jobs more, of 1 to 3 passes, and makes 20 members' planes: 5 s. Evaluation was measured
there at .8 s (ViT-S/16) and 2.0 s (ViT-L/16) under autocast and 3.0 s and 14 s in float32, plain passes and
members together: 80 s for the four rounds of each. Of whole models a round of a way is ten passes, .1 s
(LLaMa-3-8B), .2 s (ViT-L/16) and .6 s (CLIP-ViT-g/14, 17 T operations a pass at 300 T a second); five ways,
four rounds: 25 s, with making the models and with compilation 45 s. LLaMa-3-8B in blocks of 4 MiB is 34,000
blocks, of .3 ms from Python: 10 s. Together under 3 minutes. What each part took is in gpu.json.

**What to expect: an estimate for an H100 (SXM), not a measurement.** Its 132 multiprocessors at 1.755 GHz
issue 128 instructions of single lanes a cycle, of which 64 of integers, so 3.0e13 and 1.5e13 a second; it
reads 3.35 TB/s. One bfloat16 pass reads 14.0 GB: 4.2 ms at full speed, 4.6 ms at 90 %.

Twice that, over the 7.0e10 weights of ten members, leaves 3.9 instructions for a weight of a member, 2.0 of
them of integers. Philox takes 20 wide products and 20 exclusive ors for 8 weights, 5 instructions a weight,
before any weight is rounded: **ten independent members cannot keep the promise**, whatever the kernel. With
lane, compare, select and multiply-add it is 9, of which 5.5 of integers beside the products: 21 ms to issue
them, 26 ms for the integers, so 5 to 6 passes at the least. Coupled members draw once; add, compare, select
and multiply-add are 4, of which 3 of integers: 9.5 ms and 14 ms, 3 passes. With two predicated multiply-adds
for the select it is 9.5 ms both ways, and a tenth of what is done once for a weight (15 instructions or more)
on top: **coupled members are expected between 2 and 3 passes**, by hand-written code. Members that are kept
are no way out: ten of INT-5, packed, are 44 GB, 13 ms or 3 passes.

The kernel is far from that. In the machine code that Triton 3.9 makes of it for sm_90, a weight of an
independent member takes 17 instructions and one of a coupled member 12, the sums over a program's threads
included, and a weight 57 or 63 once for all members: 53 ms and 42 ms to issue, 12 and 9 passes, so **both
promises about decoding are expected to break**. What is left to take out: the sums after every member (3 of
those 17), Philox's keys, computed anew for every member, and the work on a weight's place and scale.

From planes ``_bits`` takes 3.2 instructions a weight and member and ``_lower`` 8.7 a weight: 9.5 ms and 17 ms
to issue for ten and twenty members, 1.7 and 3.0 of the pass that took 5.7 ms, so **the promises about planes
are expected to break** at the instructions and not at the bytes; two of the three as one make 1.3 and 2.2.

Bandwidth has the same limit. One member of 1 G weights takes 35 instructions a weight from bfloat16 and 40
from INT-8 (in the machine code of Triton 3.9 for sm_90; it was 52 and 57), 1.3 ms and 1.4 ms to issue, where
a copy at 90 % of full speed takes 1.4 ms and 1.1 ms. So **the promise from bfloat16 is expected to be kept,
and that from INT-8 to be near its edge**: at most 75 % of the copy. Of those instructions 2.5 a weight are
Philox's keys, which the scalar units compute once for a warp and member. Over a table of weights it is 40 and
45, and 46 from float32 to float32: .03 ms and .5 ms to issue for a member of a ViT-S/16 and a ViT-L/16, below
the copy's .06 and .8 ms.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

import lpe
from benchmarks import gpu_calls, gpu_models
from benchmarks.command import conditions, one_line_of_bad_input, parser
from benchmarks.gpu_timer import GRAPH, LAUNCHED, Timer
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.number_systems import kernels, rounding
from lpe.number_systems.grids import grid_of
from lpe.number_systems.kernels import planes as bit_planes
from lpe.number_systems.kernels.arguments import Coded, Draw, Rounded, Scales, Stored
from lpe.number_systems.kernels.planes import Planes
from lpe.number_systems.layouts import Layout
from lpe.provenance import write_provenance
from lpe.records import write_table
from lpe.writing import check_writable

BITS = 5
WEIGHTS = (2**24, 10 * 2**24, 2**30)
COLUMNS_OF_WEIGHT = 4096
FURTHER = 4
BYTES_A_WEIGHT = 32
"""Bytes of memory that a weight takes: all that the bandwidth's jobs hold, and what making it takes."""

STORED_BYTES = {"float32": 4, "bfloat16": 2, "INT-8": 1}
WRITTEN_BYTES = {"codes": 1, "bfloat16": 2}
COPY = "copy"
NEAREST = "nearest"
MEMBER = "independent member"
COUPLED = "coupled member, the first"
NEXT_MEMBER = "each further independent member"
NEXT_COUPLED = "each further coupled member"
ROUNDINGS = {NEAREST: "nearest", MEMBER: "bernoulli", COUPLED: "coupled"}
FURTHER_OF = {NEXT_MEMBER: MEMBER, NEXT_COUPLED: COUPLED}
BANDWIDTH_COLUMNS = (
    "what",
    "stored",
    "writes",
    "weights",
    "bytes",
    "repeats",
    "median_seconds",
    "gigabytes_per_second",
    "of_a_copy",
)

LAYERS = 32
LLAMA_3_8B = (
    (4096, 4096),
    (1024, 4096),
    (1024, 4096),
    (4096, 4096),
    (14336, 4096),
    (14336, 4096),
    (4096, 14336),
)
"""Shapes [out, in] of a layer's q, k, v, o, gate, up and down."""

VIT = {"ViT-S/16": (384, 12), "ViT-L/16": (1024, 24)}
"""Width and depth of the networks whose members are made at once."""
MEMBER_SECONDS = gpu_calls.MEMBER_SECONDS
AT_ONCE = "all weights by one launch"
EACH_ALONE = "weight by weight"
MEMBER_COLUMNS = (
    "what",
    "network",
    "run",
    "tensors",
    "weights",
    "bytes",
    "repeats",
    "median_seconds",
    "limit_seconds",
    "promised_seconds",
)

MEMBERS = (1, 10)
PLANE_MEMBERS = (1, 10, 20)
FORWARD = "one bfloat16 pass"
READ_ONCE = {"bernoulli": "independent members", "coupled": "coupled members"}
ONE_BY_ONE = "independent members, each rounded to memory and multiplied"
FROM_PLANES = "members from bit planes"
DECODE_COLUMNS = (
    "what",
    "stored",
    "members",
    "run",
    "weights",
    "bytes_a_weight",
    "repeats",
    "median_seconds",
    "times_a_pass",
    "limit_times",
    "promised_times",
)

COPY_PROMISE = 0.7
PASS_PROMISES = {
    (READ_ONCE["bernoulli"], "INT-8", 1): 1.1,
    **{(what, "INT-8", 10): 2.0 for what in READ_ONCE.values()},
    (FROM_PLANES, "planes", 10): 1.5,
    (FROM_PLANES, "planes", 20): 2.2,
}
"""The most passes that members take: by (what, stored as, members)."""


def bytes_a_weight(what: str, stored: str, members: int) -> float:
    """Return the bytes of weights that a way of decoding must move, a weight."""
    if what == FROM_PLANES:
        # On a GPU a lower neighbour is a byte.
        return 1 + members / 8
    once = STORED_BYTES[stored]
    # A member that is rounded to memory is written as bfloat16 and read again.
    return members * (once + 2 * STORED_BYTES["bfloat16"]) if what == ONE_BY_ONE else once


def member_scales(weight: Tensor) -> Scales:
    """Return the scales of the members of a matrix."""
    layout = Layout(tuple(weight.shape))
    system = lpe.Int(BITS)
    return Scales.of(rounding.absmax_scales(weight, system, layout), layout, system.scale)


def int8_of(weight: Tensor) -> Coded:
    """Return a matrix as INT-8 codes."""
    system, layout = lpe.Int(8), Layout(tuple(weight.shape))
    scales = Scales.of(rounding.absmax_scales(weight, system, layout), layout, system.scale)
    draw = Draw("nearest", 0, "", 0)
    codes = kernels.of(weight.device).encode(weight.view(-1), scales, grid_of(system), draw)
    return Coded(codes.view(-1), scales, grid_of(system))


@torch.no_grad()
def bandwidth(timer: Timer, weights: int, columns: int = COLUMNS_OF_WEIGHT) -> list[dict[str, object]]:
    """Measure each copy and each way of rounding a matrix of so many weights, a row each."""
    device, grid = timer.device, grid_of(lpe.Int(BITS))
    backend = kernels.of(device)
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn((weights // columns, columns), device=device, generator=generator)
    count = weight.numel()
    scales = member_scales(weight)
    stored: dict[str, Stored] = {
        "float32": weight.view(-1),
        "bfloat16": weight.view(-1).bfloat16(),
        "INT-8": int8_of(weight),
    }
    # The values have room for the largest copy too, which is of 6 bytes a weight, where FURTHER is 2 or more.
    codes = torch.empty((1 + FURTHER, 1, count), dtype=torch.int8, device=device)
    values = torch.empty((1 + FURTHER, 1, count), dtype=torch.bfloat16, device=device)
    copied = values.view(-1).view(torch.float32)

    def rounded(source: Stored, writes: str, draw: Draw, members: int) -> Callable[[], object]:
        if writes == "codes":
            out = codes[:members]
            return lambda: backend.encode(source, scales, grid, draw, members, out=out)
        return lambda: backend.round_into(values[:members], source, scales, grid, draw)

    def copy_of(moved: int) -> Callable[[], object]:
        elements = moved // 8
        return lambda: copied[elements : 2 * elements].copy_(copied[:elements])

    Case = tuple[str, str, str]
    jobs: dict[str, Callable[[], object]] = {}
    cases: dict[str, Case] = {}
    moved: dict[str, int] = {}
    for name, source in stored.items():
        for writes, width in WRITTEN_BYTES.items():
            for what in (NEAREST, MEMBER, COUPLED, NEXT_MEMBER, NEXT_COUPLED):
                key = f"{what}, {name}, {writes}"
                draw = Draw(ROUNDINGS[FURTHER_OF.get(what, what)], 0, "weight", 0)
                members = 1 + FURTHER if what in FURTHER_OF else 1
                jobs[key] = rounded(source, writes, draw, members)
                cases[key] = (what, name, writes)
                moved[key] = count * (width + (0 if what in FURTHER_OF else STORED_BYTES[name]))
    copies = {length: f"{COPY} {length}" for length in sorted(set(moved.values()))}
    for length, key in copies.items():
        jobs[key] = copy_of(length)
        cases[key] = (COPY, "float32", "float32")
        moved[key] = length // 8 * 8
    seconds = timer.medians(jobs, graph=True)
    for key, (what, name, writes) in cases.items():
        if what in FURTHER_OF:
            seconds[key] -= seconds[f"{FURTHER_OF[what]}, {name}, {writes}"]
            seconds[key] /= FURTHER
    speed = {key: moved[key] / seconds[key] / 1e9 for key in jobs}
    return [
        {
            "what": what,
            "stored": name,
            "writes": writes,
            "weights": count,
            "bytes": moved[key],
            "repeats": timer.repeats,
            "median_seconds": seconds[key],
            "gigabytes_per_second": speed[key],
            "of_a_copy": 1.0 if what == COPY else speed[key] / speed[copies[moved[key]]],
        }
        for key, (what, name, writes) in cases.items()
    ]


@dataclass(frozen=True)
class Linear:
    """A linear layer of the stack.

    Args:
        weight: bfloat16 [out, in]. coded: the same as INT-8. scales: of the members.
        name: keys their random bits. planes: members, as bit planes.
    """

    weight: Tensor
    coded: Coded
    scales: Scales
    name: str
    planes: Planes

    def stored(self, name: str) -> Stored:
        """Return the stored weights from which members are drawn."""
        return self.coded if name == "INT-8" else self.weight.view(-1)

    def first_planes(self, members: int) -> Planes:
        """Return the first members' bit planes, which are not copied."""
        return replace(self.planes, bits=self.planes.bits[:, :members])


def planes_of(weight: Tensor, scales: Scales, name: str, members: int) -> Planes:
    """Return INT-5 members of a matrix as bit planes."""
    backend, flat, grid = kernels.of(weight.device), weight.view(-1), grid_of(lpe.Int(BITS))
    lower = backend.encode(flat, scales, grid, Draw("lower", 0, "", 0))
    planes = backend.planes(flat, scales, grid, Draw("bernoulli", 0, name, 0), members)
    return Planes.of(lower, planes, scales, lpe.Int(BITS))


def stack(
    device: torch.device, shapes: Sequence[tuple[int, int]], layers: int, members: int
) -> Iterator[Linear]:
    """Make random linear layers, one after another; ``members``: of the planes."""
    generator = torch.Generator(device).manual_seed(0)
    for layer in range(layers):
        for place, (rows, columns) in enumerate(shapes):
            weight = torch.randn((rows, columns), device=device, generator=generator) / columns**0.5
            name, scales, coded = f"{layer}.{place}", member_scales(weight), int8_of(weight)
            kept = weight.bfloat16()
            yield Linear(kept, coded, scales, name, planes_of(kept, scales, name, members))


@torch.no_grad()
def decoding(
    timer: Timer,
    shapes: Sequence[tuple[int, int]] = LLAMA_3_8B,
    layers: int = LAYERS,
    distinct: int = LAYERS,
    members: Sequence[int] = MEMBERS,
    plane_members: Sequence[int] = PLANE_MEMBERS,
) -> list[dict[str, object]]:
    """Measure one bfloat16 pass and each way of passing members, one token each: a row each."""
    device, grid = timer.device, grid_of(lpe.Int(BITS))
    backend = kernels.of(device)
    member_linear = import_module("lpe.number_systems.kernels.cuda_linear").member_linear
    multiply = bit_planes.of(device).multiply
    made = list(stack(device, shapes, distinct, max(plane_members)))
    passed = [made[place % len(made)] for place in range(layers * len(shapes))]
    generator = torch.Generator(device).manual_seed(1)
    most = max(*members, *plane_members)
    inputs = {
        columns: torch.randn((most, 1, columns), device=device, generator=generator).bfloat16()
        for _, columns in shapes
    }
    room = torch.empty(max(rows * columns for rows, columns in shapes), dtype=torch.bfloat16, device=device)

    def forward() -> None:
        for linear in passed:
            F.linear(inputs[linear.weight.shape[1]][0], linear.weight)

    def read_once(stored: str, rounded: str, count: int) -> None:
        for linear in passed:
            x = inputs[linear.weight.shape[1]][:count]
            draw = Draw(rounded, 0, linear.name, 0)
            member_linear(x, linear.stored(stored), linear.scales, grid, draw)

    def from_planes(count: int) -> None:
        for linear in passed:
            x = inputs[linear.weight.shape[1]][:count]
            multiply(x, linear.first_planes(count), x.dtype)

    def one_by_one(stored: str, count: int) -> None:
        for member in range(count):
            for linear in passed:
                out = room[: linear.weight.numel()]
                draw = Draw("bernoulli", 0, linear.name, member)
                source = linear.stored(stored)
                backend.round_into(out.view(1, 1, -1), source, linear.scales, grid, draw)
                F.linear(inputs[linear.weight.shape[1]][member], out.view_as(linear.weight))

    jobs: dict[str, Callable[[], object]] = {FORWARD: forward}
    cases = {FORWARD: (FORWARD, "bfloat16", 1)}
    for count in members:
        for stored in ("INT-8", "bfloat16"):
            for rounded, what in READ_ONCE.items():
                jobs[f"{what}, {stored}, {count}"] = partial(read_once, stored, rounded, count)
                cases[f"{what}, {stored}, {count}"] = (what, stored, count)
        jobs[f"{ONE_BY_ONE}, {count}"] = partial(one_by_one, "INT-8", count)
        cases[f"{ONE_BY_ONE}, {count}"] = (ONE_BY_ONE, "INT-8", count)
    for count in plane_members:
        jobs[f"{FROM_PLANES}, {count}"] = partial(from_planes, count)
        cases[f"{FROM_PLANES}, {count}"] = (FROM_PLANES, "planes", count)
    of_a_pass = bytes_a_weight(FORWARD, "bfloat16", 1)
    rows: list[dict[str, object]] = []
    for run in (GRAPH, LAUNCHED) if device.type == "cuda" else (LAUNCHED,):
        seconds = timer.medians(jobs, graph=run == GRAPH)
        rows += [
            {
                "what": what,
                "stored": stored,
                "members": count,
                "run": run,
                "weights": sum(linear.weight.numel() for linear in passed),
                "bytes_a_weight": bytes_a_weight(what, stored, count),
                "repeats": timer.repeats,
                "median_seconds": seconds[key],
                "times_a_pass": seconds[key] / seconds[FORWARD],
                "limit_times": bytes_a_weight(what, stored, count) / of_a_pass,
                "promised_times": PASS_PROMISES.get((what, stored, count)),
            }
            for key, (what, stored, count) in cases.items()
        ]
    return rows


def vit_shapes(width: int, depth: int, patch: int = 16, classes: int = 1000) -> list[tuple[int, int]]:
    """Return the shapes [out, in] of the quantised weights of a Vision Transformer."""
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [(width, 3 * patch**2), *(block * depth), (classes, width)]


VITS = {name: vit_shapes(*of) for name, of in VIT.items()}


@torch.no_grad()
def at_once(
    timer: Timer, networks: Mapping[str, Sequence[tuple[int, int]]] = VITS
) -> list[dict[str, object]]:
    """Measure the making of a member of each network, in memory that is there: a row each way."""
    device, grid = timer.device, grid_of(lpe.Int(BITS))
    backend = kernels.of(device)
    generator = torch.Generator(device).manual_seed(0)
    rows: list[dict[str, object]] = []
    for network, shapes in networks.items():
        weights = [torch.randn(shape, device=device, generator=generator) for shape in shapes]
        tensors = [
            Rounded(weight.view(-1), member_scales(weight), grid, f"{place}", weight.dtype)
            for place, weight in enumerate(weights)
        ]
        outs = [torch.empty_like(weight) for weight in weights]
        plan = backend.plan(tensors)
        count = sum(weight.numel() for weight in weights)
        source, target = torch.empty(count, device=device), torch.empty(count, device=device)

        def each_alone(tensors: Sequence[Rounded] = tensors, outs: Sequence[Tensor] = outs) -> None:
            for tensor, out in zip(tensors, outs, strict=True):
                draw = Draw("bernoulli", 0, tensor.name, 0)
                backend.round_into(out.view(1, 1, -1), tensor.weight, tensor.scales, grid, draw)

        jobs: dict[str, Callable[[], object]] = {
            COPY: partial(target.copy_, source),
            AT_ONCE: partial(plan.round_into, outs, Draw("bernoulli", 0, "", 0)),
            EACH_ALONE: each_alone,
        }
        for run in (GRAPH, LAUNCHED) if device.type == "cuda" else (LAUNCHED,):
            seconds = timer.medians(jobs, graph=run == GRAPH)
            rows += [
                {
                    "what": what,
                    "network": network,
                    "run": run,
                    "tensors": len(weights),
                    "weights": count,
                    "bytes": 8 * count,
                    "repeats": timer.repeats,
                    "median_seconds": taken,
                    "limit_seconds": seconds[COPY],
                    "promised_seconds": MEMBER_SECONDS.get(network),
                }
                for what, taken in seconds.items()
            ]
    return rows


def driver_version() -> str:
    """Return the version of NVIDIA's driver, as its own tool tells; "unknown" without it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.partition("\n")[0].strip() or "unknown"


def fitting(device: torch.device, weights: Sequence[int]) -> list[int]:
    """Return the sizes that the GPU's free memory holds; print a line for each other."""
    free = torch.cuda.mem_get_info(device)[0]
    fits = [count for count in weights if count * BYTES_A_WEIGHT <= free]
    for count in sorted(set(weights) - set(fits)):
        needed = count * BYTES_A_WEIGHT / 1e9
        print(f"left out: {count:,} weights need {needed:.0f} GB, and {free / 1e9:.0f} GB are free")
    return fits


@dataclass(frozen=True)
class Cases:
    """All that is measured.

    Args:
        weights, columns: sizes of the bandwidth's matrices, and their columns. shapes: of the linear layers
            of a decoded layer; layers: that are passed, of which ``distinct`` are distinct. members,
            plane_members: that are decoded, drawn and from planes. networks: whose members are made at once,
            as shapes.
        called: networks whose members are made and evaluated as users do. models, small: see ``gpu_models``.
        models_members: of each model.
    """

    weights: Sequence[int] = WEIGHTS
    columns: int = COLUMNS_OF_WEIGHT
    shapes: Sequence[tuple[int, int]] = LLAMA_3_8B
    layers: int = LAYERS
    distinct: int = LAYERS
    members: Sequence[int] = MEMBERS
    plane_members: Sequence[int] = PLANE_MEMBERS
    networks: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=lambda: VITS)
    called: Mapping[str, gpu_calls.Network] = field(default_factory=lambda: gpu_calls.NETWORKS)
    models: Mapping[str, gpu_models.Model] = field(default_factory=lambda: gpu_models.MODELS)
    small: Mapping[str, gpu_models.Small] = field(default_factory=lambda: gpu_models.SMALL)
    models_members: int = gpu_models.MEMBERS


def record(timer: Timer, out: Path, cases: Cases) -> None:
    """Measure all of it; write each ``gpu_*.csv`` and ``gpu.json`` as soon as a part is measured."""
    started = time.time()
    seconds: dict[str, float] = {}

    def done(part: str) -> None:
        _give_memory_back(timer.device)
        seconds[part] = round(time.time() - started - sum(seconds.values()), 1)
        print(f"{part}: {seconds[part]} s", file=sys.stderr, flush=True)
        _tell(timer, out, cases, seconds, started)

    measured: list[dict[str, object]] = []
    for count in cases.weights:
        measured += bandwidth(timer, count, cases.columns)
        _give_memory_back(timer.device)
    write_table(measured, out / "gpu_bandwidth.csv", BANDWIDTH_COLUMNS)
    done("bandwidth")
    write_table(at_once(timer, cases.networks), out / "gpu_members.csv", MEMBER_COLUMNS)
    done("members at once")
    decoded = decoding(timer, cases.shapes, cases.layers, cases.distinct, cases.members, cases.plane_members)
    write_table(decoded, out / "gpu_decoding.csv", DECODE_COLUMNS)
    done("decoding")
    gpu_calls.write(gpu_calls.measure(timer, cases.called), out)
    done("calls")
    gpu_models.measure(timer, out, cases.models, cases.small, cases.models_members)
    done("models")


def _tell(timer: Timer, out: Path, cases: Cases, seconds: Mapping[str, float], started: float) -> None:
    """Write ``gpu.json``: the conditions, and the seconds of each part so far."""
    config = {
        "system": lpe.Int(BITS),
        "repeats": timer.repeats,
        "weights": list(cases.weights),
        "shapes": [list(shape) for shape in cases.shapes],
        "layers": cases.layers,
        "distinct_layers": cases.distinct,
        "first_calls_seconds": round(timer.first_calls, 1),
        "part_seconds": dict(seconds),
        "driver": driver_version(),
        "cuda": torch.version.cuda or "none",
    }
    write_provenance(
        out / "gpu.json",
        ["benchmarks/gpu.py"],
        config,
        timer.device.type,
        [0],
        torch.get_num_threads(),
        started,
    )


def _give_memory_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 1 where a promise is broken, 2 after one line about bad input or no GPU."""
    options = parser("gpu", __doc__)
    options.add_argument("--layers", type=int, default=LAYERS, help="distinct layers, 1 to 32 (%(default)s)")
    options.add_argument(
        "--weights", type=int, nargs="+", default=list(WEIGHTS), help="sizes for the bandwidth"
    )
    asked = options.parse_args(arguments)
    try:
        if not 1 <= asked.layers <= LAYERS:
            raise InputError(f"--layers is {asked.layers}; give 1 to {LAYERS}")
        if min(asked.weights) < COLUMNS_OF_WEIGHT:
            raise InputError(f"--weights has {min(asked.weights)}; give {COLUMNS_OF_WEIGHT} or more")
        if not torch.cuda.is_available():
            raise InputError(
                "there is no CUDA device here; run benchmarks.gpu on a machine with an NVIDIA GPU"
            )
        check_writable(asked.out)
        device = torch.device("cuda")
        weights = fitting(device, asked.weights)
        if not weights:
            raise InputError("no size fits the GPU's free memory; give fewer --weights")
        record(Timer(device), asked.out, Cases(weights=weights, distinct=asked.layers))
    except torch.OutOfMemoryError:
        raise InputError("the GPU's memory does not hold the stack; give fewer --layers") from None
    print(table_text(asked.out))
    verdicts = promises(asked.out)
    for _, line in verdicts:
        print(line)
    return 0 if all(kept for kept, _ in verdicts) else 1


def promises(folder: Path) -> list[tuple[bool, str]]:
    """Tell whether each promise is kept, with a line that says so, from the files alone."""
    found = []
    table = pd.read_csv(folder / "gpu_bandwidth.csv")
    largest = int(table["weights"].max())
    for stored in ("bfloat16", "INT-8"):
        chosen = table[
            (table["weights"] == largest)
            & (table["what"] == MEMBER)
            & (table["stored"] == stored)
            & (table["writes"] == "bfloat16")
        ]
        share = float(chosen["of_a_copy"].iloc[0])
        what = f"{MEMBER}, {stored} to bfloat16, {largest:,} weights: {share:.1%} of a copy"
        kept = share >= COPY_PROMISE
        found.append((kept, f"{_verdict(kept)}: {what}, at least {COPY_PROMISE:.0%} promised"))
    table = pd.read_csv(folder / "gpu_members.csv")
    for _, row in table[(table["what"] == AT_ONCE) & (table["run"] == LAUNCHED)].iterrows():
        kept = row["median_seconds"] <= row["promised_seconds"]
        found.append((kept, f"{_verdict(kept)}: {_of_a_member(row)} promised"))
    table = pd.read_csv(folder / "gpu_decoding.csv")
    if GRAPH in set(table["run"]):
        table = table[table["run"] == GRAPH]
    for _, row in table[table["promised_times"].notna()].iterrows():
        kept = row["times_a_pass"] <= row["promised_times"]
        line = (
            f"{row['members']} {row['what']} decoded from {row['stored']}: {row['times_a_pass']:.3g} times "
            f"{FORWARD} (bytes alone {row['limit_times']:.3g}), at most {row['promised_times']:g} promised"
        )
        found.append((kept, f"{_verdict(kept)}: {line}"))
    found += [(kept, f"{_verdict(kept)}: {line}") for kept, line in gpu_calls.verdicts(folder)]
    return found


def _of_a_member(row: Any) -> str:
    taken, limit, promised = (
        f"{1000 * row[column]:.3g} ms" for column in ("median_seconds", "limit_seconds", "promised_seconds")
    )
    return f"a member of a {row['network']} by one launch: {taken} (a copy {limit}), at most {promised}"


def _verdict(kept: bool) -> str:
    return "kept" if kept else "broken"


def table_text(folder: Path) -> str:
    """Return the tables with their conditions, from the files alone."""
    tables = []
    header: tuple[str, ...]
    ways: list[tuple[str, ...]]
    for weights, rows in pd.read_csv(folder / "gpu_bandwidth.csv").groupby("weights"):
        ways = [
            (
                str(row["what"]),
                str(row["stored"]),
                str(row["writes"]),
                f"{row['bytes'] / 1e6:.4g}",
                f"{1000 * row['median_seconds']:.4g}",
                f"{row['gigabytes_per_second']:.4g}",
                f"{row['of_a_copy']:.1%}",
            )
            for _, row in rows.iterrows()
        ]
        header = ("what", "stored", "writes", "MB", "ms", "GB/s", "of a copy")
        tables.append(text_table(f"{weights:,} weights rounded to INT-{BITS}", header, ways))
    for network, rows in pd.read_csv(folder / "gpu_members.csv").groupby("network", sort=False):
        ways = [
            (
                str(row["what"]),
                str(row["run"]),
                *(
                    f"{1000 * row[column]:.4g}"
                    for column in ("median_seconds", "limit_seconds", "promised_seconds")
                ),
            )
            for _, row in rows.iterrows()
        ]
        header = ("what", "run", "ms", "limit: a copy, ms", "promised, ms")
        weights, tensors = (rows[column].iloc[0] for column in ("weights", "tensors"))
        title = f"A member of a {network}, {weights:,} weights in {tensors} tensors"
        tables.append(text_table(title, header, ways))
    table = pd.read_csv(folder / "gpu_decoding.csv")
    cells = [
        (
            str(row["what"]),
            str(row["stored"]),
            str(row["members"]),
            str(row["run"]),
            f"{1000 * row['median_seconds']:.4g}",
            *(
                "–" if pd.isna(row[column]) else f"{row[column]:.3g}"
                for column in ("times_a_pass", "limit_times", "promised_times")
            ),
        )
        for _, row in table.iterrows()
    ]
    config = _told(folder / "gpu.json")["config"]
    title = (
        f"One token through {table['weights'].iloc[0]:,} weights ({config['layers']} layers, "
        f"{config['distinct_layers']} distinct), INT-{BITS}"
    )
    header = ("what", "stored", "members", "run", "ms", "times a pass", "limit: bytes", "promised")
    tables.append(text_table(title, header, cells))
    tables += [*gpu_calls.tables(folder), *gpu_models.tables(folder)]
    return "\n\n".join(tables) + "\n" + gpu_conditions(folder / "gpu.json")


def gpu_conditions(path: Path) -> str:
    """Return GPU, driver and compilation, and what every benchmark tells, in two lines."""
    told = _told(path)
    config = told["config"]
    return (
        f"medians of {config['repeats']}; {told['device'].get('gpu', 'no GPU')}, driver {config['driver']}, "
        f"CUDA {config['cuda']}; first calls, compilation included: {config['first_calls_seconds']} s\n"
        f"{conditions(path)}"
    )


def _told(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
