"""The frame of the commands that read the folders of all scales and write what stands side by side."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lpe.command_line import Parser, complain
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.writing import check_writable

Made = tuple[Callable[[], list[Path]], list[str]]
"""What writes the files and returns their paths, and lines to print after them."""


def run(
    name: str,
    description: str | None,
    written: str,
    read: Callable[[Path, bool], Made],
    arguments: Sequence[str],
) -> int:
    """Read a folder of folders, write into it and say what; all is read before anything is written.

    Args:
        name: of the module that is run. description: its docstring, for ``--help``. written: the files, such
            as "claims.*". read: from the folder of figures; and whether to accept what was edited after
            measuring. arguments: the command line.

    Returns:
        The exit code: 0, or 2 after one line about bad input.
    """
    options = Parser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--figures",
        type=Path,
        default=REPOSITORY / "figures",
        help=f"folder with a folder a scale; {written} is written there (default: figures)",
    )
    options.add_argument(
        "--accept-edited",
        action="store_true",
        help="take what is not as it was measured or judged, or has no hash; what is written says so",
    )
    asked = options.parse_args(arguments)
    figures = asked.figures
    try:
        if not figures.is_dir():
            raise InputError(f"there is no folder {figures}; give the one that has a folder a scale")
        write, lines = read(figures, asked.accept_edited)
        check_writable(figures)
        paths = write()
    except InputError as error:
        complain(error)
        return 2
    for path in paths:
        print(f"wrote {os.path.relpath(path)}")
    for line in lines:
        print(line)
    return 0
