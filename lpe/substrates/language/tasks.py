"""Ensembles on lm-eval's tasks: every prefix's metrics, each request run once."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.evaluation.metrics import METRICS, EnsembleMetrics, temperature_scaled
from lpe.evaluation.predictions import (
    CHOICES,
    TOKENS,
    about_ensemble,
    check_same,
    read_predictions,
    write_predictions,
)
from lpe.evaluation.timing import MemberTimer
from lpe.extras import needs
from lpe.files.container import check_path
from lpe.notices import say
from lpe.substrates import hub
from lpe.substrates.language.ensemble_lm import EnsembleLM, Scored, quiet_lm_eval
from lpe.substrates.language.load import one_line
from lpe.training import checkpoints
from lpe.writing import locked, make_writable

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

TOKEN_METRICS = ("nll", "average_loss")
"""Metrics of the tokens themselves, where a task has no choices: nats a token."""
ROLLING_METRICS = (*TOKEN_METRICS, "perplexity")
"""Metrics of whole texts, on their own tokens."""
AS_HF = "lm_eval_nll"
"""Nats a token of whole texts and of the marks around them, as lm-eval's ``hf`` model scores them."""


_Documents = list[list[Scored]]
"""The requests of each of a task's documents."""


@dataclass(frozen=True)
class _Answered:
    """A task that was run.

    Args:
        name, task: lm-eval's. documents: scored on their own tokens. as_hf: the same, scored as by lm-eval's
            ``hf`` model, for lm-eval's own metrics.
    """

    name: str
    task: Any
    documents: _Documents
    as_hf: _Documents


def _answered(
    ensemble: Ensemble,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str | Mapping[str, Any]],
    include_path: str | os.PathLike[str] | None,
    batch_size: int,
    limit: int | float | None,
    num_fewshot: int | None,
    metrics: Collection[str] | None,
    timer: MemberTimer | None,
) -> list[_Answered]:
    """Return tasks, loaded, checked for ``metrics`` and run; the arguments are :func:`evaluate`'s."""
    needs("lm_eval")

    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate as run_tasks

    if limit is not None and limit <= 0:
        raise InputError(f"limit must be positive, not {limit}")
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"num_fewshot must not be negative, not {num_fewshot}")
    with _seeded_as_lm_eval(), quiet_lm_eval():
        loaded = _load_tasks([tasks] if isinstance(tasks, str) else list(tasks), include_path)
        for name, task in loaded["tasks"].items():
            _check_task(name, task, metrics)
            fixed = task.get_config("num_fewshot")
            if fixed is None or (num_fewshot is not None and fixed != 0):
                task.set_config("num_fewshot", num_fewshot or 0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        lm = EnsembleLM(ensemble, tokenizer, batch_size, timer=timer)
        # Not simple_evaluate: after each run it spends seconds on a description of the machine.
        run_tasks(lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=False)
    answered = []
    for name, task in loaded["tasks"].items():
        scored = [each for each in lm.scored if each.request.task_name == name]
        documents = _by_document(scored)
        as_hf = documents
        of_hf = metrics is None or not set(metrics) <= set(ROLLING_METRICS)
        if of_hf and task.OUTPUT_TYPE == "loglikelihood_rolling":
            as_hf = _by_document(lm.rolled_as_hf(scored))
        answered.append(_Answered(name, task, documents, as_hf))
    return answered


def _by_document(scored: Sequence[Scored]) -> _Documents:
    documents: dict[int, dict[int, Scored]] = defaultdict(dict)
    for each in scored:
        # A request that is repeated got the same answer each time.
        documents[int(each.request.doc_id or 0)][each.request.idx] = each
    return [[requests[index] for index in sorted(requests)] for _, requests in sorted(documents.items())]


@dataclass(frozen=True)
class Choices:
    """The members' scores of the choices of a task's questions, of all that have equally many choices.

    Args:
        task: its name. questions: their places in the task, int64 [questions].
        logits: each member's summed log-likelihood of each choice, float64 [members, questions, choices].
        targets: the right choices, int64 [questions].
    """

    task: str
    questions: Tensor
    logits: Tensor
    targets: Tensor


def choices(
    ensemble: Ensemble,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str | Mapping[str, Any]],
    include_path: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    timer: MemberTimer | None = None,
) -> list[Choices]:
    """Return the members' own answers to multiple-choice tasks; the arguments are :func:`evaluate`'s.

    Raises:
        InputError: as :func:`evaluate`, and for a task that is not multiple choice.
    """
    answered = _answered(
        ensemble, tokenizer, tasks, include_path, batch_size, limit, num_fewshot, ("ece",), timer
    )
    return [choice for each in answered for choice in _choices(each.name, each.task, each.documents)]


