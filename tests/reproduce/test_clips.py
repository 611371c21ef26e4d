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
from reproduce.scales.digits import clips
from reproduce.scales.digits.clips import clip_point
from reproduce.scales.digits.settings import DIGITS
from reproduce.study import measurements
from reproduce.study.measurements import measure
from reproduce.study.records import rows_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session, open_session
from reproduce.study.units import Unit, clip_units, units


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Iterator[Session]:
    with open_session("test", tiny, 1, tmp_path, "disabled", quiet=True) as opened:
        yield opened


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
    clip_point(session, 0, "S")
    seed, size = (1 if what == "seed" else 0), ("L" if what == "size" else "S")
    recipe = replace(session.scale.clip, weight_decay=0.3) if what == "recipe" else None
    if what == "shape":
        wider = {"S": session.scale.clips["L"]}
        session = replace(session, scale=replace(session.scale, clips=wider))
    clip_point(session, seed, size, recipe)
    assert len(list(session.store.root.glob("*.safetensors"))) == 2


def test_a_clip_costs_its_own_training_and_no_pre_training(session: Session) -> None:
    recipe = session.scale.clip
    steps = recipe.epochs * (len(captioned_digits.load(0).train[1]) // recipe.batch)
    assert clip_point(session, 0, "S").backward_passes == steps


def test_the_compared_clip_is_measured_with_its_rivals_and_the_others_without(session: Session) -> None:
    methods = {}
    for unit in units(clip_units(session.scale), [0]):
        measure(session, unit)
        rows = rows_of(session, [unit])
        assert set(rows["substrate"]) == {f"tiny {unit.what}"} and set(rows["point"]) == {"SGD"}
        methods[unit.what] = set(rows["method"])
    common = {"FP32", "FP32 + temperature", "RTN", "LPE-BSR"}
    assert methods == {"CLIP-S": common, "CLIP-L": common | {"Gaussian", "MC-dropout"}}
    assert session.scale.compared_clip == "tiny CLIP-L"


def test_a_clip_s_rows_are_of_its_own_scans_in_colour(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wrong split, or labels out of step, would show in the single model's error.
    measure(session, Unit("CLIP-S", 0))
    rows = rows_of(session, [Unit("CLIP-S", 0)])
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

    def masked(net: Any, rate: float, *given: Any) -> object:
        seen["rate"] = rate
        return dropout(net, rate, *given)

    monkeypatch.setattr(measurements.lpe, "GaussianEnsemble", noisy)
    monkeypatch.setattr(measurements.lpe, "MCDropoutEnsemble", masked)
    changed = replace(session.scale, clip_gaussian_std=0.003, clip_dropout_rate=0.07)
    measure(replace(session, scale=changed), Unit("CLIP-L", 0))
    assert seen == {"std": 0.003, "rate": 0.07}


def test_table_6_is_rendered_from_nothing_and_judges_c10_on_the_clip(
    tiny: Scale, figure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figure(table6, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed.count("C10 (tiny CLIP-L, ") == 2 * len(tiny.bits) and "not run" not in printed
    provenance = json.loads((tmp_path / "out" / "table6.json").read_text())
    assert provenance["seeds"] == list(range(tiny.claim_seeds))
    shown = pd.read_csv(tmp_path / "out" / "table6.csv")
    assert len(shown) == 2 + (2 + len(tiny.bits)) * len({tiny.claim_size, tiny.size})


def test_the_sweep_tunes_the_clip_on_its_own_validation_scans(
    tiny: Scale, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--scale", "tiny", "--seeds", "1", "--out", str(tmp_path)]
    assert tune.main([*arguments, "--only", "CLIP-L Gaussian"]) == 0
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert list(table["setting"]) == [f"std {std}" for std in tune.CLIP_STDS]
    with open_session("test", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        images, labels = captioned_digits.load(0).validation
        with torch.no_grad():
            logits = clip_point(session, 0, "L").net(images)
    expected = float(torch.nn.functional.cross_entropy(logits, labels))
    assert table["point_nll"].to_numpy() == pytest.approx(expected, rel=1e-6)


def test_the_digits_clips_grow_in_size() -> None:
    nets = [captioned_digits.network(shape, 0) for shape in DIGITS.clips.values()]
    counts = [
        sum(value.numel() for name, value in net.named_parameters() if name.startswith("visual."))
        for net in nets
    ]
    assert all(3 * small < large for small, large in zip(counts, counts[1:], strict=False))


def test_a_sweep_of_an_unknown_method_names_those_of_the_clip(tiny: Scale, tmp_path: Path) -> None:
    with (
        open_session("test", tiny, 1, tmp_path, "disabled", quiet=True) as session,
        pytest.raises(InputError, match="CLIP-L, CLIP-L Gaussian, CLIP-L MC-dropout"),
    ):
        tune.sweep(session, tmp_path / "sweep.csv", 1, ["CLIP"])
