"""Weights from a file into a model: what was stored, what does not fit, and whether memory holds it.

Files are read as safetensors, or by ``torch.load(weights_only=True)``: a pickle that would run code is
refused, and so is a TorchScript archive, which is code.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.modules import named_tensors
from lpe.number_systems.streams import canonical_namer

NESTINGS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "state_dict_ema",
    "model_ema",
    "module",
)
"""Where a training checkpoint may have its weights; the first of these keys that it has is taken."""

HUB_SECONDS = 5

SHOWN = 3
"""Names of each kind that a message about keys shows."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file of weights, on the CPU, under their canonical names.

    Args:
        path: safetensors (told by its content, whatever it is called), or a file of ``torch.save`` with a
            state dict, also within a training checkpoint (``NESTINGS``).

    Returns:
        Tensor by name, without ``module.`` and ``_orig_mod.``.

    Raises:
        InputError: no such file; a folder; a file that is truncated, that would run code, or that holds no
            state dict.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the file of weights{_weights_in(path)}")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; give a file of weights") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); give a file of weights") from None
    # safetensors: eight bytes of length, then JSON.
    if path.suffix == ".safetensors" or start[8:] == b"{":
        held: Any = _read_safetensors(path)
    else:
        held = _read_pickle(path)
    tensors = _unwrapped(held, path)
    canonical = canonical_namer(tensors)
    return {canonical(name): tensor for name, tensor in tensors.items()}


def _weights_in(folder: Path) -> str:
    found = sorted(
        each.name
        for each in folder.iterdir()
        if each.suffix in (".safetensors", ".bin", ".pt", ".pth", ".th")
    )
    return f" in it: {', '.join(found[:SHOWN])}{' …' if len(found) > SHOWN else ''}" if found else ""


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is no whole safetensors file ({_first_line(error)}); is the copy complete?"
        ) from None


def _read_pickle(path: Path) -> Any:
    if _is_torchscript(path):
        raise InputError(
            f"{path} is a TorchScript archive, which is code; give its state dict, as safetensors or by "
            "torch.save"
        )
    try:
        with warnings.catch_warnings():
            # Of files that pickle itself wrote; what of them can be read is read.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # which one depends on where the damage is
        # "Unsupported global: GLOBAL posix.system was not an allowed global by default."
        _, refused, what = str(error).partition("GLOBAL ")
        if refused and isinstance(error, pickle.UnpicklingError):
            raise InputError(
                f"{path} holds more than tensors: to read it would run {what.split()[0]}; give the state "
                "dict alone, as safetensors or by torch.save"
            ) from None
        raise InputError(
            f"{path} is neither safetensors nor a whole file of torch.save; is the copy complete?"
        ) from None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _unwrapped(held: Any, path: Path) -> Mapping[str, Tensor]:
    while isinstance(held, Mapping):
        nested = next((key for key in NESTINGS if isinstance(held.get(key), Mapping)), None)
        if nested is None:
            break
        held = held[nested]
    if not isinstance(held, Mapping) or not held:
        what = "nothing" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise InputError(f"{path} holds {what}; a state dict (tensor by name) is needed")
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} holds no state dict, since {name!r} is of type {type(value).__name__}; tensors by "
                f"name are needed, at the top or under one of {', '.join(NESTINGS)}"
            )
    return held


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Read a file of weights into a model: every tensor that it saves, or none.

    Args:
        model: any module. path: see :func:`read_weights`.

    Raises:
        InputError: as :func:`read_weights` and :func:`load_state`.
    """
    load_state(model, read_weights(path), str(path))


@torch.no_grad()
def load_state(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model, in its dtypes: every tensor that it saves, or none.

    A tied tensor may stand under any of its names. Batch norm's count of batches may be absent, as it is in
    files older than it: only a momentum of None would use it.

    Args:
        model: any module; wrapped or compiled, too. weights: tensor by canonical name. source: where they are
            from, for the error.

    Raises:
        InputError: missing, unexpected and misshapen tensors: how many of each kind, and the first three.
    """
    unseen = dict(weights)
    missing, misshapen = [], []
    copies: list[tuple[Tensor, Tensor]] = []
    for entry in named_tensors(model):
        names = [name for name in (entry.name, *entry.also) if name in unseen]
        values = [unseen.pop(name) for name in names]
        if values and values[0].shape != entry.tensor.shape:
            misshapen.append(f"{names[0]} {list(values[0].shape)} (the model: {list(entry.tensor.shape)})")
        elif values:
            copies.append((entry.tensor, values[0]))
        elif entry.saved and not entry.name.endswith("num_batches_tracked"):
            missing.append(entry.name)
    kinds = [
        (f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}")
        for kind, names in (("missing", missing), ("unexpected", list(unseen)), ("misshapen", misshapen))
        if names
    ]
    if kinds:
        raise InputError(f"{source} does not fit {type(model).__name__}: {'; '.join(kinds)}")
    for held, value in copies:
        held.copy_(value)


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, tied ones once; also of a model on the meta device."""
    return sum(entry.tensor.numel() * entry.tensor.element_size() for entry in named_tensors(model))


def available_bytes(device: torch.device | None = None) -> int:
    """Bytes of memory that this process can still have.

    Args:
        device: a GPU: its free memory, with what torch's allocator holds unused. None or the CPU: the least
            of the system's available memory and what its control groups (version 1 or 2) leave.
    """
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([_system_bytes(Path("/proc")), *_control_group_bytes(Path("/proc"), Path("/sys/fs/cgroup"))])


def require_memory(needed_bytes: int, what: str, device: torch.device | None = None) -> None:
    """To be called before anything large is loaded.

    Args:
        needed_bytes: the least that it takes. what: needs it, as the error's subject. device: where; None:
            the CPU.

    Raises:
        InputError: it is more than this process can have.
    """
    available = available_bytes(device)
    if needed_bytes > available:
        where = "of memory are" if device is None or device.type != "cuda" else f"on {device} are"
        raise InputError(
            f"{what} needs {_gibibytes(needed_bytes)}; {_gibibytes(available)} {where} free: take a smaller "
            "model, a smaller dtype or a larger machine"
        )


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _system_bytes(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else sys.maxsize


def _control_group_bytes(proc: Path, mounted: Path) -> list[int]:
    """What each control group that this process is in, and each around it, leaves of its limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers == "":
            roots, files = (mounted, mounted / "unified"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            roots = (mounted / controllers, mounted / "memory")
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for root in dict.fromkeys(roots):
            # Within a container the path may be the host's, and the mount the group itself.
            group = root / inside.lstrip("/")
            for folder in [group, *group.parents]:
                if folder == root or root in folder.parents:
                    left += _left_in_group(folder, *files)
    return left


def _left_in_group(folder: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    # Pages of files that nobody has touched lately are counted as used, and given up when they are wanted.
    return [] if most == "max" else [int(most) - used + int(statistics.get(reclaimable, 0))]
