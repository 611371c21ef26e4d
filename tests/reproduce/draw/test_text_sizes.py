"""Pictures in a column of 5.5 inches: every text is legible and inside the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from reproduce import fig1, fig2, fig5, fig7, fig8, fig9
from reproduce.command import Script
from reproduce.draw import page, panels
from reproduce.scales import find

COLUMN = 5.5
RECORDS = REPOSITORY / "figures" / "digits"
SCRIPTS = [module.SCRIPT for module in (fig1, fig2, fig5, fig7, fig8, fig9)]
"""Those that are drawn from the committed records; the landscapes are tested beside what they measure."""
every_picture = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


def texts(figure: Figure) -> Iterator[Text]:
    """Yield what is written in a figure, ticks and legends included."""
    figure.canvas.draw()
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text() and text.get_visible():
            yield text


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


@every_picture
def test_no_text_is_smaller_than_6_5_points_in_a_column_of_5_5_inches(
    script: Script, drawn: list[Figure]
) -> None:
    with page.page(COLUMN):
        script.draw(RECORDS, find.scale("digits"))
    small = {
        text.get_text(): float(text.get_fontsize())
        for text in texts(drawn[0])
        if float(text.get_fontsize()) < 6.5
    }
    assert small == {}


@every_picture
def test_the_picture_is_as_wide_as_its_column(script: Script, drawn: list[Figure]) -> None:
    with page.page(COLUMN):
        script.draw(RECORDS, find.scale("digits"))
    assert drawn[0].get_figwidth() == COLUMN


@every_picture
def test_no_title_or_label_is_cut_off_at_the_edge(script: Script, drawn: list[Figure]) -> None:
    with page.page(COLUMN):
        script.draw(RECORDS, find.scale("digits"))
    width = drawn[0].bbox.width
    written = [
        text
        for axes in drawn[0].axes
        for text in (axes.xaxis.label, axes.yaxis.label, axes._left_title)  # type: ignore[attr-defined]
        if text.get_text()
    ]
    drawn[0].canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in written}
    outside = [said for said, box in boxes.items() if box.x0 < -1 or box.x1 > width + 1]
    assert outside == []


def test_both_columns_of_a_page_are_the_default(drawn: list[Figure]) -> None:
    fig2.SCRIPT.draw(RECORDS, find.scale("digits"))
    assert drawn[0].get_figwidth() == 7.0


@pytest.mark.parametrize("inches", [4.9, 0.0, -1.0, 20.1, 1e9, float("nan"), float("inf")])
def test_a_width_that_texts_do_not_fit_in_is_refused(inches: float) -> None:
    with pytest.raises(InputError, match="--width must be 5 to 20 inches, not "), page.page(inches):
        pass


def test_a_page_is_left_as_it_was_found() -> None:
    with pytest.raises(RuntimeError), page.page(COLUMN):
        raise RuntimeError
    assert page.width() == page.BOTH_COLUMNS


def test_the_cost_picture_has_no_small_text_either(drawn: list[Figure]) -> None:
    from reproduce import cost

    with page.page(COLUMN):
        cost.SCRIPT.draw(RECORDS, find.scale("digits"))
    assert min(float(text.get_fontsize()) for text in texts(drawn[0])) >= 6.5
    assert drawn[0].get_figwidth() == COLUMN
