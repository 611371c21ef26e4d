"""Pooled batch norms are torch's; across processes, see test_processes.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lpe.training.pooled_norms import PooledNorms


def alone(values: Tensor) -> Tensor:
    """The sum over one process."""
    return values


def values(*shape: int) -> Tensor:
    return 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Activated(nn.BatchNorm2d):
    """A batch norm of its own forward pass, as timm's."""

    def forward(self, input: Tensor) -> Tensor:
        out = nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, True, 0.3, self.eps
        )
        return out.relu()


NORMS = {
    "features": (lambda: nn.BatchNorm1d(4), (6, 4)),
    "sequences": (lambda: nn.BatchNorm1d(4, momentum=0.3), (3, 4, 5)),
    "images": (lambda: nn.BatchNorm2d(4, eps=0.1), (3, 4, 2, 5)),
    "an average of all": (lambda: nn.BatchNorm2d(4, momentum=None), (3, 4, 2, 5)),
    "no weights": (lambda: nn.BatchNorm2d(4, affine=False), (3, 4, 2, 5)),
    "no statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (3, 4, 2, 5)),
    "another's forward": (lambda: Activated(4), (3, 4, 2, 5)),
}


def run(kind: str, pooled: bool) -> list[Tensor]:
    """Return outputs, the inputs' gradient, the weights' gradients and the buffers after two passes."""
    make, shape = NORMS[kind]
    norm, inputs = make().double(), values(*shape).requires_grad_()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(values(*parameter.shape))
    for _ in range(2):
        if pooled:
            with PooledNorms(alone, True):
                out = norm(inputs)
        else:
            out = norm(inputs)
    (out * values(*shape).flip(0)).sum().backward()
    gradients = [each.grad for each in (inputs, *norm.parameters())]
    assert all(each is not None for each in gradients)
    return [out.detach(), *[each for each in gradients if each is not None], *norm.buffers()]


@pytest.mark.parametrize("kind", NORMS)
def test_of_one_process_it_is_torchs(kind: str) -> None:
    torch.testing.assert_close(run(kind, True), run(kind, False), rtol=1e-10, atol=1e-10)


def test_in_eval_mode_it_is_torchs_to_the_bit() -> None:
    norm = nn.BatchNorm1d(4).double().eval()
    with PooledNorms(alone, True):
        found = norm(values(6, 4))
    assert torch.equal(found, norm(values(6, 4)))


def test_few_bits_stay_and_are_summed_in_more() -> None:
    norm, inputs = nn.BatchNorm1d(4), values(512, 4).bfloat16()
    with PooledNorms(alone, True):
        found = norm(inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(norm.running_mean, 0.1 * inputs.float().mean(0))


def test_one_value_a_channel_has_no_variance() -> None:
    with PooledNorms(alone, True), pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.functional.batch_norm(values(1, 4), None, None, training=True)


def test_examples_that_do_not_count_change_nothing() -> None:
    others = {"sums": [torch.full((1,), 6.0), values(6, 4).sum(0), None]}

    def summed(own: Tensor) -> Tensor:
        """Add what another process of six examples has."""
        place = others["sums"].pop(0)
        if place is None:
            centred = values(6, 4) - values(6, 4).mean(0)
            place = centred.square().sum(0)
        return own + place

    norm = nn.BatchNorm1d(4, momentum=1.0).double()
    with PooledNorms(summed, False):
        norm(100 + values(2, 4))
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, values(6, 4).mean(0))
    torch.testing.assert_close(norm.running_var, values(6, 4).var(0))
