"""Ensembles as files: they predict the same when read back, and their size is what memory_bits says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.swag import SWAGCollector, SWAGEnsemble
from lpe.files import container
from lpe.files.kinds import KINDS
from lpe.files.members import StoredEnsemble
from lpe.number_systems.packing import pack


def model(seed: int = 0, width: int = 32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(16, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.Linear(width, 4),
        ).eval()


CODEBOOK = lpe.Codebook([-1.0, -0.4, 0.1, 0.3, 0.5], lpe.PerChannel(2))
SPREAD = lpe.Int(8, spread=11.3)  # 25 levels, 5 bits
INPUTS = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
BATCHES = [(INPUTS, torch.zeros(6, dtype=torch.long))]


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


def ensembles() -> dict[str, Ensemble]:
    collector = SWAGCollector(2)
    for seed in range(3):
        collector.collect(model(seed))
    std = {name: torch.full_like(p, 0.1) for name, p in model().named_parameters()}
    return {
        "int5": lpe.LowPrecisionEnsemble(model(), lpe.Int(5), 3, seed=7, first_member=2),
        "int3 blocks": lpe.LowPrecisionEnsemble(model(), lpe.Int(3, lpe.PerBlock(5)), 3, rounding="coupled"),
        "spread": lpe.LowPrecisionEnsemble(model(), SPREAD, 3, seed=7, first_member=2),
        "spread, to the nearest": lpe.LowPrecisionEnsemble(model(), SPREAD, 3, rounding="nearest"),
        "fp8": lpe.LowPrecisionEnsemble(model(), lpe.Float(4, 3), 3, seed=7, first_member=2),
        "fp4 blocks": lpe.LowPrecisionEnsemble(model(), lpe.Float(2, 1, lpe.PerBlock(5)), 2),
        "nf4": lpe.LowPrecisionEnsemble(model(), lpe.NF4(), 3, rounding="coupled"),
        "codebook": lpe.LowPrecisionEnsemble(model(), CODEBOOK, 3),
        "mixture of systems": lpe.Mixture.of(
            [lpe.LowPrecisionEnsemble(model(), system, 2) for system in (lpe.Int(3), lpe.NF4(), CODEBOOK)]
        ),
        "bfloat16": lpe.LowPrecisionEnsemble(model().bfloat16(), lpe.Int(4), 2),
        "deep": lpe.DeepEnsemble([model(0), model(1)]),
        "swag": SWAGEnsemble(model(), collector.statistics(), 3, batches=BATCHES),
        "ivon": lpe.IVONEnsemble(model(), std, 3, batches=BATCHES),
        "mixture": mixture(),
        "union": lpe.Mixture.of([mixture(), lpe.DeepEnsemble([model(5)])]),
        "union of posteriors": lpe.Mixture.of(
            [lpe.IVONEnsemble(model(seed), std, 2, seed, batches=BATCHES) for seed in (0, 1)]
        ),
        "mixture with shared leftovers": lpe.Mixture(
            lpe.DeepEnsemble([model(0), model(1)]),
            lambda net, first: lpe.LowPrecisionEnsemble(net, lpe.FullPrecision(), 2, first_member=first),
        ),
        "gaussian": lpe.GaussianEnsemble(model(), lpe.Int(5), 3, seed=4),
        "laplace": lpe.LaplaceEnsemble(model(), lpe.last_layer_curvature(model(), BATCHES), 3),
        **selections(),
        **by_method(),
        "union of methods": lpe.Mixture.of([mixture(), *by_method().values()]),
    }


def selections() -> dict[str, Ensemble]:
    """Ensembles of which some members are kept, not in their order."""
    noisy = lpe.GaussianEnsemble(model(), lpe.Int(5), 5, seed=4)
    nearest = lpe.LowPrecisionEnsemble(model(), lpe.Int(4), 3, rounding="nearest")
    return {
        "selection": lpe.SelectedEnsemble(
            lpe.LowPrecisionEnsemble(model(), lpe.Int(5), 6, seed=7), [4, 0, 5]
        ),
        "selection with statistics": lpe.SelectedEnsemble(
            lpe.LowPrecisionEnsemble(model(), lpe.Int(5), 6, seed=7, batches=BATCHES), [4, 0]
        ),
        "selection, to the nearest": lpe.SelectedEnsemble(nearest, [2, 1]),
        "selection of noise": lpe.SelectedEnsemble(noisy, [3, 1]),
        "union with a selection": lpe.Mixture.of([lpe.SelectedEnsemble(noisy, [3, 1]), mixture()]),
    }


def by_method() -> dict[str, Ensemble]:
    """Ensembles that are stored as what makes their members."""
    return {
        "mc dropout": lpe.MCDropoutEnsemble(model(), 0.3, 3, seed=2**64 - 1),
        "mc dropout with statistics": lpe.MCDropoutEnsemble(model(), 0.3, 3, seed=5, batches=BATCHES),
        "mc dropout, one with statistics": lpe.MCDropoutEnsemble(model(), 0.3, 1, seed=5, batches=BATCHES),
        "batch": batch_ensemble(),
    }


def batch_ensemble(net: nn.Module | None = None) -> lpe.BatchEnsemble:
    """As after training: weights are not the model's any more, and no two members' biases are alike."""
    ensemble = lpe.BatchEnsemble(net or model(), 3, seed=7)
    generator = torch.Generator().manual_seed(3)
    for parameter in ensemble.module.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return ensemble


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """Put something else into a file's header and tensors, and the hash that belongs to it."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lpe"])
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    container.write(path, tensors, header)
    return path


