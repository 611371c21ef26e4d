"""The values of single examples: their means are the metrics, they are in the order of the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lpe
from lpe.evaluation.examples import ExampleMetrics

EXAMPLES, CLASSES, SIZE = 40, 4, 3


def ensemble() -> lpe.DeepEnsemble:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lpe.DeepEnsemble([nn.Linear(6, CLASSES) for _ in range(SIZE)])


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = np.random.default_rng(0)
    inputs = torch.tensor(2 * draws.normal(size=(EXAMPLES, 6)), dtype=torch.float32)
    targets = torch.tensor(draws.integers(CLASSES, size=EXAMPLES))
    return list(zip(inputs.split(16), targets.split(16), strict=True))


@pytest.mark.parametrize("metric", ["nll", "ambiguity", "calibrated_nll"])
def test_the_mean_over_examples_is_the_metric(metric: str) -> None:
    examples = ExampleMetrics()
    frame = lpe.evaluate(ensemble(), batches(), (1, 3), examples=examples).set_index("size")
    sizes, values = examples.tables()[metric]
    assert values.shape == (len(sizes), EXAMPLES)
    np.testing.assert_allclose(
        values.double().mean(dim=1), frame.loc[sizes.tolist(), metric], rtol=1e-6, atol=1e-7
    )


def test_the_nll_is_kept_at_every_size_and_the_others_where_they_are_asked_for() -> None:
    examples = ExampleMetrics()
    lpe.evaluate(ensemble(), batches(), (1, 3), examples=examples)
    sizes = {metric: kept.tolist() for metric, (kept, _) in examples.tables().items()}
    assert sizes == {"nll": [1, 2, 3], "ambiguity": [1, 3], "calibrated_nll": [1, 3]}


def test_examples_are_in_the_order_of_the_batches() -> None:
    examples = ExampleMetrics()
    lpe.evaluate(ensemble(), batches(), examples=examples)
    log_probs, targets = lpe.member_log_probs(ensemble(), batches())
    expected = -log_probs[0].gather(1, targets[:, None])[:, 0]
    np.testing.assert_allclose(examples.tables()["nll"][1][0], expected, rtol=1e-5)


def test_it_changes_no_metric() -> None:
    plain = lpe.evaluate(ensemble(), batches(), (3,))
    assert lpe.evaluate(ensemble(), batches(), (3,), examples=ExampleMetrics()).equals(plain)


def test_what_is_no_place_for_them_is_refused() -> None:
    with pytest.raises(lpe.InputError, match=r"examples must be ExampleMetrics\(\) or None, not \[\]"):
        lpe.evaluate(ensemble(), batches(), examples=[])  # type: ignore[arg-type]


def test_a_cascade_keeps_none() -> None:
    with pytest.raises(lpe.InputError, match="a cascade keeps no values of examples"):
        lpe.evaluate(lpe.Cascade(ensemble(), (0.0, 0.9)), batches(), examples=ExampleMetrics())
