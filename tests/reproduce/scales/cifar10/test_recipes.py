"""The recipes of CIFAR-10's points: their schedules, what they leave, and which are trained side by side."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import lpe
from lpe.training.sgld import variance_share
from reproduce.scales.cifar10.recipes import (
    GROUPS,
    PROTOCOL,
    RECIPES,
    SGD,
    check_updates,
    learning_rate,
    leaves_a_network,
    noise,
)

SHORT = replace(PROTOCOL, updates=1000)


def test_sgd_is_warmed_up_and_ends_at_0() -> None:
    rate = learning_rate(SGD, SHORT)
    assert [rate(0), rate(19)] == pytest.approx([0.005, 0.1]) and rate(999) < 1e-6


def test_swag_falls_to_its_constant_rate_and_stays() -> None:
    rate = learning_rate(RECIPES["swag"], SHORT)
    assert rate(20) == pytest.approx(0.1)
    assert [rate(599), rate(600), rate(999)] == pytest.approx([0.02] * 3, rel=1e-3)


def test_ivon_forgets_h0_and_csgld_reaches_the_posteriors_spread() -> None:
    """What a posterior must be before anything is compared with it, as far as its recipe can say."""
    ivon, csgld = RECIPES["ivon"], RECIPES["csgld"]
    assert PROTOCOL.updates * (1 - ivon.beta2) >= 5
    rate, std = learning_rate(csgld, PROTOCOL), noise(csgld, PROTOCOL)
    cycle = range(PROTOCOL.updates // csgld.cycles)
    shares = [variance_share([rate(s) for s in cycle if std(s)], each) for each in (0.01, 0.1, 1.0)]
    assert all(0.9 < share < 1.1 for share in shares)


CYCLES = replace(SGD, lr=0.4, momentum=0.0, final=1e-3, cycles=4)


def test_cycles_begin_at_the_peak_again_and_only_the_first_is_warmed_up() -> None:
    rate = learning_rate(CYCLES, SHORT)
    assert rate(0) == pytest.approx(0.4 / 20)
    assert [rate(250), rate(500), rate(750)] == pytest.approx([0.4] * 3)
    assert rate(249) == pytest.approx(4e-4, rel=0.1)


def test_cycles_that_are_warmed_up_begin_below_the_peak_each() -> None:
    rate = learning_rate(replace(CYCLES, warm_cycles=True), SHORT)
    assert [rate(0), rate(250), rate(750)] == pytest.approx([0.4 / 20] * 3)
    assert rate(269) == pytest.approx(0.4, rel=0.02)


def test_the_rate_of_the_sampling_stage_is_constant() -> None:
    rate = learning_rate(replace(CYCLES, noise=0.2), SHORT)
    assert [rate(200), rate(249), rate(999)] == pytest.approx([4e-4] * 3)
    assert rate(199) == pytest.approx(4e-4, rel=0.1) and rate(100) == pytest.approx(0.2, rel=0.01)


def test_langevin_noise_is_drawn_in_the_last_share_of_a_cycle() -> None:
    std = noise(replace(CYCLES, noise=0.2), SHORT)
    assert [std(0), std(199), std(250)] == [0, 0, 0]
    assert [std(200), std(249)] == pytest.approx([math.sqrt(2 * 4e-4 / 40_960)] * 2)


def test_samples_are_left_at_the_end_of_a_cycle_so_many_epochs_apart() -> None:
    protocol = replace(PROTOCOL, updates=160 * 20)
    recipe = replace(CYCLES, cycles=2, kept=3, kept_every=2)
    kept = [epoch for epoch in range(20) if leaves_a_network(recipe, protocol, epoch)]
    assert kept == [5, 7, 9, 15, 17, 19]


def test_swag_leaves_an_iterate_an_epoch_once_its_rate_is_constant() -> None:
    protocol = replace(PROTOCOL, updates=160 * 20)
    kept = [epoch for epoch in range(20) if leaves_a_network(RECIPES["swag"], protocol, epoch)]
    assert kept == list(range(12, 20))


@pytest.mark.parametrize(
    ("name", "epochs", "networks"),
    [("swag", 49, 20), ("sse", 4, 4), ("csgld", 36, 12), ("sgd", 1, 1)],
)
def test_an_epoch_less_than_a_recipe_takes_is_refused(name: str, epochs: int, networks: int) -> None:
    """CSGLD's three samples a cycle lie four epochs apart: nine epochs a cycle."""
    groups = [((name, 0),)]
    check_updates(replace(PROTOCOL, updates=160 * epochs), groups, RECIPES)
    told = f"--updates {160 * epochs - 1}: at least {160 * epochs} .*{name} leaves the {networks} networks"
    with pytest.raises(lpe.InputError, match=told):
        check_updates(replace(PROTOCOL, updates=160 * epochs - 1), groups, RECIPES)


def test_groups_come_in_the_order_in_which_ten_minutes_are_best_spent() -> None:
    names = [list(dict.fromkeys(name for name, _ in group)) for group in GROUPS]
    assert names[:5] == [["sgd"], ["ivon"], ["swag", "sse", "csgld"], ["be"], ["sgd"]]
    assert names[5:] == [["sgdnoaug"], ["adamw", "adamwnoaug"]]


def test_a_group_can_be_trained_side_by_side() -> None:
    """One rule and one number of members; of IVON also what its rule has once."""
    for group in GROUPS:
        chosen = [RECIPES[name] for name, _ in group]
        assert len({(each.rule, each.members, each.ess, each.beta1) for each in chosen}) == 1
        assert len(set(group)) == len(group)
