"""One network of as many bits as several members, which claim C13 compares them with."""

import torch
from torch import nn

from reproduce.study.measurements import _InBFloat16


def test_a_network_in_bfloat16_has_bfloat16s_values_and_the_model_stays() -> None:
    net = nn.Linear(5, 3)
    before = net.weight.detach().clone()
    weight = _InBFloat16(net)[0].state_dict()["weight"]
    assert torch.equal(weight, before.to(torch.bfloat16).float())
    assert not torch.equal(weight, before)
    assert torch.equal(net.weight, before)


def test_a_network_in_bfloat16_takes_16_bits_a_number() -> None:
    assert _InBFloat16(nn.Linear(5, 3)).memory_bits() == 16 * (5 * 3 + 3)
