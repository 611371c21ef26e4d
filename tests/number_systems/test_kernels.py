"""Every backend's codes and values against the reference's, bit for bit, and the choice of a backend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

import lpe
from lpe.number_systems import kernels, rounding
from lpe.number_systems.grids import LowPrecision, ScaleAxis, grid_of
from lpe.number_systems.kernels import cpu, cpu_code, reference, teams
from lpe.number_systems.kernels.arguments import Coded, Draw, Rounded, Scales, Stored
from lpe.number_systems.layouts import Layout

SEED = 7 * 2**32 + 3
SYSTEMS = [
    *(f"int{bits}" for bits in range(2, 9)),
    "int8*11.3",
    "int8*1.9",
    "int4*6.5",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp6_e3m2",
    "fp6_e2m3",
    "fp4_e2m1",
    "nf4",
    "codebook",
    "lopsided",
]
AXES = [lpe.PerTensor(), lpe.PerChannel(), lpe.PerChannel(3), lpe.PerBlock(5), lpe.PerBlock(64)]
ROUNDINGS = ["nearest", "bernoulli", "coupled"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = [
    Layout((7, 13)),
    Layout((1,)),
    Layout((129,)),
    Layout(()),
    Layout((4, 3, 3, 3)),
    Layout((3, 700)),
    Layout((19, 6), output_axis=1),
    Layout((6, 4, 3, 2), output_axis=1, channel_groups=3),
    Layout((3, 2100), output_axis=1),
    Layout((3, 5, 7), output_axis=2),
    Layout((4, 18), channel_groups=3),
    Layout((3, 5, 7), output_axis=1, channel_groups=3),
    Layout((3, 5, 7), output_axis=2, channel_groups=3),
]
OF_EVERY_DTYPE = [LAYOUTS[0], LAYOUTS[7]]


def system_of(name: str, axis: ScaleAxis) -> LowPrecision:
    if name == "codebook":
        return lpe.Codebook([0.3 * level for level in range(-40, 61)], axis)
    if name == "lopsided":
        return lpe.Codebook([-1.0, -0.25, 0.5, 4.0], axis)
    system = lpe.number_system(name, axis)
    assert not isinstance(system, lpe.FullPrecision)
    return system


def hard_weight(layout: Layout, dtype: torch.dtype = torch.float32, key: int = 0) -> Tensor:
    """Normal values with zeros, a group of zeros, denormals, exact grid points and one large value."""
    generator = torch.Generator().manual_seed(key)
    weight = torch.randn(layout.numel, generator=generator)
    weight[3::11] = 0.0
    weight[5::13] = -0.0
    weight[7::17] = 1e-41
    weight[2::19] = weight.abs().max() / 2
    if layout.numel > 20:
        weight[-layout.numel // 4 :] = 0.0
        weight[: layout.numel // 8] *= 1e-39
    return weight.to(dtype)


def arguments(
    weight: Tensor, name: str, axis: ScaleAxis, layout: Layout
) -> tuple[LowPrecision, Tensor, Scales]:
    system = system_of(name, axis)
    values = rounding.absmax_scales(weight.view(layout.shape), system, layout)
    return system, values, Scales.of(values, layout, axis)


def draw(rounding_name: str, member: int = 2) -> Draw:
    return Draw(rounding_name, SEED, "blocks.0.weight", member)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rounding_name", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", SYSTEMS)
def test_cpu_codes_are_the_references(name: str, axis: ScaleAxis, rounding_name: str) -> None:
    for layout in LAYOUTS:
        for dtype in DTYPES if layout in OF_EVERY_DTYPE else DTYPES[:1]:
            weight = hard_weight(layout, dtype)
            system, _, scales = arguments(weight, name, axis, layout)
            expected = reference.encode(weight, scales, grid_of(system), draw(rounding_name), members=2)
            got = cpu.encode(weight, scales, grid_of(system), draw(rounding_name), members=2)
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected), (layout, dtype)


@pytest.mark.parametrize("rounding_name", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["int2", "int5", "int8*11.3", "fp8_e4m3", "lopsided"])
def test_cpu_values_are_the_references(name: str, axis: ScaleAxis, rounding_name: str) -> None:
    for layout in LAYOUTS:
        for dtype in DTYPES if layout in OF_EVERY_DTYPE else DTYPES[:1]:
            weight = hard_weight(layout, dtype)
            system, _, scales = arguments(weight, name, axis, layout)
            expected = torch.empty((2, 1, layout.numel), dtype=dtype)
            got = torch.empty_like(expected)
            reference.round_into(expected, weight, scales, grid_of(system), draw(rounding_name))
            cpu.round_into(got, weight, scales, grid_of(system), draw(rounding_name))
            assert torch.equal(bits_of(got), bits_of(expected)), (layout, dtype)


def bits_of(values: Tensor) -> Tensor:
    """The bits, which tell 0 from −0."""
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", SYSTEMS)
def test_cpu_decodes_as_the_reference(name: str, axis: ScaleAxis) -> None:
    for layout in LAYOUTS:
        system, _, scales = arguments(hard_weight(layout), name, axis, layout)
        codes = reference.encode(hard_weight(layout), scales, grid_of(system), draw("bernoulli"))[0, 0]
        for dtype in DTYPES:
            expected = reference.decode(codes, scales, grid_of(system), dtype)
            got = cpu.decode(codes, scales, grid_of(system), dtype)
            assert torch.equal(bits_of(got), bits_of(expected)), (layout, dtype)


def stored_codes(layout: Layout, name: str, axis: ScaleAxis) -> Coded:
    weight = hard_weight(layout)
    system, _, scales = arguments(weight, name, axis, layout)
    codes = reference.encode(weight, scales, grid_of(system), draw("nearest"))[0, 0]
    return Coded(codes, scales, grid_of(system))


@pytest.mark.parametrize("base", ["int8", "int6", "fp8_e4m3", "nf4"])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["int2", "int5", "nf4", "fp6_e2m3"])
def test_members_drawn_from_stored_codes_are_the_references(name: str, axis: ScaleAxis, base: str) -> None:
    for layout in LAYOUTS:
        stored = stored_codes(layout, base, lpe.PerChannel())
        decoded = reference.stored_values(stored, 0, layout.numel)
        system, _, scales = arguments(decoded, name, axis, layout)
        for rounding_name in ROUNDINGS:
            expected = reference.encode(decoded, scales, grid_of(system), draw(rounding_name), members=2)
            for backend in (reference, cpu):
                got = backend.encode(stored, scales, grid_of(system), draw(rounding_name), members=2)
                assert torch.equal(got, expected), (layout, rounding_name, backend.__name__)


SEGMENTS = [([0, 3, 8, 21], 5), ([1], 90), ([17, 2], 60), ([88], 3), ([5], 0), ([], 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("starts", "length"), SEGMENTS)
@pytest.mark.parametrize("backend", [reference, cpu], ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_segment_is_that_part_of_the_whole(
    backend: kernels.Backend, starts: list[int], length: int, dtype: torch.dtype
) -> None:
    layout = Layout((7, 13))
    stored: list[Stored] = [hard_weight(layout, dtype), stored_codes(layout, "int8", lpe.PerChannel())]
    for weight in stored:
        values = weight if isinstance(weight, Tensor) else reference.stored_values(weight, 0, layout.numel)
        system, _, scales = arguments(values, "int5", lpe.PerBlock(4), layout)
        for rounding_name in ROUNDINGS:
            whole = reference.encode(weight, scales, grid_of(system), draw(rounding_name), members=3)
            firsts = torch.tensor(starts, dtype=torch.int64)
            got = backend.encode(weight, scales, grid_of(system), draw(rounding_name), 3, firsts, length)
            assert got.shape == (3, len(starts), length)
            for segment, start in enumerate(starts):
                assert torch.equal(got[:, segment], whole[:, 0, start : start + length])
            values_out = torch.full((3, len(starts), length), torch.nan, dtype=dtype)
            backend.round_into(values_out, weight, scales, grid_of(system), draw(rounding_name), firsts)
            of_whole = torch.empty((3, 1, layout.numel), dtype=dtype)
            reference.round_into(of_whole, weight, scales, grid_of(system), draw(rounding_name))
            for segment, start in enumerate(starts):
                assert torch.equal(values_out[:, segment], of_whole[:, 0, start : start + length])


@pytest.mark.parametrize("rounding_name", ROUNDINGS)
def test_members_at_once_are_the_members_one_by_one(rounding_name: str) -> None:
    layout = Layout((5, 77))
    weight = hard_weight(layout)
    system, _, scales = arguments(weight, "int4", lpe.PerChannel(), layout)
    together = cpu.encode(weight, scales, grid_of(system), draw(rounding_name, member=0), members=6)
    for member in range(6):
        alone = cpu.encode(weight, scales, grid_of(system), draw(rounding_name, member))
        assert torch.equal(together[member], alone[0])


@pytest.mark.parametrize("rounding_name", ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("of_torch", [True, False], ids=["torch's threads", "a pool"])
def test_pieces_on_two_threads_are_the_whole(
    rounding_name: str,
    dtype: torch.dtype,
    of_torch: bool,
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not of_torch:
        monkeypatch.setattr(teams, "uses_openmp", lambda: False)
    elif not teams.uses_openmp():
        pytest.skip("torch's threads cannot be had here")
    monkeypatch.setattr(cpu, "WORTH_A_TEAM", 1000)
    monkeypatch.setattr(cpu, "WORTH_A_POOL", 1000)
    monkeypatch.setattr(cpu, "PIECES", 1)  # of several chunks each, but for the last
    monkeypatch.setattr(cpu, "PART", 4096)
    layout = Layout((9, 2777))
    weight = hard_weight(layout, dtype)
    system, _, scales = arguments(weight, "int5", lpe.PerBlock(100), layout)
    expected = reference.encode(weight, scales, grid_of(system), draw(rounding_name), members=2)
    assert torch.equal(cpu.encode(weight, scales, grid_of(system), draw(rounding_name), 2), expected)
    values = torch.empty((2, 1, layout.numel), dtype=dtype)
    cpu.round_into(values, weight, scales, grid_of(system), draw(rounding_name))
    of_reference = torch.empty_like(values)
    reference.round_into(of_reference, weight, scales, grid_of(system), draw(rounding_name))
    assert torch.equal(values, of_reference)


def several() -> list[Rounded]:
    """Weights of every dtype, of stored codes, of several systems, an empty one and one of several chunks."""
    made = []
    cases = [
        (Layout((9, 2777)), "int5", lpe.PerChannel()),
        (Layout((7, 13)), "nf4", lpe.PerBlock(5)),
        (Layout((0, 4)), "int4", lpe.PerChannel()),
        (Layout((19, 6), output_axis=1), "int4", lpe.PerTensor()),
    ]
    for place, (layout, name, axis) in enumerate(cases):
        for dtype in DTYPES if place < 2 else DTYPES[:1]:
            weight = hard_weight(layout, dtype, key=place) if layout.numel else torch.empty(0, dtype=dtype)
            system, _, scales = arguments(weight, name, axis, layout)
            made.append(Rounded(weight, scales, grid_of(system), f"layer {len(made)}", dtype))
    coded = stored_codes(Layout((5, 77)), "int8", lpe.PerChannel())
    system, _, scales = arguments(hard_weight(Layout((5, 77))), "int5", lpe.PerChannel(), Layout((5, 77)))
    return [*made, Rounded(coded, scales, grid_of(system), "coded", torch.bfloat16)]


@pytest.mark.parametrize("rounding_name", ROUNDINGS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", [reference, cpu], ids=lambda module: module.__name__.rpartition(".")[2])
def test_weights_that_are_rounded_together_are_those_one_by_one(
    backend: kernels.Backend,
    threads: int,
    rounding_name: str,
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr(cpu, "WORTH_A_TEAM", 1000)
    monkeypatch.setattr(cpu, "WORTH_A_POOL", 1000)
    tensors = several()
    plan = backend.plan(tensors)
    for member, members in ((0, 1), (3, 2)):
        outs = [torch.full((members * t.weight.numel(),), 77.0, dtype=t.dtype) for t in tensors]
        plan.round_into(outs, Draw(rounding_name, SEED + member, "not looked at", member), members)
        for tensor, out in zip(tensors, outs, strict=True):
            expected = torch.empty((members, 1, tensor.weight.numel()), dtype=tensor.dtype)
            own = Draw(rounding_name, SEED + member, tensor.name, member)
            reference.round_into(expected, tensor.weight, tensor.scales, tensor.grid, own)
            assert torch.equal(bits_of(out), bits_of(expected.flatten())), tensor.name


def test_a_plan_reads_the_weights_as_they_are_now() -> None:
    tensor = several()[0]
    plan = cpu.plan([tensor])
    assert isinstance(tensor.weight, Tensor)
    tensor.weight.zero_()
    out = torch.full((tensor.weight.numel(),), 77.0)
    plan.round_into([out], draw("bernoulli"))
    assert not out.any()


@pytest.mark.parametrize(
    ("dtype", "members", "step"),
    [(torch.bfloat16, 1, 1), (torch.float32, 2, 1), (torch.float32, 1, 2)],
    ids=["another dtype", "too little", "with gaps"],
)
def test_a_plan_writes_nothing_into_memory_that_does_not_fit(
    dtype: torch.dtype, members: int, step: int
) -> None:
    tensor = several()[0]
    out = torch.zeros(step * tensor.weight.numel(), dtype=dtype)[::step]
    with pytest.raises(AssertionError):
        cpu.plan([tensor]).round_into([out], draw("bernoulli"), members)
    assert not out.any()


MAGNITUDE_LAYOUTS = [
    *LAYOUTS,
    Layout((300, 210), output_axis=1),
    Layout((9, 90, 70), 2, 3),
    Layout((300, 500)),
]


@pytest.mark.parametrize("layout", MAGNITUDE_LAYOUTS, ids=str)
def test_largest_magnitudes_are_the_references(layout: Layout, two_threads: None) -> None:
    for axis in AXES:
        for dtype in DTYPES:
            weight = hard_weight(layout, dtype)
            expected = reference.absmax(weight, layout, axis)
            got = cpu.absmax(weight, layout, axis)
            assert torch.equal(bits_of(got), bits_of(expected)), (axis, dtype)
            for wrong in (torch.nan, -torch.inf):
                weight[layout.numel // 2] = wrong
                expected, got = reference.absmax(weight, layout, axis), cpu.absmax(weight, layout, axis)
                assert torch.equal(got.isfinite(), expected.isfinite()), (axis, dtype, wrong)
                assert torch.equal(got[got.isfinite()], expected[expected.isfinite()])


def test_codes_go_into_the_memory_that_is_given() -> None:
    layout = Layout((3, 50))
    weight = hard_weight(layout)
    system, _, scales = arguments(weight, "int5", lpe.PerChannel(), layout)
    expected = reference.encode(weight, scales, grid_of(system), draw("bernoulli"), members=2)
    for backend in (reference, cpu):
        out = torch.zeros((2, 1, 150), dtype=torch.int8)
        returned = backend.encode(weight, scales, grid_of(system), draw("bernoulli"), 2, out=out)
        assert returned.data_ptr() == out.data_ptr()
        assert torch.equal(out, expected)


def test_a_member_beyond_two_to_the_31_and_a_large_seed_agree() -> None:
    layout = Layout((3, 50))
    weight = hard_weight(layout)
    system, _, scales = arguments(weight, "int5", lpe.PerChannel(), layout)
    for rounding_name in ROUNDINGS:
        extreme = Draw(rounding_name, 2**64 - 1, "w", 2**32 - 2)
        expected = reference.encode(weight, scales, grid_of(system), extreme, members=2)
        assert torch.equal(cpu.encode(weight, scales, grid_of(system), extreme, members=2), expected)


def test_elements_beyond_two_to_the_32_take_the_high_word_of_the_block() -> None:
    # The weight of such a layout is not there: the kernel is told where what it is given begins.
    layout = Layout((2**35 + 64,))
    stored = hard_weight(Layout((64,)))
    start = 2**35 + 3
    scales = Scales.of(torch.tensor([0.1]), layout, lpe.PerTensor())
    grid = grid_of(lpe.Int(5))
    lanes = reference.random_lanes(SEED, "blocks.0.weight", 2, start - 3, start + 37, stored.device)[3:]
    expected = reference.round_codes(
        stored[:37], scales.inverses.expand(37), grid, torch.empty(0), "bernoulli", lanes
    )
    got = torch.empty((1, 1, 37), dtype=torch.int8)
    cpu._run(
        stored[:37],
        scales,
        grid,
        draw("bernoulli"),
        1,
        cpu._Kept.of(np.array([start])),
        37,
        cpu_code.CODES,
        got,
        origin=start,
    )
    assert torch.equal(got[0, 0], expected)


def test_values_are_rounded_to_bfloat16_to_the_nearest_even() -> None:
    layout = Layout((2, 300))
    weight = hard_weight(layout, torch.bfloat16, key=1)
    system, _, scales = arguments(weight, "int8", lpe.PerChannel(), layout)
    got = torch.empty((1, 1, 600), dtype=torch.bfloat16)
    cpu.round_into(got, weight, scales, grid_of(system), draw("nearest"))
    exact = torch.empty((1, 1, 600))
    cpu.round_into(exact, weight, scales, grid_of(system), draw("nearest"))
    assert torch.equal(got, exact.bfloat16())
    assert not torch.equal(got.float(), exact)


def test_a_weight_that_wants_gradients_is_taken() -> None:
    weight = torch.nn.Parameter(hard_weight(Layout((3, 50))).view(3, 50))
    codes, _ = lpe.encode(weight, lpe.Int(5))
    with kernels.use("reference"):
        assert torch.equal(codes, lpe.encode(weight, lpe.Int(5))[0])


def test_the_kernels_are_chosen_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert kernels.of(torch.device("cpu")) is cpu
    assert kernels.of(torch.device("meta")) is reference


def test_the_environment_takes_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "reference")
    assert kernels.of(torch.device("cpu")) is reference


def test_a_program_takes_other_kernels_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "cpu")
    with kernels.use("reference"):
        assert kernels.of(torch.device("cpu")) is reference
    assert kernels.of(torch.device("cpu")) is cpu


@pytest.mark.parametrize("name", ["fast", "cuda"])
def test_kernels_that_cannot_be_had_are_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv(kernels.VARIABLE, name)
    with pytest.raises(lpe.InputError) as caught:
        kernels.of(torch.device("cpu"))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_kernels_for_a_block_are_one_line() -> None:
    with pytest.raises(lpe.InputError, match="there are no kernels 'fast'"), kernels.use("fast"):
        pass


def test_a_forked_process_rounds_on_threads_of_its_own(two_threads: None) -> None:
    # torch's own threads do not survive the fork: the child leaves to torch only what it does on one.
    program = (
        "import os, torch, lpe\n"
        "from lpe.number_systems import rounding\n"
        "torch.set_num_threads(2)\n"
        "weight = torch.randn(2000, 400, generator=torch.Generator().manual_seed(0))\n"
        "first, scales = lpe.encode(weight, lpe.Int(5))\n"
        "layout, draw = rounding.Layout((2000, 400)), rounding.Draw('bernoulli', 0, '', 0)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    again = rounding.encode_with_scales(weight, scales, lpe.Int(5), layout, draw)\n"
        "    os._exit(0 if again.numpy().tobytes() == first.numpy().tobytes() else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=120)
    assert done.returncode == 0


def test_memory_that_is_not_contiguous_is_refused() -> None:
    layout = Layout((3, 50))
    weight = hard_weight(layout)
    system, _, scales = arguments(weight, "int5", lpe.PerChannel(), layout)
    out = torch.zeros((2, 1, 300), dtype=torch.int8)[:, :, ::2]
    with pytest.raises(AssertionError):
        cpu.encode(weight, scales, grid_of(system), draw("bernoulli"), 2, out=out)
    assert not out.any()


def test_a_second_process_finds_the_machine_code_on_disk(tmp_path: Path) -> None:
    program = (
        "import torch, lpe\n"
        "from lpe.number_systems.kernels import cpu_code\n"
        "lpe.decode(*lpe.encode(torch.ones(3, 5), lpe.Int(5)), lpe.Int(5))\n"
        "decoded = cpu_code.decode.stats\n"
        "print(cpu_code.share.cache_hits, sum(decoded.cache_hits.values()))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert runs == [["0", "0"], ["1", "1"]]


@pytest.mark.parametrize("compiler", ["njit", "cfunc"])
def test_without_a_place_for_machine_code_it_is_made_in_memory(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_compiler = getattr(numba, compiler)

    def refusing(*arguments: object, **options: object) -> object:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return true_compiler(*arguments, **options)

    monkeypatch.setattr(numba, compiler, refusing)
    if compiler == "njit":
        assert cpu_code.compiled(lambda a, b: a + b)(1, 2) == 3
    else:
        numbers = np.array([1, 2])
        teams.run(cpu_code.for_threads(_swap).address, numbers.ctypes.data, 1)
        assert list(numbers) == [2, 1]


def _swap(numbers):  # type: ignore[no-untyped-def]
    numbers[0], numbers[1] = numbers[1], numbers[0]
