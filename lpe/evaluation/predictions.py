"""Every member's predictions in a file: what any metric of any prefix can be computed from, without a model.

A file of predictions is safetensors:

    log_probs   [members, examples, classes], each row normalised; float32, or float16 or float64
    targets     int64 [examples]
    examples    int64 [examples], a hash of each example's inputs, by which other examples are told apart

and a header, JSON in the metadata under ``lpe``: what the ensemble was (``ensemble``, a hash of its members),
the options of its forward passes, the memory of its prefixes, what whoever wrote it says of the model and the
data (``record``), where it was made, and a hash of every member's bytes, of the targets and examples, and of
the header itself.

It is written as the evaluation goes, into a folder beside it, ``<name>.partial``, one plain file a member, so
that no more than a block of predictions is held. Once all are there they become the file, in one move. A run
that is killed leaves the folder, which is no file of predictions and is not taken for one, and the next run
of the same ensemble on the same examples goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from lpe.checks import check_choice, shown
from lpe.ensembles.augmented import views_in
from lpe.ensembles.base import Ensemble
from lpe.ensembles.mc_dropout import masks_in
from lpe.errors import InputError
from lpe.evaluation.batches import Batch, Hashed
from lpe.files.container import check_path, contents_hash, weights_hash
from lpe.modules import named_tensors, tensors_in
from lpe.provenance import kernels, machine, plain_data
from lpe.writing import check_writable, make_writable, replacing, unwritten, write_text_atomic

FORMAT = "lpe predictions"
VERSION = 1
DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
"""Types that log-probabilities are kept in. float16 has 3 digits and half the bytes."""

CLASSES, CHOICES, TOKENS = "classes", "choices", "tokens"
"""What a row is of: classes; choices of a question, padded with −∞ to the most that one has; or a token, of
whose distribution only the target's log-probability is kept, so that there is no axis of classes."""

REMEDY = "give another file, or remove it"

PIECE_BYTES = 1 << 24
"""Bytes of a file that are held at a time."""

_SAFETENSORS = {
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}


def _hashes(ensemble: Ensemble) -> tuple[str, str]:
    """Return two hashes of an ensemble's members, 64 hexadecimal digits: of what they are, and are set to.

    The first is, of each member, of the tensors that are saved, the types of its modules, its dropout masks,
    and the view that it has of its inputs. The second is of what modules are set to beside that. Members are
    made, one after another, and are not run.
    """
    whole, settings = hashlib.sha256(), hashlib.sha256()
    turn = ensemble.in_turn()
    for _ in range(len(ensemble)):
        line, own = _member_lines(next(turn))  # no name: it would live on while the next is made
        whole.update(line.encode())
        settings.update(own.encode())
    return whole.hexdigest(), settings.hexdigest()


def _member_lines(net: nn.Module) -> tuple[str, str]:
    kinds = [type(module).__name__ for module in net.modules()]
    line = json.dumps([weights_hash(net), kinds, masks_in(net), views_in(net)]) + "\n"
    return line, json.dumps(_settings_of(net)) + "\n"


def _settings_of(net: nn.Module) -> list[Any]:
    """Return what networks of one architecture and weights may differ in.

    What each module says of itself (a stride, an ε), its attributes that are floats (a temperature; whole
    numbers may be counters, which differ from run to run), and the tensors that are not saved.
    """
    told: list[Any] = []
    for module in net.modules():
        said = module.extra_repr()
        floats = {name: value for name, value in vars(module).items() if isinstance(value, float)}
        told.append(["" if " at 0x" in said else said, sorted(floats.items())])
    unsaved = {entry.name: entry.tensor for entry in named_tensors(net) if not entry.saved}
    return [told, contents_hash(unsaved)]


