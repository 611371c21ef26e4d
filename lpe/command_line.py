"""The parser that every command of the suite shares: an error in its arguments is one line.

What no option takes is refused here, for all of them: an empty value, characters that cannot be printed,
values longer than any path, numbers in other digits than 0-9, whole numbers beyond 64 bits.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, NoReturn

LONGEST = 4096
"""Characters of an argument at most: those of a path."""

LONGEST_LINE = 2000
"""Characters of an error's line at most."""


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a bad argument with one line and exit code 2.

    Attributes:
        remark: the end of such a line, on where arguments are from.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.description is not None:  # a docstring, as a terminal shows it
            self.description = self.description.replace("``", "")
        self.remark = ""
        # For options of these types, in whatever group they are.
        self.register("type", int, integer)
        self.register("type", float, number)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the arguments, once each is found to be one that can be."""
        given = sys.argv[1:] if args is None else list(args)
        if wrong := _wrong(given):
            self.error(wrong)
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"error: {one_line(message + self.remark)}; see --help\n")


def integer(text: str) -> int:
    """Return the whole number of an option.

    Raises:
        argparse.ArgumentTypeError: the text is none in the digits 0-9, or one beyond 64 bits.
    """
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no whole number in the digits 0-9")
    if abs(value := int(text)) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is beyond 64 bits")
    return value


def number(text: str) -> float:
    """Return the number of an option; whether it may be infinite, or none (nan), is the option's to say.

    Raises:
        argparse.ArgumentTypeError: the text is none in the digits 0-9.
    """
    if not re.fullmatch(
        r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf(inity)?|nan)", text, re.I | re.A
    ):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no number in the digits 0-9")
    return float(text)


def complain(error: object) -> None:
    """Print an error on stderr: one line, that a terminal shows as it is."""
    print(f"error: {one_line(str(error))}", file=sys.stderr)


def one_line(text: str) -> str:
    """Return a text in one line that a terminal shows as it is.

    What is shown of a file or an argument may have lines of its own, and characters that move the cursor,
    colour what follows, or are halves of others: those are written as Python writes them, ``\\x1b``.
    """
    line = " ".join(part.strip() for part in text[: 2 * LONGEST_LINE].splitlines())
    line = "".join(repr(each)[1:-1] if _unprintable(each) else each for each in line)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _wrong(arguments: Sequence[str]) -> str:
    """Say which of the arguments no option takes, and why; nothing where there is none."""
    for place, text in enumerate(arguments):
        name, equals, value = text.partition("=") if text.startswith("-") else ("", "", text)
        if not text.strip() or (equals and not value.strip()):
            before = arguments[place - 1] if place and not equals else name
            what = f"the value of {_shown(before)}" if before.startswith("-") else f"argument {place + 1}"
            return f"{what} is empty; give one, or leave it out"
        if equals and value == "--":  # which argparse would drop
            return f"the value of {_shown(name)} is '--', which is none; give one, or leave it out"
        if any(map(_unprintable, text)):
            return f"{_shown(text)} has characters that cannot be printed; write it without"
        if len(text) > LONGEST:
            return f"{_shown(text)} has {len(text):,} characters; {LONGEST:,} or fewer are expected"
    return ""


def _unprintable(character: str) -> bool:
    return not character.isprintable() and unicodedata.category(character) != "Zs"


def _shown(text: str) -> str:
    """Return an argument as one short piece of an error message."""
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
