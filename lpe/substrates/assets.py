"""The folder of real data and weights that some substrates are read from."""

from __future__ import annotations

import os
from pathlib import Path

from lpe.errors import InputError


def assets_folder() -> Path:
    """Return the folder of real data and weights, from LPE_ASSETS.

    Raises:
        InputError: it is not set, or names no folder.
    """
    named = os.environ.get("LPE_ASSETS")
    if not named:
        raise InputError("LPE_ASSETS is not set; let it name the folder of real data and weights")
    if not Path(named).is_dir():
        raise InputError(f"LPE_ASSETS names {named}, which is no folder")
    return Path(named)
