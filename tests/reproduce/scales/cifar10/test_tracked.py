"""W&B gets of CIFAR-10's scales what it gets of digits': what figure 2 logs at each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import save_file

from lpe.provenance import plain_data
from lpe.substrates.cifar import CifarImages
from lpe.substrates.cifar_networks import ResNetShape, resnet_frn
from lpe.substrates.digits import DigitsNetwork
from reproduce import fig2
from reproduce.command import run_figure
from reproduce.scales import find
from reproduce.scales.cifar10 import images
from reproduce.scales.cifar10.images import GroupNormResNet
from reproduce.scales.cifar10.settings import cifar10
from reproduce.scales.cifar10.small import cifar10_small
from reproduce.scales.digits.settings import VALUES, scale_of
from reproduce.study.scale import Scale

FEW: Mapping[str, Any] = {"training": 20, "validation": 10, "tuning": 10, "test": 10, "planes": 5}
EPOCHS = 2
TRAINED = ("digits", "cifar10-small")
SCALES = (*TRAINED, "cifar10")


@dataclass
class Logged:
    """What reaches W&B, in place of it."""

    started: list[dict[str, Any]] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)

    def init(self, **arguments: Any) -> SimpleNamespace:
        self.started.append(arguments)
        return SimpleNamespace(log=self.log, log_artifact=lambda _: None, finish=self.finish)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        for name, value in values.items():
            if isinstance(value, pd.DataFrame):
                self.tables[name] = value
        self.values.append(values)

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)

    def artifact(self, name: str, type: str) -> SimpleNamespace:
        files = self.artifacts.setdefault(f"{type} {name}", [])
        return SimpleNamespace(add_file=lambda path: files.append(Path(path).name))

    def keys(self, end: str) -> set[str]:
        """Names of logged values that end so."""
        return {name for values in self.values for name in values if name.endswith(end)}


def stand_in(logged: Logged) -> ModuleType:
    """What stands in for the package wandb."""
    package = ModuleType("wandb")
    for name, value in {
        "Settings": lambda **_: None,
        "setup": lambda **_: None,
        "init": logged.init,
        "Table": lambda dataframe: dataframe,
        "Artifact": logged.artifact,
    }.items():
        setattr(package, name, value)
    return package


def with_few(scale: Scale, recipe: Any, **of_source: Any) -> Scale:
    """The scale with SGD's point alone: FP32, RTN and two LPE-BSR members."""
    assert scale.main is not None
    source = replace(scale.main.source, **of_source)
    main = replace(scale.main, points={"SGD": recipe}, families={}, rivals=None, source=source)
    settings = replace(
        scale.settings, size=2, table_sizes=(1, 2), claim_size=2, draws=1, bits=(4,), memory_models=1
    )
    return replace(scale, main=main, whole=None, sizes=(), settings=settings, device="cpu", prepare=None)


def small(options: Mapping[str, object]) -> Scale:
    """cifar10-small, a narrow network on 20 images."""
    scale = cifar10_small(options)
    assert scale.main is not None
    sgd: Any = scale.main.points["SGD"]
    shape = GroupNormResNet(ResNetShape(blocks=1, width=8), groups=8)
    return with_few(scale, replace(sgd, epochs=EPOCHS, batch=10), shape=shape, **FEW)


def given(options: Mapping[str, object]) -> Scale:
    """cifar10, a given network on 10 images."""
    scale = cifar10(options)
    assert scale.main is not None
    return with_few(scale, scale.main.points["SGD"], **FEW)


def digits() -> Scale:
    """Digits, a narrow network."""
    network = DigitsNetwork(patch=4, width=8, depth=1, heads=2, mlp_ratio=1.0, position_std=1.0)
    sgd = replace(VALUES.sgd, epochs=EPOCHS, batch=100)
    jitter = replace(VALUES.jitter, copies=2)
    pre_training = replace(VALUES.pre_training, epochs=1, batch=200)
    values = replace(VALUES, network=network, networks={}, jitter=jitter, pre_training=pre_training)
    return with_few(scale_of(values), sgd)


