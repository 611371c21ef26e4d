"""The networks of CIFAR-10: sizes, the norm, and a trained point's known figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lpe
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import (
    EPSILON,
    ResNetShape,
    filter_response_norm,
    resnet_frn,
    resnet_group_norm,
)
from lpe.substrates.loading import load_weights
from lpe.training.resident import predictions


@pytest.mark.parametrize(("net", "weights"), [(resnet_frn(), 272_474), (resnet_group_norm(), 78_042)])
def test_a_network_has_its_weights_and_a_logit_a_class(net: nn.Module, weights: int) -> None:
    assert sum(parameter.numel() for parameter in net.parameters()) == weights
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_norm_divides_by_the_root_of_the_mean_square_over_space() -> None:
    x = torch.tensor([[3.0, 1.0], [1.0, 5.0]]).view(1, 1, 2, 2)
    found = filter_response_norm(x, torch.tensor([2.0]), torch.tensor([0.5]))
    torch.testing.assert_close(found, 2 * x / (9 + EPSILON) ** 0.5 + 0.5)


def test_a_seed_is_a_start_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (resnet_frn(seed=seed).conv1.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shape_without_blocks_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="blocks must be 1 or more, not 0"):
        ResNetShape(blocks=0)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="16 channels have no 5 groups"):
        resnet_group_norm(groups=5)


def test_a_trained_point_has_its_known_figures(assets: Path) -> None:
    images = cifar.load(assets / "cifar10_jpeg_q75.npz")
    net = resnet_frn().eval()
    load_weights(net, assets / "cifar10_points" / "sgd-0.safetensors")
    chances = predictions(net, cifar.standardised(images.test[::20]))
    labels = images.test_labels[::20]
    # Of all 10,000 it is .4762 and .1348; of every twentieth these.
    assert float(-chances.gather(1, labels[:, None]).mean()) == pytest.approx(0.5653, abs=1e-3)
    assert float((chances.argmax(1) != labels).float().mean()) == pytest.approx(0.150, abs=1e-6)
