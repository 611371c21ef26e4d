"""Images from files: which class each has by its folder, and its pixels as RGB.

Class folders are numbered as timm numbers them (``timm.data.readers.reader_image_folder``): the folders that
hold images, at whatever depth, by their own names, in natural order (2 before 10) with capitals ignored.
Where that leaves the order open, or gives two folders one class, the folder is refused.

Pixels are read as timm reads them (PIL's ``convert("RGB")``), which leaves transparency, colour profiles and
EXIF's orientation out of account. Where PIL would cut values off they are scaled (16 bits of grey) or the
image is refused (32 bits, floating point); so is an animation, which is no one image.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.extras import needs

IMAGES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
SHOWN = 3
"""Names of each kind that a message shows."""


def natural_key(name: str) -> list[str | int]:
    """Return a key that sorts as timm sorts: numbers by their value, capitals ignored.

    It equals ``timm.utils.misc.natural_key`` wherever that has a value.
    """
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


@dataclass(frozen=True)
class ClassFolders:
    """The class folders below a folder.

    Args:
        folders: in timm's order. images: of each folder, in timm's order. left_out: how many files are no
            images, by type.
    """

    folders: tuple[Path, ...]
    images: tuple[tuple[Path, ...], ...]
    left_out: Mapping[str, int]

    @property
    def names(self) -> list[str]:
        """The folders' own names."""
        return [folder.name for folder in self.folders]


def class_folders(root: Path) -> ClassFolders:
    """Return the class folders below ``root``; also those directly in it that have no image at all.

    Raises:
        InputError: two class folders of one name, or of names that have one place in timm's order.
    """
    held: dict[Path, list[Path]] = {}
    left_out: Counter[str] = Counter()
    for place, inside, files in os.walk(root, followlinks=True):
        folder = Path(place)
        left_out["hidden folders"] += sum(name.startswith(".") for name in inside)
        inside[:] = [name for name in inside if not name.startswith(".")]
        for name in files:
            if folder == root and is_image(name):
                left_out[f"{Path(name).suffix.lower()} outside a class folder"] += 1
            elif is_image(name):
                held.setdefault(folder, []).append(folder / name)
            else:
                left_out[type_of(name)] += 1
    tops = {root / path.relative_to(root).parts[0] for path in held}
    empty = [
        Path(each.path)
        for each in os.scandir(root)
        if each.is_dir() and not each.name.startswith(".") and Path(each.path) not in tops
    ]
    folders = sorted([*held, *empty], key=lambda folder: natural_key(folder.name))
    for one, other in zip(folders, folders[1:], strict=False):
        if one.name == other.name:
            raise InputError(
                f"{root} has two class folders {one.name}: {one.relative_to(root)} and "
                f"{other.relative_to(root)}; give the folder that holds each class once"
            )
        if natural_key(one.name) == natural_key(other.name):
            raise InputError(
                f"the class folders {one.name} and {other.name} in {root} have one place in timm's order "
                "(natural, capitals ignored); rename one of them"
            )
    images = tuple(
        tuple(sorted(held.get(folder, ()), key=lambda path: (natural_key(path.name), path.name)))
        for folder in folders
    )
    return ClassFolders(tuple(folders), images, +left_out)


def is_image(name: str) -> bool:
    """Tell whether a file is read as an image: by its type, and not hidden."""
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def type_of(name: str) -> str:
    """Return a file's type as the count of what is left out has it."""
    if name.startswith("."):
        return "hidden"
    return Path(name).suffix.lower() or "without a type"


def counted(left_out: Mapping[str, int]) -> str:
    """Say what is left out, the most frequent first: "12 .gif, 3 .txt"."""
    return ", ".join(
        f"{count:,} {kind}" for kind, count in sorted(left_out.items(), key=lambda each: (-each[1], each[0]))
    )


def listed(names: Sequence[str]) -> str:
    """Return the first names, and whether there are more."""
    return f"{', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}"


