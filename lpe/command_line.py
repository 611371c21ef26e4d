"""The parser that every command of the suite shares: an error in its arguments is one line."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a bad argument with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"error: {message}; see --help\n")
