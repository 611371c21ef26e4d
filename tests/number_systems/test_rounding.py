"""Rounding: every code against an independent rule, corners, statistics with their faults, golden values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.number_systems import rounding, streams
from lpe.number_systems.grids import LowPrecision, ScaleAxis, grid_of
from lpe.number_systems.kernels import reference
from lpe.number_systems.layouts import Layout

AXES = [lpe.PerTensor(), lpe.PerChannel(1), lpe.PerChannel(3), lpe.PerBlock(5)]
ROUNDINGS = ["nearest", "bernoulli", "coupled"]
SEED = 5 * 2**32 + 11  # uses both words of the key


def one_line(caught: pytest.ExceptionInfo[lpe.InputError]) -> str:
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def normal_weight(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))


# The rule once more, from DESIGN.md's text: one element at a time, in Python's integers and numpy's float32
# scalars. It shares nothing with the library, so it repeats test_streams.py's Philox.


@cache
def block_of_lanes(seed: int, name: str, member: int, block: int) -> tuple[int, ...]:
    k0, k1 = seed % 2**32, seed // 2**32
    identity = int.from_bytes(hashlib.blake2s(name.encode()).digest()[:4], "little")
    x0, x1, x2, x3 = block % 2**32, block // 2**32, identity, member
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 2**32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return tuple(half for word in (x0, x1, x2, x3) for half in (word % 65536, word // 65536))


def group_of_index(
    index: tuple[int, ...], shape: tuple[int, ...], axis: ScaleAxis, output_axis: int, channel_groups: int
) -> tuple[int, int]:
    """Which scale an element uses: (along the outputs, along the inputs)."""
    if not index:
        row, rest, rest_shape = 0, (), ()
    elif output_axis == 0:
        # What comes after the output dimension is cut into the groups.
        after = position = 0
        for position, extent in zip(index[1:], shape[1:], strict=True):
            after = after * extent + position
        inputs = int(np.prod(shape[1:])) // channel_groups
        row, rest, rest_shape = index[0] * channel_groups + after // inputs, (after % inputs,), (inputs,)
    else:
        # What comes before the output dimension, counted as one dimension, is cut into the groups.
        before, first = 1, 0
        for position, extent in zip(index[:output_axis], shape[:output_axis], strict=True):
            before, first = before * extent, first * extent + position
        inputs = before // channel_groups
        row = first // inputs * shape[output_axis] + index[output_axis]
        rest = (first % inputs, *index[output_axis + 1 :])
        rest_shape = (inputs, *shape[output_axis + 1 :])
    column = 0
    for position, extent in zip(rest, rest_shape, strict=True):
        column = column * extent + position
    if isinstance(axis, lpe.PerTensor):
        return (0, 0)
    if isinstance(axis, lpe.PerChannel):
        return (row // axis.channels, 0)
    return (row, column // axis.inputs)


def code_among_levels(v: np.float32, levels: list[np.float32], mode: str, lane: int) -> int:
    """The code of v = w·(1/s) in a system that is no integers."""
    zero = min(range(len(levels)), key=lambda index: (abs(levels[index]), levels[index] < 0))
    v = min(max(v, levels[0]), levels[-1])
    low = max([index for index, level in enumerate(levels[:-1]) if level <= v])
    p = (v - levels[low]) / (levels[low + 1] - levels[low])
    assert p.dtype == np.float32
    if mode == "nearest":
        tie_goes_up = (low + 1 - zero) % 2 == 0
        return low + (1 if p > 0.5 or (p == 0.5 and tie_goes_up) else 0)
    return low + (1 if lane < int(np.rint(np.float32(65536) * p)) else 0)


def code_nearest_zero(system: LowPrecision) -> int:
    """The code of a weight whose scale has no finite inverse."""
    if isinstance(system, lpe.Int):
        return 0
    return min(range(len(system.levels)), key=lambda i: (abs(system.levels[i]), system.levels[i] < 0))


def expected(
    weight: Tensor,
    system: LowPrecision,
    mode: str,
    seed: int,
    name: str,
    member: int,
    output_axis: int = 0,
    channel_groups: int = 1,
) -> tuple[list[int], dict[tuple[int, int], np.float32]]:
    """The codes in row-major order, and the step of every scale group."""
    shape = tuple(weight.shape)
    values = weight.detach().to(torch.float32).contiguous().numpy()
    levels = [np.float32(level) for level in system.levels]
    last = max(map(abs, levels))
    q, spread = (system.q, system.spread) if isinstance(system, lpe.Int) else (last, 1)
    places = {
        index: group_of_index(index, shape, system.scale, output_axis, channel_groups)
        for index in np.ndindex(shape)
    }
    step: dict[tuple[int, int], np.float32] = {}
    for index, group in places.items():
        step[group] = max(step.get(group, np.float32(0)), np.abs(np.float32(values[index])))
    step = {group: largest / np.float32(q) * np.float32(spread) for group, largest in step.items()}
    codes = []
    for element, (index, group) in enumerate(places.items()):
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.float32(1) / step[group]
        if not np.isfinite(inverse):
            codes.append(code_nearest_zero(system))
            continue
        v = np.float32(values[index]) * inverse
        assert v.dtype == np.float32
        lane = block_of_lanes(seed, name, 0 if mode == "coupled" else member, element // 8)[element % 8]
        if mode == "coupled":
            lane = (lane + 40503 * member) % 65536
        if not isinstance(system, lpe.Int):
            codes.append(code_among_levels(v, levels, mode, lane))
            continue
        if mode == "nearest":
            code = int(np.rint(v))
        else:
            low = np.floor(v)
            threshold = int(np.rint(np.float32(65536) * (v - low)))
            code = int(low) + (1 if lane < threshold else 0)
        codes.append(int(min(max(code, -last), last)))
    return codes, step


def assert_follows_the_rule(
    weight: Tensor, system: LowPrecision, mode: str, seed: int = SEED, member: int = 0, **layout: int
) -> None:
    codes, scales = lpe.encode(weight, system, mode, seed, "layer.weight", member, **layout)
    wanted, wanted_steps = expected(weight, system, mode, seed, "layer.weight", member, **layout)
    assert codes.dtype == (torch.int8 if isinstance(system, lpe.Int) else torch.uint8)
    assert codes.shape == weight.shape
    assert codes.flatten().tolist() == wanted
    assert {(i, j): scales[i, j].item() for i, j in np.ndindex(*scales.shape)} == {
        group: float(step) for group, step in wanted_steps.items()
    }


@pytest.mark.parametrize("member", [0, 1, 7])
@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_and_steps_follow_the_rule(bits: int, axis: ScaleAxis, mode: str, member: int) -> None:
    assert_follows_the_rule(normal_weight(7, 13), lpe.Int(bits, axis), mode, member=member)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize(("bits", "spread"), [(8, 11.3), (8, 2.0), (8, 127.0), (5, 1.7), (3, 1.0001)])
def test_codes_and_steps_of_a_spread_follow_the_rule(
    bits: int, spread: float, axis: ScaleAxis, mode: str
) -> None:
    weight = normal_weight(7, 13)
    weight[3] = 0
    weight[4] *= 1e-41
    assert_follows_the_rule(weight, lpe.Int(bits, axis, spread=spread), mode, member=1)


# Systems that are no integers: symmetric and not, with and without 0, even ends and odd.
OTHERS: dict[str, Callable[[ScaleAxis], LowPrecision]] = {
    **{f"E{e}M{m}": partial(lpe.Float, e, m) for e, m in ((4, 3), (5, 2), (3, 2), (2, 3), (2, 1))},
    "NF4": lpe.NF4,
    "two levels": partial(lpe.Codebook, [-1.0, 1.0]),
    "without 0": partial(lpe.Codebook, [0.3, -0.2, 1.0, -1.0, 0.7]),
    "one-sided": partial(lpe.Codebook, [0.0, 0.1, 0.35, 0.5, 2.0]),
    "lopsided": partial(lpe.Codebook, [-3.0, -0.1, 0.0, 0.4, 1.1]),
    "256 levels": partial(lpe.Codebook, [level / 100 for level in range(-128, 128)]),
}


@pytest.mark.parametrize("member", [0, 7])
@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_codes_and_scales_of_other_systems_follow_the_rule(
    name: str, axis: ScaleAxis, mode: str, member: int
) -> None:
    weight = normal_weight(7, 13)
    weight[3] = 0
    weight[4] *= 1e-41
    assert_follows_the_rule(weight, OTHERS[name](axis), mode, member=member)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("name", OTHERS)
def test_more_than_one_chunk_of_other_systems_follows_the_rule(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "CHUNK", 16)
    weight, system = normal_weight(7, 13), OTHERS[name](lpe.PerBlock(5))
    assert_follows_the_rule(weight, system, mode, member=1)
    codes, scales = lpe.encode(weight, system, mode, SEED, "w", 1)
    rounded = lpe.round_weights(weight, system, mode, SEED, "w", 1)
    assert torch.equal(lpe.decode(codes, scales, system), rounded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_every_dtype_of_other_systems_follows_the_rule_of_its_float32_values(
    name: str, dtype: torch.dtype
) -> None:
    weight = (normal_weight(7, 13).double() / 3).to(dtype)
    assert_follows_the_rule(weight, OTHERS[name](lpe.PerChannel()), "bernoulli", member=1)


@pytest.mark.parametrize("layout", [{"output_axis": 1}, {"output_axis": 1, "channel_groups": 3}], ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_every_layout_of_other_systems_follows_the_rule(name: str, layout: dict[str, int]) -> None:
    assert_follows_the_rule(normal_weight(6, 4, 3), OTHERS[name](lpe.PerBlock(5)), "bernoulli", **layout)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("shape", [(0,), (4, 0)], ids=str)
def test_an_empty_weight_of_other_systems_is_rounded_to_an_empty_weight(
    shape: tuple[int, ...], name: str, mode: str
) -> None:
    assert lpe.round_weights(torch.ones(shape), OTHERS[name](lpe.PerChannel()), mode).shape == shape


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_codebook_of_whole_numbers_rounds_as_integers_do(bits: int, mode: str) -> None:
    # Two paths, one rule: ⌊v⌋ against a search among the levels.
    weight, integers = normal_weight(64, 33), lpe.Int(bits)
    codebook = lpe.Codebook(integers.levels)
    codes, scales = lpe.encode(weight, integers, mode, SEED, "w", 3)
    others, other_scales = lpe.encode(weight, codebook, mode, SEED, "w", 3)
    assert torch.equal(scales, other_scales)
    assert torch.equal(codes.long() + integers.largest_code, others.long())


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (19,), (1, 1), (8, 8), (5, 3, 2, 3)], ids=str)
def test_every_shape_follows_the_rule(shape: tuple[int, ...], axis: ScaleAxis, mode: str) -> None:
    assert_follows_the_rule(normal_weight(*shape), lpe.Int(4, axis), mode, member=2)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("size", [(7, 13), (4, 8), (33, 1)], ids=str)
def test_more_than_one_chunk_follows_the_rule(
    size: tuple[int, int], axis: ScaleAxis, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "CHUNK", 16)
    assert_follows_the_rule(normal_weight(*size), lpe.Int(4, axis), mode, member=1)


def test_the_chunk_is_a_multiple_of_a_random_block() -> None:
    assert reference.CHUNK % streams.LANES == 0


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("mode", ["bernoulli", "coupled"])
def test_every_seed_follows_the_rule(mode: str, seed: int) -> None:
    assert_follows_the_rule(normal_weight(7, 13), lpe.Int(4), mode, seed=seed, member=1)


@pytest.mark.parametrize("mode", ["bernoulli", "coupled"])
def test_the_last_member_follows_the_rule(mode: str) -> None:
    assert_follows_the_rule(normal_weight(7, 13), lpe.Int(4), mode, member=2**32 - 1)


@pytest.mark.parametrize("member", [1, 7, 12345, 2**32 - 1])
def test_a_coupled_members_random_number_is_member_zeros_plus_40503_a_member(member: int) -> None:
    # A weight of T/65536 steps goes up if r < T: with T = r it must not, with T = r + 1 it must.
    lanes = (streams.random_lanes(SEED, "w", 0, 0, 64) + 40503 * member) % 65536
    weight = torch.stack([lanes, lanes + 1]).float() / 65536
    weight = torch.cat([weight, torch.full((2, 1), 127.0)], dim=1)  # the maximum makes the step exactly 1
    rows = [lpe.encode(row[None], lpe.Int(8), "coupled", SEED, "w", member)[0][0, :-1] for row in weight]
    assert not rows[0].any() and rows[1].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_every_dtype_follows_the_rule_of_its_float32_values(axis: ScaleAxis, dtype: torch.dtype) -> None:
    weight = normal_weight(7, 13).double() / 3
    assert_follows_the_rule(weight.to(dtype), lpe.Int(8, axis), "bernoulli", member=1)


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("shape", [(13, 7), (4, 6, 3)], ids=str)
def test_output_on_the_second_axis_follows_the_rule(shape: tuple[int, ...], axis: ScaleAxis) -> None:
    assert_follows_the_rule(normal_weight(*shape), lpe.Int(4, axis), "bernoulli", output_axis=1)


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("output_axis", [1, 2])
def test_experts_follow_the_rule_in_both_orders_of_their_dimensions(
    output_axis: int, axis: ScaleAxis
) -> None:
    assert_follows_the_rule(
        normal_weight(4, 6, 5), lpe.Int(4, axis), "bernoulli", output_axis=output_axis, channel_groups=4
    )


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_experts_that_are_a_row_each_follow_the_rule(axis: ScaleAxis) -> None:
    assert_follows_the_rule(normal_weight(4, 18), lpe.Int(4, axis), "bernoulli", channel_groups=3)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_output_on_the_last_of_three_axes_follows_the_rule(axis: ScaleAxis) -> None:
    assert_follows_the_rule(normal_weight(4, 6, 5), lpe.Int(4, axis), "bernoulli", output_axis=2)


def test_each_output_of_each_expert_has_a_scale() -> None:
    experts = normal_weight(3, 4, 5)
    of_outputs_first = lpe.encode(experts, lpe.Int(4), output_axis=1, channel_groups=3)[1]
    of_outputs_last = lpe.encode(experts.mT.contiguous(), lpe.Int(4), output_axis=2, channel_groups=3)[1]
    largest = experts.abs().amax(dim=2).view(12, 1) / 7
    assert torch.equal(of_outputs_first, largest) and torch.equal(of_outputs_last, largest)


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_a_grouped_transposed_convolution_follows_the_rule(groups: int, axis: ScaleAxis) -> None:
    assert_follows_the_rule(
        normal_weight(6, 4, 3, 2), lpe.Int(4, axis), "bernoulli", output_axis=1, channel_groups=groups
    )


def test_a_grouped_transposed_convolution_has_the_steps_of_its_true_output_channels() -> None:
    # The weight of an output channel is all that can change that channel's output.
    convolution = torch.nn.ConvTranspose1d(6, 8, 3, groups=2, bias=False)
    weight = convolution.weight.detach()
    largest = []
    for channel in range(8):
        output = convolution(torch.ones(1, 6, 5))[0, channel].sum()
        (gradient,) = torch.autograd.grad(output, convolution.weight)
        largest.append(weight[gradient != 0].abs().max())
    _, scales = lpe.encode(weight, lpe.Int(5), output_axis=1, channel_groups=2)
    assert torch.equal(scales.flatten(), torch.stack(largest) / torch.tensor(15.0))


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_an_empty_weight_is_rounded_to_an_empty_weight(
    shape: tuple[int, ...], axis: ScaleAxis, mode: str
) -> None:
    assert lpe.round_weights(torch.ones(shape), lpe.Int(4, axis), mode).shape == shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", [*map(str, range(2, 9)), *OTHERS])
def test_cuda_gives_the_codes_and_scales_of_the_cpu(name: str) -> None:
    weight = normal_weight(4096, 33)
    system = lpe.Int(int(name)) if name.isdigit() else OTHERS[name](lpe.PerChannel())
    codes, scales = lpe.encode(weight, system, "bernoulli", SEED, "w", 3)
    on_cuda = lpe.encode(weight.cuda(), system, "bernoulli", SEED, "w", 3)
    assert torch.equal(on_cuda[1].cpu(), scales) and torch.equal(on_cuda[0].cpu(), codes)


def test_steps_are_true_quotients_and_no_products_with_a_reciprocal() -> None:
    # What CUDA makes of a division by a Python number, and what the weights here would show.
    weight = normal_weight(1000, 1)
    scales = lpe.encode(weight, lpe.Int(3))[1].flatten().numpy()
    largest = weight.abs().flatten().numpy()
    assert (largest * (np.float32(1) / np.float32(3)) != largest / np.float32(3)).any()
    assert (scales == largest / np.float32(3)).all()


# Decoding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_value_is_the_code_times_the_step_in_float32_cast_to_the_dtype(dtype: torch.dtype) -> None:
    weight = normal_weight(7, 13).to(dtype)
    codes, scales = lpe.encode(weight, lpe.Int(5), seed=3)
    products = codes.numpy().astype(np.float32) * scales.numpy()
    rounded = lpe.round_weights(weight, lpe.Int(5), seed=3)
    assert rounded.dtype == dtype and torch.equal(rounded, torch.from_numpy(products).to(dtype))


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("layout", [{}, {"output_axis": 1}, {"output_axis": 1, "channel_groups": 3}], ids=str)
def test_decoding_the_codes_gives_the_rounded_weights(
    layout: dict[str, int], axis: ScaleAxis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "CHUNK", 16)
    weight, system = normal_weight(6, 4, 3), lpe.Int(4, axis)
    codes, scales = lpe.encode(weight, system, seed=SEED, name="w", **layout)
    decoded = lpe.decode(codes, scales, system, **layout)
    assert torch.equal(decoded, lpe.round_weights(weight, system, seed=SEED, name="w", **layout))
    step = weight.abs().max() / system.largest_code
    assert (decoded - weight).abs().max() <= step * (1 + 1e-6)


def test_scales_of_another_scale_axis_are_refused_by_decode() -> None:
    codes, scales = lpe.encode(normal_weight(7, 13), lpe.Int(4))
    with pytest.raises(lpe.InputError) as caught:
        lpe.decode(codes, scales, lpe.Int(4, lpe.PerBlock(5)))
    message = one_line(caught)
    assert "[7, 1]" in message and "[7, 3]" in message


def test_full_precision_gives_an_equal_copy() -> None:
    weight = normal_weight(3, 4)
    copy = lpe.round_weights(weight, lpe.FullPrecision())
    assert torch.equal(copy, weight) and copy.data_ptr() != weight.data_ptr()


# Corners: grid values

# Exhaustive search over all 2²³ mantissas of a step (any normal step is one of them times a power of two):
# how far float32's error in w·(1/Δ) moves the threshold T of a grid value, in units of 2⁻¹⁶.
THRESHOLD_BOUND = {2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 7: 1, 8: 2}
# Where the bound is met: bits → (code, step).
WORST = {7: (53, 1067094368), 8: (101, 1067598528)}


def grid_rows(bits: int) -> Tensor:
    """Steps as rows, every code times the step as columns: [steps, 2q + 1]."""
    q = 2 ** (bits - 1) - 1
    mantissas = torch.randint(0, 2**23, (4000,), generator=torch.Generator().manual_seed(bits))
    patterns = torch.cat([mantissas | 127 << 23, torch.tensor([0, 1, 2**23 - 1]) | 127 << 23])
    if bits in WORST:
        patterns = torch.cat([patterns, torch.tensor([WORST[bits][1]])])
    steps = patterns.to(torch.int32).view(torch.float32)
    return torch.arange(-q, q + 1).float() * steps[:, None]


def codes_of(weight: Tensor, step: Tensor, bits: int, mode: str, lanes: Tensor) -> Tensor:
    """The kernel's codes of weights with steps and random numbers of their own."""
    grid = grid_of(lpe.Int(bits))
    table = reference.level_table(grid, weight.device)
    return reference.round_codes(weight, 1.0 / step, grid, table, mode, lanes)


