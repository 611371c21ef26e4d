"""Low Precision Ensembling: what an ensemble costs, and what it buys."""

from __future__ import annotations

from lpe.ensembles.batch import BatchEnsemble
from lpe.ensembles.batch_norm import refresh
from lpe.ensembles.cascade import Cascade, tune_window
from lpe.ensembles.cyclical_sgld import CyclicalSGLDCollector, CyclicalSGLDEnsemble
from lpe.ensembles.deep import DeepEnsemble
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.ivon import IVONEnsemble, posterior_std
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.ensembles.mixture import Mixture
from lpe.ensembles.snapshot import SnapshotCollector, SnapshotEnsemble
from lpe.ensembles.swag import SWAGCollector, SWAGEnsemble
from lpe.errors import InputError
from lpe.evaluation.predict import EvaluationOptions, evaluate, member_log_probs
from lpe.evaluation.timing import MemberTimer
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
from lpe.training.loop import train
from lpe.training.sgld import SGLD

__all__ = [
    "BatchEnsemble",
    "Cascade",
    "Codebook",
    "CyclicalSGLDCollector",
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
    "MemberTimer",
    "Mixture",
    "NF4",
    "PerBlock",
    "PerChannel",
    "PerTensor",
    "SGLD",
    "SWAGCollector",
    "SWAGEnsemble",
    "SnapshotCollector",
    "SnapshotEnsemble",
    "decode",
    "encode",
    "evaluate",
    "load",
    "member_log_probs",
    "number_system",
    "posterior_std",
    "refresh",
    "round_weights",
    "save",
    "train",
    "tune_window",
]
