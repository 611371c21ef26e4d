"""Tables of records within pages that people write: put between two marks of the page."""

from __future__ import annotations


def filled(text: str, begin: str, table: str, end: str) -> str:
    """Return a page's text with a table between its marks.

    Raises:
        ValueError: the page lacks one.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the text has no {begin} … {end} for its table")
    return f"{before}{begin}\n{table}{end}{after}"
