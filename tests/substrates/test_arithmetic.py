"""Arithmetic: the questions and their splits, the choices, the tokens, the network, and lm-eval's task."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager

import lpe
from lpe.modules import apply
from lpe.substrates import arithmetic, language
from lpe.substrates.arithmetic import LlamaShape, Question

SHAPE = LlamaShape(width=8, depth=1, heads=2, hidden=8)


def exchanged(question: Question) -> Question:
    return Question(question.second, question.sign, question.first)


# The questions and their splits.


def test_there_are_sums_differences_and_products() -> None:
    signs = Counter(question.sign for family in arithmetic.families() for question in family)
    assert signs == {"+": 90 * 90, "-": 80 * 81 // 2, "*": 2 * 8 * 90}


def test_no_question_is_there_twice() -> None:
    every = [question for family in arithmetic.families() for question in family]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Question(37, "+", 45), "37+45=82."),
        (Question(82, "-", 45), "82-45=37."),
        (Question(7, "*", 12), "7*12=84."),
    ],
)
def test_a_sentence_is_the_question_with_its_answer(question: Question, sentence: str) -> None:
    assert question.sentence == sentence


def shared(parts: list[list[Question]]) -> int:
    """How many held-out questions are in another split, also with their numbers exchanged."""
    train, validation, test = (set(part) for part in parts)
    seen = train | {exchanged(question) for question in train if question.sign != "-"}
    between = validation | {exchanged(question) for question in validation if question.sign != "-"}
    return len((validation | test) & seen) + len(test & between)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_held_out_is_in_no_other_split_even_with_its_numbers_exchanged(seed: int) -> None:
    split = arithmetic.questions(seed)
    assert shared([split.train, split.validation, split.test]) == 0


def test_a_split_of_single_questions_would_be_seen_to_share_some() -> None:
    every = [question for family in arithmetic.families() for question in family]
    order = [every[index] for index in np.random.default_rng(0).permutation(len(every))]
    assert shared([order[1000:], order[500:1000], order[:500]]) > 100


def test_five_hundred_questions_each_are_held_out() -> None:
    split = arithmetic.questions(0)
    assert (len(split.validation), len(set(split.validation))) == (500, 500)
    assert (len(split.test), len(set(split.test))) == (500, 500)


def test_another_seed_tests_other_questions() -> None:
    # Two draws of 500 families of 8,055 share 31 on average.
    first, second = (set(arithmetic.questions(seed).test) for seed in (0, 1))
    assert len(first & second) < 60


def test_a_seeds_questions_are_the_same_when_asked_for_again() -> None:
    assert arithmetic.questions(3) == arithmetic.questions(3)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="-1"):
        arithmetic.questions(-1)


# The choices.


@pytest.fixture(scope="module")
def every_choice() -> list[tuple[Question, list[str], int]]:
    draws = np.random.default_rng(0)
    return [
        (question, *arithmetic.choices(question, draws))
        for family in arithmetic.families()
        for question in family
    ]


def test_the_right_choice_is_the_answer(every_choice: list[tuple[Question, list[str], int]]) -> None:
    assert all(options[right] == str(question.answer) for question, options, right in every_choice)


def test_the_four_choices_differ(every_choice: list[tuple[Question, list[str], int]]) -> None:
    assert all(len(set(options)) == 4 for _, options, _ in every_choice)


def test_the_four_choices_are_of_equal_length(every_choice: list[tuple[Question, list[str], int]]) -> None:
    assert all(len({len(option) for option in options}) == 1 for _, options, _ in every_choice)


def test_each_place_is_right_as_often(every_choice: list[tuple[Question, list[str], int]]) -> None:
    counts = np.bincount([right for *_, right in every_choice])
    n = len(every_choice)
    assert np.abs(counts - n / 4).max() < 5 * np.sqrt(n * 3 / 16)


def test_the_choices_alone_hardly_tell_the_right_one(
    every_choice: list[tuple[Question, list[str], int]],
) -> None:
    # Who always takes the smallest is right in 27 %: answers at the edge of their length have no smaller one.
    ranks = Counter(
        sorted(map(int, options)).index(int(options[right])) for _, options, right in every_choice
    )
    assert max(ranks.values()) / len(every_choice) < 0.28


def test_half_of_the_choices_share_the_right_units(
    every_choice: list[tuple[Question, list[str], int]],
) -> None:
    assert all(
        sum(option[-1] == options[right][-1] for option in options) == 2 for _, options, right in every_choice
    )


# Tokens and batches.


def test_a_text_is_a_beginning_and_its_characters() -> None:
    tokens = arithmetic.tokenizer().encode("12+7=")
    assert [arithmetic.VOCABULARY[token] for token in tokens] == ["<s>", *"12+7="]


def test_a_saved_tokenizer_is_read_again(tmp_path: Path) -> None:
    arithmetic.tokenizer().save_pretrained(tmp_path)
    arithmetic.network(SHAPE, 0).save_pretrained(tmp_path)
    assert language.load_model(tmp_path)[1].encode("82-45=") == arithmetic.tokenizer().encode("82-45=")


def test_a_sentence_is_encoded_as_the_tokenizer_does_with_an_end() -> None:
    question = Question(37, "+", 45)
    expected = [*arithmetic.tokenizer().encode(question.sentence), arithmetic.VOCABULARY.index("</s>")]
    assert arithmetic.encoded([question])[0].tolist() == expected


def test_every_sentence_fits_the_context() -> None:
    every = [question for family in arithmetic.families() for question in family]
    assert arithmetic.encoded(every).shape[1] <= arithmetic.CONTEXT


def test_every_token_but_the_first_is_a_target_and_no_padding_is() -> None:
    sentences = [Question(37, "+", 45), Question(7, "*", 99), Question(82, "-", 45)]
    _, targets = arithmetic.token_batch(arithmetic.encoded(sentences))
    expected = "".join(question.sentence + "$" for question in sentences)
    assert "".join(arithmetic.VOCABULARY[token] for token in targets).replace("</s>", "$") == expected


def test_an_epoch_has_each_sentence_at_most_once() -> None:
    sentences = arithmetic.questions(0).train[:100]
    batches = arithmetic.batches(sentences, 30, seed=0)
    rows = torch.cat([inputs["tokens"] for inputs, _ in batches(0)])
    assert len(rows) == 90 and len(rows.unique(dim=0)) == 90


def test_epochs_have_orders_of_their_own_that_are_the_same_again() -> None:
    batches = arithmetic.batches(arithmetic.questions(0).train[:100], 30, seed=0)
    first, again, second = (next(batches(epoch))[0]["tokens"] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_a_batch_larger_than_the_corpus_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="1 to 100 sentences"):
        arithmetic.batches(arithmetic.questions(0).train[:100], 101, seed=0)


# The network.


def test_a_network_is_its_seeds_alone() -> None:
    first, again, other = (arithmetic.network(SHAPE, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_making_a_network_leaves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    arithmetic.network(SHAPE, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_next_token_logits_are_those_before_each_target() -> None:
    net = arithmetic.network(SHAPE, 0).eval()
    inputs, targets = arithmetic.token_batch(
        arithmetic.encoded([Question(37, "+", 45), Question(7, "*", 99)])
    )
    with torch.no_grad():
        together = apply(arithmetic.NextToken(net), inputs)
        alone = net(arithmetic.encoded([Question(7, "*", 99)])).logits[0, :-1]
    assert together.shape == (len(targets), len(arithmetic.VOCABULARY))
    torch.testing.assert_close(together[-len(alone) :], alone)


def test_the_nll_of_tokens_is_a_trained_quantity_of_lpe_evaluate() -> None:
    batch = arithmetic.token_batch(arithmetic.encoded(arithmetic.questions(0).test[:20]))
    ensemble = lpe.LowPrecisionEnsemble(arithmetic.NextToken(arithmetic.network(SHAPE, 0)), lpe.Int(4), 2)
    assert lpe.evaluate(ensemble, [batch])["nll"].iloc[-1] == pytest.approx(np.log(17), rel=0.05)


# The task.


@pytest.fixture(scope="module")
def table() -> list[dict[str, object]]:
    return [dict(row) for row in arithmetic.dataset(5)["test"]]  # type: ignore[call-overload]


def test_the_task_asks_a_seeds_test_questions(table: list[dict[str, object]]) -> None:
    assert [row["question"] for row in table] == [each.text for each in arithmetic.questions(5).test]


def test_the_tasks_right_choice_is_the_answer(table: list[dict[str, object]]) -> None:
    for row, question in zip(table, arithmetic.questions(5).test, strict=True):
        assert row["choices"][row["right"]] == str(question.answer)  # type: ignore[index]


def test_the_packaged_task_is_found_by_name_with_the_questions_of_seed_0() -> None:
    manager = TaskManager(include_path=str(arithmetic.TASKS), include_defaults=False)
    (task,) = manager.load([arithmetic.TASK])["tasks"].values()
    assert task.eval_docs[0]["question"] == arithmetic.questions(0).test[0].text


def test_lm_eval_takes_the_seed_as_metadata() -> None:
    manager = TaskManager(include_path=str(arithmetic.TASKS), include_defaults=False, metadata={"seed": 3})
    (task,) = manager.load([arithmetic.TASK])["tasks"].values()
    assert task.eval_docs[0]["question"] == arithmetic.questions(3).test[0].text


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_seeds_task_asks_its_split(split: str) -> None:
    (task,) = TaskManager(include_defaults=False).load([arithmetic.task(2, split)])["tasks"].values()
    assert task.eval_docs[7]["question"] == getattr(arithmetic.questions(2), split)[7].text


def test_a_question_and_its_choice_are_put_together_without_a_space() -> None:
    (task,) = TaskManager(include_defaults=False).load([arithmetic.task(0)])["tasks"].values()
    task.set_config("num_fewshot", 0)
    task.build_all_requests(limit=1)
    question = arithmetic.questions(0).test[0]
    assert (question.text, str(question.answer)) in [instance.args for instance in task.instances]


def test_an_untrained_network_guesses() -> None:
    ensemble = lpe.DeepEnsemble([arithmetic.network(SHAPE, 0)])
    found = language.evaluate(ensemble, arithmetic.tokenizer(), [arithmetic.task(0)], batch_size=128)
    # Half of the 500 errors' standard deviation, five times, around chance.
    assert found["err"][0] == pytest.approx(0.75, abs=5 * np.sqrt(3 / 16 / 500))


def test_lm_evals_bars_and_remarks_are_not_shown(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ensemble = lpe.DeepEnsemble([arithmetic.network(SHAPE, 0)])
    with caplog.at_level(logging.WARNING):
        language.evaluate(ensemble, arithmetic.tokenizer(), [arithmetic.task(0)], limit=2)
    assert not caplog.records and capsys.readouterr().err == ""
