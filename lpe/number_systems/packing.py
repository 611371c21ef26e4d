"""Codes ⇄ bytes: b bits a code, densely, little-endian.

A code is stored as the index of its level, in b bits: a code c of integers, −q … q, as c + q, any other as
it is. The bits of all codes follow one another, the lowest bit of each first, and the last byte is filled
with zeros.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems.grids import LowPrecision, grid_of
from lpe.number_systems.kernels.reference import code_type

_CHUNK = 1 << 20  # codes at a time, a multiple of 8: every chunk ends on a byte


def packed_bytes(count: int, system: LowPrecision) -> int:
    """Bytes that ``count`` codes take."""
    return -(-count * system.bits // 8)


def pack(codes: Tensor, system: LowPrecision) -> Tensor:
    """Pack codes as ``encode`` gives them, of any shape, row-major: uint8 [packed_bytes]."""
    indices = codes.detach().cpu().reshape(-1).to(torch.int16) - grid_of(system).lowest_code
    shifted = indices.to(torch.uint8).numpy()
    parts = [
        np.packbits(
            np.unpackbits(
                shifted[start : start + _CHUNK, None], axis=1, count=system.bits, bitorder="little"
            ),
            bitorder="little",
        )
        for start in range(0, len(shifted), _CHUNK)
    ]
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.uint8))


def unpack(packed: Tensor, shape: tuple[int, ...], system: LowPrecision) -> Tensor:
    """The codes of ``shape``, as ``encode`` gave them.

    Raises:
        InputError: the bytes are not as many as the shape needs, or hold a code that no level has.
    """
    grid = grid_of(system)
    count = torch.Size(shape).numel()
    if len(packed) != packed_bytes(count, system):
        raise InputError(
            f"{len(packed)} bytes do not hold {count} codes of {system.bits} bits; "
            f"{packed_bytes(count, system)} are needed"
        )
    weights = (1 << np.arange(system.bits)).astype(np.uint8)
    raw = packed.numpy()
    codes = np.empty(count, np.int16)
    step = _CHUNK * system.bits // 8
    for chunk, start in enumerate(range(0, len(raw), step)):
        place = slice(chunk * _CHUNK, min((chunk + 1) * _CHUNK, count))
        bits = np.unpackbits(
            raw[start : start + step], count=(place.stop - place.start) * system.bits, bitorder="little"
        )
        codes[place] = bits.reshape(-1, system.bits) @ weights
    if count and int(codes.max()) >= len(grid.levels):
        raise InputError(f"the bytes hold a code that {system.name} does not have; the file is damaged")
    return torch.from_numpy(codes + grid.lowest_code).to(code_type(grid)).reshape(shape)
