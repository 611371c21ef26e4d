"""An ensemble of language models as one of lm-eval's models.

For a request with tokens t_1 … t_L after a context c, the ensemble's log-likelihood is

    Σ_i log( 1/M Σ_m p_m(t_i | c, t_1 … t_{i−1}) ),

the log of the mean of the members' *token* probabilities. ``EnsembleLM`` is passed to lm-eval as an instance;
it is not registered under a name, so that lm-eval's own models stay as they are whatever is imported first.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator
from lm_eval.models.utils_hf import pad_and_concat
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.evaluation.sharded import joined_ranks
from lpe.evaluation.timing import MemberTimer
from lpe.extras import needs
from lpe.modules import apply, device_of, with_tensors
from lpe.progress import Progress
from lpe.substrates.language.load import check_causal, check_decoder, check_tokenizer
from lpe.substrates.language.tokens import encoder
from lpe.training.checkpoints import of_next, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 29
"""Bytes of running sums over the vocabulary that a chunk may hold: small against a model whose vocabulary is
large, and for a small model more than a whole task needs."""

LEADING = 64
"""Tokens of a distribution that are followed one by one where whole distributions do not fit a chunk."""
ROUNDING = 1e-4
"""A bound above the error of sums of log-probabilities in float32."""


@dataclass(frozen=True)
class Scored:
    """Scores of a request by the members and the ensemble's prefixes; entry n − 1: of the first n members.

    Attributes:
        request: lm-eval's.
        tokens: scored.
        members: float64 [members], each member's summed log-likelihood.
        prefixes: float64 [members], Σ over tokens of the log of the mean of the members' probabilities; the
            first as lm-eval's ``hf`` model sums it, in the type of its log-probabilities.
        greedy: bool [members], whether each token is the most probable under the mean; None where nobody asks
            (rolling requests).
        targets: [members, tokens], each member's log-probability of each token, in their own type.
    """

    request: Instance
    tokens: int
    members: Tensor
    prefixes: Tensor
    greedy: Tensor | None
    targets: Tensor

    def answer(self, size: int) -> Any:
        """Return ``size`` members' answer to lm-eval: (log-likelihood, is greedy), or the first alone."""
        value = float(self.prefixes[size - 1])
        return value if self.greedy is None else (value, bool(self.greedy[size - 1]))


_TokenRequest = tuple[int, list[int], list[int]]
"""(index, context tokens, continuation tokens)."""


@dataclass(frozen=True)
class _Batch:
    """A forward pass, and which of its log-probabilities count.

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


class _Targets:
    """Log of the sum of the members' probabilities of the targets so far."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None

    def add(self, log_probs: Tensor) -> Tensor:
        """Return the sum [tokens] with a member's log-probabilities of the targets."""
        # The first member stays in its own type: an ensemble of one answers as its member does.
        self.sum = log_probs if self.sum is None else torch.logaddexp(self.sum.double(), log_probs.double())
        return self.sum


