"""The digits CLIPs: trained on captioned scans, as zero-shot classifiers.

Their weights come out of the store where they are already there; the head is computed from them by the code
that computes the head of every CLIP.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lpe.substrates import captioned_digits
from lpe.substrates.clip import ZeroShotClassifier, zero_shot_head
from lpe.training.loop import train
from lpe.training.schedules import warmup_cosine
from reproduce.study.points import config_of, trained
from reproduce.study.recipes import CLIPTraining
from reproduce.study.scale import Point
from reproduce.study.session import Session, source_hash

CLIP_CODE = (
    "lpe/contents.py",
    "lpe/modules.py",
    "lpe/networks.py",
    "lpe/structure.py",
    "lpe/surroundings.py",
    "lpe/training",
    "lpe/substrates/digits.py",
    "lpe/substrates/captioned_digits.py",
    "lpe/number_systems/streams.py",
    "reproduce/study/points.py",
    "reproduce/scales/digits/clips.py",
)


def clip_point(session: Session, seed: int, size: str, recipe: CLIPTraining | None = None) -> Point:
    """Return the zero-shot classifier of the digits CLIP of that size, at a training seed.

    It goes by the name of SGD's point, the record's for a point estimate, whichever optimiser found it.
    """
    recipe = recipe or session.scale.clip
    shape = session.scale.clips[size]
    config = {
        **config_of(session, f"CLIP-{size}", seed, recipe),
        "network": shape,
        "code": source_hash(*CLIP_CODE),
        "packages": {
            name: importlib.metadata.version(name) for name in ("torch", "open_clip_torch", "numpy")
        },
    }

    def fit(report: Callable[[Mapping[str, float]], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        split = captioned_digits.load(seed).train
        model = captioned_digits.network(shape, seed)
        batches = captioned_digits.batches(split, recipe.batch, seed, session.scale.jitter)
        groups = captioned_digits.parameter_groups(model, recipe.weight_decay)
        optimizer = torch.optim.AdamW(groups, fused=True)
        schedule = warmup_cosine(recipe.learning_rate, recipe.epochs * (len(split[0]) // recipe.batch))
        pairs = captioned_digits.Contrastive(model)
        run = train(pairs, batches, optimizer, schedule, recipe.epochs, seed, report=report)
        return model.state_dict(), {
            "backward_passes": run.backward_passes,
            "last_loss": run.curve[-1]["loss"],
        }

    entry = trained(session, config, recipe.epochs, fit)
    model = captioned_digits.network(shape, seed).eval()
    model.load_state_dict(entry.tensors)
    head = zero_shot_head(
        model,
        captioned_digits.CaptionTokenizer(),
        captioned_digits.CLASS_NAMES,
        captioned_digits.TEMPLATES,
    )
    net = ZeroShotClassifier(model, head).eval()
    return Point("SGD", net, None, entry.info["backward_passes"], entry.info)
