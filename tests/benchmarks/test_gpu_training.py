"""The GPU's training benchmark: what it trains, saves and writes, on tiny networks and random images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import lpe
from benchmarks import gpu_training as bench
from lpe.ensembles.swag import SWAGStatistics
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import ResNetShape, resnet_frn
from lpe.substrates.loading import load_state
from lpe.training.resident import predictions
from reproduce.scales.cifar10.recipes import Protocol
from reproduce.scales.cifar10.training import fast_gradient

PROTOCOL = Protocol(shape=ResNetShape(1, 8, 2), updates=32, batch=4, examples=8, warm_up=0.02)
RECIPES = {
    name: replace(recipe, swag_rank=2, members=min(recipe.members, 2), kept_every=1)
    for name, recipe in bench.RECIPES.items()
}
GROUPS = (
    (("sgd", 0), ("sgd", 1)),
    (("ivon", 0),),
    (("swag", 0), ("sse", 0), ("csgld", 1)),
    (("be", 0),),
    (("adamw", 0), ("adamwnoaug", 1)),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bench.Bench, Path]]:
    """All kinds of trainings, on images of noise."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(256, (60, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (60,), generator=generator)
    images = cifar.CifarImages("noise", "0", train, labels, train[:20], labels[:20])
    folder = tmp_path_factory.mktemp("gpu-training")
    device = torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "split_indices", lambda seed: (torch.arange(40), torch.arange(40, 60)))
        gradient, dtype = fast_gradient(PROTOCOL, device)
        made = bench.Bench(images, PROTOCOL, device, gradient, dtype, folder, RECIPES)
        for group in GROUPS:
            made.run(group)
        made.deep_ensembles()
        bench._write(made, folder, 0.0)
        yield made, folder


def test_every_point_has_its_rows(recorded: tuple[bench.Bench, Path]) -> None:
    table = pd.read_csv(recorded[1] / "gpu_training.csv")
    rows = {(row.point, row.what): row.networks for row in table.itertuples()}
    assert rows == {
        ("sgd-0", "last"): 1,
        ("sgd-1", "last"): 1,
        ("ivon-0", "mean"): 1,
        ("swag-0", "mean"): 1,
        ("swag-0", "last"): 1,
        ("sse-0", "last"): 1,
        ("sse-0", "all kept"): 4,
        ("csgld-1", "last"): 1,
        ("csgld-1", "all kept"): 12,
        ("be-0", "first member"): 1,
        ("be-0", "all members"): 2,
        ("adamw-0", "last"): 1,
        ("adamwnoaug-1", "last"): 1,
        ("sgd, 2 seeds", "ensemble"): 2,
    }
    assert table["test_nll"].notna().all() and (table["updates"] == 32).all()


def test_the_provenance_has_every_recipe_and_group(recorded: tuple[bench.Bench, Path]) -> None:
    told = json.loads((recorded[1] / "gpu_training.json").read_text())["config"]
    assert told["data"] == "noise" and told["recipes"].keys() == RECIPES.keys()
    assert [each["group"] for each in told["groups"]][0] == "sgd-0 sgd-1"


def measured_again(made: bench.Bench, net: torch.nn.Module) -> float:
    """The test NLL of a network."""
    return made.test.scores(predictions(net.eval(), made.test.images))[0]


def row_of(made: bench.Bench, point: str, what: str) -> float:
    (nll,) = [r["test_nll"] for r in made.rows if (r["point"], r["what"]) == (point, what)]
    assert isinstance(nll, float)
    return nll


def test_a_saved_network_loads_and_scores_as_recorded(recorded: tuple[bench.Bench, Path]) -> None:
    made, folder = recorded
    net = resnet_frn(PROTOCOL.shape)
    load_state(net, load_file(folder / "sgd-1.safetensors"), "sgd-1")
    assert measured_again(made, net) == pytest.approx(row_of(made, "sgd-1", "last"), abs=1e-6)


def test_saved_ivon_is_a_mean_and_a_positive_std(recorded: tuple[bench.Bench, Path]) -> None:
    made, folder = recorded
    held = load_file(folder / "ivon-0.safetensors")
    net = resnet_frn(PROTOCOL.shape)
    mean = {name[5:]: value for name, value in held.items() if name.startswith("mean/")}
    load_state(net, mean, "ivon-0")
    assert measured_again(made, net) == pytest.approx(row_of(made, "ivon-0", "mean"), abs=1e-6)
    std = {name[4:]: value for name, value in held.items() if name.startswith("std/")}
    assert std.keys() == mean.keys() and all((value > 0).all() for value in std.values())


def test_saved_swag_is_the_statistics_of_an_ensemble(recorded: tuple[bench.Bench, Path]) -> None:
    made, folder = recorded
    held = load_file(folder / "swag-0.safetensors")
    statistics = SWAGStatistics.from_tensors({name: value.float() for name, value in held.items()})
    ensemble = lpe.SWAGEnsemble(resnet_frn(PROTOCOL.shape), statistics, 2)
    assert measured_again(made, ensemble.point()) == pytest.approx(row_of(made, "swag-0", "mean"), abs=1e-6)


@pytest.mark.parametrize(("point", "count"), [("sse-0", 4), ("csgld-1", 12)])
def test_saved_cycles_are_numbered_networks(
    recorded: tuple[bench.Bench, Path], point: str, count: int
) -> None:
    held = load_file(recorded[1] / f"{point}.safetensors")
    assert {int(name.partition("/")[0]) for name in held} == set(range(count))


def test_a_saved_batch_ensemble_loads_and_scores_as_recorded(recorded: tuple[bench.Bench, Path]) -> None:
    made, folder = recorded
    ensemble = lpe.BatchEnsemble(resnet_frn(PROTOCOL.shape), 2, seed=9)
    ensemble.module.load_state_dict(load_file(folder / "be-0.safetensors"))
    batches = [(made.test.images, made.test.labels)]
    found = lpe.evaluate(ensemble, batches).set_index("size")["nll"]
    assert found[2] == pytest.approx(row_of(made, "be-0", "all members"), abs=1e-5)


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--points", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_too_few_updates_for_the_cycles_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench.main(["--points", str(tmp_path), "--updates", "639"]) == 2
    assert "--updates 639" in capsys.readouterr().err
