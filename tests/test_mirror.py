"""A store elsewhere: entries are fetched and sent, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from lpe.errors import InputError
from lpe.mirror import Mirror, MirroredStore, cache_of, open_store
from lpe.store import Store

CONFIG = {"model": "net", "seed": 1}
TENSORS = {"weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place elsewhere: a folder by its URL, or memory."""
    if request.param == "file":
        yield f"file://{tmp_path}/elsewhere"
        return
    yield "memory://elsewhere/lpe"
    memory = fsspec.filesystem("memory")
    if memory.exists("/elsewhere"):
        memory.rm("/elsewhere", recursive=True)


def on(url: str, folder: Path) -> MirroredStore:
    return MirroredStore(Mirror(url, folder), "store")


def make() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return TENSORS, {"loss": 0.5}


def fail() -> Any:
    raise AssertionError("it was there")


def test_what_one_machine_made_another_takes(url: str, tmp_path: Path) -> None:
    made = on(url, tmp_path / "a").get_or_make(CONFIG, make)
    found = on(url, tmp_path / "b").get_or_make(CONFIG, fail)
    assert torch.equal(found.tensors["weight"], TENSORS["weight"]) and found.info == {"loss": 0.5}
    assert found.path.read_bytes() == made.path.read_bytes()
    assert found.path.is_relative_to(tmp_path / "b") and found.made == made.made


def test_what_is_here_is_not_fetched_again(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = on(url, tmp_path / "a")
    store.put(CONFIG, TENSORS)
    monkeypatch.setattr(Mirror, "there", fail)
    assert store.get(CONFIG) is not None


def test_what_is_nowhere_is_none(url: str, tmp_path: Path) -> None:
    assert on(url, tmp_path / "a").get(CONFIG) is None


def test_a_damaged_entry_here_is_fetched_anew(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = on(url, tmp_path / "a")
    store.put(CONFIG, TENSORS)
    entry = store.get(CONFIG)
    assert entry is not None
    entry.path.write_bytes(b"")
    again = store.get(CONFIG)
    assert again is not None and torch.equal(again.tensors["weight"], TENSORS["weight"])
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("sent", [0, 1])
def test_a_machine_that_dies_while_it_sends_leaves_no_entry(
    sent: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_send = Mirror.send

    def dying(self: Mirror, paths: Iterable[Path]) -> None:
        true_send(self, list(paths)[:sent])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "send", dying)
        with pytest.raises(KeyboardInterrupt):
            on(url, tmp_path / "a").put(CONFIG, TENSORS)
    other = on(url, tmp_path / "b")
    assert other.get(CONFIG) is None
    other.put(CONFIG, TENSORS)
    assert on(url, tmp_path / "c").get(CONFIG) is not None


def test_a_file_there_is_replaced_in_one_move(url: str, tmp_path: Path) -> None:
    mirror = Mirror(url, tmp_path / "a")
    path = mirror.folder / "records" / "r.csv"
    path.parent.mkdir(parents=True)
    for content in (b"one", b"another"):
        path.write_bytes(content)
        mirror.send([path])
    assert mirror.names("records") == ["records/r.csv"]
    other = Mirror(url, tmp_path / "b")
    other.fetch(["records/none.csv", "records/r.csv"])
    assert [each.name for each in (other.folder / "records").iterdir()] == ["r.csv"]
    assert (other.folder / "records" / "r.csv").read_bytes() == b"another"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="^cannot write to file://.*set LPE_STORE to a place"):
        Mirror(f"file://{tmp_path}/file/in", tmp_path / "a").check()


def test_a_kind_of_place_that_is_not_known_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^cannot write to nonsense://"):
        Mirror("nonsense://a/b", tmp_path / "a").check()


def test_the_environment_says_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "store"))
    assert type(open_store()) is Store and open_store().root == tmp_path / "store"
    monkeypatch.setenv("LPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LPE_STORE", "s3://bucket/lpe/store/")
    store = open_store()
    assert isinstance(store, MirroredStore)
    assert store.mirror.url == "s3://bucket/lpe" and store.root == cache_of("s3://bucket/lpe") / "store"
    assert store.root.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("place", ["s3://bucket", "s3://"])
def test_a_url_without_a_folder_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPE_STORE", place)
    with pytest.raises(InputError, match="names no folder"):
        open_store()
