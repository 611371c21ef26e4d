"""FP8, FP6, FP4, NF4 and codebooks: their grids, and their rounding, against ml_dtypes, gfloat and formulas.

Every check runs twice: on the library, and, beside it, on a fault that it must catch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import lpe
from lpe.number_systems.grids import LowPrecision, grid_of
from lpe.number_systems.kernels import reference

# (ml_dtypes' type, gfloat's format, number of distinct finite values, the largest of them)
FORMATS: dict[str, tuple[Any, gfloat.FormatInfo, int, float]] = {
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, gfloat.formats.format_info_ocp_e4m3, 253, 448.0),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, gfloat.formats.format_info_ocp_e5m2, 247, 57344.0),
    "fp6_e3m2": (ml_dtypes.float6_e3m2fn, gfloat.formats.format_info_ocp_e3m2, 63, 28.0),
    "fp6_e2m3": (ml_dtypes.float6_e2m3fn, gfloat.formats.format_info_ocp_e2m3, 63, 7.5),
    "fp4_e2m1": (ml_dtypes.float4_e2m1fn, gfloat.formats.format_info_ocp_e2m1, 15, 6.0),
}
EVERY_FORMAT = pytest.mark.parametrize("name", FORMATS)

SYSTEMS: dict[str, LowPrecision] = {
    **{name: lpe.number_system(name) for name in FORMATS},  # type: ignore[dict-item]
    "nf4": lpe.NF4(),
    "no 0": lpe.Codebook([-1.0, -0.4, -0.1, 0.3, 1.0]),
    "two levels": lpe.Codebook([-1.0, 1.0]),
}
EVERY_SYSTEM = pytest.mark.parametrize("name", SYSTEMS)
ALL_LANES = torch.arange(65536)


def distinct(values: Sequence[float]) -> list[float]:
    """Distinct finite values, ascending; −0 is 0."""
    return sorted({value + 0.0 for value in values if math.isfinite(value)})


# The grids, value by value


def check_levels(levels: Sequence[float], name: str) -> None:
    kind, info, _, _ = FORMATS[name]
    patterns = np.arange(2**info.k, dtype=np.uint8)
    assert list(levels) == distinct(patterns.view(kind).astype(np.float64).tolist())
    assert list(levels) == distinct([gfloat.decode_float(info, int(code)).fval for code in patterns])


@EVERY_FORMAT
def test_the_levels_are_the_finite_values_that_ml_dtypes_and_gfloat_decode(name: str) -> None:
    check_levels(SYSTEMS[name].levels, name)


@pytest.mark.parametrize("fault", ["the largest missing", "no subnormals", "one bias more", "two zeros"])
@EVERY_FORMAT
def test_a_wrong_level_is_caught(name: str, fault: str) -> None:
    levels = SYSTEMS[name].levels
    smallest_normal = float(ml_dtypes.finfo(FORMATS[name][0]).smallest_normal)
    wrong = {
        "the largest missing": levels[:-1],
        "no subnormals": [x for x in levels if x == 0 or abs(x) >= smallest_normal],
        "one bias more": [x / 2 for x in levels],
        "two zeros": sorted([*levels, 0.0]),
    }[fault]
    with pytest.raises(AssertionError):
        check_levels(wrong, name)


@EVERY_FORMAT
def test_a_format_has_as_many_levels_as_it_has_finite_values_with_one_zero(name: str) -> None:
    _, _, count, largest = FORMATS[name]
    levels = SYSTEMS[name].levels
    assert (len(levels), levels.count(0.0), levels[-1], levels[0]) == (count, 1, largest, -largest)


def check_nf4(levels: Sequence[float]) -> None:
    """QLoRA's construction: quantiles of N(0, 1), 8 of them above 0 and 7 below, and 0, over the largest.

    Its outermost probability is ½(1 − 1/32 + 1 − 1/30); published to 7 digits, the levels to float32.
    """
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort([*above, 0.0, *below]) / above.max()
    np.testing.assert_allclose(levels, expected, rtol=0, atol=2e-7)


def test_nf4_has_the_quantiles_of_its_paper() -> None:
    check_nf4(lpe.NF4().levels)


@pytest.mark.parametrize("place", range(16))
def test_a_level_of_nf4_that_is_off_is_caught(place: int) -> None:
    levels = list(lpe.NF4().levels)
    levels[place] += 1e-6
    with pytest.raises(AssertionError):
        check_nf4(levels)


@EVERY_SYSTEM
def test_levels_are_ascending_and_exact_in_float32(name: str) -> None:
    levels = SYSTEMS[name].levels
    assert list(levels) == sorted(set(levels)) == [float(np.float32(level)) for level in levels]


# Nearest, against ml_dtypes' cast

Cast = Callable[[Tensor], Tensor]


def values_around(levels: Sequence[float]) -> Tensor:
    """The levels, the midpoints, the float32 on both sides of each, and 100,000 values of all magnitudes."""
    exact = np.array(levels, np.float32)
    middles = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    special = np.concatenate([exact, middles])
    beside = [np.nextafter(special, np.float32(end)) for end in (np.inf, -np.inf)]
    generator = np.random.default_rng(0)
    smallest = float(min(abs(level) for level in exact if level))
    spread = np.exp(generator.uniform(math.log(smallest / 8), math.log(levels[-1]), 100_000))
    signed = (spread * generator.choice([-1, 1], len(spread))).astype(np.float32)
    values = np.concatenate([special, *beside, signed]).clip(levels[0], levels[-1])
    return torch.from_numpy(values)


def library_nearest(name: str) -> Cast:
    def cast(values: Tensor) -> Tensor:
        # The largest level as the maximum makes the scale exactly 1.
        row = torch.cat([values, torch.tensor([SYSTEMS[name].levels[-1]])])[None]
        return lpe.round_weights(row, SYSTEMS[name], "nearest")[0, :-1]

    return cast


def check_nearest(cast: Cast, name: str) -> None:
    values = values_around(SYSTEMS[name].levels)
    expected = values.numpy().astype(FORMATS[name][0]).astype(np.float32)
    assert np.array_equal(cast(values).numpy(), expected)


@EVERY_FORMAT
def test_nearest_is_the_cast_of_ml_dtypes_bit_for_bit(name: str) -> None:
    check_nearest(library_nearest(name), name)


@pytest.mark.parametrize("fault", ["a float32 up", "a float32 down", "ties away", "flushed", "truncated"])
@EVERY_FORMAT
def test_a_cast_that_is_off_is_caught(name: str, fault: str) -> None:
    right = library_nearest(name)
    levels = torch.tensor(SYSTEMS[name].levels)
    smallest = float(levels[levels > 0].min())

    def down(values: Tensor) -> Tensor:
        return levels[torch.bucketize(values.abs(), levels, right=True) - 1] * values.sign()

    def wrong(values: Tensor) -> Tensor:
        away = torch.nextafter(values, torch.where(values < 0, -torch.inf, torch.inf))
        return {
            "a float32 up": lambda: right(
                torch.nextafter(values, torch.tensor(torch.inf)).clamp(max=levels[-1])
            ),
            "a float32 down": lambda: right(
                torch.nextafter(values, torch.tensor(-torch.inf)).clamp(min=levels[0])
            ),
            "ties away": lambda: right(away.clamp(levels[0], levels[-1])),
            "flushed": lambda: torch.where(values.abs() < 1.5 * smallest, 0.0, right(values)),
            "truncated": lambda: down(values),
        }[fault]()

    with pytest.raises(AssertionError):
        check_nearest(wrong, name)


@EVERY_FORMAT
def test_nearest_under_a_scale_of_a_power_of_two_is_the_scaled_cast(name: str) -> None:
    values = values_around(SYSTEMS[name].levels)
    expected = values.numpy().astype(FORMATS[name][0]).astype(np.float32)
    assert np.array_equal(library_nearest_scaled(name, values, 2.0**-9).numpy(), expected * 2.0**-9)


def library_nearest_scaled(name: str, values: Tensor, scale: float) -> Tensor:
    row = torch.cat([values, torch.tensor([SYSTEMS[name].levels[-1]])])[None] * scale
    return lpe.round_weights(row, SYSTEMS[name], "nearest")[0, :-1]


@pytest.mark.parametrize(
    ("levels", "weight", "rounded"),
    [
        # 0 at an even and at an odd place: in both, a tie goes to 0 and from 0's neighbour away from 0.
        ([-2.0, -1.0, 0.0, 1.0, 2.0], [-1.5, -0.5, 0.5, 1.5], [-2.0, 0.0, 0.0, 2.0]),
        ([-1.0, 0.0, 1.0, 2.0], [-0.5, 0.5, 1.5], [0.0, 0.0, 2.0]),
        # Without 0 its nearest level counts as even, the positive one of two.
        ([-2.0, -1.0, 1.0, 2.0], [-1.5, 0.0, 1.5], [-2.0, 1.0, 1.0]),
        ([-2.0, -1.5, 0.5, 1.5], [-1.75, -0.5, 1.0], [-2.0, 0.5, 0.5]),
    ],
)
def test_a_tie_in_a_codebook_goes_to_the_level_an_even_number_of_places_from_0(
    levels: list[float], weight: list[float], rounded: list[float]
) -> None:
    row = torch.tensor([[*weight, -2.0]])
    found = lpe.round_weights(row, lpe.Codebook(levels), "nearest")
    assert found[0, :-1].tolist() == rounded


# Bernoulli rounding, against gfloat


def kernel_values(name: str, values: Tensor, lanes: Tensor) -> Tensor:
    """The library's rounding of values [n] under given random numbers [n or m] at scale 1: float32 [n, m]."""
    grid = grid_of(SYSTEMS[name])
    table = reference.level_table(grid, torch.device("cpu"))
    wide, numbers = torch.broadcast_tensors(values[:, None], lanes)
    codes = reference.round_codes(wide, torch.ones_like(wide), grid, table, "bernoulli", numbers)
    return table[codes.long()]