def example_hashes(inputs: Any, count: int) -> Tensor:
    """Return a hash of each example's inputs, int64 [examples]: BLAKE2b, 64 bits, of its bytes and shape.

    Args:
        inputs: a tensor, or a tuple, list or dict of them, whose first axis is that of the examples; what has
            another length counts for every example. Or what has hashes of its own.
        count: examples.
    """
    if isinstance(inputs, Hashed):
        return inputs.hashes()
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(count)]
    for tensor in tensors_in(inputs):
        values = tensor.detach()
        if values.is_nested:
            values = values.to_padded_tensor(0.0)
        values = values.to_dense() if values.layout != torch.strided else values
        each = values.dim() > 0 and len(values) == count
        about = f"{values.dtype}{list(values.shape[1:] if each else values.shape)}".encode()
        raw = values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        width = len(raw) // count if each else 0
        for place, of_example in enumerate(hashes):
            of_example.update(about)
            of_example.update(raw[place * width : (place + 1) * width] if each else raw)
    numbers = [int.from_bytes(each.digest(), "little", signed=True) for each in hashes]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def about_ensemble(
    ensemble: Ensemble,
    options: Mapping[str, object],
    dtype: str,
    record: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Return the header's entries on an ensemble that is evaluated: what has to be the same to go on.

    And ``record``, which need not: plain data on where the predictions come from.
    """
    check_choice("predictions_dtype", dtype, tuple(DTYPES))
    if not isinstance(record, Mapping | None):
        raise InputError(f"predictions_record must be a dict of plain data or None, not {shown(record)}")
    members, settings = _hashes(ensemble)
    return {
        "kind": CLASSES,
        "size": len(ensemble),
        "dtype": dtype,
        "memory_bits": [ensemble.memory_bits(n) for n in range(1, len(ensemble) + 1)],
        "class": type(ensemble).__name__,
        "ensemble": members,
        "settings": settings,
        "options": dict(options),
        **({} if record is None else {"record": plain_data(record, "predictions_record")}),
    }


def about_machine() -> dict[str, Any]:
    """Return the header's entry on where predictions were made."""
    cuda = torch.cuda.is_initialized()
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
        **machine("cuda" if cuda else "cpu"),
    }


def check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise InputError unless a file is of the ensemble and options that are here."""
    other = f"{path} is of another ensemble"
    if there["size"] != here["size"]:
        raise InputError(f"{other}: it has {there['size']} members, this one {here['size']}; {REMEDY}")
    if there["ensemble"] != here["ensemble"]:
        raise InputError(
            f"{other}: its members are others (a {there['class']}, hash {there['ensemble'][:12]}; of this "
            f"{here['class']} {here['ensemble'][:12]}); {REMEDY}"
        )
    # Files of before there was this entry have none.
    if there.get("settings", here.get("settings")) != here.get("settings"):
        raise InputError(
            f"{other}: the weights are the same, and what its modules are set to (a stride, a temperature, a "
            f"tensor that is not saved) is not; {REMEDY}"
        )
    for name, what in (("options", "was evaluated with other options"), ("dtype", "is of another type")):
        if there[name] != here[name]:
            raise InputError(f"{path} {what} ({there[name]} there, {here[name]} here); {REMEDY}")


def check_place(path: object) -> Path:
    """Return the path of a file that predictions can be written to.

    Raises:
        InputError: it is no path, or a folder; there is no folder for it, or one that is closed.
    """
    place = check_path(path)
    try:
        place.with_name(f".{place.name}.{'0' * 32}.tmp").stat()  # the longest name that it takes
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {place} ({getattr(error, 'strerror', None) or error})") from None
    if place.is_dir():
        raise InputError(f"{place} is a folder; give a file to write predictions to")
    if not place.parent.is_dir():
        raise InputError(f"there is no folder {place.parent} to write {place.name} into; make it first")
    check_writable(place.parent)
    return place


def partial_folder(path: Path) -> Path:
    """Return the folder in which a file's predictions are while they are written."""
    return path.with_name(f"{path.name}.partial")


def drop_partial(path: Path) -> None:
    """Remove the folder of a file that is there: its writer was killed before it could."""
    shutil.rmtree(partial_folder(path), ignore_errors=True)


