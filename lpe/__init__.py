"""Low Precision Ensembling: what an ensemble costs, and what it buys."""

from __future__ import annotations

from lpe import interruption as interruption  # first: torch, which is imported next, takes seconds

# isort: split
from lpe.ensembles.augmented import AugmentedEnsemble, CropAndFlip
from lpe.ensembles.batch import BatchEnsemble
from lpe.ensembles.batch_norm import refresh
from lpe.ensembles.cascade import Cascade, tune_window
from lpe.ensembles.cyclical_sgld import CyclicalSGLDCollector, CyclicalSGLDEnsemble
from lpe.ensembles.deep import DeepEnsemble
from lpe.ensembles.feedback import FeedbackEnsemble
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.ivon import IVONEnsemble, posterior_std
from lpe.ensembles.laplace import LaplaceEnsemble, last_layer_curvature
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.ensembles.mixture import Mixture
from lpe.ensembles.selected import SelectedEnsemble
from lpe.ensembles.snapshot import SnapshotCollector, SnapshotEnsemble
from lpe.ensembles.swag import SWAGCollector, SWAGEnsemble
from lpe.errors import InputError
from lpe.evaluation.options import EvaluationOptions
from lpe.evaluation.predict import evaluate, member_log_probs
from lpe.evaluation.score import score
from lpe.evaluation.selecting import select
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
from lpe.number_systems.rounding import decode, encode, round_weights
from lpe.plugins import number_system
from lpe.training.loop import train
from lpe.training.sgld import SGLD

__version__ = "0.2.0"

__all__ = [
    "AugmentedEnsemble",
    "BatchEnsemble",
    "Cascade",
    "Codebook",
    "CropAndFlip",
    "CyclicalSGLDCollector",
    "CyclicalSGLDEnsemble",
    "DeepEnsemble",
    "EvaluationOptions",
    "FeedbackEnsemble",
    "Float",
    "FullPrecision",
    "GaussianEnsemble",
    "IVONEnsemble",
    "InputError",
    "Int",
    "LaplaceEnsemble",
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
    "SelectedEnsemble",
    "SnapshotCollector",
    "SnapshotEnsemble",
    "decode",
    "encode",
    "evaluate",
    "last_layer_curvature",
    "load",
    "member_log_probs",
    "number_system",
    "posterior_std",
    "refresh",
    "round_weights",
    "save",
    "score",
    "select",
    "train",
    "tune_window",
]
