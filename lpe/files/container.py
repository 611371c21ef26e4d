"""One safetensors file and its header: written whole, and read whole and unaltered or not at all.

The header is JSON in the file's metadata, under ``lpe``. Its ``sha256`` is the hash of its own text, with
zeros where the hash stands, and of every tensor's name, type, shape and bytes. Files of version 1 have no
hash. One ensemble gives the same file every time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from lpe.checks import shown
from lpe.errors import InputError
from lpe.modules import PLAIN_DTYPES, named_tensors
from lpe.writing import remove_leftovers, replacing, save_tensors

FORMAT = "lpe ensemble"
VERSION = 6
"""The newest version of files. A file has the version of the oldest reader that understands it, 2 where it
needs no more: 3 for several number systems and clipped steps, 4 for selections and views, 5 for a spread, 6
for planes.
"""

_UNHASHED = "0" * 64  # where the hash will stand


def contents_hash(tensors: Mapping[str, Tensor], about: str = "") -> str:
    """Hash named tensors, whatever their order and device, and a text: SHA-256, 64 hexadecimal digits."""
    # A hash a tensor, for several run at once: hashing lets go of Python's lock.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = dict(zip(tensors, pool.map(_bytes_hash, tensors.values()), strict=True))
    whole = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        line = [name, str(tensor.dtype), list(tensor.shape), digests[name]]
        whole.update(b"\n" + json.dumps(line).encode())
    return whole.hexdigest()


def _bytes_hash(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """Return what tells a model's weights from others: the hash of its saved tensors, under canonical names.

    Raises:
        InputError: a model on the meta device, which has no weights.
    """
    saved = {entry.name: entry.tensor for entry in named_tensors(model) if entry.saved}
    if any(tensor.is_meta for tensor in saved.values()):
        raise InputError(f"this {type(model).__name__} has no weights (device meta) to know it by")
    return contents_hash(saved)


def check_path(path: object) -> Path:
    """Return the path; InputError where it is none."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path must be a file's path, not {shown(path)}")
    return Path(path)


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> int:
    """Write a file, whole or not at all; its size in bytes.

    Raises:
        InputError: it can't be written there.
    """
    first = {"format": FORMAT, "version": 2, "sha256": _UNHASHED}
    about = json.dumps({**first, **header, "sha256": _UNHASHED})
    # One entry: safetensors writes several in any order.
    metadata = {"lpe": about.replace(_UNHASHED, contents_hash(tensors, about), 1)}
    try:
        remove_leftovers(path.parent)
        with replacing(path) as temporary:
            save_tensors(temporary, tensors, metadata)
        return path.stat().st_size
    except InputError:
        raise
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"cannot write {path} ({why})") from None


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and tensors of a file.

    Raises:
        InputError: no such file, or no regular one; a truncated or altered one, one of something else or of a
            newer version; a tensor of another kind than a network's.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is no file" if path.exists() else f"there is no file {path}")
        with safetensors.safe_open(path, framework="pt") as file:
            about, header = _header(file)
            # Copies: what safetensors gives is the file itself, which may be written over or cut short later.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except Exception as error:  # which one depends on where the damage is
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is no whole safetensors file ({why})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path} holds no ensemble; lpe.save writes one")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise InputError(f"{path} is damaged: its version is {shown(version)}")
    if version > VERSION:
        raise InputError(f"{path} is of version {shown(version)}, this lpe reads up to {VERSION}; update lpe")
    if other := next((key for key, tensor in tensors.items() if tensor.dtype not in PLAIN_DTYPES), None):
        raise InputError(f"{path} is damaged: {shown(other)} is of {tensors[other].dtype}")
    hashed = header.get("sha256")
    if version > 1 or hashed is not None:
        if not isinstance(hashed, str) or hashed != contents_hash(
            tensors, about.replace(hashed, _UNHASHED, 1)
        ):
            raise InputError(
                f"{path} was altered: its contents are not those that were hashed when it was written"
            )
    return header, tensors


def is_packed(path: Path) -> bool:
    """Tell whether a file is a packed ensemble, to be trusted or not."""
    try:
        if not path.is_file():
            return False
        with safetensors.safe_open(path, framework="pt") as file:
            _, header = _header(file)
    except Exception:  # which one depends on what else it is
        return False
    return isinstance(header, dict) and header.get("format") == FORMAT


def _header(file: Any) -> tuple[str, Any]:
    """Return the header of an open file, as text and as it is read."""
    about = (file.metadata() or {}).get("lpe", "{}")
    return about, json.loads(about)


def owned(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, contiguous and without a graph, as a file takes it."""
    return tensor.detach().cpu().contiguous().clone()


def shaped(
    tensors: Mapping[str, Tensor], key: str, shape: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """Return a file's tensor of a shape, and of a dtype where one is given.

    Raises:
        KeyError: there is none.
        InputError: it is of another shape or dtype.
    """
    if dtype not in (None, tensors[key].dtype):
        raise InputError(f"the file is damaged: {key!r} is {tensors[key].dtype}, not {dtype}")
    if list(tensors[key].shape) != list(shape):
        raise InputError(
            f"the file is damaged: {key!r} is of shape {list(tensors[key].shape)}, not {list(shape)}"
        )
    return tensors[key]


def check_same(what: str, stored: Sequence[Any], here: Sequence[Any]) -> None:
    """Raise InputError where a model is not the file's in what no tensor's name and shape tell."""
    if stored != here:
        there = next((item for item in stored if item not in here), None)
        other = next((item for item in here if item not in stored), None)
        raise InputError(
            f"the file is of another model: its {what} differ ({there or 'none'} there, "
            f"{other or 'none'} here)"
        )
