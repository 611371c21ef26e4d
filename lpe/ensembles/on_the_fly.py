"""All members of a low precision ensemble as one module, which holds the stored weights and no member's.

The members' batches go through the network as one batch, member by member: [members·examples, …]. Norms,
attention and residuals are the network's own code. Where a quantised weight was stands a placeholder without
memory, and a function that is given it is computed for all members:

    Linear, GPT-2's Conv1D, x @ weight   a block of the stored weight's rows at a time: the block is read
                                         once, all members' values of it are drawn, one batched product
    Embedding                            only the rows that are looked up are drawn, each once
    re-estimated batch-norm statistics     all members' at once: a factor and a summand for each channel
    convolutions, attention's projections inside ``F.multi_head_attention_forward``, weights that
    are computed from a quantised one    a member at a time, from its whole weight

What matters: it draws every weight anew in each pass, which a single batch amortises over its examples and
over nothing else. Members one at a time over many batches draw each weight once, whatever is computed.

With ``storage="planes"`` nothing is drawn in a pass. The members are drawn once, when the module is made, and
kept as the lower neighbours, b bits a weight for all of them, and one bit a weight and member; the functions
above take their values from there. A Linear of few positions a member is multiplied without writing them.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map

from lpe.ensembles.base import text_table
from lpe.ensembles.batch_norm import MemberStatistics
from lpe.ensembles.selection import PlannedTensor
from lpe.ensembles.tiling import examples_of, tile
from lpe.errors import InputError
from lpe.logits import check_type
from lpe.modules import apply, with_tensors
from lpe.number_systems.kernels import planes as bit_planes
from lpe.number_systems.kernels.arguments import Draw, Scales, Stored
from lpe.number_systems.kernels.planes import Planes
from lpe.number_systems.rounding import members_into
from lpe.surroundings import apart

BLOCK_BYTES = 1 << 22
BLOCK_ROWS = 256
"""The size of a block of a weight: all members' values of it take BLOCK_BYTES, or it has as many rows as a
member has positions, up to BLOCK_ROWS, where that is more (many positions by few rows read the inputs too
often). Measured, see benchmarks/on_the_fly.py: blocks for an L2 cache of 512 kB lose, for each costs a call.
"""

BLOCKS, ROWS, WHOLE = "in blocks, for all members", "the rows looked up", "whole, a member at a time"
MULTIPLIED = "multiplied as bit planes"
"""The ways in which a weight is drawn, and the one in which it is not."""

STORAGES = ("generator", "planes")
"""What a module draws from: the stored weights anew in each pass, or the bit planes of its members."""


class Rounded(Protocol):
    """The interface of an ensemble whose members are roundings; see ``LowPrecisionEnsemble``."""

    model: nn.Module
    plan: list[PlannedTensor]
    batch_norm: MemberStatistics | None

    def __len__(self) -> int: ...

    def member(self, index: int) -> nn.Module: ...

    def stored(self, name: str) -> Stored: ...

    def scales(self, name: str) -> Tensor: ...

    def draw(self, name: str, index: int) -> Draw: ...

    def planes(self, name: str) -> tuple[Tensor, Tensor]: ...

    def check_planes(self) -> None: ...

    def check_unchanged(self) -> None: ...

    def check_reach(self, inputs: Any) -> None: ...


@dataclass
class _Pass:
    """The pass that is under way; every weight of a module sees this object."""

    members: int
    examples: int = 0

    def by_member(self, values: Tensor, name: str, dimension: int = 0) -> Tensor:
        """Split the values of all members: [members·n, …] → [members, n, …], at ``dimension``."""
        if isinstance(values, _Weight):
            values = values.of_members.of_each_members_own(self)
        length = values.shape[dimension] if values.dim() > dimension else 0
        if not self.examples or length % (self.members * self.examples) or not length:
            raise InputError(
                f"{name!r} meets a tensor of shape {list(values.shape)}, of which dimension {dimension} is "
                f"not that of the batch, {self.examples} examples of {self.members} members: members cannot "
                "be told apart there; take the members one by one"
            )
        return values.unflatten(dimension, (self.members, -1))


class _Weight(Tensor):
    """A placeholder of a quantised weight: NaN, of its shape and without memory."""

    of_members: _Values

    @staticmethod
    def of(values: _Values, like: Tensor) -> _Weight:
        """Make a placeholder of the shape, type and device of ``like``."""
        placeholder = torch.full((), torch.nan, dtype=like.dtype, device=like.device)
        weight = placeholder.expand(like.shape).as_subclass(_Weight)
        weight.of_members = values
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        result = NotImplemented if handler is None else handler(*args, **(kwargs or {}))
        return _computed(func, args, kwargs or {}) if result is NotImplemented else result


class _Values(ABC):
    """The members' values of a weight."""

    name: str

    @abstractmethod
    def member(self, index: int) -> Tensor:
        """Return one member's values, of the weight's shape."""

    def of_each_members_own(self, run: _Pass) -> Tensor:
        """Return each member's values for its own examples, where they were computed for the whole batch."""
        parts = [run.by_member(self.member(m), self.name)[m] for m in range(run.members)]
        return torch.cat(parts)


