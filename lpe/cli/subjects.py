"""A model with what it is measured on: images, or lm-eval's tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lpe.cli.batch_size import AUTO, batch_size, fitting
from lpe.cli.models import captions, clip_model, placed, timm_model, zero_shot
from lpe.cli.options import DTYPES, ModelOptions
from lpe.cli.tables import shown_sizes
from lpe.ensembles.base import Ensemble
from lpe.ensembles.batch_norm import FORMS, batch_norms
from lpe.errors import InputError
from lpe.evaluation.metrics import METRICS
from lpe.evaluation.options import EvaluationOptions
from lpe.evaluation.predict import evaluate, evaluate_temperature_scaled
from lpe.evaluation.predictions import CLASSES
from lpe.evaluation.score import checked_metrics
from lpe.evaluation.sharded import RayTasks, Sharing, said
from lpe.evaluation.timing import MemberTimer
from lpe.modules import apply, dtype_name, parameter_count

if TYPE_CHECKING:
    import pandas as pd

    from lpe.substrates.timm_models import Preprocessing


MOST_PIXELS = 16_384
"""Of an edge of the images that a model sees."""

MOST_EXAMPLES = 1_000_000
"""In a batch, or before a question."""

MOST_WORKERS = 256

USUAL_BATCH, USUAL_TEXTS = 64, 8
"""Examples of a batch, of images and of texts."""

LONGEST_TEXT = 2048
"""Tokens of a text with which a batch is tried."""


@dataclass(frozen=True)
class DataOptions:
    """Options that say what a model is measured on, and how its forward passes run.

    Args:
        data: the folder of images. tasks: of lm-eval, with commas between. include_path: a folder of tasks.
        metrics: with commas between: of tasks; None: all. Of images: beside the usual ones.
        num_fewshot: examples before each question.
        batch_size: None: 64, hf: 8; "auto": what a GPU has room for.
        limit: images, or a task's first examples; None: all.
        workers: processes that read images; None: one a core, to 8.
        members: "one-by-one" (None too) or "together". autocast, channels_last, pin_memory: see
            :class:`lpe.EvaluationOptions`.
        calibrated: whether every shown size gets its NLL under a fitted temperature.
        refresh: a folder of training images, or "auto"; None: batch-norm statistics stay as they are.
        refresh_form: one of :data:`lpe.ensembles.batch_norm.FORMS`. refresh_limit: images.
        input_size: of images in pixels, one number or height and width. mean, image_std, interpolation,
            crop_pct, train_size: see :class:`lpe.substrates.timm_models.Preprocessing`.
    """

    data: str | None = None
    tasks: str | None = None
    include_path: str | None = None
    metrics: str | None = None
    num_fewshot: int | None = None
    batch_size: int | str | None = None
    limit: int | None = None
    workers: int | None = None
    members: str | None = None
    autocast: bool = False
    channels_last: bool = False
    pin_memory: bool = False
    calibrated: bool = False
    refresh: str | None = None
    refresh_form: str = FORMS[0]
    refresh_limit: int = 1000
    input_size: list[int] | None = None
    mean: list[float] | None = None
    image_std: list[float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    train_size: bool = False

    def preprocessing(self) -> Preprocessing:
        """Return what was given of how images are prepared.

        Raises:
            InputError: a number out of its range; a size of more than two.
        """
        from lpe.substrates.timm_models import Preprocessing

        size = self.input_size
        if size is not None and len(size) > 2:
            raise InputError(f"--input-size takes one number or height and width, not {len(size)}")
        if size is not None and not all(1 <= edge <= MOST_PIXELS for edge in size):
            raise InputError(f"--input-size must be 1 to {MOST_PIXELS:,} pixels, not {max(size, key=abs)}")
        if self.crop_pct is not None and not 0.05 <= self.crop_pct <= 20:
            # The image is resized to the input size over the share before it is cropped.
            raise InputError(f"--crop-pct must be a share, 0.05 to 20, such as 0.875, not {self.crop_pct:g}")
        return Preprocessing(
            None if size is None else (size[0], size[-1]),
            None if self.mean is None else tuple(self.mean),
            None if self.image_std is None else tuple(self.image_std),
            self.interpolation,
            self.crop_pct,
            self.train_size,
        )

    def check(self) -> None:
        """Raise InputError for a number out of its range, before a model is loaded."""
        bounds: dict[str, tuple[int, int | None]] = {
            "limit": (1, None),
            "batch_size": (1, MOST_EXAMPLES),
            "refresh_limit": (2, None),
            "workers": (0, MOST_WORKERS),
            "num_fewshot": (0, MOST_EXAMPLES),
        }
        for option, (least, most) in bounds.items():
            value = getattr(self, option)
            if isinstance(value, int) and (value < least or (most is not None and value > most)):
                wanted = f"{least} or more" if most is None or value < least else f"{most:,} or less"
                raise InputError(f"--{option.replace('_', '-')} must be {wanted}, not {value}")
        seen = (self.input_size, self.mean, self.image_std, self.interpolation, self.crop_pct)
        if any(value is not None for value in seen):
            self.preprocessing()

    def metrics_of_images(self) -> list[str] | str | None:
        """Return the metrics of images: the usual ones, and those that were asked for.

        Raises:
            InputError: one that there is not.
        """
        if self.metrics is None:
            return None
        asked = [each for each in self.metrics.split(",") if each]
        return "all" if asked == ["all"] else checked_metrics([*METRICS, *asked], CLASSES)

    def training_folder(self) -> Path | None:
        """Return the folder of training images.

        Raises:
            InputError: there is none.
        """
        if self.refresh is None:
            return None
        folder = Path(self.refresh)
        if self.refresh == "auto":
            beside = [Path(self.data or "") / "train", Path(self.data or "").absolute().parent / "train"]
            folder = next((each for each in beside if each.is_dir()), beside[0])
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder}; give a folder of training images by --refresh DIR"
            )
        return folder


def add_data(parser: Any) -> None:
    """Add the options of what a model is measured on."""
    parser.add_argument("--data", metavar="DIR", help="timm, open_clip: the folder of validation images")
    parser.add_argument("--tasks", metavar="A,B", help="hf: tasks of lm-eval, or of --include-path")
    parser.add_argument("--include-path", metavar="DIR", help="hf: a folder of task files of your own")
    parser.add_argument(
        "--metrics",
        metavar="A,B",
        help="such as nll,ece (all that there are); hf: every task must have them; images: beside the usual "
        "ones, such as aurc, or all",
    )
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="hf: examples before each question")
    parser.add_argument(
        "--batch-size",
        type=batch_size,
        metavar="N",
        help="(64; hf: 8), or auto: the largest that fits into half of a GPU's memory",
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="images, spread evenly over the set; hf: a task's first examples",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (one a core, to 8)"
    )


def add_refresh(parser: Any) -> None:
    """Add the options of re-estimated batch-norm statistics."""
    parser.add_argument(
        "--refresh",
        metavar="DIR",
        help="training images, in folders of any kind, labels not looked at; auto: train in or beside --data",
    )
    parser.add_argument(
        "--refresh-form", choices=FORMS, help="(relative: the model as it is keeps its own), or absolute"
    )
    parser.add_argument(
        "--refresh-limit", type=int, metavar="N", help="training images to take, spread evenly (1000)"
    )


def add_preprocessing(parser: Any) -> None:
    """Add the options of how images are prepared."""
    parser.add_argument(
        "--input-size", type=int, nargs="+", metavar="N", help="timm: pixels, a square or height and width"
    )
    parser.add_argument("--mean", type=float, nargs=3, metavar="X", help="of the channels (--std: above)")
    parser.add_argument("--interpolation", metavar="NAME", help="such as bicubic or bilinear")
    parser.add_argument("--crop-pct", type=float, metavar="X", help="timm: the crop's share of an edge")
    parser.add_argument(
        "--train-size", action="store_true", help="timm: the size of training, where tests have another"
    )


def add_passes(parser: Any) -> None:
    """Add the options of how forward passes on images run."""
    parser.add_argument(
        "--members",
        choices=("one-by-one", "together"),
        help="(one-by-one), or together: all at once, of --method lpe",
    )
    parser.add_argument("--autocast", action="store_true", help="mixed precision, with bfloat16")
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="images lie in memory with the channels last, which convolutions may run faster on",
    )
    parser.add_argument("--pin-memory", action="store_true", help="GPU: send batches without waiting")


@dataclass(frozen=True)
class Written:
    """Where every member's predictions go.

    Args:
        path: a file, or a folder of tasks. dtype: of the log-probabilities. record: plain data on what they
            are, for the file's header.
    """

    path: Path
    dtype: str = "float32"
    record: Mapping[str, object] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return an evaluation's arguments."""
        return {
            "predictions": self.path,
            "predictions_dtype": self.dtype,
            "predictions_record": self.record,
        }


