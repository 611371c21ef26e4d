"""Which units and trainings have new keys after an edit of the code, an upgrade, or a change of a setting."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.provenance import REPOSITORY, provenance
from lpe.store import Store
from reproduce.__main__ import FIGURES
from reproduce.command import opened, seedless
from reproduce.rendering import script_of
from reproduce.scales import own
from reproduce.scales.digits.settings import DIGITS, VALUES, scale_of
from reproduce.study import keys, measurements, points, scale
from reproduce.study.closure import APART, DEFINED_BY, PACKAGES, Project
from reproduce.study.keys import versions
from reproduce.study.measurements import key_of, measure
from reproduce.study.points import config_of
from reproduce.study.scale import Classification, Data, Scale, Substrate, digest_of
from reproduce.study.subjects import Subject
from reproduce.study.units import Unit

MAIN = DIGITS.substrate
TOY = Path(__file__).parents[1] / "scales" / "toy.py"


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """(module, old text, new text) → keys are of the code with this edit from now on."""

    def edited(module: str, old: str, new: str) -> None:
        project = Project(REPOSITORY, PACKAGES, DEFINED_BY, APART)
        path, source = project._files[module]
        assert source.count(old.encode()) == 1
        project._files[module] = path, source.replace(old.encode(), new.encode())
        monkeypatch.setattr(keys, "project", lambda: project)

    return edited


def unit_keys(scale: Scale = DIGITS) -> dict[str, str]:
    """Return the keys of all units of one training seed, by what and where they measure."""
    session = seedless(scale)
    units = dict.fromkeys(unit for figure in FIGURES for unit in script_of(figure).wanted(session))
    return {f"{unit.substrate}: {unit.what}": key_of(session, unit) for unit in units}


def training_keys(scale: Scale = DIGITS) -> dict[str, str]:
    """Return the keys of the main substrate's trainings at one seed, by recipe."""
    main = scale.main
    assert main is not None
    session = seedless(scale)
    recipes = {**main.points, **{name: main.families[name] for name in EDITS}, "start": main.start}
    return {
        name: Store.key(config_of(session, main, name, 0, recipe, None)) for name, recipe in recipes.items()
    }


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


