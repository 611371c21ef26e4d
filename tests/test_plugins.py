"""Methods and number systems of other packages: found, used, and refused in a line that names the package."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import lpe
from lpe import cli, plugins
from lpe.cli.methods import made_by
from lpe.cli.options import EnsembleOptions
from lpe.cli.systems import systems
from lpe.errors import InputError
from lpe.provenance import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "plugin"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example package is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--no-index", "--target", "installed", "./source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "installed"


@pytest.fixture
def installed(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package is there."""
    monkeypatch.syspath_prepend(target)
    monkeypatch.delitem(sys.modules, "lpe_plugin_example", raising=False)


def package(folder: Path, name: str, points: str, code: str = "") -> None:
    """Make an installed package by hand: its metadata, entry points and one module."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(points)
    (folder / f"{name}.py").write_text(code)


@pytest.fixture
def net() -> nn.Module:
    """A small network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


# The example


@pytest.mark.usefixtures("installed")
def test_a_number_system_of_another_package_has_its_name_levels_and_scale_axis() -> None:
    system = lpe.number_system("ternary")
    assert (system.name, system.bits, system.levels) == ("ternary", 2, (-1.0, 0.0, 1.0))  # type: ignore[union-attr]
    blocks = lpe.number_system("Ternary", lpe.PerBlock(4))
    assert blocks.name == "ternary per block of 4 inputs" and lpe.number_system(blocks.name) == blocks


@pytest.mark.usefixtures("installed")
def test_a_pattern_may_name_it_beside_lpes_own() -> None:
    systems = lpe.number_system("*mlp*=ternary,*=int8")
    assert systems.name == "*mlp*=ternary,*=int8" and lpe.number_system(systems.name) == systems
    assert systems.first(["a.mlp.b"]) == ("*mlp*", lpe.number_system("ternary"))  # type: ignore[union-attr]
    with pytest.raises(InputError, match="the pattern '\\*' is in .* twice"):
        lpe.number_system("*=ternary,*=int8")


@pytest.mark.usefixtures("installed")
def test_names_that_there_are_not_are_answered_with_it_too() -> None:
    with pytest.raises(InputError, match="unknown number system 'int'; there are int2, .*, fp32, ternary$"):
        lpe.number_system("int")


@pytest.mark.usefixtures("installed")
def test_weights_are_rounded_to_it_as_to_a_codebook_of_its_levels() -> None:
    weight = torch.linspace(-1, 1, 60).view(6, 10)
    system, same = lpe.number_system("ternary"), lpe.Codebook([-1, 0, 1])
    rounded = lpe.round_weights(weight, system, seed=3, name="w")  # type: ignore[arg-type]
    assert torch.equal(rounded, lpe.round_weights(weight, same, seed=3, name="w"))


@pytest.mark.usefixtures("installed")
def test_a_file_of_it_is_read_where_the_package_is_not(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.number_system("ternary"), 2, seed=1)
    lpe.save(ensemble, tmp_path / "m.lpe")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    again = lpe.load(tmp_path / "m.lpe", net)
    x = torch.ones(2, 4)
    assert torch.equal(again[1](x), ensemble[1](x))


@pytest.mark.usefixtures("installed")
def test_lpe_systems_has_a_row_of_it_and_names_the_methods() -> None:
    lines = systems().splitlines()
    assert ["ternary", "2", "3", "1"] in [line.split()[:4] for line in lines]
    assert lines[-1] == "Methods of other packages: noisy-rounding."


@pytest.mark.usefixtures("installed")
def test_lpe_evaluate_has_its_method_and_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, pixels in enumerate(np.random.default_rng(0).integers(256, size=(4, 160, 160, 3))):
        place = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place)
    (tmp_path / "run.toml").write_text(
        'model = "timm/test_vit"\nmethod = "noisy-rounding"\nsystem = "ternary"\nsize = 2\n'
    )
    arguments = ["--random-weights", "--model-kwargs", "num_classes=2", "--workers", "0"]
    arguments += ["--config", str(tmp_path / "run.toml"), "--data", str(tmp_path / "images")]
    assert cli.main(["evaluate", *arguments, "--csv", str(tmp_path / "r.csv")]) == 0, capsys.readouterr().err
    rows = pd.read_csv(tmp_path / "r.csv")[["method", "number_system", "size"]].to_numpy().tolist()
    assert rows[-2:] == [["noisy-rounding", "ternary", 1], ["noisy-rounding", "ternary", 2]]


@pytest.mark.usefixtures("installed")
def test_a_members_weights_are_those_of_its_method(net: nn.Module) -> None:
    made = EnsembleOptions("noisy-rounding", "ternary", size=3).ensemble(net)
    assert len(made) == 3
    weight = made[2].get_parameter("0.weight")
    assert all(len(row.unique()) <= 3 for row in weight) and not torch.equal(
        weight, made[1].get_parameter("0.weight")
    )


