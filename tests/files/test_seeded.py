"""Seeded files: members drawn from packed weights, as many as one likes; what the files hold, to the bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.low_precision import BASES
from lpe.files import container
from lpe.files.kinds import KINDS
from lpe.files.seeded import SeededEnsemble
from lpe.modules import named_tensors, with_tensors
from lpe.number_systems.grids import LowPrecision, ScaleAxis, grid_of
from lpe.number_systems.kernels.arguments import Coded
from lpe.number_systems.rounding import absmax_scales, members_into


class Experts(nn.Module):
    """Two experts, [experts, in, out] or [experts, out, in], all of whose outputs are added."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.kernels = nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("bi,eio->bo" if self.is_transposed else "bi,eoi->bo", inputs, self.kernels)


class Net(nn.Module):
    """Every output axis, odd shapes, a tied weight, a half-precision weight, buffers saved and not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.up = nn.ConvTranspose2d(3, 6, 2, groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.proj = nn.Parameter(torch.randn(6, 7))
        self.embed = nn.Embedding(5, 7)
        self.head = nn.Linear(7, 5)
        self.head.weight = self.embed.weight
        self.experts = nn.Sequential(Experts(True), Experts(False))
        self.last = nn.Linear(5, 3).bfloat16()
        self.register_buffer("offset", torch.ones(7), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.norm(self.up(self.conv(inputs))).relu().mean(dim=(2, 3))
        return self.last(self.experts(self.head(features @ self.proj + self.offset)).bfloat16())


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net().eval()


IMAGES = torch.linspace(-1, 1, 3 * 2 * 25).view(3, 2, 5, 5)
INT4 = lpe.Int(4)
CODEBOOK = lpe.Codebook([-1.0, -0.4, 0.1, 0.3, 0.5])
SYSTEMS: list[LowPrecision] = [
    *(lpe.Int(bits) for bits in range(2, 9)),
    lpe.Int(8, spread=11.3),
    lpe.Int(8, spread=1.5),
    *(lpe.Float(*sizes) for sizes in ((4, 3), (3, 2), (2, 1))),
    lpe.NF4(),
    CODEBOOK,
    lpe.Codebook([-1, 1]),
    lpe.Codebook(range(-100, 100)),
]
AXES: list[ScaleAxis] = [lpe.PerTensor(), lpe.PerChannel(), lpe.PerChannel(2), lpe.PerBlock(4)]
# Every system under one axis, and one system under every axis.
PAIRS = [
    *(dataclasses.replace(system, scale=lpe.PerBlock(4)) for system in SYSTEMS),
    *(lpe.Int(5, axis) for axis in AXES[:-1]),
]
OF_8 = [system for system in SYSTEMS if grid_of(system).code_bits == 8]
BELOW_8 = [system for system in PAIRS if grid_of(system).code_bits < 8]


def name_of(value: Any) -> str | None:
    return getattr(value, "name", None)


def ensemble_of(system: LowPrecision, size: int = 3, model: nn.Module | None = None, **settings: Any) -> Any:
    return lpe.LowPrecisionEnsemble(
        model or net(), system, size, **{"seed": 7, "first_member": 2, **settings}
    )


def saved(ensemble: Any, path: Path, **how: Any) -> Path:
    lpe.save(ensemble, path / "e", **how)
    return path / "e"


def seeded(path: Path, system: LowPrecision = INT4, base: str | None = None, **settings: Any) -> Any:
    """The ensemble read back from its seeded file."""
    file = saved(ensemble_of(system, **settings), path, kind="seeded", base=base)
    return lpe.load(file, settings.get("model") or net(9))


def stored_bits(path: Path) -> int:
    """Bits of all tensors of a file: what follows the header."""
    raw = path.read_bytes()
    return 8 * (len(raw) - 8 - int.from_bytes(raw[:8], "little"))


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


def same_contents(first: Path, second: Path) -> bool:
    one, other = (safetensors.torch.load_file(path) for path in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# What a file holds is what is counted.


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("system", SYSTEMS, ids=name_of)
def test_bits_in_files_of_members_are_those_of_the_ensemble_and_of_what_is_read_back(
    system: LowPrecision, axis: ScaleAxis, tmp_path: Path
) -> None:
    check_bits(ensemble_of(dataclasses.replace(system, scale=axis)), tmp_path)


@pytest.mark.parametrize("rounding", ["coupled", "nearest"])
def test_bits_in_files_of_members_rounded_otherwise_are_those_of_the_ensemble(
    rounding: str, tmp_path: Path
) -> None:
    check_bits(ensemble_of(lpe.Int(5), rounding=rounding), tmp_path)


def check_bits(ensemble: Any, tmp_path: Path) -> None:
    path = saved(ensemble, tmp_path)
    read = lpe.load(path, net(9))
    assert stored_bits(path) == ensemble.memory_bits() == read.memory_bits()
    assert [read.memory_bits(n) for n in (1, 2, 3)] == [ensemble.memory_bits(n) for n in (1, 2, 3)]


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("system", SYSTEMS, ids=name_of)
def test_bits_in_seeded_files_are_the_generators_and_those_of_what_is_read_back(
    system: LowPrecision, axis: ScaleAxis, tmp_path: Path
) -> None:
    ensemble = ensemble_of(dataclasses.replace(system, scale=axis))
    path = saved(ensemble, tmp_path, kind="seeded", base=ensemble.base)
    read = lpe.load(path, net(9))
    generators = [each.memory_bits(storage="generator") for each in (ensemble, read)]
    assert [stored_bits(path)] * 2 == generators
    assert read.memory_bits() == ensemble.memory_bits()


@pytest.mark.parametrize("base", ["bf16", "fp32"])
def test_bits_in_a_file_of_a_finer_base_are_those_of_what_is_read_back(base: str, tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind="seeded", base=base)
    assert stored_bits(path) == lpe.load(path, net(9)).memory_bits(storage="generator")


def test_members_to_the_nearest_are_held_once_and_all_there(tmp_path: Path) -> None:
    ensemble = ensemble_of(INT4, rounding="nearest")
    read = lpe.load(saved(ensemble, tmp_path), net(9))
    assert [same(member, ensemble[0]) for member in read] == [True] * 3


# Which members a seeded file gives.


@pytest.mark.parametrize("rounding", ["bernoulli", "coupled", "nearest"])
@pytest.mark.parametrize("system", PAIRS, ids=name_of)
def test_from_an_fp32_base_the_members_are_those_saved_to_the_bit(
    system: LowPrecision, rounding: str, tmp_path: Path
) -> None:
    ensemble = ensemble_of(system, rounding=rounding)
    read = lpe.load(saved(ensemble, tmp_path, kind="seeded", base="fp32"), net(9))
    assert all(same(member, other) for member, other in zip(read, ensemble, strict=True))


def values_of_base(base: str, axis: ScaleAxis) -> dict[str, Tensor]:
    """What each quantised weight is in a base: float32, whatever the model's dtype."""
    weights = {entry.name: entry.tensor.detach() for entry in named_tensors(net())}
    values = {}
    for planned in ensemble_of(INT4).plan:
        if planned.quantised:
            weight, layout = weights[planned.name], planned.layout
            if base == "bf16":
                values[planned.name] = weight.bfloat16().float()
                continue
            order = {"output_axis": layout.output_axis, "channel_groups": layout.channel_groups}
            codes, scales = lpe.encode(weight, lpe.Int(8, axis), "nearest", name=planned.name, **order)
            values[planned.name] = lpe.decode(codes, scales, lpe.Int(8, axis), **order)
    return values


