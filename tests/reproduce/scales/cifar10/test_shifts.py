"""CIFAR-10's images under corruptions, and foreign ones, as the scales have them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lpe.errors import InputError
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import RESNET8
from lpe.substrates.corruptions import CORRUPTIONS, corrupted
from lpe.substrates.out_of_distribution import MNIST_FILE
from reproduce.scales.cifar10 import shifts
from reproduce.scales.cifar10.images import CifarImages, FRNResNet
from reproduce.scales.cifar10.settings import SHIFTED, cifar10
from reproduce.scales.cifar10.shifts import CifarShifts
from reproduce.scales.cifar10.small import cifar10_small
from reproduce.study.scale import Batch

SOURCE = CifarImages(
    shape=FRNResNet(RESNET8),
    images="CIFAR-10 (made up)",
    augment=False,
    training=100,
    validation=60,
    tuning=55,
    test=200,
    planes=20,
    planes_of="validation",
)
SHIFTS = CifarShifts(SOURCE, every=10)


@pytest.fixture(autouse=True)
def afresh(
    there: cifar.CifarImages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[cifar.CifarImages]:
    """The made-up images, beside which there is no MNIST."""
    monkeypatch.setenv("LPE_DATA", str(tmp_path))
    shifts._shifted.cache_clear()
    yield there
    shifts._shifted.cache_clear()


def joined(batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_what_is_corrupted_is_every_kth_image_that_the_source_scores() -> None:
    scored, labels = joined(list(SOURCE.load(0).test))
    shown, targets = joined(list(SHIFTS.load(0).clean))
    assert torch.equal(shown, scored[::10]) and torch.equal(targets, labels[::10])


def test_there_are_five_kinds_at_three_severities_of_the_same_images() -> None:
    shifted = SHIFTS.load(0)
    assert set(shifted.corrupted) == {(kind, level) for kind in CORRUPTIONS for level in (1, 2, 3)}
    assert len(shifted.corrupted) == 15
    _, targets = joined(list(shifted.clean))
    for kind, severity in shifted.corrupted:
        assert torch.equal(joined(list(shifted.corrupted[kind, severity]))[1], targets)


def test_corrupted_images_are_standardised_as_clean_ones(afresh: cifar.CifarImages) -> None:
    index = torch.arange(0, 10_000, 50)[::10]
    expected = cifar.standardised(corrupted(afresh.test[index], "contrast", 2, index))
    seen, _ = joined(list(SHIFTS.load(0).corrupted["contrast", 2]))
    assert torch.equal(seen, expected)


def test_a_corruption_that_there_is_not_is_none_of_them() -> None:
    shifted = SHIFTS.load(0)
    assert ("fog", 1) not in shifted.corrupted
    with pytest.raises(KeyError, match="fog"):
        shifted.corrupted["fog", 1]


def test_a_corruption_is_made_once() -> None:
    shifted = SHIFTS.load(0)
    assert shifted.corrupted["brightness", 1] is shifted.corrupted["brightness", 1]


def test_foreign_images_are_as_many_as_clean_ones_and_of_no_class() -> None:
    foreign = SHIFTS.load(0).foreign
    assert list(foreign) == ["digits", "uniform noise", "scrambled patches"]
    for batches in foreign.values():
        inputs, targets = joined(list(batches))
        assert inputs.shape == (20, 3, 32, 32) and not targets.any()


def test_scrambled_images_have_the_clean_ones_pixels() -> None:
    shifted = SHIFTS.load(0)
    clean, _ = joined(list(shifted.clean))
    mixed, _ = joined(list(shifted.foreign["scrambled patches"]))
    assert torch.equal(clean.flatten(2).sort().values, mixed.flatten(2).sort().values)
    assert not (clean == mixed).flatten(1).all(dim=1).any()


def test_images_lie_in_memory_as_the_sources_do() -> None:
    (inputs, _), *_ = SHIFTS.load(0).corrupted["contrast", 1]
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_training_seeds_see_the_same_shifted_images() -> None:
    assert SHIFTS.load(0) is SHIFTS.load(1)


def test_mnist_is_among_them_where_it_lies_beside_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SHIFTS.digest(0)
    (tmp_path / MNIST_FILE).parent.mkdir(parents=True)
    (tmp_path / MNIST_FILE).touch()
    monkeypatch.setattr(shifts, "resized_mnist", lambda folder: torch.zeros(30, 32, 32, 3, dtype=torch.uint8))
    assert list(SHIFTS.load(0).foreign) == ["digits", "MNIST", "uniform noise", "scrambled patches"]
    assert SHIFTS.digest(0) != before


def test_a_damaged_mnist_is_refused_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / MNIST_FILE).parent.mkdir(parents=True)
    (tmp_path / MNIST_FILE).write_bytes(b"nothing")
    with pytest.raises(InputError, match="MNIST's has"):
        SHIFTS.load(0)


def test_the_digest_depends_on_which_images_are_shown_and_on_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = {SHIFTS.digest(0), replace(SHIFTS, every=5).digest(0)}
    monkeypatch.setattr("reproduce.scales.cifar10.images.found", lambda: ("CIFAR-10 (made up)", "1" * 64))
    digests.add(SHIFTS.digest(0))
    assert len(digests) == 3


def test_more_images_between_two_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="every 201th of 200 test images is asked for; 1 to 200"):
        replace(SHIFTS, every=201).load(0)


@pytest.mark.parametrize("options", [{}, {"images": 10_000}, {"images": 400}])
def test_the_scale_shows_as_many_images_whatever_it_scores(options: dict[str, object], folder: Path) -> None:
    beyond = cifar10(options).beyond
    assert beyond is not None and isinstance(beyond.shifts, CifarShifts)
    count = len(joined(list(beyond.shifts.load(0).clean))[1])
    assert count == min(SHIFTED, int(str(options.get("images", 2000))))


def test_the_small_scale_shows_a_tenth_of_its_test_images() -> None:
    beyond = cifar10_small({}).beyond
    assert beyond is not None and isinstance(beyond.shifts, CifarShifts)
    assert len(joined(list(beyond.shifts.load(0).clean))[1]) == 1000


@pytest.mark.parametrize(("every", "said"), [(10, "corrupted: 20"), (3, "corrupted: 67")])
def test_it_says_how_many_images_are_corrupted(every: int, said: str) -> None:
    of = replace(SHIFTS, every=every)
    assert of.words == said
    assert sum(len(labels) for _, labels in of.load(0).clean) == int(said.split()[-1])
