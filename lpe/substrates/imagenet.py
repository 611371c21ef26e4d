"""ImageNet-1k, or a folder of one's own images, with any model of timm.

The validation set is taken as it is usually kept, in either of two layouts:

    class folders   n01440764/*.JPEG …, 1,000 of them, also under ``val/``
    flat            ILSVRC2012_val_00000001.JPEG …, and beside them (or one folder up) one of
                        LOC_val_solution.csv (Kaggle's)
                        imagenet_2012_validation_synset_labels.txt (a wnid a line)
                        ILSVRC2012_validation_ground_truth.txt with the development kit's meta.mat

Class k of a model is the k-th wnid in sorted order. The numbers in ILSVRC2012_validation_ground_truth.txt are
not these: they are ILSVRC2012_IDs, which meta.mat translates.

Images are prepared as each model was made to see them, by timm's own data config and transform.
"""

from __future__ import annotations

import csv
import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.substrates.hub import hub_file
from lpe.substrates.loading import (
    SHOWN,
    load_state,
    parameter_bytes,
    read_weights,
    require_memory,
)

CLASSES = 1000
IMAGES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")

KAGGLE = "LOC_val_solution.csv"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
_WNID = re.compile(r"n\d{8}")
_FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def load_model(name: str, checkpoint: str | os.PathLike[str] | None = None) -> nn.Module:
    """A pre-trained model of timm, in eval mode, on the CPU.

    Args:
        name: timm's, with or without the weights' tag: "vit_small_patch16_224.augreg_in21k_ft_in1k".
        checkpoint: a file of weights (see :func:`lpe.substrates.loading.read_weights`); the model has as many
            classes as its classifier. None: the hub's, from the cache if they are there.

    Raises:
        InputError: an unknown name; weights that are not to be had, or do not fit; a model larger than
            memory.
    """
    shape = _on_meta(name)
    # While they are read in, the weights are there twice.
    require_memory(2 * parameter_bytes(shape), f"{name} while it is loaded")
    config = _pretrained_config(shape)
    if checkpoint is not None:
        weights, source = read_weights(checkpoint), str(checkpoint)
    else:
        if not config.get("hf_hub_id") or config.get("custom_load") == "hf":
            where = config.get("url") or config.get("hf_hub_id")
            raise InputError(
                f"{name} has no weights in a file that timm's hub repositories have; give "
                + (f"those of {where}" if where else "your own")
                + " as the checkpoint"
            )
        chosen = config.get("hf_hub_filename")
        file = hub_file(config["hf_hub_id"], (chosen,) if chosen else _WEIGHTS)
        weights, source = read_weights(file), f"{file.name} of {config['hf_hub_id']}"
    return _with_weights(name, weights, source, shape)


def random_model(name: str) -> nn.Module:
    """A model of timm in its true shape with random weights (always the same), in eval mode, on the CPU.

    Raises:
        InputError: an unknown name; a model larger than memory.
    """
    require_memory(parameter_bytes(_on_meta(name)), name)
    return _created(name)


def _on_meta(name: str) -> nn.Module:
    """The model without any memory for its weights."""
    import timm
    from timm.models import get_pretrained_cfg

    try:
        known = timm.is_model(name) and get_pretrained_cfg(name) is not None
    except RuntimeError:  # of a tag that the model does not have
        known = False
    if not known:
        names = dict.fromkeys([*timm.list_models(pretrained=True), *timm.list_models()])
        near = difflib.get_close_matches(name, names, SHOWN, cutoff=0.5)
        raise InputError(
            f"timm has no model {name!r}; "
            + (f"near it there are {', '.join(near)}" if near else "timm.list_models() has their names")
        )
    with torch.device("meta"):
        return timm.create_model(name)


def _created(name: str, **options: Any) -> nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return timm.create_model(name, **options).eval()


