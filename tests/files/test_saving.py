"""What cannot be saved is refused before anything is written; what training cost is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lpe
from lpe.ensembles.base import Ensemble


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3)).eval()


def rounded(seed: int = 0, size: int = 3) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(model(seed), lpe.Int(4), size)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a model": (model, "not the model Sequential; lpe.DeepEnsemble([model]) is one of it alone"),
    "a member": (lambda: rounded()[0], "not the model Sequential"),
    "all members as a module": (lambda: rounded().as_module(), "not the model AllMembers"),
    "a cascade": (
        lambda: lpe.Cascade(rounded(), window=(0.0, 0.9)),
        "not a Cascade, which holds no weights of its own; save the ensemble that it is made of",
    ),
    "a list of models": (lambda: [model()], "not a list; lpe.DeepEnsemble makes an ensemble of models"),
    "a tuple of ensembles": (lambda: (rounded(),), "lpe.Mixture.of one of ensembles"),
    "a state dict": (lambda: model().state_dict(), "save takes an ensemble such as"),
    "a tensor": (lambda: torch.ones(3), "not tensor([1., 1., 1.])"),
    "a number system": (lambda: lpe.Int(4), "not Int(bits=4"),
    "text": (lambda: "ensemble", "not 'ensemble'"),
    "nothing": (lambda: None, "not None"),
}


@pytest.mark.parametrize(("given", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_ensemble_is_refused_in_a_line_and_nothing_is_written(
    tmp_path: Path, given: Callable[[], Any], told: str
) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.save(given(), tmp_path / "e")
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"path": None}, "path must be a file's path, not None"),
        ({"path": 5}, "path must be a file's path, not 5"),
        ({"path": "no/such/folder/e"}, "cannot write no/such/folder/e"),
        ({"path": "a\0b"}, "cannot write a\0b"),
        ({"kind": 5}, "kind must be one of members, seeded, planes, not 5"),
        ({"kind": ["members"]}, "kind must be one of members, seeded, planes, not ['members']"),
        ({"base": 8, "kind": "seeded"}, "base must be one of int8, bf16, fp32, not 8"),
    ],
)
def test_saves_other_arguments_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(lpe.InputError) as caught:
        lpe.save(**{"ensemble": rounded(), "path": "e", **given})
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"path": None}, "path must be a file's path, not None"),
        ({"path": "a\0b"}, "there is no file a\0b"),
        ({"path": "."}, "is no file"),
        ({"model": "resnet"}, "model must be a torch.nn.Module of the file's architecture, not 'resnet'"),
        ({"model": [1]}, "model must be a torch.nn.Module"),
        ({"size": "3"}, "size must be a positive integer, not '3'"),
        ({"base": 8}, "base must be 'any'"),
    ],
)
def test_loads_other_arguments_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lpe.save(rounded(), "e")
    with pytest.raises(lpe.InputError) as caught:
        lpe.load(**{"path": "e", "model": model(1), **given})
    assert told in str(caught.value) and "\n" not in str(caught.value)


def kept(ensemble: Ensemble, path: Path, kind: str = "members", size: int | None = None) -> Ensemble:
    lpe.save(ensemble, path, kind)
    return lpe.load(path, model(9), size)


def costs(ensemble: Ensemble) -> list[int | None]:
    return [ensemble.backward_passes(n) for n in range(1, len(ensemble) + 1)]


def deep() -> lpe.DeepEnsemble:
    return lpe.DeepEnsemble([model(seed) for seed in range(3)])


ENSEMBLES: dict[str, Callable[[], Ensemble]] = {
    "low precision": rounded,
    "deep": deep,
    "gaussian": lambda: lpe.GaussianEnsemble(model(), lpe.Int(4), 3),
    "mc dropout": lambda: lpe.MCDropoutEnsemble(model(), 0.1, 3),
    "batch": lambda: lpe.BatchEnsemble(model(), 3),
    "union": lambda: lpe.Mixture.of([rounded(), deep()]),
}


@pytest.mark.parametrize("budget", [None, 0, 70, np.int64(70), "each"], ids=str)
@pytest.mark.parametrize("made", ENSEMBLES.values(), ids=ENSEMBLES)
def test_what_training_cost_is_read_back(tmp_path: Path, made: Callable[[], Ensemble], budget: Any) -> None:
    ensemble = made()
    ensemble.training_budget = [10 * n for n in range(1, len(ensemble) + 1)] if budget == "each" else budget
    read = kept(ensemble, tmp_path / "e")
    assert costs(read) == costs(ensemble)
    assert kept(read, tmp_path / "again").training_budget == read.training_budget


@pytest.mark.parametrize("kind", ["members", "seeded"])
def test_a_mixtures_cost_is_its_bases(tmp_path: Path, kind: str) -> None:
    base = deep()
    base.training_budget = [10, 20, 30]
    made = lpe.Mixture(
        base, lambda net, first: lpe.LowPrecisionEnsemble(net, lpe.Int(4), 2, first_member=first)
    )
    assert costs(kept(made, tmp_path / "e", kind)) == [10, 10, 20, 20, 30, 30]
    assert costs(kept(made, tmp_path / "e", kind, size=3)) == [10, 10, 20]


def test_parts_costs_are_added(tmp_path: Path) -> None:
    first, second = rounded(), deep()
    first.training_budget, second.training_budget = 5, [10, 20, 30]
    assert costs(kept(lpe.Mixture.of([first, second]), tmp_path / "e")) == [5, 5, 5, 15, 25, 35]


def test_of_further_members_that_a_seeded_file_gives_a_cost_is_known_where_it_is_one(tmp_path: Path) -> None:
    made = rounded(size=2)
    made.training_budget = 70
    assert costs(kept(made, tmp_path / "e", "seeded", size=4)) == [70] * 4
    made.training_budget = [70, 90]
    assert costs(kept(made, tmp_path / "e", "seeded", size=4)) == [None] * 4


def test_without_a_known_cost_a_file_says_nothing_of_it(tmp_path: Path) -> None:
    lpe.save(rounded(), tmp_path / "e")
    assert b"training_budget" not in (tmp_path / "e").read_bytes()


@pytest.mark.parametrize(
    "budget",
    ["70", [10, 20], [10, "x", 30], 1.5, {"a": 1}, -1, object()],
    ids=lambda budget: type(budget).__name__ + str(budget)[:8],
)
def test_a_cost_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path, budget: Any) -> None:
    ensemble = rounded()
    ensemble.training_budget = budget
    with pytest.raises(lpe.InputError) as caught:
        lpe.save(ensemble, tmp_path / "e")
    assert "training_budget must be" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
