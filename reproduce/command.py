"""Shared parts of the figure scripts: their options, their session, and how they end."""

from __future__ import annotations

import argparse
import functools
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from tqdm import tqdm
from typing_extensions import TypeVar

from lpe import tracking
from lpe.command_line import Parser
from lpe.errors import InputError
from lpe.provenance import REPOSITORY, write_provenance
from lpe.store import Store
from lpe.writing import check_writable
from reproduce.scales.find import any_scale, check_at_paper
from reproduce.scales.paper.models import PAPER, PaperScale, all_there, pretrained_device, rehearse
from reproduce.study.records import record_name
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


def parser(figure: str, description: str | None) -> Parser:
    """Return a parser of every figure script's options, with ``paper``'s where that scale has the figure."""
    made = Parser(
        prog=f"reproduce/{figure}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--scale", default="digits", help="which substrate and hyper-parameters (default: digits)"
    )
    made.add_argument(
        "--seeds",
        type=int,
        help="training seeds 0 … N-1 (default: the scale's, more for training-free claims)",
    )
    made.add_argument("--out", type=Path, help="folder of the results (default: figures/SCALE)")
    made.add_argument("--plot-only", action="store_true", help="redraw from the record in the folder")
    made.add_argument(
        "--wandb",
        choices=tracking.MODES,
        help="Weights & Biases (default: WANDB_MODE; else online with WANDB_API_KEY; else offline)",
    )
    if figure in (*PAPER.figures, "__main__"):
        made.add_argument(
            "--random-weights",
            action="store_true",
            help="with --scale paper: rehearse at the true shapes, with random weights and synthetic inputs",
        )
    return made


def run_figure(
    figure: str,
    description: str | None,
    compute: Callable[[Session[Any]], Mapping[str, object]],
    draw: Callable[[Path, str], tuple[list[Path], list[str]]],
    arguments: Sequence[str] | None = None,
    quiet: bool = False,
) -> int:
    """Run a figure script: measure what is not measured yet, write the record, draw it, say the verdict.

    Args:
        figure: its name, such as "fig3". description: the script's docstring, for ``--help``.
        compute: measures and writes the record's CSV files into ``session.out``; returns what the
            provenance should hold beside the scale.
        draw: (folder, scale's name) → paths written and lines to print, from the record alone.
        arguments: the command line; None: this process's. quiet: no progress bars.
    Returns:
        The exit code: 0, or 2 after one line about bad input.
    """
    try:
        asked = parser(figure, description).parse_args(arguments)
        check_at_paper([figure], asked.scale)
        chosen = any_scale(asked.scale)
        seeds_asked(chosen, asked.seeds)
        out = asked.out or REPOSITORY / "figures" / chosen.name
        started = time.time()
        if figure in PAPER.figures and asked.random_weights:
            rehearse([figure], chosen)
            return 0
        check_writable(out)
        if not asked.plot_only:
            if isinstance(chosen, PaperScale) and not all_there(figure, chosen):
                return 2
            with open_session(figure, chosen, asked.seeds, out, asked.wandb, quiet) as session:
                extra = dict(compute(session))
                if isinstance(chosen, PaperScale):
                    from reproduce.scales.paper.loading import descriptions

                    extra["models"] = descriptions(session, figure)
                record = out / record_name(figure)
                write_provenance(
                    out / f"{figure}.json",
                    sys.argv if arguments is None else [f"reproduce/{figure}.py", *arguments],
                    {"scale": chosen, **extra},
                    "cpu" if isinstance(chosen, Scale) else str(pretrained_device()),
                    _seeds_of(record) or ([chosen.landscape.seed] if isinstance(chosen, Scale) else []),
                    torch.get_num_threads(),
                    started,
                )
                paths, lines = draw(out, chosen.name)
                written = [record, out / f"{figure}.json", *paths]
                session.tracker.artifact(f"{figure}-{chosen.name}", "figure", written)
        else:
            if not (out / record_name(figure)).is_file():
                raise InputError(
                    f"there is no record {record_name(figure)} in {out}; run without --plot-only first"
                )
            written, lines = draw(out, chosen.name)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {_shown(path)}")
    for line in lines:
        print(line)
    print(f"{figure} at scale {chosen.name}: {time.time() - started:.0f} s")
    return 0


def _seeds_of(record: Path) -> list[int]:
    """Return the training seeds of a record's rows; none where it has no such column."""
    import pandas as pd

    table = pd.read_csv(record, keep_default_na=False)
    return sorted(map(int, table["seed"].unique())) if "seed" in table else []


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


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
