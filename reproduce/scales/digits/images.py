"""The digits' images and their Vision Transformers, and the pre-training that trainings start from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpe.substrates import digits
from lpe.substrates.digits import DigitsData, DigitsNetwork, Jitter
from lpe.training.loop import train
from lpe.training.schedules import warmup_cosine
from reproduce.study.points import Report, config_of, fine_tuning_seed, trained, training_examples
from reproduce.study.run import Run
from reproduce.study.scale import Classification, Data, Split, Started, Substrate

HEAD = "head."


def data_of(data: DigitsData, seed: int) -> Data:
    """Return the images of a training seed as the study has them: each split one batch."""
    test, validation = [data.test], [data.validation]
    return Data(
        scored=Classification(test, validation),
        tuning=Classification(validation, validation),
        train=data.train,
        validation=validation,
        test=test,
        statistics=None,
        images=torch.from_numpy(digits.split_indices(seed)[2]),
    )


@functools.cache
def _data(seed: int) -> Data:
    return data_of(digits.load(seed), seed)


@dataclass(frozen=True)
class DigitsImages:
    """A Vision Transformer on scikit-learn's digits, augmented by jitter."""

    shape: DigitsNetwork
    jitter: Jitter

    @property
    def classes(self) -> int:
        """The ten digits."""
        return digits.CLASSES

    def load(self, seed: int) -> Data:
        """Return the images of a training seed: a fold tests, the next one validates, three train."""
        return _data(seed)

    def network(self, classes: int, seed: int) -> nn.Module:
        """Return a freshly initialised Vision Transformer."""
        return digits.network(self.shape, classes, seed)

    def batches(self, split: Split, batch: int, seed: int) -> Callable[[int], Iterator[Split]]:
        """Return a function: epoch → shuffled batches, each image as one of its jittered copies."""
        return digits.batches(split, batch, seed, self.jitter)


@dataclass(frozen=True)
class PreTraining:
    """An auxiliary task on the training images alone, by AdamW with warm-up and cosine.

    Args:
        task: of ``digits.AUXILIARY_TASKS``. epochs: 0 is fine-tuning from scratch.
    """

    task: str
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float

    def start(self, run: Run, substrate: Substrate, seed: int, replica: int) -> Started:
        """Return a network of the pre-trained trunk and a new head."""
        source = substrate.source

        def fit(report: Report) -> tuple[dict[str, Tensor], dict[str, Any]]:
            split = digits.AUXILIARY_TASKS[self.task](training_examples(substrate, seed))
            net = source.network(int(split[1].max()) + 1, seed)
            batches = source.batches(split, self.batch, seed)
            steps = max(1, self.epochs * (len(split[0]) // self.batch))
            optimizer = torch.optim.AdamW(net.parameters(), weight_decay=self.weight_decay, fused=True)
            schedule = warmup_cosine(self.learning_rate, steps)
            done = train(net, batches, optimizer, schedule, self.epochs, seed, report=report)
            trunk = {name: value for name, value in net.state_dict().items() if not name.startswith(HEAD)}
            return trunk, {"backward_passes": done.backward_passes}

        config = config_of(run, substrate, "pre-training", seed, self, None)
        entry = trained(run, config, self.epochs, fit)
        net = source.network(source.classes, fine_tuning_seed(seed, replica))
        missing = net.load_state_dict(entry.tensors, strict=False)
        assert all(name.startswith(HEAD) for name in missing.missing_keys) and not missing.unexpected_keys
        return Started(net, int(entry.info["backward_passes"]), config)
