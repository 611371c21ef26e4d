"""The hub of weights: whether it answers, and what happens where it does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from lpe.substrates import hub


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def session(answer: Any) -> Any:
    """What the hub's library gives as its session, answering or raising on ``head``."""

    def head(url: str, timeout: float) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return lambda: SimpleNamespace(head=head)


def test_a_hub_that_is_turned_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.hub_answers()


def test_a_hub_that_raises_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", session(OSError("no route")))
    assert not hub.hub_answers()


def test_a_hub_that_refuses_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", session(SimpleNamespace(status_code=403)))
    assert hub.hub_answers()


@pytest.mark.parametrize("answers", [True, False])
def test_the_cache_alone_is_used_where_the_hub_does_not_answer_and_all_is_as_before_afterwards(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    monkeypatch.setattr(hub, "hub_answers", lambda: answers)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with hub.hub_or_cache() as said:
        within = (said, constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    assert within == (answers, not answers, not answers)
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)


def test_the_switches_are_as_before_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(KeyError), hub.hub_or_cache():
        raise KeyError
    assert constants.HF_HUB_OFFLINE is False