@pytest.mark.parametrize("base", ["int8", "bf16"])
@pytest.mark.parametrize("system", BELOW_8, ids=name_of)
def test_members_are_drawn_from_the_bases_values_in_float32(
    system: LowPrecision, base: str, tmp_path: Path
) -> None:
    read = seeded(tmp_path, system, base)
    values = values_of_base(base, system.scale)
    member = {entry.name: entry.tensor for entry in named_tensors(read[1])}
    for planned in read.plan:
        if planned.quantised:
            value, layout = values[planned.name], planned.layout
            wanted = lpe.round_weights(
                value, system, "bernoulli", 7, planned.name, 3, layout.output_axis, layout.channel_groups
            )
            found = member[planned.name]
            assert found.dtype == planned.dtype and torch.equal(found, wanted.to(planned.dtype))


def test_values_cut_to_the_models_dtype_first_would_give_other_members(tmp_path: Path) -> None:
    # The injected fault, on the bfloat16 layer: INT-8 times a scale has more digits than bfloat16.
    read = seeded(tmp_path, lpe.Int(7))
    value = values_of_base("int8", lpe.PerChannel())["last.weight"]
    found = [
        torch.equal(
            named["last.weight"],
            lpe.round_weights(
                cut.float(), lpe.Int(7), seed=7, name="last.weight", member=2 + index
            ).bfloat16(),
        )
        for cut in (value, value.bfloat16())
        for index in range(3)
        for named in [{entry.name: entry.tensor for entry in named_tensors(read[index])}]
    ]
    assert found[:3] == [True] * 3 and not all(found[3:])


