"""Selects the tensors that are quantised, and the dimension of each that is "output".

Quantised: weights that multiply (Linear, Conv, recurrent layers, attention projections also where they are
bare parameters, experts and their routers, Embedding; classifier heads too). Not: biases, norms,
one-dimensional parameters, positions, tokens, buffers, low-rank adapters, the LM head and whatever is tied to
an excluded tensor. ``rules.py`` has the rules. Every tensor comes back with its
reason, so that nothing is skipped silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import check_patterns, is_integer, shown
from lpe.ensembles.base import text_table
from lpe.ensembles.rules import ADAPTER, LM_HEAD, NORM, POSITION, TOKEN, Output, output_of
from lpe.errors import InputError
from lpe.modules import NamedTensor, holders, named_tensors
from lpe.number_systems.grids import (
    FullPrecision,
    LowPrecision,
    NumberSystem,
    PerBlock,
    PerChannel,
    grid_of,
)
from lpe.number_systems.layouts import Layout
from lpe.number_systems.naming import ByPattern, Systems
from lpe.number_systems.rounding import check_weight
from lpe.number_systems.streams import check_tensor_ids

OutputAxis = int | tuple[int, int]
"""A user's word on a tensor: its output dimension k, or (0, k)."""

_BIAS = re.compile(r"(^|_)bias(es)?(_\w)?$")
"""Pattern of the name of a parameter that is a bias."""


