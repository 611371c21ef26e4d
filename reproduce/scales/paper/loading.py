"""Measurements of the scale ``paper``: pre-trained checkpoints, loaded and not trained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.modules import dtype_name
from lpe.provenance import plain_data
from lpe.writing import write_text_atomic
from reproduce.scales.paper.models import DATA, PaperModel, PaperScale, data_folder
from reproduce.study.answers import task_questions
from reproduce.study.measurer import Classification, Measurer, TestData
from reproduce.study.session import Session, pretrained_device
from reproduce.study.units import Unit


@dataclass(frozen=True)
class Loaded:
    """A checkpoint and its data.

    Args:
        net: in eval mode, where it runs. test: the data that rows are scored on. tuning: examples that no row
            is scored on. record: how the model sees its data (image size, crop, interpolation, mean, std;
            activations; tasks), for the provenance.
    """

    net: nn.Module
    test: TestData
    tuning: TestData
    record: Mapping[str, object]


def load(scale: PaperScale, model: PaperModel) -> Loaded:
    """Load a model and its data.

    Raises:
        InputError: a piece that is missing or damaged.
    """
    kind, _, tag = model.source.partition("/")
    if kind == "hf":
        from lpe.substrates import language

        llama, tokenizer = language.load_model(tag)
        tasks = DATA[model.data].tasks
        asked = partial(task_questions, tokenizer, tasks, scale.tuning_stride)
        nn.Module.to(llama, pretrained_device())
        dtype = str(next(llama.parameters()).dtype)
        return Loaded(llama, asked(), asked(on_tuning=True), {"tasks": tasks, "dtype": dtype})
    from lpe.substrates import imagenet

    if kind == "timm":
        net = imagenet.load_model(tag)
        seen: Mapping[str, object] = imagenet.data_config(net)
        transform = imagenet.evaluation_transform(dict(seen))
    else:
        import open_clip

        from lpe.substrates import clip

        loaded = clip.load_model(tag)
        names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
        head = clip.zero_shot_head(loaded.model.to(pretrained_device()), loaded.tokenizer, names, templates)
        net, transform, seen = clip.ZeroShotClassifier(loaded.model, head), loaded.preprocess, loaded.record
    folder = data_folder() / DATA[model.data].place
    images = imagenet.validation(folder, transform, scale.batch, workers=os.cpu_count() or 1)

    def part(tuning: bool) -> imagenet.LabelledImages:
        chosen = [i for i in range(len(images.paths)) if (i % scale.tuning_stride == 0) == tuning]
        return replace(
            images,
            paths=tuple(images.paths[i] for i in chosen),
            labels=tuple(images.labels[i] for i in chosen),
        )

    test, tuning = part(False), part(True)
    net = net.eval().to(pretrained_device())
    return Loaded(net, Classification(test, tuning), Classification(tuning, tuning), {"data_config": seen})


def measure_pretrained(session: Session[PaperScale], unit: Unit) -> None:
    """Measure the training-free methods on one checkpoint, as the scale's figures and tables need them."""
    scale = session.scale
    model = scale.models[unit.what]
    loaded = load(scale, model)
    net = loaded.net
    described = plain_data({"source": model.source, **loaded.record}, unit.what)
    write_text_atomic(_description(session, unit.what), json.dumps(described))
    measurer = Measurer(session, unit, "SGD", f"{scale.name} {unit.what}", loaded.test)
    measurer.single(net, 0)
    measurer.parameters(net)
    unrounded = dtype_name(net).lower()
    compared = unit.what in scale.figures["table6"]
    if unit.what in scale.figures["table1"]:
        bits, size = scale.table_bits, scale.claim_size
    else:
        bits, size = scale.bits if compared else (scale.large_bits,), scale.size
    measurer.low_precision(net, [lpe.Int(width) for width in bits], size, 0)
    if compared:
        noisy = partial(_gaussian, net, lpe.Int(scale.best_bits))
        dropped = partial(_dropout, net)
        for method, make, grid in (
            ("Gaussian", noisy, scale.gaussian_stds),
            ("MC-dropout", dropped, scale.dropout_rates),
        ):
            # Written last: where it is, the method has been measured.
            if measurer.lacks(method, unrounded, metric="setting"):
                value = tuned(make, grid, scale.claim_size, loaded.tuning)
                measurer.measure(method, unrounded, "", partial(make, value, scale.size))
                setting = {"size": scale.size, "metric": "setting", "value": value}
                measurer.add(method, unrounded, "", [setting])


def _description(session: Session[PaperScale], name: str) -> Path:
    return session.working / f"{name}.model.json"


def descriptions(session: Session[PaperScale], figure: str) -> dict[str, object]:
    """Return how each model of a figure sees its data, as it was when it was measured."""
    return {
        name: json.loads(_description(session, name).read_text(encoding="utf-8"))
        for name in session.scale.figures[figure]
    }


def _gaussian(net: nn.Module, system: lpe.Int, std: float, size: int, seed: int) -> Ensemble:
    return lpe.GaussianEnsemble(net, system, size, seed, std=std)


def _dropout(net: nn.Module, rate: float, size: int, seed: int) -> Ensemble:
    return lpe.MCDropoutEnsemble(net, rate, size, seed)


def tuned(
    make: Callable[[float, int, int], Ensemble], grid: tuple[float, ...], size: int, data: TestData
) -> float:
    """Find the value whose ensemble has the least NLL on the data."""
    losses = [float(data.evaluate(make(value, size, 0), ())["nll"].iloc[-1]) for value in grid]
    return grid[int(np.argmin(losses))]
