"""The store of trained weights: an entry is whole and the one that was asked for, or there is none."""

from __future__ import annotations

import errno
import itertools
import math
import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lpe.errors import InputError
from lpe.provenance import REPOSITORY, machine
from lpe.store import Entry, Store

CONFIG = {"method": "SWAG", "learning_rate": 0.1, "seed": 3, "layers": (64, 10)}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "steps": torch.tensor(7),
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def entry(store: Store) -> Entry:
    store.put(CONFIG, tensors(), {"loss": 0.5})
    return got(store)


def got(store: Store) -> Entry:
    entry = store.get(CONFIG)
    assert entry is not None
    return entry


def description(entry: Entry) -> Path:
    return entry.path.with_suffix(".json")


def test_tensors_come_back_bit_for_bit(entry: Entry) -> None:
    assert entry.tensors.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert torch.equal(entry.tensors[name], tensor) and entry.tensors[name].dtype == tensor.dtype


def test_the_information_comes_back(entry: Entry) -> None:
    assert entry.info == {"loss": 0.5}


def test_tensors_that_share_memory_or_skip_elements_are_stored(store: Store) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    store.put(CONFIG, {"weight": weight, "tied": weight, "columns": weight.T}, None)
    assert torch.equal(got(store).tensors["columns"], weight.T)


def test_an_entry_has_a_file_for_each_half_and_nothing_else_but_the_lock(entry: Entry) -> None:
    lock = entry.path.parent / ".store.lock"
    assert sorted(entry.path.parent.iterdir()) == [lock, description(entry), entry.path]


def test_both_files_are_as_readable_as_any_new_file(entry: Entry) -> None:
    (entry.path.parent / "new").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in entry.path.parent.glob("[!.]*")}
    assert len(modes) == 1


def test_what_was_never_stored_is_none(store: Store) -> None:
    assert store.get(CONFIG) is None


def test_another_configuration_has_no_entry(store: Store, entry: Entry) -> None:
    assert store.get(CONFIG | {"seed": 4}) is None


def test_a_key_is_32_hexadecimal_digits_and_the_same_in_every_version() -> None:
    # Golden: sha256 of {"a":[1,0.1,null,true],"b":"x"}. Another key loses every stored weight.
    assert Store.key({"b": "x", "a": (1, 0.1, None, True)}) == "8542c7f8a4b24945fbfac420898fb0a5"


def test_the_order_of_a_configuration_does_not_change_its_key() -> None:
    assert Store.key(CONFIG) == Store.key(dict(reversed(CONFIG.items())))


@dataclass(frozen=True)
class One:
    rate: float = 0.1


@dataclass(frozen=True)
class Two:
    rate: float = 0.1


@pytest.mark.parametrize(
    ("one", "other"),
    [(0.1, math.nextafter(0.1, 1)), (1, "1"), (One(), Two()), (None, 0), ([1, 2], [2, 1])],
    ids=["float", "text", "class", "none", "order"],
)
def test_what_differs_has_another_key(one: object, other: object) -> None:
    assert Store.key({"value": one}) != Store.key({"value": other})


def test_a_configuration_that_is_not_plain_data_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="config.optimiser is of type"):
        Store.key({"optimiser": torch.optim.SGD})


def test_what_is_not_a_tensor_is_refused_by_name(store: Store) -> None:
    with pytest.raises(InputError, match="weight is of type list"):
        store.put(CONFIG, {"weight": [1.0]})  # type: ignore[dict-item]


def truncate_tensors(entry: Entry) -> None:
    entry.path.write_bytes(entry.path.read_bytes()[:-5])


def alter_tensors(entry: Entry) -> None:
    content = bytearray(entry.path.read_bytes())
    content[-1] ^= 1
    entry.path.write_bytes(content)


def remove_tensors(entry: Entry) -> None:
    entry.path.unlink()


def truncate_description(entry: Entry) -> None:
    description(entry).write_bytes(description(entry).read_bytes()[:-5])


def replace_description(entry: Entry) -> None:
    description(entry).write_text("[]")


def alter_description(entry: Entry) -> None:
    description(entry).write_text(description(entry).read_text().replace('"loss": 0.5', '"loss": 0.4'))


