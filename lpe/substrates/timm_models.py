"""Models of timm: their weights, their classes, and how they were made to see images.

Preprocessing is that of timm's ``validate.py``: a model's *test* size and crop where it has them, which are
those of timm's published numbers, else those that it was trained with.

Weights under their authors' names are converted by timm's own converters, and what these did is said in a
line. Where a tensor would not have the file's values (positions resampled to another size, a stem of other
channels, what the file does not have), the file is refused; positions are resampled where a size was given.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.extras import needs
from lpe.modules import named_tensors
from lpe.notices import note
from lpe.substrates.conversions import conversion
from lpe.substrates.hub import hub_file
from lpe.substrates.loading import (
    SHOWN,
    Casts,
    Misfit,
    load_state,
    parameter_bytes,
    read_weights,
    require_memory,
)

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")
NOT_ARGUMENTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "features_only")
"""Arguments of timm's ``create_model`` that are none of an architecture."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
Arguments = Mapping[str, Any]


def load_model(
    name: str, checkpoint: str | os.PathLike[str] | None = None, arguments: Arguments | None = None
) -> nn.Module:
    """Return a pre-trained model of timm, in eval mode, on the CPU.

    Args:
        name: timm's, with or without the weights' tag: "vit_small_patch16_224.augreg_in21k_ft_in1k".
        checkpoint: a file of weights (see :func:`lpe.substrates.loading.read_weights`); the model has as many
            classes as its classifier. None: the hub's, from the cache if they are there.
        arguments: of the architecture, as timm's ``create_model`` takes them: ``{"pad_type": "same"}``.

    Raises:
        InputError: an unknown name or argument; weights that are not to be had, do not fit, or would be
            changed; a model larger than memory.
    """
    arguments = arguments or {}
    shape = _on_meta(name, arguments)
    # While they are read in, the weights are there twice.
    require_memory(2 * parameter_bytes(shape), f"{name} while it is loaded")
    config = _pretrained_config(shape)
    if checkpoint is not None:
        weights, source = read_weights(checkpoint), str(checkpoint)
    else:
        if not config.get("hf_hub_id") or config.get("custom_load") == "hf":
            where = config.get("url") or config.get("hf_hub_id")
            raise InputError(
                f"{name} has no weights in a file that timm's hub repositories have; give "
                + (f"those of {where}" if where else "your own")
                + " as the checkpoint"
            )
        chosen = config.get("hf_hub_filename")
        file = hub_file(config["hf_hub_id"], (chosen,) if chosen else _WEIGHTS)
        weights, source = read_weights(file), f"{file.name} of {config['hf_hub_id']}"
    return _with_weights(name, weights, source, shape, arguments)


def random_model(name: str, arguments: Arguments | None = None) -> nn.Module:
    """Return a timm model of true shape with random weights (always the same), in eval mode, on the CPU.

    Args:
        name, arguments: see :func:`load_model`.

    Raises:
        InputError: an unknown name or argument; a model larger than memory.
    """
    arguments = arguments or {}
    require_memory(parameter_bytes(_on_meta(name, arguments)), name)
    return _created(name, **arguments)


