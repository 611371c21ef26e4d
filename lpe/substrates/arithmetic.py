"""Arithmetic in figures: a small world for small Llamas, made by code, with a task for lm-eval.

A sentence is ``37+45=82.``, ``82-45=37.`` or ``7*12=84.``: sums of two numbers of two digits, differences of
two that leave two digits, and products of a number of two digits and one of one. The network is transformers'
``LlamaForCausalLM``, its tokens are characters.

A training seed draws a permutation of its own of all questions and cuts it into test, validation and training
questions. What is tested was not trained on, and neither was the same with its numbers exchanged.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lpe.errors import InputError
from lpe.extras import needs
from lpe.number_systems.streams import generator

if TYPE_CHECKING:
    import datasets
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HELD_OUT = 500
"""Questions to test with, and as many to validate with."""

TASK = "lpe_arithmetic"
TASKS = Path(__file__).parent / "tasks" / "arithmetic"
"""The folder of the task, for lm-eval's ``include_path``; its questions are training seed 0's."""

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
PAD, BEGIN, END = "<pad>", "<s>", "</s>"
VOCABULARY = (PAD, BEGIN, END, *"0123456789+-*=.")
CONTEXT = 16
"""Tokens that a network can read: a sentence has at most 11 with its beginning and end."""

UNITS, TENS = (-2, -1, 1, 2), (-10, 10)
"""Differences of wrong answers from the right one."""

Batch = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Question:
    """Two numbers, and the sign between them."""

    first: int
    sign: str
    second: int

    @property
    def text(self) -> str:
        """The question, up to where the answer begins."""
        return f"{self.first}{self.sign}{self.second}="

    @property
    def answer(self) -> int:
        """The right answer: 10 or more."""
        return int(OPERATIONS[self.sign](self.first, self.second))

    @property
    def sentence(self) -> str:
        """The question with its answer."""
        return f"{self.text}{self.answer}."


@dataclass(frozen=True)
class Questions:
    """The three splits of a training seed."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]


@dataclass(frozen=True)
class LlamaShape:
    """Shape of a small Llama.

    Args:
        width: of the embedding. depth: blocks. heads: of the attention. hidden: width of the gated MLP.
    """

    width: int
    depth: int
    heads: int
    hidden: int


def families() -> list[list[Question]]:
    """List all questions in a fixed order, those that differ in the order of their numbers together."""
    two_digits = range(10, 100)
    sums = [
        [Question(*pair) for pair in dict.fromkeys([(first, "+", second), (second, "+", first)])]
        for first in two_digits
        for second in range(first, 100)
    ]
    differences = [[Question(first, "-", second)] for first in two_digits for second in range(10, first - 9)]
    products = [
        [Question(first, "*", second), Question(second, "*", first)]
        for first in range(2, 10)
        for second in two_digits
    ]
    return sums + differences + products


def questions(seed: int) -> Questions:
    """Return the splits of a training seed."""
    if seed < 0:
        raise InputError(f"a training seed must not be negative, not {seed}")
    every = families()
    draws = np.random.default_rng([seed, 0])
    order = [every[index] for index in draws.permutation(len(every))]
    # One of each family: which of two numbers comes first must not count twice.
    held_out = [family[draws.integers(len(family))] for family in order[: 2 * HELD_OUT]]
    train = [question for family in order[2 * HELD_OUT :] for question in family]
    return Questions(train, held_out[HELD_OUT:], held_out[:HELD_OUT])


def choices(question: Question, draws: np.random.Generator) -> tuple[list[str], int]:
    """Return four answers of equal length, and the index of the right one.

    They are the corners of a rectangle: with and without an error in the units, with and without one in the
    tens. Each corner could be the right one, so that the choices alone give (but for answers at the edge of
    their length) nothing away, and who knows the units or the tens alone is left with two of the four.
    """
    answer = question.answer
    rectangles = [
        [answer, answer + units, answer + tens, answer + units + tens] for units in UNITS for tens in TENS
    ]
    fitting = [each for each in rectangles if len({len(str(corner)) for corner in each}) == 1]
    chosen = fitting[draws.integers(len(fitting))]
    order = draws.permutation(len(chosen))
    return [str(chosen[corner]) for corner in order], order.tolist().index(0)


