"""The GPU's training benchmark: what it trains, saves and writes, on tiny networks and random images."""

from __future__ import annotations

import json
import math
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
from lpe.training.sgld import variance_share

PROTOCOL = bench.Protocol(shape=ResNetShape(1, 4, 2), updates=32, batch=4, examples=8)
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
        gradient, dtype = bench.fast_gradient(PROTOCOL, device)
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


def test_sgd_is_warmed_up_and_ends_at_0() -> None:
    protocol = bench.Protocol(updates=1000)
    rate = bench.learning_rate(bench.RECIPES["sgd"], protocol)
    assert [rate(0), rate(19)] == pytest.approx([0.005, 0.1]) and rate(999) < 1e-6


def test_swag_falls_to_its_constant_rate_and_stays() -> None:
    rate = bench.learning_rate(bench.RECIPES["swag"], bench.Protocol(updates=1000))
    assert rate(20) == pytest.approx(0.1)
    assert [rate(599), rate(600), rate(999)] == pytest.approx([0.02] * 3, rel=1e-3)


def test_a_batch_ensembles_fast_weights_start_as_wide_as_its_recipe_says() -> None:
    for std in (0.5, 1.0):
        recipe = replace(bench.RECIPES["be"], fast_std=std)
        tensors = bench.layout_of(recipe, bench.Protocol()).views(bench.start(recipe, bench.Protocol(), 0))
        fast = torch.cat([value.flatten() for name, value in tensors.items() if name.endswith("batch_r")])
        # The standard error of a standard deviation of n draws is σ/√(2n); five of them.
        assert abs(float(fast.std()) / std - 1) < 5 / math.sqrt(2 * fast.numel())


def test_batch_ensembles_side_by_side_have_their_own_rates_of_fast_weights() -> None:
    device = torch.device("cpu")
    recipes = {name: replace(RECIPES["be"], fast_lr=lr) for name, lr in (("0", 0.0), ("1", 0.1))}
    weights = torch.stack([bench.start(recipe, PROTOCOL, 0) for recipe in recipes.values()])
    before = weights.clone()
    layout = bench.layout_of(recipes["0"], PROTOCOL)
    rule = bench._rule(list(recipes.values()), PROTOCOL, weights, layout, torch.Generator(device))
    rule.update(weights, torch.ones_like(weights), torch.tensor([5]))
    changed = [layout.views(row) for row in (weights - before)]
    assert not changed[0]["network.conv1.batch_r"].any() and changed[1]["network.conv1.batch_r"].all()
    assert torch.equal(changed[0]["network.conv1.weight"], changed[1]["network.conv1.weight"])


def test_ivon_forgets_h0_and_csgld_reaches_the_posteriors_spread() -> None:
    """What a posterior must be before anything is compared with it, as far as its recipe can say."""
    ivon, csgld = bench.RECIPES["ivon"], bench.RECIPES["csgld"]
    assert bench.UPDATES * (1 - ivon.beta2) >= 5
    protocol = bench.Protocol()
    rate, std = bench.learning_rate(csgld, protocol), bench.noise(csgld, protocol)
    cycle = range(protocol.updates // csgld.cycles)
    shares = [variance_share([rate(s) for s in cycle if std(s)], each) for each in (0.01, 0.1, 1.0)]
    assert all(0.9 < share < 1.1 for share in shares)


CYCLES = replace(bench.SGD, lr=0.4, momentum=0.0, final=1e-3, cycles=4)


def test_cycles_begin_at_the_peak_again_and_only_the_first_is_warmed_up() -> None:
    rate = bench.learning_rate(CYCLES, bench.Protocol(updates=1000))
    assert rate(0) == pytest.approx(0.4 / 20)
    assert [rate(250), rate(500), rate(750)] == pytest.approx([0.4] * 3)
    assert rate(249) == pytest.approx(4e-4, rel=0.1)


def test_cycles_that_are_warmed_up_begin_below_the_peak_each() -> None:
    rate = bench.learning_rate(replace(CYCLES, warm_cycles=True), bench.Protocol(updates=1000))
    assert [rate(0), rate(250), rate(750)] == pytest.approx([0.4 / 20] * 3)
    assert rate(269) == pytest.approx(0.4, rel=0.02)


def test_the_rate_of_the_sampling_stage_is_constant() -> None:
    rate = bench.learning_rate(replace(CYCLES, noise=0.2), bench.Protocol(updates=1000))
    assert [rate(200), rate(249), rate(999)] == pytest.approx([4e-4] * 3)
    assert rate(199) == pytest.approx(4e-4, rel=0.1) and rate(100) == pytest.approx(0.2, rel=0.01)


def test_langevin_noise_is_drawn_in_the_last_share_of_a_cycle() -> None:
    noise = bench.noise(replace(CYCLES, noise=0.2), bench.Protocol(updates=1000))
    assert [noise(0), noise(199), noise(250)] == [0, 0, 0]
    assert [noise(200), noise(249)] == pytest.approx([math.sqrt(2 * 4e-4 / 40_960)] * 2)


def test_samples_are_left_at_the_end_of_a_cycle_so_many_epochs_apart() -> None:
    protocol = bench.Protocol(updates=160 * 20)
    recipe = replace(CYCLES, cycles=2, kept=3, kept_every=2)
    kept = [epoch for epoch in range(20) if bench.leaves_a_network(recipe, protocol, epoch)]
    assert kept == [5, 7, 9, 15, 17, 19]


def test_a_group_that_would_not_end_in_time_is_not_begun(capsys: pytest.CaptureFixture[str]) -> None:
    groups = [(("sgd", 0),), (("be", 0),), (("sgd", 1),)]
    protocol = bench.Protocol(updates=100, batch=10)
    speeds = iter([None, 100.0, 100.0])
    begun = list(bench.begun_in_time(groups, protocol, lambda: 20.0, lambda: next(speeds)))
    assert begun == [groups[0], groups[2]]
    assert "not run: be-0 (40 s" in capsys.readouterr().out


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
