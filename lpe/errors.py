"""The one exception for what a user can put right."""

from __future__ import annotations


class InputError(ValueError):
    """Something that was given is wrong.

    The message is one line: what is wrong, with the value; what would be right. Commands print
    it and exit with code 2; library users catch it as a ``ValueError``.
    """
