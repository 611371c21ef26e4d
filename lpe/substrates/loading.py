"""Weights from a file into a model: what was stored, what does not fit, and whether memory holds it.

Files are read as safetensors, or by ``torch.load(weights_only=True)``: a pickle that would run code is
refused, and so is a TorchScript archive, which is code.

What a file holds is loaded as it is: every tensor, whole, under its name. A wrapper's prefix that is taken
off, a choice between two sets of weights and a change of dtype are said in a line each (:mod:`lpe.notices`).
What would change the meaning of a number is refused: integers where the model has floating point (the codes
of a quantised file), casts that lose an integer or overflow, two values of one tied tensor.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpe.checks import shown
from lpe.errors import InputError
from lpe.modules import PLAIN_DTYPES, named_tensors
from lpe.notices import note
from lpe.number_systems.streams import canonical_namer
from lpe.substrates import pickles

NESTINGS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "state_dict_ema",
    "model_ema",
    "module",
)
"""Keys under which a training checkpoint may have its weights; the first of these that it has is taken."""

AVERAGES = ("state_dict_ema", "model_ema")
"""Keys of moving averages: that they were taken is said."""

DEEPEST = 10
"""How many of ``NESTINGS`` may lie within one another; a dict may hold itself."""

MODULES = 100
"""How many modules a tensor's name may lie within one another."""

UNPROMOTED = {torch.uint16, torch.uint32, torch.uint64}
"""Dtypes that torch takes together with no other."""

SHOWN = 3
"""Names of each kind that a message about keys shows."""


class Misfit(InputError):
    """Tensors of a file that are not a model's, by name or shape: another model's, or under other names."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a file of weights, on the CPU, under their canonical names.

    Args:
        path: safetensors (told by its content, whatever it is called), or a file of ``torch.save`` with a
            state dict, also within a training checkpoint (``NESTINGS``).

    Returns:
        Tensor by name, without ``module.`` and ``_orig_mod.``.

    Raises:
        InputError: no such file; a folder; a file that is truncated, that would run code, or that holds no
            state dict; one whose sizes are not those of its bytes, or that is larger than the free memory.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the file of weights{_weights_in(path)}")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no regular file; give a file of weights")
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; give a file of weights") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path} ({why}); give a file of weights") from None
    # safetensors: eight bytes of length, then JSON.
    if path.suffix == ".safetensors" or start[8:] == b"{":
        held: Any = _read_safetensors(path)
    else:
        held = _read_pickle(path)
    tensors = _unwrapped(held, path)
    canonical = canonical_namer(tensors)
    shortened = [(name, canonical(name)) for name in tensors if canonical(name) != name]
    # Some models are built with a part called module; a wrapper is around the whole, or of torch.compile.
    if any(name.startswith("module.") or "_orig_mod" in name.split(".") for name, _ in shortened):
        old, new = shortened[0]
        note(f"{path}: a wrapper's prefix was taken off {len(shortened):,} names ({old} → {new})")
    return {canonical(name): tensor for name, tensor in tensors.items()}


def _weights_in(folder: Path) -> str:
    found = sorted(
        each.name
        for each in folder.iterdir()
        if each.suffix in (".safetensors", ".bin", ".pt", ".pth", ".th")
    )
    return f" in it: {', '.join(found[:SHOWN])}{' …' if len(found) > SHOWN else ''}" if found else ""


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    require_memory(path.stat().st_size, str(path))
    try:
        return safetensors.torch.load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # which one depends on where the damage is
        raise InputError(
            f"{path} is no whole safetensors file ({_first_line(error)}); is the copy complete?"
        ) from None


def _read_pickle(path: Path) -> Any:
    if pickles.is_torchscript(path):
        raise InputError(
            f"{path} is a TorchScript archive, which is code; give its state dict, as safetensors or by "
            "torch.save"
        )
    check_pickle(path)
    try:
        with warnings.catch_warnings():
            # Of files that pickle itself wrote; what of them can be read is read.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # which one depends on where the damage is
        raise _no_whole_file(path) from None


def check_pickle(path: Path) -> None:
    """Check a file of ``torch.save`` before it is read: what it would make, and of which sizes.

    Raises:
        InputError: it is no whole one; it would run code; its sizes are not those of its bytes, or are more
            than the free memory.
    """
    try:
        pickles.check(path, lambda needed: require_memory(needed, str(path)))
    except pickles.Refused as refused:
        raise InputError(
            f"{path} holds more than tensors: to read it would run {refused}; give the state dict alone, as "
            "safetensors or by torch.save"
        ) from None
    except pickles.Damaged as damaged:
        raise _no_whole_file(path, str(damaged)) from None


def _no_whole_file(path: Path, why: str = "") -> InputError:
    because = f" ({why})" if why else ""
    return InputError(
        f"{path} is neither safetensors nor a whole file of torch.save{because}; is the copy complete?"
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _unwrapped(held: Any, path: Path) -> Mapping[str, Tensor]:
    place: list[str] = []
    others: list[str] = []
    while isinstance(held, Mapping):
        nested = next((key for key in NESTINGS if isinstance(held.get(key), Mapping)), None)
        if nested is None:
            break
        others += [".".join([*place, str(key)]) for key in held if key != nested and _is_state(held[key])]
        place.append(nested)
        if len(place) > DEEPEST:
            raise InputError(
                f"{path} holds no state dict within {DEEPEST} of {', '.join(NESTINGS)}; give the state dict "
                "alone"
            )
        held = held[nested]
    if not isinstance(held, Mapping) or not held:
        what = "nothing" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise InputError(f"{path} holds {what}; a state dict (tensor by name) is needed")
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} holds no state dict, since {shown(name)} is of type {type(value).__name__}; tensors "
                f"by name are needed, at the top or under one of {', '.join(NESTINGS)}"
            )
        if name.count(".") > MODULES:
            raise InputError(
                f"{path} holds {shown(name)}, within {name.count('.'):,} modules; no network has such"
            )
        check_plain(name, value, str(path))
    if others or set(place) & set(AVERAGES):
        beside = f"; it also has {', '.join(others)}" if others else ""
        note(f"{path}: the weights are those of {'.'.join(place)}{beside}")
    return held


def _is_state(value: Any) -> bool:
    """Tell whether a checkpoint's entry is a set of weights too."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def check_plain(name: str, value: Tensor, source: str) -> None:
    """Raise InputError unless a tensor of a file holds plain values, of one of ``PLAIN_DTYPES``."""
    if kind := _unusual(value):
        raise InputError(
            f"{source} holds {shown(name)} as a {kind} tensor; give plain tensors with their values, as the "
            "state_dict() of an ordinary model has them"
        )


