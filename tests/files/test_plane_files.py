"""Files of planes: the members that were saved, to the bit, in b + M bits a weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import STORAGES, Ensemble
from lpe.files import container
from lpe.files.planes import PlanesEnsemble
from lpe.number_systems.grids import LowPrecision, ScaleAxis, grid_of
from lpe.number_systems.planes import codes_of


class Net(nn.Module):
    """Every output axis, odd shapes, batch norms, a half-precision weight, a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.up = nn.ConvTranspose2d(3, 6, 2, groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.proj = nn.Parameter(torch.randn(6, 7))
        self.last = nn.Linear(7, 3).bfloat16()
        self.register_buffer("offset", torch.ones(7), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.norm(self.up(self.conv(inputs))).relu().mean(dim=(2, 3))
        return self.last((features @ self.proj + self.offset).bfloat16())


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net().eval()


IMAGES = torch.linspace(-1, 1, 3 * 2 * 25).view(3, 2, 5, 5)
BATCHES = [(IMAGES, torch.tensor([0, 2, 1]))]
INT4 = lpe.Int(4)
SYSTEMS: list[LowPrecision] = [
    *(lpe.Int(bits) for bits in range(2, 9)),
    lpe.Int(8, spread=11.3),
    lpe.Int(3, clip="mse"),
    lpe.Float(4, 3),
    lpe.Float(2, 1),
    lpe.NF4(),
    lpe.Codebook([-1, 1]),
    lpe.Codebook([-1.0, -0.4, 0.1, 0.3, 0.5]),
    lpe.Codebook(range(-128, 128)),
]
AXES: list[ScaleAxis] = [lpe.PerTensor(), lpe.PerChannel(), lpe.PerChannel(2), lpe.PerBlock(4)]
PAIRS = [
    *(dataclasses.replace(system, scale=lpe.PerBlock(4)) for system in SYSTEMS),
    *(lpe.Int(5, axis) for axis in AXES),
]
MIXED = {"conv*": lpe.Int(3), "proj": lpe.NF4(), "last*": lpe.FullPrecision(), "*": lpe.Int(6)}


def rounded(system: Any = INT4, size: int = 3, **settings: Any) -> Any:
    model = settings.pop("model", None) or net()
    return lpe.LowPrecisionEnsemble(model, system, size, **{"seed": 7, "first_member": 2, **settings})


def mixture() -> Ensemble:
    return lpe.Mixture.of([rounded(), rounded(lpe.Int(5), 2, model=net(1), rounding="coupled")])


ENSEMBLES: dict[str, Callable[[], Any]] = {
    "bernoulli": rounded,
    "coupled": lambda: rounded(rounding="coupled"),
    "patterns": lambda: rounded(MIXED),
    "statistics": lambda: rounded(batches=BATCHES),
    "absolute statistics": lambda: rounded(batches=BATCHES, refresh="absolute"),
    "selection": lambda: lpe.SelectedEnsemble(rounded(size=5), [4, 0, 3]),
    "selection with statistics": lambda: lpe.SelectedEnsemble(rounded(size=4, batches=BATCHES), [3, 1]),
    "mixture": mixture,
}


def saved(ensemble: Any, path: Path, name: str = "e", **how: Any) -> Path:
    lpe.save(ensemble, path / name, **{"kind": "planes", **how})
    return path / name


def read_back(ensemble: Any, path: Path, **how: Any) -> Any:
    return lpe.load(saved(ensemble, path), net(9), **how)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


def all_same(first: Any, second: Any) -> bool:
    return all(same(one, other) for one, other in zip(first, second, strict=True))


def stored_bits(path: Path) -> int:
    """Bits of all tensors of a file: what follows the header."""
    raw = path.read_bytes()
    return 8 * (len(raw) - 8 - int.from_bytes(raw[:8], "little"))


@pytest.mark.parametrize("rounding", ["bernoulli", "coupled"])
@pytest.mark.parametrize("system", PAIRS, ids=lambda system: system.name[:30])
def test_members_of_every_system_and_axis_come_back_to_the_bit(
    system: LowPrecision, rounding: str, tmp_path: Path
) -> None:
    ensemble = rounded(system, rounding=rounding)
    assert all_same(read_back(ensemble, tmp_path), ensemble)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_members_and_predictions_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    ensemble = ENSEMBLES[name]()
    read = read_back(ensemble, tmp_path)
    assert len(read) == len(ensemble) and all_same(read, ensemble)
    assert torch.equal(read.predict(IMAGES), ensemble.predict(IMAGES))


@pytest.mark.parametrize("name", ENSEMBLES)
def test_a_file_holds_the_bits_that_are_counted(name: str, tmp_path: Path) -> None:
    ensemble = ENSEMBLES[name]()
    path = saved(ensemble, tmp_path)
    read = lpe.load(path, net(9))
    assert stored_bits(path) == ensemble.memory_bits(storage="planes") == read.memory_bits(storage="planes")
    for storage in ("members", "planes"):
        for n in range(1, len(ensemble) + 1):
            assert read.memory_bits(n, storage) == ensemble.memory_bits(n, storage)
            if storage == "planes":
                assert stored_bits(saved_prefix(ensemble, n, tmp_path)) == ensemble.memory_bits(n, storage)


def saved_prefix(ensemble: Any, n: int, path: Path) -> Path:
    """A file of the first n members, read back from a file of them all."""
    whole = saved(ensemble, path, "whole")
    return saved(lpe.load(whole, net(9), size=n), path, "prefix")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("members", [1, 2, 10, 20])
def test_a_weight_takes_as_many_bits_as_a_code_and_one_a_member(bits: int, members: int) -> None:
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Linear(32, 8, bias=False))
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(bits), members)
    weights, scales = 64 * 32 + 32 * 8, 32 + 8
    assert ensemble.memory_bits(storage="planes") == (bits + members) * weights + 32 * scales
    assert ensemble.memory_bits() == bits * members * weights + 32 * scales