def evaluate(
    ensemble: Ensemble,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str | Mapping[str, Any]],
    include_path: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    metrics: Collection[str] | None = None,
    timer: MemberTimer | None = None,
    calibrated: bool = False,
    predictions: str | os.PathLike[str] | None = None,
    predictions_dtype: str = "float32",
    predictions_record: Mapping[str, object] | None = None,
) -> pd.DataFrame:
    """Return the metrics of every prefix of an ensemble on lm-eval's tasks, each request run once.

    Args:
        ensemble, tokenizer, batch_size, timer: see :class:`EnsembleLM`.
        tasks: lm-eval's names of tasks, tags or groups (whose tasks get a row each), or whole task
            configurations.
        include_path: a folder of task files (YAML) of one's own, looked up first. Their data may be local,
            for use without a network; a relative ``data_files`` is relative to the working directory.
        limit, num_fewshot: lm-eval's: the first examples of each task only (a number, or a fraction below 1);
            examples before each question.
        metrics: names of columns; None: all that the tasks have.
        calibrated: also columns ``calibrated_nll``, ``calibrated_ece`` and ``calibrated_brier`` of multiple
            choice, each fold of the questions under the temperature of the others (ten folds below 2,000
            questions, else two; NaN for a single question).
        predictions: a folder, in which each task's predictions are written to ``<task>.safetensors`` once all
            are there, for :func:`lpe.score`: of multiple choice each member's log-probability of each choice,
            of other tasks that of each target token alone. A run that was killed goes on: what is done is in
            the folder every few seconds, under ``under_way``, until all is.
        predictions_dtype, predictions_record: as :func:`lpe.evaluate` has them.

    Returns:
        A row per task and size 1 … M: task, size, the metrics, memory_bits; NaN where a task lacks a metric.
        Multiple choice: ``nll err ece average_loss ambiguity ensemble_loss brier``, with p_m the softmax over
        the choices of member m's summed log-likelihoods, as :func:`lpe.evaluate` has them. Texts
        (``loglikelihood_rolling``): ``nll`` in nats a token of the mean of the members' token probabilities,
        ``average_loss`` (mean over members) and ``perplexity`` = exp(nll), of the texts' own tokens.
        And lm-eval's own metrics by their names (``acc``, ``word_perplexity`` …), computed by lm-eval from
        the prefix's answers. Those of texts are what its ``hf`` model reports: it also scores the marks that
        the tokenizer puts around a text, and ``lm_eval_nll`` is its nats a token. Where there are such marks,
        these take a second run of the members, which ``metrics`` without them saves.

    Raises:
        InputError: before anything is run, predictions in the folder that are of another ensemble, an unknown
            task, one that cannot be loaded, one that generates or
            has several right answers, a metric that a task does not have, a limit or number of examples out
            of range; then as :class:`EnsembleLM`.
    """
    import pandas as pd

    say(ensemble.notes())
    asked = (ensemble, tokenizer, tasks, include_path, batch_size, limit, num_fewshot, metrics, timer)
    if predictions is None:
        answered = _answered(*asked)
    else:
        about = _about(ensemble, check_path(predictions), predictions_dtype, predictions_record)
        answered = _answered_into(check_path(predictions), about, *asked)
    rows = []
    for each in answered:
        if timer:
            timer.examples += len(each.documents)
        values = _lm_eval_metrics(each.task, each.as_hf, len(ensemble))
        if each.task.OUTPUT_TYPE == "multiple_choice":
            own = _choice_metrics(each.name, each.task, each.documents, len(ensemble), calibrated)
        else:
            own = _token_metrics(each, len(ensemble))
        for n in range(1, len(ensemble) + 1):
            rows.append(
                {
                    "task": each.name,
                    "size": n,
                    **values[n - 1],
                    **own[n - 1],
                    "memory_bits": ensemble.memory_bits(n),
                }
            )
    table = pd.DataFrame(rows)
    named = metrics if metrics is not None else _in_order(table.columns)
    if calibrated and metrics is not None:
        named = [*named, *(column for column in table.columns if str(column).startswith("calibrated_"))]
    return table[["task", "size", *dict.fromkeys(named), "memory_bits"]]


