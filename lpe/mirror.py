"""A store on an object store, or on any other file system that fsspec knows: a folder here, mirrored there.

All is read and written in the folder, which is a cache. What is made here is sent there; what is asked for
and is not here is fetched. Of files that belong together that comes last which says that they are whole,
there as here, and each is written under another name and then moved: a kill at any moment leaves a whole
entry or none.
"""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lpe.errors import InputError
from lpe.store import Entry, Store
from lpe.writing import replacing


class Mirror:
    """A folder of this machine and a place elsewhere; files are named by their paths in either.

    Args:
        url: of the place, as fsspec takes it: "s3://bucket/lpe". folder: here; made when it is needed.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url.rstrip("/"), folder

    def name_of(self, path: Path) -> str:
        """Return the name of a file in the folder."""
        return path.relative_to(self.folder).as_posix()

    def check(self) -> None:
        """Write a file there and remove it.

        Raises:
            InputError: it cannot be written; what its kind of place needs is not installed.
        """
        try:
            probe = f"{_root(self.url)}/.{uuid.uuid4().hex}.probe"
            _made(self.url, probe)
            _system(self.url).pipe_file(probe, b"")
            _system(self.url).rm_file(probe)
        except Exception as error:  # each kind of place has errors of its own
            why = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
            raise InputError(
                f"cannot write to {self.url} ({why}); set LPE_STORE to a place that can be written to"
            ) from None

    def there(self, name: str) -> bool:
        """Tell whether there is such a file there."""
        return bool(_system(self.url).exists(self._place(name)))

    def names(self, folder: str) -> list[str]:
        """List the files there, below a folder, sorted; hidden ones are not listed."""
        root = self._place(folder)
        try:
            found = _system(self.url).find(root)
        except FileNotFoundError:
            return []
        below = [str(path)[len(root) :].strip("/") for path in found]
        return sorted(f"{folder}/{name}" for name in below if name and not _is_hidden(name))

    def fetch(self, names: Iterable[str]) -> None:
        """Copy files here, in this order; those that are not there are left out."""
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with replacing(path) as temporary:
                    _system(self.url).get_file(self._place(name), str(temporary))
            except FileNotFoundError:
                continue

    def send(self, paths: Iterable[Path]) -> None:
        """Copy files there, in this order; those that are not here are left out."""
        system = _system(self.url)
        for path in paths:
            if not path.is_file():
                continue
            place = self._place(self.name_of(path))
            folder, _, last = place.rpartition("/")
            temporary = f"{folder}/.{last}.{uuid.uuid4().hex}.tmp"
            _made(self.url, place)
            system.put_file(str(path), temporary)
            system.mv(temporary, place)

    def _place(self, name: str) -> str:
        return f"{_root(self.url)}/{name}"


@functools.cache
def _of(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    # Others write there too: what a listing said is not kept.
    system, root = url_to_fs(url, use_listings_cache=False)
    return system, str(root).rstrip("/")


def _system(url: str) -> Any:
    """Return the file system of a URL; it is made once a process."""
    return _of(url)[0]


def _root(url: str) -> str:
    return _of(url)[1]


def _made(url: str, place: str) -> None:
    """Make the folder of a file, where there are folders."""
    _system(url).makedirs(place.rpartition("/")[0], exist_ok=True)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


class MirroredStore(Store):
    """A store in a mirror's folder: entries that are not here are fetched, those that are made are sent.

    Args:
        mirror: whose folder it is in. name: of the store in it.
    """

    def __init__(self, mirror: Mirror, name: str) -> None:
        super().__init__(mirror.folder / name)
        self.mirror = mirror

    def get(self, config: Mapping[str, object]) -> Entry | None:
        """Return the entry for a configuration; None if there is none, neither here nor there."""
        _, description = paths = self._files(self.key(config))
        if description.exists() and (entry := super().get(config)) is not None:
            return entry
        if not self.mirror.there(self.mirror.name_of(description)):
            return None
        self.mirror.fetch(map(self.mirror.name_of, paths))
        return super().get(config)

    def put(
        self,
        config: Mapping[str, object],
        tensors: Mapping[str, torch.Tensor],
        info: Mapping[str, object] | None = None,
        made: Mapping[str, object] | None = None,
    ) -> None:
        """Store tensors here, and send them; see :meth:`lpe.store.Store.put`."""
        super().put(config, tensors, info, made)
        self.mirror.send(self._files(self.key(config)))

    def get_or_make(
        self,
        config: Mapping[str, object],
        make: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]],
        device: str = "cpu",
    ) -> Entry:
        """Return the entry for a configuration, made and stored if there is none.

        That there can be written to is found out before ``make``.
        """
        if self.get(config) is None:
            self.mirror.check()
        return super().get_or_make(config, make, device)


def cache_of(url: str) -> Path:
    """Return the folder here for a place elsewhere, in that of the environment variable LPE_CACHE.

    Without it, it is in the user's folder of caches.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    chosen = os.environ.get("LPE_CACHE") or Path(caches) / "lpe"
    return Path(chosen).resolve() / hashlib.sha256(url.encode()).hexdigest()[:16]


def open_store() -> Store:
    """Return the store that the environment variable LPE_STORE names: a folder, or a URL that fsspec knows.

    Raises:
        InputError: a URL without a folder in it.
    """
    place = os.environ.get("LPE_STORE", "")
    if "://" not in place:
        return Store()
    root, _, name = place.rstrip("/").rpartition("/")
    if not root or root.endswith("/"):
        raise InputError(f"LPE_STORE={place} names no folder; give one, such as {place}/lpe/store")
    return MirroredStore(Mirror(root, cache_of(root)), name)
