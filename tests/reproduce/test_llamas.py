"""The small Llamas: stored, found again, and keyed by what determines them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lpe
from lpe import tracking
from lpe.provenance import plain_data
from lpe.store import Store
from lpe.substrates import arithmetic, language
from reproduce.scales.digits import llamas
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.scale import Scale
from reproduce.study.session import Session


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Session:
    return Session(tiny, [0], [0], tmp_path, tmp_path, Store(), tracking.Tracker(None), quiet=True)


def test_a_llama_is_trained_once_and_found_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    first = llamas.llama_point(session, 0, "S")
    monkeypatch.delattr(llamas, "train")
    again = llamas.llama_point(session, 0, "S")
    both = zip(first.net.parameters(), again.net.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)


def test_training_lowers_the_nll_of_tokens(session: Session) -> None:
    batch = [arithmetic.token_batch(arithmetic.encoded(arithmetic.questions(0).validation))]
    start = arithmetic.network(session.scale.llamas["L"], 0)
    trained = llamas.llama_point(session, 0, "L").net
    before, after = (
        lpe.evaluate(lpe.DeepEnsemble([arithmetic.NextToken(net)]), batch)["nll"][0]
        for net in (start, trained)
    )
    assert after < before - 0.01


def test_a_point_costs_a_backward_pass_a_batch(session: Session) -> None:
    sentences = len(arithmetic.questions(0).train)
    assert llamas.llama_point(session, 0, "S").backward_passes == sentences // session.scale.llama.batch


def test_a_trained_llama_is_evaluated_by_lm_eval_on_its_seeds_questions(session: Session) -> None:
    net = llamas.llama_point(session, 1, "S").net
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 2)
    table = language.evaluate(ensemble, arithmetic.tokenizer(), [arithmetic.task(1)], limit=20)
    assert table["size"].tolist() == [1, 2] and (table["err"] == 1 - table["acc"]).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda scale: replace(scale, llama=replace(scale.llama, learning_rate=1.0)),
        lambda scale: replace(scale, llamas={"S": replace(scale.llamas["S"], depth=2)}),
        lambda scale: replace(scale, threads=2),
    ],
)
def test_what_determines_a_llama_is_part_of_its_key(session: Session, change: object) -> None:
    before = plain_data(llamas.config_of(session, 0, "S"), "config")
    session.scale = change(session.scale)  # type: ignore[operator]
    assert plain_data(llamas.config_of(session, 0, "S"), "config") != before


def test_the_vit_of_a_scale_is_no_part_of_a_llamas_key(session: Session) -> None:
    before = plain_data(llamas.config_of(session, 0, "S"), "config")
    session.scale = replace(session.scale, network=DIGITS.network, jitter=DIGITS.jitter)
    assert plain_data(llamas.config_of(session, 0, "S"), "config") == before


def test_a_size_that_the_scale_does_not_have_is_refused(session: Session) -> None:
    with pytest.raises(lpe.InputError, match="no Llama of size 'XL'; there are S, L"):
        llamas.llama_point(session, 0, "XL")


def test_each_size_has_more_weights_than_the_one_before() -> None:
    weights = [
        sum(parameter.numel() for parameter in arithmetic.network(shape, 0).parameters())
        for shape in DIGITS.llamas.values()
    ]
    assert weights == sorted(set(weights)) and weights[-1] > 10 * weights[0]
