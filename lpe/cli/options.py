"""Options that several subcommands share, as dataclasses: what they are, what they mean and their checks.

A subcommand's parser leaves out what was not given, so that a dataclass's own defaults are the only ones and
it is known which options were given (:func:`given`).
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lpe.checks import check_finite
from lpe.cli.methods import check_method, made_by, method_names
from lpe.ensembles.base import Ensemble, check_size
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.errors import InputError
from lpe.number_systems.grids import (
    FullPrecision,
    PerBlock,
    PerChannel,
    PerTensor,
    ScaleAxis,
)
from lpe.number_systems.naming import Systems
from lpe.number_systems.rounding import ROUNDINGS
from lpe.number_systems.streams import check_seed
from lpe.plugins import number_system

KINDS = ("timm/NAME", "open_clip/ARCHITECTURE:WEIGHTS", "hf/FOLDER_OR_NAME")
SYSTEM = "int5"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Types of devices that compute; on torch's others (meta) nothing has values."""

SIZE = 10
MOST_MEMBERS = 1 << 20
"""Members of an ensemble at most: the table has a row a member."""
DROPOUT_RATE = 0.1

OF_KIND = {
    "data": ("timm", "open_clip"),
    "workers": ("timm", "open_clip"),
    "random_weights": ("timm", "open_clip"),
    "class_names": ("timm", "open_clip"),
    "mean": ("timm", "open_clip"),
    "image_std": ("timm", "open_clip"),
    "interpolation": ("timm", "open_clip"),
    "input_size": ("timm",),
    "crop_pct": ("timm",),
    "train_size": ("timm",),
    "model_kwargs": ("timm",),
    "templates": ("open_clip",),
    "quick_gelu": ("open_clip",),
    "members": ("timm", "open_clip"),
    "autocast": ("timm", "open_clip"),
    "channels_last": ("timm", "open_clip"),
    "pin_memory": ("timm", "open_clip"),
    "refresh": ("timm", "open_clip"),
    "refresh_form": ("timm", "open_clip"),
    "refresh_limit": ("timm", "open_clip"),
    "tasks": ("hf",),
    "include_path": ("hf",),
    "num_fewshot": ("hf",),
}
"""Options that not every kind of model has."""

Commands = Any
"""The type that ``ArgumentParser.add_subparsers`` returns; its class is private to argparse."""

Options = TypeVar("Options")


def add_command(commands: Commands, name: str, description: str) -> argparse.ArgumentParser:
    """Add and return a subcommand's parser, which leaves out what was not given."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="options from a TOML file, as batch-size = 32"
    )
    return parser


def given(kind: type, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a dataclass that the command line gave, with their values."""
    return {each.name: getattr(asked, each.name) for each in fields(kind) if hasattr(asked, each.name)}


def options_of(kind: type[Options], asked: argparse.Namespace) -> Options:
    """Return a dataclass of options: what the command line gave, and its own defaults."""
    return kind(**given(kind, asked))


def separate_std(asked: argparse.Namespace) -> None:
    """Take ``--std`` apart: one number is the noise's, three are the images'; it may be given once for each.

    Raises:
        InputError: another count of numbers, or one thing given twice.
    """
    if not hasattr(asked, "std"):
        return
    given: list[list[float]] = asked.std
    del asked.std
    for values in given:
        name = {1: "std", 3: "image_std"}.get(len(values))
        if name is None or hasattr(asked, name):
            raise InputError(
                "--std takes the noise's one number or the three of images' channels, each once, not "
                f"{' '.join(f'{value:g}' for value in values)}"
            )
        setattr(asked, name, values[0] if name == "std" else values)


