"""Measures an ensemble of language models on token batches: nats a token of every prefix, and its perplexity.

Of token ids x [texts, tokens] and labels y of the same shape, as transformers' causal models take them, the
logits at position t are of label t + 1, and labels of −100 do not count:

    nll = −1/N Σ over (i, t), y[i, t + 1] ≠ −100, of log( 1/M Σ_m p_m(y[i, t + 1] | x[i, 0 … t]) )

with N the labels that count; perplexity = exp(nll). Of each member's distribution the label's log-probability
alone is kept, so that a large vocabulary takes no memory.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpe.batches import check_iterable, pairs
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.evaluation.batches import Batch, Hashed, is_integers
from lpe.evaluation.options import EvaluationOptions
from lpe.evaluation.predictions import (
    TOKENS,
    PredictionsWriter,
    about_ensemble,
    check_examples,
    check_place,
    check_same,
    drop_partial,
    read_predictions,
)
from lpe.evaluation.score import checked_metrics, score
from lpe.evaluation.timing import MemberTimer
from lpe.logits import check_type, check_values
from lpe.modules import device_of, tensors_in
from lpe.notices import say
from lpe.writing import locked

if TYPE_CHECKING:
    import pandas as pd

IGNORED = -100
"""The label of a token that does not count, as torch's cross-entropy has it."""

BLOCK_BYTES = 1 << 24
"""Bytes of an array, float64 [tokens, vocabulary], while log-probabilities are taken."""


