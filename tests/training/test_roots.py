"""Square roots of exactly rounded operations, which no CPU computes in another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lpe.training.roots import as_everywhere, root

VALUES = torch.rand(100_001, generator=torch.Generator().manual_seed(0)) * 10


def rounded(values: np.ndarray) -> np.ndarray:
    """The same in numpy, each operation rounded exactly, as IEEE 754 has it."""
    one = values.dtype.type(1)
    return one / (one / np.sqrt(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_root_is_bit_by_bit_that_of_exactly_rounded_operations(dtype: torch.dtype) -> None:
    values = VALUES.to(dtype)
    assert np.array_equal(root(values).numpy(), rounded(values.numpy()))


def test_a_root_is_right_to_two_units_in_the_last_place() -> None:
    torch.testing.assert_close(root(VALUES).double(), VALUES.double().sqrt(), rtol=2 * 2**-23, atol=0)


def test_the_roots_of_nothing_and_of_infinity_are_themselves() -> None:
    assert root(torch.tensor([0.0, torch.inf])).tolist() == [0.0, torch.inf]


def test_meanwhile_a_tensors_own_method_gives_the_root() -> None:
    with as_everywhere():
        inside = VALUES.sqrt()
    assert torch.equal(inside, root(VALUES))


def test_afterwards_a_tensors_own_method_is_torchs_also_after_an_error() -> None:
    before = torch.Tensor.sqrt
    with pytest.raises(KeyError), as_everywhere():
        raise KeyError
    assert torch.Tensor.sqrt is before
