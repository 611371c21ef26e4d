"""The Triton kernels give the reference's codes and values, bit for bit.

The cases run in Triton's interpreter on the CPU, as a program of its own, for triton decides at import
whether it interprets, and this process may have imported it; and on a GPU where there is one. Besides,
kernels are compiled for an H100, which takes none, to see that their instructions round as the reference's.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import re
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import lpe
from lpe.number_systems.grids import LowPrecision, ScaleAxis, grid_of
from lpe.number_systems.kernels import reference, use
from lpe.number_systems.kernels.arguments import Coded, Draw, Rounded, Scales, Stored
from lpe.number_systems.kernels.planes import Planes
from lpe.number_systems.layouts import Layout
from lpe.number_systems.rounding import absmax_scales
from lpe.number_systems.streams import random_lanes

MODULE = "lpe.number_systems.kernels.cuda"
LINEAR = "lpe.number_systems.kernels.cuda_linear"
PLANES = "lpe.number_systems.kernels.planes_cuda"
SEED = 5 * 2**32 + 11  # uses both words of the key
ROUNDINGS = ["nearest", "bernoulli", "coupled"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
AXES = [lpe.PerTensor(), *map(lpe.PerChannel, (1, 3)), *map(lpe.PerBlock, (5, 8, 100))]
SYSTEMS: dict[str, Callable[[ScaleAxis], LowPrecision]] = {
    **{f"int{bits}": partial(lpe.Int, bits) for bits in range(2, 9)},
    "INT-8, spread 11.3": partial(lpe.Int, 8, spread=11.3),
    "INT-5, spread 1.7": partial(lpe.Int, 5, spread=1.7),
    **{f"E{e}M{m}": partial(lpe.Float, e, m) for e, m in ((4, 3), (5, 2), (3, 2), (2, 3), (2, 1))},
    "NF4": lpe.NF4,
    "two levels": partial(lpe.Codebook, [-1.0, 1.0]),
    "three levels": partial(lpe.Codebook, [-1.0, 0.25, 1.0]),
    "without 0": partial(lpe.Codebook, [0.3, -0.2, 1.0, -1.0, 0.7]),
    "one-sided": partial(lpe.Codebook, [0.0, 0.1, 0.35, 0.5, 2.0]),
    "lopsided": partial(lpe.Codebook, [-3.0, -0.1, 0.0, 0.4, 1.1]),
    "256 levels": partial(lpe.Codebook, [level / 100 for level in range(-128, 128)]),
}


def kernels() -> Any:
    """The kernels under test, which import triton."""
    return import_module(MODULE)


def normal_weight(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))


def scales_of(weight: Tensor, system: LowPrecision, layout: Layout) -> Scales:
    return Scales.of(absmax_scales(weight, system, layout), layout, system.scale)


def scales_on(scales: Scales, device: str) -> Scales:
    """The same numbers elsewhere: both backends are given scales that were divided once."""
    return Scales(scales.values.to(device), scales.inverses.to(device), scales.layout, scales.axis)


def stored_on(weight: Stored, device: str) -> Stored:
    if isinstance(weight, Coded):
        return Coded(weight.codes.to(device), scales_on(weight.scales, device), weight.grid)
    return weight.to(device)


def bits_of(values: Tensor) -> Tensor:
    """What two tensors must share: every bit, but NaN is NaN."""
    if not values.is_floating_point():
        return values
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return torch.where(values.isnan(), torch.nan, values).view(whole)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    actual = actual.cpu()
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    differ = (bits_of(actual) != bits_of(expected)).nonzero()
    assert not len(differ), f"{len(differ)} of {expected.numel()} differ, the first at {differ[0].tolist()}"


def check(
    device: str,
    weight: Stored,
    system: LowPrecision,
    scales: Scales,
    draw: Draw,
    members: int = 1,
    starts: list[int] | None = None,
    length: int | None = None,
    dtypes: tuple[torch.dtype, ...] = (),
) -> None:
    """Codes, of a whole weight also planes, and values of these dtypes, of both backends."""
    grid = grid_of(system)
    first = None if starts is None else torch.tensor(starts, dtype=torch.int64)
    first_there = None if first is None else first.to(device)
    there, scales_there = stored_on(weight, device), scales_on(scales, device)
    expected = reference.encode(weight, scales, grid, draw, members, first, length)
    actual = kernels().encode(there, scales_there, grid, draw, members, first_there, length)
    assert_same(actual, expected)
    if first is None and draw.rounding != "nearest":
        lower = Draw("lower", 0, "", 0)
        expected_lower = reference.encode(weight, scales, grid, lower)
        assert_same(kernels().encode(there, scales_there, grid, lower), expected_lower)
        packed = reference.planes(weight, scales, grid, draw, members)
        assert_same(kernels().planes(there, scales_there, grid, draw, members), packed)
    for dtype in dtypes:
        values = torch.empty(expected.shape, dtype=dtype)
        reference.round_into(values, weight, scales, grid, draw, first)
        # Where nothing is written, this stays.
        values_there = torch.full(expected.shape, 77.0, dtype=dtype, device=device)
        kernels().round_into(values_there, there, scales_there, grid, draw, first_there)
        assert_same(values_there, values)


def check_weight(
    device: str,
    weight: Tensor,
    system: LowPrecision,
    rounding: str,
    member: int = 0,
    seed: int = SEED,
    output_axis: int = 0,
    channel_groups: int = 1,
    **arguments: Any,
) -> None:
    layout = Layout(tuple(weight.shape), output_axis, channel_groups)
    scales = scales_of(weight, system, layout)
    draw = Draw(rounding, seed, "layer.weight", member)
    check(device, weight.flatten(), system, scales, draw, **arguments)


def corners() -> Tensor:
    """Normal weights; with rows of zeros, of subnormals, of scales without an inverse, of grid values."""
    weight = normal_weight(8, 13)
    weight[2] = 0
    weight[3] *= 1e-41
    weight[4] *= 1e-37
    weight[5, 1:4] = torch.tensor([1e-41, -1e-41, -1e-20])
    weight[6] = torch.arange(-6, 7) / 2
    weight[7] = torch.arange(-6, 7) * 0.1
    return weight


# The cases. Each takes the device of the kernels.

Case = Callable[[str], None]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    def put(function: Case) -> Case:
        assert name not in CASES
        CASES[name] = function
        return function

    return put


for _name, _of in SYSTEMS.items():
    for _rounding in ROUNDINGS:
        for _axis in (lpe.PerChannel(), lpe.PerBlock(5)):

            @case(f"{_name}, {_rounding}, {_axis}")
            def _(device: str, of: Any = _of, rounding: str = _rounding, axis: ScaleAxis = _axis) -> None:
                check_weight(device, corners(), of(axis), rounding, member=5, members=2)

    @case(f"values of {_name}")
    def _(device: str, of: Any = _of) -> None:
        check_weight(device, corners(), of(lpe.PerChannel()), "coupled", dtypes=(torch.float32,))


for _system in (lpe.Int(8), lpe.NF4(lpe.PerBlock(5))):
    for _dtype in DTYPES:

        @case(f"{_system.name} of {_dtype}, its values of every dtype")
        def _(device: str, system: LowPrecision = _system, dtype: torch.dtype = _dtype) -> None:
            weight = (corners().double() / 3).to(dtype)
            check_weight(device, weight, system, "bernoulli", members=2, dtypes=tuple(DTYPES))


# Every form of scale group, with and without blocks of eight that share a scale.
LAYOUTS: list[tuple[tuple[int, ...], dict[str, int]]] = [
    ((16, 24), {}),
    ((6, 16), {}),
    ((5, 3, 2, 3), {}),
    ((19,), {}),
    ((), {}),
    ((13, 7), {"output_axis": 1}),
    ((4, 6, 3), {"output_axis": 1}),
    ((4, 6, 8), {"output_axis": 1}),
    ((6, 4, 3, 2), {"output_axis": 1, "channel_groups": 3}),
    ((6, 4, 8), {"output_axis": 1, "channel_groups": 2}),
    ((3, 4, 5), {"output_axis": 2, "channel_groups": 3}),
    ((3, 4, 8), {"output_axis": 1, "channel_groups": 3}),
]
for _shape, _layout in LAYOUTS:
    for _axis in AXES:

        @case(f"shape {list(_shape)}, {_axis}, {_layout}")
        def _(device: str, shape: Any = _shape, axis: ScaleAxis = _axis, layout: Any = _layout) -> None:
            weight, system = normal_weight(*shape), lpe.Int(4, axis)
            check_weight(device, weight, system, "bernoulli", **layout)
            with mock.patch.object(kernels(), "INT32_ELEMENTS", 0):
                check_weight(device, weight, system, "bernoulli", **layout)


for _rounding in ROUNDINGS:
    for _starts, _length in (
        ([0, 1, 7, 8, 9, 64, 84], 20),
        ([3], 101),
        ([103, 0, 50, 50], 1),
        ([5, 40, 17], 8),
        ([0, 16, 32, 48], 16),
        ([], 4),
        ([4, 5], 0),
    ):

        @case(f"segments of {_length} from {_starts}, {_rounding}")
        def _(device: str, rounding: str = _rounding, starts: Any = _starts, length: int = _length) -> None:
            for system in (lpe.Int(4), lpe.NF4(lpe.PerBlock(5))):
                arguments: Any = dict(starts=starts, length=length, members=2)
                check_weight(device, corners(), system, rounding, 3, dtypes=(torch.bfloat16,), **arguments)

    @case(f"more than one program, {_rounding}")
    def _(device: str, rounding: str = _rounding) -> None:
        for system in (lpe.Int(3), lpe.NF4(lpe.PerBlock(5))):
            check_weight(device, normal_weight(37, 61), system, rounding, members=3)
            starts = list(range(0, 2000, 97))
            check_weight(device, normal_weight(37, 61), system, rounding, starts=starts, length=139)

    for _shape in ((0,), (0, 4), (4, 0), (2, 0, 3)):

        @case(f"shape {list(_shape)}, {_rounding}")
        def _(device: str, rounding: str = _rounding, shape: Any = _shape) -> None:
            for axis in AXES:
                check_weight(device, torch.ones(shape), lpe.Int(4, axis), rounding, dtypes=(torch.float32,))


for _rounding in ("bernoulli", "coupled"):
    for _seed in (0, 1, 2**31, 2**32 - 1, 2**32, 2**64 - 1):

        @case(f"seed {_seed}, {_rounding}")
        def _(device: str, rounding: str = _rounding, seed: int = _seed) -> None:
            check_weight(device, normal_weight(7, 13), lpe.Int(4), rounding, seed=seed)

    for _member, _members in ((0, 1), (1, 1), (0, 17), (12345, 3), (2**31 - 2, 4), (2**32 - 3, 3)):

        @case(f"{_members} members from {_member}, {_rounding}")
        def _(device: str, rounding: str = _rounding, member: int = _member, members: int = _members) -> None:
            check_weight(device, normal_weight(7, 13), lpe.Int(4), rounding, member, members=members)


for _stored in (lpe.Int(8), lpe.Int(8, lpe.PerBlock(5)), lpe.Float(4, 3, lpe.PerTensor()), lpe.NF4()):
    for _system in (lpe.Int(5), lpe.Int(4, lpe.PerBlock(8)), lpe.Float(2, 1), lpe.NF4(lpe.PerTensor())):

        @case(f"{_system.name} of stored {_stored.name}")
        def _(device: str, stored: LowPrecision = _stored, system: LowPrecision = _system) -> None:
            layout = Layout((8, 13))
            scales = scales_of(corners(), stored, layout)
            grid = grid_of(stored)
            codes = reference.encode(corners().flatten(), scales, grid, Draw("nearest", 0, "", 0)).flatten()
            weight = Coded(codes, scales, grid)
            values = reference.decode(codes, scales, grid, torch.float32).view(layout.shape)
            own = scales_of(values, system, layout)
            draw = Draw("bernoulli", SEED, "w", 2)
            check(device, weight, system, own, draw, 2, dtypes=(torch.bfloat16,))
            check(device, weight, system, own, draw, 1, starts=[3, 90, 50], length=11)


def several() -> list[Rounded]:
    """Weights that a plan rounds by several launches, two or more of them alike."""
    cases: list[tuple[tuple[int, ...], LowPrecision, torch.dtype, dict[str, int]]] = [
        ((37, 61), lpe.Int(5), torch.float32, {}),
        ((8, 16), lpe.Int(5), torch.float32, {}),
        ((1, 8), lpe.Int(4), torch.float32, {}),
        ((0, 4), lpe.Int(4), torch.float32, {}),
        ((8, 16), lpe.Int(5), torch.bfloat16, {}),
        ((16, 136), lpe.Int(3, lpe.PerTensor()), torch.bfloat16, {}),
        ((13, 7), lpe.Int(5, lpe.PerBlock(5)), torch.float32, {}),
        ((4, 6, 8), lpe.NF4(), torch.float16, {"output_axis": 1}),
        ((9, 24), lpe.Float(4, 3), torch.float32, {}),
    ]
    made = []
    for place, (shape, system, dtype, layout) in enumerate(cases):
        weight = normal_weight(*shape, key=place)
        scales = scales_of(weight, system, Layout(shape, **layout))
        made.append(Rounded(weight.to(dtype).flatten(), scales, grid_of(system), f"layer.{place}", dtype))
    stored, layout = lpe.Int(8), Layout((8, 13))
    own = scales_of(corners(), stored, layout)
    codes = reference.encode(corners().flatten(), own, grid_of(stored), Draw("nearest", 0, "", 0)).flatten()
    coded = Coded(codes, own, grid_of(stored))
    scales = scales_of(corners(), lpe.Int(5), layout)
    made += [Rounded(coded, scales, grid_of(lpe.Int(5)), name, torch.bfloat16) for name in ("a", "b")]
    return made


def tensors_on(tensors: list[Rounded], device: str) -> list[Rounded]:
    return [
        Rounded(stored_on(t.weight, device), scales_on(t.scales, device), t.grid, t.name, t.dtype)
        for t in tensors
    ]


for _rounding in ROUNDINGS:
    for _apart in (0, 1, 64):

        @case(f"several weights at once, {_rounding}, their values {_apart} apart")
        def _(device: str, rounding: str = _rounding, apart: int = _apart) -> None:
            tensors, members = several(), 2
            made = kernels().plan(tensors_on(tensors, device))
            draw = Draw(rounding, SEED, "not looked at", 5)
            for again in range(2):
                draw = Draw(rounding, SEED + again, "not looked at", 5 + again)
                # All in one block of memory, and no value of the gaps is to be written.
                room = {
                    dtype: torch.full((9000 + 20 * apart,), 77.0, dtype=dtype, device=device)
                    for dtype in DTYPES
                }
                taken = dict.fromkeys(DTYPES, 0)
                outs = []
                for tensor in tensors:
                    count, start = members * tensor.weight.numel(), taken[tensor.dtype]
                    outs.append(room[tensor.dtype][start : start + count])
                    taken[tensor.dtype] += -(-count // 64) * 64 + apart if apart != 1 else count + 1
                made.round_into(outs, draw, members)
                for tensor, out in zip(tensors, outs, strict=True):
                    own = Draw(rounding, draw.seed, tensor.name, draw.member)
                    expected = torch.empty((members, 1, tensor.weight.numel()), dtype=tensor.dtype)
                    reference.round_into(expected, tensor.weight, tensor.scales, tensor.grid, own)
                    assert_same(out.view(expected.shape), expected)
                untouched = sum(int((room[dtype] == 77).sum()) for dtype in DTYPES)
                assert untouched == sum(map(len, room.values())) - sum(map(len, outs))


@case("further members of a plan's launch")
def _(device: str) -> None:
    tensors = several()[:2]
    made = kernels().plan(tensors_on(tensors, device))
    outs = [torch.empty(t.weight.numel(), dtype=t.dtype, device=device) for t in tensors]
    further = torch.tensor([3], dtype=torch.int32, device=device)
    made.round_into(outs, Draw("bernoulli", SEED, "", 4), 1, further)
    for tensor, out in zip(tensors, outs, strict=True):
        expected = torch.empty((1, 1, len(out)), dtype=tensor.dtype)
        own = Draw("bernoulli", SEED, tensor.name, 7)
        reference.round_into(expected, tensor.weight, tensor.scales, tensor.grid, own)
        assert_same(out.view(expected.shape), expected)


for _name, _of in SYSTEMS.items():

    @case(f"decoding {_name}")
    def _(device: str, of: Any = _of) -> None:
        layout, system = Layout((8, 13)), of(lpe.PerBlock(5))
        scales, grid = scales_of(corners(), system, layout), grid_of(system)
        there = scales_on(scales, device)
        codes = torch.arange(104) % len(grid.levels) + grid.lowest_code
        codes = codes.to(reference.code_type(grid))
        for start, stop in ((0, 104), (37, 91), (104, 104)):
            part = codes[start:stop]
            expected = reference.decode(part, scales, grid, torch.float32, start)
            assert_same(kernels().decode(part.to(device), there, grid, torch.float32, start), expected)


@case("every kind of float32 value, cast to every dtype")
def _(device: str) -> None:
    # A code of 1 has its scale as the value: here any pattern of 32 bits, and all ties of both narrow dtypes.
    drawn = torch.randint(-(2**31), 2**31, (3000,), generator=torch.Generator().manual_seed(0))
    upper = torch.arange(0, 2**16, 61) << 16
    ties = torch.cat([upper + low for low in (0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    patterns = torch.cat([drawn, (ties + 2**31) % 2**32 - 2**31, torch.tensor([0x7F7FFFFF, 0x7F800000])])
    values = patterns.to(torch.int32).view(torch.float32)
    layout = Layout((len(values), 1))
    scales = Scales.of(values, layout, lpe.PerChannel())
    grid, codes = grid_of(lpe.Int(2)), torch.ones(len(values), dtype=torch.int8)
    for dtype in DTYPES:
        expected = reference.decode(codes, scales, grid, dtype)
        assert_same(kernels().decode(codes.to(device), scales_on(scales, device), grid, dtype), expected)


@case("weights far beyond scales that are given")
def _(device: str) -> None:
    weight = torch.cat([normal_weight(100) * 10.0**power for power in range(38)])
    layout = Layout((38, 100))
    scales = Scales.of(torch.ones(38), layout, lpe.PerChannel())
    for system in (lpe.Int(2), lpe.Int(8), lpe.Float(4, 3), lpe.NF4()):
        for rounding in ROUNDINGS:
            check(device, weight, system, scales, Draw(rounding, SEED, "w", 0))


@case("weights beside whole numbers")
def _(device: str) -> None:
    whole = torch.arange(-126.0, 127)
    near = [torch.nextafter(whole, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    weight = torch.cat([whole, whole + 0.5, *near, torch.tensor([127.0])])
    for rounding in ROUNDINGS:
        check_weight(device, weight[None], lpe.Int(8), rounding, members=2)


# Weights whose 65536·p is a half more than their random number, or a few of float32's steps beside it: there
# every rounding on the way to T decides.
for _rounding, _of in itertools.product(
    ("bernoulli", "coupled"), (SYSTEMS["int8"], SYSTEMS["NF4"], SYSTEMS["E4M3"], SYSTEMS["three levels"])
):
    _name = _of(lpe.PerTensor()).name

    @case(f"thresholds at the random numbers, {_name}, {_rounding}")
    def _(device: str, rounding: str = _rounding, of: Any = _of) -> None:
        system, member, count = of(lpe.PerTensor()), 3, 6000
        lanes = random_lanes(SEED, "layer.weight", 0 if rounding == "coupled" else member, 0, count)
        if rounding == "coupled":
            lanes = (lanes + 40503 * member) % 65536
        levels = torch.tensor(system.levels)
        lower = torch.arange(count) % (len(levels) - 1)
        low, step = levels[lower], levels[lower + 1].double() - levels[lower].double()
        beside = torch.arange(count, dtype=torch.int32) % 7 - 3
        for scale in (1.0, 1.1):
            weight = (scale * (low.double() + step * (lanes + 0.5) / 65536)).float()
            weight = (weight.view(torch.int32) + beside).view(torch.float32)
            weight[-1] = levels[-1] * scale  # the largest magnitude
            check_weight(device, weight, system, rounding, member)


@case("decoding, every form of scale group")
def _(device: str) -> None:
    for shape, layout in LAYOUTS:
        for axis in AXES:
            matrix, system = Layout(shape, **layout), lpe.Int(4, axis)
            scales = scales_of(normal_weight(*shape), system, matrix)
            codes = torch.ones(matrix.numel, dtype=torch.int8)
            expected = reference.decode(codes, scales, grid_of(system), torch.float32)
            there = scales_on(scales, device)
            assert_same(kernels().decode(codes.to(device), there, grid_of(system), torch.float32), expected)


@case("elements beyond 2³⁵, decoded")
def _(device: str) -> None:
    layout, grid = Layout((2, 2**34 + 32)), grid_of(lpe.Int(8))
    scales = Scales.of(torch.tensor([[0.5], [0.25]]), layout, lpe.PerChannel())
    codes = (torch.arange(200) - 100).to(torch.int8)
    for start in (2**34 - 50, 2**35 - 150, 2**35 - 136):
        expected = reference.decode(codes, scales, grid, torch.float32, start)
        there = scales_on(scales, device)
        assert_same(kernels().decode(codes.to(device), there, grid, torch.float32, start), expected)


@case("codes written where they are asked for")
def _(device: str) -> None:
    weight, grid, draw = corners(), grid_of(lpe.Int(5)), Draw("bernoulli", SEED, "w", 2)
    scales = scales_of(weight, lpe.Int(5), Layout((8, 13)))
    out = torch.full((4, 1, 104), 77, dtype=torch.int8, device=device)
    there = (weight.flatten().to(device), scales_on(scales, device))
    made = kernels().encode(*there, grid, draw, 3, out=out[:3])
    assert made.data_ptr() == out.data_ptr()
    assert_same(out[:3], reference.encode(weight.flatten(), scales, grid, draw, 3))
    assert (out[3] == 77).all()


# A linear layer of all members, to the rounding of its sums.


def check_linear(
    device: str,
    shape: tuple[int, int],
    system: LowPrecision,
    rounding: str = "bernoulli",
    dtype: torch.dtype = torch.float32,
    stored: LowPrecision | None = None,
    shared_inputs: bool = False,
    drawn_there: int = 3,
) -> None:
    """Three members from 3 on, of two examples; the kernel is told that ``drawn_there`` is the first."""
    layout, draw = Layout(shape), Draw(rounding, SEED, "w", 3)
    values = normal_weight(*shape).to(dtype)
    weight: Stored = values.flatten()
    if stored is not None:
        scales, grid = scales_of(values, stored, layout), grid_of(stored)
        codes = reference.encode(weight, scales, grid, Draw("nearest", 0, "", 0)).flatten()
        weight, values = Coded(codes, scales, grid), reference.decode(codes, scales, grid, torch.float32)
    own = scales_of(values.view(shape), system, layout)
    x = normal_weight(1 if shared_inputs else 3, 2, shape[1], key=1).to(dtype).expand(3, 2, shape[1])
    members = torch.empty((3, 1, layout.numel), dtype=dtype)
    reference.round_into(members, weight, own, grid_of(system), draw)
    transposed = members.double().view(3, *shape).mT
    expected = x.double() @ transposed
    # Every sum of n products, in any order, is within n·2⁻²⁴ of the sum of their magnitudes; then it is cast.
    bound = (shape[1] * 2.0**-24) * (x.double().abs() @ transposed.abs())
    bound += torch.finfo(dtype).eps * expected.abs()
    there = (stored_on(weight, device), scales_on(own, device), grid_of(system))
    draw_there = Draw(rounding, SEED, "w", drawn_there)
    actual = import_module(LINEAR).member_linear(x.to(device), *there, draw_there).cpu()
    assert (actual.dtype, actual.shape) == (dtype, (3, 2, shape[0]))
    assert ((actual.double() - expected).abs() <= bound).all()


for _shape in ((6, 24), (5, 13), (3, 1), (4, 1100), (5, 1003), (3, 1048), (0, 8), (8, 0)):
    for _system in (lpe.Int(4), lpe.NF4(lpe.PerBlock(8))):

        @case(f"a linear layer of shape {list(_shape)}, {_system.name}")
        def _(device: str, shape: Any = _shape, system: LowPrecision = _system) -> None:
            check_linear(device, shape, system)


for _rounding, _dtype in itertools.product(ROUNDINGS, DTYPES[:3]):

    @case(f"a linear layer of {_dtype}, {_rounding}")
    def _(device: str, rounding: str = _rounding, dtype: torch.dtype = _dtype) -> None:
        check_linear(device, (5, 40), lpe.Int(4), rounding, dtype)
        check_linear(device, (5, 40), lpe.NF4(), rounding, dtype, stored=lpe.Int(8, lpe.PerBlock(16)))


@case("a linear layer under a spread, from its own weights and from INT-8")
def _(device: str) -> None:
    system = lpe.Int(8, spread=11.3)
    for rounding in ROUNDINGS:
        check_linear(device, (5, 40), system, rounding, stored=lpe.Int(8))
        check_linear(device, (5, 13), system, rounding)


@case("a linear layer whose members share their inputs")
def _(device: str) -> None:
    check_linear(device, (6, 24), lpe.Int(4), shared_inputs=True)


@case("a linear layer of other members is seen")
def _(device: str) -> None:
    with pytest.raises(AssertionError):
        check_linear(device, (6, 24), lpe.Int(4), drawn_there=4)


# Members as bit planes: their values bit for bit, and a linear layer to the rounding of its sums.


def planes_there(
    device: str, shape: tuple[int, ...], system: LowPrecision, **layout: int
) -> tuple[Planes, Tensor]:
    """Planes of three members on a device, and the reference's float32 values [3, elements] on the CPU."""
    matrix, draw, grid = Layout(shape, **layout), Draw("bernoulli", SEED, "w", 3), grid_of(system)
    weight = normal_weight(*shape).flatten()
    scales = scales_of(normal_weight(*shape), system, matrix)
    lower = reference.encode(weight, scales, grid, Draw("lower", 0, "", 0))[0, 0]
    planes = reference.planes(weight, scales, grid, draw, 3)
    values = torch.empty((3, 1, matrix.numel))
    reference.round_into(values, weight, scales, grid, draw)
    with use("cuda"):
        made = Planes.of(lower, planes, scales_on(scales, device), system)
    return made, values[:, 0]


