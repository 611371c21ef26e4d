"""TeX tables compile, and fit, in one column and in two, where TeX is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from reproduce.draw.tables import Bold, latex, mean_and_interval

pytestmark = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")

HEADER = ["network", *(f"mean loss {number}" for number in range(13))]
CELL = mean_and_interval([0.0576, 0.0521, 0.0631], 4)
WIDE = [["digits CLIP-L, wide & % of _ ☆", *(CELL,) * 12, Bold(CELL)]] * 5
LONG = [["x − ½", *("1",) * 13]] * 95
PAGES = {
    "onecolumn": "textwidth=5.5in,textheight=9in",
    "twocolumn": "textwidth=7in,textheight=9in,columnsep=.25in",
}


def compiled(columns: str, tables: str, folder: Path) -> tuple[int, str]:
    """Return the exit code of pdflatex and what it said."""
    lines = [
        rf"\documentclass[{columns}]{{article}}",
        rf"\usepackage[{PAGES[columns]}]{{geometry}}",
        r"\usepackage{booktabs, graphicx}",
        r"\begin{document}",
        "Text.",
        tables,
        r"\end{document}",
    ]
    (folder / "tables.tex").write_text("\n".join(lines), encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("columns", PAGES)
@pytest.mark.parametrize("rows", [WIDE, LONG], ids=["wide", "long"])
def test_a_table_compiles_and_fits(columns: str, rows: list[list[str]], tmp_path: Path) -> None:
    code, said = compiled(columns, latex("table9", HEADER, rows, "A table.", ["A note."]), tmp_path)
    assert code == 0, said
    assert "Overfull" not in said and "too large" not in said


def test_the_check_of_the_fit_catches_a_table_that_is_too_wide(tmp_path: Path) -> None:
    text = latex("table9", HEADER, WIDE, "A table.").replace(r"\ifdim\wd0>\linewidth", r"\iffalse")
    code, said = compiled("onecolumn", text, tmp_path)
    assert code == 0 and "Overfull" in said
