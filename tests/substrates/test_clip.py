"""CLIP through open_clip: names and activations, weights from files and the hub, heads and classifiers."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import Tensor, nn

import lpe
from lpe import notices
from lpe.errors import InputError
from lpe.modules import named_tensors
from lpe.substrates import clip, hub, loading
from lpe.substrates.clip import (
    FineTuning,
    ZeroShotClassifier,
    fine_tune,
    fine_tuned_classifier,
    load_model,
    random_model,
    zero_shot_head,
)

VISION = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
TINY: dict[str, Any] = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
OPENAI = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SQUASHED = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
ARCHITECTURES = {
    "tiny": TINY,
    "tiny-quickgelu": {**TINY, "quick_gelu": True},
    "tiny-custom": {**TINY, "custom_text": True, "quick_gelu": False},
    "tiny-squashed": {**TINY, "quick_gelu": False},
    "tiny-unknown": {**TINY, "quick_gelu": False},
}
PRETRAINED = {
    "tiny": {
        "openai": {**OPENAI, "hf_hub": "nobody/tiny-openai/", "quick_gelu": True},
        "other": {**SQUASHED, "hf_hub": "nobody/tiny-other/"},
    },
    "tiny-squashed": {"one": {**SQUASHED, "hf_hub": "nobody/tiny-one/"}},
}


@pytest.fixture(autouse=True)
def tiny_architectures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Small architectures under open_clip's names for them, no network, and an empty cache of the hub."""
    from huggingface_hub import constants

    for name, config in ARCHITECTURES.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    for name, tags in PRETRAINED.items():
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # open_clip's first log line gives the root logger a handler, which would outlive the test.
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers


def state(custom: bool = False) -> dict[str, Tensor]:
    """The weights of a tiny model that nothing else has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made = (CustomTextCLIP if custom else CLIP)(**copy.deepcopy(TINY))
    return {name: value.clone() for name, value in made.state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(state(), path)
    return path


def cached(tmp_path: Path, repository: str) -> None:
    """The weights of a repository, in the cache as the hub's own client would have left them."""
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    safetensors.torch.save_file(state(), folder / "snapshots" / "abc" / "open_clip_model.safetensors")


def said(tag: str, *arguments: Any, **further: Any) -> str:
    """The one line that loading ends with."""
    with pytest.raises(InputError) as raised:
        load_model(tag, *arguments, **further)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def has_quick_gelu(model: Any) -> bool:
    towers = (model.visual.transformer, getattr(model, "text", model).transformer)
    found = {isinstance(block.mlp.gelu, QuickGELU) for tower in towers for block in tower.resblocks}
    assert len(found) == 1
    return found.pop()


# Names and activations


@pytest.mark.parametrize(
    ("tag", "quick_gelu", "expected"),
    [
        ("tiny:openai", None, True),
        ("tiny:other", None, False),
        ("tiny-quickgelu", None, True),
        ("tiny", True, True),
        ("tiny", False, False),
    ],
)
def test_a_model_has_the_activation_that_its_weights_were_trained_with(
    tag: str, quick_gelu: bool | None, expected: bool, checkpoint: Path
) -> None:
    loaded = load_model(tag, checkpoint, quick_gelu)
    assert has_quick_gelu(loaded.model) == expected
    assert loaded.record["image_activation"] == ("QuickGELU" if expected else "GELU")


def test_open_clip_alone_would_take_the_wrong_activation(tmp_path: Path) -> None:
    # Why the activation is set here: if a later version sets it itself, this says so.
    cached(tmp_path, "nobody/tiny-openai")
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.warns(UserWarning, match="QuickGELU mismatch"):
            model = open_clip.create_model("tiny", "openai")
    assert not has_quick_gelu(model)


def test_a_bare_checkpoint_that_leaves_the_activation_open_is_an_error(checkpoint: Path) -> None:
    message = said("tiny", checkpoint)
    assert "quick_gelu=False or quick_gelu=True" in message and "tiny:TAG" in message


