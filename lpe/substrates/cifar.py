"""CIFAR-10: Krizhevsky 2009, "Learning multiple layers of features from tiny images"; 32 × 32 pixels.

From one of two places, named as what it is:

- a folder that holds ``cifar-10-batches-py`` (or is it), as torchvision and the authors' archive lay it out;
  the files' MD5 sums are torchvision's. ``download`` fetches it;
- one ``.npz`` file of JPEGs: ``header`` (uint8, the bytes that all images begin with), and for ``train`` and
  ``test`` each ``*_body`` (uint8, the rest of all images, one after another), ``*_off`` (where each begins,
  and the end: one more than there are images) and ``*_y`` (labels). Image i is
  header + body[off[i]:off[i + 1]]. The quality is read from the quantisation tables: "CIFAR-10 (JPEG q75)".
  Numbers on it are not CIFAR-10's.

Training seed s trains on the first 40,960 of ``torch.randperm(50000)`` under ``manual_seed(1000 + s)`` and
validates on the others; all test on the 10,000 test images. A test file may be class by class, so a part of
it is every k-th image, never the first ones.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.extras import needs

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
IMAGES = {"train": 50_000, "test": 10_000}
TRAINING_IMAGES = 40_960
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Mean and std of the training images' channels, scaled to 0 … 1: they standardise the networks' inputs."""

FOLDER = "cifar-10-batches-py"
CHECKSUMS = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""MD5 of each file, as torchvision checks them."""

LOSSLESS = "CIFAR-10"


@dataclass(frozen=True)
class CifarImages:
    """The images of one source.

    Args:
        name: what they are, for every record and title. sha256: of the file, or of the files' MD5 sums.
        train, test: uint8 [images, 32, 32, 3], red, green, blue. train_labels, test_labels: int64 [images].
    """

    name: str
    sha256: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(source: str | os.PathLike[str], threads: int | None = None) -> CifarImages:
    """Read all images.

    Args:
        source: the folder or the file. threads: that decode JPEGs; None: as many as there are cores.

    Raises:
        InputError: nothing there, a wrong checksum, or arrays that are not CIFAR-10's.
    """
    path = Path(source)
    if path.is_file():
        return _from_bundle(path, threads or os.cpu_count() or 1)
    return _from_folder(_folder(path))


def described(source: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the name and the sha256 that :func:`load` would give, without decoding the images.

    Raises:
        InputError: nothing there, or a file that is no such file of JPEGs.
    """
    path = Path(source)
    if path.is_file():
        held = _arrays(path)
        offsets = held["test_off"].astype(np.int64)
        first = held["header"].tobytes() + held["test_body"].tobytes()[offsets[0] : offsets[1]]
        return f"{LOSSLESS} ({_jpeg_quality(first)})", hashlib.sha256(path.read_bytes()).hexdigest()
    _folder(path)
    return LOSSLESS, _digest_of_folder()


def _folder(path: Path) -> Path:
    folder = path if path.name == FOLDER else path / FOLDER
    if not folder.is_dir():
        raise InputError(
            f"no CIFAR-10 at {path}: give a folder that holds {FOLDER}, or an .npz file of its JPEGs"
        )
    return folder


def _digest_of_folder() -> str:
    """Return the sha256 of a folder's images: of their checksums, which are compared when it is read."""
    return hashlib.sha256("".join(CHECKSUMS.values()).encode()).hexdigest()


def download(path: str | os.PathLike[str]) -> None:
    """Fetch CIFAR-10 into a folder, by torchvision, which compares checksums.

    Raises:
        InputError: torchvision is not installed, or the files cannot be fetched.
    """
    try:
        from torchvision.datasets import CIFAR10
    except ImportError:
        raise InputError(
            f"to download CIFAR-10 takes torchvision, which is not installed; "
            f"pip install 'low-precision-ensembling[timm]', or put {FOLDER} into {path}"
        ) from None
    try:
        CIFAR10(str(path), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"CIFAR-10 could not be downloaded into {path} ({error}); put {FOLDER} there"
        ) from None


def _from_folder(folder: Path) -> CifarImages:
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for name, checksum in CHECKSUMS.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot read {folder / name} ({error.strerror}); is the copy of CIFAR-10 complete?"
            ) from None
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != checksum:
            raise InputError(
                f"{folder / name} has MD5 {found}, where CIFAR-10's has {checksum}; fetch it again"
            )
        # Of known content, so that nothing runs but what its authors wrote.
        held = pickle.loads(content, encoding="latin1")
        split = "test" if name == "test_batch" else "train"
        images[split].append(np.asarray(held["data"], dtype=np.uint8).reshape(-1, 3, SIDE, SIDE))
        labels[split] += held["labels"]
    pixels = {name: np.concatenate(parts).transpose(0, 2, 3, 1) for name, parts in images.items()}
    return _checked(
        LOSSLESS, _digest_of_folder(), pixels, {name: np.array(each) for name, each in labels.items()}, folder
    )


