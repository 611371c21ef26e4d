"""CLIP from open_clip, as a zero-shot classifier and as a fine-tuned one.

Zero-shot (Radford et al. 2021): with f the image tower's features and h_c the mean of the text tower's
features of a class's captions, both of length 1,

    logits_c(x) = exp(logit scale) · f(x) · h_c.

The head [h_1 … h_C] is computed once, at full precision, by open_clip's own ``build_zero_shot_classifier``,
and is a buffer of the classifier: an ensemble's members differ in the image tower and in nothing else.
SigLIP's models (Zhai et al. 2023) are read in the same way, as a softmax over the classes; their logit bias,
one number for all classes, leaves it as it is.

Fine-tuned (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"): the head is a trainable linear
layer that starts at exp(logit scale) · [h_1 … h_C].

Models are named as open_clip names them, ``ViT-L-14:openai`` (architecture:weights). OpenAI's weights and
some others were trained with QuickGELU, x · sigmoid(1.702 x), where the architecture of that name has GELU;
open_clip warns and goes on with GELU, so here the weights' own activation is set. Of a bare file of weights
nobody can tell: the caller says.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.extras import needs
from lpe.modules import device_of
from lpe.notices import note
from lpe.substrates.conversions import conversion
from lpe.substrates.hub import hub_or_cache
from lpe.substrates.loading import load_state, parameter_bytes, read_weights, require_memory
from lpe.training.loop import Batches, TrainingRun, train
from lpe.training.schedules import warmup_cosine


@dataclass(frozen=True)
class LoadedCLIP:
    """A CLIP and what belongs to it.

    Args:
        model: open_clip's, in eval mode, on the CPU, float32.
        tokenizer: captions → tokens, int64 [captions, context length].
        preprocess: the evaluation transform: PIL image → float32 [3, height, width].
        record: what it is, for provenance: architecture, pretrained, weights, the activations of both towers,
            image_size, mean, std, interpolation, resize_mode.
    """

    model: nn.Module
    tokenizer: Callable[[Sequence[str]], Tensor]
    preprocess: Callable[[Any], Tensor]
    record: dict[str, object]


@dataclass(frozen=True)
class _Named:
    """An open_clip model by name: its configuration, and what is known of its weights."""

    architecture: str
    tag: str | None
    config: Mapping[str, Any]
    weights: Mapping[str, Any]

    def __str__(self) -> str:
        return self.architecture if self.tag is None else f"{self.architecture}:{self.tag}"


def _near(wanted: str, names: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wanted.lower(), list(by_lower), n=3, cutoff=0.5)
    return ", ".join([by_lower[name] for name in near] or list(names)[:3])


def _named(tag: str) -> _Named:
    """Return the model of a name such as "ViT-L-14:openai" or "ViT-L-14"."""
    needs("open_clip")

    import open_clip

    architecture, _, weights = tag.partition(":")
    architecture = architecture.replace("/", "-")
    config = open_clip.get_model_config(architecture) if architecture in open_clip.list_models() else None
    if config is None:
        raise InputError(
            f"open_clip has no architecture {architecture!r}; near it are "
            f"{_near(architecture, open_clip.list_models())}"
        )
    if not weights:
        return _Named(architecture, None, config, {})
    found = open_clip.get_pretrained_cfg(architecture, weights)
    if not found:
        elsewhere = open_clip.list_pretrained_models_by_tag(weights)
        there = open_clip.list_pretrained_tags_by_model(architecture)
        hint = (
            f"{', '.join(elsewhere[:3])} have them"
            if elsewhere
            else f"near it are {_near(weights, there)}"
            if there
            else "open_clip knows no weights of it: give a checkpoint"
        )
        raise InputError(f"open_clip has no weights {weights!r} of {architecture}; {hint}")
    return _Named(architecture, weights, config, found)


def _activations(config: Mapping[str, Any], quick_gelu: bool) -> tuple[str, str]:
    """Name the activations of the image tower and of the text tower."""
    named = "QuickGELU" if quick_gelu else "GELU"
    vision, text = config["vision_cfg"], config["text_cfg"]
    residual = isinstance(vision.get("layers"), list)
    image = "timm's own" if vision.get("timm_model_name") else "ReLU" if residual else named
    return image, "transformers' own" if text.get("hf_model_name") else named


def _quick_gelu(named: _Named, asked: bool | None, random: bool = False) -> bool:
    """Tell whether the model has QuickGELU.

    Raises:
        InputError: a bare checkpoint leaves it open, or ``asked`` contradicts what the name says.
    """
    config = named.config
    exact = any(config[tower].get("act_kwargs") for tower in ("vision_cfg", "text_cfg"))
    unused = not {"GELU", "QuickGELU"} & {*_activations(config, True)}
    says = True if config.get("quick_gelu") or named.weights.get("quick_gelu") else None
    if says is None and (named.tag is not None or "quick_gelu" in config or exact or unused or random):
        says = False
    if says is None and asked is None:
        raise InputError(
            f"a checkpoint of {named} may have been trained with GELU or with QuickGELU (OpenAI's, and what "
            "was fine-tuned from it): say quick_gelu=False or quick_gelu=True, or name the weights that it "
            f"came from, as {named}:TAG"
        )
    if says is None:
        return bool(asked)
    if asked is not None and asked != says:
        title = {True: "QuickGELU", False: "GELU"}
        raise InputError(f"{named} has {title[says]}, not {title[asked]}; leave quick_gelu out")
    return says


def _preprocessing(named: _Named) -> Mapping[str, Any]:
    """Return named weights' preprocessing; a bare checkpoint's is what all weights published for it share.

    Where those differ it is open_clip's default, that of OpenAI's.
    """
    needs("open_clip")

    import open_clip

    if named.tag is not None:
        return named.weights
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(named.architecture)
    every = [open_clip.get_pretrained_cfg(named.architecture, tag) for tag in tags]
    shared = [{key: cfg[key] for key in keys} for cfg in every]
    return shared[0] if shared and all(each == shared[0] for each in shared) else {}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _weights_file(named: _Named) -> Path:
    """Return the file of published weights: from the hub's cache, or the hub."""
    needs("open_clip", "huggingface_hub")

    import open_clip
    from huggingface_hub import constants
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    repository, _, file = str(named.weights["hf_hub"]).rpartition("/")
    with hub_or_cache() as answers:
        try:
            return Path(open_clip.download_pretrained(dict(named.weights)))
        except Exception as error:  # a gate, a full disk, no network: whatever it is, the file is not here
            cause = _first_line(error) if answers else "the hub does not answer"
            raise InputError(
                f"the weights of {named} are not here: get {file or HF_SAFE_WEIGHTS_NAME} from "
                f"huggingface.co/{repository} and give it as checkpoint, or run 'hf download {repository}' "
                f"where there is a network and copy its folder into {constants.HF_HUB_CACHE} ({cause})"
            ) from None


