"""LPE-BSR: a member is its weights rounded under the right key, and what an ensemble takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.modules import named_tensors
from lpe.number_systems.rounding import members_into

INT4 = lpe.Int(4)
CODEBOOK = lpe.Codebook([-1.0, -0.4, 0.1, 0.3, 0.5])


class Net(nn.Module):
    """Every output axis, a tied weight, a half-precision weight, and buffers saved and not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.proj = nn.Parameter(torch.randn(6, 8))
        self.embed = nn.Embedding(7, 8)
        self.head = nn.Linear(8, 7)
        self.head.weight = self.embed.weight
        self.last = nn.Linear(7, 3).bfloat16()
        self.register_buffer("offset", torch.ones(8), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.norm(self.up(self.conv(inputs))).relu().mean(dim=(2, 3))
        return self.last(self.head(features @ self.proj + self.offset).bfloat16())


AXES = {
    "conv.weight": (0, 1),
    "up.weight": (1, 2),
    "proj": (1, 1),
    "embed.weight": (0, 1),
    "last.weight": (0, 1),
}
IMAGES = torch.linspace(-1, 1, 3 * 2 * 25).view(3, 2, 5, 5)


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def ensemble_of(size: int = 3, system: Any = INT4, **settings: Any) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(net(), system, size, **settings)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {entry.name: entry.tensor.detach() for entry in named_tensors(model)}


def rounded(index: int, system: Any = INT4, rounding: str = "bernoulli", seed: int = 0) -> dict[str, Tensor]:
    """The quantised tensors that a member under this key must have."""
    base = tensors(net())
    return {
        name: lpe.round_weights(base[name], system, rounding, seed, name, index, axis, groups)
        for name, (axis, groups) in AXES.items()
    }


def has(member: nn.Module, expected: dict[str, Tensor]) -> bool:
    found = tensors(member)
    return all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype
        for name, value in expected.items()
    )


@pytest.mark.parametrize("rounding", ["nearest", "bernoulli", "coupled"])
@pytest.mark.parametrize(
    "system",
    [
        INT4,
        lpe.Int(2),
        lpe.Int(8),
        lpe.Int(4, lpe.PerTensor()),
        lpe.Int(4, lpe.PerBlock(5)),
        lpe.Int(8, lpe.PerBlock(5), spread=11.3),
        lpe.Float(4, 3),
        lpe.Float(2, 1, lpe.PerBlock(5)),
        lpe.NF4(),
        CODEBOOK,
    ],
    ids=lambda system: system.name,
)
def test_a_members_weights_are_round_weights_under_its_name_and_index(system: Any, rounding: str) -> None:
    assert has(ensemble_of(system=system, rounding=rounding)[2], rounded(2, system, rounding))


def test_a_members_weights_are_of_its_seed() -> None:
    assert has(ensemble_of(seed=2**40 + 7)[1], rounded(1, seed=2**40 + 7))


def test_first_member_shifts_the_index_under_which_members_draw() -> None:
    assert has(ensemble_of(first_member=5)[1], rounded(6))


def test_ensembles_with_disjoint_index_ranges_have_different_members() -> None:
    assert not has(ensemble_of(first_member=3)[0], rounded(0))


def test_a_member_keeps_every_other_tensor_as_it_is() -> None:
    base, member = tensors(net()), tensors(ensemble_of()[1])
    assert all(torch.equal(member[name], value) for name, value in base.items() if name not in AXES)


def test_members_to_the_nearest_are_all_alike() -> None:
    assert has(ensemble_of(rounding="nearest")[2], tensors(ensemble_of(rounding="nearest")[0]))


def test_coupled_members_are_not_independent_draws() -> None:
    assert not has(ensemble_of(rounding="coupled")[1], rounded(1))


def test_coupled_member_0_is_bernoullis() -> None:
    assert has(ensemble_of(rounding="coupled")[0], rounded(0))


def test_full_precision_members_have_the_bases_weights() -> None:
    assert has(ensemble_of(system=lpe.FullPrecision())[2], tensors(net()))


def test_codes_times_scales_are_the_members_weights() -> None:
    ensemble = ensemble_of(first_member=2)
    codes, scales = ensemble.codes("conv.weight", 1)
    assert torch.equal(lpe.decode(codes, scales, INT4), rounded(3)["conv.weight"])


@pytest.mark.parametrize("name", ["conv.bias", "norm.running_mean", "nothing"])
def test_codes_of_what_is_not_quantised_are_refused_by_name(name: str) -> None:
    with pytest.raises(lpe.InputError, match=f"'{name}'"):
        ensemble_of().codes(name, 0)


def test_an_ensemble_of_one_predicts_what_its_member_predicts() -> None:
    ensemble = ensemble_of(size=1)
    assert torch.equal(ensemble.predict(IMAGES), ensemble[0](IMAGES).detach().double().log_softmax(dim=-1))