def test_ten_members_in_5_bits_take_less_than_one_bfloat16_network() -> None:
    model = nn.Sequential(nn.Linear(640, 320), nn.Linear(320, 80))
    taken = lpe.LowPrecisionEnsemble(model, lpe.Int(5), 10).memory_bits(storage="planes")
    one = lpe.LowPrecisionEnsemble(model.bfloat16(), lpe.FullPrecision(), 1).memory_bits()
    assert 0.9 < taken / one < 1


@pytest.mark.parametrize("name", ENSEMBLES)
@pytest.mark.parametrize("size", [1, 2])
def test_fewer_members_are_the_first_ones(name: str, size: int, tmp_path: Path) -> None:
    ensemble = ENSEMBLES[name]()
    read = read_back(ensemble, tmp_path, size=size)
    assert len(read) == size and all_same(read, ensemble[:size])
    assert read.memory_bits(storage="planes") == ensemble.memory_bits(size, "planes")


def test_more_members_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    path = saved(rounded(), tmp_path)
    with pytest.raises(lpe.InputError, match="holds 3 members, not 4; a seeded file gives any number"):
        lpe.load(path, net(9), size=4)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_planes_are_written_again_as_the_same_file(name: str, tmp_path: Path) -> None:
    path = saved(ENSEMBLES[name](), tmp_path)
    again = saved(lpe.load(path, net(9)), tmp_path, "again")
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("name", [name for name in ENSEMBLES if name != "absolute statistics"])
def test_planes_are_packed_as_the_members_that_they_are(name: str, tmp_path: Path) -> None:
    ensemble = ENSEMBLES[name]()
    packed = saved(read_back(ensemble, tmp_path), tmp_path, "packed", kind="members")
    direct = saved(ensemble, tmp_path, "direct", kind="members")
    assert packed.read_bytes() == direct.read_bytes()
    assert all_same(lpe.load(packed, net(9)), ensemble)


def test_members_drawn_from_a_seeded_file_have_planes(tmp_path: Path) -> None:
    drawn = lpe.load(saved(rounded(), tmp_path, "seeded", kind="seeded"), net(9), size=4)
    read = read_back(drawn, tmp_path)
    assert all_same(read, drawn)
    assert read.base_hash == drawn.base_hash


def test_a_selection_of_what_was_read_keeps_the_indices_of_what_was_saved(
    tmp_path: Path,
) -> None:
    ensemble = rounded(size=5)
    read = read_back(lpe.SelectedEnsemble(ensemble, [4, 0, 3]), tmp_path)
    assert isinstance(read, PlanesEnsemble) and read.selected == (4, 0, 3)
    for kind in ("planes", "members"):
        again = lpe.load(saved(lpe.SelectedEnsemble(read, [2, 0]), tmp_path, kind, kind=kind), net(9))
        assert again.selected == (3, 4) and all_same(again, [ensemble[3], ensemble[4]])