@pytest.mark.parametrize("system", BELOW_8, ids=name_of)
def test_scales_under_codes_are_those_of_the_values_without_making_them(
    system: LowPrecision, tmp_path: Path
) -> None:
    read = seeded(tmp_path, system)
    values = values_of_base("int8", system.scale)
    for planned in read.plan:
        if planned.quantised:
            wanted = absmax_scales(values[planned.name], system, planned.layout)
            assert torch.equal(read.scales(planned.name), wanted)


def test_scales_of_groups_of_zeros_are_zero(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model.proj.zero_()
        model.conv.weight[1] = 0
    read = seeded(tmp_path, model=model)
    assert read.scales("proj").count_nonzero() == 0 and read.scales("conv.weight")[1] == 0
    assert read[0].proj.count_nonzero() == 0 and read[0].conv.weight[1].count_nonzero() == 0


def test_several_members_are_drawn_at_once_from_the_codes(tmp_path: Path) -> None:
    read = seeded(tmp_path)
    layout = next(planned.layout for planned in read.plan if planned.name == "up.weight")
    values = torch.empty(3, 1, layout.numel)
    draw = read.draw("up.weight", 0)
    members_into(values, read.stored("up.weight"), read.scales("up.weight"), read.system, layout, draw)
    for index, member in enumerate(read):
        assert torch.equal(values[index, 0].view(layout.shape), member.up.weight)


# What is in memory.


def test_int8_weights_stay_codes(tmp_path: Path) -> None:
    read = seeded(tmp_path)
    for planned in read.plan:
        if planned.quantised:
            stored = read.stored(planned.name)
            assert isinstance(stored, Coded)
            assert (stored.codes.dtype, stored.codes.shape) == (torch.int8, (planned.numel,))


@pytest.mark.parametrize(("base", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_floating_weights_stay_as_the_file_has_them(base: str, dtype: torch.dtype, tmp_path: Path) -> None:
    read = seeded(tmp_path, base=base)
    for planned in read.plan:
        if planned.quantised:
            stored = read.stored(planned.name)
            assert isinstance(stored, Tensor) and (stored.dtype, stored.shape) == (dtype, planned.shape)


@pytest.mark.parametrize("base", BASES)
def test_the_architecture_holds_no_copy_of_the_quantised_weights(base: str, tmp_path: Path) -> None:
    read = seeded(tmp_path, base=base)
    held = {entry.name: entry.tensor for entry in named_tensors(read.model)}
    for planned in read.plan:
        if planned.quantised:
            tensor = held[planned.name]
            assert tensor.shape == planned.shape and tensor.dtype == planned.dtype
            assert tensor.untyped_storage().nbytes() == tensor.element_size()


def test_the_architecture_alone_predicts_nothing_but_nan(tmp_path: Path) -> None:
    assert seeded(tmp_path).model(IMAGES).isnan().all()


def test_a_described_ensemble_names_its_base(tmp_path: Path) -> None:
    title, *rows = seeded(tmp_path, base="bf16").describe().splitlines()
    assert title == "LPE of Net: 3 members, int4, bernoulli rounding, seed 7, drawn from bf16 weights"
    assert rows == ensemble_of(INT4).describe().splitlines()[1:]


# Architectures.


def test_weights_tied_by_memory_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 7)
            self.head = nn.Linear(7, 5, bias=False)
            self.head.weight = nn.Parameter(self.embed.weight.detach())  # another object

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.embed(inputs))

    read = lpe.load(saved(ensemble_of(INT4, model=Tied()), tmp_path, kind="seeded"), Tied())
    member = read[0]
    assert torch.equal(member.head.weight, member.embed.weight) and member(torch.arange(5)).isfinite().all()
    assert read.memory_bits(storage="generator") == 8 * 5 * 7 + 32 * 5


class Smaller(nn.Module):
    """Without a buffer that is not saved, and on any device."""

    def __init__(self, device: str | None = None, layer: type[nn.Module] = nn.Conv1d) -> None:
        super().__init__()
        self.layer = layer(4, 4, 3, device=device)
        self.head = nn.Linear(4, 2, device=device)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layer(inputs).mean(dim=2))


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_on_meta_will_do(kind: str, tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4, model=Smaller().eval()), tmp_path, kind=kind)
    inputs = torch.linspace(-1, 1, 40).view(1, 4, 10)
    on_meta = lpe.load(path, Smaller("meta")).predict(inputs)
    assert torch.equal(on_meta, lpe.load(path, Smaller()).predict(inputs))