def _arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of a file of JPEGs; InputError where one lacks."""
    try:
        # Opened here, so that it is closed where it turns out to be no .npz file.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            held: dict[str, Any] = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, AttributeError, EOFError, TypeError, zipfile.BadZipFile):
        raise InputError(
            f"{path} is no whole .npz file; give a file of JPEGs, or a folder with {FOLDER}"
        ) from None
    wanted = ["header", *(f"{split}_{part}" for split in IMAGES for part in ("body", "off", "y"))]
    missing = [name for name in wanted if name not in held]
    if missing:
        raise InputError(f"{path} lacks the arrays {', '.join(missing)} of a file of CIFAR-10's JPEGs")
    return held


def _from_bundle(path: Path, threads: int) -> CifarImages:
    held = _arrays(path)
    header = held["header"].tobytes()
    pixels, labels = {}, {}
    for split in IMAGES:
        body, offsets = held[f"{split}_body"].tobytes(), held[f"{split}_off"].astype(np.int64)
        labels[split] = held[f"{split}_y"]
        if len(offsets) != len(labels[split]) + 1 or (offsets[1:] < offsets[:-1]).any():
            raise InputError(f"{path}: {split}_off is not the places of {len(labels[split])} images")
        files = [header + body[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
        with ThreadPoolExecutor(threads) as pool:
            try:
                decoded = list(pool.map(_decoded, files, chunksize=500))
            except (OSError, SyntaxError) as error:
                raise InputError(f"{path}: an image of {split} is no JPEG ({error}); copy it again") from None
        pixels[split] = np.stack(decoded) if len({image.shape for image in decoded}) == 1 else np.empty(0)
    name = f"{LOSSLESS} ({_jpeg_quality(files[0])})"
    return _checked(name, hashlib.sha256(path.read_bytes()).hexdigest(), pixels, labels, path)


def _decoded(file: bytes) -> np.ndarray:
    needs("PIL")

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


LUMINANCE = (16, 11, 10, 16, 24, 40, 51, 61)
"""The first row of JPEG's example table for luminance (ISO/IEC 10918-1, K.1), which libjpeg scales."""


def _jpeg_quality(file: bytes) -> str:
    """Name libjpeg's quality by the luminance table's first row: "JPEG q75"; "JPEG" for another table."""
    needs("PIL")

    from PIL import Image

    tables = getattr(Image.open(io.BytesIO(file)), "quantization", {})
    row = tuple(tables[0][:8]) if 0 in tables else ()
    for quality in range(100, 0, -1):
        percent = 5000 // quality if quality < 50 else 200 - 2 * quality
        if tuple(min(255, max(1, (each * percent + 50) // 100)) for each in LUMINANCE) == row:
            return f"JPEG q{quality}"
    return "JPEG"


def _checked(
    name: str, sha256: str, pixels: dict[str, np.ndarray], labels: dict[str, np.ndarray], where: Path
) -> CifarImages:
    for split, count in IMAGES.items():
        shape = (count, SIDE, SIDE, 3)
        if pixels[split].shape != shape or labels[split].shape != (count,):
            raise InputError(
                f"{where}: {split} has images {list(pixels[split].shape)} and labels "
                f"{list(labels[split].shape)}; {list(shape)} and {[count]} are expected"
            )
        found = np.unique(labels[split])
        if not np.array_equal(found, np.arange(len(CLASSES))):
            raise InputError(
                f"{where}: {split} has {len(found)} classes from {found.min()} to {found.max()}; "
                f"CIFAR-10 has {len(CLASSES)}, from 0 to {len(CLASSES) - 1}"
            )
    tensors = {}
    for split in IMAGES:
        tensors[split] = torch.from_numpy(np.ascontiguousarray(pixels[split]))
        tensors[f"{split}_labels"] = torch.from_numpy(labels[split].astype(np.int64))
    return CifarImages(name=name, sha256=sha256, **tensors)


def standardised(images: Tensor) -> Tensor:
    """Return the networks' inputs float32 [images, 3, 32, 32] of uint8 [images, 32, 32, 3]."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each, device=images.device).view(3, 1, 1) for each in (MEAN, STD))
    return (scaled - mean) / std


def image_indices(images: Tensor, indices: Tensor) -> list[int]:
    """Return images' indices in their data set as numbers, for draws that are keyed by them.

    Args:
        images: uint8 [images, 32, 32, 3]. indices: int64 [images], ≥ 0.

    Raises:
        InputError: images of another shape or type; indices that are not one an image.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (SIDE, SIDE, 3):
        raise InputError(
            f"images must be uint8 [images, {SIDE}, {SIDE}, 3], not {images.dtype} {list(images.shape)}"
        )
    if indices.dtype != torch.int64 or indices.shape != images.shape[:1]:
        raise InputError(
            f"indices must be int64 [{len(images)}], one an image, not {indices.dtype} {list(indices.shape)}"
        )
    found: list[int] = indices.tolist()
    if found and min(found) < 0:
        raise InputError(f"an image's index must not be negative, not {min(found)}")
    return found


def check_classes(classes: int, network: str = "the network") -> None:
    """Raise InputError unless a network has as many classes as CIFAR-10.

    Args:
        network: what the message calls it.
    """
    if classes != len(CLASSES):
        raise InputError(
            f"{network} has {classes} classes and CIFAR-10 has {len(CLASSES)}; give one trained on CIFAR-10"
        )


def split_indices(seed: int) -> tuple[Tensor, Tensor]:
    """Return indices, among the 50,000, of the training and the validation images of a training seed."""
    if seed < 0:
        raise InputError(f"a training seed must not be negative, not {seed}")
    order = torch.randperm(IMAGES["train"], generator=torch.Generator().manual_seed(1000 + seed))
    return order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
