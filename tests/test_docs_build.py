"""The pages of docs build without a warning and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import lpe
from lpe.provenance import REPOSITORY

NEEDED = ("sphinx", "myst_parser", "furo")
BUILD = """
import socket, sys


def refused(*_):
    raise OSError("the pages are built without a network")


socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
from sphinx.cmd.build import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages, built once with every warning an error."""
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        pytest.skip(f"{', '.join(absent)} not installed: pip install -c constraints.txt -e '.[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "trees")]
    command = [sys.executable, "-c", BUILD, *options, "docs", str(folder / "html")]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Drawn:
    """Stands for a class whose docstring names several arguments in a line."""

    def __init__(self, size: int, seed: int = 0, include: str = "", exclude: str = "") -> None: ...


def test_each_argument_of_a_docstring_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "sphinx", reason="sphinx is not installed: pip install -c constraints.txt -e '.[docs]'"
    )
    monkeypatch.syspath_prepend(REPOSITORY / "docs" / "_ext")
    pages = import_module("generated_pages")
    lines = [
        "Args:",
        "    size: members; see: x. seed: of the",
        "        draws. include, exclude: patterns. note: no argument.",
        "",
        "Raises:",
        "    InputError: a size below 1. seed: another.",
    ]
    pages.one_argument_a_line(None, "class", "Drawn", Drawn, None, lines)
    assert lines == [
        "Args:",
        "    size: members; see: x.",
        "    seed: of the",
        "        draws.",
        "    include, exclude: patterns. note: no argument.",
        "",
        "Raises:",
        "    InputError: a size below 1. seed: another.",
    ]


def test_a_default_that_is_made_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "sphinx", reason="sphinx is not installed: pip install -c constraints.txt -e '.[docs]'"
    )
    monkeypatch.syspath_prepend(REPOSITORY / "docs" / "_ext")
    pages = import_module("generated_pages")
    shown = "(bits: int, scale: PerTensor = <factory>, clip: str = 'absmax')"
    written = ("(bits: int, scale: PerTensor = PerChannel(channels=1), clip: str = 'absmax')", "")
    assert pages.written_defaults(None, "class", "Int", lpe.Int, None, shown, "") == written
    assert pages.written_defaults(None, "class", "Drawn", Drawn, None, "(size: int)", "") is None


@pytest.mark.slow
def test_the_pages_build_without_a_warning(built: Path) -> None:
    assert (built / "index.html").is_file()


@pytest.mark.slow
def test_the_gallery_and_the_options_are_made_as_the_pages_are_built(built: Path) -> None:
    gallery = (built / "reproduce" / "gallery.html").read_text(encoding="utf-8")
    words = re.sub("<[^>]*>", "", gallery)  # Sphinx sets each word of a command by itself
    assert "python reproduce/fig2.py --scale digits" in words and 'alt="fig2"' in gallery
    options = (built / "guides" / "command_line.html").read_text(encoding="utf-8")
    assert "--model-kwargs" in options and "lpe describe" in options


@pytest.mark.slow
def test_the_library_is_told_from_its_docstrings(built: Path) -> None:
    library = (built / "api.html").read_text(encoding="utf-8")
    assert 'id="lpe.LowPrecisionEnsemble"' in library and 'id="lpe.evaluate"' in library
    of_one = library.partition('id="lpe.LowPrecisionEnsemble"')[2].partition('id="lpe.FeedbackEnsemble"')[0]
    for argument in ("model", "system", "size", "seed", "refresh"):  # side by side in the docstring
        assert f"<strong>{argument}</strong> – " in of_one, argument
    assert "&lt;factory&gt;" not in library


@pytest.mark.slow
def test_a_page_says_whose_it_is_and_has_its_style(built: Path) -> None:
    page = (built / "index.html").read_text(encoding="utf-8")
    assert "2026 the Low Precision Ensembling authors" in page and "_static/pages.css" in page
