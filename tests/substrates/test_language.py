"""Ensembles as one of lm-eval's models: against lm-eval's own ``hf`` model, and against the definition."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lpe
from lpe.errors import InputError
from lpe.evaluation.metrics import METRICS
from lpe.evaluation.predictions import read_predictions
from lpe.evaluation.timing import MemberTimer
from lpe.modules import named_tensors, with_tensors
from lpe.substrates import hub, language, loading
from lpe.substrates.language import EnsembleLM, ensemble_lm, load_model
from lpe.training import checkpoints

LETTERS = "abcdefghij .?"
CONTEXT = 24
REPOSITORY = Path(__file__).parents[2]


def a_tokenizer(letters: str = LETTERS, bos: str | None = "<s>", eos: str | None = "</s>") -> Any:
    """Characters as tokens; begins a text with ``bos`` where there is one."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        inner.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    named = {name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def a_llama(dtype: torch.dtype = torch.float32, tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
    """Random weights large enough that predictions differ."""
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 3,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.6,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return a_tokenizer()


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return a_llama()


def words(draws: random.Random, length: int) -> str:
    return "".join(draws.choice(LETTERS[:10]) for _ in range(length))


def pair_requests() -> list[Instance]:
    """Contexts and continuations of many lengths: shared contexts, none, and one too long for the model."""
    draws = random.Random(0)
    pairs = [("ab cd", letter) for letter in "abcdefg"]
    pairs += [
        (words(draws, draws.randint(1, 12)), " " + words(draws, draws.randint(1, 9))) for _ in range(20)
    ]
    pairs += [("", words(draws, 6)), ("", words(draws, 3)), (words(draws, 40), words(draws, 10))]
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


def text_requests() -> list[Instance]:
    """Texts of which some are longer than the model's context."""
    draws = random.Random(1)
    return [
        Instance("loglikelihood_rolling", {}, (words(draws, length),), index)
        for index, length in enumerate((3, 10, CONTEXT, CONTEXT + 1, 60, 90, 1, 17))
    ]


def hf(model: LlamaForCausalLM, tokenizer: Any, batch_size: int = 3) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def token_log_probs(model: nn.Module, tokens: list[int], count: int) -> Tensor:
    """Distributions, float64 [count, vocabulary], of the last ``count`` tokens, by a forward pass alone."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]])).logits[0]
    return logits.double().log_softmax(-1)[-count:]


def brute_force(ensemble: Any, tokenizer: Any, request: Instance) -> tuple[float, bool]:
    """The definition, for a request whose context and continuation fit the model."""
    context, continuation = request.args
    tokens = tokenizer.encode(context + continuation)
    count = len(tokens) - len(tokenizer.encode(context))
    probs = torch.stack([token_log_probs(net, tokens, count).exp() for net in ensemble]).mean(0)
    targets = torch.tensor(tokens[-count:])
    log_probs = probs[torch.arange(count), targets].log()
    return float(log_probs.sum()), bool((probs.argmax(-1) == targets).all())


# One unrounded member against lm-eval's own model.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_unrounded_member_scores_pairs_exactly_as_lm_evals_hf(tokenizer: Any, dtype: torch.dtype) -> None:
    model = a_llama(dtype)
    ours = EnsembleLM(lpe.DeepEnsemble([model]), tokenizer, batch_size=3)
    assert ours.loglikelihood(pair_requests()) == hf(model, tokenizer).loglikelihood(pair_requests())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_unrounded_member_scores_texts_exactly_as_lm_evals_hf_where_no_mark_is_added(
    dtype: torch.dtype,
) -> None:
    model, tokenizer = a_llama(dtype), a_tokenizer(bos=None)
    ours = EnsembleLM(lpe.DeepEnsemble([model]), tokenizer, batch_size=3)
    theirs = hf(model, tokenizer).loglikelihood_rolling(text_requests())
    assert ours.loglikelihood_rolling(text_requests()) == theirs


def test_texts_with_marks_are_scored_also_exactly_as_by_lm_evals_hf(
    tokenizer: Any, llama: LlamaForCausalLM
) -> None:
    ours = EnsembleLM(lpe.DeepEnsemble([llama]), tokenizer, batch_size=3)
    ours.loglikelihood_rolling(text_requests())
    theirs = hf(llama, tokenizer).loglikelihood_rolling(text_requests())
    assert [scored.answer(1) for scored in ours.rolled_as_hf(ours.scored)] == theirs


@pytest.mark.parametrize("wrong", [None, "llama"])
def test_what_is_no_tokenizer_is_refused(llama: LlamaForCausalLM, wrong: Any) -> None:
    with pytest.raises(lpe.InputError, match="the tokenizer must be one of transformers, not"):
        EnsembleLM(lpe.DeepEnsemble([llama]), wrong)


@pytest.mark.parametrize("wrong", [None, 3])
def test_what_names_no_model_is_refused(wrong: Any) -> None:
    with pytest.raises(lpe.InputError, match="named by its folder or its name on the hub, not by"):
        load_model(wrong)


@pytest.mark.parametrize("length", [5, CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 90])
def test_a_text_is_scored_on_its_own_tokens_once_each_after_the_beginning(
    tokenizer: Any, llama: LlamaForCausalLM, length: int
) -> None:
    text = words(random.Random(length), length)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    total, read = 0.0, [tokenizer.bos_token_id]
    while tokens:
        scored, tokens = tokens[: CONTEXT + 1 - len(read)], tokens[CONTEXT + 1 - len(read) :]
        if not tokens:  # the last window reads as much as the model can
            whole = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
            read = whole[-(CONTEXT + 1) : -len(scored)]
        log_probs = token_log_probs(llama, read + scored, len(scored))
        total += float(log_probs.gather(1, torch.tensor(scored)[:, None]).sum())
        read = scored[-1:]
    lm = EnsembleLM(lpe.DeepEnsemble([llama]), tokenizer)
    (found,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert found == pytest.approx(total, abs=1e-4)
    assert lm.scored[0].tokens == length


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling"])
def test_the_batches_are_lm_evals_where_the_tokens_are(kind: str) -> None:
    model, tokenizer = a_llama(), a_tokenizer(bos="<s>" if kind == "loglikelihood" else None)
    seen: list[list[Any]] = [[], []]
    requests = pair_requests() if kind == "loglikelihood" else text_requests()
    ours, theirs = EnsembleLM(lpe.DeepEnsemble([model]), tokenizer, batch_size=3), hf(model, tokenizer)
    for inputs, lm in zip(seen, (ours, theirs), strict=True):
        hook = model.register_forward_pre_hook(
            lambda _, tokens, inputs=inputs: inputs.append(tokens[0].tolist())
        )
        getattr(lm, kind)(requests)
        hook.remove()
    assert seen[0] == seen[1] and len(seen[0]) > 3


def test_one_nearest_member_scores_exactly_as_lm_evals_hf_on_the_rounded_weights(
    tokenizer: Any, llama: LlamaForCausalLM
) -> None:
    ensemble = lpe.LowPrecisionEnsemble(llama, lpe.Int(4), 1, rounding="nearest")
    rounded = {
        planned.name: lpe.round_weights(dict(llama.named_parameters())[planned.name], lpe.Int(4), "nearest")
        for planned in ensemble.plan
        if planned.quantised
    }
    theirs = hf(with_tensors(llama, rounded), tokenizer)  # type: ignore[arg-type]
    ours = EnsembleLM(ensemble, tokenizer, batch_size=3)
    assert ours.loglikelihood(pair_requests()) == theirs.loglikelihood(pair_requests())


def test_the_first_prefix_of_many_members_is_an_ensemble_of_one(
    tokenizer: Any, llama: LlamaForCausalLM
) -> None:
    many, one = (
        EnsembleLM(lpe.LowPrecisionEnsemble(llama, lpe.Int(3), size), tokenizer, batch_size=3)
        for size in (3, 1)
    )
    many.loglikelihood(pair_requests())
    assert [scored.answer(1) for scored in many.scored] == one.loglikelihood(pair_requests())


# Many members against the definition.


@pytest.fixture(scope="module")
def ensemble(llama: LlamaForCausalLM) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(llama, lpe.Int(3), 4)


def short_pairs() -> list[Instance]:
    return [each for each in pair_requests() if each.args[0] and len("".join(each.args)) < CONTEXT]


def wrong_log_likelihoods(ensemble: Any, tokenizer: Any) -> int:
    """How many of the ensemble's answers are not the log of the mean of the token probabilities."""
    answers = EnsembleLM(ensemble, tokenizer, batch_size=3).loglikelihood(short_pairs())
    right = [brute_force(ensemble, tokenizer, request)[0] for request in short_pairs()]
    return sum(abs(answer - value) > 1e-5 for (answer, _), value in zip(answers, right, strict=True))


