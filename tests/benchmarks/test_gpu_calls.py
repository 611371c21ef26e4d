"""What users call on a GPU: the benchmark's part, on a tiny Vision Transformer on the CPU.

No time is looked at.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks import gpu_calls
from benchmarks.gpu_timer import Timer

pytest.importorskip("timm")

TINY = gpu_calls.Network(
    partial(
        gpu_calls.of_timm,
        "vit_tiny_patch16_224",
        img_size=32,
        embed_dim=24,
        depth=1,
        num_heads=2,
        num_classes=5,
    ),
    (3, 32, 32),
    2,
)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ),
]


@pytest.fixture(params=DEVICES)
def measured(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    timer = Timer(torch.device(request.param), repeats=1, least_seconds=0.0)
    gpu_calls.write(gpu_calls.measure(timer, {"ViT-S/16": TINY}), tmp_path)
    return tmp_path


def test_what_users_call_has_a_row_beside_the_kernel_and_plain_passes(measured: Path) -> None:
    table = pd.read_csv(measured / gpu_calls.FILE)
    making = [
        gpu_calls.COPY,
        gpu_calls.BARE,
        gpu_calls.IN_TURN,
        gpu_calls.MEMBER,
        gpu_calls.ROUND_WEIGHTS,
        gpu_calls.ENCODE,
    ]
    evaluating = [gpu_calls.PASSES, gpu_calls.EVALUATE]
    assert table["what"].to_list() == [*making, *evaluating, *evaluating]
    assert table["compute"].to_list() == ["float32"] * 6 + ["bfloat16 autocast"] * 2 + ["float32"] * 2
    assert (table["median_seconds"] > 0).all()
    # The patches', one block's and the head's weights, without biases and norms.
    assert set(table["weights"]) == {24 * 768 + 12 * 24 * 24 + 5 * 24}


def test_promises_and_limits_stand_beside_the_rows(measured: Path) -> None:
    table = pd.read_csv(measured / gpu_calls.FILE)
    making = table[table["examples"] == 0].set_index("what")
    assert (making["limit_seconds"] == making["median_seconds"][gpu_calls.COPY]).all()
    promised = making["promised_seconds"].dropna()
    assert promised.to_dict() == {gpu_calls.IN_TURN: 0.3e-3, gpu_calls.MEMBER: 0.3e-3}
    evaluated = table[table["what"] == gpu_calls.EVALUATE].set_index("compute")
    plain = table[table["what"] == gpu_calls.PASSES].set_index("compute")["median_seconds"]
    assert (evaluated["limit_seconds"] == plain).all()
    assert evaluated["promised_seconds"].to_dict() == pytest.approx((1.05 * plain).to_dict())
    assert len(gpu_calls.verdicts(measured)) == 4


def test_the_table_names_the_network_and_what_was_called(measured: Path) -> None:
    (text,) = gpu_calls.tables(measured)
    assert text.startswith("ViT-S/16 as users call it, 25,464 weights") and gpu_calls.IN_TURN in text


def row(what: str, seconds: float, promised: float | None) -> dict[str, object]:
    return {
        "what": what,
        "network": "ViT-S/16",
        "compute": "float32",
        "median_seconds": seconds,
        "limit_seconds": 2.0,
        "promised_seconds": promised,
    }


@pytest.mark.parametrize(("seconds", "kept"), [(2.1, True), (2.11, False)])
def test_an_evaluation_is_held_against_the_plain_passes(tmp_path: Path, seconds: float, kept: bool) -> None:
    rows = [row(gpu_calls.PASSES, 2.0, None), row(gpu_calls.EVALUATE, seconds, 2.1)]
    pd.DataFrame(rows).to_csv(tmp_path / gpu_calls.FILE)
    ((found, line),) = gpu_calls.verdicts(tmp_path)
    assert found == kept
    assert line.endswith(f"{seconds / 2:.3f} times 10 plain passes, at most 1.05 promised")


def test_a_members_time_is_told_beside_the_copy(tmp_path: Path) -> None:
    pd.DataFrame([row(gpu_calls.IN_TURN, 0.4e-3, 0.3e-3)]).to_csv(tmp_path / gpu_calls.FILE)
    ((kept, line),) = gpu_calls.verdicts(tmp_path)
    assert not kept
    assert "in_turn, the next member: 0.4 ms (a copy 2e+03 ms), at most 0.3 ms promised" in line


def test_a_network_whose_package_is_missing_is_left_out_with_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing() -> nn.Module:
        raise ImportError("No module named 'timm'")

    timer = Timer(torch.device("cpu"), repeats=1, least_seconds=0.0)
    assert gpu_calls.measure(timer, {"ViT-S/16": gpu_calls.Network(missing, (1,), 1)}) == []
    assert capsys.readouterr().out == "left out: ViT-S/16 (No module named 'timm')\n"


def test_making_a_model_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = (gpu_calls.made_on(torch.device("cpu"), lambda: nn.Linear(2, 2)) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.weight, second.weight) and not first.training  # type: ignore[arg-type]