def test_an_activation_that_contradicts_the_tag_is_an_error(checkpoint: Path) -> None:
    assert "tiny:openai has QuickGELU, not GELU" in said("tiny:openai", checkpoint, quick_gelu=False)


@pytest.mark.parametrize(
    ("architecture", "image", "text"),
    [
        ("RN50", "ReLU", "QuickGELU"),
        ("ViT-L-14", "QuickGELU", "QuickGELU"),
        ("ViT-B-16-SigLIP", "timm's own", "QuickGELU"),
        ("roberta-ViT-B-32", "QuickGELU", "transformers' own"),
    ],
)
def test_each_tower_s_activation_is_said(architecture: str, image: str, text: str) -> None:
    config = open_clip.get_model_config(architecture)
    assert clip._activations(config, True) == (image, text)


def test_an_architecture_that_can_only_have_gelu_leaves_nothing_open() -> None:
    # Its text tower asks for tanh's approximation, which QuickGELU does not have.
    assert clip._quick_gelu(clip._named("ViT-B-16-SigLIP2"), None) is False


def test_an_unknown_architecture_is_answered_with_near_names() -> None:
    assert "no architecture 'ViT-L-15'; near it are ViT-L-1" in said("ViT-L-15:openai")


def test_unknown_weights_are_answered_with_near_names() -> None:
    assert "no weights 'opnai' of tiny; near it are openai" in said("tiny:opnai")


def test_weights_of_another_architecture_are_answered_with_its_name() -> None:
    assert "no weights 'one' of tiny; tiny-squashed have them" in said("tiny:one")


def test_an_architecture_alone_names_no_weights() -> None:
    assert "tiny names no weights; give tiny:TAG, such as tiny:openai, tiny:other" in said("tiny")


# Weights


def test_the_weights_are_the_checkpoint_s(checkpoint: Path) -> None:
    model = load_model("tiny:openai", checkpoint).model
    assert not model.training
    for name, value in state().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_weights_in_the_hub_s_cache_need_no_network(tmp_path: Path) -> None:
    cached(tmp_path, "nobody/tiny-openai")
    loaded = load_model("tiny:openai")
    assert torch.equal(loaded.model.visual.proj, state()["visual.proj"])  # type: ignore[union-attr, arg-type]
    assert loaded.record["weights"] == "open_clip_model.safetensors"


def test_missing_weights_without_a_network_are_one_line_with_the_file_and_its_place(tmp_path: Path) -> None:
    message = said("tiny:openai")
    assert "open_clip_model.safetensors from huggingface.co/nobody/tiny-openai" in message
    assert str(tmp_path / "hub") in message and "the hub does not answer" in message


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked: list[bool] = []

    def download(weights: object) -> str:
        asked.append(constants.HF_HUB_OFFLINE)
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    before = constants.HF_HUB_OFFLINE
    said("tiny:openai")
    assert (asked, constants.HF_HUB_OFFLINE) == ([True], before)


def test_a_checkpoint_whose_keys_do_not_match_is_told_with_the_first_three_of_each_kind(
    tmp_path: Path,
) -> None:
    weights = {name.replace("visual.", "image."): value for name, value in state().items()}
    safetensors.torch.save_file(weights, tmp_path / "wrong.safetensors")
    message = said("tiny:openai", tmp_path / "wrong.safetensors")
    assert "missing: visual.class_embedding, visual.positional_embedding, visual.proj …" in message
    assert "unexpected: image.class_embedding, image.conv1.weight, image.ln_post.bias …" in message


def test_weights_of_another_image_size_are_refused_and_not_resized(tmp_path: Path) -> None:
    weights = state()
    weights["visual.positional_embedding"] = torch.zeros(10, 16)
    safetensors.torch.save_file(weights, tmp_path / "large.safetensors")
    assert "visual.positional_embedding [10, 16] (the model: [5, 16])" in said(
        "tiny:openai", tmp_path / "large.safetensors"
    )


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": _Runs()}))
    assert "evil.pt" in said("tiny:openai", tmp_path / "evil.pt")