def test_the_log_likelihood_is_the_log_of_the_mean_of_token_probabilities(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    assert wrong_log_likelihoods(ensemble, tokenizer) == 0


def test_a_mean_of_log_probabilities_would_be_seen(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sum_of_logs(running: Any, log_probs: Tensor) -> Tensor:
        running.count = getattr(running, "count", 0) + 1
        running.logs = log_probs.double() + getattr(running, "logs", 0)
        return running.logs / running.count + np.log(running.count)

    monkeypatch.setattr(ensemble_lm._Targets, "add", sum_of_logs)
    assert wrong_log_likelihoods(ensemble, tokenizer) > 20


def test_a_mean_of_whole_sequences_probabilities_would_be_seen(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    lm = EnsembleLM(ensemble, tokenizer, batch_size=3)
    lm.loglikelihood(short_pairs())
    of_sequences = [float(each.members.logsumexp(0)) - np.log(len(ensemble)) for each in lm.scored]
    of_tokens = [each.answer(len(ensemble))[0] for each in lm.scored]
    longer = [each.tokens > 1 for each in lm.scored]
    differ = [abs(a - b) > 1e-3 for a, b in zip(of_sequences, of_tokens, strict=True)]
    assert differ == longer


def test_greediness_is_of_the_mean_distribution(tokenizer: Any) -> None:
    # Each model is sure of its own token; their mean prefers the one that both think likely.
    first, second = ({3: 0.5, 4: 0.1, 5: 0.4}, {3: 0.1, 4: 0.5, 5: 0.4})
    pair = lpe.DeepEnsemble([Fixed(first), Fixed(second)])
    lm = EnsembleLM(pair, tokenizer, batch_size=2)
    requests = [Instance("loglikelihood", {}, ("j", letter), index) for index, letter in enumerate("abc")]
    assert [greedy for _, greedy in lm.loglikelihood(requests)] == [False, False, True]


class Fixed(nn.Module):
    """The same distribution after every token."""

    def __init__(self, probs: dict[int, float]) -> None:
        super().__init__()
        self.config = a_llama().config
        self.logits = nn.Parameter(torch.full((self.config.vocab_size,), -20.0))
        for token, prob in probs.items():
            self.logits.data[token] = np.log(prob)
        self.device = torch.device("cpu")

    def tie_weights(self) -> None:
        """lm-eval calls it."""

    def forward(self, tokens: Tensor) -> Any:
        """As transformers' models."""
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.logits.expand(*tokens.shape, -1))


def test_every_prefix_is_the_ensemble_of_that_size(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    lm = EnsembleLM(ensemble, tokenizer, batch_size=3)
    lm.loglikelihood(pair_requests())
    for size in (2, 3):
        smaller = EnsembleLM(
            lpe.LowPrecisionEnsemble(ensemble.model, lpe.Int(3), size), tokenizer, batch_size=3
        )
        assert [scored.answer(size) for scored in lm.scored] == smaller.loglikelihood(pair_requests())


def test_the_members_sums_are_their_own_log_likelihoods(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    lm = EnsembleLM(ensemble, tokenizer, batch_size=3)
    lm.loglikelihood(pair_requests())
    alone = hf(ensemble[2], tokenizer).loglikelihood(pair_requests())
    ours = [float(scored.members[2]) for scored in lm.scored]
    assert ours == pytest.approx([value for value, _ in alone], abs=1e-5)


def test_a_text_in_one_window_scores_as_its_tokens_do(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    lm = EnsembleLM(ensemble, tokenizer, batch_size=3)
    (rolled,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("abc def",), 0)])
    tokens = tokenizer.encode("abc def")  # from <s> on
    probs = torch.stack([token_log_probs(net, tokens, len(tokens) - 1).exp() for net in ensemble]).mean(0)
    expected = probs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])].log().sum()
    assert rolled == pytest.approx(float(expected), abs=1e-5)


