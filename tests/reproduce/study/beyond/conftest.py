"""What tests of what goes beyond the paper share: sessions of the toy scale, each with a store of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lpe.store import Store
from lpe.tracking import Tracker
from reproduce.scales import own
from reproduce.study.scale import Scale
from reproduce.study.session import Session

TOY = Path(__file__).parents[2] / "scales" / "toy.py"


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
