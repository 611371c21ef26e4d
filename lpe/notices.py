"""Say what a user should know of a result and that is no error: a line each, once a process.

The lines go to the logger "lpe", which prints them on standard error where nobody set up logging.
``logging.getLogger("lpe").setLevel(logging.ERROR)`` silences them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

_LOGGER = logging.getLogger("lpe")
_said: dict[str, None] = {}


def note(text: str) -> None:
    """Say a line, unless it was said in this process."""
    if text not in _said:
        _said[text] = None
        _LOGGER.warning("note: %s", text)


def say(lines: Iterable[str]) -> None:
    """Say each of the lines; see :func:`note`."""
    for line in lines:
        note(line)


def forget() -> None:
    """Let every line be said anew."""
    _said.clear()


def said() -> list[str]:
    """Return the lines that were said, in their order: for the record of a result."""
    return list(_said)
