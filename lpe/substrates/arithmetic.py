"""Arithmetic in figures: a small world for small Llamas, made by code, with a multiple-choice task for lm-eval.

A sentence is ``37+45=82.`` or ``82-45=37.``: all sums of two numbers of two digits, and all differences of two
that are not negative. The network is transformers' ``LlamaForCausalLM``, its tokens are characters.

A training seed draws its own permutation of all questions and cuts it into test, validation and training
questions. What is tested was never trained on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.number_systems.streams import generator

if TYPE_CHECKING:
    import datasets
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TEST_QUESTIONS = 500
VALIDATION_QUESTIONS = 500
CHOICES = 4
TASK = "lpe_arithmetic"
TASKS = Path(__file__).parent / "tasks" / "arithmetic"
"""The folder of the task for lm-eval's ``include_path``."""

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
CHARACTERS = "0123456789+-*=."
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Question:
    """``first`` and ``second``, two-digit numbers, and the sign between them."""

    first: int
    sign: str
    second: int

    @property
    def text(self) -> str:
        """Up to where the answer begins."""
        return f"{self.first}{self.sign}{self.second}="

    @property
    def answer(self) -> int:
        """The right one; never negative."""
        return OPERATIONS[self.sign](self.first, self.second)

    @property
    def sentence(self) -> str:
        """The question with its answer."""
        return f"{self.text}{self.answer}."


@dataclass(frozen=True)
class Questions:
    """The three splits of a training seed; no question is in two of them."""

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


def all_questions() -> list[Question]:
    """Every question there is, in a fixed order: 8,100 sums and 3,240 differences."""
    numbers = range(10, 100)
    sums = [Question(first, "+", second) for first in numbers for second in numbers]
    return sums + [Question(first, "-", second) for first in numbers for second in numbers if first - second >= 10]


def questions(seed: int) -> Questions:
    """The splits of a training seed."""
    if seed < 0:
        raise InputError(f"a training seed must not be negative, not {seed}")
    every = all_questions()
    order = [every[index] for index in np.random.default_rng([seed, 4]).permutation(len(every))]
    held_out = TEST_QUESTIONS + VALIDATION_QUESTIONS
    return Questions(order[held_out:], order[TEST_QUESTIONS:held_out], order[:TEST_QUESTIONS])


def choices(question: Question, draws: np.random.Generator) -> tuple[list[str], int]:
    """Four answers of equal length, and the index of the right one.

    They are the corners of a rectangle: with and without an error in the units, with and without one in the
    tens. Any of its corners could be the right one, so that the choices alone give nothing away, and who knows
    half of the calculation is left with two of them.
    """
    answer = question.answer
    options = [
        (units, tens)
        for units in (-2, -1, 1, 2)
        for tens in (-10, 10)
        if len({len(str(each)) for each in _corners(answer, units, tens)}) == 1
        and min(_corners(answer, units, tens)) >= 0
    ]
    units, tens = options[draws.integers(len(options))]
    corners = _corners(answer, units, tens)
    order = draws.permutation(CHOICES)
    return [str(corners[index]) for index in order], int(np.flatnonzero(order == 0)[0])


def _corners(answer: int, units: int, tens: int) -> list[int]:
    return [answer, answer + units, answer + tens, answer + units + tens]
