"""A digits scale so reduced that a whole figure takes seconds: for tests of the machinery, not of numbers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lpe.hashes import HASHES, with_hashes
from lpe.records import COLUMNS
from lpe.substrates.arithmetic import LlamaShape
from lpe.substrates.captioned_digits import DigitsCLIP
from lpe.substrates.digits import DigitsNetwork, Jitter
from reproduce.command import run_figure
from reproduce.scales import find
from reproduce.scales.digits.settings import SGD, VALUES, scale_of
from reproduce.study.beyond import names
from reproduce.study.origins import provenance_of
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
    beyond=replace(
        VALUES.beyond,
        size=3,
        seeds=2,
        spreads=(4.0, 16.0),
        stds=(0.003, 0.03),
        rates=(0.01, 0.1),
        pool=4,
        calibration=20,
        sensitivity=1,
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


@pytest.fixture(scope="session")
def vouch() -> Callable[[Path], None]:
    """(folder) → its CSV files, as they are, are what the JSONs beside them have the hashes of."""

    def write(folder: Path) -> None:
        held: dict[Path, list[Path]] = {}
        for path in sorted(folder.glob("*.csv")):
            held.setdefault(provenance_of(path), []).append(path)
        for beside, files in held.items():
            said = json.loads(beside.read_text()) if beside.is_file() else {}
            said.pop(HASHES, None)
            here = [path for path in files if path.is_file()]
            beside.write_text(json.dumps(with_hashes(said, beside.name, here)))

    return write


KINDS, SEVERITIES, FOREIGN = ("blur", "grain"), (1, 3), ("digits", "noise alone")
COMPARED: dict[names.Method, tuple[int, float]] = {
    names.Method("SGD", "FP32", "fp32", ""): (1, 0.0),
    names.Method("SGD", "FP32 + temperature", "fp32", ""): (1, -0.06),
    names.Method("SGD", "RTN", "int4", "nearest"): (1, 0.03),
    names.Method("SGD", "RTN", "int4-mse", "nearest"): (1, 0.02),
    names.Method("SGD", "LPE-BSR", "int4", "bernoulli"): (4, -0.07),
    names.Method("SGD", "LPE-BSR", "int4", "coupled"): (4, -0.08),
    names.Method("SGD", "LPE-BSR, selected", "int4", "bernoulli"): (4, -0.09),
    names.Method("SGD", "LPE-BSR, tuned spread", "int8", "bernoulli"): (4, -0.1),
    names.Method("SGD", "Gaussian", "fp32", ""): (4, -0.09),
    names.Method("SGD", "Gaussian, selected", "fp32", ""): (4, -0.09),
    names.Method("SGD", "MC-dropout", "fp32", ""): (4, -0.03),
    names.Method("SGD", "Error feedback", "int4", "nearest"): (1, 0.01),
    names.Method("SGD", "Error feedback", "int4", "bernoulli"): (4, -0.07),
    names.Method("SGD", "Test-time augmentation", "fp32", ""): (4, -0.05),
    names.Method("SGD", "Last-layer Laplace", "fp32", ""): (4, -0.04),
    names.Method("SWAG", "BMA", "fp32", ""): (4, -0.06),
    names.Method("IVON", "BMA", "fp32", ""): (4, -0.05),
    names.Method("DE", "DE", "fp32", ""): (3, -0.17),
}
"""Methods of a made-up record: their members, and what they add to FP32's NLL of clean examples."""


@pytest.fixture(scope="session")
def compared_record() -> Callable[..., pd.DataFrame]:
    """(scale, seeds = 3, shifts = True) → rows of all methods of ``COMPARED``, with numbers that are made up.

    Whatever the seed, a method's NLL is FP32's and its gain; severity s multiplies the gain by 1 + s.
    """

    def made(scale: Scale, seeds: int = 3, shifts: bool = True) -> pd.DataFrame:
        draws = np.random.default_rng(0)
        rows: list[tuple[object, ...]] = []
        sets = {names.CLEAN: 0}
        if shifts:
            sets[names.UNCORRUPTED] = 0
            sets |= {names.corruption_name(kind, level): level for kind in KINDS for level in SEVERITIES}
        for seed, (method, (members, gain)) in itertools.product(range(seeds), COMPARED.items()):
            level = 0.5 + 0.05 * seed

            def add(examples: str, size: int, metric: str, value: float) -> None:
                named = (method.point, method.method, method.number_system, method.rounding)  # noqa: B023
                key = (scale.name, names.shown(scale.substrate, examples), *named, size, seed, metric)  # noqa: B023
                rows.append((*key, value, 1000 * size, 100))

            for examples, severity in sets.items():
                add(examples, members, "nll", level * (1 + severity / 5) + gain * (1 + severity))
                calibration = 0.1 + 0.05 * severity + gain
                add(examples, members, "ece", abs(calibration))
                add(examples, members, "signed_ece", calibration)
            clean = {"aurc": 0.1 + gain / 10, "cov_at_5_risk": 0.5 - gain, "risk_at_80_cov": 0.2 + gain}
            clean |= {"auroc_errors": 0.9, "disagreement": 0.1 * (members > 1)}
            for metric, value in clean.items():
                add(names.CLEAN, members, metric, value + 0.001 * draws.normal() * bool(gain))
            if method.method in ("LPE-BSR, tuned spread", "Gaussian"):
                add(names.CLEAN, members, "setting", [8.0, 11.3][seed % 2])
            for coverage in names.COVERAGES:
                add(names.CLEAN, members, names.risk_metric(coverage), (0.3 + gain) * coverage**2)
            for member in range(members if method.method != "FP32 + temperature" else 0):
                add(names.CLEAN, 1, names.member_metric("err", member), 0.3 + 0.01 * member + gain / 10)
                differs = 0.02 * (member + 1) * bool(gain)
                add(names.CLEAN, 1, names.member_metric("disagreement", member), differs)
            for aim, share in itertools.product(names.AIMS, names.SHARES) if members > 1 else ():
                value = 0.5 - gain * min(1.0, 4 * share) + 0.01 * (seed % 2) * share
                add(names.CLEAN, 2, names.cascade_metric(aim, aim, share), value)
                add(names.CLEAN, 2, names.cascade_metric("networks", aim, share), 1 + share)
            for name in FOREIGN if shifts else ():
                add(name, members, names.AUROC_PROBABILITY, 0.8 - gain)
                if members > 1:
                    add(name, members, names.AUROC_INFORMATION, 0.7 - gain)
        return pd.DataFrame(rows, columns=list(COLUMNS))

    return made