@dataclass(frozen=True)
class PlannedTensor:
    """A plan for one tensor of a model.

    Args:
        name: canonical name. shape, dtype, bits: its shape, type and bits a value at its own precision.
        quantised: whether it is rounded; ``reason`` says why, or why not.
        layout: how it is seen as [out, everything else] (meaningful where quantised).
        saved: whether it is part of a saved model; a buffer that the model computes anew is not.
        axis_given: whether the user said which dimension is "output".
        system: its own number system; ``FullPrecision()`` of what is not quantised.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int
    quantised: bool
    reason: str
    layout: Layout
    saved: bool
    axis_given: bool = False
    system: NumberSystem = FullPrecision()

    @property
    def rounds(self) -> bool:
        """True where the tensor's values change in a member: it is quantised, to a number system that
        rounds.
        """
        return not isinstance(self.system, FullPrecision)

    @property
    def rounded_to(self) -> LowPrecision:
        """The number system of a tensor that ``rounds``."""
        assert isinstance(self.system, LowPrecision)
        return self.system

    @property
    def numel(self) -> int:
        """Number of values."""
        return self.layout.numel


def _lm_heads(model: nn.Module) -> list[Tensor]:
    heads = []
    for module in model.modules():
        ask = getattr(module, "get_output_embeddings", None)
        head = ask() if callable(ask) else None
        weight = getattr(head, "weight", None)
        if isinstance(weight, Tensor):
            heads.append(weight)
    return heads


@dataclass(frozen=True)
class _Verdict:
    """The rules' verdict on a tensor under one of its names.

    ``reach`` says which pattern of ``include`` overrules a no: "any"; "literal", one that matches nothing
    that the rules round; or "none".
    """

    quantised: bool
    reason: str
    output: Output
    reach: str = "any"


_UNKNOWN = Output("", 0)


def _left_out(module: nn.Module, attribute: str, name: str, tensor: Tensor, known: bool) -> str | None:
    """Say why a parameter is no weight that multiplies; None where it is one, or may be."""
    if tensor.dim() < 2:
        return "one-dimensional"
    if _BIAS.search(attribute):
        return "bias"
    if known and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    if POSITION.search(name):
        return "position"
    if known:
        return None
    if NORM.search(type(module).__name__) or NORM.search(attribute):
        return f"norm ({type(module).__name__})"
    if TOKEN.search(attribute):
        return "token"
    return None


def _verdict(
    module: nn.Module,
    attribute: str,
    entry: NamedTensor,
    name: str,
    heads: set[int],
    axes: tuple[object, ...] | None,
) -> _Verdict:
    tensor = entry.tensor
    if entry.kind == "buffer":
        return _Verdict(False, "buffer", _UNKNOWN, "none")
    if not torch.is_floating_point(tensor):
        return _Verdict(False, f"{tensor.dtype} values", _UNKNOWN, "none")
    output = output_of(module, attribute, tensor) if axes is None else _given_output(axes, name, tensor)
    if reason := _left_out(module, attribute, name, tensor, output is not None):
        return _Verdict(False, reason, output or _UNKNOWN, "literal")
    if output is None:
        return _Verdict(False, f"no rule for {type(module).__name__}.{attribute}", _UNKNOWN)
    if ADAPTER.search(name):
        return _Verdict(False, "adapter", output)
    if id(tensor) in heads or LM_HEAD.search(name):
        return _Verdict(False, "LM head", output)
    return _Verdict(True, output.kind, output)


def _given_output(axes: tuple[Any, ...], name: str, tensor: Tensor) -> Output:
    """Return the output dimension that the user gave, k or (0, k); InputError where the tensor lacks it."""
    shape = list(tensor.shape)
    if all(is_integer(each) and -len(shape) <= int(each) < len(shape) for each in axes):
        places = [int(each) % len(shape) for each in axes]
        if len(places) == 1:
            return Output("output axis as given", places[0])
        if len(places) == 2 and places[0] == 0 != places[1]:
            return Output("output axes as given", places[1], shape[0])
    raise InputError(
        f"output_axis of {name!r} must be a dimension of its shape {shape}, or (0, k) where each index of "
        f"the first has outputs of its own, not {shown(axes if len(axes) > 1 else axes[0])}"
    )


def _patterns(patterns: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if patterns is None:
        return None
    return check_patterns(patterns)


def select_tensors(
    model: nn.Module,
    system: Systems,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    output_axis: Mapping[str, OutputAxis] | None = None,
    tensors: Sequence[NamedTensor] | None = None,
) -> list[PlannedTensor]:
    """Plan what becomes of every tensor of a model, in the model's order.

    Args:
        model: any module.
        system: the number system, or several by name pattern (then what no pattern matches stays as it is);
            under ``FullPrecision()`` alone the same tensors count as quantised.
        include: name patterns (``fnmatch``: ``*``, ``?``, ``[…]``, on canonical names). Where given, only
            matching tensors are quantised. A pattern also reaches an LM head, an adapter and weights of a
            kind without a rule (then the first dimension is "output"). One that matches none of the weights
            that the rules round is taken at its word, and reaches positions, tokens, norms and biases too.
            None reaches a buffer or a parameter without floating-point values.
        exclude: name patterns of tensors that stay at full precision.
        output_axis: name pattern → the dimension that is "output" of the tensors that match, for what no rule
            knows or where one is wrong; the first pattern that matches counts. (0, k) gives each index of the
            first dimension (an expert, a head) outputs of its own along dimension k.
        tensors: the model's, as :func:`lpe.networks.named_tensors` lists them, where they are at hand.

    Raises:
        InputError: a pattern that matches nothing; one of several systems that rounds no tensor, or that
            earlier ones leave none; no tensor left to quantise; two names with one tensor id; a NaN or
            infinite weight among the quantised; an output dimension that a tensor does not have; a
            one-dimensional tensor that is included though a scale a value would leave it as it is.
    """
    included, excluded = _patterns(include), _patterns(exclude) or ()
    axes = _axes(output_axis)
    tensors = named_tensors(model) if tensors is None else tensors
    names_of = [(entry.name, *entry.also) for entry in tensors]
    every_name = [name for names in names_of for name in names]
    for pattern in (*(included or ()), *excluded, *axes):
        if not any(fnmatchcase(name, pattern) for name in every_name):
            raise InputError(
                f"the pattern {pattern!r} matches no tensor of the model; see describe() for names"
            )
    verdicts = _verdicts(model, tensors, names_of, axes)
    literal = {
        pattern
        for pattern in included or ()
        if not any(
            verdict.quantised and fnmatchcase(name, pattern)
            for verdict, names in zip(verdicts, names_of, strict=True)
            for name in names
        )
    }
    plan: list[PlannedTensor] = []
    of_all = FullPrecision() if isinstance(system, ByPattern) else system
    for entry, names, verdict in zip(tensors, names_of, verdicts, strict=True):
        quantised, reason = verdict.quantised, verdict.reason
        if entry.also:
            reason += f"; tied: {', '.join(entry.also)}"
        if included is not None:
            wanting = [p for p in included if any(fnmatchcase(name, p) for name in names)]
            if quantised and not wanting:
                quantised, reason = False, "not in include"
            elif not quantised and _is_reached(verdict, wanting, literal):
                quantised, reason = True, f"included ({reason})"
        if quantised and any(fnmatchcase(n, p) for n in names for p in excluded):
            quantised, reason = False, "excluded by name"
        if quantised and entry.tensor.numel() == 0:
            quantised, reason = False, "empty"
        plan.append(
            PlannedTensor(
                name=entry.name,
                shape=tuple(entry.tensor.shape),
                dtype=entry.tensor.dtype,
                bits=entry.tensor.element_size() * 8,
                quantised=quantised,
                reason=reason,
                layout=Layout(tuple(entry.tensor.shape), verdict.output.axis, verdict.output.groups),
                saved=entry.saved,
                axis_given=any(fnmatchcase(name, p) for name in names for p in axes),
                system=of_all if quantised else FullPrecision(),
            )
        )
    if isinstance(system, ByPattern):
        plan = _with_systems(plan, system, {entry.name: (entry.name, *entry.also) for entry in tensors})
    chosen = [planned for planned in plan if planned.quantised]
    if not chosen:
        raise InputError(
            f"{type(model).__name__} has no tensor to quantise among its {len(plan)} (include {included}, "
            f"exclude {excluded or None}); a weight of Linear, Conv, Embedding or attention is needed"
        )
    check_tensor_ids(planned.name for planned in chosen)
    by_name = {entry.name: entry.tensor for entry in tensors}
    for planned in chosen:
        if planned.rounds:
            _check_scaled(planned)
            check_weight(by_name[planned.name], planned.name)
    return plan


def _axes(output_axis: object) -> dict[str, tuple[object, ...]]:
    if output_axis is None:
        return {}
    if not isinstance(output_axis, Mapping) or not all(isinstance(pattern, str) for pattern in output_axis):
        raise InputError(
            f"output_axis must be a mapping of name patterns to dimensions, not {shown(output_axis)}"
        )
    return {
        pattern: given if isinstance(given, tuple) else (given,) for pattern, given in output_axis.items()
    }


def _verdicts(
    model: nn.Module,
    tensors: Sequence[NamedTensor],
    names_of: Sequence[tuple[str, ...]],
    axes: Mapping[str, tuple[object, ...]],
) -> list[_Verdict]:
    """Return the rules' verdict on each tensor: among those on its names, the hardest to overrule."""
    held_by = holders(model)
    heads = {id(head) for head in _lm_heads(model)}
    verdicts: list[_Verdict] = []
    for entry, names in zip(tensors, names_of, strict=True):
        given = next((axes[p] for p in axes if any(fnmatchcase(n, p) for n in names)), None)
        of_names = [_verdict(*held_by[name], entry, name, heads, given) for name in names]
        # A tensor tied to one that is left out is left out with it.
        order = ("none", "literal", "any")
        verdicts.append(min(of_names, key=lambda verdict: (verdict.quantised, order.index(verdict.reach))))
    return verdicts


