"""The small Llamas: stored, found again, and keyed by what determines them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lpe
from lpe import tracking
from lpe.store import Entry, Store
from lpe.substrates import arithmetic, language
from reproduce.scales.digits import llamas
from reproduce.scales.digits.llamas import LlamaTraining
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.scale import Point, Scale, Substrate
from reproduce.study.session import Session


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Session:
    return Session(
        store=Store(),
        tracker=tracking.Tracker(None),
        threads=1,
        device="cpu",
        quiet=True,
        scale=tiny,
        seeds=[0],
        claim_seeds=[0],
        out=tmp_path,
        working=tmp_path,
    )


def llama(session: Session, size: str) -> Substrate:
    return session.scale.substrates[f"tiny Llama-{size}"]


def point(session: Session, seed: int, size: str) -> Point:
    return llama(session, size).point(session, "SGD", seed)


def test_a_llama_is_trained_once_and_found_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    first = point(session, 0, "S")
    monkeypatch.delattr(llamas, "train")
    again = point(session, 0, "S")
    both = zip(first.net.parameters(), again.net.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)


def test_training_lowers_the_nll_of_tokens(session: Session) -> None:
    batch = [arithmetic.token_batch(arithmetic.encoded(arithmetic.questions(0).validation))]
    start = arithmetic.network(llama(session, "L").source.shape, 0)
    trained = point(session, 0, "L").net
    before, after = (
        lpe.evaluate(lpe.DeepEnsemble([arithmetic.NextToken(net)]), batch)["nll"][0]
        for net in (start, trained)
    )
    assert after < before - 0.01


def test_a_point_costs_a_backward_pass_a_batch(session: Session) -> None:
    sentences = len(arithmetic.questions(0).train)
    recipe = llama(session, "S").points["SGD"]
    assert isinstance(recipe, LlamaTraining) and recipe.epochs == 1
    assert point(session, 0, "S").backward_passes == sentences // recipe.batch


def test_a_trained_llama_is_evaluated_by_lm_eval_on_its_seeds_questions(session: Session) -> None:
    net = point(session, 1, "S").net
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 2)
    table = language.evaluate(ensemble, arithmetic.tokenizer(), [arithmetic.task(1)], limit=20)
    assert table["size"].tolist() == [1, 2] and (table["err"] == 1 - table["acc"]).all()


def key(session: Session, substrate: Substrate, seed: int = 0) -> str:
    """The key of the entry that a Llama's training asks the store for."""
    asked: list[Mapping[str, object]] = []

    class Found(Exception):
        pass

    def get_or_make(config: Mapping[str, object], *_: object) -> Entry:
        asked.append(config)
        raise Found

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Found):
        patched.setattr(session.store, "get_or_make", get_or_make)
        substrate.point(session, "SGD", seed)
    return Store.key(asked[0])


CHANGES: dict[str, Callable[[Session, Substrate], tuple[Session, Substrate]]] = {
    "recipe": lambda session, net: (
        session,
        replace(net, points={"SGD": replace(net.points["SGD"], learning_rate=1.0)}),  # type: ignore[type-var]
    ),
    "shape": lambda session, net: (
        session,
        replace(net, source=replace(net.source, shape=replace(net.source.shape, depth=2))),
    ),
    "threads": lambda session, net: (replace(session, threads=2), net),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_determines_a_llama_is_part_of_its_key(session: Session, change: str) -> None:
    net = llama(session, "S")
    assert key(*CHANGES[change](session, net)) != key(session, net)


def test_the_seed_is_part_of_a_llamas_key(session: Session) -> None:
    assert key(session, llama(session, "S"), 1) != key(session, llama(session, "S"), 0)


def test_the_vit_of_a_scale_is_no_part_of_a_llamas_key(session: Session) -> None:
    before = key(session, llama(session, "S"))
    session.scale = replace(session.scale, main=DIGITS.main, sizes=DIGITS.sizes)
    assert key(session, llama(session, "S")) == before


def test_a_llama_is_tuned_on_tuning_questions_and_scored_on_the_others() -> None:
    data = DIGITS.large["Llama"][0].source.load(1)
    assert (data.scored.on_tuning, data.tuning.on_tuning) == (False, True)


def test_each_size_has_more_weights_than_the_one_before() -> None:
    weights = [
        sum(parameter.numel() for parameter in arithmetic.network(shape, 0).parameters())
        for shape in (each.source.shape for each in DIGITS.large["Llama"])
    ]
    assert weights == sorted(set(weights)) and weights[-1] > 10 * weights[0]