@dataclass(frozen=True)
class ModelOptions:
    """Options that name a model and where its weights are from.

    Args:
        model: kind/name, see ``KINDS``. checkpoint: a file of weights; None: the hub's.
        random_weights: the architecture alone. dtype: of the weights; None: float32, hf: its own.
        model_kwargs: arguments of the architecture, KEY=VALUE each.
        class_names: a file of the model's classes, in its order; None: ImageNet's, timm: by position.
        templates: a file of a zero-shot head's captions; None: OpenAI's.
        quick_gelu: the activation of a bare checkpoint of open_clip.
    """

    model: str
    checkpoint: str | None = None
    random_weights: bool = False
    dtype: str | None = None
    model_kwargs: list[str] | None = None
    class_names: str | None = None
    templates: str | None = None
    quick_gelu: bool | None = None

    @property
    def kind(self) -> str:
        """The model's kind: timm, open_clip or hf."""
        return self.model.partition("/")[0]

    @property
    def name(self) -> str:
        """The model's name within its kind."""
        return self.model.partition("/")[2]

    @property
    def arguments(self) -> dict[str, Any]:
        """The architecture's arguments, as Python's literals have them: pad_type=same, img_size=(192,256).

        Raises:
            InputError: one that is no KEY=VALUE, or given twice.
        """
        found: dict[str, Any] = {}
        for given in self.model_kwargs or ():
            key, equals, text = given.partition("=")
            if not equals or not key.isidentifier() or key in found:
                raise InputError(f"--model-kwargs takes KEY=VALUE, each key once, not {given!r}")
            try:
                found[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError):
                found[key] = text
            except (RecursionError, MemoryError):
                raise InputError(f"--model-kwargs has {key} in too many brackets or signs") from None
        return found

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype asked for."""
        return None if self.dtype is None else DTYPES[self.dtype]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`ModelOptions`; ``templates`` are only where a head is made."""
    parser.add_argument("model", metavar="MODEL", help=", ".join(KINDS))
    parser.add_argument("--checkpoint", metavar="FILE", help="weights: safetensors, or a state dict")
    parser.add_argument(
        "--random-weights", action="store_true", help="random ones in the true shape: no weights are needed"
    )
    parser.add_argument(
        "--model-kwargs",
        nargs="+",
        metavar="KEY=VALUE",
        help="timm: of the architecture, such as pad_type=same",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="the model's classes in its order, a name a line (open_clip: ImageNet's; timm: by position)",
    )
    parser.add_argument(
        "--quick-gelu",
        action=argparse.BooleanOptionalAction,
        help="whether a bare checkpoint has this activation",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of the weights (float32; hf: its own)")


def add_place(group: Any) -> None:
    """Add the options of where it computes, and the templates of the head that is made there."""
    group.add_argument(
        "--templates", metavar="FILE", help="open_clip: a caption with {} a line (OpenAI's 80)"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU where there is one)")


def model_options(asked: argparse.Namespace) -> ModelOptions:
    """Return the model asked for.

    Raises:
        InputError: no kind of model; an option, of whatever group, that this kind does not have.
    """
    options = options_of(ModelOptions, asked)
    kind = options.kind
    if f"{kind}/" not in [each.partition("/")[0] + "/" for each in KINDS] or not options.name:
        raise InputError(f"a model is {KINDS[0]}, {KINDS[1]} or {KINDS[2]}, not {options.model!r}")
    for option, kinds in OF_KIND.items():
        if hasattr(asked, option) and kind not in kinds:
            raise InputError(
                f"--{option.removeprefix('image_').replace('_', '-')} is for {' and '.join(kinds)} models, "
                f"not for {kind}"
            )
    if options.random_weights and options.checkpoint:
        raise InputError("give --checkpoint or --random-weights, not both")
    _ = options.arguments  # or an error, before a model is made
    return options


@dataclass(frozen=True)
class EnsembleOptions:
    """Options that name an ensemble.

    Args:
        method: one of :func:`lpe.cli.methods.method_names`. system: a number system's name, or
            ``pattern=name`` with commas between them; None: ``SYSTEM``. scale_axis: see :func:`scale_axis`;
            None: the name's own, or per channel.
        size: members; None: ``SIZE``, 1 where all are alike. rounding: lpe; None: bernoulli.
        std: gaussian, of the noise; None: that of the rounding. rate: mc-dropout; None: ``DROPOUT_RATE``.
        seed: of the random bits. include, exclude: patterns of tensors' names.
    """

    method: str = "lpe"
    system: str | None = None
    scale_axis: str | None = None
    size: int | None = None
    rounding: str | None = None
    std: float | None = None
    rate: float | None = None
    seed: int = 0
    include: list[str] | None = None
    exclude: list[str] | None = None

    def number_system(self) -> Systems:
        """Return the number system with its scale axis, or one for each name pattern."""
        return number_system(
            self.system or SYSTEM, None if self.scale_axis is None else scale_axis(self.scale_axis)
        )

    @property
    def patterns(self) -> Mapping[str, Any]:
        """Keyword arguments that every ensemble that rounds takes."""
        return {"include": self.include, "exclude": self.exclude}

    def check(self) -> None:
        """Check an ensemble's options, before a model is loaded.

        Raises:
            InputError: an unknown system or axis; an option of another method; a size of members that would
                be all alike.
        """
        check_method(self.method)
        system = self.number_system()
        for option, method in (("rounding", "lpe"), ("std", "gaussian"), ("rate", "mc-dropout")):
            if getattr(self, option) is not None and self.method != method:
                also = " (the std of images' channels is three numbers)" if option == "std" else ""
                raise InputError(f"--{option} is for --method {method}, not {self.method}{also}")
        if self.method == "mc-dropout" and (self.include or self.exclude):
            raise InputError("--include and --exclude name tensors, and mc-dropout changes none")
        for option in ("system", "scale_axis"):
            if self.method == "mc-dropout" and getattr(self, option) is not None:
                name = option.replace("_", "-")
                raise InputError(f"--{name} says how weights are rounded, and mc-dropout rounds none")
        if self.size is not None and check_size(self.size) > MOST_MEMBERS:
            raise InputError(f"--size must be 1 to {MOST_MEMBERS:,} members, not {self.size:,}")
        if self.std is not None:
            check_finite("--std", self.std)
        if self.rate is not None and not 0 <= self.rate < 1:
            raise InputError(f"--rate must be a number from 0 up to but not 1, not {self.rate:g}")
        check_seed(self.seed)
        if self._alike() and self.size not in (None, 1):
            what = "fp32" if isinstance(system, FullPrecision) else "nearest rounding"
            raise InputError(f"members of {what} are all alike; leave --size {self.size} out")

    def _alike(self) -> bool:
        """Tell whether every member would be the same."""
        return self.method == "lpe" and (
            self.rounding == "nearest" or isinstance(self.number_system(), FullPrecision)
        )

    def ensemble(self, model: nn.Module, **statistics: Any) -> Ensemble:
        """Return the ensemble of a model that the options ask for.

        Args:
            statistics: batches and refresh, see :class:`LowPrecisionEnsemble`.
        """
        size = self.size or (1 if self._alike() else SIZE)
        if self.method == "mc-dropout":
            rate = DROPOUT_RATE if self.rate is None else self.rate
            return MCDropoutEnsemble(model, rate, size, self.seed, **statistics)
        system, settings = self.number_system(), {**self.patterns, **statistics}
        if self.method == "gaussian":
            return GaussianEnsemble(model, system, size, self.seed, self.std, **settings)
        if self.method != "lpe":
            return made_by(self.method, model, system, size, self.seed, **settings)
        rounding = self.rounding or "bernoulli"
        return LowPrecisionEnsemble(model, system, size, self.seed, rounding, **settings)


def add_ensemble(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`EnsembleOptions`."""
    ensemble = parser.add_argument_group("ensemble")
    ensemble.add_argument("--method", choices=method_names(), help="(lpe)")
    ensemble.add_argument("--system", help="see lpe systems; by name: '*mlp*=int4,*=int8' (int5)")
    ensemble.add_argument("--size", type=int, help=f"members ({SIZE}; 1 where all are alike)")
    ensemble.add_argument("--rounding", choices=ROUNDINGS, help="lpe (bernoulli)")
    ensemble.add_argument("--scale-axis", metavar="AXIS", help="(channel), tensor, channels:K, block:K")
    ensemble.add_argument(
        "--std",
        type=float,
        nargs="+",
        action="append",
        metavar="X",
        help="gaussian: of the noise (that of the rounding); three numbers: of the channels of images",
    )
    ensemble.add_argument("--rate", type=float, help=f"mc-dropout ({DROPOUT_RATE})")
    ensemble.add_argument("--seed", type=int, help="of the random bits (0)")
    ensemble.add_argument("--include", action="append", metavar="PATTERN", help="only tensors so named")
    ensemble.add_argument("--exclude", action="append", metavar="PATTERN", help="no tensors so named")


def scale_axis(text: str) -> ScaleAxis:
    """Return the scale axis of an option: channel, tensor, channels:16 (outputs) or block:128 (inputs)."""
    kind, _, count = text.partition(":")
    if text == "channel":
        return PerChannel()
    if text == "tensor":
        return PerTensor()
    if re.fullmatch("[0-9]{1,18}", count) and kind in ("channels", "block"):
        return PerChannel(int(count)) if kind == "channels" else PerBlock(int(count))
    raise InputError(
        f"unknown scale axis {text!r}; there are channel, tensor, channels:K (K output channels) and block:K "
        "(K inputs of a row)"
    )


def device_of_name(name: str | None) -> torch.device:
    """Return the device of a name; without one the GPU where there is one.

    Raises:
        InputError: nothing can be computed on it.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise InputError(f"cannot compute on --device {name}; this machine has {_devices()}")
        # Metrics are sums in float64, which Apple's GPUs have not: that too is found here.
        torch.zeros(1, dtype=torch.float64, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        why = first_line(error).partition(". ")[0]
        raise InputError(
            f"cannot compute on --device {name} ({why}); this machine has {_devices()}"
        ) from None
    return device


def _devices() -> str:
    """Name the devices of this machine that can be asked for."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])


def first_line(error: BaseException) -> str:
    """Return an exception's first line, without its full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")
