"""README, CONTRIBUTING and docs: blocks of Python and shell run or say why not, links lead somewhere, and the
README's numbers are those of the records."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lpe
from lpe import cli
from lpe.provenance import REPOSITORY
from reproduce import __main__ as everything

sys.path.insert(0, str(REPOSITORY / "docs" / "_ext"))

import command_pages
import gallery_page
import glance
import layer_table

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>python|sh)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TRAINED = {
    "deep": lpe.DeepEnsemble,
    "swag": lpe.SWAGEnsemble,
    "posterior": lpe.IVONEnsemble,
    "snapshots": lpe.SnapshotEnsemble,
    "samples": lpe.CyclicalSGLDEnsemble,
    "batch_ensemble": lpe.BatchEnsemble,
}
CHANCE = 2.302585  # ln 10


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language and code, and why it is not run (None: it is)."""

    page: str
    language: str
    code: str
    reason: str | None


def blocks_of(page: Path) -> list[Block]:
    """List a page's blocks of Python and shell, in its order."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    name = str(page.relative_to(REPOSITORY))
    return [Block(name, each["language"], each["code"], each["reason"]) for each in found]


BLOCKS = {name: blocks_of(page) for name, page in zip(NAMES, PAGES, strict=True)}
WITH_PYTHON = [name for name, blocks in BLOCKS.items() if any(each.language == "python" for each in blocks)]
SHELL = [block for blocks in BLOCKS.values() for block in blocks if block.language == "sh"]


@dataclass(frozen=True)
class Ran:
    """What a page's Python has defined, and what it has printed."""

    names: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """The pages whose Python has run, by name: each once, in a folder of its own."""
    return {}


def run(page: str, done: dict[str, Ran], folder: Path) -> Ran:
    """Run a page's blocks of Python from the first to the last, once."""
    if page not in done:
        (folder / "tests").symlink_to(REPOSITORY / "tests")
        names: dict[str, Any] = {}
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            patch.chdir(folder)
            for number, block in enumerate(each for each in BLOCKS[page] if each.language == "python"):
                if block.reason is None:
                    exec(compile(block.code, f"{page}, Python block {number}", "exec"), names)
        done[page] = Ran(names, said.getvalue())
    return done[page]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_every_block_of_python_runs(page: str, ran: dict[str, Ran], tmp_path: Path) -> None:
    runs = [block for block in BLOCKS[page] if block.language == "python" and block.reason is None]
    assert ("__builtins__" in run(page, ran, tmp_path).names) == bool(runs)


def test_no_fence_escapes_the_tests() -> None:
    for page in PAGES:
        opened = re.findall(
            r"^```(?:python|sh|bash|shell|console|py)\b", page.read_text("utf-8"), re.MULTILINE
        )
        assert len(opened) == len(blocks_of(page)), f"{page} has a fence of another form than the tests read"


@pytest.mark.parametrize("name", TRAINED)
def test_each_method_that_trains_has_learnt_its_digits(
    name: str, ran: dict[str, Ran], tmp_path: Path
) -> None:
    names = run("docs/guides/training.md", ran, tmp_path).names
    ensemble = names[name]
    assert type(ensemble) is TRAINED[name] and len(ensemble) > 1
    table = lpe.evaluate(ensemble, [names["data"].test])
    assert table["nll"].iloc[-1] < 0.5 * CHANCE and table["ambiguity"].iloc[-1] > 0


