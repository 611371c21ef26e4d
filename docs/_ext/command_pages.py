"""The options of every command, read from its parser: for the pages, and for the test of the pages' commands.

A parser is caught where its command would parse: no command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from unittest.mock import patch

Main = Callable[[list[str]], object]

GROUPS = {
    "lpe": ("lpe",),
    "reproduce": (
        "python reproduce/fig3.py",
        "python reproduce/known.py",
        "python -m reproduce",
        "python -m reproduce claims",
        "python -m reproduce report",
        "python -m reproduce.ledgers",
        "python -m reproduce.external",
        "python -m reproduce.tune",
        "python -m reproduce.scales.cifar10",
    ),
}
"""The commands of each page. All figure and table scripts have the options of figure 3's."""


class _Caught(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


def parser_of(main: Main) -> argparse.ArgumentParser:
    """Return the parser with which a command's main function would parse its arguments."""

    def catch(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Caught(parser)

    with patch.object(argparse.ArgumentParser, "parse_args", catch):
        try:
            main([])
        except _Caught as caught:
            return caught.parser
    raise RuntimeError(f"{main} parses no arguments")


def main_of(command: str) -> Main:
    """Return the main function of a command, such as ``python -m reproduce claims`` or ``lpe``.

    Raises:
        LookupError: there is no such command.
    """
    words = command.split()
    if words[:1] == ["lpe"]:
        module = "lpe.cli"
    elif words[:3] == ["python", "-m", "reproduce"]:
        module = "reproduce.ledger" if words[3:] == ["claims"] else "reproduce.__main__"
    elif words[:2] == ["python", "-m"]:
        module = words[2] if not words[2].endswith("cifar10") else f"{words[2]}.__main__"
    elif words[:1] == ["python"] and words[1].endswith(".py"):
        module = words[1].removesuffix(".py").replace("/", ".")
    else:
        raise LookupError(f"no command {command!r} is known")
    try:
        found = import_module(module)
    except ModuleNotFoundError:
        raise LookupError(f"{command!r} names no module") from None
    if hasattr(found, "main"):
        main: Main = found.main
        return main
    if hasattr(found, "SCRIPT"):
        from reproduce.command import run_figure

        return partial(run_figure, found.SCRIPT)
    raise LookupError(f"{module} is no command")


@dataclass(frozen=True)
class Option:
    """An option: how it is written, what it means, in words and with its choices."""

    written: str
    meaning: str


def subcommands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return a parser's subcommands by name, which may be none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def options_of(parser: argparse.ArgumentParser) -> Iterator[Option]:
    """Yield a parser's options but for --help, in its order; those that it hides are left out."""
    for action in parser._actions:
        is_help = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        if is_help or action.help == argparse.SUPPRESS:
            continue
        taken = "" if action.nargs == 0 else _metavar(action)
        written = f"{', '.join(action.option_strings)} {taken}".strip()
        meaning = (action.help or "") % {**vars(action), "prog": parser.prog}
        if action.choices is not None and action.metavar is None:
            meaning = f"{meaning} {{{', '.join(map(str, action.choices))}}}".strip()
        yield Option(written, meaning)


def _metavar(action: argparse.Action) -> str:
    if isinstance(action, argparse.BooleanOptionalAction):
        return ""
    metavar = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    name = metavar if isinstance(metavar, str) else " ".join(metavar)
    return f"{name} …" if action.nargs in ("+", "*") else name


def cell(text: str) -> str:
    """Return a text as a cell of a Markdown table: one line, its signs as they are."""
    line = " ".join(text.split())
    for sign in "\\|*<>[]{}_":
        line = line.replace(sign, f"\\{sign}")
    return line


def table(parser: argparse.ArgumentParser) -> str:
    """Return a parser's options as a Markdown table; "" where it has none."""
    rows = [f"| `{each.written}` | {cell(each.meaning)} |" for each in options_of(parser)]
    return "\n".join(["| option | meaning (default) |", "|---|---|", *rows, "", ""]) if rows else ""


def page(group: str, level: int = 3) -> str:
    """Return every command of a group in Markdown: description and options; "lpe" by subcommand.

    Args:
        group: a key of ``GROUPS``. level: of the headings.
    """
    sections = []
    for command in GROUPS[group]:
        parser = parser_of(main_of(command))
        for name, each in subcommands(parser).items() or [("", parser)]:
            description = (each.description or "").strip()
            sections.append(f"{'#' * level} `{f'{command} {name}'.strip()}`\n\n")
            sections.append(f"```text\n{description}\n```\n\n{table(each)}")
    return "".join(sections)