def test_weights_of_the_two_ways_to_hold_a_text_tower_fit_each_other(checkpoint: Path) -> None:
    model = load_model("tiny-custom", checkpoint).model
    assert isinstance(model, CustomTextCLIP)
    assert torch.equal(model.text.token_embedding.weight, state()["token_embedding.weight"])


def noted(tag: str, path: Path) -> list[str]:
    """What is said of a checkpoint, without its path."""
    notices.forget()
    load_model(tag, path)
    return [line.removeprefix(str(path)) for line in notices.said()]


def test_names_that_are_moved_are_said_and_a_file_in_the_models_own_needs_no_word(checkpoint: Path) -> None:
    assert noted("tiny:openai", checkpoint) == []
    [said] = noted("tiny-custom", checkpoint)
    assert said == ", by open_clip's converter: 17 renamed (ln_final.bias → text.ln_final.bias)"


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    weights = {**state(custom=True), "text.transformer.embeddings.position_ids": torch.arange(5)}
    safetensors.torch.save_file(weights, tmp_path / "old.safetensors")
    assert noted("tiny-custom", tmp_path / "old.safetensors") == [
        ", by open_clip's converter: 1 left out (text.transformer.embeddings.position_ids)"
    ]


def test_codes_under_the_names_of_weights_are_refused(tmp_path: Path) -> None:
    weights = state()
    weights["visual.proj"] = (100 * weights["visual.proj"]).to(torch.int8)
    safetensors.torch.save_file(weights, tmp_path / "codes.safetensors")
    assert "has int8 under visual.proj where the model has float32" in said(
        "tiny:openai", tmp_path / "codes.safetensors"
    )


def test_preprocessing_that_is_given_takes_the_place_of_the_weights_own(checkpoint: Path) -> None:
    given = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
    loaded = load_model("tiny:other", checkpoint, preprocessing=given)
    assert {key: loaded.record[key] for key in given} == given
    white = loaded.preprocess(Image.new("RGB", (40, 40), (255, 255, 255)))
    assert white[:, 0, 0].tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_a_logit_scale_of_one_element_fits(tmp_path: Path) -> None:
    weights = state()
    weights["logit_scale"] = torch.tensor([1.5])
    safetensors.torch.save_file(weights, tmp_path / "one.safetensors")
    assert load_model("tiny:openai", tmp_path / "one.safetensors").model.logit_scale == 1.5