def test_continuations_that_end_alike_are_scored_each_on_its_own_tokens(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    # Both are the same tokens, split elsewhere: one row of the batch serves both.
    requests = [
        Instance("loglikelihood", {}, pair, index)
        for index, pair in enumerate([("ab", "cde"), ("abcd", "e")])
    ]
    answers = EnsembleLM(ensemble, tokenizer).loglikelihood(requests)
    expected = [brute_force(ensemble, tokenizer, request)[0] for request in requests]
    assert [value for value, _ in answers] == pytest.approx(expected, abs=1e-5)


# Chunks.


class Counting(lpe.LowPrecisionEnsemble):
    """Counts the members made."""

    made = 0

    def member(self, index: int) -> nn.Module:
        """As the base."""
        self.made += 1
        return super().member(index)


@pytest.fixture(scope="module")
def greedy_requests(ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any) -> list[Instance]:
    """Continuations by the token that some prefix finds the most probable."""
    nets, pairs = [*ensemble], []
    for context in ("abc", "d", "ja", "cab", "hi", "bad", "gig", "fe"):
        texts = [context] * len(nets)
        for _ in range(2):
            for place, text in enumerate(texts):
                tokens = [*tokenizer.encode(text), 0]
                probs = torch.stack([token_log_probs(net, tokens, 1)[0].exp() for net in nets[: place + 1]])
                # Without the marks, which are no text.
                texts[place] += LETTERS[int(probs.mean(0)[3:].argmax())]
            pairs += [(context, text[len(context) :]) for text in texts]
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(dict.fromkeys(pairs))]


def every_answer(ensemble: Any, tokenizer: Any, requests: list[Instance], size: int) -> list[list[Any]]:
    """Each prefix's answers, by chunks of so many bytes."""
    lm = EnsembleLM(ensemble, tokenizer, batch_size=3, chunk_bytes=size)
    lm.loglikelihood(requests)
    return [[scored.answer(n + 1) for n in range(len(ensemble))] for scored in lm.scored]


@pytest.fixture(scope="module")
def whole_answers(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, greedy_requests: list[Instance]
) -> list[list[Any]]:
    return every_answer(ensemble, tokenizer, greedy_requests + pair_requests(), 1 << 29)


def test_the_continuations_are_greedy_for_some_prefixes_and_not_for_others(
    whole_answers: list[list[Any]],
) -> None:
    found = {tuple(greedy for _, greedy in answers) for answers in whole_answers}
    assert len(found) > 4


