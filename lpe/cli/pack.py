"""``lpe pack``: an ensemble as one file."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from lpe.cli.methods import title_of
from lpe.cli.models import captions, clip_model, model_alone, placed, zero_shot
from lpe.cli.options import (
    Commands,
    EnsembleOptions,
    add_command,
    add_ensemble,
    add_model,
    add_place,
    device_of_name,
    model_options,
    options_of,
)
from lpe.ensembles.base import text_table
from lpe.ensembles.low_precision import BASES, LowPrecisionEnsemble
from lpe.errors import InputError
from lpe.files.container import is_packed
from lpe.files.ensembles import save
from lpe.files.kinds import KINDS as FILE_KINDS
from lpe.files.kinds import check_base, check_kind, check_planes
from lpe.number_systems.naming import systems_of
from lpe.number_systems.packing import packed_bytes
from lpe.writing import check_writable

PACK = """\
The ensemble as one file, which lpe.load and lpe evaluate --packed read on the model's architecture.

  --kind members   (default) every member, packed: b bits a weight and member
  --kind planes    the same members as bit planes: b bits a weight once, and one bit a weight and member
  --kind seeded    the weights once, as --base, and the seed: members are drawn from it, as many as one likes

  lpe pack timm/vit_small_patch16_224.augreg_in21k_ft_in1k --system int5 --size 20 --kind seeded -o vit.lpe

A packed file that is there already is written over once the new one is whole; any other file is left alone.
"""


@dataclass(frozen=True)
class FileOptions:
    """Options that name the packed file.

    Args:
        output: its path. kind: one of ``lpe.save``'s. base: seeded, what is held of each weight.
        device: that computes; None: the GPU where there is one.
    """

    output: Path
    kind: str = "members"
    base: str | None = None
    device: str | None = None


def add_pack(commands: Commands) -> None:
    """Add the subcommand and its options."""
    parser = add_command(commands, "pack", PACK)
    add_model(parser)
    add_ensemble(parser)
    add_place(parser)
    file = parser.add_argument_group("file")
    file.add_argument("--kind", choices=FILE_KINDS, help="(members)")
    file.add_argument("--base", choices=tuple(BASES), help="seeded: what is held of each weight (int8)")
    file.add_argument("-o", "--output", type=Path, metavar="FILE", required=True)


def pack(asked: argparse.Namespace) -> str:
    """Write the ensemble to a file; what was written."""
    model_asked = model_options(asked)
    ensemble_asked = options_of(EnsembleOptions, asked)
    file = options_of(FileOptions, asked)
    ensemble_asked.check()
    base = check_kind(file.kind, file.base)
    if file.kind != "members" and ensemble_asked.method != "lpe":
        raise InputError(f"--kind {file.kind} is for --method lpe, not {ensemble_asked.method}")
    rounding = ensemble_asked.rounding or "bernoulli"
    if file.kind == "seeded":
        check_base(base, systems_of(ensemble_asked.number_system()), rounding)
    if file.kind == "planes":
        check_planes(systems_of(ensemble_asked.number_system()), rounding)
    path = file.output
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file to write to")
    if path.exists() and not is_packed(path):
        raise InputError(f"{path} is there and is no packed ensemble; give another name, or remove it first")
    check_writable(path.parent)
    device = device_of_name(file.device)
    if model_asked.kind == "open_clip":
        texts = captions(model_asked)
        model = zero_shot(clip_model(model_asked), *texts, device)
    else:
        model = model_alone(model_asked)
    ensemble = ensemble_asked.ensemble(placed(model, device, model_asked))
    size = save(ensemble, path, file.kind, file.base)
    title = f"wrote {path}: {size:,} bytes, {file.kind}: {_members(len(ensemble))}"
    if not isinstance(ensemble, LowPrecisionEnsemble) or not ensemble.rounds:
        method = ensemble_asked.method
        return f"{title} of {title_of(method) if method != 'lpe' else 'the model as it is'}"
    return f"{title} of {ensemble.system.name}\n{_contents(ensemble, size, file.kind, base)}"


def _members(count: int) -> str:
    return f"{count} member" if count == 1 else f"{count} members"


def _contents(ensemble: LowPrecisionEnsemble, size: int, kind: str, base: str) -> str:
    """Return the table of what a file holds of each weight."""
    quantised = [planned for planned in ensemble.plan if planned.rounds]
    weights = sum(planned.numel for planned in quantised)
    leftovers = [planned for planned in ensemble.plan if planned.saved and not planned.rounds]
    scales = sum(ensemble.scales(planned.name).numel() for planned in quantised)
    leftover_bytes = sum(planned.numel * planned.bits for planned in leftovers) // 8
    seeded, members = kind == "seeded", _members(len(ensemble))
    if seeded:
        scales = scales if base == "int8" else 0
        codes = [(f"weights as {base}", weights, weights * BASES[base] // 8)]
    else:
        code_bytes = ensemble.memory_bits(storage=kind) // 8 - 4 * scales - leftover_bytes
        codes = [(f"codes of {members}", weights, code_bytes)]
    if kind == "planes":
        lower = sum(packed_bytes(planned.numel, planned.rounded_to) for planned in quantised)
        codes = [("lower neighbours", weights, lower), (f"planes of {members}", weights, code_bytes - lower)]
    code_bytes = sum(row[-1] for row in codes)
    rows = [
        *codes,
        ("scales", scales, 4 * scales),
        ("leftovers", sum(planned.numel for planned in leftovers), leftover_bytes),
        ("header", None, size - code_bytes - 4 * scales - leftover_bytes),
    ]
    cells = [(row[0], "" if row[1] is None else f"{row[1]:,}", f"{row[2]:,}") for row in rows if row[2]]
    bits = 8 * (code_bytes + 4 * scales) / weights
    footer = f"{bits:.3f} bits a quantised weight (codes and scales)" + (
        ", whatever the number of members" if seeded else ""
    )
    return text_table("In it:", ("what", "values", "bytes"), cells, footer)
