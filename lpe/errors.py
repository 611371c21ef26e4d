"""The one exception for what a user can put right."""

from __future__ import annotations

import unicodedata

LONGEST = 2000
"""Characters of a message at most; names in it are a user's, or a file's."""


class InputError(ValueError):
    """An error of the user's: something that was given is wrong.

    The message is one line: what is wrong, with the value; what would be right. Commands print
    it and exit with code 2; library users catch it as a ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """Return a message in one line that a terminal shows as it is.

    What is shown of a value may have lines of its own, and characters that move the cursor, colour the text
    or are halves of others: those are written as Python writes them, ``\\x1b``.
    """
    line = " ".join(part.strip() for part in message[: 4 * LONGEST].splitlines())
    if not line.isprintable():
        line = "".join(map(_printable, line))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _printable(character: str) -> str:
    kept = character.isprintable() or unicodedata.category(character) == "Zs"
    return character if kept else repr(character)[1:-1]
