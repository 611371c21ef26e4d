"""Language models as classifiers: a question's choices are the classes.

The questions go through lm-eval once for an ensemble; a member's logits are its summed log-likelihoods of the
choices, and from them come all metrics, as from the logits of an image classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.evaluation.examples import ExampleMetrics
from lpe.evaluation.predict import evaluate_temperature_scaled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 64


class _Answers(nn.Module):
    """A look-up of answers: question numbers [questions] → logits [questions, choices]."""

    logits: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, questions: Tensor) -> Tensor:
        return self.logits[questions]


class AnsweredEnsemble(Ensemble):
    """An ensemble whose members are their answers, float64 [members, questions, choices]."""

    def __init__(self, ensemble: Ensemble, logits: Tensor) -> None:
        super().__init__(len(ensemble))
        self.ensemble, self.logits = ensemble, logits

    def member(self, index: int) -> nn.Module:
        """Return the answers of member ``index``."""
        return _Answers(self.logits[index]).eval()

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of the ensemble that answered."""
        return self.ensemble.memory_bits(n, storage)

    def describe(self) -> str:
        """Describe the ensemble that answered."""
        return self.ensemble.describe()

    @property
    def members_are_stored(self) -> bool:
        """True: the answers are there."""
        return True


@dataclass(frozen=True)
class Subject:
    """The answers to one task: members' logits [members, questions, choices], and what each question is for.

    Args:
        targets: the right choices [questions]. test: numbers of the questions that are scored. tuning: of
            those that fit a temperature.
    """

    logits: Tensor
    targets: Tensor
    test: Tensor
    tuning: Tensor

    def batch(self, tuning: bool) -> list[tuple[Tensor, Tensor]]:
        """Return one batch (question numbers, right choices)."""
        numbers = self.tuning if tuning else self.test
        return [(numbers, self.targets[numbers])]


@dataclass(frozen=True)
class Questions:
    """Multiple-choice questions to language models; several subjects count alike, as macro means.

    Args:
        answers: (ensemble, whether the tuning questions are wanted) → its answers, a subject each.
        on_tuning: score the tuning questions instead of the test's.
    """

    answers: Callable[[Ensemble, bool], list[Subject]]
    on_tuning: bool = False

    def evaluate(
        self, ensemble: Ensemble, calibrated: Collection[int], examples: ExampleMetrics | None = None
    ) -> pd.DataFrame:
        """Return a row per size; see :func:`lpe.evaluate`.

        Args:
            examples: takes up each question's value times questions / (subjects · questions of its subject),
                so that the mean over all questions is the mean over subjects.
        """
        subjects = self.answers(ensemble, self.on_tuning)
        parts = [ExampleMetrics() for _ in subjects]
        frames = [
            lpe.evaluate(
                AnsweredEnsemble(ensemble, subject.logits),
                subject.batch(self.on_tuning),
                calibrated=calibrated,
                examples=part,
            )
            for subject, part in zip(subjects, parts, strict=True)
        ]
        if examples is not None:
            counts = [len(subject.batch(self.on_tuning)[0][1]) for subject in subjects]
            for part, count in zip(parts, counts, strict=True):
                weight = sum(counts) / (len(counts) * count)
                for metric, (sizes, values) in part.tables().items():
                    for size, of_size in zip(sizes.tolist(), values, strict=True):
                        examples.add(metric, size, weight * of_size)
        return pd.concat(frames).groupby("size", as_index=False).mean()

    def evaluate_scaled(self, ensemble: Ensemble) -> dict[str, float]:
        """Return the whole ensemble's metrics at one temperature a subject, that of its tuning questions."""
        found = [
            evaluate_temperature_scaled(
                AnsweredEnsemble(ensemble, subject.logits),
                subject.batch(self.on_tuning),
                subject.batch(True),
            )
            for subject in self.answers(ensemble, True)
        ]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def task_questions(
    tokenizer: PreTrainedTokenizerBase, tasks: tuple[str, ...], stride: int, on_tuning: bool = False
) -> Questions:
    """Return lm-eval's tasks; every ``stride``-th question of each is for tuning and scored by no row."""
    from lpe.substrates import language

    def answers(ensemble: Ensemble, _: bool) -> list[Subject]:
        found = []
        for part in language.choices(ensemble, tokenizer, list(tasks), batch_size=BATCH):
            tuning = part.questions % stride == 0
            numbers = torch.arange(len(part.targets))
            found.append(Subject(part.logits, part.targets, numbers[~tuning], numbers[tuning]))
        return [subject for subject in found if len(subject.test) and len(subject.tuning)]

    return Questions(answers, on_tuning)