def _unusual(value: Tensor) -> str:
    """Say what a tensor is that holds no plain values; nothing for one that does."""
    if type(value) not in (Tensor, nn.Parameter):
        return type(value).__name__
    if value.is_meta:
        return "meta (it has no values)"
    if value.is_quantized:
        return "quantised"
    if value.layout != torch.strided:
        return str(value.layout).removeprefix("torch.")
    return "" if value.dtype in PLAIN_DTYPES else str(value.dtype).removeprefix("torch.")


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

    A tied tensor may stand under any of its names, or under several with the same values. Batch norm's count
    of batches may be absent, as it is in files older than it: only a momentum of None would use it. That, and
    every change of dtype, is said in a line.

    Args:
        model: any module; wrapped or compiled, too. weights: tensor by canonical name. source: where they are
            from, for the error.

    Raises:
        Misfit: missing, unexpected and misshapen tensors: how many of each kind, and the first three.
        InputError: a dtype that does not fit, see the top of this module; two values of a tied tensor; a
            model without memory for its weights.
    """
    unseen = dict(weights)
    missing, misshapen, uncounted = [], [], 0
    copies: list[tuple[str, Tensor, Tensor]] = []
    for entry in named_tensors(model):
        names = [name for name in (entry.name, *entry.also) if name in unseen]
        values = [unseen.pop(name) for name in names]
        # A shape first: what is not the model's may be of any size.
        fits = [value.shape == entry.tensor.shape for value in values]
        if all(fits) and (
            other := next((i for i, value in enumerate(values) if not _alike(value, values[0])), None)
        ):
            raise InputError(
                f"{source} has two values of one tensor: {names[0]} and {names[other]} differ in it and are "
                f"tied in {type(model).__name__}"
            )
        if not all(fits):
            other = fits.index(False)
            misshapen.append(
                f"{names[other]} {list(values[other].shape)} (the model: {list(entry.tensor.shape)})"
            )
        elif values:
            copies.append((names[0], entry.tensor, values[0]))
        elif entry.saved and entry.name.endswith("num_batches_tracked"):
            uncounted += 1
        elif entry.saved:
            missing.append(entry.name)
    kinds = [
        (f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}")
        for kind, names in (("missing", missing), ("unexpected", list(unseen)), ("misshapen", misshapen))
        if names
    ]
    if kinds:
        raise Misfit(f"{source} does not fit {type(model).__name__}: {'; '.join(kinds)}")
    if bare := next((name for name, held, _ in copies if held.is_meta), None):
        raise InputError(f"{type(model).__name__} has no memory for {bare}, which is on the meta device")
    casts = Casts(source)
    for name, held, value in copies:
        check_plain(name, value, source)
        casts.check(name, value, held.dtype)
    for _, held, value in copies:
        held.copy_(value)
    casts.say()
    if uncounted:
        note(f"{source} has no num_batches_tracked of {uncounted:,} layers; the counts stay as they were")


def _alike(left: Tensor, right: Tensor) -> bool:
    # Byte by byte, as a copy is: torch compares no numbers of 8 bits.
    same_kind = left.dtype == right.dtype and left.shape == right.shape
    return same_kind and torch.equal(_bytes(left), _bytes(right))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)


class Casts:
    """The changes of dtype between a file and a model: what is refused, and what is said of the others.

    Args:
        source: the file.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def check(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        """Count what becomes of a tensor of the file in the model's dtype.

        Raises:
            InputError: integers, truth values or complex numbers for floating point; floating point for
                complex numbers; a number that the integers of the dtype do not have, or beyond its largest.
        """
        if value.dtype == dtype:
            return
        here, there = (str(each).removeprefix("torch.") for each in (value.dtype, dtype))
        if dtype.is_floating_point and not value.is_floating_point():
            raise InputError(
                f"{self.source} has {here} under {name} where the model has {there}; codes are no weights: "
                "give the weights themselves"
            )
        if value.is_complex() != dtype.is_complex:
            raise InputError(f"{self.source} has {here} under {name} where the model has {there}")
        if value.is_floating_point() and value.element_size() == 1:
            value = value.float()  # exactly; torch computes little with floats of 8 bits
        if value.dtype == torch.complex32:
            value = value.to(torch.complex64)
        before, after = value, value.to(dtype)
        if {value.dtype, dtype} & UNPROMOTED:
            # numpy compares integers with any by their values; it has no bfloat16.
            before = before.double() if before.is_floating_point() else before
            exact = np.array_equal(before.cpu().numpy(), after.cpu().numpy())
        else:
            after = after.float() if dtype.is_floating_point and dtype.itemsize == 1 else after
            wider = torch.promote_types(before.dtype, after.dtype)
            before, after = before.to(wider), after.to(wider)
            exact = wider == dtype or bool(((before == after) | (before != before)).all())
        if not exact and not (dtype.is_floating_point or dtype.is_complex):
            raise InputError(
                f"{self.source} has {here} under {name} that are no {there}, which the model has"
            )
        if not exact and not torch.equal(before.isfinite(), after.isfinite()):
            raise InputError(
                f"{self.source} has numbers under {name} beyond the largest of {there}, the model's dtype; "
                "take a wider one"
            )
        self._counts[(here, there, "exactly" if exact else "rounded")] += 1

    def say(self) -> None:
        """Note a line per kind of cast."""
        for (here, there, how), count in self._counts.items():
            tensors = "tensor" if count == 1 else "tensors"
            note(f"{self.source}: {count:,} {tensors} cast from {here} to {there}, {how}")


def parameter_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's parameters and buffers, tied ones once; also on the meta device."""
    return sum(entry.tensor.numel() * entry.tensor.element_size() for entry in named_tensors(model))


def available_bytes(device: torch.device | None = None) -> int:
    """Return the bytes of memory that this process can still have.

    Args:
        device: a GPU: its free memory, with what torch's allocator holds unused. None or the CPU: the least
            of the system's available memory and what its control groups (version 1 or 2) leave.
    """
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([_system_bytes(Path("/proc")), *_control_group_bytes(Path("/proc"), Path("/sys/fs/cgroup"))])


def require_memory(needed_bytes: int, what: str, device: torch.device | None = None) -> None:
    """Check that there is enough memory; call it before anything large is loaded.

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
    """List what each control group that this process is in, and each around it, leaves of its limit."""
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
