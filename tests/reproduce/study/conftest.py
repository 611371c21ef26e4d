"""What tests of the study share: upgrades, and sessions of the toy scale, each with a store of its own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lpe.store import Store
from lpe.tracking import Tracker
from reproduce.scales import own
from reproduce.study import keys
from reproduce.study.scale import Scale
from reproduce.study.session import Session

TOY = Path(__file__).parents[1] / "scales" / "toy.py"


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


@pytest.fixture
def toy() -> Scale:
    """The toy scale."""
    return own.load(str(TOY))


@pytest.fixture
def session_of(tmp_path: Path) -> Callable[[Scale], Session]:
    """(scale) → a session of one training seed; sessions of one test share their store."""

    def opened(scale: Scale) -> Session:
        return Session(
            store=Store(tmp_path / "store"),
            tracker=Tracker(None),
            threads=None,
            device="cpu",
            quiet=True,
            scale=scale,
            seeds=[0],
            claim_seeds=[0],
            out=tmp_path / "out",
            working=tmp_path / "records",
        )

    return opened