@dataclass(frozen=True)
class Subject:
    """A model with what it is measured on.

    Args:
        title: of the table. model: on its device. steps: batches of images that are counted a member; None:
            none, as for a language model, which is measured on tasks. record: what determines the numbers,
            for the provenance.
        measure: (ensemble, timer, where predictions are written) → a row per size, and per task where there
            are tasks.
        options: how the data are read, resolved: what was not given has the value that was taken.
        warm: a pass of a network on a batch without content; None: members do not run in this process.
        scaled: an ensemble → metrics with a temperature; None: those of tasks come with the others.
        how: a line on what images go through; nothing for tasks.
        training: batches to re-estimate every member's batch-norm statistics on, and the form; None: they
            stay as they are.
    """

    title: str
    model: nn.Module
    steps: int | None
    record: Mapping[str, object]
    measure: Callable[[Ensemble, MemberTimer, Written | None], pd.DataFrame]
    options: DataOptions
    warm: Callable[[nn.Module], object] | None = None
    scaled: Callable[[Ensemble], Mapping[str, float]] | None = None
    how: str = ""
    training: tuple[Iterable[Any], str] | None = None


def subject(
    model: ModelOptions, data: DataOptions, device: torch.device, sharing: Sharing | None = None
) -> Subject:
    """Return the model on its data.

    Args:
        sharing: processes that measure it together; None: this one alone.

    Raises:
        InputError: no data are given or there; whatever the loaders of models and of data refuse.
    """
    if model.kind == "hf":
        return _language(model, data, device)
    return _images(model, data, device, sharing)


