"""Cascades: Xia & Bouganis 2023, "Window-Based Early-Exit Cascades for Uncertainty Estimation: When Deep
Ensembles are More Efficient than Single Models".

Stages of n_1 < n_2 < … members; an example x goes on from stage k to stage k + 1 where

    low_k ≤ max over classes of p_k(y|x) ≤ high_k,      p_k = 1/n_k Σ_{m < n_k} p(y|x, θ_m),

and its prediction is that of the last stage it reaches. The members of a stage run over the examples that
reach it and over no others, and those that have run already are not run again.

What matters: the window. ``tune_window`` chooses it on validation examples. What a cascade costs is told by
``members_per_example``; a member that has to be made is made for a whole batch, whatever the number of
examples that it runs over, so members that are drawn want large batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import check_integer, check_list, check_tensor, is_integer, is_number, shown
from lpe.ensembles.base import Ensemble, check_ensemble
from lpe.errors import InputError
from lpe.logits import check_labels, check_shape, check_values, examples_in
from lpe.modules import apply, device_of, named_tensors, tensor_bits, to_device, tree_map, with_tensors

Window = tuple[float, float]
NOTHING: Window = (0.0, 0.0)
"""The window that selects nothing: a top probability is above 0."""


@dataclass(frozen=True)
class Stage:
    """A cascade's predictions after a stage, of all examples, also of those that did not reach it.

    Args:
        log_probs: float64 [examples, classes], log of the mean of the members' probabilities.
        mean_log_probs: float64 [examples, classes], mean of the members' log-probabilities.
        networks: int64 [examples], networks that have run over each example.
    """

    log_probs: Tensor
    mean_log_probs: Tensor
    networks: Tensor


class Cascade:
    """An ensemble of which most examples see the first member only; it predicts as an ensemble does.

    Args:
        ensemble: any ensemble.
        window: (low, high), the top probabilities, both included, with which an example goes on; or one such
            pair for each step from a stage to the next.
        stages: members of each stage; None: (1, all).
        first: what predicts in the first stage instead of member 0, such as the FP32 base: a module, or an
            ensemble of one. It is no member: from the second stage on, the prediction is the ensemble's
            alone. ``stages`` then begins with 1, for it.

    Raises:
        InputError: a window that is no pair of numbers 0 ≤ low ≤ high ≤ 1, or not one a step; stages that
            do not rise or that the ensemble does not have; a ``first`` that is no single model.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        window: Window | Sequence[Window],
        stages: Sequence[int] | None = None,
        first: nn.Module | Ensemble | None = None,
    ) -> None:
        check_ensemble(ensemble, "a cascade")
        if isinstance(first, Ensemble) and len(first) != 1:
            raise InputError(f"first must be one model, not an ensemble of {len(first)}; take a member of it")
        if not (first is None or isinstance(first, nn.Module | Ensemble)):
            raise InputError(f"first must be a module or an ensemble of one, not {type(first).__name__}")
        self.ensemble = ensemble
        self.first = first
        self.stages = _checked_stages(stages, len(ensemble), first is not None)
        self.windows = _checked_windows(window, len(self.stages) - 1)
        self._examples = 0
        self._networks = 0

    @property
    def size(self) -> int:
        """Members of the last stage."""
        return self.stages[-1]

    @property
    def members_per_example(self) -> float:
        """Networks run an example, ``first`` included: mean over all examples so far; NaN before any."""
        return self._networks / self._examples if self._examples else math.nan

    def predict(self, inputs: Any) -> Tensor:
        """Return log-probabilities float64 [examples, classes], each row those of the last stage it reached.

        Args:
            inputs: as the members take them: a tensor, a tuple or list (positional arguments) or a dict
                (keywords). Of each tensor the first axis is the examples'.

        Raises:
            InputError: a tensor with another first axis; outputs that are not [examples, classes], as
                :meth:`lpe.ensembles.base.Ensemble.predict` says.
        """
        *_, last = self.run([inputs])
        return last.log_probs

    @torch.no_grad()
    def run(self, batches: Sequence[Any], where: str = "") -> Iterator[Stage]:
        """Yield the predictions after each stage, of the examples of all batches one after another.

        Each member is made once for all batches, and only where an example reaches it.

        Args:
            batches: one or more, each as ``predict`` takes it.
            where: the beginning of an error's message, such as "batches 0 to 3: ".

        Raises:
            InputError: as :meth:`predict`.
        """
        parts = [_Part(inputs) for inputs in check_list("batches", batches, "inputs")]
        if not parts:
            raise InputError("the batches are empty; there is nothing to predict")
        size = self.stages[0]
        if self.first is None:
            self._add_members(parts, range(size), where)
        else:
            _add(self._first(), parts, where)
        sums = torch.cat([part.sums for part in parts])
        examples = torch.arange(len(sums), device=sums.device)
        for part, rows in zip(parts, examples.split([len(part.sums) for part in parts]), strict=True):
            part.rows = rows
        log_sums = torch.cat([part.log_sums for part in parts])
        stage = Stage(log_sums - math.log(size), sums / size, torch.full_like(examples, size))
        check_values(stage.log_probs, where)
        yield stage
        for number, ((low, high), size) in enumerate(zip(self.windows, self.stages[1:], strict=True)):
            anew = not number and self.first is not None
            confidence = stage.log_probs.amax(dim=-1).exp()
            inside = (confidence >= low) & (confidence <= high)
            parts = [part.narrowed(inside[part.rows], anew) for part in parts if inside[part.rows].any()]
            if parts:
                members = range(0 if anew else self.stages[number], size)
                self._add_members(parts, members, where)
                rows = torch.cat([part.rows for part in parts])
                log_sums = torch.cat([part.log_sums for part in parts])
                sums = torch.cat([part.sums for part in parts])
                if sums.shape[1:] != stage.log_probs.shape[1:]:
                    raise InputError(
                        f"first has {stage.log_probs.shape[1]} classes, the ensemble {sums.shape[1]}; "
                        "a cascade needs one set of classes"
                    )
                stage = Stage(
                    stage.log_probs.index_copy(0, rows, log_sums - math.log(size)),
                    stage.mean_log_probs.index_copy(0, rows, sums / size),
                    stage.networks.index_add(0, rows, torch.full_like(rows, len(members))),
                )
                check_values(stage.log_probs, where)
            yield stage
        self._examples += len(stage.networks)
        self._networks += int(stage.networks.sum())

    def _first(self) -> nn.Module:
        """Return the first stage's model in eval mode, whatever mode it is left in."""
        assert self.first is not None
        net = self.first.member(0) if isinstance(self.first, Ensemble) else self.first
        return with_tensors(net, {}) if any(module.training for module in net.modules()) else net

    def _add_members(self, parts: Sequence[_Part], members: range, where: str) -> None:
        self.ensemble.check_reach(parts[0].inputs)
        for index in members:
            # No name for the member: it would live on while the next one is made.
            _add(self.ensemble.member(index), parts, where)

    def memory_bits(self, stages: int | None = None, storage: str = "members") -> int:
        """Count the bits of ``first`` and of the members, tensors that both hold once.

        Args:
            stages: of the first so many stages; None: of all.
            storage: see :meth:`lpe.ensembles.base.Ensemble.memory_bits`. "generator": a ``first`` that is
                an ensemble of the members' kind on their own model is drawn from what they are drawn from.
        """
        most = len(self.stages)
        stages = most if stages is None else check_integer("stages", stages, 1, most)
        size = self.stages[stages - 1]
        if self.first is None:
            return self.ensemble.memory_bits(size, storage)
        first = self._first()
        alone = sum(_saved(first).values())
        if isinstance(self.first, Ensemble):
            alone = self.first.memory_bits(1, storage)
        if stages == 1:
            return alone
        model = getattr(self.ensemble, "model", None)
        of_a_kind = type(self.first) is type(self.ensemble) and getattr(self.first, "model", None) is model
        if storage == "generator" and model is not None and of_a_kind:
            alone = 0
            shared = 0
        else:
            members = _saved(self.ensemble.member(0))
            shared = sum(bits for tensor, bits in _saved(first).items() if tensor in members)
        return alone - shared + self.ensemble.memory_bits(size, storage)

    def backward_passes(self) -> int | None:
        """Return what the members' training cost, see :meth:`lpe.ensembles.base.Ensemble.backward_passes`.

        What ``first`` cost beyond that is not counted.
        """
        return self.ensemble.backward_passes(self.size)

    def describe(self) -> str:
        """Return the stages with their windows, and the ensemble's table."""
        first = "" if self.first is None else f", the first {type(self._first()).__name__}"
        windows = ", ".join(f"[{low:.6g}, {high:.6g}]" for low, high in self.windows)
        sizes = ", ".join(map(str, self.stages))
        return (
            f"cascade of {sizes} members{first}; an example goes on with a top probability in {windows}\n"
            + self.ensemble.describe()
        )


