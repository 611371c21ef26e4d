"""lm-eval on a pre-trained language model, ours against its own; skipped without LPE_ASSETS.

About 40 s on one thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import lpe
from benchmarks import stories
from lpe.modules import with_tensors
from lpe.substrates import language

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
        task_manager=TaskManager(include_path=str(stories.TASKS), include_defaults=False),
    )
    assert results is not None
    return [(sample["arguments"], sample["resps"]) for sample in results["samples"][task]]


def theirs(model: Any, tokenizer: Any) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)


@pytest.mark.parametrize(("task", "limit"), [(PARADIGM, PAIRS), ("tinystories", STORIES)])
def test_fp32_answers_exactly_as_lm_evals_hf(loaded: tuple[Any, Any], task: str, limit: int) -> None:
    model, tokenizer = loaded
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.number_system("fp32"), 1)
    ours = samples(language.EnsembleLM(ensemble, tokenizer, batch_size=16), task, limit)
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
    ours = samples(language.EnsembleLM(ensemble, tokenizer, batch_size=16), task, limit)
    assert ours == samples(theirs(with_tensors(model, rounded), tokenizer), task, limit)


def test_rounding_changes_the_answers_that_are_compared(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(8), 1, rounding="nearest")
    ours = samples(language.EnsembleLM(ensemble, tokenizer, batch_size=16), PARADIGM, PAIRS)
    assert ours != samples(theirs(model, tokenizer), PARADIGM, PAIRS)


def test_fp32_has_its_known_accuracy_on_the_first_300_pairs(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    table = language.evaluate(lpe.DeepEnsemble([model]), tokenizer, PARADIGM, stories.TASKS, 16, limit=300)
    assert table["acc"][0] == pytest.approx(0.680, abs=1e-9)


def test_a_rolled_storys_nll_is_that_of_its_tokens_after_the_beginning(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    lm = language.EnsembleLM(lpe.DeepEnsemble([model]), tokenizer)
    text = "Once upon a time, there was a little dog."
    (rolled,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    # The tokenizer begins a text with <s>, and lm-eval puts another before it.
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]])
    with torch.no_grad():
        log_probs = model(tokens).logits[0].log_softmax(-1)
    expected = log_probs[:-1].gather(1, tokens[0, 1:, None]).sum()
    assert rolled == pytest.approx(float(expected), abs=1e-3)