def test_an_architecture_on_meta_without_what_no_file_holds_is_refused(tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4, model=Smaller()), tmp_path, kind="seeded")
    empty = Smaller("meta")
    empty.register_buffer("scratch", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(lpe.InputError, match="Smaller has no values for 'scratch', which no file holds"):
        lpe.load(path, empty)


def test_a_model_whose_outputs_lie_otherwise_is_another_model(tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4, model=Smaller()), tmp_path, kind="seeded")
    with pytest.raises(lpe.InputError, match="of another model: its layouts differ"):
        lpe.load(path, Smaller(layer=nn.ConvTranspose1d))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the model lies on it")
@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_lies_where_its_model_lies(kind: str, tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind=kind)
    for there, here in zip(lpe.load(path, net(9).cuda()), lpe.load(path, net(9)), strict=True):
        assert {tensor.device.type for tensor in there.state_dict().values()} == {"cuda"}
        assert same(there.cpu(), here)


# Sizes.


def test_more_members_than_were_saved_are_drawn(tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind="seeded", base="fp32")
    read, wanted = lpe.load(path, net(9), size=20), ensemble_of(INT4, 20)
    assert len(read) == 20 and same(read[19], wanted[19]) and read.memory_bits() == wanted.memory_bits()


def test_a_mixture_has_no_more_members_than_were_saved(tmp_path: Path) -> None:
    # Of two, members beyond the first part's would draw as the second part's do.
    mixture = lpe.Mixture.of([ensemble_of(INT4), ensemble_of(INT4, model=net(1))])
    with pytest.raises(lpe.InputError, match="holds a mixture of 6 members, not 7"):
        lpe.load(saved(mixture, tmp_path, kind="seeded"), net(9), size=7)


def test_more_members_than_a_file_of_members_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="holds 3 members, not 4; a seeded file gives any number"):
        lpe.load(saved(ensemble_of(INT4), tmp_path), net(9), size=4)


@pytest.mark.parametrize("size", [0, -1, 1.0, True, "3"])
def test_a_size_that_is_none_is_refused_with_its_value(size: Any, tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind="seeded")
    with pytest.raises(lpe.InputError, match=f"not {size!r}"):
        lpe.load(path, net(9), size=size)


def test_members_beyond_the_last_index_are_refused(tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4, first_member=2**32 - 3), tmp_path, kind="seeded")
    assert len(lpe.load(path, net(9), size=3)) == 3
    with pytest.raises(lpe.InputError, match=f"not {2**32}"):
        lpe.load(path, net(9), size=4)


