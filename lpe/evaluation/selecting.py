"""Chooses the best members of an ensemble on validation examples; see ``lpe.ensembles.selected``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lpe.checks import check_integer
from lpe.ensembles.base import Ensemble, check_ensemble
from lpe.ensembles.selected import SelectedEnsemble
from lpe.evaluation.options import PLAIN, EvaluationOptions
from lpe.evaluation.predict import member_nll


def select(
    ensemble: Ensemble, batches: Iterable[Any], size: int, options: EvaluationOptions = PLAIN
) -> SelectedEnsemble:
    """Return the best members of an ensemble by their own NLL on validation examples, the best one first.

    Of members with one NLL that of the smaller index comes first. Members are made one after another, once
    where the batches are in a list, and none is kept:

        best = lpe.select(lpe.LowPrecisionEnsemble(model, lpe.Int(4), size=100), validation, size=10)
        best.members, best.validation_nll

    Args:
        ensemble: any ensemble. batches: validation batches (inputs, targets), as :func:`lpe.evaluate` takes
            them. size: members to choose, 1 … all. options: of the forward passes.

    Raises:
        InputError: what is no ensemble; a size that it does not have; as :func:`lpe.evaluate`.
    """
    check_ensemble(ensemble, "select")
    size = check_integer("size", size, 1, len(ensemble))
    nll = member_nll(ensemble, batches, options).tolist()
    chosen = SelectedEnsemble(ensemble, sorted(range(len(nll)), key=nll.__getitem__)[:size])
    chosen.validation_nll = tuple(nll)
    return chosen
