"""Pre-trained checkpoints with their data: loaded and not trained."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from lpe.extras import needs
from reproduce.scales.paper.models import DATA, PaperModel, content, data_folder
from reproduce.study.answers import task_questions
from reproduce.study.run import device_of
from reproduce.study.scale import Classification, Data, TestData


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


def load(model: PaperModel, batch: int, tuning_stride: int) -> Loaded:
    """Load a model and its data.

    Args:
        batch: images a pass. tuning_stride: every so many test examples one is scored by no row.

    Raises:
        InputError: a piece that is missing or damaged.
    """
    kind, _, tag = model.source.partition("/")
    where = torch.device(device_of("auto"))
    if kind == "hf":
        from lpe.substrates import language

        llama, tokenizer = language.load_model(tag)
        tasks = DATA[model.data].tasks
        asked = partial(task_questions, tokenizer, tasks, tuning_stride)
        nn.Module.to(llama, where)
        dtype = str(next(llama.parameters()).dtype)
        return Loaded(
            llama, asked(), asked(on_tuning=True), {"source": model.source, "tasks": tasks, "dtype": dtype}
        )
    from lpe.substrates import imagenet

    if kind == "timm":
        net = imagenet.load_model(tag)
        seen: Mapping[str, object] = imagenet.data_config(net)
        transform = imagenet.evaluation_transform(dict(seen))
    else:
        needs("open_clip")

        import open_clip

        from lpe.substrates import clip

        loaded = clip.load_model(tag)
        names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
        head = clip.zero_shot_head(loaded.model.to(where), loaded.tokenizer, names, templates)
        net, transform, seen = clip.ZeroShotClassifier(loaded.model, head), loaded.preprocess, loaded.record
    folder = data_folder() / DATA[model.data].place
    images = imagenet.validation(folder, transform, batch, workers=os.cpu_count() or 1)

    def part(tuning: bool) -> imagenet.LabelledImages:
        chosen = [i for i in range(len(images.paths)) if (i % tuning_stride == 0) == tuning]
        return replace(
            images,
            paths=tuple(images.paths[i] for i in chosen),
            labels=tuple(images.labels[i] for i in chosen),
        )

    test, tuning = part(False), part(True)
    net = net.eval().to(where)
    described: Mapping[str, object] = {"source": model.source, "data_config": seen}
    return Loaded(net, Classification(test, tuning), Classification(tuning, tuning), described)


@dataclass(frozen=True)
class Checkpoint:
    """A pre-trained model on its test data.

    Args:
        batch: images a pass. tuning_stride: every so many test examples one is scored by no row: it fits
            temperatures and tunes noise and dropout.
    """

    model: PaperModel
    batch: int
    tuning_stride: int

    def loaded(self) -> Loaded:
        """Return the model with its data; of several, the last is kept in memory."""
        return _kept(self)

    def load(self, seed: int) -> Data:
        """Return the test data, the same at every seed."""
        loaded = self.loaded()
        return Data(
            scored=loaded.test,
            tuning=loaded.tuning,
            train=None,
            validation=(),
            test=(),
            statistics=None,
            images=None,
        )

    def digest(self, seed: int) -> str:
        """Return a hash of the weights and the test data, the same at every seed."""
        return content(self.model.source, self.model.data)

    # A model's configuration may hold what has no hash.
    def __hash__(self) -> int:
        return hash((self.model.source, self.batch, self.tuning_stride))


@functools.lru_cache(maxsize=1)
def _kept(checkpoint: Checkpoint) -> Loaded:
    return load(checkpoint.model, checkpoint.batch, checkpoint.tuning_stride)