def _with_weights(name: str, weights: dict[str, Tensor], source: str, shape: nn.Module) -> nn.Module:
    classifier = _pretrained_config(shape).get("classifier")
    head = weights.get(f"{classifier if isinstance(classifier, str) else (classifier or [''])[0]}.weight")
    classes = classes_of(shape) if head is None or head.dim() == 0 else len(head)
    model = _created(name, num_classes=classes)
    try:
        load_state(model, weights, source)
    except InputError as misfit:
        # Weights as their authors published them have other names or shapes; timm knows how to convert those
        # of many models. Where that fails too, what matters is how the file differs from the model.
        overlay = {"state_dict": weights, "num_classes": classes, "custom_load": False}
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            return _created(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
        except Exception:
            raise misfit from None
        finally:
            logging.disable(level)
    return model


def _pretrained_config(model: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] = vars(model)["pretrained_cfg"]
    return config


def classes_of(model: nn.Module) -> int:
    """How many classes a model of timm has; 0 for one that gives features."""
    return int(vars(model)["num_classes"])


def model_name(model: nn.Module) -> str:
    """timm's full name of a model, with the tag of its weights."""
    config = _pretrained_config(model)
    return f"{config['architecture']}.{config['tag']}" if config.get("tag") else str(config["architecture"])


def data_config(model: nn.Module) -> dict[str, Any]:
    """How a model of timm was made to see images, as plain data for the record.

    Returns:
        input_size, interpolation, mean, std, crop_pct and crop_mode, by timm's ``resolve_data_config``.
    """
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def evaluation_transform(config: dict[str, Any]) -> Callable[[Any], Tensor]:
    """timm's evaluation transform of a data config: PIL image → float32 [channels, height, width]."""
    from timm.data import create_transform

    made: Callable[[Any], Tensor] = create_transform(**config, is_training=False)
    return made


@dataclass(frozen=True)
class LabelledImages:
    """Batches of images, read from their files each time they are iterated, in one order.

    Args:
        paths: of the images. labels: their classes. class_names: wnids, or names of folders.
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
        """Batches."""
        return -(-len(self.paths) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [examples, channels, height, width] and targets int64 [examples].

        Raises:
            InputError: an image that cannot be read, named.
        """
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


@dataclass(frozen=True)
class _Files(torch.utils.data.Dataset):
    paths: tuple[Path, ...]
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        """The image; or why it cannot be read, for an exception would come out of a worker with its trace."""
        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                pixels = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # PIL's, of damaged files
            why = str(error).partition("\n")[0].replace(f" {str(path)!r}", "")
            return f"{path} is not a whole image ({why}); fetch it again"
        return self.transform(pixels)


def _collated(images: Sequence[Tensor | str]) -> Tensor | str:
    broken = next((image for image in images if isinstance(image, str)), None)
    return (
        broken if broken is not None else torch.stack([each for each in images if isinstance(each, Tensor)])
    )


def validation(
    folder: str | os.PathLike[str],
    transform: Callable[[Any], Tensor],
    batch_size: int,
    limit: int | None = None,
    classes: int = CLASSES,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LabelledImages:
    """The images of ImageNet's validation set, or of a folder with a folder of images per class.

    Args:
        folder: see the top of this module; for other data, a folder per class, classes in the order of their
            names. transform: PIL image → tensor.
        batch_size: images. limit: as many images, evenly spread over the set. None: all.
        classes: of the model; as many class folders are expected.
        workers: processes that read images. dtype: of the inputs.

    Raises:
        InputError: a folder in neither layout; class folders too few, too many or empty; a flat folder
            without its labels, or labels that lack an image.
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
    if (folder / "val").is_dir():
        folder = folder / "val"
    names = sorted(
        each.name for each in os.scandir(folder) if each.is_dir() and not each.name.startswith(".")
    )
    flat = sorted(each.name for each in os.scandir(folder) if _FLAT.fullmatch(each.name))
    if flat:
        _check_head(classes)
        names = wnids()
        paths = [folder / name for name in flat]
        labels = [names.index(wnid) for wnid in _flat_wnids(folder, flat)]
    elif names:
        _check_class_folders(folder, names, classes)
        paths, labels = [], []
        for label, name in enumerate(names):
            images = sorted(each for each in os.listdir(folder / name) if each.lower().endswith(IMAGES))
            if not images:
                raise InputError(f"the class folder {folder / name} has no images ({', '.join(IMAGES)})")
            paths += [folder / name / image for image in images]
            labels += [label] * len(images)
    else:
        raise InputError(
            f"{folder} is no folder of validation images: it has neither a folder per class (ImageNet-1k: "
            f"n01440764 …) nor ILSVRC2012_val_*.JPEG"
        )
    count = len(paths) if limit is None else min(limit, len(paths))
    chosen = [index * len(paths) // count for index in range(count)]
    return LabelledImages(
        tuple(paths[index] for index in chosen),
        tuple(labels[index] for index in chosen),
        tuple(names),
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
    """The images of a folder and of the folders in it, in the order of their names; every label is 0.

    Args:
        limit: as many images, evenly spread over all. None: all. The others as of :func:`validation`.

    Raises:
        InputError: there are no images.
    """
    paths = sorted(
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGES)
    )
    if not paths:
        raise InputError(f"{folder} has no images ({', '.join(IMAGES)})")
    count = len(paths) if limit is None else min(limit, len(paths))
    chosen = tuple(paths[index * len(paths) // count] for index in range(count))
    return LabelledImages(chosen, (0,) * count, (), transform, batch_size, workers, dtype)


def wnids() -> list[str]:
    """ImageNet-1k's 1,000 classes by WordNet id, in the order of the models' classes."""
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
            f"{len(found)} {kind}: {', '.join(found[:SHOWN])}{' …' if len(found) > SHOWN else ''}"
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
            f"{folder} has {len(names)} class folders ({', '.join(names[:SHOWN])}"
            f"{' …' if len(names) > SHOWN else ''}) and the model {classes} classes; they must be as many"
        )


def _flat_wnids(folder: Path, images: Sequence[str]) -> list[str]:
    """The class of each image of a flat validation folder."""
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
            f"{found} has no label for {len(missing)} of {len(images)} images: {', '.join(missing[:SHOWN])}"
            + (" …" if len(missing) > SHOWN else "")
        )
    known = set(wnids())
    if strange := next((wnid for wnid in classes if wnid not in known), None):
        raise InputError(f"{found} has the label {strange!r}, which is no class of ImageNet-1k")
    return [wnid for wnid in classes if wnid is not None]


def _translation(labels: Path, lines: Sequence[str]) -> Callable[[str], str | None]:
    """From a line of a file of labels to a wnid: itself, or the one that meta.mat has for the number."""
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
    """ILSVRC2012_ID, as text, → wnid, from the development kit's ``synsets`` table."""
    from scipy.io import loadmat

    try:
        table = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
    except Exception as error:  # of a damaged file, as many kinds as it has fields
        raise InputError(
            f"{meta} is not the development kit's {META} ({type(error).__name__}); its table synsets "
            "is needed"
        ) from None
