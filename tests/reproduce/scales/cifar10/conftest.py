"""Made-up images of CIFAR-10's numbers and shapes, and points of random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lpe.substrates import cifar
from lpe.substrates.cifar_networks import resnet_frn
from reproduce.scales.cifar10 import images

NAME = "CIFAR-10 (made up)"
METADATA = {"updates": "19840", "batch": "256", "l2": "0.0001"}


@pytest.fixture(scope="session")
def made_up() -> cifar.CifarImages:
    """60,000 images, of which 100 differ."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (100, 32, 32, 3), dtype=torch.uint8, generator=draws)

    def split(count: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(count)
        return pixels[places % 100], places % 10

    train, test = split(50_000), split(10_000)
    return cifar.CifarImages(NAME, "0" * 64, *train, *test)


@pytest.fixture
def there(made_up: cifar.CifarImages, monkeypatch: pytest.MonkeyPatch) -> cifar.CifarImages:
    """The made-up images, found where CIFAR-10 is looked for."""
    monkeypatch.setattr(images, "_images", lambda where: made_up)
    monkeypatch.setattr(images, "found", lambda: (made_up.name, made_up.sha256))
    images._data.cache_clear()
    yield made_up
    images._data.cache_clear()


@pytest.fixture
def weights() -> Callable[[int], dict[str, Tensor]]:
    """Random weights of a ResNet-20-FRN-SiLU, by seed."""
    return lambda seed: {k: v.clone() for k, v in resnet_frn(seed=seed).state_dict().items()}


@pytest.fixture
def folder(
    tmp_path: Path, weights: Callable[[int], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with points of every kind, of random weights."""

    def put(name: str, tensors: dict[str, Tensor], **more: str) -> None:
        save_file(tensors, tmp_path / f"{name}.safetensors", METADATA | more)

    def parts(**named: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{part}/{name}": value for part, held in named.items() for name, value in held.items()}

    for seed in range(4):
        put(f"sgd-{seed}", weights(seed))
        std = {name: torch.full_like(value, 0.01) for name, value in weights(seed).items()}
        put(f"ivon-{seed}", parts(mean=weights(seed), std=std))
    put("sgdnoaug-0", weights(9))
    mean = weights(0)
    variance = {name: torch.full_like(value, 1e-4) for name, value in mean.items()}
    deviations = {name: torch.full((3, *value.shape), 0.01) for name, value in mean.items()}
    put("swag-0", parts(mean=mean, variance=variance, deviations=deviations))
    put("csgld-0", parts(**{str(place): weights(place) for place in range(12)}))
    put("sse-0", parts(**{str(place): weights(place) for place in range(4)}))
    monkeypatch.setenv("LPE_POINTS", str(tmp_path))
    return tmp_path
