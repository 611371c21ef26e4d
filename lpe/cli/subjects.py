"""A model with what it is measured on: images, or lm-eval's tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lpe.cli.models import captions, clip_model, placed, timm_model, zero_shot
from lpe.cli.options import DTYPES, ModelOptions
from lpe.cli.tables import shown_sizes
from lpe.ensembles.base import Ensemble
from lpe.ensembles.batch_norm import FORMS, batch_norms
from lpe.errors import InputError
from lpe.evaluation.predict import PLAIN, EvaluationOptions, evaluate
from lpe.evaluation.timing import MemberTimer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DataOptions:
    """What a model is measured on, and how its forward passes run.

    Args:
        data: the folder of images. tasks: of lm-eval, with commas between. include_path: a folder of tasks.
        metrics: of tasks, with commas between; None: all. num_fewshot: examples before each question.
        batch_size: None: 64, hf: 8. limit: images, or a task's first examples; None: all.
        workers: processes that read images; None: one a core, to 8.
        members: "one-by-one" (None too) or "together". autocast, channels_last, pin_memory: see
            :class:`lpe.evaluation.predict.EvaluationOptions`.
        calibrated: whether every shown size gets its NLL under a fitted temperature.
        refresh: a folder of training images, or "auto"; None: batch-norm statistics stay as they are.
        refresh_form: one of :data:`lpe.ensembles.batch_norm.FORMS`. refresh_limit: images.
    """

    data: str | None = None
    tasks: str | None = None
    include_path: str | None = None
    metrics: str | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
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

    def check(self) -> None:
        """InputError for a number out of its range, before a model is loaded."""
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit must be 1 or more, not {self.limit}")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"--batch-size must be 1 or more, not {self.batch_size}")
        if self.refresh_limit < 2:
            raise InputError(f"--refresh-limit must be 2 or more, not {self.refresh_limit}")

    def training_folder(self) -> Path | None:
        """The folder of training images.

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
    """The options of what a model is measured on."""
    parser.add_argument("--data", metavar="DIR", help="timm, open_clip: the folder of validation images")
    parser.add_argument("--tasks", metavar="A,B", help="hf: tasks of lm-eval, or of --include-path")
    parser.add_argument("--include-path", metavar="DIR", help="hf: a folder of task files of your own")
    parser.add_argument(
        "--metrics", metavar="A,B", help="hf: such as nll,ece; every task must have them (all)"
    )
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="hf: examples before each question")
    parser.add_argument("--batch-size", type=int, metavar="N", help="(64; hf: 8)")
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
    """The options of re-estimated batch-norm statistics."""
    parser.add_argument(
        "--refresh",
        metavar="DIR",
        help="training images, in folders of any kind, labels not looked at; auto: train in or beside --data",
    )
    parser.add_argument(
        "--refresh-form", choices=FORMS, help="(relative: the model as it is keeps its own), or absolute"
    )
    parser.add_argument(
        "--refresh-limit", type=int, metavar="N", help="as many of them, spread evenly (1000)"
    )


def add_passes(parser: Any) -> None:
    """The options of how forward passes on images run."""
    parser.add_argument(
        "--members", choices=("one-by-one", "together"), help="(one-by-one); together: lpe only, at once"
    )
    parser.add_argument("--autocast", action="store_true", help="mixed precision, with bfloat16")
    parser.add_argument("--channels-last", action="store_true", help="how images lie in memory")
    parser.add_argument("--pin-memory", action="store_true", help="GPU: send batches without waiting")


@dataclass(frozen=True)
class Subject:
    """A model with what it is measured on.

    Args:
        title: of the table. model: on its device. batches: of images; None for a language model, which is
            measured on tasks. record: what determines the numbers, for the provenance.
        measure: (ensemble, timer) → a row per size, and per task where there are tasks.
        options: of the forward passes on images.
        training: batches to re-estimate every member's batch-norm statistics on, and the form; None: they
            stay as they are.
    """

    title: str
    model: nn.Module
    batches: Iterable[Any] | None
    record: Mapping[str, object]
    measure: Callable[[Ensemble, MemberTimer], pd.DataFrame]
    options: EvaluationOptions = PLAIN
    training: tuple[Iterable[Any], str] | None = None


