"""What a visitor of the repository finds: how to cite it, what changed, how to report."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

import lpe
from lpe.provenance import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: str) -> Any:
    """Return what a YAML file holds."""
    return yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))


def test_the_citation_names_software_and_paper_and_the_version_of_the_package() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == lpe.__version__ and citation["license"] == PROJECT["license"]
    assert citation["title"] and citation["message"] and all("name" in each for each in citation["authors"])
    (paper,) = citation["references"]
    assert [each["family-names"] for each in paper["authors"]] == ["Nam", "Lee"]
    assert paper["year"] == 2024 and paper["url"].endswith("2411.14860")


def test_the_changelog_has_the_version_of_the_package_and_what_is_not_released() -> None:
    headings = re.findall(
        r"^## (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert headings[0] == "Unreleased" and lpe.__version__ in headings


@pytest.mark.parametrize(
    "path", [each for each in FORMS if each.stem != "config"], ids=lambda path: path.stem
)
def test_a_form_of_an_issue_asks_for_something(path: Any) -> None:
    form = read(str(path.relative_to(REPOSITORY)))
    assert form["name"] and form["description"]
    names = [each["id"] for each in form["body"]]
    assert len(names) == len(set(names)) >= 2
    assert all(each["type"] in ("input", "textarea") and each["attributes"]["label"] for each in form["body"])
    assert any(each["validations"]["required"] for each in form["body"])


def test_there_are_forms_for_a_fault_a_number_and_a_wish() -> None:
    assert [each.stem for each in FORMS] == ["config", "fault", "number", "wish"]
