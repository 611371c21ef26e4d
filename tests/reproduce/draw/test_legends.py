"""Legends: a mark that differs from its method's own is explained in the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lpe.provenance import REPOSITORY
from reproduce import fig4, fig8
from reproduce.command import Script
from reproduce.draw import panels
from reproduce.draw.summaries import counted_seeds
from reproduce.scales import find

RECORDS = REPOSITORY / "figures" / "digits"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Figures that were saved, still open."""
    kept: list[Figure] = []

    def keep(figure: Figure, folder: Path, name: str) -> list[Path]:
        kept.append(figure)
        return []

    monkeypatch.setattr(panels, "save", keep)
    yield kept
    for figure in kept:
        panels.plt.close(figure)


def kind_of(line: Line2D) -> str:
    """Tell hollow marks and dashes from filled marks; "" for what is neither, or has no mark."""
    if line.get_marker() == "_":
        return "dashes"
    hollow = line.get_markerfacecolor() in ("white", "none")
    return "hollow" if hollow and line.get_marker() not in ("None", "", None) else ""


def kinds_in(axes: Axes) -> set[str]:
    """Return the kinds of marks that a panel shows."""
    return {kind_of(line) for line in axes.lines if len(line.get_xdata())} - {""}  # type: ignore[arg-type]


def said_of(figure: Figure) -> list[tuple[str, str]]:
    """Return the kind and the words of each entry of the legend."""
    (legend,) = figure.legends
    handles = [each for each in legend.legend_handles if isinstance(each, Line2D)]
    return [(kind_of(each), str(each.get_label())) for each in handles]


@pytest.mark.parametrize("script", [fig4.SCRIPT, fig8.SCRIPT], ids=lambda script: script.name)
def test_every_kind_of_mark_is_in_the_legend_by_its_word(script: Script, drawn: list[Figure]) -> None:
    script.draw(RECORDS, find.scale("digits"))
    there = set().union(*map(kinds_in, drawn[0].axes))
    assert there
    explained = {kind for kind, words in said_of(drawn[0]) if kind and kind in words}
    assert explained == there


def test_the_legend_of_figure_8_says_in_which_panels_a_hollow_mark_means_what(drawn: list[Figure]) -> None:
    fig8.SCRIPT.draw(RECORDS, find.scale("digits"))
    titles = {axes.get_title(loc="left").rpartition(": ")[2] for axes in drawn[0].axes if kinds_in(axes)}
    assert titles == {"stored members", "to draw from"}
    said = [words for kind, words in said_of(drawn[0]) if kind == "hollow"]
    assert {words.partition(",")[0] for words in said} == titles


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([1], "n = 1 training seed"),
        ([5, 5], "n = 5 training seeds"),
        ([1, 20], "n = 1–20 training seeds"),
    ],
)
def test_one_training_seed_is_said_in_the_singular(numbers: list[int], said: str) -> None:
    assert counted_seeds(numbers) == said
