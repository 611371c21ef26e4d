"""Options beside ``--packed FILE``, which settles what the ensemble is."""

from __future__ import annotations

import argparse
from pathlib import Path

from lpe.cli.options import EnsembleOptions, given
from lpe.ensembles.base import check_size
from lpe.errors import InputError


def check_packed(packed: str, asked: argparse.Namespace) -> None:
    """Check the options beside a packed file, before a model is loaded.

    Raises:
        InputError: one that the file settles; a size that is none; there is no such file.
    """
    options = given(EnsembleOptions, asked)
    size = options.pop("size", None)
    options |= {
        option: None for option in ("refresh", "refresh_form", "refresh_limit") if hasattr(asked, option)
    }
    for option in options:
        raise InputError(f"--{option.replace('_', '-')} is settled by the packed file; leave it out")
    if size is not None:
        check_size(size)
    if not Path(packed).is_file():
        raise InputError(f"there is no file {packed}; lpe pack writes one")
