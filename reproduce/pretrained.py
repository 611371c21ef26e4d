"""Measurements of the scale ``paper``: pre-trained checkpoints, loaded and not trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

import lpe
from lpe.ensembles.base import Ensemble
from reproduce.answers import task_questions
from reproduce.command import Session
from reproduce.measurements import Classification, Measurer, TestData, Unit
from reproduce.paper import DATA, PaperModel, PaperScale, data_folder, pretrained_device

Loaded = tuple[nn.Module, TestData, TestData]
"""A model in eval mode where it runs, the test data, and examples for tuning, which no row is scored on."""


def load(scale: PaperScale, model: PaperModel) -> Loaded:
    """A model and its data.

    Raises:
        InputError: a piece that is missing or damaged.
    """
    kind, _, tag = model.source.partition("/")
    if kind == "hf":
        from lpe.substrates import language

        llama, tokenizer = language.load_model(tag)
        asked = partial(task_questions, tokenizer, DATA[model.data].tasks, scale.tuning_stride)
        nn.Module.to(llama, pretrained_device())
        return llama, asked(), asked(on_tuning=True)
    from lpe.substrates import imagenet

    if kind == "timm":
        net = imagenet.load_model(tag)
        transform = imagenet.evaluation_transform(imagenet.data_config(net))
    else:
        import open_clip

        from lpe.substrates import clip

        loaded = clip.load_model(tag)
        names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
        head = clip.zero_shot_head(loaded.model.to(pretrained_device()), loaded.tokenizer, names, templates)
        net, transform = clip.ZeroShotClassifier(loaded.model, head), loaded.preprocess
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
    return net.eval().to(pretrained_device()), Classification(test, tuning), Classification(tuning, tuning)


def measure_pretrained(session: Session[PaperScale], unit: Unit) -> None:
    """The training-free methods on one checkpoint, as the figures and tables of the scale need them."""
    scale = session.scale
    net, data, tuning = load(scale, scale.models[unit.what])
    measurer = Measurer(session, unit, "SGD", f"{scale.name} {unit.what}", data)
    measurer.single(net, 0)
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
            if measurer.lacks(method):
                value = tuned(make, grid, scale.claim_size, tuning)
                measurer.measure(method, "fp32", "", partial(make, value, scale.size))
                setting = {"size": scale.size, "metric": "setting", "value": value}
                measurer.add(method, "fp32", "", [setting])


def _gaussian(net: nn.Module, system: lpe.Int, std: float, size: int, seed: int) -> Ensemble:
    return lpe.GaussianEnsemble(net, system, size, seed, std=std)


def _dropout(net: nn.Module, rate: float, size: int, seed: int) -> Ensemble:
    return lpe.MCDropoutEnsemble(net, rate, size, seed)


def tuned(
    make: Callable[[float, int, int], Ensemble], grid: tuple[float, ...], size: int, data: TestData
) -> float:
    """The value whose ensemble has the least NLL on the data."""
    losses = [float(data.evaluate(make(value, size, 0), ())["nll"].iloc[-1]) for value in grid]
    return grid[int(np.argmin(losses))]
