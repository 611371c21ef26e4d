"""Packed files: whole, unaltered and of a version that is known, or one line and nothing loaded."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import lpe
from lpe.files import container
from lpe.files.container import contents_hash, weights_hash


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


@pytest.fixture(params=["members", "seeded", "planes"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    lpe.save(lpe.LowPrecisionEnsemble(net(), lpe.Int(5), 2), tmp_path / "e", kind=request.param)
    return tmp_path / "e"


def refusal(path: Path) -> str:
    with pytest.raises(lpe.InputError) as caught:
        lpe.load(path, net(9))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "e"
    container.write(path, {"a": torch.arange(3.0), "b": torch.arange(5, dtype=torch.uint8)}, {"size": 1})
    whole = path.read_bytes()
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(lpe.InputError):
            container.read(path)


def test_a_flipped_bit_of_the_data_is_an_alteration(path: Path) -> None:
    altered = bytearray(path.read_bytes())
    altered[-1] ^= 1
    path.write_bytes(altered)
    assert refusal(path).startswith(f"{path} was altered")


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_truncated_file_is_no_whole_file(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])
    assert f"{path} is no whole safetensors file" in refusal(path)


def test_bytes_after_the_end_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"{path} is no whole safetensors file" in refusal(path)


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Another header and other tensors, beside the hash of those that were there."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lpe"])
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata={"lpe": json.dumps(header)})


EDITS: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], None]] = {
    "another seed": lambda header, tensors: header.update(seed=8),
    "more members": lambda header, tensors: header.update(size=3),
    "an older version": lambda header, tensors: header.update(version=1),
    "another hash": lambda header, tensors: header.update(sha256="0" * 64),
    "a hash that is none": lambda header, tensors: header.update(sha256=0),
    "an empty hash": lambda header, tensors: header.update(sha256=""),
    "the same spelled otherwise": lambda header, tensors: header.update(seed=0.0),
    "another base": lambda header, tensors: header.update(base_hash="0" * 64),
    "a tensor more": lambda header, tensors: tensors.update(more=torch.zeros(1)),
    "a tensor less": lambda header, tensors: tensors.pop("shared/0.bias"),
    "a tensor of another dtype": lambda header, tensors: tensors.update(
        {"shared/0.bias": tensors["shared/0.bias"].view(torch.int32)}
    ),
    "a tensor of another shape": lambda header, tensors: tensors.update(
        {"shared/0.bias": tensors["shared/0.bias"].view(5, 1)}
    ),
    "a tensor of another name": lambda header, tensors: tensors.update(
        {"shared/1.bias": tensors.pop("shared/0.bias")}
    ),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_an_edited_header_is_an_alteration(
    path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]
) -> None:
    edit(path, change)
    assert f"{path} was altered" in refusal(path)


def test_a_file_that_lost_its_hash_is_altered(path: Path) -> None:
    edit(path, lambda header, tensors: header.pop("sha256"))
    assert f"{path} was altered" in refusal(path)


def test_the_same_contents_are_read_whoever_wrote_the_file(path: Path) -> None:
    # What the tests above rest on: rewriting alone is no alteration.
    edit(path, lambda header, tensors: None)
    assert len(lpe.load(path, net(9))) == 2


@pytest.mark.parametrize("version", [container.VERSION + 1, 1000])
def test_a_newer_version_says_so_before_its_contents_are_looked_at(path: Path, version: int) -> None:
    edit(path, lambda header, tensors: header.update(version=version, shapes="otherwise"))
    wanted = f"{path} is of version {version}, this lpe reads up to {container.VERSION}; update lpe"
    assert wanted in refusal(path)


@pytest.mark.parametrize("version", [None, "2", 0, 1.5])
def test_a_version_that_is_none_is_refused_with_its_value(path: Path, version: object) -> None:
    edit(path, lambda header, tensors: header.update(version=version))
    assert f"its version is {version!r}" in refusal(path)


@pytest.mark.parametrize("header", ["[]", "1", "{", "{}", '{"format": "another"}'])
def test_a_header_of_something_else_is_no_ensembles(tmp_path: Path, header: str) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "e", metadata={"lpe": header})
    assert "holds no ensemble" in refusal(tmp_path / "e") or header == "{"
    assert not container.is_packed(tmp_path / "e")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "is no file" in refusal(tmp_path)


@pytest.mark.parametrize("place", ["no/folder/e", "", "file/e"])
def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(lpe.InputError, match="cannot write ") as caught:
        lpe.save(lpe.DeepEnsemble([net()]), tmp_path / place)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert {each.name for each in tmp_path.iterdir()} == {"file"}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(lpe.InputError, match=r"cannot write .* \(No space left on device\)"):
        lpe.save(lpe.DeepEnsemble([net()]), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_what_becomes_of_the_file_later_does_not_reach_what_was_read(path: Path) -> None:
    read = lpe.load(path, net(9))
    before = [{name: value.clone() for name, value in member.state_dict().items()} for member in read]
    with open(path, "r+b") as file:  # in place, as cp does
        file.write(bytes(path.stat().st_size))
    for member, tensors in zip(read, before, strict=True):
        assert all(torch.equal(value, tensors[name]) for name, value in member.state_dict().items())


def test_one_ensemble_is_one_file(path: Path) -> None:
    held = safetensors.torch.load_file(path)
    kind = "seeded" if "base/0.weight" in held else "planes" if "planes/0.weight" in held else "members"
    for again in ("first", "second", "third"):
        lpe.save(lpe.LowPrecisionEnsemble(net(), lpe.Int(5), 2), path.parent / again, kind=kind)
        assert (path.parent / again).read_bytes() == path.read_bytes()


def test_a_file_has_the_permissions_of_any_other(path: Path) -> None:
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


# Hashes.


def test_a_hash_is_of_names_dtypes_shapes_and_bytes_and_not_of_order() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3, 4]])}
    reference = contents_hash(tensors)
    assert contents_hash(dict(reversed(tensors.items()))) == reference
    others = [
        {"a": torch.tensor([1.0, 2.5]), "b": tensors["b"]},
        {"a": tensors["a"].view(1, 2), "b": tensors["b"]},
        {"a": tensors["a"].view(torch.int32), "b": tensors["b"]},
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"]},
    ]
    hashes = [contents_hash(other) for other in others] + [contents_hash(tensors, "about")]
    assert len({reference, *hashes}) == 1 + len(hashes)


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(1.5), torch.empty(0, 3), torch.tensor([True]), torch.zeros(2, dtype=torch.bfloat16)],
    ids=lambda tensor: f"{tensor.dtype} {list(tensor.shape)}",
)
def test_tensors_of_every_kind_have_a_hash(tensor: Tensor) -> None:
    assert len(contents_hash({"a": tensor})) == 64


def test_the_hash_is_of_values_in_their_order_however_they_lie_in_memory() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    laid_otherwise = matrix.t().contiguous().t()
    assert contents_hash({"a": laid_otherwise}) == contents_hash({"a": matrix})


def test_weights_are_known_by_canonical_names_and_without_what_is_not_saved() -> None:
    plain = net()
    wrapped = nn.Module()
    wrapped.add_module("module", net())
    wrapped.module.register_buffer("scratch", torch.zeros(3), persistent=False)
    assert weights_hash(wrapped) == weights_hash(plain)


def test_other_weights_have_another_hash() -> None:
    assert weights_hash(net(1)) != weights_hash(net(0))


def test_a_model_without_weights_has_no_hash() -> None:
    with pytest.raises(lpe.InputError, match="this Linear has no weights"):
        weights_hash(nn.Linear(2, 2, device="meta"))


# A seeded file of version 1, byte by byte as lpe wrote it before there was a version 2 (deflated, base64).

VERSION_1 = """
eNp9UkFOwzAQjCoeEnyO1CatShRVAoHEGQlxaqLgNJvWwrGj2KGUKgcOfQaf4AOc+ASPQdjrCioVkZN3dma8ns39wMNvS/K8Bk1L
qmmek2RLeAMkIduUVLKtqU5J4qcW9EEoqAsOKQkM8gitYlLYdmjrByZKx1UAJZSOpdgzWDTCYqM01LY07gXTyh7H2FlQDk59A+3V
igoB3DksXIHcsEfyijag9jZrYMsVDjk3d0wySygYVQ7JUMDpRnb6WGEKgzedzukTw/bo4MZ82cquUT8PLPWm2c9YcUn1OEpJj/5y
jTHMf71xDCMXJRNLpymgFbLjnO2DAcC4zmxRsVZps4bakCw46UkfuFDU0HnazeAEZjfX44gELgaSmGeHWUBwf7KqFGhlwFEQZz1y
WiiHNpB/DI7lcRBOrb6gCv4Y4C4+kMfH8nAaRJOs733f312ezk4GLzPPuzg3v9v7m/f6+bW7/fgGExrJGQ==
"""


def test_a_seeded_file_of_version_1_gives_the_members_that_version_1_gave(tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(zlib.decompress(base64.b64decode(VERSION_1)))
    first, second = lpe.load(tmp_path / "e", nn.Linear(4, 2))
    third, two, one = 0.4166666567325592, -0.6666666865348816, 1.3333333730697632
    assert first.weight.tolist() == [[third, -1.25, third, 1.25], [2.0, 0.0, two, one]]
    assert second.weight.tolist() == [[third, -1.25, 0.0, 1.25], [2.0, 0.0, two, one]]
    assert first.bias.tolist() == second.bias.tolist() == [0.75, -0.5]


def test_a_file_of_version_1_does_not_tell_its_base(tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(zlib.decompress(base64.b64decode(VERSION_1)))
    with pytest.raises(lpe.InputError, match="does not tell the weights that it was made of"):
        lpe.load(tmp_path / "e", nn.Linear(4, 2), base="same")
