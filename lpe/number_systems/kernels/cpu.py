"""The rounding on a CPU: machine code by numba, see ``cpu_code``, on torch's number of threads."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpe.allocator import new_memory
from lpe.number_systems.grids import Grid, PerTensor, ScaleAxis
from lpe.number_systems.kernels import cpu_code, reference, teams
from lpe.number_systems.kernels.arguments import Coded, Draw, Rounded, Scales, Stored
from lpe.number_systems.kernels.reference import code_type
from lpe.number_systems.layouts import Layout
from lpe.number_systems.streams import LANES, tensor_id

WORTH_A_TEAM = 1 << 15
WORTH_A_POOL = 1 << 19
"""Elements, over all members, that are worth other threads: torch's grain size where they are torch's own,
half a millisecond's where a pool has to be woken.
"""

PIECES = 8
"""Pieces of a thread, where there are as many chunks: a core that is busy elsewhere holds up one only."""

PART = 1 << 20
"""Elements at a time of types that go through float32, such as float16."""

MAGNITUDES = 1 << 15
"""Elements that a thread looks through at a time for the largest."""

_ROUNDINGS = {
    "nearest": cpu_code.NEAREST,
    "bernoulli": cpu_code.BERNOULLI,
    "coupled": cpu_code.COUPLED,
    "lower": cpu_code.LOWER,
}
_DIRECT = {torch.float32: cpu_code.FLOAT32, torch.bfloat16: cpu_code.BFLOAT16}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


_PIECE = cpu_code.Head._fields.index("piece")
_WRITTEN, _WRITTEN_LENGTH, _ROUNDING = map(
    cpu_code.Work._fields.index, ("written", "written_length", "rounding")
)
_KEY = list(map(cpu_code.Work._fields.index, ("key_low", "key_high")))
_MEMBERS = list(map(cpu_code.Work._fields.index, ("member", "members")))


@dataclass(frozen=True)
class _Kept:
    """An array for the machine code, with its address."""

    values: np.ndarray
    address: int
    length: int

    @classmethod
    def of(cls, values: np.ndarray) -> _Kept:
        return cls(values, values.ctypes.data, len(values))


_NO_FLOATS = np.empty(0, np.float32)
_NO_HALVES = np.empty(0, np.uint16)
_WHOLE = _Kept.of(np.zeros(1, np.int64))


@cache
def _levels(grid: Grid) -> tuple[_Kept, _Kept]:
    """Return levels, float32, and the lower neighbours' lookup, uint8 [4096]; a uniform grid uses neither."""
    lookup = np.zeros(cpu_code.LOOKUP_LENGTH, np.int64)
    levels = _NO_FLOATS
    if not grid.uniform:
        levels = np.array(grid.levels, np.float32)
        highest = np.arange(cpu_code.LOOKUP_LENGTH, dtype=np.uint32) << np.uint32(20)
        negative = highest >> np.uint32(31) == 1
        least = np.where(negative, highest | np.uint32(0xFFFFF), highest).view(np.float32)
        # Bits of NaN and of infinities: no v has them.
        least = np.where(np.isfinite(least), least, np.float32(np.inf))
        lookup = np.searchsorted(levels[1:-1], least, side="right")
        lookup[negative & ~np.isfinite(least)] = 0
    return _Kept.of(levels), _Kept.of(lookup.astype(np.uint8))


@cache
def _place(layout: Layout, axis: ScaleAxis) -> _Kept:
    """Return the numbers that tell an element's group: see ``cpu_code._group_run``."""
    numel = layout.numel
    if isinstance(axis, PerTensor) or not numel:
        return _Kept.of(np.array([2, max(numel, 1), 1, 1, 1, 1, 1, 1, 1], np.int64))
    row_extent, column_extent = axis.extent(layout.rows, layout.columns)
    group_columns = layout.scale_shape(axis)[1]
    common = [numel, layout.columns, row_extent, column_extent, group_columns]
    if layout.by_rows:
        return _Kept.of(np.array([0, *common, 1, 1, 1], np.int64))
    return _Kept.of(np.array([1, *common, layout.inputs, layout.outputs, layout.after], np.int64))