@dataclass
class _Drawn(_Values):
    """The members' values of a quantised weight, drawn from the stored one when asked for.

    Args:
        keep: hold all members' values once they are drawn.
        planes: the members, where they are kept so; then nothing is drawn.
        how: which of the ways to draw it were used.
    """

    ensemble: Rounded
    planned: PlannedTensor
    run: _Pass
    keep: bool
    planes: Planes | None = None
    how: set[str] = field(default_factory=set)
    kept: Tensor | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.planned.name

    @property
    def device(self) -> torch.device:
        """The device on which the stored weight lies."""
        return self.ensemble.scales(self.name).device

    def into(self, out: Tensor, first: int, starts: Tensor | None) -> Tensor:
        """Draw members ``first`` … into ``out`` [members, segments, length]; returns it."""
        ensemble, planned = self.ensemble, self.planned
        if self.planes is not None:
            bit_planes.of(self.device).round_into(out, self.planes, first, starts)
            return out
        members_into(
            out,
            ensemble.stored(self.name),
            ensemble.scales(self.name),
            planned.rounded_to,
            planned.layout,
            ensemble.draw(self.name, first),
            starts,
        )
        return out

    def held(self) -> Tensor | None:
        """Return all members' values [members, *the weight's shape], where they are kept; else None."""
        if self.keep and self.kept is None:
            out = torch.empty(
                (self.run.members, 1, self.planned.numel), dtype=self.planned.dtype, device=self.device
            )
            self.kept = self.into(out, 0, None).view(self.run.members, *self.planned.shape)
        return self.kept

    def member(self, index: int) -> Tensor:
        self.how.add(WHOLE)
        if (held := self.held()) is not None:
            return held[index]
        out = torch.empty((1, 1, self.planned.numel), dtype=self.planned.dtype, device=self.device)
        return self.into(out, index, None).view(self.planned.shape)

    def products(self, inputs: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return inputs [members, positions, in] times each member's weights, [members, positions, out].

        None where they are not kept as planes, or are better written in blocks first.
        """
        if self.planes is None:
            return None
        backend = bit_planes.of(self.device)
        if not backend.multiplies(self.planes, inputs.shape[1], dtype):
            return None
        self.how.add(MULTIPLIED)
        return backend.multiply(inputs, self.planes, dtype)

    def blocks(self, dtype: torch.dtype, positions: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield a matrix's rows start … stop − 1 of all members, block by block: [members, rows, columns].

        A block is gone with the next one. ``positions``: of a member, with which each block is multiplied.
        """
        self.how.add(BLOCKS)
        rows, columns = self.planned.shape
        if (held := self.held()) is not None:
            yield 0, rows, held.to(dtype)
            return
        members = self.run.members
        in_bytes = BLOCK_BYTES // (members * columns * dtype.itemsize)
        block = min(rows, max(1, in_bytes, min(positions, BLOCK_ROWS)))
        buffer = torch.empty(members * block * columns, dtype=dtype, device=self.device)
        for start in range(0, rows, block):
            stop = min(start + block, rows)
            values = buffer[: members * (stop - start) * columns].view(members, 1, -1)
            starts = torch.tensor([start * columns], device=self.device)
            yield start, stop, self.into(values, 0, starts).view(members, stop - start, columns)

    def rows(self, indices: Tensor) -> Tensor:
        """Return the rows ``indices`` (int64 [n]) of a matrix, of all members: [members, n, columns]."""
        self.how.add(ROWS)
        if (held := self.held()) is not None:
            return held[:, indices]
        columns = self.planned.shape[1]
        out = torch.empty(
            (self.run.members, len(indices), columns), dtype=self.planned.dtype, device=self.device
        )
        return self.into(out, 0, indices * columns)


@dataclass
class _Stacked(_Values):
    """The members' values of a buffer that each has of its own: [members, …]."""

    name: str
    values: Tensor
    run: _Pass

    def member(self, index: int) -> Tensor:
        return self.values[index]


@dataclass
class _Computed(_Values):
    """Values that a function makes of a weight, computed for a member when asked for."""

    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    name: str
    place: int | None

    def member(self, index: int) -> Tensor:
        args, kwargs = _of_member((self.args, self.kwargs), index)
        result = self.func(*args, **kwargs)
        found: Tensor = result if self.place is None else tree_flatten(result)[0][self.place]
        return found


def _of_member(values: Any, index: int) -> Any:
    """Return arguments with each weight as one member has it."""
    return tree_map(lambda v: v.of_members.member(index) if isinstance(v, _Weight) else v, values)


def _weights_in(values: Any) -> list[_Weight]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, _Weight)]