def codes_under_lane(weight: Tensor, bits: int, lane: int) -> Tensor:
    """The codes that a weight [rows, columns], a step a row, gets if every random number is ``lane``."""
    steps = rounding.absmax_scales(weight, lpe.Int(bits), Layout(tuple(weight.shape))).expand_as(weight)
    return codes_of(weight, steps, bits, "bernoulli", torch.full(weight.shape, lane))


@pytest.mark.parametrize("bits", range(2, 9))
def test_grid_values_stay_put_under_every_random_number_but_the_outermost_of_the_bound(bits: int) -> None:
    # [r < T] is monotone in r, so the two extreme random numbers speak for all between them.
    weight, bound = grid_rows(bits), THRESHOLD_BOUND[bits]
    q = 2 ** (bits - 1) - 1
    codes = torch.arange(-q, q + 1, dtype=torch.int8).expand_as(weight)
    assert torch.equal(codes_under_lane(weight, bits, bound), codes)
    assert torch.equal(codes_under_lane(weight, bits, 65535 - bound), codes)


@pytest.mark.parametrize("bits", WORST)
def test_the_bound_of_grid_values_is_met_by_one_of_them(bits: int) -> None:
    code = WORST[bits][0]
    weight = grid_rows(bits)[-1:]
    column = code + 2 ** (bits - 1) - 1
    assert codes_under_lane(weight, bits, THRESHOLD_BOUND[bits] - 1)[0, column] == code + 1


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("bits", range(2, 7))
def test_rounded_weights_stay_put_when_they_are_rounded_again(bits: int, mode: str) -> None:
    rounded = lpe.round_weights(normal_weight(40, 25), lpe.Int(bits), "bernoulli", seed=1)
    for member in range(8):
        assert torch.equal(lpe.round_weights(rounded, lpe.Int(bits), mode, seed=2, member=member), rounded)


