"""The gallery of committed figures and tables, from the JSON beside each record."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reproduce.draw import told

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("digits", "cifar10-small", "cifar10", "assets", "known")
"""Folders of ``figures``, in the order of the page; a folder beside these comes after them."""


def folders(figures: Path) -> list[Path]:
    """List the folders that have records, the known ones first."""
    there = sorted({path.parent for path in figures.glob("*/*.json")})
    order = {name: place for place, name in enumerate(FOLDERS)}
    return sorted(there, key=lambda folder: (order.get(folder.name, len(order)), folder.name))


def drawn(folder: Path) -> Iterator[Path]:
    """Yield the JSON of everything that was drawn in a folder: a picture or a table lies beside it.

    The ledger's is of no figure.
    """
    for path in sorted(folder.glob("*.json")):
        if path.stem == "claims":
            continue
        if path.with_suffix(".png").is_file() or path.with_suffix(".md").is_file():
            yield path


def caption(path: Path, provenance: Mapping[str, Any]) -> str:
    """Return what a figure or table shows: a table's own title, or its script's first sentence."""
    if (title := path.with_suffix(".md")).is_file():
        return title.read_text(encoding="utf-8").partition("\n")[0]
    script = REPOSITORY / str(provenance["command"]).split()[0]
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def entry(path: Path, base: str) -> str:
    """Return one figure or table in Markdown.

    Args:
        path: its JSON. base: the way from the page to the folder ``figures``, such as "../../figures".
    """
    provenance = json.loads(path.read_text(encoding="utf-8"))
    place = f"{base}/{path.parent.name}"
    files = [path.with_suffix(f".{kind}") for kind in ("png", "tex", "csv", "json")]
    links = ", ".join(f"[{file.name}]({place}/{file.name})" for file in files if file.is_file())
    facts = told.facts(provenance)
    for name in ("command", "revision"):
        facts[name] = f"`{facts[name]}`"
    facts["files"] = links
    rows = "".join(f"| {name} | {fact} |\n" for name, fact in facts.items())
    text = caption(path, provenance).replace("*", "\\*")
    shown = path.with_suffix(".md")
    table = shown.read_text(encoding="utf-8").partition("\n")[2].strip() + "\n\n" if shown.is_file() else ""
    picture = f"![{path.stem}]({place}/{path.stem}.png)\n\n" if path.with_suffix(".png").is_file() else ""
    return f"### {path.parent.name}: {path.stem}\n\n{text}\n\n{picture}{table}| | |\n|---|---|\n{rows}\n"


def page(base: str, figures: Path = REPOSITORY / "figures") -> str:
    """Return the gallery in Markdown, a section a folder of figures."""
    sections = []
    for folder in folders(figures):
        entries = [entry(path, base) for path in drawn(folder)]
        sections += [f"## {folder.name}\n\n", *entries] if entries else []
    return "".join(sections)
