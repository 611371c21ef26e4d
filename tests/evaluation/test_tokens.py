"""Language models on token batches: nats a token as the field has them, out of every member's labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.evaluation import tokens
from lpe.evaluation.options import EvaluationOptions
from lpe.evaluation.predictions import checked_predictions

VOCABULARY, TEXTS, LENGTH, SIZE = 11, 5, 7, 4


class Model(nn.Module):
    """Predicts from the mean of the tokens so far."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.head = nn.Linear(6, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.embedding(input_ids).cumsum(dim=1)
        logits: Tensor = self.head(states)
        return logits


def ensemble_of(size: int = SIZE, seed: int = 0) -> lpe.LowPrecisionEnsemble:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model()
    return lpe.LowPrecisionEnsemble(model, lpe.Int(3), size, seed)


GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(VOCABULARY, (TEXTS, LENGTH), generator=GENERATOR)
LABELS = IDS.clone()
LABELS[1, 4:] = -100
LABELS[3, :] = -100
COLUMNS = ["size", "nll", "average_loss", "perplexity", "memory_bits"]


def batches(labels: Tensor = LABELS, ids: Tensor = IDS, texts: int = 2) -> list[Any]:
    return list(zip(ids.split(texts), labels.split(texts), strict=True))


def of_labels(ensemble: Any, labels: Tensor = LABELS) -> Tensor:
    """Each member's log-probabilities of the labels that count, by torch's cross-entropy."""
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(
                net(IDS)[:, :-1].double().reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1), reduction="none"
            )
            for net in ensemble
        ]
    return -torch.stack(losses)[:, labels[:, 1:].reshape(-1) != -100]


def test_every_prefix_has_the_nats_a_token_of_the_mean_of_probabilities() -> None:
    ensemble = ensemble_of()
    own = of_labels(ensemble)
    assert own.shape == (SIZE, (TEXTS - 2) * (LENGTH - 1) + 3)
    table = lpe.evaluate(ensemble, batches())
    assert list(table.columns) == COLUMNS and list(table["size"]) == [1, 2, 3, 4]
    for n, row in table.set_index("size").iterrows():
        mean = own[:n].logsumexp(dim=0) - math.log(n)
        assert row["nll"] == pytest.approx(-float(mean.mean()), rel=1e-6)
        assert row["average_loss"] == pytest.approx(-float(own[:n].mean()), rel=1e-6)
        assert row["perplexity"] == pytest.approx(math.exp(row["nll"]), rel=1e-12)
        assert row["memory_bits"] == ensemble.memory_bits(n)


def test_without_the_shift_it_is_another_number() -> None:
    # The injected fault: labels that are those of the same token.
    shifted = torch.cat([LABELS[:, 1:], torch.full((TEXTS, 1), -100)], dim=1)
    wrong = lpe.evaluate(ensemble_of(1), batches(shifted))["nll"][0]
    assert abs(wrong - lpe.evaluate(ensemble_of(1), batches())["nll"][0]) > 0.01


def test_one_network_has_the_loss_that_transformers_gives() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval()
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        loss = float(model(IDS, attention_mask=mask, labels=LABELS).loss)
    single = lpe.LowPrecisionEnsemble(model, lpe.FullPrecision(), 1)
    given = [({"input_ids": IDS, "attention_mask": mask}, LABELS)]
    assert lpe.evaluate(single, given)["nll"][0] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("texts", [1, 2, TEXTS])
@pytest.mark.parametrize("chunk_bytes", [0, 200, None])
def test_how_texts_are_batched_and_held_changes_no_number(texts: int, chunk_bytes: int | None) -> None:
    whole = lpe.evaluate(ensemble_of(), [(IDS, LABELS)])
    parts = lpe.evaluate(ensemble_of(), iter(batches(texts=texts)), chunk_bytes=chunk_bytes)
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-6)


def test_blocks_of_the_vocabulary_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lpe.evaluate(ensemble_of(), batches())
    monkeypatch.setattr(tokens, "BLOCK_BYTES", 8 * VOCABULARY * 2)
    pd.testing.assert_frame_equal(lpe.evaluate(ensemble_of(), batches()), whole, rtol=1e-12)


def test_any_ensemble_may_be_of_language_models() -> None:
    models = [ensemble_of(seed=seed)[0] for seed in (0, 1)]
    table = lpe.evaluate(lpe.DeepEnsemble(models), batches(), metrics=["perplexity"])
    assert list(table.columns) == ["size", "perplexity", "memory_bits"]
    own = of_labels(models)
    mean = own.logsumexp(dim=0) - math.log(2)
    assert table["perplexity"][1] == pytest.approx(math.exp(-float(mean.mean())), rel=1e-6)


def test_a_timer_counts_texts() -> None:
    timer = lpe.MemberTimer(SIZE)
    lpe.evaluate(ensemble_of(), batches(texts=1), timer=timer)
    assert timer.examples == TEXTS - 1  # of one no label counts
    assert all(seconds > 0 for seconds in timer.seconds)