def _images(asked: ModelOptions, seen: DataOptions, device: torch.device, sharing: Sharing | None) -> Subject:
    from lpe.substrates import imagenet

    if seen.data is None:
        raise InputError(
            f"give the folder of images by --data DIR; {asked.kind} models are measured on images"
        )
    if not Path(seen.data).is_dir():
        raise InputError(f"there is no folder {seen.data}; give the folder of the validation images")
    training_folder = seen.training_folder()
    metrics = seen.metrics_of_images()
    class_names, templates = captions(asked)
    if asked.kind == "timm":
        pictured = _timm(asked, seen.preprocessing())
    else:
        pictured = _clip(asked, seen.preprocessing(), class_names, templates)
    data = imagenet.validation(
        seen.data,
        pictured.transform,
        seen.batch_size if isinstance(seen.batch_size, int) else USUAL_BATCH,
        seen.limit,
        pictured.classes,
        min(8, os.cpu_count() or 1) if seen.workers is None else seen.workers,
        DTYPES[asked.dtype or "float32"],
        class_names,
    )
    if asked.kind == "open_clip" and class_names is None and list(data.class_names) != imagenet.wnids():
        raise InputError(
            f"{seen.data} has classes of its own, and a zero-shot model needs their names: give --class-names"
        )
    model = placed(pictured.classifier(device), device, asked)
    options = EvaluationOptions(seen.autocast, seen.channels_last, seen.pin_memory)

    @torch.no_grad()
    def blank(net: nn.Module, examples: int) -> None:
        inputs = torch.zeros(examples, 3, *pictured.pixels, dtype=data.dtype)
        options.logits(net, options.placed(inputs, device), device)

    if seen.batch_size == AUTO:
        fits = fitting(lambda examples: blank(model, examples), device, USUAL_BATCH)
        data = replace(data, batch_size=fits)
    training = None
    if training_folder is not None:
        if not batch_norms(model):
            raise InputError(
                f"{asked.model} has no batch norms, so there is nothing to --refresh; leave it out"
            )
        images = imagenet.unlabelled(
            training_folder,
            pictured.transform,
            data.batch_size,
            seen.refresh_limit,
            data.workers,
            data.dtype,
        )
        # In memory: every member's statistics are of the same batches, which are read once.
        training = (list(images), seen.refresh_form)

    members = seen.members or "one-by-one"

    def measure(ensemble: Ensemble, timer: MemberTimer, written: Written | None) -> pd.DataFrame:
        calibrated = shown_sizes(len(ensemble)) if seen.calibrated else False
        if sharing is None:
            return evaluate(
                ensemble,
                data,
                calibrated=calibrated,
                timer=timer,
                members=members,
                options=options,
                metrics=metrics,
                **(written.arguments() if written else {}),
            )
        found = said(sharing, ensemble, data, options, timer, device)
        if found is None:
            return _nothing(ensemble)
        return evaluate(*found, calibrated=calibrated, members=members, metrics=metrics)

    def scaled(ensemble: Ensemble) -> Mapping[str, float]:
        if sharing is None:
            return evaluate_temperature_scaled(ensemble, data, options=options)
        found = said(sharing, ensemble, data, options, device=device)
        return {} if found is None else evaluate_temperature_scaled(*found)

    record = pictured.record | {
        "checkpoint": asked.checkpoint,
        "random_weights": asked.random_weights,
        "class_names": asked.class_names,
        "data": seen.data,
        "images": len(data.paths),
        "classes": pictured.classes,
        "batch_size": data.batch_size,
        "dtype": asked.dtype or "float32",
        "members": members,
        **asdict(options),
        **(
            {}
            if training is None
            else {
                "refresh": str(training_folder),
                "refresh_form": seen.refresh_form,
                "refresh_images": sum(len(inputs) for inputs, _ in training[0]),
            }
        ),
    }
    title = f"{pictured.title}, {len(data.paths):,} images of {pictured.classes:,} classes"
    steps = len(data) if sharing is None else sharing.steps(len(data))

    def warm(net: nn.Module) -> None:
        blank(net, min(data.batch_size, len(data.paths)))

    return Subject(
        title,
        model,
        steps,
        record,
        measure,
        replace(seen, batch_size=data.batch_size, workers=data.workers, members=members),
        None if isinstance(sharing, RayTasks) else warm,
        scaled,
        pictured.how,
        training,
    )