class PredictionsWriter:
    """Predictions that become a file; use it under :func:`lpe.writing.locked`.

    Args:
        path: the file. about: see :func:`about_ensemble`.

    Attributes:
        classes: their number, once a row has been written; else None. Of tokens 1, the numbers of a row.

    Raises:
        InputError: the folder cannot be written to, or holds the beginning of another ensemble's predictions.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, dict(about)
        self._of_tokens = about["kind"] == TOKENS
        self.classes: int | None = 1 if self._of_tokens else None
        self._dtype = DTYPES[about["dtype"]]
        self._folder = partial_folder(path)
        self._header = self._folder / "header.json"
        self._batches: dict[int, tuple[int, int]] = {}
        self._next: dict[int, int] = {}
        self._read = 0
        if self._folder.exists() and not self._folder.is_dir():
            raise InputError(f"{self._folder} is in the way of predictions that are written; remove it")
        if self._header.exists():
            self._resume()
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
            make_writable(self._folder)
            self._write_header()
        self._known = self._examples()
        self._held = [self._rows_of(member) for member in range(about["size"])]

    def reading(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches of which a member lacks predictions, and take up the examples of all.

        Raises:
            InputError: examples that are not those of the run that goes on.
        """
        for index, inputs, targets in stream:
            start, stop = self._read, self._read + len(targets)
            found = torch.stack([targets.cpu(), example_hashes(inputs, len(targets))])
            known = self._known[:, start:stop]
            _check_examples(self._folder, known, found[:, : known.shape[1]], start)
            if known.shape[1] < len(targets):
                self._known = torch.cat([self._known, found[:, known.shape[1] :]], dim=1)
                _append(self._folder / "examples", found[:, known.shape[1] :].T.contiguous())
            self._batches[index] = start, stop
            self._read = stop
            if any(held < stop for held in self._held):
                yield index, inputs, targets

    def has(self, member: int, batch: Batch) -> bool:
        """Tell whether a member's predictions of a batch were there before this run."""
        return self._batches[batch[0]][1] <= self._held[member]

    def level(self) -> None:
        """Cut every member's predictions to the examples that all have: they are to go on together."""
        assert not self._next
        least = min(self._held)
        if self.classes is not None:
            for member in range(len(self._held)):
                _cut(self._file(member), self.classes * self._dtype.itemsize, least)
        self._held = [least] * len(self._held)

    def add(self, member: int, log_probs: Tensor) -> None:
        """Take up a member's next log-probabilities [examples, classes] or [tokens], of batches it lacked."""
        if self.classes is None:
            self.classes = log_probs.shape[1]
            self._write_header()
        held = self._held[member]
        start = self._next.get(member)
        if start is None:
            start = next(start for start, stop in self._batches.values() if stop > held)
        self._next[member] = start + len(log_probs)
        fresh = _as_kept(log_probs[max(held - start, 0) :], self._dtype)
        _append(self._file(member), fresh)

    def finish(self) -> None:
        """Make the file of what is there.

        Raises:
            InputError: no example; fewer examples than the run that goes on had; it cannot be written.
        """
        if not self._read:
            self.drop_if_empty()
            raise InputError("the batches are empty; there is nothing to evaluate")
        if self._read < self._known.shape[1]:
            raise InputError(
                f"{self._folder} is of other examples: it has {self._known.shape[1]} or more, the batches "
                f"{self._read}; {REMEDY}"
            )
        assert self.classes is not None
        size = self.about["size"]
        log_probs = [self._file(member) for member in range(size)]
        classes = 0 if self._of_tokens else self.classes
        _write(
            self.path,
            {**self.about, "examples": self._read, "classes": classes, "made": about_machine()},
            [size, self._read, *([classes] if classes else [])],
            self._dtype,
            (_pieces(each) for each in log_probs),
            self._known[0],
            self._known[1],
        )
        shutil.rmtree(self._folder, ignore_errors=True)

    def drop_if_empty(self) -> None:
        """Remove the folder where it has not a row."""
        if not any(self._file(member).exists() for member in range(self.about["size"])):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, member: int) -> Path:
        return self._folder / f"member-{member}"

    def _write_header(self) -> None:
        content = {"format": FORMAT, "version": VERSION, "classes": self.classes, **self.about}
        write_text_atomic(self._header, json.dumps(content))

    def _resume(self) -> None:
        try:
            there = json.loads(self._header.read_text(encoding="utf-8"))
            if (there["format"], there["version"]) != (FORMAT, VERSION):
                raise ValueError(f"its version is {there['version']!r}")
            self.classes = there["classes"]
            check_same(self._folder, there, self.about)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._folder} is damaged ({error}); remove it to begin anew") from None

    def _examples(self) -> Tensor:
        """Return targets and hashes of the examples that are known, int64 [2, examples]."""
        _cut(file := self._folder / "examples", 16)
        raw = bytearray(file.read_bytes()) if file.exists() else bytearray()
        pairs = torch.frombuffer(raw, dtype=torch.int64) if raw else torch.zeros(0, dtype=torch.int64)
        return pairs.view(-1, 2).T.contiguous()

    def _rows_of(self, member: int) -> int:
        """Return how many examples a member has, without a row that was cut short."""
        if self.classes is None:
            return 0
        return _cut(self._file(member), self.classes * self._dtype.itemsize, self._known.shape[1])


