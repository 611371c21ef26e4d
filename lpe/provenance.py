"""The provenance of a run: its configuration as plain data, and where and with what it ran."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lpe.errors import InputError
from lpe.hashes import with_hashes
from lpe.writing import write_text_atomic

REPOSITORY = Path(__file__).resolve().parent.parent

PACKAGES = (
    "torch",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "ivon-opt",
    "open_clip_torch",
    "lm-eval",
    "transformers",
    "safetensors",
    "numba",
    "triton",
    "matplotlib",
    "wandb",
)

KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
)
"""Environment variables by which torch, MKL, oneDNN, OpenBLAS and numpy choose a CPU's kernels."""


def plain_data(value: object, name: str) -> Any:
    """Return configuration as JSON data: a dataclass becomes its fields and its class's name, a tuple a list.

    The class's name is kept because two classes may have the same fields and mean different things.

    Args:
        name: what the value is called, for the error: ``"config"``.

    Raises:
        InputError: something in it is not plain data (it names the place): an object of another
            type, a number that is not finite, a key that is not text.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}; a finite number is expected")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: plain_data(getattr(value, field.name), f"{name}.{field.name}")
            for field in dataclasses.fields(value)
        }
        return {"class": type(value).__name__} | fields
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{name} has the key {key!r}; text is expected")
        return {key: plain_data(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(each, f"{name}[{place}]") for place, each in enumerate(value)]
    raise InputError(
        f"{name} is of type {type(value).__name__}; numbers, text, lists, mappings, dataclasses are expected"
    )


def provenance(
    command: Sequence[str],
    config: Mapping[str, object],
    device: str,
    seeds: Sequence[int],
    threads: int,
    started: float,
    cost: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Return where a record comes from, as JSON data.

    Absolute paths (in the command and in the configuration) become relative to the repository, or
    their last part where they lie outside it: records are published, home folders are not.

    Args:
        command: ``sys.argv``.
        config: every hyper-parameter, as plain data or dataclasses.
        device: as torch names it: ``"cpu"``, ``"cuda:0"``.
        threads: the number of threads that torch computes with.
        started: ``time.time()`` at the start, in seconds.
        cost: what it took in all, in this run and before; None: the run is all.

    Raises:
        InputError: the configuration is not plain data.
    """
    arguments = [os.path.abspath(each) if os.path.isfile(each) else each for each in command[:1]] + [
        *command[1:]
    ]
    return {
        "command": shlex.join(without_folders(argument) for argument in arguments),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        # A clock may be set back meanwhile.
        "wall_seconds": max(0.0, round(time.time() - started, 3)),
        **({} if cost is None else {"cost": plain_data(cost, "cost")}),
        "git": revision(),
        "python": platform.python_version(),
        "packages": _package_versions(),
        "device": machine(device),
        "kernels": kernels(),
        "threads": threads,
        "seeds": list(seeds),
        "config": without_folders(plain_data(config, "config")),
    }


def write_provenance(
    path: str | os.PathLike[str],
    command: Sequence[str],
    config: Mapping[str, object],
    device: str,
    seeds: Sequence[int],
    threads: int,
    started: float,
    cost: Mapping[str, object] | None = None,
    records: Iterable[Path] = (),
) -> None:
    """Write ``provenance`` of the same arguments as JSON, atomically.

    Args:
        records: files beside it, which are written: with the hash of each, and of itself, under "sha256"; see
            :mod:`lpe.hashes`.
    """
    content = provenance(command, config, device, seeds, threads, started, cost)
    if files := list(records):
        content = with_hashes(content, Path(path).name, files)
    write_text_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def kernels() -> dict[str, Any]:
    """Return what chooses the kernels of this process on its CPU, of which the last bits of a result depend.

    Returns:
        ``make``: who made the CPU, as it says itself: "GenuineIntel", "AuthenticAMD". ``capability``: the
        instructions that torch's own kernels use, as torch says: "AVX2", "AVX512". ``mkl``: whether torch has
        MKL. ``variables``: those of KERNEL_VARIABLES that are set.
    """
    import torch

    return {
        "make": _of_cpu("vendor_id") or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "variables": {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ},
    }


def without_folders(value: Any) -> Any:
    """Return data with each absolute path, also after "=", relative to the repository or its last part."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    if not isinstance(value, str):
        return value
    option, equals, after = value.partition("=")
    if equals and os.path.isabs(after):
        return f"{option}={without_folders(after)}"
    if not os.path.isabs(value):
        return value
    path = Path(value).resolve()
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name


RECORDS = ("figures", "benchmarks/results")
"""Folders of what is measured: a record is written before its provenance, which would call it a change."""


def revision() -> dict[str, Any]:
    """Return the repository's git revision, and whether the working tree differs from it, RECORDS aside."""

    def answer(*arguments: str) -> str:
        # No optional locks: asking must not disturb a git command that runs at the same time.
        said = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            timeout=30,
        ).stdout
        return os.fsdecode(said).strip()  # paths, in whatever letters the locale has

    try:
        # Installed into an environment inside somebody else's repository, its revision says nothing.
        if Path(answer("rev-parse", "--show-toplevel")).resolve() != REPOSITORY:
            return {"revision": "unknown", "dirty": False}
        apart = [f":(top,exclude){folder}" for folder in RECORDS]
        changes = answer("status", "--porcelain", "--", ".", *apart)
        return {"revision": answer("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return {"revision": "unknown", "dirty": False}


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine(device: str) -> dict[str, Any]:
    """Return a device as torch names it, the make of the processor and its cores, and of a card its name."""
    cpu = _of_cpu("model name") or platform.processor() or platform.machine()
    described: dict[str, Any] = {"device": device, "cpu": cpu, "cores": os.cpu_count()}
    if device.startswith("cuda"):
        import torch

        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _of_cpu(field: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