class _Part:
    """The examples of one batch that a stage runs over.

    Attributes:
        inputs: of these examples alone. rows: their places among all examples, int64 [examples].
        log_sums, sums: of their members' log-probabilities, by log-sum-exp and as they are, float64
            [examples, classes]; empty before the first member.
    """

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.rows = self.log_sums = self.sums = torch.empty(0)
        self.members = 0

    def add(self, log_probs: Tensor) -> None:
        """Take up one more member's log-probabilities [examples, classes]."""
        self.log_sums = torch.logaddexp(self.log_sums, log_probs) if self.members else log_probs
        self.sums = self.sums + log_probs if self.members else log_probs
        self.members += 1

    def narrowed(self, chosen: Tensor, anew: bool) -> _Part:
        """Return the part of the chosen examples, bool [examples]; ``anew``: without what was summed."""
        index = chosen.nonzero()[:, 0]
        part = _Part(_selected(self.inputs, index, len(chosen)))
        part.rows = self.rows[index]
        if not anew:
            part.log_sums, part.sums, part.members = self.log_sums[index], self.sums[index], self.members
        return part


def _add(net: nn.Module, parts: Sequence[_Part], where: str) -> None:
    device = device_of(net)
    classes = next((part.sums.shape[1] for part in parts if part.members), None)
    for part in parts:
        logits = apply(net, to_device(part.inputs, device))
        # An output row of something else than an example (of a token, say) could not be told to whom it is.
        check_shape(
            logits,
            len(part.rows) if len(part.rows) else examples_in(part.inputs),
            where,
            classes=classes,
        )
        classes = logits.shape[1]
        log_probs = logits.double().log_softmax(dim=-1)
        # The first model may be on another device than the members.
        part.add(log_probs.to(part.rows.device) if len(part.rows) else log_probs)


