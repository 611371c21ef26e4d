"""The small Llamas, trained on arithmetic sentences, which answer questions through lm-eval."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lpe.ensembles.base import Ensemble
from lpe.substrates import arithmetic
from lpe.substrates.arithmetic import LlamaShape
from lpe.training.loop import train
from lpe.training.schedules import warmup_cosine
from reproduce.study.answers import BATCH, Questions, Subject
from reproduce.study.keys import data_hash
from reproduce.study.points import Report, config_of, trained
from reproduce.study.run import Run
from reproduce.study.scale import Data, Point, Substrate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def arithmetic_questions(seed: int, on_tuning: bool = False) -> Questions:
    """Return the test questions of a training seed; its validation questions fit temperatures."""
    tokenizer = arithmetic.tokenizer()

    def answers(ensemble: Ensemble, tuning: bool) -> list[Subject]:
        splits = ("test", "validation") if tuning else ("test",)
        parts = [_only(ensemble, tokenizer, [arithmetic.task(seed, split)]) for split in splits]
        logits = torch.cat([part.logits for part in parts], dim=1)
        targets = torch.cat([part.targets for part in parts])
        tested = len(parts[0].targets)
        return [Subject(logits, targets, torch.arange(tested), torch.arange(tested, len(targets)))]

    return Questions(answers, on_tuning)


def _only(ensemble: Ensemble, tokenizer: PreTrainedTokenizerBase, tasks: list[Any]) -> Any:
    from lpe.substrates import language

    (found,) = language.choices(ensemble, tokenizer, tasks, batch_size=BATCH)
    return found


@functools.cache
def _numbers() -> dict[arithmetic.Question, int]:
    """Number all questions; those that differ in the order of their numbers count as one."""
    return {question: number for number, of in enumerate(arithmetic.families()) for question in of}


@functools.cache
def _digest(seed: int) -> str:
    asked = arithmetic.questions(seed)
    splits = (asked.train, asked.validation, asked.test)
    return data_hash(["\n".join(each.sentence for each in split) for split in splits], arithmetic.TASKS)


@functools.cache
def _data(seed: int) -> Data:
    asked = arithmetic.questions(seed)
    return Data(
        scored=arithmetic_questions(seed),
        tuning=arithmetic_questions(seed, on_tuning=True),
        train=None,
        validation=(),
        test=(),
        statistics=None,
        images=torch.tensor([_numbers()[question] for question in asked.test]),
    )


@dataclass(frozen=True)
class ArithmeticQuestions:
    """A Llama on questions whose choices are its classes."""

    shape: LlamaShape

    def load(self, seed: int) -> Data:
        """Return the questions of a training seed."""
        return _data(seed)

    def digest(self, seed: int) -> str:
        """Return a hash of them."""
        return _digest(seed)


@dataclass(frozen=True)
class LlamaTraining:
    """A small Llama on arithmetic sentences by AdamW with warm-up and cosine, from a random start."""

    epochs: int
    batch: int
    learning_rate: float
    beta2: float
    weight_decay: float
    clip_norm: float

    has_posterior: ClassVar[bool] = False

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Train a ``LlamaForCausalLM``; its point goes by SGD's name, whichever optimiser found it."""
        shape = substrate.source.shape

        def fit(report: Report) -> tuple[dict[str, Tensor], dict[str, Any]]:
            net = arithmetic.network(shape, seed)
            sentences = arithmetic.questions(seed).train
            steps = self.epochs * (len(sentences) // self.batch)
            optimizer = torch.optim.AdamW(
                net.parameters(), betas=(0.9, self.beta2), weight_decay=self.weight_decay, fused=True
            )
            done = train(
                arithmetic.NextToken(net),
                arithmetic.batches(sentences, self.batch, seed),
                optimizer,
                warmup_cosine(self.learning_rate, steps),
                self.epochs,
                seed,
                self.clip_norm,
                report=report,
            )
            return net.state_dict(), {
                "backward_passes": done.backward_passes,
                "last_loss": done.curve[-1]["loss"],
            }

        config = config_of(run, substrate, substrate.short, seed, self, None)
        entry = trained(run, config, self.epochs, fit)
        net = arithmetic.network(shape, seed)
        net.load_state_dict(entry.tensors)
        return Point("SGD", net.eval(), None, entry.info["backward_passes"], entry.info)
