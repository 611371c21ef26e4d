"""Packed files from anyone: what their headers and tensors say is held together before anything is made."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.files import container
from lpe.files.header import MOST_MEMBERS

Limited = Callable[..., None]
Change = Callable[[dict[str, Any], dict[str, Tensor]], None]

INPUTS = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
INT5 = lpe.Int(5)


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(64, 3)
        ).eval()


def batches() -> list[Any]:
    return [(INPUTS, torch.zeros(4, dtype=torch.long))]


def rounded(system: Any = INT5, **settings: Any) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(net(), system, 3, **settings)


FILES: dict[str, tuple[Callable[[], Ensemble], dict[str, str]]] = {
    "members": (rounded, {}),
    "blocks": (lambda: rounded(lpe.Int(3, lpe.PerBlock(5))), {}),
    "nearest": (lambda: rounded(rounding="nearest"), {}),
    "codebook": (lambda: rounded(lpe.Codebook([-1.0, 0.0, 0.5])), {}),
    "patterns": (lambda: rounded({"0.*": lpe.Int(3), "*": lpe.NF4()}), {}),
    "statistics": (lambda: rounded(batches=batches()), {}),
    "int8": (rounded, {"kind": "seeded"}),
    "bf16": (rounded, {"kind": "seeded", "base": "bf16"}),
    "seeded statistics": (lambda: rounded(batches=batches()), {"kind": "seeded", "base": "fp32"}),
    "planes": (rounded, {"kind": "planes"}),
    "planes of patterns": (lambda: rounded({"0.*": lpe.Int(3), "*": lpe.NF4()}), {"kind": "planes"}),
    "planes and statistics": (lambda: rounded(batches=batches(), rounding="coupled"), {"kind": "planes"}),
    "selected planes": (lambda: lpe.SelectedEnsemble(rounded(), [2, 0]), {"kind": "planes"}),
    "selection": (lambda: lpe.SelectedEnsemble(rounded(), [2, 0]), {}),
    "seeded selection": (lambda: lpe.SelectedEnsemble(rounded(), [2, 0]), {"kind": "seeded"}),
    "mixture": (lambda: lpe.Mixture.of([rounded(), lpe.DeepEnsemble([net(1), net(2)])]), {}),
    "deep": (lambda: lpe.DeepEnsemble([net(1), net(2)]), {}),
    "dropout": (lambda: lpe.MCDropoutEnsemble(net(), 0.3, 3), {}),
    "dropout statistics": (lambda: lpe.MCDropoutEnsemble(net(), 0.3, 3, batches=batches()), {}),
    "batch": (lambda: lpe.BatchEnsemble(net(), 3), {}),
    "views": (lambda: lpe.AugmentedEnsemble(net(), 3), {}),
}


def written(name: str, path: Path) -> Path:
    make, settings = FILES[name]
    lpe.save(make(), path, **settings)
    return path


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lpe"])
    return header, safetensors.torch.load_file(path)


def changed(path: Path, change: Change) -> Path:
    """Change a file, under a hash that fits."""
    header, tensors = contents(path)
    change(header, tensors)
    container.write(path, tensors, header)
    return path


def message_of(action: Callable[[], object]) -> str:
    with pytest.raises(lpe.InputError) as caught:
        action()
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_is_read(name: str, tmp_path: Path) -> None:
    made = FILES[name][0]()
    read = lpe.load(written(name, tmp_path / "e"), net(9))
    assert len(read) == len(made)
    if FILES[name][1].get("kind") != "seeded":
        assert torch.equal(read[1](INPUTS), made[1](INPUTS))


@pytest.mark.parametrize("name", [name for name in FILES if name != "mixture"])
def test_a_size_that_is_not_there_is_not_made_room_for(name: str, tmp_path: Path, limited: Limited) -> None:
    path = written(name, tmp_path / "e")
    assert path.stat().st_size < 20_000

    def refused() -> None:
        for size in (10**15, 2**63, MOST_MEMBERS + 1):
            changed(path, lambda header, _, size=size: header.update(size=size, distinct=size))
            assert str(path) in message_of(lambda: lpe.load(path, net(9)))

    limited(refused, seconds=20, mebibytes=512)


@pytest.mark.parametrize("name", FILES)
def test_the_largest_size_takes_no_more_room_than_the_file_has(
    name: str, tmp_path: Path, limited: Limited
) -> None:
    path = changed(written(name, tmp_path / "e"), lambda header, _: header.update(size=MOST_MEMBERS))

    def read() -> None:
        try:
            ensemble = lpe.load(path, net(9))
        except lpe.InputError as error:
            assert str(path) in str(error)
        else:  # what follows from a seed, is the same for all, or comes again after those that are stored
            assert len(ensemble) == MOST_MEMBERS

    limited(read, seconds=20, mebibytes=256)


CASES: dict[str, tuple[str, Change, str]] = {
    "own twice": ("deep", lambda h, t: h["own"].append(h["own"][0]), "own twice"),
    "own of no tensor": ("deep", lambda h, t: h["own"].append("x"), "'x' is none of its tensors"),
    "packed of no tensor": ("members", lambda h, t: h["layouts"].update(x={}), "'x' is none of its tensors"),
    "packed and shared": ("members", lambda h, t: h["own"].remove("0.weight"), "is packed and not the mem"),
    "no dtype": (
        "int8",
        lambda h, t: h["layouts"]["0.weight"].update(dtype="nn"),
        "the dtype of '0.weight' is 'nn'",
    ),
    "a dtype of codes": ("int8", lambda h, t: h["layouts"]["0.weight"].update(dtype="int8"), "is 'int8'"),
    "integers for weights": (
        "deep",
        lambda h, t: t.update({"member 1/4.bias": torch.zeros(3, dtype=torch.int64)}),
        "'member 1/4.bias' is torch.int64, where floating numbers are needed",
    ),
    "floats for counts": (
        "members",
        lambda h, t: t.update({"shared/1.num_batches_tracked": torch.tensor(0.5)}),
        "is torch.float32, where whole numbers are needed",
    ),
    "complex weights": (
        "views",
        lambda h, t: t.update({"shared/4.bias": torch.zeros(3, dtype=torch.complex64)}),
        "is torch.complex64, where floating numbers are needed",
    ),
    "whole scales": (
        "members",
        lambda h, t: t.update({"scales/0.weight": torch.ones(4, 1, dtype=torch.int32)}),
        "'scales/0.weight' is torch.int32, where floating numbers are needed",
    ),
    "another shape in a method's": (
        "dropout",
        lambda h, t: t.update({"shared/4.bias": torch.zeros(7)}),
        "'shared/4.bias' is of shape \\[7\\], not \\[3\\]",
    ),
    "another shape in a view's": (
        "views",
        lambda h, t: t.update({"shared/4.bias": torch.zeros(7)}),
        "'shared/4.bias' is of shape \\[7\\], not \\[3\\]",
    ),
    "fewer fast weights than members": (
        "batch",
        lambda h, t: t.update({"network/4.batch_r": t["network/4.batch_r"][:1].clone()}),
        "'network/4.batch_r' is of shape \\[1, 64\\], for 3 members",
    ),
    "a selection of other members": ("selection", lambda h, t: h.update(selected=[1]), "its 2 members are"),
    "a selection of no members": (
        "seeded selection",
        lambda h, t: h.update(selected=[-1, 2]),
        "2 members are",
    ),
    "a rounding that is no word": ("members", lambda h, t: h.update(rounding=3), "its rounding is 3"),
    "a hash that is no text": ("members", lambda h, t: h.update(base_hash=[3]), "its base_hash is"),
    "a version that is no number": (
        "members",
        lambda h, t: h.update(version=True),
        "its version is True",
    ),
    "a margin of any width": (
        "views",
        lambda h, t: h.update(padding=2**70),
        "padding must be an integer from",
    ),
    "planes of more members": ("planes", lambda h, t: h.update(size=4), "planes of 3 members, not of 4"),
    "planes of fewer members than are said": (
        "planes",
        lambda h, t: h.update(size=10**6, distinct=10**6),
        "'planes/0.weight' is of shape \\[3, 14\\], not \\[1000000, 14\\]",
    ),
    "planes without a count": ("planes", lambda h, t: h.pop("distinct"), "it lacks 'distinct'"),
    "planes of floats": (
        "planes",
        lambda h, t: t.update({"planes/0.weight": t["planes/0.weight"].float()}),
        "'planes/0.weight' is torch.float32",
    ),
    "a budget below 0": ("members", lambda h, t: h.update(training_budget=-1), "its training budget is -1"),
    "no parts": ("mixture", lambda h, t: h.update(parts=[]), "its parts have 0 members, not 5"),
    "parts that are numbers": ("mixture", lambda h, t: h.update(parts=[1, 2]), "a part must be an object"),
    "a shape below 0": ("deep", lambda h, t: h["shapes"].update({"4.bias": [-3]}), "the shape of '4.bias'"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_crafted_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, change, said = CASES[case]
    path = changed(written(name, tmp_path / "e"), change)
    with pytest.raises(lpe.InputError, match=said) as caught:
        lpe.load(path, net(9))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def with_header(path: Path, about: str) -> Path:
    """Write a file of no tensors whose header is a text."""
    metadata = json.dumps({"__metadata__": {"lpe": about}}).encode()
    path.write_bytes(struct.pack("<Q", len(metadata)) + metadata)
    return path


@pytest.mark.parametrize(
    "about",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "1" * 10_000,
        "3",
        "null",
        '{"format": "lpe ensemble", "version": 1' + "0" * 4000 + "}",
        '{"format": "lpe ensemble", "version": NaN}',
        '{"format": "lpe ensemble", "version": 2, "sha256": ""}',
        '{"format": "lpe ensemble", "version": 1}',
    ],
    ids=lambda about: about[:44],
)
def test_a_header_that_is_no_such_text_is_refused_in_one_line(about: str, tmp_path: Path) -> None:
    path = with_header(tmp_path / "e", about)
    assert str(path) in message_of(lambda: lpe.load(path, net()))
    assert not container.is_packed(path) or "lpe ensemble" in about


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in message_of(lambda: lpe.load(tmp_path / "pipe", net()))
    assert not container.is_packed(tmp_path / "pipe")
    assert "is no file" in message_of(lambda: lpe.load(tmp_path, net()))


def test_a_tensor_of_half_bytes_is_refused(tmp_path: Path) -> None:
    path = written("deep", tmp_path / "e")
    header, tensors = contents(path)
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no half bytes")
    tensors["shared/x"] = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    try:
        container.write(path, tensors, header)
    except (lpe.InputError, KeyError):
        pytest.skip("this safetensors writes no tensors of half bytes")
    message_of(lambda: lpe.load(path, net()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
@pytest.mark.parametrize("prefix", ["scales/", "member 1/", "lower/", "planes/", "base/"])
def test_scales_are_float32_and_codes_bytes(prefix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tried = 0
    for name in ("members", "statistics", "int8", "planes"):
        header, tensors = contents(written(name, tmp_path / "e"))
        for key in tensors:
            if key.startswith(prefix) and (prefix != "member 1/" or tensors[key].dtype == torch.uint8):
                tried += 1
                container.write(tmp_path / "e", {**tensors, key: tensors[key].to(dtype)}, header)
                said = message_of(lambda: lpe.load(tmp_path / "e", net(9)))
                assert str(tmp_path / "e") in said, (name, key)
    assert tried


@pytest.mark.parametrize("name", ["members", "planes", "deep"])
@pytest.mark.parametrize("added", [None, "other.weight", 3], ids=repr)
def test_a_tensor_of_its_own_that_a_file_does_not_have_is_refused(
    name: str, added: object, tmp_path: Path
) -> None:
    header, tensors = contents(written(name, tmp_path / "e"))
    assert added not in header["own"]
    container.write(tmp_path / "e", tensors, {**header, "own": [*header["own"], added]})
    assert str(tmp_path / "e") in message_of(lambda: lpe.load(tmp_path / "e", net(9)))


# Mutations: any entry of a header, and any tensor, under a hash that fits.

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 7, 2**31, 2**32, 2**63, 2**70, 10**15]),
    st.floats(),
    st.sampled_from(
        ["", "x", "int8", "fp32", "float32", "nearest", "0.weight", "PerTensor", "*", "\0", "\n"]
    ),
    st.sampled_from([[], {}, [1, 2], [[]], {"a": 1}, ["0.weight"], [2**40, 2**40]]),
)
DTYPES = st.sampled_from(
    [torch.float16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["entry", "entry", "entry", "gone", "added", "dtype", "shape", "lost", "renamed"]),
        st.integers(0, 10**6),
        JUNK,
        DTYPES,
    ),
    min_size=1,
    max_size=3,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in inside for place in [(*at, key), *places(each, (*at, key))]]


def edit(header: dict[str, Any], tensors: dict[str, Tensor], edits: list[Any]) -> None:
    for kind, index, junk, dtype in edits:
        there, names = places(header), sorted(tensors)
        if kind in ("entry", "gone", "added") and there:
            *path, last = there[index % len(there)]
            holder = header
            for key in path:
                holder = holder[key]
            if kind == "gone":
                del holder[last]
            elif kind == "entry":
                holder[last] = copy.deepcopy(junk)
            elif isinstance(holder, dict):
                holder[str(junk)] = copy.deepcopy(junk)
            else:
                holder.append(copy.deepcopy(junk))
        elif kind not in ("entry", "gone", "added") and names:
            name = names[index % len(names)]
            tensor = tensors[name]
            if kind == "dtype":
                tensors[name] = tensor.to(dtype)
            elif kind == "shape":
                tensors[name] = tensor.reshape(-1)[: max(tensor.numel() - 1, 0)].clone()
            else:
                del tensors[name]
                if kind == "renamed":
                    tensors[f"{name[:-1]}{junk}"] = tensor


@pytest.mark.parametrize("examples", [200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # of the edits
def test_a_mutated_file_is_loaded_whole_or_refused_in_one_line(
    tmp_path: Path, examples: int, limited: Limited
) -> None:
    path, model = tmp_path / "e", net(9)
    wholes = {name: contents(written(name, path)) for name in FILES}
    before = {name: value.clone() for name, value in model.state_dict().items()}

    @settings(
        max_examples=examples,
        derandomize=examples <= 200,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(FILES)), EDITS)
    def load(name: str, edits: list[Any]) -> None:
        header, tensors = copy.deepcopy(wholes[name][0]), dict(wholes[name][1])
        edit(header, tensors, edits)
        try:
            container.write(path, tensors, header)
        except (lpe.InputError, UnicodeEncodeError):
            return
        try:
            ensemble = lpe.load(path, model)
        except lpe.InputError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        else:
            assert ensemble.memory_bits() > 0
            assert len(ensemble) > 10_000 or ensemble.describe()
            for index in {0, len(ensemble) - 1}:
                try:
                    member = ensemble[index]
                    # Half and single precision, mixed, are a network's own affair.
                    if not any(kind == "dtype" for kind, *_ in edits):
                        assert member(INPUTS).shape == (4, 3)
                except lpe.InputError as error:  # of a code that a system lacks, say
                    assert "\n" not in str(error)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    limited(load, seconds=40 + examples // 10, mebibytes=1024)


@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_file_of_other_bytes_is_refused_in_one_line(
    tmp_path: Path, examples: int, limited: Limited
) -> None:
    path, model = written("members", tmp_path / "e"), net(9)
    whole, first = path.read_bytes(), rounded()[0](INPUTS)

    @settings(
        max_examples=examples,
        derandomize=examples <= 200,
        database=None,
        deadline=None,
        phases=[Phase.generate],
    )
    @given(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=9), st.booleans())
    def load(place: int, new: bytes, inserted: bool) -> None:
        path.write_bytes(whole[:place] + new + whole[place if inserted else place + len(new) :])
        try:
            read = lpe.load(path, model)
        except lpe.InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # a space more between the header's entries
            assert torch.equal(read[0](INPUTS), first)

    limited(load, seconds=40 + examples // 20, mebibytes=512)