@pytest.mark.parametrize("bits", range(2, 9))
def test_nearest_leaves_grid_values_where_they_are(bits: int) -> None:
    weight = grid_rows(bits)
    q = 2 ** (bits - 1) - 1
    codes = torch.arange(-q, q + 1, dtype=torch.int8).expand_as(weight)
    assert torch.equal(lpe.encode(weight, lpe.Int(bits), "nearest")[0], codes)


@pytest.mark.parametrize("lane", [0, 65535])
@pytest.mark.parametrize("mode", ["nearest", "bernoulli"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_never_leave_minus_q_to_q(bits: int, mode: str, lane: int) -> None:
    # In w·(1/Δ) float32 may put the maximum a little outside; here it is far outside.
    q = 2 ** (bits - 1) - 1
    weight = torch.tensor([-q - 0.75, q + 0.75])
    codes = codes_of(weight, torch.ones(2), bits, mode, torch.full((2,), lane))
    assert codes.tolist() == [-q, q]


@pytest.mark.parametrize("bits", range(2, 9))
def test_nearest_sends_the_extremes_of_a_group_to_the_extreme_codes(bits: int) -> None:
    magnitudes = normal_weight(2000, 1).abs()
    codes = lpe.encode(torch.cat([magnitudes, -magnitudes], dim=1), lpe.Int(bits), "nearest")[0]
    q = 2 ** (bits - 1) - 1
    assert torch.equal(codes, torch.tensor([q, -q], dtype=torch.int8).expand(2000, 2))


def test_nearest_rounds_ties_to_even() -> None:
    # The maximum 7 makes the step of INT-4 exactly 1.
    weight = torch.tensor([[7.0, 0.5, 1.5, 2.5, 3.5, 6.5, -0.5, -1.5, -2.5, -6.5, -7.0]])
    codes = lpe.encode(weight, lpe.Int(4), "nearest")[0]
    assert codes.tolist() == [[7, 0, 2, 2, 4, 6, 0, -2, -2, -6, -7]]


def test_the_threshold_rounds_ties_to_even() -> None:
    # T = 0.5, 1.5, 2.5 → 0, 2, 2: at r = T − 1 a weight goes up, at r = T it does not.
    v = torch.tensor([0.5, 1.5, 1.5, 2.5, 2.5]) / 65536
    lanes = torch.tensor([0, 1, 2, 1, 2])
    codes = codes_of(v, torch.ones(5), 4, "bernoulli", lanes)
    assert codes.tolist() == [0, 1, 0, 1, 0]


# Corners: groups and weights out of the ordinary


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_a_weight_of_zeros_is_rounded_to_zeros(axis: ScaleAxis, mode: str) -> None:
    assert torch.equal(lpe.round_weights(torch.zeros(7, 13), lpe.Int(4, axis), mode), torch.zeros(7, 13))


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_a_group_of_zeros_leaves_its_neighbours_their_codes(mode: str) -> None:
    weight = normal_weight(5, 16)
    weight[2] = 0
    assert_follows_the_rule(weight, lpe.Int(4), mode)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("magnitude", [2.0**-149, 1e-41, 1e-39])
def test_weights_whose_inverse_step_is_infinite_get_the_code_zero(magnitude: float, mode: str) -> None:
    codes, scales = lpe.encode(torch.tensor([[magnitude, -magnitude, 0.0]]), lpe.Int(4), mode)
    assert math.isinf(1.0 / scales) and codes.tolist() == [[0, 0, 0]]


def test_denormal_weights_with_a_finite_inverse_step_follow_the_rule() -> None:
    assert_follows_the_rule(normal_weight(4, 9) * 1e-37, lpe.Int(4), "bernoulli")


def test_the_largest_float16_values_stay_finite() -> None:
    weight = torch.tensor([[65504.0, -65504.0, 1.0]], dtype=torch.float16)
    for bits in range(2, 9):
        assert torch.isfinite(lpe.round_weights(weight, lpe.Int(bits))).all()


@pytest.mark.parametrize("layout", [{}, {"output_axis": 1}], ids=str)
def test_a_transposed_view_is_rounded_like_its_contiguous_copy(layout: dict[str, int]) -> None:
    view = normal_weight(13, 7).T
    rounded = lpe.round_weights(view, lpe.Int(4, lpe.PerBlock(5)), **layout)
    assert torch.equal(rounded, lpe.round_weights(view.contiguous(), lpe.Int(4, lpe.PerBlock(5)), **layout))


def test_a_strided_slice_is_rounded_like_its_contiguous_copy() -> None:
    view = normal_weight(14, 26)[::2, ::2]
    assert torch.equal(lpe.encode(view, lpe.Int(4))[0], lpe.encode(view.contiguous(), lpe.Int(4))[0])


def test_a_parameter_that_requires_grad_gives_weights_that_do_not() -> None:
    parameter = torch.nn.Parameter(normal_weight(3, 4))
    assert not lpe.round_weights(parameter, lpe.Int(4)).requires_grad


def test_rounding_leaves_the_weight_unchanged() -> None:
    weight = normal_weight(7, 13)
    before = weight.clone()
    lpe.round_weights(weight, lpe.Int(2))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_rounding_leaves_the_global_generator_alone(mode: str) -> None:
    before = torch.get_rng_state()
    lpe.round_weights(normal_weight(7, 13), lpe.Int(4), mode)
    assert torch.equal(torch.get_rng_state(), before)


def test_nearest_ignores_seed_name_and_member() -> None:
    weight = normal_weight(7, 13)
    first = lpe.encode(weight, lpe.Int(4), "nearest", 0, "a", 0)[0]
    assert torch.equal(first, lpe.encode(weight, lpe.Int(4), "nearest", 1, "b", 2)[0])


def test_the_coupled_member_zero_is_the_bernoulli_member_zero() -> None:
    weight = normal_weight(7, 13)
    coupled = lpe.encode(weight, lpe.Int(4), "coupled", SEED, "w", 0)[0]
    assert torch.equal(coupled, lpe.encode(weight, lpe.Int(4), "bernoulli", SEED, "w", 0)[0])


def test_the_default_rounding_is_bernoulli() -> None:
    weight = normal_weight(7, 13)
    assert torch.equal(lpe.encode(weight, lpe.Int(4))[0], lpe.encode(weight, lpe.Int(4), "bernoulli")[0])


# What is refused


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("system", [lpe.Int(4), lpe.FullPrecision()], ids=str)
def test_nan_and_infinity_are_refused_with_the_tensors_name(
    system: lpe.Int | lpe.FullPrecision, value: float
) -> None:
    weight = normal_weight(3, 4)
    weight[1, 2] = value
    with pytest.raises(lpe.InputError) as caught:
        lpe.round_weights(weight, system, name="layer.weight")
    message = one_line(caught)
    assert "'layer.weight'" in message and "1 values" in message


def test_a_float64_weight_beyond_float32_is_refused() -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.encode(torch.tensor([[1e300, 1.0]], dtype=torch.float64), lpe.Int(4), name="layer.weight")
    message = one_line(caught)
    assert "'layer.weight'" in message and "float32" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_a_weight_that_is_not_floating_is_refused_with_its_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.encode(torch.ones(3, 4).to(dtype), lpe.Int(4))
    assert str(dtype) in one_line(caught)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"rounding": "stochastic"}, "'stochastic'"),
        ({"rounding": ""}, "''"),
        ({"seed": -1}, "-1"),
        ({"seed": 2**64}, str(2**64)),
        ({"seed": 1.5}, "1.5"),
        ({"member": -1}, "-1"),
        ({"member": 2**32}, str(2**32)),
        ({"output_axis": 2}, "2"),
        ({"output_axis": -1}, "-1"),
        ({"output_axis": 1, "channel_groups": 4}, "4"),
        ({"channel_groups": 0}, "0"),
        ({"channel_groups": -3}, "-3"),
        ({"channel_groups": 1.5}, "1.5"),
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused_with_its_value(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.encode(torch.ones(6, 4), lpe.Int(4), **arguments)
    assert named in one_line(caught)


def test_an_unknown_rounding_is_refused_under_full_precision_too() -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.round_weights(torch.ones(3), lpe.FullPrecision(), "stochastic")
    assert "'stochastic'" in one_line(caught)


def test_a_second_output_axis_needs_two_dimensions() -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.encode(torch.ones(6), lpe.Int(4), output_axis=1)
    assert "[6]" in one_line(caught)


def test_full_precision_has_no_codes_to_encode() -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.encode(torch.ones(3), lpe.FullPrecision())  # type: ignore[arg-type]
    assert "no codes" in one_line(caught)


# Statistics. A Draw gives the codes of a weight whose step is exactly 1, so that an error is code − weight.
# A tolerance is five standard errors, from the formula beside it. Every check runs twice: on the library's
# draws, and, beside it, on draws with a fault that it must catch.

Draw = Callable[[Tensor, int, str, int], Tensor]
ROWS, COLUMNS = 512, 512
N = ROWS * COLUMNS - 1  # the last element only sets the step


def library(mode: str, member_offset: int = 0) -> Draw:
    def draw(weight: Tensor, seed: int, name: str, member: int) -> Tensor:
        system = lpe.Int(5, lpe.PerTensor())
        return lpe.encode(weight, system, mode, seed, name, member + member_offset)[0]

    return draw


def library_with_spread(weight: Tensor, seed: int, name: str, member: int) -> Tensor:
    """Draw in steps of 1, as ``library`` does, whose range is 15 steps too: 127 / 15 of INT-8's."""
    system = lpe.Int(8, lpe.PerTensor(), spread=127 / 15)
    return lpe.encode(weight, system, "bernoulli", seed, name, member)[0]


def bernoulli(lanes: Tensor, p: Tensor) -> Tensor:
    return lanes < (65536 * p).round()


def same(lanes: Tensor, weight: Tensor, member: int) -> Tensor:
    return lanes


def sampler(
    key: Callable[[int, str, int], tuple[int, str, int]] = lambda seed, name, member: (seed, name, member),
    lanes: Callable[[Tensor, Tensor, int], Tensor] = same,
    goes_up: Callable[[Tensor, Tensor], Tensor] = bernoulli,
) -> Draw:
    """A sampler of its own, right unless a part of it is replaced by a faulty one."""

    def draw(weight: Tensor, seed: int, name: str, member: int) -> Tensor:
        flat = weight.flatten()
        random = streams.random_lanes(*key(seed, name, member), 0, flat.numel())
        low = flat.floor()
        return (low + goes_up(lanes(random, weight, member), flat - low)).reshape(weight.shape)

    return draw


RIGHT = sampler()
FLOOR = sampler(goes_up=lambda lanes, p: torch.zeros_like(p))
NEAREST = sampler(goes_up=lambda lanes, p: p > 0.5)
WRONG_SIDE = sampler(goes_up=lambda lanes, p: bernoulli(lanes, torch.where(p > 0, 1 - p, p)))
EIGHT_BITS = sampler(goes_up=lambda lanes, p: (lanes >> 8) < (256 * p).round())
TWO_STEPS = sampler(goes_up=lambda lanes, p: 2 * bernoulli(lanes, p / 2))
ONE_NUMBER_A_ROW = sampler(
    lanes=lambda lanes, weight, member: lanes.view(weight.shape)[:, :1].expand_as(weight).flatten()
)
ONE_NUMBER_A_WORD = sampler(lanes=lambda lanes, weight, member: lanes[::2].repeat_interleave(2))
ONE_NUMBER_A_BLOCK = sampler(lanes=lambda lanes, weight, member: lanes[::8].repeat_interleave(8))
NAME_IGNORED = sampler(key=lambda seed, name, member: (seed, "", member))
MEMBER_IGNORED = sampler(key=lambda seed, name, member: (seed, name, 0))
HIGH_SEED_IGNORED = sampler(key=lambda seed, name, member: (seed % 2**32, name, member))
COUPLING_NOT_WRAPPED = sampler(
    key=lambda seed, name, member: (seed, name, 0),
    lanes=lambda lanes, weight, member: lanes + 40503 * member,
)


def errors(draw: Draw, v: float, seed: int = 0, name: str = "a.weight", member: int = 0) -> Tensor:
    """code − v for N weights of the value v: float64 [N]."""
    weight = torch.full((ROWS, COLUMNS), v)
    weight[-1, -1] = 15
    return draw(weight, seed, name, member).double().flatten()[:-1] - weight.double().flatten()[:-1]


def upward_probability(v: float) -> float:
    """v − ⌊v⌋ of the float32 nearest to v."""
    exact = float(np.float32(v))
    return exact - math.floor(exact)


# 3.0015: a probability that a threshold of eight bits rounds to none.
VALUES = [3.0015, 3.3, -2.3, -7.5, 0.9]


def check_mean(draw: Draw) -> None:
    """An error has the variance p(1 − p), its mean over n the standard error √(p(1 − p)/n); bias ≤ 2⁻¹⁷."""
    for v in VALUES:
        p = upward_probability(v)
        assert errors(draw, v).mean().abs() <= 5 * math.sqrt(p * (1 - p) / N) + 2**-17


def check_variance(draw: Draw) -> None:
    """E e² = p(1 − p); a single e² has the variance p(1 − p)⁴ + (1 − p)p⁴ − p²(1 − p)²."""
    for v in VALUES:
        p = upward_probability(v)
        spread = p * (1 - p) ** 4 + (1 - p) * p**4 - (p * (1 - p)) ** 2
        deviation = (errors(draw, v).square().mean() - p * (1 - p)).abs()
        assert deviation <= 5 * math.sqrt(spread / N) + 2**-17


def check_error_is_below_a_step(draw: Draw) -> None:
    weight = normal_weight(256, 256, key=3).mul_(4).clamp_(-15, 15)
    weight[-1, -1] = 15
    assert (draw(weight, 0, "w", 0).double() - weight.double()).abs().max() < 1


def check_correlation_is_zero(first: Tensor, second: Tensor, p: float) -> None:
    """The product of two independent errors over p(1 − p) has mean 0 and variance 1: ± 5/√n."""
    correlation = (first * second).mean() / (p * (1 - p))
    assert correlation.abs() <= 5 / math.sqrt(first.numel())


def check_elements_are_independent(draw: Draw) -> None:
    drawn = errors(draw, 3.3)
    for lag in (1, 2, 3, 4, 7, 8, 9, COLUMNS):
        check_correlation_is_zero(drawn[:-lag], drawn[lag:], upward_probability(3.3))


def check_names_are_independent(draw: Draw) -> None:
    p = upward_probability(3.3)
    drawn = [errors(draw, 3.3, name=name) for name in ("a.weight", "b.weight", "")]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        check_correlation_is_zero(drawn[first], drawn[second], p)


def check_members_are_independent(draw: Draw) -> None:
    p = upward_probability(3.3)
    drawn = [errors(draw, 3.3, member=member) for member in (0, 1, 2, 7)]
    for first, second in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        check_correlation_is_zero(drawn[first], drawn[second], p)


def check_seeds_are_independent(draw: Draw) -> None:
    p = upward_probability(3.3)
    drawn = [errors(draw, 3.3, seed=seed) for seed in (0, 1, 2**32)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        check_correlation_is_zero(drawn[first], drawn[second], p)


CHECKS = {
    "mean": check_mean,
    "variance": check_variance,
    "error below a step": check_error_is_below_a_step,
    "elements independent": check_elements_are_independent,
    "names independent": check_names_are_independent,
    "members independent": check_members_are_independent,
    "seeds independent": check_seeds_are_independent,
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_sampler_without_a_fault_passes_every_check(check: str) -> None:
    # Else a fault below might be caught for the sampler's sake and not for the fault's.
    CHECKS[check](RIGHT)


def test_the_mean_of_bernoulli_rounding_is_the_weight() -> None:
    check_mean(library("bernoulli"))


@pytest.mark.parametrize("check", ["mean", "variance", "error below a step"])
def test_rounding_under_a_spread_has_the_statistics_of_rounding_in_its_steps(check: str) -> None:
    CHECKS[check](library_with_spread)


def test_the_largest_weight_of_a_spread_that_is_no_divisor_of_q_has_no_bias() -> None:
    # It lies between 11 and 12, at q / 11.3 = 11.24. Were 11 the last code, it would be cut to it.
    weight, count = torch.full((1, 40_000), 3.0), 40_000
    codes, step = lpe.encode(weight, lpe.Int(8, spread=11.3))
    p = 127 / 11.3 - 11
    assert {11, 12} == set(codes.unique().tolist())
    assert float(step) == pytest.approx(11.3 * 3 / 127, rel=1e-6)
    assert abs(codes.double().mean() - 11 - p) < 5 * math.sqrt(p * (1 - p) / count)
    cut = codes.clamp(-11, 11).double()
    assert abs(cut.mean() - 11 - p) > 5 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(
    "faulty", [FLOOR, NEAREST, WRONG_SIDE, EIGHT_BITS], ids=["floor", "nearest", "1 - p", "8 bits"]
)
def test_a_wrong_mean_is_caught(faulty: Draw) -> None:
    with pytest.raises(AssertionError):
        check_mean(faulty)


def test_the_variance_of_bernoulli_rounding_is_p_times_1_minus_p() -> None:
    check_variance(library("bernoulli"))


@pytest.mark.parametrize(
    "faulty",
    [FLOOR, NEAREST, WRONG_SIDE, TWO_STEPS, ONE_NUMBER_A_ROW],
    ids=["floor", "nearest", "1 - p", "two steps", "one number a row"],
)
def test_a_wrong_variance_is_caught(faulty: Draw) -> None:
    with pytest.raises(AssertionError):
        check_variance(faulty)


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_the_error_of_rounding_is_below_a_step(mode: str) -> None:
    check_error_is_below_a_step(library(mode, member_offset=1))


def test_an_error_of_a_step_or_more_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_error_is_below_a_step(TWO_STEPS)


@pytest.mark.parametrize("mode", ["bernoulli", "coupled"])
def test_elements_are_rounded_independently(mode: str) -> None:
    check_elements_are_independent(library(mode, member_offset=1))


@pytest.mark.parametrize(
    "faulty",
    [ONE_NUMBER_A_ROW, ONE_NUMBER_A_WORD, ONE_NUMBER_A_BLOCK],
    ids=["a row", "a word", "a block"],
)
def test_a_random_number_shared_by_elements_is_caught(faulty: Draw) -> None:
    with pytest.raises(AssertionError):
        check_elements_are_independent(faulty)


@pytest.mark.parametrize("mode", ["bernoulli", "coupled"])
def test_tensors_of_other_names_are_rounded_independently(mode: str) -> None:
    check_names_are_independent(library(mode, member_offset=1))


def test_a_name_that_is_ignored_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_names_are_independent(NAME_IGNORED)


def test_members_are_rounded_independently() -> None:
    check_members_are_independent(library("bernoulli"))


@pytest.mark.parametrize("faulty", [MEMBER_IGNORED, library("coupled")], ids=["ignored", "coupled"])
def test_members_that_share_random_numbers_are_caught(faulty: Draw) -> None:
    with pytest.raises(AssertionError):
        check_members_are_independent(faulty)


@pytest.mark.parametrize("mode", ["bernoulli", "coupled"])
def test_seeds_are_rounded_independently(mode: str) -> None:
    check_seeds_are_independent(library(mode, member_offset=1))


def test_the_high_half_of_a_seed_that_is_ignored_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_seeds_are_independent(HIGH_SEED_IGNORED)


# The bias exactly: over all 65536 random numbers, in place of a sample of them

Round = Callable[[Tensor, Tensor], Tensor]


def round_to_int8(v: Tensor, lanes: Tensor) -> Tensor:
    return codes_of(v, torch.ones_like(v), 8, "bernoulli", lanes)


def check_exact_bias(round_values: Round) -> None:
    """T is within ½ of 65536·p, so the mean over all random numbers is within 2⁻¹⁷ of the weight."""
    halves = (torch.tensor([0.5, 1.5, 2.5, 1000.5, 65534.5, 65535.5]) / 65536).float()
    values = torch.cat([normal_weight(40, key=8) * 20, halves, -halves])
    values = values.clamp(-126, 126)[:, None].expand(-1, 65536)
    means = round_values(values, torch.arange(65536)).double().mean(dim=1)
    assert (means - values[:, 0].double()).abs().max() <= 2**-17


def test_the_bias_over_all_random_numbers_is_at_most_2_to_the_minus_17() -> None:
    check_exact_bias(round_to_int8)


@pytest.mark.parametrize(
    "faulty",
    [
        lambda v, lanes: v.floor() + (lanes < ((v - v.floor()) * 65536).floor()),
        lambda v, lanes: v.floor() + (lanes <= ((v - v.floor()) * 65536).round()),
        lambda v, lanes: v.floor() + ((lanes >> 8) < ((v - v.floor()) * 256).round()),
    ],
    ids=["threshold floored", "r <= T", "8 bits"],
)
def test_a_threshold_that_is_off_is_caught(faulty: Round) -> None:
    with pytest.raises(AssertionError):
        check_exact_bias(faulty)


def test_the_bias_at_int8_with_any_step_is_at_most_2_to_the_minus_17_and_float32s_2_to_the_minus_16() -> None:
    # 1/Δ and w·(1/Δ) are each rounded once, to a relative 2⁻²⁴: 2·127·2⁻²⁴ < 2⁻¹⁶ of a step.
    step = torch.rand(60, generator=torch.Generator().manual_seed(1)) + 0.5
    weight = step * torch.empty(60).uniform_(-126, 126, generator=torch.Generator().manual_seed(2))
    wide_weight, wide_step = (t[:, None].expand(-1, 65536) for t in (weight, step))
    codes = codes_of(wide_weight, wide_step, 8, "bernoulli", torch.arange(65536))
    bias = codes.double().mean(dim=1) - weight.double() / step.double()
    assert bias.abs().max() <= 2**-17 + 2**-16


# Coupled members: each alone is BSR, together they are spread

COUPLED_MEMBERS = [1, 2, 13]


@pytest.mark.parametrize("member", COUPLED_MEMBERS)
def test_the_mean_of_a_coupled_member_is_the_weight(member: int) -> None:
    check_mean(library("coupled", member_offset=member))


@pytest.mark.parametrize("member", COUPLED_MEMBERS)
def test_the_variance_of_a_coupled_member_is_p_times_1_minus_p(member: int) -> None:
    check_variance(library("coupled", member_offset=member))


def fault_of_member(member: int) -> Draw:
    return lambda weight, seed, name, _: COUPLING_NOT_WRAPPED(weight, seed, name, member)


@pytest.mark.parametrize("check", [check_mean, check_variance])
def test_a_coupling_that_does_not_wrap_round_is_caught(check: Callable[[Draw], None]) -> None:
    with pytest.raises(AssertionError):
        check(fault_of_member(1))


def variance_of_the_mean(draw: Draw, members: int) -> float:
    """Mean squared error of the mean of the members' codes, over weights with p uniform in [0, 1)."""
    weight = torch.rand((256, 256), generator=torch.Generator().manual_seed(4)) * 28 - 14
    weight[-1, -1] = 15
    mean = torch.stack([draw(weight, 0, "w", member) for member in range(members)]).double().mean(dim=0)
    return float((mean - weight.double()).square().mean())


def check_mean_of_members_is_less_spread(draw: Draw) -> None:
    """Independent members' mean has the variance E p(1 − p)/M = 1/(6M); coupled members' less than ⅔ of it.

    An upper limit, far from both: the standard error of either figure is below 1 % at 65,536 weights.
    """
    for members in (2, 3, 4, 8, 16):
        assert variance_of_the_mean(draw, members) < 2 / 3 / (6 * members)


def test_the_mean_of_coupled_members_varies_less_than_that_of_independent_ones() -> None:
    check_mean_of_members_is_less_spread(library("coupled"))


@pytest.mark.parametrize("faulty", [library("bernoulli"), MEMBER_IGNORED], ids=["independent", "all alike"])
def test_members_that_are_not_coupled_are_caught(faulty: Draw) -> None:
    with pytest.raises(AssertionError):
        check_mean_of_members_is_less_spread(faulty)


# Golden values: a change here changes every ensemble that anyone has drawn

GOLDEN_WEIGHT = ((torch.arange(24) * 7 % 24) - 11.5).view(3, 8) / 8
GOLDEN_CODES: dict[tuple[str, int], list[list[int]]] = {
    ("nearest", 0): [[-7, -3, 2, 6, -5, 0, 4, -6], [-2, 2, 7, -4, 0, 5, -6, -2], [3, 7, -3, 1, 5, -5, -1, 3]],
    ("bernoulli", 0): [
        [-7, -3, 2, 6, -5, 0, 4, -6],
        [-2, 2, 7, -5, 0, 5, -6, -2],
        [3, 7, -4, 1, 5, -5, -1, 4],
    ],
    ("bernoulli", 2): [
        [-7, -2, 2, 6, -4, 0, 4, -7],
        [-2, 2, 7, -4, 1, 5, -7, -2],
        [3, 7, -3, 1, 5, -5, -1, 4],
    ],
    ("coupled", 2): [
        [-7, -2, 2, 6, -5, -1, 4, -6],
        [-2, 2, 7, -4, 0, 5, -6, -2],
        [3, 7, -4, 1, 5, -5, -1, 3],
    ],
}
GOLDEN_STEPS = [["0x1.a4924a0000000p-3"], ["0x1.8000000000000p-3"], ["0x1.a4924a0000000p-3"]]


@pytest.mark.parametrize(("mode", "member"), GOLDEN_CODES)
def test_the_codes_of_a_small_weight_are_pinned(mode: str, member: int) -> None:
    codes = lpe.encode(GOLDEN_WEIGHT, lpe.Int(4), mode, 2**40 + 5, "layer.weight", member)[0]
    assert codes.tolist() == GOLDEN_CODES[mode, member]


def test_the_steps_of_a_small_weight_are_pinned() -> None:
    scales = lpe.encode(GOLDEN_WEIGHT, lpe.Int(4))[1]
    assert [[float(step).hex() for step in row] for row in scales] == GOLDEN_STEPS


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float16, 60000.0), (torch.bfloat16, 3e38), (torch.float32, 3e38)]
)
def test_a_spread_whose_last_code_the_weights_dtype_cannot_hold_is_refused(
    dtype: torch.dtype, largest: float
) -> None:
    weight = torch.tensor([[largest, 10.0, -5.0]]).to(dtype)  # the last code of 2 is 1.57 times the largest
    with pytest.raises(lpe.InputError, match=f"the last code of int8.100 is .*, beyond {dtype}"):
        lpe.round_weights(weight, lpe.Int(8, spread=100))
    with pytest.raises(lpe.InputError, match="the last code of int8.100 is"):
        lpe.LowPrecisionEnsemble(with_weight(weight), lpe.Int(8, spread=100), 2)
    assert bool(lpe.round_weights(weight, lpe.Int(8, spread=63.5)).isfinite().all())  # at its very end
    assert bool(lpe.round_weights(weight / 2, lpe.Int(8, spread=100)).isfinite().all())


def with_weight(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer
