"""The store of single examples' values: what is kept is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reproduce.study.examples import FOLDER, finder, keep, place_of

ROW = {
    "scale": "s",
    "substrate": "net",
    "point": "SGD",
    "method": "LPE-BSR",
    "number_system": "int4",
    "rounding": "bernoulli",
    "seed": 3,
    "value": 0.2,
}
WHICH = torch.tensor([7, 3, 9])
NLL = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])


@pytest.fixture
def working(tmp_path: Path) -> Path:
    keep(tmp_path, ROW, WHICH, {"nll": (torch.tensor([1, 10]), NLL)})
    return tmp_path


def test_the_values_of_a_row_are_those_of_its_size(working: Path) -> None:
    found = finder(working)({**ROW, "metric": "nll", "size": np.int64(10)})
    assert found is not None
    assert found[0].tolist() == [7, 3, 9]
    np.testing.assert_allclose(found[1], NLL[1])


@pytest.mark.parametrize(
    "other", [{"size": 5}, {"metric": "ambiguity"}, {"seed": 4}, {"method": "RTN"}, {"rounding": "coupled"}]
)
def test_what_was_not_kept_is_not_found(working: Path, other: dict[str, object]) -> None:
    assert finder(working)({**ROW, "metric": "nll", "size": 1, **other}) is None


def test_a_damaged_file_is_said_and_not_found(working: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (working / FOLDER).glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for _ in range(2):  # said once: it is no entry any more
        assert finder(working)({**ROW, "metric": "nll", "size": 1}) is None
    assert capsys.readouterr().err.count("is damaged") == 1


def test_values_that_were_kept_under_other_settings_leave_those_of_a_row_as_they_were(tmp_path: Path) -> None:
    sizes = torch.tensor([1, 10])
    for name, values in (("a-1234.csv", NLL), ("a-5678.csv", NLL + 0.01), ("a-9abc.csv", NLL + 0.02)):
        keep(place_of(tmp_path / name), ROW, WHICH, {"nll": (sizes, values)})
    for more in (0.0, 0.01, 0.02):
        found = finder(tmp_path)({**ROW, "metric": "nll", "size": 1, "value": 0.2 + more})
        assert found is not None
        np.testing.assert_allclose(found[1], NLL[0] + more, rtol=1e-6)
