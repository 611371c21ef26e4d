"""Ensembles as files: they predict the same when read back, and their size is what memory_bits says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import lpe
from lpe.ensembles import storage
from lpe.ensembles.base import Ensemble
from lpe.ensembles.swag import SWAGCollector, SWAGEnsemble


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
    }


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
    size = lpe.save(ensemble, tmp_path / "e")
    header = 8 + int.from_bytes((tmp_path / "e").read_bytes()[:8], "little")
    stored = 8 * (size - header)
    # A packed tensor is padded to a whole byte; safetensors pads nothing between tensors.
    tensors = len(safetensors.torch.load_file(tmp_path / "e"))
    assert ensemble.memory_bits() <= stored <= ensemble.memory_bits() + 7 * tensors


def test_a_seeded_file_holds_the_bits_of_the_generator(tmp_path: Path) -> None:
    ensemble = lpe.LowPrecisionEnsemble(model(), lpe.Int(5), 20)
    size = lpe.save(ensemble, tmp_path / "e", kind="seeded")
    header = 8 + int.from_bytes((tmp_path / "e").read_bytes()[:8], "little")
    assert 8 * (size - header) == ensemble.memory_bits(storage="generator")


def test_a_seeded_file_of_a_mixture_holds_the_bits_of_the_generators(tmp_path: Path) -> None:
    size = lpe.save(mixture(), tmp_path / "e", kind="seeded")
    header = 8 + int.from_bytes((tmp_path / "e").read_bytes()[:8], "little")
    assert 8 * (size - header) == mixture().memory_bits(storage="generator")


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
    size = lpe.save(mixture(), tmp_path / "e")
    header = 8 + int.from_bytes((tmp_path / "e").read_bytes()[:8], "little")
    assert lpe.load(tmp_path / "e", model(9)).memory_bits() == 8 * (size - header)


def test_a_mixtures_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    lpe.save(mixture(), tmp_path / "e")
    with safetensors.safe_open(tmp_path / "e", framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(tmp_path / "e")
    del tensors["part 1/scales/0.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "e", metadata=metadata)
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


def test_stored_members_report_the_padding_of_the_file(tmp_path: Path) -> None:
    ensemble = lpe.LowPrecisionEnsemble(model(width=3), lpe.Int(3), 2)
    size = lpe.save(ensemble, tmp_path / "e")
    header = 8 + int.from_bytes((tmp_path / "e").read_bytes()[:8], "little")
    assert lpe.load(tmp_path / "e", model(width=3)).memory_bits() == 8 * (size - header)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="kind must be one of members, seeded, not 'zip'"):
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
    with monkeypatch.context() as patched:
        patched.setattr(storage, "VERSION", 2)
        lpe.save(lpe.DeepEnsemble([model()]), tmp_path / "e")
    with pytest.raises(lpe.InputError, match="is of version 2, this lpe reads up to 1"):
        lpe.load(tmp_path / "e", model())


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "e", metadata={"lpe": json.dumps({})})
    with pytest.raises(lpe.InputError, match="holds no ensemble"):
        lpe.load(tmp_path / "e", model())