_WRITING = {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "matmul", "and", "or", "xor", "pow")
} | {
    "__set__",
    "__setitem__",
}


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function that has no handler of its own, on placeholders.

    What is no tensor, such as a shape, is returned as it is. A tensor becomes a placeholder in turn, whose
    values are computed, for each member, when they are asked for.
    """
    first = _weights_in((args, kwargs))[0]
    called = getattr(func, "__name__", str(func))
    if "out" in kwargs or called in _WRITING or (called.endswith("_") and not called.endswith("__")):
        raise InputError(
            f"the model changes {first.of_members.name!r}, or something by it, in place ({called}); take the "
            "members one by one"
        )
    with torch._C.DisableTorchFunctionSubclass():
        shown = func(*args, **kwargs)
    flat = tree_flatten(shown)[0]
    if not any(isinstance(value, Tensor) for value in flat):
        return shown
    if isinstance(shown, Tensor):
        if shown is first:
            return first
        return _Weight.of(_Computed(func, args, kwargs, first.of_members.name, None), shown)
    made = [
        _Weight.of(_Computed(func, args, kwargs, first.of_members.name, place), value)
        if isinstance(value, Tensor)
        else value
        for place, value in enumerate(flat)
    ]
    return type(shown)(made) if isinstance(shown, tuple | list) and len(made) == len(shown) else shown


def _pass_of(*values: Any) -> _Pass:
    """Return the pass that a weight among the values belongs to."""
    return next(_root(weight.of_members).run for weight in _weights_in(values))


def _root(values: _Values) -> _Drawn | _Stacked:
    while isinstance(values, _Computed):
        values = _weights_in((values.args, values.kwargs))[0].of_members
    assert isinstance(values, _Drawn | _Stacked)
    return values


def _each_member(func: Callable[..., Tensor], inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Call a function of the batch and of weights for one member after another."""
    weight = _weights_in((inputs, args, kwargs))[0].of_members
    parts = _pass_of(inputs, args, kwargs).by_member(inputs, weight.name)
    outputs = []
    for index, part in enumerate(parts):
        own_args, own_kwargs = _of_member((args, kwargs), index)
        outputs.append(func(part, *own_args, **own_kwargs))
    return torch.cat(outputs)


def _product(inputs: Tensor, weight: _Weight, bias: Tensor | None, outputs_first: bool) -> Tensor:
    """Multiply inputs [members·n, …, in] by each member's weights [out, in] or [in, out]."""
    drawn = weight.of_members
    assert isinstance(drawn, _Drawn)
    run = drawn.run
    dtype = weight.dtype
    if torch.is_autocast_enabled(inputs.device.type):
        dtype = torch.get_autocast_dtype(inputs.device.type)
        inputs, bias = inputs.to(dtype), None if bias is None else bias.to(dtype)
    grouped = run.by_member(inputs, drawn.name)
    flat = grouped.reshape(run.members, -1, grouped.shape[-1])
    width = weight.shape[0 if outputs_first else 1]
    if outputs_first and (products := drawn.products(flat, dtype)) is not None:
        out = products if bias is None else products.add_(bias)
        return out.view(*inputs.shape[:-1], width)
    out = torch.empty((*flat.shape[:2], width), dtype=dtype, device=inputs.device)
    if not outputs_first:
        out[:] = 0.0 if bias is None else bias
    for start, stop, values in drawn.blocks(dtype, flat.shape[1]):
        if not outputs_first:
            # A block is of inputs, and gives a part of the sum of every output.
            out.baddbmm_(flat[:, :, start:stop], values)
        elif bias is None:
            torch.bmm(flat, values.mT, out=out[:, :, start:stop])
        else:
            torch.baddbmm(bias[start:stop], flat, values.mT, out=out[:, :, start:stop])
    return out.view(*inputs.shape[:-1], width)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, _Weight) or weight.dim() != 2:
        return NotImplemented
    if isinstance(weight.of_members, _Drawn) and not isinstance(bias, _Weight):
        return _product(inputs, weight, bias, outputs_first=True)
    return _each_member(F.linear, inputs, weight, bias)