def check_planes(
    device: str, shape: tuple[int, ...], system: LowPrecision, dtype: torch.dtype, **layout: int
) -> None:
    made, values = planes_there(device, shape, system, **layout)
    round_into = import_module(PLANES).round_into
    whole = torch.full((3, 1, values.shape[1]), 77.0, dtype=dtype, device=device)
    round_into(whole, made)
    assert_same(whole[:, 0], values.to(dtype))
    starts = [5, 0, values.shape[1] - 11]
    part = torch.full((2, 3, 11), 77.0, dtype=dtype, device=device)
    round_into(part, made, 1, torch.tensor(starts, device=device))
    assert_same(part, torch.stack([values[1:, start : start + 11] for start in starts], dim=1).to(dtype))


def check_planes_product(
    device: str, shape: tuple[int, int], system: LowPrecision, dtype: torch.dtype, fault: bool = False
) -> None:
    made, values = planes_there(device, shape, system)
    if fault:
        made.bits[3, 1] ^= 16
    x = normal_weight(3, 2, shape[1], key=1).to(dtype)
    planes_cuda = import_module(PLANES)
    assert planes_cuda.multiplies(made, 2, dtype) and not planes_cuda.multiplies(made, 99, dtype)
    actual = planes_cuda.multiply(x.to(device), made, dtype).cpu()
    transposed = values.double().view(3, *shape).mT
    expected = x.double() @ transposed
    # L x and B x are summed on their own: as large as the weights' magnitudes and a step more.
    step = made.scales.values.cpu().double().max()
    bound = 2 * (shape[1] * 2.0**-24) * (x.double().abs() @ (transposed.abs() + step))
    bound += torch.finfo(dtype).eps * expected.abs()
    assert (actual.dtype, actual.shape) == (dtype, (3, 2, shape[0]))
    assert ((actual.double() - expected).abs() <= bound).all()


