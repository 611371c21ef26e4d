"""What is measured of why it works: noise against its definition, layers, and every method's rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.store import Store
from lpe.tracking import Tracker
from reproduce.scales import own
from reproduce.study import measurements
from reproduce.study.beyond import why_units
from reproduce.study.beyond.names import NOISE, dropped, layer_of, noise_name, shown
from reproduce.study.beyond.why_units import RELATIVE_NOISE, points_of, relative_noise, rounded_layers
from reproduce.study.measurements import measure
from reproduce.study.records import rows_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import WHY, Unit

TOY = Path(__file__).parents[2] / "scales" / "toy.py"

SessionOf = Callable[[Scale], Session]


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3)).eval()


WEIGHTS = {"0.weight": 40 * 50, "2.weight": 50 * 3}


def test_the_noise_of_members_is_their_distance_over_the_length_of_the_weights() -> None:
    net = network()
    moved = [network(), network()]
    with torch.no_grad():
        for member, step in zip(moved, (0.3, 0.4), strict=True):
            for name in ("0", "2"):
                member.get_parameter(f"{name}.weight").mul_(1 + step)
    ensemble = lpe.DeepEnsemble(moved)
    assert relative_noise(ensemble, net, WEIGHTS) == pytest.approx(math.sqrt((0.09 + 0.16) / 2), rel=1e-6)


def test_what_is_not_rounded_has_no_part_in_the_noise() -> None:
    net, other = network(), network()
    with torch.no_grad():
        other.get_parameter("0.bias").add_(5.0)
    assert relative_noise(lpe.DeepEnsemble([other]), net, WEIGHTS) == 0
    assert relative_noise(lpe.DeepEnsemble([other]), net, {**WEIGHTS, "0.bias": 50}) > 1


def expected_noise(net: nn.Module, variance: Callable[[str], torch.Tensor]) -> float:
    tensors = {name: value.double() for name, value in net.state_dict().items() if name in WEIGHTS}
    length = sum(float(value.square().sum()) for value in tensors.values())
    return math.sqrt(sum(float(variance(name).double().sum()) for name in tensors) / length)


def matched_std(net: nn.Module) -> Callable[[str], torch.Tensor]:
    return lpe.GaussianEnsemble(net, lpe.Int(4), 1).std_of


@pytest.mark.parametrize("kind", ["rounding", "matched noise", "noise of one std"])
def test_the_noise_of_drawn_members_is_that_of_their_variance(kind: str) -> None:
    net, size = network(), 50
    std = matched_std(net)
    ensembles: dict[str, Ensemble] = {
        "rounding": lpe.LowPrecisionEnsemble(net, lpe.Int(4), size, 3),
        "matched noise": lpe.GaussianEnsemble(net, lpe.Int(4), size, 3),
        "noise of one std": lpe.GaussianEnsemble(net, lpe.Int(4), size, 3, std=0.02),
    }

    def variance(name: str) -> torch.Tensor:
        square = std(name).square()
        return torch.full_like(square, 0.02**2) if kind == "noise of one std" else square

    # Squares of 2,150 weights of 50 members each: their mean has a relative std of .5 % or less.
    assert relative_noise(ensembles[kind], net, WEIGHTS) == pytest.approx(
        expected_noise(net, variance), rel=0.015
    )


def test_the_noise_of_dropout_is_that_of_masked_weights() -> None:
    rate, draws, net = 0.2, 400, network()
    weight = net.get_parameter("2.weight").detach()
    made = torch.Generator().manual_seed(0)
    factors = (torch.rand(draws, 50, generator=made) >= rate).float() / (1 - rate)
    distances = ((weight * factors[:, None] - weight) ** 2).sum(dim=(1, 2)) / weight.square().sum()
    # 20,000 factors: the mean of their squares has a relative std of 1.1 %.
    assert math.sqrt(float(distances.mean())) == pytest.approx(math.sqrt(rate / (1 - rate)), rel=0.03)


def test_the_rounded_layers_are_the_networks_in_its_order() -> None:
    assert list(rounded_layers(network(), lpe.Int(4)).items()) == list(WEIGHTS.items())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The toy scale's rows of one training seed."""
    folder, scale = tmp_path_factory.mktemp("why"), own.load(str(TOY))
    session = Session(
        store=Store(folder / "store"),
        tracker=Tracker(None),
        threads=None,
        device="cpu",
        quiet=True,
        scale=scale,
        seeds=[0],
        claim_seeds=[0],
        out=folder,
        working=folder / "records",
    )
    unit = Unit("toy net", WHY, 0)
    measure(session, unit)
    return rows_of(session, [unit])


