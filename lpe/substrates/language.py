"""Language models through lm-eval: an ensemble answers as one model.

For a request with tokens t_1 … t_L after a context c, the ensemble's log-likelihood is

    Σ_i log( 1/M Σ_m p_m(t_i | c, t_1 … t_{i−1}) ),

the log of the mean of the members' *token* probabilities. ``EnsembleLM`` is passed to lm-eval as an instance;
it is not registered under a name, so that lm-eval's own models stay as they are whatever is imported first.

Importing this module imports lm-eval and transformers, which takes seconds.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator
from lm_eval.models.utils_hf import pad_and_concat
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn
from tqdm import tqdm

from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.evaluation.metrics import METRICS, EnsembleMetrics, temperature_scaled
from lpe.evaluation.timing import MemberTimer
from lpe.modules import apply, device_of, with_tensors
from lpe.substrates import hub
from lpe.substrates.loading import load_weights, parameter_bytes, require_memory

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 29
"""Bytes of running sums over the vocabulary that a chunk may hold: small against a model whose vocabulary is
large, and for a small model more than a whole task needs."""

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt")
"""What is fetched of a hub's repository: never a pickle."""

TOKEN_METRICS = ("nll", "average_loss")
"""Of the tokens themselves, where a task has no choices: nats a token."""


def load_model(
    source: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, on the CPU, and its tokenizer.

    Args:
        source: a folder in transformers' format, or a name on the hub, which is looked up in the local cache
            first. No code from there is run, and pickles are read with ``weights_only``.
        checkpoint: a file of weights (safetensors, or a state dict of ``torch.save``) instead of the
            folder's own.
        dtype: of the weights; None: the configuration's, as lm-eval's ``hf`` model has it.

    Raises:
        InputError: a file that is not there, by name, with where to put it; a damaged one; weights that do
            not fit the configuration; a tokenizer that lacks tokens or has more than the model's embedding;
            a model that is larger than the free memory (said before it is loaded).
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = _folder(source, weights=checkpoint is None)
    with _one_line(f"{folder} has no configuration of a causal language model that transformers knows"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        wanted = _dtype(dtype) or getattr(config, "dtype", None) or torch.float32
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=False)
    require_memory(parameter_bytes(skeleton), f"{type(skeleton).__name__} from {source} in {wanted}")
    tokenizer = _load_tokenizer(folder)
    check_tokenizer(tokenizer, skeleton)
    if checkpoint is not None:
        model = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=False)
        load_weights(model, checkpoint)
        return model.eval(), tokenizer
    with _one_line(f"cannot read the weights in {folder}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=wanted,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            use_safetensors=any((folder / name).is_file() for name in WEIGHTS[:2]),
            output_loading_info=True,
        )
    model, loading = loaded
    _check_loading(loading, folder, type(model).__name__)
    return model.eval(), tokenizer


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"unknown dtype {dtype!r}; take float32, bfloat16 or float16")
    return found


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Whatever a library raises within is an InputError of one line: which one depends on the damage."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what}: {_first_line(error)}") from None


def _folder(source: str | os.PathLike[str], weights: bool) -> Path:
    """The local folder of a model's files; those of a hub's repository are fetched where that is possible."""
    folder = Path(source)
    if folder.is_dir():
        _check_files(folder, weights, f"put it into {folder}")
        return folder
    name = str(source)
    if not name or folder.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise InputError(f"there is no folder {name}; give a folder in transformers' format or a hub's name")
    return _hub_folder(name, weights)


def _hub_folder(name: str, weights: bool) -> Path:
    from huggingface_hub import constants, snapshot_download

    # The patterns leave out subfolders, where some repositories keep their weights a second time.
    patterns: dict[str, Any] = {"allow_patterns": list(DOWNLOADED), "ignore_patterns": ["*/*"]}
    where = (
        f"without a network, copy the repository's files ({', '.join(('config.json', *WEIGHTS[:2]))}, "
        f"{TOKENIZERS[0]}, tokenizer_config.json) into a folder and give that folder, or fill the cache "
        f"{constants.HF_HUB_CACHE}"
    )
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **patterns))
        _check_files(cached, weights, where)
        return cached
    except Exception as error:  # not there, or not whole: the next place is the hub itself
        missing = str(error) if isinstance(error, InputError) else ""
    if not hub.hub_answers():
        raise InputError(
            missing or f"{name} is no folder, and neither the cache nor the hub can be had; {where}"
        )
    with _one_line(f"cannot fetch {name} from {constants.ENDPOINT}"):
        fetched = Path(snapshot_download(name, **patterns))
    _check_files(fetched, weights, "the repository lacks it; take another")
    return fetched


