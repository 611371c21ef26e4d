"""``lpe describe``: every tensor of a model, rounded or not and why, and the memory of the ensemble."""

from __future__ import annotations

import argparse

import torch

from lpe.cli.models import model_alone, placed
from lpe.cli.options import (
    Commands,
    EnsembleOptions,
    add_command,
    add_ensemble,
    add_model,
    model_options,
    options_of,
)
from lpe.cli.tables import megabytes
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.errors import InputError
from lpe.number_systems.grids import FullPrecision

DESCRIBE = """\
Every tensor of the model: rounded or not, why, and its bits; and the memory of the ensemble.

  lpe describe timm/vit_base_patch16_224.augreg_in21k_ft_in1k --system int5 --size 20 --random-weights
"""


def add_describe(commands: Commands) -> None:
    """Add the subcommand and its options."""
    parser = add_command(commands, "describe", DESCRIBE)
    add_model(parser)
    add_ensemble(parser)


def describe(asked: argparse.Namespace) -> str:
    """Return the table of an ensemble's tensors, and its memory."""
    model_asked = model_options(asked)
    ensemble_asked = options_of(EnsembleOptions, asked)
    ensemble_asked.check()
    model = placed(model_alone(model_asked), torch.device("cpu"), model_asked)
    ensemble = ensemble_asked.ensemble(model)
    single = LowPrecisionEnsemble(model, FullPrecision(), 1, **ensemble_asked.patterns)
    try:
        planes = f"{megabytes(ensemble.memory_bits(storage='planes'))} MB of them as planes, "
    except InputError:  # members that have none
        planes = ""
    return "\n".join(
        (
            ensemble.describe(),
            f"memory: {megabytes(ensemble.memory_bits())} MB of {len(ensemble)} members, {planes}"
            f"{megabytes(ensemble.memory_bits(storage='generator'))} MB of what they can be drawn from, "
            f"{megabytes(single.memory_bits())} MB of the model as it is",
        )
    )