def _on_meta(name: str, arguments: Arguments | None = None) -> nn.Module:
    """Return the model without any memory for its weights."""
    needs("timm")

    import timm
    from timm.models import get_pretrained_cfg

    try:
        known = timm.is_model(name) and get_pretrained_cfg(name) is not None
    except RuntimeError:  # of a tag that the model does not have
        known = False
    if not known:
        names = dict.fromkeys([*timm.list_models(pretrained=True), *timm.list_models()])
        near = difflib.get_close_matches(name, names, SHOWN, cutoff=0.5)
        raise InputError(
            f"timm has no model {name!r}; "
            + (f"near it there are {', '.join(near)}" if near else "timm.list_models() has their names")
        )
    if strange := next((key for key in arguments or () if key in NOT_ARGUMENTS), None):
        raise InputError(f"{strange!r} is no argument of an architecture; give weights as the checkpoint")
    if "device" in (arguments or ()):
        raise InputError("'device' is no argument of an architecture; move the model that is loaded")
    try:
        with torch.device("meta"):
            return timm.create_model(name, **(arguments or {}))
    except Exception as error:  # which one depends on what the architecture does with the argument
        if not arguments:
            raise
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise InputError(f"{name} cannot be made with {given}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _created(name: str, **options: Any) -> nn.Module:
    needs("timm")

    import timm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return timm.create_model(name, **options).eval()


def _with_weights(
    name: str, weights: dict[str, Tensor], source: str, shape: nn.Module, arguments: Arguments
) -> nn.Module:
    classifier = _pretrained_config(shape).get("classifier")
    head = weights.get(f"{classifier if isinstance(classifier, str) else (classifier or [''])[0]}.weight")
    classes = classes_of(shape) if head is None or head.dim() == 0 else len(head)
    options = {"num_classes": classes, **arguments}
    model = _created(name, **options)
    try:
        load_state(model, weights, source)
    except Misfit as misfit:
        return _converted(name, weights, source, options, misfit)
    return model


def _converted(
    name: str, weights: dict[str, Tensor], source: str, options: dict[str, Any], misfit: Misfit
) -> nn.Module:
    """Return the model with weights that timm's converter for it made of a file's.

    Raises:
        InputError: ``misfit``, which tells how the file differs from the model, where the converter fails,
            invents values or leaves out weights.
    """
    casts = Casts(source)
    floating = {key: value for key, value in weights.items() if value.is_floating_point()}
    for key, value in floating.items():
        casts.check(key, value, torch.float32)
    overlay = {"state_dict": dict(weights), "num_classes": options["num_classes"], "custom_load": False}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        model = _created(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception:
        raise misfit from None
    finally:
        logging.disable(level)
    held = {entry.name: entry.tensor.detach() for entry in named_tensors(model) if entry.saved}
    made = conversion({**weights, **{key: value.float() for key, value in floating.items()}}, held)
    resampled = "img_size" in options and all(name in floating for name in made.invented)
    if made.invented and not resampled:
        raise Misfit(
            f"{misfit}; timm's converter would compute {', '.join(made.invented[:SHOWN])}, of which the file "
            "does not have the values: make the model in the file's own shape"
        )
    note(f"{source}, by timm's converter: {made.told()}")
    casts.say()
    return model


def _pretrained_config(model: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] = vars(model)["pretrained_cfg"]
    return config


def classes_of(model: nn.Module) -> int:
    """Return how many classes a model of timm has; 0 for one that gives features."""
    return int(vars(model)["num_classes"])


def model_name(model: nn.Module) -> str:
    """Return timm's full name of a model, with the tag of its weights."""
    config = _pretrained_config(model)
    return f"{config['architecture']}.{config['tag']}" if config.get("tag") else str(config["architecture"])


def architecture(model: nn.Module) -> str:
    """Return timm's name of a model's architecture, without the tag of any weights."""
    return str(_pretrained_config(model)["architecture"])


@dataclass(frozen=True)
class Preprocessing:
    """Settings of how images are prepared; None: as the model was made to see them.

    Args:
        input_size: height and width in pixels. mean, std: of the channels, one number for all or one each.
        interpolation: one of ``INTERPOLATIONS``. crop_pct: the crop's share of the resized image's edge.
        train_size: whether a model is to see its training size and crop where it has others for tests.

    Raises:
        InputError: a number out of its range, or an unknown interpolation.
    """

    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    train_size: bool = False

    def __post_init__(self) -> None:
        if self.input_size is not None and min(self.input_size) < 1:
            raise InputError(f"the input size must be one pixel or more, not {list(self.input_size)}")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
                raise InputError(f"the {what} must be one number or three, not {list(values)}")
            if what == "std" and min(values) <= 0:
                raise InputError(f"the std must be positive, not {list(values)}")
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"unknown interpolation {self.interpolation!r}; there are {', '.join(INTERPOLATIONS)}"
            )
        if self.crop_pct is not None and not 0 < self.crop_pct < math.inf:
            raise InputError(f"crop_pct must be a positive share, such as 0.875, not {self.crop_pct}")

    def given(self) -> dict[str, object]:
        """Return the settings that are given, as plain data for the record."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value is not None and value is not False
        }


def sized(name: str, arguments: Arguments, given: Preprocessing) -> tuple[Arguments, Preprocessing]:
    """Return the arguments and the preprocessing of a model of timm, of one image size.

    An architecture of a fixed size, as most Vision Transformers are, is made in the input size; one that is
    made in a size by its argument ``img_size`` sees images of it.

    Raises:
        InputError: two sizes.
    """
    needs("timm")

    from timm.models import get_pretrained_cfg, is_model

    made = arguments.get("img_size")
    size = tuple(made) if isinstance(made, (list, tuple)) else None if made is None else (made, made)
    if size is not None:
        if given.input_size not in (None, size):
            raise InputError(f"the images are of {list(given.input_size or ())} and img_size is {made}")
        return arguments, replace(given, input_size=size)
    if given.input_size is None or not is_model(name) or "dynamic_img_size" in arguments:
        return arguments, given
    config = get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        return {**arguments, "img_size": given.input_size}, given
    return arguments, given


OWN = Preprocessing()
"""Images prepared in all as the model was made to see them."""


def data_config(model: nn.Module, given: Preprocessing = OWN) -> dict[str, Any]:
    """Return how images are prepared for a model of timm, as plain data for the record.

    Args:
        model: of timm. given: what is not to be the model's own.

    Returns:
        input_size, interpolation, mean, std, crop_pct and crop_mode, by timm's ``resolve_data_config`` with
        the model's test size, as its ``validate.py`` has them.
    """
    needs("timm")

    from timm.data import resolve_data_config

    arguments: dict[str, Any] = given.given()
    if given.input_size is not None:
        arguments["input_size"] = (3, *given.input_size)
    config = resolve_data_config(arguments, model=model, use_test_size=not given.train_size)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def evaluation_transform(config: dict[str, Any]) -> Callable[[Any], Tensor]:
    """Return timm's evaluation transform of a data config: PIL image → float32 [channels, height, width]."""
    needs("timm")

    from timm.data import create_transform

    made: Callable[[Any], Tensor] = create_transform(**config, is_training=False)
    return made


def check_sees(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Pass one blank image through the model.

    Raises:
        InputError: it takes no images of the config's size.
    """
    size = config["input_size"]
    weight = next(model.parameters())
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *size, device=weight.device, dtype=weight.dtype))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever layer does not fit
        raise InputError(
            f"{model_name(model)} takes no images of {size[0]} channels and {size[1]} x {size[2]} pixels "
            f"({_first_line(error)}); give another input size, or leave in_chans out"
        ) from None
