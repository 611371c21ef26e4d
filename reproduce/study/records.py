"""The records of a scale: their names, and rows chosen from them."""

from __future__ import annotations


def record_name(figure: str) -> str:
    """Return the record's file that a figure or table is drawn from: a table's own name is the table's."""
    return f"{figure}_record.csv" if figure.startswith("table") else f"{figure}.csv"
