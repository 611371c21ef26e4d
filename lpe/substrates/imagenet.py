"""ImageNet-1k, or a folder of one's own images, with any model of timm.

The validation set is taken as it is usually kept, in either of two layouts:

    class folders   n01440764/*.JPEG …, 1,000 of them, also under ``val/``
    flat            ILSVRC2012_val_00000001.JPEG …, and beside them (or one folder up) one of
                        LOC_val_solution.csv (Kaggle's)
                        imagenet_2012_validation_synset_labels.txt (a wnid a line)
                        ILSVRC2012_validation_ground_truth.txt with the development kit's meta.mat

Class k of a model is the k-th wnid in sorted order. The numbers in ILSVRC2012_validation_ground_truth.txt are
not these: they are ILSVRC2012_IDs, which meta.mat translates.

Other class folders are numbered as timm numbers them, and images read as timm reads them
(:mod:`lpe.substrates.images`); they are prepared as each model was made to see them
(:mod:`lpe.substrates.timm_models`).
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.extras import needs
from lpe.notices import note
from lpe.substrates.images import (
    IMAGES,
    LabelledImages,
    class_folders,
    classes_of_names,
    counted,
    is_image,
    listed,
    spread,
    type_of,
)
from lpe.substrates.timm_models import (
    classes_of,
    data_config,
    evaluation_transform,
    load_model,
    model_name,
    random_model,
)

__all__ = [
    "LabelledImages",
    "classes_of",
    "data_config",
    "evaluation_transform",
    "load_model",
    "model_name",
    "random_model",
    "validation",
    "wnids",
]

CLASSES = 1000

KAGGLE = "LOC_val_solution.csv"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
_WNID = re.compile(r"n\d{8}")
_FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def validation(
    folder: str | os.PathLike[str],
    transform: Callable[[Any], Tensor],
    batch_size: int,
    limit: int | None = None,
    classes: int = CLASSES,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
    class_names: Sequence[str] | None = None,
) -> LabelledImages:
    """Return the images of ImageNet's validation set, or of a folder with a folder of images per class.

    What is left out, and what an order of classes rests on, is said in a line each (:mod:`lpe.notices`).

    Args:
        folder: see the top of this module; for other data, a folder per class, classes in timm's order of
            their names (:mod:`lpe.substrates.images`). transform: PIL image → tensor.
        batch_size: images. limit: as many images, evenly spread over the set. None: all.
        classes: of the model; as many class folders are expected.
        workers: processes that read images. dtype: of the inputs.
        class_names: of the model's classes, in its order. Names that are the folders' give each folder its
            class, in whatever order; others are by position. None: by position.

    Raises:
        InputError: a folder in neither layout; class folders too few, too many, empty or of an open order; a
            flat folder without its labels, or labels that lack an image; class names too few or too many, or
            some of them folders' names at other positions.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the folder of the validation images")
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be one image or more, not {limit}")
    if batch_size < 1:
        raise InputError(f"a batch must have one image or more, not {batch_size}")
    if workers < 0:
        raise InputError(f"the number of workers must not be negative, not {workers}")
    if class_names is not None and len(class_names) != classes:
        raise InputError(f"there are {len(class_names)} class names and the model has {classes} classes")
    folder = _within(folder)
    flat = sorted(each.name for each in os.scandir(folder) if _FLAT.fullmatch(each.name))
    if flat:
        _check_head(classes)
        names = wnids()
        paths = [folder / name for name in flat]
        labels = [names.index(wnid) for wnid in _flat_wnids(folder, flat)]
        others = {each.name: each.is_dir() for each in os.scandir(folder)}
        for name in (*flat, KAGGLE, SYNSETS, GROUND_TRUTH, META):
            others.pop(name, None)
        left_out: Mapping[str, int] = Counter(
            "folders" if is_folder else type_of(name) for name, is_folder in others.items()
        )
    else:
        found = class_folders(folder)
        names = found.names
        if not names:
            raise InputError(
                f"{folder} is no folder of validation images: it has neither a folder per class "
                "(ImageNet-1k: n01440764 …) nor ILSVRC2012_val_*.JPEG"
            )
        _check_class_folders(folder, names, classes)
        for place, images in zip(found.folders, found.images, strict=True):
            if not images:
                raise InputError(f"the class folder {place} has no images ({', '.join(IMAGES)})")
        paths = [path for images in found.images for path in images]
        labels = [label for label, images in enumerate(found.images) for _ in images]
        left_out = found.left_out
    if class_names is not None:
        of_folder, how = classes_of_names(names, class_names)
        labels = [of_folder[label] for label in labels]
        first = f"{class_names[of_folder[0]]!r} is {names[0]}"
        note(f"class names and class folders are matched {how}: {first}")
    elif names != sorted(names):
        note(
            f"the classes are the folders of {folder} in timm's order (natural, capitals ignored): "
            f"{listed(names)}; sorted as text, as torchvision has them, they are {listed(sorted(names))}"
        )
    if left_out:
        note(f"left out of {folder}: {counted(left_out)}")
    chosen = list(spread(len(paths), limit))
    return LabelledImages(
        tuple(paths[index] for index in chosen),
        tuple(labels[index] for index in chosen),
        tuple(names if class_names is None else class_names),
        transform,
        batch_size,
        workers,
        dtype,
    )