def simple(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()


MANY: dict[str, Callable[[], Any]] = {
    "low precision": lambda: ensemble_of(INT4, 4, simple()),
    "nearest": lambda: ensemble_of(INT4, 4, simple(), rounding="nearest"),
    "deep": lambda: lpe.DeepEnsemble([simple(seed) for seed in range(4)]),
    "mc dropout": lambda: lpe.MCDropoutEnsemble(simple(), 0.3, 4),
    "batch": lambda: lpe.BatchEnsemble(simple(), 4),
    "mixture": lambda: lpe.Mixture.of([ensemble_of(INT4, 2, simple(seed)) for seed in (0, 1)]),
}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", MANY)
def test_fewer_members_are_the_first_ones(name: str, size: int, tmp_path: Path) -> None:
    ensemble = MANY[name]()
    read = lpe.load(saved(ensemble, tmp_path), simple(9), size=size)
    inputs = torch.linspace(-1, 1, 8).view(2, 4)
    assert len(read) == size and read.memory_bits() == ensemble.memory_bits(size)
    for index in range(size):
        assert torch.equal(read[index](inputs), ensemble[index](inputs))


def test_fewer_members_of_a_seeded_mixture_are_the_first_ones(tmp_path: Path) -> None:
    path = saved(MANY["mixture"](), tmp_path, kind="seeded")
    read, whole = lpe.load(path, simple(9), size=3), lpe.load(path, simple(9))
    assert len(read) == 3 and all(same(read[index], whole[index]) for index in range(3))


# The base: any architecture unless told that it is the one that was packed.


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_other_weights_is_an_architecture_unless_told(kind: str, tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind=kind)
    same_base = lpe.load(path, net(0), base="same")
    assert all(same(member, other) for member, other in zip(lpe.load(path, net(9)), same_base, strict=True))


WITH_A_BASE = {
    "low precision": MANY["low precision"],
    "full precision": lambda: lpe.LowPrecisionEnsemble(simple(), lpe.FullPrecision(), 1),
    "gaussian": lambda: lpe.GaussianEnsemble(simple(), INT4, 2),
    "mc dropout": MANY["mc dropout"],
    "mixture": lambda: lpe.Mixture.of([ensemble_of(lpe.Int(bits), 2, simple()) for bits in (3, 4)]),
}


@pytest.mark.parametrize("name", WITH_A_BASE)
def test_the_model_that_was_packed_is_told_from_others(name: str, tmp_path: Path) -> None:
    path = saved(WITH_A_BASE[name](), tmp_path)
    lpe.load(path, simple(0), base="same")
    with pytest.raises(lpe.InputError, match="was made of other weights than this Sequential's") as caught:
        lpe.load(path, simple(1), base="same")
    assert "\n" not in str(caught.value)


def test_a_mixture_of_two_models_is_made_of_other_weights_than_either(tmp_path: Path) -> None:
    path = saved(MANY["mixture"](), tmp_path, kind="seeded")
    for seed in (0, 1):
        with pytest.raises(lpe.InputError, match="was made of other weights"):
            lpe.load(path, simple(seed), base="same")


def test_what_was_made_of_no_one_model_does_not_tell_it(tmp_path: Path) -> None:
    path = saved(MANY["deep"](), tmp_path)
    with pytest.raises(lpe.InputError, match="does not tell the weights that it was made of"):
        lpe.load(path, simple(0), base="same")


def test_one_changed_leftover_is_another_base(tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind="seeded")
    changed = with_tensors(net(), {"norm.running_mean": torch.full((6,), 1e-7)})
    with pytest.raises(lpe.InputError, match="was made of other weights"):
        lpe.load(path, changed, base="same")


def test_an_unknown_claim_about_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="base must be 'any' .* or 'same', not 'int8'"):
        lpe.load(saved(ensemble_of(INT4), tmp_path), net(), base="int8")


# Written again.


@pytest.mark.parametrize("base", BASES)
def test_a_seeded_ensemble_is_written_again_as_the_same_file(base: str, tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind="seeded", base=base)
    lpe.save(lpe.load(path, net(9)), tmp_path / "again", kind="seeded", base=base)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["low precision", "nearest", "mixture", "mc dropout", "batch"])
def test_members_are_written_again_as_the_same_file(name: str, tmp_path: Path) -> None:
    path = saved(MANY[name](), tmp_path)
    lpe.save(lpe.load(path, simple(9)), tmp_path / "again")
    assert same_contents(tmp_path / "again", path)