def _check_files(folder: Path, weights: bool, remedy: str) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; {remedy}")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(
            f"{folder} has no tokenizer ({TOKENIZERS[0]} and tokenizer_config.json, or {TOKENIZERS[1]}); "
            + remedy
        )
    if not weights:
        return
    found = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"{folder} has no weights (model.safetensors, or its parts with model.safetensors.index.json); "
            f"{remedy}"
        )
    if found.endswith(".index.json"):
        with _one_line(f"{folder / found} is no index of weights"):
            parts = sorted(
                set(json.loads((folder / found).read_text(encoding="utf-8"))["weight_map"].values())
            )
        missing = [part for part in parts if not (folder / part).is_file()]
        if missing:
            raise InputError(
                f"{folder} has {len(parts) - len(missing)} of {len(parts)} parts of the weights and lacks "
                f"{missing[0]}; {remedy}"
            )


def _check_loading(loading: Mapping[str, Any], folder: Path, model: str) -> None:
    """Refuse what transformers only warns of: tensors that keep their random start, or that go unused."""
    kinds = []
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(name) for name in loading.get(f"{kind}_keys", ()))
        if names:
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            kinds.append(f"{len(names)} {kind}: {shown}")
    if kinds:
        raise InputError(f"the weights in {folder} do not fit {model}: {'; '.join(kinds)}")


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with _one_line(f"{folder} has no whole tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    """InputError unless a tokenizer's tokens are the model's, with one from which a text can begin."""
    ids = tokenizer.get_vocab().values()
    if not ids:
        raise InputError("the tokenizer has no tokens; is its tokenizer.json whole?")
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    rows = len(embedding.weight) if embedding is not None else None
    if rows is not None and max(ids) >= rows:
        raise InputError(
            f"the tokenizer's tokens go up to {max(ids)}, and the model's embedding has {rows} rows; "
            "is it another model's tokenizer?"
        )
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has neither a bos_token nor an eos_token, and lm-eval needs one to begin a text "
            "with; name one in its tokenizer_config.json"
        )


@dataclass(frozen=True)
class Scored:
    """What the members and the ensemble's prefixes gave one request; entry n − 1 is of the first n members.

    Attributes:
        request: lm-eval's.
        tokens: scored.
        members: float64 [members], each member's summed log-likelihood.
        prefixes: float64 [members], Σ over tokens of the log of the mean of the members' probabilities; the
            first as lm-eval's ``hf`` model sums it, in the type of its log-probabilities.
        greedy: bool [members], whether each token is the most probable under the mean; None where nobody asks
            (rolling requests).
    """

    request: Instance
    tokens: int
    members: Tensor
    prefixes: Tensor
    greedy: Tensor | None

    def answer(self, size: int) -> Any:
        """lm-eval's answer of the first ``size`` members: (log-likelihood, is greedy), or the first alone."""
        value = float(self.prefixes[size - 1])
        return value if self.greedy is None else (value, bool(self.greedy[size - 1]))


_TokenRequest = tuple[int, list[int], list[int]]
"""(index, context tokens, continuation tokens)."""


@dataclass(frozen=True)
class _Batch:
    """One forward pass, and which of its log-probabilities count.

    ``inputs`` int64 [rows, tokens]; ``rows`` and ``positions`` int64 [scored] pick distributions; ``scored``
    and ``targets`` int64 [tokens of all requests] pick probabilities of these; ``lengths`` and ``requests``
    split the latter into requests.
    """

    inputs: Tensor
    rows: Tensor
    positions: Tensor
    scored: Tensor
    targets: Tensor
    lengths: list[int]
    requests: list[int]


class _Running:
    """Log of the sum of the members' probabilities so far, in one batch: of the targets, of all tokens."""

    def __init__(self, keep_all: bool) -> None:
        self.keep_all = keep_all
        self.targets: Tensor | None = None
        self.all: Tensor | None = None

    def add(self, target_log_probs: Tensor, log_probs: Tensor | None) -> None:
        """A member's log-probabilities: of the targets [tokens] and, where kept, all [scored, vocabulary]."""
        if self.targets is None:
            # The first member stays in its own type: an ensemble of one answers as its member does.
            self.targets, self.all = target_log_probs, log_probs
            return
        self.targets = torch.logaddexp(self.targets.double(), target_log_probs.double())
        if log_probs is not None:
            assert self.all is not None
            self.all = torch.logaddexp(self.all.float(), log_probs.float())


class EnsembleLM(HFLM):
    """An ensemble as one of lm-eval's models: ``lm_eval.simple_evaluate(model=EnsembleLM(…), tasks=[…])``.

    Built on lm-eval's ``hf`` model, whose batches and padding it has. An ensemble of one member that is the
    unrounded model gives its answers exactly.

    Members are made as few times as possible: batches are taken a chunk at a time, and within a chunk each
    member is made once and runs over the chunk's batches. Rolling requests are one chunk. Elsewhere, what is
    held is one distribution over the vocabulary for each scored token (whether a continuation is the greedy
    one is asked of the mean), never one for each member.

    Args:
        ensemble: of causal language models of transformers, on one device.
        tokenizer: theirs.
        batch_size: requests a forward pass.
        chunk_bytes: of distributions held at a time; it never changes an answer.
        timer: gets the time of each member, made and run.

    Attributes:
        scored: what every request got, in the order asked, since this object was made.

    Raises:
        InputError: a batch size below 1, a tokenizer that does not fit (``check_tokenizer``); when asked, a
            continuation that is longer than the model's context, a member that returns NaN, or generation,
            which is not defined here.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        chunk_bytes: int = CHUNK_BYTES,
        timer: MemberTimer | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size must be a positive integer, not {batch_size!r}")
        base = getattr(ensemble, "model", None)
        # A member is made for its configuration only where the ensemble has no base to ask.
        template = base if isinstance(base, nn.Module) else ensemble.member(0)
        if not hasattr(template, "config"):
            raise InputError(
                f"{type(template).__name__} has no config; an ensemble of transformers' language models is "
                "needed"
            )
        check_tokenizer(tokenizer, template)
        with _quiet_lm_eval():  # it warns that a module, not a name, is passed
            super().__init__(
                # Copies, because lm-eval sets modes, ties and tokens of what it is given.
                pretrained=with_tensors(template, {}),
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=batch_size,
            )
        self.ensemble = ensemble
        self.chunk_bytes = 0 if ensemble.members_are_stored else chunk_bytes
        self.timer = timer
        self.scored: list[Scored] = []
        self._last: list[_Score] = []

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's: (log-likelihood, whether greedy) of each request's continuation after its context."""
        super().loglikelihood(requests, disable_tqdm=True)  # makes tokens of them and asks for their scores
        scored = [Scored(request, *score) for request, score in zip(requests, self._last, strict=True)]
        self._last = []
        self.scored += scored
        return [each.answer(len(self.ensemble)) for each in scored]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        plain = [(index, context, continuation) for index, (_, context, continuation) in enumerate(requests)]
        self._last = self._scores(self._batches(plain), len(plain), greedy=True)
        last = len(self.ensemble) - 1
        return [(float(prefixes[last]), bool(greedy[last])) for _, _, prefixes, greedy in self._last]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """lm-eval's: the log-likelihood of each whole text, in windows of the model's context."""
        windows: list[_TokenRequest] = []
        counts = []
        for request in requests:
            (text,) = request.args
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            for window in map(make_disjoint_window, rolling):
                windows.append((len(windows), *window))
            counts.append(len(windows) - before)
        # As lm-eval batches them: sorted within a batch, not across.
        batches = [
            batch
            for start in range(0, len(windows), self.batch_size)
            for batch in self._batches(windows[start : start + self.batch_size])
        ]
        scores = self._scores(batches, len(windows), greedy=False)
        answers = []
        for request, count in zip(requests, counts, strict=True):
            parts, scores = scores[:count], scores[count:]
            empty = torch.zeros(len(self.ensemble), dtype=torch.float64)
            scored = Scored(
                request,
                sum(tokens for tokens, *_ in parts),
                sum((members for _, members, _, _ in parts), empty),
                sum((prefixes for _, _, prefixes, _ in parts), empty),
                None,
            )
            self.scored.append(scored)
            answers.append(scored.answer(len(self.ensemble)))
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not defined: an ensemble's members would have to agree on each token before the next."""
        named = sorted({request.task_name for request in requests if request.task_name})
        raise InputError(
            f"{', '.join(named) or 'the task'} is of type generate_until; an ensemble answers "
            "multiple_choice, loglikelihood and loglikelihood_rolling tasks"
        )

    def _batches(self, requests: list[_TokenRequest]) -> list[_Batch]:
        """The forward passes that lm-eval's ``hf`` model would make, longest first.

        Requests that share all tokens but the last share a row.
        """

        def shared(request: _TokenRequest) -> list[int]:
            return request[1] + request[2][:-1]

        def longest_first(request: _TokenRequest) -> tuple[int, tuple[int, ...]]:
            tokens = request[1] + request[2]
            return -len(tokens), tuple(tokens)

        cut = sum(
            len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests
        )
        if cut:
            logger.warning(
                "%d of %d requests are longer than the model's context of %d tokens and lose their beginning",
                cut,
                len(requests),
                self.max_length,
            )
        of_row: dict[tuple[int, ...], list[_TokenRequest]] = defaultdict(list)
        for request in requests:
            if not 0 < len(request[2]) <= self.max_length:
                raise InputError(
                    f"a continuation has {len(request[2])} tokens; the model takes 1 to {self.max_length}"
                )
            of_row[tuple(shared(request))].append(request)
        collator = Collator(requests, sort_fn=longest_first, group_fn=shared, group_by="contexts")
        return [
            self._batch([(row, of_row[tuple(shared(row))]) for row in rows])
            for rows in collator.get_batched(n=self.batch_size)
        ]

    def _batch(self, of_rows: list[tuple[_TokenRequest, list[_TokenRequest]]]) -> _Batch:
        inputs: list[Tensor] = []
        rows: list[int] = []
        positions: list[int] = []
        scored: list[int] = []
        targets: list[int] = []
        lengths: list[int] = []
        answered: list[int] = []
        for row, ((_, context, continuation), requests) in enumerate(of_rows):
            tokens = (context + continuation)[-(self.max_length + 1) :][:-1]
            inputs.append(torch.tensor(tokens))
            rows += [row] * len(continuation)
            positions += range(len(tokens) - len(continuation), len(tokens))
            end = len(positions)
            for index, _, wanted in requests:
                # Of continuations that end alike, a shorter one's tokens are the last.
                scored += range(end - len(wanted), end)
                targets += wanted
                lengths.append(len(wanted))
                answered.append(index)
        longest = max(len(tokens) for tokens in inputs)
        return _Batch(
            pad_and_concat(longest, inputs, padding_side="right"),
            torch.tensor(rows),
            torch.tensor(positions),
            torch.tensor(scored),
            torch.tensor(targets),
            lengths,
            answered,
        )

    def _chunks(self, batches: list[_Batch], held: Sequence[int]) -> Iterator[list[_Batch]]:
        chunk: list[_Batch] = []
        total = 0
        for batch, size in zip(batches, held, strict=True):
            if chunk and total + size > self.chunk_bytes:
                yield chunk
                chunk, total = [], 0
            chunk.append(batch)
            total += size
        if chunk:
            yield chunk

    @torch.no_grad()
    def _scores(self, batches: list[_Batch], count: int, greedy: bool) -> list[_Score]:
        """Tokens, members' sums, prefixes' sums and greediness of ``count`` requests."""
        size = len(self.ensemble)
        tokens = [0] * count
        members = torch.zeros(count, size, dtype=torch.float64)
        prefixes = torch.zeros(count, size, dtype=torch.float64)
        is_greedy = torch.zeros(count, size, dtype=torch.bool)
        for batch in batches:
            for index, length in zip(batch.requests, batch.lengths, strict=True):
                tokens[index] = length
        keep_all = greedy and size > 1
        vocabulary = self.config.get_text_config().vocab_size
        held = [4 * vocabulary * len(batch.rows) if keep_all else 8 * len(batch.targets) for batch in batches]
        with tqdm(total=len(batches) * size, desc="members × batches", disable=None) as bar:
            for chunk in self._chunks(batches, held):
                running = [_Running(keep_all) for _ in chunk]
                turn = self.ensemble.in_turn()
                for member in range(size):
                    with self.timer.member(member) if self.timer else nullcontext():
                        net = next(turn)
                        for batch, so_far in zip(chunk, running, strict=True):
                            self._run(net, member, batch, so_far, greedy, members, prefixes, is_greedy)
                            bar.update()
                        del net  # it would live on while the next one is made
        return [
            (tokens[index], members[index], prefixes[index], is_greedy[index] if greedy else None)
            for index in range(count)
        ]

    def _run(
        self,
        net: nn.Module,
        member: int,
        batch: _Batch,
        running: _Running,
        greedy: bool,
        members: Tensor,
        prefixes: Tensor,
        is_greedy: Tensor,
    ) -> None:
        device = device_of(net)
        # Of all positions, as lm-eval has it: on some devices a row's last bit depends on where it lies.
        log_probs = apply(net, batch.inputs.to(device)).log_softmax(dim=-1, dtype=self.softmax_dtype)
        distributions = log_probs[batch.rows.to(device), batch.positions.to(device)]
        scored, targets = batch.scored.to(device), batch.targets.to(device)
        own = distributions[scored, targets]
        if torch.isnan(own).any():
            raise InputError(f"member {member} gives log-probabilities that are NaN")
        running.add(own, distributions if running.keep_all else None)
        assert running.targets is not None
        right = None
        if greedy:
            most_probable = (running.all if running.all is not None else distributions).argmax(dim=-1)
            right = (most_probable[scored] == targets).split(batch.lengths)
        own_parts, mean_parts = own.split(batch.lengths), running.targets.split(batch.lengths)
        for place, (index, length) in enumerate(zip(batch.requests, batch.lengths, strict=True)):
            members[index, member] = float(own_parts[place].double().sum())
            prefixes[index, member] = float(mean_parts[place].sum()) - length * float(np.log(member + 1))
            if right is not None:
                is_greedy[index, member] = bool(right[place].all())


_Score = tuple[int, Tensor, Tensor, Any]
"""(tokens, members, prefixes, greedy) of :class:`Scored`."""


_Answered = tuple[str, Any, list[list[Scored]]]
"""A task's name, the task, and of each of its documents the requests."""


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
    """Tasks, loaded, checked for ``metrics`` and run; the arguments are :func:`evaluate`'s."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate as run_tasks

    if limit is not None and limit <= 0:
        raise InputError(f"limit must be positive, not {limit}")
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"num_fewshot must not be negative, not {num_fewshot}")
    with _seeded_as_lm_eval(), _quiet_lm_eval():
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
    of_task: dict[str, dict[int, dict[int, Scored]]] = defaultdict(lambda: defaultdict(dict))
    for scored in lm.scored:
        # A request that is repeated got the same answer each time.
        of_task[str(scored.request.task_name)][int(scored.request.doc_id or 0)][scored.request.idx] = scored
    return [
        (
            name,
            task,
            [
                [requests[index] for index in sorted(requests)]
                for _, requests in sorted(of_task[name].items())
            ],
        )
        for name, task in loaded["tasks"].items()
    ]


@dataclass(frozen=True)
class Choices:
    """What the members gave the choices of a task's questions, of those with as many choices.

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
    """The members' own answers to multiple-choice tasks; the arguments are :func:`evaluate`'s.

    Raises:
        InputError: as :func:`evaluate`, and for a task that is not multiple choice.
    """
    answered = _answered(
        ensemble, tokenizer, tasks, include_path, batch_size, limit, num_fewshot, ("ece",), timer
    )
    return [each for name, task, documents in answered for each in _choices(name, task, documents)]


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
) -> pd.DataFrame:
    """The metrics of every prefix of an ensemble on lm-eval's tasks, each request run once.

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
            choice, under a temperature fitted on the other half of the questions (NaN for a single question).

    Returns:
        A row per task and size 1 … M: task, size, the metrics, memory_bits; NaN where a task lacks a metric.
        Multiple choice: ``nll err ece average_loss ambiguity ensemble_loss brier``, with p_m the softmax over
        the choices of member m's summed log-likelihoods, as :func:`lpe.evaluate` has them. Texts
        (``loglikelihood_rolling``): ``nll`` in nats a token of the mean of the members' token probabilities,
        ``average_loss`` (mean over members) and ``perplexity`` = exp(nll). And lm-eval's own metrics by their
        names (``acc``, ``word_perplexity`` …), computed by lm-eval from the prefix's answers.

    Raises:
        InputError: before anything is run, an unknown task, one that cannot be loaded, one that generates or
            has several right answers, a metric that a task does not have, a limit or number of examples out
            of range; then as :class:`EnsembleLM`.
    """
    import pandas as pd

    answered = _answered(
        ensemble, tokenizer, tasks, include_path, batch_size, limit, num_fewshot, metrics, timer
    )
    rows = []
    for name, task, documents in answered:
        if timer:
            timer.examples += len(documents)
        values = _lm_eval_metrics(task, documents, len(ensemble))
        if task.OUTPUT_TYPE == "multiple_choice":
            own = _choice_metrics(name, task, documents, len(ensemble), calibrated)
        else:
            own = _token_metrics(documents, len(ensemble), task.OUTPUT_TYPE == "loglikelihood_rolling")
        for n in range(1, len(ensemble) + 1):
            rows.append(
                {
                    "task": name,
                    "size": n,
                    **values[n - 1],
                    **own[n - 1],
                    "memory_bits": ensemble.memory_bits(n),
                }
            )
    table = pd.DataFrame(rows)
    asked = metrics if metrics is not None else _in_order(table.columns)
    if calibrated and metrics is not None:
        asked = [*asked, *(column for column in table.columns if str(column).startswith("calibrated_"))]
    return table[["task", "size", *dict.fromkeys(asked), "memory_bits"]]


