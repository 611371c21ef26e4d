"""CIFAR-10 from both of its places, named as what it is; and what is not CIFAR-10."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lpe
from lpe.substrates import cifar

COUNTS = {"train": 40, "test": 20}


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "IMAGES", COUNTS)


def jpegs(count: int, quality: int) -> list[bytes]:
    """Images of one colour each."""
    made = []
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (4 * number, 100, 200)).save(file, "JPEG", quality=quality)
        made.append(file.getvalue())
    return made


def bundle(path: Path, quality: int = 75, **changed: Any) -> Path:
    """A file of JPEGs, with arrays changed or, where they are None, left out."""
    arrays: dict[str, Any] = {}
    files = {split: jpegs(count, quality) for split, count in COUNTS.items()}
    every = [file for each in files.values() for file in each]
    shared = next(i for i in range(len(every[0])) if len({file[: i + 1] for file in every}) > 1)
    arrays["header"] = np.frombuffer(every[0][:shared], np.uint8)
    for split, each in files.items():
        bodies = [file[shared:] for file in each]
        arrays[f"{split}_body"] = np.frombuffer(b"".join(bodies), np.uint8)
        arrays[f"{split}_off"] = np.cumsum([0, *map(len, bodies)]).astype(np.int32)
        arrays[f"{split}_y"] = (np.arange(len(each)) % 10).astype(np.uint8)
    arrays |= changed
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize("quality", [75, 30, 95])
def test_a_file_of_jpegs_is_named_by_its_quality(tmp_path: Path, quality: int) -> None:
    found = cifar.load(bundle(tmp_path / "c.npz", quality))
    assert found.name == f"CIFAR-10 (JPEG q{quality})"


def test_images_of_a_file_of_jpegs_are_decoded_in_order(tmp_path: Path) -> None:
    found = cifar.load(bundle(tmp_path / "c.npz", 95), threads=2)
    assert found.train.shape == (40, 32, 32, 3) and found.test.shape == (20, 32, 32, 3)
    red = found.train[:, 16, 16, 0].int()
    assert (red - 4 * torch.arange(40)).abs().max() <= 3
    assert torch.equal(found.test_labels, torch.arange(20) % 10)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test_off": None, "test_y": None}, "lacks the arrays test_off, test_y"),
        ({"train_y": np.zeros(39, np.uint8)}, "train_off is not the places of 39 images"),
        ({"train_y": (np.arange(40) % 9).astype(np.uint8)}, "9 classes from 0 to 8"),
        ({"test_y": (np.arange(20) % 20).astype(np.uint8)}, "20 classes from 0 to 19"),
        ({"header": np.zeros(20, np.uint8)}, "is no JPEG"),
    ],
)
def test_a_file_that_is_not_cifar10s_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(lpe.InputError, match=words) as caught:
        cifar.load(bundle(tmp_path / "c.npz", **changed))
    assert "\n" not in str(caught.value)


def test_too_few_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle(tmp_path / "c.npz")
    monkeypatch.setattr(cifar, "IMAGES", {"train": 41, "test": 20})
    with pytest.raises(lpe.InputError, match=r"train has images \[40, 32, 32, 3\]"):
        cifar.load(path)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = bundle(tmp_path / "c.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(lpe.InputError, match="no whole .npz file"):
        cifar.load(path)


def test_without_data_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(
        lpe.InputError, match=r"no CIFAR-10 at .*give a folder that holds cifar-10-batches-py"
    ):
        cifar.load(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's layout with the checksums of what is in it."""
    inside = tmp_path / cifar.FOLDER
    inside.mkdir()
    sums = {}
    for number, name in enumerate(cifar.CHECKSUMS):
        count = COUNTS["test"] if name == "test_batch" else COUNTS["train"] // 5
        data = np.zeros((count, 3, 1024), np.uint8)
        data[:, 0], data[:, 1], data[:, 2] = number, 50, 90
        data[:, 1, 33] = 7
        labels = [(number * count + place) % 10 for place in range(count)]
        content = pickle.dumps({"data": data.reshape(count, 3072), "labels": labels})
        (inside / name).write_bytes(content)
        sums[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar, "CHECKSUMS", sums)
    return tmp_path


@pytest.mark.parametrize("inside", [False, True])
def test_torchvisions_folder_is_cifar10(folder: Path, inside: bool) -> None:
    found = cifar.load(folder / cifar.FOLDER if inside else folder)
    assert found.name == "CIFAR-10"
    # A batch after another; channels last, rows from the top.
    assert torch.equal(found.train[:, 0, 0, 0], torch.arange(5).repeat_interleave(8).byte())
    assert found.train[0, 1, 1].tolist() == [0, 7, 90]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "has MD5 .* where CIFAR-10's has"),
        (lambda path: path.unlink(), "is the copy of CIFAR-10 complete"),
    ],
)
def test_a_folder_that_is_damaged_is_refused(
    folder: Path, break_it: Callable[[Path], Any], words: str
) -> None:
    break_it(folder / cifar.FOLDER / "data_batch_3")
    with pytest.raises(lpe.InputError, match=words) as caught:
        cifar.load(folder)
    assert "data_batch_3" in str(caught.value) and "\n" not in str(caught.value)


def test_checksums_are_torchvisions() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    listed = dict(datasets.CIFAR10.train_list) | dict(datasets.CIFAR10.test_list)
    assert listed == cifar.CHECKSUMS


def test_inputs_have_mean_0_and_std_1_at_the_data_sets_own() -> None:
    pixel = [255 * mean for mean in cifar.MEAN]
    images = torch.tensor(pixel).view(1, 1, 1, 3).expand(1, 32, 32, 3)
    assert cifar.standardised(images).abs().max() < 1e-6
    above = torch.tensor([255 * (m + s) for m, s in zip(cifar.MEAN, cifar.STD, strict=True)])
    torch.testing.assert_close(cifar.standardised(above.view(1, 1, 1, 3)), torch.ones(1, 3, 1, 1))


def test_a_seed_splits_all_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    train, validation = cifar.split_indices(2)
    assert len(train) == 40_960
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(50_000))
    expected = torch.randperm(50_000, generator=torch.Generator().manual_seed(1002))
    assert torch.equal(train, expected[:40_960])


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="must not be negative"):
        cifar.split_indices(-1)


def test_as_many_classes_as_cifar10_has_are_taken() -> None:
    cifar.check_classes(10)


@pytest.mark.parametrize("classes", [9, 100])
def test_other_numbers_of_classes_are_refused(classes: int) -> None:
    with pytest.raises(lpe.InputError, match=f"w.pt's network has {classes} classes and CIFAR-10 has 10"):
        cifar.check_classes(classes, "w.pt's network")