def take_another_entry(entry: Entry) -> None:
    store = Store(entry.path.parent)
    other = CONFIG | {"seed": 4}
    store.put(other, tensors())
    for path in (entry.path, description(entry)):
        os.replace(path.with_name(store.key(other) + path.suffix), path)


DAMAGES = {
    truncate_tensors: "its tensors were truncated or altered",
    alter_tensors: "its tensors were truncated or altered",
    remove_tensors: "its tensors are missing",
    truncate_description: "its json is unreadable",
    replace_description: "its json is unreadable",
    alter_description: "its json was altered",
    take_another_entry: "its json is of another configuration",
}
damaged = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@damaged
def test_a_damaged_entry_is_none(store: Store, entry: Entry, damage: Any) -> None:
    damage(entry)
    assert store.get(CONFIG) is None


@damaged
def test_a_damaged_entry_is_said_in_one_line(
    store: Store, entry: Entry, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(entry)
    store.get(CONFIG)
    said = f"store: entry {store.key(CONFIG)} is damaged ({DAMAGES[damage]}); it is made again\n"
    assert capsys.readouterr().err == said


@damaged
def test_a_damaged_entry_is_made_again_and_then_whole(store: Store, entry: Entry, damage: Any) -> None:
    damage(entry)
    store.get_or_make(CONFIG, lambda: (tensors(), {"loss": 0.25}))
    assert got(store).info == {"loss": 0.25}


def test_what_is_stored_is_not_made_again(store: Store, entry: Entry) -> None:
    found = store.get_or_make(CONFIG, lambda: pytest.fail("it was made again"))
    assert found.info == entry.info


def test_what_another_is_making_is_waited_for_and_taken(store: Store) -> None:
    begun, made = threading.Event(), []

    def make(by: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        made.append(by)
        begun.set()
        time.sleep(0.2)
        return tensors(), {"by": by}

    first = threading.Thread(target=lambda: store.get_or_make(CONFIG, lambda: make("first")))
    first.start()
    begun.wait()
    other = Store(store.root)
    with other.use() as use:
        entry = other.get_or_make(CONFIG, lambda: make("second"))
    first.join()
    assert made == ["first"] and entry.info == {"by": "first"}
    assert 0.05 < use.seconds < 30  # of waiting, which is no measuring


def test_a_making_that_fails_lets_the_next_one_make(store: Store) -> None:
    def fail() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        raise Kill

    with pytest.raises(Kill):
        store.get_or_make(CONFIG, fail)
    assert store.get_or_make(CONFIG, lambda: (tensors(), {"loss": 0.25})).info == {"loss": 0.25}


def test_a_making_leaves_no_lock_of_its_key(store: Store) -> None:
    entry = store.get_or_make(CONFIG, lambda: (tensors(), {}))
    assert sorted(store.root.iterdir()) == [store.root / ".store.lock", description(entry), entry.path]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by 2.5 seconds whenever somebody looks at it."""
    times = itertools.count(0.0, 2.5)
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))


def test_an_entry_says_what_making_it_took(store: Store, clock: None) -> None:
    entry = store.get_or_make(CONFIG, lambda: (tensors(), {}))
    assert entry.made == {"seconds": 2.5, **machine("cpu")}


def test_an_entry_that_was_put_says_nothing_of_what_it_took(entry: Entry) -> None:
    assert entry.made == {}


def test_a_use_has_the_entries_that_were_taken_while_it_lasted(store: Store, entry: Entry) -> None:
    store.put({**CONFIG, "seed": 4}, tensors())
    with store.use() as use:
        got(store)
    store.get({**CONFIG, "seed": 4})
    assert use.made == {Store.key(CONFIG): {}}


def test_a_use_has_the_seconds_of_making_what_was_not_there(store: Store, entry: Entry, clock: None) -> None:
    with store.use() as use:
        for seed in (3, 4, 5):
            store.get_or_make({**CONFIG, "seed": seed}, lambda: (tensors(), {}))
    assert use.seconds == 5.0


def test_what_is_made_shares_no_memory_with_its_maker(store: Store) -> None:
    # Training may go on with the tensors that it gave away.
    made = tensors()
    entry = store.get_or_make(CONFIG, lambda: (made, {}))
    made["weight"].zero_()
    assert torch.equal(entry.tensors["weight"], tensors()["weight"])


def test_a_store_that_cannot_be_written_is_found_out_before_making(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        Store(tmp_path / "file" / "store").get_or_make(CONFIG, lambda: pytest.fail("it was made"))


class Kill(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("renames", [0, 1], ids=["before the tensors", "between tensors and json"])
@pytest.mark.parametrize("over", [False, True], ids=["new", "over an old entry"])
def test_a_kill_leaves_no_entry_and_nothing_is_said(
    store: Store,
    renames: int,
    over: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if over:
        store.put(CONFIG, tensors())
    replace, done = os.replace, []

    def replace_until_killed(old: Path, new: Path) -> None:
        if len(done) == renames:
            raise Kill
        done.append(new)
        replace(old, new)

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(os, "replace", replace_until_killed)
        store.put(CONFIG, {"weight": torch.zeros(2)})
    assert (store.get(CONFIG), capsys.readouterr().err) == (None, "")


def test_what_a_killed_writer_left_is_removed_by_the_next(store: Store) -> None:
    leftover = store.root / f".0123.safetensors.{'0' * 32}.tmp"
    leftover.mkdir(parents=True)
    (leftover / "0123.safetensors").write_bytes(b"half")
    store.put(CONFIG, tensors())
    assert not leftover.exists()


def test_a_leftover_is_no_entry(store: Store) -> None:
    name = f"{store.key(CONFIG)}.json"
    leftover = store.root / f".{name}.{'0' * 32}.tmp"
    leftover.mkdir(parents=True)
    (leftover / name).write_text("{}")
    assert store.get(CONFIG) is None


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def closed(path: Path) -> None:
    """Permissions do not hold back root, who runs many a test: see the test that uses it."""
    path.chmod(0)


@pytest.fixture
def closed_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of mode 0 are closed, to root as well."""
    plain = os.open

    def open_(path: Any, *given: Any, **more: Any) -> int:
        if os.path.isfile(path) and not os.stat(path).st_mode & 0o777:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return plain(path, *given, **more)

    monkeypatch.setattr(os, "open", open_)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("put", [pipe, loop, closed], ids=["pipe", "loop of links", "another user's"])
def test_what_is_no_file_of_ours_in_an_entrys_place_is_said_and_made_again(
    store: Store,
    entry: Entry,
    closed_to_all: None,
    put: Any,
    suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(entry.path.with_suffix(suffix))
    assert store.get_or_make(CONFIG, lambda: (tensors(), {"loss": 0.25})).info == {"loss": 0.25}
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be read: " in said and "it is made again" in said
    assert got(store).info == {"loss": 0.25} and capsys.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_folder_in_an_entrys_place_is_found_out_before_making(
    store: Store, entry: Entry, suffix: str
) -> None:
    place = entry.path.with_suffix(suffix)
    place.unlink()
    place.mkdir()
    with pytest.raises(InputError, match=rf"{place} is a folder, where a file of the store belongs"):
        store.get_or_make(CONFIG, lambda: pytest.fail("it was made"))


def test_an_entry_that_cannot_be_replaced_is_found_out_before_making(
    store: Store, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter_tensors(entry)

    def kept(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    monkeypatch.setattr(Path, "unlink", kept)
    with pytest.raises(
        InputError, match=r"cannot replace .*\.json \(Operation not permitted\); have it removed"
    ):
        store.get_or_make(CONFIG, lambda: pytest.fail("it was made"))


def test_a_full_disk_leaves_no_half_entry_and_is_a_line(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left on device"):
        patch.setattr(os, "fsync", full)
        store.put(CONFIG, tensors())
    assert list(store.root.iterdir()) == [store.root / ".store.lock"]
    store.put(CONFIG, tensors())
    assert got(store)


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPE_STORE", str(tmp_path))
    assert Store().root == tmp_path


def test_without_the_environment_the_folder_is_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LPE_STORE", raising=False)
    assert Store().root == REPOSITORY / "runs" / "store"
