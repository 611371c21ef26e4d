"""Perplexity of low precision ensembles of a language model of one's own, on token batches, without lm-eval.

    python examples/perplexity.py                       a small network that it trains on Python's own manual
    python examples/perplexity.py FOLDER text.txt       a model of transformers, and a text of yours

The first takes half a minute on one CPU core and needs the core installation alone; the second needs the
extra "lm". It prints nats a token and perplexity of the network as it is, rounded to nearest, and of 1, 2, 5
and 10 members, as with Python 3.11:

    INT-3         size  nats a token  perplexity      MB
    as it is         1        1.8685       6.478   0.162
    to nearest       1        2.6977      14.845   0.017
    LPE-BSR          1        3.5233      33.895   0.017
    LPE-BSR          2        2.8142      16.681   0.032
    LPE-BSR          5        2.3436      10.419   0.078
    LPE-BSR         10        2.0953       8.128   0.153
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import lpe

CONTEXT, LENGTH, HELD_OUT = 8, 128, 32


class Letters(nn.Module):
    """Predicts each next letter from the last CONTEXT: ids [texts, length] → [texts, length, letters]."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 24)
        self.hidden = nn.Conv1d(24, 128, CONTEXT)
        self.head = nn.Linear(128, letters)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the letter after each."""
        embedded = self.embedding(ids).transpose(1, 2)
        states = self.hidden(nn.functional.pad(embedded, (CONTEXT - 1, 0))).relu()
        logits: Tensor = self.head(states.transpose(1, 2))
        return logits


def own_model(steps: int) -> tuple[nn.Module, Tensor]:
    """Train a network on a text; return it and ids that it has not seen, [texts, LENGTH]."""
    text = "".join(topics[name] for name in sorted(topics))
    letters = sorted({*text})
    ids = torch.tensor([letters.index(letter) for letter in text[: 400 * LENGTH]]).view(-1, LENGTH)
    seen, held_out = ids[HELD_OUT:], ids[:HELD_OUT]
    torch.manual_seed(0)
    model = Letters(len(letters))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = seen[torch.randint(len(seen), (16,))]
        logits = model(batch)[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), held_out


def given_model(folder: str, text: Path) -> tuple[nn.Module, Tensor]:
    """Return a model of transformers and the ids of a text, [texts, 512] or fewer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text.read_text(encoding="utf-8"), return_tensors="pt")[
        "input_ids"
    ]
    length = min(512, ids.shape[1])
    whole = ids[0, : ids.shape[1] // length * length].view(-1, length)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), whole


def main(arguments: Sequence[str], steps: int = 600, size: int = 10) -> None:
    """Print the table."""
    model, ids = given_model(arguments[0], Path(arguments[1])) if arguments else own_model(steps)
    # As transformers has it: the labels are the ids, of which each is predicted from those before it. Where a
    # token should not count (padding, a prompt) its label is -100.
    batches = [(part, part) for part in ids.split(8)]
    rows = [
        ("as it is", lpe.LowPrecisionEnsemble(model, lpe.FullPrecision(), 1)),
        ("to nearest", lpe.LowPrecisionEnsemble(model, lpe.Int(3), 1, rounding="nearest")),
        ("LPE-BSR", lpe.LowPrecisionEnsemble(model, lpe.Int(3), size)),
    ]
    print(f"{'INT-3':12}{'size':>6}{'nats a token':>14}{'perplexity':>12}{'MB':>8}")
    for name, ensemble in rows:
        table = lpe.evaluate(ensemble, batches).set_index("size")
        for n in (each for each in (1, 2, 5, 10) if each <= len(ensemble)):
            row = table.loc[n]
            print(f"{name:12}{n:6}{row.nll:14.4f}{row.perplexity:12.3f}{row.memory_bits / 8e6:8.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
