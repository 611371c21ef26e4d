"""What all tests share: one thread each (they run in parallel), and where real data and weights lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data and weights, from LPE_ASSETS; tests that need it skip without."""
    named = os.environ.get("LPE_ASSETS")
    if not named:
        pytest.skip("LPE_ASSETS is not set: no real data and weights to check against")
    if not Path(named).is_dir():
        pytest.skip(f"LPE_ASSETS names {named}, which is no folder")
    return Path(named)