def stored_bits(path: Path) -> int:
    """Bits of all tensors of a file: what follows the header."""
    raw = path.read_bytes()
    return 8 * (len(raw) - 8 - int.from_bytes(raw[:8], "little"))


def mixture() -> Ensemble:
    """Two models as three members each, at 5 bits; every scale and leftover is its base's own."""
    return lpe.Mixture(
        lpe.DeepEnsemble([model(0), model(1)]),
        lambda net, first: lpe.LowPrecisionEnsemble(net, lpe.Int(5), 3, seed=7, first_member=first),
    )


@pytest.mark.parametrize("name", list(ensembles()))
def test_an_ensemble_read_back_predicts_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    ensemble = ensembles()[name]
    inputs = INPUTS.to(next(ensemble[0].parameters()).dtype)
    lpe.save(ensemble, tmp_path / "e")
    template = model(9).to(inputs.dtype)
    read = lpe.load(tmp_path / "e", template)
    assert len(read) == len(ensemble)
    assert torch.equal(read.predict(inputs), ensemble.predict(inputs))


@pytest.mark.parametrize("name", list(ensembles()))
def test_a_file_of_members_holds_the_bits_that_memory_bits_counts(name: str, tmp_path: Path) -> None:
    ensemble = ensembles()[name]
    lpe.save(ensemble, tmp_path / "e")
    assert ensemble.memory_bits() == stored_bits(tmp_path / "e")


def test_a_seeded_file_holds_the_bits_of_the_generator(tmp_path: Path) -> None:
    ensemble = lpe.LowPrecisionEnsemble(model(), lpe.Int(5), 20)
    lpe.save(ensemble, tmp_path / "e", kind="seeded")
    assert stored_bits(tmp_path / "e") == ensemble.memory_bits(storage="generator")


def test_a_seeded_file_of_a_mixture_holds_the_bits_of_the_generators(tmp_path: Path) -> None:
    lpe.save(mixture(), tmp_path / "e", kind="seeded")
    assert stored_bits(tmp_path / "e") == mixture().memory_bits(storage="generator")


def test_a_seeded_file_of_a_mixture_draws_what_its_expansions_files_draw(tmp_path: Path) -> None:
    lpe.save(mixture(), tmp_path / "e", kind="seeded")
    read = list(lpe.load(tmp_path / "e", model(9)))
    for base in (0, 1):
        expansion = lpe.LowPrecisionEnsemble(model(base), lpe.Int(5), 3, seed=7, first_member=3 * base)
        lpe.save(expansion, tmp_path / "one", kind="seeded")
        for index, member in enumerate(lpe.load(tmp_path / "one", model(9))):
            assert same(read[3 * base + index], member)


@pytest.mark.parametrize("name", list(ensembles()))
def test_members_read_back_are_equal_bit_for_bit(name: str, tmp_path: Path) -> None:
    ensemble = ensembles()[name]
    lpe.save(ensemble, tmp_path / "e")
    dtype = next(ensemble[0].parameters()).dtype
    read = lpe.load(tmp_path / "e", model(9).to(dtype))
    assert all(same(member, other) for member, other in zip(read, ensemble, strict=True))


def test_a_mixture_read_back_takes_what_its_file_holds(tmp_path: Path) -> None:
    lpe.save(mixture(), tmp_path / "e")
    assert lpe.load(tmp_path / "e", model(9)).memory_bits() == stored_bits(tmp_path / "e")


