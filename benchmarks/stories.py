"""A pre-trained language model on TinyStories, as a classifier of next tokens.

stories260k is Karpathy's llama2.c model of that name (MIT): the LLaMA architecture, 260,032 parameters, its
output layer tied to the embedding. ``lpe.evaluate`` takes logits [examples, classes]; here an example is a
token that has another before it, and a class is an entry of the vocabulary. Padding is no example.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.command import assets_folder

if TYPE_CHECKING:
    import datasets

STORIES = 80
TOKENS = 256
"""Each story is cut to this many tokens, the first of which is the mark of its beginning."""

TASKS = Path(__file__).parent / "tasks"
"""The folder of tasks on the assets, for lm-eval's ``include_path``."""

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
        """Logits [counted tokens, vocabulary] of the token after each counted one.

        Args:
            tokens: int64 [stories, tokens], padded at the end, where causal attention keeps the padding
                from what is before it.
            counted: bool [stories, tokens], False where the next token is padding.
        """
        logits: Tensor = self.language_model(input_ids=tokens, use_cache=False).logits
        return logits[counted]


def load_stories260k(assets: Path) -> NextToken:
    """The pre-trained model in eval mode, from the local folder alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        assets / "stories260k", local_files_only=True, dtype=torch.float32
    )
    return NextToken(model).eval()


def story_tokens(assets: Path, stories: int = STORIES, tokens: int = TOKENS) -> list[Tensor]:
    """The first ``stories`` TinyStories, each int64 [at most ``tokens``]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets / "stories260k", local_files_only=True)
    with open(assets / "tinystories" / "stories.jsonl", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [torch.tensor(tokenizer(text)["input_ids"][:tokens]) for text in texts[:stories]]


def asset_dataset(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """A local file of JSON lines as lm-eval's tasks of ``TASKS`` read it (it passes more than the file).

    Args:
        file: relative to the folder that LPE_ASSETS names.
    """
    import datasets

    with open(assets_folder() / file, encoding="utf-8") as lines:
        return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def token_batches(stories: list[Tensor], size: int = 8) -> list[Batch]:
    """Batches of ``size`` stories for :func:`lpe.evaluate`.

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
