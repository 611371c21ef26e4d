"""The GPU's sweep: its stages, its table and what it chooses, on tiny networks and random images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks import gpu_sweep as bench
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import ResNetShape
from reproduce.scales.cifar10 import recipes
from reproduce.scales.cifar10.training import fast_gradient

PROTOCOL = replace(recipes.PROTOCOL, shape=ResNetShape(1, 8, 2), batch=4, examples=8)
UPDATES = 32


def tiny(trial: bench.Trial) -> bench.Trial:
    """The trial on a few images."""
    recipe = replace(trial.recipe, members=min(trial.recipe.members, 2), swag_rank=2, kept_every=1)
    return replace(trial, recipe=recipe, updates=UPDATES)


STAGES: tuple[bench.Stage, ...] = tuple(
    bench._given(*map(tiny, trials))
    for trials in (
        bench.IVON[:2],
        bench.SSE[2:],
        bench.CSGLD[:1],
        bench.BATCH_ENSEMBLE[::3],
        (*bench.SWAG[:1], *bench.SGD_PLAIN[:1]),
        bench.settings("adamw", bench.ADAMW, UPDATES, {"lr": 1e-3}),
    )
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bench.Sweep, Path]]:
    """All kinds of trainings, on images of noise."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(256, (60, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (60,), generator=generator)
    images = cifar.CifarImages("noise", "0", train, labels, train[:20], labels[:20])
    folder = tmp_path_factory.mktemp("gpu-sweep")
    device = torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "split_indices", lambda seed: (torch.arange(40), torch.arange(40, 60)))
        made = bench.Sweep(images, PROTOCOL, device, *fast_gradient(PROTOCOL, device))
        bench.run_stages(made, STAGES, folder, 0.0, lambda: math.inf)
        yield made, folder


def test_every_training_has_a_row_of_its_point_and_its_ensemble(recorded: tuple[bench.Sweep, Path]) -> None:
    table = pd.read_csv(recorded[1] / "gpu_sweep.csv")
    rows = [(row.method, row.point, row.networks) for row in table.itertuples()]
    assert rows == [
        ("ivon", "mean", 10),
        ("ivon", "mean", 10),
        ("sse", "last", 4),
        ("sse", "last", 4),
        ("csgld", "last", 12),
        ("be", "first member", 2),
        ("be", "first member", 2),
        ("swag", "mean", 10),
        ("sgd", "last", 1),
        ("adamw", "last", 1),
    ]
    assert table["validation_nll"].notna().all()
    assert (table["ensemble_nll"].notna() == (table["networks"] > 1)).all()


def test_only_a_sampler_has_shares_and_only_ivon_ratios(recorded: tuple[bench.Sweep, Path]) -> None:
    table = pd.read_csv(recorded[1] / "gpu_sweep.csv")
    assert set(table.loc[table["share_1"].notna(), "method"]) == {"csgld"}
    assert set(table.loc[table["std_to_start"].notna(), "method"]) == {"ivon"}


def test_the_provenance_has_every_recipe_and_what_was_chosen(recorded: tuple[bench.Sweep, Path]) -> None:
    told = json.loads((recorded[1] / "gpu_sweep.json").read_text())["config"]
    assert len(told["recipes"]) == len(recorded[0].rows)
    assert told["chosen"].keys() >= {"sse", "csgld", "be", "swag", "adamw", "sgd, no crops or flips"}


def test_all_stages_can_be_trained_side_by_side() -> None:
    """Of one stage: one rule, one length, one number of members, and names of their own."""
    for stage in bench.STAGES:
        trials = stage((), {})
        assert len({(t.recipe.rule, t.updates, t.recipe.members) for t in trials}) <= 1
        assert len({(t.method, t.recipe) for t in trials}) == len(trials)


def test_no_claim_is_judged_on_a_seed_of_the_sweep() -> None:
    judged = {seed for group in recipes.GROUPS for _, seed in group}
    assert not judged & {bench.SEED, bench.OTHER_SEED}


