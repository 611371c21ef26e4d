"""The files of a figure: a PDF for print, and a PNG that is small and looks the same."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reproduce.draw import panels


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    figure, axes = panels.plt.subplots(figsize=(4, 2))
    for place, colour in enumerate((panels.BLACK, panels.ORANGE, panels.SKY, panels.GREEN)):
        axes.plot([0, 1], [place, place + 1], color=colour)
    axes.imshow(np.linspace(0, 1, 64)[None], extent=(0, 1, 0, 4), aspect="auto", alpha=0.5)
    of_a_palette = panels._of_a_palette

    def noted(png: io.BytesIO) -> bytes:
        (tmp_path / "plain.png").write_bytes(png.getvalue())
        return of_a_palette(png)

    monkeypatch.setattr(panels, "_of_a_palette", noted)
    assert panels.save(figure, tmp_path, "drawn") == [tmp_path / "drawn.pdf", tmp_path / "drawn.png"]
    return tmp_path


def test_a_png_is_of_a_palette_and_of_dots_that_suit_a_page(saved: Path) -> None:
    with Image.open(saved / "drawn.png") as image:
        assert (image.mode, image.size) == ("P", (600, 300))
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert (saved / "drawn.png").stat().st_size < 0.6 * (saved / "plain.png").stat().st_size


def test_a_png_has_the_colours_that_were_drawn(saved: Path) -> None:
    pictures = []
    for name in ("drawn", "plain"):
        with Image.open(saved / f"{name}.png") as image:
            pictures.append(np.asarray(image.convert("RGB"), dtype=float))
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.5  # of 255
    assert np.quantile(np.abs(pictures[0] - pictures[1]).max(axis=-1), 0.999) <= 32


def test_a_figure_is_the_same_bytes_again(saved: Path, tmp_path: Path) -> None:
    def drawn(name: str) -> bytes:
        figure, axes = panels.plt.subplots()
        axes.plot([0, 1], [0, 1])
        return panels.save(figure, tmp_path, name)[1].read_bytes()

    assert drawn("first") == drawn("second")