def test_a_mixtures_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    lpe.save(mixture(), tmp_path / "e")
    rewrite(tmp_path / "e", lambda header, tensors: tensors.__delitem__("part 1/scales/0.weight"))
    with pytest.raises(lpe.InputError, match="is damaged: it lacks 'scales/0.weight'"):
        lpe.load(tmp_path / "e", model(9))


def test_a_mixture_of_a_deep_ensemble_has_no_seeded_kind(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="a seeded file holds a low precision ensemble"):
        lpe.save(lpe.Mixture.of([mixture(), lpe.DeepEnsemble([model()])]), tmp_path / "e", kind="seeded")


def test_parts_of_two_architectures_are_refused_naming_the_tensor(tmp_path: Path) -> None:
    parts = lpe.Mixture.of([lpe.DeepEnsemble([model()]), lpe.DeepEnsemble([model(width=8)])])
    with pytest.raises(lpe.InputError, match="part 1 differs from part 0 at tensor '0.weight'"):
        lpe.save(parts, tmp_path / "e")


def test_members_of_a_seeded_file_are_drawn_from_the_8_bit_copy(tmp_path: Path) -> None:
    base = model()
    lpe.save(lpe.LowPrecisionEnsemble(base, lpe.Int(5), 3, seed=7), tmp_path / "e", kind="seeded")
    read = lpe.load(tmp_path / "e", model(9))
    copy = model(9)
    copy.load_state_dict(base.state_dict())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(lpe.round_weights(parameter, lpe.Int(8), "nearest", name=name))
    assert torch.equal(
        read.predict(INPUTS), lpe.LowPrecisionEnsemble(copy, lpe.Int(5), 3, seed=7).predict(INPUTS)
    )


@pytest.mark.parametrize(
    "system", [lpe.Float(3, 2), lpe.NF4(lpe.PerBlock(5)), CODEBOOK, SPREAD], ids=lambda system: system.name
)
def test_members_of_a_seeded_file_are_drawn_under_the_ensembles_own_system(
    system: Any, tmp_path: Path
) -> None:
    base = model()
    lpe.save(lpe.LowPrecisionEnsemble(base, system, 3, seed=7), tmp_path / "e", kind="seeded")
    read = lpe.load(tmp_path / "e", model(9))
    assert stored_bits(tmp_path / "e") == read.memory_bits(storage="generator")
    copy = model(9)
    copy.load_state_dict(base.state_dict())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if parameter.dim() == 2:
                integers = lpe.Int(8, system.scale)
                parameter.copy_(lpe.round_weights(parameter, integers, "nearest", name=name))
    expected = lpe.LowPrecisionEnsemble(copy, system, 3, seed=7)
    assert torch.equal(read.predict(INPUTS), expected.predict(INPUTS))


AXIS = {"scale": "PerChannel", "channels": 2}
STORED = {"name": "codebook5-244cc3e9 per 2 output channels", "levels": list(CODEBOOK.levels), **AXIS}


def test_a_files_codebook_is_a_hash_its_levels_and_its_scale_axis(tmp_path: Path) -> None:
    lpe.save(lpe.LowPrecisionEnsemble(model(), CODEBOOK, 2), tmp_path / "e")
    with safetensors.safe_open(tmp_path / "e", framework="pt") as file:
        assert json.loads(file.metadata()["lpe"])["system"] == STORED