def gfloats(name: str, values: Tensor, mode: gfloat.RoundMode, bits: Tensor) -> Tensor:
    """gfloat's stochastic rounding of values [n] under 16 random bits [n, m]: float64 [n, m]."""
    info = FORMATS[name][1]
    wide, numbers = np.broadcast_arrays(values.double().numpy()[:, None], bits.numpy())
    return torch.from_numpy(gfloat.round_ndarray(info, wide, mode, True, numbers, 16))


def probes(name: str, count: int = 12) -> Tensor:
    """Values between the levels: of all magnitudes, of both signs, subnormal, and at ¼ and ½ of a gap."""
    levels = SYSTEMS[name].levels
    chosen = values_around(levels)[-count:].tolist()
    above = sorted(level for level in levels if level > 0)
    halves = [
        above[0] / 4,
        above[0] / 2,
        -above[0] / 2,
        (above[-1] + above[-2]) / 2,
        -above[-1] + above[0] / 4,
    ]
    return torch.tensor(chosen + halves)


def check_against_gfloat(round_values: Callable[[str, Tensor, Tensor], Tensor], name: str) -> None:
    """Under every one of the 65,536 random numbers.

    gfloat rounds the magnitude, away from 0 where RTNE(2¹⁶δ) + bits ≥ 2¹⁶, δ the share of the gap. The
    library rounds the value, up where r < RTNE(2¹⁶p). So bits = 65535 − r above 0, and bits = r below it.
    """
    values = probes(name)
    bits = torch.where(values[:, None] > 0, 65535 - ALL_LANES, ALL_LANES)
    expected = gfloats(name, values, gfloat.RoundMode.Stochastic, bits)
    assert torch.equal(round_values(name, values, ALL_LANES).double(), expected)


