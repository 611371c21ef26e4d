"""The scale ``paper``: one checkpoint of each of the paper's models, no training."""

from __future__ import annotations

from collections.abc import Sequence

from reproduce.scales.given import Given
from reproduce.scales.paper.loading import Checkpoint
from reproduce.scales.paper.models import LLAMA_3_8B, PaperModel, PaperPieces
from reproduce.study.scale import Landscape, Rivals, Scale, Settings, Substrate
from reproduce.study.subjects import IMAGENET, Subject

AUGREG = "augreg_in21k_ft_in1k"  # the recipe of Steiner et al. 2021 in timm
TUNING_STRIDE = 25
IMAGES = 50_000  # of ImageNet's validation

VITS = {
    f"ViT-{letter}": PaperModel(f"timm/vit_{size}_patch16_224.{AUGREG}", "Apache-2.0", "imagenet", {})
    for letter, size in {"T": "tiny", "S": "small", "B": "base", "L": "large"}.items()
}
CLIPS = {
    "CLIP-L": PaperModel("open_clip/ViT-L-14:openai", "MIT", "imagenet", {}),
    "CLIP-g": PaperModel("open_clip/ViT-g-14:laion2b_s34b_b88k", "MIT", "imagenet", {}),
}
LLAMAS = {
    "Llama-8B": PaperModel(
        "hf/meta-llama/Meta-Llama-3-8B", "Meta Llama 3 Community License", "mmlu", LLAMA_3_8B
    )
}

WEIGHTS = {
    **dict.fromkeys(VITS, AUGREG),
    "CLIP-L": "ViT-L-14, openai",
    "CLIP-g": "ViT-g-14, laion2b_s34b_b88k",
}
"""By the names that timm's and open_clip's tables of results have."""


def subject(name: str) -> Subject:
    """Return a model of ImageNet as published tables have it, whose test examples are the validation's."""
    return Subject(
        network=name,
        data_set=IMAGENET,
        data=IMAGENET,
        augmentation=None,
        optimiser=None,
        scored=IMAGES - len(range(0, IMAGES, TUNING_STRIDE)),
        weights=WEIGHTS[name],
    )


def substrate(name: str, model: PaperModel, example: str, rivals: Rivals | None, *remarks: str) -> Substrate:
    """Return a model as a substrate of the scale."""
    return Substrate(
        name=f"paper {name}",
        short=name,
        example=example,
        source=Checkpoint(model, batch=128, tuning_stride=TUNING_STRIDE),
        start=None,
        points={"SGD": Given()},
        families={},
        rivals=rivals,
        pieces=PaperPieces(name, model),
        has_training=False,
        remarks=remarks,
        most_seeds={},
        subject=subject(name) if name in WEIGHTS else None,
    )


def rehearse(substrates: Sequence[Substrate]) -> None:
    """Rehearse models at their true shapes, with random weights and synthetic inputs."""
    from reproduce.scales.paper import rehearsal

    models = {each.short: each.source.model for each in substrates}
    rehearsal.rehearse(models, PAPER.settings.large_bits)


RIVALS = Rivals(stds=(1e-4, 3e-4, 1e-3, 3e-3), rates=(0.003, 0.01, 0.03, 0.1))  # giung2 has a rate of .1
CLIP_REMARK = (
    "CLIP: zero-shot classification; members differ in the image tower; the head, made of captions of the "
    "class names, is computed once at full precision; the text tower, which classifying does not need, is "
    "not counted in the memory."
)
LLAMA_REMARK = "Llama: a question's choices are the classes, and a member's logits their log-likelihoods."
LARGE = (
    *(substrate(name, model, "image", RIVALS, CLIP_REMARK) for name, model in CLIPS.items()),
    *(substrate(name, model, "question", None, LLAMA_REMARK) for name, model in LLAMAS.items()),
)

PAPER = Scale(
    name="paper",
    title="the paper's own models: ImageNet-1k with timm and open_clip, LLaMa-3-8B with lm-eval",
    result="not run by this project, which has no ImageNet and no LLaMa-3",
    launch="python reproduce/table1.py --scale paper [--random-weights]: on a GPU",
    main=None,
    whole=None,
    sizes=tuple(substrate(name, model, "image", None) for name, model in VITS.items()),
    large={"": LARGE},  # one group: the paper has one model of each kind and size
    compared=LARGE[0],
    settings=Settings(
        size=20,
        table_sizes=(1, 5, 10, 20),
        draws=3,
        bits=(5, 4, 3),
        best_bits=5,
        claim_size=10,
        memory_models=2,
        noise_share=0.2,  # fixed 2026-11-26, before any run
        expansion=5,
        table_bits=(6, 4),
        scale_axes=(),
        axis_bits=(),
        number_systems=(),
        large_bits=5,
        large_size=20,
        equal_bits=False,
        landscape=Landscape(seed=0, resolution=21, margin=0.3, cloud=30, split="test", examples=None),
    ),
    seeds=1,  # one checkpoint
    claim_seeds=1,
    cost_seeds=1,
    unit="example",
    standing="",
    threads=None,
    device="auto",
    heading="",
    points_heading="",
    conditions=(
        "One checkpoint of each model, so there are no intervals. NLL in nats (natural logarithm), ERR "
        "and ECE as shares of 1; ECE in 15 bins. 3 ensembles of other rounding seeds are averaged.",
        f"Every {TUNING_STRIDE}th example is scored by no row: on these the temperature is fitted "
        "and noise and dropout are tuned.",
    ),
    sweep=None,
    rehearse=rehearse,
    beyond=None,
    options={},
    prepare=None,
)