def unlabelled(
    folder: str | os.PathLike[str],
    transform: Callable[[Any], Tensor],
    batch_size: int,
    limit: int | None = None,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LabelledImages:
    """Return the images of a folder and of the folders in it, in the order of their names; every label is 0.

    Args:
        limit: as many images, evenly spread over all. None: all. The others as of :func:`validation`.

    Raises:
        InputError: there are no images.
    """
    paths = sorted(
        Path(place, name) for place, _, names in os.walk(folder) for name in names if is_image(name)
    )
    if not paths:
        raise InputError(f"{folder} has no images ({', '.join(IMAGES)})")
    chosen = tuple(paths[index] for index in spread(len(paths), limit))
    return LabelledImages(chosen, (0,) * len(chosen), (), transform, batch_size, workers, dtype)


def _within(folder: Path) -> Path:
    """Return the folder itself, or its ``val`` where that holds a validation set and is no class folder."""
    inside = folder / "val"
    if inside.is_dir():
        entries = list(os.scandir(inside))
        if any(each.is_dir() or _FLAT.fullmatch(each.name) for each in entries):
            return inside
    return folder


def wnids() -> list[str]:
    """Return ImageNet-1k's 1,000 classes by WordNet id, in the order of the models' classes."""
    needs("timm")

    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def _check_head(classes: int) -> None:
    if classes != CLASSES:
        raise InputError(
            f"ImageNet-1k has {CLASSES} classes and the model {classes}; take one fine-tuned on it (…_in1k)"
        )


def _check_class_folders(folder: Path, names: list[str], classes: int) -> None:
    known = wnids()
    if names == known:
        _check_head(classes)
        return
    if classes == CLASSES and any(_WNID.fullmatch(name) for name in names):
        what = [
            f"{len(found)} {kind}: {listed(found)}"
            for kind, found in (
                ("missing", sorted(set(known) - set(names))),
                ("not of it", sorted(set(names) - set(known))),
            )
            if found
        ]
        raise InputError(
            f"{folder} has {len(names)} class folders, ImageNet-1k has {CLASSES}; {'; '.join(what)}"
        )
    if len(names) != classes:
        raise InputError(
            f"{folder} has {len(names)} class folders ({listed(names)}) and the model {classes} classes; "
            "they must be as many"
        )


def _flat_wnids(folder: Path, images: Sequence[str]) -> list[str]:
    """Return the class of each image of a flat validation folder."""
    for name in (KAGGLE, SYNSETS, GROUND_TRUTH):
        found = next((path for path in (folder / name, folder.parent / name) if path.is_file()), None)
        if found:
            break
    else:
        raise InputError(
            f"{folder} has ILSVRC2012_val_*.JPEG without their labels; put beside them {KAGGLE}, {SYNSETS}, "
            f"or {GROUND_TRUTH} with {META} (both of the development kit)"
        )
    try:
        lines = found.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {found} ({error}); it should be a text file") from None
    if found.name == KAGGLE:
        by_image = {row[0]: row[1].split()[0] for row in csv.reader(lines) if len(row) > 1 and row[1].split()}
        classes = [by_image.get(Path(name).stem) for name in images]
    else:
        of_line = _translation(found, lines)
        numbers = [int(name[-13:-5]) for name in images]
        classes = [of_line(lines[n - 1].strip()) if 1 <= n <= len(lines) else None for n in numbers]
    missing = [name for name, wnid in zip(images, classes, strict=True) if wnid is None]
    if missing:
        raise InputError(
            f"{found} has no label for {len(missing)} of {len(images)} images: {listed(missing)}"
        )
    known = set(wnids())
    if strange := next((wnid for wnid in classes if wnid not in known), None):
        raise InputError(f"{found} has the label {strange!r}, which is no class of ImageNet-1k")
    return [wnid for wnid in classes if wnid is not None]


def _translation(labels: Path, lines: Sequence[str]) -> Callable[[str], str | None]:
    """Return a function from a label file's line to a wnid: the line, or what meta.mat has for its number."""
    if not all(line.strip().isdigit() for line in lines):
        return lambda line: line or None
    places = [
        parent / inside / META
        for parent in (labels.parent, labels.parent.parent)
        for inside in ("", "data", "ILSVRC2012_devkit_t12/data")
    ]
    meta = next((path for path in places if path.is_file()), None)
    if meta is None:
        raise InputError(
            f"{labels} has ILSVRC2012_IDs, which are not the models' classes; put the development kit's "
            f"{META} (ILSVRC2012_devkit_t12/data) beside it"
        )
    return _synsets(meta).get


def _synsets(meta: Path) -> dict[str, str]:
    """Return ILSVRC2012_ID, as text, → wnid, from the development kit's ``synsets`` table."""
    from scipy.io import loadmat

    try:
        table = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
    except Exception as error:  # of a damaged file, as many kinds as it has fields
        raise InputError(
            f"{meta} is not the development kit's {META} ({type(error).__name__}); its table synsets "
            "is needed"
        ) from None
