"""A member is a function of (weights, seed, index): what is set for a process or a thread changes none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.swag import SWAGStatistics
from lpe.modules import named_tensors

SIZE = 3


def network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


NETWORK, *OTHERS = (network(seed) for seed in range(3))
INPUTS = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
BATCHES = [(INPUTS, torch.zeros(6, dtype=torch.int64))]
STD = {name: torch.full_like(p, 0.05).detach() for name, p in NETWORK.named_parameters()}
STATISTICS = SWAGStatistics(
    mean={name: p.detach().clone() for name, p in NETWORK.named_parameters()},
    variance={name: std.square() for name, std in STD.items()},
    deviations={
        name: 0.05 * torch.randn((4, *std.shape), generator=torch.Generator().manual_seed(2))
        for name, std in STD.items()
    },
)


def saved(net: nn.Module) -> dict[str, Tensor]:
    return {entry.name: entry.tensor.detach() for entry in named_tensors(net) if entry.saved}


SNAPSHOTS = [saved(net) for net in OTHERS]


def through_a_file(kind: str) -> Callable[[nn.Module], Ensemble]:
    def make(net: nn.Module) -> Ensemble:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "ensemble.lpe"
            lpe.save(lpe.LowPrecisionEnsemble(net, lpe.Int(4), SIZE), path, kind=kind)
            return lpe.load(path, net)

    return make


def expanded(net: nn.Module, first_member: int) -> Ensemble:
    return lpe.LowPrecisionEnsemble(net, lpe.Int(4), 2, first_member=first_member)


METHODS: dict[str, Callable[[nn.Module], Ensemble]] = {
    "LPE-BSR": lambda net: lpe.LowPrecisionEnsemble(net, lpe.Int(4), SIZE),
    "LPE-BSR, re-estimated": lambda net: lpe.LowPrecisionEnsemble(net, lpe.Int(4), SIZE, batches=BATCHES),
    "coupled": lambda net: lpe.LowPrecisionEnsemble(net, lpe.Int(4), SIZE, rounding="coupled"),
    "RTN": lambda net: lpe.LowPrecisionEnsemble(net, lpe.Int(4), 1, rounding="nearest"),
    "codebook": lambda net: lpe.LowPrecisionEnsemble(net, lpe.NF4(lpe.PerBlock(8)), SIZE),
    "full precision": lambda net: lpe.LowPrecisionEnsemble(net, lpe.FullPrecision(), SIZE),
    "Gaussian, matched": lambda net: lpe.GaussianEnsemble(net, lpe.Float(2, 1), SIZE, batches=BATCHES),
    "Gaussian, isotropic": lambda net: lpe.GaussianEnsemble(net, lpe.Int(4), SIZE, std=0.05),
    "MC-dropout": lambda net: lpe.MCDropoutEnsemble(net, 0.3, SIZE, batches=BATCHES),
    "views": lambda net: lpe.AugmentedEnsemble(net, SIZE, view=lpe.CropAndFlip(1)),
    "last-layer Laplace": lambda net: lpe.LaplaceEnsemble(
        net, lpe.last_layer_curvature(net, BATCHES, "kronecker"), SIZE
    ),
    "error feedback": lambda net: lpe.FeedbackEnsemble(net, lpe.Int(4), SIZE, BATCHES),
    "selection": lambda net: lpe.SelectedEnsemble(lpe.LowPrecisionEnsemble(net, lpe.Int(4), 5), [4, 0, 2]),
    "deep": lambda net: lpe.DeepEnsemble([net, *OTHERS]),
    "BatchEnsemble": lambda net: lpe.BatchEnsemble(net, SIZE),
    "SWAG": lambda net: lpe.SWAGEnsemble(net, STATISTICS, SIZE, batches=BATCHES),
    "IVON": lambda net: lpe.IVONEnsemble(net, STD, SIZE, batches=BATCHES),
    "snapshots": lambda net: lpe.SnapshotEnsemble(net, SNAPSHOTS),
    "cyclical SGLD": lambda net: lpe.CyclicalSGLDEnsemble(net, SNAPSHOTS),
    "mixture": lambda net: lpe.Mixture(lpe.DeepEnsemble([net, OTHERS[0]]), expanded),
    "a file of members": through_a_file("members"),
    "a seeded file": through_a_file("seeded"),
}
EXACT = {name: make(copy.deepcopy(NETWORK)) for name, make in METHODS.items()}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic(warn_only: bool, fill: bool) -> Iterator[None]:
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: deterministic(False, True),
    "deterministic, memory not filled": lambda: deterministic(False, False),
    "deterministic, warnings only": lambda: deterministic(True, True),
    "matmuls of lower precision": lambda: matmul_precision("medium"),
}

OF_THE_NETWORK = ("autocast", "matmuls of lower precision")
"""What a user sets for the network's own pass; ``predict`` runs it as it is told to."""


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    return {entry.name: entry.tensor.detach() for entry in named_tensors(net)}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_members_are_the_same_to_the_bit_under_every_setting(method: str, setting: str) -> None:
    base = copy.deepcopy(NETWORK)
    with SETTINGS[setting]():
        members = list(METHODS[method](base))
    for member, exact in zip(members, EXACT[method], strict=True):
        of_exact = tensors_of(exact)
        for name, tensor in tensors_of(member).items():
            assert tensor.dtype == of_exact[name].dtype and tensor.device == of_exact[name].device
            assert torch.equal(tensor, of_exact[name]), name
        assert torch.equal(member(INPUTS), exact(INPUTS))


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s not in OF_THE_NETWORK])
@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_the_same_to_the_bit_under_every_setting(method: str, setting: str) -> None:
    base = copy.deepcopy(NETWORK)
    with SETTINGS[setting]():
        predicted = METHODS[method](base).predict(INPUTS)
    assert torch.equal(predicted, EXACT[method].predict(INPUTS))