for _name, _system, _shape, _layout in (
    ("integers", lpe.Int(5), (5, 13), {}),
    ("NF4 of the second axis", lpe.NF4(), (19, 6), {"output_axis": 1}),
    ("integers of blocks", lpe.Int(4, lpe.PerBlock(5)), (3, 30), {}),
):

    @case(f"planes of {_name}")
    def _(device: str, system: Any = _system, shape: Any = _shape, layout: Any = _layout) -> None:
        for dtype in DTYPES[:3]:
            check_planes(device, shape, system, dtype, **layout)


for _dtype in DTYPES[:3]:

    @case(f"a linear layer of planes, {_dtype}")
    def _(device: str, dtype: torch.dtype = _dtype) -> None:
        check_planes_product(device, (5, 64), lpe.Int(5), dtype)
        check_planes_product(device, (70, 32), lpe.Int(8, lpe.PerTensor()), dtype)


@case("a linear layer of planes with more columns than a program takes at a time")
def _(device: str) -> None:
    check_planes_product(device, (2, 1056), lpe.Int(3, lpe.PerChannel(2)), torch.float32)


@case("a linear layer of planes with a bit that differs is seen")
def _(device: str) -> None:
    with pytest.raises(AssertionError):
        check_planes_product(device, (5, 64), lpe.Int(5), torch.float32, fault=True)