@pytest.mark.usefixtures("installed")
def test_an_option_that_a_method_does_not_take_is_said(net: nn.Module) -> None:
    options = EnsembleOptions("noisy-rounding", "int4", size=2, include=["0.*"])
    with pytest.raises(
        InputError, match="'noisy-rounding' of the package lpe-plugin-example does not take"
    ) as e:
        options.ensemble(net)
    assert "include" in str(e.value)


def test_without_the_package_there_are_neither() -> None:
    with pytest.raises(InputError, match="unknown number system 'ternary'"):
        lpe.number_system("ternary")
    with pytest.raises(
        InputError, match="unknown method 'noisy-rounding'; there are lpe, gaussian, mc-dropout"
    ):
        EnsembleOptions("noisy-rounding").check()


# What is wrong


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are found in."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_package_that_raises_when_it_is_loaded_is_named(
    wrong: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = "[lpe.systems]\nbroken = broken_one:LEVELS\n[lpe.methods]\nfails = broken_one:make\n"
    package(wrong, "broken_one", points, 'raise RuntimeError("no licence\\nof it")\n')
    line = (
        "the package broken_one brings 'broken' (broken_one:LEVELS), which cannot be loaded: "
        "RuntimeError: no licence"
    )
    with pytest.raises(InputError) as error:
        lpe.number_system("broken")
    assert str(error.value) == line
    assert cli.main(["systems"]) == 0
    said = capsys.readouterr().out
    assert "int5" in said and said.splitlines()[-1] == f"not to be had: {line}"
    with pytest.raises(InputError, match=r"^the package broken_one brings 'fails' \(.*cannot be loaded"):
        EnsembleOptions("fails").check()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("LEVELS = (0.0,)", "has 2 to 256 levels, not 1"),
        ("LEVELS = 'abc'", "levels must be numbers, not 'abc'"),
        ("", "AttributeError: module 'odd' has no attribute 'LEVELS'"),
    ],
)
def test_levels_that_are_none_are_refused_with_the_package(wrong: Path, code: str, says: str) -> None:
    package(wrong, "odd", "[lpe.systems]\nodd = odd:LEVELS\n", code)
    sys.modules.pop("odd", None)
    with pytest.raises(InputError, match="^the package odd brings .*") as error:
        lpe.number_system("odd")
    assert says in str(error.value)


def test_two_packages_of_one_name_are_both_named(wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        package(wrong, name, f"[lpe.systems]\nposit = {name}:L\n[lpe.methods]\nrepeat = {name}:m\n")
    said = "'posit' is brought by the package one and by the package two; uninstall one, or have it renamed"
    with pytest.raises(InputError, match=said):
        lpe.number_system("posit")
    with pytest.raises(InputError, match="'repeat' is brought by the package one and by the package two"):
        EnsembleOptions("repeat").check()
    assert cli.main(["systems"]) == 0 and said in capsys.readouterr().out


def test_lpes_own_names_stay_its_own(wrong: Path) -> None:
    package(wrong, "thief", "[lpe.systems]\nint5 = thief:L\n[lpe.methods]\nlpe = thief:m\n")
    assert lpe.number_system("int5") == lpe.Int(5)
    EnsembleOptions("lpe").check()
    lines = [line for line in systems().splitlines() if line.startswith("not to be had")]
    assert lines == [
        f"not to be had: the package thief brings a {what}, which is lpe's own name; have it renamed"
        for what in ("system 'int5'", "method 'lpe'")
    ]


def test_a_name_of_other_characters_is_refused(wrong: Path) -> None:
    package(wrong, "shouts", "[lpe.systems]\nPOSIT,4 = shouts:L\n")
    assert plugins.names(plugins.SYSTEMS) == []
    assert "a name has small letters, digits, and _ . -" in systems()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("make = 3", "is 3; a function of (model, system, size, seed) is expected"),
        ("def make(model): ...", "does not take what it is given (too many positional arguments)"),
        ("def make(model, system, size, seed): return model", "made Sequential, and no lpe ensemble of 2"),
    ],
)
def test_a_method_that_is_none_is_refused_with_the_package(
    code: str, says: str, wrong: Path, net: nn.Module
) -> None:
    package(wrong, "strange", "[lpe.methods]\nstrange = strange:make\n", code)
    sys.modules.pop("strange", None)
    with pytest.raises(InputError, match="the method 'strange' of the package strange") as error:
        made_by("strange", net, lpe.Int(4), 2, 0)
    assert says in str(error.value)
