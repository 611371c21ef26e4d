"""Memory of the CPU: freed blocks kept by a process, new ones in huge pages, and whether there is none left.

glibc gives each freed block of some size back to the system at once. The system clears its pages again at the
next allocation: passes of a ResNet-20 over images of 32 × 32 spent a third of their time so (0.85 of 2.56
seconds a thousand images; one thread of an AMD EPYC, glibc 2.36; benchmarks/freed_memory.py).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
BYTES = {
    MMAP_THRESHOLD: 256 * 2**20,  # larger blocks, such as whole models, still go back when they are freed
    TRIM_THRESHOLD: 512 * 2**20,
    TOP_PAD: 64 * 2**20,
}
HUGE = 8 * 2**20
"""Bytes from which new memory is asked for in huge pages, of 2 MiB: smaller blocks are mostly reused."""
VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory left, of this machine or of a card of its."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def keep_freed_memory() -> bool:
    """Let this process keep blocks below 256 MiB that it frees, up to half a GiB at the end of its heap.

    It changes no result, only how long allocations take. It holds for the process as a whole, so commands
    call it, and no library function. Settings of the user's own in the environment (mallopt(3): ``MALLOC_…``;
    ``GLIBC_TUNABLES``) stay as they are.

    Returns:
        whether it was set: the C library is glibc, and the environment sets nothing.
    """
    own = any(name in os.environ for name in (*VARIABLES, "GLIBC_TUNABLES"))
    if own or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, size) == 1 for name, size in BYTES.items()])


def new_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return ``torch.empty``, on Linux in huge pages where it is large and of the CPU.

    The system clears a page when it is first written to: 16,384 times in 64 MiB, which took twice as long as
    rounding that many weights. In pages of 2 MiB it is done 32 times. Where the system has no huge pages at
    hand, or is told to give none, it gives small ones.
    """
    made = torch.empty(shape, dtype=dtype, device=device)
    if made.device.type == "cpu" and made.nbytes >= HUGE and (advise := _madvise()):
        start = -(-made.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (made.data_ptr() + made.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)
    return made


@cache
def _madvise() -> Any:
    """Return the C library's madvise, or None where there is none that knows of huge pages."""
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    return ctypes.CDLL(None).madvise
