"""The rooms' arrows: no circle of imports, no figure that imports a figure, nothing that points back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lpe.provenance import REPOSITORY

PACKAGES = ("lpe", "reproduce", "benchmarks")
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (REPOSITORY / package).rglob("*.py")
}

PACKAGE_NAMES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, also within functions and for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    yield inner
                elif node.module in MODULES:
                    yield node.module


# The public package names everything below it; who imports it means these names.
GRAPH = {name: sorted(set(imported(path)) - {"lpe", name}) for name, path in MODULES.items()}


def a_circle(graph: dict[str, list[str]]) -> list[str]:
    """Return the modules of a circle, the first one also at the end; none: empty."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for following in graph.get(name, []):
            if found := visit(following, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def room_of(name: str) -> str:
    """Return a module's room: its folder in reproduce, else its package."""
    parts = name.split(".")
    is_room = f"reproduce.{parts[1]}" in PACKAGE_NAMES if len(parts) > 1 else False
    return ".".join(parts[:2]) if parts[0] == "reproduce" and is_room else parts[0]


ROOMS: dict[str, set[str]] = {}
for module, targets in GRAPH.items():
    ROOMS.setdefault(room_of(module), set()).update(room_of(each) for each in targets)


def test_no_circle_of_files() -> None:
    assert a_circle(GRAPH) == []


def test_no_circle_of_folders() -> None:
    assert a_circle({room: sorted(targets - {room}) for room, targets in ROOMS.items()}) == []


def test_a_circle_is_found() -> None:
    assert a_circle({"a": ["b"], "b": ["c", "d"], "d": ["b"]}) == ["b", "d", "b"]


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("lpe", set()),
        ("reproduce.study", {"lpe"}),
        ("reproduce.judge", {"lpe", "reproduce.study"}),
        ("reproduce.draw", {"lpe", "reproduce.study", "reproduce.judge"}),
        ("reproduce.scales", {"lpe", "reproduce.study"}),
    ],
)
def test_a_room_points_at_what_lies_below_it_alone(room: str, allowed: set[str]) -> None:
    assert ROOMS[room] - {room} <= allowed


def test_nothing_imports_the_benchmarks() -> None:
    assert [name for name, of in ROOMS.items() if name != "benchmarks" and "benchmarks" in of] == []


FIGURES = {
    name
    for name in MODULES
    if name.removeprefix("reproduce.").startswith(("fig", "table")) and name.count(".") == 1
} | {f"reproduce.{name}" for name in ("cost", "known", "spread", "shift", "selective", "why")}


def test_no_figure_imports_a_figure() -> None:
    assert {name: found for name in FIGURES if (found := FIGURES & set(GRAPH[name]))} == {}


def test_figures_and_tables_do_not_know_the_scales() -> None:
    at_fault = [name for name in FIGURES if any(room_of(each) == "reproduce.scales" for each in GRAPH[name])]
    assert at_fault == []


@pytest.mark.parametrize("scale", ["digits", "paper", "cifar10"])
def test_nothing_outside_the_scales_names_one(scale: str) -> None:
    """In a text that is not a docstring; what a scale's module defines cannot be reached at all."""
    found = []
    for name, path in MODULES.items():
        if not name.startswith("reproduce.") or room_of(name) == "reproduce.scales":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                if scale in node.value.split():
                    found.append(f"{name}: {node.value}")
    assert found == []
