"""``--config``: a command's options from a file, what the command line gives before them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from lpe import cli
from lpe.cli.config import in_file, parsed
from lpe.provenance import REPOSITORY


def asked(folder: Path, text: str, *arguments: str) -> argparse.Namespace:
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return parsed(cli._parser, [arguments[0], f"--config={folder / 'run.toml'}", *arguments[1:]])


def test_the_file_of_the_guide_is_taken(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "guides" / "command_line.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S)
    found = asked(tmp_path, text, "evaluate")
    assert found.model.startswith("timm/vit_small") and found.data == "imagenet" and found.size == 20
    assert found.batch_size == 128 and found.calibrated is True and found.exclude == ["head.*"]
    assert found.metrics == "aurc,brier" and found.system == "int4"


def test_what_the_command_line_gives_goes_before(tmp_path: Path) -> None:
    text = 'model = "timm/a"\nsize = 3\nexclude = ["x", "y"]\nstd = [1, 2, 3]\ncalibrated = true'
    found = asked(tmp_path, text, "evaluate", "timm/b", "--size", "4", "--exclude", "z", "--std", "0.5")
    assert (found.model, found.size, found.exclude, found.std) == ("timm/b", 4, ["z"], [[0.5]])
    assert found.calibrated is True
    whole = asked(tmp_path, text, "evaluate")
    assert (whole.model, whole.size, whole.exclude, whole.std) == ("timm/a", 3, ["x", "y"], [[1.0, 2.0, 3.0]])


def test_options_of_several_values_do_not_swallow_the_model(tmp_path: Path) -> None:
    text = 'model-kwargs = ["a=1", "b=2"]'
    assert asked(tmp_path, text, "describe", "timm/b").model == "timm/b"
    found = asked(tmp_path, 'files = ["p", "q"]\nvalidation = ["v"]', "score")
    assert (found.files, found.validation) == (["p", "q"], ["v"])


@pytest.mark.parametrize(("text", "value"), [("quick_gelu = true", True), ("quick-gelu = false", False)])
def test_a_flag_with_a_no_may_be_false(tmp_path: Path, text: str, value: bool) -> None:
    assert asked(tmp_path, text, "describe", "open_clip/x").quick_gelu is value


def test_a_flag_that_is_false_is_not_given(tmp_path: Path) -> None:
    assert not hasattr(asked(tmp_path, "calibrated = false", "evaluate", "timm/x"), "calibrated")


def test_the_option_may_be_written_as_argparse_takes_it(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("size = 3")
    for given in (["--config", str(tmp_path / "run.toml")], [f"--conf={tmp_path / 'run.toml'}"]):
        assert parsed(cli._parser, ["describe", "timm/x", *given]).size == 3


def test_options_as_a_file_has_them() -> None:
    given = {"csv": Path("r.csv"), "limit": None, "std": 0.1, "image_std": [1.0, 2.0, 3.0], "size": 2}
    assert in_file(given) == {"csv": "r.csv", "size": 2, "std": [[0.1], [1.0, 2.0, 3.0]]}
    assert in_file({"std": 0.1, "image_std": None}) == {"std": [0.1]}
