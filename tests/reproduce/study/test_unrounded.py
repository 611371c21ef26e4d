"""Unrounded networks in records: their names by dtype, and their parameters."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

import lpe
from lpe.modules import dtype_name, parameter_count
from reproduce.draw.summaries import Summary, What
from reproduce.judge.claims import Claim, Side
from reproduce.judge.statistics import NotRun, Rows, level_of
from reproduce.judge.verdicts import judge_all
from reproduce.study import unrounded


def record(name: str, parameters: float | None = None) -> pd.DataFrame:
    """One network's rows: NLL of it as it is and under a temperature, and its parameters where they count."""
    common = {"scale": "s", "substrate": "net", "point": "SGD", "rounding": "", "size": 1, "seed": 0}
    common |= {"number_system": name.lower(), "memory_bits": 320, "backward_passes": 0}
    rows = [("nll", name, 1.0), ("nll", f"{name} + temperature", 0.5)]
    rows += [] if parameters is None else [("parameters", name, parameters)]
    return pd.DataFrame([{**common, "metric": m, "method": n, "value": v} for m, n, v in rows])


@pytest.mark.parametrize("name", unrounded.NAMES)
def test_the_single_model_is_found_whatever_its_dtype(name: str) -> None:
    rows = record(name, 20.0)
    summary = Summary("table1", rows)
    assert float(summary.values(What("net", "SGD", "FP32")).iloc[0]) == 1.0
    assert float(summary.values(What("net", "SGD", "FP32 + temperature")).iloc[0]) == 0.5
    assert float(Rows("net", "SGD", "FP32", "fp32").values(rows).iloc[0]) == 1.0
    assert summary.unrounded("net") == summary.common_name() == name
    assert summary.parameters(What("net", "SGD", "FP32")) == 20


def test_a_record_without_a_count_tells_parameters_of_float32_alone() -> None:
    # Records that were written before parameters were counted.
    assert Summary("table1", record("FP32")).parameters(What("net", "SGD", "FP32")) == 10
    with pytest.raises(lpe.InputError, match="has no rows: parameters"):
        Summary("table1", record("BF16")).parameters(What("net", "SGD", "FP32"))


def test_a_claim_on_a_bfloat16_network_does_not_speak_of_fp32() -> None:
    single = Rows("net", "SGD", "FP32", "fp32")
    claim = Claim("C", "NLL(FP32)", Side(high=2), "nats", lambda record: level_of(single, record))
    assert [judge_all([claim], record(name), "seed")[0].statistic for name in ("FP32", "BF16")] == [
        "NLL(FP32)",
        "NLL(unrounded)",
    ]


def test_a_network_that_is_not_there_is_not_run() -> None:
    with pytest.raises(NotRun, match="no rows: nll of FP32"):
        Rows("other", "SGD", "FP32", "fp32").table(record("BF16"))


def test_a_model_is_called_by_the_dtype_of_most_of_its_parameters() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    assert dtype_name(net) == "FP32"
    net[0].to(torch.bfloat16)
    assert dtype_name(net) == "BF16"


def test_parameters_are_counted_once_where_tied_and_buffers_are_none() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    assert parameter_count(net) == 16 + 4 + 4
    assert parameter_count(net.to(torch.bfloat16)) == 24