def test_predictions_in_a_file_have_the_table_s_score(tmp_path: Path) -> None:
    file = tmp_path / "p"
    table = lpe.evaluate(ensemble_of(), batches(), predictions=file)
    pd.testing.assert_frame_equal(table, lpe.score(file), check_exact=True)
    pd.testing.assert_frame_equal(table, lpe.evaluate(ensemble_of(), batches()), rtol=1e-6)
    held = checked_predictions(file)
    assert held.about["kind"] == "tokens" and held.classes == 0
    assert torch.equal(held.targets, LABELS[:, 1:][LABELS[:, 1:] != -100])
    assert len(held.examples.unique()) == len(held.targets) == of_labels(ensemble_of()).shape[1]
    found = held.log_probs(2, 0, len(held.targets)).double()
    torch.testing.assert_close(found, of_labels(ensemble_of())[2], rtol=1e-6, atol=1e-6)
    # Where the file is there no member is run.
    again = lpe.evaluate(ensemble_of(), batches(), predictions=file)
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_a_mixture_of_files_is_that_of_the_members(tmp_path: Path) -> None:
    for seed in (0, 1):
        lpe.evaluate(
            ensemble_of(2, seed), batches(), predictions=tmp_path / f"{seed}", predictions_dtype="float64"
        )
    table = lpe.score([tmp_path / "0", tmp_path / "1"])
    own = of_labels([*ensemble_of(2, 0), *ensemble_of(2, 1)])
    assert table["nll"][3] == pytest.approx(-float((own.logsumexp(dim=0) - math.log(4)).mean()), rel=1e-6)


class Kill(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("passes", [1, 4, 9])
def test_a_killed_run_goes_on_between_two_passes_to_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: int
) -> None:
    expected = lpe.evaluate(ensemble_of(), batches(), predictions=tmp_path / "whole")
    own, taken = EvaluationOptions.logits, []

    def counted(*asked: Any) -> Any:
        if len(taken) == passes:
            raise Kill
        taken.append(1)
        return own(*asked)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationOptions, "logits", counted)
        with pytest.raises(Kill):
            lpe.evaluate(ensemble_of(), batches(), predictions=tmp_path / "p")
    assert not (tmp_path / "p").exists()
    later: list[int] = []
    monkeypatch.setattr(
        EvaluationOptions,
        "logits",
        lambda *asked: later.append(1) or own(*asked),  # type: ignore[func-returns-value]
    )
    found = lpe.evaluate(ensemble_of(), batches(), predictions=tmp_path / "p")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert (tmp_path / "p").read_bytes() == (tmp_path / "whole").read_bytes()
    assert passes + len(later) == SIZE * len(batches())


def test_a_file_of_other_texts_is_refused(tmp_path: Path) -> None:
    lpe.evaluate(ensemble_of(), batches(), predictions=tmp_path / "p")
    other = LABELS.clone()
    other[0, 2] = (other[0, 2] + 1) % VOCABULARY
    for labels, ids in ((other, IDS), (LABELS, IDS.flip(1))):
        with pytest.raises(lpe.InputError, match="is of other examples: in the batch that differs"):
            lpe.evaluate(ensemble_of(), batches(labels, ids), predictions=tmp_path / "p")


TOO_LARGE = torch.full((2, 3), VOCABULARY)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([(IDS, LABELS[:, 1:])], r"token ids \[5, 7\] and labels \[5, 6\]; one label a token is needed"),
        ([(IDS, LABELS - 5)], "batch 0 has the label -"),
        ([(IDS, torch.full_like(IDS, -100))], "there is no label that counts"),
        ([(IDS[:, :1], IDS[:, :1])], "there is no label that counts"),
        ([(TOO_LARGE - VOCABULARY, TOO_LARGE)], "label 11; the model's vocabulary has the ids 0 to 10"),
        ([(IDS, LABELS), (torch.rand(2, 3), torch.zeros(2))], "batch 1 has no token ids"),
        ([(IDS, LABELS), (IDS, [1, 2])], r"token ids \[5, 7\] and labels list"),
        # What is no batch of tokens is refused as before.
        ([(torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.int64))], "of one-hot targets they are"),
    ],
)
def test_what_is_no_batch_of_tokens_is_said(given: list[Any], said: str) -> None:
    with pytest.raises(lpe.InputError, match=said):
        lpe.evaluate(ensemble_of(1), given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibrated": True}, "leave calibrated, examples and members='together' out"),
        ({"members": "together"}, "members run one by one"),
        ({"metrics": ["ece"]}, "a metric must be one of nll, average_loss, perplexity, not 'ece'"),
    ],
)
def test_what_tokens_do_not_have_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(lpe.InputError, match=said):
        lpe.evaluate(ensemble_of(1), batches(), **options)


class Pooled(Model):
    """Predicts a class of the text, not its tokens."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(input_ids).mean(dim=1)


def test_a_model_without_logits_of_every_token_is_refused() -> None:
    with pytest.raises(lpe.InputError, match=r"\[texts, tokens, vocabulary\] is needed"):
        lpe.evaluate(lpe.LowPrecisionEnsemble(Pooled(), lpe.Int(3), 1), batches())
