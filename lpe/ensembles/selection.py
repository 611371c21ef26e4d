"""Which tensors are quantised, and which dimension of each is "output".

Quantised: weights that multiply (Linear, Conv, attention projections also where they are bare parameters,
Embedding; classifier heads too). Not: biases, norms, one-dimensional parameters, positional and class
tokens, buffers, the LM head and whatever is tied to an excluded tensor. Every tensor comes back with its
reason, so that nothing is skipped silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.modules import holders, named_tensors
from lpe.number_systems.grids import FullPrecision, NumberSystem
from lpe.number_systems.layouts import Layout
from lpe.number_systems.rounding import check_weight
from lpe.number_systems.streams import check_tensor_ids

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Kind of module → (its weight's parameter names, the dimension that is "output").
KINDS: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...], int], ...] = (
    (_TRANSPOSED, ("weight",), 1),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), ("weight",), 0),
    ((nn.Linear, nn.Bilinear), ("weight",), 0),
    ((nn.Embedding, nn.EmbeddingBag), ("weight",), 0),
    (
        (nn.MultiheadAttention,),
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
        0,
    ),
)

# Bare parameters by name, in any module: `x @ proj` and `x @ text_projection` (open_clip) have output second.
BARE = {
    "in_proj_weight": 0,
    "q_proj_weight": 0,
    "k_proj_weight": 0,
    "v_proj_weight": 0,
    "proj": 1,
    "text_projection": 1,
}

_NORM = re.compile(r"norm|^bn\d*$|^ln_|FilterResponse", re.IGNORECASE)
_POSITION = re.compile(
    r"(^|[._])(wpe|pos|posi?tion(al)?s?|rel_pos|relative_position)([._]|_?emb|$)"
    r"|pos_embed|position_bias|relative_attention_bias",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"(cls|class|reg|dist|mask|register|distillation)_?(tokens?|embedding)$|latent", re.IGNORECASE
)
_LM_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.weight$")


@dataclass(frozen=True)
class PlannedTensor:
    """What becomes of one tensor of a model.

    Args:
        name: canonical name. shape, dtype, bits: its shape, type and bits a value at its own precision.
        quantised: whether it is rounded; ``reason`` says why, or why not.
        layout: how it is seen as [out, everything else] (meaningful where quantised).
        saved: whether it is part of a saved model; a buffer that the model computes anew is not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int
    quantised: bool
    reason: str
    layout: Layout
    saved: bool

    @property
    def numel(self) -> int:
        """Number of values."""
        return self.layout.numel


def _is_gpt2_conv1d(module: nn.Module) -> bool:
    # By name: importing transformers to ask would cost seconds, and its models may not be in use.
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _axis(module: nn.Module, attribute: str) -> tuple[str, int] | None:
    """(kind, output axis) of a module's parameter that multiplies; None where no rule knows it."""
    if _is_gpt2_conv1d(module) and attribute == "weight":
        return ("Conv1D", 1)
    for types, attributes, axis in KINDS:
        if isinstance(module, types) and attribute in attributes:
            return (type(module).__name__, axis)
    if attribute in BARE:
        return (f"projection of {type(module).__name__}", BARE[attribute])
    return None


def _lm_heads(model: nn.Module) -> list[Tensor]:
    heads = []
    for module in model.modules():
        ask = getattr(module, "get_output_embeddings", None)
        head = ask() if callable(ask) else None
        weight = getattr(head, "weight", None)
        if isinstance(weight, Tensor):
            heads.append(weight)
    return heads


def _never(module: nn.Module, attribute: str, name: str, tensor: Tensor) -> str | None:
    """Why a parameter is never quantised, whatever ``include`` says; None where it may be."""
    if tensor.dim() < 2:
        return "one-dimensional"
    if attribute == "bias" or attribute.endswith("_bias") or attribute in ("bias_k", "bias_v"):
        return "bias"
    rule = _axis(module, attribute)
    if rule and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    if _POSITION.search(name):
        return "position"
    if rule:
        return None
    if _NORM.search(type(module).__name__) or _NORM.search(attribute):
        return f"norm ({type(module).__name__})"
    if _TOKEN.search(attribute):
        return "token"
    return None


