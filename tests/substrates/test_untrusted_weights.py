"""Files of weights from anyone: crafted and mutated ones are read whole, or refused in one line at once."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

import lpe
from lpe import notices
from lpe.modules import PLAIN_DTYPES
from lpe.substrates.loading import load_state, load_weights, read_weights

Limited = Callable[..., None]


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


class Calls:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


def rebuilt(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Calls:
    """A tensor of three numbers as torch saves it, with another size and stride."""
    storage = torch.arange(3.0)._typed_storage()
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def message_of(action: Callable[[], object]) -> str:
    with pytest.raises(lpe.InputError) as caught:
        action()
    said = str(caught.value)
    assert "\n" not in said
    return said


def saved(held: object, path: Path, zipped: bool = True) -> Path:
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    return path


def nested(depth: int) -> tuple[Any, ...]:
    key: tuple[Any, ...] = ()
    for _ in range(depth):
        key = (key, key)
    return key


class Nested:
    """A dict whose key is a tuple of tuples: to hash it takes 2⁶⁰ steps."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter([(nested(60), 1)])


def holding_itself() -> dict[str, Any]:
    held: dict[str, Any] = {"epoch": 1}
    held["model"] = held
    return held


def holding_each_other() -> dict[str, Any]:
    held: dict[str, Any] = {}
    held["model"] = {"state_dict": {"module": held}}
    return held


class Hides(OrderedDict[str, Any]):
    """A dict with an attribute in the place of its method."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"items": 3, "keys": 3, "get": 3}, None, iter(net().state_dict().items())


def repeated_in_sets() -> list[Any]:
    many = list(range(10_000))
    return [Calls(set, many) for _ in range(10_000)]


CRAFTED: dict[str, tuple[Callable[[], Any], str]] = {
    "a dict that holds itself": (holding_itself, "no state dict within 10"),
    "dicts that hold each other": (holding_each_other, "no state dict within 10"),
    "a byte array of any size": (lambda: Calls(bytearray, 1 << 44), "bytearray of what is no text"),
    "a tensor class of any size": (lambda: Calls(torch.FloatTensor, 1 << 44), "would run torch.FloatTensor"),
    "a storage of any size": (lambda: Calls(torch.UntypedStorage, 1 << 44), "would run torch.storage.Unty"),
    "a tensor longer than its storage": (lambda: {"a": rebuilt((1 << 40,), (1,))}, "beyond its storage"),
    "a stride beyond the storage": (lambda: {"a": rebuilt((2, 2), (1 << 50, 1))}, "beyond its storage"),
    "an offset beyond the storage": (lambda: {"a": rebuilt((3,), (1,), 1)}, "beyond its storage"),
    "a negative size": (lambda: {"a": rebuilt((-3,), (1,))}, "a size is -3"),
    "a negative stride": (lambda: {"a": rebuilt((3,), (-1,), 2)}, "a size is -1"),
    "a tensor that repeats a number": (lambda: {"a": rebuilt((1 << 40, 1 << 20), (0, 0))}, "repeats the 12"),
    "a key of tuples of tuples": (Nested, "a key that would take long"),
    "a key of a million digits": (lambda: {1 << 1000: 3}, "a key that would take long"),
    "sets of the same list": (repeated_in_sets, "copied many times"),
    "texts of the same text": (
        lambda: [Calls(bytearray, text, "latin-1") for text in ["x" * 100_000] * 1000],
        "copied many times",
    ),
    "a dict without its methods": (Hides, "__setstate__"),
    "a name in many modules": (lambda: {"module." * 100_000 + "a": torch.zeros(1)}, "no network has such"),
    "a sparse tensor": (lambda: {"a": torch.eye(3).to_sparse_csr()}, "as a sparse_csr tensor"),
    "a sparse tensor of any size": (
        lambda: {"a": torch.sparse_coo_tensor([[5], [6]], [1.0], (1 << 30, 1 << 30))},
        "as a sparse_coo tensor",
    ),
    "a meta tensor": (lambda: {"a": torch.empty(1 << 40, 1 << 10, device="meta")}, "as a meta"),
    "a tensor of half bytes": (
        lambda: {"a": torch.zeros(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)},
        "as a float4_e2m1fn_x2 tensor",
    ),
}
if not hasattr(torch, "float4_e2m1fn_x2"):  # torch 2.8 has it
    del CRAFTED["a tensor of half bytes"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:.*(sparse|Sparse|TypedStorage)")  # of torch, about its own kinds
def test_what_would_take_for_ever_or_all_memory_is_refused(
    tmp_path: Path, zipped: bool, limited: Limited
) -> None:
    def read() -> None:
        for case, (made, said) in CRAFTED.items():
            path = saved(made(), tmp_path / "weights.pt", zipped)
            message = message_of(lambda path=path: read_weights(path))
            # torch itself reads no half bytes in a stream.
            told = said in message or (not zipped and case == "a tensor of half bytes")
            assert told and str(path) in message, f"{case}: {message}"

    limited(read, seconds=60, mebibytes=512)


def test_the_crafted_files_do_take_it_from_torch_itself(tmp_path: Path, limited: Limited) -> None:
    # The injected fault: the file is not looked at before.
    path = saved(Calls(bytearray, 1 << 44), tmp_path / "weights.pt")

    def read() -> None:
        with pytest.raises(MemoryError):
            torch.load(path, weights_only=True)

    limited(read)


def test_a_tensor_longer_than_its_storage_does_make_torch_allocate_it(tmp_path: Path) -> None:
    # The injected fault, again: 16 MB of a file of 1 kB.
    path = saved({"a": rebuilt((1 << 22,), (1,))}, tmp_path / "weights.pt", zipped=False)
    assert path.stat().st_size < 2000
    with pytest.raises(RuntimeError, match="expected (12 got 16777216|%ld got %ld1216777216)"):
        torch.load(path, weights_only=True)


def test_a_stream_whose_storage_is_shorter_than_it_says_is_refused(tmp_path: Path, limited: Limited) -> None:
    path = saved({"a": torch.arange(3.0)}, tmp_path / "weights.pt", zipped=False)
    whole = path.read_bytes()
    told = b"cpu" + whole.partition(b"cpu")[2][:2] + b"K\x03"
    assert whole.count(told) == 1
    path.write_bytes(whole.replace(told, told[:-2] + b"J" + struct.pack("<i", 2**31 - 1)))
    limited(lambda: message_of(lambda: read_weights(path)), seconds=20, mebibytes=512)


def test_a_text_that_is_longer_than_the_file_is_not_made_room_for(tmp_path: Path, limited: Limited) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02X" + struct.pack("<I", 0xFFFFFFF0) + b"abc")
    limited(lambda: message_of(lambda: read_weights(path)), seconds=20, mebibytes=512)


@pytest.mark.parametrize("keys", [["0"], ["0", "1", "1"], []])
def test_a_stream_that_reads_other_storages_than_it_uses_is_refused(tmp_path: Path, keys: list[str]) -> None:
    # What is not read would be whatever lay in memory.
    path = saved({"a": torch.arange(3.0), "b": torch.zeros(2)}, tmp_path / "weights.pt", zipped=False)
    whole = path.read_bytes()
    file = io.BytesIO(whole)
    for _ in range(3):
        pickle.load(file)
    state = whole[file.tell() :]
    assert read_weights(path).keys() == {"a", "b"}
    end = state.index(b"\x80\x02]")
    path.write_bytes(whole[: file.tell()] + state[:end] + pickle.dumps(keys, protocol=2) + b"\0" * 64)
    assert "other storages are read than are used" in message_of(lambda: read_weights(path))


def rezipped(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """Write a zip archive anew, with every record as a function gives it."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


