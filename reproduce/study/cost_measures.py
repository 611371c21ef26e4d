"""Measures the cost picture's rows: predictions of every method on test examples, and what each takes.

All is computed from the members' log-probabilities, kept for the validation and the test examples: cascades
are tuned on the former, and every metric is of the latter. ``lpe.Cascade`` predicts the same.

Methods, as the record names them: "FP32", "FP32 + temperature" (fitted on the validation examples), "RTN",
"LPE-BSR", "DE", and cascades: "cascade from FIRST: TARGET". FIRST is what predicts in the first stage: RTN or
FP32 before an LPE-BSR ensemble, whose members it is none of, and member 0 before DE. TARGET is how the window
was chosen on the validation examples: for "95 % of the gain", the ensemble's in NLL over the first stage,
with the fewest members; or, whatever their labels, so that "5 % go on", the least confident.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.cascade import NOTHING, Window
from lpe.evaluation.metrics import fit_temperature, mean_log_probs, temperature_scaled
from reproduce.study.scale import Batch, Point
from reproduce.study.unrounded import FP32, SCALED

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20)
"""Ensemble sizes in the record."""
SHARE = 0.95
GOING = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the validation examples that go on."""
ROUNDINGS = ("bernoulli", "coupled")
CASCADED = "coupled"
"""The rounding of the members of cascades: a few coupled members do what more independent ones do."""


@dataclass(frozen=True)
class Known:
    """An ensemble with its members' log-probabilities.

    Args:
        validation, test: float64 [members, examples, classes].
        validation_targets, test_targets: int64 [examples].
    """

    ensemble: Ensemble
    validation: Tensor
    validation_targets: Tensor
    test: Tensor
    test_targets: Tensor


@dataclass(frozen=True)
class Target:
    """A target for which a window is chosen: a share of the gain, or a share of the examples to go on."""

    share: float | None = None
    going: float | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f"{100 * self.share:g} % of the gain"
        return f"{100 * (self.going or 0):g} % go on"

    def window(self, of: Known, first: Known | None) -> Window:
        """Return the window, from the validation examples."""
        alone = of.validation[0] if first is None else first.validation[0]
        if self.share is not None:
            tuned = lpe.tune_window(
                of.validation,
                of.validation_targets,
                gain_share=self.share,
                first=None if first is None else alone,
            )
            return tuned.window
        confidence = alone.amax(dim=-1).exp().sort().values
        count = round((self.going or 0) * len(confidence))
        return (0.0, float(confidence[count - 1])) if count else NOTHING


HEADLINE = Target(share=SHARE)
TARGETS = (*(Target(going=share) for share in GOING), HEADLINE)


def cascade_name(first: str, target: Target | str) -> str:
    """Return the method's name in the record."""
    return f"cascade from {first}: {target}"


def known(ensemble: Ensemble, validation: Sequence[Batch], test: Sequence[Batch]) -> Known:
    """Run every member once over the validation and the test batches."""
    held = isinstance(validation, list) and isinstance(test, list)
    # Batches that are read from files whenever they are asked for are not held all at once.
    batches = [*validation, *test] if held else itertools.chain(validation, test)
    log_probs, targets = lpe.member_log_probs(ensemble, batches)
    count = sum(len(targets) for _, targets in validation)
    return Known(ensemble, log_probs[:, :count], targets[:count], log_probs[:, count:], targets[count:])


