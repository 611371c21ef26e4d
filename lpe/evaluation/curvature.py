"""The curvature of a mean loss along each weight, by the diagonal of its Fisher information."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.logits import cross_entropy
from lpe.modules import apply, device_of, named_tensors
from lpe.number_systems.streams import check_seed, generator


def fisher_diagonal(model: nn.Module, inputs: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return, by canonical name, the mean over examples of E[(∂ log p(y)/∂w)²], y drawn from the model.

    It is the diagonal of the Hessian of the mean loss but for a term that is 0 on average where the model is
    right (Martens 2020, "New insights and perspectives on the natural gradient method"). One label is drawn
    for each example, keyed by the seed: n examples give n squares to average.

    Args:
        model: in eval mode; it is copied. inputs: [examples, …], one backward
            pass each.

    Raises:
        InputError: no examples.
    """
    if len(inputs) == 0:
        raise InputError("inputs is empty; the Fisher information is a mean over examples")
    draws = generator("fisher", check_seed(seed), "", 0)
    inputs = inputs.to(device_of(model))
    with torch.no_grad():
        probabilities = apply(model, inputs).double().softmax(dim=-1).cpu()
    labels = torch.multinomial(probabilities, 1, generator=draws).to(inputs.device)
    # A copy: members' weights want no gradients.
    model = copy.deepcopy(model).requires_grad_()
    parameters = {e.name: e.tensor for e in named_tensors(model) if isinstance(e.tensor, nn.Parameter)}
    squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with torch.inference_mode(False), torch.enable_grad():
        for example, label in zip(inputs.split(1), labels, strict=True):
            loss = cross_entropy(apply(model, example), label)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for square, gradient in zip(squares.values(), gradients, strict=True):
                square += gradient.square()
    return {name: square / len(inputs) for name, square in squares.items()}