def _created(named: _Named, quick_gelu: bool, device: str) -> nn.Module:
    """Return the architecture with random weights; the global generators are left as they were."""
    needs("open_clip")

    import open_clip

    logger = logging.getLogger()
    # open_clip warns that the weights are random; that is what is asked for.
    quiet = logging.Filter("")
    quiet.filter = lambda record: False  # type: ignore[method-assign]
    logger.addFilter(quiet)
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.default_generator.manual_seed(0)
            model: nn.Module = open_clip.create_model(
                named.architecture,
                device=device,
                force_quick_gelu=quick_gelu,
                force_preprocess_cfg=dict(_preprocessing(named)),
                pretrained_text=False,
            )
    except OSError as error:
        raise InputError(
            f"the text tower of {named} is built from files that are not here: run 'hf download "
            f"{named.config['text_cfg'].get('hf_model_name')}' where there is a network and copy its folder "
            f"into the hub's cache ({_first_line(error)})"
        ) from None
    finally:
        logger.removeFilter(quiet)
    return model.eval()


def _tokenizer(named: _Named) -> Callable[[Sequence[str]], Tensor]:
    needs("open_clip")

    import open_clip

    try:
        tokenizer: Callable[[Sequence[str]], Tensor] = open_clip.get_tokenizer(named.architecture)
    except (OSError, ValueError) as error:
        source = named.config["text_cfg"].get("hf_tokenizer_name")
        raise InputError(
            f"the tokenizer of {named} is not here: run 'hf download {source}' where there is a network and "
            f"copy its folder into the hub's cache ({_first_line(error)})"
        ) from None
    return tokenizer


def _complete(
    named: _Named, model: nn.Module, quick_gelu: bool, weights: str, given: Mapping[str, Any]
) -> LoadedCLIP:
    needs("open_clip")

    from open_clip.transform import PreprocessCfg, image_transform_v2

    seen = PreprocessCfg(**{**model.visual.preprocess_cfg, **given})  # type: ignore[union-attr, dict-item]
    image, text = _activations(named.config, quick_gelu)
    record: dict[str, object] = {
        "architecture": named.architecture,
        "pretrained": named.tag,
        "weights": weights,
        "image_activation": image,
        "text_activation": text,
        "image_size": seen.size,
        "mean": seen.mean,
        "std": seen.std,
        "interpolation": seen.interpolation,
        "resize_mode": seen.resize_mode,
    }
    return LoadedCLIP(model, _tokenizer(named), image_transform_v2(seen, is_train=False), record)


