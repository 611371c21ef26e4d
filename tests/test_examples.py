"""The examples run, and print what they say."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from lpe.provenance import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
NOTEBOOK = EXAMPLES / "quick_start.ipynb"


def rows(printed: str) -> dict[tuple[str, int], list[float]]:
    """A table's rows: name and size → the numbers that follow."""
    lines = [line.rsplit(maxsplit=4) for line in printed.splitlines()[1:]]
    return {(name, int(size)): [float(each) for each in numbers] for name, size, *numbers in lines}


def test_a_language_model_of_ones_own_has_its_perplexity(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "perplexity.py"))
    with torch.random.fork_rng(devices=[]):
        example["main"]([], steps=30, size=5)
    found = rows(capsys.readouterr().out)
    sizes = [("LPE-BSR", 1), ("LPE-BSR", 2), ("LPE-BSR", 5)]
    assert list(found) == [("as it is", 1), ("to nearest", 1), *sizes]
    for nats, perplexity, megabytes in found.values():
        assert perplexity == pytest.approx(math.exp(nats), rel=1e-3) and megabytes > 0
    assert found["as it is", 1][0] < found["LPE-BSR", 5][0] < found["LPE-BSR", 1][0]


def test_a_model_of_transformers_has_the_perplexity_of_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    tokenizers: Any = pytest.importorskip("tokenizers")
    letters = ["<s>", *"abcdefgh "]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({c: i for i, c in enumerate(letters)}, "<s>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path)
    config = transformers.GPT2Config(
        vocab_size=len(letters), n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    text = "a bad cafe had a bed " * 30
    (tmp_path / "text").write_text(text)
    example = runpy.run_path(str(EXAMPLES / "perplexity.py"))
    example["main"]([str(tmp_path), str(tmp_path / "text")], size=2)
    ids = torch.tensor([[letters.index(c) for c in text[:512]]])
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert rows(capsys.readouterr().out)["as it is", 1][0] == pytest.approx(loss, abs=1e-4)


# The notebook


def cells(kind: str) -> list[dict[str, Any]]:
    """The notebook's cells of a kind, in its order."""
    return [each for each in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if each["cell_type"] == kind]


def of_the_readme(fence: str) -> list[str]:
    """The blocks of a language in the README's quick start."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Quick start")[2].partition("\n## ")[0]
    return re.findall(rf"^```{fence}\n(.*?)\n```$", section, re.MULTILINE | re.DOTALL)


def run_cell(code: str, names: dict[str, Any]) -> str:
    """Run a cell; what it printed. No cell ends with a value, which Jupyter would show as well."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if isinstance(last, ast.Expr):
            assert eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names) is None
    return said.getvalue()


def test_the_notebook_is_a_notebook() -> None:
    """As version 4.5 of its format has it, of which every cell has an id."""
    read = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 5)
    assert read["metadata"]["kernelspec"]["name"] == "python3"
    ids = [each["id"] for each in read["cells"]]
    assert len({*ids}) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", each) for each in ids)
    of_code = {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
    assert all({*each} == of_code for each in cells("code"))
    assert all({*each} == of_code - {"execution_count", "outputs"} for each in cells("markdown"))
    assert [each["execution_count"] for each in cells("code")] == [1, 2, 3, 4]


def test_the_notebook_is_the_readmes_quick_start() -> None:
    assert ["".join(each["source"]) for each in cells("code")] == of_the_readme("python")
    (shown,) = of_the_readme("text")
    (stored,) = ["".join(out["text"]) for each in cells("code") for out in each["outputs"]]
    assert stored.split() == shown.split()


def test_the_notebook_prints_what_is_stored_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for cell in cells("code"):
            printed = run_cell("".join(cell["source"]), names).split()
            stored = "".join(text for out in cell["outputs"] for text in out["text"]).split()
            assert len(printed) == len(stored)
            for found, wanted in zip(printed, stored, strict=True):
                if "." not in wanted:
                    assert found == wanted
                else:  # as the README's: other CPUs add up in another order
                    assert float(found) == pytest.approx(float(wanted), rel=0.25, abs=0.01)
    assert (tmp_path / "members.lpe").stat().st_size > 3 / 8 * 20 * 64 * 74
    assert len(names["again"]) == 20