def _addmm(bias: Tensor, inputs: Tensor, weight: Tensor, **scaled: Any) -> Any:
    of_conv1d = isinstance(weight, _Weight) and not isinstance(inputs, _Weight) and bias.dim() == 1
    if not of_conv1d or isinstance(bias, _Weight) or scaled:
        return NotImplemented
    assert isinstance(weight, _Weight)
    if isinstance(weight.of_members, _Drawn):
        return _product(inputs, weight, bias, outputs_first=False)
    return _each_member(lambda values, matrix: torch.addmm(bias, values, matrix), inputs, weight)


def _matmul(inputs: Tensor, weight: Tensor) -> Any:
    if not isinstance(weight, _Weight) or weight.dim() != 2 or inputs.dim() < 2:
        return NotImplemented
    if isinstance(weight.of_members, _Drawn):
        return _product(inputs, weight, None, outputs_first=False)
    return _each_member(torch.matmul, inputs, weight)


def _embedding(
    indices: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *_: Any,
    **__: Any,
) -> Any:
    if not isinstance(weight, _Weight):
        return NotImplemented
    if max_norm is not None:
        raise InputError(
            f"{weight.of_members.name!r} is an embedding with max_norm, which changes it in place; take the "
            "members one by one"
        )
    if not isinstance(weight.of_members, _Drawn):
        return _each_member(F.embedding, indices, weight)
    drawn = weight.of_members
    run = drawn.run
    if indices.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"{drawn.name!r} is looked up by {indices.dtype}; indices must be torch.int64 or torch.int32"
        )
    rows, places = run.by_member(indices, drawn.name).unique(return_inverse=True)
    # The rows are sorted, and a GPU has been waited for to count them.
    low, high = rows[[0, -1]].tolist() if len(rows) else (0, 0)
    if low < 0 or high >= len(weight):
        raise InputError(
            f"the inputs look up row {low if low < 0 else high} of {drawn.name!r}, which has rows 0 to "
            f"{len(weight) - 1}"
        )
    values = drawn.rows(rows.long())
    offsets = torch.arange(run.members, device=indices.device) * len(rows)
    places = places + offsets.view(-1, *[1] * (places.dim() - 1))
    return F.embedding(places.flatten(0, 1), values.flatten(0, 1))


_ATTENTION = inspect.signature(F.multi_head_attention_forward)


