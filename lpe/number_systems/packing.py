"""Codes ⇄ bytes: b bits a code, densely, little-endian.

A code is stored as the index of its level, in the b bits that tell the levels apart: a code c of integers,
−q … q, as c + q, any other as it is. The bits of all codes follow one another, the lowest bit of each first,
and the last byte is filled with zeros.

:func:`packed_with_numpy` and :func:`unpacked_with_numpy` are the definition; large tensors go through
``fast_packing``, which gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems.codes import check_codes
from lpe.number_systems.grids import LowPrecision, grid_of
from lpe.number_systems.kernels.reference import code_type

FAST = 1 << 16
"""Codes from which on importing numba pays."""

_CHUNK = 1 << 20  # codes at a time, a multiple of 8: every chunk ends on a byte

_Bytes = NDArray[np.uint8]


def packed_bytes(count: int, system: LowPrecision) -> int:
    """Return the bytes that ``count`` codes take."""
    return -(-count * grid_of(system).code_bits // 8)


def pack(codes: Tensor, system: LowPrecision) -> Tensor:
    """Pack codes as ``encode`` gives them, of any shape, row-major: uint8 [packed_bytes].

    Raises:
        InputError: codes of another dtype than encode's, or that no level has.
    """
    grid = grid_of(system)
    check_codes(codes, system)
    flat = codes.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    if len(flat) < FAST:
        return torch.from_numpy(packed_with_numpy(flat, grid.lowest_code, grid.code_bits))
    from lpe.number_systems.fast_packing import pack_into

    packed = np.empty(packed_bytes(len(flat), system), np.uint8)
    pack_into(packed, flat, grid.lowest_code % 256, grid.code_bits)
    return torch.from_numpy(packed)


def unpack(packed: Tensor, shape: tuple[int, ...], system: LowPrecision) -> Tensor:
    """Return the codes of ``shape``, as ``encode`` gave them.

    Raises:
        InputError: the bytes are not as many as the shape needs, or hold a code that no level has.
    """
    grid = grid_of(system)
    count = torch.Size(shape).numel()
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise InputError(
            f"packed codes are uint8 in one row, not {packed.dtype} of shape {list(packed.shape)}"
        )
    if len(packed) != packed_bytes(count, system):
        raise InputError(
            f"{len(packed)} bytes do not hold {count} codes of {grid.code_bits} bits; "
            f"{packed_bytes(count, system)} are needed"
        )
    if count < FAST:
        codes, largest = unpacked_with_numpy(packed.numpy(), count, grid.lowest_code, grid.code_bits)
    else:
        from lpe.number_systems.fast_packing import unpack_into

        codes = np.empty(count, np.uint8)
        largest = unpack_into(codes, packed.numpy(), grid.lowest_code % 256, grid.code_bits)
    if largest >= len(grid.levels):
        raise InputError(f"the bytes hold a code that {system.name} does not have; the file is damaged")
    return torch.from_numpy(codes).view(code_type(grid)).reshape(shape)


def packed_with_numpy(codes: _Bytes, lowest: int, bits: int) -> _Bytes:
    """Pack codes [count], whose bytes are read as unsigned; ``lowest`` is the lowest code."""
    parts = [
        np.packbits(
            np.unpackbits(
                (codes[start : start + _CHUNK] - np.uint8(lowest % 256))[:, None],
                axis=1,
                count=bits,
                bitorder="little",
            ),
            bitorder="little",
        )
        for start in range(0, len(codes), _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def unpacked_with_numpy(packed: _Bytes, count: int, lowest: int, bits: int) -> tuple[_Bytes, int]:
    """Return codes [count], their bytes unsigned, and the largest index among them (0 of none)."""
    weights = (1 << np.arange(bits)).astype(np.uint8)
    indices = np.empty(count, np.uint8)
    step = _CHUNK * bits // 8
    for chunk, start in enumerate(range(0, len(packed), step)):
        place = slice(chunk * _CHUNK, min((chunk + 1) * _CHUNK, count))
        held = np.unpackbits(
            packed[start : start + step], count=(place.stop - place.start) * bits, bitorder="little"
        )
        indices[place] = held.reshape(-1, bits) @ weights
    return indices + np.uint8(lowest % 256), int(indices.max(initial=0))
