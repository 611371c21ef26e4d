"""The same bits on every make of CPU: which kernels torch and numpy choose.

torch, MKL, oneDNN and OpenBLAS choose their kernels by the CPU that they find. Kernels differ in the order of
sums, and training carries a last bit far. These variables have them choose by what every x86-64 CPU with AVX2
has:

    ATEN_CPU_CAPABILITY=avx2     torch's own loops: softmax, GELU, …
    MKL_CBWR=COMPATIBLE          torch's matrix products, exp, erf: MKL's one branch for every make
    ONEDNN_MAX_CPU_ISA=AVX2      torch's convolutions
    OPENBLAS_CORETYPE=Haswell    numpy's matrix products

They are read once, so an entry point calls ``begin`` before it imports anything else. A variable that is
set already stays as it is. ``LPE_SAME_BITS=0`` sets none; ``LPE_SAME_BITS=1`` sets them at every scale, where
large matrix products take five times as long. Two CPUs then give the same bits at the same versions of
packages and the same number of threads.

Of torch's functions, MKL's branch computes sqrt, atan, asin, acos, tan, log2, log10 and float64's log from
approximations of the CPU (rsqrtps, rcpps), which Intel and AMD do not share: of these only a square root is
used in training, and ``lpe.training.roots`` takes it otherwise.

Nothing here imports torch or numpy.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from reproduce.scales import DEFAULT, SAME_BITS

VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
NEEDED = ("matplotlib", "ivon")
"""Packages of the extra ``reproduce`` that a command imports before it can say anything of its own."""

EVERYWHERE = "the same on every x86-64 CPU with AVX2"
OWN = "of this kind of CPU"


def begin(arguments: Sequence[str]) -> None:
    """Begin a command: choose the kernels, and let an interruption end it in a line while it imports torch.

    From then on ``lpe.interruption.answered`` hears it.

    Args:
        arguments: as of :func:`choose`.

    Raises:
        SystemExit: a package of ``NEEDED`` is not installed, or no folder takes temporary files; see also
            :func:`choose`.
    """
    check_installed()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_by)
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:  # matplotlib asks for one when it is imported
        print(f"error: {error.strerror}; set TMPDIR to a folder that can be written to", file=sys.stderr)
        raise SystemExit(2) from None
    choose(arguments)


def check_installed() -> None:
    """End the command with one line where a package of ``NEEDED`` is not installed."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            # lpe's own error would import torch.
            print(
                f"error: {package} is not installed; install what figures need by "
                "pip install -c constraints.txt -e '.[reproduce]'",
                file=sys.stderr,
            )
            raise SystemExit(2)


def _end_by(number: int, frame: FrameType | None) -> NoReturn:
    # Importing lpe's own way to say it would import torch.
    os.write(2, b"interrupted; the same command goes on from here\n")
    os._exit(128 + number)


def choose(arguments: Sequence[str]) -> str:
    """Set the variables that are not set, where the command's scale asks for it; they reach child processes.

    Args:
        arguments: the command line after the program's name, read for ``--scale``.

    Returns:
        "set", or why nothing was set.

    Raises:
        SystemExit: ``LPE_SAME_BITS`` is something else than 0 and 1; one line says so.
    """
    asked = os.environ.get("LPE_SAME_BITS", "")
    if asked not in ("", "0", "1"):
        # lpe's own error would import torch.
        print(f"error: LPE_SAME_BITS must be 0 or 1, not {asked!r}; or leave it unset", file=sys.stderr)
        raise SystemExit(2)
    if asked == "0":
        return "LPE_SAME_BITS=0"
    if asked != "1" and _scale(arguments) not in SAME_BITS:
        return "the scale does not ask for it"
    if not _has_avx2():
        return "this is no Linux on an x86-64 CPU with AVX2"
    missing = {name: value for name, value in VARIABLES.items() if name not in os.environ}
    imported = [name for name in ("torch", "numpy") if name in sys.modules]
    if missing and imported:
        return f"too late: {imported[0]} is imported already"
    os.environ.update(missing)
    return "set"


def bits(kernels: Mapping[str, Any]) -> str:
    """Return on which CPUs these kernels give the same bits.

    Args:
        kernels: what ``lpe.provenance.kernels`` returned, there or in a provenance file.
    """
    chosen = kernels["capability"] == "AVX2" and kernels["mkl"] and kernels["variables"] == VARIABLES
    return EVERYWHERE if chosen else OWN


def _scale(arguments: Sequence[str]) -> str:
    """Return the scale that the command line names, as the commands' own parsers will read it."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--scale", default=DEFAULT)
    try:
        return str(parser.parse_known_args(list(arguments))[0].scale)
    except argparse.ArgumentError:  # a --scale without a name: the command's own parser says so
        return ""


def _has_avx2() -> bool:
    """Return whether this is Linux on an x86-64 CPU with AVX2; torch would not ask, and crash without it."""
    if platform.machine() != "x86_64":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "avx2" in flags and "fma" in flags
