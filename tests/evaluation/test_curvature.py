"""The Fisher diagonal: a known one, and that the model is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.evaluation.curvature import fisher_diagonal

X = torch.tensor([1.0, -2.0])
EXAMPLES = 2000
ODDS = 0.25
"""Of class 1 to class 0, so that p = .2."""


def logistic() -> nn.Module:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, math.log(ODDS)]))
    return model


def check_the_known_fisher(found: dict[str, Tensor]) -> None:
    """E[(∂/∂w_cj)²] = x_j² p (1 − p) for both classes; 1{y = c} − p is .8 a fifth of the time, else −.2.

    Its square has the std .24, so the mean of 2,000 the standard error .0054; 5 of them are allowed.
    """
    p = ODDS / (1 + ODDS)
    error = 5 * math.sqrt(p * (1 - p)) * (1 - 2 * p) / math.sqrt(EXAMPLES)
    scale = torch.stack([X.square(), X.square()])
    torch.testing.assert_close(found["weight"] / scale, torch.full((2, 2), p * (1 - p)), rtol=0, atol=error)
    torch.testing.assert_close(found["bias"], torch.full((2,), p * (1 - p)), rtol=0, atol=error)


def test_the_fisher_of_a_logistic_regression_is_x_squared_p_times_1_minus_p() -> None:
    check_the_known_fisher(fisher_diagonal(logistic(), X.expand(EXAMPLES, 2)))


def test_labels_that_are_the_data_s_would_be_seen() -> None:
    # The injected fault: the empirical Fisher, here of examples that are all class 0.
    model = logistic()
    nn.functional.cross_entropy(model(X[None]), torch.tensor([0])).backward()
    found = {name: parameter.grad.square() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    with pytest.raises(AssertionError):
        check_the_known_fisher(found)


def test_weights_that_want_no_gradient_as_a_members_do_have_a_curvature_too() -> None:
    member = lpe.DeepEnsemble([logistic()])[0].requires_grad_(False)
    check_the_known_fisher(fisher_diagonal(member, X.expand(EXAMPLES, 2)))
    assert not any(parameter.requires_grad for parameter in member.parameters())


def test_no_gradient_is_left_in_the_model() -> None:
    model = logistic()
    fisher_diagonal(model, X.expand(3, 2))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_examples_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="inputs is empty"):
        fisher_diagonal(logistic(), torch.empty(0, 2))
