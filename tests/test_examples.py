"""The examples run, and print what they say."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from lpe.provenance import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


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
