"""Packing at the speed of memory: what ``packing`` defines in numpy, in numba and equal to it byte for byte.

Eight codes of b bits are b bytes: they are put together in one 64-bit word. ``packing`` imports this module
when it first meets a tensor that is large enough to pay for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, or take its machine code from the disk, where it is kept if possible."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache
        return njit(nogil=True)(function)


@_compiled
def pack_into(packed: _Bytes, codes: _Bytes, lowest: int, bits: int) -> None:
    """Pack codes.

    Args:
        packed: written, [⌈codes · bits / 8⌉]. codes: those of ``encode``, their bytes read as unsigned.
        lowest: the lowest code modulo 256. bits: 1 … 8.
    """
    count = len(codes)
    whole = count // 8
    lowest8, mask = np.uint8(lowest), np.uint8((1 << bits) - 1)
    if bits == 8:  # many at a time: nothing moves
        for element in range(count):
            packed[element] = codes[element] - lowest8
        return
    for group in range(whole):
        word = np.uint64(0)
        for lane in range(8):
            index = np.uint8(codes[8 * group + lane] - lowest8) & mask
            word |= np.uint64(index) << np.uint64(bits * lane)
        for byte in range(bits):
            packed[bits * group + byte] = np.uint8((word >> np.uint64(8 * byte)) & np.uint64(0xFF))
    word = np.uint64(0)
    for lane in range(count - 8 * whole):
        index = np.uint8(codes[8 * whole + lane] - lowest8) & mask
        word |= np.uint64(index) << np.uint64(bits * lane)
    for byte in range(len(packed) - bits * whole):
        packed[bits * whole + byte] = np.uint8((word >> np.uint64(8 * byte)) & np.uint64(0xFF))


@_compiled
def unpack_into(codes: _Bytes, packed: _Bytes, lowest: int, bits: int) -> int:
    """Unpack codes; the arguments are :func:`pack_into`'s, and ``codes`` is written.

    Returns:
        The largest index among them, 0 of none.
    """
    count = len(codes)
    whole = count // 8
    lowest8, mask = np.uint8(lowest), np.uint64((1 << bits) - 1)
    largest = np.uint8(0)
    if bits == 8:
        for element in range(count):
            largest = max(largest, packed[element])
            codes[element] = packed[element] + lowest8
        return int(largest)
    for group in range(whole):
        word = np.uint64(0)
        for byte in range(bits):
            word |= np.uint64(packed[bits * group + byte]) << np.uint64(8 * byte)
        for lane in range(8):
            index = np.uint8((word >> np.uint64(bits * lane)) & mask)
            largest = max(largest, index)
            codes[8 * group + lane] = index + lowest8
    word = np.uint64(0)
    for byte in range(len(packed) - bits * whole):
        word |= np.uint64(packed[bits * whole + byte]) << np.uint64(8 * byte)
    for lane in range(count - 8 * whole):
        index = np.uint8((word >> np.uint64(bits * lane)) & mask)
        largest = max(largest, index)
        codes[8 * whole + lane] = index + lowest8
    return int(largest)


@njit(cache=True, nogil=True)
def add_bits(codes: _Bytes, lower: _Bytes, plane: _Bytes, last: np.uint8) -> bool:
    """Write lower neighbours plus the bits of a plane.

    Args:
        codes: written, [elements]. lower: of as many, their bytes read as unsigned. plane: [⌈elements / 8⌉].
        last: the last level's code modulo 256.

    Returns:
        Whether any bit is above the last level.
    """
    count = len(lower)
    above = np.uint8(0)
    for byte in range(count // 8):
        bits = plane[byte]
        for lane in range(8):
            bit = (bits >> np.uint8(lane)) & np.uint8(1)
            code = lower[8 * byte + lane]
            above |= bit & np.uint8(code == last)
            codes[8 * byte + lane] = code + bit
    for element in range(count // 8 * 8, count):
        bit = (plane[element // 8] >> np.uint8(element % 8)) & np.uint8(1)
        above |= bit & np.uint8(lower[element] == last)
        codes[element] = lower[element] + bit
    return above != 0
