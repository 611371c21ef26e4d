"""A pre-trained language model on TinyStories, as a classifier of next tokens.

stories260k is Karpathy's llama2.c model of that name (MIT): the LLaMA architecture, 260,032 parameters, its
output layer tied to the embedding. ``lpe.evaluate`` takes logits [examples, classes], where a class is an
entry of the vocabulary. Of whole stories (``NextToken``) an example is a token that has another before it:
all of a story's share a forward pass, and padding is no example. Of contexts (``LastToken``) an example is a
fixed number of tokens of a story, and runs through the model whatever becomes of the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lpe.errors import InputError
from lpe.extras import needs
from lpe.substrates.assets import assets_folder

if TYPE_CHECKING:
    import datasets

STORIES = 80
TOKENS = 256
"""Tokens that each story is cut to, the first of which is the mark of its beginning."""

CONTEXT = 64
"""Tokens of a context. The shortest of the 199 stories has 109, so that each has contexts without padding. At
the same 2,376 targets FP32's NLL is 1.447 after 64 tokens, 1.404 after 128 and 1.536 after 32."""
CONTEXTS = 12
"""Contexts of a story, as many of a long one as of a short one."""


Batch = tuple[dict[str, Tensor], Tensor]


class NextToken(nn.Module):
    """A causal language model whose output is one row of logits a counted token.

    Args:
        language_model: called with token ids [stories, tokens]; returns an object with ``.logits``
            [stories, tokens, vocabulary].
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, tokens: Tensor, counted: Tensor) -> Tensor:
        """Return logits [counted tokens, vocabulary] of the token after each counted one.

        Args:
            tokens: int64 [stories, tokens], padded at the end, where causal attention keeps the padding
                from what is before it.
            counted: bool [stories, tokens], False where the next token is padding.
        """
        logits: Tensor = self.language_model(input_ids=tokens, use_cache=False).logits
        return logits[counted]


class LastToken(nn.Module):
    """A causal language model whose output is one row of logits a context.

    Args:
        language_model: called with token ids [examples, tokens], and for how many last positions logits are
            wanted; returns an object with ``.logits`` [examples, positions, vocabulary].
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [examples, vocabulary] of the token after each context, int64 [examples, tokens]."""
        logits: Tensor = self.language_model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits
        return logits[:, -1]


def load_stories260k(assets: Path) -> NextToken:
    """Return the pre-trained model in eval mode, from the local folder alone."""
    needs("transformers")

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        assets / "stories260k", local_files_only=True, dtype=torch.float32
    )
    return NextToken(model).eval()


def story_tokens(assets: Path, stories: int | None = STORIES, tokens: int | None = TOKENS) -> list[Tensor]:
    """Return the first ``stories`` TinyStories, each int64 [at most ``tokens``]; None: all, uncut."""
    needs("transformers")

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets / "stories260k", local_files_only=True)
    with open(assets / "tinystories" / "stories.jsonl", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [torch.tensor(tokenizer(text)["input_ids"][:tokens]) for text in texts[:stories]]


def asset_dataset(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Read a local file of JSON lines as lm-eval's tasks name it (which pass more than the file).

    Args:
        file: relative to the folder that LPE_ASSETS names.
    """
    needs("datasets")

    import datasets

    with open(assets_folder() / file, encoding="utf-8") as lines:
        return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def token_batches(stories: list[Tensor], size: int = 8) -> list[Batch]:
    """Return the batches of ``size`` stories for :func:`lpe.evaluate`.

    Returns:
        ({"tokens": int64 [stories, tokens], "counted": bool [stories, tokens]}, targets int64 [counted
        tokens]), the examples in the stories' order.
    """
    batches = []
    for start in range(0, len(stories), size):
        part = stories[start : start + size]
        padded = pad_sequence(part, batch_first=True)
        lengths = torch.tensor([len(story) for story in part])
        # The last token of a story has no next one.
        counted = torch.arange(padded.shape[1] - 1) < (lengths - 1)[:, None]
        batches.append(({"tokens": padded[:, :-1], "counted": counted}, padded[:, 1:][counted]))
    return batches


def contexts(
    stories: Sequence[Tensor], tokens: int = CONTEXT, per_story: int = CONTEXTS
) -> tuple[Tensor, Tensor]:
    """Return the contexts of ``tokens`` tokens, and the token that follows each in its story.

    The tokens that have a whole context before them are cut into ``per_story`` equal stretches, whose middle
    tokens are the targets. Stories take turns: example i is of story i mod len(stories).

    Args:
        stories: each int64 [tokens of the story].

    Returns:
        int64 [examples, tokens] and targets int64 [examples].

    Raises:
        InputError: a story has fewer than tokens + per_story tokens.
    """
    for number, story in enumerate(stories):
        if len(story) < tokens + per_story:
            raise InputError(
                f"story {number} has {len(story)} tokens; {per_story} contexts of {tokens} tokens need "
                f"{tokens + per_story}"
            )
    found, targets = [], []
    for place in range(per_story):
        for story in stories:
            end = tokens + (2 * place + 1) * (len(story) - tokens) // (2 * per_story)
            found.append(story[end - tokens : end])
            targets.append(story[end])
    return torch.stack(found), torch.stack(targets)
