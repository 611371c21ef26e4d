"""Sphinx directives whose content is made at build time: ``{options} GROUP`` and ``{gallery}``."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from pathlib import Path
from typing import Any

import command_pages
import gallery_page
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Options(SphinxDirective):
    """The options of a group of commands, from their parsers."""

    required_arguments = 1
    option_spec = {"level": int}

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the group's commands, under headings of the option ``level``."""
        text = command_pages.page(self.arguments[0], self.options.get("level", 3))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class Gallery(SphinxDirective):
    """Every committed figure and table, from the JSONs."""

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the gallery; the page depends on every JSON."""
        figures = gallery_page.REPOSITORY / "figures"
        for path in figures.glob("*/*.json"):
            self.env.note_dependency(str(path))
        base = os.path.relpath(figures, Path(self.env.doc2path(self.env.docname)).parent)
        return self.parse_text_to_nodes(gallery_page.page(base), allow_section_headings=True)


def one_argument_a_line(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Give each argument of an "Args:" section a line of its own, which the docstrings write side by side."""
    names = set(_parameters(obj))
    inside, made = False, []
    for line in lines:
        if line.strip() and not line.startswith(" "):
            inside = line.strip() == "Args:"
        indent = line[: len(line) - len(line.lstrip())]
        parts = [line.strip()]
        if inside and indent:
            for found in reversed(list(re.finditer(r"(?<=[.:?]) (\w+(?:, \w+)*): ", parts[0]))):
                if set(found[1].split(", ")) <= names:
                    parts[:1] = [parts[0][: found.start()], parts[0][found.start() + 1 :]]
        begins = re.match(r"(\w+(?:, \w+)*): ", parts[0]) and inside
        first = "    " if begins and set(parts[0].partition(":")[0].split(", ")) <= names else indent
        made += [f"{first}{parts[0]}".rstrip(), *(f"    {part}" for part in parts[1:])]
    lines[:] = made


def _parameters(obj: Any) -> list[str]:
    try:
        return list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):  # a property, or a class without a signature
        return []


def written_defaults(
    app: Sphinx, what: str, name: str, obj: Any, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Write what a dataclass makes where nothing is given, in place of ``<factory>``."""
    if "<factory>" not in (signature or "") or not dataclasses.is_dataclass(obj):
        return None
    for each in dataclasses.fields(obj):
        if each.init and each.default_factory is not dataclasses.MISSING:
            signature = signature.replace("<factory>", repr(each.default_factory()), 1)
    return signature, returns


def dashes(app: Sphinx, doctree: nodes.document) -> None:
    """Set a dash between an argument and its meaning, for which Sphinx has two hyphens."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- " and isinstance(text.parent, nodes.paragraph):
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives, and the arguments' lines before napoleon reads them."""
    app.add_directive("options", Options)
    app.add_directive("gallery", Gallery)
    app.connect("autodoc-process-docstring", one_argument_a_line, priority=100)
    app.connect("autodoc-process-signature", written_defaults)
    app.connect("doctree-read", dashes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