def load_model(
    tag: str,
    checkpoint: str | Path | None = None,
    quick_gelu: bool | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> LoadedCLIP:
    """Return a CLIP with its weights, tokenizer and evaluation transform.

    Args:
        tag: "ViT-L-14:openai" (architecture:weights), from the hub's cache or the hub; or, with a
            checkpoint, "ViT-L-14" alone.
        checkpoint: a file of weights, read instead of the tag's: safetensors or a state dict of torch.save.
            A tag beside it says which activation and transform they have.
        quick_gelu: the activation of a bare checkpoint, see the module's docstring.
        preprocessing: mean, std and interpolation of images where they are not to be the weights' own.

    Raises:
        InputError: unknown architecture or weights (with near names); weights that are not here and cannot be
            had; a checkpoint that does not fit, or that leaves the activation open; a model larger than
            memory, before it is loaded.
    """
    named = _named(tag)
    if named.tag is None and checkpoint is None:
        raise InputError(
            f"{named} names no weights; give {named}:TAG, such as "
            f"{', '.join(_tags(named)[:3]) or 'none that open_clip knows'}, or a checkpoint"
        )
    quick = _quick_gelu(named, quick_gelu)
    path = _weights_file(named) if checkpoint is None else Path(checkpoint)
    with _hub_for(named):
        needed = parameter_bytes(_created(named, quick, "meta"))
        if path.is_file() and path.suffix != ".safetensors":
            needed += path.stat().st_size  # a pickle is read whole, beside the model
        require_memory(needed, str(named))
        weights = read_weights(path)
        model = _created(named, quick, "cpu")
        load_state(model, _as_of(model, weights, str(path)), str(path))
        return _complete(named, model, quick, path.name, preprocessing or {})


def random_model(tag: str, preprocessing: Mapping[str, Any] | None = None) -> LoadedCLIP:
    """Return a tag's architecture at its true shape, with random weights (always the same): for rehearsals.

    Args:
        tag, preprocessing: see :func:`load_model`.

    Raises:
        InputError: unknown architecture or weights; a model larger than memory; a tokenizer or text tower
            that open_clip takes from the hub, where it cannot be had.
    """
    named = _named(tag)
    quick = _quick_gelu(named, None, random=True)
    with _hub_for(named):
        require_memory(parameter_bytes(_created(named, quick, "meta")), str(named))
        return _complete(named, _created(named, quick, "cpu"), quick, "random", preprocessing or {})


def _tags(named: _Named) -> list[str]:
    needs("open_clip")

    import open_clip

    return [
        f"{named.architecture}:{tag}" for tag in open_clip.list_pretrained_tags_by_model(named.architecture)
    ]


@contextmanager
def _hub_for(named: _Named) -> Iterator[None]:
    """Reach the hub, for the architectures that take more than their weights from it."""
    text = named.config["text_cfg"]
    if not (text.get("hf_model_name") or text.get("hf_tokenizer_name")):
        yield
        return
    with hub_or_cache():
        yield


def _as_of(model: nn.Module, file: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename weights to the model's names: what open_clip's own loading does, but for resizing positions.

    Weights of another image size are another model's: they are refused, with their shape. What was done to
    names and layouts is said in a line.

    Raises:
        InputError: the conversion would give tensors values that the file does not have.
    """
    needs("open_clip")

    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    weights = dict(convert_state_dict(model, dict(file)))
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    for name in ("logit_scale", "logit_bias"):  # a number in some files, one element in others
        held = getattr(model, name, None)
        if held is not None and name in weights and weights[name].numel() == held.numel():
            weights[name] = weights[name].reshape(held.shape)
    # Of text towers written by older versions of transformers.
    weights.pop("text.transformer.embeddings.position_ids", None)
    made = conversion(file, weights)
    if made.invented:
        raise InputError(
            f"{source}: open_clip's converter would compute {', '.join(made.invented[:3])}, of which the "
            "file does not have the values; convert it by open_clip and give the result"
        )
    if told := made.told():
        note(f"{source}, by open_clip's converter: {told}")
    if getattr(model, "logit_bias", None) is not None and "logit_scale" in weights:
        if "logit_bias" not in weights:
            note(f"{source} has no logit_bias; it is 0, which changes no probability of a class")
        weights.setdefault("logit_bias", torch.zeros_like(weights["logit_scale"]))
    return weights


@torch.no_grad()
def zero_shot_head(
    model: nn.Module,
    tokenizer: Callable[[Sequence[str]], Tensor],
    class_names: Sequence[str] | None = None,
    templates: Sequence[str | Callable[[str], str]] | None = None,
) -> Tensor:
    """Return a zero-shot head: each class's mean text features, of length 1.

    Args:
        model: an open_clip model. tokenizer: its own.
        class_names: None: ImageNet's 1,000, as open_clip has them.
        templates: captions with {} for the class's name, or functions of it; None: OpenAI's 80 for ImageNet.

    Returns:
        float32 [width, classes], on the model's device.

    Raises:
        InputError: no class names or no templates.
    """
    needs("open_clip")

    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES, build_zero_shot_classifier

    class_names = IMAGENET_CLASSNAMES if class_names is None else class_names
    templates = OPENAI_IMAGENET_TEMPLATES if templates is None else templates
    if not class_names or not templates:
        raise InputError(
            f"a zero-shot head needs class names and templates, not {len(class_names)} and {len(templates)}"
        )
    training = model.training
    model.eval()
    try:
        head: Tensor = build_zero_shot_classifier(
            model, tokenizer, class_names, templates, device=device_of(model)
        )
    finally:
        model.train(training)
    return head.float()


def _features(visual: nn.Module, images: Tensor) -> Tensor:
    """Return the image tower's features at float32, of length 1: [images, width]."""
    features = visual(images)
    if isinstance(features, tuple):  # CoCa's tower returns its tokens as well
        features = features[0]
    return nn.functional.normalize(features.float(), dim=-1)


class ZeroShotClassifier(nn.Module):
    """An open_clip model's image tower under a fixed zero-shot head: images → logits [images, classes].

    Its parameters are the image tower's, under the names that they have in the model (``visual.…``) and
    shared with it. The head, the logit scale and the logit bias are buffers: never rounded, never noisy.

    Args:
        model: an open_clip model. head: [width, classes], see :func:`zero_shot_head`.

    Raises:
        InputError: a head that is not a matrix.
    """

    head: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None

    def __init__(self, model: nn.Module, head: Tensor) -> None:
        super().__init__()
        if head.dim() != 2:
            raise InputError(f"a zero-shot head must be [width, classes], not {list(head.shape)}")
        bias = getattr(model, "logit_bias", None)
        self.visual: nn.Module = model.visual  # type: ignore[assignment]
        self.register_buffer("head", head.detach().float())
        self.register_buffer("logit_scale", model.logit_scale.detach().clone())  # type: ignore[operator]
        self.register_buffer("logit_bias", None if bias is None else bias.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [images, classes] of images [images, 3, height, width]."""
        logits = self.logit_scale.exp() * (_features(self.visual, images) @ self.head)
        return logits if self.logit_bias is None else logits + self.logit_bias


class FineTunedClassifier(nn.Module):
    """An image tower with a linear head on its features of length 1: images → logits [images, classes]."""

    def __init__(self, visual: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.visual = visual
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [images, classes] of images [images, 3, height, width]."""
        logits: Tensor = self.head(_features(self.visual, images))
        return logits


@torch.no_grad()
def fine_tuned_classifier(model: nn.Module, head: Tensor) -> FineTunedClassifier:
    """Return a classifier to fine-tune, which before its first step predicts what the zero-shot one does.

    Args:
        model: an open_clip model; it is left as it is: the image tower is copied.
        head: [width, classes], see :func:`zero_shot_head`.

    Raises:
        InputError: a head that is not a matrix.
    """
    zero_shot = ZeroShotClassifier(model, head)
    width, classes = zero_shot.head.shape
    linear = nn.utils.skip_init(nn.Linear, width, classes, device=zero_shot.head.device)
    linear.weight.copy_(zero_shot.logit_scale.exp() * zero_shot.head.T)
    linear.bias.copy_(torch.zeros(classes) if zero_shot.logit_bias is None else zero_shot.logit_bias)
    return FineTunedClassifier(copy.deepcopy(zero_shot.visual), linear)


@dataclass(frozen=True)
class FineTuning:
    """Fine-tuning by AdamW with warm-up and cosine: the settings known of CLIP ViT-B/16 on ImageNet.

    Known are a batch of 256, 10 epochs (or 50,000 steps), a learning rate of 1e-5, 10 % warm-up and a weight
    decay between 0 and .1.
    """

    epochs: int = 10
    batch: int = 256
    learning_rate: float = 1e-5
    warm_up: float = 0.1
    weight_decay: float = 0.1


def fine_tune(
    classifier: FineTunedClassifier,
    batches: Batches,
    steps_per_epoch: int,
    recipe: FineTuning | None = None,
    seed: int = 0,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainingRun:
    """Fine-tune image tower and head together, in place; the classifier is left in eval mode.

    Args:
        batches: epoch → batches (images, labels), of the recipe's size.
        steps_per_epoch: how many those are. recipe: None: ``FineTuning()``.
        seed: of what the model draws. report: called with each row of the training curve.

    Raises:
        InputError: as :func:`lpe.training.loop.train`.
    """
    recipe = recipe or FineTuning()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=recipe.weight_decay)
    schedule = warmup_cosine(recipe.learning_rate, recipe.epochs * steps_per_epoch, recipe.warm_up)
    return train(classifier, batches, optimizer, schedule, recipe.epochs, seed, report=report)
