"""Codes, scales and weights that are not what rounding gives or takes are refused, alike on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lpe
from lpe.number_systems import kernels
from lpe.number_systems.grids import LowPrecision
from lpe.number_systems.packing import pack, unpack

SYSTEMS = [lpe.Int(4), lpe.Int(8), lpe.NF4(), lpe.Float(4, 3), lpe.Codebook([-1, 0, 2])]
SHAPE = (5, 7)


def coded(system: LowPrecision) -> tuple[Tensor, Tensor]:
    return lpe.encode(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), system)


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(lpe.InputError) as caught:
        lpe.decode(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Any:
    with kernels.use(request.param):
        yield request.param


OTHER = [torch.int16, torch.int32, torch.int64, torch.float32, torch.bool, torch.uint8, torch.int8]


@pytest.mark.parametrize("dtype", OTHER, ids=str)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_codes_of_another_dtype_are_refused_though_the_numbers_are_the_same(
    backend: str, system: LowPrecision, dtype: torch.dtype
) -> None:
    codes, scales = coded(system)
    if dtype == codes.dtype:
        assert lpe.decode(codes, scales, system).shape == SHAPE
        return
    said = refused(codes.to(dtype), scales, system)
    assert f"codes of {system.name} are {codes.dtype}" in said and str(dtype) in said


@pytest.mark.parametrize(
    ("system", "code", "told"),
    [
        (lpe.Int(4), 8, "codes of int4 are -7 to 7; there is"),
        (lpe.Int(4), -8, "codes of int4 are -7 to 7; there is -8 to"),
        (lpe.Int(8), -128, "codes of int8 are -127 to 127; there is -128 to"),
        (lpe.NF4(), 16, "codes of nf4 are 0 to 15; there is"),
        (lpe.Codebook([-1, 0, 2]), 3, "are 0 to 2; there is"),
    ],
)
def test_a_code_that_no_level_has_is_refused_with_it(
    backend: str, system: LowPrecision, code: int, told: str
) -> None:
    codes, scales = coded(system)
    codes[2, 3] = code
    said = refused(codes, scales, system)
    assert told in said and str(code) in said


@pytest.mark.parametrize("bad", [-1e-30, float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_negative_nan_or_infinite_is_refused_with_it(backend: str, bad: float) -> None:
    codes, scales = coded(lpe.Int(4))
    scales[3] = bad
    assert f"a scale is {bad:g}; scales are finite and not negative" in refused(codes, scales, lpe.Int(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_scales_of_another_dtype_are_refused(backend: str, dtype: torch.dtype) -> None:
    codes, scales = coded(lpe.Int(4))
    assert "scales of int4 are torch.float32 and dense, as encode gives them" in refused(
        codes, scales.to(dtype), lpe.Int(4)
    )


def test_codes_and_scales_without_values_are_refused() -> None:
    codes, scales = coded(lpe.Int(4))
    assert "scales of int4 are" in refused(codes, scales.to("meta"), lpe.Int(4))
    assert "not on the meta device" in refused(codes.to("meta"), scales, lpe.Int(4))
    assert "torch.sparse_coo" in refused(codes.to_sparse(), scales, lpe.Int(4))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 2), (4, 1)])
def test_scales_of_another_shape_are_refused(backend: str, shape: tuple[int, ...]) -> None:
    codes, _ = coded(lpe.Int(4))
    assert "[5, 1] expected" in refused(codes, torch.ones(shape), lpe.Int(4))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"codes": [1, 2]}, "codes must be a torch tensor, not [1, 2]"),
        ({"scales": 1.0}, "scales must be a torch tensor, not 1.0"),
        ({"system": "int4"}, "'int4' has no codes"),
        ({"system": lpe.FullPrecision()}, "has no codes"),
        ({"dtype": torch.int32}, "dtype must be one of"),
        ({"dtype": "float32"}, "dtype must be one of"),
        ({"output_axis": 2}, "output_axis 2 does not fit the shape [5, 7]"),
        ({"output_axis": "0"}, "output_axis '0' does not fit"),
    ],
)
def test_arguments_of_another_kind_are_refused(change: dict[str, Any], told: str) -> None:
    codes, scales = coded(lpe.Int(4))
    given = {"codes": codes, "scales": scales, "system": lpe.Int(4), **change}
    assert told in refused(**given)


def test_what_needs_a_gradient_or_is_no_contiguous_tensor_is_decoded() -> None:
    codes, scales = coded(lpe.Int(4))
    expected = lpe.decode(codes, scales, lpe.Int(4))
    strided = torch.stack([codes, codes], dim=-1)[..., 0]
    assert torch.equal(lpe.decode(strided, scales.requires_grad_(), lpe.Int(4)), expected)


WEIGHT = torch.randn(SHAPE)
BAD_WEIGHTS = {
    "list": ([1.0, 2.0], "the weight must be a torch tensor, not [1.0, 2.0]"),
    "array": (WEIGHT.numpy(), "must be a torch tensor"),
    "integers": (torch.ones(SHAPE, dtype=torch.int64), "is torch.int64; rounding takes floating-point"),
    "complex": (torch.ones(SHAPE, dtype=torch.complex64), "is torch.complex64"),
    "float8": (WEIGHT.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
    "sparse": (WEIGHT.to_sparse(), "is of layout torch.sparse_coo; rounding takes dense weights"),
    "meta": (WEIGHT.to("meta"), "is on the meta device, without values"),
}


@pytest.mark.parametrize("round_", [lpe.encode, lpe.round_weights])
@pytest.mark.parametrize("system", [lpe.Int(4), lpe.Int(4, clip="mse"), lpe.NF4()], ids=lambda s: s.name)
@pytest.mark.parametrize(("weight", "told"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_what_is_no_weight_is_refused(round_: Any, system: LowPrecision, weight: Any, told: str) -> None:
    with pytest.raises(lpe.InputError) as caught:
        round_(weight, system)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("round_", [lpe.encode, lpe.round_weights])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"system": "int4"}, "'int4' has no codes"),
        ({"system": {"*": lpe.Int(4)}}, "has no codes; give a number system that rounds"),
        ({"system": None}, "None has no codes"),
        ({"name": 5}, "name must be the parameter's name as text, not 5"),
        ({"name": None}, "name must be the parameter's name as text, not None"),
        ({"rounding": "up"}, "rounding must be one of nearest, bernoulli, coupled, not 'up'"),
        ({"rounding": ["nearest"]}, "rounding must be one of nearest, bernoulli, coupled, not ['nearest']"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"member": -1}, "member must be an integer"),
        ({"output_axis": 5}, "output_axis 5 does not fit"),
        ({"output_axis": 1, "channel_groups": 3}, "3 channel groups do not divide 5 inputs"),
        ({"channel_groups": 0}, "channel_groups must be a positive integer, not 0"),
    ],
)
def test_roundings_arguments_of_another_kind_are_refused(
    round_: Any, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(lpe.InputError) as caught:
        round_(**{"weight": WEIGHT, "system": lpe.Int(4), **change})
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_codes_of_another_dtype_are_not_packed() -> None:
    with pytest.raises(lpe.InputError, match="codes of int4 are torch.int8 and dense, .* not torch.int64"):
        pack(torch.ones(8, dtype=torch.int64), lpe.Int(4))


@pytest.mark.parametrize("count", [8, 1 << 17])
def test_codes_that_no_level_has_are_not_packed(count: int) -> None:
    with pytest.raises(lpe.InputError, match="codes of int4 are -7 to 7; there is 8 to 8"):
        pack(torch.full((count,), 8, dtype=torch.int8), lpe.Int(4))


@pytest.mark.parametrize("count", [8, 1 << 17])
@pytest.mark.parametrize("by", [-1, 1])
def test_bytes_of_another_number_are_not_unpacked(count: int, by: int) -> None:
    packed = pack(torch.zeros(count, dtype=torch.int8), lpe.Int(4))
    with pytest.raises(lpe.InputError, match=f"bytes do not hold {count} codes of 4 bits"):
        unpack(torch.zeros(len(packed) + by, dtype=torch.uint8), (count,), lpe.Int(4))


@pytest.mark.parametrize(
    "packed", [torch.zeros(4), torch.zeros(4, dtype=torch.int64), torch.zeros(2, 2).byte()]
)
def test_what_is_no_row_of_bytes_is_not_unpacked(packed: Tensor) -> None:
    with pytest.raises(lpe.InputError, match="packed codes are uint8 in one row"):
        unpack(packed, (8,), lpe.Int(4))
