"""CIFAR-10's images as the scales have them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lpe.errors import InputError
from lpe.substrates import cifar
from lpe.substrates.cifar import CifarImages
from lpe.substrates.cifar_networks import ResNetShape
from reproduce.scales.cifar10 import images
from reproduce.scales.cifar10.images import FRNResNet, GroupNormResNet
from reproduce.study.scale import Classification, digest_of

NAME = "CIFAR-10 (made up)"
SOURCE = images.CifarImages(
    shape=FRNResNet(ResNetShape(blocks=1, width=4)),
    images=NAME,
    augment=False,
    training=100,
    validation=60,
    tuning=55,
    test=50,
    planes=20,
    planes_of="validation",
)


def _labels(batches: Iterable[Any]) -> torch.Tensor:
    return torch.cat([labels for _, labels in batches])


def test_training_images_are_the_first_of_the_seeds_split(there: CifarImages) -> None:
    data = SOURCE.load(3)
    assert data.train is not None
    index, _ = cifar.split_indices(3)
    assert torch.equal(data.train[1], there.train_labels[index[:100]])
    assert torch.equal(data.train[0], cifar.standardised(there.train[index[:100]]))


def test_validation_images_are_of_those_that_no_training_of_the_seed_has(there: CifarImages) -> None:
    data = SOURCE.load(3)
    _, index = cifar.split_indices(3)
    assert torch.equal(_labels(data.validation), there.train_labels[index[:60]])


def test_settings_are_chosen_on_the_first_validation_images(there: CifarImages) -> None:
    data = SOURCE.load(3)
    assert isinstance(data.tuning, Classification)
    _, index = cifar.split_indices(3)
    assert torch.equal(_labels(data.tuning.test), there.train_labels[index[:55]])
    assert torch.equal(_labels(data.tuning.validation), there.train_labels[index[:55]])


def test_more_images_to_tune_on_than_validation_images_are_refused(there: CifarImages) -> None:
    with pytest.raises(InputError, match="1 to 60 images to tune on, not 61"):
        replace(SOURCE, tuning=61).load(0)


def test_test_images_are_every_kth(there: CifarImages) -> None:
    data = SOURCE.load(0)
    assert data.images is not None
    assert data.images.tolist() == list(range(0, 10_000, 200))
    assert torch.equal(data.test[0][1], there.test_labels[::200])


def test_planes_are_of_validation_images(there: CifarImages) -> None:
    data = SOURCE.load(0)
    assert data.planes is not None
    assert torch.equal(data.planes[0][0], data.validation[0][0][:20])


def test_planes_may_be_of_test_images(there: CifarImages) -> None:
    data = replace(SOURCE, planes_of="test").load(0)
    assert data.planes is not None
    assert torch.equal(data.planes[0][1], there.test_labels[::500])


def test_a_number_of_test_images_that_is_no_divisor_is_refused(there: CifarImages) -> None:
    with pytest.raises(InputError, match="3000 test images are not every k-th of 10000"):
        replace(SOURCE, test=3000).load(0)


def test_more_training_images_than_there_are_are_refused(there: CifarImages) -> None:
    with pytest.raises(InputError, match="1 to 40960 training images, not 40961"):
        replace(SOURCE, training=40_961).load(0)


def test_other_images_than_the_scales_are_refused(there: CifarImages) -> None:
    with pytest.raises(InputError, match=r"are CIFAR-10 \(made up\); the scale is of CIFAR-10$"):
        replace(SOURCE, images="CIFAR-10").load(0)


def test_a_network_of_another_number_of_classes_is_refused() -> None:
    with pytest.raises(InputError, match="a network has 100 classes and CIFAR-10 has 10"):
        SOURCE.network(100, 0)


def test_the_digest_depends_on_the_seed_and_the_file(
    there: CifarImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {digest_of(SOURCE, 0), digest_of(SOURCE, 1)}
    monkeypatch.setattr(images, "found", lambda: (NAME, "1" * 64))
    digests.add(digest_of(SOURCE, 0))
    assert len(digests) == 3


def test_without_images_the_digest_says_where_they_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "found", lambda: None)
    with pytest.raises(InputError, match="there are no images of CIFAR-10 at .*; say where with --data"):
        SOURCE.digest(0)


def test_an_epoch_has_each_image_once(there: CifarImages) -> None:
    split = torch.arange(10.0).view(10, 1), torch.arange(10)
    seen = torch.cat([labels for _, labels in SOURCE.batches(split, 5, 0)(1)])
    assert sorted(seen.tolist()) == list(range(10))


def test_epochs_have_other_orders_and_a_seed_has_its_own() -> None:
    split = torch.zeros(50, 1), torch.arange(50)

    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([labels for _, labels in SOURCE.batches(split, 10, seed)(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


def test_a_batch_of_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="1 to 10 images, which there are, not 11"):
        SOURCE.batches((torch.zeros(10, 1), torch.zeros(10)), 11, 0)


def test_augmented_images_are_crops_out_of_a_margin_of_zeros_or_their_mirror_images() -> None:
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    split = image.expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.int64)
    (seen, _), *_ = replace(SOURCE, augment=True).batches(split, 64, 0)(0)
    padded = torch.nn.functional.pad(image[0], (4,) * 4)
    crops = {
        (down, right, mirrored): (crop.flip(-1) if mirrored else crop)
        for down in range(9)
        for right in range(9)
        for mirrored in (False, True)
        for crop in [padded[:, down : down + 32, right : right + 32]]
    }
    found = [next(place for place, crop in crops.items() if torch.equal(crop, each)) for each in seen]
    assert len(found) == 64
    # Of 64 draws about half are mirrored: fewer than 12 or more than 52 in one of a million.
    assert len({down for down, _, _ in found}) > 4
    assert len({right for _, right, _ in found}) > 4
    assert 12 < sum(mirrored for *_, mirrored in found) < 52


def test_images_have_the_layout_that_their_network_is_faster_on(there: CifarImages) -> None:
    last = SOURCE.load(0).test[0][0]
    first = (
        replace(SOURCE, shape=GroupNormResNet(ResNetShape(blocks=1, width=8), groups=8)).load(0).test[0][0]
    )
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()
    assert torch.equal(first, last)