@dataclass(frozen=True)
class Run:
    """A run of figure 2: of which scale, what W&B got, and the folder of its results."""

    scale: Scale
    logged: Logged
    out: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, made_up: CifarImages) -> dict[str, Run]:
    """Figure 2 of the three scales, reduced, with W&B offline."""
    folder = tmp_path_factory.mktemp("tracked")
    metadata = {"updates": "19840", "batch": "256", "l2": "0.0001"}
    save_file(resnet_frn(seed=0).state_dict(), folder / "sgd-0.safetensors", metadata)
    found: dict[str, Run] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_images", lambda _: made_up)
        patch.setattr(images, "found", lambda: (made_up.name, made_up.sha256))
        patch.setattr(images.cifar, "described", lambda _: (made_up.name, made_up.sha256))
        images._data.cache_clear()
        for name, value in {"DATA": folder, "POINTS": folder, "STORE": folder / "work" / "store"}.items():
            patch.setenv(f"LPE_{name}", str(value))
        patch.setitem(find.SCALES, "digits", digits())
        patch.setitem(find.MADE, "cifar10-small", (small, ("data",)))
        patch.setitem(find.MADE, "cifar10", (given, ("data", "points", "images", "updates")))
        for name in SCALES:
            logged, out = Logged(), folder / name
            patch.setitem(sys.modules, "wandb", stand_in(logged))
            arguments = ["--scale", name, "--out", str(out), "--wandb", "offline", "--seeds", "1"]
            assert run_figure(fig2.SCRIPT, arguments, quiet=True) == 0
            found[name] = Run(find.scale(name), logged, out)
    images._data.cache_clear()
    return found


@pytest.mark.parametrize("name", SCALES)
def test_a_run_is_of_its_figure_and_scale_with_all_its_settings(name: str, runs: dict[str, Run]) -> None:
    (started,) = runs[name].logged.started
    assert (started["name"], started["mode"]) == (f"fig2-{name}", "offline")
    config = started["config"]
    assert config == plain_data({"scale": runs[name].scale.described(), "seeds": [0]}, "config")


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_logs_its_loss_after_each_epoch(name: str, runs: dict[str, Run]) -> None:
    curve = [values for values in runs[name].logged.values if "SGD/seed 0/loss" in values]
    assert len(curve) == EPOCHS
    assert all(isfinite(values["SGD/seed 0/loss"]) for values in curve)


def test_a_given_point_has_no_training_curve(runs: dict[str, Run]) -> None:
    assert not runs["cifar10"].logged.keys("/loss")


@pytest.mark.parametrize("name", SCALES)
def test_the_record_is_logged_as_a_table(name: str, runs: dict[str, Run]) -> None:
    table = runs[name].logged.tables["record"]
    record = pd.read_csv(runs[name].out / "fig2.csv", keep_default_na=False)
    assert len(table) == len(record) > 0
    assert list(table.columns) == list(record.columns)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("method", ["FP32/fp32", "RTN/int4", "LPE-BSR/int4"])
def test_each_metric_of_a_method_is_logged_against_its_size(
    name: str, method: str, runs: dict[str, Run]
) -> None:
    run = runs[name]
    sizes = [1, 2] if method.startswith("LPE") else [1]
    for metric in ("nll", "err", "ece", "ambiguity"):
        key = f"{run.scale.substrate}/SGD/{method}/{metric}"
        assert [values["size"] for values in run.logged.values if key in values] == sizes, key


@pytest.mark.parametrize("name", SCALES)
def test_record_settings_and_picture_are_an_artifact(name: str, runs: dict[str, Run]) -> None:
    files = runs[name].logged.artifacts[f"figure fig2-{name}"]
    assert files[:2] == ["fig2.csv", "fig2.json"]
    assert {Path(file).suffix for file in files[2:]} >= {".pdf", ".png"}


def test_cifar10s_scales_log_what_the_digits_log(runs: dict[str, Run]) -> None:
    """Names of values, but for the network's and the training's, and of tables, are the same."""

    def kinds(run: Run) -> set[str]:
        values = run.logged.keys("")
        return {name.replace(run.scale.substrate, "NETWORK") for name in values if "/seed 0/" not in name}

    assert kinds(runs["cifar10-small"]) == kinds(runs["cifar10"]) == kinds(runs["digits"])


@pytest.mark.parametrize("name", SCALES)
def test_a_run_ends_as_one_that_did_not_fail(name: str, runs: dict[str, Run]) -> None:
    assert runs[name].logged.finished == [0]