@pytest.mark.parametrize(
    "system",
    [
        {**STORED, "levels": [-1.0, -0.4, 0.1, 0.3, 0.25]},
        {**STORED, "levels": [-1.0, -0.4, 0.1]},
        {**STORED, "levels": [1.0, 1.0]},
        {**STORED, "levels": "many"},
        {**STORED, "channels": 3},
        {**STORED, "channels": 0},
        {**STORED, "inputs": 3},
        {**STORED, "scale": "PerRow"},
        {"name": "fp8_e3m4 per 2 output channels", **AXIS},
        {"name": "nf4", **AXIS},
        {"name": "fp32", **AXIS},
        {"name": 8, **AXIS},
        {"bits": 9, **AXIS},
        {"bits": 8, "spread": 0.5, **AXIS},
        {"bits": 8, "spread": 128, **AXIS},
        {"bits": 8, "spread": "2", **AXIS},
        {**AXIS},
        "nf4",
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_number_system_is_refused_in_one_line(kind: str, system: Any, tmp_path: Path) -> None:
    lpe.save(lpe.LowPrecisionEnsemble(model(), CODEBOOK, 2), tmp_path / "e", kind=kind)
    with pytest.raises(lpe.InputError, match="damaged") as caught:
        lpe.load(rewrite(tmp_path / "e", lambda header, _: header.update(system=system)), model(9))
    assert "\n" not in str(caught.value)


def test_a_header_tells_the_spread_and_a_reader_that_knows_none_refuses_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_pattern: dict[str, Any] = {"0.*": SPREAD, "*": lpe.Int(4)}
    reads: dict[str, Any] = {}
    for system in (SPREAD, by_pattern):
        for kind in KINDS:
            lpe.save(lpe.LowPrecisionEnsemble(model(), system, 2), tmp_path / "e", kind=kind)
            read: Any = lpe.load(tmp_path / "e", model(9))
            reads[kind] = read
            assert SPREAD in (read.system, *dict(getattr(read.system, "systems", ())).values())
            with monkeypatch.context() as patch:
                patch.setattr(container, "VERSION", 4)
                with pytest.raises(lpe.InputError, match="is of version [56], this lpe reads up to 4"):
                    lpe.load(tmp_path / "e", model(9))
    lpe.save(lpe.SelectedEnsemble(reads["seeded"], [1]), tmp_path / "selected", kind="seeded")
    with safetensors.safe_open(tmp_path / "selected", framework="pt") as file:
        assert json.loads(file.metadata()["lpe"])["version"] == 5


def test_a_file_without_a_spread_is_as_older_readers_know_it(tmp_path: Path) -> None:
    lpe.save(lpe.LowPrecisionEnsemble(model(), lpe.Int(5, spread=1), 2), tmp_path / "e")
    with safetensors.safe_open(tmp_path / "e", framework="pt") as file:
        header = json.loads(file.metadata()["lpe"])
    assert header["version"] == 2 and header["system"] == {"bits": 5, "scale": "PerChannel", "channels": 1}


def test_a_damaged_code_of_another_system_is_refused(tmp_path: Path) -> None:
    lpe.save(lpe.LowPrecisionEnsemble(model(), lpe.Float(4, 3), 1), tmp_path / "e")
    rewrite(tmp_path / "e", lambda header, tensors: tensors["member 0/0.weight"][0].fill_(254))
    with pytest.raises(lpe.InputError, match="a code that fp8_e4m3 does not have; the file is damaged"):
        _ = lpe.load(tmp_path / "e", model(9))[0]


def test_stored_members_report_the_padding_of_the_file(tmp_path: Path) -> None:
    lpe.save(lpe.LowPrecisionEnsemble(model(width=3), lpe.Int(3), 2), tmp_path / "e")
    assert lpe.load(tmp_path / "e", model(width=3)).memory_bits() == stored_bits(tmp_path / "e")


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="kind must be one of members, seeded, planes, not 'zip'"):
        lpe.save(lpe.DeepEnsemble([model()]), tmp_path / "e", kind="zip")


def test_a_deep_ensemble_has_no_seeded_kind(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="a seeded file holds a low precision ensemble"):
        lpe.save(lpe.DeepEnsemble([model()]), tmp_path / "e", kind="seeded")
    assert not (tmp_path / "e").exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    lpe.save(lpe.DeepEnsemble([model()]), tmp_path / "e")
    (tmp_path / "e").write_bytes((tmp_path / "e").read_bytes()[:-10])
    with pytest.raises(lpe.InputError, match="is no whole safetensors file"):
        lpe.load(tmp_path / "e", model())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="there is no file"):
        lpe.load(tmp_path / "e", model())


def test_another_models_file_names_the_first_difference(tmp_path: Path) -> None:
    lpe.save(lpe.DeepEnsemble([model()]), tmp_path / "e")
    with pytest.raises(
        lpe.InputError, match=r"of another model: '0.weight' is \[32, 16\] there, \[8, 16\] here"
    ):
        lpe.load(tmp_path / "e", model(width=8))
    with pytest.raises(lpe.InputError, match="of another model: it has no '5.weight'"):
        lpe.load(tmp_path / "e", nn.Sequential(*model(), nn.Linear(4, 4)))


def test_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lpe.save(lpe.DeepEnsemble([model()]), tmp_path / "e")
    monkeypatch.setattr(container, "VERSION", 1)
    with pytest.raises(lpe.InputError, match="is of version 2, this lpe reads up to 1"):
        lpe.load(tmp_path / "e", model())


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "e", metadata={"lpe": json.dumps({})})
    with pytest.raises(lpe.InputError, match="holds no ensemble"):
        lpe.load(tmp_path / "e", model())


# MC-dropout and BatchEnsemble: a file holds what makes the members.


