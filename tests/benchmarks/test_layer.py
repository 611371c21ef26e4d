"""A layer beside its peers: what is measured, on a tiny layer, and when a promise is kept.

No time is looked at.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import lpe
from benchmarks import layer, peer_layers
from benchmarks.command import write_results

SHAPE = (64, 128)
POSITIONS = (1, 3)


@pytest.fixture
def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(SHAPE[1], SHAPE[0]).requires_grad_(False).eval()


@pytest.fixture
def without_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither torchao nor bitsandbytes can be imported, wherever they are installed."""
    real = builtins.__import__

    def refusing(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] in layer.OTHERS:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refusing)


@pytest.fixture
def measured(without_others: None) -> pd.DataFrame:
    return pd.DataFrame(layer.measure(SHAPE, POSITIONS, 1))


def test_every_way_has_a_row_of_every_number_of_positions(measured: pd.DataFrame) -> None:
    found = measured.dropna(subset=["positions"]).value_counts(["what", "positions"])
    ways = measured["what"].unique()
    there = set(ways) - set(measured[measured["positions"].isna()]["what"])
    assert {layer.FLOAT32, layer.STORED, layer.DRAWN, layer.PLANES} <= there
    assert set(ways) == {
        layer.FLOAT32,
        *peer_layers.PEERS,
        layer.STORED,
        layer.CODES,
        layer.DRAWN,
        layer.PLANES,
    }
    assert len(found) == len(there) * len(POSITIONS) and (found == 1).all()


def test_a_peer_that_is_not_installed_says_so_in_its_row(measured: pd.DataFrame) -> None:
    absent = measured[measured["positions"].isna()].set_index("what")["why"]
    assert absent["int8 weights: torchao"] == "No module named 'torchao.quantization'"
    assert absent["NF4 weights: bitsandbytes"] == "No module named 'bitsandbytes.nn'"


def test_float32_is_one_of_itself_and_exact(measured: pd.DataFrame) -> None:
    rows = measured[measured["what"] == layer.FLOAT32]
    assert (rows["times_float32"] == 1).all() and (rows["error"] == 0).all()


def test_members_from_planes_and_drawn_are_their_own(measured: pd.DataFrame) -> None:
    rows = measured[measured["what"].isin([layer.DRAWN, layer.PLANES])]
    assert len(rows) == 2 * len(POSITIONS) and (rows["error"] < 1e-5).all() and (rows["members"] == 10).all()


def test_memory_is_of_weights_and_scales(measured: pd.DataFrame) -> None:
    weights = SHAPE[0] * SHAPE[1]
    megabytes = measured.drop_duplicates("what").set_index("what")["megabytes"]
    assert megabytes[layer.FLOAT32] == pytest.approx(4e-6 * weights)
    assert megabytes[layer.STORED] == pytest.approx(4e-5 * weights)
    assert megabytes[layer.DRAWN] == pytest.approx(4e-6 * weights)
    # 5 bits once and one a member, 8 spare bytes, and a scale an output.
    assert megabytes[layer.PLANES] == pytest.approx(1e-6 * (weights * 15 / 8 + 8 + 4 * SHAPE[0]), rel=0.01)


ENGINES = [name for name in ("fbgemm", "onednn") if name in torch.backends.quantized.supported_engines]


@pytest.mark.skipif(not ENGINES, reason="torch has no engine of quantised layers here")
@pytest.mark.parametrize("engine", ENGINES)
def test_an_int8_layer_is_the_network_to_the_bits_of_its_inputs(engine: str, net: nn.Linear) -> None:
    before = torch.backends.quantized.engine
    made = peer_layers.quantized_dynamic(engine, net)
    if isinstance(made, str):
        pytest.skip(f"{engine} does not run here: {made}")
    assert torch.backends.quantized.engine == before
    inputs = torch.randn(16, SHAPE[1])
    # Inputs of 7 bits and weights of 8, over some 3 standard deviations each: 1 % and .7 % of rounding error.
    assert layer._error(made.run(inputs), net(inputs)) < 0.05
    assert made.memory_bytes == SHAPE[0] * SHAPE[1] + 4 * SHAPE[0]