class _Whole:
    """Log of the sum of the members' distributions so far [scored, vocabulary].

    Args:
        scored, targets: the batch's. keep: it for further members.
    """

    def __init__(self, scored: Tensor, targets: Tensor, keep: bool) -> None:
        self.scored, self.targets, self.keep = scored, targets, keep
        self.sum: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """Return the sum."""
        return {"sum": self.sum}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self.sum = state["sum"]

    def add(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Add a member's; tell whether each target is then the most probable token, and whether it is not.

        Bool [tokens] each.
        """
        total = log_probs if self.sum is None else torch.logaddexp(self.sum.float(), log_probs.float())
        self.sum = total if self.keep else None
        right = total.argmax(dim=-1)[self.scored] == self.targets
        return right, ~right


class _Leading:
    """Sums as ``_Whole``'s, only of the tokens that lead in the first member, with a bound of all others.

    Where a vocabulary is large that is a thousandth of a distribution, and almost always tells what the whole
    would.
    """

    def __init__(self, scored: Tensor, targets: Tensor) -> None:
        self.scored, self.targets = scored, targets
        self.leading: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """Return the leading tokens and the sums."""
        return {name: getattr(self, name) for name in ("leading", "own", "leaders", "others")}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self.leading = state["leading"]
        self.own, self.leaders, self.others = state["own"], state["leaders"], state["others"]

    def add(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Add as ``_Whole`` does; neither holds of a target where the leading tokens do not tell."""
        own = log_probs[self.scored, self.targets].float()
        if self.leading is None:
            self.leading = log_probs.topk(min(LEADING, log_probs.shape[-1]), dim=-1).indices
            self.own, self.leaders, self.others = own, *self._split(log_probs, self.leading)
            right = log_probs.argmax(dim=-1)[self.scored] == self.targets
            return right, ~right
        leaders, others = self._split(log_probs, self.leading)
        # As the whole is summed, so that what is known of it is known to the last bit.
        self.own = torch.logaddexp(self.own, own)
        self.leaders = torch.logaddexp(self.leaders, leaders)
        self.others = torch.logaddexp(self.others, others)
        itself = self.leading[self.scored] == self.targets[:, None]
        rival = self.leaders[self.scored].masked_fill(itself, -torch.inf).amax(dim=-1)
        right = (self.own > rival) & (self.own > self.others[self.scored] + ROUNDING)
        return right, self.own < rival

    @staticmethod
    def _split(log_probs: Tensor, leading: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of leading tokens [scored, leading], and the largest other [scored]."""
        others = log_probs.scatter(-1, leading, -torch.inf).amax(dim=-1)
        return log_probs.gather(-1, leading).float(), others.float()


class EnsembleLM(HFLM):
    """An ensemble as one of lm-eval's models: ``lm_eval.simple_evaluate(model=EnsembleLM(…), tasks=[…])``.

    Built on lm-eval's ``hf`` model, whose batches and padding it has. What is scored is a text's own tokens;
    tokens.py says where ``hf`` has others. Where it has the same, an ensemble of one member that is the
    unrounded model gives its answers exactly.

    Members are made as few times as possible: batches are taken a chunk at a time, and within a chunk each
    member is made once and runs over the chunk's batches. What is held is a sum a scored token and, since it
    is asked whether a continuation is the greedy one under the mean, a distribution over the vocabulary, not
    one for each member. Where all of these do not fit a chunk, their leading tokens are held. The batches of
    which those do not tell (two tokens of nearly the same probability) are run again, in chunks.

    Args:
        ensemble: of causal language models of transformers, on one device.
        tokenizer: theirs.
        batch_size: requests a forward pass.
        chunk_bytes: held at a time; it never changes an answer.
        timer: gets the time of each member, made and run.

    Attributes:
        scored: what every request got, in the order asked, since this object was made.

    Raises:
        InputError: a batch size below 1, a model that is no decoder alone (``check_decoder``) or whose tokens
            see later ones (``check_causal``), a tokenizer that does not fit (``check_tokenizer``); when
            asked, a continuation without tokens or longer than the model's context, a member that returns
            NaN, or generation, which is not defined here.
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
        check_decoder(template.config, type(template).__name__)
        check_tokenizer(tokenizer, template)
        with quiet_lm_eval():  # it warns that a module, not a name, is passed
            super().__init__(
                # Copies, because lm-eval sets modes, ties and tokens of what it is given.
                pretrained=with_tensors(template, {}),
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=batch_size,
            )
        check_causal(self.model, self.max_length)
        self.ensemble = ensemble
        self.chunk_bytes = 0 if ensemble.members_are_stored else chunk_bytes
        self.timer = timer
        self.scored: list[Scored] = []
        self._encoder = encoder(self.tokenizer, self.prefix_token_id)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether greedy) of each request's continuation after its context."""
        pairs = [(index, *self._encoder.pair(*request.args)) for index, request in enumerate(requests)]
        scores = self._scores(self._batches(pairs), len(pairs), True, self.timer)
        scored = [Scored(request, *score) for request, score in zip(requests, scores, strict=True)]
        self.scored += scored
        return [each.answer(len(self.ensemble)) for each in scored]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        plain = [(index, context, continuation) for index, (_, context, continuation) in enumerate(requests)]
        scores = self._scores(self._batches(plain), len(plain), True, None)
        last = len(self.ensemble) - 1
        return [(float(prefixes[last]), bool(greedy[last])) for _, _, prefixes, greedy, _ in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return each whole text's log-likelihood: of its own tokens, once each, in windows of the context.

        Where the tokenizer puts marks around a text, lm-eval's ``hf`` model has another: ``rolled_as_hf``.
        """
        windows = [[*self._encoder.windows(request.args[0], self.max_length)] for request in requests]
        scored = self._rolled(requests, windows, self.timer)
        self.scored += scored
        return [each.answer(len(self.ensemble)) for each in scored]

    def rolled_as_hf(self, scored: Sequence[Scored]) -> list[Scored]:
        """Return what lm-eval's ``hf`` model makes of rolling requests.

        It scores the marks that the tokenizer puts around a text, after one more mark of a beginning. Nothing
        is added to ``self.scored``, and nothing is timed.

        Args:
            scored: by ``loglikelihood_rolling``; taken over where the tokens are the same.
        """
        differing, windows = {}, []
        for place, each in enumerate(scored):
            (text,) = each.request.args
            rolling = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, 1
            )
            theirs = [*map(make_disjoint_window, rolling)]
            if theirs != [*self._encoder.windows(text, self.max_length)]:
                differing[place] = each.request
                windows.append(theirs)
        if not differing:
            return [*scored]
        run = dict(zip(differing, self._rolled([*differing.values()], windows, None), strict=True))
        return [run.get(place, each) for place, each in enumerate(scored)]

    def _rolled(
        self,
        requests: Sequence[Instance],
        windows_of: Sequence[Sequence[tuple[list[int], list[int]]]],
        timer: MemberTimer | None,
    ) -> list[Scored]:
        """Return the requests that are the sum of their windows, each (read, scored)."""
        windows = [(number, *window) for number, window in enumerate(chain.from_iterable(windows_of))]
        # As lm-eval batches them: sorted within a batch, not across.
        batches = [
            batch
            for start in range(0, len(windows), self.batch_size)
            for batch in self._batches(windows[start : start + self.batch_size])
        ]
        scores = iter(self._scores(batches, len(windows), False, timer))
        none = torch.zeros(len(self.ensemble), dtype=torch.float64)
        scored = []
        for request, its in zip(requests, windows_of, strict=True):
            parts = [*islice(scores, len(its))]
            scored.append(
                Scored(
                    request,
                    sum(tokens for tokens, *_ in parts),
                    sum((members for _, members, *_ in parts), none),
                    sum((prefixes for _, _, prefixes, *_ in parts), none),
                    None,
                    torch.cat([targets for *_, targets in parts], dim=1),
                )
            )
        return scored

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Raise InputError: an ensemble's members would have to agree on each token before the next."""
        named = sorted({request.task_name for request in requests if request.task_name})
        raise InputError(
            f"{', '.join(named) or 'the task'} is of type generate_until; an ensemble answers "
            "multiple_choice, loglikelihood and loglikelihood_rolling tasks"
        )

    def _batches(self, requests: list[_TokenRequest]) -> list[_Batch]:
        """Return the forward passes that lm-eval's ``hf`` model would make, longest first.

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

    def _scores(
        self, batches: list[_Batch], count: int, greedy: bool, timer: MemberTimer | None
    ) -> list[_Score]:
        """Return tokens, members' sums, prefixes' sums and greediness of ``count`` requests."""
        size = len(self.ensemble)
        sums = _Sums(
            [0] * count,
            torch.zeros(count, size, dtype=torch.float64),
            torch.zeros(count, size, dtype=torch.float64),
            torch.zeros(count, size, dtype=torch.bool),
            torch.zeros(count, size, dtype=torch.bool),
            [[torch.empty(0)] * size for _ in range(count)],
        )
        for batch in batches:
            for index, length in zip(batch.requests, batch.lengths, strict=True):
                sums.tokens[index] = length
        whole = partial(_Whole, keep=size > 1)
        if not greedy:
            self._run_shared(batches, [8 * len(batch.targets) for batch in batches], None, sums, timer)
        elif size == 1 or sum(map(self._whole_bytes, batches)) <= self.chunk_bytes or not self.chunk_bytes:
            self._run_shared(batches, [*map(self._whole_bytes, batches)], whole, sums, timer)
        else:
            held = [16 * LEADING * len(batch.rows) for batch in batches]
            self._run_shared(batches, held, _Leading, sums, timer)
            again = [batch for batch in batches if bool(sums.unsure[batch.requests].any())]
            if again:
                self._run_shared(again, [*map(self._whole_bytes, again)], whole, sums, timer)
        return [
            (
                sums.tokens[index],
                sums.members[index],
                sums.prefixes[index],
                sums.greedy[index] if greedy else None,
                torch.stack(sums.targets[index]),
            )
            for index in range(count)
        ]

    def _whole_bytes(self, batch: _Batch) -> int:
        vocabulary = self.config.get_text_config().vocab_size
        return 4 * vocabulary * len(batch.rows) if len(self.ensemble) > 1 else 8 * len(batch.targets)

    def _run_shared(
        self,
        batches: list[_Batch],
        held: list[int],
        mean: Callable[[Tensor, Tensor], _Whole | _Leading] | None,
        sums: _Sums,
        timer: MemberTimer | None,
    ) -> None:
        """Run every member on every batch; of processes that were launched together each on its own batches.

        Each has all sums in the end: its own, and those that the others send.
        """
        ranks = joined_ranks()
        if ranks is None:
            self._run_all(batches, held, mean, sums, timer)
            return
        own = ranks.own(batches)
        ranks.agreed(partial(self._run_all, own, ranks.own(held), mean, sums, timer))
        requests = [index for batch in own for index in batch.requests]
        for theirs, state in ranks.gathered((requests, sums.of(requests).state())):
            found = sums.of(theirs)
            found.restore(state)
            sums.put(theirs, found)

    @torch.no_grad()
    def _run_all(
        self,
        batches: list[_Batch],
        held: list[int],
        mean: Callable[[Tensor, Tensor], _Whole | _Leading] | None,
        sums: _Sums,
        timer: MemberTimer | None,
    ) -> None:
        """Run every member on every batch.

        Under :func:`lpe.training.checkpoints.kept` a killed run goes on between two passes.

        Args:
            held: bytes a batch. mean: makes what is held of its distributions; None: nothing. sums: to fill.
        """
        size = len(self.ensemble)
        with Progress(len(batches) * size, "batches", f"{size} members" if size > 1 else "1 member") as bar:
            file = of_next({"batches": _digest(batches), "held": held, "size": size}, "evaluation")
            going_on = None if file is None else file.read()
            done = 0 if going_on is None else int(going_on["done"])
            if going_on is not None:
                sums.restore(going_on["sums"])
                bar.found(done)
            before = 0  # passes of the chunks so far
            for chunk in self._chunks(batches, held):
                start, before = before, before + len(chunk) * size
                if before <= done:
                    continue
                self.ensemble.check_reach(chunk[0].inputs)
                targets = [_Targets() for _ in chunk]
                means: list[Any] = [None for _ in chunk]
                if start < done and going_on is not None:
                    self._take_up(chunk, targets, means, mean, going_on)
                first = max(done - start, 0) // len(chunk)
                turn: Iterator[nn.Module] = self.ensemble.in_turn()
                if first:
                    turn = map(self.ensemble.member, range(first, size))
                for member in range(first, size):
                    with timer.member(member) if timer else nullcontext():
                        net = next(turn)
                        for place, batch in enumerate(chunk):
                            passes = start + member * len(chunk) + place
                            if passes < done:
                                continue
                            distributions, scored, wanted = self._distributions(net, batch)
                            own = distributions[scored, wanted]
                            if torch.isnan(own).any():
                                raise InputError(f"member {member} gives log-probabilities that are NaN")
                            sums.add(member, batch, own, targets[place].add(own))
                            if mean is not None:
                                means[place] = means[place] or mean(scored, wanted)
                                sums.add_greedy(member, batch, *means[place].add(distributions))
                            bar.update()
                            is_last = passes + 1 == len(batches) * size
                            if file is not None and file.is_due(is_last):
                                file.write(
                                    {
                                        "done": passes + 1,
                                        "sums": sums.state(),
                                        "targets": [each.sum for each in targets],
                                        "means": [each and each.state() for each in means],
                                    }
                                )
                        del net  # it would live on while the next one is made

    def _take_up(
        self,
        chunk: list[_Batch],
        targets: list[_Targets],
        means: list[Any],
        mean: Callable[[Tensor, Tensor], _Whole | _Leading] | None,
        held: dict[str, Any],
    ) -> None:
        """Go on with a chunk's sums where a killed run was."""
        device = next(self.model.parameters()).device
        held = on_device(device, {name: held[name] for name in ("targets", "means")})
        for place, batch in enumerate(chunk):
            targets[place].sum = held["targets"][place]
            if mean is not None and (state := held["means"][place]) is not None:
                means[place] = mean(batch.scored.to(device), batch.targets.to(device))
                means[place].restore(state)

    def _distributions(self, net: nn.Module, batch: _Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a member's log-probabilities [scored, vocabulary], the batch's ``scored``, ``targets``."""
        device = device_of(net)
        # Of all positions, as lm-eval has it: on some devices a row's last bit depends on where it lies.
        log_probs = apply(net, batch.inputs.to(device)).log_softmax(dim=-1, dtype=self.softmax_dtype)
        distributions = log_probs[batch.rows.to(device), batch.positions.to(device)]
        return distributions, batch.scored.to(device), batch.targets.to(device)


@dataclass(frozen=True)
class _Sums:
    """Sums over requests: tokens, and [requests, members] the fields of :class:`Scored`.

    ``unsure``: whether it is not known if a request is greedy. ``targets``: by request and member, of tokens.
    """

    tokens: list[int]
    members: Tensor
    prefixes: Tensor
    greedy: Tensor
    unsure: Tensor
    targets: list[list[Tensor]]

    def add(self, member: int, batch: _Batch, own: Tensor, mean: Tensor) -> None:
        """Add a member's log-probabilities of a batch's targets, and the logs of the sums up to it."""
        parts = zip(
            batch.requests, batch.lengths, own.split(batch.lengths), mean.split(batch.lengths), strict=True
        )
        for index, length, its, so_far in parts:
            self.members[index, member] = float(its.double().sum())
            self.targets[index][member] = its.cpu()
            self.prefixes[index, member] = float(so_far.sum()) - length * float(np.log(member + 1))

    def of(self, requests: Sequence[int]) -> _Sums:
        """Return a copy of some requests' sums."""
        rows = torch.tensor(requests, dtype=torch.int64)
        return _Sums(
            tokens=[self.tokens[index] for index in requests],
            members=self.members[rows],
            prefixes=self.prefixes[rows],
            greedy=self.greedy[rows],
            unsure=self.unsure[rows],
            targets=[[*self.targets[index]] for index in requests],
        )

    def put(self, requests: Sequence[int], found: _Sums) -> None:
        """Take over the sums of some requests."""
        rows = torch.tensor(requests, dtype=torch.int64)
        for name in ("members", "prefixes", "greedy", "unsure"):
            getattr(self, name)[rows] = getattr(found, name)
        for index, targets in zip(requests, found.targets, strict=True):
            self.targets[index] = targets

    def state(self) -> dict[str, Any]:
        """Return the sums so far, all targets of a member in one tensor."""
        state: dict[str, Any] = {
            name: getattr(self, name) for name in ("members", "prefixes", "greedy", "unsure")
        }
        by_member = [
            [of_request[member] for of_request in self.targets] for member in range(self.members.shape[1])
        ]
        state["lengths"] = torch.tensor([[len(each) for each in parts] for parts in by_member])
        state["targets"] = [
            torch.cat([each for each in parts if len(each)] or [torch.empty(0)]) for parts in by_member
        ]
        return state

    def restore(self, held: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""
        for name in ("members", "prefixes", "greedy", "unsure"):
            getattr(self, name).copy_(held[name])
        for member, (lengths, joined) in enumerate(
            zip(held["lengths"].tolist(), held["targets"], strict=True)
        ):
            for of_request, its in zip(self.targets, joined.split(lengths), strict=True):
                of_request[member] = its

    def add_greedy(self, member: int, batch: _Batch, right: Tensor, wrong: Tensor) -> None:
        """Record whether a batch's targets are the most probable tokens, and whether they are not."""
        rights, wrongs = right.cpu().split(batch.lengths), wrong.cpu().split(batch.lengths)
        for index, its_right, its_wrong in zip(batch.requests, rights, wrongs, strict=True):
            self.greedy[index, member] = is_greedy = bool(its_right.all())
            self.unsure[index, member] = not is_greedy and not bool(its_wrong.any())


_Score = tuple[int, Tensor, Tensor, Any, Tensor]
"""(tokens, members, prefixes, greedy, targets) of :class:`Scored`."""


def _digest(batches: Sequence[_Batch]) -> str:
    """Return a hash of what is read and scored."""
    whole = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.inputs, batch.rows, batch.positions, batch.scored, batch.targets):
            whole.update(f"{list(tensor.shape)}".encode())
            whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()[:32]


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silence lm-eval's remarks on tasks and arguments, and its bars for work of a moment."""
    needs("lm_eval")

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
