"""Subjects of the cost pictures on real pre-trained weights: ResNets on images, a language model on stories.

The ResNets are there three times: with their batch-norm statistics as they are; with those of RTN and of each
member moved by what they differ from FP32's on training images (relative), which are JPEGs as the test images
are; and with every network's, FP32's too, replaced by those of these images (absolute), so that not one alone
of what is compared has been moved to the JPEGs.

Half of the images or stories validates temperatures and windows, the other half is scored. There is one
checkpoint of each model, so intervals are over blocks of what is scored. Contexts of one story resemble each
other, so a story is on one side alone, and in one block alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpe.ensembles.batch_norm import refresh
from lpe.substrates import cifar_resnet, stories

IMAGES = 5000
TRAINING_IMAGES = 1000
"""Images on which batch-norm statistics are re-estimated, evenly spread over the training set; also JPEG."""


@dataclass(frozen=True)
class Examples:
    """Examples with their targets, and what each is for.

    Args:
        inputs: [examples, …]. targets: int64 [examples]. validating, scored: of the examples.
        units: images or stories that are scored: scored example i is of number i mod ``units``, so that
            examples that are dealt out in turn to blocks, of which ``units`` is a multiple, are whole units.
    """

    inputs: Tensor
    targets: Tensor
    validating: slice
    scored: slice
    units: int


@dataclass(frozen=True)
class Model:
    """A pre-trained model.

    Args:
        substrate: as the record has it. name: as the picture has it. load: from the assets' folder, in eval
            mode. config: what its log-probabilities depend on, beside the members and the code.
    """

    substrate: str
    name: str
    load: Callable[[Path], nn.Module]
    config: Mapping[str, object]


@dataclass(frozen=True)
class Subject:
    """A subject that one picture is of.

    Args:
        stem: its files' names begin with it. own: the model. larger: the next larger single one.
        load: the examples, from the assets' folder. example: what a nat is per.
        examples, units: what examples, and what blocks are made of, are called.
        config: for the provenance of the record.
        size: members of the largest ensembles.
        training: from the assets' folder: batches on which the batch-norm statistics of RTN and the members
            are re-estimated, relative to the model's. None: they are as they are.
        timed_as: the subject whose times are this one's, for the networks differ in their statistics alone.
    """

    stem: str
    own: Model
    larger: Model | None
    load: Callable[[Path], Examples]
    example: str
    examples: str
    units: str
    config: Mapping[str, object]
    size: int = 20
    training: Callable[[Path], list[Any]] | None = None
    timed_as: str | None = None

    @property
    def models(self) -> list[Model]:
        """The model, and the next larger one if there is one."""
        return [self.own] if self.larger is None else [self.own, self.larger]


def _resnet(depth: int) -> Model:
    substrate = f"ResNet-{depth}, {cifar_resnet.DATASET}"
    # The function is looked up when it is called.
    return Model(
        substrate,
        f"ResNet-{depth}",
        lambda assets: cifar_resnet.load_resnet(assets, depth),
        {"depth": depth},
    )


def _relative(depth: int) -> Model:
    as_it_is = _resnet(depth)
    config = {**as_it_is.config, "statistics": f"relative, on {TRAINING_IMAGES} training images"}
    substrate = f"ResNet-{depth} and members relative to it, {cifar_resnet.DATASET}"
    return Model(substrate, as_it_is.name, as_it_is.load, config)


def _re_estimated(depth: int) -> Model:
    def load(assets: Path) -> nn.Module:
        net = cifar_resnet.load_resnet(assets, depth)
        refresh(net, _training(assets))
        return net

    return Model(
        f"ResNet-{depth} re-estimated, {cifar_resnet.DATASET}",
        f"ResNet-{depth}",
        load,
        {"depth": depth, "statistics": f"of {TRAINING_IMAGES} training images"},
    )


def _training(assets: Path) -> list[Any]:
    return cifar_resnet.training_batches(assets, TRAINING_IMAGES)


def load_images(assets: Path) -> Examples:
    """Load IMAGES test images, evenly spread over the classes; those at odd positions are scored."""
    images, targets = cifar_resnet.test_images(assets, IMAGES)
    scored = slice(1, None, 2)
    return Examples(images, targets, slice(0, None, 2), scored, len(targets[scored]))


def load_contexts(assets: Path) -> Examples:
    """Load contexts of all stories; those at even positions, one more than the others, are scored."""
    return examples_of_stories(stories.story_tokens(assets, None, None))


def examples_of_stories(tokens: list[Tensor]) -> Examples:
    """Make examples of stories' contexts, first all that are scored.

    Args:
        tokens: of each story, int64 [tokens of the story].
    """
    scored, validating = (stories.contexts(tokens[start::2]) for start in (0, 1))
    inputs, targets = (torch.cat(both) for both in zip(scored, validating, strict=True))
    count = len(scored[1])
    return Examples(inputs, targets, slice(count, None), slice(0, count), len(tokens[::2]))


def _load_language_model(assets: Path) -> nn.Module:
    return stories.LastToken(stories.load_stories260k(assets).language_model).eval()


_CONTEXTS: dict[str, object] = {"tokens": stories.CONTEXT, "contexts_a_story": stories.CONTEXTS}

SUBJECTS = {
    "resnets": Subject(
        stem="cost",
        own=_resnet(20),
        larger=_resnet(32),
        load=load_images,
        example="image",
        examples="images",
        units="images",
        config={"depths": (20, 32)},
    ),
    "resnets-relative": Subject(
        stem="cost_relative",
        own=_relative(20),
        larger=_relative(32),
        load=load_images,
        example="image",
        examples="images",
        units="images",
        config={"depths": (20, 32), "training_images": TRAINING_IMAGES},
        size=5,
        training=_training,
        timed_as="resnets",
    ),
    "resnets-re-estimated": Subject(
        stem="cost_re_estimated",
        own=_re_estimated(20),
        larger=_re_estimated(32),
        load=load_images,
        example="image",
        examples="images",
        units="images",
        config={"depths": (20, 32), "training_images": TRAINING_IMAGES},
        size=5,
        training=_training,
        timed_as="resnets",
    ),
    "stories": Subject(
        stem="cost_stories",
        own=Model(
            f"stories260k, TinyStories, contexts of {stories.CONTEXT} tokens",
            "stories260k",
            _load_language_model,
            {"model": "stories260k", "transformers": version("transformers"), **_CONTEXTS},
        ),
        larger=None,
        load=load_contexts,
        example="token",
        examples="contexts",
        units="stories",
        config=_CONTEXTS,
    ),
}
"""Subjects by the name that --only takes."""