def test_every_layer_is_rounded_alone_in_the_networks_order(measured: pd.DataFrame) -> None:
    places = measured[measured["metric"] == why_units.LAYER].sort_values("value")
    names = [layer_of("toy net", name) for name in places["substrate"]]
    assert names == ["0.weight", "4.weight"]
    weights = measured[measured["metric"] == why_units.WEIGHTS].set_index("substrate")["value"]
    assert weights[list(places["substrate"])].tolist() == [4 * 9, 16 * 4 * 3]


def test_one_layer_alone_has_less_noise_than_all_and_together_their_squares_add_up(
    measured: pd.DataFrame, toy: Scale
) -> None:
    rows = measured[(measured["metric"] == RELATIVE_NOISE) & (measured["method"] == "LPE-BSR")]
    rows = rows[rows["number_system"] == f"int{toy.settings.best_bits}"]
    noise = rows.set_index("substrate")["value"]
    whole = noise[shown("toy net", NOISE)]
    alone = noise.drop(shown("toy net", NOISE))
    assert len(alone) == 2 and (alone < whole).all()
    # One member alone, three of all: each sum of squares of some 200 weights.
    assert math.sqrt(float((alone**2).sum())) == pytest.approx(whole, rel=0.3)


def test_every_method_around_a_point_has_its_rows(measured: pd.DataFrame, toy: Scale) -> None:
    assert toy.beyond is not None
    rows = measured[(measured["substrate"] == shown("toy net", NOISE)) & (measured["metric"] == "nll")]
    found = set(rows[["point", "method", "number_system"]].itertuples(index=False, name=None))
    bits = [f"int{each}" for each in toy.settings.bits]
    spreads = [f"int{toy.beyond.spread_bits}*{spread:g}" for spread in toy.beyond.spreads]
    expected = {(point, "FP32", "fp32") for point in ("SGD", "SWAG", "IVON")}
    expected |= {(point, "BMA", "fp32") for point in ("SWAG", "IVON")}
    expected |= {("SGD", method, name) for method in ("RTN", "Gaussian, matched") for name in bits}
    expected |= {("SGD", "LPE-BSR", name) for name in (*bits, *spreads)}
    expected |= {("SGD", noise_name(std), "fp32") for std in toy.beyond.stds}
    expected |= {("SGD", dropped(rate), "fp32") for rate in toy.beyond.rates}
    assert found == expected
    single = rows[rows["method"].isin(["FP32", "RTN"])]
    assert set(single["size"]) == {1} and set(rows.drop(single.index)["size"]) == {toy.beyond.size}


def test_what_was_measured_is_not_measured_again(
    session_of: SessionOf, toy: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, unit = session_of(toy), Unit("toy net", WHY, 0)
    measure(session, unit)
    before = rows_of(session, [unit])
    # As after a kill before the unit was whole.
    monkeypatch.setattr(measurements, "is_finished", lambda _: False)
    monkeypatch.setattr(lpe, "LowPrecisionEnsemble", _only_plans)
    measure(session, unit)
    pd.testing.assert_frame_equal(rows_of(session, [unit]), before)


class _only_plans(lpe.LowPrecisionEnsemble):
    """An ensemble of which no member may be made."""

    def member(self, index: int) -> nn.Module:
        raise AssertionError("a member was made again")


def test_points_that_a_seed_lacks_are_left_out(toy: Scale) -> None:
    assert toy.main is not None
    fewer = replace(toy.main, most_seeds={"IVON": 1})
    assert [points_of(fewer, seed) for seed in (0, 1)] == [["SGD", "SWAG", "IVON"], ["SGD", "SWAG"]]