def _append(file: Path, values: Tensor) -> None:
    """Write values behind those of a file. Of a row that is cut short the next run takes nothing."""
    try:
        with open(file, "ab") as opened:
            opened.write(values.numpy().tobytes())
    except OSError as error:
        raise unwritten(file, error) from None


def _cut(file: Path, row: int, most: int | None = None) -> int:
    """Cut a file to whole rows of so many bytes, and no more than ``most``; return how many there are."""
    if not file.exists():
        return 0
    rows = file.stat().st_size // row
    rows = rows if most is None else min(rows, most)
    os.truncate(file, rows * row)
    return rows


def _as_kept(log_probs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return log-probabilities in a type, on the CPU; what is finite stays so."""
    values = log_probs.detach().cpu()
    least = torch.finfo(dtype).min
    return torch.where(values.isneginf(), values, values.clamp(min=least)).to(dtype).contiguous()


def _pieces(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            yield piece


def _check_examples(path: Path, there: Tensor, here: Tensor, start: int) -> None:
    """Raise InputError unless targets and hashes, int64 [2, examples], are the same."""
    if torch.equal(there, here):
        return
    differ = there != here
    place = int(differ.any(dim=0).nonzero()[0])
    what = (
        f"target {int(there[0, place])} there, {int(here[0, place])} here"
        if bool(differ[0, place])
        else "the inputs differ"
    )
    raise InputError(
        f"{path} is of other examples: in the batch that differs {int(differ.any(dim=0).sum())} of "
        f"{there.shape[1]} do, the first of them example {start + place} ({what}); {REMEDY}"
    )


def check_examples(held: Predictions, stream: Iterable[Batch]) -> None:
    """Read the batches and check that they are a file's examples.

    Raises:
        InputError: they are not.
    """
    path, known = held.path, torch.stack([held.targets, held.examples])
    read = 0
    for _, inputs, targets in stream:
        found = torch.stack([targets.cpu(), example_hashes(inputs, len(targets))])
        there = known[:, read : read + len(targets)]
        _check_examples(path, there, found[:, : there.shape[1]], read)
        read += len(targets)
    if read != known.shape[1]:
        raise InputError(
            f"{path} is of other examples: it has {known.shape[1]}, the batches {read}; {REMEDY}"
        )


def write_predictions(
    path: str | os.PathLike[str],
    log_probs: Tensor,
    targets: Tensor,
    examples: Tensor,
    about: Mapping[str, Any],
) -> None:
    """Write predictions that are there to a file, whole or not at all.

    Args:
        path: the file, written over where there is one.
        log_probs: [members, examples, classes], or [members, tokens] of the kind "tokens".
        targets, examples: int64 [examples]; see the module's text.
        about: the header's entries: kind, size, dtype, memory_bits, class, ensemble, options.

    Raises:
        InputError: it cannot be written there.
    """
    path = check_place(path)
    dtype = DTYPES[about["dtype"]]
    kept = _as_kept(log_probs, dtype)
    classes = kept.shape[2] if kept.dim() == 3 else 0
    content = {**about, "examples": kept.shape[1], "classes": classes, "made": about_machine()}
    members = (iter([each.numpy().tobytes()]) for each in kept)
    _write(path, content, list(kept.shape), dtype, members, targets.cpu(), examples.cpu())


def _write(
    path: Path,
    about: Mapping[str, Any],
    shape: list[int],
    dtype: torch.dtype,
    members: Iterable[Iterator[bytes]],
    targets: Tensor,
    examples: Tensor,
) -> None:
    """Write the file: the rows first, then before them the header, which has their hashes."""
    rows = math.prod(shape[1:]) * dtype.itemsize
    ends = [shape[0] * rows]
    ends += [ends[0] + 8 * shape[1], ends[0] + 16 * shape[1]]
    layout: dict[str, Any] = {
        "log_probs": {"dtype": _SAFETENSORS[dtype], "shape": shape, "data_offsets": [0, ends[0]]},
        "targets": {"dtype": "I64", "shape": shape[1:2], "data_offsets": ends[:2]},
        "examples": {"dtype": "I64", "shape": shape[1:2], "data_offsets": ends[1:]},
    }
    numbers = {"targets": targets.contiguous(), "examples": examples.contiguous()}

    def header(hashes: Mapping[str, Any]) -> bytes:
        content = {"format": FORMAT, "version": VERSION, **about, "sha256": hashes}
        told = {**content, "header_sha256": _header_hash(content)}
        text = json.dumps({"__metadata__": {"lpe": json.dumps(told)}, **layout}).encode()
        return text + b" " * (-len(text) % 8)

    unknown = hashlib.sha256().hexdigest()
    length = len(header({"members": [unknown] * shape[0], **dict.fromkeys(numbers, unknown)}))
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.seek(8 + length)
            hashes: dict[str, Any] = {"members": []}
            for pieces in members:
                digest, written = hashlib.sha256(), 0
                for piece in pieces:
                    # A member that has more (the run was of more examples) is cut.
                    piece = piece[: rows - written]
                    digest.update(piece)
                    written += file.write(piece)
                assert written == rows, f"a member has {written} bytes, not {rows}"
                hashes["members"].append(digest.hexdigest())
            for name, values in numbers.items():
                file.write(values.numpy().data)
                hashes[name] = hashlib.sha256(values.numpy().data).hexdigest()
            file.seek(0)
            file.write(struct.pack("<Q", length) + header(hashes))
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror})") from None


def _header_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Predictions:
    """A file of predictions, opened; rows are read when they are asked for.

    Attributes:
        path: the file. about: its header.
        targets, examples: int64 [examples].
    """

    path: Path
    about: dict[str, Any]
    targets: Tensor
    examples: Tensor
    _file: Any = field(repr=False)

    @property
    def size(self) -> int:
        """The number of members."""
        return int(self.about["size"])

    @property
    def classes(self) -> int:
        """The number of classes; 0 of tokens."""
        return int(self.about["classes"])

    def log_probs(self, member: int, start: int, stop: int) -> Tensor:
        """Return a member's log-probabilities of some examples, [examples, classes], or [tokens]."""
        with torch.device("cpu"):  # a slice follows the default device, where a whole tensor does not
            rows: Tensor = self._file.get_slice("log_probs")[member, start:stop]
        return rows


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Open a file of predictions and check that it is whole and unaltered.

    Raises:
        InputError: no such file; one that is truncated, altered, not yet finished, of a newer version or of
            something else.
    """
    path = check_path(path)
    try:
        file = safetensors.safe_open(path, framework="pt")
        header = json.loads((file.metadata() or {}).get("lpe", "{}"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(_unreadable(path, error)) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path} holds no predictions; lpe.evaluate(…, predictions=FILE) writes them")
    version = header.get("version")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"{path} is damaged: its version is {shown(version)}")
    if version > VERSION:
        raise InputError(f"{path} is of version {version}, this lpe reads up to {VERSION}; update lpe")
    altered = InputError(
        f"{path} was altered: its contents are not those that were hashed when it was written"
    )
    claimed = header.pop("header_sha256", None)
    if claimed != _header_hash(header):
        raise altered
    try:
        numbers = {name: file.get_tensor(name).clone() for name in ("targets", "examples")}
        predictions = Predictions(path, header, numbers["targets"], numbers["examples"], file)
        found = {name: hashlib.sha256(values.numpy().data).hexdigest() for name, values in numbers.items()}
        rows = [_rows_hash(predictions, member) for member in range(predictions.size)]
    except (safetensors.SafetensorError, LookupError, TypeError, ValueError):
        raise altered from None
    if {"members": rows, **found} != header["sha256"]:
        raise altered
    return predictions


def checked_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Open a file of predictions that anyone may have written; see :func:`read_predictions`.

    Raises:
        InputError: as there; no regular file; a header whose sizes and types are not those of the tensors;
            targets that are none of the classes.
    """
    path = check_path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is no whole file of predictions (no regular file)")
    try:
        file = safetensors.safe_open(path, framework="pt")
        about = json.loads((file.metadata() or {}).get("lpe", "{}"))
    except RecursionError:
        raise InputError(
            f"{path} is no whole file of predictions (its header has too many brackets)"
        ) from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(_unreadable(path, error)) from None
    if isinstance(about, dict) and about.get("format") == FORMAT and about.get("version") == VERSION:
        claimed = about.pop("header_sha256", None)
        if claimed == _header_hash(about):  # else the next says that it was altered
            _check_about(path, about, file)
    predictions = read_predictions(path)
    targets, classes = predictions.targets, predictions.classes
    if classes and len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise InputError(f"{path} is damaged: its targets are not all from 0 to {classes - 1}")
    return predictions


def _check_about(path: Path, about: Mapping[str, Any], file: Any) -> None:
    """Check that what a header says is of the sizes and types that the file's tensors have.

    Raises:
        InputError: it is not, or lacks something.
    """

    def need(holds: bool, what: str, value: object) -> None:
        if not holds:
            raise InputError(f"{path} is damaged: its {what} is {shown(value)}")

    def natural(name: str) -> int:
        value: Any = about.get(name)
        need(type(value) is int and value >= 0, name, value)
        return int(value)

    kind, size, classes = about.get("kind"), natural("size"), natural("classes")
    need(kind in (CLASSES, CHOICES, TOKENS), "kind", kind)
    need(size >= 1, "size", size)
    need((classes == 0) == (kind == TOKENS), "number of classes", classes)
    need(isinstance(about.get("dtype"), str) and about["dtype"] in DTYPES, "dtype", about.get("dtype"))
    memory = about.get("memory_bits")
    each = isinstance(memory, list) and all(type(bits) is int and bits >= 0 for bits in memory)
    need(each and len(memory or ()) == size, "memory_bits", memory)
    for name in ("class", "ensemble"):
        need(isinstance(about.get(name), str), name, about.get(name))
    need(isinstance(about.get("options"), dict), "options", about.get("options"))
    need(isinstance(about.get("sha256"), dict), "sha256", about.get("sha256"))
    try:
        there = {name: file.get_slice(name) for name in ("log_probs", "targets", "examples")}
        told = {name: (each.get_dtype(), list(each.get_shape())) for name, each in there.items()}
    except (safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {str(error).partition(chr(10))[0]}") from None
    count = told["targets"][1]
    need(len(count) == 1, "shape of targets", count)
    expected = {
        "log_probs": (_SAFETENSORS[DTYPES[about["dtype"]]], [size, *count, *([classes] if classes else [])]),
        "targets": ("I64", count),
        "examples": ("I64", count),
    }
    for name, found in told.items():
        need(found == expected[name], f"{name} (type and shape)", found)


def _rows_hash(predictions: Predictions, member: int) -> str:
    count = len(predictions.targets)
    row = max(predictions.classes, 1) * DTYPES[predictions.about["dtype"]].itemsize
    step = max(1, PIECE_BYTES // row)
    digest = hashlib.sha256()
    for start in range(0, count, step):
        rows = predictions.log_probs(member, start, min(start + step, count))
        digest.update(rows.contiguous().numpy().data)
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"{path} is no whole file of predictions ({str(error).partition(chr(10))[0]})"
    folder = partial_folder(path)
    unfinished = (
        f"; {folder.name} holds the beginning of it: run its evaluation again, which goes on from there"
    )
    return f"there is no file {path}{unfinished if os.path.isdir(folder) else ''}"


def check_same_examples(files: Sequence[Predictions], inputs: bool) -> None:
    """Raise InputError unless files are of the same examples, in the same order, and of the same classes.

    Args:
        inputs: whether the examples' inputs have to be the same, beside their targets.
    """
    first = files[0]
    for other in files[1:]:
        where = f"{other.path} is of other examples than {first.path}"
        if other.about["kind"] != first.about["kind"]:
            raise InputError(f"{where}: {other.about['kind']}, and {first.about['kind']}")
        if len(other.targets) != len(first.targets):
            raise InputError(f"{where}: it has {len(other.targets)}, not {len(first.targets)}")
        if other.classes != first.classes:
            raise InputError(
                f"{other.path} has {other.classes} classes, {first.path} {first.classes}; the members of a "
                "mixture have the same classes"
            )
        if not torch.equal(other.targets, first.targets):
            place = int((other.targets != first.targets).nonzero()[0])
            raise InputError(
                f"{where}: the target of example {place} is {int(other.targets[place])}, not "
                f"{int(first.targets[place])}"
            )
        if inputs and not torch.equal(other.examples, first.examples):
            differ = other.examples != first.examples
            raise InputError(
                f"{where}: the inputs of {int(differ.sum())} of {len(differ)} differ, the first of them "
                f"example {int(differ.nonzero()[0])}; inputs='any' asks for the same targets alone, for "
                "networks that see the same examples in other ways"
            )