def test_what_is_read_gives_lower_neighbours_planes_and_codes_of_the_ensemble(tmp_path: Path) -> None:
    ensemble = rounded(lpe.Int(5))
    read = read_back(ensemble, tmp_path)
    for name in ("conv.weight", "up.weight", "proj", "last.weight"):
        (lower, packed), (own_lower, own_packed) = read.planes(name), ensemble.planes(name)
        assert torch.equal(lower, own_lower) and torch.equal(packed, own_packed)
        assert torch.equal(read.planes(name, [2, 0])[1], ensemble.planes(name, [2, 0])[1])
        assert torch.equal(read.planes(name, [2, 0])[1], packed[[2, 0]])
        for index in range(3):
            codes, scales = ensemble.codes(name, index)
            assert torch.equal(codes_of(lower, packed[index], lpe.Int(5)), codes)
            assert torch.equal(read.codes(name, index)[0], codes)
            assert torch.equal(read.scales(name), scales)


def test_evaluation_of_what_is_read_is_the_ensembles(tmp_path: Path) -> None:
    ensemble = rounded(batches=BATCHES)
    read = read_back(ensemble, tmp_path)
    assert lpe.evaluate(read, BATCHES).equals(lpe.evaluate(ensemble, BATCHES))


def test_the_architecture_holds_no_weights_and_members_are_drawn_from_none(tmp_path: Path) -> None:
    read = read_back(rounded(), tmp_path)
    assert read.model(IMAGES).isnan().all()
    with pytest.raises(lpe.InputError, match="drawn from no weights"):
        read.stored("proj")


def test_a_described_ensemble_says_that_it_is_stored_as_planes(tmp_path: Path) -> None:
    title, *rows = read_back(rounded(), tmp_path).describe().splitlines()
    assert title == "LPE of Net: 3 members, int4, bernoulli rounding, seed 7, stored as planes"
    assert rows == rounded().describe().splitlines()[1:]


def test_the_smallest_thing_that_gives_members_read_from_planes_are_the_planes(tmp_path: Path) -> None:
    read = read_back(rounded(), tmp_path)
    assert read.memory_bits(storage="generator") == read.memory_bits(storage="planes")


def test_the_model_that_was_packed_is_told_from_others(tmp_path: Path) -> None:
    path = saved(rounded(), tmp_path)
    assert len(lpe.load(path, net(), base="same")) == 3
    with pytest.raises(lpe.InputError, match="was made of other weights"):
        lpe.load(path, net(1), base="same")


# What has no planes.


def feedback() -> Ensemble:
    return lpe.FeedbackEnsemble(net(), INT4, 2, batches=BATCHES)


