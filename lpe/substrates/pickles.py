"""What a file of ``torch.save`` would make, followed without making it.

``torch.load(weights_only=True)`` runs no foreign code, and believes the sizes that a file names: a storage, a
``bytearray`` or a tensor class of any size is allocated as it is asked for, and a tensor that is longer than
its storage makes the storage longer. Here the pickle is gone through first, opcode by opcode, with inert
values: every size is held against the bytes that the file has, and only what makes plain state dicts,
training states beside them and the tensors that torch saves is let through.

Formats: the zip archive of ``torch.save``, and the stream of pickles that it wrote before version 1.6.
"""

from __future__ import annotations

import io
import math
import pickletools
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch

from lpe.errors import InputError

ZIP = b"PK\x03\x04"
"""The first bytes of a zip archive."""

MAGIC = 0x1950A86A20F9469CFC6C
"""The first number of a stream of pickles."""

DEFLATED_TIMES = 1032
"""How many times its compressed bytes a deflated record can be at most, by the format."""

REPEATED_BYTES = 1 << 28
"""The largest tensor whose elements lie several times over the same bytes of its storage."""

KEY_PARTS = 100
"""Parts of a key that is a tuple, counted with those of the tuples within; a hash goes through all."""

COPIED = 1_000_000
"""Elements that the calls of a pickle may copy in all."""

_LONGEST_KEY = 1 << 64


class Damaged(Exception):
    """A file that is no whole one of ``torch.save``; the message is what is wrong, where that is known."""


class Refused(Exception):
    """A file that is whole and asks for more than plain contents; the message is what it asks for."""


@dataclass(frozen=True)
class _Named:
    """A function or type by name."""

    name: str


class _Tuple(tuple[Any, ...]):
    """A tuple; ``parts`` counts what is in it, and in the tuples within, each as often as it is there."""

    parts: int


@dataclass(eq=False)
class _List:
    items: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class _Dict:
    """A dict or the like by its type's name; of the keys those that are text, and how many pairs were set."""

    kind: str
    keys: list[str] = field(default_factory=list)
    pairs: int = 0


@dataclass(frozen=True)
class _Storage:
    """A storage: its bytes, and those of an element."""

    bytes: int
    element_bytes: int


@dataclass(eq=False)
class _Made:
    """Anything else that a call makes, by the function's name."""

    name: str


