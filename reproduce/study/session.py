"""A run: its scale, its seeds, its store, its records and its tracker."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from tqdm import tqdm
from typing_extensions import TypeVar

from lpe import tracking
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.store import Store
from lpe.writing import check_writable
from reproduce.scales.paper.models import PaperScale
from reproduce.study.scale import Scale

AnyScale = TypeVar("AnyScale", bound=Scale | PaperScale, default=Scale)


@dataclass
class Session(Generic[AnyScale]):
    """A run of a script: what it was asked, and where results go.

    Args:
        seeds: training seeds. claim_seeds: of what a training-free claim is judged on.
        out: folder of the figures and their records. working: folder of the working records.
        quiet: no progress bars.
    """

    scale: AnyScale
    seeds: list[int]
    claim_seeds: list[int]
    out: Path
    working: Path
    store: Store
    tracker: tracking.Tracker
    quiet: bool = False

    def progress(self, total: int, what: str) -> tqdm:
        """Return a progress bar of ``total`` steps on stderr."""
        return tqdm(total=total, desc=what, leave=False, file=sys.stderr, disable=self.quiet)


@functools.cache
def source_hash(*paths: str) -> str:
    """Hash source files, and the Python files in folders, given relative to the repository.

    It is part of what determines a stored result: after a change of code nothing stale is taken up.
    """
    digest = hashlib.sha256()
    for path in paths:
        place = REPOSITORY / path
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(REPOSITORY).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


MEASURING = ("lpe", "reproduce")


def working_folder(chosen: Scale | PaperScale, store: Store) -> Path:
    """Return the folder of a scale's working records, named by its numbers and the code that measures."""
    key = Store.key({"scale": asdict(chosen), "code": source_hash(*MEASURING), "torch": torch.__version__})
    return store.root.parent / "records" / f"{chosen.name}-{key[:12]}"


def seeds_asked(chosen: Scale | PaperScale, count: int | None) -> tuple[list[int], list[int]]:
    """Return the seeds of trainings and of training-free claims: the scale's, or 0 … count − 1 for both."""
    if count is not None and count < 1:
        raise InputError(f"--seeds must be 1 or more, not {count}")
    return list(range(count or chosen.seeds)), list(range(count or chosen.claim_seeds))


@contextmanager
def open_session(
    figure: str,
    chosen: Scale | PaperScale,
    count: int | None,
    out: Path,
    wandb_mode: str | None,
    quiet: bool = False,
) -> Iterator[Session[Any]]:
    """Open a session over ``count`` training seeds (None: the scale's), and its W&B run while it lasts."""
    if isinstance(chosen, Scale):
        # One fixed number of threads: sums are taken in one order, and two runs give the same bytes.
        torch.set_num_threads(chosen.threads)
    seeds, claim_seeds = seeds_asked(chosen, count)
    store = Store()
    working = working_folder(chosen, store)
    check_writable(working)
    config = {"scale": chosen, "seeds": seeds}
    name = f"{figure}-{chosen.name}"
    with tracking.start(wandb_mode, "low-precision-ensembling", name, config) as tracker:
        yield Session(chosen, seeds, claim_seeds, out, working, store, tracker, quiet)


def pretrained_device() -> torch.device:
    """Return the device of pre-trained models: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