def _patterns(patterns: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if patterns is None:
        return None
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def select_tensors(
    model: nn.Module,
    system: NumberSystem,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> list[PlannedTensor]:
    """What becomes of every tensor of a model, in the model's order.

    Args:
        model: any module.
        system: the number system; under ``FullPrecision()`` the same tensors count as quantised.
        include: name patterns (``fnmatch``: ``*``, ``?``, ``[…]``, on canonical names). Where given, only
            matching tensors are quantised. A pattern also reaches weights that the default rule leaves out
            for being an LM head or of a kind without a rule (then the first dimension is "output"), never
            biases, norms, one-dimensional parameters, positions, tokens or buffers.
        exclude: name patterns of tensors that stay at full precision.

    Raises:
        InputError: a pattern that matches nothing; no tensor left to quantise; two names with one tensor
            id; a NaN or infinite weight among the quantised.
    """
    included, excluded = _patterns(include), _patterns(exclude) or ()
    held_by = holders(model)
    heads = {id(head) for head in _lm_heads(model)}
    plan: list[PlannedTensor] = []
    tensors = named_tensors(model)
    every_name = [name for entry in tensors for name in (entry.name, *entry.also)]
    for pattern in (*(included or ()), *excluded):
        if not any(fnmatchcase(name, pattern) for name in every_name):
            raise InputError(
                f"the pattern {pattern!r} matches no tensor of the model; see describe() for names"
            )

    for entry in tensors:
        tensor = entry.tensor
        names = (entry.name, *entry.also)
        verdicts = [_default_verdict(*held_by[name], name, tensor, entry.kind, heads) for name in names]
        # A tensor tied to one that is left out is left out with it.
        quantised, reason, axis, groups, final = min(verdicts, key=lambda verdict: (verdict[0], -verdict[4]))
        if entry.also:
            reason += f"; tied: {', '.join(entry.also)}"
        wanted = included is None or any(fnmatchcase(n, p) for n in names for p in included)
        if included is not None and not final:
            if wanted and not quantised:
                quantised, reason = True, f"included ({reason})"
            elif quantised and not wanted:
                quantised, reason = False, "not in include"
        if quantised and any(fnmatchcase(n, p) for n in names for p in excluded):
            quantised, reason = False, "excluded by name"
        if quantised and tensor.numel() == 0:
            quantised, reason = False, "empty"
        plan.append(
            PlannedTensor(
                name=entry.name,
                shape=tuple(tensor.shape),
                dtype=tensor.dtype,
                bits=tensor.element_size() * 8,
                quantised=quantised,
                reason=reason,
                layout=Layout(tuple(tensor.shape), axis, groups),
                saved=entry.saved,
            )
        )
    chosen = [planned for planned in plan if planned.quantised]
    if not chosen:
        raise InputError(
            f"{type(model).__name__} has no tensor to quantise among its {len(plan)} (include {included}, "
            f"exclude {excluded or None}); a weight of Linear, Conv, Embedding or attention is needed"
        )
    check_tensor_ids(planned.name for planned in chosen)
    if not isinstance(system, FullPrecision):
        by_name = {entry.name: entry.tensor for entry in tensors}
        for planned in chosen:
            check_weight(by_name[planned.name], planned.name)
    return plan


def _default_verdict(
    module: nn.Module, attribute: str, name: str, tensor: Tensor, kind: str, heads: set[int]
) -> tuple[bool, str, int, int, bool]:
    """(quantised, reason, output axis, channel groups, whether ``include`` can't change it) of one name."""
    if kind == "buffer":
        return (False, "buffer", 0, 1, True)
    if not torch.is_floating_point(tensor):
        return (False, f"{tensor.dtype} values", 0, 1, True)
    if reason := _never(module, attribute, name, tensor):
        return (False, reason, 0, 1, True)
    rule = _axis(module, attribute)
    if rule is None:
        return (False, f"no rule for {type(module).__name__}.{attribute}", 0, 1, False)
    reason, axis = rule
    groups = int(getattr(module, "groups", 1)) if isinstance(module, _TRANSPOSED) else 1
    if id(tensor) in heads or _LM_HEAD.search(name):
        return (False, "LM head", axis, groups, False)
    return (True, reason, axis, groups, False)


def describe_plan(plan: Sequence[PlannedTensor], quantised_bits: int | None, title: str) -> str:
    """The plan as a text table: name, shape, quantised or not, why, bits a value."""
    rows = []
    for planned in plan:
        bits = quantised_bits if planned.quantised and quantised_bits is not None else planned.bits
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