def _selected(inputs: Any, index: Tensor, examples: int) -> Any:
    """Return the inputs with only the rows ``index`` of each tensor; what is no tensor stays as it is."""

    def selected(values: Any) -> Tensor:
        if not isinstance(values, Tensor) or values.shape[:1] != (examples,):
            shape = f"of shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"an input {shape} for {examples} examples: a cascade selects "
                "examples along the first axis of every tensor; give the model inputs of that form"
            )
        return values[index.to(values.device)]

    return tree_map(selected, inputs)


def _saved(net: nn.Module) -> dict[tuple[int, tuple[int, ...]], int]:
    """Return the bits of each saved tensor, by where it lies."""
    return {
        (entry.tensor.data_ptr(), tuple(entry.tensor.shape)): tensor_bits(entry.tensor)
        for entry in named_tensors(net)
        if entry.saved
    }


def _checked_stages(stages: Sequence[int] | None, size: int, has_first: bool) -> tuple[int, ...]:
    sizes = tuple(check_list("stages", stages, "numbers of members")) if stages is not None else (1, size)
    shown = f"({', '.join(map(str, sizes))})"
    if not all(is_integer(n) and n >= 1 for n in sizes) or len(sizes) < 2:
        raise InputError(f"stages must be two or more numbers of members, not {shown}")
    sizes = tuple(map(int, sizes))
    if has_first and sizes[0] != 1:
        raise InputError(f"with first=, stages begin with 1, for it, not with {sizes[0]}")
    rising = sizes[1:] if has_first else sizes
    if any(after <= before for before, after in zip(rising, rising[1:], strict=False)):
        reason = "; an ensemble of one needs first=" if size == 1 else ""
        raise InputError(f"stages must rise, not {shown}{reason}")
    if sizes[-1] > size:
        raise InputError(f"an ensemble of {size} has no stage of {sizes[-1]} members")
    return sizes