def loaded(measured: Subject, device: torch.device, members: str) -> str:
    """Return a line on what is measured and where, for before the first pass."""
    model = measured.model
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    batch = f"batches of {measured.options.batch_size:,}"
    return (
        f"loaded: {measured.title}; {parameter_count(model):,} parameters, {dtype_name(model)}; {members}; "
        f"{batch}, on {device}{threads}"
    )


def _nothing(ensemble: Ensemble) -> pd.DataFrame:
    """Return a table of an ensemble's sizes alone, for a process that another one evaluates for."""
    import pandas as pd

    return pd.DataFrame({"size": range(1, len(ensemble) + 1)})


@dataclass(frozen=True)
class _Pictured:
    """A model of images and how it sees them.

    Args:
        title: the model's name, and where its weights are from if they are not the name's. classes: how many.
        pixels: height and width of what it sees.
        transform: PIL image → tensor. record: for the provenance. how: a line on what the images go through.
        classifier: (device) → the model to measure.
    """

    title: str
    classes: int
    pixels: tuple[int, int]
    transform: Callable[[Any], torch.Tensor]
    record: dict[str, object]
    how: str
    classifier: Callable[[torch.device], nn.Module]


def _timm(asked: ModelOptions, given: Preprocessing) -> _Pictured:
    from lpe.substrates import timm_models

    arguments, given = timm_models.sized(asked.name, asked.arguments, given)
    model = timm_model(asked, arguments)
    config = timm_models.data_config(model, given)
    if arguments or given.given():
        timm_models.check_sees(model, config)
    name = f"timm/{timm_models.model_name(model)}"
    # Weights that were not read are no title; how their model sees images is taken from them all the same.
    own = asked.checkpoint is None and not asked.random_weights
    title = name if own else f"timm/{timm_models.architecture(model)}{_weights(asked)}"
    size = "training" if given.train_size else "test"
    _, height, width = config["input_size"]
    how = (
        f"images as {name} has them ({size} size)"
        f"{_but(given.given())}: {height} x {width}, crop {config['crop_pct']:g} ({config['crop_mode']}), "
        f"{config['interpolation']}, mean {_numbers(config['mean'])}, std {_numbers(config['std'])}"
    )
    if arguments:
        how += f"; model arguments: {', '.join(f'{key}={value}' for key, value in arguments.items())}"
    record: dict[str, object] = {
        "model": name if own else f"timm/{timm_models.architecture(model)}",
        "model_kwargs": dict(arguments),
        "data_config": config,
        "data_config_of": name,
        "size": size,
        "preprocessing": given.given(),
    }
    transform = timm_models.evaluation_transform(config)
    classes = timm_models.classes_of(model)
    return _Pictured(title, classes, (height, width), transform, record, how, lambda device: model)


