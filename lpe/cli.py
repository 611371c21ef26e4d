"""The ``lpe`` command: what an ensemble of low precision members of a model of yours gives, and costs.

    lpe evaluate MODEL …    NLL, error and calibration of every ensemble size, with memory and time
    lpe describe MODEL …    which tensors are rounded, which are not and why, and the memory
    lpe pack MODEL …        write the ensemble to one file, b bits a weight and member or 8 for all members
    lpe systems             the number systems

A MODEL is timm/NAME, open_clip/ARCHITECTURE:WEIGHTS or hf/FOLDER_OR_NAME. Weights come from a file
(--checkpoint), or from the hub's cache or the hub.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lpe.command_line import Parser
from lpe.ensembles.base import Ensemble, check_size, text_table
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.low_precision import BASES, LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.errors import InputError
from lpe.evaluation.predict import PLAIN, EvaluationOptions, evaluate, evaluate_temperature_scaled
from lpe.evaluation.timing import MemberTimer
from lpe.files.container import is_packed
from lpe.files.ensembles import load, save
from lpe.files.kinds import KINDS as FILE_KINDS
from lpe.files.kinds import check_base, check_kind
from lpe.number_systems.grids import (
    FullPrecision,
    NumberSystem,
    PerBlock,
    PerChannel,
    PerTensor,
    ScaleAxis,
    names,
    number_system,
)
from lpe.number_systems.rounding import ROUNDINGS
from lpe.records import check_writable, provenance, write_table, write_text_atomic

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("timm/NAME", "open_clip/ARCHITECTURE:WEIGHTS", "hf/FOLDER_OR_NAME")
METHODS = {"lpe": "LPE-BSR", "gaussian": "Gaussian", "mc-dropout": "MC-dropout"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNROUNDED = {torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16"}
"""Names of the model as it is."""

SIZE = 10
DROPOUT_RATE = 0.1
DEFAULTS = {"method": "lpe", "system": "int5", "scale_axis": "channel", "seed": 0}
"""Of options that a packed file takes the place of: whether they were given must be known."""

OF_KIND = {
    "data": ("timm", "open_clip"),
    "workers": ("timm", "open_clip"),
    "random_weights": ("timm", "open_clip"),
    "class_names": ("open_clip",),
    "templates": ("open_clip",),
    "quick_gelu": ("open_clip",),
    "members": ("timm", "open_clip"),
    "autocast": ("timm", "open_clip"),
    "channels_last": ("timm", "open_clip"),
    "pin_memory": ("timm", "open_clip"),
    "tasks": ("hf",),
    "include_path": ("hf",),
    "metrics": ("hf",),
    "num_fewshot": ("hf",),
}
"""Options that not every kind of model has."""

UNSCALED = (
    "method",
    "number_system",
    "rounding",
    "task",
    "size",
    "err",
    "acc",
    "memory_bits",
    "generator_bits",
)
"""What a temperature leaves as it is."""

COLUMNS = {
    "nll": "NLL",
    "calibrated_nll": "calibrated NLL",
    "err": "ERR",
    "acc": "ACC",
    "ece": "ECE",
    "ambiguity": "AMB",
    "perplexity": "perplexity",
}
"""Metric → heading of the printed table; the files have every metric."""

EVALUATE = """\
NLL, error, calibration (ECE) and ambiguity of the model as it is, of the model with a temperature, rounded to
nearest (RTN), and of ensembles of 1 … SIZE members, with memory and milliseconds per example.

  lpe evaluate timm/vit_small_patch16_224.augreg_in21k_ft_in1k --data imagenet --system int5 --size 20
  lpe evaluate open_clip/ViT-L-14:openai --data imagenet --system int5
  lpe evaluate hf/my-llama --tasks arithmetic --include-path my_tasks --system int4 --csv results.csv