def test_a_deflated_archive_is_read(tmp_path: Path) -> None:
    path = saved(net().state_dict(), tmp_path / "weights.pt")
    rezipped(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    other = net(1)
    load_weights(other, path)
    assert all(map(torch.equal, other.state_dict().values(), net().state_dict().values()))


@pytest.mark.parametrize("first", [False, True])
def test_a_record_that_is_said_to_be_larger_than_it_can_be_is_refused(
    tmp_path: Path, first: bool, limited: Limited
) -> None:
    path = saved({"a": torch.zeros(1000)}, tmp_path / "weights.pt")
    rezipped(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    told = struct.pack("<I", 4000)
    whole = path.read_bytes()
    assert whole.count(told) == 2  # before the record, and in the directory at the end
    start = 0 if first else whole.index(told) + 4
    path.write_bytes(whole[:start] + whole[start:].replace(told, struct.pack("<I", 0xFFFFFF00)))
    limited(lambda: message_of(lambda: read_weights(path)), seconds=20, mebibytes=512)


def test_records_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(1000), "b": torch.zeros(1000)}, tmp_path / "weights.pt")
    whole = path.read_bytes()
    central = whole.index(b"PK\x01\x02")
    # Both tensors' records are the first's.
    names = [whole.index(b"data/" + key, central) for key in (b"0", b"1")]
    starts = [whole.rindex(b"PK\x01\x02", 0, name) + 42 for name in names]
    path.write_bytes(whole[: starts[1]] + whole[starts[0] : starts[0] + 4] + whole[starts[1] + 4 :])
    message_of(lambda: read_weights(path))


