"""The ``lpe`` command: what an ensemble of low precision members of a model of yours gives, and costs.

    lpe evaluate MODEL …    NLL, error and calibration of every ensemble size, with memory and time
    lpe score FILE …        the same metrics, and further ones, from predictions that lpe evaluate wrote
    lpe plot FILE …         pictures of both
    lpe describe MODEL …    which tensors are rounded, which are not and why, and the memory
    lpe pack MODEL …        write the ensemble to one file, b bits a weight and member or 8 for all members
    lpe export MODEL …      write one member as a plain checkpoint of its library
    lpe systems             the number systems

A MODEL is timm/NAME, open_clip/ARCHITECTURE:WEIGHTS or hf/FOLDER_OR_NAME. Weights come from a file
(--checkpoint), or from the hub's cache or the hub.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import lpe
from lpe import interruption
from lpe.allocator import is_out_of_memory, keep_freed_memory
from lpe.cli.config import parsed
from lpe.cli.describe import add_describe, describe
from lpe.cli.evaluate import add_evaluate, evaluate
from lpe.cli.export import add_export, export
from lpe.cli.options import first_line, separate_std
from lpe.cli.pack import add_pack, pack
from lpe.cli.plot import add_plot, plot
from lpe.cli.score import add_score, score
from lpe.cli.systems import add_systems, systems
from lpe.cli.tables import shown_sizes
from lpe.command_line import Parser, complain
from lpe.errors import InputError
from lpe.extras import missing
from lpe.notices import forget

__all__ = ["entry", "main", "shown_sizes"]


def _parser() -> Parser:
    parser = Parser(prog="lpe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"lpe {lpe.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="evaluate | score | plot | describe | pack | export | systems"
    )
    for add in (add_evaluate, add_score, add_plot, add_describe, add_pack, add_export, add_systems):
        add(commands)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run a command; the exit code: 0, 2 after one line about bad input, 130 or 143 when interrupted.

    Without one its help is printed.
    """
    forget()
    asked = argparse.Namespace()
    try:
        asked = parsed(_parser, arguments)
        if asked.command is None:
            _parser().print_help()
            return 0
        separate_std(asked)
        if asked.command == "systems":
            print(systems())
        elif asked.command == "score":
            print(score(asked))
        elif asked.command == "describe":
            print(describe(asked))
        elif asked.command == "pack":
            print(pack(asked))
        elif asked.command == "plot":
            print(plot(asked))
        elif asked.command == "export":
            print(export(asked))
        else:
            evaluate(asked, arguments)
    except InputError as error:
        # Of processes that torchrun started each has the same; the first says it.
        if os.environ.get("RANK", "0") == "0":
            complain(error)
        return 2
    except ModuleNotFoundError as error:
        if (absent := missing(error)) is None:
            raise
        complain(absent)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory ({first_line(error)}); give a smaller --batch-size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = any(getattr(asked, result, None) is not None for result in ("predictions", "csv", "json"))
        return interruption.say(interruption.LINE if goes_on else "interrupted; nothing was written")
    return 0


def entry() -> None:
    """Run the console script."""
    _notes_as_they_are()
    keep_freed_memory()
    try:
        code = interruption.answered(lambda: main(sys.argv[1:]))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has had enough (``lpe describe … | head``); what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _notes_as_they_are() -> None:
    """Let notes be printed without a prefix, also where a library (open_clip) has set up logging."""
    logger = logging.getLogger("lpe")
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
