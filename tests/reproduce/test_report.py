"""The report page: all that a folder has, with where it comes from; without a network; and in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lpe.provenance import REPOSITORY
from reproduce import __main__ as everything
from reproduce import ledger, report

FIGURES = REPOSITORY / "figures" / "digits"
TAKEN = ("fig2", "fig5", "table2", "claims")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed records of two figures, a table and the ledger."""
    folder = tmp_path_factory.mktemp("records")
    for name in TAKEN:
        for path in FIGURES.glob(f"{name}*"):
            if path.suffix in (".csv", ".json", ".md"):
                shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def page(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of these."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    before = sorted(path.name for path in records.iterdir())
    assert everything.main(["report", "--records", str(records), "--out", str(out)]) == 0
    assert sorted(path.name for path in records.iterdir()) == before, "the records' folder was written into"
    return out


class Read(HTMLParser):
    """A page taken apart: its elements with their attributes, and those that are not closed in turn."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def read(page: Path) -> Read:
    """The page taken apart."""
    return Read(page.read_text(encoding="utf-8"))


def test_the_page_is_whole_html(read: Read) -> None:
    assert read.wrong == [] and read.open == []
    ids = Counter(attributes["id"] for _, attributes in read.elements if attributes.get("id"))
    assert [name for name, count in ids.items() if count > 1] == []


def test_every_figure_and_table_has_a_section_and_a_link(read: Read, page: Path) -> None:
    sections = [attributes["id"] for tag, attributes in read.elements if tag == "section"]
    assert sections == ["ledger", "fig2", "fig5", "table2"]
    links = [attributes["href"] for tag, attributes in read.elements if tag == "a" and "href" in attributes]
    assert [f"#{name}" for name in sections] == [link for link in links if link and "-" not in link]
    figures = [attributes for tag, attributes in read.elements if tag == "svg"]
    assert len(figures) == 2 and all(each["role"] == "img" and each["aria-label"] for each in figures)
    assert all("viewbox" in each and "width" not in each for each in figures)


def test_nothing_is_asked_of_a_network(read: Read, page: Path) -> None:
    places = ("src", "href", "xlink:href", "data", "action", "srcset", "poster")
    asked = [attributes[each] for _, attributes in read.elements for each in places if each in attributes]
    assert asked and [each for each in asked if not (each or "").startswith(("#", "data:"))] == []
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", text) == []
    (policy,) = [a["content"] for tag, a in read.elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_what_a_figure_refers_to_is_in_it(read: Read, page: Path) -> None:
    ids = {attributes["id"] for _, attributes in read.elements if attributes.get("id")}
    text = page.read_text(encoding="utf-8")
    referred = set(re.findall(r'url\(#([^)]*)\)|xlink:href="#([^"]*)"', text))
    names = {one or other for one, other in referred}
    assert len(names) > 50 and names <= ids
    assert {name.partition("-")[0] for name in names} == {"fig2", "fig5"}


def test_the_ledger_has_every_claim_with_its_null_and_power(page: Path, records: Path) -> None:
    claims = pd.read_csv(records / "claims.csv", keep_default_na=False)
    section = page.read_text(encoding="utf-8").partition("id='ledger'")[2].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section)[1:]
    assert len(rows) == len(claims) > 40
    cells = [[html.unescape(re.sub("<[^>]*>", "", cell)) for cell in row.split("</td>")] for row in rows]
    place = list(report.LEDGER).index
    for cell, claim in zip(cells, claims.to_dict("records"), strict=True):
        assert cell[place("claim")] == claim["claim"]
        assert cell[place("verdict")].startswith(claim["verdict"])
        assert cell[place("FP32 verdict")] == claim["FP32 verdict"]
        assert cell[place("needed n")] == str(claim["needed n"])
    effects = [cell[place("effect")] for cell in cells]
    assert effects[:2] == ["−.0028 [−.0055, −.0001]", "−.0026 [−.0051, .0000]"]
    assert any("∞" in each for each in effects) == any(claims["95 % high"].astype(str) == "inf")
    assert "null: FP32 instead" in section and "n for a power of .8" in section


def test_the_counts_are_those_of_the_ledger(page: Path, records: Path) -> None:
    said = (records / "claims.md").read_text(encoding="utf-8")
    counted = ledger.counts_in(pd.read_csv(records / "claims.csv", keep_default_na=False))
    assert f"{counted}." in said and counted in page.read_text(encoding="utf-8")


def test_a_table_has_the_rows_of_its_file(page: Path, records: Path) -> None:
    table = pd.read_csv(records / "table2.csv", dtype=str, keep_default_na=False)
    section = page.read_text(encoding="utf-8").partition('id="table2"')[2].partition("</section>")[0]
    assert section.count("<tr>") == 1 + len(table) and section.count("<th ") == len(table.columns)
    assert html.escape(table["NLL (nats)"][1]) in section


@pytest.mark.parametrize("name", ["fig2", "fig5", "table2"])
def test_each_says_where_it_comes_from(name: str, page: Path, records: Path) -> None:
    said = json.loads((records / f"{name}.json").read_text(encoding="utf-8"))
    section = page.read_text(encoding="utf-8").partition(f'id="{name}"')[2].partition("</section>")[0]
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", section))
    assert facts["revision"].startswith(said["git"]["revision"][:12])
    assert facts["command"] == html.escape(f"python {said['command']}")
    assert facts["machine"].startswith(said["device"]["cpu"].replace("&", "&amp;"))
    assert facts["training seeds"].startswith(str(len(said["seeds"])))
    assert all(digest[:12] in facts["record"] for file, digest in said["sha256"].items() if "csv" in file)


def test_two_pages_of_the_same_records_are_the_same(page: Path, records: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.html"
    assert report.main(["--records", str(records), "--out", str(again)]) == 0
    assert again.read_bytes() == page.read_bytes()


def test_a_record_that_was_edited_is_refused_or_said(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    for path in records.glob("table2*"):
        shutil.copy(path, folder / path.name)
    record = folder / "table2_record.csv"
    record.write_text(record.read_text().replace("0.04", "0.05"))
    arguments = ["--records", str(folder), "--out", str(tmp_path / "r.html")]
    assert report.main(arguments) == 2 and not (tmp_path / "r.html").exists()
    assert "table2_record.csv" in capsys.readouterr().err
    assert report.main([*arguments, "--accept-edited"]) == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'class="note">note: records edited after measuring' in text


@pytest.mark.parametrize("out", ["", "r.html"])
def test_a_folder_without_records_is_said_in_a_line(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["--records", str(tmp_path), "--out", str(tmp_path / out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("is a folder" if not out else "there is no record in") in said


# In a browser

HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="told"></pre>
<iframe id="page" style="border:0;width:WIDTHpx;height:844px"></iframe>
<script>
const frame = document.getElementById("page");
const srgb = c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * srgb(r) + .7152 * srgb(g) + .0722 * srgb(b);
const rgba = text => text.match(/[\\d.]+/g).map(Number);
const contrast = (a, b) => {
  const [x, y] = [light(a), light(b)];
  return (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
};
const ground = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
frame.onload = () => {
  const page = frame.contentDocument, told = { width: frame.contentWindow.innerWidth, faint: [] };
  told.wide = page.documentElement.scrollWidth;
  told.figures = [...page.querySelectorAll("section svg")].filter(each => {
    const box = each.getBoundingClientRect();
    return box.width > 300 && box.height > 50;
  }).length;
  for (const theme of ["light", "dark"]) {
    const button = page.getElementById("theme");
    while (page.documentElement.dataset.theme !== theme) button.click();
    const seen = new Set();
    for (const each of page.querySelectorAll("body *:not(svg *):not(script)")) {
      if (![...each.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
      const style = frame.contentWindow.getComputedStyle(each);
      const found = contrast(rgba(style.color), ground(each));
      const name = `${theme} ${each.tagName} ${each.className} ${found.toFixed(2)}`;
      if (found < 4.5 && !seen.has(name)) { seen.add(name); told.faint.push(name); }
    }
    told[theme] = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
  }
  const column = () =>
    [...page.querySelectorAll("#ledger tbody tr")].map(row => row.cells[2].textContent);
  const effect = page.querySelectorAll("#ledger th")[2];
  told.before = column();
  effect.querySelector("button").click(); told.rising = column();
  effect.querySelector("button").click(); told.falling = column();
  told.sorted = effect.getAttribute("aria-sort");
  document.getElementById("told").textContent = JSON.stringify(told);
};
frame.srcdoc = PAGE;
</script>
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


def in_chromium(page: Path, folder: Path, width: int) -> tuple[dict[str, Any], list[str]]:
    """Show a page at a width; what the harness measured, and what the console said."""
    content = json.dumps(page.read_text(encoding="utf-8")).replace("<", "\\u003c")
    harness = folder / f"harness{width}.html"
    harness.write_text(HARNESS.replace("WIDTH", str(width)).replace("PAGE", content), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", "--timeout=300000"]
    command += ["--virtual-time-budget=60000", "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    return told, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page(width: int, page: Path, tmp_path: Path) -> None:
    told, console = in_chromium(page, tmp_path, width)
    assert console == []
    assert told["figures"] == 2
    assert told["width"] <= width and told["wide"] <= told["width"], "it scrolls sideways"
    assert told["faint"] == [], "text of a contrast below 4.5"
    assert (told["light"], told["dark"]) == ("rgb(255, 255, 255)", "rgb(22, 22, 26)")


@needs_chromium
def test_a_browser_sorts_the_ledger(page: Path, tmp_path: Path) -> None:
    told, _ = in_chromium(page, tmp_path, 1280)

    def numbers(column: list[str]) -> list[float]:
        return [float(text.split()[0].replace("−", "-")) for text in column if text]

    assert numbers(told["before"]) != sorted(numbers(told["before"]))
    assert numbers(told["rising"]) == sorted(numbers(told["before"]))
    assert numbers(told["falling"]) == sorted(numbers(told["before"]), reverse=True)
    assert told["sorted"] == "descending" and len(told["falling"]) == len(told["before"])


@needs_chromium
def test_what_is_wrong_with_a_page_is_found(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.html"
    wide = '<div style="width:900px">wide</div><p style="color:#bbb;background:#fff">faint</p>'
    broken = "<script>throw new Error('broken')</script><img src='https://example.org/x.png'>"
    wrong.write_text(text.replace("<main>", f"<main>{wide}{broken}"), encoding="utf-8")
    told, console = in_chromium(wrong, tmp_path, 390)
    assert told["wide"] >= 900 and any("P" in each for each in told["faint"])
    assert any("broken" in line for line in console) and any("example.org" in line for line in console)