class ConvNet(nn.Module):
    """A grouped and a transposed convolution, one of them without a bias; dropout; a head."""

    def __init__(self, dropout: nn.Module | None = None, groups: int = 2) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2 * groups, 4, 3, groups=groups)
        self.up = nn.ConvTranspose2d(4, 6, 2, bias=False)
        self.dropout = dropout or nn.Dropout(0.9)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.up(self.wide(images).relu())).mean(dim=(2, 3)))


def conv_net(seed: int = 0, dropout: nn.Module | None = None, groups: int = 2) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvNet(dropout, groups).eval()


def normed(seed: int = 0) -> nn.Module:
    """The batch norm sees masked features, so members differ in its statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()


IMAGES = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(2))

METHODS: dict[str, tuple[Callable[[], Ensemble], Callable[[int], nn.Module], Tensor]] = {
    **{name: (lambda name=name: by_method()[name], model, INPUTS) for name in by_method()},
    "mc dropout with its statistics": (
        lambda: lpe.MCDropoutEnsemble(normed(), 0.3, 3, 5, batches=BATCHES),
        normed,
        INPUTS,
    ),
    "mc dropout of a conv net": (lambda: lpe.MCDropoutEnsemble(conv_net(), 0.3, 3, 5), conv_net, IMAGES),
    "batch of a conv net": (lambda: batch_ensemble(conv_net()), conv_net, IMAGES),
    "views": (
        lambda: lpe.AugmentedEnsemble(conv_net(), 5, 7, lpe.CropAndFlip(2, flip=False)),
        conv_net,
        IMAGES,
    ),
}


def check_members_compute_the_same(read: Ensemble, ensemble: Ensemble, inputs: Tensor) -> None:
    """To the bit, member by member: tensors do not tell what hooks do."""
    for member, other in zip(read, ensemble, strict=True):
        assert torch.equal(member(inputs), other(inputs))


@pytest.mark.parametrize("name", METHODS)
def test_members_read_back_compute_the_same_one_by_one(name: str, tmp_path: Path) -> None:
    make, template, inputs = METHODS[name]
    lpe.save(make(), tmp_path / "e")
    check_members_compute_the_same(lpe.load(tmp_path / "e", template(9)), make(), inputs)


@pytest.mark.parametrize("name", METHODS)
def test_an_ensemble_read_back_is_of_its_method_and_counts_the_same_bits(name: str, tmp_path: Path) -> None:
    make, template, _ = METHODS[name]
    ensemble = make()
    lpe.save(ensemble, tmp_path / "e")
    read = lpe.load(tmp_path / "e", template(9))
    assert isinstance(read, type(ensemble))
    assert [read.memory_bits(n) for n in range(1, len(read) + 1)] == [
        ensemble.memory_bits(n) for n in range(1, len(ensemble) + 1)
    ]


@pytest.mark.parametrize("name", METHODS)
def test_an_ensemble_read_back_is_written_as_the_same_file(name: str, tmp_path: Path) -> None:
    make, template, _ = METHODS[name]
    lpe.save(make(), tmp_path / "e")
    lpe.save(lpe.load(tmp_path / "e", template(9)), tmp_path / "again")
    first, second = (safetensors.torch.load_file(tmp_path / file) for file in ("e", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def lose_masks(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Copies of the plain model, which is what files held once."""
    del header["method"]
    header |= {"system": None, "layouts": {}}


