"""What a measurer writes of an ensemble, on a made-up network and made-up images: nothing is trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe import tracking
from lpe.ensembles.base import Ensemble
from lpe.evaluation.predict import evaluate_temperature_scaled
from lpe.store import Store
from reproduce.study import examples
from reproduce.study.measurer import Measurer
from reproduce.study.records import BETTER_THAN_RTN
from reproduce.study.scale import Classification, Data, Scale, Substrate
from reproduce.study.session import Session
from reproduce.study.units import Unit, draw_seed, reported_sizes

SEED = 3
INT3 = lpe.Int(3)


def batch(seed: int, examples: int = 60) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 6, generator=draws), torch.randint(4, (examples,), generator=draws)


@functools.cache
def data(seed: int) -> Data:
    test, validation = [batch(10 + seed)], [batch(20 + seed)]
    return Data(
        scored=Classification(test, validation),
        tuning=Classification(validation, validation),
        train=batch(30 + seed),
        validation=validation,
        test=test,
        statistics=None,
        images=torch.arange(60),
    )


@dataclass(frozen=True)
class MadeUp:
    """Made-up images."""

    def load(self, seed: int) -> Data:
        return data(seed)


def network() -> nn.Module:
    draws = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=draws))
    return net


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Session:
    assert tiny.main is not None
    main: Substrate = replace(tiny.main, source=MadeUp())
    return Session(
        store=Store(tmp_path / "store"),
        tracker=tracking.Tracker(None),
        threads=1,
        device="cpu",
        quiet=True,
        scale=replace(tiny, main=main),
        seeds=[SEED],
        claim_seeds=[SEED],
        out=tmp_path / "out",
        working=tmp_path / "working",
    )


def measurer(session: Session, seed: int = SEED) -> Measurer:
    unit = Unit("tiny ViT", "SGD", seed)
    session.records[unit] = session.working / f"{seed}.csv"
    return Measurer(session, unit, "SGD")


def drawn(seed: int) -> Ensemble:
    return lpe.LowPrecisionEnsemble(network(), INT3, 4, seed)


def rows_of(writer: Measurer, metric: str) -> pd.DataFrame:
    table = writer.records.select()
    return table[table["metric"] == metric].set_index("size")


def test_a_value_is_the_mean_over_the_ensembles_of_all_draws(session: Session) -> None:
    writer = measurer(session)
    writer.measure("LPE-BSR", "int3", "bernoulli", drawn)
    seeds = [draw_seed(SEED, draw) for draw in range(2)]
    tables = [lpe.evaluate(drawn(seed), data(SEED).test).set_index("size")["nll"] for seed in seeds]
    found = rows_of(writer, "nll")["value"]
    np.testing.assert_allclose(found, (tables[0] + tables[1]) / 2)
    assert abs(found - tables[0]).max() > 1e-3, "one draw alone would be told apart"


def test_it_is_members_that_beat_a_level_not_means_over_the_first_ones(session: Session) -> None:
    members = [
        float(lpe.evaluate(lpe.DeepEnsemble([member]), data(SEED).test)["nll"].iloc[0])
        for draw in range(2)
        for member in list(drawn(draw_seed(SEED, draw)))[: session.scale.settings.claim_size]
    ]
    least, next_one = sorted(members)[:2]
    assert members[2] == least, "the mean of the first three is above the level"
    writer = measurer(session)
    writer.measure("LPE-BSR", "int3", "bernoulli", drawn, beaten=(least + next_one) / 2)
    (share,) = rows_of(writer, BETTER_THAN_RTN)["value"]
    assert share == pytest.approx(1 / len(members))


def test_what_is_not_drawn_is_measured_once(session: Session) -> None:
    made: list[int] = []

    def make(seed: int) -> Ensemble:
        made.append(seed)
        return lpe.DeepEnsemble([network()])

    measurer(session).measure("FP32", "fp32", "", make, drawn=False)
    assert len(made) == 1


def test_seeds_that_have_examples_of_their_own_share_no_number(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MadeUp, "load", lambda _, seed: replace(data(seed), images=None))
    numbers = []
    for seed in (0, 1):
        writer = measurer(session, seed)
        writer.measure("FP32", "fp32", "", lambda _: lpe.DeepEnsemble([network()]), drawn=False)
        row = writer.records.select(metric="nll").iloc[0].to_dict()
        found = examples.finder(session.working)(row)
        assert found is not None
        numbers += found[0].tolist()
    assert len(set(numbers)) == len(numbers) == 120


def test_nll_and_ece_are_kept_at_every_size_and_the_rest_at_the_reported_ones(session: Session) -> None:
    writer = measurer(session)
    writer.measure("LPE-BSR", "int3", "bernoulli", drawn)
    reported = reported_sizes(session.scale.settings, 4)
    assert reported == [1, 2, 3, 4] or len(reported) < 4
    sizes = {metric: list(rows_of(writer, metric).index) for metric in ("nll", "ece", "err", "brier")}
    assert sizes == {"nll": [1, 2, 3, 4], "ece": [1, 2, 3, 4], "err": reported, "brier": reported}


def test_every_size_has_its_own_memory(session: Session) -> None:
    writer = measurer(session)
    writer.measure("LPE-BSR", "int3", "bernoulli", drawn)
    ensemble = drawn(0)
    rows = rows_of(writer, "nll")
    assert rows["memory_bits"].tolist() == [ensemble.memory_bits(n) for n in (1, 2, 3, 4)]
    generator = rows_of(writer, "generator_bits")["value"].tolist()
    assert generator == [ensemble.memory_bits(n, storage="generator") for n in (1, 2, 3, 4)]


def test_file_bytes_are_those_of_a_real_file_of_each_table_size(session: Session, tmp_path: Path) -> None:
    def sized(size: int) -> Ensemble:
        return lpe.LowPrecisionEnsemble(network(), INT3, size)

    writer = measurer(session, seed=0)
    writer.file_bytes("LPE-BSR", "int3", "bernoulli", sized)
    expected = {}
    for size in session.scale.settings.table_sizes:
        lpe.save(sized(size), tmp_path / "file.safetensors")
        expected[size] = float((tmp_path / "file.safetensors").stat().st_size)
    rows = rows_of(writer, "file_bytes")
    assert rows["value"].to_dict() == expected
    assert rows["memory_bits"].tolist() == [sized(size).memory_bits() for size in expected]


def test_files_are_written_at_training_seed_0_alone(session: Session) -> None:
    writer = measurer(session)
    writer.file_bytes("LPE-BSR", "int3", "bernoulli", lambda _: pytest.fail("a file was written"))
    assert not len(writer.records.select())


def test_a_file_that_was_measured_is_not_written_again(session: Session) -> None:
    measurer(session, 0).file_bytes("BMA", "fp32", "", lambda n: lpe.DeepEnsemble([network()] * n))
    again = measurer(session, 0)
    again.file_bytes("BMA", "fp32", "", lambda _: pytest.fail("it was written again"))
    assert len(rows_of(again, "file_bytes")) == len(session.scale.settings.table_sizes)


def test_the_single_network_has_a_temperature_of_the_validation_images(session: Session) -> None:
    writer = measurer(session)
    writer.single(network(), 7)
    single = lpe.DeepEnsemble([network()])
    nll = rows_of(writer, "nll").reset_index().set_index("method")
    expected = evaluate_temperature_scaled(single, data(SEED).test, data(SEED).validation)["nll"]
    assert nll.loc["FP32 + temperature", "value"] == pytest.approx(expected)
    assert nll.loc["FP32", "value"] == pytest.approx(lpe.evaluate(single, data(SEED).test)["nll"].item())
    # A temperature is one float32 more.
    assert nll.loc["FP32 + temperature", "memory_bits"] - nll.loc["FP32", "memory_bits"] == 32
    assert set(nll["backward_passes"]) == {7}


def test_the_parameters_of_the_single_network_are_counted(session: Session) -> None:
    writer = measurer(session)
    writer.single(network(), 7)
    assert rows_of(writer, "parameters")["value"].tolist() == [6 * 8 + 8 + 8 * 4 + 4]


def test_no_two_training_seeds_share_a_seed_of_draws() -> None:
    seeds = [draw_seed(seed, draw) for seed in range(30) for draw in range(10)]
    assert len(set(seeds)) == len(seeds)
