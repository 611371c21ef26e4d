"""The README's Python runs as it stands, from the first block to the last."""

from __future__ import annotations

import re
from typing import Any

import pytest

import lpe
from lpe.provenance import REPOSITORY

BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
TRAINED = {
    "deep": lpe.DeepEnsemble,
    "swag": lpe.SWAGEnsemble,
    "posterior": lpe.IVONEnsemble,
    "snapshots": lpe.SnapshotEnsemble,
    "samples": lpe.CyclicalSGLDEnsemble,
    "batch_ensemble": lpe.BatchEnsemble,
}
CHANCE = 2.302585  # ln 10


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the blocks have defined once all have run, in a folder of their own."""
    there: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"README.md, Python block {number}", "exec"), there)
    return there


def test_every_block_runs(names: dict[str, Any]) -> None:
    assert len(BLOCKS) >= 4 + len(TRAINED) and names["lpe"] is lpe


@pytest.mark.parametrize("name", TRAINED)
def test_each_method_that_trains_has_learnt_its_digits(names: dict[str, Any], name: str) -> None:
    ensemble = names[name]
    assert type(ensemble) is TRAINED[name] and len(ensemble) > 1
    table = lpe.evaluate(ensemble, [names["data"].test])
    assert table["nll"].iloc[-1] < 0.5 * CHANCE and table["ambiguity"].iloc[-1] > 0