def test_the_quick_start_prints_what_the_readme_says(ran: dict[str, Ran], tmp_path: Path) -> None:
    shown = re.search(r"^```text\n(.*?ambiguity  memory_bits\n.*?)^```$", readme(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    printed = run("README.md", ran, tmp_path).printed
    for said, measured in zip(shown[1].splitlines()[2:], printed.splitlines()[2:], strict=True):
        for left, right in zip(said.split(), measured.split(), strict=True):
            # Kernels of another make of CPU add up in another order, and 36 images in 1,000 are 13.
            assert float(left) == pytest.approx(float(right), rel=1e-9 if "." not in left else 0.25, abs=0.01)


def lines_of(block: Block) -> Iterator[list[str]]:
    """Yield a shell block's commands as words, without variables before them and the program's folder."""
    for line in block.code.splitlines():
        for command in line.split("&&"):
            words = shlex.split(command)
            while words and "=" in words[0]:
                words = words[1:]
            if words:
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


RUN_HERE = sorted({tuple(words) for block in SHELL if block.reason is None for words in lines_of(block)})


@pytest.mark.parametrize("words", RUN_HERE, ids=" ".join)
def test_every_line_of_shell_that_is_not_marked_runs(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert words[0] == "lpe", f"{' '.join(words)} is no lpe command; say why it is not run"
    assert cli.main(words[1:]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_every_command_that_is_not_run_has_the_options_that_it_is_given() -> None:
    known = 0
    for block in SHELL:
        for words in lines_of(block):
            if words[0] == "lpe":
                command, arguments = "lpe", words[1:]
            elif words[:3] == ["python", "-m", "reproduce"]:
                claims = words[3:4] == ["claims"]
                command, arguments = " ".join(words[: 3 + claims]), words[3 + claims :]
            elif words[:2] == ["python", "-m"] and words[2].partition(".")[0] == "reproduce":
                command, arguments = " ".join(words[:3]), words[3:]
            elif words[0] == "python" and words[1].startswith("reproduce/") and "--assets" not in words:
                command, arguments = " ".join(words[:2]), words[2:]
            else:
                continue
            command_pages.parser_of(command_pages.main_of(command)).parse_args(arguments)
            known += 1
    assert known >= 15


def readme() -> str:
    """Return the README's text."""
    return (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_says_what_is_not_shown() -> None:
    text = readme()
    assert len(text.splitlines()) <= 200
    found = text.partition("## What we found")[2].partition("\n## ")[0]
    assert found.count("\n- **") == 6 and "no ImageNet and no LLM number" in found
    for short in ("BMA", "RTN", "BSR", "SSE", "CSGLD", "DE", "BE", "AMB", "DEE", "NLL", "ECE"):
        assert f"| {short} |" in text.partition("## Glossary")[2].partition("\n## ")[0], short


def test_the_readmes_table_is_that_of_the_records() -> None:
    assert glance.filled(readme()) == readme(), "run python docs/_ext/glance.py"


def test_the_table_of_a_layer_is_that_of_its_record() -> None:
    text = layer_table.PAGE.read_text(encoding="utf-8")
    assert layer_table.filled(text) == text, "run python docs/_ext/layer_table.py"


def number(text: str, digits: int) -> str:
    """Return a number as the README writes it: without the 0 before the point, with the minus of prose."""
    rounded = f"{float(text):.{digits}f}".replace("-", "−")
    return re.sub(r"^(−?)0\.", r"\1.", rounded)


def claim(scale: str, begins: str, digits: int = 4) -> str:
    """Return the effect of the claim of this name, or of the one that begins so, as the README writes it."""
    with (REPOSITORY / "figures" / scale / "claims.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    named = [row for row in rows if row["claim"] == begins]
    (row,) = named or [row for row in rows if row["claim"].startswith(begins)]
    low, high = number(row["95 % low"], digits), number(row["95 % high"], digits)
    return f"{number(row['effect'], digits)} [{low}, {high}]"


def instead(scale: str, begins: str) -> str:
    """Return how far below 0 a claim's statistic is with FP32 in LPE-BSR's place, as the README writes it."""
    with (REPOSITORY / "figures" / scale / "claims.csv").open(newline="", encoding="utf-8") as file:
        (row,) = (row for row in csv.DictReader(file) if row["claim"].startswith(begins))
    return number(str(-float(row["FP32 instead"])), 3)


def noted(scale: str, named: str, pattern: str) -> str:
    """Return the number that a pattern finds in a claim's note, as the README writes it."""
    with (REPOSITORY / "figures" / scale / "claims.csv").open(newline="", encoding="utf-8") as file:
        (note,) = (row["note"] for row in csv.DictReader(file) if row["claim"] == named)
    found = re.search(pattern, note)
    assert found is not None, note
    return found[1].removeprefix("0")


def table2(scale: str, column: str, method: str) -> str:
    """Return a cell of table 2 at SGD's point, of ten members or of one network, as the README writes it."""
    sizes = ("10",) if method.startswith("LPE") else ("1",)
    with (REPOSITORY / "figures" / scale / "table2.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["point"] == "SGD" and row["method"] == method and row["members"] in sizes:
                return row[column].replace("-", "−")
    raise AssertionError(f"no {method} in table 2 of {scale}")


def mean(scale: str, method: str) -> str:
    """Return a mean NLL of table 2 in three digits."""
    return number(table2(scale, "NLL (nats)", method).partition(" ")[0], 3)


FINDINGS = {
    "rounded at random against to the nearest": lambda: claim("cifar10", "C1a (R20-FRN-SiLU, ", 3),
    "FP32 in its place": lambda: (
        f"is better than that one, too, by {instead('cifar10', 'C1a (R20-FRN-SiLU, ')}."
    ),
    "FP32": lambda: f"FP32's {mean('cifar10', '☆ single FP32')} to {mean('cifar10', 'FP32 + temperature')}",
    "ten members, the same": lambda: f"to {mean('cifar10', 'LPE-BSR, INT-4')}",
    "calibrated, INT-5": lambda: f"{claim('cifar10', 'C11 (INT-5)')} at INT-5",
    "calibrated, INT-4": lambda: f"{claim('cifar10', 'C11 (INT-4)')} at INT-4",
    "calibrated, INT-3": lambda: f"{claim('cifar10', 'C11 (INT-3)')} at INT-3",
    "tuned noise, INT-5": lambda: f"{claim('cifar10', 'C10 (Gaussian, INT-5)')} at INT-5",
    "tuned noise, INT-4": lambda: f"{claim('cifar10', 'C10 (Gaussian, INT-4)')} at INT-4",
    "tuned noise, INT-3": lambda: f"{claim('cifar10', 'C10 (Gaussian, INT-3)')} at INT-3",
    "a tuned spread": lambda: f"{claim('cifar10', 'C15 (raw)', 3)} of its gain",
    "against a deep ensemble in 4 bits": lambda: f"{claim('cifar10', 'C9, planes')}",
    "how far a spread is tuned": lambda: (
        f"to {noted('cifar10', 'C15 (raw)', r'tuned spread: ([0-9.]+);')} × INT-8's at each seed"
    ),
    "memory of a deep ensemble": lambda: (
        f"In {noted('cifar10', 'C9', r'DE of 4, ([0-9.]+) of its memory')} of the memory of four networks"
    ),
    "share of a deep ensemble's gain": lambda: claim("cifar10", "C9"),
    "on top of a deep ensemble": lambda: claim("cifar10", "C8a (DE)"),
    "a calibrated network": lambda: table2("cifar10-small", "NLL − FP32's", "LPE-BSR, INT-4"),
    "digits": lambda: table2("digits", "NLL − FP32's", "LPE-BSR, INT-4"),
}


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_of_the_readme_is_in_the_records(finding: str) -> None:
    said = " ".join(readme().split())
    assert (wanted := FINDINGS[finding]()) in said, f"{finding}: the records say {wanted}"


LINK = re.compile(r"!?\[[^\]]*\]\((?!https?://)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)]*))?\)")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_to_a_file_or_heading(page: Path) -> None:
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / found["path"]).resolve() if found["path"] else page
        assert target.exists(), f"{page}: {found[0]} leads nowhere"
        if found["anchor"]:
            text = target.read_text(encoding="utf-8")
            headings = [
                re.sub(r"[^\w\- ]", "", each).strip() for each in re.findall(r"^#+ (.*)$", text, re.M)
            ]
            anchors = {each.lower().replace(" ", "-") for each in headings}
            assert found["anchor"] in anchors | set(re.findall(r"^\((\S+)\)=$", text, re.M)), found[0]


def test_every_page_is_in_the_index() -> None:
    index = REPOSITORY / "docs" / "index.md"
    listed = set(re.findall(r"^[\w/]+$", index.read_text(encoding="utf-8"), re.MULTILINE))
    there = {str(page.relative_to(index.parent).with_suffix("")) for page in PAGES[2:]} - {"index"}
    assert there == listed


def test_the_page_on_reproducing_names_every_script() -> None:
    page = (DOCS / "reproduce" / "how.md").read_text(encoding="utf-8")
    for name in [*everything.FIGURES, "known"]:
        assert f"{name}.py`" in page, name


def test_the_gallery_has_every_committed_figure_and_table() -> None:
    text = gallery_page.page("../../figures")
    for path in sorted((REPOSITORY / "figures").glob("*/*")):
        if path.suffix in (".png", ".tex") and path.stem != "claims":
            assert f"### {path.parent.name}: {path.stem}\n" in text, path
    entry = gallery_page.entry(REPOSITORY / "figures" / "digits" / "fig2.json", "..")
    for part in (
        "| command | `python reproduce/fig2.py",
        "| training seeds | 5 (0 … 4)",
        "| revision | `",
        "Xeon",
    ):
        assert part in entry
    assert "training" in entry and "measuring" in entry and "drawing" in entry


@pytest.mark.parametrize("group", command_pages.GROUPS)
def test_the_page_of_options_has_every_option(group: str) -> None:
    text = command_pages.page(group)
    for command in command_pages.GROUPS[group]:
        parser = command_pages.parser_of(command_pages.main_of(command))
        for each in [*command_pages.subcommands(parser).values()] or [parser]:
            shown = [action for action in each._actions if action.help != argparse.SUPPRESS]
            for option in (option for action in shown for option in action.option_strings):
                assert option in text or option in ("-h", "--help"), f"{command} {option}"


def test_the_page_of_options_has_none_that_is_not_there() -> None:
    parser = command_pages.parser_of(lambda arguments: cli.main(arguments))
    written = {
        each.written for each in command_pages.options_of(command_pages.subcommands(parser)["evaluate"])
    }
    assert "MODEL" in written and "--size SIZE" in written and not any("help" in each for each in written)


def test_a_command_that_is_not_there_is_no_page() -> None:
    with pytest.raises(LookupError, match="names no module"):
        command_pages.main_of("python reproduce/fig99.py")


def test_the_design_names_every_folder_of_the_library_and_the_suite() -> None:
    tree = (DOCS / "design.md").read_text(encoding="utf-8").split("```")[1]
    folders = [each for room in ("lpe", "reproduce") for each in (REPOSITORY / room).glob("*/__init__.py")]
    rooms = [str(each.parent.relative_to(REPOSITORY)) for each in folders]
    for room in [*rooms, "benchmarks", "examples", "figures", "tests"]:
        assert re.search(rf"^{room}\b", tree, re.MULTILINE), room
    for named in re.findall(r"^(lpe/\w+|reproduce/\w+|[a-z]+)(?= |/ )", tree, re.MULTILINE):
        place = REPOSITORY / named
        assert place.is_dir() or place.with_suffix(".py").is_file(), named
