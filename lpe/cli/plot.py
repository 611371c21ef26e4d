"""``lpe plot``: pictures of results and of predictions."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from lpe.cli.curves import curves
from lpe.cli.options import Commands, add_command, options_of
from lpe.cli.pictures import FORMATS, SHOWN, draw
from lpe.errors import InputError
from lpe.writing import check_writable

PLOT = """\
A picture of what lpe evaluate --csv, lpe score --csv (.csv) or lpe evaluate --predictions wrote, a curve a
method or file: NLL and ECE against members, memory and time; of predictions also the reliability diagram and
the risk-coverage curve, of all members or of --size.

  lpe plot results.csv -o results.pdf
  lpe plot int4.safetensors int5.safetensors --label INT-4 --label INT-5 -o both.png
  lpe plot int4.safetensors --show reliability,risk --size 1 -o one_member.svg

Rings in the reliability diagram have the area of the bin's share of the examples. matplotlib draws: the extra
"plot".
"""


@dataclass(frozen=True)
class PlotOptions:
    """Options of a picture.

    Args:
        files: results or predictions. output: its file. show: of ``SHOWN``, with commas between; None: all
            that is there. label: one a file. task: of results on tasks. size: members whose confidence is
            drawn.
    """

    files: list[str]
    output: Path
    show: str | None = None
    label: list[str] | None = None
    task: str | None = None
    size: int | None = None

    def shown(self) -> list[str] | None:
        """Return what is to be drawn.

        Raises:
            InputError: what cannot be.
        """
        if self.show is None:
            return None
        given = [each.strip() for each in self.show.split(",") if each.strip()]
        if not given or not {*given} <= {*SHOWN}:
            raise InputError(f"--show takes {', '.join(SHOWN)} with commas between, not {self.show!r}")
        return list(dict.fromkeys(given))


def add_plot(commands: Commands) -> None:
    """Add the subcommand and its options."""
    parser = add_command(commands, "plot", PLOT)
    parser.add_argument("files", metavar="FILE", nargs="+", help="results (.csv), or predictions")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help=", ".join(FORMATS))
    parser.add_argument("--show", metavar="A,B", help=f"{', '.join(SHOWN)} (all that is there)")
    parser.add_argument("--label", action="append", metavar="TEXT", help="for the legend, once a file")
    parser.add_argument("--task", help="of results on several tasks")
    parser.add_argument("--size", type=int, metavar="N", help="members of the confidence's panels (all)")


def plot(asked: argparse.Namespace) -> str:
    """Draw what was asked for; what was written.

    Raises:
        InputError: of an option or a file; see :func:`lpe.cli.curves.curves` and
            :func:`lpe.cli.pictures.draw`.
    """
    options = options_of(PlotOptions, asked)
    shown = options.shown()
    if options.size is not None and options.size < 1:
        raise InputError(f"--size must be 1 or more, not {options.size}")
    path = options.output
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"-o takes a name that ends with {', '.join(FORMATS)}, not {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file to write to")
    found = curves(options.files, options.label, options.task, options.size)
    check_writable(path.absolute().parent)
    draw(found, shown, path)
    return f"wrote {path}: {len(found)} curve{'s' if len(found) > 1 else ''}"
