"""Keeps freed memory in a process that evaluates and trains on a CPU, and knows when there is none left.

glibc gives each freed block of some size back to the system at once. The system clears its pages again at the
next allocation: passes of a ResNet-20 over images of 32 × 32 spent a third of their time so (0.85 of 2.56
seconds a thousand images; one thread of an AMD EPYC, glibc 2.36; benchmarks/freed_memory.py).
"""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
BYTES = {
    MMAP_THRESHOLD: 256 * 2**20,  # larger blocks, such as whole models, still go back when they are freed
    TRIM_THRESHOLD: 512 * 2**20,
    TOP_PAD: 64 * 2**20,
}
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
