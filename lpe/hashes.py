"""Hashes of records, by which a reader knows that a file is as its writer left it.

A file that grows has its hash beside it, in ``<name>.sha256``, whose lines are those of ``sha256sum``. It is
written first and has the hash of what the file was before as well: a kill between the two leaves a file that
is known. A file that is finished has its hash in a JSON beside it, under ``HASHES``: by file names, and under
the JSON's own name that of the JSON. Files that somebody edited later and accepted as edited have theirs
under ``EDITED``, of which the JSON's own hash knows nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lpe.errors import InputError
from lpe.writing import read_file, write_text_atomic

HASHES = "sha256"
"""The key of a JSON under which the hashes are: of each file's bytes, and of what the JSON itself says."""
EDITED = "records edited after measuring"
"""The key of a JSON under which the hashes are of files that were edited and accepted as edited."""


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes: 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_json(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a JSON says, but for the hash of itself and for ``EDITED``.

    Raises:
        ValueError: a number in it is not finite.
    """
    said = {key: value for key, value in content.items() if key not in (HASHES, EDITED)}
    files = content.get(HASHES)
    if isinstance(files, dict):
        said[HASHES] = {name: value for name, value in files.items() if not name.endswith(".json")}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode())


def with_hashes(content: Mapping[str, Any], name: str, files: Iterable[Path]) -> dict[str, Any]:
    """Return what a JSON says with the hashes of files, and of itself, under ``HASHES``.

    Args:
        name: the JSON's. files: that it vouches for.
    """
    hashes = {file.name: sha256(file.read_bytes()) for file in files}
    said = {**content, HASHES: hashes}
    return {**said, HASHES: {**hashes, name: sha256_of_json(said)}}


def beside(path: str | os.PathLike[str]) -> Path:
    """Return the file that has the hash of a file that grows."""
    return Path(path).with_name(f"{Path(path).name}.sha256")


def is_as_written(path: Path, content: bytes) -> bool | None:
    """Tell whether the content of a file is what was written there; None where no hash is beside it."""
    try:
        lines = read_file(beside(path)).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return sha256(content) in [line.partition(" ")[0] for line in lines]


def content_as_written(path: Path) -> bytes:
    """Return the bytes of a file that may have its hash beside it.

    Raises:
        FileNotFoundError: there is no file.
        InputError: it cannot be read, or was altered since it was written.
    """
    for _ in range(3):  # a writer may have written twice between the reading of one file and of the other
        try:
            content = read_file(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(f"cannot read {path} ({error.strerror})") from None
        if is_as_written(path, content) is not False:
            return content
    raise InputError(
        f"{path} was altered since it was written: {beside(path).name} has another hash; delete both to "
        f"measure anew, or {beside(path).name} alone to take the file as it is"
    )


def write_hashed(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all, its hash beside it; call it with the file's lock held."""
    known = [sha256(text.encode("utf-8"))]
    if path.is_file() and is_as_written(path, there := path.read_bytes()) is not False:
        known.append(sha256(there))
    write_text_atomic(beside(path), "".join(f"{each}  {path.name}\n" for each in dict.fromkeys(known)))
    write_text_atomic(path, text)