def _attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Call ``F.multi_head_attention_forward``, whose batch comes second: [tokens, members·n, embedding]."""
    given = _ATTENTION.bind(*args, **kwargs).arguments
    weight = _weights_in(given)[0].of_members
    run = _pass_of(given)
    split: dict[int, Tensor] = {}
    for name in ("query", "key", "value"):
        # One tensor for all three stays one: attention then projects it once.
        split[id(given[name])] = run.by_member(given[name], weight.name, 1)
    masks = {}
    for name in ("key_padding_mask", "attn_mask", "static_k", "static_v"):
        mask = given.get(name)
        if mask is not None and (mask.dim() == 3 or name == "key_padding_mask"):
            masks[name] = run.by_member(mask, weight.name)
    outputs: list[Tensor] = []
    weights: list[Any] = []
    for index in range(run.members):
        of_member = {id_: values[:, index] for id_, values in split.items()}
        own = _of_member(given, index)
        own |= {name: of_member[id(given[name])] for name in ("query", "key", "value")}
        own |= {name: mask[index] for name, mask in masks.items()}
        output, attended = F.multi_head_attention_forward(**own)
        outputs.append(output)
        weights.append(attended)
    return torch.cat(outputs, dim=1), None if weights[0] is None else torch.cat(weights)


def _batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if isinstance(inputs, _Weight) or not isinstance(running_mean, _Weight):
        return NotImplemented  # timm's standardised weights are made by it
    mean, variance = running_mean.of_members, getattr(running_var, "of_members", None)
    together = isinstance(mean, _Stacked) and isinstance(variance, _Stacked)
    if not together or training or _weights_in((weight, bias)):
        return _each_member(
            F.batch_norm, inputs, running_mean, running_var, weight, bias, training, momentum, eps
        )
    assert isinstance(mean, _Stacked) and isinstance(variance, _Stacked)
    grouped = mean.run.by_member(inputs, mean.name)
    factor = (variance.values + eps).rsqrt() * (1.0 if weight is None else weight)
    summand = (0.0 if bias is None else bias) - mean.values * factor
    shape = (len(factor), 1, -1, *[1] * (grouped.dim() - 3))
    return (grouped * factor.view(shape) + summand.view(shape)).to(inputs.dtype).flatten(0, 1)


def _itself(weight: Tensor, *_: Any) -> Tensor:
    return weight


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.mm: _matmul,
    F.embedding: _embedding,
    F.batch_norm: _batch_norm,
    F.multi_head_attention_forward: _attention,
    **{
        convolution: lambda *args, _of=convolution, **kwargs: _each_member(_of, *args, **kwargs)
        for convolution in (
            torch.conv1d,
            torch.conv2d,
            torch.conv3d,
            torch.conv_transpose1d,
            torch.conv_transpose2d,
            torch.conv_transpose3d,
        )
    },
    Tensor.detach: _itself,
    Tensor.requires_grad_: _itself,
}


def planes_of(ensemble: Rounded) -> dict[str, Planes]:
    """Return the members' bit planes of every tensor that is rounded, by name, where the tensor lies.

    Raises:
        InputError: members that have no planes, see :meth:`LowPrecisionEnsemble.check_planes`.
    """
    ensemble.check_planes()
    found = {}
    for planned in ensemble.plan:
        if planned.rounds:
            lower, planes = ensemble.planes(planned.name)
            scales = Scales.of(ensemble.scales(planned.name), planned.layout, planned.rounded_to.scale)
            found[planned.name] = Planes.of(lower, planes, scales, planned.rounded_to)
    return found


class AllMembers(nn.Module):
    """All members of an ensemble as one module; see :meth:`LowPrecisionEnsemble.as_module`.

    Args:
        keep: hold the members once they are drawn: for passes over many batches, of networks so small that
            their members together are.
        planes: the members' bit planes by the tensor's name, of all tensors that are rounded
            (:func:`planes_of`): the members are read from there. None: they are drawn in each pass.

    Attributes:
        members: how many.
    """

    @apart()
    def __init__(
        self, ensemble: Rounded, keep: bool = False, planes: Mapping[str, Planes] | None = None
    ) -> None:
        super().__init__()
        self.members = len(ensemble)
        self._ensemble = ensemble
        self._keep = keep
        self._planes = planes
        self._pass = _Pass(self.members)
        self._drawn: dict[str, _Drawn] = {}
        self._is_checked = False
        placeholders: dict[str, Tensor] = {}
        for planned in ensemble.plan:
            if planned.rounds:
                kept = None if planes is None else planes[planned.name]
                drawn = _Drawn(ensemble, planned, self._pass, keep, kept)
                self._drawn[planned.name] = drawn
                like = torch.empty((), dtype=planned.dtype, device=drawn.device)
                placeholders[planned.name] = _Weight.of(drawn, like.expand(planned.shape))
        statistics = ensemble.batch_norm
        if statistics is not None and not statistics.alike:
            of_each = [statistics.of_member(index, ensemble.member) for index in range(self.members)]
            for name in statistics.names:
                stacked = _Stacked(name, torch.stack([each[name] for each in of_each]), self._pass)
                placeholders[name] = _Weight.of(stacked, of_each[0][name])
        elif statistics is not None:
            placeholders |= statistics.of_member(0, ensemble.member)
        self.network = with_tensors(ensemble.model, placeholders)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits [members, examples, classes].

        Args:
            The batch as :func:`lpe.evaluate` has it, a tensor, tuple, list or dict, or as the network takes
            it, by position or by keyword. The examples come first in every tensor.

        Raises:
            InputError: inputs both by position and by keyword; a model whose members cannot be told apart by
                the first dimension, or that is not computed right for all members at once.
        """
        if args and kwargs:
            raise InputError("give the inputs by position or by keyword, not some by each")
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        self._ensemble.check_unchanged()
        if self._is_checked:
            return self._logits(inputs)
        self._ensemble.check_reach(inputs)
        logits = self._first_logits(inputs)
        index = self.members - 1
        self._check(apply(self._ensemble.member(index), inputs), logits[index])
        self._is_checked = True
        return logits

    def _logits(self, inputs: Any) -> Tensor:
        if not self._drawn:
            return apply(self.network, inputs).expand(self.members, -1, -1)
        self._pass.examples = examples_of(inputs) or 0
        try:
            logits = apply(self.network, tile(inputs, self.members))
            if isinstance(logits, _Weight):
                logits = logits.of_members.of_each_members_own(self._pass)
        finally:
            self._pass.examples = 0
        return logits.unflatten(0, (self.members, -1))

    def _first_logits(self, inputs: Any) -> Tensor:
        """Return the first batch's logits; on an error run one member alone, to tell whose fault it is.

        At once first, since an index outside an embedding is refused there, and on a GPU ends the program if
        one member looks it up.
        """
        try:
            return self._logits(inputs)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            failed = error
        check_type(apply(self._ensemble.member(self.members - 1), inputs))  # raises what is the model's own
        what = str(failed).strip().partition("\n")[0].rstrip(".") or type(failed).__name__
        raise InputError(
            f"{type(self._ensemble.model).__name__} runs one member, but not all at once ({what}); take the "
            "members one by one"
        )

    def _epsilon(self, dtype: torch.dtype) -> float:
        """Return the coarsest epsilon of the logits' dtype and the weights': logits may be cast."""
        of_weights = {weight.dtype for weight in self._ensemble.model.parameters()}
        floating = {each for each in of_weights if each.is_floating_point}
        return max(torch.finfo(each).eps for each in {dtype, *floating})

    def _check(self, alone: Tensor, together: Tensor) -> None:
        """Raise InputError unless a member's logits are its own, to the square root of an epsilon."""
        name = type(self._ensemble.model).__name__
        check_type(alone)
        if alone.shape != together.shape:
            raise InputError(
                f"{name} gives logits of shape {list(together.shape)} for a member among all, and of "
                f"{list(alone.shape)} for it alone; take the members one by one"
            )
        finite = alone.isfinite()
        same = torch.allclose(alone[~finite], together[~finite], equal_nan=True)
        a, b = alone[finite].double(), together[finite].double()
        scale = float(a.abs().max()) if len(a) else 0.0
        error = float((a - b).abs().max()) if len(a) else 0.0
        if not same or not error <= scale * self._epsilon(alone.dtype) ** 0.5:
            raise InputError(
                f"{name} gives other logits for a member among all members than for it alone (by {error:.3g} "
                f"of up to {scale:.3g}): it mixes the examples of a batch, or keeps the batch elsewhere than "
                "first; take the members one by one"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> AllMembers:
        # There is nothing to copy: the weights are the ensemble's.
        return AllMembers(self._ensemble, self._keep, self._planes)

    def train(self, mode: bool = True) -> AllMembers:
        """Stay in eval mode, as members do."""
        super().train(False)
        return self

    def _apply(self, *_: Any, **__: Any) -> AllMembers:
        raise InputError(
            "all members as a module cannot be moved or cast, since the ensemble is not moved with it: move "
            "the model, then make the ensemble and its module anew"
        )

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: there would be nothing in it that the ensemble has not."""
        raise InputError("all members as a module hold no weights of their own; save the ensemble: lpe.save")

    def describe(self) -> str:
        """Tabulate the tensors: name, shape, and how each was drawn so far, or that it is shared."""
        rows = []
        for planned in self._ensemble.plan:
            drawn = self._drawn.get(planned.name)
            how = "shared" if drawn is None else "; ".join(sorted(drawn.how)) or "not used yet"
            rows.append((planned.name, "×".join(map(str, planned.shape)) or "scalar", how, planned.reason))
        whole = sum(d.planned.numel for d in self._drawn.values() if WHOLE in d.how)
        every = sum(d.planned.numel for d in self._drawn.values())
        title = f"{self.members} members of {type(self._ensemble.model).__name__} as one module"
        what = "drawn anew" if self._planes is None else "read from bit planes"
        footer = f"{every:,} values {what} in each pass, {whole:,} of them whole, a member at a time"
        return text_table(title, ("tensor", "shape", "drawn", "why"), rows, footer)
