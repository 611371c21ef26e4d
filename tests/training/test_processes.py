"""Two processes train what one trains, to float rounding, by every method; started once for all of it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.provenance import REPOSITORY
from lpe.training import processes
from lpe.training.processes import Processes, active, joined

TOGETHER = Path(__file__).with_name("together.py")
SCRIPT = runpy.run_path(str(TOGETHER))
CASES = SCRIPT["CASES"]

LAUNCH = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has trained."""
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [sys.executable, *LAUNCH, str(TOGETHER), str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LPE_KERNELS": "reference"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("computed whole in each of 2 processes") == 1
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TOLERANCES = {"batch norm in float32": 1e-4, "side by side": 1e-5}
"""Of float32; the others train in float64."""


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(case: str, two: list[dict[str, Any]]) -> None:
    one, tolerance = CASES[case](), TOLERANCES.get(case, 1e-10)
    assert one.keys() == two[0][case].keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[0][case][name], tensor, rtol=tolerance, atol=tolerance / 10, msg=name)


@pytest.mark.parametrize("case", [*CASES, "killed"])
def test_the_processes_have_the_same_bits(case: str, two: list[dict[str, Any]]) -> None:
    assert equal(two[0][case], two[1][case])


def test_each_process_runs_its_own_part_of_the_examples(two: list[dict[str, Any]]) -> None:
    """Of 7, 6 and 1; the first process runs along on a copy of the last one's, which counts nothing."""
    assert [each["examples"] for each in two] == [[3, 3, 1] * 2, [4, 3, 1] * 2]


def test_dropout_has_masks_of_its_own_in_each_process_and_step(two: list[dict[str, Any]]) -> None:
    first, second = ([each["dropout"][f"mask {step}"] for step in (0, 1, 3, 4)] for each in two)
    assert not any(map(torch.equal, first, second))
    assert len({mask.numpy().tobytes() for mask in [*first, *second]}) == 8
    kept = {name: each for name, each in two[0]["dropout"].items() if "mask" not in name}
    assert equal(kept, {name: two[1]["dropout"][name] for name in kept})


def test_a_killed_training_of_two_goes_on_to_the_same_bits(two: list[dict[str, Any]]) -> None:
    for each in two:
        whole, killed = each["uninterrupted"], each["killed"]
        assert (int(whole.pop("steps")), int(killed.pop("steps"))) == (6, 2)
        assert equal(whole, killed)


def test_all_begin_with_the_first_ones_weights(two: list[dict[str, Any]]) -> None:
    assert equal(two[0]["other weights"], two[1]["other weights"])
    net = SCRIPT["network"](0)
    own = SCRIPT["trained"](net, SCRIPT["sgd"](net))
    torch.testing.assert_close(two[1]["other weights"], own, rtol=1e-10, atol=1e-11)


def test_other_layers_that_keep_statistics_are_refused(two: list[dict[str, Any]]) -> None:
    for each in two:
        assert each["instance norm"].startswith("0.running_mean is another one in each process")


def test_after_the_block_each_trains_alone(two: list[dict[str, Any]]) -> None:
    assert all(equal(each["alone"], CASES["SGD"]()) for each in two)


def test_a_group_that_is_there_is_used_as_it_is(two: list[dict[str, Any]]) -> None:
    """An Accelerator has joined it as well."""
    assert all(equal(each["accelerator"], two[0]["SGD"]) for each in two)


def test_once_they_have_parted_nothing_is_trained_together(two: list[dict[str, Any]]) -> None:
    for each in two:
        assert "not among those that 2 processes shared" in each["after"]
        assert "join them once" in each["again"]


# In this process.


def test_a_wrong_part_would_be_seen() -> None:
    """The injected fault: gradients of a part of the examples for those of all."""
    whole, net = CASES["SGD"](), SCRIPT["network"]()
    halves = [(inputs[: len(inputs) // 2 + 1], targets[: len(inputs) // 2 + 1]) for inputs, targets in
              SCRIPT["batches"](0)]  # fmt: skip
    part = SCRIPT["trained"](net, SCRIPT["sgd"](net), batches=halves)
    assert not torch.allclose(part["net/0.weight"], whole["net/0.weight"], rtol=1e-3)


def test_started_alone_a_process_shares_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(cpu=True) as found:
        assert (found.rank, found.count, found.device) == (0, 1, torch.device("cpu"))
        assert active() is None
        assert found.of_first("told") == "told"
        assert equal(CASES["SGD"](), CASES["SGD"]())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--mixed_precision bf16 is not used here"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--gradient_accumulation_steps 4 is not used here"),
        ("ACCELERATE_USE_FSDP", "true", "accelerate's fsdp is not used here"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "accelerate's deepspeed is not used here"),
    ],
)
def test_what_accelerate_would_do_beside_is_one_line(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(name, value)
    with pytest.raises(lpe.InputError, match=said), joined():
        pass


@pytest.mark.parametrize("examples", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_parts_are_all_examples_each_once(examples: int, count: int) -> None:
    bounds = [Processes(rank, count, torch.device("cpu")).bounds(examples) for rank in range(count)]
    assert [place for first, last in bounds for place in range(first, last)] == list(range(examples))


@pytest.mark.parametrize(
    ("inputs", "targets", "examples"),
    [
        (torch.zeros(4, 3), torch.zeros(4), 4),
        ((torch.zeros(4, 3), torch.zeros(4), torch.zeros(())), torch.zeros(4), 4),
        ({"a": torch.zeros(2, 3)}, torch.zeros(6), 2),
        ((torch.zeros(4, 3), torch.zeros(1, 3)), torch.zeros(4), 0),
        (torch.zeros(4, 3), torch.zeros(6), 0),
        (nn.utils.rnn.pack_sequence([torch.zeros(3, 2)]), torch.zeros(3), 0),
        (torch.zeros(4, 3), torch.zeros(()), 0),
    ],
    ids=["tensor", "a number beside", "several targets", "no axis in common", "targets", "packed", "one"],
)
def test_what_can_be_shared_out_by_example(inputs: Any, targets: Tensor, examples: int) -> None:
    assert processes._examples(inputs, targets) == examples
