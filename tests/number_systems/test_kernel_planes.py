"""Members kept as bit planes: their values are the members', bit for bit, and so are products to rounding."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import lpe
from lpe.number_systems.grids import LowPrecision
from lpe.number_systems.kernels import planes as reference
from lpe.number_systems.kernels import planes_cpu, use
from lpe.number_systems.kernels.arguments import Draw, Scales
from lpe.number_systems.kernels.planes import SPARE, Planes
from lpe.number_systems.layouts import Layout
from lpe.number_systems.packing import packed_bytes
from lpe.number_systems.planes import lower_neighbours, planes_with_scales
from lpe.number_systems.rounding import members_into, scales_of

SEED = 7 * 2**32 + 3
MEMBERS, FIRST = 7, 11
BACKENDS = {"reference": reference, "cpu": planes_cpu}
SYSTEMS: list[LowPrecision] = [
    *map(lpe.Int, range(2, 9)),
    lpe.Int(8, spread=11.3),
    lpe.Int(5, lpe.PerTensor()),
    lpe.Int(5, lpe.PerChannel(3)),
    lpe.Int(4, lpe.PerBlock(5)),
    lpe.Float(4, 3),
    lpe.Float(2, 1, lpe.PerBlock(7)),
    lpe.NF4(),
    lpe.Codebook([0.0, 0.1, 0.35, 0.5, 2.0]),
    lpe.Codebook([level / 100 for level in range(-128, 128)]),
]
LAYOUTS: list[tuple[tuple[int, ...], dict[str, int]]] = [
    ((9, 16), {}),
    ((5, 13), {}),
    ((2, 2100), {}),
    ((4, 3, 3, 3), {}),
    ((1,), {}),
    ((0, 4), {}),
    ((19, 6), {"output_axis": 1}),
    ((6, 4, 3, 2), {"output_axis": 1, "channel_groups": 3}),
]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(
    shape: tuple[int, ...],
    system: LowPrecision,
    members: int = MEMBERS,
    rounding: str = "bernoulli",
    **layout: int,
) -> tuple[Planes, Tensor]:
    """Planes, and the members' float32 values [members, elements] as they are drawn."""
    weight, matrix = numbers(*shape), Layout(shape, **layout)
    if len(shape) == 2 and shape[0] > 2:
        weight[1] = 0
    scales = scales_of(weight, system, matrix)
    draw = Draw(rounding, SEED, "w", FIRST)
    lower = lower_neighbours(weight, scales, system, matrix)
    flat = planes_with_scales(weight, scales, system, matrix, draw, members)
    values = torch.empty(members, 1, matrix.numel)
    members_into(values, weight, scales, system, matrix, draw, None)
    of_elements = Scales.of(scales, matrix, system.scale)
    return Planes.of(lower, flat, of_elements, system), values[:, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "layout"), LAYOUTS, ids=str)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_values_are_the_members_bit_for_bit(
    system: LowPrecision, shape: tuple[int, ...], layout: dict[str, Any], backend: str
) -> None:
    for rounding in ("bernoulli", "coupled"):
        planes, expected = made(shape, system, rounding=rounding, **layout)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            found = torch.full((MEMBERS, 1, expected.shape[1]), 77.0, dtype=dtype)
            BACKENDS[backend].round_into(found, planes)
            assert torch.equal(found[:, 0], expected.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("starts", "length"), [([0, 3, 41, 8], 19), ([16, 0], 2048), ([4199], 1), ([5], 4095)]
)
def test_segments_of_some_members_are_theirs(
    starts: list[int], length: int, dtype: torch.dtype, backend: str
) -> None:
    planes, values = made((2, 2100), lpe.Int(5))
    found = torch.full((3, len(starts), length), 77.0, dtype=dtype)
    BACKENDS[backend].round_into(found, planes, 2, torch.tensor(starts))
    expected = torch.stack([values[2:5, start : start + length] for start in starts], dim=1)
    assert torch.equal(found, expected.to(dtype))


def check_products(
    planes: Planes, values: Tensor, inputs: Tensor, dtype: torch.dtype, backend: str = "cpu"
) -> None:
    """Sums of n products are within n·2⁻²⁴ of the sum of their magnitudes, and are then cast."""
    weights = values.view(planes.members, *planes.layout.shape).to(dtype).double().mT
    expected = inputs.double() @ weights
    bound = planes.layout.shape[1] * 2.0**-24 * (inputs.double().abs() @ weights.abs())
    bound += torch.finfo(dtype).eps * expected.abs()
    found = BACKENDS[backend].multiply(inputs, planes, dtype)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_products_are_the_members_under_every_system(system: LowPrecision) -> None:
    planes, values = made((9, 72), system)
    for dtype in (torch.float32, torch.bfloat16):
        check_products(planes, values, numbers(MEMBERS, 3, 72, seed=1).to(dtype), dtype)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 10, 13, 20])