@EVERY_FORMAT
def test_bernoulli_rounding_is_gfloats_stochastic_rounding_under_every_random_number(name: str) -> None:
    check_against_gfloat(kernel_values, name)


@pytest.mark.parametrize(
    "faulty",
    [
        lambda name, values, lanes: kernel_values(name, values, (lanes >> 8) * 257),
        lambda name, values, lanes: kernel_values(name, values, lanes + 1),
        lambda name, values, lanes: -kernel_values(name, -values, lanes),
        lambda name, values, lanes: library_nearest(name)(values)[:, None].expand(-1, 65536),
    ],
    ids=["8 bits", "r <= T", "by magnitude", "nearest"],
)
@EVERY_FORMAT
def test_random_numbers_that_are_used_otherwise_are_caught(name: str, faulty: Any) -> None:
    with pytest.raises(AssertionError):
        check_against_gfloat(faulty, name)


DRAWS = 1 << 16


def library_draws(name: str, values: Tensor) -> Tensor:
    """DRAWS draws of each value at scale 1, under the library's own random numbers: float32 [n, DRAWS]."""
    system = SYSTEMS[name]
    column = torch.tensor([[grid_of(system).largest]])
    return torch.stack(
        [
            lpe.round_weights(torch.cat([value.expand(1, DRAWS), column], dim=1), system, name=str(index))[
                0, :-1
            ]
            for index, value in enumerate(values)
        ]
    )


