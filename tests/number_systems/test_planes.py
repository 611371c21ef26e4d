"""Planes: lower neighbour + bit is the member's code, of every backend, bit for bit."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lpe
from lpe.number_systems import planes
from lpe.number_systems.grids import LowPrecision, grid_of
from lpe.number_systems.kernels import cpu, reference, use
from lpe.number_systems.kernels.arguments import Coded, Draw, Scales
from lpe.number_systems.layouts import Layout
from lpe.number_systems.packing import FAST
from lpe.number_systems.rounding import scales_of

SEED = 7 * 2**32 + 3
SYSTEMS: list[LowPrecision] = [
    *map(lpe.Int, range(2, 9)),
    lpe.Int(3, clip="mse"),
    lpe.Int(8, spread=11.3),
    lpe.Int(5, lpe.PerTensor()),
    lpe.Int(5, lpe.PerBlock(5)),
    lpe.Float(4, 3),
    lpe.Float(2, 1, lpe.PerBlock(7)),
    lpe.NF4(),
    lpe.Codebook([0.0, 0.1, 0.35, 0.5, 2.0]),
    lpe.Codebook([-1, 1]),
    lpe.Codebook([level / 100 for level in range(-128, 128)]),
]
ROUNDINGS = ["bernoulli", "coupled"]
LAYOUTS: list[tuple[tuple[int, ...], dict[str, int]]] = [
    ((8, 13), {}),
    ((3, 700), {}),
    ((4, 3, 3, 3), {}),
    ((129,), {}),
    ((), {}),
    ((0, 4), {}),
    ((19, 6), {"output_axis": 1}),
    ((6, 4, 3, 2), {"output_axis": 1, "channel_groups": 3}),
]


def hard_weight(*shape: int) -> Tensor:
    """Normal weights with zeros, a group of them, subnormals, grid values and scales without an inverse."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat = weight.view(-1)
    flat[3::11] = 0
    flat[5::13] = -0.0
    flat[2::19] = flat.abs().max() / 2 if len(flat) else 0.0
    if len(shape) > 1 and shape[0] > 2:
        weight[1], weight[2] = 0, weight[2] * 1e-41
    return weight


def encoded(
    weight: Tensor,
    system: LowPrecision,
    rounding: str = "bernoulli",
    seed: int = 0,
    name: str = "",
    members: int = 1,
    first_member: int = 0,
    output_axis: int = 0,
    channel_groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The lower neighbours, planes [members, bytes] and scales; the arguments are ``lpe.encode``'s."""
    layout = Layout(tuple(weight.shape), output_axis, channel_groups)
    scales = scales_of(weight, system, layout)
    draw = Draw(rounding, seed, name, first_member)
    lower = planes.lower_neighbours(weight, scales, system, layout)
    return lower, planes.planes_with_scales(weight, scales, system, layout, draw, members), scales


def packed_bits(bits: Tensor) -> Tensor:
    return reference.packed_bits(bits.reshape(-1) != 0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name[:30])
def test_lower_neighbour_and_bit_are_each_members_code(
    system: LowPrecision, rounding: str, backend: str
) -> None:
    with use(backend):
        for shape, layout in LAYOUTS:
            weight = hard_weight(*shape)
            about: Any = dict(rounding=rounding, seed=SEED, name="a.weight", **layout)
            lower, packed, scales = encoded(weight, system, members=3, first_member=4, **about)
            assert packed.shape == (3, -(-weight.numel() // 8)) and lower.shape == weight.shape
            for member in range(3):
                codes, own = lpe.encode(weight, system, member=4 + member, **about)
                assert torch.equal(scales, own)
                found = planes.codes_of(lower, packed[member], system)
                assert found.dtype == codes.dtype and torch.equal(found, codes), (shape, member)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_planes_of_narrow_and_wide_weights_are_the_codes(rounding: str, dtype: torch.dtype) -> None:
    weight = hard_weight(8, 13).to(dtype)
    for system in (lpe.Int(5), lpe.NF4()):
        lower, packed, _ = encoded(weight, system, rounding, SEED, "w", members=2)
        for member in range(2):
            codes, _ = lpe.encode(weight, system, rounding, SEED, "w", member)
            assert torch.equal(planes.codes_of(lower, packed[member], system), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("system", [lpe.Int(4), lpe.NF4(lpe.PerBlock(100))], ids=lambda system: system.name)
def test_machine_codes_planes_of_many_chunks_are_the_references(
    system: LowPrecision, rounding: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "PART", 1 << 15)  # of types that go through float32
    layout = Layout((37, 2003))
    weight = hard_weight(*layout.shape).to(dtype)
    scales = Scales.of(scales_of(weight, system, layout), layout, system.scale)
    draw = Draw(rounding, SEED, "w", 5)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for members in (1, 3):
                arguments = (weight.flatten(), scales, grid_of(system), draw, members)
                assert torch.equal(cpu.planes(*arguments), reference.planes(*arguments))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_planes_of_stored_codes_are_the_codes_of_members_drawn_from_them(backend: str) -> None:
    layout, system = Layout((8, 130)), lpe.Int(5)
    codes, scales = lpe.encode(hard_weight(8, 130), lpe.Int(8), "nearest")
    grid = grid_of(lpe.Int(8))
    stored = Coded(codes.flatten(), Scales.of(scales, layout, lpe.PerChannel()), grid)
    own = scales_of(lpe.decode(codes, scales, lpe.Int(8)), system, layout)
    draw = Draw("bernoulli", SEED, "w", 2)
    arguments: Any = (stored, Scales.of(own, layout, system.scale), grid_of(system), draw)
    with use(backend):
        lower = planes.lower_neighbours(stored, own, system, layout)
        packed = planes.planes_with_scales(stored, own, system, layout, draw, 2)
    for member, expected in enumerate(reference.encode(*arguments, 2)):
        assert torch.equal(planes.codes_of(lower, packed[member], system), expected.view(8, 130))


def test_the_lower_neighbour_is_the_least_code_that_members_have() -> None:
    weight = torch.tensor([[1.0, 0.5, -0.3, -1.0, 0.0, 0.99999994]])
    lower, _, _ = encoded(weight, lpe.Int(4))
    # 7w: 7, 3.5, −2.1, −7, 0, and 6.9999996 whose probability rounds to 1.
    assert lower.tolist() == [[7, 3, -3, -7, 0, 7]]


def test_bits_lie_eight_in_a_byte_the_first_the_lowest() -> None:
    bits = torch.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.uint8)
    packed = packed_bits(bits)
    assert packed.tolist() == [0b00011001, 0b11]
    assert planes.unpack_plane(packed, 10).tolist() == bits.flatten().tolist()
    assert planes.unpack_plane(packed.expand(3, 2), 10).shape == (3, 10)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), max_size=70))