def test_products_are_the_members_of_any_number_at_any_positions(members: int) -> None:
    planes, values = made((6, 24), lpe.Int(5), members)
    for positions in (1, 2, 3, 4, 5, 7, 8, 9, 19):
        check_products(planes, values, numbers(members, positions, 24, seed=positions), torch.float32)


@pytest.mark.parametrize("shape", [(1, 8), (3, 2048), (257, 8), (70, 1032)])
def test_products_are_the_members_of_any_shape(shape: tuple[int, int]) -> None:
    planes, values = made(shape, lpe.Int(3))
    for positions in (1, 8):
        inputs = numbers(MEMBERS, positions, shape[1], seed=2)
        check_products(planes, values, inputs, torch.float32)
        check_products(planes, values, inputs, torch.float32, "reference")


def test_products_of_no_position_are_none() -> None:
    planes, _ = made((6, 24), lpe.Int(5))
    assert planes_cpu.multiply(torch.empty(MEMBERS, 0, 24), planes, torch.float32).shape == (MEMBERS, 0, 6)


def test_inputs_may_be_shared_and_lie_anyhow() -> None:
    planes, values = made((6, 24), lpe.Int(5))
    check_products(planes, values, numbers(1, 3, 24).expand(MEMBERS, 3, 24), torch.float32)
    check_products(planes, values, numbers(24, 3, MEMBERS).permute(2, 1, 0), torch.float32)


def test_more_threads_give_the_same_bits(two_threads: None) -> None:
    planes, _ = made((300, 1032), lpe.Int(5))
    inputs = numbers(MEMBERS, 3, 1032)
    written = torch.empty(MEMBERS, 1, 300 * 1032)
    found = planes_cpu.multiply(inputs, planes, torch.float32)
    planes_cpu.round_into(written, planes)
    torch.set_num_threads(1)
    assert torch.equal(planes_cpu.multiply(inputs, planes, torch.float32), found)
    alone = torch.empty_like(written)
    planes_cpu.round_into(alone, planes)
    assert torch.equal(alone, written)


@pytest.fixture
def two_threads() -> Any:
    kept = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(kept)


@pytest.mark.parametrize("fault", ["a bit", "a member", "a level", "a scale"])
def test_a_fault_in_the_planes_is_seen(fault: str) -> None:
    planes, values = made((6, 24), lpe.Int(5))
    if fault == "a bit":
        planes.bits[7, 3] ^= 16
    elif fault == "a member":
        planes.bits.copy_(planes.bits.roll(1, 1))
    elif fault == "a level":
        planes.lower[7] ^= 8
    else:
        planes.scales.values[2] *= 1.01
    with pytest.raises(AssertionError):
        check_products(planes, values, numbers(MEMBERS, 2, 24), torch.float32)
    found = torch.empty(MEMBERS, 1, 6 * 24)
    planes_cpu.round_into(found, planes)
    assert not torch.equal(found[:, 0], values)


@pytest.mark.parametrize(("members", "positions"), list(product((1, 3, 10, 20, 33), (1, 3, 8, 17))))
def test_tiles_have_every_sum_once(members: int, positions: int) -> None:
    times = torch.zeros(members, positions)
    for which, member, position in planes_cpu.tiles_of(members, positions):
        high, wide = planes_cpu.TILES[which]
        times[member : member + high, position : position + wide] += 1
        assert member + high <= members and position + wide <= positions
    assert (times == 1).all()


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_memory_is_the_levels_once_and_one_bit_a_member(bits: int) -> None:
    system = lpe.Int(bits)
    planes, _ = made((40, 256), system, members=10)
    weights = 40 * 256
    assert planes.memory_bytes == packed_bytes(weights, system) + 10 * weights // 8 + 4 * 40 + 2 * SPARE


@pytest.mark.parametrize(
    ("shape", "layout", "positions", "dtype", "expected"),
    [
        ((6, 24), {}, 1, torch.float32, True),
        ((6, 24), {}, planes_cpu.POSITIONS, torch.bfloat16, True),
        ((6, 24), {}, planes_cpu.POSITIONS + 1, torch.float32, False),
        ((6, 24), {}, 0, torch.float32, False),
        ((6, 24), {}, 1, torch.float16, False),
        ((6, 20), {}, 1, torch.float32, False),
        ((6, 24), {"output_axis": 1}, 1, torch.float32, False),
        ((2, 3, 8), {}, 1, torch.float32, False),
    ],
)
def test_what_is_multiplied_without_being_written(
    shape: tuple[int, ...], layout: dict[str, int], positions: int, dtype: torch.dtype, expected: bool
) -> None:
    planes, _ = made(shape, lpe.Int(5), **layout)
    assert planes_cpu.multiplies(planes, positions, dtype) == expected
    assert not reference.multiplies(planes, positions, dtype)


def test_the_backend_is_that_of_the_kernels() -> None:
    assert reference.of(torch.device("cpu")) is planes_cpu
    with use("reference"):
        assert reference.of(torch.device("cpu")) is reference