def check_probabilities(draws: Callable[[str, Tensor], Tensor], name: str, mode: gfloat.RoundMode) -> None:
    """A frequency over n draws has the standard error √(p(1 − p)/n); gfloat's modes differ by up to 2⁻¹⁶."""
    values = probes(name)
    lower = kernel_values(name, values, torch.tensor([65536]))
    p = (gfloats(name, values, mode, ALL_LANES[None]) > lower).double().mean(dim=1)
    frequency = (draws(name, values) > lower).double().mean(dim=1)
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / DRAWS).sqrt() + 2.0**-16).all()


STOCHASTIC = pytest.mark.parametrize(
    "mode",
    [gfloat.RoundMode.Stochastic, gfloat.RoundMode.StochasticFast, gfloat.RoundMode.StochasticFastest],
    ids=lambda mode: mode.name,
)


@STOCHASTIC
@EVERY_FORMAT
def test_frequencies_are_the_probabilities_of_gfloats_stochastic_modes(
    name: str, mode: gfloat.RoundMode
) -> None:
    check_probabilities(library_draws, name, mode)


def always_nearest(name: str, values: Tensor) -> Tensor:
    return library_nearest(name)(values)[:, None].expand(-1, DRAWS)


def mirrored(name: str, values: Tensor) -> Tensor:
    """Up with probability 1 − p."""
    low, high = (kernel_values(name, values, torch.tensor([lane])) for lane in (65536, -1))
    return low + high - library_draws(name, values)


