"""lm-eval on a pre-trained language model, ours against its own and by hand; skipped without LPE_ASSETS.

About 80 s on one thread.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import lpe
from benchmarks.language import FOLDER
from lpe import cli
from lpe.modules import with_tensors
from lpe.provenance import REPOSITORY
from lpe.substrates import language, stories

PARADIGM = "blimp_determiner_noun_agreement_1"
PAIRS, STORIES = 100, 8


@pytest.fixture(scope="module")
def loaded(assets: Path) -> tuple[Any, Any]:
    return language.load_model(assets / "stories260k")


def samples(lm: Any, task: str, limit: int) -> list[Any]:
    """(arguments, answer) of every request, as lm-eval's simple_evaluate logs them."""
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=[task],
        limit=limit,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
    )
    assert results is not None
    return [(sample["arguments"], sample["resps"]) for sample in results["samples"][task]]


class AsHF(language.EnsembleLM):
    """Answers rolling requests as lm-eval's ``hf`` model does: with the <s> that the tokenizer adds."""

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As the base, then as ``hf``."""
        super().loglikelihood_rolling(requests)
        return [scored.answer(len(self.ensemble)) for scored in self.rolled_as_hf(self.scored)]


def theirs(model: Any, tokenizer: Any) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)


@pytest.mark.parametrize(("task", "limit"), [(PARADIGM, PAIRS), ("tinystories", STORIES)])
def test_fp32_answers_exactly_as_lm_evals_hf(loaded: tuple[Any, Any], task: str, limit: int) -> None:
    model, tokenizer = loaded
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.number_system("fp32"), 1)
    ours = samples(AsHF(ensemble, tokenizer, batch_size=16), task, limit)
    assert ours == samples(theirs(model, tokenizer), task, limit)


@pytest.mark.parametrize(("task", "limit"), [(PARADIGM, PAIRS), ("tinystories", STORIES)])
def test_one_nearest_int8_member_answers_exactly_as_lm_evals_hf_on_the_rounded_weights(
    loaded: tuple[Any, Any], task: str, limit: int
) -> None:
    model, tokenizer = loaded
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(8), 1, rounding="nearest")
    weights = dict(model.named_parameters())
    rounded = {
        planned.name: lpe.round_weights(weights[planned.name], lpe.Int(8), "nearest")
        for planned in ensemble.plan
        if planned.quantised
    }
    ours = samples(AsHF(ensemble, tokenizer, batch_size=16), task, limit)
    assert ours == samples(theirs(with_tensors(model, rounded), tokenizer), task, limit)


def test_rounding_changes_the_answers_that_are_compared(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(8), 1, rounding="nearest")
    ours = samples(language.EnsembleLM(ensemble, tokenizer, batch_size=16), PARADIGM, PAIRS)
    assert ours != samples(theirs(model, tokenizer), PARADIGM, PAIRS)


def test_fp32_has_its_known_accuracy_on_the_first_300_pairs(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    table = language.evaluate(lpe.DeepEnsemble([model]), tokenizer, PARADIGM, FOLDER, 16, limit=300)
    assert table["acc"][0] == pytest.approx(0.680, abs=1e-9)


def by_hand(model: Any, tokenizer: Any, texts: list[str], context: int = 512) -> tuple[float, int]:
    """Nats of the texts' own tokens and how many they are: <s> once, then windows that go on from a token."""
    nats, count = 0.0, 0
    for text in texts:
        tokens = [1, *tokenizer.encode(text, add_special_tokens=False)]
        for start in range(0, len(tokens) - 1, context):
            end = min(len(tokens) - 1, start + context)
            first = max(0, end - context)  # the last window reads what it can, and scores what is left
            with torch.no_grad():
                logits = model(torch.tensor([tokens[first:end]])).logits[0].double()
            targets = torch.tensor(tokens[first + 1 : end + 1])
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            nats, count = nats + float(losses[start - first :].sum()), count + end - start
    return nats, count


def rolled(model: Any, tokenizer: Any, texts: list[str]) -> tuple[float, int]:
    """The same by the suite."""
    lm = language.EnsembleLM(lpe.DeepEnsemble([model]), tokenizer, batch_size=16)
    answers = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])
    return -sum(answers), sum(scored.tokens for scored in lm.scored)


@pytest.fixture(scope="module")
def eighty(assets: Path) -> list[str]:
    with open(assets / "tinystories" / "stories.jsonl", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][: stories.STORIES]


def test_the_rolling_nll_of_eighty_stories_is_that_by_hand(
    loaded: tuple[Any, Any], eighty: list[str]
) -> None:
    (nats, count), (by_suite, its_count) = by_hand(*loaded, eighty), rolled(*loaded, eighty)
    assert its_count == count == 59_247
    assert by_suite / count == pytest.approx(nats / count, abs=1e-6)
    assert nats / count == pytest.approx(1.42304, abs=1e-5)


def test_with_the_mark_of_a_beginning_scored_it_would_be_another(
    loaded: tuple[Any, Any], eighty: list[str]
) -> None:
    model, tokenizer = loaded
    found = language.evaluate(lpe.DeepEnsemble([model]), tokenizer, "tinystories", FOLDER, 16, 80)
    assert found["nll"][0] == pytest.approx(1.42304, abs=1e-5)
    assert found["lm_eval_nll"][0] == pytest.approx(1.43436, abs=1e-5)


def table_rows(text: str) -> dict[tuple[str, ...], list[float]]:
    """Rows of a table of ``lpe evaluate``: method, numbers, size → NLL and what follows, no milliseconds."""
    found = re.findall(
        r"^(FP32|FP32 \+ temperature|RTN|LPE-BSR) {2,}(fp32|int4) +(\d+) +(.*)$", text, re.MULTILINE
    )
    return {tuple(key): [float(each) for each in rest.split()[:6]] for *key, rest in found}


def test_the_readme_shows_what_its_command_prints(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to two members, which are the same of ten."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^lpe (evaluate hf/stories260k .*)$", text, re.MULTILINE)
    shown = table_rows(text)
    assert len(shown) == 7
    task = (FOLDER / f"{PARADIGM}.yaml").read_text(encoding="utf-8").replace(PARADIGM, "agreement")
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "my_tasks" / "agreement.yaml").write_text(task + 'target_delimiter: ""\n')
    (tmp_path / "stories260k").symlink_to(assets / "stories260k")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*shlex.split(command), "--size", "2"]) == 0
    printed = table_rows(capsys.readouterr().out)
    assert len(printed) == 5
    for key, numbers in printed.items():
        assert numbers == pytest.approx(shown[key], abs=0.001), key