def _is_reached(verdict: _Verdict, wanting: Sequence[str], literal: set[str]) -> bool:
    """Tell whether patterns of ``include`` that match a tensor overrule a no."""
    return bool(verdict.reach == "any" and wanting) or (
        verdict.reach == "literal" and not literal.isdisjoint(wanting)
    )


def _check_scaled(planned: PlannedTensor) -> None:
    """Raise InputError where each value would have a scale of its own: rounding would change nothing."""
    scale = getattr(planned.system, "scale", None)
    if len(planned.shape) < 2 and (scale == PerChannel() or isinstance(scale, PerBlock)):
        what = "an output channel" if scale == PerChannel() else "a block of inputs"
        raise InputError(
            f"{planned.name!r} has one dimension: a scale {what} would leave it as it is; give "
            "the system scale=PerTensor(), or leave it out of include"
        )


COVERED = 0.95
"""Share of the weights of two or more dimensions below which a note says what is not rounded."""


@dataclass(frozen=True)
class Coverage:
    """The part of a model that is rounded, among its stored parameters of two or more dimensions.

    Args:
        rounded, whole: numbers of weights.
        left: those that are not rounded, the largest first.
    """

    rounded: int
    whole: int
    left: tuple[PlannedTensor, ...]

    @classmethod
    def of(cls, plan: Sequence[PlannedTensor]) -> Coverage:
        """Return the coverage of a plan."""
        weights = [p for p in plan if p.saved and len(p.shape) > 1 and not p.reason.startswith("buffer")]
        left = sorted((p for p in weights if not p.quantised), key=lambda p: -p.numel)
        return cls(sum(p.numel for p in weights if p.quantised), sum(p.numel for p in weights), tuple(left))

    @property
    def share(self) -> float:
        """The share of the weights that is rounded: 0 … 1."""
        return self.rounded / self.whole if self.whole else 1.0

    def note(self, model: str) -> str | None:
        """Return a line that says what is not rounded, where that is more than 1 − COVERED."""
        if self.share >= COVERED:
            return None
        first = self.left[0]
        shape = "×".join(map(str, first.shape))
        return (
            f"{100 * self.share:.1f} % of {model}'s weights of two or more dimensions are rounded; "
            f"the largest that is not: {first.name}, {shape} ({first.reason}); describe() lists all"
        )