def test_fewer_members_are_written_again_as_so_many(tmp_path: Path) -> None:
    path = saved(MANY["low precision"](), tmp_path)
    lpe.save(lpe.load(path, simple(9), size=2), tmp_path / "again")
    lpe.save(ensemble_of(INT4, 2, simple()), tmp_path / "two")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "two").read_bytes()


def test_members_of_a_seeded_ensemble_are_packed_as_they_are_drawn(tmp_path: Path) -> None:
    read = seeded(tmp_path)
    lpe.save(read, tmp_path / "members")
    again = lpe.load(tmp_path / "members", net(9))
    assert all(same(member, other) for member, other in zip(again, read, strict=True))


def test_float32_made_of_codes_gives_the_codes_members(tmp_path: Path) -> None:
    read = seeded(tmp_path)
    lpe.save(read, tmp_path / "wide", kind="seeded", base="fp32")
    again = lpe.load(tmp_path / "wide", net(9))
    assert all(same(member, other) for member, other in zip(again, read, strict=True))


# What is refused.


@pytest.mark.parametrize("system", OF_8, ids=name_of)
def test_members_of_8_bits_are_not_drawn_from_int8(system: LowPrecision, tmp_path: Path) -> None:
    with pytest.raises(
        lpe.InputError, match="base='int8' cannot hold .* take base='bf16' or 'fp32'"
    ) as caught:
        saved(ensemble_of(system), tmp_path, kind="seeded")
    assert system.name in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_members_of_8_bits_drawn_from_int8_would_be_alike() -> None:
    # Why: INT-8 from INT-8, as the refusal says.
    copy = with_tensors(net(), {"proj": values_of_base("int8", lpe.PerChannel())["proj"]})
    first, second = lpe.LowPrecisionEnsemble(copy, lpe.Int(8), 2, include="proj")
    assert torch.equal(first.proj, second.proj)


@pytest.mark.parametrize("base", ["bf16", "fp32"])
@pytest.mark.parametrize("system", OF_8, ids=name_of)
def test_members_of_8_bits_drawn_from_a_finer_base_differ(
    system: LowPrecision, base: str, tmp_path: Path
) -> None:
    first, second, _ = seeded(tmp_path, system, base)
    assert not torch.equal(first.proj, second.proj)


def test_the_one_member_of_8_bits_to_the_nearest_is_held_by_int8(tmp_path: Path) -> None:
    read = seeded(tmp_path, lpe.Int(8), rounding="nearest")
    assert torch.allclose(read[0].proj, ensemble_of(lpe.Int(8), rounding="nearest")[0].proj)


def test_a_file_of_version_1_of_8_bit_members_drawn_from_int8_is_still_read(tmp_path: Path) -> None:
    path = saved(ensemble_of(lpe.Int(7)), tmp_path, kind="seeded")
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lpe"])
    header |= {"version": 1, "system": {**header["system"], "bits": 8}}
    header = {key: value for key, value in header.items() if key not in ("sha256", "base", "base_hash")}
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata={"lpe": json.dumps(header)})
    value = values_of_base("int8", lpe.PerChannel())["proj"]
    wanted = lpe.round_weights(value, lpe.Int(8), seed=7, name="proj", member=2, output_axis=1)
    assert torch.equal(lpe.load(path, net(9))[0].proj, wanted)


@pytest.mark.parametrize("base", ["int4", "float32", "", 8])
def test_an_unknown_base_is_refused_with_those_there_are(base: Any, tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match=f"base must be one of int8, bf16, fp32, not {base!r}"):
        saved(ensemble_of(INT4), tmp_path, kind="seeded", base=base)


@pytest.mark.parametrize("base", BASES)
def test_a_file_of_members_has_no_base(base: str, tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match=f"base={base!r} is for kind='seeded'"):
        saved(ensemble_of(INT4), tmp_path, base=base)


def test_members_that_are_not_rounded_have_no_seeded_kind(tmp_path: Path) -> None:
    full = lpe.LowPrecisionEnsemble(net(), lpe.FullPrecision(), 1)
    with pytest.raises(lpe.InputError, match="a seeded file holds a low precision ensemble that rounds"):
        saved(full, tmp_path, kind="seeded")


