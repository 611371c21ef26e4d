"""The benchmark of how much is rounded: its rows, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import coverage


def partly() -> nn.Module:
    model = nn.Module()
    model.fc = nn.Linear(30, 30)
    model.pos_embed = nn.Parameter(torch.ones(1, 8, 5))
    model.kernel = nn.Parameter(torch.ones(3, 20))
    return model


def test_a_row_has_the_share_and_what_is_left_by_reason_the_most_first() -> None:
    row = coverage.row_of("mine", "family", "Net", partly())
    assert row == {
        **{"library": "mine", "family": "family", "network": "Net"},
        **{"weights": 1000, "rounded": 900, "share": 0.9},
        "left": "no rule for Module.kernel 6.00 %; position 4.00 %",
        "largest_left": "kernel 3×20",
    }


def test_a_network_whose_weights_have_no_rule_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = [("a", "Partly", partly()), ("b", "Fine", nn.Linear(3, 3))]
    monkeypatch.setattr(coverage, "LIBRARIES", {"torch": lambda: networks})
    assert coverage.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "no rule for more than 5 % of the weights of: torch Partly" in printed
    assert "Fine" not in printed and "2 of torch" in printed


@pytest.mark.parametrize("family", ["mixtral", "t5", "vit"])
def test_architectures_of_transformers_are_built_without_values(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "TRANSFORMERS", (family,))
    with torch.device("meta"):
        ((_, name, net),) = coverage.transformers_networks()
    assert all(parameter.is_meta for parameter in net.parameters())
    assert coverage.row_of("transformers", family, name, net)["share"] > 0.95


def test_it_writes_nothing_where_it_may_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert coverage.main(["--out", str(tmp_path / "file" / "in")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
