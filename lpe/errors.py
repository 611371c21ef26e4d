"""The one exception for what a user can put right."""

from __future__ import annotations


class InputError(ValueError):
    """An error of the user's: something that was given is wrong.

    The message is one line: what is wrong, with the value; what would be right. Commands print
    it and exit with code 2; library users catch it as a ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        # What is shown of a value may have lines of its own.
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
