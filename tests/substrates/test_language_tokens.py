"""Contexts, continuations and windows as tokens, under tokenizers of every habit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Tokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedTokenizerFast

import lpe
from lpe.errors import InputError
from lpe.substrates.language import EnsembleLM
from lpe.substrates.language.tokens import encoder

BEGIN, END, A, B, C, D = 1, 2, 3, 4, 5, 6
WORDS = {"<unk>": 0, "<s>": BEGIN, "</s>": END, "a": A, "b": B, "c": C, "d": D}
MARKED = [("<s> $A", [BEGIN]), ("<s> $A </s>", [BEGIN]), ("$A </s>", []), ("$A", [])]
"""What a tokenizer makes of a text, and what stands before it."""


def words(marks: str = "<s> $A", **further: str) -> Any:
    """Words as tokens, with marks around a text."""
    inner = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(mark, WORDS[mark]) for mark in ("<s>", "</s>") if mark in marks]
    inner.post_processor = processors.TemplateProcessing(single=marks, special_tokens=special)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **further}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def pieces() -> Any:
    """Characters as tokens, of which "b" and "c" in a row are one, and so are "a" and "d"."""
    inner = Tokenizer(models.BPE({**WORDS, "bc": 7, "ad": 8}, [("b", "c"), ("a", "d")]))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def a_llama(vocabulary: int = 11) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.6,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("marks", "before"), MARKED)
def test_a_context_has_the_marks_before_it_once_and_none_after_it(marks: str, before: list[int]) -> None:
    assert encoder(words(marks), BEGIN).pair("a b", " c d") == ([*before, A, B], [C, D])


@pytest.mark.parametrize("marks", [marks for marks, _ in MARKED])
def test_a_continuation_without_a_context_begins_a_text(marks: str) -> None:
    assert encoder(words(marks), BEGIN).pair("", "a b") == ([BEGIN], [A, B])


@pytest.mark.parametrize("marks", [marks for marks, _ in MARKED])
def test_a_context_of_spaces_is_none(marks: str) -> None:
    assert encoder(words(marks), BEGIN).pair("  ", "a b") == ([BEGIN], [A, B])


@pytest.mark.parametrize("marks", [marks for marks, _ in MARKED])
@pytest.mark.parametrize(("context", "continuation"), [("<s> a", " b"), ("<s> a b", ""), ("", "<s> a")])
def test_a_mark_that_is_spelled_out_is_not_added_again(marks: str, context: str, continuation: str) -> None:
    read, scored = encoder(words(marks), BEGIN).pair(context, continuation)
    assert (read + scored)[:2] == [BEGIN, A] and BEGIN not in scored


@pytest.mark.parametrize("marks", [marks for marks, _ in MARKED])
@pytest.mark.parametrize("text", ["a b c d", "<s> a b c d"])
def test_a_texts_own_tokens_are_scored_after_one_beginning(marks: str, text: str) -> None:
    assert [*encoder(words(marks), BEGIN).windows(text, 16)] == [([BEGIN], [A, B, C, D])]


def test_a_text_without_a_bos_token_begins_with_the_end_of_another() -> None:
    tokenizer = words("$A", bos_token="<unk>")
    assert [*encoder(tokenizer, END).windows("a b", 16)] == [([END], [A, B])]


def test_several_marks_before_a_text_are_all_read() -> None:
    found = [*encoder(words("<s> </s> $A"), BEGIN).windows("a b c d", 3)]
    assert found == [([BEGIN, END], [A, B]), ([A, B], [C, D])]


def test_further_windows_go_on_from_the_last_token_and_the_last_reads_what_it_can() -> None:
    found = [*encoder(words(), BEGIN).windows("a b c d a b c", 3)]
    assert found == [([BEGIN], [A, B, C]), ([C], [D, A, B]), ([D, A, B], [C])]


def test_an_empty_text_has_no_window() -> None:
    assert [*encoder(words(), BEGIN).windows("", 16)] == []


def test_a_token_over_the_boundary_is_scored_with_the_continuation() -> None:
    # "ab" and "cd" are a, bc, d.
    assert encoder(pieces(), BEGIN).pair("ab", "cd") == ([BEGIN, A], [7, D])


def test_a_token_over_the_boundary_and_the_whole_context_leaves_the_beginning() -> None:
    assert encoder(pieces(), BEGIN).pair("a", "db") == ([BEGIN], [8, B])


def test_lm_evals_hf_model_drops_a_token_that_lies_over_the_boundary() -> None:
    theirs = HFLM(pretrained=a_llama(), tokenizer=pieces())
    assert theirs._encode_pair("ab", "cd") == ([BEGIN, A, B], [D])


def test_lm_evals_hf_model_leaves_an_end_between_context_and_continuation() -> None:
    theirs = HFLM(pretrained=a_llama(), tokenizer=words("<s> $A </s>"))
    assert theirs._encode_pair("a b", " c d") == ([BEGIN, A, B, END], [D, END])


@pytest.mark.parametrize("pair", [("a b", " c"), ("a b ", "c"), ("a", " b c d"), ("<s> a", " b")])
@pytest.mark.parametrize("marks", ["<s> $A", "$A"])
def test_where_nothing_is_appended_or_merged_the_tokens_are_lm_evals(
    marks: str, pair: tuple[str, str]
) -> None:
    tokenizer = words(marks)
    theirs = HFLM(pretrained=a_llama(), tokenizer=words(marks))._encode_pair(*pair)
    assert encoder(tokenizer, BEGIN).pair(*pair) == theirs


SENTENCEPIECE = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "▁a", "▁b", "bc"]
MERGES: list[Any] = [("▁", "a"), ("▁", "b"), ("b", "c")]


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("add_eos", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_llamas_options_give_a_space_before_a_text_and_not_before_a_continuation(
    add_bos: bool, add_eos: bool, legacy: bool
) -> None:
    tokenizer = LlamaTokenizer(
        vocab={piece: index for index, piece in enumerate(SENTENCEPIECE)},
        merges=MERGES,
        add_bos_token=add_bos,
        add_eos_token=add_eos,
        legacy=legacy,
    )
    read, scored = encoder(tokenizer, BEGIN).pair("a b", "c b")
    assert (read, scored) == ([BEGIN] * add_bos + [7, 8], [6, 8])


@pytest.mark.parametrize("add_bos", [False, True])
def test_gpt2s_context_begins_with_its_mark_only_where_it_is_asked_for(add_bos: bool) -> None:
    vocabulary = {piece: index for index, piece in enumerate(["<|endoftext|>", "a", "b", "Ġ", "Ġa", "Ġb"])}
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=[("Ġ", "a"), ("Ġ", "b")], add_bos_token=add_bos)
    its = encoder(tokenizer, 0)
    assert its.pair("a", " b") == ([0] * add_bos + [1], [5])
    assert [*its.windows("a b", 16)] == [([0], [1, 5])]


def test_marks_of_a_tokenizer_that_knows_none_of_the_usual_letters_are_found() -> None:
    inner = Tokenizer(models.BPE({"<s>": 1, "</s>": 2, "q": 3}, []))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    assert encoder(tokenizer, 2).marks == [1]


def test_a_tokenizer_that_changes_a_text_with_its_marks_is_refused() -> None:
    class Odd:
        all_special_tokens = ()

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [9, 9] if add_special_tokens else [3]

        def get_vocab(self) -> dict[str, int]:
            return {"a": 3}

    with pytest.raises(InputError, match=r"makes \[3\] of 'a', and \[9, 9\] with its marks"):
        encoder(Odd(), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("marks", [marks for marks, _ in MARKED])
def test_a_pair_scores_as_one_forward_pass_over_its_tokens(marks: str) -> None:
    net, tokenizer = a_llama(), words(marks)
    lm = EnsembleLM(lpe.DeepEnsemble([net]), tokenizer)
    ((found, _),) = lm.loglikelihood([Instance("loglikelihood", {}, ("a b c", " d a"), 0)])
    tokens = torch.tensor([[*dict(MARKED)[marks], A, B, C, D, A]])
    with torch.no_grad():
        log_probs = net(tokens).logits[0, -3:-1].log_softmax(-1)
    assert found == pytest.approx(float(log_probs[0, D] + log_probs[1, A]), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(
    "padding",
    [{}, {"pad_token": "</s>", "padding_side": "left"}, {"pad_token": "<unk>", "padding_side": "right"}],
)
def test_padding_and_the_size_of_a_batch_change_no_answer(padding: dict[str, str], batch_size: int) -> None:
    net = a_llama()
    pairs = [("a b c d", " a"), ("a", " b c d"), ("", "d c b a b c d"), ("c", " d")]
    pair_requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("a b", "a b c d " * 6, "d")]

    def answers(lm: EnsembleLM) -> list[float]:
        return [value for value, _ in lm.loglikelihood(pair_requests)] + lm.loglikelihood_rolling(texts)

    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 2)
    alone = answers(EnsembleLM(ensemble, words(), batch_size=1))
    assert answers(EnsembleLM(ensemble, words(**padding), batch_size)) == pytest.approx(alone, abs=1e-5)
