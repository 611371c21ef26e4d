"""Steps of least squared error, against a search over thousands of steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lpe
from lpe.number_systems import clipping
from lpe.number_systems.clipping import least_squares_steps
from lpe.number_systems.layouts import Layout
from lpe.number_systems.rounding import scales_of

TRIED = 4000


def drawn(kind: str, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    normal = torch.randn(rows, columns, generator=generator)
    if kind == "tailed":  # a tenth of the weights ten times as large
        return normal * (1 + 9 * (torch.rand(rows, columns, generator=generator) < 0.1))
    return torch.rand(rows, columns, generator=generator) - 0.5 if kind == "uniform" else normal


def errors(weight: Tensor, steps: Tensor, q: int) -> Tensor:
    """Σ (w − Δ·c)² of each row, in float64."""
    weight, steps = weight.double(), steps.double().view(-1, 1)
    return ((weight - steps * (weight / steps).round().clamp(-q, q)) ** 2).sum(dim=1)


def least(weight: Tensor, q: int) -> Tensor:
    """The least error of each row under TRIED steps, a hundredth of absmax's to absmax itself."""
    absmax = weight.abs().amax(dim=1).double()
    tried = [errors(weight, absmax * (0.01 / q) ** (i / (TRIED - 1)), q) for i in range(TRIED)]
    return torch.stack(tried).amin(dim=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("columns", [8, 32, 300])
@pytest.mark.parametrize("kind", ["normal", "tailed", "uniform"])
def test_the_error_is_within_two_percent_of_the_least(kind: str, columns: int, bits: int) -> None:
    weight, q = drawn(kind, 24, columns), lpe.Int(bits).largest_code
    steps = least_squares_steps(weight, q, Layout((24, columns)), lpe.PerChannel())
    assert bool((errors(weight, steps, q) <= 1.02 * least(weight, q)).all())


@pytest.mark.parametrize("columns", [8, 32, 300])
def test_at_eight_bits_it_is_within_a_fifth(columns: int) -> None:
    weight = drawn("normal", 24, columns)
    steps = least_squares_steps(weight, 127, Layout((24, columns)), lpe.PerChannel())
    assert bool((errors(weight, steps, 127) <= 1.2 * least(weight, 127)).all())


@pytest.mark.parametrize("bits", range(2, 9))
def test_it_is_never_worse_than_absmax(bits: int) -> None:
    weight, q = drawn("tailed", 200, 16), lpe.Int(bits).largest_code
    steps = least_squares_steps(weight, q, Layout((200, 16)), lpe.PerChannel())
    absmax = weight.abs().amax(dim=1) / q
    # Up to the rounding of both to float32.
    assert bool((errors(weight, steps, q) <= errors(weight, absmax, q) * (1 + 1e-5)).all())


@pytest.mark.parametrize("largest", [1, 3, 7])
def test_weights_that_lie_on_a_grid_stay_there(largest: int) -> None:
    """Also where they leave the outer codes out, of which absmax knows nothing."""
    codes = torch.randint(-largest, largest + 1, (8, 40), generator=torch.Generator().manual_seed(0))
    codes[:, 0] = largest
    weight = codes * (0.01 + torch.arange(8)[:, None] / 7)
    rounded = lpe.round_weights(weight, lpe.Int(4, clip="mse"), "nearest")
    torch.testing.assert_close(rounded, weight, rtol=3e-7, atol=0)


AXES = [lpe.PerTensor(), lpe.PerChannel(), lpe.PerChannel(4), lpe.PerChannel(100), lpe.PerBlock(7)]


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("order", [(0, 1), (1, 1), (1, 3)])
def test_every_scale_group_has_the_step_of_its_own_weights(
    axis: lpe.PerTensor | lpe.PerChannel | lpe.PerBlock, order: tuple[int, int]
) -> None:
    weight = torch.randn(6, 10, 3, generator=torch.Generator().manual_seed(0))
    layout = Layout((6, 10, 3), *order)
    steps = scales_of(weight, lpe.Int(3, axis, clip="mse"), layout)
    assert tuple(steps.shape) == layout.scale_shape(axis)
    group = layout.scale_group(axis, 0, layout.numel, weight.device)
    for index, step in enumerate(steps.flatten()):
        own = weight.flatten()[group == index]
        alone = least_squares_steps(own, 3, Layout((len(own),)), lpe.PerTensor())
        # The order of a group's weights makes no difference: sums are of whole numbers.
        assert step == alone


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk", [64, 1 << 16])
def test_a_step_depends_on_neither_threads_nor_chunks(
    monkeypatch: pytest.MonkeyPatch, chunk: int, threads: int
) -> None:
    weight, layout = drawn("normal", 30, 500), Layout((30, 500))
    expected = [least_squares_steps(weight, 7, layout, axis) for axis in AXES]
    monkeypatch.setattr(clipping, "CHUNK", chunk)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = [least_squares_steps(weight, 7, layout, axis) for axis in AXES]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_dtypes_have_the_steps_of_their_float32_values(dtype: torch.dtype) -> None:
    weight, layout = drawn("normal", 4, 64).to(dtype), Layout((4, 64))
    steps = least_squares_steps(weight, 7, layout, lpe.PerChannel())
    assert steps.dtype == torch.float32
    assert torch.equal(steps, least_squares_steps(weight.float(), 7, layout, lpe.PerChannel()))


def test_zeros_and_the_smallest_weights_keep_absmaxs_step() -> None:
    weight = torch.stack([torch.zeros(5), torch.full((5,), 1e-39), torch.full((5,), 1e-45)])
    system = lpe.Int(4, clip="mse")
    found = scales_of(weight, system, Layout((3, 5)))
    assert torch.equal(found, scales_of(weight, lpe.Int(4), Layout((3, 5))))
    assert torch.equal(lpe.round_weights(weight, system), lpe.round_weights(weight, lpe.Int(4)))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_weight_has_no_error(shape: tuple[int, ...]) -> None:
    for axis in AXES:
        assert lpe.round_weights(torch.zeros(shape), lpe.Int(4, axis, clip="mse")).shape == shape


def test_clipped_weights_are_rounded_with_a_bias_and_the_others_without() -> None:
    weight = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    system = lpe.Int(3, clip="mse")
    _, steps = lpe.encode(weight, system)
    members = [lpe.round_weights(weight, system, member=m).double() for m in range(2000)]
    mean = torch.stack(members).mean(dim=0)
    beyond = weight.abs() > 3 * steps
    assert 0 < int(beyond.sum()) < 100
    torch.testing.assert_close(mean[beyond], (weight.sign() * 3 * steps)[beyond].double())
    # The std of a mean of 2000 is at most half a step over their square root; five of them.
    off = (mean - weight).abs()[~beyond].max()
    assert float(off) < 5 * float(steps) / 2 / 2000**0.5


def test_a_spread_takes_the_clipped_step_so_many_times() -> None:
    weight = drawn("tailed", 24, 300)
    spread, plain = lpe.Int(5, clip="mse", spread=1.7), lpe.Int(5, clip="mse")
    codes, steps = lpe.encode(weight, spread)
    assert torch.equal(steps, lpe.encode(weight, plain)[1] * torch.tensor(1.7))
    assert int(codes.abs().max()) == 9  # ⌈15 / 1.7⌉, though the largest weights lie beyond


def test_a_clip_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(lpe.InputError, match="clip must be one of absmax, mse, not 'percentile'"):
        lpe.Int(4, clip="percentile")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_step_is_the_same_on_the_gpu(bits: int) -> None:
    for kind in ("normal", "tailed", "uniform"):
        weight, layout = drawn(kind, 300, 700), Layout((300, 700))
        for axis in AXES:
            system = lpe.Int(bits, axis, clip="mse")
            there = scales_of(weight.cuda(), system, layout)
            assert torch.equal(there.cpu(), scales_of(weight, system, layout))
