"""What tests of keys share."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator

import pytest

from reproduce.study import keys


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """(distribution) → it has version 99.0 from now on, as a later process would find it."""
    asked = importlib.metadata.version

    def upgraded(distribution: str) -> None:
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: "99.0" if name == distribution else asked(name)
        )
        keys._version.cache_clear()

    yield upgraded
    keys._version.cache_clear()