def classes_of_names(folders: Sequence[str], names: Sequence[str]) -> tuple[list[int], str]:
    """Return the model's class of each class folder, by the names of the model's classes.

    Args:
        folders: the folders' names. names: of the model's classes, in its order; as many.

    Returns:
        The class of each folder, and in a phrase how it was found: by name where the names are the folders'
        (capitals, underscores and hyphens ignored), else by position.

    Raises:
        InputError: names that are some of the folders' names, at other positions.
    """
    of_folders, of_names = [_plain(name) for name in folders], [_plain(name) for name in names]
    if len(set(of_names)) == len(of_names) and set(of_names) == set(of_folders):
        return [of_names.index(name) for name in of_folders], "by name"
    for position, name in enumerate(of_names):
        if name in of_folders and of_folders.index(name) != position:
            folder = folders[of_folders.index(name)]
            raise InputError(
                f"the class name {names[position]!r} is number {position + 1} and the class folder {folder} "
                f"number {of_folders.index(name) + 1}, and not every name is a folder's; give the folders' "
                "names, in the model's order, or names in the folders' order"
            )
    return list(range(len(folders))), "by position"


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def as_rgb(image: Any) -> Any:
    """Convert a PIL image to RGB, 8 bits a channel, to timm's values; 16 bits of grey are scaled by 65,535.

    Raises:
        ValueError: an animation; pixels of which nobody knows the range.
    """
    # The pictures of an MPO, as cameras write them, are one picture and its previews.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ValueError(f"it is an animation of {image.n_frames} images; give each image as a file")
    mode = image.mode
    # PIL has 16 bits of grey as "I" too, of formats that have no more of them.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        needs("PIL")
        from PIL import Image

        grey = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(grey * (255 / 65535)).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        raise ValueError(
            f"its pixels are of PIL's mode {mode}, whose range no file tells; give 8 or 16 bits a channel"
        )
    # PIL warns of a palette with transparency, which is left out as in any other mode.
    image.info.pop("transparency", None)
    return image.convert("RGB")


@dataclass(frozen=True)
class LabelledImages:
    """Batches of images, read from their files each time they are iterated, in one order.

    Args:
        paths: of the images. labels: their classes. class_names: of class 0, 1 …: wnids, or names of folders.
        transform: PIL image in RGB → float [channels, height, width].
        batch_size: images. workers: processes that read; 0: this one. dtype: of the inputs.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    transform: Callable[[Any], Tensor]
    batch_size: int
    workers: int = 0
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.paths) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs [examples, channels, height, width] and targets int64 [examples].

        Raises:
            InputError: an image that cannot be read, named; processes that cannot be started.
        """
        _check_processes(self.workers)
        loader = torch.utils.data.DataLoader(
            _Files(self.paths, self.transform),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=_collated,
            # Without a generator of its own a loader draws from the global one.
            generator=torch.Generator(),
        )
        start = 0
        for inputs in loader:
            if isinstance(inputs, str):
                raise InputError(inputs)
            yield inputs.to(self.dtype), torch.tensor(self.labels[start : start + len(inputs)])
            start += len(inputs)


def _check_processes(count: int) -> None:
    """Raise InputError where processes cannot be started, which share memory."""
    try:
        if count:
            torch.multiprocessing.get_context().Lock()
    except OSError as error:
        raise InputError(
            f"cannot start {count} processes that read images ({error.strerror}); give --workers 0, or let "
            "/dev/shm be written to"
        ) from None


def share_of_images(images: LabelledImages, place: int, count: int) -> LabelledImages:
    """Return every ``count``-th batch of images, from batch ``place`` on, as they are in the whole."""
    of_batch = [number // images.batch_size % count == place for number in range(len(images.paths))]
    return replace(
        images,
        paths=tuple(compress(images.paths, of_batch)),
        labels=tuple(compress(images.labels, of_batch)),
    )


@dataclass(frozen=True)
class _Files(torch.utils.data.Dataset):
    paths: tuple[Path, ...]
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        """Return the image, or why it cannot be read: an exception would leave a worker with its trace."""
        needs("PIL")

        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                try:
                    pixels = as_rgb(image)
                except ValueError as error:
                    return f"cannot read the image {path}: {error}"
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of damaged files
            why = str(error).partition("\n")[0].replace(f" {str(path)!r}", "")
            return f"{path} is not a whole image ({why}); fetch it again"
        return self.transform(pixels)


def _collated(images: Sequence[Tensor | str]) -> Tensor | str:
    broken = next((image for image in images if isinstance(image, str)), None)
    return (
        broken if broken is not None else torch.stack([each for each in images if isinstance(each, Tensor)])
    )


def spread(count: int, limit: int | None) -> Iterable[int]:
    """Return the indices of as many as ``limit`` of ``count``, evenly spread; None: all."""
    chosen = count if limit is None else min(limit, count)
    return (index * count // chosen for index in range(chosen))
