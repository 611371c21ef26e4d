"""What is in a key beside the code: versions, data, the device and the threads."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import lpe
from lpe.errors import InputError
from reproduce.study import keys
from reproduce.study.keys import DISTRIBUTIONS, code_hash, data_hash, determinants, device_kind, versions

DIGITS = "lpe.substrates.digits:network"


def test_an_upgrade_of_a_package_that_the_code_imports_is_another_key(upgrade: Callable[[str], None]) -> None:
    before = determinants(DIGITS, data="")
    upgrade("timm")
    after = determinants(DIGITS, data="")
    assert {name for name in after if after[name] != before[name]} == {"packages"}


def test_an_upgrade_of_a_package_that_the_code_does_not_import_is_the_same_key(
    upgrade: Callable[[str], None],
) -> None:
    before = versions(DIGITS)
    upgrade("ivon-opt")
    assert versions(DIGITS) == before


@pytest.mark.parametrize("package", ["numpy", "torch"])
def test_an_upgrade_of_what_computes_is_another_key_for_all(
    upgrade: Callable[[str], None], package: str
) -> None:
    before = versions("lpe.errors:InputError")
    upgrade(package)
    assert versions("lpe.errors:InputError") != before


def test_a_package_goes_by_the_name_that_it_is_installed_by() -> None:
    named = versions("lpe.substrates.corruptions:corrupted")
    assert named["pillow"] == importlib.metadata.version("pillow")


def test_the_distributions_are_those_that_have_these_packages() -> None:
    found = importlib.metadata.packages_distributions()
    for package, distribution in DISTRIBUTIONS.items():
        assert {_plain(name) for name in found[package]} == {_plain(distribution)}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_a_package_installed_from_a_folder_that_is_worked_in_is_keyed_by_its_content_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    installed, package = tmp_path / "package_of_a_user-1.0.dist-info", tmp_path / "package_of_a_user"
    for folder in (installed, package):
        folder.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: package_of_a_user\nVersion: 1.0\n")
    (package / "__init__.py").write_text("RATE = 1\n")
    (tmp_path / "scale_of_a_user.py").write_text(
        "def rate():\n    import package_of_a_user\n    return package_of_a_user.RATE\n"
    )
    before = versions("scale_of_a_user:rate")["package_of_a_user"]
    (package / "__init__.py").write_text("RATE = 2\n")
    keys._version.cache_clear()
    after = versions("scale_of_a_user:rate")["package_of_a_user"]
    assert before.startswith("1.0 ") and after.startswith("1.0 ") and after != before


def test_the_code_of_two_functions_is_that_of_both() -> None:
    both = code_hash(lpe.train, lpe.refresh)
    assert both == code_hash(lpe.refresh, lpe.train)
    assert both != code_hash(lpe.train)


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([1.0, 3.0]),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([[1.0, 2.0]]),
    ],
    ids=["values", "dtype", "shape"],
)
def test_other_data_have_another_hash(other: torch.Tensor) -> None:
    assert data_hash(other) != data_hash(torch.tensor([1.0, 2.0]))


def test_data_of_another_order_have_another_hash() -> None:
    assert data_hash([1, 2], [3]) != data_hash([1], [2, 3])


def test_a_view_of_data_has_the_hash_of_its_copy() -> None:
    data = torch.arange(12).reshape(3, 4)
    assert data_hash(data.t()) == data_hash(data.t().contiguous())


def test_arrays_mappings_and_dataclasses_have_hashes_of_what_they_hold() -> None:
    @dataclass
    class Data:
        images: object

    assert data_hash(Data(np.arange(3))) == data_hash({"images": np.arange(3)})
    assert data_hash(Data(np.arange(3))) != data_hash(Data(np.arange(4)))


def test_a_folder_has_the_hash_of_its_files_wherever_it_lies(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one")
    assert data_hash(tmp_path / "here") == data_hash(tmp_path / "there")
    (tmp_path / "there" / "a.txt").write_text("two")
    assert data_hash(tmp_path / "here") != data_hash(tmp_path / "there")


def test_data_that_have_no_hash_are_refused() -> None:
    with pytest.raises(InputError, match="data of type object has no hash"):
        data_hash(object())


def test_data_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing at"):
        data_hash(tmp_path / "nowhere")


def test_the_kind_of_a_card_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert device_kind("cuda:1") == "card 1"
    assert device_kind("cpu") == "cpu"


def test_another_card_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    one, other = (determinants(DIGITS, data="", device=f"cuda:{index}") for index in range(2))
    assert {name for name in one if one[name] != other[name]} == {"device"}


def test_the_threads_are_those_that_torch_computes_with() -> None:
    assert determinants(DIGITS, data="")["threads"] == torch.get_num_threads()


def test_other_kernels_of_the_cpu_are_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = determinants(DIGITS, data="")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    after = determinants(DIGITS, data="")
    assert {name for name in after if after[name] != before[name]} == {"kernels"}


def test_on_a_card_the_kernels_of_the_cpu_are_not_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    before = determinants(DIGITS, data="", device="cuda:0")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert determinants(DIGITS, data="", device="cuda:0") == before