def _answered_into(folder: Path, about: Mapping[str, Any], *asked: Any) -> list[_Answered]:
    """Return tasks that were run, and write their predictions; a run that was killed goes on."""
    place = folder / checkpoints.UNDER_WAY / about["ensemble"][:32]
    with locked(folder / "tasks", once=True), checkpoints.kept(place) as under_way:
        answered = _answered(*asked)
        for each in answered:
            _write_predictions(folder / f"{each.name}.safetensors", each, about)
        under_way.remove()
        with suppress(OSError):  # another ensemble's are there
            (folder / checkpoints.UNDER_WAY).rmdir()
    return answered


def _about(
    ensemble: Ensemble, folder: Path, dtype: str, record: Mapping[str, object] | None
) -> dict[str, Any]:
    """Return the headers' entries on an ensemble, checked against the files that are there."""
    make_writable(folder)
    about = about_ensemble(ensemble, {}, dtype, record)
    for file in sorted(folder.glob("*.safetensors")):
        check_same(file, read_predictions(file).about, about)
    return about


def _write_predictions(path: Path, answered: _Answered, about: Mapping[str, Any]) -> None:
    """Write a task's predictions, of its questions or of its tokens."""
    if answered.task.OUTPUT_TYPE == "multiple_choice":
        parts = _choices(answered.name, answered.task, answered.documents)
        most = max(part.logits.shape[2] for part in parts)
        shape = about["size"], len(answered.documents), most
        log_probs = torch.full(shape, -torch.inf, dtype=torch.float64)
        targets = torch.zeros(shape[1], dtype=torch.int64)
        for part in parts:
            log_probs[:, part.questions, : part.logits.shape[2]] = part.logits.log_softmax(dim=-1)
            targets[part.questions] = part.targets
        hashes = [_hash([scored.request.args for scored in document]) for document in answered.documents]
        write_predictions(path, log_probs, targets, torch.tensor(hashes), {**about, "kind": CHOICES})
        return
    requests = [scored for document in answered.documents for scored in document]
    log_probs = torch.cat([scored.targets for scored in requests], dim=1)
    hashes = [_hash([scored.request.args, place]) for scored in requests for place in range(scored.tokens)]
    none = torch.zeros(len(hashes), dtype=torch.int64)
    write_predictions(path, log_probs, none, torch.tensor(hashes), {**about, "kind": TOKENS})


def _hash(told: object) -> int:
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _in_order(columns: Collection[str]) -> list[str]:
    first = [name for name in (*METRICS, "acc", "perplexity", AS_HF) if name in columns]
    return [*first, *(name for name in columns if name not in (*first, "task", "size", "memory_bits"))]