def test_one_storage_of_two_sizes_is_refused(tmp_path: Path) -> None:
    path = saved({"a": rebuilt((3,), (1,)), "b": rebuilt((3,), (1,))}, tmp_path / "weights.pt")
    assert read_weights(path)["b"].tolist() == [0, 1, 2]
    key = b"X\x01\x00\x00\x00"

    def twice(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        # The second reference is to the first storage, of which it says that it is shorter.
        first, second = content.split(key + b"1")
        return first + key + b"0" + second.replace(b"K\x03tq", b"K\x02tq")

    rezipped(path, twice)
    assert "is said to have 12 bytes and 8" in message_of(lambda: read_weights(path))


def test_what_trainings_keep_beside_the_weights_is_no_hindrance(tmp_path: Path) -> None:
    model = net()
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimiser.step()
    held = {
        "model": model.state_dict(),
        "optimizer": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "milestones": Counter([3, 3, 5]),
        "epoch": 3,
        "names": ("a", ("b", 1.5, None, True)),
        "seen": {1, 2},
        "plane": 1 + 2j,
        "raw": bytearray(b"abc"),
        "bytes": b"abc",
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "shape": torch.Size([2, 3]),
        "parameter": nn.Parameter(torch.zeros(2)),
        "long": list(range(20_000)),
        "many": tuple(range(20_000)),
        1 << 50: "an identity",
    }
    for zipped in (True, False):
        read = read_weights(saved(held, tmp_path / "weights.pt", zipped))
        assert all(torch.equal(read[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", sorted(PLAIN_DTYPES, key=str))
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_what_torch_reads_is_read(tmp_path: Path, zipped: bool, dtype: torch.dtype) -> None:
    path = saved({"a": of_kind(dtype)}, tmp_path / "weights.pt", zipped)
    try:
        held = torch.load(path, weights_only=True)["a"]
    except Exception:  # new kinds in the old format
        assert not zipped
        message_of(lambda: read_weights(path))
    else:
        read = read_weights(path)["a"]
        assert read.dtype == dtype and torch.equal(read.view(torch.uint8), held.view(torch.uint8))


@pytest.mark.parametrize("zipped", [True, False])
def test_views_of_one_storage_are_read(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(12.0)
    held = {
        "all": whole,
        "part": whole[3:7],
        "turned": whole.view(3, 4).T,
        "repeated": whole[:1].expand(5),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(whole[2:]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
    }
    read = read_weights(saved(held, tmp_path / "weights.pt", zipped))
    assert read.keys() == held.keys()
    assert all(torch.equal(read[name], value) for name, value in held.items())


def of_kind(dtype: torch.dtype) -> torch.Tensor:
    values = torch.tensor([0.0, 1.0, 3.0])
    return values.to(dtype) if dtype != torch.complex32 else values.to(torch.complex64).to(dtype)


@pytest.mark.parametrize("own", sorted(PLAIN_DTYPES, key=str))
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.filterwarnings("ignore:Casting complex values to real")
def test_every_kind_of_tensor_is_taken_or_refused_in_one_line(own: torch.dtype) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("first", torch.zeros(3))
            self.register_buffer("held", torch.zeros(3).to(own))

    for dtype in PLAIN_DTYPES:
        model = Holder()
        try:
            load_state(model, {"first": torch.ones(3), "held": of_kind(dtype)}, "a file")
        except lpe.InputError as error:
            assert dtype != own and "\n" not in str(error)
            assert model.first.tolist() == [0, 0, 0], (dtype, own)
        else:
            there, here = (each.to(torch.complex128) for each in (of_kind(dtype), model.held))
            assert torch.equal(there, here), (dtype, own)


def test_a_number_that_an_unsigned_integer_does_not_have_is_refused() -> None:
    model = nn.Module()
    model.register_buffer("held", torch.zeros(1, dtype=torch.uint64))
    load_state(model, {"held": torch.tensor([2**62])}, "a file")
    assert model.held.tolist() == [2**62]
    said = message_of(lambda: load_state(model, {"held": torch.tensor([-1])}, "a file"))
    assert "has int64 under held that are no uint64" in said


def test_conjugates_are_read_as_the_values_that_they_are(tmp_path: Path) -> None:
    values = torch.tensor([1 + 2j, 3 - 1j])
    held = {"0.a": values.conj(), "1.a": values.conj(), "imaginary": values.clone().conj().imag}
    read = read_weights(saved(held, tmp_path / "weights.pt"))
    assert read["0.a"].tolist() == [1 - 2j, 3 + 1j] and read["imaginary"].tolist() == [-2, 1]

    class Part(nn.Module):
        def __init__(self, a: nn.Parameter) -> None:
            super().__init__()
            self.a = a

    tied = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    model = nn.Sequential(Part(tied), Part(tied))
    load_state(model, {name: read[name] for name in ("0.a", "1.a")}, "a file")
    assert tied.tolist() == [1 - 2j, 3 + 1j]


def test_a_pipe_is_no_file_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pt")
    assert "no regular file" in message_of(lambda: read_weights(tmp_path / "weights.pt"))
    assert "no regular file" in message_of(lambda: read_weights("/dev/zero"))


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\x1b[31mred", "", "\ud800"])
def test_what_is_no_name_of_a_file_is_refused(name: str) -> None:
    message_of(lambda: read_weights(name))


# Mutations: bytes of whole files that are changed anywhere, and parts of them that are changed so that what
# lies around them still fits.

SEEDS = ("zip", "deflated", "stream", "safetensors", "records", "header")


def seed_file(kind: str) -> bytes:
    state = net().state_dict()
    if kind in ("safetensors", "header"):
        return save(state)
    file = io.BytesIO()
    torch.save({"model": state, "epoch": 3}, file, _use_new_zipfile_serialization=kind != "stream")
    if kind == "deflated":
        deflated = io.BytesIO()
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as out:
            for name in archive.namelist():
                out.writestr(name, archive.read(name))
        file = deflated
    return file.getvalue()


Edit = tuple[str, float, int, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "copy", "huge", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=6,
)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    for kind, where, length, new in edits:
        place = int(where * len(content))
        before, after = content[:place], content[place:]
        if kind == "set":
            content = before + new[: len(after)] + after[len(new) :]
        elif kind == "insert":
            content = before + new + after
        elif kind == "delete":
            content = before + after[length:]
        elif kind == "copy":
            content = before + after[:length] + after
        elif kind == "huge":
            content = before + b"\xff" * min(length % 8 + 1, len(after)) + after[length % 8 + 1 :]
        elif length < 8:
            content = before
    return content


def mutated(kind: str, content: bytes, edits: list[Edit]) -> bytes:
    if kind == "records":  # within the pickle of a zip archive, whose sums are right again
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as changed:
            for name in archive.namelist():
                held = archive.read(name)
                changed.writestr(name, edited(held, edits) if name.endswith("data.pkl") else held)
        return out.getvalue()
    if kind == "header":  # within the JSON of safetensors, whose length is right again
        length = int.from_bytes(content[:8], "little")
        header = edited(content[8 : 8 + length], edits)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    return edited(content, edits)


def quietly(examples: int, few: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=examples <= few,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("examples", [200, pytest.param(8000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*(sparse|Sparse|TypedStorage|quant)")  # of torch, about its own kinds
def test_a_mutated_file_is_loaded_whole_or_refused_in_one_line(
    tmp_path: Path, examples: int, limited: Limited
) -> None:
    path, model = tmp_path / "weights", net(1)
    wholes = {kind: seed_file(kind) for kind in SEEDS}
    before = {name: value.clone() for name, value in model.state_dict().items()}

    @quietly(examples, 200)
    @given(st.sampled_from(SEEDS), EDITS)
    def load(kind: str, edits: list[Edit]) -> None:
        path.write_bytes(mutated(kind, wholes[kind], edits))
        notices.forget()
        model.load_state_dict(before)
        try:
            load_weights(model, path)
        except lpe.InputError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    limited(load, seconds=20 + examples // 10, mebibytes=1024)


@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_bytes_are_refused_in_one_line(tmp_path: Path, examples: int, limited: Limited) -> None:
    path = tmp_path / "weights"
    starts = st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00", b"\x10\0\0\0\0\0\0\0{"])

    @quietly(examples, 100)
    @given(starts, st.binary(max_size=300), st.sampled_from(["", ".safetensors"]))
    def read(start: bytes, rest: bytes, ending: str) -> None:
        place = path.with_suffix(ending)
        place.write_bytes(start + rest)
        assert str(place) in message_of(lambda: read_weights(place))

    limited(read, seconds=20 + examples // 20, mebibytes=512)


def test_the_header_of_a_safetensors_file_is_held_against_its_bytes(tmp_path: Path, limited: Limited) -> None:
    whole = save(net().state_dict())
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    path = tmp_path / "weights.safetensors"

    def refused() -> None:
        for told in (1 << 63, 1 << 40, 99_999_999, length + 10_000):
            path.write_bytes(struct.pack("<Q", told) + whole[8:])
            message_of(lambda: read_weights(path))
        for key, value in (
            ("shape", [1 << 40]),
            ("data_offsets", [0, 1 << 50]),
            ("dtype", "F4"),
            ("dtype", ""),
        ):
            told = json.dumps({**header, "0.bias": {**header["0.bias"], key: value}}).encode()
            path.write_bytes(struct.pack("<Q", len(told)) + told + whole[8 + length :])
            message_of(lambda: read_weights(path))

    limited(refused, seconds=20, mebibytes=512)