_CONTAINERS = {"collections.OrderedDict", "collections.Counter", "builtins.set"}
_COPIES = {"_codecs.encode", "builtins.bytearray"}
_SMALL = {"builtins.complex", "torch.device", "torch.serialization._get_layout"}
_TENSORS = {
    f"torch._utils._rebuild_{name}"
    for name in ("tensor", "tensor_v2", "tensor_v3", "qtensor", "sparse_tensor", "meta_tensor_no_storage")
}
_PARAMETERS = {f"torch._utils._rebuild_parameter{name}" for name in ("", "_with_state")}
_TYPED = "torch._tensor._rebuild_from_type_v2"
_CALLED = {*_CONTAINERS, *_COPIES, *_SMALL, *_TENSORS, *_PARAMETERS, _TYPED, "torch.Size"}
_TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
_LOCAL_HEADER = 30  # bytes before a record's name
_ELEMENT_BYTES = {
    **dict.fromkeys(("Untyped", "Bool", "Byte", "Char", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # modules of Python 2


def check(path: Path, room: Callable[[int], None]) -> None:
    """Check that a file of ``torch.save`` can be read: it is whole, and takes no more memory than it says.

    Args:
        path: the file. room: called with the bytes that reading takes, before any is read; it raises where
            they are too many.

    Raises:
        Damaged: the file is no whole one of torch.save, or its sizes are not those of its bytes.
        Refused: it asks for what is no tensor, number, text or container of these.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(ZIP)) == ZIP:
                _check_zip(file, room)
            else:
                file.seek(0)
                _check_stream(file, room)
    except (Damaged, Refused, InputError, MemoryError):
        raise
    except Exception as error:  # which one depends on where the damage is
        raise Damaged from error


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is a TorchScript archive; no file that is no whole zip archive is one."""
    try:
        with open(path, "rb") as file:
            if file.read(len(ZIP)) != ZIP:
                return False
            with zipfile.ZipFile(file) as archive:
                return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # which one depends on where the damage is
        return False


def _check_zip(file: IO[bytes], room: Callable[[int], None]) -> None:
    length = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = {each.filename.lower() for each in records}
        if len(names) < len(records):
            raise Damaged("two records have one name")
        whole = 0
        for each in records:
            most = each.compress_size * (1 if each.compress_type == zipfile.ZIP_STORED else DEFLATED_TIMES)
            if each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or each.flag_bits & 1:
                raise Damaged(f"{each.filename} is compressed in another way, or encrypted")
            if each.file_size > most:
                raise Damaged(f"{each.filename} is said to be {each.file_size} bytes and cannot be")
            whole += each.file_size
        ordered = sorted(records, key=lambda each: each.header_offset)
        ends = [each.header_offset + _LOCAL_HEADER + each.compress_size for each in ordered]
        begins = [*(each.header_offset for each in ordered[1:]), length]
        if any(end > begin for end, begin in zip(ends, begins, strict=True)):
            raise Damaged("its records lie over each other, or are longer than the file")
        room(whole)
        folder = records[0].filename.partition("/")[0]
        sizes = {each.filename: each.file_size for each in records}

        def bytes_of(key: str, _: int) -> int:
            return sizes[f"{folder}/data/{key}"]

        _Machine(bytes_of).run(io.BytesIO(archive.read(f"{folder}/data.pkl")))


class _Bounded:
    """A file whose reads ask for no more than there is: Python allocates what it is asked for."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file, self._length = file, length
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, max(self._length - self.tell(), 0)))


def _check_stream(file: IO[bytes], room: Callable[[int], None]) -> None:
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    if _is_tar(file.read(tarfile.BLOCKSIZE)):
        raise Damaged("a tar archive, as torch 0.1 wrote them")
    file.seek(0)
    pickles = _Bounded(file, length)
    if _Machine().run(pickles) != MAGIC:
        raise Damaged
    _Machine().run(pickles)
    _Machine().run(pickles)
    asked = 0

    def bytes_of(_: str, wanted: int) -> int:
        nonlocal asked
        asked += wanted
        if asked > length:
            raise Damaged("the storages are longer than the file")
        return wanted

    machine = _Machine(bytes_of, views=True)
    machine.run(pickles)
    room(asked)
    keys = _Machine().run(pickles)
    if not isinstance(keys, _List) or sorted(map(str, keys.items)) != sorted(machine.storages):
        raise Damaged("other storages are read than are used")
    for key in keys.items:
        storage = machine.storages[key]
        if int.from_bytes(file.read(8), "little") * storage.element_bytes != storage.bytes:
            raise Damaged(f"storage {key} has another size than is used")
        file.seek(storage.bytes, io.SEEK_CUR)
    if file.tell() > length:
        raise Damaged("it ends within a storage")


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _allowed() -> set[str]:
    """Name what the user has declared safe to torch."""
    named = [
        each if isinstance(each, tuple) else (each, None) for each in torch.serialization.get_safe_globals()
    ]
    return {name or f"{each.__module__}.{each.__qualname__}" for each, name in named}


class _Machine:
    """Goes through a pickle.

    Args:
        bytes_of: (key, bytes that its elements take) → the bytes that the file has under the key; None: there
            are no storages. views: whether a storage may be part of another, as in streams.
    """

    def __init__(self, bytes_of: Callable[[str, int], int] | None = None, views: bool = False) -> None:
        self.storages: dict[str, _Storage] = {}
        self._parts_of_storages: dict[str, int] = {}
        self._bytes_of, self._views = bytes_of, views
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0
        self._texts = COPIED  # characters that may be copied: these, and what there is three times
        self._allowed = _allowed()

    def run(self, file: IO[bytes] | _Bounded) -> Any:
        """Go through one pickle; return what it makes, inert."""
        for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", file)):
            step = _STEPS.get(opcode.name)
            if step is None:
                raise Damaged(f"the pickle has the opcode {opcode.name}")
            step(self, argument)
        return self._stack.pop()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _text(self, text: str) -> None:
        self._texts += 3 * len(text)
        self._stack.append(text)

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _tuple(self, count: int | None) -> None:
        items = self._since_mark() if count is None else self._stack[len(self._stack) - count :]
        if count:
            if len(items) < count:
                raise Damaged("the stack is empty")
            del self._stack[-count:]
        made = _Tuple(items)
        made.parts = 1 + sum(_parts(each) for each in items)
        self._stack.append(made)

    def _append(self, items: Sequence[Any]) -> None:
        into = self._stack[-1]
        if not isinstance(into, _List):
            raise Damaged("items are put into what is no list")
        into.items += items

    def _set(self, pairs: Sequence[Any]) -> None:
        into = self._stack[-1]
        if not isinstance(into, _Dict) or into.kind == "builtins.set":
            raise Damaged("pairs are put into what is no dict")
        if len(pairs) % 2:
            raise Damaged("a key has no value")
        for key in pairs[::2]:
            _check_key(key)
        into.keys += [key for key in pairs[::2] if isinstance(key, str)]
        into.pairs += len(pairs) // 2

    def _global(self, named: str) -> None:
        module, _, name = named.partition(" ")
        full = f"{_OLD_NAMES.get(module, module)}.{name}"
        own = getattr(torch, name, None) if module == "torch" else None
        if not (
            full in _CALLED
            or full in _TYPES
            or full in self._allowed
            or isinstance(own, torch.dtype | torch.qscheme)
            or _element_bytes(full) is not None
        ):
            raise Refused(full.removeprefix("builtins."))
        self._stack.append(_Named(full))

    def _storage(self) -> None:
        kind, named, key, _, count, *view = self._stack.pop()
        element = _element_bytes(named.name) if isinstance(named, _Named) else None
        if kind not in ("storage", b"storage") or element is None or self._bytes_of is None:
            raise Damaged("a reference to what is no storage")
        if type(key) is not str or len(view) != self._views:
            raise Damaged("a storage without a key")
        wanted = _natural(count) * element
        if key not in self.storages and self._bytes_of(key, wanted) < wanted:
            raise Damaged(f"storage {key} is shorter than it is said to be")
        # torch gives the first again, whatever a later reference says of it.
        first = self.storages.setdefault(key, _Storage(wanted, element))
        if first.bytes != wanted or key in self._parts_of_storages:
            raise Damaged(f"storage {key} is said to have {first.bytes} bytes and {wanted}")
        if not self._views or view[0] is None:
            self._stack.append(_Storage(wanted, element))
            return
        name, offset, size = view[0]
        part = _natural(size) * element
        if _natural(offset) * element + part > wanted or name in self.storages:
            raise Damaged(f"a view goes beyond storage {key}")
        if self._parts_of_storages.setdefault(name, part) != part:
            raise Damaged(f"a view of storage {key} has two sizes")
        self._stack.append(_Storage(part, element))

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Named) or not isinstance(arguments, _Tuple):
            raise Damaged("what is called is no function")
        self._stack.append(self._made(function.name, arguments))

    def _new(self) -> None:
        name = getattr(self._stack[-2], "name", "")
        if name not in _CONTAINERS | self._allowed:
            raise Refused(name)
        self._call()

    def _build(self) -> None:
        state, into = self._stack.pop(), self._stack[-1]
        if isinstance(into, _Made) and into.name in self._allowed:
            return
        # Attributes such as _metadata, and none that would hide a method.
        plain = isinstance(state, _Dict) and state.pairs == len(state.keys)
        if not isinstance(into, _Dict) or not plain or any(hasattr(OrderedDict, key) for key in state.keys):
            raise Refused("an object's own __setstate__")

    def _made(self, name: str, arguments: _Tuple) -> Any:
        """Return what a call makes, its sizes checked."""
        if name in self._allowed:
            return _Made(name)
        if name not in _CALLED:
            raise Refused(name)
        if name in _CONTAINERS:
            self._copy(name, arguments)
            return _Dict(name)
        if name in _COPIES:
            if not all(isinstance(each, str | bytes) for each in arguments):
                raise Damaged(f"{name} of what is no text")
            self._texts -= sum(map(len, arguments))
            if self._texts < 0:
                raise Damaged("the same text is copied many times over")
            return arguments[0]
        if name == "torch.Size":
            (size,) = arguments
            return _tuple_of(size)
        if name == _TYPED:
            function, kind, its, state = arguments
            if not isinstance(function, _Named) or not isinstance(kind, _Named):
                raise Damaged("a tensor of no type")
            if kind.name not in _TYPES | self._allowed:
                raise Refused(kind.name)
            _check_attributes(state)
            return self._made(function.name, _tuple_of(its))
        if name in _TENSORS:
            _check_tensor(name.removeprefix("torch._utils._rebuild_"), arguments)
        elif name in _PARAMETERS:
            if not isinstance(arguments[0], _Made):
                raise Damaged("a parameter of what is no tensor")
            _check_attributes(arguments[3] if len(arguments) > 3 else None)
        return _Made(name)

    def _copy(self, name: str, arguments: _Tuple) -> None:
        """Count what a container copies of its one argument, and check the keys among it."""
        if len(arguments) > 1:
            raise Damaged("a container of several arguments")
        for given in arguments:
            if isinstance(given, _Dict):  # its keys were looked at as they were set
                self._count(given.pairs)
            for item in _items(given):
                self._count(1 + len(_items(item)))
                # Of pairs the first are keys; Python 2 wrote them as lists.
                for key in [item] if name == "builtins.set" else _items(item)[:1]:
                    _check_key(key)

    def _count(self, copied: int) -> None:
        self._copied += copied
        if self._copied > COPIED:
            raise Damaged("the same values are copied many times over")


def _check_attributes(state: Any) -> None:
    """Check that a tensor's attributes hide none of its own."""
    for part in state if isinstance(state, _Tuple) else [state]:
        if part is None:
            continue
        if not isinstance(part, _Dict) or part.pairs != len(part.keys):
            raise Damaged("a tensor's attributes are no dict of names")
        if hidden := next((key for key in part.keys if hasattr(torch.Tensor, key)), None):
            raise Damaged(f"an attribute {hidden} would hide the tensor's own")


def _items(given: Any) -> Sequence[Any]:
    if isinstance(given, _List):
        return given.items
    return given if isinstance(given, _Tuple) else ()


def _tuple_of(given: Any) -> _Tuple:
    if not isinstance(given, _Tuple):
        raise Damaged("a size or arguments that are no tuple")
    return given


def _parts(value: Any) -> int:
    return value.parts if isinstance(value, _Tuple) else 1


def _check_key(key: Any) -> None:
    """Check that hashing a key takes no time; what cannot be hashed is torch's to refuse."""
    if _parts(key) > KEY_PARTS or (isinstance(key, int) and abs(key) >= _LONGEST_KEY):
        raise Damaged("a key that would take long to look up")


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Damaged(f"a size is {value!r}"[:80])
    return value


def _element_bytes(name: str) -> int | None:
    """Return the bytes of an element of a storage's type; None: the name is of no such type."""
    module, _, kind = name.rpartition(".")
    if module in ("torch", "torch.cuda", "torch.storage") and kind.endswith("Storage"):
        return _ELEMENT_BYTES.get(kind.removesuffix("Storage"))
    return None


def _check_tensor(kind: str, arguments: _Tuple) -> None:
    """Check a tensor's size and strides against its storage."""
    if kind == "sparse_tensor":
        return  # of tensors that were checked, and it allocates nothing
    if kind == "meta_tensor_no_storage":
        _, size, stride, _ = arguments
        _extent(size, stride)
        return
    storage, offset, size, stride, *rest = arguments
    if not isinstance(storage, _Storage):
        raise Damaged("a tensor of what is no storage")
    element = storage.element_bytes
    if kind == "tensor_v3":
        named = rest[2]
        dtype = getattr(torch, named.name.removeprefix("torch."), None) if isinstance(named, _Named) else None
        if not isinstance(dtype, torch.dtype):
            raise Damaged("a tensor of no dtype")
        element = dtype.itemsize
    last = _extent(size, stride)
    elements = math.prod(size)
    held = storage.bytes * (4 if kind == "qtensor" else 1)  # those of 2 bits have four in a byte
    if elements and (_natural(offset) + last + 1) * element > held:
        raise Damaged(f"a tensor of size {list(size)} goes beyond its storage of {storage.bytes} bytes"[:200])
    if elements * element > max(held, REPEATED_BYTES):
        raise Damaged(f"a tensor of {elements * element} bytes repeats the {storage.bytes} of its storage")


def _extent(size: Any, stride: Any) -> int:
    """Return how far the last element is from the first."""
    size, stride = _tuple_of(size), _tuple_of(stride)
    return sum((max(_natural(n), 1) - 1) * _natural(step) for n, step in zip(size, stride, strict=True))


def _steps() -> Iterator[tuple[str, Callable[[_Machine, Any], None]]]:
    """Yield what is done at each opcode that ``torch.load(weights_only=True)`` reads."""
    for name in ("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "NONE"):
        yield name, _Machine._push
    yield "SHORT_BINSTRING", lambda m, text: m._push(text.encode("latin-1").decode("utf-8"))
    yield "BINUNICODE", _Machine._text
    yield "NEWTRUE", lambda m, _: m._push(True)
    yield "NEWFALSE", lambda m, _: m._push(False)
    yield "EMPTY_LIST", lambda m, _: m._push(_List())
    yield "EMPTY_DICT", lambda m, _: m._push(_Dict("dict"))
    yield "EMPTY_SET", lambda m, _: m._push(_Dict("builtins.set"))
    yield "EMPTY_TUPLE", lambda m, _: m._tuple(0)
    yield "MARK", _Machine._mark
    yield "TUPLE", lambda m, _: m._tuple(None)
    yield "TUPLE1", lambda m, _: m._tuple(1)
    yield "TUPLE2", lambda m, _: m._tuple(2)
    yield "TUPLE3", lambda m, _: m._tuple(3)
    yield "APPEND", lambda m, _: m._append([m._stack.pop()])
    yield "APPENDS", lambda m, _: m._append(m._since_mark())
    yield "SETITEM", lambda m, _: m._set([*reversed([m._stack.pop(), m._stack.pop()])])
    yield "SETITEMS", lambda m, _: m._set(m._since_mark())
    for name in ("BINPUT", "LONG_BINPUT"):
        yield name, _Machine._put
    for name in ("BINGET", "LONG_BINGET"):
        yield name, _Machine._get
    yield "GLOBAL", _Machine._global
    yield "BINPERSID", lambda m, _: m._storage()
    yield "REDUCE", lambda m, _: m._call()
    yield "NEWOBJ", lambda m, _: m._new()
    yield "BUILD", lambda m, _: m._build()
    for name in ("PROTO", "STOP"):
        yield name, lambda m, _: None


_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = dict(_steps())
