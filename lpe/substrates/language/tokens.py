"""Texts as a model's tokens: what precedes them, where a continuation begins, windows of long ones.

A tokenizer may put marks around a text: ``<s>`` before it, ``</s>`` after it. A text's own tokens are those
without the marks. The marks before a text are read and never scored, and none comes after a context.

lm-eval's ``hf`` model differs in three places. In rolling requests it scores the marks, after a second
``<s>``. It leaves ``</s>`` between a context and its continuation. Where a token lies over the boundary of
the two, it drops that token and scores those after it, as if they came after the context's own last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from lpe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and how a text begins.

    Attributes:
        tokenizer: of the model.
        marks: tokens that the tokenizer itself puts before a text; may be none.
        beginning: what precedes a text that nothing else precedes: the marks, or where there are none the one
            token with which lm-eval begins a text (bos, else eos).
    """

    tokenizer: PreTrainedTokenizerBase
    marks: list[int]
    beginning: list[int]

    def own(self, text: str) -> list[int]:
        """Return a text's own tokens; marks that are spelled out in the text are among them."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return what is read, and what is scored after it.

        Both together are the tokens of the joined text. A token that lies over the boundary is scored, and so
        are spaces at the context's end, as lm-eval has it.
        """
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        whole = self.own(kept + continuation)
        shared = _shared(self.own(kept), whole) if kept else 0
        if whole[: len(self.beginning)] == self.beginning:
            shared = max(shared, len(self.beginning))
            return whole[:shared], whole[shared:]
        return (self.marks if shared else self.beginning) + whole[:shared], whole[shared:]

    def windows(self, text: str, length: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield (read, scored) of a text, whose own tokens are scored once each.

        Args:
            text: any; an empty one has no windows. length: tokens that the model reads at most.

        The first window is read from the beginning. A further one has the last token of the one before to go
        on from; the last has as many as the model reads.
        """
        tokens = self.own(text)
        if tokens[: len(self.beginning)] == self.beginning:
            tokens = tokens[len(self.beginning) :]
        # The last token that is scored is not read.
        done = min(len(tokens), length + 1 - len(self.beginning))
        if done > 0:
            yield self.beginning, tokens[:done]
        while done < len(tokens):
            end = min(len(tokens), done + length)
            yield tokens[max(0, end - length - 1) : done], tokens[done:end]
            done = end


def encoder(tokenizer: PreTrainedTokenizerBase, prefix_token: int) -> Encoder:
    """Return how texts begin under a tokenizer.

    Args:
        tokenizer: any. prefix_token: lm-eval's, for a tokenizer that puts no mark before a text.

    Raises:
        InputError: the tokenizer gives other tokens within its marks than without them.
    """
    special = set(tokenizer.all_special_tokens)
    # One of its own words, since there may be a tokenizer that knows no letter.
    for probe in islice((word for word in tokenizer.get_vocab() if word not in special), 100):
        alone = list(tokenizer.encode(probe, add_special_tokens=False))
        marked = list(tokenizer.encode(probe))
        places = [at for at in range(len(marked)) if marked[at : at + len(alone)] == alone]
        if alone and not places:
            raise InputError(
                f"the tokenizer makes {alone} of {probe!r}, and {marked} with its marks around it; which of "
                "these are the text's own cannot be told"
            )
        if alone:
            marks = marked[: places[0]]
            return Encoder(tokenizer, marks, marks or [prefix_token])
    return Encoder(tokenizer, [], [prefix_token])


def _shared(first: list[int], second: list[int]) -> int:
    """Count the tokens that two lists begin with in common."""
    pairs = zip(first, second, strict=False)
    return next(
        (place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second))
    )
