"""One colour and one marker a method, in every figure.

Widths of LPE-BSR and RTN have the cool colours, what is drawn from a posterior vermilion, ensembles of
several trainings orange, and a single network as it is black.
"""

from __future__ import annotations

from typing import Any

from reproduce.draw import panels
from reproduce.study.unrounded import FP32, RE_ESTIMATED, SCALED

Mark = tuple[str, str]
"""A colour and a marker."""

BIT_STYLES: dict[int, Mark] = {
    8: (panels.GREY, "."),
    7: (panels.GREY, "x"),
    6: (panels.PURPLE, "v"),
    5: (panels.SKY, "D"),
    4: (panels.BLUE, "o"),
    3: (panels.GREEN, "s"),
    2: (panels.YELLOW, "P"),
}
RTN_MARKER = "X"
"""In the colour of its width."""
SINGLE_STYLE: Mark = (panels.BLACK, "*")
SCALED_STYLE: Mark = (panels.BLACK, "P")
LARGER_STYLE: Mark = (panels.BLACK, "h")
BMA_STYLE: Mark = (panels.VERMILION, "^")
SWAG_STYLE: Mark = (panels.PURPLE, ">")
"""Where SWAG's draws stand beside IVON's, which then have BMA's."""
SGLD_STYLE: Mark = (panels.GREY, "+")
FAMILY_STYLES: dict[str, Mark] = {
    "DE": (panels.ORANGE, "p"),
    "SSE": (panels.ORANGE, "d"),
    "CSGLD": (panels.ORANGE, "H"),
    "MultiIVON": (panels.ORANGE, "8"),
    "MultiSWAG": (panels.ORANGE, "2"),
    "BE": (panels.ORANGE, "1"),
}
WINE, OLIVE, TEAL, INDIGO = "#882255", "#999933", "#44AA99", "#332288"
"""Tol's muted colours, of the methods that stand beside the paper's: told apart from Okabe & Ito's."""
SPREAD_STYLE: Mark = (panels.GREEN, "D")
GAUSSIAN_STYLE: Mark = (WINE, "s")
MATCHED_STYLE: Mark = (WINE, "x")
"""Gaussian noise of LPE-BSR's own variance."""
DROPOUT_STYLE: Mark = (OLIVE, "v")
AUGMENTATION_STYLE: Mark = (TEAL, "h")
LAPLACE_STYLE: Mark = (panels.GREY, "d")
FEEDBACK_STYLE: Mark = (INDIGO, "o")
SELECTED_MARKER = "*"
"""In the colour of what is selected from."""
CASCADE_MARKERS = {"RTN": "<", "FP32": ">", "DE": "4"}
"""By what a cascade begins with, in the colour of what it goes on to."""

RE_ESTIMATED_LINE: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "linewidth": 0.8}
"""Of LPE-BSR with re-estimated batch-norm statistics, in the colour of its width."""

PLANES_LINE: dict[str, Any] = {"linestyle": (0, (4, 1.2, 1, 1.2)), "linewidth": 0.9}
"""Of LPE-BSR's members stored as planes, in the colour of its width."""

METHODS = (FP32, SCALED, "RTN", "LPE-BSR", f"LPE-BSR{RE_ESTIMATED}", "BMA")
"""Of the figures around the points of one network."""