def test_a_model_larger_than_memory_is_refused_before_it_is_made(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    created = clip._created

    def counted(named: Any, quick_gelu: bool, device: str) -> nn.Module:
        made.append(device)
        return created(named, quick_gelu, device)

    monkeypatch.setattr(clip, "_created", counted)
    monkeypatch.setattr(loading, "available_bytes", lambda device=None: 1000)
    assert "tiny:openai needs" in said("tiny:openai", checkpoint)
    with pytest.raises(InputError, match="tiny needs"):
        random_model("tiny")
    assert made == ["meta", "meta"]


def test_loading_leaves_the_global_generator_and_the_log_as_they_were(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    load_model("tiny:openai", checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capsys.readouterr().err == ""


# Transforms


@pytest.mark.parametrize(
    ("tag", "quick_gelu", "expected"),
    [
        ("tiny:other", None, SQUASHED),  # the tag's own
        ("tiny:openai", None, OPENAI),
        ("tiny-squashed", None, SQUASHED),  # all published weights of the architecture agree
        ("tiny", False, OPENAI),  # they do not: open_clip's default
        ("tiny-unknown", None, OPENAI),  # there are none
    ],
)
def test_the_transform_is_that_of_the_weights_and_recorded(
    tag: str, quick_gelu: bool | None, expected: dict[str, object], checkpoint: Path
) -> None:
    loaded = load_model(tag, checkpoint, quick_gelu)
    assert {key: loaded.record[key] for key in expected} == expected
    assert loaded.record["image_size"] == (16, 16)


def test_the_transform_makes_of_an_image_what_the_model_takes(checkpoint: Path) -> None:
    loaded = load_model("tiny:other", checkpoint)
    image = Image.new("L", (40, 30), 255)
    values = loaded.preprocess(image)
    assert values.shape == (3, 16, 16)
    # White is 1, less the mean of .5, over .25.
    assert torch.allclose(values, torch.full((3, 16, 16), 2.0))
    assert loaded.model.visual(values[None]).shape == (1, 8)  # type: ignore[operator]


# Random models


def test_a_random_model_is_always_the_same() -> None:
    before = torch.get_rng_state()
    first, second = random_model("tiny"), random_model("tiny")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.model.visual.proj, second.model.visual.proj)  # type: ignore[union-attr, arg-type]
    assert first.record["weights"] == "random"


@pytest.mark.parametrize(("tag", "image"), [("ViT-L-14:openai", 303.97), ("ViT-g-14", 1012.65)])
def test_the_paper_s_models_have_their_true_shapes(tag: str, image: float) -> None:
    # Millions of parameters of the image tower, as open_clip's list of models has them.
    model = clip._created(clip._named(tag), False, "meta")
    count = sum(value.numel() for name, value in model.named_parameters() if name.startswith("visual."))
    assert round(count / 1e6, 2) == image


def test_a_text_tower_of_the_hub_is_built_without_asking_for_its_own_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def tower(name: str, *, pretrained: bool, **_: object) -> nn.Module:
        asked.append(pretrained)
        raise OSError("seen enough")

    monkeypatch.setattr(open_clip.model, "HFTextEncoder", tower)
    with pytest.raises(InputError, match="seen enough"):
        random_model("roberta-ViT-B-32")
    assert asked == [False]


def test_a_text_tower_of_the_hub_that_is_not_here_is_one_line() -> None:
    with pytest.raises(InputError, match="hf download roberta-base") as raised:
        random_model("roberta-ViT-B-32")
    assert "\n" not in str(raised.value)


def test_a_tokenizer_of_the_hub_that_is_not_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {**TEXT, "hf_tokenizer_name": "nobody/words"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", {**TINY, "text_cfg": text})
    with pytest.raises(InputError, match="hf download nobody/words") as raised:
        random_model("tiny")
    assert "\n" not in str(raised.value)


# Heads

NAMES = ["cat", "dog", "tree frog"]
TEMPLATES = ["a photo of a {}", "a bad photo of the {}"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return CLIP(**copy.deepcopy(TINY)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Callable[..., Tensor]:
    made: Callable[..., Tensor] = open_clip.SimpleTokenizer(context_length=16)
    return made


@pytest.fixture(scope="module")
def head(model: nn.Module, tokenizer: Callable[..., Tensor]) -> Tensor:
    return zero_shot_head(model, tokenizer, NAMES, TEMPLATES)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_head_is_the_mean_of_the_captions_features_at_length_one(
    model: nn.Module, tokenizer: Callable[..., Tensor], head: Tensor
) -> None:
    for column, name in enumerate(NAMES):
        features = model.encode_text(tokenizer([t.format(name) for t in TEMPLATES]), normalize=True)  # type: ignore[operator]
        mean = features.mean(0)
        assert torch.allclose(head[:, column], mean / mean.norm(), atol=1e-6)


def test_templates_may_be_functions(model: nn.Module, tokenizer: Callable[..., Tensor], head: Tensor) -> None:
    functions = [template.format for template in TEMPLATES]
    assert torch.equal(zero_shot_head(model, tokenizer, NAMES, functions), head)


def test_without_names_a_head_is_imagenet_s(
    model: nn.Module, tokenizer: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", open_clip.OPENAI_IMAGENET_TEMPLATES[:1])
    found = zero_shot_head(model, tokenizer)
    assert found.shape == (8, 1000)
    first = open_clip.OPENAI_IMAGENET_TEMPLATES[0]("tench")
    features = model.encode_text(tokenizer([first]), normalize=True)[0]  # type: ignore[operator]
    assert torch.allclose(found[:, 0], features, atol=1e-6)


def test_making_a_head_leaves_the_model_in_its_mode_and_without_gradients(
    model: nn.Module, tokenizer: Callable[..., Tensor]
) -> None:
    training = copy.deepcopy(model).train()
    made = zero_shot_head(training, tokenizer, NAMES, TEMPLATES)
    assert training.training and not made.requires_grad


@pytest.mark.parametrize(("names", "templates"), [([], TEMPLATES), (NAMES, [])])
def test_a_head_of_nothing_is_an_error(
    names: list[str], templates: list[str], model: nn.Module, tokenizer: Callable[..., Tensor]
) -> None:
    with pytest.raises(InputError, match="needs class names and templates, not"):
        zero_shot_head(model, tokenizer, names, templates)


# Classifiers


def test_the_zero_shot_logits_are_open_clip_s_own(
    model: nn.Module, tokenizer: Callable[..., Tensor], images: Tensor
) -> None:
    one = zero_shot_head(model, tokenizer, NAMES, TEMPLATES[:1])
    expected, _ = model.get_logits(images, tokenizer([TEMPLATES[0].format(name) for name in NAMES]))  # type: ignore[operator]
    assert torch.allclose(ZeroShotClassifier(model, one)(images), expected, atol=1e-5)


def test_a_logit_bias_is_added(head: Tensor, images: Tensor) -> None:
    biased = CLIP(**copy.deepcopy(TINY), init_logit_bias=-10.0).eval()
    classifier = ZeroShotClassifier(biased, head)
    with_bias = classifier(images)
    classifier.logit_bias = None
    assert torch.allclose(with_bias, classifier(images) - 10, atol=1e-4)


def test_a_head_that_is_no_matrix_is_an_error(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"must be \[width, classes\], not \[8\]"):
        ZeroShotClassifier(model, torch.zeros(8))


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: CLIP(**copy.deepcopy(TINY)),
    "ModifiedResNet": lambda: CLIP(
        8, CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=32), CLIPTextCfg(**TEXT)
    ),
    "SigLIP": lambda: CustomTextCLIP(
        192,
        CLIPVisionCfg(
            timm_model_name="vit_tiny_patch16_224", image_size=224, timm_pool="map", timm_proj="none"
        ),
        CLIPTextCfg(**TEXT),
        init_logit_bias=-10.0,
    ),
    "attentional pooling": lambda: CLIP(
        8,
        CLIPVisionCfg(**VISION, attentional_pool=True, attn_pooler_heads=2, output_tokens=True),
        CLIPTextCfg(**TEXT),
    ),
}
LEFT = {
    "ViT": {"visual.class_embedding", "visual.positional_embedding"},
    "ModifiedResNet": {"visual.attnpool.positional_embedding"},
    "SigLIP": {"visual.trunk.pos_embed", "visual.trunk.cls_token", "visual.trunk.attn_pool.latent"},
    "attentional pooling": {
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.attn_pool.query",
    },
}
"""What stays at full precision of each image tower beside biases and norms."""


def classifier_on(tower: str) -> ZeroShotClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = TOWERS[tower]().eval()
        width = made.text_projection.shape[1] if isinstance(made, CLIP) else 192
        return ZeroShotClassifier(made, nn.functional.normalize(torch.randn(width, 4), dim=0)).eval()


@pytest.mark.parametrize("tower", TOWERS)
def test_members_differ_in_the_image_tower_s_weights_and_in_nothing_else(tower: str) -> None:
    classifier = classifier_on(tower)
    ensemble = lpe.LowPrecisionEnsemble(classifier, lpe.Int(4), 2)
    base = {entry.name: entry.tensor for entry in named_tensors(classifier)}
    assert all(name.startswith("visual.") for name, _ in classifier.named_parameters())
    changed = set()
    for net in ensemble:
        tensors = {entry.name: entry.tensor for entry in named_tensors(net)}
        assert all(tensors[n].data_ptr() == base[n].data_ptr() for n in ("head", "logit_scale"))
        changed |= {name for name, tensor in tensors.items() if not torch.equal(tensor, base[name])}
    planned = {each.name: each for each in ensemble.plan}
    assert changed and changed <= {name for name in planned if name.startswith("visual.")}
    left = {name for name, each in planned.items() if not each.quantised and "weight" not in name}
    many = {name for name in left if not name.endswith("bias") and planned[name].reason != "buffer"}
    assert many == LEFT[tower]
    for name in ("head", "logit_scale"):
        assert planned[name].reason == "buffer" and planned[name].saved


@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower_classifies(tower: str) -> None:
    side = {"ModifiedResNet": 32, "SigLIP": 224}.get(tower, 16)
    logits = classifier_on(tower)(torch.zeros(2, 3, side, side))
    assert logits.shape == (2, 4) and torch.isfinite(logits).all()


def test_a_head_that_is_a_layer_would_be_rounded(model: nn.Module, head: Tensor) -> None:
    # What the buffer is for: the fine-tuned classifier's head is a Linear, and members have their own.
    plan = lpe.LowPrecisionEnsemble(fine_tuned_classifier(model, head), lpe.Int(4), 1).plan
    assert {each.name: each.quantised for each in plan}["head.weight"]


def test_an_ensemble_of_classifiers_is_saved_and_loaded(
    model: nn.Module, head: Tensor, images: Tensor, tmp_path: Path
) -> None:
    classifier = ZeroShotClassifier(model, head)
    ensemble = lpe.LowPrecisionEnsemble(classifier, lpe.Int(4), 3)
    lpe.save(ensemble, tmp_path / "clip.safetensors")
    blank = ZeroShotClassifier(CLIP(**copy.deepcopy(TINY)), torch.zeros_like(head))
    again = lpe.load(tmp_path / "clip.safetensors", blank)
    assert torch.equal(again.predict(images), ensemble.predict(images))


# Fine-tuning


def test_fine_tuning_starts_at_the_zero_shot_predictions(
    model: nn.Module, head: Tensor, images: Tensor
) -> None:
    start = fine_tuned_classifier(model, head)
    assert torch.allclose(start(images), ZeroShotClassifier(model, head)(images), atol=1e-5)


def test_fine_tuning_moves_tower_and_head_lowers_the_loss_and_leaves_the_clip_as_it_is(
    model: nn.Module, head: Tensor, images: Tensor
) -> None:
    before = copy.deepcopy(model.state_dict())
    classifier = fine_tuned_classifier(model, head)
    start = copy.deepcopy(classifier.state_dict())
    labels = torch.tensor([0, 1, 2, 0, 1])
    recipe = FineTuning(epochs=30, batch=5, learning_rate=1e-2)
    run = fine_tune(classifier, lambda epoch: [(images, labels)], 1, recipe)
    assert run.backward_passes == 30 and run.curve[-1]["loss"] < 0.5 * run.curve[0]["loss"]
    for name in ("head.weight", "visual.conv1.weight", "visual.proj"):
        assert not torch.equal(classifier.state_dict()[name], start[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_default_recipe_is_the_known_one(
    model: nn.Module, head: Tensor, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def caught(
        classifier: nn.Module, batches: Any, optimizer: Any, schedule: Any, *rest: Any, **_: Any
    ) -> None:
        seen.update(optimizer=optimizer, rates=[schedule(step) for step in range(100)], epochs=rest[0])

    monkeypatch.setattr(clip, "train", caught)
    fine_tune(fine_tuned_classifier(model, head), lambda epoch: [], steps_per_epoch=10)
    assert FineTuning().batch == 256 and seen["epochs"] == 10
    assert isinstance(seen["optimizer"], torch.optim.AdamW)
    assert 0 <= seen["optimizer"].defaults["weight_decay"] <= 0.1
    # A tenth of the 100 steps is warm-up, to a peak of 1e-5; half a cosine from there to 0.
    assert seen["rates"][:10] == pytest.approx([1e-6 * step for step in range(1, 11)])
    assert max(seen["rates"]) == pytest.approx(1e-5) and seen["rates"][55] == pytest.approx(0.5e-5)
    assert seen["rates"][-1] < 1e-8
