"""Tables as files, against texts written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpe import writing
from lpe.errors import InputError
from reproduce.draw import tables
from reproduce.draw.tables import (
    PAGE,
    Bold,
    latex,
    mark_best,
    markdown,
    mean_and_interval,
    plain_number,
    write_all,
)

HEADER = ["method", "NLL (nats)", "members"]
ROWS = [["FP32", 0.123456789, 1], ["LPE-BSR", Bold(".05 [.04, .06]"), 10], ["50 % & more", None, 4]]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0576, 4, ".0576"),
        (-0.5, 1, "-.5"),
        (1.25, 2, "1.25"),
        (10.0, 1, "10.0"),
        (-0.00001, 3, ".000"),
        (3.0, 0, "3"),
        (0.0, 0, "0"),
    ],
)
def test_a_number_has_no_leading_zero_and_no_minus_before_nothing(
    value: float, digits: int, text: str
) -> None:
    assert plain_number(value, digits) == text


SAMPLE = [0.01, 0.02, 0.03, 0.04, 0.05]
# Mean .03, half width t(.975, 4) · √(2.5 / 5) / 100 = .01963.
OF_SAMPLE = ".0300 [.0104, .0496]"


def test_mean_and_interval_of_a_known_sample() -> None:
    assert mean_and_interval(SAMPLE, 4) == OF_SAMPLE


def test_the_known_sample_catches_a_one_sided_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    two_sided = tables.student_interval
    monkeypatch.setattr(tables, "student_interval", lambda values, level: two_sided(values, 2 * level - 1))
    assert mean_and_interval(SAMPLE, 4) != OF_SAMPLE


def test_one_value_has_no_interval() -> None:
    assert mean_and_interval([0.0576], 4) == ".0576"


def test_no_values_are_an_error() -> None:
    with pytest.raises(InputError, match="no values"):
        mean_and_interval([], 4)


def marked(values: list[float | None], best: str = "lowest") -> list[bool]:
    rows = [["a", ".10"], ["b", ".20"], ["c", ".10"]]
    return [isinstance(row[1], Bold) for row in mark_best(rows, 1, values, best)]


def test_the_best_cell_and_those_that_show_the_same_text_are_bold() -> None:
    assert marked([0.101, 0.2, 0.099]) == [True, False, True]


def test_the_best_may_be_the_highest() -> None:
    assert marked([0.1, 0.2, 0.1], "highest") == [False, True, False]


@pytest.mark.parametrize("out", [None, float("nan")])
def test_a_row_without_a_value_does_not_compete(out: float | None) -> None:
    assert marked([out, 0.2, 0.1]) == [False, False, True]


def test_marking_leaves_the_given_rows_as_they_are() -> None:
    rows = [["a", ".10"]]
    mark_best(rows, 1, [0.1])
    assert not isinstance(rows[0][1], Bold)


@pytest.mark.parametrize(
    ("values", "best", "said"), [([0.1], "least", "best is 'least'"), ([], "lowest", "0 values for 1 rows")]
)
def test_marking_names_bad_input(values: list[float | None], best: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        mark_best([["a"]], 0, values, best)


def test_markdown_is_aligned_with_numbers_to_the_right() -> None:
    assert markdown(HEADER, ROWS, "A table.", ["a note"]) == (
        "A table.\n"
        "\n"
        "| method      |         NLL (nats) | members |\n"
        "| ----------- | -----------------: | ------: |\n"
        "| FP32        |             0.1235 |       1 |\n"
        "| LPE-BSR     | **.05 [.04, .06]** |      10 |\n"
        "| 50 % & more |                    |       4 |\n"
        "\n"
        "- a note\n"
    )


def test_markdown_does_not_break_at_a_bar() -> None:
    assert r"| a\|b |" in markdown(["x"], [["a|b"]], "c")


def test_latex_is_a_booktabs_table() -> None:
    assert latex("table9", HEADER, ROWS, "A table.", ["a note"]).splitlines() == [
        r"\begin{table*}",
        r"\centering\scriptsize\setlength{\tabcolsep}{2.5pt}",
        r"\caption{A table.}",
        r"\label{tab:table9}",
        r"\sbox0{%",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & NLL (nats) & members \\",
        r"\midrule",
        r"FP32 & 0.1235 & 1 \\",
        r"LPE-BSR & \textbf{.05 [.04, .06]} & 10 \\",
        r"50 \% \& more &  & 4 \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
        r"\par\smallskip\noindent a note",
        r"\end{table*}",
    ]


def in_latex(text: str) -> str:
    return latex("n", ["x"], [[text]], "").splitlines()[9].removesuffix(r" \\")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b #1 $5 {x}", r"a\_b \#1 \$5 \{x\}"),
        ("\\", r"\textbackslash{}"),
        ("~ ^", r"\textasciitilde{} \textasciicircum{}"),
        ("<1", "$<$1"),
        ("-.5 to -2", "$-$.5 to $-$2"),
        ("INT-5", "INT-5"),
        ("a − b ± ½ × c", r"a $-$ b $\pm$ $\frac{1}{2}$ $\times$ c"),
        ("[1, 2]", "{[}1, 2]"),
        ("*", "{*}"),
    ],
)
def test_latex_is_escaped(text: str, escaped: str) -> None:
    assert in_latex(text) == escaped


def test_a_long_latex_column_breaks_its_lines() -> None:
    assert r"\begin{tabular}{p{0.17\linewidth}}" in latex("n", ["x"], [["word " * 20]], "c")


def test_a_long_latex_table_goes_on_in_another_of_its_number_with_one_label_and_a_head_on_each() -> None:
    text = latex("n", ["x"], [[1]] * (PAGE + 1), "c", ["a note"])
    counted = [text.count(part) for part in (r"\begin{table*}", r"\label", r"x \\", r"{table}{-1}", "a note")]
    assert counted == [2, 1, 2, 1, 1]


def test_a_row_of_many_lines_counts_as_many() -> None:
    text = latex("n", ["x"], [["word " * 6 * 25], ["word " * 6 * 25]], "c")
    assert text.count(r"\begin{table*}") == 2


def test_a_title_that_is_wider_than_its_column_is_broken() -> None:
    assert r"\shortstack[r]{average\\loss} \\" in latex("n", ["average loss"], [[0.05]], "c")


def test_all_three_files_are_written_and_csv_keeps_the_digits(tmp_path: Path) -> None:
    paths = write_all(tmp_path, "table9", HEADER, ROWS, "A table.")
    assert [path.name for path in paths] == ["table9.csv", "table9.md", "table9.tex"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert paths[0].read_text().splitlines() == [
        "method,NLL (nats),members",
        "FP32,0.123456789,1",
        'LPE-BSR,".05 [.04, .06]",10',
        "50 % & more,,4",
    ]


def test_a_row_of_another_length_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 2 of t has 1 cells; 2 are expected"):
        write_all(tmp_path, "t", ["a", "b"], [[1, 2], [3]], "c")
    assert not list(tmp_path.iterdir())


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two columns of t have one name"):
        write_all(tmp_path, "t", ["a", "a"], [], "c")


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_all(tmp_path, "t", ["a"], [[1]], "c")[0]
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path, "t", ["a"], [[2]], "c")
    assert path.read_bytes() == before
