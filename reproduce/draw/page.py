"""How wide the figures are drawn, a column of a page at which every text keeps its size; their heading.

And whether they are drawn from records that were edited, which every picture and table then says itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lpe.errors import InputError

BOTH_COLUMNS = 7.0
"""Inches: both columns of a two-column page."""
NARROWEST = 5.0
"""Inches: below, texts of 6.5 points would run into each other."""
WIDEST = 20.0
"""Inches: at 300 dots an inch a PNG has 6,000 pixels."""

EDITED = "records edited after measuring"
"""What a picture, table or ledger says of itself that was made from such records."""

FILES = ("pdf", "png")
"""Kinds of files that a picture is written as."""

_files: ContextVar[tuple[str, ...]] = ContextVar("files", default=FILES)
_width: ContextVar[float] = ContextVar("width", default=BOTH_COLUMNS)
_heading: ContextVar[str] = ContextVar("heading", default="")
_edited: ContextVar[bool] = ContextVar("edited", default=False)


def check_width(inches: float) -> float:
    """Return a width as it is.

    Raises:
        InputError: it is no number, narrower than ``NARROWEST`` or wider than ``WIDEST``.
    """
    if not NARROWEST <= inches <= WIDEST:
        raise InputError(f"--width must be {NARROWEST:g} to {WIDEST:g} inches, not {inches:g}")
    return inches


@contextmanager
def page(
    inches: float, heading: str = "", edited: bool = False, files: tuple[str, ...] = FILES
) -> Iterator[None]:
    """Draw figures at a width, and below a heading, for the time of a ``with``.

    Args:
        edited: whether records were edited after measuring. files: kinds that pictures are written as, of
            pdf, png and svg.
    """
    of_files = _files.set(files)
    token, of_heading, of_edited = _width.set(check_width(inches)), _heading.set(heading), _edited.set(edited)
    try:
        yield
    finally:
        _files.reset(of_files)
        _width.reset(token)
        _heading.reset(of_heading)
        _edited.reset(of_edited)


def width() -> float:
    """Return the width to draw at, in inches."""
    return _width.get()


def files() -> tuple[str, ...]:
    """Return the kinds of files that a picture is written as."""
    return _files.get()


def heading() -> str:
    """Return the line above the figures; "" for none."""
    return _heading.get()


def is_edited() -> bool:
    """Tell whether what is drawn comes from records that were edited after measuring."""
    return _edited.get()