@dataclass(frozen=True)
class Prediction:
    """A method's predictions on the test examples, and what they take.

    Args:
        log_probs: float64 [examples, classes]. networks: how many have run over each example, [examples].
        memory_bits: of n stored members. generator_bits: of the smallest thing to draw them from.
    """

    method: str
    number_system: str
    rounding: str
    size: int
    log_probs: Tensor
    networks: Tensor
    memory_bits: int
    generator_bits: int
    backward_passes: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The method, number system, rounding and size that it is of."""
        return self.method, self.number_system, self.rounding, self.size


def single_predictions(single: Known) -> Iterator[Prediction]:
    """Yield the FP32 model's predictions, as it is and with the temperature of the validation examples."""
    ensemble = single.ensemble
    bits, passes = ensemble.memory_bits(1), ensemble.backward_passes(1) or 0
    once = torch.ones(len(single.test_targets))
    plain = Prediction(FP32, "fp32", "", 1, single.test[0], once, bits, bits, passes)
    yield plain
    temperature = fit_temperature(single.validation[0], single.validation_targets)
    scaled = (single.test[0] / temperature).log_softmax(dim=-1)
    # One number more than the model: the temperature.
    yield replace(plain, method=SCALED, log_probs=scaled, memory_bits=bits + 32, generator_bits=bits + 32)


def size_predictions(method: str, system: str, rounding: str, of: Known) -> Iterator[Prediction]:
    """Yield the predictions of the first n members together, for the sizes of the record."""
    ensemble = of.ensemble
    for n in sorted({*SIZES, len(ensemble)}):
        if n <= len(ensemble):
            yield Prediction(
                method,
                system,
                rounding,
                n,
                mean_log_probs(of.test[:n]),
                torch.full((len(of.test_targets),), n),
                ensemble.memory_bits(n),
                ensemble.memory_bits(n, storage="generator"),
                ensemble.backward_passes(n) or 0,
            )


def tuned_cascade(of: Known, first: Known | None, target: Target) -> lpe.Cascade:
    """Return a cascade of two stages whose window is chosen on the validation examples."""
    window = target.window(of, first)
    return lpe.Cascade(of.ensemble, window, first=None if first is None else first.ensemble)


def cascade_prediction(cascade: lpe.Cascade, of: Known, first: Known | None) -> tuple[Tensor, Tensor]:
    """Return what a two-stage cascade predicts from log-probabilities that are known.

    Returns:
        log-probabilities float64 [examples, classes]; and int64 [examples], the networks run over each.
    """
    alone = of.test[0] if first is None else first.test[0]
    ((low, high),) = cascade.windows
    confidence = alone.amax(dim=-1).exp()
    goes_on = (confidence >= low) & (confidence <= high)
    further = cascade.size - (first is None)
    return torch.where(goes_on[:, None], mean_log_probs(of.test), alone), 1 + further * goes_on.long()


def cascade_predictions(
    first_name: str, system: str, rounding: str, of: Known, first: Known | None, targets: Iterable[Target]
) -> Iterator[Prediction]:
    """Yield the predictions of a cascade for every target."""
    stored: int | None = None
    for target in targets:
        cascade = tuned_cascade(of, first, target)
        log_probs, networks = cascade_prediction(cascade, of, first)
        if stored is None:
            # Whatever the window.
            stored, drawn_from = cascade.memory_bits(), cascade.memory_bits(storage="generator")
        yield Prediction(
            cascade_name(first_name, target),
            system,
            rounding,
            cascade.size,
            log_probs,
            networks,
            stored,
            drawn_from,
            cascade.backward_passes() or 0,
        )


def first_of(known_ensemble: Known, size: int) -> Known:
    """Return the ensemble's first members, with what is known of them."""
    ensemble = known_ensemble.ensemble
    assert isinstance(ensemble, lpe.LowPrecisionEnsemble)
    shorter = lpe.LowPrecisionEnsemble(
        ensemble.model, ensemble.system, size, ensemble.seed, ensemble.rounding
    )
    shorter.training_budget = ensemble.training_budget
    shorter.batch_norm = ensemble.batch_norm
    return replace(
        known_ensemble,
        ensemble=shorter,
        validation=known_ensemble.validation[:size],
        test=known_ensemble.test[:size],
    )