def damaged(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """A file whose contents are another's than they should be, under a hash that fits."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lpe"])
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    container.write(path, tensors, header)
    return path


KEYS = ["kind", "size", "system", "shapes", "layouts", "own", "rounding", "seed", "first_member", "base"]


@pytest.mark.parametrize("value", [None, -1, "x", [3], {"a": 3}, 1e99], ids=repr)
@pytest.mark.parametrize(
    ("kind", "key"),
    [*(("seeded", key) for key in KEYS), *(("members", key) for key in (*KEYS[:6], "distinct"))],
)
def test_a_header_of_other_values_is_refused_in_one_line(
    kind: str, key: str, value: Any, tmp_path: Path
) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind=kind)
    damaged(path, lambda header, _: header.update({key: value}))
    with pytest.raises(lpe.InputError) as caught:
        lpe.load(path, net(9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [key for key in KEYS if key != "base"])
def test_a_header_that_lacks_a_value_is_refused_by_its_name(key: str, tmp_path: Path) -> None:
    path = damaged(saved(ensemble_of(INT4), tmp_path, kind="seeded"), lambda header, _: header.pop(key))
    with pytest.raises(lpe.InputError, match=f"is damaged: it lacks '{key}'"):
        lpe.load(path, net(9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["shared/norm.bias", "scales/proj", "{}/proj"])
@pytest.mark.parametrize("change", ["a value less", "gone"])
def test_a_tensor_of_another_shape_is_refused_when_the_file_is_read(
    kind: str, key: str, change: str, tmp_path: Path
) -> None:
    key = key.format({"members": "member 2", "seeded": "base", "planes": "planes"}[kind])

    def spoil(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensor = tensors.pop(key)
        if change != "gone":
            tensors[key] = tensor[:-1].clone()

    path = damaged(saved(ensemble_of(INT4), tmp_path, kind=kind), spoil)
    with pytest.raises(lpe.InputError, match="damaged|do not hold") as caught:
        lpe.load(path, net(9))
    assert "\n" not in str(caught.value)


def test_a_base_of_another_dtype_is_refused(tmp_path: Path) -> None:
    path = saved(ensemble_of(INT4), tmp_path, kind="seeded", base="bf16")
    damaged(path, lambda _, tensors: tensors.update({"base/proj": tensors["base/proj"].float()}))
    with pytest.raises(lpe.InputError, match="'base/proj' is torch.float32 in a bf16 file"):
        lpe.load(path, net(9))


def test_a_seeded_ensemble_is_a_low_precision_ensemble(tmp_path: Path) -> None:
    read = seeded(tmp_path)
    assert isinstance(read, SeededEnsemble) and isinstance(read, lpe.LowPrecisionEnsemble)
    assert (read.seed, read.first_member, read.rounding, read.system) == (7, 2, "bernoulli", INT4)


def test_a_seeded_ensemble_is_evaluated(tmp_path: Path) -> None:
    read = seeded(tmp_path)
    targets = torch.tensor([0, 1, 2])
    table = lpe.evaluate(read, [(IMAGES, targets)])
    predicted = read.predict(IMAGES)
    nll = -predicted.gather(1, targets[:, None]).mean()
    assert list(table["size"]) == [1, 2, 3] and table["nll"].iloc[-1] == pytest.approx(float(nll))


@pytest.mark.parametrize("axis", [1, (0, 2)])
def test_the_output_dimension_that_the_user_gave_is_read_back(
    tmp_path: Path, axis: int | tuple[int, int]
) -> None:
    class Bare(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            kernel = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))
            self.kernel = nn.Parameter(kernel)

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, None, :] @ self.kernel.flatten(0, 1).T)[:, 0]

    made = lpe.LowPrecisionEnsemble(
        Bare(0).eval(), lpe.Int(4), 2, include="kernel", output_axis={"kernel": axis}
    )
    lpe.save(made, tmp_path / "e", "seeded", "fp32")
    read = lpe.load(tmp_path / "e", Bare(1).eval())
    assert isinstance(read, lpe.LowPrecisionEnsemble) and read.plan == made.plan
    assert torch.equal(read[1].kernel, made[1].kernel)  # type: ignore[arg-type]
