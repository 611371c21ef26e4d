"""A digits scale so reduced that a whole figure takes seconds: for tests of the machinery, not of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lpe.substrates.arithmetic import LlamaShape
from lpe.substrates.captioned_digits import DigitsCLIP
from lpe.substrates.digits import DigitsNetwork, Jitter
from reproduce.command import run_figure
from reproduce.scales import find
from reproduce.scales.digits.settings import SGD, VALUES, scale_of
from reproduce.study.scale import Landscape, Scale

TINY_VIT = DigitsNetwork(patch=4, width=8, depth=1, heads=2, mlp_ratio=1.0, position_std=1.0)
TINY_VALUES = replace(
    VALUES,
    name="tiny",
    seeds=2,
    claim_seeds=3,
    cost_seeds=2,
    network=TINY_VIT,
    networks={"T": TINY_VIT, "L": replace(TINY_VIT, width=16)},
    jitter=Jitter(copies=2, degrees=5.0, scaling=0.1, pixels=1.0),
    pre_training=replace(VALUES.pre_training, epochs=1, batch=200),
    sgd=replace(SGD, epochs=2, batch=100),
    swag=replace(VALUES.swag, sgd=replace(SGD, epochs=3, batch=100), start_epoch=1, rank=2),
    ivon=replace(VALUES.ivon, epochs=2, batch=100),
    snapshot=replace(VALUES.snapshot, cycles=2, epochs_per_cycle=1, batch=100),
    cyclical_sgld=replace(
        VALUES.cyclical_sgld,
        cycles=2,
        epochs_per_cycle=2,
        sampling_steps=10,
        samples_per_cycle=1,
        spacing=1,
        batch=100,
    ),
    batch_ensemble=replace(VALUES.batch_ensemble, members=2, epochs=1, batch=100),
    members=2,
    draws_per_posterior=2,
    llama=replace(VALUES.llama, epochs=1, batch=2000),
    llamas={size: LlamaShape(width, depth=1, heads=2, hidden=8) for size, width in (("S", 4), ("L", 8))},
    clip=replace(VALUES.clip, epochs=1, batch=100),
    clips={
        "S": DigitsCLIP(patch=4, width=8, depth=1, text_depth=1, heads=2, mlp_ratio=1.0),
        "L": DigitsCLIP(patch=4, width=16, depth=1, text_depth=1, heads=2, mlp_ratio=1.0),
    },
    settings=replace(
        VALUES.settings,
        size=3,
        table_sizes=(1, 3),
        draws=2,
        bits=(4, 3),
        best_bits=4,
        claim_size=3,
        expansion=2,
        table_bits=(6, 4, 3),
        axis_bits=(4,),
        number_systems=("int4", "fp4_e2m1", "nf4"),
        large_bits=4,
        large_size=3,
        landscape=Landscape(seed=0, resolution=3, margin=0.3, cloud=3, split="test", examples=None),
    ),
)
TINY = scale_of(TINY_VALUES)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scale:
    """The reduced scale under the name "tiny", with a store of the test's own."""
    monkeypatch.setitem(find.SCALES, "tiny", TINY)
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    return TINY


@pytest.fixture
def figure(tiny: Scale) -> Callable[..., int]:
    """(module, folder, further arguments…) → exit code of that figure at the reduced scale."""

    def run(module: object, folder: Path, *further: str) -> int:
        # What is only drawn anew logs nothing, and refuses to be told how.
        logging = [] if "--plot-only" in further else ["--wandb", "disabled"]
        arguments = ["--scale", "tiny", "--out", str(folder), *logging, *further]
        return run_figure(module.SCRIPT, arguments)  # type: ignore[attr-defined]

    return run