# 1 byte: a batch a chunk. 16 leading tokens are the whole vocabulary; few leave many continuations undecided.
@pytest.mark.parametrize("leading", [1, 4, 16])
@pytest.mark.parametrize("size", [1, 1 << 12])
def test_the_size_of_a_chunk_changes_no_answer(
    ensemble: lpe.LowPrecisionEnsemble,
    tokenizer: Any,
    greedy_requests: list[Instance],
    whole_answers: list[list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    leading: int,
    size: int,
) -> None:
    monkeypatch.setattr(ensemble_lm, "LEADING", leading)
    assert every_answer(ensemble, tokenizer, greedy_requests + pair_requests(), size) == whole_answers


@pytest.mark.parametrize(("leading", "runs"), [(16, 1), (1, 2)])
def test_batches_are_run_again_only_where_the_leading_tokens_do_not_tell(
    llama: LlamaForCausalLM,
    tokenizer: Any,
    greedy_requests: list[Instance],
    monkeypatch: pytest.MonkeyPatch,
    leading: int,
    runs: int,
) -> None:
    monkeypatch.setattr(ensemble_lm, "LEADING", leading)
    counting = Counting(llama, lpe.Int(3), 4)
    lm = EnsembleLM(counting, tokenizer, batch_size=len(greedy_requests), chunk_bytes=1)
    lm.loglikelihood(greedy_requests)
    assert counting.made == 4 * runs


def test_members_are_made_once_a_pass_over_a_large_vocabulary(tokenizer: Any) -> None:
    large = LlamaForCausalLM(LlamaConfig(**{**a_llama().config.to_dict(), "vocab_size": 50_000})).eval()
    counting = Counting(large, lpe.Int(5), 3)
    lm = EnsembleLM(counting, tokenizer, batch_size=2, chunk_bytes=1 << 20)
    lm.loglikelihood(pair_requests())
    # A whole distribution has 200 kB, of which a chunk would hold five.
    assert counting.made == 3


def test_members_are_made_once_for_all_that_a_chunk_holds(llama: LlamaForCausalLM, tokenizer: Any) -> None:
    counting = Counting(llama, lpe.Int(3), 4)
    EnsembleLM(counting, tokenizer, batch_size=3).loglikelihood(pair_requests())
    assert counting.made == 4


def test_members_are_made_once_a_batch_where_a_chunk_holds_one(
    llama: LlamaForCausalLM, tokenizer: Any
) -> None:
    counting = Counting(llama, lpe.Int(3), 4)
    lm = EnsembleLM(counting, tokenizer, batch_size=len(short_pairs()) // 2, chunk_bytes=1)
    lm.loglikelihood([each for each in short_pairs() if len(each.args[1]) > 1][:12])
    assert counting.made == 4


def test_texts_are_one_chunk_whatever_it_may_hold_of_distributions(
    llama: LlamaForCausalLM, tokenizer: Any
) -> None:
    counting = Counting(llama, lpe.Int(3), 4)
    EnsembleLM(counting, tokenizer, batch_size=2, chunk_bytes=1 << 12).loglikelihood_rolling(text_requests())
    assert counting.made == 4


def test_each_members_time_is_kept(ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any) -> None:
    timer = MemberTimer(len(ensemble))
    EnsembleLM(ensemble, tokenizer, timer=timer).loglikelihood(pair_requests())
    assert all(seconds > 0 for seconds in timer.seconds)


# What is left as it was.


def test_the_model_and_its_tokenizer_are_left_as_they_were() -> None:
    model, tokenizer = a_llama().train(), a_tokenizer()
    EnsembleLM(lpe.LowPrecisionEnsemble(model, lpe.Int(4), 2), tokenizer).loglikelihood(pair_requests())
    assert model.training and all(module.training for module in model.modules())
    assert tokenizer.pad_token is None


@pytest.mark.parametrize("order", ["ours, theirs", "theirs, ours"])
def test_lm_evals_models_are_known_whatever_is_imported_first(order: str) -> None:
    lines = {
        "ours": "from lpe.substrates import language",
        "theirs": "import lm_eval; from lm_eval.api.registry import get_model, model_registry",
    }
    first, second = order.split(", ")
    told = in_a_process(
        f"""
        {lines[first]}
        {lines[second]}
        get_model("hf"), get_model("dummy")
        from lm_eval.models import MODEL_MAPPING
        print(set(model_registry) == set(MODEL_MAPPING))
        """
    )
    assert told == "True"


def test_a_model_registered_before_lm_evals_own_would_hide_them() -> None:
    told = in_a_process(
        """
        from lm_eval.api.model import LM
        from lm_eval.api.registry import get_model, register_model
        register_model("mine")(type("Mine", (LM,), {}))
        try:
            get_model("hf")
        except ValueError:
            print("hidden")
        """
    )
    assert told == "hidden"


def in_a_process(code: str) -> str:
    """What a new interpreter prints; the repository is where it imports from."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Tasks.

QUESTIONS = [
    {"question": "ab", "choices": ["cd", "ef", "gh"], "right": 1, "text": "abc def ghi j"},
    {"question": "cd", "choices": ["a", "bcd"], "right": 0, "text": "ja ja ja"},
    {"question": "ef?", "choices": ["gh", "ij", "ab"], "right": 2, "text": "a bad cafe. " * 4},
    {"question": "gh", "choices": ["ij", "fed"], "right": 1, "text": "d"},
    {"question": "ij.", "choices": ["ab", "cd", "ee"], "right": 0, "text": "ab " * 20},
]
CHOICE = """
task: choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
TEXT = """
task: text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""
LAST = """
task: last
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
"""
WITHIN = """
task: within
output_type: multiple_choice
doc_to_text: right
doc_to_choice: "{{choices}}"
doc_to_target: question
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
GENERATE = """
task: generate
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks with their data in a local file."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS), encoding="utf-8")
    source = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{folder / "cache"}"}}
test_split: test
"""
    for name, task in (
        ("choice", CHOICE),
        ("within", WITHIN),
        ("text", TEXT),
        ("last", LAST),
        ("generate", GENERATE),
    ):
        (folder / f"{name}.yaml").write_text(task + source, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def table(ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path) -> pd.DataFrame:
    return language.evaluate(ensemble, tokenizer, ["choice", "text", "last"], tasks, batch_size=2)


class AsHF(EnsembleLM):
    """Answers rolling requests as lm-eval's ``hf`` model does."""

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """With the tokenizer's marks."""
        before = len(self.scored)
        super().loglikelihood_rolling(requests)
        return [scored.answer(len(self.ensemble)) for scored in self.rolled_as_hf(self.scored[before:])]


@pytest.fixture(scope="module")
def reported(ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path) -> dict[str, Any]:
    """What lm-eval itself reports of the ensemble."""
    results = lm_eval.simple_evaluate(
        model=AsHF(ensemble, tokenizer, batch_size=2),
        tasks=["choice", "text", "last"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
    )
    assert results is not None
    return results["results"]


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("choice", "acc"),
        ("choice", "acc_norm"),
        ("text", "word_perplexity"),
        ("text", "byte_perplexity"),
        ("last", "acc"),
        ("last", "perplexity"),
    ],
)
def test_lm_evals_metrics_of_the_whole_ensemble_are_what_it_reports(
    table: pd.DataFrame, reported: dict[str, Any], task: str, metric: str
) -> None:
    assert table[table["task"] == task].iloc[-1][metric] == reported[task][f"{metric},none"]


def test_an_accuracy_of_another_size_would_be_seen(table: pd.DataFrame, reported: dict[str, Any]) -> None:
    perplexities = table[table["task"] == "text"]["word_perplexity"]
    assert (perplexities != reported["text"]["word_perplexity,none"]).sum() == len(perplexities) - 1


def test_lm_evals_metrics_of_texts_are_those_of_its_hf_model(
    llama: LlamaForCausalLM, tokenizer: Any, tasks: Path
) -> None:
    results = lm_eval.simple_evaluate(
        model=hf(llama, tokenizer, 2),
        tasks=["text"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    assert results is not None
    ours = language.evaluate(lpe.DeepEnsemble([llama]), tokenizer, "text", tasks, 2)
    theirs = [results["results"]["text"][f"{name},none"] for name in ("word_perplexity", "byte_perplexity")]
    assert ours.loc[0, ["word_perplexity", "byte_perplexity"]].tolist() == theirs


def test_lm_evals_nll_is_of_the_marks_too(
    table: pd.DataFrame, ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    lm = EnsembleLM(ensemble, tokenizer, batch_size=2)
    texts = [Instance("loglikelihood_rolling", {}, (each["text"],), 0) for each in QUESTIONS]
    lm.loglikelihood_rolling(texts)
    total = sum(scored.answer(len(ensemble)) for scored in lm.rolled_as_hf(lm.scored))
    tokens = sum(len(tokenizer.encode(each["text"])) for each in QUESTIONS)
    assert table[table["task"] == "text"].iloc[-1]["lm_eval_nll"] == pytest.approx(-total / tokens, rel=1e-12)


def test_lm_evals_nll_is_the_nll_where_the_tokenizer_adds_no_mark(
    ensemble: lpe.LowPrecisionEnsemble, tasks: Path
) -> None:
    found = language.evaluate(ensemble, a_tokenizer(bos=None), "text", tasks, 2)
    assert found["nll"].tolist() == found["lm_eval_nll"].tolist()


@pytest.mark.parametrize(("metrics", "made"), [(["nll", "perplexity"], 4), (None, 8)])
def test_members_are_made_again_only_for_lm_evals_own_metrics_of_texts_with_marks(
    llama: LlamaForCausalLM, tokenizer: Any, tasks: Path, metrics: list[str] | None, made: int
) -> None:
    counting = Counting(llama, lpe.Int(3), 4)
    language.evaluate(counting, tokenizer, "text", tasks, metrics=metrics)
    assert counting.made == made


def test_a_row_for_each_task_and_size(table: pd.DataFrame) -> None:
    assert [*zip(table["task"], table["size"], strict=True)] == [
        (task, size) for task in ("choice", "text", "last") for size in (1, 2, 3, 4)
    ]


def test_multiple_choice_metrics_are_those_of_summed_log_likelihoods_as_logits(
    table: pd.DataFrame, ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    # Questions of three choices and of two; the metrics of lpe.evaluate, weighted by their number.
    rows = []
    for count in (3, 2):
        asked = [each for each in QUESTIONS if len(each["choices"]) == count]  # type: ignore[arg-type]
        logits = torch.zeros(len(ensemble), len(asked), count, dtype=torch.float64)
        for member, net in enumerate(ensemble):
            for row, each in enumerate(asked):
                for column, choice in enumerate(each["choices"]):  # type: ignore[arg-type, var-annotated]
                    alone = lpe.DeepEnsemble([net])
                    request = Instance("loglikelihood", {}, (each["question"], f" {choice}"), 0)
                    logits[member, row, column] = brute_force(alone, tokenizer, request)[0]
        targets = torch.tensor([each["right"] for each in asked])
        classes = lpe.DeepEnsemble([Table(each) for each in logits])
        rows.append((len(asked), lpe.evaluate(classes, [(torch.arange(len(asked)), targets)])))
    ours = table[table["task"] == "choice"].reset_index(drop=True)
    for metric in set(METRICS) - {"ece"}:
        expected = sum(weight * each[metric] for weight, each in rows) / len(QUESTIONS)
        assert ours[metric].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-5), metric


class Table(nn.Module):
    """Logits by the example's number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, index: Tensor) -> Tensor:
        """[examples] → [examples, classes]."""
        return self.logits[index]


def test_choices_that_stand_in_the_question_are_told_apart_by_what_follows(
    llama: LlamaForCausalLM, tokenizer: Any, tasks: Path
) -> None:
    # lm-eval's way for Winogrande: as many contexts as choices, one continuation.
    one = lpe.DeepEnsemble([llama])
    found = language.evaluate(one, tokenizer, "within", tasks)
    right = 0
    for each in QUESTIONS:
        scores = [
            brute_force(one, tokenizer, Instance("loglikelihood", {}, (choice, f" {each['question']}"), 0))[0]
            for choice in each["choices"]  # type: ignore[attr-defined]
        ]
        right += int(np.argmax(scores) == each["right"])
    assert found["err"][0] == pytest.approx(1 - right / len(QUESTIONS))


def test_requests_that_are_cut_are_counted_in_a_warning(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [
        Instance("loglikelihood", {}, pair, index) for index, pair in enumerate([("a" * 40, "b"), ("a", "b")])
    ]
    EnsembleLM(ensemble, tokenizer).loglikelihood(requests)
    (record,) = [each for each in caplog.records if each.name == ensemble_lm.__name__]
    assert record.getMessage().startswith("1 of 2 requests are longer than the model's context of 24 tokens")


def test_token_nll_is_a_token_and_of_the_mean_of_probabilities(
    table: pd.DataFrame, ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path
) -> None:
    lm = EnsembleLM(ensemble, tokenizer, batch_size=2)
    texts = [Instance("loglikelihood_rolling", {}, (each["text"],), 0) for each in QUESTIONS]
    total = sum(lm.loglikelihood_rolling(texts))
    tokens = sum(len(each["text"]) for each in QUESTIONS)  # type: ignore[arg-type, misc]
    assert table[table["task"] == "text"].iloc[-1]["nll"] == pytest.approx(-total / tokens, rel=1e-12)


def test_average_loss_of_texts_is_the_mean_of_the_members_nll(
    table: pd.DataFrame, ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path
) -> None:
    alone = [
        language.evaluate(lpe.DeepEnsemble([net]), tokenizer, "text", tasks, 2)["nll"][0] for net in ensemble
    ]
    found = table[table["task"] == "text"].iloc[-1]["average_loss"]
    assert found == pytest.approx(np.mean(alone), rel=1e-9)


def test_perplexity_is_of_the_token_nll(table: pd.DataFrame) -> None:
    texts = table[table["task"] == "text"]
    assert np.allclose(texts["perplexity"], np.exp(texts["nll"]))


def test_memory_is_that_of_so_many_members(table: pd.DataFrame, ensemble: lpe.LowPrecisionEnsemble) -> None:
    expected = [ensemble.memory_bits(n) for n in range(1, 5)]
    assert table[table["task"] == "text"]["memory_bits"].tolist() == expected


@pytest.fixture(scope="module")
def predicted(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("predictions")
    names = ["choice", "text", "last"]
    language.evaluate(ensemble, tokenizer, names, tasks, batch_size=2, predictions=folder)
    return folder


@pytest.mark.parametrize("task", ["choice", "text", "last"])
def test_a_tasks_predictions_in_a_file_score_as_the_task_does(
    table: pd.DataFrame, predicted: Path, task: str
) -> None:
    found = lpe.score(predicted / f"{task}.safetensors")
    expected = table[table["task"] == task].reset_index(drop=True)
    columns = [name for name in found.columns if name != "perplexity" or task == "text"]
    # Log-probabilities to 24 bits.
    pd.testing.assert_frame_equal(found[columns], expected[columns], rtol=1e-6, atol=1e-7)


def scored_text(ensemble: Any, tokenizer: Any, text: str) -> language.Scored:
    lm = EnsembleLM(ensemble, tokenizer, batch_size=2)
    lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    return lm.scored[0]


def test_each_members_log_probability_of_each_target_is_its_own(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    tokens = tokenizer.encode("abc de.")
    found = scored_text(ensemble, tokenizer, "abc de.").targets
    targets = torch.tensor(tokens[1:])
    for member, net in enumerate(ensemble):
        expected = token_log_probs(net, tokens, len(targets))[torch.arange(len(targets)), targets]
        torch.testing.assert_close(found[member].double(), expected, rtol=1e-5, atol=1e-5)


def test_of_texts_the_targets_log_probabilities_are_kept_alone(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, predicted: Path
) -> None:
    kept = read_predictions(predicted / "text.safetensors")
    expected = [scored_text(ensemble, tokenizer, str(each["text"])).targets for each in QUESTIONS]
    assert (kept.about["kind"], kept.classes) == ("tokens", 0)
    for member, of_member in enumerate(torch.cat(expected, dim=1)):
        found = kept.log_probs(member, 0, len(kept.targets))
        torch.testing.assert_close(found, of_member, rtol=1e-5, atol=1e-5)


def test_predictions_of_another_ensemble_are_not_written_over(
    llama: LlamaForCausalLM, tokenizer: Any, tasks: Path, predicted: Path
) -> None:
    before = (predicted / "choice.safetensors").read_bytes()
    other = lpe.LowPrecisionEnsemble(llama, lpe.Int(3), 4, seed=9)
    with pytest.raises(InputError, match="choice.safetensors is of another ensemble"):
        language.evaluate(other, tokenizer, "choice", tasks, predictions=predicted)
    assert (predicted / "choice.safetensors").read_bytes() == before


class Kill(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """Let a run die after so many passes (None: not); returns a list with an entry for each pass.

    A checkpoint is written after each.
    """
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "MOST", 0.0)
    own = EnsembleLM._distributions

    def choose(passes: int | None) -> list[int]:
        taken: list[int] = []

        def counted(self: EnsembleLM, net: nn.Module, batch: Any) -> Any:
            if len(taken) == passes:
                raise Kill
            taken.append(len(taken))
            return own(self, net, batch)

        monkeypatch.setattr(EnsembleLM, "_distributions", counted)
        return taken

    return choose


def answers_of(ensemble: Any, tokenizer: Any, chunk_bytes: int) -> list[language.Scored]:
    lm = EnsembleLM(ensemble, tokenizer, batch_size=5, chunk_bytes=chunk_bytes)
    lm.loglikelihood(pair_requests())
    lm.loglikelihood_rolling(text_requests())
    return lm.scored


@pytest.mark.parametrize("chunk_bytes", [language.CHUNK_BYTES, 4000], ids=["one chunk", "leading tokens"])
def test_a_killed_run_goes_on_between_two_passes_to_the_same_answers(
    chunk_bytes: int,
    ensemble: lpe.LowPrecisionEnsemble,
    tokenizer: Any,
    tmp_path: Path,
    dies_after: Callable[[int | None], list[int]],
) -> None:
    whole = dies_after(None)
    expected = answers_of(ensemble, tokenizer, chunk_bytes)
    passes = len(whole)
    done = 0
    for more in (1, 2, 9, passes // 3):
        dies_after(more)
        with checkpoints.kept(tmp_path / "it"), pytest.raises(Kill):
            answers_of(ensemble, tokenizer, chunk_bytes)
        done += more
    last = dies_after(None)
    with checkpoints.kept(tmp_path / "it"):
        found = answers_of(ensemble, tokenizer, chunk_bytes)
    assert len(last) == passes - done
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens and torch.equal(one.members, other.members)
        assert torch.equal(one.prefixes, other.prefixes) and torch.equal(one.targets, other.targets)
        assert one.targets.dtype == other.targets.dtype
        both = (one.greedy, other.greedy)
        assert both == (None, None) or torch.equal(*both)  # type: ignore[arg-type]


def test_tasks_that_were_killed_go_on_to_the_same_files(
    ensemble: lpe.LowPrecisionEnsemble,
    tokenizer: Any,
    tasks: Path,
    predicted: Path,
    tmp_path: Path,
    dies_after: Callable[[int | None], list[int]],
) -> None:
    def run() -> None:
        names = ["choice", "text", "last"]
        language.evaluate(ensemble, tokenizer, names, tasks, batch_size=2, predictions=tmp_path)

    for more in (2, 5, 4):
        dies_after(more)
        with pytest.raises(Kill):
            run()
        assert list(tmp_path.glob("*.safetensors")) == []
    dies_after(None)
    run()
    files = sorted(path.name for path in predicted.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    for name in files:
        assert (tmp_path / name).read_bytes() == (predicted / name).read_bytes(), name


def test_a_limit_takes_the_first_examples(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path
) -> None:
    one = language.evaluate(ensemble, tokenizer, "choice", tasks, limit=1)
    assert set(one["acc"]) <= {0.0, 1.0}


def test_examples_before_each_question_change_its_score(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path
) -> None:
    none, one = (
        language.evaluate(ensemble, tokenizer, "last", tasks, num_fewshot=number)["nll"].iloc[-1]
        for number in (0, 1)
    )
    assert none != one


def test_only_the_columns_asked_for_are_returned(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path
) -> None:
    found = language.evaluate(ensemble, tokenizer, "choice", tasks, metrics=["ece", "acc"])
    assert found.columns.tolist() == ["task", "size", "ece", "acc", "memory_bits"]


def test_the_global_generators_are_left_as_they_were(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path
) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    language.evaluate(ensemble, tokenizer, "choice", tasks, limit=1)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


@pytest.fixture
def one_line(ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path) -> Callable[..., str]:
    """The one line that ``evaluate`` says of what it refuses, before any member is made."""

    def refused(*names: str, **further: Any) -> str:
        counting = Counting(ensemble.model, lpe.Int(3), 2)
        with pytest.raises(InputError) as error:
            language.evaluate(counting, tokenizer, list(names), tasks, **further)
        assert "\n" not in str(error.value) and counting.made == 0
        return str(error.value)

    return refused


def test_ece_of_a_text_is_refused_before_anything_runs(one_line: Callable[..., str]) -> None:
    assert "text is of type loglikelihood_rolling, not multiple choice, and has no ece" in one_line(
        "choice", "text", metrics=["nll", "ece"]
    )


def test_a_metric_that_nobody_knows_is_refused(one_line: Callable[..., str]) -> None:
    assert "choice is of type multiple_choice, and has no bleu; it has nll" in one_line(
        "choice", metrics=["bleu"]
    )


def test_a_task_that_generates_is_refused(one_line: Callable[..., str]) -> None:
    assert "generate is of type generate_until" in one_line("generate")


def test_no_task_is_refused(one_line: Callable[..., str]) -> None:
    assert one_line() == "no task is named; give one or more"


def test_a_limit_of_nothing_is_refused(one_line: Callable[..., str]) -> None:
    assert "limit" in one_line("choice", limit=0)


def test_an_unknown_task_is_refused_with_what_is_near(
    one_line: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutTheirs(TaskManager):
        """lm-eval's own index takes ten seconds to build."""

        def __init__(self, include_path: str | None = None, include_defaults: bool = True) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", WithoutTheirs)
    assert "unknown task 'hoice' (near it: choice)" in one_line("hoice")


def test_a_folder_of_tasks_that_is_not_there_is_refused(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="there is no folder .*nowhere of task files"):
        language.evaluate(ensemble, tokenizer, "choice", tmp_path / "nowhere")


def test_missing_data_of_a_task_are_named(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, tasks: Path, tmp_path: Path
) -> None:
    task = (tasks / "choice.yaml").read_text().replace("data.jsonl", "gone.jsonl")
    (tmp_path / "choice.yaml").write_text(task)
    with pytest.raises(InputError, match=r"cannot load choice: .*gone\.jsonl"):
        language.evaluate(ensemble, tokenizer, "choice", tmp_path)


def test_generation_is_refused_by_name(ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any) -> None:
    request = Instance("generate_until", {}, ("a", {}), 0, metadata=("riddles", 0, 1))
    with pytest.raises(InputError, match="riddles is of type generate_until"):
        EnsembleLM(ensemble, tokenizer).generate_until([request])


def test_a_continuation_longer_than_the_context_is_refused(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any
) -> None:
    request = Instance("loglikelihood", {}, ("a", "b" * (CONTEXT + 1)), 0)
    with pytest.raises(InputError, match="a continuation has 25 tokens; the model takes 1 to 24"):
        EnsembleLM(ensemble, tokenizer).loglikelihood([request])


def test_nan_is_refused_with_the_members_number(tokenizer: Any) -> None:
    sick = a_llama()
    sick.model.norm.weight.data[0] = torch.nan
    pair = lpe.DeepEnsemble([a_llama(), sick])
    with pytest.raises(InputError, match="member 1 gives log-probabilities that are NaN"):
        EnsembleLM(pair, tokenizer).loglikelihood(short_pairs())


@pytest.mark.parametrize("batch_size", [0, "auto", True])
def test_a_batch_size_that_is_no_positive_integer_is_refused(
    ensemble: lpe.LowPrecisionEnsemble, tokenizer: Any, batch_size: Any
) -> None:
    with pytest.raises(InputError, match="batch_size must be a positive integer"):
        EnsembleLM(ensemble, tokenizer, batch_size)


# Which tensors of a Llama are quantised.


@pytest.mark.parametrize("tied", [False, True])
def test_the_lm_head_and_what_is_tied_to_it_stay_at_full_precision(tied: bool) -> None:
    plan = lpe.LowPrecisionEnsemble(a_llama(tied=tied), lpe.Int(4), 1).plan
    kept = {planned.name for planned in plan if not planned.quantised and len(planned.shape) > 1}
    assert kept == {"model.embed_tokens.weight" if tied else "lm_head.weight"}


# Loading.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder in transformers' format."""
    folder = tmp_path / "model"
    a_llama().save_pretrained(folder)
    a_tokenizer().save_pretrained(folder)
    return folder


def refused_to_load(*arguments: Any, **further: Any) -> str:
    with pytest.raises(InputError) as error:
        load_model(*arguments, **further)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_saved_model_comes_back_in_eval_mode(saved: Path) -> None:
    model, _ = load_model(saved)
    assert not model.training
    expected = dict(a_llama().named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in model.named_parameters())


def test_a_saved_tokenizer_comes_back(saved: Path) -> None:
    assert load_model(saved)[1].encode("abc") == a_tokenizer().encode("abc")


def test_the_dtype_is_the_one_asked_for(saved: Path) -> None:
    model, _ = load_model(saved, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_dtype_is_the_configurations_where_none_is_asked_for(tmp_path: Path) -> None:
    a_llama(torch.bfloat16).save_pretrained(tmp_path)
    a_tokenizer().save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_replaces_the_folders_weights(tmp_path: Path, tied: bool) -> None:
    a_llama(tied=tied).config.save_pretrained(tmp_path)
    a_tokenizer().save_pretrained(tmp_path)
    other = a_llama(seed=1, tied=tied)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    model, _ = load_model(tmp_path, tmp_path / "other.pt")
    both = zip(named_tensors(model), named_tensors(other), strict=True)
    assert all(torch.equal(ours.tensor, theirs.tensor) for ours, theirs in both)


def test_a_checkpoint_of_other_keys_is_refused_with_the_first_of_them(saved: Path, tmp_path: Path) -> None:
    weights = {name.replace("q_proj", "query"): value for name, value in a_llama().state_dict().items()}
    torch.save(weights, tmp_path / "other.pt")
    line = refused_to_load(saved, tmp_path / "other.pt")
    assert "2 missing: model.layers.0.self_attn.q_proj.weight" in line and "2 unexpected" in line


def test_weights_that_lack_a_tensor_are_refused(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    assert "1 missing: model.norm.weight" in refused_to_load(saved)


def test_truncated_weights_are_refused(saved: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot read the weights" in refused_to_load(saved)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (["config.json"], "config.json"),
        (["model.safetensors"], "model.safetensors"),
        (["tokenizer.json", "tokenizer_config.json"], "tokenizer.json"),
    ],
)
def test_a_file_that_is_missing_is_named_with_its_folder(saved: Path, gone: list[str], named: str) -> None:
    for name in gone:
        (saved / name).unlink()
    line = refused_to_load(saved)
    assert named in line and f"put it into {saved}" in line


def test_a_missing_part_of_the_weights_is_named(saved: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    shutil.move(saved / "model.safetensors", saved / "model-1.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 of 2 parts of the weights and lacks model-2.safetensors" in refused_to_load(saved)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "there is no folder" in refused_to_load(tmp_path / "nowhere")


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(saved: Path) -> None:
    a_tokenizer(LETTERS + "kl").save_pretrained(saved)
    assert "go up to 17, and the model's embedding has 16 rows" in refused_to_load(saved)


def test_a_tokenizer_without_a_token_to_begin_with_is_refused(saved: Path) -> None:
    a_tokenizer(bos=None, eos=None).save_pretrained(saved)
    assert "neither a bos_token nor an eos_token" in refused_to_load(saved)


def test_a_model_larger_than_memory_is_refused_before_its_weights_are_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "available_bytes", lambda device=None: 1000)
    (saved / "model.safetensors").write_bytes(b"not read")
    line = refused_to_load(saved)
    assert line.startswith(f"LlamaForCausalLM from {saved} in torch.float32 needs")


def test_weights_that_would_run_code_are_refused(saved: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("ran",))

    (saved / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Runs()}, saved / "pytorch_model.bin")
    assert "pytorch_model.bin holds more than tensors: to read it would run print" in refused_to_load(saved)


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    assert "unknown dtype 'float5'" in refused_to_load(saved, dtype="float5")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A hub that does not answer, and an empty cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield


@pytest.mark.usefixtures("no_hub")
def test_without_a_network_a_hub_name_says_which_files_are_wanted_and_where() -> None:
    line = refused_to_load("somebody/a-model")
    assert all(name in line for name in ("config.json", "model.safetensors", "tokenizer.json", "cache"))