def test_a_full_precision_ensemble_of_one_predicts_what_the_model_predicts() -> None:
    expected = net().eval()(IMAGES).detach().double().log_softmax(dim=-1)
    assert torch.equal(ensemble_of(size=1, system=lpe.FullPrecision()).predict(IMAGES), expected)


def test_a_larger_ensemble_begins_with_the_members_of_a_smaller() -> None:
    assert has(ensemble_of(size=9)[1], tensors(ensemble_of(size=2)[1]))


# Memory, counted by hand. Quantised: conv 4·2·9, up 4·3·4, proj 6·8, embed 7·8 (the head is tied), last 3·7.
NUMELS = (72, 48, 48, 56, 21)
QUANTISED = sum(NUMELS)
# One scale an output channel: conv 4, up 2 groups of 3, proj 8, embed 7, last 3.
SCALES = 4 + 6 + 8 + 7 + 3
# In float32: biases of conv, up and head; norm's weight, bias, mean and variance. In bfloat16: last's bias.
# In int64: norm's count of batches. The buffer that is not saved is not counted.
LEFTOVER_BITS = 32 * (4 + 6 + 7) + 32 * 4 * 6 + 16 * 3 + 64


def packed(bits: int) -> int:
    """Bits of one member's codes: each tensor's in whole bytes."""
    return sum(8 * -(-numel * bits // 8) for numel in NUMELS)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_stored_members_take_their_codes_each_and_scales_and_leftovers_once(n: int) -> None:
    assert ensemble_of().memory_bits(n) == n * packed(4) + SCALES * 32 + LEFTOVER_BITS


def test_memory_is_that_of_all_members_unless_told() -> None:
    assert ensemble_of().memory_bits() == ensemble_of().memory_bits(3)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("bits", [2, 7])
def test_the_generator_takes_one_copy_of_8_bits_whatever_the_members(bits: int, n: int) -> None:
    found = ensemble_of(system=lpe.Int(bits)).memory_bits(n, storage="generator")
    assert found == QUANTISED * 8 + SCALES * 32 + LEFTOVER_BITS


@pytest.mark.parametrize(
    "system",
    [lpe.Int(8), lpe.Int(8, spread=1.5), lpe.Float(4, 3), lpe.Float(5, 2), lpe.Codebook(range(200))],
    ids=lambda s: s.name,
)
def test_the_generator_of_members_of_8_bits_is_bfloat16_which_has_no_scales(system: Any) -> None:
    found = ensemble_of(system=system).memory_bits(3, storage="generator")
    assert found == QUANTISED * 16 + LEFTOVER_BITS


def test_an_8_bit_copy_generates_the_one_member_to_the_nearest() -> None:
    found = ensemble_of(system=lpe.Int(8), rounding="nearest").memory_bits(3, storage="generator")
    assert found == QUANTISED * 8 + SCALES * 32 + LEFTOVER_BITS


@pytest.mark.parametrize(
    ("system", "bits"),
    [
        (lpe.Int(8, spread=11.3), 5),  # 25 levels
        (lpe.Int(8, spread=32), 4),  # 9 levels
        (lpe.Int(5, clip="mse", spread=1.7), 5),  # 19 levels
        (lpe.Float(4, 3), 8),
        (lpe.Float(3, 2), 6),
        (lpe.Float(2, 1), 4),
        (lpe.NF4(), 4),
        (CODEBOOK, 3),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_members_of_other_systems_take_their_bits(system: Any, bits: int) -> None:
    assert ensemble_of(system=system).memory_bits(2) == 2 * packed(bits) + SCALES * 32 + LEFTOVER_BITS


@pytest.mark.parametrize(
    "system",
    [lpe.Int(8, spread=2.1), lpe.Float(3, 2), lpe.NF4(), CODEBOOK],
    ids=lambda system: system.name,
)
def test_the_generator_of_other_systems_below_8_bits_takes_8(system: Any) -> None:
    found = ensemble_of(system=system).memory_bits(2, storage="generator")
    assert found == QUANTISED * 8 + SCALES * 32 + LEFTOVER_BITS


def test_what_members_are_drawn_from_their_scales_and_their_key_draw_a_member() -> None:
    ensemble = ensemble_of(seed=9, first_member=2)
    layout = next(planned.layout for planned in ensemble.plan if planned.name == "up.weight")
    values = torch.empty(2, 1, layout.numel)
    members_into(
        values,
        ensemble.stored("up.weight"),
        ensemble.scales("up.weight"),
        INT4,
        layout,
        ensemble.draw("up.weight", 0),
    )
    for index in (0, 1):
        wanted = rounded(2 + index, seed=9)["up.weight"]
        assert torch.equal(values[index, 0].view(layout.shape), wanted)


@pytest.mark.parametrize("of", ["stored", "scales"])
def test_what_is_not_rounded_has_nothing_to_be_drawn_from(of: str) -> None:
    with pytest.raises(lpe.InputError, match="'conv.bias' is not a rounded tensor"):
        getattr(ensemble_of(), of)("conv.bias")


def test_codes_times_scales_are_a_members_weights_in_other_systems() -> None:
    codes, scales = ensemble_of(system=CODEBOOK).codes("proj", 1)
    values = lpe.decode(codes, scales, CODEBOOK, output_axis=1)
    assert torch.equal(values, rounded(1, CODEBOOK)["proj"])


def test_describe_names_another_system_and_its_bits() -> None:
    text = ensemble_of(system=lpe.NF4(lpe.PerBlock(5))).describe()
    assert "nf4 per block of 5 inputs" in text.splitlines()[0]
    (row,) = [line for line in text.splitlines() if line.startswith("conv.weight")]
    assert row.split()[-1] == "4"


def test_describe_names_the_spread_and_the_bits_that_its_codes_take() -> None:
    text = ensemble_of(system=lpe.Int(8, spread=11.3)).describe()
    assert "int8*11.3" in text.splitlines()[0]
    (row,) = [line for line in text.splitlines() if line.startswith("conv.weight")]
    assert row.split()[-1] == "5"


def test_members_to_the_nearest_are_counted_once() -> None:
    found = ensemble_of(rounding="nearest").memory_bits(3)
    assert found == packed(4) + SCALES * 32 + LEFTOVER_BITS


@pytest.mark.parametrize("storage", ["members", "generator"])
def test_full_precision_members_are_the_model_once_at_its_own_precision(storage: str) -> None:
    found = ensemble_of(system=lpe.FullPrecision()).memory_bits(3, storage)
    assert found == (QUANTISED - 21) * 32 + 21 * 16 + LEFTOVER_BITS


def test_the_full_precision_count_is_that_of_the_state_dict_with_tied_tensors_once() -> None:
    saved = {value.data_ptr(): value for value in net().state_dict().values()}
    assert ensemble_of(system=lpe.FullPrecision()).memory_bits() == sum(
        8 * value.numel() * value.element_size() for value in saved.values()
    )


def test_blocks_of_inputs_have_a_scale_each_also_the_shorter_last() -> None:
    blocks = 4 * 4 + 6 * 2 + 8 * 2 + 7 * 2 + 3 * 2  # of 18, 8, 6, 8 and 7 inputs, cut into fives
    found = ensemble_of(system=lpe.Int(4, lpe.PerBlock(5))).memory_bits(1)
    assert found == packed(4) + blocks * 32 + LEFTOVER_BITS


def test_memory_grows_with_every_member() -> None:
    ensemble = ensemble_of(size=5)
    sizes = [ensemble.memory_bits(n) for n in range(1, 6)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("n", [0, -1, 4, 1.0, True])
def test_a_number_of_members_out_of_range_is_refused_with_its_value(n: Any) -> None:
    with pytest.raises(lpe.InputError, match=str(n)):
        ensemble_of(size=3).memory_bits(n)


def test_an_unknown_storage_is_refused_by_name_with_those_there_are() -> None:
    with pytest.raises(lpe.InputError, match="members, generator, planes, not 'disk'"):
        ensemble_of().memory_bits(storage="disk")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("system", "int4"),
        ("system", lpe.NF4),
        ("size", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("rounding", "stochastic"),
        ("first_member", -1),
        ("first_member", 2**32),
        ("first_member", 2**32 - 2),
        ("include", "nothing*"),
        ("exclude", "nothing*"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line_with_its_value(setting: str, value: Any) -> None:
    with pytest.raises(lpe.InputError) as caught:
        ensemble_of(**{setting: value})
    # Of a range of indices the last is named: 2³² − 2 + 3 − 1.
    named = repr(2**32) if value == 2**32 - 2 else repr(value)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_describe_states_the_class_size_system_rounding_and_seed() -> None:
    title = ensemble_of(rounding="coupled", seed=9).describe().splitlines()[0]
    assert title == "LPE of Net: 3 members, int4, coupled rounding, seed 9"


def test_describe_counts_values_quantised_and_stored_values_that_are_not() -> None:
    stored = 17 + 24 + 3 + 1
    assert ensemble_of().describe().splitlines()[-1].startswith(f"{QUANTISED} values quantised, {stored} ")


def test_a_members_weights_start_as_aligned_as_if_allocated_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 7), torch.nn.Linear(7, 2))
    member = lpe.LowPrecisionEnsemble(model, lpe.Int(4), 1)[0]
    assert [layer.weight.data_ptr() % 64 for layer in member] == [0, 0, 0]
