"""A number system per name pattern: each tensor has its own, everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lpe
from lpe.ensembles.selection import select_tensors
from lpe.modules import named_tensors
from lpe.number_systems.grids import NumberSystem
from lpe.number_systems.packing import packed_bytes

INPUTS = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
SYSTEMS: dict[str, NumberSystem] = {
    "mlp.*": lpe.Int(3, lpe.PerBlock(5)),
    "head.*": lpe.FullPrecision(),
    "*": lpe.NF4(),
}


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Linear(12, 10)
            self.mlp = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 10))
            self.head = nn.Linear(10, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.stem(x)
        return self.head(hidden + self.mlp(hidden))


def ensemble(size: int = 3, rounding: str = "bernoulli") -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(Net(), SYSTEMS, size, seed=4, rounding=rounding)


def system_of(name: str) -> NumberSystem:
    return SYSTEMS["mlp.*"] if name.startswith("mlp") else SYSTEMS["*"]


WEIGHTS = ["stem.weight", "mlp.0.weight", "mlp.2.weight"]


@pytest.mark.parametrize("rounding", ["nearest", "bernoulli", "coupled"])
def test_each_tensor_is_rounded_to_the_system_of_the_first_pattern_that_matches(rounding: str) -> None:
    base = Net().state_dict()
    member = ensemble(rounding=rounding)[2].state_dict()
    for name, weight in base.items():
        expected = weight
        if name in WEIGHTS:
            expected = lpe.round_weights(weight, system_of(name), rounding, 4, name, 2)
        assert torch.equal(member[name], expected), name


def test_codes_and_scales_are_of_the_tensors_own_system() -> None:
    made = ensemble()
    for name in WEIGHTS:
        codes, scales = made.codes(name, 1)
        wanted = lpe.encode(Net().state_dict()[name], system_of(name), seed=4, name=name, member=1)  # type: ignore[arg-type]
        assert torch.equal(codes, wanted[0]) and torch.equal(scales, wanted[1])


def test_members_in_turn_and_all_at_once_are_the_members_one_by_one() -> None:
    made = ensemble()
    alone = torch.stack([member(INPUTS) for member in made])
    assert torch.equal(torch.stack([member(INPUTS) for member in made.in_turn()]), alone)
    torch.testing.assert_close(made.as_module()(INPUTS), alone)


def test_memory_is_the_sum_of_each_tensors_own() -> None:
    made = ensemble()
    scales = 32 * sum(made.scales(name).numel() for name in WEIGHTS)
    leftovers = 32 * (10 + 16 + 10 + 44)
    codes = 8 * (packed_bytes(120, lpe.NF4()) + 2 * packed_bytes(160, lpe.Int(3)))
    assert made.memory_bits() == 3 * codes + scales + leftovers
    assert made.memory_bits(storage="generator") == 8 * 440 + scales + leftovers


def test_the_generator_is_as_fine_as_the_finest_system_needs() -> None:
    made = lpe.LowPrecisionEnsemble(Net(), {"mlp.*": lpe.Int(3), "*": lpe.Int(8)}, 2)
    assert made.base == "bf16"
    assert made.memory_bits(storage="generator") == 16 * 480 + 32 * 40


def test_a_tensor_that_no_pattern_matches_stays_as_it_is_and_the_table_says_so() -> None:
    made = lpe.LowPrecisionEnsemble(Net(), {"mlp.*": lpe.Int(4)}, 2)
    assert torch.equal(made[1].stem.weight, Net().stem.weight)
    rows = {line.split()[0]: line for line in made.describe().splitlines()}
    assert rows["stem.weight"].split()[2:] == ["no", "Linear;", "no", "pattern", "32"]
    assert rows["mlp.0.weight"].split()[2:] == ["yes", "Linear;", "mlp.*", "4"]


def test_the_title_has_the_name_of_all_systems() -> None:
    assert ", mlp.*=int3 per block of 5 inputs,head.*=fp32,*=nf4, " in ensemble().describe().splitlines()[0]


@pytest.mark.parametrize(("kind", "base"), [("members", None), ("seeded", "fp32")])
def test_a_file_gives_the_members_back(tmp_path: Path, kind: str, base: str | None) -> None:
    made = ensemble()
    assert lpe.save(made, tmp_path / "e", kind, base) > 0
    read = lpe.load(tmp_path / "e", Net(9))
    assert torch.equal(read.predict(INPUTS), made.predict(INPUTS))
    assert read.system == made.system  # type: ignore[attr-defined]
    assert read.memory_bits() == made.memory_bits()


def test_a_seeded_file_draws_each_tensor_from_its_own_base(tmp_path: Path) -> None:
    lpe.save(ensemble(), tmp_path / "e", "seeded")
    coarse = Net(9)
    coarse.load_state_dict(Net().state_dict())
    with torch.no_grad():
        for entry in named_tensors(coarse):
            if entry.name in WEIGHTS:
                integers = lpe.Int(8, system_of(entry.name).scale)  # type: ignore[union-attr]
                entry.tensor.copy_(lpe.round_weights(entry.tensor, integers, "nearest", name=entry.name))
    expected = lpe.LowPrecisionEnsemble(coarse, SYSTEMS, 3, seed=4).predict(INPUTS)
    torch.testing.assert_close(lpe.load(tmp_path / "e", Net(9)).predict(INPUTS), expected)


@pytest.mark.parametrize("kind", ["members", "seeded"])
def test_a_file_that_was_read_is_written_again_as_it_was(tmp_path: Path, kind: str) -> None:
    lpe.save(ensemble(), tmp_path / "a", kind)
    lpe.save(lpe.load(tmp_path / "a", Net(9)), tmp_path / "b", kind)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kind", ["members", "seeded"])
def test_a_mixture_may_have_parts_with_systems_of_their_own(tmp_path: Path, kind: str) -> None:
    made = lpe.Mixture.of([ensemble(2), lpe.LowPrecisionEnsemble(Net(3), lpe.Int(5), 2)])
    lpe.save(made, tmp_path / "e", kind)
    read = lpe.load(tmp_path / "e", Net(9))
    if kind == "members":
        assert torch.equal(read.predict(INPUTS), made.predict(INPUTS))
    assert read.memory_bits(storage="members") == made.memory_bits()


def test_an_eight_bit_system_refuses_an_int8_base(tmp_path: Path) -> None:
    made = lpe.LowPrecisionEnsemble(Net(), {"mlp.*": lpe.Int(3), "*": lpe.Int(8)}, 2)
    with pytest.raises(lpe.InputError, match="base='int8' cannot hold members of int8"):
        lpe.save(made, tmp_path / "e", "seeded")
    assert not list(tmp_path.iterdir())


def test_matched_noise_has_the_variance_of_each_tensors_own_system() -> None:
    made = lpe.GaussianEnsemble(Net(), SYSTEMS, 2)
    for name in WEIGHTS:
        alone = lpe.GaussianEnsemble(Net(), system_of(name), 2)
        assert torch.equal(made.std_of(name), alone.std_of(name))
    with pytest.raises(lpe.InputError, match="'head.weight' carries no noise"):
        made.std_of("head.weight")


def test_a_tied_tensor_may_be_matched_under_either_of_its_names() -> None:
    net = Net()
    net.twin = nn.Linear(12, 10)
    net.twin.weight = net.stem.weight
    plan = select_tensors(net, lpe.number_system("twin.*=int4,mlp*=int8"))
    assert {planned.name: planned.system for planned in plan}["stem.weight"] == lpe.Int(4)


@pytest.mark.parametrize(
    ("systems", "told"),
    [
        ({"mpl.*": lpe.Int(4), "*": lpe.Int(8)}, "the pattern 'mpl.*' matches no tensor of the model"),
        ({"*bias": lpe.Int(4), "*": lpe.Int(8)}, "only tensors that are not rounded, such as 'stem.bias'"),
        ({"*": lpe.Int(8), "mlp.*": lpe.Int(4)}, "the pattern 'mlp.*' comes after '*', which takes"),
        ({"head.weight": lpe.FullPrecision(), "*": "int4"}, "must have a number system"),
        ({}, "needs at least one"),
    ],
)
def test_a_mapping_that_does_not_fit_the_model_is_refused_in_a_line(
    systems: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(lpe.InputError) as caught:
        lpe.LowPrecisionEnsemble(Net(), systems, 2)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_last_star_may_find_nothing_left() -> None:
    systems = {"*weight": lpe.Int(4), "*bias": lpe.FullPrecision(), "*": lpe.Int(8)}
    made = lpe.LowPrecisionEnsemble(Net(), systems, 2)
    assert {planned.system.name for planned in made.plan if planned.rounds} == {"int4"}


def test_under_full_precision_no_tensor_rounds_and_members_are_the_model() -> None:
    made = lpe.LowPrecisionEnsemble(Net(), lpe.FullPrecision(), 2)
    assert not made.rounds and torch.equal(made[0](INPUTS), Net()(INPUTS))
    assert made.memory_bits() == made.memory_bits(storage="generator") == 32 * (480 + 40)


def test_clipped_steps_survive_both_kinds_of_file_and_the_table_says_what_they_do(tmp_path: Path) -> None:
    made = lpe.LowPrecisionEnsemble(Net(), lpe.Int(3, lpe.PerBlock(6), clip="mse"), 3)
    assert "weights beyond the last code are clipped to it" in made.describe().splitlines()[0]
    assert made.memory_bits() == lpe.LowPrecisionEnsemble(Net(), lpe.Int(3, lpe.PerBlock(6)), 3).memory_bits()
    for kind, base in (("members", None), ("seeded", "fp32")):
        lpe.save(made, tmp_path / "e", kind, base)
        read = lpe.load(tmp_path / "e", Net(9))
        assert torch.equal(read.predict(INPUTS), made.predict(INPUTS))
        assert read.system == made.system  # type: ignore[attr-defined]


def test_clipped_steps_of_an_int8_base_are_those_of_its_values(tmp_path: Path) -> None:
    system = lpe.Int(3, clip="mse")
    lpe.save(lpe.LowPrecisionEnsemble(Net(), system, 3), tmp_path / "e", "seeded")
    read = lpe.load(tmp_path / "e", Net(9))
    assert isinstance(read, lpe.LowPrecisionEnsemble)
    weight = Net().stem.weight.detach()
    values = lpe.round_weights(weight, lpe.Int(8), "nearest")
    assert torch.equal(read.scales("stem.weight"), lpe.encode(values, system)[1])