@pytest.mark.parametrize("method", METHODS)
def test_a_member_made_in_inference_mode_can_be_trained_outside(method: str) -> None:
    base = copy.deepcopy(NETWORK)
    with torch.inference_mode():
        member = METHODS[method](base)[0]
    trained = copy.deepcopy(member).requires_grad_()
    for tensor in (*trained.parameters(), *trained.buffers()):
        assert not tensor.is_inference()
    trained.train()(INPUTS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_base_made_in_inference_mode_has_the_members_of_any_other(method: str) -> None:
    with torch.inference_mode():
        base = network()
    for member, exact in zip(METHODS[method](base), EXACT[method], strict=True):
        of_exact = tensors_of(exact)
        assert all(torch.equal(tensor, of_exact[name]) for name, tensor in tensors_of(member).items())
        with torch.no_grad():
            assert torch.equal(member(INPUTS), exact(INPUTS))


@pytest.mark.parametrize("method", METHODS)
def test_making_and_running_members_leaves_the_global_generator_as_it_was(method: str) -> None:
    before = torch.get_rng_state()
    METHODS[method](copy.deepcopy(NETWORK)).predict(INPUTS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_rounded_weight_is_the_same_to_the_bit_under_every_setting(setting: str) -> None:
    weight = NETWORK[0].weight
    for system in (lpe.Int(4), lpe.Float(4, 3), lpe.NF4()):
        with SETTINGS[setting]():
            rounded = lpe.round_weights(weight, system, seed=1, name="w")
            decoded = lpe.decode(*lpe.encode(weight, system, seed=1, name="w"), system)
        assert torch.equal(rounded, lpe.round_weights(weight, system, seed=1, name="w"))
        assert torch.equal(decoded, rounded) and not rounded.is_inference() and not decoded.is_inference()


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s not in OF_THE_NETWORK])
def test_all_members_as_one_module_say_the_same_under_every_setting(setting: str) -> None:
    base = copy.deepcopy(NETWORK)
    with SETTINGS[setting]():
        logits = METHODS["LPE-BSR"](base).as_module()(INPUTS)
    assert torch.equal(logits, EXACT["LPE-BSR"].as_module()(INPUTS))


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s not in OF_THE_NETWORK])
@pytest.mark.parametrize("members", ["one-by-one", "together"])
def test_an_evaluation_is_the_same_to_the_bit_under_every_setting(members: str, setting: str) -> None:
    batches = [(INPUTS, [0, 1, 2, 3, 4, 0])]
    exact = lpe.evaluate(EXACT["LPE-BSR"], batches, calibrated=True, members=members)
    base = copy.deepcopy(NETWORK)
    with SETTINGS[setting]():
        table = lpe.evaluate(METHODS["LPE-BSR"](base), batches, calibrated=True, members=members)
    assert table.equals(exact)


def trained(net: nn.Module) -> dict[str, Tensor]:
    """SWAG's moments of a run of SGLD with dropout, and the weights that it ends with."""
    collector = lpe.SWAGCollector(2)
    optimizer = lpe.SGLD(net.parameters(), 0.1, examples=len(INPUTS), seed=3)
    lpe.train(net, BATCHES, optimizer, 0.1, epochs=3, seed=2**40, collector=collector)
    return {**collector.statistics().tensors(), **{name: p.detach() for name, p in net.named_parameters()}}


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s not in OF_THE_NETWORK])
def test_a_training_is_the_same_to_the_bit_under_every_setting(setting: str) -> None:
    exact, net = trained(copy.deepcopy(NETWORK)), copy.deepcopy(NETWORK)
    with SETTINGS[setting]():
        tensors = trained(net)
    assert all(torch.equal(tensor, exact[name]) for name, tensor in tensors.items())
    assert not any(tensor.is_inference() for tensor in tensors.values())


def test_members_together_may_run_in_inference_mode_first_and_outside_it_later() -> None:
    together = EXACT["LPE-BSR"].as_module()
    with torch.inference_mode():
        first = together(INPUTS)
    assert torch.equal(together(INPUTS), first)


def test_the_gradient_at_the_inputs_is_there_after_a_pass_in_inference_mode() -> None:
    member = METHODS["MC-dropout"](copy.deepcopy(NETWORK))[1]
    with torch.inference_mode():
        member(INPUTS)
    inputs = INPUTS.clone().requires_grad_()
    member(inputs).sum().backward()
    assert inputs.grad is not None
