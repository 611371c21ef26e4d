"""The trained weights of the small Llamas, of several sizes, on arithmetic sentences.

Each comes out of the store where it is already there; see :mod:`reproduce.study.points`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.substrates import arithmetic
from lpe.training.loop import train
from lpe.training.schedules import warmup_cosine
from reproduce.study.points import trained
from reproduce.study.scale import Point
from reproduce.study.session import Session, source_hash

TRAINING_CODE = (
    "lpe/contents.py",
    "lpe/modules.py",
    "lpe/networks.py",
    "lpe/structure.py",
    "lpe/surroundings.py",
    "lpe/training",
    "lpe/substrates/arithmetic.py",
    "lpe/number_systems/streams.py",
    "reproduce/scales/digits/llamas.py",
)


def config_of(session: Session, seed: int, size: str) -> dict[str, object]:
    """Return all that determines the training of a Llama.

    Raises:
        InputError: a size that the scale does not have.
    """
    if size not in session.scale.llamas:
        raise InputError(f"no Llama of size {size!r}; there are {', '.join(session.scale.llamas)}")
    return {
        "phase": f"Llama-{size}",
        "scale": session.scale.name,
        "network": session.scale.llamas[size],
        "recipe": session.scale.llama,
        "seed": seed,
        "replica": 0,
        "threads": session.scale.threads,
        "packages": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
        "code": source_hash(*TRAINING_CODE),
    }


def llama_point(session: Session, seed: int, size: str) -> Point:
    """Train a ``LlamaForCausalLM`` on a seed's questions; ``arithmetic.tokenizer()`` is its tokenizer."""
    config = config_of(session, seed, size)
    shape, recipe = session.scale.llamas[size], session.scale.llama

    def fit(report: Callable[[Mapping[str, float]], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        net = arithmetic.network(shape, seed)
        sentences = arithmetic.questions(seed).train
        steps = recipe.epochs * (len(sentences) // recipe.batch)
        optimizer = torch.optim.AdamW(
            net.parameters(), betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay, fused=True
        )
        run = train(
            arithmetic.NextToken(net),
            arithmetic.batches(sentences, recipe.batch, seed),
            optimizer,
            warmup_cosine(recipe.learning_rate, steps),
            recipe.epochs,
            seed,
            recipe.clip_norm,
            report=report,
        )
        return net.state_dict(), {
            "backward_passes": run.backward_passes,
            "last_loss": run.curve[-1]["loss"],
        }

    entry = trained(session, config, recipe.epochs, fit)
    net = arithmetic.network(shape, seed)
    net.load_state_dict(entry.tensors)
    return Point(f"Llama-{size}", net.eval(), None, entry.info["backward_passes"], entry.info)
