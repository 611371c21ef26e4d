"""Ensembles of several trainings: what their members start from, what they cost, and what is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import lpe
from lpe.errors import InputError
from lpe.substrates import digits
from reproduce.command import opened
from reproduce.scales.digits.images import PreTraining
from reproduce.scales.digits.settings import DIGITS
from reproduce.study import families, points
from reproduce.study.families import SnapshotTraining, stored_by_rtn, with_low_precision
from reproduce.study.measurements import measure
from reproduce.study.points import SWAGTraining
from reproduce.study.records import rows_of
from reproduce.study.scale import Scale, Substrate
from reproduce.study.session import Session
from reproduce.study.units import DISAGREEMENT_UNIT, Unit, reported_sizes, units

MAIN = "tiny ViT"


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Iterator[Session]:
    with opened("test", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        yield session


def epochs_of(recipe: object) -> int:
    return recipe.epochs  # type: ignore[attr-defined, no-any-return]


def steps(scale: Scale, epochs: int, batch: int = 100) -> int:
    """Backward passes of so many epochs at training seed 0."""
    return epochs * (len(digits.load(0).train[1]) // batch)


def pre_training(scale: Scale) -> int:
    recipe = scale.substrates[scale.substrate].start
    assert isinstance(recipe, PreTraining)
    return steps(scale, recipe.epochs, recipe.batch)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_members_of_a_deep_ensemble_share_the_trunk_they_start_from_and_nothing_else(
    session: Session,
) -> None:
    starts = [points.started(session, session.main, 0, replica).net for replica in (0, 1)]
    for name, value in starts[0].state_dict().items():
        head = name.startswith("head.weight")
        assert torch.equal(value, starts[1].state_dict()[name]) != head
    members = list(session.main.family(session, "DE", 0).make(0))
    assert len(members) == 2 and not same(*members)


def test_the_first_member_of_a_deep_ensemble_is_the_point_of_sgd(session: Session) -> None:
    assert same(session.main.family(session, "DE", 0).make(0)[0], session.main.point(session, "SGD", 0).net)


def test_the_trunk_is_paid_for_once(tiny: Scale, session: Session) -> None:
    ensemble = session.main.family(session, "DE", 0).make(0)
    fine, trunk = steps(tiny, epochs_of(session.main.points["SGD"])), pre_training(tiny)
    assert [ensemble.backward_passes(n) for n in (1, 2)] == [trunk + fine, trunk + 2 * fine]


def test_members_of_one_posterior_cost_one_training_and_those_of_the_next_another(
    tiny: Scale, session: Session
) -> None:
    ensemble = session.main.family(session, "MultiIVON", 0).make(0)
    fine, trunk = steps(tiny, epochs_of(session.main.points["IVON"])), pre_training(tiny)
    assert len(ensemble) == 2 * 2
    costs = [trunk + fine, trunk + fine, trunk + 2 * fine, trunk + 2 * fine]
    assert [ensemble.backward_passes(n) for n in (1, 2, 3, 4)] == costs


def test_a_snapshot_run_with_fewer_cycles_is_the_beginning_of_one_with_more(
    tiny: Scale, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = session.main.families["SSE"]
    assert isinstance(recipe, SnapshotTraining) and recipe.cycles == 2
    whole = recipe.family(session, session.main, 0).make(0)
    monkeypatch.setattr(families, "train", None)  # nothing is left to train
    one = replace(recipe, cycles=1).family(session, session.main, 0).make(0)
    assert len(whole) == 2 and len(one) == 1
    assert same(whole[0], one[0]) and not same(whole[0], whole[1])
    assert one.backward_passes() == whole.backward_passes(1)


def test_a_cycle_goes_on_from_the_weights_of_the_one_before(
    tiny: Scale, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[dict[str, torch.Tensor]] = []
    train = families.train

    def watched(model: nn.Module, *arguments: object, **named: object) -> object:
        before.append({name: value.clone() for name, value in model.state_dict().items()})
        return train(model, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(families, "train", watched)
    ensemble = session.main.family(session, "SSE", 0).make(0)
    assert len(before) == 2
    assert all(torch.equal(before[1][name], value) for name, value in ensemble[0].state_dict().items())


def test_a_stored_run_gives_the_same_members_as_the_one_that_trained(session: Session) -> None:
    for name in session.scale.families:
        first, second = (session.main.family(session, name, 0).make(3) for _ in range(2))
        assert all(same(a, b) for a, b in zip(first, second, strict=True)), name


def test_a_step_of_batch_ensemble_is_charged_for_every_member(tiny: Scale, session: Session) -> None:
    ensemble = session.main.family(session, "BE", 0).make(0)
    fine = steps(tiny, epochs_of(session.main.families["BE"]))
    assert ensemble.backward_passes(1) == pre_training(tiny) + 2 * fine


def test_low_precision_members_of_different_bases_share_no_random_bits(session: Session) -> None:
    net = session.main.point(session, "SGD", 0).net
    ensemble = with_low_precision(lpe.DeepEnsemble([net, net]), lpe.Int(3), 2, seed=5)
    plain = lpe.LowPrecisionEnsemble(net, lpe.Int(3), 4, seed=5)
    assert all(same(a, b) for a, b in zip(ensemble, plain, strict=True))


def test_a_family_is_measured_at_every_size_with_and_without_low_precision(
    tiny: Scale, session: Session
) -> None:
    unit = Unit(MAIN, "SSE", 0)
    measure(session, unit)
    rows = rows_of(session, [unit])
    nll = rows[rows["metric"] == "nll"]
    sizes = {method: here["size"].tolist() for method, here in nll.groupby("method")}
    assert sizes == {"SSE": [1, 2], "SSE by RTN": [1, 2, 1, 2], "SSE + LPE-BSR": [1, 2, 3, 4]}
    low = nll[nll["method"] == "SSE + LPE-BSR"]["backward_passes"].tolist()
    base = nll[nll["method"] == "SSE"]["backward_passes"].tolist()
    assert low == [base[0], base[0], base[1], base[1]]
    calibrated = rows[(rows["metric"] == "calibrated_nll") & (rows["method"] == "SSE + LPE-BSR")]
    assert calibrated["size"].tolist() == [2, 4]


def test_members_stored_by_rtn_are_the_familys_rounded_to_nearest_each_with_its_own_scales(
    session: Session,
) -> None:
    nets = [session.main.point(session, "SGD", 0, replica).net for replica in (0, 1)]
    base = lpe.DeepEnsemble(nets, backward_passes=[5, 3])
    stored = stored_by_rtn(base, lpe.Int(4))
    alone = [lpe.LowPrecisionEnsemble(net, lpe.Int(4), 1, rounding="nearest") for net in nets]
    assert all(same(found, each[0]) for found, each in zip(stored, alone, strict=True))
    assert not same(*stored)
    assert [stored.memory_bits(n) for n in (1, 2)] == [alone[0].memory_bits(), 2 * alone[0].memory_bits()]
    assert stored.memory_bits() < base.memory_bits() / 2
    assert stored.memory_bits(storage="generator") == stored.memory_bits()
    assert [stored.backward_passes(n) for n in (1, 2)] == [5, 8]


def test_a_snapshot_does_not_disagree_with_itself_and_shares_are_of_all_images(session: Session) -> None:
    unit = Unit(MAIN, DISAGREEMENT_UNIT, 0)
    measure(session, unit)
    rows = rows_of(session, [unit])
    assert set(rows["number_system"]) == {"fp32", *(f"int{bits}" for bits in session.scale.settings.bits)}
    images = len(digits.load(0).test[1])
    assert rows["value"].between(0, 1).all()
    second = float(rows[rows["number_system"] == "fp32"]["value"].iloc[0])
    assert second * images == pytest.approx(round(second * images))


def test_units_that_stand_together_share_no_training_seed(tiny: Scale) -> None:
    found = units([tiny.main], ["SGD", "DE"], [0, 1])
    assert found == [Unit(MAIN, what, seed) for what in ("SGD", "DE") for seed in (0, 1)]


def test_every_metric_is_kept_at_the_sizes_that_claims_and_tables_look_at() -> None:
    assert reported_sizes(DIGITS.settings, 20) == [1, 5, 10, 20]
    assert reported_sizes(DIGITS.settings, 1) == [1]


def test_swag_with_fewer_iterates_than_its_rank_is_refused_before_any_training(
    tiny: Scale, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "train", None)
    swag = session.main.points["SWAG"]
    assert isinstance(swag, SWAGTraining)
    with pytest.raises(InputError, match="SWAG of rank 20 needs as many iterates; the run would collect 2"):
        replace(swag, rank=20).point(session, session.main, 0)


def test_a_finished_unit_is_not_looked_into_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(session, Unit(MAIN, "SGD", 0))
    monkeypatch.setattr(Substrate, "point", None)
    measure(session, Unit(MAIN, "SGD", 0))


def test_a_finished_unit_whose_record_was_altered_is_measured_again(session: Session) -> None:
    unit = Unit(MAIN, "SGD", 0)
    measure(session, unit)
    path = session.records[unit]
    record = path.read_bytes()
    path.write_bytes(b"".join(record.splitlines(keepends=True)[:-5]))
    measure(session, unit)
    assert path.read_bytes() == record


def test_a_finished_unit_whose_record_is_gone_is_measured_again(session: Session) -> None:
    unit = Unit(MAIN, "SGD", 0)
    measure(session, unit)
    record = session.records[unit].read_bytes()
    session.records[unit].unlink()
    measure(session, unit)
    assert session.records[unit].read_bytes() == record
