"""LPE-BSR on pre-trained CIFAR-10 ResNets and real images; skipped without LPE_ASSETS.

About 35 s on one thread, two thirds of it ResNet-20 on the whole test set.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from torch import nn

import lpe
from lpe.substrates import cifar_resnet

SUBSET = 1000


@pytest.fixture(scope="session")
def resnet20(assets: Path) -> nn.Module:
    return cifar_resnet.load_resnet(assets, 20)


@pytest.fixture(scope="session")
def whole_set_metrics(assets: Path, resnet20: nn.Module) -> pd.Series:
    """FP32 ResNet-20 on all 10,000 images."""
    return lpe.evaluate(lpe.DeepEnsemble([resnet20]), cifar_resnet.test_batches(assets)).iloc[0]


@pytest.fixture(scope="session")
def subset(assets: Path) -> list:
    """Every tenth image: 100 of each class."""
    return cifar_resnet.test_batches(assets, SUBSET)


def rtn(net: nn.Module, bits: int, batches: list) -> pd.Series:
    return lpe.evaluate(lpe.LowPrecisionEnsemble(net, lpe.Int(bits), 1, rounding="nearest"), batches).iloc[0]


@pytest.fixture(scope="session")
def lpe_int4(resnet20: nn.Module, subset: list) -> pd.DataFrame:
    return lpe.evaluate(lpe.LowPrecisionEnsemble(resnet20, lpe.Int(4), 4), subset)


def test_resnet20_has_its_known_accuracy_on_the_whole_test_set(whole_set_metrics: pd.Series) -> None:
    # Half a printed digit, and one image of 10,000 that another JPEG decoder may turn.
    assert 1 - whole_set_metrics["err"] == pytest.approx(0.8103, abs=1.5e-4)


def test_resnet20_has_its_known_nll_on_the_whole_test_set(whole_set_metrics: pd.Series) -> None:
    assert whole_set_metrics["nll"] == pytest.approx(0.8788, abs=5e-5)


def test_resnet32_has_its_recorded_nll_on_every_tenth_image(assets: Path, subset: list) -> None:
    # Recorded with this code, which on all 10,000 images gives ResNet-32's known .8256 and .9227.
    net = cifar_resnet.load_resnet(assets, 32)
    assert lpe.evaluate(lpe.DeepEnsemble([net]), subset)["nll"][0] == pytest.approx(1.05585, abs=5e-5)


def test_the_test_set_has_as_many_images_of_each_class(subset: list) -> None:
    counts = pd.concat([pd.Series(labels.numpy()) for _, labels in subset]).value_counts()
    assert counts.to_dict() == {label: SUBSET // 10 for label in range(10)}


def test_convolutions_and_the_head_are_quantised_and_nothing_else(resnet20: nn.Module) -> None:
    plan = lpe.LowPrecisionEnsemble(resnet20, lpe.Int(4), 1).plan
    multiply = {
        f"{name}.weight"
        for name, module in resnet20.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert {planned.name for planned in plan if planned.quantised} == multiply


def test_four_int4_members_have_a_lower_nll_than_rtn(
    resnet20: nn.Module, subset: list, lpe_int4: pd.DataFrame
) -> None:
    assert lpe_int4["nll"].iloc[-1] < rtn(resnet20, 4, subset)["nll"]


def test_one_int4_member_has_a_higher_nll_than_rtn(
    resnet20: nn.Module, subset: list, lpe_int4: pd.DataFrame
) -> None:
    assert lpe_int4["nll"].iloc[0] > rtn(resnet20, 4, subset)["nll"]


def test_every_further_int4_member_lowers_the_nll(lpe_int4: pd.DataFrame) -> None:
    assert lpe_int4["nll"].is_monotonic_decreasing
