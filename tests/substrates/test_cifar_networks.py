"""The networks of CIFAR-10: sizes, the norm, and a trained point's known figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lpe
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import (
    EPSILON,
    RESNET20,
    VITS,
    ResNetShape,
    filter_response_norm,
    load_resnet_frn,
    resnet_frn,
    resnet_group_norm,
    small_vit,
)
from lpe.substrates.cifar_resnet import CifarResNet
from lpe.training.resident import predictions


@pytest.mark.parametrize(
    ("net", "weights"),
    [
        (resnet_frn(), 272_474),
        (resnet_group_norm(), 78_042),
        (small_vit(VITS["T"]), 57_898),
        (small_vit(VITS["S"]), 123_706),
        (small_vit(VITS["B"]), 214_090),
        (small_vit(VITS["L"]), 468_586),
    ],
)
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


# The Vision Transformer


def test_the_widths_differ_in_nothing_else_but_their_heads() -> None:
    assert [shape.width for shape in VITS.values()] == [32, 48, 64, 96]
    assert {replace(shape, width=1, heads=1) for shape in VITS.values()} == {
        replace(VITS["B"], width=1, heads=1)
    }


def test_every_head_is_16_wide() -> None:
    assert {shape.width / shape.heads for shape in VITS.values()} == {16}


def test_a_seed_is_a_vits_start_whatever_was_drawn_before() -> None:
    first = small_vit(seed=3).state_dict()
    torch.rand(1)
    again = small_vit(seed=3).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_another_seed_is_another_start_of_a_vit() -> None:
    one, other = (small_vit(seed=seed).state_dict() for seed in (3, 4))
    assert not any(torch.equal(one[name], other[name]) for name in one if one[name].std() > 0)


def test_making_a_vit_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    small_vit()
    assert torch.equal(torch.get_rng_state(), before)


def check_positional_std(embedding: Tensor) -> None:
    """The standard error of the std of n normal draws is std/√(2n); 5 of them are allowed."""
    std = VITS["B"].position_std
    assert abs(float(embedding.std()) - std) <= 5 * std / math.sqrt(2 * embedding.numel())


def test_a_vits_positional_embedding_starts_at_its_std() -> None:
    check_positional_std(small_vit().state_dict()["pos_embed"])


def test_a_vits_positional_embedding_at_timms_std_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_positional_std(small_vit(replace(VITS["B"], position_std=0.02)).state_dict()["pos_embed"])


def test_a_vit_has_as_many_classes_as_asked_for() -> None:
    assert small_vit(replace(VITS["T"], classes=7))(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"patch": 5}, "patch must divide 32, not 5"),
        ({"heads": 5}, "width must be a multiple of its 5 heads, not 64"),
        ({"depth": 0}, "depth must be a positive integer, not 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be a finite number above 0, not 0.0"),
        ({"position_std": -0.5}, "position_std must be a finite number ≥ 0, not -0.5"),
    ],
)
def test_a_vits_shape_that_cannot_be_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(lpe.InputError, match=words):
        replace(VITS["B"], **changed)


# Weights from files


def refusal(path: Path, weights: dict[str, Tensor]) -> str:
    """The one line about a file of these weights."""
    save_file(weights, path)
    with pytest.raises(lpe.InputError) as caught:
        load_resnet_frn(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_of_the_networks_weights_is_loaded_by_name(tmp_path: Path) -> None:
    weights = resnet_frn(seed=5).state_dict()
    save_file(dict(reversed(weights.items())), tmp_path / "w.safetensors")
    net = load_resnet_frn(tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    assert not net.training


def test_another_networks_weights_are_refused_with_three_names_of_each_kind(tmp_path: Path) -> None:
    line = refusal(tmp_path / "w.safetensors", CifarResNet(20).state_dict())
    assert "missing: norm1.weight, norm1.bias, layers.0.0.conv1.weight …" in line
    unexpected = sorted(set(CifarResNet(20).state_dict()) - set(resnet_frn().state_dict()))
    listed = line.partition("unexpected: ")[2].partition(" …")[0].split(", ")
    assert len(listed) == 3 and set(listed) <= set(unexpected)


def test_weights_of_another_width_are_refused_with_both_shapes(tmp_path: Path) -> None:
    line = refusal(tmp_path / "w.safetensors", resnet_frn(replace(RESNET20, width=8)).state_dict())
    assert "misshapen: conv1.weight [8, 3, 3, 3] (the model: [16, 3, 3, 3])" in line


def test_the_network_for_100_classes_is_refused_by_its_classes(tmp_path: Path) -> None:
    line = refusal(tmp_path / "w.safetensors", resnet_frn(replace(RESNET20, classes=100)).state_dict())
    assert "has 100 classes and CIFAR-10 has 10; give one trained on CIFAR-10" in line


def test_another_network_for_100_classes_is_refused_by_its_names(tmp_path: Path) -> None:
    other = resnet_group_norm(ResNetShape(blocks=1, classes=100))
    line = refusal(tmp_path / "w.safetensors", other.state_dict())
    assert "missing: layers.0.1.conv1.weight, " in line and "fc.weight [100, 64]" in line


def test_a_trained_point_has_its_known_figures(assets: Path) -> None:
    images = cifar.load(assets / "cifar10_jpeg_q75.npz")
    net = load_resnet_frn(assets / "cifar10_points" / "sgd-0.safetensors")
    chances = predictions(net, cifar.standardised(images.test[::20]))
    labels = images.test_labels[::20]
    # Of all 10,000 it is .4762 and .1348; of every twentieth these.
    assert float(-chances.gather(1, labels[:, None]).mean()) == pytest.approx(0.5653, abs=1e-3)
    assert float((chances.argmax(1) != labels).float().mean()) == pytest.approx(0.150, abs=1e-6)
