"""The digits' data: who is trained on, who fits temperatures, who is scored; and networks that differ."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lpe
from lpe.evaluation.metrics import fit_temperature, nll
from lpe.substrates import digits
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.scale import Data, Scale, Substrate

IMAGES = {each.name: each for each in DIGITS.substrates.values() if each.example == "image"}
every_source = pytest.mark.parametrize("name", IMAGES)


class Guesses(nn.Module):
    """A network that is far too sure of a class that hangs on one pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return 40 * flat @ torch.linspace(-1, 1, flat.shape[1] * 10).view(flat.shape[1], 10)


def log_probs(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(images).double().log_softmax(-1)


def scaled_nll(data: Data, fitted_on: str) -> float:
    """The test NLL at the temperature of these examples, from the definitions."""
    ((images, targets),) = getattr(data, fitted_on)
    temperature = fit_temperature(log_probs(Guesses(), images), targets)
    ((images, targets),) = data.test
    return nll((log_probs(Guesses(), images) / temperature).log_softmax(-1), targets)


@every_source
def test_an_image_trains_or_validates_or_tests(name: str) -> None:
    data = IMAGES[name].source.load(1)
    assert data.train is not None
    parts = [data.train, *data.validation, *data.test]
    assert [len(targets) for _, targets in parts] == [len(part) for part in digits.split_indices(1)]
    # No two scans are the same.
    assert len({image.numpy().tobytes() for images, _ in parts for image in images}) == 1797


@every_source
def test_the_temperature_is_fitted_on_validation_images_and_scored_on_test_images(name: str) -> None:
    data = IMAGES[name].source.load(1)
    found = data.scored.evaluate_scaled(lpe.DeepEnsemble([Guesses().eval()]))["nll"]
    expected = {part: scaled_nll(data, part) for part in ("validation", "test")}
    assert found == pytest.approx(expected["validation"], rel=1e-6)
    assert abs(expected["validation"] - expected["test"]) > 1e-5, "the fault would be told apart"


@every_source
def test_what_is_tuned_is_tuned_on_validation_images(name: str) -> None:
    data = IMAGES[name].source.load(1)
    ((images, targets),) = data.validation
    found = data.tuning.evaluate(lpe.DeepEnsemble([Guesses().eval()]), ())["nll"].iloc[0]
    assert found == pytest.approx(nll(log_probs(Guesses(), images), targets), rel=1e-6)


def parameters(substrate: Substrate) -> int:
    source = substrate.source
    return sum(each.numel() for each in source.network(source.classes, 0).parameters())


def test_the_networks_of_table_1_have_shapes_of_their_own_the_smallest_first(tiny: Scale) -> None:
    for scale in (DIGITS, tiny):
        counts = [parameters(each) for each in scale.sizes]
        assert counts == sorted(set(counts)) and len(counts) > 1


def test_the_network_of_the_other_figures_is_that_of_the_size_it_is_named_for() -> None:
    assert DIGITS.main is not None and DIGITS.own_size is not None
    assert DIGITS.own_size.short == "ViT-B"
    assert parameters(DIGITS.main) == parameters(DIGITS.own_size)