def _in_order(columns: Collection[str]) -> list[str]:
    first = [name for name in (*METRICS, "acc", "perplexity") if name in columns]
    return [*first, *(name for name in columns if name not in (*first, "task", "size", "memory_bits"))]


@contextmanager
def _seeded_as_lm_eval() -> Iterator[None]:
    """The seeds under which lm-eval loads and runs tasks, some of which shuffle; then what was before."""
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


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Without lm-eval's remarks on tasks and arguments, and its bars for work of a moment."""
    import lm_eval.api.task

    theirs = logging.getLogger("lm_eval")
    level, bar = theirs.level, lm_eval.api.task.tqdm
    theirs.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        theirs.setLevel(level)
        lm_eval.api.task.tqdm = bar


def _load_tasks(
    names: list[str | Mapping[str, Any]], include_path: str | os.PathLike[str] | None
) -> dict[str, Any]:
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
    with _one_line(f"cannot load {shown}"), nullcontext() if local else hub.hub_or_cache():
        return dict(manager.load([name if isinstance(name, str) else dict(name) for name in names]))


def _check_task(name: str, task: Any, metrics: Collection[str] | None) -> None:
    """InputError for a task that an ensemble cannot answer, or that lacks a metric."""
    kind = task.OUTPUT_TYPE
    own: dict[str, tuple[str, ...]] = {
        "multiple_choice": METRICS,
        "loglikelihood": TOKEN_METRICS,
        "loglikelihood_rolling": (*TOKEN_METRICS, "perplexity"),
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


def _lm_eval_metrics(task: Any, documents: list[list[Scored]], size: int) -> list[dict[str, float]]:
    """lm-eval's own metrics of every prefix, from its own functions."""
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


def _token_metrics(documents: list[list[Scored]], size: int, perplexity: bool) -> list[dict[str, float]]:
    """NLL a token of the mean of the members' token probabilities, and its mean over members."""
    requests = [scored for document in documents for scored in document]
    tokens = sum(scored.tokens for scored in requests)
    zeros = torch.zeros(size, dtype=torch.float64)
    nll = -sum((scored.prefixes for scored in requests), zeros) / tokens
    loss = -sum((scored.members for scored in requests), zeros) / tokens
    nll[0] = loss[0]  # the same, summed in float64 and not in the type of the log-probabilities
    average = loss.cumsum(0) / torch.arange(1, size + 1)
    rows = [{"nll": float(nll[n]), "average_loss": float(average[n])} for n in range(size)]
    return [{**row, "perplexity": float(np.exp(row["nll"]))} for row in rows] if perplexity else rows


def _choices(name: str, task: Any, documents: list[list[Scored]]) -> list[Choices]:
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
    name: str, task: Any, documents: list[list[Scored]], size: int, calibrated: bool
) -> list[dict[str, float]]:
    """The classification metrics with p_m = softmax over the choices of member m's log-likelihoods."""
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
