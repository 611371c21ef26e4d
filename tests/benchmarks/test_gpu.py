"""The GPU's benchmark: what it runs and writes, on tiny shapes.

Its kernels run in Triton's interpreter on the CPU, as a program of its own, for triton decides at import
whether it interprets; and on a GPU where there is one. Its times are not looked at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch

import lpe
from benchmarks import gpu, gpu_calls
from lpe.number_systems import kernels
from lpe.number_systems.grids import grid_of
from lpe.number_systems.kernels import planes as planes_kernels
from lpe.number_systems.kernels.arguments import Draw

COLUMNS = 64
WEIGHTS = (4 * COLUMNS,)
SHAPES = ((8, 32),)
LAYERS, DISTINCT, MEMBERS, PLANE_MEMBERS = 2, 1, (1, 2), (1, 3)
NETWORKS = {"ViT-S/16": [(8, 32), (5, 7)], "ViT-L/16": [(16, 32)]}
CASES = gpu.Cases(
    WEIGHTS,
    COLUMNS,
    SHAPES,
    LAYERS,
    DISTINCT,
    MEMBERS,
    PLANE_MEMBERS,
    NETWORKS,
    called={},
    models={},
    small={},
)
"""What users call and whole models run on a CPU as they are: test_gpu_calls.py, test_gpu_models.py."""


def record(device: str, folder: Path) -> None:
    """All of the benchmark, on tiny shapes."""
    timer = gpu.Timer(torch.device(device), repeats=1, least_seconds=0.0)
    gpu.record(timer, folder, CASES)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the benchmark writes, its kernels interpreted."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 6):
        pytest.skip(f"needs Triton 3.6, not {version('triton')}")
    folder = tmp_path_factory.mktemp("gpu")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "LPE_KERNELS": "cuda"}
    environment["PYTHONPATH"] = str(Path(lpe.__file__).parents[1])
    probe = subprocess.run(
        [sys.executable, __file__, "--probe"], env=environment, capture_output=True, text=True
    )
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        versions = " with ".join(f"{name} {version(name)}" for name in ("triton", "numpy"))
        pytest.skip(f"Triton's interpreter runs no loop ({versions}): {last}")
    command = [sys.executable, __file__, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def probe() -> None:
    """Run a loop in Triton's interpreter, which numpy 2.5 breaks in Triton 3.6: scalars are arrays there."""
    import triton
    import triton.language as tl

    @triton.jit
    def count(out, times):  # type: ignore[no-untyped-def]
        total = tl.zeros([8], tl.int32)
        for _ in range(times):
            total += 1
        tl.store(out + tl.arange(0, 8), total)

    out = torch.zeros(8, dtype=torch.int32)
    count[(1,)](out, 3)
    assert out.tolist() == [3] * 8


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes tables with these shares of a copy, seconds a member and times a pass; all others are poor."""

    def write(
        shares: dict[str, float], seconds: dict[str, float], times: dict[tuple[str, str, int], float]
    ) -> Path:
        made = [
            (what, network, run, 1.0 if what == gpu.EACH_ALONE or run == "graph" else taken, 0.5, promised)
            for network, promised in gpu.MEMBER_SECONDS.items()
            for taken in [seconds[network]]
            for what in (gpu.AT_ONCE, gpu.EACH_ALONE)
            for run in ("graph", "launched")
        ]
        columns = ["what", "network", "run", "median_seconds", "limit_seconds", "promised_seconds"]
        pd.DataFrame(made, columns=columns).to_csv(tmp_path / "gpu_members.csv")
        bandwidth = [
            (gpu.MEMBER, stored, writes, weights, share)
            for stored in ("bfloat16", "INT-8")
            for writes, weights, share in (
                ("codes", 200, 0.1),
                ("bfloat16", 100, 0.1),
                ("bfloat16", 200, shares[stored]),
            )
        ]
        columns = ["what", "stored", "writes", "weights", "of_a_copy"]
        pd.DataFrame(bandwidth, columns=columns).to_csv(tmp_path / "gpu_bandwidth.csv")
        decoding = [
            (*case, run, value, 1.0, gpu.PASS_PROMISES.get(case))
            for case in [*gpu.PASS_PROMISES, (gpu.FROM_PLANES, "planes", 1)]
            for run, value in (("graph", times.get(case, 9.0)), ("launched", 9.0))
        ]
        columns = ["what", "stored", "members", "run", "times_a_pass", "limit_times", "promised_times"]
        pd.DataFrame(decoding, columns=columns).to_csv(tmp_path / "gpu_decoding.csv")
        gpu_calls.write([], tmp_path)
        return tmp_path

    return write


def test_every_way_of_rounding_has_a_row_of_every_size(recorded: Path) -> None:
    table = pd.read_csv(recorded / "gpu_bandwidth.csv")
    ways = table[table["what"] != gpu.COPY].value_counts(["what", "stored", "writes", "weights"])
    assert len(ways) == 5 * 3 * 2 * len(WEIGHTS) and (ways == 1).all()


@pytest.mark.parametrize(
    ("what", "stored", "writes", "bytes_a_weight"),
    [
        (gpu.MEMBER, "bfloat16", "bfloat16", 4),
        (gpu.MEMBER, "INT-8", "bfloat16", 3),
        (gpu.NEAREST, "float32", "codes", 5),
        (gpu.COUPLED, "INT-8", "codes", 2),
        (gpu.NEXT_MEMBER, "float32", "bfloat16", 2),
        (gpu.NEXT_COUPLED, "float32", "codes", 1),
    ],
)
def test_bytes_are_those_read_and_written(
    recorded: Path, what: str, stored: str, writes: str, bytes_a_weight: int
) -> None:
    table = pd.read_csv(recorded / "gpu_bandwidth.csv")
    rows = table[(table["what"] == what) & (table["stored"] == stored) & (table["writes"] == writes)]
    assert (rows["bytes"] == bytes_a_weight * rows["weights"]).all() and len(rows) == len(WEIGHTS)


def test_a_share_is_of_the_copy_of_as_many_bytes(recorded: Path) -> None:
    table = pd.read_csv(recorded / "gpu_bandwidth.csv")
    copies = table[table["what"] == gpu.COPY].set_index(["weights", "bytes"])["gigabytes_per_second"]
    rows = table[table["what"] != gpu.COPY]
    of_copy = [
        copies[weights, length] for weights, length in zip(rows["weights"], rows["bytes"], strict=True)
    ]
    assert (rows["of_a_copy"] * of_copy).to_list() == pytest.approx(rows["gigabytes_per_second"].to_list())


def test_members_at_once_have_a_row_each_way_with_promise_and_limit(recorded: Path) -> None:
    table = pd.read_csv(recorded / "gpu_members.csv")
    ways = {gpu.COPY, gpu.AT_ONCE, gpu.EACH_ALONE}
    assert set(zip(table["network"], table["what"], strict=True)) == {(n, w) for n in NETWORKS for w in ways}
    assert len(table) == len(NETWORKS) * len(ways)
    assert table["promised_seconds"].to_list() == [gpu.MEMBER_SECONDS[name] for name in table["network"]]
    copies = table[table["what"] == gpu.COPY].set_index("network")["median_seconds"]
    assert table["limit_seconds"].to_list() == [copies[name] for name in table["network"]]
    weights = {name: sum(rows * columns for rows, columns in NETWORKS[name]) for name in NETWORKS}
    assert table["bytes"].to_list() == [8 * weights[name] for name in table["network"]]


def test_the_networks_have_the_quantised_weights_of_timms() -> None:
    # timm's parameters without biases, norms, class token and positions: 22.05 M and 304.3 M with them.
    weights = {name: sum(rows * columns for rows, columns in shapes) for name, shapes in gpu.VITS.items()}
    assert weights == {
        "ViT-S/16": 384 * (768 + 1000) + 12 * 12 * 384**2,
        "ViT-L/16": 1024 * (768 + 1000) + 24 * 12 * 1024**2,
    }


def test_every_way_of_decoding_has_a_row(recorded: Path) -> None:
    table = pd.read_csv(recorded / "gpu_decoding.csv")
    found = set(zip(table["what"], table["stored"], table["members"], strict=True))
    expected = {(gpu.FORWARD, "bfloat16", 1)}
    for members in MEMBERS:
        expected.add((gpu.ONE_BY_ONE, "INT-8", members))
    expected |= {(gpu.FROM_PLANES, "planes", members) for members in PLANE_MEMBERS}
    for members in MEMBERS:
        for what in gpu.READ_ONCE.values():
            expected |= {(what, stored, members) for stored in ("INT-8", "bfloat16")}
    assert found == expected and len(table) == len(expected)


def test_decoding_is_told_in_times_of_one_pass(recorded: Path) -> None:
    table = pd.read_csv(recorded / "gpu_decoding.csv")
    (of_a_pass,) = table[table["what"] == gpu.FORWARD]["median_seconds"]
    times = (table["median_seconds"] / of_a_pass).to_list()
    assert table["times_a_pass"].to_list() == pytest.approx(times)


def test_decoding_passes_distinct_layers_in_turn(recorded: Path) -> None:
    table = pd.read_csv(recorded / "gpu_decoding.csv")
    assert set(table["weights"]) == {LAYERS * sum(rows * columns for rows, columns in SHAPES)}


def test_the_table_tells_its_conditions(recorded: Path) -> None:
    text = gpu.table_text(recorded)
    parts = json.loads((recorded / "gpu.json").read_text(encoding="utf-8"))["config"]["part_seconds"]
    assert list(parts) == ["bandwidth", "members at once", "decoding", "calls", "models"]
    assert f"{LAYERS} layers, {DISTINCT} distinct" in text
    assert "driver" in text and "first calls, compilation included" in text and "no GPU" in text


def test_what_is_recorded_gives_every_verdict(recorded: Path) -> None:
    # Two of bandwidth, two of members, and one of decoding: 10 and 20 members are not among the tiny cases.
    assert len(gpu.promises(recorded)) == 5


def test_promises_at_their_bounds_are_kept(written: Callable[..., Path]) -> None:
    found = gpu.promises(written({"bfloat16": 0.7, "INT-8": 0.7}, gpu.MEMBER_SECONDS, gpu.PASS_PROMISES))
    assert len(found) == 9 and all(kept and line.startswith("kept: ") for kept, line in found)


@pytest.mark.parametrize("broken", range(9))
def test_a_broken_promise_is_seen(written: Callable[..., Path], broken: int) -> None:
    shares = {stored: 0.69 if broken == place else 0.9 for place, stored in enumerate(("bfloat16", "INT-8"))}
    times = {
        case: promised * (1.01 if broken == place else 1.0)
        for place, (case, promised) in enumerate(gpu.PASS_PROMISES.items(), 4)
    }
    seconds = {
        network: promised * (1.01 if broken == place else 0.5)
        for place, (network, promised) in enumerate(gpu.MEMBER_SECONDS.items(), 2)
    }
    found = gpu.promises(written(shares, seconds, times))
    assert [not kept for kept, _ in found] == [place == broken for place in range(9)]
    assert found[broken][1].startswith("broken: ")


@pytest.mark.parametrize(
    ("what", "stored", "members", "times"),
    [
        (gpu.FORWARD, "bfloat16", 1, 1.0),
        ("independent members", "INT-8", 10, 0.5),
        ("coupled members", "bfloat16", 10, 1.0),
        # The codes are read, the member is written and read again.
        (gpu.ONE_BY_ONE, "INT-8", 10, 25.0),
        # A lower neighbour of a byte, once, and a bit a member.
        (gpu.FROM_PLANES, "planes", 10, 1.125),
        (gpu.FROM_PLANES, "planes", 20, 1.75),
    ],
)
def test_the_limit_is_the_bytes_of_weights(what: str, stored: str, members: int, times: float) -> None:
    assert gpu.bytes_a_weight(what, stored, members) / 2 == times


def test_the_limits_stand_beside_the_rows(recorded: Path) -> None:
    table = pd.read_csv(recorded / "gpu_decoding.csv")
    planes = table[table["what"] == gpu.FROM_PLANES].set_index("members")
    assert planes["limit_times"].to_dict() == {1: 0.5625, 3: 0.6875}
    promised = table.set_index(["what", "stored", "members"])["promised_times"].dropna()
    assert promised.to_dict() == {("independent members", "INT-8", 1): 1.1}


def test_planes_of_a_layer_are_the_members_that_are_drawn() -> None:
    with kernels.use("reference"):  # planes whole, one after another, as a GPU has them
        weight = torch.randn(8, 32).bfloat16()
        scales = gpu.member_scales(weight.float())
        planes = gpu.planes_of(weight, scales, "layer", 3)
        found = torch.empty(3, 1, weight.numel(), dtype=torch.bfloat16)
        planes_kernels.of(weight.device).round_into(found, planes)
        drawn = torch.empty_like(found)
        draw = Draw("bernoulli", 0, "layer", 0)
        kernels.of(weight.device).round_into(drawn, weight.view(-1), scales, grid_of(lpe.Int(gpu.BITS)), draw)
        assert torch.equal(found, drawn)
        linear = gpu.Linear(weight, gpu.int8_of(weight.float()), scales, "layer", planes)
        first = torch.empty(2, 1, weight.numel(), dtype=torch.bfloat16)
        planes_kernels.of(weight.device).round_into(first, linear.first_planes(2))
        assert torch.equal(first, drawn[:2])


def test_the_stack_has_the_linear_weights_of_llama_3_8b() -> None:
    layer = sum(rows * columns for rows, columns in gpu.LLAMA_3_8B)
    # 8.03 G parameters, without two embeddings of 128,256 tokens and 65 norms.
    assert gpu.LAYERS * layer == 8_030_261_248 - (2 * 128_256 + 65) * 4096


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "no CUDA device" in captured.err
    assert captured.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--layers", "0"], ["--layers", "33"], ["--weights", "4095"]])
def test_options_out_of_range_are_refused_in_one_line(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(options) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and options[0] in message and options[1] in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_decoding_is_timed_with_and_without_graphs(tmp_path: Path) -> None:
    record("cuda", tmp_path)
    assert set(pd.read_csv(tmp_path / "gpu_decoding.csv")["run"]) == {gpu.GRAPH, gpu.LAUNCHED}
    assert (pd.read_csv(tmp_path / "gpu_bandwidth.csv")["median_seconds"].notna()).all()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--probe":
        probe()
        sys.exit()
    gpu.FURTHER = 2
    record("cpu", Path(sys.argv[1]))
