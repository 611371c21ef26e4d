"""Captioned digits: captions and tokens, batches, the contrastive loss, and a CLIP that learns."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.errors import InputError
from lpe.substrates import captioned_digits, digits
from lpe.substrates.captioned_digits import (
    CLASS_NAMES,
    TEMPLATES,
    CaptionTokenizer,
    Contrastive,
    DigitsCLIP,
    contrastive_targets,
)
from lpe.substrates.clip import ZeroShotClassifier, zero_shot_head
from lpe.substrates.digits import Jitter
from lpe.training.loop import train
from lpe.training.schedules import warmup_cosine

SMALL = DigitsCLIP(patch=4, width=16, depth=1, text_depth=1, heads=2, mlp_ratio=1.0)
PLAIN = Jitter(copies=1, degrees=0.0, scaling=0.0, pixels=0.0)

# Captions


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer()


def test_no_two_captions_have_the_same_tokens(tokenizer: CaptionTokenizer) -> None:
    captions = [template.format(name) for template, name in itertools.product(TEMPLATES, CLASS_NAMES)]
    assert len(tokenizer(captions).unique(dim=0)) == len(captions) == 60


def test_a_caption_lies_between_start_and_end_and_is_filled_up(tokenizer: CaptionTokenizer) -> None:
    (tokens,) = tokenizer(["a scan of the digit seven"]).tolist()
    by_token = {token: word for word, token in tokenizer.tokens.items()}
    assert [by_token[token] for token in tokens[1:7]] == "a scan of the digit seven".split()
    assert (tokens[0], tokens[7]) == (tokenizer.start, tokenizer.end)
    assert not any(tokens[8:]) and len(tokens) == tokenizer.context_length


def test_the_end_is_the_highest_token_where_clip_reads_its_features(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.end == tokenizer.vocabulary - 1 == int(tokenizer(["a seven"]).max())


@pytest.mark.parametrize(
    ("text", "message"),
    [("a scan of an elephant", "unknown word 'an'"), ("a " * 30, "has 30 words; ")],
    ids=["unknown", "long"],
)
def test_a_caption_that_cannot_be_read_is_one_line(
    text: str, message: str, tokenizer: CaptionTokenizer
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        tokenizer([text])
    assert "\n" not in str(raised.value)


# Data


def test_the_splits_are_the_digits_in_three_equal_channels() -> None:
    grey, colour = digits.load(3), captioned_digits.load(3)
    for name in ("train", "validation", "test"):
        (images, labels), (seen, classes) = getattr(grey, name), getattr(colour, name)
        assert torch.equal(seen, images.repeat(1, 3, 1, 1)) and torch.equal(classes, labels)


def captioned(seed: int, epoch: int) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
    split = captioned_digits.load(0).train
    return list(captioned_digits.batches(split, 50, seed, PLAIN)(epoch))


def test_every_image_has_a_caption_of_its_own_label() -> None:
    split = captioned_digits.load(0).train
    tokenizer = CaptionTokenizer()
    captions = tokenizer([t.format(name) for name in CLASS_NAMES for t in TEMPLATES]).tolist()
    of_image = {image.numpy().tobytes(): int(label) for image, label in zip(*split, strict=True)}
    templates = set()
    for (images, tokens), _ in captioned(0, 0):
        for image, row in zip(images, tokens.tolist(), strict=True):
            label, template = divmod(captions.index(row), len(TEMPLATES))
            assert of_image[image.numpy().tobytes()] == label
            templates.add(template)
    assert templates == set(range(len(TEMPLATES)))


def templates_drawn(seed: int, epoch: int) -> list[int]:
    """The number of the template of every caption of an epoch, in order."""
    captions = CaptionTokenizer()([t.format(name) for name in CLASS_NAMES for t in TEMPLATES]).tolist()
    rows = [row for (_, tokens), _ in captioned(seed, epoch) for row in tokens.tolist()]
    return [captions.index(row) % len(TEMPLATES) for row in rows]


def test_templates_are_drawn_by_seed_and_epoch() -> None:
    first, again, later, other = (templates_drawn(*key) for key in ((0, 1), (0, 1), (0, 2), (1, 1)))
    assert first == again and later != first != other


# The loss


def test_targets_are_uniform_over_the_pairs_of_one_label_in_both_directions() -> None:
    targets = contrastive_targets(torch.tensor([4, 7, 4]))
    one_way = [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    assert targets.tolist() == one_way + one_way


@pytest.fixture(scope="module")
def pairs() -> tuple[nn.Module, Tensor, Tensor]:
    """A CLIP, and images and tokens of four different digits."""
    images, labels = captioned_digits.load(0).train
    chosen = torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(4)])
    tokens = CaptionTokenizer()([TEMPLATES[0].format(CLASS_NAMES[digit]) for digit in range(4)])
    return captioned_digits.network(SMALL, 0).eval(), images[chosen], tokens


def test_the_loss_is_clip_s_own_where_no_label_comes_twice(pairs: tuple[nn.Module, Tensor, Tensor]) -> None:
    from open_clip import ClipLoss

    model, images, tokens = pairs
    expected = ClipLoss()(*model(images, tokens))
    targets = contrastive_targets(torch.arange(4))
    assert torch.allclose(nn.functional.cross_entropy(Contrastive(model)(images, tokens), targets), expected)


def unified_loss(model: nn.Module, images: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
    """Yang et al. 2022, equations 2 and 3, written out pair by pair."""
    logits, _ = model.get_logits(images, tokens)  # type: ignore[operator]
    terms = []
    for scores in (logits, logits.T):
        for i, label in enumerate(labels):
            positive = [k for k, other in enumerate(labels) if other == label]
            terms.append(-torch.stack([scores[i].log_softmax(0)[k] for k in positive]).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, 0, 0], [5, 5, 5, 5]])
def test_the_loss_is_the_unified_one_where_labels_repeat(
    labels: list[int], pairs: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, images, tokens = pairs
    given = torch.tensor(labels)
    loss = nn.functional.cross_entropy(Contrastive(model)(images, tokens), contrastive_targets(given))
    assert torch.allclose(loss, unified_loss(model, images, tokens, given))


def test_targets_blind_to_labels_are_seen_in_the_loss(pairs: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, tokens = pairs
    blind = contrastive_targets(torch.arange(4))
    loss = nn.functional.cross_entropy(Contrastive(model)(images, tokens), blind)
    assert not torch.allclose(
        loss, unified_loss(model, images, tokens, torch.tensor([0, 1, 0, 0])), atol=1e-3
    )


# The network


def test_the_network_is_open_clip_s_and_leaves_the_global_generator_alone() -> None:
    from open_clip.model import CLIP

    before = torch.get_rng_state()
    first, second, other = (captioned_digits.network(SMALL, seed) for seed in (0, 0, 1))
    assert isinstance(first, CLIP) and torch.equal(torch.get_rng_state(), before)
    projections = [net.state_dict()["visual.proj"] for net in (first, second, other)]
    assert torch.equal(projections[0], projections[1])
    assert not torch.equal(projections[0], projections[2])


def test_a_width_that_heads_do_not_divide_is_an_error() -> None:
    with pytest.raises(InputError, match="width of 10 is no multiple of 4 heads"):
        captioned_digits.network(DigitsCLIP(4, 10, 1, 1, 4, 1.0), 0)


def test_gains_biases_and_the_logit_scale_do_not_decay() -> None:
    model = captioned_digits.network(SMALL, 0)
    decayed, free = captioned_digits.parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(parameter)] for parameter in free["params"]}  # type: ignore[attr-defined]
    assert {"logit_scale", "ln_final.weight", "visual.conv1.bias", "visual.ln_post.bias"} & set(
        names.values()
    ) <= kept
    both = [*decayed["params"], *free["params"]]  # type: ignore[misc]
    assert sorted(map(id, both)) == sorted(names)


def test_a_trained_clip_reads_digits_zero_shot_and_so_do_its_low_precision_members() -> None:
    data = captioned_digits.load(0)
    shape = DigitsCLIP(patch=4, width=24, depth=1, text_depth=1, heads=2, mlp_ratio=2.0)
    model = captioned_digits.network(shape, 0)
    epochs, batch = 12, 50
    optimizer = torch.optim.AdamW(captioned_digits.parameter_groups(model, 0.05), fused=True)
    schedule = warmup_cosine(3e-3, epochs * (len(data.train[0]) // batch))
    batches = captioned_digits.batches(data.train, batch, 0, PLAIN)
    train(Contrastive(model), batches, optimizer, schedule, epochs, 0)
    head = zero_shot_head(model, CaptionTokenizer(), CLASS_NAMES, TEMPLATES)
    classifier = ZeroShotClassifier(model, head)
    single = lpe.evaluate(lpe.DeepEnsemble([classifier]), [data.validation]).iloc[-1]
    rounded = lpe.LowPrecisionEnsemble(classifier, lpe.Int(5), 5)
    several = lpe.evaluate(rounded, [data.validation]).iloc[-1]
    # Guessing errs on nine of ten.
    assert single["err"] < 0.15 and several["err"] < 0.15
    swapped = ZeroShotClassifier(model, head.roll(1, dims=1))
    assert lpe.evaluate(lpe.DeepEnsemble([swapped]), [data.validation]).iloc[-1]["err"] > 0.85