def _checked_windows(window: Any, steps: int) -> tuple[Window, ...]:
    try:
        given = list(window)
        pairs = [given] if given and not isinstance(given[0], Sequence) else [list(pair) for pair in given]
        windows = tuple((float(low), float(high)) for low, high in pairs)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"window must be (low, high), or one such pair a step between stages, not {shown(window)}"
        ) from None
    for low, high in windows:
        if not 0 <= low <= high <= 1:
            raise InputError(
                f"window ({low:g}, {high:g}) must have 0 ≤ low ≤ high ≤ 1: top probabilities, both included"
            )
    if len(windows) == 1:
        return windows * steps
    if len(windows) != steps:
        raise InputError(f"{len(windows)} windows for {steps} steps between stages; give one, or one a step")
    return windows


@dataclass(frozen=True)
class TunedWindow:
    """A window, and what the cascade of it does on the examples on which it was chosen.

    Args:
        window: for :class:`Cascade`. members_per_example: networks run an example. nll: in nats.
        single_nll, ensemble_nll: of the first stage and of the whole ensemble on the same examples.
    """

    window: Window
    members_per_example: float
    nll: float
    single_nll: float
    ensemble_nll: float


def tune_window(
    log_probs: Tensor,
    targets: Tensor,
    *,
    gain_share: float | None = None,
    members_per_example: float | None = None,
    first: Tensor | None = None,
    low: float | None = 0.0,
) -> TunedWindow:
    """Return the window of a two-stage cascade, chosen on validation examples.

    Either the fewest members per example that reach a share of the ensemble's NLL gain over the first stage,
    or the least NLL within a number of members per example. Every upper edge between two validation
    confidences is tried, and with ``low=None`` every pair of edges: hundreds of examples are too few for
    that, the best of so many windows fits them and no others. Where the ensemble gains nothing, nothing goes
    on.

    Args:
        log_probs: of the members, [members, examples, classes], as ``lpe.member_log_probs`` gives them.
        targets: int64 [examples].
        gain_share: 0 … 1. members_per_example: 1 or more, ``first`` included. One of the two.
        first: log-probabilities [examples, classes] of the first stage; None: of member 0.
        low: the window's lower edge; None: it is chosen as well.

    Raises:
        InputError: neither or both of the targets, or a number out of range; shapes that do not fit; logits;
            labels that are no class indices.
    """
    if (gain_share is None) == (members_per_example is None):
        raise InputError("give one of gain_share and members_per_example, the other left out")
    if gain_share is not None and not (is_number(gain_share) and 0 <= gain_share <= 1):
        raise InputError(f"gain_share must be 0 to 1, not {shown(gain_share)}")
    if members_per_example is not None and not (is_number(members_per_example) and members_per_example >= 1):
        raise InputError(f"members_per_example must be 1 or more, not {shown(members_per_example)}")
    if low is not None and not (is_number(low) and 0 <= low <= 1):
        raise InputError(f"low must be 0 to 1, or None to have it chosen, not {shown(low)}")
    check_tensor("log_probs", log_probs)
    check_tensor("targets", targets, floating=False)
    if log_probs.dim() != 3 or log_probs.shape[1:2] != targets.shape or not len(targets):
        raise InputError(
            f"log_probs of shape {list(log_probs.shape)} and targets of shape {list(targets.shape)}; "
            "[members, examples, classes] and [examples] are needed, with one example or more"
        )
    if torch.is_floating_point(targets) or targets.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise InputError(f"targets must be class indices, not of {targets.dtype}")
    check_labels(targets, log_probs.shape[2])
    _check_log_probs("log_probs", log_probs)
    if first is not None:
        if check_tensor("first", first).shape != log_probs.shape[1:]:
            raise InputError(f"first has shape {list(first.shape)}, not {list(log_probs.shape[1:])}")
        _check_log_probs("first", first)
    members = len(log_probs)
    further = members if first is not None else members - 1
    single = (log_probs[0] if first is None else first).double()
    ensemble = log_probs.double().logsumexp(dim=0) - math.log(members)
    rows = torch.arange(len(targets), device=targets.device)
    confidence, order = single.amax(dim=-1).exp().sort()
    # What each example's NLL falls by if it goes on, the least confident first; running sums from 0.
    gains = (ensemble[rows, targets] - single[rows, targets])[order]
    total = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    count = len(targets)
    # Examples of one confidence go on together: an edge lies only where it changes.
    edge = torch.ones(count + 1, dtype=torch.bool, device=total.device)
    edge[1:-1] = confidence[1:] > confidence[:-1]
    begins, ends = total.masked_fill(~edge, math.inf), total.masked_fill(~edge, -math.inf)
    if low is not None:
        begin_at = int((confidence < low).sum())
        begins = torch.full_like(total, math.inf)
        begins[begin_at] = total[begin_at]
    whole = float(total[-1])
    if not math.isfinite(whole):
        raise InputError("a target has log-probability −infinity or NaN; a window cannot be tuned on it")
    goal = math.inf if gain_share is None else gain_share * whole
    most = count
    if members_per_example is not None:
        most = min(count, int((members_per_example - 1) * count / max(further, 1) + 1e-9))
    best, start, length = 0.0, 0, 0
    for taken in range(1, most + 1):
        # Rounding of the running sums must not ask for more than there is.
        if best >= goal - 1e-12 * max(1.0, abs(goal)):
            break
        reached, begin = (ends[taken:] - begins[: count + 1 - taken]).max(dim=0)
        if float(reached) > best:
            best, start, length = float(reached), int(begin), taken
    window = _between(confidence, start, length) if length else NOTHING
    if low is not None and length:
        window = (low, window[1])
    single_nll = -float(single[rows, targets].mean())
    return TunedWindow(
        window=window,
        members_per_example=1 + further * length / count,
        nll=single_nll - best / count,
        single_nll=single_nll,
        ensemble_nll=single_nll - whole / count,
    )


