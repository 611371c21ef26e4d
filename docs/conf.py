"""The settings of these pages: ``sphinx-build -W -b html docs build/docs`` makes them, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]  # a build documents its own checkout

import lpe  # noqa: E402

project = "Low Precision Ensembling"
author = "the maintainers"
copyright = "2026 the Low Precision Ensembling authors, MIT licence"  # LICENSE names them
version = release = lpe.__version__
language = "en"
smartquotes = False  # two dashes are an option

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "generated_pages",
]
exclude_patterns = ["_ext"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
html_theme = "furo"
html_title = project
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
