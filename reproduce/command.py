"""Shared parts of the figure scripts: their options, their session, and how they end."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lpe import tracking
from lpe.command_line import Parser
from lpe.errors import InputError
from lpe.provenance import REPOSITORY, write_provenance
from lpe.writing import check_writable
from reproduce.scales.find import any_scale, check_at_paper
from reproduce.scales.paper.models import PAPER, PaperScale, all_there, rehearse
from reproduce.study.records import record_name
from reproduce.study.scale import Scale
from reproduce.study.session import Session, open_session, pretrained_device, seeds_asked


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