def subject(model: ModelOptions, data: DataOptions, device: torch.device) -> Subject:
    """The model on its data.

    Raises:
        InputError: no data are given or there; whatever the loaders of models and of data refuse.
    """
    return _language(model, data, device) if model.kind == "hf" else _images(model, data, device)


def _images(asked: ModelOptions, seen: DataOptions, device: torch.device) -> Subject:
    from lpe.substrates import imagenet

    if seen.data is None:
        raise InputError(
            f"give the folder of images by --data DIR; {asked.kind} models are measured on images"
        )
    if not Path(seen.data).is_dir():
        raise InputError(f"there is no folder {seen.data}; give the folder of the validation images")
    training_folder = seen.training_folder()
    if asked.kind == "timm":
        model = timm_model(asked)
        classes = imagenet.classes_of(model)
        config = imagenet.data_config(model)
        transform = imagenet.evaluation_transform(config)
        record: dict[str, object] = {"model": f"timm/{imagenet.model_name(model)}", "data_config": config}
    else:
        class_names, templates = captions(asked)
        loaded = clip_model(asked)
        classes = imagenet.CLASSES if class_names is None else len(class_names)
        transform = loaded.preprocess
        record = {"model": asked.model, "clip": loaded.record, "templates": templates}
    data = imagenet.validation(
        seen.data,
        transform,
        64 if seen.batch_size is None else seen.batch_size,
        seen.limit,
        classes,
        min(8, os.cpu_count() or 1) if seen.workers is None else seen.workers,
        DTYPES[asked.dtype or "float32"],
    )
    if asked.kind == "open_clip":
        model = zero_shot(loaded, class_names, templates, device)
    model = placed(model, device, asked)
    training = None
    if training_folder is not None:
        if not batch_norms(model):
            raise InputError(
                f"{asked.model} has no batch norms, so there is nothing to --refresh; leave it out"
            )
        images = imagenet.unlabelled(
            training_folder, transform, data.batch_size, seen.refresh_limit, data.workers, data.dtype
        )
        # In memory: every member's statistics are of the same batches, which are read once.
        training = (list(images), seen.refresh_form)

    options = EvaluationOptions(seen.autocast, seen.channels_last, seen.pin_memory)
    members = seen.members or "one-by-one"

    def measure(ensemble: Ensemble, timer: MemberTimer) -> pd.DataFrame:
        sizes = shown_sizes(len(ensemble)) if seen.calibrated else False
        return evaluate(ensemble, data, calibrated=sizes, timer=timer, members=members, options=options)

    weights = ", random weights" if asked.random_weights else ""
    record |= {
        "checkpoint": asked.checkpoint,
        "random_weights": asked.random_weights,
        "data": seen.data,
        "images": len(data.paths),
        "classes": classes,
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
    title = f"{record['model']}{weights}, {len(data.paths):,} images of {classes:,} classes"
    return Subject(title, model, data, record, measure, options, training)


def _language(asked: ModelOptions, seen: DataOptions, device: torch.device) -> Subject:
    from lpe.substrates import language

    if seen.tasks is None:
        raise InputError("name tasks by --tasks A,B; hf models are measured on lm-eval's tasks")
    tasks = [task for task in seen.tasks.split(",") if task]
    metrics = None if seen.metrics is None else [each for each in seen.metrics.split(",") if each]
    loaded, tokenizer = language.load_model(asked.name, asked.checkpoint, asked.torch_dtype)
    model = placed(loaded, device, asked)
    batch_size = 8 if seen.batch_size is None else seen.batch_size

    def measure(ensemble: Ensemble, timer: MemberTimer) -> pd.DataFrame:
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
    return Subject(asked.model, model, None, record, measure)