@contextmanager
def _seeded_as_lm_eval() -> Iterator[None]:
    """Set the seeds under which lm-eval loads and runs tasks, some of which shuffle; then what was before."""
    needs("lm_eval")

    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(DEFAULT_RANDOM_SEED)
            np.random.seed(DEFAULT_OTHER_SEED)
            torch.default_generator.manual_seed(DEFAULT_OTHER_SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _load_tasks(
    names: list[str | Mapping[str, Any]], include_path: str | os.PathLike[str] | None
) -> dict[str, Any]:
    needs("lm_eval")

    from lm_eval.tasks import TaskManager

    if not names:
        raise InputError("no task is named; give one or more")
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"there is no folder {include_path} of task files")
    included = None if include_path is None else str(include_path)
    # lm-eval's own index takes ten seconds to build; tasks of one's own do not need it.
    manager = TaskManager(include_path=included, include_defaults=False)

    def is_known(name: str | Mapping[str, Any]) -> bool:
        return not isinstance(name, str) or name in manager.task_index or Path(name).is_file()

    local = all(map(is_known, names))
    if not local:
        manager = TaskManager(include_path=included)
    for name in names:
        if not is_known(name):
            near = [each for each in manager.all_tasks if str(name).lower() in each.lower()][:3]
            hint = f" (near it: {', '.join(near)})" if near else ""
            where = "" if included is None else f", nor in {included}"
            raise InputError(f"unknown task {name!r}{hint}; it is none of lm-eval's{where}")
    shown = ", ".join(name if isinstance(name, str) else str(name.get("task")) for name in names)
    with one_line(f"cannot load {shown}"), nullcontext() if local else hub.hub_or_cache():
        return dict(manager.load([name if isinstance(name, str) else dict(name) for name in names]))


def _check_task(name: str, task: Any, metrics: Collection[str] | None) -> None:
    """Raise InputError for a task that an ensemble cannot answer, or that lacks a metric."""
    kind = task.OUTPUT_TYPE
    own: dict[str, tuple[str, ...]] = {
        "multiple_choice": METRICS,
        "loglikelihood": TOKEN_METRICS,
        "loglikelihood_rolling": (*ROLLING_METRICS, AS_HF),
    }
    if kind not in own:
        raise InputError(f"{name} is of type {kind}; an ensemble answers {', '.join(own)} tasks")
    if kind == "multiple_choice" and getattr(task, "multiple_target", 0):
        raise InputError(f"{name} has questions with several right answers; the metrics are of one")
    there = (*own[kind], *task.aggregation())
    lacking = [metric for metric in metrics or () if metric not in there]
    if lacking:
        what = "" if kind == "multiple_choice" else ", not multiple choice"
        raise InputError(
            f"{name} is of type {kind}{what}, and has no {lacking[0]}; "
            f"it has {', '.join(dict.fromkeys(there))}"
        )


def _lm_eval_metrics(task: Any, documents: _Documents, size: int) -> list[dict[str, float]]:
    """Return lm-eval's own metrics of every prefix, from its own functions."""
    needs("lm_eval")

    from lm_eval.api.metrics import mean

    rows = []
    for n in range(1, size + 1):
        items = defaultdict(list)
        for requests in documents:
            answers = [scored.answer(n) for scored in requests]
            for metric, value in task.process_results(requests[0].request.doc, answers).items():
                items[metric].append(value)
        aggregation = task.aggregation()
        rows.append({metric: float(aggregation.get(metric, mean)(items[metric])) for metric in items})
    return rows


def _token_metrics(answered: _Answered, size: int) -> list[dict[str, float]]:
    """Return nats a token of the mean of the members' token probabilities, and its mean over members."""
    nll, average = _token_nll(answered.documents, size)
    rows = [{"nll": float(nll[n]), "average_loss": float(average[n])} for n in range(size)]
    if answered.task.OUTPUT_TYPE != "loglikelihood_rolling":
        return rows
    as_hf, _ = _token_nll(answered.as_hf, size)
    return [
        {**row, "perplexity": float(np.exp(row["nll"])), AS_HF: float(as_hf[n])} for n, row in enumerate(rows)
    ]


