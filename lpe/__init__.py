"""Low Precision Ensembling: what an ensemble costs, and what it buys."""

from __future__ import annotations

from lpe.ensembles.batch import BatchEnsemble
from lpe.ensembles.cascade import Cascade, tune_window
from lpe.ensembles.cyclical_sgld import CyclicalSGLDEnsemble
from lpe.ensembles.deep import DeepEnsemble
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.ivon import IVONEnsemble
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.ensembles.mixture import Mixture
from lpe.ensembles.snapshot import SnapshotEnsemble
from lpe.ensembles.swag import SWAGEnsemble
from lpe.errors import InputError
from lpe.evaluation.predict import EvaluationOptions, evaluate, member_log_probs
from lpe.files.ensembles import load, save
from lpe.number_systems.grids import (
    NF4,
    Codebook,
    Float,
    FullPrecision,
    Int,
    PerBlock,
    PerChannel,
    PerTensor,
)
from lpe.number_systems.naming import number_system
from lpe.number_systems.rounding import decode, encode, round_weights

__all__ = [
    "BatchEnsemble",
    "Cascade",
    "Codebook",
    "CyclicalSGLDEnsemble",
    "DeepEnsemble",
    "EvaluationOptions",
    "Float",
    "FullPrecision",
    "GaussianEnsemble",
    "IVONEnsemble",
    "InputError",
    "Int",
    "LowPrecisionEnsemble",
    "MCDropoutEnsemble",
    "Mixture",
    "NF4",
    "PerBlock",
    "PerChannel",
    "PerTensor",
    "SWAGEnsemble",
    "SnapshotEnsemble",
    "decode",
    "encode",
    "evaluate",
    "load",
    "member_log_probs",
    "number_system",
    "round_weights",
    "save",
    "tune_window",
]