@pytest.mark.skipif("fbgemm" not in ENGINES, reason="torch has no FBGEMM here")
def test_the_stored_codes_are_those_of_each_member(net: nn.Linear) -> None:
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(layer.BITS), layer.MEMBERS)
    absent: dict[str, str] = {}
    made = layer.ways(net, absent)
    if layer.CODES in absent:
        pytest.skip(f"FBGEMM does not run here: {absent[layer.CODES]}")
    inputs = torch.randn(16, SHAPE[1])
    for member, found in enumerate(made[layer.CODES].run(inputs)):
        own = layer._error(found, ensemble[member](inputs))
        other = layer._error(found, ensemble[(member + 1) % layer.MEMBERS](inputs))
        assert own < 0.05 < other


def test_an_engine_that_torch_does_not_have_is_told(net: nn.Linear) -> None:
    assert peer_layers.quantized_dynamic("none", net) == "torch has no none here"


def test_a_peer_that_does_not_run_is_told_in_its_first_line(net: nn.Linear) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for this CPU\nand more")

    assert peer_layers._tried(broken, net, 0.0) == "no kernel for this CPU"


def table(planes: tuple[float, float], drawn: tuple[float, float]) -> pd.DataFrame:
    """Times of bit planes and drawn members over a product at 1 and 8 positions, and a row without."""
    rows: list[dict[str, object]] = [
        {"what": what, "positions": count, "times_float32": value}
        for what, values in ((layer.PLANES, planes), (layer.DRAWN, drawn))
        for count, value in zip((1, 8), values, strict=True)
    ]
    return pd.DataFrame([*rows, {"what": "a peer", "positions": None, "times_float32": None}])


@pytest.mark.parametrize(
    ("planes", "drawn", "kept"),
    [
        ((6.0, 9.0), (60.0, 9.0), [True, True]),
        ((6.01, 9.0), (60.0, 9.0), [False, True]),
        ((6.0, 9.01), (60.0, 9.0), [True, False]),
        # As long as drawn is not enough at one position.
        ((7.0, 9.0), (7.0, 9.0), [False, True]),
    ],
)
def test_promises_are_kept_at_their_bounds(
    planes: tuple[float, float], drawn: tuple[float, float], kept: list[bool]
) -> None:
    found = layer.promises(table(planes, drawn))
    assert [each for each, _ in found] == kept
    assert [line.startswith("kept: ") for _, line in found] == kept


@pytest.fixture
def written(measured: pd.DataFrame, tmp_path: Path) -> Callable[[], Path]:
    def write() -> Path:
        rows = [{str(key): value for key, value in row.items()} for row in measured.to_dict("records")]
        config = {"capability": "none", "others": {"torchao": "not installed"}, "repeats": 1}
        write_results(tmp_path, "layer", {"layer": rows}, layer.COLUMNS, config, 0.0, 1)
        return tmp_path

    return write


def test_the_table_tells_ways_times_and_what_is_not_there(written: Callable[[], Path]) -> None:
    text = layer.table_text(written())
    assert "1 position " in text and "3 positions" in text and "bit planes" in text
    assert "– (No module named 'torchao.quantization')" in text and "1 of " in text


def test_the_command_writes_prints_and_says_what_is_broken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    measured: pd.DataFrame,
) -> None:
    for what, times in ((layer.PLANES, 6.5), (layer.DRAWN, 9.0)):
        measured.loc[measured["what"] == what, "times_float32"] = times
    monkeypatch.setattr(layer, "measure", lambda: measured.to_dict("records"))
    threads = torch.get_num_threads()
    try:
        assert layer.main(["--out", str(tmp_path)]) == 1
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert (
        "broken: 10 members from bit planes, 1 position: 6.5 float32 products, at most 6 promised" in printed
    )
    assert "kept: 10 members from bit planes, 3 positions" in printed
