"""Settings that are tuned on the tuning examples, on which no row is scored: kept in the store.

A setting is chosen from a grid: the value whose ensemble has the least NLL. Members are chosen from a pool:
those whose own NLL is least. An entry of the store is keyed by the network's weights, the data, the grid, the
seed and the code, so that units that tune the same thing share it, and a run that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.laplace import LastLayerCurvature
from lpe.errors import InputError
from lpe.files.container import weights_hash
from lpe.store import Entry
from reproduce.study.keys import determinants
from reproduce.study.scale import Batch, Beyond, Classification, Data, Substrate, bare, digest_of, held
from reproduce.study.session import Session
from reproduce.study.units import draw_seed

SPREAD_KNOB, STD_KNOB, RATE_KNOB = "spread", "std", "rate"
PRECISIONS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Prior precisions of last-layer Laplace, in units of the one of greatest marginal likelihood."""

LAPLACE_BATCH = 500
"""Training examples that go through the network at once while its curvature is taken."""


@dataclass(frozen=True)
class Tuned:
    """The tuned settings of the methods around one network.

    Args:
        spread: of the step of ``Beyond.spread_bits``. std: of Gaussian noise. rate: of MC-dropout.
        losses: NLL on the tuning examples at each value of its grid, by "spread", "std" and "rate".
    """

    spread: float
    std: float
    rate: float
    losses: Mapping[str, tuple[float, ...]]


def tuned(session: Session, substrate: Substrate, seed: int) -> Tuned:
    """Return the spread, the std and the rate of least NLL on the tuning examples, around the point estimate.

    Each is chosen from as many ensembles of ``Beyond.size`` members; of equal ones the first of the grid.

    Args:
        substrate: whose point estimate. seed: training seed.

    Raises:
        InputError: the scale has no ``beyond``.
    """
    beyond = beyond_of(session)
    grids = {SPREAD_KNOB: beyond.spreads, STD_KNOB: beyond.stds, RATE_KNOB: beyond.rates}
    losses = {knob: tuple(_losses(session, substrate, seed, knob, grid)) for knob, grid in grids.items()}
    best = {knob: grids[knob][int(np.argmin(losses[knob]))] for knob in grids}
    return Tuned(best[SPREAD_KNOB], best[STD_KNOB], best[RATE_KNOB], losses)


def beyond_of(session: Session) -> Beyond:
    """Return the settings of what goes beyond the paper.

    Raises:
        InputError: the scale has none.
    """
    if session.scale.beyond is None:
        raise InputError(f"scale {session.scale.name} measures nothing beyond the paper; give it a Beyond")
    return session.scale.beyond


def spread_ensemble(
    net: nn.Module, bits: int, spread: float, size: int, seed: int, batches: Sequence[Batch] | None
) -> Ensemble:
    """Return LPE-BSR of codes of some bits whose step is spread."""
    return lpe.LowPrecisionEnsemble(net, lpe.Int(bits, spread=spread), size, seed, batches=batches)


def noisy_ensemble(
    net: nn.Module, bits: int, std: float, size: int, seed: int, batches: Sequence[Batch] | None
) -> Ensemble:
    """Return Gaussian noise of one std on what a number system would round."""
    return lpe.GaussianEnsemble(net, lpe.Int(bits), size, seed, std=std, batches=batches)


def masked_ensemble(
    net: nn.Module, bits: int, rate: float, size: int, seed: int, batches: Sequence[Batch] | None
) -> Ensemble:
    """Return MC-dropout of one rate; the bits have no part in it."""
    return lpe.MCDropoutEnsemble(net, rate, size, seed, batches=batches)


KNOBS: Mapping[str, Callable[[nn.Module, int, Any, int, int, Sequence[Batch] | None], Ensemble]] = {
    SPREAD_KNOB: spread_ensemble,
    STD_KNOB: noisy_ensemble,
    RATE_KNOB: masked_ensemble,
}
"""Of each setting: (network, bits, value, size, seed, batches of batch-norm statistics) → ensemble."""


def _losses(
    session: Session, substrate: Substrate, seed: int, knob: str, grid: Sequence[float]
) -> list[float]:
    """Return the NLL of each value of a grid, out of the store where it is there."""
    beyond = beyond_of(session)
    net = substrate.point(session, substrate.estimate, seed).net
    data: Data = substrate.source.load(seed)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = []
        with session.progress(len(grid), f"seed {seed}: tuning of the {knob}") as bar:
            for value in grid:
                ensemble = KNOBS[knob](
                    net, beyond.spread_bits, value, beyond.size, draw_seed(seed, 0), data.statistics
                )
                found.append(nll_of(ensemble, data))
                bar.update()
        return {"nll": torch.tensor(found, dtype=torch.float64)}, {}

    about = {"knob": knob, "grid": list(grid), "bits": beyond.spread_bits, "size": beyond.size}
    entry = _kept(session, substrate, seed, net, about, make, KNOBS[knob], nll_of)
    nll: list[float] = entry.tensors["nll"].tolist()
    return nll