def _with_systems(
    plan: Sequence[PlannedTensor], system: ByPattern, names: Mapping[str, Sequence[str]]
) -> list[PlannedTensor]:
    """Return the plan with every quantised tensor's own number system, or none.

    Args:
        names: all names of a tensor, by the plan's.
    """
    given: list[PlannedTensor] = []
    for planned in plan:
        if planned.quantised:
            pattern, own = system.first(names[planned.name]) or ("no pattern", FullPrecision())
            reason = f"{planned.reason}; {pattern}"
            planned = replace(planned, system=own, quantised=isinstance(own, LowPrecision), reason=reason)
        given.append(planned)
    _check_patterns(system, plan, names)
    return given


def _check_patterns(
    system: ByPattern, plan: Sequence[PlannedTensor], names: Mapping[str, Sequence[str]]
) -> None:
    """Raise InputError where a pattern says nothing: no tensor is so named, so rounded, or left to it."""
    for pattern, own in system.systems:
        matched = [p for p in plan if any(fnmatchcase(name, pattern) for name in names[p.name])]
        if not matched:
            raise InputError(
                f"the pattern {pattern!r} matches no tensor of the model; see describe() for names"
            )
        if isinstance(own, LowPrecision) and not any(p.quantised for p in matched):
            raise InputError(
                f"the pattern {pattern!r} matches only tensors that are not rounded, such as "
                f"{matched[0].name!r} ({matched[0].reason}); leave it out, or name them in include= too"
            )
        first = [found[0] for p in matched if (found := system.first(names[p.name]))]
        # A last "*" says what becomes of all others, were there any.
        if pattern not in first and pattern != "*":
            raise InputError(
                f"the pattern {pattern!r} comes after {first[0]!r}, which takes its tensors; put it first"
            )


def describe_plan(plan: Sequence[PlannedTensor], title: str) -> str:
    """Return the plan as a text table: name, shape, quantised or not, why, bits a value."""
    rows = []
    for planned in plan:
        bits = grid_of(planned.rounded_to).code_bits if planned.rounds else planned.bits
        rows.append(
            (
                planned.name,
                "×".join(map(str, planned.shape)) or "scalar",
                "yes" if planned.quantised else "no",
                planned.reason + ("" if planned.saved else ", not saved"),
                str(bits),
            )
        )
    inside = sum(planned.numel for planned in plan if planned.quantised)
    outside = sum(planned.numel for planned in plan if not planned.quantised and planned.saved)
    footer = f"{inside:,} values quantised, {outside:,} stored values at their own precision"
    return text_table(title, ("tensor", "shape", "quantised", "why", "bits"), rows, footer)
