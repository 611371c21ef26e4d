"""Captioned digits: scikit-learn's scans with captions, and a small CLIP trained on the pairs.

The images, splits and jitter are those of :mod:`lpe.substrates.digits`; each scan gets a caption such as "a
scan of the digit seven". The network is open_clip's own ``CLIP``, an image and a text tower, and is evaluated
zero-shot by the code that evaluates the large ones (:mod:`lpe.substrates.clip`). Only the tokenizer is ours:
open_clip's has 49,408 tokens, whose embedding would be fifty times the rest of the model.

The training is contrastive, over all pairs of a batch. Several images of a batch show one digit, so every
caption of that digit is right for each of them: the targets are uniform over the pairs of one label (Yang et
al. 2022, "Unified contrastive learning in image-text-label space"),

    loss = ½ (CE(image → captions) + CE(caption → images)),   target_ij = [y_i = y_j] / Σ_k [y_i = y_k],

which is CLIP's own loss (Radford et al. 2021) where no label comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.extras import needs
from lpe.number_systems.streams import generator
from lpe.substrates import digits
from lpe.substrates.digits import DigitsData, Jitter, Split

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a scan of the digit {}",
    "a scan of a handwritten {}",
    "the number {} in somebody's hand",
    "a grey picture of the {}",
    "{}",
    "this is a {}",
)

Captioned = tuple[tuple[Tensor, Tensor], Tensor]
"""(images, tokens of a caption each), and the targets of the contrastive logits."""


@dataclass(frozen=True)
class DigitsCLIP:
    """Shape of a digits CLIP; both towers have these, and embed into ``width`` dimensions.

    Args:
        patch: pixels a side of a patch. width: of the transformers. depth: blocks of the image tower.
        text_depth: blocks of the text tower. heads: attention heads.
        mlp_ratio: hidden width of the MLPs over the width.
    """

    patch: int
    width: int
    depth: int
    text_depth: int
    heads: int
    mlp_ratio: float


class CaptionTokenizer:
    """Words of the captions → tokens, int64 [captions, context length].

    0 fills up; the tokens of start and end stand around the words. The end has the highest number, for there
    CLIP's text tower reads the caption's features off.
    """

    def __init__(
        self, class_names: Sequence[str] = CLASS_NAMES, templates: Sequence[str] = TEMPLATES
    ) -> None:
        captions = [template.format(name) for template in templates for name in class_names]
        words = sorted({word for caption in captions for word in caption.split()})
        self.tokens = {word: token for token, word in enumerate(words, start=2)}
        self.start, self.end = 1, 2 + len(words)
        self.vocabulary = 3 + len(words)
        self.context_length = 2 + max(len(caption.split()) for caption in captions)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts; InputError for a word that no caption has, or too long a text."""
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            words = text.split()
            if len(words) > self.context_length - 2:
                raise InputError(
                    f"the caption {text!r} has {len(words)} words; {self.context_length - 2} are the most"
                )
            if unknown := [word for word in words if word not in self.tokens]:
                raise InputError(
                    f"the caption {text!r} has the unknown word {unknown[0]!r}; the captions' words are "
                    f"{', '.join(self.tokens)}"
                )
            row[: len(words) + 2] = torch.tensor(
                [self.start, *(self.tokens[word] for word in words), self.end]
            )
        return tokens


def _in_colour(split: Split) -> Split:
    """Repeat grey as each of the three channels that open_clip's image towers see."""
    return split[0].expand(-1, 3, -1, -1).contiguous(), split[1]


def load(seed: int) -> DigitsData:
    """Return the splits of a training seed, as :func:`lpe.substrates.digits.load`, images [n, 3, 8, 8]."""
    data = digits.load(seed)
    return DigitsData(_in_colour(data.train), _in_colour(data.validation), _in_colour(data.test))


def network(shape: DigitsCLIP, seed: int) -> nn.Module:
    """Return a freshly initialised ``open_clip.CLIP``; the global generator is left as it was."""
    needs("open_clip")

    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    if shape.width % shape.heads:
        raise InputError(f"a width of {shape.width} is no multiple of {shape.heads} heads; give another")
    tokenizer = CaptionTokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        return CLIP(
            embed_dim=shape.width,
            vision_cfg=CLIPVisionCfg(
                image_size=8,
                patch_size=shape.patch,
                width=shape.width,
                layers=shape.depth,
                head_width=shape.width // shape.heads,
                mlp_ratio=shape.mlp_ratio,
            ),
            text_cfg=CLIPTextCfg(
                context_length=tokenizer.context_length,
                vocab_size=tokenizer.vocabulary,
                width=shape.width,
                layers=shape.text_depth,
                heads=shape.heads,
                mlp_ratio=shape.mlp_ratio,
            ),
        )


class Contrastive(nn.Module):
    """A CLIP whose output is what its training compares with the targets.

    On images [n, 3, 8, 8] and tokens [n, context length] it returns logits [2n, n]: each image's with every
    caption, then each caption's with every image.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        by_image, by_caption = self.model.get_logits(images, tokens)  # type: ignore[operator]
        return torch.cat([by_image, by_caption])


def contrastive_targets(labels: Tensor) -> Tensor:
    """Return the targets of labels [n]: probabilities [2n, n], a row uniform over the pairs of its label."""
    same = (labels[:, None] == labels).float()
    return (same / same.sum(1, keepdim=True)).repeat(2, 1)


def batches(split: Split, size: int, seed: int, jitter: Jitter) -> Callable[[int], Iterator[Captioned]]:
    """Return a function: epoch → training batches, each image with a caption drawn by (seed, epoch).

    Raises:
        InputError: as :func:`lpe.substrates.digits.batches`.
    """
    tokenizer = CaptionTokenizer()
    captions = torch.stack(
        [tokenizer([template.format(name) for name in CLASS_NAMES]) for template in TEMPLATES]
    )
    of_images = digits.batches(split, size, seed, jitter)

    def epoch_batches(epoch: int) -> Iterator[Captioned]:
        draws = generator("digits captions", seed, "", epoch)
        for images, labels in of_images(epoch):
            template = torch.randint(len(TEMPLATES), (len(labels),), generator=draws, device="cpu")
            yield (images, captions[template, labels]), contrastive_targets(labels)

    return epoch_batches


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Group parameters as open_clip's training does: gains, biases and the logit scale do not decay."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