def _check_log_probs(name: str, log_probs: Tensor) -> None:
    """Raise InputError unless rows are logs of probabilities, whose sum is 1 as far as their type tells."""
    sums = log_probs.double().logsumexp(dim=-1).exp()
    off = (sums - 1).abs().nan_to_num(math.inf)
    if float(off.max()) > 1e-3 + 8 * torch.finfo(log_probs.dtype).eps:
        raise InputError(
            f"{name} must be log-probabilities, as lpe.member_log_probs gives them: the probabilities of a "
            f"row sum up to {float(sums.flatten()[off.argmax()]):.3g}; of logits take log_softmax(dim=-1)"
        )


def _between(confidence: Tensor, start: int, length: int) -> Window:
    """Return edges around ``length`` of the sorted confidences: midway to the next, 0 and 1 at the ends."""
    stop = start + length
    low, high = 0.0, 1.0
    if start:
        outside, inside = float(confidence[start - 1]), float(confidence[start])
        low = (outside + inside) / 2
        # Between neighbouring floats there is no middle, and both edges are included.
        low = low if outside < low <= inside else inside
    if stop < len(confidence):
        inside, outside = float(confidence[stop - 1]), float(confidence[stop])
        high = (inside + outside) / 2
        high = high if inside <= high < outside else inside
    return low, high