def low_precision_predictions(
    net: nn.Module,
    bits: int,
    size: int,
    few: int,
    seed: int,
    single: Known,
    know: Callable[[Ensemble], Known],
    training: Sequence[Batch] | None = None,
) -> Iterator[Prediction]:
    """Yield RTN, LPE-BSR of every size, independent and coupled, and its cascades, at one bit width.

    Args:
        few: members of a second, smaller cascade. single: the FP32 model. know: runs an ensemble.
        training: batches to re-estimate every member's batch-norm statistics on, relative to the model's.
    """
    system = lpe.Int(bits)

    def made(members: int, rounding: str) -> Known:
        ensemble = lpe.LowPrecisionEnsemble(net, system, members, seed, rounding, batches=training)
        ensemble.training_budget = single.ensemble.backward_passes(1)
        return know(ensemble)

    nearest = made(1, "nearest")
    yield from size_predictions("RTN", system.name, "nearest", nearest)
    for rounding in ROUNDINGS:
        members = made(size, rounding)
        yield from size_predictions("LPE-BSR", system.name, rounding, members)
        if rounding == CASCADED:
            named = (system.name, rounding)
            yield from cascade_predictions("RTN", *named, members, nearest, TARGETS)
            yield from cascade_predictions("FP32", *named, members, single, TARGETS)
            if few < size:
                yield from cascade_predictions("RTN", *named, first_of(members, few), nearest, [HEADLINE])


def metrics_of(prediction: Prediction, targets: Tensor) -> dict[str, Tensor]:
    """Return, by name, what means over test examples are taken of: float64 [examples]."""
    scaled = temperature_scaled(prediction.log_probs, targets)
    rows = targets[:, None]
    return {
        "nll": -prediction.log_probs.gather(1, rows)[:, 0],
        "calibrated_nll": -scaled.gather(1, rows)[:, 0],
        "members_per_example": prediction.networks.double(),
    }


def rows_of_predictions(
    drawn: Iterable[Iterable[Prediction]], targets: Tensor, blocks: int = 1
) -> dict[tuple[str, str, str], list[dict[str, object]]]:
    """Return rows of the record by (method, number system, rounding); values are means over draws.

    Args:
        drawn: the same methods for every draw. targets: int64 [examples].
        blocks: 1: a value is the mean over all examples. More: the examples are dealt out to so many blocks
            and a row is of one block, which is named in the column "point".
    """
    values: dict[tuple[str, str, str, int], list[np.ndarray]] = {}
    costs: dict[tuple[str, str, str, int], Prediction] = {}
    names: list[str] = []
    for predictions in drawn:
        for each in predictions:
            metrics = metrics_of(each, targets)
            names = [*metrics]
            means = [[float(of[block::blocks].mean()) for block in range(blocks)] for of in metrics.values()]
            values.setdefault(each.key, []).append(np.array(means))
            costs[each.key] = replace(each, log_probs=torch.empty(0), networks=torch.empty(0))
    rows: dict[tuple[str, str, str], list[dict[str, object]]] = {}
    for key, of_draws in values.items():
        cost = costs[key]
        means = np.mean(of_draws, axis=0)
        generator = np.full((1, blocks), cost.generator_bits)
        for name, by_block in zip([*names, "generator_bits"], [*means, *generator], strict=True):
            for block, value in enumerate(by_block):
                rows.setdefault(key[:3], []).append(
                    {
                        "size": key[3],
                        "metric": name,
                        "value": float(value),
                        "memory_bits": cost.memory_bits,
                        "backward_passes": cost.backward_passes,
                        **({} if blocks == 1 else {"point": f"block {block} of {blocks}"}),
                    }
                )
    return rows


def known_point(solution: Point, validation: Sequence[Batch], test: Sequence[Batch]) -> Known:
    """Return what is known of a trained network as an ensemble of one."""
    ensemble = lpe.DeepEnsemble([solution.net], backward_passes=[solution.backward_passes])
    return known(ensemble, validation, test)