REFUSED: dict[str, tuple[Callable[[], Ensemble], str]] = {
    "nearest": (lambda: rounded(rounding="nearest"), "those to the nearest are all alike"),
    "nothing rounded": (lambda: rounded(lpe.FullPrecision()), "a low precision ensemble that rounds"),
    "deep": (lambda: lpe.DeepEnsemble([net(), net(1)]), "not DeepEnsemble"),
    "Gaussian": (lambda: lpe.GaussianEnsemble(net(), INT4, 2), "not GaussianEnsemble"),
    "a mixture with others": (
        lambda: lpe.Mixture.of([rounded(), lpe.DeepEnsemble([net(1)])]),
        "not DeepEnsemble",
    ),
    "a selection of others": (
        lambda: lpe.SelectedEnsemble(lpe.DeepEnsemble([net(), net(1)]), [1]),
        "not DeepEnsemble",
    ),
    "error feedback": (feedback, "differ by more than a bit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_planes_is_refused_in_one_line_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    make, told = REFUSED[name]
    ensemble = make()
    with pytest.raises(lpe.InputError, match=told) as caught:
        saved(ensemble, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    with pytest.raises(lpe.InputError, match="planes") as caught:
        ensemble.memory_bits(storage="planes")
    assert "\n" not in str(caught.value)


def test_members_read_from_their_own_file_have_no_planes(tmp_path: Path) -> None:
    read = lpe.load(saved(rounded(), tmp_path, kind="members"), net(9))
    with pytest.raises(lpe.InputError, match="not StoredEnsemble"):
        saved(read, tmp_path, "planes")


def test_a_seeded_file_of_planes_is_refused(tmp_path: Path) -> None:
    read = read_back(rounded(), tmp_path)
    for ensemble in (read, lpe.SelectedEnsemble(read, [1])):
        with pytest.raises(lpe.InputError, match="has the planes that were drawn"):
            saved(ensemble, tmp_path, "seeded", kind="seeded")


def test_a_base_of_planes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="a file of planes holds no base"):
        saved(rounded(), tmp_path, base="bf16")


def test_another_storage_is_refused_naming_those_that_there_are() -> None:
    with pytest.raises(lpe.InputError) as caught:
        rounded().memory_bits(storage="plane")
    assert all(storage in str(caught.value) for storage in STORAGES)


# Files.


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = saved(rounded({"last*": lpe.Int(2)}, size=2), tmp_path)
    whole = path.read_bytes()
    for place in range(8, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(lpe.InputError) as caught:
            lpe.load(path, net(9))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_reader_that_knows_no_planes_says_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(rounded(), tmp_path)
    monkeypatch.setattr(container, "VERSION", 5)
    with pytest.raises(lpe.InputError, match="of version 6.*update lpe"):
        lpe.load(path, net(9))


def test_a_file_holds_each_plane_eight_weights_a_byte(tmp_path: Path) -> None:
    ensemble = rounded(lpe.Int(3))
    tensors = safetensors.torch.load_file(saved(ensemble, tmp_path))
    planes, lower = tensors["planes/proj"], tensors["lower/proj"]
    assert (planes.dtype, planes.shape) == (torch.uint8, (3, 6))  # of 42 weights
    assert (lower.dtype, lower.shape) == (torch.uint8, (16,))
    bits = (ensemble.codes("proj", 1)[0] != ensemble.planes("proj")[0]).flatten().tolist()
    assert [planes[1, e // 8].item() >> e % 8 & 1 for e in range(42)] == bits


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """Change a file's header and tensors, under a hash that fits."""
    header, tensors = container.read(path)
    change(header, tensors)
    container.write(path, tensors, header)
    return path


def test_a_bit_above_the_last_level_is_refused_in_one_line(tmp_path: Path) -> None:
    for system in (lpe.NF4(), lpe.Int(8), lpe.Codebook(range(256))):
        last = 255 if len(grid_of(system).levels) == 256 else len(grid_of(system).levels) - 1

        def craft(header: dict[str, Any], tensors: dict[str, Tensor], last: int = last) -> None:
            bits = 4 if last == 15 else 8
            tensors["lower/proj"].fill_(last | last << 4 if bits == 4 else last)
            tensors["planes/proj"].fill_(255)

        read = lpe.load(rewritten(saved(rounded(system), tmp_path), craft), net(9))
        with pytest.raises(lpe.InputError, match="above the last level") as caught:
            read[0]
        assert "\n" not in str(caught.value)


CRAFTED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "fewer planes than members": (lambda h, t: h.update(distinct=2), "planes of 2 members, not of 3"),
    "more planes than there are": (lambda h, t: h.update(distinct=4), "is of shape"),
    "shorter planes": (
        lambda h, t: t.update({"planes/proj": t["planes/proj"][:, 1:].clone()}),
        "is of shape",
    ),
    "planes of numbers": (
        lambda h, t: t.update({"planes/proj": t["planes/proj"].float()}),
        "'planes/proj' is torch.float32",
    ),
    "shorter lower neighbours": (
        lambda h, t: t.update({"lower/proj": t["lower/proj"][1:].clone()}),
        "is of shape",
    ),
    "no lower neighbours": (lambda h, t: t.pop("lower/proj"), "lacks 'lower/proj'"),
    "no planes": (lambda h, t: t.pop("planes/proj"), "lacks 'planes/proj'"),
    "nearest": (lambda h, t: h.update(rounding="nearest"), "planes are of 'nearest' rounding"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, told = CRAFTED[case]
    path = rewritten(saved(rounded(), tmp_path), change)
    with pytest.raises(lpe.InputError, match=told) as caught:
        lpe.load(path, net(9))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