def _clip(
    asked: ModelOptions, given: Preprocessing, class_names: list[str] | None, templates: list[str] | None
) -> _Pictured:
    from lpe.substrates import imagenet

    loaded = clip_model(asked, given.given())
    seen: Mapping[str, Any] = loaded.record
    size = seen["image_size"]
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    how = (
        f"images as {asked.model} has them{_but(given.given())}: {height} x {width}, "
        f"{seen['resize_mode']}, {seen['interpolation']}, mean {_numbers(seen['mean'])}, "
        f"std {_numbers(seen['std'])}"
    )
    own = asked.checkpoint is None and not asked.random_weights
    title = asked.model if own else f"{asked.model.partition(':')[0]}{_weights(asked)}"
    record: dict[str, object] = {
        "model": title if own else asked.model.partition(":")[0],
        "clip": seen,
        "preprocessing": given.given(),
        "templates": templates,
    }
    classes = imagenet.CLASSES if class_names is None else len(class_names)

    def classifier(device: torch.device) -> nn.Module:
        return zero_shot(loaded, class_names, templates, device)

    return _Pictured(title, classes, (height, width), loaded.preprocess, record, how, classifier)


def _weights(asked: ModelOptions) -> str:
    """Say where weights are from that are not those of a model's name."""
    if asked.random_weights:
        return ", random weights"
    return "" if asked.checkpoint is None else f", weights of {Path(asked.checkpoint).name}"


def _but(given: Mapping[str, object]) -> str:
    names = [name for name in given if name != "train_size"]
    return f" but for {', '.join(names)}" if names else ""


def _numbers(values: Any) -> str:
    return " ".join(f"{value:g}" for value in values)


def _language(asked: ModelOptions, seen: DataOptions, device: torch.device) -> Subject:
    from lpe.substrates import language

    if seen.tasks is None:
        raise InputError("name tasks by --tasks A,B; hf models are measured on lm-eval's tasks")
    tasks = [task for task in seen.tasks.split(",") if task]
    metrics = None if seen.metrics is None else [each for each in seen.metrics.split(",") if each]
    loaded, tokenizer = language.load_model(asked.name, asked.checkpoint, asked.torch_dtype)
    model = placed(loaded, device, asked)
    config: Any = model.config
    longest = min(getattr(config.get_text_config(), "max_position_embeddings", LONGEST_TEXT), LONGEST_TEXT)

    @torch.no_grad()
    def blank(net: nn.Module, texts: int, tokens: int) -> None:
        inputs = torch.zeros(texts, tokens, dtype=torch.int64, device=device)
        apply(net, inputs).log_softmax(dim=-1)

    batch_size = seen.batch_size if isinstance(seen.batch_size, int) else USUAL_TEXTS
    if seen.batch_size == AUTO:
        batch_size = fitting(lambda texts: blank(model, texts, longest), device, USUAL_TEXTS)

    def measure(ensemble: Ensemble, timer: MemberTimer, written: Written | None) -> pd.DataFrame:
        return language.evaluate(
            ensemble,
            tokenizer,
            tasks,
            seen.include_path,
            batch_size,
            seen.limit,
            seen.num_fewshot,
            metrics,
            timer,
            calibrated=True,
            **(written.arguments() if written else {}),
        )

    record = {
        "model": asked.model,
        "checkpoint": asked.checkpoint,
        "tasks": tasks,
        "include_path": seen.include_path,
        "num_fewshot": seen.num_fewshot,
        "limit": seen.limit,
        "batch_size": batch_size,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    resolved = replace(seen, batch_size=batch_size)
    # As many tokens as a short request has: the kernels are the same.
    return Subject(
        asked.model, model, None, record, measure, resolved, lambda net: blank(net, 1, min(16, longest))
    )