# Cases of the interpreter alone.

INTERPRETED: dict[str, Case] = {}


def elements_beyond_2_to_the_35(device: str) -> None:
    # Two words of the block's number, and int64 all over. Pages that nobody touches take no memory.
    elements, no_reserve = 2**35 + 64, 0x4000
    try:
        pages = mmap.mmap(-1, elements, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    except OSError as refusal:
        pytest.skip(f"the system refuses 32 GiB of addresses: {refusal}")
    codes = torch.frombuffer(pages, dtype=torch.int8)
    codes[-200:] = (torch.arange(200) - 100).to(torch.int8)
    layout = Layout((2, elements // 2))
    stored = Scales.of(torch.tensor([[0.5], [0.25]]), layout, lpe.PerChannel())
    own = Scales.of(torch.tensor([[3.7], [2.3]]), layout, lpe.PerChannel())
    weight = Coded(codes, stored, grid_of(lpe.Int(8)))
    starts = [2**35 + 3, 2**35 - 90, elements // 2 - 50]
    check(device, weight, lpe.Int(5), own, Draw("bernoulli", SEED, "w", 1), 2, starts=starts, length=60)


def reads_of(weight: Tensor, run: Callable[[], object]) -> set[int]:
    """How often the elements of a flat float32 weight are loaded, each number that occurs."""
    builder = import_module("triton.runtime.interpreter").interpreter_builder
    load = builder.create_masked_load
    reads = torch.zeros(weight.numel(), dtype=torch.int64)

    def counted(pointers: Any, mask: Any, *others: Any) -> Any:
        at = torch.from_numpy((pointers.data[mask.data] - weight.data_ptr()).astype("int64"))
        at = at[(at >= 0) & (at < 4 * weight.numel())] // 4
        reads.index_add_(0, at, torch.ones_like(at))
        return load(pointers, mask, *others)

    with mock.patch.object(builder, "create_masked_load", counted):
        run()
    return set(reads.tolist())


def every_stored_weight_is_read_once(device: str) -> None:
    weight, system = normal_weight(7, 513).flatten(), lpe.Int(4)
    scales, grid = scales_of(weight, system, Layout((7, 513))), grid_of(system)
    linear = import_module(LINEAR).member_linear
    for rounding in ROUNDINGS:
        draw = Draw(rounding, 0, "w", 0)
        assert reads_of(weight, partial(kernels().encode, weight, scales, grid, draw, 5)) == {1}
        assert reads_of(weight, partial(linear, torch.ones(5, 2, 513), weight, scales, grid, draw)) == {1}


if sys.platform == "linux":
    INTERPRETED["elements beyond 2³⁵, encoded"] = elements_beyond_2_to_the_35
INTERPRETED["every stored weight is read once for all members"] = every_stored_weight_is_read_once


# What is compiled: every value of every choice that makes another kernel, and each rounding of both searches.

COMPILED: dict[str, Callable[[], None]] = {}


def compiled(
    system: LowPrecision,
    rounding: str,
    dtype: torch.dtype = torch.float32,
    stored: LowPrecision | None = None,
    shape: tuple[int, ...] = (64, 64),
    values: bool = True,
    starts: list[int] | None = None,
    length: int = 24,
    wide: bool = False,
    **layout: int,
) -> None:
    matrix, draw = Layout(shape, **layout), Draw(rounding, 0, "w", 0)
    weight: Stored = normal_weight(*shape).to(dtype).flatten()
    scales = scales_of(normal_weight(*shape), system, matrix)
    if stored is not None:
        codes = torch.zeros(matrix.numel, dtype=reference.code_type(grid_of(stored)))
        weight = Coded(codes, scales_of(normal_weight(*shape), stored, matrix), grid_of(stored))
    first = None if starts is None else torch.tensor(starts)
    with mock.patch.object(kernels(), "INT32_ELEMENTS", 0 if wide else 2**31):
        if values:
            segments = (1, matrix.numel) if starts is None else (len(starts), length)
            out = torch.empty((2, *segments), dtype=dtype)
            kernels().round_into(out, weight, scales, grid_of(system), draw, first)
        else:
            kernels().encode(weight, scales, grid_of(system), draw, 2, first, length)


def compiled_planes(system: LowPrecision, rounding: str) -> None:
    layout = Layout((7, 13))
    scales = scales_of(normal_weight(7, 13), system, layout)
    draw = Draw(rounding, 2**63, "w", 0)
    kernels().planes(torch.zeros(layout.numel), scales, grid_of(system), draw, 2)


def compiled_linear(system: LowPrecision, dtype: torch.dtype) -> None:
    layout = Layout((64, 64))
    scales = scales_of(normal_weight(64, 64), system, layout)
    weight, draw = torch.zeros(layout.numel, dtype=dtype), Draw("bernoulli", 0, "w", 0)
    import_module(LINEAR).member_linear(
        torch.zeros((2, 1, 64), dtype=dtype), weight, scales, grid_of(system), draw
    )


def compiled_decode(system: LowPrecision, dtype: torch.dtype) -> None:
    layout, grid = Layout((7, 13)), grid_of(system)
    scales = scales_of(normal_weight(7, 13), system, layout)
    kernels().decode(torch.zeros(91, dtype=reference.code_type(grid)), scales, grid, dtype)


def compiled_plan() -> None:
    tensors = several()
    outs = [torch.empty(2 * tensor.weight.numel(), dtype=tensor.dtype) for tensor in tensors]
    kernels().plan(tensors).round_into(outs, Draw("bernoulli", 0, "", 0), 2)


COMPILED["integers, bernoulli"] = partial(compiled, lpe.Int(5), "bernoulli")
COMPILED["integers, coupled, bfloat16, segments"] = partial(
    compiled, lpe.Int(4, lpe.PerBlock(5)), "coupled", torch.bfloat16, starts=[0, 3]
)
COMPILED["integers, nearest, codes, float16, blocks of the second axis"] = partial(
    compiled, lpe.Int(8, lpe.PerBlock(5)), "nearest", torch.float16, values=False, output_axis=1
)
COMPILED["floats, bernoulli, bfloat16, channels of the second axis"] = partial(
    compiled, lpe.Float(4, 3), "bernoulli", torch.bfloat16, output_axis=1
)
COMPILED["floats, coupled, codes, segments of one, int64"] = partial(
    compiled, lpe.NF4(lpe.PerTensor()), "coupled", values=False, starts=[1], length=1, wide=True
)
COMPILED["floats, nearest, float64"] = partial(compiled, lpe.NF4(), "nearest", torch.float64, shape=(7, 13))
COMPILED["integers of stored integers"] = partial(
    compiled, lpe.Int(5), "bernoulli", stored=lpe.Int(8), dtype=torch.float16
)
COMPILED["floats of stored floats"] = partial(
    compiled, lpe.NF4(), "bernoulli", stored=lpe.NF4(lpe.PerBlock(5))
)
COMPILED["planes of integers, bernoulli"] = partial(compiled_planes, lpe.Int(5), "bernoulli")
COMPILED["planes of floats, coupled"] = partial(compiled_planes, lpe.NF4(), "coupled")
COMPILED["lower neighbours, codes"] = partial(compiled, lpe.Int(5), "lower", values=False)
COMPILED["decoding integers"] = partial(compiled_decode, lpe.Int(8), torch.bfloat16)
COMPILED["decoding floats"] = partial(compiled_decode, lpe.NF4(), torch.float32)
COMPILED["several weights at once"] = compiled_plan
COMPILED["a linear layer of integers"] = partial(compiled_linear, lpe.Int(4), torch.bfloat16)
COMPILED["a linear layer of floats"] = partial(compiled_linear, lpe.NF4(), torch.float16)


def compiled_planes(dtype: torch.dtype) -> None:
    layout = Layout((64, 64))
    scales, planes = scales_of(normal_weight(64, 64), lpe.Int(5), layout), import_module(PLANES)
    lower, bits = torch.zeros(64, 64, dtype=torch.int8), torch.zeros(2, 512, dtype=torch.uint8)
    with use("reference"):
        made = Planes.of(lower, bits, scales, lpe.Int(5))
    planes.round_into(torch.empty((2, 1, 4096), dtype=dtype), made)
    if dtype == torch.bfloat16:  # float32's matrices are multiplied by fused products, which may round once
        planes.multiply(torch.zeros((2, 1, 64), dtype=dtype), made, dtype)


COMPILED["planes, bfloat16"] = partial(compiled_planes, torch.bfloat16)
COMPILED["planes, float32"] = partial(compiled_planes, torch.float32)

FORBIDDEN = re.compile(r"\b(?:fma\.|\w+(?:\.\w+)*\.(?:ftz|approx|full)\b|libdevice|__nv_)\S*")
"""Instructions that round otherwise, or flush subnormals."""


class Compiler:
    """Stands in for a kernel: compiles what would be launched, under the launch's own options."""

    def __init__(self, kernel: Any, found: list[str], **options: Any) -> None:
        self.kernel, self.found, self.options = kernel, found, options

    def __getitem__(self, programs: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, **arguments: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        pointers = {
            torch.float16: "*fp16",
            torch.float32: "*fp32",
            torch.float64: "*fp64",
            torch.int8: "*i8",
            torch.uint8: "*u8",
            torch.int16: "*i16",
            torch.int32: "*i32",
            torch.int64: "*i64",
        }
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            given = arguments.pop(parameter.name)
            signature[parameter.name] = "constexpr"
            divisible = not parameter.do_not_specialize
            if isinstance(given, Tensor):
                signature[parameter.name] = pointers[given.dtype]
            elif parameter.is_constexpr or given is None or (given == 1 and divisible):
                constants[(place,)] = given
                divisible = False
            else:
                signature[parameter.name] = "i32" if -(2**31) <= given < 2**31 else "i64"
                divisible &= given % 16 == 0
            if divisible:
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        options = {**arguments, **self.options}
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert binary.asm["cubin"]
        self.found += FORBIDDEN.findall(binary.asm["ptx"])


def forbidden_instructions(launch: Callable[[], None], **options: Any) -> list[str]:
    """Of the kernels that this would launch; ``options`` replace those of the launch."""
    found: list[str] = []
    with ExitStack() as patches:
        for module, name in (
            (MODULE, "_round"),
            (MODULE, "_round_table"),
            (MODULE, "_decode"),
            (LINEAR, "_linear"),
            *((PLANES, name) for name in ("_values", "_lower", "_bits")),
        ):
            kernel = getattr(import_module(module), name)
            patches.enter_context(mock.patch(f"{module}.{name}", Compiler(kernel, found, **options)))
        launch()
    return sorted(set(found))


def outcome(check_it: Callable[[], None]) -> str:
    """What went wrong, or nothing."""
    try:
        check_it()
    except pytest.skip.Exception as skipped:
        return f"skipped: {skipped}"
    except Exception:
        return traceback.format_exc()
    return ""


def main(what: str) -> None:
    """Print the outcomes of all cases of the interpreter, or the findings of the compiler, as JSON."""
    torch.set_num_threads(1)
    if what == "interpret":
        outcomes: Any = {name: outcome(partial(run, "cpu")) for name, run in {**CASES, **INTERPRETED}.items()}
    else:
        outcomes = {name: forbidden_instructions(launch) for name, launch in COMPILED.items()}
        # In rounding itself no sum follows a product; a layer sums products.
        fused = forbidden_instructions(COMPILED["a linear layer of integers"], enable_fp_fusion=True)
        outcomes["with fusion"] = fused
    print(json.dumps(outcomes))


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that the test run's processes share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@cache
def outcomes_of(what: str, directory: Path) -> Any:
    """What :func:`main` prints in a process of its own; the first to ask runs it, and others wait."""
    import fcntl  # is where triton is

    result = directory / f"triton-{what}.json"
    with result.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            environment["PYTHONPATH"] = str(Path(lpe.__file__).parents[1])
            environment["TRITON_CACHE_DIR"] = str(directory / "triton-cache")
            if what == "interpret":
                environment["TRITON_INTERPRET"] = "1"
            command = [sys.executable, __file__, what]
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            result.write_text(run.stdout)
    return json.loads(result.read_text())


def lacking() -> str:
    """Say why Triton does not compile or interpret the kernels here; "" where it does."""
    if find_spec("triton") is None:
        return "triton is not installed"
    major, minor = version("triton").split(".")[:2]
    return "" if (int(major), int(minor)) >= (3, 6) else f"needs Triton 3.6, not {version('triton')}"


needs_triton = pytest.mark.skipif(bool(lacking()), reason=lacking())
needs_assembler = pytest.mark.skipif(
    bool(lacking())
    or (triton := find_spec("triton")) is None
    or not (Path(triton.origin or "").parent / "backends/nvidia/bin/ptxas").exists(),
    reason=lacking() or "triton came without NVIDIA's assembler",
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (None, "need the package triton, which is not installed; pip install triton"),
        ("3.2.0", r"need Triton 3\.6 or later, .* not 3\.2\.0; pip install -U torch"),
    ],
)
def test_without_a_triton_that_compiles_them_the_kernels_are_refused_in_a_line(
    there: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = None if there is None else types.ModuleType("triton")
    if stub is not None:
        stub.__version__, stub.language = there, types.ModuleType("triton.language")
    monkeypatch.setitem(sys.modules, "triton", stub)
    monkeypatch.setitem(sys.modules, "triton.language", stub and stub.language)
    monkeypatch.delitem(sys.modules, "lpe.number_systems.kernels.cuda", raising=False)
    with pytest.raises(lpe.InputError, match=f"^the cuda kernels {said}, or set LPE_KERNELS=reference$"):
        import_module("lpe.number_systems.kernels.cuda")


@needs_triton
@pytest.mark.parametrize("name", [*CASES, *INTERPRETED])
def test_the_interpreted_kernels_agree_with_the_reference(name: str, shared_directory: Path) -> None:
    found = outcomes_of("interpret", shared_directory)[name]
    if found.startswith("skipped: "):
        pytest.skip(found)
    assert found == ""


@needs_triton
@needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_on_a_gpu_agree_with_the_reference(name: str) -> None:
    CASES[name]("cuda")


@needs_assembler
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_kernels_neither_fuse_nor_approximate_nor_flush(name: str, shared_directory: Path) -> None:
    assert outcomes_of("compile", shared_directory)[name] == []


@needs_assembler
def test_fusion_would_be_seen_in_what_is_compiled(shared_directory: Path) -> None:
    assert "fma.rn.f32" in outcomes_of("compile", shared_directory)["with fusion"]


@pytest.mark.parametrize(
    "instruction", ["fma.rn.f32", "cvt.rmi.ftz.f32.f32", "div.full.f32", "div.approx.f32", "mul.ftz.f32"]
)
def test_an_instruction_that_rounds_otherwise_is_seen(instruction: str) -> None:
    assert FORBIDDEN.findall(f"\tmov.b32 %r1, %r2;\n\t{instruction} \t%r3, %r1, %r2;") == [instruction]


@pytest.mark.parametrize("instruction", ["div.rn.f32", "mad.lo.s32", "mul.wide.u32", "cvt.rn.f16.f32"])
def test_an_instruction_that_rounds_as_the_reference_is_let_pass(instruction: str) -> None:
    assert not FORBIDDEN.findall(f"\t{instruction} \t%r3, %r1, %r2;")


@pytest.mark.parametrize(
    "fault", [{"member": 1}, {"seed": 1}, {"name": "v"}, {"rounding": "nearest"}], ids=str
)
def test_a_draw_of_other_bits_is_seen(fault: dict[str, Any]) -> None:
    weight, layout = normal_weight(7, 13), Layout((7, 13))
    scales, grid = scales_of(weight, lpe.Int(4), layout), grid_of(lpe.Int(4))
    draw = {"rounding": "bernoulli", "seed": 0, "name": "w", "member": 0}
    right, wrong = (
        reference.encode(weight.flatten(), scales, grid, Draw(**key))
        for key in (draw, {**draw, **fault})  # type: ignore[arg-type]
    )
    with pytest.raises(AssertionError):
        assert_same(wrong, right)


def test_a_bit_that_differs_is_seen() -> None:
    with pytest.raises(AssertionError):
        assert_same(torch.tensor([0.0, -0.0]), torch.tensor([0.0, 0.0]))


def test_without_triton_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(lpe.InputError) as caught:
        import_module(MODULE)
    message = str(caught.value)
    assert "\n" not in message and "pip install triton" in message and "LPE_KERNELS=reference" in message


if __name__ == "__main__":
    main(sys.argv[1])