def nll_of(ensemble: Ensemble, data: Data) -> float:
    """Return the NLL of a whole ensemble on the tuning examples."""
    return float(data.tuning.evaluate(ensemble, ())["nll"].iloc[-1])


def laplace(
    session: Session, substrate: Substrate, seed: int, net: nn.Module
) -> tuple[LastLayerCurvature, float]:
    """Return the curvature of a network's last layer and the prior precision of least NLL.

    The curvature is a sum over the training examples that the data have, as they are: where a scale holds a
    part of those that its points were trained on, it is too small, and so is the precision that is tuned.

    Args:
        net: the point estimate of the seed.

    Raises:
        InputError: as :func:`lpe.last_layer_curvature`; the scale has no ``beyond``.
    """
    beyond = beyond_of(session)
    data: Data = substrate.source.load(seed)
    curvature = lpe.last_layer_curvature(net, training_batches(data, None))
    best = lpe.LaplaceEnsemble(net, curvature, 1).prior_precision

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = []
        with session.progress(len(PRECISIONS), f"seed {seed}: tuning of Laplace") as bar:
            for factor in PRECISIONS:
                ensemble = lpe.LaplaceEnsemble(
                    net, curvature, beyond.size, draw_seed(seed, 0), prior_precision=factor * best
                )
                found.append(nll_of(ensemble, data))
                bar.update()
        return {"nll": torch.tensor(found, dtype=torch.float64)}, {}

    about = {"knob": "prior precision", "grid": list(PRECISIONS), "size": beyond.size}
    entry = _kept(session, substrate, seed, net, about, make, laplace)
    return curvature, best * PRECISIONS[int(entry.tensors["nll"].argmin())]


def selected(
    session: Session,
    substrate: Substrate,
    seed: int,
    net: nn.Module,
    pool: Ensemble,
    about: Mapping[str, object],
    *roots: Any,
) -> lpe.SelectedEnsemble:
    """Return the best ``Beyond.size`` members of a pool by their own NLL on the tuning examples.

    Args:
        net: that the pool's members are made of. about: all that determines the pool beside it and the seed.
        roots: functions that make the pool.
    """
    size = beyond_of(session).size
    batches = tuning_batches(substrate.source.load(seed))

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = lpe.select(pool, batches, size)
        assert found.validation_nll is not None
        nll = torch.tensor(found.validation_nll, dtype=torch.float64)
        return {"members": torch.tensor(found.members), "nll": nll}, {}

    chosen = {"pool": len(pool), "size": size, **about}
    entry = _kept(session, substrate, seed, net, chosen, make, selected, *roots)
    return lpe.SelectedEnsemble(pool, entry.tensors["members"].tolist())


def tuning_batches(data: Data) -> Iterable[Batch]:
    """Return the batches of the tuning examples.

    Raises:
        InputError: they are no batches of inputs and classes.
    """
    if not isinstance(data.tuning, Classification):
        raise InputError(
            f"the tuning examples are a {type(data.tuning).__name__}; a pool is chosen on batches of inputs "
            "and classes"
        )
    return data.tuning.test


def training_batches(data: Data, count: int | None) -> list[Batch]:
    """Return the first training examples, or all (None), in batches of LAPLACE_BATCH.

    Raises:
        InputError: the data have no training examples as tensors.
    """
    if data.train is None:
        raise InputError("the data have no training examples; a method that needs them is left out")
    inputs, targets = (part[:count] for part in data.train)
    return list(zip(inputs.split(LAPLACE_BATCH), targets.split(LAPLACE_BATCH), strict=True))


def _kept(
    session: Session,
    substrate: Substrate,
    seed: int,
    net: nn.Module,
    about: Mapping[str, object],
    make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
    *roots: Any,
) -> Entry:
    """Return the store's entry of what was tuned around a network.

    Args:
        about: what was chosen from. roots: the functions that make it.
    """
    source = substrate.source
    config = {
        "phase": "tuning",
        "source": source,
        "weights": weights_hash(net),
        "seed": seed,
        "draws": draw_seed(seed, 0),
        **about,
        **determinants(
            *roots,
            bare(source),
            *held(source),
            data=digest_of(source, seed),
            device=session.device,
            threads=session.threads,
        ),
    }
    return session.store.get_or_make(config, make, session.device)