def _of_scales(scales: Scales) -> tuple[_Kept, _Kept, _Kept]:
    """Return s, 1/s [groups] and what tells an element's group; kept with the scales for small weights."""
    kept: dict[str, Any] = scales.__dict__
    if "_arrays" not in kept:
        place = _place(scales.layout, scales.axis)
        values, inverses = scales.values.contiguous().numpy(), scales.inverses.contiguous().numpy()
        kept["_arrays"] = (_Kept.of(values), _Kept.of(inverses), place)
    arrays: tuple[_Kept, _Kept, _Kept] = kept["_arrays"]
    return arrays


@lru_cache(maxsize=1 << 14)
def _identity(name: str) -> int:
    return tensor_id(name)


def _work(
    weight: Stored,
    scales: Scales,
    grid: Grid,
    draw: Draw,
    members: int,
    starts: _Kept,
    length: int,
    write_kind: int,
    written: int,
    origin: int = 0,
) -> cpu_code.Work:
    """Return a weight's arguments; what they point to is the caller's to keep.

    Args:
        weight: flat and contiguous, of a type that the machine code reads. written: the output's address.
        starts, length, write_kind, origin: see :func:`_run`.
    """
    if isinstance(weight, Coded):
        read, read_kind = weight.codes, cpu_code.CODES
        base_levels = _levels(weight.grid)[0]
        base_scales, _, base_place = _of_scales(weight.scales)
    else:
        read, read_kind = weight, _DIRECT[weight.dtype]
        base_levels = base_scales = base_place = _WHOLE  # not read
    levels, lookup = _levels(grid)
    values, inverses, place = _of_scales(scales)
    row = -(-length // LANES) if write_kind == cpu_code.PLANES else length
    return cpu_code.Work(
        read_kind,
        read.data_ptr(),
        read.numel(),
        base_levels.address,
        base_levels.length,
        base_scales.address,
        base_scales.length,
        base_place.address,
        write_kind,
        written,
        members * starts.length * row,
        values.address,
        inverses.address,
        values.length,
        place.address,
        levels.address,
        levels.length,
        lookup.address,
        grid.zero,
        grid.uniform,
        _ROUNDINGS[draw.rounding],
        draw.seed & 0xFFFFFFFF,
        draw.seed >> 32,
        _identity(draw.name),
        draw.member,
        members,
        starts.length,
        length,
        starts.address,
        origin,
        cpu_code.chunks_of(starts.length, length),
    )


def _threads(elements: int, chunks: int) -> int:
    worth = WORTH_A_TEAM if teams.uses_openmp() else WORTH_A_POOL
    return torch.get_num_threads() if elements >= worth and chunks > 1 else 1


def _piece(chunks: int, threads: int) -> int:
    return max(1, chunks // (PIECES * threads))


def _run(
    weight: Stored,
    scales: Scales,
    grid: Grid,
    draw: Draw,
    members: int,
    starts: _Kept,
    length: int,
    write_kind: int,
    out: Tensor,
    origin: int = 0,
) -> None:
    """Spread the work over threads.

    Args:
        weight: flat, of a type that the machine code reads. starts: the first element of each segment.
        length: of each. out: contiguous [members, segments, length], of the type of ``write_kind``; of planes
            [members, ⌈length / 8⌉].
        origin: the element that the first of ``weight`` is.
    """
    weight = _contiguous(weight)
    work = _work(weight, scales, grid, draw, members, starts, length, write_kind, out.data_ptr(), origin)
    assert out.is_contiguous() and out.numel() == work.written_length  # only the address goes on from here
    threads = _threads(members * starts.length * length, work.chunks)
    head = cpu_code.Head(1, work.chunks, _piece(work.chunks, threads), 0)
    numbers = array("q", [*head, *work])  # of a list, for which it has a quick way
    teams.run(cpu_code.share.address, numbers.buffer_info()[0], threads)


def _contiguous(weight: Stored) -> Stored:
    if isinstance(weight, Tensor):
        return weight.contiguous()
    if weight.codes.is_contiguous():
        return weight
    return Coded(weight.codes.contiguous(), weight.scales, weight.grid)


class Plan:
    """Weights that are rounded together by one call; see ``kernels.Plan``.

    Those of types that go through float32, such as float16, are rounded after the others, one by one. What
    the table points to is held here, so it stays where it is as long as the plan.
    """

    def __init__(self, tensors: Sequence[Rounded]) -> None:
        self._tensors = list(tensors)
        self._direct: list[int] = []
        self._held: list[Stored] = []
        works: list[cpu_code.Work] = []
        chunks = 0
        for place, tensor in enumerate(self._tensors):
            weight = _contiguous(tensor.weight)
            as_it_is = tensor.dtype in _DIRECT and (
                weight.codes is tensor.weight.codes
                if isinstance(weight, Coded) and isinstance(tensor.weight, Coded)
                else isinstance(weight, Tensor) and weight is tensor.weight and weight.dtype in _DIRECT
            )
            if not as_it_is or not weight.numel():
                continue
            self._direct.append(place)
            self._held.append(weight)
            kind = _DIRECT[tensor.dtype]
            draw = Draw("nearest", 0, tensor.name, 0)
            work = _work(weight, tensor.scales, tensor.grid, draw, 1, _WHOLE, weight.numel(), kind, 0)
            chunks += work.chunks
            works.append(work._replace(chunks=chunks))
        self._elements = sum(work.length for work in works)
        self._chunks = chunks
        self._lengths = np.array([work.length for work in works], np.int64)
        numbers = [*cpu_code.Head(len(works), chunks, 1, 0), *(number for work in works for number in work)]
        self._table = np.array(numbers, np.int64)

    def round_into(self, outs: Sequence[Tensor], draw: Draw, members: int = 1) -> None:
        """Write the members' values; see ``kernels.Plan.round_into``."""
        assert len(outs) == len(self._tensors)
        for out, tensor in zip(outs, self._tensors, strict=True):
            # Only the address goes on from here.
            assert out.is_contiguous() and out.dtype == tensor.dtype
            assert out.numel() == members * tensor.weight.numel()
        if self._direct:
            threads = _threads(members * self._elements, self._chunks)
            table = self._table.copy()  # another thread may be at it, too
            table[_PIECE] = _piece(self._chunks, threads)
            works = table[len(cpu_code.Head._fields) :].reshape(-1, len(cpu_code.Work._fields))
            works[:, _WRITTEN] = [outs[place].data_ptr() for place in self._direct]
            works[:, _WRITTEN_LENGTH] = members * self._lengths
            works[:, _ROUNDING] = _ROUNDINGS[draw.rounding]
            works[:, _KEY] = draw.seed & 0xFFFFFFFF, draw.seed >> 32
            works[:, _MEMBERS] = draw.member, members
            teams.run(cpu_code.share.address, table.ctypes.data, threads)
        if len(self._direct) < len(self._tensors):
            direct = set(self._direct)
            for place, tensor in enumerate(self._tensors):
                if place not in direct:
                    out = outs[place].view(members, 1, tensor.weight.numel())
                    own = replace(draw, name=tensor.name)
                    round_into(out, tensor.weight, tensor.scales, tensor.grid, own)


plan = Plan


def absmax(weight: Tensor, layout: Layout, axis: ScaleAxis) -> Tensor:
    """Return the largest |w| of each scale group; see ``reference.absmax``."""
    if weight.dtype not in _FLOATS or not weight.numel():
        return reference.absmax(weight, layout, axis)
    weight = weight.contiguous()
    length = weight.numel()
    rows, columns = layout.scale_shape(axis)
    found = np.zeros(rows * columns, np.int64)
    place = _place(layout, axis)
    by_columns = place.values[0] == 1 and layout.after == 1
    threads = _threads(length, 2)
    work = cpu_code.Magnitudes(
        weight.element_size(),
        weight.data_ptr(),
        length,
        place.address,
        layout.outputs if by_columns else 0,
        found.ctypes.data,
        len(found),
        max(1, MAGNITUDES // layout.outputs) if by_columns else MAGNITUDES,
        0,
    )
    numbers = array("q", list(work))
    teams.run(cpu_code.magnitudes.address, numbers.buffer_info()[0], threads)
    bits = torch.from_numpy(found)
    if weight.dtype == torch.float32:
        return bits.to(torch.int32).view(torch.float32)
    if weight.dtype == torch.float64:
        return bits.view(torch.float64).float()
    return bits.to(torch.int16).view(weight.dtype).float()


def _parts(
    weight: Stored, starts: Tensor | None, length: int, whole: bool
) -> Iterator[tuple[Stored, int, _Kept, slice | None, slice | None]]:
    """Yield the work in one part or, not ``whole``, in parts of PART elements.

    Yields:
        stored weights that the machine code reads as they are, the element that the first of them is, the
        starts and, of the outputs, the segments and the places (None: all of them).
    """
    firsts = _WHOLE if starts is None else _Kept.of(starts.contiguous().numpy())
    direct = isinstance(weight, Coded) or weight.dtype in _DIRECT
    if whole and direct:
        yield weight, 0, firsts, None, None
        return
    for segment, first in enumerate(firsts.values.tolist()):
        for offset in range(0, length, PART):
            place = slice(offset, min(offset + PART, length))
            here = (_Kept.of(np.array([first + offset])), slice(segment, segment + 1), place)
            if isinstance(weight, Coded) or direct:
                yield weight, 0, *here
            else:
                yield weight[first + offset : first + place.stop].float(), first + offset, *here


def encode(
    weight: Stored,
    scales: Scales,
    grid: Grid,
    draw: Draw,
    members: int = 1,
    starts: Tensor | None = None,
    length: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return codes [members, segments, length]; see ``reference.encode``."""
    if starts is None:
        length = weight.numel()
    assert length is not None
    shape = (members, 1 if starts is None else len(starts), length)
    codes = new_memory(shape, code_type(grid), "cpu") if out is None else out
    if not codes.numel():
        return codes
    for part, origin, firsts, segment, place in _parts(weight, starts, length, whole=True):
        piece = codes if segment is None else codes[:, segment, place].contiguous()
        _run(part, scales, grid, draw, members, firsts, piece.shape[2], cpu_code.CODES, piece, origin)
        if segment is not None and members > 1:  # the piece was a copy
            codes[:, segment, place] = piece
    return codes


def planes(weight: Stored, scales: Scales, grid: Grid, draw: Draw, members: int = 1) -> Tensor:
    """Return the Bernoulli bits [members, ⌈elements / 8⌉]; see ``reference.planes``."""
    count = weight.numel()
    packed = torch.empty((members, -(-count // LANES)), dtype=torch.uint8, device="cpu")
    if not packed.numel():
        return packed
    for part, origin, firsts, _, place in _parts(weight, None, count, whole=True):
        length, piece = count, packed
        if place is not None:  # of a multiple of 8 elements, but for the last
            length = place.stop - place.start
            where = slice(place.start // LANES, -(-place.stop // LANES))
            piece = packed[:, where].contiguous()
        _run(part, scales, grid, draw, members, firsts, length, cpu_code.PLANES, piece, origin)
        if place is not None and members > 1:  # the piece was a copy
            packed[:, where] = piece
    return packed


def round_into(
    out: Tensor, weight: Stored, scales: Scales, grid: Grid, draw: Draw, starts: Tensor | None = None
) -> None:
    """Write values into ``out`` [members, segments, length]; see ``reference.round_into``."""
    if not out.numel():
        return
    members, _, length = out.shape
    direct = out.dtype in _DIRECT
    for part, origin, firsts, segment, place in _parts(weight, starts, length, whole=direct):
        piece = out if segment is None else out[:, segment, place]
        values = piece
        if not (direct and piece.is_contiguous()):
            values = torch.empty(piece.shape, dtype=out.dtype if direct else torch.float32, device="cpu")
        kind = _DIRECT[values.dtype]
        _run(part, scales, grid, draw, members, firsts, piece.shape[2], kind, values, origin)
        if values is not piece:
            piece.copy_(values)


def decode(codes: Tensor, scales: Scales, grid: Grid, dtype: torch.dtype, start: int = 0) -> Tensor:
    """Return the values of flat codes; see ``reference.decode``."""
    stored = dtype if dtype == torch.bfloat16 else torch.float32
    values = new_memory(codes.shape, stored, "cpu")
    if codes.numel():
        is_float = values.dtype is torch.float32
        scale_values, _, place = _of_scales(scales)
        cpu_code.decode(
            _DIRECT[values.dtype],
            values.numpy() if is_float else _NO_FLOATS,
            _NO_HALVES if is_float else values.view(torch.uint16).numpy(),
            codes.contiguous().view(torch.int8).numpy(),
            scale_values.values,
            place.values,
            _levels(grid)[0].values,
            start,
            len(codes),
        )
    return values.to(dtype)