OF_IVON = {f"{MAIN}: {what}" for what in ("IVON", "MultiIVON", "predictions", "why")}
EDITS = {
    "SSE": ("SnapshotTraining", {f"{MAIN}: SSE", f"{MAIN}: disagreement"}),
    "CSGLD": ("CyclicalSGLDTraining", {f"{MAIN}: CSGLD"}),
    "BE": ("BatchEnsembleTraining", {f"{MAIN}: BE"}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_a_familys_training_makes_new_keys_for_it_and_no_other(
    edit: Callable[[str, str, str], None], name: str
) -> None:
    trainings, units = training_keys(), unit_keys()
    recipe, measured = EDITS[name]
    edit("reproduce.study.families", f"class {recipe}:\n", f"class {recipe}:\n    edited = True\n")
    assert changed(trainings, training_keys()) == {name}
    assert changed(units, unit_keys()) == measured


def test_an_edit_of_how_predictions_are_scored_measures_all_anew_and_trains_nothing(
    edit: Callable[[str, str, str], None],
) -> None:
    trainings, units = training_keys(), unit_keys()
    edit("lpe.evaluation.metrics", "def fit_temperature(", "@staticmethod\ndef fit_temperature(")
    assert changed(trainings, training_keys()) == set()
    assert changed(units, unit_keys()) == units.keys()


@pytest.mark.parametrize("module", ["reproduce.study.sweeps", "reproduce.scales.digits.sweep"])
def test_an_edit_of_a_sweep_makes_no_new_keys(edit: Callable[[str, str, str], None], module: str) -> None:
    trainings, units = training_keys(), unit_keys()
    edit(module, "from typing import Any\n", "from typing import Any\n\nprint('edited')\n")
    assert changed(trainings, training_keys()) == changed(units, unit_keys()) == set()


def test_an_upgrade_of_timm_makes_new_keys_for_all_that_is_built_on_it(
    upgrade: Callable[[str], None],
) -> None:
    trainings, units = training_keys(), unit_keys()
    upgrade("timm")
    assert changed(trainings, training_keys()) == trainings.keys()
    assert changed(units, unit_keys()) == {name for name in units if " ViT" in name}


def test_an_upgrade_of_ivon_makes_new_keys_for_ivon_alone(upgrade: Callable[[str], None]) -> None:
    trainings, units = training_keys(), unit_keys()
    upgrade("ivon-opt")
    assert changed(trainings, training_keys()) == {"IVON"}
    assert changed(units, unit_keys()) == OF_IVON


def test_after_an_upgrade_the_provenance_names_the_version_that_keys_hold(
    upgrade: Callable[[str], None],
) -> None:
    upgrade("timm")
    said = provenance(["figure.py"], {}, "cpu", [0], 1, 0.0)["packages"]
    held = versions("lpe.substrates.digits:network")
    assert {name: said[name] for name in ("timm", "torch", "numpy")} == {
        name: held[name] for name in ("timm", "torch", "numpy")
    }
    assert held["timm"] == "99.0"


def test_a_change_of_a_recipe_makes_new_keys_for_what_is_measured_on_it() -> None:
    recipe = replace(VALUES.ivon, learning_rate=0.3)
    after = unit_keys(scale_of(replace(VALUES, ivon=recipe)))
    assert changed(unit_keys(), after) == OF_IVON


def test_what_a_substrate_is_called_in_published_tables_is_in_no_key() -> None:
    subject = Subject("ViT-T", "ImageNet", "ImageNet", None, None, None, "")

    def named(substrate: Substrate) -> Substrate:
        return replace(substrate, subject=subject)

    assert DIGITS.main is not None
    renamed = replace(
        DIGITS,
        main=named(DIGITS.main),
        sizes=tuple(map(named, DIGITS.sizes)),
        large={kind: tuple(map(named, models)) for kind, models in DIGITS.large.items()},
    )
    assert {each.subject for each in renamed.substrates.values()} == {subject}
    assert unit_keys(renamed) == unit_keys()
    assert training_keys(renamed) == training_keys()


@pytest.mark.parametrize(
    ("module", "text"),
    [("reproduce.study.scale", "class Substrate:\n"), ("reproduce.study.subjects", "class Subject:\n")],
)
def test_an_edit_of_what_a_substrate_is_makes_no_new_keys(
    edit: Callable[[str, str, str], None], module: str, text: str
) -> None:
    trainings, units = training_keys(), unit_keys()
    edit(module, text, f"{text}    edited = True\n")
    assert changed(trainings, training_keys()) == changed(units, unit_keys()) == set()


def test_the_folder_of_a_scales_file_is_in_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        found.append(unit_keys(own.load(shutil.copy(TOY, tmp_path / name))))
    assert found[0] == found[1]


@dataclass(frozen=True)
class _Width:
    channels: int


def test_the_class_of_what_a_source_holds_is_in_the_keys_of_rows_and_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    scale = own.load(shutil.copy(TOY, tmp_path))
    assert scale.main is not None
    source = replace(scale.main.source, width=_Width(4))
    monkeypatch.setattr(type(source), "digest", lambda source, seed: "the same", raising=False)
    main = replace(scale.main, source=source)
    session = seedless(replace(scale, main=main))
    asked: list[set[object]] = []

    def asking(*roots: object, **_: object) -> dict[str, object]:
        asked.append({*roots})
        return {}

    monkeypatch.setattr(measurements, "determinants", asking)
    monkeypatch.setattr(points, "determinants", asking)
    key_of(session, Unit(main.name, "SGD", 0))
    config_of(session, main, "SGD", 0, main.points["SGD"], None)
    assert [_Width in roots for roots in asked] == [True, True]


def test_more_training_seeds_leave_the_keys_of_those_that_are_there() -> None:
    assert unit_keys(replace(DIGITS, seeds=DIGITS.seeds + 1)) == unit_keys()


@pytest.mark.parametrize("change", [{"threads": 7}, {"device": "meta"}])
def test_another_machine_makes_new_keys(change: dict[str, Any]) -> None:
    session, unit = seedless(DIGITS), Unit(MAIN, "SGD", 0)
    assert key_of(replace(session, **change), unit) != key_of(session, unit)


def test_a_unit_that_was_measured_on_what_its_key_does_not_hold_is_refused(
    tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "trained_for", lambda scale, unit: [])
    with opened("all", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        with pytest.raises(InputError, match="SGDTraining of tiny ViT"):
            measure(session, Unit(tiny.substrate, "SGD", 0))


def test_a_unit_that_is_finished_is_not_measured_again(
    tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = Unit(tiny.substrate, "SGD", 0)
    with opened("all", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        measure(session, unit)
        monkeypatch.setattr(session.store, "get", lambda config: pytest.fail("weights were taken"))
        measure(session, unit)


def test_how_a_given_model_sees_its_data_is_kept_with_its_rows(tmp_path: Path) -> None:
    unit = Unit(MAIN, "large", 0)
    one = replace(seedless(DIGITS), records={unit: tmp_path / "one.csv"})
    other = replace(seedless(DIGITS), records={unit: tmp_path / "other.csv"})
    one.describe(unit, {"crop": 0.9})
    assert one.descriptions() == {MAIN: {"crop": 0.9}}
    assert other.descriptions() == {}


@pytest.mark.parametrize("damage", ["", "{", "[" * 100_000, "\udcff"])
def test_a_damaged_description_is_named(tmp_path: Path, damage: str) -> None:
    unit = Unit(MAIN, "large", 0)
    session = replace(seedless(DIGITS), records={unit: tmp_path / "one.csv"})
    session.describe(unit, {"crop": 0.9})
    (tmp_path / "one.model.json").write_bytes(damage.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"one.model.json is damaged; remove it and one.csv beside it"):
        session.descriptions()


@dataclass(frozen=True)
class Loads:
    """A source without a digest whose data is given."""

    data: Data = field(compare=False, hash=False)

    def load(self, seed: int) -> Data:
        return self.data


def _loaded(**changed: object) -> Data:
    def batches(first: float) -> list[tuple[Tensor, Tensor]]:
        return [(torch.full((2, 3), first), torch.tensor([0, 1]))]

    data = Data(
        scored=Classification(batches(1.0), batches(2.0)),
        tuning=Classification(batches(3.0), batches(2.0)),
        train=(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])),
        validation=batches(2.0),
        test=batches(1.0),
        statistics=None,
        images=None,
    )
    return replace(data, **changed)  # type: ignore[arg-type]


OTHER = [(torch.full((2, 3), 9.0), torch.tensor([0, 1]))]


@pytest.mark.parametrize(
    "changed",
    [
        {"tuning": Classification(OTHER, OTHER)},
        {"scored": Classification(OTHER, OTHER)},
        {"validation": OTHER},
        {"test": OTHER},
        {"train": (torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))},
        {"statistics": OTHER},
        {"planes": OTHER},
        {"images": torch.tensor([5, 6])},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_source_that_hashes_nothing_is_hashed_by_all_that_it_loads(
    changed: dict[str, object],
) -> None:
    scale._digest_of_loaded.cache_clear()  # of dataclasses that compare equal
    first = digest_of(Loads(_loaded()), 0)
    scale._digest_of_loaded.cache_clear()
    assert digest_of(Loads(_loaded()), 0) == first
    scale._digest_of_loaded.cache_clear()
    assert digest_of(Loads(_loaded(**changed)), 0) != first


def test_examples_that_have_no_hash_ask_for_a_digest() -> None:
    loader = iter(OTHER)
    scale._digest_of_loaded.cache_clear()
    with pytest.raises(InputError, match=r"Loads: data of type list_iterator has no hash.*digest\(seed\)"):
        digest_of(Loads(_loaded(tuning=Classification(loader, OTHER))), 0)
