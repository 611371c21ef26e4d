"""docs/determinism.md: every statement names a test, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "determinism.md").read_text(encoding="utf-8")
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NAMED = sorted(set(NODE.findall(PAGE)))


def rows(page: str) -> list[str]:
    """Return the rows of a page's tables, without heads and rules."""
    lines = page.splitlines()
    return [
        line
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("|") and not line.startswith("|---") and not after.startswith("|---")
    ]


@cache
def functions_in(path: str) -> frozenset[str]:
    """Return the names of a file's tests, also where the file is not there: none."""
    file = REPOSITORY / path
    tree = ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_row_names_a_test() -> None:
    assert [row for row in rows(PAGE) if not NODE.search(row)] == []
    for heading in ("## The same bits", "## To rounding", "## Statistical"):
        assert len(rows(PAGE.split(heading)[1].split("\n## ")[0])) >= 10, heading


def test_a_row_without_a_test_is_seen() -> None:
    page = "| what | test |\n|---|---|\n| one | `tests/test_store.py::test_it` |\n| other | none |\n"
    assert [row for row in rows(page) if not NODE.search(row)] == ["| other | none |"]


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_test_that_it_names_is_there(path: str) -> None:
    named = {name for of, name in NAMED if of == path}
    assert named <= functions_in(path)
    assert all(name.startswith("test_") for name in named)


def test_names_are_read_whole() -> None:
    # A name that the pattern does not match would go unchecked.
    assert PAGE.count("::") == len(NODE.findall(PAGE))
