"""The digits CLIPs in the store and in table 6."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lpe.errors import InputError
from lpe.substrates import captioned_digits
from lpe.substrates.clip import ZeroShotClassifier
from reproduce import table6, tune
from reproduce.command import opened
from reproduce.scales.digits import clips, sweep
from reproduce.scales.digits.clips import CLIPTraining
from reproduce.scales.digits.settings import DIGITS
from reproduce.study import measurements
from reproduce.study.measurements import measure
from reproduce.study.records import rows_of
from reproduce.study.scale import Point, Rivals, Scale, Substrate
from reproduce.study.session import TUNING_SEED, Session
from reproduce.study.units import LARGE, Unit, units


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Iterator[Session]:
    with opened("test", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        yield session


def clip(session: Session, size: str) -> Substrate:
    return session.scale.substrates[f"tiny CLIP-{size}"]


def clip_point(session: Session, seed: int, size: str) -> Point:
    return clip(session, size).point(session, "SGD", seed)


def test_a_clip_is_trained_once_and_is_the_same_from_the_store(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = clip_point(session, 0, "S")
    monkeypatch.setattr(clips, "train", lambda *_, **__: pytest.fail("trained twice"))
    again = clip_point(session, 0, "S")
    assert isinstance(again.net, ZeroShotClassifier) and not again.net.training
    for name, value in first.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name


@pytest.mark.parametrize("what", ["size", "shape", "seed", "recipe"])
def test_another_size_shape_seed_or_recipe_is_another_training(what: str, session: Session) -> None:
    small = clip(session, "S")
    small.point(session, "SGD", 0)
    recipe = small.points["SGD"]
    assert isinstance(recipe, CLIPTraining)
    other = {
        "size": clip(session, "L"),
        "shape": replace(small, source=clip(session, "L").source),
        "seed": small,
        "recipe": replace(small, points={"SGD": replace(recipe, weight_decay=0.3)}),
    }[what]
    other.point(session, "SGD", 1 if what == "seed" else 0)
    assert len(list(session.store.root.glob("*.safetensors"))) == 2


def test_a_clip_costs_its_own_training_and_no_pre_training(session: Session) -> None:
    recipe = clip(session, "S").points["SGD"]
    assert isinstance(recipe, CLIPTraining)
    steps = recipe.epochs * (len(captioned_digits.load(0).train[1]) // recipe.batch)
    assert clip_point(session, 0, "S").backward_passes == steps


def test_the_compared_clip_is_measured_with_its_rivals_and_the_others_without(session: Session) -> None:
    methods = {}
    for unit in units(session.scale.large["CLIP"], [LARGE], [0]):
        measure(session, unit)
        rows = rows_of(session, [unit])
        assert set(rows["substrate"]) == {unit.substrate} and set(rows["point"]) == {"SGD"}
        methods[unit.substrate] = set(rows["method"])
    common = {"FP32", "FP32 + temperature", "RTN", "LPE-BSR"}
    assert methods == {"tiny CLIP-S": common, "tiny CLIP-L": common | {"Gaussian", "MC-dropout"}}
    assert session.scale.compared == clip(session, "L")


def test_a_clip_s_rows_are_of_its_own_scans_in_colour(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wrong split, or labels out of step, would show in the single model's error.
    unit = Unit("tiny CLIP-S", LARGE, 0)
    measure(session, unit)
    rows = rows_of(session, [unit])
    found = rows[(rows["method"] == "FP32") & (rows["metric"] == "err")]["value"].item()
    images, labels = captioned_digits.load(0).test
    with torch.no_grad():
        decided = clip_point(session, 0, "S").net(images).argmax(-1)
    assert found == pytest.approx(float((decided != labels).double().mean()))


def test_noise_and_dropout_are_those_of_the_scale(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    gaussian, dropout = measurements.lpe.GaussianEnsemble, measurements.lpe.MCDropoutEnsemble

    def noisy(*given: Any, **further: Any) -> object:
        seen["std"] = further["std"]
        return gaussian(*given, **further)

    def masked(net: Any, rate: float, *given: Any, **further: Any) -> object:
        seen["rate"] = rate
        return dropout(net, rate, *given, **further)

    monkeypatch.setattr(measurements.lpe, "GaussianEnsemble", noisy)
    monkeypatch.setattr(measurements.lpe, "MCDropoutEnsemble", masked)
    changed = replace(clip(session, "L"), rivals=Rivals(stds=(0.003,), rates=(0.07,)))
    scale = replace(session.scale, large={"CLIP": (changed,)}, compared=changed)
    measure(replace(session, scale=scale), Unit(changed.name, LARGE, 0))
    assert seen == {"std": 0.003, "rate": 0.07}


def test_table_6_is_rendered_from_nothing_and_judges_c10_on_the_clip(
    tiny: Scale, figure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figure(table6, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed.count("C10 (tiny CLIP-L, ") == 2 * len(tiny.settings.bits) and "not run" not in printed
    provenance = json.loads((tmp_path / "out" / "table6.json").read_text())
    assert provenance["seeds"] == list(range(tiny.claim_seeds))
    shown = pd.read_csv(tmp_path / "out" / "table6.csv")
    # The tuned spread and std come last, at the seeds that have them.
    several = (2 + len(tiny.settings.bits)) * len({tiny.settings.claim_size, tiny.settings.size})
    assert len(shown) == 2 + several + 2
    assert list(shown["method"][-2:]) == ["LPE-BSR, INT-8 of tuned spread", "Gaussian, tuned as the spread"]


def test_the_sweep_tunes_the_clip_on_its_own_validation_scans(
    tiny: Scale, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--scale", "tiny", "--seeds", "1", "--out", str(tmp_path)]
    assert tune.main([*arguments, "--only", "CLIP-L Gaussian"]) == 0
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert list(table["setting"]) == [f"std {std}" for std in sweep.CLIP_STDS]
    with opened("test", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        images, labels = captioned_digits.load(TUNING_SEED).validation
        with torch.no_grad():
            logits = clip_point(session, TUNING_SEED, "L").net(images)
    expected = float(torch.nn.functional.cross_entropy(logits, labels))
    assert table["point_nll"].to_numpy() == pytest.approx(expected, rel=1e-6)


def test_the_digits_clips_grow_in_size() -> None:
    shapes = [each.source.shape for each in DIGITS.large["CLIP"]]
    nets = [captioned_digits.network(shape, 0) for shape in shapes]
    counts = [
        sum(value.numel() for name, value in net.named_parameters() if name.startswith("visual."))
        for net in nets
    ]
    assert all(3 * small < large for small, large in zip(counts, counts[1:], strict=False))


def test_a_sweep_of_an_unknown_method_names_those_of_the_clip(tiny: Scale, tmp_path: Path) -> None:
    with (
        opened("test", tiny, 1, tmp_path, "disabled", quiet=True) as session,
        pytest.raises(InputError, match="CLIP-L, CLIP-L Gaussian, CLIP-L MC-dropout"),
    ):
        tune.sweep(session, tmp_path / "sweep.csv", 1, ["CLIP"])
