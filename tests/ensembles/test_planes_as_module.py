"""All members as one module from their bit planes: against each member alone, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import lpe
from lpe.ensembles import on_the_fly
from lpe.ensembles.on_the_fly import BLOCKS, MULTIPLIED, ROWS, WHOLE
from lpe.number_systems.kernels import planes_cpu, use
from tests.ensembles.test_on_the_fly import (
    INT4,
    MEMBERS,
    MODELS,
    SYSTEMS,
    check_the_module_equals_the_members,
    filled,
    mlp,
    numbers,
    one_at_a_time,
    timm_vit,
)


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_each_member_alone(name: str) -> None:
    make, inputs = MODELS[name]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS)
    check_the_module_equals_the_members(ensemble, inputs, ensemble.as_module(storage="planes"))


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
@pytest.mark.parametrize("rounding", ["bernoulli", "coupled"])
@pytest.mark.parametrize("name", ["timm ViT", "GPT-2"])
def test_the_logits_are_the_members_under_every_rounding_and_system(
    name: str, rounding: str, system: Any
) -> None:
    make, inputs = MODELS[name]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()), system, MEMBERS, 7, rounding, first_member=11)
    check_the_module_equals_the_members(ensemble, inputs, ensemble.as_module(storage="planes"))


@pytest.mark.parametrize("size", [1, 7, 20])
@pytest.mark.parametrize("positions", [0, 1000])
def test_the_logits_are_the_members_multiplied_or_written(
    size: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planes_cpu, "POSITIONS", positions)
    ensemble = lpe.LowPrecisionEnsemble(mlp(), INT4, size)
    module = ensemble.as_module(storage="planes")
    for count in (3, 1, 40):
        check_the_module_equals_the_members(ensemble, numbers((count, 8)), module)
    assert (MULTIPLIED in module.describe()) == (positions > 0)
    assert (BLOCKS in module.describe()) == (positions == 0)


def test_the_reference_gives_the_same() -> None:
    ensemble = lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS)
    with use("reference"):
        check_the_module_equals_the_members(ensemble, numbers((3, 8)), ensemble.as_module(storage="planes"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_few_bits_has_its_members_to_its_own_rounding(dtype: torch.dtype) -> None:
    ensemble = lpe.LowPrecisionEnsemble(mlp().to(dtype), INT4, MEMBERS)
    inputs = numbers((2, 8)).to(dtype)
    found, expected = ensemble.as_module(storage="planes")(inputs), one_at_a_time(ensemble, inputs)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_under_autocast_the_products_are_of_its_type() -> None:
    ensemble = lpe.LowPrecisionEnsemble(filled(timm_vit()), INT4, MEMBERS)
    inputs = numbers((2, 3, 16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ensemble.as_module(storage="planes")(inputs)
        expected = one_at_a_time(ensemble, inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_nothing_is_drawn_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = lpe.LowPrecisionEnsemble(filled(timm_vit()), INT4, MEMBERS)
    inputs = numbers((2, 3, 16, 16))
    module = ensemble.as_module(storage="planes")
    expected = module(inputs)
    with mock.patch.object(on_the_fly, "members_into", side_effect=AssertionError("drawn")):
        assert torch.equal(module(inputs), expected)
        with pytest.raises(lpe.InputError, match="drawn"):
            ensemble.as_module()(inputs)


def test_the_table_tells_how_each_tensor_was_read() -> None:
    make, inputs = MODELS["embedding"]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS)
    module = ensemble.as_module(storage="planes")
    module(inputs)
    assert ROWS in module.describe() and "values read from bit planes in each pass" in module.describe()
    conv = lpe.LowPrecisionEnsemble(filled(MODELS["conv 1d"][0]()), INT4, MEMBERS).as_module("planes")
    conv(MODELS["conv 1d"][1])
    assert WHOLE in conv.describe()


def test_a_copy_shares_the_planes_and_gives_the_same() -> None:
    module = lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS).as_module(storage="planes")
    copied = copy.deepcopy(module)
    assert copied._planes is module._planes
    assert torch.equal(copied(numbers((2, 8))), module(numbers((2, 8))))


def test_planes_of_another_member_are_caught_by_the_modules_own_check() -> None:
    ensemble = lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS)
    module = ensemble.as_module(storage="planes")
    assert module._planes is not None
    for planes in module._planes.values():
        planes.bits.copy_(planes.bits.roll(1, 1))
    with pytest.raises(lpe.InputError, match="gives other logits for a member among all members"):
        module(numbers((2, 8)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lpe.LowPrecisionEnsemble(mlp(), INT4, 2).as_module(storage="codes"), "storage"),
        (lambda: lpe.LowPrecisionEnsemble(mlp(), INT4, 2).as_module(storage=None), "storage"),
        (
            lambda: lpe.LowPrecisionEnsemble(mlp(), INT4, 1, rounding="nearest").as_module(storage="planes"),
            "planes are of bernoulli or coupled members",
        ),
        (
            lambda: lpe.LowPrecisionEnsemble(mlp(), lpe.FullPrecision(), 1).as_module(storage="planes"),
            "nothing is rounded",
        ),
    ],
)
def test_what_has_no_planes_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(lpe.InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_was_read_from_a_file_of_planes_is_one_module_of_them(tmp_path: Path) -> None:
    ensemble = lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS)
    lpe.save(ensemble, tmp_path / "e", kind="planes")
    read = lpe.load(tmp_path / "e", mlp())
    assert isinstance(read, lpe.LowPrecisionEnsemble)
    inputs = numbers((3, 8))
    assert torch.equal(read.as_module()(inputs), ensemble.as_module(storage="planes")(inputs))
    with pytest.raises(lpe.InputError, match="members of planes are drawn from no weights"):
        read.as_module(storage="generator")
