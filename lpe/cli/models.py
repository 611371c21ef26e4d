"""The models of a command line, by kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lpe.cli.options import ModelOptions, first_line
from lpe.errors import InputError


def model_alone(asked: ModelOptions) -> nn.Module:
    """Return the model without its data: for its description."""
    if asked.kind == "hf":
        from lpe.substrates import language

        return language.load_model(asked.name, asked.checkpoint, asked.torch_dtype)[0]
    if asked.kind == "timm":
        return timm_model(asked)
    return one_column(clip_model(asked), asked)


def one_column(loaded: Any, asked: ModelOptions) -> nn.Module:
    """Return the zero-shot classifier of a CLIP with one class's column for all.

    It has the head's shape, not its numbers: for whoever looks at the tower alone.
    """
    from lpe.substrates import clip

    classes = 1000 if asked.class_names is None else len(lines_of(asked.class_names, "class names"))
    column = clip.zero_shot_head(loaded.model, loaded.tokenizer, ["a"], ["{}"])
    return clip.ZeroShotClassifier(loaded.model, column.repeat(1, classes))


def timm_model(asked: ModelOptions, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a model of timm, on the CPU; ``arguments`` are the architecture's, None: those asked for."""
    from lpe.substrates import timm_models

    arguments = asked.arguments if arguments is None else arguments
    if asked.random_weights:
        return timm_models.random_model(asked.name, arguments)
    return timm_models.load_model(asked.name, asked.checkpoint, arguments)


def clip_model(asked: ModelOptions, preprocessing: Mapping[str, Any] | None = None) -> Any:
    """Return a CLIP, on the CPU: :class:`lpe.substrates.clip.LoadedCLIP`."""
    from lpe.substrates import clip

    if asked.random_weights:
        return clip.random_model(asked.name, preprocessing)
    return clip.load_model(asked.name, asked.checkpoint, asked.quick_gelu, preprocessing)


def captions(asked: ModelOptions) -> tuple[list[str] | None, list[str] | None]:
    """Return class names and templates of a zero-shot head; None for the usual ones."""
    class_names = None if asked.class_names is None else lines_of(asked.class_names, "class names")
    templates = None if asked.templates is None else lines_of(asked.templates, "templates")
    if bad := next((each for each in templates or () if "{}" not in each), None):
        raise InputError(f"the template {bad!r} in {asked.templates} has no {{}} for the class's name")
    return class_names, templates


def zero_shot(
    loaded: Any, class_names: list[str] | None, templates: list[str] | None, device: torch.device
) -> nn.Module:
    """Return the zero-shot classifier of a CLIP, its head computed on the device."""
    from lpe.substrates import clip

    head = clip.zero_shot_head(loaded.model.to(device), loaded.tokenizer, class_names, templates)
    return clip.ZeroShotClassifier(loaded.model, head)


def placed(model: nn.Module, device: torch.device, asked: ModelOptions) -> nn.Module:
    """Return the model at the dtype asked for, on its device; a zero-shot head stays at float32.

    Raises:
        InputError: a number of the model's is infinite in that dtype.
    """
    from lpe.substrates.loading import parameter_bytes, require_memory

    if asked.torch_dtype is not None:
        part = model.get_submodule("visual") if asked.kind == "open_clip" else model
        finite = {name for name, each in part.named_parameters() if bool(each.isfinite().all())}
        part.to(asked.torch_dtype)
        over = [n for n, each in part.named_parameters() if n in finite and not bool(each.isfinite().all())]
        if over:
            raise InputError(
                f"--dtype {asked.dtype} does not hold all numbers of {asked.model}: {over[0]!r} would be "
                "infinite; take bfloat16 or float32"
            )
    if device.type != "cpu":
        require_memory(parameter_bytes(model), asked.model, device)
    return model.to(device)


def lines_of(path: str, what: str) -> list[str]:
    """Return the lines of a text file that are not blank.

    Raises:
        InputError: it cannot be read, or has none.
    """
    try:
        if Path(path).is_char_device() or Path(path).is_block_device():  # /dev/zero has no end
            raise InputError(f"{path} is a device; give a file of {what}, one a line")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the {what} in {path} ({first_line(error)})") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} has no {what}; one a line is needed")
    return found