@pytest.mark.parametrize("faulty", [always_nearest, mirrored])
@EVERY_FORMAT
def test_another_probability_is_caught(name: str, faulty: Callable[[str, Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_probabilities(faulty, name, gfloat.RoundMode.Stochastic)


# The mean and the variance on every system, NF4 and codebooks too

Exact = Callable[[str, Tensor, Tensor], Tensor]
Moment = Callable[[Exact, str], None]


def between(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values in every gap of a system at five places, and their neighbours: float32 [n] each."""
    levels = torch.tensor(SYSTEMS[name].levels)
    shares = torch.tensor([0.003, 0.25, 0.4, 0.77, 0.999])
    gaps = torch.arange(0, len(levels) - 1, max(1, len(levels) // 6))
    low, high = (levels[gaps + side][:, None].expand(-1, len(shares)).flatten() for side in (0, 1))
    return low + (high - low) * shares.repeat(len(gaps)), low, high


def check_mean(round_values: Exact, name: str) -> None:
    """T is within ½ of 65536·p; p is off by float32's rounding, 3·2⁻²⁴: together below 2⁻¹⁶ of the gap."""
    values, low, high = between(name)
    bias = round_values(name, values, ALL_LANES).double().mean(dim=1) - values.double()
    assert (bias.abs() <= 2.0**-16 * (high - low).double()).all()


def check_variance(round_values: Exact, name: str) -> None:
    """(hi − lo)²·p(1 − p), which the 16 bits of p move by at most 2⁻¹⁶·(hi − lo)²."""
    values, low, high = (tensor.double() for tensor in between(name))
    drawn = round_values(name, values.float(), ALL_LANES).double()
    p = (values - low) / (high - low)
    expected = (high - low).square() * p * (1 - p)
    off = (drawn - values[:, None]).square().mean(dim=1) - expected
    assert (off.abs() <= 2.0**-15 * (high - low).square()).all()


@EVERY_SYSTEM
def test_the_mean_of_bernoulli_rounding_is_the_value(name: str) -> None:
    check_mean(kernel_values, name)


@EVERY_SYSTEM
def test_the_variance_of_bernoulli_rounding_is_the_squared_gap_times_p_times_1_minus_p(name: str) -> None:
    check_variance(kernel_values, name)


def far_neighbour(name: str, values: Tensor, lanes: Tensor) -> Tensor:
    """Without bias, but to the lower neighbour's lower neighbour or the upper one's upper one."""
    levels = torch.tensor(SYSTEMS[name].levels)
    index = torch.bucketize(values, levels, right=True) - 1
    low, high = levels[(index - 1).clamp(min=0)], levels[(index + 2).clamp(max=len(levels) - 1)]
    p = (values - low) / (high - low)
    up = lanes < (65536 * p).round()[:, None]
    return torch.where(up, high[:, None], low[:, None])


def half(name: str, values: Tensor, lanes: Tensor) -> Tensor:
    """Up with probability ½."""
    low, high = (kernel_values(name, values, torch.tensor([lane])) for lane in (65536, -1))
    return torch.where(lanes < 32768, high, low)


@pytest.mark.parametrize("check", [check_mean, check_variance])
@EVERY_SYSTEM
def test_a_probability_of_one_half_is_caught(name: str, check: Moment) -> None:
    with pytest.raises(AssertionError):
        check(half, name)


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "two levels"])
def test_neighbours_that_are_not_the_nearest_are_caught_by_the_variance(name: str) -> None:
    with pytest.raises(AssertionError):
        check_variance(far_neighbour, name)


@EVERY_SYSTEM
def test_the_library_draws_what_its_kernel_rounds_at_scale_1(name: str) -> None:
    # So that the exact moments above are those of members.
    values = between(name)[0][:, None].expand(-1, 1 << 12)
    rows = torch.cat([values, torch.full((len(values), 1), grid_of(SYSTEMS[name]).largest)], dim=1)
    error = lpe.round_weights(rows, SYSTEMS[name])[:, :-1].double() - values.double()
    low, high = between(name)[1:]
    p = (between(name)[0] - low).double() / (high - low).double()
    spread = (high - low).double() * (p * (1 - p) / values.shape[1]).sqrt()
    assert (error.mean(dim=1).abs() <= 5 * spread + 2.0**-16 * (high - low)).all()


# Grid values, ends, groups of zeros


def grid_rows(name: str, scales: int = 4000) -> Tensor:
    """Every level times a scale, a row a scale of any mantissa: float32 [scales, levels]."""
    mantissas = torch.randint(0, 2**23, (scales,), generator=torch.Generator().manual_seed(1))
    scale = (torch.cat([mantissas, torch.tensor([0, 1, 2**23 - 1])]) | 120 << 23).to(torch.int32)
    return torch.tensor(SYSTEMS[name].levels) * scale.view(torch.float32)[:, None]


@pytest.mark.parametrize("lane", [0, 65535])
@EVERY_SYSTEM
def test_grid_values_stay_put_under_every_random_number(name: str, lane: int) -> None:
    # [r < T] is monotone in r, so the two extreme random numbers speak for all between them.
    weight, grid = grid_rows(name), grid_of(SYSTEMS[name])
    scale = weight.abs().amax(dim=1, keepdim=True) / torch.tensor(grid.largest)
    lanes = torch.full(weight.shape, lane)
    table = reference.level_table(grid, weight.device)
    codes = reference.round_codes(weight, (1 / scale).expand_as(weight), grid, table, "bernoulli", lanes)
    assert torch.equal(codes, torch.arange(len(grid.levels), dtype=torch.uint8).expand_as(codes))


@EVERY_SYSTEM
def test_rounded_weights_stay_put_when_they_are_rounded_again(name: str) -> None:
    weight = torch.randn(40, 25, generator=torch.Generator().manual_seed(1))
    rounded = lpe.round_weights(weight, SYSTEMS[name], seed=1)
    for rounding in ("nearest", "bernoulli", "coupled"):
        assert torch.equal(lpe.round_weights(rounded, SYSTEMS[name], rounding, seed=2, member=3), rounded)


@pytest.mark.parametrize("rounding", ["nearest", "bernoulli", "coupled"])
def test_weights_beyond_the_smaller_end_of_a_lopsided_codebook_become_that_end(rounding: str) -> None:
    weight = torch.tensor([[-4.0, 1.1, 2.0, 3.9, 4.0]])
    rounded = lpe.round_weights(weight, lpe.Codebook([-2.0, -1.0, 0.0, 0.5]), rounding)
    assert rounded[0].tolist() == [-4.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("rounding", ["nearest", "bernoulli", "coupled"])
@EVERY_SYSTEM
def test_a_group_of_zeros_is_rounded_to_zeros_also_where_there_is_no_level_0(
    name: str, rounding: str
) -> None:
    rounded = lpe.round_weights(torch.zeros(3, 5), SYSTEMS[name], rounding)
    assert torch.equal(rounded, torch.zeros(3, 5))


@EVERY_SYSTEM
def test_weights_whose_inverse_scale_is_infinite_have_the_code_nearest_to_0(name: str) -> None:
    codes, scales = lpe.encode(torch.tensor([[1e-44, -1e-44, 0.0]]), SYSTEMS[name], "bernoulli")
    nearest = min(SYSTEMS[name].levels, key=lambda level: (abs(level), -level))
    assert math.isinf(1.0 / scales) and codes.unique().tolist() == [SYSTEMS[name].levels.index(nearest)]


def test_zeros_among_others_are_rounded_without_bias_where_there_is_no_level_0() -> None:
    weight = torch.zeros(1, 1 << 16)
    weight[0, -1] = 1.0
    drawn = lpe.round_weights(weight, SYSTEMS["no 0"])[0, :-1].double()
    assert set(drawn.unique().tolist()) == {float(np.float32(-0.1)), float(np.float32(0.3))}
    # Variance ab of the values −a and b at mean 0.
    assert drawn.mean().abs() <= 5 * math.sqrt(0.1 * 0.3 / len(drawn)) + 0.4 * 2**-16


@EVERY_SYSTEM
def test_a_weights_rounding_does_not_depend_on_the_rows_after_it(name: str) -> None:
    weight = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    whole = lpe.round_weights(weight, SYSTEMS[name], seed=3, member=2)
    assert torch.equal(lpe.round_weights(weight[:4], SYSTEMS[name], seed=3, member=2), whole[:4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@EVERY_SYSTEM
def test_values_are_of_the_weights_dtype_and_finite_up_to_the_largest(name: str, dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max, 1e30)
    weight = torch.tensor([[largest, -largest, largest / 3, 1.0]], dtype=dtype)
    rounded = lpe.round_weights(weight, SYSTEMS[name])
    assert rounded.dtype == dtype and torch.isfinite(rounded).all()


def test_a_scale_beyond_float32_is_refused() -> None:
    with pytest.raises(lpe.InputError, match=r"beyond float32; multiply the codebook's levels"):
        lpe.encode(torch.tensor([[1e38, 1.0]]), lpe.Codebook([-0.01, 0.01]))


@pytest.mark.parametrize("code", [15, 255])
def test_a_code_that_no_level_has_is_refused_by_decode(code: int) -> None:
    codes, scales = torch.tensor([[0, code]], dtype=torch.uint8), torch.ones(1, 1)
    with pytest.raises(lpe.InputError, match=f"codes of fp4_e2m1 are 0 to 14; there is 0 to {code}"):
        lpe.decode(codes, scales, lpe.Float(2, 1))


# Golden values: a change here changes every ensemble that anyone has drawn

GOLDEN_WEIGHT = ((torch.arange(16) * 7 % 16) - 7.5).view(2, 8) / 8
GOLDEN_CODES: dict[str, list[list[int]]] = {
    "fp8_e4m3": [[0, 31, 250, 13, 247, 6, 239, 2], [221, 252, 19, 248, 9, 243, 3, 233]],
    "fp6_e3m2": [[0, 16, 61, 6, 59, 3, 56, 1], [47, 62, 9, 60, 5, 57, 1, 52]],
    "fp4_e2m1": [[0, 7, 14, 3, 13, 1, 11, 0], [8, 14, 4, 13, 3, 11, 0, 9]],
    "nf4": [[0, 7, 15, 4, 13, 2, 11, 0], [8, 15, 5, 14, 3, 12, 0, 9]],
}


@pytest.mark.parametrize("name", GOLDEN_CODES)
def test_the_codes_of_a_small_weight_are_pinned(name: str) -> None:
    codes = lpe.encode(GOLDEN_WEIGHT, SYSTEMS[name], "bernoulli", 2**40 + 5, "layer.weight", 2)[0]
    assert codes.tolist() == GOLDEN_CODES[name]