def _token_nll(documents: _Documents, size: int) -> tuple[Tensor, Tensor]:
    """Return nats a token of each prefix, and the mean of its members' own; float64 [members] each."""
    requests = [scored for document in documents for scored in document]
    tokens = sum(scored.tokens for scored in requests)
    zeros = torch.zeros(size, dtype=torch.float64)
    nll = -sum((scored.prefixes for scored in requests), zeros) / tokens
    loss = -sum((scored.members for scored in requests), zeros) / tokens
    nll[0] = loss[0]  # the same, summed in float64 and not in the type of the log-probabilities
    return nll, loss.cumsum(0) / torch.arange(1, size + 1)


def _choices(name: str, task: Any, documents: _Documents) -> list[Choices]:
    by_choices: dict[int, list[tuple[int, Tensor, int]]] = defaultdict(list)
    for place, requests in enumerate(documents):
        doc = requests[0].request.doc
        options = task.doc_to_choice(doc)
        # Further requests are of the choices without their question, for a metric of lm-eval's own.
        logits = torch.stack([scored.members for scored in requests[: len(options)]], dim=-1)
        by_choices[len(options)].append((place, logits, _right_choice(name, task, doc, options)))
    return [
        Choices(
            name,
            torch.tensor([place for place, _, _ in questions]),
            torch.stack([logits for _, logits, _ in questions], dim=1),
            torch.tensor([right for _, _, right in questions]),
        )
        for questions in by_choices.values()
    ]


def _choice_metrics(
    name: str, task: Any, documents: _Documents, size: int, calibrated: bool
) -> list[dict[str, float]]:
    """Return the classification metrics with p_m = softmax over the choices of member m's log-likelihoods."""
    metrics = [EnsembleMetrics() for _ in range(size)]
    means: list[list[Tensor]] = [[] for _ in range(size)]
    every_target: list[Tensor] = []
    answered = _choices(name, task, documents)
    most = max((asked.logits.shape[2] for asked in answered), default=0)
    for asked in answered:
        logits, targets = asked.logits, asked.targets
        log_probs = logits.log_softmax(dim=-1)
        total = torch.logcumsumexp(log_probs, dim=0)
        sum_logits = logits.cumsum(dim=0)
        sum_nll = -log_probs.gather(2, targets.expand(size, -1)[..., None])[..., 0].cumsum(dim=0)
        for index in range(size):
            n = index + 1
            mean = total[index] - float(np.log(n))
            metrics[index].update(mean, sum_logits[index] / n, sum_nll[index] / n, targets)
            # A question with fewer choices than others has choices of probability 0.
            lacking = most - mean.shape[1]
            means[index].append(nn.functional.pad(mean, (0, lacking), value=-torch.inf))
        every_target.append(targets)
    rows = [each.values() for each in metrics]
    if calibrated:
        for row, parts in zip(rows, means, strict=True):
            row |= _calibrated_metrics(torch.cat(parts), torch.cat(every_target))
    return rows


def _calibrated_metrics(log_probs: Tensor, targets: Tensor) -> dict[str, float]:
    scaled = EnsembleMetrics()
    if len(targets) > 1:
        scores = temperature_scaled(log_probs, targets)
        scaled.update(scores, scores, -scores.gather(1, targets[:, None])[:, 0], targets)
    values = scaled.values()
    return {f"calibrated_{metric}": values[metric] for metric in ("nll", "ece", "brier")}


def _right_choice(name: str, task: Any, doc: Any, choices: Sequence[str]) -> int:
    # Where the choices are put into the question, lm-eval's doc_to_text says which of them is right.
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(right, str) and right in choices:
        right = choices.index(right)
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise InputError(f"{name} has a question whose right choice is {right!r}, of {len(choices)} choices")
    return right
