"""Stored weights give the same numbers, to float rounding, with any number of threads and any batch size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import lpe
from lpe.store import Store
from lpe.substrates import digits
from lpe.substrates.digits import DigitsNetwork

# The network computes in float32, 2⁻²⁴ a step and some hundred steps deep; other weights differ by 1e-2.
TOLERANCE = 1e-4
SHAPE = DigitsNetwork(patch=4, width=32, depth=2, heads=4, mlp_ratio=2.0, position_std=1.0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def evaluated(store: Store, batch: int) -> np.ndarray:
    net = digits.network(SHAPE, digits.CLASSES, seed=9)
    entry = store.get({"weights": "of this test"})
    assert entry is not None
    net.load_state_dict(entry.tensors)
    images, labels = digits.load(0).test
    batches = list(zip(images.split(batch), labels.split(batch), strict=True))
    frame = lpe.evaluate(lpe.LowPrecisionEnsemble(net, lpe.Int(4), 5), batches, calibrated=True)
    return frame.drop(columns=["size", "err", "ece"]).to_numpy()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.put({"weights": "of this test"}, digits.network(SHAPE, digits.CLASSES, seed=0).state_dict())
    return made


def test_one_and_two_threads_agree(store: Store, threads: None) -> None:
    torch.set_num_threads(1)
    one = evaluated(store, 360)
    torch.set_num_threads(2)
    np.testing.assert_allclose(evaluated(store, 360), one, rtol=TOLERANCE)


@pytest.mark.parametrize("batch", [7, 100])
def test_batch_sizes_agree(batch: int, store: Store) -> None:
    np.testing.assert_allclose(evaluated(store, batch), evaluated(store, 360), rtol=TOLERANCE)


def test_other_weights_do_not_agree(store: Store) -> None:
    before = evaluated(store, 360)
    store.put({"weights": "of this test"}, digits.network(SHAPE, digits.CLASSES, seed=1).state_dict())
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(evaluated(store, 360), before, rtol=TOLERANCE)