def test_bits_come_back_and_the_rest_of_the_last_byte_is_zero(bits: list[bool]) -> None:
    packed = packed_bits(torch.tensor(bits, dtype=torch.bool))
    assert len(packed) == planes.plane_bytes(len(bits)) == -(-len(bits) // 8)
    assert planes.unpack_plane(packed, 8 * len(packed)).tolist() == bits + [False] * (-len(bits) % 8)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bits_beyond_the_last_weight_are_zero(backend: str) -> None:
    with use(backend):
        for count in (1, 7, 9, 2051):
            scales, layout = torch.ones(1, 1), Layout((1, count))
            draw = Draw("bernoulli", 0, "", 0)
            weight = torch.full((1, count), 0.3)
            packed = planes.planes_with_scales(weight, scales, lpe.Int(2), layout, draw, 40)
            assert packed[:, -1].any()
            assert not (packed[:, -1] >> (count % 8)).any()


@pytest.mark.parametrize("count", [FAST - 1, FAST, FAST + 5])
@pytest.mark.parametrize("system", [lpe.Int(8), lpe.NF4()], ids=lambda system: system.name)
def test_members_are_put_together_alike_by_torch_and_by_machine_code(
    system: LowPrecision, count: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = grid_of(system)
    last = grid.lowest_code + len(grid.levels) - 1
    lower = torch.randint(grid.lowest_code, last, (count,), generator=generator)
    bits = torch.randint(0, 2, (count,), generator=generator)
    found = planes.codes_of(lower.to(torch.int8 if grid.uniform else torch.uint8), packed_bits(bits), system)
    assert torch.equal(found.long(), lower + bits)


@pytest.mark.parametrize("count", [9, FAST + 5])
@pytest.mark.parametrize(
    "system", [lpe.Int(8), lpe.NF4(), lpe.Codebook(range(256))], ids=lambda system: system.name[:12]
)
def test_a_bit_above_the_last_level_is_refused(system: LowPrecision, count: int) -> None:
    grid = grid_of(system)
    last = grid.lowest_code + len(grid.levels) - 1
    for place in (0, count - 1):
        lower = torch.full((count,), grid.lowest_code, dtype=torch.int8 if grid.uniform else torch.uint8)
        bits = torch.zeros(count)
        lower[place], bits[place] = last, 1
        with pytest.raises(lpe.InputError, match="above the last level"):
            planes.codes_of(lower, packed_bits(bits), system)
        assert torch.equal(planes.codes_of(lower, packed_bits(bits * 0), system), lower)


@pytest.mark.parametrize(
    "plane",
    [
        torch.zeros(1, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.int8),
        torch.zeros(1, 2, dtype=torch.uint8),
    ],
    ids=lambda plane: f"{plane.dtype} {list(plane.shape)}",
)
def test_a_plane_of_another_form_is_refused(plane: Tensor) -> None:
    with pytest.raises(lpe.InputError, match="plane"):
        planes.codes_of(torch.zeros(9, dtype=torch.int8), plane, lpe.Int(4))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_member_has_the_same_plane_whichever_are_asked_for(rounding: str) -> None:
    weight = hard_weight(8, 13)
    for system, first in product((lpe.Int(4), lpe.NF4()), (0, 2)):
        _, all_planes, _ = encoded(weight, system, rounding, SEED, "w", members=5)
        _, some, _ = encoded(weight, system, rounding, SEED, "w", members=3, first_member=first)
        assert torch.equal(some, all_planes[first : first + 3])
