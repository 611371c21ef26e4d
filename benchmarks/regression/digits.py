"""The digits' part of the regression: all methods at a reduced size, on the images that scikit-learn has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.regression.measuring import Part
from reproduce.scales.digits.settings import SGD, VALUES, VIT, scale_of
from reproduce.study.scale import Scale

_SGD = replace(SGD, epochs=8)
_VALUES = replace(
    VALUES,
    name="regression",
    network=replace(VIT, width=24),
    networks={},
    pre_training=replace(VALUES.pre_training, epochs=4),
    sgd=_SGD,
    swag=replace(VALUES.swag, sgd=_SGD, start_epoch=4, rank=4),
    ivon=replace(VALUES.ivon, epochs=8),
    snapshot=replace(VALUES.snapshot, cycles=2, epochs_per_cycle=5),
    cyclical_sgld=replace(
        VALUES.cyclical_sgld,
        cycles=2,
        epochs_per_cycle=5,
        sampling_steps=86,
        samples_per_cycle=2,
        spacing=43,
    ),
    batch_ensemble=replace(VALUES.batch_ensemble, members=2, epochs=8),
    members=2,
    draws_per_posterior=3,
    settings=replace(
        VALUES.settings,
        size=5,
        table_sizes=(1, 5),
        claim_size=5,
        draws=2,
        bits=(5, 3),
        best_bits=5,
        expansion=2,
    ),
    # Values far apart, and a pool of which all are chosen: a last digit chooses no other.
    beyond=replace(
        VALUES.beyond,
        size=5,
        seeds=3,
        spreads=(4.0, 32.0),
        stds=(0.003, 0.1),
        rates=(0.01, 0.3),
        pool=5,
        calibration=100,
    ),
)


@contextmanager
def opened() -> Iterator[Scale]:
    """Give the reduced scale."""
    yield scale_of(_VALUES)


def nudged(scale: Scale) -> Scale:
    """Return the scale with trainings that start a part in 10⁶ apart."""
    assert scale.main is not None
    source = scale.main.source
    shape = replace(source.shape, position_std=source.shape.position_std * (1 + 1e-6))
    return replace(scale, main=replace(scale.main, source=replace(source, shape=shape)))


PART = Part(scale="digits", seeds=(0, 1, 2), opened=opened, nudged=nudged, missing=lambda: "")