--packed FILE measures the ensemble of a file of lpe pack; the model must be the one that was packed
(--random-weights: its architecture alone, and only the file's own rows).

  lpe evaluate timm/vit_small_patch16_224 --random-weights --packed vit.lpe --size 50 --data imagenet

Images (--data): ImageNet's validation set as 1,000 class folders (also under val/) or as a flat folder with
its labels, or a folder per class of your own, as many as the model has classes.
"""
DESCRIBE = """\
Every tensor of the model: rounded or not, why, and its bits; and the memory of the ensemble.

  lpe describe timm/vit_base_patch16_224.augreg_in21k_ft_in1k --system int5 --size 20 --random-weights
"""
PACK = """\
The ensemble as one file, which lpe.load and lpe evaluate --packed read on the model's architecture.

  --kind members   (default) every member, packed: b bits a weight and member
  --kind seeded    the weights once, as --base, and the seed: members are drawn from it, as many as one likes

  lpe pack timm/vit_small_patch16_224.augreg_in21k_ft_in1k --system int5 --size 20 --kind seeded -o vit.lpe

A packed file that is there already is written over once the new one is whole; any other file is left alone.
"""


@dataclass(frozen=True)
class Subject:
    """A model with what it is measured on.

    Args:
        title: of the table. model: on its device. batches: of images; None for a language model, which is
            measured on tasks. record: what determines the numbers, for the provenance.
        measure: (ensemble, timer) → a row per size, and per task where there are tasks.
        options: of the forward passes on images.
    """

    title: str
    model: nn.Module
    batches: Iterable[Any] | None
    record: Mapping[str, object]
    measure: Callable[[Ensemble, MemberTimer], pd.DataFrame]
    options: EvaluationOptions = PLAIN


def scale_axis(text: str) -> ScaleAxis:
    """The scale axis of a command line: channel, tensor, channels:16 (outputs) or block:128 (inputs)."""
    kind, _, count = text.partition(":")
    if text == "channel":
        return PerChannel()
    if text == "tensor":
        return PerTensor()
    if count.isdecimal() and kind in ("channels", "block"):
        return PerChannel(int(count)) if kind == "channels" else PerBlock(int(count))
    raise InputError(
        f"unknown scale axis {text!r}; there are channel, tensor, channels:K (K output channels) and block:K "
        "(K inputs of a row)"
    )


def _parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="lpe", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(
        dest="command", metavar="evaluate | describe | pack | systems", required=True
    )

    evaluating = commands.add_parser("evaluate", description=EVALUATE, formatter_class=raw)
    describing = commands.add_parser("describe", description=DESCRIBE, formatter_class=raw)
    packing = commands.add_parser("pack", description=PACK, formatter_class=raw)
    commands.add_parser("systems", description="Every number system: bits, levels, largest value, scales.")
    for command in (evaluating, describing, packing):
        command.add_argument("model", metavar="MODEL", help=", ".join(KINDS))
        command.add_argument("--checkpoint", metavar="FILE", help="weights: safetensors, or a state dict")
        command.add_argument(
            "--random-weights", action="store_true", help="the true shape, no weights needed"
        )
        command.add_argument("--class-names", metavar="FILE", help="open_clip: a name a line (ImageNet's)")
        command.add_argument(
            "--quick-gelu", action=argparse.BooleanOptionalAction, help="of a bare checkpoint"
        )
        command.add_argument("--dtype", choices=tuple(DTYPES), help="of the weights (float32; hf: its own)")
        ensemble = command.add_argument_group("ensemble")
        ensemble.add_argument("--method", choices=tuple(METHODS), help="(lpe)")
        ensemble.add_argument("--system", help="number system, see lpe systems (int5)")
        ensemble.add_argument("--size", type=int, help=f"members ({SIZE}; 1 where all are alike)")
        ensemble.add_argument("--rounding", choices=ROUNDINGS, help="lpe (bernoulli)")
        ensemble.add_argument("--scale-axis", metavar="AXIS", help="(channel), tensor, channels:K, block:K")
        ensemble.add_argument("--std", type=float, help="gaussian: of the noise (that of the rounding)")
        ensemble.add_argument("--rate", type=float, help=f"mc-dropout ({DROPOUT_RATE})")
        ensemble.add_argument("--seed", type=int, help="of the random bits (0)")
        ensemble.add_argument("--include", action="append", metavar="PATTERN", help="only tensors so named")
        ensemble.add_argument("--exclude", action="append", metavar="PATTERN", help="no tensors so named")
    evaluating.add_argument("--packed", metavar="FILE", help="the ensemble of a file of lpe pack")
    data = evaluating.add_argument_group("data")
    data.add_argument("--data", metavar="DIR", help="timm, open_clip: the folder of validation images")
    for group in (data, packing):
        group.add_argument(
            "--templates", metavar="FILE", help="open_clip: a caption with {} a line (OpenAI's 80)"
        )
        group.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU where there is one)")
    data.add_argument("--tasks", metavar="A,B", help="hf: tasks of lm-eval, or of --include-path")
    data.add_argument("--include-path", metavar="DIR", help="hf: a folder of task files of your own")
    data.add_argument("--metrics", metavar="A,B", help="hf: such as nll,ece; every task must have them (all)")
    data.add_argument("--num-fewshot", type=int, metavar="N", help="hf: examples before each question")
    data.add_argument("--batch-size", type=int, metavar="N", help="(64; hf: 8)")
    data.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="images, spread evenly over the set; hf: a task's first examples",
    )
    data.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (one a core, to 8)"
    )
    passes = evaluating.add_argument_group("forward passes on images")
    passes.add_argument(
        "--members", choices=("one-by-one", "together"), help="(one-by-one); together: lpe only, at once"
    )
    passes.add_argument("--autocast", action="store_true", help="mixed precision, with bfloat16")
    passes.add_argument("--channels-last", action="store_true", help="how images lie in memory")
    passes.add_argument("--pin-memory", action="store_true", help="GPU: send batches without waiting")
    output = evaluating.add_argument_group("output")
    output.add_argument("--calibrated", action="store_true", help="also the NLL under a fitted temperature")
    output.add_argument("--csv", type=Path, metavar="FILE", help="every size, every metric")
    output.add_argument("--json", type=Path, metavar="FILE", help="the same, with where it comes from")
    file = packing.add_argument_group("file")
    file.add_argument("--kind", choices=FILE_KINDS, default="members", help="(members)")
    file.add_argument("--base", choices=tuple(BASES), help="seeded: what is held of each weight (int8)")
    file.add_argument("-o", "--output", type=Path, metavar="FILE", required=True)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run a command; the exit code: 0, 2 after one line about bad input, 130 when interrupted."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "systems":
            print(systems())
        elif asked.command == "describe":
            _complete(asked)
            print(describe(asked))
        elif asked.command == "pack":
            _complete(asked)
            print(pack(asked))
        else:
            _evaluate(asked, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"error: out of memory ({_first_line(error)}); give a smaller --batch-size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def entry() -> None:
    """The console script."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has had enough (``lpe describe … | head``); what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def systems() -> str:
    """The table of number systems."""
    rows = []
    for name in names():
        system = number_system(name)
        levels = system.levels
        rows.append(
            (
                name,
                str(system.bits),
                str(len(levels)) if levels else "",
                f"{max(levels):g}" if levels else "",
                "" if isinstance(system, FullPrecision) else "channel, tensor, channels:K, block:K",
            )
        )
    header = ("name", "bits", "levels", "largest", "scale axes")
    footer = (
        "A weight is a level times its scale, max|w| / largest; channel: a scale for each output channel, "
        "channels:K: for K\nof them, block:K: for K inputs of a row. fp32: no rounding."
    )
    return text_table("Number systems", header, rows, footer)


def describe(asked: argparse.Namespace) -> str:
    """The table of an ensemble's tensors, and its memory."""
    kind, name = _kind(asked)
    _check_ensemble(asked)
    model = _placed(_model(kind, name, asked), torch.device("cpu"), asked, kind)
    ensemble = _ensemble(model, asked)
    single = LowPrecisionEnsemble(model, FullPrecision(), 1, include=asked.include, exclude=asked.exclude)
    return "\n".join(
        (
            ensemble.describe(),
            f"memory: {_megabytes(ensemble.memory_bits())} MB of {len(ensemble)} members, "
            f"{_megabytes(ensemble.memory_bits(storage='generator'))} MB of what they can be drawn from, "
            f"{_megabytes(single.memory_bits())} MB of the model as it is",
        )
    )


def pack(asked: argparse.Namespace) -> str:
    """Write the ensemble to a file; what was written."""
    kind, name = _kind(asked)
    _check_ensemble(asked)
    base = check_kind(asked.kind, asked.base)
    if asked.kind == "seeded":
        if asked.method != "lpe":
            raise InputError(f"--kind seeded is for --method lpe, not {asked.method}")
        check_base(base, _system(asked), asked.rounding or "bernoulli")
    path: Path = asked.output
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file to write to")
    if path.exists() and not is_packed(path):
        raise InputError(f"{path} is there and is no packed ensemble; give another name, or remove it first")
    check_writable(path.parent)
    device = _device(asked.device)
    if kind == "open_clip":
        captions = _captions(asked)
        model = _zero_shot(_clip(name, asked), *captions, device)
    else:
        model = _model(kind, name, asked)
    ensemble = _ensemble(_placed(model, device, asked, kind), asked)
    size = save(ensemble, path, asked.kind, asked.base)
    title = f"wrote {path}: {size:,} bytes, {asked.kind}: {_members(len(ensemble))}"
    if not isinstance(ensemble, LowPrecisionEnsemble) or isinstance(ensemble.system, FullPrecision):
        return f"{title} of {METHODS[asked.method] if asked.method != 'lpe' else 'the model as it is'}"
    return f"{title} of {ensemble.system.name}\n{_contents(ensemble, size, asked.kind, base)}"


def _members(count: int) -> str:
    return f"{count} member" if count == 1 else f"{count} members"


def _contents(ensemble: LowPrecisionEnsemble, size: int, kind: str, base: str) -> str:
    """The table of what a file holds of each weight."""
    quantised = [planned for planned in ensemble.plan if planned.quantised]
    weights = sum(planned.numel for planned in quantised)
    leftovers = [planned for planned in ensemble.plan if planned.saved and not planned.quantised]
    scales = sum(ensemble.scales(planned.name).numel() for planned in quantised)
    leftover_bytes = sum(planned.numel * planned.bits for planned in leftovers) // 8
    seeded = kind == "seeded"
    if seeded:
        scales = scales if base == "int8" else 0
        what, code_bytes = f"weights as {base}", weights * BASES[base] // 8
    else:
        what = f"codes of {_members(len(ensemble))}"
        code_bytes = ensemble.memory_bits() // 8 - 4 * scales - leftover_bytes
    rows = [
        (what, weights, code_bytes),
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


def _evaluate(asked: argparse.Namespace, arguments: Sequence[str]) -> None:
    started = time.time()
    kind, name = _kind(asked)
    if asked.packed is not None:
        _check_packed(asked)
    _complete(asked)
    for path in (asked.csv, asked.json):
        if path is not None:
            if path.is_dir():
                raise InputError(f"{path} is a folder; give a file to write to")
            check_writable(path.parent)
    if asked.limit is not None and asked.limit < 1:
        raise InputError(f"--limit must be 1 or more, not {asked.limit}")
    if asked.batch_size is not None and asked.batch_size < 1:
        raise InputError(f"--batch-size must be 1 or more, not {asked.batch_size}")
    if asked.packed is None:
        _check_ensemble(asked)
    if asked.members == "together" and asked.method != "lpe":
        raise InputError(f"--members together is for --method lpe, not {asked.method}")
    device = _device(asked.device)
    if asked.pin_memory and device.type != "cuda":
        raise InputError(f"--pin-memory is for batches on their way to a GPU, not to --device {device}")
    subject = _language(name, asked, device) if kind == "hf" else _images(kind, name, asked, device)
    if asked.packed is None:
        ensemble = _ensemble(subject.model, asked)
        rows = _rows(subject, ensemble, asked)
    else:
        ensemble = load(asked.packed, subject.model, asked.size, "any" if asked.random_weights else "same")
        rows = _rows_of_packed(subject, ensemble, asked)
    print(_tables(subject, rows))
    told = provenance(
        ["lpe", *arguments],
        {**subject.record, "ensemble": _settings(ensemble, asked)},
        str(device),
        [getattr(ensemble, "seed", asked.seed)],
        torch.get_num_threads(),
        started,
    )
    print(
        f"{told['device'].get('gpu') or told['device']['cpu']}, {told['threads']} threads; torch "
        f"{told['packages']['torch']}; {told['wall_seconds']:.0f} s"
    )
    try:
        if asked.csv:
            write_table(rows, asked.csv, list(rows[0]))
            print(f"wrote {asked.csv}")
        if asked.json:
            content = {"rows": rows, "provenance": told}
            write_text_atomic(
                asked.json, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            )
            print(f"wrote {asked.json}")
    except OSError as error:
        raise InputError(f"cannot write {error.filename or 'the results'} ({error.strerror})") from None


def _kind(asked: argparse.Namespace) -> tuple[str, str]:
    kind, _, name = asked.model.partition("/")
    if f"{kind}/" not in [each.partition("/")[0] + "/" for each in KINDS] or not name:
        raise InputError(f"a model is {KINDS[0]}, {KINDS[1]} or {KINDS[2]}, not {asked.model!r}")
    for option, kinds in OF_KIND.items():
        given = getattr(asked, option, None)
        if given is not None and given is not False and kind not in kinds:
            raise InputError(
                f"--{option.replace('_', '-')} is for {' and '.join(kinds)} models, not for {kind}"
            )
    if asked.random_weights and asked.checkpoint:
        raise InputError("give --checkpoint or --random-weights, not both")
    return kind, name


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"cannot compute on --device {name} ({_first_line(error)}); give cpu or cuda"
        ) from None
    return device


def _complete(asked: argparse.Namespace) -> None:
    """Fill in what was not given."""
    for option, value in DEFAULTS.items():
        if getattr(asked, option) is None:
            setattr(asked, option, value)


def _check_packed(asked: argparse.Namespace) -> None:
    """What can be wrong with the options beside a packed file, before a model is loaded."""
    for option in (*DEFAULTS, "rounding", "std", "rate", "include", "exclude"):
        if getattr(asked, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} is settled by the packed file; leave it out")
    if asked.size is not None:
        check_size(asked.size)
    if not Path(asked.packed).is_file():
        raise InputError(f"there is no file {asked.packed}; lpe pack writes one")


def _system(asked: argparse.Namespace) -> NumberSystem:
    return number_system(asked.system, scale_axis(asked.scale_axis))


def _check_ensemble(asked: argparse.Namespace) -> None:
    """What can be wrong with an ensemble's options, before a model is loaded."""
    system = _system(asked)
    for option, method in (("rounding", "lpe"), ("std", "gaussian"), ("rate", "mc-dropout")):
        if getattr(asked, option) is not None and asked.method != method:
            raise InputError(f"--{option} is for --method {method}, not {asked.method}")
    if asked.method == "mc-dropout" and (asked.include or asked.exclude):
        raise InputError("--include and --exclude name tensors, and mc-dropout changes none")
    if asked.size is not None:
        check_size(asked.size)
    if _alike(asked) and asked.size not in (None, 1):
        what = "fp32" if isinstance(system, FullPrecision) else "nearest rounding"
        raise InputError(f"members of {what} are all alike; leave --size {asked.size} out")


def _alike(asked: argparse.Namespace) -> bool:
    """Whether every member would be the same."""
    return asked.method == "lpe" and (
        asked.rounding == "nearest" or isinstance(_system(asked), FullPrecision)
    )


def _ensemble(model: nn.Module, asked: argparse.Namespace) -> Ensemble:
    """The ensemble that the options ask for."""
    size = asked.size or (1 if _alike(asked) else SIZE)
    if asked.method == "mc-dropout":
        return MCDropoutEnsemble(model, DROPOUT_RATE if asked.rate is None else asked.rate, size, asked.seed)
    patterns = {"include": asked.include, "exclude": asked.exclude}
    if asked.method == "gaussian":
        return GaussianEnsemble(model, _system(asked), size, asked.seed, asked.std, **patterns)
    rounding = asked.rounding or "bernoulli"
    return LowPrecisionEnsemble(model, _system(asked), size, asked.seed, rounding, **patterns)


def _settings(ensemble: Ensemble, asked: argparse.Namespace) -> dict[str, object]:
    if asked.packed is not None:
        return {
            "packed": asked.packed,
            "size": len(ensemble),
            **{key: getattr(ensemble, key) for key in ("seed", "rounding") if hasattr(ensemble, key)},
            "system": _system_name(ensemble),
        }
    return {
        "method": asked.method,
        "size": len(ensemble),
        "seed": asked.seed,
        "include": asked.include,
        "exclude": asked.exclude,
        **(
            {"rate": ensemble.rate}
            if isinstance(ensemble, MCDropoutEnsemble)
            else {"system": _system(asked).name}
        ),
        **({"std": ensemble.std} if isinstance(ensemble, GaussianEnsemble) else {}),
        **({"rounding": ensemble.rounding} if isinstance(ensemble, LowPrecisionEnsemble) else {}),
    }


# The models.


def _model(kind: str, name: str, asked: argparse.Namespace) -> nn.Module:
    """The model alone, for its description."""
    if kind == "hf":
        from lpe.substrates import language

        return language.load_model(name, asked.checkpoint, DTYPES.get(asked.dtype))[0]
    if kind == "timm":
        from lpe.substrates import imagenet

        return (
            imagenet.random_model(name)
            if asked.random_weights
            else imagenet.load_model(name, asked.checkpoint)
        )
    from lpe.substrates import clip

    loaded = _clip(name, asked)
    classes = 1000 if asked.class_names is None else len(_lines(asked.class_names, "class names"))
    # One class's column stands for all: the description needs the head's shape, not its numbers.
    column = clip.zero_shot_head(loaded.model, loaded.tokenizer, ["a"], ["{}"])
    return clip.ZeroShotClassifier(loaded.model, column.repeat(1, classes))


def _clip(name: str, asked: argparse.Namespace) -> Any:
    from lpe.substrates import clip

    if asked.random_weights:
        return clip.random_model(name)
    return clip.load_model(name, asked.checkpoint, asked.quick_gelu)


def _captions(asked: argparse.Namespace) -> tuple[list[str] | None, list[str] | None]:
    """Class names and templates of a zero-shot head; None for the usual ones."""
    class_names = None if asked.class_names is None else _lines(asked.class_names, "class names")
    templates = None if asked.templates is None else _lines(asked.templates, "templates")
    if bad := next((each for each in templates or () if "{}" not in each), None):
        raise InputError(f"the template {bad!r} in {asked.templates} has no {{}} for the class's name")
    return class_names, templates


def _zero_shot(
    loaded: Any, class_names: list[str] | None, templates: list[str] | None, device: torch.device
) -> nn.Module:
    from lpe.substrates import clip

    head = clip.zero_shot_head(loaded.model.to(device), loaded.tokenizer, class_names, templates)
    return clip.ZeroShotClassifier(loaded.model, head)


def _placed(model: nn.Module, device: torch.device, asked: argparse.Namespace, kind: str) -> nn.Module:
    """The model at the dtype asked for, on its device; a zero-shot head stays at float32."""
    from lpe.substrates.loading import parameter_bytes, require_memory

    if asked.dtype is not None:
        (model.get_submodule("visual") if kind == "open_clip" else model).to(DTYPES[asked.dtype])
    if device.type != "cpu":
        require_memory(parameter_bytes(model), asked.model, device)
    return model.to(device)


def _images(kind: str, name: str, asked: argparse.Namespace, device: torch.device) -> Subject:
    from lpe.substrates import imagenet

    if asked.data is None:
        raise InputError(f"give the folder of images by --data DIR; {kind} models are measured on images")
    if not Path(asked.data).is_dir():
        raise InputError(f"there is no folder {asked.data}; give the folder of the validation images")
    if kind == "timm":
        model = _model(kind, name, asked)
        classes = imagenet.classes_of(model)
        seen = imagenet.data_config(model)
        transform = imagenet.evaluation_transform(seen)
        record: dict[str, object] = {"model": f"timm/{imagenet.model_name(model)}", "data_config": seen}
    else:
        class_names, templates = _captions(asked)
        loaded = _clip(name, asked)
        classes = imagenet.CLASSES if class_names is None else len(class_names)
        transform = loaded.preprocess
        record = {"model": asked.model, "clip": loaded.record, "templates": templates}
    data = imagenet.validation(
        asked.data,
        transform,
        64 if asked.batch_size is None else asked.batch_size,
        asked.limit,
        classes,
        min(8, os.cpu_count() or 1) if asked.workers is None else asked.workers,
        DTYPES[asked.dtype or "float32"],
    )
    if kind == "open_clip":
        model = _zero_shot(loaded, class_names, templates, device)
    model = _placed(model, device, asked, kind)

    options = EvaluationOptions(asked.autocast, asked.channels_last, asked.pin_memory)
    members = asked.members or "one-by-one"

    def measure(ensemble: Ensemble, timer: MemberTimer) -> pd.DataFrame:
        sizes = shown_sizes(len(ensemble)) if asked.calibrated else False
        return evaluate(ensemble, data, calibrated=sizes, timer=timer, members=members, options=options)

    weights = ", random weights" if asked.random_weights else ""
    record |= {
        "checkpoint": asked.checkpoint,
        "random_weights": asked.random_weights,
        "data": asked.data,
        "images": len(data.paths),
        "classes": classes,
        "batch_size": data.batch_size,
        "dtype": asked.dtype or "float32",
        "members": members,
        **asdict(options),
    }
    title = f"{record['model']}{weights}, {len(data.paths):,} images of {classes:,} classes"
    return Subject(title, model, data, record, measure, options)


def _language(name: str, asked: argparse.Namespace, device: torch.device) -> Subject:
    from lpe.substrates import language

    if asked.tasks is None:
        raise InputError("name tasks by --tasks A,B; hf models are measured on lm-eval's tasks")
    tasks = [task for task in asked.tasks.split(",") if task]
    metrics = None if asked.metrics is None else [each for each in asked.metrics.split(",") if each]
    loaded, tokenizer = language.load_model(name, asked.checkpoint, DTYPES.get(asked.dtype))
    model = _placed(loaded, device, asked, "hf")
    batch_size = 8 if asked.batch_size is None else asked.batch_size

    def measure(ensemble: Ensemble, timer: MemberTimer) -> pd.DataFrame:
        return language.evaluate(
            ensemble,
            tokenizer,
            tasks,
            asked.include_path,
            batch_size,
            asked.limit,
            asked.num_fewshot,
            metrics,
            timer,
            calibrated=True,
        )

    record = {
        "model": asked.model,
        "checkpoint": asked.checkpoint,
        "tasks": tasks,
        "include_path": asked.include_path,
        "num_fewshot": asked.num_fewshot,
        "limit": asked.limit,
        "batch_size": batch_size,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    return Subject(asked.model, model, None, record, measure)


def _lines(path: str, what: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the {what} in {path} ({_first_line(error)})") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} has no {what}; one a line is needed")
    return found


# The measurements.


def _rows(subject: Subject, ensemble: Ensemble, asked: argparse.Namespace) -> list[dict[str, object]]:
    """Every row of the result: the model as it is, it with a temperature, RTN, and every ensemble size."""
    system = _system(asked)
    patterns = {"include": asked.include, "exclude": asked.exclude}
    measured: list[dict[str, object]] = []
    with _progress(subject, [subject.model], 3 + len(ensemble)):
        as_it_is = _add_model(measured, subject, **patterns)
        if not isinstance(system, FullPrecision) and asked.method != "mc-dropout":
            nearest = LowPrecisionEnsemble(subject.model, system, 1, asked.seed, "nearest", **patterns)
            measured += _measured(subject, "RTN", nearest, system.name, "nearest")
        if isinstance(ensemble, MCDropoutEnsemble):
            measured += _measured(subject, METHODS[asked.method], ensemble, as_it_is.lower(), "")
        elif isinstance(ensemble, GaussianEnsemble):
            measured += _measured(subject, METHODS[asked.method], ensemble, system.name, "")
        elif isinstance(ensemble, LowPrecisionEnsemble) and not isinstance(system, FullPrecision):
            if ensemble.rounding != "nearest":
                title = _title(ensemble.rounding)
                measured += _measured(subject, title, ensemble, system.name, ensemble.rounding)
    return _cleaned(measured, asked)


def _rows_of_packed(
    subject: Subject, ensemble: Ensemble, asked: argparse.Namespace
) -> list[dict[str, object]]:
    """Every size of a packed ensemble; before them the rows of the model, where it is the one packed."""
    measured: list[dict[str, object]] = []
    skeleton = getattr(ensemble, "model", subject.model)
    own = 0 if asked.random_weights else 2
    with _progress(subject, [subject.model, skeleton], own + len(ensemble)):
        if own:
            _add_model(measured, subject)
        rounding = getattr(ensemble, "rounding", None) or ""
        title = _title(rounding) if rounding else "packed"
        measured += _measured(subject, title, ensemble, _system_name(ensemble), rounding)
    return _cleaned(measured, asked)


def _add_model(
    measured: list[dict[str, object]],
    subject: Subject,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> str:
    """Append the rows of the model as it is, and with a temperature; its name."""
    name = UNROUNDED.get(next(subject.model.parameters()).dtype, "unrounded")
    single = LowPrecisionEnsemble(subject.model, FullPrecision(), 1, include=include, exclude=exclude)
    measured += _measured(subject, name, single, name.lower(), "")
    measured += _with_temperature(subject, single, measured, f"{name} + temperature")
    return name


def _measured(
    subject: Subject, method: str, ensemble: Ensemble, numbers: str, rounding: str
) -> list[dict[str, object]]:
    """A row per size, and per task where there are tasks."""
    timer = MemberTimer(len(ensemble), next(subject.model.parameters()).device)
    table = subject.measure(ensemble, timer)
    milliseconds = timer.milliseconds_per_example()
    rows = []
    for row in table.to_dict("records"):
        size = int(row["size"])
        identity = {"method": method, "number_system": numbers, "rounding": rounding}
        generator = ensemble.memory_bits(size, storage="generator")
        cost = {"generator_bits": generator, "ms_per_example": milliseconds[size - 1]}
        rows.append({**identity, **{str(key): value for key, value in row.items()}, **cost})
    return rows


def _cleaned(measured: Sequence[Mapping[str, object]], asked: argparse.Namespace) -> list[dict[str, object]]:
    """The rows with the same columns each, as the files have them."""
    dropped = {"calibrated_ece", "calibrated_brier", *(() if asked.calibrated else ("calibrated_nll",))}
    columns = [each for each in dict.fromkeys(c for row in measured for c in row) if each not in dropped]
    return [{column: _plain(row.get(column)) for column in columns} for row in measured]


def _system_name(ensemble: Ensemble) -> str:
    """The number system's name; nothing where there is none, or one a part."""
    name: str = getattr(getattr(ensemble, "system", None), "name", "")
    return name


def _with_temperature(
    subject: Subject, single: Ensemble, measured: Sequence[Mapping[str, object]], method: str
) -> list[dict[str, object]]:
    """Rows of the single model with a temperature, fitted for each half of the examples on the other."""
    if subject.batches is not None:
        same = {column: measured[0][column] for column in UNSCALED if column in measured[0]}
        found = evaluate_temperature_scaled(single, subject.batches, options=subject.options)
        return [same | {"method": method} | found]
    rows = []
    for row in measured:  # the calibrated metrics of tasks come with the others
        scaled = {metric: row.get(f"calibrated_{metric}") for metric in ("nll", "ece", "brier")}
        if _plain(scaled["nll"]) is not None:  # of multiple choice
            same = {column: row[column] for column in UNSCALED if column in row}
            rows.append(same | {"method": method} | scaled)
    return rows


def _title(rounding: str) -> str:
    return METHODS["lpe"] if rounding == "bernoulli" else f"LPE, {rounding} rounding"


def _progress(subject: Subject, networks: Sequence[nn.Module], passes: int) -> Any:
    """A bar on stderr of passes over the data; lm-eval's tasks have their own."""
    from tqdm import tqdm

    total = None if subject.batches is None else passes
    bar = tqdm(total=total, disable=None if total else True, leave=False, unit="pass", file=sys.stderr)
    if total:
        share = 1 / len(subject.batches)  # type: ignore[arg-type]

        def advance(*_: object) -> None:
            bar.update(share)

        # Members are structural copies, and a copy keeps the hook: it sees every batch of every member.
        for network in {id(each): each for each in networks}.values():
            network.register_forward_hook(advance)
    return bar


def _plain(value: Any) -> Any:
    """A cell as JSON has it: nothing for NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def shown_sizes(size: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 … up to a size, and the size itself."""
    decades = [factor * 10**power for power in range(len(str(size))) for factor in (1, 2, 5)]
    return sorted({*(each for each in decades if each <= size), size})


def _tables(subject: Subject, rows: Sequence[Mapping[str, Any]]) -> str:
    tables = []
    for task in dict.fromkeys(row.get("task") for row in rows):
        chosen = [row for row in rows if row.get("task") == task]
        shown = shown_sizes(max(row["size"] for row in chosen))
        there = [metric for metric in COLUMNS if any(row.get(metric) is not None for row in chosen)]
        cells = [
            (
                row["method"],
                row["number_system"],
                str(row["size"]),
                *(_number(row.get(metric)) for metric in there),
                _megabytes(row["memory_bits"]),
                "" if row.get("ms_per_example") is None else f"{row['ms_per_example']:.3g}",
            )
            for row in chosen
            if row["size"] in shown
        ]
        header = ("method", "numbers", "size", *(COLUMNS[each] for each in there), "MB", "ms per example")
        title = subject.title if task is None else f"{subject.title}, {task}"
        tables.append(text_table(title, header, cells))
    return "\n\n".join(tables)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _megabytes(bits: int) -> str:
    return f"{bits / 8e6:.4g}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
