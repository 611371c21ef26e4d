"""The digits CLIPs: trained on captioned scans, as zero-shot classifiers.

Their weights come out of the store where they are already there; the head is computed from them by the code
that computes the head of every CLIP.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpe.substrates import captioned_digits
from lpe.substrates.captioned_digits import DigitsCLIP
from lpe.substrates.clip import ZeroShotClassifier, zero_shot_head
from lpe.substrates.digits import Jitter
from lpe.training.loop import train
from lpe.training.schedules import warmup_cosine
from reproduce.scales.digits.images import data_of
from reproduce.study.points import Report, config_of, trained, training_examples
from reproduce.study.run import Run
from reproduce.study.scale import Data, Point, Substrate


@functools.cache
def _data(seed: int) -> Data:
    return data_of(captioned_digits.load(seed), seed)


@dataclass(frozen=True)
class CaptionedDigits:
    """A CLIP on scikit-learn's digits with captions, augmented by jitter."""

    shape: DigitsCLIP
    jitter: Jitter

    def load(self, seed: int) -> Data:
        """Return the images of a training seed, split as the digits are."""
        return _data(seed)


@dataclass(frozen=True)
class CLIPTraining:
    """Contrastive training of a digits CLIP from scratch, by AdamW with warm-up and cosine."""

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float

    has_posterior: ClassVar[bool] = False

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return the zero-shot classifier; its point goes by SGD's name, whichever optimiser found it."""
        source = substrate.source

        def fit(report: Report) -> tuple[dict[str, Tensor], dict[str, Any]]:
            split = training_examples(substrate, seed)
            model = captioned_digits.network(source.shape, seed)
            batches = captioned_digits.batches(split, self.batch, seed, source.jitter)
            groups = captioned_digits.parameter_groups(model, self.weight_decay)
            optimizer = torch.optim.AdamW(groups, fused=True)
            schedule = warmup_cosine(self.learning_rate, self.epochs * (len(split[0]) // self.batch))
            pairs = captioned_digits.Contrastive(model)
            done = train(pairs, batches, optimizer, schedule, self.epochs, seed, report=report)
            return model.state_dict(), {
                "backward_passes": done.backward_passes,
                "last_loss": done.curve[-1]["loss"],
            }

        config = config_of(run, substrate, substrate.short, seed, self, None)
        entry = trained(run, config, self.epochs, fit)
        model = captioned_digits.network(source.shape, seed).eval()
        model.load_state_dict(entry.tensors)
        head = zero_shot_head(
            model,
            captioned_digits.CaptionTokenizer(),
            captioned_digits.CLASS_NAMES,
            captioned_digits.TEMPLATES,
        )
        net = ZeroShotClassifier(model, head).eval()
        return Point("SGD", net, None, entry.info["backward_passes"], entry.info)
