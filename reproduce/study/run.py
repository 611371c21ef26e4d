"""What training needs of a run: its store, its tracker, its progress bars, its device and threads."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from lpe.store import Store
from lpe.tracking import Tracker


@dataclass(kw_only=True)
class Run:
    """A run that trains.

    Args:
        store: of trained weights. tracker: of training curves. threads: that torch computes with; None: as
            many as it takes. device: where networks are. quiet: no progress bars.
        recipes: those whose trained weights were asked for so far, as (substrate's name, recipe's class).
    """

    store: Store
    tracker: Tracker
    threads: int | None
    device: str
    quiet: bool = False
    recipes: set[tuple[str, type]] = field(default_factory=set)

    def progress(self, total: int, what: str) -> tqdm:
        """Return a progress bar of ``total`` steps on stderr."""
        return tqdm(total=total, desc=what, leave=False, file=sys.stderr, disable=self.quiet)


def device_of(wanted: str) -> str:
    """Return the device of "cpu", or of "auto": the GPU where there is one."""
    return "cuda" if wanted == "auto" and torch.cuda.is_available() else "cpu"
