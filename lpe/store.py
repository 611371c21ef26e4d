"""The store of trained weights, shared by all figures: an entry is named by what determines it.

An entry is two files, ``<key>.safetensors`` and ``<key>.json``; the second is written last, so that
a kill at any moment leaves a whole entry or none. The key is a hash of the configuration, which must
hold everything that determines the weights: model, data, method, hyper-parameters and seeds.

What several processes ask for is made by one of them, under a lock of its key; the others wait and take it.
A training that is killed while it is made goes on from its checkpoint (:mod:`lpe.training.checkpoints`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from lpe.errors import InputError
from lpe.provenance import REPOSITORY, machine, plain_data
from lpe.training import checkpoints
from lpe.writing import (
    locked,
    make_writable,
    opened,
    read_file,
    replacing,
    save_tensors,
    write_text_atomic,
)


@dataclass(frozen=True)
class Entry:
    """The store's entry for one configuration.

    Attributes:
        tensors: the weights by name, on the CPU.
        info: small JSON data about how they were made: last values of the training curve, backward passes.
        path: the safetensors file.
        made: what making them took: "seconds", and the machine (see ``lpe.provenance.machine``); empty where
            nobody measured it.
    """

    tensors: dict[str, torch.Tensor]
    info: dict[str, Any]
    path: Path
    made: dict[str, Any]


@dataclass(eq=False)
class Use:
    """What was taken from the store over some time.

    Attributes:
        made: of every entry, by its key, what making it took, whenever that was.
        seconds: spent over that time on making entries, or on waiting for another process that made them.
    """

    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


class _DamagedError(Exception):
    """An entry that cannot be what was stored; the message says what is wrong with it."""


class Store:
    """A folder of entries.

    Args:
        root: the folder, made when something is first stored. None: the environment variable
            ``LPE_STORE``, and without it ``runs/store`` in the repository.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root or os.environ.get("LPE_STORE") or REPOSITORY / "runs" / "store")
        self._uses: list[Use] = []

    @staticmethod
    def key(config: Mapping[str, object]) -> str:
        """Return the first 32 hexadecimal digits of the SHA-256 of the configuration's canonical JSON.

        Raises:
            InputError: the configuration is not plain data (see ``lpe.provenance.plain_data``).
        """
        return _sha256_of_json(plain_data(config, "config"))[:32]

    def get(self, config: Mapping[str, object]) -> Entry | None:
        """Return the entry for a configuration; None if there is none.

        A damaged entry (truncated, altered, of another configuration) is said on stderr and is none.

        Raises:
            InputError: the configuration is not plain data.
        """
        key = self.key(config)
        found = self._found(key, config)
        if isinstance(found, _DamagedError):
            print(f"store: entry {key} is damaged ({found}); it is made again", file=sys.stderr)
            return None
        return found

    def _found(self, key: str, config: Mapping[str, object]) -> Entry | _DamagedError | None:
        """Return an entry, None, or what is wrong with it."""
        found = self._read(key, config)
        path, _ = self._files(key)
        if isinstance(found, _DamagedError) or (found is None and path.exists()):
            # Another process may be between the two files; with its lock in hand it is not.
            with suppress(InputError), locked(self.root / "store"):
                found = self._read(key, config)
        if isinstance(found, Entry):
            for use in self._uses:
                use.made[key] = found.made
        return found

    def _read(self, key: str, config: Mapping[str, object]) -> Entry | _DamagedError | None:
        path, description = self._files(key)
        try:
            described = _read_description(description, config)
            _verify_tensors(path, described["tensors_sha256"])
            tensors = safetensors.torch.load_file(path)
        except FileNotFoundError:
            return None
        except _DamagedError as what:
            return what
        return Entry(tensors, described["info"], path, described.get("made", {}))

    def discard(self, config: Mapping[str, object]) -> None:
        """Let there be no entry for a configuration; its tensors stay, where nobody finds them.

        Where that is not permitted, or there is none, nothing happens.
        """
        with suppress(OSError):
            self._files(self.key(config))[1].unlink()

    @contextmanager
    def use(self) -> Iterator[Use]:
        """Note what is taken from the store as long as the block lasts, by this object."""
        noted = Use()
        self._uses.append(noted)
        try:
            yield noted
        finally:
            self._uses.remove(noted)

    def put(
        self,
        config: Mapping[str, object],
        tensors: Mapping[str, torch.Tensor],
        info: Mapping[str, object] | None = None,
        made: Mapping[str, object] | None = None,
    ) -> None:
        """Store tensors, on any device, and the information about them; replace what is there.

        Args:
            made: what making them took; see :class:`Entry`.

        Raises:
            InputError: the configuration or the information is not plain data, something is not a
                tensor, or the folder cannot be written to.
        """
        path, description = self._files(self.key(config))
        described = {
            "config": plain_data(config, "config"),
            "info": plain_data(info or {}, "info"),
            "made": plain_data(made or {}, "made"),
        }
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{name} is of type {type(tensor).__name__}; the store keeps tensors")
        # A copy each, because safetensors refuses tensors that share memory, as tied weights do.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        make_writable(self.root)
        with locked(self.root / "store"):
            # First the description goes and last it comes: without it there is no entry.
            self._make_way(self.key(config))
            with replacing(path) as temporary:
                save_tensors(temporary, copies)
                described["tensors_sha256"] = _sha256_of_file(temporary)
            described["sha256"] = _sha256_of_json(described)
            write_text_atomic(description, json.dumps(described, indent=2, sort_keys=True) + "\n")

    def get_or_make(
        self,
        config: Mapping[str, object],
        make: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]],
        device: str = "cpu",
    ) -> Entry:
        """Return the entry for a configuration, made and stored if there is none.

        What is returned is always what the store holds, so that the first run and every later one
        compute with the same tensors. Where another process makes it, this one waits and takes it; where
        that process dies, this one makes it.

        Args:
            make: returns the tensors and the information about them.
            device: that it computes on, as torch names it; for what the entry says of how it was made.

        Raises:
            InputError: as ``put``; that the folder cannot be written to is found out before ``make``.
        """
        key = self.key(config)
        entry = self._found(key, config)
        if isinstance(entry, Entry):
            self._tidy(key)
            return entry
        make_writable(self.root)
        waits: list[float] = []
        # A making takes seconds to hours: nobody has to look a hundred times a second.
        with locked(self.root / key, True, lambda: waits.append(time.perf_counter()), poll=0.1):
            self._add_seconds(sum(time.perf_counter() - began for began in waits))
            entry = self.get(config)
            if entry is None:
                checkpoints.remove_abandoned(self.root / checkpoints.UNDER_WAY)
                # What cannot go is found out before anything is made.
                self._make_way(key)
                started = time.perf_counter()
                with checkpoints.kept(self.root / checkpoints.UNDER_WAY / key) as under_way:
                    tensors, info = make()
                seconds = time.perf_counter() - started
                self._add_seconds(seconds)
                self.put(config, tensors, info, {"seconds": round(seconds, 3), **machine(device)})
                entry = self.get(config)
                under_way.remove()
        if entry is None:
            raise OSError(f"{self.root} does not give back what was written to it")
        return entry

    def _make_way(self, key: str) -> None:
        """Remove the description of an entry: without it there is none, and both files may be written.

        Raises:
            InputError: what is in the place of a file is a folder, or another user's who keeps it.
        """
        for file in reversed(self._files(key)):
            if file.is_dir() and not file.is_symlink():
                raise InputError(f"{file} is a folder, where a file of the store belongs; remove it")
            try:
                if file.suffix == ".json":
                    file.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(
                    f"cannot replace {file} ({error.strerror}); have it removed, or set LPE_STORE"
                    " to another folder"
                ) from None

    def _tidy(self, key: str) -> None:
        """Remove the checkpoints of an entry that is there: its maker was killed before it could."""
        folder = self.root / checkpoints.UNDER_WAY
        if folder.is_dir():
            with suppress(OSError):  # of another user's
                checkpoints.Checkpoints(folder / key).remove()

    def _add_seconds(self, seconds: float) -> None:
        for use in self._uses:
            use.seconds += seconds

    def _files(self, key: str) -> tuple[Path, Path]:
        return self.root / f"{key}.safetensors", self.root / f"{key}.json"


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256_of_json(data: Any) -> str:
    return hashlib.sha256(_canonical(data).encode()).hexdigest()


def _sha256_of_file(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_description(path: Path, config: Mapping[str, object]) -> dict[str, Any]:
    try:
        described = json.loads(read_file(path))
        claimed = described.pop("sha256")
        unaltered = claimed == _sha256_of_json(described)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _DamagedError(f"its json cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise _DamagedError("its json is unreadable") from None
    if not unaltered:
        raise _DamagedError("its json was altered")
    if _canonical(described["config"]) != _canonical(plain_data(config, "config")):
        raise _DamagedError("its json is of another configuration")
    return described


def _verify_tensors(path: Path, sha256: str) -> None:
    try:
        found = _sha256_of_file(path)
    except FileNotFoundError:
        raise _DamagedError("its tensors are missing") from None
    except OSError as error:
        raise _DamagedError(f"its tensors cannot be read: {error.strerror}") from None
    if found != sha256:
        raise _DamagedError("its tensors were truncated or altered")