def dataset(seed: int = 0, **_: Any) -> datasets.DatasetDict:
    """Return a training seed's held-out questions as lm-eval's task reads them (it passes more than that).

    Returns:
        Splits "validation" and "test": question, choices, right (index).
    """
    needs("datasets")

    import datasets

    held_out = questions(seed)
    splits = {}
    for place, (name, asked) in enumerate((("validation", held_out.validation), ("test", held_out.test))):
        draws = np.random.default_rng([seed, 1, place])
        rows = []
        for question in asked:
            options, right = choices(question, draws)
            rows.append({"question": question.text, "choices": options, "right": right})
        splits[name] = datasets.Dataset.from_list(rows)
    return datasets.DatasetDict(splits)


def task(seed: int, split: str = "test") -> dict[str, Any]:
    """Return the task of ``TASKS`` with a training seed's questions, as
    :func:`lpe.substrates.language.evaluate` and lm-eval take it.

    Args:
        split: "test" or "validation".
    """
    needs("lm_eval")

    from lm_eval.tasks._yaml_loader import load_yaml

    return {**load_yaml(TASKS / f"{TASK}.yaml"), "test_split": split, "dataset_kwargs": {"seed": seed}}


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of characters; texts begin with ``<s>``. ``save_pretrained`` writes it for lm-eval."""
    needs("tokenizers", "transformers")

    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    indices = {token: index for index, token in enumerate(VOCABULARY)}
    characters = Tokenizer(WordLevel(indices, unk_token=PAD))
    characters.pre_tokenizer = Split(Regex("."), "isolated")
    characters.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, indices[BEGIN])]
    )
    characters.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
    )


def network(shape: LlamaShape, seed: int) -> LlamaForCausalLM:
    """Return a freshly initialised Llama; the global generator is left as it was."""
    needs("transformers")

    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BEGIN),
        eos_token_id=VOCABULARY.index(END),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        return LlamaForCausalLM(config)


class NextToken(nn.Module):
    """A causal language model whose output is one row of logits a counted token.

    Args:
        language_model: called with token ids [texts, tokens]; returns an object with ``.logits``
            [texts, tokens, vocabulary].
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, tokens: Tensor, counted: Tensor) -> Tensor:
        """Return logits [counted tokens, vocabulary] of the token after each counted one.

        Args:
            tokens: int64 [texts, tokens], padded at the end. counted: bool [texts, tokens].
        """
        logits: Tensor = self.language_model(input_ids=tokens, use_cache=False).logits
        return logits[counted]


def encoded(sentences: list[Question]) -> Tensor:
    """Encode sentences from beginning to end, int64 [sentences, tokens], padded at the end with 0."""
    indices = {token: index for index, token in enumerate(VOCABULARY)}
    rows = [[BEGIN, *question.sentence, END] for question in sentences]
    return pad_sequence([torch.tensor([indices[token] for token in row]) for row in rows], batch_first=True)


def token_batch(tokens: Tensor) -> Batch:
    """Make a batch for :class:`NextToken` of :func:`encoded` sentences: each token but the first is a target.

    Returns:
        ({"tokens": int64 [sentences, tokens], "counted": bool [sentences, tokens]}, targets int64 [counted
        tokens]); also for :func:`lpe.evaluate`.
    """
    counted = tokens[:, 1:] != VOCABULARY.index(PAD)
    return {"tokens": tokens[:, :-1], "counted": counted}, tokens[:, 1:][counted]


def batches(sentences: list[Question], size: int, seed: int) -> Callable[[int], Iterator[Batch]]:
    """Return a function: epoch → shuffled training batches for :class:`NextToken`; keyed by (seed, epoch).

    The last batch of an epoch is left out where it would be smaller than ``size``.
    """
    if not 1 <= size <= len(sentences):
        raise InputError(
            f"a batch must have 1 to {len(sentences)} sentences, as many as there are, not {size}"
        )
    tokens = encoded(sentences)

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        draws = generator("arithmetic batches", seed, "", epoch)
        order = torch.randperm(len(tokens), generator=draws, device="cpu")
        for index in order[: len(order) // size * size].split(size):
            yield token_batch(tokens[index])

    return epoch_batches
