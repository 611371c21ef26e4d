"""Working records where the store is elsewhere: another machine goes on from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lpe.errors import InputError
from reproduce.command import opened, prepared
from reproduce.fig3 import measure_landscapes
from reproduce.scales import own
from reproduce.study import measurements
from reproduce.study.measurements import measure_all
from reproduce.study.scale import Scale
from reproduce.study.units import Unit

DYING = str(Path(__file__).with_name("dying.py"))
WANTED = [Unit("dying net", what, 0) for what in ("SGD", "DE", "SWAG")]


@pytest.fixture(scope="module")
def small() -> Scale:
    return own.load(DYING)


def left(folder: Path) -> dict[str, bytes]:
    """The records, examples and landscapes in a folder, and the trained weights."""
    found = [*folder.rglob("*.csv"), *folder.rglob("*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def measured(scale: Scale, out: Path) -> None:
    with opened("all", scale, 1, out, "disabled", quiet=True) as session:
        measure_all(session, WANTED)
        measure_landscapes(session)


def test_another_machine_takes_all_that_is_elsewhere(
    small: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("out", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("LPE_STORE", f"file://{tmp_path}/elsewhere/store")
    monkeypatch.setenv("LPE_CACHE", str(tmp_path / "a"))
    measured(small, tmp_path / "out")
    (here,) = (tmp_path / "a").iterdir()
    sent = left(tmp_path / "elsewhere")
    assert sent == left(here)
    kinds = {Path(name).name.partition("-")[0] for name in sent}
    assert {"dying", "landscape"} <= kinds and len(list((tmp_path / "elsewhere/store").glob("*.json"))) == 3
    monkeypatch.setenv("LPE_CACHE", str(tmp_path / "b"))
    monkeypatch.setattr(measurements, "_measure", None)  # whoever measured would fail
    measured(small, tmp_path / "out")
    (there,) = (tmp_path / "b").iterdir()
    found = left(there)
    assert {name for name in sent if name.startswith("records")} <= found.keys()
    assert all(sent[name] == content for name, content in found.items())


def test_points_beside_the_store_need_a_folder(small: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPE_STORE", "memory://elsewhere/store")
    preparing = replace(small, prepare=lambda: small)
    with pytest.raises(InputError, match="scale dying keeps its points in a folder beside the store"):
        prepared(preparing)
    monkeypatch.setenv("LPE_STORE", "store")
    assert prepared(preparing) is small