class Texts(Hashed):
    """The inputs of a batch with the labels of its tokens.

    Args:
        inputs: of the model: token ids, alone or among others. labels: int64 [texts, tokens].
    """

    def __init__(self, inputs: Any, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels
        self.counts = labels[:, 1:] != IGNORED

    @property
    def targets(self) -> Tensor:
        """The labels that count, text after text, int64 [tokens]."""
        return self.labels[:, 1:][self.counts]

    def hashes(self) -> Tensor:
        """Return a hash of each token that counts: of its text, labels and place, int64 [tokens]."""
        ids = token_ids(self.inputs)
        assert ids is not None
        found = []
        for text, labels, counts in zip(ids.cpu(), self.labels.cpu(), self.counts.cpu(), strict=True):
            told = hashlib.blake2b(text.long().contiguous().numpy().data)
            told.update(labels.contiguous().numpy().data)
            for place in counts.nonzero()[:, 0].tolist():
                own = told.copy()
                own.update(place.to_bytes(8, "little"))
                found.append(int.from_bytes(own.digest()[:8], "little", signed=True))
        return torch.tensor(found, dtype=torch.int64, device="cpu")


def token_ids(inputs: Any) -> Tensor | None:
    """Return the token ids [texts, tokens] of a batch's inputs; None where there are none."""
    named = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    ids = next(tensors_in(inputs), None) if named is None else named
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 and is_integers(ids) else None


def peeked(batches: Any) -> tuple[Any, bool]:
    """Return the batches, and whether the first is of tokens: ids [texts, tokens] and as many labels.

    Raises:
        InputError: no iterable.
    """
    check_iterable(batches)
    read = iter(batches)
    first = list(zip(range(1), read, strict=False))
    of_tokens = False
    for _, batch in first:
        if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
            ids = token_ids(batch[0])
            of_tokens = ids is not None and is_integers(batch[1]) and batch[1].dim() == 2
    return chain((batch for _, batch in first), read), of_tokens


def stream(batches: Any) -> Iterator[tuple[int, Texts, Tensor]]:
    """Yield batches of texts with the labels that count, int64 [tokens], without those that have none.

    Raises:
        InputError: a batch that is no pair of token ids and labels of their shape.
    """
    for index, inputs, labels in pairs(batches):
        ids = token_ids(inputs)
        if ids is None:
            raise InputError(f"batch {index} has no token ids [texts, tokens], and the batches before had")
        if not isinstance(labels, Tensor) or not is_integers(labels) or labels.shape != ids.shape:
            given = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(
                f"batch {index} has token ids {list(ids.shape)} and labels {given}; one label a token is "
                f"needed, an integer, {IGNORED} where it does not count"
            )
        texts = Texts(inputs, labels.long())
        targets = texts.targets
        if len(targets):
            if int(targets.min()) < 0:
                raise InputError(
                    f"batch {index} has the label {int(targets.min())}; labels are token ids, or {IGNORED}"
                )
            yield index, texts, targets


@torch.no_grad()
def evaluate_tokens(
    ensemble: Ensemble,
    batches: Iterable[Any],
    budget: float,
    options: EvaluationOptions,
    timer: MemberTimer | None = None,
    predictions: str | os.PathLike[str] | None = None,
    predictions_dtype: str = "float32",
    predictions_record: Mapping[str, object] | None = None,
    metrics: str | Collection[str] | None = None,
) -> pd.DataFrame:
    """Return nats a token and perplexity of every prefix; the arguments are :func:`lpe.evaluate`'s.

    Args:
        budget: bytes of inputs that are held at a time: members are made once for as many. options: of the
            forward passes.

    Returns:
        A row per size 1 … M: size, nll (of the mean of the members' token probabilities), average_loss (mean
        over members), perplexity, memory_bits. Losses in nats a token.

    Raises:
        InputError: as :func:`lpe.evaluate`; logits that are not [texts, tokens, vocabulary]; a label beyond
            the vocabulary; no label that counts.
    """
    import pandas as pd

    names = checked_metrics(metrics, TOKENS)
    say(ensemble.notes())
    if predictions is not None:
        file = check_place(predictions)
        about = about_ensemble(ensemble, asdict(options), predictions_dtype, predictions_record)
        about["kind"] = TOKENS
        with locked(file):
            if not file.exists():
                _write(PredictionsWriter(file, about), ensemble, batches, budget, options, timer)
            else:
                check_same(file, read_predictions(file).about, about)
                drop_partial(file)
                check_examples(read_predictions(file), stream(batches))
            return score(file, names)
    size = len(ensemble)
    of_mean, of_members = [0.0] * size, [0.0] * size
    count = 0
    sums: dict[int, tuple[Tensor, Tensor]] = {}
    for member, place, own in _passes(ensemble, stream(batches), budget, options, timer):
        if not member:
            count += len(own)
            log_sum, total = own, own
        else:
            log_sum, total = torch.logaddexp(sums[place][0], own), sums[place][1] + own
        sums[place] = log_sum, total
        of_mean[member] -= float((log_sum - math.log(member + 1)).sum())
        of_members[member] -= float(total.sum()) / (member + 1)
    if not count:
        raise InputError(_EMPTY)
    rows = [
        {
            "size": n,
            "nll": of_mean[n - 1] / count,
            "average_loss": of_members[n - 1] / count,
            "perplexity": _exponential(of_mean[n - 1] / count),
            "memory_bits": ensemble.memory_bits(n),
        }
        for n in range(1, size + 1)
    ]
    return pd.DataFrame(rows)[["size", *names, "memory_bits"]]


_EMPTY = f"there is no label that counts: the batches are empty, or all labels after the first are {IGNORED}"


def _exponential(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf


def _write(
    writer: PredictionsWriter,
    ensemble: Ensemble,
    batches: Iterable[Any],
    budget: float,
    options: EvaluationOptions,
    timer: MemberTimer | None,
) -> None:
    """Write what a file lacks of an ensemble's predictions, and finish it."""
    try:
        read = writer.reading(stream(batches))
        for member, _, own in _passes(ensemble, read, budget, options, timer, writer):
            writer.add(member, own)
    finally:
        writer.drop_if_empty()
    writer.finish()


def _passes(
    ensemble: Ensemble,
    batches: Iterator[Batch],
    budget: float,
    options: EvaluationOptions,
    timer: MemberTimer | None,
    held: PredictionsWriter | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield a member's index, a batch's place in its chunk, and log-probabilities float64 [tokens] of labels.

    What is held of an earlier run is not run again.
    """
    for chunk in _chunks(batches, budget):
        options.check_reach(ensemble, chunk[0][1].inputs)
        turn: Iterator[nn.Module] = ensemble.in_turn()
        is_whole = True  # whether the members so far were all made in turn
        for member in range(len(ensemble)):
            lacking = [
                place for place, batch in enumerate(chunk) if held is None or not held.has(member, batch)
            ]
            if not lacking:
                is_whole = False
                continue
            with timer.member(member) if timer else nullcontext():
                net = next(turn) if is_whole else ensemble.member(member)
            for place in lacking:
                index, texts, targets = chunk[place]
                device = device_of(net)
                with timer.member(member) if timer else nullcontext():
                    logits = options.logits(net, options.placed(texts.inputs, device), device)
                    own = _of_labels(logits, texts, f"batch {index}: ")
                if timer and not member:
                    timer.examples += len(texts.labels)
                yield member, place, own
            del net  # it would live on while the next one is made


def _chunks(batches: Iterator[Batch], budget: float) -> Iterator[list[Batch]]:
    """Yield batches together, of at most about ``budget`` bytes and at least one."""
    chunk: list[Batch] = []
    size = 0
    for batch in batches:
        own = sum(each.numel() * each.element_size() for each in tensors_in(batch[1].inputs))
        own += 16 * len(batch[2])  # two running sums
        if chunk and size + own > budget:
            yield chunk
            chunk, size = [], 0
        chunk.append(batch)
        size += own
    if chunk:
        yield chunk


def _of_labels(logits: Tensor, texts: Texts, where: str) -> Tensor:
    """Return the log-probabilities of the labels that count, float64 [tokens] on the CPU.

    Raises:
        InputError: logits of another shape or type, NaN or +∞; a label beyond the vocabulary.
    """
    if logits.dim() != 3 or logits.shape[:2] != texts.labels.shape:
        raise InputError(
            f"{where}the model returned logits of shape {list(logits.shape)} for token ids "
            f"{list(texts.labels.shape)}; [texts, tokens, vocabulary] is needed"
        )
    check_type(logits, where)
    vocabulary = logits.shape[2]
    targets = texts.targets.to(logits.device)
    if int(targets.max()) >= vocabulary:
        raise InputError(
            f"{where}label {int(targets.max())}; the model's vocabulary has the ids 0 to {vocabulary - 1}"
        )
    rows, places = texts.counts.to(logits.device).nonzero(as_tuple=True)
    step = max(1, BLOCK_BYTES // (8 * vocabulary))
    found = []
    for row, place, target in zip(rows.split(step), places.split(step), targets.split(step), strict=True):
        scores = logits[row, place]
        check_values(scores, where)
        found.append(scores.double().log_softmax(dim=-1).gather(1, target[:, None])[:, 0].cpu())
    return torch.cat(found)
