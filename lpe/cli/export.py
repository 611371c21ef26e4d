"""``lpe export``: one member as a plain checkpoint of its library, which loads it without this one."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lpe.checks import check_integer
from lpe.cli.models import clip_model, one_column, placed, timm_model
from lpe.cli.options import (
    MOST_MEMBERS,
    Commands,
    EnsembleOptions,
    ModelOptions,
    add_command,
    add_ensemble,
    add_model,
    first_line,
    model_options,
    options_of,
)
from lpe.cli.packed import check_packed
from lpe.ensembles.augmented import has_view
from lpe.ensembles.base import Ensemble
from lpe.ensembles.mc_dropout import has_masks
from lpe.errors import InputError
from lpe.extras import needs
from lpe.files.ensembles import load
from lpe.provenance import revision, without_folders
from lpe.writing import check_writable, write_text_atomic

EXPORT = """\
One member of the ensemble as a plain checkpoint, in a folder that its own library loads without this one:

  timm        timm.create_model("local-dir:DIR", pretrained=True)
  open_clip   open_clip.create_model_and_transforms("local-dir:DIR"), from version 3 on: the member's image
              tower, and the text tower as it is
  hf          transformers.AutoModelForCausalLM.from_pretrained("DIR"), with its tokenizer

It predicts what the member predicts. The weights are rounded, and are stored in the model's own dtype: the
folder is as large as the model's. lpe_member.json in it says what the weights are.

  lpe export timm/vit_small_patch16_224.augreg_in21k_ft_in1k --system int4 --member 3 -o member_3
  lpe export hf/my-llama --packed llama.lpe --member 0 -o member_0

--format state-dict writes model.safetensors alone, the tensors by the names of the model's state_dict().
"""

FORMATS = ("library", "state-dict")
ABOUT = "lpe_member.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ExportOptions:
    """Options that say which member goes where.

    Args:
        member: its index. output: a folder that is not there, or is empty. packed: a file of ``lpe pack``,
            instead of an ensemble's options. format: one of FORMATS.
    """

    member: int
    output: Path
    packed: str | None = None
    format: str = FORMATS[0]


def add_export(commands: Commands) -> None:
    """Add the subcommand and its options."""
    parser = add_command(commands, "export", EXPORT)
    add_model(parser)
    add_ensemble(parser)
    parser.add_argument("--packed", metavar="FILE", help="the ensemble of a file of lpe pack")
    folder = parser.add_argument_group("checkpoint")
    folder.add_argument("--member", type=int, metavar="N", required=True, help="from 0 on")
    folder.add_argument("--format", choices=FORMATS, help="(library), or the tensors alone")
    folder.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="new, or empty")


@dataclass(frozen=True)
class _Source:
    """A model whose members are exported.

    Args:
        network: the module that the ensemble is of. write: writes its library's checkpoint of the network, as
            it then is, to a folder.
    """

    network: nn.Module
    write: Callable[[Path], object]


def export(asked: argparse.Namespace) -> str:
    """Write the member to a folder; what was written.

    Raises:
        InputError: of an option; a member that there is not, or that is no other weights but a mask or a
            view; a folder that holds something, or cannot be written.
    """
    model_asked, wanted = model_options(asked), options_of(ExportOptions, asked)
    ensemble_asked = options_of(EnsembleOptions, asked)
    if not 0 <= wanted.member < MOST_MEMBERS:
        raise InputError(f"--member must be 0 to {MOST_MEMBERS - 1:,}, not {wanted.member}")
    if wanted.packed is None:
        ensemble_asked.check()
    else:
        check_packed(wanted.packed, asked)
    place = wanted.output
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise InputError(f"{place} is there and is not empty; give a folder that is new")
    check_writable(place.absolute().parent)
    source = _source(model_asked)
    ensemble = _ensemble(source.network, ensemble_asked, wanted)
    member = ensemble.member(check_integer("--member", wanted.member, 0, len(ensemble) - 1))
    if has_masks(member) or has_view(member):
        raise InputError(
            f"a member of {type(ensemble).__name__} is a mask or a view and has the model's own weights; "
            "no checkpoint can tell it from the model"
        )
    about = {
        "model": model_asked.model,
        "checkpoint": model_asked.checkpoint,
        "member": wanted.member,
        "packed": wanted.packed,
        "ensemble": ensemble.describe().partition("\n")[0],
        "git": revision(),
    }
    _write_folder(place, lambda folder: _write(folder, source, member, wanted.format, about))
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    files = ", ".join(sorted(path.name for path in place.iterdir()))
    return f"wrote member {wanted.member} to {place}: {size:,} bytes in {files}"


def _ensemble(network: nn.Module, asked: EnsembleOptions, wanted: ExportOptions) -> Ensemble:
    if wanted.packed is None:
        # A member is the same in an ensemble of any size.
        sized = asked if asked.size is not None else replace(asked, size=wanted.member + 1)
        sized.check()
        return sized.ensemble(network)
    held = load(wanted.packed, network, asked.size)
    if asked.size is None and wanted.member >= len(held):
        return load(wanted.packed, network, wanted.member + 1)  # which a seeded file has
    return held


def _source(asked: ModelOptions) -> _Source:
    if asked.kind == "timm":
        needs("timm")
        from timm.models import save_for_hf

        model = placed(timm_model(asked), torch.device("cpu"), asked)
        arguments = asked.arguments or None
        return _Source(
            model,
            lambda folder: save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True),
        )
    if asked.kind == "open_clip":
        loaded = clip_model(asked)
        network = placed(one_column(loaded, asked), torch.device("cpu"), asked)
        return _Source(network, lambda folder: _write_clip(folder, loaded))
    from lpe.substrates import language

    found, tokenizer = language.load_model(asked.name, asked.checkpoint, asked.torch_dtype)
    model = placed(found, torch.device("cpu"), asked)

    def write(folder: Path) -> None:
        saved: Any = model
        saved.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _Source(model, write)


def _write_clip(folder: Path, loaded: Any) -> None:
    """Write a CLIP as open_clip does: weights, and the configuration with the activation that they have."""
    needs("open_clip")
    import open_clip
    from open_clip.push_to_hf_hub import save_config_for_hf

    record: Mapping[str, Any] = loaded.record
    config = dict(open_clip.get_model_config(str(record["architecture"])) or {})
    if "QuickGELU" in (record["image_activation"], record["text_activation"]):
        config["quick_gelu"] = True
    save_file(_tensors(loaded.model), folder / "open_clip_model.safetensors")
    save_config_for_hf(loaded.model, folder / "open_clip_config.json", model_config=config)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state, each tensor with memory of its own, as a file has it."""
    return {name: each.detach().cpu().contiguous().clone() for name, each in model.state_dict().items()}


@torch.no_grad()
def _write(folder: Path, source: _Source, member: nn.Module, kind: str, about: Mapping[str, object]) -> None:
    if kind == "state-dict":
        save_file(_tensors(member), folder / WEIGHTS)
    else:
        # Into the network itself, of which nothing is needed any more: there is no second one in memory.
        source.network.load_state_dict(member.state_dict())
        source.write(folder)
    write_text_atomic(folder / ABOUT, json.dumps(without_folders(dict(about)), indent=2) + "\n")


def _write_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all."""
    place = place.absolute()
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        write(temporary)
        if place.exists():
            place.rmdir()
        os.replace(temporary, place)
    except OSError as error:
        raise InputError(f"cannot write {place} ({error.strerror or first_line(error)})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