def test_ivon_forgets_as_much_at_the_whole_length() -> None:
    trial = bench.at_full_length(bench.IVON[0], 101)
    assert trial.updates == recipes.PROTOCOL.updates and trial.seed == 101
    assert (1 - trial.recipe.beta2) * trial.updates == pytest.approx(6.0)


IVON = replace(
    recipes.SGD, rule="ivon", lr=0.1, weight_decay=0.01, ess=100, hess_init=0.5, beta1=0.9, beta2=0.99
)


def test_a_std_that_is_h0s_remainder_is_not_learnt() -> None:
    std = torch.full((7,), (100 * (0.5 * 0.99**600 + 0.01)) ** -0.5)
    row = bench.posterior_columns(IVON, 600, std)
    assert row["std_to_start"] == pytest.approx(1.0, rel=0.01) and row["learnt"] is False


def test_a_std_at_half_of_the_priors_is_learnt_after_enough_updates() -> None:
    std = torch.full((7,), 0.5 * (100 * 0.01) ** -0.5)
    long, short = (bench.posterior_columns(IVON, updates, std) for updates in (600, 400))
    assert long["std_to_prior"] == pytest.approx(0.5)
    assert (long["learnt"], short["learnt"]) == (True, False)


def test_the_shares_are_those_of_the_last_cycles_noise() -> None:
    recipe = replace(bench.SAMPLED, lr=0.4, final=0.25, noise=0.5, cycles=2)
    row = bench.share_columns(recipe, replace(recipes.PROTOCOL, updates=40))
    expected = (1 - 0.99**20) / (1 - 0.1 * 0.1 / 2)
    assert row["share_0.1"] == pytest.approx(expected)


def test_a_lost_training_has_a_row_and_stops_nothing(recorded: tuple[bench.Sweep, Path]) -> None:
    made = recorded[0]
    before = list(made.rows)
    trial = tiny(bench.IVON[0])
    run = made.run([replace(trial, recipe=replace(trial.recipe, lr=1e30))])
    lost = made.rows.pop()
    assert made.rows == before and not run.points[("0 ivon", bench.SEED)].weights.isfinite().all()
    assert lost["point"] == "lost" and math.isnan(bench.score(lost))


def made_row(setting: str, nll: float, **values: Any) -> bench.Row:
    row: bench.Row = dict.fromkeys(bench.COLUMNS)
    row |= {"method": "sse", "augment": True, "setting": setting, "seed": 100, "updates": 10}
    return row | {"networks": 4, "validation_nll": 9.0, "ensemble_nll": nll} | values


def test_the_ranking_is_of_ensembles_at_the_longest_without_lost_or_unlearnt_ones() -> None:
    rows = [
        made_row("1", 0.5),
        made_row("2", 0.4),
        made_row("3", math.nan),
        made_row("4", 0.1, updates=5),
        made_row("5", 0.2, learnt=False),
        made_row("6", 0.3, networks=1),
    ]
    assert [row["setting"] for row in bench.ranking(rows, "sse", True)] == ["2", "1", "6"]


def test_what_was_run_with_two_seeds_is_chosen_by_their_mean() -> None:
    rows = [
        made_row("1", 0.4),
        made_row("2", 0.5),
        made_row("3", 0.45),
        made_row("1", 0.6, seed=101),
        made_row("3", 0.5, seed=101),
    ]
    assert bench.chosen(rows)["sse"] == {"setting": 3, "validation_nll": 0.475, "seeds": 2}


def test_the_best_are_run_again_at_the_whole_length_with_the_other_seed() -> None:
    first, second = bench.CSGLD[:2]
    rows, known = [], {}
    for trial, nll in ((first, 0.5), (second, 0.4)):
        rows.append(made_row(trial.setting, nll, method="csgld"))
        known[bench.key(rows[-1])] = trial
    (again,) = bench.best_again(csgld=1)(rows, known)
    assert (again.setting, again.seed, again.updates) == (second.setting, 101, recipes.PROTOCOL.updates)


def test_a_stage_that_would_not_end_in_time_is_not_begun(
    recorded: tuple[bench.Sweep, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bench.run_stages(recorded[0], STAGES[:1], tmp_path, 0.0, lambda: -1.0)
    assert "not run: 2 of ivon" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