def lose_seed(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    header["seed"] = 0


def give_all_the_statistics_of_member_0(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for key in tensors:
        if key.startswith("member "):
            tensors[key] = tensors["member 0/" + key.partition("/")[2]].clone()


def give_all_the_vectors_of_member_0(vector: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            if key.endswith(f"batch_{vector}"):
                tensors[key] = tensor[:1].expand_as(tensor).contiguous()

    return change


@pytest.mark.parametrize(
    "name, fault",
    [
        ("mc dropout", lose_masks),
        ("mc dropout of a conv net", lose_masks),
        ("mc dropout with its statistics", lose_masks),
        ("mc dropout", lose_seed),
        ("mc dropout with its statistics", give_all_the_statistics_of_member_0),
        ("batch", give_all_the_vectors_of_member_0("r")),
        ("batch", give_all_the_vectors_of_member_0("s")),
        ("batch", give_all_the_vectors_of_member_0("bias")),
    ],
)
def test_a_file_that_loses_what_makes_a_member_is_caught(
    name: str, fault: Callable[[dict[str, Any], dict[str, Tensor]], None], tmp_path: Path
) -> None:
    make, template, inputs = METHODS[name]
    lpe.save(make(), tmp_path / "e")
    rewrite(tmp_path / "e", fault)
    read = lpe.load(tmp_path / "e", template(9))
    with pytest.raises(AssertionError):
        check_members_compute_the_same(read, make(), inputs)


@pytest.mark.parametrize(
    "name, key",
    [("mc dropout", "shared/0.weight"), ("batch", "network/0.weight"), ("batch", "network/3.batch_s")],
)
def test_a_methods_file_that_lacks_a_tensor_is_refused(name: str, key: str, tmp_path: Path) -> None:
    lpe.save(by_method()[name], tmp_path / "e")
    rewrite(tmp_path / "e", lambda header, tensors: tensors.__delitem__(key))
    with pytest.raises(lpe.InputError, match=f"is damaged: it lacks '{key}'"):
        lpe.load(tmp_path / "e", model(9))


def test_masks_are_not_put_where_another_model_has_dropout(tmp_path: Path) -> None:
    lpe.save(lpe.MCDropoutEnsemble(conv_net(), 0.3, 2), tmp_path / "e")
    with pytest.raises(
        lpe.InputError,
        match=r"of another model: its dropout masks differ \(\['dropout', 'output', 2\] there, \['up'",
    ):
        lpe.load(tmp_path / "e", conv_net(dropout=nn.Identity()))


def test_fast_weights_are_not_given_to_a_layer_of_other_inputs(tmp_path: Path) -> None:
    lpe.save(lpe.BatchEnsemble(conv_net(groups=2), 3), tmp_path / "e")
    with pytest.raises(lpe.InputError, match="of another model: its fast weights differ"):
        lpe.load(tmp_path / "e", conv_net(groups=1))


def test_a_model_that_converts_other_layers_is_not_the_files(tmp_path: Path) -> None:
    class OwnLinear(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).relu()

    lpe.save(lpe.BatchEnsemble(model(), 3), tmp_path / "e")
    other = model(9)
    other[3] = OwnLinear(32, 32)
    with pytest.raises(lpe.InputError, match=r"its converted layers differ \(3 there, none here\)"):
        lpe.load(tmp_path / "e", other)


def test_a_batch_ensemble_read_back_trains_what_its_model_trains(tmp_path: Path) -> None:
    lpe.save(lpe.BatchEnsemble(model(), 3), tmp_path / "e")
    template = model(9)
    template[0].weight.requires_grad_(False)
    read = lpe.load(tmp_path / "e", template)
    assert isinstance(read, lpe.BatchEnsemble)
    frozen = [name for name, p in read.module.network.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight"]


def low_precision(net: nn.Module, first: int = 0) -> Ensemble:
    return lpe.LowPrecisionEnsemble(net, lpe.Int(5), 2, first_member=first)


@pytest.mark.parametrize(
    "make",
    [
        low_precision,
        lambda net: lpe.LowPrecisionEnsemble(net, lpe.FullPrecision(), 2),
        lambda net: lpe.DeepEnsemble([net]),
        lambda net: lpe.BatchEnsemble(net, 2),
        lambda net: lpe.MCDropoutEnsemble(net, 0.1, 2),
        lambda net: lpe.Mixture.of([lpe.DeepEnsemble([model()]), low_precision(net)]),
    ],
    ids=["int5", "full precision", "deep", "batch", "mc dropout", "union"],
)
@pytest.mark.parametrize("base", [model, conv_net])
def test_networks_with_masks_are_refused_in_other_ensembles(
    base: Callable[[], nn.Module], make: Callable[[nn.Module], Ensemble], tmp_path: Path
) -> None:
    with pytest.raises(lpe.InputError, match="networks with dropout masks, which are no tensors"):
        lpe.save(make(lpe.MCDropoutEnsemble(base(), 0.3, 2)[1]), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_one_network_with_masks_among_plain_ones_is_refused(tmp_path: Path) -> None:
    masked = lpe.MCDropoutEnsemble(model(), 0.3, 2)[1]
    with pytest.raises(lpe.InputError, match="this DeepEnsemble is made of networks with dropout masks"):
        lpe.save(lpe.DeepEnsemble([model(), masked]), tmp_path / "e")


@pytest.mark.parametrize("kind", KINDS)
def test_expansions_of_mc_dropout_are_refused(kind: str, tmp_path: Path) -> None:
    expanded = lpe.Mixture(lpe.MCDropoutEnsemble(model(), 0.3, 2), low_precision)
    with pytest.raises(
        lpe.InputError, match="this LowPrecisionEnsemble is made of networks with dropout masks"
    ):
        lpe.save(expanded, tmp_path / "e", kind=kind)


def test_mc_dropout_has_no_seeded_kind(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="a seeded file holds a low precision ensemble"):
        lpe.save(lpe.MCDropoutEnsemble(model(), 0.3, 2), tmp_path / "e", kind="seeded")


def test_a_model_with_masks_is_no_architecture_to_read_on(tmp_path: Path) -> None:
    ensemble = lpe.MCDropoutEnsemble(model(), 0.3, 2)
    lpe.save(ensemble, tmp_path / "e")
    with pytest.raises(lpe.InputError, match="has dropout masks of an MCDropoutEnsemble's member"):
        lpe.load(tmp_path / "e", ensemble[0])


@pytest.mark.parametrize("name", ["mc dropout", "batch", "int5"])
def test_hooks_of_the_architecture_are_the_readers_own(name: str, tmp_path: Path) -> None:
    def hooked(seed: int) -> nn.Module:
        net = model(seed)
        net[3].register_forward_hook(lambda layer, inputs, output: output.tanh())
        return net

    make: dict[str, Callable[[nn.Module], Ensemble]] = {
        "mc dropout": lambda net: lpe.MCDropoutEnsemble(net, 0.3, 2),
        "batch": lambda net: lpe.BatchEnsemble(net, 2),
        "int5": low_precision,
    }
    ensemble = make[name](hooked(0))
    lpe.save(ensemble, tmp_path / "e")
    check_members_compute_the_same(lpe.load(tmp_path / "e", hooked(9)), ensemble, INPUTS)


# Views and selections.


@pytest.mark.parametrize(
    "make",
    [low_precision, lambda net: lpe.DeepEnsemble([net]), lambda net: lpe.AugmentedEnsemble(net, 2)],
    ids=["int5", "deep", "views"],
)
def test_networks_with_views_are_refused_in_other_ensembles(
    make: Callable[[nn.Module], Ensemble], tmp_path: Path
) -> None:
    with pytest.raises(lpe.InputError, match="networks with views of their inputs, which are no tensors"):
        lpe.save(make(lpe.AugmentedEnsemble(conv_net(), 2)[1]), tmp_path / "e")


def test_a_network_with_a_view_is_no_architecture_to_read_on(tmp_path: Path) -> None:
    lpe.save(lpe.DeepEnsemble([conv_net()]), tmp_path / "e")
    with pytest.raises(lpe.InputError, match="has the view of an AugmentedEnsemble's member"):
        lpe.load(tmp_path / "e", lpe.AugmentedEnsemble(conv_net(), 2)[1])


def test_a_view_of_ones_own_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(
        lpe.InputError, match="a file holds the standard view, lpe.CropAndFlip, and no function"
    ):
        lpe.save(lpe.AugmentedEnsemble(conv_net(), 2, view=lambda x, draws: x), tmp_path / "e")


@pytest.mark.parametrize(
    ("ensemble", "kind"),
    [(lpe.AugmentedEnsemble(conv_net(), 2), "members"), (selections()["selection"], "seeded")],
    ids=["views", "seeded selection"],
)
def test_what_an_older_reader_would_take_for_something_else_it_refuses(
    ensemble: Ensemble, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lpe.LowPrecisionEnsemble(model(), {"*": lpe.Int(4)}, 2)  # several systems: version 3
    for each in (ensemble, lpe.Mixture.of([ensemble, plain]) if kind == "seeded" else ensemble):
        lpe.save(each, tmp_path / "e", kind=kind)
        with monkeypatch.context() as patch:
            patch.setattr(container, "VERSION", 3)
            with pytest.raises(lpe.InputError, match="is of version 4, this lpe reads up to 3"):
                lpe.load(tmp_path / "e", model())


def test_a_selection_from_a_seeded_file_draws_its_members_and_no_others(tmp_path: Path) -> None:
    whole = lpe.LowPrecisionEnsemble(model(), lpe.Int(5), 6, seed=7)
    chosen = lpe.SelectedEnsemble(whole, [4, 0, 5])
    lpe.save(whole, tmp_path / "whole", kind="seeded")
    lpe.save(chosen, tmp_path / "e", kind="seeded")
    read, every = lpe.load(tmp_path / "e", model(9)), lpe.load(tmp_path / "whole", model(9))
    assert isinstance(read, lpe.SelectedEnsemble) and read.members == (4, 0, 5)
    assert all(same(read[place], every[index]) for place, index in enumerate(read.members))
    assert stored_bits(tmp_path / "e") == chosen.memory_bits(storage="generator")
    assert len(lpe.load(tmp_path / "e", model(9), size=2)) == 2
    with pytest.raises(lpe.InputError, match="holds a selection of 3 members, not 4"):
        lpe.load(tmp_path / "e", model(9), size=4)
    lpe.save(read, tmp_path / "again", kind="seeded")
    assert all(map(same, lpe.load(tmp_path / "again", model(9)), read))


def test_a_file_of_a_selections_members_says_which_they_are(tmp_path: Path) -> None:
    lpe.save(selections()["selection"], tmp_path / "e")
    read = lpe.load(tmp_path / "e", model(9), size=2)
    assert isinstance(read, StoredEnsemble) and read.selected == (4, 0)
    lpe.save(read, tmp_path / "again")
    again = lpe.load(tmp_path / "again", model(9))
    assert isinstance(again, StoredEnsemble) and again.selected == (4, 0)


@pytest.mark.parametrize(
    ("of", "kind", "says"),
    [
        (mixture(), "members", "a file holds no selection of a Mixture; save lpe.DeepEnsemble"),
        (batch_ensemble(), "members", "a file holds no selection of a BatchEnsemble"),
        (lpe.MCDropoutEnsemble(model(), 0.3, 3), "members", "networks with dropout masks"),
        (lpe.AugmentedEnsemble(conv_net(), 3), "members", "networks with views of their inputs"),
        (lpe.DeepEnsemble([model(), model()]), "seeded", "a seeded file holds a low precision ensemble"),
        (
            lpe.LowPrecisionEnsemble(model(), lpe.Int(5), 3, batches=BATCHES),
            "seeded",
            "a seeded file of a selection holds no re-estimated batch-norm statistics",
        ),
    ],
    ids=["mixture", "batch", "mc dropout", "views", "deep", "statistics"],
)
def test_a_selection_that_no_file_can_hold_is_refused(
    of: Ensemble, kind: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(lpe.InputError, match=says):
        lpe.save(lpe.SelectedEnsemble(of, [1]), tmp_path / "e", kind=kind)


# Files of version 1 from before methods had a form of their own, written out as they were.

WEIGHTS = torch.tensor([[[0.5, -1.5]], [[2.0, 0.25]]])
SHAPES = {"weight": [1, 2], "bias": [1]}
OLD_MEMBERS = {
    "member 0/weight": WEIGHTS[0],
    "member 1/weight": WEIGHTS[1],
    "shared/bias": torch.tensor([0.75]),
}
OLD_PART = {"system": None, "layouts": {}, "own": ["weight"], "size": 2}


def written(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> Path:
    header = {"format": "lpe ensemble", "version": 1, "kind": "members", "shapes": SHAPES, **about}
    safetensors.torch.save_file(tensors, path, metadata={"lpe": json.dumps(header)})
    return path


def weights_of(ensemble: Ensemble) -> Tensor:
    assert all(torch.equal(member.bias, torch.tensor([0.75])) for member in ensemble)
    return torch.stack([member.weight for member in ensemble])


def test_an_old_file_of_whole_members_is_read(tmp_path: Path) -> None:
    read = lpe.load(written(tmp_path / "e", OLD_MEMBERS, OLD_PART), nn.Linear(2, 1))
    assert torch.equal(weights_of(read), WEIGHTS)


def test_an_old_file_of_a_mixture_is_read(tmp_path: Path) -> None:
    tensors = {f"part {part}/{key}": tensor.clone() for part in (0, 1) for key, tensor in OLD_MEMBERS.items()}
    path = written(tmp_path / "e", tensors, {"size": 4, "parts": [OLD_PART, OLD_PART]})
    assert torch.equal(weights_of(lpe.load(path, nn.Linear(2, 1))), torch.cat([WEIGHTS, WEIGHTS]))


def test_an_old_file_of_packed_members_is_read(tmp_path: Path) -> None:
    tensors = {
        "member 0/weight": pack(torch.tensor([[3, -7]], dtype=torch.int8), lpe.Int(4)),
        "member 1/weight": pack(torch.tensor([[4, -7]], dtype=torch.int8), lpe.Int(4)),
        "scales/weight": torch.tensor([[0.5]]),
        "shared/bias": torch.tensor([0.75]),
    }
    about = {
        "size": 2,
        "system": {"bits": 4, "scale": "PerChannel", "channels": 1},
        "layouts": {"weight": {"output_axis": 0, "channel_groups": 1, "dtype": "float32"}},
        "own": ["weight"],
        "rounding": "bernoulli",
        "seed": 0,
        "first_member": 0,
    }
    read = lpe.load(written(tmp_path / "e", tensors, about), nn.Linear(2, 1))
    assert torch.equal(weights_of(read), torch.tensor([[[1.5, -3.5]], [[2.0, -3.5]]]))
