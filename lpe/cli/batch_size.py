"""``--batch-size``: a number, or the largest that a GPU has room for."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from lpe.command_line import integer

AUTO = "auto"
LARGEST = 1024
"""Examples of a batch that is found: from there on a larger one is no faster."""


def batch_size(text: str) -> int | str:
    """Return the option's value: a whole number or ``AUTO``.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    if text == AUTO:
        return text
    try:
        return integer(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


def fitting(run: Callable[[int], object], device: torch.device, usual: int) -> int:
    """Return the largest power of two of examples whose pass takes at most half of a GPU's memory.

    Half, for members, sums and batches on their way are there too. Batches are tried from one example on,
    twice as many each time. Where there is no GPU it is the usual size: on a CPU a pass that has no room ends
    the process, and the size changes little.

    Args:
        run: makes a pass of so many examples. usual: the size without a GPU.

    Raises:
        torch.OutOfMemoryError: there is no room for a single example.
    """
    if device.type != "cuda":
        return usual
    room = torch.cuda.get_device_properties(device).total_memory // 2
    return largest(run, lambda: torch.cuda.max_memory_allocated(device), room)


def largest(run: Callable[[int], object], peak: Callable[[], int], room: int) -> int:
    """Return the largest power of two up to LARGEST of which a pass's peak is at most ``room`` bytes, or 1.

    Args:
        run: makes a pass of so many examples. peak: bytes that were taken at most so far.

    Raises:
        torch.OutOfMemoryError: there is no room for a single example.
    """
    found, size = 0, 1
    while size <= LARGEST:
        try:
            run(size)
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
        if found and peak() > room:
            break
        found, size = size, 2 * size
    return found
